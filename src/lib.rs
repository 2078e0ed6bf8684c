//! `manyhands`: all the cores of one Linux machine, by threads or by processes, with one interface.
//!
//! A [`Pool`] runs a function on many items ([`Pool::map`]) or one task at a time
//! ([`Pool::submit`]) on one of four [`engine`]s. Threads are cheapest. Processes cost about as
//! much to call, and are independent of each other: a task that crashes, calls `exit` or is killed
//! costs exactly that one task. It fails with an error that says how the worker ended. The pool
//! replaces the worker, and every other task gets its result.
//!
//! ```
//! use manyhands::prelude::*;
//!
//! let pool = Pool::processes(2)?;
//! let squares: Vec<u64> = pool.map(|x| x * x, 0..1_000u64)?;
//! assert_eq!(squares[31], 961);
//!
//! // A task that takes its process down with it fails alone.
//! let crash = pool.submit(|()| -> () { std::process::abort() }, ());
//! match crash.result() {
//!     Err(TaskError::WorkerDied {
//!         cause: Death::Signal(6),
//!         ..
//!     }) => {}
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!(pool.submit(|x: i32| x + 1, 1).result()?, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to read on:
//!
//! - [`Pool`] has the calls, [`Call`] their options, [`TaskFuture`] is the handle of a submitted
//!   task; [`wait`] and [`as_completed`] deal with many of them.
//! - [`Processes::builder`] has the options of worker processes: limits on time and memory,
//!   initialisers, how they are started, how long they stay.
//! - [`engine`] compares the engines and says what each lets a function capture; [`closure!`] is
//!   for functions that must take values along into another process.
//! - [`available_workers`] and [`physical_cores`] say how many workers make sense here.
//! - [`Process`] is one child process that runs one function; [`process`] says how it lives and
//!   ends.
//! - [`thread`] has a semaphore, an event and a barrier for programs that only use threads.
//! - [`shm`] says how processes share objects, and which values can be shared in place;
//!   [`SharedValue`] is one value.
//! - [`shm::SharedMemory`] is memory with a name, for programs that are not related.
//! - [`sync`] has locks, semaphores, barriers and the like, between processes; a process that is
//!   killed does not block the others.
//! - [`SharedArray`] is an array that processes read and write in place; [`Pool::for_each_chunk`]
//!   gives each worker its part.
//! - [`Queue`], [`queue::PriorityQueue`], [`queue::Stack`] and [`queue::Pipe`] carry values between
//!   threads and processes; [`queue`] says what becomes of them when a participant is killed.
//! - [`select::wait_ready`] waits for any mix of queues, events and processes.
//! - [`AnyEngine`] is chosen by a text when the program runs. [`item_seed`] and [`worker_seed`] are
//!   for random numbers in tasks, [`at_fork_child`] for what a forked child must make anew.
//! - [`error`] has what can go wrong, and [`Error`] is any of it. [`TaskError`] and [`PoolError`]
//!   list what can go wrong with tasks and pools, [`process::ProcessError`] with one process;
//!   [`shm::ShareError`] with shared objects, [`shm::ClaimError`] with claims on an array,
//!   [`shm::SharedMemoryError`] with memory that has a name. Queues have
//!   [`PushError`](queue::PushError), [`PopError`](queue::PopError) and
//!   [`JoinError`](queue::JoinError), locks [`PoisonError`](sync::PoisonError),
//!   [`TryLockError`](sync::TryLockError) and [`BarrierError`](sync::BarrierError).
//! - A call on a lock, queue or array that may wait has up to three forms. `x` waits for as long as
//!   it takes. `try_x` does not wait. `x_timeout` takes a [`Duration`](std::time::Duration). If it
//!   is late it fails with `TimedOut`, also if the timeout is zero: a variant of the error of `x`,
//!   and for a lock of [`TryLockError`](sync::TryLockError). Only where `x` itself cannot fail is
//!   the answer an `Option` or a `bool`. A wait for a condition answers as std's. Arrays have no
//!   form that waits without a timeout.
//! - In the repository, `docs/when-things-die.md` says what can end a task and what the caller gets
//!   then, `docs/forking.md` what forks and what is there twice, `docs/containers.md` what workers
//!   need in a container or a sandbox.
//! - `docs/design/` in the repository has the decisions, with what was measured, and the failure
//!   model: for each step of a task's way, which process may be killed there and what the caller
//!   sees.

#![deny(unsafe_code)]

mod any_error;
#[cfg(target_os = "linux")]
mod array;
mod barrier;
mod call;
#[cfg(target_os = "linux")]
mod codec;
mod copies;
pub mod engine;
pub mod error;
mod future;
#[cfg(target_os = "linux")]
mod hook;
#[cfg(target_os = "linux")]
mod lane;
mod machine;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod named;
#[cfg(target_os = "linux")]
mod objects;
#[cfg(target_os = "linux")]
mod os;
mod panic;
mod pool;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(target_os = "linux")]
pub mod queue;
#[cfg(target_os = "linux")]
pub mod select;
mod shim;
#[cfg(target_os = "linux")]
pub mod shm;
mod signals;
#[cfg(target_os = "linux")]
pub mod sync;
mod text;
pub mod thread;
#[cfg(target_os = "linux")]
mod value;

