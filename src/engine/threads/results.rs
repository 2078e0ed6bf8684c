//! [`collect`]: makes a vector that several threads fill at once, each its own stretch of it.
//!
//! Collecting a vector for each chunk and joining them afterwards would copy every result: 1 ns for
//! eight bytes, where a whole item may take 3. So workers write to the final place, if the number
//! of results is known beforehand.
//!
//! This module needs `unsafe`, because only it knows which parts of the vector hold results.
#![allow(unsafe_code)]

use std::mem::{self, MaybeUninit};
use std::{ptr, slice};

/// The room of a vector that is left, given out from front to back.
pub(super) struct Room<'v, R> {
    free: &'v mut [MaybeUninit<R>],
}

impl<'v, R> Room<'v, R> {
    /// Returns the next stretch, for `len` results.
    pub(super) fn next(&mut self, len: usize) -> Stretch<'v, R> {
        if let Some(slots) = self.free.split_off_mut(..len) {
            Stretch::InPlace(Slots { slots, filled: 0 })
        } else {
            // There are more results than the input said. All further stretches are apart too, so
            // that they stay in order.
            self.free = &mut [];
            Stretch::Apart(Vec::with_capacity(len))
        }
    }
}

/// The place where the results of one chunk go.
pub(super) enum Stretch<'v, R> {
    /// Results go to their final place.
    InPlace(Slots<'v, R>),
    /// Results go to a vector of their own, to be appended later.
    Apart(Vec<R>),
}

impl<R> Stretch<'_, R> {
    /// Adds results, as long as there is room.
    ///
    /// # Panics
    ///
    /// If the iterator panics. The results that it has given before stay.
    pub(super) fn extend(&mut self, results: impl Iterator<Item = R>) {
        match self {
            Self::InPlace(Slots { slots, filled }) => {
                // Counted apart from the slots: as far as the compiler knows, they might alias
                // `filled`.
                let mut count = Count {
                    now: *filled,
                    filled,
                };
                for (slot, result) in slots[count.now..].iter_mut().zip(results) {
                    slot.write(result);
                    count.now += 1;
                }
            }
            Self::Apart(own) => results.for_each(|result| own.push(result)),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::InPlace(slots) => slots.filled,
            Self::Apart(results) => results.len(),
        }
    }

    /// Returns the results so far.
    pub(super) fn as_slice(&self) -> &[R] {
        match self {
            Self::InPlace(Slots { slots, filled }) => {
                // SAFETY: `filled` counts slots that were written, from the first on without a gap.
                // `slots` borrows them exclusively, and `self` is borrowed as long as the slice is.
                unsafe { slice::from_raw_parts(slots[..*filled].as_ptr().cast(), *filled) }
            }
            Self::Apart(results) => results,
        }
    }
}

/// A part of a vector's room. The first `filled` slots hold results; only this module changes that
/// number.
pub(super) struct Slots<'v, R> {
    slots: &'v mut [MaybeUninit<R>],
    filled: usize,
}

impl<R> Drop for Slots<'_, R> {
    fn drop(&mut self) {
        let results = &mut self.slots[..self.filled];
        // SAFETY: `filled` counts slots that were written, from the first on without a gap, and
        // each is written once. The slots are borrowed exclusively, and this is the end of their
        // only borrower: no code reads or drops them again.
        unsafe { ptr::drop_in_place(ptr::from_mut(results) as *mut [R]) };
    }
}

/// A count that is written to its place when it goes out of scope, also by a panic.
struct Count<'c> {
    now: usize,
    filled: &'c mut usize,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        *self.filled = self.now;
    }
}

