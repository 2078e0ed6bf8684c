//! Which descriptors a process that this crate starts has open, and what becomes of those of its
//! libraries.
//!
//! The test harness runs other threads, so forking is allowed here by `allow_threads`.

#[path = "../common/mod.rs"]
mod common;

use std::fs::{self, File};

use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output as Outcome};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use common::{Leftovers, as_program, finish, is_program};
use manyhands::engine::ProcessesBuilder;
use manyhands::engine::StartMethod;
use manyhands::prelude::*;
use manyhands::process::Process;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const METHODS: [StartMethod; 3] = [
    StartMethod::Spawn,
    StartMethod::Fork,
    StartMethod::ForkServer,
];

fn builder(method: StartMethod) -> ProcessesBuilder {
    Processes::builder()
        .workers(1)
        .start_method(method)
        .allow_threads(true)
}

/// The library of `library.c`, built for one test, and the file that it writes to. Both go with
/// this.
struct Library {
    library: PathBuf,
    log: PathBuf,
}

impl Library {
    fn build(test: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let named = |what: &str| folder.join(format!("{test}-{}{what}", std::process::id()));
        let (library, log) = (named(".so"), named(".log"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/descriptors/library.c");
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .output()
            .unwrap();
        assert!(compiler.status.success(), "{compiler:?}");
        Self { library, log }
    }

    /// Runs a test as a program that has loaded the library.
    fn run(&self, test: &str) -> Outcome {
        finish(
            as_program(test)
                .env("LD_PRELOAD", &self.library)
                .env("LIBRARY_LOG", &self.log),
        )
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.library);
        let _ = fs::remove_file(&self.log);
    }
}

#[track_caller]
fn passed(outcome: &Outcome) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&outcome.stdout), text(&outcome.stderr));
    assert!(
        outcome.status.success(),
        "{:?}\n{stdout}\n{stderr}",
        outcome.status
    );
}

/// The descriptors of this process and what they are of.
fn open() -> Vec<(i32, String)> {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    let targets = fds.filter_map(|fd| {
        let fd = fd.unwrap();
        let target = fs::read_link(fd.path()).ok()?.display().to_string();
        Some((fd.file_name().to_str()?.parse().ok()?, target))
    });
    targets.collect()
}

/// How many descriptors this process has of the file that the library has opened.
fn of_library() -> usize {
    let log = std::env::var("LIBRARY_LOG").unwrap();
    let is_log = |(_, target): &&(i32, String)| *target == log;
    open().iter().filter(is_log).count()
}

#[test]
fn a_library_keeps_what_its_constructor_has_opened() {
    let _none = Leftovers::none();
    let name = "a_library_keeps_what_its_constructor_has_opened";
    if is_program() {
        for method in METHODS {
            let pool = builder(method).build().unwrap();
            let task = |method: String| {
                eprintln!("a worker by {method} writes");
                of_library()
            };
            let has = pool.submit(task, format!("{method:?}")).result();
            // The worker has the descriptor of its own library, and not that of the parent's beside
            // it.
            assert_eq!(has, Ok(1), "{method:?}");
            let doubled = pool.map(|x: u64| x * 2, 0..1_000).unwrap();
            assert!(doubled.into_iter().eq((0..1_000).map(|x| x * 2)));
        }
        let child = |()| {
            eprintln!("a child writes");
            assert_eq!(of_library(), 1);
        };
        assert!(Process::spawn(child, ()).unwrap().join().unwrap().success());
        return;
    }
    let library = Library::build(name);
    passed(&library.run(name));
    let log = library.log();
    for by in ["Spawn", "Fork", "ForkServer"] {
        let line = format!("a worker by {by} writes");
        assert_eq!(log.matches(&line).count(), 1, "{by}: {log}");
    }
    assert_eq!(log.matches("a child writes").count(), 1, "{log}");
}

#[test]
fn a_library_does_not_get_the_number_of_a_closed_standard_stream() {
    let _none = Leftovers::none();
    let name = "a_library_does_not_get_the_number_of_a_closed_standard_stream";
    if is_program() {
        nix::unistd::close(1).unwrap();
        let stdout = |()| fs::read_link("/proc/self/fd/1").unwrap();
        let null = Path::new("/dev/null");
        let mut is_null = true;
        for method in METHODS {
            let pool = builder(method).build().unwrap();
            is_null &= pool.submit(stdout, ()).result().unwrap() == null;
        }
        let child = |()| {
            assert_eq!(
                fs::read_link("/proc/self/fd/1").unwrap(),
                Path::new("/dev/null")
            );
        };
        let status = Process::spawn(child, ()).unwrap().join().unwrap();
        // The exit code is the only way to tell the parent.
        std::process::exit(if is_null && status.success() { 0 } else { 3 });
    }
    let library = Library::build(name);
    passed(&library.run(name));
}

/// What of the crate's own is open at a number that a careless library might use.
fn within_reach() -> Vec<(i32, String)> {
    let mut open = open();
    open.retain(|(fd, target)| {
        let is_own = target.contains("manyhands") || target.starts_with("socket:");
        is_own && *fd < 512
    });
    open
}

