//! Handles: callbacks, waiting for many, awaiting, cancelling.

use super::ends::comes_to_rest;
use super::*;

/// How a test waits for the first of two tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    Wait,
    AsCompleted,
}

/// A task that waits at a gate.
pub(crate) type AtGate<'g> = (&'g Gate, TaskFuture<usize>);

/// The second of two tasks ends while a thread waits for both: the thread is told, although the
/// first goes on, which may be another pool's. `tasks` makes the two, in the order in which they
/// are waited for.
pub(crate) fn the_second_ends_the_wait(how: First, tasks: [AtGate<'_>; 2]) {
    let [(slow, first), (quick, second)] = tasks;
    for gate in [slow, quick] {
        eventually("the task is at its gate", || gate.waiting() == 1);
    }
    let (send, thread) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let opens = Opens(slow);
        let waiter = scope.spawn(move || {
            send.send(nix::unistd::gettid()).unwrap();
            let tasks = [first, second];
            match how {
                First::Wait => wait(tasks, ReturnWhen::FirstCompleted, None),
                First::AsCompleted => {
                    let mut completed = as_completed(tasks);
                    let done = completed.next().into_iter().collect();
                    (done, completed.into_rest())
                }
            }
        });
        comes_to_rest(thread.recv().unwrap(), || waiter.is_finished());
        quick.open();
        eventually("the wait has ended with the second task", || {
            waiter.is_finished()
        });
        let (done, pending) = waiter.join().unwrap();
        assert_eq!((done.len(), pending.len()), (1, 1));
        let done: Vec<_> = done.into_iter().map(TaskFuture::result).collect();
        assert_eq!(done, [Ok(1)]);
        assert!(!pending[0].is_done(), "the first goes on");
        drop(opens);
        assert!(pending.into_iter().all(|task| task.result() == Ok(1)));
    });
}

/// Tasks of different engines are of the same type.
#[test]
fn b49_b50_tasks_of_two_engines_are_waited_for_together() {
    let _none = Leftovers::none();
    let pass = |gate: Gate| gate.pass_counted();
    let (threads, processes) = (Pool::threads(1).unwrap(), processes());
    for how in [First::Wait, First::AsCompleted] {
        for threads_first in [false, true] {
            let gates = [Gate::new(), Gate::new()];
            let _fences = gates.clone().map(Fence);
            let [slow, quick] = &gates;
            let submit = |is_on_threads: bool, gate: &Gate| {
                if is_on_threads {
                    threads.submit(pass, gate.clone())
                } else {
                    processes.submit(pass, gate.clone())
                }
            };
            let tasks = [
                (slow, submit(threads_first, slow)),
                (quick, submit(!threads_first, quick)),
            ];
            the_second_ends_the_wait(how, tasks);
        }
    }
}

