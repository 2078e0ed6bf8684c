//! Named shared memory: `SharedMemory`, between programs that are not related.

#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod full;
mod interop;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;
use std::sync::atomic::Ordering;

use common::{Killed, Leftovers, as_program, assert_matches, finish, is_program};
use manyhands::prelude::*;
use manyhands::shm::{NameError, SharedMemory, SharedMemoryError};
use nix::sys::stat::Mode;

/// What a program is told to work on.
const NAME: &str = "MANYHANDS_TEST_NAME";

/// A name that only this run of this test has.
fn name_of(label: &str) -> String {
    format!("manyhands-test-{}-{label}", std::process::id())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

fn is_there(name: &str) -> bool {
    path(name).symlink_metadata().is_ok()
}

/// In a program: the name it was given.
fn given() -> String {
    std::env::var(NAME).unwrap()
}

/// Runs a test as a program, which must pass.
#[track_caller]
fn run(program: &mut Command) {
    has_passed(&finish(program));
}

#[track_caller]
fn has_passed(output: &Output) {
    let (out, err) = (&output.stdout, &output.stderr);
    let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
}

/// Starts a program that says so when it is ready, and then waits for its standard input to end.
fn start(program: &mut Command) -> Killed {
    let mut program = Killed(
        program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut output = BufReader::new(program.0.stdout.take().unwrap());
    assert!(
        (&mut output)
            .lines()
            .any(|line| line.unwrap().contains("ready")),
        "the program has ended"
    );
    // What it says at its end must go somewhere.
    program.0.stdout = Some(output.into_inner());
    program
}

/// The other side of `start`.
fn ready() {
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn b77_an_unrelated_program_opens_it_and_both_see_what_the_other_writes() {
    let name = "b77_an_unrelated_program_opens_it_and_both_see_what_the_other_writes";
    if is_program() {
        let memory = SharedMemory::open(&given()).unwrap();
        assert_eq!((memory.len(), memory.name()), (5000, &*given()));
        assert!(!memory.is_owner());
        let mut text = [0; 5];
        memory.read_at(4995, &mut text).unwrap();
        assert_eq!(&text, b"hello");
        memory.write_at(4095, b"good day").unwrap();
        for _ in 0..100_000 {
            memory
                .atomic_u64(8)
                .unwrap()
                .fetch_add(1, Ordering::Relaxed);
        }
        memory.atomic_u32(4).unwrap().store(7, Ordering::Release);
        return;
    }
    let _none = Leftovers::none();
    let segment = name_of("unrelated");
    let memory = SharedMemory::create(&segment, 5000).unwrap();
    assert!(memory.is_owner());
    memory.write_at(4995, b"hello").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| run(as_program(name).env(NAME, &segment)));
        for _ in 0..100_000 {
            memory
                .atomic_u64(8)
                .unwrap()
                .fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(memory.atomic_u32(4).unwrap().load(Ordering::Acquire), 7);
    assert_eq!(
        memory.atomic_u64(8).unwrap().load(Ordering::Relaxed),
        200_000
    );
    let mut text = [0; 8];
    memory.read_at(4095, &mut text).unwrap();
    assert_eq!(&text, b"good day");
    // SAFETY: the other program has ended.
    assert_eq!(&unsafe { memory.as_slice() }[4095..4103], b"good day");
    assert!(is_there(&segment), "an opener's end removes nothing");
}

#[test]
fn b77_sizes_are_what_they_were_made_and_all_is_zero() {
    let _none = Leftovers::none();
    let name = name_of("size");
    for size in [1, 7, 4095, 4096, 4097, 1 << 20, (9 << 20) + 1] {
        let memory = SharedMemory::create(&name, size).unwrap();
        let other = SharedMemory::open(&name).unwrap();
        assert_eq!((memory.len(), other.len()), (size, size));
        let status = fs::metadata(path(&name)).unwrap();
        assert_eq!(status.len(), size as u64);
        assert!(status.blocks() * 512 >= size as u64, "it is all set aside");
        let mut bytes = vec![1; size];
        other.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
    let error = SharedMemory::create(&name, 0).unwrap_err();
    assert_matches!(error, SharedMemoryError::ZeroBytes { name: of, .. } if of == name);
    for size in [usize::MAX, isize::MAX as usize + 1] {
        let error = SharedMemory::create(&name, size).unwrap_err();
        assert!(
            matches!(error, SharedMemoryError::TooLarge { bytes, .. } if bytes == size),
            "{error}"
        );
    }
}

#[test]
fn b77_one_of_many_makers_wins_and_the_others_are_told() {
    let _none = Leftovers::none();
    let name = name_of("race");
    for _ in 0..50 {
        let (start, end) = (Barrier::new(4), Barrier::new(4));
        let wins = std::thread::scope(|scope| {
            let make = || {
                start.wait();
                let made = SharedMemory::create(&name, 100);
                // None of the four removes it before all have tried.
                end.wait();
                match &made {
                    Ok(_) => 1,
                    Err(SharedMemoryError::AlreadyExists { left_by: None, .. }) => 0,
                    Err(error) => panic!("{error}"),
                }
            };
            let makers: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            makers.into_iter().map(|m| m.join().unwrap()).sum::<u32>()
        });
        assert_eq!(wins, 1);
        assert!(!is_there(&name));
    }
}

#[test]
fn b77_what_is_there_and_what_is_not_are_errors_that_say_so() {
    let _none = Leftovers::none();
    let name = name_of("errors");
    let missing = |error: SharedMemoryError| {
        assert_matches!(error, SharedMemoryError::NotFound { name: of, .. } if of == name);
    };
    missing(SharedMemory::open(&name).unwrap_err());
    missing(SharedMemory::unlink(&name).unwrap_err());

    let memory = SharedMemory::create(&name, 10).unwrap();
    memory.write_at(0, b"mine").unwrap();
    let error = SharedMemory::create(&name, 20).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("exists already: open it, choose another"),
        "{text}"
    );
    // The segment was not changed.
    let mut bytes = [0; 4];
    let other = SharedMemory::open(&format!("/{name}")).unwrap();
    other.read_at(0, &mut bytes).unwrap();
    assert_eq!((&bytes, other.len(), other.name()), (b"mine", 10, &*name));
    SharedMemory::unlink(&name).unwrap();
    missing(SharedMemory::open(&name).unwrap_err());

    // A segment that has no size yet.
    fs::write(path(&name), "").unwrap();
    let error = SharedMemory::open(&name).unwrap_err();
    assert_matches!(error, SharedMemoryError::Empty { name: of, .. } if of == name);
    fs::remove_file(path(&name)).unwrap();

    // Something that is no segment at all.
    let taken = |what: &str| {
        for error in [
            SharedMemory::open(&name).unwrap_err(),
            SharedMemory::unlink(&name).unwrap_err(),
        ] {
            assert!(
                matches!(&error, SharedMemoryError::NotASegment { name: of, .. } if *of == name),
                "{what}: {error:?}"
            );
        }
        let error = SharedMemory::create(&name, 1).unwrap_err();
        let is_told = matches!(error, SharedMemoryError::AlreadyExists { .. });
        assert!(is_told && is_there(&name), "{what}: {error}");
    };
    fs::create_dir(path(&name)).unwrap();
    taken("a folder");
    fs::remove_dir(path(&name)).unwrap();
    symlink("/etc/hostname", path(&name)).unwrap();
    taken("a link");
    fs::remove_file(path(&name)).unwrap();
    let made = Command::new("mkfifo").arg(path(&name)).status().unwrap();
    assert!(made.success());
    let kind = path(&name).symlink_metadata().unwrap().file_type();
    assert!(kind.is_fifo());
    taken("a pipe");
    fs::remove_file(path(&name)).unwrap();
}

#[test]
fn b77_names_that_cannot_be_are_errors_that_say_why() {
    let long = "n".repeat(256);
    let slashed = format!("/{long}");
    let SharedMemoryError::InvalidName {
        problem: too_long @ NameError::TooLong { bytes: 256, .. },
        ..
    } = SharedMemory::open(&long).unwrap_err()
    else {
        panic!("a name of 256 bytes is not too long")
    };
    for (name, problem) in [
        ("", NameError::Empty),
        ("/", NameError::Empty),
        ("a\0b", NameError::Nul),
        ("a/b", NameError::Slash),
        ("//a", NameError::Slash),
        ("a/", NameError::Slash),
        ("../tmp/a", NameError::Slash),
        (".", NameError::Dots),
        ("/..", NameError::Dots),
        (&long, too_long.clone()),
        (&slashed, too_long),
        (".manyhands-1-0", NameError::Reserved),
    ] {
        for error in [
            SharedMemory::create(name, 1).unwrap_err(),
            SharedMemory::open(name).unwrap_err(),
            SharedMemory::unlink(name).unwrap_err(),
        ] {
            assert_matches!(
                error,
                SharedMemoryError::InvalidName { name: of, problem: why, .. }
                    if of == name && why == problem
            );
        }
    }
    let _none = Leftovers::none();
    // A valid name, as long and as odd as can be.
    let odd = format!("{} \n\t'\"ß\\%n-", name_of("odd"));
    let odd = format!("{odd}{}", "x".repeat(255 - odd.len()));
    let memory = SharedMemory::create(&odd, 1).unwrap();
    assert!(is_there(&odd) && SharedMemory::open(&odd).is_ok());
    drop(memory);
    assert!(!is_there(&odd));
}

#[test]
fn b77_only_its_user_may_open_it_whatever_the_umask() {
    let name = "b77_only_its_user_may_open_it_whatever_the_umask";
    if is_program() {
        for umask in [0, 0o777] {
            nix::sys::stat::umask(Mode::from_bits_truncate(umask));
            let memory = SharedMemory::create(&given(), 10).unwrap();
            let mode = fs::metadata(path(&given())).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "umask {umask:o}");
            let record = format!(".manyhands-{}-", std::process::id());
            let records: Vec<_> = fs::read_dir("/dev/shm")
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&record))
                .map(|entry| entry.metadata().unwrap().permissions().mode() & 0o7777)
                .collect();
            assert_eq!(records, [0o600], "umask {umask:o}");
            drop(memory);
        }
        return;
    }
    let _none = Leftovers::none();
    run(as_program(name).env(NAME, name_of("umask")));
}