#[test]
fn what_a_process_keeps_open_is_out_of_the_reach_of_stale_numbers() {
    let _none = Leftovers::none();
    let name = "what_a_process_keeps_open_is_out_of_the_reach_of_stale_numbers";
    if !is_program() {
        return passed(&finish(&mut as_program(name)));
    }
    for method in METHODS {
        let pool = builder(method).build().unwrap();
        let worker = pool.submit(|()| (within_reach(), open()), ()).result();
        let (within_reach_of_worker, open) = worker.unwrap();
        assert_eq!(within_reach_of_worker, [], "{method:?}");
        // A lane is mapped, and open nowhere.
        let of_lanes = |(_, target): &&(i32, String)| {
            target.contains("memfd:manyhands") && !target.contains("family")
        };
        if method != StartMethod::Fork {
            assert_eq!(open.iter().find(of_lanes), None, "{method:?}");
        }
        // Of the pool, its bell.
        assert_eq!(self::open().iter().filter(of_lanes).count(), 1);
        assert_eq!(within_reach(), [], "{method:?}");
    }
    let forked = Forked::builder().workers(1).allow_threads(true);
    let forked = forked.build().unwrap();
    assert_eq!(forked.submit(|()| within_reach(), ()).result(), Ok(vec![]));
    let child = |()| assert_eq!(within_reach(), []);
    assert!(Process::spawn(child, ()).unwrap().join().unwrap().success());
}

#[test]
fn where_few_descriptors_are_allowed_pools_and_children_work() {
    let _none = Leftovers::none();
    let name = "where_few_descriptors_are_allowed_pools_and_children_work";
    if !is_program() {
        return passed(&finish(&mut as_program(name)));
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for limit in [64, 40] {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        for method in METHODS {
            let pool = builder(method).build().unwrap();
            assert_eq!(pool.map(|x: u64| x * x, 0..4), Ok(vec![0, 1, 4, 9]));
        }
        let child = Process::spawn(|()| {}, ()).unwrap();
        assert!(child.join().unwrap().success());
    }
}

static PRELOADED: AtomicI32 = AtomicI32::new(-1);

#[test]
fn what_a_preload_has_opened_its_workers_have() {
    let _none = Leftovers::none();
    let preload = || {
        let file = File::open("/proc/version").map_err(|error| error.to_string())?;
        PRELOADED.store(file.into_raw_fd(), Ordering::Relaxed);
        Ok::<(), String>(())
    };
    let pool = Processes::builder().workers(2).preload(preload);
    let pool = pool.build().unwrap();
    let target = |()| {
        let fd = PRELOADED.load(Ordering::Relaxed);
        fs::read_link(format!("/proc/self/fd/{fd}")).unwrap()
    };
    let targets = pool.call().chunk_size(1).map(target, [(); 20]).unwrap();
    assert!(
        targets
            .iter()
            .all(|target| target == Path::new("/proc/version"))
    );
}

#[test]
fn b10_nor_what_another_thread_opens_while_a_process_starts() {
    let _none = Leftovers::none();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let zero = File::open("/dev/zero").unwrap();
            while !ends.load(Ordering::Relaxed) {
                // Unlike std's own, these copies are inherited by every program that is started.
                let copies: Vec<_> = (0..20).map(|_| nix::unistd::dup(&zero).unwrap()).collect();
                assert!(copies[0].as_raw_fd() > 2);
            }
        });
        for _ in 0..20 {
            let child = |()| {
                let has = open().iter().any(|(_, target)| target == "/dev/zero");
                std::process::exit(i32::from(has))
            };
            let child = Process::spawn(child, ()).unwrap();
            let pool = Pool::processes(1).unwrap();
            let worker = pool.submit(|()| open(), ()).result().unwrap();
            let has = worker.iter().any(|(_, target)| target == "/dev/zero");
            if has || !child.join().unwrap().success() {
                ends.store(true, Ordering::Relaxed);
                panic!("a process has what another thread had open when it was started");
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
}

/// The page 0032 of the design says what each of them is for.
#[test]
fn b145_a_pool_takes_two_descriptors_and_two_for_each_worker() {
    let _none = Leftovers::none();
    let name = "b145_a_pool_takes_two_descriptors_and_two_for_each_worker";
    if !is_program() {
        return passed(&finish(&mut as_program(name)));
    }
    // The program's own are there with the first pool.
    let _first = builder(StartMethod::Spawn).build().unwrap();
    for (method, server) in [(StartMethod::Spawn, 0), (StartMethod::ForkServer, 2)] {
        for workers in [1, 4] {
            let before = open().len();
            let pool = builder(method).workers(workers).build().unwrap();
            assert_eq!(pool.map(|x: u64| x, 0..9).unwrap().len(), 9);
            let taken = open().len() - before;
            assert_eq!(taken, 2 + 2 * workers + server, "{method:?}, {workers}");
        }
    }
}
