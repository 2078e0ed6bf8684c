//! How processes wait for one another at an object in shared memory.
//!
//! Who changes the state of the object notifies, who needs another state waits. As with a condition variable, a
//! notification says nothing but "look again". It differs from one in three ways. It needs no lock: the state may be any
//! atomics. It costs no system call when nobody sleeps. And it bears that any participant is killed at any instruction:
//!
//! | who is killed | when | what it costs the others |
//! |---|---|---|
//! | a notifier | between its change of the state and its wake-up | sleepers look by themselves: at most 100 ms |
//! | a sleeper | asleep, or anywhere with a [`Ticket`] | it counts as sleeping for ever: now and then a notification makes a system call too many |
//! | a sleeper | after a `notify_one` has picked it | the others look by themselves: at most 100 ms |
//!
//! What the dead have left in the object's own state is the business of the object: `poll_for_dead` is called after each slice
//! of sleep that nobody has ended, to look for participants that are gone.
//!
//! The words may be written over by a process gone mad. That costs system calls or the 100 ms, and nothing else.

use std::hint;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::machine;
use crate::os::futex::Wake;
use crate::os::slice::slice;
#[cfg(not(loom))]
use crate::shim::AtomicU32;
use crate::shim::{AtomicU64, Futex, fence};

/// How long a wait spins before it sleeps: about what a notifier needs that is at it right now.
const SPIN: Duration = Duration::from_micros(5);

/// The first slice of a sleep; each one is twice as long as the one before.
const FIRST_SLICE: Duration = slice(Duration::from_millis(10));

/// The longest slice: what a lost wake-up costs.
const LONGEST_SLICE: Duration = slice(Duration::from_millis(100));

/// Those who wait at one object. It lies in shared memory, and all zeros is one at which nobody waits.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Waiters {
    /// How often somebody was notified, modulo 2^32; a futex. Added to by notifiers, before they wake. A sleeper that is
    /// stopped between its ticket and its sleep for exactly a multiple of 2^32 notifications takes the number for
    /// unchanged; it sleeps then as if the wake-up had been lost.
    signal: Futex,
    /// Lower 32 bits: how many have a ticket, and those that were killed while they had one. Pairs with the state of the
    /// object (add, fence, look at the state; change the state, fence, look at this).
    ///
    /// Upper 32 bits: for how many of them there has been a notification. Who was told needs some microseconds to be up,
    /// and in that time a fast notifier would make a system call for each item. Too few cost a system call, too many a
    /// wake-up; so never more than the lower half, and whoever leaves takes one away, whether it was counted for it, for
    /// another or for none.
    sleepers: AtomicU64,
}

/// One more with a ticket.
const SLEEPER: u64 = 1;

/// One more that was told.
const TOLD: u64 = 1 << 32;

/// How many there are, and how many have been told.
fn counts(sleepers: u64) -> (u64, u64) {
    (sleepers % TOLD, sleepers / TOLD)
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Waiters>() == 16);

/// The right to sleep until the next notification. Who has one counts as sleeping.
#[derive(Debug)]
#[must_use = "without a look at the state and a sleep it is of no use"]
pub(crate) struct Ticket<'a> {
    waiters: &'a Waiters,
    /// What `signal` was.
    seen: u32,
}

impl Waiters {
    /// Has one of those who wait look again. To be called after each change of the state that one of them may be
    /// waiting for, provided that all who wait here wait for the same thing: the one that is picked may be any.
    pub(crate) fn notify_one(&self) {
        self.notify(1);
    }

    /// Has all who wait look again. To be called after a change of the state.
    pub(crate) fn notify_all(&self) {
        self.notify(u32::MAX);
    }

    /// Has one of those who wait at `one` look again, and all who wait at `all`, for the price of one when nobody waits.
    pub(crate) fn notify_one_and_all(one: &Self, all: &Self) {
        // As in `notify`.
        fence(Ordering::SeqCst);
        one.notify_fenced(1);
        all.notify_fenced(u32::MAX);
    }

