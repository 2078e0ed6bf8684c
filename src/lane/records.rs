//! The log records of a worker: a ring of bytes behind the other two of its lane, which only
//! workers have whose records are forwarded.
//!
//! ```text
//!   worker: any thread ── one at a time ──▶ [record][record][…] ──▶ the parent's courier
//!                       head, dropped                        tail
//! ```
//!
//! A record is written whole before `head` moves past it. A worker that is killed in the middle of
//! one leaves `head` where it was, so that the parent never sees a part of a record. What is before
//! `head` is in shared memory, so the parent reads it after the death as before.
//!
//! The worker waits for room once, and for a short time. After that it drops records, and counts
//! them, until there is room again: a parent that is stopped or slow costs a task no more than this
//! one wait. The parent copies the records out before it hands them on, so that the room is there
//! again before the program's logger has had them.
//!
//! The parent keeps its own count of what it has read, copies before it looks, and checks each
//! length ([`RecordReader::take`]).

use std::mem::{offset_of, size_of};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;

use super::bell::RecordBell;
use super::raw::RawBytes;
use super::wake::{Asleep, RingAt, bell_is_asked_for};
use super::{Lane, RECORDS_BYTES};
use crate::error::ItemIndex;
use crate::os::fault;

/// The bytes of the words before the ring. They have a page of their own.
const WORDS: usize = 4_096;
/// The bytes of the ring.
const RING: usize = RECORDS_BYTES - WORDS;

/// The most bytes of a record: a message that is longer is cut.
const MOST: usize = 16 << 10;
/// The most bytes that the parent copies out at once.
const MOST_AT_ONCE: usize = 32 << 10;
/// How long a thread waits for room before it drops its record.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

const _: () = assert!(MOST_OF_EXTRA + 3 * MOST_OF_NAME + 512 <= MOST);
const _: () = assert!(MOST <= MOST_AT_ONCE && MOST_AT_ONCE <= RING && RING.is_power_of_two());

/// The words of the ring. Each side has a cache line of its own.
#[repr(C)]
struct Words {
    worker: WorkerWords,
    parent: ParentWords,
}

#[repr(C, align(128))]
struct WorkerWords {
    /// The bytes that have been written in all. Set after them.
    head: AtomicU64,
    /// The records that were dropped in all.
    dropped: AtomicU64,
    /// Whether a thread of the worker sleeps until there is room.
    asleep: Asleep,
}

#[repr(C, align(128))]
struct ParentWords {
    /// The bytes that have been read in all.
    tail: AtomicU64,
    /// Whether the parent sleeps and wants the bell for the next record.
    bell_at: RingAt,
}

const _: () = assert!(size_of::<Words>() <= WORDS && offset_of!(Words, worker) == 0);

impl Lane {
    /// Returns the words of the records; `None` if the lane has no records.
    fn record_words(&self) -> Option<&Words> {
        if cfg!(loom) {
            unreachable!("under loom these words are not what lies in memory");
        }
        let start = self.records_at(0, size_of::<Words>())?;
        // SAFETY: the words begin at a page, lie within the mapping by the check in `records_at`,
        // and the mapping lives as long as `self`; they are atomics, for which zeros and all that
        // another process may write are valid.
        Some(unsafe { start.cast::<Words>().as_ref() })
    }

    /// Returns the address of byte `offset` of the part for records, which has `len` bytes from
    /// there on; `None` if the lane has no such part.
    fn records_at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let before = self.records_start()?;
        if offset + len > RECORDS_BYTES {
            return None;
        }
        // SAFETY: within the mapping, which has `RECORDS_BYTES` behind the rest of the lane.
        Some(unsafe { self.memory.start().add(before + offset) })
    }

    /// Returns how many records the worker has dropped in all, as it says itself.
    pub(crate) fn records_dropped(&self) -> u64 {
        let words = self.record_words();
        words.map_or(0, |words| words.worker.dropped.load(Ordering::Relaxed))
    }

    /// Returns the part or the two parts of the ring in which `len` bytes lie from position
    /// `position` on.
    fn record_bytes(&self, position: u64, len: usize) -> Option<[(NonNull<u8>, usize); 2]> {
        let at = position as usize % RING;
        let first = len.min(RING - at);
        Some([
            (self.records_at(WORDS + at, first)?, first),
            (self.records_at(WORDS, len - first)?, len - first),
        ])
    }
}

