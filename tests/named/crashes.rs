//! Owners that are killed, and what `cleanup` makes of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Stdio;
use std::time::{Duration, Instant};

use manyhands::shm::{SharedMemory, SharedMemoryError};

use super::common::{Killed, Leftovers, as_program, assert_matches, is_program, kill};
use super::{NAME, STRANGER, given, is_there, name_of, path, ready, run_as_stranger, start};

const OWNER: &str = "crashes::b77_what_a_killed_owner_left_is_found_and_removed";

/// A program that owns a segment until it is killed or its standard input ends.
fn owner_of(segment: &str) -> Killed {
    start(as_program(OWNER).env(NAME, segment))
}

/// What such a program leaves when it is killed.
fn left(segment: &str) -> u32 {
    let mut owner = owner_of(segment);
    owner.0.kill().unwrap();
    owner.0.wait().unwrap();
    assert!(is_there(segment));
    owner.0.id()
}

/// The record of a process, where it lies and what is in it.
fn record_of(pid: u32) -> (String, String) {
    let name = format!(".manyhands-{pid}-0");
    let text = fs::read_to_string(path(&name)).unwrap();
    (name, text)
}

#[test]
fn b77_what_a_killed_owner_left_is_found_and_removed() {
    if is_program() {
        let _memory = SharedMemory::create(&given(), 10).unwrap();
        ready();
        return;
    }
    let _none = Leftovers::none();
    let segment = name_of("killed");
    let pid = left(&segment);
    // A process that comes later is told what to do.
    let error = SharedMemory::create(&segment, 10).unwrap_err();
    assert_matches!(
        &error,
        SharedMemoryError::AlreadyExists { name, left_by: Some(by), .. }
            if *name == segment && *by == pid
    );
    assert!(error.to_string().contains("cleanup() removes it"));
    // A process that has it open keeps it.
    let open = SharedMemory::open(&segment).unwrap();
    assert!(SharedMemory::cleanup().unwrap().contains(&segment));
    assert!(!is_there(&segment));
    open.write_at(0, b"still here").unwrap();
    assert_eq!(SharedMemory::cleanup().unwrap(), [""; 0]);
    SharedMemory::create(&segment, 10).unwrap();
}

#[test]
fn b77_an_owner_that_nobody_has_reaped_has_ended() {
    let _none = Leftovers::none();
    let segment = name_of("zombie");
    let owner = owner_of(&segment);
    kill(owner.0.id());
    super::common::eventually("a zombie's segment is cleaned", || {
        SharedMemory::cleanup().unwrap().contains(&segment)
    });
    assert!(!is_there(&segment));
}

#[test]
fn b77_cleanup_leaves_the_living_alone() {
    let _none = Leftovers::none();
    let (theirs, ours) = (name_of("living"), name_of("here"));
    let mut owner = owner_of(&theirs);
    let _memory = SharedMemory::create(&ours, 10).unwrap();
    assert_eq!(SharedMemory::cleanup().unwrap(), [""; 0]);
    assert!(is_there(&theirs) && is_there(&ours));
    // The owner still ends as it should.
    drop(owner.0.stdin.take());
    assert!(owner.0.wait().unwrap().success());
    assert!(!is_there(&theirs));
}

#[test]
fn b77_cleanup_leaves_alone_what_another_made_under_the_name() {
    let _none = Leftovers::none();
    // Made first by this crate, and then as another program would.
    let segment = name_of("again");
    left(&segment);
    SharedMemory::unlink(&segment).unwrap();
    let memory = SharedMemory::create(&segment, 20).unwrap();
    assert_eq!(SharedMemory::cleanup().unwrap(), [""; 0]);
    assert!(is_there(&segment));
    drop(memory);

    let pid = left(&segment);
    SharedMemory::unlink(&segment).unwrap();
    fs::write(path(&segment), "not ours").unwrap();
    assert_eq!(SharedMemory::cleanup().unwrap(), [""; 0]);
    assert!(is_there(&segment));
    let record = format!(".manyhands-{pid}-0");
    assert!(!is_there(&record), "the record is about nothing any more");
    fs::remove_file(path(&segment)).unwrap();
}

