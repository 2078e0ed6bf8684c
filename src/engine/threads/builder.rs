//! [`ThreadsBuilder`]: a builder of a pool of threads.

use std::sync::Arc;

use super::Threads;
use crate::engine::WhenFull;
use crate::engine::backlog::Backlog;
use crate::error::PoolError;
use crate::machine::available_workers;

/// Makes a [`Pool<Threads>`](crate::Pool); see [`Threads::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Threads::builder().workers(2).build()?;
/// assert_eq!(pool.map(|x| x + 1, [1, 2])?, [2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ThreadsBuilder {
    workers: Option<usize>,
    queue_limit: Option<(usize, WhenFull)>,
}

impl ThreadsBuilder {
    /// Sets the number of threads. The default is [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Threads::builder().workers(3).build()?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets how many submitted tasks may wait for a worker, and what
    /// [`submit`](crate::Pool::submit) does when as many wait: so the arguments of tasks that have
    /// not started take no more memory than that. By default there is no limit.
    ///
    /// A task counts from `submit` to its end, and there may be one for each worker more than the
    /// limit. A cancelled task makes room. A task of
    /// the pool itself must not be held up, so what it submits passes the limit. Other calls do not count: they keep their own windows
    /// ([`Call::window`](crate::Call::window)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::WhenFull;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(2).queue_limit(10, WhenFull::Wait).build()?;
    /// let tasks: Vec<_> = (0..1_000u64).map(|x| pool.submit(|x| x * x, x)).collect();
    /// let squares = tasks.into_iter().map(TaskFuture::result);
    /// assert_eq!(squares.collect::<Result<Vec<_>, _>>()?[999], 998_001);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_limit(mut self, tasks: usize, when_full: WhenFull) -> Self {
        self.queue_limit = Some((tasks, when_full));
        self
    }

    /// Starts the threads of the engine that was asked for.
    pub(crate) fn start(self) -> Result<Threads, PoolError> {
        let workers = self.workers.map_or_else(available_workers, Ok)?;
        let mut threads = Threads::new(workers)?;
        let limit = self.queue_limit;
        threads.backlog = limit.map(|(limit, full)| Arc::new(Backlog::new(limit, full)));
        Ok(threads)
    }
}
