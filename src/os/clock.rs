//! The system's monotonic clock, which all processes of a machine share. It is the one behind `Instant`, as a number that
//! can be told to another process.

use std::mem::MaybeUninit;

/// Nanoseconds since some moment in the past.
pub(crate) fn now() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The same as of the last tick, some milliseconds ago at most. Read in a fifth of the time: 5 to 6 ns against 27 to 37, on
/// an AMD EPYC virtual machine.
pub(crate) fn last_tick() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is to a timespec that the call may write to. These clocks are always there.
    unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    // SAFETY: a timespec of zeros is valid, and so is what the call writes.
    let time = unsafe { time.assume_init() };
    let part = |number: i64| number.unsigned_abs();
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward() {
        let first = now();
        assert!(first > 0 && now() >= first);
    }
}
