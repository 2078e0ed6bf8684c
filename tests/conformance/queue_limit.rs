//! A bound on the submitted tasks that wait for a worker.

macro_rules! queue_limits {
    ($builder:expr) => {
        #[test]
        fn b97_what_is_too_much_is_refused_until_there_is_room() {
            use $crate::early_ends::hold;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $builder.queue_limit(3, WhenFull::Refuse).build().unwrap();
            let submit = |n: u32| pool.submit(hold, (gate.clone(), n));
            let mut tasks: Vec<_> = (0..5).map(submit).collect();
            eventually("both workers are at work", || gate.waiting() == 2);
            for n in 5..8 {
                let task = submit(n);
                assert!(task.is_done());
                let error = task.result().unwrap_err();
                assert_matches!(error.as_pool(), Some(PoolError::QueueFull { limit: 3, .. }));
                assert!(error.to_string().contains("queue is full"), "{error}");
            }
            // A cancelled task makes room for one.
            assert!(tasks.pop().unwrap().cancel());
            tasks.push(submit(8));
            assert!(submit(9).is_done());
            gate.open();
            let results: Vec<_> = tasks.into_iter().map(TaskFuture::result).collect();
            assert_eq!(results, [0, 1, 2, 3, 8].map(Ok));
            assert!(
                !gate.folder().join("5").exists(),
                "what was refused has not started"
            );
            // Other calls do not count.
            assert_eq!(pool.map(|n: u32| n, 0..100), Ok((0..100).collect()));
            let lazy: Vec<_> = pool.imap(|n: u32| n, 0..100).collect();
            assert_eq!(lazy, (0..100).map(Ok).collect::<Vec<_>>());
            for n in 0..1_000 {
                assert_eq!(
                    pool.submit(|n: u32| n, n).result(),
                    Ok(n),
                    "each makes room again"
                );
            }
            let panicked = pool.submit(|n: u32| -> u32 { panic!("{n}") }, 1);
            assert!(panicked.result().is_err());
            let tasks: Vec<_> = (0..5).map(|n| pool.submit(|n: u32| n, n)).collect();
            let results: Vec<_> = tasks.into_iter().map(TaskFuture::result).collect();
            assert_eq!(results, [0, 1, 2, 3, 4].map(Ok));
        }

        #[test]
        fn b97_submit_waits_until_there_is_room() {
            use $crate::early_ends::hold;
            let _none = Leftovers::none();
            for limit in [0, 1, 4] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let pool = &$builder.queue_limit(limit, WhenFull::Wait).build().unwrap();
                let given = &AtomicUsize::new(0);
                let results = std::thread::scope(|scope| {
                    let submit = move |n: u32| {
                        let task = pool.submit(hold, (gate.clone(), n));
                        given.fetch_add(1, Ordering::Relaxed);
                        task
                    };
                    let all = scope.spawn(move || (0..30).map(submit).collect::<Vec<_>>());
                    let count = || given.load(Ordering::Relaxed);
                    eventually("as many are given as may", || count() == 2 + limit);
                    eventually("two of them run", || gate.waiting() == 2);
                    assert_eq!(count(), 2 + limit);
                    gate.open();
                    all.join().unwrap()
                });
                let results: Vec<_> = results.into_iter().map(TaskFuture::result).collect();
                assert_eq!(results, (0..30).map(Ok).collect::<Vec<_>>());
            }
        }

        #[test]
        fn b97_a_caller_that_waits_for_room_hears_of_every_end() {
            use $crate::early_ends::*;
            let _none = Leftovers::none();
            let fence = Fence(Gate::new());
            let gate = &fence.0;
            let pool = $builder.queue_limit(1, WhenFull::Wait).build().unwrap();
            let tasks = [0, 1, 2].map(|n| pool.submit(hold, (gate.clone(), n)));
            let soon = Instant::now() + Duration::from_millis(50);
            let late = pool.call().deadline(soon).submit(hold, (gate.clone(), 3));
            assert_matches!(late.result(), Err(TaskError::DeadlineExceeded { .. }));
            let token = CancellationToken::new();
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| {
                    let call = pool.call().cancel_on(&token);
                    call.submit(hold, (gate.clone(), 4)).result()
                });
                eventually("two run", || gate.waiting() == 2);
                token.cancel();
                assert_matches!(waits.join().unwrap(), Err(TaskError::Cancelled { .. }));
                // The end of the pool makes room, and the task is refused.
                let waits = scope.spawn(|| pool.submit(hold, (gate.clone(), 5)).result());
                let ends = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
                eventually("the pool is closed", || {
                    pool.submit(|n: u32| n, 1).result() == Err(PoolError::Closed.into())
                });
                // The pool is closed before what is queued is cancelled.
                eventually("what is queued is cancelled", || tasks[2].is_done());
                gate.open();
                ends.join().unwrap().unwrap();
                let outcome = waits.join().unwrap();
                assert!(is_cancelled_or_closed(&outcome.unwrap_err()));
            });
            let results = tasks.map(TaskFuture::result);
            assert_eq!(results[..2], [Ok(0), Ok(1)]);
            assert_eq!(results[2], Err(cancelled()));
        }
    };
}
