//! [`CancellationToken`]: one switch that ends many calls.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

use super::ending::{Ending, Reason};

/// A switch that ends calls from elsewhere: all that were made with
/// [`Call::cancel_on`](crate::Call::cancel_on), on any pools of this process, at once.
///
/// Clones are the same switch. It stays in the program that made it: it does not cross to worker
/// processes. A copy that a forked child has of it is of no effect on the parent. A token that has
/// been cancelled stays so, and no item of a later call with it starts.
///
/// # Examples
///
/// A search on several threads that stops at the first hit:
///
/// ```
/// use manyhands::CancellationToken;
/// use manyhands::prelude::*;
///
/// let found = CancellationToken::new();
/// let test = |x: u64| {
///     let hit = x * x % 1_000 == 889;
///     if hit {
///         found.cancel();
///     }
///     hit
/// };
/// let pool = Pool::threads(2)?;
/// let each = pool.call().cancel_on(&found).map_outcomes(test, 0..1_000_000);
/// let hit = each.iter().position(|outcome| *outcome == Ok(true)).unwrap();
/// assert_eq!(hit * hit % 1_000, 889);
/// assert!(matches!(each[999_999], Err(TaskError::Cancelled { .. })));
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone)]
pub struct CancellationToken(Ending);

impl CancellationToken {
    /// Makes a token that is not cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// let token = manyhands::CancellationToken::new();
    /// assert!(!token.is_cancelled());
    /// ```
    pub fn new() -> Self {
        Self(Ending::new())
    }

    /// Ends all calls that carry the token, and those that will.
    ///
    /// Items that have not started never will: they fail with
    /// [`TaskError::Cancelled`](crate::TaskError::Cancelled). Items that run on processes and on
    /// forked children are ended by killing the process. What runs on a thread comes to its end by
    /// itself ([`Call::cancel_on`](crate::Call::cancel_on)).
    ///
    /// Cancelling again does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::CancellationToken;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let token = CancellationToken::new();
    /// let endless = |()| loop {
    ///     std::hint::spin_loop()
    /// };
    /// let tasks: Vec<TaskFuture<()>> = (0..3)
    ///     .map(|_| pool.call().cancel_on(&token).submit(endless, ()))
    ///     .collect();
    /// token.cancel();
    /// for task in tasks {
    ///     assert!(matches!(task.result(), Err(TaskError::Cancelled { .. })));
    /// }
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn cancel(&self) {
        self.0.end(Reason::Cancelled);
    }

    /// Returns whether the token has been cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// let token = manyhands::CancellationToken::new();
    /// token.clone().cancel();
    /// assert!(token.is_cancelled());
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.0.reason().is_some()
    }
}

/// Makes what ends a call that carries these tokens and has this deadline; `None` if nothing does.
/// What runs at the end may go on for `grace`.
#[inline]
pub(crate) fn ending_of(
    tokens: &[CancellationToken],
    deadline: Option<Instant>,
    grace: Option<Duration>,
) -> Option<Ending> {
    if tokens.is_empty() && deadline.is_none() {
        return None;
    }
    Some(ending_of_some(tokens, deadline, grace))
}

#[cold]
fn ending_of_some(
    tokens: &[CancellationToken],
    deadline: Option<Instant>,
    grace: Option<Duration>,
) -> Ending {
    Ending::of_call(tokens.iter().map(|token| &token.0), deadline, grace)
}

impl Default for CancellationToken {
    fn default() -> Self {
        Self::new()
    }
}

// What cancelling runs is this crate's own, and leaves nothing half-changed when a caller panics.
impl UnwindSafe for CancellationToken {}
impl RefUnwindSafe for CancellationToken {}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}