#[test]
fn b77_a_record_of_a_pid_that_came_again_is_that_of_a_dead_owner() {
    let _none = Leftovers::none();
    let segment = name_of("pid");
    let (record, text) = record_of(left(&segment));
    // As if this process had got the dead owner's pid.
    let (head, rest) = text.split_once("owner ").unwrap();
    let (_, rest) = rest.split_once(' ').unwrap();
    let pid_of_mine = format!("{head}owner {} {rest}", std::process::id());
    fs::write(path(&record), pid_of_mine).unwrap();
    assert!(SharedMemory::cleanup().unwrap().contains(&segment));
    assert!(!is_there(&segment));
}

#[test]
fn b77_records_that_are_not_as_they_should_be_are_not_believed() {
    let _none = Leftovers::none();
    let segment = name_of("forged");
    let (record, text) = record_of(left(&segment));
    let at = path(&record);
    let ignored = |what: &str| {
        assert_eq!(SharedMemory::cleanup().unwrap(), [""; 0], "{what}");
        assert!(is_there(&segment) && is_there(&record), "{what}");
    };
    for wrong in [
        "",
        "nonsense",
        &text.replace("segment 1", "segment 2"),
        &text.replace("name ", "name ../../tmp/"),
        &text.replace("owner ", "owner 1 "),
        &format!("{text}{}", "x".repeat(5000)),
    ] {
        fs::write(&at, wrong).unwrap();
        ignored(wrong);
    }
    fs::write(&at, &text).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o644)).unwrap();
    ignored("open to others");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
    let aside = path(&format!("{segment}-aside"));
    fs::hard_link(&at, &aside).unwrap();
    ignored("with a second name");
    fs::remove_file(&at).unwrap();
    symlink(&aside, &at).unwrap();
    ignored("a link");
    fs::remove_file(&at).unwrap();
    fs::create_dir(&at).unwrap();
    ignored("a folder");
    fs::remove_dir(&at).unwrap();
    if nix::unistd::geteuid().is_root() {
        fs::rename(&aside, &at).unwrap();
        chown(&at, Some(65534), None).unwrap();
        ignored("another user's");
        chown(&at, Some(0), None).unwrap();
    } else {
        fs::rename(&aside, &at).unwrap();
    }
    // The record as it was made is cleaned up.
    assert_eq!(SharedMemory::cleanup().unwrap(), [&*segment]);
    assert!(!is_there(&segment) && !is_there(&record));
}

/// Records that are given to another user, and cleaned up as this user's also if the test fails.
struct TakenBack(Vec<String>);

impl Drop for TakenBack {
    fn drop(&mut self) {
        for record in &self.0 {
            // It is gone if the test has passed.
            let _ = chown(path(record), Some(0), None);
        }
        let _ = SharedMemory::cleanup();
    }
}

/// The folder lets only the owner of a segment remove it, and the record is another user's.
#[test]
fn b77_a_cleanup_that_fails_tells_what_it_could_not_remove_and_what_it_has_removed() {
    let name =
        "crashes::b77_a_cleanup_that_fails_tells_what_it_could_not_remove_and_what_it_has_removed";
    if is_program() {
        let given = given();
        let (kept, gone) = given.split_once(' ').unwrap();
        match SharedMemory::cleanup().unwrap_err() {
            SharedMemoryError::CleanupFailed {
                name,
                reason,
                removed,
                ..
            } => {
                assert_eq!((&*name, removed), (kept, vec![gone.to_owned()]));
                assert!(reason.contains("os error"), "{reason}");
            }
            other => panic!("{other}"),
        }
        return;
    }
    let _none = Leftovers::none();
    if !nix::unistd::geteuid().is_root() {
        println!("not tested here: only root can give files to another user");
        return;
    }
    let (kept, gone) = (name_of("kept"), name_of("gone"));
    let give = |name: &str, user| chown(path(name), Some(user), None).unwrap();
    let [record, other] = [&kept, &gone].map(|segment| record_of(left(segment)).0);
    let _back = TakenBack(vec![record.clone(), other.clone()]);
    give(&record, STRANGER);
    give(&other, STRANGER);
    give(&gone, STRANGER);
    run_as_stranger(name, &format!("{kept} {gone}"));
    assert!(is_there(&kept) && is_there(&record));
    assert!(!is_there(&gone) && !is_there(&other));
    give(&record, 0);
    assert_eq!(SharedMemory::cleanup().unwrap(), [&*kept]);
    assert!(!is_there(&kept) && !is_there(&record));
}