pub use any_error::{Error, Result};
#[cfg(target_os = "linux")]
pub use call::at_fork::at_fork_child;
pub use call::grace::should_stop;
#[cfg(target_os = "linux")]
pub use call::portable::{Portable, PortableValue};
pub use call::progress::Progress;
pub use call::retry::{Retry, RetryOn, Retrying};
pub use call::schedule::Schedule;
pub use call::seed::{item_seed, worker_seed};
pub use call::stream::{Imap, ImapUnordered};
pub use call::worker_index::worker_index;
#[cfg(target_os = "linux")]
pub use engine::{AnyEngine, Forked, Processes, RunLent};
pub use engine::{Executor, Run, RunAgain, RunOnce, RunReduce, RunWith};
pub use engine::{Serial, Shutdown, Threads, worker_state};
pub use error::{PoolError, SentError, TaskError, TaskId, TryError};
pub use future::{AsCompleted, CancellationToken, ReturnWhen, TaskFuture, as_completed, wait};
pub use machine::{available_workers, physical_cores};
pub use pool::{Call, Pool};
#[cfg(target_os = "linux")]
pub use process::Process;
#[cfg(target_os = "linux")]
pub use queue::Queue;
#[cfg(target_os = "linux")]
pub use shm::{SharedArray, SharedValue};

/// The crate `bytemuck`, for its traits: the elements and values of shared objects implement `Pod`.
/// See [`shm`](crate::shm#which-values-can-be-shared).
#[cfg(target_os = "linux")]
pub use bytemuck;
/// The crate `ndarray`, for the types of views of shared arrays. Which version it is, is no part of
/// what a release of this crate promises: a later one may have another.
#[cfg(all(target_os = "linux", feature = "ndarray"))]
pub use ndarray;

