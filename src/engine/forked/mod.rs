//! The engine of forked children: processes made for one call, which see all that the caller sees.
//!
//! A forked child is a copy of the caller, made without copying: pages are shared until one side
//! writes. So a function may use whatever is in scope, borrowed or not, and items need no encoding.
//! Only results cross, through a [`lane`](crate::lane) of the child's own. Children claim chunks of
//! items from a cursor in shared memory, and live until there are none left.
//!
//! A child has one thread, whatever the caller had. A lock that another thread held when the fork
//! came stays locked in the child for ever, so a call is refused while other threads run
//! ([`threads_beside`](super::fork)). Threads that this crate itself keeps do not count: they
//! sleep, and hold no locks but the crate's own. A child never takes those, because its copies of
//! pools and handles refuse ([`PoolError::OtherProcess`]).

mod accounts;
mod calls;
mod child;
mod chunk;
#[cfg(all(test, not(loom)))]
mod faults;
mod map;
mod running;
mod stream;
mod submit;
mod watch;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use self::accounts::Accounts;
use self::running::{Running, Task};
use self::submit::{Log, Submitted};
use super::fork;
use super::processes::InnerThreads;
use super::sealed::{Internal, Sealed};
use super::{
    Executor, PoolStats, Run, RunAgain, RunOnce, RunReduce, RunWith, Shutdown, Timeline, WhenFull,
    WorkerStats, pool_name,
};
use crate::call;
use crate::call::portable::PortableValue;
use crate::call::{AtErr, Limits, Never, Plan, Stop, Stream};
use crate::engine::reduce::{self, InLane};
use crate::error::{ItemIndex, PoolError, TaskError, TaskId};
use crate::future::{PoolId, TaskFuture};
use crate::machine::usable_cores;
use crate::memory::wire;
use crate::os::environment::Environment;
use crate::os::memory_kills;
use crate::panic;
use crate::process::launch;
use crate::process::logs::Logs;
use crate::process::traces::Tracer;

/// The engine of [`Pool::forked`](crate::Pool::forked): children forked for each call.
///
/// What follows from that: calls that give all results at once read their input to its end before
/// the first fork, whatever [`Call::window`](crate::Call::window) says. A lazy call forks a child
/// for each item. A submitted task runs at once, so it can be killed but not cancelled. It is not
/// run again if its child dies, whatever [`Call::retries`](crate::Call::retries) says: the new
/// child would be forked later, while this process is in the middle of something else. Nor is an
/// item of a lazy call.
///
/// With a policy ([`Call::retry`](crate::Call::retry)) they are. The next child is forked by the
/// thread that waits for the result or asks for it, and gets function and argument as they were
/// then. A task with a callback or a waker is looked after by a thread of this crate. That one can
/// fork only if the pool [allows threads](ForkedBuilder::allow_threads); if not, the task fails
/// with the attempt that has failed, and the log says so.
/// [`imap_unordered`](crate::Pool::imap_unordered) waits in this way too. In a pause the task keeps
/// its place among the children that may run.
///
/// If the function forks in turn, the copy of the child answers nothing. It ends when the function
/// returns in it, with exit code 0, or with 101 if the function panics there.
///
/// # What a child has twice
///
/// A child starts as a copy of the process. This makes it cheap to start. It is also a source of
/// errors that no call reports, wherever state in memory stands for something outside of it:
///
/// - Random number generators (those of the crate rand, C's `rand`, one of the program's own): the
///   same numbers come in each child.
/// - Connections (TLS sessions, database handles, HTTP clients): two processes write to one socket,
///   and both count its messages. The session breaks.
/// - Files that are open: there is one position for both. What one process reads, the other does
///   not. Both hold the `flock` locks; the parent alone holds the `fcntl` locks.
/// - Output buffered by the program (`BufWriter`, C's `stdio`): each process that flushes it writes
///   what was buffered at the fork. std's standard output is flushed before the fork.
/// - Identifiers made of the pid, a counter or the time of the start: two processes make the same
///   ones. A pid that was kept is the parent's.
/// - Threads, and what they keep going (async runtimes, pools, timers of the C library): they are
///   not there. Requests to them are never answered.
/// - Locks that another thread holds: they are held for ever.
/// - Thread-locals, caches, memory not yet freed: they are the forking thread's, as they were. The
///   parent does not see what the child changes.
///
/// Open such things in the task, or in the child before its first task, which is what
/// [`at_fork_child`](crate::at_fork_child) is for. For the crate [rand](https://docs.rs/rand) it is
/// one line, once in the program:
///
/// ```
/// manyhands::at_fork_child(|| {
///     rand::rng().reseed().expect("the system has random numbers")
/// });
/// ```
///
/// A generator that a task makes for itself is better still. Seeded with
/// [`item_seed`](crate::item_seed), it gives the same numbers on all engines and for any number of
/// workers. With [`worker_seed`](crate::worker_seed) each worker has its own. What holds of a child
/// here also holds of the workers of a pool with
/// [`StartMethod::Fork`](crate::engine::StartMethod::Fork), and with
/// [`ForkServer`](crate::engine::StartMethod::ForkServer) of all that
/// [`preload`](crate::engine::ProcessesBuilder::preload) has made.
///
/// # Shared arrays
///
/// Parent and child must not write to one memory at once. So nothing is forked while this process
/// has elements of a [`SharedArray`](crate::SharedArray) to write to: the call fails with
/// [`PoolError::StartFailed`]. The fork waits a moment for guards, which another thread may be
/// about to drop. It waits up to 5 seconds for calls in other threads that write
/// ([`fill`](crate::SharedArray::fill), [`for_each_chunk`](crate::Pool::for_each_chunk) on
/// threads). What the process has to read or as atomics stays claimed until the child has ended
/// ([`ArrayReadGuard`](crate::shm::ArrayReadGuard#forks)).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::cell::Cell;
///
/// let last = Cell::new(7); // borrowed, and not `Sync`
/// // Doc tests run in several threads.
/// let pool = Forked::builder().workers(2).allow_threads(true).build()?;
/// assert_eq!(pool.map(|x| last.replace(x), [1])?, [7]);
/// assert_eq!(last.get(), 7); // the child wrote to a copy of its own
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Forked {
    workers: usize,
    allow_threads: bool,
    /// Whether `submit` fails when no child is free, and does not wait.
    refuses: bool,
    submitted: Submitted,
}

