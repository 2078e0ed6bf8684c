use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child as Program, Command, Stdio};
use std::time::{Duration, Instant};

use super::hunt::{kill_if, marks_in};
use super::mark::{Mark, VARIABLE, Wanted};
use super::*;
use crate::os::fault::{Child, Fate};
use crate::os::{life, process_fd, state, worker};

/// A program that sleeps; it is killed when this is dropped.
struct Sleeper(Program);

impl Sleeper {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").env_remove(VARIABLE);
        Self(sleep.envs(variables.iter().copied()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Waits for a condition.
#[track_caller]
fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never came");
        std::thread::yield_now();
    }
}

fn mark(program: u64, number: u64) -> Mark {
    Mark { program, number }
}

#[test]
fn marks_are_read_as_they_are_written_and_nothing_else_is_one() {
    let (one, other) = (mark(u64::MAX, 12), mark(7, 0));
    let environment = format!("A=1\0{VARIABLE}={one},{other}\0B=2\0");
    let marks: Vec<_> = marks_in(environment.as_bytes()).collect();
    assert_eq!(marks, [one, other]);
    assert_eq!(Mark::last(format!("{other},{one}").as_bytes()), Some(one));
    for nothing in [
        format!("X{VARIABLE}={one}\0"),
        format!("{VARIABLE}X={one}\0"),
        format!("A={VARIABLE}={one}\0"),
        format!("{VARIABLE}=\0"),
        format!("{VARIABLE}=,-,x-1,1-x,\u{e9}\0"),
        format!("{VARIABLE}\0"),
    ] {
        assert_eq!(marks_in(nothing.as_bytes()).count(), 0, "{nothing}");
    }
}

#[test]
fn b84_a_process_without_the_very_mark_is_not_hit() {
    let program = random::word();
    let wanted = Wanted {
        number: 4,
        since: clock::boot_ticks(),
    };
    let own = mark(program, 4).to_string();
    let chain = format!("{},{own},{}", mark(1, 4), mark(program, 3));
    let mut hit = [
        Sleeper::start(&[(VARIABLE, &own)]),
        Sleeper::start(&[(VARIABLE, &chain)]),
    ];
    let others = [
        mark(program, 44).to_string(),
        mark(program, 5).to_string(),
        mark(program ^ 1, 4).to_string(),
    ];
    let mut spared: Vec<_> = others
        .iter()
        .map(|other| Sleeper::start(&[(VARIABLE, other)]))
        .collect();
    spared.push(Sleeper::start(&[("OTHER", &own)]));
    // Until it has become `sleep`, a child has the environment of this process.
    let has_begun = |it: &Sleeper| {
        let name = fs::read(format!("/proc/{}/comm", it.pid())).unwrap();
        name == b"sleep\n"
    };
    eventually(|| hit.iter().chain(&spared).all(has_begun));
    assert_eq!(hunt(program, &[wanted]), 2);
    eventually(|| hit.iter_mut().all(|it| !it.runs()));
    assert!(spared.iter_mut().all(Sleeper::runs));
    assert_eq!(hunt(program, &[wanted]), 0);
}

#[test]
fn b84_a_process_that_is_older_than_the_mark_is_not_hit() {
    let program = random::word();
    let mut old = Sleeper::start(&[(VARIABLE, &mark(program, 6).to_string())]);
    let environment = format!("/proc/{}/environ", old.pid());
    eventually(|| marks_in(&fs::read(&environment).unwrap()).count() == 1);
    let started = life::start_time(old.pid()).unwrap();
    let wanted = |since| [Wanted { number: 6, since }];
    assert_eq!(hunt(program, &wanted(started + 1)), 0);
    assert!(old.runs());
    assert_eq!(hunt(program, &wanted(started)), 1);
    eventually(|| !old.runs());
}

#[test]
fn b84_a_number_that_has_become_another_process_is_not_hit() {
    let mut other = Sleeper::start(&[]);
    // What was found under the number has ended, and the number now means this process.
    assert_eq!(kill_if(other.pid(), |_| None), None);
    let started = life::start_time(other.pid()).unwrap();
    hunt::kill(other.pid(), started + 1);
    assert!(other.runs());
    // The process that was found ends after the descriptor was opened, and another one gets the
    // number. The descriptor means the one that has ended.
    let pid = other.pid();
    let killed = kill_if(pid, |_| {
        other.0.kill().unwrap();
        other.0.wait().unwrap();
        Some(started)
    });
    assert_eq!(killed, None);
}

#[test]
fn a_table_has_each_child_until_it_has_ended_in_order_or_its_descendants_have() {
    let (table, file) = Table::new().unwrap();
    let guards = Table::open(&file).unwrap();
    let child = |number| Wanted {
        number,
        since: 10 * number,
    };
    let places: Vec<_> = (2..6).map(|number| table.add(child(number))).collect();
    assert_eq!(places, [Some(0), Some(1), Some(2), Some(3)]);
    assert!(guards.asked().is_empty());
    assert_eq!(guards.left(), (2..6).map(child).collect::<Vec<_>>());
    table.remove(1);
    table.ask(2);
    assert_eq!(guards.asked(), [(2, child(4))]);
    assert_eq!(guards.left(), [2, 4, 5].map(child));
    // A place that has been filled again meanwhile stays.
    guards.done(0, child(4));
    guards.done(2, child(4));
    assert!(guards.asked().is_empty());
    assert_eq!(guards.left(), [2, 5].map(child));
    let added = (10..).map_while(|number| table.add(child(number))).count();
    assert_eq!(added, 4_096 - 2);
    assert_eq!(table.is_guarded(), None);
    guards.set_guard(std::process::id());
    assert_eq!(table.is_guarded(), Some(true));
    guards.forget_guard();
    assert_eq!(table.is_guarded(), None);
}

#[test]
fn a_forked_child_has_the_mark_in_its_environment_and_in_a_mapping() {
    let child = Child::run(Fate::Killed, i64::MAX - 1, || {
        // Not by `std::env`: another thread of the test may have had its lock at the fork.
        let own = || worker::variable(c"MANYHANDS_TREE");
        let path = worker::variable(c"PATH");
        mark_forked_child("1-3,2-5".into());
        assert_eq!(own().as_deref(), Some("1-3,2-5"));
        // Once more, as in a child of a child; and the others are as they were.
        mark_forked_child("1-3,2-5,9-7".into());
        assert_eq!(own().as_deref(), Some("1-3,2-5,9-7"));
        assert_eq!(worker::variable(c"PATH"), path);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains("/memfd:tree-of-manyhands:0000000000000009-7"));
    });
    assert!(child.end());
}

