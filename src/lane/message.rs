//! The form of the messages in a lane.
//!
//! A message begins with a head of fixed size, in the byte order of the machine: both sides are the
//! same build on the same machine. The rest is its body.

use std::ops::Deref;
use std::time::Duration;

use crate::error::{ItemIndex, TaskError, TaskValue};
use crate::memory::wire::undecoded;
use crate::panic::Caught;

/// A message from parent to worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run a function on items. Body: the items, as [`crate::codec`] writes them one after the
    /// other.
    Run {
        /// Number of the task in this lane.
        task: u32,
        /// The number of the function: see [`crate::call::code`].
        code: u64,
        /// The context to run the function with; 0 for none.
        context: u64,
        /// Index, within the task, of the first item.
        first: u32,
        /// How many items follow.
        count: u32,
        /// The word from which the seeds of the task's items are made.
        seeds: u64,
        /// After what the worker leaves out the rest of the items.
        stops_at: StopsAt,
        /// What few tasks have.
        more: Option<More>,
    },
    /// Keep a context. Body: its encoding.
    Context { id: u64 },
    /// Drop a context.
    Forget { id: u64 },
}

/// What few tasks have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct More {
    /// How long each item may take. With a limit the worker says when each item starts, and gives
    /// no result that comes too late.
    pub(crate) limit: Option<Duration>,
    /// How long a task that runs may go on when it is to stop, if it may. It is a part of the limit
    /// of each item.
    pub(crate) grace: Option<Duration>,
    /// Whether the worker must say, at the end, when it began and ended.
    pub(crate) is_recorded: bool,
    /// The index of the task's first item in the input of its call, or the task itself, for the
    /// worker's log records. Only if those are forwarded.
    pub(crate) name: Option<ItemIndex>,
}

/// The first answer after which the rest of a task's items is not needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StopsAt {
    /// All items are needed.
    #[default]
    Nothing,
    /// The first item without a result ends the task.
    Fault,
    /// So does the first item whose result is an `Err`.
    Err,
}

const REQUEST_HEAD: usize = 40;
/// Bytes of each of the limit, the name and the grace period, which follow the head of a request
/// that has them, in this order. Other requests stay as short as they are.
const WORD: usize = 8;
/// The most bytes of these.
const MORE_BYTES: usize = 3 * WORD;

/// The head of a request, with what follows it.
pub(crate) struct RequestHead {
    bytes: [u8; REQUEST_HEAD + MORE_BYTES],
    len: usize,
}

impl Deref for RequestHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const RUN: u32 = 1;
/// Bits beside [`RUN`].
const TIMED: u32 = 1 << 8;
const RECORDED: u32 = 1 << 9;
const STOPS_AT_FAULT: u32 = 1 << 10;
const STOPS_AT_ERR: u32 = 1 << 11;
const NAMED: u32 = 1 << 12;
const GRACEFUL: u32 = 1 << 13;
const STOPS: u32 = STOPS_AT_FAULT | STOPS_AT_ERR;
/// Those that say that there is more to a task.
const MORE: u32 = TIMED | RECORDED | NAMED | GRACEFUL;

impl RequestHead {
    fn new(head: [u8; REQUEST_HEAD]) -> Self {
        let mut bytes = [0; REQUEST_HEAD + MORE_BYTES];
        bytes[..REQUEST_HEAD].copy_from_slice(&head);
        Self {
            bytes,
            len: REQUEST_HEAD,
        }
    }

    fn push(&mut self, word: u64) {
        self.bytes[self.len..][..WORD].copy_from_slice(&word.to_ne_bytes());
        self.len += WORD;
    }
}

impl More {
    /// Returns the bits that say what there is of it.
    fn flags(&self) -> u32 {
        let flag = |is_there: bool, flag| if is_there { flag } else { 0 };
        flag(self.limit.is_some(), TIMED)
            | flag(self.name.is_some(), NAMED)
            | flag(self.grace.is_some(), GRACEFUL)
            | flag(self.is_recorded, RECORDED)
    }

    /// Appends what there is of it.
    #[cold]
    fn write(self, head: &mut RequestHead) {
        // A time that does not fit is longer than the machine will run.
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (limit, grace) = (self.limit.map(nanoseconds), self.grace.map(nanoseconds));
        let name = self.name.map(ItemIndex::to_word);
        for word in [limit, name, grace].into_iter().flatten() {
            head.push(word);
        }
    }

