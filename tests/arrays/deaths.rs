//! What forks copy, and what the dead leave.

use std::sync::atomic::Ordering;

use manyhands::prelude::*;
use manyhands::{SharedArray, SharedValue, shm::ClaimError};

use crate::common::{Leftovers, Stopped, assert_matches, eventually, is_running, kill, may_stop};
use crate::{LONG, Result, forked, is_claimed};

#[test]
fn b73_forked_children_read_through_their_parents_guards_and_write_through_none() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(100, |i| i as u64)?;
    let reading = array.try_read()?;
    let slice = &reading[..];
    let pool = forked();
    assert_eq!(
        pool.map(|i: usize| reading[i] + slice[i], 0..4)?,
        [0, 2, 4, 6]
    );
    // What the child has claimed went with it, and the parent's is still there.
    assert!(is_claimed(&array.try_write()) && array.try_read().is_ok());
    drop(reading);
    assert!(array.try_write().is_ok());
    // There is no fork while there is something to write to: a mutex around it would not keep
    // parent and child apart.
    let mut writing = array.try_write_range(..1)?;
    let slice = std::sync::Mutex::new(&mut writing[..]);
    let refused = pool
        .map(|_: usize| slice.lock().unwrap()[0] += 1, 0..1)
        .unwrap_err();
    assert!(refused.to_string().contains("drop the guard"), "{refused}");
    drop(writing);
    assert_eq!(pool.map(|i: usize| array.get(i).unwrap(), 0..2)?, [0, 1]);
    Ok(())
}

#[test]
fn b73_a_guard_copied_by_a_fork_writes_nothing_and_releases_nothing() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(10)?;
    let mut writing = array.try_write()?;
    writing[0] = 1;
    let (reader, answer) = std::io::pipe()?;
    // SAFETY: the child takes no lock but the array's, which this thread does not hold.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            let write = std::panic::AssertUnwindSafe(|| writing[0] = 2);
            std::panic::set_hook(Box::new(|_| {}));
            let refused = std::panic::catch_unwind(write).is_err();
            // What the parent may be writing cannot be read either.
            let read = std::panic::AssertUnwindSafe(|| writing[0]);
            let unread = std::panic::catch_unwind(read).is_err();
            drop(writing);
            let kept = is_claimed(&array.try_read());
            let answers = [refused, unread, kept].map(u8::from);
            let _ = std::io::Write::write_all(&mut &answer, &answers);
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(0) };
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(answer);
            let mut answers = Vec::new();
            std::io::Read::read_to_end(&mut &reader, &mut answers)?;
            nix::sys::wait::waitpid(child, None)?;
            assert_eq!(answers, [1, 1, 1]);
        }
    }
    assert_eq!(writing[0], 1);
    assert!(is_claimed(&array.try_read()));
    drop(writing);
    assert!(array.try_read().is_ok());
    Ok(())
}

