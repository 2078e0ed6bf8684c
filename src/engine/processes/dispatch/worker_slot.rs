//! What a worker has been given: the batches that are under way, and the messages that carry them
//! into its lane.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::sight::{Sight, Stalled};
use crate::call::RetryOn;
use crate::engine::processes::settings::Settings;
use crate::engine::processes::start::Started;
use crate::engine::processes::task::{Function, Results, SentContext, Task};
use crate::engine::timeline::{Recorder, TimelineEvent};
use crate::error::{Corruption, Crash, Death, ItemIndex, TaskError};
use crate::lane::message::{More, Request};
use crate::lane::{Expected, Received, Receiver, Times, Writer, is_past, next_number};
use crate::os::clock;

/// Items of a task that a worker is to run: all from `first` on.
pub(in crate::engine::processes) struct Batch {
    pub(in crate::engine::processes) task: Arc<Task<dyn Results>>,
    pub(super) first: u32,
    /// How often item `first` has been started.
    pub(super) attempts: u32,
    /// How many workers in a row have died that were to run this batch next and had not started an
    /// item.
    pub(super) false_starts: u32,
    /// The only worker that may run the batch, if there is one.
    pub(super) only: Option<usize>,
    /// When the batch came, if that is recorded or the batch has to wait behind others; by the
    /// clock, or by its last tick.
    pub(in crate::engine::processes) queued: Option<u64>,
}

impl Batch {
    pub(in crate::engine::processes) fn new(task: Arc<Task<dyn Results>>) -> Self {
        Self {
            task,
            first: 0,
            attempts: 0,
            false_starts: 0,
            only: None,
            queued: None,
        }
    }

    /// Returns what is left of the batch from item `next` on, which has failed and is tried again.
    pub(super) fn again(self, next: u32) -> Self {
        let rest = self.from(next);
        Self {
            attempts: rest.attempts.saturating_add(1),
            ..rest
        }
    }

    /// Returns what is left of the batch from item `next` on.
    pub(super) fn from(self, next: u32) -> Self {
        if next == self.first {
            return self;
        }
        Self {
            first: next,
            attempts: 0,
            false_starts: 0,
            ..self
        }
    }

    /// Fails all items of the batch.
    pub(in crate::engine::processes) fn fail(self, error: &TaskError) {
        for index in self.first..self.task.count {
            self.task.results.failed(index, error.clone());
        }
        self.task.end();
    }
}

/// A batch that has been given to a worker.
pub(super) struct InFlight {
    pub(super) batch: Batch,
    pub(super) expected: Expected,
    /// The item that has failed and is tried again: the worker ends the batch with it.
    pub(super) again: Option<u32>,
    /// Where the batch's message begins, once that has been written.
    pub(super) begins: Option<u64>,
    /// Whether all of the message has been written.
    pub(super) is_sent: bool,
    /// For a task with a limit: the item that was last seen to run, and since when, in nanoseconds
    /// of the system's clock.
    pub(super) seen: Option<(u32, u64)>,
    /// For a task with a limit: since when the batch has been at the head of its lane, by the same
    /// clock.
    pub(super) at_head_since: Option<u64>,
}

impl InFlight {
    /// Returns the timeline's entry for this batch. If the worker died before it reported the
    /// times, they are what the parent knows.
    pub(super) fn event(
        &self,
        recorder: &Recorder,
        worker: usize,
        pid: u32,
        times: Option<Times>,
    ) -> TimelineEvent {
        let now = clock::now();
        let queued = self.batch.queued.unwrap_or(now);
        let since = self.seen.map_or(queued, |(_, since)| since);
        let Times { started, ended } = times.unwrap_or(Times {
            started: since,
            ended: now,
        });
        // The worker's times are taken as far as they can be true.
        let started = started.clamp(queued, now);
        TimelineEvent {
            worker,
            pid,
            items: (self.expected.end - self.batch.first) as usize,
            queued: recorder.since_start(queued),
            started: recorder.since_start(started),
            ended: recorder.since_start(ended.clamp(started, now)),
            completed: times.is_some(),
        }
    }
}

/// Why a worker is being killed.
#[derive(Clone, Debug)]
pub(super) enum KillReason {
    /// What the worker wrote cannot be right. Nothing more is read from it.
    Corrupted(Corruption),
    /// The task that the worker runs is to end: all of it, or this one item.
    Stopped {
        task: u32,
        item: Option<u32>,
        error: TaskError,
    },
    /// The worker does not start, or does not end. What it has been given goes to others.
    Lingers,
}

