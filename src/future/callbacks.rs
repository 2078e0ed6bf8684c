//! The callbacks of one task, and the outcome that they are shown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::signal::Hook;
use super::{Pending, Signal, later};
use crate::error::TaskError;
use crate::panic;

pub(super) type Callback<R> = Box<dyn FnOnce(Result<&R, &TaskError>) + Send>;

/// How often the thread for callbacks looks for one that it waits for.
const BREATH: Duration = Duration::from_millis(1);

/// Between a task with callbacks and its handle: takes the outcome when the task has ended, shows it to the callbacks,
/// and keeps it for the handle.
pub(super) struct Told<R> {
    stage: Mutex<Stage<R>>,
    changed: Condvar,
    over: Signal,
}

enum Stage<R> {
    /// The task has not ended, or its callbacks are being called.
    Waiting(Vec<Callback<R>>),
    Over(Option<Result<R, TaskError>>),
}

impl<R> Told<R> {
    pub(super) fn new(first: Option<Callback<R>>) -> Arc<Self> {
        Arc::new(Self {
            stage: Mutex::new(Stage::Waiting(first.into_iter().collect())),
            changed: Condvar::new(),
            over: Signal::default(),
        })
    }

    /// Has the callbacks called when the task ends, or now if it has.
    pub(super) fn begin(self: &Arc<Self>, pending: &Arc<dyn Pending<R>>)
    where
        R: Send + 'static,
    {
        if pending.is_done() {
            self.tell(pending.take());
            return;
        }
        let (told, task) = (Arc::clone(self), Arc::clone(pending));
        pending.on_end(Box::new(move || {
            later::call(Box::new(move || told.tell(task.take())));
        }));
        later::flush();
    }

    /// One more callback.
    pub(super) fn add(&self, callback: Callback<R>) {
        let mut stage = self.stage.lock();
        match &mut *stage {
            Stage::Waiting(callbacks) => callbacks.push(callback),
            Stage::Over(outcome) => {
                let outcome = outcome.take().unwrap_or(Err(TaskError::Taken));
                *stage = Stage::Waiting(vec![callback]);
                drop(stage);
                self.tell(outcome);
            }
        }
    }

    fn tell(&self, outcome: Result<R, TaskError>) {
        loop {
            let callbacks = {
                let mut stage = self.stage.lock();
                match &mut *stage {
                    Stage::Waiting(callbacks) if !callbacks.is_empty() => std::mem::take(callbacks),
                    _ => {
                        *stage = Stage::Over(Some(outcome));
                        break;
                    }
                }
            };
            for callback in callbacks {
                show(callback, &outcome);
            }
        }
        self.changed.notify_all();
        self.over.raise();
        later::flush();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.count() > 0
    }

    pub(super) fn on_end(&self, hook: Hook) {
        self.over.on_raise(0, hook);
    }

    /// Waits until the callbacks have been called, or until the deadline; true if they have.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut stage = self.stage.lock();
        while matches!(*stage, Stage::Waiting(_)) {
            if later::is_runner() {
                // In a callback: those of this task wait behind it, on this very thread.
                drop(stage);
                let ran = later::run_next();
                stage = self.stage.lock();
                if !ran && matches!(*stage, Stage::Waiting(_)) {
                    // It has ended, and its callbacks are about to be queued.
                    self.changed.wait_for(&mut stage, BREATH);
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return matches!(*stage, Stage::Over(_));
                }
                continue;
            }
            match deadline {
                None => self.changed.wait(&mut stage),
                Some(deadline) => {
                    if self.changed.wait_until(&mut stage, deadline).timed_out() {
                        return matches!(*stage, Stage::Over(_));
                    }
                }
            }
        }
        true
    }

    /// The outcome, once the callbacks have seen it.
    pub(super) fn take(&self) -> Result<R, TaskError> {
        self.wait(None);
        match &mut *self.stage.lock() {
            Stage::Over(outcome) => outcome.take().unwrap_or(Err(TaskError::Taken)),
            Stage::Waiting(_) => Err(TaskError::Taken),
        }
    }
}

fn show<R>(callback: Callback<R>, outcome: &Result<R, TaskError>) {
    if let Err(caught) = panic::catch(|| callback(outcome.as_ref())) {
        log::error!("a callback of a task panicked: {}", caught.message);
    }
}
