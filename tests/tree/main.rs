//! What ends a task or a child by force ends all that it has started, and nothing else.
//!
//! The descendants are shells and `sleep`: three generations, with sessions of their own, orphans,
//! and one without an environment. The test harness runs other threads, so forking is allowed here
//! by `allow_threads`.

#![allow(
    clippy::needless_pass_by_value,
    clippy::zombie_processes,
    reason = "tasks own their arguments, and what they start outlives them"
)]

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Killed, Leftovers, Stopped, as_program, children_of, eventually, is_program, is_running, kill,
};
use manyhands::Shutdown;
use manyhands::engine::{ProcessesBuilder, StartMethod};
use manyhands::prelude::*;
use manyhands::process::Process;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The descendants that have the mark, and all of them.
const MARKED: usize = 6;
const ALL: usize = 7;

const METHODS: [StartMethod; 3] = [
    StartMethod::Spawn,
    StartMethod::Fork,
    StartMethod::ForkServer,
];

/// Long enough for a task to have started all its descendants, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(4);

/// The file in which descendants note their pids. Those that still run are killed with it.
struct Descendants(PathBuf);

impl Descendants {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tree-{}-{number}", std::process::id());
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn path(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }

    fn pids(&self) -> BTreeSet<u32> {
        pids(&self.0)
    }

    /// Waits until there are so many.
    #[track_caller]
    fn are(&self, count: usize) {
        eventually("the descendants are there", || self.pids().len() == count);
    }

    /// Waits until none runs any more, and says how long that took.
    #[track_caller]
    fn end(&self, after: &str) {
        let start = Instant::now();
        eventually(after, || !self.pids().into_iter().any(is_running));
        println!("{after}: the last descendant after {:?}", start.elapsed());
    }

    fn run(&self, count: usize) -> bool {
        let pids = self.pids();
        pids.len() == count && pids.into_iter().all(is_running)
    }
}

impl Drop for Descendants {
    fn drop(&mut self) {
        self.pids()
            .into_iter()
            .filter(|&it| is_running(it))
            .for_each(kill);
        let _ = fs::remove_file(&self.0);
    }
}

fn pids(file: &Path) -> BTreeSet<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Starts descendants, and waits until all of them have noted their pids.
fn start(file: &str, kind: &str) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tree/descendants.sh");
    let mut shell = Command::new("sh");
    let shell = shell.args([script, file, kind]).spawn().unwrap();
    let count = if kind == "all" { ALL } else { MARKED };
    while pids(Path::new(file)).len() < count {
        std::thread::sleep(Duration::from_millis(1));
    }
    shell
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// A task that starts all descendants, and hangs.
fn hangs(file: String) {
    start(&file, "all");
    hang();
}

/// A task that starts the descendants that can be found without their parent, and crashes.
fn crashes(file: String) {
    start(&file, "marked");
    std::process::abort();
}

/// A task that starts all descendants, and returns.
fn returns(file: String) -> u32 {
    start(&file, "all");
    std::process::id()
}

fn builder(method: StartMethod) -> ProcessesBuilder {
    Processes::builder()
        .workers(1)
        .start_method(method)
        .allow_threads(true)
}

fn processes(method: StartMethod) -> Pool<Processes> {
    builder(method).build().unwrap()
}

fn forked() -> Pool<Forked> {
    let builder = Forked::builder().workers(1).allow_threads(true);
    builder.build().unwrap()
}

#[test]
fn b82_a_limit_ends_the_tree() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = processes(method);
        let descendants = Descendants::new();
        let task = pool.call().timeout(LIMIT).submit(hangs, descendants.path());
        assert!(matches!(task.result(), Err(TaskError::TimedOut { .. })));
        descendants.end(&format!("limit, {method:?}"));
        descendants.are(ALL);
    }
    // A limit ends a forked child from within: those without a mark are orphans then.
    let pool = forked();
    let descendants = Descendants::new();
    let limited = |file: String| {
        start(&file, "marked");
        hang();
    };
    let task = pool
        .call()
        .timeout(LIMIT)
        .submit(limited, descendants.path());
    let outcome: Result<(), _> = task.result();
    assert!(matches!(outcome, Err(TaskError::TimedOut { .. })));
    descendants.end("limit, forked");
    descendants.are(MARKED);
}