/// A message on its way into a lane.
pub(super) struct Message {
    pub(super) request: Request,
    pub(super) body: Body,
    pub(super) sent: usize,
}

pub(super) enum Body {
    Items(Arc<Task<dyn Results>>, Range<u32>),
    Context(Arc<SentContext>),
    Nothing,
    /// The end of a message that was taken back when only part of it was written.
    End,
}

/// How much of a message was written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Nothing,
    Part,
    All,
}

/// A worker as the dispatch sees it.
pub(in crate::engine::processes) struct Worker {
    pub(in crate::engine::processes) started: Started,
    pub(super) requests: Writer,
    pub(super) receiver: Receiver,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Messages that do not fit into the ring yet, in order. Only the first can be in the ring in
    /// part.
    pub(super) outbox: VecDeque<Message>,
    pub(super) number: u32,
    /// The contexts that the worker has.
    pub(super) contexts: Vec<u64>,
    /// Why the worker is being killed.
    pub(super) kill_reason: Option<KillReason>,
    /// What the worker wrote that cannot be right. It may have written it after another kill reason
    /// was set.
    pub(super) corrupted: Option<Corruption>,
    /// How many more items the worker may be given, if there is a limit.
    pub(super) budget: Option<u32>,
    /// How many bytes of memory the worker may have, if there is a limit.
    memory_limit: Option<u64>,
    /// The number of the task that the worker was last told to start no more items of, until that
    /// task has ended.
    cut: Option<u32>,
    /// The worker is given nothing more, and ends when it has done what it has.
    pub(super) is_leaving: bool,
    /// What was last seen of the batch at the head of the worker's lane.
    pub(super) sight: Option<Sight>,
    /// Set while the worker does not begin with what it has been given.
    pub(super) stalled: Option<Stalled>,
    /// Since when nothing keeps the worker from ending, in nanoseconds of the system's clock.
    /// `None` if it has not been told to end.
    pub(super) lingers_since: Option<u64>,
    /// Since when the worker has had nothing to do. Only kept if the pool has an idle timeout.
    pub(super) idle_since: Option<Instant>,
    /// Whether what the worker runs goes into the timeline.
    is_recorded: bool,
    /// Whether the worker is told what each task is, for its log records.
    is_named: bool,
    pub(in crate::engine::processes) bytes_sent: u64,
}

impl Worker {
    pub(super) fn new(started: Started, settings: &Settings) -> Self {
        let requests = started.lane.request_writer();
        let receiver = Receiver::new(started.lane.clone());
        Self {
            started,
            requests,
            receiver,
            in_flight: VecDeque::new(),
            outbox: VecDeque::new(),
            number: 0,
            contexts: Vec::new(),
            kill_reason: None,
            corrupted: None,
            budget: settings.max_tasks,
            memory_limit: settings.memory_limit,
            cut: None,
            is_leaving: false,
            sight: None,
            stalled: None,
            lingers_since: None,
            idle_since: None,
            is_recorded: settings.timeline,
            is_named: settings.forwards_logs(),
            bytes_sent: 0,
        }
    }

    /// Returns how long the worker has had nothing to do, in nanoseconds, as the worker itself
    /// counts it.
    pub(in crate::engine::processes) fn idle_time(&self) -> u64 {
        self.receiver.header().idle_time()
    }

    pub(in crate::engine::processes) fn received(&self) -> Received {
        self.receiver.received()
    }

    /// Returns whether the worker may be given more to do.
    pub(in crate::engine::processes) fn is_open(&self) -> bool {
        self.kill_reason.is_none() && !self.is_leaving
    }

    /// Returns whether the worker is being killed because it did not come up in time.
    pub(in crate::engine::processes) fn has_not_come_up(&self) -> bool {
        matches!(self.kill_reason, Some(KillReason::Lingers)) && !self.is_leaving
    }

    /// Returns whether what the worker writes can be trusted.
    pub(super) fn is_sane(&self) -> bool {
        self.corrupted.is_none()
    }

