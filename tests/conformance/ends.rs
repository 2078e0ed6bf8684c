//! Shutting down, and pools within pools.

use std::sync::Arc;

use super::*;

/// Whether a thread of this process waits for something. One that has ended does not.
pub(crate) fn sleeps(thread: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    // The state follows the name, which is in brackets.
    stat.is_ok_and(|stat| stat[stat.rfind(')').unwrap()..].starts_with(") S"))
}

/// Waits until a thread has slept for some time without a break, so that it waits for an event and
/// not for a lock on its way, or until `has_ended` says that it never will.
#[track_caller]
pub(crate) fn comes_to_rest(thread: nix::unistd::Pid, has_ended: impl Fn() -> bool) {
    let mut since = Instant::now();
    eventually("the thread comes to rest", || {
        if !sleeps(thread) {
            since = Instant::now();
        }
        has_ended() || since.elapsed() > Duration::from_millis(20)
    });
}

/// Uses pools of its own in all ways, in the middle of a task.
pub(crate) fn nested(n: u64) -> u64 {
    fn use_up<E>(pool: &Pool<E>, n: u64) -> u64
    where
        E: Run<fn(u64) -> u64, u64, u64> + RunReduce<fn(u64) -> u64, fn(u64, u64) -> u64, u64, u64>,
    {
        let f: fn(u64) -> u64 = |x| x + 1;
        let add: fn(u64, u64) -> u64 = |a, b| a + b;
        let mut sum: u64 = pool.map(f, 0..n).unwrap().into_iter().sum();
        sum += pool
            .map_outcomes(f, 0..n)
            .into_iter()
            .flatten()
            .sum::<u64>();
        sum += pool.imap(f, 0..n).flatten().sum::<u64>();
        sum += pool
            .imap_unordered(f, 0..n)
            .filter_map(|(_, x)| x.ok())
            .sum::<u64>();
        sum += pool.map_reduce(f, add, 0..n).unwrap().unwrap_or(0);
        let tasks = (0..n).map(|x| pool.submit(f, x));
        sum += as_completed(tasks)
            .filter_map(|task| task.result().ok())
            .sum::<u64>();
        let (done, pending) = wait(
            (0..n).map(|x| pool.submit(f, x)),
            ReturnWhen::AllCompleted,
            None,
        );
        assert!(pending.is_empty());
        sum + done
            .into_iter()
            .filter_map(|task| task.result().ok())
            .sum::<u64>()
    }
    let sums = [
        use_up(&Pool::serial(), n),
        use_up(&Pool::threads(2).unwrap(), n),
        use_up(&forked(), n),
    ];
    assert_eq!(sums, [7 * n * (n + 1) / 2; 3]);
    sums[0]
}