#[test]
fn b82_kill_ends_the_tree() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = processes(method);
        let descendants = Descendants::new();
        let task = pool.submit(hangs, descendants.path());
        descendants.are(ALL);
        assert!(task.kill());
        descendants.end(&format!("kill, {method:?}"));
    }
    let pool = forked();
    let descendants = Descendants::new();
    let task = pool.submit(hangs, descendants.path());
    descendants.are(ALL);
    assert!(task.kill());
    descendants.end("kill, forked");

    let descendants = Descendants::new();
    let child = Process::spawn(hangs, descendants.path()).unwrap();
    descendants.are(ALL);
    child.kill().unwrap();
    descendants.end("kill, Process");
    child.join().unwrap();
}

#[test]
fn b82_a_shutdown_that_kills_ends_the_tree() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = processes(method);
        let descendants = Descendants::new();
        let task = pool.submit(hangs, descendants.path());
        descendants.are(ALL);
        pool.shutdown(Shutdown::Kill).unwrap();
        descendants.end(&format!("shutdown, {method:?}"));
        assert!(task.result().is_err());
    }
    let pool = forked();
    let descendants = Descendants::new();
    let task = pool.submit(hangs, descendants.path());
    descendants.are(ALL);
    pool.shutdown(Shutdown::Kill).unwrap();
    descendants.end("shutdown, forked");
    assert!(task.result().is_err());
    // The children of a call of `map`, from another thread.
    let pool = forked();
    let descendants = Descendants::new();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| pool.map(hangs, [descendants.path()]));
        descendants.are(ALL);
        pool.shutdown(Shutdown::Kill).unwrap();
        assert!(call.join().unwrap().is_err());
    });
    descendants.end("shutdown, map on forked");
}

#[test]
fn b82_a_dropped_pool_ends_the_tree() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = processes(method);
        let descendants = Descendants::new();
        let task = pool.submit(hangs, descendants.path());
        descendants.are(ALL);
        drop(pool);
        descendants.end(&format!("drop, {method:?}"));
        assert!(task.result().is_err());
    }
    let pool = forked();
    let descendants = Descendants::new();
    let task = pool.submit(hangs, descendants.path());
    descendants.are(ALL);
    drop(pool);
    descendants.end("drop, forked");
    assert!(task.result().is_err());
}

/// What has another environment is found by its parents alone. So the workers must not be dead
/// before it has been looked for.
#[test]
fn b146_what_has_no_mark_ends_with_a_dropped_pool_whenever_that_is() {
    let _none = Leftovers::none();
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        for round in 0..20 {
            let pool = processes(method);
            let descendants = Descendants::new();
            let task = pool.submit(hangs, descendants.path());
            descendants.are(ALL);
            drop(pool);
            descendants.end(&format!("drop, {method:?}, round {round}"));
            assert!(task.result().is_err());
        }
    }
}

#[test]
fn b82_a_crash_ends_the_tree() {
    let _none = Leftovers::none();
    for method in METHODS {
        let pool = processes(method);
        let descendants = Descendants::new();
        let task = pool.submit(crashes, descendants.path());
        assert!(matches!(task.result(), Err(TaskError::WorkerDied { .. })));
        descendants.end(&format!("crash, {method:?}"));
        descendants.are(MARKED);
        // A task that ends its process has not ended in order, whatever its exit code.
        let descendants = Descendants::new();
        let exits = |file: String| -> () {
            start(&file, "marked");
            std::process::exit(0);
        };
        let task = pool.submit(exits, descendants.path());
        assert!(matches!(task.result(), Err(TaskError::WorkerDied { .. })));
        descendants.end(&format!("exit, {method:?}"));
    }
    let pool = forked();
    let descendants = Descendants::new();
    let task = pool.submit(crashes, descendants.path());
    assert!(matches!(task.result(), Err(TaskError::WorkerDied { .. })));
    descendants.end("crash, forked");
    let descendants = Descendants::new();
    let child = Process::spawn(crashes, descendants.path()).unwrap();
    assert!(!child.join().unwrap().success());
    descendants.end("crash, Process");
}

