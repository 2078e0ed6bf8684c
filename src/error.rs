//! All that can go wrong: [`TaskError`] for a task or one item of a call, [`PoolError`] for a pool
//! as a whole, [`ProcessError`] for a single child process, [`TryError`] for a call whose items
//! have errors of their own.
//!
//! Every variant carries what a caller can act on (the item's index, the pid, the signal, the place
//! of a panic). Every message says what happened, why, and what to do where that is not plain. All
//! are `Clone`, because many tasks may fail from one cause. They are serde's, because a task
//! may use a pool in turn and return its error. They are `#[non_exhaustive]`, because later engines
//! fail in ways of their own.

mod backtrace;
#[cfg(target_os = "linux")]
mod claim;
mod crash;
mod death;
mod engine_name;
mod io;
mod item_index;
mod message;
#[cfg(target_os = "linux")]
mod process;
mod task_id;
mod thread_names;
mod try_error;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use backtrace::capture as capture_backtrace;
#[cfg(target_os = "linux")]
pub use claim::ClaimError;
#[cfg(target_os = "linux")]
pub(crate) use claim::holder;
#[cfg(target_os = "linux")]
pub(crate) use crash::because;
pub use crash::{Crash, CrashFrame, CrashReason};
pub use death::{Corruption, Death};
pub use item_index::ItemIndex;
pub use message::Message;
#[cfg(target_os = "linux")]
pub use process::ProcessError;
pub use task_id::TaskId;
#[cfg(target_os = "linux")]
pub(crate) use thread_names::listed as named_threads;
pub use try_error::{SentError, TryError};

/// Why a task has no result.
///
/// In a `map`, `index` is the position of the item in the input, from 0. For a task given by
/// `submit` it is `None`, and [`task_id`](Self::task_id) says which task it was.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let error = Pool::serial().map(|x| 10 / x, [5, 0, 2]).unwrap_err();
/// assert_eq!(error.index(), Some(1));
/// assert!(
///     error.to_string().contains("attempt to divide by zero"),
///     "{error}"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The task panicked. Its worker and all other tasks go on.
    #[error(
        "{} panicked: {message}{}{}",
        subject(*index),
        at_place(.location.as_deref()),
        tries(.message.attempts())
    )]
    #[non_exhaustive]
    Panicked {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// The panic's message.
        message: Message,
        /// Where the panic was raised; `None` if the program's own panic hook has replaced this
        /// crate's.
        location: Option<Box<PanicLocation>>,
        /// The stack at the panic, if the variables `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` of the
        /// process that panicked ask for backtraces, as the standard library reads them. At `1` it
        /// has the frames of the task alone, at `full` all. `None` if the program's own panic hook
        /// has replaced this crate's.
        backtrace: Option<Message>,
    },
    /// The worker process ended while it ran this task: it crashed, was killed, or called `exit`.
    #[error(
        "{} failed: its worker (pid {pid}) {cause}{}{}",
        subject(*index),
        crash::because(.crash.as_deref()),
        tries(*.attempts)
    )]
    #[non_exhaustive]
    WorkerDied {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// Process id of the worker that died.
        pid: u32,
        /// How it died.
        cause: Death,
        /// How many times the task was started in all: 1 without `retries`.
        attempts: u32,
        /// What the worker has left of its crash, if it was one. Printed, it has a line for each
        /// frame of the stack.
        crash: Option<Box<Crash>>,
    },
    /// An argument, a context or a result could not be turned into bytes.
    #[error("{} failed: its {part} cannot be serialised: {reason}", subject(*index))]
    #[non_exhaustive]
    Encode {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// Which value it was.
        part: TaskValue,
        /// What the serialiser said.
        reason: Message,
    },
    /// An argument, a context or a result could not be made from the bytes that came.
    #[error("{} failed: its {part} cannot be deserialised: {reason}", subject(*index))]
    #[non_exhaustive]
    Decode {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// Which value it was.
        part: TaskValue,
        /// What the deserialiser said.
        reason: Message,
    },
    /// The task ran for longer than its limit. On processes and forked children it was stopped at
    /// that moment, with its worker. A thread cannot be stopped, so there the task ran to its end
    /// and its result was dropped.
    #[error("{} took longer than its limit of {limit:?}{}", subject(*index), tries(*.attempts))]
    #[non_exhaustive]
    TimedOut {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// The limit.
        limit: Duration,
        /// How many times the task was started in all, each time with the whole limit: 1 without a
        /// [`Retry`](crate::Retry). A start that its stopped worker did not come to counts too.
        attempts: u32,
    },
    /// The worker process had no memory left under its limit, and died of it.
    #[error(
        "{} failed: its worker (pid {pid}) was out of memory under its limit of {limit} bytes{}",
        subject(*index),
        tries(*.attempts)
    )]
    #[non_exhaustive]
    OutOfMemory {
        /// Position of the item in the input of the call.
        index: ItemIndex,
        /// Process id of the worker that died.
        pid: u32,
        /// The limit, in bytes.
        limit: u64,
        /// How many times the task was started in all: 1 without `retries`.
        attempts: u32,
    },
    /// The task was cancelled before it had a result: by its handle, by a token that its call
    /// carried, or because its pool was shut down or dropped.
    #[error("the task was cancelled before it had a result")]
    #[non_exhaustive]
    Cancelled {},
    /// The deadline of the call ([`Call::deadline`](crate::Call::deadline)) passed before the task
    /// had a result. Either it had not started, and never will, or it ran and was stopped at that
    /// moment, with its worker. A thread cannot be stopped, so there the task runs to its end and
    /// its result is dropped.
    #[error("the deadline of its call passed before the task had a result")]
    #[non_exhaustive]
    DeadlineExceeded {},
    /// The result was taken before, by an earlier `result_timeout`, `try_result`
    /// or `.await`.
    #[error("the result of this task was taken before")]
    #[non_exhaustive]
    Taken {},
    /// The options of the call contradict themselves or ask for nothing; no item was run.
    #[error("the call was not started: {reason}")]
    #[non_exhaustive]
    InvalidCall {
        /// Which option, and why.
        reason: Cow<'static, str>,
    },
    /// The array could not be lent to the workers; no item was run.
    #[cfg(target_os = "linux")]
    #[error("the call was not started: {0}")]
    Claim(Box<ClaimError>),
    /// The pool as a whole cannot run the task.
    #[error(transparent)]
    Pool(Box<PoolError>),
}

