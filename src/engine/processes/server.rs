//! A process that forks workers. It is small and has one thread, and is therefore quick and safe to
//! fork.
//!
//! ```text
//!   supervisor ── hire: greeting, lane, bell, life line ──▶ server ── fork ──▶ worker
//!              ◀── hired: pid, descriptor ──                  │
//!              ── reap: pid ──▶                               │ waits
//!              ◀── ended: status ──                           ▼
//! ```
//!
//! The workers are the server's children. The descriptor tells the supervisor of the end of a
//! worker, and then the supervisor has the server reap it. It must not be reaped before: until then
//! the worker's number is its own, by which it is killed where there are no pidfds.
//!
//! The server is itself a child of the supervisor's thread, and dies with that thread. The workers
//! die with the server, and by their life lines with the parent.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::initializer;
use super::worker::{self, Greeting};
use crate::array::fork_guard::{Taken, Takes};
use crate::call::at_fork;
use crate::codec::exact;
use crate::engine::fork::fork_child;
use crate::error::named_threads;
use crate::memory::family;
use crate::os::ExitStatus;
use crate::os::environment::{self, Environment};
use crate::os::pidfd::{self, Child};
use crate::os::readable::{pause, wait_readable};
use crate::os::start::Stream;
use crate::os::tree;
use crate::os::{self, fork, handoff, worker as own};
use crate::process::launch::{CANNOT_BEGIN, Launch, Role, receive_greeting};

/// How long the server may take to answer. It forks, and does nothing else. Only what it loads
/// before may take long.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long the supervisor waits for a server that is stopped (SIGSTOP, a debugger) when a worker
/// is to be forked. Then another server takes its place, and its workers end with it.
const STOPPED_TIME: Duration = Duration::from_secs(1);
/// The same when the server is to say how a worker has ended: the supervisor can do without that.
const STOPPED_TIME_OF_ENDED: Duration = Duration::from_millis(50);
/// How often the supervisor looks whether the server is stopped.
const SLICE: Duration = Duration::from_millis(25);

/// The longest message between the two.
const MOST_BYTES: usize = 64 << 10;

/// What the server is to do first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opening {
    /// The number of the function that the server runs before it forks the first worker.
    preload: Option<u64>,
    /// The numbers of the after-fork hooks that the server has from the start.
    hooks: Vec<u64>,
    /// Whether the server may fork though it has other threads.
    allow_threads: bool,
}

/// A worker to fork. With it come the descriptors of lane, bell and life line, and of the outputs
/// that are not the server's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hire {
    pub(super) greeting: Greeting,
    pub(super) environment: Environment,
    pub(super) has_stdout: bool,
    pub(super) has_stderr: bool,
}

/// What the supervisor asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Hire(Hire),
    /// The worker has ended: it is to be reaped.
    Reap {
        pid: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The server is ready to fork. This is the first thing that it says.
    Loaded,
    /// The worker has been forked. With this comes a descriptor that is readable once the worker
    /// has ended.
    Hired { pid: u32, is_pidfd: bool },
    /// The worker could not be forked, or the server cannot serve.
    Refused { reason: String },
    /// The worker has been reaped.
    Ended { status: ExitStatus, peak: u64 },
}

/// The server as the supervisor has it.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    /// What the copy of this process, and its workers too, may use of its objects.
    _taken: Option<Taken>,
    socket: OwnedFd,
    /// Whether the server has not answered as it should. Then it is not asked again.
    is_broken: bool,
    /// Workers that the server has forked, and that have not been reaped.
    workers: HashSet<u32>,
    /// The number of answers that were not waited for, because the server was stopped. They come
    /// before all others.
    given_up: usize,
}

/// How a server comes to be.
#[derive(Debug)]
pub(super) enum Origin {
    /// The executable, started again. It runs this function first.
    Started {
        preload: Option<u64>,
        allow_threads: bool,
        environment: Environment,
    },
    /// Forked from this process.
    Forked,
}

