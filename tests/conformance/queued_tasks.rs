//! Handles of tasks that have not started.

macro_rules! queued_futures {
    ($make:expr) => {
        /// Makes all workers busy at the gate.
        fn occupy<E, F>(pool: &Pool<E>, pass: F, gate: &Gate) -> Vec<TaskFuture<usize>>
        where
            F: Fn(Gate) -> usize + Copy + Send + 'static,
            E: Run<F, Gate, usize>,
        {
            let workers = 0..pool.workers();
            let tasks = workers.map(|_| pool.submit(pass, gate.clone())).collect();
            eventually("all workers are at the gate", || {
                gate.waiting() == pool.workers()
            });
            tasks
        }

        #[test]
        fn b47_what_is_queued_can_be_cancelled_and_never_runs() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let mark = |gate: Gate| gate.mark("ran");
            let queued: Vec<_> = (0..10).map(|_| pool.submit(mark, gate.clone())).collect();
            assert!(
                running
                    .iter()
                    .all(|task| task.is_running() && !task.is_done())
            );
            assert!(!running[0].cancel());
            for task in queued {
                assert!(!task.is_running());
                assert!(task.cancel());
                assert!(task.is_done() && !task.cancel());
                assert_eq!(task.result(), Err(cancelled()));
            }
            gate.open();
            assert!(running.into_iter().all(|task| task.result().is_ok()));
            assert_eq!(pool.submit(|x: u32| x, 1).result(), Ok(1));
            assert!(!gate.folder().join("ran").exists());
        }

        #[test]
        fn b120_of_several_calls_of_cancel_exactly_one_is_true() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            for round in 0..200_usize {
                let task = pool.submit(|x: usize| x, round);
                let start = std::sync::Barrier::new(3);
                let cancel = || {
                    start.wait();
                    usize::from(task.cancel())
                };
                let told: usize = std::thread::scope(|scope| {
                    let others = [(); 3].map(|()| scope.spawn(cancel));
                    others.into_iter().map(|other| other.join().unwrap()).sum()
                });
                assert_eq!(told, 1, "round {round}");
                assert!(!task.cancel() && !task.kill());
                assert_eq!(task.result(), Err(cancelled()));
            }
            gate.open();
            assert!(running.into_iter().all(|task| task.result().is_ok()));
        }

        #[test]
        fn b48_callbacks_hear_of_a_cancellation() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let ear = Ear::new();
            let queued = pool.submit(|x: u32| x, 1);
            queued.on_done(ear.listen("cancelled"));
            assert!(ear.heard().is_empty());
            assert!(queued.cancel());
            assert_eq!(queued.result(), Err(cancelled()));
            assert_eq!(ear.heard(), [("cancelled", Err(cancelled()))]);
            gate.open();
            drop(running);
        }

        #[test]
        fn b49_wait_tells_apart_what_has_ended() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Gate| gate.pass_counted();
            let fail = |_: Gate| -> usize { panic!("on purpose") };
            let done = pool.submit(pass, {
                gate.open();
                gate.clone()
            });
            eventually("the first has ended", || done.is_done());
            gate.close();
            let failed = pool.submit(fail, gate.clone());
            eventually("the second has ended", || failed.is_done());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let cancelled = pool.submit(pass, gate.clone());
            assert!(cancelled.cancel());
            let queued = pool.submit(pass, gate.clone());
            let tasks = || running.into_iter().chain([done, queued, failed, cancelled]);
            let soon = Some(Duration::from_millis(20));
            let workers = pool.workers();
            let (done, pending) = wait(tasks(), ReturnWhen::AllCompleted, soon);
            assert_eq!((done.len(), pending.len()), (3, workers + 1));
            let (done, rest) = wait(done, ReturnWhen::FirstError, None);
            assert_eq!((done.len(), rest.len()), (3, 0));
            let outcomes: Vec<_> = done.into_iter().map(|task| task.result()).collect();
            assert!(
                matches!(
                    outcomes[..],
                    [
                        Ok(1),
                        Err(TaskError::Panicked { .. }),
                        Err(TaskError::Cancelled { .. })
                    ]
                ),
                "{outcomes:?}"
            );
            let (done, pending) = wait(pending, ReturnWhen::FirstCompleted, soon);
            assert_eq!((done.len(), pending.len()), (0, workers + 1));
            gate.open();
            let (done, pending) = wait(pending, ReturnWhen::FirstCompleted, None);
            assert!(!done.is_empty());
            let (done, pending) = wait(
                done.into_iter().chain(pending),
                ReturnWhen::AllCompleted,
                None,
            );
            assert_eq!((done.len(), pending.len()), (workers + 1, 0));
        }

        #[test]
        fn b49_the_first_error_ends_the_wait_also_when_a_callback_has_taken_it() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Gate| gate.pass_counted();
            let fail = |_: Gate| -> usize { panic!("on purpose") };
            for has_callback in [false, true] {
                let blocked = pool.submit(pass, gate.clone());
                let failing = pool.submit(fail, gate.clone());
                let ear = Ear::new();
                if has_callback {
                    failing.on_done(ear.listen("failed"));
                    eventually("the callback has run", || !ear.heard().is_empty());
                }
                std::thread::scope(|scope| {
                    let waiter = scope.spawn(|| {
                        let tasks = [blocked, failing];
                        wait(tasks, ReturnWhen::FirstError, None)
                    });
                    let opens = Opens(&gate);
                    eventually("the wait has ended", || waiter.is_finished());
                    let (done, pending) = waiter.join().unwrap();
                    assert_eq!((done.len(), pending.len()), (1, 1));
                    drop(opens);
                    assert!(pending.into_iter().all(|task| task.result().is_ok()));
                });
                gate.close();
            }
        }

        #[test]
        fn b50_as_completed_with_a_timeout_counts_what_is_missing() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Gate| gate.pass_counted();
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let queued = pool.submit(pass, gate.clone());
            let ended = pool.submit(pass, gate.clone());
            assert!(ended.cancel());
            let tasks = running.into_iter().chain([queued, ended]);
            let unfinished = pool.workers() + 1;
            let mut completed = as_completed(tasks);
            let first = completed.next_timeout(DEADLINE).unwrap().unwrap();
            assert_eq!(first.result(), Err(cancelled()), "first what has ended");
            let late = completed.next_timeout(Duration::from_millis(20));
            assert!(late.is_err());
            assert_eq!(completed.len(), unfinished);
            gate.open();
        }

        #[test]
        fn b51_tasks_that_end_at_the_same_instant_wake_everybody() {
            let _none = Leftovers::none();
            for _ in 0..10 {
                let pool = $make;
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
                let tasks: Vec<_> = (0..1_000u32).map(|n| pool.submit(|x: u32| x, n)).collect();
                let board = as_completed(tasks);
                let (canceller, outcomes) = std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends: the scope
                    // waits for its threads.
                    let _fence = Fence(gate.clone());
                    // All that is queued ends in one call.
                    let canceller = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
                    let outcomes: Vec<_> = board.map(|task| task.result()).collect();
                    gate.open();
                    (canceller.join().unwrap(), outcomes)
                });
                assert_eq!(canceller, Ok(()));
                assert_eq!(outcomes, vec![Err(cancelled()); 1_000]);
                assert!(running.into_iter().all(|task| task.result().is_ok()));
            }
        }

        #[test]
        fn b52_awaiting_takes_no_threads_and_dropping_cancels() {
            use $crate::runtime::{all, block_on};
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let threads = common::threads().len();
            let mark = |gate: Gate| gate.mark("ran");
            let tasks: Vec<_> = (0..100).map(|_| pool.submit(mark, gate.clone())).collect();
            let mut awaited = Box::pin(all(tasks));
            let once = std::future::poll_fn(|context| {
                std::task::Poll::Ready(awaited.as_mut().poll(context).is_pending())
            });
            assert!(block_on(once));
            // On processes one thread moves all of them on.
            assert!(common::threads().len() <= threads + 1);
            drop(awaited);
            // One that was never awaited goes on.
            drop(pool.submit(|gate: Gate| gate.mark("kept"), gate.clone()));
            gate.open();
            assert!(running.into_iter().all(|task| task.result().is_ok()));
            pool.close().unwrap();
            assert!(!gate.folder().join("ran").exists());
            assert!(gate.folder().join("kept").exists());
        }

        #[test]
        fn b52_a_task_that_loses_a_race_is_cancelled() {
            use $crate::runtime::tokio;
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let queued = pool.submit(|gate: Gate| gate.mark("ran"), gate.clone());
            let late = tokio()
                .block_on(async { tokio::time::timeout(Duration::from_millis(10), queued).await });
            assert!(late.is_err());
            gate.open();
            assert!(running.into_iter().all(|task| task.result().is_ok()));
            pool.close().unwrap();
            assert!(!gate.folder().join("ran").exists());
        }
    };
}