    /// Lets the worker end when it has done what it has.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
        self.stop_if_leaving();
    }

    /// Tells a leaving worker to stop, but not in the middle of a message: it would not wait for
    /// the rest. This must be called again whenever the outbox has become empty.
    fn stop_if_leaving(&self) {
        if self.is_leaving && self.outbox.is_empty() {
            self.started.lane.header().stop();
        }
    }

    pub(in crate::engine::processes) fn is_ready(&self) -> bool {
        self.receiver.header().is_ready()
    }

    /// Returns why the worker ended before it took tasks, if its crash report says so.
    pub(in crate::engine::processes) fn crash_report(&self) -> Option<String> {
        let caught = self.receiver.header().crash_report().read()?;
        Some(match caught.location {
            Some(place) => format!("it panicked: {} at {place}", caught.message),
            None => caught.message,
        })
    }

    /// Returns what is known of a crash by which the worker died, if the parent did not kill it.
    pub(in crate::engine::processes) fn crash(&self, death: Death) -> Option<Box<Crash>> {
        let signal = death.signal().filter(|_| self.kill_reason.is_none())?;
        let pid = self.started.child.pid();
        self.receiver.header().crash(pid, signal)
    }

    pub(super) fn is_up(&self) -> bool {
        self.receiver.header().is_up()
    }

    /// Gives the worker a batch to run, after the context that the batch needs.
    pub(super) fn give(&mut self, batch: Batch) {
        let Function { code, context } = &batch.task.function;
        if let Some(context) = context
            && !self.contexts.contains(&context.id)
        {
            self.contexts.push(context.id);
            let request = Request::Context { id: context.id };
            self.post(request, Body::Context(context.clone()));
        }
        self.number = next_number(self.number);
        let first = batch.first;
        let count = match &mut self.budget {
            Some(budget) => {
                let count = (batch.task.count - first).min(*budget);
                *budget -= count;
                count
            }
            None => batch.task.count - first,
        };
        let request = Request::Run {
            task: self.number,
            code: *code,
            context: context.as_ref().map_or(0, |context| context.id),
            first,
            count,
            seeds: batch.task.limits.seeds.0,
            stops_at: batch.task.stops_at,
            more: self.more(&batch.task),
        };
        let body = Body::Items(batch.task.clone(), first..first + count);
        let result_size = batch.task.result_size;
        let expected = Expected {
            task: self.number,
            next: first,
            end: first + count,
            result_size,
            stops_at: batch.task.stops_at,
            may_stop: false,
        };
        self.in_flight.push_back(InFlight {
            batch,
            expected,
            again: None,
            begins: None,
            is_sent: false,
            seen: None,
            at_head_since: None,
        });
        self.post(request, body);
        // The worker has got its last items.
        if self.budget == Some(0) {
            self.leave();
        }
    }

    /// Returns what the worker must know of few tasks.
    fn more(&self, task: &Task<dyn Results>) -> Option<More> {
        let is_plain = task.limits.are_none() && !self.is_recorded && !self.is_named;
        (!is_plain).then(|| More {
            limit: task.limit(),
            grace: task.limits.grace(),
            is_recorded: self.is_recorded,
            name: self.is_named.then_some(task.name),
        })
    }

    /// Writes a message, or as much of it as there is room for. The rest is put into the outbox.
    pub(super) fn post(&mut self, request: Request, body: Body) {
        let mut message = Message {
            request,
            body,
            sent: 0,
        };
        if !self.outbox.is_empty() {
            self.outbox.push_back(message);
            self.flush();
        } else if self.write(&mut message) != Wrote::All {
            self.outbox.push_back(message);
        }
    }

    /// Writes as much of the outbox as there is room for. Returns true if anything was written.
    pub(super) fn flush(&mut self) -> bool {
        let mut wrote = false;
        while let Some(mut message) = self.outbox.pop_front() {
            let written = self.write(&mut message);
            wrote |= written != Wrote::Nothing;
            if written != Wrote::All {
                // The rest of this message comes when the worker has read some cells.
                self.outbox.push_front(message);
                break;
            }
            self.stop_if_leaving();
        }
        wrote
    }

    /// Writes as much of this message as there is room for.
    fn write(&mut self, message: &mut Message) -> Wrote {
        if !self.requests.has_room() {
            if self.requests.is_corrupted() && self.kill_reason.is_none() {
                self.kill_for(KillReason::Corrupted(Corruption::CellState));
            }
            return Wrote::Nothing;
        }
        let begins = self.requests.position();
        let head = message.request.to_head();
        let body = match &message.body {
            Body::Items(task, items) => task.items(items.clone()),
            Body::Context(context) => &context.bytes,
            Body::Nothing => &[],
            Body::End => {
                // A cell with nothing in it ends the message.
                self.requests.send(&[], &[], 0);
                return Wrote::All;
            }
        };
        let before = message.sent;
        message.sent = self.requests.send(&head, body, before);
        self.bytes_sent += (message.sent - before) as u64;
        let is_sent = message.sent == head.len() + body.len();
        if let Request::Run { task, .. } = message.request
            && let Some(entry) = self
                .in_flight
                .iter_mut()
                .rev()
                .find(|entry| entry.expected.task == task)
        {
            if before == 0 {
                entry.begins = Some(begins);
            }
            entry.is_sent = is_sent;
        }
        if is_sent { Wrote::All } else { Wrote::Part }
    }

    /// Takes back the batch at `position`, if the worker has not begun with it.
    pub(super) fn take_back(&mut self, position: usize) -> Option<Batch> {
        let entry = self.in_flight.get(position)?;
        let task = entry.expected.task;
        match entry.begins {
            Some(begins) if self.requests.take_back(begins) => {
                // The worker will skip what is written. If the message is written only in part, the
                // worker must be told where it ends.
                if !entry.is_sent
                    && let Some(message) = self.outbox.front_mut()
                {
                    message.body = Body::End;
                }
            }
            None => {
                // The batch's message is in the outbox, and nothing of it is written. Others may
                // have come after it.
                let is_it = |message: &Message| matches!(message.request, Request::Run { task: other, .. } if other == task);
                let position = self.outbox.iter().rposition(is_it)?;
                self.outbox.remove(position);
                self.stop_if_leaving();
            }
            // The worker has claimed the batch: it stays with the worker.
            Some(_) => return None,
        }
        let entry = self.in_flight.remove(position)?;
        if let Some(budget) = &mut self.budget
            && !self.is_leaving
        {
            *budget += entry.expected.end - entry.batch.first;
        }
        self.flush();
        Some(entry.batch)
    }

    /// Has the worker start no more items of the batch at `position`, with which it has begun, as
    /// with all batches before it.
    pub(super) fn cut(&mut self, position: usize) {
        let Some(entry) = self.in_flight.get_mut(position) else {
            return;
        };
        entry.expected.may_stop = true;
        let task = entry.expected.task;
        // A worker begins with one batch after the other, so of several the last one counts.
        if self.cut.is_none_or(|cut| is_past(task, cut)) {
            self.cut = Some(task);
            self.receiver.header().cut(task..=task);
        }
    }

    /// Forgets that a task was cut, because it has ended. Later its number may come again.
    pub(super) fn has_ended(&mut self, task: u32) {
        if self.cut == Some(task) {
            self.cut = None;
            self.receiver.header().cut_none();
        }
    }

    /// Returns whether the worker has begun with this batch.
    pub(super) fn has_begun(&self, entry: &InFlight) -> bool {
        entry
            .begins
            .is_some_and(|begins| self.requests.is_begun(begins))
    }

    /// Returns whether the worker has started an item of this batch.
    pub(super) fn has_started(&self, entry: &InFlight) -> bool {
        self.has_begun(entry) && self.receiver.header().progress().task == entry.expected.task
    }

    /// Kills the worker for this reason.
    pub(super) fn kill_for(&mut self, reason: KillReason) {
        if let KillReason::Corrupted(what) = &reason {
            log::warn!(
                "worker process {} is killed: {what}",
                self.started.child.pid()
            );
            self.corrupted.get_or_insert(*what);
        }
        // The reason that was found first stays the reason.
        self.kill_reason.get_or_insert(reason);
        self.started.child.kill();
    }
}