macro_rules! ends {
    ($make:expr) => {
        #[test]
        fn b32_in_a_call_of_another_pool_a_pool_is_closed_and_in_its_own_it_is_not() {
            let _none = Leftovers::none();
            let (pool, other, inner) = ($make, $make, $make);
            let id = |n: u32| n;
            let all = || Ok(vec![0, 1, 2]);
            let mut closed = Vec::new();
            let input = (0..3).inspect(|&n| {
                if n == 1 {
                    closed.push(other.close());
                    // In a call of its own, with one of another pool inside.
                    let nested = (0..3).inspect(|&n| {
                        if n == 1 {
                            closed.push(pool.close());
                            closed.push(pool.shutdown(Shutdown::CancelQueued));
                        }
                    });
                    assert_eq!(inner.map(id, nested), all());
                    closed.push(pool.close());
                }
            });
            if pool.engine().kind() == "serial" {
                // Each call runs in its caller, and closing waits for none.
                assert_eq!(pool.map(id, input), all());
                assert_eq!(closed, vec![Ok(()); 4]);
                return;
            }
            assert_eq!(pool.map(id, input), all());
            assert_eq!(closed.remove(0), Ok(()));
            let is_refused = |closed| matches!(closed, &Err(PoolError::System { .. }));
            assert!(closed.iter().all(is_refused), "{closed:?}");
            assert_eq!(closed.len(), 3);
            assert_eq!(pool.map(id, 0..3), all(), "it goes on");
            assert_eq!(pool.close(), Ok(()), "the call is over");
        }

        #[test]
        fn b35_tasks_have_pools_of_their_own() {
            use $crate::ends::nested;
            let _none = Leftovers::none();
            let pool = $make;
            let expected: Vec<_> = (0..4).map(|n| 7 * n * (n + 1) / 2).collect();
            assert_eq!(pool.call().chunk_size(1).map(nested, 0..4), Ok(expected));
            assert_eq!(pool.submit(nested, 3).result(), Ok(42));
        }

        #[test]
        fn b33_after_a_shutdown_results_stay_and_tasks_are_refused() {
            let _none = Leftovers::none();
            for how in [Shutdown::CancelQueued, Shutdown::Kill] {
                let pool = $make;
                let task = pool.submit(|x: u32| x, 7);
                eventually("the task has ended", || task.is_done());
                assert_eq!(pool.shutdown(how), Ok(()));
                assert_eq!(pool.shutdown(how), Ok(()), "twice is the same as once");
                assert_eq!(pool.close(), Ok(()));
                assert_eq!(task.result(), Ok(7));
                let closed = TaskError::from(PoolError::Closed);
                assert_eq!(pool.submit(|x: u32| x, 1).result(), Err(closed.clone()));
                assert_eq!(pool.map(|x: u32| x, 0..3), Err(closed));
            }
        }

        #[test]
        fn b41_many_threads_submit_wait_and_shut_down_at_once() {
            let _none = Leftovers::none();
            for round in 0..20 {
                let pool = $make;
                let start = std::sync::Barrier::new(4);
                std::thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| {
                            start.wait();
                            for n in 0..20u32 {
                                let outcome = pool.submit(|x: u32| x, n).result();
                                let is_refused =
                                    outcome.as_ref().is_err_and(is_cancelled_or_closed);
                                assert!(outcome == Ok(n) || is_refused, "{outcome:?}");
                                let call = pool.call().chunk_size(3);
                                for (index, outcome) in
                                    call.map_outcomes(|x: u32| x, 0..10).iter().enumerate()
                                {
                                    let is_refused =
                                        outcome.as_ref().is_err_and(is_cancelled_or_closed);
                                    assert!(
                                        *outcome == Ok(index as u32) || is_refused,
                                        "{outcome:?}"
                                    );
                                }
                            }
                        });
                    }
                    start.wait();
                    let how = [Shutdown::CancelQueued, Shutdown::Kill][round % 2];
                    assert_eq!(pool.shutdown(how), Ok(()));
                });
            }
        }
    };
}

