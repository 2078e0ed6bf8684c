//! The messages in `docs/when-things-die.md` and `docs/containers.md`: each is what a program gets,
//! and each that a program gets here is on a page.

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::{Leftovers, as_program, finish, is_program};
use manyhands::prelude::*;
use manyhands::shm::SharedMemory;
use manyhands::{Queue, SharedArray, Shutdown};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};

/// How a task ends.
#[allow(clippy::needless_pass_by_value, reason = "a worker gets values")]
fn task(how: String) -> u32 {
    match &*how {
        "panic" => panic!("no such customer: 17"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        // SAFETY: nothing is mapped there, so nothing is written. The process ends.
        "SIGSEGV" => unsafe {
            std::ptr::without_provenance_mut::<u64>(std::hint::black_box(8)).write_volatile(1);
        },
        "SIGKILL" => raise(Signal::SIGKILL).unwrap(),
        "memory" => drop(vec![1_u8; 1 << 30]),
        "long" => std::thread::sleep(Duration::from_secs(60)),
        _ => {}
    }
    0
}

/// Replaces what differs from run to run: pids, and the place of this file.
fn stable(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some(at) = rest
        .find("pid ")
        .or_else(|| rest.find(concat!(file!(), ":")))
    {
        let (before, found) = rest.split_at(at);
        text.push_str(before);
        let is_place = |c: char| c.is_ascii_digit() || c == ':';
        let (new, tail) = if let Some(tail) = found.strip_prefix("pid ") {
            (
                "pid 4711",
                tail.trim_start_matches(|c: char| c.is_ascii_digit()),
            )
        } else {
            let tail = &found[file!().len()..];
            ("src/main.rs:7:5", tail.trim_start_matches(is_place))
        };
        text.push_str(new);
        rest = tail;
    }
    text + rest
}

/// The lines of a page that are messages: those between fences of kind `text`.
fn messages_of(page: &str) -> BTreeSet<String> {
    let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).unwrap();
    let mut is_message = false;
    let mut messages = BTreeSet::new();
    for line in page.lines() {
        match line.trim() {
            "```text" => is_message = true,
            "```" => is_message = false,
            line if is_message => _ = messages.insert(line.to_owned()),
            _ => {}
        }
    }
    messages
}

/// What the page has of crashes besides what the tasks here do. `tests/crashes/kinds.rs` has tasks
/// that die in each of these ways, and the same words.
const CRASHES: [&str; 14] = [
    "it used address 0x8, where nothing is mapped (signal 11, SIGSEGV, code 1)",
    "0: shop::total at",
    "1: shop::bill at",
    "which may not be read, written",
    "it used an address that cannot be",
    "it overflowed its stack",
    "where what is mapped has ended",
    "it came to an instruction at",
    "it divided integers at",
    "sent the signal",
    "the kernel killed it for memory",
    "it aborted after it panicked",
    "wrote what cannot be right and was killed",
    "had corrupted the memory that it shares with its parent",
];

