//! The callbacks of one task, and the outcome that they get to see.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::outstanding::{Outstanding, PoolId, Within, is_in_callback_of};
use super::signal::Hook;
use super::{Pending, Signal, callback_threads, later};
use crate::error::{PoolError, TaskError, TaskId};
use crate::panic;

pub(super) type Callback<R> = Box<dyn FnOnce(Result<&R, &TaskError>) + Send>;

/// The part between a task with callbacks and its handle. It takes the outcome when the task has
/// ended, shows it to the callbacks, and keeps it for the handle.
pub(super) struct Told<R> {
    /// Not behind a lock of `parking_lot`: see [`copied`](Self::copied).
    stage: Mutex<Stage<R>>,
    changed: Condvar,
    over: Signal,
    task: TaskId,
    pool: Option<PoolId>,
    generation: u32,
}

enum Stage<R> {
    /// The task has not ended, or its callbacks are being called.
    Waiting(Vec<Callback<R>>),
    Over(Option<Result<R, TaskError>>),
}

impl<R> Told<R> {
    pub(super) fn new(task: TaskId, pool: Option<PoolId>, first: Option<Callback<R>>) -> Arc<Self> {
        Arc::new(Self {
            stage: Mutex::new(Stage::Waiting(first.into_iter().collect())),
            changed: Condvar::new(),
            over: Signal::default(),
            task,
            pool,
            generation: generation(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Stage<R>> {
        // No callback is called under the lock.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether this process is a forked child, and the callbacks belong to its parent.
    pub(super) fn is_foreign(&self) -> bool {
        self.generation != generation()
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Arranges that the callbacks are called when the task ends, or now if it has ended.
    pub(super) fn begin(self: &Arc<Self>, pending: &Arc<dyn Pending<R>>)
    where
        R: Send + 'static,
    {
        let outstanding = Outstanding::count(self.pool);
        if pending.is_done() {
            self.tell(pending.take(), outstanding);
            return;
        }
        let (told, task) = (Arc::clone(self), Arc::clone(pending));
        pending.on_end(Box::new(move || {
            later::call(Box::new(move || told.tell(task.take(), outstanding)));
        }));
        later::flush();
    }

    /// Adds a callback. If the task is over, calls it now.
    pub(super) fn add(&self, callback: Callback<R>) {
        let mut stage = self.lock();
        match &mut *stage {
            Stage::Waiting(callbacks) => callbacks.push(callback),
            // The task is over: the callback sees the outcome, which then goes back to the handle.
            Stage::Over(outcome) => {
                let outcome = outcome.take().unwrap_or(Err(TaskError::Taken {}));
                *stage = Stage::Waiting(vec![callback]);
                drop(stage);
                self.tell(outcome, Outstanding::count(self.pool));
            }
        }
    }

    fn tell(&self, outcome: Result<R, TaskError>, outstanding: Outstanding) {
        let outcome = outcome.map_err(|error| error.of_task(self.task));
        loop {
            let callbacks = {
                let mut stage = self.lock();
                match &mut *stage {
                    Stage::Waiting(callbacks) if !callbacks.is_empty() => std::mem::take(callbacks),
                    // No callback has been added meanwhile: the outcome is now for the handle.
                    _ => {
                        *stage = Stage::Over(Some(outcome));
                        break;
                    }
                }
            };
            for callback in callbacks {
                self.show(callback, &outcome);
                if self.is_foreign() {
                    // The callback has forked, and this is the copy. The parent calls the other
                    // callbacks.
                    return;
                }
            }
        }
        self.changed.notify_all();
        self.over.raise();
        // Counted down only now: a thread that waits for the callbacks of the pool then finds the
        // handle done.
        drop(outstanding);
        later::flush();
    }

    fn show(&self, callback: Callback<R>, outcome: &Result<R, TaskError>) {
        let _within = Within::enter(self.pool, self.address());
        if let Err(caught) = panic::catch(|| callback(outcome.as_ref())) {
            log::error!("a callback of a task panicked: {}", caught.message);
        }
    }

    /// Returns, in a forked child, the outcome if the parent had it here at the time of the fork.
    /// It uses `try_lock` only: another thread of the parent may have held the lock, and a lock
    /// that is free may have had waiters.
    pub(super) fn copied(&self) -> Option<Result<R, TaskError>> {
        match &mut *self.stage.try_lock().ok()? {
            Stage::Over(outcome) => outcome.take(),
            Stage::Waiting(_) => None,
        }
    }

    /// Shows one more callback, in a forked child, the outcome that is known there.
    pub(super) fn show_copied(&self, callback: Callback<R>) {
        let outcome = self.copied();
        let outcome = outcome.unwrap_or(Err(PoolError::OtherProcess.into()));
        self.show(callback, &outcome);
        if let Ok(mut stage) = self.stage.try_lock()
            && let Stage::Over(copied) = &mut *stage
        {
            *copied = Some(outcome);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.count() > 0
    }

    pub(super) fn on_end(&self, hook: Hook) {
        self.over.on_raise(0, hook);
    }

    /// Waits until the callbacks have been called, or until the deadline. Returns true if they have
    /// been called, or if a callback of this very task is the caller.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut stage = self.lock();
        while matches!(*stage, Stage::Waiting(_)) {
            if is_in_callback_of(self.address()) {
                return true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let slice = callback_threads::RETRY;
            let waited = self
                .changed
                .wait_timeout(stage, left.unwrap_or(slice).min(slice));
            let (held, time) = waited.unwrap_or_else(PoisonError::into_inner);
            stage = held;
            if time.timed_out() && matches!(*stage, Stage::Waiting(_)) {
                // If the system refuses threads, there may be no thread but this one to run the
                // callbacks that it waits for.
                drop(stage);
                callback_threads::help();
                stage = self.lock();
            }
        }
        true
    }

    /// Returns the outcome, once the callbacks have seen it.
    pub(super) fn take(&self) -> Result<R, TaskError> {
        self.wait(None);
        match &mut *self.lock() {
            Stage::Over(outcome) => outcome.take().unwrap_or(Err(TaskError::Taken {})),
            Stage::Waiting(_) if is_in_callback_of(self.address()) => Err(PoolError::System {
                what: "the result was not given".into(),
                reason:
                    "the callbacks of a task see its outcome first, and one of them asked for it"
                        .into(),
            }
            .into()),
            // Another callback was added in between.
            Stage::Waiting(_) => Err(TaskError::Taken {}),
        }
    }
}

#[cfg(target_os = "linux")]
fn generation() -> u32 {
    crate::os::fork::generation()
}

#[cfg(not(target_os = "linux"))]
fn generation() -> u32 {
    0
}