// A million outcomes are a million of these: a variant has one word for its index and three more.
const _: () = assert!(size_of::<TaskError>() <= 32);

impl From<PoolError> for TaskError {
    fn from(error: PoolError) -> Self {
        Self::Pool(Box::new(error))
    }
}

#[cfg(target_os = "linux")]
impl From<ClaimError> for TaskError {
    fn from(error: ClaimError) -> Self {
        Self::Claim(Box::new(error))
    }
}

impl TaskError {
    /// Returns the position of the failed item in the input of its call, from 0; `None` for a task
    /// given by `submit` and for an error that no single item caused.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let words = ["7", "eight", "9"];
    /// let error = Pool::serial()
    ///     .map(|w: &str| w.parse::<u8>().unwrap(), words)
    ///     .unwrap_err();
    /// assert_eq!(error.index(), Some(1));
    /// ```
    pub fn index(&self) -> Option<usize> {
        self.subject_index()?.get()
    }

    /// Returns what the error says of the item or task that it is about.
    fn subject_index(&self) -> Option<ItemIndex> {
        match self {
            Self::Panicked { index, .. }
            | Self::WorkerDied { index, .. }
            | Self::TimedOut { index, .. }
            | Self::OutOfMemory { index, .. }
            | Self::Encode { index, .. }
            | Self::Decode { index, .. } => Some(*index),
            Self::Cancelled {}
            | Self::DeadlineExceeded {}
            | Self::Taken {}
            | Self::InvalidCall { .. }
            | Self::Pool(_) => None,
            #[cfg(target_os = "linux")]
            Self::Claim(_) => None,
        }
    }

