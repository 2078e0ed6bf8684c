//! Child processes by descriptor: no pid can be mistaken for that of a later process.
//!
//! Where the kernel has no pidfds, a [thread](super::ended) makes another descriptor readable at
//! the end of the child. The child is then named by its number. The number cannot become another
//! process's before the child has been reaped. Only this module reaps it, and not while it sends a
//! signal. A program that waits for any child breaks this: between its wait and the signal, the
//! kernel may give the number to another process. This module looks at the child right before each
//! signal, so that this time is short.

use std::io::{self, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::readable::{pause, wait_readable};
use super::tree::{self, Entry};
use super::{ExitStatus, above_standard, ended, life, process_fd, state, worker};

/// The time between two looks at a child whose descriptor may be silent.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// A child of this process, or one that it has adopted.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    /// Readable once the child has ended.
    fd: OwnedFd,
    name: Name,
    is_adopted: bool,
    /// The most memory it has had resident, in bytes; 0 until it has been waited for.
    peak: AtomicU64,
    /// What finds the processes that the child has started, if they are to end with it.
    tree: Option<Entry>,
}

/// The name by which the kernel knows which process is meant.
#[derive(Debug)]
enum Name {
    /// By the descriptor, which is a pidfd.
    Descriptor,
    /// By its number, which is its own until its parent has reaped it: there are no pidfds.
    Number {
        /// Whether the child has been reaped. Locked while the number is used.
        is_reaped: Mutex<bool>,
        /// When the child was started; `None` if this process is its parent.
        started: Option<u64>,
        /// The end of the pipe that the waiting thread writes to, of a child of this process.
        writer: Option<Arc<PipeWriter>>,
    },
}

