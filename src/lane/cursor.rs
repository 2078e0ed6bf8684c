//! A cursor in shared memory: processes claim the elements of a list that they all know, each
//! element once.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::os::fault;
use crate::os::memory::SharedMemory;

#[derive(Debug)]
pub(crate) struct Cursor {
    memory: SharedMemory,
}

impl Cursor {
    pub(crate) fn new() -> io::Result<Self> {
        let len = NonZeroUsize::new(4_096).unwrap_or(NonZeroUsize::MIN);
        // Forked children have it mapped.
        let (memory, _fd) = SharedMemory::new("the place of a call in its items", len)?;
        Ok(Self { memory })
    }

    fn word(&self) -> &AtomicUsize {
        // SAFETY: the mapping is page-aligned, large enough and lives as long as `self`; any value
        // is valid.
        unsafe { self.memory.start().cast::<AtomicUsize>().as_ref() }
    }

    /// Claims the next element and returns its index. An index past the end of the list, whose
    /// length the caller knows, means that none is left.
    pub(crate) fn claim(&self) -> usize {
        // Relaxed: only the number itself is shared. It cannot wrap: each process claims past the
        // end once.
        fault::point();
        let claimed = self.word().fetch_add(1, Ordering::Relaxed);
        fault::point();
        claimed
    }

    /// Returns how many have been claimed, those past the end included.
    pub(crate) fn position(&self) -> usize {
        self.word().load(Ordering::Relaxed)
    }

    /// Leaves nothing to claim of a list of this length.
    pub(crate) fn pass(&self, len: usize) {
        self.word().fetch_max(len, Ordering::Relaxed);
    }

    /// Sets the cursor back to the start. No other process may claim meanwhile.
    pub(crate) fn reset(&self) {
        self.word().store(0, Ordering::Relaxed);
    }
}