fn deaths() -> Vec<String> {
    let mut told = Vec::new();
    let mut tell = |error: &dyn std::fmt::Display| told.push(stable(&error.to_string()));
    let pool = Processes::builder().workers(2).build().unwrap();
    for how in ["panic", "abort", "exit", "SIGSEGV", "SIGKILL"] {
        let items = ["fine", how].map(str::to_owned);
        tell(&pool.map(task, items).unwrap_err());
    }
    let crashed = pool.submit(task, "SIGSEGV".to_owned());
    let own_name = format!("task {} ", crashed.id());
    let message = crashed.result().unwrap_err().to_string();
    tell(&message.replace(&own_name, "task 17 "));
    let tries = pool.call().retries(2).map(task, ["SIGKILL".to_owned()]);
    tell(&tries.unwrap_err());
    let limit = pool.call().timeout(Duration::from_millis(250));
    tell(&limit.map(task, ["long".to_owned()]).unwrap_err());
    let causes = RetryOn::PANIC | RetryOn::TIMEOUT | RetryOn::ERROR;
    let policy = Retry::up_to(2).on(causes);
    let again = || pool.call().retry(policy);
    // Without a limit: a slow machine may take longer to print the panic.
    tell(&again().map(task, ["panic".to_owned()]).unwrap_err());
    let limit = again().timeout(Duration::from_millis(250));
    tell(&limit.map(task, ["long".to_owned()]).unwrap_err());
    let search = |id: u32| Err::<(), _>(format!("no such customer: {id}"));
    tell(&again().try_map(search, [17]).unwrap_err());
    let cancelled = pool.submit(task, "long".to_owned());
    assert!(cancelled.kill());
    tell(&cancelled.result().unwrap_err());
    let ended = pool.call().deadline(Instant::now());
    tell(&ended.submit(task, "long".to_owned()).result().unwrap_err());
    let mut late = pool.submit(task, "long".to_owned());
    tell(&late.result_timeout(Duration::ZERO).unwrap_err());
    pool.shutdown(Shutdown::Kill).unwrap();
    tell(&late.result().unwrap_err());
    tell(&pool.submit(task, String::new()).result().unwrap_err());

    let small = Processes::builder().workers(1).memory_limit(256 << 20);
    let pool = small.build().unwrap();
    tell(&pool.map(task, ["memory".to_owned()]).unwrap_err());

    let time = std::time::SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    let before_1970 = pool.map(|time: std::time::SystemTime| time.elapsed().is_ok(), [time]);
    tell(&before_1970.unwrap_err());

    let builder = Forked::builder().workers(2).allow_threads(true);
    let forked = builder.build().unwrap();
    let died = forked.map(task, ["fine", "SIGKILL"].map(str::to_owned));
    tell(&died.unwrap_err());

    let builder = Processes::builder().workers(1);
    let builder = builder.initializer(|| Err::<(), _>("the table is not there"));
    tell(&builder.build().unwrap_err());
    let builder = Processes::builder().workers(1);
    let builder = builder.initializer(|| -> Result<(), String> { std::process::abort() });
    tell(&builder.build().unwrap_err());

    // What the dead leave in shared objects.
    let lock = manyhands::sync::Mutex::new(0_u32).unwrap();
    let child = Process::spawn(
        |lock: manyhands::sync::Mutex<u32>| {
            let _guard = lock.lock();
            std::process::abort();
        },
        lock.clone(),
    );
    child.unwrap().join().unwrap();
    tell(&lock.lock().err().unwrap());
    let (sender, receiver) = Queue::<u32>::bounded(1).unwrap().split();
    drop(sender);
    tell(&receiver.recv().unwrap_err());
    let name = format!("manyhands-page-{}", std::process::id());
    let error = SharedMemory::open(&name).unwrap_err();
    told.push(error.to_string().replace(&name, "stock"));
    told
}

#[test]
fn b122_the_page_on_deaths_has_the_messages_that_programs_get() {
    let _none = Leftovers::none();
    let told: BTreeSet<String> = deaths().into_iter().collect();
    let page = messages_of("when-things-die.md");
    let lacks: Vec<_> = told.difference(&page).collect();
    let is_of_a_crash = |line: &&&String| CRASHES.iter().any(|words| line.contains(words));
    let of_crashes: Vec<_> = page.iter().filter(|line| is_of_a_crash(&line)).collect();
    let mut has_too_much: Vec<_> = page.difference(&told).collect();
    has_too_much.retain(|line| !of_crashes.contains(line));
    for words in CRASHES {
        assert!(
            of_crashes.iter().any(|line| line.contains(words)),
            "{words}"
        );
    }
    assert!(
        lacks.is_empty() && has_too_much.is_empty(),
        "the page lacks {lacks:#?}\nand has what no program gets: {has_too_much:#?}"
    );
}

/// What a container or a sandbox takes away, with the limit that is then read.
fn refusals() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The limit is on the numbers of descriptors, and there may be gaps between those of now.
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let highest = fds.map(|entry| name(entry).to_str().unwrap().parse().unwrap());
    let highest: i32 = highest.max().unwrap();
    let null = || std::fs::File::open("/dev/null").unwrap();
    let fill: Vec<_> = std::iter::repeat_with(null)
        .take_while(|file| file.as_raw_fd() < highest)
        .collect();
    let limit = u64::from(highest.cast_unsigned());
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    let error = Pool::processes(1).unwrap_err().to_string();
    drop(fill);
    println!("\n{}", error.replace(&format!("is {limit};"), "is 16;"));
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();

    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 8_192, hard).unwrap();
    println!("\n{}", Pool::processes(1).unwrap_err());
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 30, hard).unwrap();
    println!("\n{}", SharedArray::<u8>::zeros(2 << 20).unwrap_err());

    common::refuse::refuse(&[libc::SYS_memfd_create], libc::EPERM);
    println!("\n{}", Pool::processes(1).unwrap_err());
}

#[test]
fn b122_the_page_on_containers_has_the_messages_that_programs_get() {
    let name = "b122_the_page_on_containers_has_the_messages_that_programs_get";
    if is_program() {
        refusals();
        return;
    }
    let _none = Leftovers::none();
    let output = finish(&mut as_program(name));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    let page = messages_of("containers.md");
    let lines: BTreeSet<String> = stdout.lines().map(str::to_owned).collect();
    let missing: Vec<_> = page.difference(&lines).collect();
    assert!(
        missing.is_empty() && page.len() >= 4,
        "{missing:#?}\n{stdout}"
    );
}
