//! The engine of threads: a rayon pool of its own, with a queue in front that answers faster than
//! rayon's.
//!
//! # Why not rayon's queue
//!
//! Rayon's threads fall asleep as soon as they have nothing to do, and its queue wakes them one by
//! one. A task that is submitted and waited for takes 15 µs that way, and 40 after a pause of 1 ms.
//! Through a queue whose workers watch it for 50 µs before they sleep it takes 0.3 and 7
//! (`cargo bench --bench latency`).
//!
//! So each thread of the rayon pool runs one job that lasts as long as the pool: the loop of a
//! worker, in [`dispatch`], which takes tasks from this engine's own queue. For rayon these threads
//! are still its workers. A task that calls `join` or runs a parallel iterator does so on this very
//! pool, and workers that have no task look for the jobs that it shares out.
//!
//! There is a second reason why tasks are not jobs of rayon. A thread that waits in a `join` runs
//! other jobs meanwhile, on top of the one that waits. If such a job were a task, and the task
//! waited for the one below it, both would wait for ever. Here a task starts in a worker's loop,
//! where nothing is below it, or in [`TaskFuture::result`], on top of the task that waits for it.
//!
//! # Where to read on
//!
//! | module | subject |
//! |---|---|
//! | [`broadcast`] | one call on each thread |
//! | [`builder`] | what a user can say of a pool, and what its threads do first |
//! | [`counts`] | what each worker has done |
//! | [`dispatch`] | the queue, the worker's loop, what closing means |
//! | [`idle`] | how workers sleep and wake, and why no wake-up is lost |
//! | [`spin`] | which threads may spin, and for how long |
//! | [`task`] | one submitted task and its handle's side |
//! | [`chunk`] | a chunk of a lazy call that may end early |
//! | [`map`] | many items: chunks, order, the lowest failure |
//! | [`scoped_work`] | borrowing across threads, for which `map` needs `unsafe` |
//! | [`results`] | writing results in place, for which `map` needs `unsafe` too |
//! | [`pool_id`] | which pool a thread belongs to |
//! | [`thread_ids`] | which threads are this crate's, for the engine that forks |

mod broadcast;
mod builder;
mod chunk;
mod counts;
mod dispatch;
mod idle;
mod map;
mod pool_id;
mod results;
mod scoped_work;
mod spin;
mod task;
#[cfg(test)]
mod tests;
mod thread_ids;

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use self::builder::Setup;
pub use self::builder::ThreadsBuilder;
use self::chunk::StoppableChunk;
use self::dispatch::{Dispatch, Posted};
use self::task::{Again, Job, Task, Work};
use super::{
    Executor, PoolStats, Run, RunAgain, RunOnce, RunReduce, RunWith, Shutdown, Timeline, pool_name,
    sealed::{Internal, Sealed},
    worker_state,
};
use crate::call::{AtErr, ChunkFuture, Failure, Limits, Never, Plan, Stop, Stream, worker_index};
use crate::copies::{self, Original};
use crate::engine::backlog::{Backlog, Patience, Slot};
use crate::engine::reduce::{self, Local};
use crate::error::{PoolError, TaskError};
use crate::future::{Ending, PoolId, Signal, TaskFuture};
use crate::panic;

pub(crate) use self::thread_ids::idle_thread_ids;

/// The engine of [`Pool::threads`](crate::Pool::threads): tasks run on the threads of a rayon pool
/// of its own.
///
/// A task that itself uses rayon does so on this pool. If a task waits for another one of its own
/// pool, and no worker has started that one yet, the waiting task's thread runs it. So a pool of
/// one worker is enough for tasks that submit tasks and wait for them. As with rayon itself, code
/// inside a parallel iterator should not wait for a task that may be waiting for that iterator.
///
/// If a task forks the process, the copy ends when the task's function returns in it, with exit
/// code 0, or with 101 if the function panics there. If it went on, it would run the other tasks of
/// the pool a second time.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool: Pool<Threads> = Pool::threads(3)?;
/// let threads = pool.submit(|()| rayon::current_num_threads(), ());
/// assert_eq!(threads.result()?, 3); // a parallel iterator in a task has these three
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Threads {
    name: String,
    dispatch: Arc<Dispatch>,
    /// The threads; `None` once they have ended.
    crew: Mutex<Option<Crew>>,
    /// What bounds the submitted tasks, if anything does.
    backlog: Option<Arc<Backlog>>,
}

