//! Items that have failed and are tried again: how an answer passes the policy of its task, and
//! where a batch waits until it is due.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use super::worker_slot::InFlight;
use super::{Batch, Dispatch, State};
use crate::engine::again::{Answered, Target};
use crate::engine::processes::context::Context;
use crate::engine::processes::task::Results;
use crate::error::{Corruption, TaskError};
use crate::lane::{Fate, RawBytes, Receiver, Sink};

/// A pause too long for the clock.
const ALWAYS: Duration = Duration::from_secs(1 << 30);

/// Batches whose first item is tried again later, by the time at which they are due.
#[derive(Default)]
pub(super) struct Paused {
    batches: BTreeMap<(Instant, u64), Batch>,
    /// The number of the next batch.
    next: u64,
}

impl Paused {
    fn add(&mut self, due: Instant, batch: Batch) {
        self.batches.insert((due, self.next), batch);
        self.next += 1;
    }

    /// Returns when the first batch is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.batches.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes out the batches that `is_it` says true of, in the order in which they are due.
    pub(super) fn take_if(&mut self, is_it: impl Fn(&Batch) -> bool) -> Vec<Batch> {
        if self.batches.is_empty() {
            return Vec::new();
        }
        let (taken, kept) = mem::take(&mut self.batches)
            .into_iter()
            .partition(|(_, batch)| is_it(batch));
        self.batches = kept;
        let taken: BTreeMap<_, Batch> = taken;
        taken.into_values().collect()
    }
}

impl Target for dyn Results {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        Sink::results(self, first, count, bytes);
    }

    fn has_stopped(&self) -> bool {
        Sink::has_stopped(self)
    }

    fn failed(&self, index: u32, error: TaskError) {
        Results::failed(self, index, error);
    }

    fn tried(&self, attempts: u32) {
        Results::tried(self, attempts);
    }

    fn discard(&self, bytes: Vec<u8>) {
        Results::discard(self, bytes);
    }
}

/// Returns what takes the answers for a batch of which this item is tried again, if one is.
fn answered(batch: &Batch, again: Option<u32>) -> Answered<'_, dyn Results> {
    let task = &batch.task;
    let first = (batch.first, batch.attempts);
    Answered::new(&task.results, task.policy(), task.stops_at, first, again)
}

impl InFlight {
    /// Takes the next answer, of a task with a policy. Returns whether the task ends with it, and
    /// how many of the items that it is about are tried again.
    ///
    /// # Errors
    ///
    /// What in the answer cannot be right.
    #[cold]
    pub(super) fn take(&mut self, receiver: &mut Receiver) -> (Result<bool, Corruption>, u64) {
        let before = self.uncounted();
        let answered = answered(&self.batch, self.again);
        let taken = receiver.take(&mut self.expected, &answered);
        self.again = answered.again();
        (taken, self.uncounted() - before)
    }

    /// Takes what a dead worker had not published, like [`Receiver::take_unpublished`].
    #[cold]
    pub(super) fn take_unpublished(&mut self, receiver: &Receiver) -> (Option<Fate>, u64) {
        let before = self.uncounted();
        let answered = answered(&self.batch, self.again);
        let fate = receiver.take_unpublished(&mut self.expected, &answered);
        self.again = answered.again();
        (fate, self.uncounted() - before)
    }

    /// Returns how many items before the next one have no answer that counts.
    fn uncounted(&self) -> u64 {
        let again = self.again.unwrap_or(self.expected.next);
        u64::from(self.expected.next.saturating_sub(again))
    }
}

impl Dispatch {
    /// Puts a batch back whose first item has failed and has been counted: at once or, if there is
    /// a pause, when it is due.
    pub(super) fn try_again(&mut self, context: &Context, batch: Batch) {
        if matches!(self.state, State::Closing { cancels: true }) {
            // The next attempt has not started, and never will.
            self.fail(batch, &TaskError::Cancelled {});
            return;
        }
        self.retried += 1;
        let pause = batch.task.retry().pause(batch.attempts);
        let waits = !pause.is_zero() && matches!(self.state, State::Open);
        if !waits || !batch.task.results.is_wanted(batch.first) {
            self.requeue(batch);
            ask_anew(context);
            return;
        }
        let now = Instant::now();
        let due = now.checked_add(pause).unwrap_or(now + ALWAYS);
        let is_first = self.paused.first().is_none_or(|first| due < first);
        self.paused.add(due, batch);
        if is_first {
            // The supervisor sleeps for longer than this.
            context.alarm.ring();
        }
    }

    /// Puts the batches that are due at `now` into the queue. Returns how long until the next one
    /// is, and whether there were any.
    pub(in crate::engine::processes) fn resume_due(
        &mut self,
        context: &Context,
        now: Instant,
    ) -> (Option<Duration>, bool) {
        let mut has_moved = false;
        while let Some(first) = self.paused.batches.first_entry()
            && first.key().0 <= now
        {
            let batch = first.remove();
            self.requeue(batch);
            has_moved = true;
        }
        if has_moved {
            self.call_back_for_queue(context);
            self.pump(context);
            ask_anew(context);
        }
        let next = self.paused.first();
        (
            next.map(|due| due.saturating_duration_since(now)),
            has_moved,
        )
    }

    /// Ends all pauses, because the pool closes.
    pub(in crate::engine::processes) fn resume_all(&mut self, context: &Context) {
        let batches = self.paused.take_if(|_| true);
        if batches.is_empty() {
            return;
        }
        for batch in batches.into_iter().rev() {
            self.requeue(batch);
        }
        self.call_back_for_queue(context);
        self.pump(context);
        ask_anew(context);
    }
}

/// Wakes the caller that sleeps on the bell. A batch has gone back to the queue, and may go to a
/// worker that had nothing to do when that caller asked the others to ring. If another thread took
/// its answer, the caller would not hear of it.
fn ask_anew(context: &Context) {
    context.bell.ring();
}
