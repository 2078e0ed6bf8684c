//! Tasks that fork: the copy of the process, in which the task's function returns too, does nothing
//! in the name of the original, and ends.
//!
//! The test harness runs other threads, so forking is allowed here by `allow_threads`.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Killed, Leftovers, as_program, children_of, eventually, is_program, is_running, kill,
};
use manyhands::engine::ProcessesBuilder;
use manyhands::engine::StartMethod;
use manyhands::prelude::*;
use manyhands::process::{ExitStatus, Process};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const METHODS: [StartMethod; 3] = [
    StartMethod::Spawn,
    StartMethod::Fork,
    StartMethod::ForkServer,
];

/// What a task's function does in the copy, and then what the kernel says of that copy.
const RETURNED: i32 = 0;
const PANICKED: i32 = 101;

fn builder(method: StartMethod) -> ProcessesBuilder {
    Processes::builder()
        .workers(1)
        .start_method(method)
        .allow_threads(true)
}

/// Forks as a library does: by the C library, or by the system call, of which that hears nothing. 0
/// in the copy.
fn fork(is_raw: bool) -> i32 {
    if is_raw {
        // SAFETY: the flags ask for a plain fork.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        i32::try_from(pid).unwrap()
    } else {
        // SAFETY: what runs in the copy is std, and this crate.
        unsafe { libc::fork() }
    }
}

/// Forks; the original waits for its copy and gives its exit code, or its signal plus 1,000. `None`
/// in the copy. A copy that goes on is killed.
fn fork_and_wait(is_raw: bool) -> Option<i32> {
    let pid = fork(is_raw);
    let start = Instant::now();
    (pid != 0).then(|| {
        loop {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::Exited(_, code) => return code,
                WaitStatus::Signaled(_, signal, _) => return 1_000 + signal as i32,
                _ if start.elapsed() > Duration::from_secs(10) => kill(pid.unsigned_abs()),
                _ => std::thread::yield_now(),
            }
        }
    })
}

/// A task: both sides of a fork return.
fn both_return(is_raw: bool) -> (Option<i32>, u32) {
    let code = fork_and_wait(is_raw);
    (code, std::process::id())
}

/// A task: the copy panics.
fn copy_panics(is_raw: bool) -> Option<i32> {
    let code = fork_and_wait(is_raw);
    assert!(code.is_some(), "a panic in the copy");
    code
}

/// Runs a test as a program of its own, which is killed when it takes too long: where copies are
/// let go on, callers wait for answers that never come. `None` outside of that program.
#[track_caller]
fn in_program(name: &str) -> Option<Leftovers> {
    if is_program() {
        return Some(Leftovers::none());
    }
    let _none = Leftovers::none();
    // Not pipes: a copy that goes on would hold them open.
    let notes = Notes::new();
    let output = fs::File::create(&notes.0).unwrap();
    let mut program = as_program(name);
    program.stdout(output.try_clone().unwrap()).stderr(output);
    let mut program = Killed(program.spawn().unwrap());
    let start = Instant::now();
    let mut status = None;
    while status.is_none() && start.elapsed() < 2 * common::DEADLINE {
        status = program.0.try_wait().unwrap();
        std::thread::yield_now();
    }
    let passed = status.is_some_and(|status| status.success());
    assert!(passed, "{status:?}\n{}", notes.lines().join("\n"));
    None
}

/// A file to which processes append lines; gone with this.
struct Notes(PathBuf);

impl Notes {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("copies-{}-{number}", std::process::id());
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The numbers up to `end`, each of which must be there once.
    #[track_caller]
    fn are_numbers(&self, end: u32) {
        let mut numbers: Vec<u32> = self
            .lines()
            .iter()
            .map(|line| line.parse().unwrap())
            .collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..end), "{numbers:?}");
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn note(file: &PathBuf, line: impl std::fmt::Display) {
    let file = OpenOptions::new().create(true).append(true).open(file);
    file.unwrap()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}

