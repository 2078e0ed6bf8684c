//! The parent's side of the responses: it checks every message, and works out what a dead worker
//! had done.
//!
//! A worker answers for the items of a task in order. So the parent knows at any time which item
//! comes next. A message about anything else shows that the worker's memory is corrupted.

use super::message::{Fault, RESPONSE_HEAD, Response, ResponseKind, StopsAt};
use super::raw::RawBytes;
use super::ring::{CELL_PAYLOAD, Reader};
use super::{Header, Lane, Progress};
use crate::codec::LENGTH_BYTES;
use crate::error::Corruption;

/// The receiver of the answers for the items of one task. Indices count from the first item of the
/// task.
pub(crate) trait Sink: Send + Sync {
    /// Takes `count` results, from item `first` on. The bytes are as long as they should be, and
    /// nothing else is known of them.
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>);

    /// Takes the fault of item `index`, which has no result.
    fn fault(&self, index: u32, fault: Fault);

    /// Returns whether item `index`, which has this fault, is tried again: then this answer does
    /// not count, and another one will come.
    fn tries_again(&self, index: u32, fault: &Fault) -> bool {
        let _ = (index, fault);
        false
    }

    /// Returns whether a result that has come is an `Err` that ends the call. Asked only of tasks
    /// that [stop](StopsAt::Err) there.
    fn has_stopped(&self) -> bool {
        false
    }
}

/// What the parent expects of the task that a worker is at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Number of the task.
    pub(crate) task: u32,
    /// Index of the item that comes next.
    pub(crate) next: u32,
    /// One past the last item. When a task has ended early, one past the last item that was
    /// answered for.
    pub(crate) end: u32,
    /// The bytes of each result, if all results have the same size.
    pub(crate) result_size: Option<usize>,
    /// After what the worker leaves out the rest of the items.
    pub(crate) stops_at: StopsAt,
    /// Whether the worker may end the task now with items left: it has been told to, or has met
    /// what it stops at.
    pub(crate) may_stop: bool,
}

impl Expected {
    /// Returns whether these bytes are `count` results, by their lengths.
    fn fits(&self, count: u32, bytes: RawBytes<'_>) -> bool {
        let len = bytes.len();
        match self.result_size {
            Some(size) => len as u64 == u64::from(count) * size as u64,
            None => split_records(bytes, count).is_some_and(|(_, rest)| rest.len() == 0),
        }
    }
}

/// Returns the first `count` records, each of which says how long it is, and the rest; `None` if
/// there are fewer records.
fn split_records(bytes: RawBytes<'_>, count: u32) -> Option<(RawBytes<'_>, RawBytes<'_>)> {
    let mut rest = bytes;
    for _ in 0..count {
        let (len, after) = rest.split::<LENGTH_BYTES>()?;
        let len = usize::try_from(u64::from_ne_bytes(len)).ok()?;
        (_, rest) = after.split_at(len)?;
    }
    bytes.split_at(bytes.len() - rest.len())
}

/// What became of the task that a dead worker was at. All items before `next` have been answered
/// for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Index of the first item without an answer.
    pub(crate) next: u32,
    /// Whether the worker had started that item.
    pub(crate) started: bool,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    lane: Lane,
    reader: Reader,
    /// The cells so far of a message that is longer than one.
    partial: Vec<u8>,
    /// How long that message may become. A result says its length itself; the length of a fault
    /// cannot be known.
    most: usize,
    received: Received,
    times: Option<Times>,
}

/// What has been received so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    /// Items that panicked.
    pub(crate) panicked: u64,
    /// Items with a result that could not be encoded.
    pub(crate) encode: u64,
    /// Items with an argument or a context that could not be decoded.
    pub(crate) decode: u64,
    /// Items that came to their end after their limit.
    pub(crate) timed_out: u64,
}

/// When the worker began with a task and ended it, by the system's monotonic clock, as the worker
/// says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) started: u64,
    pub(crate) ended: u64,
}

impl Receiver {
    pub(crate) fn new(lane: Lane) -> Self {
        let reader = lane.response_reader();
        Self {
            lane,
            reader,
            partial: Vec::new(),
            received: Received::default(),
            times: None,
            most: 0,
        }
    }

