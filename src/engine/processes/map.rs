//! A call over many items: the input is cut into chunks, a window of them is under way, and the
//! results are put together in order.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunk::{self, Counts, Given};
use super::leader::WaitOptions;
use super::shared::Shared;
use super::task::{Function, Results, Task};
use crate::call::progress;
use crate::call::{Chunks, Limits, Plan, Stop, Tracker};
use crate::codec;
use crate::engine::discard::Discard;
use crate::error::{TaskError, TaskValue};
use crate::future::{Ending, Reason, Signal, Watch};
use crate::lane::message::{Fault, StopsAt};
use crate::lane::{RawBytes, Sink};
use crate::memory::transit;
use crate::memory::wire;

/// A chunk ends when its items take this many bytes, so that the first worker can start before all
/// items are encoded.
const CHUNK_BYTES: usize = 64 << 10;

/// What the chunks of a call have in common.
struct Call {
    /// Raised at the end of each chunk.
    chunk_ended: Signal,
    /// Items that have an answer.
    items_ended: AtomicUsize,
    items_failed: AtomicUsize,
    /// Index of the first item known to have failed, or to have a result at which the call stops.
    /// The items after it are not wanted. Set under the dispatch's lock.
    stops_at: AtomicUsize,
    /// The caller listens to the progress.
    is_watched: AtomicBool,
    /// The caller does not wait for the rest.
    is_abandoned: AtomicBool,
    /// Why the call is over, while what runs has its grace period.
    over: OnceLock<Reason>,
    /// Stops what runs at the end of that.
    watch: OnceLock<Watch>,
}

impl Call {
    fn new(is_watched: bool) -> Self {
        Self {
            chunk_ended: Signal::default(),
            items_ended: AtomicUsize::new(0),
            items_failed: AtomicUsize::new(0),
            stops_at: AtomicUsize::new(usize::MAX),
            is_watched: AtomicBool::new(is_watched),
            is_abandoned: AtomicBool::new(false),
            over: OnceLock::new(),
            watch: OnceLock::new(),
        }
    }

    /// Returns whether the item with this index is wanted, as far as is known.
    fn wants(&self, index: usize) -> bool {
        index <= self.stops_at.load(Ordering::Relaxed)
    }
}

/// Where the results of a chunk go.
struct ChunkResults<R> {
    call: Arc<Call>,
    /// Index of the chunk's first item in the input.
    base: usize,
    /// Number of items that this chunk's worker is to answer.
    count: usize,
    /// Whether the results are `Result`s, and the call stops at an `Err`.
    stops_at_err: bool,
    outcome: Mutex<Outcome>,
    is_ended: AtomicBool,
    results: Discard,
    result: PhantomData<fn() -> R>,
}

impl<R> Drop for ChunkResults<R> {
    fn drop(&mut self) {
        let outcome = self.outcome.get_mut();
        self.results.discard(std::mem::take(&mut outcome.bytes));
        self.results.discard(std::mem::take(&mut outcome.unwanted));
    }
}

#[derive(Default)]
struct Outcome {
    /// The results in order, as the codec wrote them, up to the first item that failed or has the
    /// result at which the call stops.
    bytes: Vec<u8>,
    /// The results after that item.
    unwanted: Vec<u8>,
    failure: Option<TaskError>,
    /// Whether the last result in `bytes` is one at which the call stops.
    has_stopped: bool,
    /// How often the item of that result was started, if it could be more than once.
    attempts: u32,
}

impl<R> ChunkResults<R> {
    /// Records that item `index` of the chunk has failed.
    fn fail(&self, index: u32, error: TaskError) {
        let index = self.base + index as usize;
        if !self.call.wants(index) {
            // An item before it has failed. This one may have been left out.
            return;
        }
        self.outcome
            .lock()
            .failure
            .get_or_insert(error.with_index(index));
        self.call.stops_at.fetch_min(index, Ordering::Relaxed);
        self.call.items_ended.fetch_add(1, Ordering::Relaxed);
        // This comes after the count of the items that have ended, which is read after this one: so
        // the caller never reads more failed items than ended ones.
        self.call.items_failed.fetch_add(1, Ordering::Release);
    }
}

