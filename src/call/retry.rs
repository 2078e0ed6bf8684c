//! [`Retry`]: which failures of an item are followed by another attempt.

use std::fmt;
use std::ops::BitOr;
use std::time::Duration;

use crate::error::TaskError;

/// Causes of a failure, for [`Retry::on`]. They are joined by `|`.
///
/// # Examples
///
/// ```
/// use manyhands::RetryOn;
///
/// let causes = RetryOn::DEATH | RetryOn::TIMEOUT;
/// assert!(causes.contains(RetryOn::DEATH) && !causes.contains(RetryOn::PANIC));
/// assert_eq!(format!("{causes:?}"), "DEATH | TIMEOUT");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryOn(u8);

impl RetryOn {
    /// The worker process died: [`TaskError::WorkerDied`], and [`TaskError::OutOfMemory`]. A thread
    /// does not die alone.
    pub const DEATH: Self = Self(1);
    /// The item was over its limit: [`TaskError::TimedOut`]. Each attempt has the whole limit, and
    /// the whole grace period.
    pub const TIMEOUT: Self = Self(2);
    /// The item panicked: [`TaskError::Panicked`].
    pub const PANIC: Self = Self(4);
    /// The function of [`try_map`](crate::Pool::try_map) or
    /// [`try_for_each`](crate::Pool::try_for_each) returned an `Err`. In other calls an `Err` is a
    /// result like any other, and this changes nothing.
    pub const ERROR: Self = Self(8);

    const NAMES: [(Self, &str); 4] = [
        (Self::DEATH, "DEATH"),
        (Self::TIMEOUT, "TIMEOUT"),
        (Self::PANIC, "PANIC"),
        (Self::ERROR, "ERROR"),
    ];

    /// Returns whether all of these causes are among those of `self`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::RetryOn;
    ///
    /// let both = RetryOn::PANIC | RetryOn::ERROR;
    /// assert!(both.contains(RetryOn::ERROR));
    /// assert!(!RetryOn::ERROR.contains(both));
    /// ```
    pub const fn contains(self, causes: Self) -> bool {
        self.0 & causes.0 == causes.0
    }

    const fn has_any(self, causes: Self) -> bool {
        self.0 & causes.0 != 0
    }

    /// Returns the cause of this failure, if it is one after which an item may be tried again.
    pub(crate) fn of(error: &TaskError) -> Option<Self> {
        match error {
            TaskError::WorkerDied { .. } | TaskError::OutOfMemory { .. } => Some(Self::DEATH),
            TaskError::TimedOut { .. } => Some(Self::TIMEOUT),
            TaskError::Panicked { .. } => Some(Self::PANIC),
            _ => None,
        }
    }
}

impl BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (cause, name) in Self::NAMES {
            if self.contains(cause) {
                write!(f, "{separator}{name}")?;
                separator = " | ";
            }
        }
        Ok(())
    }
}

/// When an item that has failed is tried again, for [`Call::retry`](crate::Call::retry).
///
/// By default only after the death of its worker, and at once.
///
/// # Examples
///
/// An item that needs three attempts:
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{Retry, RetryOn};
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::time::Duration;
///
/// let asked = AtomicU32::new(0);
/// let fetch = |page: u32| match asked.fetch_add(1, Ordering::Relaxed) {
///     0 | 1 => Err("busy"),
///     _ => Ok(page * 10),
/// };
/// let policy = Retry::up_to(3).on(RetryOn::ERROR).backoff(Duration::from_millis(1));
/// let pool = Pool::threads(1)?;
/// let pages = pool.call().retry(policy).try_map(fetch, [7]);
/// assert_eq!(pages, Ok(vec![70]));
/// assert_eq!(asked.into_inner(), 3);
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a policy does nothing until it is given to a call"]
pub struct Retry {
    extra: u32,
    on: RetryOn,
    backoff: Duration,
}

/// The longest pause that one becomes by doubling.
const LONGEST: Duration = Duration::from_secs(30);

/// A call whose items have one attempt, or several after deaths alone: see
/// [`Call`](crate::Call).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Once;

/// A call with a policy: see [`Call::retry`](crate::Call::retry).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Retrying;

impl Retry {
    /// The policy of a call that has none.
    pub(crate) const NONE: Self = Self::up_to(0);

