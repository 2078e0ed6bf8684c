//! What happens to the tasks of a worker that has died, and the end of the pool.

use super::worker_slot::{InFlight, KillReason};
use super::{Batch, Dispatch, State, Worker};
use crate::engine::processes::context::Context;
use crate::error::{Death, PoolError, TaskError};
use crate::lane::Fate;
use crate::lane::message::StopsAt;

/// The number of false starts after which what comes before the start of an item (such as a large
/// argument) is what kills workers.
const MOST_FALSE_STARTS: u32 = 16;

/// What the item at which a worker died has to do with its death.
#[derive(Clone, Debug)]
enum Verdict {
    /// The worker died of the item, as far as can be told.
    Guilty(Death),
    /// The worker was killed to end this very item.
    Condemned(TaskError),
    /// The worker was killed to end something else.
    Innocent,
}

impl Dispatch {
    /// Reclaims what a dead worker had: fails the one item that it had started, and gives the rest
    /// to others. Returns whether it had started one.
    pub(in crate::engine::processes) fn reclaim(
        &mut self,
        context: &Context,
        number: usize,
        death: Death,
    ) -> bool {
        self.drain(context, number);
        let Some(mut worker) = self.workers[number].take() else {
            return false;
        };
        self.idle.retain(|&idle| idle != number);
        self.tallies[number].reclaim(&worker);
        if worker.in_flight.is_empty() {
            return false;
        }
        self.busy -= 1;
        if context.settings.timeline
            && let Some(front) = worker.in_flight.front()
            && worker.has_begun(front)
        {
            let pid = worker.started.child.pid();
            let event = front.event(&self.recorder, number, pid, None);
            self.recorder.record(event);
        }
        let entries = std::mem::take(&mut worker.in_flight);
        let mut had_started = false;
        // This goes from the last to the first, because each goes to the front of the queue.
        for (position, entry) in entries.into_iter().enumerate().rev() {
            had_started |= self.close_books(context, number, &worker, entry, position == 0, death);
        }
        // The dead worker may not be replaced, if it was to leave, and all others may rest.
        self.call_back_for_queue(context);
        had_started
    }

    /// Settles one batch of a dead worker: takes its last answers, fails the item that the worker
    /// died of, if there is one, and queues the rest again. Returns whether an item had started.
    fn close_books(
        &mut self,
        context: &Context,
        number: usize,
        worker: &Worker,
        mut entry: InFlight,
        is_front: bool,
        death: Death,
    ) -> bool {
        let next = entry.expected.next;
        let has_begun = worker.has_begun(&entry);
        // The outcome of its call may be certain with what follows.
        self.has_unwanted |= entry.batch.task.stops_at != StopsAt::Nothing;
        let (mut fate, uncounted) = if has_begun && worker.is_sane() {
            if entry.batch.task.retry().is_on() {
                entry.take_unpublished(&worker.receiver)
            } else {
                let results = &entry.batch.task.results;
                let expected = &mut entry.expected;
                (worker.receiver.take_unpublished(expected, results), 0)
            }
        } else {
            // Either the worker has not begun with the batch, or it is corrupted. What a corrupted
            // worker did after its corruption was found cannot be known. So the next item of a
            // batch that it has begun counts as started.
            let fate = Fate {
                next: entry.expected.next,
                started: has_begun,
            };
            (Some(fate), 0)
        };
        self.tallies[number].tasks += u64::from(entry.expected.next - next) - uncounted;
        if let Some(item) = entry.again {
            let is_ended = matches!(&worker.kill_reason,
                Some(KillReason::Stopped { task, item: None, .. }) if *task == entry.expected.task);
            // The worker has answered that this item failed, and was to start no other.
            if !is_ended {
                self.try_again(context, entry.batch.again(item));
                return false;
            }
            fate = Some(Fate {
                next: item,
                started: false,
            });
        }
        let Some(fate) = fate else {
            // The worker had answered every item of the batch. Only the message that ends the batch
            // was missing.
            let end = entry.expected.end;
            self.requeue(entry.batch.from(end));
            return false;
        };
        let mut is_whole = false;
        let verdict = match &worker.kill_reason {
            Some(KillReason::Corrupted(reason)) => Verdict::Guilty(Death::Corrupted(*reason)),
            Some(KillReason::Stopped { task, item, error }) => {
                // An item may be condemned because its worker did not start it.
                let is_it =
                    *task == entry.expected.task && item.is_none_or(|item| item == fate.next);
                if is_it {
                    is_whole = item.is_none();
                    Verdict::Condemned(error.clone())
                } else if let Some(reason) = &worker.corrupted {
                    // The worker was corrupted too: what it had begun may have run.
                    Verdict::Guilty(Death::Corrupted(*reason))
                } else {
                    Verdict::Innocent
                }
            }
            Some(KillReason::Lingers) => Verdict::Innocent,
            // The pool has not killed the worker: it died at this item, or another process killed
            // it.
            None => Verdict::Guilty(death),
        };
        let Fate { next, started } = fate;
        let mut batch = entry.batch.from(next);
        let mut is_again = false;
        let error = match verdict {
            // The item may be tried again: the worker was killed for something else.
            Verdict::Innocent => None,
            Verdict::Condemned(error) => {
                // The worker has had its time for the item, also if it did not start it.
                batch.attempts += 1;
                is_again = batch.task.policy().allows_after(&error, batch.attempts);
                (!is_again).then(|| error.with_attempts(batch.attempts))
            }
            Verdict::Guilty(death) => {
                batch.attempts += u32::from(started);
                batch.false_starts += u32::from(is_front && !started && worker.is_ready());
                let is_lost = batch.false_starts >= MOST_FALSE_STARTS;
                if started || is_lost {
                    let error = worker.attribute(&batch, death, is_lost);
                    is_again = error.is_none();
                    error
                } else {
                    None
                }
            }
        };
        if is_again {
            self.try_again(context, batch);
            return started;
        }
        if let Some(error) = error {
            self.tallies[number].tasks += 1;
            self.tallies[number].failures.count(&error);
            batch.task.results.failed(next, error.clone());
            batch = batch.from(next + 1);
            if is_whole && batch.first < batch.task.count {
                // No caller wants the items behind it either.
                self.fail(batch, &error);
                return started;
            }
        }
        self.requeue(batch);
        started
    }