/// Makes a [`Pool<Forked>`](crate::Pool); see [`Forked::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let builder = Forked::builder().workers(2);
/// std::thread::spawn(std::thread::park); // a thread beside this one
/// let refused = builder.clone().build()?.map(|x: u8| x, [1]).unwrap_err();
/// assert!(matches!(
///     refused.as_pool(),
///     Some(PoolError::ThreadsRunning { .. })
/// ));
/// assert_eq!(builder.allow_threads(true).build()?.map(|x: u8| x, [1])?, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ForkedBuilder {
    workers: Option<usize>,
    allow_threads: bool,
    environment: Environment,
    inner_threads: Option<InnerThreads>,
    spares_descendants: bool,
    name: Option<String>,
    has_timeline: bool,
    logs: Option<Logs>,
    when_full: Option<WhenFull>,
}

impl ForkedBuilder {
    /// Sets how many children run at once. The default is
    /// [`available_workers`](crate::available_workers).
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

    /// Sets whether to fork also while other threads run, as in a test harness. By default that is
    /// refused.
    ///
    /// The risk: a lock that another thread holds at the moment of the fork stays locked in the
    /// child, and a task that takes it waits for ever. The C library takes care of its allocator's
    /// locks, and this crate holds those of std's standard output and standard error around the
    /// fork. What remains are the locks of the program and of its libraries: loggers, pools,
    /// caches, and the one that `std::process::exit` shares with threads that start or end. Without
    /// other threads there is no such risk.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Forked::builder().workers(2).allow_threads(true).build()?;
    /// assert_eq!(pool.map(|x: u64| x + 1, 0..3)?, [1, 2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn allow_threads(mut self, are_allowed: bool) -> Self {
        self.allow_threads = are_allowed;
        self
    }

    /// Sets a variable in the environment of the children. A child sets it when it has been forked,
    /// so libraries that were loaded before, and have read their variables, do not see it.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let builder = Forked::builder().workers(1).env("GREETING", "hello");
    /// let pool = builder.allow_threads(true).build()?;
    /// let greeting = pool.submit(|()| std::env::var("GREETING").ok(), ()).result()?;
    /// assert_eq!(greeting.as_deref(), Some("hello"));
    /// assert!(std::env::var_os("GREETING").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.set(name, value);
        self
    }

    /// Removes a variable from the environment of the children.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let builder = Forked::builder().workers(1).env_remove("PATH");
    /// let pool = builder.allow_threads(true).build()?;
    /// assert!(pool.submit(|()| std::env::var_os("PATH").is_none(), ()).result()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.environment.remove(name);
        self
    }

    /// Sets how many threads libraries inside a child may start, by the variables that they read
    /// ([`InnerThreads`]). By default the environment is left as it is. Libraries that have read
    /// their variables in this process do not see it.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::InnerThreads;
    /// use manyhands::prelude::*;
    ///
    /// let builder = Forked::builder().workers(1).inner_threads(InnerThreads::AtMost(3));
    /// let pool = builder.allow_threads(true).build()?;
    /// let threads = pool.submit(|()| std::env::var("RAYON_NUM_THREADS").ok(), ());
    /// # if std::env::var_os("RAYON_NUM_THREADS").is_none() {
    /// assert_eq!(threads.result()?.as_deref(), Some("3"));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inner_threads(mut self, threads: InnerThreads) -> Self {
        self.inner_threads = Some(threads);
        self
    }

    /// Sets whether the processes that a child has started, and those that these have started, are
    /// killed when the child is ended by force: by a limit, by
    /// [`kill`](crate::TaskFuture::kill), by [`Shutdown::Kill`](crate::Shutdown::Kill), with a pool
    /// that is dropped, because another item of its call has failed, by a crash, or with a program
    /// that is killed (Ctrl-C, say). By default, they are. When a child has run its items, they are
    /// left alone.
    ///
    /// How they are found, and which are not:
    /// [`ProcessesBuilder::kill_descendants`](crate::engine::ProcessesBuilder::kill_descendants). A
    /// limit ends a forked child from within, like a crash. In a library that another program has
    /// loaded, and without the feature `worker-hook`, there is no guard: descendants outlive a
    /// program that is killed.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::process::Command;
    /// use std::time::Duration;
    ///
    /// // Doc tests run in several threads.
    /// let builder = Forked::builder().workers(1).allow_threads(true);
    /// let hangs = |()| Command::new("sleep").arg("1000").status().unwrap().code();
    /// let pool = builder.clone().build()?;
    /// let task = pool.call().timeout(Duration::from_millis(100)).submit(hangs, ());
    /// assert!(matches!(task.result(), Err(TaskError::TimedOut { .. }))); // and `sleep` ends
    ///
    /// let pool = builder.kill_descendants(false).build()?;
    /// let leaves = |()| -> () {
    ///     Command::new("sleep").arg("0.1").spawn().unwrap();
    ///     std::process::abort()
    /// };
    /// assert!(pool.submit(leaves, ()).result().is_err()); // this `sleep` goes on
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill_descendants(mut self, are_killed: bool) -> Self {
        self.spares_descendants = !are_killed;
        self
    }

    /// Sets whether the log records of the children go through this process's logger, with the
    /// index of the child. This takes a [`Forwarder`](crate::logs::Forwarder) around the logger. By
    /// default they do if the program has a logger when the pool is made: see
    /// [`logs`](crate::logs).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::logs::Logs;
    /// use manyhands::prelude::*;
    ///
    /// // The copies of the logger do what they do.
    /// let builder = Forked::builder().workers(1).logs(Logs::Off);
    /// let pool = builder.allow_threads(true).build()?;
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Sets what the pool is called ([`Pool::name`](crate::Pool::name)). Its children are `NAME:0`,
    /// `NAME:1` and so on, in the messages of panics, in debuggers and in `ps`, where the name is
    /// cut so that it fits into 15 bytes with the number.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Forked::builder().workers(1).name("render").build()?;
    /// assert_eq!(pool.name(), "render");
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps a record of what runs where and when, for [`Pool::timeline`](crate::Pool::timeline).
    /// It holds the last million tasks and chunks.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let builder = Forked::builder().workers(1).allow_threads(true);
    /// let pool = builder.timeline(true).build()?;
    /// pool.submit(|x: u8| x, 1).result()?;
    /// assert_eq!(pool.timeline().events.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeline(mut self, is_kept: bool) -> Self {
        self.has_timeline = is_kept;
        self
    }

    /// Sets what [`submit`](crate::Pool::submit) does when all children that there may be run. A
    /// forked pool has no queue: a task runs from the moment it is submitted. By default, `submit`
    /// waits until one has ended ([`WhenFull::Wait`]).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::WhenFull;
    /// use manyhands::prelude::*;
    ///
    /// // Doc tests run in several threads.
    /// let builder = Forked::builder().workers(1).allow_threads(true);
    /// let pool = builder.when_full(WhenFull::Refuse).build()?;
    /// let spin = |()| loop {
    ///     std::hint::spin_loop()
    /// };
    /// let endless: TaskFuture<()> = pool.submit(spin, ());
    /// let refused = pool.submit(|x: u8| x, 1).result().unwrap_err();
    /// assert!(matches!(refused.as_pool(), Some(PoolError::QueueFull { limit: 0, .. })));
    /// assert!(endless.kill());
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = Some(when_full);
        self
    }

    /// Makes the engine that was asked for.
    pub(crate) fn start(self) -> Result<Forked, PoolError> {
        let workers = super::workers_or_available(self.workers)?;
        launch::check_environment(&self.environment)?;
        let mut environment = self.environment;
        if let Some(threads) = self.inner_threads {
            threads.check()?;
            threads.give_to(&mut environment, workers, usable_cores()?);
        }
        panic::install_hook();
        memory_kills::begin();
        let name = pool_name(self.name);
        // A child has the logger of this process, and cannot have another one.
        let tracer = Tracer::here();
        let can_forward = call::logs::copies_forward() || tracer.is_there();
        let is_forwarded = can_forward && Logs::are_forwarded(self.logs, &tracer);
        if is_forwarded && tracer.is_there() {
            call::traces::prepare_copies();
        }
        let log = Log::new(name.clone(), is_forwarded, tracer);
        Ok(Forked {
            workers,
            allow_threads: self.allow_threads,
            refuses: self.when_full == Some(WhenFull::Refuse),
            submitted: Submitted::new(
                name,
                environment,
                self.spares_descendants,
                Accounts::new(self.has_timeline),
                log,
            ),
        })
    }
}

