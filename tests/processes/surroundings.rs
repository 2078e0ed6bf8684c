//! What surrounds a worker: its name, environment, cores and niceness; and how it waits.

use std::time::Duration;

use manyhands::prelude::*;
use manyhands::{Affinity, InnerThreads, WaitPolicy};

use crate::common::{Leftovers, eventually, is_running, kill};
use crate::{endless, outcome, pid, workers};

#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

/// The number of the worker that runs this, by its name, and the cores that it may use.
fn cores(_: u32) -> (usize, String) {
    let name = std::env::args().next().unwrap();
    let number = name.rsplit(':').next().unwrap().parse().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    (number, line.unwrap().trim().to_owned())
}

fn niceness(_: u32) -> i32 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The 19th field of all; the name, in brackets, may contain anything.
    let after_name = &stat[stat.rfind(')').unwrap() + 1..];
    after_name
        .split_whitespace()
        .nth(16)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn workers_have_the_variables_that_were_set_for_them() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1);
    let pool = builder
        .env("GREETING", "hello")
        .env("GREETING", "hello again")
        .env("EMPTY", "")
        .build()
        .unwrap();
    let value = |name: &str| outcome(pool.submit(variable, name.to_owned())).unwrap();
    assert_eq!(value("GREETING").as_deref(), Some("hello again"));
    assert_eq!(value("EMPTY").as_deref(), Some(""));
    assert_eq!(value("PATH"), std::env::var("PATH").ok());
    assert_eq!(value("MANYHANDS_WORKER"), None);
    // So has one that takes the place of another.
    workers().into_iter().for_each(kill);
    assert_eq!(value("GREETING").as_deref(), Some("hello again"));
    assert!(std::env::var_os("GREETING").is_none(), "here is not there");
}

#[test]
fn libraries_in_workers_are_told_how_many_threads_they_may_start() {
    let _none = Leftovers::none();
    let variables = [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "RAYON_NUM_THREADS",
    ];
    let cores = std::thread::available_parallelism().unwrap().get();
    for (threads, expected) in [
        (InnerThreads::Most(3), Some("3".to_owned())),
        (InnerThreads::Off, None),
        (InnerThreads::Share, Some((cores / 2).max(1).to_string())),
    ] {
        let builder = Processes::builder().workers(2).inner_threads(threads);
        let pool = builder.build().unwrap();
        for name in variables {
            // What the user has set, stays.
            let expected = std::env::var(name).ok().or(expected.clone());
            let value = outcome(pool.submit(variable, name.to_owned()));
            assert_eq!(value, Ok(expected), "{threads:?}, {name}");
        }
    }
    let builder = Processes::builder().workers(1).env("OMP_NUM_THREADS", "5");
    let pool = builder.build().unwrap();
    let value = outcome(pool.submit(variable, "OMP_NUM_THREADS".to_owned()));
    assert_eq!(
        value.unwrap().as_deref(),
        Some("5"),
        "what was said for the pool wins"
    );
}

#[test]
fn workers_run_on_the_cores_that_they_were_given() {
    let _none = Leftovers::none();
    let all = cores_here();
    for (affinity, list) in [
        (Affinity::Spread, all.clone()),
        (Affinity::Cores(vec![all[0]]), vec![all[0]]),
        (
            Affinity::Cores(all.iter().rev().copied().collect()),
            all.iter().rev().copied().collect(),
        ),
    ] {
        let builder = Processes::builder().workers(3).affinity(affinity.clone());
        let pool = builder.build().unwrap();
        let of_all = pool.call().chunk_size(1).map(cores, 0..100).unwrap();
        for (number, cores) in of_all {
            let expected = list[number % list.len()].to_string();
            assert_eq!(cores, expected, "worker {number}, {affinity:?}");
        }
    }
}

/// The cores this process may use.
fn cores_here() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count())
        .filter(|&core| set.is_set(core).unwrap())
        .collect()
}

#[test]
fn a_core_that_is_not_there_is_a_clear_error() {
    let _none = Leftovers::none();
    for core in [1_000, 1_023, 1_024, 100_000, usize::MAX] {
        let affinity = Affinity::Cores(vec![cores_here()[0], core]);
        let error = Processes::builder().workers(2).affinity(affinity).build();
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&core.to_string()), "{text}");
    }
}

#[test]
fn workers_are_as_nice_as_they_were_asked_to_be() {
    let _none = Leftovers::none();
    let own = niceness(0);
    let pool = Processes::builder().workers(1).build().unwrap();
    assert_eq!(outcome(pool.submit(niceness, 0)), Ok(own));
    let pool = Processes::builder().workers(1).nice(15).build().unwrap();
    assert_eq!(outcome(pool.submit(niceness, 0)), Ok(15));
    assert_eq!(niceness(0), own);
}

#[test]
fn every_way_to_wait_works() {
    let _none = Leftovers::none();
    for policy in [
        WaitPolicy::Balanced,
        WaitPolicy::Park,
        WaitPolicy::Spin(Duration::ZERO),
        WaitPolicy::Spin(Duration::from_millis(2)),
        WaitPolicy::Spin(Duration::MAX),
    ] {
        let builder = Processes::builder().workers(2).wait_policy(policy);
        let pool = builder.build().unwrap();
        for n in 0..50u32 {
            assert_eq!(
                outcome(pool.submit(|n: u32| n + 1, n)),
                Ok(n + 1),
                "{policy:?}"
            );
        }
        assert_eq!(pool.map(|n: u64| n, 0..1_000).unwrap().len(), 1_000);
        let all = pool.imap(|n: u64| n, 0..100);
        assert_eq!(all.map(Result::unwrap).sum::<u64>(), 4_950);
        // However long it watches, it gives up when it was to.
        let mut task = pool.submit(endless, 0);
        let given_up = task.result_timeout(Duration::from_millis(20));
        assert_eq!(given_up, Err(Timeout), "{policy:?}");
    }
}

#[test]
fn a_name_can_be_anything() {
    let _none = Leftovers::none();
    let long = "x".repeat(10_000);
    for name in [
        "render",
        "",
        "a b/c:d",
        "nul\0nul",
        "ßßßßßßßßßßß",
        long.as_str(),
    ] {
        let pool = Processes::builder().workers(1).name(name).build().unwrap();
        let own = outcome(pool.submit(|()| std::env::args().next(), ())).unwrap();
        let named = own.clone().unwrap();
        if name.is_empty() {
            // The same as none.
            assert!(named.starts_with("manyhands:pool"), "{named}");
        } else {
            assert_eq!(named, format!("manyhands:{}:0", name.replace('\0', " ")));
        }
        // One that takes the place of another has its name, too.
        let first = outcome(pool.submit(pid, 0)).unwrap();
        kill(first);
        eventually("it has gone", || !is_running(first));
        let again = outcome(pool.submit(|()| std::env::args().next(), ())).unwrap();
        assert_eq!(again, own);
    }
}
