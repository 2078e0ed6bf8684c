//! Handles of tasks: callbacks, many at once, `.await`.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::{as_completed, wait};

use crate::common::errors::cancelled;
use crate::common::{DEADLINE, Leftovers, eventually};
use crate::{Folder, endless, outcome, pid, touch, wait_for};

#[test]
fn b46_threads_that_wait_go_on_when_the_one_that_woke_them_all_has_left() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for round in 0..20 {
        let folder = Folder::new();
        let open = |n: usize| folder.file(&format!("open-{n}"));
        let tasks = [0, 1].map(|n| pool.submit(wait_for, open(n)));
        // Without a deadline: only another thread can wake them.
        let waiting = tasks.map(|task| std::thread::spawn(|| task.result()));
        for _ in 0..round * 20 {
            std::thread::yield_now();
        }
        for n in [round % 2, 1 - round % 2] {
            touch(open(n));
            eventually("the one that waits for it has it", || {
                waiting[n].is_finished()
            });
        }
        assert!(
            waiting
                .into_iter()
                .all(|thread| thread.join().unwrap().is_ok())
        );
    }
}

#[test]
fn b48_callbacks_are_called_once_whatever_the_end() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    let blocked = pool.submit(wait_for, folder.file("open"));
    let fails = |n: u32| -> u32 { panic!("no {n}") };
    let dies = |_: u32| -> u32 { std::process::abort() };
    let tasks = [
        (pool.submit(|n: u32| n + 1, 1), "value"),
        (pool.submit(fails, 2), "panic"),
        (pool.submit(dies, 3), "death"),
        (pool.submit(|n: u32| n, 4), "cancelled"),
        (
            pool.call()
                .timeout(Duration::from_millis(50))
                .submit(endless, 5),
            "late",
        ),
    ];
    let (send, receive) = channel();
    for (task, name) in &tasks {
        for _ in 0..2 {
            let (send, name) = (send.clone(), *name);
            task.on_done(move |outcome| {
                send.send((name, outcome.cloned().map_err(Clone::clone)))
                    .unwrap();
            });
        }
    }
    assert!(tasks[3].0.cancel());
    // The callbacks of the cancelled task come at once, and those of the others when they have
    // ended.
    for _ in 0..2 {
        let told = receive.recv_timeout(DEADLINE);
        assert_eq!(told, Ok(("cancelled", Err(cancelled()))));
    }
    assert!(receive.try_recv().is_err());
    touch(folder.file("open"));
    let mut told = Vec::new();
    for _ in 0..8 {
        told.push(receive.recv_timeout(DEADLINE).unwrap());
    }
    for (task, name) in tasks {
        let of_task = told.iter().filter(|(told, _)| *told == name);
        let outcomes: Vec<_> = of_task.map(|(_, outcome)| outcome.clone()).collect();
        let outcome = outcome(task);
        assert_eq!(outcomes.len(), if name == "cancelled" { 0 } else { 2 });
        assert!(outcomes.iter().all(|told| *told == outcome), "{name}");
        let is_right = match name {
            "value" => outcome == Ok(2),
            "panic" => matches!(outcome, Err(TaskError::Panicked { .. })),
            "death" => matches!(outcome, Err(TaskError::WorkerDied { .. })),
            "late" => matches!(outcome, Err(TaskError::TimedOut { .. })),
            _ => outcome == Err(cancelled()),
        };
        assert!(is_right, "{name}: {outcome:?}");
    }
    assert!(outcome(blocked).is_ok());
    assert!(receive.try_recv().is_err(), "no callback is called twice");
}

#[test]
fn b48_after_the_end_a_callback_is_called_at_once_on_the_same_thread() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let task = pool.submit(|n: u32| n + 1, 1);
    eventually("it has ended", || task.is_done());
    let here = std::thread::current().id();
    let told = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        let told = Arc::clone(&told);
        task.on_done(move |outcome| {
            let thread = std::thread::current().id();
            told.lock()
                .unwrap()
                .push((outcome.copied().unwrap(), thread));
        });
    }
    assert_eq!(*told.lock().unwrap(), [(2, here), (2, here)]);
    assert_eq!(outcome(task), Ok(2));
}

