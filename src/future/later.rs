//! Runs code of the user after a task has ended, but not under a lock of an engine.
//!
//! Wakers of async runtimes are called by the thread that found the task ended, as soon as it has
//! released the engine's lock. That saves one switch of threads, compared with a thread of their
//! own. Callbacks may do anything, also wait for another task; they run on threads that nothing
//! else depends on ([`callback_threads`]).

use std::cell::{Cell, RefCell};
use std::task::Waker;

use super::callback_threads::{self, Callback};
use crate::copies::Original;
use crate::panic;

thread_local! {
    static WAKERS: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread has put off anything. It is a flag of its own, because `flush` looks at
    /// it after every lock.
    static IS_ANYTHING: Cell<bool> = const { Cell::new(false) };
}

/// Puts off waking the waker to the next [`flush`] of this thread.
pub(crate) fn wake(waker: Waker) {
    IS_ANYTHING.set(true);
    let waker = WAKERS.try_with(|wakers| wakers.borrow_mut().push(waker));
    debug_assert!(waker.is_ok(), "a task ended while its thread did");
}

/// Runs a callback soon, on a thread for callbacks, after those that came before it. If none is
/// free and the system refuses one, the next [`flush`] of this thread runs it.
pub(crate) fn call(callback: Callback) {
    if !callback_threads::call(callback) {
        IS_ANYTHING.set(true);
    }
}

/// Wakes what has been put off. A thread calls this after it has released a lock under which hooks
/// may have run.
#[inline]
pub(crate) fn flush() {
    if IS_ANYTHING.get() {
        flush_now();
    }
}

#[cold]
fn flush_now() {
    IS_ANYTHING.set(false);
    let wakers = WAKERS.try_with(|wakers| std::mem::take(&mut *wakers.borrow_mut()));
    for waker in wakers.unwrap_or_default() {
        let original = Original::here();
        let woken = panic::catch(|| waker.wake());
        // A copy that the waker has forked ends here: it would go on with what this thread does,
        // and with the memory that the original shares with its workers.
        original.end_copy_after(&woken);
        if let Err(caught) = woken {
            log::error!("a waker panicked: {}", caught.message);
        }
    }
    callback_threads::run_here();
}
