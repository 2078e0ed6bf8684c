//! Libraries that start threads when they are loaded, and the processes that workers are forked
//! from.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use common::{Leftovers, as_program, finish, is_program};
use manyhands::engine::{InnerThreads, ProcessesBuilder, StartMethod};
use manyhands::prelude::*;

const VARIABLE: &str = "OPENBLAS_NUM_THREADS";

/// The library of `library.c`, built for one test. It goes with this.
struct Library(PathBuf);

impl Library {
    fn build(test: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join(format!("{test}-{}.so", std::process::id()));
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/threads_on_load/library.c"
        );
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-pthread", "-o"])
            .arg(&library)
            .arg(source)
            .output()
            .unwrap();
        assert!(compiler.status.success(), "{compiler:?}");
        Self(library)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs a test as a program that has loaded the library. Returns false in that program.
#[track_caller]
fn with_library(test: &str) -> bool {
    if is_program() {
        return false;
    }
    let _none = Leftovers::none();
    let library = Library::build(test);
    let mut program = as_program(test);
    let output = finish(program.env("LD_PRELOAD", &library.0).env_remove(VARIABLE));
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}",
        printed(&output.stdout),
        printed(&output.stderr)
    );
    true
}

/// The names of this process's threads that the library has started.
fn of_library(_: u32) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "blas-worker").count()
}

fn server() -> ProcessesBuilder {
    let builder = Processes::builder().workers(1);
    builder.start_method(StartMethod::ForkServer)
}

fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
fn b118_a_library_that_starts_threads_on_load_is_told_to_start_none_in_a_fork_server() {
    if with_library(
        "b118_a_library_that_starts_threads_on_load_is_told_to_start_none_in_a_fork_server",
    ) {
        return;
    }
    assert_eq!(of_library(0), 1, "the library is loaded");
    let preload = Processes::builder()
        .workers(1)
        .preload(|| Ok::<(), String>(()));
    for builder in [
        server(),
        server().inner_threads(InnerThreads::AtMost(4)),
        server()
            .inner_threads(InnerThreads::Inherit)
            .env(VARIABLE, "1"),
        server().allow_threads(true).env(VARIABLE, "3"),
        preload,
    ] {
        let pool = builder.build().unwrap();
        assert_eq!(pool.map(of_library, 0..2), Ok(vec![0, 0]));
    }
    // What a worker loads later is told how many threads it may have.
    let pool = server()
        .inner_threads(InnerThreads::AtMost(4))
        .build()
        .unwrap();
    for name in [VARIABLE, "OMP_NUM_THREADS"] {
        let value = pool.submit(variable, name.to_owned()).result().unwrap();
        assert_eq!(value.or(std::env::var(name).ok()).as_deref(), Some("4"));
    }
}

