//! Which worker gets which task, and what the answers do. All of it happens under one lock. It
//! happens on any thread that has a reason: the thread that submits, a thread that waits, the
//! supervisor after a death, and the background thread when there is work and no thread waits.
//!
//! ```text
//!              place              post               cells
//!   submit ──────────▶ queue ──────────▶ in flight ─────────▶ worker
//!                        ▲  requeue, reclaim  │                  │
//!                        └────────────────────┘                  │
//!   TaskFuture, map ◀──────────── results ◀── drain ◀────────────┘
//! ```
//!
//! A task goes straight into the lane of an idle worker, or waits behind others in the lane of a
//! busy one. A few may wait in a lane, so that no worker idles between two tasks; the rest wait in
//! the queue. A task that waits in a lane can still go to another worker: when another worker has
//! nothing to do any more, the parent takes back what has not been begun ([`Dispatch::rebalance`]).

mod again;
mod deaths;
#[cfg(all(test, not(loom)))]
pub(super) mod made_up;
mod pinned;
mod sight;
mod stall;
mod stop;
#[cfg(all(test, not(loom)))]
mod tests;
mod unpublished;
mod worker_slot;

pub(super) use worker_slot::{Batch, Worker};

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::again::Paused;
use self::stall::LaneWatch;
use self::worker_slot::{Body, InFlight, KillReason};
use super::context::Context;
use super::leader::Leadership;
use super::start::Started;
use super::tally::Tally;
use crate::engine::timeline::Recorder;
use crate::error::{Corruption, PoolError};
use crate::future::Signal;
use crate::lane::{
    self,
    message::{Request, StopsAt},
};
use crate::os::clock;

/// The most tasks in a lane, the running one included. More would not keep a worker busier, and
/// would have to be taken back more often.
const DEPTH: usize = 16;

/// The time that workers have to end by themselves when the pool is closed.
pub(super) const LAST_ORDERS: Duration = Duration::from_secs(10);

/// How a pool is to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// All tasks have ended; let the workers end.
    Finish,
    /// Kill the workers, whatever they are doing.
    Kill,
}

pub(super) enum State {
    Open,
    /// The pool takes only tasks of calls that go on; with `cancels`, not even those, because those
    /// calls are cancelled.
    Closing {
        cancels: bool,
    },
    /// The pool has no workers any more, for this reason.
    Ended(PoolError),
}

pub(super) struct Dispatch {
    pub(super) state: State,
    /// The workers by number; `None` between a worker's death and its replacement, and while it
    /// rests.
    pub(super) workers: Vec<Option<Worker>>,
    /// What has been done in each worker's place, without what the present worker itself counts.
    pub(super) tallies: Vec<Tally>,
    /// Items that were cancelled before a worker had begun with them.
    pub(super) cancelled: u64,
    pub(super) recorder: Recorder,
    /// The number of workers that there shall be. Workers with higher numbers leave.
    pub(super) target: usize,
    /// Whether each worker was let go because it had nothing to do for long, until there is work
    /// for it.
    pub(super) resting: Vec<bool>,
    /// What the supervisor is to do next.
    pub(super) order: Option<Order>,
    /// When the supervisor will look for tasks that have run too long, in nanoseconds of the
    /// system's clock.
    next_look: Option<u64>,
    /// Whether the supervisor will look for workers that have had nothing to do for long.
    watches_idle: bool,
    /// The supervisor's watch over lanes whose workers do not begin with what is in them.
    lanes: LaneWatch,
    queue: VecDeque<Batch>,
    /// Whether a call may have its outcome, so that what it has given out is not wanted any more:
    /// [`Dispatch::drop_unwanted`] is due.
    has_unwanted: bool,
    /// Batches that wait for the one worker that may run them.
    pinned: Vec<Batch>,
    /// Batches that are tried again when they are due.
    paused: Paused,
    /// The number of attempts that failed and were followed by another.
    pub(super) retried: u64,
    /// Workers with nothing to do. The one that was busy last is taken first: it may still be
    /// spinning.
    idle: Vec<usize>,
    /// The number of tasks that have not ended.
    pub(super) outstanding: usize,
    /// The number of those tasks of whose end a callback or waker is to be told.
    pub(super) told: usize,
    /// The number of calls over many items that go on.
    pub(super) calls: usize,
    /// Raised when the last task of a pool that closes has ended.
    pub(super) all_ended: Arc<Signal>,
    /// The number of workers with something to do.
    pub(super) busy: usize,
    /// The threads that wait.
    pub(super) leadership: Leadership,
    /// The thread that pumps when no caller waits, once it has been needed.
    pub(super) background: Option<JoinHandle<()>>,
}

