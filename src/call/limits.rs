//! What may be asked of each task, whatever call it comes from.

use std::time::{Duration, Instant};

use super::seed::{self, Seeds};
use crate::error::TaskError;
use crate::panic::{self, Caught};

/// What a call asks of each of its tasks.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// How often a task is run again after the death of its worker.
    pub(crate) retries: u32,
    /// How long it may take.
    pub(crate) timeout: Option<Duration>,
    /// What its items are given when they ask for a seed.
    pub(crate) seeds: Seeds,
}

/// Why a task that ran in this process has no result.
pub(crate) enum Failure {
    Panicked(Caught),
    TimedOut(Duration),
}

impl Failure {
    pub(crate) fn into_error(self, index: Option<usize>) -> TaskError {
        match self {
            Self::Panicked(caught) => caught.into_error(index),
            Self::TimedOut(limit) => TaskError::TimedOut { index, limit },
        }
    }
}

impl Limits {
    /// The error of an item that may take no time at all: it is over its limit before it starts,
    /// and is not started.
    pub(crate) fn refusal(&self, index: Option<usize>) -> Option<TaskError> {
        let limit = self.timeout.filter(Duration::is_zero)?;
        Some(TaskError::TimedOut { index, limit })
    }

    /// Runs the item with this index on this thread. One that takes too long cannot be stopped
    /// here; what it gives in the end is thrown away, so that the outcome is the same on every
    /// engine.
    pub(crate) fn run<R>(&self, index: usize, task: impl FnOnce() -> R) -> Result<R, Failure> {
        let _at = seed::enter(self.seeds, index);
        let Some(limit) = self.timeout else {
            return panic::catch(task).map_err(Failure::Panicked);
        };
        if limit.is_zero() {
            // The Drop of what it holds is the user's.
            let _ = panic::catch(|| drop(task));
            return Err(Failure::TimedOut(limit));
        }
        let start = Instant::now();
        let outcome = panic::catch(task);
        if start.elapsed() <= limit {
            return outcome.map_err(Failure::Panicked);
        }
        // Its Drop is the user's.
        let _ = panic::catch(|| drop(outcome));
        Err(Failure::TimedOut(limit))
    }
}

#[cfg(test)]
mod tests;