impl<R> Sink for ChunkResults<R> {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        let mut outcome = self.outcome.lock();
        let outcome = &mut *outcome;
        if outcome.failure.is_none() && !outcome.has_stopped {
            let before = outcome.bytes.len();
            bytes.append_to(&mut outcome.bytes);
            if self.stops_at_err
                && let Some((nth, end)) = codec::first_err(&outcome.bytes[before..])
            {
                outcome.has_stopped = true;
                outcome.unwanted = outcome.bytes.split_off(before + end);
                let index = self.base + first as usize + nth;
                self.call.stops_at.fetch_min(index, Ordering::Relaxed);
            }
        } else if transit::was_ever_sent() {
            // No caller wants these results, but the handles in them must be released.
            bytes.append_to(&mut outcome.unwanted);
        }
        self.call
            .items_ended
            .fetch_add(count as usize, Ordering::Relaxed);
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.fail(index, fault.into_error(None));
    }

    fn has_stopped(&self) -> bool {
        self.outcome.lock().has_stopped
    }
}

impl<R> Results for ChunkResults<R> {
    fn failed(&self, index: u32, error: TaskError) {
        self.fail(index, error);
    }

    fn ended(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.call.chunk_ended.raise();
    }

    fn is_awaited(&self) -> bool {
        self.call.is_watched.load(Ordering::Relaxed)
    }

    fn tried(&self, attempts: u32) {
        self.outcome.lock().attempts = attempts;
    }

    fn discard(&self, bytes: Vec<u8>) {
        self.results.discard(bytes);
    }

    fn call(&self) -> *const () {
        Arc::as_ptr(&self.call).cast()
    }

    fn is_wanted(&self, from: u32) -> bool {
        self.call.wants(self.base + from as usize)
            && !self.call.is_abandoned.load(Ordering::Relaxed)
            && self.call.over.get().is_none()
    }

    fn is_over(&self) -> bool {
        self.call.over.get().is_some()
    }

    fn unwanted(&self) -> TaskError {
        let over = self.call.over.get();
        over.map_or(TaskError::Cancelled {}, |reason| reason.error())
    }
}

/// Runs `function` on all items, or up to the first result at which the call stops, and returns the
/// results in order.
pub(super) fn map<A, R, S>(
    shared: &Arc<Shared>,
    plan: Plan<'_>,
    function: &Function,
    items: impl Iterator<Item = A>,
    stop: S,
) -> Result<Vec<R>, TaskError>
where
    A: Serialize + 'static,
    R: DeserializeOwned + 'static,
    S: Stop<R>,
{
    let chunks = plan.chunks(shared.workers())?;
    let mut tracker = plan.tracker;
    let mut run = Run {
        shared,
        function,
        chunks,
        limits: shared.limits(plan.limits),
        window: plan.window,
        stops_at_err: S::AT_ERR,
        call: Arc::new(Call::new(tracker.is_on())),
        under_way: VecDeque::new(),
        collected: 0,
        given: 0,
        is_lazy: plan.window.is_some() || plan.total.is_none_or(|total| total > MOST_RESERVED),
        input_failed: None,
        input_ended: false,
        total: plan.total,
        ended: None,
        attempts: 1,
    };
    let _watch = run.limits.ending().map(|ending| {
        let (call, shared) = (run.call.clone(), shared.clone());
        ending.watch(move |_| {
            // The caller looks whether the call is over after each wait.
            call.chunk_ended.raise();
            shared.bell.ring();
        })
    });
    let mut items = items;
    let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
    let options = WaitOptions {
        cold: false,
        deadline: None,
        comes_back: !run.is_lazy,
    };
    'call: loop {
        let seen = run.call.chunk_ended.count();
        // Before the look at what has ended: an item that was in time has its result.
        let ended = run.limits.ended();
        if ended.is_some() {
            shared.lock().pump(shared);
        }
        if run.collect(&mut results)? {
            // The outcome is certain with the last result.
            if let Some(last) = results.last()
                && S::is_met(last)
            {
                stop.tried(run.attempts);
                return Ok(results);
            }
            let reason = "its bytes are those of an error, and it is none".to_owned();
            let last = results.len().checked_sub(1);
            return Err(wire::undecoded(last, TaskValue::Result, reason));
        }
        let is_asked = ended.is_some() && run.ask_to_stop();
        if let Some(reason) = ended
            && !is_asked
        {
            if run.has_more() {
                run.ended = ended;
                return Err(reason.error());
            }
            tracker.tell(run.call.items_ended.load(Ordering::Relaxed), 0);
            return run.input_failed.take().map_or(Ok(results), Err);
        }
        // Nothing is given out while there is something to collect: short tasks end as fast as they
        // are given out.
        while !is_asked && run.has_room() && !run.has_ended_chunk() {
            if run.limits.ended().is_some() {
                continue 'call;
            }
            run.give_chunk(&mut items)?;
        }
        if run.under_way.is_empty() {
            tracker.tell(run.call.items_ended.load(Ordering::Relaxed), 0);
            return run.input_failed.take().map_or(Ok(results), Err);
        }
        let options = WaitOptions {
            deadline: run.looks_at(ended),
            ..options
        };
        if tracker.is_on() {
            let pause = Some(Instant::now() + progress::PAUSE);
            let options = WaitOptions {
                deadline: pause.into_iter().chain(options.deadline).min(),
                ..options
            };
            shared.wait(&run.call.chunk_ended, seen, options);
            run.tell(&mut tracker);
        } else {
            shared.wait(&run.call.chunk_ended, seen, options);
        }
    }
}

