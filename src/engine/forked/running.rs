//! One task, one child: [`Running`] is what the pool has of the task, [`Task`] is its handle.
//!
//! A child that dies is not replaced, whatever [`Call::retries`](crate::Call::retries) says: the
//! new child is forked later, by the thread that happens to find the old one dead, and in whatever
//! state the other threads are in by then. With a policy ([`Call::retry`](crate::Call::retry)) a
//! program has asked for just that. Function and argument are kept for it, as the first child had
//! them: a child changes only its copies. The next child is forked at once, and waits itself until
//! its pause is over.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::child::{Bond, Forked as Child, LOOK_PAUSE, Setup, wait_any};
use super::watch::Watcher;
use crate::call::{Limit, Limits, Retry};
use crate::engine::discard::Discard;
use crate::error::{PoolError, TaskError};
use crate::future::{Ending, Hook, Pending, PoolId, Reason, Watch, later};
use crate::lane::message::{Fault, StopsAt};
use crate::lane::{Expected, Fate, Lane, RawBytes, ResponseWriter, Sink};
use crate::os::alarm::Alarm;
use crate::os::clock;
use crate::os::fork;
use crate::os::pidfd::Child as Process;

/// The number of the only task of a child.
pub(super) const TASK: u32 = 1;

/// Forks another child with this bell and index, which begins after this pause.
type ForkAgain = dyn FnMut(&Arc<Alarm>, usize, Duration) -> Result<Child, PoolError> + Send;

/// How a task is tried again.
pub(super) struct Again {
    pub(super) retry: Retry,
    pub(super) attempts: u32,
    pub(super) fork: Box<ForkAgain>,
}

/// Where a task is asked to stop.
struct Asked {
    /// The lane of the child that is there now.
    lane: Lane,
    /// Whether that is the first one.
    is_first: bool,
}

/// A task whose child runs or has run.
pub(super) struct Running {
    pool: PoolId,
    /// The index that the child has among those of its pool.
    pub(super) index: usize,
    pub(super) bell: Arc<Alarm>,
    /// The child's process, which may be polled and killed also while another thread holds the lock
    /// on the rest.
    process: Mutex<Arc<Process>>,
    /// What is done when an attempt has failed, if there may be another.
    again: Mutex<Option<Again>>,
    /// Whether the child has answered that the attempt failed, and is to be followed by another.
    is_again: AtomicBool,
    /// When the pause of the child that is there is over, if it is in one.
    due: Mutex<Option<Instant>>,
    /// [`fork::generation`] of the parent.
    generation: u32,
    /// How long the task may take.
    limit: Option<Limit>,
    /// Where the task is asked to stop, if that is done before it is killed.
    asked: Mutex<Option<Asked>>,
    /// What may end the task early with its call, if anything may.
    ending: Option<Ending>,
    /// When the task was given to the pool, by the system's clock.
    queued: u64,
    /// Why the child is killed, if the task is to end early.
    stopped: OnceLock<Reason>,
    /// What may stop the task, if anything may.
    watch: OnceLock<Watch>,
    /// The child and what is expected of it, until it has ended.
    pub(super) child: Mutex<Option<(Child, Expected)>>,
    outcome: Mutex<Option<Result<Vec<u8>, TaskError>>>,
    /// What to do with a result that no caller takes.
    results: Discard,
    /// What stays in this process until the task has ended.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether the task has failed, for callers that ask after the outcome has been taken. Set
    /// before `is_done`.
    has_failed: AtomicBool,
    /// Whether the task has ended because of `stopped`. Set before `is_done`.
    was_cancelled: AtomicBool,
    /// Set under the lock of `hooks`.
    is_done: AtomicBool,
    /// The hooks to run when the task has ended. None are added after that.
    hooks: Mutex<Vec<Hook>>,
    /// Looks after the task when there are hooks and no thread waits.
    watcher: Arc<Watcher>,
}

