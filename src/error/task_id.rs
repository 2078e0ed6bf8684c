//! [`TaskId`]: which task a handle or an error is about.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The identity of a task given by [`Pool::submit`](crate::Pool::submit). No other task of this
/// process has it, whatever its pool.
///
/// [`TaskFuture::id`](crate::TaskFuture::id) returns it, and
/// [`TaskError::task_id`](crate::TaskError::task_id) says which task an error is about. So it is a
/// key for what a program knows of its tasks. Ids of different processes may be equal: an id says
/// nothing outside of the process that submitted the task.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::collections::HashMap;
///
/// let pool = Pool::processes(2)?;
/// let mut words = HashMap::new();
/// let tasks: Vec<_> = ["7", "eight", "9"]
///     .into_iter()
///     .map(|word| {
///         let task = pool.submit(|word: String| word.parse::<u8>().unwrap(), word.into());
///         words.insert(task.id(), word);
///         task
///     })
///     .collect();
/// for task in as_completed(tasks) {
///     let word = words[&task.id()];
///     match task.result() {
///         Ok(number) => assert_eq!(number.to_string(), word),
///         Err(error) => assert_eq!(error.task_id().map(|id| words[&id]), Some("eight")),
///     }
/// }
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(u64);

impl TaskId {
    /// Returns an id that no task of this process has had.
    #[inline]
    pub(crate) fn next() -> Self {
        // From 1 on: an error has no room for a task 0. At one task each nanosecond, the ids that
        // an error can hold last for a year.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) const fn of_number(number: u64) -> Self {
        Self(number)
    }

    pub(super) const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    /// Writes the number of the task.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({})", self.0)
    }
}
