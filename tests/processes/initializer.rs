//! The initialiser of workers: when it runs, and what comes of it when it fails.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use manyhands::engine::ProcessesBuilder;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::worker_state;

use crate::common::{Leftovers, eventually, kill};
use crate::{Folder, end_workers, outcome, pid, workers};

/// The folder of the test, as its workers know it.
fn folder() -> PathBuf {
    std::env::var_os("FOLDER").unwrap().into()
}

fn builder(count: usize, folder: &Folder) -> ProcessesBuilder {
    let builder = Processes::builder().workers(count);
    builder.env("FOLDER", &folder.0).stderr(Stdio::null())
}

/// Leaves a mark of this start.
fn mark() -> std::io::Result<File> {
    File::create_new(folder().join(format!("start-{}", std::process::id())))
}

fn count_calls() -> Result<(u32, u32), std::io::Error> {
    mark()?;
    Ok((std::process::id(), 0))
}

fn call(_: u32) -> Option<(u32, u32, u32)> {
    worker_state(|(pid, calls): &mut (u32, u32)| {
        *calls += 1;
        (*pid, std::process::id(), *calls)
    })
}

#[test]
fn b30_it_runs_once_in_each_worker_before_the_first_task() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = builder(2, &folder)
        .initializer(count_calls)
        .build()
        .unwrap();
    assert_eq!(folder.count("start-"), 2);
    let mut calls = pool.call().chunk_size(3).map(call, 0..200).unwrap();
    calls.extend((0..20).map(|n| outcome(pool.submit(call, n)).unwrap()));
    let mut last = std::collections::BTreeMap::new();
    for of_call in calls {
        let (made_in, ran_in, number) = of_call.expect("the state is there");
        assert_eq!(made_in, ran_in);
        let count = last.entry(ran_in).or_insert(0);
        *count = number.max(*count);
    }
    // What one task leaves in the state, the next one finds.
    assert_eq!(last.values().sum::<u32>(), 220);
    assert_eq!(folder.count("start-"), 2);
    // One that takes the place of another is initialised too.
    end_workers();
    assert!(outcome(pool.submit(call, 0)).unwrap().is_some());
    eventually("both are back", || folder.count("start-") == 4);
}

#[test]
fn b30_the_state_is_for_one_borrower_at_a_time_on_the_thread_of_tasks() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1).stderr(Stdio::null());
    let pool = builder.initializer(|| Ok::<_, String>(10_u32));
    let pool = pool.build().unwrap();
    let add = |n: u32| {
        worker_state(|state: &mut u32| {
            *state += n;
            *state
        })
    };
    assert_eq!(outcome(pool.submit(add, 1)), Ok(Some(11)));
    let others = |()| {
        let nested = worker_state(|_: &mut u32| worker_state(|state: &mut u32| *state));
        let of_another_type = worker_state(|state: &mut u64| *state);
        let elsewhere = std::thread::spawn(|| worker_state(|state: &mut u32| *state));
        (nested, of_another_type, elsewhere.join().unwrap())
    };
    assert_eq!(
        outcome(pool.submit(others, ())),
        Ok((Some(None), None, None))
    );
    let panics = |()| -> Option<()> {
        worker_state(|state: &mut u32| {
            *state = 20;
            panic!("on purpose")
        })
    };
    let panicked = outcome(pool.submit(panics, ()));
    assert!(matches!(panicked, Err(TaskError::Panicked { .. })));
    // The state is as the task has left it, and no task holds it any more.
    assert_eq!(outcome(pool.submit(add, 1)), Ok(Some(21)));
}

#[test]
fn b30_a_failure_at_the_start_is_the_error_of_the_pool() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let failed = builder(3, &folder)
        .initializer(|| {
            mark().unwrap();
            Err::<(), _>("no model")
        })
        .build();
    let Err(PoolError::InitializerFailed { reason, worker, .. }) = failed else {
        panic!("{failed:?}")
    };
    assert!(reason == "no model" && worker < 3);

    let panicked = builder(3, &folder)
        .initializer(|| -> Result<(), String> {
            mark().unwrap();
            panic!("model of {} parts", 0)
        })
        .build();
    let Err(PoolError::InitializerFailed { reason, .. }) = panicked else {
        panic!("{panicked:?}")
    };
    assert!(
        reason.contains("model of 0 parts") && reason.contains(file!()),
        "{reason}"
    );
    // No worker was started twice.
    assert!(folder.count("start-") <= 6, "{}", folder.count("start-"));
}

