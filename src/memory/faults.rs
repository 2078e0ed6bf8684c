//! Processes that are killed or stopped between any two steps of a change in shared memory. Queues
//! have tests of their own.
//!
//! Calls that are made while the process is stopped return in the time that they promise.
//! Afterwards all counts are right.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::memory::{deferred, family, member};
use crate::os::exit;
use crate::os::fault::{self, Child, Fate, count_from_here};
use crate::os::fork;
use crate::queue::PushError;
use crate::sync::{Barrier, BarrierError, Condvar, Event, Mutex, RwLock, Semaphore, TryLockError};
use crate::{Queue, SharedArray, SharedValue, shm::ClaimError};

/// The most time that a call may take that waits a millisecond at most, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(10);

const MOMENT: Duration = Duration::from_millis(1);

/// Runs `body` in a child that meets each fate at each fault point in turn. Runs `meanwhile` while
/// the child is stopped, and `after` when it has ended.
fn at_each_point<T>(
    new: impl Fn() -> T,
    body: impl Fn(&T),
    meanwhile: impl Fn(&T),
    after: impl Fn(&T) -> bool,
) {
    let _alone = fault::alone();
    for fate in [Fate::Killed, Fate::Paused, Fate::KilledLater] {
        for number in 0.. {
            let object = new();
            let child = Child::run(fate, number, || body(&object));
            if child.is_stopped() {
                let start = Instant::now();
                meanwhile(&object);
                assert!(
                    start.elapsed() < IN_TIME,
                    "{fate:?} at fault point {number}"
                );
            }
            let is_through = child.end();
            member::reclaim_dead();
            // What was put off because a lock could not be taken is done later.
            let start = Instant::now();
            while !after(&object) {
                assert!(
                    start.elapsed() < IN_TIME,
                    "{fate:?} at fault point {number}"
                );
            }
            if is_through {
                assert!(number > 0, "it has no fault point");
                break;
            }
        }
    }
}

#[test]
fn permits_come_back_from_each_step() {
    let bodies: [fn(&Semaphore); 4] = [
        |semaphore| drop(semaphore.acquire_many(2)),
        // The child joins the wait list, and leaves it again when its time is up.
        |semaphore| drop(semaphore.acquire_many_timeout(4, MOMENT)),
        |semaphore| semaphore.release(0),
        |semaphore| drop((semaphore.acquire(), semaphore.acquire())),
    ];
    for body in bodies {
        at_each_point(
            || Semaphore::new(3).unwrap(),
            body,
            |semaphore| {
                drop(semaphore.acquire_timeout(MOMENT));
                drop(semaphore.try_acquire_many(2));
                semaphore.release(0);
            },
            |semaphore| semaphore.try_acquire_many(3).is_some(),
        );
    }
}

/// A permit that is forgotten and its place are never both there, whenever its owner dies.
#[test]
fn a_permit_is_forgotten_or_comes_back() {
    at_each_point(
        || Semaphore::new(3).unwrap(),
        |semaphore| semaphore.acquire().forget(),
        |semaphore| drop(semaphore.try_acquire()),
        |semaphore| {
            let available = semaphore.available();
            (2..=3).contains(&available) && semaphore.try_acquire_many(available).is_some()
        },
    );
}

#[test]
fn locks_are_free_after_each_step() {
    let bodies: [fn(&RwLock<u64>); 3] = [
        |lock| drop(lock.read()),
        |lock| drop(lock.write()),
        |lock| drop(lock.try_write()),
    ];
    for body in bodies {
        at_each_point(
            || RwLock::new(1_u64).unwrap(),
            body,
            |lock| {
                drop(lock.read_timeout(MOMENT));
                drop(lock.write_timeout(MOMENT));
                drop(lock.try_read());
            },
            |lock| {
                lock.clear_poison();
                lock.try_write().is_ok()
            },
        );
    }
}

