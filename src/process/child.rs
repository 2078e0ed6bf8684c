//! The child's side: what a child does from its start to its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::launch::{CANNOT_BEGIN, Role, receive_greeting_with};
use super::start_request::StartRequest;
use super::{entry, outcome};
use crate::call::{logs, traces};
use crate::lane::bell::Ringer;
use crate::lane::ended::{self, Ended};
use crate::lane::{Lane, crash_report};
use crate::memory::member;
use crate::os::fork::{self, Original};
use crate::os::{handoff, worker as own};
use crate::panic;

/// What a child is told in its greeting. With it come the start request, the standard input, the
/// lane and, if the log records are forwarded, the bell for them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// The length of the start request.
    pub(super) length: u64,
    /// Up to which level the log records go to the parent, if they do: the number of a
    /// [`LevelFilter`](log::LevelFilter).
    pub(super) log_level: Option<u8>,
    /// Up to which level its events of `tracing` do, then too; 0 for none.
    pub(super) trace_level: u8,
}

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
    let count = |greeting: &Greeting| 3 + usize::from(greeting.log_level.is_some());
    let (greeting, fds, _parent) = receive_greeting_with(count)?;
    let mut fds = fds.into_iter();
    let (Some(request), Some(stdin), Some(lane), bell) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(io::Error::other(
            "the greeting came without its descriptors",
        ));
    };
    let request = StartRequest::open(&request, greeting.length)?;
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
    let this = super::identity::current();
    own::set_name(this.name());
    panic::install_hook();
    panic::name_this_thread(this.name());
    let level = greeting.log_level;
    let log = bell.zip(level);
    set_lane(&lane, log)?;
    if level.is_some() {
        traces::install(greeting.trace_level);
    }
    Ok(request)
}

/// Has this process tell its parent of its end, and of what it logs.
fn set_lane(lane: &OwnedFd, log: Option<(OwnedFd, u8)>) -> io::Result<()> {
    let lane = Lane::open_child(lane, log.is_some())?;
    ended::set_own(&lane);
    crash_report::set_own(&lane);
    if let Some((bell, level)) = log {
        logs::set_own(&lane, Ringer::open(&bell)?.for_records());
        logs::install(level);
    }
    Ok(())
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
        Err(caught) => {
            ended::say(Ended::Panicked(*caught));
            PANICKED
        }
    }
}