impl Sink for Running {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        let mut result = Vec::new();
        bytes.append_to(&mut result);
        *self.outcome.lock() = Some(Ok(result));
    }

    fn fault(&self, _index: u32, fault: Fault) {
        let error = fault.into_error(None).with_attempts(self.attempts());
        *self.outcome.lock() = Some(Err(error));
    }

    fn tries_again(&self, _index: u32, fault: &Fault) -> bool {
        let again = self.again.lock();
        let Some(again) = again.as_ref().filter(|_| self.goes_on()) else {
            return false;
        };
        let error = fault.clone().into_error(None);
        let is_again = again.retry.allows_after(&error, again.attempts);
        if is_again {
            // If no other child can be forked, this is the outcome.
            *self.outcome.lock() = Some(Err(error.with_attempts(again.attempts)));
            self.is_again.store(true, Ordering::Relaxed);
        }
        is_again
    }
}

/// Returns what is expected of a child.
fn expected(results: &Discard) -> Expected {
    Expected {
        task: TASK,
        next: 0,
        end: 1,
        result_size: results.size(),
        stops_at: StopsAt::Nothing,
        may_stop: false,
    }
}

impl Running {
    /// Forks the child.
    pub(super) fn start(
        pool: PoolId,
        setup: Setup<'_>,
        work: &mut Option<impl FnOnce(&mut ResponseWriter)>,
        limits: &Limits,
        results: Discard,
        watcher: Arc<Watcher>,
    ) -> io::Result<Self> {
        let queued = clock::now();
        let bell = Arc::new(Alarm::new()?);
        let index = setup.index;
        let child = Child::start(&bell, Bond::Process, setup, work)?;
        let expected = expected(&results);
        Ok(Self {
            pool,
            index,
            queued,
            bell,
            process: Mutex::new(child.process()),
            again: Mutex::default(),
            is_again: AtomicBool::new(false),
            due: Mutex::default(),
            generation: fork::generation(),
            limit: limits.limit(),
            asked: Mutex::new(limits.grace().map(|_| Asked {
                lane: child.receiver.lane().clone(),
                is_first: true,
            })),
            ending: limits.ending().cloned(),
            stopped: OnceLock::new(),
            watch: OnceLock::new(),
            child: Mutex::new(Some((child, expected))),
            outcome: Mutex::default(),
            results,
            kept: Mutex::default(),
            has_failed: AtomicBool::new(false),
            was_cancelled: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
            hooks: Mutex::default(),
            watcher,
        })
    }

    /// Has the task tried again when an attempt has failed.
    pub(super) fn again(self, again: Option<Again>) -> Self {
        *self.again.lock() = again;
        self
    }

    /// Returns whether another attempt may begin: nothing has stopped the task, or ended its call.
    /// Once something has, what has come of the last attempt counts.
    fn goes_on(&self) -> bool {
        self.stopped.get().is_none() && self.over().is_none()
    }

    /// Returns why the call of the task is over, if it is.
    fn over(&self) -> Option<Reason> {
        self.ending.as_ref()?.reason()
    }

    /// Returns how often the task has been started.
    fn attempts(&self) -> u32 {
        self.again.lock().as_ref().map_or(1, |again| again.attempts)
    }

    /// Returns the process of the child that is there now.
    pub(super) fn process(&self) -> Arc<Process> {
        self.process.lock().clone()
    }

    /// Returns whether the child waits until its pause is over.
    fn is_in_pause(&self) -> bool {
        let mut due = self.due.lock();
        if due.is_some_and(|due| due <= Instant::now()) {
            *due = None;
        }
        due.is_some()
    }

    /// Forks another child for the task, in place of one whose attempt has failed. Returns false if
    /// there can be none: then that failure is the outcome.
    fn fork_again(&self, child: &mut Option<(Child, Expected)>) -> bool {
        let mut again = self.again.lock();
        let Some(again) = again.as_mut() else {
            return false;
        };
        let pause = again.retry.pause(again.attempts);
        let next = match (again.fork)(&self.bell, self.index, pause) {
            Ok(next) => next,
            Err(error) => {
                log::warn!("a task that has failed cannot be tried again: {error}");
                return false;
            }
        };
        again.attempts = again.attempts.saturating_add(1);
        *self.due.lock() = Instant::now()
            .checked_add(pause)
            .filter(|_| !pause.is_zero());
        *self.outcome.lock() = None;
        *self.process.lock() = next.process();
        if let Some(asked) = &mut *self.asked.lock() {
            *asked = Asked {
                lane: next.receiver.lane().clone(),
                is_first: false,
            };
        }
        if let Some(reason) = self.over() {
            // The thread that asks the task to stop may have asked the child before.
            self.stopped.get_or_init(|| reason);
        }
        if self.stopped.get().is_some() {
            // The thread that stops the task may have killed the child before.
            next.kill();
        }
        *child = Some((next, expected(&self.results)));
        true
    }

