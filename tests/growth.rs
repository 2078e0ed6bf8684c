//! What pools leave behind when there are many of them, or when one has much to do: nothing that
//! grows.

mod common;

use std::time::{Duration, Instant};

use common::errors::cancelled;
use common::{Leftovers, children_of, eventually};
use manyhands::prelude::*;
use manyhands::{CancellationToken, RunAgain, should_stop};

/// Memory of this process and its workers that is in use, in KiB.
fn resident() -> usize {
    let own = std::process::id();
    let family = children_of(own).into_iter().chain([own]);
    family
        .map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim()
                .trim_end_matches(" kB")
                .parse::<usize>()
                .unwrap()
        })
        .sum()
}

/// Entries of a folder of this process: its descriptors, its threads.
fn entries(folder: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{folder}"))
        .unwrap()
        .count()
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

/// Runs `warm_up` and then `run`, and checks that the second leaves as much as there was after the
/// first. `Leftovers` looks after child processes and memory shared with them.
///
/// Of resident memory `tolerance` KiB more are allowed. The allocator gives freed memory back late
/// and in parts, and has an arena for each thread that has come and gone.
#[track_caller]
fn leaves_nothing(tolerance: usize, warm_up: impl FnOnce(), run: impl FnOnce()) {
    warm_up();
    let (memory, mapped) = (resident(), mappings());
    let (descriptors, threads) = (entries("fd"), entries("task"));
    run();
    // Fewer, if the thread of the test before this one was still on its way out.
    eventually("threads and descriptors are no more than before", || {
        entries("fd") <= descriptors && entries("task") <= threads
    });
    let (memory_now, mapped_now) = (resident(), mappings());
    println!(
        "{memory} KiB before, {memory_now} KiB after; {mapped} mappings before, {mapped_now} after"
    );
    assert!(
        memory_now <= memory + tolerance,
        "{memory} KiB before, {memory_now} KiB after"
    );
    // Arenas and stacks that are kept for later threads come and go. A mapping for each pool or
    // task would be a thousand.
    assert!(
        mapped_now <= mapped + 64,
        "{mapped} mappings before, {mapped_now} after"
    );
}

/// Makes pools, each of which runs a task, or a few, and is dropped.
fn pools<E, F>(count: u64, make: fn() -> Pool<E>, square: F)
where
    F: Fn(u64) -> u64 + Copy + Send + 'static,
    E: Run<F, u64, u64>,
{
    for n in 0..count {
        let pool = make();
        assert_eq!(pool.submit(square, n).result(), Ok(n * n));
        if n.is_multiple_of(10) {
            assert_eq!(pool.map(square, n..n + 5).unwrap().len(), 5);
        }
        if n.is_multiple_of(7) {
            pool.close().unwrap();
        }
    }
}

const ROUND: u64 = 5_000;

fn square(n: u64) -> u64 {
    n * n
}

fn bytes(n: u64) -> Vec<u8> {
    vec![n as u8; n as usize % 100]
}

/// Gives a pool this many tasks: a fifth by `submit`, with results of many sizes, the rest by
/// `map`.
fn tasks<E, F, G>(pool: &Pool<E>, count: u64, bytes: F, square: G)
where
    F: Fn(u64) -> Vec<u8> + Copy + Send + 'static,
    G: Fn(u64) -> u64 + Copy,
    E: Run<F, u64, Vec<u8>> + Run<G, u64, u64>,
{
    for round in 0..count / ROUND {
        let first = round * ROUND;
        let submitted: Vec<_> = (first..first + ROUND / 5)
            .map(|n| pool.submit(bytes, n))
            .collect();
        let squares = pool.map(square, first + ROUND / 5..first + ROUND).unwrap();
        assert_eq!(squares.last(), Some(&(first + ROUND - 1).pow(2)));
        for (n, task) in (first..).zip(submitted) {
            assert_eq!(task.result().unwrap().len(), n as usize % 100);
        }
    }
}

#[test]
fn b34_a_thousand_process_pools_leave_nothing() {
    let _none = Leftovers::none();
    let make = || Pool::processes(2).unwrap();
    // A KiB for each pool would be found.
    leaves_nothing(
        1_000,
        || pools(50, make, square),
        || pools(1_000, make, square),
    );
}

#[test]
fn b34_a_thousand_thread_pools_leave_nothing() {
    let _none = Leftovers::none();
    let make = || Pool::threads(2).unwrap();
    leaves_nothing(
        1_000,
        || pools(50, make, square),
        || pools(1_000, make, square),
    );
}

#[test]
fn b34_a_million_tasks_on_processes_leave_nothing() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    // Two bytes for each task would be found.
    leaves_nothing(
        2_000,
        || tasks(&pool, 50_000, bytes, square),
        || tasks(&pool, 1_000_000, bytes, square),
    );
}

