//! The limits of each task, whatever call it comes from.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
}

impl Default for Given {
    fn default() -> Self {
        Self {
            retry: Retry::NONE,
            timeout: None,
            ending: None,
        }
    }
}

/// The reason why a task that ran in this process has no result.
pub(crate) enum Failure {
    Panicked(Caught),
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

    /// Returns these limits with a change.
    pub(crate) fn with(mut self, set: impl FnOnce(&mut Given)) -> Self {
        set(Arc::make_mut(self.given.get_or_insert_default()));
        self
    }

    /// Returns how long the task may take.
    #[inline]
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.given.as_ref()?.timeout
    }

    /// Returns after which failures the task is run again.
    #[inline]
    pub(crate) fn retry(&self) -> Retry {
        self.given.as_ref().map_or(Retry::NONE, |given| given.retry)
    }

    /// Returns what may end the call early, if anything may.
    #[inline]
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.given.as_ref()?.ending.as_ref()
    }

    /// Returns the limits of the item with this index, as those of an item 0.
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
    pub(crate) fn run<R>(&self, index: usize, task: impl FnOnce() -> R) -> Result<R, Failure> {
        match self.ending() {
            None => self.run_timed(index, task),
            Some(ending) => self.run_until(ending, index, task),
        }
    }

    #[cold]
    fn run_until<R>(
        &self,
        ending: &Ending,
        index: usize,
        task: impl FnOnce() -> R,
    ) -> Result<R, Failure> {
        if let Some(reason) = ending.reason() {
            // The task's captures are dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(task));
            return Err(Failure::Ended(reason));
        }
        let outcome = self.run_timed(index, task);
        // An item that ran when a token was cancelled has its result: the item itself may have
        // cancelled.
        if ending.reason() == Some(Reason::DeadlineExceeded) {
            // The result is dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(outcome));
            return Err(Failure::Late);
        }
        outcome
    }

    #[inline]
    fn run_timed<R>(&self, index: usize, task: impl FnOnce() -> R) -> Result<R, Failure> {
        let _at = seed::enter(self.seeds, index);
        let Some(limit) = self.timeout() else {
            return panic::catch(task).map_err(Failure::Panicked);
        };
        if limit.is_zero() {
            // The task's captures are dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(task));
            return Err(Failure::TimedOut(limit));
        }
        let start = Instant::now();
        let outcome = panic::catch(task);
        if start.elapsed() <= limit {
            return outcome.map_err(Failure::Panicked);
        }
        // The result is dropped here, by code of the user that may panic.
        let _ = panic::catch(|| drop(outcome));
        Err(Failure::TimedOut(limit))
    }
}

#[cfg(test)]
mod tests;
