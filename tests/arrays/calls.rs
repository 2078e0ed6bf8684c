//! Calls that lend an array to their workers.

use std::time::Duration;

use manyhands::prelude::*;
use manyhands::{
    SharedArray, SharedValue, closure,
    shm::{ClaimError, TileMut},
};

use crate::common::errors::timed_out;
use crate::common::{DEADLINE, Leftovers, Sleeper, assert_matches};
use crate::{Result, engines, forked, is_claimed};

#[test]
fn a_claim_that_may_wait_waits_for_room_in_the_table() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u8>::zeros(1_000)?;
    let mut held = Vec::new();
    let refused = loop {
        let at = 2 * held.len();
        match array.try_read_range(at..=at) {
            Ok(guard) => held.push(guard),
            Err(refused) => break refused,
        }
    };
    assert_matches!(refused, ClaimError::TooManyClaims { limit: 120, .. });
    let sleeper = Sleeper::new();
    let claim = || array.write_range_timeout(900..901, DEADLINE).is_ok();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sleeper.run(claim));
        sleeper.is_asleep();
        drop(held.pop());
        assert!(waiting.join().unwrap());
    });
    Ok(())
}

/// Memory of this size is kept when its array has gone, and given to one that is somewhat larger.
#[test]
fn a_new_array_is_all_zeros_whatever_was_in_its_memory_before() -> Result {
    let _none = Leftovers::none();
    for (before, after) in [(5, 5), (5, 7), (7, 5)].map(|(a, b)| (a << 20, b << 20)) {
        let array = SharedArray::<u8>::zeros(before)?;
        array.fill(7)?;
        drop(array);
        let array = SharedArray::<u8>::zeros(after)?;
        let stale = array.try_read()?.iter().position(|&byte| byte != 0);
        assert_eq!(stale, None, "{after} bytes after {before}");
    }
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
                pool.engine().kind()
            );
            assert!(array.try_write().is_ok());
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
        let fill = closure!([table] |index: usize, chunk: &mut [u32]| chunk.fill(table[index]));
        pool.for_each_chunk(&mut array, 2, fill)?;
        assert_eq!(array.to_vec()?, [3, 3, 4, 4, 5, 5]);
        let add = closure!([table] |i: usize, chunk: &mut [u32]| chunk.iter_mut().for_each(|x| *x += table[i]));
        pool.for_each_chunk(&mut array, 2, add)?;
        assert_eq!(array.to_vec()?, [6, 6, 8, 8, 10, 10]);
        let mut sums = SharedArray::<u64>::zeros(3)?;
        let sum = closure!([table] |i: usize, sum: &mut [u64], of: &[u32]| {
            sum[0] = u64::from(of.iter().sum::<u32>() + table[i]);
        });
        pool.for_each_chunk_pair(&mut sums, 1, &array, 2, sum)?;
        assert_eq!(sums.to_vec()?, [15, 20, 25]);
        let sum = closure!([table] |i: usize, sum: &mut [u64], of: &[u32],| {
            sum[0] = u64::from(of[0] * table[i]);
        });
        pool.for_each_chunk_pair(&mut sums, 1, &array, 2, sum)?;
        assert_eq!(sums.to_vec()?, [18, 32, 50]);
        pool.for_each_chunk_pair(&mut sums, 1, &array, 2, |i, sum: &mut [u64], _: &[u32]| {
            sum[0] = i as u64;
        })?;
        assert_eq!(sums.to_vec()?, [0, 1, 2]);
        // A handle goes along with a call that lends another.
        let copy = closure!([sums] |i: usize, to: &mut [u32]| to[0] = sums.get(i).unwrap() as u32);
        pool.for_each_chunk(&mut array, 2, copy)?;
        assert_eq!(array.to_vec()?, [0, 6, 1, 8, 2, 10]);
        // Tiles, changeable or not.
        let fill = closure!([table] |mut tile: TileMut<'_, u32>| {
            let (top, left) = tile.origin();
            tile.rows_mut().for_each(|row| row.fill(table[top + left / 2]));
        });
        pool.for_each_tile(&mut array, (2, 3), (1, 2), fill)?;
        assert_eq!(array.to_vec()?, [3, 3, 4, 4, 4, 5]);
        let check = closure!([sums] |tile: TileMut<'_, u32>,| {
            sums.set(tile.origin().0, u64::from(tile.row(0)[0])).unwrap();
        });
        pool.for_each_tile(&mut array, (3, 2), (1, 2), check)?;
        assert_eq!(sums.to_vec()?, [3, 4, 4]);
    }
    // Functions that borrow are for threads and for forked children.
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
                    assert_eq!(tile.rows_mut().count(), tile.nrows());
                    for row in 0..tile.nrows() {
                        for column in 0..tile.ncols() {
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
                pool.engine().kind()
            );
        }
        let mut matrix = SharedArray::<u32>::zeros(6)?;
        let outside = |tile: TileMut<'_, u32>| assert_eq!(tile.row(tile.nrows())[0], 0);
        let error = pool
            .for_each_tile(&mut matrix, (2, 3), (2, 2), outside)
            .unwrap_err();
        assert!(
            matches!(error, TaskError::Panicked{ index, .. } if index == Some(0)),
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
    let sent = |stats: &manyhands::engine::PoolStats| {
        stats
            .workers
            .iter()
            .map(|worker| worker.bytes_sent + worker.bytes_received)
            .sum::<u64>()
    };
    assert!(sent(&after) - sent(&before) < 10_000, "{after}");
    assert!(
        result
            .try_read()?
            .iter()
            .enumerate()
            .all(|(i, &x)| x.to_bits() == (i as f64).to_bits())
    );
    Ok(())
}

