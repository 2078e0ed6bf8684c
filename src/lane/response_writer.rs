//! The worker's side of the responses: it gathers results in the next cell until the cell is full
//! or the task has ended.
//!
//! A result that is in the cell but not yet published is not lost when the worker dies: the
//! `progress` word says how many there are, and the parent takes them from the cell
//! ([`super::receiver`]).

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::Lane;
use super::crash_report;
use super::message::{Fault, RESPONSE_HEAD, Response, ResponseKind, StopsAt};
use super::ring::{CELL_PAYLOAD, Writer};
use crate::codec;
use crate::os::clock;
use crate::os::fork::{COPY_PANICKED, COPY_RETURNED, Original};

/// The way in which a worker tells its parent that there is something to look at.
pub(crate) trait Ring {
    /// Wakes the parent, if it sleeps.
    fn ring(&self);
}

/// When the worker wakes a parent that sleeps. It always does when it cannot go on without the
/// parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At the end of the task that the parent asked for: the parent has more tasks to give.
    Tasks,
    /// When the ring is half full, and at the end of a task at most once in a [`BREATH`]. The
    /// parent has nothing to give, and learns of the worker's end by itself.
    Breaths,
}

/// Short for a caller that watches the progress, long beside the cost of waking a process.
const BREATH: Duration = Duration::from_millis(1);

/// Ends this worker, which has found its lane corrupted. It can tell the parent nothing more by way
/// of the lane, and if it waited for a cell that will never be free, it would hang. The kernel
/// tells the parent of its death.
#[cold]
pub(crate) fn die_corrupted() -> ! {
    // A closed standard error is no reason for a panic.
    let _ = writeln!(
        io::stderr(),
        "manyhands: something in this worker process wrote where nothing was its own, and has corrupted the memory that \
         it shares with its parent"
    );
    crash_report::write_before_abort(
        "it found that something in it had corrupted the memory that it shares with its parent",
    );
    std::process::abort()
}

/// The writer of the responses of one process. A task's function may fork, and return or panic in a
/// copy of that process. The copy ends when it tries to answer.
pub(crate) struct ResponseWriter {
    lane: Lane,
    original: Original,
    pace: Pace,
    last_ring: Instant,
    writer: Writer,
    bell: Box<dyn Ring>,
    /// Number of the task that runs.
    task: u32,
    /// Index of the first item of the open cell.
    first: u32,
    /// Items in the open cell.
    count: u32,
    /// Bytes in the open cell, its head included; 0 when no cell is open.
    used: usize,
    /// How long each item may take. With a limit the parent wants to know when each starts.
    limit: Option<Duration>,
    /// How much of that is a grace period.
    grace: Duration,
    /// When the last item started, if there is a limit, in nanoseconds of the system's clock.
    started_at: u64,
    /// After what the rest of the task's items is not needed, and whether that has come.
    stops_at: StopsAt,
    has_stopped: bool,
    /// When the task began, if the parent wants to know that at the end.
    began_at: Option<u64>,
}

impl ResponseWriter {
    pub(crate) fn new(lane: Lane, bell: Box<dyn Ring>, pace: Pace) -> Self {
        let writer = lane.response_writer();
        Self {
            lane,
            original: Original::here(),
            pace,
            last_ring: Instant::now(),
            writer,
            bell,
            task: 0,
            first: 0,
            count: 0,
            used: 0,
            limit: None,
            grace: Duration::ZERO,
            started_at: 0,
            stops_at: StopsAt::Nothing,
            has_stopped: false,
            began_at: None,
        }
    }

    /// Returns the process whose answers these are.
    #[inline]
    pub(crate) fn original(&self) -> Original {
        self.original
    }

    /// Begins task `task`, with item `first`.
    pub(crate) fn begin(&mut self, task: u32, first: u32) {
        self.task = task;
        self.first = first;
        self.limit = None;
        self.grace = Duration::ZERO;
        self.stops_at = StopsAt::Nothing;
        self.has_stopped = false;
        self.began_at = None;
        self.count = 0;
        self.used = 0;
    }

    /// Sets how long each item of this task may take. The start of each is noted then.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    /// Sets how much of the limit of each item of this task is a grace period.
    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Returns the number of the task.
    pub(crate) fn task(&self) -> u32 {
        self.task
    }