    /// Puts what is left of a batch at the front of the queue. If nothing is left, or no caller
    /// wants it, ends its task.
    pub(super) fn requeue(&mut self, batch: Batch) {
        if batch.first < batch.task.count {
            if batch.task.results.is_wanted(batch.first) {
                self.put_back(batch);
            } else {
                self.fail_unwanted(batch);
            }
        } else {
            self.told -= usize::from(batch.task.results.is_told());
            batch.task.end();
            self.count_down(1);
        }
    }

    /// Ends a batch that no worker has any more, and that no caller wants.
    pub(super) fn fail_unwanted(&mut self, batch: Batch) {
        let error = batch.task.results.unwanted();
        self.fail(batch, &error);
    }

    /// Ends a batch that no worker has any more, with an error for each of its items, unless it was
    /// cancelled and so has ended already.
    pub(super) fn fail(&mut self, batch: Batch, error: &TaskError) {
        if batch.task.results.is_cancelled() {
            return;
        }
        if matches!(
            error,
            TaskError::Cancelled {} | TaskError::DeadlineExceeded {}
        ) {
            self.cancelled += u64::from(batch.task.count - batch.first);
        }
        self.told -= usize::from(batch.task.results.is_told());
        batch.fail(error);
        self.count_down(1);
    }

    /// Ends the pool: everything that has not ended fails with `error`, and what comes later with
    /// `reason`.
    ///
    /// Returns what the pool has of its workers. To be dropped when they have been killed: with it
    /// their life lines close, by which they die, and what they have started can be found by its
    /// parents only while they live.
    #[must_use = "the workers die when it is dropped"]
    pub(in crate::engine::processes) fn end(
        &mut self,
        reason: PoolError,
        error: &TaskError,
    ) -> impl Sized + use<> {
        self.state = State::Ended(reason);
        let is_cancelled = matches!(error, TaskError::Cancelled { .. });
        let (mut batches, mut begun) = (Vec::new(), 0);
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            let tally = &mut self.tallies[number];
            tally.reclaim(worker);
            for entry in std::mem::take(&mut worker.in_flight) {
                let next = entry.expected.next;
                // What has already ended as cancelled is not counted again below.
                let is_open = next < entry.expected.end && !entry.batch.task.results.is_cancelled();
                if is_cancelled && is_open && worker.has_begun(&entry) {
                    // The worker has begun with this item, or is about to.
                    tally.tasks += 1;
                    tally.failures.count(error);
                    begun += 1;
                }
                batches.push(entry.batch.from(next));
            }
            worker.outbox.clear();
        }
        batches.extend(self.queue.drain(..));
        batches.append(&mut self.pinned);
        batches.append(&mut self.paused.take_if(|_| true));
        for batch in batches {
            self.fail(batch, error);
        }
        // The items that a worker had begun are counted apart from those that no worker had begun.
        self.cancelled -= begun;
        let workers = std::mem::take(&mut self.workers);
        self.idle.clear();
        self.busy = 0;
        self.all_ended.raise();
        workers
    }
}
