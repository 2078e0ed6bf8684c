//! Limits of time and of memory.

use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::process::Stdio;

use crate::common::errors::{task_timed_out, timed_out};
use crate::common::{DEADLINE, Leftovers, is_running};
use crate::{endless, outcome, pid};

const LIMIT: Duration = Duration::from_millis(120);

fn endless_at_3(n: u32) -> u32 {
    if n == 3 { endless(n) } else { n * 2 }
}

fn spin_for(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[track_caller]
fn assert_only_3_timed_out(outcomes: impl IntoIterator<Item = Result<u32, TaskError>>) {
    let mut count = 0;
    for (n, outcome) in (0..).zip(outcomes) {
        count += 1;
        if n == 3 {
            assert_eq!(outcome, Err(timed_out(Some(3), LIMIT)));
        } else {
            assert_eq!(outcome, Ok(n * 2));
        }
    }
    assert_eq!(count, 10);
}

#[test]
fn b28_a_task_that_takes_too_long_is_stopped_and_its_worker_replaced() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let mut times = Vec::new();
    for _ in 0..5 {
        let worker = outcome(pool.submit(pid, 0)).unwrap();
        let start = Instant::now();
        let late = pool.call().timeout(LIMIT).submit(endless, 0);
        let overdue = task_timed_out(late.id(), LIMIT);
        assert_eq!(outcome(late), Err(overdue));
        assert!(start.elapsed() >= LIMIT);
        times.push(start.elapsed());
        assert_ne!(outcome(pool.submit(pid, 0)).unwrap(), worker);
        assert!(!is_running(worker));
    }
    // Other programs use the machine, too. The best of some tries is what the pool itself adds.
    let best = times.iter().min().unwrap();
    assert!(*best < LIMIT + Duration::from_millis(150), "{times:?}");
}

#[test]
fn b28_the_others_are_not_affected() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    // Some lie in the same lane as the one that is stopped, before it and behind it.
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let is_late = n % 20 == 7;
            let f = |(n, is_late): (u32, bool)| if is_late { endless(n) } else { n };
            (
                n,
                is_late,
                pool.call().timeout(LIMIT).submit(f, (n, is_late)),
            )
        })
        .collect();
    for (n, is_late, task) in tasks {
        let result = outcome(task);
        if is_late {
            assert!(
                matches!(result, Err(TaskError::TimedOut { .. })),
                "{result:?}"
            );
        } else {
            assert_eq!(result, Ok(n));
        }
    }
}

#[test]
fn b28_in_calls_over_many_items_the_limit_is_for_each_item() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for chunk in [1, 4, 10] {
        let call = || pool.call().timeout(LIMIT).chunk_size(chunk);
        assert_eq!(
            call().map(endless_at_3, 0..10),
            Err(timed_out(Some(3), LIMIT))
        );
        assert_only_3_timed_out(call().map_outcomes(endless_at_3, 0..10));
        assert_only_3_timed_out(call().imap(endless_at_3, 0..10));
        let mut unordered: Vec<_> = call().imap_unordered(endless_at_3, 0..10).collect();
        unordered.sort_by_key(|(index, _)| *index);
        assert_only_3_timed_out(unordered.into_iter().map(|(_, outcome)| outcome));
    }
    // All of them together take longer than one may.
    let limit = Duration::from_millis(500);
    let call = pool.call().timeout(limit).schedule(Schedule::Equal);
    let all = call.map(|()| spin_for(Duration::from_millis(20)), [(); 60]);
    assert_eq!(all.map(|all| all.len()), Ok(60));
}

#[test]
fn b28_the_limit_of_the_pool_holds_where_the_call_says_nothing() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(2).task_timeout(LIMIT);
    let pool = builder.build().unwrap();
    let timed_out = |error: &TaskError| matches!(error, TaskError::TimedOut { limit: LIMIT, .. });
    assert!(timed_out(&outcome(pool.submit(endless, 0)).unwrap_err()));
    assert!(timed_out(&pool.map(endless_at_3, 0..10).unwrap_err()));
    assert_only_3_timed_out(pool.map_outcomes(endless_at_3, 0..10));
    assert_only_3_timed_out(pool.imap(endless_at_3, 0..10));
    // The call's own limit comes first.
    let call = pool.call().timeout(DEADLINE);
    assert_eq!(outcome(call.submit(spin_for, 2 * LIMIT)), Ok(()));
}

