//! Statistics and timelines, and `map_reduce` with what a function takes along.

use super::*;
use std::time::Instant;

/// Panics with item 3.
pub(super) fn fails_at_3(x: u32) -> u32 {
    assert!(x != 3, "on purpose");
    x
}

/// Takes at least this long, in milliseconds.
pub(super) fn takes(milliseconds: u64) -> u64 {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(milliseconds) {
        std::hint::spin_loop();
    }
    milliseconds
}

macro_rules! accounts {
    ($make:expr, $runs_here:expr) => {
        #[test]
        fn b128_statistics_count_tasks_and_failures() {
            use $crate::accounts::{fails_at_3, takes};
            let _none = Leftovers::none();
            let pool = $make;
            let total = || pool.stats().total();
            assert_eq!((total().tasks, total().failures.total()), (0, 0));
            assert_eq!(pool.map(|x: u32| x, 0..100).unwrap().len(), 100);
            assert_eq!(total().tasks, 100);
            let each = pool.map_outcomes(fails_at_3, 0..10);
            assert_eq!(each.iter().filter(|outcome| outcome.is_err()).count(), 1);
            assert_eq!((total().tasks, total().failures.panicked), (110, 1));
            assert_eq!(
                pool.imap(fails_at_3, 0..10).filter(Result::is_err).count(),
                1
            );
            assert_eq!((total().tasks, total().failures.panicked), (120, 2));
            pool.submit(fails_at_3, 1).result().unwrap();
            pool.submit(fails_at_3, 3).result().unwrap_err();
            assert_eq!((total().tasks, total().failures.panicked), (122, 3));
            pool.broadcast(|x: u32| x, 1).unwrap();
            let tasks = 122 + pool.workers() as u64;
            assert_eq!(total().tasks, tasks);
            let late = pool
                .call()
                .timeout(Duration::from_millis(1))
                .submit(takes, 60);
            assert_matches!(late.result(), Err(TaskError::TimedOut { .. }));
            let failures = total().failures;
            assert_eq!((failures.timed_out, failures.total()), (1, 4));
            let stats = pool.stats();
            assert_eq!(stats.total().tasks, tasks + 1);
            assert_eq!(
                (&*stats.name, stats.workers.len()),
                (pool.name(), pool.workers())
            );
            pool.close().unwrap();
            assert_eq!(pool.stats().total().tasks, tasks + 1, "they stay");
            assert!(pool.stats().to_string().contains("1 timed out"));
        }

        #[test]
        fn b128_what_ends_early_is_counted_once() {
            use std::sync::atomic::{AtomicBool, Ordering};

            use $crate::early_ends::*;
            let _none = Leftovers::none();
            for end in [End::Token, End::Deadline] {
                for kind in ["submit", "map_outcomes", "imap"] {
                    let pool = $make;
                    let engine = pool.engine().kind();
                    let opens = ["serial", "threads"].contains(&engine);
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
                    // More than can run, where they can wait.
                    let waits = ["threads", "processes"].contains(&engine);
                    let count = match kind {
                        "submit" if !waits => pool.workers() as u32,
                        _ => 20,
                    };
                    // What is submitted after the end counts nowhere. What does not wait begins at
                    // once.
                    let are_given = &AtomicBool::new(kind != "submit" || !waits);
                    let (outcomes, is_in_time): (Vec<_>, _) = std::thread::scope(|scope| {
                        let (workers, ended) = (pool.workers(), (&token, deadline));
                        // A caller that has given all sleeps, at one look after the other.
                        let caller = nix::unistd::gettid();
                        let looks = std::cell::Cell::new(0);
                        let has_given_all = move || {
                            let sleeps =
                                kind != "map_outcomes" || !waits || $crate::ends::sleeps(caller);
                            looks.set(if sleeps { looks.get() + 1 } else { 0 });
                            looks.get() > 4
                        };
                        let is_due = move || {
                            are_given.load(Ordering::SeqCst)
                                && gate.waiting() >= workers
                                && has_given_all()
                        };
                        let ender = scope.spawn(move || end_when(is_due, gate, ended, opens));
                        let all = || items(gate, count);
                        let outcomes = match kind {
                            "submit" => {
                                let submit = |item| call().submit(hold, item);
                                let tasks: Vec<_> = all().map(submit).collect();
                                are_given.store(true, Ordering::SeqCst);
                                tasks.into_iter().map(TaskFuture::result).collect()
                            }
                            "map_outcomes" => call().map_outcomes(hold, all()),
                            _ => call().imap(hold, all()).collect(),
                        };
                        (outcomes, ender.join().unwrap())
                    });
                    let ok = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
                    // What was stopped on a thread is counted when the thread has ended it.
                    pool.close().unwrap();
                    let (stats, count) = (pool.stats(), u64::from(count));
                    let (all, failures) = (stats.total(), stats.total().failures);
                    let what = format!("{kind}, {end:?}, {engine}, {ok} of {count}: {stats:?}");
                    assert_eq!(all.tasks, ok + failures.total(), "{what}");
                    let ended = match end {
                        End::Token => failures.cancelled,
                        End::Deadline => failures.timed_out,
                    };
                    assert_eq!(failures.total(), ended, "{what}");
                    // A deadline may pass before all are submitted.
                    if kind == "imap" || !is_in_time {
                        assert!(all.tasks + stats.cancelled <= count, "{what}");
                    } else {
                        assert_eq!(all.tasks + stats.cancelled, count, "{what}");
                    }
                    if !opens && is_in_time {
                        assert_eq!((ended, ok), (pool.workers() as u64, 0), "{what}");
                    }
                }
            }
        }

        #[test]
        fn b128_a_worker_is_busy_as_long_as_it_works() {
            use $crate::accounts::takes;
            let _none = Leftovers::none();
            let pool = $make;
            // A worker that has just been started has been busy with that.
            pool.broadcast(|x: u64| x, 1).unwrap();
            let before = pool.stats().total().busy_time;
            let start = Instant::now();
            pool.submit(takes, 50).result().unwrap();
            let took = start.elapsed();
            let since = |before| pool.stats().total().busy_time.saturating_sub(before);
            let busy = since(before);
            // The serial engine counts by the system's clock tick.
            assert!(busy >= Duration::from_millis(40), "{busy:?}");
            let share = pool.stats().total().utilization();
            assert!(share > 0.0 && share <= 1.0, "{share}");
            // All that is beyond the task is work that the pool itself has.
            let most = took * pool.workers() as u32;
            assert!(busy <= most, "{busy:?} of {took:?}");
            // Workers that have nothing to do are not busy.
            let before = pool.stats().total().busy_time;
            takes(400);
            // A worker may find out late that it has had nothing to do, so the time may shrink.
            let busy = since(before);
            assert!(busy < Duration::from_millis(200), "{busy:?}");
        }

        #[test]
        fn b129_the_timeline_has_what_ran_with_its_times_and_its_process() {
            let _none = Leftovers::none();
            let start = Instant::now();
            let pool = $make;
            let pid = |_: u32| std::process::id();
            let chunked = pool.call().chunk_size(7);
            let mut pids = chunked.map(pid, 0..100).unwrap();
            pids.extend(pool.imap(pid, 0..10).map(Result::unwrap));
            pids.push(pool.submit(pid, 1).result().unwrap());
            pids.extend(pool.broadcast(pid, 1).unwrap());
            let timeline = pool.timeline();
            assert_eq!((&*timeline.name, timeline.dropped), (pool.name(), 0));
            let items: usize = timeline.events.iter().map(|event| event.items).sum();
            assert_eq!(items, 111 + pool.workers());
            for event in &timeline.events {
                assert!(
                    event.queued <= event.started
                        && event.started <= event.ended
                        && event.ended <= start.elapsed(),
                    "{event:?}"
                );
                assert!(event.completed && event.worker < pool.workers());
                assert!(pids.contains(&event.pid), "{event:?}");
                assert_eq!(event.pid == std::process::id(), $runs_here);
            }
            // What ran on one worker did not overlap.
            for worker in 0..pool.workers() {
                let own = timeline
                    .events
                    .iter()
                    .filter(|event| event.worker == worker);
                let own: Vec<_> = own.collect();
                let is_after =
                    |pair: &[&manyhands::engine::TimelineEvent]| pair[0].ended <= pair[1].started;
                assert!(own.windows(2).all(is_after), "{own:?}");
            }
            let mut trace = Vec::new();
            timeline.write_trace(&mut trace).unwrap();
            assert!(trace.starts_with(b"{\"traceEvents\":["));
        }
    };
}