impl Server {
    /// Starts a server. This must be called on a thread that lives as long as the server shall.
    pub(super) fn start(pool: &str, origin: Origin) -> io::Result<Self> {
        let name = format!("manyhands:{pool}:fork");
        let (process, socket, taken) = match origin {
            Origin::Started {
                preload,
                allow_threads,
                environment,
            } => {
                let opening = Opening {
                    preload,
                    hooks: at_fork::codes(),
                    allow_threads,
                };
                let launch = Launch {
                    name: &name,
                    environment,
                    stdout: Stream::Inherit,
                    stderr: Stream::Inherit,
                    blocked: &[],
                };
                let (process, socket) = launch.launch(FORK_SERVER, &opening, &[])?;
                (process, socket, None)
            }
            Origin::Forked => {
                let (socket, theirs) = handoff::pair()?;
                // Memory that this process shares later must reach the copy too.
                family::for_children();
                let parent = std::process::id();
                let (process, taken) = fork_child(Takes::Objects, || {
                    own::close_copy(socket.as_fd());
                    let begun = own::die_with_parent(parent).and_then(|()| begin_fork(&name));
                    match begun {
                        Ok(()) => serve(&theirs),
                        // The parent may have gone: then it needs no reason.
                        Err(error) => _ = refuse(&theirs, error.to_string()),
                    }
                })?;
                let process =
                    Child::open(process).inspect_err(|_| pidfd::kill_unopened(process))?;
                (process, socket, Some(taken))
            }
        };
        Ok(Self {
            process,
            _taken: taken,
            socket,
            is_broken: false,
            workers: HashSet::new(),
            given_up: 0,
        })
    }

    /// Waits until the server is ready to fork. What it loads before may take as long as it likes,
    /// unless `alarm` rings and `gives_up` says that the server is not needed any more.
    pub(super) fn wait_loaded(
        &mut self,
        alarm: BorrowedFd<'_>,
        gives_up: impl Fn() -> bool,
    ) -> io::Result<()> {
        loop {
            let fds = [self.socket.as_fd(), self.process.as_fd(), alarm];
            let found = wait_readable(&fds, None).unwrap_or_else(|refused| {
                pause(&refused, None);
                let is_there = handoff::has_news(&self.socket) || self.process.has_ended();
                Some(if is_there { 0 } else { 2 })
            });
            match found {
                Some(0 | 1) => break,
                Some(_) if gives_up() => {
                    return Err(io::Error::other(
                        "the pool ended before its workers were there",
                    ));
                }
                // The alarm stays as it is, for the supervisor. It rings seldom.
                Some(_) => std::thread::sleep(Duration::from_millis(1)),
                None => {}
            }
        }
        match self.answer(ANSWER_TIME, &|| ()) {
            Ok((Answer::Loaded, _)) => Ok(()),
            Ok((Answer::Refused { reason }, _)) => Err(io::Error::other(reason)),
            Ok(_) => Err(io::Error::other("the process that forks workers is mad")),
            Err(_) => {
                self.process.kill();
                let end = self.process.reap();
                Err(io::Error::other(format!(
                    "the process that forks workers {end} before it was ready"
                )))
            }
        }
    }

