//! Sleeping until a word in shared memory changes.
//!
//! `FUTEX_PRIVATE_FLAG` is never set: the word is in memory that other processes map, under other
//! addresses.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::clock;

/// Sleeps while `word` holds `expected`, at most for `timeout`. May also return without a reason,
/// so callers must look again.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    // tv_nsec has the width of c_long, into which a value below one billion always fits.
    #[allow(clippy::cast_possible_wrap)]
    let timespec = timeout.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    });
    let timespec = timespec.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `word` is valid for the length of the call, `timespec` is null or points to a live
    // timespec, and FUTEX_WAIT writes to neither.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            timespec,
        )
    };
    match Errno::result(answer) {
        // After each of these the caller looks again.
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ETIMEDOUT) => {}
        Err(refused) => pause(refused, timeout),
    }
}

/// Sleeps for a moment, at most for `timeout`, because the kernel refuses to sleep on a word. The
/// callers look again whenever they wake. So they go on late, but they neither loop at full speed
/// nor wait for ever.
fn pause(refused: Errno, timeout: Option<Duration>) {
    const PAUSE: Duration = Duration::from_millis(1);
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Ordering::Relaxed) {
        log::warn!("shared memory is looked at every {PAUSE:?}, and not waited for: {refused}");
    }
    std::thread::sleep(timeout.map_or(PAUSE, |timeout| timeout.min(PAUSE)));
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Another thread woke this sleeper, or the word holds something else. A sleeper that was woken
    /// gets this also if its time was up at the same moment: no wake is lost to a sleeper that says
    /// it timed out.
    Woken,
    /// The deadline has passed.
    TimedOut,
}

/// Sleeps while `word` holds `expected`, until another thread wakes it or `deadline` has passed.
/// Signals that are handled meanwhile do not end the sleep.
pub(crate) fn wait_until(word: &AtomicU32, expected: u32, deadline: Instant) -> Wake {
    // A point in time and not a length, so that signals do not make the sleep longer.
    let until = clock::deadline(deadline);
    loop {
        // SAFETY: `word` and `until` are valid for the length of the call, which writes to neither.
        // Without FUTEX_CLOCK_REALTIME the deadline is one of the monotonic clock. The fifth
        // argument is not used.
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
            Err(_) if Instant::now() >= deadline => return Wake::TimedOut,
            Err(Errno::EINTR) => {}
            Err(refused) => {
                pause(
                    refused,
                    Some(deadline.saturating_duration_since(Instant::now())),
                );
                // No wake can come that the word does not show: the kernel has no sleeper here.
                if word.load(Ordering::Relaxed) != expected {
                    return Wake::Woken;
                }
            }
        }
    }
}

/// The number of words that the kernel sleeps on at once.
const MOST_WORDS: usize = 128;

/// Set once the kernel has said that it cannot sleep on several words (before Linux 5.16, or not
/// allowed to).
static CANNOT_WAIT_MANY: AtomicBool = AtomicBool::new(false);

/// Returns whether [`wait_many`] would watch all of `count` words.
pub(crate) fn can_wait_many(count: usize) -> bool {
    count <= MOST_WORDS && !CANNOT_WAIT_MANY.load(Ordering::Relaxed)
}

/// Sleeps like [`wait_until`], while each of the words holds what is expected of it. If it
/// [cannot](can_wait_many) watch all words, it watches some.
pub(crate) fn wait_many(words: &[(&AtomicU32, u32)], deadline: Instant) -> Wake {
    /// From the kernel's `uapi/linux/futex.h`.
    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const FUTEX_32: u32 = 2;

    let first = words.first().copied();
    if !CANNOT_WAIT_MANY.load(Ordering::Relaxed) {
        let words = words.iter().take(MOST_WORDS).map(|(word, value)| Waiter {
            value: u64::from(*value),
            address: word.as_ptr().addr() as u64,
            flags: FUTEX_32,
            reserved: 0,
        });
        let waiters: Vec<Waiter> = words.collect();
        let until = clock::deadline(deadline);
        loop {
            // SAFETY: the array, the words that it names and the time are valid for the length of
            // the call, which writes to none of them.
            let answer = unsafe {
                libc::syscall(
                    libc::SYS_futex_waitv,
                    waiters.as_ptr(),
                    waiters.len(),
                    0,
                    ptr::from_ref(&until),
                    libc::CLOCK_MONOTONIC,
                )
            };
            match Errno::result(answer) {
                Ok(_) | Err(Errno::EAGAIN) => return Wake::Woken,
                Err(Errno::ETIMEDOUT) => return Wake::TimedOut,
                Err(Errno::EINTR) => {
                    if Instant::now() >= deadline {
                        return Wake::TimedOut;
                    }
                }
                Err(error) => {
                    // A filter of system calls answers with EPERM. Other errors (ENOMEM, say) may
                    // pass.
                    if matches!(error, Errno::ENOSYS | Errno::EPERM) {
                        CANNOT_WAIT_MANY.store(true, Ordering::Relaxed);
                    }
                    break;
                }
            }
        }
    }
    match first {
        Some((word, value)) => wait_until(word, value, deadline),
        None => Wake::TimedOut,
    }
}

/// Wakes all threads that sleep on `word`, in all processes.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake(word, u32::MAX);
}

/// Wakes up to `count` of the threads that sleep on `word`, in all processes.
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
    fn one_of_many_words_ends_the_sleep() {
        let words: Vec<AtomicU32> = (0..5).map(AtomicU32::new).collect();
        let expected = |index: usize, value| {
            let mut all: Vec<_> = words.iter().zip(0..).collect();
            all[index].1 = value;
            all
        };
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(wait_many(&expected(0, 0), soon), Wake::TimedOut);
        assert!(Instant::now() >= soon);
        let far = Instant::now() + Duration::from_secs(1 << 40);
        if can_wait_many(5) {
            assert_eq!(wait_many(&expected(3, 7), far), Wake::Woken);
            std::thread::scope(|scope| {
                let woken = scope.spawn(|| wait_many(&expected(0, 0), far));
                while !woken.is_finished() {
                    wake_all(&words[4]);
                }
                assert_eq!(woken.join().unwrap(), Wake::Woken);
            });
        }
    }

    #[test]
    fn a_word_that_holds_something_else_is_not_slept_on() {
        let word = AtomicU32::new(7);
        let far = Instant::now() + Duration::from_secs(1 << 40);
        assert_eq!(wait_until(&word, 8, far), Wake::Woken);
    }
}
