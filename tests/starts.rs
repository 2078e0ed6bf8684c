//! How workers are started: spawned, forked, forked by a server; and how deep processes may lie one
//! inside the other.
//!
//! The test harness runs other threads, so forking is allowed here by `allow_threads`.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio as Streams};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::errors::{task_timed_out, too_deep};
use common::{
    DEADLINE, Killed, Leftovers, as_program, children_of, eventually, finish, is_program,
    is_running, kill,
};
use manyhands::engine::ProcessesBuilder;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::sync::Event;
use manyhands::{engine::StartMethod, process, worker_state};
use nix::sys::signal::{SigHandler, Signal, signal};

const METHODS: [StartMethod; 3] = [
    StartMethod::Spawn,
    StartMethod::Fork,
    StartMethod::ForkServer,
];

fn builder(method: StartMethod) -> ProcessesBuilder {
    Processes::builder()
        .workers(2)
        .start_method(method)
        .allow_threads(true)
}

/// Keeps a core busy until it is killed.
fn spin(_: u32) {
    loop {
        std::hint::spin_loop();
    }
}

#[test]
fn every_start_method_gives_workers_that_work() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let squares = pool.map(|x: u64| x * x, 0..1_000).unwrap();
        assert_eq!(
            squares,
            (0..1_000).map(|x| x * x).collect::<Vec<_>>(),
            "{method:?}"
        );
        let pids: BTreeSet<u32> = pool
            .call()
            .chunk_size(1)
            .map(|()| std::process::id(), [(); 100])
            .unwrap()
            .into_iter()
            .collect();
        assert!(!pids.contains(&std::process::id()), "{method:?}");
        pool.close().unwrap();
        eventually("the workers are gone", || {
            !pids.iter().any(|&pid| is_running(pid))
        });
    }
}

#[test]
fn b23_a_death_is_told_rightly_whoever_started_the_worker() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let deaths = pool.map_outcomes(
            |how: i32| match how {
                0 => std::process::abort(),
                1 => std::process::exit(7),
                2 => kill(std::process::id()),
                _ => {}
            },
            0..4,
        );
        let cause = |at: usize| match &deaths[at] {
            Err(TaskError::WorkerDied { cause, .. }) => *cause,
            other => panic!("{method:?}: {other:?}"),
        };
        assert_eq!(cause(0), Death::Signal(6), "{method:?}");
        assert_eq!(cause(1), Death::Exit(7), "{method:?}");
        assert_eq!(cause(2), Death::Signal(9), "{method:?}");
        assert_eq!(deaths[3], Ok(()), "{method:?}");
    }
}

#[test]
fn b28_a_limit_stops_a_forked_worker_too() {
    let _none = Leftovers::none();
    for method in METHODS {
        let limit = Duration::from_millis(50);
        let pool = builder(method).task_timeout(limit).build().unwrap();
        let endless = pool.submit(spin, 0);
        let overdue = Err(task_timed_out(endless.id(), limit));
        assert_eq!(endless.result(), overdue, "{method:?}");
        assert_eq!(pool.submit(|x: u8| x, 3).result(), Ok(3), "{method:?}");
    }
}

static LOADED: AtomicU32 = AtomicU32::new(0);

#[test]
fn forked_workers_have_what_this_process_has_loaded_and_others_have_not() {
    let _none = Leftovers::none();
    LOADED.store(7, Ordering::Relaxed);
    let loaded = |()| LOADED.load(Ordering::Relaxed);
    for (method, expected) in [
        (StartMethod::Spawn, 0),
        (StartMethod::Fork, 7),
        (StartMethod::ForkServer, 0),
    ] {
        let pool = builder(method).build().unwrap();
        assert_eq!(pool.submit(loaded, ()).result(), Ok(expected), "{method:?}");
        // One that takes the place of a dead one is forked from the same copy.
        LOADED.store(8, Ordering::Relaxed);
        let died = pool
            .submit(|()| -> () { std::process::abort() }, ())
            .result();
        assert!(
            matches!(died, Err(TaskError::WorkerDied { .. })),
            "{died:?}"
        );
        assert_eq!(
            pool.map(loaded, [(); 50]).unwrap(),
            [expected; 50],
            "{method:?}"
        );
        LOADED.store(7, Ordering::Relaxed);
    }
}

static PRELOADED: AtomicU32 = AtomicU32::new(0);

fn preload() -> Result<(), String> {
    match PRELOADED.swap(std::process::id(), Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err("loaded twice".to_owned()),
    }
}