macro_rules! futures {
    ($make:expr) => {
        #[test]
        fn b49_b50_tasks_of_two_pools_are_waited_for_together() {
            use $crate::futures::{First, the_second_ends_the_wait};
            let _none = Leftovers::none();
            let (one, other) = ($make, $make);
            if one.engine().kind() == "serial" {
                // The task has run when submit returns.
                return;
            }
            let pass = |gate: Gate| gate.pass_counted();
            for how in [First::Wait, First::AsCompleted] {
                let gates = [Gate::new(), Gate::new()];
                let _fences = gates.clone().map(Fence);
                let [slow, quick] = &gates;
                let tasks = [
                    (slow, one.submit(pass, slow.clone())),
                    (quick, other.submit(pass, quick.clone())),
                ];
                the_second_ends_the_wait(how, tasks);
            }
        }

        /// How many tasks at once are many. A forked child for each takes its time.
        fn many(pool: &Pool<impl Executor>) -> u32 {
            if pool.engine().kind() == "forked" {
                60
            } else {
                1_000
            }
        }

        #[test]
        fn b48_callbacks_see_the_result_before_the_handle_gives_it() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let ear = Ear::new();
            for n in 0..20 {
                let task = pool.submit(not_700, n);
                task.on_done(|_| panic!("a callback that panics"));
                task.on_done(ear.listen("second"));
                task.on_done(ear.listen("third"));
                assert_eq!(task.result(), Ok(n));
                assert_eq!(ear.heard(), [("second", Ok(n)), ("third", Ok(n))]);
            }
            assert_eq!(
                pool.map(|x: u32| x, 0..3),
                Ok(vec![0, 1, 2]),
                "the pool goes on"
            );
        }

        #[test]
        fn b48_callbacks_see_errors() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let ear = Ear::new();
            let task = pool.submit(not_700, 700);
            task.on_done(ear.listen("only"));
            let outcome = task.result();
            assert!(
                matches!(outcome, Err(TaskError::Panicked { .. })),
                "{outcome:?}"
            );
            assert_eq!(ear.heard(), [("only", outcome)]);
            pool.close().unwrap();
            let refused = pool.submit(not_700, 1);
            refused.on_done(ear.listen("refused"));
            let closed = Err(TaskError::from(PoolError::Closed));
            assert_eq!(ear.heard(), [("refused", closed.clone())]);
            assert_eq!(refused.result(), closed);
        }

        #[test]
        fn b48_a_callback_of_a_task_that_has_ended_runs_at_once_and_here() {
            let _none = Leftovers::none();
            let pool = $make;
            let task = pool.submit(not_700, 7);
            eventually("the task has ended", || task.is_done());
            for _ in 0..3 {
                let ran_on = Arc::new(std::sync::Mutex::new(None));
                let note = ran_on.clone();
                task.on_done(move |outcome| {
                    let value = outcome.copied().unwrap();
                    *note.lock().unwrap() = Some((value, std::thread::current().id()));
                });
                let here = std::thread::current().id();
                assert_eq!(*ran_on.lock().unwrap(), Some((7, here)));
            }
            assert_eq!(task.result(), Ok(7));
        }

        #[test]
        fn b48_a_handle_that_is_dropped_leaves_its_callbacks() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let ear = Ear::new();
            let task = pool.submit(not_700, 7);
            task.on_done(ear.listen("left"));
            drop(task);
            let mut heard = Vec::new();
            eventually("the callback has run", || {
                heard.extend(ear.heard());
                !heard.is_empty()
            });
            assert_eq!(heard, [("left", Ok(7))]);
        }

        #[test]
        fn b49_wait_for_all() {
            let _none = Leftovers::none();
            let pool = $make;
            let tasks = (690..710).map(|n| pool.submit(not_700, n));
            let (done, pending) = wait(tasks, ReturnWhen::AllCompleted, None);
            assert!(pending.is_empty());
            assert!(
                done.iter()
                    .all(|task| task.is_done() && !task.is_running() && !task.cancel())
            );
            let results: Vec<_> = done.into_iter().map(|task| task.result().ok()).collect();
            let expected: Vec<_> = (690..710).map(|n| (n != 700).then_some(n)).collect();
            assert_eq!(results, expected, "in the order in which they were given");
            let none: [TaskFuture<u32>; 0] = [];
            let (done, pending) = wait(none, ReturnWhen::FirstCompleted, None);
            assert!(done.is_empty() && pending.is_empty());
        }

        #[test]
        fn b49_wait_for_the_first_error() {
            let _none = Leftovers::none();
            let pool = $make;
            let tasks = [1, 700, 3].map(|n| pool.submit(not_700, n));
            let (done, pending) = wait(tasks, ReturnWhen::FirstError, None);
            assert_eq!(done.len() + pending.len(), 3);
            assert_eq!(
                done.into_iter()
                    .filter_map(|task| task.result().err())
                    .count(),
                1
            );
            // Without an error, the wait is as that for all.
            let tasks = [1, 2, 3].map(|n| pool.submit(not_700, n));
            let (done, pending) = wait(tasks, ReturnWhen::FirstError, Some(common::DEADLINE));
            assert_eq!((done.len(), pending.len()), (3, 0));
        }

        #[test]
        fn b49_an_error_counts_that_was_seen_together_with_a_success() {
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // No task of it is pending while another one has ended.
                return;
            }
            let fence = Fence(Gate::new());
            let tasks = [700, 1].map(|n| pool.submit(not_700, n));
            for task in &tasks {
                eventually("the task has ended", || task.is_done());
            }
            let pass = |gate: Gate| gate.pass().len() as u32;
            let held = pool.submit(pass, fence.0.clone());
            let tasks = tasks.into_iter().chain([held]);
            let (done, pending) = wait(tasks, ReturnWhen::FirstError, None);
            assert_eq!((done.len(), pending.len()), (2, 1));
        }

        #[test]
        fn b50_as_completed_gives_each_task_once() {
            let _none = Leftovers::none();
            let pool = $make;
            let count = many(&pool);
            let tasks = (0..count).map(|n| pool.submit(|x: u32| x, n));
            let mut completed = as_completed(tasks);
            assert_eq!(
                completed.size_hint(),
                (count as usize, Some(count as usize))
            );
            let mut values: Vec<_> = completed
                .by_ref()
                .map(|task| task.result().unwrap())
                .collect();
            values.sort_unstable();
            assert_eq!(values, (0..count).collect::<Vec<_>>());
            assert!(completed.next().is_none());
            let tasks = [1, 2].map(|n| pool.submit(|x: u32| x, n));
            let mut given = as_completed(tasks);
            for left in [1, 0] {
                assert!(given.next_timeout(common::DEADLINE).unwrap().is_some());
                assert_eq!(given.len(), left);
            }
            assert!(given.next_timeout(Duration::ZERO).unwrap().is_none());
        }

        #[test]
        fn b51_whoever_waits_for_many_tasks_hears_of_all() {
            use $crate::runtime::{all, block_on};
            let _none = Leftovers::none();
            let pool = $make;
            let count = many(&pool);
            for _ in 0..5 {
                let called = Arc::new(AtomicUsize::new(0));
                let tasks = (0..count).map(|n| pool.submit(|x: u32| x, n));
                let mut tasks: Vec<_> = tasks.collect();
                for task in &tasks {
                    let called = called.clone();
                    task.on_done(move |_| {
                        called.fetch_add(1, Ordering::SeqCst);
                    });
                }
                let awaited = tasks.split_off(tasks.len() / 2);
                let waited = tasks.split_off(tasks.len() / 2);
                std::thread::scope(|scope| {
                    scope.spawn(|| assert!(block_on(all(awaited)).iter().all(Result::is_ok)));
                    scope.spawn(|| {
                        let (done, pending) = wait(waited, ReturnWhen::AllCompleted, None);
                        assert!(pending.is_empty() && !done.is_empty());
                    });
                    assert!(as_completed(tasks).all(|task| task.result().is_ok()));
                });
                eventually("all callbacks have run", || {
                    called.load(Ordering::SeqCst) == count as usize
                });
            }
        }

        #[test]
        fn b52_a_task_that_has_been_polled_may_still_get_callbacks() {
            use $crate::runtime::{Ear, block_on};
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The task has run when submit returns.
                return;
            }
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            for _ in 0..50 {
                let ear = Ear::new();
                let mut task = pool.submit(|gate: Gate| gate.pass_counted(), gate.clone());
                let polled = block_on(std::future::poll_fn(|context| {
                    std::task::Poll::Ready(std::pin::Pin::new(&mut task).poll(context))
                }));
                assert!(polled.is_pending());
                task.on_done(ear.listen("late"));
                gate.open();
                assert_eq!(block_on(task), Ok(1));
                assert_eq!(ear.heard(), [("late", Ok(1))]);
                gate.close();
            }
        }

        #[test]
        fn b52_the_last_to_poll_a_task_is_woken() {
            use std::pin::Pin;
            use std::task::{Context, Wake, Waker};
            struct Woken(AtomicUsize);
            impl Wake for Woken {
                fn wake(self: std::sync::Arc<Self>) {
                    self.0.fetch_add(1, Ordering::SeqCst);
                }
            }
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The task has run when submit returns.
                return;
            }
            let fence = Fence(Gate::new());
            let mut task = pool.submit(|gate: Gate| gate.pass_counted(), fence.0.clone());
            let last = std::sync::Arc::new(Woken(AtomicUsize::new(0)));
            let mut poll =
                |waker: &Waker| Pin::new(&mut task).poll(&mut Context::from_waker(waker));
            assert!(poll(Waker::noop()).is_pending());
            assert!(poll(&last.clone().into()).is_pending());
            fence.0.open();
            eventually("the last one is woken", || {
                last.0.load(Ordering::SeqCst) > 0
            });
            assert_eq!(poll(Waker::noop()), std::task::Poll::Ready(Ok(1)));
        }

        #[test]
        fn b52_tasks_are_awaited_on_any_runtime() {
            use $crate::runtime::{all, block_on, tokio};
            let _none = Leftovers::none();
            let pool = $make;
            assert_eq!(block_on(pool.submit(not_700, 7)), Ok(7));
            assert!(block_on(pool.submit(not_700, 700)).is_err());
            let runtime = tokio();
            assert_eq!(runtime.block_on(pool.submit(not_700, 7)), Ok(7));
            let tasks: Vec<_> = (0..many(&pool))
                .map(|n| pool.submit(|x: u32| x, n))
                .collect();
            let expected: Vec<_> = (0..many(&pool)).map(Ok).collect();
            assert_eq!(runtime.block_on(all(tasks)), expected);
            // One that has callbacks too.
            let task = pool.submit(not_700, 8);
            task.on_done(|_| {});
            assert_eq!(runtime.block_on(task), Ok(8));
        }
    };
}