/// The threads, which end when the rayon pool is dropped and the [`Dispatch`] lets them.
struct Crew {
    pool: ThreadPool,
    threads: Vec<JoinHandle<()>>,
    /// Raised by each thread at its end.
    ended: Arc<Signal>,
}

impl Threads {
    /// Returns a builder of a pool of threads, for all settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(2).name("render").build()?;
    /// assert_eq!(pool.workers(), 2);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn builder() -> ThreadsBuilder {
        ThreadsBuilder::default()
    }

    fn start(
        workers: usize,
        name: Option<String>,
        stack_size: Option<usize>,
        has_timeline: bool,
        setup: Setup,
    ) -> Result<Self, PoolError> {
        if workers == 0 {
            return Err(PoolError::ZeroWorkers);
        }
        if workers > rayon::max_num_threads() {
            return Err(PoolError::StartFailed {
                worker: rayon::max_num_threads(),
                workers,
                reason: "a pool of threads cannot be larger".to_owned(),
            });
        }
        panic::install_hook();
        let dispatch = Arc::new(Dispatch::new(workers, has_timeline));
        let names = name.clone().filter(|name| !name.is_empty());
        let look = Look {
            names: names.map_or_else(|| "manyhands".to_owned(), |name| pool_name(Some(name))),
            stack_size,
        };
        let crew = Crew::start(&dispatch, &look, setup)?;
        thread_ids::register(&dispatch);
        Ok(Self {
            name: pool_name(name),
            dispatch,
            crew: Mutex::new(Some(crew)),
            backlog: None,
        })
    }
}

