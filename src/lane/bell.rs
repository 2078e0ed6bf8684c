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
use crate::os::{fault, futex, memory::SharedMemory};

const BELL_BYTES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

#[derive(Debug)]
pub(crate) struct Bell {
    memory: SharedMemory,
    /// For workers to come.
    fd: OwnedFd,
}

/// A worker's side of the bell of its pool.
pub(crate) struct Ringer {
    memory: SharedMemory,
}

impl Ringer {
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            memory: SharedMemory::open(fd, BELL_BYTES)?,
        })
    }
}

impl Ring for Ringer {
    fn ring(&self) {
        ring(word(&self.memory));
    }
}

fn word(memory: &SharedMemory) -> &AtomicU32 {
    // SAFETY: the mapping is page-aligned, large enough and lives as long as `memory`; any value is
    // valid.
    unsafe { memory.start().cast::<AtomicU32>().as_ref() }
}

fn ring(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
    fault::point();
    futex::wake_all(word);
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let (memory, fd) = SharedMemory::new(BELL_BYTES)?;
        Ok(Self { memory, fd })
    }

    /// What a worker opens its [`Ringer`] by.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn word(&self) -> &AtomicU32 {
        word(&self.memory)
    }

    /// Wakes all who sleep.
    pub(crate) fn ring(&self) {
        ring(self.word());
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
