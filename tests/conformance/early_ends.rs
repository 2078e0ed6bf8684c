//! Calls that end before their items have: by a token, and at a deadline.

use std::time::{Duration, Instant};

use manyhands::{CancellationToken, TaskError, TryError};

use crate::common::eventually;
use crate::gate::Gate;

/// What ends a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Token,
    Deadline,
}

impl End {
    /// Returns whether it is the error of what was ended by this.
    pub(crate) fn is(self, error: &TaskError) -> bool {
        match self {
            Self::Token => matches!(error, TaskError::Cancelled { .. }),
            Self::Deadline => matches!(error, TaskError::DeadlineExceeded { .. }),
        }
    }

    pub(crate) fn is_outcome<R>(self, outcome: &Result<R, TaskError>) -> bool {
        outcome.as_ref().is_err_and(|error| self.is(error))
    }
}

/// An item: where it leaves its mark, and its number.
pub(crate) type Item = (Gate, u32);

pub(crate) fn items(gate: &Gate, count: u32) -> impl ExactSizeIterator<Item = Item> + use<'_> {
    (0..count).map(|n| (gate.clone(), n))
}

/// Marks that it runs, and waits at the gate.
pub(crate) fn hold((gate, n): Item) -> u32 {
    gate.mark(&n.to_string());
    gate.pass();
    n
}

pub(crate) fn hold_with(gate: &Gate, n: u32) -> u32 {
    hold((gate.clone(), n))
}

pub(crate) fn hold_unit(item: Item) {
    hold(item);
}

#[allow(clippy::unnecessary_wraps, reason = "a function for `try_map`")]
pub(crate) fn try_hold(item: Item) -> Result<u32, String> {
    Ok(hold(item))
}

/// Returns the error of a call that did not end by an error of an item's own.
pub(crate) fn of_task(error: TryError<String>) -> TaskError {
    match error {
        TryError::Task(error) => error,
        error => panic!("{error}"),
    }
}

/// Does the same for the items from the tenth on.
pub(crate) fn hold_late((gate, n): Item) -> u32 {
    if n < 10 { n } else { hold((gate, n)) }
}

/// Returns the deadline of a call that `end` is to end. Items begin long before it, unless the
/// machine is so busy that they do not: a test holds then too, though it shows less. Tests wait for
/// many of these.
pub(crate) fn deadline_for(end: End) -> Option<Instant> {
    (end == End::Deadline).then(|| Instant::now() + Duration::from_millis(150))
}

/// Waits until `running` items are at the gate, and ends the call. If `opens`, opens the gate then.
/// Returns false if the deadline has ended the call before that: then fewer items have begun.
pub(crate) fn end_when_running(
    gate: &Gate,
    running: usize,
    end: (&CancellationToken, Option<Instant>),
    opens: bool,
) -> bool {
    end_when(|| gate.waiting() >= running, gate, end, opens)
}

/// Does the same when `is_due`.
pub(crate) fn end_when(
    is_due: impl Fn() -> bool,
    gate: &Gate,
    (token, deadline): (&CancellationToken, Option<Instant>),
    opens: bool,
) -> bool {
    let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    eventually("items run", || is_due() || is_late());
    let is_in_time = !is_late();
    match deadline {
        Some(_) => eventually("the deadline passes", is_late),
        None => token.cancel(),
    }
    if opens {
        gate.open();
    }
    is_in_time
}

/// Checks that as many items have begun as there are workers, or fewer if the end came before they
/// could.
#[track_caller]
pub(crate) fn assert_begun(gate: &Gate, workers: usize, is_in_time: bool, what: &str) {
    let begun = gate.waiting();
    assert!(begun <= workers, "{what}: {begun} have started");
    assert!(
        !is_in_time || begun == workers,
        "{what}: {begun} have started"
    );
}

