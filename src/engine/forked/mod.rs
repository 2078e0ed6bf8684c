//! The engine of forked children: processes made for one call, which see all that the caller sees.
//!
//! A forked child is a copy of the caller, made without copying: pages are shared until one side writes. So a function
//! may use whatever is in scope, borrowed or not, and items need no encoding; only results cross, through a
//! [`lane`](crate::lane) of the child's own. Children claim chunks of items from a cursor in shared memory, and live
//! until there are none left.
//!
//! A child has one thread, whatever the caller had. A lock that another thread held when the fork came stays locked in
//! the child for ever, so a call is refused while other threads run ([`threads_beside`]). Threads that this crate
//! itself keeps do not count: they sleep, and hold none but the crate's own locks, which a child never takes, because
//! its copies of pools and handles refuse ([`PoolError::OtherProcess`]).

mod child;
mod map;
mod submit;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::submit::Submitted;
use super::sealed::Sealed;
use super::{Executor, Run, RunWith};
use crate::error::{PoolError, TaskError};
use crate::future::TaskFuture;
use crate::machine::available_workers;
use crate::os::{fork, task};
use crate::panic;
use crate::pool::{Plan, Pool};

/// The engine of [`Pool::forked`](crate::Pool::forked): children forked for each call.
#[derive(Debug)]
pub struct Forked {
    workers: usize,
    allow_threads: bool,
    submitted: Submitted,
}

/// Makes a [`Pool<Forked>`]; see [`Forked::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ForkedBuilder {
    workers: Option<usize>,
    allow_threads: bool,
}

impl ForkedBuilder {
    /// How many children at once; unless said, [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Forked::builder().workers(3).build()?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Forks also while other threads run, as in a test harness.
    ///
    /// What that may lead to: a lock that another thread holds at the moment of the fork stays locked in the child, and
    /// a task that takes it waits for ever. The C library sees to its allocator's locks, and this crate holds those of
    /// std's standard output and standard error around the fork. What remains are the locks of the program and of its
    /// libraries: loggers, pools, caches. Without other threads there is no such risk.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Forked::builder().workers(2).allow_threads().build()?;
    /// assert_eq!(pool.map(|x: u64| x + 1, 0..3)?, [1, 2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn allow_threads(mut self) -> Self {
        self.allow_threads = true;
        self
    }

    /// Makes the pool. Nothing is forked before the first call.
    ///
    /// # Errors
    ///
    /// [`PoolError::ZeroWorkers`]; those of [`available_workers`](crate::available_workers), if it was asked.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Forked::builder().workers(0).build().unwrap_err(), PoolError::ZeroWorkers);
    /// ```
    pub fn build(self) -> Result<Pool<Forked>, PoolError> {
        let workers = match self.workers {
            Some(0) => return Err(PoolError::ZeroWorkers),
            Some(workers) => workers,
            None => available_workers()?,
        };
        panic::install_hook();
        let engine = Forked {
            workers,
            allow_threads: self.allow_threads,
            submitted: Submitted::new(),
        };
        Ok(Pool::over(engine))
    }
}

impl Forked {
    /// A pool of forked children with everything said.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Forked::builder().workers(2).build()?;
    /// assert_eq!(pool.workers(), 2);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn builder() -> ForkedBuilder {
        ForkedBuilder::default()
    }

    /// # Errors
    ///
    /// That other threads run, unless that was allowed.
    fn check_threads(&self) -> Result<(), PoolError> {
        if self.allow_threads {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            match threads_beside()? {
                0 => return Ok(()),
                // One of ours may be about to park, or gone and still listed.
                _ if start.elapsed() < SETTLING => std::thread::yield_now(),
                threads => return Err(PoolError::ThreadsRunning { threads }),
            }
        }
    }
}

/// How long the crate's own threads may take to come to rest before they count as others.
const SETTLING: Duration = Duration::from_millis(20);

/// How many threads run beside the caller, those that this crate keeps parked left out. The threads of a pool with
/// something to do are not parked: they count.
fn threads_beside() -> Result<usize, PoolError> {
    let ids = task::ids().map_err(|error| {
        PoolError::system("the threads of this process could not be counted", error)
    })?;
    let mut parked = task::own_ids();
    parked.extend(super::threads::idle_thread_ids().unwrap_or_default());
    parked.push(task::current());
    Ok(ids.into_iter().filter(|id| !parked.contains(id)).count())
}

/// Forks; the child never comes back from `run`.
///
/// Standard output and error are flushed before, so that the child does not print again what the parent had buffered,
/// and locked during the fork, so that the child finds them free.
#[allow(unsafe_code)]
fn fork_child(run: impl FnOnce()) -> std::io::Result<u32> {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    // A closed or full output is not this call's business.
    let _ = (out.flush(), err.flush());
    // SAFETY: either no other thread runs (`check_threads`), or whoever allowed that was told what it may lead to: a
    // child that waits for ever. What it cannot lead to is a data race: the child's memory is its own.
    match unsafe { fork::fork() }? {
        fork::Side::Parent { child } => Ok(child),
        fork::Side::Child => {
            drop((out, err));
            // No unwinding into the copy of the caller's frames.
            let code = if panic::catch(run).is_ok() { 0 } else { 101 };
            // No exit handler runs here, and the children that the child started are waited for by one.
            crate::process::end_children();
            let _ = (std::io::stdout().flush(), std::io::stderr().flush());
            fork::exit_now(code)
        }
    }
}

impl Sealed for Forked {}

impl Executor for Forked {
    fn workers(&self) -> usize {
        self.workers
    }

    fn name(&self) -> &'static str {
        "forked"
    }

    fn close(&self) -> Result<(), PoolError> {
        self.submitted.close()
    }
}

impl<F, A, R> Run<F, A, R> for Forked
where
    F: Fn(A) -> R,
    R: Serialize + DeserializeOwned + 'static,
{
    fn map<I>(&self, plan: Plan<'_>, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.submitted.check_open()?;
        map::map(self, plan, &f, items)
    }

    fn submit(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let submitted = self
            .check_threads()
            .and_then(|()| self.submitted.submit(self.workers, f, argument));
        match submitted {
            Ok(task) => TaskFuture::new(Arc::new(task)),
            Err(error) => TaskFuture::ready(Err(error.into())),
        }
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Forked
where
    F: Fn(&C, A) -> R,
    R: Serialize + DeserializeOwned + 'static,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.map(plan, |item| f(context, item), items)
    }
}
