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
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Ring;
use crate::os::{fault, memory::SharedMemory};
use crate::shim::Futex;

const BELL_BYTES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Where the bell for log records lies in the same memory: a thread that waits for tasks is not
/// woken by it.
const RECORDS_AT: usize = 128;

#[derive(Debug)]
pub(crate) struct Bell {
    memory: Arc<SharedMemory>,
    /// For workers that start later.
    fd: OwnedFd,
}

/// A worker's side of the bell of its pool.
pub(crate) struct Ringer {
    memory: Arc<SharedMemory>,
}

/// The bell of a pool for log records, from either side.
#[derive(Clone, Debug)]
pub(crate) struct RecordBell {
    memory: Arc<SharedMemory>,
}

impl Ringer {
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            memory: Arc::new(SharedMemory::open("the pool's bell", fd, BELL_BYTES)?),
        })
    }

    pub(crate) fn for_records(&self) -> RecordBell {
        RecordBell {
            memory: self.memory.clone(),
        }
    }
}

impl Ring for Ringer {
    fn ring(&self) {
        word(&self.memory, 0).ring();
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

/// Returns the bell that lies at byte `at`: 0 or [`RECORDS_AT`].
fn word(memory: &SharedMemory, at: usize) -> &Doorbell {
    if cfg!(loom) {
        unreachable!("under loom a bell is not what lies in memory");
    }
    // SAFETY: within the mapping, which has a page.
    let start = unsafe { memory.start().add(at) };
    // SAFETY: the address is aligned, by the alignment of the mapping and of `at`, and the mapping
    // lives as long as `memory`; a bell is one word, of which any value is valid.
    unsafe { start.cast::<Doorbell>().as_ref() }
}

impl Deref for RecordBell {
    type Target = Doorbell;

    fn deref(&self) -> &Doorbell {
        word(&self.memory, RECORDS_AT)
    }
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let (memory, fd) = SharedMemory::new("the pool's bell", BELL_BYTES)?;
        let memory = Arc::new(memory);
        Ok(Self { memory, fd })
    }

    pub(crate) fn for_records(&self) -> RecordBell {
        RecordBell {
            memory: self.memory.clone(),
        }
    }

    /// Returns the descriptor by which a worker opens its [`Ringer`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Deref for Bell {
    type Target = Doorbell;

    fn deref(&self) -> &Doorbell {
        word(&self.memory, 0)
    }
}
