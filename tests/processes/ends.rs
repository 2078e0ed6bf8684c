//! How tasks and pools end before their time: cancelled, killed, shut down, dropped.

use std::sync::mpsc::channel;
use std::time::Duration;

use manyhands::Shutdown;
use manyhands::prelude::*;
use manyhands::process::Stdio;

use crate::common::errors::{cancelled, is_cancelled_or_closed};
use crate::common::{DEADLINE, Leftovers, Sleeper, eventually, is_running};
use crate::{
    Folder, Touches, begin_and_wait, endless, outcome, pid, takes_no_more, touch, wait_for, workers,
};

#[test]
fn b33_ten_thousand_queued_tasks_are_cancelled_at_once() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let running: Vec<_> = (0..2)
        .map(|n| {
            let begun = folder.file(&format!("begun-{n}"));
            pool.submit(begin_and_wait, (begun, folder.file("open")))
        })
        .collect();
    eventually("both run", || folder.count("begun-") == 2);
    let queued: Vec<_> = (0..10_000).map(|n| pool.submit(endless, n)).collect();
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
        // While those that run go on.
        for task in queued {
            assert_eq!(outcome(task), Err(cancelled()));
        }
        assert!(running.iter().all(|task| !task.is_done()));
        let late = outcome(pool.submit(pid, 0));
        assert_eq!(late, Err(TaskError::from(PoolError::Closed)));
        touch(folder.file("open"));
        for task in running {
            assert!(outcome(task).is_ok());
        }
        assert_eq!(ending.join().unwrap(), Ok(()));
    });
    assert!(workers().is_empty());
}

#[test]
fn b33_who_sleeps_over_a_queued_task_hears_that_a_shutdown_has_cancelled_it() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    let open = folder.file("open");
    let running = pool.submit(begin_and_wait, (folder.file("begun"), open.clone()));
    eventually("it runs", || folder.count("begun") == 1);
    let queued = pool.submit(pid, 0);
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let _opens = Touches(open);
        let waiting = scope.spawn(|| sleeper.run(|| queued.result()));
        sleeper.is_asleep();
        let ending = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
        // The other task still runs: no answer of a worker wakes the caller.
        eventually("the caller is woken", || waiting.is_finished());
        assert_eq!(waiting.join().unwrap(), Err(cancelled()));
        assert!(!running.is_done() && !ending.is_finished());
    });
    assert!(outcome(running).is_ok());
}

#[test]
fn b32_close_waits_for_a_call_for_all_outcomes_that_reads_on() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let (read_some, has_read_some) = channel();
    let (go, may_go) = channel();
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let pool = &pool;
        let call = scope.spawn(move || {
            let items = (0..40_u32).inspect(|&n| {
                if n == 20 {
                    read_some.send(()).unwrap();
                    may_go.recv_timeout(2 * DEADLINE).unwrap();
                }
            });
            pool.call().chunk_size(1).map_outcomes(|n: u32| n, items)
        });
        // If the test fails, the call ends with a panic of its input.
        let go = go;
        has_read_some.recv_timeout(DEADLINE).unwrap();
        let closing = scope.spawn(|| sleeper.run(|| pool.close()));
        takes_no_more(pool);
        sleeper.is_asleep();
        assert!(!closing.is_finished(), "close has not waited for the call");
        go.send(()).unwrap();
        let outcomes = call.join().unwrap();
        assert!(outcomes.into_iter().eq((0..40).map(Ok)));
        assert_eq!(closing.join().unwrap(), Ok(()));
    });
}

