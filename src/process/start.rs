//! The start of a child process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry::{self, Entry};
use super::identity::{self, Origin};
use super::launch::{self, Launch};
use super::spawned::Spawned;
use super::start_request::{self, Head};
use super::{Process, ProcessBuilder, Stdio, Termination, child, registry};
use crate::call::{closure, code};
use crate::error::PoolError;
use crate::memory::member::Expected;
use crate::memory::transit;
use crate::os::start::Stream;
use crate::{codec, panic};

/// The most bytes of a name that go into an error.
const LONGEST_NAME: usize = 256;

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
    builder: ProcessBuilder,
    f: &F,
    argument: &A,
) -> Result<Process, PoolError>
where
    F: Fn(A) -> T,
    A: Serialize + DeserializeOwned + 'static,
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
    for (name, value) in &builder.environment {
        launch::check_variable(name, value)?;
    }
    let name = name(builder.name.as_deref());
    let failed = |reason: String| PoolError::ProcessFailed {
        name: name[..name.floor_char_boundary(LONGEST_NAME)].to_owned(),
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
    let spawned = start(&name, builder, work).map_err(|error| failed(error.to_string()))?;
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

fn start(name: &str, builder: ProcessBuilder, work: Work) -> io::Result<Spawned> {
    let head = Head {
        origin: Origin::of_child(name.to_owned()),
        entry: work.entry,
        reconstruct: work.reconstruct,
        member: work.member.as_ref().map(Expected::place),
        captures: work.captures.len() as u64,
    };
    let (request, length) = start_request::pack(&head, &work.captures, &work.argument)?;
    let launch = Launch {
        name: &format!("manyhands:{name}"),
        variables: builder.environment,
        stdout: builder.stdout.into(),
        stderr: builder.stderr.into(),
    };
    let stdin = stdin(builder.stdin)?;
    let (child, life_line) =
        launch.launch(child::CHILD, &length, &[request.as_fd(), stdin.as_fd()])?;
    if let Some(member) = work.member {
        member.settle(child.pid());
    }
    Ok(Spawned::new(
        name.to_owned(),
        child,
        builder.is_daemon,
        life_line,
    ))
}

/// Returns what the child gets as standard input, after it has read its greeting from there.
fn stdin(stdin: Stdio) -> io::Result<OwnedFd> {
    match stdin {
        Stdio::Inherit => io::stdin().as_fd().try_clone_to_owned(),
        Stdio::Null => Ok(File::open("/dev/null")?.into()),
        Stdio::Fd(fd) => Ok(fd),
    }
}

impl From<Stdio> for Stream {
    fn from(stdio: Stdio) -> Self {
        match stdio {
            Stdio::Inherit => Self::Inherit,
            Stdio::Null => Self::Null,
            Stdio::Fd(fd) => Self::Fd(fd),
        }
    }
}