/// A process that is killed while it writes a value leaves the value from before, whole.
#[test]
fn a_value_is_the_old_one_or_the_new_one() {
    let _alone = fault::alone();
    let value = SharedValue::new([1_u64; 64]).unwrap();
    let changes: [fn(&SharedValue<[u64; 64]>); 2] = [
        |value| value.set([2; 64]),
        |value| assert_eq!(value.update(|old| old.map(|x| x + 1)), [1; 64]),
    ];
    for change in changes {
        for number in 0.. {
            value.set([1; 64]);
            let is_through = Child::run(Fate::Killed, number, || change(&value)).end();
            let expected = if is_through { [2; 64] } else { [1; 64] };
            assert_eq!(value.get(), expected, "killed at fault point {number}");
            if is_through {
                assert!(number > 0, "it has no fault point");
                break;
            }
        }
    }
}

#[test]
fn barriers_break_at_each_step_and_can_be_reset() {
    let bodies: [fn(&Barrier); 2] = [
        |barrier| _ = barrier.wait_timeout(MOMENT),
        |barrier| barrier.abort(),
    ];
    for body in bodies {
        at_each_point(
            || Barrier::new(2).unwrap(),
            body,
            |barrier| {
                // Two come. Which two, and whether the barrier breaks, depends on where the child
                // is.
                thread::scope(|scope| {
                    scope.spawn(|| _ = barrier.wait_timeout(MOMENT));
                    let _ = barrier.wait_timeout(MOMENT);
                });
                barrier.abort();
            },
            |barrier| {
                barrier.reset();
                let pass = || barrier.wait_timeout(IN_TIME).is_ok();
                thread::scope(|scope| {
                    let other = scope.spawn(pass);
                    pass() & other.join().unwrap()
                })
            },
        );
    }
}

/// The next owner of the lock does not know what the dead one was about to do.
#[test]
fn a_process_that_is_killed_while_it_breaks_a_barrier_is_a_party_that_died() {
    let _alone = fault::alone();
    let mut has_died = false;
    for number in 0.. {
        let barrier = Barrier::new(2).unwrap();
        let child = Child::run(Fate::Killed, number, || barrier.abort());
        let is_through = child.end();
        member::reclaim_dead();
        match barrier.wait_timeout(MOMENT) {
            Err(BarrierError::Aborted) => {}
            Err(BarrierError::PartyDied) if !is_through => has_died = true,
            // The child had not come to its handle yet.
            Err(BarrierError::TimedOut) if !is_through && !has_died => {}
            other => panic!("{other:?} at fault point {number}"),
        }
        if is_through {
            break;
        }
    }
    assert!(has_died);
}

/// Others of a broken barrier hear why it broke first, whatever becomes of parties that come later.
#[test]
fn a_death_at_a_broken_barrier_does_not_change_why_it_is_broken() {
    let _alone = fault::alone();
    for number in 0.. {
        let barrier = Barrier::new(2).unwrap();
        barrier.abort();
        let child = Child::run(Fate::Killed, number, || _ = barrier.wait());
        let is_through = child.end();
        member::reclaim_dead();
        let now = barrier.wait();
        assert_eq!(now, Err(BarrierError::Aborted), "at fault point {number}");
        if is_through {
            break;
        }
    }
}

#[test]
fn claims_are_free_after_each_step() {
    let bodies: [fn(&SharedArray<u64>); 5] = [
        |array| drop(array.try_read()),
        |array| drop(array.try_write_range(1..3)),
        |array| drop(array.set(1, 2)),
        |array| drop(array.try_atomics()),
        |array| drop(array.write_timeout(IN_TIME)),
    ];
    for body in bodies {
        at_each_point(
            || SharedArray::<u64>::zeros(4).unwrap(),
            body,
            |array| {
                drop(array.read_timeout(MOMENT));
                drop(array.write_timeout(MOMENT));
                drop(array.try_read());
                drop(array.set(0, 1));
                drop(array.get(0));
                array.is_poisoned();
            },
            |array| array.try_write().is_ok(),
        );
    }
}

