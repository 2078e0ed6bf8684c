//! Arrays that processes share: what claims allow and refuse, calls that change them in place, and
//! what dead processes leave.
#![cfg_attr(
    long_slices,
    allow(unused_imports, reason = "tests that wait for a slice are left out")
)]

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod claims;
mod deaths;
mod forks;

use std::time::Duration;

use common::{Leftovers, assert_matches};
use manyhands::prelude::*;
use manyhands::{
    SharedArray,
    shm::{ClaimError, ShareError, TileMut},
};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// How long a wait may take that must end.
const LONG: Duration = Duration::from_secs(30);

/// A pool of each kind: forked ones as a test harness needs them.
fn engines() -> Vec<Pool<AnyEngine>> {
    vec![
        Pool::serial().into(),
        Pool::threads(2).unwrap().into(),
        Pool::processes(2).unwrap().into(),
        forked().into(),
    ]
}

fn forked() -> Pool<Forked> {
    let builder = Forked::builder().workers(2).allow_threads(true);
    builder.build().unwrap()
}

fn is_claimed<T>(outcome: &std::result::Result<T, ClaimError>) -> bool {
    matches!(outcome, Err(ClaimError::Claimed { .. }))
}

/// Whether a call with a timeout was late, because elements were claimed.
fn is_late<T>(outcome: &std::result::Result<T, ClaimError>) -> bool {
    matches!(outcome, Err(ClaimError::TimedOut { .. }))
}

/// An iterator that is wrong about its length.
struct Wrong(u8, usize);
impl Iterator for Wrong {
    type Item = u8;
    fn next(&mut self) -> Option<u8> {
        self.0 = self.0.checked_sub(1)?;
        Some(self.0)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

#[test]
fn b71_an_array_has_its_elements_and_its_length() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(1_000, |i| i as u32)?;
    assert_eq!((array.len(), array.is_empty()), (1_000, false));
    assert_eq!((array.get(999)?, array.try_read()?[7]), (999, 7));
    assert_matches!(
        array.get(1_000),
        Err(ClaimError::OutOfBounds { range, len: 1_000, .. }) if range == (1_000..1_001)
    );
    array.set(7, 8)?;
    assert_eq!(*array.try_read_range(6..9)?, [6, 8, 8]);
    assert!(array.try_read_range(6..1_001).is_err());
    array.try_write_range(..10)?.fill(1);
    assert_eq!(array.to_vec()?[..11], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10]);
    array.fill(3)?;
    array.copy_from_slice(&vec![4; 1_000])?;
    assert_eq!(array.to_vec()?, vec![4; 1_000]);
    assert_matches!(
        array.copy_from_slice(&[1]),
        Err(ClaimError::LengthMismatch {
            given: 1,
            len: 1_000,
            ..
        })
    );
    assert_eq!(SharedArray::from_iter([1u8, 2, 3])?.to_vec()?, [1, 2, 3]);
    assert_eq!(
        SharedArray::from_iter((0..9u8).filter(|x| x % 4 == 0))?.to_vec()?,
        [0, 4, 8]
    );
    assert_eq!(SharedArray::from_iter(Wrong(3, 1))?.to_vec()?, [2, 1, 0]);
    assert_eq!(SharedArray::from_iter(Wrong(3, 5))?.to_vec()?, [2, 1, 0]);
    let text = format!("{array:?}");
    assert!(text.starts_with("SharedArray"), "{text}");
    Ok(())
}

#[test]
fn b71_empty_arrays_and_elements_of_no_size_are_nothing_special() -> Result {
    let _none = Leftovers::none();
    let mut empty = SharedArray::<u64>::zeros(0)?;
    assert!(empty.is_empty() && empty.try_read()?.is_empty() && empty.to_vec()?.is_empty());
    let (one, two) = (empty.try_write()?, empty.try_write()?);
    drop((one, two));
    assert_eq!(
        SharedArray::<()>::zeros(usize::MAX)?.try_read()?.len(),
        usize::MAX
    );
    let mut units = SharedArray::<()>::zeros(10)?;
    for pool in engines() {
        pool.for_each_chunk(&mut empty, 5, |_, _: &mut [u64]| panic!("there is none"))?;
        pool.for_each_chunk(&mut units, 3, |i, chunk: &mut [()]| {
            assert_eq!(chunk.len(), if i == 3 { 1 } else { 3 });
        })?;
        pool.for_each_tile(&mut empty, (0, 7), (2, 2), |_: TileMut<'_, u64>| {
            panic!("there is none")
        })?;
    }
    assert!(SharedArray::<u8>::zeros(0)?.freeze()?.is_empty());
    Ok(())
}

