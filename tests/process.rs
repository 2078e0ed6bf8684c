//! Single child processes: `Process`, and who is whose child.

mod common;
#[path = "process/failures.rs"]
mod failures;
#[path = "process/told.rs"]
mod told;

use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio as Streams};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Killed, Leftovers, as_program, children_of, eventually, finish, is_program, is_running,
};
use manyhands::prelude::*;
use manyhands::process::{self, ExitStatus, ProcessBuilder, ProcessError, Stdio, Termination};
use manyhands::{Portable, closure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

/// What a child prints.
#[track_caller]
fn printed<F, A, T>(f: F, argument: A) -> String
where
    F: Fn(A) -> T + Portable,
    A: Serialize + DeserializeOwned + 'static,
    T: Termination,
{
    let (text, status) = printed_by(Process::builder(), f, argument);
    assert_eq!(status, ExitStatus::Exit(0), "{text}");
    text
}

#[track_caller]
fn printed_by<F, A, T>(builder: ProcessBuilder, f: F, argument: A) -> (String, ExitStatus)
where
    F: Fn(A) -> T + Portable,
    A: Serialize + DeserializeOwned + 'static,
    T: Termination,
{
    let (reader, writer) = io::pipe().unwrap();
    let child = builder.stdout(writer).spawn(f, argument).unwrap();
    let text = io::read_to_string(reader).unwrap();
    (text, child.join().unwrap())
}

/// How a child ends, and what it says on standard error.
fn end_of<F, A, T>(f: F, argument: A) -> (ExitStatus, String)
where
    F: Fn(A) -> T + Portable,
    A: Serialize + DeserializeOwned + 'static,
    T: Termination,
{
    let (reader, writer) = io::pipe().unwrap();
    let child = Process::builder()
        .stderr(writer)
        .spawn(f, argument)
        .unwrap();
    let errors = io::read_to_string(reader).unwrap();
    (child.join().unwrap(), errors)
}

/// A child that runs until its standard input is closed.
fn patient() -> (Process, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let child = Process::builder().stdin(reader);
    (child.spawn(until_stdin_closes, ()).unwrap(), writer)
}

fn until_stdin_closes((): ()) {
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn idle((): ()) -> ! {
    loop {
        thread::park();
    }
}

fn spin((): ()) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        std::hint::spin_loop();
    }
}

/// Standard output and error of a test that ran as a program and passed.
#[track_caller]
fn output_of(program: &mut Command) -> (String, String) {
    let output = finish(program);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(
        output.status.success(),
        "{:?}\n{stdout}\n{stderr}",
        output.status
    );
    (stdout, stderr)
}

#[test]
fn b01_every_process_knows_itself_and_its_parent() {
    let _none = Leftovers::none();
    let name = "b01_every_process_knows_itself_and_its_parent";
    let this = process::current();
    assert_eq!((this.name(), this.pid()), ("main", std::process::id()));
    assert!(this.is_alive());
    assert_eq!(process::parent(), None, "a test's parent is not ours");
    let text = printed(
        |()| {
            let parent = process::parent().unwrap();
            assert!(parent.is_alive());
            print!("{} {} ", parent.name(), parent.pid());
            let this = process::current();
            assert_eq!(this.pid(), std::process::id());
            assert!(this.is_alive());
        },
        (),
    );
    assert_eq!(text, format!("main {} ", std::process::id()));

    // A pool's worker, and a child that is the parent of another.
    let pool = Processes::builder()
        .workers(1)
        .name("render")
        .build()
        .unwrap();
    let family = |()| {
        let parent = process::parent().unwrap();
        let this = process::current();
        assert!(parent.is_alive());
        let text = printed(
            |()| {
                let parent = process::parent().unwrap();
                print!("{} {}", parent.name(), parent.pid());
            },
            (),
        );
        let seen = text == format!("{} {}", this.name(), this.pid());
        let parent = (parent.name().to_owned(), parent.pid());
        (this.name().to_owned(), this.pid(), parent, seen)
    };
    let (this, pid, parent, seen) = pool.submit(family, ()).result().unwrap();
    assert_eq!((&*this, seen), ("render:0", true));
    assert!(children_of(std::process::id()).contains(&pid));
    assert_eq!(parent, ("main".to_owned(), std::process::id()));

    // The same right after a fork, which copies all that the parent knew.
    let forked = Forked::builder().workers(1).allow_threads(true).build();
    let (this, pid, parent, seen) = forked.unwrap().submit(family, ()).result().unwrap();
    assert_eq!((&*this, seen), ("main:forked", true), "{name}");
    assert_ne!(pid, std::process::id());
    assert_eq!(parent, ("main".to_owned(), std::process::id()));
}