#[test]
fn b77_of_two_that_clean_up_at_once_one_removes_it() {
    let _none = Leftovers::none();
    for round in 0..10 {
        let segment = name_of(&format!("cleaners-{round}"));
        left(&segment);
        let times: usize = std::thread::scope(|scope| {
            let clean = || {
                let removed = SharedMemory::cleanup().unwrap();
                removed.iter().filter(|name| **name == segment).count()
            };
            let cleaners: Vec<_> = (0..4).map(|_| scope.spawn(clean)).collect();
            cleaners.into_iter().map(|c| c.join().unwrap()).sum()
        });
        assert_eq!(times, 1);
        assert!(!is_there(&segment));
    }
}

/// Every user may put something into the folder. A FIFO without a writer keeps a process waiting
/// that opens it.
#[test]
fn b77_nobody_waits_at_a_fifo_among_the_records() {
    let name = "crashes::b77_nobody_waits_at_a_fifo_among_the_records";
    if is_program() {
        let (segment, fifo) = (name_of("fifo"), given());
        SharedMemory::cleanup().unwrap();
        let _memory = SharedMemory::create(&segment, 10).unwrap();
        assert!(SharedMemory::create(&segment, 10).is_err());
        assert!(SharedMemory::open(&fifo).is_err());
        ready();
        return;
    }
    let _none = Leftovers::none();
    let fifo = format!(".manyhands-{}-fifo", std::process::id());
    nix::unistd::mkfifo(&path(&fifo), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let program = as_program(name)
        .env(NAME, &fifo)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let mut program = Killed(program.unwrap());
    let (seen, mut ended) = (Instant::now(), None);
    while ended.is_none() && seen.elapsed() < Duration::from_secs(20) {
        ended = program.0.try_wait().unwrap();
        std::thread::yield_now();
    }
    fs::remove_file(path(&fifo)).unwrap();
    assert!(ended.expect("it waits for the FIFO").success());
}

/// Between whatever two steps it is killed, cleanup finds what there is.
#[test]
fn b77_an_owner_killed_at_any_moment_leaves_nothing_that_cleanup_does_not_find() {
    let name =
        "crashes::b77_an_owner_killed_at_any_moment_leaves_nothing_that_cleanup_does_not_find";
    if is_program() {
        loop {
            println!("ready");
            let memory = SharedMemory::create(&given(), 100_000).unwrap();
            memory.write_at(0, &vec![1; 100_000]).unwrap();
        }
    }
    let _none = Leftovers::none();
    let segment = name_of("moment");
    // Until it was killed both with and without its segment there.
    let (mut with, mut without) = (0, 0);
    for round in 0.. {
        if round >= 40 && with > 0 && without > 0 {
            break;
        }
        assert!(round < 1000, "{with} with, {without} without");
        let program = as_program(name)
            .env(NAME, &segment)
            .stdout(Stdio::piped())
            .spawn();
        let mut program = Killed(program.unwrap());
        let mut output = BufReader::new(program.0.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap().contains("ready")));
        // At another point of its way each time.
        let (seen, later) = (Instant::now(), Duration::from_micros(round * 7 % 500));
        while seen.elapsed() < later {
            std::hint::spin_loop();
        }
        program.0.kill().unwrap();
        program.0.wait().unwrap();
        let was_there = is_there(&segment);
        *(if was_there { &mut with } else { &mut without }) += 1;
        let removed = SharedMemory::cleanup().unwrap();
        assert_eq!(removed.contains(&segment), was_there);
        let records = fs::read_dir("/dev/shm").unwrap().any(|entry| {
            let record = format!(".manyhands-{}-", program.0.id());
            let entry = entry.unwrap().file_name();
            entry.to_string_lossy().starts_with(&record)
        });
        assert!(!is_there(&segment) && !records);
    }
}
