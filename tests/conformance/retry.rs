//! Items that are tried again.

use std::fs::{File, read_dir};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gate::Gate;
use manyhands::prelude::*;
use manyhands::should_stop;

/// A pause that no test waits for.
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// The limit of each attempt. What is in time takes next to none of it.
pub(crate) const LIMIT: Duration = Duration::from_millis(200);

/// In which way an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Way {
    Panics,
    TimesOut,
    Dies,
    IsErr,
}

use Way::{Dies, IsErr, Panics, TimesOut};

impl Way {
    pub(crate) fn cause(self) -> RetryOn {
        match self {
            Panics => RetryOn::PANIC,
            TimesOut => RetryOn::TIMEOUT,
            Dies => RetryOn::DEATH,
            IsErr => RetryOn::ERROR,
        }
    }
}

/// An item that fails in its first `fails` attempts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) gate: Gate,
    pub(crate) n: u32,
    pub(crate) way: Way,
    pub(crate) fails: u32,
}

impl Job {
    /// Makes items that fail so often.
    pub(crate) fn all(gate: &Gate, way: Way, fails: &[u32]) -> Vec<Self> {
        let job = |(n, &fails)| Self {
            gate: gate.clone(),
            n,
            way,
            fails,
        };
        (0..).zip(fails).map(job).collect()
    }

    /// Notes that an attempt has begun. Returns which one it is, from 1.
    fn begin(self) -> u32 {
        let is_ours = |attempt: &u32| {
            let name = format!("{}-{attempt}", self.n);
            File::create_new(self.gate.folder().join(name)).is_ok()
        };
        (1..1_000).find(is_ours).unwrap()
    }
}

/// Returns how often each of the first `count` items has been started.
pub(crate) fn attempts(gate: &Gate, count: u32) -> Vec<usize> {
    let names = read_dir(gate.folder()).unwrap();
    let names: Vec<String> = names
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .collect();
    let of = |n: u32| {
        let start = format!("{n}-");
        names.iter().filter(|name| name.starts_with(&start)).count()
    };
    (0..count).map(of).collect()
}

/// Returns the number of the attempt that succeeds.
pub(crate) fn work(job: Job) -> u32 {
    try_work(job).expect("not an error of the user's")
}

pub(crate) fn try_work(job: Job) -> Result<u32, String> {
    let Job { way, fails, .. } = job;
    let attempt = job.begin();
    if attempt <= fails {
        match way {
            // Without the hook, which may take a second to print a backtrace.
            Panics => std::panic::resume_unwind(Box::new(format!("attempt {attempt}"))),
            TimesOut => std::thread::sleep(LIMIT + Duration::from_millis(20)),
            Dies => {
                crate::common::kill(std::process::id());
                unreachable!("SIGKILL cannot be survived");
            }
            IsErr => return Err(format!("attempt {attempt}")),
        }
    }
    Ok(attempt)
}

/// Does the same in a grace period: once it is told to stop.
pub(crate) fn when_told(job: Job) -> u32 {
    try_when_told(job).expect("not an error of the user's")
}

pub(crate) fn try_when_told(job: Job) -> Result<u32, String> {
    let Job { way, fails, .. } = job;
    // Before the attempt is noted: then the test ends the call.
    let is_told_at_once = should_stop();
    let attempt = job.begin();
    crate::grace::wait_until_told();
    match way {
        _ if is_told_at_once => Ok(1_000 + attempt),
        _ if attempt > fails => Ok(attempt),
        IsErr => Err(format!("attempt {attempt}")),
        _ => std::panic::resume_unwind(Box::new(format!("attempt {attempt}"))),
    }
}

/// Panics at its first attempt, and returns an error at each later one.
pub(crate) fn panics_and_fails(job: Job) -> Result<u32, String> {
    let attempt = job.begin();
    assert!(attempt > 1, "attempt 1");
    Err(format!("attempt {attempt}"))
}