#[test]
fn b28_a_task_that_ends_in_time_keeps_its_worker() {
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(1)
        .task_timeout(DEADLINE)
        .build()
        .unwrap();
    let mut pids = pool.map(pid, 0..500).unwrap();
    pids.extend((0..200).map(|n| outcome(pool.submit(pid, n)).unwrap()));
    pids.dedup();
    assert_eq!(pids.len(), 1);
    // A limit that has passed stops no later task.
    let short = pool.call().timeout(LIMIT);
    assert_eq!(outcome(short.submit(pid, 0)), Ok(pids[0]));
    assert_eq!(outcome(pool.submit(spin_for, 2 * LIMIT)), Ok(()));
    assert_eq!(outcome(pool.submit(pid, 0)), Ok(pids[0]));
}

#[test]
fn b28_retries_are_for_deaths_and_not_for_tasks_that_take_too_long() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let call = pool.call().timeout(LIMIT).retries(1_000);
    let late = outcome(call.submit(endless, 0));
    assert!(matches!(late, Err(TaskError::TimedOut { .. })), "{late:?}");
}

#[test]
fn b28_a_worker_that_does_not_react_is_stopped_too() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let stopped = |()| nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).is_ok();
    let late = outcome(pool.call().timeout(LIMIT).submit(stopped, ()));
    assert!(matches!(late, Err(TaskError::TimedOut { .. })), "{late:?}");
    assert!(outcome(pool.submit(pid, 0)).is_ok());
}

const MEMORY: u64 = 256 << 20;

/// A node of a list that grows until there is no memory left.
#[allow(dead_code, reason = "what it holds only takes room")]
struct Node([u64; 128], Option<Box<Node>>);

/// The ways to ask for too much.
fn want_too_much(way: u32) -> usize {
    match way {
        0 => std::hint::black_box(vec![1_u8; 1 << 30]).len(),
        1 => {
            let mut list = None;
            for count in 0.. {
                list = Some(Box::new(Node([count; 128], list)));
            }
            std::hint::black_box(list).map_or(0, |_| 1)
        }
        2 => std::thread::spawn(|| want_too_much(1)).join().unwrap(),
        _ => std::thread::spawn(|| want_too_much(0)).join().unwrap(),
    }
}

fn modest(n: usize) -> usize {
    std::hint::black_box(vec![n; 1 << 20]).len()
}

fn limited(workers: usize) -> Pool<Processes> {
    // What Rust prints when an allocation fails says nothing here.
    let builder = Processes::builder().workers(workers).memory_limit(MEMORY);
    builder.stderr(Stdio::null()).build().unwrap()
}

#[test]
fn b29_a_task_that_wants_too_much_memory_fails_alone_and_says_so() {
    let _none = Leftovers::none();
    let pool = limited(2);
    for way in 0..4 {
        let others: Vec<_> = (0..10).map(|n| pool.submit(modest, n)).collect();
        match outcome(pool.submit(want_too_much, way)) {
            Err(TaskError::OutOfMemory {
                index,
                pid,
                limit: MEMORY,
                attempts: 1,
                ..
            }) => assert!(index == None && !is_running(pid)),
            other => panic!("way {way}: {other:?}"),
        }
        for other in others {
            assert_eq!(outcome(other), Ok(1 << 20));
        }
    }
    let greedy_at_5 = |n: u32| if n == 5 { want_too_much(0) } else { 7 };
    let each = pool.call().chunk_size(3).map_outcomes(greedy_at_5, 0..20);
    for (n, outcome) in each.into_iter().enumerate() {
        match outcome {
            Ok(value) => assert!(value == 7 && n != 5),
            Err(TaskError::OutOfMemory { index, .. }) => assert!(index == Some(5) && n == 5),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn b29_an_abort_is_not_for_lack_of_memory() {
    let _none = Leftovers::none();
    let pool = limited(1);
    let abort = |()| -> u32 { std::process::abort() };
    for _ in 0..3 {
        let died = outcome(pool.submit(abort, ()));
        let Err(TaskError::WorkerDied { cause, .. }) = died else {
            panic!("{died:?}")
        };
        assert_eq!(cause, Death::Signal(6));
        assert_eq!(outcome(pool.submit(modest, 1)), Ok(1 << 20));
    }
}

#[test]
fn b29_under_a_limit_that_is_far_too_low_only_tasks_that_need_memory_fail() {
    let _none = Leftovers::none();
    for low in [1, 4_096, 1 << 20] {
        let builder = Processes::builder().workers(2).memory_limit(low);
        let pool = builder.stderr(Stdio::null()).build().unwrap();
        assert!(outcome(pool.submit(pid, 0)).is_ok());
        match outcome(pool.submit(modest, 0)) {
            Err(TaskError::OutOfMemory { limit, .. }) => assert_eq!(limit, low),
            other => panic!("{low}: {other:?}"),
        }
    }
}