/// Log records of workers and child processes: they go through the logger of the program, if it has
/// one.
///
/// A program that logs by the crate [`log`] sets a logger in `main`, where no worker process comes
/// to. So a worker's records go to the parent, by memory that both share, and there to its logger:
/// with the target, the file and the level that they have, and with the worker and its task before
/// the message (`[worker 2, item 5] …`; see also [`origin`](logs::origin)). The records of one
/// worker come in order. Those that it wrote before it died come too, also after a SIGKILL.
/// Results do not wait for records. [`close`](Pool::close) returns when all have been logged, and
/// so does dropping the pool.
///
/// A [`Process`] is treated as a worker is, with its name in the place of the worker and the task
/// (`[process indexer] …`). [`Process::join`] returns when its records have been logged, and a
/// program that ends waits for them, unless the logger does nothing for two seconds.
///
/// - It is the default if the program has a logger when the pool is made, that is, if
///   [`log::max_level`] is not `Off`. [`Logs`](logs::Logs) on the builders of
///   [`Processes`](engine::ProcessesBuilder::logs), [`Forked`](engine::ForkedBuilder::logs) and
///   [`Process`](process::ProcessBuilder::logs) says otherwise.
/// - A worker gets its logger after its initialiser, and only if there is none by then. An
///   initialiser that sets a logger keeps it; what an initialiser logs without one is lost. The
///   worker's level is that which this program has when the worker is started.
/// - A [`Process`] gets its logger before its function begins. A function that sets a logger of its
///   own needs [`Logs::Off`](logs::Logs::Off).
/// - Children that are forked have the program's logger already. Theirs go to the parent if that
///   logger is a [`Forwarder`](logs::Forwarder).
/// - A worker has room for 128 KiB of records that have not been read. If there is none, a task
///   waits for 10 ms at most. Then the record is dropped, and so are those that follow until there
///   is room. The logger is told how many were dropped, and the
///   [statistics](engine::WorkerStats::log_records_dropped) have the number. A record is cut at
///   16 KiB.
/// - With the feature `tracing`, what tasks emit by `tracing` goes through the subscriber that is
///   the default where the pool or child is made, in order with the log records, and under the same
///   conditions. Fields keep their types. The message stays as it is: there are the fields
///   `manyhands.worker` (of a [`Process`], `manyhands.process`), `manyhands.item` or
///   `manyhands.task`, and `manyhands.spans` with the names of the spans that were open
///   (`outer:inner`). Forked children need nothing else for it; threads that a task starts in one
///   have this program's subscriber.
/// - The logger runs on a thread that the pool has for this; all children of [`Process`] share one.
///   If it panics, it gets the next record
///   all the same. It may use pools, but not close one of processes or forked children.
#[cfg(target_os = "linux")]
pub mod logs {
    pub use crate::call::logs::Forwarder;
    pub use crate::process::logs::Logs;
    pub use crate::process::origin::{Origin, origin};
}

/// The names that most programs need: `use manyhands::prelude::*;`.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool: Pool<Threads> = Pool::threads(2)?;
/// let task: TaskFuture<usize> = pool.submit(str::len, "hands");
/// let length: Result<usize, TaskError> = task.result();
/// assert_eq!(length?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod prelude {
    pub use crate::call::retry::{Retry, RetryOn};
    pub use crate::call::schedule::Schedule;
    #[cfg(target_os = "linux")]
    pub use crate::closure;
    #[cfg(target_os = "linux")]
    pub use crate::engine::{AnyEngine, Forked, Processes, RunLent, StartMethod, WaitPolicy};
    pub use crate::engine::{Executor, Run, RunAgain, RunOnce, RunReduce, RunWith};
    pub use crate::engine::{Serial, Threads};
    pub use crate::error::{Death, PoolError, TaskError, TryError};
    pub use crate::future::{ReturnWhen, TaskFuture, as_completed, wait};
    pub use crate::pool::Pool;
    #[cfg(target_os = "linux")]
    pub use crate::process::Process;
}

/// Runs the worker loop, and does not return, if this process was started as a worker. Otherwise
/// does nothing.
///
/// Only programs built without the `worker-hook` feature need it, as the first statement of `main`.
/// With the feature, which is the default, workers never reach `main`.
///
/// # Examples
///
/// ```
/// manyhands::init();
/// // … the program …
/// ```
pub fn init() {
    #[cfg(target_os = "linux")]
    hook::take_role();
}

/// The functions that the fuzz targets in `fuzz/` call.
#[cfg(all(fuzzing, target_os = "linux"))]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::lane::garbage::lane_responses;
}

#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod __private {
    pub use crate::call::closure::{bind, bind_chunks, bind_pairs, bind_tiles};
    pub use crate::call::portable::PortableArgument;
}

/// The README, so that its code is tested with the rest.
#[cfg(all(doctest, target_os = "linux"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The page on forking, likewise.
#[cfg(all(doctest, target_os = "linux"))]
#[doc = include_str!("../docs/forking.md")]
struct Forking;