#[test]
fn what_the_server_preloads_all_workers_share() {
    let _none = Leftovers::none();
    let builder = || Processes::builder().workers(2).preload(preload);
    // Also where the server is asked for by name.
    for builder in [builder(), builder().start_method(StartMethod::ForkServer)] {
        let pool = builder.build().unwrap();
        let loaded = |()| (PRELOADED.load(Ordering::Relaxed), std::process::id());
        let all = pool.call().chunk_size(1).map(loaded, [(); 100]).unwrap();
        let servers: BTreeSet<u32> = all.iter().map(|(server, _)| *server).collect();
        assert_eq!(servers.len(), 1, "one load, in the server: {servers:?}");
        assert!(children_of(std::process::id()).contains(servers.first().unwrap()));
        assert_eq!(PRELOADED.load(Ordering::Relaxed), 0);
    }
}

/// The folder of a test, by the process that runs it, if there is one.
fn loading(parent: u32) -> PathBuf {
    std::env::temp_dir().join(format!("manyhands-loading-{parent}"))
}

/// Goes on for ever in a folder in which a file says so.
fn load_slowly() -> Result<(), String> {
    let folder = loading(std::os::unix::process::parent_id());
    if folder.join("slow").exists() {
        File::create(folder.join("begun")).map_err(|error| error.to_string())?;
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

#[test]
fn a_pool_ends_while_a_server_that_was_replaced_still_loads() {
    let _none = Leftovers::none();
    let folder = loading(std::process::id());
    for closes in [true, false] {
        std::fs::create_dir(&folder).unwrap();
        let pool = Processes::builder().workers(1).preload(load_slowly);
        let pool = pool.build().unwrap();
        File::create(folder.join("slow")).unwrap();
        children_of(std::process::id()).into_iter().for_each(kill);
        eventually("the next server loads", || folder.join("begun").exists());
        std::fs::remove_dir_all(&folder).unwrap();
        let (send, ended) = channel();
        std::thread::spawn(move || {
            if closes {
                pool.close().unwrap();
            }
            drop(pool);
            // The test may have failed.
            let _ = send.send(());
        });
        let ended = ended.recv_timeout(DEADLINE);
        assert_eq!(ended, Ok(()), "it waits for what nothing needs any more");
    }
}

#[test]
fn b30_a_preload_that_fails_is_told_when_the_pool_is_made() {
    let _none = Leftovers::none();
    let failed = Processes::builder()
        .workers(2)
        .preload(|| Err::<(), _>("no such table"))
        .build();
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("no such table"), "{error}");
    let panicked = Processes::builder()
        .workers(2)
        .preload(|| -> Result<(), String> { panic!("on purpose") })
        .build();
    let error = panicked.unwrap_err().to_string();
    assert!(error.contains("on purpose"), "{error}");
}

#[test]
fn b30_an_initialiser_runs_once_in_each_worker_however_it_was_started() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method)
            .initializer(|| Ok::<u32, String>(std::process::id()))
            .build()
            .unwrap();
        let is_own = |()| worker_state(|made_by: &mut u32| *made_by == std::process::id());
        assert_eq!(
            pool.map(is_own, [(); 100]).unwrap(),
            [Some(true); 100],
            "{method:?}"
        );
    }
}

#[test]
fn what_was_said_for_the_workers_holds_however_they_were_started() {
    let _none = Leftovers::none();
    for method in METHODS {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&lines);
        let tell = move |worker: &str, line: &str| {
            told.lock().unwrap().push(format!("{worker}|{line}"));
        };
        let pool = builder(method)
            .workers(1)
            .name("said")
            .env("MANYHANDS_TEST_SAID", "yes")
            .max_tasks_per_worker(2)
            .nice(3)
            .stdout(Stdio::lines(tell))
            .stderr(Stdio::null())
            .build()
            .unwrap();
        let task = |()| {
            // Not `println`, which the test harness takes for itself, also in a forked worker.
            writeln!(std::io::stdout(), "hello").unwrap();
            writeln!(std::io::stderr(), "nobody reads this").unwrap();
            let said = std::env::var("MANYHANDS_TEST_SAID").ok();
            let name = process::current().name().to_owned();
            let parent = process::parent().map(|parent| (parent.pid(), parent.is_alive()));
            (said, name, parent, std::process::id())
        };
        let results: Vec<_> = (0..4)
            .map(|_| pool.submit(task, ()).result().unwrap())
            .collect();
        for (said, name, parent, _) in &results {
            assert_eq!(said.as_deref(), Some("yes"), "{method:?}");
            assert_eq!(name, "said:0", "{method:?}");
            assert_eq!(*parent, Some((std::process::id(), true)), "{method:?}");
        }
        let pids: BTreeSet<u32> = results.iter().map(|(.., pid)| *pid).collect();
        assert_eq!(pids.len(), 2, "{method:?}: two tasks each");
        pool.close().unwrap();
        let lines = lines.lock().unwrap();
        assert_eq!(*lines, ["manyhands:said:0|hello"; 4], "{method:?}");
    }
}

