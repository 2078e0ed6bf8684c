//! Pools in whole programs: started, limited, killed, loaded by others. Each test that needs a
//! process of its own starts this binary again with itself as the only test (`as_program`).

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use common::errors::threads_running;
use common::{
    Killed, Leftovers, as_program, children_of, eventually, finish, is_program, is_running,
};
use manyhands::Shutdown;
use manyhands::prelude::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

/// Standard output of a test that ran as a program and passed.
#[track_caller]
fn output_of(program: &mut Command) -> String {
    let output = finish(program);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{:?}\n{stdout}\n{stderr}",
        output.status
    );
    stdout.into_owned()
}

fn spin(seconds: u64) -> u64 {
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        turns += 1;
    }
    turns
}

#[test]
fn b12_when_the_parent_is_killed_every_worker_goes_and_nothing_stays() {
    let _none = Leftovers::none();
    let name = "b12_when_the_parent_is_killed_every_worker_goes_and_nothing_stays";
    if is_program() {
        let busy = Pool::processes(2).unwrap();
        let _idle = Pool::processes(2).unwrap();
        let forked = Forked::builder()
            .workers(2)
            .allow_threads(true)
            .build()
            .unwrap();
        let _tasks: Vec<_> = (0..4).map(|_| busy.submit(spin, 60)).collect();
        let _children: Vec<_> = (0..2).map(|_| forked.submit(spin, 60)).collect();
        println!("\nup");
        drop(forked.map(|_: u32| spin(60), 0..1));
        return;
    }
    let mut program = Killed(as_program(name).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    let pid = program.0.id();
    eventually("all children are there", || children_of(pid).len() == 7);
    let children = children_of(pid);
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    let start = Instant::now();
    eventually("all children are gone", || {
        !children.iter().any(|&child| is_running(child))
    });
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "it took {:?}",
        start.elapsed()
    );
}

#[test]
fn b14_a_worker_never_runs_main() {
    let _none = Leftovers::none();
    let name = "b14_a_worker_never_runs_main";
    if is_program() {
        // There is no guard of any kind. A worker that came here would start workers of its own,
        // and so on.
        println!("\nmain runs");
        let pool = Pool::processes(2).unwrap();
        assert_eq!(pool.map(|x: u32| x + 1, 0..100).unwrap().len(), 100);
        for child in children_of(std::process::id()) {
            assert_eq!(children_of(child).len(), 0);
        }
        return;
    }
    let output = output_of(&mut as_program(name));
    assert_eq!(output.matches("main runs").count(), 1, "{output}");
}

