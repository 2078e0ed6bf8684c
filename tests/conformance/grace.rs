//! Tasks that are told to stop, and have some time for that.

use std::time::{Duration, Instant};

use manyhands::should_stop;

use crate::common::{DEADLINE, PAUSE};
use crate::early_ends::Item;

/// What tells a task to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Limit,
    Token,
    Deadline,
}

pub(crate) const ALL: [Asked; 3] = [Asked::Limit, Asked::Token, Asked::Deadline];

/// A period that no test lasts.
pub(crate) const LONG: Duration = DEADLINE.saturating_mul(10);

/// Returns when the task that calls this is told to stop.
pub(crate) fn wait_until_told() {
    let start = Instant::now();
    while !should_stop() {
        assert!(start.elapsed() < 2 * DEADLINE, "it is never told to stop");
        std::thread::sleep(PAUSE);
    }
    assert!(should_stop(), "it stays so");
}

/// Marks that it runs, and does so until it is told to stop.
pub(crate) fn until_told((gate, n): Item) -> u32 {
    gate.mark(&n.to_string());
    wait_until_told();
    n
}

pub(crate) fn unit_until_told(item: Item) {
    until_told(item);
}

#[allow(clippy::unnecessary_wraps, reason = "a function for `try_map`")]
pub(crate) fn try_until_told(item: Item) -> Result<u32, String> {
    Ok(until_told(item))
}

/// Waits at the gate, also when it has been told to stop.
pub(crate) fn never_stops((gate, n): Item) -> u32 {
    until_told((gate.clone(), n));
    gate.mark(&format!("{n}-was-told"));
    gate.pass();
    n
}