/// The number of chunks for each worker that are read from an input of unknown length while the
/// first of them has not ended.
const MOST_AHEAD: usize = 256;

/// The length from which an input gets room for its results only as they come.
const MOST_RESERVED: usize = 1 << 24;

struct Run<'a, R> {
    shared: &'a Arc<Shared>,
    function: &'a Function,
    chunks: Chunks,
    limits: Limits,
    /// The most items that are under way, counted from the first that has not ended.
    window: Option<usize>,
    /// Whether the results are `Result`s, and the call stops at an `Err`.
    stops_at_err: bool,
    call: Arc<Call>,
    /// Chunks whose results have not been taken, in the order of the input.
    under_way: VecDeque<Arc<Task<ChunkResults<R>>>>,
    /// Chunks whose results have been taken.
    collected: usize,
    /// Items taken from the input.
    given: usize,
    /// The input does not say how long it is, or it is too long to be read whole. Its next item may
    /// take long to come, and the input is not read far ahead.
    is_lazy: bool,
    /// The error of an item that could not be encoded. No item after it is taken. The items before
    /// it end first.
    input_failed: Option<TaskError>,
    input_ended: bool,
    /// Items in all, if the input says so.
    total: Option<usize>,
    /// Why the call has been ended early, if it has.
    ended: Option<Reason>,
    /// How often the item was started at whose result the call stops.
    attempts: u32,
}

impl<R: DeserializeOwned + 'static> Run<'_, R> {
    /// Tells how many items have ended, in the chunks that run too.
    fn tell(&self, tracker: &mut Tracker<'_>) {
        let dispatch = self.shared.lock();
        let (unpublished, within) = dispatch.unpublished(Arc::as_ptr(&self.call).cast());
        // Both counts change under the dispatch's lock.
        let failed = self.call.items_failed.load(Ordering::Acquire);
        let ended = self.call.items_ended.load(Ordering::Relaxed);
        drop(dispatch);
        tracker.tell_running(ended + unpublished, failed, within);
    }

