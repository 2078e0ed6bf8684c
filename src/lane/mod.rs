//! A lane: the shared memory between a parent and one worker process, in which all tasks and
//! results travel.
//!
//! ```text
//!            writes requests                    reads requests
//!   parent ─────────────────▶ [cell][cell][…] ─────────────────▶ worker
//!          ◀───────────────── [cell][cell][…] ◀─────────────────
//!            reads responses                   writes responses
//!
//!   header: who sleeps, whom to wake, how far the worker is, its crash report
//!   behind the rings, if the parent forwards them: the worker's log records
//! ```
//!
//! A single child is given no tasks. Its lane has no rings, but room for how it [`ended`].
//!
//! Each direction is a [`ring`] of cells of one page. A cell carries its own state, so to hand over
//! a small message moves one cache line and nothing else. A message larger than a cell goes in
//! several, one after the other through the ring. So a lane has one size however large its payloads
//! are, and its pages stay warm.
//!
//! Neither side relies on a lock that the other could hold: there is none. A worker may be killed
//! between any two instructions. What the parent needs to know then is in the header's `progress`
//! word, which the worker writes before and after each item. [`receiver`] works out from it which
//! items the dead worker had answered.
//!
//! Only the two processes of a lane use it. Forked children of either have it mapped and do not
//! touch it. A worker whose memory is corrupted can corrupt its own lane, not that of others. The
//! parent checks all that it reads there before it acts on it, and copies before it decodes.
//!
//! Unsafe code is allowed in this module: it is plain memory access to a mapping that another
//! process writes, made safe by the states of the cells.
#![allow(unsafe_code)]

pub(crate) mod bell;
pub(crate) mod crash_report;
mod cursor;
pub(crate) mod ended;
#[cfg(any(test, fuzzing))]
pub(crate) mod garbage;
pub(crate) mod message;
mod raw;
mod receiver;
pub(crate) mod records;
mod response_writer;
mod ring;
mod wake;

use std::io;
use std::mem::{offset_of, size_of};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Crash;
use crate::os::crash::CrashRecord;
use crate::os::{clock, fault, memory::SharedMemory, memory_kills};

pub(crate) use cursor::Cursor;
pub(crate) use raw::RawBytes;
pub(crate) use receiver::{Expected, Fate, Received, Receiver, Sink, Times};
pub(crate) use response_writer::{Pace, ResponseWriter, Ring, die_corrupted};
pub(crate) use ring::{Claim, Reader, Writer};
pub(crate) use wake::bell_is_asked_for;

#[cfg(all(test, not(loom)))]
pub(crate) use ring::CELL_PAYLOAD;

use crash_report::CrashReport;
use ring::RING_BYTES;
pub(crate) use wake::{Asleep, RingAt};

/// Size of the header. The first ring begins after it.
const HEADER_BYTES: usize = 4_096;
/// Header, requests, responses.
const LANE_BYTES: NonZeroUsize = NonZeroUsize::new(HEADER_BYTES + 2 * RING_BYTES).unwrap();

/// Room for log records, which lie behind the rings: a page of words and 128 KiB.
const RECORDS_BYTES: usize = HEADER_BYTES + (128 << 10);
/// Header, requests, responses, records.
const LANE_BYTES_WITH_RECORDS: NonZeroUsize =
    NonZeroUsize::new(LANE_BYTES.get() + RECORDS_BYTES).unwrap();

/// Room for what a single child says of its end.
const ENDED_BYTES: usize = 40 << 10;
/// The lane of a single child: header, how it ended.
const CHILD_BYTES: NonZeroUsize = NonZeroUsize::new(HEADER_BYTES + ENDED_BYTES).unwrap();
/// The same, and records.
const CHILD_BYTES_WITH_RECORDS: NonZeroUsize =
    NonZeroUsize::new(CHILD_BYTES.get() + RECORDS_BYTES).unwrap();

