//! [`Task`]: a submitted task, from the call of `submit` until its result is taken.
//!
//! One allocation serves both sides: the pool holds it as a [`Job`], the handle as a [`Pending`].

use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::pool_id::OwnPool;
use super::{counts, spin, thread_ids};
use crate::call::{Failure, Limits};
use crate::copies::{self, Original};
use crate::engine::backlog::Slot;
use crate::error::{PoolError, TaskError};
use crate::future::{Hook, Pending, PoolId, Reason, ThreadNumber, Watch, later};
use crate::panic;
use crate::shim::{AtomicBool, Condvar, Mutex};

thread_local! {
    /// The addresses of the tasks on this thread's stack that can be stopped, the innermost last.
    static RUNNING: RefCell<Vec<*const ()>> = const { RefCell::new(Vec::new()) };
}

/// A task that can be stopped and runs on this thread, as long as this lives.
struct Here(());

impl Here {
    fn enter(task: *const ()) -> Self {
        RUNNING.with_borrow_mut(|running| running.push(task));
        Self(())
    }

    fn is_in(task: *const ()) -> bool {
        // At the end of a thread the list is gone already, and no task runs there.
        RUNNING
            .try_with(|running| running.borrow().contains(&task))
            .unwrap_or(false)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(Vec::pop);
    }
}

/// What a task runs, once or several times.
pub(super) trait Work<A, R>: Sized {
    /// Runs with this argument. Gives the outcome to `end`, with how often the task was started.
    /// Or returns what to run again, and after which pause.
    fn run(
        self,
        argument: A,
        limits: &Limits,
        end: impl FnOnce(Result<R, Failure>, u32),
    ) -> Option<((Self, A), Duration)>;
}

impl<F, A, R> Work<A, R> for F
where
    F: FnOnce(A) -> R,
{
    #[inline]
    fn run(
        self,
        argument: A,
        limits: &Limits,
        end: impl FnOnce(Result<R, Failure>, u32),
    ) -> Option<((Self, A), Duration)> {
        let original = Original::here();
        let run = move || copies::run(original, || self(argument));
        let outcome = limits.run(0, run);
        copies::end_panicked(original);
        end(outcome, 1);
        None
    }
}

/// A function that is run again when it has failed, as the policy of its call says.
pub(super) struct Again<F> {
    function: F,
    attempts: u32,
    own_pool: OwnPool,
}

impl<F> Again<F> {
    pub(super) fn new(function: F, own_pool: OwnPool) -> Self {
        Self {
            function,
            attempts: 0,
            own_pool,
        }
    }
}

impl<F, A, R> Work<A, R> for Again<F>
where
    F: Fn(A) -> R,
    A: Clone,
{
    fn run(
        mut self,
        argument: A,
        limits: &Limits,
        end: impl FnOnce(Result<R, Failure>, u32),
    ) -> Option<((Self, A), Duration)> {
        let outcome = loop {
            let original = Original::here();
            let run = || copies::run(original, || (self.function)(argument.clone()));
            let outcome = limits.run(0, run);
            copies::end_panicked(original);
            self.attempts += 1;
            let cause = outcome.as_ref().err().and_then(Failure::cause);
            if !cause.is_some_and(|cause| limits.policy().allows(cause, self.attempts)) {
                break outcome;
            }
            let pool = thread_ids::find(self.own_pool);
            // What has not started when the pool is shut down does not start.
            let is_cancelled = pool.as_ref().is_some_and(|pool| pool.is_cancelled());
            if let Some(pool) = pool.filter(|_| !is_cancelled) {
                pool.counts().retried();
            }
            let pause = limits.retry().pause(self.attempts);
            if !pause.is_zero() || is_cancelled {
                return Some(((self, argument), pause));
            }
        };
        let attempts = self.attempts;
        // When the result is seen, all that the task held is gone. This is code of the user's that
        // may panic.
        let _ = panic::catch(|| drop((self, argument)));
        end(outcome, attempts);
        None
    }
}

/// A job that a worker takes from the queue and runs.
pub(super) trait Job: Send + Sync {
    /// Runs the job, unless it was started or cancelled before. Must not unwind.
    fn run(&self);