// The form of a record --------------------------------------------------------------------------

/// Bytes of the head of a record.
const HEAD: usize = 32;
/// Stands for a text that is not there.
const NONE: u16 = u16::MAX;
/// The most bytes of what an event has besides.
const MOST_OF_EXTRA: usize = 12 << 10;
/// The most bytes of the names of target, module and file.
const MOST_OF_NAME: usize = 1_024;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) level: Level,
    pub(crate) target: &'a str,
    pub(crate) module: Option<&'a str>,
    pub(crate) file: Option<&'a str>,
    pub(crate) line: Option<u32>,
    /// The item or the task at which the worker was.
    pub(crate) index: ItemIndex,
    pub(crate) message: &'a str,
    /// Of an event of `tracing`, what it has besides. At least a byte.
    pub(crate) extra: Option<&'a [u8]>,
}

/// Returns as much of `text` as fits into `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Record<'_> {
    /// Writes the record to `out`, which is empty. A name or message that is too long is cut.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        const CUT: &str = " [cut]";
        let names = [Some(self.target), self.module, self.file];
        let names = names.map(|name| name.map(|name| cut(name, MOST_OF_NAME)));
        let extra = self.extra.unwrap_or_default();
        let extra = extra.get(..MOST_OF_EXTRA).unwrap_or(extra);
        let names_len = names.iter().flatten().map(|name| name.len()).sum::<usize>();
        let before = HEAD + names_len + extra.len();
        let (message, is_cut) = if self.message.len() > MOST - before {
            (cut(self.message, MOST - before - CUT.len()), true)
        } else {
            (self.message, false)
        };
        let message_len = message.len() + if is_cut { CUT.len() } else { 0 };
        let len = (before + message_len).next_multiple_of(8);
        out.extend_from_slice(&(len as u32).to_ne_bytes());
        out.extend_from_slice(&(message_len as u32).to_ne_bytes());
        for name in names {
            let len = name.map_or(NONE, |name| name.len() as u16);
            out.extend_from_slice(&len.to_ne_bytes());
        }
        out.push(self.level as u8);
        out.push(u8::from(self.line.is_some()));
        out.extend_from_slice(&self.line.unwrap_or(0).to_ne_bytes());
        out.extend_from_slice(&(extra.len() as u32).to_ne_bytes());
        out.extend_from_slice(&self.index.to_word().to_ne_bytes());
        for name in names.into_iter().flatten() {
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(message.as_bytes());
        if is_cut {
            out.extend_from_slice(CUT.as_bytes());
        }
        out.extend_from_slice(extra);
        out.resize(len, 0);
    }
}

/// Returns the number in the first bytes of `bytes`, and the rest.
fn split<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    Some((*head, rest))
}

/// A record as it came from another process. Its texts may be no UTF-8.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRecord<'a> {
    pub(crate) level: Level,
    pub(crate) line: Option<u32>,
    pub(crate) index: ItemIndex,
    pub(crate) target: &'a [u8],
    pub(crate) module: Option<&'a [u8]>,
    pub(crate) file: Option<&'a [u8]>,
    pub(crate) message: &'a [u8],
    /// Of an event of `tracing`, what it has besides.
    pub(crate) extra: Option<&'a [u8]>,
}

