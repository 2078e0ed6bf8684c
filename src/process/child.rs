//! The child's side: what a child does from its start to its end.

use std::io;
use std::os::fd::AsFd;

use super::launch::{CANNOT_BEGIN, Role, receive_greeting};
use super::start_request::StartRequest;
use super::{entry, outcome};
use crate::memory::member;
use crate::os::fork::{self, Original};
use crate::os::{handoff, worker as own};
use crate::panic;

/// The role of a single child.
pub(crate) const CHILD: Role = Role {
    magic: *b"manyproc",
    begin: || become_process(),
};

/// Exit code of a child whose function panicked: the code of a Rust program that panics.
const PANICKED: i32 = 101;

/// Runs the function that the greeting on standard input asks for, and ends.
fn become_process() -> ! {
    let code = match panic::catch(begin) {
        Ok(Ok(request)) => run(request),
        Ok(Err(error)) => {
            outcome::complain(&format_args!("it could not begin: {error}"));
            CANNOT_BEGIN
        }
        // The panic hook has printed the panic.
        Err(_) => CANNOT_BEGIN,
    };
    // Flushes standard output, and waits for the children of this process.
    std::process::exit(code)
}

/// Takes the greeting and the start request, and sets this process up as they say.
fn begin() -> io::Result<StartRequest> {
    // The parent's pid is not used: the life line, below, says whether the parent lives.
    let (length, [request, stdin], _parent) = receive_greeting()?;
    let request = StartRequest::open(&request, length)?;
    let life_line = own::take_stdin()?;
    // Not PR_SET_PDEATHSIG: that is about the thread which started this process, and that thread
    // may end before the parent does.
    fork::die_when_closed(life_line.as_fd())?;
    // If the parent has died before that, the kernel sends no signal.
    if handoff::is_closed(&life_line) {
        return Err(io::Error::other("the parent has died"));
    }
    // The life line stays open as long as the process lives.
    std::mem::forget(life_line);
    own::set_stdin(stdin)?;
    own::set_signals()?;
    request.head.origin.clone().arrive();
    if let Some(place) = request.head.member {
        member::arrive(place).map_err(io::Error::other)?;
    }
    own::set_name(super::identity::current().name());
    Ok(request)
}

fn run(request: StartRequest) -> i32 {
    let original = Original::here();
    let ran = panic::catch(|| match entry::find(request.head.entry) {
        Some(entry) => entry(request),
        None => Err("the executable does not have its function".to_owned()),
    });
    // A copy of the child that the function has forked ends here: only the child itself reports the
    // outcome.
    original.end_copy_after(&ran);
    match ran {
        Ok(Ok(code)) => code,
        Ok(Err(reason)) => {
            outcome::complain(&reason);
            CANNOT_BEGIN
        }
        // The panic hook has printed the panic.
        Err(_) => PANICKED,
    }
}