/// Work that is left when the pool is shut down or closed.
macro_rules! queued_ends {
    ($make:expr) => {
        #[test]
        fn b32_close_waits_for_a_call_of_another_thread_that_reads_on() {
            use $crate::ends::comes_to_rest;
            let _none = Leftovers::none();
            let pool = std::sync::Arc::new($make);
            let (read_some, has_read_some) = std::sync::mpsc::channel();
            let (go, may_go) = std::sync::mpsc::channel();
            let (tell, told) = std::sync::mpsc::channel();
            let own = pool.clone();
            // Threads without a scope: a call that hangs must not hang the test.
            let caller = std::thread::spawn(move || {
                let input = (0..40_u64).inspect(|&x| {
                    if x == 20 {
                        read_some.send(()).unwrap();
                        may_go.recv_timeout(2 * DEADLINE).unwrap();
                    }
                });
                // Not all of the input is read before the first item runs.
                let input: Box<dyn Iterator<Item = u64>> = Box::new(input.filter(|_| true));
                let call = own.call().chunk_size(1);
                let _ = tell.send(call.map(|x: u64| x, input));
            });
            has_read_some.recv_timeout(DEADLINE).unwrap();
            let own = pool.clone();
            let (send, thread) = std::sync::mpsc::channel();
            let closer = std::thread::spawn(move || {
                send.send(nix::unistd::gettid()).unwrap();
                own.close()
            });
            let closed = Err(TaskError::from(PoolError::Closed));
            eventually("the pool takes no tasks", || {
                pool.submit(|x: u64| x, 1).result() == closed
            });
            comes_to_rest(thread.recv().unwrap(), || closer.is_finished());
            assert!(!closer.is_finished(), "close has not waited for the call");
            go.send(()).unwrap();
            let results = told.recv_timeout(DEADLINE).expect("the call hangs");
            assert_eq!(results, Ok((0..40).collect()));
            assert_eq!(closer.join().unwrap(), Ok(()));
            caller.join().unwrap();
        }

        #[test]
        fn b96_a_call_that_reads_on_when_its_pool_has_ended_ends_too() {
            let _none = Leftovers::none();
            for has_outcomes in [true, false] {
                let pool = std::sync::Arc::new($make);
                let (tell, told) = std::sync::mpsc::channel();
                let own = pool.clone();
                // A thread without a scope, as above.
                let caller = std::thread::spawn(move || {
                    let input = (0..40_u64).inspect(|&x| {
                        if x == 20 {
                            // On another thread: this one is in the call that is waited for.
                            let closing = || own.close_timeout(Duration::from_millis(1));
                            let closed = std::thread::scope(|scope| scope.spawn(closing).join());
                            assert!(closed.unwrap().is_err());
                        }
                    });
                    let input: Box<dyn Iterator<Item = u64>> = Box::new(input.filter(|_| true));
                    let call = own.call().chunk_size(1);
                    let outcomes = if has_outcomes {
                        call.map_outcomes(|x: u64| x, input)
                    } else {
                        vec![call.map(|x: u64| x, input).map(|_| 0)]
                    };
                    let _ = tell.send(outcomes);
                });
                let outcomes = told.recv_timeout(DEADLINE).expect("the call hangs");
                caller.join().unwrap();
                let is_told = |outcome: &Result<u64, TaskError>| {
                    outcome.as_ref().err().is_none_or(is_cancelled_or_closed)
                };
                assert!(outcomes.iter().all(is_told), "{outcomes:?}");
            }
        }

        #[test]
        fn b32_all_threads_that_close_a_pool_hear_of_the_end_of_its_call() {
            let _none = Leftovers::none();
            let pool = std::sync::Arc::new($make);
            let fence = Fence(Gate::new());
            let (own, gate) = (pool.clone(), fence.0.clone());
            // Threads without a scope: one that hangs must not hang the test.
            let call = std::thread::spawn(move || {
                let pass = |gate: Gate| gate.pass_counted();
                own.map(pass, [gate]).map(|counts| counts.len())
            });
            eventually("the item runs", || fence.0.waiting() == 1);
            let closers = [(); 3].map(|()| {
                let sleeper = std::sync::Arc::new(common::Sleeper::new());
                let (own, asleep) = (pool.clone(), sleeper.clone());
                let closer = std::thread::spawn(move || asleep.run(|| own.close()));
                sleeper.is_asleep();
                closer
            });
            fence.0.open();
            assert_eq!(call.join().unwrap(), Ok(1));
            for closer in closers {
                eventually("close returns", || closer.is_finished());
                assert_eq!(closer.join().unwrap(), Ok(()));
            }
        }

        #[test]
        fn b32_close_waits_for_a_reduction_up_to_its_last_step() {
            let _none = Leftovers::none();
            let pool = $make;
            let (closer, may_close) = (common::Sleeper::new(), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                let close = scope.spawn(|| {
                    eventually("items have ended", || may_close.load(Ordering::SeqCst) > 0);
                    closer.run(|| pool.close())
                });
                // The results of the chunks are not reduced yet.
                let call = pool.call().chunk_size(1).on_progress(|progress| {
                    if progress.done > 0 && may_close.swap(1, Ordering::SeqCst) == 0 {
                        closer.is_asleep();
                    }
                });
                let sum = call.map_reduce(|n: u32| n, |a, b| a + b, 1..=9);
                // Also when the progress was never told.
                may_close.store(1, Ordering::SeqCst);
                assert_eq!(sum, Ok(Some(45)));
                assert_eq!(close.join().unwrap(), Ok(()));
            });
        }

        #[test]
        fn b33_ten_thousand_queued_tasks_are_cancelled_and_the_running_ones_end() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &gate);
            let sleep = |_: u32| std::thread::sleep(Duration::from_secs(600));
            let queued: Vec<_> = (0..10_000).map(|n| pool.submit(sleep, n)).collect();
            std::thread::scope(|scope| {
                // Opens the gate for the tasks that wait, however this part ends: the scope waits
                // for its threads.
                let _fence = Fence(gate.clone());
                let shutdown = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
                for task in queued {
                    assert_eq!(task.result(), Err(cancelled()));
                }
                assert!(running.iter().all(|task| task.is_running()));
                gate.open();
                assert_eq!(shutdown.join().unwrap(), Ok(()));
            });
            assert!(running.into_iter().all(|task| task.result().is_ok()));
        }

        #[test]
        fn b33_calls_that_go_on_end_with_the_pool() {
            let _none = Leftovers::none();
            for lists in [false, true] {
                let pool = $make;
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends: the scope
                    // waits for its threads.
                    let _fence = Fence(gate.clone());
                    let call = scope.spawn(|| {
                        let items = std::iter::repeat_n(gate.clone(), 5_000);
                        let pass = |gate: Gate| gate.pass_counted();
                        let call = pool.call().chunk_size(10);
                        if lists {
                            call.map_outcomes(pass, items)
                        } else {
                            vec![call.map(pass, items).map(|results| results.len())]
                        }
                    });
                    eventually("all workers are at the gate", || {
                        gate.waiting() == pool.workers()
                    });
                    let shutdown = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
                    eventually("the pool is closed", || {
                        pool.submit(|x: u32| x, 1).result().is_err()
                    });
                    gate.open();
                    assert_eq!(shutdown.join().unwrap(), Ok(()));
                    let mut outcomes = call.join().unwrap();
                    assert_eq!(outcomes.len(), if lists { 5_000 } else { 1 });
                    if lists {
                        assert!(outcomes[0].is_ok(), "what ran has a result");
                        outcomes.retain(Result::is_err);
                    }
                    let all_cancelled = |outcome| outcome == &Err(cancelled());
                    assert!(outcomes.iter().all(all_cancelled), "{:?}", outcomes[0]);
                });
            }
        }
    };
}

