//! How a child has failed, as [`Process::result`] says it. Behaviour 138.

use manyhands::error::CrashReason;
use manyhands::prelude::*;
use manyhands::process::{ExitStatus, ProcessError, Stdio};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::common::Leftovers;
use crate::idle;

fn quiet(name: &str) -> manyhands::process::ProcessBuilder {
    Process::builder().name(name).stderr(Stdio::null())
}

/// The parts of a failure that is no panic.
#[track_caller]
fn parts(child: &Process) -> (ExitStatus, Option<String>, Option<manyhands::error::Crash>) {
    let error = child.result().unwrap_err();
    // It stays the same.
    assert_eq!(child.result().unwrap_err(), error);
    let start = format!(
        "the process {} (pid {}) failed: it ",
        child.name(),
        child.pid()
    );
    assert!(error.to_string().starts_with(&start), "{error}");
    match error {
        ProcessError::Failed {
            name,
            pid,
            status,
            reason,
            crash,
            ..
        } => {
            assert_eq!((name.as_str(), pid), (child.name(), child.pid()));
            assert_eq!(child.exit_status(), Some(status));
            (status, reason.map(String::from), crash.map(|crash| *crash))
        }
        other => panic!("{other:?}"),
    }
}

#[inline(never)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "the argument moves into the child"
)]
fn panics_here(text: String) {
    assert!(std::hint::black_box(false), "{text}");
}

#[test]
fn b138_a_panic_comes_with_its_place_and_its_backtrace() {
    let _none = Leftovers::none();
    for (value, has_backtrace) in [("1", true), ("0", false)] {
        let builder = quiet("panics")
            .env("RUST_BACKTRACE", value)
            .env("RUST_LIB_BACKTRACE", value);
        let child = builder
            .spawn(panics_here, "no such index".to_owned())
            .unwrap();
        let error = child.result().unwrap_err();
        let text = error.to_string();
        let pid = child.pid();
        let start =
            format!("the process panics (pid {pid}) failed: it panicked: no such index at ");
        assert!(text.starts_with(&start), "{text}");
        assert_eq!(PoolError::from(error.clone()).to_string(), text);
        let ProcessError::Panicked {
            message,
            location,
            backtrace,
            ..
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(message, "no such index");
        assert!(location.unwrap().file.ends_with("failures.rs"));
        assert_eq!(backtrace.is_some(), has_backtrace);
        if let Some(backtrace) = backtrace {
            assert!(backtrace.contains("panics_here"), "{backtrace}");
        }
        assert_eq!(child.exit_status(), Some(ExitStatus::Exit(101)));
    }
}

#[test]
fn b138_a_panic_is_printed_with_the_name_of_its_child() {
    let _none = Leftovers::none();
    let (reader, writer) = std::io::pipe().unwrap();
    let builder = Process::builder().name("render").stderr(writer);
    let child = builder.spawn(panics_here, "so it is".to_owned()).unwrap();
    let text = std::io::read_to_string(reader).unwrap();
    assert!(text.starts_with("\nthread 'render' ("), "{text}");
    assert!(child.result().is_err());
}

#[test]
fn b138_what_a_function_returns_or_exits_with_is_told() {
    let _none = Leftovers::none();
    let fails = |text: String| -> Result<(), String> { Err(text) };
    let child = quiet("fails")
        .spawn(fails, "no such file".to_owned())
        .unwrap();
    let said = Some("no such file".to_owned());
    assert_eq!(parts(&child), (ExitStatus::Exit(1), said, None));
    assert!(
        child
            .result()
            .unwrap_err()
            .to_string()
            .ends_with("it exited with code 1: no such file")
    );
    // A text that is too long is cut.
    let child = quiet("fails").spawn(fails, "x".repeat(100_000)).unwrap();
    let (_, said, _) = parts(&child);
    assert_eq!(said.unwrap(), "x".repeat(4_096) + " [cut]");
    let child = quiet("exits")
        .spawn(|code: i32| std::process::exit(code), 3)
        .unwrap();
    assert_eq!(parts(&child), (ExitStatus::Exit(3), None, None));
    let child = quiet("code").spawn(|code: u8| code, 4).unwrap();
    assert_eq!(parts(&child), (ExitStatus::Exit(4), None, None));
    let child = quiet("well").spawn(|code: u8| code, 0).unwrap();
    assert_eq!(child.result(), Ok(()));
}

/// A value that cannot be read again.
struct OneWay;

impl Serialize for OneWay {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("one way only"))
    }
}

