//! What workers print.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use manyhands::prelude::*;
use manyhands::process::Stdio;

use crate::common::{Leftovers, eventually, kill};
use crate::{Folder, end_workers, endless, outcome, touch, wait_for};

type Lines = Arc<Mutex<Vec<(String, String)>>>;

fn collect() -> (Lines, Stdio) {
    let lines = Lines::default();
    let there = Arc::clone(&lines);
    let tell = move |worker: &str, line: &str| {
        there
            .lock()
            .unwrap()
            .push((worker.to_owned(), line.to_owned()));
    };
    (lines, Stdio::lines(tell))
}

fn of_all(lines: &Lines) -> Vec<String> {
    lines
        .lock()
        .unwrap()
        .iter()
        .map(|(_, line)| line.clone())
        .collect()
}

/// Writes past the test harness, which would catch what `println!` writes in a test's own process.
fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}

#[test]
fn lines_come_in_order_with_the_name_of_their_worker() {
    let _none = Leftovers::none();
    let (lines, output) = collect();
    let builder = Processes::builder().workers(2).name("talk");
    let pool = builder.stdout(output).build().unwrap();
    // Each worker counts what it says; chunks may come to it in any order.
    let talk = |n: u32| {
        static SAID: AtomicU32 = AtomicU32::new(0);
        let count = SAID.fetch_add(1, Ordering::Relaxed);
        say(&format!("{n} {count} {}\n", std::process::id()));
        std::process::id()
    };
    let pids = pool.call().chunk_size(10).map(talk, 0..2_000).unwrap();
    pool.close().unwrap();
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 2_000);
    let mut said: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (worker, line) in lines.iter() {
        let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let &[item, count, pid] = numbers.as_slice() else {
            panic!("{line}")
        };
        assert_eq!(pids[item as usize], pid);
        said.entry(worker).or_default().push(count);
    }
    for (worker, counts) in said {
        assert!(["manyhands:talk:0", "manyhands:talk:1"].contains(&worker));
        assert!((0..).zip(counts).all(|(n, count)| n == count), "{worker}");
    }
}

#[test]
fn nothing_is_lost_at_the_close_and_the_last_line_needs_no_end() {
    let _none = Leftovers::none();
    for _ in 0..5 {
        let (lines, output) = collect();
        let builder = Processes::builder().workers(1);
        let pool = builder.stdout(output).build().unwrap();
        drop(pool.submit(
            |()| {
                for n in 0..5_000 {
                    say(&format!("line {n}\n"));
                }
                say("\r\nß\u{1F980}\n\nand no end");
            },
            (),
        ));
        pool.close().unwrap();
        let mut expected: Vec<String> = (0..5_000).map(|n| format!("line {n}")).collect();
        expected.extend(["\r", "ß\u{1F980}", "", "and no end"].map(str::to_owned));
        assert_eq!(of_all(&lines), expected);
    }
}

#[test]
fn the_last_line_needs_no_end_though_another_process_could_still_write() {
    let _none = Leftovers::none();
    let (lines, output) = collect();
    let pool = Processes::builder().workers(1).stdout(output);
    let pool = pool.build().unwrap();
    let heir = pool.submit(
        |()| {
            let mut sleep = std::process::Command::new("sleep");
            let heir = sleep.arg("600").spawn().unwrap().id();
            say("and no end");
            heir
        },
        (),
    );
    let heir = outcome(heir).unwrap();
    pool.close().unwrap();
    kill(heir);
    assert_eq!(of_all(&lines), ["and no end"]);
}

#[test]
fn the_message_of_a_panic_comes_on_standard_error() {
    let _none = Leftovers::none();
    let ((out, stdout), (err, stderr)) = (collect(), collect());
    let builder = Processes::builder().workers(1).stdout(stdout);
    let pool = builder.stderr(stderr).build().unwrap();
    let failed = outcome(pool.submit(|n: u32| -> u32 { panic!("no {n} here") }, 5));
    assert!(matches!(failed, Err(TaskError::Panicked { .. })));
    pool.close().unwrap();
    let err = of_all(&err);
    assert!(err.iter().any(|line| line.contains("no 5 here")), "{err:?}");
    assert!(err.iter().any(|line| line.contains(file!())), "{err:?}");
    assert_eq!(of_all(&out), [""; 0]);
}