/// Whichever of the two comes first.
#[test]
fn b33_a_shutdown_cancels_a_call_that_another_thread_waits_for_with_close() {
    let _none = Leftovers::none();
    for close_first in [true, false] {
        let pool = Pool::processes(1).unwrap();
        let (go, may_go) = channel();
        let sleeper = &Sleeper::new();
        std::thread::scope(|scope| {
            let pool = &pool;
            let call = scope.spawn(move || {
                let items = (0..3_u32).inspect(|&n| {
                    if n == 1 {
                        may_go.recv_timeout(2 * DEADLINE).unwrap();
                    }
                });
                let items: Box<dyn ExactSizeIterator<Item = u32>> = Box::new(items);
                pool.call().chunk_size(1).map(pid, items)
            });
            // If the test fails, the call ends with a panic of its input.
            let go = go;
            eventually("the call runs", || pool.stats().total().tasks == 1);
            let end = |closes: bool| {
                if closes {
                    pool.close()
                } else {
                    pool.shutdown(Shutdown::CancelQueued)
                }
            };
            let first = scope.spawn(move || end(close_first));
            takes_no_more(pool);
            let second = scope.spawn(move || sleeper.run(|| end(!close_first)));
            sleeper.is_asleep();
            go.send(()).unwrap();
            assert_eq!(call.join().unwrap(), Err(cancelled()));
            assert_eq!(first.join().unwrap(), Ok(()));
            assert_eq!(second.join().unwrap(), Ok(()));
        });
    }
}

#[test]
fn b33_kill_stops_those_that_run_too() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let tasks: Vec<_> = (0..10_000).map(|n| pool.submit(endless, n)).collect();
    let lazy = pool.call().chunk_size(1).imap(endless, 0..100);
    assert_eq!(pool.shutdown(Shutdown::Kill), Ok(()));
    assert!(workers().is_empty());
    for task in tasks {
        assert_eq!(outcome(task), Err(cancelled()));
    }
    // What had not been given out is refused.
    assert!(lazy.into_iter().all(|item| item.is_err()));
    assert_eq!(pool.shutdown(Shutdown::Kill), Ok(()));
    assert_eq!(pool.close(), Ok(()));
}

#[test]
fn b33_calls_that_are_under_way_end_when_the_pool_is_shut_down() {
    let _none = Leftovers::none();
    for how in [Shutdown::CancelQueued, Shutdown::Kill] {
        let folder = Folder::new();
        let pool = Pool::processes(2).unwrap();
        let open = folder.file("open");
        let call = || pool.call().chunk_size(1);
        let gates = || std::iter::repeat_n(open.clone(), 500);
        std::thread::scope(|scope| {
            let mapping = scope.spawn(|| call().map(wait_for, gates()));
            let trying = scope.spawn(|| call().map_outcomes(wait_for, gates()));
            let taking = scope.spawn(|| call().imap(wait_for, gates()).collect::<Vec<_>>());
            eventually("something runs", || {
                let probe = pool.submit(wait_for, open.clone());
                !probe.is_running() && probe.cancel()
            });
            let ending = scope.spawn(|| pool.shutdown(how));
            eventually("the pool takes no more", || {
                let refused = Err(TaskError::from(PoolError::Closed));
                let probe = pool.submit(pid, 0);
                probe.is_done() && probe.result() == refused
            });
            if matches!(how, Shutdown::CancelQueued) {
                touch(open.clone());
            }
            assert_eq!(ending.join().unwrap(), Ok(()));
            assert!(
                mapping
                    .join()
                    .unwrap()
                    .is_err_and(|error| is_cancelled_or_closed(&error))
            );
            for outcomes in [trying.join().unwrap(), taking.join().unwrap()] {
                assert_eq!(outcomes.len(), 500);
                assert!(
                    outcomes
                        .iter()
                        .filter_map(|each| each.as_ref().err())
                        .all(is_cancelled_or_closed)
                );
            }
        });
    }
}

#[test]
fn b34_pools_of_all_kinds_leave_nothing_when_they_are_dropped() {
    let _none = Leftovers::none();
    for round in 0..100 {
        let builder = Processes::builder().workers(1 + round % 2);
        let builder = match round % 5 {
            0 => builder
                .stdout(Stdio::lines(|_, _| {}))
                .stderr(Stdio::null()),
            1 => builder.max_tasks_per_worker(1),
            2 => builder.idle_timeout(Duration::from_millis(1)),
            3 => builder.initializer(|| Ok::<_, String>(vec![1u8; 1 << 16])),
            _ => builder.task_timeout(Duration::from_secs(60)),
        };
        let pool = builder.build().unwrap();
        let tasks: Vec<_> = (0..5).map(|n| pool.submit(endless, n)).collect();
        let told = pool.submit(pid, 0);
        told.on_done(|_| {});
        if round % 3 == 0 {
            pool.resize(3).unwrap();
        }
        drop(pool);
        for task in tasks {
            assert_eq!(outcome(task), Err(cancelled()));
        }
    }
}

