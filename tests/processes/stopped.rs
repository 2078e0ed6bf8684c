//! Workers that are stopped (SIGSTOP, a debugger, a frozen container): no task waits for one that
//! another could run, and a limit ends what is left.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::{
    Shutdown,
    engine::{StartMethod, WaitPolicy},
};

use crate::common::errors::{cancelled, task_timed_out, timed_out};
use crate::common::random::{Random, seed};
use crate::common::{
    DEADLINE, Killed, Leftovers, Stopped, as_program, children_of, eventually, falls_asleep_again,
    finish, is_program, is_running, is_stopped, stderr, thread_named,
};
use crate::{Folder, begin_and_wait, endless, outcome, pid, touch, wait_for, workers};

/// Long enough for a busy machine to start an item that can be started.
const LIMIT: Duration = Duration::from_millis(400);

fn overdue(index: Option<usize>) -> TaskError {
    timed_out(index, LIMIT)
}

/// Ends the program if what must end does not: a call that hangs cannot be given up.
fn in_time<R>(what: &'static str, run: impl FnOnce() -> R) -> R {
    let (done, over) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if over.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            stderr::say(&format!("this hangs: {what}\n"));
            std::process::abort();
        }
    });
    let result = run();
    drop(done);
    result
}

/// Whatever method workers are started by, and however they wait for work.
fn pools(workers: usize) -> Vec<(&'static str, Pool<Processes>)> {
    let builder = || Processes::builder().workers(workers);
    let fork = builder()
        .start_method(StartMethod::Fork)
        .allow_threads(true);
    let server = builder().start_method(StartMethod::ForkServer);
    // This is long, so that a worker that is stopped while it is idle is stopped while it looks for
    // work.
    let spin = builder().wait_policy(WaitPolicy::Spin(Duration::from_secs(60)));
    let builders = [
        ("spawn", builder()),
        ("fork", fork),
        ("server", server),
        ("spin", spin),
        ("park", builder().wait_policy(WaitPolicy::Park)),
    ];
    let build = |(name, builder): (_, manyhands::engine::ProcessesBuilder)| {
        (name, builder.build().unwrap())
    };
    builders.map(build).into()
}

/// The workers of a pool.
fn pids(pool: &Pool<Processes>) -> BTreeSet<u32> {
    pool.stats()
        .workers
        .iter()
        .filter_map(|worker| worker.pid)
        .collect()
}

#[cfg(not(long_slices))]
#[test]
fn what_a_stopped_idle_worker_has_been_given_goes_to_another() {
    let _none = Leftovers::none();
    for (name, pool) in pools(2) {
        for round in 0..2 {
            // The one that was busy last is given the next task.
            let victim = outcome(pool.submit(pid, 0)).unwrap();
            let stopped = Stopped::new(victim);
            for _ in 0..3 {
                let other = outcome(pool.submit(pid, 0)).unwrap();
                assert_ne!(other, victim, "{name}");
            }
            let call = pool.call().timeout(LIMIT).chunk_size(4);
            assert_eq!(
                in_time("map", || call.map(|n: u32| n, 0..50))
                    .unwrap()
                    .len(),
                50
            );
            let each = in_time("imap", || pool.imap(|n: u32| n, 0..50).collect::<Vec<_>>());
            assert!(each.iter().all(Result::is_ok), "{name}");
            let sum = in_time("map_reduce", || {
                pool.map_reduce(|n: u64| n, |a, b| a + b, 0..100)
            });
            assert_eq!(sum, Ok(Some(4_950)));
            drop(stopped);
            if round == 0 {
                // It is one of two again.
                eventually("the one that went on works", || {
                    let seen: BTreeSet<u32> = pool.map(pid, 0..100).unwrap().into_iter().collect();
                    seen.contains(&victim)
                });
            }
        }
    }
}

#[cfg(not(long_slices))]
#[test]
fn a_task_that_is_taken_back_runs_without_a_waiting_caller() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let folder = Folder::new();
    let victim = outcome(pool.submit(pid, 0)).unwrap();
    let _stopped = Stopped::new(victim);
    let task = pool.submit(touch, folder.file("ran"));
    eventually("it has run", || folder.count("ran") == 1);
    let (told, is_told) = std::sync::mpsc::channel();
    let again = pool.submit(pid, 0);
    again.on_done(move |outcome| told.send(outcome.is_ok()).unwrap());
    assert_eq!(is_told.recv_timeout(DEADLINE), Ok(true));
    assert_eq!(outcome(task), Ok(()));
}

