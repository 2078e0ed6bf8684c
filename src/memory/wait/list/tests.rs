#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{FREE, GRANTED, Place, SLOTS, WaitList, Woken, state_of};
use crate::os::fork::{Victim, exit_now};
use crate::os::memory::SharedMemory;

const OWN: u16 = 0;
const OTHER: u16 = 5;

struct Page(SharedMemory);

impl Page {
    fn new() -> Self {
        Self(
            SharedMemory::new("a test", NonZeroUsize::new(8192).unwrap())
                .unwrap()
                .0,
        )
    }

    fn list(&self) -> &WaitList {
        // SAFETY: two pages are large enough, and aligned, and live as long as `self`. A list is
        // made of atomics, and may be all zeros.
        unsafe { self.0.start().cast::<WaitList>().as_ref() }
    }

    /// Returns a word behind the list.
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the list takes up less than the first page.
        let word = unsafe { self.0.start().add(4096) };
        // SAFETY: as above: within the second page, and aligned.
        unsafe { word.cast::<AtomicU32>().as_ref() }
    }
}

impl WaitList {
    fn waiting(&self) -> usize {
        self.occupied().count()
    }

    fn is_granted(&self, index: usize) -> bool {
        self.slots[index].state.load(Ordering::Relaxed) & super::STATE == GRANTED
    }

    fn assert_empty(&self) {
        assert_eq!(self.waiting(), 0);
        let states = self
            .slots
            .iter()
            .map(|slot| slot.state.load(Ordering::Relaxed));
        assert!(states.into_iter().all(|state| state == FREE));
        assert!(!self.crowd.has_sleepers());
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "nothing has come");
        thread::yield_now();
    }
}

fn never() {
    panic!("it has slept for a slice");
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

#[test]
fn a_notification_after_the_enqueue_makes_the_sleep_none() {
    let page = Page::new();
    let list = page.list();
    for notify in [WaitList::notify_one, WaitList::notify_all] {
        let enqueued = list.enqueue(OWN);
        notify(list);
        assert_eq!(enqueued.sleep(None, never), Woken::Notified);
    }
    list.assert_empty();
}

#[test]
fn a_notification_from_before_the_enqueue_does_not_end_the_sleep() {
    let page = Page::new();
    let list = page.list();
    let deadline = soon();
    list.notify_one();
    list.notify_all();
    assert_eq!(
        list.enqueue(OWN).sleep(Some(deadline), || ()),
        Woken::TimedOut
    );
    assert!(Instant::now() >= deadline);
    list.assert_empty();
}

#[test]
fn a_notification_at_the_deadline_counts() {
    let page = Page::new();
    let list = page.list();
    let past = Some(Instant::now());
    assert_eq!(list.enqueue(OWN).sleep(past, never), Woken::TimedOut);
    let enqueued = list.enqueue(OWN);
    list.notify_one();
    assert_eq!(enqueued.sleep(past, never), Woken::Notified);
}

#[test]
fn those_who_came_first_are_notified_first() {
    let page = Page::new();
    let list = page.list();
    for last_ticket in [0, u32::MAX - 3, u32::MAX / 2 - 3] {
        list.last_ticket.store(last_ticket, Ordering::Relaxed);
        // The waiters are in slots that are not in the order in which they came.
        let mut waiters: Vec<_> = (0..8).map(|_| list.enqueue(OWN)).collect();
        for index in [5, 1, 3] {
            drop(waiters.remove(index));
            waiters.push(list.enqueue(OWN));
        }
        for waiter in waiters {
            list.notify_one();
            assert_eq!(waiter.sleep(Some(soon()), never), Woken::Notified);
        }
        list.assert_empty();
    }
}

#[test]
fn who_gives_up_passes_its_notification_on() {
    let page = Page::new();
    let list = page.list();
    let (first, second) = (list.enqueue(OWN), list.enqueue(OWN));
    list.notify_one();
    drop(first);
    assert_eq!(second.sleep(None, never), Woken::Notified);
    list.assert_empty();
}

/// As if the notifier had been killed before its wake-up.
#[cfg(not(long_slices))]
#[test]
fn a_grant_without_a_wake_up_is_seen_after_a_slice() {
    let page = Page::new();
    let list = page.list();
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| list.enqueue(OWN).sleep(None, || ()));
        wait_for(|| list.waiting() == 1);
        let (index, state) = list.oldest().unwrap();
        assert!(list.grant(index, state));
        assert_eq!(sleeper.join().unwrap(), Woken::Notified);
    });
    list.assert_empty();
}