/// Waits until the other process has come to this step, in a forked child that must come to an end.
fn comes_to(step: &SharedValue<u32>, number: u32) -> bool {
    let start = std::time::Instant::now();
    while step.get() < number {
        if start.elapsed() > LONG {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// The child claims for itself what it reads: its parent's guard does not count there.
#[test]
fn b73_a_guard_copied_by_a_fork_claims_for_the_child_what_it_looks_at() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_slice(&[7u64; 8])?;
    for is_atomic in [false, true] {
        let step = SharedValue::new(0u32)?;
        let reading = (!is_atomic).then(|| array.try_read().unwrap());
        let atomics = is_atomic.then(|| array.try_atomics().unwrap());
        // SAFETY: the child uses shared objects only, and ends without a return to the harness.
        match unsafe { nix::unistd::fork() }? {
            nix::unistd::ForkResult::Child => {
                let look = std::panic::AssertUnwindSafe(|| {
                    let read = reading.as_ref().map(|elements| elements[3]);
                    let loaded = atomics.as_ref().map(|it| it[3].load(Ordering::Relaxed));
                    step.set(1);
                    let is_told = comes_to(&step, 2);
                    drop((reading, atomics));
                    step.set(3);
                    is_told && read.or(loaded) == Some(7) && comes_to(&step, 4)
                });
                let has_seen = std::panic::catch_unwind(look).unwrap_or(false);
                // SAFETY: ends the process and nothing else.
                unsafe { libc::_exit(i32::from(!has_seen)) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let has_looked = comes_to(&step, 1);
                drop((reading, atomics));
                let refused = array.try_write().map(drop);
                step.set(2);
                let has_dropped = comes_to(&step, 3);
                let written = array.try_write().map(drop);
                step.set(4);
                let ended = nix::sys::wait::waitpid(child, None)?;
                assert!(has_looked && has_dropped, "atomics: {is_atomic}");
                let pid = child.as_raw().cast_unsigned();
                assert_matches!(
                    refused,
                    Err(ClaimError::Claimed { by, range, .. }) if by == Some(pid) && range == (0..8)
                );
                assert_eq!(written, Ok(()), "atomics: {is_atomic}");
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }
    Ok(())
}

#[cfg(not(long_slices))]
#[test]
fn b73_what_a_killed_process_had_claimed_is_free() -> Result {
    let _none = Leftovers::none();
    let (array, step) = (SharedArray::<u64>::zeros(100)?, SharedValue::new(0u32)?);
    for round in 0..3 {
        step.set(0);
        let child = Process::spawn(
            |(array, step, round): (SharedArray<u64>, SharedValue<u32>, u32)| {
                let _guards = match round {
                    0 => (Some(array.try_read().unwrap()), None, None),
                    1 => (None, None, Some(array.try_atomics().unwrap())),
                    _ => (None, Some(array.try_write_range(50..).unwrap()), None),
                };
                step.set(1);
                loop {
                    std::thread::park();
                }
            },
            (array.clone(), step.clone(), round),
        )?;
        eventually("the child has claimed it", || step.get() == 1);
        assert!(is_claimed(&array.try_write()) && !array.is_poisoned());
        kill(child.pid());
        // The parent has not joined the child: the call that waits for the array finds it dead.
        drop(array.write_range_timeout(.., LONG)?);
        child.join()?;
        // Half-written elements come of the last round alone.
        assert_eq!(array.is_poisoned(), round == 2);
    }
    Ok(())
}

#[test]
fn b73_poison_that_was_cleared_does_not_come_back_for_a_death_before() -> Result {
    let _none = Leftovers::none();
    let (array, pid) = (SharedArray::<u8>::zeros(8)?, SharedValue::new(0u32)?);
    let parent = Process::spawn(
        |both: (SharedArray<u8>, SharedValue<u32>)| {
            let write = |(array, pid): (SharedArray<u8>, SharedValue<u32>)| {
                let _half = array.try_write_range(..1).unwrap();
                pid.set(std::process::id());
                loop {
                    std::thread::park();
                }
            };
            let _writer = Process::spawn(write, both).unwrap();
            loop {
                std::thread::park();
            }
        },
        (array.clone(), pid.clone()),
    )?;
    eventually("the writer has claimed it", || pid.get() > 0);
    // The writer's parent cannot see that it has died, and no other process is told.
    let stopped = Stopped::new(parent.pid());
    kill(pid.get());
    eventually("the writer is dead", || !is_running(pid.get()));
    array.clear_poison();
    drop(array.write_timeout(LONG)?);
    assert!(!array.is_poisoned());
    drop(stopped);
    parent.kill()?;
    parent.join()?;
    // A death that comes later counts.
    let later = Process::spawn(
        |array: SharedArray<u8>| {
            let _half = array.try_write().unwrap();
            std::process::abort()
        },
        array.clone(),
    )?;
    later.join()?;
    assert!(array.is_poisoned());
    let mut all = array.try_write()?;
    all.fill(0);
    array.clear_poison();
    drop(all);
    assert!(!array.is_poisoned());
    Ok(())
}

#[test]
fn b73_an_element_that_a_killed_process_was_setting_is_told() -> Result {
    type Large = [u64; 1 << 15];
    let _none = Leftovers::none();
    for round in 0..1_000 {
        let (array, step) = (SharedArray::<Large>::zeros(1)?, SharedValue::new(0u32)?);
        let child = Process::spawn(
            |(array, step): (SharedArray<Large>, SharedValue<u32>)| {
                let zeros = vec![0; 1 << 15].into_boxed_slice();
                let mut element: Box<Large> = zeros.try_into().unwrap();
                for round in 1.. {
                    element.fill(round);
                    array.set(0, *element).unwrap();
                    step.set(1);
                }
            },
            (array.clone(), step.clone()),
        )?;
        eventually("it sets the element", || step.get() == 1);
        std::thread::sleep(std::time::Duration::from_micros(100 * (round % 20)));
        kill(child.pid());
        child.join()?;
        let reading = array.try_read()?;
        let is_torn = reading[0].iter().any(|&x| x != reading[0][0]);
        if is_torn {
            assert!(array.is_poisoned());
            return Ok(());
        }
    }
    panic!("it was never killed in between");
}

/// A worker, or the whole process that lends, is killed at any point. The process that comes next
/// finds the array usable.
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
                                if let Ok(mut mine) = array.try_write_range(start..end) {
                                    // A write of another process meanwhile would be seen.
                                    mine.fill(x);
                                    assert!(std::hint::black_box(&mine).iter().all(|&y| y == x));
                                }
                            }
                            4..8 => drop(array.try_read_range(start..end)),
                            8..10 => drop(
                                array
                                    .try_atomics()
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
        may_stop(children[0].pid(), &mut next);
        kill(children[0].pid());
        let more = turns.get() + next(500);
        eventually("the other one goes on", || turns.get() >= more);
        may_stop(children[1].pid(), &mut next);
        kill(children[1].pid());
        for child in children {
            let status = child.join()?;
            assert_eq!(status.signal(), Some(9), "{status:?}");
        }
        array.try_write()?.fill(0);
        assert_eq!(array.to_vec()?, [0; 64]);
    }
    Ok(())
}
