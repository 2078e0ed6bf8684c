//! Models of the wait protocol. A lost wake-up is a deadlock here, since no thread looks by itself.
//! See `shim`.

use std::time::Instant;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::Waiters;

/// The object that the models wait for: permits, with no more ordering than it takes to hand
/// something over.
#[derive(Default)]
struct Object {
    waiters: Waiters,
    permits: AtomicU32,
}

impl Object {
    fn take(&self) -> Option<()> {
        let take = |permits: u32| permits.checked_sub(1);
        let taken = self
            .permits
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take);
        taken.ok().map(|_| ())
    }

    fn give(&self) {
        self.permits.fetch_add(1, Ordering::Release);
        self.waiters.notify_one();
    }

    fn wait(&self) {
        self.waiters.wait(None, || self.take(), || ()).unwrap();
    }

    /// Checks that no thread counts as sleeping, nor as told.
    fn nobody_is_left(&self) {
        assert_eq!(self.waiters.sleepers.load(Ordering::Relaxed), 0);
    }
}

/// Tries the orders with at most two switches away from a thread that could go on. That takes
/// seconds and finds a fence that is missing; all orders take minutes and more.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(2));
    model.check(run);
}

/// Returns a deadline. In a model any deadline may pass whenever a thread waits for it.
fn deadline() -> Option<Instant> {
    Some(Instant::now())
}

#[test]
fn one_notifier_and_two_waiters() {
    model(|| {
        let object = Arc::new(Object::default());
        let waiters = [(); 2].map(|()| {
            let object = object.clone();
            thread::spawn(move || object.wait())
        });
        object.give();
        object.give();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn two_notifiers_and_one_waiter() {
    model(|| {
        let object = Arc::new(Object::default());
        let notifiers = [(); 2].map(|()| {
            let object = object.clone();
            thread::spawn(move || object.give())
        });
        object.wait();
        object.wait();
        for notifier in notifiers {
            notifier.join().unwrap();
        }
    });
}

#[test]
fn two_notifiers_and_two_waiters() {
    model(|| {
        let object = Arc::new(Object::default());
        let waiters = [(); 2].map(|()| {
            let object = object.clone();
            thread::spawn(move || object.wait())
        });
        let notifier = {
            let object = object.clone();
            thread::spawn(move || object.give())
        };
        object.give();
        notifier.join().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        object.nobody_is_left();
    });
}

#[test]
fn two_notifiers_and_two_waiters_of_which_one_times_out() {
    model(|| {
        let object = Arc::new(Object::default());
        let impatient = {
            let object = object.clone();
            thread::spawn(move || {
                let wait = || object.waiters.wait(deadline(), || object.take(), || ());
                wait().is_some()
            })
        };
        let patient = {
            let object = object.clone();
            thread::spawn(move || object.wait())
        };
        let notifier = {
            let object = object.clone();
            thread::spawn(move || object.give())
        };
        object.give();
        notifier.join().unwrap();
        patient.join().unwrap();
        let taken = u32::from(impatient.join().unwrap());
        assert_eq!(object.permits.load(Ordering::Relaxed), 1 - taken);
        object.nobody_is_left();
    });
}

#[test]
fn a_token_that_is_dropped_unslept_takes_no_notification() {
    model(|| {
        let object = Arc::new(Object::default());
        let other = {
            let object = object.clone();
            thread::spawn(move || {
                // This thread may be counted as told, and never sleeps.
                drop(object.waiters.token());
                drop(object.waiters.token());
            })
        };
        let waiter = {
            let object = object.clone();
            thread::spawn(move || {
                object.wait();
                object.wait();
            })
        };
        object.give();
        object.give();
        other.join().unwrap();
        waiter.join().unwrap();
        object.nobody_is_left();
    });
}

#[test]
fn one_for_one_beside_all_for_all() {
    model(|| {
        let object = Arc::new(Object::default());
        let waiters = [(); 2].map(|()| {
            let object = object.clone();
            thread::spawn(move || object.wait())
        });
        object.give();
        object.permits.fetch_add(1, Ordering::Release);
        object.waiters.notify_all();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        object.nobody_is_left();
    });
}

#[test]
fn one_notification_for_all() {
    model(|| {
        let object = Arc::new(Object::default());
        let wait = |object: &Object| {
            let is_there = || (object.permits.load(Ordering::Relaxed) == 1).then_some(());
            object.waiters.wait(None, is_there, || ()).unwrap();
        };
        let waiters = [(); 2].map(|()| {
            let object = object.clone();
            thread::spawn(move || wait(&object))
        });
        object.permits.store(1, Ordering::Relaxed);
        object.waiters.notify_all();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn who_times_out_eats_no_notification() {
    model(|| {
        let object = Arc::new(Object::default());
        let impatient = {
            let object = object.clone();
            thread::spawn(move || {
                let taken = object.waiters.wait(deadline(), || object.take(), || ());
                if taken.is_some() {
                    object.give();
                }
            })
        };
        let patient = {
            let object = object.clone();
            thread::spawn(move || object.wait())
        };
        object.give();
        impatient.join().unwrap();
        patient.join().unwrap();
    });
}
