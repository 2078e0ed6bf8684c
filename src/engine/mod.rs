//! The engines: where the work of a [`Pool`](crate::Pool) runs.
//!
//! For each engine: what runs a task, what the function may capture, and what crosses between the
//! caller and the function.
//!
//! - [`Serial`]: the caller runs it. The function may capture anything. Nothing crosses.
//! - [`Threads`]: the threads of a rayon pool of its own run it. With `map` the function may
//!   capture borrows, with `submit` owned values. Nothing crosses.
//! - [`Processes`]: persistent workers, which are this executable started again, run it. The
//!   function may capture nothing, or what `map_with` and `closure!` send along. Arguments and
//!   results cross, by serde.
//! - [`Forked`]: children forked for the one call run it. The function may capture anything,
//!   borrows too (copy-on-write). Results cross, by serde.
//!
//! The conditions differ, so each engine states its own, by the bounds under which it implements
//! [`Run`]. Code that is to run on any engine takes `E: Run<F, A, R>`.
//!
//! ```
//! use manyhands::prelude::*;
//!
//! let table = vec![1.0, 4.0, 9.0];
//! let borrowed = Pool::threads(2)?.map(|i| table[i], 0..3usize)?;
//! let forked = Forked::builder().workers(2).allow_threads(true).build()?; // a test has threads
//! let inherited = forked.map(|i| table[i], 0..3usize)?;
//! let sent = Pool::processes(2)?.map(closure!([table] |i: usize| table[i]), 0..3)?;
//! assert!(borrowed == inherited && inherited == sent);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(target_os = "linux")]
mod affinity;
#[cfg(target_os = "linux")]
mod again;
#[cfg(target_os = "linux")]
mod any;
mod clock;
#[cfg(target_os = "linux")]
mod discard;
#[cfg(target_os = "linux")]
pub mod lend;
pub(crate) mod reduce;
mod serial;
mod stats;
mod threads;
mod timeline;
mod unwind_safe;
mod worker_state;

mod backlog;

#[cfg(target_os = "linux")]
pub(crate) mod fork;
#[cfg(target_os = "linux")]
pub(crate) mod forked;
#[cfg(target_os = "linux")]
pub(crate) mod processes;

#[cfg(target_os = "linux")]
pub use affinity::Affinity;
#[cfg(target_os = "linux")]
pub use any::AnyEngine;
#[cfg(target_os = "linux")]
pub(crate) use any::Which;
pub use backlog::WhenFull;
#[cfg(target_os = "linux")]
pub use forked::{Forked, ForkedBuilder};
#[cfg(target_os = "linux")]
pub use lend::RunLent;
#[cfg(target_os = "linux")]
pub(crate) use processes::{FORK_SERVER, WORKER};
#[cfg(target_os = "linux")]
pub use processes::{InnerThreads, Processes, ProcessesBuilder, StartMethod, WaitPolicy};
pub use serial::{Serial, SerialBuilder};
pub use stats::{Failures, PoolStats, WorkerStats};
pub use threads::{Threads, ThreadsBuilder};
pub use timeline::{Timeline, TimelineEvent};
pub use worker_state::worker_state;

use self::sealed::Internal;
use crate::call::{Limits, Plan, Stop, Stream};
use crate::error::{PoolError, TaskError};
use crate::future::{PoolId, TaskFuture};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

pub(crate) mod sealed {
    /// A mark of this crate's own engines: what a pool asks of an engine may still change.
    pub trait Sealed {}

    /// An argument that only this crate can make. A method that takes it cannot be called from
    /// outside, not even by generic code, which sees the methods of all traits in its bounds.
    #[derive(Clone, Copy, Debug)]
    #[non_exhaustive]
    pub struct Internal;
}

/// An engine: where the tasks of a [`Pool`](crate::Pool) run.
///
/// The trait is sealed: the engines of this crate are the only ones, and what a pool asks of them
/// cannot be called from outside.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// fn describe<E: Executor>(pool: &Pool<E>) -> String {
///     format!("{} × {}", pool.workers(), pool.engine().kind())
/// }
///
/// assert_eq!(describe(&Pool::serial()), "1 × serial");
/// assert_eq!(describe(&Pool::threads(3)?), "3 × threads");
/// # Ok::<(), PoolError>(())
/// ```
pub trait Executor: sealed::Sealed + Send + Sync + Debug {
    /// Returns how many tasks run at once, at most.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool: Pool<AnyEngine> = "processes:2".parse()?;
    /// assert_eq!(pool.engine().workers(), 2);
    /// # Ok::<(), PoolError>(())
    /// ```
    fn workers(&self) -> usize;