    /// Ends the job with `reason`, unless it was started before. Must not unwind.
    fn cancel(&self, reason: TaskError);
}

pub(super) struct Task<F, A, R> {
    stage: Mutex<Stage<F, A, R>>,
    /// Wakes the thread that waits in [`Pending::wait`]; goes with `stage`.
    changed: Condvar,
    /// Set after `stage` has become [`Stage::Ended`] and its lock is free: for threads that spin.
    ended: AtomicBool,
    /// Whether a worker had to be woken for this task. Then it is no use to spin for its result.
    cold: AtomicBool,
    /// The hooks to run when the task has ended. Added to under the lock of `stage`, while that is
    /// not at its end.
    hooks: Mutex<Vec<Hook>>,
    /// Whether there are any hooks: a task without hooks costs only a look at this flag.
    is_hooked: AtomicBool,
    limits: Limits,
    /// What few tasks have.
    rare: Option<Box<Rare>>,
    own_pool: OwnPool,
    /// How many tasks it counts as in the statistics.
    items: usize,
    /// The stamp with which it was given out.
    queued: u64,
}

/// What few tasks have: those of calls that may end early or have a policy, and those of pools that
/// bound how many wait.
#[derive(Default)]
struct Rare {
    /// What may stop the task, if anything may.
    watch: OnceLock<Watch>,
    /// Whether the task may be stopped while it runs.
    is_stoppable: bool,
    /// The number of the thread that runs the task, or has begun to; 0 for none.
    runs_on: AtomicUsize,
    /// Whether the function of the task counts what it runs.
    counts_itself: bool,
    /// Why the task was stopped while it ran, if it was. Set under the lock of `stage`.
    stopped: OnceLock<Reason>,
    /// The place of the task among the submitted ones, if they are bounded.
    slot: Option<Slot>,
    /// The task itself, if it may be run again after a pause.
    own: OnceLock<Weak<dyn Job>>,
    /// The number of its pause, if it is in one.
    pause: Mutex<Option<u64>>,
}

enum Stage<F, A, R> {
    Queued(F, A),
    Running,
    Ended(Result<R, TaskError>),
    Taken { failed: bool },
}

impl Rare {
    #[cold]
    fn of(limits: &Limits, slot: Option<Slot>) -> Self {
        Self {
            is_stoppable: limits.ending().is_some(),
            slot,
            ..Self::default()
        }
    }
}

impl<F, A, R> Task<F, A, R> {
    /// Makes a task that counts as `items` tasks, and is given out with the stamp `queued`.
    #[inline]
    pub(super) fn new(
        work: (F, A),
        limits: Limits,
        own_pool: OwnPool,
        counted: (usize, u64),
    ) -> Self {
        Self::in_slot(work, limits, own_pool, counted, None)
    }

    /// Makes one that has this place among the submitted ones.
    #[inline]
    pub(super) fn in_slot(
        (function, argument): (F, A),
        limits: Limits,
        own_pool: OwnPool,
        (items, queued): (usize, u64),
        slot: Option<Slot>,
    ) -> Self {
        let is_rare =
            limits.ending().is_some() || slot.is_some() || limits.retry().is_for_answers();
        // Before the rest, which then is written to where it stays.
        let rare = is_rare.then(|| Box::new(Rare::of(&limits, slot)));
        Self {
            stage: Mutex::new(Stage::Queued(function, argument)),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            hooks: Mutex::default(),
            is_hooked: AtomicBool::new(false),
            rare,
            limits,
            own_pool,
            items,
            queued,
        }
    }

    /// Lets the task be stopped while it runs, though it has no limits of its own. Its function
    /// counts what it runs.
    pub(super) fn stoppable(mut self) -> Self {
        let rare = self.rare.get_or_insert_default();
        rare.is_stoppable = true;
        rare.counts_itself = true;
        self
    }

    fn address(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }

