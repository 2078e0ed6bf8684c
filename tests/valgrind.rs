//! Whole programs under valgrind, their workers included: none of them uses memory that is not its
//! own, or that was never written to.
//!
//! Needs `valgrind`. Each test starts this binary again under it, with itself as the only test.
//! What valgrind finds in any process of the program goes to a file for each process, and fails the
//! test.
//!
//! Valgrind knows no pidfds, no `futex_waitv`, and not where the executable lies: this is also the
//! test of what the crate does then.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Leftovers, as_program, children_of, eventually, finish_within, is_program, kill};
use manyhands::prelude::*;
use manyhands::process::ExitStatus;
use manyhands::queue::PopError;
use manyhands::select::wait_ready;
use manyhands::sync::Mutex;
use manyhands::{Queue, SharedArray, closure, engine::StartMethod};
use serde::{Deserialize, Serialize};

/// What stands before each error in what valgrind writes.
const MARK: &str = "MANYHANDS-FOUND";

/// Valgrind runs a program some fifty times slower, and one thread at a time.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs the test `name` as a program under a tool of valgrind's. True if this is that program.
#[track_caller]
fn is_under(tool: &str, name: &str) -> bool {
    if is_program() {
        return true;
    }
    let found = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "this test needs valgrind: install it with `apt-get install valgrind`, or as your system does"
    );
    let _none = Leftovers::none();
    let folder =
        Folder(std::env::temp_dir().join(format!("valgrind-{}-{name}", std::process::id())));
    fs::create_dir(&folder.0).unwrap();
    let plain = as_program(name);
    let mut program = Command::new("valgrind");
    program
        .arg(format!("--tool={tool}"))
        .args(["--quiet", "--trace-children=yes"])
        .arg(format!("--log-file={}/%p.log", folder.0.display()));
    if tool == "memcheck" {
        program.arg(format!("--error-markers={MARK},"));
    } else {
        program.arg(format!(
            "--callgrind-out-file={}/%p.out",
            folder.0.display()
        ));
    }
    program.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        program.env(name, value.unwrap_or_default());
    }
    let output = finish_within(program.stdin(Stdio::null()), DEADLINE);
    let of = |kind: &str| -> Vec<PathBuf> {
        let files = fs::read_dir(&folder.0).unwrap();
        let files = files.map(|file| file.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|it| it == kind))
            .collect()
    };
    let logs: Vec<String> = of("log")
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert!(
        output.status.success(),
        "{:?}\n{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        logs.join("\n")
    );
    let bad: Vec<&String> = logs.iter().filter(|log| log.contains(MARK)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // There is a report for the program and each worker, or valgrind was not told of them.
    let seen = if tool == "memcheck" {
        logs.len()
    } else {
        of("out").len()
    };
    assert!(seen >= 2, "valgrind has run in {seen} processes");
    false
}

/// A folder of a test's own, gone with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    name: String,
    values: Vec<u64>,
}

fn double(record: Record) -> Record {
    Record {
        name: record.name.repeat(2),
        values: record.values.into_iter().map(|x| x * 2).collect(),
    }
}

/// What every pool of processes does, whatever its workers come from.
fn work(pool: &Pool<Processes>) {
    assert_eq!(pool.map(|x: u64| x * x, 0..100).unwrap()[99], 9_801);
    let record = |n: u64| Record {
        name: format!("record {n}"),
        values: (0..n).collect(),
    };
    let doubled = pool.map(double, (0..40).map(record)).unwrap();
    assert_eq!(doubled[7], double(record(7)));
    // Larger than a message's cells, in both directions.
    let long = vec![7_u8; 3 << 20];
    let back = pool.submit(|long: Vec<u8>| long, long.clone());
    assert_eq!(back.result(), Ok(long));
    let (table, scale) = (vec![1.0, 4.0, 9.0], 3.0);
    let scaled = pool.map(closure!([table, scale] |i: usize| table[i] * scale), 0..3);
    assert_eq!(scaled, Ok(vec![3.0, 12.0, 27.0]));

    let panicked = pool
        .submit(|x: u32| -> u32 { panic!("item {x}") }, 3)
        .result();
    assert!(
        matches!(panicked, Err(TaskError::Panicked { .. })),
        "{panicked:?}"
    );
    let end = |how: u32| -> u32 {
        if how == 6 {
            std::process::abort();
        }
        std::process::exit(3)
    };
    for (how, death) in [(6, Death::Signal(6)), (3, Death::Exit(3))] {
        let died = pool.submit(end, how).result();
        assert!(
            matches!(&died, Err(TaskError::WorkerDied { cause, .. }) if *cause == death),
            "{died:?}"
        );
    }
    assert_eq!(pool.submit(|x: u32| x + 1, 1).result(), Ok(2));
}

