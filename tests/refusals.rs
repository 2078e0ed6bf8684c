//! What the kernel refuses: the error names the call, what it was for, the limit and the way out.
//!
//! Each test starts this binary again with itself as the only test, in surroundings in which the
//! kernel refuses something.

mod common;

use std::fmt::Display;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use common::mounts::{may_mount, with_mounts};
use common::refuse::refuse;
use common::{Leftovers, as_program, finish, is_program};
use manyhands::engine::StartMethod;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::shm::ShareError;
use manyhands::{Queue, SharedArray};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a program is to do without.
const WHAT: &str = "MANYHANDS_TEST_WHAT";

/// Runs a program, which must succeed, and returns what it has printed.
#[track_caller]
fn run(program: &mut Command) -> String {
    let output = finish(program);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{:?}\n{stdout}\n{stderr}",
        output.status
    );
    stdout.into_owned()
}

type Attempt = (&'static str, fn() -> Result<(), String>);

fn text(error: impl Display) -> String {
    error.to_string()
}

fn started_pool(method: StartMethod) -> Result<(), String> {
    let builder = Processes::builder().workers(1).start_method(method);
    let pool = builder.allow_threads(true).build().map_err(text)?;
    let result = pool.submit(|x: u32| x + 1, 1).result().map_err(text)?;
    assert_eq!(result, 2);
    Ok(())
}

/// All that needs something of the kernel, each with its name.
const ATTEMPTS: [Attempt; 9] = [
    ("spawn", || started_pool(StartMethod::Spawn)),
    ("fork", || started_pool(StartMethod::Fork)),
    ("forkserver", || started_pool(StartMethod::ForkServer)),
    ("lines", || {
        let builder = Processes::builder().workers(1);
        let pool = builder.stdout(Stdio::lines(|_, _| ())).build();
        pool.map(drop).map_err(text)
    }),
    ("forked", || {
        let builder = Forked::builder().workers(2).allow_threads(true);
        let pool = builder.build().map_err(text)?;
        let results = pool.map(|x: u32| x + 1, [1, 2, 3]).map_err(text)?;
        assert_eq!(results, [2, 3, 4]);
        Ok(())
    }),
    ("forked submit", || {
        let builder = Forked::builder().workers(1).allow_threads(true);
        let pool = builder.build().map_err(text)?;
        let result = pool.submit(|x: u32| x + 1, 1).result().map_err(text)?;
        assert_eq!(result, 2);
        Ok(())
    }),
    ("threads", || {
        let pool = Pool::threads(2).map_err(text)?;
        assert_eq!(pool.map(|x| x + 1, [1]).map_err(text)?, [2]);
        Ok(())
    }),
    ("child", || {
        let child = Process::spawn(|_: Vec<u8>| {}, vec![1; 100_000]).map_err(text)?;
        child.join().map(drop).map_err(text)
    }),
    ("shared", || {
        let queue = Queue::bounded(10).map_err(text)?;
        queue.push(vec![1_u8; 100_000]).map_err(text)?;
        let array = SharedArray::<u8>::zeros(5 << 20).map_err(text)?;
        assert_eq!(array.len(), 5 << 20);
        Ok(())
    }),
];

/// Makes all attempts. Checks that those that are refused say `parts`, and returns their names.
fn attempts(parts: &[&str]) -> Vec<&'static str> {
    let refused = ATTEMPTS.iter().filter_map(|(name, attempt)| {
        let error = attempt().err()?;
        println!("{name}: {error}");
        for part in parts {
            assert!(error.contains(part), "{name}: {part} is not in: {error}");
        }
        Some(*name)
    });
    refused.collect()
}

