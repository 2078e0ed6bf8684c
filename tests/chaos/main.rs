//! Pools under fire: workers are killed and stopped at random moments and at chosen points, while
//! several threads call, cancel, resize and end the pool. After each round every task has ended
//! once, with the right value or an error that names the cause, and nothing is left.
//!
//! `MANYHANDS_KILLS=10000 MANYHANDS_STOPS=10000 cargo test --release --test chaos` goes on until so
//! many workers were killed and so many stopped. The seed is printed; `MANYHANDS_SEED` takes it
//! back: the decisions are the same then, the moments are the machine's.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod job;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use common::random::{Random, number, seed};
use common::watch::Watch;
use common::{Leftovers, children_of, is_running, is_stopped};
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::{Shutdown, engine::WaitPolicy};
use nix::sys::signal::Signal;

use calls::Caller;
use job::Job;

const CALLERS: u64 = 3;

/// Far longer than anything here should take, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(40);

/// Workers killed from outside, and jobs that took theirs along.
static KILLS: AtomicUsize = AtomicUsize::new(0);

/// Workers stopped from outside, and jobs that stopped theirs.
static STOPS: AtomicUsize = AtomicUsize::new(0);

/// What the threads of a round share.
struct Round {
    pool: Pool<Processes>,
    /// The pool may be ending: tasks may be cancelled or refused.
    is_ending: AtomicBool,
    /// The callers have done what they wanted to.
    is_over: AtomicBool,
    /// The pool has been ended, or is not to be: it is not waited for any more.
    has_ended: AtomicBool,
    /// Calls made so far.
    calls: AtomicUsize,
    /// Tasks for which no caller waits before the pool is dropped.
    rest: Mutex<Vec<(Job, TaskFuture<job::Answer>)>>,
    watch: Watch,
}

/// Takes its time, and dies now and then.
#[allow(clippy::unnecessary_wraps, reason = "an initialiser may fail")]
fn initialize() -> Result<u32, String> {
    for _ in 0..std::process::id() % 100 {
        std::thread::yield_now();
    }
    if std::process::id().is_multiple_of(29) {
        job::die(0);
    }
    Ok(std::process::id())
}

fn pool(random: &mut Random) -> Pool<Processes> {
    loop {
        let builder = Processes::builder()
            .workers(1 + random.below(4))
            .env("RUST_BACKTRACE", "0")
            .stderr(Stdio::null());
        let builder = if random.one_in(3) {
            builder.max_tasks_per_worker(1 + random.below(20) as u32)
        } else {
            builder
        };
        let builder = if random.one_in(3) {
            builder.idle_timeout(Duration::from_millis(random.below(5) as u64))
        } else {
            builder
        };
        let builder = if random.one_in(4) {
            builder.stdout(Stdio::lines(|_, _| {}))
        } else {
            builder
        };
        let builder = if random.one_in(4) {
            builder.wait_policy(WaitPolicy::Park)
        } else {
            builder
        };
        let has_initializer = random.one_in(3);
        let built = if has_initializer {
            builder.initializer(initialize).build()
        } else {
            builder.build()
        };
        match built {
            Ok(pool) => return pool,
            Err(PoolError::InitializerFailed { .. }) if has_initializer => {}
            Err(other) => panic!("no pool: {other}"),
        }
    }
}

/// A worker that was first seen less than this ago may still be starting.
const ON_ITS_WAY: Duration = Duration::from_millis(30);

/// Kills workers until the round is over.
fn kill_workers(round: &Round, mut random: Random) {
    let (mut seen, mut killed) = (BTreeMap::new(), BTreeSet::new());
    while !round.is_over.load(Ordering::Relaxed) {
        let workers = children_of(std::process::id());
        // Each is killed once.
        let workers: Vec<u32> = workers.difference(&killed).copied().collect();
        if let Some(&victim) = workers.get(random.below(workers.len())) {
            // Kills few of the workers that are still starting, and those by SIGKILL: if nearly all
            // died so, the pool would rightly give up.
            let (since, is_early) = *seen
                .entry(victim)
                .or_insert_with(|| (Instant::now(), random.one_in(4)));
            let is_new = since.elapsed() < ON_ITS_WAY;
            if !is_running(victim) || (is_new && !is_early) {
                std::thread::yield_now();
                continue;
            }
            killed.insert(victim);
            match random.below(if is_new { 6 } else { 10 }) {
                0..6 => send(victim, Signal::SIGKILL),
                6 | 7 => {
                    send(victim, Signal::SIGSTOP);
                    pause(random.below(50));
                    send(victim, Signal::SIGKILL);
                }
                8 => send(victim, Signal::SIGSEGV),
                _ => send(victim, Signal::SIGABRT),
            }
            KILLS.fetch_add(1, Ordering::Relaxed);
        }
        pause(random.below(1_000));
    }
}

/// The longest time for which a worker stays stopped. It is longer than any limit of a job, and
/// longer than it takes to find out that the worker is stopped.
const LONGEST_STOP: Duration = Duration::from_millis(300);

