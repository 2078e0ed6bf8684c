//! What a death costs. First: the time from the moment at which a worker dies in a task to the
//! error in the caller's hands. Second: the time from there to the first result of the worker that
//! replaces it. Third: a run of a hundred deaths among a hundred good tasks.
//!
//! `cargo bench --bench deaths`. A task is told when to die, by the clock that all processes share,
//! and spins until then. So a process that is about to die has nothing to tell. There is one
//! worker, so that the next result is that of its replacement.

mod common;

use std::time::{Duration, Instant};

use common::{median, percentile, print_machine, seconds};
use manyhands::prelude::*;
use serde::{Deserialize, Serialize};

const ROUNDS: usize = 7;
const DEATHS: usize = 60;
/// The time from the call to the death: long enough for the task to have come to its worker.
const AHEAD: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Way {
    Kill,
    Abort,
    Exit,
}

/// Nanoseconds on the clock that is the same in all processes of a machine.
fn clock() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the time to where it is told.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// A task that dies at that time.
fn die_at((way, time): (Way, u64)) -> u64 {
    while clock() < time {
        std::hint::spin_loop();
    }
    die(way)
}

fn die(way: Way) -> u64 {
    match way {
        Way::Kill => {
            // SAFETY: a signal to this very process, which is what is meant to end.
            unsafe { libc::raise(libc::SIGKILL) };
            unreachable!("SIGKILL cannot be survived")
        }
        Way::Abort => std::process::abort(),
        Way::Exit => std::process::exit(3),
    }
}

/// A task of the run: the odd ones kill their worker.
fn killer_or_not(n: u64) -> u64 {
    if n % 2 == 1 { die(Way::Kill) } else { n + 1 }
}

/// µs from the death to the error, and from the error to the next result.
macro_rules! death {
    ($pool:expr, $way:expr) => {{
        let time = clock() + AHEAD.as_nanos() as u64;
        let outcome = $pool.submit(die_at, ($way, time)).result();
        let told = clock();
        assert!(
            matches!(outcome, Err(TaskError::WorkerDied { .. })),
            "{outcome:?}"
        );
        assert!(told > time, "the task came too late");
        let start = Instant::now();
        assert_eq!($pool.submit(|x: u64| x + 1, 1).result(), Ok(2));
        let next = start.elapsed().as_secs_f64() * 1e6;
        ((told - time) as f64 / 1e3, next)
    }};
}

/// Prints p50 and p99 of many deaths.
macro_rules! deaths {
    ($name:expr, $pool:expr, $way:expr) => {{
        let pool = $pool;
        let (mut told, mut next) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            for _ in 0..DEATHS {
                let (to_error, to_next) = death!(pool, $way);
                // The first round warms up.
                if round > 0 {
                    told.push(to_error);
                    next.push(to_next);
                }
            }
        }
        println!(
            "  {:32} {:8.0} {:8.0}   {:8.0} {:8.0}",
            $name,
            percentile(&mut told, 50),
            percentile(&mut told, 99),
            percentile(&mut next, 50),
            percentile(&mut next, 99)
        );
    }};
}

/// Milliseconds for a hundred tasks that kill their worker among a hundred that do not, or for the
/// latter alone.
macro_rules! run {
    ($pool:expr, $step:expr) => {
        1e3 * seconds(|| {
            let tasks: Vec<_> = (0..200)
                .step_by($step)
                .map(|n: u64| (n, $pool.submit(killer_or_not, n)))
                .collect();
            for (n, task) in tasks {
                assert_eq!(task.result().is_err(), n % 2 == 1);
            }
        })
    };
}

fn main() {
    print_machine();
    println!(
        "{:34} {:^17}   {:^17}",
        "one worker, µs", "death → error", "error → result"
    );
    println!(
        "  {:32} {:>8} {:>8}   {:>8} {:>8}",
        "", "p50", "p99", "p50", "p99"
    );
    for (name, way) in [
        ("processes, SIGKILL", Way::Kill),
        ("processes, abort", Way::Abort),
        ("processes, exit", Way::Exit),
    ] {
        deaths!(name, Pool::processes(1).unwrap(), way);
    }
    for (name, way) in [
        ("forked, SIGKILL", Way::Kill),
        ("forked, abort", Way::Abort),
        ("forked, exit", Way::Exit),
    ] {
        deaths!(name, Pool::forked(1).unwrap(), way);
    }

    let pool = Pool::processes(2).unwrap();
    let forked = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let mut times = vec![Vec::new(); 4];
    for _ in 0..=ROUNDS {
        times[0].push(run!(pool, 1));
        times[1].push(run!(pool, 2));
        times[2].push(run!(forked, 1));
        times[3].push(run!(forked, 2));
    }
    println!("\ntwo workers, ms");
    let names = [
        "processes: 100 deaths, 100 good",
        "processes: the good ones alone",
        "forked: 100 deaths, 100 good",
        "forked: the good ones alone",
    ];
    for (name, times) in names.iter().zip(&mut times) {
        println!("  {name:32} {:8.2}", median(&mut times[1..]));
    }
}
