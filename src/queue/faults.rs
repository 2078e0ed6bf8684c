//! Tests: a process is killed or stopped between any two steps of a push or pop.

use std::time::{Duration, Instant};

use crate::memory::{member, payload};
use crate::os::fault::{self, Child, Fate};
use crate::queue::{JoinError, PopError, PriorityQueue, Queue, Stack};

fn item(number: u8, len: usize) -> Vec<u8> {
    vec![number; len]
}

/// The longest that a call may take that waits a millisecond at most, on a machine that has other
/// things to do.
const IN_TIME: Duration = Duration::from_secs(10);

/// Checks that a call is over in time. A stopped process would keep it waiting for ever if the call
/// had no limit.
fn in_time<R>(what: &str, number: i64, call: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = call();
    assert!(start.elapsed() < IN_TIME, "{what} at fault point {number}");
    result
}

/// Runs a push or a pop in a child that meets `fate` at each fault point in turn. Meanwhile and
/// afterwards both sides go on, and at most the item that the child was popping is missing.
macro_rules! at_each_point {
    ($new:expr, $push:expr, $try_push:expr, $len:expr, $buries_first:expr, $fate:expr) => {{
        let (push, try_push, len, fate) = ($push, $try_push, $len, $fate);
        let moment = Duration::from_millis(1);
        let (mut pushed_at, mut popped_at) = (None, None);
        for pops in [false, true] {
            for number in 0.. {
                let queue = $new;
                let payloads = payload::count();
                push(&queue, item(1, len));
                push(&queue, item(2, len));
                let child = Child::run(fate, number, || {
                    if pops {
                        queue.pop().unwrap();
                    } else {
                        push(&queue, item(3, len));
                    }
                });
                let (mut pushed, mut got) = (vec![1, 2, 4], Vec::new());
                let mut take = |taken: Result<Vec<u8>, PopError>| match taken {
                    Ok(it) => {
                        assert!(it == item(it[0], len), "torn");
                        got.push(it[0]);
                        queue.task_done().unwrap();
                        true
                    }
                    Err(PopError::Empty | PopError::TimedOut) => false,
                    Err(error) => panic!("{error} at fault point {number}"),
                };
                if child.is_stopped() {
                    if in_time("try_push", number, || try_push(&queue, item(5, len))) {
                        pushed.push(5);
                    }
                    // Not both items: the child is to find one when it goes on.
                    take(in_time("pop_timeout", number, || queue.pop_timeout(moment)));
                }
                let is_through = child.end();
                if $buries_first {
                    member::reclaim_dead();
                }
                // Both sides go on.
                push(&queue, item(4, len));
                while take(queue.try_pop()) {}
                // The child is reclaimed now, at the latest.
                member::reclaim_dead();
                let (bytes_in, bytes_out) = queue.handle.bytes();
                assert_eq!(bytes_in, bytes_out, "fault point {number}");
                let joined = queue.join();
                let missing: Vec<u8> = pushed
                    .iter()
                    .copied()
                    .filter(|it| !got.contains(it))
                    .collect();
                if pops {
                    assert!(missing.len() <= 1, "{missing:?} at fault point {number}");
                    let lost = match missing.len() {
                        0 => Ok(()),
                        _ => Err(JoinError::Lost { items: 1 }),
                    };
                    assert_eq!(joined, lost, "fault point {number}");
                    popped_at = popped_at.or((!missing.is_empty()).then_some(number));
                } else {
                    let is_pushed = got.contains(&3);
                    assert_eq!(missing, [0; 0], "fault point {number}");
                    assert_eq!(got.len(), pushed.len() + usize::from(is_pushed));
                    assert_eq!(joined, Ok(()), "fault point {number}");
                    pushed_at = pushed_at.or(is_pushed.then_some(number));
                }
                // What was put off while the ledger was locked is done later.
                let start = Instant::now();
                while payload::count() != payloads {
                    assert!(start.elapsed() < IN_TIME, "fault point {number}");
                }
                if is_through {
                    break;
                }
            }
        }
        // Both a push and a pop came to pass. But for children that go on after a stop, they did so
        // only from some fault point on.
        assert!(pushed_at.is_some() && popped_at.is_some());
        assert!(fate == Fate::Paused || pushed_at > Some(0) && popped_at > Some(0));
    }};
}

fn at_each_point(fate: Fate) {
    // All payloads of this process are counted, so that only one test at a time may make some.
    let _alone = fault::alone();
    for len in [10, 1_000, 100_000] {
        // A child that was stopped is reclaimed at the last moment.
        for buries_first in [false, true] {
            if buries_first && fate != Fate::Killed {
                continue;
            }
            at_each_point!(
                Queue::bounded(6).unwrap(),
                |queue: &Queue<Vec<u8>>, item| queue.push(item).unwrap(),
                |queue: &Queue<Vec<u8>>, item| queue.try_push(item).is_ok(),
                len,
                buries_first,
                fate
            );
            at_each_point!(
                Stack::bounded(6).unwrap(),
                |stack: &Stack<Vec<u8>>, item| stack.push(item).unwrap(),
                |stack: &Stack<Vec<u8>>, item| stack.try_push(item).is_ok(),
                len,
                buries_first,
                fate
            );
            let priority = |item: &[u8]| i64::from(item[0]) % 3;
            at_each_point!(
                PriorityQueue::bounded(6).unwrap(),
                |queue: &PriorityQueue<Vec<u8>>, item: Vec<u8>| {
                    let priority = priority(&item);
                    queue.push(item, priority).unwrap();
                },
                |queue: &PriorityQueue<Vec<u8>>, item: Vec<u8>| {
                    let priority = priority(&item);
                    queue.try_push(item, priority).is_ok()
                },
                len,
                buries_first,
                fate
            );
        }
    }
}

#[test]
fn b64_killed_between_any_two_steps() {
    at_each_point(Fate::Killed);
}

#[test]
fn b64_stopped_between_any_two_steps_and_let_go_on() {
    at_each_point(Fate::Paused);
}

#[test]
fn b64_stopped_between_any_two_steps_and_killed() {
    at_each_point(Fate::KilledLater);
}
