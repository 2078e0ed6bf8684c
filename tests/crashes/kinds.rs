//! The kinds of death, one after the other.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use manyhands::error::CrashReason;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use serde::{Deserialize, Serialize};

use super::*;
use crate::common::{DEADLINE, Leftovers, as_program, finish, finish_within, is_program};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Nowhere,
    ReadOnly,
    NoAddress,
    BadCall,
    ShortFile,
    Illegal,
    Division,
    Overflow,
    Abort,
    AbortInC,
    NestedPanic,
    CannotUnwind,
    Exit,
    Kill,
    Sent,
    PanicInDrop,
    PanicWithNumber,
}

/// A function with a name of its own, to be looked for in the stack.
#[inline(never)]
pub(crate) fn the_way_there(way: Way) -> u32 {
    std::hint::black_box(die(way)) + 1
}

struct Fuse(bool);

impl Drop for Fuse {
    fn drop(&mut self) {
        assert!(!std::hint::black_box(self.0), "the second");
    }
}

#[inline(never)]
fn die(way: Way) -> u32 {
    match way {
        Way::Nowhere => write_to(8),
        Way::ReadOnly => {
            static TEXT: [u64; 512] = [7; 512];
            write_to(TEXT.as_ptr() as usize);
        }
        // No address of x86-64 has these bits, and the processor does not say which it was.
        Way::NoAddress => write_to(1 << 62),
        Way::BadCall => {
            let code = std::hint::black_box(64_usize);
            // SAFETY: none. There is no code, and the crash is what the test is about.
            let function = unsafe { std::mem::transmute::<usize, fn()>(code) };
            function();
        }
        Way::ShortFile => {
            let file = memfd_create(c"short", MFdFlags::empty()).unwrap();
            let len = std::num::NonZeroUsize::new(4_096).unwrap();
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: it is a new mapping of a file that has no bytes.
            let start = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, file.as_fd(), 0) };
            write_to(start.unwrap().as_ptr() as usize);
        }
        // SAFETY: none. The crash is what the test is about.
        Way::Illegal => unsafe { std::arch::asm!("ud2") },
        Way::Division => {
            // SAFETY: none, as above.
            unsafe {
                std::arch::asm!(
                    "xor edx, edx",
                    "xor ecx, ecx",
                    "div ecx",
                    out("ecx") _,
                    out("edx") _,
                    inout("eax") 1 => _,
                );
            }
        }
        Way::Overflow => return u32::try_from(overflow(1)).unwrap_or(0),
        Way::Abort => std::process::abort(),
        // SAFETY: abort may be called at any time.
        Way::AbortInC => unsafe { libc::abort() },
        Way::NestedPanic => {
            let _fuse = Fuse(true);
            panic!("the first");
        }
        Way::CannotUnwind => {
            extern "C" fn ends() {
                panic!("out of C");
            }
            ends();
        }
        Way::Exit => common::exit_at_once(3),
        Way::Kill => drop(nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)),
        Way::Sent => drop(nix::sys::signal::kill(
            nix::unistd::Pid::this(),
            nix::sys::signal::Signal::SIGBUS,
        )),
        Way::PanicInDrop => drop(Fuse(true)),
        Way::PanicWithNumber => std::panic::panic_any(7_u8),
    }
    0
}

#[inline(never)]
fn write_to(address: usize) {
    let target = std::ptr::with_exposed_provenance_mut::<u64>(std::hint::black_box(address));
    // SAFETY: none. The crash is what the tests are about.
    unsafe { target.write_volatile(1) };
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    overflow(depth + 1) + frame[depth as usize % 512]
}

/// What the error of each way says.
const SAYS: [(Way, &[&str]); 17] = [
    (
        Way::Nowhere,
        &["signal 11 (SIGSEGV): it used address 0x8, where nothing is mapped"],
    ),
    (
        Way::ReadOnly,
        &[
            "signal 11 (SIGSEGV): it used address 0x",
            "which may not be read, written",
        ],
    ),
    (
        Way::NoAddress,
        &["signal 11 (SIGSEGV): it used an address that cannot be"],
    ),
    (
        Way::BadCall,
        &["signal 11 (SIGSEGV): it used address 0x40, where nothing is mapped"],
    ),
    (
        Way::ShortFile,
        &["signal 7 (SIGBUS): it used address 0x", "mapped has ended"],
    ),
    (
        Way::Illegal,
        &["signal 4 (SIGILL): it came to an instruction at 0x"],
    ),
    (
        Way::Division,
        &["signal 8 (SIGFPE): it divided integers at 0x", "no result"],
    ),
    (Way::Overflow, &["it overflowed its stack"]),
    (Way::Abort, &["signal 6 (SIGABRT): it called abort"]),
    (Way::AbortInC, &["signal 6 (SIGABRT): it called abort"]),
    (
        Way::NestedPanic,
        &[
            "signal 6 (SIGABRT): it aborted after it panicked: the first at tests/crashes/kinds.rs:",
            "; then it panicked: the second at tests/crashes/kinds.rs:",
        ],
    ),
    (
        Way::CannotUnwind,
        &[
            "signal 6 (SIGABRT): it aborted after it panicked: out of C at tests/crashes/kinds.rs:",
            "cannot unwind",
        ],
    ),
    (Way::Exit, &["exited with code 3 in the middle of the task"]),
    (Way::Kill, &["was killed by signal 9 (SIGKILL)"]),
    (
        Way::Sent,
        &["signal 7 (SIGBUS): process ", " sent the signal"],
    ),
    (
        Way::PanicInDrop,
        &["panicked: the second at tests/crashes/kinds.rs:"],
    ),
    (
        Way::PanicWithNumber,
        &["panicked: a value that is not text"],
    ),
];

