//! A ring of cells between one writer and one reader in different processes.
//!
//! Every cell begins with a word that says which side owns it. Positions count up without end.
//! Position `p` is cell `p % CELLS` in lap `p / CELLS`, and the word holds the lap (modulo 2^30)
//! and a phase:
//!
//! | phase | meaning | set by | next |
//! |---|---|---|---|
//! | `FREE` | the writer may fill it | the reader, with the next lap | `READY` |
//! | `READY` | filled, not seen | the writer, after the content | `TAKEN`, `RECLAIMED`, `FREE` |
//! | `TAKEN` | the reader has begun with the message that starts here | the reader | `FREE` |
//! | `RECLAIMED` | the writer took the message back; the reader skips it | the writer | `FREE` |
//!
//! `TAKEN` and `RECLAIMED` are only for the first cell of a request. Both are set by
//! compare-and-swap: the side that swaps first, worker or parent, has the task. Laps keep a reader
//! that is a lap ahead or behind from taking one state for another. A fresh mapping is all zeros,
//! which is `FREE` in lap 0.
//!
//! What was tried: two indices and one byte ring. It moves three to four cache lines for a round
//! trip where this moves one each way, and a reader must then trust an index before it can look at
//! anything.

#[cfg(all(test, loom))]
mod loom_tests;
mod word;

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use self::word::{FREE, PHASE, READY, RECLAIMED, TAKEN, Word, state};
use super::raw::RawBytes;
use crate::error::Corruption;
use crate::os::fault;
use crate::os::memory::SharedMemory;

const CELLS: usize = 32;
const CELL_BYTES: usize = 4_096;
/// Bytes of a message that one cell holds.
pub(crate) const CELL_PAYLOAD: usize = CELL_BYTES - 16;
pub(super) const RING_BYTES: usize = CELLS * CELL_BYTES;

/// The flag of a cell that ends a message.
const LAST: u32 = 1;

#[repr(C, align(64))]
struct Cell {
    word: Word,
    len: AtomicU32,
    flags: AtomicU32,
    _reserved: u32,
    payload: UnsafeCell<[MaybeUninit<u8>; CELL_PAYLOAD]>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Cell>() == CELL_BYTES);

/// Returns the word of the cell at `position` in `phase`.
fn word(position: u64, phase: u32) -> u32 {
    state(lap(position), phase)
}

fn lap(position: u64) -> u32 {
    (position / CELLS as u64) as u32
}

#[derive(Debug)]
struct Cells {
    memory: Arc<SharedMemory>,
    offset: usize,
}

impl Cells {
    fn at(&self, position: u64) -> &Cell {
        if cfg!(loom) {
            unreachable!("under loom a cell is not what lies in memory");
        }
        let index = (position % CELLS as u64) as usize;
        // SAFETY: both rings lie within the mapping (`LANE_BYTES`), and `index` is below `CELLS`.
        let cell = unsafe { self.memory.start().add(self.offset + index * CELL_BYTES) };
        // SAFETY: the mapping is page-aligned and so is every cell; it lives as long as `self`; a
        // Cell consists of atomics and an UnsafeCell of bytes, for which all that another process
        // may write is valid.
        unsafe { cell.cast::<Cell>().as_ref() }
    }
}

/// The writing side. There is one for each ring.
#[derive(Debug)]
pub(crate) struct Writer {
    cells: Cells,
    position: u64,
}

impl Writer {
    pub(super) fn new(memory: Arc<SharedMemory>, offset: usize) -> Self {
        Self {
            cells: Cells { memory, offset },
            position: 0,
        }
    }

    /// Returns the position of the next cell to be written.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns whether the next cell is free.
    pub(crate) fn has_room(&self) -> bool {
        self.cells.at(self.position).word.look() == word(self.position, FREE)
    }

    /// Returns whether the next cell is in a state that neither side has put it in, so that it will
    /// never be free: other code has written over it.
    pub(crate) fn is_corrupted(&self) -> bool {
        let found = self.cells.at(self.position).word.look();
        let lap_before = self.position.checked_sub(CELLS as u64);
        let is_unread = lap_before.is_some_and(|position| {
            [READY, TAKEN, RECLAIMED].contains(&(found & PHASE))
                && found & !PHASE == word(position, FREE)
        });
        found != word(self.position, FREE) && !is_unread
    }