#[test]
fn b71_new_arrays_are_zeros_whatever_was_there_before() -> Result {
    let _none = Leftovers::none();
    for len in [1, 100, 5_000, 100_000, 3_000_000] {
        // What was used is used again: by then it is full of ones.
        for _ in 0..5 {
            let arrays: Vec<_> = (0..3)
                .map(|_| SharedArray::<u16>::zeros(len).unwrap())
                .collect();
            for array in &arrays {
                assert!(array.try_read()?.iter().all(|&x| x == 0), "{len} elements");
                array.fill(u16::MAX)?;
            }
        }
    }
    Ok(())
}

#[test]
fn b71_what_a_child_writes_is_seen_when_the_task_has_ended() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(1_000)?;
    let pool = Pool::processes(2)?;
    for round in 1..50 {
        pool.submit(
            |(array, round): (SharedArray<u64>, u64)| array.try_write().unwrap().fill(round),
            (array.clone(), round),
        )
        .result()?;
        assert_eq!(*array.try_read()?, [round; 1_000]);
    }
    let child = Process::spawn(
        |array: SharedArray<u64>| array.fill(77).unwrap(),
        array.clone(),
    )?;
    assert!(child.join()?.success());
    assert_eq!(array.get(500)?, 77);
    forked().map(|i: usize| array.set(i, 78).unwrap(), 0..3)?;
    assert_eq!(*array.try_read_range(..4)?, [78, 78, 78, 77]);
    // A worker can make one, too.
    let made = pool
        .submit(|len: usize| SharedArray::from_fn(len, |i| i).unwrap(), 10)
        .result()?;
    assert_eq!(made.get(9)?, 9);
    Ok(())
}

#[test]
fn the_rows_of_a_tile_are_the_same_by_row_by_index_and_one_after_the_other() -> Result {
    let _none = Leftovers::none();
    let mut matrix = SharedArray::from_fn(7 * 9, |at| at as u32)?;
    let check = |mut tile: TileMut<'_, u32>| {
        let ((top, left), columns) = (tile.origin(), tile.ncols());
        for row in 0..tile.nrows() {
            let start = (9 * (top + row) + left) as u32;
            let expected: Vec<u32> = (start..start + columns as u32).collect();
            let by_index: Vec<u32> = (0..columns).map(|column| tile[(row, column)]).collect();
            assert_eq!(by_index, expected);
            assert_eq!(tile.row(row), expected);
            assert_eq!(tile.row_mut(row), expected);
            assert_eq!(*tile.rows_mut().nth(row).unwrap(), expected);
        }
        let rows = tile.nrows();
        let outside: [fn(&mut TileMut<'_, u32>, usize, usize); 4] = [
            |tile, rows, _| _ = tile.row(rows).len(),
            |tile, rows, _| tile.row_mut(rows).fill(0),
            |tile, _, columns| assert_eq!(tile[(0, columns)], 0),
            |tile, _, columns| tile[(0, columns)] = 0,
        ];
        for (number, look) in outside.into_iter().enumerate() {
            let look = std::panic::AssertUnwindSafe(|| look(&mut tile, rows, columns));
            assert!(std::panic::catch_unwind(look).is_err(), "way {number}");
        }
    };
    Pool::serial().for_each_tile(&mut matrix, (7, 9), (3, 4), check)?;
    assert_eq!(matrix.to_vec()?, (0..63).collect::<Vec<u32>>());
    Ok(())
}

#[test]
fn b72_a_handle_is_small_whatever_the_length() -> Result {
    let _none = Leftovers::none();
    let small = SharedArray::<u8>::zeros(1 << 10)?;
    let large = SharedArray::<u8>::zeros(1 << 30)?;
    let sizes = [&small, &large].map(|array| serde_json::to_value(array).unwrap());
    let fields = |value: &serde_json::Value| value.as_object().unwrap().len();
    assert_eq!(fields(&sizes[0]), fields(&sizes[1]));
    assert!(sizes[1].to_string().len() < 150, "{}", sizes[1]);
    assert_eq!(size_of::<SharedArray<u8>>(), size_of::<usize>());
    let pool = Pool::processes(1)?;
    let last = |array: SharedArray<u8>| {
        array.set(array.len() - 1, 1).unwrap();
        array.len()
    };
    assert_eq!(
        pool.map(last, [small.clone(), large.clone()])?,
        [1 << 10, 1 << 30]
    );
    assert_eq!(
        (small.get((1 << 10) - 1)?, large.get((1 << 30) - 1)?),
        (1, 1)
    );
    Ok(())
}

