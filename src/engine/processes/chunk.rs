//! A chunk of items with a handle of its own, for the calls that give the outcome of every item.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::completion::{self, Completion, PendingResults};
use super::map::encode_item;
use super::shared::Shared;
use super::task::{Function, Results, Task, stops_at};
use crate::call::{ChunkFuture, Limits};
use crate::codec;
use crate::engine::discard::Discard;
use crate::error::TaskError;
use crate::future::{Reason, TaskFuture};
use crate::lane::message::Fault;
use crate::lane::{RawBytes, Sink};
use crate::memory::transit;
use crate::memory::wire;

/// What a call that is told of its progress counts of all its chunks.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Items that have an outcome.
    ended: AtomicUsize,
}

impl Counts {
    pub(super) fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    fn add(&self, ended: usize) {
        self.ended.fetch_add(ended, Ordering::Relaxed);
    }
}

/// Where the outcomes of the items go.
struct ChunkPromise<R> {
    completion: Completion,
    counts: Option<Arc<Counts>>,
    /// Index of the first item in the input.
    base: usize,
    count: usize,
    /// Items that could not be sent, in order, with their errors. The workers do not know of these
    /// items, and count without them.
    unsent: Vec<(usize, TaskError)>,
    outcome: Mutex<Outcome>,
    results: Discard,
    result: PhantomData<fn() -> Vec<R>>,
}

impl<R> Drop for ChunkPromise<R> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.outcome.get_mut().bytes);
        self.results.discard(bytes);
    }
}

#[derive(Default)]
struct Outcome {
    /// The results in order, as the codec wrote them.
    bytes: Vec<u8>,
    /// The items that have no result, in order, by the workers' count.
    failures: Vec<(usize, TaskError)>,
    /// The number of items from the first that have an outcome, by the workers' count.
    known: usize,
    is_taken: bool,
}

impl<R> ChunkPromise<R> {
    fn fail(&self, index: u32, error: TaskError) {
        self.completion.set_failed();
        let mut outcome = self.outcome.lock();
        let index = index as usize;
        outcome.known = index + 1;
        outcome.failures.push((index, error));
        drop(outcome);
        self.count(1);
    }

    fn count(&self, ended: usize) {
        if let Some(counts) = &self.counts {
            counts.add(ended);
        }
    }
}

impl<R> Sink for ChunkPromise<R> {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        let mut outcome = self.outcome.lock();
        bytes.append_to(&mut outcome.bytes);
        outcome.known = (first + count) as usize;
        drop(outcome);
        self.count(count as usize);
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.fail(index, fault.into_error(None));
    }
}

impl<R> Results for ChunkPromise<R> {
    fn failed(&self, index: u32, error: TaskError) {
        self.fail(index, error);
    }

    fn ended(&self) {
        self.completion.end();
    }

    fn is_awaited(&self) -> bool {
        self.completion.is_awaited()
    }

    fn call(&self) -> *const () {
        let counts = self.counts.as_ref();
        counts.map_or(std::ptr::null(), |counts| Arc::as_ptr(counts).cast())
    }

    fn is_wanted(&self, _from: u32) -> bool {
        self.completion.stopped().is_none()
    }

    fn is_over(&self) -> bool {
        self.completion.stopped().is_some()
    }

    fn unwanted(&self) -> TaskError {
        let stopped = self.completion.stopped();
        stopped.map_or(TaskError::Cancelled {}, Reason::error)
    }

    fn discard(&self, bytes: Vec<u8>) {
        self.results.discard(bytes);
    }

    fn is_told(&self) -> bool {
        self.completion.is_told()
    }

    fn is_cancelled(&self) -> bool {
        self.completion.is_cancelled()
    }
}