impl Forked {
    /// Returns a builder of a pool of forked children, for all settings.
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

    /// Checks that this process may fork.
    ///
    /// # Errors
    ///
    /// If other threads run, unless that was allowed.
    fn check_threads(&self) -> Result<(), PoolError> {
        may_fork(self.allow_threads)
    }
}

impl Forked {
    /// Forks a child for one task. If as many run as may, waits for one to end if it `waits`.
    fn start<F, A, R, K>(
        &self,
        limits: &Limits,
        work: (F, A),
        name: ItemIndex,
        waits: bool,
        keep: impl FnOnce(F, A) -> K,
    ) -> Result<Arc<Running>, TaskError>
    where
        F: FnOnce(A) -> R,
        R: PortableValue + 'static,
        K: Send + 'static,
    {
        self.check_threads()?;
        self.submitted
            .submit((self.workers, waits), limits, work, name, keep)
    }
}

impl Forked {
    /// Forks a child for one task, and another one when it has failed, as the policy says.
    fn start_again<F, A, R>(
        &self,
        limits: &Limits,
        work: (F, A),
        name: ItemIndex,
        waits: bool,
    ) -> Result<Arc<Running>, TaskError>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: PortableValue + 'static,
    {
        self.check_threads()?;
        let allow_threads = self.allow_threads;
        let check = move || may_fork(allow_threads);
        let (workers, submitted) = (self.workers, &self.submitted);
        submitted.submit_again((workers, waits), check, limits, work, name)
    }
}