#[test]
fn a_copy_of_a_worker_answers_for_nothing_and_ends() {
    let name = "a_copy_of_a_worker_answers_for_nothing_and_ends";
    let Some(_none) = in_program(name) else {
        return;
    };
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let worker = pool.submit(|()| std::process::id(), ()).result().unwrap();
        for turn in 0..10 {
            let both = pool.submit(both_return, turn % 2 == 1).result();
            assert_eq!(both, Ok((Some(RETURNED), worker)), "{method:?}");
            let panics = pool.submit(copy_panics, turn % 2 == 1).result();
            assert_eq!(panics, Ok(Some(PANICKED)), "{method:?}");
        }
        let doubled = pool.map(|x: u64| x * 2, 0..1_000).unwrap();
        assert!(
            doubled.into_iter().eq((0..1_000).map(|x| x * 2)),
            "{method:?}"
        );
        assert_eq!(
            pool.submit(|()| std::process::id(), ()).result(),
            Ok(worker)
        );
        pool.close().unwrap();
    }
}

#[test]
fn in_the_middle_of_a_call_no_item_runs_or_answers_twice() {
    /// The copy returns the wrong result.
    fn item(notes: &PathBuf, x: u32) -> u32 {
        run(notes, x, x % 2 == 1)
    }
    /// As `item`, with a result whose size varies.
    fn text(notes: &PathBuf, x: u32) -> String {
        item(notes, x).to_string()
    }
    /// As `item`, for a process with other threads: one of them may have locked the allocator, and
    /// the system call does not see to that.
    fn threads_item(notes: &PathBuf, x: u32) -> u32 {
        run(notes, x, false)
    }
    fn run(notes: &PathBuf, x: u32, is_raw: bool) -> u32 {
        note(notes, x);
        let is_original = x % 7 != 3 || fork_and_wait(is_raw).is_some_and(|code| code == 0);
        if is_original { x * 2 } else { 0 }
    }
    let name = "in_the_middle_of_a_call_no_item_runs_or_answers_twice";
    let Some(_none) = in_program(name) else {
        return;
    };
    let doubled: Vec<u32> = (0..50).map(|x| x * 2).collect();
    let texts: Vec<String> = doubled.iter().map(u32::to_string).collect();
    let check = |name: &str, map: &dyn Fn(&PathBuf) -> Vec<u32>| {
        let notes = Notes::new();
        assert_eq!(map(&notes.0), doubled, "{name}");
        notes.are_numbers(50);
    };
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        check("processes", &|path| {
            pool.map_with(path, item, 0..50).unwrap()
        });
        let notes = Notes::new();
        assert_eq!(pool.map_with(&notes.0, text, 0..50).unwrap(), texts);
        notes.are_numbers(50);
    }
    let forked = Forked::builder().workers(2).allow_threads(true);
    let forked = forked.build().unwrap();
    check("forked", &|path| {
        forked.map(|x| item(path, x), 0..50).unwrap()
    });
    let threads = Pool::threads(2).unwrap();
    check("threads", &|path| {
        threads.map(|x| threads_item(path, x), 0..50).unwrap()
    });
    let map_outcomes = |path: &PathBuf| {
        let outcomes = threads.map_outcomes(|x| threads_item(path, x), 0..50);
        outcomes.into_iter().map(Result::unwrap).collect()
    };
    check("threads, map_outcomes", &map_outcomes);
    let limited = |path: &PathBuf| {
        let call = threads.call().timeout(Duration::from_secs(60));
        call.map(|x| threads_item(path, x), 0..50).unwrap()
    };
    check("threads, with a limit", &limited);
    let lazily = |path: &PathBuf| {
        let path = path.clone();
        let results = threads.imap(move |x| threads_item(&path, x), 0..50);
        results.map(Result::unwrap).collect()
    };
    check("threads, imap", &lazily);
    let reduced = |path: &PathBuf| {
        let list = |x| vec![threads_item(path, x)];
        let join = |one: Vec<u32>, other: Vec<u32>| [one, other].concat();
        threads.map_reduce(list, join, 0..50).unwrap().unwrap()
    };
    check("threads, map_reduce", &reduced);
}