#[test]
fn b34_a_million_tasks_on_threads_leave_nothing() {
    let _none = Leftovers::none();
    let pool = Pool::threads(2).unwrap();
    leaves_nothing(
        2_000,
        || tasks(&pool, 50_000, bytes, square),
        || tasks(&pool, 1_000_000, bytes, square),
    );
}

/// Makes calls that end at an `Err` in the middle, and some that are given up while they run.
fn calls_that_end_early(pool: &Pool<Processes>, count: u64) {
    for n in 0..count {
        let half = n % 100;
        let refuse = |(n, at): (u64, u64)| if n == at { Err(n) } else { Ok(n) };
        let items = (0..100).map(|n| (n, half));
        let refused = pool.call().chunk_size(7).try_map(refuse, items);
        assert_eq!(refused.unwrap_err().into_item(), Some(half));
        if n.is_multiple_of(20) {
            let endless = |n: u64| {
                if n == 5 {
                    loop {
                        std::thread::park();
                    }
                }
                n
            };
            let call = pool.call().chunk_size(5).kill_on_drop(true);
            let results: Vec<_> = call.imap(endless, 0..50).take(5).collect();
            assert_eq!(results.into_iter().sum::<Result<u64, _>>(), Ok(10));
        }
    }
    // The last calls may have cost a worker whose successor is still to come. Each has a share in
    // what is resident.
    pool.broadcast(|()| (), ()).unwrap();
}

#[test]
fn b85_b94_ten_thousand_calls_that_end_early_leave_nothing() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    leaves_nothing(
        2_000,
        || calls_that_end_early(&pool, 500),
        || calls_that_end_early(&pool, 10_000),
    );
}

/// Makes calls that a token or a deadline could end, and that try again. All carry this token.
fn calls_that_could_end<E, F>(pool: &Pool<E>, token: &CancellationToken, odd: F, count: u64)
where
    F: Fn(u64) -> u64 + Copy + Send + 'static,
    E: RunAgain<F, u64, u64>,
{
    let far = Instant::now() + Duration::from_secs(3_600);
    let policy = Retry::up_to(2).on(RetryOn::PANIC);
    let call = || {
        let call = pool.call().cancel_on(token).deadline(far).retry(policy);
        call.grace_period(Duration::from_secs(1))
    };
    for n in 0..count {
        assert_eq!(call().map(odd, n..n + 4).map(|all| all.len()), Ok(4));
        // The one handle is dropped, and the task of the other is waited for.
        let [left, task] = [n, n + 1].map(|n| call().submit(odd, n));
        drop(left);
        assert_eq!(task.result(), Ok(n + 2));
        assert_eq!(call().imap(odd, n..n + 3).count(), 3);
    }
}

#[test]
fn b88_calls_that_share_a_token_leave_nothing_in_it() {
    let _none = Leftovers::none();
    let token = CancellationToken::new();
    let add = |n: u64| n + 1;
    let pool = Pool::threads(2).unwrap();
    // A hook for each call or task would be found.
    leaves_nothing(
        1_000,
        || calls_that_could_end(&pool, &token, add, 500),
        || calls_that_could_end(&pool, &token, add, 10_000),
    );
    let pool = Pool::processes(2).unwrap();
    leaves_nothing(
        1_000,
        || calls_that_could_end(&pool, &token, add, 500),
        || calls_that_could_end(&pool, &token, add, 5_000),
    );
}

/// Ends calls while their items run: each by a token of its own, with a grace period.
fn calls_that_are_ended(pool: &Pool<Processes>, count: u64) {
    for n in 0..count {
        let token = CancellationToken::new();
        let call = || {
            let call = pool.call().cancel_on(&token);
            call.grace_period(Duration::from_millis(1))
        };
        let wait = |stops: bool| {
            while !(stops && should_stop()) {
                std::thread::yield_now();
            }
            stops
        };
        // The worker of every tenth is killed.
        let stops = !n.is_multiple_of(10);
        let task = call().submit(wait, stops);
        while !task.is_running() {
            std::thread::yield_now();
        }
        token.cancel();
        // A slow machine may kill what would have stopped.
        let outcome = task.result();
        let was_killed = outcome == Err(cancelled());
        assert!(was_killed || (stops && outcome == Ok(true)), "{outcome:?}");
        assert_eq!(call().map(|n: u64| n, 0..4), Err(cancelled()));
    }
    pool.broadcast(|()| (), ()).unwrap();
}

#[test]
fn b92_calls_that_end_in_a_grace_period_leave_nothing() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    leaves_nothing(
        2_000,
        || calls_that_are_ended(&pool, 100),
        || calls_that_are_ended(&pool, 1_000),
    );
}