/// Stops workers until the round is over: some go on after a moment, some are killed as they are,
/// some stay stopped until a limit ends them or they are let go on. As long as the pool may be
/// closing after that, no worker stays stopped for ever.
fn stop_workers(round: &Round, mut random: Random) {
    let mut stopped: Vec<(u32, Instant)> = Vec::new();
    loop {
        let is_over = round.is_over.load(Ordering::Relaxed);
        if is_over && round.has_ended.load(Ordering::Relaxed) {
            break;
        }
        // As a job may stop its own worker, and not let it go on, that is done for each that was
        // ever seen.
        let workers: Vec<u32> = children_of(std::process::id()).into_iter().collect();
        for &worker in &workers {
            let is_known = stopped.iter().any(|(pid, _)| *pid == worker);
            if !is_known && is_stopped(worker) {
                stopped.push((worker, Instant::now()));
            }
        }
        stopped.retain(|&(pid, since)| {
            let is_over = since.elapsed() >= LONGEST_STOP;
            if is_over {
                send(pid, Signal::SIGCONT);
            }
            !is_over
        });
        if let Some(&victim) = workers.get(random.below(workers.len()))
            && !is_over
        {
            send(victim, Signal::SIGSTOP);
            STOPS.fetch_add(1, Ordering::Relaxed);
            match random.below(8) {
                0..4 => {
                    pause(random.below(200));
                    send(victim, Signal::SIGCONT);
                }
                4 => {
                    pause(random.below(2_000));
                    send(victim, Signal::SIGCONT);
                }
                5 => {
                    pause(random.below(200));
                    send(victim, Signal::SIGKILL);
                    KILLS.fetch_add(1, Ordering::Relaxed);
                }
                _ => stopped.push((victim, Instant::now())),
            }
        }
        pause(random.below(1_000));
    }
    for (pid, _) in stopped {
        send(pid, Signal::SIGCONT);
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // The process may have ended already. No other process gets its pid soon: pids are given out in
    // turn.
    let _ = nix::sys::signal::kill(pid, signal);
}

/// A moment of no certain length.
fn pause(turns: usize) {
    for _ in 0..turns {
        std::thread::yield_now();
    }
}

/// Ends the pool after some calls, in one of the ways there are; or leaves it to be dropped.
fn end(round: &Round, mut random: Random) {
    let after = 1 + random.below(20);
    while round.calls.load(Ordering::Relaxed) < after {
        if round.is_over.load(Ordering::Relaxed) {
            return;
        }
        std::thread::yield_now();
    }
    let way = random.below(7);
    if way < 3 {
        return;
    }
    round.is_ending.store(true, Ordering::SeqCst);
    let ended = match way {
        3 => round.watch.during("end", "close", || round.pool.close()),
        4 => round.watch.during("end", "cancel", || {
            round.pool.shutdown(Shutdown::CancelQueued)
        }),
        5 => {
            let timeout = Duration::from_millis(random.below(100) as u64);
            let close = || round.pool.close_timeout(timeout);
            match round.watch.during("end", "close_timeout", close) {
                Err(PoolError::CloseTimedOut { .. }) => Ok(()),
                other => other,
            }
        }
        _ => round
            .watch
            .during("end", "kill", || round.pool.shutdown(Shutdown::Kill)),
    };
    assert_eq!(ended, Ok(()));
}

fn resize(round: &Round, mut random: Random) {
    while !round.is_over.load(Ordering::Relaxed) {
        pause(random.below(2_000));
        match round.pool.resize(1 + random.below(4)) {
            Ok(()) => {}
            Err(PoolError::Closed) if round.is_ending.load(Ordering::SeqCst) => return,
            Err(other) => panic!("not resized: {other}"),
        }
    }
}

fn fight(seed: u64) {
    let _none = Leftovers::none();
    let mut random = Random::new(seed);
    let round = Round {
        pool: pool(&mut random),
        is_ending: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        has_ended: AtomicBool::new(false),
        calls: AtomicUsize::new(0),
        rest: Mutex::default(),
        watch: Watch::new(format!("MANYHANDS_SEED={seed}"), DEADLINE),
    };
    let (killing, stopping) = (random.split(), random.split());
    let (ending, resizing) = (random.split(), random.split());
    let resizes = random.one_in(2);
    let callers: Vec<Random> = (0..CALLERS).map(|_| random.split()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| kill_workers(&round, killing));
        scope.spawn(|| stop_workers(&round, stopping));
        scope.spawn(|| {
            end(&round, ending);
            round.has_ended.store(true, Ordering::Relaxed);
        });
        if resizes {
            scope.spawn(|| resize(&round, resizing));
        }
        let callers: Vec<_> = callers
            .into_iter()
            .enumerate()
            .map(|(number, random)| {
                let caller = Caller::new(&round, number, random);
                scope.spawn(move || caller.run())
            })
            .collect();
        // Also when one of them has failed: the others must come to their ends.
        let ended: Vec<_> = callers.into_iter().map(ScopedJoinHandle::join).collect();
        round.is_over.store(true, Ordering::Relaxed);
        for caller in ended {
            if let Err(panic) = caller {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let Round {
        pool, rest, watch, ..
    } = round;
    watch.during("round", "drop of the pool", || drop(pool));
    for (job, task) in rest.into_inner().unwrap() {
        let outcome = watch.during("round", "a task that was left", || task.result());
        let rules = job::Rules {
            may_be_cancelled: true,
            ..job::Rules::default()
        };
        job.check(outcome, None, rules, true);
    }
}

#[test]
fn chaos() {
    let seed = seed();
    let most_kills = number("MANYHANDS_KILLS").unwrap_or(300) as usize;
    let most_stops = number("MANYHANDS_STOPS").unwrap_or(100) as usize;
    let start = Instant::now();
    let mut rounds = 0;
    while KILLS.load(Ordering::Relaxed) < most_kills || STOPS.load(Ordering::Relaxed) < most_stops {
        fight(seed.wrapping_add(rounds));
        rounds += 1;
        if rounds % 100 == 0 {
            println!(
                "{rounds} rounds, {KILLS:?} kills, {STOPS:?} stops, {:?}",
                start.elapsed()
            );
        }
    }
    let [values, errors] = job::counts();
    println!(
        "{rounds} rounds, {KILLS:?} kills, {STOPS:?} stops, {values} values, {errors} errors, {:?}",
        start.elapsed()
    );
    assert!(values > 0 && errors > 0);
}