    fn notify(&self, count: u32) {
        // Pairs with the fence in `ticket`. Two threads that each write one word and then read the other's (the state
        // and `sleepers`) may both miss each other's write, whatever else the orderings are, unless something puts
        // both in one order: either we see that somebody sleeps, or the sleeper's last look sees our change.
        fence(Ordering::SeqCst);
        self.notify_fenced(count);
    }

    fn notify_fenced(&self, count: u32) {
        let tell = |sleepers| {
            let (all, told) = counts(sleepers);
            let more = all.saturating_sub(told).min(u64::from(count));
            (more > 0).then(|| sleepers + more * TOLD)
        };
        // Killed after this: those who count as told and were not look when their slice is over, and take it away.
        let told = self
            .sleepers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, tell);
        if told.is_err() {
            return;
        }
        // Release pairs with the Acquire in `ticket` and `is_notified`: who sees this one sees the change of the state.
        self.signal.fetch_add(1, Ordering::Release);
        // Killed here: those who are on their way to sleep see the number, the others look when their slice is over.
        self.signal.wake(count);
    }

    /// Gives what `ready` gives as soon as it gives something, and `None` once the deadline has passed. The last look is
    /// always after it.
    ///
    /// `ready` is called often and should be quick. `poll_for_dead` is called now and then, while nothing happens.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
        poll_for_dead: impl FnMut(),
    ) -> Option<T> {
        self.wait_paced(deadline, ready, poll_for_dead, || None)
    }

    /// Like [`wait`](Self::wait), for a `ready` that may put off its look although it was called
    /// for one. `put_off` returns until when it has: no sleep is longer than that, and `poll_for_dead`
    /// comes before the next look.
    pub(crate) fn wait_paced<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
        mut poll_for_dead: impl FnMut(),
        put_off: impl Fn() -> Option<Instant>,
    ) -> Option<T> {
        if let Some(it) = ready().or_else(|| spin(deadline, &mut ready)) {
            return Some(it);
        }
        let mut slices = Slices::new(deadline);
        loop {
            let ticket = self.ticket();
            if let Some(it) = ready() {
                return Some(it);
            }
            match ticket.sleep_for(slices.next().cut(put_off())) {
                Slept::Notified => {}
                // If this one counts as told, its notifier was killed at it; the ticket, which is given back now, sees to
                // it that the next one wakes it.
                Slept::SliceOver => poll_for_dead(),
                // Whoever woke us may have picked us alone: this look is also in its name. And a wait that is shorter
                // than a slice finds out about the dead as well.
                Slept::TimedOut => {
                    drop(ticket);
                    poll_for_dead();
                    return ready();
                }
            }
        }
    }

    /// A ticket for a sleep. To be taken before the look at the state: a notification that comes
    /// after this ends the sleep at once, or makes it none.
    pub(crate) fn ticket(&self) -> Ticket<'_> {
        // Before we count: a notifier that counts us as told adds to `signal` after that, and then it must no longer be
        // what we have seen. Acquire pairs with the Release in `notify`: what was notified before this will not wake us,
        // so our look must see it.
        let seen = self.signal.load(Ordering::Acquire);
        self.sleepers.fetch_add(SLEEPER, Ordering::Relaxed);
        // Pairs with the fence in `notify`, where it is said why.
        fence(Ordering::SeqCst);
        Ticket {
            waiters: self,
            seen,
        }
    }

    /// Whether any has a ticket. No fence orders this: a notifier has locked a mutex that a waiter
    /// had with its ticket.
    fn has_sleepers(&self) -> bool {
        counts(self.sleepers.load(Ordering::Relaxed)).0 > 0
    }
}

impl<'a> Ticket<'a> {
    /// The word that is no longer the number given after a notification, for those who sleep on many at once.
    #[cfg(not(loom))]
    pub(crate) fn word(&self) -> (&'a AtomicU32, u32) {
        (self.waiters.signal.word(), self.seen)
    }

