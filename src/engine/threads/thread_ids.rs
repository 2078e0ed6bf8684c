//! [`ThreadIds`]: the kernel's ids of a pool's threads, and of all threads of this crate's pools
//! that are asleep.
//!
//! The engine that forks needs them. A forked child has only the thread that forked, so a lock that
//! another thread held at that moment stays locked in the child for ever. Workers of a pool that is
//! at rest hold no lock, and need not keep a caller from forking.

use std::fs;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::dispatch::Dispatch;
use super::pool_id::OwnPool;

/// The pools of this process.
static POOLS: Mutex<Vec<Weak<Dispatch>>> = Mutex::new(Vec::new());

/// How long the kernel may go on listing a thread that was joined.
const LEAVING: Duration = Duration::from_millis(100);

/// The threads of a pool: those that run, and those that have ended since the pool was dropped.
/// Threads whose id the system does not tell are left out.
#[derive(Default)]
pub(super) struct ThreadIds(Mutex<Vec<i32>>);

impl ThreadIds {
    /// Lists this thread.
    pub(super) fn sign_in(&self) {
        self.0.lock().extend(this_thread());
    }

    pub(super) fn ids(&self) -> Vec<i32> {
        self.0.lock().clone()
    }
}

/// Adds a pool to those that [`idle_thread_ids`] looks at.
pub(super) fn register(pool: &Arc<Dispatch>) {
    let mut pools = POOLS.lock();
    pools.retain(|pool| pool.strong_count() > 0);
    pools.push(Arc::downgrade(pool));
}

/// Returns the pool of this process that this is, if it is still there.
pub(super) fn find(own: OwnPool) -> Option<Arc<Dispatch>> {
    let pools = POOLS.lock();
    let mut pools = pools.iter().filter_map(Weak::upgrade);
    pools.find(|pool| pool.own_pool() == own)
}

/// Removes a pool whose threads were joined from that list, when the threads are gone: `join`
/// returns when a thread has released its memory, and the kernel lists it for some microseconds
/// more.
pub(super) fn retire(pool: &Arc<Dispatch>) {
    let deadline = Instant::now() + LEAVING;
    for id in pool.thread_ids().ids() {
        let listed = PathBuf::from(format!("/proc/self/task/{id}"));
        while listed.exists() && Instant::now() < deadline {
            thread::yield_now();
        }
    }
    POOLS
        .lock()
        .retain(|other| !ptr::eq(other.as_ptr(), Arc::as_ptr(pool)));
}

/// Returns the ids of the threads of all [`Threads`](super::Threads) in this process, if these have
/// nothing to do and all their workers sleep; `None` otherwise. A pool that has become idle, or was
/// just made, takes up to some milliseconds to fall asleep.
///
/// They stay asleep as long as no caller gives their pools something to do.
pub(crate) fn idle_thread_ids() -> Option<Vec<i32>> {
    let pools: Vec<Arc<Dispatch>> = POOLS.lock().iter().filter_map(Weak::upgrade).collect();
    let at_rest = pools.iter().all(|pool| pool.is_at_rest());
    at_rest.then(|| {
        pools
            .iter()
            .flat_map(|pool| pool.thread_ids().ids())
            .collect()
    })
}

/// Returns the kernel's id of this thread, if the system has one.
fn this_thread() -> Option<i32> {
    // The link leads to `<process>/task/<thread>`.
    let link = fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}
