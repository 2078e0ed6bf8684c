//! Forked children that are killed or stopped between any two steps (claiming a chunk, running an
//! item, giving its result), and parents that are killed between two of theirs.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Death, PoolError, TaskError};
use crate::os::fault::{self, Child, Fate, Met};
use crate::os::memory::SharedMemory;
use crate::os::pidfd;
use crate::os::{life, state};
use crate::{Forked, Pool, Retry, RetryOn};

const IN_TIME: Duration = Duration::from_secs(20);

fn in_time(test: impl FnOnce() + Send + 'static) {
    within(6 * IN_TIME, test);
}

/// Runs a test on a thread, and fails if it does not come to its end.
pub(super) fn within(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (say, said) = channel();
    let thread = thread::spawn(move || {
        test();
        // The test may have failed.
        let _ = say.send(());
    });
    let waited = said.recv_timeout(limit);
    assert_ne!(waited, Err(RecvTimeoutError::Timeout), "a call hangs");
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

fn pool(workers: usize) -> Pool<Forked> {
    let builder = Forked::builder().workers(workers).allow_threads(true);
    builder.build().unwrap()
}

/// Words that parent and children share.
pub(super) struct Words(SharedMemory);

impl Words {
    pub(super) fn new() -> Self {
        let len = NonZeroUsize::new(4_096).unwrap();
        Self(SharedMemory::new("a test", len).unwrap().0)
    }

    pub(super) fn at(&self, index: usize) -> &AtomicU32 {
        assert!(index < 1_024);
        // SAFETY: the word lies within the mapping.
        #[allow(unsafe_code)]
        let word = unsafe { self.0.start().cast::<AtomicU32>().add(index) };
        // SAFETY: the word is aligned, as the mapping is, which lives as long as `self`.
        #[allow(unsafe_code)]
        unsafe {
            word.as_ref()
        }
    }

    pub(super) fn get(&self, index: usize) -> u32 {
        self.at(index).load(Ordering::SeqCst)
    }
}

fn result(item: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at + item) as u8).collect()
}

/// Lets a child that is stopped at its fault point meet the rest of its fate, until the call is
/// over.
fn let_go_on(met: &Met, fate: Fate, is_over: &AtomicBool) {
    let end = Instant::now() + IN_TIME;
    while !is_over.load(Ordering::SeqCst) && Instant::now() < end {
        if let Some(pid) = met.pid() {
            // An error means that the parent has reclaimed the child.
            let Ok(child) = pidfd::Child::open(pid) else {
                return;
            };
            while !state::is_stopped(pid) && !child.has_ended() {
                thread::yield_now();
            }
            let signal = match fate {
                Fate::Paused => Signal::SIGCONT,
                Fate::Killed | Fate::KilledLater => Signal::SIGKILL,
            };
            child.signal(signal).unwrap();
            return;
        }
        thread::yield_now();
    }
}

/// Maps the items, whose results have these lengths, with one child that meets its fate. Returns
/// the item that failed, and whether a child has met it.
fn run(fate: Fate, number: i64, lens: &[usize]) -> (Option<usize>, bool) {
    let (met, runs, is_over) = (Met::new(), Words::new(), AtomicBool::new(false));
    let outcomes = thread::scope(|scope| {
        if fate != Fate::Killed {
            scope.spawn(|| let_go_on(&met, fate, &is_over));
        }
        fault::arm_children(1, fate, number, &met);
        // There is one child at a time, so that this one comes to all its steps.
        let pool = pool(1);
        let call = pool.call().chunk_size(2);
        let outcomes = call.map_outcomes(
            |item: usize| {
                runs.at(item).fetch_add(1, Ordering::SeqCst);
                result(item, lens[item])
            },
            0..lens.len(),
        );
        is_over.store(true, Ordering::SeqCst);
        outcomes
    });
    let what = format!("{fate:?} at fault point {number}");
    let (mut failed, mut again) = (None, 0);
    assert_eq!(outcomes.len(), lens.len());
    for (item, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(bytes) => {
                assert!(bytes == result(item, lens[item]), "item {item}: {what}");
                assert!(runs.get(item) > 0, "item {item}: {what}");
                again += runs.get(item) - 1;
            }
            Err(error) => {
                let TaskError::WorkerDied {
                    index,
                    cause,
                    attempts,
                    ..
                } = &error
                else {
                    panic!("{error}: {what}");
                };
                assert_eq!(
                    (index.get(), *cause, *attempts),
                    (Some(item), Death::Signal(9), 1)
                );
                assert!(runs.get(item) <= 1, "item {item}: {what}");
                assert_eq!(failed, None, "a second failure: {what}");
                failed = Some(item);
            }
        }
    }
    // The pool itself may have killed a child that stood between two items for long.
    let most = u32::from(fate != Fate::Killed);
    assert!(again <= most, "{again} items have run again: {what}");
    (failed, met.pid().is_some())
}