    /// Sets after what the rest of this task's items is not needed.
    pub(crate) fn set_stops_at(&mut self, stops_at: StopsAt) {
        self.stops_at = stops_at;
    }

    /// Returns whether an item of the task has had the answer after which the rest is not needed.
    #[inline]
    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// Returns whether the next item of the task is needed, as far as this process knows. If it is
    /// not, the caller ends the task.
    #[inline]
    pub(crate) fn goes_on(&self) -> bool {
        !self.has_stopped && !self.lane.header().is_cut(self.task)
    }

    /// Notes when this task began. Its end will say when it began and ended.
    pub(crate) fn set_recorded(&mut self) {
        self.began_at = Some(clock::now());
    }

    pub(crate) fn has_limit(&self) -> bool {
        self.limit.is_some()
    }

    /// Returns the limit of the item that was started last, without its grace period, if the item
    /// has run for longer than both by now.
    pub(crate) fn exceeded(&self) -> Option<Duration> {
        let took = |limit: &Duration| {
            let took = Duration::from_nanos(clock::now().saturating_sub(self.started_at));
            took > *limit
        };
        let limit = self.limit.filter(took)?;
        Some(limit.saturating_sub(self.grace))
    }

    /// Notes that the function of the item that was started last has ended. Until the item is
    /// answered for, the worker may have to wait for room.
    pub(crate) fn item_has_run(&self) {
        if self.limit.is_some() {
            self.lane.header().set_has_run();
        }
    }

    /// Notes that the item after the last one is about to start.
    #[inline]
    pub(crate) fn item_starts(&mut self) {
        self.original.end_copy(COPY_RETURNED);
        if self.limit.is_some() {
            self.started_at = clock::now();
            self.lane.header().set_started_at(self.started_at);
        }
        self.lane
            .header()
            .item_starts(self.task, self.first + self.count);
    }

    /// Writes the result of the next item, as the codec wrote it.
    #[inline]
    pub(crate) fn result(&mut self, bytes: &[u8]) {
        self.original.end_copy(COPY_RETURNED);
        if self.stops_at == StopsAt::Err && codec::is_err(bytes) {
            self.has_stopped = true;
        }
        if self.used == 0 || bytes.len() > CELL_PAYLOAD - self.used {
            // A result that fits into no cell goes in several, as a message of its own.
            if bytes.len() > CELL_PAYLOAD - RESPONSE_HEAD {
                self.large(ResponseKind::Results, bytes);
                return;
            }
            self.flush(false);
            self.wait_for_room();
            self.used = RESPONSE_HEAD;
        }
        self.writer.fill(self.used, bytes);
        self.used += bytes.len();
        let item = self.first + self.count;
        self.count += 1;
        self.lane.header().item_ended(self.task, item);
    }

    /// Returns how many results of `size` bytes the open cell has room for: at least one. Opens a
    /// cell if there is none.
    pub(crate) fn room_for(&mut self, size: usize) -> u32 {
        if CELL_PAYLOAD - self.used < size {
            self.flush(false);
        }
        if self.used == 0 {
            self.wait_for_room();
            self.used = RESPONSE_HEAD;
        }
        ((CELL_PAYLOAD - self.used) / size) as u32
    }

    /// Lets `run` write the results of the next `count` items, of `size` bytes each, into the open
    /// cell, which has room for them. `run` gets the number of the item, from 0, and the place for
    /// its result. It must end copies before it writes there. Returns how many items have run:
    /// fewer if the rest is not needed any more.
    ///
    /// This is the short loop around short functions: it notes the progress of each item, and
    /// nothing else. If `run` panics, [`recount`](Self::recount) must follow.
    #[inline]
    pub(crate) fn results(
        &mut self,
        count: u32,
        size: usize,
        mut run: impl FnMut(usize, &mut [u8]),
    ) -> u32 {
        let header = self.lane.header();
        let (task, first) = (self.task, self.first + self.count);
        let cell = self.writer.room(self.used, count as usize * size);
        let mut ran = 0;
        for (item, slot) in (0..count).zip(cell.chunks_exact_mut(size)) {
            if header.is_cut(task) {
                break;
            }
            // That one item starts says that the one before it has ended.
            header.item_starts(task, first + item);
            run(item as usize, slot);
            ran = item + 1;
        }
        if ran > 0 {
            header.item_ended(task, first + ran - 1);
        }
        self.count += ran;
        self.used += ran as usize * size;
        ran
    }