#[cfg(not(long_slices))]
#[test]
fn a_task_that_was_taken_back_runs_once() {
    fn once(path: PathBuf) -> u32 {
        File::create_new(path).unwrap();
        std::process::id()
    }
    let _none = Leftovers::none();
    let pool = Pool::processes(3).unwrap();
    let folder = Folder::new();
    let mut count = 0;
    for _ in 0..5 {
        let mut victims = Vec::new();
        for _ in 0..2 {
            let victim = outcome(pool.submit(pid, 0)).unwrap();
            victims.push(Stopped::new(victim));
        }
        let files = |count: u32| (count..count + 60).map(|n| folder.file(&format!("item {n}")));
        in_time("map", || pool.call().chunk_size(3).map(once, files(count))).unwrap();
        count += 60;
        // The stopped workers pass over what was taken back, while they are given more.
        let rest = files(count);
        let tasks: Vec<_> = rest.map(|file| pool.submit(once, file)).collect();
        drop(victims);
        for task in tasks {
            outcome(task).unwrap();
        }
        count += 60;
    }
    assert_eq!(folder.count("item"), count as usize);
}

#[test]
fn a_task_that_no_other_worker_can_run_waits_for_the_stopped_one() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let only = outcome(pool.submit(pid, 0)).unwrap();
    let stopped = Stopped::new(only);
    let mut tasks: Vec<_> = (0..40).map(|_| pool.submit(pid, 0)).collect();
    // Far longer than it takes to find out that the worker is stopped.
    assert!(tasks[0].result_timeout(Duration::from_millis(200)).is_err());
    drop(stopped);
    for task in tasks {
        assert_eq!(outcome(task), Ok(only));
    }
}

#[cfg(not(long_slices))]
#[test]
fn b28_a_limit_counts_from_when_a_task_could_have_begun() {
    let _none = Leftovers::none();
    for (name, pool) in pools(1) {
        let victim = outcome(pool.submit(pid, 0)).unwrap();
        let _stopped = Stopped::new(victim);
        let start = Instant::now();
        let call = || pool.call().timeout(LIMIT);
        let tasks: Vec<_> = (0..6).map(|n| call().submit(pid, n)).collect();
        let mut tasks = tasks.into_iter();
        let first = tasks.next().unwrap();
        let overdue = task_timed_out(first.id(), LIMIT);
        assert_eq!(outcome(first), Err(overdue), "{name}");
        assert!(start.elapsed() >= LIMIT);
        assert!(!is_running(victim));
        // They were behind it: their own limits had not begun.
        for task in tasks {
            let other = outcome(task).unwrap();
            assert_ne!(other, victim, "{name}");
        }
        let failures = pool.stats().total().failures;
        assert_eq!((failures.timed_out, failures.total()), (1, 1));
    }
}

#[test]
fn b28_a_limit_does_not_count_while_the_whole_program_is_stopped() {
    let name = "stopped::b28_a_limit_does_not_count_while_the_whole_program_is_stopped";
    let limit = Duration::from_secs(1);
    let _none = Leftovers::none();
    if !is_program() {
        let mut program = as_program(name);
        let program = Killed(program.stdout(std::process::Stdio::null()).spawn().unwrap());
        eventually("it has stopped itself", || is_stopped(program.0.id()));
        // Long enough for a limit of a worker of which the kernel does not say that it is stopped.
        std::thread::sleep(limit + Duration::from_millis(1_300));
        drop(Stopped::new(program.0.id()));
        let mut program = program;
        let mut status = None;
        eventually("it has ended", || {
            status = program.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
        return;
    }
    let pool = Pool::processes(1).unwrap();
    let worker = outcome(pool.submit(pid, 0)).unwrap();
    let stopped = Stopped::new(worker);
    let task = pool.call().timeout(limit).submit(pid, 0);
    // Waits until the supervisor has seen the stalled worker.
    let supervisor = thread_named("manyhands-watch");
    falls_asleep_again(supervisor, 3);
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).unwrap();
    // The supervisor sees it again before the worker goes on.
    falls_asleep_again(supervisor, 3);
    drop(stopped);
    assert_eq!(outcome(task), Ok(worker));
}

#[cfg(not(long_slices))]
#[test]
fn b28_a_limit_ends_what_all_workers_are_stopped_over() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let stopped: Vec<_> = pids(&pool).into_iter().map(Stopped::new).collect();
    let call = pool.call().timeout(LIMIT).chunk_size(5).retries(3);
    let outcomes = in_time("map_outcomes", || call.map_outcomes(|n: u32| n, 0..20));
    let mut late = Vec::new();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(n) => assert_eq!(n as usize, index),
            Err(error) => {
                assert_eq!(error, overdue(Some(index)));
                late.push(index);
            }
        }
    }
    assert_eq!(late, [0, 5], "the first item of what each of them had");
    drop(stopped);
}

