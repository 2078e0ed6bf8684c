//! Workers of the processes variant are killed from outside while it runs.

use std::collections::HashSet;
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{file, json_of};

/// Far longer than any of these runs takes: a run that is not done by then hangs.
const DEADLINE: Duration = Duration::from_secs(120);

fn start(input: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_powercouples"))
        .args(["--variant", "processes", "--workers", "2", "--repeats", "1"])
        .args(["--schedule", "dynamic:4", "--json", "-", "--input", input])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns the worker processes of this program that have had time to get to work. If one is killed
/// earlier, at the start of the pool, there is no pool, which is another matter.
fn busy_workers(program: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{program}/task"));
    let mut workers = Vec::new();
    for thread in threads.into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        workers.extend(children.split_whitespace().map(str::to_owned));
    }
    workers.retain(|pid| is_worker(pid) && ticks(pid).is_some_and(|ticks| ticks >= 2));
    workers
}

fn is_worker(pid: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"manyhands:"))
}

/// For how many hundredths of a second the process has run in user mode.
fn ticks(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(11)?.parse().ok()
}

/// Kills up to `most` workers of the program, one at a time, and waits for its end. Returns how
/// many it killed.
fn kill_workers(mut program: Child, most: usize) -> (usize, Output) {
    let start = Instant::now();
    let mut killed = HashSet::new();
    while program.try_wait().unwrap().is_none() {
        if start.elapsed() > DEADLINE {
            program.kill().unwrap();
            panic!(
                "still running after {DEADLINE:?}, with {} workers killed",
                killed.len()
            );
        }
        let next = busy_workers(program.id())
            .into_iter()
            .find(|pid| !killed.contains(pid));
        match next {
            Some(pid) if killed.len() < most => {
                Command::new("kill").args(["-KILL", &pid]).status().unwrap();
                killed.insert(pid);
            }
            _ => thread::yield_now(),
        }
    }
    while killed.iter().any(|pid| is_worker(pid)) {
        assert!(start.elapsed() < DEADLINE, "a worker outlived its program");
        thread::yield_now();
    }
    (killed.len(), program.wait_with_output().unwrap())
}

/// The right answer, or the error of a couple that lost two workers.
#[track_caller]
fn assert_right_or_named(output: &Output, digit_sum_total: &Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {
            let json: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(
                json["variants"][0]["result"]["digit_sum_total"],
                *digit_sum_total
            );
        }
        Some(1) => {
            assert!(stderr.starts_with("processes failed: couple ("), "{stderr}");
            assert!(
                stderr.contains("SIGKILL") && stderr.contains("tried 2 times"),
                "{stderr}"
            );
        }
        _ => panic!("{output:?}"),
    }
}

#[test]
fn after_some_kills_the_answer_is_right_or_the_couple_named() {
    // Enough work for ten kills, at either speed.
    let bases = if cfg!(debug_assertions) { 60 } else { 300 };
    let couples: String = (1..=bases)
        .flat_map(|a| (1..=1_000).map(move |b| format!("{a},{b}\n")))
        .collect();
    let input = file("some-kills.csv", couples);
    let json = json_of(&["--variant", "c-function", "--input", &input]);
    let total = &json["variants"][0]["result"]["digit_sum_total"];

    let (killed, output) = kill_workers(start(&input), 10);
    assert!(killed > 0, "{output:?}");
    assert_right_or_named(&output, total);
}

/// No worker lives long enough for one of these couples, so one of them loses two.
#[test]
fn kills_without_end_are_an_error_that_names_the_couple() {
    let input = file("kills-without-end.csv", "99999,60000\n".repeat(50));
    let (killed, output) = kill_workers(start(&input), usize::MAX);
    assert!(killed > 1, "{output:?}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_right_or_named(&output, &Value::Null);
}