#[test]
fn b48_callbacks_that_panic_stop_nothing_and_may_use_the_pool() {
    let _none = Leftovers::none();
    let pool = Arc::new(Pool::processes(1).unwrap());
    let (send, receive) = channel();
    let task = pool.submit(|n: u32| n, 1);
    task.on_done(|_| panic!("a callback of the test, on purpose"));
    let inner = Arc::clone(&pool);
    let second = send.clone();
    task.on_done(move |_| {
        // Callbacks run one after the other. A thread that waits finds the result that this one
        // waits for.
        second
            .send(inner.submit(|n: u32| n * 2, 21).result())
            .unwrap();
    });
    task.on_done(move |outcome| send.send(outcome.copied().map_err(Clone::clone)).unwrap());
    let mut told = [
        receive.recv_timeout(DEADLINE),
        receive.recv_timeout(DEADLINE),
    ];
    told.sort_by_key(|told| told.clone().unwrap().unwrap());
    assert_eq!(told, [Ok(Ok(1)), Ok(Ok(42))]);
    assert_eq!(outcome(task), Ok(1));
    assert!(outcome(pool.submit(pid, 0)).is_ok());
}

#[test]
fn b49_wait_gives_exactly_those_that_have_ended() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let blocked = pool.submit(wait_for, folder.file("open"));
    let value = pool.submit(|n: u32| n, 1);
    let failed = pool.submit(|n: u32| -> u32 { panic!("no {n}") }, 2);
    let cancelled = pool.submit(|n: u32| n, 3);
    let is_cancelled = cancelled.cancel();
    let all = [blocked, value, failed, cancelled];
    let (done, pending) = wait(all, ReturnWhen::FirstError, None);
    assert!(!done.is_empty() && !pending.is_empty());
    let all: Vec<_> = done.into_iter().chain(pending).collect();
    eventually("three have ended", || {
        all.iter().filter(|task| task.is_done()).count() == 3
    });
    let (done, pending) = wait(
        all,
        ReturnWhen::AllCompleted,
        Some(Duration::from_millis(50)),
    );
    assert_eq!(
        (done.len(), pending.len()),
        (3, 1),
        "after the time that was given"
    );
    let errors = done.into_iter().map(outcome).filter(Result::is_err).count();
    assert_eq!(errors, 1 + usize::from(is_cancelled));
    touch(folder.file("open"));
    let (done, pending) = wait(pending, ReturnWhen::AllCompleted, Some(DEADLINE));
    assert_eq!((done.len(), pending.len()), (1, 0));
}

#[test]
fn b50_as_completed_gives_the_finished_first_and_each_once() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let mut tasks = vec![pool.submit(
        |path| {
            wait_for(path);
            0
        },
        folder.file("open"),
    )];
    tasks.extend((1..50u32).map(|n| {
        pool.submit(
            |path: std::path::PathBuf| path.to_str().unwrap().parse().unwrap(),
            n.to_string().into(),
        )
    }));
    let mut ended = as_completed(tasks);
    let mut numbers: Vec<u32> = ended
        .by_ref()
        .take(49)
        .map(|task| outcome(task).unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..50).collect::<Vec<_>>());
    let late = ended.next_timeout(Duration::from_millis(50));
    assert!(late.is_err() && ended.len() == 1);
    touch(folder.file("open"));
    let last = ended.next_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!((outcome(last), ended.len()), (Ok(0), 0));
    assert!(ended.next_timeout(Duration::ZERO).unwrap().is_none());
}

