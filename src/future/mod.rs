//! [`TaskFuture`]: the handle of one submitted task, and the functions for many of them.

mod callback_threads;
mod callbacks;
pub(crate) mod deadlines;
mod ending;
pub(crate) mod later;
mod many;
mod outstanding;
mod signal;
mod token;

pub(crate) use self::ending::{Ending, Reason, ThreadNumber, Watch};
pub(crate) use self::many::Board;
pub use self::many::{AsCompleted, ReturnWhen, as_completed, wait};
pub(crate) use self::outstanding::{PoolId, wait_for_callbacks};
pub(crate) use self::signal::{Hook, Signal};
pub use self::token::CancellationToken;
pub(crate) use self::token::ending_of;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::callbacks::Told;
use crate::error::{TaskError, TaskId, TimeoutError};

/// The handle of a task given to a pool by [`Pool::submit`](crate::Pool::submit). It will hold the
/// result, or the error that says why there is none.
///
/// It is also a [`Future`], of any async runtime: `.await` returns what [`result`](Self::result)
/// returns, without a thread that waits for it.
///
/// Dropping it does not stop the task; its result is thrown away. A handle that has been awaited is
/// an exception: as with other futures, dropping it means that the result is not wanted any more,
/// and the task is cancelled if it has not started. With
/// [`kill_on_drop`](TaskFuture::kill_on_drop), dropping it also stops a task that runs.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(2)?;
/// let answer = pool.submit(|x: u64| x + 1, 41);
/// assert_eq!(answer.result()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the result of the task comes through this handle"]
pub struct TaskFuture<R> {
    id: TaskId,
    pending: Arc<dyn Pending<R>>,
    /// The place of the result when there are callbacks: they see it first.
    told: OnceLock<Arc<Told<R>>>,
    /// The waker to be woken, once the handle has been awaited.
    waker: Option<Arc<Mutex<Option<Waker>>>>,
    /// Whether the task is killed when the handle is dropped.
    kills: bool,
}

/// The engine's side of a [`TaskFuture`].
pub(crate) trait Pending<R>: Send + Sync {
    /// Returns the pool whose `close` waits for the callbacks of the task; `None` if no pool took
    /// the task.
    fn pool(&self) -> Option<PoolId>;

    /// Returns whether the task has ended. Never blocks.
    fn is_done(&self) -> bool;

    /// Blocks until the task has ended, or until `deadline`. Returns true if it has ended.
    fn wait(&self, deadline: Option<Instant>) -> bool;

    /// Returns the outcome, once; [`TaskError::Taken`] afterwards. Called only after the task has
    /// ended.
    fn take(&self) -> Result<R, TaskError>;

    /// Returns whether the task has ended without a result. Never blocks.
    fn has_failed(&self) -> bool;

    /// Returns whether the task has started and has not ended. Never blocks.
    fn is_running(&self) -> bool;

    /// Ends the task with [`TaskError::Cancelled`] if it has not started. Returns true if this call
    /// has done so.
    fn cancel(&self) -> bool;

    /// Ends the task with [`TaskError::Cancelled`] also if it has started, where that is possible.
    /// Returns true if this call has caused it.
    fn kill(&self) -> bool {
        self.cancel()
    }

    /// Ends the task with the error of this reason, where that is possible: also a task that runs.
    /// One that runs in this process goes on, and its outcome is thrown away, unless it is itself
    /// what asks for it.
    fn stop(&self, reason: Reason);

    /// Has the task end without a result of its own if it has not started, and tells it to stop if
    /// it runs: the grace period of its call begins.
    fn ask(&self, reason: Reason) {
        let _ = reason;
    }

    /// Returns whether this thread runs the task, or began to before the task was stopped.
    fn runs_on(&self, thread: ThreadNumber) -> bool {
        let _ = thread;
        false
    }

    /// Keeps this as long as the task is kept.
    fn keep(&self, watch: Watch);

    /// Runs `hook` when the task has ended, or now if it has.
    fn on_end(&self, hook: Hook);

    /// Runs the task, if it can only run on the thread that calls this, which is about to wait for
    /// it.
    fn help(&self) {}

    /// Returns a number that is the same for all tasks that one call of
    /// [`wait_for`](Self::wait_for) can wait for together; 0 if the task has no such family.
    fn family(&self) -> usize {
        0
    }

    /// Waits until the count of `signal`, which hooks of tasks of this family raise, has passed
    /// `seen`, or until the deadline.
    fn wait_for(&self, signal: &Signal, seen: usize, deadline: Option<Instant>) {
        signal.sleep(seen, deadline);
    }
}

impl<R> TaskFuture<R> {
    pub(crate) fn new(pending: Arc<dyn Pending<R>>) -> Self {
        Self::with_id(TaskId::next(), pending)
    }

