//! A task as the parent keeps it until it has ended: its items encoded, and where its results go.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::call::entry::Entry;
use crate::call::{Limit, Limits, Retry};
use crate::codec;
use crate::error::{ItemIndex, PoolError, TaskError};
use crate::lane::message::StopsAt;
use crate::lane::{RawBytes, Sink};
use crate::memory::transit::KeptHandles;
use crate::os::alarm::Alarm;
use crate::os::fork;

/// Where the answers of a task go: what the lane delivers, and what the parent itself has to say.
pub(super) trait Results: Sink {
    /// Records that item `index` has failed for a reason that did not come from the worker.
    fn failed(&self, index: u32, error: TaskError);

    /// Records that every item has an answer. Called once, last.
    fn ended(&self);

    /// Returns whether a caller wants to hear of the end of this very task, as soon as it has
    /// ended.
    fn is_awaited(&self) -> bool;

    /// Returns whether a caller still wants the items from `from` on. Once it does not, it never
    /// will again.
    fn is_wanted(&self, from: u32) -> bool {
        let _ = from;
        true
    }

    /// Returns whether the call of the task is over: none of its items is tried again.
    fn is_over(&self) -> bool {
        false
    }

    /// Returns the error of the items that no caller wants.
    fn unwanted(&self) -> TaskError {
        TaskError::Cancelled {}
    }

    /// Returns the address of the call that the task is a part of, to know it by; null if the call
    /// is not told of its progress.
    fn call(&self) -> *const () {
        std::ptr::null()
    }

    /// Records how often the item was started whose `Err` ends the call.
    fn tried(&self, attempts: u32) {
        let _ = attempts;
    }

    /// Drops results that no caller wants.
    fn discard(&self, bytes: Vec<u8>);

    /// Returns whether a callback or waker is to be told of the end.
    fn is_told(&self) -> bool {
        false
    }

    /// Returns whether the task was cancelled while it was in the queue, and has ended.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// One or more items to run one function on, as one unit of dispatch.
pub(super) struct Task<S: ?Sized> {
    pub(super) function: Function,
    /// The items, as the codec wrote them. They are kept to the end: if a worker dies, another gets
    /// the rest.
    pub(super) items: Items,
    pub(super) count: u32,
    /// The size in bytes of each argument and of each result, if all have the same.
    pub(super) argument_size: Option<usize>,
    pub(super) result_size: Option<usize>,
    /// The limits of each item. The seeds are those of the items as the workers count them. If
    /// something may end the call early, the results say so too ([`Results::is_wanted`]).
    pub(super) limits: Limits,
    /// The handles of shared objects that are among the items.
    pub(super) handles: KeptHandles,
    /// After which answer the rest of the items is not wanted. The results say so too
    /// ([`Results::is_wanted`]).
    pub(super) stops_at: StopsAt,
    /// The index of the first item in the input of the call, as the workers count, or the task
    /// itself.
    pub(super) name: ItemIndex,
    pub(super) results: S,
}

impl<S: ?Sized> Task<S> {
    /// Returns the bytes of these items.
    pub(super) fn items(&self, range: Range<u32>) -> &[u8] {
        let items = self.items.as_slice();
        let (start, count) = (range.start as usize, range.len());
        let len = |items: &[u8], count: usize| match self.argument_size {
            Some(size) => (size * count).min(items.len()),
            None if count == 0 => 0,
            None => {
                codec::records_len(items, count).map_or(items.len(), |len| len.min(items.len()))
            }
        };
        let items = &items[len(items, start)..];
        if range.end == self.count {
            return items;
        }
        &items[..len(items, count)]
    }

    /// Ends the task, when every item has an answer.
    pub(super) fn end(&self)
    where
        S: Results,
    {
        // This comes first, so that a thread that waits for the end can rely on it.
        self.handles.let_go();
        self.results.ended();
    }

    /// Returns after which failures an item is started again.
    pub(super) fn retry(&self) -> Retry {
        self.limits.retry()
    }

    /// Returns how long each item may run, its grace period included.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limits.limit().map(Limit::most)
    }

    /// Returns after which failures an item is started again now. Once the call is over there are
    /// none: what has come of the last attempt counts.
    pub(super) fn policy(&self) -> Retry
    where
        S: Results,
    {
        if self.results.is_over() {
            return Retry::NONE;
        }
        self.retry()
    }