    pub(crate) fn received(&self) -> Received {
        self.received
    }

    /// Takes the times of the task whose end was taken last, if the worker was asked for them.
    pub(crate) fn take_times(&mut self) -> Option<Times> {
        self.times.take()
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(crate) fn header(&self) -> &Header {
        self.lane.header()
    }

    /// Returns whether there is a cell to take.
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        self.reader.has_next()
    }

    /// Returns the bytes so far of the message that has come in part.
    #[cfg(any(test, fuzzing))]
    pub(super) fn gathered(&self) -> usize {
        self.partial.len()
    }

    /// Returns the number of the task that the next message is about, if a message is there and its
    /// head is valid.
    pub(crate) fn next_task(&self) -> Option<u32> {
        let view = self.reader.peek()?.ok()?;
        let (head, _) = view.bytes.split::<RESPONSE_HEAD>()?;
        Response::from_head(head).map(|response| response.task)
    }

    /// Takes the next cell and hands on what it completes. Returns true if that was the end of the
    /// task.
    ///
    /// # Errors
    ///
    /// What in the cell cannot be right. The lane is of no use then.
    pub(crate) fn take(
        &mut self,
        expected: &mut Expected,
        sink: &dyn Sink,
    ) -> Result<bool, Corruption> {
        let Some(view) = self.reader.peek() else {
            return Ok(false);
        };
        let view = view?;
        self.received.bytes += view.bytes.len() as u64;
        // This also stops a worker that sends empty cells without end: they would keep the parent
        // busy for ever.
        if !view.last && view.bytes.len() != CELL_PAYLOAD {
            return Err(Corruption::CellNotFull);
        }
        let ends = if view.last && self.partial.is_empty() {
            Self::accept(
                view.bytes,
                expected,
                sink,
                &mut self.received,
                &mut self.times,
            )?
        } else {
            // The message has several cells, of which this is the first, a later or the last one.
            if self.partial.is_empty() {
                self.most = Self::check_first(view.bytes, expected)?;
            }
            // A result says its length in its first cell.
            if view.bytes.len() > self.most - self.partial.len() {
                return Err(Corruption::MessageLength);
            }
            view.bytes.append_to(&mut self.partial);
            if view.last {
                let message = self.partial.as_slice().into();
                let ends =
                    Self::accept(message, expected, sink, &mut self.received, &mut self.times)?;
                // A large result was here, so its memory is given back.
                self.partial = Vec::new();
                ends
            } else {
                false
            }
        };
        self.reader.release();
        Ok(ends)
    }

    fn split_head(message: RawBytes<'_>) -> Option<(Response, RawBytes<'_>)> {
        let (head, body) = message.split::<RESPONSE_HEAD>()?;
        Some((Response::from_head(head)?, body))
    }

    /// Checks the first cell of a message that has more: before the rest is gathered, it must be a
    /// message that may have more. Returns how long the message may become.
    fn check_first(message: RawBytes<'_>, expected: &Expected) -> Result<usize, Corruption> {
        let (response, body) = Self::split_head(message).ok_or(Corruption::MessageKind)?;
        let is_result = response.kind == ResponseKind::Results;
        let is_next = response.task == expected.task && response.first == expected.next;
        if !is_next || response.count != 1 || (is_result && expected.result_size.is_some()) {
            return Err(Corruption::SeveralCells);
        }
        if !is_result {
            return Ok(usize::MAX);
        }
        let (len, _) = body
            .split::<LENGTH_BYTES>()
            .ok_or(Corruption::ResultLength)?;
        let len = usize::try_from(u64::from_ne_bytes(len)).ok();
        len.and_then(|len| len.checked_add(RESPONSE_HEAD + LENGTH_BYTES))
            .ok_or(Corruption::ResultLength)
    }

