//! [`Counts`]: what each worker of a pool has done.
//!
//! A worker counts in words of its own, in cache lines that no other thread writes, before a task
//! counts as ended. So a caller that has a result sees the task in the statistics. Nothing is
//! counted by the thread that gives a task out, except that a task which finds all workers at work
//! is stamped with the time.
//!
//! A task that is stopped while it runs is an exception: its caller has the error at once, and it
//! counts when its thread has come to its end.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use crate::engine::clock;
use crate::engine::stats::{Failures, WorkerStats};
use crate::engine::timeline::{Recorder, Timeline, TimelineEvent};
use crate::error::TaskError;

thread_local! {
    /// The counts of the worker that this thread is.
    static HERE: OnceCell<Arc<Counts>> = const { OnceCell::new() };
    /// How many items of the chunk that this thread runs were late: see [`before_late`].
    static LATE: Cell<usize> = const { Cell::new(0) };
}

/// Marks the word [`Numbers::idle`] of a worker that sleeps.
const SLEEPS: u64 = 1 << 63;

/// What one worker has done. It alone writes the numbers.
pub(super) struct Counts {
    numbers: CachePadded<Numbers>,
    worker: usize,
    records: Option<Arc<Records>>,
}

struct Numbers {
    /// When the worker began and ended, in nanoseconds of the clock; 0 if it has not.
    began: AtomicU64,
    ended: AtomicU64,
    tasks: AtomicU64,
    panicked: AtomicU64,
    timed_out: AtomicU64,
    /// Tasks that were stopped while they ran.
    cancelled: AtomicU64,
    queue_wait: AtomicU64,
    /// How long the worker has had nothing to do, in nanoseconds. While it sleeps: since when it
    /// would have, had it done so all in one, with [`SLEEPS`]. It is one word, so that a reader
    /// sees both or neither.
    idle: AtomicU64,
}

/// The record of what ran where and when, if one is kept.
pub(super) struct Records(Mutex<Recorder>);

/// What a pool counts, for all workers.
pub(super) struct PoolCounts {
    start: u64,
    workers: Box<[Arc<Counts>]>,
    /// Tasks that were cancelled before a worker had begun with them.
    cancelled: AtomicU64,
    /// Attempts that failed and were followed by another.
    retried: AtomicU64,
    records: Option<Arc<Records>>,
}

/// The stamp of a task that has not waited for a worker, or whose waiting is not measured.
pub(super) const NOT_QUEUED: u64 = 0;

impl PoolCounts {
    pub(super) fn new(workers: usize, has_timeline: bool) -> Self {
        let start = clock::now();
        let records = has_timeline.then(|| Arc::new(Records(Mutex::new(Recorder::new(start)))));
        let counts = |worker| {
            Arc::new(Counts {
                numbers: CachePadded::new(Numbers {
                    began: AtomicU64::new(0),
                    ended: AtomicU64::new(0),
                    tasks: AtomicU64::new(0),
                    panicked: AtomicU64::new(0),
                    timed_out: AtomicU64::new(0),
                    cancelled: AtomicU64::new(0),
                    queue_wait: AtomicU64::new(0),
                    idle: AtomicU64::new(0),
                }),
                worker,
                records: records.clone(),
            })
        };
        Self {
            start,
            workers: (0..workers).map(counts).collect(),
            cancelled: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            records,
        }
    }

    /// Returns the stamp of a task that is about to be given out. `is_waiting` says whether all
    /// workers are at work.
    #[inline]
    pub(super) fn stamp(&self, is_waiting: impl FnOnce() -> bool) -> u64 {
        if self.records.is_some() {
            return clock::now();
        }
        if is_waiting() {
            return clock::last_tick();
        }
        NOT_QUEUED
    }

    /// Makes this thread count as the worker `me`, as long as it lives, and returns its counts.
    pub(super) fn begin(&self, me: usize) -> &Counts {
        let counts = &self.workers[me];
        // Fails only if this very thread has done it before.
        let _ = HERE.with(|here| here.set(Arc::clone(counts)));
        counts.numbers.began.store(clock::now(), Ordering::Relaxed);
        counts
    }

    /// Counts tasks that no worker had begun with.
    #[cold]
    pub(super) fn cancelled(&self, tasks: usize) {
        self.cancelled.fetch_add(tasks as u64, Ordering::Relaxed);
    }

    pub(super) fn count_cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Counts an attempt that failed and is followed by another.
    #[cold]
    pub(super) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self) -> Duration {
        Duration::from_nanos(clock::now().saturating_sub(self.start))
    }

    pub(super) fn workers(&self) -> Vec<WorkerStats> {
        let (now, peak_memory) = (clock::now(), clock::own_peak_memory());
        let stats = |counts: &Arc<Counts>| WorkerStats {
            peak_memory,
            ..counts.stats(now)
        };
        self.workers.iter().map(stats).collect()
    }

    pub(super) fn timeline(&self, name: &str) -> Timeline {
        match &self.records {
            Some(records) => records.0.lock().snapshot(name),
            None => Recorder::new(self.start).snapshot(name),
        }
    }
}

/// Hands the counts of the worker that this thread is to `count`, if it is one.
#[inline]
pub(super) fn here(count: impl FnOnce(&Counts)) {
    HERE.with(|here| {
        if let Some(counts) = here.get() {
            count(counts);
        }
    });
}