    /// Returns which task has failed, if it was given by `submit`. Returns `None` for an item of a
    /// call and for an error that says nothing of the task itself: it was cancelled, its result was
    /// taken, its pool does not run it. [`TaskFuture::id`](crate::TaskFuture::id) knows it in all
    /// cases.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let task = pool.submit(|()| std::process::abort(), ());
    /// let id = task.id();
    /// let error: TaskError = task.result().map(|()| ()).unwrap_err();
    /// assert_eq!(error.task_id(), Some(id));
    /// assert!(error.to_string().starts_with(&format!("task {id} failed")));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn task_id(&self) -> Option<TaskId> {
        self.subject_index()?.task()
    }

    /// Returns how many times the item or task was started in all, this time included: 1 without a
    /// [`Retry`](crate::Retry). `None` for errors after which nothing is tried again. Of a panic it
    /// is lost if the error goes through serde.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{Retry, RetryOn};
    ///
    /// let policy = Retry::up_to(1).on(RetryOn::PANIC);
    /// let pool = Pool::processes(1)?;
    /// let error = pool.call().retry(policy).submit(|x: u8| 10 / x, 0).result().unwrap_err();
    /// assert_eq!(error.attempts(), Some(2));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::WorkerDied { attempts, .. }
            | Self::OutOfMemory { attempts, .. }
            | Self::TimedOut { attempts, .. } => Some(*attempts),
            Self::Panicked { message, .. } => Some(message.attempts()),
            _ => None,
        }
    }

    /// Returns the error of the pool that this one hands on; `None` for all other variants.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(1)?;
    /// pool.close()?;
    /// let error = pool.map(|x| x + 1, [1]).unwrap_err();
    /// assert_eq!(error.as_pool(), Some(&PoolError::Closed));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn as_pool(&self) -> Option<&PoolError> {
        match self {
            Self::Pool(error) => Some(error),
            _ => None,
        }
    }

    /// Returns why an array could not be claimed, if that is the error; `None` for all other
    /// variants.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, prelude::*, shm::ClaimError};
    ///
    /// let mut array = SharedArray::<u8>::zeros(10)?;
    /// let frozen = array.clone().freeze()?;
    /// let error = Pool::serial()
    ///     .for_each_chunk(&mut array, 5, |_, chunk: &mut [u8]| chunk.fill(1))
    ///     .unwrap_err();
    /// assert_eq!(error.as_claim(), Some(&ClaimError::Frozen));
    /// # drop(frozen);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(target_os = "linux")]
    pub fn as_claim(&self) -> Option<&ClaimError> {
        match self {
            Self::Claim(error) => Some(error),
            _ => None,
        }
    }

    /// Makes the error of an item that is over its limit.
    pub(crate) fn timed_out(index: Option<usize>, limit: Duration) -> Self {
        Self::TimedOut {
            index: index.into(),
            limit,
            attempts: 1,
        }
    }

    /// Returns the same error, after `tried` attempts.
    pub(crate) fn with_attempts(mut self, tried: u32) -> Self {
        match &mut self {
            Self::WorkerDied { attempts, .. }
            | Self::OutOfMemory { attempts, .. }
            | Self::TimedOut { attempts, .. } => *attempts = tried,
            Self::Panicked { message, .. } => message.set_attempts(tried),
            _ => {}
        }
        self
    }

    /// Returns the same error, of item `at` of its call.
    pub(crate) fn with_index(self, at: usize) -> Self {
        self.indexed(Some(at))
    }

    /// Returns the same error for each of these items of its call, which are dropped; the first has
    /// this index.
    pub(crate) fn of_items<R>(&self, first: usize, items: impl Iterator) -> Vec<Result<R, Self>> {
        let error = |(index, _)| Err(self.clone().with_index(index));
        (first..).zip(items).map(error).collect()
    }

    /// Returns the same error, of the item `at` of its call, or of none.
    pub(crate) fn indexed(self, at: Option<usize>) -> Self {
        self.about(at.into())
    }

    /// Returns the same error, of this task.
    pub(crate) fn of_task(self, task: TaskId) -> Self {
        self.about(ItemIndex::of_task(task))
    }

    fn about(mut self, subject: ItemIndex) -> Self {
        match &mut self {
            Self::Panicked { index, .. }
            | Self::WorkerDied { index, .. }
            | Self::TimedOut { index, .. }
            | Self::OutOfMemory { index, .. }
            | Self::Encode { index, .. }
            | Self::Decode { index, .. } => *index = subject,
            Self::Cancelled {}
            | Self::DeadlineExceeded {}
            | Self::Taken {}
            | Self::InvalidCall { .. }
            | Self::Pool(_) => {}
            #[cfg(target_os = "linux")]
            Self::Claim(_) => {}
        }
        self
    }
}

/// Which of a task's values an encoding error is about.
///
/// # Examples
///
/// ```
/// use manyhands::error::TaskValue;
/// use manyhands::prelude::*;
/// use std::time::{Duration, SystemTime};
///
/// let pool = Pool::processes(1)?;
/// let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_secs(1); // serde does not take it
/// let task = pool.submit(|time: SystemTime| time.elapsed().is_ok(), before_1970);
/// let error = task.result().unwrap_err();
/// assert!(matches!(error, TaskError::Encode { part: TaskValue::Argument, .. }), "{error}");
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskValue {
    /// The argument, on its way to the worker.
    Argument,
    /// What the function captures: the context of `map_with`, or the variables of `closure!`.
    Context,
    /// The result, on its way back.
    Result,
}

impl fmt::Display for TaskValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argument => "argument",
            Self::Context => "context",
            Self::Result => "result",
        })
    }
}

