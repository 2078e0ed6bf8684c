//! What a process still does when it ends normally.

use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The function to call: this crate has one.
static LAST: OnceLock<fn()> = OnceLock::new();

/// Has `last` called when this process, or one forked from it, returns from `main` or calls `exit`. Later calls do
/// nothing.
pub(crate) fn call_at_exit(last: fn()) {
    /// A flag, not a `Once`: a forked child might find that half-way for ever.
    static TOLD: AtomicBool = AtomicBool::new(false);
    extern "C" fn handler() {
        // Nothing may unwind into the C library. The panic hook has told of it.
        let _ = catch_unwind(|| LAST.get().map(|last| last()));
    }
    if !TOLD.swap(true, Ordering::Relaxed) {
        let _ = LAST.set(last);
        // SAFETY: `handler` uses nothing but statics, which have no destructors, so it may run at any time.
        if unsafe { libc::atexit(handler) } != 0 {
            log::error!(
                "out of memory: children will not be waited for at the end of this process"
            );
        }
    }
}