#[test]
fn b118_a_fork_server_that_has_threads_says_which_and_recommends_what_works() {
    if with_library("b118_a_fork_server_that_has_threads_says_which_and_recommends_what_works") {
        return;
    }
    for builder in [
        server().env(VARIABLE, "3"),
        server().inner_threads(InnerThreads::Inherit),
    ] {
        let error = builder.build().unwrap_err().to_string();
        assert_eq!(
            error,
            "worker 0 of 1 could not be started: the process that forks the workers has 1 thread (blas-worker) beside its own, \
             which the workers would not have; a library started it when it was loaded. Tell the library to start none: \
             OpenBLAS by .env(\"OPENBLAS_NUM_THREADS\", \"1\"); or use StartMethod::Spawn without `preload`, or accept the \
             risk with allow_threads(true)"
        );
    }
    // What the error recommends works.
    let none = server().env(VARIABLE, "1").build().unwrap();
    assert_eq!(none.submit(of_library, 0).result(), Ok(0));
    let spawned = Processes::builder()
        .workers(1)
        .env(VARIABLE, "3")
        .build()
        .unwrap();
    assert_eq!(spawned.submit(of_library, 0).result(), Ok(1));
    let allowed = server()
        .env(VARIABLE, "3")
        .allow_threads(true)
        .build()
        .unwrap();
    assert_eq!(allowed.submit(of_library, 0).result(), Ok(0));
    // The function of `preload` is told apart.
    let leaves_thread = || {
        // A thread names itself when it begins.
        let (begun, begins) = mpsc::channel();
        let thread = std::thread::Builder::new().name("left-behind".to_owned());
        let started = thread.spawn(move || {
            begun.send(()).unwrap();
            loop {
                std::thread::park();
            }
        });
        started.map_err(|error| error.to_string())?;
        begins.recv().map_err(|error| error.to_string())
    };
    let preload = Processes::builder().workers(1).preload(leaves_thread);
    let error = preload.build().unwrap_err().to_string();
    assert!(
        error.contains("has 1 thread (left-behind) beside its own")
            && error.contains("the function of `preload` left it. End the threads there"),
        "{error}"
    );

    // Forked children: the threads are this process's own.
    let error = Pool::forked(1)
        .unwrap()
        .map(of_library, [1])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("refused to fork while ") && error.contains("blas-worker"),
        "{error}"
    );
    assert!(
        error.contains("(StartMethod::Spawn)") && !error.contains("ForkServer"),
        "{error}"
    );
}

#[test]
fn b118_variables_and_inner_threads_reach_every_process_of_a_pool() {
    let _none = Leftovers::none();
    let inner = InnerThreads::AtMost(3);
    let check = |value: Result<Vec<Option<String>>, TaskError>| {
        let value = value.unwrap();
        let threads = std::env::var("OMP_NUM_THREADS").unwrap_or_else(|_| "3".to_owned());
        assert_eq!(value, [Some(threads), Some("7".to_owned()), None]);
    };
    let names = || ["OMP_NUM_THREADS", "MANYHANDS_TEST_A", "HOME"].map(str::to_owned);
    for method in [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::ForkServer,
    ] {
        let builder = Processes::builder().workers(1).start_method(method);
        let builder = builder.allow_threads(true).inner_threads(inner);
        let builder = builder.env("MANYHANDS_TEST_A", "7").env_remove("HOME");
        check(builder.build().unwrap().map(variable, names()));
    }
    let builder = Forked::builder().workers(2).allow_threads(true);
    let builder = builder.env("MANYHANDS_TEST_A", "7").env_remove("HOME");
    let pool = builder.inner_threads(inner).build().unwrap();
    check(pool.map(variable, names()));
    let tasks = names().map(|name| pool.submit(variable, name));
    check(tasks.into_iter().map(TaskFuture::result).collect());
    check(pool.imap(variable, names()).collect());
    assert_eq!(variable("MANYHANDS_TEST_A".to_owned()), None);

    // Without that they have what this process has.
    let pool = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .build()
        .unwrap();
    let value = pool.submit(variable, "OMP_NUM_THREADS".to_owned()).result();
    assert_eq!(value, Ok(variable("OMP_NUM_THREADS".to_owned())));
    for (builder, option) in [
        (Forked::builder().env("A=B", ""), "env"),
        (
            Forked::builder().inner_threads(InnerThreads::AtMost(0)),
            "inner_threads",
        ),
    ] {
        let refused = builder.build().unwrap_err();
        assert!(
            matches!(&refused, PoolError::InvalidOption { option: other, .. } if other == option),
            "{refused}"
        );
    }
}

/// The server starts before the pool's first worker, so it has what the first function sees.
#[test]
fn b118_what_is_preloaded_sees_the_variables_of_the_pool() {
    let _none = Leftovers::none();
    let load = || match std::env::var("MANYHANDS_TEST_A").as_deref() {
        Ok("7") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let builder = Processes::builder().workers(1).preload(load);
    let pool = builder.env("MANYHANDS_TEST_A", "7").build().unwrap();
    assert_eq!(pool.submit(|x: u32| x + 1, 1).result(), Ok(2));
}
