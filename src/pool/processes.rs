//! The functions that only a pool of processes has.

use super::Pool;
use crate::engine::Processes;
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
}