pub(crate) fn run(job: Job) {
    work(job);
}

/// Returns an outcome without the details of its error.
pub(crate) fn plain(outcome: Result<u32, TaskError>) -> Result<u32, (Option<usize>, u32)> {
    outcome.map_err(|error| {
        let tried = error.attempts().unwrap_or_else(|| panic!("{error}"));
        if tried > 1 {
            let text = error.to_string();
            assert!(
                text.ends_with(&format!("; it was tried {tried} times")),
                "{text}"
            );
        }
        (error.index(), tried)
    })
}

macro_rules! retry {
    ($make:expr, $ways:expr) => {
        #[test]
        fn b132_an_item_is_started_as_often_as_its_policy_says_and_its_error_tells_it() {
            use $crate::retry::{Job, attempts, plain, run, work};
            let _none = Leftovers::none();
            for way in $ways {
                let pool = $make;
                let policy = Retry::up_to(2).on(way.cause());
                let limit = match way {
                    $crate::retry::Way::TimesOut => $crate::retry::LIMIT,
                    _ => DEADLINE,
                };
                let call = || pool.call().retry(policy).timeout(limit);
                let check = |fails: &[u32], started: &[usize], kind: &dyn Fn(Vec<Job>)| {
                    let fence = Fence(Gate::new());
                    kind(Job::all(&fence.0, way, fails));
                    assert_eq!(attempts(&fence.0, fails.len() as u32), started, "{way:?}");
                };
                for chunk in [1, 4] {
                    check(&[0, 1, 3, 2], &[1, 2, 3, 3], &|jobs| {
                        let each = call().chunk_size(chunk).map_outcomes(work, jobs);
                        let each: Vec<_> = each.into_iter().map(plain).collect();
                        assert_eq!(each, [Ok(1), Ok(2), Err((Some(2), 3)), Ok(3)], "{way:?}");
                    });
                    check(&[1, 0, 2], &[2, 1, 3], &|jobs| {
                        let results = call().chunk_size(chunk).map(work, jobs);
                        assert_eq!(results, Ok(vec![2, 1, 3]), "{way:?}");
                    });
                }
                let stats = pool.stats();
                assert_eq!((stats.total().tasks, stats.retried), (14, 16), "{way:?}");
                assert_eq!(stats.total().failures.total(), 2, "{way:?}: {stats}");
                check(&[1, 3], &[2, 3], &|jobs| {
                    let failed = call().chunk_size(2).for_each(run, jobs);
                    assert_eq!(plain(failed.map(|()| 0)), Err((Some(1), 3)), "{way:?}");
                });
                check(&[1, 3], &[2, 3], &|jobs| {
                    let each = call().imap(work, jobs).map(plain);
                    assert_eq!(
                        each.collect::<Vec<_>>(),
                        [Ok(2), Err((Some(1), 3))],
                        "{way:?}"
                    );
                });
                check(&[3, 1], &[3, 2], &|jobs| {
                    let mut each: Vec<_> = call().imap_unordered(work, jobs).collect();
                    each.sort_by_key(|(index, _)| *index);
                    let each: Vec<_> = each
                        .into_iter()
                        .map(|(_, outcome)| plain(outcome))
                        .collect();
                    assert_eq!(each, [Err((Some(0), 3)), Ok(2)], "{way:?}");
                });
                check(&[1, 3], &[2, 3], &|jobs| {
                    let tasks = jobs.into_iter().map(|job| call().submit(work, job));
                    let tasks: Vec<_> = tasks.collect();
                    let ids: Vec<_> = tasks.iter().map(TaskFuture::id).collect();
                    let mut each = tasks.into_iter().map(TaskFuture::result);
                    assert_eq!(each.next(), Some(Ok(2)), "{way:?}");
                    let error = each.next().unwrap().unwrap_err();
                    assert_eq!(error.task_id(), Some(ids[1]), "{way:?}");
                    assert_eq!(error.attempts(), Some(3), "{way:?}");
                });
            }
        }

        #[test]
        fn b132_what_a_policy_does_not_name_is_not_tried_again() {
            use $crate::retry::{Job, Way, attempts, plain, work};
            let _none = Leftovers::none();
            let pool = $make;
            let check = |way: Way, call: &dyn Fn(Vec<Job>) -> Result<u32, TaskError>| {
                let fence = Fence(Gate::new());
                let failed = call(Job::all(&fence.0, way, &[1]));
                assert_eq!(plain(failed).map_err(|(_, tried)| tried), Err(1), "{way:?}");
                assert_eq!(attempts(&fence.0, 1), [1], "{way:?}");
            };
            let others = Retry::up_to(5).on(RetryOn::DEATH | RetryOn::TIMEOUT | RetryOn::ERROR);
            check(Way::Panics, &|jobs| {
                let each = pool.call().retry(others).map(work, jobs);
                each.map(|each| each[0])
            });
            check(Way::Panics, &|mut jobs| {
                let job = jobs.remove(0);
                pool.call().retry(others).submit(work, job).result()
            });
            check(Way::Panics, &|jobs| {
                pool.call().retries(5).map(work, jobs).map(|each| each[0])
            });
            check(Way::TimesOut, &|jobs| {
                let others = Retry::up_to(5).on(RetryOn::DEATH | RetryOn::PANIC);
                let call = pool.call().timeout($crate::retry::LIMIT).retry(others);
                call.map_outcomes(work, jobs).remove(0)
            });
            // The last policy counts.
            check(Way::Panics, &|jobs| {
                let call = pool.call().retry(Retry::up_to(5).on(RetryOn::PANIC));
                call.retries(5).map(work, jobs).map(|each| each[0])
            });
        }

        #[test]
        fn b132_an_err_of_the_user_is_tried_again_where_it_is_an_error() {
            use $crate::retry::{Job, Way, attempts, panics_and_fails, try_work};
            let _none = Leftovers::none();
            let pool = $make;
            let policy = Retry::up_to(2).on(RetryOn::ERROR | RetryOn::PANIC);
            for chunk in [1, 3] {
                let call = || pool.call().retry(policy).chunk_size(chunk);
                let fence = Fence(Gate::new());
                let jobs = || Job::all(&fence.0, Way::IsErr, &[2, 0, 1]);
                assert_eq!(call().try_map(try_work, jobs()), Ok(vec![3, 1, 2]));
                assert_eq!(attempts(&fence.0, 3), [3, 1, 2]);

                let fence = Fence(Gate::new());
                let jobs = || Job::all(&fence.0, Way::IsErr, &[1, 9]);
                let failed = call().try_map(try_work, jobs()).unwrap_err();
                assert_eq!((failed.index(), failed.attempts()), (Some(1), Some(3)));
                let text = "item 1 failed: attempt 3; it was tried 3 times";
                assert_eq!(failed.to_string(), text);
                assert_eq!(attempts(&fence.0, 2), [2, 3]);

                let fence = Fence(Gate::new());
                let jobs = || Job::all(&fence.0, Way::IsErr, &[9]);
                let run = |job| try_work(job).map(drop);
                let failed = call().try_for_each(run, jobs()).unwrap_err();
                assert_eq!(failed.into_item(), Some("attempt 3".to_owned()));

                // Other causes count too, and an error that is no cause is the last word.
                let fence = Fence(Gate::new());
                let jobs = || Job::all(&fence.0, Way::Panics, &[1]);
                let call = pool.call().retry(Retry::up_to(5).on(RetryOn::PANIC));
                let failed = call.try_map(panics_and_fails, jobs()).unwrap_err();
                assert_eq!(failed.attempts(), Some(2));
                assert_eq!(failed.into_item(), Some("attempt 2".to_owned()));
                assert_eq!(attempts(&fence.0, 1), [2]);

                // Elsewhere it is a result.
                let fence = Fence(Gate::new());
                let jobs = || Job::all(&fence.0, Way::IsErr, &[1]);
                let each = pool.call().retry(policy).map(try_work, jobs());
                assert_eq!(each, Ok(vec![Err("attempt 1".to_owned())]));
            }
        }

        #[test]
        fn b133_the_pause_before_an_attempt_doubles() {
            use $crate::retry::{Job, Way, attempts, work};
            let _none = Leftovers::none();
            let pool = $make;
            let pause = Duration::from_millis(300);
            let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(pause);
            let fence = Fence(Gate::new());
            let start = Instant::now();
            let jobs = Job::all(&fence.0, Way::Panics, &[0, 3, 0, 1]);
            let each = pool.call().retry(policy).chunk_size(1).map(work, jobs);
            assert!(start.elapsed() >= 7 * pause);
            assert_eq!(each, Ok(vec![1, 4, 1, 2]));
            assert_eq!(attempts(&fence.0, 4), [1, 4, 1, 2]);
        }

        #[test]
        fn b134_a_token_or_a_deadline_ends_a_pause() {
            use $crate::grace::LONG;
            use $crate::retry::{HOUR, Job, Way, attempts, work};
            let _none = Leftovers::none();
            let pool = $make;
            let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(HOUR);
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let jobs = || Job::all(gate, Way::Panics, &[1]);
            let soon = || Instant::now() + Duration::from_millis(200);
            let late = pool.call().retry(policy).deadline(soon()).map(work, jobs());
            assert_matches!(late, Err(TaskError::DeadlineExceeded { .. }));
            let started = attempts(gate, 1);
            assert!(started[0] <= 1, "{started:?}");

            let kinds = ["map", "map_outcomes", "imap", "submit"];
            // A grace period is for what runs, and nothing does.
            let graces = [None, Some(LONG)];
            let cases = kinds
                .into_iter()
                .flat_map(|kind| graces.map(|grace| (kind, grace)));
            for (kind, grace) in cases {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let jobs = || Job::all(gate, Way::Panics, &[1]);
                let token = CancellationToken::new();
                let before = pool.stats().retried;
                let start = Instant::now();
                std::thread::scope(|scope| {
                    let call = || {
                        let call = pool.call().retry(policy).cancel_on(&token);
                        match grace {
                            Some(grace) => call.grace_period(grace),
                            None => call,
                        }
                    };
                    scope.spawn(|| {
                        eventually("it is in its pause", || pool.stats().retried > before);
                        token.cancel();
                    });
                    let outcome = match kind {
                        "map" => call().map(work, jobs()).map(|each| each[0]),
                        "map_outcomes" => call().map_outcomes(work, jobs()).remove(0),
                        "imap" => call().imap(work, jobs()).next().unwrap(),
                        _ => call().submit(work, jobs().remove(0)).result(),
                    };
                    assert_eq!(outcome, Err(cancelled()), "{kind}");
                });
                assert_eq!(attempts(gate, 1), [1], "{kind}");
                assert!(start.elapsed() < LONG, "{kind}, {grace:?}");
            }
        }

        #[test]
        fn b132_each_attempt_has_its_own_limit_and_grace_period() {
            use $crate::grace::LONG;
            use $crate::retry::{Job, Way, attempts, try_when_told, when_told};
            let _none = Leftovers::none();
            let pool = $make;
            let causes = RetryOn::TIMEOUT | RetryOn::PANIC | RetryOn::ERROR;
            let policy = Retry::up_to(3).on(causes);
            for kind in ["map", "map_outcomes", "try_map", "imap", "submit"] {
                let fence = Fence(Gate::new());
                let way = match kind {
                    "try_map" => Way::IsErr,
                    _ => Way::Panics,
                };
                let mut jobs = Job::all(&fence.0, way, &[1]);
                let call = pool
                    .call()
                    .retry(policy)
                    .timeout(Duration::from_millis(150));
                let call = call.grace_period(LONG);
                let outcome = match kind {
                    "map" => call.map(when_told, jobs).map(|each| each[0]),
                    "map_outcomes" => call.map_outcomes(when_told, jobs).remove(0),
                    "try_map" => call
                        .try_map(try_when_told, jobs)
                        .map(|each| each[0])
                        .map_err($crate::early_ends::of_task),
                    "imap" => call.imap(when_told, jobs).next().unwrap(),
                    _ => call.submit(when_told, jobs.remove(0)).result(),
                };
                // What comes in the period is no failure, though the limit has passed.
                assert_eq!(outcome, Ok(2), "{kind}");
                assert_eq!(attempts(&fence.0, 1), [2], "{kind}");
            }
        }

        #[test]
        fn b134_in_the_grace_period_of_its_call_nothing_is_tried_again() {
            use $crate::early_ends::end_when;
            use $crate::grace::LONG;
            use $crate::retry::{HOUR, Job, Way, attempts, plain, try_when_told, when_told};
            let _none = Leftovers::none();
            let pool = $make;
            let policy = Retry::up_to(3).on(RetryOn::PANIC | RetryOn::ERROR);
            for pause in [Duration::ZERO, HOUR] {
                let policy = policy.backoff(pause);
                for kind in ["map", "map_outcomes", "try_map", "imap", "submit"] {
                    for fails in [0, 1] {
                        let what = format!("{kind}, {fails}, {pause:?}");
                        let fence = Fence(Gate::new());
                        let gate = &fence.0;
                        let token = CancellationToken::new();
                        let way = match kind {
                            "try_map" => Way::IsErr,
                            _ => Way::Panics,
                        };
                        let mut jobs = Job::all(gate, way, &[fails]);
                        let call = pool.call().retry(policy).cancel_on(&token);
                        let call = call.grace_period(LONG);
                        let start = Instant::now();
                        let outcome = std::thread::scope(|scope| {
                            let end = (&token, None);
                            let has_begun = || attempts(gate, 1) == [1];
                            scope.spawn(move || end_when(has_begun, gate, end, false));
                            match kind {
                                "map" => call.map(when_told, jobs).map(|each| each[0]),
                                "map_outcomes" => call.map_outcomes(when_told, jobs).remove(0),
                                "try_map" => match call.try_map(try_when_told, jobs) {
                                    Ok(each) => Ok(each[0]),
                                    Err(TryError::Task(error)) => Err(error),
                                    // Nothing else ends like this.
                                    Err(error) => Ok(100 + error.attempts().unwrap()),
                                },
                                "imap" => call.imap(when_told, jobs).next().unwrap(),
                                _ => call.submit(when_told, jobs.remove(0)).result(),
                            }
                        });
                        match (fails, way) {
                            (0, _) => assert_eq!(outcome, Ok(1), "{what}"),
                            (_, Way::IsErr) => assert_eq!(outcome, Ok(101), "{what}"),
                            _ => {
                                let failed = plain(outcome).map_err(|(_, tried)| tried);
                                assert_eq!(failed, Err(1), "{what}");
                            }
                        }
                        assert!(start.elapsed() < LONG, "{what}");
                        assert_eq!(attempts(gate, 1), [1], "{what}");
                    }
                }
            }
        }

        #[test]
        fn b134_a_pool_that_closes_waits_for_no_pause() {
            use $crate::retry::{HOUR, Job, Way, attempts, work};
            let _none = Leftovers::none();
            let pool = $make;
            let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(HOUR);
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let jobs = Job::all(gate, Way::Panics, &[2, 0, 1]);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    eventually("one is in its pause", || pool.stats().retried > 0);
                    pool.close().unwrap();
                });
                let each = pool.call().retry(policy).chunk_size(1).map(work, jobs);
                assert_eq!(each, Ok(vec![3, 1, 2]));
            });
            assert_eq!(attempts(gate, 3), [3, 1, 2]);
        }
    };
}