    /// Passes what a whole message says to the sink, and notes its kind. Returns whether the task
    /// ends with it.
    fn accept(
        message: RawBytes<'_>,
        expected: &mut Expected,
        sink: &dyn Sink,
        received: &mut Received,
        times: &mut Option<Times>,
    ) -> Result<bool, Corruption> {
        let (response, body) = Self::split_head(message).ok_or(Corruption::MessageKind)?;
        // A worker answers in order, so this item of this task is the only one that can come.
        if response.task != expected.task || response.first != expected.next {
            return Err(Corruption::WrongItem);
        }
        let left = expected.end - expected.next;
        // More answers than open items, or the end of the task with items still open that are
        // needed.
        if response.count > left || (response.ends && response.count != left && !expected.may_stop)
        {
            return Err(Corruption::WrongCount);
        }
        match response.kind {
            ResponseKind::Results if !expected.fits(response.count, body) => {
                return Err(Corruption::WrongSize);
            }
            // A message must answer for an item or end the task.
            ResponseKind::Results if response.count == 0 && !response.ends => {
                return Err(Corruption::WrongCount);
            }
            // The end of a task whose items have all been answered for.
            ResponseKind::Results if response.count == 0 => {}
            ResponseKind::Results => {
                sink.results(response.first, response.count, body);
                if expected.stops_at == StopsAt::Err && sink.has_stopped() {
                    expected.may_stop = true;
                }
            }
            ResponseKind::Fault if response.count != 1 => {
                return Err(Corruption::WrongCount);
            }
            ResponseKind::Fault => {
                let mut bytes = Vec::new();
                body.append_to(&mut bytes);
                let fault = crate::codec::exact::from_slice(&bytes).map_err(|error| {
                    log::debug!("a fault that cannot be read: {error}");
                    Corruption::UnreadFault
                })?;
                if !sink.tries_again(response.first, &fault) {
                    match &fault {
                        Fault::Panicked(_) => received.panicked += 1,
                        Fault::TimedOut(_) => received.timed_out += 1,
                        Fault::ResultEncode(_) => received.encode += 1,
                        Fault::ArgumentDecode(_) | Fault::ContextDecode(_) => received.decode += 1,
                    }
                    sink.fault(response.first, fault);
                }
                expected.may_stop |= expected.stops_at != StopsAt::Nothing;
            }
            ResponseKind::Times => {
                let (both, rest) = body.split::<16>().ok_or(Corruption::WrongTimes)?;
                // Times end a task and are about no item.
                if !response.ends || response.count != 0 || rest.len() != 0 {
                    return Err(Corruption::WrongTimes);
                }
                let [started, ended] = [0, 8].map(|at| super::message::long(&both[at..at + 8]));
                *times = Some(Times { started, ended });
            }
        }
        expected.next += response.count;
        if response.ends {
            expected.end = expected.next;
        }
        Ok(response.ends)
    }

    /// Hands on the results that a dead worker had written but not published, and returns how far
    /// the worker was. All that it published must have been taken. `None` if all items have been
    /// answered for.
    pub(crate) fn take_unpublished(
        &self,
        expected: &mut Expected,
        sink: &dyn Sink,
    ) -> Option<Fate> {
        let Progress { task, step } = self.lane.header().progress();
        let mut started = false;
        if task == expected.task {
            let ended = (step / 2).min(expected.end);
            // The worker ended more items than the parent has seen: their results are in the open
            // cell. A message of several cells that is only half there is about one item, which has
            // not ended.
            if ended > expected.next && self.partial.is_empty() {
                let count = ended - expected.next;
                if let Some(bytes) = self.open_results(count, expected.result_size) {
                    sink.results(expected.next, count, bytes);
                    expected.next = ended;
                }
            }
            started = step % 2 == 1 && step / 2 == expected.next;
            // Results that should be in the open cell and cannot be read are lost with their
            // worker.
            started |= ended > expected.next;
        }
        (expected.next < expected.end).then_some(Fate {
            next: expected.next,
            started,
        })
    }

    /// Returns the first `count` results of the open cell, if they can be there.
    fn open_results(&self, count: u32, size: Option<usize>) -> Option<RawBytes<'_>> {
        let (_, body) = self.reader.unpublished().split_at(RESPONSE_HEAD)?;
        let (results, _) = match size {
            Some(size) => body.split_at(size.checked_mul(count as usize)?)?,
            None => split_records(body, count)?,
        };
        Some(results)
    }
}
