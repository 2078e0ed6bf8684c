//! The limits of each task, whatever call it comes from.

use std::time::{Duration, Instant};

use super::seed::{self, Seeds};
use crate::error::TaskError;
use crate::panic::{self, Caught};

/// The limits that a call sets for each of its tasks.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How often a task is run again after the death of its worker.
    pub(crate) retries: u32,
    /// How long the task may take.
    pub(crate) timeout: Option<Duration>,
    /// The source of the seeds of its items.
    pub(crate) seeds: Seeds,
}

/// The reason why a task that ran in this process has no result.
pub(crate) enum Failure {
    Panicked(Caught),
    TimedOut(Duration),
}

impl Failure {
    pub(crate) fn into_error(self, index: Option<usize>) -> TaskError {
        match self {
            Self::Panicked(caught) => caught.into_error(index),
            Self::TimedOut(limit) => TaskError::timed_out(index, limit),
        }
    }
}

impl Limits {
    /// Returns the limits of a call that has set none. There is no `Default` for them: with it,
    /// code outside of this crate could call an engine.
    pub(crate) fn none() -> Self {
        Self {
            retries: 0,
            timeout: None,
            seeds: Seeds::default(),
        }
    }

    /// Returns the limits of the item with this index, as those of an item 0.
    pub(crate) fn of_item(self, index: usize) -> Self {
        Self {
            seeds: self.seeds.from(index),
            ..self
        }
    }

    /// Returns the error of an item whose limit is zero: it is over its limit before it starts, and
    /// is not started.
    pub(crate) fn refusal(&self, index: Option<usize>) -> Option<TaskError> {
        let limit = self.timeout.filter(Duration::is_zero)?;
        Some(TaskError::timed_out(index, limit))
    }

    /// Runs the item with this index on this thread. An item that takes too long cannot be stopped
    /// here. Its outcome is thrown away in the end, so that the caller sees the same on every
    /// engine.
    pub(crate) fn run<R>(&self, index: usize, task: impl FnOnce() -> R) -> Result<R, Failure> {
        let _at = seed::enter(self.seeds, index);
        let Some(limit) = self.timeout else {
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