#[test]
fn b15_the_variable_alone_makes_no_worker() {
    let _none = Leftovers::none();
    let name = "b15_the_variable_alone_makes_no_worker";
    if is_program() {
        assert!(
            std::env::var_os("MANYHANDS_WORKER").is_none(),
            "it is taken out, for the children of this process"
        );
        assert_eq!(
            Pool::processes(1).unwrap().map(|x: u32| x * 2, 0..3),
            Ok(vec![0, 2, 4])
        );
        println!("\na program");
        return;
    }
    for value in ["", "0", "1", "deadbeefdeadbeef", "not a number"] {
        let (silent, talking) = (pair(), pair());
        nix::unistd::write(&talking.0, b"manyhandsomething else that is long enough").unwrap();
        for stdin in [Stdio::null(), silent.1.into(), talking.1.into()] {
            let output = output_of(as_program(name).env("MANYHANDS_WORKER", value).stdin(stdin));
            assert!(output.contains("a program"), "{output}");
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap()
}

#[test]
fn b40_a_start_that_fails_half_way_stops_those_already_started() {
    let _none = Leftovers::none();
    let name = "b40_a_start_that_fails_half_way_stops_those_already_started";
    if !is_program() {
        output_of(&mut as_program(name));
        return;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for limit in [12, 16, 20, 30, 45] {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        let failed = Pool::processes(64);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let error = failed.unwrap_err();
        assert!(
            matches!(
                error,
                PoolError::StartFailed { workers: 64, .. } | PoolError::System { .. }
            ),
            "{limit}: {error:?}"
        );
        assert!(
            error.to_string().contains("Too many open files"),
            "{limit}: {error}"
        );
        assert_eq!(children_of(std::process::id()).len(), 0, "{limit}");
    }
    assert_eq!(
        Pool::processes(2).unwrap().map(|x: u8| x, 0..3),
        Ok(vec![0, 1, 2])
    );
}

#[test]
fn b40_a_worker_that_cannot_be_replaced_is_tried_again() {
    let _none = Leftovers::none();
    let name = "b40_a_worker_that_cannot_be_replaced_is_tried_again";
    if !is_program() {
        output_of(&mut as_program(name));
        return;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let pool = Pool::processes(2).unwrap();
    let in_use = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // With no descriptors to be had, the last worker goes on alone.
    setrlimit(Resource::RLIMIT_NOFILE, in_use - 6, hard).unwrap();
    assert!(
        pool.submit(|()| -> () { std::process::abort() }, ())
            .result()
            .is_err()
    );
    assert_eq!(pool.map(|x: u32| x + 1, 0..100).unwrap()[99], 100);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    eventually("there are two again", || {
        children_of(std::process::id()).len() == 2
    });
    assert_eq!(pool.map(|x: u32| x + 1, 0..100).unwrap()[99], 100);
}

#[test]
fn b40_an_executable_that_was_deleted_still_starts_workers() {
    let _none = Leftovers::none();
    let name = "b40_an_executable_that_was_deleted_still_starts_workers";
    if is_program() {
        std::fs::remove_file(std::env::current_exe().unwrap()).unwrap();
        let pool = Pool::processes(2).unwrap();
        assert_eq!(pool.map(|x: u32| x + 1, 0..3), Ok(vec![1, 2, 3]));
        return;
    }
    let copy = std::env::temp_dir().join(format!("programs-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let own = as_program(name);
    let mut program = Command::new(&copy);
    program.args(own.get_args()).envs(
        own.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    output_of(&mut program);
    assert!(!copy.exists());
}

/// Not serialisable, on purpose.
#[derive(Clone, Copy)]
struct Part(usize);

#[test]
fn b43_forked_children_borrow_a_gigabyte_without_a_copy() {
    let _none = Leftovers::none();
    let large = vec![1u8; 1 << 30];
    let quarter = large.len() / 4;
    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let sums = pool.map(
        |Part(part)| {
            let sum: u64 = large[part * quarter..][..quarter]
                .iter()
                .map(|&byte| u64::from(byte))
                .sum();
            (sum, private_bytes())
        },
        (0..4).map(Part),
    );
    for (sum, private) in sums.unwrap() {
        assert_eq!(sum, quarter as u64);
        assert!(private < 32 << 20, "a child has {private} bytes of its own");
    }
}

/// Returns the memory that this process shares with no other.
fn private_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let dirty = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"))
        .unwrap();
    dirty
        .trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1_024
}

#[test]
fn b44_forked_is_refused_while_other_threads_run() {
    let _none = Leftovers::none();
    let name = "b44_forked_is_refused_while_other_threads_run";
    if !is_program() {
        output_of(&mut as_program(name));
        return;
    }
    let pool = Pool::forked(2).unwrap();
    // The threads of the test harness.
    let own = nix::unistd::gettid().to_string();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let others = tasks.filter(|task| task.file_name().to_str() != Some(&own));
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap();
    let before: Vec<String> = others.map(name).collect();
    let (stop, wait) = channel::<()>();
    let other = std::thread::Builder::new().name("the other".to_owned());
    let other = other.spawn(move || wait.recv()).unwrap();
    let mut names: Vec<&str> = before.iter().map(|name| name.trim()).collect();
    names.push("the other");
    let refused = threads_running(&names);
    assert_eq!(
        pool.map(|x: u32| x, 0..3),
        Err(TaskError::from(refused.clone()))
    );
    assert_eq!(
        pool.submit(|x: u32| x, 3).result(),
        Err(TaskError::from(refused))
    );
    drop(stop);
    other.join().unwrap().unwrap_err();
}

/// Runs on the only thread of a process, which a test of this harness never is.
fn threads_of_pools_count_when_they_have_something_to_do() {
    let pool = Pool::forked(2).unwrap();
    let allowed = Ok(vec![0, 1, 2]);
    assert_eq!(pool.map(|x: u32| x, 0..3), allowed);
    // What this crate keeps parked does not count.
    let (processes, threads) = (Pool::processes(2).unwrap(), Pool::threads(2).unwrap());
    assert_eq!(processes.map(|x: u32| x, 0..3), allowed);
    assert_eq!(threads.map(|x: u32| x, 0..3), allowed);
    eventually("forked children are allowed", || {
        pool.map(|x: u32| x, 0..3) == allowed
    });
    // A pool with something to do does, though another one rests.
    let busy = Pool::threads(1).unwrap();
    let (stop, wait) = channel::<()>();
    let (tell, told) = channel();
    let stay = |(tell, wait): (Sender<()>, Receiver<()>)| {
        tell.send(()).unwrap();
        wait.recv().is_err()
    };
    let task = busy.submit(stay, (tell, wait));
    told.recv().unwrap();
    let refused = pool.map(|x: u32| x, 0..3).unwrap_err();
    let is_refused = matches!(refused.as_pool(), Some(PoolError::ThreadsRunning { .. }));
    assert!(is_refused, "{refused:?}");
    drop(stop);
    assert_eq!(task.result(), Ok(true));
    eventually("forked children are allowed", || {
        pool.map(|x: u32| x, 0..3) == allowed
    });
}

#[test]
fn b44_what_a_pool_keeps_parked_does_not_count() {
    let _none = Leftovers::none();
    let name = "b44_what_a_pool_keeps_parked_does_not_count";
    if !is_program() {
        output_of(&mut as_program(name));
        return;
    }
    // SAFETY: the harness waits for this thread meanwhile and holds no lock.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Child => {
            let outcome =
                std::panic::catch_unwind(threads_of_pools_count_when_they_have_something_to_do);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}

#[test]
fn b45_in_a_library_of_another_program_a_process_pool_is_refused() {
    let _none = Leftovers::none();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "foreign"])
        .status()
        .unwrap();
    assert!(built.success());
    let target = std::env::current_exe().unwrap();
    // …/debug/deps/programs-… or …/release/…; the library is built in debug, whatever this is.
    let target = target.ancestors().nth(3).unwrap();
    let library = target.join("debug/libforeign.so");
    // A program that knows nothing of the crate.
    let script = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).process_pool_is_refused())";
    let output = output_of(Command::new("python3").args(["-c", script]).arg(library));
    assert_eq!(output.trim(), "1");
}

#[test]
fn b81_sixty_four_workers_work_and_use_no_cpu_when_idle() {
    let _none = Leftovers::none();
    let pool = Pool::processes(64).unwrap();
    let pids = pool
        .call()
        .chunk_size(1)
        .map(|_: u32| std::process::id(), 0..6_400)
        .unwrap();
    assert_eq!(pids.len(), 6_400);
    let workers = children_of(std::process::id());
    assert_eq!(workers.len(), 64);
    let ticks = || -> u64 { workers.iter().map(|&worker| cpu_ticks(worker)).sum() };
    // A tick is 10 ms of CPU. Some may still be on their way to sleep in the first stretch.
    let mut last = ticks();
    eventually("idle workers use no CPU for a second", || {
        let before = std::mem::replace(&mut last, ticks());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            std::thread::park_timeout(Duration::from_secs(1));
        }
        ticks() == last && last == before
    });
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 1..]
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn workers_show_their_pool_and_number_in_ps() {
    let _none = Leftovers::none();
    let _pool = Processes::builder()
        .workers(2)
        .name("render")
        .build()
        .unwrap();
    let mut names: Vec<(String, String)> = children_of(std::process::id())
        .into_iter()
        .map(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
            (
                command.trim_end_matches('\0').to_owned(),
                name.trim().to_owned(),
            )
        })
        .collect();
    names.sort();
    let name = |n: u32| (format!("manyhands:render:{n}"), format!("render:{n}"));
    assert_eq!(names, [name(0), name(1)]);
}

