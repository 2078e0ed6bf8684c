//! Handles whose callbacks run, whose time is over, whose pool is closed or another process's.

use super::*;

/// How often it was woken.
#[derive(Default)]
pub(crate) struct Woken(pub(crate) AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Panics when it is woken.
pub(crate) struct Grumpy;

impl std::task::Wake for Grumpy {
    fn wake(self: std::sync::Arc<Self>) {
        panic!("on purpose");
    }
}

macro_rules! handles {
    ($make:expr) => {
        #[test]
        fn b48_a_task_is_done_when_its_callbacks_have_returned() {
            use $crate::callbacks::heard;
            use $crate::handles::Woken;
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The callback runs inside of `on_done`.
                return;
            }
            let fence = Fence(Gate::new());
            let mut task = pool.submit(|gate: Gate| gate.pass_counted(), fence.0.clone());
            let ((begin, begun), (go, may_go)) =
                (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
            task.on_done(move |outcome| {
                begin.send(outcome.copied().ok()).unwrap();
                may_go.recv_timeout(2 * DEADLINE).unwrap();
            });
            let woken = Arc::new(Woken::default());
            let waker = std::task::Waker::from(woken.clone());
            let poll = |task: &mut TaskFuture<usize>| {
                let mut context = std::task::Context::from_waker(&waker);
                std::pin::Pin::new(task).poll(&mut context)
            };
            assert!(poll(&mut task).is_pending());
            fence.0.open();
            assert_eq!(heard(&begun), Some(1));
            assert!(!task.is_done() && !task.is_running() && !task.cancel());
            assert!(task.result_timeout(Duration::ZERO).is_err());
            assert!(task.result_timeout(Duration::from_millis(20)).is_err());
            assert!(poll(&mut task).is_pending());
            let before = woken.0.load(Ordering::SeqCst);
            go.send(()).unwrap();
            eventually("the one who awaits it is woken", || {
                woken.0.load(Ordering::SeqCst) > before
            });
            assert!(task.is_done());
            assert_eq!(poll(&mut task), std::task::Poll::Ready(Ok(1)));
            assert_eq!(task.result(), Err(taken()));
        }

        #[test]
        fn b48_a_callback_that_comes_when_the_outcome_was_taken_is_told_so() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            for has_other in [false, true] {
                let ear = Ear::new();
                let mut task = pool.submit(|n: u32| n, 1);
                if has_other {
                    task.on_done(ear.listen("in time"));
                }
                assert_eq!(task.result_timeout(DEADLINE), Ok(Ok(1)));
                task.on_done(ear.listen("late"));
                let late = ("late", Err(taken()));
                let expected = if has_other {
                    vec![("in time", Ok(1)), late]
                } else {
                    vec![late]
                };
                assert_eq!(ear.heard(), expected);
            }
        }

        #[test]
        fn b46_b49_b50_a_time_beyond_the_clock_is_no_limit() {
            let _none = Leftovers::none();
            let pool = $make;
            let task = || pool.submit(|n: u32| n, 1);
            assert_eq!(task().result_timeout(Duration::MAX), Ok(Ok(1)));
            let (done, pending) = wait(
                [task(), task()],
                ReturnWhen::AllCompleted,
                Some(Duration::MAX),
            );
            assert_eq!((done.len(), pending.len()), (2, 0));
            let mut completed = as_completed([task(), task()]);
            for _ in 0..2 {
                assert!(completed.next_timeout(Duration::MAX).unwrap().is_some());
            }
        }

        #[test]
        fn b50_as_completed_counts_down_and_gives_back_the_rest() {
            let _none = Leftovers::none();
            let pool = $make;
            let tasks = || {
                (0..5u32)
                    .map(|n| pool.submit(|n: u32| n, n))
                    .collect::<Vec<_>>()
            };
            let check = |given: Vec<TaskFuture<u32>>, rest: Vec<TaskFuture<u32>>| {
                let given: Vec<_> = given
                    .into_iter()
                    .map(|task| task.result().unwrap())
                    .collect();
                let rest: Vec<_> = rest
                    .into_iter()
                    .map(|task| task.result().unwrap())
                    .collect();
                let expected: Vec<_> = (0..5).filter(|n| !given.contains(n)).collect();
                assert_eq!((given.len(), rest), (2, expected));
            };
            let mut completed = as_completed(tasks());
            let mut given = Vec::new();
            for left in [4, 3] {
                given.extend(completed.next());
                assert_eq!(completed.size_hint(), (left, Some(left)));
            }
            check(given, completed.into_rest());
            let mut completed = as_completed(tasks());
            let mut next = || completed.next_timeout(DEADLINE).unwrap().unwrap();
            let given = vec![next(), next()];
            check(given, completed.into_rest());
        }

        #[test]
        fn b49_a_task_that_was_refused_ends_a_wait_for_the_first_error() {
            let _none = Leftovers::none();
            let (pool, other) = ($make, Pool::threads(1).unwrap());
            pool.close().unwrap();
            let pass = |gate: Gate| gate.pass_counted();
            let fence = Fence(Gate::new());
            for has_callback in [false, true] {
                let held = other.submit(pass, fence.0.clone());
                let refused = pool.submit(pass, fence.0.clone());
                if has_callback {
                    // The callback takes the outcome.
                    refused.on_done(|_| {});
                }
                std::thread::scope(|scope| {
                    let opens = Opens(&fence.0);
                    let waiter =
                        scope.spawn(|| wait([held, refused], ReturnWhen::FirstError, None));
                    eventually("the wait has ended", || waiter.is_finished());
                    let (done, pending) = waiter.join().unwrap();
                    assert_eq!((done.len(), pending.len()), (1, 1));
                    drop(opens);
                    assert!(pending.into_iter().all(|task| task.result() == Ok(1)));
                });
                fence.0.close();
            }
        }

        #[test]
        fn b32_close_waits_for_a_callback_that_came_late() {
            use std::sync::atomic::AtomicBool;
            use std::sync::mpsc::channel;
            use $crate::callbacks::heard;
            use $crate::ends::comes_to_rest;
            let _none = Leftovers::none();
            let pool = $make;
            let task = Arc::new(pool.submit(|n: u32| n, 1));
            eventually("the task has ended", || task.is_done());
            // Both callbacks run on this thread. Afterwards it is in no callback.
            task.on_done(|_| {});
            task.on_done(|_| panic!("on purpose"));
            let ((begin, begun), (end, ended)) = (channel(), channel());
            let (closer, is_closed) = (nix::unistd::gettid(), Arc::new(AtomicBool::new(false)));
            let closed = is_closed.clone();
            let thread = std::thread::spawn(move || {
                task.on_done(move |_| {
                    begin.send(()).unwrap();
                    comes_to_rest(closer, || closed.load(Ordering::SeqCst));
                    end.send(()).unwrap();
                });
            });
            heard(&begun);
            let outcome = pool.close();
            let has_waited = ended.try_recv();
            is_closed.store(true, Ordering::SeqCst);
            assert_eq!((outcome, has_waited), (Ok(()), Ok(())));
            thread.join().unwrap();
        }

        #[test]
        fn a_forked_child_is_refused_all_that_its_parents_pool_and_handles_give() {
            use std::cell::RefCell;
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // A serial pool works in any process.
                return;
            }
            let fence = Fence(Gate::new());
            let pass = |gate: Gate| gate.pass_counted();
            let task = RefCell::new(Some(pool.submit(pass, fence.0.clone())));
            eventually("the task runs", || fence.0.waiting() == 1);
            let refusals = |_: u32| {
                let other = || TaskError::from(PoolError::OtherProcess);
                let mut wrong = Vec::new();
                let mut check = |what: &'static str, is_right: bool| {
                    if !is_right {
                        wrong.push(what.to_owned());
                    }
                };
                let id = |n: u32| n;
                check("map", pool.map(id, 0..3) == Err(other()));
                let each = vec![Err(other()); 3];
                check("map_outcomes", pool.map_outcomes(id, 0..3) == each);
                let with = pool.map_with(&1, |_: &u32, n: u32| n, 0..3);
                check("map_with", with == Err(other()));
                let sum = pool.map_reduce(id, |a, b| a + b, 0..3);
                check("map_reduce", sum == Err(other()));
                check("imap", pool.imap(id, 0..3).eq(each));
                check("submit", pool.submit(id, 1).result() == Err(other()));
                check("close", pool.close() == Err(PoolError::OtherProcess));
                for how in [Shutdown::CancelQueued, Shutdown::Kill] {
                    check(
                        "shutdown",
                        pool.shutdown(how) == Err(PoolError::OtherProcess),
                    );
                }
                // A copy, which the parent keeps.
                let task = task.borrow_mut().take().unwrap();
                check("done", task.is_done());
                check("running", !task.is_running());
                check("cancel", !task.cancel() && !task.kill());
                let own = Pool::threads(1).unwrap();
                let held = own.submit(|gate: Gate| gate.pass_counted(), fence.0.clone());
                // It counts as an error: the wait does not go on.
                let (done, pending) = wait([held, task], ReturnWhen::FirstError, None);
                check("wait", (done.len(), pending.len()) == (1, 1));
                let outcomes = done.into_iter().map(TaskFuture::result);
                check("result", outcomes.eq([Err(other())]));
                wrong
            };
            let wrong = forked().call().timeout(DEADLINE).map(refusals, 0..1);
            assert_eq!(wrong, Ok(vec![Vec::new()]));
            fence.0.open();
            assert!(task.into_inner().unwrap().result().is_ok());
            assert_eq!(pool.map(|n: u32| n, 0..3), Ok(vec![0, 1, 2]));
            assert_eq!(pool.close(), Ok(()));
        }
    };
}

