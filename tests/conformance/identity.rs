//! Which worker runs a task, and which task it is.

use super::*;
use std::collections::BTreeSet;

/// What a task sees: its own index, that within a call of the serial engine, that of a thread that
/// it starts, and its own once more.
pub(super) type Seen = [Option<usize>; 4];

pub(super) fn see(_: u32) -> Seen {
    let inner = Pool::serial().map(|_: u32| worker_index(), [1]).unwrap();
    let failed = Pool::serial().submit(|_: u32| -> u32 { panic!("on purpose") }, 1);
    assert!(failed.result().is_err());
    let thread = std::thread::spawn(worker_index).join().unwrap();
    [worker_index(), inner[0], thread, worker_index()]
}

/// What a task that `see`s sees as the worker with this index.
pub(super) fn seen_by(index: Option<usize>) -> Seen {
    [index, Some(0), None, index]
}

/// Runs tasks on all workers of a pool at the same time. Returns their indices.
pub(super) fn indices_at_once<E, F>(pool: &Pool<E>, pass: F) -> BTreeSet<Option<usize>>
where
    F: Fn(Gate) -> Option<usize> + Copy + Send + 'static,
    E: Run<F, Gate, Option<usize>>,
{
    let gate = Gate::new();
    let _fence = Fence(gate.clone());
    let workers = 0..pool.workers();
    let tasks: Vec<_> = workers.map(|_| pool.submit(pass, gate.clone())).collect();
    eventually("all workers are at the gate", || {
        gate.waiting() == pool.workers()
    });
    gate.open();
    tasks
        .into_iter()
        .map(|task| task.result().unwrap())
        .collect()
}

/// The indices of all workers of a pool of two.
pub(super) fn both() -> BTreeSet<Option<usize>> {
    [Some(0), Some(1)].into()
}

