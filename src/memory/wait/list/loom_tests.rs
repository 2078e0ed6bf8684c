//! Models of the wait list. There are two slots. The first slice of each sleep may end at any time,
//! and the others never do. So a lost wake-up is a deadlock, which loom reports.

use std::time::Instant;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{Enqueued, FREE, WaitList, Woken};

/// Members, each a process of its own.
const DEAD: u16 = 1;
const LIVE: u16 = 2;
const OTHER: u16 = 3;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(2));
    model.check(run);
}

/// Returns a deadline. In a model any deadline may pass whenever a thread waits for it.
fn deadline() -> Option<Instant> {
    Some(Instant::now())
}

fn forever(enqueued: Enqueued<'_>) {
    assert_eq!(enqueued.sleep(None, || ()), Woken::Notified);
}

/// A condition variable and its mutex, which guards permits.
#[derive(Default)]
struct Guarded {
    list: WaitList,
    permits: Mutex<u32>,
}

impl Guarded {
    fn give(&self) {
        *self.permits.lock().unwrap() += 1;
        // After the mutex is unlocked, which is the harder case.
        self.list.notify_one();
    }

    fn take(&self, member: u16) {
        let mut permits = self.permits.lock().unwrap();
        while *permits == 0 {
            let enqueued = self.list.enqueue(member);
            drop(permits);
            forever(enqueued);
            permits = self.permits.lock().unwrap();
        }
        *permits -= 1;
    }

    /// Checks that no slot is in use.
    fn none_is_left(&self) {
        assert_eq!(self.list.enqueued[0].load(Ordering::Relaxed), 0);
        let slots = self.list.slots.iter();
        assert!(
            slots
                .map(|slot| slot.state.load(Ordering::Relaxed))
                .all(|state| state == FREE)
        );
    }
}

fn spawn<R: 'static>(
    guarded: &Arc<Guarded>,
    run: impl FnOnce(&Guarded) -> R + 'static,
) -> thread::JoinHandle<R> {
    let guarded = guarded.clone();
    thread::spawn(move || run(&guarded))
}

#[test]
fn two_notifications_wake_two() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let waiters = [LIVE, OTHER].map(|member| spawn(&guarded, move |it| it.take(member)));
        guarded.give();
        guarded.give();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        guarded.none_is_left();
    });
}

#[test]
fn two_notifiers_at_once_wake_two() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let waiter = spawn(&guarded, |it| it.take(LIVE));
        let notifier = spawn(&guarded, Guarded::give);
        guarded.give();
        guarded.take(OTHER);
        notifier.join().unwrap();
        waiter.join().unwrap();
        guarded.none_is_left();
    });
}

/// One of the two waits with a deadline, and both may have slept for a slice before the
/// notification or after it.
#[test]
fn one_notification_is_one_wake_up() {
    model(|| {
        let list = Arc::new(WaitList::default());
        let woken = Arc::new(AtomicU32::new(0));
        // Both are on the list before the notification, so it is for one of them.
        let (impatient, patient) = (list.enqueue(LIVE), list.enqueue(OTHER));
        let (impatient, patient) = (index_of(impatient), index_of(patient));
        let sleeper = |index, member, deadline: Option<Instant>| {
            let (list, woken) = (list.clone(), woken.clone());
            thread::spawn(move || {
                let result = resumed(&list, index, member).sleep(deadline, || ());
                woken.fetch_add(u32::from(result == Woken::Notified), Ordering::Relaxed);
                result
            })
        };
        let impatient = sleeper(impatient, LIVE, deadline());
        let patient = sleeper(patient, OTHER, None);
        list.notify_one();
        if impatient.join().unwrap() == Woken::Notified {
            // The notification was for the one that came first, and the other one sleeps on.
            assert_eq!(woken.load(Ordering::Relaxed), 1);
            list.notify_one();
        }
        // Else the notification is for the other one, which sleeps for ever without it.
        assert_eq!(patient.join().unwrap(), Woken::Notified);
    });
}

/// Returns the slot's index, for a thread that takes over the slot: an `Enqueued` borrows the list.
fn index_of(enqueued: Enqueued<'_>) -> usize {
    let super::Place::Slot { index, .. } = enqueued.place else {
        panic!("a place in the crowd");
    };
    std::mem::forget(enqueued);
    index
}

fn resumed(list: &WaitList, index: usize, member: u16) -> Enqueued<'_> {
    let waiting = super::state_of(super::WAITING, member);
    Enqueued {
        list,
        place: super::Place::Slot { index, waiting },
    }
}

