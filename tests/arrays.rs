//! Arrays that processes share: what claims allow and refuse, calls that change them in place, and what the dead leave.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Leftovers, eventually, kill};
use manyhands::prelude::*;
use manyhands::{ClaimError, FrozenArray, ShareError, SharedArray, SharedValue, TileMut, closure};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// How long what must come may take.
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
    let builder = Forked::builder().workers(2).allow_threads();
    builder.build().unwrap()
}

fn is_claimed<T>(outcome: &std::result::Result<T, ClaimError>) -> bool {
    matches!(outcome, Err(ClaimError::Claimed { .. }))
}

#[test]
fn b71_an_array_has_its_elements_and_its_length() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(1_000, |i| i as u32)?;
    assert_eq!((array.len(), array.is_empty()), (1_000, false));
    assert_eq!((array.get(999)?, array.read()?[7]), (999, 7));
    assert_eq!(
        array.get(1_000),
        Err(ClaimError::OutOfBounds {
            range: 1_000..1_001,
            len: 1_000
        })
    );
    array.set(7, 8)?;
    assert_eq!(*array.read_range(6..9)?, [6, 8, 8]);
    assert!(array.read_range(6..1_001).is_err());
    array.write_range(..10)?.fill(1);
    assert_eq!(array.to_vec()?[..11], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10]);
    array.fill(3)?;
    array.copy_from_slice(&vec![4; 1_000])?;
    assert_eq!(array.to_vec()?, vec![4; 1_000]);
    assert_eq!(
        array.copy_from_slice(&[1]),
        Err(ClaimError::Length {
            given: 1,
            len: 1_000
        })
    );
    assert_eq!(SharedArray::from_iter([1u8, 2, 3])?.to_vec()?, [1, 2, 3]);
    assert_eq!(
        SharedArray::from_iter((0..9u8).filter(|x| x % 4 == 0))?.to_vec()?,
        [0, 4, 8]
    );
    // An iterator that is wrong about itself.
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
    assert!(empty.is_empty() && empty.read()?.is_empty() && empty.to_vec()?.is_empty());
    let (one, two) = (empty.write()?, empty.write()?);
    drop((one, two));
    assert_eq!(
        SharedArray::<()>::zeros(usize::MAX)?.read()?.len(),
        usize::MAX
    );
    let mut units = SharedArray::<()>::zeros(10)?;
    for pool in engines() {
        pool.for_each_chunk(&mut empty, 5, |_, _: &mut [u64]| panic!("there is none"))?;
        pool.for_each_chunk(&mut units, 3, |i, chunk: &mut [()]| {
            assert_eq!(chunk.len(), if i == 3 { 1 } else { 3 })
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
                assert!(array.read()?.iter().all(|&x| x == 0), "{len} elements");
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
            |(array, round): (SharedArray<u64>, u64)| array.write().unwrap().fill(round),
            (array.clone(), round),
        )
        .result()?;
        assert_eq!(*array.read()?, [round; 1_000]);
    }
    let child = Process::spawn(
        |array: SharedArray<u64>| array.fill(77).unwrap(),
        array.clone(),
    )?;
    assert!(child.join()?.success());
    assert_eq!(array.get(500)?, 77);
    forked().map(|i: usize| array.set(i, 78).unwrap(), 0..3)?;
    assert_eq!(*array.read_range(..4)?, [78, 78, 78, 77]);
    // And made there.
    let made = pool
        .submit(|len: usize| SharedArray::from_fn(len, |i| i).unwrap(), 10)
        .result()?;
    assert_eq!(made.get(9)?, 9);
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
fn b73_several_workers_write_disjoint_chunks() -> Result {
    let _none = Leftovers::none();
    for pool in engines() {
        for (len, chunk) in [
            (1_000, 7),
            (1_000, 1_000),
            (1_000, 999),
            (5, 1_000),
            (64, 1),
        ] {
            let mut array = SharedArray::from_fn(len, |i| i as u64)?;
            pool.for_each_chunk(&mut array, chunk, |index, chunk: &mut [u64]| {
                for x in chunk {
                    *x += 1_000_000 * (index as u64 + 1);
                }
            })?;
            let expected: Vec<u64> = (0..len)
                .map(|i| i as u64 + 1_000_000 * (i / chunk + 1) as u64)
                .collect();
            assert_eq!(
                array.to_vec()?,
                expected,
                "{} {len} {chunk}",
                pool.engine().name()
            );
            assert!(array.write().is_ok());
        }
    }
    Ok(())
}

#[test]
fn b73_contexts_and_closures_go_along() -> Result {
    let _none = Leftovers::none();
    let table = vec![3u32, 4, 5];
    for pool in engines() {
        let mut array = SharedArray::<u32>::zeros(6)?;
        let fill = |table: &Vec<u32>, index: usize, chunk: &mut [u32]| chunk.fill(table[index]);
        pool.for_each_chunk_with(&table, &mut array, 2, fill)?;
        assert_eq!(array.to_vec()?, [3, 3, 4, 4, 5, 5]);
        let add = closure!([table] |i: usize, chunk: &mut [u32]| chunk.iter_mut().for_each(|x| *x += table[i]));
        pool.for_each_chunk(&mut array, 2, add)?;
        assert_eq!(array.to_vec()?, [6, 6, 8, 8, 10, 10]);
        let mut sums = SharedArray::<u64>::zeros(3)?;
        let sum = closure!([table] |i: usize, sum: &mut [u64], of: &[u32]| {
            sum[0] = u64::from(of.iter().sum::<u32>() + table[i]);
        });
        pool.zip_chunks(&mut sums, 1, &array, 2, sum)?;
        assert_eq!(sums.to_vec()?, [15, 20, 25]);
        let sum = |table: &Vec<u32>, i: usize, sum: &mut [u64], of: &[u32]| {
            sum[0] = u64::from(of[0] * table[i])
        };
        pool.zip_chunks_with(&table, &mut sums, 1, &array, 2, sum)?;
        assert_eq!(sums.to_vec()?, [18, 32, 50]);
        pool.zip_chunks(&mut sums, 1, &array, 2, |i, sum: &mut [u64], _: &[u32]| {
            sum[0] = i as u64
        })?;
        assert_eq!(sums.to_vec()?, [0, 1, 2]);
        // A handle in the context of a call that lends another.
        let copy =
            |from: &SharedArray<u64>, i: usize, to: &mut [u32]| to[0] = from.get(i).unwrap() as u32;
        pool.for_each_chunk_with(&sums, &mut array, 2, copy)?;
        assert_eq!(array.to_vec()?, [0, 6, 1, 8, 2, 10]);
    }
    // What borrows is for those that share memory.
    let mut array = SharedArray::<u32>::zeros(6)?;
    Pool::threads(2)?.for_each_chunk(&mut array, 2, |i, chunk: &mut [u32]| chunk.fill(table[i]))?;
    forked().for_each_chunk(&mut array, 2, |i, chunk: &mut [u32]| chunk[0] += table[i])?;
    assert_eq!(array.to_vec()?, [6, 3, 8, 4, 10, 5]);
    Ok(())
}

#[test]
fn b73_tiles_of_a_matrix_are_disjoint() -> Result {
    let _none = Leftovers::none();
    for pool in engines() {
        for (rows, columns, tile) in [
            (7, 9, (3, 4)),
            (8, 8, (8, 8)),
            (5, 3, (1, 1)),
            (4, 6, (9, 9)),
        ] {
            let mut matrix = SharedArray::<u32>::zeros(rows * columns)?;
            pool.for_each_tile(
                &mut matrix,
                (rows, columns),
                tile,
                |mut tile: TileMut<'_, u32>| {
                    let (top, left) = tile.origin();
                    assert_eq!(tile.rows_mut().count(), tile.rows());
                    for row in 0..tile.rows() {
                        for column in 0..tile.columns() {
                            tile[(row, column)] += (100 * (top + row) + left + column) as u32;
                        }
                    }
                },
            )?;
            let expected: Vec<u32> = (0..rows * columns)
                .map(|i| (100 * (i / columns) + i % columns) as u32)
                .collect();
            assert_eq!(
                matrix.to_vec()?,
                expected,
                "{} {rows} {columns}",
                pool.engine().name()
            );
        }
        let mut matrix = SharedArray::<u32>::zeros(6)?;
        let outside = |tile: TileMut<'_, u32>| assert_eq!(tile.row(tile.rows())[0], 0);
        let error = pool
            .for_each_tile(&mut matrix, (2, 3), (2, 2), outside)
            .unwrap_err();
        assert!(
            matches!(error, TaskError::Panicked { index: Some(0), .. }),
            "{error}"
        );
        let none = |_: TileMut<'_, u32>| {};
        for (shape, tile) in [
            ((2, 2), (1, 1)),
            ((usize::MAX, 2), (1, 1)),
            ((2, 3), (0, 1)),
            ((2, 3), (1, 0)),
        ] {
            let refused = pool.for_each_tile(&mut matrix, shape, tile, none);
            assert!(
                matches!(refused, Err(TaskError::InvalidCall { .. })),
                "{refused:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn b73_nobody_has_the_same_element_twice() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(100)?;
    let clone = array.clone();
    let reading = array.read_range(..60)?;
    assert!(is_claimed(&clone.write_range(59..)) && is_claimed(&clone.atomics()));
    assert!(is_claimed(&clone.set(59, 1)) && clone.set(60, 1).is_ok());
    let (also, writing) = (clone.read_range(40..60)?, clone.write_range(60..)?);
    let own = std::process::id();
    assert_eq!(
        array.read().unwrap_err(),
        ClaimError::Claimed {
            by: own,
            range: 60..100
        }
    );
    assert!(is_claimed(&array.get(60)) && array.get(59).is_ok());
    drop((reading, also));
    let mut front = array.write_range(..60)?;
    front[0] = 1;
    drop((front, writing));
    let (one, two) = (array.atomics()?, clone.atomics()?);
    one[5].fetch_add(2, Ordering::Relaxed);
    two[5].fetch_add(3, Ordering::Relaxed);
    assert!(is_claimed(&array.read()) && is_claimed(&array.write()) && is_claimed(&array.get(0)));
    drop((one, two));
    assert_eq!(array.get(5)?, 5);
    // A guard that is leaked keeps what it has, as long as its process lives.
    let child = Process::spawn(
        |array: SharedArray<u64>| {
            std::mem::forget(array.write_range(..1).unwrap());
            assert!(is_claimed(&array.write()) && array.write_range(1..).is_ok());
        },
        array.clone(),
    )?;
    assert!(child.join()?.success());
    assert!(array.write().is_ok() && array.was_abandoned());
    Ok(())
}

#[test]
fn b73_claims_of_other_processes_count_like_ones_own() -> Result {
    let _none = Leftovers::none();
    let (array, step) = (SharedArray::<u64>::zeros(100)?, SharedValue::new(0u32)?);
    let child = Process::spawn(
        |(array, step): (SharedArray<u64>, SharedValue<u32>)| {
            let writing = array.write_range(10..20).unwrap();
            step.set(1);
            while step.get() == 1 {
                std::thread::yield_now();
            }
            drop(writing);
        },
        (array.clone(), step.clone()),
    )?;
    eventually("the child has claimed them", || step.get() == 1);
    let refused = array.write_range(19..21).unwrap_err();
    assert_eq!(
        refused,
        ClaimError::Claimed {
            by: child.pid(),
            range: 10..20
        }
    );
    assert!(refused.to_string().contains(&child.pid().to_string()));
    assert!(is_claimed(
        &array.write_range_timeout(.., Duration::from_millis(20))
    ));
    assert!(array.write_range(20..).is_ok() && array.read_range(..10).is_ok());
    step.set(2);
    // Whoever waits hears of it.
    array.write_range_timeout(.., LONG)?.fill(1);
    assert!(child.join()?.success());
    assert!(!array.was_abandoned());
    Ok(())
}

#[test]
fn b73_counters_are_right_when_everybody_adds() -> Result {
    let _none = Leftovers::none();
    let counters = SharedArray::<u32>::zeros(8)?;
    let add = |counters: &SharedArray<u32>, x: usize| {
        counters.atomics().unwrap()[x % 8].fetch_add(1, Ordering::Relaxed);
    };
    for pool in engines() {
        counters.fill(0)?;
        pool.map_with(&counters, add, 0..8_000)?;
        assert_eq!(counters.to_vec()?, [1_000; 8], "{}", pool.engine().name());
    }
    Ok(())
}

#[test]
fn b74_a_result_in_place_is_there_without_having_been_sent() -> Result {
    let _none = Leftovers::none();
    let pool = Pool::processes(2)?;
    let mut result = SharedArray::<f64>::zeros(2_000_000)?;
    let before = pool.stats();
    pool.for_each_chunk(&mut result, 1_000_000, |index, chunk: &mut [f64]| {
        for (i, x) in chunk.iter_mut().enumerate() {
            *x = (index * 1_000_000 + i) as f64;
        }
    })?;
    let after = pool.stats();
    let sent = |stats: &manyhands::PoolStats| {
        stats
            .workers
            .iter()
            .map(|worker| worker.bytes_sent + worker.bytes_received)
            .sum::<u64>()
    };
    assert!(sent(&after) - sent(&before) < 10_000, "{after}");
    assert!(
        result
            .read()?
            .iter()
            .enumerate()
            .all(|(i, &x)| x == i as f64)
    );
    Ok(())
}

#[test]
fn b73_a_call_that_fails_says_which_chunk_and_gives_the_array_back() -> Result {
    let _none = Leftovers::none();
    for pool in engines() {
        let name = pool.engine().name();
        let mut array = SharedArray::<u8>::zeros(100)?;
        let error = pool
            .for_each_chunk(&mut array, 10, |index, chunk: &mut [u8]| {
                chunk[0] = 1;
                assert!(index != 3, "not this one");
            })
            .unwrap_err();
        assert!(
            matches!(&error, TaskError::Panicked { index: Some(3), .. }),
            "{name}: {error}"
        );
        // Nobody writes any more.
        let mut writing = array.write()?;
        writing.fill(9);
        drop(writing);
        assert_eq!(array.to_vec()?, [9; 100], "{name}");
        let refused = pool.for_each_chunk(&mut array, 0, |_, _: &mut [u8]| {});
        assert!(
            matches!(refused, Err(TaskError::InvalidCall { .. })),
            "{name}: {refused:?}"
        );
        let short = SharedArray::<u8>::zeros(19)?;
        let refused = pool.zip_chunks(&mut array, 10, &short, 10, |_, _: &mut [u8], _: &[u8]| {});
        assert!(
            matches!(refused, Err(TaskError::InvalidCall { .. })),
            "{name}: {refused:?}"
        );
        // Somebody has it, or it is lent twice.
        let reading = array.read_range(5..6)?;
        let refused = pool.for_each_chunk(&mut array.clone(), 10, |_, _: &mut [u8]| {});
        let own = std::process::id();
        assert_eq!(
            refused,
            Err(TaskError::Claim(ClaimError::Claimed {
                by: own,
                range: 5..6
            })),
            "{name}"
        );
        drop(reading);
        let input = array.clone();
        let refused = pool.zip_chunks(&mut array, 10, &input, 10, |_, _: &mut [u8], _: &[u8]| {});
        assert!(
            matches!(refused, Err(TaskError::Claim(ClaimError::Claimed { .. }))),
            "{name}: {refused:?}"
        );
        drop(pool);
        assert!(array.write().is_ok(), "{name}");
    }
    Ok(())
}

#[test]
fn b73_what_is_lent_is_nobody_elses() -> Result {
    let _none = Leftovers::none();
    // A claim of no elements is in nobody's way, nor the other way round.
    let mut array = SharedArray::<u8>::zeros(4)?;
    let clone = array.clone();
    let nothing = clone.write_range(2..2)?;
    Pool::serial().for_each_chunk(&mut array, 2, |_, _: &mut [u8]| {
        assert!(clone.write_range(1..1).is_ok())
    })?;
    drop(nothing);
    for pool in engines() {
        let mut array = SharedArray::<u8>::zeros(4)?;
        let seen = SharedArray::<u8>::zeros(2)?;
        let context = (array.clone(), seen.clone());
        pool.for_each_chunk_with(
            &context,
            &mut array,
            2,
            |(array, seen), index, chunk: &mut [u8]| {
                chunk.fill(1);
                let refused = is_claimed(&array.read())
                    && is_claimed(&array.write())
                    && is_claimed(&array.get(3))
                    && is_claimed(&array.write_range(..1))
                    && is_claimed(&array.atomics())
                    && array.clone().freeze().is_err();
                let nested =
                    Pool::serial()
                        .for_each_chunk(&mut array.clone(), 1, |_, _: &mut [u8]| panic!("twice"));
                let refused = refused && matches!(nested, Err(TaskError::Claim(_)));
                seen.set(index, u8::from(refused)).unwrap();
            },
        )?;
        assert_eq!(seen.to_vec()?, [1, 1], "{}", pool.engine().name());
        // An input may be read by others, and lent twice.
        let input = SharedArray::from_slice(&[1u8, 2])?;
        let context = (input.clone(), seen.clone());
        pool.zip_chunks_with(
            &context,
            &mut array,
            2,
            &input,
            1,
            |(input, seen), index, out: &mut [u8], of: &[u8]| {
                assert!(input.read().is_ok() && is_claimed(&input.write()));
                let mut own = SharedArray::<u8>::zeros(2).unwrap();
                Pool::serial()
                    .zip_chunks(&mut own, 1, input, 1, |_, own: &mut [u8], of: &[u8]| {
                        own[0] = of[0]
                    })
                    .unwrap();
                out[0] = of[0] + own.get(index).unwrap();
                seen.set(index, 2).unwrap();
            },
        )?;
        assert_eq!(
            (array.to_vec()?, seen.to_vec()?),
            (vec![2, 1, 4, 1], vec![2, 2])
        );
    }
    Ok(())
}

#[test]
fn b73_after_a_timeout_nobody_writes_any_more() -> Result {
    let _none = Leftovers::none();
    let limit = Duration::from_millis(50);
    let pools: [Pool<AnyEngine>; 2] = [Pool::processes(2)?.into(), forked().into()];
    for pool in pools {
        let mut array = SharedArray::<u64>::zeros(4)?;
        let outcome =
            pool.call()
                .timeout(limit)
                .for_each_chunk(&mut array, 1, |index, chunk: &mut [u64]| {
                    while index == 2 {
                        chunk[0] = std::hint::black_box(chunk[0]).wrapping_add(1);
                    }
                });
        assert_eq!(
            outcome,
            Err(TaskError::TimedOut {
                index: Some(2),
                limit
            })
        );
        let reading = array.read()?;
        let first = reading[2];
        for _ in 0..1_000 {
            std::thread::yield_now();
        }
        assert_eq!(
            std::hint::black_box(&reading)[2],
            first,
            "{}",
            pool.engine().name()
        );
    }
    // A thread cannot be stopped: the call waits for it.
    let pool = Pool::threads(2)?;
    let mut array = SharedArray::<u64>::zeros(4)?;
    let outcome = pool.call().timeout(Duration::from_nanos(1)).for_each_chunk(
        &mut array,
        1,
        |index, chunk: &mut [u64]| {
            for _ in 0..10_000 {
                std::thread::yield_now();
            }
            chunk[0] = index as u64 + 1;
        },
    );
    assert!(
        matches!(outcome, Err(TaskError::TimedOut { index: Some(0), .. })),
        "{outcome:?}"
    );
    let after = array.to_vec()?;
    assert_eq!(after[0], 1);
    assert!(array.write().is_ok());
    Ok(())
}

#[test]
fn b73_a_chunk_whose_worker_died_is_begun_again_and_had_by_one() -> Result {
    let _none = Leftovers::none();
    let pools: [Pool<AnyEngine>; 2] = [Pool::processes(2)?.into(), forked().into()];
    for pool in pools {
        let mut array = SharedArray::<u64>::zeros(40)?;
        let died = |index, chunk: &mut [u64]| {
            chunk[0] += 1;
            if index % 4 == 1 && chunk[0] < 3 {
                std::process::abort();
            }
            chunk[9] = 7;
        };
        pool.call()
            .retries(5)
            .for_each_chunk(&mut array, 10, died)?;
        let after = array.to_vec()?;
        assert_eq!(
            (after[0], after[10], after[19], after[30]),
            (1, 3, 7, 1),
            "{}",
            pool.engine().name()
        );
        let failed = pool.for_each_chunk(&mut array, 10, |_, _: &mut [u64]| std::process::abort());
        assert!(
            matches!(failed, Err(TaskError::WorkerDied { .. })),
            "{failed:?}"
        );
        assert!(array.write().is_ok() && !array.was_abandoned());
    }
    Ok(())
}

#[test]
fn b73_options_of_a_call_go_for_chunks_too() -> Result {
    let _none = Leftovers::none();
    for pool in engines() {
        let mut array = SharedArray::<u8>::zeros(100)?;
        let mut last = 0;
        let call = pool
            .call()
            .schedule(Schedule::Dynamic(3))
            .on_progress(|p| last = p.done);
        call.for_each_chunk(&mut array, 10, |_, chunk: &mut [u8]| chunk.fill(1))?;
        assert_eq!((last, array.to_vec()?), (10, vec![1; 100]));
        pool.close()?;
        let refused = pool.for_each_chunk(&mut array, 10, |_, _: &mut [u8]| {});
        assert_eq!(refused, Err(TaskError::Pool(PoolError::Closed)));
        assert!(array.write().is_ok());
    }
    Ok(())
}

#[test]
fn frozen_arrays_are_slices_everywhere_and_stay_as_they_are() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(1_000, |i| i as u64)?;
    let text = serde_json::to_string(&array)?;
    let early = serde_json::from_str::<FrozenArray<u64>>(&text).unwrap_err();
    assert!(early.to_string().contains("not frozen"), "{early}");
    let writing = array.write_range(..1)?;
    assert!(is_claimed(&array.clone().freeze()));
    drop(writing);
    let frozen = array.clone().freeze()?;
    for refused in [
        array.write().map(drop),
        array.set(0, 1),
        array.fill(1),
        array.atomics().map(drop),
    ] {
        assert_eq!(refused, Err(ClaimError::Frozen));
    }
    let pool = Pool::processes(2)?;
    let write = |array: SharedArray<u64>| matches!(array.write(), Err(ClaimError::Frozen));
    assert!(pool.submit(write, array.clone()).result()?);
    let refused = pool.for_each_chunk(&mut array.clone(), 10, |_, _: &mut [u64]| {});
    assert_eq!(refused, Err(TaskError::Claim(ClaimError::Frozen)));
    assert_eq!(
        pool.map_with(
            &frozen,
            |frozen, i: usize| frozen[i] + frozen.as_slice()[1],
            0..3
        )?,
        [1, 2, 3]
    );
    assert_eq!(forked().map(|i: usize| frozen[i], 0..3)?, [0, 1, 2]);
    assert_eq!(array.read()?[999], 999);
    // Its memory is there as long as a handle.
    drop(array);
    assert_eq!(frozen.clone()[999], 999);
    Ok(())
}

#[test]
fn b73_forked_children_read_through_their_parents_guards_and_write_through_none() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(100, |i| i as u64)?;
    let reading = array.read()?;
    let slice = &reading[..];
    let pool = forked();
    assert_eq!(
        pool.map(|i: usize| reading[i] + slice[i], 0..4)?,
        [0, 2, 4, 6]
    );
    // What the child has claimed went with it, and the parent's is still there.
    assert!(is_claimed(&array.write()) && array.read().is_ok());
    drop(reading);
    assert!(array.write().is_ok());
    // No fork while there is something to write to: a mutex around it would not keep parent and child apart.
    let mut writing = array.write_range(..1)?;
    let slice = std::sync::Mutex::new(&mut writing[..]);
    let refused = pool
        .map(|_: usize| slice.lock().unwrap()[0] += 1, 0..1)
        .unwrap_err();
    assert!(refused.to_string().contains("drop the guard"), "{refused}");
    drop(slice);
    drop(writing);
    assert_eq!(pool.map(|i: usize| array.get(i).unwrap(), 0..2)?, [0, 1]);
    Ok(())
}

#[test]
fn b73_a_guard_copied_by_a_fork_writes_nothing_and_releases_nothing() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(10)?;
    let mut writing = array.write()?;
    writing[0] = 1;
    let (reader, answer) = std::io::pipe()?;
    // SAFETY: the child takes no lock but the array's, which this thread does not hold.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            let write = std::panic::AssertUnwindSafe(|| writing[0] = 2);
            std::panic::set_hook(Box::new(|_| {}));
            let refused = std::panic::catch_unwind(write).is_err();
            drop(writing);
            let kept = is_claimed(&array.read());
            use std::io::Write;
            let _ = (&answer).write_all(&[u8::from(refused), u8::from(kept)]);
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(0) };
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(answer);
            let mut answers = Vec::new();
            std::io::Read::read_to_end(&mut &reader, &mut answers)?;
            nix::sys::wait::waitpid(child, None)?;
            assert_eq!(answers, [1, 1]);
        }
    }
    assert_eq!(writing[0], 1);
    assert!(is_claimed(&array.read()));
    drop(writing);
    assert!(array.read().is_ok());
    Ok(())
}