/// Tasks that wait in a queue.
macro_rules! queued_handles {
    ($make:expr) => {
        #[test]
        fn b52_a_waker_that_panics_costs_no_other_its_wake_up() {
            use std::pin::Pin;
            use std::task::{Context, Waker};
            use $crate::handles::{Grumpy, Woken};
            let _none = Leftovers::none();
            let pool = $make;
            let fence = Fence(Gate::new());
            let running = occupy(&pool, |gate: Gate| gate.pass_counted(), &fence.0);
            let mut tasks: Vec<_> = (0..4u32).map(|n| pool.submit(|n: u32| n, n)).collect();
            let woken = std::sync::Arc::new(Woken::default());
            for (n, task) in tasks.iter_mut().enumerate() {
                let waker = if n % 2 == 0 {
                    Waker::from(std::sync::Arc::new(Grumpy))
                } else {
                    Waker::from(woken.clone())
                };
                let mut context = Context::from_waker(&waker);
                assert!(Pin::new(task).poll(&mut context).is_pending());
            }
            std::thread::scope(|scope| {
                let opens = Opens(&fence.0);
                let shutdown = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
                eventually("the others are woken", || {
                    woken.0.load(Ordering::SeqCst) == 2
                });
                drop(opens);
                assert_eq!(shutdown.join().unwrap(), Ok(()));
            });
            for task in tasks {
                assert_eq!(task.result(), Err(cancelled()));
            }
            assert!(running.into_iter().all(|task| task.result().is_ok()));
        }
    };
}
