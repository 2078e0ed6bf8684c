//! The slot that is next, in each order.
//!
//! - First in, first out: the slots are a ring, and push and pop each go round it.
//! - Last in, first out: the slots are a stack.
//! - By priority: an array has the numbers of the slots, first those in use, as a binary heap, then
//!   the free ones. A process changes the array before its push or pop happens. If it dies
//!   meanwhile, the next owner of the lock makes the array anew from the keys: a slot is in use if
//!   its key has a number.

use std::cmp::Reverse;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::head::{Key, Order, SlotHead, View};
use crate::os::fault;

impl View<'_> {
    /// Returns the header of a slot.
    #[allow(unsafe_code)]
    pub(super) fn slot(&self, slot: usize) -> &SlotHead {
        // SAFETY: the address is within the block and aligned to 8, by `slot_start`; all fields are
        // atomic.
        unsafe { self.slot_start(slot).cast::<SlotHead>().as_ref() }
    }

    /// Returns the address of a slot.
    #[allow(unsafe_code)]
    pub(super) fn slot_start(&self, slot: usize) -> NonNull<u8> {
        let offset = slot % self.geometry.capacity * self.geometry.stride;
        // SAFETY: the remainder is below the capacity; the geometry was checked against the length
        // of the block.
        unsafe { self.tail.add(offset) }
    }

    /// Returns what is known of the item in a slot, if the queue has priorities.
    pub(super) fn key(&self, slot: usize) -> Option<&Key> {
        let geometry = &self.geometry;
        if geometry.order != Order::Priority || slot >= geometry.capacity {
            return None;
        }
        let offset = geometry.capacity * geometry.stride + slot * size_of::<Key>();
        #[allow(unsafe_code)]
        // SAFETY: behind the slots there are as many keys, by the geometry, which was checked.
        let key = unsafe { self.tail.add(offset) };
        #[allow(unsafe_code)]
        // SAFETY: the tail is aligned to 64 and the stride a multiple of 8; all of it is atomic.
        Some(unsafe { key.cast::<Key>().as_ref() })
    }

    /// Returns the number of the slot at a position of the heap.
    #[allow(unsafe_code)]
    fn position(&self, position: usize) -> &AtomicU32 {
        debug_assert!(self.geometry.order == Order::Priority, "it has no heap");
        let geometry = &self.geometry;
        let offset = geometry.capacity * (geometry.stride + size_of::<Key>())
            + position % geometry.capacity * size_of::<AtomicU32>();
        // SAFETY: behind the keys there are as many numbers, by the geometry, which was checked.
        let place = unsafe { self.tail.add(offset) };
        // SAFETY: aligned to 4, since what is before it has whole words.
        unsafe { place.cast::<AtomicU32>().as_ref() }
    }

    fn at(&self, position: usize) -> usize {
        // Whatever number stands there, the remainder is below the capacity.
        self.position(position).load(Ordering::Relaxed) as usize % self.geometry.capacity
    }

    fn swap(&self, one: usize, other: usize) {
        let (first, second) = (self.at(one) as u32, self.at(other) as u32);
        self.position(one).store(second, Ordering::Relaxed);
        fault::point();
        self.position(other).store(first, Ordering::Relaxed);
    }

    /// Returns what the heap is ordered by: a higher rank is popped sooner.
    fn rank(&self, position: usize) -> (i64, Reverse<u64>) {
        self.key(self.at(position)).map_or((0, Reverse(0)), rank)
    }

    fn len_now(&self) -> (u64, usize) {
        let pushed = self.head.pushes.done.items.load(Ordering::Relaxed);
        let popped = self.head.pops.done.items.load(Ordering::Relaxed);
        (pushed, pushed.saturating_sub(popped) as usize)
    }
}

fn rank(key: &Key) -> (i64, Reverse<u64>) {
    let priority = key.priority.load(Ordering::Relaxed);
    (priority, Reverse(key.number.load(Ordering::Relaxed)))
}

