//! [`Chunk`]: some items of a call, and what has come of them.

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::engine::discard::Discard;
use crate::error::TaskError;
use crate::lane::message::Fault;
use crate::lane::{RawBytes, Sink};
use crate::memory::wire;

/// A run of items, and what has come of them.
pub(super) struct Chunk {
    /// Index of the first item, and one past the last.
    pub(super) first: usize,
    pub(super) end: usize,
    /// The number of items that have an answer.
    pub(super) answered: u32,
    /// How often the item after those has been started.
    pub(super) attempts: u32,
    /// Whether a living child is at this chunk.
    pub(super) is_taken: bool,
    /// Whether results after a failure are of any use.
    keeps_all: bool,
    outcome: Mutex<Outcome>,
    results: Discard,
}

#[derive(Default)]
struct Outcome {
    /// Results in order, as the codec wrote them: all of them, or those up to the first failure.
    bytes: Vec<u8>,
    /// Items without a result, counted from the first of the chunk, in order.
    failures: Vec<(u32, TaskError)>,
}

impl Chunk {
    pub(super) fn new(first: usize, end: usize, keeps_all: bool, results: Discard) -> Self {
        Self {
            first,
            end,
            answered: 0,
            attempts: 0,
            is_taken: false,
            keeps_all,
            outcome: Mutex::default(),
            results,
        }
    }

    pub(super) fn count(&self) -> u32 {
        (self.end - self.first) as u32
    }

    pub(super) fn is_finished(&self) -> bool {
        self.answered == self.count()
    }

    pub(super) fn failed(&self) -> usize {
        self.outcome.lock().failures.len()
    }

    pub(super) fn fail(&self, index: u32, error: TaskError) {
        let error = error.with_index(self.first + index as usize);
        self.outcome.lock().failures.push((index, error));
    }

    /// Returns whether the outcome of the call is certain with this chunk.
    pub(super) fn decides(&self) -> bool {
        !self.keeps_all && self.failed() > 0
    }

    /// Appends the results.
    ///
    /// # Errors
    ///
    /// That of the first item that failed.
    pub(super) fn results<R>(self, results: &mut Vec<R>) -> Result<(), TaskError>
    where
        R: DeserializeOwned + 'static,
    {
        let count = self.end - self.first;
        let Outcome { bytes, failures } = std::mem::take(&mut *self.outcome.lock());
        let failure = failures.into_iter().next();
        let expected = failure.is_none().then_some(count);
        wire::decode_all(&bytes, results, self.first, expected)?;
        failure.map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// Appends the outcome of each item. `failure` is why some have not been run.
    pub(super) fn outcomes<R>(self, failure: &TaskError, outcomes: &mut Vec<Result<R, TaskError>>)
    where
        R: DeserializeOwned + 'static,
    {
        let count = self.count();
        let Outcome { bytes, failures } = std::mem::take(&mut *self.outcome.lock());
        let mut bytes = bytes.as_slice();
        let mut failures = failures.into_iter().peekable();
        outcomes.extend((0..count).map(|nth| {
            let index = self.first + nth as usize;
            if let Some((_, error)) = failures.next_if(|(at, _)| *at == nth) {
                return Err(error);
            }
            if nth >= self.answered {
                return Err(failure.clone().with_index(index));
            }
            // A result that cannot be decoded leaves `bytes` at the next one.
            wire::decode(&mut bytes, Some(index))
        }));
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.outcome.get_mut().bytes);
        self.results.discard(bytes);
    }
}

impl Sink for Chunk {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        let mut outcome = self.outcome.lock();
        if self.keeps_all || outcome.failures.is_empty() {
            bytes.append_to(&mut outcome.bytes);
        } else {
            // No caller wants these results, but the handles in them must be released.
            let mut unwanted = Vec::new();
            bytes.append_to(&mut unwanted);
            self.results.discard(unwanted);
        }
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.fail(index, fault.into_error(None));
    }
}