#[test]
fn b114_too_few_descriptors_are_named_wherever_they_end() {
    if !is_program() {
        let _none = Leftovers::none();
        let name = "b114_too_few_descriptors_are_named_wherever_they_end";
        run(&mut as_program(name));
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut met = Vec::new();
    // What this program has open, and then one more each time.
    let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    for limit in open..open + 40 {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
        let refused = attempts(&[&format!(
            "Too many open files (RLIMIT_NOFILE is {limit}; raise it with `ulimit -n`)"
        )]);
        if refused.is_empty() {
            break;
        }
        met.extend(refused);
    }
    for name in ["spawn", "fork", "forkserver", "forked", "child"] {
        assert!(met.contains(&name), "{name}: {met:?}");
    }
    assert_eq!(attempts(&[]), [""; 0]);
}

#[test]
fn b114_a_limit_on_files_that_is_too_low_is_named_and_kills_no_process() {
    if !is_program() {
        let _none = Leftovers::none();
        let name = "b114_a_limit_on_files_that_is_too_low_is_named_and_kills_no_process";
        for limit in ["0", "8192", "20000000", "1000000000"] {
            run(as_program(name).env(WHAT, limit));
        }
        return;
    }
    let limit = std::env::var(WHAT).unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, limit, limit).unwrap();
    let refused = attempts(&["RLIMIT_FSIZE", "`ulimit -f"]);
    let expected = match limit {
        0 | 8_192 => &[
            "spawn",
            "fork",
            "forkserver",
            "lines",
            "forked",
            "forked submit",
            "child",
            "shared",
        ][..],
        // What is large has its place beyond that.
        _ => &["shared"],
    };
    assert_eq!(refused[refused.len() - expected.len()..], *expected);
}

#[test]
fn b114_a_call_that_a_sandbox_refuses_is_named() {
    const CALLS: [(&str, &[libc::c_long]); 7] = [
        ("memfd_create", &[libc::SYS_memfd_create]),
        ("eventfd", &[libc::SYS_eventfd2]),
        ("socketpair", &[libc::SYS_socketpair]),
        ("fallocate", &[libc::SYS_fallocate]),
        ("ftruncate", &[libc::SYS_ftruncate]),
        ("pidfd_open", &[libc::SYS_pidfd_open]),
        (
            "clone",
            &[
                libc::SYS_clone,
                libc::SYS_clone3,
                #[cfg(target_arch = "x86_64")]
                libc::SYS_vfork,
                #[cfg(target_arch = "x86_64")]
                libc::SYS_fork,
            ],
        ),
    ];
    let name = "b114_a_call_that_a_sandbox_refuses_is_named";
    if !is_program() {
        let _none = Leftovers::none();
        for (call, _) in CALLS {
            for error in ["1", "38"] {
                run(as_program(name).env(WHAT, format!("{call} {error}")));
            }
        }
        return;
    }
    let what = std::env::var(WHAT).unwrap();
    let (call, error) = what.split_once(' ').unwrap();
    let (_, numbers) = CALLS.iter().find(|(name, _)| *name == call).unwrap();
    refuse(numbers, error.parse().unwrap());
    let is_named = |error: &str| match call {
        // A new process and a copy of this one are made by it as well.
        "clone" => ["clone", "fork", "posix_spawn"]
            .iter()
            .any(|name| error.contains(&format!("{name} for"))),
        _ => error.contains(&format!("{call} for")),
    };
    for (name, attempt) in ATTEMPTS {
        let Err(error) = attempt() else {
            println!("{name} works without {call}");
            // There are other ways to watch a process. Threads and shared objects need few calls.
            let must_fail = match call {
                "memfd_create" => name != "threads",
                "clone" => name != "shared",
                // `pidfd_open`, too.
                _ => false,
            };
            assert!(!must_fail, "{name} without {call}");
            continue;
        };
        println!("{name}: {error}");
        assert!(is_named(&error), "{name} without {call}: {error}");
        assert!(error.contains("seccomp"), "{name} without {call}: {error}");
        assert_ne!(call, "pidfd_open");
    }
}

#[test]
fn b114_what_is_not_mounted_is_named() {
    let name = "b114_what_is_not_mounted_is_named";
    if !is_program() {
        let _none = Leftovers::none();
        if !may_mount() {
            return;
        }
        for folder in ["/proc", "/dev"] {
            let mut program = as_program(name);
            program.env(WHAT, folder);
            run(with_mounts(&mut program, move || {
                let kind = Some("tmpfs");
                mount(kind, folder, kind, MsFlags::empty(), None::<&str>)
            }));
        }
        return;
    }
    let folder = std::env::var(WHAT).unwrap();
    let refused = match &*folder {
        "/proc" => attempts(&["/proc is not mounted", "mount -t proc proc /proc"]),
        _ => attempts(&["open for /dev/null: No such file", "mount it"]),
    };
    // What is forked needs neither.
    for name in ["spawn", "forkserver", "lines", "child"] {
        assert!(refused.contains(&name), "{name}: {refused:?}");
    }
}

