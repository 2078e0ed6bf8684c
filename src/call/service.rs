//! The threads that belong to a pool, and what they must not wait for.

use std::cell::Cell;
use std::thread::{self, JoinHandle};

thread_local! {
    /// Address of the pool that this thread supervises; 0 for none.
    static SUPERVISES: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is one of a pool's own, whichever pool's and for whatever work.
    static SERVES: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread supervises the pool at `pool`. It runs wakers, and must not wait for
/// its own end in one.
pub(crate) fn supervises(pool: usize) -> bool {
    SUPERVISES.get() == pool
}

/// Records that this thread supervises the pool at `pool`; 0 for none.
pub(crate) fn supervise(pool: usize) {
    SUPERVISES.set(pool);
}

/// Records that this thread is a pool's own.
pub(crate) fn note_service() {
    SERVES.set(true);
}

/// Returns whether this thread is a pool's own. That pool waits for it at the pool's end. So this
/// thread must not wait for the end of any pool: that pool's threads may be waiting for the end of
/// this thread's pool.
pub(crate) fn serves_a_pool() -> bool {
    SERVES.get()
}

/// Waits for the end of a thread, unless it is this one, which is in a waker and ends after it.
pub(crate) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() == thread::current().id() {
        return;
    }
    if thread.join().is_err() {
        log::error!("a thread of a process pool panicked");
    }
}