/// A user that is not this one.
const STRANGER: u32 = 65534;

/// Runs a test as a program of another user, which must pass. Only root can.
#[track_caller]
fn run_as_stranger(name: &str, given: &str) {
    // The test program must be where that user can reach it.
    let program = as_program(name);
    let copy = std::env::temp_dir().join(name_of("program"));
    fs::copy(program.get_program(), &copy).unwrap();
    let mut stranger = Command::new(&copy);
    stranger.args(program.get_args()).env(NAME, given);
    stranger.envs(program.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = finish(stranger.uid(STRANGER).gid(STRANGER).current_dir("/"));
    fs::remove_file(copy).unwrap();
    has_passed(&output);
}

#[test]
fn b77_another_user_is_refused() {
    let name = "b77_another_user_is_refused";
    if is_program() {
        let denied = |error: SharedMemoryError, what: &'static str| {
            assert_matches!(
                error,
                SharedMemoryError::PermissionDenied { name, what: tried, .. }
                    if name == given() && tried == what
            );
        };
        denied(SharedMemory::open(&given()).unwrap_err(), "open");
        denied(SharedMemory::unlink(&given()).unwrap_err(), "remove");
        assert!(!SharedMemory::cleanup().unwrap().contains(&given()));
        return;
    }
    let _none = Leftovers::none();
    let segment = name_of("user");
    let _memory = SharedMemory::create(&segment, 10).unwrap();
    if nix::unistd::geteuid().is_root() {
        run_as_stranger(name, &segment);
        assert!(is_there(&segment));
    } else {
        // Only root can become another user.
        let mode = fs::metadata(path(&segment)).unwrap().mode();
        assert_eq!(mode & 0o077, 0);
    }
}