#[test]
fn b114_the_limits_on_processes_and_threads_are_named() {
    const RESOURCE: &str = "RLIMIT_NPROC is 3, for processes and threads of the user together; raise it \
                            with `ulimit -u`";
    let name = "b114_the_limits_on_processes_and_threads_are_named";
    if !is_program() {
        let _none = Leftovers::none();
        if nix::unistd::geteuid().is_root() {
            // The limit is not for root. A user that has no processes must be able to read this
            // file.
            let copy = Copied::new("nproc");
            let mut program = as_program(name);
            let mut other = Command::new(&copy.0);
            other
                .args(program.get_args())
                .envs(
                    program
                        .get_envs()
                        .filter_map(|(name, value)| Some((name, value?))),
                )
                .env(WHAT, "nproc")
                .uid(54_321);
            run(&mut other);
            if let Some(group) = Group::new("pids") {
                group.set("pids.max", "3");
                run(group.hold(program.env(WHAT, "pids")));
            }
        } else {
            run(as_program(name).env(WHAT, "nproc"));
        }
        return;
    }
    let advice = if std::env::var(WHAT).unwrap() == "nproc" {
        setrlimit(Resource::RLIMIT_NPROC, 3, 3).unwrap();
        RESOURCE
    } else {
        "pids.max is 3 in /sys/fs/cgroup"
    };
    let error = Pool::threads(4).unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("clone for the thread manyhands-"), "{error}");
    assert!(error.contains('(') && error.contains(advice), "{error}");
    let refused = attempts(&[advice]);
    for name in ["spawn", "fork", "forkserver", "threads"] {
        assert!(refused.contains(&name), "{name}: {refused:?}");
    }
}

#[test]
fn b114_limits_on_addresses_and_mappings_are_named() {
    let name = "b114_limits_on_addresses_and_mappings_are_named";
    if !is_program() {
        let _none = Leftovers::none();
        run(as_program(name).env(WHAT, "addresses"));
        run(as_program(name).env(WHAT, "mappings"));
        return;
    }
    let make = |len: usize| SharedArray::<u8>::zeros(len);
    // The family's own memory is there.
    let first = make(2 << 20).unwrap();
    if std::env::var(WHAT).unwrap() == "addresses" {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        let limit = pages * 4_096 + (50 << 20);
        setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
        let error = make(100 << 20).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "shared memory could not be mapped: mmap for the memory that processes share, of 134217728 bytes: Out \
                 of memory (RLIMIT_AS is {limit} bytes of addresses; raise it with `ulimit -v`)"
            )
        );
    } else {
        let Ok(most) = fs::read_to_string("/proc/sys/vm/max_map_count") else {
            return;
        };
        let most: usize = most.trim().parse().unwrap();
        if most > 1 << 20 {
            println!("too many mappings to fill them: {most}");
            return;
        }
        fill_mappings(most);
        // A few may have been left.
        let mut arrays = Vec::new();
        let error = loop {
            match make(3 << 20) {
                Ok(array) => arrays.push(array),
                Err(error) => break error.to_string(),
            }
            assert!(arrays.len() < 20);
        };
        assert!(
            error.contains(&format!(
                "vm.max_map_count is {most}; raise it with `sysctl -w vm.max_map_count="
            )),
            "{error}"
        );
        assert!(
            error.contains("mmap for the memory that processes share"),
            "{error}"
        );
    }
    drop(first);
}

/// Makes mappings until there can be no more of them.
fn fill_mappings(most: usize) {
    const PAGE: usize = 4_096;
    let len = 2 * most * PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    for page in 0..most {
        // SAFETY: within the mapping above.
        let page = unsafe { start.add(2 * page * PAGE) };
        // Neighbours with other rights are mappings of their own.
        // SAFETY: a page of that mapping, which nothing uses.
        if unsafe { libc::mprotect(page, PAGE, libc::PROT_READ) } != 0 {
            return;
        }
    }
}

