//! Stopping what has been given out: tasks that no caller wants, that have run too long, or that
//! are cancelled; and workers that are to leave.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::sight::Sight;
use super::worker_slot::{InFlight, KillReason, Worker};
use super::{Batch, Dispatch, State};
use crate::engine::processes::context::Context;
use crate::engine::processes::task::Results;
use crate::error::{PoolError, TaskError};
use crate::os;
use crate::os::clock::nanoseconds;

/// How much longer than its limit a task may lie at the head of a lane without being started, if
/// its worker is stopped.
const BEGINNING: Duration = Duration::from_millis(50);
/// The same if the kernel does not say that the worker is stopped: a busy machine may need long to
/// let it run, and the clock is to be that of the item. This limit also ends a worker in a frozen
/// container.
const SLOW_BEGINNING: Duration = Duration::from_secs(1);

impl Dispatch {
    /// Takes back what no caller wants any more. A worker that has begun with it starts no more of
    /// its items.
    pub(in crate::engine::processes) fn drop_unwanted(&mut self, context: &Context) {
        self.has_unwanted = false;
        let is_unwanted = |batch: &Batch| !batch.task.results.is_wanted(batch.first);
        let (unwanted, queue): (VecDeque<_>, _) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(is_unwanted);
        self.queue = queue;
        let paused = self.paused.take_if(is_unwanted);
        for batch in unwanted.into_iter().chain(paused) {
            self.fail_unwanted(batch);
        }
        let is_unwanted = |results: &dyn Results, next: u32| !results.is_wanted(next);
        self.take_back_if(context, is_unwanted, Self::fail_unwanted);
        for worker in self.workers.iter_mut().flatten() {
            for position in 0..worker.in_flight.len() {
                let entry = &worker.in_flight[position];
                // What could not be taken back has begun.
                if !entry.batch.task.results.is_wanted(entry.expected.next) {
                    worker.cut(position);
                }
            }
        }
    }

    /// Cancels everything that has not begun.
    pub(in crate::engine::processes) fn cancel_queued(&mut self, context: &Context) {
        let pinned = std::mem::take(&mut self.pinned);
        let paused = self.paused.take_if(|_| true);
        let queue = std::mem::take(&mut self.queue).into_iter();
        for batch in queue.chain(pinned).chain(paused) {
            self.fail(batch, &TaskError::Cancelled {});
        }
        let cancel = |dispatch: &mut Self, batch| dispatch.fail(batch, &TaskError::Cancelled {});
        self.take_back_if(context, |_, _| true, cancel);
    }

    /// Takes back the tasks whose results and next item pass `is_it`, as far as no worker has begun
    /// with them, and has `fail` end them.
    fn take_back_if(
        &mut self,
        context: &Context,
        is_it: impl Fn(&dyn Results, u32) -> bool,
        fail: impl Fn(&mut Self, Batch),
    ) {
        for number in 0..self.workers.len() {
            let Some(worker) = &mut self.workers[number] else {
                continue;
            };
            let mut batches = Vec::new();
            for position in (0..worker.in_flight.len()).rev() {
                let entry = &worker.in_flight[position];
                if is_it(&entry.batch.task.results, entry.expected.next) {
                    batches.extend(worker.take_back(position));
                }
            }
            if !batches.is_empty() && worker.in_flight.is_empty() {
                self.runs_dry(context, number);
            }
            for batch in batches {
                fail(self, batch);
            }
        }
    }

    /// Finds the task that lies at `address`: returns the lane that it is in, and its position
    /// there.
    fn find(&self, address: *const ()) -> Option<(usize, usize)> {
        self.workers
            .iter()
            .enumerate()
            .find_map(|(number, worker)| {
                let mut entries = worker.as_ref()?.in_flight.iter();
                let position = entries.position(|entry| entry.batch.task.address() == address)?;
                Some((number, position))
            })
    }

    /// Returns whether a worker has begun with the task that lies at `address`: it cannot be taken
    /// back any more. If it is cut before its first item starts, it never runs.
    pub(in crate::engine::processes) fn has_begun(&self, address: *const ()) -> bool {
        self.is_in_lane(address, Worker::has_begun)
    }

    /// Returns whether the first item of the task that lies at `address` has started.
    pub(in crate::engine::processes) fn is_running(&self, address: *const ()) -> bool {
        self.is_in_lane(address, Worker::has_started)
    }

