//! What surrounds a worker: its name, environment, cores and niceness; and how it waits.

use std::time::Duration;

use manyhands::engine::ProcessesBuilder;
use manyhands::engine::{Affinity, InnerThreads, StartMethod, WaitPolicy};
use manyhands::prelude::*;

use crate::common::{Leftovers, as_program, eventually, finish, is_program, is_running, kill};
use crate::{end_workers, endless, outcome, pid};

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
fn workers_have_no_variables_that_were_removed_or_cleared() {
    #[allow(clippy::unnecessary_wraps, reason = "a task's function")]
    fn all((): ()) -> Vec<(String, String)> {
        // The mark of the worker's tree is another one in each worker.
        let is_mark = |name: &str| name == "MANYHANDS_TREE";
        let all = std::env::vars().filter(|(name, _)| !is_mark(name));
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    }
    let _none = Leftovers::none();
    let threads = ("RAYON_NUM_THREADS".to_owned(), "3".to_owned());
    for method in [
        StartMethod::Spawn,
        StartMethod::ForkServer,
        StartMethod::Fork,
    ] {
        let builder = || {
            let builder = Processes::builder().workers(1).start_method(method);
            let builder = builder.allow_threads(true).env("MANYHANDS_A", "a");
            builder.inner_threads(InnerThreads::AtMost(3))
        };
        let seen = |builder: ProcessesBuilder| {
            let pool = builder.build().unwrap();
            let first = outcome(pool.submit(all, ())).unwrap();
            // A worker that takes the place of another has the same.
            end_workers();
            assert_eq!(outcome(pool.submit(all, ())).unwrap(), first);
            first
        };
        let has = |all: &[(String, String)], name: &str| all.iter().any(|(own, _)| own == name);
        let removed = seen(builder().env_remove("PATH").env_remove("RAYON_NUM_THREADS"));
        assert!(has(&removed, "MANYHANDS_A"), "{method:?}");
        assert!(!has(&removed, "PATH"), "{method:?}");
        assert!(!has(&removed, "RAYON_NUM_THREADS"), "{method:?}");
        let cleared = seen(builder().env_clear().envs([("MANYHANDS_B", "b")]));
        assert!(cleared.contains(&threads), "{method:?} {cleared:?}");
        let others = cleared.iter().filter(|(_, value)| value != "3");
        let others: Vec<_> = others.map(|(name, _)| name.as_str()).collect();
        assert_eq!(others, ["MANYHANDS_B"], "{method:?}");
    }
    let refused = Processes::builder().env_remove("").build();
    assert!(matches!(refused, Err(PoolError::InvalidOption { .. })));
}

/// The environment of a program may have variables that std neither sets nor removes.
#[test]
fn a_cleared_environment_has_no_odd_variable_either() {
    const NAME: &str = "surroundings::a_cleared_environment_has_no_odd_variable_either";
    if !is_program() {
        let ended = finish(as_program(NAME).env("=ODD", "x"));
        assert!(ended.status.success(), "{ended:?}");
        return;
    }
    assert!(std::env::vars().any(|(name, _)| name == "=ODD"));
    for method in [
        StartMethod::Spawn,
        StartMethod::ForkServer,
        StartMethod::Fork,
    ] {
        let builder = Processes::builder().workers(1).start_method(method);
        let builder = builder
            .allow_threads(true)
            .inner_threads(InnerThreads::Inherit);
        let pool = builder.env_clear().env("A", "b").build().unwrap();
        let all = pool.submit(|()| std::env::vars().collect::<Vec<_>>(), ());
        let mut all = outcome(all).unwrap();
        all.sort();
        assert_eq!(all[0], ("A".to_owned(), "b".to_owned()), "{method:?}");
        assert_eq!((all[1].0.as_str(), all.len()), ("MANYHANDS_TREE", 2));
    }
}