#[test]
fn b73_what_a_killed_process_had_claimed_is_free() -> Result {
    let _none = Leftovers::none();
    let (array, step) = (SharedArray::<u64>::zeros(100)?, SharedValue::new(0u32)?);
    for round in 0..3 {
        step.set(0);
        let child = Process::spawn(
            |(array, step, round): (SharedArray<u64>, SharedValue<u32>, u32)| {
                let _guards = match round {
                    0 => (Some(array.read().unwrap()), None, None),
                    1 => (None, Some(array.write_range(50..).unwrap()), None),
                    _ => (None, None, Some(array.atomics().unwrap())),
                };
                step.set(1);
                loop {
                    std::thread::park();
                }
            },
            (array.clone(), step.clone(), round),
        )?;
        eventually("the child has claimed it", || step.get() == 1);
        assert!(is_claimed(&array.write()) && !array.was_abandoned());
        kill(child.pid());
        // Nobody has waited for the child: whoever waits for the array finds it dead.
        drop(array.write_range_timeout(.., LONG)?);
        child.join()?;
        assert_eq!(array.was_abandoned(), round == 1);
        if round == 1 {
            break;
        }
    }
    Ok(())
}

/// A worker, or the whole process that lends, is killed at any point; whoever comes after finds the array usable.
#[test]
fn b73_processes_killed_at_random_leave_no_claims() -> Result {
    let _none = Leftovers::none();
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let seed = number("MANYHANDS_SEED").unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0) | 1
    });
    println!("MANYHANDS_SEED={seed}");
    let mut random = seed;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let array = SharedArray::<u64>::zeros(64)?;
    let turns = SharedValue::new(0u64)?;
    for _ in 0..number("MANYHANDS_KILLS").unwrap_or(60) {
        let before = turns.get();
        let children: Vec<_> = (0..2)
            .map(|_| {
                Process::spawn(
                    |(array, turns, mut x): (SharedArray<u64>, SharedValue<u64>, u64)| loop {
                        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let start = (x >> 40) as usize % 64;
                        let end = start + (x >> 50) as usize % (65 - start);
                        match x >> 60 {
                            0..4 => {
                                if let Ok(mut mine) = array.write_range(start..end) {
                                    // Whoever else wrote meanwhile would be seen.
                                    mine.fill(x);
                                    assert!(std::hint::black_box(&mine).iter().all(|&y| y == x));
                                }
                            }
                            4..8 => drop(array.read_range(start..end)),
                            8..10 => drop(
                                array
                                    .atomics()
                                    .map(|all| all[start].fetch_add(1, Ordering::Relaxed)),
                            ),
                            10..12 => drop(array.set(start, x)),
                            _ => {
                                let pool = Pool::serial();
                                let fill = |_: usize, chunk: &mut [u64]| {
                                    chunk.fill(1);
                                    assert!(std::hint::black_box(&chunk).iter().all(|&y| y == 1));
                                };
                                match pool.for_each_chunk(&mut array.clone(), 7, fill) {
                                    Ok(()) | Err(TaskError::Claim(_)) => {}
                                    Err(other) => panic!("{other}"),
                                }
                            }
                        }
                        turns.update(|turns| turns + 1);
                    },
                    (array.clone(), turns.clone(), next(u64::MAX)),
                )
                .unwrap()
            })
            .collect();
        let until = before + 1 + next(2_000);
        eventually("they take turns", || turns.get() >= until);
        kill(children[0].pid());
        let more = turns.get() + next(500);
        eventually("the other one goes on", || turns.get() >= more);
        kill(children[1].pid());
        for child in children {
            let status = child.join()?;
            assert_eq!(status.signal(), Some(9), "{status:?}");
        }
        array.write()?.fill(0);
        assert_eq!(array.to_vec()?, [0; 64]);
    }
    Ok(())
}

