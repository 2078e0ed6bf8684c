//! What a faulty worker may leave in its lane, from a script of bytes, and what the parent makes of
//! it: an error or items that can be right, and no panic, no endless loop, no memory beyond what
//! was in the ring.
//!
//! A script is a list of operations: publish what is right, write nonsense over states, lengths,
//! heads and bodies, set `progress`, have the parent take something. Any bytes are a script. The
//! property tests beside this and the fuzz target in `fuzz/` run the same scripts.

mod parent;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicU32, AtomicUsize};

use self::parent::{Checks, Parent};
use self::worker::Worker;
use super::crash_report::TEXT_BYTES;
use super::message::StopsAt;
use super::ring::{CELL_PAYLOAD, RING_BYTES};
use super::{Expected, Lane, Receiver};
use crate::error::Corruption;

const CELL_BYTES: usize = 4_096;
const CELLS: usize = RING_BYTES / CELL_BYTES;
const TASK: u32 = 7;

/// What the parent made of a script.
#[derive(Debug)]
pub(crate) struct Report {
    /// Items of the task that have a result or a fault, those included that were found unpublished
    /// at the worker's death.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the property tests"))]
    pub(crate) answered: u32,
    /// Why the parent refused the lane.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the property tests"))]
    pub(crate) refused: Option<Corruption>,
    /// Bytes in all cells that were taken.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the property tests"))]
    pub(crate) taken: usize,
}

/// Runs a script; panics if the parent does something that it must not.
///
/// # Panics
///
/// A panic is the failure of the test.
#[cfg(fuzzing)]
#[allow(
    unreachable_pub,
    reason = "for the fuzz target, by way of `crate::fuzzing`"
)]
pub fn lane_responses(script: &[u8]) {
    run(script);
}

/// The numbers of a script, one after the other; zeros after its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn int(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Returns a number that is often near a limit.
    fn odd(&mut self) -> u32 {
        match self.byte() {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << 31,
            3 => CELL_PAYLOAD as u32,
            4 => CELL_PAYLOAD as u32 + 1,
            5 => u32::MAX / 2,
            6 => self.int(),
            small => u32::from(small - 7),
        }
    }
}

pub(crate) fn run(script: &[u8]) -> Report {
    let lane = Lane::new().expect("there is memory for a lane");
    let mut script = Script(script);
    let size = match script.byte() % 4 {
        0 => Some(8),
        1 => Some(1),
        _ => None,
    };
    let first = u32::from(script.byte() % 3);
    let end = first + 1 + 8 * u32::from(script.byte());
    let mut worker = Worker {
        writer: lane.response_writer(),
        lane: lane.clone(),
        item: first,
        end,
        size,
        pending: None,
    };
    let mut parent = Parent {
        receiver: Receiver::new(lane.clone()),
        expected: Expected {
            task: TASK,
            next: first,
            end,
            result_size: size,
            stops_at: StopsAt::Nothing,
            may_stop: false,
        },
        checks: Checks {
            next: AtomicU32::new(first),
            end,
            size,
            bytes: AtomicUsize::new(0),
        },
        taken: 0,
        refused: None,
        ended: false,
    };
    while !script.0.is_empty() {
        match script.byte() {
            kind @ 0..60 => worker.spoil(kind % 10, &mut script),
            60..64 => worker.lie(&mut script),
            64..192 => worker.send(&mut script),
            192..224 => parent.take(1),
            224.. => parent.take(usize::from(script.byte())),
        }
    }
    // The worker is dead, so there is at most a full ring.
    parent.take(CELLS + 1);
    let is_over = parent.refused.is_some() || parent.ended || !parent.receiver.has_next();
    assert!(is_over, "the ring comes to an end");
    if parent.refused.is_none() && !parent.ended {
        let Parent {
            receiver,
            expected,
            checks,
            ..
        } = &mut parent;
        let fate = receiver.take_unpublished(expected, checks);
        assert_eq!(fate.is_some(), expected.next < expected.end);
        assert!(fate.is_none_or(|fate| fate.next == expected.next));
        parent.agree();
    }
    assert!(parent.expected.next <= end);
    let words = lane.header().crash_report().read();
    assert!(words.is_none_or(|caught| caught.message.len() <= TEXT_BYTES));
    Report {
        answered: parent.expected.next - first,
        refused: parent.refused,
        taken: parent.taken,
    }
}