const FEW: [usize; 5] = [20, 5_000, 0, 8, 20];

fn at_each_point(fate: Fate) {
    let (mut lost, mut kept) = (0, 0);
    for number in 0.. {
        let (failed, has_met) = run(fate, number, &FEW);
        if !has_met {
            assert_eq!(failed, None, "no child has met its fate");
            assert!(number > 10, "there are only {number} fault points");
            break;
        }
        lost += u32::from(failed.is_some());
        kept += u32::from(failed.is_none());
    }
    assert!(kept > 0 && (fate == Fate::Paused) == (lost == 0), "{lost}");
}

#[test]
fn a_child_that_is_killed_between_any_two_steps_costs_the_item_that_it_was_at() {
    in_time(|| at_each_point(Fate::Killed));
}

#[test]
fn a_child_that_is_stopped_between_any_two_steps_costs_nothing() {
    in_time(|| at_each_point(Fate::Paused));
}

#[test]
fn a_child_that_is_stopped_and_killed_costs_the_item_that_it_was_at() {
    in_time(|| at_each_point(Fate::KilledLater));
}

#[test]
fn nothing_of_a_large_result_is_torn_wherever_its_child_dies() {
    in_time(|| {
        let (mut has_lost, mut has_kept) = (false, false);
        for number in (0..).step_by(7) {
            let (failed, has_met) = run(Fate::Killed, number, &[20, 150_000, 20]);
            has_lost |= failed == Some(1);
            has_kept |= failed.is_none();
            if !has_met {
                break;
            }
        }
        assert!(has_lost && has_kept);
    });
}

/// The parent finds a child that stays stopped, and the limit ends what the child is at.
#[test]
fn a_child_that_stays_stopped_costs_its_item_and_not_the_call() {
    in_time(|| {
        let limit = Duration::from_millis(50);
        for number in (1..).step_by(3) {
            let met = Met::new();
            fault::arm_children(1, Fate::Paused, number, &met);
            // There is one child at a time, so that this one comes to all its steps.
            let pool = pool(1);
            let call = pool.call().chunk_size(2).timeout(limit);
            let outcomes = call.map_outcomes(|item: usize| result(item, 20), 0..5);
            let failed = outcomes.iter().enumerate().filter_map(|(item, outcome)| {
                let error = outcome.as_ref().err()?;
                let index = Some(item);
                assert_eq!(
                    error,
                    &TaskError::TimedOut {
                        index: index.into(),
                        limit,
                        attempts: 1,
                    },
                    "at {number}"
                );
                Some(item)
            });
            assert!(failed.count() <= 1, "at fault point {number}");
            if met.pid().is_none() {
                assert!(number > 30, "there are only {number} fault points");
                break;
            }
        }
    });
}

