//! Pidfds, as the kernel has them: descriptors that mean one process for ever.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::refusal::refused;

/// Set once the kernel has said that it has no pidfds, so that it is not asked again for each
/// child. Valgrind prints several lines each time.
static HAS_NO_PIDFDS: AtomicBool = AtomicBool::new(false);

/// Opens a pidfd; `None` where there are no pidfds.
pub(super) fn open(pid: libc::pid_t) -> io::Result<Option<OwnedFd>> {
    if HAS_NO_PIDFDS.load(Ordering::Relaxed) {
        return Ok(None);
    }
    // SAFETY: pidfd_open takes two integers and touches no memory.
    let fd = match Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }) {
        Ok(fd) => i32::try_from(fd).map_err(io::Error::other)?,
        // A filter of system calls answers with EPERM.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            HAS_NO_PIDFDS.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        Err(error) => return Err(refused("pidfd_open", format_args!("process {pid}"), error)),
    };
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all pidfds) for this call
    // alone.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Returns whether there are pidfds.
pub(super) fn are_there() -> bool {
    !HAS_NO_PIDFDS.load(Ordering::Relaxed)
        && open(std::process::id().cast_signed()).map_or(true, |fd| fd.is_some())
}

/// Sends a signal to the process that the pidfd means.
pub(super) fn signal(fd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    // SAFETY: a null siginfo asks for the plain signal; the descriptor is open.
    let sent = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    });
    sent.map(drop)
}