    /// Counts the results that the last `results` wrote before it panicked. Returns how many there
    /// are.
    pub(crate) fn recount(&mut self, size: usize) -> u32 {
        let ended = self.lane.header().progress().step / 2 - (self.first + self.count);
        self.count += ended;
        self.used += ended as usize * size;
        ended
    }

    /// Writes that the next item has no result, and why.
    pub(crate) fn fault(&mut self, fault: &Fault) {
        self.original
            .end_copy(if matches!(fault, Fault::Panicked(_)) {
                COPY_PANICKED
            } else {
                COPY_RETURNED
            });
        self.has_stopped |= self.stops_at != StopsAt::Nothing;
        let mut bytes = Vec::new();
        // Strings and numbers always encode. Half a fault would be one that the parent cannot read.
        if codec::exact::to_vec_append(&mut bytes, fault).is_err() {
            bytes.clear();
        }
        self.large(ResponseKind::Fault, &bytes);
    }

    /// Ends the task: all items have been answered for, or the rest is not needed.
    pub(crate) fn end(&mut self) {
        self.original.end_copy(COPY_RETURNED);
        if self.has_stopped {
            // The parent sees what the task stops at before it hears that the rest was left out.
            self.flush(false);
        }
        if let Some(began) = self.began_at.take() {
            self.flush(false);
            self.wait_for_room();
            let head = self.head(ResponseKind::Times, 0, true);
            let times = [began.to_ne_bytes(), clock::now().to_ne_bytes()].concat();
            self.writer.send(&head, &times, 0);
        } else {
            if self.used == 0 {
                self.wait_for_room();
                self.used = RESPONSE_HEAD;
            }
            self.flush(true);
        }
        if self.has_stopped {
            // The call may have its outcome: the parent is told at once, whichever task it waits
            // for.
            self.ring_if_asked();
            return;
        }
        match self.pace {
            Pace::Tasks => {
                if self.lane.header().takes_bell(self.task) {
                    self.bell.ring();
                }
            }
            Pace::Breaths => {
                if self.writer.is_half_full() || self.last_ring.elapsed() >= BREATH {
                    self.last_ring = Instant::now();
                    self.ring_if_asked();
                }
            }
        }
    }

    /// Says that the worker takes tasks from now on.
    pub(crate) fn ready(&self) {
        self.lane.header().set_ready();
    }

    /// Says that there will be no more tasks: this process is about to end.
    pub(crate) fn done(&self) {
        self.lane.header().set_done();
    }

    /// Rings if the parent waits for any bell: the worker has no more to do, or cannot go on.
    pub(crate) fn ring_if_asked(&self) {
        if self.lane.header().takes_any_bell() {
            self.bell.ring();
        }
    }

    /// Publishes the open cell, if there is one.
    fn flush(&mut self, ends: bool) {
        if self.used == 0 || (self.count == 0 && !ends) {
            // The cell has no results, so the next message begins it anew.
            self.used = 0;
            return;
        }
        let head = self.head(ResponseKind::Results, self.count, ends);
        self.writer.fill(0, &head);
        self.writer.publish(self.used, true);
        if self.pace == Pace::Breaths && self.writer.is_half_full() {
            self.ring_if_asked();
        }
        self.first += self.count;
        self.count = 0;
        self.used = 0;
    }

    /// Sends one item's answer as a message of its own.
    fn large(&mut self, kind: ResponseKind, bytes: &[u8]) {
        self.flush(false);
        let head = self.head(kind, 1, false);
        let total = head.len() + bytes.len();
        let mut sent = 0;
        while sent < total {
            self.wait_for_room();
            sent = self.writer.send(&head, bytes, sent);
        }
        let item = self.first;
        self.first += 1;
        self.lane.header().item_ended(self.task, item);
    }

    fn head(&self, kind: ResponseKind, count: u32, ends: bool) -> [u8; RESPONSE_HEAD] {
        Response {
            task: self.task,
            first: self.first,
            count,
            kind,
            ends,
        }
        .to_head()
    }

    fn wait_for_room(&self) {
        if !self.writer.has_room() {
            self.ring_if_asked();
            self.lane
                .header()
                .wait_until(|| self.writer.has_room() || self.writer.is_corrupted());
            // The wait has ended without room, so the cell is in no valid state.
            if !self.writer.has_room() {
                die_corrupted();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
