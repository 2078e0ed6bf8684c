//! A child as its parent sees it: the state that its handles and the registry share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::logs::ChildLogs;
use super::{ExitStatus, registry};
use crate::error::ProcessError;
use crate::lane::Lane;
use crate::lane::ended::Ended;
use crate::memory::member;
use crate::os::fork;
use crate::os::pidfd::Child;

/// The state that all handles of a child, and the registry, share.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) name: String,
    pub(super) child: Child,
    pub(super) is_daemon: bool,
    /// [`fork::generation`] of the parent.
    generation: u32,
    /// The exit status; empty until the child has been reaped. It is not behind a lock, because a
    /// forked child of the parent may read it.
    pub(super) status: OnceLock<ExitStatus>,
    /// How the child failed, if it did; empty until it has been reaped.
    failure: OnceLock<Option<ProcessError>>,
    /// Where the child says how it ends; `None` once it has been reaped.
    lane: Mutex<Option<Lane>>,
    /// The child's log records, if they are forwarded.
    pub(super) logs: Option<ChildLogs>,
    /// Whether this process has sent SIGKILL.
    was_killed: AtomicBool,
    /// The child dies when this is closed.
    _life_line: OwnedFd,
}

impl Spawned {
    pub(super) fn new(
        name: String,
        child: Child,
        is_daemon: bool,
        life_line: OwnedFd,
        (lane, logs): (Lane, Option<ChildLogs>),
    ) -> Self {
        Self {
            name,
            child,
            is_daemon,
            generation: fork::generation(),
            status: OnceLock::new(),
            failure: OnceLock::new(),
            lane: Mutex::new(Some(lane)),
            logs,
            was_killed: AtomicBool::new(false),
            _life_line: life_line,
        }
    }

    pub(super) fn is_own(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Returns how the child ended, if it has, and reaps it. Never waits.
    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        if let Some(status) = self.status.get() {
            return Some(*status);
        }
        // Only the child's parent may wait for it.
        if !self.is_own() || !self.child.has_ended() {
            return None;
        }
        // Only one thread reaps; others wait here for the status.
        let mut is_first = false;
        let status = self.status.get_or_init(|| {
            is_first = true;
            let status = self.child.reap();
            // Before a caller learns of the end: what the child held of shared objects must be free
            // again then.
            member::has_ended(self.child.pid());
            // A child that nothing has killed has ended by itself, with whatever code.
            let is_in_order = !matches!(status, ExitStatus::Signal(_));
            self.child.tree_ended(is_in_order);
            let lane = self.lane.lock().take();
            let _ = self.failure.set(self.failure_of(status, lane.as_ref()));
            if let Some(logs) = &self.logs {
                logs.end();
            }
            status
        });
        if is_first {
            registry::remove(self);
        }
        Some(*status)
    }

    /// Returns how a child failed that has ended like this.
    fn failure_of(&self, status: ExitStatus, lane: Option<&Lane>) -> Option<ProcessError> {
        let (mut reason, mut crash) = (None, None);
        let panicked = match status {
            ExitStatus::Exit(0) => return None,
            ExitStatus::Exit(_) => match lane.and_then(Lane::ended) {
                Some(Ended::Panicked(caught)) => Some(caught),
                Some(Ended::Failed(said)) => {
                    reason = Some(said.into());
                    None
                }
                None => None,
            },
            ExitStatus::Signal(signal) => {
                // A build that aborts has written down the panic before.
                let is_abort = signal == libc::SIGABRT;
                let header = lane.map(Lane::header);
                let last = header.filter(|_| is_abort);
                let caught = last.and_then(|header| header.crash_report().read());
                // A SIGKILL of this process's own is not the kernel's.
                let is_own = signal == libc::SIGKILL && self.was_killed.load(Ordering::Relaxed);
                let header = header.filter(|_| caught.is_none() && !is_own);
                crash = header.and_then(|header| header.crash(self.child.pid(), signal));
                caught
            }
            ExitStatus::Unknown => None,
        };
        let (name, pid) = (self.name.clone(), self.child.pid());
        Some(match panicked {
            Some(caught) => ProcessError::Panicked {
                name,
                pid,
                message: caught.message.into(),
                location: caught.location.map(Box::new),
                backtrace: caught.backtrace,
            },
            None => ProcessError::Failed {
                name,
                pid,
                status,
                reason,
                crash,
            },
        })
    }

    /// Returns how the child failed, if it did. It has been reaped.
    pub(super) fn failure(&self) -> Option<ProcessError> {
        self.failure.get().cloned().flatten()
    }

    /// Sends SIGKILL to the child, and to what it has started.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.was_killed.store(true, Ordering::Relaxed);
        self.child.try_kill()
    }

    /// Waits until all that the child has written has been logged, at most until the deadline. The
    /// child has ended.
    pub(super) fn wait_logged(&self, deadline: Option<Instant>) {
        if let Some(logs) = &self.logs {
            logs.wait(deadline);
        }
    }

    /// Waits for the child's end, at most until the deadline. Only its parent may call this.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.exit_status() {
                return Some(status);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            self.child.wait_end(left);
        }
    }
}