#[test]
fn b02_a_child_sees_exactly_its_argument_and_name() {
    let _none = Leftovers::none();
    let (reader, writer) = io::pipe().unwrap();
    let child = Process::builder()
        .name("ein Prozeß mit langem Namen")
        .env("MANYHANDS_TEST_GREETING", "hello")
        .stdout(writer)
        .spawn(
            |(number, text, list): (i8, String, Vec<Option<f64>>)| {
                let this = process::current();
                let greeting = std::env::var("MANYHANDS_TEST_GREETING").unwrap();
                print!("{} {number} {text} {list:?} ", std::process::id());
                print!("{greeting} {}", this.name());
            },
            (-3, "zwei\0".to_owned(), vec![None, Some(0.5)]),
        )
        .unwrap();
    let expected = "-3 zwei\0 [None, Some(0.5)] hello ein Prozeß mit langem Namen";
    let expected = format!("{} {expected}", child.pid());
    assert_eq!(io::read_to_string(reader).unwrap(), expected);
    assert_eq!(child.name(), "ein Prozeß mit langem Namen");
    assert!(child.join().unwrap().success());

    // Captures, by closure!.
    let (table, word) = (vec![1u64, 2, 3], "sum".to_owned());
    let text = printed(
        closure!([table, word] |factor: u64| {
            print!("{word} {}", table.iter().sum::<u64>() * factor);
        }),
        7,
    );
    assert_eq!(text, "sum 42");
}

#[test]
fn b02_a_child_takes_a_large_argument() {
    let _none = Leftovers::none();
    let numbers: Vec<u64> = (0..25_000_000).collect();
    let sum: u64 = numbers.iter().sum();
    let text = printed(|x: Vec<u64>| print!("{}", x.iter().sum::<u64>()), numbers);
    assert_eq!(text, sum.to_string());
}

#[test]
fn b02_children_are_counted_and_a_child_of_a_child_says_whose() {
    let _none = Leftovers::none();
    let child = Process::spawn(|()| {}, ()).unwrap();
    assert!(child.name().starts_with("process"), "{}", child.name());
    assert!(child.join().unwrap().success());
    let (text, status) = printed_by(
        Process::builder().name("outer"),
        |()| {
            let first = Process::spawn(|()| {}, ()).unwrap();
            let second = Process::spawn(|()| {}, ()).unwrap();
            print!("{} {}", first.name(), second.name());
        },
        (),
    );
    assert_eq!((&*text, status.success()), ("outer:1 outer:2", true));
}

#[test]
fn b02_an_argument_that_does_not_encode_or_decode_is_a_clear_error() {
    struct Lopsided;
    impl Serialize for Lopsided {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_str("written well")
        }
    }
    impl<'de> serde::Deserialize<'de> for Lopsided {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("cannot be read"))
        }
    }
    #[derive(serde::Deserialize)]
    struct Secret;
    impl Serialize for Secret {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("is not told"))
        }
    }
    let _none = Leftovers::none();
    let (status, errors) = end_of(|_: Lopsided| {}, Lopsided);
    assert_eq!(status, ExitStatus::Exit(97), "{errors}");
    assert!(
        errors.contains("its argument cannot be deserialised: cannot be read"),
        "{errors}"
    );
    let error = Process::builder().name("spy").spawn(|_: Secret| {}, Secret);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the process spy could not be started: its argument cannot be serialised: is not told"
    );
}

