//! The parts together, through the interface that users see.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::call::schedule::Schedule;
use crate::future::{CancellationToken, ending_of};
use crate::pool::Pool;

mod calls;

/// Waits for a condition; a test that hangs must say where.
#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for a minute: {what}");
        thread::yield_now();
    }
}

/// A gate that tasks wait at.
#[derive(Default)]
struct Gate {
    open: AtomicBool,
    waiting: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        until("a gate to open", || self.open.load(Ordering::SeqCst));
    }

    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` tasks wait here.
    fn until_waiting(&self, count: usize) {
        until("tasks at a gate", || {
            self.waiting.load(Ordering::SeqCst) >= count
        });
    }
}

/// Returns how many of these threads the kernel still lists.
#[cfg(target_os = "linux")]
fn listed(ids: &[i32]) -> usize {
    ids.iter()
        .filter(|id| std::path::Path::new(&format!("/proc/self/task/{id}")).exists())
        .count()
}

fn panics_with(error: &TaskError, text: &str) -> bool {
    matches!(error, TaskError::Panicked { message, .. } if message.contains(text))
}

// Submitted tasks --------------------------------------------------------------------------------

/// Submits task after task from several threads at once, each when the one before has ended.
fn submit_in_turn(workers: usize, submitters: usize, rounds: usize) {
    // Workers search for a while before they sleep. Pauses of about that time let a submitter meet
    // a worker in each stage of falling asleep.
    let pauses = [0, 0, 0, 10, 40, 50, 60, 150];
    let pool = Pool::threads(workers).unwrap();
    thread::scope(|scope| {
        for submitter in 0..submitters {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..rounds {
                    let mut task = pool.submit(|x: usize| x + 1, round);
                    let answer = task.result_timeout(Duration::from_secs(10));
                    assert_eq!(answer, Ok(Ok(round + 1)), "lost in round {round}");
                    let pause = pauses[(round * 7 + submitter) % pauses.len()] * 1_000;
                    let pause = Duration::from_nanos(pause + round as u64 * 37 % 4_000);
                    let start = Instant::now();
                    while start.elapsed() < pause {
                        std::hint::spin_loop();
                    }
                }
            });
        }
    });
}

#[test]
fn no_wakeup_is_lost_between_submitters_and_workers() {
    for workers in [1, 2, 5] {
        submit_in_turn(workers, 4, 1_500);
    }
}

/// With one submitter no later task repairs a lost wake-up.
#[test]
fn no_wakeup_of_one_submitter_is_lost() {
    for workers in [1, 2] {
        submit_in_turn(workers, 1, 20_000);
    }
}

#[test]
fn b51_many_tasks_that_end_at_once_wake_all_who_wait() {
    let pool = Pool::threads(4).unwrap();
    for _ in 0..20 {
        let gate = Arc::new(Gate::default());
        let tasks: Vec<_> = (0..100_usize)
            .map(|index| {
                let gate = Arc::clone(&gate);
                pool.submit(
                    move |index| {
                        gate.pass();
                        index
                    },
                    index,
                )
            })
            .collect();
        thread::scope(|scope| {
            for (index, task) in tasks.into_iter().enumerate() {
                scope.spawn(move || assert_eq!(task.result(), Ok(index)));
            }
            gate.until_waiting(4);
            gate.open();
        });
    }
}

#[test]
fn b39_as_many_tasks_run_at_once_as_there_are_workers() {
    const WORKERS: usize = 3;
    let pool = Pool::threads(WORKERS).unwrap();
    let gate = Arc::new(Gate::default());
    let threads = Arc::new(Mutex::new(HashSet::new()));
    let tasks: Vec<_> = (0..15 * WORKERS)
        .map(|_| {
            let (gate, threads) = (Arc::clone(&gate), Arc::clone(&threads));
            pool.submit(
                move |()| {
                    threads
                        .lock()
                        .insert(thread::current().name().map(str::to_owned));
                    gate.pass();
                },
                (),
            )
        })
        .collect();
    gate.until_waiting(WORKERS);
    thread::yield_now();
    assert_eq!(gate.waiting.load(Ordering::SeqCst), WORKERS);
    gate.open();
    for task in tasks {
        assert_eq!(task.result(), Ok(()));
    }
    let names = (0..WORKERS)
        .map(|n| Some(format!("manyhands-{n}")))
        .collect();
    assert!(threads.lock().is_subset(&names));
}

#[test]
fn b21_a_panic_fails_its_task_alone() {
    let pool = Pool::threads(1).unwrap();
    let failing = pool.submit(|()| -> () { panic!("on purpose") }, ());
    let error = failing.result().unwrap_err();
    assert!(panics_with(&error, "on purpose"), "{error}");
    assert!(error.to_string().contains("tests.rs:"), "{error}");
    assert_eq!(pool.submit(|x: i32| x + 1, 1).result(), Ok(2));
}

#[test]
fn a_result_whose_drop_panics_does_not_cost_the_worker() {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let pool = Pool::threads(1).unwrap();
    let gate = Arc::new(Gate::default());
    let passed = Arc::clone(&gate);
    // The handle goes before the result is there: the worker is to drop it, and not this thread.
    drop(pool.submit(
        move |()| {
            passed.pass();
            Grumpy
        },
        (),
    ));
    gate.open();
    assert_eq!(pool.submit(|x: i32| x + 1, 1).result(), Ok(2));
}

#[test]
fn b36_function_and_argument_are_gone_when_the_result_is_there() {
    let pool = Pool::threads(1).unwrap();
    let token = Arc::new(());
    for _ in 0..1_000 {
        let captured = Arc::clone(&token);
        let task = pool.submit(
            move |argument: Arc<()>| Arc::ptr_eq(&captured, &argument),
            Arc::clone(&token),
        );
        assert_eq!(task.result(), Ok(true));
        assert_eq!(Arc::strong_count(&token), 1);
    }
}

#[test]
fn b46_a_wait_that_ends_too_early_can_be_repeated() {
    let pool = Pool::threads(1).unwrap();
    let gate = Arc::new(Gate::default());
    let mut task = pool.submit(
        {
            let gate = Arc::clone(&gate);
            move |()| gate.pass()
        },
        (),
    );
    assert!(task.result_timeout(Duration::ZERO).is_err());
    assert!(task.result_timeout(Duration::from_millis(1)).is_err());
    assert!(!task.is_done());
    gate.open();
    assert_eq!(task.result_timeout(Duration::from_secs(60)), Ok(Ok(())));
    assert!(task.is_done());
    assert_eq!(
        task.result_timeout(Duration::ZERO),
        Ok(Err(TaskError::Taken {}))
    );
}

// Tasks that wait for tasks ----------------------------------------------------------------------

/// Returns the number of leaves of a binary tree, each node a task that waits for its two halves.
fn leaves(pool: &Arc<Pool<Threads>>, depth: u32) -> u64 {
    if depth == 0 {
        return 1;
    }
    let halves = [(); 2].map(|()| {
        let pool = Arc::clone(pool);
        Arc::clone(&pool).submit(move |depth| leaves(&pool, depth), depth - 1)
    });
    halves.into_iter().map(|half| half.result().unwrap()).sum()
}

#[test]
fn b35_tasks_may_wait_for_tasks_of_their_own_pool() {
    for workers in [1, 2, 3] {
        let pool = Arc::new(Pool::threads(workers).unwrap());
        assert_eq!(leaves(&pool, 8), 256);
    }
}

#[test]
fn b35_a_task_may_map_on_its_own_pool_and_on_a_new_one() {
    for workers in [1, 2] {
        let pool = Arc::new(Pool::threads(workers).unwrap());
        let sums: Vec<_> = (0..8_u64)
            .map(|_| {
                let own = Arc::clone(&pool);
                pool.submit(
                    move |n| {
                        let here = own.map(|x| x + 1, 0..n).unwrap().into_iter().sum::<u64>();
                        let there = Pool::threads(2)
                            .unwrap()
                            .map(|x| x + 1, 0..n)
                            .unwrap()
                            .into_iter()
                            .sum::<u64>();
                        (here, there)
                    },
                    1_000,
                )
            })
            .collect();
        for sum in sums {
            assert_eq!(sum.result(), Ok((500_500, 500_500)));
        }
    }
}

#[test]
fn a_task_runs_what_it_gives_to_rayon_on_this_pool() {
    let pool = Pool::threads(2).unwrap();
    for _ in 0..20 {
        let task = pool.submit(
            |()| {
                // Each half waits for the other, so two threads must take part.
                let both = Barrier::new(2);
                let name = || {
                    both.wait();
                    (
                        rayon::current_num_threads(),
                        thread::current().name().map(str::to_owned),
                    )
                };
                rayon::join(name, name)
            },
            (),
        );
        let ((threads, one), (_, other)) = task.result().unwrap();
        assert_eq!(threads, 2);
        let names = HashSet::from([one.unwrap(), other.unwrap()]);
        assert_eq!(
            names,
            HashSet::from(["manyhands-0".to_owned(), "manyhands-1".to_owned()])
        );
    }
}

#[test]
fn all_workers_come_to_help_a_task_that_uses_rayon() {
    const WORKERS: usize = 6;
    let pool = Pool::threads(WORKERS).unwrap();
    let task = pool.submit(
        |()| {
            let all = Barrier::new(WORKERS);
            rayon::scope(|scope| {
                for _ in 1..WORKERS {
                    scope.spawn(|_| {
                        all.wait();
                    });
                }
                all.wait();
            });
        },
        (),
    );
    assert_eq!(task.result(), Ok(()));
}

#[test]
fn a_task_is_not_started_on_top_of_the_one_it_waits_for() {
    // When the second task is submitted, which waits for the first, the first waits in a `join` of
    // rayon.
    let pool = Arc::new(Pool::threads(2).unwrap());
    for _ in 0..50 {
        let gate = Arc::new(Gate::default());
        let first = pool.submit(
            {
                let gate = Arc::clone(&gate);
                move |x: u64| {
                    let (left, right) =
                        rayon::join(|| x, || rayon::join(|| gate.pass(), || x + 1).1);
                    left + right
                }
            },
            20,
        );
        gate.until_waiting(1);
        let second = pool.submit(|first: TaskFuture<u64>| first.result().unwrap() + 1, first);
        gate.open();
        assert_eq!(second.result(), Ok(42));
    }
}

// The end of a pool ------------------------------------------------------------------------------

#[test]
fn drop_cancels_what_has_not_started_and_lets_the_rest_run_on() {
    let pool = Pool::threads(1).unwrap();
    let gate = Arc::new(Gate::default());
    let running = pool.submit(
        {
            let gate = Arc::clone(&gate);
            move |()| {
                gate.pass();
                7
            }
        },
        (),
    );
    gate.until_waiting(1);
    let token = Arc::new(());
    let queued: Vec<_> = (0..10)
        .map(|_| pool.submit(|held: Arc<()>| drop(held), Arc::clone(&token)))
        .collect();
    let (told, tell) = mpsc::channel();
    thread::scope(|scope| {
        let waiting = pool.submit(|()| (), ());
        scope.spawn(move || told.send(waiting.result()).unwrap());
        drop(pool);
        assert_eq!(tell.recv().unwrap(), Err(TaskError::Cancelled {}));
    });
    for task in queued {
        assert!(task.is_done());
        assert_eq!(task.result(), Err(TaskError::Cancelled {}));
    }
    assert_eq!(
        Arc::strong_count(&token),
        1,
        "a cancelled task keeps its argument"
    );
    assert!(!running.is_done());
    gate.open();
    assert_eq!(running.result(), Ok(7));
}

#[test]
fn a_shutdown_cancels_the_tasks_behind_one_whose_argument_panics_when_it_is_dropped() {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let pool = Pool::threads(1).unwrap();
    let gate = Arc::new(Gate::default());
    let own = Arc::clone(&gate);
    let running = pool.submit(move |()| own.pass(), ());
    gate.until_waiting(1);
    let queued: Vec<_> = (0..3).map(|_| pool.submit(drop, Grumpy)).collect();
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
        let time = Duration::from_secs(20);
        let outcomes: Vec<_> = queued
            .into_iter()
            .map(|mut task| task.result_timeout(time))
            .collect();
        gate.open();
        assert_eq!(shutdown.join().unwrap(), Ok(()));
        assert_eq!(outcomes, [(); 3].map(|()| Ok(Err(TaskError::Cancelled {}))));
    });
    assert_eq!(running.result(), Ok(()));
}

#[test]
fn the_last_owner_of_a_pool_may_be_one_of_its_tasks() {
    let pool = Arc::new(Pool::threads(2).unwrap());
    let gate = Arc::new(Gate::default());
    let task = pool.submit(
        {
            let (pool, gate) = (Arc::clone(&pool), Arc::clone(&gate));
            move |()| {
                gate.pass();
                Arc::strong_count(&pool)
            }
        },
        (),
    );
    gate.until_waiting(1);
    drop(pool);
    gate.open();
    assert_eq!(task.result(), Ok(1));
}

#[test]
fn b32_close_waits_for_all_tasks_and_takes_no_more() {
    let pool = Pool::threads(2).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..50_usize)
        .map(|index| {
            let done = Arc::clone(&done);
            pool.submit(
                move |index| {
                    thread::yield_now();
                    done.fetch_add(1, Ordering::SeqCst);
                    index
                },
                index,
            )
        })
        .collect();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(pool.close(), Ok(())));
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), 50);
    for (index, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.result(), Ok(index));
    }
    let closed = TaskError::from(PoolError::Closed);
    assert_eq!(pool.submit(|x: i32| x, 1).result(), Err(closed.clone()));
    assert_eq!(pool.map(|x: i32| x, [1]), Err(closed));
    assert_eq!(pool.close(), Ok(()));
}

#[cfg(target_os = "linux")]
#[test]
fn close_leaves_no_thread() {
    for workers in [1, 3] {
        let pool = Pool::threads(workers).unwrap();
        until("all threads to sign in", || {
            pool.engine().dispatch.thread_ids().ids().len() == workers
        });
        let ids = pool.engine().dispatch.thread_ids().ids();
        assert_eq!(listed(&ids), workers);
        pool.close().unwrap();
        assert_eq!(listed(&ids), 0);
    }
}

#[test]
fn b41_submitters_meet_a_close_and_every_task_has_an_end() {
    for _ in 0..200 {
        let pool = Pool::threads(2).unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let start = Barrier::new(3);
        thread::scope(|scope| {
            let submitters = [(); 2].map(|()| {
                scope.spawn(|| {
                    start.wait();
                    let tasks: Vec<_> = (0..20)
                        .map(|_| {
                            let ran = Arc::clone(&ran);
                            pool.submit(move |()| ran.fetch_add(1, Ordering::SeqCst), ())
                        })
                        .collect();
                    let outcomes = tasks.into_iter().map(TaskFuture::result);
                    outcomes
                        .filter(|outcome| *outcome != Err(TaskError::from(PoolError::Closed)))
                        .count()
                })
            });
            start.wait();
            pool.close().unwrap();
            let with_result: usize = submitters
                .map(|submitter| submitter.join().unwrap())
                .iter()
                .sum();
            assert_eq!(with_result, ran.load(Ordering::SeqCst));
        });
    }
}

#[test]
fn close_from_inside_is_an_error_and_the_pool_goes_on() {
    let refused = |outcome: Result<(), PoolError>| matches!(outcome, Err(PoolError::System { .. }));
    let pool = Arc::new(Pool::threads(1).unwrap());
    let inside = Arc::clone(&pool);
    assert!(refused(
        pool.submit(move |()| inside.close(), ()).result().unwrap()
    ));
    let mut outcomes = Vec::new();
    pool.call()
        .on_progress(|_| outcomes.push(pool.close()))
        .map(|x: u64| x, 0..1)
        .unwrap();
    assert!(outcomes.into_iter().all(refused));
    assert_eq!(pool.submit(|x: i32| x + 1, 1).result(), Ok(2));
    assert_eq!(pool.close(), Ok(()));
}

#[test]
fn b20_a_pool_of_no_workers_or_too_many_is_an_error() {
    assert_eq!(Pool::threads(0).unwrap_err(), PoolError::ZeroWorkers);
    assert!(matches!(
        Pool::threads(usize::MAX),
        Err(PoolError::StartFailed { .. })
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn a_pool_with_nothing_to_do_comes_to_rest() {
    for workers in [1, 2, 5] {
        let pool = Pool::threads(workers).unwrap();
        let dispatch = &pool.engine().dispatch;
        until("a new pool to rest", || dispatch.is_at_rest());
        assert_eq!(dispatch.thread_ids().ids().len(), workers);
        let gate = Arc::new(Gate::default());
        let task = pool.submit(
            {
                let gate = Arc::clone(&gate);
                move |()| {
                    gate.pass();
                    rayon::join(|| (), || ());
                }
            },
            (),
        );
        gate.until_waiting(1);
        assert!(!dispatch.is_at_rest());
        assert_eq!(idle_thread_ids(), None);
        gate.open();
        assert_eq!(task.result(), Ok(()));
        until("a pool to rest", || dispatch.is_at_rest());
    }
}

// Map --------------------------------------------------------------------------------------------

#[test]
fn b16_map_keeps_the_order_for_every_chunk_size_and_length() {
    let pool = Pool::threads(3).unwrap();
    for length in [0_u64, 1, 10, 1_000, 100_000] {
        let expected: Vec<u64> = (0..length).map(|x| x * 3).collect();
        for schedule in [1, 3, 20, 100]
            .map(Schedule::Dynamic)
            .into_iter()
            .chain([Schedule::Guided, Schedule::Equal])
        {
            let call = || pool.call().schedule(schedule);
            assert_eq!(
                call().map(|x| x * 3, 0..length).as_ref(),
                Ok(&expected),
                "{schedule:?}, {length}"
            );
            let of_unknown_length = (0..length).filter(|_| true);
            assert_eq!(
                call().map(|x| x * 3, of_unknown_length).as_ref(),
                Ok(&expected),
                "{schedule:?}, {length}"
            );
        }
    }
}

#[test]
fn map_borrows_from_its_caller_and_moves_what_is_not_copy() {
    let pool = Pool::threads(2).unwrap();
    let words: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
    let lengths = pool
        .map(|word: &String| (word, word.len()), &words)
        .unwrap();
    assert!(
        lengths
            .iter()
            .zip(&words)
            .all(|(&(word, len), expected)| word == expected && len == expected.len())
    );
    let suffix = String::from("!");
    let loud = pool
        .map(|word: String| word + &suffix, words.clone())
        .unwrap();
    assert!(
        loud.iter()
            .zip(&words)
            .all(|(loud, word)| loud.strip_suffix('!') == Some(word))
    );
    let scaled = pool
        .call()
        .map_with(&suffix, |suffix, n: usize| suffix.repeat(n), [2, 0, 1]);
    assert_eq!(scaled.unwrap(), ["!!", "", "!"]);
}

#[test]
fn the_iterator_stays_on_the_callers_thread() {
    let pool = Pool::threads(2).unwrap();
    let here = std::rc::Rc::new(thread::current().id());
    let mut left = 3_000;
    let not_send = std::iter::from_fn(|| {
        assert_eq!(thread::current().id(), *here);
        left -= 1;
        (left > 0).then_some(left)
    });
    let elsewhere = pool.map(|_: i32| thread::current().id(), not_send).unwrap();
    assert!(elsewhere.iter().all(|id| *id != *here));
}

#[test]
fn b37_the_failure_with_the_lowest_index_is_returned() {
    let pool = Pool::threads(3).unwrap();
    for failing in [0_usize, 1, 777, 4_999] {
        for schedule in [Schedule::Guided, Schedule::Equal, Schedule::Dynamic(7)] {
            let ran = AtomicUsize::new(0);
            let outcome = pool.call().schedule(schedule).map(
                |x: usize| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    assert!(x < failing, "item {x} fails");
                    x
                },
                0..5_000,
            );
            let error = outcome.unwrap_err();
            assert_eq!(error.index(), Some(failing));
            assert!(
                panics_with(&error, &format!("item {failing} fails")),
                "{error}"
            );
            assert!(
                ran.load(Ordering::Relaxed) > failing,
                "an item before the failure was left out"
            );
        }
    }
    assert_eq!(pool.map(|x: usize| x, 0..3), Ok(vec![0, 1, 2]));
}

#[test]
fn items_after_a_failure_are_left_out() {
    let pool = Pool::threads(1).unwrap();
    let ran = AtomicUsize::new(0);
    // Within a chunk of ten, a worker looks at every item; the chunks after it are under way
    // already.
    let error = pool
        .call()
        .chunk_size(10)
        .map(
            |x: usize| {
                ran.fetch_add(1, Ordering::Relaxed);
                assert_ne!(x, 15);
            },
            0..,
        )
        .unwrap_err();
    assert_eq!(error.index(), Some(15));
    assert_eq!(ran.load(Ordering::Relaxed), 16);
}

#[test]
fn b38_a_panic_of_the_iterator_reaches_the_caller_after_what_was_started() {
    let pool = Pool::threads(2).unwrap();
    for at in [0, 1, 500, 20_000] {
        let (started, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let items = (0_usize..).inspect(|&x| assert_ne!(x, at, "in the iterator"));
            pool.map(
                |x| {
                    started.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    ended.fetch_add(1, Ordering::SeqCst);
                    x
                },
                items,
            )
        }));
        let payload = unwound.unwrap_err();
        assert!(
            payload
                .downcast_ref::<String>()
                .unwrap()
                .contains("in the iterator")
        );
        let ended_by_then = ended.load(Ordering::SeqCst);
        assert_eq!(
            started.load(Ordering::SeqCst),
            ended_by_then,
            "an item was running"
        );
        assert_eq!(pool.map(|x: u64| x, 0..3), Ok(vec![0, 1, 2]));
    }
}

#[test]
fn b38_a_panic_of_the_progress_callback_reaches_the_caller() {
    let pool = Pool::threads(2).unwrap();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        pool.call()
            .on_progress(|p| assert!(p.done < 100, "in the callback"))
            .map(|x: u64| x, 0..1_000)
    }));
    assert!(unwound.is_err());
    assert_eq!(pool.map(|x: u64| x, 0..3), Ok(vec![0, 1, 2]));
}

#[test]
fn b36_every_item_and_result_is_dropped_whatever_happens() {
    let pool = Pool::threads(2).unwrap();
    let token = Arc::new(());
    for (failing, panicking) in [
        (usize::MAX, usize::MAX),
        (50, usize::MAX),
        (usize::MAX, 3_000),
        (2_900, 3_000),
    ] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let items = (0..5_000_usize).map(|x| {
                assert_ne!(x, panicking);
                (x, Arc::clone(&token))
            });
            pool.map(
                |(x, token)| {
                    assert_ne!(x, failing);
                    token
                },
                items,
            )
        }));
        drop(outcome);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}

#[test]
fn b19_the_input_is_taken_a_window_at_a_time() {
    let pool = Pool::threads(2).unwrap();
    let gate = Gate::default();
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        let results = scope.spawn(|| {
            let items = (0..10_000_usize).inspect(|_| {
                taken.fetch_add(1, Ordering::SeqCst);
            });
            let call = pool.call().chunk_size(1);
            call.map(
                |x| {
                    gate.pass();
                    x
                },
                items,
            )
        });
        gate.until_waiting(2);
        let window = map::NARROW_WINDOW * 2;
        until("a full window", || taken.load(Ordering::SeqCst) == window);
        thread::yield_now();
        assert_eq!(taken.load(Ordering::SeqCst), window);
        gate.open();
        assert_eq!(results.join().unwrap().unwrap().len(), 10_000);
    });
}

/// An iterator whose `size_hint` is wrong.
struct Liar {
    left: usize,
    says: usize,
}

impl Iterator for Liar {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        Some(self.left)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.says, Some(self.says))
    }
}

#[test]
fn a_wrong_size_hint_costs_time_at_most() {
    let pool = Pool::threads(2).unwrap();
    for schedule in [Schedule::Guided, Schedule::Equal, Schedule::Dynamic(3)] {
        for says in [0, 1, 10, 499, 500, 501, 100_000] {
            let results = pool
                .call()
                .schedule(schedule)
                .map(|x: usize| x.to_string(), Liar { left: 500, says });
            let expected: Vec<_> = (0..500_usize).rev().map(|x| x.to_string()).collect();
            assert_eq!(results, Ok(expected), "{schedule:?}, {says}");
        }
    }
}

#[test]
fn progress_is_told_on_the_callers_thread_up_to_the_end() {
    let pool = Pool::threads(2).unwrap();
    let here = thread::current().id();
    let mut told = Vec::new();
    let call = pool.call().chunk_size(10).on_progress(|p| {
        assert_eq!(thread::current().id(), here);
        told.push((p.done, p.failed, p.total));
    });
    call.map(|x: u64| x, 0..1_000).unwrap();
    assert!(told.is_sorted());
    assert_eq!(told.last(), Some(&(1_000, 0, Some(1_000))));

    let mut told = Vec::new();
    let call = pool
        .call()
        .chunk_size(10)
        .on_progress(|p| told.push((p.done, p.failed)));
    call.map(|x: u64| assert!(x != 500), 0..1_000).unwrap_err();
    assert!(
        told.iter()
            .all(|&(done, failed)| failed <= 1 && done <= 1_000)
    );
    assert_eq!(told.last().unwrap().1, 1);
}

#[test]
fn maps_and_tasks_of_many_threads_share_one_pool() {
    let pool = Pool::threads(2).unwrap();
    thread::scope(|scope| {
        for caller in 0..6_u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..20 {
                    let n = 100 * caller + round;
                    if caller % 2 == 0 {
                        let sum: u64 = pool.map(|x| x, 0..n).unwrap().into_iter().sum();
                        assert_eq!(sum, n * n.saturating_sub(1) / 2);
                    } else {
                        let tasks: Vec<_> = (0..n).map(|x| pool.submit(|x: u64| x, x)).collect();
                        let sum: u64 = tasks.into_iter().map(|task| task.result().unwrap()).sum();
                        assert_eq!(sum, n * n.saturating_sub(1) / 2);
                    }
                }
            });
        }
    });
}

#[test]
fn b89_a_task_that_has_cancelled_its_call_before_it_can_be_stopped_keeps_its_outcome() {
    let pool = Pool::threads(2).unwrap();
    // Its own token, or that of another task, which cancels it in its place.
    for is_own in [true, false] {
        let (token, gate) = (CancellationToken::new(), Arc::new(Gate::default()));
        let ending = ending_of(std::slice::from_ref(&token), None, None).unwrap();
        let limits = Limits::none().with(|given| given.ending = Some(ending.clone()));
        let (own, passed) = (token.clone(), Arc::clone(&gate));
        let run = move |()| {
            if is_own {
                own.cancel();
            }
            passed.pass();
            7
        };
        let task = pool.engine().submit(limits, run, ());
        gate.until_waiting(1);
        if !is_own {
            pool.submit(move |()| token.cancel(), ()).result().unwrap();
        }
        // The call ends its tasks only now.
        task.end_with(&ending);
        gate.open();
        let expected = if is_own {
            Ok(7)
        } else {
            Err(TaskError::Cancelled {})
        };
        assert_eq!(task.result(), expected, "{is_own}");
    }
}
