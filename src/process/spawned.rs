//! A child as its parent sees it: the state that its handles and the registry share.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{ExitStatus, registry};
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
    /// The child dies when this is closed.
    _life_line: OwnedFd,
}

impl Spawned {
    pub(super) fn new(name: String, child: Child, is_daemon: bool, life_line: OwnedFd) -> Self {
        Self {
            name,
            child,
            is_daemon,
            generation: fork::generation(),
            status: OnceLock::new(),
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
            status
        });
        if is_first {
            registry::remove(self);
        }
        Some(*status)
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