#[test]
fn workers_have_the_variables_that_were_set_for_them() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1);
    let pool = builder
        .env("GREETING", "hello")
        .env("GREETING", "hello again")
        .env("EMPTY", "")
        .env("EQUATION", "x=y")
        .build()
        .unwrap();
    let value = |name: &str| outcome(pool.submit(variable, name.to_owned())).unwrap();
    assert_eq!(value("GREETING").as_deref(), Some("hello again"));
    assert_eq!(value("EMPTY").as_deref(), Some(""));
    assert_eq!(value("EQUATION").as_deref(), Some("x=y"));
    assert_eq!(value("PATH"), std::env::var("PATH").ok());
    assert_eq!(value("MANYHANDS_WORKER"), None);
    // A worker that takes the place of another has them too.
    end_workers();
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
        (InnerThreads::AtMost(3), Some("3".to_owned())),
        (InnerThreads::Inherit, None),
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
fn a_limit_of_threads_that_this_process_has_is_that_of_its_workers() {
    let _none = Leftovers::none();
    let test = "surroundings::a_limit_of_threads_that_this_process_has_is_that_of_its_workers";
    let names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"];
    if !is_program() {
        let mut program = as_program(test);
        let output = finish(program.env(names[0], "7").env_remove(names[1]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {said}", output.status);
        return;
    }
    let start_methods = [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::ForkServer,
    ];
    for method in start_methods {
        let builder = Processes::builder().workers(1).start_method(method);
        let builder = builder.inner_threads(InnerThreads::AtMost(3));
        let pool = builder.allow_threads(true).build().unwrap();
        let values = names.map(|name| outcome(pool.submit(variable, name.to_owned())).unwrap());
        let values = values.each_ref().map(|value| value.as_deref().unwrap());
        assert_eq!(values, ["7", "3"], "{method:?}");
    }
}

#[test]
fn a_worker_that_comes_later_shares_the_cores_with_those_that_are_there_then() {
    let _none = Leftovers::none();
    let name = "VECLIB_MAXIMUM_THREADS";
    if std::env::var_os(name).is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    let pool = Processes::builder().workers(1).build().unwrap();
    let ask = |name: String| (std::env::args().next().unwrap(), variable(name));
    let answers = |pool: &Pool<Processes>| {
        let call = pool.call().chunk_size(1);
        call.map(ask, std::iter::repeat_n(name.to_owned(), 20))
            .unwrap()
    };
    let share = |workers: usize| Some((cores / workers).max(1).to_string());
    assert!(answers(&pool).iter().all(|(_, most)| *most == share(1)));
    pool.resize(2).unwrap();
    eventually("the second worker has answered", || {
        let answers = answers(&pool);
        let (second, first): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .partition(|(worker, _)| worker.ends_with(":1"));
        assert!(first.iter().all(|(_, most)| *most == share(1)), "{first:?}");
        assert!(
            second.iter().all(|(_, most)| *most == share(2)),
            "{second:?}"
        );
        !second.is_empty()
    });
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
        let error = error.unwrap_err();
        let PoolError::StartFailed {
            worker,
            workers,
            reason,
            ..
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!((*worker, *workers), (1, 2), "{error}");
        assert!(reason.contains(&core.to_string()), "{reason}");
    }
}

#[test]
fn workers_are_as_nice_as_they_were_asked_to_be() {
    let _none = Leftovers::none();
    let own = niceness(0);
    let pool = Processes::builder().workers(1).build().unwrap();
    assert_eq!(outcome(pool.submit(niceness, 0)), Ok(own));
    for nice in [15, 19] {
        let pool = Processes::builder().workers(1).nice(nice).build().unwrap();
        assert_eq!(outcome(pool.submit(niceness, 0)), Ok(nice));
    }
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
        // However long the caller watches, it gives up at its deadline.
        let mut task = pool.submit(endless, 0);
        let given_up = task.result_timeout(Duration::from_millis(20));
        assert!(given_up.is_err(), "{policy:?}: {given_up:?}");
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
            // An empty name is the same as none.
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