#[test]
fn b115_small_objects_fill_a_control_group_to_an_error_and_not_to_a_kill() {
    let name = "b115_small_objects_fill_a_control_group_to_an_error_and_not_to_a_kill";
    if !is_program() {
        let _none = Leftovers::none();
        let Some(group) = Group::new("memory") else {
            return;
        };
        group.set("memory.max", "100000000");
        run(group.hold(&mut as_program(name)));
        return;
    }
    let mut arrays = Vec::new();
    let error = loop {
        match SharedArray::<u8>::zeros(1 << 20) {
            Ok(array) => arrays.push(array),
            Err(error) => break error,
        }
        assert!(arrays.len() < 100);
    };
    assert!(matches!(error, ShareError::OutOfMemory { .. }), "{error}");
    assert!(
        error.to_string().contains("limits of its control groups"),
        "{error}"
    );
    assert!(arrays.len() > 50, "{}", arrays.len());
}

/// A control group of a test, with no process in it.
struct Group(PathBuf);

impl Group {
    /// Makes one where the system allows it.
    fn new(controller: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            if controllers.split(',').any(|name| name == controller) {
                Some(format!("/sys/fs/cgroup/{controller}{path}"))
            } else {
                None
            }
        });
        let path = path.unwrap_or_else(|| "/sys/fs/cgroup".to_owned());
        let path = PathBuf::from(path).join(format!("manyhands-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&path) {
            println!("no control groups here: {error}");
            return None;
        }
        let group = Self(path);
        let file = format!("{controller}.max");
        let there = group.0.join(&file).exists() || group.0.join("memory.limit_in_bytes").exists();
        if !there {
            println!("the control group has no {file}");
        }
        there.then_some(group)
    }

    fn set(&self, file: &str, value: &str) {
        let old = self.0.join("memory.limit_in_bytes");
        let path = if file == "memory.max" && old.exists() {
            old
        } else {
            self.0.join(file)
        };
        fs::write(path, value).unwrap();
    }

    /// Has a program begin in the group.
    fn hold<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        let members = fs::File::options()
            .write(true)
            .open(self.0.join("cgroup.procs"));
        let members = members.unwrap();
        let enter = move || std::io::Write::write_all(&mut &members, b"0");
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe { program.pre_exec(enter) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        common::eventually("the group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// A copy of this program where all users may read it.
struct Copied(PathBuf);

impl Copied {
    fn new(name: &str) -> Self {
        let copy = std::env::temp_dir().join(format!("refusals-{name}-{}", std::process::id()));
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        Self(copy)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The dynamic loader of this program.
fn loader() -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = |line: &str| line.find('/').map(|start| line[start..].to_owned());
    maps.lines().filter_map(path).find(|path| {
        path.rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with("ld-"))
    })
}

#[test]
fn b123_a_program_that_was_started_through_the_loader_has_workers_and_children() {
    let name = "b123_a_program_that_was_started_through_the_loader_has_workers_and_children";
    if !is_program() {
        let _none = Leftovers::none();
        let Some(loader) = loader() else {
            println!("this program has no loader");
            return;
        };
        let program = as_program(name);
        let copy = Copied::new("loader");
        for options in [
            &[][..],
            &["--inhibit-cache"],
            &["--library-path", "/nowhere"],
        ] {
            let mut through = Command::new(&loader);
            through
                .args(options)
                .arg(&copy.0)
                .args(program.get_args())
                .envs(
                    program
                        .get_envs()
                        .filter_map(|(name, value)| Some((name, value?))),
                )
                .env(WHAT, &copy.0);
            run(&mut through);
        }
        return;
    }
    assert_ne!(
        fs::read_link("/proc/self/exe").unwrap(),
        PathBuf::from(std::env::var(WHAT).unwrap())
    );
    assert_eq!(attempts(&[]), [""; 0]);
}

#[test]
fn b123_a_program_that_the_loader_cannot_find_again_says_so() {
    let name = "b123_a_program_that_the_loader_cannot_find_again_says_so";
    if !is_program() {
        let _none = Leftovers::none();
        let Some(loader) = loader() else {
            println!("this program has no loader");
            return;
        };
        let program = as_program(name);
        let copy = Copied::new("gone");
        let mut through = Command::new(&loader);
        through
            .arg(&copy.0)
            .args(program.get_args())
            .envs(
                program
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env(WHAT, &copy.0);
        run(&mut through);
        return;
    }
    fs::remove_file(std::env::var(WHAT).unwrap()).unwrap();
    let refused = attempts(&[
        "started through the dynamic loader /",
        "is not there any more",
    ]);
    assert_eq!(refused, ["spawn", "forkserver", "lines", "child"]);
}