#[test]
fn b03_a_running_child_is_alive_and_listed_until_it_is_joined() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    assert!(child.is_alive());
    assert_eq!(child.exit_status(), None);
    let pids = || -> Vec<u32> {
        let active = process::active_children();
        active.iter().map(Process::pid).collect()
    };
    assert_eq!(pids(), [child.pid()]);
    drop(writer);
    assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
    assert!(!child.is_alive());
    assert_eq!(child.exit_status(), Some(ExitStatus::Exit(0)));
    assert_eq!(child.join(), Ok(ExitStatus::Exit(0)), "once more");
    assert!(pids().is_empty());

    // What has ended is found out without a join, too.
    let (child, writer) = patient();
    drop(writer);
    eventually("the child has ended", || child.exit_status().is_some());
    assert!(pids().is_empty());
}

#[test]
fn b03_many_threads_join_one_child_and_all_hear_how_it_ended() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    thread::scope(|scope| {
        let joins: Vec<_> = (0..8).map(|_| scope.spawn(|| child.join())).collect();
        drop(writer);
        for join in joins {
            assert_eq!(join.join().unwrap(), Ok(ExitStatus::Exit(0)));
        }
    });
}

#[test]
fn b04_a_join_with_no_time_returns_at_once_and_the_child_lives_on() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    assert_eq!(child.join_timeout(Duration::ZERO), Ok(None));
    let start = Instant::now();
    assert_eq!(child.join_timeout(Duration::from_millis(30)), Ok(None));
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(child.is_alive() && is_running(child.pid()));
    drop(writer);
    let end = Ok(Some(ExitStatus::Exit(0)));
    assert_eq!(child.join_timeout(Duration::MAX), end);
    assert_eq!(child.join_timeout(Duration::ZERO), end);
}

#[test]
fn b05_terminate_and_kill_show_in_the_exit_status() {
    let _none = Leftovers::none();
    let child = Process::spawn(idle, ()).unwrap();
    child.terminate().unwrap();
    let status = child.join().unwrap();
    assert_eq!(status, ExitStatus::Signal(15));
    assert_eq!(status.to_string(), "was killed by signal 15 (SIGTERM)");
    let child = Process::spawn(idle, ()).unwrap();
    child.kill().unwrap();
    assert_eq!(child.join(), Ok(ExitStatus::Signal(9)));
    // These come too late to matter, and are no error.
    child.terminate().unwrap();
    child.kill().unwrap();
    assert_eq!(child.join(), Ok(ExitStatus::Signal(9)));
}