macro_rules! identity {
    ($make:expr) => {
        #[test]
        fn b98_a_task_knows_the_index_of_its_worker() {
            use $crate::identity::{see, seen_by};
            let _none = Leftovers::none();
            let pool = $make;
            let is_right = |seen: $crate::identity::Seen| {
                seen[0].is_some_and(|index| index < pool.workers()) && seen == seen_by(seen[0])
            };
            assert!(pool.map(see, 0..100).unwrap().into_iter().all(is_right));
            let chunked = pool.call().chunk_size(7).map(see, 0..100);
            assert!(chunked.unwrap().into_iter().all(is_right));
            let limited = pool.call().timeout(DEADLINE).map(see, 0..10);
            assert!(limited.unwrap().into_iter().all(is_right));
            let each = pool.map_outcomes(see, 0..10);
            assert!(each.into_iter().map(Result::unwrap).all(is_right));
            assert!(pool.imap(see, 0..10).map(Result::unwrap).all(is_right));
            assert!(is_right(pool.submit(see, 1).result().unwrap()));
            let with = pool.map_with(&1u64, |_, x: u32| worker_index().map(|_| x), 0..3);
            assert_eq!(with, Ok(vec![Some(0), Some(1), Some(2)]));
            let reduced = pool.map_reduce(
                |_: u32| worker_index().is_some(),
                |a, b| a && b && worker_index().is_some(),
                0..50,
            );
            assert_eq!(reduced, Ok(Some(true)));
        }

        #[test]
        fn b98_outside_of_tasks_there_is_no_index() {
            let _none = Leftovers::none();
            let pool = $make;
            let outside = || assert_eq!(worker_index(), None);
            outside();
            let items = (0..20u32).inspect(|_| outside());
            let call = pool.call().on_progress(|_| outside());
            assert_eq!(call.map(|x: u32| x, items).unwrap().len(), 20);
            let items = (0..20u32).inspect(|_| outside());
            pool.imap(|x: u32| x, items).for_each(|_| outside());
            let failed = pool.submit(|x: u32| -> u32 { panic!("{x}") }, 1);
            assert!(failed.result().is_err());
            let task = pool.submit(|x: u32| x, 1);
            let (send, told) = std::sync::mpsc::channel();
            task.on_done(move |_| send.send(worker_index()).unwrap());
            assert_eq!(told.recv_timeout(DEADLINE), Ok(None));
            assert_eq!(task.result(), Ok(1));
            outside();
        }

        #[test]
        fn b105_a_broadcast_runs_once_on_each_worker_in_order() {
            use $crate::identity::{see, seen_by};
            let _none = Leftovers::none();
            let pool = $make;
            let all: Vec<_> = (0..pool.workers())
                .map(|index| seen_by(Some(index)))
                .collect();
            for _ in 0..20 {
                assert_eq!(pool.broadcast(see, 1), Ok(all.clone()));
            }
            // Between tasks, too.
            let tasks: Vec<_> = (0..50).map(|x| pool.submit(|x: u32| x + 1, x)).collect();
            assert_eq!(pool.broadcast(see, 1), Ok(all.clone()));
            for (x, task) in (0..).zip(tasks) {
                assert_eq!(task.result(), Ok(x + 1));
            }
            let text = pool.broadcast(|text: String| text + "!", "x".repeat(100_000));
            assert!(text.unwrap().iter().all(|text| text.len() == 100_001));
        }

        #[test]
        fn b105_a_broadcast_fails_with_the_index_of_the_worker() {
            let _none = Leftovers::none();
            let pool = $make;
            let last = pool.workers() - 1;
            let fail = |at: usize| assert!(worker_index() != Some(at), "not on {at}");
            let error = pool.broadcast(fail, last).unwrap_err();
            assert_eq!((error.index(), error.task_id()), (Some(last), None));
            let text = format!("item {last} panicked: not on {last}");
            assert!(error.to_string().starts_with(&text), "{error}");
            assert_eq!(pool.broadcast(fail, 7), Ok(vec![(); last + 1]));
            pool.close().unwrap();
            let closed = pool.broadcast(fail, 7).unwrap_err();
            assert_eq!(closed.as_pool(), Some(&PoolError::Closed));
        }

        #[test]
        fn b99_each_task_has_an_id_and_errors_carry_it() {
            let _none = Leftovers::none();
            let pool = $make;
            let odd = |x: u32| {
                assert!(x % 2 == 0, "{x} is odd");
                x
            };
            let tasks: Vec<_> = (0..20).map(|x| pool.submit(odd, x)).collect();
            let items: std::collections::HashMap<_, _> =
                tasks.iter().map(TaskFuture::id).zip(0..).collect();
            assert_eq!(items.len(), 20, "no two are the same");
            for task in as_completed(tasks) {
                let id = task.id();
                let item = items[&id];
                match task.result() {
                    Ok(result) => assert!(result == item && item % 2 == 0),
                    Err(error) => {
                        assert_eq!((error.task_id(), error.index()), (Some(id), None));
                        let text = error.to_string();
                        assert!(text.starts_with(&format!("task {id} panicked: {item} is odd")));
                        assert_eq!(item % 2, 1);
                    }
                }
            }
        }

        #[test]
        fn b99_callbacks_and_waits_see_the_id_too() {
            let _none = Leftovers::none();
            let pool = $make;
            let fail = |x: u32| -> u32 { panic!("{x}") };
            let (send, told) = std::sync::mpsc::channel();
            let mut task = pool.submit(fail, 1);
            task.on_done(move |outcome| send.send(outcome.unwrap_err().task_id()).unwrap());
            let (id, wanted) = (task.id(), Some(task.id()));
            assert_eq!(told.recv_timeout(DEADLINE), Ok(wanted));
            let waited = task.result_timeout(DEADLINE).unwrap().unwrap_err();
            assert_eq!(waited.task_id(), wanted);
            let mut polled = pool.submit(fail, 2);
            assert_ne!(polled.id(), id);
            let error = loop {
                match polled.try_result() {
                    Some(outcome) => break outcome.unwrap_err(),
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(error.task_id(), Some(polled.id()));
            let awaited = pool.submit(fail, 3);
            let wanted = Some(awaited.id());
            assert_eq!(
                $crate::runtime::block_on(awaited).unwrap_err().task_id(),
                wanted
            );
        }

        #[test]
        fn b99_errors_of_calls_are_about_items_and_not_about_tasks() {
            let _none = Leftovers::none();
            let pool = $make;
            let odd = |x: u32| assert!(x % 2 == 0, "odd");
            let is_item = |error: &TaskError, index| {
                assert_eq!((error.index(), error.task_id()), (Some(index), None));
            };
            is_item(&pool.map(odd, [0, 1, 2]).unwrap_err(), 1);
            is_item(
                &pool.map_outcomes(odd, [0, 1, 2])[1].clone().unwrap_err(),
                1,
            );
            let lazy: Vec<_> = pool.imap(odd, [0, 1, 2]).collect();
            is_item(&lazy[1].clone().unwrap_err(), 1);
            // An error that is the result of a task is about that of which the task says it is.
            let nested = |x: u32| {
                let inner = Pool::serial().submit(|_: u32| -> u32 { panic!("within") }, x);
                (inner.id().to_string(), inner.result().unwrap_err())
            };
            let (id, error) = pool.submit(nested, 1).result().unwrap();
            assert_eq!(error.task_id().map(|id| id.to_string()), Some(id));
        }
    };
}

/// The engines with more than one worker.
macro_rules! parallel_identity {
    ($make:expr) => {
        #[test]
        fn b98_tasks_that_run_at_once_have_different_indices() {
            use $crate::identity::{both, indices_at_once};
            let _none = Leftovers::none();
            let pool = $make;
            for _ in 0..3 {
                let indices = indices_at_once(&pool, |gate: Gate| {
                    let index = worker_index();
                    gate.pass_counted();
                    index
                });
                assert_eq!(indices, both());
            }
        }

        #[test]
        fn b105_broadcasts_at_the_same_time_do_not_wait_for_each_other() {
            let _none = Leftovers::none();
            let pool = $make;
            std::thread::scope(|scope| {
                let calls: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            (0..25).all(|x: usize| {
                                let sums = pool.broadcast(|x| x + worker_index().unwrap(), x);
                                sums == Ok(vec![x, x + 1])
                            })
                        })
                    })
                    .collect();
                assert!(calls.into_iter().all(|call| call.join().unwrap()));
            });
        }
    };
}

