//! Items that are tried again: what their answers leave, and what becomes of them between two
//! attempts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::*;
use crate::call::{Retry, RetryOn};
use crate::engine::processes::dispatch::made_up::Log;
use crate::engine::processes::task::{Task, stops_at};
use crate::error::PoolError;
use crate::lane::message::{Fault, StopsAt};
use crate::os::clock;
use crate::panic::Caught;

const HOUR: Duration = Duration::from_secs(3_600);
/// A second less.
const SOON: Duration = Duration::from_secs(3_599);

fn panicked() -> Fault {
    Fault::Panicked(Caught::saying("not yet"))
}

fn place(house: &MadeUp, count: u32, retry: Retry) -> Arc<Task<Log>> {
    house.place_with(count, |task| {
        task.limits.set(|given| given.retry = retry);
        task.stops_at = stops_at(retry);
        task.results.is_told = true;
    })
}

/// What happens after a worker has answered that an item failed.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// It ends the batch.
    Ends,
    /// It dies, before or after the parent has taken the answer.
    Dies { is_taken: bool },
    /// It ends the batch and dies before the parent has looked.
    EndsAndDies,
}

const ALL: [Then; 4] = [
    Then::Ends,
    Then::Dies { is_taken: false },
    Then::Dies { is_taken: true },
    Then::EndsAndDies,
];

/// Has the worker answer that the next item failed, and what follows. Returns the worker that is
/// there then.
fn fail(house: &MadeUp, mut peer: Peer, answered: u32, then: Then) -> Peer {
    let mut begun = peer.must_begin();
    peer.run(&mut begun, answered);
    peer.start(&mut begun);
    peer.fault(&panicked());
    assert!(!peer.responses.goes_on(), "the batch ends here");
    match then {
        Then::Ends => {
            peer.responses.end();
            house.pump();
            return peer;
        }
        Then::Dies { is_taken } => {
            if is_taken {
                house.pump();
            }
        }
        Then::EndsAndDies => peer.responses.end(),
    }
    house.reclaim(0, segfault());
    house.hire(0)
}

#[test]
fn b135_an_answer_after_which_an_item_is_tried_again_leaves_nothing() {
    for then in ALL {
        for answered in 0..4 {
            let house = MadeUp::new(1);
            let policy = Retry::up_to(2).on(RetryOn::PANIC);
            let task = place(&house, 4, policy);
            let peer = fail(&house, house.hire(0), answered, then);
            let mut peer = fail(&house, peer, 0, then);
            assert_eq!(house.lock().told, 1, "{then:?}");
            house.finish(&mut [&mut peer]);
            assert_eq!(task.failures(), [], "{then:?}, {answered}");
            let runs = [0, 1, 2, 3].map(|item| house.runs(&task, item));
            let expected = [0, 1, 2, 3].map(|item| if item == answered { 3 } else { 1 });
            assert_eq!(runs, expected, "{then:?}");
            let dispatch = house.lock();
            let stats = dispatch.tallies[0].stats(dispatch.workers[0].as_ref());
            assert_eq!((stats.tasks, stats.failures.total()), (4, 0), "{then:?}");
            assert_eq!(dispatch.retried, 2);
        }
    }
}

#[test]
fn b135_the_last_attempt_fails_its_item_alone_and_says_which_it_was() {
    for then in ALL {
        let house = MadeUp::new(1);
        let task = place(&house, 3, Retry::up_to(1).on(RetryOn::PANIC));
        let peer = fail(&house, house.hire(0), 1, then);
        let mut peer = fail(&house, peer, 0, then);
        house.finish(&mut [&mut peer]);
        let error = panicked().into_error(None).with_attempts(2);
        assert_eq!(task.failures(), [(1, error)], "{then:?}");
        let runs = [0, 1, 2].map(|item| house.runs(&task, item));
        assert_eq!(runs, [1, 2, 1], "{then:?}");
        let dispatch = house.lock();
        let stats = dispatch.tallies[0].stats(dispatch.workers[0].as_ref());
        assert_eq!((stats.tasks, stats.failures.total()), (3, 1), "{then:?}");
    }
}

#[test]
fn b135_attempts_of_all_causes_count_together() {
    let house = MadeUp::new(1);
    let causes = RetryOn::PANIC | RetryOn::DEATH | RetryOn::TIMEOUT;
    let task = house.place_with(2, |task| {
        task.limits.set(|given| {
            given.retry = Retry::up_to(3).on(causes);
            given.timeout = Some(HOUR);
        });
        task.stops_at = stops_at(task.retry());
    });
    let mut peer = fail(&house, house.hire(0), 0, Then::Ends);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    house.reclaim(0, segfault());
    // The third attempt is stopped at its limit.
    let mut peer = house.hire(0);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let over = clock::now() + 2 * nanoseconds(HOUR);
    let _ = house.lock().stop_overdue(over);
    house.reclaim(0, killed());
    let mut peer = house.hire(0);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let _ = house.lock().stop_overdue(over);
    house.reclaim(0, killed());
    let mut peer = house.hire(0);
    house.finish(&mut [&mut peer]);
    let error = TaskError::timed_out(None, HOUR).with_attempts(4);
    assert_eq!(task.failures(), [(0, error)]);
    assert_eq!((house.runs(&task, 0), house.runs(&task, 1)), (4, 1));
    assert_eq!(house.lock().retried, 3);
}