fn lane_bytes(has_records: bool) -> NonZeroUsize {
    if has_records {
        LANE_BYTES_WITH_RECORDS
    } else {
        LANE_BYTES
    }
}

fn child_bytes(has_records: bool) -> NonZeroUsize {
    if has_records {
        CHILD_BYTES_WITH_RECORDS
    } else {
        CHILD_BYTES
    }
}

/// The words of a lane that are not messages. Each group has cache lines of its own, and is named
/// after the side that writes it most.
#[repr(C)]
pub(crate) struct Header {
    parent: ParentWords,
    worker: WorkerWords,
    crash_report: CrashReport,
    crash: CrashRecord,
}

#[repr(C, align(128))]
struct ParentWords {
    /// When the worker must ring the bell. Pairs with the words of the response cells.
    bell_at: RingAt,
    /// How long an idle worker spins before it sleeps, in nanoseconds. Set by the parent, which
    /// knows what other processes need the cores.
    spin: AtomicU32,
    /// Set once, by the parent: the worker ends when there are no requests left.
    stop: AtomicU32,
    /// The numbers of the tasks of which no more items need to be started: the first in the lower
    /// half, the last in the upper half. 0 if there are none. The worker looks at it before each
    /// item.
    cut: AtomicU64,
}

#[repr(C, align(128))]
struct WorkerWords {
    /// Whether the worker sleeps. Pairs with the words of the cells it waits for.
    asleep: Asleep,
    /// Set by the worker: 1 when it is up, 2 when its initialiser has run (of a forked child: its
    /// after-fork hooks), 3 when there is no more for it to do (only a forked child says that).
    /// Pairs with nothing; the bell of a worker follows it.
    ready: AtomicU32,
    /// Set once, by the worker, before it dies because an allocation failed.
    out_of_memory: AtomicU32,
    /// When the item that `progress` names was started, in nanoseconds of the system's monotonic
    /// clock. Written before `progress`, and only for tasks with a limit. [`HAS_RUN`] once a forked
    /// child's function has ended.
    started_at: AtomicU64,
    /// The nanoseconds for which the worker has had nothing to do, up to the last time that it
    /// found something.
    idle: AtomicU64,
    /// The time since which the worker has nothing to do; 0 if it has something.
    idle_since: AtomicU64,
    /// For an item that is itself made of many: how many of those have ended.
    within: AtomicU64,
    /// Which item of which task the worker is at: see [`Progress`]. The parent reads it after the
    /// worker's death, and to keep limits and find workers that are stopped.
    progress: AtomicU64,
}

/// Values of [`WorkerWords::ready`].
const UP: u32 = 1;
const READY: u32 = 2;
const DONE: u32 = 3;

/// The value of [`WorkerWords::started_at`] once the function of the item has ended.
const HAS_RUN: u64 = u64::MAX;

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
const _: () = assert!(offset_of!(Header, parent) == 0);

/// What the `progress` word says. The upper half is the number of the task. The lower half counts
/// steps: `2 i + 1` when item `i` is about to start, `2 i + 2` when its result is in the response
/// ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) task: u32,
    pub(crate) step: u32,
}

impl Progress {
    /// Returns the item that runs, if one does.
    pub(crate) fn running(self) -> Option<u32> {
        (self.step % 2 == 1).then_some(self.step / 2)
    }

    fn to_word(self) -> u64 {
        u64::from(self.task) << 32 | u64::from(self.step)
    }

    fn from_word(word: u64) -> Self {
        Self {
            task: (word >> 32) as u32,
            step: word as u32,
        }
    }
}

/// The memory of a lane, mapped in this process. Clones share the mapping.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    memory: Arc<SharedMemory>,
}