impl Child {
    /// Takes charge of the child `pid`. The program must not have waited for it: until then, its
    /// pid is its own.
    ///
    /// Where the kernel has no pidfds, a thread of its own waits for the child.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (fd, name) = if let Some(fd) = process_fd::open(raw)? {
            (fd, Name::Descriptor)
        } else {
            let (fd, writer) = ended::watch(raw)?;
            (fd, Name::by_number(None, Some(writer)))
        };
        Ok(Self {
            pid,
            fd: above_standard(fd)?,
            name,
            is_adopted: false,
            peak: AtomicU64::new(0),
            tree: None,
        })
    }

    /// Takes charge of a process that is a child of another process. That one waits for it and has
    /// sent its descriptor.
    ///
    /// If that descriptor is no pidfd, the other process must not reap it before this one is done
    /// with it.
    pub(crate) fn adopt(pid: u32, fd: OwnedFd, is_pidfd: bool) -> Self {
        let name = if is_pidfd {
            Name::Descriptor
        } else {
            Name::by_number(life::start_time(pid).ok(), None)
        };
        Self {
            pid,
            fd,
            name,
            is_adopted: true,
            peak: AtomicU64::new(0),
            tree: None,
        }
    }

    /// Has the processes that the child starts end with it, when it is ended by force.
    pub(crate) fn with_tree(mut self, tree: Option<Entry>) -> Self {
        self.tree = tree;
        self
    }

    /// Says how the child has ended. After an end by force, the processes that it has started end
    /// too. After an end in order, they are left alone.
    pub(crate) fn tree_ended(&self, is_in_order: bool) {
        if let Some(tree) = &self.tree {
            tree.ended(is_in_order);
        }
    }

    /// Returns whether the descriptor is a pidfd.
    pub(crate) fn is_pidfd(&self) -> bool {
        matches!(self.name, Name::Descriptor)
    }

    pub(crate) fn set_peak_memory(&self, bytes: u64) {
        self.peak.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Closes, in a process forked from the child's parent, the copies of the child's descriptors.
    pub(crate) fn close_copies(self) {
        if let Name::Number {
            writer: Some(writer),
            ..
        } = self.name
        {
            worker::close_copy(writer.as_fd());
            // The thread that shares it is not in this process. Nothing closes the descriptor
            // again.
            std::mem::forget(writer);
        }
    }

    /// Sends SIGKILL to the child, and to the processes that it has started. If the child has ended
    /// already, that is no error.
    pub(crate) fn kill(&self) {
        Self::kill_all([self]);
    }

    /// Kills several children, like [`kill`](Self::kill). What they have started is looked for once
    /// for all of them.
    pub(crate) fn kill_all<'a>(children: impl IntoIterator<Item = &'a Self>) {
        for (pid, error) in Self::try_kill_all(children) {
            log::error!("SIGKILL to process {pid} failed: {error}");
        }
    }

    /// Kills the child like [`kill`](Self::kill), and returns the kernel's refusal.
    pub(crate) fn try_kill(&self) -> io::Result<()> {
        let refused = Self::try_kill_all([self]).pop();
        refused.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn try_kill_all<'a>(children: impl IntoIterator<Item = &'a Self>) -> Vec<(u32, io::Error)> {
        // What a child that has ended by itself has started is none of this call's business.
        let is_meant = |child: &&Self| child.tree.is_none() || !child.has_ended();
        let children: Vec<_> = children.into_iter().filter(is_meant).collect();
        let roots = children.iter().filter(|child| child.tree.is_some());
        let roots = roots.filter(|child| child.is_pidfd());
        let roots: Vec<_> = roots.map(|child| (child.pid, child.as_fd())).collect();
        let tables = children.iter().filter_map(|child| child.tree.as_ref());
        let found = tree::stop_descendants(&roots, tables.clone().find_map(Entry::table));
        let kill = |child: &&Self| Some((child.pid, child.signal(Signal::SIGKILL).err()?));
        let refused = children.iter().filter_map(kill).collect();
        drop(found);
        for tree in tables {
            tree.ended(false);
        }
        refused
    }

    /// Sends a signal. If the child has ended already, that is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.name {
            Name::Descriptor => match process_fd::signal(self.fd.as_fd(), signal) {
                // A filter of system calls refuses it, or the program has closed the descriptor. A
                // child that runs has not been reaped, so its number is its own.
                Err(Errno::ENOSYS | Errno::EPERM | Errno::EBADF) if !self.has_ended() => {
                    kill(Pid::from_raw(self.raw()), signal)
                }
                sent => sent,
            },
            Name::Number {
                is_reaped, started, ..
            } => {
                // Held, so that the number does not become another process's meanwhile.
                let is_reaped = is_reaped.lock();
                if *is_reaped || !self.is_there(*started) {
                    return Ok(());
                }
                kill(Pid::from_raw(self.raw()), signal)
            }
        };
        match sent {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether the number still is the child's, by the kernel's answer. Another thread may
    /// reap it right after.
    fn is_there(&self, started: Option<u64>) -> bool {
        if self.is_adopted {
            started.is_none_or(|started| life::is_running(self.pid, started))
        } else {
            self.look() != Err(Errno::ECHILD)
        }
    }

    /// Returns the number, as the kernel takes it. It came from the kernel.
    fn raw(&self) -> libc::pid_t {
        self.pid.cast_signed()
    }

    /// Waits for the child to end and returns how it did. After this it is no longer a zombie.
    pub(crate) fn reap(&self) -> ExitStatus {
        if self.is_adopted {
            self.wait_end(None);
        }
        let reaped = match &self.name {
            Name::Descriptor => {
                let fd = self.fd.as_raw_fd().unsigned_abs();
                match reap(libc::P_PIDFD, fd, 0) {
                    // The program has closed the descriptor, or this kernel waits for numbers only.
                    Err(Errno::EBADF | Errno::EINVAL) if !self.is_adopted => {
                        reap(libc::P_PID, self.pid, 0)
                    }
                    reaped => reaped,
                }
            }
            // Its parent may have reaped it, and this process may have another child of that
            // number.
            Name::Number { started, .. } if self.is_adopted => {
                let now = life::start_time(self.pid).ok();
                if started.is_none_or(|started| now == Some(started)) {
                    reap(libc::P_PID, self.pid, libc::WNOHANG)
                } else {
                    Err(Errno::ECHILD)
                }
            }
            Name::Number { is_reaped, .. } => {
                // First the wait for the end, which may be long in coming, so that the child can be
                // killed meanwhile.
                while ended::wait(libc::P_PID, self.pid, 0) == Err(Errno::EINTR) {}
                // Under the lock, no signal is sent while the number becomes free.
                let mut is_reaped = is_reaped.lock();
                if *is_reaped {
                    return ExitStatus::Unknown;
                }
                *is_reaped = true;
                reap(libc::P_PID, self.pid, 0)
            }
        };
        match reaped {
            Ok((status, peak)) => {
                self.peak.store(peak, Ordering::Relaxed);
                status
            }
            Err(error) => {
                // ECHILD: the program ignores SIGCHLD, or waited for any child and reaped this one.
                if error != Errno::ECHILD {
                    log::error!("the end of process {} cannot be told: {error}", self.pid);
                    // The caller relies on it that the child has ended.
                    self.wait_end(None);
                }
                ExitStatus::Unknown
            }
        }
    }

    /// Notes that the parent of an adopted child is about to reap it: its number must not be used
    /// any more.
    pub(crate) fn will_be_reaped(&self) {
        if let Name::Number { is_reaped, .. } = &self.name {
            *is_reaped.lock() = true;
        }
    }

    /// Returns the most memory that the child has had resident at once, in bytes; `None` if the
    /// kernel does not say.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        match self.peak.load(Ordering::Relaxed) {
            0 => state::peak_memory(self.pid),
            peak => Some(peak),
        }
    }

    /// Returns whether the descriptor may say nothing of the child's end for long: there are no
    /// pidfds, and the thread that writes to it is in another process, which may be stopped. Then
    /// the caller must look at the child every [`SLICE`].
    pub(crate) fn is_to_be_looked_at(&self) -> bool {
        self.is_adopted && !self.is_pidfd()
    }

    /// Returns whether the child has ended. Never waits.
    pub(crate) fn has_ended(&self) -> bool {
        match wait_readable(&[self.fd.as_fd()], Some(Duration::ZERO)) {
            Ok(None) if self.is_to_be_looked_at() => self.has_ended_by_itself(),
            Ok(found) => found.is_some(),
            Err(_) => self.has_ended_by_itself(),
        }
    }

    /// Waits until the child has ended, at most for `timeout` (`None`: for ever). Returns whether
    /// it has.
    ///
    /// Where the kernel refuses to wait for the descriptor, this looks at the child, with short
    /// pauses.
    pub(crate) fn wait_end(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slice = self.is_to_be_looked_at().then_some(SLICE);
            let wait = left.into_iter().chain(slice).min();
            match wait_readable(&[self.fd.as_fd()], wait) {
                Ok(None) if slice.is_some() => {
                    if self.has_ended_by_itself() {
                        return true;
                    }
                    if left == Some(Duration::ZERO) {
                        return false;
                    }
                }
                Ok(found) => return found.is_some(),
                Err(_) if self.has_ended_by_itself() => return true,
                Err(_) if left == Some(Duration::ZERO) => return false,
                Err(refused) => pause(&refused, left),
            }
        }
    }

    /// Returns whether the child has ended, without a look at what its descriptor says.
    fn has_ended_by_itself(&self) -> bool {
        if !self.is_adopted {
            match self.look() {
                Ok(has_ended) => return has_ended,
                // Another part of the program has reaped it.
                Err(Errno::ECHILD) => return true,
                Err(_) => {}
            }
        }
        // Its parent has not reaped it, so the number is its own.
        let started = match self.name {
            Name::Number { started, .. } => started,
            Name::Descriptor => None,
        };
        match started.or_else(|| life::start_time(self.pid).ok()) {
            Some(started) => !life::is_running(self.pid, started),
            None => life::is_gone(self.pid),
        }
    }

    /// Asks the kernel whether this process's own child has ended. Does not reap it.
    fn look(&self) -> Result<bool, Errno> {
        if self.is_pidfd() {
            let fd = self.fd.as_raw_fd().unsigned_abs();
            match ended::wait(libc::P_PIDFD, fd, libc::WNOHANG) {
                // The program has closed the descriptor, or this kernel waits for numbers only.
                Err(Errno::EBADF | Errno::EINVAL) => {}
                answer => return answer,
            }
        }
        ended::has_ended(self.raw())
    }
}