impl<'a> RawRecord<'a> {
    /// Reads a record of exactly these bytes; `None` if they are none.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (_len, rest) = split::<4>(bytes)?;
        let (message, rest) = split::<4>(rest)?;
        let (target, rest) = split::<2>(rest)?;
        let (module, rest) = split::<2>(rest)?;
        let (file, rest) = split::<2>(rest)?;
        let ([level, has_line], rest) = split::<2>(rest)?;
        let (line, rest) = split::<4>(rest)?;
        let (extra, rest) = split::<4>(rest)?;
        let (index, mut rest) = split::<8>(rest)?;
        let mut text = |len: usize| {
            let (text, after) = rest.split_at_checked(len)?;
            rest = after;
            Some(text)
        };
        let mut name = |len: [u8; 2]| match u16::from_ne_bytes(len) {
            NONE => Some(None),
            len => text(usize::from(len)).map(Some),
        };
        let (target, module, file) = (name(target)??, name(module)?, name(file)?);
        let message = text(u32::from_ne_bytes(message) as usize)?;
        let extra = text(u32::from_ne_bytes(extra) as usize)?;
        // What is left only fills up the last word.
        if rest.len() >= 8 || rest.iter().any(|&byte| byte != 0) {
            return None;
        }
        Some(Self {
            level: Level::iter().find(|&known| known as u8 == level)?,
            line: match has_line {
                0 => None,
                1 => Some(u32::from_ne_bytes(line)),
                _ => return None,
            },
            index: ItemIndex::from_word(u64::from_ne_bytes(index))?,
            target,
            module,
            file,
            message,
            extra: (!extra.is_empty()).then_some(extra),
        })
    }
}

// The worker's side -----------------------------------------------------------------------------

/// The writing side. The threads of a worker take turns with it.
pub(crate) struct RecordWriter {
    lane: Lane,
    bell: RecordBell,
    head: u64,
    /// Whether a thread has waited for room in vain since the last record that was written.
    has_given_up: bool,
}

impl RecordWriter {
    /// Makes the writer of a lane with records; `None` if it has none.
    pub(crate) fn new(lane: Lane, bell: RecordBell) -> Option<Self> {
        lane.record_words()?;
        Some(Self {
            lane,
            bell,
            head: 0,
            has_given_up: false,
        })
    }

    /// Writes a record, of the bytes that [`Record::write_to`] has written. Drops it if there is no
    /// room for it soon.
    pub(crate) fn write(&mut self, record: &[u8]) {
        let Some(words) = self.lane.record_words() else {
            return;
        };
        let has_room = || {
            let used = self
                .head
                .wrapping_sub(words.parent.tail.load(Ordering::Acquire));
            // If the parent seems to have read more than was written, code of this process has
            // written over the words. Then there is no room.
            RING as u64 >= used && RING as u64 - used >= record.len() as u64
        };
        if !has_room() {
            if !self.has_given_up {
                ring_if_asked(words, &self.bell);
                let deadline = Instant::now() + PATIENCE;
                while !has_room() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.has_given_up = true;
                        break;
                    }
                    words
                        .worker
                        .asleep
                        .sleep_unless(&mut || has_room(), Some(left));
                }
            }
            if self.has_given_up {
                // Only one thread at a time is here, and the parent only reads it.
                let dropped = words.worker.dropped.load(Ordering::Relaxed);
                words
                    .worker
                    .dropped
                    .store(dropped.wrapping_add(1), Ordering::Relaxed);
                return;
            }
        }
        let Some([(start, len), (rest_start, rest_len)]) =
            self.lane.record_bytes(self.head, record.len())
        else {
            return;
        };
        fault::point();
        // SAFETY: both parts lie within the ring, and the check above says that the parent has read
        // what was there. Only this writer writes there. Source and destination are distinct.
        unsafe { ptr::copy_nonoverlapping(record.as_ptr(), start.as_ptr(), len) };
        fault::point();
        // SAFETY: as above; `len + rest_len` is the length of the record.
        let rest = unsafe { record.as_ptr().add(len) };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(rest, rest_start.as_ptr(), rest_len) };
        fault::point();
        self.head += record.len() as u64;
        self.has_given_up = false;
        // Release: the parent that sees this sees the bytes.
        words.worker.head.store(self.head, Ordering::Release);
        fault::point();
        ring_if_asked(words, &self.bell);
    }
}

fn ring_if_asked(words: &Words, bell: &RecordBell) {
    if words.parent.bell_at.take_any() {
        bell.ring();
    }
}

// The parent's side -----------------------------------------------------------------------------