#[test]
fn b28_a_worker_that_is_stopped_at_any_moment_makes_no_task_late_for_ever() {
    let _none = Leftovers::none();
    let mut random = Random::new(seed());
    let limit = Duration::from_millis(100);
    let mut late = 0;
    for workers in [1, 2] {
        let pool = Pool::processes(workers).unwrap();
        for _ in 0..20 {
            // Larger than a lane, now and then: it is stopped while it reads.
            let len = if random.one_in(2) {
                random.below(8 << 20)
            } else {
                random.below(100)
            };
            let mut victims = Vec::new();
            eventually("there is a worker", || {
                victims = pids(&pool).into_iter().collect();
                !victims.is_empty()
            });
            let victim = victims[random.below(victims.len())];
            let call = pool.call().timeout(limit);
            let task = call.submit(|bytes: Vec<u8>| bytes.len(), vec![1; len]);
            for _ in 0..random.below(2_000) {
                std::hint::spin_loop();
            }
            let stopped = Stopped::new(victim);
            let overdue = task_timed_out(task.id(), limit);
            match outcome(task) {
                Ok(count) => assert_eq!(count, len),
                Err(error) => {
                    assert_eq!(error, overdue);
                    late += 1;
                }
            }
            // Some stay as they are until the next task's limit ends them.
            if random.one_in(2) {
                std::mem::forget(stopped);
            }
        }
    }
    assert!(late > 0);
}

#[test]
fn b28_a_task_without_a_limit_is_not_stopped_for_one_behind_it_that_has_one() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let folder = Folder::new();
    let worker = outcome(pool.submit(pid, 0)).unwrap();
    let files = (folder.file("begun"), folder.file("end"));
    let long = pool.submit(begin_and_wait, files);
    let limit = Duration::from_millis(50);
    let short = pool.call().timeout(limit).submit(pid, 0);
    eventually("it runs", || folder.count("begun") == 1);
    // The limit of the other one passes many times.
    std::thread::sleep(20 * limit);
    touch(folder.file("end"));
    assert_eq!(outcome(long), Ok(worker));
    assert_eq!(outcome(short), Ok(worker));
}

/// Its late answer, about a worker that ended meanwhile, is not taken for one to a later question.
#[test]
fn a_fork_server_that_was_stopped_goes_on_and_says_how_later_workers_end() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(2);
    let pool = builder
        .start_method(StartMethod::ForkServer)
        .build()
        .unwrap();
    let own = std::process::id();
    let servers = children_of(own);
    let [server] = servers.iter().copied().collect::<Vec<_>>()[..] else {
        panic!("{servers:?}");
    };
    let die = |()| {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    let stopped = Stopped::new(server);
    let first = outcome(pool.submit(die, ()));
    let cause = |outcome: &_| match outcome {
        Err(TaskError::WorkerDied { cause, .. }) => Some(*cause),
        _ => None,
    };
    assert_eq!(cause(&first), Some(Death::Unknown));
    let left = pids(&pool);
    drop(stopped);
    eventually("both workers are there", || pids(&pool).len() == 2);
    assert!(left.is_subset(&pids(&pool)), "the other worker has ended");
    let second = outcome(pool.submit(|()| std::process::exit(7), ()));
    assert_eq!(cause(&second), Some(Death::Exit(7)));
    eventually("both workers are there", || pids(&pool).len() == 2);
    assert_eq!(children_of(own), servers, "there is another server");
}

#[test]
fn a_stopped_worker_keeps_only_what_it_has_begun() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let folder = Folder::new();
    let files = (folder.file("begun"), folder.file("end"));
    let begun = pool.submit(begin_and_wait, files);
    eventually("it runs", || folder.count("begun") == 1);
    let free = outcome(pool.submit(pid, 0)).unwrap();
    let busy = pids(&pool).into_iter().find(|&pid| pid != free).unwrap();
    let stopped = Stopped::new(busy);
    // More than fit into one lane.
    let tasks: Vec<_> = (0..100).map(|_| pool.submit(pid, 0)).collect();
    for task in tasks {
        assert_eq!(outcome(task), Ok(free));
    }
    touch(folder.file("end"));
    drop(stopped);
    assert_eq!(outcome(begun), Ok(busy));
}

#[test]
fn tasks_of_a_stopped_worker_can_be_cancelled_and_the_pool_be_ended() {
    let name = "stopped::tasks_of_a_stopped_worker_can_be_cancelled_and_the_pool_be_ended";
    let _none = Leftovers::none();
    if !is_program() {
        let output = finish(&mut as_program(name));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {said}", output.status);
        return;
    }
    for kills in [true, false] {
        let pool = Pool::processes(1).unwrap();
        let only = outcome(pool.submit(pid, 0)).unwrap();
        let _stopped = Stopped::new(only);
        let [first, second, third] = [0, 1, 2].map(|_| pool.submit(pid, 0));
        // The supervisor has found them: a worker that begins nothing for 20 ms is stalled, and the
        // pauses between its looks are 10 ms and longer.
        if cfg!(not(long_slices)) {
            falls_asleep_again(thread_named("manyhands-watch"), 5);
        }
        assert!(first.cancel());
        assert!(second.kill());
        assert_eq!(outcome(first), Err(cancelled()));
        assert_eq!(outcome(second), Err(cancelled()));
        if kills {
            in_time("shutdown", || pool.shutdown(Shutdown::Kill)).unwrap();
        } else {
            in_time("drop", || drop(pool));
        }
        assert_eq!(outcome(third), Err(cancelled()));
        assert!(!is_running(only));
    }
}

