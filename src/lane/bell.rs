//! The bell of a pool: a word in shared memory that a sleeping parent waits on and every worker can
//! change.
//!
//! A change of its value means only that something has happened since the last look. So a worker
//! that overwrites it can cause one look too many, and never a lost wake-up: `FUTEX_WAKE` wakes
//! whatever the value.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
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
    /// For workers that start later.
    fd: OwnedFd,
}

/// A worker's side of the bell of its pool.
pub(crate) struct Ringer {
    memory: SharedMemory,
}

impl Ringer {
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            memory: SharedMemory::open("the pool's bell", fd, BELL_BYTES)?,
        })
    }
}

impl Ring for Ringer {
    fn ring(&self) {
        word(&self.memory).ring();
    }
}

/// The word of a bell.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Doorbell(Futex);

impl Doorbell {
    /// Wakes all threads that sleep on the bell.
    pub(crate) fn ring(&self) {
        // Release pairs with the load in `listen`: a thread that sees this ring sees what came
        // before it.
        self.0.fetch_add(1, Ordering::Release);
        fault::point();
        self.0.wake(u32::MAX);
    }

    /// Returns the value to give to `sleep`. The caller must take it before its last look.
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
        let (memory, fd) = SharedMemory::new("the pool's bell", BELL_BYTES)?;
        Ok(Self { memory, fd })
    }

    /// Returns the descriptor by which a worker opens its [`Ringer`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Deref for Bell {
    type Target = Doorbell;

    fn deref(&self) -> &Doorbell {
        word(&self.memory)
    }
}