/// Work that is stopped.
macro_rules! mortal_ends {
    ($make:expr) => {
        #[test]
        fn b33_a_shutdown_that_kills_waits_for_nobody() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Gate| gate.pass_counted();
            let tasks: Vec<_> = (0..pool.workers())
                .map(|_| pool.submit(pass, gate.clone()))
                .collect();
            eventually("all workers are at the gate", || {
                gate.waiting() == pool.workers()
            });
            std::thread::scope(|scope| {
                // Opens the gate for the tasks that wait, however this part ends: the scope waits
                // for its threads.
                let _fence = Fence(gate.clone());
                // One more than can run: on some engines it waits in `submit`.
                let (send, thread) = std::sync::mpsc::channel();
                let (pool, gate) = (&pool, &gate);
                let late = scope.spawn(move || {
                    send.send(nix::unistd::gettid()).unwrap();
                    pool.submit(pass, gate.clone()).result()
                });
                let thread = thread.recv().unwrap();
                eventually("the late one waits", || $crate::ends::sleeps(thread));
                let closer = scope.spawn(|| pool.close());
                assert_eq!(pool.shutdown(Shutdown::Kill), Ok(()));
                let late = late.join().unwrap();
                let is_refused = late.as_ref().is_err_and(is_cancelled_or_closed);
                assert!(is_refused, "{late:?}");
                assert_eq!(closer.join().unwrap(), Ok(()));
            });
            for task in tasks {
                assert_eq!(task.result(), Err(cancelled()));
            }
        }

        #[test]
        fn b33_calls_that_go_on_are_killed_with_the_pool() {
            let _none = Leftovers::none();
            for lists in [false, true] {
                let pool = $make;
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends: the scope
                    // waits for its threads.
                    let _fence = Fence(gate.clone());
                    let call = scope.spawn(|| {
                        let pass = |gate: Option<Gate>| gate.map_or(0, |gate| gate.pass_counted());
                        let items = std::iter::once(None);
                        let items = items.chain(std::iter::repeat_n(Some(gate.clone()), 50));
                        let call = pool.call().chunk_size(1).retries(3);
                        if lists {
                            call.map_outcomes(pass, items)
                        } else {
                            vec![call.map(pass, items).map(|results| results.len())]
                        }
                    });
                    eventually("all workers are at the gate", || {
                        gate.waiting() == pool.workers()
                    });
                    assert_eq!(pool.shutdown(Shutdown::Kill), Ok(()));
                    let outcomes = call.join().unwrap();
                    let first = usize::from(lists);
                    assert_eq!(outcomes.len(), 1 + 50 * first);
                    let all_cancelled = |outcome| outcome == &Err(cancelled());
                    assert!(outcomes[first..].iter().all(all_cancelled), "{outcomes:?}");
                });
            }
        }
    };
}

