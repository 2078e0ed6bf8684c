//! What a child and its parent are told of each other: names, streams, errors, and an end that
//! the system keeps to itself.

use std::collections::HashSet;
use std::io::{self, Write};
use std::process::Stdio as Streams;

use manyhands::prelude::*;
use manyhands::process::{
    self, ExitStatus, ProcessBuilder, ProcessError, ProcessInfo, Stdio, Termination,
};
use manyhands::{Portable, closure};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::common::errors::too_deep;
use crate::common::{Leftovers, as_program, finish, is_program};
use crate::{output_of, patient, printed_by};

/// How a child ends, and what it says on standard error.
fn end_of<F, A, T>(builder: ProcessBuilder, f: F, argument: A) -> (ExitStatus, String)
where
    F: Fn(A) -> T + Portable,
    A: Serialize + DeserializeOwned + 'static,
    T: Termination,
{
    let (reader, writer) = io::pipe().unwrap();
    let child = builder.stderr(writer).spawn(f, argument).unwrap();
    let errors = io::read_to_string(reader).unwrap();
    (child.join().unwrap(), errors)
}

#[test]
fn an_error_is_told_with_the_name_of_its_child_however_deep_it_lies() {
    type Nested = Result<Result<(), String>, String>;
    let _none = Leftovers::none();
    let named = || Process::builder().name("render");
    let nested = |outcome: Nested| outcome;
    let failed = |reason: &str| {
        let said = format!("manyhands: process render: {reason}\n");
        (ExitStatus::Exit(1), said)
    };
    let ended = |outcome: Nested| end_of(named(), nested, outcome);
    assert_eq!(ended(Ok(Ok(()))), (ExitStatus::Exit(0), String::new()));
    assert_eq!(ended(Ok(Err("inner".to_owned()))), failed("inner"));
    assert_eq!(ended(Err("outer".to_owned())), failed("outer"));
}

#[test]
fn a_byte_is_an_exit_code() {
    type Code = Result<u8, String>;
    let _none = Leftovers::none();
    let silent = |code| (ExitStatus::Exit(code), String::new());
    let ends = |code: u8| end_of(Process::builder(), |code: u8| code, code);
    assert_eq!([ends(0), ends(7), ends(255)], [0, 7, 255].map(silent));
    let nested = |code: Code| end_of(Process::builder(), |code: Code| code, code);
    assert_eq!(nested(Ok(7)), silent(7));
    assert_eq!(nested(Err("no".to_owned())).0, ExitStatus::Exit(1));
    // A literal is one too.
    assert_eq!(end_of(Process::builder(), |()| 8, ()), silent(8));
}

#[test]
fn an_identity_crosses_to_another_process() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let tell = |parent: ProcessInfo| {
        let is_parent = process::parent() == Some(parent.clone()) && parent.is_alive();
        (is_parent, process::current())
    };
    let (is_parent, worker) = pool.submit(tell, process::current()).result().unwrap();
    assert!(is_parent);
    assert_ne!(worker.pid(), std::process::id());
    // This process is not its child.
    assert!(!worker.is_alive());
    let all = HashSet::from([worker.clone(), process::current(), worker]);
    assert_eq!(all.len(), 2);
}

/// What goes wrong with a value.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
enum Fault {
    WriteFails,
    WritePanics,
    ReadFails,
}

#[derive(Clone, Debug)]
struct Faulty(Fault);

impl Serialize for Faulty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Fault::WriteFails => Err(serde::ser::Error::custom("is not told")),
            Fault::WritePanics => panic!("does not like to be asked"),
            fault @ Fault::ReadFails => fault.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Faulty {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Fault::deserialize(input)?;
        Err(serde::de::Error::custom("cannot be read"))
    }
}

#[test]
fn what_a_function_captures_or_takes_and_does_not_cross_is_a_clear_error() {
    let _none = Leftovers::none();
    let spy = || Process::builder().name("spy");
    let reason = |spawned: Result<Process, ProcessError>| match spawned {
        Err(ProcessError::SpawnFailed { name, reason, .. }) => {
            assert_eq!(name, "spy");
            reason
        }
        other => panic!("{other:?}"),
    };
    let captures = |fault| {
        let faulty = Faulty(fault);
        closure!([faulty] | () | assert_eq!(faulty.0, Fault::ReadFails))
    };
    let refused = reason(spy().spawn(captures(Fault::WriteFails), ()));
    assert!(refused.contains("is not told"), "{refused}");
    let refused = reason(spy().spawn(captures(Fault::WritePanics), ()));
    assert!(refused.contains("does not like to be asked"), "{refused}");
    let (status, errors) = end_of(spy(), captures(Fault::ReadFails), ());
    assert_eq!(status, ExitStatus::Exit(97));
    assert_eq!(
        errors,
        "manyhands: process spy: what its function captures cannot be deserialised: cannot be read\n"
    );
    // The same for the argument.
    let refused = reason(spy().spawn(|_: Faulty| {}, Faulty(Fault::WritePanics)));
    assert_eq!(
        refused,
        "its argument cannot be serialised: its Serialize panicked: does not like to be asked"
    );
}

