//! A call over many items: the input is cut into chunks, a window of them is under way, and the
//! results are put together in order.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunk::{self, Given};
use super::leader::WaitOptions;
use super::shared::Shared;
use super::task::{Function, Results, Task};
use crate::call::{Chunks, Limits, Plan};
use crate::codec;
use crate::engine::discard::Discard;
use crate::error::{TaskError, TaskValue};
use crate::future::Signal;
use crate::lane::message::Fault;
use crate::lane::{RawBytes, Sink};
use crate::memory::transit;
use crate::memory::wire;

/// A chunk ends when its items take this many bytes, so that the first worker can start before all
/// items are encoded.
const CHUNK_BYTES: usize = 64 << 10;

/// What the chunks of a call have in common.
#[derive(Default)]
struct Call {
    /// Raised at the end of each chunk.
    chunk_ended: Signal,
    items_ended: AtomicUsize,
    items_failed: AtomicUsize,
    /// The caller listens to the progress.
    is_watched: AtomicBool,
    /// The caller does not wait for the rest.
    is_abandoned: AtomicBool,
}

/// Where the results of a chunk go.
struct ChunkResults<R> {
    call: Arc<Call>,
    /// Index of the chunk's first item in the input.
    base: usize,
    /// Number of items that this chunk's worker is to answer.
    count: usize,
    outcome: Mutex<Outcome>,
    /// Number of items of this chunk that have failed.
    failed: AtomicUsize,
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
    /// The results in order, as the codec wrote them, up to the first item that failed.
    bytes: Vec<u8>,
    /// The results after that item.
    unwanted: Vec<u8>,
    failure: Option<TaskError>,
}

impl<R> ChunkResults<R> {
    /// Records that item `index` of the chunk has failed. The first failure is kept.
    fn fail(&self, error: TaskError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.outcome.lock().failure.get_or_insert(error);
    }
}

impl<R> Sink for ChunkResults<R> {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        let mut outcome = self.outcome.lock();
        if outcome.failure.is_none() {
            bytes.append_to(&mut outcome.bytes);
        } else if transit::was_ever_sent() {
            // No caller wants these results, but the handles in them must be released.
            bytes.append_to(&mut outcome.unwanted);
        }
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.fail(fault.into_error(Some(self.base + index as usize)));
    }
}

impl<R> Results for ChunkResults<R> {
    fn failed(&self, index: u32, error: TaskError) {
        self.fail(error.with_index(self.base + index as usize));
    }

    fn ended(&self) {
        self.call
            .items_ended
            .fetch_add(self.count, Ordering::Relaxed);
        let failed = self.failed.load(Ordering::Relaxed);
        if failed > 0 {
            // This comes after the count of the items that have ended, which is read after this
            // one: so the caller never reads more failed items than ended ones.
            self.call.items_failed.fetch_add(failed, Ordering::Release);
        }
        self.is_ended.store(true, Ordering::Release);
        self.call.chunk_ended.raise();
    }

    fn is_awaited(&self) -> bool {
        self.call.is_watched.load(Ordering::Relaxed)
    }

    fn is_wanted(&self) -> bool {
        !self.call.is_abandoned.load(Ordering::Relaxed)
    }
}

/// Runs `function` on all items and returns the results in order.
pub(super) fn map<A, R>(
    shared: &Arc<Shared>,
    plan: Plan<'_>,
    function: &Function,
    items: impl Iterator<Item = A>,
) -> Result<Vec<R>, TaskError>
where
    A: Serialize + 'static,
    R: DeserializeOwned + 'static,
{
    let mut run = Run {
        shared,
        function,
        chunks: plan.chunks(shared.workers())?,
        limits: shared.limits(plan.limits),
        window: plan.window,
        call: Arc::new(Call::default()),
        under_way: VecDeque::new(),
        collected: 0,
        given: 0,
        is_lazy: plan.window.is_some() || plan.total.is_none_or(|total| total > MOST_RESERVED),
        input_failed: None,
        input_ended: false,
    };
    let mut tracker = plan.tracker;
    run.call
        .is_watched
        .store(tracker.is_on(), Ordering::Relaxed);
    let mut items = items;
    let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
    let options = WaitOptions {
        cold: false,
        deadline: None,
        comes_back: !run.is_lazy,
    };
    loop {
        let seen = run.call.chunk_ended.count();
        run.collect(&mut results)?;
        // Nothing is given out while there is something to collect: short tasks end as fast as they
        // are given out.
        while run.has_room() && !run.has_ended_chunk() {
            run.give_chunk(&mut items)?;
        }
        if run.under_way.is_empty() {
            tracker.tell(run.call.items_ended.load(Ordering::Relaxed), 0);
            return run.input_failed.take().map_or(Ok(results), Err);
        }
        shared.wait(&run.call.chunk_ended, seen, options);
        let Call {
            items_ended,
            items_failed,
            ..
        } = &*run.call;
        let failed = items_failed.load(Ordering::Acquire);
        tracker.tell(items_ended.load(Ordering::Relaxed), failed);
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
}

impl<R: DeserializeOwned + 'static> Run<'_, R> {
    /// Takes the results of the chunks that have ended, up to the first that has not.
    ///
    /// # Errors
    ///
    /// The error of the first item in input order that failed. The results of all items before it
    /// have been taken.
    fn collect(&mut self, results: &mut Vec<R>) -> Result<(), TaskError> {
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
            let (bytes, failure) = {
                let mut outcome = outcome.lock();
                (std::mem::take(&mut outcome.bytes), outcome.failure.take())
            };
            let expected = failure.is_none().then_some(*count);
            wire::decode_all(&bytes, results, *base, expected)?;
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        Ok(())
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
            while count < size && bytes.len() < CHUNK_BYTES {
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
            retries: self.limits.retries,
            limit: self.limits.timeout,
            seeds: self.limits.seeds.from(base),
            handles,
            results: ChunkResults {
                call: self.call.clone(),
                base,
                count,
                outcome: Mutex::default(),
                failed: AtomicUsize::new(0),
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
    let (mut given, mut has_ended) = (0, false);
    loop {
        while !has_ended && under_way.0.len() < 8 * workers && given - results.len() < window {
            let room = window - (given - results.len());
            let planned = sizes.next_size();
            let size = planned.min(room).min(window.div_ceil(2 * workers));
            let size = (size, CHUNK_BYTES);
            let (chunk, taken, ended) =
                chunk::give(shared, limits, function, given, &mut items, size);
            sizes.put_back(planned - taken);
            has_ended = ended;
            given += taken;
            under_way.0.push_back((chunk, taken));
        }
        let Some((chunk, count)) = under_way.0.pop_front() else {
            return results;
        };
        match chunk {
            Given::Outcomes(outcomes) => results.extend(outcomes),
            Given::UnderWay(chunk) => match chunk.result() {
                Ok(outcomes) => results.extend(outcomes),
                Err(error) => results.extend(error.of_items(results.len(), 0..count)),
            },
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
        }
        // Other threads may have relied on this thread, which has said that it would come back to
        // wait.
        self.shared.hand_over(&mut dispatch);
    }
}
