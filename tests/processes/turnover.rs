//! Workers that come and go: after a number of tasks, when there is nothing to do, when the pool is
//! resized.

use std::collections::BTreeMap;
use std::time::Duration;

use manyhands::closure;
use manyhands::prelude::*;

use crate::common::errors::cancelled;
use crate::common::{Leftovers, eventually, kill};
use crate::{Folder, begin_and_wait, outcome, pid, touch, wait_for, workers};

fn turning_over(workers: usize, tasks: u32) -> Pool<Processes> {
    let builder = Processes::builder().workers(workers);
    builder.max_tasks_per_worker(tasks).build().unwrap()
}

#[track_caller]
fn assert_at_most(most: usize, pids: &[u32]) {
    let mut counts = BTreeMap::new();
    for pid in pids {
        *counts.entry(pid).or_insert(0) += 1;
    }
    assert!(counts.values().all(|&count| count <= most), "{counts:?}");
}

#[test]
fn b31_a_worker_runs_so_many_tasks_and_then_another_comes() {
    let _none = Leftovers::none();
    let pool = turning_over(1, 3);
    let pids: Vec<u32> = (0..12)
        .map(|n| outcome(pool.submit(pid, n)).unwrap())
        .collect();
    let mut kinds = pids.clone();
    kinds.dedup();
    assert_eq!(kinds.len(), 4);
    assert!(
        pids.chunks(3)
            .all(|of_one| of_one.iter().all(|&pid| pid == of_one[0]))
    );
    // The same when they are all there at once.
    let tasks: Vec<_> = (0..12).map(|n| pool.submit(pid, n)).collect();
    let pids: Vec<u32> = tasks
        .into_iter()
        .map(|task| outcome(task).unwrap())
        .collect();
    let mut kinds = pids.clone();
    kinds.dedup();
    assert_eq!(kinds.len(), 4, "{pids:?}");
    assert_at_most(3, &pids);
}

#[test]
fn b31_six_tasks_one_for_each_worker_and_an_immediate_close() {
    let _none = Leftovers::none();
    for workers in [1, 2, 4] {
        let pool = turning_over(workers, 1);
        let tasks: Vec<_> = (0..6).map(|n| pool.submit(pid, n)).collect();
        assert_eq!(pool.close(), Ok(()));
        let pids: Vec<u32> = tasks
            .into_iter()
            .map(|task| outcome(task).unwrap())
            .collect();
        assert_at_most(1, &pids);
    }
}

#[test]
fn b31_items_of_calls_are_counted_singly() {
    let _none = Leftovers::none();
    let pool = turning_over(2, 7);
    for chunk in [1, 5, 40, 100] {
        let call = || pool.call().chunk_size(chunk);
        assert_at_most(7, &call().map(pid, 0..100).unwrap());
        let numbers = |n: u32| (std::process::id(), vec![n; n as usize]);
        let all: Result<Vec<_>, _> = call().imap(numbers, 0..100).collect();
        let (pids, values): (Vec<u32>, Vec<_>) = all.unwrap().into_iter().unzip();
        assert_at_most(7, &pids);
        assert!(
            (0..)
                .zip(values)
                .all(|(n, value)| value == vec![n; n as usize])
        );
        let each: Result<Vec<_>, _> = call().map_outcomes(numbers, 0..100).into_iter().collect();
        let (pids, values): (Vec<u32>, Vec<_>) = each.unwrap().into_iter().unzip();
        assert_at_most(7, &pids);
        assert!(
            (0..)
                .zip(values)
                .all(|(n, value)| value == vec![n; n as usize])
        );
    }
    // Arguments of all lengths, which are cut where a worker has had enough.
    let texts = || (0..60_usize).map(|n| "x".repeat(n * n % 50));
    for chunk in [5, 30] {
        let with_pid = |text: String| (std::process::id(), text);
        let all = pool.call().chunk_size(chunk).map(with_pid, texts());
        let (pids, came): (Vec<u32>, Vec<String>) = all.unwrap().into_iter().unzip();
        assert_at_most(7, &pids);
        assert!(came.into_iter().eq(texts()));
    }
    let sum = pool.map_reduce(|n: u64| n, |a, b| a + b, 0..1_000);
    assert_eq!(sum, Ok(Some(499_500)));
}