macro_rules! early_ends {
    ($make:expr) => {
        #[test]
        fn b88_with_a_cancelled_token_or_a_past_deadline_nothing_starts() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let token = CancellationToken::new();
            token.cancel();
            for end in [End::Token, End::Deadline] {
                let call = || match end {
                    End::Token => pool.call().cancel_on(&token),
                    End::Deadline => pool.call().deadline(Instant::now()),
                };
                // The input is without end, and is not read.
                let endless = || (0..).map(|n| -> Item { panic!("item {n} is read") });
                let check = |error: TaskError| assert!(end.is(&error), "{end:?}: {error}");
                check(call().map(hold, endless()).unwrap_err());
                check(call().for_each(hold_unit, endless()).unwrap_err());
                check(
                    call()
                        .map_reduce(hold, |a, b| a + b, endless())
                        .unwrap_err(),
                );
                check(of_task(call().try_map(try_hold, endless()).unwrap_err()));
                let numbers = (0..).map(|n: u32| -> u32 { panic!("item {n} is read") });
                check(call().map_with(gate, hold_with, numbers).unwrap_err());
                let each = call().map_outcomes(hold, items(gate, 20));
                assert_eq!(each.len(), 20);
                assert!(
                    each.iter().all(|outcome| end.is_outcome(outcome)),
                    "{each:?}"
                );
                check(call().submit(hold, (gate.clone(), 0)).result().unwrap_err());
                let lazy: Vec<_> = call().imap(hold, endless()).collect();
                assert!(lazy.len() == 1 && end.is_outcome(&lazy[0]), "{lazy:?}");
                let lazy: Vec<_> = call().imap_unordered(hold, endless()).collect();
                assert!(lazy.len() == 1 && lazy[0].0 == 0, "{lazy:?}");
                assert!(end.is_outcome(&lazy[0].1), "{lazy:?}");
                assert_eq!(call().imap(hold, Vec::new()).count(), 0, "no item is left");
                assert_eq!(gate.waiting(), 0, "nothing has started");
            }
        }

        #[test]
        fn b89_a_call_ends_while_its_items_run_and_no_other_starts() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            // A thread comes to its end by itself: its gate is opened.
            let opens = ["serial", "threads"].contains(&pool.engine().kind());
            for end in [End::Token, End::Deadline] {
                for schedule in [Schedule::Dynamic(1), Schedule::Equal] {
                    for kind in [
                        "map",
                        "map_with",
                        "for_each",
                        "map_reduce",
                        "try_map",
                        "map_outcomes",
                    ] {
                        let what = format!("{kind}, {end:?}, {schedule:?}");
                        let fence = Fence(Gate::new());
                        let gate = &fence.0;
                        let token = CancellationToken::new();
                        let deadline = deadline_for(end);
                        let call = pool.call().schedule(schedule).cancel_on(&token);
                        let call = match deadline {
                            Some(deadline) => call.deadline(deadline),
                            None => call,
                        };
                        let all = || items(gate, 60);
                        let (error, is_in_time) = std::thread::scope(|scope| {
                            let workers = pool.workers();
                            let end = (&token, deadline);
                            let ender = move || end_when_running(gate, workers, end, opens);
                            let ender = scope.spawn(ender);
                            let error = match kind {
                                "map" => call.map(hold, all()).unwrap_err(),
                                "map_with" => call.map_with(gate, hold_with, 0..60).unwrap_err(),
                                "for_each" => call.for_each(hold_unit, all()).unwrap_err(),
                                "map_reduce" => {
                                    call.map_reduce(hold, |a, b| a + b, all()).unwrap_err()
                                }
                                "try_map" => of_task(call.try_map(try_hold, all()).unwrap_err()),
                                _ => {
                                    let each = call.map_outcomes(hold, all());
                                    assert_eq!(each.len(), 60);
                                    each.into_iter().rev().find_map(Result::err).unwrap()
                                }
                            };
                            (error, ender.join().unwrap())
                        });
                        assert!(end.is(&error), "{what}: {error}");
                        assert_begun(gate, pool.workers(), is_in_time, &what);
                    }
                }
            }
            assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
        }

        #[test]
        fn b89_what_has_ended_keeps_its_outcome() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            let opens = ["serial", "threads"].contains(&pool.engine().kind());
            for end in [End::Token, End::Deadline] {
                for chunk in [1, 5, 20] {
                    let fence = Fence(Gate::new());
                    let gate = &fence.0;
                    let token = CancellationToken::new();
                    let deadline = deadline_for(end);
                    let call = pool.call().chunk_size(chunk).cancel_on(&token);
                    let call = match deadline {
                        Some(deadline) => call.deadline(deadline),
                        None => call,
                    };
                    let (each, is_in_time) = std::thread::scope(|scope| {
                        let end = (&token, deadline);
                        // When each worker is at the gate, the first ten have ended.
                        let workers = pool.workers();
                        let ender = move || end_when_running(gate, workers, end, opens);
                        let ender = scope.spawn(ender);
                        let each = call.map_outcomes(hold_late, items(gate, 100));
                        (each, ender.join().unwrap())
                    });
                    let what = format!("{end:?}, {chunk}: {each:?}");
                    assert_eq!(each.len(), 100);
                    let has_outcome = |(n, outcome): (u32, &Result<u32, TaskError>)| {
                        *outcome == Ok(n) || end.is_outcome(outcome)
                    };
                    assert!((0..).zip(&each).all(has_outcome), "{what}");
                    if !is_in_time {
                        continue;
                    }
                    assert!((0..10).all(|n| each[n] == Ok(n as u32)), "{what}");
                    let ended = each
                        .iter()
                        .filter(|outcome| end.is_outcome(outcome))
                        .count();
                    // On threads, what ran when the token was cancelled has its result.
                    let ran = if opens && end == End::Token {
                        pool.workers()
                    } else {
                        0
                    };
                    assert!((90 - ran..=90).contains(&ended), "{ended}, {what}");
                }
            }
        }

        #[test]
        fn b88_one_token_ends_many_calls_and_none_that_does_not_carry_it() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            let [token, other] = [CancellationToken::new(), CancellationToken::new()];
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let opens = ["serial", "threads"].contains(&pool.engine().kind());
            std::thread::scope(|scope| {
                let call = |first: u32| {
                    let call = pool.call().cancel_on(&token).cancel_on(&other);
                    let items = (first..first + 20).map(|n| (gate.clone(), n));
                    call.map(hold, items.collect::<Vec<_>>())
                };
                let calls = [scope.spawn(move || call(0)), scope.spawn(move || call(100))];
                end_when_running(gate, pool.workers(), (&other, None), opens);
                for call in calls {
                    assert_matches!(call.join().unwrap(), Err(TaskError::Cancelled { .. }));
                }
            });
            assert!(!token.is_cancelled() && other.is_cancelled());
            assert_eq!(
                pool.call().cancel_on(&token).map(|n: u32| n, 0..4),
                Ok(vec![0, 1, 2, 3])
            );
            let far = Instant::now() + DEADLINE;
            let call = pool.call().cancel_on(&token).deadline(far);
            assert_eq!(call.submit(|n: u32| n, 7).result(), Ok(7));
            let call = pool.call().cancel_on(&token).deadline(far).chunk_size(3);
            let all: Vec<_> = call.imap(|n: u32| n, 0..10).collect();
            assert_eq!(all, (0..10).map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn b88_the_input_and_the_progress_may_end_their_call() {
            let _none = Leftovers::none();
            let pool = $make;
            let token = CancellationToken::new();
            let input = (0..).inspect(|&n| {
                if n == 1_000 {
                    token.cancel();
                }
                assert!(n <= 1_000, "the input is not read any further");
            });
            let outcome = pool.call().cancel_on(&token).map(|n: u32| n, input);
            assert_matches!(outcome, Err(TaskError::Cancelled { .. }));
            let token = CancellationToken::new();
            let call = pool.call().chunk_size(1).cancel_on(&token);
            let call = call.on_progress(|_| token.cancel());
            let outcome = call.map(|n: u32| n, 0..10_000);
            assert_matches!(outcome, Err(TaskError::Cancelled { .. }));
        }

        #[test]
        fn b91_a_lazy_call_that_ends_gives_one_error_for_the_rest_of_its_input() {
            let _none = Leftovers::none();
            let pool = $make;
            for chunk in [1, 4] {
                let token = CancellationToken::new();
                let call = pool.call().chunk_size(chunk).cancel_on(&token);
                let mut all = call.imap(|n: u32| n, 0..);
                for n in 0..10 {
                    assert_eq!(all.next(), Some(Ok(n)));
                }
                token.cancel();
                let rest: Vec<_> = all.collect();
                // What had ended keeps its result.
                let has_ended = |outcome: &&Result<u32, _>| outcome.is_ok();
                let ended: Vec<_> = rest.iter().take_while(has_ended).collect();
                assert!(
                    ended
                        .iter()
                        .zip(10..)
                        .all(|(outcome, n)| **outcome == Ok(n))
                );
                assert!(rest.len() > ended.len());
                let left = &rest[ended.len()..];
                assert!(
                    left.iter()
                        .all(|outcome| *outcome == Err(cancelled()) || outcome.is_ok())
                );
                assert_eq!(left.last(), Some(&Err(cancelled())));

                let token = CancellationToken::new();
                let call = pool.call().chunk_size(chunk).cancel_on(&token);
                let mut all = call.imap_unordered(|n: u32| n, 0..);
                let mut seen: Vec<_> = all.by_ref().take(10).map(|(index, _)| index).collect();
                token.cancel();
                let rest: Vec<_> = all.collect();
                seen.extend(rest.iter().map(|(index, _)| *index));
                seen.sort_unstable();
                let count = seen.len();
                assert!(seen.into_iter().eq(0..count), "each has one outcome");
                assert!(rest.iter().any(|(index, outcome)| {
                    *index == count - 1 && *outcome == Err(cancelled())
                }));
            }
        }

        #[test]
        fn b90_what_comes_after_the_deadline_is_no_result() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            let late = |(gate, limit): (Gate, Duration)| {
                gate.mark("runs");
                // Longer than the deadline, if the process lives as long.
                std::thread::sleep(2 * limit);
                7
            };
            let limit = Duration::from_millis(100);
            for kind in ["map", "map_outcomes", "submit", "imap"] {
                let fence = Fence(Gate::new());
                let item = (fence.0.clone(), limit);
                let call = pool.call().deadline(Instant::now() + limit);
                let outcome = match kind {
                    "map" => call.map(late, [item]).map(|all| all[0]),
                    "map_outcomes" => call.map_outcomes(late, [item]).remove(0),
                    "submit" => call.submit(late, item).result(),
                    _ => call.imap(late, [item]).next().unwrap(),
                };
                assert!(End::Deadline.is_outcome(&outcome), "{kind}: {outcome:?}");
                // On a busy machine it may not have begun in time.
                assert!(fence.0.waiting() <= 1);
            }
        }
    };
}

