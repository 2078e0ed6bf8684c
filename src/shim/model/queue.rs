//! The queue of models, with the interface of crossbeam's.

use std::collections::VecDeque;
use std::sync::Mutex;

use loom::sync::atomic::{AtomicUsize, Ordering};

/// A queue that orders as little as a queue can: a thread that takes an item sees what was done
/// before the item was pushed. The lock is not one of loom's, so in the model it orders nothing.
#[derive(Debug)]
pub(crate) struct SegQueue<T> {
    len: AtomicUsize,
    items: Mutex<VecDeque<T>>,
}

impl<T> SegQueue<T> {
    pub(crate) fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            items: Mutex::default(),
        }
    }

    pub(crate) fn push(&self, item: T) {
        self.items.lock().unwrap().push_back(item);
        self.len.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn pop(&self) -> Option<T> {
        let take = |len: usize| len.checked_sub(1);
        let taken = self
            .len
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take);
        taken.ok()?;
        self.items.lock().unwrap().pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }
}