#[test]
fn b06_every_end_has_its_exit_status() {
    fn fail(reason: String) -> Result<(), String> {
        Err(reason)
    }
    let _none = Leftovers::none();
    let silent = |(status, errors): (ExitStatus, String)| {
        assert_eq!(errors, "");
        status
    };
    assert_eq!(silent(end_of(|()| {}, ())), ExitStatus::Exit(0));
    let (status, errors) = end_of(fail, "no such file: x".to_owned());
    assert_eq!(status, ExitStatus::Exit(1));
    assert!(errors.contains("no such file: x"), "{errors}");

    let (status, errors) = end_of(|x: u32| assert!(x > 3, "{x} is too small"), 2);
    assert_eq!(status, ExitStatus::Exit(101));
    assert!(errors.contains("2 is too small"), "{errors}");
    let place = format!("{}:", file!());
    assert!(errors.contains(&place), "{errors}");

    let exit = |code: i32| std::process::exit(code);
    assert_eq!(silent(end_of(exit, 8)), ExitStatus::Exit(8));
    assert_eq!(silent(end_of(exit, 0)), ExitStatus::Exit(0));
    let raise = |signal: i32| {
        // SAFETY: raise takes an integer.
        unsafe { libc::raise(signal) };
    };
    for signal in [libc::SIGKILL, libc::SIGSEGV, libc::SIGUSR1, 40] {
        let status = silent(end_of(raise, signal));
        assert_eq!(status, ExitStatus::Signal(signal));
    }
    let (status, _) = end_of(|()| -> () { std::process::abort() }, ());
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn b07_children_have_children_and_pools_of_their_own() {
    fn nest(left: u32) {
        print!("{left} ");
        if left == 0 {
            let pool = Pool::processes(2).unwrap();
            print!("{}", pool.map(|x: u32| x * x, 0..5).unwrap()[4]);
            return;
        }
        io::stdout().flush().unwrap();
        let child = Process::spawn(nest, left - 1).unwrap();
        assert!(child.join().unwrap().success());
    }
    let _none = Leftovers::none();
    assert_eq!(printed(nest, 4), "4 3 2 1 0 16");
    // The same from a worker.
    let pool = Pool::processes(1).unwrap();
    let text = pool.submit(|()| printed(nest, 1), ()).result();
    assert_eq!(text.as_deref(), Ok("1 0 16"));
}

#[test]
fn b07_an_endless_recursion_of_processes_is_refused() {
    fn endless(level: u32) {
        match Process::spawn(endless, level + 1) {
            Ok(child) => assert!(child.join().unwrap().success()),
            Err(error @ ProcessError::TooDeep { limit: 16, .. }) => print!("{level} {error}"),
            Err(error) => print!("{error:?}"),
        }
    }
    let _none = Leftovers::none();
    let text = printed(endless, 1);
    let refused = "16 refused to start a process: 16 processes lie one inside the other";
    assert!(text.starts_with(refused), "{text}");
}

#[test]
fn b08_a_child_is_a_descriptor_that_is_readable_once_it_has_ended() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    let ready = |timeout| {
        let mut fds = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).unwrap() == 1
    };
    assert!(!ready(PollTimeout::ZERO));
    drop(writer);
    assert!(ready(PollTimeout::NONE));
    assert_eq!(child.exit_status(), Some(ExitStatus::Exit(0)));
    assert!(ready(PollTimeout::ZERO), "it stays so");
}

#[test]
fn b08_a_child_can_be_awaited_in_tokio() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let interest = tokio::io::Interest::READABLE;
        // SAFETY: a handle has one descriptor as long as it lives, open and always the same.
        let fd = unsafe { AsyncFd::register_with_interest(child.clone(), interest) }.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(10), fd.readable());
        assert!(early.await.is_err(), "it has not ended");
        drop(writer);
        fd.readable().await.unwrap().retain_ready();
    });
    assert_eq!(child.exit_status(), Some(ExitStatus::Exit(0)));
}

#[test]
fn b09_a_hundred_short_children_all_end_well() {
    let _none = Leftovers::none();
    let children: Vec<_> = (0..100)
        .map(|n: u32| Process::spawn(|n: u32| assert!(n < 100), n).unwrap())
        .collect();
    for child in &children {
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)), "{child:?}");
    }
    assert!(process::active_children().is_empty());
    assert!(children_of(std::process::id()).is_empty());
}

#[test]
fn b09_a_hundred_children_killed_at_once_all_report_it() {
    let _none = Leftovers::none();
    let children: Vec<_> = (0..100)
        .map(|_| Process::spawn(idle, ()).unwrap())
        .collect();
    for child in &children {
        child.kill().unwrap();
    }
    for child in &children {
        assert_eq!(child.join(), Ok(ExitStatus::Signal(9)), "{child:?}");
    }
    assert!(children_of(std::process::id()).is_empty());
}