#[test]
fn a_waiter_that_times_out_uses_up_no_notification() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let impatient = spawn(&guarded, |it| {
            let permits = it.permits.lock().unwrap();
            if *permits == 0 {
                let enqueued = it.list.enqueue(LIVE);
                drop(permits);
                // If the deadline passes, this waiter leaves without another look, so nothing may
                // have been granted to it.
                if enqueued.sleep(deadline(), || ()) == Woken::Notified {
                    it.list.notify_one();
                }
            }
        });
        let patient = spawn(&guarded, |it| it.take(OTHER));
        guarded.give();
        impatient.join().unwrap();
        patient.join().unwrap();
        guarded.none_is_left();
    });
}

#[test]
fn a_waiter_that_gives_up_before_it_sleeps_passes_its_notification_on() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let other = spawn(&guarded, |it| drop(it.list.enqueue(LIVE)));
        let waiter = spawn(&guarded, |it| it.take(OTHER));
        guarded.give();
        other.join().unwrap();
        waiter.join().unwrap();
        guarded.none_is_left();
    });
}

/// The waiter that came first is killed before it is notified, after that, or never.
#[test]
fn a_notification_of_a_killed_waiter_is_given_to_another() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        // It is killed while it waits, or on its way to sleep.
        index_of(guarded.list.enqueue(DEAD));
        let waiter = spawn(&guarded, |it| it.take(LIVE));
        let reclaimer = spawn(&guarded, |it| it.list.reclaim(DEAD));
        guarded.give();
        reclaimer.join().unwrap();
        waiter.join().unwrap();
        guarded.none_is_left();
    });
}

/// The waiter that was notified has left the list when it is killed.
#[test]
fn a_notification_that_a_killed_waiter_has_heard_of_is_given_to_another() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let dead = index_of(guarded.list.enqueue(DEAD));
        let waiter = spawn(&guarded, |it| it.take(LIVE));
        let dying = spawn(&guarded, move |it| {
            // Notified or not, its process ends here, and then is reclaimed.
            resumed(&it.list, dead, DEAD).sleep(deadline(), || ());
            it.list.reclaim(DEAD);
        });
        guarded.give();
        dying.join().unwrap();
        waiter.join().unwrap();
        guarded.none_is_left();
    });
}

/// Tries each state in which a killed waiter may leave its slot.
#[test]
fn a_slot_of_a_killed_waiter_is_another_s_again() {
    for is_bit_set in [false, true] {
        for state in [super::CLAIMED, super::WAITING, super::GRANTED] {
            model(move || {
                let guarded = Arc::new(Guarded::default());
                let list = &guarded.list;
                list.slots[0]
                    .state
                    .store(super::state_of(state, DEAD), Ordering::Relaxed);
                list.enqueued[0].store(is_bit_set.into(), Ordering::Relaxed);
                let waiters =
                    [LIVE, OTHER].map(|member| spawn(&guarded, move |it| it.take(member)));
                list.reclaim(DEAD);
                guarded.give();
                guarded.give();
                for waiter in waiters {
                    waiter.join().unwrap();
                }
                guarded.none_is_left();
            });
        }
    }
}

#[test]
fn all_are_notified_of_all() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let waiters = [LIVE, OTHER].map(|member| {
            let is_over = is_over.clone();
            spawn(&guarded, move |it| {
                let mut permits = it.permits.lock().unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    let enqueued = it.list.enqueue(member);
                    drop(permits);
                    forever(enqueued);
                    permits = it.permits.lock().unwrap();
                }
            })
        });
        {
            let _permits = guarded.permits.lock().unwrap();
            is_over.store(true, Ordering::Relaxed);
        }
        guarded.list.notify_all();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        guarded.none_is_left();
    });
}

/// Three waiters in two slots.
#[test]
fn a_waiter_without_a_slot_is_notified_as_well() {
    model(|| {
        let guarded = Arc::new(Guarded::default());
        // Two waiters that have been notified, and have not left yet.
        for member in [LIVE, OTHER] {
            index_of(guarded.list.enqueue(member));
            guarded.list.notify_one();
        }
        let waiter = spawn(&guarded, |it| it.take(LIVE));
        let leaver = spawn(&guarded, |it| _ = it.list.leave(0));
        guarded.give();
        leaver.join().unwrap();
        waiter.join().unwrap();
    });
}
