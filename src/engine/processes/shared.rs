//! What the pool, its threads and its futures share.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::context::Context;
use super::dispatch::{Batch, Dispatch, State};
use super::start::START_TIME;
use super::task::{Results, Task};
use crate::error::{PoolError, TaskError};
use crate::shim::AtomicUsize;

/// What the pool, its threads and its futures share: the context, the dispatch behind its lock, and
/// what callers wait by.
pub(super) struct Shared {
    pub(super) context: Context,
    pub(super) dispatch: Mutex<Dispatch>,
    pub(super) wake_background: Condvar,
    /// The number of callers that wait.
    pub(super) waiting: AtomicUsize,
}

impl Deref for Shared {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl Shared {
    pub(super) fn new(context: Context) -> Self {
        Self {
            dispatch: Mutex::new(Dispatch::new(context.workers())),
            context,
            wake_background: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Takes a task. Returns true if a sleeping worker had to be woken for it. `leaves` says that
    /// the caller may not come back soon to wait for it.
    pub(super) fn place(
        self: &Arc<Self>,
        task: Arc<Task<dyn Results>>,
        leaves: bool,
    ) -> Result<bool, TaskError> {
        self.check_process()?;
        let mut dispatch = self.lock();
        self.check_takes(&dispatch.state)?;
        if let Some(limit) = task.limit().filter(Duration::is_zero) {
            // All its items are over their limit before they start.
            drop(dispatch);
            Batch::new(task).fail(&TaskError::timed_out(None, limit));
            return Ok(false);
        }
        let woke = dispatch.place(self, Batch::new(task));
        if leaves {
            self.ensure_progress(&mut dispatch);
        }
        Ok(woke)
    }

    /// Takes a task that this worker alone may run.
    pub(super) fn place_at(
        self: &Arc<Self>,
        task: Arc<Task<dyn Results>>,
        worker: usize,
    ) -> Result<(), TaskError> {
        self.check_process()?;
        let mut dispatch = self.lock();
        self.check_takes(&dispatch.state)?;
        dispatch.place_at(self, worker, Batch::new(task));
        self.ensure_progress(&mut dispatch);
        Ok(())
    }

    /// Looks at the lanes ([`Dispatch::watch_lanes`]), and ensures that what moved goes on.
    pub(super) fn watch_lanes(
        self: &Arc<Self>,
        dispatch: &mut Dispatch,
        now: u64,
    ) -> Option<Duration> {
        let (next, has_moved) = dispatch.watch_lanes(self, now);
        if has_moved {
            self.ensure_progress(dispatch);
        }
        next
    }

    /// Puts what is due after its pause into the queue ([`Dispatch::resume_due`]), and ensures that
    /// it goes on.
    pub(super) fn resume_due(self: &Arc<Self>, dispatch: &mut Dispatch) -> Option<Duration> {
        let (next, has_moved) = dispatch.resume_due(self, Instant::now());
        if has_moved {
            self.ensure_progress(dispatch);
        }
        next
    }

    /// Waits until all workers take tasks.
    pub(super) fn wait_ready(&self) -> Result<(), PoolError> {
        let deadline = Instant::now() + START_TIME;
        loop {
            let heard = self.bell.listen();
            let is_up = {
                let dispatch = self.lock();
                if let State::Ended(reason) = &dispatch.state {
                    return Err(reason.clone());
                }
                let Some((worker, is_up)) = dispatch.first_not_ready() else {
                    break;
                };
                if !is_up && Instant::now() >= deadline {
                    return Err(PoolError::StartTimedOut {
                        worker,
                        waited: START_TIME,
                    });
                }
                is_up
            };
            let left = deadline.saturating_duration_since(Instant::now());
            self.bell.sleep(heard, (!is_up).then_some(left));
        }
        self.is_built.store(true, Ordering::Release);
        Ok(())
    }
}
