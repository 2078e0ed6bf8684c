//! [`TaskFuture`]: the handle of one submitted task.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{TaskError, Timeout};

/// The handle of a task given to a pool by [`Pool::submit`](crate::Pool::submit): it will hold the result, or the
/// error that says why there is none.
///
/// Dropping it does not stop the task; its result is thrown away.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(2)?;
/// let answer = pool.submit(|x: u64| x + 1, 41);
/// assert_eq!(answer.result()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the result of the task comes through this handle"]
pub struct TaskFuture<R> {
    pending: Arc<dyn Pending<R>>,
}

/// What an engine gives behind a [`TaskFuture`].
pub(crate) trait Pending<R>: Send + Sync {
    /// Whether the task has ended. Never blocks.
    fn is_done(&self) -> bool;

    /// Blocks until the task has ended, or until `deadline`; true if it has ended.
    fn wait(&self, deadline: Option<Instant>) -> bool;

    /// The outcome, once; [`TaskError::Taken`] afterwards. Called only after the task has ended.
    fn take(&self) -> Result<R, TaskError>;
}

impl<R> TaskFuture<R> {
    pub(crate) fn new(pending: Arc<dyn Pending<R>>) -> Self {
        Self { pending }
    }

    /// A task that has ended already.
    pub(crate) fn ready(outcome: Result<R, TaskError>) -> Self
    where
        R: Send + 'static,
    {
        Self::new(Arc::new(Ready(parking_lot::Mutex::new(Some(outcome)))))
    }

    /// Waits for the task to end and gives its result.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] that says why there is no result: the task panicked, its worker died, a value did not cross
    /// between the processes, the pool was dropped; [`TaskError::Taken`] if `result_timeout` has given the result.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(1)?;
    /// let failing = pool.submit(|text: &str| text.parse::<u32>().unwrap(), "seven");
    /// assert!(matches!(failing.result(), Err(TaskError::Panicked { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn result(self) -> Result<R, TaskError> {
        self.pending.wait(None);
        self.pending.take()
    }

    /// Waits at most `timeout` for the task to end, and gives its result if it has.
    ///
    /// # Errors
    ///
    /// [`Timeout`] if the task has not ended; it goes on, and a later call still gives its result. The inner `Result`
    /// is as for [`result`](Self::result).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::{Arc, Barrier};
    /// use std::time::Duration;
    ///
    /// let pool = Pool::threads(1)?;
    /// let (here, there) = { let gate = Arc::new(Barrier::new(2)); (gate.clone(), gate) };
    /// let mut task = pool.submit(move |()| { there.wait(); "done" }, ());
    /// assert_eq!(task.result_timeout(Duration::from_millis(5)), Err(Timeout));
    /// here.wait();
    /// assert_eq!(task.result_timeout(Duration::from_secs(60))??, "done");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn result_timeout(&mut self, timeout: Duration) -> Result<Result<R, TaskError>, Timeout> {
        // A timeout too long for the clock is no deadline at all.
        let deadline = Instant::now().checked_add(timeout);
        if self.pending.wait(deadline) {
            Ok(self.pending.take())
        } else {
            Err(Timeout)
        }
    }

    /// Whether the task has ended, with a result or without. Never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let task = Pool::serial().submit(|x: i32| -x, 3);
    /// assert!(task.done());
    /// ```
    pub fn done(&self) -> bool {
        self.pending.is_done()
    }
}

impl<R> fmt::Debug for TaskFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskFuture")
            .field("done", &self.done())
            .finish()
    }
}

struct Ready<R>(parking_lot::Mutex<Option<Result<R, TaskError>>>);

impl<R: Send> Pending<R> for Ready<R> {
    fn is_done(&self) -> bool {
        true
    }

    fn wait(&self, _deadline: Option<Instant>) -> bool {
        true
    }

    fn take(&self) -> Result<R, TaskError> {
        self.0.lock().take().unwrap_or(Err(TaskError::Taken))
    }
}
