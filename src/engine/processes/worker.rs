//! The other side: what a worker process does from its start to its end.
//!
//! A worker is the main executable, [launched](crate::process::launch) again, or a fork of the fork
//! server.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::initializer;
use super::settings::Setup;
use crate::call::entry::{Chunk, Context, Entry};
use crate::call::seed::{self, Seeds};
use crate::call::{at_fork, code, grace, logs, traces, worker_index};
use crate::engine::worker_state;
use crate::lane::bell::Ringer;
use crate::lane::message::{More, Request};
use crate::lane::{Claim, Lane, Pace, Reader, ResponseWriter, Ring, crash_report, die_corrupted};
use crate::os::fork;
use crate::os::{exit, handoff, oom, worker as own};
use crate::panic;
use crate::process::Origin;
use crate::process::launch::{Role, receive_greeting_with};

/// Exit code of a worker whose initialiser failed.
const CANNOT_INITIALIZE: i32 = 96;

/// What the parent tells a worker before it starts it. With it come the descriptors of lane, bell,
/// what the initialiser gets, if there is anything, and the family's memory. A forked worker has
/// the last from its server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// What `ps` shall show as the command's name.
    pub(super) name: String,
    pub(super) setup: Setup,
    pub(super) origin: Origin,
}

/// Ends this process. A forked worker leaves the exit handlers to the program that it was forked
/// from.
fn end_worker(code: i32) -> ! {
    if fork::generation() == 0 {
        std::process::exit(code);
    }
    exit::end();
    let _ = (io::stdout().flush(), io::stderr().flush());
    fork::exit_now(code)
}

/// Does to this process what the pool's builder has asked for.
fn set_up(setup: &Setup, lane: &Lane) -> io::Result<()> {
    let refused = |what: &str, error: io::Error| io::Error::other(format!("{what}: {error}"));
    if let Some(core) = setup.core {
        own::run_on(core)
            .map_err(|error| refused(&format!("it cannot run on core {core}"), error))?;
    }
    if setup.nice != 0 {
        let nice = setup.nice;
        own::set_nice(nice)
            .map_err(|error| refused(&format!("its niceness cannot be {nice}"), error))?;
    }
    if let Some(limit) = setup.memory_limit {
        own::limit_memory(limit)
            .map_err(|error| refused(&format!("its memory cannot be {limit} bytes"), error))?;
        oom::note_failed_allocations(lane.header().out_of_memory())?;
    }
    Ok(())
}

struct Worker {
    lane: Lane,
    requests: Reader,
    responses: ResponseWriter,
    contexts: HashMap<u64, Context>,
    /// The buffer in which a message that is longer than a cell is put together.
    message: Vec<u8>,
    scratch: Vec<u8>,
    /// Open as long as the parent lives.
    _life_line: OwnedFd,
}

/// The role of a pool's worker.
pub(crate) const WORKER: Role = Role {
    magic: *b"manyhand",
    begin,
};

/// Becomes the worker that the greeting asks for, and returns when there is nothing more to do.
fn begin() -> io::Result<()> {
    let count = |greeting: &Greeting| 2 + usize::from(greeting.setup.model.is_some());
    let (greeting, fds, parent) = receive_greeting_with(count)?;
    let mut fds = fds.into_iter();
    let (Some(lane), Some(bell), model) = (fds.next(), fds.next(), fds.next()) else {
        return Err(io::Error::other(
            "the greeting came without its descriptors",
        ));
    };
    let life_line = own::take_stdin()?;
    own::die_with_parent(parent)?;
    run(greeting, (lane, bell, model), life_line)
}

/// Does a worker's work over a test's lane, until the parent says that there will be no more.
#[cfg(all(test, not(loom)))]
pub(super) fn serve_here(lane: Lane, bell: impl Ring + 'static, life_line: OwnedFd) {
    lane.header().set_up();
    lane.header().set_ready();
    Worker::new(lane, Box::new(bell), life_line).run();
}

/// Does a worker's work, from its first sign of life to its end.
pub(super) fn run(
    greeting: Greeting,
    (lane, bell, model): (OwnedFd, OwnedFd, Option<OwnedFd>),
    life_line: OwnedFd,
) -> io::Result<()> {
    // This is the second guard: the kernel's signal for the parent's death belongs to one
    // thread of it.
    fork::die_when_closed(life_line.as_fd())?;
    if handoff::is_closed(&life_line) {
        return Err(io::Error::other("the parent has died"));
    }
    own::set_name(&greeting.name);
    own::set_signals()?;
    greeting.origin.arrive();
    panic::install_hook();
    panic::name_this_thread(crate::process::current().name());

    let (lane, bell) = {
        // The descriptors are closed again: what is mapped needs none.
        let (lane_fd, bell_fd) = (lane, bell);
        let lane = Lane::open(&lane_fd, greeting.setup.log_level.is_some())?;
        (lane, Ringer::open(&bell_fd)?)
    };
    crash_report::set_own(&lane);
    seed::set_lane(&lane);
    worker_index::set(greeting.setup.index);
    if greeting.setup.log_level.is_some() {
        logs::set_own(&lane, bell.for_records());
    }
    lane.header().set_up();
    bell.ring();
    if let Err(reason) = set_up(&greeting.setup, &lane) {
        crash_report::write_reason(reason.to_string());
        return Err(reason);
    }
    // A worker that was started again has no duplicates of anything.
    if fork::generation() > 0
        && let Err(caught) = at_fork::run()
    {
        let reason = caught.to_string();
        crash_report::write_reason(reason.clone());
        return Err(io::Error::other(reason));
    }
    if let Some(initializer) = greeting.setup.initializer
        && let Err(reason) = initializer::initialize(initializer, model.zip(greeting.setup.model))
    {
        crash_report::write_reason(reason);
        end_worker(CANNOT_INITIALIZE);
    }
    if let Some(level) = greeting.setup.log_level {
        // The initialiser may have set a logger, which stays.
        logs::install(level);
        match greeting.setup.trace_level {
            0 => {}
            _ if greeting.setup.is_copy => traces::begin_copy(),
            level => traces::install(level),
        }
    }
    lane.header().set_ready();
    bell.ring();
    Worker::new(lane, Box::new(bell), life_line).run();
    worker_state::end();
    Ok(())
}