#[test]
fn b09_no_zombie_stays_of_a_child_whose_handle_is_gone() {
    let _none = Leftovers::none();
    let this = std::process::id();
    // The child's end shows as the end of its output: its handle is not asked.
    let end_unseen = || {
        let (mut reader, writer) = io::pipe().unwrap();
        let builder = Process::builder().stdout(writer);
        let child = builder.spawn(|()| {}, ()).unwrap();
        let pid = child.pid();
        reader.read_to_end(&mut Vec::new()).unwrap();
        eventually("it is a zombie", || !is_running(pid));
        (child, pid)
    };
    let (child, pid) = end_unseen();
    assert!(children_of(this).contains(&pid));
    drop(child);
    assert!(!children_of(this).contains(&pid), "by the drop");

    for way in ["active_children", "spawn"] {
        let (child, writer) = patient();
        let pid = child.pid();
        drop(child);
        assert!(is_running(pid), "a handle that goes kills nobody");
        drop(writer);
        eventually("it is a zombie", || !is_running(pid));
        assert!(children_of(this).contains(&pid));
        if way == "spawn" {
            Process::spawn(|()| {}, ()).unwrap().join().unwrap();
        } else {
            process::active_children();
        }
        assert!(!children_of(this).contains(&pid), "by {way}");
    }
}

#[test]
fn b10_neither_child_nor_worker_inherits_open_descriptors() {
    fn open() -> Vec<String> {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        targets.map(|to| to.display().to_string()).collect()
    }
    let _none = Leftovers::none();
    let (reader, _writer) = io::pipe().unwrap();
    // Unlike std's own, this copy is inherited by every program that is started.
    let inherited = nix::unistd::dup(&reader).unwrap();
    let target = std::fs::read_link(format!("/proc/self/fd/{}", inherited.as_raw_fd()));
    let target = target.unwrap().display().to_string();
    let ls = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let ls = String::from_utf8(ls.unwrap().stdout).unwrap();
    assert!(ls.contains(&target), "another program has it: {ls}");

    let text = printed(|()| print!("{}", open().join("\n")), ());
    assert!(!text.contains(&target), "{text}");
    // Standard streams, the life line, the memory of the family, and the folder that is being read.
    assert_eq!(text.lines().count(), 6, "{text}");
    let pool = Pool::processes(1).unwrap();
    let fds = pool.submit(|()| open(), ()).result().unwrap();
    assert!(!fds.contains(&target), "{fds:?}");
}

#[test]
fn b11_what_a_child_prints_goes_where_the_parents_output_goes_and_is_not_lost() {
    let _none = Leftovers::none();
    let name = "b11_what_a_child_prints_goes_where_the_parents_output_goes_and_is_not_lost";
    if is_program() {
        // No newline: it stays in the child's buffer to the end.
        let returns = Process::spawn(|()| print!("[returned]"), ()).unwrap();
        assert!(returns.join().unwrap().success());
        let exits = |()| {
            print!("[exited]");
            eprint!("[error]");
            std::process::exit(0)
        };
        assert!(Process::spawn(exits, ()).unwrap().join().unwrap().success());
        let panics = |()| {
            print!("[panicked]");
            panic!("as it should")
        };
        let status = Process::spawn(panics, ()).unwrap().join().unwrap();
        assert_eq!(status.code(), Some(101));
        return;
    }
    let (stdout, stderr) = output_of(&mut as_program(name));
    for word in ["[returned]", "[exited]", "[panicked]"] {
        assert_eq!(stdout.matches(word).count(), 1, "{word} in {stdout}");
    }
    assert!(stderr.contains("[error]"), "{stderr}");
}