#[test]
fn what_a_worker_said_before_it_died_is_told() {
    let _none = Leftovers::none();
    let (lines, output) = collect();
    let builder = Processes::builder().workers(1);
    let pool = builder
        .stdout(output)
        .stderr(Stdio::null())
        .build()
        .unwrap();
    let last_words = |n: u32| -> u32 {
        say(&format!("this is {n}\n"));
        std::process::abort()
    };
    for n in 0..10 {
        let died = outcome(pool.submit(last_words, n));
        assert!(matches!(died, Err(TaskError::WorkerDied { .. })));
    }
    let expected: Vec<String> = (0..10).map(|n| format!("this is {n}")).collect();
    eventually("all has been told", || of_all(&lines) == expected);
}

#[test]
fn lines_are_told_while_the_task_runs_and_when_the_pool_is_killed() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let (lines, output) = collect();
    let builder = Processes::builder().workers(1);
    let pool = builder.stdout(output).build().unwrap();
    let task = pool.submit(
        |path| {
            say("before\n");
            wait_for(path);
            say("after\n");
        },
        folder.file("open"),
    );
    eventually("the first has been told", || of_all(&lines) == ["before"]);
    assert!(!task.is_done());
    touch(folder.file("open"));
    assert_eq!(outcome(task), Ok(()));
    let begun = folder.file("begun");
    let _never = pool.submit(
        |path| {
            say("last\n");
            touch(path);
            endless(0);
        },
        begun.clone(),
    );
    eventually("it runs", || begun.exists());
    drop(pool);
    assert_eq!(of_all(&lines), ["before", "after", "last"]);
}

#[test]
fn a_function_that_panics_or_takes_its_time_stops_no_worker() {
    let _none = Leftovers::none();
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    let tell = move |_: &str, line: &str| {
        *count.lock().unwrap() += 1;
        assert!(!line.ends_with('7'), "told on purpose");
    };
    let builder = Processes::builder().workers(2);
    let pool = builder.stdout(Stdio::lines(tell)).build().unwrap();
    let talk = |n: u32| say(&format!("{n}\n"));
    assert_eq!(pool.map(talk, 0..100).unwrap().len(), 100);
    pool.close().unwrap();
    assert_eq!(*told.lock().unwrap(), 100);
}

#[test]
fn all_workers_print_to_the_descriptor_that_was_given() {
    let _none = Leftovers::none();
    for method in [
        StartMethod::Spawn,
        StartMethod::ForkServer,
        StartMethod::Fork,
    ] {
        let folder = Folder::new();
        let (reader, writer) = std::io::pipe().unwrap();
        let errors = File::create(folder.file("errors")).unwrap();
        let builder = Processes::builder().workers(2).start_method(method);
        let pool = builder
            .allow_threads(true)
            .stdout(writer)
            .stderr(errors)
            .build()
            .unwrap();
        let talk = |n: u32| {
            say(&format!("{n}\n"));
            std::io::stderr().write_all(b"error\n").unwrap();
        };
        pool.call().chunk_size(1).map(talk, 0..20).unwrap();
        // A worker that takes the place of another prints there too.
        end_workers();
        assert_eq!(outcome(pool.submit(talk, 20)), Ok(()));
        drop(pool);
        // The pool has closed its copy, so this ends.
        let text = std::io::read_to_string(reader).unwrap();
        let mut said: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        said.sort_unstable();
        assert_eq!(said, (0..21).collect::<Vec<_>>(), "{method:?}");
        let errors = std::fs::read_to_string(folder.file("errors")).unwrap();
        assert_eq!(errors, "error\n".repeat(21), "{method:?}");
    }
}

#[test]
fn null_is_nowhere() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1);
    let pool = builder
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .build()
        .unwrap();
    let target = |n: u32| {
        say("to nobody\n");
        std::fs::read_link(format!("/proc/self/fd/{n}")).unwrap()
    };
    for n in [1, 2] {
        let target = outcome(pool.submit(target, n)).unwrap();
        assert_eq!(target, std::path::Path::new("/dev/null"));
    }
}