/// Whether this is the worker with this number.
fn is_number(number: &str) -> bool {
    let name = std::env::args().next().unwrap();
    name.rsplit(':').next() == Some(number)
}

#[test]
fn b30_the_error_names_the_worker_in_which_it_failed() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let builder = || builder(3, &folder);
    let pools = [
        builder().initializer(|| {
            if is_number("2") {
                Err("not here")
            } else {
                Ok(())
            }
        }),
        builder().initializer(|| {
            assert!(!is_number("2"), "not here");
            Ok::<(), String>(())
        }),
        builder().initializer(|| {
            if is_number("2") {
                std::process::exit(5);
            }
            Ok::<(), String>(())
        }),
    ];
    for builder in pools {
        let error = builder.build().unwrap_err();
        let is_second = matches!(error, PoolError::InitializerFailed { worker: 2, .. });
        assert!(is_second, "{error:?}");
    }
}

#[test]
fn b30_a_death_in_it_is_the_error_of_the_pool() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let by = |builder: Result<Pool<Processes>, PoolError>, what: &str| match builder {
        Err(PoolError::InitializerFailed { reason, .. }) => {
            assert!(
                reason.contains(what) && !reason.contains("task"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    };
    by(
        builder(2, &folder)
            .initializer(|| -> Result<(), String> {
                mark().unwrap();
                std::process::abort()
            })
            .build(),
        "SIGABRT",
    );
    by(
        builder(2, &folder)
            .initializer(|| -> Result<(), String> {
                mark().unwrap();
                std::process::exit(5)
            })
            .build(),
        "code 5",
    );
    by(
        builder(2, &folder)
            .initializer(|| -> Result<(), String> {
                mark().unwrap();
                kill(std::process::id());
                Ok(())
            })
            .build(),
        "SIGKILL",
    );
    assert!(folder.count("start-") <= 6, "{}", folder.count("start-"));
}

/// Works as often as there are tickets. Each ticket is taken once, by the first start that finds
/// it.
fn while_tickets_last() -> Result<(), String> {
    let take = |n: u32| {
        let (ticket, used) = (
            format!("ticket-{n}"),
            format!("used-{}", std::process::id()),
        );
        std::fs::rename(folder().join(ticket), folder().join(used)).is_ok()
    };
    if (0..10).any(take) {
        Ok(())
    } else {
        Err("worn out".to_owned())
    }
}

fn tickets(folder: &Folder, count: usize) {
    for n in 0..count {
        File::create(folder.file(&format!("ticket-{n}"))).unwrap();
    }
}

#[track_caller]
fn assert_ends_worn_out(pool: &Pool<Processes>) {
    let worn_out = |error: &TaskError| matches!(error.as_pool(), Some(PoolError::InitializerFailed { reason, .. }) if reason == "worn out");
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let f = |n: u32| {
                if n.is_multiple_of(3) {
                    std::process::abort()
                } else {
                    n
                }
            };
            (n, pool.submit(f, n))
        })
        .collect();
    let mut ended_by_pool = 0;
    for (n, task) in tasks {
        match outcome(task) {
            Ok(value) => assert_eq!(value, n),
            Err(TaskError::WorkerDied { .. }) => assert_eq!(n % 3, 0),
            Err(error) => {
                assert!(worn_out(&error), "{error:?}");
                ended_by_pool += 1;
            }
        }
    }
    assert!(ended_by_pool > 0);
    assert!(worn_out(&outcome(pool.submit(pid, 0)).unwrap_err()));
    assert!(worn_out(&pool.map(pid, 0..3).unwrap_err()));
    let resized = pool.resize(3).unwrap_err();
    assert!(
        worn_out(&TaskError::from(resized)),
        "so is a pool to be larger"
    );
    assert_eq!(pool.close(), Ok(()));
    assert!(workers().is_empty());
}

#[test]
fn b30_when_it_fails_later_the_pool_ends_with_that_error() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    tickets(&folder, 2);
    let pool = builder(2, &folder)
        .initializer(while_tickets_last)
        .build()
        .unwrap();
    assert_eq!(pool.map(pid, 0..10).unwrap().len(), 10);
    assert_ends_worn_out(&pool);
}