    /// Makes a handle of the task that was given this id before it was given to its engine.
    pub(crate) fn with_id(id: TaskId, pending: Arc<dyn Pending<R>>) -> Self {
        Self {
            id,
            pending,
            told: OnceLock::new(),
            waker: None,
            kills: false,
        }
    }

    /// Makes a handle of a task that no pool took.
    pub(crate) fn ready(outcome: Result<R, TaskError>) -> Self
    where
        R: Send + 'static,
    {
        Self::ended(None, outcome)
    }

    /// Makes a handle of a task of this pool that has ended already.
    pub(crate) fn ended(pool: Option<PoolId>, outcome: Result<R, TaskError>) -> Self
    where
        R: Send + 'static,
    {
        Self::new(Arc::new(Ready {
            pool,
            has_failed: outcome.is_err(),
            outcome: Mutex::new(Some(outcome)),
        }))
    }

    /// Has the task end early with the call that it is a part of.
    pub(crate) fn end_with(&self, ending: &Ending)
    where
        R: 'static,
    {
        let task = Arc::downgrade(&self.pending);
        let watch = if ending.has_grace() {
            let stop = move |reason| {
                if let Some(task) = task.upgrade() {
                    task.stop(reason);
                }
            };
            let task = Arc::downgrade(&self.pending);
            let ask = move |reason| {
                if let Some(task) = task.upgrade() {
                    task.ask(reason);
                }
            };
            ending.watch(ask).and(ending.watch_kill(stop))
        } else {
            ending.watch_cancel(move |reason, by| {
                // A task that has cancelled its own call keeps its outcome. It may have done so
                // before this hook was there.
                if let Some(task) = task.upgrade()
                    && !by.is_some_and(|thread| task.runs_on(thread))
                {
                    task.stop(reason);
                }
            })
        };
        self.pending.keep(watch);
    }