    /// Sets the outcome of the task, whose run on this thread has ended, unless it was stopped
    /// meanwhile. Counts it before that: `began` is when it began, if that is measured.
    #[inline]
    fn end_run(&self, (outcome, attempts): (Result<R, Failure>, u32), began: Option<u64>) {
        if let Some(rare) = &self.rare {
            self.end_rare_run(rare, (outcome, attempts), began);
            return;
        }
        let outcome = outcome.map_err(|failure| failure.into_error(None));
        if let Err(error) = &outcome {
            counts::failed(error);
        }
        counts::end(self.items, self.queued, began);
        *self.stage.lock() = Stage::Ended(outcome);
        self.announce();
    }

    #[cold]
    fn end_rare_run(
        &self,
        rare: &Rare,
        (outcome, attempts): (Result<R, Failure>, u32),
        began: Option<u64>,
    ) {
        let is_unbegun = outcome.as_ref().is_err_and(Failure::is_unbegun);
        let outcome = outcome.map_err(|failure| failure.into_error(None).with_attempts(attempts));
        if is_unbegun {
            self.count_cancelled();
        }
        let mut stage = self.stage.lock();
        let is_running = matches!(*stage, Stage::Running);
        if !is_unbegun && !rare.counts_itself {
            let stopped = rare.stopped.get().filter(|_| !is_running);
            let stopped = stopped.map(|reason| reason.error());
            if let Some(error) = stopped.as_ref().or(outcome.as_ref().err()) {
                counts::failed(error);
            }
            counts::end(self.items, self.queued, began);
        }
        if is_running {
            *stage = Stage::Ended(outcome);
            drop(stage);
            self.announce();
        } else {
            drop(stage);
            // The result is dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(outcome));
        }
    }

    /// Counts what the task stands for as tasks that no worker had begun with.
    fn count_cancelled(&self) {
        if let Some(pool) = thread_ids::find(self.own_pool) {
            pool.counts().cancelled(self.items);
        }
    }

    /// Notes that a worker was woken for this task.
    pub(super) fn set_cold(&self) {
        self.cold.store(true, Ordering::Relaxed);
    }

