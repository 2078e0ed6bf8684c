//! What a process does to itself to become the guard of another one, and how it watches that one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{chdir, setsid};

use super::fork::{self, Side};
use super::readable::{pause, wait_readable};
use super::{life, process_fd};

/// The signals by which a terminal or a service manager ends programs. A guard ends with its
/// program and not before it. So the process that starts it blocks them from its first moment on:
/// it is still in the group of the program.
pub(crate) const ENDING: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// The process that is guarded.
#[derive(Debug)]
pub(crate) struct Parent {
    pid: u32,
    /// When it was started; `None` if it had ended before that could be asked.
    started: Option<u64>,
    /// Readable once it has ended; `None` where there are no pidfds.
    fd: Option<OwnedFd>,
    has_ended: AtomicBool,
}

impl Parent {
    /// Opens the parent of this process, which should be `pid`.
    pub(crate) fn open(pid: u32) -> Self {
        let fd = process_fd::open(pid.cast_signed()).unwrap_or_default();
        let started = life::start_time(pid).ok();
        // It is the same process as before, if it is the parent now: it has not ended meanwhile.
        let is_there = parent_id() == pid;
        Self {
            pid,
            started: started.filter(|_| is_there),
            fd: fd.filter(|_| is_there),
            has_ended: AtomicBool::new(!is_there),
        }
    }

    /// Returns whether it has ended, without asking the kernel if the answer is known.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire) || self.wait_end(Duration::ZERO)
    }

    /// Waits for its end, and may give up after a while, if that is all that can be done. Returns
    /// whether it has ended.
    pub(crate) fn wait_end(&self, slice: Duration) -> bool {
        if self.has_ended.load(Ordering::Acquire) {
            return true;
        }
        let has_ended = if let Some(fd) = &self.fd {
            let timeout = slice.is_zero().then_some(slice);
            match wait_readable(&[fd.as_fd()], timeout) {
                Ok(found) => found.is_some(),
                Err(refused) => {
                    pause(&refused, Some(slice));
                    self.has_ended_by_proc()
                }
            }
        } else {
            thread::sleep(slice);
            self.has_ended_by_proc()
        };
        if has_ended {
            self.has_ended.store(true, Ordering::Release);
        }
        has_ended
    }

    fn has_ended_by_proc(&self) -> bool {
        let started = self.started;
        !started.is_some_and(|started| life::is_running(self.pid, started))
    }
}

/// Forks this process, and leaves its parent with the child: that has a session of its own, and
/// becomes a child of the first process of the system. This process has [`ENDING`] blocked; the
/// child ignores them. Returns the child's pid, and `None` in the child. The caller, which has
/// started no threads, ends when this returns a pid.
pub(crate) fn leave_parent() -> io::Result<Option<u32>> {
    // SAFETY: the child holds no lock that a thread of a library could have held at the fork, but
    // those of the allocator, which the C library takes care of. It runs nothing of that library.
    match unsafe { fork::fork() }? {
        Side::Parent { child } => Ok(Some(child)),
        Side::Child => {
            for ending in ENDING {
                // SAFETY: no handler is involved.
                unsafe { signal(ending, SigHandler::SigIgn) }?;
            }
            SigSet::empty().thread_set_mask()?;
            setsid()?;
            chdir("/")?;
            Ok(None)
        }
    }
}

/// Ends the guard, without the exit handlers of the program.
pub(crate) fn end() -> ! {
    fork::exit_now(0)
}