#[test]
fn what_a_task_prints_is_not_lost_when_the_pool_is_closed() {
    let _none = Leftovers::none();
    let name = "what_a_task_prints_is_not_lost_when_the_pool_is_closed";
    if is_program() {
        let pool = Pool::processes(1).unwrap();
        // No newline: it stays in the worker's buffer to the end.
        pool.submit(
            |()| {
                std::io::stdout().write_all(b"[buffered]").unwrap();
            },
            (),
        )
        .result()
        .unwrap();
        pool.close().unwrap();
        let pool = Forked::builder()
            .workers(1)
            .allow_threads(true)
            .build()
            .unwrap();
        pool.map(
            |()| {
                std::io::stdout().write_all(b"[forked]").unwrap();
            },
            [()],
        )
        .unwrap();
        return;
    }
    let output = output_of(&mut as_program(name));
    assert_eq!(
        (
            output.matches("[buffered]").count(),
            output.matches("[forked]").count()
        ),
        (1, 1),
        "{output}"
    );
}

#[test]
fn a_worker_can_have_a_pool_of_its_own() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let nested = pool.map(
        |n: u32| {
            let inner = Pool::processes(2).unwrap();
            let results = inner.map(|x: u32| x + 1, n..n + 10).unwrap();
            results.into_iter().sum::<u32>()
        },
        0..6u32,
    );
    assert_eq!(nested, Ok((0..6).map(|n| (n + 1..n + 11).sum()).collect()));
}

