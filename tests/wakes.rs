//! What wakes a thread that waits in shared memory. In each case the thread is asleep, one thing
//! happens, and nothing else comes that would wake it too.
//!
//! With slices of an hour (`--cfg long_slices`) each of these fails if its wake-up is left out.
//! Otherwise the thread wakes after 100 ms by itself.

mod common;

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use common::{Leftovers, Sleeper, assert_matches, eventually};
use manyhands::prelude::*;
use manyhands::queue::{JoinError, PopError, PushError};
use manyhands::select::{Waitable, wait_ready};
use manyhands::sync::{Barrier, BarrierError, Condvar, Event, Mutex, Once, RwLock, Semaphore};
use manyhands::{Queue, SharedArray, shm::ClaimError};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// Runs `wait` on another thread, and `wake` when that sleeps.
fn wakes<R: Send>(what: &str, wait: impl FnOnce() -> R + Send, wake: impl FnOnce()) -> R {
    let sleeper = Sleeper::new();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| sleeper.run(wait));
        sleeper.is_asleep();
        wake();
        eventually(what, || waiter.is_finished());
        waiter.join().unwrap()
    })
}

#[test]
fn a_push_a_pop_and_a_close_wake_who_waits_at_a_queue() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(1)?;
    let popped = wakes(
        "a pop after a push",
        || queue.pop(),
        || queue.push(1).unwrap(),
    );
    assert_eq!(popped, Ok(1));
    queue.push(2)?;
    let pushed = wakes(
        "a push after a pop",
        || queue.push(3),
        || assert_eq!(queue.pop(), Ok(2)),
    );
    assert!(pushed.is_ok());
    let pushed = wakes("a push after a close", || queue.push(4), || queue.close());
    assert!(matches!(pushed, Err(PushError::Closed(4))));
    let empty = Queue::<u32>::bounded(1)?;
    let popped = wakes("a pop after a close", || empty.pop(), || empty.close());
    assert_eq!(popped, Err(PopError::Closed));
    Ok(())
}

/// The push that waits longest wants more room than there is.
#[test]
fn a_pop_wakes_all_who_wait_for_room_for_bytes() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<Vec<u8>>::with_limits(8, 200)?;
    queue.push(vec![0; 50])?;
    queue.push(vec![0; 100])?;
    let sleepers = [Sleeper::new(), Sleeper::new()];
    thread::scope(|scope| {
        let big = scope.spawn(|| sleepers[0].run(|| queue.push(vec![0; 150])));
        sleepers[0].is_asleep();
        let small = scope.spawn(|| sleepers[1].run(|| queue.push(vec![0; 60])));
        sleepers[1].is_asleep();
        assert_eq!(queue.pop().unwrap().len(), 50);
        eventually("a small push after a pop", || small.is_finished());
        queue.pop().unwrap();
        queue.pop().unwrap();
        eventually("a big push after pops", || big.is_finished());
        assert!(big.join().unwrap().is_ok() && small.join().unwrap().is_ok());
    });
    Ok(())
}

/// Cannot be read.
#[derive(serde::Serialize)]
struct Unreadable;

impl<'de> serde::Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom("unreadable"))
    }
}

#[test]
fn the_last_item_that_is_done_or_lost_wakes_who_joins() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(1)?;
    queue.push(1)?;
    queue.pop()?;
    let joined = wakes(
        "a join after task_done",
        || queue.join(),
        || queue.task_done().unwrap(),
    );
    assert_eq!(joined, Ok(()));
    let queue = Queue::<Unreadable>::bounded(1)?;
    queue.push(Unreadable)?;
    // The iterator passes over what it cannot read, and then is at the end.
    queue.close();
    let joined = wakes(
        "a join after an item was lost",
        || queue.join(),
        || assert_eq!(queue.iter().count(), 0),
    );
    assert_matches!(joined, Err(JoinError::Lost { items: 1, .. }));
    Ok(())
}

#[test]
fn a_push_a_close_and_a_set_end_a_wait_for_many() -> Result {
    let _none = Leftovers::none();
    let (queue, other) = (Queue::<u32>::bounded(1)?, Queue::<u32>::bounded(1)?);
    let event = Event::new()?;
    let all: [&dyn Waitable; 3] = [&queue, &other, &event];
    let wait = || wait_ready(&all, None);
    assert_eq!(
        wakes("wait_ready after a push", wait, || queue.push(1).unwrap()),
        [0]
    );
    queue.pop()?;
    assert_eq!(wakes("wait_ready after a set", wait, || event.set()), [2]);
    event.clear();
    assert_eq!(
        wakes("wait_ready after a close", wait, || other.close()),
        [1]
    );
    Ok(())
}

#[test]
fn a_barrier_that_is_aborted_or_reset_lets_go_of_who_waits() -> Result {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2)?;
    let waited = wakes("a wait after reset", || barrier.wait(), || barrier.reset());
    assert_eq!(waited, Err(BarrierError::Reset));
    let waited = wakes("a wait after abort", || barrier.wait(), || barrier.abort());
    assert_eq!(waited, Err(BarrierError::Aborted));
    barrier.reset();
    let passed = wakes(
        "a wait after the last has come",
        || barrier.wait().is_ok(),
        || assert!(barrier.wait().is_ok()),
    );
    assert!(passed);
    Ok(())
}

