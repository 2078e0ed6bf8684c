//! The ways to make pools, one for each engine.

use super::Pool;
use super::shared::Shared;
#[cfg(target_os = "linux")]
use crate::engine::ThreadsBuilder;
use crate::engine::{Forked, ForkedBuilder, Processes, ProcessesBuilder};
use crate::engine::{Serial, Threads};
use crate::error::PoolError;
use crate::machine::available_workers;

impl Pool<Serial> {
    /// Makes a pool whose tasks the caller runs itself, one after the other.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::serial().map(|x| x + 1, [1, 2, 3])?, [2, 3, 4]);
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn serial() -> Self {
        Self {
            engine: Serial::new(),
        }
    }
}

impl Pool<Threads> {
    /// Makes a pool of `workers` threads of this process.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`], or [`PoolError::StartFailed`] if the system gives no more
    /// threads.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let table = [1.0, 4.0, 9.0];
    /// let pool = Pool::threads(4)?;
    /// assert_eq!(pool.map(|i| table[i] * 2.0, 0..3usize)?, [2.0, 8.0, 18.0]); // `map` may borrow
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn threads(workers: usize) -> Result<Self, PoolError> {
        Ok(Self {
            engine: Threads::new(workers)?,
        })
    }

    /// Makes a pool of [`available_workers`](crate::available_workers) threads.
    ///
    /// # Errors
    ///
    /// The errors of [`threads`](Self::threads) and
    /// [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert!(Pool::threads_default()?.workers() >= 1);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn threads_default() -> Result<Self, PoolError> {
        Self::threads(available_workers()?)
    }

    /// Returns the process-wide pool of threads, as many as
    /// [`available_workers`](crate::available_workers) says. It is made at the first call of this
    /// function and kept as long as the process lives. If it has been closed, another takes its
    /// place.
    ///
    /// # Errors
    ///
    /// The errors of [`threads`](Self::threads).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let doubled = Pool::threads_global()?.map(|x| 2 * x, [1, 2])?;
    /// assert_eq!(doubled, [2, 4]);
    /// assert!(std::ptr::eq(
    ///     Pool::threads_global()?,
    ///     Pool::threads_global()?
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn threads_global() -> Result<&'static Self, PoolError> {
        static POOL: Shared<Threads> = Shared::new();
        POOL.get(Self::threads_default)
    }
}

#[cfg(target_os = "linux")]
impl Pool<Processes> {
    /// Makes a pool of `workers` processes: this executable, started again, running the worker loop
    /// instead of `main`. [`Processes::builder`] has more options.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`], or the reason why the workers could not be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let crash = pool.submit(|code: i32| -> () { std::process::exit(code) }, 7);
    /// assert!(matches!(
    ///     crash.result(),
    ///     Err(TaskError::WorkerDied {
    ///         cause: Death::Exit(7),
    ///         ..
    ///     })
    /// ));
    /// assert_eq!(pool.submit(|x: i32| x + 1, 1).result()?, 2); // the pool goes on
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn processes(workers: usize) -> Result<Self, PoolError> {
        Processes::builder().workers(workers).build()
    }

    /// Makes a pool of [`available_workers`](crate::available_workers) processes.
    ///
    /// # Errors
    ///
    /// The errors of [`processes`](Self::processes) and
    /// [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert!(Pool::processes_default()?.workers() >= 1);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn processes_default() -> Result<Self, PoolError> {
        Self::processes(available_workers()?)
    }

    /// Returns the process-wide pool of processes, as many as
    /// [`available_workers`](crate::available_workers) says. It is made at the first call of this
    /// function and kept as long as the process lives; its workers end with the process. If it has
    /// been closed, another takes its place.
    ///
    /// # Errors
    ///
    /// The errors of [`processes`](Self::processes).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let doubled = Pool::processes_global()?.map(|x: u32| 2 * x, [1, 2])?;
    /// assert_eq!(doubled, [2, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn processes_global() -> Result<&'static Self, PoolError> {
        static POOL: Shared<Processes> = Shared::new();
        POOL.get(Self::processes_default)
    }
}

