//! [`Pool`]: the data-parallel face of every engine.

mod call;
mod progress;
mod schedule;

pub use call::Call;
pub use progress::Progress;
pub use schedule::Schedule;

pub(crate) use call::Plan;
pub(crate) use progress::Tracker;
pub(crate) use schedule::Chunks;

use crate::engine::{Executor, Run, RunWith, Serial, Threads};
#[cfg(target_os = "linux")]
use crate::engine::{Forked, Processes};
use crate::error::{PoolError, TaskError};
use crate::future::TaskFuture;
use crate::machine::available_workers;

/// Workers of one kind, ready to run functions on many items at once.
///
/// The type parameter is the engine, so that the compiler knows what may cross to a worker:
/// [`serial`](Self::serial), [`threads`](Self::threads), [`processes`](Self::processes) or [`forked`](Self::forked).
///
/// Dropping a pool cancels what has not finished: on processes the workers are killed, on threads the tasks that have
/// started run on unseen. [`close`](Self::close) first, or take every result, to lose nothing.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let squares: Vec<u64> = pool.map(|x| x * x, 0..1_000u64)?;
/// assert_eq!(squares[999], 998_001);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pool<E: Executor> {
    engine: E,
}

impl Pool<Serial> {
    /// A pool whose tasks the caller runs itself, one after the other.
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
    /// A pool of `workers` threads of this process.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`], or [`PoolError::StartFailed`] if the system gives no more threads.
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

    /// A pool of [`available_workers`](crate::available_workers) threads.
    ///
    /// # Errors
    ///
    /// As [`threads`](Self::threads) and [`available_workers`](crate::available_workers).
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
}

#[cfg(target_os = "linux")]
impl Pool<Processes> {
    /// A pool of `workers` processes: this executable, started again, running the worker loop instead of `main`.
    /// [`Processes::builder`] has more to choose.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`], or why the workers could not be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let crash = pool.submit(|code: i32| -> () { std::process::exit(code) }, 7);
    /// assert!(matches!(crash.result(), Err(TaskError::WorkerDied { cause: Death::Exit(7), .. })));
    /// assert_eq!(pool.submit(|x: i32| x + 1, 1).result()?, 2); // the pool goes on
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn processes(workers: usize) -> Result<Self, PoolError> {
        Processes::builder().workers(workers).build()
    }

    /// A pool of [`available_workers`](crate::available_workers) processes.
    ///
    /// # Errors
    ///
    /// As [`processes`](Self::processes) and [`available_workers`](crate::available_workers).
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
}

#[cfg(target_os = "linux")]
impl Pool<Forked> {
    /// A pool that forks up to `workers` children for each call. The children see all that the caller sees, copied
    /// only where it is written to; their results come back by serde.
    ///
    /// A call is refused while other threads run in this process, because a lock that one of them holds would stay
    /// locked in the child for ever; [`Forked::builder`] can accept that risk.
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
    /// let pool = Forked::builder().workers(2).allow_threads().build()?;
    /// assert_eq!(pool.map(|i| table[i] * 2.0, 0..3usize)?, [2.0, 8.0, 18.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forked(workers: usize) -> Result<Self, PoolError> {
        Forked::builder().workers(workers).build()
    }

    /// A pool that forks up to [`available_workers`](crate::available_workers) children for each call.
    ///
    /// # Errors
    ///
    /// As [`forked`](Self::forked) and [`available_workers`](crate::available_workers).
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

impl<E: Executor> Pool<E> {
    #[cfg(target_os = "linux")]
    pub(crate) fn over(engine: E) -> Self {
        Self { engine }
    }

    /// How many tasks run at once, at most.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::threads(3)?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(&self) -> usize {
        self.engine.workers()
    }

    /// The engine, for what only it can do or tell.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::serial().engine().name(), "serial");
    /// ```
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Runs `f` on every item and gives the results in the order of the items.
    ///
    /// Items travel in chunks; [`call`](Self::call) has the options. Blocks until all are done, or until one has
    /// failed and every item before it has ended.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] of the first item, in input order, that failed: the same that a serial loop would have met.
    /// Items after it may or may not have run.
    ///
    /// # Panics
    ///
    /// If the iterator panics; the pool stays usable.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let lengths = pool.map(|word: &str| word.len(), ["many", "hands"])?;
    /// assert_eq!(lengths, [4, 5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<F, I, R>(&self, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: Run<F, I::Item, R>,
    {
        self.call().map(f, items)
    }

    /// Runs `f` on every item together with a context that all items share, and gives the results in order.
    ///
    /// On processes the context is serialised once and sent once to each worker, however many items there are; on the
    /// other engines it is borrowed.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    ///
    /// # Panics
    ///
    /// As [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let table = vec![1.0, 4.0, 9.0];
    /// let scaled = pool.map_with(&(table, 2.0), |(t, s), i| t[i] * s, 0..3usize)?;
    /// assert_eq!(scaled, [2.0, 8.0, 18.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_with<C, F, I, R>(&self, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(&C, I::Item) -> R,
        E: RunWith<C, F, I::Item, R>,
    {
        self.call().map_with(context, f, items)
    }

    /// Options of one call, to be ended with a `map`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let squares = pool.call().chunk_size(16).map(|x| x * x, 0..100u32)?;
    /// assert_eq!(squares[9], 81);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call(&self) -> Call<'_, '_, E> {
        Call::new(&self.engine)
    }

    /// Gives one task to the pool and returns at once with a handle for its result.
    ///
    /// On [`Serial`] the task has run when this returns. On [`Forked`](crate::Forked) the child is forked here, and a
    /// submit while all children are busy waits for one to end.
    ///
    /// Every failure, also that of the pool itself, comes out of the handle.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let tasks: Vec<TaskFuture<u64>> = (0..4).map(|n| pool.submit(|n: u64| n * 10, n)).collect();
    /// let results: Result<Vec<u64>, TaskError> = tasks.into_iter().map(TaskFuture::result).collect();
    /// assert_eq!(results?, [0, 10, 20, 30]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit<F, A, R>(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: Run<F, A, R>,
    {
        self.engine.submit(f, argument)
    }

    /// Takes no more tasks, waits for those it has, and ends the workers. Results not yet taken stay in their handles.
    ///
    /// Closing twice is the same as once.
    ///
    /// # Errors
    ///
    /// [`PoolError::OtherProcess`] in a forked child of the process that made the pool.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let task = pool.submit(|x: i32| x * 2, 21);
    /// pool.close()?;
    /// assert_eq!(task.result()?, 42);
    /// assert_eq!(pool.submit(|x: i32| x, 1).result(), Err(TaskError::Pool(PoolError::Closed)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) -> Result<(), PoolError> {
        self.engine.close()
    }
}