#[test]
fn b138_why_a_function_cannot_run_is_told() {
    let _none = Leftovers::none();
    let child = quiet("never").spawn(|_: OneWay| (), OneWay).unwrap();
    let (status, said, crash) = parts(&child);
    assert_eq!((status, crash), (ExitStatus::Exit(97), None));
    let said = said.unwrap();
    assert!(
        said.contains("its argument cannot be deserialised: one way only"),
        "{said}"
    );
}

#[inline(never)]
fn writes_nowhere(address: usize) {
    let target = std::ptr::with_exposed_provenance_mut::<u64>(std::hint::black_box(address));
    // SAFETY: none. The crash is what the test is about.
    unsafe { target.write_volatile(1) };
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    if depth == u64::MAX {
        0
    } else {
        overflow(depth + 1) + frame[1]
    }
}

#[test]
fn b138_a_crash_comes_with_its_address_and_its_stack() {
    let _none = Leftovers::none();
    let child = quiet("crashes").spawn(writes_nowhere, 8).unwrap();
    let (status, said, crash) = parts(&child);
    assert_eq!((status, said), (ExitStatus::Signal(11), None));
    let crash = crash.unwrap();
    assert_eq!((crash.signal, crash.address), (11, Some(8)));
    assert_eq!(crash.reason, CrashReason::Fault);
    let text = child.result().unwrap_err().to_string();
    let end = "it was killed by signal 11 (SIGSEGV): it used address 0x8, where nothing is mapped";
    assert!(text.ends_with(end), "{text}");
    if cfg!(all(target_arch = "x86_64", feature = "symbols")) {
        assert!(crash.to_string().contains("writes_nowhere"), "{crash}");
    }

    let child = quiet("overflows")
        .spawn(|x: u64| assert!(overflow(x) < u64::MAX), 1)
        .unwrap();
    assert_eq!(parts(&child).2.unwrap().reason, CrashReason::StackOverflow);

    let child = quiet("aborts")
        .spawn(|()| std::process::abort(), ())
        .unwrap();
    let (status, _, crash) = parts(&child);
    assert_eq!(status, ExitStatus::Signal(6));
    assert!(matches!(
        crash.unwrap().reason,
        CrashReason::Aborted { said: None, .. }
    ));

    // A panic that cannot unwind.
    let odd = |()| {
        struct Fuse;
        impl Drop for Fuse {
            fn drop(&mut self) {
                panic!("the second");
            }
        }
        let _fuse = Fuse;
        panic!("the first");
    };
    let child = quiet("panics twice").spawn(odd, ()).unwrap();
    let CrashReason::Aborted {
        said: Some(said), ..
    } = parts(&child).2.unwrap().reason
    else {
        panic!("{:?}", child.result())
    };
    assert!(
        said.contains("the first") && said.contains("the second"),
        "{said}"
    );
}

#[test]
fn b138_a_child_that_was_killed_has_no_crash() {
    let _none = Leftovers::none();
    for (name, signal) in [("killed", 9), ("terminated", 15)] {
        let child = quiet(name).spawn(idle, ()).unwrap();
        if signal == 9 {
            child.kill().unwrap();
        } else {
            child.terminate().unwrap();
        }
        assert_eq!(parts(&child), (ExitStatus::Signal(signal), None, None));
    }
}