    /// Takes the results of the chunks that have ended, up to the first that has not. Returns true
    /// if the last one is that at which the call stops.
    ///
    /// # Errors
    ///
    /// The error of the first item in input order that failed. The results of all items before it
    /// have been taken.
    fn collect(&mut self, results: &mut Vec<R>) -> Result<bool, TaskError> {
        let has_ended =
            |chunk: &Arc<Task<ChunkResults<R>>>| chunk.results.is_ended.load(Ordering::Acquire);
        while self.under_way.front().is_some_and(has_ended)
            && let Some(chunk) = self.under_way.pop_front()
        {
            self.collected += 1;
            let ChunkResults {
                outcome,
                base,
                count,
                ..
            } = &chunk.results;
            let (bytes, failure, has_stopped, attempts) = {
                let mut outcome = outcome.lock();
                let bytes = std::mem::take(&mut outcome.bytes);
                let failure = outcome.failure.take();
                (bytes, failure, outcome.has_stopped, outcome.attempts)
            };
            let expected = (failure.is_none() && !has_stopped).then_some(*count);
            wire::decode_all(&bytes, results, *base, expected)?;
            // If the results stop, what failed comes later.
            if has_stopped {
                self.attempts = attempts.max(1);
                return Ok(true);
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        Ok(false)
    }

    /// Ends all items that have not begun, if the call is over and has a grace period that has not
    /// passed, and asks those that run to stop. Returns whether there are any: they may still have
    /// results.
    fn ask_to_stop(&mut self) -> bool {
        let Some(ending) = self.limits.ending().cloned().filter(Ending::has_grace) else {
            return false;
        };
        // This begins the grace period, if no other thread has.
        let Some(reason) = ending.fire_if_over() else {
            return false;
        };
        if self.under_way.is_empty() || ending.killed().is_some() {
            return false;
        }
        if self.call.over.set(reason).is_ok() {
            self.shared.lock().drop_unwanted(self.shared);
            let (call, shared) = (Arc::downgrade(&self.call), Arc::downgrade(self.shared));
            let kill = move |reason: Reason| {
                if let (Some(call), Some(shared)) = (call.upgrade(), shared.upgrade()) {
                    let call = Arc::as_ptr(&call).cast();
                    let mut dispatch = shared.lock();
                    dispatch.kill_if(&reason.error(), |results| results.call() == call);
                    drop(dispatch);
                    shared.bell.ring();
                }
            };
            // It is kept until the last chunk has ended: the caller may return before that.
            let _ = self.call.watch.set(ending.watch_kill(kill));
        }
        true
    }

    /// Returns when the caller must look again, whatever it hears.
    fn looks_at(&self, ended: Option<Reason>) -> Option<Instant> {
        let ending = self.limits.ending()?;
        match ended {
            None => ending.deadline(),
            Some(_) => ending.killed_at(),
        }
    }

    /// Returns whether an item is left that has no result.
    fn has_more(&self) -> bool {
        let has_read_all = self.input_ended || self.total == Some(self.given);
        // What could not be encoded is the first item without a result.
        let goes_on = !has_read_all && self.input_failed.is_none();
        goes_on || !self.under_way.is_empty()
    }

    /// Returns whether another chunk may be given out: enough chunks must be under way to keep
    /// every worker busy, but not so many that a long input is read far ahead.
    fn has_room(&self) -> bool {
        // Chunks that have ended but wait for one before them keep no worker busy.
        let waiting = self.call.chunk_ended.count() - self.collected;
        let chunks = self.under_way.len() - waiting.min(self.under_way.len());
        let workers = self.shared.workers();
        let open = self
            .under_way
            .front()
            .map_or(0, |chunk| self.given - chunk.results.base);
        let items = self.given - self.call.items_ended.load(Ordering::Relaxed);
        !self.input_ended
            && self.input_failed.is_none()
            && self.call.wants(self.given)
            && (chunks < 4 * workers || (chunks < 16 * workers && items < 1_024))
            && (!self.is_lazy || self.under_way.len() < MOST_AHEAD * workers)
            && self.window.is_none_or(|window| open < window)
    }

    /// Returns whether the first chunk that has not been collected has ended.
    fn has_ended_chunk(&self) -> bool {
        let first = self.under_way.front();
        first.is_some_and(|chunk| chunk.results.is_ended.load(Ordering::Acquire))
    }

    /// Takes the next chunk from the input and gives it to the workers.
    fn give_chunk<A: Serialize + 'static>(
        &mut self,
        items: &mut impl Iterator<Item = A>,
    ) -> Result<(), TaskError> {
        let planned = self.chunks.next_size();
        let mut size = planned;
        if let Some(window) = self.window {
            let open = self
                .under_way
                .front()
                .map_or(0, |chunk| self.given - chunk.results.base);
            let share = window.div_ceil(2 * self.shared.workers());
            size = size.min(share).min(window.saturating_sub(open));
        }
        let base = self.given;
        let mut bytes = Vec::new();
        if let Some(item) = codec::fixed_size::<A>() {
            bytes.reserve(item.saturating_mul(size).min(CHUNK_BYTES + item));
        }
        let mut count = 0;
        let ((), handles) = transit::keep(|| {
            let ending = self.limits.ending();
            while count < size && bytes.len() < CHUNK_BYTES {
                // The input may take its time, or end the call.
                if ending.is_some_and(|ending| ending.reason().is_some()) {
                    break;
                }
                // This calls the user's iterator: if it panics, dropping `self` abandons the call.
                let Some(item) = items.next() else {
                    self.input_ended = true;
                    break;
                };
                if let Err(error) = encode_item(&mut bytes, &item) {
                    self.input_failed = Some(error.with_index(base + count));
                    break;
                }
                count += 1;
            }
        });
        self.chunks.put_back(planned - count);
        if count == 0 {
            return Ok(());
        }
        self.given += count;
        let task = Arc::new(Task {
            function: self.function.clone(),
            items: bytes.into(),
            count: count as u32,
            argument_size: codec::fixed_size::<A>(),
            result_size: codec::fixed_size::<R>(),
            limits: self.limits.of_item(base),
            handles,
            stops_at: if self.stops_at_err {
                StopsAt::Err
            } else {
                StopsAt::Fault
            },
            name: Some(base).into(),
            results: ChunkResults {
                call: self.call.clone(),
                base,
                count,
                stops_at_err: self.stops_at_err,
                outcome: Mutex::default(),
                is_ended: AtomicBool::new(false),
                results: Discard::of::<R>(),
                result: PhantomData,
            },
        });
        // If the input says how long it is, its next item comes soon: this thread will pump again.
        self.shared.place(task.clone(), self.is_lazy)?;
        self.under_way.push_back(task);
        Ok(())
    }
}

/// Appends an item to others. An error comes without the item's index, and then nothing of the item
/// is left in `bytes`.
#[inline]
pub(super) fn encode_item<A: Serialize + 'static>(
    bytes: &mut Vec<u8>,
    item: &A,
) -> Result<(), TaskError> {
    if codec::fixed_size::<A>().is_some() && codec::append(bytes, item).is_ok() {
        // No code of the user's has run that could panic.
        return Ok(());
    }
    encode_with_care(bytes, item)
}