fn pool(method: StartMethod) -> Pool<Processes> {
    let builder = Processes::builder().workers(2).start_method(method);
    builder.allow_threads(true).build().unwrap()
}

#[test]
fn a_pool_of_started_workers() {
    if is_under("memcheck", "a_pool_of_started_workers") {
        let pool = pool(StartMethod::Spawn);
        work(&pool);
        // One that is killed while it does nothing is replaced.
        let workers = children_of(std::process::id());
        workers.iter().copied().for_each(kill);
        eventually("they are replaced", || {
            let now = children_of(std::process::id());
            now.len() == 2 && now.is_disjoint(&workers)
        });
        assert_eq!(pool.map(|x: u32| x + 1, 0..3), Ok(vec![1, 2, 3]));
        pool.close().unwrap();
        assert!(children_of(std::process::id()).is_empty());
    }
}

#[test]
fn pools_of_forked_workers() {
    if is_under("memcheck", "pools_of_forked_workers") {
        for method in [StartMethod::Fork, StartMethod::ForkServer] {
            let pool = pool(method);
            work(&pool);
            pool.close().unwrap();
        }
        let builder = Forked::builder().workers(2).allow_threads(true);
        let forked = builder.build().unwrap();
        let table = vec![1, 4, 9];
        assert_eq!(forked.map(|i: usize| table[i], 0..3), Ok(table.clone()));
        let died = forked.submit(|()| -> u32 { std::process::abort() }, ());
        let died = died.result();
        assert!(
            matches!(died, Err(TaskError::WorkerDied { .. })),
            "{died:?}"
        );
    }
}

#[test]
fn shared_objects_and_children() {
    if is_under("memcheck", "shared_objects_and_children") {
        let (queue, count) = (
            Queue::<Record>::bounded(4).unwrap(),
            Mutex::new(0_u64).unwrap(),
        );
        let child = Process::spawn(
            |(queue, count): (Queue<Record>, Mutex<u64>)| {
                for n in 0..20 {
                    let name = format!("item {n}");
                    let values = vec![n; n as usize * 100];
                    queue.push(Record { name, values }).unwrap();
                    *count.lock().unwrap() += 1;
                }
                queue.close();
            },
            (queue.clone(), count.clone()),
        )
        .unwrap();
        let mut popped = 0;
        loop {
            assert!(!wait_ready(&[&queue, &child], None).is_empty());
            match queue.try_pop() {
                Ok(item) => popped += u64::from(item.name.starts_with("item")),
                Err(PopError::Empty) => std::thread::yield_now(),
                Err(end) => break assert_eq!(end, PopError::Closed),
            }
        }
        assert_eq!(child.join(), Ok(ExitStatus::Exit(0)));
        assert_eq!((popped, *count.lock().unwrap()), (20, 20));

        // One dies with a lock that the next one wants.
        let holder = Process::spawn(
            |count: Mutex<u64>| {
                let _guard = count.lock().unwrap();
                std::process::abort();
            },
            count.clone(),
        )
        .unwrap();
        assert_eq!(holder.join(), Ok(ExitStatus::Signal(6)));
        assert!(count.lock().is_err(), "it is poisoned");

        let stays = Process::spawn(|()| std::thread::park(), ()).unwrap();
        assert_eq!(stays.join_timeout(Duration::from_millis(1)), Ok(None));
        stays.terminate().unwrap();
        assert_eq!(stays.join(), Ok(ExitStatus::Signal(15)));

        let pool = Pool::processes(2).unwrap();
        let mut array = SharedArray::<u64>::zeros(1_000).unwrap();
        let fill = |index: usize, chunk: &mut [u64]| chunk.fill(index as u64);
        pool.for_each_chunk(&mut array, 100, fill).unwrap();
        assert_eq!(array.to_vec().unwrap()[999], 9);
    }
}

#[test]
fn instructions_of_workers_are_counted() {
    if is_under("callgrind", "instructions_of_workers_are_counted") {
        let pool = Pool::processes(2).unwrap();
        assert_eq!(pool.map(|x: u64| x * x, 0..100).unwrap()[99], 9_801);
        pool.close().unwrap();
    }
}
