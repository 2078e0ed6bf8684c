//! How many workers make sense here. Each test that changes what the process may use does so in a
//! program of its own (`as_program`).

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use common::{Leftovers, as_program, eventually, finish, is_program};
use manyhands::prelude::*;
use manyhands::{available_workers, physical_cores};

const VARIABLE: &str = "MANYHANDS_WORKERS";

/// What a test that ran as a program printed after `found `.
#[track_caller]
fn found(program: &mut Command) -> String {
    let output = finish(program);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let line = stdout.lines().find_map(|line| line.strip_prefix("found "));
    line.unwrap_or_else(|| panic!("{stdout}\n{stderr}"))
        .to_owned()
}

/// The processors that this thread may use, or is to use from now on.
fn affinity(change: Option<libc::cpu_set_t>) -> libc::cpu_set_t {
    // SAFETY: plain bits, for which zeros are valid.
    let mut set: libc::cpu_set_t = change.unwrap_or_else(|| unsafe { std::mem::zeroed() });
    let size = size_of::<libc::cpu_set_t>();
    let result = match change {
        // SAFETY: reads a set of this size, for the calling thread.
        Some(_) => unsafe { libc::sched_setaffinity(0, size, &raw const set) },
        // SAFETY: writes a set of this size, for the calling thread.
        None => unsafe { libc::sched_getaffinity(0, size, &raw mut set) },
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    set
}

/// The processors of a set.
fn members(set: &libc::cpu_set_t) -> Vec<usize> {
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: within the set by the range.
    all.filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) })
        .collect()
}

#[test]
fn b80_workers_are_no_more_than_the_affinity_allows_and_nothing_is_kept() {
    let _none = Leftovers::none();
    let name = "b80_workers_are_no_more_than_the_affinity_allows_and_nothing_is_kept";
    if !is_program() {
        found(as_program(name).env_remove(VARIABLE));
        return;
    }
    let all = affinity(None);
    let before = available_workers().unwrap();
    let cores = physical_cores().unwrap();
    assert!((1..=members(&all).len()).contains(&before));
    assert!((1..=before).contains(&cores));
    for cpu in members(&all) {
        // SAFETY: plain bits, for which zeros are valid.
        let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: a processor of another set of the same size.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        affinity(Some(one));
        assert_eq!(available_workers(), Ok(1));
        assert_eq!(physical_cores(), Ok(1));
        assert_eq!(Pool::processes_default().unwrap().workers(), 1);
        assert_eq!(Pool::threads_default().unwrap().workers(), 1);
    }
    affinity(Some(all));
    assert_eq!(available_workers(), Ok(before));
    assert_eq!(physical_cores(), Ok(cores));
    println!("\nfound all as it should be");
}

#[test]
fn b80_the_variable_is_taken_at_its_word() {
    let _none = Leftovers::none();
    let name = "b80_the_variable_is_taken_at_its_word";
    if is_program() {
        let workers = available_workers().unwrap();
        for pool in [
            Pool::threads_default().unwrap().workers(),
            Pool::processes_default().unwrap().workers(),
            Pool::forked_default().unwrap().workers(),
            Processes::builder().build().unwrap().workers(),
            Forked::builder().build().unwrap().workers(),
        ] {
            assert_eq!(pool, workers);
        }
        // A number that the program asks for comes before the variable.
        assert_eq!(Pool::threads(5).unwrap().workers(), 5);
        // The variable says nothing about the cores.
        let cores = std::thread::available_parallelism().unwrap().get();
        assert!(physical_cores().unwrap() <= cores);
        println!("\nfound {workers} {}", physical_cores().unwrap());
        return;
    }
    let without = found(as_program(name).env_remove(VARIABLE));
    let (_, cores) = without.split_once(' ').unwrap();
    for workers in ["1", "3", "9"] {
        let with = found(as_program(name).env(VARIABLE, workers));
        assert_eq!(with, format!("{workers} {cores}"));
    }
}