/// The supervisor, which forks some of them, has all signals blocked.
#[test]
fn no_signal_is_blocked_in_a_worker_however_it_was_started() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let blocked = |()| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            blocked.unwrap().trim().to_owned()
        };
        let blocked = pool.submit(blocked, ()).result();
        assert_eq!(blocked, Ok("0".repeat(16)), "{method:?}");
    }
}

#[test]
fn workers_know_their_numbers_however_they_were_started() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method).name("count").build().unwrap();
        let ask = |()| {
            let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
            let name = process::current().name().to_owned();
            (std::process::id(), name, comm.trim().to_owned())
        };
        let pids: Vec<_> = pool
            .stats()
            .workers
            .iter()
            .map(|w| w.pid.unwrap())
            .collect();
        let mut seen = BTreeSet::new();
        eventually("both have answered", || {
            for (pid, name, comm) in pool.call().chunk_size(1).map(ask, [(); 20]).unwrap() {
                let number = pids.iter().position(|&own| own == pid).unwrap();
                let expected = format!("count:{number}");
                assert_eq!((&name, &comm), (&expected, &expected), "{method:?}");
                seen.insert(number);
            }
            seen.len() == 2
        });
    }
}

#[test]
fn one_output_alone_is_told_and_to_the_last_byte_however_workers_were_started() {
    let _none = Leftovers::none();
    for method in METHODS {
        for (of_stdout, beside) in [
            (true, Stdio::inherit()),
            (true, Stdio::null()),
            (false, Stdio::inherit()),
            (false, Stdio::null()),
        ] {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&lines);
            let tell = Stdio::lines(move |_, line| told.lock().unwrap().push(line.to_owned()));
            let (stdout, stderr) = if of_stdout {
                (tell, beside)
            } else {
                (beside, tell)
            };
            let builder = builder(method).workers(1).stdout(stdout).stderr(stderr);
            let pool = builder.build().unwrap();
            let print = |of_stdout: bool| {
                if of_stdout {
                    // Without the end of a line it stays in the buffer of the worker.
                    write!(std::io::stdout(), "to stdout").unwrap();
                } else {
                    writeln!(std::io::stderr(), "to stderr").unwrap();
                }
            };
            pool.submit(print, of_stdout).result().unwrap();
            pool.close().unwrap();
            let own = if of_stdout { "to stdout" } else { "to stderr" };
            assert_eq!(*lines.lock().unwrap(), [own], "{method:?}");
        }
    }
}

#[test]
fn what_a_worker_printed_before_its_initialiser_failed_is_told() {
    let _none = Leftovers::none();
    for method in METHODS {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&lines);
        let tell = move |_: &str, line: &str| told.lock().unwrap().push(line.to_owned());
        let builder = builder(method).workers(1).stdout(Stdio::lines(tell));
        let fail = || {
            write!(std::io::stdout(), "no end of a line").unwrap();
            Err::<(), _>("on purpose")
        };
        let error = builder.initializer(fail).build().unwrap_err();
        let is_own =
            matches!(&error, PoolError::InitializerFailed { reason, .. } if reason == "on purpose");
        assert!(is_own, "{method:?}: {error:?}");
        assert_eq!(*lines.lock().unwrap(), ["no end of a line"], "{method:?}");
    }
}

#[test]
fn how_much_memory_workers_had_is_known_when_they_have_ended() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let use_memory = |bytes: usize| std::hint::black_box(vec![1_u8; bytes]).len();
        assert_eq!(pool.submit(use_memory, 32 << 20).result(), Ok(32 << 20));
        pool.close().unwrap();
        let stats = pool.stats();
        let memory: Vec<u64> = stats.workers.iter().map(|w| w.peak_memory).collect();
        assert_eq!(memory.len(), 2, "{method:?}");
        assert!(
            memory.iter().all(|&bytes| bytes > 0),
            "{method:?} {memory:?}"
        );
        assert!(memory.iter().any(|&bytes| bytes > 32 << 20), "{memory:?}");
        assert_eq!(stats.total().peak_memory, *memory.iter().max().unwrap());
    }
}

#[test]
fn a_server_that_is_killed_takes_its_workers_along_and_is_replaced() {
    let _none = Leftovers::none();
    let pool = builder(StartMethod::ForkServer).build().unwrap();
    let server = *children_of(std::process::id()).first().unwrap();
    // A task that its worker has claimed and not started would go to the next worker, and never
    // end.
    let runs = Event::new().unwrap();
    let run = |runs: Event| {
        runs.set();
        spin(0);
    };
    let busy = pool.submit(run, runs.clone());
    assert!(runs.wait_timeout(DEADLINE), "the task did not run");
    kill(server);
    let died = busy.result();
    // The kernel has killed it with its server.
    let is_killed = matches!(
        died,
        Err(TaskError::WorkerDied {
            cause: Death::Signal(9),
            ..
        })
    );
    assert!(is_killed, "{died:?}");
    assert_eq!(pool.map(|x: u32| x + 1, 0..100).unwrap().len(), 100);
}