impl Lane {
    /// Makes a lane for this process and those that it forks, without room for log records.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn new() -> io::Result<Self> {
        Self::new_with(false).map(|(lane, _fd)| lane)
    }

    /// Makes a lane, and the descriptor by which another process opens it. There is room for log
    /// records if `has_records` says so.
    pub(crate) fn new_with(has_records: bool) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) = SharedMemory::new("the lane of a worker", lane_bytes(has_records))?;
        let memory = Arc::new(memory);
        Ok((Self { memory }, fd))
    }

    /// Maps a lane that another process made, with room for log records or without.
    pub(crate) fn open(fd: &OwnedFd, has_records: bool) -> io::Result<Self> {
        let len = lane_bytes(has_records);
        Ok(Self {
            memory: Arc::new(SharedMemory::open("the lane of a worker", fd, len)?),
        })
    }

    /// Makes the lane of a single child, and the descriptor by which the child opens it.
    pub(crate) fn new_child(has_records: bool) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) = SharedMemory::new("the lane of a child", child_bytes(has_records))?;
        let memory = Arc::new(memory);
        Ok((Self { memory }, fd))
    }

    /// Maps the lane of a single child, which its parent made.
    pub(crate) fn open_child(fd: &OwnedFd, has_records: bool) -> io::Result<Self> {
        let len = child_bytes(has_records);
        Ok(Self {
            memory: Arc::new(SharedMemory::open("the lane of a child", fd, len)?),
        })
    }

    /// Returns where the room for log records begins; `None` if there is none.
    fn records_start(&self) -> Option<usize> {
        let len = NonZeroUsize::new(self.memory.len())?;
        [
            (LANE_BYTES_WITH_RECORDS, LANE_BYTES),
            (CHILD_BYTES_WITH_RECORDS, CHILD_BYTES),
        ]
        .into_iter()
        .find_map(|(whole, before)| (len == whole).then_some(before.get()))
    }

    /// Returns whether there are rings for tasks and answers: a single child has none.
    fn has_rings(&self) -> bool {
        self.memory.len() >= LANE_BYTES.get()
    }

    pub(crate) fn header(&self) -> &Header {
        if cfg!(loom) {
            unreachable!("under loom a header is not what lies in memory");
        }
        let header = self.memory.start().cast::<Header>();
        // SAFETY: the mapping is page-aligned, larger than a Header and lives as long as `self`; a
        // Header is made of atomics only, for which zeros and all that another process may write
        // are valid.
        unsafe { header.as_ref() }
    }

    /// Returns the parent's side of the requests.
    pub(crate) fn request_writer(&self) -> Writer {
        assert!(self.has_rings(), "a child has no tasks");
        Writer::new(self.memory.clone(), HEADER_BYTES)
    }

    /// Returns the worker's side of the requests.
    pub(crate) fn request_reader(&self) -> Reader {
        assert!(self.has_rings(), "a child has no tasks");
        Reader::new(self.memory.clone(), HEADER_BYTES)
    }

    fn response_writer(&self) -> Writer {
        assert!(self.has_rings(), "a child has no tasks");
        Writer::new(self.memory.clone(), HEADER_BYTES + RING_BYTES)
    }

    fn response_reader(&self) -> Reader {
        assert!(self.has_rings(), "a child has no tasks");
        Reader::new(self.memory.clone(), HEADER_BYTES + RING_BYTES)
    }
}

impl Header {
    // What the parent does ------------------------------------------------------------------------

    /// Wakes the worker if it sleeps, and returns whether it did. Called after cells have been
    /// published or freed.
    pub(crate) fn wake_worker(&self) -> bool {
        self.worker.asleep.wake()
    }

    /// Asks the worker to ring the bell when it has ended task `number`, unless it has been asked
    /// to do so earlier. [`bell_is_asked_for`] and another look at the responses must follow before
    /// the parent sleeps.
    pub(crate) fn ring_at(&self, number: u32) {
        self.parent.bell_at.ask(number);
    }

