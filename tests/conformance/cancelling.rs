//! Handles and calls that are dropped before their end, and waits with a limit.

use super::Gate;

/// Marks that it runs, and waits at the gate.
pub(crate) fn hold((gate, name): (Gate, String)) -> String {
    gate.mark(&name);
    gate.pass()
}

macro_rules! cancelling {
    ($make:expr) => {
        #[test]
        fn b94_a_result_that_is_waited_for_comes_though_a_drop_would_kill() {
            let _none = Leftovers::none();
            let pool = $make;
            let task = pool.submit(|n: u32| n + 1, 1).kill_on_drop(true);
            assert_eq!(task.result(), Ok(2));
            let task = pool.call().kill_on_drop(true).submit(|n: u32| n + 1, 2);
            assert_eq!(task.result(), Ok(3));
            let call = pool.call().kill_on_drop(true).chunk_size(2);
            let outcomes: Vec<_> = call.imap(|n: u32| n + 1, 0..9).collect();
            assert_eq!(outcomes, (1..10).map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn b95_a_pool_whose_tasks_end_in_time_is_closed_as_by_close() {
            let _none = Leftovers::none();
            for timeout in [DEADLINE, Duration::MAX] {
                let pool = $make;
                let tasks: Vec<_> = (0..20u32).map(|n| pool.submit(|n| n + 1, n)).collect();
                assert_eq!(pool.close_timeout(timeout), Ok(()));
                let results: Vec<_> = tasks.into_iter().map(TaskFuture::result).collect();
                assert_eq!(results, (1..21).map(Ok).collect::<Vec<_>>());
                let late = pool.submit(|n: u32| n, 1).result();
                assert_eq!(late, Err(PoolError::Closed.into()));
                assert_eq!(pool.close_timeout(Duration::ZERO), Ok(()));
            }
        }

        #[test]
        fn b95_a_callback_that_does_not_return_in_time_is_told() {
            let _none = Leftovers::none();
            let pool = $make;
            let (begun, has_begun) = std::sync::mpsc::channel();
            let (open, gate) = std::sync::mpsc::channel::<()>();
            // The task of an engine that runs it in `submit` has ended before the callback is set,
            // which then runs on the thread that sets it.
            let setter = std::thread::spawn({
                let task = pool.submit(|n: u32| n, 1);
                move || {
                    task.on_done(move |_| {
                        begun.send(()).unwrap();
                        let _ = gate.recv_timeout(DEADLINE);
                    });
                    task
                }
            });
            has_begun.recv_timeout(DEADLINE).unwrap();
            let late = pool.close_timeout(Duration::from_millis(20));
            assert_matches!(late, Err(PoolError::CloseTimedOut { workers: 0, .. }));
            drop(open);
            assert_eq!(setter.join().unwrap().result(), Ok(1));
            assert_eq!(pool.close(), Ok(()));
        }

        #[test]
        fn b96_the_next_result_of_a_lazy_call_is_waited_for_as_long_as_said() {
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The caller itself runs the items.
                let mut all = pool.imap(|n: u32| n, 0..1);
                assert_eq!(all.next_timeout(Duration::ZERO), Ok(Some(Ok(0))));
                assert_eq!(all.next_timeout(Duration::ZERO), Ok(None));
                return;
            }
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let wait = |gate: Option<Gate>| gate.map_or_else(String::new, |gate| gate.pass());
            let items = || [None, Some(gate.clone())];
            let (first, second) = (Ok(String::new()), Ok("passed".to_owned()));
            let moment = Duration::from_millis(20);
            {
                let mut all = pool.call().chunk_size(1).imap(wait, items());
                assert_eq!(all.next_timeout(DEADLINE), Ok(Some(first.clone())));
                assert!(all.next_timeout(Duration::ZERO).is_err());
                assert!(all.next_timeout(moment).is_err());
                gate.open();
                assert_eq!(all.next_timeout(Duration::MAX), Ok(Some(second.clone())));
                assert_eq!(all.next_timeout(moment), Ok(None));
            }
            gate.close();
            let mut all = pool.call().chunk_size(1).imap_unordered(wait, items());
            assert_eq!(all.next_timeout(DEADLINE), Ok(Some((0, first))));
            assert!(all.next_timeout(moment).is_err());
            gate.open();
            assert_eq!(all.next_timeout(DEADLINE), Ok(Some((1, second))));
            assert_eq!(all.next_timeout(moment), Ok(None));
        }
    };
}

macro_rules! queued_cancelling {
    ($make:expr) => {
        #[test]
        fn b95_tasks_that_wait_when_the_time_is_over_are_cancelled() {
            use $crate::cancelling::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $make;
            let task = |n: u32| pool.submit(hold, (gate.clone(), n.to_string()));
            let tasks: Vec<_> = (0..8).map(task).collect();
            eventually("all workers are at work", || gate.waiting() == pool.workers());
            let timeout = Duration::from_millis(20);
            let late = pool.close_timeout(timeout);
            assert_matches!(
                late,
                Err(PoolError::CloseTimedOut { timeout: t, workers: 2, .. }) if t == timeout
            );
            gate.open();
            let outcomes: Vec<_> = tasks.into_iter().map(TaskFuture::result).collect();
            let is_cancelled = |outcome: &Result<String, TaskError>| {
                matches!(outcome, Err(TaskError::Cancelled { .. }))
            };
            let cancelled = outcomes.iter().filter(|outcome| is_cancelled(outcome));
            // Threads cannot be stopped: what they run has its result.
            let ends = if pool.engine().kind() == "threads" { 2 } else { 0 };
            assert_eq!(cancelled.count(), 8 - ends, "{outcomes:?}");
            assert_eq!(gate.waiting(), 2);
            assert_eq!(pool.close(), Ok(()));
        }

        #[test]
        fn b95_a_call_of_another_thread_ends_with_the_time_too() {
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let pool = $make;
            let items: Vec<_> = (0..200).map(|_| fence.0.clone()).collect();
            let outcome = std::thread::scope(|scope| {
                let call = scope.spawn(|| {
                    let call = pool.call().chunk_size(1);
                    call.map(|gate: Gate| gate.pass_counted(), items)
                });
                eventually("all workers are at work", || fence.0.waiting() == 2);
                let late = pool.close_timeout(Duration::from_millis(20));
                assert_matches!(late, Err(PoolError::CloseTimedOut { .. }));
                fence.0.open();
                call.join().unwrap()
            });
            assert_matches!(outcome, Err(TaskError::Cancelled { .. }));
        }
    };
}

macro_rules! mortal_cancelling {
    ($make:expr) => {
        #[test]
        fn b94_a_dropped_handle_kills_its_task_if_asked_to() {
            use $crate::cancelling::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $make;
            for round in 0..3 {
                let name = |n: u32| (gate.clone(), format!("{round} {n}"));
                let tasks = [
                    pool.submit(hold, name(0)).kill_on_drop(true),
                    pool.call().kill_on_drop(true).submit(hold, name(1)),
                ];
                eventually("both run", || gate.waiting() == 2 * (round + 1));
                drop(tasks);
                // Both workers are free, though the gate is closed.
                let next = |n: u32| pool.submit(|n: u32| n, n);
                let results: Vec<_> = (0..4).map(next).map(TaskFuture::result).collect();
                assert_eq!(results, [Ok(0), Ok(1), Ok(2), Ok(3)]);
            }
            // Without it, the task goes on.
            drop(pool.submit(hold, (gate.clone(), "goes on".to_owned())));
            let end = pool.submit(|gate: Gate| gate.pass(), gate.clone());
            eventually("it runs", || gate.waiting() == 7);
            gate.open();
            assert_eq!(end.result(), Ok("passed".to_owned()));
        }

        #[test]
        fn b94_an_await_that_is_dropped_kills_its_task_if_asked_to() {
            use $crate::cancelling::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $make;
            for n in 0..2usize {
                let task = pool.submit(hold, (gate.clone(), n.to_string()));
                let mut task = Box::pin(async { task.kill_on_drop(true).await });
                let waker = std::task::Waker::noop();
                let mut context = std::task::Context::from_waker(waker);
                assert!(Future::poll(task.as_mut(), &mut context).is_pending());
                eventually("it runs", || gate.waiting() == n + 1);
                drop(task);
            }
            assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
        }

        #[test]
        fn b94_a_dropped_lazy_call_kills_its_items_if_asked_to() {
            use $crate::cancelling::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $make;
            let items = |round: u32| {
                let name = move |n: u32| format!("{round} {n}");
                (0..20).map(move |n| (gate.clone(), name(n)))
            };
            // The consumer waits for a result that does not come, and gives up.
            {
                let call = pool.call().kill_on_drop(true).chunk_size(1);
                let mut all = call.imap(hold, items(0));
                assert!(all.next_timeout(Duration::from_millis(1)).is_err());
                eventually("both run", || gate.waiting() == 2);
            }
            {
                let call = pool.call().kill_on_drop(true).chunk_size(3);
                let mut all = call.imap_unordered(hold, items(1));
                assert!(all.next_timeout(Duration::from_millis(1)).is_err());
                eventually("both run", || gate.waiting() == 4);
            }
            assert_eq!(pool.map(|n: u32| n, 0..4), Ok(vec![0, 1, 2, 3]));
            assert_eq!(gate.waiting(), 4, "what had not started has not");
        }

        #[test]
        fn b95_what_runs_when_the_time_is_over_is_killed() {
            use $crate::cancelling::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $make;
            let task = |n: u32| pool.submit(hold, (gate.clone(), n.to_string()));
            let tasks = [task(0), task(1)];
            eventually("both run", || gate.waiting() == 2);
            let late = pool.close_timeout(Duration::from_millis(20));
            assert_matches!(late, Err(PoolError::CloseTimedOut { workers: 2, .. }));
            for task in tasks {
                assert_matches!(task.result(), Err(TaskError::Cancelled { .. }));
            }
            assert_eq!(pool.close_timeout(Duration::ZERO), Ok(()));
        }

        #[test]
        fn b95_a_call_that_goes_on_when_the_time_is_over_ends() {
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let pool = $make;
            let items: Vec<_> = (0..6).map(|_| fence.0.clone()).collect();
            let outcome = std::thread::scope(|scope| {
                let call = scope.spawn(|| pool.map(|gate: Gate| gate.pass_counted(), items));
                eventually("both run", || fence.0.waiting() == 2);
                let late = pool.close_timeout(Duration::from_millis(20));
                assert_matches!(late, Err(PoolError::CloseTimedOut { .. }));
                call.join().unwrap()
            });
            assert_matches!(outcome, Err(TaskError::Cancelled { .. }));
        }
    };
}
