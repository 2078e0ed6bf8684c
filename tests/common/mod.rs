//! What the tests share: the check that nothing is left behind, a wait with a deadline, and a test
//! that runs as a program of its own.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod errors;
pub mod mounts;
pub mod random;
pub mod refuse;
pub mod stderr;
pub mod watch;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, signal};
use parking_lot::{Mutex, MutexGuard};

/// How long a condition may take to come true before a test fails. Far longer than it ever should.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The time between two looks at a condition. Looks without a pause would take a core from the
/// processes that are to make it true.
pub const PAUSE: Duration = Duration::from_micros(100);

/// Asserts that a value matches a pattern, which may have a guard, and prints the value if it does
/// not. For values that only the crate can make.
#[allow(unused_macros, reason = "each test binary uses its part")]
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)?) => {
        match $value {
            $pattern $(if $guard)? => {}
            ref other => panic!(
                "{other:?} does not match {}",
                stringify!($pattern $(if $guard)?)
            ),
        }
    };
}
#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use assert_matches;

static ALONE: Mutex<()> = Mutex::new(());

/// Checks that nothing is left of a test: no child process, thread of the crate, descriptor or
/// shared memory. Tests that hold one of these run one at a time. The check is made when it is
/// dropped.
pub struct Leftovers {
    _alone: MutexGuard<'static, ()>,
    #[cfg(long_slices)]
    _overdue: std::sync::mpsc::Sender<()>,
    before: Traces,
}

/// What a pool can leave in this process and around it.
#[derive(Debug)]
struct Traces {
    children: BTreeSet<u32>,
    threads: Vec<String>,
    descriptors: Vec<String>,
    mappings: usize,
    /// Objects of the family's shared memory.
    objects: usize,
    files: BTreeSet<String>,
}

impl Traces {
    fn now() -> Self {
        let mut descriptors: Vec<String> = list("/proc/self/fd")
            .into_iter()
            .filter_map(|fd| {
                Some(
                    fs::read_link(format!("/proc/self/fd/{fd}"))
                        .ok()?
                        .to_string_lossy()
                        .into_owned(),
                )
            })
            // The family's memory and the guard's table stay as long as the process.
            .filter(|target| {
                let stays = ["manyhands-family", "guard-of-manyhands"];
                !target.starts_with("/proc/") && !stays.iter().any(|name| target.contains(name))
            })
            .collect();
        descriptors.sort();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            children: children_of(std::process::id()),
            threads: threads(),
            descriptors,
            mappings: maps
                .lines()
                // The memory of a family stays as long as the process.
                .filter(|line| line.contains("memfd:manyhands") && !line.contains("-family"))
                .count(),
            objects: manyhands::shm::usage().objects,
            files: list("/dev/shm")
                .into_iter()
                .chain(list("/tmp"))
                .filter(|name| name.contains("manyhands"))
                .collect(),
        }
    }
}

impl Traces {
    /// Whether there is anything that was not there before. What was there before is of no concern,
    /// and may go at any time: a thread of the test before this one may linger for a moment.
    fn adds_to(&self, before: &Self) -> bool {
        fn is_new(now: &[String], before: &[String]) -> bool {
            let mut before = before.to_vec();
            now.iter().any(|name| {
                let place = before.iter().position(|other| other == name);
                place.map(|place| before.swap_remove(place)).is_none()
            })
        }
        !self.children.is_subset(&before.children)
            || !self.files.is_subset(&before.files)
            || is_new(&self.threads, &before.threads)
            || is_new(&self.descriptors, &before.descriptors)
            || self.mappings > before.mappings
            || self.objects > before.objects
    }
}

impl Leftovers {
    pub fn none() -> Self {
        let alone = ALONE.lock();
        stderr::begin();
        // The first caller in the process makes this, and it is kept.
        let _ = std::thread::available_parallelism();
        Self {
            _alone: alone,
            #[cfg(long_slices)]
            _overdue: abort_overdue_test(),
            before: Traces::now(),
        }
    }

