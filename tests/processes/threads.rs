//! Many threads and one pool: they submit, wait, resize, cancel, kill and end it, all at once.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use manyhands::Shutdown;
use manyhands::prelude::*;

use crate::common::errors::{cancelled, is_closed};
use crate::common::{Leftovers, eventually};
use crate::{Folder, outcome};

const SUBMITTERS: usize = 4;
const EACH: usize = 100;

/// How the pool ends while all of that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    CancelQueued,
    Kill,
}

/// Leaves a mark; false if it was there, because the task has run before.
fn run_once((folder, number): (PathBuf, usize)) -> (usize, bool) {
    let first = File::create_new(folder.join(format!("ran-{number}"))).is_ok();
    (number, first)
}

fn storm(end: End) {
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let (submitted, killed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (ok, cancelled, refused) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        for submitter in 0..SUBMITTERS {
            let (pool, folder, submitted, killed) = (&pool, &folder, &submitted, &killed);
            let (ok, cancelled, refused) = (&ok, &cancelled, &refused);
            scope.spawn(move || {
                for batch in 0..EACH / 10 {
                    let first = submitter * EACH + batch * 10;
                    let tasks: Vec<_> = (first..first + 10)
                        .map(|n| pool.submit(run_once, (folder.0.clone(), n)))
                        .collect();
                    submitted.fetch_add(10, Ordering::Relaxed);
                    let is_cancelled: Vec<bool> = tasks
                        .iter()
                        .enumerate()
                        .map(|(n, task)| match n {
                            3 => task.cancel(),
                            7 if task.kill() => {
                                killed.fetch_add(1, Ordering::Relaxed);
                                false
                            }
                            _ => false,
                        })
                        .collect();
                    for (n, task) in tasks.into_iter().enumerate() {
                        let number = first + n;
                        match outcome(task) {
                            // After a kill of its neighbour, an item that had just begun is run
                            // again.
                            Ok((value, _)) => {
                                assert!(value == number && !is_cancelled[n]);
                                ok.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(TaskError::Cancelled { .. }) => {
                                let may_be = [3, 7].contains(&n) || end != End::Close;
                                assert!(may_be, "task {number} was cancelled by nobody");
                                let ran = folder.file(&format!("ran-{number}")).exists();
                                assert!(!(is_cancelled[n] && ran), "cancelled, and run");
                                cancelled.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) if is_closed(&error) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            for size in [1, 3, 2, 4].into_iter().cycle() {
                if pool.resize(size).is_err() {
                    return;
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while let Ok(all) = pool.map(|n: u64| n * n, 0..40) {
                assert_eq!(all[39], 39 * 39);
            }
        });
        scope.spawn(|| {
            eventually("half is submitted", || {
                submitted.load(Ordering::Relaxed) >= SUBMITTERS * EACH / 2
            });
            match end {
                End::Close => pool.close().unwrap(),
                End::CancelQueued => pool.shutdown(Shutdown::CancelQueued).unwrap(),
                End::Kill => pool.shutdown(Shutdown::Kill).unwrap(),
            }
        });
    });
    let all = [ok, cancelled, refused].map(AtomicUsize::into_inner);
    assert_eq!(all.iter().sum::<usize>(), SUBMITTERS * EACH, "{all:?}");
}

#[test]
fn b41_many_threads_use_resize_and_close_one_pool() {
    let _none = Leftovers::none();
    for _ in 0..3 {
        storm(End::Close);
    }
}

#[test]
fn b41_many_threads_use_resize_and_shut_down_one_pool() {
    let _none = Leftovers::none();
    for _ in 0..2 {
        storm(End::CancelQueued);
        storm(End::Kill);
    }
}

#[test]
fn b41_without_kills_each_task_runs_exactly_once() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(3).unwrap();
    std::thread::scope(|scope| {
        for submitter in 0..SUBMITTERS {
            let (pool, folder) = (&pool, &folder);
            scope.spawn(move || {
                let numbers = submitter * EACH..(submitter + 1) * EACH;
                let tasks: Vec<_> = numbers
                    .map(|n| (n, pool.submit(run_once, (folder.0.clone(), n))))
                    .collect();
                for (n, task) in tasks {
                    pool.resize(1 + n % 4).unwrap();
                    assert_eq!(outcome(task), Ok((n, true)));
                }
            });
        }
    });
    assert_eq!(folder.count("ran-"), SUBMITTERS * EACH);
}

#[test]
fn b41_all_ways_to_end_a_pool_at_once() {
    let _none = Leftovers::none();
    for _ in 0..5 {
        let pool = Pool::processes(2).unwrap();
        let tasks: Vec<_> = (0..100).map(|n| pool.submit(|n: u64| n, n)).collect();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let pool = &pool;
                scope.spawn(move || match n % 3 {
                    0 => pool.close(),
                    1 => pool.shutdown(Shutdown::CancelQueued),
                    _ => pool.shutdown(Shutdown::Kill),
                });
            }
        });
        for (n, task) in (0..).zip(tasks) {
            let result = outcome(task);
            assert!(result == Ok(n) || result == Err(cancelled()), "{result:?}");
        }
    }
}
