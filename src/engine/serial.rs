//! The engine without parallelism: the caller runs every task, at once. It is the baseline to
//! compare with, and the engine to debug on.

use super::timeline::Recorder;
use super::{
    Executor, Failures, PoolStats, Run, RunAgain, RunOnce, RunReduce, RunWith, Shutdown, Timeline,
    TimelineEvent, WorkerStats, clock, pool_name,
    sealed::{Internal, Sealed},
};
use crate::call::{Failure, Limits, Never, Plan, RetryOn, Stop, Stream, worker_index};
use crate::engine::reduce;
use crate::error::{PoolError, TaskError};
use crate::future::{Ending, PoolId, Signal, TaskFuture};
use crate::panic;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The engine of [`Pool::serial`](crate::Pool::serial): tasks run on the calling thread.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::cell::RefCell;
///
/// let order = RefCell::new(Vec::new()); // no other thread may touch it
/// let pool: Pool<Serial> = Pool::serial();
/// pool.for_each(|x| order.borrow_mut().push(x), [3, 1, 2])?;
/// assert_eq!(order.into_inner(), [3, 1, 2]);
/// # Ok::<(), TaskError>(())
/// ```
pub struct Serial {
    closed: AtomicBool,
    id: PoolId,
    name: String,
    counts: Counts,
    /// Raised when a call in a pause is to look whether that is over.
    pauses: Arc<Signal>,
}

/// Makes a [`Pool<Serial>`](crate::Pool); see [`Serial::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Serial::builder().name("baseline").timeline(true).build();
/// assert_eq!(pool.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
/// assert_eq!(pool.timeline().events[0].items, 2);
/// # Ok::<(), TaskError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct SerialBuilder {
    name: Option<String>,
    has_timeline: bool,
}

/// What the calls of a pool have done. They may come from several threads, so each adds up in a
/// [`Counting`] of its own.
#[derive(Debug)]
struct Counts {
    /// When the pool was made, by the clock of the engine.
    start: u64,
    tasks: AtomicU64,
    panicked: AtomicU64,
    timed_out: AtomicU64,
    /// Items whose calls were over before they began.
    cancelled: AtomicU64,
    /// Attempts that failed and were followed by another.
    retried: AtomicU64,
    busy: AtomicU64,
    recorder: Option<Mutex<Recorder>>,
}

/// What one call has done so far. The pool counts it when this is dropped.
struct Counting<'c> {
    counts: &'c Counts,
    began: u64,
    tasks: u64,
    panicked: u64,
    timed_out: u64,
}

impl Counts {
    fn new(has_timeline: bool) -> Self {
        let start = clock::now();
        Self {
            start,
            tasks: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            recorder: has_timeline.then(|| Mutex::new(Recorder::new(start))),
        }
    }

    fn now(&self) -> u64 {
        match self.recorder {
            Some(_) => clock::now(),
            None => clock::last_tick(),
        }
    }

    fn begin(&self) -> Counting<'_> {
        Counting {
            counts: self,
            began: self.now(),
            tasks: 0,
            panicked: 0,
            timed_out: 0,
        }
    }
}

impl Counting<'_> {
    /// Counts a task that has ended.
    fn ended<R>(&mut self, outcome: &Result<R, Failure>) {
        if let Err(Failure::Ended(_)) = outcome {
            self.counts.cancelled.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tasks += 1;
        match outcome {
            Ok(_) | Err(Failure::Ended(_)) => {}
            Err(Failure::Panicked(_)) => self.panicked += 1,
            Err(Failure::TimedOut(_) | Failure::Late) => self.timed_out += 1,
        }
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if self.tasks == 0 {
            return;
        }
        let Self { counts, began, .. } = *self;
        let ended = counts.now();
        let add = |number: &AtomicU64, more: u64| {
            if more > 0 {
                number.fetch_add(more, Ordering::Relaxed);
            }
        };
        add(&counts.tasks, self.tasks);
        add(&counts.panicked, self.panicked);
        add(&counts.timed_out, self.timed_out);
        add(&counts.busy, ended.saturating_sub(began));
        if let Some(recorder) = &counts.recorder {
            let mut recorder = recorder.lock();
            let event = TimelineEvent {
                worker: 0,
                pid: std::process::id(),
                items: self.tasks as usize,
                queued: recorder.since_start(began),
                started: recorder.since_start(began),
                ended: recorder.since_start(ended),
                completed: true,
            };
            recorder.record(event);
        }
    }
}

