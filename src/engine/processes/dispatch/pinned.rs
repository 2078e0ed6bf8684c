//! Batches that one worker alone may run, for [`Pool::broadcast`](crate::Pool::broadcast). They
//! wait in a list of their own until that worker can take more, and go back there if it dies.

use super::{Batch, DEPTH, Dispatch};
use crate::engine::processes::context::Context;
use crate::error::TaskError;
use crate::os::clock;

impl Dispatch {
    /// Takes a new task that this worker alone may run.
    pub(in crate::engine::processes) fn place_at(
        &mut self,
        context: &Context,
        worker: usize,
        mut batch: Batch,
    ) {
        self.outstanding += 1;
        batch.only = Some(worker);
        batch.queued = Some(if context.settings.timeline {
            clock::now()
        } else {
            clock::last_tick()
        });
        if self.resting.get(worker) == Some(&true) {
            self.resting[worker] = false;
            context.alarm.ring();
        }
        self.pinned.push(batch);
        self.pump(context);
    }

    /// Gives batches to the workers that they are for, as far as those can take more. Returns true
    /// if anything moved.
    pub(super) fn give_pinned(&mut self, context: &Context) -> bool {
        let mut has_moved = false;
        for batch in std::mem::take(&mut self.pinned) {
            let results = &batch.task.results;
            if results.is_cancelled() || !results.is_wanted(batch.first) {
                // No caller wants it any more.
                self.fail_unwanted(batch);
                has_moved = true;
                continue;
            }
            let Some(worker) = batch.only.filter(|&worker| worker < self.target) else {
                // The pool has got smaller.
                self.fail(batch, &TaskError::Cancelled {});
                has_moved = true;
                continue;
            };
            if self.has_room(worker) {
                self.give(context, worker, batch);
                has_moved = true;
            } else {
                self.pinned.push(batch);
            }
        }
        has_moved
    }

    /// Returns whether this worker can be given one more batch.
    fn has_room(&self, worker: usize) -> bool {
        let worker = self.workers.get(worker).and_then(Option::as_ref);
        worker.is_some_and(|worker| {
            worker.is_open()
                && (worker.outbox.is_empty() || worker.in_flight.is_empty())
                && worker.in_flight.len() < DEPTH
        })
    }

    /// Fails what waits for a worker that cannot be started.
    pub(in crate::engine::processes) fn fail_pinned(&mut self, worker: usize, error: &TaskError) {
        let (failed, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pinned)
            .into_iter()
            .partition(|batch| batch.only == Some(worker));
        self.pinned = kept;
        for batch in failed {
            self.fail(batch, error);
        }
    }
}
