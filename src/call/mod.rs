//! What a call is, whichever engine runs it.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what an engine is told of a call: [`schedule`], [`limits`], [`progress`] |
//! | [`retry`] | which failures are followed by another attempt |
//! | [`stop`] | which results end a call at once |
//! | [`stream`] | lazy calls: how the input is read and the results are handed out |
//! | [`grace`] | how a task that runs hears that it is to stop |
//! | [`seed`] | the seeds of items |
//! | [`worker_index`] | which worker of its pool runs a task |
//! | [`code`] | functions as numbers that mean the same in another process |
//! | [`closure`] | functions that take values along there |
//! | [`portable`] | which functions can go there |
//! | [`entry`] | where a worker process enters a function |
//! | [`at_fork`] | what forked children run first |
//! | [`logs`] | log records on their way to the parent |
//! | [`traces`] | events of `tracing`, likewise |
//! | [`service`] | the threads that belong to a pool |

#[cfg(target_os = "linux")]
pub(crate) mod at_fork;
#[cfg(target_os = "linux")]
pub(crate) mod closure;
#[cfg(target_os = "linux")]
pub(crate) mod code;
#[cfg(target_os = "linux")]
pub(crate) mod entry;
pub(crate) mod grace;
mod limits;
#[cfg(target_os = "linux")]
pub(crate) mod logs;
mod plan;
#[cfg(target_os = "linux")]
pub(crate) mod portable;
pub(crate) mod progress;
pub(crate) mod retry;
pub(crate) mod schedule;
pub(crate) mod seed;
#[cfg(target_os = "linux")]
pub(crate) mod service;
pub(crate) mod stop;
pub(crate) mod stream;
#[cfg(target_os = "linux")]
pub(crate) mod traces;
pub(crate) mod worker_index;

#[cfg(target_os = "linux")]
pub(crate) use limits::Limit;
pub(crate) use limits::{Failure, Limits};
pub(crate) use plan::Plan;
pub(crate) use progress::Tracker;
pub(crate) use retry::{Retry, RetryOn};
#[cfg(target_os = "linux")]
pub(crate) use schedule::Chunks;
pub(crate) use stop::{AtErr, Never, Stop};
pub(crate) use stream::{ChunkFuture, Stream};