impl SerialBuilder {
    /// Sets what the pool is called ([`Pool::name`](crate::Pool::name)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Serial::builder().name("baseline").build().name(), "baseline");
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps a record of what runs when, for [`Pool::timeline`](crate::Pool::timeline): one event
    /// for each call. It holds the last million.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Serial::builder().timeline(true).build();
    /// pool.submit(|x: u8| x, 1).result()?;
    /// assert_eq!(pool.timeline().events.len(), 1);
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn timeline(mut self, is_kept: bool) -> Self {
        self.has_timeline = is_kept;
        self
    }

    /// Makes the engine that was asked for.
    pub(crate) fn start(self) -> Serial {
        panic::install_hook();
        Serial {
            closed: AtomicBool::new(false),
            id: PoolId::new(),
            name: pool_name(self.name),
            counts: Counts::new(self.has_timeline),
            pauses: Arc::default(),
        }
    }
}

impl Serial {
    /// Returns a builder of a pool without parallelism, for all settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Serial::builder().name("baseline").build();
    /// assert_eq!(pool.workers(), 1);
    /// ```
    pub fn builder() -> SerialBuilder {
        SerialBuilder::default()
    }

    /// Runs one task, with its limits, and counts it.
    fn run_one<R>(
        &self,
        limits: &Limits,
        index: usize,
        task: impl FnOnce() -> R,
    ) -> Result<R, Failure> {
        let mut counting = self.counts.begin();
        let outcome = limits.run(index, as_worker(task));
        counting.ended(&outcome);
        outcome
    }

    /// Runs one task until it has an outcome after which it is not tried again, and counts it.
    /// Returns how often it was started, too.
    fn run_one_again<A: Clone, R>(
        &self,
        limits: &Limits,
        index: usize,
        f: &impl Fn(A) -> R,
        argument: A,
    ) -> Result<R, TaskError> {
        let mut counting = self.counts.begin();
        let (outcome, attempts) = self.attempts(limits, index, f, argument, |_| false);
        counting.ended(&outcome);
        outcome.map_err(|failure| failure.into_error(None).with_attempts(attempts))
    }

    /// Runs the item with this index until it has an outcome after which it is not tried again.
    /// Returns how often it was started, too. `is_error` says which results are errors.
    fn attempts<A: Clone, R>(
        &self,
        limits: &Limits,
        index: usize,
        f: &impl Fn(A) -> R,
        item: A,
        is_error: impl Fn(&R) -> bool,
    ) -> (Result<R, Failure>, u32) {
        let mut attempts = 0;
        let outcome = loop {
            let outcome = limits.run(index, as_worker(|| f(item.clone())));
            attempts += 1;
            let cause = match &outcome {
                Ok(result) => is_error(result).then_some(RetryOn::ERROR),
                Err(failure) => failure.cause(),
            };
            if !cause.is_some_and(|cause| limits.policy().allows(cause, attempts)) {
                break outcome;
            }
            self.counts.retried.fetch_add(1, Ordering::Relaxed);
            // An error of the user's is dropped here, and may panic.
            let _ = panic::catch(|| drop(outcome));
            self.pause(limits, limits.retry().pause(attempts));
            if let Some(reason) = limits.ended() {
                break Err(Failure::Ended(reason));
            }
        };
        let _ = panic::catch(|| drop(item));
        (outcome, attempts)
    }

    /// Waits as long as this pause lasts: until the call is over or the pool is closed, at most.
    fn pause(&self, limits: &Limits, pause: Duration) {
        // A time too long for the clock has no end.
        let due = Instant::now()
            .checked_add(pause)
            .filter(|_| !pause.is_zero());
        if pause.is_zero() {
            return;
        }
        let _watch = limits.ending().map(|ending| {
            let pauses = Arc::clone(&self.pauses);
            ending.watch(move |_| pauses.raise())
        });
        let deadline = limits.ending().and_then(Ending::deadline);
        let until = due.into_iter().chain(deadline).min();
        loop {
            let seen = self.pauses.count();
            let is_over = self.closed.load(Ordering::Relaxed) || limits.ended().is_some();
            if is_over || due.is_some_and(|due| Instant::now() >= due) {
                return;
            }
            self.pauses.sleep(seen, until);
        }
    }

