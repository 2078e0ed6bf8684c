//! [`ProcessesBuilder`]: a process pool with everything said.

use super::Processes;
use crate::error::PoolError;
use crate::machine::available_workers;
use crate::pool::Pool;

/// Makes a [`Pool<Processes>`]; see [`Processes::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ProcessesBuilder {
    workers: Option<usize>,
    name: Option<String>,
}

impl ProcessesBuilder {
    /// How many workers; unless said, [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Processes::builder().workers(3).build()?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// What the pool is called where its workers can be seen: in `ps` they are `manyhands:NAME:0`,
    /// `manyhands:NAME:1` …. Unless said, the pools of a process are counted: `pool0`, `pool1` ….
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).name("render").build()?;
    /// let own_name = pool.submit(|()| std::env::args().next(), ()).result()?;
    /// assert_eq!(own_name.as_deref(), Some("manyhands:render:0"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Starts the workers, and returns when all are up.
    ///
    /// # Errors
    ///
    /// - [`PoolError::ZeroWorkers`]; those of [`available_workers`](crate::available_workers), if it was asked;
    /// - [`PoolError::StartFailed`] or [`PoolError::StartTimedOut`] if a worker did not come up, and
    ///   [`PoolError::System`] if the system refused memory, descriptors or a thread; those already started are
    ///   stopped;
    /// - [`PoolError::ForeignExecutable`] in a shared library that another program has loaded;
    /// - [`PoolError::Privileged`] in a set-user-id program;
    /// - [`PoolError::HookMissing`] in a process that was itself started as a worker but reached `main`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).build()?;
    /// assert_eq!(pool.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(self) -> Result<Pool<Processes>, PoolError> {
        let workers = match self.workers {
            Some(0) => return Err(PoolError::ZeroWorkers),
            Some(workers) => workers,
            None => available_workers()?,
        };
        Ok(Pool::over(Processes::start(workers, self.name)?))
    }
}
