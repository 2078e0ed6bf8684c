//! The engines: where the work of a [`Pool`](crate::Pool) runs.
//!
//! | engine | what runs a task | what the function may capture | what crosses |
//! |---|---|---|---|
//! | [`Serial`] | the caller | anything | nothing |
//! | [`Threads`] | the threads of a rayon pool of its own | `map`: borrows; `submit`: owned values | nothing |
//! | [`Processes`] | persistent workers, this executable started again | nothing, or what `map_with` and `closure!` send along | arguments and results, by serde |
//! | [`Forked`] | children forked for the one call | anything, borrows too (copy-on-write) | results, by serde |
//!
//! The conditions differ, so each engine states its own: by the bounds under which it implements [`Run`]. Code that
//! is to run on any engine takes `E: Run<F, A, R>`.

mod serial;
mod threads;

#[cfg(target_os = "linux")]
mod forked;
#[cfg(target_os = "linux")]
pub(crate) mod processes;

#[cfg(target_os = "linux")]
pub use forked::{Forked, ForkedBuilder};
#[cfg(target_os = "linux")]
pub(crate) use processes::become_worker_if_asked;
#[cfg(target_os = "linux")]
pub use processes::{Portable, Processes, ProcessesBuilder};
pub use serial::Serial;
pub use threads::Threads;

use crate::error::{PoolError, TaskError};
use crate::future::TaskFuture;
use crate::pool::Plan;

pub(crate) mod sealed {
    /// Engines are this crate's own: what a pool asks of them may still change.
    pub trait Sealed {}
}

/// Where the tasks of a [`Pool`](crate::Pool) run.
pub trait Executor: sealed::Sealed {
    /// How many tasks run at once, at most.
    fn workers(&self) -> usize;

    /// What the engine is called, in lower case: `serial`, `threads`, `processes`, `forked`.
    fn name(&self) -> &'static str;

    #[doc(hidden)]
    fn close(&self) -> Result<(), PoolError>;
}

/// An engine that can run `F` on arguments of type `A`, for results of type `R`.
///
/// Each engine implements this under its own conditions, which is how a function that cannot cross into another
/// process is refused by the compiler instead of at run time. In generic code it is the bound to ask for.
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
///     Ok(pool.map(test, 0..below)?.into_iter().filter(|&hit| hit).count())
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
    #[doc(hidden)]
    fn map<I>(&self, plan: Plan<'_>, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>;

    #[doc(hidden)]
    fn submit(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static;
}

/// An engine that can run `F` on a context of type `C` and arguments of type `A`, for results of type `R`: what
/// [`Pool::map_with`](crate::Pool::map_with) asks for.
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
/// assert_eq!(scaled(&Pool::serial(), 0.5, |k, x| k * f64::from(x))?, [0.0, 0.5, 1.0]);
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