    /// Kills what a test that has failed leaves running. The program would wait for it at its end,
    /// and the next tests would find it.
    fn kill_children(&self) {
        for &child in Traces::now().children.difference(&self.before.children) {
            let pid = nix::unistd::Pid::from_raw(child.cast_signed());
            // It may have come to its end meanwhile.
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill_children();
            stderr::show();
            return;
        }
        let start = Instant::now();
        loop {
            let now = Traces::now();
            if !now.adds_to(&self.before) {
                return;
            }
            if start.elapsed() > DEADLINE {
                self.kill_children();
                stderr::show();
                panic!(
                    "something was left behind:\n{now:#?}\nbefore:\n{:#?}",
                    self.before
                );
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn list(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    names_of(entries)
}

fn names_of(entries: fs::ReadDir) -> Vec<String> {
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Returns the names of the crate's threads in this process.
pub fn threads() -> Vec<String> {
    let mut names: Vec<String> = own_threads().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// The only thread of this process that has this name.
pub fn thread_named(name: &str) -> i32 {
    let found: Vec<_> = own_threads().filter(|(known, _)| known == name).collect();
    let [(_, thread)] = found.as_slice() else {
        panic!("{name}: {found:?}");
    };
    *thread
}

/// Returns the names and identifiers of the crate's threads in this process.
fn own_threads() -> impl Iterator<Item = (String, i32)> {
    list("/proc/self/task").into_iter().filter_map(|id| {
        let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
        let is_own = name.starts_with("manyhands");
        is_own.then(|| (name.trim().to_owned(), id.parse().unwrap()))
    })
}

/// Returns the processes whose parent is `pid`, zombies included.
pub fn children_of(pid: u32) -> BTreeSet<u32> {
    list("/proc")
        .into_iter()
        .filter_map(|name| name.parse().ok())
        .filter(|&child: &u32| stat(child).is_some_and(|(_, parent)| parent == pid))
        .collect()
}

/// Returns the state and the parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may contain anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Returns whether a process runs; a zombie does not.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// Returns whether the first thread of a process sleeps.
pub fn is_asleep(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'S')
}

/// Returns whether a process is stopped, by a signal or a debugger.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'T' || state == 't')
}

/// A process that is stopped until this goes.
pub struct Stopped(u32);

impl Stopped {
    /// Stops the process, and waits until it is.
    pub fn new(pid: u32) -> Self {
        let stopped = Self(pid);
        stopped.send(Signal::SIGSTOP);
        eventually("the process is stopped", || {
            is_stopped(pid) || !is_running(pid)
        });
        stopped
    }

    fn send(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0).unwrap());
        // It may have been killed meanwhile.
        let _ = nix::sys::signal::kill(pid, signal);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.send(Signal::SIGCONT);
    }
}

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "this never came true: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// A thread that waits for something.
pub struct Sleeper(AtomicI32);

impl Sleeper {
    pub fn new() -> Self {
        Self(AtomicI32::new(0))
    }

    /// Does it on this thread, which is the one that waits.
    pub fn run<R>(&self, then: impl FnOnce() -> R) -> R {
        self.0
            .store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        then()
    }

    /// Waits until it is asleep.
    pub fn is_asleep(&self) {
        eventually("the thread is asleep", || {
            let thread = self.0.load(Ordering::Relaxed);
            let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
            stat.is_ok_and(|stat| stat.contains(") S "))
        });
    }

    /// Waits until the thread is there, and gives what tells that it is asleep also when no file
    /// can be opened any more.
    pub fn state(&self) -> SleeperState {
        eventually("the thread is there", || {
            self.0.load(Ordering::Relaxed) != 0
        });
        let thread = self.0.load(Ordering::Relaxed);
        SleeperState(fs::File::open(format!("/proc/self/task/{thread}/stat")).unwrap())
    }

    /// Waits until it has fallen asleep this many times more: it has looked once less at what it
    /// waits for.
    pub fn falls_asleep_again(&self, times: u64) {
        falls_asleep_again(self.0.load(Ordering::Relaxed), times);
    }
}

/// The state of a thread that waits for something.
pub struct SleeperState(fs::File);

impl SleeperState {
    /// Waits until it is asleep.
    pub fn is_asleep(&self) {
        eventually("the thread is asleep", || {
            let mut stat = [0; 64];
            let len = self.0.read_at(&mut stat, 0).unwrap();
            stat[..len].windows(4).any(|window| window == b") S ")
        });
    }
}

/// Waits until a thread of this process has fallen asleep this many times more.
pub fn falls_asleep_again(thread: i32, times: u64) {
    let sleeps = || {
        let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = sleeps();
    eventually("the thread falls asleep again", || {
        sleeps() >= before + times
    });
}

/// Ends this process at once. The `exit` of std takes a lock that each thread takes when it starts
/// and ends. In a child that was forked while the test harness started a thread, it stays locked
/// for ever (`docs/forking.md`).
#[allow(unsafe_code)]
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: it may be called at any time.
    unsafe { libc::_exit(code) }
}

pub fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // It may have ended already.
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
}

/// One time in three, stops a process that is about to be killed, for a moment, and may let it go
/// on before. `random` gives a number below the one it is given.
pub fn may_stop(pid: u32, mut random: impl FnMut(u64) -> u64) {
    use nix::sys::signal::{Signal, kill};
    if random(3) > 0 {
        return;
    }
    let process = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // It may have ended already.
    let _ = kill(process, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_micros(random(3_000)));
    if random(2) == 0 {
        let _ = kill(process, Signal::SIGCONT);
        std::thread::sleep(Duration::from_micros(random(300)));
    }
}

/// Set in a test that runs as a program of its own.
pub const SCENARIO: &str = "MANYHANDS_TEST_SCENARIO";

/// Returns whether this is a test run as a program of its own, by `as_program`.
pub fn is_program() -> bool {
    std::env::var_os(SCENARIO).is_some()
}

/// The signals by which a terminal or another program ends a program.
const ENDING: [Signal; 5] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGTERM,
];

