//! What the handle of a task needs to wait for it, to be told of its end and to stop it, whatever
//! its result is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::leader::WaitOptions;
use super::shared::Shared;
use super::task::{Results, Task};
use crate::engine::backlog::Slot;
use crate::error::TaskError;
use crate::future::{Ending, Hook, Pending, PoolId, Reason, Signal, Watch};

/// The part of a task's results that its handle works with.
pub(super) struct Completion {
    shared: Arc<Shared>,
    ended: Signal,
    /// Whether a caller waits for the task, or is to be told of its end.
    is_awaited: AtomicBool,
    /// Whether a callback or waker is to be told of the task's end, or its answers must be seen for
    /// another reason. Set once, under the dispatch's lock or before the dispatch has the task.
    is_told: AtomicBool,
    /// Whether the task was cancelled before a worker began with it. Set once, under the dispatch's
    /// lock.
    is_cancelled: AtomicBool,
    /// Whether a worker had to be woken for the task.
    is_cold: AtomicBool,
    /// Whether the task has ended without a result. It stays so when the outcome has been taken.
    has_failed: AtomicBool,
    /// What few tasks have.
    rare: Option<Box<Rare>>,
}

/// What few tasks have: those of calls that may end early, and those of pools that bound how many
/// wait.
struct Rare {
    /// What may end the call early that the task is a part of, if anything may.
    ending: Option<Ending>,
    /// What stops the task then.
    watch: OnceLock<Watch>,
    /// The place of the task among the submitted ones, if they are bounded.
    slot: Option<Slot>,
}

/// Results that have a handle.
pub(super) trait PendingResults<R>: Results + Sized {
    fn completion(&self) -> &Completion;

    /// Takes the outcome, which is there once. Called when the task has ended.
    fn take(&self) -> Result<R, TaskError>;

    /// Fails everything that has no outcome yet.
    fn fail_rest(&self, error: &TaskError);
}

impl Rare {
    #[cold]
    fn new(ending: Option<Ending>, slot: Option<Slot>) -> Self {
        Self {
            ending,
            watch: OnceLock::new(),
            slot,
        }
    }
}

impl Completion {
    pub(super) fn new(shared: &Arc<Shared>, ending: Option<Ending>) -> Self {
        Self::in_slot(shared, ending, None)
    }

    /// Makes that of a task that has this place among the submitted ones.
    #[inline]
    pub(super) fn in_slot(
        shared: &Arc<Shared>,
        ending: Option<Ending>,
        slot: Option<Slot>,
    ) -> Self {
        let is_rare = ending.is_some() || slot.is_some();
        Self {
            rare: is_rare.then(|| Box::new(Rare::new(ending, slot))),
            shared: shared.clone(),
            ended: Signal::default(),
            is_awaited: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            is_cancelled: AtomicBool::new(false),
            is_cold: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Marks the task as ended, and tells all that wait for it.
    pub(super) fn end(&self) {
        if let Some(slot) = self.slot() {
            slot.free();
        }
        self.ended.raise();
    }

    /// Records that the task will end without a result, or with one that says so.
    pub(super) fn set_failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed) || self.slot().is_some_and(Slot::is_waited_for)
    }

    pub(super) fn is_told(&self) -> bool {
        self.is_told.load(Ordering::Relaxed)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Returns why the call of the task is over, if it is: no worker is to begin with the task any
    /// more. All tasks of the call say so from the same moment, whenever they are stopped.
    #[inline]
    pub(super) fn stopped(&self) -> Option<Reason> {
        self.rare.as_ref()?.ending.as_ref()?.reason()
    }

    #[inline]
    fn slot(&self) -> Option<&Slot> {
        self.rare.as_ref()?.slot.as_ref()
    }

    fn has_ended(&self) -> bool {
        self.ended.count() > 0
    }

    /// Returns whether this process is a forked child, and the task its parent's.
    fn is_foreign(&self) -> bool {
        self.shared.check_process().is_err()
    }
}

/// Gives a task to the workers. The caller may not be back soon.
pub(super) fn place<P: PendingResults<R> + 'static, R>(
    task: &Arc<Task<P>>,
    shared: &Arc<Shared>,
) -> Result<(), TaskError> {
    let completion = task.results.completion();
    if task.retry().is_for_answers() {
        // An answer after which it is tried again must be seen, though no caller may wait for it.
        completion.is_awaited.store(true, Ordering::Relaxed);
        completion.is_told.store(true, Ordering::Relaxed);
    }
    let woke = shared.place(task.clone(), true)?;
    completion.is_cold.store(woke, Ordering::Relaxed);
    Ok(())
}

impl<P> Task<P> {
    /// Ends the task with this error if no worker has begun with it. Returns true if so.
    fn withdraw<R>(&self, error: &TaskError) -> bool
    where
        P: PendingResults<R>,
    {
        let completion = self.results.completion();
        if completion.is_foreign() {
            return false;
        }
        let mut dispatch = completion.shared.lock();
        if completion.has_ended()
            || !dispatch.withdraw(
                &completion.shared,
                (self.address(), self.count),
                completion.is_told(),
            )
        {
            return false;
        }
        completion.is_cancelled.store(true, Ordering::Relaxed);
        self.results.fail_rest(error);
        completion.end();
        // The task's place in the lane may now be another's, and a thread may wait for the end of
        // everything.
        dispatch.pump(&completion.shared);
        drop(dispatch);
        completion.shared.bell.ring();
        true
    }