    /// Takes what the child has published, and reclaims the child if it has ended. Never blocks.
    /// Runs hooks: when the lock is free again, the caller must call [`later::flush`].
    pub(super) fn look(&self, child: &mut Option<(Child, Expected)>) {
        let Some((hand, expected)) = child else {
            return;
        };
        if let Some(limit) = self.limit
            && !self.is_in_pause()
        {
            hand.stop_if_overdue(limit.most());
        }
        // This is asked before the last look, so that nothing that the child published before its
        // end is missed.
        let has_ended = hand.has_ended();
        while hand.has_next() {
            hand.take(expected, self);
            hand.receiver.header().wake_worker();
        }
        if has_ended {
            let (fate, error) = hand.reclaim(expected, self, self.limit);
            // The child has died before it answered.
            let has_died = fate.is_some();
            if let Some(Fate { .. }) = fate {
                let stopped = self.stopped.get();
                let attempts = self.attempts();
                let again = self.again.lock();
                let retry = again.as_ref().filter(|_| self.goes_on());
                let is_again =
                    retry.is_some_and(|again| again.retry.allows_after(&error, attempts));
                drop(again);
                self.is_again.store(is_again, Ordering::Relaxed);
                self.was_cancelled
                    .store(stopped.is_some(), Ordering::Relaxed);
                let error = stopped.map_or(error, |reason| reason.error());
                *self.outcome.lock() = Some(Err(error.with_attempts(attempts)));
            }
            let is_again = self.is_again.swap(false, Ordering::Relaxed);
            if is_again {
                hand.record(self.queued, 1, false);
            }
            if is_again && self.goes_on() && self.fork_again(child) {
                return;
            }
            let Some((hand, _)) = child else {
                return;
            };
            // What the child itself has said is counted with it.
            if (has_died || is_again)
                && let Some(Err(error)) = &*self.outcome.lock()
            {
                hand.count_failure(error);
            }
            hand.count(1);
            if !is_again {
                hand.record(self.queued, 1, !has_died);
            }
            self.finish(child);
        }
    }

    /// Returns how long to wait for the child until the next look is due, if there is time for
    /// `left`.
    pub(super) fn pause(&self, left: Option<Duration>) -> Option<Duration> {
        let pause = self.limit.map(|_| LOOK_PAUSE);
        left.into_iter().chain(pause).min()
    }