/// The engines with workers that stay.
macro_rules! lasting_identity {
    ($make:expr) => {
        #[test]
        fn b105_a_broadcast_waits_for_a_worker_that_is_busy() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let begun = Gate::new();
            let _begun = Fence(begun.clone());
            let busy = pool.submit(
                |gate: Gate| {
                    let index = worker_index();
                    gate.pass_counted();
                    index
                },
                gate.clone(),
            );
            eventually("a worker is at the gate", || gate.waiting() == 1);
            std::thread::scope(|scope| {
                let _opens = Opens(&gate);
                let mark = |begun: Gate| {
                    let index = worker_index().unwrap();
                    begun.mark(&format!("part-{index}"));
                    index
                };
                let pool = &pool;
                let parts = {
                    let begun = begun.clone();
                    scope.spawn(move || pool.broadcast(mark, begun))
                };
                eventually("the other worker has run its part", || begun.waiting() == 1);
                // It takes tasks meanwhile.
                let free = pool.submit(|_: u32| worker_index(), 1).result().unwrap();
                let part = format!("part-{}", free.unwrap());
                assert!(begun.folder().join(part).exists());
                assert!(!parts.is_finished());
                gate.open();
                assert_eq!(parts.join().unwrap(), Ok(vec![0, 1]));
                assert_ne!(busy.result().unwrap(), free);
            });
        }
    };
}

/// The engines whose workers can die.
macro_rules! mortal_identity {
    ($make:expr) => {
        #[test]
        fn b98_a_worker_that_replaces_another_has_its_index() {
            use $crate::identity::{both, indices_at_once};
            let _none = Leftovers::none();
            let pool = $make;
            let pass = |gate: Gate| {
                let index = worker_index();
                gate.pass_counted();
                index
            };
            let abort = |gate: Gate| -> u32 {
                let index = worker_index();
                gate.mark(&format!("index-{}", index.unwrap()));
                std::process::abort();
            };
            for _ in 0..2 {
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                // One worker goes on while the other dies and is replaced.
                let stays = pool.submit(pass, gate.clone());
                eventually("one worker is at the gate", || gate.waiting() == 1);
                let died = Gate::new();
                let _fence = Fence(died.clone());
                let task = pool.submit(abort, died.clone());
                let id = task.id();
                let error = task.result().unwrap_err();
                assert!(matches!(error, TaskError::WorkerDied { .. }), "{error}");
                assert_eq!(error.task_id(), Some(id));
                let replaced = pool.submit(|_: u32| worker_index(), 1).result().unwrap();
                gate.open();
                let stayed = stays.result().unwrap();
                assert_eq!(
                    [stayed, replaced]
                        .into_iter()
                        .collect::<std::collections::BTreeSet<_>>(),
                    both()
                );
                let index = format!("index-{}", replaced.unwrap());
                assert!(died.folder().join(index).exists(), "it had another index");
                assert_eq!(indices_at_once(&pool, pass), both());
            }
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let twice = pool.call().retries(1).chunk_size(1).map(
                |(gate, x): (Gate, u32)| {
                    if x == 3 {
                        gate.dies_once();
                    }
                    worker_index().is_some_and(|index| index < 2)
                },
                (0..10).map(|x| (gate.clone(), x)),
            );
            assert_eq!(twice, Ok(vec![true; 10]));
        }

        #[test]
        fn b105_a_worker_that_dies_at_its_part_fails_it_and_is_replaced() {
            let _none = Leftovers::none();
            let pool = $make;
            let die = |at: usize| {
                if worker_index() == Some(at) {
                    std::process::abort();
                }
                at
            };
            for at in [1, 0, 1] {
                let error = pool.broadcast(die, at).unwrap_err();
                assert!(matches!(error, TaskError::WorkerDied { .. }), "{error}");
                assert_eq!(error.index(), Some(at));
                assert_eq!(
                    pool.broadcast(|_: u32| worker_index(), 1),
                    Ok(vec![Some(0), Some(1)])
                );
            }
        }
    };
}
