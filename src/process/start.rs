//! The start of a child process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::child::Greeting;
use super::entry::{self, Entry};
use super::identity::{self, Origin};
use super::launch::{self, Launch};
use super::logs::{ForChildren, Logs};
use super::spawned::Spawned;
use super::start_request::{self, Head};
use super::traces::Tracer;
use super::{Process, ProcessBuilder, Stdio, Termination, child, registry, tree};
use crate::call::portable::PortableValue;
use crate::call::{closure, code};
use crate::error::ProcessError;
use crate::lane::Lane;
use crate::memory::member::Expected;
use crate::memory::transit;
use crate::os::fork::PerProcess;
use crate::os::memory_kills;
use crate::{codec, panic};

/// The part of a start request that the function and the argument determine.
struct Work {
    entry: u64,
    reconstruct: Option<u64>,
    captures: Vec<u8>,
    argument: Vec<u8>,
    /// The family member that holds the shared objects of which there are handles in these bytes.
    member: Option<Expected>,
}

/// Starts a child that runs `f` on `argument`.
pub(super) fn spawn<F, A, T>(
    builder: &ProcessBuilder,
    f: &F,
    argument: &A,
) -> Result<Process, ProcessError>
where
    F: Fn(A) -> T,
    A: PortableValue + 'static,
    T: Termination,
{
    const {
        assert!(
            closure::is_portable::<F>(),
            "the function of a child process must not capture variables: nothing of this process is in it. Two ways \
             out: (1) put them into the argument, which may be a tuple; (2) closure!([names] |argument: Type| ...) \
             sends the named variables along. (A function pointer counts as a captured variable: pass the function \
             by its name.)"
        );
    }
    launch::check()?;
    launch::check_environment(&builder.environment)?;
    check_streams(builder)?;
    let name = name(builder.name.as_deref());
    let failed = |reason: String| ProcessError::SpawnFailed {
        name: identity::cut(&name).to_owned(),
        reason,
    };
    let (encoded, member) = transit::grant(|| Ok((captures(f)?, encode(argument)?)));
    let ((reconstruct, captures), argument) = encoded.map_err(failed)?;
    let work = Work {
        entry: code::number(entry::enter::<F, A, T> as Entry as usize)?,
        reconstruct: reconstruct.map(code::number).transpose()?,
        captures,
        argument,
        member,
    };
    let spawned = start(&name, builder, work).map_err(|error| failed(error.to_string()));
    tree::settle();
    let spawned = spawned?;
    let spawned = Arc::new(spawned);
    registry::add(spawned.clone());
    Ok(Process::of(spawned))
}

fn name(given: Option<&str>) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    if let Some(name) = given {
        // The name becomes an argument of a program, which ends at a NUL.
        return name.replace('\0', " ");
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    if identity::depth() == 0 {
        format!("process{number}")
    } else {
        format!("{}:{number}", identity::name())
    }
}

/// Returns what the function takes along, and the address of the function that reconstructs it from
/// that.
fn captures<F>(f: &F) -> Result<(Option<usize>, Vec<u8>), String> {
    if size_of::<F>() == 0 {
        return Ok((None, Vec::new()));
    }
    let sendable = closure::sendable(f).map_err(|error| error.to_string())?;
    Ok((Some(sendable.reconstruct as usize), sendable.context))
}

fn encode<A: Serialize + 'static>(argument: &A) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let reason = match panic::catch(|| codec::append(&mut bytes, argument)) {
        Ok(Ok(())) => return Ok(bytes),
        Ok(Err(reason)) => reason,
        Err(caught) => format!("its Serialize panicked: {}", caught.message),
    };
    Err(format!("its argument cannot be serialised: {reason}"))
}

fn start(name: &str, builder: &ProcessBuilder, work: Work) -> io::Result<Spawned> {
    let head = Head {
        origin: Origin::of_child(name.to_owned()),
        entry: work.entry,
        reconstruct: work.reconstruct,
        member: work.member.as_ref().map(Expected::place),
        captures: work.captures.len() as u64,
    };
    let (request, length) = start_request::pack(&head, &work.captures, &work.argument)?;
    let is_asked = builder.kills_descendants;
    let entry = is_asked.then(|| tree::enlist(false)).flatten();
    let mut environment = builder.environment.clone();
    tree::mark(&mut environment, entry.as_ref());
    let tracer = Tracer::here();
    let are_forwarded = Logs::are_forwarded(builder.logs, &tracer);
    let logs = are_forwarded.then(ForChildren::own).transpose()?;
    let (lane, lane_fd) = Lane::new_child(are_forwarded)?;
    kills_until_now();
    let greeting = Greeting {
        length,
        log_level: are_forwarded.then(|| log::max_level() as u8),
        trace_level: tracer.level(),
    };
    let launch = Launch {
        name: &format!("manyhands:{name}"),
        environment,
        stdout: builder.stdout.stream()?.0,
        stderr: builder.stderr.stream()?.0,
        blocked: &[],
    };
    let stdin = stdin(&builder.stdin)?;
    let mut fds = vec![request.as_fd(), stdin.as_fd(), lane_fd.as_fd()];
    fds.extend(logs.map(ForChildren::bell));
    let (child, life_line) = launch.launch(child::CHILD, &greeting, &fds)?;
    let logs = logs.map(|logs| logs.attach(name, child.pid(), &lane, &tracer));
    if let Some(member) = work.member {
        member.settle(child.pid());
    }
    Ok(Spawned::new(
        name.to_owned(),
        child.with_tree(entry),
        builder.is_daemon,
        life_line,
        (lane, logs),
    ))
}

/// Counts the kernel's kills for memory before the first child as none of a child's.
fn kills_until_now() {
    static BEGUN: PerProcess<OnceLock<()>> = PerProcess::new(OnceLock::new());
    BEGUN.own().get_or_init(memory_kills::begin);
}

/// Returns what the child gets as standard input, after it has read its greeting from there.
fn stdin(stdin: &Stdio) -> io::Result<OwnedFd> {
    match stdin.stream()?.0.into_fd()? {
        Some(fd) => Ok(fd),
        None => io::stdin().as_fd().try_clone_to_owned(),
    }
}

/// Checks that a single child can have these streams.
fn check_streams(builder: &ProcessBuilder) -> Result<(), ProcessError> {
    for (option, stdio) in [
        ("stdin", &builder.stdin),
        ("stdout", &builder.stdout),
        ("stderr", &builder.stderr),
    ] {
        if stdio.callback().is_some() {
            return Err(ProcessError::InvalidOption {
                option: option.into(),
                value: "Stdio::lines".to_owned(),
                reason: "only a pool has a thread that reads lines; give the child the writer of std::io::pipe(), and read \
                         the lines from the reader"
                    .into(),
            });
        }
    }
    Ok(())
}
