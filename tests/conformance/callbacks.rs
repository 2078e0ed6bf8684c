//! Callbacks that wait: for tasks, for other callbacks, for the end of their pool.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use super::*;

/// How a test's pool runs a task.
pub(crate) type Submit<E> = fn(&Pool<E>, u32) -> TaskFuture<u32>;

/// Something that comes from a callback, or fails the test.
#[track_caller]
pub(crate) fn heard<T>(from: &Receiver<T>) -> T {
    match from.recv_timeout(DEADLINE) {
        Ok(heard) => heard,
        Err(RecvTimeoutError::Timeout) => panic!("a callback hangs"),
        Err(RecvTimeoutError::Disconnected) => panic!("a callback has panicked"),
    }
}

/// Each callback waits for a message of the next task's callback, to this depth.
pub(crate) fn chain<E>(pool: &Arc<Pool<E>>, submit: Submit<E>, depth: u32, tell: Sender<u32>)
where
    E: Executor + Send + Sync + 'static,
{
    let task = submit(pool, depth);
    let pool = Arc::clone(pool);
    task.on_done(move |outcome| {
        let mut sum = *outcome.unwrap();
        if depth > 0 {
            let (send, receive) = channel();
            chain(&pool, submit, depth - 1, send);
            sum += receive.recv().unwrap();
        }
        tell.send(sum).unwrap();
    });
}

/// Each callback waits for a task that waits for the result of the next task, whose callback does
/// the same.
pub(crate) fn descend<E>(
    pool: &Arc<Pool<E>>,
    waiters: &Arc<Pool<Threads>>,
    submit: Submit<E>,
    depth: u32,
) -> TaskFuture<u32>
where
    E: Executor + Send + Sync + 'static,
{
    let task = submit(pool, depth);
    let (pool, waiters) = (Arc::clone(pool), Arc::clone(waiters));
    task.on_done(move |_| {
        if depth > 0 {
            let inner = descend(&pool, &waiters, submit, depth - 1);
            let waiting = waiters.submit(
                |inner: Arc<Mutex<Option<TaskFuture<u32>>>>| {
                    let inner = inner.lock().unwrap().take();
                    inner.unwrap().result()
                },
                Arc::new(Mutex::new(Some(inner))),
            );
            assert_eq!(waiting.result(), Ok(Ok(depth - 1)));
        }
    });
    task
}

/// Has a thread register a callback that waits until the pool takes no tasks, and then some; gives
/// a receiver that has a message once the callback runs, and one that has a message once it has
/// returned.
pub(crate) fn lingers<E>(
    pool: &Arc<Pool<E>>,
    submit: Submit<E>,
) -> (thread::JoinHandle<()>, Receiver<()>, Receiver<()>)
where
    E: Executor + Send + Sync + 'static,
{
    let ((tell_begin, begun), (tell_end, ended)) = (channel(), channel());
    let pool = Arc::clone(pool);
    let thread = thread::spawn(move || {
        let own = Arc::clone(&pool);
        submit(&pool, 1).on_done(move |_| {
            tell_begin.send(()).unwrap();
            let closed = Err(TaskError::from(PoolError::Closed));
            eventually("the pool is closed", || submit(&own, 1).result() == closed);
            // What it has to do takes its time.
            thread::sleep(Duration::from_millis(50));
            tell_end.send(()).unwrap();
        });
    });
    (thread, begun, ended)
}

/// The threads that callbacks ran on.
#[derive(Clone, Default)]
pub(crate) struct RanOn(Arc<Mutex<(usize, HashSet<ThreadId>)>>);

impl RanOn {
    pub(crate) fn note(&self) {
        let mut ran_on = self.0.lock().unwrap();
        ran_on.0 += 1;
        ran_on.1.insert(thread::current().id());
    }

    /// How many callbacks on how many threads.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let ran_on = self.0.lock().unwrap();
        (ran_on.0, ran_on.1.len())
    }
}