    /// Returns whether at least half of the cells have not been read.
    pub(crate) fn is_half_full(&self) -> bool {
        let ahead = self.position + CELLS as u64 / 2;
        self.cells.at(ahead).word.look() != word(ahead, FREE)
    }

    /// Copies `bytes` into the next cell, which has room, from `offset` on, and does not publish
    /// them. Does not check again that the cell still has room: the other process could then cause
    /// a panic.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    #[inline]
    pub(crate) fn fill(&mut self, offset: usize, bytes: &[u8]) {
        let cell = self.cells.at(self.position);
        assert!(
            offset <= CELL_PAYLOAD && bytes.len() <= CELL_PAYLOAD - offset,
            "a cell is overfull"
        );
        let payload = cell.payload.get().cast::<u8>();
        // SAFETY: within the payload, by the assertion.
        let start = unsafe { payload.add(offset) };
        // SAFETY: source and destination are valid for this length and distinct; the cell is FREE
        // in our lap, so a reader that keeps to the protocol does not touch it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
    }

    /// Returns the `len` bytes of the next cell, which has room, from `offset` on, to be written in
    /// place.
    ///
    /// # Panics
    ///
    /// If the cell is not that large.
    #[inline]
    pub(crate) fn room(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let cell = self.cells.at(self.position);
        assert!(
            offset <= CELL_PAYLOAD && len <= CELL_PAYLOAD - offset,
            "a cell is overfull"
        );
        let payload = cell.payload.get().cast::<u8>();
        // SAFETY: within the payload, by the assertion.
        let start = unsafe { payload.add(offset) };
        // SAFETY: valid for these bytes, which the kernel has set to zero or a process has written;
        // the cell is FREE in our lap, so a reader that keeps to the protocol does not touch it,
        // and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Hands the cell with its first `len` bytes to the reader.
    #[inline]
    pub(crate) fn publish(&mut self, len: usize, last: bool) {
        let cell = self.cells.at(self.position);
        cell.len.store(len as u32, Ordering::Relaxed);
        cell.flags
            .store(if last { LAST } else { 0 }, Ordering::Relaxed);
        fault::point();
        cell.word.publish(lap(self.position));
        fault::point();
        self.position += 1;
    }

    /// Writes as much of `head` followed by `body` as fits, from byte `from` of the two together.
    /// Returns the number of the first byte that is not written yet. The message is complete when
    /// that is the length of both.
    pub(crate) fn send(&mut self, head: &[u8], body: &[u8], from: usize) -> usize {
        let total = head.len() + body.len();
        let mut sent = from;
        // A message has at least one cell, also when it is empty.
        while self.has_room() && (sent < total || (total == 0 && from == 0)) {
            let mut len = 0;
            if sent < head.len() {
                len = (head.len() - sent).min(CELL_PAYLOAD);
                self.fill(0, &head[sent..sent + len]);
                sent += len;
            }
            let rest = (total - sent).min(CELL_PAYLOAD - len);
            let start = sent - head.len().min(sent);
            self.fill(len, &body[start..start + rest]);
            sent += rest;
            self.publish(len + rest, sent == total);
            if total == 0 {
                break;
            }
        }
        sent
    }

    /// Returns whether the reader has begun with the message that starts at `position`, one of the
    /// last `CELLS` written.
    pub(crate) fn is_begun(&self, position: u64) -> bool {
        self.cells.at(position).word.look() != word(position, READY)
    }

    /// Returns what the reader has done with the cell at `position`, one of the last `CELLS`
    /// written or the next one. The value changes when the reader touches the cell, and not when
    /// the writer takes a message back.
    pub(crate) fn trace(&self, position: u64) -> u32 {
        let found = self.cells.at(position).word.look();
        // The writer itself took the message back: the reader has not touched the cell.
        if found & PHASE == RECLAIMED {
            found & !PHASE | READY
        } else {
            found
        }
    }

    /// Takes back the message that starts at `position`. Returns false if the reader has begun with
    /// it.
    pub(crate) fn take_back(&mut self, position: u64) -> bool {
        self.cells.at(position).word.take_back(lap(position))
    }
}

/// What a reader finds when it tries to begin with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The message is the reader's.
    Taken,
    /// The writer took it back.
    TakenBack,
    /// The cell is in a state that neither side has put it in.
    Corrupted,
}

