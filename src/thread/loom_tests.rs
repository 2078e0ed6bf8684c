//! Models of semaphore, event and barrier. A lost wake-up is a deadlock, which loom reports. A
//! deadline passes at any possible time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::thread::{self, JoinHandle};

use super::{Barrier, Event, Semaphore};
use crate::shim::AtomicBool;

/// Tries the orders with at most three switches away from a thread that could go on.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(run);
}

fn spawn<T: 'static, R: 'static>(
    of: &Arc<T>,
    run: impl FnOnce(&T) -> R + 'static,
) -> JoinHandle<R> {
    let of = Arc::clone(of);
    thread::spawn(move || run(&of))
}

/// Makes an event and looks at it in this thread: see `StaticBool`.
fn event() -> Arc<Event> {
    let event = Arc::new(Event::new());
    assert!(!event.is_set());
    event
}

const SOON: Duration = Duration::from_millis(1);

#[test]
fn each_permit_that_comes_back_is_for_one_who_waits() {
    model(|| {
        let semaphore = Arc::new(Semaphore::new(1));
        let holders = [(); 2].map(|()| spawn(&semaphore, |it| drop(it.acquire())));
        drop(semaphore.acquire());
        for holder in holders {
            holder.join().unwrap();
        }
        assert_eq!(semaphore.available(), 1);
    });
}

/// One thread wants two permits, is first in the queue, and may give up. The one behind it wants
/// one permit, which is there.
#[test]
fn one_that_gives_up_holds_up_none_behind_it() {
    model(|| {
        let semaphore = Arc::new(Semaphore::new(0));
        let late = spawn(&semaphore, |it| {
            it.acquire_many_timeout(2, SOON)
                .map(|permit| permit.forget())
        });
        let waiter = spawn(&semaphore, |it| it.acquire().forget());
        semaphore.release(1);
        // The late thread may have come after the other, and then waits for two more permits.
        waiter.join().unwrap();
        assert!(late.join().unwrap().is_none());
        assert_eq!(semaphore.available(), 0);
    });
}

#[test]
fn set_wakes_all_who_wait() {
    model(|| {
        let event = event();
        let written = Arc::new(AtomicBool::new(false));
        let waiters = [(); 2].map(|()| {
            let written = Arc::clone(&written);
            spawn(&event, move |it| {
                it.wait();
                assert!(written.load(Ordering::Relaxed));
            })
        });
        let late = spawn(&event, |it| it.wait_timeout(SOON));
        written.store(true, Ordering::Relaxed);
        event.set();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        late.join().unwrap();
        assert!(event.wait_timeout(SOON));
    });
}

#[test]
fn a_set_that_is_cleared_lets_those_go_who_waited() {
    model(|| {
        let event = event();
        let waiter = spawn(&event, |it| it.wait());
        while event.waiting() == 0 {
            thread::yield_now();
        }
        event.set();
        event.clear();
        waiter.join().unwrap();
    });
}

#[test]
fn a_barrier_is_passed_twice_by_both() {
    model(|| {
        let barrier = Arc::new(Barrier::new(2));
        let other = spawn(&barrier, |it| {
            [it.wait(), it.wait()].map(|pass| pass.is_ok())
        });
        assert!(barrier.wait().is_ok());
        assert!(barrier.wait().is_ok());
        assert_eq!(other.join().unwrap(), [true; 2]);
    });
}

/// Either the late thread breaks it for the other, or both pass.
#[test]
fn both_hear_the_same_of_a_barrier_with_a_deadline() {
    model(|| {
        let barrier = Arc::new(Barrier::new(2));
        let late = spawn(&barrier, |it| it.wait_timeout(SOON).is_ok());
        let waited = barrier.wait().is_ok();
        assert_eq!(late.join().unwrap(), waited);
    });
}