#[test]
fn what_is_given_back_wakes_the_next() -> Result {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(0)?;
    wakes(
        "an acquire after a release",
        || semaphore.acquire().forget(),
        || semaphore.release(1),
    );
    let mutex = Mutex::new(0)?;
    let guard = mutex.lock().unwrap();
    wakes(
        "a lock after an unlock",
        || drop(mutex.lock()),
        || {
            drop(guard);
        },
    );
    let lock = RwLock::new(0)?;
    let reading = lock.read().unwrap();
    wakes(
        "a write after a read",
        || drop(lock.write()),
        || {
            drop(reading);
        },
    );
    let writing = lock.write().unwrap();
    wakes(
        "a read after a write",
        || drop(lock.read()),
        || {
            drop(writing);
        },
    );
    let event = Event::new()?;
    wakes("a wait after a set", || event.wait(), || event.set());
    Ok(())
}

#[test]
fn the_end_of_the_function_wakes_who_waits_for_a_once() -> Result {
    let _none = Leftovers::none();
    let (once, may_end) = (Once::new()?, Event::new()?);
    let runs = Event::new()?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let run = || {
                runs.set();
                may_end.wait();
            };
            once.call_once(run).unwrap();
        });
        runs.wait();
        let ran = wakes(
            "call_once after another has run it",
            || once.call_once(|| unreachable!("it runs once")),
            || may_end.set(),
        );
        assert!(ran.is_ok());
    });
    Ok(())
}

/// The line of a semaphore has 96 places. The last thread has none.
#[test]
fn a_thread_without_a_place_gets_that_of_one_that_leaves() -> Result {
    let _none = Leftovers::none();
    for give_up in [false, true] {
        let semaphore = Semaphore::new(0)?;
        let sleepers: Vec<Sleeper> = (0..97).map(|_| Sleeper::new()).collect();
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, sleeper) in sleepers.iter().enumerate() {
                let semaphore = &semaphore;
                let wait = move || {
                    if give_up && number < 96 {
                        let time = Duration::from_millis(500);
                        assert!(semaphore.acquire_timeout(time).is_none());
                    } else {
                        semaphore.acquire().forget();
                    }
                };
                threads.push(scope.spawn(move || sleeper.run(wait)));
                sleeper.is_asleep();
            }
            if give_up {
                let (_, before) = threads.split_last().unwrap();
                eventually("all have given up", || {
                    before.iter().all(ScopedJoinHandle::is_finished)
                });
                semaphore.release(1);
            } else {
                semaphore.release(97);
            }
            eventually("all acquires", || {
                threads.iter().all(ScopedJoinHandle::is_finished)
            });
        });
    }
    Ok(())
}

/// The list of a condition variable has 448 slots. The last two threads have none.
#[test]
fn notify_all_wakes_those_without_a_slot() -> Result {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new(0_u8)?, Condvar::new()?);
    let sleepers: Vec<Sleeper> = (0..450).map(|_| Sleeper::new()).collect();
    let wait = || {
        let mut is_over = mutex.lock().unwrap();
        while *is_over == 0 {
            is_over = condvar.wait(is_over).unwrap();
        }
    };
    thread::scope(|scope| {
        let wait = &wait;
        let start = |sleeper| {
            let small = thread::Builder::new().stack_size(128 << 10);
            let run = move || Sleeper::run(sleeper, wait);
            small.spawn_scoped(scope, run).unwrap()
        };
        let threads: Vec<_> = sleepers.iter().map(start).collect();
        sleepers.iter().for_each(Sleeper::is_asleep);
        *mutex.lock().unwrap() = 1;
        condvar.notify_all();
        eventually("all wake up", || {
            threads.iter().all(ScopedJoinHandle::is_finished)
        });
    });
    Ok(())
}

#[test]
fn who_waits_for_a_claim_hears_of_its_end_of_a_lend_and_of_a_freeze() -> Result {
    let _none = Leftovers::none();
    let mut array = SharedArray::<u8>::zeros(4)?;
    let other = array.clone();
    let writing = array.try_write()?;
    let claimed = wakes(
        "a claim after a guard",
        || other.write_timeout(LONG).map(drop),
        || drop(writing),
    );
    assert_eq!(claimed, Ok(()));
    let (runs, may_end) = (Event::new()?, Event::new()?);
    let pool = Pool::threads(1)?;
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            pool.for_each_chunk(&mut array, 4, |_, _: &mut [u8]| {
                runs.set();
                may_end.wait();
            })
        });
        runs.wait();
        let claimed = wakes(
            "a claim after a call",
            || other.write_timeout(LONG).map(drop),
            || may_end.set(),
        );
        assert_eq!(claimed, Ok(()));
        assert_eq!(call.join().unwrap(), Ok(()));
    });
    let reading = other.try_read()?;
    let claimed = wakes(
        "a claim after a freeze",
        || other.write_timeout(LONG).map(drop),
        || drop(array.clone().freeze().unwrap()),
    );
    assert_eq!(claimed, Err(ClaimError::Frozen));
    drop(reading);
    Ok(())
}