#[cfg(target_os = "linux")]
impl Pool<Forked> {
    /// Makes a pool that forks up to `workers` children for each call. The children see all that
    /// the caller sees; memory is copied only where it is written to. Their results come back by
    /// serde.
    ///
    /// A call is refused while other threads run in this process, because a lock that one of them
    /// holds would stay locked in the child for ever. [`Forked::builder`] can accept that risk.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let table = vec![1.0, 4.0, 9.0];
    /// // `Pool::forked(2)` in a program without other threads; doc tests have some.
    /// let pool = Forked::builder().workers(2).allow_threads(true).build()?;
    /// assert_eq!(pool.map(|i| table[i] * 2.0, 0..3usize)?, [2.0, 8.0, 18.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forked(workers: usize) -> Result<Self, PoolError> {
        Forked::builder().workers(workers).build()
    }

    /// Makes a pool that forks up to [`available_workers`](crate::available_workers) children for
    /// each call.
    ///
    /// # Errors
    ///
    /// The errors of [`forked`](Self::forked) and [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert!(Pool::forked_default()?.workers() >= 1);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn forked_default() -> Result<Self, PoolError> {
        Self::forked(available_workers()?)
    }
}

impl ThreadsBuilder {
    /// Makes the pool.
    ///
    /// # Errors
    ///
    /// - [`PoolError::ZeroWorkers`], if there is to be none.
    /// - [`PoolError::StartFailed`] if the system gives no more threads.
    /// - [`PoolError::System`] or [`PoolError::InvalidVariable`] if no number of workers was given,
    ///   and the number of usable cores cannot be found out.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(2).build()?;
    /// assert_eq!(pool.map(|x| x * x, 0..3)?, [0, 1, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(self) -> Result<Pool<Threads>, PoolError> {
        Ok(Pool {
            engine: self.start()?,
        })
    }
}

#[cfg(target_os = "linux")]
impl ProcessesBuilder {
    /// Starts the workers, and returns when all are running and initialised.
    ///
    /// # Errors
    ///
    /// - [`PoolError::ZeroWorkers`], and [`PoolError::InvalidOption`] for other options that ask
    ///   for what cannot be; those of [`available_workers`](crate::available_workers), if it was
    ///   asked;
    /// - [`PoolError::StartFailed`] or [`PoolError::StartTimedOut`] if a worker did not start,
    ///   [`PoolError::InitializerFailed`] if its initialiser failed, and [`PoolError::System`] if
    ///   the system refused memory, descriptors or a thread; the workers already started are
    ///   stopped;
    /// - [`PoolError::ThreadsRunning`] if the workers were to be forked while other threads run;
    /// - [`PoolError::ForeignExecutable`] in a shared library that another program has loaded;
    /// - [`PoolError::TooDeep`] if too many processes lie one inside the other already;
    /// - [`PoolError::Privileged`] in a set-user-id program;
    /// - [`PoolError::InitNotCalled`] without the feature `worker-hook` if [`init`](crate::init)
    ///   was not called;
    /// - [`PoolError::WorkerReachedMain`] in a process that was itself started as a worker but
    ///   reached `main`.
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
        Ok(Pool::over(self.start()?))
    }
}

#[cfg(target_os = "linux")]
impl ForkedBuilder {
    /// Makes the pool. Nothing is forked before the first call.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`]; those of [`available_workers`](crate::available_workers), if it
    /// was asked.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(
    ///     Forked::builder().workers(0).build().unwrap_err(),
    ///     PoolError::ZeroWorkers
    /// );
    /// ```
    pub fn build(self) -> Result<Pool<Forked>, PoolError> {
        Ok(Pool::over(self.start()?))
    }
}