impl Threads {
    /// Checks that this thread may close the pool.
    ///
    /// # Errors
    ///
    /// [`PoolError::System`] if this thread is one that closing would wait for;
    /// [`PoolError::OtherProcess`] if it belongs to another process.
    fn check_closable(&self) -> Result<(), PoolError> {
        let own_pool = self.dispatch.own_pool();
        if !own_pool.is_this_process() {
            return Err(PoolError::OtherProcess);
        }
        if own_pool.waits_for_this_thread() {
            return Err(PoolError::System {
                what: "the pool was not closed".into(),
                reason: "closing waits for the pool's tasks, and one of them asked for it"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// Takes no more work, and waits until the work that there is has ended and the threads are
    /// gone.
    fn end(&self) {
        self.dispatch.close();
        // A thread that closes at the same time waits here, until the workers are gone.
        let mut crew = self.crew.lock();
        if let Some(Crew { pool, threads, .. }) = crew.take() {
            drop(pool);
            join(threads);
            thread_ids::retire(&self.dispatch);
        }
    }

    /// Does the same as [`end`](Self::end) if the work ends by the deadline, and returns `None`.
    /// Otherwise cancels what has not started, returns how many threads were left, and lets them
    /// end by themselves.
    fn end_by(&self, deadline: Option<Instant>) -> Option<usize> {
        let Some(deadline) = deadline else {
            self.end();
            return None;
        };
        let have_calls_ended = self.dispatch.close_by(deadline);
        // Another thread that closes the pool has the crew until it has ended.
        let Some(mut crew) = self.crew.try_lock_until(deadline) else {
            self.dispatch.cancel();
            return Some(0);
        };
        let Crew {
            pool,
            threads,
            ended,
        } = crew.take()?;
        drop(pool);
        let has_ended = |left: usize| ended.sleep(left, Some(deadline));
        if have_calls_ended && threads.len().checked_sub(1).is_none_or(has_ended) {
            join(threads);
            thread_ids::retire(&self.dispatch);
            return None;
        }
        self.dispatch.cancel();
        Some(threads.len() - ended.count().min(threads.len()))
    }
}

/// What the threads of a pool are given by those that start them.
struct Look {
    /// What their names begin with.
    names: String,
    stack_size: Option<usize>,
}

impl Crew {
    fn start(dispatch: &Arc<Dispatch>, look: &Look, setup: Setup) -> Result<Self, PoolError> {
        let workers = dispatch.workers();
        let mut threads = Vec::with_capacity(workers);
        let ended = Arc::new(Signal::default());
        let started = ThreadPoolBuilder::new()
            .num_threads(workers)
            .spawn_handler(|thread| {
                let (dispatch, ended) = (Arc::clone(dispatch), Arc::clone(&ended));
                threads.push(start_thread(dispatch, ended, thread, look)?);
                Ok(())
            })
            .build();
        match started {
            Ok(pool) => {
                let ready = begin_work(&pool, dispatch, setup);
                let crew = Self {
                    pool,
                    threads,
                    ended,
                };
                match ready {
                    Ok(()) => Ok(crew),
                    Err(error) => {
                        dispatch.cancel();
                        drop(crew.pool);
                        join(crew.threads);
                        Err(error)
                    }
                }
            }
            Err(error) => {
                let worker = threads.len();
                // Rayon has told the threads that run to end.
                join(threads);
                Err(PoolError::StartFailed {
                    worker,
                    workers,
                    reason: error.to_string(),
                })
            }
        }
    }
}

/// Has the threads begin with their work, and waits until each has been set up.
///
/// # Errors
///
/// That of the first thread, by its index, that could not be set up. It takes no tasks.
fn begin_work(pool: &ThreadPool, dispatch: &Arc<Dispatch>, setup: Setup) -> Result<(), PoolError> {
    let workers = dispatch.workers();
    let dispatch = Arc::clone(dispatch);
    if !setup.is_needed() {
        pool.spawn_broadcast(move |worker| dispatch.work(worker.index()));
        return Ok(());
    }
    let (report, reports) = mpsc::channel();
    pool.spawn_broadcast(move |worker| {
        let index = worker.index();
        let ready = setup.run(index, workers);
        let takes_tasks = ready.is_ok();
        // The other side hears of all threads before it goes on.
        let _ = report.send((index, ready));
        if takes_tasks {
            dispatch.work(index);
        }
        worker_state::end();
    });
    let mut failed: Vec<(usize, PoolError)> = reports
        .into_iter()
        .take(workers)
        .filter_map(|(index, ready)| Some((index, ready.err()?)))
        .collect();
    failed.sort_by_key(|&(index, _)| index);
    failed
        .into_iter()
        .next()
        .map_or(Ok(()), |(_, error)| Err(error))
}

fn start_thread(
    dispatch: Arc<Dispatch>,
    ended: Arc<Signal>,
    thread: ThreadBuilder,
    look: &Look,
) -> io::Result<JoinHandle<()>> {
    let index = thread.index();
    let name = format!("{}-{index}", look.names);
    let mut builder = thread::Builder::new().name(name.clone());
    if let Some(bytes) = look.stack_size {
        builder = builder.stack_size(bytes);
    }
    // The kernel keeps the first 15 bytes of a name, and the number is at its end.
    #[cfg(target_os = "linux")]
    let short = super::short_name(&look.names, '-', index);
    let started = builder.spawn(move || {
        #[cfg(target_os = "linux")]
        crate::os::worker::set_name(&short);
        worker_index::set(index);
        dispatch.own_pool().adopt_this_thread();
        dispatch.thread_ids().sign_in();
        thread.run();
        ended.raise();
    });
    #[cfg(target_os = "linux")]
    let started = started.map_err(|error| crate::os::task::not_started(&name, error));
    started
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // The threads do not panic: rayon aborts the process before a panic leaves one of its
        // threads.
        let _ = thread.join();
    }
}

impl Sealed for Threads {}

impl Executor for Threads {
    fn workers(&self) -> usize {
        self.dispatch.workers()
    }

    fn kind(&self) -> &'static str {
        "threads"
    }

    fn name(&self, _: Internal) -> &str {
        &self.name
    }

    /// Shuts down in the same way for each `_how`, because a thread cannot be stopped.
    fn shutdown(&self, _how: Shutdown, _: Internal) -> Result<(), PoolError> {
        self.check_closable()?;
        self.dispatch.cancel_queued();
        self.end();
        Ok(())
    }

    fn id(&self, _: Internal) -> PoolId {
        self.dispatch.own_pool().pool()
    }

    fn is_open(&self, _: Internal) -> bool {
        self.dispatch.own_pool().is_this_process() && !self.dispatch.is_closed()
    }

    fn close(&self, _: Internal) -> Result<(), PoolError> {
        self.check_closable()?;
        self.end();
        Ok(())
    }

    fn close_by(&self, deadline: Option<Instant>, _: Internal) -> Result<Option<usize>, PoolError> {
        self.check_closable()?;
        Ok(self.end_by(deadline))
    }

    fn stats(&self, _: Internal) -> PoolStats {
        if !self.dispatch.own_pool().is_this_process() {
            return PoolStats::default();
        }
        let counts = self.dispatch.counts();
        PoolStats {
            name: self.name.clone(),
            uptime: counts.age(),
            workers: counts.workers(),
            cancelled: counts.count_cancelled(),
            retried: counts.count_retried(),
        }
    }

    fn timeline(&self, _: Internal) -> Timeline {
        if !self.dispatch.own_pool().is_this_process() {
            return Timeline::default();
        }
        self.dispatch.counts().timeline(&self.name)
    }
}

impl Drop for Threads {
    /// Cancels the tasks that have not started. The others go on, and the threads end after them,
    /// but the caller does not wait for them.
    fn drop(&mut self) {
        if self.dispatch.own_pool().is_this_process() {
            self.dispatch.cancel();
        } else {
            // The threads did not come along into this process, and may have left the pool's locks
            // locked.
            mem::forget(self.crew.get_mut().take());
        }
    }
}

impl<F, A, R> Run<F, A, R> for Threads
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        let _mapping = self.dispatch.start_map()?;
        map::map(&self.dispatch, plan, &f, items, stop)
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let checked = self.dispatch.start_map().map_err(TaskError::from);
        let checked = checked.and_then(|mapping| plan.chunks(self.workers()).map(|_| mapping));
        let _mapping = match checked {
            Ok(mapping) => mapping,
            Err(error) => return error.of_items(0, items),
        };
        // The items fail one by one, and what could fail for all of them has been checked above.
        map::map_outcomes(&self.dispatch, plan, &f, items)
            .unwrap_or_else(|error| unreachable!("all items failed at once: {error}"))
    }