#[test]
fn in_the_middle_of_a_call_a_copy_that_panics_runs_no_other_item() {
    /// Gives the exit code of the copy, if there is one.
    fn item(notes: &PathBuf, x: u32) -> Option<i32> {
        note(notes, x);
        if x % 7 == 3 { copy_panics(false) } else { None }
    }
    let name = "in_the_middle_of_a_call_a_copy_that_panics_runs_no_other_item";
    let Some(_none) = in_program(name) else {
        return;
    };
    let expected: Vec<_> = (0..50).map(|x| (x % 7 == 3).then_some(PANICKED)).collect();
    let check = |name: &str, map: &dyn Fn(&PathBuf) -> Vec<Option<i32>>| {
        let notes = Notes::new();
        assert_eq!(map(&notes.0), expected, "{name}");
        notes.are_numbers(50);
    };
    let processes = builder(StartMethod::Spawn).build().unwrap();
    check("processes", &|path| {
        processes.map_with(path, item, 0..50).unwrap()
    });
    let forked = Forked::builder().workers(2).allow_threads(true);
    let forked = forked.build().unwrap();
    check("forked", &|path| {
        forked.map(|x| item(path, x), 0..50).unwrap()
    });
    let threads = Pool::threads(2).unwrap();
    check("threads", &|path| {
        threads.map(|x| item(path, x), 0..50).unwrap()
    });
    check("threads, map_outcomes", &|path| {
        let outcomes = threads.map_outcomes(|x| item(path, x), 0..50);
        outcomes.into_iter().map(Result::unwrap).collect()
    });
    check("threads, imap", &|path| {
        let path = path.clone();
        let call = threads.call().chunk_size(10);
        let results = call.imap(move |x| item(&path, x), 0..50);
        results.map(Result::unwrap).collect()
    });
    check("threads, map_reduce", &|path| {
        let list = |x| vec![item(path, x)];
        let join = |one: Vec<_>, other: Vec<_>| [one, other].concat();
        threads.map_reduce(list, join, 0..50).unwrap().unwrap()
    });
}

#[test]
fn a_copy_of_a_process_of_threads_runs_no_other_task() {
    let name = "a_copy_of_a_process_of_threads_runs_no_other_task";
    let Some(_none) = in_program(name) else {
        return;
    };
    let pool = Pool::threads(1).unwrap();
    let notes = Notes::new();
    let (go, wait) = crossbeam_channel::bounded::<()>(0);
    let forks = pool.submit(
        move |is_raw| {
            // Waits until the other tasks are queued.
            wait.recv().unwrap();
            (fork_and_wait(is_raw), std::process::id())
        },
        true,
    );
    let path = notes.0.clone();
    let others: Vec<_> = (0..20)
        .map(|number| {
            let path = path.clone();
            pool.submit(move |number: u32| note(&path, number), number)
        })
        .collect();
    go.send(()).unwrap();
    assert_eq!(forks.result(), Ok((Some(RETURNED), std::process::id())));
    for other in others {
        other.result().unwrap();
    }
    notes.are_numbers(20);
    assert_eq!(pool.submit(copy_panics, false).result(), Ok(Some(PANICKED)));
    // It is the last task of the pool that returns in the copy.
    assert_eq!(
        pool.submit(fork_and_wait, false).result(),
        Ok(Some(RETURNED))
    );
}

#[test]
fn a_copy_of_a_forked_child_answers_for_nothing_and_ends() {
    let name = "a_copy_of_a_forked_child_answers_for_nothing_and_ends";
    let Some(_none) = in_program(name) else {
        return;
    };
    let pool = Forked::builder().workers(2).allow_threads(true);
    let pool = pool.build().unwrap();
    for is_raw in [false, true] {
        let (code, child) = pool.submit(both_return, is_raw).result().unwrap();
        assert_eq!(code, Some(RETURNED));
        assert_ne!(child, std::process::id());
        assert_eq!(
            pool.submit(copy_panics, is_raw).result(),
            Ok(Some(PANICKED))
        );
        let codes = pool.map(|_: u32| fork_and_wait(is_raw), 0..10).unwrap();
        assert_eq!(codes, [Some(RETURNED); 10]);
    }
}

#[test]
fn a_copy_of_a_process_tells_no_outcome_and_leaves_its_children_alone() {
    fn fails_in_the_copy(is_raw: bool) -> Result<(), String> {
        let code = fork_and_wait(is_raw).ok_or("the copy's own error")?;
        assert_eq!(code, RETURNED);
        Ok(())
    }
    /// The copy ends by `exit`, whose handlers see to the children of a process.
    fn exits_in_the_copy(is_raw: bool) {
        let daemon = Process::builder().daemon(true);
        let daemon = daemon
            .spawn(
                |()| loop {
                    std::thread::park();
                },
                (),
            )
            .unwrap();
        let Some(code) = fork_and_wait(is_raw) else {
            std::process::exit(7);
        };
        assert_eq!(code, 7);
        assert!(
            daemon.is_alive(),
            "the copy has killed a child of the original"
        );
    }
    fn panics_in_the_copy(is_raw: bool) {
        assert_eq!(copy_panics(is_raw), Some(PANICKED));
    }
    let name = "a_copy_of_a_process_tells_no_outcome_and_leaves_its_children_alone";
    let Some(_none) = in_program(name) else {
        return;
    };
    for is_raw in [false, true] {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = Process::builder().stderr(writer);
        let child = child.spawn(fails_in_the_copy, is_raw).unwrap();
        let stderr = std::io::read_to_string(reader).unwrap();
        assert_eq!(
            (child.join().unwrap(), stderr.as_str()),
            (ExitStatus::Exit(0), "")
        );
        let child = Process::spawn(exits_in_the_copy, is_raw).unwrap();
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
        let child = Process::spawn(panics_in_the_copy, is_raw).unwrap();
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
    }
}

