//! Calls that have their outcome: what they do not need any more is not started.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::engine::processes::dispatch::made_up::Log;
use crate::engine::processes::task::Task;
use crate::lane::message::{Fault, StopsAt};
use crate::panic::Caught;

fn panicked() -> Fault {
    Fault::Panicked(Caught::saying("on purpose"))
}

/// Places a task that is a chunk of a `map`.
fn place(house: &MadeUp, count: u32) -> Arc<Task<Log>> {
    house.place_with(count, |task| task.stops_at = StopsAt::Fault)
}

/// Makes all items from `from` on unwanted, as the failure of an item before them does.
fn unwant(task: &Task<Log>, from: u32) {
    *task.results.unwanted_from.lock() = Some(from);
}

/// Returns the items that were left out. All others must have their results.
#[track_caller]
fn left_out(task: &Task<Log>) -> Vec<u32> {
    let failures = task.failures();
    let is_cancelled = |(_, error): &(u32, TaskError)| matches!(error, TaskError::Cancelled {});
    assert!(failures.iter().all(is_cancelled), "{failures:?}");
    failures.into_iter().map(|(item, _)| item).collect()
}

#[test]
fn a_failure_stops_its_own_chunk_and_all_that_is_not_wanted() {
    let house = MadeUp::new(2);
    let (mut one, mut two) = (house.hire(0), house.hire(1));
    let [first, second, third] = [0; 3].map(|_| place(&house, 9));
    let (mut at_first, mut at_second) = (one.must_begin(), two.must_begin());
    if at_first.code != first.function.code {
        std::mem::swap(&mut one, &mut two);
        std::mem::swap(&mut at_first, &mut at_second);
    }
    one.run(&mut at_first, 3);
    two.run(&mut at_second, 2);
    two.start(&mut at_second);
    assert!(two.responses.goes_on());
    // Item 3 fails, and its worker goes on with nothing of this chunk.
    one.start(&mut at_first);
    one.fault(&panicked());
    assert!(!one.responses.goes_on());
    for (task, from) in [(&first, 4), (&second, 0), (&third, 0)] {
        unwant(task, from);
    }
    one.responses.end();
    house.pump();
    assert!(first.has_ended() && third.has_ended() && !second.has_ended());
    // The other worker is in the middle of an item, and stops after it.
    assert!(!two.responses.goes_on());
    two.answer(&at_second);
    two.responses.end();
    house.pump();
    assert_eq!(left_out(&second), (3..9).collect::<Vec<_>>());
    assert_eq!(left_out(&third), (0..9).collect::<Vec<_>>());
    let failures = first.failures();
    assert!(
        matches!(failures[0], (3, TaskError::Panicked { .. })),
        "{failures:?}"
    );
    assert_eq!(failures.len(), 6);
    house.assert_at_rest();
    assert_eq!(house.lock().cancelled, 5 + 6 + 9);
    let ran = [0, 1].map(|number| house.tally(number).0);
    assert_eq!(ran.iter().sum::<u64>(), 4 + 3, "items that have run");
    // What comes later is not cut.
    let next = place(&house, 5);
    house.finish(&mut [&mut one, &mut two]);
    assert!(left_out(&next).is_empty());
}

#[test]
fn a_cut_is_of_one_task_and_ends_with_it() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let [first, second, third] = [0; 3].map(|_| place(&house, 2));
    let begun = peer.must_begin();
    unwant(&first, 0);
    house.lock().drop_unwanted(&house.shared);
    assert!(!peer.responses.goes_on(), "nothing of it is started");
    peer.responses.end();
    // The worker has begun with the next task when the parent looks.
    let mut next = peer.must_begin();
    assert_eq!(next.code, second.function.code);
    assert!(peer.responses.goes_on());
    house.pump();
    assert_eq!(left_out(&first), [0, 1]);
    assert_eq!(house.runs(&first, begun.first), 0);
    peer.run(&mut next, 1);
    // Both tasks that the worker has begun with are cut while it is at the second of them.
    unwant(&second, 0);
    house.lock().drop_unwanted(&house.shared);
    house.lock().drop_unwanted(&house.shared);
    assert!(!peer.responses.goes_on());
    peer.responses.end();
    house.finish(&mut [&mut peer]);
    assert_eq!(left_out(&second), [1]);
    assert!(left_out(&third).is_empty());
}