#[test]
fn b11_closed_output_breaks_nothing() {
    fn talk((): ()) {
        for _ in 0..1_000 {
            println!("not shown");
            eprintln!("not shown");
        }
        let (mut out, mut error) = (io::stdout(), io::stderr());
        assert!(out.flush().is_ok() && error.flush().is_ok());
    }
    fn talk_carefully((): ()) {
        // The reader is gone: an error, and no SIGPIPE.
        assert!(io::stdout().write_all(&vec![b'\n'; 100_000]).is_err());
    }
    let _none = Leftovers::none();
    let name = "b11_closed_output_breaks_nothing";
    if is_program() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let child = Process::builder().stdout(writer);
        let child = child.spawn(talk_carefully, ()).unwrap();
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));

        nix::unistd::close(1).unwrap();
        nix::unistd::close(2).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        assert!(reader.as_raw_fd() <= 2 && writer.as_raw_fd() <= 2);
        drop((reader, writer));
        let child = Process::spawn(talk, ()).unwrap();
        // No descriptor of the crate may have come to lie where this writes.
        talk(());
        let status = child.join();
        let pool = Pool::processes(1).unwrap();
        let task = pool.submit(talk, ());
        talk(());
        // There is no other way to tell.
        let good = status == Ok(ExitStatus::Exit(0)) && task.result().is_ok();
        std::process::exit(if good { 0 } else { 3 });
    }
    output_of(&mut as_program(name));
}

/// A program's descendants.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for child in children_of(pid) {
        all.push(child);
        all.extend(descendants(child));
    }
    all
}

/// Waits until a program's descendants are gone, which takes less than a second after `end`.
#[track_caller]
fn all_go(descendants: &[u32], end: Instant) {
    eventually("all children are gone", || {
        !descendants.iter().any(|&pid| is_running(pid))
    });
    let took = end.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[test]
fn b12_children_and_grandchildren_go_with_a_parent_that_is_killed() {
    fn family(up: bool) {
        let _busy = Process::spawn(spin, ()).unwrap();
        let _idle = Process::builder().daemon(true).spawn(idle, ()).unwrap();
        let pool = Pool::processes(1).unwrap();
        let _task = pool.submit(spin, ());
        let forked = Forked::builder().workers(1).allow_threads(true).build();
        let forked = forked.unwrap();
        let _of_forked = forked.submit(spin, ());
        if up {
            println!("\nup");
        }
        spin(());
    }
    let _none = Leftovers::none();
    let name = "b12_children_and_grandchildren_go_with_a_parent_that_is_killed";
    if is_program() {
        // From a thread that ends before they do.
        let child = thread::spawn(|| Process::spawn(family, true)).join();
        drop(child.unwrap().unwrap());
        family(false);
        return;
    }
    let mut program = Killed(as_program(name).stdout(Streams::piped()).spawn().unwrap());
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    let pid = program.0.id();
    eventually("all are there", || descendants(pid).len() == 9);
    let all = descendants(pid);
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    all_go(&all, Instant::now());
}

/// Starts a test as a program in a process group of its own, as a shell does.
fn in_a_group(name: &str) -> (Killed, Pid) {
    let mut program = as_program(name);
    program.process_group(0);
    program.stdout(Streams::piped()).stderr(Streams::piped());
    let program = Killed(program.spawn().unwrap());
    let group = Pid::from_raw(i32::try_from(program.0.id()).unwrap());
    (program, group)
}

#[test]
fn b13_ctrl_c_ends_a_program_with_all_its_children_and_no_panics() {
    let _none = Leftovers::none();
    let name = "b13_ctrl_c_ends_a_program_with_all_its_children_and_no_panics";
    if is_program() {
        let pool = Pool::processes(2).unwrap();
        let _tasks: Vec<_> = (0..4).map(|_| pool.submit(spin, ())).collect();
        let _child = Process::spawn(spin, ()).unwrap();
        let nested = |()| drop(Process::spawn(spin, ()).unwrap().join());
        let _nested = Process::spawn(nested, ()).unwrap();
        println!("\nup");
        spin(());
        return;
    }
    let (mut program, group) = in_a_group(name);
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    let pid = program.0.id();
    eventually("all are there", || descendants(pid).len() == 5);
    let all = descendants(pid);
    let start = Instant::now();
    killpg(group, Signal::SIGINT).unwrap();
    let status = ExitStatus::Signal(2);
    let ended = program.0.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&ended),
        status.signal()
    );
    all_go(&all, start);
    // All processes that held it are gone: the terminal would be back.
    let errors = io::read_to_string(program.0.stderr.take().unwrap()).unwrap();
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(errors.lines().count() < 5, "{errors}");
}