#[test]
fn b51_a_thousand_that_end_at_once_wake_all_who_wait() {
    let _none = Leftovers::none();
    for round in 0..3 {
        let folder = Folder::new();
        let pool = Pool::processes(2).unwrap();
        let gates: Vec<_> = (0..2)
            .map(|_| pool.submit(wait_for, folder.file("open")))
            .collect();
        let told = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..1_000u32).map(|n| pool.submit(|n: u32| n, n)).collect();
        for task in tasks.iter().step_by(3) {
            let told = Arc::clone(&told);
            task.on_done(move |_| {
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut parts: Vec<Vec<_>> = (0..8).map(|_| Vec::new()).collect();
        for (n, task) in tasks.into_iter().enumerate() {
            parts[n % 8].push((n as u32, task));
        }
        std::thread::scope(|scope| {
            for (number, part) in parts.into_iter().enumerate() {
                scope.spawn(move || {
                    if (number + round) % 2 == 0 {
                        for (n, task) in part {
                            assert_eq!(outcome(task), Ok(n));
                        }
                    } else {
                        let (sum, tasks): (Vec<u32>, Vec<_>) = part.into_iter().unzip();
                        let mut ended = as_completed(tasks);
                        let next = || ended.next_timeout(DEADLINE).unwrap();
                        let values = std::iter::from_fn(next).map(|task| outcome(task).unwrap());
                        assert_eq!(values.sum::<u32>(), sum.into_iter().sum::<u32>());
                    }
                });
            }
            touch(folder.file("open"));
        });
        assert!(gates.into_iter().all(|gate| outcome(gate).is_ok()));
        eventually("all callbacks were called", || {
            told.load(Ordering::Relaxed) == 334
        });
    }
}

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest runtime there is, with a deadline.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let left = DEADLINE.checked_sub(start.elapsed());
        std::thread::park_timeout(left.expect("the future has not ended in time"));
    }
}

#[test]
fn b52_await_gives_what_result_gives() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    block_on(async {
        assert_eq!(pool.submit(|n: u32| n + 1, 1).await, Ok(2));
        let died = pool.submit(|_: u32| -> u32 { std::process::abort() }, 1);
        assert!(matches!(died.await, Err(TaskError::WorkerDied { .. })));
        let late = pool.call().timeout(Duration::from_millis(50));
        let late = late.submit(endless, 0).await;
        assert!(matches!(late, Err(TaskError::TimedOut { .. })));
        let killed = pool.submit(endless, 0);
        assert!(killed.kill());
        assert_eq!(killed.await, Err(cancelled()));
        let told = pool.submit(|n: u32| n, 7);
        told.on_done(|outcome| assert_eq!(outcome, Ok(&7)));
        assert_eq!(told.await, Ok(7));
        // A closure's context, more than fits into a ring.
        let large = pool.submit(|bytes: Vec<u8>| bytes, vec![3; 2 << 20]);
        assert_eq!(large.await.map(|bytes| bytes.len()), Ok(2 << 20));
    });
}

#[test]
fn b52_a_thousand_are_awaited_without_a_thread_for_each() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let gates: Vec<_> = (0..2)
        .map(|_| pool.submit(wait_for, folder.file("open")))
        .collect();
    let mut tasks: Vec<_> = (0..1_000u32)
        .map(|n| Some(pool.submit(|n: u32| n, n)))
        .collect();
    let (mut sum, mut polls, mut most) = (0, 0, 0);
    block_on(std::future::poll_fn(|context| {
        polls += 1;
        for task in &mut tasks {
            if let Some(future) = task
                && let Poll::Ready(value) = pin!(future).poll(context)
            {
                sum += value.unwrap();
                *task = None;
            }
        }
        most = most.max(threads());
        if polls == 1 {
            touch(folder.file("open"));
        }
        if tasks.iter().all(Option::is_none) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    assert_eq!(sum, 499_500);
    // One thread moves things on when no caller waits, and the test runner may start others.
    assert!(most <= before + 3, "{before} threads, and then {most}");
    assert!(gates.into_iter().all(|gate| outcome(gate).is_ok()));
}

#[test]
fn b52_dropping_an_awaited_future_cancels_what_is_queued() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    let gate = pool.submit(wait_for, folder.file("open"));
    let queued = |name: &str| pool.submit(touch, folder.file(name));
    let (mut awaited, kept) = (queued("awaited"), queued("kept"));
    let mut context = Context::from_waker(Waker::noop());
    assert!(pin!(&mut awaited).poll(&mut context).is_pending());
    drop(awaited);
    // A task that was never awaited runs, though its handle is gone.
    drop(kept);
    touch(folder.file("open"));
    assert!(outcome(gate).is_ok());
    pool.close().unwrap();
    assert!(folder.file("kept").exists() && !folder.file("awaited").exists());
}