macro_rules! graces {
    ($make:expr) => {
        #[test]
        fn b92_what_a_task_returns_in_its_grace_period_is_its_result() {
            use $crate::early_ends::{end_when_running, items};
            use $crate::grace::*;
            let _none = Leftovers::none();
            let pool = $make;
            let count = pool.workers() as u32;
            for asked in ALL {
                for kind in [
                    "map",
                    "for_each",
                    "try_map",
                    "map_outcomes",
                    "submit",
                    "imap",
                    "imap_unordered",
                ] {
                    let what = format!("{kind}, {asked:?}");
                    let fence = Fence(Gate::new());
                    let gate = &fence.0;
                    let token = CancellationToken::new();
                    let at = Instant::now() + Duration::from_millis(150);
                    let deadline = (asked == Asked::Deadline).then_some(at);
                    let call = || {
                        let call = pool.call().chunk_size(1).cancel_on(&token);
                        let call = call.grace_period(LONG);
                        match asked {
                            Asked::Limit => call.timeout(Duration::from_millis(50)),
                            Asked::Token => call,
                            Asked::Deadline => call.deadline(at),
                        }
                    };
                    let all = || items(gate, count);
                    let (outcome, is_in_time) = std::thread::scope(|scope| {
                        let workers = pool.workers();
                        let end = (&token, deadline);
                        let ender = (asked != Asked::Limit).then(|| {
                            scope.spawn(move || end_when_running(gate, workers, end, false))
                        });
                        let outcome: Result<Vec<u32>, TaskError> = match kind {
                            "map" => call().map(until_told, all()),
                            "for_each" => call()
                                .for_each(unit_until_told, all())
                                .map(|()| (0..count).collect()),
                            "try_map" => call()
                                .try_map(try_until_told, all())
                                .map_err($crate::early_ends::of_task),
                            "map_outcomes" => {
                                call().map_outcomes(until_told, all()).into_iter().collect()
                            }
                            "submit" => {
                                let submit = |item| call().submit(until_told, item);
                                let tasks: Vec<_> = all().map(submit).collect();
                                tasks.into_iter().map(TaskFuture::result).collect()
                            }
                            "imap" => call().imap(until_told, all()).collect(),
                            _ => {
                                let outcomes = call().imap_unordered(until_told, all());
                                let mut outcomes: Vec<_> = outcomes.collect();
                                outcomes.sort_by_key(|(index, _)| *index);
                                outcomes.into_iter().map(|(_, outcome)| outcome).collect()
                            }
                        };
                        (outcome, ender.is_none_or(|ender| ender.join().unwrap()))
                    });
                    if is_in_time || outcome.is_ok() {
                        assert_eq!(outcome, Ok((0..count).collect()), "{what}");
                    }
                    // Who has been told is told nothing more, nor is who comes next.
                    let next = pool.call().grace_period(LONG).timeout(LONG);
                    let told = next.map(|_: u32| manyhands::should_stop(), 0..20);
                    assert_eq!(told, Ok(vec![false; 20]), "{what}");
                }
            }
            assert!(!manyhands::should_stop());
        }

        #[test]
        fn b92_what_has_not_begun_when_the_grace_period_begins_never_does() {
            use $crate::early_ends::{deadline_for, end_when_running, items, End};
            use $crate::grace::*;
            let _none = Leftovers::none();
            let pool = $make;
            for end in [End::Token, End::Deadline] {
                for (kind, chunk) in [("map", 1), ("map_outcomes", 1), ("map_outcomes", 4)] {
                    let what = format!("{kind}, {chunk}, {end:?}");
                    let fence = Fence(Gate::new());
                    let gate = &fence.0;
                    let token = CancellationToken::new();
                    let deadline = deadline_for(end);
                    let call = pool.call().chunk_size(chunk).cancel_on(&token);
                    let call = call.grace_period(LONG);
                    let call = match deadline {
                        Some(deadline) => call.deadline(deadline),
                        None => call,
                    };
                    std::thread::scope(|scope| {
                        let (workers, ended) = (pool.workers(), (&token, deadline));
                        scope.spawn(move || end_when_running(gate, workers, ended, false));
                        if kind == "map" {
                            let outcome = call.map(until_told, items(gate, 60));
                            assert!(end.is_outcome(&outcome), "{what}: {outcome:?}");
                            return;
                        }
                        let each = call.map_outcomes(until_told, items(gate, 60));
                        assert_eq!(each.len(), 60);
                        let ok = each.iter().filter(|outcome| outcome.is_ok()).count();
                        assert_eq!(ok, gate.waiting(), "{what}: {each:?}");
                        let is_it = |(n, outcome): (u32, &Result<u32, TaskError>)| {
                            *outcome == Ok(n) || end.is_outcome(outcome)
                        };
                        assert!((0..).zip(&each).all(is_it), "{what}: {each:?}");
                    });
                    assert!(gate.waiting() <= pool.workers(), "{what}");
                }
            }
            assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
        }

        #[test]
        fn b92_after_the_grace_period_there_is_no_result() {
            use $crate::early_ends::End;
            use $crate::grace::*;
            let _none = Leftovers::none();
            let pool = $make;
            let (limit, grace) = (Duration::from_millis(10), Duration::from_millis(20));
            // On threads and in turn it ends by itself.
            let late = |grace: Duration| {
                while !manyhands::should_stop() {
                    std::thread::sleep($crate::common::PAUSE);
                }
                std::thread::sleep(4 * grace);
                7
            };
            for kind in ["map", "map_outcomes", "submit", "imap"] {
                let call = || pool.call().timeout(limit).grace_period(grace);
                let outcome = match kind {
                    "map" => call().map(late, [grace]).map(|all| all[0]),
                    "map_outcomes" => call().map_outcomes(late, [grace]).remove(0),
                    "submit" => call().submit(late, grace).result(),
                    _ => call().imap(late, [grace]).next().unwrap(),
                };
                // The error has the limit, without the period.
                let is_it = |error: &TaskError| {
                    matches!(error, TaskError::TimedOut { limit: told, .. } if *told == limit)
                };
                assert!(outcome.as_ref().is_err_and(is_it), "{kind}: {outcome:?}");
                let call = || pool.call().deadline(Instant::now() + limit).grace_period(grace);
                let outcome = match kind {
                    "map" => call().map(late, [grace]).map(|all| all[0]),
                    "map_outcomes" => call().map_outcomes(late, [grace]).remove(0),
                    "submit" => call().submit(late, grace).result(),
                    _ => call().imap(late, [grace]).next().unwrap(),
                };
                assert!(End::Deadline.is_outcome(&outcome), "{kind}: {outcome:?}");
            }
            // A limit of zero lets nothing start, whatever comes after it.
            let call = pool.call().timeout(Duration::ZERO).grace_period(LONG);
            let outcome = call.submit(|n: u32| n, 1).result();
            assert_matches!(outcome, Err(TaskError::TimedOut { .. }));
        }

        #[test]
        fn b93_without_a_grace_period_a_task_is_never_told_to_stop() {
            use $crate::early_ends::End;
            let _none = Leftovers::none();
            let pool = $make;
            let far = Instant::now() + DEADLINE;
            let token = CancellationToken::new();
            let call = || pool.call().timeout(DEADLINE).deadline(far).cancel_on(&token);
            let ask = |_: u32| manyhands::should_stop();
            assert_eq!(call().map(ask, 0..50), Ok(vec![false; 50]));
            assert_eq!(call().submit(ask, 1).result(), Ok(false));
            assert_eq!(call().grace_period(DEADLINE).map(ask, 0..50), Ok(vec![false; 50]));
            // What it returns is thrown away, so it leaves a mark.
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let over = |gate: Gate| {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(20) {
                    if manyhands::should_stop() {
                        gate.mark("told");
                    }
                }
            };
            let limit = Duration::from_millis(1);
            let outcome = pool.call().timeout(limit).submit(over, gate.clone()).result();
            assert_matches!(outcome, Err(TaskError::TimedOut { .. }));
            let soon = Instant::now() + limit;
            let outcome = pool.call().deadline(soon).submit(over, gate.clone()).result();
            assert!(End::Deadline.is_outcome(&outcome), "{outcome:?}");
            assert_eq!(gate.waiting(), 0, "it is told");
            // Nor is one that takes longer than the limit of one before it, which had a period.
            let limited = || pool.call().timeout(limit).grace_period(DEADLINE);
            assert_eq!(limited().map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
            assert_eq!(limited().submit(|n: u32| n, 4).result(), Ok(4));
            let slow = |_: u32| {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(5) {}
                manyhands::should_stop()
            };
            assert_eq!(pool.map(slow, 0..8), Ok(vec![false; 8]));
            let tasks: Vec<_> = (0..4).map(|n| pool.submit(slow, n)).collect();
            for task in tasks {
                assert_eq!(task.result(), Ok(false));
            }
            assert!(!manyhands::should_stop());
        }
    };
}

/// What holds where a task can be killed.
macro_rules! mortal_graces {
    ($make:expr) => {
        #[test]
        fn b92_what_does_not_stop_is_killed_when_the_grace_period_has_passed() {
            use $crate::early_ends::{End, end_when_running, items};
            use $crate::grace::*;
            let _none = Leftovers::none();
            let pool = $make;
            let grace = Duration::from_millis(50);
            for asked in ALL {
                for kind in ["map", "map_outcomes", "submit", "imap", "dropped"] {
                    let what = format!("{kind}, {asked:?}");
                    let fence = Fence(Gate::new());
                    let gate = &fence.0;
                    let token = CancellationToken::new();
                    let at = Instant::now() + Duration::from_millis(150);
                    let deadline = (asked == Asked::Deadline).then_some(at);
                    let call = || {
                        let call = pool.call().chunk_size(1).cancel_on(&token);
                        let call = call.grace_period(grace);
                        match asked {
                            Asked::Limit => call.timeout(Duration::from_millis(50)),
                            Asked::Token => call,
                            Asked::Deadline => call.deadline(at),
                        }
                    };
                    let is_it = |error: &TaskError| match asked {
                        Asked::Limit => matches!(error, TaskError::TimedOut { .. }),
                        Asked::Token => End::Token.is(error),
                        Asked::Deadline => End::Deadline.is(error),
                    };
                    let check = |outcome: Result<u32, TaskError>| {
                        assert!(outcome.as_ref().is_err_and(is_it), "{what}: {outcome:?}");
                    };
                    std::thread::scope(|scope| {
                        let end = (&token, deadline);
                        if asked != Asked::Limit {
                            scope.spawn(move || end_when_running(gate, 2, end, false));
                        }
                        let all = || items(gate, 2);
                        match kind {
                            "map" => check(call().map(never_stops, all()).map(|_| 0)),
                            "map_outcomes" => {
                                let each = call().map_outcomes(never_stops, all());
                                each.into_iter().for_each(check);
                            }
                            "imap" => call().imap(never_stops, all()).for_each(check),
                            _ => {
                                let submit = |item| call().submit(never_stops, item);
                                let tasks: Vec<_> = all().map(submit).collect();
                                if kind == "submit" {
                                    for task in tasks {
                                        check(task.result());
                                    }
                                }
                            }
                        }
                    });
                    // The gate is closed: only a worker that is free runs this.
                    assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]), "{what}");
                }
            }
        }

        #[test]
        fn b93_what_a_call_that_has_failed_leaves_running_is_not_told() {
            use $crate::early_ends::items;
            let _none = Leftovers::none();
            let pool = $make;
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let one_fails = |(gate, n): $crate::early_ends::Item| {
                if n == 0 {
                    eventually("the other runs", || gate.waiting() == 1);
                    // Without the hook: another thread may print a backtrace when this is forked.
                    std::panic::resume_unwind(Box::new("it fails"));
                }
                gate.mark("1");
                gate.pass();
                if manyhands::should_stop() {
                    gate.mark("told");
                }
            };
            let call = pool.call().chunk_size(1).timeout(DEADLINE);
            let failed = call.map(one_fails, items(gate, 2));
            assert_matches!(failed, Err(TaskError::Panicked { .. }));
            gate.open();
            // The end of the pool waits for it.
            pool.close().unwrap();
            assert!(!gate.folder().join("told").exists(), "it is told");
        }

        #[test]
        fn b92_each_item_ends_in_its_own_way_and_deaths_are_told() {
            use $crate::early_ends::end_when_running;
            use $crate::grace::*;
            let _none = Leftovers::none();
            let pool = $make;
            for kinds in [
                [0, 1],
                [1, 2],
                [2, 0],
                [0, 2],
                [1, 0],
                [2, 1],
                [0, 3],
                [3, 3],
            ] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let token = CancellationToken::new();
                // The first digit of the number says what becomes of the item.
                let end = |(gate, n): $crate::early_ends::Item| {
                    until_told((gate.clone(), n));
                    match n / 100 {
                        0 => n,
                        1 => {
                            $crate::common::kill(std::process::id());
                            unreachable!("SIGKILL cannot be survived")
                        }
                        3 => $crate::common::exit_at_once(3),
                        _ => never_stops((gate, n)),
                    }
                };
                let numbers = kinds.map(|kind| 100 * kind);
                // Only what does not stop needs the end of the period.
                let grace = if kinds.contains(&2) {
                    Duration::from_millis(100)
                } else {
                    LONG
                };
                let each = std::thread::scope(|scope| {
                    let ended = (&token, None);
                    scope.spawn(move || end_when_running(gate, 2, ended, false));
                    let own = [0, 1].map(|n| (gate.clone(), numbers[n as usize] + n));
                    let call = pool.call().chunk_size(1).cancel_on(&token);
                    call.grace_period(grace).map_outcomes(end, own)
                });
                let what = format!("{kinds:?}: {each:?}");
                let is_cancelled = |outcome: &Result<u32, TaskError>| {
                    matches!(outcome, Err(TaskError::Cancelled { .. }))
                };
                let has_died = |outcome: &Result<u32, TaskError>| {
                    matches!(outcome, Err(TaskError::WorkerDied { .. }))
                };
                for (n, kind) in (0_u32..).zip(kinds) {
                    let outcome = &each[n as usize];
                    match kind {
                        0 => assert_eq!(*outcome, Ok(n), "{what}"),
                        // It may have been killed because of the end of the call.
                        1 => assert!(has_died(outcome) || is_cancelled(outcome), "{what}"),
                        3 => assert!(has_died(outcome), "{what}"),
                        _ => assert!(is_cancelled(outcome), "{what}"),
                    }
                }
                assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]), "{what}");
            }
        }
    };
}

