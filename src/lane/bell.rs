//! The bell of a pool: a word in shared memory that a sleeping parent waits on and every worker can change.
//!
//! Its value means nothing but "something has happened since you looked". So a worker that scribbles on it can cause a
//! look too many, and never a lost wake-up: `FUTEX_WAKE` wakes whatever the value.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Ring;
use crate::os::{fault, memory::SharedMemory};
use crate::shim::Futex;

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
        word(&self.memory).ring();
    }
}

/// The word itself.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Doorbell(Futex);

impl Doorbell {
    /// Wakes all that sleep.
    pub(crate) fn ring(&self) {
        // Release pairs with the load in `listen`: who hears of this ring sees what came before it.
        self.0.fetch_add(1, Ordering::Release);
        fault::point();
        self.0.wake(u32::MAX);
    }

    /// What to give to `sleep`. To be taken before the last look.
    pub(crate) fn listen(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps until the bell has rung since `heard`, at most for `timeout`.
    pub(crate) fn sleep(&self, heard: u32, timeout: Option<Duration>) {
        self.0.sleep_for(heard, timeout);
    }
}

fn word(memory: &SharedMemory) -> &Doorbell {
    if cfg!(loom) {
        unreachable!("under loom a bell is not what lies in memory");
    }
    // SAFETY: the mapping is page-aligned, large enough and lives as long as `memory`; a bell is
    // one word, of which any value is valid.
    unsafe { memory.start().cast::<Doorbell>().as_ref() }
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

    /// The word, for those who wait.
    pub(crate) fn doorbell(&self) -> &Doorbell {
        word(&self.memory)
    }

    /// Wakes all who sleep.
    pub(crate) fn ring(&self) {
        self.doorbell().ring();
    }

    /// What to give to `sleep`. To be taken before the last look.
    pub(crate) fn listen(&self) -> u32 {
        self.doorbell().listen()
    }

    /// Sleeps until the bell has rung since `heard`, at most for `timeout`.
    pub(crate) fn sleep(&self, heard: u32, timeout: Option<Duration>) {
        self.doorbell().sleep(heard, timeout);
    }
}