#[test]
fn of_two_tasks_that_were_begun_the_later_one_is_cut() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let [first, second] = [0; 2].map(|_| place(&house, 3));
    let begun = peer.must_begin();
    peer.finish(begun);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 1);
    // The parent has taken no answer yet: as far as it knows the first may run.
    unwant(&first, 0);
    unwant(&second, 0);
    house.lock().drop_unwanted(&house.shared);
    assert!(!peer.responses.goes_on());
    peer.responses.end();
    house.pump();
    assert_eq!((left_out(&first), left_out(&second)), (vec![], vec![1, 2]));
    house.assert_at_rest();
}

#[test]
fn a_worker_that_leaves_out_what_it_was_not_told_to_is_corrupted_and_loses_nothing() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = place(&house, 4);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 2);
    // Noise over the header looks like a cut of this task.
    peer.lane.header().cut(1..=1);
    assert!(!peer.responses.goes_on());
    peer.responses.end();
    house.pump();
    let reason = house.kill_reason(0).unwrap();
    assert!(reason.contains("WrongCount"), "{reason}");
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    let failures = task.failures();
    let [(item, TaskError::WorkerDied { cause, .. })] = &failures[..] else {
        panic!("{failures:?}")
    };
    assert_eq!(*item, 0, "none of its answers had come");
    assert!(matches!(cause, Death::Corrupted(_)), "{cause:?}");
    assert_eq!(
        (1..4)
            .map(|item| house.runs(&task, item))
            .collect::<Vec<_>>(),
        [2, 1, 1]
    );
}

#[test]
fn a_death_leaves_out_the_rest_of_its_chunk() {
    for dies_cut in [false, true] {
        let house = MadeUp::new(1);
        let mut peer = house.hire(0);
        let [task, behind] = [0; 2].map(|_| place(&house, 6));
        let mut begun = peer.must_begin();
        peer.run(&mut begun, 1);
        peer.start(&mut begun);
        if dies_cut {
            // An item before this chunk has failed, in another one.
            unwant(&task, 0);
            unwant(&behind, 0);
            house.lock().drop_unwanted(&house.shared);
        } else {
            unwant(&task, 2);
            unwant(&behind, 0);
        }
        house.reclaim(0, segfault());
        assert!(task.has_ended() && behind.has_ended(), "{dies_cut}");
        let failures = task.failures();
        assert!(
            matches!(failures[0], (1, TaskError::WorkerDied { .. })),
            "{failures:?}"
        );
        assert_eq!(failures.len(), 5);
        assert_eq!(left_out(&behind), (0..6).collect::<Vec<_>>());
        let mut other = house.hire(0);
        house.finish(&mut [&mut other]);
        assert!((2..6).all(|item| house.runs(&task, item) == 0));
    }
}

#[test]
fn what_a_worker_has_done_of_a_call_is_known_before_it_is_published() {
    let house = MadeUp::new(2);
    let (mut one, mut two) = (house.hire(0), house.hire(1));
    let call = AtomicU32::new(0);
    let address = call.as_ptr().cast_const().cast();
    let [task, alien] = [true, false].map(|is_ours| {
        house.place_with(5, |task| {
            if is_ours {
                task.results.call = address as usize;
            }
        })
    });
    let unpublished = || house.lock().unpublished(address);
    assert_eq!(unpublished(), (0, 0));
    let (mut first, mut second) = (one.must_begin(), two.must_begin());
    if first.code != task.function.code {
        std::mem::swap(&mut one, &mut two);
        std::mem::swap(&mut first, &mut second);
    }
    two.run(&mut second, 4);
    assert_eq!(unpublished(), (0, 0), "those are of another call");
    one.run(&mut first, 2);
    assert_eq!(unpublished(), (2, 0));
    one.publish();
    house.pump();
    assert_eq!((unpublished(), task.answered()), ((0, 0), 2));
    one.start(&mut first);
    one.lane.header().set_within(7);
    assert_eq!(unpublished(), (0, 7));
    one.answer(&first);
    assert_eq!(unpublished(), (1, 0));
    one.finish(first);
    two.finish(second);
    house.finish(&mut [&mut one, &mut two]);
    assert!(alien.has_ended());
    assert_eq!(unpublished(), (0, 0));
}

#[test]
fn what_is_given_out_when_the_outcome_is_known_goes_to_no_worker() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    // The caller has encoded a chunk meanwhile.
    let late = house.place_with(4, |task| {
        task.stops_at = StopsAt::Fault;
        unwant(task, 0);
    });
    assert!(late.has_ended());
    assert_eq!(left_out(&late), [0, 1, 2, 3]);
    house.assert_at_rest();
    assert_eq!(house.lock().cancelled, 4);
    let next = place(&house, 2);
    house.finish(&mut [&mut peer]);
    assert!(left_out(&next).is_empty());
}