#[test]
fn b126_each_kind_of_death_is_told_by_its_error() {
    let name = "kinds::b126_each_kind_of_death_is_told_by_its_error";
    let _none = Leftovers::none();
    if !is_program() {
        // In a forked child, a panic that ends the process has the test harness print what it has
        // kept so far.
        let output = finish_within(&mut as_program(name), 2 * DEADLINE);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    for (name, pool) in pools() {
        for (way, parts) in SAYS {
            let error = pool.map(the_way_there, [way]).unwrap_err();
            let text = error.to_string();
            println!("{name}: {text}");
            assert!(text.starts_with("item 0 "), "{name}: {text}");
            for part in parts {
                assert!(
                    text.contains(part),
                    "{name}, {way:?}: {part} is not in: {text}"
                );
            }
            // It comes as it is from a task that has used a pool in turn.
            let json = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<TaskError>(&json).unwrap(), error);
        }
    }
}

#[test]
fn b112_a_crash_has_its_stack_with_the_names_of_functions() {
    let _none = Leftovers::none();
    for (name, pool) in pools() {
        for way in [
            Way::Nowhere,
            Way::BadCall,
            Way::ShortFile,
            Way::Division,
            Way::AbortInC,
        ] {
            let (crash, text) = crash(pool.submit(the_way_there, way).result());
            assert!(!text.contains('\n'), "{text}");
            let stack = crash.to_string();
            println!("{name}: {stack}");
            let (first, frames) = stack.split_once('\n').unwrap();
            assert!(
                text.contains(first.split(" (signal").next().unwrap()),
                "{first}"
            );
            assert!(
                frames.contains("the_way_there at "),
                "{name}, {way:?}: {stack}"
            );
            assert!(frames.contains("tests/crashes/kinds.rs:"), "{stack}");
            assert!(frames.contains("die at "), "{stack}");
            assert!(!frames.contains("manyhands::"), "{stack}");
            assert!(
                format!("{crash:#}").contains("manyhands::"),
                "all frames: {crash:#}"
            );
            let frames = &crash.frames;
            assert!(frames.len() > 4, "{frames:?}");
            if way != Way::AbortInC {
                assert_eq!(crash.instruction, Some(frames[0].address));
            }
            let program = std::env::current_exe().unwrap();
            let in_program = |file: Option<&str>| file == program.to_str();
            assert!(frames.iter().any(|frame| in_program(frame.file.as_deref())));
        }
    }
}

#[test]
fn b112_a_crash_has_its_signal_code_and_address() {
    let _none = Leftovers::none();
    for (name, pool) in pools() {
        let of = |way| crash(pool.submit(the_way_there, way).result()).0;
        let nowhere = of(Way::Nowhere);
        assert_eq!((nowhere.signal, nowhere.code), (libc::SIGSEGV, 1), "{name}");
        assert_eq!(
            (nowhere.address, nowhere.reason),
            (Some(8), CrashReason::Fault)
        );
        let call = of(Way::BadCall);
        assert_eq!(
            (call.address, call.instruction),
            (Some(64), Some(64)),
            "{name}"
        );
        assert_eq!(of(Way::NoAddress).address, None, "{name}");
        let illegal = of(Way::Illegal);
        assert_eq!(illegal.signal, libc::SIGILL);
        assert!(illegal.address.is_some() && illegal.address == illegal.instruction);
        assert_eq!(
            of(Way::Abort).reason,
            serde_json::from_str(r#"{"Aborted":{"said":null}}"#).unwrap()
        );
        let sent = of(Way::Sent);
        assert!(
            matches!(sent.reason, CrashReason::Sent { by, .. } if by > 0),
            "{sent:?}"
        );
        assert_eq!(sent.address, None);
    }
}

#[test]
fn b113_a_stack_that_overflows_is_named() {
    let _none = Leftovers::none();
    for (name, pool) in pools() {
        let outcome = pool.submit(the_way_there, Way::Overflow).result();
        let Err(TaskError::WorkerDied { cause, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        let (crash, text) = crash(outcome);
        assert!(text.contains("it overflowed its stack"), "{name}: {text}");
        assert_eq!(crash.reason, CrashReason::StackOverflow, "{name}");
        assert!(
            crash.to_string().contains("overflow at "),
            "{name}: {crash}"
        );
        assert_eq!(Some(crash.signal), cause.signal());
    }
}

#[test]
fn b113_a_crash_beside_a_stack_is_not_taken_for_its_overflow() {
    let _none = Leftovers::none();
    // What lies above the address can be written, as a stack above its guard.
    let beside = |()| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = libc::PROT_NONE;
        // SAFETY: it is a new mapping.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), 8_192, none, flags, -1, 0) };
        assert_ne!(guard, libc::MAP_FAILED);
        // SAFETY: the page is within the mapping.
        let above = unsafe { guard.byte_add(4_096) };
        // SAFETY: nothing uses the mapping.
        unsafe { libc::mprotect(above, 4_096, libc::PROT_READ | libc::PROT_WRITE) };
        write_to(above as usize - 8);
    };
    for (name, pool) in pools() {
        let (crash, _) = crash(pool.submit(beside, ()).result());
        assert_eq!(crash.reason, CrashReason::Fault, "{name}: {crash}");
    }
}

#[test]
fn b126_a_worker_without_memory_under_its_limit_is_named() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1).memory_limit(64 << 20);
    let pool = builder.build().unwrap();
    let take = |bytes: usize| vec![1_u8; bytes].len();
    let error = pool.map(take, [1 << 30]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("out of memory under its limit of 67108864 bytes"),
        "{text}"
    );
    // Other aborts of such a worker are told as those of any other.
    let (crash, _) = crash(pool.submit(the_way_there, Way::Abort).result());
    assert_eq!(crash.signal, libc::SIGABRT);
}