#[test]
fn b76_the_memory_stays_as_long_as_a_handle_somewhere() -> Result {
    let _none = Leftovers::none();
    let before = manyhands::shm::usage().objects;
    let pool = Pool::processes(1)?;
    let array = SharedArray::from_fn(100_000, |_| 5u8)?;
    let kept = pool
        .submit(|array: SharedArray<u8>| array, array.clone())
        .result()?;
    drop(array);
    assert_eq!(
        kept.try_read()?.iter().map(|&x| u64::from(x)).sum::<u64>(),
        500_000
    );
    pool.close()?;
    assert_eq!(manyhands::shm::usage().objects, before + 1);
    drop(kept);
    assert_eq!(manyhands::shm::usage().objects, before);
    Ok(())
}

#[test]
fn b78_more_than_there_is_is_an_error_and_nothing_is_left_of_it() -> Result {
    let _none = Leftovers::none();
    let reserved = manyhands::shm::usage().reserved;
    for len in [1 << 45, 1 << 60, usize::MAX / 8, usize::MAX] {
        let refused = SharedArray::<u64>::zeros(len).unwrap_err();
        let asked = u64::try_from(len as u128 * 8).unwrap_or(u64::MAX);
        assert!(
            matches!(refused, ShareError::OutOfMemory { bytes, .. } if bytes >= asked),
            "{refused:?}"
        );
    }
    assert!(manyhands::shm::usage().reserved <= reserved + (1 << 20));
    let pool = Pool::processes(1)?;
    let refused = pool
        .submit(|len: usize| SharedArray::<u8>::zeros(len).is_err(), 1 << 44)
        .result()?;
    assert!(refused);
    Ok(())
}

#[cfg(feature = "ndarray")]
#[test]
fn b75_views_of_any_dimension_are_of_the_same_memory() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(24, |i| i)?;
    let reading = array.try_read()?;
    let address = reading.as_ptr();
    assert_eq!(reading.view(24)?.as_ptr(), address);
    assert_eq!(reading.view([4, 6])?[[1, 2]], 8);
    assert_eq!(reading.view([2, 3, 4])?[[1, 2, 3]], 23);
    assert_eq!(reading.view(vec![1, 2, 3, 2, 2])?.ndim(), 5);
    assert_eq!(reading.view([2, 3, 4])?.as_ptr(), address);
    assert!(reading.view([5, 5]).is_err() && reading.view([4, 5]).is_err());
    assert!(reading.view([usize::MAX, 2]).is_err());
    drop(reading);
    array.try_write()?.view_mut([4, 6])?.row_mut(2).fill(1);
    assert_eq!(*array.try_read_range(11..19)?, [11, 1, 1, 1, 1, 1, 1, 18]);
    assert_eq!(array.try_write()?.view([4, 6])?[[2, 0]], 1);
    assert!(array.try_write()?.view_mut([1, 6]).is_err());
    let frozen = array.freeze()?;
    assert_eq!(frozen.view([6, 4])?.t().dim(), (4, 6));
    Ok(())
}

fn sum(of: impl AsRef<[u32]>) -> u32 {
    of.as_ref().iter().sum()
}

#[test]
fn what_gives_access_to_elements_is_compared_and_iterated_as_a_slice() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_slice(&[1_u32, 2, 3])?;
    let mut writing = array.try_write()?;
    for element in &mut writing {
        *element *= 2;
    }
    writing.as_mut()[2] = 7;
    assert_eq!(writing, [2, 4, 7]);
    assert_ne!(writing, [2, 4, 8]);
    assert_ne!(writing, [2, 4]);
    assert_eq!((&writing).into_iter().count(), 3);
    assert_eq!(sum(writing), 13);
    let reading = array.try_read()?;
    assert_eq!(reading, vec![2, 4, 7]);
    assert_eq!(reading, [2, 4, 7][..]);
    assert_eq!(reading, &[2, 4, 7][..]);
    assert_eq!((&reading).into_iter().max(), Some(&7));
    drop(reading);
    let atomics = array.try_atomics()?;
    for element in &atomics {
        element.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    assert_eq!(atomics.as_ref().len(), 3);
    drop(atomics);
    let frozen = array.freeze()?;
    assert_eq!(frozen, [3, 5, 8]);
    assert_ne!(frozen, vec![3, 5, 9]);
    assert_eq!((&frozen).into_iter().min(), Some(&3));
    assert_eq!(sum(frozen), 16);
    Ok(())
}