    /// In models nobody sleeps on many.
    #[cfg(loom)]
    pub(crate) fn word(&self) -> (&'a std::sync::atomic::AtomicU32, u32) {
        unreachable!("a wait for many things in a model")
    }

    fn is_notified(&self) -> bool {
        // Acquire pairs with the Release in `Waiters::notify`.
        self.waiters.signal.load(Ordering::Acquire) != self.seen
    }

    /// Sleeps once, unless there was a notification.
    fn sleep_for(&self, slice: Slice) -> Slept {
        let signal = &self.waiters.signal;
        match signal.sleep(self.seen, slice.end, slice.is_last) {
            // Also for a wake-up that the number does not show, because it was sent for a notification from before this
            // ticket and has found us in place of another. Going back to sleep would lose it.
            Wake::Woken => Slept::Notified,
            Wake::TimedOut if slice.is_last => Slept::TimedOut,
            Wake::TimedOut => Slept::SliceOver,
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        // Also who has not been told takes one away. It may have been woken in place of one who has; its notifier may be
        // between the count and the number, or have been killed there; and it cannot be asked and done in one step.
        let leave = |sleepers| {
            let (all, told) = counts(sleepers);
            let all = all.saturating_sub(1);
            let told = told.saturating_sub(1).min(all);
            Some(all * SLEEPER + told * TOLD)
        };
        let sleepers = &self.waiters.sleepers;
        // It never fails.
        let _ = sleepers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave);
        // Pairs with the fence in `notify`: a notifier that took us for one who was told has not told us, and relies on it
        // that our next look sees its change.
        fence(Ordering::SeqCst);
    }
}

/// How one slice of sleep has ended.
enum Slept {
    Notified,
    SliceOver,
    TimedOut,
}

/// One slice of sleep.
#[derive(Clone, Copy)]
struct Slice {
    end: Instant,
    /// Whether it ends with the deadline of the whole wait.
    is_last: bool,
}

impl Slice {
    /// The part of it up to `end`, or all of it.
    fn cut(self, end: Option<Instant>) -> Self {
        match end {
            Some(end) if end < self.end => Self {
                end,
                is_last: false,
            },
            _ => self,
        }
    }
}

/// A sleep in slices, short ones first, up to a deadline.
struct Slices {
    deadline: Option<Instant>,
    next: Duration,
}

impl Slices {
    fn new(deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            next: FIRST_SLICE,
        }
    }

    fn next(&mut self) -> Slice {
        let end = Instant::now() + self.next;
        self.next = LONGEST_SLICE.min(self.next * 2);
        match self.deadline {
            Some(deadline) if deadline <= end => Slice {
                end: deadline,
                is_last: true,
            },
            _ => Slice {
                end,
                is_last: false,
            },
        }
    }
}

/// Looks for some microseconds, if the one waited for can run meanwhile.
fn spin<T>(deadline: Option<Instant>, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    // A model would take each look for an order to try.
    if cfg!(loom) || !may_spin() {
        return None;
    }
    let end = Instant::now() + SPIN;
    let end = deadline.map_or(end, |deadline| deadline.min(end));
    while Instant::now() < end {
        for _ in 0..16 {
            hint::spin_loop();
            if let Some(it) = ready() {
                return Some(it);
            }
        }
    }
    None
}

/// Whether this process may use more than one core. The system is asked once: it takes as long as many a wait. Two
/// threads may both ask, which is better than a lock that a forked child could find held.
fn may_spin() -> bool {
    const NO: u8 = 1;
    const YES: u8 = 2;
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    // Relaxed: nothing but the answer is handed over.
    match ANSWER.load(Ordering::Relaxed) {
        0 => {
            let is_alone = machine::usable_cores().is_ok_and(|cores| cores == 1);
            ANSWER.store(if is_alone { NO } else { YES }, Ordering::Relaxed);
            !is_alone
        }
        answer => answer == YES,
    }
}

pub(crate) mod list;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
