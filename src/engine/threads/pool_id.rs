//! [`OwnPool`]: which pool a task belongs to, and whether this thread or process belongs there too.

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
    /// The pools whose `map` this thread is in the middle of.
    static MAPPING_ON: RefCell<Vec<OwnPool>> = const { RefCell::new(Vec::new()) };
}

impl OwnPool {
    /// A new one, like no other.
    pub(super) fn new() -> Self {
        Self {
            pool: PoolId::new(),
            process: process::id(),
        }
    }

    pub(super) fn pool(self) -> PoolId {
        self.pool
    }

    /// False in a forked child of the process that made the pool: no worker came along.
    ///
    /// This asks the kernel (0.1 µs), so it is left to the places where somebody is about to wait or to wake somebody.
    pub(super) fn is_this_process(self) -> bool {
        self.process == process::id()
    }

    /// Makes this thread a worker of the pool, for the rest of its life.
    pub(super) fn adopt_this_thread(self) {
        WORKER_OF.set(Some(self));
    }

    pub(super) fn is_this_worker(self) -> bool {
        WORKER_OF.get() == Some(self)
    }

    /// Whether this thread is one that the pool waits for when it is closed.
    pub(super) fn waits_for_this_thread(self) -> bool {
        self.is_this_worker() || self.is_mapping_here()
    }

    /// Whether this thread is in the middle of a `map` of the pool.
    pub(super) fn is_mapping_here(self) -> bool {
        MAPPING_ON.with_borrow(|pools| pools.contains(&self))
    }

    /// Says that this thread is in the middle of a `map`, for as long as the returned value lives.
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
