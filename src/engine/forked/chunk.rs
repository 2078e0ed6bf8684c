//! [`Chunk`]: some items of a call, and what has come of them.

use std::time::Instant;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::engine::again::Target;
use crate::engine::discard::Discard;
use crate::error::TaskError;
use crate::lane::message::{Fault, StopsAt};
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
    /// The item that has failed and is tried again, as far as the child has not ended the chunk.
    pub(super) again: Option<u32>,
    /// When the next attempt is due, if there is a pause before it.
    pub(super) due: Option<Instant>,
    /// Whether a living child is at this chunk.
    pub(super) is_taken: bool,
    /// After which answer the rest of the call is of no use.
    stops_at: StopsAt,
    outcome: Mutex<Outcome>,
    results: Discard,
}

#[derive(Default)]
struct Outcome {
    /// Results in order, as the codec wrote them: all of them, or those up to the first failure or
    /// the result at which the call stops.
    bytes: Vec<u8>,
    /// Items without a result, counted from the first of the chunk, in order.
    failures: Vec<(u32, TaskError)>,
    /// Whether the last result in `bytes` is one at which the call stops.
    has_stopped: bool,
    /// How often the item of that result was started, if it could be more than once.
    attempts: u32,
}

impl Chunk {
    pub(super) fn new(first: usize, end: usize, stops_at: StopsAt, results: Discard) -> Self {
        Self {
            first,
            end,
            answered: 0,
            attempts: 0,
            again: None,
            due: None,
            is_taken: false,
            stops_at,
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
        let mut outcome = self.outcome.lock();
        if !outcome.has_stopped {
            outcome.failures.push((index, error));
        }
    }

    /// Returns whether the outcome of the call is certain with this chunk.
    pub(super) fn decides(&self) -> bool {
        let outcome = self.outcome.lock();
        let has_failed = self.stops_at != StopsAt::Nothing && !outcome.failures.is_empty();
        has_failed || outcome.has_stopped
    }

    pub(super) fn stops_at(&self) -> StopsAt {
        self.stops_at
    }

    /// Appends the results. If the last one is that at which the call stops, returns how often its
    /// item was started.
    ///
    /// # Errors
    ///
    /// That of the first item that failed.
    pub(super) fn results<R>(self, results: &mut Vec<R>) -> Result<Option<u32>, TaskError>
    where
        R: DeserializeOwned + 'static,
    {
        let count = self.end - self.first;
        let Outcome {
            bytes,
            failures,
            has_stopped,
            attempts,
        } = std::mem::take(&mut *self.outcome.lock());
        let failure = failures.into_iter().next();
        let expected = (failure.is_none() && !has_stopped).then_some(count);
        wire::decode_all(&bytes, results, self.first, expected)?;
        match failure {
            Some((_, failure)) => Err(failure),
            None => Ok(has_stopped.then_some(attempts.max(1))),
        }
    }

    /// Appends the outcome of each item. `failure` is why some have not been run.
    pub(super) fn outcomes<R>(self, failure: &TaskError, outcomes: &mut Vec<Result<R, TaskError>>)
    where
        R: DeserializeOwned + 'static,
    {
        let count = self.count();
        let Outcome {
            bytes, failures, ..
        } = std::mem::take(&mut *self.outcome.lock());
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

impl Target for Chunk {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        Sink::results(self, first, count, bytes);
    }

    fn has_stopped(&self) -> bool {
        Sink::has_stopped(self)
    }

    fn failed(&self, index: u32, error: TaskError) {
        self.fail(index, error);
    }

    fn tried(&self, attempts: u32) {
        self.outcome.lock().attempts = attempts;
    }

    fn discard(&self, bytes: Vec<u8>) {
        self.results.discard(bytes);
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
        let outcome = &mut *outcome;
        // No caller wants what comes after the end of the call, but the handles in it must be
        // released.
        let mut unwanted = Vec::new();
        if outcome.has_stopped
            || (self.stops_at != StopsAt::Nothing && !outcome.failures.is_empty())
        {
            bytes.append_to(&mut unwanted);
        } else {
            let before = outcome.bytes.len();
            bytes.append_to(&mut outcome.bytes);
            if self.stops_at == StopsAt::Err
                && let Some((_, end)) = codec::first_err(&outcome.bytes[before..])
            {
                outcome.has_stopped = true;
                unwanted = outcome.bytes.split_off(before + end);
            }
        }
        self.results.discard(unwanted);
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.fail(index, fault.into_error(None));
    }

    fn has_stopped(&self) -> bool {
        self.outcome.lock().has_stopped
    }
}