    pub(crate) fn set_spin(&self, spin: Duration) {
        let nanoseconds = u32::try_from(spin.as_nanos()).unwrap_or(u32::MAX);
        if self.parent.spin.load(Ordering::Relaxed) != nanoseconds {
            self.parent.spin.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// Tells the worker to start no more items of the tasks with these numbers. It ends a task that
    /// it is in the middle of after the item that runs. This replaces what was cut before.
    pub(crate) fn cut(&self, tasks: RangeInclusive<u32>) {
        let word = u64::from(*tasks.end()) << 32 | u64::from(*tasks.start());
        // Relaxed: the worker acts on the number alone.
        self.parent.cut.store(word, Ordering::Relaxed);
    }

    /// Takes back what was cut: the numbers may come again.
    pub(crate) fn cut_none(&self) {
        self.parent.cut.store(0, Ordering::Relaxed);
    }

    /// Returns how many parts of the item that runs have ended, if it is the item that `progress`
    /// names.
    pub(crate) fn within(&self, progress: Progress) -> u64 {
        let within = self.worker.within.load(Ordering::Acquire);
        if self.progress() == progress {
            within
        } else {
            0
        }
    }

    /// Returns whether the worker has begun to run.
    pub(crate) fn is_up(&self) -> bool {
        self.worker.ready.load(Ordering::Acquire) >= UP
    }

    /// Returns whether the worker takes tasks.
    pub(crate) fn is_ready(&self) -> bool {
        self.worker.ready.load(Ordering::Acquire) >= READY
    }

    /// Returns whether the worker has nothing more to do but to end.
    pub(crate) fn is_done(&self) -> bool {
        self.worker.ready.load(Ordering::Acquire) >= DONE
    }

    /// Returns whether the worker has found that it has no memory left.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.worker.out_of_memory.load(Ordering::Relaxed) != 0
    }

    /// Returns when the item that runs was started, if it is the one that `progress` names.
    pub(crate) fn started_at(&self, progress: Progress) -> Option<u64> {
        // The caller has read `progress` before, and the worker stores `progress` after this word:
        // the time is of that item or of a later one.
        let started = self.worker.started_at.load(Ordering::Acquire);
        (self.progress() == progress).then_some(started)
    }

    /// Returns whether the function of the item that runs has ended, if that is the item that
    /// `progress` names. Only for workers all of whose items have limits.
    pub(crate) fn has_run(&self, progress: Progress) -> bool {
        self.started_at(progress) == Some(HAS_RUN)
    }

    /// Tells the worker to end when it has no more requests.
    pub(crate) fn stop(&self) {
        self.parent.stop.store(1, Ordering::Release);
        self.wake_worker();
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress::from_word(self.worker.progress.load(Ordering::Acquire))
    }

    pub(crate) fn crash_report(&self) -> &CrashReport {
        &self.crash_report
    }

    /// Returns what is known of the crash of the worker, process `pid`, by this signal, which the
    /// parent has not sent. The worker must have ended.
    pub(crate) fn crash(&self, pid: u32, signal: i32) -> Option<Box<Crash>> {
        if signal == libc::SIGKILL {
            let kill = memory_kills::take()?;
            return Some(Box::new(Crash::out_of_memory(kill.limit)));
        }
        let found = self.crash.read(signal)?;
        let words = self.crash_report.read_words(self.progress());
        Some(Box::new(Crash::of(found, pid, words)))
    }

    // What the worker does ------------------------------------------------------------------------

    pub(crate) fn set_up(&self) {
        self.worker.ready.store(UP, Ordering::Release);
    }

    pub(crate) fn set_ready(&self) {
        self.worker.ready.store(READY, Ordering::Release);
    }

    pub(crate) fn set_done(&self) {
        self.worker.ready.store(DONE, Ordering::Release);
    }

    /// Returns where this process writes down its crash.
    pub(crate) fn crash_record(&self) -> &CrashRecord {
        &self.crash
    }

    /// Returns the word that a worker sets when an allocation has failed.
    pub(crate) fn out_of_memory(&self) -> &AtomicU32 {
        &self.worker.out_of_memory
    }

    /// Notes that the function of the item that runs has ended: what is left to do for the item
    /// does not count towards its limit.
    pub(crate) fn set_has_run(&self) {
        self.set_started_at(HAS_RUN);
    }

    /// Notes when the next item starts: now.
    pub(crate) fn set_started_at(&self, nanoseconds: u64) {
        fault::point();
        self.worker.started_at.store(nanoseconds, Ordering::Release);
    }

    /// Returns when the item that runs was started, as this worker has noted it.
    pub(crate) fn own_started_at(&self) -> u64 {
        self.worker.started_at.load(Ordering::Relaxed)
    }

    /// Returns whether no more items of task `task` need to be started.
    #[inline]
    pub(crate) fn is_cut(&self, task: u32) -> bool {
        let word = self.parent.cut.load(Ordering::Relaxed);
        word != 0 && Self::is_among(word, task)
    }

    #[cold]
    fn is_among(word: u64, task: u32) -> bool {
        (word as u32..=(word >> 32) as u32).contains(&task)
    }

    /// Notes that this many parts of the item that runs have ended. The worker sets it to 0 before
    /// it begins with the parts.
    #[inline]
    pub(crate) fn set_within(&self, ended: u64) {
        self.worker.within.store(ended, Ordering::Release);
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.parent.stop.load(Ordering::Acquire) != 0
    }

    /// Notes that item `item` of task `task` is about to start.
    #[inline]
    pub(crate) fn item_starts(&self, task: u32, item: u32) {
        self.set_progress(task, 2 * item + 1);
    }

    /// Notes that the result of item `item` is in the response ring.
    #[inline]
    pub(crate) fn item_ended(&self, task: u32, item: u32) {
        self.set_progress(task, 2 * item + 2);
    }

    #[inline]
    fn set_progress(&self, task: u32, step: u32) {
        let word = Progress { task, step }.to_word();
        fault::point();
        // Release: nothing of an item may become visible before this says that it starts, and
        // nothing of the last one after it.
        self.worker.progress.store(word, Ordering::Release);
        fault::point();
    }

    /// Takes the parent's request for the bell, if it is due at the end of task `number`. Returns
    /// whether it was: then the caller must ring.
    pub(crate) fn takes_bell(&self, number: u32) -> bool {
        self.parent.bell_at.take(number)
    }

    /// Takes the parent's request for the bell, whichever task it is for. Returns whether there was
    /// one: then the caller must ring.
    pub(crate) fn takes_any_bell(&self) -> bool {
        self.parent.bell_at.take_any()
    }

    /// Waits until `ready` holds: the worker spins first, as long as the parent has set, and sleeps
    /// then.
    pub(crate) fn wait_until(&self, mut ready: impl FnMut() -> bool) {
        if ready() {
            return;
        }
        let start = clock::now();
        self.worker.idle_since.store(start, Ordering::Relaxed);
        fault::point();
        let spin = u64::from(self.parent.spin.load(Ordering::Relaxed));
        let mut now = start;
        // The time of the last look at the clock is exact enough for the count of idle time.
        while !Self::look_32_times(&mut ready) {
            now = clock::now();
            if now - start >= spin {
                // Spun for long enough. A sleep may end for no reason, so the condition is checked
                // again.
                while !ready() {
                    self.worker.asleep.sleep_unless(&mut ready, None);
                }
                now = clock::now();
                break;
            }
        }
        let idle = self.worker.idle.load(Ordering::Relaxed);
        let idle = idle.wrapping_add(now - start);
        self.worker.idle.store(idle, Ordering::Relaxed);
        fault::point();
        self.worker.idle_since.store(0, Ordering::Relaxed);
    }

    fn look_32_times(ready: &mut impl FnMut() -> bool) -> bool {
        (0..32).any(|_| {
            let is_ready = ready();
            if !is_ready {
                std::hint::spin_loop();
            }
            is_ready
        })
    }

    /// Returns for how long the worker has had nothing to do, in nanoseconds.
    pub(crate) fn idle_time(&self) -> u64 {
        let idle = self.worker.idle.load(Ordering::Relaxed);
        match self.worker.idle_since.load(Ordering::Relaxed) {
            0 => idle,
            since => idle.saturating_add(clock::now().saturating_sub(since)),
        }
    }
}

/// Returns whether number `a` comes after number `b`; numbers wrap around.
pub(crate) fn is_past(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < u32::MAX / 2
}

/// Returns the number after `number`. 0 means none and is left out.
pub(crate) fn next_number(number: u32) -> u32 {
    number.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_around_past_zero() {
        assert_eq!(next_number(7), 8);
        assert_eq!(next_number(u32::MAX), 1);
        assert!(is_past(8, 7) && !is_past(7, 8) && !is_past(7, 7));
        assert!(is_past(1, u32::MAX));
    }

    #[test]
    fn the_bell_rings_for_the_task_asked_for_or_a_later_one_once() {
        let lane = Lane::new().unwrap();
        let header = lane.header();
        assert!(!header.takes_bell(1) && !header.takes_any_bell());
        header.ring_at(5);
        header.ring_at(7); // less urgent: changes nothing
        assert!(!header.takes_bell(4));
        assert!(header.takes_bell(5) && !header.takes_bell(5));
        header.ring_at(5);
        header.ring_at(3); // more urgent
        assert!(header.takes_bell(4));
        header.ring_at(9);
        assert!(header.takes_any_bell() && !header.takes_any_bell());
    }

    #[test]
    fn a_cut_is_of_the_tasks_that_it_names_and_of_no_other() {
        let lane = Lane::new().unwrap();
        let header = lane.header();
        let cut = || [1, 4, 5, 6, 7, u32::MAX].map(|task| header.is_cut(task));
        assert_eq!(cut(), [false; 6]);
        header.cut(5..=5);
        assert_eq!(cut(), [false, false, true, false, false, false]);
        header.cut(6..=u32::MAX);
        assert_eq!(cut(), [false, false, false, true, true, true]);
        header.cut_none();
        assert_eq!(cut(), [false; 6]);
    }

    #[test]
    fn the_time_without_work_is_added_up_and_stands_still_meanwhile() {
        let lane = Lane::new().unwrap();
        let header = lane.header();
        // No other thread could wake this one.
        header.set_spin(Duration::from_secs(3_600));
        let mut total = 0;
        for _ in 0..2 {
            let start = clock::now();
            // The first look comes before the time begins.
            let (mut seen, mut looks, mut second) = (0, 0, 0);
            header.wait_until(|| {
                seen = header.idle_time();
                let now = clock::now();
                match looks {
                    0 => looks = 1,
                    1 => (looks, second) = (2, now),
                    // The wait looks at the clock once in 32 looks, and so once more after this.
                    _ if now >= second + 2_000_000 => looks += 1,
                    _ => {}
                }
                looks == 2 + 64
            });
            let most = clock::now() - start;
            assert!(seen > total, "it grows while the worker waits");
            let idle = header.idle_time() - total;
            assert!((2_000_000..=most).contains(&idle), "{idle} of {most}");
            total += idle;
            let end = clock::now() + 1_000_000;
            while clock::now() < end {}
            assert_eq!(header.idle_time(), total);
        }
        header.wait_until(|| true);
        assert_eq!(header.idle_time(), total, "there was something to do");
    }

    #[test]
    fn progress_keeps_task_and_step() {
        let lane = Lane::new().unwrap();
        lane.header().item_starts(u32::MAX, 3);
        assert_eq!(
            lane.header().progress(),
            Progress {
                task: u32::MAX,
                step: 7
            }
        );
        lane.header().item_ended(u32::MAX, 3);
        assert_eq!(
            lane.header().progress(),
            Progress {
                task: u32::MAX,
                step: 8
            }
        );
    }
}