/// Whatever it asks, it hears that the pool is another process's, and the parent's task goes on.
#[test]
fn a_forked_child_is_refused_by_all_calls_of_its_parents_pool() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1).timeline(true);
    let pool = builder.build().unwrap();
    assert_eq!(pool.map(|x: u32| x, 0..3), Ok(vec![0, 1, 2]));
    // One that is seen to run, and one behind it.
    let tasks = [(); 2].map(|()| pool.submit(spin, 60));
    eventually("it runs", || tasks[0].is_running());
    let tasks = std::sync::Mutex::new(tasks.map(Some));
    let forked = Forked::builder().workers(1).allow_threads(true);
    let forked = forked.build().unwrap();
    let ask = |_: u32| {
        let other = PoolError::OtherProcess;
        let error = TaskError::from(other.clone());
        let mut tasks = tasks.lock().unwrap();
        let refused = [
            pool.map(|x: u32| x, 0..3) == Err(error.clone()),
            pool.map_outcomes(|x: u32| x, 0..2) == [Err(error.clone()), Err(error.clone())],
            pool.imap(|x: u32| x, 0..3).next() == Some(Err(error.clone())),
            pool.map_reduce(|x: u32| x, |a, b| a + b, 0..3) == Err(error.clone()),
            pool.resize(2) == Err(other.clone()),
            pool.close() == Err(other.clone()),
            pool.shutdown(Shutdown::Kill) == Err(other.clone()),
            pool.workers() == 1,
            pool.stats() == manyhands::engine::PoolStats::default(),
            pool.timeline() == manyhands::engine::Timeline::default(),
        ];
        let of_tasks = tasks.iter_mut().map(|task| {
            let task = task.take().unwrap();
            let is_foreign = task.is_done() && !task.is_running() && !task.cancel() && !task.kill();
            is_foreign && task.result() == Err(error.clone())
        });
        (refused.to_vec(), of_tasks.collect::<Vec<_>>())
    };
    let refused = forked.map(ask, 0..1);
    assert_eq!(refused, Ok(vec![(vec![true; 10], vec![true; 2])]));
    let [first, second] = tasks.into_inner().unwrap().map(Option::unwrap);
    assert!(first.is_running() && !second.is_done());
    assert!(second.cancel() && first.kill());
    assert_eq!(pool.map(|x: u32| x, 0..3), Ok(vec![0, 1, 2]));
}

#[test]
fn a_forked_child_cannot_use_or_break_its_parents_pool() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let forked = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .build()
        .unwrap();
    let refused = forked.map(
        |x: u32| {
            pool.submit(|x: u32| x, x).result() == Err(TaskError::from(PoolError::OtherProcess))
        },
        0..3,
    );
    assert_eq!(refused, Ok(vec![true; 3]));
    assert_eq!(pool.map(|x: u32| x + 1, 0..3), Ok(vec![1, 2, 3]));
}
