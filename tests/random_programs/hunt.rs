//! Makes programs, runs each in a process of its own, and shrinks those that break a rule.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::common::random::{number, seed};
use crate::common::{as_program, finish_within};
use crate::program::{Program, program};
use crate::task::LEDGER;

/// The program to run, as JSON.
pub(crate) const PROGRAM: &str = "MANYHANDS_PROGRAM";

/// Seconds after which a step of it counts as one that hangs.
pub(crate) const DEADLINE: &str = "MANYHANDS_TEST_DEADLINE";

/// Far longer than anything in a program should take, however busy the machine is.
const LONG: u64 = 60;

/// While a program is shrunk.
const SHORT: u64 = 10;

/// How long a program is shrunk.
const SHRINKING: Duration = Duration::from_secs(240);

/// The number of runs before a program counts as one without a fault, where the fault is a matter
/// of luck.
const TRIES: usize = 4;

/// How long the run in the gate goes on for.
const SOME: Duration = Duration::from_secs(15);

/// Runs a program in a process of its own; gives what is wrong with it.
fn run(program: &Program, deadline: u64) -> Option<String> {
    let text = serde_json::to_string(program).expect("a program is a value");
    let name: &CStr = c"random-program-ledger";
    let ledger = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a ledger"));
    let path = format!("/proc/{}/fd/{}", std::process::id(), ledger.as_raw_fd());
    let mut child = as_program("one_program");
    child
        .env(PROGRAM, text)
        .env(DEADLINE, deadline.to_string())
        .env(LEDGER, path)
        .env("RUST_BACKTRACE", "0");
    // The program ends itself before that, and tells what hangs.
    let output = finish_within(&mut child, Duration::from_secs(deadline + 40));
    if output.status.success() {
        return None;
    }
    let mut text = format!("{}\n", output.status);
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// The rule that was broken, or that it hung: what must be the same while a program is shrunk.
fn kind(wrong: &str) -> String {
    let broken = wrong.lines().find_map(|line| line.strip_prefix("BROKEN: "));
    let rule = broken.and_then(|line| line.split(": ").next());
    let hangs = wrong.contains("hangs, ").then_some("a step hangs");
    rule.or(hangs).unwrap_or("the program dies").to_owned()
}

fn json(program: &Program) -> String {
    serde_json::to_string(program).expect("a program is a value")
}

/// Makes the program as small as it can in the time there is.
fn shrink(tree: &mut impl ValueTree<Value = Program>, wrong: String) -> (Program, String) {
    let start = Instant::now();
    let rule = kind(&wrong);
    let mut best = (tree.current(), wrong);
    let mut is_smaller = tree.simplify();
    while is_smaller && start.elapsed() < SHRINKING {
        let program = tree.current();
        let mut tries = (0..TRIES).map(|_| run(&program, SHORT));
        let again = tries.find_map(|wrong| wrong.filter(|wrong| kind(wrong) == rule));
        is_smaller = match again {
            Some(wrong) => {
                best = (program, wrong);
                tree.simplify()
            }
            None => tree.complicate(),
        };
    }
    best
}

/// Runs the program with this seed; if it breaks a rule, gives the smallest one that does, and how.
fn try_seed(seed: u64) -> Option<String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut tree = program().new_tree(&mut runner).expect("any program");
    let first = tree.current();
    let wrong = run(&first, LONG)?;
    eprintln!("MANYHANDS_SEED={seed}: {}\n{wrong}", json(&first));
    let (smallest, wrong) = shrink(&mut tree, wrong);
    let steps: usize = smallest.threads.iter().map(Vec::len).sum();
    Some(format!(
        "MANYHANDS_SEED={seed} breaks a rule: {wrong}\nin {steps} steps:\n{PROGRAM}='{}'\n{smallest:#?}",
        json(&smallest)
    ))
}

pub(crate) fn hunt() {
    if let Ok(text) = std::env::var(PROGRAM) {
        let program: Program = serde_json::from_str(&text).expect("a program");
        for _ in 0..number("MANYHANDS_PROGRAMS").unwrap_or(1) {
            if let Some(wrong) = run(&program, LONG) {
                panic!("{wrong}");
            }
        }
        return;
    }
    let seed = seed();
    let most = number("MANYHANDS_PROGRAMS");
    let minutes = number("MANYHANDS_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let time = minutes.or(most.is_none().then_some(SOME));
    let (start, next) = (Instant::now(), AtomicU64::new(0));
    let wrong = Mutex::new(None);
    // A program waits most of the time.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while wrong.lock().expect("no panic").is_none()
                    && time.is_none_or(|time| start.elapsed() < time)
                {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if most.is_some_and(|most| number >= most) {
                        break;
                    }
                    if let Some(found) = try_seed(seed.wrapping_add(number)) {
                        wrong.lock().expect("no panic").get_or_insert(found);
                    }
                }
            });
        }
    });
    let count = next.into_inner();
    println!("{count} programs, {:?}", start.elapsed());
    if let Some(wrong) = wrong.into_inner().expect("no panic") {
        panic!("{wrong}");
    }
    assert!(count > 0);
}