/// The reading side. There is one for each ring.
#[derive(Debug)]
pub(crate) struct Reader {
    cells: Cells,
    position: u64,
}

/// A cell that the reader owns.
pub(crate) struct View<'a> {
    pub(crate) bytes: RawBytes<'a>,
    /// Whether the cell ends a message.
    pub(crate) last: bool,
}

impl Reader {
    pub(super) fn new(memory: Arc<SharedMemory>, offset: usize) -> Self {
        Self {
            cells: Cells { memory, offset },
            position: 0,
        }
    }

    /// Returns whether the next cell has been written. Its content may make no sense; a caller that
    /// looks at the cell finds that out.
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        self.cells.at(self.position).word.look() != word(self.position, FREE)
    }

    /// Returns whether the next cell is filled. A cell in the middle of a message that is not free
    /// must be.
    pub(crate) fn is_ready(&self) -> bool {
        self.cells.at(self.position).word.look() == word(self.position, READY)
    }

    /// Returns the next cell, if it has been written. `Err` if its state or its length cannot be
    /// right.
    #[inline]
    pub(crate) fn peek(&self) -> Option<Result<View<'_>, Corruption>> {
        let found = self.cells.at(self.position).word.look();
        // The writer has not published this cell yet.
        if found == word(self.position, FREE) {
            return None;
        }
        // Only the first cell of a request may have another word, and the reader begins with that
        // cell by `claim`.
        if found != word(self.position, READY) {
            return Some(Err(Corruption::CellState));
        }
        let len = self.cells.at(self.position).len.load(Ordering::Relaxed) as usize;
        if len > CELL_PAYLOAD {
            return Some(Err(Corruption::CellLength));
        }
        Some(Ok(self.current()))
    }

    /// Returns the next cell, which has been written or claimed. Cuts a length that cannot be
    /// right.
    #[inline]
    pub(crate) fn current(&self) -> View<'_> {
        let cell = self.cells.at(self.position);
        let len = cell.len.load(Ordering::Relaxed) as usize;
        let last = cell.flags.load(Ordering::Relaxed) & LAST != 0;
        View {
            bytes: self.payload(len.min(CELL_PAYLOAD)),
            last,
        }
    }

    /// Returns what lies in the next cell, published or not, to find the last results of a worker
    /// that died.
    pub(super) fn unpublished(&self) -> RawBytes<'_> {
        self.payload(CELL_PAYLOAD)
    }

    fn payload(&self, len: usize) -> RawBytes<'_> {
        debug_assert!(len <= CELL_PAYLOAD);
        let start = self.cells.at(self.position).payload.get().cast::<u8>();
        // SAFETY: the address of a field is not null.
        let start = unsafe { NonNull::new_unchecked(start) };
        // SAFETY: within the payload by its length, and the memory lives as long as the cells,
        // which `self` owns.
        unsafe { RawBytes::new(start, len) }
    }

    /// Begins with the message that starts at the next cell, which has been written.
    pub(crate) fn claim(&self) -> Claim {
        let cell = self.cells.at(self.position);
        fault::point();
        let claim = cell.word.claim(lap(self.position));
        fault::point();
        claim
    }

    /// Gives the next cell back to the writer and goes on to the one after it.
    #[inline]
    pub(crate) fn release(&mut self) {
        fault::point();
        self.cells
            .at(self.position)
            .word
            .release(lap(self.position));
        fault::point();
        self.position += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Lane;
    use super::*;

    fn receive(reader: &mut Reader) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let view = reader.peek()?.unwrap();
            view.bytes.append_to(&mut message);
            let last = view.last;
            reader.release();
            if last {
                return Some(message);
            }
        }
    }

    #[test]
    fn messages_of_all_sizes_keep_their_bytes_over_many_laps() {
        let lane = Lane::new().unwrap();
        let (mut writer, mut reader) = (lane.request_writer(), lane.request_reader());
        for len in [0, 1, 7, 4_063, 4_064, 4_065, 4_080, 8_160, 8_161, 100_000].repeat(20) {
            let body: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            let head = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
            assert_eq!(writer.send(&head, &body, 0), 16 + len);
            let message = receive(&mut reader).unwrap();
            assert_eq!((&message[..16], &message[16..]), (&head[..], &body[..]));
            assert!(!reader.has_next());
        }
    }

    #[test]
    fn a_message_larger_than_the_ring_goes_in_pieces() {
        let lane = Lane::new().unwrap();
        let (mut writer, mut reader) = (lane.request_writer(), lane.request_reader());
        let body: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let (mut sent, mut received) = (0, Vec::new());
        while sent < body.len() {
            let before = sent;
            sent = writer.send(&[], &body, sent);
            assert!(sent > before && sent - before <= RING_BYTES);
            while let Some(view) = reader.peek() {
                view.unwrap().bytes.append_to(&mut received);
                reader.release();
            }
        }
        assert!(received == body);
    }

    #[test]
    fn an_empty_message_is_a_message() {
        let lane = Lane::new().unwrap();
        let (mut writer, mut reader) = (lane.request_writer(), lane.request_reader());
        writer.send(&[], &[], 0);
        assert_eq!(receive(&mut reader), Some(Vec::new()));
    }

    #[test]
    fn either_the_reader_takes_a_message_or_the_writer_gets_it_back() {
        let lane = Lane::new().unwrap();
        let (mut writer, mut reader) = (lane.request_writer(), lane.request_reader());
        for round in 0..100u32 {
            let position = writer.position();
            writer.send(&round.to_le_bytes(), &[], 0);
            assert!(!writer.is_begun(position));
            if round % 2 == 0 {
                assert_eq!(reader.claim(), Claim::Taken);
                assert!(writer.is_begun(position) && !writer.take_back(position));
            } else {
                assert!(writer.take_back(position));
                assert_eq!(reader.claim(), Claim::TakenBack);
            }
            assert!(reader.has_next());
            reader.release();
            assert!(writer.is_begun(position) && writer.has_room());
        }
    }

    #[test]
    fn a_state_that_cannot_be_is_found_by_either_side() {
        let lane = Lane::new().unwrap();
        let (mut writer, mut reader) = (lane.request_writer(), lane.request_reader());
        for lap in 0..3 {
            for at in 0..CELLS {
                let states = [
                    0,
                    READY,
                    TAKEN,
                    RECLAIMED,
                    4 * lap,
                    4 * lap + READY,
                    u32::MAX,
                ];
                let position = writer.position();
                for state in states {
                    reader
                        .cells
                        .at(position)
                        .word
                        .0
                        .store(state, Ordering::Relaxed);
                    let is_right = state == word(position, FREE);
                    assert_eq!(writer.has_room(), is_right);
                    // In the first lap nothing comes before; later, what the lap before may have
                    // left is waited for.
                    let is_unread = lap > 0 && (4 * lap - 3..4 * lap).contains(&state);
                    assert_eq!(
                        writer.is_corrupted(),
                        !is_right && !is_unread,
                        "{at} {state}"
                    );
                    let is_ready = state == word(position, READY);
                    assert_eq!(reader.is_ready(), is_ready);
                    match reader.peek() {
                        None => assert!(is_right && !reader.has_next()),
                        Some(view) => assert_eq!(view.is_ok(), is_ready),
                    }
                }
                reader
                    .cells
                    .at(position)
                    .word
                    .0
                    .store(u32::MAX, Ordering::Relaxed);
                assert_eq!(reader.claim(), Claim::Corrupted);
                let free = word(position, FREE);
                reader
                    .cells
                    .at(position)
                    .word
                    .0
                    .store(free, Ordering::Relaxed);
                writer.send(&[1], &[], 0);
                reader.release();
            }
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error() {
        let lane = Lane::new().unwrap();
        let (mut writer, reader) = (lane.request_writer(), lane.request_reader());
        writer.send(&[1], &[], 0);
        reader.cells.at(0).len.store(4_081, Ordering::Relaxed);
        assert!(reader.peek().unwrap().is_err());
    }
}