/// What lies in the ring is no record: code of the worker has written over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// The reading side, of which there is one for each lane.
pub(crate) struct RecordReader {
    lane: Lane,
    tail: u64,
    /// The records that were copied out last, and nothing else.
    copied: Vec<u8>,
    is_corrupted: bool,
}

impl RecordReader {
    pub(crate) fn new(lane: Lane) -> Self {
        Self {
            lane,
            tail: 0,
            copied: Vec::new(),
            is_corrupted: false,
        }
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Returns whether there is something to take.
    pub(crate) fn has_next(&self) -> bool {
        let head = |words: &Words| words.worker.head.load(Ordering::Acquire);
        let head = self.lane.record_words().map(head);
        !self.is_corrupted && head.is_some_and(|head| head != self.tail)
    }

    /// Asks the worker to ring for the next record. [`records_are_asked_for`] and another look must
    /// follow before the parent sleeps.
    pub(crate) fn ask_for_bell(&self) {
        if let Some(words) = self.lane.record_words()
            && !self.is_corrupted
        {
            words.parent.bell_at.ask(1);
        }
    }

    /// Copies some of the records that there are out of the ring, and makes their room free.
    /// Returns how many there are: [`records`](Self::records) are these. The room is free before
    /// any of them is handed on.
    ///
    /// # Errors
    ///
    /// If what the worker has written is no record. Then nothing more is read from this lane.
    pub(crate) fn take(&mut self) -> Result<usize, Unreadable> {
        self.copied.clear();
        let Some(words) = self.lane.record_words() else {
            return Ok(0);
        };
        if self.is_corrupted {
            return Ok(0);
        }
        let there = words
            .worker
            .head
            .load(Ordering::Acquire)
            .wrapping_sub(self.tail);
        let found = if there > RING as u64 || !there.is_multiple_of(8) {
            Err(Unreadable)
        } else {
            Self::copy(&self.lane, &mut self.copied, self.tail, there as usize)
        };
        let Ok((count, len)) = found else {
            self.copied.clear();
            self.is_corrupted = true;
            return Err(Unreadable);
        };
        self.copied.truncate(len);
        self.tail += len as u64;
        words.parent.tail.store(self.tail, Ordering::Release);
        if len > 0 {
            words.worker.asleep.wake();
        }
        Ok(count)
    }

    /// Copies from the `there` bytes that begin at `tail`. Returns how many records were found, and
    /// their bytes.
    fn copy(
        lane: &Lane,
        out: &mut Vec<u8>,
        tail: u64,
        there: usize,
    ) -> Result<(usize, usize), Unreadable> {
        let copied = there.min(MOST_AT_ONCE);
        let parts = lane.record_bytes(tail, copied).ok_or(Unreadable)?;
        for (start, len) in parts {
            // SAFETY: `record_bytes` gives parts of the mapping, which `lane` keeps.
            unsafe { RawBytes::new(start, len) }.append_to(out);
        }
        let (mut count, mut end) = (0, 0);
        while end < copied {
            let len =
                split::<4>(&out[end..]).map_or(0, |(len, _)| u32::from_ne_bytes(len)) as usize;
            let is_possible =
                (HEAD..=MOST).contains(&len) && len.is_multiple_of(8) && len <= there - end;
            if is_possible && len > copied - end {
                // The rest of it comes next time.
                break;
            }
            if !is_possible || RawRecord::parse(&out[end..end + len]).is_none() {
                // What came before it is right, and is handed on first.
                if count > 0 {
                    break;
                }
                return Err(Unreadable);
            }
            count += 1;
            end += len;
        }
        Ok((count, end))
    }

    /// Returns the records that were taken last.
    pub(crate) fn records(&self) -> impl Iterator<Item = RawRecord<'_>> {
        let mut rest = self.copied.as_slice();
        std::iter::from_fn(move || {
            let (len, _) = split::<4>(rest)?;
            let (record, after) = rest.split_at_checked(u32::from_ne_bytes(len) as usize)?;
            rest = after;
            RawRecord::parse(record)
        })
    }
}

/// Makes the requests for the bell count, before the last look at the records.
pub(crate) fn records_are_asked_for() {
    bell_is_asked_for();
}

#[cfg(all(test, not(loom)))]
mod tests;
