//! Chunks of calls that give the outcome of every item: which outcome is which item's.

use serde::{Serialize, Serializer};

use super::*;
use crate::call::seed::Seeds;
use crate::call::{ChunkFuture, Limits, Retry};
use crate::engine::processes::chunk::{self, Given};
use crate::engine::processes::dispatch::State;
use crate::engine::processes::dispatch::made_up::Begun;
use crate::engine::processes::task::Function;
use crate::error::{PoolError, TaskValue};
use crate::lane::message::Fault;
use crate::panic::Caught;

const CODE: u64 = 77;
/// Index of the first item of each chunk.
const BASE: usize = 100;
const MINUTE: Duration = Duration::from_secs(60);
const ALL: (usize, usize) = (usize::MAX, usize::MAX);

/// An item that can be sent, or not.
#[derive(Clone, Copy)]
enum Item {
    Good,
    Bad,
}
use Item::{Bad, Good};

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Good => serializer.serialize_u8(1),
            Bad => Err(serde::ser::Error::custom("it stays here")),
        }
    }
}

fn function() -> Function {
    Function {
        code: CODE,
        context: None,
    }
}

fn limits() -> Limits {
    let mut limits = Limits::none().with(|given| {
        given.retry = Retry::up_to(3);
        given.timeout = Some(MINUTE);
    });
    limits.seeds = Seeds(5);
    limits
}

/// Gives a chunk out. Returns what of the input was taken, and whether that was its end.
fn give(
    house: &MadeUp,
    limits: &Limits,
    items: &mut impl Iterator<Item = Item>,
    size: (usize, usize),
) -> (Given<u64>, usize, bool) {
    chunk::give(&house.shared, limits, &function(), BASE, items, size, None)
}

#[track_caller]
fn under_way(given: Given<u64>) -> ChunkFuture<u64> {
    match given {
        Given::UnderWay(chunk) => chunk,
        Given::Outcomes(outcomes) => panic!("{outcomes:?}"),
    }
}

#[track_caller]
fn outcomes(given: Given<u64>) -> Vec<Result<u64, TaskError>> {
    match given {
        Given::UnderWay(_) => panic!("it is under way"),
        Given::Outcomes(outcomes) => outcomes,
    }
}

fn unsent(at: usize) -> Result<u64, TaskError> {
    Err(TaskError::Encode {
        index: Some(BASE + at).into(),
        part: TaskValue::Argument,
        reason: "it stays here".to_owned().into(),
    })
}

/// Returns the result of an item, by its number at the worker.
#[allow(clippy::unnecessary_wraps, reason = "beside those that cannot be sent")]
fn sent(number: u64) -> Result<u64, TaskError> {
    Ok(CODE << 32 | number)
}

#[test]
fn items_that_cannot_be_sent_have_their_errors_and_the_others_their_results() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let mut items = [Bad, Bad, Good, Good, Bad, Good, Bad].into_iter();
    let (given, taken, has_ended) = give(&house, &limits(), &mut items, ALL);
    // The worker counts without the items that it is not sent, so the rest goes into another chunk.
    assert_eq!((taken, has_ended), (5, false));
    let chunk = under_way(given);
    {
        let dispatch = house.lock();
        let task = &dispatch.workers[0].as_ref().unwrap().in_flight[0]
            .batch
            .task;
        assert_eq!(
            (task.retry(), task.limit()),
            (Retry::up_to(3), Some(MINUTE))
        );
        // Two items come before the first that was sent.
        assert_eq!(task.limits.seeds, Seeds(5).from(BASE + 2));
    }
    peer.serve();
    let expected = [unsent(0), unsent(1), sent(0), sent(1), unsent(4)];
    assert_eq!(chunk.result().unwrap(), expected);
    let (given, taken, has_ended) = give(&house, &limits(), &mut items, (2, usize::MAX));
    assert_eq!((taken, has_ended), (2, false));
    let chunk = under_way(given);
    peer.serve();
    assert_eq!(chunk.result().unwrap(), [sent(0), unsent(1)]);
    let (given, taken, has_ended) = give(&house, &limits(), &mut items, ALL);
    assert_eq!((taken, has_ended, outcomes(given)), (0, true, Vec::new()));
    // No worker hears of a chunk of which nothing could be sent.
    let (given, taken, _) = give(
        &house,
        &limits(),
        &mut [Bad; 3].into_iter(),
        (2, usize::MAX),
    );
    assert_eq!((taken, outcomes(given)), (2, vec![unsent(0), unsent(1)]));
    house.assert_at_rest();
}