    fn broadcast(&self, limits: Limits, f: F, arguments: Vec<A>) -> Vec<Result<R, TaskError>>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let refused = |error: PoolError| vec![Err(error.into())];
        let _mapping = match self.dispatch.start_map() {
            Ok(mapping) => mapping,
            Err(error) => return refused(error),
        };
        if self.dispatch.own_pool().is_this_worker() {
            return refused(PoolError::System {
                what: "the broadcast was not started".into(),
                reason: "it waits for each worker of the pool, and one of them asked for it"
                    .to_owned(),
            });
        }
        let wait = match &*self.crew.lock() {
            Some(crew) => broadcast::start(&self.dispatch, &crew.pool, limits, f, arguments),
            None => return refused(PoolError::Closed),
        };
        wait()
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let f = Arc::new(f);
        let give = move |base: usize, items: &mut Vec<A>| {
            let (f, limits) = (Arc::clone(&f), limits.clone());
            let ending = limits.ending().cloned();
            let run = move |nth: usize, item| {
                let original = Original::here();
                let outcome = limits.run(base + nth, || copies::run(original, || f(item)));
                copies::end_panicked(original);
                outcome
            };
            let items = mem::take(items);
            if let Some(ending) = ending {
                return self.give_stoppable(base, items, ending, run);
            }
            let items_given = items.len();
            let run_all = move |items: Vec<A>| {
                let run = |(nth, item)| {
                    let outcome = run(nth, item);
                    let outcome = outcome.map_err(|failure| failure.into_error(Some(base + nth)));
                    outcome.inspect_err(counts::failed)
                };
                items.into_iter().enumerate().map(run).collect()
            };
            if self.dispatch.is_closed() {
                return TaskFuture::ready(Err(PoolError::Closed.into()));
            }
            let counted = (items_given, self.dispatch.stamp());
            // The limits are those of each item.
            let (limits, own_pool) = (Limits::none(), self.dispatch.own_pool());
            let task = Arc::new(Task::new((run_all, items), limits, own_pool, counted));
            self.post(&task);
            TaskFuture::new(task)
        };
        Stream {
            give: Box::new(give),
            workers: self.workers(),
            depth: map::NARROW_WINDOW,
            most: usize::MAX,
        }
    }

    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.submit_once(limits, f, argument)
    }
}

