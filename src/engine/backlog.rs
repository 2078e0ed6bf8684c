//! [`Backlog`]: how many submitted tasks may wait for a worker, and what `submit` does when as many
//! wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{PoolError, TaskError};
use crate::future::{Ending, Signal};

/// What [`Pool::submit`](crate::Pool::submit) does when as many tasks wait for a worker as may.
///
/// # Examples
///
/// ```
/// use manyhands::engine::WhenFull;
/// use manyhands::prelude::*;
///
/// let pool = Processes::builder().workers(1).queue_limit(2, WhenFull::Refuse).build()?;
/// let spin = |()| loop {
///     std::hint::spin_loop()
/// };
/// let tasks: Vec<TaskFuture<()>> = (0..3).map(|_| pool.submit(spin, ())).collect();
/// let refused = pool.submit(spin, ()).result().map(|()| ()).unwrap_err();
/// assert!(matches!(refused.as_pool(), Some(PoolError::QueueFull { limit: 2, .. })));
/// assert!(tasks[1].cancel()); // which makes room
/// assert!(!pool.submit(spin, ()).is_done());
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WhenFull {
    /// `submit` waits until there is room. So a caller gives out tasks as fast as they end.
    Wait,
    /// The task fails with [`PoolError::QueueFull`](crate::PoolError::QueueFull), and does not
    /// start.
    Refuse,
}

/// The bound of a pool on its submitted tasks, and how many of them have not ended.
pub(crate) struct Backlog {
    limit: usize,
    when_full: WhenFull,
    open: AtomicUsize,
    /// Raised when a task ends.
    freed: Signal,
    /// How many callers wait for room.
    waiting: AtomicUsize,
}

/// The place of a task in a backlog, until it is freed or dropped.
pub(crate) struct Slot {
    backlog: Arc<Backlog>,
    is_free: AtomicBool,
}

/// How a caller waits for room, on its engine.
pub(crate) trait Patience {
    /// Returns whether this thread must not wait: the tasks may be waiting for it.
    fn must_not_wait(&self) -> bool;

    /// Returns whether the pool takes tasks.
    ///
    /// # Errors
    ///
    /// If it does not.
    fn check(&self) -> Result<(), TaskError>;

    /// Waits until the count of `freed` has passed `seen`, or until the deadline.
    fn sleep(&self, freed: &Signal, seen: usize, deadline: Option<Instant>);

    /// Returns what wakes callers that [`sleep`](Self::sleep), besides the signal.
    fn alarm(&self) -> Box<dyn FnOnce() + Send> {
        Box::new(|| {})
    }
}

impl Backlog {
    pub(crate) fn new(limit: usize, when_full: WhenFull) -> Self {
        Self {
            limit,
            when_full,
            open: AtomicUsize::new(0),
            freed: Signal::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Takes a place for a task of a pool of so many workers. If there is none, waits or fails.
    ///
    /// # Errors
    ///
    /// If there is no room, the pool takes no tasks, or the call of the task is over.
    pub(crate) fn take(
        self: &Arc<Self>,
        workers: impl Fn() -> usize,
        ending: Option<&Ending>,
        patience: &impl Patience,
    ) -> Result<Slot, TaskError> {
        let mut watch = None;
        loop {
            // Before the look: a place that is freed after it must end the wait.
            let seen = self.freed.count();
            if let Some(reason) = ending.and_then(Ending::reason) {
                return Err(reason.error());
            }
            patience.check()?;
            let most = self.limit.saturating_add(workers());
            let has_room = |open: usize| (open < most).then_some(open + 1);
            let is_taken = self
                .open
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, has_room);
            if is_taken.is_ok() {
                return Ok(self.slot());
            }
            if self.when_full == WhenFull::Refuse {
                return Err(PoolError::QueueFull { limit: self.limit }.into());
            }
            if patience.must_not_wait() {
                self.open.fetch_add(1, Ordering::AcqRel);
                return Ok(self.slot());
            }
            if watch.is_none()
                && let Some(ending) = ending
            {
                let (backlog, alarm) = (self.clone(), patience.alarm());
                watch = Some(ending.watch(move |_| {
                    backlog.freed.raise();
                    alarm();
                }));
                continue;
            }
            self.waiting.fetch_add(1, Ordering::AcqRel);
            patience.sleep(&self.freed, seen, ending.and_then(Ending::deadline));
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn slot(self: &Arc<Self>) -> Slot {
        Slot {
            backlog: self.clone(),
            is_free: AtomicBool::new(false),
        }
    }
}

impl Slot {
    /// Gives the place back, once.
    pub(crate) fn free(&self) {
        if !self.is_free.swap(true, Ordering::AcqRel) {
            self.backlog.open.fetch_sub(1, Ordering::AcqRel);
            self.backlog.freed.raise();
        }
    }

    /// Returns whether a caller waits for a place.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.backlog.waiting.load(Ordering::Acquire) > 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free();
    }
}