    fn check_open(&self) -> Result<(), TaskError> {
        if self.closed.load(Ordering::Relaxed) {
            Err(PoolError::Closed.into())
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("name", &self.name)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Sealed for Serial {}

impl Executor for Serial {
    fn workers(&self) -> usize {
        1
    }

    fn kind(&self) -> &'static str {
        "serial"
    }

    fn name(&self, _: Internal) -> &str {
        &self.name
    }

    fn id(&self, _: Internal) -> PoolId {
        self.id
    }

    fn is_open(&self, _: Internal) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    fn close(&self, _: Internal) -> Result<(), PoolError> {
        self.closed.store(true, Ordering::Relaxed);
        self.pauses.raise();
        Ok(())
    }

    fn close_by(
        &self,
        _deadline: Option<Instant>,
        internal: Internal,
    ) -> Result<Option<usize>, PoolError> {
        self.close(internal).map(|()| None)
    }

    fn shutdown(&self, _: Shutdown, internal: Internal) -> Result<(), PoolError> {
        self.close(internal)
    }

    fn stats(&self, _: Internal) -> PoolStats {
        let counts = &self.counts;
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let age = Duration::from_nanos(clock::now().saturating_sub(counts.start));
        // Calls of several threads at once are each busy.
        let busy_time = Duration::from_nanos(read(&counts.busy)).min(age);
        let worker = WorkerStats {
            tasks: read(&counts.tasks),
            failures: Failures {
                panicked: read(&counts.panicked),
                timed_out: read(&counts.timed_out),
                ..Failures::default()
            },
            uptime: age,
            busy_time,
            peak_memory: clock::own_peak_memory(),
            ..WorkerStats::default()
        };
        PoolStats {
            name: self.name.clone(),
            uptime: age,
            workers: vec![worker],
            cancelled: read(&counts.cancelled),
            retried: read(&counts.retried),
        }
    }

    fn timeline(&self, _: Internal) -> Timeline {
        match &self.counts.recorder {
            Some(recorder) => recorder.lock().snapshot(&self.name),
            None => Recorder::new(self.counts.start).snapshot(&self.name),
        }
    }
}

impl<F, A, R> Run<F, A, R> for Serial
where
    F: Fn(A) -> R,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, _stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        let run = once(f);
        self.run(plan, run, items, false, |outcome| {
            let result = outcome?;
            let goes_on = !S::is_met(&result);
            results.push(result);
            Ok(goes_on)
        })?;
        Ok(results)
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let checked = self.check_open().and_then(|()| plan.chunks(1));
        if let Err(error) = checked {
            return error.of_items(0, items);
        }
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        let keep = |outcome| {
            results.push(outcome);
            Ok(true)
        };
        // Only `keep` can end the loop early, and it does not.
        let _ = self.run(plan, once(f), items, true, keep);
        results
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
        if let Err(error) = self.check_open() {
            return vec![Err(error)];
        }
        let run = |argument| {
            let outcome = self.run_one(&limits, 0, || f(argument));
            outcome.map_err(|failure| failure.into_error(None))
        };
        arguments.into_iter().map(run).collect()
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let give = move |base: usize, items: &mut Vec<A>| {
            let items = std::mem::take(items);
            let run = |(nth, item)| {
                let outcome = self.run_one(&limits, base + nth, || f(item));
                outcome.map_err(|failure| failure.into_error(Some(base + nth)))
            };
            let outcomes = || items.into_iter().enumerate().map(run).collect();
            TaskFuture::ready(self.check_open().map(|()| outcomes()))
        };
        // Items run when their results are asked for, one by one.
        Stream {
            give: Box::new(give),
            workers: 1,
            depth: 1,
            most: 1,
        }
    }
}