    fn finish(&self, child: &mut Option<(Child, Expected)>) {
        *child = None;
        let has_failed = self.outcome.lock().as_ref().is_none_or(Result::is_err);
        self.has_failed.store(has_failed, Ordering::Relaxed);
        let hooks = {
            let mut hooks = self.hooks.lock();
            self.is_done.store(true, Ordering::Release);
            std::mem::take(&mut *hooks)
        };
        for hook in hooks {
            hook();
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// Takes the outcome of a task that has ended.
    pub(super) fn take_outcome(&self) -> Result<Vec<u8>, TaskError> {
        let outcome = self.outcome.lock().take();
        outcome.unwrap_or(Err(TaskError::Taken {}))
    }

    /// Keeps something until the task has ended and a thread has found that out.
    pub(super) fn keep(&self, kept: impl Send + 'static) {
        *self.kept.lock() = Some(Box::new(kept));
    }

    /// Drops what was kept, if the task has ended. This must not happen under a lock: it may run
    /// code of the user's.
    fn let_go(&self) {
        if self.is_done() {
            let kept = (self.kept.lock().take(), self.again.lock().take());
            drop(kept);
        }
    }

    /// Looks at the child and returns whether it has ended. Never blocks.
    fn has_ended(&self) -> bool {
        if !self.is_done() {
            if let Some(mut child) = self.child.try_lock() {
                self.look(&mut child);
            }
            later::flush();
            self.let_go();
        }
        self.is_done()
    }

    /// Waits until the child has ended or `deadline` has come, and takes what it publishes
    /// meanwhile.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let is_done = self.wait_locked(deadline);
        later::flush();
        self.let_go();
        is_done
    }

    fn wait_locked(&self, deadline: Option<Instant>) -> bool {
        // The lock is held while waiting: another thread that waits for the same child waits here.
        let child = match deadline {
            Some(deadline) => self.child.try_lock_until(deadline),
            None => Some(self.child.lock()),
        };
        let Some(mut child) = child else {
            return self.is_done();
        };
        loop {
            self.look(&mut child);
            let Some((hand, _)) = &*child else {
                return true;
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            hand.ask_for_bell();
            if !hand.has_next() {
                let pause = self.pause(left);
                wait_any(&[&self.bell], std::iter::once(hand.fd()), pause);
            }
        }
    }

    /// Kills the child, unless it has ended, for this reason.
    pub(super) fn stop(&self, reason: Reason) {
        if !self.has_ended() {
            self.stopped.get_or_init(|| reason);
            self.process.lock().kill();
        }
    }

    /// Tells the task to stop by itself. A further attempt that has not begun, as one in its pause,
    /// is killed: it never begins.
    fn ask(&self, reason: Reason) {
        if self.is_done() {
            return;
        }
        let asked = self.asked.lock();
        let Some(Asked { lane, is_first }) = &*asked else {
            return;
        };
        let header = lane.header();
        header.cut(TASK..=TASK);
        if !is_first && header.progress().task != TASK {
            self.stopped.get_or_init(|| reason);
            self.process.lock().kill();
        }
    }

    /// Kills the child, unless it has ended, and waits for its end. Threads that wait for it are
    /// told.
    pub(super) fn cancel(&self) {
        self.stop(Reason::Cancelled);
        self.wait(None);
    }

    /// Returns whether this process is a forked child, and the task another process's.
    fn is_foreign(&self) -> bool {
        self.generation != fork::generation()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(Ok(bytes)) = self.outcome.get_mut().take() {
            self.results.discard(bytes);
        }
    }
}

/// The handle of one task. `open` makes what its future gives from the encoded result, or from the
/// error.
pub(super) struct Task<O> {
    pub(super) running: Arc<Running>,
    pub(super) open: O,
}

impl<T, O> Pending<T> for Task<O>
where
    O: Fn(Result<Vec<u8>, TaskError>) -> Result<T, TaskError> + Send + Sync,
{
    fn pool(&self) -> Option<PoolId> {
        Some(self.running.pool)
    }

    fn is_done(&self) -> bool {
        self.running.is_foreign() || self.running.has_ended()
    }

    fn has_failed(&self) -> bool {
        self.is_done()
            && (self.running.is_foreign() || self.running.has_failed.load(Ordering::Relaxed))
    }

    fn is_running(&self) -> bool {
        !self.is_done()
    }

    /// Returns false: the task runs from the moment it is submitted.
    fn cancel(&self) -> bool {
        false
    }

    fn kill(&self) -> bool {
        if self.is_done() {
            return false;
        }
        // This waits, but only until the kernel has removed the process.
        self.running.cancel();
        self.running.was_cancelled.load(Ordering::Relaxed)
    }

    fn stop(&self, reason: Reason) {
        if !self.running.is_foreign() {
            self.running.stop(reason);
        }
    }

    fn ask(&self, reason: Reason) {
        if !self.running.is_foreign() {
            self.running.ask(reason);
        }
    }

    fn keep(&self, watch: Watch) {
        // A task is given one.
        let _ = self.running.watch.set(watch);
    }

    fn on_end(&self, hook: Hook) {
        if !self.is_done() {
            let mut hooks = self.running.hooks.lock();
            if !self.running.is_done() {
                hooks.push(hook);
                let is_first = hooks.len() == 1;
                drop(hooks);
                if is_first {
                    self.running.watcher.watch(&self.running);
                }
                return;
            }
        }
        hook();
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.running.is_foreign() || self.running.wait(deadline)
    }

    fn take(&self) -> Result<T, TaskError> {
        let outcome = if self.running.is_foreign() {
            Err(PoolError::OtherProcess.into())
        } else {
            self.running.take_outcome()
        };
        (self.open)(outcome)
    }
}