#[test]
fn b13_a_parent_that_catches_ctrl_c_finds_its_children_at_work_and_closes_in_order() {
    static HEARD: AtomicBool = AtomicBool::new(false);
    let _none = Leftovers::none();
    let name = "b13_a_parent_that_catches_ctrl_c_finds_its_children_at_work_and_closes_in_order";
    if is_program() {
        extern "C" fn note(_: libc::c_int) {
            HEARD.store(true, Ordering::Relaxed);
        }
        let note = SigHandler::Handler(note);
        let action = SigAction::new(note, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(Signal::SIGINT, &action) }.unwrap();
        let pool = Pool::processes(1).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let (until, said) = io::pipe().unwrap();
        let child = Process::builder().stdin(reader).stdout(said);
        let child = child
            .spawn(
                |()| {
                    println!("ready");
                    until_stdin_closes(());
                },
                (),
            )
            .unwrap();
        let mut line = String::new();
        BufReader::new(until).read_line(&mut line).unwrap();
        let worker = pool.submit(|()| std::process::id(), ()).result();
        println!("\nup");
        eventually("Ctrl-C has come", || HEARD.load(Ordering::Relaxed));
        assert!(child.is_alive());
        assert_eq!(pool.submit(|()| std::process::id(), ()).result(), worker);
        pool.close().unwrap();
        drop(writer);
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
        return;
    }
    let (mut program, group) = in_a_group(name);
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    killpg(group, Signal::SIGINT).unwrap();
    let errors = io::read_to_string(program.0.stderr.take().unwrap()).unwrap();
    assert!(program.0.wait().unwrap().success(), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn b14_a_child_never_runs_main() {
    let _none = Leftovers::none();
    let name = "b14_a_child_never_runs_main";
    if is_program() {
        println!("\nmain runs");
        let child = Process::spawn(|()| println!("\nchild runs"), ()).unwrap();
        assert!(child.join().unwrap().success());
        return;
    }
    let (output, _) = output_of(&mut as_program(name));
    assert_eq!(output.matches("main runs").count(), 1, "{output}");
    assert_eq!(output.matches("child runs").count(), 1, "{output}");
}

#[test]
fn a_program_that_ends_waits_for_its_children_and_kills_its_daemons() {
    #[expect(clippy::needless_pass_by_value, reason = "it comes by value")]
    fn linger(word: String) {
        // Longer than any program takes to end. A child that was not waited for would be killed
        // before it prints.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        print!("{word}");
    }
    let _none = Leftovers::none();
    let name = "a_program_that_ends_waits_for_its_children_and_kills_its_daemons";
    if is_program() {
        let forked = Forked::builder().workers(1).allow_threads(true).build();
        let fork = |()| drop(Process::spawn(linger, "[of a forked child]".into()).unwrap());
        forked.unwrap().submit(fork, ()).result().unwrap();
        let daemon = Process::builder().daemon(true).spawn(idle, ()).unwrap();
        println!("\ndaemon {}", daemon.pid());
        drop(Process::spawn(linger, "[waited for]".to_owned()).unwrap());
        let nested = |()| drop(Process::spawn(linger, "[nested]".to_owned()).unwrap());
        drop(Process::spawn(nested, ()).unwrap());
        // Only the end of the program shall wait for the children: not the check for what is left.
        std::process::exit(0);
    }
    let (output, _) = output_of(&mut as_program(name));
    for word in ["[waited for]", "[nested]", "[of a forked child]"] {
        assert!(output.contains(word), "{word} in {output}");
    }
    let daemon = output
        .lines()
        .find_map(|line| line.strip_prefix("daemon "))
        .unwrap();
    assert!(!is_running(daemon.parse().unwrap()));
}

#[test]
fn a_forked_child_cannot_use_or_break_its_parents_children() {
    let _none = Leftovers::none();
    let (child, writer) = patient();
    let ended = Process::spawn(|()| {}, ()).unwrap();
    eventually("it is a zombie", || !is_running(ended.pid()));
    let forked = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .build()
        .unwrap();
    let refused = forked.map(
        |(): ()| {
            let other = Err(ProcessError::NotParent);
            assert_eq!(child.join(), Err(ProcessError::NotParent));
            assert_eq!(
                child.join_timeout(Duration::ZERO),
                Err(ProcessError::NotParent)
            );
            assert_eq!((child.terminate(), child.kill()), (other.clone(), other));
            assert_eq!((child.is_alive(), child.exit_status()), (true, None));
            // Only its parent may find out how it ended.
            assert!(!ended.is_alive());
            assert!(process::active_children().is_empty());
            drop((child.clone(), ended.clone()));
            // This process can have children of its own.
            Process::spawn(|()| {}, ())
                .unwrap()
                .join()
                .unwrap()
                .success()
        },
        [()],
    );
    assert_eq!(refused, Ok(vec![true]));
    assert_eq!(ended.join(), Ok(ExitStatus::Exit(0)));
    assert!(child.is_alive());
    drop(writer);
    assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
}

#[test]
fn standard_input_is_empty_unless_said_otherwise() {
    let _none = Leftovers::none();
    let read = |()| print!("[{}]", io::read_to_string(io::stdin()).unwrap());
    assert_eq!(printed(read, ()), "[]");
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"some input").unwrap();
    drop(writer);
    let (text, _) = printed_by(Process::builder().stdin(reader), read, ());
    assert_eq!(text, "[some input]");
    let name = "standard_input_is_empty_unless_said_otherwise";
    if is_program() {
        let child = Process::builder().stdin(Stdio::inherit()).spawn(read, ());
        assert!(child.unwrap().join().unwrap().success());
        return;
    }
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"of the parent").unwrap();
    drop(writer);
    let (output, _) = output_of(as_program(name).stdin(reader));
    assert!(output.contains("[of the parent]"), "{output}");
}