/// Checks that this process may fork.
///
/// # Errors
///
/// If other threads run, unless that is allowed.
fn may_fork(allow_threads: bool) -> Result<(), PoolError> {
    crate::process::check_depth()?;
    if allow_threads {
        return Ok(());
    }
    fork::check_threads()
}

impl Sealed for Forked {}

impl Executor for Forked {
    fn workers(&self) -> usize {
        self.workers
    }

    fn kind(&self) -> &'static str {
        "forked"
    }

    fn name(&self, _: Internal) -> &str {
        &self.submitted.name
    }

    fn shutdown(&self, how: Shutdown, _: Internal) -> Result<(), PoolError> {
        self.submitted.shutdown(how)
    }

    fn id(&self, _: Internal) -> PoolId {
        self.submitted.id
    }

    fn is_open(&self, _: Internal) -> bool {
        self.submitted.check_open().is_ok()
    }

    fn close(&self, _: Internal) -> Result<(), PoolError> {
        self.submitted.close()
    }

    fn close_by(&self, deadline: Option<Instant>, _: Internal) -> Result<Option<usize>, PoolError> {
        self.submitted.close_by(deadline)
    }

    fn stats(&self, _: Internal) -> PoolStats {
        if self.submitted.check_process().is_err() {
            return PoolStats::default();
        }
        let accounts = &self.submitted.accounts;
        let counts = self.submitted.log.counts.lock();
        let workers = accounts.workers(self.workers).into_iter().enumerate();
        let workers = workers.map(|(number, worker)| {
            let (came, dropped) = counts.get(number);
            WorkerStats {
                log_records: came,
                log_records_dropped: dropped,
                ..worker
            }
        });
        PoolStats {
            name: self.submitted.name.clone(),
            uptime: accounts.age(),
            workers: workers.collect(),
            cancelled: accounts.count_cancelled(),
            retried: accounts.count_retried(),
        }
    }

    fn timeline(&self, _: Internal) -> Timeline {
        if self.submitted.check_process().is_err() {
            return Timeline::default();
        }
        self.submitted.accounts.timeline(&self.submitted.name)
    }
}