    /// Returns the identity of the task, which no other task of this process has. Its errors
    /// carry it too ([`TaskError::task_id`]).
    ///
    /// # Examples
    ///
    /// The results in the order in which they come, each with what it is the result of:
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::collections::HashMap;
    ///
    /// let pool = Pool::threads(2)?;
    /// let words = ["many", "hands", "make"];
    /// let tasks: Vec<_> = words.iter().map(|&word| pool.submit(str::len, word)).collect();
    /// let names: HashMap<_, _> = tasks.iter().map(TaskFuture::id).zip(words).collect();
    /// for task in as_completed(tasks) {
    ///     let word = names[&task.id()];
    ///     assert_eq!(task.result()?, word.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Waits for the task to end and returns its result.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] that says why there is no result: the task panicked, its worker died, a
    /// value did not cross between the processes, the pool was dropped; [`TaskError::Taken`] if
    /// `result_timeout` or `try_result` has returned the result.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(1)?;
    /// let failing = pool.submit(|text: &str| text.parse::<u32>().unwrap(), "seven");
    /// assert!(matches!(failing.result(), Err(TaskError::Panicked { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn result(self) -> Result<R, TaskError> {
        self.wait(None);
        self.take()
    }

    /// Waits until the outcome can be taken, or until the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        self.pending.wait(deadline) && self.told().is_none_or(|told| told.wait(deadline))
    }

    fn take(&self) -> Result<R, TaskError> {
        let outcome = match self.told.get() {
            Some(told) if told.is_foreign() => told.copied().unwrap_or_else(|| self.pending.take()),
            Some(told) => told.take(),
            None => self.pending.take(),
        };
        outcome.map_err(|error| error.of_task(self.id))
    }

    /// Returns the place of the result when there are callbacks. In a forked child it is `None`
    /// also if there are, because only the parent calls them.
    fn told(&self) -> Option<&Arc<Told<R>>> {
        self.told.get().filter(|told| !told.is_foreign())
    }

    /// Returns whether the task has ended, and its callbacks have been called.
    fn is_over(&self) -> bool {
        self.pending.is_done() && self.told().is_none_or(|told| told.is_over())
    }

    /// Waits at most `timeout` for the task to end, and returns its result if it has.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] if the task has not ended; it goes on, and a later call still returns its
    /// result. The inner `Result` is as for [`result`](Self::result).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::{Arc, Barrier};
    /// use std::time::Duration;
    ///
    /// let pool = Pool::threads(1)?;
    /// let (here, there) = {
    ///     let gate = Arc::new(Barrier::new(2));
    ///     (gate.clone(), gate)
    /// };
    /// let mut task = pool.submit(
    ///     move |()| {
    ///         there.wait();
    ///         "done"
    ///     },
    ///     (),
    /// );
    /// assert!(task.result_timeout(Duration::from_millis(5)).is_err());
    /// here.wait();
    /// assert_eq!(task.result_timeout(Duration::from_secs(60))??, "done");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn result_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Result<R, TaskError>, TimeoutError> {
        // A timeout too long for the clock is no deadline at all.
        let deadline = Instant::now().checked_add(timeout);
        if self.wait(deadline) {
            Ok(self.take())
        } else {
            Err(TimeoutError)
        }
    }

    /// Returns the outcome of the task if it has ended, and `None` if it has not. Never blocks. The
    /// outcome comes once, and [`TaskError::Taken`] afterwards.
    ///
    /// # Errors
    ///
    /// The `Result` is as for [`result`](Self::result).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(1)?;
    /// let mut task = pool.submit(|x: u64| x + 1, 41);
    /// let outcome = loop {
    ///     match task.try_result() {
    ///         Some(outcome) => break outcome,
    ///         None => std::thread::yield_now(), // or something of use
    ///     }
    /// };
    /// assert_eq!(outcome?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_result(&mut self) -> Option<Result<R, TaskError>> {
        self.is_over().then(|| self.take())
    }

    /// Returns whether the task has ended, with a result or without. Never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let task = Pool::serial().submit(|x: i32| -x, 3);
    /// assert!(task.is_done());
    /// ```
    pub fn is_done(&self) -> bool {
        self.is_over()
    }

    /// Returns whether the task has started and has not ended. Never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let task = Pool::serial().submit(|x: i32| -x, 3);
    /// assert!(!task.is_running()); // it has ended
    /// ```
    pub fn is_running(&self) -> bool {
        self.pending.is_running()
    }

    /// Cancels the task if it has not started: it never will, and its result is
    /// [`TaskError::Cancelled`]. Returns true if so, and false if the task has started or ended
    /// before.
    ///
    /// A task that is cancelled has ended: of several calls exactly one returns true, and none if
    /// the pool has cancelled the task. (Python's `Future.cancel` is also true for a task that was
    /// cancelled before.)
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let long = pool.submit(
    ///     |()| std::thread::sleep(std::time::Duration::from_secs(600)),
    ///     (),
    /// );
    /// let queued = pool.submit(|x: i32| x, 1);
    /// assert!(queued.cancel());
    /// assert!(matches!(queued.result(), Err(TaskError::Cancelled { .. })));
    /// assert!(long.kill());
    /// assert!(matches!(long.result(), Err(TaskError::Cancelled { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn cancel(&self) -> bool {
        self.pending.cancel()
    }

    /// Cancels the task whether it has started or not. On processes and forked children a task that
    /// runs is stopped by killing its process, which a pool replaces. A thread cannot be stopped:
    /// on the other engines this does the same as [`cancel`](Self::cancel).
    ///
    /// Returns true if the task ends with [`TaskError::Cancelled`] because of this call, and false
    /// if it has ended before, or cannot be stopped. (A task may still come to its end in the
    /// moment between the decision and the signal; then it has a result.)
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let endless = pool.submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// assert!(endless.kill());
    /// let outcome: Result<(), _> = endless.result();
    /// assert!(matches!(outcome, Err(TaskError::Cancelled { .. })));
    /// assert_eq!(pool.submit(|x: i32| x + 1, 1).result()?, 2); // the worker has been replaced
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill(&self) -> bool {
        self.pending.kill()
    }

    /// With `true`, dropping this handle before the task has ended [kills](Self::kill) the task: a
    /// worker is not kept busy for a result that no caller will take. The default is `false`.
    ///
    /// An `.await` that is dropped, as by a `select!` or a timeout of the async runtime, drops the
    /// handle and so stops the task. Handles that are consumed by [`result`](Self::result) are
    /// dropped after the task's end.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let endless = pool.submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// let endless: TaskFuture<()> = endless.kill_on_drop(true);
    /// drop(endless);
    /// assert_eq!(pool.submit(|x: i32| x + 1, 1).result()?, 2); // the worker is free
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill_on_drop(mut self, kills: bool) -> Self {
        self.kills = kills;
        self
    }

    /// Waits until the task has ended and its callbacks have been called, or until the deadline.
    /// Returns whether [`result`](Self::result) will return at once.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.wait(deadline)
    }

    /// Calls `callback` with the outcome once the task has ended: with its result, its error, or
    /// [`TaskError::Cancelled`]. If the task has ended already, the callback runs at once, on this
    /// thread. Otherwise it runs on a thread that the crate keeps for callbacks.
    ///
    /// The callbacks of one task run one after the other, in the order in which they were
    /// registered. Those of different tasks run in the order in which the tasks were found ended.
    /// But a callback that takes longer than some milliseconds does not hold up those of other
    /// tasks: they go on beside it, on further threads, which end when they have nothing to do. So
    /// a callback may use pools, and wait for any task, lock or message. It must not wait for what
    /// can only come after it: a later callback of its own task, or another thread that waits for
    /// the result of that task.
    ///
    /// [`result`](Self::result) returns the outcome after the callbacks that were registered by the
    /// task's end have seen it. If one of these callbacks calls it, it returns
    /// [`PoolError::System`](crate::PoolError::System) instead of waiting for itself. If the
    /// outcome has been taken, by `result_timeout`, `try_result` or `.await`, a callback that is
    /// registered afterwards gets [`TaskError::Taken`]. A callback that panics is logged; it stops
    /// neither the others nor the pool.
    ///
    /// [`Pool::close`](crate::Pool::close) waits for the callbacks of the pool's tasks. Dropping a
    /// pool does not. A forked child does not call what its parent has registered; what it
    /// registers itself is called in the child.
    ///
    /// If the system refuses a thread, callbacks run on the thread that found the task ended, or
    /// that waits for them in `result` or `close`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::mpsc::channel;
    ///
    /// let pool = Pool::threads(1)?;
    /// let (send, receive) = channel();
    /// let task = pool.submit(|x: u64| x + 1, 41);
    /// task.on_done(move |outcome| {
    ///     send.send(outcome.copied().map_err(TaskError::clone))
    ///         .unwrap()
    /// });
    /// assert_eq!(receive.recv()?, Ok(42));
    /// assert_eq!(task.result()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_done(&self, callback: impl FnOnce(Result<&R, &TaskError>) + Send + 'static)
    where
        R: Send + 'static,
    {
        let mut callback: Option<callbacks::Callback<R>> = Some(Box::new(callback));
        let told = self
            .told
            .get_or_init(|| Told::new(self.id, self.pending.pool(), callback.take()));
        if let Some(callback) = callback {
            if told.is_foreign() {
                told.show_copied(callback);
            } else {
                told.add(callback);
            }
            return;
        }
        if let Some(slot) = &self.waker {
            // The handle has been awaited. From now on the outcome is there only after the
            // callbacks have seen it.
            told.on_end(waking(slot));
        }
        told.begin(&self.pending);
    }
}