/// The ledger, under which blocks are given out and come back.
#[test]
fn blocks_come_back_from_each_step() {
    // A small block, and one that is so large that its memory is given back.
    for len in [100, 65 << 20] {
        at_each_point(
            || {
                let value = SharedValue::new(3_u64).unwrap();
                (value, SharedArray::<u8>::zeros(8).unwrap())
            },
            |_| drop(SharedArray::<u8>::zeros(len)),
            |(value, array)| {
                assert_eq!(value.get(), 3);
                // Opening and dropping handles takes the ledger. This process has them, so only the
                // drop is put off.
                drop((value.clone(), array.clone()));
                assert!(array.read_timeout(MOMENT).is_ok());
            },
            |_| {
                // An object of that size is made from what has come back.
                SharedArray::<u8>::zeros(len).is_ok()
            },
        );
    }
}

/// A process that cannot get the ledger is told so, and which process has it.
#[test]
fn making_an_object_gives_up_and_names_the_process_that_is_stopped() {
    let _alone = fault::alone();
    let mut has_met = false;
    for number in 0.. {
        let child = Child::run(Fate::Paused, number, || {
            drop(SharedArray::<u8>::zeros(100));
        });
        if !child.is_stopped() {
            assert!(child.end());
            break;
        }
        let pid = child.pid();
        match SharedArray::<u8>::zeros(100) {
            Ok(_) => {}
            Err(crate::shm::ShareError::Busy { by }) => {
                assert_eq!(by, Some(pid));
                has_met = true;
            }
            Err(error) => panic!("{error}"),
        }
        child.end();
        assert!(SharedArray::<u8>::zeros(100).is_ok());
        if has_met {
            break;
        }
    }
    assert!(has_met, "it was never stopped with the ledger");
}

/// Runs `meanwhile` while another thread has the ledger, as a process that is stopped may have it.
pub(super) fn with_ledger_held<R>(meanwhile: impl FnOnce() -> R) -> R {
    let _alone = fault::alone();
    // This process is a member already, and so is the thread that holds the ledger.
    member::own_number();
    thread::scope(|scope| {
        let ((held, is_held), (go, may_go)) = (channel(), channel::<()>());
        scope.spawn(move || {
            let _lock = family::get().unwrap().lock(|| None).unwrap();
            held.send(()).unwrap();
            let _ = may_go.recv();
        });
        is_held.recv().unwrap();
        let result = meanwhile();
        drop(go);
        result
    })
}

/// A forked child takes the ledger at its first use of a handle that it was born with.
#[test]
fn a_forked_child_keeps_the_time_of_its_first_calls() {
    let array = SharedArray::<u64>::zeros(4).unwrap();
    let (semaphore, lock) = (Semaphore::new(1).unwrap(), RwLock::new(1_u64).unwrap());
    let queue = Queue::<Semaphore>::bounded(4).unwrap();
    let values = Queue::<u64>::bounded(4).unwrap();
    let (barrier, event) = (Barrier::new(2).unwrap(), Event::new().unwrap());
    let calls: [(&str, &dyn Fn() -> bool); 9] = [
        ("read_timeout", &|| {
            matches!(array.read_timeout(MOMENT), Err(ClaimError::Busy { .. }))
        }),
        ("get", &|| {
            matches!(array.get(1), Err(ClaimError::Busy { .. }))
        }),
        ("to_vec", &|| array.to_vec().is_err()),
        ("acquire_timeout", &|| {
            semaphore.acquire_timeout(MOMENT).is_none()
        }),
        ("try_read", &|| lock.try_read().is_err()),
        ("try_push of a handle", &|| {
            let pushed = queue.try_push(semaphore.clone());
            matches!(pushed, Err(PushError::Full(_)))
        }),
        ("pop_timeout", &|| values.pop_timeout(MOMENT).is_err()),
        ("Barrier::wait_timeout", &|| {
            barrier.wait_timeout(MOMENT).is_err()
        }),
        ("Event::wait_timeout", &|| !event.wait_timeout(MOMENT)),
    ];
    for (name, call) in calls {
        let said = with_ledger_held(|| {
            let start = Instant::now();
            let child = Child::run(Fate::Killed, i64::MAX - 1, || {
                fork::exit_now(if call() { 0 } else { 101 });
            });
            assert!(start.elapsed() < IN_TIME, "{name} has waited");
            child.end()
        });
        assert!(said, "{name}");
    }
}