#[test]
fn b73_a_call_that_fails_says_which_chunk_and_gives_the_array_back() -> Result {
    let _none = Leftovers::none();
    for pool in engines() {
        let name = pool.engine().kind();
        let mut array = SharedArray::<u8>::zeros(100)?;
        let error = pool
            .for_each_chunk(&mut array, 10, |index, chunk: &mut [u8]| {
                chunk[0] = 1;
                assert!(index != 3, "not this one");
            })
            .unwrap_err();
        assert!(
            matches!(&error, TaskError::Panicked{ index, .. } if *index == Some(3)),
            "{name}: {error}"
        );
        // No worker writes any more.
        let mut writing = array.try_write()?;
        writing.fill(9);
        drop(writing);
        assert_eq!(array.to_vec()?, [9; 100], "{name}");
        let refused = pool.for_each_chunk(&mut array, 0, |_, _: &mut [u8]| {});
        assert!(
            matches!(refused, Err(TaskError::InvalidCall { .. })),
            "{name}: {refused:?}"
        );
        let short = SharedArray::<u8>::zeros(19)?;
        let refused =
            pool.for_each_chunk_pair(&mut array, 10, &short, 10, |_, _: &mut [u8], _: &[u8]| {});
        assert!(
            matches!(refused, Err(TaskError::InvalidCall { .. })),
            "{name}: {refused:?}"
        );
        let mut short = short;
        let refused =
            pool.for_each_chunk_pair(&mut short, 10, &array, 10, |_, _: &mut [u8], _: &[u8]| {});
        assert!(
            matches!(refused, Err(TaskError::InvalidCall { .. })),
            "{name}, the other way round: {refused:?}"
        );
        // First a guard has a part of the array, then one call lends it twice.
        let reading = array.try_read_range(5..6)?;
        let refused = pool.for_each_chunk(&mut array.clone(), 10, |_, _: &mut [u8]| {});
        let own = std::process::id();
        assert!(
            matches!(
                refused.as_ref().map_err(TaskError::as_claim),
                Err(Some(ClaimError::Claimed { by, range, .. }))
                    if *by == Some(own) && *range == (5..6)
            ),
            "{name}: {refused:?}"
        );
        drop(reading);
        let input = array.clone();
        let refused =
            pool.for_each_chunk_pair(&mut array, 10, &input, 10, |_, _: &mut [u8], _: &[u8]| {});
        assert!(
            matches!(
                refused.as_ref().map_err(TaskError::as_claim),
                Err(Some(ClaimError::Claimed { .. }))
            ),
            "{name}: {refused:?}"
        );
        drop(pool);
        assert!(array.try_write().is_ok(), "{name}");
    }
    Ok(())
}

#[test]
fn b73_what_is_lent_is_nobody_elses() -> Result {
    let _none = Leftovers::none();
    // A claim of no elements is in the way of no other claim, nor the other way round.
    let mut array = SharedArray::<u8>::zeros(4)?;
    let clone = array.clone();
    let nothing = clone.try_write_range(2..2)?;
    Pool::serial().for_each_chunk(&mut array, 2, |_, _: &mut [u8]| {
        assert!(clone.try_write_range(1..1).is_ok());
    })?;
    drop(nothing);
    for pool in engines() {
        let mut array = SharedArray::<u8>::zeros(4)?;
        let seen = SharedArray::<u8>::zeros(2)?;
        let other = array.clone();
        let claim = closure!([other, seen] |index: usize, chunk: &mut [u8]| {
            chunk.fill(1);
            let refused = is_claimed(&other.try_read())
                && is_claimed(&other.try_write())
                && is_claimed(&other.get(3))
                && is_claimed(&other.try_write_range(..1))
                && is_claimed(&other.try_atomics())
                && other.clone().freeze().is_err();
            let nested =
                Pool::serial()
                    .for_each_chunk(&mut other.clone(), 1, |_, _: &mut [u8]| panic!("twice"));
            let refused = refused && matches!(nested, Err(TaskError::Claim(_)));
            seen.set(index, u8::from(refused)).unwrap();
        });
        pool.for_each_chunk(&mut array, 2, claim)?;
        assert_eq!(seen.to_vec()?, [1, 1], "{}", pool.engine().kind());
        // Other threads may read an input, and a call may lend it twice.
        let input = SharedArray::from_slice(&[1u8, 2])?;
        let other = input.clone();
        let read = closure!([other, seen] |index: usize, out: &mut [u8], of: &[u8]| {
            assert!(other.try_read().is_ok() && is_claimed(&other.try_write()));
            let mut own = SharedArray::<u8>::zeros(2).unwrap();
            let copy = |_, own: &mut [u8], of: &[u8]| own[0] = of[0];
            Pool::serial()
                .for_each_chunk_pair(&mut own, 1, other, 1, copy)
                .unwrap();
            out[0] = of[0] + own.get(index).unwrap();
            seen.set(index, 2).unwrap();
        });
        pool.for_each_chunk_pair(&mut array, 2, &input, 1, read)?;
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
                    if index == 2 {
                        loop {
                            chunk[0] = std::hint::black_box(chunk[0]).wrapping_add(1);
                        }
                    }
                });
        assert_eq!(outcome, Err(timed_out(Some(2), limit)));
        let reading = array.try_read()?;
        let first = reading[2];
        for _ in 0..1_000 {
            std::thread::yield_now();
        }
        assert_eq!(
            std::hint::black_box(&reading)[2],
            first,
            "{}",
            pool.engine().kind()
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
        matches!(outcome, Err(TaskError::TimedOut{ index, .. }) if index == Some(0)),
        "{outcome:?}"
    );
    let after = array.to_vec()?;
    assert_eq!(after[0], 1);
    assert!(array.try_write().is_ok());
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
            pool.engine().kind()
        );
        let failed = pool.for_each_chunk(&mut array, 10, |_, _: &mut [u64]| std::process::abort());
        assert!(
            matches!(failed, Err(TaskError::WorkerDied { .. })),
            "{failed:?}"
        );
        assert!(array.try_write().is_ok() && !array.is_poisoned());
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
        assert_eq!(refused, Err(TaskError::from(PoolError::Closed)));
        assert!(array.try_write().is_ok());
    }
    Ok(())
}