impl Dispatch {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            state: State::Open,
            workers: (0..workers).map(|_| None).collect(),
            tallies: Vec::new(),
            cancelled: 0,
            recorder: Recorder::new(clock::now()),
            target: workers,
            resting: vec![false; workers],
            order: None,
            next_look: None,
            watches_idle: false,
            lanes: LaneWatch::default(),
            queue: VecDeque::new(),
            has_unwanted: false,
            pinned: Vec::new(),
            paused: Paused::default(),
            retried: 0,
            idle: Vec::new(),
            outstanding: 0,
            told: 0,
            calls: 0,
            all_ended: Arc::default(),
            busy: 0,
            leadership: Leadership::default(),
            background: None,
        }
    }

    /// Returns whether there is work that moves on only when a thread pumps.
    pub(super) fn has_backlog(&self) -> bool {
        let has_unsent = |worker: &Worker| !worker.outbox.is_empty();
        self.outstanding > self.busy
            || self.told > 0
            || self.has_stalled_batch()
            || self.workers.iter().flatten().any(has_unsent)
    }

    /// Returns whether there shall be a worker with this number now.
    pub(super) fn is_wanted(&self, number: usize) -> bool {
        number < self.target && !self.resting[number]
    }

    /// Returns the first worker that does not take tasks yet, and whether it runs at all.
    pub(super) fn first_not_ready(&self) -> Option<(usize, bool)> {
        let number = self
            .workers
            .iter()
            .position(|worker| !worker.as_ref().is_some_and(Worker::is_ready))?;
        let worker = self.workers[number].as_ref();
        Some((number, worker.is_some_and(Worker::is_up)))
    }

    /// Lets the workers end, because there will be no more tasks.
    pub(super) fn stop_workers(&self) {
        for worker in self.workers.iter().flatten() {
            worker.started.lane.header().stop();
        }
    }

    /// Counts `ended` tasks as ended.
    fn count_down(&mut self, ended: usize) {
        self.outstanding -= ended;
        if ended > 0 {
            self.tell_if_all_ended();
        }
    }

    /// Returns whether nothing is left to do, and no call goes on.
    pub(super) fn has_all_ended(&self) -> bool {
        self.outstanding == 0 && self.calls == 0
    }

    /// Raises `all_ended` if the pool closes and everything has ended.
    pub(super) fn tell_if_all_ended(&self) {
        // In whatever way the pool ends: a thread that closes it may wait while another thread
        // kills it.
        if !matches!(self.state, State::Open) && self.has_all_ended() {
            self.all_ended.raise();
        }
    }

    /// Adds a worker that has just been started. It can be given tasks at once: they lie in its
    /// lane until it reads them.
    pub(super) fn add(&mut self, context: &Context, number: usize, started: Started) {
        let worker = Worker::new(started, &context.settings);
        self.workers[number] = Some(worker);
        if self.tallies.len() < self.workers.len() {
            self.tallies.resize_with(self.workers.len(), Tally::default);
        }
        self.tallies[number].hired += 1;
        self.becomes_idle(context, number);
        if number >= self.target {
            self.let_go(number);
        }
    }

    /// Marks a worker as idle, if it can be given tasks.
    fn becomes_idle(&mut self, context: &Context, number: usize) {
        if let Some(worker) = &mut self.workers[number]
            && worker.is_open()
            && worker.stalled.is_none()
        {
            if context.settings.idle_timeout.is_some() {
                worker.idle_since = Some(Instant::now());
                // The supervisor must look when the time is over. If it looks earlier for another
                // worker, it sees this one too.
                if !self.watches_idle {
                    self.watches_idle = true;
                    context.alarm.ring();
                }
            }
            self.idle.push(number);
        }
    }

    /// Counts a worker whose lane has become empty as no longer busy.
    fn runs_dry(&mut self, context: &Context, number: usize) {
        self.busy -= 1;
        self.becomes_idle(context, number);
    }

    /// Calls back a worker that rests, if there is one.
    fn call_back(&mut self, context: &Context) {
        let resting = self
            .resting
            .iter()
            .take(self.target)
            .position(|&rests| rests);
        if let Some(number) = resting {
            self.resting[number] = false;
            context.alarm.ring();
        }
    }

    /// Calls back a worker that rests, if there is work for it.
    fn call_back_for_queue(&mut self, context: &Context) {
        if !self.queue.is_empty() && self.idle.is_empty() {
            self.call_back(context);
        }
    }

    /// Takes a new task. Returns true if a sleeping worker had to be woken for it.
    pub(super) fn place(&mut self, context: &Context, mut batch: Batch) -> bool {
        self.outstanding += 1;
        if batch.task.retry().is_on() && batch.task.results.is_told() {
            // It must go on, though no caller may wait for it.
            self.told += 1;
        }
        if context.settings.timeline {
            batch.queued = Some(clock::now());
        }
        if self.idle.is_empty() {
            // A worker may have run dry without any thread having looked.
            self.pump(context);
        }
        // The outcome of its call may have become certain while the caller encoded it, or the call
        // may have ended.
        let may_be_unwanted =
            batch.task.stops_at != StopsAt::Nothing || batch.task.limits.ending().is_some();
        if may_be_unwanted && !batch.task.results.is_wanted(batch.first) {
            self.fail_unwanted(batch);
            return false;
        }
        // If all workers are busy, one that rests may help.
        if self.idle.is_empty() {
            self.call_back(context);
        }
        let waits = self.idle.is_empty() || !self.queue.is_empty();
        if waits && batch.queued.is_none() {
            batch.queued = Some(clock::last_tick());
        }
        if self.queue.is_empty()
            && let Some(number) = self.choose()
        {
            return self.give(context, number, batch);
        }
        self.queue.push_back(batch);
        false
    }

    /// Returns the worker that the next batch goes to: an idle one, or else the least busy of those
    /// that can take more. A stalled worker is the last choice.
    fn choose(&self) -> Option<usize> {
        if let Some(&number) = self.idle.last() {
            return Some(number);
        }
        let load = |worker: &Worker| worker.in_flight.len();
        let open = |worker: &&Worker| {
            // A stalled worker without a task may still have the end of a message to come.
            (worker.outbox.is_empty() || worker.in_flight.is_empty())
                && worker.is_open()
                && load(worker) < DEPTH
        };
        let workers = self.workers.iter().enumerate();
        workers
            .filter_map(|(number, worker)| Some((number, worker.as_ref().filter(open)?)))
            .min_by_key(|(_, worker)| (worker.stalled.is_some(), load(worker)))
            .map(|(number, _)| number)
    }

    /// Gives a batch to a worker. Returns true if the worker slept and had to be woken.
    fn give(&mut self, context: &Context, number: usize, batch: Batch) -> bool {
        let Some(worker) = &mut self.workers[number] else {
            // The worker has died and has not been replaced yet.
            self.put_back(batch);
            return false;
        };
        if worker.in_flight.is_empty() {
            self.busy += 1;
            self.idle.retain(|&idle| idle != number);
        }
        // A worker that runs dry may spin as long as there is a core for it besides the other
        // workers and the caller.
        let spin = if self.busy < context.cores {
            context.settings.wait_policy.spin()
        } else {
            Duration::ZERO
        };
        let header = worker.started.lane.header();
        header.set_spin(spin);
        worker.idle_since = None;
        if worker.in_flight.is_empty() {
            self.tallies[number].waited(&batch);
        }
        let limit = batch.task.limit();
        worker.give(batch);
        let woke = worker.started.lane.header().wake_worker();
        if let Some(limit) = limit {
            let now = clock::now();
            worker.comes_to_head(now);
            self.look_at(context, now.saturating_add(clock::nanoseconds(limit)));
        }
        self.lanes.given(context);
        woke
    }

    /// Moves on everything that can move: answers in, tasks out. Returns true if anything moved.
    pub(super) fn pump(&mut self, context: &Context) -> bool {
        let mut moved = false;
        for number in 0..self.workers.len() {
            moved |= self.drain(context, number);
        }
        if self.has_unwanted {
            self.drop_unwanted(context);
            moved = true;
        }
        // These come first: the queue may never be empty.
        if !self.pinned.is_empty() {
            moved |= self.give_pinned(context);
        }
        moved |= self.refill(context);
        moved |= self.rebalance(context);
        // This check is here and not in `rescue`, because every task takes this path.
        if self.lanes.has_stalled {
            moved |= self.rescue(context);
        }
        self.forget_retired(context);
        moved
    }

    /// Takes the answers of one worker, and writes what now has room.
    fn drain(&mut self, context: &Context, number: usize) -> bool {
        let Some(worker) = &mut self.workers[number] else {
            return false;
        };
        let had_work = !worker.in_flight.is_empty();
        let goes_on = worker.stalled.is_some() && worker.goes_on();
        let (mut took, mut ended, mut told) = (false, 0, 0);
        let (mut rest, mut again, mut may_stop) = (Vec::new(), Vec::new(), false);
        while worker.is_sane() && worker.receiver.has_next() {
            took = true;
            let Some(front) = worker.in_flight.front_mut() else {
                // The worker has answered a task that it was not given.
                worker.kill_for(KillReason::Corrupted(Corruption::NotDue));
                break;
            };
            let next = front.expected.next;
            let (taken, uncounted) = if front.batch.task.retry().is_on() {
                front.take(&mut worker.receiver)
            } else {
                let results = &front.batch.task.results;
                (worker.receiver.take(&mut front.expected, results), 0)
            };
            let tally = &mut self.tallies[number];
            tally.tasks += u64::from(front.expected.next - next) - uncounted;
            may_stop |= front.expected.may_stop;
            match taken {
                // There is more to come for this batch.
                Ok(false) => {}
                Ok(true) => {
                    // The worker has answered all that it was given of this batch.
                    let times = worker.receiver.take_times();
                    let Some(entry) = worker.in_flight.pop_front() else {
                        break;
                    };
                    if entry.expected.may_stop {
                        worker.has_ended(entry.expected.task);
                    }
                    if let Some(times) = times {
                        let pid = worker.started.child.pid();
                        let event = entry.event(&self.recorder, number, pid, Some(times));
                        self.recorder.record(event);
                    }
                    if let Some(front) = worker.in_flight.front() {
                        tally.waited(&front.batch);
                        if front.batch.task.limit().is_some() {
                            worker.comes_to_head(clock::now());
                        }
                    }
                    if let Some(item) = entry.again {
                        again.push(entry.batch.again(item));
                    } else if entry.expected.end < entry.batch.task.count {
                        // The worker was given only a part of the batch, because it has a limit of
                        // tasks, or it has left out what is not wanted. The rest goes to another
                        // worker, or ends.
                        rest.push(entry.batch.from(entry.expected.end));
                    } else {
                        ended += 1;
                        told += usize::from(entry.batch.task.results.is_told());
                        entry.batch.task.end();
                    }
                }
                Err(reason) => worker.kill_for(KillReason::Corrupted(reason)),
            }
        }
        let wrote = !worker.outbox.is_empty() && worker.flush();
        if took || wrote {
            // The worker may be waiting for room for its answers, or for the rest of a message.
            worker.started.lane.header().wake_worker();
        }
        if !worker.is_open() {
            self.idle.retain(|&idle| idle != number);
        }
        if had_work && worker.in_flight.is_empty() {
            self.runs_dry(context, number);
        } else if goes_on && !had_work {
            self.becomes_idle(context, number);
        }
        self.told -= told;
        self.has_unwanted |= may_stop;
        self.count_down(ended);
        if !rest.is_empty() || !again.is_empty() {
            self.give_back(context, rest, again);
        }
        took || wrote
    }

    /// Takes back the rests of batches that a worker has ended, and those that it ended with an
    /// item that is tried again.
    #[cold]
    fn give_back(&mut self, context: &Context, rest: Vec<Batch>, again: Vec<Batch>) {
        for batch in rest.into_iter().rev() {
            self.requeue(batch);
        }
        for batch in again.into_iter().rev() {
            self.try_again(context, batch);
        }
        // The worker may leave and not be replaced, and all others may rest.
        self.call_back_for_queue(context);
    }

    /// Puts a batch back where it came from, in front of the others.
    fn put_back(&mut self, batch: Batch) {
        if batch.only.is_some() {
            self.pinned.push(batch);
        } else {
            self.queue.push_front(batch);
        }
    }

    /// Gives queued batches to workers that can take more. Returns true if anything moved.
    fn refill(&mut self, context: &Context) -> bool {
        let mut moved = false;
        while let Some(batch) = self.queue.front() {
            let results = &batch.task.results;
            if results.is_cancelled() || !results.is_wanted(batch.first) {
                // No caller wants this task any more: it is not given out.
                if let Some(batch) = self.queue.pop_front() {
                    self.fail_unwanted(batch);
                }
                moved = true;
                continue;
            }
            let Some(number) = self.choose() else { break };
            let Some(batch) = self.queue.pop_front() else {
                break;
            };
            self.give(context, number, batch);
            moved = true;
        }
        moved
    }

    /// Gives idle workers what waits behind others.
    fn rebalance(&mut self, context: &Context) -> bool {
        let mut moved = false;
        while self.has_backlog()
            && let Some(&idle) = self.idle.last()
        {
            let Some(batch) = self.take_waiting() else {
                break;
            };
            if batch.task.results.is_wanted(batch.first) {
                self.give(context, idle, batch);
            } else {
                self.fail_unwanted(batch);
            }
            moved = true;
        }
        moved
    }

    /// Takes back a batch that waits behind others: the last one of the fullest lane, if the worker
    /// has not claimed it. If that one cannot be had, any other that waits is taken, so that those
    /// before it do not wait for it. What one worker alone may run stays where it is.
    fn take_waiting(&mut self) -> Option<Batch> {
        let has_waiting = |worker: &&mut Worker| worker.in_flight.len() > 1;
        let loads = self.workers.iter_mut().flatten().filter(has_waiting);
        let busiest = loads.max_by_key(|worker| worker.in_flight.len())?;
        let last = busiest.in_flight.len() - 1;
        let is_free = |worker: &Worker, position: usize| {
            let entry: &InFlight = &worker.in_flight[position];
            entry.batch.only.is_none()
        };
        if is_free(busiest, last)
            && let Some(batch) = busiest.take_back(last)
        {
            return Some(batch);
        }
        let mut loads = self.workers.iter_mut().flatten().filter(has_waiting);
        loads.find_map(|worker| {
            let mut behind = (1..worker.in_flight.len()).rev();
            behind.find_map(|position| {
                is_free(worker, position)
                    .then(|| worker.take_back(position))
                    .flatten()
            })
        })
    }

    /// Has the workers forget the contexts that no task needs any more.
    pub(super) fn forget_retired(&mut self, context: &Context) {
        for id in context.retired.take() {
            for worker in self.workers.iter_mut().flatten() {
                if let Some(position) = worker.contexts.iter().position(|&known| known == id) {
                    worker.contexts.swap_remove(position);
                    worker.post(Request::Forget { id }, Body::Nothing);
                    worker.started.lane.header().wake_worker();
                }
            }
        }
    }

    /// Asks the workers to ring when there will be something to do: when a task that a caller waits
    /// for has ended, or when one task is left. The caller must look at the answers after this and
    /// before it sleeps.
    pub(super) fn ask_for_bell(&self) {
        for worker in self.workers.iter().flatten() {
            let mut in_flight = worker.in_flight.iter();
            let awaited = in_flight.position(|entry| entry.batch.task.results.is_awaited());
            let low = worker.in_flight.len().saturating_sub(2);
            let at = awaited.map_or(low, |awaited| awaited.min(low));
            // A worker without a task may still be in the middle of a message.
            let task = worker.in_flight.get(at).map(|entry| entry.expected.task);
            // A stalled worker must ring when it goes on.
            let is_silent = !worker.outbox.is_empty() || worker.stalled.is_some();
            let unsent = is_silent.then_some(worker.number);
            if let Some(task) = task.or(unsent) {
                worker.started.lane.header().ring_at(task.max(1));
            }
        }
        lane::bell_is_asked_for();
    }
}
