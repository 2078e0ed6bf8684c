//! The bell of a pool: a word in shared memory that a sleeping parent waits on and every worker can change.
//!
//! Its value means nothing but "something has happened since you looked". So a worker that scribbles on it can cause a
//! look too many, and never a lost wake-up: `FUTEX_WAKE` wakes whatever the value.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Ring;
use crate::os::{futex, memory::SharedMemory};

const BELL_BYTES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

#[derive(Debug)]
pub(crate) struct Bell {
    memory: SharedMemory,
}

impl Ring for Bell {
    fn ring(&self) {
        Self::ring(self);
    }
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            memory: SharedMemory::new(BELL_BYTES)?,
        })
    }

    pub(crate) fn open(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            memory: SharedMemory::open(fd, BELL_BYTES)?,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is page-aligned, large enough and lives as long as `self`; any value is valid.
        unsafe { self.memory.start().cast::<AtomicU32>().as_ref() }
    }

    /// Wakes all who sleep.
    pub(crate) fn ring(&self) {
        self.word().fetch_add(1, Ordering::Release);
        futex::wake_all(self.word());
    }

    /// What to give to `sleep`. To be taken before the last look.
    pub(crate) fn listen(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    /// Sleeps until the bell has rung since `heard`, at most for `timeout`.
    pub(crate) fn sleep(&self, heard: u32, timeout: Option<Duration>) {
        futex::wait(self.word(), heard, timeout);
    }
}