#[test]
fn b76_the_memory_stays_as_long_as_a_handle_somewhere() -> Result {
    let _none = Leftovers::none();
    let before = manyhands::shm::usage().objects;
    let pool = Pool::processes(1)?;
    let array = SharedArray::from_slice(&[5u8; 100_000])?;
    let kept = pool
        .submit(|array: SharedArray<u8>| array, array.clone())
        .result()?;
    drop(array);
    assert_eq!(
        kept.read()?.iter().map(|&x| u64::from(x)).sum::<u64>(),
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
        assert!(
            matches!(refused, ShareError::OutOfMemory { .. }),
            "{refused}"
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
    let array = SharedArray::from_fn(24, |i| i as f64)?;
    let reading = array.read()?;
    let address = reading.as_ptr();
    assert_eq!(reading.view(24)?.as_ptr(), address);
    assert_eq!(reading.view([4, 6])?[[1, 2]], 8.0);
    assert_eq!(reading.view([2, 3, 4])?[[1, 2, 3]], 23.0);
    assert_eq!(reading.view(vec![1, 2, 3, 2, 2])?.ndim(), 5);
    assert_eq!(reading.view([2, 3, 4])?.as_ptr(), address);
    assert!(reading.view([5, 5]).is_err() && reading.view([4, 5]).is_err());
    assert!(reading.view([usize::MAX, 2]).is_err());
    drop(reading);
    array.write()?.view_mut([4, 6])?.row_mut(2).fill(1.0);
    assert_eq!(
        *array.read_range(11..19)?,
        [11.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 18.0]
    );
    assert_eq!(array.write()?.view([4, 6])?[[2, 0]], 1.0);
    assert!(array.write()?.view_mut([1, 6]).is_err());
    let frozen = array.freeze()?;
    assert_eq!(frozen.view([6, 4])?.t().dim(), (4, 6));
    Ok(())
}
