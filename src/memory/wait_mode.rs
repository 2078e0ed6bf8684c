//! How long a call may wait, and what that means for the locks inside of an object.
//!
//! Such an inner lock is held for less than a microsecond at a time. Its holder may still take
//! longer: the kernel may have taken the core from it, or the process may be stopped (SIGSTOP, a
//! debugger, a frozen container), perhaps for ever. A waiter cannot tell the two apart. So no call
//! waits for an inner lock for longer than its caller is willing to wait, and a call that does not
//! wait at all gives the holder [`BRIEF`].

use std::time::{Duration, Instant};

/// The time that a call that does not wait gives the holder of an inner lock, which may have lost
/// its core while it held the lock. Calls with a deadline give it as much, even if the deadline has
/// passed.
pub(crate) const BRIEF: Duration = Duration::from_millis(20);

/// How long a call may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// Not at all.
    Try,
    Until(Instant),
    Forever,
}

impl WaitMode {
    /// Returns the mode of a call that waits for `timeout` at most. If the clock cannot count that
    /// far, the call waits for ever.
    pub(crate) fn within(timeout: Duration) -> Self {
        let deadline = Instant::now().checked_add(timeout);
        deadline.map_or(Self::Forever, Self::Until)
    }

    /// Returns when the call must be over; `None` if it does not wait, or may wait for ever.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Until(deadline) => Some(deadline),
            Self::Try | Self::Forever => None,
        }
    }

    /// Returns until when to wait for an inner lock that is held right now; `None`: for ever.
    pub(crate) fn lock_deadline(self) -> Option<Instant> {
        match self {
            Self::Try => Some(soon()),
            Self::Until(deadline) => Some(deadline.max(soon())),
            Self::Forever => None,
        }
    }
}

/// Returns until when a call that does not wait may wait for an inner lock, if the lock is held
/// right now.
pub(crate) fn soon() -> Instant {
    Instant::now() + BRIEF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_time_for_a_lock_that_is_held_briefly() {
        let start = Instant::now();
        for mode in [WaitMode::Try, WaitMode::within(Duration::ZERO)] {
            assert!(mode.lock_deadline().unwrap() >= start + BRIEF);
        }
        let long = WaitMode::within(Duration::from_secs(3_600));
        assert_eq!(long.lock_deadline(), long.deadline());
        assert!(long.deadline().unwrap() >= start + Duration::from_secs(3_600));
        assert_eq!(WaitMode::Try.deadline(), None);
        // A time that the clock cannot count to.
        let far = WaitMode::within(Duration::MAX);
        assert_eq!((far, far.lock_deadline()), (WaitMode::Forever, None));
    }
}