impl<F, A, R> RunAgain<F, A, R> for Threads
where
    F: Fn(A) -> R + Sync,
    A: Clone + Send,
    R: Send,
{
    fn map_again<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        let _mapping = self.dispatch.start_map()?;
        map::map_again(&self.dispatch, plan, &f, items, stop)
    }

    fn map_outcomes_again<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let checked = self.dispatch.start_map().map_err(TaskError::from);
        let checked = checked.and_then(|mapping| plan.chunks(self.workers()).map(|_| mapping));
        let _mapping = match checked {
            Ok(mapping) => mapping,
            Err(error) => return error.of_items(0, items),
        };
        // The items fail one by one, and what could fail for all of them has been checked above.
        map::map_outcomes_again(&self.dispatch, plan, &f, items)
            .unwrap_or_else(|error| unreachable!("all items failed at once: {error}"))
    }

    fn submit_again(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let f = Again::new(f, self.dispatch.own_pool());
        self.submit_work(limits, f, argument, Task::may_pause)
    }

    fn stream_again(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let f = Arc::new(f);
        let give = move |base: usize, items: &mut Vec<A>| {
            // A chunk has one item here, so that none waits with another.
            let Some(item) = items.pop() else {
                return TaskFuture::ready(Ok(Vec::new()));
            };
            if self.dispatch.is_closed() {
                return TaskFuture::ready(Err(PoolError::Closed.into()));
            }
            if let Some(error) = limits.refusal(Some(base)) {
                return TaskFuture::ready(Ok(vec![Err(error)]));
            }
            let f = Arc::clone(&f);
            let own_pool = self.dispatch.own_pool();
            let run = Again::new(move |item| vec![Ok(f(item))], own_pool);
            let counted = (1, self.dispatch.stamp());
            let task = Task::new((run, item), limits.of_item(base), own_pool, counted);
            let task = Arc::new(task);
            task.may_pause();
            self.post(&task);
            TaskFuture::new(task)
        };
        Stream {
            give: Box::new(give),
            workers: self.workers(),
            depth: map::NARROW_WINDOW,
            most: 1,
        }
    }
}

impl<F, A, R> RunOnce<F, A, R> for Threads
where
    F: FnOnce(A) -> R,
    A: Send,
    R: Send,
{
    fn submit_once(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        self.submit_work(limits, f, argument, |_| {})
    }
}

impl Threads {
    /// Gives one task to the workers, after `prepare` has seen it.
    fn submit_work<F, A, R>(
        &self,
        limits: Limits,
        f: F,
        argument: A,
        prepare: impl FnOnce(&Arc<Task<F, A, R>>),
    ) -> TaskFuture<R>
    where
        F: Work<A, R> + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if self.dispatch.is_closed() {
            return TaskFuture::ready(Err(PoolError::Closed.into()));
        }
        if let Some(error) = limits.refusal(None) {
            return TaskFuture::ready(Err(error));
        }
        let slot = match &self.backlog {
            None => None,
            Some(backlog) => match self.take_slot(backlog, &limits) {
                Ok(slot) => Some(slot),
                Err(error) => return TaskFuture::ready(Err(error)),
            },
        };
        let counted = (1, self.dispatch.stamp());
        let own_pool = self.dispatch.own_pool();
        let work = (f, argument);
        let task = Arc::new(Task::in_slot(work, limits, own_pool, counted, slot));
        prepare(&task);
        self.post(&task);
        TaskFuture::new(task)
    }
}

/// How a caller waits until there is room for its task.
struct Waits<'a>(&'a Dispatch);

impl Patience for Waits<'_> {
    fn must_not_wait(&self) -> bool {
        self.0.own_pool().is_this_worker()
    }

    fn check(&self) -> Result<(), TaskError> {
        if !self.0.own_pool().is_this_process() {
            return Err(PoolError::OtherProcess.into());
        }
        if self.0.is_closed() {
            return Err(PoolError::Closed.into());
        }
        Ok(())
    }

    fn sleep(&self, freed: &Signal, seen: usize, deadline: Option<Instant>) {
        freed.sleep(seen, deadline);
    }
}