macro_rules! mortal_early_ends {
    ($make:expr) => {
        #[test]
        fn b89_tasks_and_lazy_calls_are_killed_and_the_workers_are_free() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            for end in [End::Token, End::Deadline] {
                for kind in [
                    "submit",
                    "dropped",
                    "on_done",
                    "imap",
                    "imap_unordered",
                    "map",
                    "map_reduce",
                    "map_outcomes",
                ] {
                    let what = format!("{kind}, {end:?}");
                    let fence = Fence(Gate::new());
                    let gate = &fence.0;
                    let token = CancellationToken::new();
                    let deadline = deadline_for(end);
                    let call = || {
                        let call = pool.call().chunk_size(4).cancel_on(&token);
                        match deadline {
                            Some(deadline) => call.deadline(deadline),
                            None => call,
                        }
                    };
                    let is_in_time = std::thread::scope(|scope| {
                        let ended = (&token, deadline);
                        let ender = scope.spawn(move || end_when_running(gate, 2, ended, false));
                        let tasks = || [0, 1].map(|n| call().submit(hold, (gate.clone(), n)));
                        match kind {
                            "submit" => {
                                for task in tasks() {
                                    let outcome = task.result();
                                    assert!(end.is_outcome(&outcome), "{what}: {outcome:?}");
                                }
                            }
                            "dropped" => drop(tasks()),
                            "on_done" => {
                                let (send, receive) = std::sync::mpsc::channel();
                                let tell = |task: TaskFuture<u32>| {
                                    let send = send.clone();
                                    task.on_done(move |outcome| {
                                        let error = outcome.copied().map_err(Clone::clone);
                                        send.send(error).unwrap();
                                    });
                                };
                                for task in tasks() {
                                    tell(task);
                                }
                                for _ in 0..2 {
                                    let outcome = receive.recv_timeout(DEADLINE).unwrap();
                                    assert!(end.is_outcome(&outcome), "{what}: {outcome:?}");
                                }
                            }
                            "map" => {
                                let outcome = call().map(hold, items(gate, 60));
                                assert!(end.is_outcome(&outcome), "{what}: {outcome:?}");
                            }
                            "map_reduce" => {
                                let call = call();
                                let outcome = call.map_reduce(hold, |a, b| a + b, items(gate, 60));
                                assert!(end.is_outcome(&outcome), "{what}: {outcome:?}");
                            }
                            "map_outcomes" => {
                                let each = call().map_outcomes(hold, items(gate, 60));
                                let is_it = |outcome| end.is_outcome(outcome);
                                assert!(each.iter().all(is_it), "{what}: {each:?}");
                            }
                            "imap" => {
                                let all: Vec<_> = call().imap(hold, items(gate, 200)).collect();
                                assert!(all.len() < 200, "{what}: no more is read");
                                let is_it = |outcome| end.is_outcome(outcome);
                                assert!(all.iter().all(is_it), "{what}: {all:?}");
                            }
                            _ => {
                                let call = call().imap_unordered(hold, items(gate, 200));
                                let all: Vec<_> = call.collect();
                                assert!(all.len() < 200, "{what}: no more is read");
                                let is_it = |(_, outcome): &(_, _)| end.is_outcome(outcome);
                                assert!(all.iter().all(is_it), "{what}: {all:?}");
                            }
                        }
                        ender.join().unwrap()
                    });
                    // The gate is closed: only a worker that is free runs this.
                    let free = pool.map(|n: u32| n, 0..4);
                    assert_eq!(free, Ok(vec![0, 1, 2, 3]), "{what}");
                    assert_begun(gate, 2, is_in_time, &what);
                }
            }
        }

        #[test]
        fn b88_a_caller_that_waits_for_a_free_worker_hears_of_the_end() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let busy = [0, 1].map(|n| pool.submit(hold, (gate.clone(), n)));
            eventually("both run", || gate.waiting() == 2);
            let token = CancellationToken::new();
            std::thread::scope(|scope| {
                let call = || pool.call().cancel_on(&token);
                let task = scope.spawn(move || call().submit(hold, (gate.clone(), 2)).result());
                let soon = Instant::now() + Duration::from_millis(50);
                let late = pool.call().deadline(soon).submit(hold, (gate.clone(), 3));
                assert_matches!(late.result(), Err(TaskError::DeadlineExceeded { .. }));
                token.cancel();
                assert_matches!(task.join().unwrap(), Err(TaskError::Cancelled { .. }));
            });
            assert_eq!(gate.waiting(), 2);
            gate.open();
            assert_eq!(busy.map(TaskFuture::result), [Ok(0), Ok(1)]);
        }
    };
}