#[test]
fn signals_that_a_program_ignores_from_its_start_are_ignored_by_all_that_it_starts() {
    const IGNORED: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];
    /// The ignored signals of a program that this process starts, as a mask.
    fn of_a_program() -> u64 {
        let status = Command::new("cat").arg("/proc/self/status").output();
        let status = String::from_utf8(status.unwrap().stdout).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    }
    let _none = Leftovers::none();
    let name = "signals_that_a_program_ignores_from_its_start_are_ignored_by_all_that_it_starts";
    let mask = IGNORED.map(|signal| 1 << (signal as i32 - 1));
    let mask: u64 = mask.into_iter().sum();
    if is_program() {
        let expected = of_a_program() & mask;
        for method in METHODS {
            let pool = builder(method).build().unwrap();
            let ignored = pool.submit(|()| of_a_program(), ()).result().unwrap();
            assert_eq!(ignored & mask, expected, "{method:?}");
        }
        let child = |expected: u64| {
            assert_eq!(of_a_program() & 7, expected);
        };
        let child = Process::spawn(child, expected).unwrap();
        assert_eq!(child.join(), Ok(process::ExitStatus::Exit(0)));
        println!("\nignored {expected}");
        return;
    }
    for (ignores, expected) in [(false, 0), (true, mask)] {
        let mut program = as_program(name);
        if ignores {
            let ignore = || {
                for ignored in IGNORED {
                    // SAFETY: no handler is involved.
                    unsafe { signal(ignored, SigHandler::SigIgn) }?;
                }
                Ok(())
            };
            // SAFETY: between fork and exec the closure only calls sigaction, as a signal handler
            // may.
            unsafe { program.pre_exec(ignore) };
        }
        let output = finish(&mut program);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{errors}");
        assert!(said.contains(&format!("\nignored {expected}\n")), "{said}");
    }
}

#[test]
fn b12_when_the_parent_is_killed_all_go_however_they_were_started() {
    let _none = Leftovers::none();
    let name = "b12_when_the_parent_is_killed_all_go_however_they_were_started";
    if is_program() {
        let pools = METHODS.map(|method| builder(method).build().unwrap());
        let tasks = pools
            .each_ref()
            .map(|pool| [pool.submit(spin, 0), pool.submit(spin, 0)]);
        for task in tasks.iter().flatten() {
            eventually("the task runs", || task.is_running());
        }
        let pids = pools.each_ref().map(|pool| {
            let workers = pool.stats().workers;
            workers
                .iter()
                .map(|worker| worker.pid.unwrap().to_string())
                .collect::<Vec<_>>()
        });
        println!("\nup {}", pids.concat().join(" "));
        for task in tasks.into_iter().flatten() {
            drop(task.result());
        }
        return;
    }
    let mut program = Killed(as_program(name).stdout(Streams::piped()).spawn().unwrap());
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let up = lines.find_map(|line| line.unwrap().strip_prefix("up ").map(str::to_owned));
    let workers: Vec<u32> = up
        .unwrap()
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(workers.len(), 6);
    let others = children_of(program.0.id());
    assert!(workers.iter().all(|&pid| is_running(pid)));
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    let start = Instant::now();
    eventually("all workers are gone", || {
        !workers.iter().chain(&others).any(|&pid| is_running(pid))
    });
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "it took {:?}",
        start.elapsed()
    );
}

#[test]
fn b44_forking_workers_is_refused_while_other_threads_run() {
    let _none = Leftovers::none();
    let refused = Processes::builder()
        .workers(1)
        .start_method(StartMethod::Fork)
        .build();
    assert!(
        matches!(refused, Err(PoolError::ThreadsRunning { .. })),
        "{refused:?}"
    );
}

/// Makes a pool in a worker of a pool, and so on; says how deep it came and why it went no further.
fn descend(level: u32) -> (u32, bool) {
    match Pool::processes(1) {
        Ok(pool) => pool.submit(descend, level + 1).result().unwrap(),
        Err(error) => (level, error == too_deep(16)),
    }
}

#[test]
fn b35_pools_lie_in_pools_down_to_a_limit_with_an_error() {
    let _none = Leftovers::none();
    let name = "b35_pools_lie_in_pools_down_to_a_limit_with_an_error";
    if is_program() {
        let (level, was_too_deep) = descend(0);
        println!("\n{level} {was_too_deep}");
        return;
    }
    let output = finish(&mut as_program(name));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|line| line == "16 true"), "{text}");
}
