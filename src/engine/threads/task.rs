//! [`Task`]: a submitted task, from the call of `submit` until its result is taken.
//!
//! One allocation serves both sides: the pool holds it as a [`Job`], the handle as a [`Pending`].

use std::mem;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::pool_id::OwnPool;
use super::spin;
use crate::call::Limits;
use crate::copies::{self, Original};
use crate::error::{PoolError, TaskError};
use crate::future::{Hook, Pending, PoolId, later};
use crate::panic;
use crate::shim::{AtomicBool, Condvar, Mutex};

/// Something a worker takes from the queue and runs.
pub(super) trait Job: Send + Sync {
    /// Runs it, unless it was started or cancelled before. Must not unwind.
    fn run(&self);

    /// Ends it with `reason`, unless it was started before. Must not unwind.
    fn cancel(&self, reason: TaskError);
}

pub(super) struct Task<F, A, R> {
    stage: Mutex<Stage<F, A, R>>,
    /// Wakes the one who waits in [`Pending::wait`]; goes with `stage`.
    changed: Condvar,
    /// Set after `stage` has become [`Stage::Ended`] and its lock is free: for those who spin.
    ended: AtomicBool,
    /// A worker had to be woken for this task, so there is no use in spinning for its result.
    cold: AtomicBool,
    /// What is to be run when the task has ended. Added to under the lock of `stage`, while that is not at its end.
    hooks: Mutex<Vec<Hook>>,
    /// Whether there are any: a task without is told of nothing more than this by looking.
    is_hooked: AtomicBool,
    limits: Limits,
    own_pool: OwnPool,
}

enum Stage<F, A, R> {
    Queued(F, A),
    Running,
    Ended(Result<R, TaskError>),
    Taken { failed: bool },
}

impl<F, A, R> Task<F, A, R> {
    pub(super) fn new(function: F, argument: A, limits: Limits, own_pool: OwnPool) -> Self {
        Self {
            stage: Mutex::new(Stage::Queued(function, argument)),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            hooks: Mutex::default(),
            is_hooked: AtomicBool::new(false),
            limits,
            own_pool,
        }
    }

    /// Notes that a worker was woken for this task.
    pub(super) fn set_cold(&self) {
        self.cold.store(true, Ordering::Relaxed);
    }

    /// What the task runs, for whoever gets it first.
    fn start(&self, next: Stage<F, A, R>) -> Option<(F, A)> {
        let mut stage = self.stage.lock();
        match mem::replace(&mut *stage, next) {
            Stage::Queued(function, argument) => Some((function, argument)),
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Tells that `stage` is [`Stage::Ended`]. Called once, by whoever has made it so, without its lock.
    fn announce(&self) {
        // Release: pairs with the load in `has_ended`.
        self.ended.store(true, Ordering::Release);
        // No wake-up is lost: who waits has looked at `stage` under its lock.
        self.changed.notify_one();
        // Relaxed: it was set under the lock of `stage` before that was ended under the same lock, or not at all.
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

    /// Ends the task with `reason` if nobody has started it; true if so.
    fn end_queued(&self, reason: TaskError) -> bool {
        let Some(unused) = self.start(Stage::Ended(Err(reason))) else {
            return false;
        };
        self.announce();
        // Dropping an argument may panic, and cancelling must reach every task.
        let _ = panic::catch(move || drop(unused));
        true
    }

    fn has_ended(&self) -> bool {
        // Acquire: pairs with the store in `announce`.
        self.ended.load(Ordering::Acquire)
    }
}

impl<F, A, R> Job for Task<F, A, R>
where
    F: Fn(A) -> R + Send,
    A: Send,
    R: Send,
{
    fn run(&self) {
        if let Some((function, argument)) = self.start(Stage::Running) {
            // The function is dropped in here too: when the result is seen, all that the task held is gone.
            let original = Original::here();
            let run = move || copies::run(original, || function(argument));
            let outcome = self.limits.run(0, run);
            copies::end_panicked(original);
            *self.stage.lock() = Stage::Ended(outcome.map_err(|failure| failure.into_error(None)));
            self.announce();
        }
    }

    fn cancel(&self, reason: TaskError) {
        self.end_queued(reason);
    }
}

impl<F, A, R> Pending<R> for Task<F, A, R>
where
    F: Fn(A) -> R + Send,
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
        let spins = !is_worker && !self.cold.load(Ordering::Relaxed);
        if spins && spin::wait(1, deadline, || self.has_ended()) {
            return true;
        }
        if !self.own_pool.is_this_process() {
            return true;
        }
        if is_worker {
            // The task that waits occupies the worker that this one may need, so it runs it, whatever the deadline is.
            // Only this one: another that it began here could be waiting for the very task that is waiting now.
            self.run();
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
        Err(TaskError::Taken)
    }

    fn has_failed(&self) -> bool {
        if self.has_ended() {
            matches!(
                *self.stage.lock(),
                Stage::Ended(Err(_)) | Stage::Taken { failed: true }
            )
        } else {
            // Done without an end: the task is another process's.
            !self.own_pool.is_this_process()
        }
    }

    fn is_running(&self) -> bool {
        // The order matters: in a forked child the lock may be one that nobody will ever let go of.
        !self.is_done() && matches!(*self.stage.lock(), Stage::Running)
    }

    fn cancel(&self) -> bool {
        !self.is_done() && self.end_queued(TaskError::Cancelled)
    }

    fn on_end(&self, hook: Hook) {
        if !self.is_done() {
            let stage = self.stage.lock();
            if !matches!(*stage, Stage::Ended(_) | Stage::Taken { .. }) {
                self.hooks.lock().push(hook);
                self.is_hooked.store(true, Ordering::Relaxed);
                return;
            }
            // Whoever has ended it may not have come to say so, and the hook's first question is whether it has ended.
            self.ended.store(true, Ordering::Release);
        }
        hook();
    }

    fn help(&self) {
        if self.own_pool.is_this_worker() && !self.is_done() {
            self.run();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
