//! A call over many items, by children that claim chunks of them.
//!
//! The parent cuts the items into chunks before the first fork, so parent and children know the
//! same list. The cursor in shared memory says how much of it has been claimed. A child that dies
//! leaves a chunk unfinished, or claimed and never begun. When the cursor has come to the end, the
//! unfinished chunks make the list of the next round.
//!
//! All items are read before the first fork, so a window means nothing here.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::{Answers, Bond, Forked as Child, LAST_ORDERS, LOOK_PAUSE, SLOW_START, wait_any};
use super::chunk::Chunk;
use super::submit::{EndBell, Enlisted};
use crate::call::{Limits, Plan, Stop, Tracker, logs, seed, worker_index};
use crate::codec;
use crate::engine::again::Answered;
use crate::engine::discard::Discard;
use crate::error::{Corruption, Death, PoolError, TaskError, TaskValue};
use crate::future::{Ending, Reason};
use crate::lane::message::StopsAt;
use crate::lane::{Cursor, Expected, Fate, ResponseWriter, Sink};
use crate::memory::wire;
use crate::os::alarm::Alarm;
use crate::os::clock;

/// The number of children in a row, beyond one for each worker, that end without a trace of having
/// started an item before the call gives up.
const MOST_FRUITLESS: usize = 16;

/// How long a stopped child must have been at no item to count as stalled. It loses nothing that it
/// has done if it is killed.
const STALLED_AFTER: Duration = Duration::from_millis(100);
/// The same for a child that is not seen to be stopped begins at [`SLOW_START`], and is doubled
/// each time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) fn map<F, A, R, S>(
    engine: &super::Forked,
    plan: Plan<'_>,
    f: &F,
    items: impl Iterator<Item = A>,
    stop: S,
) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R,
    R: Serialize + DeserializeOwned + 'static,
    S: Stop<R>,
{
    let mut items = read(&plan.limits, items)?;
    let stops_at = if S::AT_ERR {
        StopsAt::Err
    } else {
        StopsAt::Fault
    };
    let (mut call, mut tracker) = Call::<R>::new(engine, plan, items.len(), stops_at)?;
    if !items.is_empty()
        && let Some(error) = call.limits.refusal(Some(0))
    {
        return Err(error);
    }
    call.run(f, &mut items, &mut tracker)?;
    call.results(stop)
}

/// Runs `f` on all items, and returns the outcome of each. If the call as a whole fails, its error
/// is the outcome of the items that it kept from running.
pub(super) fn map_outcomes<F, A, R>(
    engine: &super::Forked,
    plan: Plan<'_>,
    f: &F,
    items: impl Iterator<Item = A>,
) -> Vec<Result<R, TaskError>>
where
    F: Fn(A) -> R,
    R: Serialize + DeserializeOwned + 'static,
{
    let mut items: Vec<Option<A>> = items.map(Some).collect();
    match Call::<R>::new(engine, plan, items.len(), StopsAt::Nothing) {
        Ok((call, mut tracker)) if call.limits.refusal(None).is_some() => {
            tracker.tell(items.len(), items.len());
            let refused = (0..items.len()).filter_map(|index| call.limits.refusal(Some(index)));
            refused.map(Err).collect()
        }
        Ok((mut call, mut tracker)) => {
            let ran = call.run(f, &mut items, &mut tracker);
            call.outcomes(ran.err())
        }
        Err(error) => error.of_items(0, items.into_iter()),
    }
}

/// Reads the input to its end.
///
/// # Errors
///
/// If the call ends before that.
fn read<A>(
    limits: &Limits,
    mut items: impl Iterator<Item = A>,
) -> Result<Vec<Option<A>>, TaskError> {
    if limits.ending().is_none() {
        return Ok(items.map(Some).collect());
    }
    let mut read = Vec::new();
    loop {
        if let Some(reason) = limits.ended() {
            return Err(reason.error());
        }
        let Some(item) = items.next() else {
            return Ok(read);
        };
        read.push(Some(item));
    }
}

/// The most items of a chunk. Items of a chunk are counted in 32 bits, twice over.
const MOST_ITEMS: usize = 1 << 30;