impl Name {
    fn by_number(started: Option<u64>, writer: Option<Arc<PipeWriter>>) -> Self {
        Self::Number {
            is_reaped: Mutex::new(false),
            started,
            writer,
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Kills a child of which no [`Child`] could be made, and waits for it. Until then its pid is its
/// own, unless another part of the program has waited for it.
pub(crate) fn kill_unopened(pid: u32) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if ended::has_ended(raw) == Err(Errno::ECHILD) {
        // Another part of the program has reaped it.
        return;
    }
    let pid = Pid::from_raw(raw);
    if let Err(error) = kill(pid, Signal::SIGKILL) {
        log::error!("SIGKILL to process {pid} failed: {error}");
    }
    while waitpid(pid, None) == Err(Errno::EINTR) {}
}

/// Waits for the end of a child and takes its exit status. Returns how it ended, and the most
/// memory it had, in bytes.
///
/// With `WNOHANG` among the flags: [`ExitStatus::Unknown`] for a child that has not ended.
///
/// Does not use nix's `waitid`, which cannot name the real-time signals.
fn reap(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Result<(ExitStatus, u64), Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // The system call itself: the C library's function leaves out what the child has used.
    // SAFETY: both pointers are to memory that the call may write to.
    while let Err(error) = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_waitid,
            kind,
            id,
            info.as_mut_ptr(),
            libc::WEXITED | flags,
            usage.as_mut_ptr(),
        )
    }) {
        if error != Errno::EINTR {
            return Err(error);
        }
    }
    // SAFETY: zeros are valid, and so is what the call wrote.
    let info = unsafe { info.assume_init() };
    // SAFETY: as above.
    let usage = unsafe { usage.assume_init() };
    let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // SAFETY: the call has succeeded, so this is the record of a child, or zeros.
    let status = unsafe { info.si_status() };
    let ended = match info.si_code {
        libc::CLD_EXITED => ExitStatus::Exit(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => ExitStatus::Signal(status),
        _ => ExitStatus::Unknown,
    };
    Ok((ended, kilobytes * 1_024))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::process::Command;

    use nix::sys::wait::WaitPidFlag;

    use super::*;

    #[expect(
        clippy::zombie_processes,
        reason = "it is not waited for here: that is what is tested"
    )]
    #[test]
    fn a_child_that_cannot_be_opened_is_killed_and_reaped() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        kill_unopened(child.id());
        let pid = Pid::from_raw(child.id().cast_signed());
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD));
        // Another part of the program has reaped it.
        kill_unopened(child.id());
    }
}
