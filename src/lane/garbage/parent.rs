//! The parent's side of a script: it takes what there is and checks what it is given.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::codec;
use crate::error::Corruption;
use crate::lane::message::Fault;
use crate::lane::ring::CELL_PAYLOAD;
use crate::lane::{Expected, RawBytes, Receiver, Sink};
use crate::memory::wire;

/// The parent of a script, as far as it reads responses.
pub(super) struct Parent {
    pub(super) receiver: Receiver,
    pub(super) expected: Expected,
    pub(super) checks: Checks,
    pub(super) taken: usize,
    pub(super) refused: Option<Corruption>,
    pub(super) ended: bool,
}

impl Parent {
    /// Takes up to `most` cells. Takes nothing more from a lane that it has refused, and nothing
    /// after the end of the task.
    pub(super) fn take(&mut self, most: usize) {
        for _ in 0..most {
            if self.refused.is_some() || self.ended || !self.receiver.has_next() {
                return;
            }
            let _ = self.receiver.next_task();
            let before = self.expected.next;
            self.taken += CELL_PAYLOAD;
            match self.receiver.take(&mut self.expected, &self.checks) {
                Ok(ended) => self.ended = ended,
                Err(reason) => {
                    assert_eq!(before, self.expected.next, "what is refused counts nothing");
                    self.refused = Some(reason);
                }
            }
            assert!(self.receiver.gathered() <= self.taken);
            assert!(self.checks.bytes.load(Ordering::Relaxed) <= self.taken);
            self.agree();
            assert!(!self.ended || self.expected.next == self.expected.end);
        }
    }

    pub(super) fn agree(&self) {
        assert_eq!(
            self.checks.next.load(Ordering::Relaxed),
            self.expected.next,
            "what has been handed on has been counted"
        );
    }
}

/// The checks of the answers: they must come in order, within the task, and be as long as they say.
pub(super) struct Checks {
    pub(super) next: AtomicU32,
    pub(super) end: u32,
    pub(super) size: Option<usize>,
    pub(super) bytes: AtomicUsize,
}

impl Sink for Checks {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        self.advance(first, count);
        let mut copy = Vec::new();
        bytes.append_to(&mut copy);
        match self.size {
            Some(size) => assert_eq!(copy.len(), size * count as usize),
            None => assert_eq!(
                codec::records_len(&copy, count as usize),
                Some(copy.len()),
                "as many records as results"
            ),
        }
        self.bytes.fetch_add(copy.len(), Ordering::Relaxed);
        // As the callers do with them: at most it is an error of an item.
        let _ = wire::take_all::<String>(&copy, &mut Vec::new());
        let _ = wire::take_all::<Vec<u32>>(&copy, &mut Vec::new());
        let _ = wire::take_all::<Option<Fault>>(&copy, &mut Vec::new());
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.advance(index, 1);
        let told = fault.into_error(Some(index as usize));
        assert_eq!(told.index(), Some(index as usize));
    }
}

impl Checks {
    pub(super) fn advance(&self, first: u32, count: u32) {
        assert!(count > 0, "an answer for something");
        let next = self.next.fetch_add(count, Ordering::Relaxed);
        assert_eq!(first, next, "items come in order");
        assert!(count <= self.end - first, "items of the task");
    }
}