struct Call<'a, R> {
    engine: &'a super::Forked,
    limits: Limits,
    /// When the call began, by the system's clock.
    began: u64,
    chunks: Vec<Chunk>,
    /// All chunks before this one are finished, without a failure that matters.
    front: usize,
    /// The first chunk that has a failure that matters, as far as is known. Those after it are of
    /// no use.
    cut: Option<usize>,
    done: usize,
    failed: usize,
    /// Items that were running when the call ended, and failed with it.
    stopped: usize,
    /// Whether the children have been told to start nothing more.
    is_asked: bool,
    /// The chunks that this round is about, in order.
    list: Vec<usize>,
    /// The number of chunks of the list that have been claimed.
    cursor: Cursor,
    bell: Arc<Alarm>,
    /// The number of children in a row that ended without an item having been started since the one
    /// before.
    fruitless: usize,
    /// How long a child may be at no item before it counts as stalled, though it is not seen to be
    /// stopped.
    pause: Duration,
    result: PhantomData<fn() -> R>,
}

/// A child and the task that its answers are about.
struct Hand<'a> {
    child: Child,
    /// The index that the child has among those of its call.
    index: usize,
    _enlisted: Enlisted<'a>,
    /// The chunk that the child is at, once the child has said so.
    at: Option<(usize, Expected)>,
    /// The item of that chunk with which the child began.
    from: u32,
    /// The chunk that the child has ended last.
    ended: Option<usize>,
    /// Whether the child was killed because it was at no item for long.
    has_stalled: bool,
}