#[test]
fn b31_together_with_deaths_everything_keeps_its_place() {
    let _none = Leftovers::none();
    for most in [1, 2, 5] {
        let pool = turning_over(2, most);
        for chunk in [1, 4, 30] {
            let f = |n: u32| if n % 5 == 2 { std::process::abort() } else { n };
            let each = pool.call().chunk_size(chunk).map_outcomes(f, 0..30);
            assert_eq!(each.len(), 30);
            for (n, outcome) in (0..).zip(each) {
                match outcome {
                    Ok(value) => assert!(value == n && n % 5 != 2),
                    Err(TaskError::WorkerDied { index, .. }) => {
                        assert!(index == Some(n as usize) && n % 5 == 2);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn b31_tasks_that_are_taken_back_use_up_no_worker() {
    let _none = Leftovers::none();
    let pool = turning_over(1, 2);
    for round in 0..10u8 {
        // What is cancelled lies behind a large context that has not been sent whole.
        let context = vec![round; 3 << 20];
        let large = closure!([context] |n: usize| context[n]);
        let first = pool.submit(large.clone(), 0);
        let second = pool.submit(large, 1);
        let is_cancelled = (first.cancel(), second.cancel());
        for (is_cancelled, task) in [(is_cancelled.0, first), (is_cancelled.1, second)] {
            let expected = if is_cancelled {
                Err(cancelled())
            } else {
                Ok(round)
            };
            assert_eq!(outcome(task), expected);
        }
        assert!(outcome(pool.submit(pid, 0)).is_ok());
    }
}

#[test]
fn b31_large_arguments_and_results_of_a_last_task_come_whole() {
    let _none = Leftovers::none();
    let pool = turning_over(1, 1);
    for n in 0..5u8 {
        let echo = pool.submit(|bytes: Vec<u8>| bytes, vec![n; 4 << 20]);
        assert!(outcome(echo).is_ok_and(|bytes| bytes == vec![n; 4 << 20]));
    }
}

#[test]
fn b31_a_worker_leaves_though_the_last_of_its_tasks_was_cancelled() {
    let _none = Leftovers::none();
    // A cancelled task keeps its place in the lane while the worker is busy. The last task may find
    // no room, or just enough.
    for most in 28..38 {
        let folder = Folder::new();
        let pool = turning_over(1, most);
        let open = folder.file("open");
        let running = pool.submit(begin_and_wait, (folder.file("begun"), open.clone()));
        eventually("it runs", || folder.count("begun") == 1);
        for n in 1..most {
            assert!(pool.submit(pid, n).cancel());
        }
        let behind = pool.submit(pid, 0);
        touch(open);
        assert!(outcome(running).is_ok());
        assert!(outcome(behind).is_ok(), "{most}");
    }
}

#[test]
fn resizing_up_and_down_while_tasks_run() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let has = |count: usize| {
        let what = format!("{count} workers");
        eventually(&what, || workers().len() == count);
    };
    let mut tasks = Vec::new();
    for (round, count) in [4, 2, 3, 1, 5, 1].into_iter().enumerate() {
        let folder = Folder::new();
        let open = folder.file("open");
        // This many run at once.
        pool.resize(count).unwrap();
        assert_eq!(pool.workers(), count);
        let blocked: Vec<_> = (0..count)
            .map(|n| {
                let begun = folder.file(&format!("begun-{n}"));
                pool.submit(begin_and_wait, (begun, open.clone()))
            })
            .collect();
        eventually("all have begun", || folder.count("begun-") == count);
        tasks.extend((0..50).map(|n| pool.submit(|n: usize| n * 2, n + round)));
        // While they run.
        pool.resize(2).unwrap();
        touch(open);
        for task in blocked {
            assert!(outcome(task).is_ok());
        }
        for (n, task) in tasks.drain(..).enumerate() {
            assert_eq!(outcome(task), Ok((n + round) * 2));
        }
        has(2);
    }
}

#[test]
fn workers_that_leave_end_what_they_have_begun_and_leave_the_rest_to_others() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(3).unwrap();
    let blocked: Vec<_> = (0..3)
        .map(|n| {
            let begun = folder.file(&format!("begun-{n}"));
            let open = folder.file(&format!("open-{n}"));
            pool.submit(begin_and_wait, (begun, open))
        })
        .collect();
    eventually("all have begun", || folder.count("begun-") == 3);
    let rest: Vec<_> = (0..30).map(|n| pool.submit(|n: u32| n, n)).collect();
    pool.resize(1).unwrap();
    // One worker stays. Those that leave may still wait for their files: that keeps no task from
    // running.
    touch(folder.file("open-0"));
    touch(folder.file("open-1"));
    touch(folder.file("open-2"));
    for (n, task) in (0..).zip(rest) {
        assert_eq!(outcome(task), Ok(n));
    }
    assert!(blocked.into_iter().all(|task| outcome(task).is_ok()));
    eventually("one is left", || workers().len() == 1);
}

#[test]
fn resizing_from_many_threads_leaves_as_many_workers_as_the_pool_says() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for size in 1..5 {
                let pool = &pool;
                scope.spawn(move || pool.resize(size).unwrap());
            }
        });
        eventually("there are as many as it says", || {
            workers().len() == pool.workers()
        });
        assert_eq!(pool.map(|n: u64| n, 0..50).unwrap().len(), 50);
    }
}

