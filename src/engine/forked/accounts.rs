//! [`Accounts`]: what the children of a pool have done, by their indices.
//!
//! The parent counts, when it takes answers and when a child has ended. A fork takes far longer
//! than the lock that is held for that.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::stats::WorkerStats;
use crate::engine::timeline::{Recorder, Timeline, TimelineEvent};
use crate::error::TaskError;
use crate::lane::Received;
use crate::os::clock;

/// What the children of a pool have done.
pub(super) struct Accounts {
    /// When the pool was made, by the system's clock.
    start: u64,
    /// As many as there were children at once.
    places: Mutex<Vec<Account>>,
    /// Items that no child had begun with when the pool was shut down.
    cancelled: AtomicU64,
    /// Attempts that failed and were followed by another.
    retried: AtomicU64,
    recorder: Option<Mutex<Recorder>>,
}

/// What the children with one index have done.
#[derive(Default)]
struct Account {
    /// How many children were started.
    hired: u64,
    stats: WorkerStats,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

impl Accounts {
    pub(super) fn new(has_timeline: bool) -> Self {
        let start = clock::now();
        Self {
            start,
            places: Mutex::default(),
            cancelled: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            recorder: has_timeline.then(|| Mutex::new(Recorder::new(start))),
        }
    }

    /// Returns whether children are to say when they began with a task and ended it.
    pub(super) fn has_timeline(&self) -> bool {
        self.recorder.is_some()
    }

    /// Keeps parents from counting, as long as the returned value lives.
    #[cfg(all(test, not(loom)))]
    pub(super) fn hold(&self) -> impl Drop {
        self.places.lock()
    }

    fn at(&self, index: usize, count: impl FnOnce(&mut Account)) {
        let mut places = self.places.lock();
        if places.len() <= index {
            places.resize_with(index + 1, Account::default);
        }
        count(&mut places[index]);
    }

    /// Counts a child that was started.
    pub(super) fn started(&self, index: usize) {
        self.at(index, |account| account.hired += 1);
    }

    /// Counts tasks that have ended.
    pub(super) fn tasks(&self, index: usize, tasks: u64) {
        self.at(index, |account| account.stats.tasks += tasks);
    }

    /// Counts a task that failed though its child has not said so.
    pub(super) fn failed(&self, index: usize, error: &TaskError) {
        self.at(index, |account| account.stats.failures.count(error));
    }

    /// Counts a child that has ended, and what it has said.
    pub(super) fn ended(&self, index: usize, since: u64, received: Received, memory: Option<u64>) {
        let up = Duration::from_nanos(clock::now().saturating_sub(since));
        self.at(index, |Account { stats, .. }| {
            stats.uptime += up;
            stats.busy_time += up;
            stats.bytes_received += received.bytes;
            stats.failures.panicked += received.panicked;
            stats.failures.encode += received.encode;
            stats.failures.decode += received.decode;
            stats.failures.timed_out += received.timed_out;
            stats.peak_memory = stats.peak_memory.max(memory.unwrap_or(0));
        });
    }

    /// Counts items that no child had begun with when the pool was shut down.
    pub(super) fn cancelled(&self, items: usize) {
        self.cancelled.fetch_add(items as u64, Ordering::Relaxed);
    }

    pub(super) fn count_cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Counts an attempt that failed and is followed by another.
    pub(super) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self) -> Duration {
        Duration::from_nanos(clock::now().saturating_sub(self.start))
    }

    /// Returns what has been done in each of `workers` places.
    pub(super) fn workers(&self, workers: usize) -> Vec<WorkerStats> {
        let stats = |account: &Account| WorkerStats {
            respawns: account.hired.saturating_sub(1),
            ..account.stats.clone()
        };
        let mut all: Vec<_> = self.places.lock().iter().map(stats).collect();
        all.resize_with(workers, WorkerStats::default);
        all
    }

    /// Records what a child has run. The times are by the system's clock.
    pub(super) fn record(
        &self,
        (worker, pid): (usize, u32),
        items: usize,
        [queued, started, ended]: [u64; 3],
        completed: bool,
    ) {
        if let Some(recorder) = &self.recorder {
            let mut recorder = recorder.lock();
            let event = TimelineEvent {
                worker,
                pid,
                items,
                queued: recorder.since_start(queued),
                started: recorder.since_start(started),
                ended: recorder.since_start(ended),
                completed,
            };
            recorder.record(event);
        }
    }

    pub(super) fn timeline(&self, name: &str) -> Timeline {
        match &self.recorder {
            Some(recorder) => recorder.lock().snapshot(name),
            None => Recorder::new(self.start).snapshot(name),
        }
    }
}