/// Engines whose tasks are submitted and go on while the caller does other things.
macro_rules! queued_retry {
    ($make:expr) => {
        #[test]
        fn b133_an_item_in_its_pause_holds_no_worker_and_its_handle_ends_it() {
            use $crate::retry::{HOUR, Job, Way, attempts, work};
            let _none = Leftovers::none();
            let pool = $make;
            let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(HOUR);
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let jobs = Job::all(gate, Way::Panics, &[9; 8]);
            let submit = |job| pool.call().retry(policy).submit(work, job);
            let tasks: Vec<_> = jobs.into_iter().map(submit).collect();
            // No caller waits for them.
            eventually("all have begun", || attempts(gate, 8) == [1; 8]);
            assert_eq!(pool.map(|n: u32| n, 0..100), Ok((0..100).collect()));
            for (nth, mut task) in tasks.into_iter().enumerate() {
                eventually("it is in its pause", || !task.is_running());
                assert!(!task.is_done());
                match nth % 3 {
                    0 => assert!(task.cancel()),
                    1 => assert!(task.kill()),
                    _ => {
                        let result = task.result_timeout(Duration::ZERO);
                        assert!(result.is_err());
                        assert!(task.cancel() && !task.cancel());
                    }
                }
                assert_eq!(task.result(), Err(cancelled()));
            }
            let mut lazy = pool
                .call()
                .retry(policy)
                .imap(work, Job::all(gate, Way::Panics, &[9; 9]));
            let first = lazy.next_timeout(Duration::from_millis(50));
            assert!(first.is_err(), "{first:?}");
            drop(lazy);
            assert_eq!(
                pool.stats().retried,
                attempts(gate, 9).iter().sum::<usize>() as u64
            );
            pool.close().unwrap();
        }

        #[test]
        fn b133_a_submitted_task_is_tried_again_though_no_caller_waits() {
            use $crate::retry::{Job, Way, attempts, work};
            let _none = Leftovers::none();
            let pool = $make;
            for (pause, count) in [0, 5].into_iter().flat_map(|ms| [(ms, 1), (ms, 4)]) {
                let pause = Duration::from_millis(pause);
                let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(pause);
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let jobs = Job::all(gate, Way::Panics, &[3; 4]);
                let submit = |job| pool.call().retry(policy).submit(work, job);
                let tasks: Vec<_> = jobs.into_iter().take(count).map(submit).collect();
                let all = vec![4; count];
                eventually("all have ended", || attempts(gate, count as u32) == all);
                for task in tasks {
                    assert_eq!(task.result(), Ok(4));
                }
            }
        }

        #[test]
        fn b134_what_is_in_a_pause_ends_with_its_pool() {
            use $crate::retry::{HOUR, Job, Way, attempts, work};
            for end in ["close", "close_timeout", "shutdown", "kill", "drop"] {
                let _none = Leftovers::none();
                let pool = $make;
                let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(HOUR);
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let jobs = Job::all(gate, Way::Panics, &[2; 4]);
                let submit = |job| pool.call().retry(policy).submit(work, job);
                let tasks: Vec<_> = jobs.into_iter().map(submit).collect();
                eventually("all are in their pause", || {
                    attempts(gate, 4) == [1; 4] && !tasks.iter().any(TaskFuture::is_running)
                });
                let (expected, started) = match end {
                    "close" | "close_timeout" => (Ok(3), 3),
                    _ => (Err(cancelled()), 1),
                };
                match end {
                    "close" => pool.close().unwrap(),
                    "close_timeout" => pool.close_timeout(DEADLINE).unwrap(),
                    "shutdown" => pool.shutdown(Shutdown::CancelQueued).unwrap(),
                    "kill" => pool.shutdown(Shutdown::Kill).unwrap(),
                    _ => drop(pool),
                }
                for task in tasks {
                    assert_eq!(task.result(), expected, "{end}");
                }
                assert_eq!(attempts(gate, 4), [started; 4], "{end}");
            }
        }
    };
}