/// A shell whose child has no environment, and the pid of that child.
fn shell_with_a_child() -> (Sleeper, u32) {
    let script = "env -i /bin/sleep 1000 & echo $!; wait";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).stdout(Stdio::piped());
    let mut shell = Sleeper(shell.spawn().unwrap());
    let mut line = String::new();
    let output = shell.0.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    (shell, line.trim().parse().unwrap())
}

fn pidfd(pid: u32) -> OwnedFd {
    process_fd::open(pid.cast_signed()).unwrap().unwrap()
}

fn is_gone(pid: u32, started: u64) -> bool {
    !life::is_running(pid, started)
}

#[test]
fn descendants_without_an_environment_are_found_by_their_parents() {
    let (shell, child) = shell_with_a_child();
    let started = life::start_time(child).unwrap();
    let root = pidfd(shell.pid());
    let stopped = stop_descendants(&[(shell.pid(), root.as_fd())], None);
    eventually(|| state::is_stopped(child));
    // It is stopped too: it starts nothing else.
    eventually(|| state::is_stopped(shell.pid()));
    drop(stopped);
    eventually(|| is_gone(child, started));
}

#[test]
fn a_child_that_has_started_nothing_is_not_stopped() {
    let mut sleeper = Sleeper::start(&[]);
    let root = pidfd(sleeper.pid());
    drop(stop_descendants(&[(sleeper.pid(), root.as_fd())], None));
    assert!(!state::is_stopped(sleeper.pid()) && sleeper.runs());
}

#[test]
fn what_a_killed_process_has_stopped_does_not_stay_stopped() {
    let mut met = 0;
    for number in 0.. {
        let (shell, child) = shell_with_a_child();
        let started = life::start_time(child).unwrap();
        let (table, file) = Table::new().unwrap();
        let root = pidfd(shell.pid());
        let killer = Child::run(Fate::Killed, number, || {
            let theirs = Table::open(&file).unwrap();
            drop(stop_descendants(
                &[(shell.pid(), root.as_fd())],
                Some(theirs),
            ));
        });
        let is_through = killer.end();
        // The guard does this. Every fault point comes after the note.
        table.kill_stopped();
        eventually(|| is_gone(child, started));
        if is_through {
            break;
        }
        met += 1;
    }
    assert!(met >= 3, "it has passed {met} fault points");
}