#[test]
fn b47_cancel_takes_what_has_not_begun_and_nothing_else() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    let running = pool.submit(begin_and_wait, (folder.file("begun"), folder.file("open")));
    eventually("it runs", || folder.count("begun") == 1);
    assert!(running.is_running() && !running.is_done());
    // The first of these lie in the lane of the worker, the others in the queue.
    let queued: Vec<_> = (0..40)
        .map(|n| pool.submit(touch, folder.file(&format!("ran-{n}"))))
        .collect();
    for task in queued.iter().step_by(2) {
        assert!(!task.is_running());
        assert!(task.cancel() && task.is_done());
        assert!(!task.cancel(), "only once");
    }
    assert!(!running.cancel(), "it has begun");
    touch(folder.file("open"));
    for (n, task) in queued.into_iter().enumerate() {
        let expected = if n % 2 == 0 { Err(cancelled()) } else { Ok(()) };
        assert_eq!(outcome(task), expected);
        assert_eq!(folder.file(&format!("ran-{n}")).exists(), n % 2 == 1);
    }
    assert!(outcome(running).is_ok());
    let mut finished = pool.submit(pid, 0);
    let result = finished.result_timeout(DEADLINE).unwrap();
    assert!(result.is_ok() && finished.is_done());
    assert!(!finished.cancel() && !finished.kill() && !finished.is_running());
}

#[test]
fn b47_kill_stops_a_running_task_and_its_worker_is_replaced() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    for round in 0..10 {
        let worker = outcome(pool.submit(pid, 0)).unwrap();
        let begun = folder.file(&format!("begun-{round}"));
        let running = pool.submit(begin_and_wait, (begun.clone(), folder.file("never")));
        let behind: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, n)).collect();
        eventually("it runs", || begun.exists());
        let queued = behind.len() / 2;
        assert!(behind[queued].kill(), "a queued task is just cancelled");
        assert!(running.kill());
        assert_eq!(outcome(running), Err(cancelled()));
        for (n, task) in behind.into_iter().enumerate() {
            let expected = if n == queued {
                Err(cancelled())
            } else {
                Ok(n as u32)
            };
            assert_eq!(outcome(task), expected);
        }
        assert!(!is_running(worker));
        assert_ne!(outcome(pool.submit(pid, 0)), Ok(worker));
    }
}

#[test]
fn b47_kill_right_after_submit() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for _ in 0..50 {
        let task = pool.submit(endless, 0);
        assert!(task.kill());
        assert_eq!(outcome(task), Err(cancelled()));
    }
    assert!(outcome(pool.submit(pid, 0)).is_ok());
}

#[test]
fn b47_cancel_and_kill_while_a_large_argument_is_under_way() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let length = |bytes: Vec<u8>| bytes.len();
    let bytes = vec![7u8; 64 << 20];
    for _ in 0..2 {
        // Half of it is in the ring, and no thread reads on this side.
        let task = pool.submit(length, bytes.clone());
        let is_cancelled = task.cancel();
        let behind = pool.submit(pid, 0);
        match outcome(task) {
            Ok(len) => assert!(len == 64 << 20 && !is_cancelled),
            Err(TaskError::Cancelled { .. }) => assert!(is_cancelled),
            other => panic!("{other:?}"),
        }
        assert!(outcome(behind).is_ok());

        let task = pool.submit(length, bytes.clone());
        let behind = pool.submit(pid, 0);
        assert!(task.kill());
        match outcome(task) {
            // It may have come to its end in the meantime.
            Ok(len) => assert_eq!(len, 64 << 20),
            Err(TaskError::Cancelled { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(outcome(behind).is_ok());

        // A cancelled task behind it does not touch what is under way.
        let task = pool.submit(length, bytes.clone());
        let behind = pool.submit(pid, 0);
        let is_cancelled = behind.cancel();
        assert_eq!(outcome(task), Ok(64 << 20));
        assert_eq!(outcome(behind).is_err(), is_cancelled);
    }
}