    /// Has a worker forked. Calls `meanwhile` every [`SLICE`] while it waits for the answer.
    ///
    /// # Errors
    ///
    /// The reason why there is no worker. Then the server may be gone
    /// ([`is_alive`](Self::is_alive)).
    pub(super) fn hire(
        &mut self,
        hire: Hire,
        fds: &[BorrowedFd<'_>],
        meanwhile: &dyn Fn(),
    ) -> io::Result<Child> {
        let ask = encode(&Ask::Hire(hire))?;
        let sent = handoff::send_at_once(self.socket.as_fd(), &ask, fds);
        // The message did not fit: the server was stopped and has not read what it was asked
        // before.
        self.is_broken |= sent.is_err();
        sent?;
        match self.answer(STOPPED_TIME, meanwhile)? {
            (Answer::Hired { pid, is_pidfd }, Some(fd)) => {
                self.workers.insert(pid);
                Ok(Child::adopt(pid, fd, is_pidfd))
            }
            (Answer::Refused { reason }, _) => Err(io::Error::other(reason)),
            _ => {
                self.is_broken = true;
                Err(io::Error::other(
                    "the process that forks workers has not sent a worker's descriptor",
                ))
            }
        }
    }

    /// Waits for a worker to end, and returns how it ended.
    pub(super) fn reap(&mut self, child: &Child) -> ExitStatus {
        // The worker's end may take long to come. What follows does not.
        child.wait_end(None);
        child.will_be_reaped();
        if self.workers.remove(&child.pid())
            && !self.is_broken
            && let Some((status, peak)) = self.ask_to_reap(child.pid())
        {
            if let Some(peak) = peak {
                child.set_peak_memory(peak);
            }
            return status;
        }
        // The server has died: this one, or the one before it. Then the kernel has killed its
        // workers. They may have become children of this process, if this process takes in orphans.
        match child.reap() {
            ExitStatus::Unknown => ExitStatus::Signal(9),
            status => status,
        }
    }

    /// Returns how the worker has ended and the most memory that it had, as far as they are known,
    /// or `None` if the server has died.
    fn ask_to_reap(&mut self, pid: u32) -> Option<(ExitStatus, Option<u64>)> {
        const UNKNOWN: (ExitStatus, Option<u64>) = (ExitStatus::Unknown, None);
        let ask = encode(&Ask::Reap { pid }).ok()?;
        let sent = handoff::send_at_once(self.socket.as_fd(), &ask, &[]);
        if let Err(error) = &sent
            && error.kind() == io::ErrorKind::WouldBlock
        {
            // The server was stopped and has not read what it was asked before. The worker stays a
            // zombie until the server ends.
            return Some(UNKNOWN);
        }
        if sent.is_ok() && self.given_up > 0 && os::state::is_stopped(self.process.pid()) {
            // The server is stopped, and has been waited for before.
            self.given_up += 1;
            return Some(UNKNOWN);
        }
        match sent.and_then(|()| self.try_answer(STOPPED_TIME_OF_ENDED, &|| ())) {
            Ok((Answer::Ended { status, peak }, _)) => Some((status, Some(peak))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                // The caller that waits for the end of the task need not wait for its cause.
                self.given_up += 1;
                Some(UNKNOWN)
            }
            _ => {
                self.is_broken = true;
                None
            }
        }
    }

    /// Returns whether the server can be asked for more.
    pub(super) fn is_alive(&self) -> bool {
        !self.is_broken && !self.process.has_ended()
    }

    /// Returns the next answer of the server. After an error the server is not asked again: an
    /// answer that comes late would be taken for that to a later question.
    fn answer(
        &mut self,
        stopped: Duration,
        meanwhile: &dyn Fn(),
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        let answer = self.try_answer(stopped, meanwhile);
        self.is_broken |= answer.is_err();
        answer
    }

    /// Returns the next answer of the server. `stopped` is how long the server is waited for while
    /// it is stopped. After that the error is [`TimedOut`](io::ErrorKind::TimedOut).
    fn try_answer(
        &mut self,
        stopped: Duration,
        meanwhile: &dyn Fn(),
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        loop {
            self.wait_for_answer(stopped, meanwhile)?;
            let (answer, mut fds) = receive(&self.socket)?
                .ok_or_else(|| io::Error::other("the process that forks workers has died"))?;
            if self.given_up > 0 && matches!(answer, Answer::Ended { .. }) {
                // The server answers in order: this answers a question from before it was stopped.
                self.given_up -= 1;
                continue;
            }
            return Ok((answer, fds.pop()));
        }
    }

    fn wait_for_answer(&self, stopped: Duration, meanwhile: &dyn Fn()) -> io::Result<()> {
        let start = Instant::now();
        let mut runs_since = start;
        while !wait_for_news(&self.socket, Some(SLICE)) {
            meanwhile();
            if start.elapsed() >= ANSWER_TIME {
                return Err(io::Error::other(
                    "the process that forks workers does not answer",
                ));
            }
            if !os::state::is_stopped(self.process.pid()) {
                runs_since = Instant::now();
            } else if runs_since.elapsed() >= stopped {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the process that forks workers is stopped",
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill();
        self.process.reap();
    }
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    exact::to_vec_append(&mut bytes, message).map_err(io::Error::other)?;
    if bytes.len() > MOST_BYTES {
        return Err(io::Error::other(
            "the environment of the workers is too large",
        ));
    }
    Ok(bytes)
}

/// Waits until there is a message, or the other side has gone. Returns false if neither has
/// happened after `timeout`.
fn wait_for_news(socket: &OwnedFd, timeout: Option<Duration>) -> bool {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match wait_readable(&[socket.as_fd()], left) {
            Ok(found) => return found.is_some(),
            Err(_) if handoff::has_news(socket) => return true,
            Err(_) if left == Some(Duration::ZERO) => return false,
            Err(refused) => pause(&refused, left),
        }
    }
}

/// Takes the next message, or `None` if the other side has gone.
fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MOST_BYTES];
    let (len, fds) = handoff::receive_all(socket.as_fd(), &mut buffer)?;
    if len == 0 {
        return Ok(None);
    }
    let message = exact::from_slice(&buffer[..len]).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

// What the server does ---------------------------------------------------------------------

/// The role of a fork server.
pub(crate) const FORK_SERVER: Role = Role {
    magic: *b"manyfork",
    begin: become_server,
};

/// Becomes, in a launched process, the server that the greeting asks for. Returns when the parent
/// has dropped the server.
fn become_server() -> io::Result<()> {
    let (opening, [], parent): (Opening, _, _) = receive_greeting()?;
    let socket = own::take_stdin()?;
    own::die_with_parent(parent)?;
    own::set_name("manyhands:fork");
    own::set_signals()?;
    crate::panic::install_hook();
    at_fork::adopt(&opening.hooks);
    // Asked before anything is preloaded: what runs now was started by a library as it was loaded.
    let at_start = os::task::other_names()?;
    if let Some(preload) = opening.preload {
        match initializer::run(preload) {
            // What the function has made stays, for the workers.
            Ok(loaded) => std::mem::forget(loaded),
            Err(reason) => {
                let reason = format!("what the workers share could not be loaded: {reason}");
                return refuse(&socket, reason);
            }
        }
    }
    let now = os::task::other_names()?;
    if !now.is_empty() && !opening.allow_threads {
        return refuse(&socket, threads_in_the_way(&at_start, &now));
    }
    serve(&socket);
    Ok(())
}

/// Returns why workers cannot be forked beside these threads.
fn threads_in_the_way(at_start: &[String], now: &[String]) -> String {
    let names = named_threads(now);
    let (cause, way_out) = if at_start.is_empty() {
        (
            "the function of `preload` left it",
            "End the threads there, or start them in each worker, with an initialiser",
        )
    } else {
        (
            "a library started it when it was loaded",
            "Tell the library to start none: OpenBLAS by .env(\"OPENBLAS_NUM_THREADS\", \"1\")",
        )
    };
    format!(
        "the process that forks the workers has {names} beside its own, which the workers would not have; {cause}. \
         {way_out}; or use StartMethod::Spawn without `preload`, or accept the risk with allow_threads(true)"
    )
}

/// Answers every question with the reason why there will be no workers.
fn refuse(socket: &OwnedFd, reason: String) -> io::Result<()> {
    let refusal = encode(&Answer::Refused { reason })?;
    loop {
        handoff::send(socket.as_fd(), &refusal, &[])?;
        // This waits until the parent asks again or drops the server.
        wait_for_news(socket, None);
        if receive::<Ask>(socket)?.is_none() {
            return Ok(());
        }
    }
}

/// Makes a process that was forked from the parent one that can be forked in turn.
fn begin_fork(name: &str) -> io::Result<()> {
    own::reset_signals();
    own::set_signals()?;
    own::open_standard_streams()?;
    own::close_stdin()?;
    own::set_name(name);
    Ok(())
}

/// Forks workers until the parent drops the server.
fn serve(socket: &OwnedFd) {
    // Forks before the first question for the generation are not counted, so the question is asked
    // here: a worker may be asked later whether it was forked, and must know how often since the
    // start.
    fork::generation();
    let loaded = encode(&Answer::Loaded);
    if loaded
        .and_then(|loaded| handoff::send(socket.as_fd(), &loaded, &[]))
        .is_err()
    {
        return;
    }
    let mut children: Vec<(Child, Taken)> = Vec::new();
    loop {
        wait_for_news(socket, None);
        let answered = match receive::<Ask>(socket) {
            Ok(Some((Ask::Hire(hire), fds))) => fork_worker(socket, hire, fds, &mut children),
            Ok(Some((Ask::Reap { pid }, _))) => {
                let place = children.iter().position(|(child, _)| child.pid() == pid);
                encode(&match place {
                    Some(place) => reap_worker(children.swap_remove(place)),
                    None => Answer::Refused {
                        reason: "this server has no such worker".to_owned(),
                    },
                })
                .and_then(|answer| handoff::send(socket.as_fd(), &answer, &[]))
            }
            Ok(None) => return,
            Err(error) => {
                // The parent may have gone: then it needs no reason.
                let _ = tell_refused(socket, &error);
                return;
            }
        };
        if answered.is_err() {
            return;
        }
    }
}

/// Waits for a worker that has ended.
fn reap_worker((child, _taken): (Child, Taken)) -> Answer {
    Answer::Ended {
        status: child.reap(),
        peak: child.peak_memory().unwrap_or(0),
    }
}

fn fork_worker(
    socket: &OwnedFd,
    hire: Hire,
    fds: Vec<OwnedFd>,
    children: &mut Vec<(Child, Taken)>,
) -> io::Result<()> {
    let server = std::process::id();
    let mut work = Some((hire, fds));
    let forked = fork_child(Takes::All, || {
        // These are the server's: a process that is started from a worker would hold them open.
        children
            .drain(..)
            .for_each(|(child, _taken)| child.close_copies());
        own::close_copy(socket.as_fd());
        if let Some((hire, fds)) = work.take() {
            let outcome = own::die_with_parent(server).and_then(|()| run_worker(hire, fds));
            if let Err(error) = outcome {
                eprintln!("manyhands: a worker process could not begin: {error}");
                fork::exit_now(CANNOT_BEGIN);
            }
        }
    });
    let child = forked.and_then(|(pid, taken)| {
        let child = Child::open(pid).inspect_err(|_| pidfd::kill_unopened(pid))?;
        Ok((child, taken))
    });
    match child {
        Ok((child, taken)) => {
            let answer = encode(&Answer::Hired {
                pid: child.pid(),
                is_pidfd: child.is_pidfd(),
            })?;
            handoff::send(socket.as_fd(), &answer, &[child.as_fd()])?;
            children.push((child, taken));
            Ok(())
        }
        Err(error) => tell_refused(socket, &error),
    }
}

fn tell_refused(socket: &OwnedFd, error: &io::Error) -> io::Result<()> {
    let reason = error.to_string();
    handoff::send(socket.as_fd(), &encode(&Answer::Refused { reason })?, &[])
}

/// Does what a forked worker does, from its start to its end.
fn run_worker(hire: Hire, fds: Vec<OwnedFd>) -> io::Result<()> {
    let Hire {
        greeting,
        environment,
        has_stdout,
        has_stderr,
    } = hire;
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(|| io::Error::other("the greeting came without its descriptors"))
    };
    let (lane, bell, life_line) = (next()?, next()?, next()?);
    let model = greeting.setup.model.map(|_| next()).transpose()?;
    if has_stdout {
        own::replace_stdout(&next()?)?;
    }
    if has_stderr {
        own::replace_stderr(&next()?)?;
    }
    environment::apply(&environment);
    if let Some(chain) = std::env::var_os(tree::VARIABLE) {
        tree::mark_this_copy(chain.as_encoded_bytes());
    }
    worker::run(greeting, (lane, bell, model), life_line)
}
