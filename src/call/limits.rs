//! The limits of each task, whatever call it comes from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::grace;
use super::retry::{Retry, RetryOn};
use super::seed::{self, Seeds};
use crate::error::TaskError;
use crate::future::{Ending, Reason};
use crate::panic::{self, Caught};

/// The limits that a call sets for each of its tasks.
///
/// Most calls set none. So that a task of theirs costs no more for those that do, what a call has
/// set is behind one pointer.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Limits {
    /// The source of the seeds of its items.
    pub(crate) seeds: Seeds,
    given: Option<Arc<Given>>,
}

/// What a call has set.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// After which failures a task is run again.
    pub(crate) retry: Retry,
    /// How long the task may take.
    pub(crate) timeout: Option<Duration>,
    /// What may end the call early, if anything may.
    pub(crate) ending: Option<Ending>,
    /// How long a task that runs may go on when it is to stop, if it may.
    pub(crate) grace: Option<Duration>,
}

/// The limit of an item, and its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
}

impl Limit {
    /// Returns how long the item may take in the end. One that may take no time at all is not
    /// started.
    pub(crate) fn most(self) -> Duration {
        if self.timeout.is_zero() {
            return self.timeout;
        }
        self.timeout.saturating_add(self.grace)
    }
}

impl Default for Given {
    fn default() -> Self {
        Self {
            retry: Retry::NONE,
            timeout: None,
            ending: None,
            grace: None,
        }
    }
}

/// The reason why a task that ran in this process has no result.
pub(crate) enum Failure {
    Panicked(Box<Caught>),
    TimedOut(Duration),
    /// The call was over before the item started.
    Ended(Reason),
    /// The deadline of the call passed while the item ran.
    Late,
}

impl Failure {
    /// Returns whether the item has not been run, because its call was over.
    pub(crate) fn is_unbegun(&self) -> bool {
        matches!(self, Self::Ended(_))
    }

    /// Returns the cause, if it is one after which an item may be tried again.
    pub(crate) fn cause(&self) -> Option<RetryOn> {
        match self {
            Self::Panicked(caught) => (!caught.is_refusal()).then_some(RetryOn::PANIC),
            Self::TimedOut(_) => Some(RetryOn::TIMEOUT),
            Self::Ended(_) | Self::Late => None,
        }
    }

    pub(crate) fn into_error(self, index: Option<usize>) -> TaskError {
        match self {
            Self::Panicked(caught) => caught.into_error(index),
            Self::TimedOut(limit) => TaskError::timed_out(index, limit),
            Self::Ended(reason) => reason.error(),
            Self::Late => Reason::DeadlineExceeded.error(),
        }
    }
}

impl Limits {
    /// Returns the limits of a call that has set none. There is no `Default` for them: with it,
    /// code outside of this crate could call an engine.
    pub(crate) fn none() -> Self {
        Self {
            seeds: Seeds::default(),
            given: None,
        }
    }

    /// Returns the limits of a new call that has set none.
    #[inline]
    pub(crate) fn of_new_call() -> Self {
        Self {
            seeds: Seeds::of_call(None),
            given: None,
        }
    }

    /// Returns whether the call has set none.
    #[inline]
    pub(crate) fn are_none(&self) -> bool {
        self.given.is_none()
    }

    /// Returns these limits with a change.
    pub(crate) fn with(mut self, set: impl FnOnce(&mut Given)) -> Self {
        self.set(set);
        self
    }

    /// Changes these limits.
    pub(crate) fn set(&mut self, set: impl FnOnce(&mut Given)) {
        set(Arc::make_mut(self.given.get_or_insert_default()));
    }