/// Where in the source a panic was raised.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let error = Pool::serial()
///     .map(|x: u8| assert!(x > 0), [1, 0])
///     .unwrap_err();
/// let TaskError::Panicked {
///     location: Some(location),
///     ..
/// } = error
/// else {
///     panic!("{error}")
/// };
/// assert_eq!(location.file, file!());
/// assert!(location.line < line!());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PanicLocation {
    /// Path of the file as the compiler saw it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

impl From<&std::panic::Location<'_>> for PanicLocation {
    fn from(place: &std::panic::Location<'_>) -> Self {
        Self {
            file: place.file().to_owned(),
            line: place.line(),
            column: place.column(),
        }
    }
}

impl fmt::Display for PanicLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a pool could not be made, or can take no more work.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// assert_eq!(Pool::threads(0).unwrap_err(), PoolError::ZeroWorkers);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of no workers was asked for: it could never run anything.
    #[error("a pool needs at least one worker, and 0 were asked for")]
    ZeroWorkers,
    /// An environment variable that this crate reads has a value that makes no sense. Set it right,
    /// or not at all.
    #[error(
        "the environment variable {variable} is set to {value:?}; it must be a whole number from 1 on, or not set"
    )]
    #[non_exhaustive]
    InvalidVariable {
        /// Its name: `MANYHANDS_WORKERS`.
        variable: Cow<'static, str>,
        /// What it is set to.
        value: String,
    },
    /// A worker could not be started; those already started were stopped.
    #[error("worker {worker} of {workers} could not be started: {reason}")]
    #[non_exhaustive]
    StartFailed {
        /// Which one, from 0.
        worker: usize,
        /// How many were asked for.
        workers: usize,
        /// What the system said, or how the worker ended.
        reason: String,
    },
    /// A worker was started but did not report in time.
    #[error("worker {worker} did not report within {waited:?} of its start; {HOOK_ADVICE}")]
    #[non_exhaustive]
    StartTimedOut {
        /// Which one, from 0.
        worker: usize,
        /// How long the pool waited.
        waited: Duration,
    },
    /// This code is not part of the main executable. A worker is that executable started again, so
    /// it would not have the code.
    #[error(
        "a process pool works only in code that is linked into the main executable; this copy of manyhands is in a \
         shared library loaded by another program. Use Pool::threads or Pool::forked here"
    )]
    ForeignExecutable,
    /// The process is a worker that was started, but whose start-up hook did not run.
    #[error("this process was started as a worker, but reached main; {HOOK_ADVICE}")]
    WorkerReachedMain,
    /// This process never checked whether it was started as a worker. Workers are this program too,
    /// so they would not check either, and would run its `main`. No worker was started.
    #[error(
        "worker processes would run this program's main: it was built without the feature `worker-hook`, and has not \
         called manyhands::init(), which must be at the top of main"
    )]
    InitNotCalled,
    /// The program runs with more rights than the user who started it (set-user-id and the like).
    /// Its environment, by which workers are started, must not be trusted.
    #[error(
        "a program that runs with more rights than its user starts no worker processes; use Pool::threads or \
         Pool::forked here"
    )]
    Privileged,
    /// The function lies outside the main executable (in a shared library), so a worker would not
    /// find it.
    #[error(
        "the function is not part of the main executable, so a worker process cannot be told where it is"
    )]
    ForeignFunction,
    /// A call would fork while other threads run, whose locks would stay locked in the child for
    /// ever.
    #[error(
        "refused to fork while {} beside this one: a lock that one of them holds would stay locked in the child. Join them \
         first, use worker processes that are started anew (StartMethod::Spawn), or accept the risk with the builder's \
         allow_threads(true)",
        thread_names::running(names)
    )]
    #[non_exhaustive]
    ThreadsRunning {
        /// The names of the threads other than the caller that run, those that this crate keeps
        /// parked left out. A thread without a name of its own has that of the program.
        names: Vec<String>,
    },
    /// The pool, or the handle of a child process, belongs to another process: this one was forked
    /// from it.
    #[error(
        "the pool or child process belongs to another process, of which this one is a forked child; make one here"
    )]
    OtherProcess,
    /// Processes start processes that start processes, as in a recursion without an end.
    #[error(
        "refused to start a process: {limit} processes lie one inside the other already. If a child starts one like \
         itself without end, stop that; otherwise start them from a process further out"
    )]
    #[non_exhaustive]
    TooDeep {
        /// How many levels there may be.
        limit: u32,
    },
    /// The pool was closed or shut down.
    #[error("the pool is closed and takes no more tasks")]
    Closed,
    /// As many submitted tasks wait for a worker as the pool's queue takes
    /// ([`WhenFull::Refuse`](crate::engine::WhenFull::Refuse)). The task does not start.
    #[error(
        "the pool's queue is full: {limit} tasks wait for a worker, and its limit is {limit}. Take results before more is \
         submitted, set a higher limit, or let submit wait (WhenFull::Wait)"
    )]
    #[non_exhaustive]
    QueueFull {
        /// The limit that the pool's builder was given.
        limit: usize,
    },
    /// A pool was closed with a time limit, and tasks or callbacks had not ended by then. The pool
    /// is closed: its processes were killed; its threads, which cannot be stopped, end after the
    /// tasks that they run.
    #[error("{}", close_timed_out(*.timeout, *.workers))]
    #[non_exhaustive]
    CloseTimedOut {
        /// The time that was given.
        timeout: Duration,
        /// How many workers were at work then; 0 if tasks waited for a worker, or callbacks had not
        /// returned.
        workers: usize,
    },
    /// An option of a builder asks for what is not possible.
    #[error("{option} cannot be {value}: {reason}")]
    #[non_exhaustive]
    InvalidOption {
        /// Which option.
        option: Cow<'static, str>,
        /// The value that was given.
        value: String,
        /// Why that cannot be.
        reason: Cow<'static, str>,
    },
    /// The text names no engine.
    #[error(
        "unknown engine {text:?}{}Expected serial, threads[:N], processes[:N] or forked[:N]{}",
        engine_name::what_is_wrong(text),
        engine_name::meaning_of_n(text)
    )]
    #[non_exhaustive]
    UnknownEngine {
        /// The text.
        text: String,
    },
    /// The initialiser of the workers failed.
    #[error("the initialiser of worker {worker} failed: {reason}")]
    #[non_exhaustive]
    InitializerFailed {
        /// Which worker, from 0.
        worker: usize,
        /// Its error, or its panic's message.
        reason: String,
    },
    /// Workers kept dying before they could take a task, so the pool gave up.
    #[error("the pool has given up: {reason}")]
    #[non_exhaustive]
    Broken {
        /// What happened to the last worker.
        reason: String,
    },
    /// The system refused something that the pool needs.
    #[error("{what}: {reason}")]
    #[non_exhaustive]
    System {
        /// What was asked of the system.
        what: Cow<'static, str>,
        /// What it said.
        reason: String,
    },
}