/// While a process becomes another program, it has no environment for a moment.
#[test]
fn b82_descendants_that_become_other_programs_all_the_time_end_too() {
    const RESTLESS: usize = 12;
    fn starts(file: String) {
        for _ in 0..RESTLESS {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tree/restless.sh");
            Command::new("setsid")
                .args(["sh", path, &file])
                .spawn()
                .unwrap();
        }
        while pids(Path::new(&file)).len() < RESTLESS {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::process::abort();
    }
    let _none = Leftovers::none();
    for round in 0..5 {
        let descendants = Descendants::new();
        let pool = processes(StartMethod::Spawn);
        let task = pool.submit(starts, descendants.path()).result();
        assert!(
            matches!(task, Err(TaskError::WorkerDied { .. })),
            "{task:?}"
        );
        descendants.end(&format!("restless, {round}"));
        descendants.are(RESTLESS);
    }
}

#[test]
fn b82_copies_that_a_task_has_forked_end_with_it() {
    /// Forks twice, as a daemon does, without another program; and hangs or crashes.
    fn forks(file: String) {
        // SAFETY: the copies allocate and make system calls, and this process has one thread.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: as above.
            unsafe { libc::setsid() };
            // SAFETY: as above.
            if unsafe { libc::fork() } == 0 {
                fs::write(&file, format!("{}\n", std::process::id())).unwrap();
                hang();
            }
            // SAFETY: the copy ends at once.
            unsafe { libc::_exit(0) };
        }
        while pids(Path::new(&file)).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::process::abort();
    }
    let _none = Leftovers::none();
    for method in METHODS {
        let descendants = Descendants::new();
        let task = processes(method).submit(forks, descendants.path()).result();
        assert!(matches!(task, Err(TaskError::WorkerDied { .. })));
        descendants.end(&format!("copy, {method:?}"));
        descendants.are(1);
    }
    let descendants = Descendants::new();
    let task = forked().submit(forks, descendants.path()).result();
    assert!(matches!(task, Err(TaskError::WorkerDied { .. })));
    descendants.end("copy, forked");
    descendants.are(1);
}

#[test]
fn b82_a_guard_that_is_killed_is_replaced() {
    let _none = Leftovers::none();
    for is_stopped_first in [false, true] {
        let pool = processes(StartMethod::Spawn);
        let descendants = Descendants::new();
        let task = pool.submit(hangs, descendants.path());
        descendants.are(ALL);
        let guard = eventually_some(own_guard);
        let stopped = is_stopped_first.then(|| Stopped::new(guard));
        if is_stopped_first {
            // What it is asked now it does not do.
            assert!(task.kill());
        }
        kill(guard);
        eventually("the guard has ended", || !is_running(guard));
        drop(stopped);
        if is_stopped_first {
            // The next kill finds that it is gone.
            witness();
        } else {
            assert!(task.kill());
        }
        descendants.end("a killed guard");
        assert_ne!(eventually_some(own_guard), guard);
    }
}

/// Which program this is, and the file for its descendants.
const ENGINE: &str = "MANYHANDS_TEST_ENGINE";
const FILE: &str = "MANYHANDS_TEST_FILE";

const ENGINES: [&str; 5] = ["spawn", "fork", "forkserver", "forked", "process"];