/// Each case waits for ten seconds, so all run at the same time.
#[cfg(not(long_slices))]
#[test]
fn a_stopped_worker_that_is_to_end_is_killed_after_a_while() {
    let _none = Leftovers::none();
    let build = |workers| Processes::builder().workers(workers);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pool = build(2).build().unwrap();
            let victim = outcome(pool.submit(pid, 0)).unwrap();
            let _stopped = Stopped::new(victim);
            let task = pool.submit(pid, 0);
            in_time("close", || pool.close()).unwrap();
            assert_ne!(outcome(task), Ok(victim));
            assert!(!is_running(victim));
        });
        scope.spawn(|| {
            let pool = build(2).build().unwrap();
            let victim = pool.stats().workers[1].pid.unwrap();
            let _stopped = Stopped::new(victim);
            pool.resize(1).unwrap();
            eventually("the one too many has ended", || !is_running(victim));
            assert_eq!(pool.map(|n: u32| n, 0..3), Ok(vec![0, 1, 2]));
        });
        scope.spawn(|| {
            let idle = build(1).idle_timeout(Duration::from_millis(50));
            let pool = idle.build().unwrap();
            // It may have left before it could be stopped, and then another is stopped.
            let victim = loop {
                let victim = outcome(pool.submit(pid, 0)).unwrap();
                std::mem::forget(Stopped::new(victim));
                if is_stopped(victim) {
                    break victim;
                }
            };
            // It has been idle for long enough in any case.
            eventually("the idle one has ended", || !is_running(victim));
            assert!(outcome(pool.submit(pid, 0)).is_ok());
        });
    });
}

#[cfg(not(long_slices))]
#[test]
fn endless_tasks_and_stopped_workers_leave_the_rest_to_the_others() {
    let _none = Leftovers::none();
    let pool = Pool::processes(3).unwrap();
    let folder = Folder::new();
    let long = pool.submit(endless, 0);
    let held = pool.submit(begin_and_wait, (folder.file("begun"), folder.file("end")));
    eventually("it runs", || folder.count("begun") == 1);
    let free = outcome(pool.submit(pid, 0)).unwrap();
    let stopped = Stopped::new(free);
    let late = pool.submit(pid, 0);
    let waits = pool.submit(wait_for, folder.file("end"));
    // As soon as one of the others has nothing to do, it takes what the stopped one has.
    touch(folder.file("end"));
    assert_ne!(outcome(late), Ok(free));
    assert!(outcome(waits).is_ok());
    assert!(outcome(held).is_ok());
    drop(stopped);
    assert!(long.kill());
}

/// The process that forks the pool's workers.
fn server_of(pool: &Pool<Processes>) -> u32 {
    let pids = pids(pool);
    let of_them = |pid: &u32| !children_of(*pid).is_disjoint(&pids);
    workers().into_iter().find(of_them).unwrap()
}

#[test]
fn a_stopped_fork_server_holds_up_no_call_for_long() {
    let _none = Leftovers::none();
    let server = Processes::builder().start_method(StartMethod::ForkServer);
    let fork = Processes::builder()
        .start_method(StartMethod::Fork)
        .allow_threads(true);
    for builder in [server, fork] {
        let pool = builder.workers(2).build().unwrap();
        let first = server_of(&pool);
        let stopped = Stopped::new(first);
        // The server is not needed for this.
        assert_eq!(pool.map(|n: u32| n, 0..20).unwrap().len(), 20);
        // A limit is kept though the worker's end cannot be told, and a new one cannot be forked.
        let start = Instant::now();
        let late = pool.call().timeout(LIMIT).submit(endless, 0);
        let overdue = task_timed_out(late.id(), LIMIT);
        assert_eq!(outcome(late), Err(overdue));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        // The next worker comes from another server.
        eventually("there are two workers", || pids(&pool).len() == 2);
        assert!(!is_running(first));
        assert_eq!(
            in_time("map", || pool.map(|n: u32| n, 0..20))
                .unwrap()
                .len(),
            20
        );
        drop(stopped);
        let _stopped = Stopped::new(server_of(&pool));
        in_time("drop", || drop(pool));
    }
}