/// A wake-up of the kernel that was meant for the slot's last owner.
#[test]
fn a_wake_up_without_a_grant_is_none() {
    let page = Page::new();
    let list = page.list();
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| list.enqueue(OWN).sleep(None, || ()));
        wait_for(|| list.waiting() == 1);
        let until = Instant::now() + Duration::from_millis(30);
        while Instant::now() < until {
            list.slots[0].state.wake(1);
        }
        assert_eq!(list.waiting(), 1);
        list.notify_one();
        assert_eq!(sleeper.join().unwrap(), Woken::Notified);
    });
}

#[test]
fn the_slots_of_a_dead_member_are_free_again() {
    let page = Page::new();
    let list = page.list();
    let child = Victim::fork(|| {
        list.enqueue(OTHER).sleep(None, || ());
        exit_now(0);
    });
    wait_for(|| list.waiting() == 1);
    let own = list.enqueue(OWN);
    child.kill();
    // The notification goes to the dead waiter, which came first.
    list.notify_one();
    assert!(list.is_granted(0) && !list.is_granted(1));
    list.reclaim(OTHER);
    assert_eq!(own.sleep(None, never), Woken::Notified);
    list.assert_empty();
    list.slots[7]
        .state
        .store(state_of(super::CLAIMED, OTHER), Ordering::Relaxed);
    list.reclaim(OTHER);
    list.reclaim(OTHER);
    list.assert_empty();
}

#[test]
fn the_crowd_is_notified_when_no_slot_is() {
    let page = Page::new();
    let list = page.list();
    let all: Vec<_> = (0..SLOTS).map(|_| list.enqueue(OWN)).collect();
    let crowd = list.enqueue(OWN);
    assert!(matches!(crowd.place, Place::Crowd(_)));
    for _ in 0..SLOTS {
        list.notify_one();
    }
    let Place::Crowd(token) = &crowd.place else {
        unreachable!()
    };
    assert!(!token.is_notified());
    list.notify_one();
    assert!(token.is_notified());
    assert_eq!(crowd.sleep(None, never), Woken::Notified);
    let crowd = list.enqueue(OWN);
    list.notify_all();
    assert!(matches!(&crowd.place, Place::Crowd(token) if token.is_notified()));
    assert_eq!(crowd.sleep(None, never), Woken::Notified);
    for enqueued in all {
        assert_eq!(enqueued.sleep(None, never), Woken::Notified);
    }
    list.assert_empty();
}

#[cfg(not(long_slices))]
#[test]
fn who_is_in_the_crowd_keeps_its_deadline_and_wakes_up_now_and_then() {
    let page = Page::new();
    let list = page.list();
    let all: Vec<_> = (0..SLOTS).map(|_| list.enqueue(OWN)).collect();
    let deadline = soon();
    assert_eq!(
        list.enqueue(OWN).sleep(Some(deadline), || ()),
        Woken::TimedOut
    );
    assert!(Instant::now() >= deadline);
    // The crowd's waiter wakes up for no reason, so that it gets a slot before long.
    assert_eq!(list.enqueue(OWN).sleep(None, || ()), Woken::Notified);
    drop(all);
    list.assert_empty();
}

/// Many threads, and another process, with deadlines that pass all the time.
#[test]
fn every_notification_is_one_wake_up_at_most() {
    const ROUNDS: u32 = 2_000;
    let page = Page::new();
    let (list, woken) = (page.list(), page.word());
    let child = Victim::fork(|| {
        loop {
            if list
                .enqueue(OTHER)
                .sleep(Some(Instant::now() + Duration::from_micros(70)), || ())
                == Woken::Notified
            {
                woken.fetch_add(1, Ordering::Release);
            }
        }
    });
    let is_over = Mutex::new(false);
    thread::scope(|scope| {
        for micros in [0, 20, 50, 3_000] {
            let is_over = &is_over;
            scope.spawn(move || {
                while !*is_over.lock().unwrap() {
                    let deadline = Instant::now() + Duration::from_micros(micros);
                    if list.enqueue(OWN).sleep(Some(deadline), || ()) == Woken::Notified {
                        woken.fetch_add(1, Ordering::Release);
                    }
                }
            });
        }
        let mut granted = 0;
        while granted < ROUNDS {
            // Grants like `notify_one`, which does not tell whether there was a waiter.
            if let Some((index, state)) = list.oldest()
                && list.grant(index, state)
            {
                list.slots[index].state.wake(1);
                granted += 1;
            }
            assert!(woken.load(Ordering::Acquire) <= granted);
        }
        wait_for(|| woken.load(Ordering::Acquire) == ROUNDS);
        *is_over.lock().unwrap() = true;
    });
    child.kill();
    list.reclaim(OTHER);
    list.assert_empty();
    assert_eq!(woken.load(Ordering::Acquire), ROUNDS);
}