#[test]
fn a_copy_that_an_initialiser_has_forked_does_not_become_a_worker() {
    let name = "a_copy_that_an_initialiser_has_forked_does_not_become_a_worker";
    let Some(_none) = in_program(name) else {
        return;
    };
    for method in METHODS {
        // Not waited for in the initialiser: the copy would be there at the same time as the
        // worker.
        let forks = || {
            let copies = [fork(false), fork(true)];
            Ok::<_, String>(copies)
        };
        let pool = builder(method).initializer(forks).build().unwrap();
        let codes = |()| {
            let wait = |copies: &mut [i32; 2]| {
                copies.map(|pid| match waitpid(Pid::from_raw(pid), None) {
                    Ok(WaitStatus::Exited(_, code)) => code,
                    other => panic!("{other:?}"),
                })
            };
            manyhands::worker_state(wait)
        };
        assert_eq!(
            pool.submit(codes, ()).result(),
            Ok(Some([RETURNED; 2])),
            "{method:?}"
        );
        let doubled = pool.map(|x: u64| x * 2, 0..1_000).unwrap();
        assert!(
            doubled.into_iter().eq((0..1_000).map(|x| x * 2)),
            "{method:?}"
        );
    }
}

static OF_PRELOAD: [AtomicI32; 2] = [const { AtomicI32::new(0) }; 2];

#[test]
fn a_copy_that_a_preload_has_forked_does_not_become_a_server() {
    let name = "a_copy_that_a_preload_has_forked_does_not_become_a_server";
    let Some(_none) = in_program(name) else {
        return;
    };
    let preload = || {
        for (is_raw, copy) in [false, true].into_iter().zip(&OF_PRELOAD) {
            copy.store(fork(is_raw), Ordering::Relaxed);
        }
        Ok::<(), String>(())
    };
    let pool = Processes::builder().workers(2).preload(preload);
    let pool = pool.build().unwrap();
    let servers = |()| std::os::unix::process::parent_id();
    let servers = pool.call().chunk_size(1).map(servers, [(); 50]).unwrap();
    let servers: BTreeSet<u32> = servers.into_iter().collect();
    assert_eq!(servers.len(), 1);
    let copies = |()| {
        OF_PRELOAD
            .each_ref()
            .map(|copy| copy.load(Ordering::Relaxed))
    };
    let copies = pool.submit(copies, ()).result().unwrap();
    eventually("the copies have ended", || {
        !copies.iter().any(|&copy| is_running(copy.unsigned_abs()))
    });
}

#[test]
fn a_copy_made_by_what_hears_of_output_reads_no_lines() {
    let name = "a_copy_made_by_what_hears_of_output_reads_no_lines";
    let Some(_none) = in_program(name) else {
        return;
    };
    let (told, lines) = crossbeam_channel::unbounded();
    let hear = move |_: &str, line: &str| {
        // Not waited for: a copy that goes on would be there at the same time as this thread.
        let pid = fork(false);
        told.send((pid, line.to_owned())).unwrap();
    };
    let pool = Processes::builder()
        .workers(1)
        .stdout(manyhands::process::Stdio::lines(hear))
        .build()
        .unwrap();
    for number in 0..20 {
        let print = |number: u32| println!("line {number}");
        pool.submit(print, number).result().unwrap();
    }
    pool.close().unwrap();
    let told: Vec<(i32, String)> = lines.iter().take(20).collect();
    assert!((0..20).all(|number| told[number].1 == format!("line {number}")));
    for (copy, _) in told {
        let copy = Pid::from_raw(copy);
        let ended = waitpid(copy, None).unwrap();
        assert_eq!(ended, WaitStatus::Exited(copy, RETURNED));
    }
}