#[test]
fn a_child_has_exactly_the_environment_that_its_builder_says() {
    fn variables((): ()) {
        for (name, value) in std::env::vars() {
            println!("{name}={value}");
        }
    }
    let _none = Leftovers::none();
    let said = |builder| {
        let (text, status) = printed_by(builder, variables, ());
        assert!(status.success());
        text
    };
    let two = [("MANYHANDS_A", "a"), ("MANYHANDS_B", "b")];
    let builder = || Process::builder().envs(two);
    let text = said(builder());
    assert!(text.contains("MANYHANDS_A=a\nMANYHANDS_B=b\n"), "{text}");
    assert!(text.contains("PATH="), "{text}");
    let text = said(builder().env_remove("MANYHANDS_A").env_remove("PATH"));
    assert!(!text.contains("MANYHANDS_A="), "{text}");
    assert!(
        !text.lines().any(|line| line.starts_with("PATH=")),
        "{text}"
    );
    assert!(text.contains("MANYHANDS_B=b\n"), "{text}");
    let text = said(builder().env_remove("MANYHANDS_A").env("MANYHANDS_A", "c"));
    assert!(text.contains("MANYHANDS_A=c\n"), "{text}");
    // The child finds its greeting all the same, and its own child too.
    let cleared = || builder().env_clear().env("MANYHANDS_C", "c");
    let without_mark = |text: &str| {
        let is_mark = |line: &&str| line.starts_with("MANYHANDS_TREE=");
        assert_eq!(text.lines().filter(is_mark).count(), 1, "{text}");
        let lines: Vec<_> = text.lines().filter(|line| !is_mark(line)).collect();
        lines.join("\n")
    };
    assert_eq!(without_mark(&said(cleared())), "MANYHANDS_C=c");
    let hostile = cleared().env_remove("MANYHANDS_WORKER");
    assert_eq!(without_mark(&said(hostile)), "MANYHANDS_C=c");
    let nested = |()| Process::spawn(variables, ()).unwrap().join().unwrap();
    let nested = move |()| assert!(nested(()).success());
    let (text, status) = printed_by(cleared(), nested, ());
    assert_eq!(
        (without_mark(&text).as_str(), status),
        ("MANYHANDS_C=c", ExitStatus::Exit(0))
    );
    let refused = Process::builder().env_remove("A=B").spawn(|()| {}, ());
    let Err(ProcessError::InvalidOption { option, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(option, "env_remove");
}

#[test]
fn a_name_becomes_one_that_a_program_can_have() {
    let _none = Leftovers::none();
    let say = |()| print!("{}", process::current().name());
    let (text, status) = printed_by(Process::builder().name("a\0b"), say, ());
    assert_eq!((&*text, status.success()), ("a b", true));
    let child = Process::builder().name("a\0b").spawn(|()| {}, ()).unwrap();
    assert_eq!(child.name(), "a b");
    assert!(child.join().unwrap().success());
}

#[test]
fn a_process_that_was_forked_twice_knows_from_whom() {
    let _none = Leftovers::none();
    let family = || {
        let (this, parent) = (process::current(), process::parent().unwrap());
        assert_eq!(this.pid(), std::process::id());
        assert!(parent.is_alive());
        (
            this.name().to_owned(),
            parent.name().to_owned(),
            parent.pid(),
        )
    };
    let forked = || {
        Forked::builder()
            .workers(1)
            .allow_threads(true)
            .build()
            .unwrap()
    };
    let nest = move |()| {
        let inner = forked().submit(move |()| family(), ()).result().unwrap();
        (family(), std::process::id(), inner)
    };
    let (outer, pid, inner) = forked().submit(nest, ()).result().unwrap();
    let main = std::process::id();
    assert_eq!(outer, ("main:forked".into(), "main".into(), main));
    let inner_name = "main:forked:forked".to_owned();
    assert_eq!(inner, (inner_name, "main:forked".into(), pid));
}

#[test]
fn an_endless_recursion_of_forked_children_is_refused() {
    fn descend(level: u32) -> (u32, bool) {
        let builder = Forked::builder().workers(1).allow_threads(true);
        let pool = builder.build().unwrap();
        let deeper = if level.is_multiple_of(2) {
            pool.submit(descend, level + 1).result()
        } else {
            pool.map(descend, [level + 1])
                .map(|mut told| told.remove(0))
        };
        deeper.unwrap_or_else(|error| {
            let is_too_deep = error == too_deep(16).into();
            // A single child is refused as well.
            let child = Process::spawn(|()| {}, ()).map(drop);
            let is_refused = matches!(child, Err(ProcessError::TooDeep { limit: 16, .. }));
            (level, is_too_deep && is_refused)
        })
    }
    let _none = Leftovers::none();
    assert_eq!(descend(0), (16, true));
}

#[test]
fn each_stream_goes_where_its_builder_says() {
    let name = "told::each_stream_goes_where_its_builder_says";
    let _none = Leftovers::none();
    let say = |word: String| {
        print!("[out {word}]");
        eprint!("[error {word}]");
    };
    if is_program() {
        let run = |builder: ProcessBuilder, word: &str| {
            let child = builder.spawn(say, word.to_owned()).unwrap();
            assert!(child.join().unwrap().success());
        };
        run(Process::builder().stdout(Stdio::null()), "one");
        run(Process::builder().stderr(Stdio::null()), "two");
        let inherit = Process::builder().stdout(Stdio::inherit());
        run(inherit.stderr(Stdio::inherit()), "three");
        return;
    }
    let (stdout, stderr) = output_of(as_program(name).stdin(Streams::null()));
    let told = |text: &str, stream: &str| {
        let words = ["one", "two", "three"];
        words.map(|word| text.contains(&format!("[{stream} {word}]")))
    };
    assert_eq!(told(&stdout, "out"), [false, true, true], "{stdout}");
    assert_eq!(told(&stderr, "error"), [true, false, true], "{stderr}");
}

#[test]
fn a_function_for_lines_is_refused_and_the_way_out_is_told() {
    let _none = Leftovers::none();
    let lines = || Stdio::lines(|_, _| unreachable!("no child prints"));
    for (stream, builder) in [
        ("stdin", Process::builder().stdin(lines())),
        ("stdout", Process::builder().stdout(lines())),
        ("stderr", Process::builder().stderr(lines())),
    ] {
        let refused = builder.spawn(|()| {}, ());
        let Err(ProcessError::InvalidOption { option, reason, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(option, stream);
        assert!(reason.contains("std::io::pipe"), "{reason}");
    }
}

#[test]
fn clones_of_a_builder_start_children_with_the_same_options() {
    let _none = Leftovers::none();
    let (reader, writer) = io::pipe().unwrap();
    let builder = Process::builder().env("MANYHANDS_A", "a").stdout(writer);
    let say = |word: String| print!("{word}{} ", std::env::var("MANYHANDS_A").unwrap());
    let first = builder.clone().spawn(say, "first ".to_owned()).unwrap();
    assert!(first.join().unwrap().success());
    let second = builder.spawn(say, "second ".to_owned()).unwrap();
    // The end comes, because no builder is left.
    assert_eq!(io::read_to_string(reader).unwrap(), "first a second a ");
    assert!(second.join().unwrap().success());
}

#[test]
fn an_end_that_the_system_keeps_to_itself_is_unknown() {
    let name = "told::an_end_that_the_system_keeps_to_itself_is_unknown";
    let _none = Leftovers::none();
    if !is_program() {
        let output = finish(&mut as_program(name));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        return;
    }
    // From now on no process hears how a child has ended.
    // SAFETY: no handler is involved.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
    let (child, writer) = patient();
    assert_eq!((child.is_alive(), child.exit_status()), (true, None));
    drop(writer);
    let status = child.join().unwrap();
    assert_eq!(status, ExitStatus::Unknown);
    assert_eq!(
        (status.success(), status.code(), status.signal()),
        (false, None, None)
    );
    assert!(status.to_string().contains("took its exit status"));
    assert!(!child.is_alive());
    assert_eq!((child.terminate(), child.kill()), (Ok(()), Ok(())));
    io::stdout().flush().unwrap();
}