    /// Returns which engine it is, in lower case: `serial`, `threads`, `processes`, `forked`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool: Pool<AnyEngine> = "threads:2".parse()?;
    /// assert_eq!(pool.engine().kind(), "threads");
    /// # Ok::<(), PoolError>(())
    /// ```
    fn kind(&self) -> &'static str;

    /// Returns what the pool is called.
    #[doc(hidden)]
    fn name(&self, _: Internal) -> &str;

    /// Returns the id under which callbacks of the engine's tasks are counted.
    #[doc(hidden)]
    fn id(&self, _: Internal) -> PoolId;

    #[doc(hidden)]
    fn close(&self, _: Internal) -> Result<(), PoolError>;

    /// Closes the pool as [`close`](Self::close) does, but stops what has not ended by the
    /// deadline. Returns `None` if all had ended, and otherwise how many workers were at work.
    #[doc(hidden)]
    fn close_by(&self, deadline: Option<Instant>, _: Internal) -> Result<Option<usize>, PoolError>;

    #[doc(hidden)]
    fn shutdown(&self, how: Shutdown, _: Internal) -> Result<(), PoolError>;

    /// Returns whether the engine takes tasks.
    #[doc(hidden)]
    fn is_open(&self, _: Internal) -> bool;

    /// Returns what the workers have done so far. In a forked child of the process that made the
    /// pool it is nothing: the pool is the parent's.
    #[doc(hidden)]
    fn stats(&self, _: Internal) -> PoolStats;

    /// Returns what has run where and when, with no events if no record is kept.
    #[doc(hidden)]
    fn timeline(&self, _: Internal) -> Timeline;
}

/// The way in which [`Pool::shutdown`](crate::Pool::shutdown) ends a pool that has work left.
///
/// # Examples
///
/// ```
/// use manyhands::Shutdown;
/// use manyhands::prelude::*;
/// use std::sync::mpsc::{Receiver, channel};
///
/// let pool = Pool::threads(1)?;
/// let (open, gate) = channel();
/// let running = pool.submit(|gate: Receiver<()>| gate.recv().is_ok(), gate);
/// let queued = pool.submit(|x: u8| x, 1);
/// queued.on_done(move |_| open.send(()).unwrap()); // once it has been cancelled
/// # while !running.is_running() { std::thread::yield_now() }
/// pool.shutdown(Shutdown::CancelQueued)?;
/// assert_eq!(running.result(), Ok(true));
/// assert!(matches!(queued.result(), Err(TaskError::Cancelled { .. })));
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shutdown {
    /// Tasks that have not started are cancelled; those that run come to their end.
    CancelQueued,
    /// Tasks that run are stopped too, on processes and forked children by killing the process. A
    /// thread cannot be stopped: on the other engines this is the same as
    /// [`CancelQueued`](Self::CancelQueued).
    Kill,
}

/// An engine that can run `F` on arguments of type `A`, for results of type `R`.
///
/// Each engine implements this under its own conditions. So the compiler, and not the running
/// program, refuses a function that cannot cross into another process. Generic code uses this trait
/// as its bound.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// fn count<E, F>(pool: &Pool<E>, test: F, below: u64) -> Result<usize, TaskError>
/// where
///     F: Fn(u64) -> bool,
///     E: Run<F, u64, bool>,
/// {
///     Ok(pool
///         .map(test, 0..below)?
///         .into_iter()
///         .filter(|&hit| hit)
///         .count())
/// }
///
/// assert_eq!(count(&Pool::serial(), |x| x % 3 == 0, 10)?, 4);
/// assert_eq!(count(&Pool::threads(2)?, |x| x % 3 == 0, 10)?, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run this function on `{A}` for results of `{R}`",
    note = "threads: the function is `Sync`, argument and result are `Send`",
    note = "processes: the function captures nothing, argument and result implement serde's `Serialize` and `DeserializeOwned`",
    note = "forked: the result implements serde's `Serialize` and `DeserializeOwned`"
)]
pub trait Run<F, A, R>: Executor {
    /// Runs `f` on all items, or up to the first result at which the call stops: that is the last
    /// one of those returned.
    #[doc(hidden)]
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>;