/// Only threads can be handed their own pool.
#[test]
fn b35_tasks_wait_for_tasks_of_their_own_pool() {
    let _none = Leftovers::none();
    for workers in [1, 2] {
        let pool = Arc::new(Pool::threads(workers).unwrap());
        let own = Arc::clone(&pool);
        let task = move |n: u64| {
            let pool = &*own;
            let mut sum: u64 = pool.map(|x: u64| x, 0..n).unwrap().into_iter().sum();
            sum += pool
                .map_outcomes(|x: u64| x, 0..n)
                .into_iter()
                .flatten()
                .sum::<u64>();
            sum += pool.imap(|x: u64| x, 0..n).flatten().sum::<u64>();
            let unordered = pool.imap_unordered(|x: u64| x, 0..n);
            sum += unordered.filter_map(|(_, x)| x.ok()).sum::<u64>();
            let reduced = pool.map_reduce(|x: u64| x, |a, b| a + b, 0..n);
            sum += reduced.unwrap().unwrap_or(0);
            let tasks = (0..n).map(|x| pool.submit(|x: u64| x, x));
            sum += as_completed(tasks)
                .filter_map(|task| task.result().ok())
                .sum::<u64>();
            let tasks = (0..n).map(|x| pool.submit(|x: u64| x, x));
            let (done, _) = wait(tasks, ReturnWhen::AllCompleted, None);
            sum += done
                .into_iter()
                .filter_map(|task| task.result().ok())
                .sum::<u64>();
            sum + pool.submit(move |x: u64| x, n).result().unwrap()
        };
        let tasks: Vec<_> = (0..20).map(|n| pool.submit(task.clone(), n)).collect();
        for (n, outcome) in (0..).zip(tasks) {
            assert_eq!(outcome.result(), Ok(7 * n * (n.max(1) - 1) / 2 + n));
        }
        drop(task);
        pool.close().unwrap();
    }
}

#[test]
fn b33_a_shutdown_from_inside_is_an_error() {
    let _none = Leftovers::none();
    let pool = Arc::new(Pool::threads(1).unwrap());
    let own = Arc::clone(&pool);
    let inside = pool.submit(move |()| own.shutdown(Shutdown::CancelQueued), ());
    let refused = inside.result().unwrap();
    assert!(
        matches!(refused, Err(PoolError::System { .. })),
        "{refused:?}"
    );
    assert_eq!(pool.submit(|x: u32| x, 1).result(), Ok(1));
    pool.close().unwrap();
}

/// As a program of its own: these pools stay until it ends.
#[test]
fn shared_pools_are_made_anew_when_they_are_closed_and_in_forked_children() {
    let name = "ends::shared_pools_are_made_anew_when_they_are_closed_and_in_forked_children";
    if !is_program() {
        let output = common::finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let closed = Pool::threads_global().unwrap();
    closed.close().unwrap();
    let threads = Pool::threads_global().unwrap();
    assert!(!std::ptr::eq(closed, threads));
    assert!(std::ptr::eq(threads, Pool::threads_global().unwrap()));
    let add = |n: u32| n + 1;
    assert_eq!(threads.map(add, 0..3), Ok(vec![1, 2, 3]));
    Pool::processes_global().unwrap().map(add, 0..3).unwrap();
    let both = |n: u32| {
        let by_threads = Pool::threads_global().unwrap().map(add, [n]);
        let by_processes = Pool::processes_global().unwrap().map(add, [n]);
        (by_threads, by_processes)
    };
    let in_children = forked().call().timeout(DEADLINE).map(both, 0..2);
    let expected = |n| (Ok(vec![n]), Ok(vec![n]));
    assert_eq!(in_children, Ok(vec![expected(1), expected(2)]));
}