#[test]
fn b77_bytes_and_atomics_outside_are_errors() {
    let _none = Leftovers::none();
    let memory = SharedMemory::create(&name_of("range"), 100).unwrap();
    let outside = |error: SharedMemoryError, from: usize, bytes: usize| {
        assert_matches!(
            error,
            SharedMemoryError::OutOfRange { offset, len, size: 100, .. }
                if (offset, len) == (from, bytes)
        );
    };
    memory.write_at(0, &[9; 100]).unwrap();
    for (offset, len) in [(0, 101), (100, 1), (99, 2), (usize::MAX, 1), (101, 0)] {
        let mut bytes = vec![3; len];
        let error = memory.read_at(offset, &mut bytes).unwrap_err();
        outside(error, offset, len);
        assert!(bytes.iter().all(|byte| *byte == 3));
        let error = memory.write_at(offset, &bytes).unwrap_err();
        outside(error, offset, len);
    }
    memory.read_at(100, &mut []).unwrap();
    let mut all = [0; 100];
    memory.read_at(0, &mut all).unwrap();
    assert_eq!(all, [9; 100]);

    assert!(memory.atomic_u32(96).is_ok() && memory.atomic_u64(88).is_ok());
    outside(memory.atomic_u32(100).unwrap_err(), 100, 4);
    outside(memory.atomic_u64(96).unwrap_err(), 96, 8);
    let error = memory.atomic_u64(usize::MAX - 7).unwrap_err();
    outside(error, usize::MAX - 7, 8);
    assert_matches!(
        memory.atomic_u32(6).unwrap_err(),
        SharedMemoryError::Misaligned {
            offset: 6,
            align: 4,
            ..
        }
    );
    assert_matches!(
        memory.atomic_u64(4).unwrap_err(),
        SharedMemoryError::Misaligned {
            offset: 4,
            align: 8,
            ..
        }
    );

    let mut memory = memory;
    // SAFETY: no other process or thread uses the memory.
    unsafe { memory.as_mut_slice() }.copy_from_slice(&all.map(|byte| byte + 1));
    memory.read_at(0, &mut all).unwrap();
    assert_eq!(all, [10; 100]);
    let last = memory.as_ptr().wrapping_add(99);
    // SAFETY: the address is within, and no other process or thread uses the memory.
    assert_eq!(unsafe { last.read() }, 10);
}