/// A program whose task or child hangs. It never returns.
fn program() -> ! {
    let (engine, file) = (std::env::var(ENGINE).unwrap(), std::env::var(FILE).unwrap());
    // None of them is dropped.
    match engine.as_str() {
        "forked" => {
            let pool = forked();
            let _task = pool.submit(begins, file);
            hang();
        }
        "process" => {
            let _child = Process::spawn(begins, file).unwrap();
            hang();
        }
        method => {
            let pool = processes(method.parse().unwrap());
            let _task = pool.submit(begins, file);
            hang();
        }
    }
}

/// A task that starts the descendants that can be found without their parent, and hangs.
fn begins(file: String) {
    start(&file, "marked");
    hang();
}

/// Runs a program with each engine, ends it as `end` says, and waits for the end of its tree.
fn end_programs(test: &str, mut end: impl FnMut(&Killed)) {
    for engine in ENGINES {
        let descendants = Descendants::new();
        let mut program = as_program(test);
        program.env(ENGINE, engine).env(FILE, descendants.path());
        program.process_group(0);
        let mut program = Killed(program.spawn().unwrap());
        descendants.are(MARKED);
        end(&program);
        let status = program.0.wait().unwrap();
        assert!(status.signal().is_some(), "{status:?}");
        descendants.end(&format!("{test}, {engine}"));
    }
}

#[test]
fn b82_a_killed_parent_ends_the_tree() {
    if is_program() {
        program();
    }
    let _none = Leftovers::none();
    end_programs("b82_a_killed_parent_ends_the_tree", |program| {
        kill(program.0.id());
    });
}

#[test]
fn b82_ctrl_c_ends_the_tree() {
    if is_program() {
        program();
    }
    let _none = Leftovers::none();
    end_programs("b82_ctrl_c_ends_the_tree", |program| {
        let group = Pid::from_raw(program.0.id().cast_signed());
        killpg(group, Signal::SIGINT).unwrap();
    });
}

/// Ends something by force, with descendants, and waits for their end: the guard has done by then
/// what it was asked before.
fn witness() {
    let pool = processes(StartMethod::Spawn);
    let descendants = Descendants::new();
    let task = pool.submit(hangs, descendants.path());
    descendants.are(ALL);
    drop(pool);
    assert!(task.result().is_err());
    descendants.end("the witness");
}

#[test]
fn b83_an_end_in_order_leaves_the_tree_alone() {
    let _none = Leftovers::none();
    let mut left = Vec::new();
    for method in METHODS {
        // `close`.
        let pool = processes(method);
        let descendants = Descendants::new();
        pool.submit(returns, descendants.path()).result().unwrap();
        pool.close().unwrap();
        left.push((format!("close, {method:?}"), descendants));
        // A worker that has run its tasks.
        let pool = builder(method).max_tasks_per_worker(1).build().unwrap();
        let descendants = Descendants::new();
        pool.submit(returns, descendants.path()).result().unwrap();
        pool.map(|x: u8| x, 0..2).unwrap();
        pool.close().unwrap();
        left.push((format!("max_tasks, {method:?}"), descendants));
        // A worker that leaves because it is idle.
        let idle = Duration::from_millis(10);
        let pool = builder(method).idle_timeout(idle).build().unwrap();
        let descendants = Descendants::new();
        let worker = pool.submit(returns, descendants.path()).result().unwrap();
        eventually("the worker has left", || !is_running(worker));
        drop(pool);
        left.push((format!("idle, {method:?}"), descendants));
    }
    let pool = forked();
    let descendants = Descendants::new();
    pool.map(returns, [descendants.path()]).unwrap();
    left.push(("map, forked".to_owned(), descendants));
    let descendants = Descendants::new();
    pool.submit(returns, descendants.path()).result().unwrap();
    pool.close().unwrap();
    left.push(("close, forked".to_owned(), descendants));
    // A child that ends by itself, with whatever code.
    let descendants = Descendants::new();
    let fails = |file: String| -> Result<(), String> {
        start(&file, "all");
        Err("it has failed".to_owned())
    };
    let builder = Process::builder().stderr(manyhands::process::Stdio::null());
    builder
        .spawn(fails, descendants.path())
        .unwrap()
        .join()
        .unwrap();
    left.push(("join, Process".to_owned(), descendants));

    witness();
    for (what, descendants) in left {
        assert!(descendants.run(ALL), "{what}");
    }
}