/// Appends an item, with the checks. This is apart from `encode_item` so that the short way above
/// stays short: items of few nanoseconds would show it.
#[inline(never)]
fn encode_with_care<A: Serialize + 'static>(
    bytes: &mut Vec<u8>,
    item: &A,
) -> Result<(), TaskError> {
    wire::encode(bytes, item, TaskValue::Argument)
}

/// Runs `function` on all items, and returns the outcome of each.
pub(super) fn map_outcomes<A, R>(
    shared: &Arc<Shared>,
    plan: Plan<'_>,
    function: &Function,
    mut items: impl Iterator<Item = A>,
) -> Vec<Result<R, TaskError>>
where
    A: Serialize + 'static,
    R: DeserializeOwned + 'static,
{
    let workers = shared.workers();
    let mut sizes = match plan.chunks(workers) {
        Ok(sizes) => sizes,
        Err(error) => return error.of_items(0, items),
    };
    let limits = shared.limits(plan.limits);
    let window = plan.window.unwrap_or(usize::MAX);
    let mut tracker = plan.tracker;
    let (mut done, mut failed) = (0, 0);
    let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
    let mut under_way = UnderWay(VecDeque::new());
    let counts = tracker.is_on().then(|| Arc::new(Counts::default()));
    let (mut given, mut has_ended) = (0, false);
    let ending = limits.ending().cloned();
    loop {
        if let Some(ending) = &ending
            && let Some(reason) = ending.fire_if_over()
            && !has_ended
        {
            // What has not been given to the workers fails here, after what has.
            let rest = reason.error().of_items(given, &mut items);
            (has_ended, given) = (true, given + rest.len());
            let count = rest.len();
            under_way.0.push_back((Given::Outcomes(rest), count));
        }
        while !has_ended && under_way.0.len() < 8 * workers && given - results.len() < window {
            let room = window - (given - results.len());
            let planned = sizes.next_size();
            let size = planned.min(room).min(window.div_ceil(2 * workers));
            let size = (size, CHUNK_BYTES);
            let (chunk, taken, ended) = chunk::give(
                shared,
                &limits,
                function,
                given,
                &mut items,
                size,
                counts.as_ref(),
            );
            sizes.put_back(planned - taken);
            has_ended = ended;
            given += taken;
            if let (Some(ending), Given::UnderWay(chunk)) = (&ending, &chunk) {
                chunk.end_with(ending);
            }
            under_way.0.push_back((chunk, taken));
            if limits.ended().is_some() {
                break;
            }
        }
        let Some((chunk, count)) = under_way.0.pop_front() else {
            return results;
        };
        match chunk {
            Given::Outcomes(outcomes) => results.extend(outcomes),
            Given::UnderWay(chunk) => {
                // The first chunk is still one of those under way, if telling panics.
                under_way.0.push_front((Given::UnderWay(chunk), count));
                if let Some(counts) = &counts {
                    under_way.wait_and_tell(shared, counts, failed, ending.as_ref(), &mut tracker);
                } else if let Some(ending) = &ending {
                    under_way.wait_until_over(ending);
                }
                let Some((Given::UnderWay(chunk), _)) = under_way.0.pop_front() else {
                    return results;
                };
                match chunk.result() {
                    Ok(outcomes) => results.extend(outcomes),
                    Err(error) => results.extend(error.of_items(results.len(), 0..count)),
                }
            }
        }
        if tracker.is_on() {
            let counted: usize = results[done..]
                .iter()
                .filter(|outcome| outcome.is_err())
                .count();
            failed += counted;
            done = results.len();
            tracker.tell(done, failed);
        }
    }
}