    /// Reads what these bits say, and returns what comes after it; `None` if that is not there.
    #[cold]
    fn read(flags: u32, body: &[u8]) -> Option<(Self, &[u8])> {
        let mut rest = body;
        let mut next = |flag| {
            if flags & flag == 0 {
                return Some(None);
            }
            let word;
            (word, rest) = rest.split_first_chunk::<WORD>()?;
            Some(Some(u64::from_ne_bytes(*word)))
        };
        let (limit, name, grace) = (next(TIMED)?, next(NAMED)?, next(GRACEFUL)?);
        let more = Self {
            limit: limit.map(Duration::from_nanos),
            grace: grace.map(Duration::from_nanos),
            is_recorded: flags & RECORDED != 0,
            name: name.and_then(ItemIndex::from_word),
        };
        Some((more, rest))
    }
}

impl Request {
    pub(crate) fn to_head(self) -> RequestHead {
        let mut given = None;
        let (kind, task, code, context, first, count, seeds) = match self {
            Self::Run {
                task,
                code,
                context,
                first,
                count,
                seeds,
                stops_at,
                more,
            } => {
                let stops = match stops_at {
                    StopsAt::Nothing => 0,
                    StopsAt::Fault => STOPS_AT_FAULT,
                    StopsAt::Err => STOPS_AT_ERR,
                };
                let flags = more.as_ref().map_or(0, More::flags);
                given = more;
                let kind = RUN | stops | flags;
                (kind, task, code, context, first, count, seeds)
            }
            Self::Context { id } => (2, 0, 0, id, 0, 0, 0),
            Self::Forget { id } => (3, 0, 0, id, 0, 0, 0),
        };
        let mut head = [0; REQUEST_HEAD];
        head[0..4].copy_from_slice(&kind.to_ne_bytes());
        head[4..8].copy_from_slice(&task.to_ne_bytes());
        head[8..16].copy_from_slice(&code.to_ne_bytes());
        head[16..24].copy_from_slice(&context.to_ne_bytes());
        head[24..28].copy_from_slice(&first.to_ne_bytes());
        head[28..32].copy_from_slice(&count.to_ne_bytes());
        head[32..40].copy_from_slice(&seeds.to_ne_bytes());
        let mut head = RequestHead::new(head);
        if let Some(more) = given {
            more.write(&mut head);
        }
        head
    }

    /// Reads the head and the body of a message; `None` if it is not a request.
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, mut body) = message.split_first_chunk::<REQUEST_HEAD>()?;
        let id = long(&head[16..24]);
        let request = match int(&head[0..4]) {
            kind if kind & !(STOPS | MORE) == RUN => Self::Run {
                more: if kind & MORE == 0 {
                    None
                } else {
                    let (more, rest) = More::read(kind, body)?;
                    body = rest;
                    Some(more)
                },
                stops_at: if kind & STOPS_AT_ERR != 0 {
                    StopsAt::Err
                } else if kind & STOPS_AT_FAULT != 0 {
                    StopsAt::Fault
                } else {
                    StopsAt::Nothing
                },
                task: int(&head[4..8]),
                code: long(&head[8..16]),
                context: id,
                first: int(&head[24..28]),
                count: int(&head[28..32]),
                seeds: long(&head[32..40]),
            },
            2 => Self::Context { id },
            3 => Self::Forget { id },
            _ => return None,
        };
        Some((request, body))
    }
}

/// A message from worker to parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// Number of the task.
    pub(crate) task: u32,
    /// Index, within the task, of the first item that the body is about.
    pub(crate) first: u32,
    /// How many items the body is about.
    pub(crate) count: u32,
    pub(crate) kind: ResponseKind,
    /// Whether the task ends with this message: all its items have been answered for, or the rest
    /// is not needed.
    pub(crate) ends: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseKind {
    /// Body: `count` results, as [`crate::codec`] writes them one after the other.
    Results,
    /// Body: the [`Fault`] of one item.
    Fault,
    /// Body: when the worker began with the task and when it ended it. It ends a task, and is about
    /// no item.
    Times,
}

pub(crate) const RESPONSE_HEAD: usize = 16;