macro_rules! queued_early_ends {
    ($make:expr) => {
        #[test]
        fn b88_what_is_queued_ends_though_all_workers_are_busy_with_something_else() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let pool = $make;
            for end in [End::Token, End::Deadline] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let busy = [0, 1].map(|n| pool.submit(hold, (gate.clone(), n)));
                eventually("both run", || gate.waiting() == 2);
                let token = CancellationToken::new();
                let deadline = Instant::now() + Duration::from_millis(200);
                let deadline = (end == End::Deadline).then_some(deadline);
                let call = || {
                    let call = pool.call().chunk_size(2).cancel_on(&token);
                    match deadline {
                        Some(deadline) => call.deadline(deadline),
                        None => call,
                    }
                };
                let tasks: Vec<_> = (2..8)
                    .map(|n| call().submit(hold, (gate.clone(), n)))
                    .collect();
                let mut lazy = call().imap(hold, items(gate, 60));
                if end == End::Token {
                    assert!(lazy.next_timeout(Duration::from_millis(1)).is_err());
                }
                std::thread::scope(|scope| {
                    let map = scope.spawn(|| call().map(hold, items(gate, 60)));
                    let outcomes = scope.spawn(|| call().map_outcomes(hold, items(gate, 60)));
                    if end == End::Token {
                        token.cancel();
                    }
                    let outcome = map.join().unwrap();
                    assert!(end.is_outcome(&outcome), "{outcome:?}");
                    let each = outcomes.join().unwrap();
                    assert_eq!(each.len(), 60);
                    assert!(
                        each.iter().all(|outcome| end.is_outcome(outcome)),
                        "{each:?}"
                    );
                });
                for task in tasks {
                    let outcome = task.result();
                    assert!(end.is_outcome(&outcome), "{outcome:?}");
                }
                assert!(lazy.all(|outcome| end.is_outcome(&outcome)));
                assert_eq!(gate.waiting(), 2, "nothing else has started");
                gate.open();
                assert_eq!(busy.map(TaskFuture::result), [Ok(0), Ok(1)]);
            }
        }
    };
}

