#![allow(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Waiters, counts};
use crate::os::fork::{Victim, exit_now};
use crate::os::memory::SharedMemory;

/// The object that the tests wait for; in shared memory, all zeros at first.
#[repr(C)]
struct Object {
    waiters: Waiters,
    permits: AtomicU32,
    up: AtomicU32,
}

struct Page(SharedMemory);

impl Page {
    fn new() -> Self {
        Self(
            SharedMemory::new("a test", NonZeroUsize::new(4096).unwrap())
                .unwrap()
                .0,
        )
    }

    fn object(&self) -> &Object {
        // SAFETY: a page is large enough, and aligned, and lives as long as `self`; an Object is
        // made of atomics.
        unsafe { self.0.start().cast::<Object>().as_ref() }
    }
}

impl Object {
    fn take(&self) -> Option<()> {
        let take = |permits: u32| permits.checked_sub(1);
        let taken = self
            .permits
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take);
        taken.ok().map(drop)
    }

    fn give(&self) {
        self.permits.fetch_add(1, Ordering::Release);
        self.waiters.notify_one();
    }

    fn sleeping(&self) -> u32 {
        counts(self.waiters.sleepers.load(Ordering::Relaxed)).0 as u32
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "nothing has come");
        thread::yield_now();
    }
}

#[test]
fn what_is_there_is_given_also_after_the_deadline() {
    let page = Page::new();
    let object = page.object();
    let past = Some(Instant::now());
    assert_eq!(object.waiters.wait(past, || object.take(), || ()), None);
    object.give();
    assert_eq!(object.waiters.wait(past, || object.take(), || ()), Some(()));
    assert_eq!(object.sleeping(), 0);
}

#[test]
fn deadlines_do_not_pass_early_and_the_last_look_is_after_them() {
    let waiters = Waiters::default();
    for millis in [0, 1, 7, 15, 60] {
        let deadline = Instant::now() + Duration::from_millis(millis);
        let last_look = Cell::new(None);
        let look = || {
            last_look.set(Some(Instant::now()));
            None::<()>
        };
        assert_eq!(waiters.wait(Some(deadline), look, || ()), None);
        assert!(last_look.get().unwrap() >= deadline);
    }
    assert_eq!(waiters.sleepers.load(Ordering::Relaxed), 0);
}

#[test]
fn the_number_of_notifications_wraps_around() {
    let waiters = Waiters::default();
    waiters.signal.store(u32::MAX, Ordering::Relaxed);
    let token = waiters.token();
    waiters.notify_one();
    assert_eq!(waiters.signal.load(Ordering::Relaxed), 0);
    assert!(token.is_notified());
}

#[test]
fn a_wait_that_is_shorter_than_a_slice_looks_for_the_dead_as_well() {
    let waiters = Waiters::default();
    let patrols = Cell::new(0);
    let ready = || (patrols.get() > 0).then_some(());
    let poll_for_dead = || patrols.set(patrols.get() + 1);
    let deadline = Instant::now() + Duration::from_millis(1);
    assert_eq!(waiters.wait(Some(deadline), ready, poll_for_dead), Some(()));
}

#[test]
fn nobody_is_woken_when_nobody_sleeps() {
    let waiters = Waiters::default();
    waiters.notify_one();
    waiters.notify_all();
    assert_eq!(waiters.signal.load(Ordering::Relaxed), 0);
}

#[test]
fn every_permit_finds_a_taker() {
    let page = Page::new();
    let object = page.object();
    let taken = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..4_000 {
                    object.waiters.wait(None, || object.take(), || ()).unwrap();
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..6_000 {
                    object.give();
                    if round % 64 == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 12_000);
    assert_eq!(object.permits.load(Ordering::Relaxed), 0);
    assert_eq!(object.sleeping(), 0);
}

#[test]
fn another_process_is_woken_and_wakes() {
    let page = Page::new();
    let object = page.object();
    let child = Victim::fork(|| {
        for _ in 0..100 {
            object.waiters.wait(None, || object.take(), || ());
            object.up.fetch_add(1, Ordering::Release);
            object.waiters.notify_all();
        }
        exit_now(0);
    });
    for round in 1..=100 {
        object.give();
        let is_up = || (object.up.load(Ordering::Acquire) == round).then_some(());
        assert!(object.waiters.wait(Some(soon()), is_up, || ()).is_some());
    }
    child.kill();
}

#[cfg(not(long_slices))]
#[test]
fn a_change_whose_notifier_was_killed_is_found_without_it() {
    let patrols = &AtomicU32::new(0);
    let page = Page::new();
    let object = page.object();
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || {
            let poll_for_dead = || _ = patrols.fetch_add(1, Ordering::Relaxed);
            object
                .waiters
                .wait(Some(soon()), || object.take(), poll_for_dead)
        });
        wait_for(|| patrols.load(Ordering::Relaxed) > 0);
        // As if the notifier had been killed right after this.
        object.permits.fetch_add(1, Ordering::Release);
        assert_eq!(sleeper.join().unwrap(), Some(()));
    });
}

#[test]
fn a_sleeper_that_was_killed_costs_its_count_and_no_wake_up() {
    let page = Page::new();
    let object = page.object();
    let child = Victim::fork(|| {
        object.waiters.wait(None, || object.take(), || ());
    });
    wait_for(|| object.sleeping() == 1);
    child.kill();
    assert_eq!(object.sleeping(), 1);
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| object.waiters.wait(Some(soon()), || object.take(), || ()));
        wait_for(|| object.sleeping() == 2 || sleeper.is_finished());
        object.give();
        assert_eq!(sleeper.join().unwrap(), Some(()));
    });
    assert_eq!(object.sleeping(), 1);
}

#[test]
fn signals_do_not_end_a_wait() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing; no other code in the tests uses this signal.
    unsafe { sigaction(Signal::SIGURG, &action) }.unwrap();
    let page = Page::new();
    let object = page.object();
    let patrols = &AtomicU32::new(0);
    let thread = &AtomicI32::new(0);
    thread::scope(|scope| {
        let deadline = Instant::now() + Duration::from_millis(100);
        let sleeper = scope.spawn(move || {
            thread.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
            let poll_for_dead = || _ = patrols.fetch_add(1, Ordering::Relaxed);
            let never = || None::<()>;
            let got = object.waiters.wait(Some(deadline), never, poll_for_dead);
            (got, Instant::now())
        });
        wait_for(|| thread.load(Ordering::Relaxed) != 0);
        while !sleeper.is_finished() {
            let thread = thread.load(Ordering::Relaxed);
            // SAFETY: all arguments are numbers. A thread that has ended meanwhile gets none.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGURG) };
            thread::sleep(Duration::from_micros(200));
        }
        let (got, end) = sleeper.join().unwrap();
        assert_eq!(got, None);
        assert!(end >= deadline);
        // Slices of 10, 20, 40 ms have ended by themselves, however many signals came.
        assert!(patrols.load(Ordering::Relaxed) >= 1);
    });
}
