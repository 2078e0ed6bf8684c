//! The futex of the kernel.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::os::futex::{self, Wake};

/// A word to sleep on, in shared memory.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Futex(AtomicU32);

impl Futex {
    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }

    pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.0.fetch_add(value, order)
    }

    /// Sleeps while the word holds `expected`, until a wake-up comes or the time is `end`. The
    /// model needs to know whether that is a deadline or just the end of a slice.
    pub(crate) fn sleep(&self, expected: u32, end: Instant, _is_deadline: bool) -> Wake {
        futex::wait_until(&self.0, expected, end)
    }

    /// Sleeps while the word holds `expected`, until a wake-up comes or `timeout` is over. May also
    /// return for no reason.
    pub(crate) fn sleep_for(&self, expected: u32, timeout: Option<Duration>) {
        futex::wait(&self.0, expected, timeout);
    }

    pub(crate) fn wake(&self, count: u32) {
        futex::wake(&self.0, count);
    }

    /// Returns the word itself, for threads that sleep on many at once.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.0
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, order);
    }

    /// Swaps the value. Acquires and releases.
    pub(crate) fn swap(&self, value: u32) -> u32 {
        self.0.swap(value, Ordering::AcqRel)
    }

    /// Exchanges the value if it is `current`. Acquires, and releases if it succeeds.
    pub(crate) fn compare_exchange(&self, current: u32, new: u32) -> Result<u32, u32> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.0.compare_exchange(current, new, success, failure)
    }
}