#[test]
fn a_chunk_takes_no_more_items_and_bytes_than_it_may() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let mut one = Vec::new();
    crate::codec::append(&mut one, &Good).unwrap();
    for (size, items) in [((4, usize::MAX), 4), ((9, 2 * one.len() + 1), 3), (ALL, 6)] {
        let mut input = [Good; 6].into_iter();
        let (given, taken, has_ended) = give(&house, &limits(), &mut input, size);
        assert_eq!((taken, input.len()), (items, 6 - items));
        assert_eq!(has_ended, items == 6);
        let chunk = under_way(given);
        peer.serve();
        assert_eq!(chunk.result().unwrap().len(), items);
    }
}

#[test]
fn failures_are_told_of_the_items_that_they_are_of() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let limits = limits().with(|given| given.retry = Retry::NONE);
    let mut items = [Bad, Good, Good, Good, Good, Good].into_iter();
    let chunk = under_way(give(&house, &limits, &mut items, ALL).0);
    let mut begun: Begun = peer.must_begin();
    peer.start(&mut begun);
    peer.fault(&Fault::Panicked(Caught::saying("on purpose")));
    peer.run(&mut begun, 1);
    peer.start(&mut begun);
    house.reclaim(0, segfault());
    let mut other = house.hire(0);
    let mut begun = other.must_begin();
    other.run(&mut begun, 1);
    other.start(&mut begun);
    other.fault(&Fault::ResultEncode("no".to_owned()));
    other.responses.end();
    let panicked = Err(TaskError::Panicked {
        index: Some(BASE + 1).into(),
        message: "on purpose".to_owned().into(),
        location: None,
        backtrace: None,
    });
    let unread = Err(TaskError::Encode {
        index: Some(BASE + 5).into(),
        part: TaskValue::Result,
        reason: "no".to_owned().into(),
    });
    let died = Err(died(&peer, segfault(), 1).with_index(BASE + 3));
    let expected = [unsent(0), panicked, sent(1), died, sent(3), unread];
    assert_eq!(chunk.result().unwrap(), expected);
    house.assert_at_rest();
}

#[test]
fn a_chunk_that_is_cancelled_in_the_queue_keeps_what_has_been_answered_and_never_runs() {
    for answered in [0, 2] {
        let house = MadeUp::new(1);
        let mut peer = house.hire(0);
        let mut items = [Bad, Good, Good, Good, Good].into_iter();
        let chunk = under_way(give(&house, &limits(), &mut items, ALL).0);
        let mut begun = peer.must_begin();
        peer.run(&mut begun, answered);
        assert_eq!(chunk.is_running(), answered > 0);
        assert!(!chunk.cancel());
        house.reclaim(0, segfault());
        assert!(!chunk.is_running() && chunk.cancel());
        let mut other = house.hire(0);
        house.finish(&mut [&mut other]);
        assert_eq!(house.tally(0).0, u64::from(answered));
        let cancelled = || Err(TaskError::Cancelled {});
        let mut expected = vec![unsent(0), sent(0), sent(1), cancelled(), cancelled()];
        if answered == 0 {
            expected[1..].fill(cancelled());
        }
        assert_eq!(chunk.result().unwrap(), expected);
        house.assert_at_rest();
    }
}

#[test]
fn a_chunk_that_the_pool_does_not_take_has_an_error_for_each_item() {
    let house = MadeUp::new(1);
    house.hire(0);
    let closed = TaskError::from(PoolError::Closed);
    house.lock().state = State::Closing { cancels: false };
    let mut items = [Good, Good, Bad, Good].into_iter();
    let (given, taken, _) = give(&house, &limits(), &mut items, ALL);
    assert_eq!((taken, outcomes(given)), (3, vec![Err(closed); 3]));
    house.lock().state = State::Open;
    // A task that may take no time is over its limit before it starts.
    let limit = Duration::ZERO;
    let limits = limits().with(|given| given.timeout = Some(limit));
    let chunk = under_way(give(&house, &limits, &mut [Good; 2].into_iter(), ALL).0);
    let overdue = |at| {
        let index = Some(BASE + at);
        Err(TaskError::TimedOut {
            index: index.into(),
            limit,
            attempts: 1,
        })
    };
    assert_eq!(chunk.result().unwrap(), [overdue(0), overdue(1)]);
    house.assert_at_rest();
}