/// Makes a vector with room for `capacity` results. `fill` must return the stretches in the order
/// in which the room gave them out. The last of them need not be full. Results of stretches that it
/// does not return, or of all if it fails, are dropped.
///
/// # Panics
///
/// If a stretch that goes in place is missing, or one before the last is not full.
pub(super) fn collect<R, E>(
    capacity: usize,
    fill: impl for<'v> FnOnce(Room<'v, R>) -> Result<Vec<Stretch<'v, R>>, E>,
) -> Result<Vec<R>, E> {
    let mut results: Vec<R> = Vec::new();
    // The capacity comes from an iterator's hint. If there is no room for it, all stretches are
    // apart.
    let _ = results.try_reserve_exact(capacity);
    let (start, capacity) = (results.as_ptr(), results.capacity());
    let stretches = fill(Room {
        free: results.spare_capacity_mut(),
    })?;

    let mut in_place = 0;
    let mut apart = Vec::new();
    let mut is_full = true;
    for stretch in stretches {
        assert!(is_full, "a stretch is not full");
        match stretch {
            Stretch::InPlace(slots) => {
                let expected = start.wrapping_add(in_place).cast();
                assert!(
                    slots.slots.as_ptr() == expected,
                    "a stretch is missing or out of order"
                );
                is_full = slots.filled == slots.slots.len();
                in_place += slots.filled;
                assert!(in_place <= capacity, "a stretch of another vector");
                // From here on the results belong to the vector.
                mem::forget(slots);
            }
            Stretch::Apart(more) => apart.push(more),
        }
    }
    // SAFETY: the loop has seen stretches that lie side by side from the vector's start on, all but
    // the last of them full. They have filled `in_place` slots in all, which is within the
    // capacity. So these slots hold results, and the stretches have given them up.
    unsafe { results.set_len(in_place) };
    for mut more in apart {
        results.append(&mut more);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;

    /// Returns the next stretch, with these results in it.
    fn filled<'v, R, const N: usize>(room: &mut Room<'v, R>, results: [R; N]) -> Stretch<'v, R> {
        let mut stretch = room.next(N);
        stretch.extend(results.into_iter());
        assert_eq!(stretch.as_slice().len(), N);
        stretch
    }

    #[test]
    fn results_land_in_order_whatever_the_hint_was() {
        for capacity in [0, 1, 3, 5, 6, 7, 100, usize::MAX] {
            let results = collect(capacity, |mut room| {
                Ok::<_, ()>(
                    [[1, 2], [3, 4], [5, 6]]
                        .map(|pair: [u64; 2]| filled(&mut room, pair))
                        .into(),
                )
            });
            assert_eq!(
                results,
                Ok(vec![1, 2, 3, 4, 5, 6]),
                "with room for {capacity}"
            );
        }
    }

    #[test]
    fn what_follows_results_without_room_is_behind_them_though_it_would_have_room() {
        let results = collect(3, |mut room| {
            let pairs = [[1_u64, 2], [3, 4]].map(|pair| filled(&mut room, pair));
            let mut all = Vec::from(pairs);
            all.push(filled(&mut room, [5]));
            Ok::<_, ()>(all)
        });
        assert_eq!(results, Ok(vec![1, 2, 3, 4, 5]));
    }

    #[test]
    fn results_of_no_size_are_counted() {
        let results = collect(usize::MAX, |mut room| {
            Ok::<_, ()>(vec![filled(&mut room, [(); 3])])
        });
        assert_eq!(results, Ok(vec![(); 3]));
    }

    #[test]
    fn a_stretch_takes_no_more_than_it_has_room_for() {
        let results = collect(2, |mut room| {
            let mut stretch = room.next(2);
            stretch.extend([1, 2, 3].into_iter());
            stretch.extend([4].into_iter());
            Ok::<_, ()>(vec![stretch])
        });
        assert_eq!(results, Ok(vec![1, 2]));
    }

    #[test]
    fn every_result_is_dropped_when_it_was_for_nothing() {
        let token = Rc::new(());
        let failed: Result<Vec<Rc<()>>, &str> = collect(10, |mut room| {
            let _full = filled(&mut room, [(); 2].map(|()| Rc::clone(&token)));
            let mut half = room.next(4);
            half.extend([Rc::clone(&token)].into_iter());
            assert_eq!((half.len(), Rc::strong_count(&token)), (1, 4));
            Err("failed")
        });
        assert_eq!(failed, Err("failed"));
        assert_eq!(Rc::strong_count(&token), 1);
    }

    #[test]
    fn what_was_made_before_a_panic_is_counted_and_dropped() {
        for capacity in [0, 4] {
            let token = Rc::new(());
            let results: Result<Vec<Rc<()>>, ()> = collect(capacity, |mut room| {
                let mut stretch = room.next(4);
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    stretch.extend((0..4).map(|nth| {
                        assert!(nth < 3, "on purpose");
                        Rc::clone(&token)
                    }));
                }));
                assert!(unwound.is_err());
                assert_eq!((stretch.len(), Rc::strong_count(&token)), (3, 4));
                Ok(Vec::new())
            });
            assert_eq!((results.unwrap().len(), Rc::strong_count(&token)), (0, 1));
        }
    }

    #[test]
    #[should_panic(expected = "not full")]
    fn a_stretch_that_is_not_full_is_refused_before_another() {
        let _ = collect(6, |mut room: Room<'_, u8>| {
            let open = room.next(4);
            Ok::<_, ()>(vec![open, filled(&mut room, [1, 2])])
        });
    }

    #[test]
    fn the_last_stretch_need_not_be_full() {
        for capacity in [0, 5] {
            let results = collect(capacity, |mut room| {
                let first = filled(&mut room, [1_u64, 2]);
                let mut last = room.next(3);
                last.extend([3].into_iter());
                Ok::<_, ()>(vec![first, last])
            });
            assert_eq!(results, Ok(vec![1, 2, 3]), "with room for {capacity}");
        }
    }

    #[test]
    #[should_panic(expected = "missing or out of order")]
    fn a_missing_stretch_is_refused() {
        let _ = collect(4, |mut room| {
            let _first = filled(&mut room, [1, 2]);
            Ok::<_, ()>(vec![filled(&mut room, [3, 4])])
        });
    }
}