/// Returns a hook that wakes the async task that awaits this one, if there is one.
fn waking(slot: &Arc<Mutex<Option<Waker>>>) -> Hook {
    let slot = Arc::clone(slot);
    Box::new(move || {
        if let Some(waker) = slot.lock().take() {
            later::wake(waker);
        }
    })
}

impl<R> Unpin for TaskFuture<R> {}

// The result is in one place until it is taken, and code of the user (the task, callbacks, wakers,
// the decoding of a result) does not run while that place is changed. As with std's `JoinHandle`,
// `R` itself need not be unwind safe: it can only be had by a call that returns it.
impl<R> UnwindSafe for TaskFuture<R> {}
impl<R> RefUnwindSafe for TaskFuture<R> {}

impl<R> Future for TaskFuture<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.waker.is_none() {
            let slot = Arc::new(Mutex::new(None::<Waker>));
            match self.told() {
                Some(told) => told.on_end(waking(&slot)),
                None => self.pending.on_end(waking(&slot)),
            }
            self.waker = Some(slot);
            later::flush();
        }
        if !self.is_over() {
            if let Some(slot) = &self.waker {
                let old = slot.lock().replace(context.waker().clone());
                // Not dropped under the lock: it may be the last reference to a task of the user's,
                // which may hold other handles.
                drop(old);
            }
            // Looks again: the task may have ended before the waker was there.
            if !self.is_over() {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.take())
    }
}

impl<R> Drop for TaskFuture<R> {
    fn drop(&mut self) {
        if self.kills {
            self.pending.kill();
        } else if self.waker.is_some() && !self.pending.is_done() {
            self.pending.cancel();
        }
    }
}

impl<R> fmt::Debug for TaskFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskFuture")
            .field("id", &self.id)
            .field("done", &self.is_done())
            .finish_non_exhaustive()
    }
}

struct Ready<R> {
    pool: Option<PoolId>,
    outcome: Mutex<Option<Result<R, TaskError>>>,
    /// Whether there was an error. It stays known when the outcome has been taken, which callbacks
    /// do before the handle sees it.
    has_failed: bool,
}

impl<R: Send> Pending<R> for Ready<R> {
    fn pool(&self) -> Option<PoolId> {
        self.pool
    }

    fn is_done(&self) -> bool {
        true
    }

    fn wait(&self, _deadline: Option<Instant>) -> bool {
        true
    }

    fn take(&self) -> Result<R, TaskError> {
        self.outcome
            .lock()
            .take()
            .unwrap_or(Err(TaskError::Taken {}))
    }

    fn has_failed(&self) -> bool {
        self.has_failed
    }

    fn is_running(&self) -> bool {
        false
    }

    fn cancel(&self) -> bool {
        false
    }

    fn stop(&self, _reason: Reason) {}

    fn keep(&self, watch: Watch) {
        drop(watch);
    }

    fn on_end(&self, hook: Hook) {
        hook();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