    /// Returns what the task runs, to the first thread that asks, and sets the next stage.
    fn start(&self, next: Stage<F, A, R>) -> Option<(F, A)> {
        let mut stage = self.stage.lock();
        match mem::replace(&mut *stage, next) {
            Stage::Queued(function, argument) => Some((function, argument)),
            // The task was started or ended before: its stage stays as it was.
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Announces that `stage` is [`Stage::Ended`]. Called once, without the lock, by the thread
    /// that has set that.
    fn announce(&self) {
        if let Some(slot) = self.rare.as_ref().and_then(|rare| rare.slot.as_ref()) {
            slot.free();
        }
        // Release: pairs with the load in `has_ended`.
        self.ended.store(true, Ordering::Release);
        // No wake-up is lost: a thread that waits has looked at `stage` under its lock.
        self.changed.notify_one();
        // Relaxed: the flag was set under the lock of `stage` before the stage was ended under the
        // same lock, or not at all.
        if self.is_hooked.load(Ordering::Relaxed) {
            self.run_hooks();
        }
    }

    #[cold]
    fn run_hooks(&self) {
        let hooks = mem::take(&mut *self.hooks.lock());
        for hook in hooks {
            hook();
        }
        later::flush();
    }

    /// Ends the task with `reason` if no thread has started it. Returns true if so.
    fn end_queued(&self, reason: TaskError) -> bool {
        let is_cancelled = matches!(
            reason,
            TaskError::Cancelled {} | TaskError::DeadlineExceeded {}
        );
        let Some(unused) = self.start(Stage::Ended(Err(reason))) else {
            return false;
        };
        if is_cancelled {
            self.count_cancelled();
        }
        if self.rare.is_some() {
            self.forget_pause();
        }
        self.announce();
        // Dropping an argument may panic, and cancelling must reach every task.
        let _ = panic::catch(move || drop(unused));
        true
    }

    /// Puts a task that has failed, and is to be run again, back to where it was before it started.
    /// Returns false if it was stopped meanwhile.
    fn put_back(&self, work: (F, A), began: Option<u64>) -> bool {
        let (function, argument) = work;
        if let Some(rare) = &self.rare {
            rare.runs_on.store(0, Ordering::Relaxed);
        }
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::Running) {
            *stage = Stage::Queued(function, argument);
            return true;
        }
        drop(stage);
        if let Some(reason) = self.rare.as_ref().and_then(|rare| rare.stopped.get()) {
            counts::failed(&reason.error());
        }
        counts::end(self.items, self.queued, began);
        // Code of the user's, which may panic.
        let _ = panic::catch(|| drop((function, argument)));
        false
    }

    /// Ends the task, which was put back, if its call is over by now. The thread that has ended the
    /// call may have seen the task run, and left it its grace period. Returns true if so.
    fn end_if_over(&self) -> bool {
        let reason = self.limits.ended();
        reason.is_some_and(|reason| self.end_queued(reason.error()))
    }

    /// Has the pool take the task again after this pause. Returns false if there is none, because
    /// the pool is about to end: then it is to be run at once.
    fn put_off(&self, pause: Duration) -> bool {
        let Some(rare) = &self.rare else { return false };
        let own = rare.own.get().and_then(Weak::upgrade);
        let (Some(own), Some(pool)) = (own, thread_ids::find(self.own_pool)) else {
            return false;
        };
        let is_off = {
            let mut number = rare.pause.lock();
            *number = pool.pause(own, pause);
            number.is_some()
        };
        if !is_off && pool.is_cancelled() {
            self.end_queued(TaskError::Cancelled {});
        }
        // It may have ended after it was put back and before it was put off.
        if is_off && !matches!(*self.stage.lock(), Stage::Queued(..)) {
            self.forget_pause();
        }
        is_off
    }

    /// Ends the pause that the task is in, if it is in one: it is not to be run any more.
    #[cold]
    fn forget_pause(&self) {
        let number = self.rare.as_ref().and_then(|rare| rare.pause.lock().take());
        if let (Some(number), Some(pool)) = (number, thread_ids::find(self.own_pool)) {
            pool.forget_pause(number);
        }
    }

    fn has_ended(&self) -> bool {
        // Acquire: pairs with the store in `announce`.
        self.ended.load(Ordering::Acquire)
    }
}

impl<F, A, R> Task<F, A, R>
where
    F: Work<A, R>,
{
    /// Runs the task, unless it was started or cancelled before. If it `waits`, it may be put off
    /// after a failure, to be run again after a pause; if not, it is run again at once.
    fn run_once(&self, waits: bool) {
        while let Some((function, argument)) = self.start(Stage::Running) {
            // The function is dropped in here too: when the result is seen, all that the task held
            // is gone.
            let began = counts::begin(self.queued);
            let rare = self.rare.as_ref().filter(|rare| rare.is_stoppable);
            let here = rare.map(|rare| {
                let thread = ThreadNumber::here();
                rare.runs_on.store(thread.0, Ordering::Relaxed);
                Here::enter(self.address())
            });
            let again = function.run(argument, &self.limits, |outcome, attempts| {
                drop(here);
                self.end_run((outcome, attempts), began);
            });
            let Some((work, pause)) = again else {
                return;
            };
            if !self.put_back(work, began) || self.end_if_over() || (waits && self.put_off(pause)) {
                return;
            }
        }
    }
}

impl<F, A, R> Task<F, A, R>
where
    Self: Job + 'static,
{
    /// Lets the task be run again after a pause.
    pub(super) fn may_pause(self: &Arc<Self>) {
        let own: Weak<Self> = Arc::downgrade(self);
        // A task is told once. One without a policy is not run again.
        if let Some(rare) = &self.rare {
            let _ = rare.own.set(own);
        }
    }
}

impl<F, A, R> Job for Task<F, A, R>
where
    F: Work<A, R> + Send,
    A: Send,
    R: Send,
{
    fn run(&self) {
        self.run_once(true);
    }

    fn cancel(&self, reason: TaskError) {
        self.end_queued(reason);
    }
}

impl<F, A, R> Pending<R> for Task<F, A, R>
where
    F: Work<A, R> + Send,
    A: Send,
    R: Send,
{
    fn pool(&self) -> Option<PoolId> {
        Some(self.own_pool.pool())
    }

    fn is_done(&self) -> bool {
        self.has_ended() || !self.own_pool.is_this_process()
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.has_ended() {
            return true;
        }
        let is_worker = self.own_pool.is_this_worker();
        // A worker does not spin: it can run the task itself.
        let spins = !is_worker && !self.cold.load(Ordering::Relaxed);
        if spins && spin::wait(1, deadline, || self.has_ended()) {
            return true;
        }
        // In a forked child the task counts as done: no worker came along that could end it.
        if !self.own_pool.is_this_process() {
            return true;
        }
        if is_worker {
            // The task that waits occupies the worker that this one may need. So its thread runs
            // this one, whatever the deadline is. It runs only this one: another task that it began
            // here could be waiting for the very task that is waiting now. There may be no other
            // worker that could run it after a pause.
            self.run_once(false);
        }
        let mut stage = self.stage.lock();
        while !matches!(*stage, Stage::Ended(_) | Stage::Taken { .. }) {
            match deadline {
                None => self.changed.wait(&mut stage),
                Some(deadline) => {
                    if self.changed.wait_until(&mut stage, deadline).timed_out() {
                        return matches!(*stage, Stage::Ended(_) | Stage::Taken { .. });
                    }
                }
            }
        }
        true
    }

    fn take(&self) -> Result<R, TaskError> {
        if !self.has_ended() && !self.own_pool.is_this_process() {
            // The workers live in the process that this one was forked from.
            return Err(PoolError::OtherProcess.into());
        }
        let mut stage = self.stage.lock();
        if let Stage::Ended(outcome) = &*stage {
            let failed = outcome.is_err();
            if let Stage::Ended(outcome) = mem::replace(&mut *stage, Stage::Taken { failed }) {
                return outcome;
            }
        }
        Err(TaskError::Taken {})
    }

    fn has_failed(&self) -> bool {
        if self.has_ended() {
            matches!(
                *self.stage.lock(),
                Stage::Ended(Err(_)) | Stage::Taken { failed: true }
            )
        } else {
            // The task is done but has not ended: it belongs to another process.
            !self.own_pool.is_this_process()
        }
    }

    fn is_running(&self) -> bool {
        // The order matters: in a forked child no thread may ever release the lock.
        !self.is_done() && matches!(*self.stage.lock(), Stage::Running)
    }

    fn cancel(&self) -> bool {
        !self.is_done() && self.end_queued(TaskError::Cancelled {})
    }

    /// A task that runs goes on to its end, and its outcome is thrown away. If this is called in
    /// the task itself, the task keeps its outcome.
    fn stop(&self, reason: Reason) {
        if self.is_done() || self.end_queued(reason.error()) || Here::is_in(self.address()) {
            return;
        }
        let Some(rare) = &self.rare else { return };
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::Running) {
            rare.stopped.get_or_init(|| reason);
            *stage = Stage::Ended(Err(reason.error()));
            drop(stage);
            self.announce();
        }
    }