impl<F, A, R> RunAgain<F, A, R> for Serial
where
    F: Fn(A) -> R,
    A: Clone,
{
    fn map_again<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        let mut tried = 1;
        let run = |limits: &Limits, index, item| {
            let (outcome, attempts) = self.attempts(limits, index, &f, item, S::is_met);
            tried = attempts;
            (outcome, attempts)
        };
        self.run(plan, run, items, false, |outcome| {
            let result = outcome?;
            let goes_on = !S::is_met(&result);
            results.push(result);
            Ok(goes_on)
        })?;
        stop.tried(tried);
        Ok(results)
    }

    fn map_outcomes_again<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let checked = self.check_open().and_then(|()| plan.chunks(1));
        if let Err(error) = checked {
            return error.of_items(0, items);
        }
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        let keep = |outcome| {
            results.push(outcome);
            Ok(true)
        };
        let run = |limits: &Limits, index, item| self.attempts(limits, index, &f, item, |_| false);
        // Only `keep` can end the loop early, and it does not.
        let _ = self.run(plan, run, items, true, keep);
        results
    }

    fn submit_again(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if let Err(error) = self.check_open() {
            return TaskFuture::ready(Err(error));
        }
        let outcome = self.run_one_again(&limits, 0, &f, argument);
        TaskFuture::ended(Some(self.id), outcome)
    }

    fn stream_again(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let give = move |base: usize, items: &mut Vec<A>| {
            let items = std::mem::take(items);
            let run = |(nth, item)| {
                let outcome = self.run_one_again(&limits, base + nth, &f, item);
                outcome.map_err(|error| error.with_index(base + nth))
            };
            let outcomes = || items.into_iter().enumerate().map(run).collect();
            TaskFuture::ready(self.check_open().map(|()| outcomes()))
        };
        Stream {
            give: Box::new(give),
            workers: 1,
            depth: 1,
            most: 1,
        }
    }
}

impl<F, A, R> RunOnce<F, A, R> for Serial
where
    F: FnOnce(A) -> R,
{
    fn submit_once(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if let Err(error) = self.check_open() {
            return TaskFuture::ready(Err(error));
        }
        let outcome = self.run_one(&limits, 0, || f(argument));
        let outcome = outcome.map_err(|failure| failure.into_error(None));
        TaskFuture::ended(Some(self.id), outcome)
    }
}

/// The most results that room is reserved for. If an input claims to be longer, the vector grows as
/// results come.
const MOST_RESERVED: usize = 1 << 24;

/// Returns what runs `f` once on an item, with the limits of its call.
fn once<A, R>(f: impl Fn(A) -> R) -> impl FnMut(&Limits, usize, A) -> (Result<R, Failure>, u32) {
    move |limits, index, item| (limits.run(index, as_worker(|| f(item))), 1)
}

/// Makes of a task one that runs as the only worker of a pool. While it runs, and no longer, this
/// thread has the index 0.
fn as_worker<R>(task: impl FnOnce() -> R) -> impl FnOnce() -> R {
    || {
        let _index = worker_index::enter_serial();
        task()
    }
}

impl Serial {
    /// Runs all items with `run`, one after the other, until `keep` fails or says that it needs no
    /// more. When the call is over, the items that are left fail: all of them if `reads_on`, and
    /// else one, which is not read.
    fn run<A, R>(
        &self,
        plan: Plan<'_>,
        mut run: impl FnMut(&Limits, usize, A) -> (Result<R, Failure>, u32),
        items: impl Iterator<Item = A>,
        reads_on: bool,
        mut keep: impl FnMut(Result<R, TaskError>) -> Result<bool, TaskError>,
    ) -> Result<(), TaskError> {
        // Chunks have no effect here, but options that are wrong on one engine must be wrong on
        // all.
        plan.chunks(1)?;
        let mut counting = self.counts.begin();
        let mut tracker = plan.tracker;
        let mut failed = 0;
        let mut items = items.enumerate();
        let mut done = 0;
        loop {
            if !reads_on
                && plan.total != Some(done)
                && let Some(reason) = plan.limits.ended()
            {
                return keep(Err(reason.error())).map(drop);
            }
            let Some((index, item)) = items.next() else {
                break;
            };
            done = index + 1;
            let (outcome, attempts) = run(&plan.limits, index, item);
            counting.ended(&outcome);
            failed += usize::from(outcome.is_err());
            let failed_with =
                |failure: Failure| failure.into_error(Some(index)).with_attempts(attempts);
            let kept = keep(outcome.map_err(failed_with));
            tracker.tell(done, failed);
            if !kept? {
                break;
            }
        }
        Ok(())
    }
}

impl<F, G, A, R> RunReduce<F, G, A, R> for Serial
where
    F: Fn(A) -> R,
    G: Fn(R, R) -> R,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        reduce::check(&plan)?;
        let mut total = None;
        self.run(plan, once(f), items, false, |outcome| {
            let value = outcome?;
            total = Some(match total.take() {
                None => value,
                // A panic here does not belong to one item.
                Some(total) => as_worker(|| reduce::one(total, value, &g))()?,
            });
            Ok(true)
        })?;
        Ok(total)
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Serial
where
    F: Fn(&C, A) -> R,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.map(plan, |item| f(context, item), items, Never)
    }
}