impl Threads {
    /// Takes a place among the submitted tasks, or waits for one.
    #[cold]
    fn take_slot(&self, backlog: &Arc<Backlog>, limits: &Limits) -> Result<Slot, TaskError> {
        let waits = Waits(&self.dispatch);
        backlog.take(|| self.workers(), limits.ending(), &waits)
    }

    #[inline]
    fn post<F, A, R>(&self, task: &Arc<Task<F, A, R>>)
    where
        F: Work<A, R> + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        match self.dispatch.post(Arc::clone(task) as _) {
            Posted::Left => {}
            Posted::Woke => task.set_cold(),
            // If a worker has started the task all the same, the task gets its result.
            Posted::Closed => task.cancel(PoolError::Closed.into()),
            Posted::OtherProcess => task.cancel(PoolError::OtherProcess.into()),
        }
    }

    /// Gives a chunk of a lazy call that may end early. When it does, the items of the chunk that
    /// have ended keep their outcomes.
    fn give_stoppable<A, R>(
        &self,
        base: usize,
        items: Vec<A>,
        ending: Ending,
        run: impl Fn(usize, A) -> Result<R, Failure> + Send + 'static,
    ) -> ChunkFuture<R>
    where
        A: Send + 'static,
        R: Send + 'static,
    {
        if self.dispatch.is_closed() {
            return TaskFuture::ready(Err(PoolError::Closed.into()));
        }
        let count = items.len();
        let outcomes = Arc::new(Mutex::new(Some(Vec::with_capacity(count))));
        let own_pool = self.dispatch.own_pool();
        let queued = self.dispatch.stamp();
        let (kept, own) = (Arc::clone(&outcomes), own_pool);
        let run_all = move |items: Vec<A>| {
            let began = counts::begin(queued);
            let mut ran = 0;
            for (nth, item) in items.into_iter().enumerate() {
                let outcome = run(nth, item);
                let has_run = !outcome.as_ref().is_err_and(Failure::is_unbegun);
                let outcome = outcome.map_err(|failure| failure.into_error(Some(base + nth)));
                ran += usize::from(has_run);
                // The lock is held until the item has been counted: a caller that has the outcome
                // sees the item in the statistics.
                let mut kept = kept.lock();
                match (&*kept, ending.reason()) {
                    _ if !has_run => {}
                    (None, Some(reason)) => counts::failed(&reason.error()),
                    _ => {
                        let _ = outcome.as_ref().inspect_err(|error| counts::failed(error));
                    }
                }
                if let Some(kept) = &mut *kept {
                    kept.push(outcome);
                }
            }
            if ran > 0 {
                counts::end(ran, queued, began);
            }
            if ran < count
                && let Some(pool) = thread_ids::find(own)
            {
                pool.counts().cancelled(count - ran);
            }
        };
        // The function counts what it runs, and the limits are those of each item.
        let counted = (count, counts::NOT_QUEUED);
        let task = Task::new((run_all, items), Limits::none(), own_pool, counted);
        let task = Arc::new(task.stoppable());
        self.post(&task);
        TaskFuture::new(Arc::new(StoppableChunk {
            outcomes,
            base,
            count,
            task,
        }))
    }
}

impl<F, G, A, R> RunReduce<F, G, A, R> for Threads
where
    F: Fn(A) -> R + Sync,
    G: Fn(R, R) -> R + Sync,
    A: Send,
    R: Send,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        let local = Local::of(&plan);
        let fold = |chunk| local.fold(chunk, &f, &g);
        let combine = |partials| reduce::combine_in_worker(partials, &g);
        // Counted over all of its steps: a pool that is closed meanwhile waits for the last one.
        let _mapping = self.dispatch.start_map()?;
        let fold = |plan: Plan<'_>, chunks: &mut dyn Iterator<Item = _>| {
            self.map(plan, fold, chunks, AtErr::PLAIN)
        };
        reduce::map_reduce(self, plan, fold, combine, items, local.ended())
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Threads
where
    F: Fn(&C, A) -> R + Sync,
    C: Sync,
    A: Send,
    R: Send,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.map(plan, |item| f(context, item), items, Never)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("name", &self.name)
            .field("workers", &self.workers())
            .field("closed", &self.dispatch.is_closed())
            .finish_non_exhaustive()
    }
}