/// The advice for when a worker process ran `main` instead of the worker loop.
const HOOK_ADVICE: &str =
    "if the `worker-hook` feature is off, call manyhands::init() at the top of main";

#[cfg(target_os = "linux")]
impl PoolError {
    /// Makes a failure of the system, with what was asked of it.
    pub(crate) fn system(what: &'static str, error: impl fmt::Display) -> Self {
        Self::System {
            what: what.into(),
            reason: error.to_string(),
        }
    }
}

/// The error of [`TaskFuture::result_timeout`](crate::TaskFuture::result_timeout),
/// [`AsCompleted::next_timeout`](crate::AsCompleted::next_timeout) and
/// [`Imap::next_timeout`](crate::Imap::next_timeout) after the time they were given: no task has
/// ended. What runs goes on.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::time::Duration;
///
/// let pool = Pool::processes(1)?;
/// let mut endless = pool.submit(
///     |()| loop {
///         std::hint::spin_loop()
///     },
///     (),
/// );
/// let outcome: Result<Result<(), _>, _> = endless.result_timeout(Duration::from_millis(1));
/// assert!(outcome.is_err());
/// assert!(endless.kill()); // it had gone on
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("no task has ended in the time given; what runs goes on")]
#[non_exhaustive]
pub struct TimeoutError;

fn close_timed_out(timeout: Duration, workers: usize) -> String {
    let late = match workers {
        0 => "tasks or callbacks had not ended".to_owned(),
        1 => "1 worker was still at work".to_owned(),
        _ => format!("{workers} workers were still at work"),
    };
    format!(
        "{late} {timeout:?} after the pool was closed; processes were killed, threads end after what they run. Give \
         close_timeout more time, or limit the tasks"
    )
}

/// Returns the task as a message names it: by its index within a call, by its id, or plainly.
fn subject(index: ItemIndex) -> String {
    match (index.get(), index.task()) {
        (Some(index), _) => format!("item {index}"),
        (None, Some(task)) => format!("task {task}"),
        (None, None) => "the task".to_owned(),
    }
}

/// Returns the end of a message about a panic: where it was raised.
pub(crate) fn at_place(location: Option<&PanicLocation>) -> String {
    location.map_or_else(String::new, |location| format!(" at {location}"))
}

fn tries(count: u32) -> String {
    match count {
        0 | 1 => String::new(),
        _ => format!("; it was tried {count} times"),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