    /// Ends the task with this error, also if a worker has begun with it. Returns true if this call
    /// has caused it.
    fn end_with<R>(&self, error: &TaskError) -> bool
    where
        P: PendingResults<R>,
    {
        let completion = self.results.completion();
        if completion.is_foreign() {
            return false;
        }
        {
            let mut dispatch = completion.shared.lock();
            dispatch.pump(&completion.shared);
            if completion.has_ended() {
                return false;
            }
            if dispatch.has_begun(self.address()) {
                return dispatch.kill(self.address(), error);
            }
        }
        // A worker may begin with it at this very moment.
        self.withdraw(error) || completion.shared.lock().kill(self.address(), error)
    }

    /// Ends everything of the call that no worker has begun with, and has workers that run some of
    /// it begin with nothing more of it. If there is a `reason`, also ends the task if it runs.
    fn end_early<R>(&self, reason: Option<Reason>)
    where
        P: PendingResults<R>,
    {
        let completion = self.results.completion();
        if completion.is_foreign() {
            return;
        }
        let shared = &completion.shared;
        {
            let mut dispatch = shared.lock();
            // The first task of a call that is stopped has ended all that no worker had begun with.
            if completion.has_ended() {
                return;
            }
            dispatch.pump(shared);
            // This comes before the kill: the place of a killed worker is taken by another one,
            // which must not begin with anything of the call.
            dispatch.drop_unwanted(shared);
            if let Some(reason) = reason
                && !completion.has_ended()
            {
                dispatch.kill(self.address(), &reason.error());
            }
            dispatch.pump(shared);
        }
        // Threads may wait for tasks that have ended here.
        shared.bell.ring();
    }
}

impl<P: PendingResults<R>, R> Pending<R> for Task<P> {
    fn pool(&self) -> Option<PoolId> {
        Some(self.results.completion().shared.id)
    }

    fn is_done(&self) -> bool {
        let completion = self.results.completion();
        if completion.is_foreign() {
            return true;
        }
        if !completion.has_ended()
            && let Some(mut dispatch) = completion.shared.try_lock()
        {
            // A caller that only polls must also drive the dispatch.
            dispatch.pump(&completion.shared);
        }
        completion.has_ended()
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        let completion = self.results.completion();
        if completion.is_foreign() {
            // The task is the parent's; `take` returns the error that says so.
            return true;
        }
        // This is read under the dispatch's lock, which a thread that goes to sleep takes after
        // this.
        completion.is_awaited.store(true, Ordering::Relaxed);
        let options = WaitOptions {
            cold: completion.is_cold.load(Ordering::Relaxed),
            deadline,
            comes_back: false,
        };
        completion.shared.wait(&completion.ended, 0, options)
    }

    fn take(&self) -> Result<R, TaskError> {
        self.results.completion().shared.check_process()?;
        self.results.take()
    }

    fn has_failed(&self) -> bool {
        let completion = self.results.completion();
        completion.is_foreign() || completion.has_failed.load(Ordering::Relaxed)
    }

    fn is_running(&self) -> bool {
        let completion = self.results.completion();
        if completion.is_foreign() || completion.has_ended() {
            return false;
        }
        let mut dispatch = completion.shared.lock();
        dispatch.pump(&completion.shared);
        !completion.has_ended() && dispatch.is_running(self.address())
    }

    fn cancel(&self) -> bool {
        self.withdraw(&TaskError::Cancelled {})
    }

    fn kill(&self) -> bool {
        self.end_with(&TaskError::Cancelled {})
    }

    fn stop(&self, reason: Reason) {
        self.end_early(Some(reason));
    }

    fn ask(&self, _reason: Reason) {
        self.end_early(None);
    }

    fn keep(&self, watch: Watch) {
        // A task is given one.
        if let Some(rare) = &self.results.completion().rare {
            let _ = rare.watch.set(watch);
        }
    }

    fn on_end(&self, hook: Hook) {
        let completion = self.results.completion();
        if completion.is_foreign() {
            hook();
            return;
        }
        let mut dispatch = completion.shared.lock();
        if !completion.has_ended() && !completion.is_told() {
            completion.is_awaited.store(true, Ordering::Relaxed);
            completion.is_told.store(true, Ordering::Relaxed);
            dispatch.told += 1;
        }
        completion.ended.on_raise(0, hook);
        completion.shared.ensure_progress(&mut dispatch);
    }

    fn family(&self) -> usize {
        Arc::as_ptr(&self.results.completion().shared) as usize
    }

    fn wait_for(&self, signal: &Signal, seen: usize, deadline: Option<Instant>) {
        let completion = self.results.completion();
        if completion.is_foreign() {
            return;
        }
        let options = WaitOptions {
            cold: false,
            deadline,
            comes_back: false,
        };
        completion.shared.wait(signal, seen, options);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
