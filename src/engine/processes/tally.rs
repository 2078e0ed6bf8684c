//! The counts that the parent keeps for the place of each worker.

use std::time::Duration;

use super::dispatch::{Batch, Worker};
use crate::engine::stats::{Failures, WorkerStats};
use crate::os::clock;

/// What has been done in the place of a worker, without what the present worker itself counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The number of workers that were started here.
    pub(super) hired: u64,
    pub(super) tasks: u64,
    pub(super) failures: Failures,
    queue_wait: u64,
    /// What the workers that have ended here have done.
    past: WorkerStats,
}

impl Tally {
    /// Counts how long a batch has waited, when it is the next that the worker here runs.
    pub(super) fn waited(&mut self, batch: &Batch) {
        if let Some(queued) = batch.queued {
            self.queue_wait += clock::last_tick().saturating_sub(queued);
        }
    }

    /// Adds what the worker here has done, when it has ended.
    pub(super) fn reclaim(&mut self, worker: &Worker) {
        self.past.add_worker(worker);
    }

    /// Returns everything together. `worker` is the one that is here now.
    pub(super) fn stats(&self, worker: Option<&Worker>) -> WorkerStats {
        let mut stats = self.past.clone();
        stats.tasks = self.tasks;
        stats.failures.add(&self.failures);
        stats.respawns = self.hired.saturating_sub(1);
        stats.queue_wait = Duration::from_nanos(self.queue_wait);
        if let Some(worker) = worker {
            stats.add_worker(worker);
            stats.pid = Some(worker.started.child.pid());
        }
        stats
    }
}

impl WorkerStats {
    /// Adds what one worker has done.
    fn add_worker(&mut self, worker: &Worker) {
        let up = clock::now().saturating_sub(worker.started.since);
        // The worker itself counts this. The number may be anything if the worker is corrupted.
        let idle = worker.idle_time().min(up);
        self.uptime += Duration::from_nanos(up);
        self.busy_time += Duration::from_nanos(up - idle);
        let received = worker.received();
        self.bytes_sent += worker.bytes_sent;
        self.bytes_received += received.bytes;
        self.failures.panicked += received.panicked;
        self.failures.encode += received.encode;
        self.failures.decode += received.decode;
        self.failures.timed_out += received.timed_out;
        let memory = worker.started.child.peak_memory();
        self.peak_memory = self.peak_memory.max(memory.unwrap_or(0));
    }
}