#[test]
fn b83_what_is_left_by_an_end_in_order_also_outlives_a_killed_program() {
    const NAME: &str = "b83_what_is_left_by_an_end_in_order_also_outlives_a_killed_program";
    if is_program() {
        let file = std::env::var(FILE).unwrap();
        let closed = processes(StartMethod::Spawn);
        closed
            .submit(returns, format!("{file}-left"))
            .result()
            .unwrap();
        closed.close().unwrap();
        let open = processes(StartMethod::Spawn);
        let _task = open.submit(begins, file);
        hang();
    }
    let _none = Leftovers::none();
    let ends = Descendants::new();
    let left = Descendants(PathBuf::from(format!("{}-left", ends.path())));
    let mut program = Killed(as_program(NAME).env(FILE, ends.path()).spawn().unwrap());
    ends.are(MARKED);
    kill(program.0.id());
    program.0.wait().unwrap();
    ends.end("an open pool");
    assert!(left.run(ALL));
}

#[test]
fn b83_the_option_leaves_the_tree_alone() {
    let _none = Leftovers::none();
    let mut left = Vec::new();
    let mut check =
        |what: &str, descendants: Descendants| left.push((what.to_owned(), descendants));
    for method in METHODS {
        let pool = builder(method).kill_descendants(false).build().unwrap();
        let descendants = Descendants::new();
        let task = pool.submit(hangs, descendants.path());
        descendants.are(ALL);
        assert!(task.kill());
        assert!(task.result().is_err());
        check(&format!("{method:?}"), descendants);
    }
    let builder = Forked::builder().workers(1).allow_threads(true);
    let pool = builder.kill_descendants(false).build().unwrap();
    let descendants = Descendants::new();
    let task = pool.submit(hangs, descendants.path());
    descendants.are(ALL);
    assert!(task.kill());
    check("forked", descendants);
    let descendants = Descendants::new();
    let builder = Process::builder().kill_descendants(false);
    let child = builder.spawn(hangs, descendants.path()).unwrap();
    descendants.are(ALL);
    child.kill().unwrap();
    child.join().unwrap();
    check("Process", descendants);

    witness();
    for (what, descendants) in left {
        assert!(descendants.run(ALL), "{what}");
    }
}

#[test]
fn b84_the_tree_of_another_worker_and_a_process_that_only_looks_like_one_live_on() {
    let _none = Leftovers::none();
    // Another worker of the same pool.
    let pool = builder(StartMethod::Spawn).workers(2).build().unwrap();
    let (one, other) = (Descendants::new(), Descendants::new());
    let first = pool.submit(hangs, one.path());
    let second = pool.submit(hangs, other.path());
    one.are(ALL);
    other.are(ALL);
    // A process with the mark of the worker that will come next, and of one whose number begins
    // like that of this one.
    let environ = |pid: u32| fs::read(format!("/proc/{pid}/environ")).unwrap();
    let marked = one.pids().into_iter().find_map(|pid| {
        let environ = String::from_utf8(environ(pid)).unwrap();
        let variable = environ
            .split('\0')
            .find_map(|it| it.strip_prefix("MANYHANDS_TREE="))?;
        Some(variable.to_owned())
    });
    let chain = marked.expect("the descendants are marked");
    let own = chain.rsplit(',').next().unwrap();
    let (program, number) = own.split_once('-').unwrap();
    let number: u64 = number.parse().unwrap();
    let sleep = |mark: String| {
        let mut sleep = Command::new("sleep");
        let sleep = sleep.arg("1000").env("MANYHANDS_TREE", mark);
        Killed(sleep.spawn().unwrap())
    };
    let mut others: Vec<_> = (1..=8)
        .map(|next| sleep(format!("{program}-{}", number + 2 * next)))
        .collect();
    others.push(sleep(format!("{program}-{number}0")));
    others.push(Killed(
        Command::new("sleep")
            .arg("1000")
            .env("OTHER", own)
            .spawn()
            .unwrap(),
    ));
    // Start times are told in hundredths of a second.
    std::thread::sleep(Duration::from_millis(20));

    assert!(first.kill());
    one.end("one of two workers");
    assert!(other.run(ALL));
    // The worker in its place has the next number.
    let next = Descendants::new();
    let task = pool.submit(hangs, next.path());
    next.are(ALL);
    assert!(task.kill());
    next.end("the worker in its place");
    assert!(other.run(ALL));
    drop(pool);
    assert!(second.result().is_err());
    other.end("the pool");
    assert!(
        others
            .iter_mut()
            .all(|it| it.0.try_wait().unwrap().is_none())
    );
}

