//! Child processes by descriptor: no pid can be mixed up with that of a later process.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::above_standard;
use crate::error::Death;

/// Waits until one of these has ended, or the alarm has rung; whether it was one of these.
pub(crate) fn poll_any(these: &[BorrowedFd<'_>], alarm: BorrowedFd<'_>) -> bool {
    let all = these.iter().chain([&alarm]);
    let mut all: Vec<_> = all.map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut all, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => {
                log::error!("processes cannot be polled: {error}");
                return false;
            }
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        if all[..these.len()].iter().any(is_ready) {
            return true;
        }
        if all.iter().any(is_ready) {
            return false;
        }
    }
}

/// A child of this process, or one that it has adopted.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    fd: OwnedFd,
    /// The most memory it has had resident, in bytes; known when it has been waited for.
    peak: AtomicU64,
}

impl Child {
    /// Takes charge of the child `pid`, which must not have been waited for: as long as it has not, its pid is its own.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, raw, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor (close-on-exec, as all pidfds) for this call alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            pid,
            fd: above_standard(fd)?,
            peak: AtomicU64::new(0),
        })
    }

    /// A process that is not a child of this one but of another, which waits for it and has sent its descriptor.
    pub(crate) fn adopt(pid: u32, fd: OwnedFd) -> Self {
        Self {
            pid,
            fd,
            peak: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_peak_memory(&self, bytes: u64) {
        self.peak.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL. A child that has ended already is no error.
    pub(crate) fn kill(&self) {
        if let Err(error) = self.signal(Signal::SIGKILL) {
            log::error!("SIGKILL to process {} failed: {error}", self.pid);
        }
    }

    /// Sends a signal. A child that has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: a null siginfo asks for the plain signal; the descriptor is ours.
        let sent = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        });
        match sent {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the child to end and says how it did. It is a zombie no more after this.
    ///
    /// Not nix's `waitid`, which has no words for the real-time signals.
    pub(crate) fn reap(&self) -> Death {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // The system call itself: the C library's function leaves out what the child has used.
        // SAFETY: both pointers are to memory that the call may write to; the descriptor is ours.
        while let Err(error) = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                self.fd.as_raw_fd(),
                info.as_mut_ptr(),
                libc::WEXITED,
                usage.as_mut_ptr(),
            )
        }) {
            if error != Errno::EINTR {
                // ECHILD: the program ignores SIGCHLD, or waited for any child and got ours.
                return Death::Unknown;
            }
        }
        // SAFETY: zeros are valid, and so is what the call wrote.
        let info = unsafe { info.assume_init() };
        // SAFETY: as above.
        let usage = unsafe { usage.assume_init() };
        let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
        self.peak.store(kilobytes * 1_024, Ordering::Relaxed);
        // SAFETY: the call has succeeded, so this is the record of a child.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => Death::Exit(status),
            libc::CLD_KILLED | libc::CLD_DUMPED => Death::Signal(status),
            _ => Death::Unknown,
        }
    }

    /// The most memory the child has had resident at once, in bytes; `None` if nobody knows.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        match self.peak.load(Ordering::Relaxed) {
            0 => {
                let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmHWM:"))?;
                let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
                Some(kilobytes * 1_024)
            }
            peak => Some(peak),
        }
    }

    /// Whether the child has ended, waiting for that at most `timeout` (`None`: for ever).
    pub(crate) fn wait_end(&self, timeout: Option<Duration>) -> bool {
        wait_readable(&[self.fd.as_fd()], timeout).is_some()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Kills a child of which no [`Child`] could be made, and waits for it. As long as nobody has waited for it, its pid is
/// its own.
pub(crate) fn kill_unopened(pid: u32) {
    let Ok(raw) = i32::try_from(pid) else { return };
    let pid = Pid::from_raw(raw);
    if let Err(error) = kill(pid, Signal::SIGKILL) {
        log::error!("SIGKILL to process {pid} failed: {error}");
    }
    while waitpid(pid, None) == Err(Errno::EINTR) {}
}

/// Waits until one of the descriptors is readable, at most `timeout`; gives the index of the first that is.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Option<usize> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|&fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |time| {
        // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
        let milliseconds = time.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut polled, timeout) {
        Ok(0) | Err(_) => None,
        Ok(_) => polled
            .iter()
            .position(|fd| fd.revents().is_some_and(|events| !events.is_empty())),
    }
}
