//! Which threads may spin, and for how long.
//!
//! Waking a thread that the kernel has put to sleep takes 5 to 50 µs. Seeing a change in memory
//! takes 0.1 µs. So a worker that finds nothing to do, and a caller that waits for a result, first
//! watch for about as long as a wake-up would cost, and then sleep. That is at most twice what the
//! better of the two would have cost.
//!
//! Watching is useful only while there is a core for each thread that watches. A spinning thread
//! that takes the core away from the one it waits for makes things up to 13 times slower. So no
//! thread starts to spin when more threads of this crate are awake than the process has cores.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use crate::engine::clock;

/// How long to watch before going to sleep, in nanoseconds.
pub(super) const SPIN: u64 = 50_000;

/// How many looks there are between two looks at the clock, which costs as much as one of them.
const LOOKS: u32 = 16;

/// Workers that are awake, in all pools of this process. Like [`WAITING`] it is a count to decide
/// by, and orders nothing.
static AWAKE: CachePadded<AtomicUsize> = CachePadded::new(AtomicUsize::new(0));

/// The number of callers that spin for a result. It is not in the cache line of [`AWAKE`]. Workers
/// read that for every task, and callers write this one for every result: each write would take the
/// line out of the workers' caches.
static WAITING: CachePadded<AtomicUsize> = CachePadded::new(AtomicUsize::new(0));

/// A worker that is awake, counted as long as this lives.
pub(super) struct Awake(());

impl Awake {
    pub(super) fn new() -> Self {
        AWAKE.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Counts the worker as asleep while `sleep` runs.
    pub(super) fn while_asleep<T>(self, sleep: impl FnOnce() -> T) -> (Self, T) {
        drop(self);
        let woken = sleep();
        (Self::new(), woken)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        AWAKE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether a worker may spin: whether a core is left for the thread that will post the next
/// task.
pub(super) fn may_search() -> bool {
    // In a loom model each look would be one more order to try.
    !cfg!(loom) && AWAKE.load(Ordering::Relaxed) < cores()
}

/// Spins, for a caller, until `ended` returns true. Returns false if it did not in time, or if
/// there is no core to spin on. Of the workers that the caller waits for, `workers` are counted as
/// awake: if they are not yet, they are about to be.
pub(super) fn wait(workers: usize, deadline: Option<Instant>, ended: impl Fn() -> bool) -> bool {
    if cfg!(loom) {
        return false;
    }
    let waiting = WAITING.fetch_add(1, Ordering::Relaxed) + 1;
    let _leave = Leave;
    if waiting + AWAKE.load(Ordering::Relaxed).max(workers) > cores() {
        return false;
    }
    let now = clock::now();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.map_or(SPIN, |left| left.as_nanos().min(SPIN.into()) as u64);
    let limit = now.saturating_add(left);
    let (seen, _) = watch(now, limit, || ended().then_some(()));
    seen.is_some()
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Calls `look` until it sees something or `limit` has passed, by the engine's clock. Returns also
/// when it looked at the clock last, which is `now` if it did not.
pub(super) fn watch<T>(
    mut now: u64,
    limit: u64,
    mut look: impl FnMut() -> Option<T>,
) -> (Option<T>, u64) {
    loop {
        for _ in 0..LOOKS {
            if let seen @ Some(_) = look() {
                return (seen, now);
            }
            spin_loop();
        }
        now = clock::now();
        if now >= limit {
            return (None, now);
        }
    }
}

/// Returns the number of cores that this process may use. The system is asked once, because that
/// takes long. Two threads may both ask, which is better than a lock that a forked child could find
/// held.
fn cores() -> usize {
    /// The number of cores; 0 if the system was not asked yet.
    static CORES: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: nothing but the answer is handed over.
    match CORES.load(Ordering::Relaxed) {
        0 => {
            // Without an answer no thread spins.
            let cores = crate::machine::usable_cores().unwrap_or(1).max(1);
            CORES.store(cores, Ordering::Relaxed);
            cores
        }
        cores => cores,
    }
}
