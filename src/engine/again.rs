//! [`Answered`]: how an answer of a process passes the policy of its call. An item that is tried
//! again leaves nothing in the results.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::call::{Retry, RetryOn};
use crate::codec;
use crate::error::TaskError;
use crate::lane::message::{Fault, StopsAt};
use crate::lane::{RawBytes, Sink};

/// Where the answers for some items go in the end.
pub(super) trait Target: Send + Sync {
    /// Takes results, as a [`Sink`] does.
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>);

    /// Returns whether a result has come that ends the call.
    fn has_stopped(&self) -> bool;

    /// Records that item `index` has failed.
    fn failed(&self, index: u32, error: TaskError);

    /// Records how often the item was started whose `Err` ends the call.
    fn tried(&self, attempts: u32);

    /// Drops results that no caller wants.
    fn discard(&self, bytes: Vec<u8>);
}

/// What takes the answers for items that may be tried again.
pub(super) struct Answered<'a, T: ?Sized> {
    target: &'a T,
    retry: Retry,
    stops_at: StopsAt,
    /// The first item without an answer that counts, and how often it had been started before.
    first: (u32, u32),
    /// The item that is tried again; [`NONE`] if there is none.
    again: AtomicU32,
}

const NONE: u32 = u32::MAX;

impl<'a, T: Target + ?Sized> Answered<'a, T> {
    /// Makes that of items of which `first` is the first, with the number of its attempts, and
    /// `again` is tried again, if one is. The process ends them at `stops_at`.
    pub(super) fn new(
        target: &'a T,
        retry: Retry,
        stops_at: StopsAt,
        first: (u32, u32),
        again: Option<u32>,
    ) -> Self {
        Self {
            target,
            retry,
            stops_at,
            first,
            again: again.unwrap_or(NONE).into(),
        }
    }

    /// Returns the item that is tried again, if one is.
    pub(super) fn again(&self) -> Option<u32> {
        let again = self.again.load(Ordering::Relaxed);
        (again != NONE).then_some(again)
    }

    /// Returns how often this item, which has been answered, has been started.
    fn attempts(&self, item: u32) -> u32 {
        let (first, before) = self.first;
        let before = if item == first { before } else { 0 };
        before.saturating_add(1)
    }

    /// Returns whether this item, which has failed for this cause, is tried again.
    fn again_after(&self, item: u32, cause: RetryOn) -> bool {
        let again = self.retry.allows(cause, self.attempts(item));
        if again {
            self.again.store(item, Ordering::Relaxed);
        }
        again
    }
}

impl<T: Target + ?Sized> Sink for Answered<'_, T> {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        if self.stops_at != StopsAt::Err && self.again().is_none() {
            self.target.results(first, count, bytes);
            return;
        }
        let mut copy = Vec::new();
        bytes.append_to(&mut copy);
        if self.again().is_some() {
            // The process was to start nothing more.
            self.target.discard(copy);
            return;
        }
        if let Some((nth, _)) = codec::first_err(&copy) {
            let item = first + nth as u32;
            if self.again_after(item, RetryOn::ERROR) {
                let len = codec::records_len(&copy, nth).unwrap_or(0);
                self.target.discard(copy.split_off(len));
                if nth > 0 {
                    let before = copy.as_slice().into();
                    self.target.results(first, nth as u32, before);
                }
                return;
            }
            self.target.tried(self.attempts(item));
        }
        self.target.results(first, count, copy.as_slice().into());
    }

    fn tries_again(&self, index: u32, fault: &Fault) -> bool {
        if self.again().is_some() {
            return true;
        }
        match fault {
            // An array that could not be claimed is none of the item's doing.
            Fault::Panicked(caught) if caught.is_refusal() => false,
            Fault::Panicked(_) => self.again_after(index, RetryOn::PANIC),
            Fault::TimedOut(_) => self.again_after(index, RetryOn::TIMEOUT),
            Fault::ArgumentDecode(_) | Fault::ContextDecode(_) | Fault::ResultEncode(_) => false,
        }
    }

    fn fault(&self, index: u32, fault: Fault) {
        let error = fault.into_error(None);
        self.target
            .failed(index, error.with_attempts(self.attempts(index)));
    }

    fn has_stopped(&self) -> bool {
        self.again().is_some() || self.target.has_stopped()
    }
}