#[test]
fn the_guard_is_no_child_holds_nothing_and_ends_with_its_program() {
    const NAME: &str = "the_guard_is_no_child_holds_nothing_and_ends_with_its_program";
    if is_program() {
        let pool = processes(StartMethod::Spawn);
        assert_eq!(pool.map(|x: u8| x, 0..3).unwrap(), [0, 1, 2]);
        let children = children_of(std::process::id()).len();
        assert_eq!(children, 1, "the worker is the only child");
        let pid = eventually_some(own_guard);
        fs::write(std::env::var(FILE).unwrap(), format!("{pid}\n")).unwrap();
        return;
    }
    let _none = Leftovers::none();
    let note = Descendants::new();
    let mut program = as_program(NAME);
    // The program ends in order, and its output is at its end: the guard does not have it.
    let output = common::finish(program.env(FILE, note.path()));
    assert!(output.status.success(), "{output:?}");
    let guard = note.pids().pop_first().unwrap();
    eventually("the guard has ended", || !is_running(guard));
}

/// The guard of this program: the other process that has mapped its table. It has no standard
/// streams, no session and no folder of its program's.
fn own_guard() -> Option<u32> {
    let table = |pid: &str| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let line = maps
            .lines()
            .find(|line| line.contains("memfd:guard-of-manyhands"))?;
        Some(line.split_whitespace().nth(4)?.to_owned())
    };
    let own = table("self").expect("there is a table");
    let pids = fs::read_dir("/proc").unwrap();
    let mut pids = pids.filter_map(|it| it.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let guard = pids
        .find(|&pid| pid != std::process::id() && table(&pid.to_string()).as_ref() == Some(&own))?;
    // The process that starts it has the table for a moment, too.
    let pid = Pid::from_raw(guard.cast_signed());
    let is_begun = nix::unistd::getsid(Some(pid)) == Ok(pid)
        && fs::read_link(format!("/proc/{guard}/cwd")).ok()? == Path::new("/");
    is_begun.then(|| {
        for stream in 0..3 {
            let target = fs::read_link(format!("/proc/{guard}/fd/{stream}")).unwrap();
            assert_eq!(target, Path::new("/dev/null"));
        }
        // Before it has begun they are blocked.
        assert_eq!(signals(guard, "SigBlk:"), 0);
        let ending = [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
        ];
        let ending = ending
            .map(|it| 1 << (it as i32 - 1))
            .into_iter()
            .sum::<u64>();
        assert_eq!(signals(guard, "SigIgn:") & ending, ending);
        guard
    })
}

/// A set of signals of a process, as the kernel shows it.
fn signals(pid: u32, set: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(set));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

fn eventually_some<T>(mut find: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually("it is found", || {
        found = find();
        found.is_some()
    });
    found.unwrap()
}