    /// Returns whether the task that lies at `address` is in a lane, and its worker passes `is_it`
    /// there.
    fn is_in_lane(&self, address: *const (), is_it: impl Fn(&Worker, &InFlight) -> bool) -> bool {
        self.find(address).is_some_and(|(number, position)| {
            let worker = self.workers[number].as_ref();
            worker.is_some_and(|worker| is_it(worker, &worker.in_flight[position]))
        })
    }

    /// Takes the task that lies at `address`, and has not ended, from the workers, and promises
    /// that it will not run: the caller ends it. Returns false if a worker has begun with it.
    pub(in crate::engine::processes) fn withdraw(
        &mut self,
        context: &Context,
        (address, items): (*const (), u32),
        is_told: bool,
    ) -> bool {
        if let Some((number, position)) = self.find(address)
            && let Some(worker) = &mut self.workers[number]
        {
            // The worker has claimed it in the meantime.
            if worker.take_back(position).is_none() {
                return false;
            }
            if worker.in_flight.is_empty() {
                self.runs_dry(context, number);
            }
        }
        // If it is in no lane, it is in the queue, and `refill` will skip it there; or in a pause.
        let is_it = |batch: &Batch| batch.task.address() == address;
        let paused = self.paused.take_if(is_it);
        self.cancelled += u64::from(items);
        self.told -= usize::from(is_told);
        self.count_down(1);
        drop(paused);
        true
    }

    /// Kills the worker that has begun with the task that lies at `address`, so that the task ends
    /// with this error. Returns false if no worker has begun with it.
    pub(in crate::engine::processes) fn kill(
        &mut self,
        address: *const (),
        error: &TaskError,
    ) -> bool {
        // If the task has not begun, the worker runs another one in front of it, which must not be
        // killed.
        if let Some((number, position)) = self.find(address)
            && let Some(worker) = &mut self.workers[number]
            && worker.kill_reason.is_none()
            && worker.has_begun(&worker.in_flight[position])
        {
            worker.kill_for(KillReason::Stopped {
                task: worker.in_flight[position].expected.task,
                item: None,
                error: error.clone(),
            });
            self.idle.retain(|&idle| idle != number);
            return true;
        }
        false
    }

    /// Kills the workers that have begun with tasks whose results pass `is_it`, so that those tasks
    /// end with this error.
    pub(in crate::engine::processes) fn kill_if(
        &mut self,
        error: &TaskError,
        is_it: impl Fn(&dyn Results) -> bool,
    ) {
        let mut begun = Vec::new();
        for worker in self.workers.iter().flatten() {
            let entries = worker.in_flight.iter();
            let is_begun = |entry: &&InFlight| worker.has_begun(entry);
            // A worker that has ended its task has begun with the next one.
            let last = entries.take_while(is_begun).last();
            let ours = last.filter(|entry| is_it(&entry.batch.task.results));
            begun.extend(ours.map(|entry| entry.batch.task.address()));
        }
        for address in begun {
            self.kill(address, error);
        }
    }

    /// Has the supervisor look for tasks that have run too long at `at` at the latest, in
    /// nanoseconds of the system's clock.
    pub(super) fn look_at(&mut self, context: &Context, at: u64) {
        if self.next_look.is_none_or(|next| next > at) {
            self.next_look = Some(at);
            context.alarm.ring();
        }
    }

