//! The functions that only a pool of processes has.

use super::Pool;
use crate::engine::{PoolStats, Processes, Timeline};
use crate::error::PoolError;

impl Pool<Processes> {
    /// Sets the number of workers while the pool runs. New workers are started at once; those that
    /// are too many end when they have done what they have begun.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`], and [`PoolError::InvalidOption`] for more workers than there can
    /// be processes; [`PoolError::Closed`], or the reason why else the pool has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// pool.resize(3)?;
    /// assert_eq!(pool.workers(), 3);
    /// assert_eq!(pool.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        self.engine().resize(workers)
    }

    /// Returns what the workers have done since the pool was made.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let _ = pool.map_outcomes(
    ///     |x: i32| {
    ///         if x == 7 {
    ///             std::process::abort()
    ///         }
    ///     },
    ///     0..10,
    /// );
    /// let stats = pool.stats();
    /// println!("{stats}");
    /// assert_eq!((stats.total().tasks, stats.total().failures.worker_died), (10, 1));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn stats(&self) -> PoolStats {
        self.engine().stats()
    }

    /// Returns what has run where and when, if
    /// [`ProcessesBuilder::timeline`](crate::engine::ProcessesBuilder::timeline) has asked for a
    /// record; otherwise it is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).timeline(true).build()?;
    /// pool.map(|x: u64| x * x, 0..100)?;
    /// let items: usize = pool.timeline().events.iter().map(|event| event.items).sum();
    /// assert_eq!(items, 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeline(&self) -> Timeline {
        self.engine().timeline()
    }
}