    /// Returns how long the task may take.
    #[inline]
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.given.as_ref()?.timeout
    }

    /// Returns after which failures the task is run again. With a limit of zero no attempt begins,
    /// and so none follows another.
    #[inline]
    pub(crate) fn retry(&self) -> Retry {
        self.given
            .as_ref()
            .map_or(Retry::NONE, |given| given.retry())
    }

    /// Returns what may end the call early, if anything may.
    #[inline]
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.given.as_ref()?.ending.as_ref()
    }

    /// Returns how long a task that runs may go on when it is to stop, if it may.
    #[inline]
    pub(crate) fn grace(&self) -> Option<Duration> {
        self.given.as_ref()?.grace
    }

    /// Returns the limits of the item with this index, as those of an item 0.
    #[inline]
    pub(crate) fn of_item(&self, index: usize) -> Self {
        Self {
            seeds: self.seeds.from(index),
            ..self.clone()
        }
    }

    /// Returns why the call is over, if it is.
    #[inline]
    pub(crate) fn ended(&self) -> Option<Reason> {
        self.ending()?.reason()
    }

    /// Returns why what runs is to be stopped, if it is: the call is over, and its grace period has
    /// passed.
    #[inline]
    pub(crate) fn killed(&self) -> Option<Reason> {
        self.ending()?.killed()
    }

    /// Returns the limit of each item, if there is one.
    pub(crate) fn limit(&self) -> Option<Limit> {
        self.given.as_ref()?.limit()
    }

    /// Returns after which failures an item is run again now. Once the call is over there are none:
    /// what has come of the last attempt counts.
    pub(crate) fn policy(&self) -> Retry {
        if self.ended().is_some() {
            return Retry::NONE;
        }
        self.retry()
    }

    /// Returns the error of an item whose limit is zero: it is over its limit before it starts, and
    /// is not started.
    #[inline]
    pub(crate) fn refusal(&self, index: Option<usize>) -> Option<TaskError> {
        let limit = self.timeout().filter(Duration::is_zero)?;
        Some(TaskError::timed_out(index, limit))
    }

    /// Runs the item with this index on this thread, unless its call is over. An item that takes
    /// too long cannot be stopped here. Its outcome is thrown away in the end, so that the caller
    /// sees the same on every engine.
    #[inline]
    pub(crate) fn run<R>(&self, index: usize, task: impl FnOnce() -> R) -> Result<R, Failure> {
        let _at = seed::enter(self.seeds, index);
        match &self.given {
            None => panic::catch(task).map_err(Failure::Panicked),
            Some(given) => given.run(task),
        }
    }
}

impl Given {
    fn retry(&self) -> Retry {
        let begins = !self.timeout.is_some_and(|limit| limit.is_zero());
        if begins { self.retry } else { Retry::NONE }
    }

    /// Returns the limit of each item, if there is one.
    fn limit(&self) -> Option<Limit> {
        let grace = self.grace.unwrap_or_default();
        self.timeout.map(|timeout| Limit { timeout, grace })
    }

    #[cold]
    fn run<R>(&self, task: impl FnOnce() -> R) -> Result<R, Failure> {
        if let Some(reason) = self.ending.as_ref().and_then(Ending::reason) {
            // The task's captures are dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(task));
            return Err(Failure::Ended(reason));
        }
        let asked = self
            .grace
            .map(|_| grace::enter(self.timeout, self.ending.clone()));
        let outcome = self.run_timed(task);
        drop(asked);
        // An item that ran when a token was cancelled has its result: the item itself may have
        // cancelled.
        let killed = self.ending.as_ref().and_then(Ending::killed);
        if killed == Some(Reason::DeadlineExceeded) {
            // The result is dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(outcome));
            return Err(Failure::Late);
        }
        outcome
    }

    fn run_timed<R>(&self, task: impl FnOnce() -> R) -> Result<R, Failure> {
        let Some(limit) = self.limit() else {
            return panic::catch(task).map_err(Failure::Panicked);
        };
        if limit.timeout.is_zero() {
            // The task's captures are dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(task));
            return Err(Failure::TimedOut(limit.timeout));
        }
        let start = Instant::now();
        let outcome = panic::catch(task);
        if start.elapsed() <= limit.most() {
            return outcome.map_err(Failure::Panicked);
        }
        // The result is dropped here, by code of the user that may panic.
        let _ = panic::catch(|| drop(outcome));
        Err(Failure::TimedOut(limit.timeout))
    }
}

#[cfg(test)]
mod tests;