impl<R: DeserializeOwned + 'static> PendingResults<Vec<Result<R, TaskError>>> for ChunkPromise<R> {
    fn completion(&self) -> &Completion {
        &self.completion
    }

    fn take(&self) -> Result<Vec<Result<R, TaskError>>, TaskError> {
        let Outcome {
            bytes,
            failures,
            is_taken,
            ..
        } = {
            let mut outcome = self.outcome.lock();
            let taken = std::mem::take(&mut *outcome);
            outcome.is_taken = true;
            taken
        };
        if is_taken {
            return Err(TaskError::Taken {});
        }
        let mut failures = failures.into_iter().peekable();
        let mut unsent = self.unsent.iter().peekable();
        let mut bytes = bytes.as_slice();
        let mut outcomes = Vec::with_capacity(self.count);
        let mut sent = 0;
        for index in 0..self.count {
            if let Some((_, error)) = unsent.next_if(|(at, _)| *at == index) {
                outcomes.push(Err(error.clone()));
                continue;
            }
            let outcome = match failures.next_if(|(failed, _)| *failed == sent) {
                Some((_, error)) => Err(error),
                // A result that cannot be decoded leaves `bytes` at the next one.
                None => wire::decode(&mut bytes, None),
            };
            outcomes.push(outcome.map_err(|error| error.with_index(self.base + index)));
            sent += 1;
        }
        Ok(outcomes)
    }

    fn fail_rest(&self, error: &TaskError) {
        let known = self.outcome.lock().known;
        for index in known..self.count - self.unsent.len() {
            self.fail(index as u32, error.clone());
        }
    }
}

/// The outcome of giving out a chunk.
pub(super) enum Given<R> {
    UnderWay(ChunkFuture<R>),
    /// There was nothing to run: no item could be encoded, or the pool takes no tasks.
    Outcomes(Vec<Result<R, TaskError>>),
}

/// Takes up to `size` items, as many as fit into `most` bytes, and gives them to the workers.
/// Returns the chunk, the number of items taken, and whether the input has ended. `counts` counts
/// what has an outcome.
pub(super) fn give<A, R>(
    shared: &Arc<Shared>,
    limits: &Limits,
    function: &Function,
    base: usize,
    items: &mut impl Iterator<Item = A>,
    (size, most): (usize, usize),
    counts: Option<&Arc<Counts>>,
) -> (Given<R>, usize, bool)
where
    A: Serialize + 'static,
    R: DeserializeOwned + 'static,
{
    let mut bytes = Vec::new();
    let mut unsent = Vec::new();
    let (mut taken, mut has_ended) = (0, false);
    let ((), handles) = transit::keep(|| {
        while taken < size && bytes.len() < most {
            let Some(item) = items.next() else {
                has_ended = true;
                break;
            };
            if let Err(error) = encode_item(&mut bytes, &item) {
                unsent.push((taken, error.with_index(base + taken)));
                // The worker counts without this item. The rest goes into another chunk, where the
                // worker's count is right again.
                if taken >= unsent.len() {
                    taken += 1;
                    break;
                }
            }
            taken += 1;
        }
    });
    if let Some(reason) = limits.ended() {
        // The call has ended while its input was read.
        let outcomes = (0..taken).map(|_| Err(reason.error())).collect();
        return (Given::Outcomes(outcomes), taken, has_ended);
    }
    let sent = taken - unsent.len();
    if let Some(counts) = counts {
        counts.add(unsent.len());
    }
    let first_sent = unsent
        .iter()
        .zip(0..)
        .take_while(|((at, _), nth)| at == nth)
        .count();
    if sent == 0 {
        let outcomes = unsent.into_iter().map(|(_, error)| Err(error)).collect();
        return (Given::Outcomes(outcomes), taken, has_ended);
    }
    let task = Arc::new(Task {
        function: function.clone(),
        items: bytes.into(),
        count: sent as u32,
        argument_size: codec::fixed_size::<A>(),
        result_size: codec::fixed_size::<R>(),
        limits: limits.of_item(base + first_sent),
        handles,
        stops_at: stops_at(limits.retry()),
        name: Some(base + first_sent).into(),
        results: ChunkPromise {
            completion: Completion::new(shared, limits.ending().cloned()),
            counts: counts.cloned(),
            base,
            count: taken,
            unsent,
            outcome: Mutex::default(),
            results: Discard::of::<R>(),
            result: PhantomData,
        },
    });
    let given = match completion::place(&task, shared) {
        Ok(()) => Given::UnderWay(TaskFuture::new(task)),
        Err(error) => Given::Outcomes((0..taken).map(|_| Err(error.clone())).collect()),
    };
    (given, taken, has_ended)
}