/// Chunks of a call that are under way, in order, with the number of items of each. If the call is
/// given up because its input panics, the chunks that have not begun are cancelled.
struct UnderWay<R>(VecDeque<(Given<R>, usize)>);

impl<R> UnderWay<R> {
    /// Waits until the first chunk has ended. Tells meanwhile how many items of the call have.
    fn wait_and_tell(
        &self,
        shared: &Arc<Shared>,
        counts: &Arc<Counts>,
        failed: usize,
        ending: Option<&Ending>,
        tracker: &mut Tracker<'_>,
    ) {
        let deadline = ending.and_then(Ending::deadline);
        let next = || {
            let pause = Instant::now() + progress::PAUSE;
            deadline
                .filter(|at| *at > Instant::now())
                .map_or(pause, |at| pause.min(at))
        };
        while !self.wait_first(Some(next())) {
            if let Some(ending) = ending {
                ending.fire_if_over();
            }
            let dispatch = shared.lock();
            let (unpublished, _) = dispatch.unpublished(Arc::as_ptr(counts).cast());
            // The count changes under the dispatch's lock.
            let ended = counts.ended();
            drop(dispatch);
            tracker.tell_running(ended + unpublished, failed, 0);
        }
    }

    /// Waits until the first chunk has ended. At the deadline, stops what runs.
    fn wait_until_over(&self, ending: &Ending) {
        if !self.wait_first(ending.deadline()) {
            ending.fire_if_over();
        }
    }

    /// Waits until the first chunk has ended, or until the deadline. Returns true if it has.
    fn wait_first(&self, deadline: Option<Instant>) -> bool {
        match self.0.front() {
            Some((Given::UnderWay(chunk), _)) => chunk.wait(deadline),
            _ => true,
        }
    }
}

impl<R> Drop for UnderWay<R> {
    fn drop(&mut self) {
        for (chunk, _) in self.0.iter().rev() {
            if let Given::UnderWay(chunk) = chunk {
                chunk.cancel();
            }
        }
    }
}

impl<R> Drop for Run<'_, R> {
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            return;
        }
        let mut dispatch = self.shared.lock();
        if !self.under_way.is_empty() {
            self.call.is_abandoned.store(true, Ordering::Relaxed);
            dispatch.drop_unwanted(self.shared);
            if let Some(reason) = self.ended {
                let call = Arc::as_ptr(&self.call).cast();
                dispatch.kill_if(&reason.error(), |results| results.call() == call);
            }
        }
        // Other threads may have relied on this thread, which has said that it would come back to
        // wait.
        self.shared.hand_over(&mut dispatch);
    }
}