/// Tasks that are killed.
macro_rules! mortal_futures {
    ($make:expr) => {
        #[test]
        fn b47_what_runs_can_be_killed() {
            use $crate::runtime::Ear;
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            for round in 0..5 {
                let ear = Ear::new();
                let pass = |gate: Gate| gate.pass_counted();
                let task = pool.submit(pass, gate.clone());
                eventually("the task runs", || gate.waiting() == round + 1);
                assert!(task.is_running() && !task.cancel());
                if round % 2 == 0 {
                    task.on_done(ear.listen("killed"));
                }
                assert!(task.kill());
                assert!(!task.kill(), "it has ended, or is about to");
                assert_eq!(task.result(), Err(cancelled()));
                let heard = ear.heard();
                assert_eq!(heard.len(), usize::from(round % 2 == 0));
                assert!(
                    heard
                        .iter()
                        .all(|(_, outcome)| *outcome == Err(cancelled()))
                );
                assert_eq!(
                    pool.submit(|x: u32| x, 1).result(),
                    Ok(1),
                    "the pool goes on"
                );
            }
            let ended = pool.submit(|x: u32| x, 1);
            eventually("the task has ended", || ended.is_done());
            assert!(!ended.kill());
            assert_eq!(ended.result(), Ok(1));
        }

        #[test]
        fn b49_b50_tasks_that_run_are_pending() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let pass = |gate: Option<Gate>| gate.map_or(0, |gate| gate.pass_counted());
            let endless = pool.submit(pass, Some(gate.clone()));
            let short = pool.submit(pass, None);
            let (done, pending) = wait([endless, short], ReturnWhen::FirstCompleted, None);
            assert_eq!((done.len(), pending.len()), (1, 1));
            let mut tasks = as_completed(pending);
            for _ in 0..2 {
                let late = tasks.next_timeout(Duration::from_millis(20));
                assert!(late.is_err() && tasks.len() == 1);
            }
            let mut rest = tasks.into_rest();
            assert_eq!(rest[0].try_result(), None);
            drop(rest);
            assert_eq!(done.into_iter().next().unwrap().result(), Ok(0));
        }

        #[test]
        fn b52_a_large_result_comes_while_nobody_but_a_waker_waits() {
            use $crate::runtime::{all, block_on};
            let _none = Leftovers::none();
            let pool = $make;
            // More than a lane holds: the child goes on only if the parent takes what it has
            // written.
            let large = |n: usize| vec![7u8; n];
            let tasks: Vec<_> = (0..2).map(|n| pool.submit(large, 20_000_000 + n)).collect();
            for (n, outcome) in block_on(all(tasks)).into_iter().enumerate() {
                assert_eq!(outcome.unwrap().len(), 20_000_000 + n);
            }
        }
    };
}