/// Returns the slot for the next push. The caller has the lock, and there is room.
pub(super) fn free_slot(view: &View<'_>) -> usize {
    let (pushed, len) = view.len_now();
    match view.geometry.order {
        Order::Fifo => (pushed % view.geometry.capacity as u64) as usize,
        Order::Lifo => len,
        Order::Priority => view.at(len),
    }
}

/// Returns the slot of the next pop. The caller has the lock, and there is an item.
pub(super) fn next_slot(view: &View<'_>) -> usize {
    match view.geometry.order {
        Order::Fifo => {
            let popped = view.head.pops.done.items.load(Ordering::Relaxed);
            (popped % view.geometry.capacity as u64) as usize
        }
        Order::Lifo => view.len_now().1.saturating_sub(1),
        Order::Priority => view.at(0),
    }
}

/// Returns the slot of item `number`. The numbers below the length give all items, in any order. No
/// other thread uses the queue.
pub(super) fn slot_of(view: &View<'_>, number: usize) -> usize {
    match view.geometry.order {
        Order::Fifo => next_slot(view) + number,
        Order::Lifo => number,
        Order::Priority => view.at(number),
    }
}

/// Puts the item, which lies in the free slot, at its place in the order. Called before the push
/// happens.
pub(super) fn enter(view: &View<'_>, slot: usize, priority: i64) {
    let Some(key) = view.key(slot) else { return };
    let (pushed, len) = view.len_now();
    key.priority.store(priority, Ordering::Relaxed);
    key.number.store(pushed + 1, Ordering::Release);
    fault::point();
    let mut position = len;
    while position > 0 {
        let parent = (position - 1) / 2;
        if view.rank(position) <= view.rank(parent) {
            break;
        }
        view.swap(position, parent);
        position = parent;
    }
}

/// Takes the slot of the next item out of the heap. Called before the pop happens; [`vacate`]
/// follows after it.
pub(super) fn leave(view: &View<'_>) {
    if view.geometry.order != Order::Priority {
        return;
    }
    let len = view.len_now().1.saturating_sub(1);
    view.swap(0, len);
    let mut position = 0;
    loop {
        let (left, right) = (2 * position + 1, 2 * position + 2);
        if left >= len {
            return;
        }
        let child = if right < len && view.rank(right) > view.rank(left) {
            right
        } else {
            left
        };
        if view.rank(child) <= view.rank(position) {
            return;
        }
        view.swap(position, child);
        position = child;
    }
}

/// Marks the slot as free.
pub(super) fn vacate(view: &View<'_>, slot: usize) {
    if let Some(key) = view.key(slot) {
        key.number.store(0, Ordering::Release);
    }
}

/// Makes the heap from the keys.
pub(super) fn rebuild(view: &View<'_>) {
    let key = |slot: &usize| view.key(*slot).map(rank);
    let (mut used, free): (Vec<usize>, Vec<usize>) = (0..view.geometry.capacity)
        .partition(|slot| key(slot).is_some_and(|(_, Reverse(number))| number != 0));
    // Sorted from the first to the last, the slots are a heap.
    used.sort_by_key(|slot| Reverse(key(slot)));
    for (position, slot) in used.into_iter().chain(free).enumerate() {
        view.position(position)
            .store(slot as u32, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::iter;

    use super::*;
    use crate::queue::PriorityQueue;

    #[test]
    fn items_come_in_order_out_of_a_heap_that_was_made_anew() {
        let queue = PriorityQueue::bounded(16).unwrap();
        let pushed = [3, 1, 4, 1, 5, 9, 2, 6];
        for (number, priority) in pushed.into_iter().enumerate() {
            queue.push((priority, number), priority).unwrap();
        }
        rebuild(&queue.handle.view());
        let mut expected: Vec<_> = pushed.into_iter().zip(0..).collect();
        // The first one that was pushed first, among equals.
        expected.sort_by_key(|&(priority, _)| Reverse(priority));
        let popped: Vec<(i64, usize)> = iter::from_fn(|| queue.try_pop().ok()).collect();
        assert_eq!(popped, expected);
        assert_eq!(queue.len(), 0);
    }
}
