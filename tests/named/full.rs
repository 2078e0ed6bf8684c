//! A `/dev/shm` without room.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use manyhands::shm::{SharedMemory, SharedMemoryError};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

use super::common::mounts::with_mounts;
use super::common::{Leftovers, as_program, assert_matches, is_program};
use super::{NAME, given, is_there, name_of, path, run};

/// Gives a program a `/dev/shm` of 1 MiB of its own, where the kernel lets us.
fn in_a_small_room(program: &mut Command) -> &mut Command {
    with_mounts(program, || {
        let (kind, small) = (Some("tmpfs"), Some("size=1m,mode=1777"));
        mount(kind, "/dev/shm", kind, MsFlags::empty(), small)
    })
}

#[track_caller]
fn no_room_for(bytes: usize, name: &str) -> SharedMemoryError {
    let error = SharedMemory::create(name, bytes).unwrap_err();
    let SharedMemoryError::NoSpace { bytes: asked, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(asked, bytes);
    let text = error.to_string();
    assert!(text.contains("there is no room in /dev/shm"), "{text}");
    assert!(!is_there(name));
    error
}

/// Room in all of `/dev/shm`, if there is a limit.
fn room() -> Option<u64> {
    let mut stat = Command::new("stat");
    let output = stat.args(["-f", "-c", "%b %S", "/dev/shm"]);
    let output = output.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (blocks, size) = text.trim().split_once(' ').unwrap();
    let all = blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap();
    (all > 0).then_some(all)
}

#[test]
fn b78_a_full_dev_shm_is_an_error_at_creation_and_nothing_is_left() {
    let name = "full::b78_a_full_dev_shm_is_an_error_at_creation_and_nothing_is_left";
    if is_program() {
        let free = |error| match error {
            SharedMemoryError::NoSpace { free, .. } => free,
            other => panic!("{other}"),
        };
        assert_eq!(free(no_room_for(4 << 20, &given())), Some(1 << 20));
        // This seems to fit, but there is no room for the record as well.
        no_room_for(1 << 20, &given());
        assert_eq!(fs::read_dir("/dev/shm").unwrap().count(), 0);

        // What was made can be written to the last byte, however full it gets.
        let memory = SharedMemory::create(&given(), 500_000).unwrap();
        let filled = fs::write(path("filler"), vec![1; 1 << 20]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        memory.write_at(0, &vec![2; 500_000]).unwrap();
        let more = format!("{}-more", given());
        assert_eq!(free(no_room_for(1, &more)), Some(0));
        drop(memory);
        fs::remove_file(path("filler")).unwrap();
        // Nothing of all this has stayed behind and takes room.
        for _ in 0..100 {
            no_room_for(1 << 20, &given());
            SharedMemory::create(&given(), 1_000_000).unwrap();
        }
        assert_eq!(fs::read_dir("/dev/shm").unwrap().count(), 0);
        return;
    }
    let _none = Leftovers::none();
    let segment = name_of("full");
    let mut probe = Command::new("true");
    match in_a_small_room(probe.stdin(Stdio::null())).status() {
        Ok(status) if status.success() => {
            run(in_a_small_room(as_program(name).env(NAME, &segment)));
        }
        refused => {
            println!("no namespaces here: {refused:?}");
            // More than there is room for in all of it, then. If it has no limit, more than the
            // memory of any machine.
            let bytes = room().map_or(1 << 60, |all| all as usize + 1);
            no_room_for(bytes, &segment);
        }
    }
}

#[test]
fn b78_more_than_there_is_at_all_is_refused_before_anything_is_filled() {
    let _none = Leftovers::none();
    if let Some(all) = room() {
        no_room_for(all as usize + 1, &name_of("all"));
    }
    no_room_for(1 << 60, &name_of("more"));
}

#[test]
fn b78_the_limit_on_files_is_an_error_and_not_a_signal() {
    let name = "full::b78_the_limit_on_files_is_an_error_and_not_a_signal";
    if is_program() {
        setrlimit(Resource::RLIMIT_FSIZE, 8192, 8192).unwrap();
        let error = SharedMemory::create(&given(), 8193).unwrap_err();
        assert_matches!(
            error,
            SharedMemoryError::TooLarge { name, bytes: 8193, limit: 8192, .. } if name == given()
        );
        assert_eq!(SharedMemory::create(&given(), 8192).unwrap().len(), 8192);
        return;
    }
    let _none = Leftovers::none();
    run(as_program(name).env(NAME, name_of("limit")));
}

/// Some kernels stop setting memory aside when a signal comes, and undo what they have done in that
/// call.
#[test]
fn b78_signals_do_not_keep_a_large_one_from_being_made() {
    let name = "full::b78_signals_do_not_keep_a_large_one_from_being_made";
    if is_program() {
        extern "C" fn nothing(_: i32) {}
        let handler = nothing as extern "C" fn(i32);
        // SAFETY: a handler that does nothing.
        unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: 5_000,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: the timer is valid, and the old one is not asked for.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
        let memory = SharedMemory::create(&given(), 256 << 20).unwrap();
        memory.write_at((256 << 20) - 1, &[1]).unwrap();
        return;
    }
    let _none = Leftovers::none();
    if room().is_some_and(|all| all < 512 << 20) {
        println!("/dev/shm is too small here for a large one");
        return;
    }
    run(as_program(name).env(NAME, name_of("signals")));
}