#[test]
fn b80_a_variable_that_makes_no_sense_is_an_error_that_names_it() {
    let _none = Leftovers::none();
    let name = "b80_a_variable_that_makes_no_sense_is_an_error_that_names_it";
    if is_program() {
        let error = available_workers().unwrap_err();
        assert_eq!(Pool::threads_default().unwrap_err(), error);
        assert_eq!(Pool::processes_default().unwrap_err(), error);
        assert_eq!(Pool::forked_default().unwrap_err(), error);
        assert_eq!(Processes::builder().build().unwrap_err(), error);
        // A pool with a given number of workers does not read the variable.
        assert_eq!(Pool::processes(1).unwrap().workers(), 1);
        println!("\nfound {error}");
        return;
    }
    for value in ["", "0", "-1", "two", "1.5", " 2", "99999999999999999999999"] {
        let error = found(as_program(name).env(VARIABLE, value));
        assert!(
            error.contains(VARIABLE) && error.contains(&format!("{value:?}")),
            "{error}"
        );
    }
    let no_text = OsStr::from_bytes(b"\xff2");
    let error = found(as_program(name).env(VARIABLE, no_text));
    assert!(error.contains(VARIABLE), "{error}");
}

/// A control group that goes with this.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        // The last process in it may not be quite gone.
        eventually(
            "the control group can be removed",
            || !matches!(fs::remove_dir(&self.0), Err(error) if error.kind() == ErrorKind::ResourceBusy),
        );
    }
}

/// A control group below that of this process, for half of the processor time of two cores.
fn group_of_one_core() -> Result<Group, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let mut reasons = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, limits) = if controllers.is_empty() {
            ("/sys/fs/cgroup", &[("cpu.max", "100000 100000")][..])
        } else if controllers.split(',').any(|name| name == "cpu") {
            (
                "/sys/fs/cgroup/cpu",
                &[
                    ("cpu.cfs_period_us", "100000"),
                    ("cpu.cfs_quota_us", "100000"),
                ][..],
            )
        } else {
            continue;
        };
        let name = format!("manyhands-test-{}", std::process::id());
        let folder = PathBuf::from(format!("{root}{path}")).join(name);
        if let Err(error) = fs::create_dir(&folder) {
            reasons.push(format!("{}: {error}", folder.display()));
            continue;
        }
        let group = Group(folder);
        let set = |(file, value): &(&str, &str)| {
            let file = group.0.join(file);
            // Never creates a file: where there is none, there is no such limit.
            let written = fs::File::options()
                .write(true)
                .open(&file)
                .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()));
            written.map_err(|error| format!("{}: {error}", file.display()))
        };
        match limits.iter().try_for_each(set) {
            Ok(()) => return Ok(group),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

#[test]
fn b80_workers_are_no_more_than_the_quota_of_the_control_group_pays_for() {
    let _none = Leftovers::none();
    let name = "b80_workers_are_no_more_than_the_quota_of_the_control_group_pays_for";
    if is_program() {
        let before = available_workers().unwrap();
        let group = PathBuf::from(std::env::var_os("MANYHANDS_TEST_GROUP").unwrap());
        let joined = fs::write(group.join("cgroup.procs"), std::process::id().to_string());
        match joined {
            Ok(()) => println!("\nfound {before} {}", available_workers().unwrap()),
            Err(error) => println!("\nfound no way into the group: {error}"),
        }
        assert!(physical_cores().unwrap() <= available_workers().unwrap());
        return;
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    if cores < 2 {
        eprintln!("not tested here: a quota of one core on one core is none");
        return;
    }
    let group = match group_of_one_core() {
        Ok(group) => group,
        Err(reason) => {
            eprintln!("not tested here: no control group with a quota can be made ({reason})");
            return;
        }
    };
    let program = &mut as_program(name);
    let program = program
        .env_remove(VARIABLE)
        .env("MANYHANDS_TEST_GROUP", &group.0);
    let found = found(program);
    if found.starts_with("no way") {
        eprintln!("not tested here: {found}");
        return;
    }
    assert_eq!(found, format!("{cores} 1"), "{}", group.0.display());
}