    /// Returns the error of an item that has run for longer than this, which is `limit`.
    pub(super) fn timed_out(&self, limit: Duration) -> TaskError {
        let grace = self.limits.grace().unwrap_or_default();
        TaskError::timed_out(None, limit.saturating_sub(grace))
    }

    /// Returns the address that the task lies at, to know it by.
    pub(super) fn address(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }
}

/// Returns after which answer a worker is to end a task of which all items are needed: if an item
/// may be tried again, those behind it are not to start before.
pub(super) fn stops_at(retry: Retry) -> StopsAt {
    if retry.is_for_answers() {
        StopsAt::Fault
    } else {
        StopsAt::Nothing
    }
}

/// A function as it is named to a worker.
#[derive(Clone)]
pub(super) struct Function {
    pub(super) code: u64,
    pub(super) context: Option<Arc<SentContext>>,
}

impl Function {
    pub(super) fn new(entry: Entry, context: Option<Arc<SentContext>>) -> Result<Self, PoolError> {
        Ok(Self {
            code: crate::call::code::number(entry as usize)?,
            context,
        })
    }
}

/// A context on its way to the workers that need it. When the last task with it has gone, their
/// copies go too.
pub(super) struct SentContext {
    pub(super) id: u64,
    pub(super) bytes: Vec<u8>,
    /// The handles of shared objects that are in the context.
    handles: KeptHandles,
    retired: Arc<Retired>,
    generation: u32,
}

impl SentContext {
    pub(super) fn new(bytes: Vec<u8>, handles: KeptHandles, retired: &Arc<Retired>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            bytes,
            handles,
            retired: retired.clone(),
            generation: fork::generation(),
        })
    }
}

impl Drop for SentContext {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // This is a forked child's copy: the workers are not the child's.
            return;
        }
        self.retired.ids.lock().push(self.id);
        self.retired.any.store(true, Ordering::Release);
        if !self.handles.is_empty() {
            // The workers' copies hold handles of shared objects, which no task needs any more.
            self.retired.alarm.ring();
        }
    }
}

/// Contexts that no task needs any more, and that the workers have not been told to forget. They
/// have a lock of their own, because the last task may go while the dispatch is locked.
#[derive(Debug)]
pub(super) struct Retired {
    any: AtomicBool,
    ids: Mutex<Vec<u64>>,
    /// The alarm of the supervisor, which tells the workers if no other thread pumps.
    alarm: Arc<Alarm>,
}

impl Retired {
    pub(super) fn new(alarm: Arc<Alarm>) -> Self {
        Self {
            any: AtomicBool::new(false),
            ids: Mutex::default(),
            alarm,
        }
    }

    pub(super) fn take(&self) -> Vec<u64> {
        // A context that retires between the two steps is found next time.
        if self.any.load(Ordering::Acquire) && self.any.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *self.ids.lock())
        } else {
            Vec::new()
        }
    }
}

/// Encoded values: few bytes in place, more on the heap.
pub(super) enum Items {
    Few { bytes: [u8; FEW], len: u8 },
    Many(Vec<u8>),
}

const FEW: usize = 31;

impl Items {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Few { bytes, len } => &bytes[..usize::from(*len)],
            Self::Many(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Items {
    fn from(bytes: &[u8]) -> Self {
        if bytes.len() <= FEW {
            let mut few = [0; FEW];
            few[..bytes.len()].copy_from_slice(bytes);
            Self::Few {
                bytes: few,
                len: bytes.len() as u8,
            }
        } else {
            Self::Many(bytes.to_vec())
        }
    }
}

impl From<Vec<u8>> for Items {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.len() <= FEW {
            bytes.as_slice().into()
        } else {
            Self::Many(bytes)
        }
    }
}

impl From<RawBytes<'_>> for Items {
    fn from(bytes: RawBytes<'_>) -> Self {
        let mut few = [0; FEW];
        if bytes.copy_to(&mut few) {
            Self::Few {
                bytes: few,
                len: bytes.len() as u8,
            }
        } else {
            let mut many = Vec::new();
            bytes.append_to(&mut many);
            Self::Many(many)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