macro_rules! threads_graces {
    ($make:expr) => {
        #[test]
        fn b93_a_cancelled_task_is_told_only_in_a_grace_period() {
            let _none = Leftovers::none();
            let pool = $make;
            for grace in [None, Some(DEADLINE)] {
                let token = CancellationToken::new();
                let own = token.clone();
                let ask = move |()| {
                    let before = manyhands::should_stop();
                    own.cancel();
                    (before, manyhands::should_stop())
                };
                let call = pool.call().cancel_on(&token);
                let call = match grace {
                    Some(grace) => call.grace_period(grace),
                    None => call,
                };
                // A task that cancels its own token has its result.
                let outcome = call.submit(ask, ()).result();
                assert_eq!(outcome, Ok((false, grace.is_some())), "{grace:?}");
            }
        }

        #[test]
        fn b92_handles_wait_for_a_thread_no_longer_than_the_grace_period() {
            use $crate::early_ends::{End, end_when_running, items};
            use $crate::grace::*;
            let pool = $make;
            for kind in ["submit", "imap"] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let token = CancellationToken::new();
                let call = || {
                    let call = pool.call().chunk_size(1).cancel_on(&token);
                    call.grace_period(Duration::from_millis(20))
                };
                std::thread::scope(|scope| {
                    let ended = (&token, None);
                    scope.spawn(move || end_when_running(gate, 2, ended, false));
                    if kind == "submit" {
                        let submit = |item| call().submit(never_stops, item);
                        let tasks: Vec<_> = items(gate, 2).map(submit).collect();
                        for outcome in tasks.into_iter().map(TaskFuture::result) {
                            assert!(End::Token.is_outcome(&outcome), "{outcome:?}");
                        }
                    } else {
                        let mut lazy = call().imap(never_stops, (0..2).map(|n| (gate.clone(), n)));
                        assert!(lazy.all(|outcome| End::Token.is_outcome(&outcome)));
                    }
                });
                gate.open();
                assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
            }
        }
    };
}