impl Response {
    pub(crate) fn to_head(self) -> [u8; RESPONSE_HEAD] {
        let kind = match self.kind {
            ResponseKind::Results => 0,
            ResponseKind::Fault => 1,
            ResponseKind::Times => 2,
        };
        let mut head = [0; RESPONSE_HEAD];
        head[0..4].copy_from_slice(&self.task.to_ne_bytes());
        head[4..8].copy_from_slice(&self.first.to_ne_bytes());
        head[8..12].copy_from_slice(&self.count.to_ne_bytes());
        head[12..16].copy_from_slice(&(kind | u32::from(self.ends) << 8).to_ne_bytes());
        head
    }

    /// Reads the head; `None` if no worker of this build wrote it.
    pub(crate) fn from_head(head: [u8; RESPONSE_HEAD]) -> Option<Self> {
        let flags = int(&head[12..16]);
        Some(Self {
            task: int(&head[0..4]),
            first: int(&head[4..8]),
            count: int(&head[8..12]),
            kind: match flags & 0xff {
                0 => ResponseKind::Results,
                1 => ResponseKind::Fault,
                2 => ResponseKind::Times,
                _ => return None,
            },
            ends: match flags >> 8 {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }
}

fn int(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

pub(super) fn long(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

/// Why a worker has no result for an item.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Fault {
    Panicked(Box<Caught>),
    ArgumentDecode(String),
    ContextDecode(String),
    ResultEncode(String),
    /// The item took longer than its limit, which is this, but ended by itself before the parent
    /// stopped it.
    TimedOut(Duration),
}

impl Fault {
    pub(crate) fn into_error(self, index: Option<usize>) -> TaskError {
        match self {
            Self::Panicked(caught) => caught.into_error(index),
            Self::ArgumentDecode(reason) => undecoded(index, TaskValue::Argument, reason),
            Self::ContextDecode(reason) => undecoded(index, TaskValue::Context, reason),
            Self::ResultEncode(reason) => TaskError::Encode {
                index: index.into(),
                part: TaskValue::Result,
                reason: reason.into(),
            },
            Self::TimedOut(limit) => TaskError::timed_out(index, limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TaskId;

    #[test]
    fn heads_come_back_as_they_went() {
        let nanoseconds = Duration::from_nanos;
        let run = |limit, grace, stops_at, name| Request::Run {
            task: 1,
            code: 1 << 40,
            context: 3,
            first: 4,
            count: 5,
            seeds: 6,
            stops_at,
            more: Some(More {
                limit,
                grace,
                is_recorded: true,
                name,
            }),
        };
        for request in [
            run(None, None, StopsAt::Nothing, None),
            run(None, None, StopsAt::Fault, Some(Some(7).into())),
            run(None, Some(nanoseconds(9)), StopsAt::Nothing, None),
            run(
                None,
                Some(nanoseconds(9)),
                StopsAt::Fault,
                Some(Some(7).into()),
            ),
            run(Some(nanoseconds(u64::MAX - 1)), None, StopsAt::Err, None),
            run(
                Some(nanoseconds(8)),
                Some(nanoseconds(9)),
                StopsAt::Err,
                None,
            ),
            run(
                Some(nanoseconds(8)),
                Some(nanoseconds(9)),
                StopsAt::Err,
                Some(ItemIndex::of_task(TaskId::next())),
            ),
            Request::Context { id: u64::MAX },
            Request::Forget { id: 7 },
        ] {
            let mut message = request.to_head().to_vec();
            message.push(9);
            assert_eq!(Request::parse(&message), Some((request, &[9][..])));
        }
        for kind in [
            ResponseKind::Results,
            ResponseKind::Fault,
            ResponseKind::Times,
        ] {
            for ends in [false, true] {
                let response = Response {
                    task: 1,
                    first: 2,
                    count: 3,
                    kind,
                    ends,
                };
                assert_eq!(Response::from_head(response.to_head()), Some(response));
            }
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        assert_eq!(Request::parse(&[0; REQUEST_HEAD - 1]), None);
        let timed = (RUN | TIMED).to_ne_bytes();
        assert_eq!(
            Request::parse(&[&timed[..], &[0; REQUEST_HEAD + 3]].concat()),
            None
        );
        assert_eq!(Request::parse(&[0; 40]), None);
        assert_eq!(Response::from_head([0xff; RESPONSE_HEAD]), None);
    }
}