#[test]
fn b73_a_call_that_failed_waits_for_the_chunks_that_still_run() -> Result {
    let _none = Leftovers::none();
    let pool = Pool::processes(2)?;
    let mut array = SharedArray::<u8>::zeros(2)?;
    // 1: the second chunk runs; 2: it may end; 3: it ends.
    let step = SharedValue::new(0u8)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while step.get() == 0 {
                std::thread::yield_now();
            }
            // Time enough for the call to return, if it did not wait.
            for _ in 0..20_000 {
                std::thread::yield_now();
            }
            step.set(2);
        });
        let run = closure!([step] |index: usize, chunk: &mut [u8]| {
            if index == 0 {
                while step.get() == 0 {
                    std::thread::yield_now();
                }
                panic!("while the other one runs");
            }
            step.set(1);
            while step.get() == 1 {
                chunk[0] = chunk[0].wrapping_add(1);
            }
            step.set(3);
        });
        let call = pool.call().schedule(Schedule::Dynamic(1));
        let failed = call.for_each_chunk(&mut array, 1, run);
        assert_eq!(step.get(), 3);
        assert_eq!(failed.unwrap_err().index(), Some(0));
        assert!(array.try_write().is_ok());
    });
    Ok(())
}

#[test]
fn b73_workers_wait_for_room_among_the_claims_that_others_of_the_call_have() -> Result {
    let _none = Leftovers::none();
    let mut array = SharedArray::<u8>::zeros(1_000)?;
    let clone = array.clone();
    // Claims of no elements block no other claim, but they take room: one entry is left for four
    // threads.
    let _guards: Vec<_> = (0..118)
        .map(|i| clone.try_read_range(i..i).unwrap())
        .collect();
    let pool = Pool::threads(4)?;
    for _ in 0..100 {
        let call = pool.call().chunk_size(1);
        call.for_each_chunk(&mut array, 1, |_, chunk: &mut [u8]| {
            chunk[0] = chunk[0].wrapping_add(1);
        })?;
    }
    Ok(())
}

/// The caller's guards leave no room for the claims of the workers.
#[test]
fn b73_a_claim_that_a_worker_is_refused_is_the_calls_error() -> Result {
    let _none = Leftovers::none();
    let mut out = SharedArray::<u8>::zeros(4)?;
    let input = SharedArray::<u8>::zeros(200)?;
    let guards: Vec<_> = (0..119)
        .map(|i| input.try_read_range(i..=i).unwrap())
        .collect();
    for pool in engines() {
        let copy = |_: usize, out: &mut [u8], of: &[u8]| out[0] = of[0] + 1;
        let refused = pool.for_each_chunk_pair(&mut out, 1, &input, 50, copy);
        assert!(
            matches!(
                refused.as_ref().map_err(TaskError::as_claim),
                Err(Some(ClaimError::TooManyClaims { limit: 120, .. }))
            ),
            "{}: {refused:?}",
            pool.engine().kind()
        );
    }
    drop(guards);
    Ok(())
}

/// There is room for 120 claims in all.
#[test]
fn guards_of_atomics_share_a_claim_of_their_process() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u32>::zeros(4)?;
    let guards: Vec<_> = (0..300).map(|_| array.try_atomics().unwrap()).collect();
    for guard in &guards {
        guard[3].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    drop(guards);
    assert_eq!(array.try_write()?[3], 300);
    Ok(())
}