#[test]
fn b41_a_closed_pool_is_not_resized() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    pool.close().unwrap();
    assert_eq!(pool.resize(2), Err(PoolError::Closed));
    assert_eq!(pool.workers(), 1);
}

#[test]
fn idle_workers_leave_and_come_back_when_there_is_work() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(3);
    let pool = builder
        .idle_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    for _ in 0..3 {
        eventually("all have left", || workers().is_empty());
        assert_eq!(pool.workers(), 3, "they would come");
        assert!(outcome(pool.submit(pid, 0)).is_ok());
        eventually("all have left", || workers().is_empty());
        assert_eq!(pool.map(|n: u64| n + 1, 0..500).unwrap()[499], 500);
        // As many come as are needed.
        let folder = Folder::new();
        let tasks: Vec<_> = (0..3)
            .map(|n| {
                let begun = folder.file(&format!("begun-{n}"));
                pool.submit(begin_and_wait, (begun, folder.file("open")))
            })
            .collect();
        eventually("three run at once", || folder.count("begun-") == 3);
        touch(folder.file("open"));
        assert!(tasks.into_iter().all(|task| outcome(task).is_ok()));
    }
    eventually("all have left", || workers().is_empty());
    pool.close().unwrap();
}

#[test]
fn idle_workers_leave_though_nobody_has_asked_for_what_they_did() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(2);
    let pool = builder
        .idle_timeout(Duration::from_millis(5))
        .build()
        .unwrap();
    let tasks: Vec<_> = (0..2).map(|n| pool.submit(pid, n)).collect();
    eventually("all have left", || workers().is_empty());
    assert!(tasks.into_iter().all(|task| outcome(task).is_ok()));
}

#[test]
fn workers_that_have_left_stay_away_until_there_is_work() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let mark = || {
        let folder = std::path::PathBuf::from(std::env::var_os("FOLDER").unwrap());
        std::fs::File::create_new(folder.join(format!("start-{}", std::process::id()))).map(drop)
    };
    let builder = Processes::builder().workers(2).env("FOLDER", &folder.0);
    let pool = builder
        .initializer(mark)
        .idle_timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    for n in 0..20 {
        eventually("all have left", || workers().is_empty());
        assert!(folder.count("start-") <= 2 + n, "one for each task");
        assert!(outcome(pool.submit(pid, 0)).is_ok());
    }
}

#[test]
fn a_worker_that_works_does_not_leave_and_resting_ones_can_be_resized() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let builder = Processes::builder().workers(2);
    let pool = builder
        .idle_timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    let busy = pool.submit(wait_for, folder.file("open"));
    eventually("the other has left", || workers().len() == 1);
    pool.resize(4).unwrap();
    let others: Vec<_> = (0..20).map(|n| pool.submit(pid, n)).collect();
    assert!(others.into_iter().all(|task| outcome(task).is_ok()));
    eventually("only the one that works is left", || workers().len() == 1);
    let left = workers().into_iter().next().unwrap();
    touch(folder.file("open"));
    assert_eq!(outcome(busy), Ok(left));
}

/// Says that its worker has begun, and waits for the file with the worker's number.
#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn wait_at_own_gate(folder: std::path::PathBuf) -> u32 {
    let name = std::env::args().next().unwrap();
    let number = name.rsplit(':').next().unwrap();
    touch(folder.join(format!("begun-{number}")));
    wait_for(folder.join(format!("open-{number}")))
}

#[test]
fn what_a_worker_that_leaves_did_not_end_brings_back_one_that_rests() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let builder = Processes::builder().workers(3);
    let pool = builder
        .idle_timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    let call = || pool.call().retries(1);
    let tasks: Vec<_> = (0..3)
        .map(|_| call().submit(wait_at_own_gate, folder.0.clone()))
        .collect();
    eventually("all have begun", || folder.count("begun-") == 3);
    // The third is to leave; the other two have nothing to do, and rest.
    pool.resize(2).unwrap();
    touch(folder.file("open-0"));
    touch(folder.file("open-1"));
    eventually("one is left", || {
        // Looking moves things on.
        tasks.iter().filter(|task| task.is_done()).count() == 2 && workers().len() == 1
    });
    workers().into_iter().for_each(kill);
    for task in tasks {
        assert!(outcome(task).is_ok());
    }
}

#[test]
fn a_pool_whose_workers_leave_at_once_works() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(2);
    let pool = builder.idle_timeout(Duration::ZERO).build().unwrap();
    for n in 0..20u32 {
        assert_eq!(outcome(pool.submit(|n: u32| n + 1, n)), Ok(n + 1));
    }
    assert_eq!(pool.map(|n: u32| n, 0..100).unwrap().len(), 100);
}