#[test]
fn b135_a_task_that_is_killed_after_its_fault_is_not_tried_again() {
    let house = MadeUp::new(1);
    let task = place(&house, 2, Retry::up_to(9).on(RetryOn::PANIC));
    let mut peer = house.hire(0);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    peer.fault(&panicked());
    house.pump();
    let cancelled = TaskError::Cancelled {};
    assert!(house.lock().kill(task.address(), &cancelled));
    house.reclaim(0, killed());
    assert_eq!(task.failures(), [(0, cancelled.clone()), (1, cancelled)]);
    house.hire(0);
    house.assert_at_rest();
}

#[test]
fn b133_a_batch_is_due_after_its_pause_and_not_before() {
    for then in ALL {
        let house = MadeUp::new(1);
        let policy = Retry::up_to(2).on(RetryOn::PANIC).backoff(HOUR);
        let task = place(&house, 1, policy);
        let start = Instant::now();
        let mut peer = fail(&house, house.hire(0), 0, then);
        for before in [1, 2] {
            // The worker is free for others.
            let other = house.place(1);
            peer.serve();
            house.pump();
            assert_eq!(other.failures(), []);
            assert!(peer.begin().is_none());
            let soon = start + SOON;
            let (next, moved) = house.lock().resume_due(&house.shared, soon);
            assert!(!moved && next.is_some_and(|left| left >= Duration::from_secs(1)));
            assert_eq!(house.runs(&task, 0), before);
            let due = Instant::now() + HOUR;
            let resumed = house.lock().resume_due(&house.shared, due);
            assert_eq!(resumed, (None, true), "{then:?}");
            if before == 1 {
                peer = fail(&house, peer, 0, then);
            }
        }
        house.finish(&mut [&mut peer]);
        assert_eq!((task.failures(), house.runs(&task, 0)), (vec![], 3));
    }
}

#[test]
fn b134_whatever_ends_a_pause_ends_it_at_once() {
    let cancelled = || Some(TaskError::Cancelled {});
    for (end, expected) in [
        ("withdraw", None),
        ("unwanted", cancelled()),
        ("cancel_queued", cancelled()),
        ("end", cancelled()),
        ("resume_all", None),
        ("closing", None),
        ("cancelling", cancelled()),
    ] {
        let house = MadeUp::new(1);
        let policy = Retry::up_to(1).on(RetryOn::PANIC).backoff(HOUR);
        let task = place(&house, 1, policy);
        let is_closing = end == "closing" || end == "cancelling";
        if is_closing {
            let cancels = end == "cancelling";
            house.lock().state = super::super::State::Closing { cancels };
        }
        let mut peer = fail(&house, house.hire(0), 0, Then::Ends);
        assert_eq!(house.lock().paused.first().is_some(), !is_closing);
        let mut dispatch = house.lock();
        match end {
            "withdraw" => {
                let it = (task.address(), 1);
                assert!(dispatch.withdraw(&house.shared, it, true));
            }
            "unwanted" => {
                task.results.is_unwanted.store(true, Ordering::SeqCst);
                dispatch.drop_unwanted(&house.shared);
            }
            "cancel_queued" => dispatch.cancel_queued(&house.shared),
            "end" => drop(dispatch.end(PoolError::Closed, &TaskError::Cancelled {})),
            _ => dispatch.resume_all(&house.shared),
        }
        assert!(dispatch.paused.first().is_none(), "{end}");
        drop(dispatch);
        if end == "end" {
            assert_eq!(task.failures(), [(0, TaskError::Cancelled {})]);
            continue;
        }
        house.finish(&mut [&mut peer]);
        if end == "withdraw" {
            // The caller that withdraws it ends it.
            assert!(!task.has_ended());
            continue;
        }
        let failures: Vec<_> = expected.map(|error| (0, error)).into_iter().collect();
        assert_eq!(task.failures(), failures, "{end}");
        let runs = if failures.is_empty() { 2 } else { 1 };
        assert_eq!(house.runs(&task, 0), runs, "{end}");
    }
}

#[test]
fn a_worker_ends_its_batch_at_a_failure_only_if_an_answer_may_be_followed_by_another_attempt() {
    let panics = Retry::up_to(1).on(RetryOn::PANIC);
    for (retry, expected) in [
        (Retry::NONE, StopsAt::Nothing),
        (Retry::up_to(3), StopsAt::Nothing),
        (Retry::up_to(0).on(RetryOn::PANIC), StopsAt::Nothing),
        (panics, StopsAt::Fault),
    ] {
        assert_eq!(stops_at(retry), expected, "{retry:?}");
    }
}
