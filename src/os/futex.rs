//! Sleeping until a word in shared memory changes.
//!
//! Never `FUTEX_PRIVATE_FLAG`: the word is in memory that other processes map, under other addresses.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

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

/// Wakes all that sleep on `word`, in whatever process.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: `word` is valid for the length of the call, and FUTEX_WAKE only uses its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