/// A task: tells the pid of a copy that stays in the task's function.
fn copy_stays(is_raw: bool) -> i32 {
    let pid = fork(is_raw);
    if pid == 0 {
        loop {
            std::thread::park();
        }
    }
    pid
}

#[test]
fn a_copy_that_goes_on_holds_up_neither_close_nor_the_end_of_the_program() {
    let name = "a_copy_that_goes_on_holds_up_neither_close_nor_the_end_of_the_program";
    if is_program() {
        let of_worker = |method| {
            let pool = builder(method).build().unwrap();
            let copy = pool.submit(copy_stays, method == StartMethod::Fork);
            let copy = copy.result().unwrap();
            println!("\ncopy {copy}");
            pool
        };
        for method in METHODS {
            let start = Instant::now();
            of_worker(method).close().unwrap();
            // A worker that does not end is killed after 10 s.
            assert!(start.elapsed() < Duration::from_secs(8), "{method:?}");
        }
        let threads = Pool::threads(1).unwrap();
        println!(
            "\ncopy {}",
            threads.submit(copy_stays, false).result().unwrap()
        );
        threads.close().unwrap();
        let child = |is_raw| println!("\ncopy {}", copy_stays(is_raw));
        let child = Process::spawn(child, true).unwrap();
        assert!(child.join().unwrap().success());
        // One pool is still there at the end.
        std::mem::forget(of_worker(StartMethod::Spawn));
        return;
    }
    let _none = Leftovers::none();
    // A file: a pipe would be held open by the copies, which this is not about.
    let notes = Notes::new();
    let file = fs::File::create(&notes.0).unwrap();
    let mut program = as_program(name).stdout(file).spawn().unwrap();
    let mut status = None;
    let start = Instant::now();
    while status.is_none() && start.elapsed() < common::DEADLINE {
        status = program.try_wait().unwrap();
        std::thread::yield_now();
    }
    let lines = notes.lines();
    let copies = lines.iter().filter_map(|line| line.strip_prefix("copy "));
    let copies: Vec<u32> = copies.map(|copy| copy.parse().unwrap()).collect();
    let living = copies.iter().filter(|&&copy| is_running(copy)).count();
    for &copy in &copies {
        kill(copy);
    }
    kill(program.id());
    program.wait().unwrap();
    assert_eq!(copies.len(), 6, "{lines:?}");
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    // If no copy was alive, the test has shown nothing.
    assert!(living > 0);
    eventually("the copies are gone", || {
        !copies.iter().any(|&copy| is_running(copy))
    });
}

#[test]
fn how_a_copy_dies_is_not_told_as_the_workers_death() {
    let name = "how_a_copy_dies_is_not_told_as_the_workers_death";
    let Some(_none) = in_program(name) else {
        return;
    };
    let copy_is_out_of_memory = |is_raw| {
        let code = fork_and_wait(is_raw);
        if code.is_none() {
            // What is left when an allocation has failed.
            nix::errno::Errno::ENOMEM.set();
            std::process::abort();
        }
        code
    };
    for method in METHODS {
        let pool = builder(method).memory_limit(1 << 30).build().unwrap();
        for is_raw in [false, true] {
            let killed = pool.submit(copy_is_out_of_memory, is_raw).result();
            assert_eq!(killed, Ok(Some(1_006)), "{method:?}");
        }
        // This worker dies by SIGABRT too, but for another reason.
        let died = pool
            .submit(|()| -> () { std::process::abort() }, ())
            .result();
        let is_plain = matches!(
            &died,
            Err(TaskError::WorkerDied {
                cause: Death::Signal(6),
                ..
            })
        );
        assert!(is_plain, "{method:?}: {died:?}");
    }
}

#[test]
fn copies_end_and_are_no_children_of_the_program() {
    let name = "copies_end_and_are_no_children_of_the_program";
    let Some(_none) = in_program(name) else {
        return;
    };
    let pool = Pool::processes(1).unwrap();
    let copies: Vec<i32> = (0..6)
        .map(|turn| pool.submit(fork, turn % 2 == 1).result().unwrap())
        .collect();
    let children = children_of(std::process::id());
    assert!(
        !copies
            .iter()
            .any(|copy| children.contains(&copy.unsigned_abs()))
    );
    eventually("the copies have ended", || {
        !copies.iter().any(|&copy| is_running(copy.unsigned_abs()))
    });
}