/// A child says when it was done with a chunk after it has answered the last item of it. The caller
/// may learn of the answer before that, and the child may never come to say it.
#[test]
fn what_a_child_has_run_is_in_the_timeline_wherever_it_is_killed_or_stopped() {
    in_time(|| {
        for fate in [Fate::Killed, Fate::Paused] {
            for number in 0.. {
                let met = Met::new();
                fault::arm_children(1, fate, number, &met);
                let builder = Forked::builder().workers(1).allow_threads(true);
                let pool = builder.timeline(true).build().unwrap();
                let limit = Duration::from_millis(50);
                let call = pool.call().chunk_size(2).timeout(limit);
                let outcomes = call.map_outcomes(|item: usize| result(item, 20), 0..5);
                let what = format!("{fate:?} at fault point {number}: {:?}", pool.timeline());
                let events = pool.timeline().events;
                let items: usize = events.iter().map(|event| event.items).sum();
                let died = events.iter().filter(|event| !event.completed).count();
                assert!(items >= 5, "{what}");
                let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                assert!(failed <= died && died <= 1, "{what}");
                if died == 0 {
                    assert_eq!(items, 5, "{what}");
                }
                if met.pid().is_none() {
                    assert!(number > 30, "there are only {number} fault points");
                    break;
                }
            }
        }
    });
}

/// Returns the first fault point at which the child of a call over one item has started it.
fn point_in_item() -> i64 {
    (0..100)
        .find(|&number| {
            let met = Met::new();
            fault::arm_children(1, Fate::Killed, number, &met);
            let outcome = pool(1).call().map_outcomes(|item: u8| vec![item], [1]);
            outcome[0].is_err()
        })
        .unwrap()
}

#[test]
fn retries_are_counted_and_the_error_says_how_often_it_was_tried() {
    in_time(|| {
        let point = point_in_item();
        let met = Met::new();
        for (deaths, retries) in [(1, 1), (2, 2), (2, 1), (3, 2), (1, 0)] {
            fault::arm_children(deaths, Fate::Killed, point, &met);
            let pool = pool(1);
            let call = pool.call().retries(retries);
            let outcome = call.map_outcomes(|item: u8| vec![item], [1]).remove(0);
            if deaths <= retries as usize {
                assert_eq!(outcome, Ok(vec![1]));
                continue;
            }
            let Err(TaskError::WorkerDied {
                index, attempts, ..
            }) = outcome
            else {
                panic!("{outcome:?}");
            };
            assert_eq!((index.get(), attempts), (Some(0), retries + 1));
        }
    });
}

/// Threads of the crate take no signals, and fork too: for a task that is tried again, and for a
/// call in a callback.
#[test]
fn a_child_blocks_the_signals_that_the_program_blocks_whichever_thread_forks_it() {
    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("SigBlk:"));
        line.unwrap().to_owned()
    }

    in_time(|| {
        let signals = SigSet::from(Signal::SIGUSR1);
        signals.thread_block().unwrap();
        let pool = Arc::new(pool(2));
        let policy = Retry::up_to(1).on(RetryOn::PANIC);
        let fails = |()| -> () { panic!("{}", blocked()) };
        let task = pool.call().retry(policy).submit(fails, ());
        let (say, said) = channel();
        // From now on a thread of the crate waits for the task.
        task.on_done(move |outcome| {
            let error = outcome.unwrap_err();
            let _ = say.send((error.attempts(), error.to_string()));
        });
        let (attempts, text) = said.recv_timeout(IN_TIME).unwrap();
        assert_eq!(attempts, Some(2));
        assert!(text.contains(&blocked()), "{text}");

        let (say, said) = channel();
        let own = pool.clone();
        let task = pool.submit(|()| (), ());
        task.on_done(move |_| {
            let _ = say.send(own.submit(|()| blocked(), ()).result());
        });
        assert_eq!(said.recv_timeout(IN_TIME).unwrap(), Ok(blocked()));
        signals.thread_unblock().unwrap();
    });
}

/// The children die before the first item, at their first step.
#[test]
fn a_call_gives_up_after_seventeen_children_that_started_nothing_and_not_before() {
    in_time(|| {
        let met = Met::new();
        for (deaths, gives_up) in [(17, false), (18, true)] {
            fault::arm_children(deaths, Fate::Killed, 0, &met);
            let outcome = pool(1).map(|item: u8| item, [7]);
            if gives_up {
                let error = outcome.unwrap_err();
                assert!(
                    matches!(error.as_pool(), Some(PoolError::Broken { .. })),
                    "{error}"
                );
            } else {
                assert_eq!(outcome, Ok(vec![7]));
            }
        }
        fault::arm_children(0, Fate::Killed, 0, &met);
    });
}

