//! What a process still does when it ends normally.

use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whose turn it is at the end. They come in this order.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    /// The children of this process.
    Children,
    /// Its named shared memory. The children, who are waited for, may still look for it.
    SharedMemory,
    /// What it was to give back of shared objects, and could not yet.
    Releases,
    /// Its place among those that share objects.
    Family,
}

/// What each turn calls.
static LAST: [OnceLock<fn()>; 4] = [const { OnceLock::new() }; 4];

/// Has `last` called when this process, or one forked from it, returns from `main` or calls `exit`. Later calls for the
/// same turn do nothing.
pub(crate) fn call_at_exit(turn: Turn, last: fn()) {
    /// Flags, not a `Once`: a forked child might find that half-way for ever.
    static TOLD: [AtomicBool; 4] = [const { AtomicBool::new(false) }; 4];
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    extern "C" fn handler() {
        end();
    }
    if TOLD[turn as usize].swap(true, Ordering::Relaxed) {
        return;
    }
    let _ = LAST[turn as usize].set(last);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: `handler` uses nothing but statics, which have no destructors, so it may run at any time.
        if unsafe { libc::atexit(handler) } != 0 {
            log::error!(
                "out of memory: children will not be waited for at the end of this process, nor named memory removed"
            );
        }
    }
}

/// What the handler does. To be called by a process that ends without exit handlers.
pub(crate) fn end() {
    for last in &LAST {
        // Nothing may unwind into the C library, nor cost the next one its turn. The panic hook has told of it.
        let _ = catch_unwind(|| last.get().map(|last| last()));
    }
}