/// Statistics of engines whose tasks wait in a queue.
macro_rules! queued_accounts {
    ($make:expr) => {
        #[test]
        fn b128_tasks_that_were_cancelled_or_waited_are_counted() {
            use $crate::accounts::takes;
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Gate| gate.pass_counted();
            let workers = 0..pool.workers();
            let running: Vec<_> = workers.map(|_| pool.submit(pass, gate.clone())).collect();
            eventually("all workers are at the gate", || {
                gate.waiting() == pool.workers()
            });
            let waiting = pool.submit(takes, 0);
            let cancelled: Vec<_> = (0..5).map(|_| pool.submit(takes, 0)).collect();
            assert!(cancelled.iter().all(|task| task.cancel()));
            assert_eq!(pool.stats().cancelled, 5);
            // The coarse clock has gone on meanwhile.
            takes(30);
            gate.open();
            waiting.result().unwrap();
            assert!(running.into_iter().all(|task| task.result().is_ok()));
            let stats = pool.stats();
            assert_eq!(stats.total().tasks, pool.workers() as u64 + 1);
            let waited = stats.total().queue_wait;
            assert!(waited >= Duration::from_millis(15), "{waited:?}");
            assert_eq!((stats.cancelled, stats.total().failures.total()), (5, 0));
        }
    };
}

/// `map_reduce` with functions that take something along.
macro_rules! reduces {
    ($make:expr) => {
        #[test]
        fn b130_map_reduce_takes_what_closure_binds() {
            let _none = Leftovers::none();
            let pool = $make;
            let table: Vec<String> = (0..10).map(|n| format!("<{n}>")).collect();
            let name = closure!([table] |n: usize| table[n % table.len()].clone());
            let join = |one: String, other: String| one + &other;
            // The order is kept, whatever the chunks.
            let all = pool.call().chunk_size(3).map_reduce(name.clone(), join, 0..25_usize);
            let expected: String = (0..25).map(|n| format!("<{}>", n % 10)).collect();
            assert_eq!(all, Ok(Some(expected)));
            assert_eq!(pool.map_reduce(name, join, 0..0_usize), Ok(None));
            // A panic belongs to its item, and what comes later makes no difference.
            let bad = 17_usize;
            let fails = closure!([bad] |n: usize| {
                assert!(n != *bad, "item {n} is bad");
                n
            });
            let failed = pool.call().chunk_size(5).map_reduce(fails, |x, y| x + y, 0..100_usize);
            match failed {
                Err(TaskError::Panicked { index, message, .. }) => {
                    assert_eq!((index.get(), &*message), (Some(17), "item 17 is bad"));
                }
                other => panic!("{other:?}"),
            }
        }
    };
}