#[test]
fn an_item_that_was_run_resets_the_count_of_children_that_started_nothing() {
    in_time(|| {
        let met = Met::new();
        let runs = Words::new();
        // Each child comes as far as the result of its first item.
        let point = point_in_item() + 4;
        fault::arm_children(40, Fate::Killed, point, &met);
        let pool = pool(1);
        let call = pool.call().chunk_size(100).retries(1);
        let outcomes = call.map_outcomes(
            |item: usize| {
                runs.at(item).fetch_add(1, Ordering::SeqCst);
                vec![item]
            },
            0..40,
        );
        fault::arm_children(0, Fate::Killed, 0, &met);
        let broken = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Err(TaskError::Pool(_))));
        assert_eq!(broken.count(), 0, "the call has given up");
        assert_eq!(outcomes.len(), 40);
    });
}

#[test]
fn a_submitted_task_fails_or_has_its_result_wherever_its_child_dies() {
    in_time(|| {
        for fate in [Fate::Killed, Fate::Paused, Fate::KilledLater] {
            let (mut lost, mut kept) = (0, 0);
            for number in 0.. {
                let (met, is_over) = (Met::new(), AtomicBool::new(false));
                let outcome = thread::scope(|scope| {
                    if fate != Fate::Killed {
                        scope.spawn(|| let_go_on(&met, fate, &is_over));
                    }
                    fault::arm_children(1, fate, number, &met);
                    let pool = pool(1);
                    let outcome = pool.submit(|len: usize| result(3, len), 9_000).result();
                    is_over.store(true, Ordering::SeqCst);
                    outcome
                });
                match outcome {
                    Ok(bytes) => {
                        assert!(bytes == result(3, 9_000), "at fault point {number}");
                        kept += 1;
                    }
                    Err(TaskError::WorkerDied { index, cause, .. }) => {
                        assert_eq!(
                            (index.get(), cause),
                            (None, Death::Signal(9)),
                            "{fate:?} at fault point {number}"
                        );
                        lost += 1;
                    }
                    Err(error) => panic!("{error} at fault point {number}"),
                }
                if met.pid().is_none() {
                    break;
                }
            }
            assert!(
                kept > 1 && (fate == Fate::Paused) == (lost == 0),
                "{fate:?}"
            );
        }
    });
}

/// A parent that dies takes its children with it, whatever step they and it are at. The children
/// are blocked then: the parent takes no more of their results.
#[test]
fn children_end_with_a_parent_that_is_killed_at_any_step() {
    in_time(|| {
        let mut have_lived = 0;
        for fate in [Fate::Killed, Fate::KilledLater] {
            for number in (0..).step_by(11) {
                let words = Words::new();
                let parent = Child::run(fate, number, || {
                    let outcome = pool(2).call().chunk_size(1).map(
                        |item: usize| {
                            words.at(item).store(std::process::id(), Ordering::SeqCst);
                            result(item, 150_000)
                        },
                        0..4,
                    );
                    assert!(outcome.is_ok());
                });
                let pids = || (0..4).map(|item| words.get(item)).filter(|pid| *pid != 0);
                // These live now. Others have ended.
                let start_of = |pid| Some((pid, life::start_time(pid).ok()?));
                let children: Vec<_> = pids().filter_map(start_of).collect();
                let is_through = parent.end();
                let end = Instant::now() + IN_TIME;
                for (pid, started) in children {
                    have_lived += 1;
                    while life::is_running(pid, started) {
                        assert!(
                            Instant::now() < end,
                            "child {pid} outlives its parent, killed at fault point {number}"
                        );
                        thread::yield_now();
                    }
                }
                if is_through {
                    break;
                }
            }
        }
        assert!(have_lived > 0, "no parent had a child when it was killed");
    });
}
