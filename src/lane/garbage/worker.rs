//! The worker's side of a script: messages that are right, that make no sense, and that only look
//! right.

use std::sync::atomic::Ordering;

use super::{CELL_BYTES, CELLS, Script, TASK};
use crate::codec;
use crate::lane::message::{Fault, RESPONSE_HEAD, Response, ResponseKind};
use crate::lane::ring::RING_BYTES;
use crate::lane::{HEADER_BYTES, LANE_BYTES, Lane, Progress, Writer};
use crate::panic::Caught;

/// A worker, as far as its lane shows it.
pub(super) struct Worker {
    pub(super) lane: Lane,
    pub(super) writer: Writer,
    /// The first item that the worker has not answered for, if it has kept to the protocol.
    pub(super) item: u32,
    pub(super) end: u32,
    pub(super) size: Option<usize>,
    /// A message that did not fit into the ring: head, body, and how much of both has been sent.
    pub(super) pending: Option<([u8; RESPONSE_HEAD], Vec<u8>, usize)>,
}

impl Worker {
    /// Writes over memory of the lane.
    pub(super) fn poke(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= LANE_BYTES.get());
        // SAFETY: within the mapping, by the assertion.
        let start = unsafe { self.lane.memory.start().add(offset) };
        // SAFETY: valid for these bytes, of which no code holds a reference while a script runs an
        // operation; they are private memory and the mapping, so distinct.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len()) };
    }

    pub(super) fn poke_cell(&self, cell: usize, at: usize, bytes: &[u8]) {
        let at = at.min(CELL_BYTES - bytes.len());
        let cell = HEADER_BYTES + RING_BYTES + cell % CELLS * CELL_BYTES;
        self.poke(cell + at, bytes);
    }

    /// Sends what a correct worker would send, as far as there is room.
    pub(super) fn send(&mut self, script: &mut Script<'_>) {
        let (kind, len) = (script.byte(), script.byte());
        if self.pending.is_none() {
            let Some((head, body)) = self.message(kind, len) else {
                return;
            };
            self.pending = Some((head, body, 0));
        }
        if let Some((head, body, sent)) = &mut self.pending {
            *sent = self.writer.send(head, body, *sent);
            if *sent == head.len() + body.len() {
                self.pending = None;
                self.lane.header().item_ended(TASK, self.item.max(1) - 1);
            }
        }
    }

    /// Makes the next message: some results or a fault.
    pub(super) fn message(&mut self, kind: u8, len: u8) -> Option<([u8; RESPONSE_HEAD], Vec<u8>)> {
        let left = self.end - self.item;
        if left == 0 {
            return None;
        }
        self.lane.header().item_starts(TASK, self.item);
        let mut body = Vec::new();
        let (count, kind) = if kind.is_multiple_of(8) {
            let caught = Caught::saying("x".repeat(usize::from(len) * 64));
            codec::exact::to_vec_append(&mut body, &Fault::Panicked(caught)).unwrap_or_default();
            (1, ResponseKind::Fault)
        } else if let Some(size) = self.size {
            let count = left.min(u32::from(len) % 100 + 1);
            body.resize(size * count as usize, kind);
            (count, ResponseKind::Results)
        } else if kind.is_multiple_of(2) {
            // A result that takes several cells, or more than the ring.
            let numbers = vec![u32::from(kind); usize::from(len) * 200];
            codec::append(&mut body, &numbers).unwrap_or_default();
            (1, ResponseKind::Results)
        } else {
            let count = left.min(u32::from(len) % 20 + 1);
            for item in 0..count {
                let text = "y".repeat(item as usize * 2);
                codec::append(&mut body, &text).unwrap_or_default();
            }
            (count, ResponseKind::Results)
        };
        let head = Response {
            task: TASK,
            first: self.item,
            count,
            kind,
            ends: count == left && !len.is_multiple_of(3),
        };
        self.item += count;
        Some((head.to_head(), body))
    }

    /// Sends a message whose body is as long as its head says, and whose head may be wrong
    /// otherwise.
    pub(super) fn lie(&mut self, script: &mut Script<'_>) {
        let (kind, count) = (script.byte(), script.odd());
        let size = self.size.unwrap_or(codec::LENGTH_BYTES);
        let body = vec![0; size * (count as usize).min(500)];
        let fault = Fault::ArgumentDecode("why".to_owned());
        let mut bytes = Vec::new();
        codec::exact::to_vec_append(&mut bytes, &fault).unwrap_or_default();
        let (kind, body) = match kind % 4 {
            0 => (ResponseKind::Fault, bytes),
            _ => (ResponseKind::Results, body),
        };
        let head = Response {
            task: TASK,
            first: self.item,
            count,
            kind,
            ends: script.byte().is_multiple_of(2),
        };
        if self.pending.is_none() {
            self.writer.send(&head.to_head(), &body, 0);
        }
    }

    /// Writes nonsense at some place.
    pub(super) fn spoil(&self, kind: u8, script: &mut Script<'_>) {
        let at = usize::from(script.byte());
        match kind {
            // The states of a cell: any phase of any lap.
            0 => self.poke_cell(at, 0, &script.odd().to_ne_bytes()),
            1 => {
                let ready = u32::from(script.byte()) << 2 | 1;
                self.poke_cell(at, 0, &ready.to_ne_bytes());
            }
            // Length and flags.
            2 => self.poke_cell(at, 4, &script.odd().to_ne_bytes()),
            3 => self.poke_cell(at, 8, &script.odd().to_ne_bytes()),
            // A field of a head, then the body's first length.
            4 => {
                let field = usize::from(script.byte() % 4);
                self.poke_cell(at, 16 + 4 * field, &script.odd().to_ne_bytes());
            }
            5 => {
                let head = Response {
                    task: TASK,
                    first: script.odd(),
                    count: script.odd(),
                    kind: ResponseKind::Results,
                    ends: script.byte() == 1,
                };
                self.poke_cell(at, 16, &head.to_head());
            }
            6 => {
                let (len, shift) = (u64::from(script.odd()), script.byte());
                let len = if shift < 64 { len << shift } else { !len };
                self.poke_cell(at, 32, &len.to_ne_bytes());
            }
            // Any place in the cells, and any place in the header.
            7 => {
                let offset = script.int() as usize % (2 * RING_BYTES);
                self.poke(HEADER_BYTES + offset, &[script.byte()]);
            }
            8 => {
                let offset = script.int() as usize % HEADER_BYTES;
                self.poke(offset, &[script.byte()]);
            }
            _ => {
                let progress = Progress {
                    task: if script.byte().is_multiple_of(4) {
                        script.int()
                    } else {
                        TASK
                    },
                    step: script.odd(),
                };
                let header = self.lane.header();
                header
                    .worker
                    .progress
                    .store(progress.to_word(), Ordering::Relaxed);
            }
        }
    }
}