    /// Makes a policy of this many further attempts after the first one: `up_to(3)` is four
    /// attempts. All causes count together.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{Retry, RetryOn};
    ///
    /// let policy = Retry::up_to(2).on(RetryOn::PANIC);
    /// let failed = Pool::serial().call().retry(policy).map(|x: u8| 10 / x, [0]).unwrap_err();
    /// assert_eq!(failed.attempts(), Some(3));
    /// assert!(failed.to_string().ends_with("; it was tried 3 times"));
    /// ```
    pub const fn up_to(retries: u32) -> Self {
        Self {
            extra: retries,
            on: RetryOn::DEATH,
            backoff: Duration::ZERO,
        }
    }

    /// Sets after which failures an item is tried again, in place of those that were set before.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{Retry, RetryOn};
    ///
    /// let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC);
    /// assert_ne!(policy, Retry::up_to(1));
    /// assert_eq!(Retry::up_to(1).on(RetryOn::DEATH), Retry::up_to(1));
    /// ```
    pub const fn on(mut self, causes: RetryOn) -> Self {
        self.on = causes;
        self
    }

    /// Sets the pause before the second attempt. It is doubled before each further one, up to 30
    /// seconds, or up to `first` if that is longer. There is no random part in it.
    ///
    /// In the pause the item occupies no worker and no thread, and other items go on; but those
    /// behind it in its chunk wait with it. [`Serial`](crate::Serial) runs one item after the
    /// other, and its caller waits. What ends the call ends the pause at once, whatever its grace
    /// period is: a token, a deadline, the handle, a shutdown. When the pool is closed, the item is
    /// due at once.
    ///
    /// # Examples
    ///
    /// Pauses of 10, 20 and 40 ms:
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{Retry, RetryOn};
    /// use std::time::{Duration, Instant};
    ///
    /// let policy = Retry::up_to(3).on(RetryOn::PANIC).backoff(Duration::from_millis(10));
    /// let start = Instant::now();
    /// let pool = Pool::processes(1)?;
    /// let failed = pool.call().retry(policy).map(|x: u8| 10 / x, [0]);
    /// assert!(failed.is_err() && start.elapsed() >= Duration::from_millis(70));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub const fn backoff(mut self, first: Duration) -> Self {
        self.backoff = first;
        self
    }

    /// Returns whether there is any attempt after the first.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.extra > 0
    }

    /// Returns whether an item that was started `attempts` times, and has failed for this cause, is
    /// tried again.
    pub(crate) fn allows(&self, cause: RetryOn, attempts: u32) -> bool {
        attempts <= self.extra && self.on.contains(cause)
    }

    /// Returns whether an item that was started `attempts` times, and has failed like this, is
    /// tried again.
    pub(crate) fn allows_after(&self, error: &TaskError, attempts: u32) -> bool {
        RetryOn::of(error).is_some_and(|cause| self.allows(cause, attempts))
    }

    /// Returns whether an item may be tried again after its worker has answered that it failed.
    pub(crate) fn is_for_answers(&self) -> bool {
        let causes = Self::ANSWERED;
        self.is_on() && self.on.has_any(causes)
    }

    /// The causes that a worker can answer.
    const ANSWERED: RetryOn = RetryOn(RetryOn::TIMEOUT.0 | RetryOn::PANIC.0 | RetryOn::ERROR.0);

    /// Returns the pause after `attempts` attempts.
    pub(crate) fn pause(&self, attempts: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        let most = LONGEST.max(self.backoff);
        self.backoff.saturating_mul(factor).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses = |first| {
            let policy = Retry::up_to(u32::MAX).backoff(first);
            [1, 2, 3, 12, 31, 32, 33, u32::MAX].map(|attempts| policy.pause(attempts))
        };
        let [second, long] = [Duration::from_secs(1), Duration::from_secs(100)];
        let most = LONGEST;
        assert_eq!(
            pauses(second),
            [second, 2 * second, 4 * second, most, most, most, most, most]
        );
        assert_eq!(pauses(long), [long; 8]);
        assert_eq!(pauses(Duration::ZERO), [Duration::ZERO; 8]);
    }

    #[test]
    fn attempts_are_counted_over_all_causes() {
        let policy = Retry::up_to(2).on(RetryOn::PANIC | RetryOn::ERROR);
        for (cause, attempts, again) in [
            (RetryOn::PANIC, 1, true),
            (RetryOn::ERROR, 2, true),
            (RetryOn::ERROR, 3, false),
            (RetryOn::DEATH, 1, false),
            (RetryOn::TIMEOUT, 1, false),
        ] {
            assert_eq!(
                policy.allows(cause, attempts),
                again,
                "{cause:?}, {attempts}"
            );
        }
        assert!(!Retry::NONE.is_on() && !Retry::NONE.allows(RetryOn::DEATH, 1));
        assert!(policy.is_for_answers() && !Retry::up_to(9).is_for_answers());
    }
}
