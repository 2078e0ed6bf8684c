//! [`OwnPool`]: the pool that a task belongs to, and whether this thread or process belongs to it
//! too.

use std::cell::{Cell, RefCell};
use std::process;

use crate::future::PoolId;

/// The pool that a task belongs to, and the process that made the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnPool {
    pool: PoolId,
    process: u32,
}

thread_local! {
    /// The pool that this thread is a worker of.
    static WORKER_OF: Cell<Option<OwnPool>> = const { Cell::new(None) };
    /// The pools whose `map` this thread is in.
    static MAPPING_ON: RefCell<Vec<OwnPool>> = const { RefCell::new(Vec::new()) };
}

impl OwnPool {
    /// Makes an id that no other pool has.
    pub(super) fn new() -> Self {
        Self {
            pool: PoolId::new(),
            process: process::id(),
        }
    }

    pub(super) fn pool(self) -> PoolId {
        self.pool
    }

    /// Returns false in a forked child of the process that made the pool: no worker came along.
    ///
    /// This asks the kernel (0.1 µs), so it is called only where a thread is about to wait or to
    /// wake another.
    pub(super) fn is_this_process(self) -> bool {
        self.process == process::id()
    }

    /// Makes this thread a worker of the pool, as long as the thread lives.
    pub(super) fn adopt_this_thread(self) {
        WORKER_OF.set(Some(self));
    }

    pub(super) fn is_this_worker(self) -> bool {
        WORKER_OF.get() == Some(self)
    }

    /// Returns whether this thread is one that the pool waits for when it is closed.
    pub(super) fn waits_for_this_thread(self) -> bool {
        self.is_this_worker() || self.is_mapping_here()
    }

    /// Returns whether this thread is in a `map` of the pool.
    pub(super) fn is_mapping_here(self) -> bool {
        MAPPING_ON.with_borrow(|pools| pools.contains(&self))
    }

    /// Marks this thread as being in a `map`, as long as the returned value lives.
    pub(super) fn start_mapping(self) -> Inside {
        MAPPING_ON.with_borrow_mut(|pools| pools.push(self));
        Inside(())
    }
}

pub(super) struct Inside(());

impl Drop for Inside {
    fn drop(&mut self) {
        MAPPING_ON.with_borrow_mut(Vec::pop);
    }
}