impl Worker {
    /// Returns the error for the item at which this worker died, or `None` if the item is to be
    /// tried again.
    pub(super) fn attribute(
        &self,
        batch: &Batch,
        cause: Death,
        is_lost: bool,
    ) -> Option<TaskError> {
        // This is SIGABRT, after a panic that could not be caught.
        if cfg!(panic = "abort")
            && cause == Death::Signal(6)
            && let Some(caught) = self.receiver.header().crash_report().read()
        {
            let error = caught.into_error(None).with_attempts(batch.attempts);
            let again = batch.task.policy().allows_after(&error, batch.attempts);
            return (!again).then_some(error);
        }
        if !is_lost && batch.task.policy().allows(RetryOn::DEATH, batch.attempts) {
            // The item has starts left.
            return None;
        }
        let pid = self.started.child.pid();
        let attempts = if is_lost {
            batch.false_starts
        } else {
            batch.attempts
        };
        // The worker itself writes this flag, so the flag counts only if there is a limit and the
        // death agrees with it.
        if let Some(limit) = self.memory_limit
            && cause == Death::Signal(6)
            && self.receiver.header().is_out_of_memory()
        {
            return Some(TaskError::OutOfMemory {
                index: ItemIndex::NONE,
                pid,
                limit,
                attempts,
            });
        }
        Some(TaskError::WorkerDied {
            index: ItemIndex::NONE,
            pid,
            cause,
            attempts,
            crash: self.crash(cause),
        })
    }
}