/// Returns when a task begins that was given out with this stamp, if that is measured.
#[inline]
pub(super) fn begin(queued: u64) -> Option<u64> {
    (queued != NOT_QUEUED).then(|| begin_queued(queued))
}

#[cold]
fn begin_queued(queued: u64) -> u64 {
    let mut began = 0;
    here(|counts| {
        began = match counts.records {
            Some(_) => clock::now(),
            None => clock::last_tick(),
        };
        add(&counts.numbers.queue_wait, began.saturating_sub(queued));
    });
    began
}

/// Counts `items` tasks that this worker has run together, and that were given out with this stamp
/// and begun then. It must be called before they count as ended.
#[inline]
pub(super) fn end(items: usize, queued: u64, began: Option<u64>) {
    here(|counts| {
        add(&counts.numbers.tasks, items as u64);
        if let Some(began) = began {
            counts.record(items, queued, began);
        }
    });
}

/// Counts the failure of a task that this worker has run.
#[cold]
pub(super) fn failed(error: &TaskError) {
    here(|counts| match error {
        TaskError::Panicked { .. } => add(&counts.numbers.panicked, 1),
        TaskError::TimedOut { .. } | TaskError::DeadlineExceeded {} => {
            add(&counts.numbers.timed_out, 1);
        }
        TaskError::Cancelled {} => add(&counts.numbers.cancelled, 1),
        _ => {}
    });
}

/// Notes that an item of the chunk that this thread runs was late for its call.
#[cold]
pub(super) fn was_late() {
    LATE.set(LATE.get() + 1);
}

/// Begins to count the items that are late in a chunk. Returns the count of the chunk below it on
/// this thread, for [`after_late`].
#[cold]
pub(super) fn before_late() -> usize {
    LATE.replace(0)
}

/// Returns how many items of the chunk were late, and goes back to the count of the one below it.
#[cold]
pub(super) fn after_late(below: usize) -> usize {
    LATE.replace(below)
}

/// Adds to a number that this thread alone writes.
#[inline]
fn add(number: &AtomicU64, more: u64) {
    let sum = number.load(Ordering::Relaxed).wrapping_add(more);
    number.store(sum, Ordering::Relaxed);
}

impl Counts {
    #[cold]
    fn record(&self, items: usize, queued: u64, began: u64) {
        let Some(records) = &self.records else { return };
        let ended = clock::now();
        let mut recorder = records.0.lock();
        let event = TimelineEvent {
            worker: self.worker,
            pid: std::process::id(),
            items,
            queued: recorder.since_start(queued),
            started: recorder.since_start(began),
            ended: recorder.since_start(ended),
            completed: true,
        };
        recorder.record(event);
    }

    /// Returns whether a record is kept of what runs, and of how busy this worker is.
    #[inline]
    pub(super) fn are_recorded(&self) -> bool {
        self.records.is_some()
    }

    /// Adds a time in which this worker has had nothing to do, in nanoseconds.
    pub(super) fn has_rested(&self, time: u64) {
        add(&self.numbers.idle, time);
    }

    /// Notes that this worker has nothing to do until [`has_slept`](Self::has_slept), if that is
    /// measured. `since` is when it looked at the clock last, if it has done nothing since.
    #[inline]
    pub(super) fn falls_asleep(&self, since: Option<u64>) {
        if self.are_recorded() {
            self.note_sleep(since);
        }
    }

    #[cold]
    fn note_sleep(&self, since: Option<u64>) {
        let idle = &self.numbers.idle;
        let before = idle.load(Ordering::Relaxed);
        let since = since.unwrap_or_else(clock::now);
        idle.store(SLEEPS | since.saturating_sub(before), Ordering::Relaxed);
    }

    /// Notes that this worker has been woken, if that is measured.
    #[inline]
    pub(super) fn has_slept(&self) {
        if self.are_recorded() {
            self.note_waking();
        }
    }

    #[cold]
    fn note_waking(&self) {
        let idle = &self.numbers.idle;
        let since = idle.load(Ordering::Relaxed) & !SLEEPS;
        idle.store(clock::now().saturating_sub(since), Ordering::Relaxed);
    }

    /// Notes that this worker has run its last task.
    pub(super) fn has_ended(&self) {
        self.numbers.ended.store(clock::now(), Ordering::Relaxed);
    }

    fn stats(&self, now: u64) -> WorkerStats {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let numbers = &self.numbers;
        let up = match (read(&numbers.began), read(&numbers.ended)) {
            (0, _) => 0,
            (began, 0) => now.saturating_sub(began),
            (began, ended) => ended.saturating_sub(began),
        };
        let idle = match read(&numbers.idle) {
            word if word & SLEEPS == 0 => word,
            word => now.saturating_sub(word & !SLEEPS),
        };
        WorkerStats {
            tasks: read(&numbers.tasks),
            failures: Failures {
                panicked: read(&numbers.panicked),
                timed_out: read(&numbers.timed_out),
                cancelled: read(&numbers.cancelled),
                ..Failures::default()
            },
            uptime: Duration::from_nanos(up),
            busy_time: match self.records {
                Some(_) => Duration::from_nanos(up.saturating_sub(idle)),
                None => Duration::ZERO,
            },
            queue_wait: Duration::from_nanos(read(&numbers.queue_wait)),
            ..WorkerStats::default()
        }
    }
}