impl<F, A, R> Run<F, A, R> for Forked
where
    F: Fn(A) -> R,
    R: PortableValue + 'static,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        // This comes before the input is read, which may take long.
        let _calling = self.submitted.start_call()?;
        map::map(self, plan, &f, items, stop)
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        match self.submitted.start_call() {
            Ok(_calling) => map::map_outcomes(self, plan, &f, items),
            Err(error) => TaskError::from(error).of_items(0, items),
        }
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        stream::stream(self, limits, f)
    }

    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.submit_once(limits, f, argument)
    }

    fn broadcast(&self, limits: Limits, f: F, arguments: Vec<A>) -> Vec<Result<R, TaskError>>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let _calling = match self.submitted.start_call() {
            Ok(calling) => calling,
            Err(error) => return vec![Err(error.into())],
        };
        let start = |(worker, argument)| {
            self.check_threads()?;
            let place = (worker, self.workers);
            let limits = limits.of_item(worker);
            self.submitted
                .start_part::<F, A, R>(place, &limits, &f, argument)
        };
        let parts: Vec<_> = arguments.into_iter().enumerate().map(start).collect();
        let end = |part: Result<(Arc<Running>, _), TaskError>| {
            let (running, _enlisted) = part?;
            running.wait(None);
            match running.take_outcome() {
                Err(TaskError::WorkerDied { .. }) if self.submitted.is_killed() => {
                    Err(TaskError::Cancelled {})
                }
                outcome => wire::decode(&mut outcome?.as_slice(), None),
            }
        };
        parts.into_iter().map(end).collect()
    }
}

impl<F, A, R> RunAgain<F, A, R> for Forked
where
    F: Fn(A) -> R,
    R: PortableValue + 'static,
{
    fn submit_again(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if self.submitted.check_open().is_ok()
            && let Some(error) = limits.refusal(None)
        {
            return TaskFuture::ready(Err(error));
        }
        let id = TaskId::next();
        let waits = !self.refuses;
        match self.start_again(&limits, (f, argument), ItemIndex::of_task(id), waits) {
            Ok(running) => {
                let open =
                    |outcome: Result<Vec<u8>, _>| wire::decode(&mut outcome?.as_slice(), None);
                TaskFuture::with_id(id, Arc::new(Task { running, open }))
            }
            Err(error) => TaskFuture::ready(Err(error)),
        }
    }

    fn stream_again(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        stream::stream_again(self, limits, f)
    }
}

impl<F, A, R> RunOnce<F, A, R> for Forked
where
    F: FnOnce(A) -> R,
    R: PortableValue + 'static,
{
    fn submit_once(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if self.submitted.check_open().is_ok()
            && let Some(error) = limits.refusal(None)
        {
            return TaskFuture::ready(Err(error));
        }
        let id = TaskId::next();
        let name = ItemIndex::of_task(id);
        let waits = !self.refuses;
        let keep = |f, argument| (f, argument);
        match self.start(&limits, (f, argument), name, waits, keep) {
            Ok(running) => TaskFuture::with_id(
                id,
                Arc::new(Task {
                    running,
                    open: |outcome: Result<Vec<u8>, _>| {
                        wire::decode(&mut outcome?.as_slice(), None)
                    },
                }),
            ),
            Err(error) => TaskFuture::ready(Err(error)),
        }
    }
}

impl<F, G, A, R> RunReduce<F, G, A, R> for Forked
where
    F: Fn(A) -> R,
    G: Fn(R, R) -> R,
    R: PortableValue + 'static,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        // This is one call, though it is made of several.
        let _calling = self.submitted.start_call()?;
        let fold = |chunk| reduce::fold_in_worker(chunk, &f, &g, &InLane::here());
        let combine = |partials| reduce::combine_in_worker(partials, &g);
        let fold = |plan: Plan<'_>, chunks: &mut dyn Iterator<Item = _>| {
            self.map(plan, fold, chunks, AtErr::PLAIN)
        };
        reduce::map_reduce(self, plan, fold, combine, items, None)
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Forked
where
    F: Fn(&C, A) -> R,
    R: PortableValue + 'static,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.map(plan, |item| f(context, item), items, Never)
    }
}