#[test]
fn b126_a_worker_that_writes_over_its_lane_is_named() {
    let _none = Leftovers::none();
    let spoil = |()| {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        for line in maps.lines().filter(|line| line.contains("memfd:manyhands")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
            // The rings of a lane come after a page; a doorbell has no more than a page.
            for at in (start + 4_096..end).step_by(8) {
                write_to(at);
            }
        }
    };
    for (name, pool) in [
        ("spawned", Pool::processes(1).unwrap().into()),
        ("forked", Pool::<AnyEngine>::from(forked())),
    ] {
        let error = pool.map(spoil, [()]).unwrap_err();
        let text = error.to_string();
        println!("{name}: {text}");
        assert!(
            text.contains("wrote what cannot be right and was killed")
                || text.contains("had corrupted the memory that it shares with its parent"),
            "{name}: {text}"
        );
    }
}

/// A control group with a limit of memory.
struct Group(PathBuf);

impl Group {
    /// Makes one where the system allows it.
    fn new(bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let folder = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let is_it = controllers.split(',').any(|name| name == "memory");
            is_it.then(|| format!("/sys/fs/cgroup/memory{path}"))
        });
        let folder = PathBuf::from(folder.unwrap_or_else(|| "/sys/fs/cgroup".to_owned()));
        let folder = folder.join(format!("manyhands-crashes-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&folder) {
            println!("no control groups here: {error}");
            return None;
        }
        let group = Self(folder);
        let set = |file: &str| fs::write(group.0.join(file), bytes.to_string());
        if let Err(error) = set("memory.limit_in_bytes").or_else(|_| set("memory.max")) {
            println!("no limits of control groups here: {error}");
            return None;
        }
        Some(group)
    }

    /// Has a program begin in the group.
    fn hold<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        use std::os::unix::process::CommandExt;
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

#[test]
fn b125_a_worker_that_the_kernel_kills_for_its_control_groups_memory_is_named() {
    let name = "kinds::b125_a_worker_that_the_kernel_kills_for_its_control_groups_memory_is_named";
    if !is_program() {
        let _none = Leftovers::none();
        // Where there are none, the counters are made up: src/os/memory_kills.rs.
        if let Some(group) = Group::new(200 << 20) {
            let output = finish(group.hold(&mut as_program(name)));
            assert!(output.status.success(), "{output:?}");
        }
        return;
    }
    for (name, pool) in [
        ("spawned", Pool::processes(1).unwrap().into()),
        ("forked", Pool::<AnyEngine>::from(forked())),
    ] {
        let take = |bytes: usize| vec![1_u8; bytes].len();
        for _ in 0..2 {
            let (crash, text) = crash(pool.submit(take, 1 << 30).result());
            println!("{name}: {text}");
            assert_eq!(
                crash.reason,
                serde_json::from_str(r#"{"OutOfMemory":{"limit":209715200}}"#).unwrap()
            );
            assert!(
                text.contains("signal 9 (SIGKILL): the kernel killed it for memory"),
                "{text}"
            );
            assert!(text.contains("209715200 bytes"), "{text}");
        }
        // A worker that was killed otherwise is not.
        let error = pool.submit(the_way_there, Way::Kill).result().unwrap_err();
        assert!(
            matches!(error, TaskError::WorkerDied { crash: None, .. }),
            "{error:?}"
        );
    }
}