    fn runs_on(&self, thread: ThreadNumber) -> bool {
        // Relaxed: a thread that has cancelled the call has written this before.
        let runs_on = |rare: &Rare| rare.runs_on.load(Ordering::Relaxed) == thread.0;
        self.rare.as_deref().is_some_and(runs_on)
    }

    fn ask(&self, reason: Reason) {
        // One that runs looks at the call itself.
        if !self.is_done() {
            self.end_queued(reason.error());
        }
    }

    fn keep(&self, watch: Watch) {
        // A task that may be stopped has a place for it, and is given one.
        if let Some(rare) = &self.rare {
            let _ = rare.watch.set(watch);
        }
    }

    fn on_end(&self, hook: Hook) {
        if !self.is_done() {
            let stage = self.stage.lock();
            // The task has not ended: the thread that ends it will run the hook.
            if !matches!(*stage, Stage::Ended(_) | Stage::Taken { .. }) {
                self.hooks.lock().push(hook);
                self.is_hooked.store(true, Ordering::Relaxed);
                return;
            }
            // The thread that has ended the task may not have announced it yet, and the hook first
            // asks whether the task has ended.
            self.ended.store(true, Ordering::Release);
        }
        hook();
    }

    fn help(&self) {
        if self.own_pool.is_this_worker() && !self.is_done() {
            self.run_once(false);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