macro_rules! callbacks {
    ($make:expr) => {
        #[test]
        fn b48_callbacks_wait_for_messages_of_other_callbacks_to_any_depth() {
            use $crate::callbacks::{chain, heard};
            let _none = Leftovers::none();
            let pool = Arc::new($make);
            let (send, receive) = std::sync::mpsc::channel();
            chain(&pool, |pool, n| pool.submit(|n: u32| n, n), 30, send);
            assert_eq!(heard(&receive), 30 * 31 / 2);
        }

        #[test]
        fn b48_callbacks_wait_for_tasks_that_wait_for_callbacks_to_any_depth() {
            use $crate::callbacks::{descend, heard};
            let _none = Leftovers::none();
            let (pool, waiters) = (Arc::new($make), Arc::new(Pool::threads(30).unwrap()));
            let (send, receive) = std::sync::mpsc::channel();
            let (own, theirs) = (pool.clone(), waiters.clone());
            let thread = std::thread::spawn(move || {
                let submit = |pool: &Pool<_>, n| pool.submit(|n: u32| n, n);
                let task = descend(&own, &theirs, submit, 25);
                send.send(task.result()).unwrap();
            });
            assert_eq!(heard(&receive), Ok(25));
            thread.join().unwrap();
            assert_eq!((pool.close(), waiters.close()), (Ok(()), Ok(())));
        }

        #[test]
        fn b48_a_callback_that_waits_keeps_the_order_of_its_task_and_holds_up_no_other() {
            use $crate::callbacks::heard;
            let _none = Leftovers::none();
            let pool = Arc::new($make);
            let (tell, told) = std::sync::mpsc::channel();
            let (go, gate) = std::sync::mpsc::channel();
            let task = Arc::new(pool.submit(|n: u32| n, 1));
            let (own, first) = (task.clone(), tell.clone());
            let thread = std::thread::spawn(move || {
                own.on_done(move |_| {
                    first.send(0).unwrap();
                    gate.recv().unwrap();
                    first.send(1).unwrap();
                });
            });
            assert_eq!(heard(&told), 0);
            for n in 2..10 {
                let tell = tell.clone();
                task.on_done(move |_| tell.send(n).unwrap());
            }
            assert!(told.try_recv().is_err(), "the first has not returned");
            let other = pool.submit(|n: u32| n, 2);
            other.on_done(move |_| go.send(()).unwrap());
            for n in 1..10 {
                assert_eq!(heard(&told), n);
            }
            thread.join().unwrap();
        }

        #[test]
        fn b32_close_and_shutdown_come_back_after_the_callbacks() {
            use $crate::callbacks::{heard, lingers};
            let _none = Leftovers::none();
            let ends: [fn(&Pool<_>) -> Result<(), PoolError>; 3] = [
                |pool| pool.close(),
                |pool| pool.shutdown(Shutdown::CancelQueued),
                |pool| pool.shutdown(Shutdown::Kill),
            ];
            for end in ends {
                let pool = Arc::new($make);
                let submit = |pool: &Pool<_>, n| pool.submit(|n: u32| n, n);
                let (thread, begun, ended) = lingers(&pool, submit);
                heard(&begun);
                // Callbacks of tasks that may not have ended.
                let called = Arc::new(AtomicUsize::new(0));
                for n in 0..10 {
                    let called = called.clone();
                    pool.submit(|n: u32| n, n).on_done(move |_| {
                        called.fetch_add(1, Ordering::SeqCst);
                    });
                }
                assert_eq!(end(&pool), Ok(()));
                assert_eq!(ended.try_recv(), Ok(()), "the callback has not returned");
                assert_eq!(called.load(Ordering::SeqCst), 10);
                thread.join().unwrap();
            }
        }

        #[test]
        fn b32_close_in_a_callback_of_the_pool_waits_for_no_callback() {
            use $crate::callbacks::heard;
            let _none = Leftovers::none();
            let pool = Arc::new($make);
            let (tell, told) = std::sync::mpsc::channel();
            let mut threads = Vec::new();
            for n in 0..3 {
                let (pool, tell) = (pool.clone(), tell.clone());
                threads.push(std::thread::spawn(move || {
                    let task = pool.submit(|n: u32| n, n);
                    let own = pool.clone();
                    task.on_done(move |_| tell.send(own.close()).unwrap());
                }));
            }
            for _ in 0..3 {
                assert_eq!(heard(&told), Ok(()));
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(pool.close(), Ok(()));
        }

        #[test]
        fn b34_a_pool_is_dropped_in_a_callback_of_its_own() {
            use $crate::callbacks::heard;
            let _none = Leftovers::none();
            let pool = $make;
            let (tell, told) = std::sync::mpsc::channel();
            let (give, pools) = std::sync::mpsc::channel();
            let task = pool.submit(|n: u32| n, 1);
            let thread = std::thread::spawn(move || {
                task.on_done(move |_| {
                    {
                        let _last: Pool<_> = pools.recv().unwrap();
                    }
                    tell.send(()).unwrap();
                });
            });
            give.send(pool).unwrap();
            heard(&told);
            thread.join().unwrap();
        }

        #[test]
        fn b48_many_quick_callbacks_share_few_threads() {
            use $crate::callbacks::RanOn;
            let _none = Leftovers::none();
            let pool = $make;
            let count = if pool.engine().kind() == "forked" {
                100
            } else {
                10_000
            };
            let ran_on = RanOn::default();
            for n in 0..count {
                let ran_on = ran_on.clone();
                pool.submit(|n: u32| n, n).on_done(move |_| ran_on.note());
            }
            assert_eq!(pool.close(), Ok(()));
            let (ran, threads) = ran_on.counts();
            assert_eq!(ran, count as usize);
            // Few more than two, on a machine that keeps threads waiting for their core.
            assert!(threads <= 32, "{threads} threads for {ran} callbacks");
            eventually("no thread for callbacks is left", || {
                !common::threads().contains(&"manyhands-call".to_owned())
            });
        }

        #[test]
        fn b48_a_callback_that_asks_for_the_result_of_its_own_task_gets_an_error() {
            use $crate::callbacks::heard;
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The callback runs inside of `on_done`, where there is no handle to ask.
                return;
            }
            let (tell, told) = std::sync::mpsc::channel();
            let (give, given) = std::sync::mpsc::channel::<TaskFuture<usize>>();
            let fence = Fence(Gate::new());
            let pass = |gate: Gate| gate.pass().len();
            let task = pool.submit(pass, fence.0.clone());
            task.on_done(move |_| tell.send(given.recv().unwrap().result()).unwrap());
            give.send(task).unwrap();
            fence.0.open();
            let outcome = heard(&told);
            assert!(
                matches!(
                    outcome.as_ref().map_err(TaskError::as_pool),
                    Err(Some(PoolError::System { .. }))
                ),
                "{outcome:?}"
            );
        }
    };
}