    #[doc(hidden)]
    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>;

    #[doc(hidden)]
    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static;

    /// Runs `f` once on each worker, with the argument of that index. Returns the outcomes of all
    /// workers, without indices; one outcome if the engine as a whole refuses.
    #[doc(hidden)]
    fn broadcast(&self, limits: Limits, f: F, arguments: Vec<A>) -> Vec<Result<R, TaskError>>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static;

    #[doc(hidden)]
    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static;
}

/// An engine that can run `F` on arguments of type `A`, for results of type `R`, and run it again
/// if it fails. The calls of [`Call::retry`](crate::Call::retry) ask for this bound.
///
/// [`Processes`] and [`Forked`] can if they can run the function at all. On [`Threads`] and
/// [`Serial`] the argument must be [`Clone`] too.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// fn patient<E, F>(pool: &Pool<E>, f: F, words: Vec<String>) -> Result<Vec<usize>, TaskError>
/// where
///     F: Fn(String) -> usize,
///     E: RunAgain<F, String, usize>,
/// {
///     let policy = Retry::up_to(2).on(RetryOn::DEATH | RetryOn::PANIC);
///     pool.call().retry(policy).map(f, words)
/// }
///
/// let words = || vec!["many".to_owned(), "hands".to_owned()];
/// assert_eq!(patient(&Pool::serial(), |word| word.len(), words())?, [4, 5]);
/// assert_eq!(patient(&Pool::processes(2)?, |word| word.len(), words())?, [4, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run this function on `{A}` again, for results of `{R}`",
    note = "an item that is tried again is used up by each attempt: on threads and serial it must implement `Clone`, besides what a call without `retry` asks for",
    note = "`retries(n)`, for deaths of workers alone, asks for nothing more"
)]
pub trait RunAgain<F, A, R>: Run<F, A, R> {
    /// Runs a `map` with the policy that is in the limits.
    #[doc(hidden)]
    fn map_again<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        self.map(plan, f, items, stop)
    }

    /// Runs a `map_outcomes` with the policy that is in the limits.
    #[doc(hidden)]
    fn map_outcomes_again<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        self.map_outcomes(plan, f, items)
    }

    /// Submits a task with the policy that is in the limits.
    #[doc(hidden)]
    fn submit_again(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.submit(limits, f, argument)
    }

    /// Begins a lazy call with the policy that is in the limits.
    #[doc(hidden)]
    fn stream_again(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.stream(limits, f)
    }
}

/// An engine that can run `F`, once, on an argument of type `A`, for a result of type `R`.
/// [`Pool::submit_once`](crate::Pool::submit_once) asks for this bound.
///
/// [`Processes`] is none: a worker makes the function anew from its type, for each task.
///
/// # Examples
///
/// ```
/// use manyhands::RunOnce;
/// use manyhands::prelude::*;
///
/// fn later<E, F>(pool: &Pool<E>, f: F) -> TaskFuture<usize>
/// where
///     F: FnOnce(()) -> usize + Send + 'static,
///     E: RunOnce<F, (), usize>,
/// {
///     pool.submit_once(f, ())
/// }
///
/// let words = vec!["many", "hands"];
/// assert_eq!(later(&Pool::serial(), move |()| words.into_iter().count()).result()?, 2);
/// # Ok::<(), TaskError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run this function once on `{A}` for a result of `{R}`",
    note = "threads: function, argument and result are `Send`",
    note = "forked: the result implements serde's `Serialize` and `DeserializeOwned`",
    note = "processes: a worker is sent no values that a function can use up; put them into the argument and call `submit`"
)]
pub trait RunOnce<F, A, R>: Executor {
    #[doc(hidden)]
    fn submit_once(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static;
}

/// An engine that can run `F` on arguments of type `A` and reduce the results, of type `R`, by `G`.
/// [`Pool::map_reduce`](crate::Pool::map_reduce) asks for this bound.
///
/// # Examples
///
/// ```
/// use manyhands::RunReduce;
/// use manyhands::prelude::*;
///
/// fn sum<E, F, G>(pool: &Pool<E>, f: F, add: G) -> Result<Option<u64>, TaskError>
/// where
///     F: Fn(u64) -> u64,
///     G: Fn(u64, u64) -> u64,
///     E: RunReduce<F, G, u64, u64>,
/// {
///     pool.map_reduce(f, add, 0..5)
/// }
///
/// assert_eq!(sum(&Pool::serial(), |x| x * x, |a, b| a + b)?, Some(30));
/// # Ok::<(), TaskError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run this function on `{A}` and reduce the results of `{R}`",
    note = "threads: both functions are `Sync`, argument and result are `Send`",
    note = "processes: both functions capture nothing, argument and result implement serde's `Serialize` and `DeserializeOwned`",
    note = "forked: the result implements serde's `Serialize` and `DeserializeOwned`"
)]
pub trait RunReduce<F, G, A, R>: Executor {
    #[doc(hidden)]
    fn map_reduce<I>(
        &self,
        plan: Plan<'_>,
        f: F,
        reduce: G,
        items: I,
    ) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>;
}

