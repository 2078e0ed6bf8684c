//! Sleeping until a word in shared memory changes.
//!
//! Never `FUTEX_PRIVATE_FLAG`: the word is in memory that other processes map, under other addresses.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::clock;

/// Sleeps while `word` holds `expected`, at most for `timeout`. May also return without a reason; callers look again.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    // tv_nsec has the width of c_long, into which a value below one billion always fits.
    #[allow(clippy::cast_possible_wrap)]
    let timeout = timeout.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `word` is valid for the length of the call, `timeout` is null or points to a live timespec, and
    // FUTEX_WAIT writes to neither. Errors (EAGAIN, EINTR, ETIMEDOUT) all mean: look again.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            timeout,
        )
    };
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Somebody woke this sleeper, or the word holds something else. A sleeper that was woken hears of it also if its
    /// time was up at the same moment: of the wakes that were sent, none is lost to a sleeper that says it timed out.
    Woken,
    /// The deadline has passed.
    TimedOut,
}

/// Sleeps while `word` holds `expected`, until somebody wakes it or `deadline` has passed. Signals that are handled
/// meanwhile do not end the sleep.
pub(crate) fn wait_until(word: &AtomicU32, expected: u32, deadline: Instant) -> Wake {
    // A point in time and not a length, so that signals do not make the sleep longer.
    let until = clock::deadline(deadline);
    loop {
        // SAFETY: `word` and `until` are valid for the length of the call, which writes to neither. Without
        // FUTEX_CLOCK_REALTIME the deadline is one of the monotonic clock. The fifth argument is not used.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT_BITSET,
                expected,
                ptr::from_ref(&until),
                ptr::null::<u32>(),
                libc::FUTEX_BITSET_MATCH_ANY,
            )
        };
        match Errno::result(answer) {
            Ok(_) | Err(Errno::EAGAIN) => return Wake::Woken,
            Err(Errno::ETIMEDOUT) => return Wake::TimedOut,
            // EINTR. Of others none can be; if one is, the deadline still holds.
            Err(_) if Instant::now() >= deadline => return Wake::TimedOut,
            Err(_) => {}
        }
    }
}

/// Wakes all that sleep on `word`, in whatever process.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake(word, u32::MAX);
}

/// Wakes up to `count` of those that sleep on `word`, in whatever process.
pub(crate) fn wake(word: &AtomicU32, count: u32) {
    let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
    // SAFETY: `word` is valid for the length of the call, and FUTEX_WAKE only uses its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_the_sleep_and_not_before_its_time() {
        let word = AtomicU32::new(7);
        for millis in [0, 1, 5, 20] {
            let deadline = Instant::now() + Duration::from_millis(millis);
            assert_eq!(wait_until(&word, 7, deadline), Wake::TimedOut);
            assert!(Instant::now() >= deadline);
        }
    }

    #[test]
    fn a_word_that_holds_something_else_is_not_slept_on() {
        let word = AtomicU32::new(7);
        let far = Instant::now() + Duration::from_secs(1 << 40);
        assert_eq!(wait_until(&word, 8, far), Wake::Woken);
    }
}
