//! Forking, and how a process knows that it was forked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::unistd::{ForkResult, getpid};

use super::refusal::refused;

pub(crate) use super::generation::{
    COPY_PANICKED, COPY_RETURNED, Original, OwnPointer, forked_from, generation,
};

/// A value that each process in a line of forks has for itself.
///
/// A forked child gets a copy of its parent's value. Nothing in the copy belongs to the child, and
/// the locks in it may be held for ever by threads that the child does not have. The copies are
/// left alone: each process finds its own value by counting.
pub(crate) struct PerProcess<T> {
    value: T,
    /// The value of the processes forked from the one that has `value`.
    next: OnceLock<Box<PerProcess<T>>>,
}

impl<T: Default> PerProcess<T> {
    /// Makes one with the value of the first process of this image.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            value,
            next: OnceLock::new(),
        }
    }

    /// Returns this process's own value.
    pub(crate) fn own(&self) -> &T {
        let mut own = self;
        for _ in 0..generation() {
            own = own.next.get_or_init(|| Box::new(Self::new(T::default())));
        }
        &own.value
    }
}

/// Which side of a fork this is.
pub(crate) enum Side {
    Parent { child: u32 },
    Child,
}

/// Splits the process in two.
///
/// # Safety
///
/// The child has only the calling thread: no other thread may hold a lock that the child will want,
/// except those that the C library takes care of (its allocator's).
pub(crate) unsafe fn fork() -> io::Result<Side> {
    // Begins to count, so that the child's fork is counted.
    let _ = generation();
    // SAFETY: the caller's obligation is the same as nix's.
    let forked = unsafe { nix::unistd::fork() };
    match forked.map_err(|error| refused("fork", "a copy of this process", error))? {
        ForkResult::Parent { child } => Ok(Side::Parent {
            child: child.as_raw().unsigned_abs(),
        }),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Ends a forked child at once: no destructors, no `atexit` handlers, no flush of buffers inherited
/// from the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit may be called at any time.
    unsafe { libc::_exit(code) }
}

/// From the kernel's `uapi/asm-generic/fcntl.h`; the libc crate does not have it for every C
/// library.
const F_SETSIG: libc::c_int = 10;

/// Has the kernel kill this process when the other end of `socket` is closed, that is, when its
/// holder has died, whatever this process does at that time. Nothing may be sent over the socket
/// after this call.
pub(crate) fn die_when_closed(socket: BorrowedFd<'_>) -> io::Result<()> {
    let raw = socket.as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and changes only how this descriptor signals.
    Errno::result(unsafe { libc::fcntl(raw, F_SETSIG, libc::SIGKILL) })?;
    // SAFETY: F_SETOWN takes an integer.
    Errno::result(unsafe { libc::fcntl(raw, libc::F_SETOWN, getpid().as_raw()) })?;
    // SAFETY: F_GETFL takes nothing.
    let flags = Errno::result(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer.
    Errno::result(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_ASYNC) })?;
    Ok(())
}

/// A forked child of a test, which is killed and reaped at the latest when this is dropped.
#[cfg(test)]
pub(crate) struct Victim(nix::unistd::Pid);

#[cfg(test)]
impl Victim {
    /// Forks a child that runs `body` and then waits to be killed. There are other threads in a
    /// test's process, so `body` does only what a signal handler may do: no allocation, no lock but
    /// the one it is about.
    pub(crate) fn fork(body: impl FnOnce()) -> Self {
        // SAFETY: the child takes no lock that another thread could hold, by what is asked of
        // `body`.
        match unsafe { fork() }.unwrap() {
            Side::Parent { child } => Self(nix::unistd::Pid::from_raw(child.cast_signed())),
            Side::Child => {
                body();
                loop {
                    // If the test is killed, it cannot kill this child. The child ends when it has
                    // been given to another parent.
                    nix::unistd::sleep(1);
                    if std::os::unix::process::parent_id() == 1 {
                        exit_now(0);
                    }
                }
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_raw().cast_unsigned()
    }

    /// Kills the child and waits until it is gone.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

#[cfg(test)]
impl Drop for Victim {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(self.0, None).unwrap();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::os::fault::{Child, Fate};

    #[test]
    fn each_process_has_a_value_of_its_own() {
        static VALUE: PerProcess<AtomicU32> = PerProcess::new(AtomicU32::new(1));
        fn swap(value: u32) -> u32 {
            VALUE.own().swap(value, Ordering::Relaxed)
        }
        assert_eq!(swap(7), 1);
        let child = Child::run(Fate::Killed, i64::MAX - 1, || {
            // The value of its parent is not to be seen.
            assert_eq!(swap(8), 0);
            let grandchild = Child::run(Fate::Killed, i64::MAX - 1, || assert_eq!(swap(9), 0));
            assert!(grandchild.end());
            assert_eq!(swap(8), 8);
        });
        assert!(child.end());
        assert_eq!(swap(7), 7);
    }
}
