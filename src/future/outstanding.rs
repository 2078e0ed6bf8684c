//! The callbacks that have not returned, counted for each pool: `close` waits for those of its own
//! pool.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::callback_threads;
#[cfg(target_os = "linux")]
use crate::os::fork::PerProcess;

/// The id of a pool, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolId(NonZeroU64);

impl PoolId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed));
        Self(id.expect("no process makes 2^64 pools"))
    }
}

#[derive(Default)]
struct Counts {
    /// Tasks of each pool whose callbacks have not all returned. A pool without such tasks has no
    /// entry.
    tasks: Mutex<BTreeMap<PoolId, usize>>,
    /// Wakes the threads that wait for a pool's count to become 0.
    none_left: Condvar,
}

impl Counts {
    const fn new() -> Self {
        Self {
            tasks: Mutex::new(BTreeMap::new()),
            none_left: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolId, usize>> {
        // Nothing that could panic happens under the lock, so poison is ignored.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counts of this process. Not a lock of `parking_lot`, and each process has its own: see
/// `callback_threads::THREADS`.
#[cfg(target_os = "linux")]
static COUNTS: PerProcess<Counts> = PerProcess::new(Counts::new());
#[cfg(not(target_os = "linux"))]
static COUNTS: Counts = Counts::new();

fn own() -> &'static Counts {
    #[cfg(target_os = "linux")]
    return COUNTS.own();
    #[cfg(not(target_os = "linux"))]
    return &COUNTS;
}

/// A task with callbacks, counted as long as this lives.
pub(super) struct Outstanding(Option<PoolId>);

impl Outstanding {
    /// Counts a task of this pool. With `None`, the task belongs to no pool that would wait for it.
    pub(super) fn count(pool: Option<PoolId>) -> Self {
        if let Some(pool) = pool {
            *own().lock().entry(pool).or_default() += 1;
        }
        Self(pool)
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        let Some(pool) = self.0 else {
            return;
        };
        let counts = own();
        let mut tasks = counts.lock();
        // There is no entry if a forked child drops a copy of what its parent has counted.
        if let Some(count) = tasks.get_mut(&pool) {
            *count -= 1;
            if *count == 0 {
                tasks.remove(&pool);
                counts.none_left.notify_all();
            }
        }
    }
}

thread_local! {
    /// The callbacks that this thread is in, the innermost last: pool and task.
    static WITHIN: RefCell<Vec<(Option<PoolId>, usize)>> = const { RefCell::new(Vec::new()) };
}

/// A mark that this thread is in a callback, as long as this lives.
pub(super) struct Within(());

impl Within {
    /// Enters a callback of the task at this address.
    pub(super) fn enter(pool: Option<PoolId>, task: usize) -> Self {
        // At the end of a thread the list is gone already, and the thread waits for nothing.
        let _ = WITHIN.try_with(|within| within.borrow_mut().push((pool, task)));
        Self(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        let _ = WITHIN.try_with(|within| within.borrow_mut().pop());
    }
}

fn is_within(which: impl Fn((Option<PoolId>, usize)) -> bool) -> bool {
    let is_one = |within: &RefCell<Vec<_>>| within.borrow().iter().copied().any(which);
    WITHIN.try_with(is_one).unwrap_or(false)
}

/// Returns whether this thread is in a callback of the task at this address.
pub(super) fn is_in_callback_of(task: usize) -> bool {
    is_within(|(_, within)| within == task)
}

/// Waits until all callbacks of the pool's tasks have returned, or until the deadline. Returns
/// false if one has not. In a callback, of whatever pool, it returns true at once: callbacks that
/// wait for each other's end would do so for ever.
pub(crate) fn wait_for_callbacks(pool: PoolId, deadline: Option<Instant>) -> bool {
    if is_within(|_| true) {
        return true;
    }
    let counts = own();
    let mut tasks = counts.lock();
    while tasks.contains_key(&pool) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        let pause = left.map_or(callback_threads::RETRY, |left| {
            left.min(callback_threads::RETRY)
        });
        let waited = counts.none_left.wait_timeout(tasks, pause);
        let (held, time) = waited.unwrap_or_else(PoisonError::into_inner);
        tasks = held;
        if time.timed_out() {
            // If the system refuses threads, there may be no thread but this one to run the
            // callbacks.
            drop(tasks);
            callback_threads::help();
            tasks = counts.lock();
        }
    }
    true
}