/// What holds where a task shares memory with its caller, and cannot be stopped.
macro_rules! sharing_early_ends {
    ($make:expr) => {
        #[test]
        fn b89_an_item_may_cancel_its_own_call_and_has_its_result() {
            let pool = $make;
            let token = CancellationToken::new();
            let find = |n: u32| {
                if n == 700 {
                    token.cancel();
                }
                n
            };
            let each = pool
                .call()
                .cancel_on(&token)
                .map_outcomes(find, 0..1_000_000);
            assert_eq!(each[700], Ok(700));
            assert_matches!(each[999_999], Err(TaskError::Cancelled { .. }));
            for chunk in [1, 64] {
                let token = CancellationToken::new();
                let own = token.clone();
                let find = move |n: u32| {
                    if n == 700 {
                        own.cancel();
                    }
                    n
                };
                let call = pool.call().chunk_size(chunk).cancel_on(&token);
                let all: Vec<_> = call.imap_unordered(find.clone(), 0..).collect();
                assert!(all.contains(&(700, Ok(700))), "{chunk}");
                let token = CancellationToken::new();
                let own = token.clone();
                let cancel = move |()| {
                    own.cancel();
                    7
                };
                let task = pool.call().cancel_on(&token).submit(cancel, ());
                assert_eq!(task.result(), Ok(7));
                assert!(token.is_cancelled());
            }
        }
    };
}