    /// Kills the workers of items that have run for longer than their limit, or could have. Returns
    /// how long until the next look. `now` is the time by the system's clock.
    pub(in crate::engine::processes) fn stop_overdue(&mut self, now: u64) -> Option<Duration> {
        self.next_look?;
        let mut next = None::<u64>;
        for worker in self.workers.iter_mut().flatten() {
            if worker.kill_reason.is_some() {
                continue;
            }
            let progress = worker.receiver.header().progress();
            let sight = worker.look_at_head(now);
            let pid = worker.started.child.pid();
            let mut overdue = None;
            for (position, entry) in worker.in_flight.iter_mut().enumerate() {
                let Some(limit) = entry.batch.task.limit() else {
                    continue;
                };
                let running = progress
                    .running()
                    .filter(|_| progress.task == entry.expected.task);
                let at = if let Some(item) = running {
                    // The worker says since when the item runs, but it may be corrupted. So the
                    // parent's own looks limit what it can say: an item that no look has seen
                    // before cannot count from later than now, and one that a look has seen runs at
                    // least since then.
                    let seen = match entry.seen {
                        Some((before, since)) if before == item => since,
                        _ => now,
                    };
                    let told = worker.receiver.header().started_at(progress);
                    let since = told.unwrap_or(now).min(seen);
                    entry.seen = Some((item, since));
                    let at = since.saturating_add(nanoseconds(limit));
                    if at <= now {
                        let error = entry.batch.task.timed_out(limit);
                        overdue = Some((entry.expected.task, item, error));
                        break;
                    }
                    at
                } else if position > 0 {
                    // The item may start at any moment.
                    now.saturating_add(nanoseconds(limit))
                } else if let Some(sight) = sight.filter(Sight::can_begin) {
                    // Nothing is before the task, and its worker does not start it: the worker is
                    // stopped, or between two items.
                    let end = |more: Duration| {
                        let limit_and_more = nanoseconds(limit.saturating_add(more));
                        sight.since.saturating_add(limit_and_more)
                    };
                    let at = end(BEGINNING);
                    let is_over =
                        at <= now && (end(SLOW_BEGINNING) <= now || os::state::is_stopped(pid));
                    if is_over {
                        let item = if progress.task == entry.expected.task {
                            progress.step / 2
                        } else {
                            entry.expected.next
                        };
                        let error = entry.batch.task.timed_out(limit);
                        overdue = Some((entry.expected.task, item, error));
                        break;
                    }
                    if at <= now {
                        now.saturating_add(nanoseconds(BEGINNING))
                    } else {
                        at
                    }
                } else {
                    // The worker is starting.
                    now.saturating_add(nanoseconds(limit.min(BEGINNING)))
                };
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            if let Some((task, item, error)) = overdue {
                worker.kill_for(KillReason::Stopped {
                    task,
                    item: Some(item),
                    error,
                });
            }
        }
        self.next_look = next;
        next.map(|next| Duration::from_nanos(next.saturating_sub(now)))
    }

    /// Lets workers go that have had nothing to do for long. Returns how long until the next one
    /// may have to go.
    pub(in crate::engine::processes) fn let_idle_go(
        &mut self,
        context: &Context,
        now: Instant,
    ) -> Option<Duration> {
        let time = context.settings.idle_timeout?;
        // Workers may have ended their tasks since the last look at their lanes.
        self.pump(context);
        let is_built = context.is_built.load(Ordering::Acquire);
        let soon = time.max(Duration::from_millis(1));
        let mut next = (self.busy > 0).then_some(soon);
        for number in self.idle.clone() {
            let Some(worker) = self.workers[number].as_mut() else {
                continue;
            };
            // A worker that runs its initialiser is not idle. And the thread that builds the pool
            // waits to see all workers ready at once.
            let may_leave = is_built && worker.is_ready();
            if !may_leave {
                worker.idle_since = Some(now);
            }
            let Some(since) = worker.idle_since else {
                continue;
            };
            let left = time.saturating_sub(now.saturating_duration_since(since));
            if may_leave && left.is_zero() && self.queue.is_empty() {
                self.resting[number] = true;
                self.let_go(number);
            } else {
                // A worker that has something else to do first is looked at again soon.
                let left = left.max(Duration::from_millis(1));
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        self.watches_idle = next.is_some();
        next
    }

    /// Lets a worker end when it has done what it has.
    pub(in crate::engine::processes) fn let_go(&mut self, number: usize) {
        self.idle.retain(|&idle| idle != number);
        if let Some(worker) = &mut self.workers[number] {
            worker.leave();
        }
    }

    /// Sets the number of workers that there shall be.
    pub(in crate::engine::processes) fn resize(
        &mut self,
        context: &Context,
        workers: usize,
    ) -> Result<(), PoolError> {
        match &self.state {
            State::Open => {}
            State::Closing { .. } => return Err(PoolError::Closed),
            State::Ended(reason) => return Err(reason.clone()),
        }
        self.target = workers;
        // This happens under the lock. Otherwise two threads that resize at once could leave the
        // pool with another number of workers than it reports.
        context.workers.store(workers, Ordering::Relaxed);
        for number in workers..self.workers.len() {
            self.let_go(number);
        }
        if workers > self.workers.len() {
            self.workers.resize_with(workers, || None);
        }
        self.resting.clear();
        self.resting.resize(self.workers.len(), false);
        context.alarm.ring();
        Ok(())
    }
}