/// An engine that can run `F` on a context of type `C` and arguments of type `A`, for results of
/// type `R`. [`Pool::map_with`](crate::Pool::map_with) asks for this bound.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// fn scaled<E, F>(pool: &Pool<E>, factor: f64, f: F) -> Result<Vec<f64>, TaskError>
/// where
///     F: Fn(&f64, u32) -> f64,
///     E: RunWith<f64, F, u32, f64>,
/// {
///     pool.map_with(&factor, f, 0..3)
/// }
///
/// assert_eq!(
///     scaled(&Pool::serial(), 0.5, |k, x| k * f64::from(x))?,
///     [0.0, 0.5, 1.0]
/// );
/// # Ok::<(), TaskError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run this function with a context of `{C}` on `{A}` for results of `{R}`",
    note = "threads: function and context are `Sync`, argument and result are `Send`",
    note = "processes: the function captures nothing; context, argument and result implement serde's `Serialize` and `DeserializeOwned`",
    note = "forked: the result implements serde's `Serialize` and `DeserializeOwned`"
)]
pub trait RunWith<C, F, A, R>: Executor {
    #[doc(hidden)]
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>;
}

/// Returns what a pool is called. Pools without a given name are counted.
fn pool_name(given: Option<String>) -> String {
    static POOLS: AtomicU32 = AtomicU32::new(0);
    let given = given.filter(|name| !name.is_empty());
    let name = given.unwrap_or_else(|| format!("pool{}", POOLS.fetch_add(1, Ordering::Relaxed)));
    // The name is printed in tables and by `ps`, where it would end at a NUL.
    name.replace(char::is_control, " ")
}

/// Makes a name of at most 15 bytes, which is what the kernel keeps. The end of it tells workers
/// apart.
#[cfg(target_os = "linux")]
fn short_name(pool: &str, separator: char, worker: usize) -> String {
    let end = format!("{separator}{worker}");
    let mut kept = pool.len().min(15_usize.saturating_sub(end.len()));
    while !pool.is_char_boundary(kept) {
        kept -= 1;
    }
    format!("{}{end}", &pool[..kept])
}

/// The most process ids that Linux has (`PID_MAX_LIMIT`).
#[cfg(target_os = "linux")]
const MOST_PROCESSES: usize = 1 << 22;

/// Returns the number of workers that was asked for, if there can be so many; if none was, that of
/// [`available_workers`](crate::available_workers).
#[cfg(target_os = "linux")]
pub(crate) fn workers_or_available(asked: Option<usize>) -> Result<usize, PoolError> {
    let workers = asked.map_or_else(crate::machine::available_workers, Ok)?;
    check_workers(workers).map(|()| workers)
}

/// Checks that a pool can have this many workers that are processes.
#[cfg(target_os = "linux")]
pub(crate) fn check_workers(workers: usize) -> Result<(), PoolError> {
    match workers {
        0 => Err(PoolError::ZeroWorkers),
        1..=MOST_PROCESSES => Ok(()),
        _ => Err(PoolError::InvalidOption {
            option: "workers".into(),
            value: workers.to_string(),
            reason: "the system has no more than 4,194,304 processes".into(),
        }),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn short_names_keep_the_number() {
        assert_eq!(short_name("render", ':', 3), "render:3");
        assert_eq!(short_name("render", '-', 3), "render-3");
        assert_eq!(
            short_name("a-very-long-pool-name", ':', 12),
            "a-very-long-:12"
        );
        assert_eq!(short_name("ßßßßßßßßßß", ':', 1), "ßßßßßß:1");
    }
}