#[test]
fn b30_when_it_fails_later_places_that_nobody_has_do_not_keep_the_pool_alive() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    tickets(&folder, 3);
    let pool = builder(3, &folder)
        .initializer(while_tickets_last)
        .build()
        .unwrap();
    pool.resize(1).unwrap();
    eventually("two have left", || workers().len() == 1);
    assert_ends_worn_out(&pool);

    tickets(&folder, 2);
    let resting = builder(2, &folder)
        .idle_timeout(Duration::from_millis(1))
        .initializer(while_tickets_last)
        .build()
        .unwrap();
    eventually("both rest", || workers().is_empty());
    let task = outcome(resting.submit(pid, 0));
    assert!(
        matches!(
            task.as_ref().map_err(TaskError::as_pool),
            Err(Some(PoolError::InitializerFailed { .. }))
        ),
        "{task:?}"
    );
}

#[test]
fn b30_starts_that_somebody_else_cut_short_do_not_make_the_next_failure_the_last() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = builder(1, &folder)
        .initializer(|| -> Result<(), String> {
            mark().unwrap();
            match std::fs::read_dir(self::folder()).unwrap().count() {
                2..6 => kill(std::process::id()),
                6 => std::process::abort(),
                _ => {}
            }
            Ok(())
        })
        .build()
        .unwrap();
    end_workers();
    eventually("it has been tried again", || folder.count("start-") >= 2);
    assert!(outcome(pool.submit(pid, 0)).is_ok());
    assert_eq!(folder.count("start-"), 7);
}

/// Counts the starts, and fails in those for which there is no file that calls them good.
fn if_good() -> Result<(), String> {
    mark().unwrap();
    let entries = std::fs::read_dir(folder()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let starts = names.filter(|name| name.starts_with("start-")).count();
    if folder().join(format!("good-{starts}")).exists() {
        Ok(())
    } else {
        Err("not this time".to_owned())
    }
}

/// The pool gives up after five failed starts in a row, not after five in all.
#[test]
fn b30_failures_with_a_success_between_them_are_not_added_up() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    for start in [1, 6, 11] {
        File::create(folder.file(&format!("good-{start}"))).unwrap();
    }
    let pool = builder(1, &folder).initializer(if_good).build().unwrap();
    for starts in [6, 11] {
        let before = outcome(pool.submit(pid, 0)).unwrap();
        kill(before);
        // Four starts fail, and the fifth is good.
        let after = outcome(pool.submit(pid, 0)).expect("the pool was given up too early");
        assert_ne!(after, before);
        assert_eq!(folder.count("start-"), starts);
    }
    // Five in a row are too many.
    kill(outcome(pool.submit(pid, 0)).unwrap());
    let ended = outcome(pool.submit(pid, 0)).unwrap_err();
    assert!(
        matches!(ended.as_pool(), Some(PoolError::InitializerFailed { reason, .. }) if reason == "not this time"),
        "{ended:?}"
    );
    assert_eq!(folder.count("start-"), 16);
}

/// As long as one worker is ready, the pool goes on, however often the start of another fails.
#[test]
fn b30_a_place_that_fails_beside_a_ready_worker_does_not_end_the_pool() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    for start in [1, 2, 9] {
        File::create(folder.file(&format!("good-{start}"))).unwrap();
    }
    let pool = builder(2, &folder).initializer(if_good).build().unwrap();
    let lost = *workers().first().unwrap();
    kill(lost);
    // More than the failures after which a pool without any worker is given up.
    for starts in 3..=8 {
        eventually("it is tried again", || folder.count("start-") >= starts);
        let answered = outcome(pool.submit(pid, 0)).expect("the pool was given up");
        assert_ne!(answered, lost);
    }
    eventually("it is back", || {
        workers().len() == 2 && folder.count("start-") == 9
    });
    assert!(outcome(pool.submit(pid, 0)).is_ok());
}

#[test]
fn b30_a_slow_one_is_waited_for_though_idle_workers_may_leave() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let slow = || -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        mark().map(drop).map_err(|error| error.to_string())
    };
    let pool = builder(2, &folder)
        .idle_timeout(Duration::from_millis(1))
        .initializer(slow)
        .build()
        .unwrap();
    assert_eq!(folder.count("start-"), 2, "each was started once");
    assert!(outcome(pool.submit(pid, 0)).is_ok());
}
