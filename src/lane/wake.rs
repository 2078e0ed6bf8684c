//! The two words by which parent and worker of a lane wake each other. Both processes change each
//! of them.
//!
//! ```text
//! the side that waits                 the other side
//!   1. writes to the word               1. publishes cells
//!   2. fence                            2. fence
//!   3. looks at the cells               3. reads the word, and wakes if it was written to
//! ```
//!
//! One of the two fences comes first. If it is that of the side that waits, the other side sees the
//! word. Otherwise the side that waits sees the cells, and does not sleep.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::is_past;
use crate::os::fault;
use crate::shim::{AtomicU32, Futex, fence};

/// 1 while the worker sleeps or is about to. Set by the worker before its last look at the cells,
/// cleared by the side that ends the sleep.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Asleep(Futex);

impl Asleep {
    /// Wakes the worker if it sleeps, and returns whether it did. Called after cells were published
    /// or freed.
    pub(crate) fn wake(&self) -> bool {
        // Pairs with the fence in `sleep_unless`.
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.0.store(0, Ordering::Relaxed);
        fault::point();
        self.0.wake(u32::MAX);
        true
    }

    /// Sleeps once, at most for `timeout`, unless `ready` holds. May return for no reason.
    pub(crate) fn sleep_unless(&self, ready: &mut impl FnMut() -> bool, timeout: Option<Duration>) {
        self.0.store(1, Ordering::Relaxed);
        fault::point();
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        // The word is set, so a parent that publishes from now on wakes this thread.
        if !ready() {
            self.0.sleep_for(1, timeout);
        }
        self.0.store(0, Ordering::Relaxed);
    }
}

/// 0, or the number of a task: the worker rings the bell when it has ended that task or a later
/// one, when it runs out of tasks, and when the response ring is full. Set by the parent before it
/// sleeps, cleared by the worker as it rings.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct RingAt(AtomicU32);

impl RingAt {
    /// Asks the worker to ring when it has ended task `number`, unless it has been asked to do so
    /// earlier. [`bell_is_asked_for`] and another look at the responses must follow before the
    /// parent sleeps.
    pub(crate) fn ask(&self, number: u32) {
        let asked = self.0.load(Ordering::Relaxed);
        // An earlier request is more urgent and stays.
        if asked == 0 || is_past(asked, number) {
            self.0.store(number, Ordering::Relaxed);
        }
    }

    /// Takes the parent's request, if it is due at the end of task `number`. Returns whether it
    /// was: then the worker must ring.
    pub(crate) fn take(&self, number: u32) -> bool {
        // Pairs with the fence in `bell_is_asked_for`.
        fence(Ordering::SeqCst);
        let asked = self.0.load(Ordering::Relaxed);
        if asked == 0 || (asked != number && !is_past(number, asked)) {
            // The parent has not asked, or only for a later task.
            return false;
        }
        self.0.store(0, Ordering::Relaxed);
        fault::point();
        true
    }

    /// Takes the parent's request, whichever task it is for. Returns whether there was one: then
    /// the worker must ring.
    pub(crate) fn take_any(&self) -> bool {
        // Pairs with the fence in `bell_is_asked_for`.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::Relaxed) != 0
    }
}

/// Makes the requests for the bell count. The parent calls it after it has asked the workers of any
/// number of lanes to ring, and before its last look at their responses.
pub(crate) fn bell_is_asked_for() {
    // Pairs with the fences in `RingAt`: either the parent sees what the worker published before
    // its fence, or the worker sees that it was asked.
    fence(Ordering::SeqCst);
}

#[cfg(all(test, loom))]
mod loom_tests;