impl<'a, R: Serialize + DeserializeOwned + 'static> Call<'a, R> {
    /// Makes a call over `items` items. `stops_at` says after which answer the rest is of no use.
    fn new<'c>(
        engine: &'a super::Forked,
        plan: Plan<'c>,
        items: usize,
        stops_at: StopsAt,
    ) -> Result<(Self, Tracker<'c>), TaskError> {
        let plan = Plan {
            total: Some(items),
            ..plan
        };
        let mut sizes = plan.chunks(engine.workers)?;
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < items {
            let end = items.min(first.saturating_add(sizes.next_size().min(MOST_ITEMS)));
            chunks.push(Chunk::new(first, end, stops_at, Discard::of::<R>()));
            first = end;
        }
        let no_memory = |error| PoolError::system("shared memory could not be had", error);
        let no_bell = |error| PoolError::system("an eventfd could not be had", error);
        let call = Self {
            engine,
            limits: plan.limits,
            began: clock::now(),
            list: (0..chunks.len()).collect(),
            chunks,
            front: 0,
            cut: None,
            done: 0,
            failed: 0,
            stopped: 0,
            is_asked: false,
            cursor: Cursor::new().map_err(no_memory)?,
            bell: Arc::new(Alarm::new().map_err(no_bell)?),
            fruitless: 0,
            pause: SLOW_START,
            result: PhantomData,
        };
        Ok((call, plan.tracker))
    }

    /// Runs the items until the outcome is certain.
    fn run<F, A>(
        &mut self,
        f: &F,
        items: &mut [Option<A>],
        tracker: &mut Tracker<'_>,
    ) -> Result<(), TaskError>
    where
        F: Fn(A) -> R,
    {
        let end = self.limits.ending();
        let _end = end.map(|ending| EndBell::ringing(ending, &self.bell));
        while !self.is_decided() {
            let went = self.await_due();
            let went = went.and_then(|()| self.round(f, items, tracker));
            if let Err(TaskError::Cancelled {} | TaskError::DeadlineExceeded {}) = went {
                let left = items.len().saturating_sub(self.done + self.stopped);
                self.engine.submitted.accounts.cancelled(left);
            }
            went?;
        }
        tracker.tell(self.done, self.failed);
        Ok(())
    }

    /// Returns whether the outcome is certain: all chunks are finished, or the first one that is
    /// not a success has failed.
    fn is_decided(&mut self) -> bool {
        while let Some(chunk) = self.chunks.get(self.front) {
            if chunk.decides() {
                return true;
            }
            if !chunk.is_finished() {
                return false;
            }
            self.front += 1;
        }
        true
    }

    /// Leaves out of the list what is in a pause. If that is all of it, waits until the first chunk
    /// is due.
    ///
    /// # Errors
    ///
    /// If the call ends before that.
    fn await_due(&mut self) -> Result<(), TaskError> {
        if !self.limits.retry().is_on() {
            return Ok(());
        }
        loop {
            let now = Instant::now();
            let due = |index: &usize| self.chunks[*index].due.filter(|due| *due > now);
            let Some(first) = self.list.iter().filter_map(due).min() else {
                return Ok(());
            };
            if self.engine.submitted.is_closing() {
                // The end of the pool waits for results, and not for the clock.
                return Ok(());
            }
            let is_due = |index: &usize| due(index).is_none();
            let list: Vec<usize> = self.list.iter().copied().filter(is_due).collect();
            if !list.is_empty() {
                self.list = list;
                return Ok(());
            }
            if self.engine.submitted.is_cancelled() {
                return Err(TaskError::Cancelled {});
            }
            if let Some(reason) = self.limits.ended() {
                return Err(reason.error());
            }
            let deadline = self.limits.ending().and_then(Ending::deadline);
            let first = deadline.map_or(first, |at| at.min(first));
            let pause = first.saturating_duration_since(now).min(LOOK_PAUSE);
            wait_any(&[&self.bell], std::iter::empty(), Some(pause));
        }
    }

    /// Forks children until all chunks of the list are claimed and all children have ended, or the
    /// outcome is certain.
    fn round<F, A>(
        &mut self,
        f: &F,
        items: &mut [Option<A>],
        tracker: &mut Tracker<'_>,
    ) -> Result<(), TaskError>
    where
        F: Fn(A) -> R,
    {
        if self.engine.submitted.is_cancelled() {
            return Err(TaskError::Cancelled {});
        }
        if let Some(reason) = self.limits.ended() {
            return Err(reason.error());
        }
        self.cursor.reset();
        let mut hands: Vec<Hand<'a>> = Vec::new();
        loop {
            let mut moved = false;
            for hand in &mut hands {
                let done = self.done;
                moved |= self.drain(hand);
                hand.child.count(self.done - done);
            }
            // A child may publish its last message between the look above and its end, so an ended
            // child is drained once more.
            let (mut ended, living): (Vec<_>, Vec<_>) =
                hands.into_iter().partition(|hand| hand.child.has_ended());
            hands = living;
            for hand in &mut ended {
                let done = self.done;
                self.drain(hand);
                self.reclaim(hand);
                hand.child.count(self.done - done);
            }
            if moved || !ended.is_empty() {
                tracker.tell(self.done, self.failed);
                if self.is_decided() {
                    if self.front == self.chunks.len() {
                        self.see_off(hands);
                    } else {
                        // After a failure, the children that still run are killed.
                        self.kill_rest(hands);
                    }
                    return Ok(());
                }
                self.cut_rest(&mut hands);
            }
            if self.engine.submitted.is_killed() {
                self.kill_rest(hands);
                return Err(TaskError::Cancelled {});
            }
            if let Some(reason) = self.limits.killed() {
                return self.end(hands, reason);
            }
            if self.limits.ended().is_some() {
                self.ask_to_stop(&mut hands);
            }
            if self.engine.submitted.is_cancelled() {
                // The children end what they have claimed.
                self.cursor.pass(self.list.len());
            }
            if self.fruitless > MOST_FRUITLESS + self.engine.workers {
                let reason =
                    "forked children kept dying before they could start an item".to_owned();
                return Err(PoolError::Broken { reason }.into());
            }
            while hands.len() < self.engine.workers && self.cursor.position() < self.list.len() {
                hands.push(self.hire(f, items, &hands)?);
            }
            // All chunks of the list have been claimed, and all children have ended.
            if hands.is_empty() {
                break;
            }
            self.check(&mut hands);
            if tracker.is_on() {
                self.tell(&hands, tracker);
            }
            for hand in &hands {
                hand.child.ask_for_bell();
            }
            if !hands.iter().any(|hand| hand.child.has_next()) {
                self.wait_any(&hands);
            }
        }
        self.list = (self.front..self.cut.unwrap_or(self.chunks.len()))
            .filter(|&index| !self.chunks[index].is_finished())
            .collect();
        Ok(())
    }

    /// Tells how many items have ended, those too that the children have not published. A child may
    /// write wrong numbers, but none that are larger than its chunk.
    fn tell(&self, hands: &[Hand<'_>], tracker: &mut Tracker<'_>) {
        let (mut ended, mut within) = (0, 0_usize);
        for hand in hands {
            let header = hand.child.receiver.header();
            let progress = header.progress();
            let index = progress.task.wrapping_sub(1) as usize;
            if hand.ended != Some(index)
                && let Some(chunk) = self.chunks.get(index)
            {
                let answered = (progress.step / 2).min(chunk.count());
                ended += answered.saturating_sub(chunk.answered) as usize;
                if progress.running().is_some() && !chunk.is_finished() {
                    within = within.saturating_add(header.within(progress) as usize);
                }
            }
        }
        tracker.tell_running(self.done + ended, self.failed, within);
    }

    /// Has the children start nothing more of what comes after the first chunk that has failed, if
    /// one has. The chunks before it are needed: all of them have been claimed, because chunks are
    /// claimed in order.
    fn cut_rest(&self, hands: &mut [Hand<'_>]) {
        // A call that is over has told them more than that.
        let Some(cut) = self.cut.filter(|_| !self.is_asked) else {
            return;
        };
        self.cursor.pass(self.list.len());
        for hand in hands {
            // The child may claim a later chunk at this very moment, so all of them are named.
            let header = hand.child.receiver.header();
            header.cut(number(cut).saturating_add(1)..=u32::MAX);
            if let Some((index, expected)) = &mut hand.at {
                expected.may_stop |= *index > cut;
            }
        }
    }

    /// Has the children start nothing more, and asks what runs to stop: the call is in its grace
    /// period.
    fn ask_to_stop(&mut self, hands: &mut [Hand<'_>]) {
        self.is_asked = true;
        self.cursor.pass(self.list.len());
        for hand in hands {
            hand.child.receiver.header().cut(1..=u32::MAX);
            if let Some((_, expected)) = &mut hand.at {
                expected.may_stop = true;
            }
        }
    }

    /// Ends the call early: kills all children, and takes what they had done.
    ///
    /// # Errors
    ///
    /// That of the reason, unless the outcome is certain all the same.
    fn end(&mut self, mut hands: Vec<Hand<'_>>, reason: Reason) -> Result<(), TaskError> {
        // A child that is killed last must not claim what is left before that.
        self.cursor.pass(self.list.len());
        for hand in &hands {
            hand.child.kill();
        }
        for hand in &mut hands {
            hand.child.process().wait_end(None);
            self.drain(hand);
            self.reclaim(hand);
        }
        if self.is_decided() {
            return Ok(());
        }
        Err(reason.error())
    }

    /// Kills the children of a call that has its outcome, and takes what they had done.
    fn kill_rest(&mut self, mut hands: Vec<Hand<'_>>) {
        for hand in &hands {
            hand.child.kill();
        }
        for hand in &mut hands {
            hand.child.process().wait_end(None);
            let done = self.done;
            self.drain(hand);
            hand.child.count(self.done - done);
            self.record_rest(hand);
        }
    }

    /// Waits for the ends of children that have answered all items: each says when it was done,
    /// prints what it has buffered, and ends what it has made. Children that do not come to their
    /// end are killed.
    fn see_off(&mut self, mut hands: Vec<Hand<'_>>) {
        let start = Instant::now();
        loop {
            let (mut ended, mut living): (Vec<_>, Vec<_>) =
                hands.into_iter().partition(|hand| hand.child.has_ended());
            for hand in &mut ended {
                self.drain(hand);
                self.record_rest(hand);
            }
            for hand in &mut living {
                self.drain(hand);
            }
            hands = living;
            let waited = start.elapsed();
            let is_over = waited >= LAST_ORDERS
                || self.engine.submitted.is_killed()
                || self.limits.killed().is_some();
            if hands.is_empty() {
                return;
            }
            if is_over {
                self.kill_rest(hands);
                return;
            }
            if waited >= STALLED_AFTER {
                let stopped = hands.iter().filter(|hand| hand.child.is_stopped());
                stopped.for_each(|hand| hand.child.kill());
            }
            self.wait_any(&hands);
        }
    }

    /// Waits until a child has something to say or ends, or for the time after which the caller
    /// looks anyway.
    fn wait_any(&self, hands: &[Hand<'_>]) {
        let children = hands.iter().map(|hand| hand.child.fd());
        let next = |ending: &Ending| match ending.reason() {
            None => ending.deadline(),
            Some(_) => ending.killed_at(),
        };
        let deadline = self.limits.ending().and_then(next);
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let pause = left.map_or(LOOK_PAUSE, |left| left.min(LOOK_PAUSE));
        wait_any(&[&self.bell], children, Some(pause));
    }

    /// Kills children that are stopped (SIGSTOP, a debugger) while they are at no item: what they
    /// have claimed and not begun goes to others. A child that runs an item, or has run it and not
    /// yet given its result, keeps it up to its limit.
    fn check(&mut self, hands: &mut [Hand<'_>]) {
        for hand in hands {
            let rested = hand.child.rests();
            let is_at_item = rested.is_none() || hand.child.has_run();
            if let Some(limit) = self.limits.limit()
                && is_at_item
            {
                hand.child.stop_if_overdue(limit.most());
            }
            let rested = rested.unwrap_or_default();
            if hand.has_stalled || is_at_item || rested < STALLED_AFTER {
                continue;
            }
            if rested >= self.pause {
                // It may just be a machine on which no process makes progress.
                self.pause = (2 * self.pause).min(LONGEST_PAUSE);
            } else if !hand.child.is_stopped() {
                continue;
            }
            hand.has_stalled = true;
            hand.child.kill();
        }
    }

    fn hire<F, A>(
        &self,
        f: &F,
        items: &mut [Option<A>],
        living: &[Hand<'_>],
    ) -> Result<Hand<'a>, TaskError>
    where
        F: Fn(A) -> R,
    {
        self.engine.check_threads()?;
        let mut work = Some(|responses: &mut ResponseWriter| self.work(f, items, responses));
        let index = worker_index::lowest_free(living.iter().map(|hand| hand.index));
        let setup = self.engine.submitted.setup(index);
        let child = Child::start(&self.bell, Bond::Thread, setup, &mut work);
        let child = child.map_err(|error| PoolError::StartFailed {
            worker: index,
            workers: self.engine.workers,
            reason: error.to_string(),
        })?;
        Ok(Hand {
            _enlisted: self.engine.submitted.enlist(child.process())?,
            child,
            index,
            at: None,
            from: 0,
            ended: None,
            has_stalled: false,
        })
    }

    /// Claims chunks, as the child, until there are none left. The items that the child takes are
    /// its own copies.
    fn work<F, A>(&self, f: &F, items: &mut [Option<A>], responses: &mut ResponseWriter)
    where
        F: Fn(A) -> R,
    {
        let mut answers = Answers::new(&self.limits, responses);
        while let Some(&index) = self.list.get(self.cursor.claim()) {
            let chunk = &self.chunks[index];
            responses.begin(number(index), chunk.answered);
            seed::begin_task(self.limits.seeds.from(chunk.first));
            logs::begin_task(Some(chunk.first).into());
            responses.set_stops_at(self.stops_at(chunk));
            if self.engine.submitted.accounts.has_timeline() {
                responses.set_recorded();
            }
            for item in &mut items[chunk.first + chunk.answered as usize..chunk.end] {
                if !responses.goes_on() {
                    break;
                }
                if let Some(item) = item.take() {
                    answers.answer(responses, || f(item));
                }
            }
            responses.end();
            if answers.are_broken() {
                // The after-fork hooks of this child have failed. It is given up: those of another
                // child may succeed.
                break;
            }
        }
    }

    /// Returns after which answer a child ends the chunk: if an item may be tried again, those
    /// behind it are not to start before.
    fn stops_at(&self, chunk: &Chunk) -> StopsAt {
        match chunk.stops_at() {
            StopsAt::Nothing if self.limits.retry().is_for_answers() => StopsAt::Fault,
            stops_at => stops_at,
        }
    }

    /// Calls `take` with what takes the answers for this chunk.
    fn answered<T>(&mut self, index: usize, take: impl FnOnce(&dyn Sink) -> T) -> T {
        let chunk = &self.chunks[index];
        if !self.limits.retry().is_on() {
            return take(chunk);
        }
        let first = (chunk.answered, chunk.attempts);
        let policy = self.limits.policy();
        let answered = Answered::new(chunk, policy, self.stops_at(chunk), first, chunk.again);
        let taken = take(&answered);
        self.chunks[index].again = answered.again();
        taken
    }

    /// Counts an attempt at the first item of a chunk that has no answer. It is followed by another
    /// when its pause is over.
    fn try_again(&mut self, index: usize, attempts: u32) {
        let pause = self.limits.retry().pause(attempts);
        let chunk = &mut self.chunks[index];
        chunk.attempts = attempts;
        chunk.due = Instant::now()
            .checked_add(pause)
            .filter(|_| !pause.is_zero());
        self.engine.submitted.accounts.retried();
        self.fruitless = 0;
    }

    /// Takes what a child has published. Returns true if there was anything.
    fn drain(&mut self, hand: &mut Hand<'_>) -> bool {
        let mut took = false;
        while hand.child.has_next() {
            took = true;
            if hand.at.is_none() {
                hand.at = self.chunk_of(hand.child.receiver.next_task());
                if let Some((index, expected)) = &hand.at {
                    self.chunks[*index].is_taken = true;
                    hand.from = expected.next;
                }
            }
            let Some((index, expected)) = &mut hand.at else {
                // The child names a chunk that does not exist, is finished, or belongs to another
                // child.
                hand.child.kill_for(Corruption::NotDue);
                break;
            };
            let index = *index;
            let failed = self.chunks[index].failed();
            let child = &mut hand.child;
            let ended = self.answered(index, |sink| child.take(expected, sink));
            let next = self.chunks[index].again.unwrap_or(expected.next);
            self.note(index, next, failed);
            if ended {
                let items = expected.end.saturating_sub(hand.from);
                hand.child.record(self.began, items, true);
                self.chunks[index].is_taken = false;
                hand.at = None;
                hand.ended = Some(index);
                if self.chunks[index].again.take().is_some() {
                    self.try_again(index, self.chunks[index].attempts + 1);
                }
            }
        }
        if took {
            hand.child.receiver.header().wake_worker();
        }
        took
    }

    /// Records that all items of a chunk before `next` have an answer. `failed` of them had failed
    /// before.
    fn note(&mut self, index: usize, next: u32, failed: usize) {
        let chunk = &mut self.chunks[index];
        if next > chunk.answered {
            self.done += (next - chunk.answered) as usize;
            chunk.answered = next;
            chunk.attempts = 0;
            self.fruitless = 0;
        }
        self.failed += chunk.failed() - failed;
        if chunk.decides() && self.cut.is_none_or(|cut| index < cut) {
            self.cut = Some(index);
        }
    }

    /// Finds the unfinished chunk with this number, if no other child is at it. Returns it, and
    /// what is expected of it.
    fn chunk_of(&self, task: Option<u32>) -> Option<(usize, Expected)> {
        let index = task?.checked_sub(1)? as usize;
        let is_open = |chunk: &&Chunk| !chunk.is_finished() && !chunk.is_taken;
        let chunk = self.chunks.get(index).filter(is_open)?;
        let result_size = codec::fixed_size::<R>();
        Some((
            index,
            Expected {
                task: number(index),
                next: chunk.answered,
                end: chunk.count(),
                result_size,
                stops_at: self.stops_at(chunk),
                may_stop: self.is_asked || self.cut.is_some_and(|cut| index > cut),
            },
        ))
    }

    /// Finds the chunk that a child was at when it ended. It may have begun one and published
    /// nothing of it.
    fn find(&self, hand: &mut Hand<'_>) {
        if hand.at.is_none() {
            let task = hand.child.receiver.header().progress().task;
            // A chunk that it has ended, and that is not finished, is another child's.
            let has_ended = hand.ended.is_some_and(|ended| number(ended) == task);
            hand.at = self.chunk_of(Some(task).filter(|_| !has_ended));
            hand.from = hand.at.as_ref().map_or(0, |(_, expected)| expected.next);
        }
    }

    /// Records the chunk that a child was at when it ended, in a call that has its outcome.
    fn record_rest(&self, hand: &mut Hand<'_>) {
        self.find(hand);
        if let Some((index, expected)) = hand.at.take() {
            let items = expected.end.saturating_sub(hand.from);
            let completed = self.chunks[index].is_finished();
            hand.child.record(self.began, items, completed);
        }
    }

    /// Reclaims a child that has ended: settles the chunk that it was at.
    fn reclaim(&mut self, hand: &mut Hand<'_>) {
        self.fruitless += usize::from(!hand.has_stalled);
        self.find(hand);
        let Some((index, mut expected)) = hand.at.take() else {
            // The child was at no chunk.
            hand.child.reap_at_rest();
            return;
        };
        self.chunks[index].is_taken = false;
        let failed = self.chunks[index].failed();
        let limit = self.limits.limit();
        let child = &mut hand.child;
        let (fate, error) = self.answered(index, |sink| child.reclaim(&mut expected, sink, limit));
        let again = self.chunks[index].again.take();
        self.note(index, again.unwrap_or(expected.next), failed);
        // A child that has answered all items of its chunk may have died before it said so.
        let has_begun = expected.next > hand.from || fate.is_none_or(|fate| fate.started);
        if has_begun {
            let items = expected.end.saturating_sub(hand.from);
            let completed = fate.is_none() && again.is_none();
            hand.child.record(self.began, items, completed);
        }
        if again.is_some() {
            // The child had answered that the item failed, and was to start no other.
            self.try_again(index, self.chunks[index].attempts + 1);
            return;
        }
        if let Some(Fate {
            next,
            started: true,
        }) = fate
        {
            // The child had started an item and had not answered it.
            self.fruitless = 0;
            let is_killed = matches!(
                error,
                TaskError::WorkerDied {
                    cause: Death::Signal(9),
                    ..
                }
            );
            // The child seemed to be at no item, and went on in the moment before the signal: its
            // item may run again. But an item whose function has ended is not run twice.
            let is_innocent = hand.has_stalled && !hand.child.has_run();
            // An item that was running when the call ended fails with the call.
            if is_killed && let Some(reason) = self.limits.ended() {
                if !is_innocent {
                    hand.child.count(1);
                    hand.child.count_failure(&reason.error());
                    self.stopped += 1;
                }
                return;
            }
            if is_killed && is_innocent {
                return;
            }
            let attempts = self.chunks[index].attempts + 1;
            let error = if self.engine.submitted.is_killed() {
                TaskError::Cancelled {}
            } else {
                error
            };
            if self.limits.policy().allows_after(&error, attempts) {
                self.try_again(index, attempts);
            } else {
                hand.child.count_failure(&error);
                let chunk = &self.chunks[index];
                let failed = chunk.failed();
                chunk.fail(next, error.with_attempts(attempts));
                self.note(index, next + 1, failed);
            }
        }
    }

    /// Returns the results of all items, or up to that at which the call stops.
    ///
    /// # Errors
    ///
    /// That of the first item, in input order, that failed.
    fn results<S: Stop<R>>(self, stop: S) -> Result<Vec<R>, TaskError> {
        let mut results = Vec::with_capacity(self.chunks.last().map_or(0, |chunk| chunk.end));
        for chunk in self.chunks {
            let Some(attempts) = chunk.results(&mut results)? else {
                continue;
            };
            stop.tried(attempts);
            if !results.last().is_some_and(S::is_met) {
                let reason = "its bytes are those of an error, and it is none".to_owned();
                let last = results.len().checked_sub(1);
                return Err(wire::undecoded(last, TaskValue::Result, reason));
            }
            break;
        }
        Ok(results)
    }

    /// Returns the outcomes of all items. `failure` is why some have not been run.
    fn outcomes(self, failure: Option<TaskError>) -> Vec<Result<R, TaskError>> {
        let failure = failure.unwrap_or(TaskError::Cancelled {});
        let mut outcomes = Vec::with_capacity(self.chunks.last().map_or(0, |chunk| chunk.end));
        for chunk in self.chunks {
            chunk.outcomes(&failure, &mut outcomes);
        }
        outcomes
    }
}

/// Returns the number by which a lane knows a chunk; 0 is none.
fn number(index: usize) -> u32 {
    index as u32 + 1
}

#[cfg(all(test, not(loom)))]
mod tests;