#[test]
fn b77_the_name_goes_when_its_owner_ends_in_whatever_orderly_way() {
    let name = "b77_the_name_goes_when_its_owner_ends_in_whatever_orderly_way";
    if is_program() {
        let memory = SharedMemory::create(&given(), 10).unwrap();
        match &*std::env::var("END").unwrap() {
            "drop" => {
                drop(memory);
                assert!(!is_there(&given()));
            }
            "return" => std::mem::forget(memory),
            "exit" => {
                assert!(is_there(&given()));
                std::process::exit(0);
            }
            "panic" => {
                let gone = std::panic::catch_unwind(move || {
                    let _memory = memory;
                    panic!("of purpose");
                });
                assert!(gone.is_err() && !is_there(&given()));
            }
            other => panic!("{other}"),
        }
        return;
    }
    let _none = Leftovers::none();
    for end in ["drop", "return", "exit", "panic"] {
        let segment = name_of(end);
        run(as_program(name).env(NAME, &segment).env("END", end));
        assert!(!is_there(&segment), "{end}");
    }
}

#[test]
fn b77_a_forked_child_removes_what_it_made_and_nothing_else() {
    let _none = Leftovers::none();
    let (ours, theirs) = (name_of("parent"), name_of("child"));
    let memory = SharedMemory::create(&ours, 10).unwrap();
    let forked = Forked::builder().workers(1).allow_threads(true).build();
    let forked = forked.unwrap();
    let seen = forked
        .map(
            |i: u8| {
                // The child's copy, which is never used again in it.
                // SAFETY: a handle may be read twice where it is dropped once.
                let copy = unsafe { std::ptr::read(&raw const memory) };
                assert!(!copy.is_owner());
                let refused = copy.persist().unwrap_err();
                assert!(matches!(refused, SharedMemoryError::NotOwner { .. }));
                copy.write_at(0, &[i]).unwrap();
                drop(copy);
                // The child's own goes with the child, though no code drops it.
                std::mem::forget(SharedMemory::create(&theirs, 10).unwrap());
                is_there(&ours) && is_there(&theirs)
            },
            [7],
        )
        .unwrap();
    assert_eq!(seen, [true]);
    drop(forked);
    common::eventually("the child has ended", || !is_there(&theirs));
    assert!(is_there(&ours));
    let mut byte = [0];
    memory.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    drop(memory);
    assert!(!is_there(&ours));
}

#[test]
fn b77_an_owner_removes_only_its_own() {
    let _none = Leftovers::none();
    let name = name_of("own");
    let first = SharedMemory::create(&name, 10).unwrap();
    SharedMemory::unlink(&name).unwrap();
    let second = SharedMemory::create(&name, 20).unwrap();
    drop(first);
    assert_eq!(SharedMemory::open(&name).unwrap().len(), 20);
    drop(second);
    assert!(!is_there(&name));
}

#[test]
fn b77_what_is_to_stay_stays() {
    let name = "b77_what_is_to_stay_stays";
    if is_program() {
        let memory = SharedMemory::create(&given(), 10).unwrap();
        memory.write_at(0, b"stays").unwrap();
        memory.persist().unwrap();
        assert!(!memory.is_owner());
        let twice = memory.persist().unwrap_err();
        assert!(matches!(twice, SharedMemoryError::NotOwner { .. }));
        return;
    }
    let _none = Leftovers::none();
    let segment = name_of("stays");
    run(as_program(name).env(NAME, &segment));
    assert!(!SharedMemory::cleanup().unwrap().contains(&segment));
    let memory = SharedMemory::open(&segment).unwrap();
    let mut text = [0; 5];
    memory.read_at(0, &mut text).unwrap();
    assert_eq!(&text, b"stays");
    let refused = memory.persist().unwrap_err();
    assert!(matches!(refused, SharedMemoryError::NotOwner { .. }));
    SharedMemory::unlink(&segment).unwrap();
}
