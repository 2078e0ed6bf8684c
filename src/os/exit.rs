//! What a process must still do when it ends normally.

use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// A turn at the end of a process. The turns come in this order.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    /// The children of this process, who are waited for.
    Children,
    /// Its named shared memory. The children, who are waited for before, may still look for it.
    SharedMemory,
    /// What it must give back of shared objects, and could not give back before.
    Releases,
    /// Its place among the processes that share objects.
    Family,
}

/// The function that each turn calls.
static LAST: [OnceLock<fn()>; 4] = [const { OnceLock::new() }; 4];

/// Has `last` called when this process, or one forked from it, returns from `main` or calls `exit`.
/// Later calls for the same turn do nothing.
pub(crate) fn call_at_exit(turn: Turn, last: fn()) {
    /// Flags, not a `Once`: a forked child might find a `Once` half-way for ever.
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
        // SAFETY: `handler` uses nothing but statics, which have no destructors, so it may run at
        // any time.
        if unsafe { libc::atexit(handler) } != 0 {
            log::error!(
                "out of memory: children will not be waited for at the end of this process, nor named memory removed"
            );
        }
    }
}

/// Does what the handler does. A process that ends without exit handlers must call it.
pub(crate) fn end() {
    for last in &LAST {
        // Nothing may unwind into the C library, nor keep the next function from its turn. The
        // panic hook has reported the panic.
        let _ = catch_unwind(|| last.get().map(|last| last()));
    }
}