macro_rules! threads_early_ends {
    ($make:expr) => {
        #[test]
        fn b89_handles_do_not_wait_for_a_thread_that_cannot_be_stopped() {
            use $crate::early_ends::*;
            let pool = $make;
            for end in [End::Token, End::Deadline] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let token = CancellationToken::new();
                let deadline = deadline_for(end);
                let call = || {
                    let call = pool.call().chunk_size(20).cancel_on(&token);
                    match deadline {
                        Some(deadline) => call.deadline(deadline),
                        None => call,
                    }
                };
                // One worker runs the task, the other one a chunk, of which ten items end.
                let task = call().submit(hold, (gate.clone(), 100));
                let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
                eventually("the task runs", || gate.waiting() == 1 || is_late());
                let mut lazy = call().imap(hold_late, (0..40).map(|n| (gate.clone(), n)));
                let is_in_time = std::thread::scope(|scope| {
                    let ended = (&token, deadline);
                    let ender = scope.spawn(move || end_when_running(gate, 2, ended, false));
                    let first: Vec<_> = lazy.by_ref().take(10).collect();
                    let is_in_time = ender.join().unwrap();
                    if is_in_time {
                        assert_eq!(first, (0..10).map(Ok).collect::<Vec<_>>());
                    }
                    is_in_time
                });
                let outcome = task.result();
                assert!(end.is_outcome(&outcome), "{outcome:?}");
                assert!(lazy.all(|outcome| end.is_outcome(&outcome)));
                gate.open();
                assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
                // No other item of the chunk has started.
                assert_begun(gate, 2, is_in_time, "the chunk");
            }
        }
    };
}