/// A hundred drops do not wait a hundred times.
#[test]
fn drops_do_not_wait_one_after_the_other() {
    let many: Vec<_> = (0..200).map(|_| SharedValue::new(1_u8).unwrap()).collect();
    let took = with_ledger_held(|| {
        let start = Instant::now();
        drop(many);
        start.elapsed()
    });
    assert!(took < Duration::from_millis(1_500), "{took:?}");
}

/// As long as a release is put off, the next ones only try. In a child, since other tests put off
/// some too.
#[test]
fn a_release_waits_a_little_for_a_lock_again_when_none_is_put_off() {
    let _alone = fault::alone();
    let child = Child::run(Fate::Killed, i64::MAX - 1, || {
        // In this order: the limit of a call that only tries is never later than the time after it.
        let waits = || deferred::Limit::Brief.at().unwrap() > Instant::now();
        let start = Instant::now();
        let waits_soon = || {
            while !waits() {
                assert!(start.elapsed() < IN_TIME, "it only tries");
            }
        };
        waits_soon();
        let is_over = Arc::new(AtomicBool::new(false));
        let may_end = is_over.clone();
        deferred::put_off(move |_| may_end.load(Ordering::SeqCst));
        assert!(!waits(), "a release is put off");
        is_over.store(true, Ordering::SeqCst);
        waits_soon();
    });
    assert!(child.end());
}

#[test]
fn a_release_that_panics_costs_no_other_one_and_is_not_tried_again() {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    deferred::put_off(|_| {
        TRIES.fetch_add(1, Ordering::SeqCst);
        panic!("in a release");
    });
    // The first of these is tried together with the one that panics. Between the others, all that
    // is put off is tried once more.
    for _ in 0..3 {
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        deferred::put_off(move |_| {
            done.store(true, Ordering::SeqCst);
            true
        });
        let start = Instant::now();
        while !is_done.load(Ordering::SeqCst) {
            assert!(start.elapsed() < IN_TIME, "it was dropped with the other");
        }
    }
    assert_eq!(TRIES.load(Ordering::SeqCst), 1);
}

/// Before a waiter is on the list it has the mutex: a notification that comes as soon as the mutex
/// is unlocked ends its wait.
#[test]
fn a_waiter_keeps_the_mutex_until_it_is_on_the_list() {
    for number in 0..2 {
        let (mutex, condvar) = (Mutex::new(0_u32).unwrap(), Condvar::new().unwrap());
        let child = Child::run(Fate::Paused, i64::MAX - 1, || {
            let guard = mutex.lock().unwrap();
            count_from_here(number);
            let waited = condvar.wait_timeout_while(guard, IN_TIME, |value| *value == 0);
            assert_eq!(*waited.unwrap().0, 1);
        });
        assert!(child.is_stopped(), "fault point {number} was not met");
        let is_locked = matches!(mutex.try_lock(), Err(TryLockError::WouldBlock));
        thread::scope(|scope| {
            scope.spawn(|| {
                *mutex.lock().unwrap() = 1;
                condvar.notify_one();
            });
            child.end();
        });
        assert!(is_locked, "at fault point {number} the mutex was unlocked");
    }
}

/// What a process has put off is done before it ends by itself.
#[test]
fn a_process_that_ends_gives_back_what_it_has_put_off() {
    let (go, done) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    let (its_go, its_done) = (go.clone(), done.clone());
    let (ending, tried) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    let (its_ending, its_tried) = (ending.clone(), tried.clone());
    // The child's handles are copies of those that this process keeps.
    let ending = &ending;
    let start = Instant::now();
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            // The release is tried again and again while the child ends.
            let permits = tried.acquire_many_timeout(2, IN_TIME);
            permits.expect("it is not tried again").forget();
            go.set();
        });
        Child::run(Fate::Killed, i64::MAX - 1, move || {
            let kept = its_done.clone();
            deferred::put_off(move |_| {
                let may_go = its_go.is_set();
                if its_ending.is_set() {
                    its_tried.release(1);
                }
                if may_go {
                    kept.release(1);
                }
                may_go
            });
            ending.set();
            exit::end();
            fork::exit_now(0);
        })
        .end()
    });
    assert!(said && start.elapsed() < IN_TIME);
    assert_eq!(done.available(), 1);
}