#[test]
fn a_child_that_cannot_be_started_is_a_clear_error() {
    let _none = Leftovers::none();
    let error = Process::builder()
        .name("nobody".repeat(100_000))
        .spawn(|()| {}, ())
        .unwrap_err();
    let ProcessError::SpawnFailed { name, .. } = &error else {
        panic!("{error:?}");
    };
    let of_pool = PoolError::from(error.clone());
    assert!(matches!(of_pool, PoolError::System { .. }), "{of_pool:?}");
    assert_eq!(of_pool.to_string(), error.to_string());
    assert!(name.starts_with("nobody") && name.len() < 1_000, "cut");
    assert!(
        error.to_string().contains("could not be started"),
        "{error}"
    );
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
        let refused = Process::builder().env(name, value).spawn(|()| {}, ());
        assert!(
            matches!(refused, Err(ProcessError::InvalidOption { .. })),
            "{refused:?}"
        );
    }
}

/// Of the tests themselves: with `RUST_BACKTRACE=1` their children write tens of thousands of
/// lines.
#[test]
fn b143_what_children_of_a_test_write_is_kept_and_shown_if_it_fails() {
    const INNER: &str = "MANYHANDS_TEST_INNER";
    if let Ok(inner) = std::env::var(INNER) {
        let _none = Leftovers::none();
        let child = Process::spawn(|()| eprintln!("a child is loud"), ()).unwrap();
        child.join().unwrap();
        assert_eq!(inner, "passes");
        return;
    }
    let _none = Leftovers::none();
    for (inner, is_shown) in [("passes", false), ("fails", true)] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args([
            "--exact",
            "b143_what_children_of_a_test_write_is_kept_and_shown_if_it_fails",
        ]);
        let output = finish(program.env(INNER, inner).env_remove("RUST_TEST_NOCAPTURE"));
        assert_eq!(output.status.success(), !is_shown, "{output:?}");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        assert_eq!(printed.contains("a child is loud"), is_shown, "{printed}");
    }
}