/// Gives each of these signals its default action in the program, whatever this process does with
/// it. A job that a script runs in the background has SIGINT and SIGQUIT ignored, one under `nohup`
/// SIGHUP, and all that they start inherits it.
pub fn with_default_signals(program: &mut Command) -> &mut Command {
    let reset = || {
        for ending in ENDING {
            // SAFETY: no handler is involved.
            unsafe { signal(ending, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls sigaction, as a signal handler may.
    unsafe { program.pre_exec(reset) }
}

/// This test binary, as a program that runs the test `name` alone, with the signals of a program in
/// the foreground.
pub fn as_program(name: &str) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(SCENARIO, "1")
        .stdin(Stdio::null());
    with_default_signals(&mut program);
    program
}

/// Runs a program to its end; one that takes too long is killed and fails the test.
pub fn finish(program: &mut Command) -> Output {
    finish_within(program, DEADLINE)
}

/// The same with a deadline of the caller's.
pub fn finish_within(program: &mut Command, deadline: Duration) -> Output {
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::spawn(move || read_all(&mut stderr));
    let timer = watch(child.id(), deadline);
    let stdout = read_all(&mut stdout);
    let status = child.wait().unwrap();
    drop(timer);
    Output {
        status,
        stdout,
        stderr: errors.join().unwrap(),
    }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What each thread of a process and of its descendants waits for, by the kernel's word.
fn what_is_stuck(pid: u32) -> String {
    let mut text = String::new();
    let mut processes = vec![pid];
    while let Some(pid) = processes.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).map(names_of);
        for task in tasks.unwrap_or_default() {
            let of = |file: &str| {
                let read = fs::read_to_string(format!("/proc/{pid}/task/{task}/{file}"));
                read.unwrap_or_default().trim_end().to_owned()
            };
            let stat = of("stat");
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            let (name, place, call) = (of("comm"), of("wchan"), of("syscall"));
            let _ = writeln!(
                text,
                "  {pid}/{task} {name}: {state:?} in {place}, system call {call}"
            );
        }
        processes.extend(children_of(pid));
    }
    text
}

/// Kills a process after this time, unless this is dropped before. Says first what it waits for.
fn watch(pid: u32, deadline: Duration) -> std::sync::mpsc::Sender<()> {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if wait.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let message = format!("not ended within {deadline:?}:\n{}", what_is_stuck(pid));
            // Not by `eprintln`, which the test harness keeps for itself.
            let _ = std::io::stderr().write_all(message.as_bytes());
            kill(pid);
        }
    });
    done
}

/// Ends the test binary when this test, which is one of those that run one at a time, has not ended
/// after twice [`DEADLINE`]: with slices of an hour, a lost wake-up is a test that does not end.
#[cfg(long_slices)]
fn abort_overdue_test() -> std::sync::mpsc::Sender<()> {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    let (done, wait) = channel();
    std::thread::spawn(move || {
        if wait.recv_timeout(2 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
            // Not by `eprintln`, which the test harness keeps for itself.
            stderr::say(&format!(
                "{test}: it waits for a wake-up that does not come\n"
            ));
            std::process::abort();
        }
    });
    done
}

/// A child process that is killed when this goes.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a thread of this process sleeps.
pub fn is_thread_asleep(thread: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    stat.is_ok_and(|stat| stat.contains(") S "))
}