impl Worker {
    fn new(lane: Lane, bell: Box<dyn Ring>, life_line: OwnedFd) -> Self {
        Self {
            requests: lane.request_reader(),
            responses: ResponseWriter::new(lane.clone(), bell, Pace::Tasks),
            lane,
            contexts: HashMap::new(),
            message: Vec::new(),
            scratch: Vec::new(),
            _life_line: life_line,
        }
    }

    /// Runs tasks until the parent says that there will be no more.
    fn run(mut self) {
        loop {
            let header = self.lane.header();
            if !self.requests.has_next() {
                self.responses.ring_if_asked();
                header.wait_until(|| self.requests.has_next() || header.must_stop());
                if !self.requests.has_next() {
                    // The parent has said that there will be no more.
                    return;
                }
            }
            let goes_on = match self.requests.claim() {
                // The request is this worker's: the parent cannot take it back any more.
                Claim::Taken => self.serve(),
                // The parent took the request back before this worker claimed it.
                Claim::TakenBack => self.skip(),
                Claim::Corrupted => die_corrupted(),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Takes the message that begins at the next cell, and does what it says. Returns false if the
    /// rest of it will never come.
    #[allow(unsafe_code)]
    fn serve(&mut self) -> bool {
        let view = self.requests.current();
        if view.last {
            // SAFETY: the parent does not write to a cell between publishing it and its release,
            // which comes below.
            let message = unsafe { view.bytes.as_slice() };
            Self::obey(
                message,
                &mut self.contexts,
                &mut self.responses,
                &mut self.scratch,
            );
            self.requests.release();
        } else {
            self.message.clear();
            loop {
                let view = self.requests.current();
                view.bytes.append_to(&mut self.message);
                let last = view.last;
                self.requests.release();
                if last {
                    break;
                }
                if !self.await_cell() {
                    return false;
                }
                if !self.requests.is_ready() {
                    die_corrupted();
                }
            }
            Self::obey(
                &self.message,
                &mut self.contexts,
                &mut self.responses,
                &mut self.scratch,
            );
            if self.message.capacity() > KEPT_BYTES {
                self.message = Vec::new();
            }
        }
        if self.scratch.capacity() > KEPT_BYTES {
            self.scratch = Vec::new();
        }
        true
    }

    /// Skips a message that the parent took back. Returns false if the rest of it will never come.
    fn skip(&mut self) -> bool {
        loop {
            let last = self.requests.current().last;
            self.requests.release();
            if last {
                return true;
            }
            if !self.await_cell() {
                return false;
            }
        }
    }

    /// Waits for the next cell of a message. Returns false if there will be none.
    fn await_cell(&self) -> bool {
        if !self.requests.has_next() {
            // The parent may be waiting for room.
            self.responses.ring_if_asked();
            let header = self.lane.header();
            header.wait_until(|| self.requests.has_next() || header.must_stop());
        }
        self.requests.has_next()
    }

    /// Begins with what few tasks have. The task runs as long as the returned value lives, if there
    /// is one.
    #[cold]
    fn begin_more(task: u32, more: More, responses: &mut ResponseWriter) -> Option<grace::Asked> {
        if let Some(name) = more.name {
            logs::begin_task(name);
        }
        if more.is_recorded {
            responses.set_recorded();
        }
        if let Some(limit) = more.limit {
            responses.set_limit(limit);
        }
        let grace = more.grace?;
        responses.set_grace(grace);
        let limit = more.limit.map(|limit| limit.saturating_sub(grace));
        Some(grace::enter_lane(task, limit))
    }

    fn obey(
        message: &[u8],
        contexts: &mut HashMap<u64, Context>,
        responses: &mut ResponseWriter,
        scratch: &mut Vec<u8>,
    ) {
        let Some((request, body)) = Request::parse(message) else {
            panic!("the parent sent a message of no known kind");
        };
        match request {
            Request::Run {
                task,
                code,
                context,
                first,
                count,
                seeds,
                stops_at,
                more,
            } => {
                responses.begin(task, first);
                responses.set_stops_at(stops_at);
                seed::begin_task(Seeds(seeds));
                let asked = more.and_then(|more| Self::begin_more(task, more, responses));
                let entry = entry(code);
                let context = contexts.get_mut(&context);
                entry(&mut Chunk {
                    count,
                    items: body,
                    context,
                    responses,
                    scratch,
                });
                drop(asked);
            }
            Request::Context { id } => {
                contexts.insert(id, Context::Encoded(body.to_vec()));
            }
            Request::Forget { id } => {
                // The context's Drop is the user's code: it may fork, and the copy in which it
                // returns ends here.
                contexts.remove(&id);
                responses.original().end_copy(fork::COPY_RETURNED);
            }
        }
    }
}

/// The size up to which buffers are kept for the next task.
const KEPT_BYTES: usize = 1 << 20;

#[allow(unsafe_code)]
fn entry(code: u64) -> Entry {
    // SAFETY: the number comes from the parent. The parent runs the same build, by the fingerprint
    // in its greeting, and makes the number of an `Entry` and nothing else.
    let entry = unsafe { code::function::<Entry>(code) };
    entry.expect("the parent named a function that the executable does not have")
}
