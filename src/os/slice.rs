//! Slices of sleep: how long a thread that waits in shared memory sleeps before it looks by itself.
//!
//! A waiter is woken by the process that changes what it waits for. That process may be killed or
//! stopped right before the wake-up, so no sleep is longer than a slice, whatever its deadline. A
//! slice also repairs a wake-up that this crate forgets, and so hides the fault from its tests.
//! With `--cfg long_slices` each slice is an hour long, and a forgotten wake-up is a test that
//! hangs.
//!
//! A sleep goes through [`slice`] if, as long as the other processes live and run, one of them
//! wakes the waiter before its end. The time between two looks of a pool's supervisor at the lanes
//! goes through it too. These pauses do not:
//!
//! - a deadline of the caller, which ends a sleep as in other builds;
//! - a pause because the kernel refuses to wait, or cannot wait for all at once: nothing wakes the
//!   waiter then;
//! - a look at a process without a pidfd whose parent may be stopped: no process reports its end;
//! - the other clocks of a pool's supervisor, those of the server and those of forked children,
//!   which keep limits and find processes that are stopped.
//!
//! Some tests cannot run so, because what they test is noticed when a slice ends: that a process
//! was killed, and no living one reports it; that a worker is stopped; that a wake-up was left out
//! on purpose; that a process is the only one left. Such a test has `#[cfg(not(long_slices))]`.
//! This lists them: `grep -rA3 'cfg(not(long_slices))' src tests`.

use std::time::Duration;

/// Returns how long a slice of `usual` is in this build: `usual`, or an hour.
pub(crate) const fn slice(usual: Duration) -> Duration {
    if cfg!(long_slices) {
        Duration::from_secs(3_600)
    } else {
        usual
    }
}
