//! How processes wait for one another at an object in shared memory.
//!
//! A process that changes the state of the object notifies. A process that needs another state
//! waits. As with a condition variable, a notification says nothing but "look again". It differs
//! from a condition variable in three ways. It needs no lock: the state may be any atomics. It
//! costs no system call when no thread sleeps. And any participant may be killed at any
//! instruction:
//!
//! | who is killed | when | what it costs the others |
//! |---|---|---|
//! | a notifier | between its change of the state and its wake-up | at most 100 ms |
//! | a sleeper | asleep, or anywhere with a [`WaitToken`] | needless system calls now and then |
//! | a sleeper | after a `notify_one` has picked it | at most 100 ms |
//!
//! The 100 ms are the time after which sleepers look by themselves. A sleeper that was killed
//! counts as sleeping for ever, so now and then a notification makes a system call too many.
//!
//! The object itself repairs what the dead have left in its state. `poll_for_dead` is called after
//! each slice of sleep that no notification has ended, to look for participants that are gone.
//!
//! A faulty process may write over the words. That costs system calls or the 100 ms, and nothing
//! else.

use std::hint;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::machine;
use crate::os::futex::Wake;
use crate::os::slice::slice;
#[cfg(not(loom))]
use crate::shim::AtomicU32;
use crate::shim::{AtomicU64, Futex, fence};

/// How long a wait spins before it sleeps: about as long as a notifier needs that is at work right
/// now.
const SPIN: Duration = Duration::from_micros(5);

/// The first slice of a sleep; each one is twice as long as the one before.
const FIRST_SLICE: Duration = slice(Duration::from_millis(10));

/// The longest slice: what a lost wake-up costs.
const LONGEST_SLICE: Duration = slice(Duration::from_millis(100));

/// The threads that wait at one object. It lies in shared memory. All zeros means that no thread
/// waits.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Waiters {
    /// How many notifications there have been, modulo 2^32; a futex. Notifiers add to it before
    /// they wake. If a sleeper is stopped between its token and its sleep for exactly a multiple
    /// of 2^32 notifications, it takes the number for unchanged. It sleeps then as if the wake-up
    /// had been lost.
    signal: Futex,
    /// Lower 32 bits: how many threads have a token, with those that were killed while they had
    /// one. Pairs with the state of the object (add, fence, look at the state; change the state,
    /// fence, look at this).
    ///
    /// Upper 32 bits: how many of them have been told, that is, have been notified. A thread that
    /// was told needs some microseconds to wake up, and in that time a fast notifier would make a
    /// system call for each item. If this number is too low, that costs a system call; if it is too
    /// high, a wake-up. So it is never higher than the lower half. A thread that leaves takes one
    /// away, whether that one was counted for it, for another thread or for none.
    sleepers: AtomicU64,
}

/// One more thread with a token, in `sleepers`.
const SLEEPER: u64 = 1;

/// One more thread that was told, in `sleepers`.
const TOLD: u64 = 1 << 32;

/// Returns how many threads there are, and how many of them have been told.
fn counts(sleepers: u64) -> (u64, u64) {
    (sleepers % TOLD, sleepers / TOLD)
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Waiters>() == 16);

/// The right to sleep until the next notification. A thread that has one counts as sleeping.
#[derive(Debug)]
#[must_use = "without a look at the state and a sleep it is of no use"]
pub(crate) struct WaitToken<'a> {
    waiters: &'a Waiters,
    /// What `signal` was when the token was taken.
    seen: u32,
}

impl Waiters {
    /// Makes one of the waiters look again. To be called after each change of the state that one of
    /// them may be waiting for, provided that all waiters here wait for the same thing: any of them
    /// may be picked.
    pub(crate) fn notify_one(&self) {
        self.notify(1);
    }

    /// Makes all waiters look again. To be called after a change of the state.
    pub(crate) fn notify_all(&self) {
        self.notify(u32::MAX);
    }

    /// Makes one of the waiters at `one` look again, and all waiters at `all`, for the price of one
    /// notification when no thread waits.
    pub(crate) fn notify_one_and_all(one: &Self, all: &Self) {
        // As in `notify`.
        fence(Ordering::SeqCst);
        one.notify_fenced(1);
        all.notify_fenced(u32::MAX);
    }

    fn notify(&self, count: u32) {
        // Pairs with the fence in `token`. Two threads each write one word and then read the
        // other's (the state and `sleepers`). Whatever the other orderings are, both may miss each
        // other's write, unless something puts both in one order. With the fences, either this
        // thread sees that a thread sleeps, or the sleeper's last look sees the change of this
        // thread.
        fence(Ordering::SeqCst);
        self.notify_fenced(count);
    }

    fn notify_fenced(&self, count: u32) {
        let tell = |sleepers| {
            let (all, told) = counts(sleepers);
            let more = all.saturating_sub(told).min(u64::from(count));
            (more > 0).then(|| sleepers + more * TOLD)
        };
        // If this process is killed after this: the threads that count as told and were not look
        // when their slice is over, and take themselves off the count.
        let told = self
            .sleepers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, tell);
        // No thread has a token, or all of them have been told already.
        if told.is_err() {
            return;
        }
        // Release pairs with the Acquire in `token` and `is_notified`: a thread that sees this
        // number sees the change of the state.
        self.signal.fetch_add(1, Ordering::Release);
        // If this process is killed here: threads that are on their way to sleep see the number,
        // the others look when their slice is over.
        self.signal.wake(count);
    }

    /// Waits until `ready` returns a value, and returns that value; returns `None` once the
    /// deadline has passed. The last look is always after the deadline.
    ///
    /// `ready` is called often and should be quick. `poll_for_dead` is called now and then, while
    /// nothing happens.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
        poll_for_dead: impl FnMut(),
    ) -> Option<T> {
        self.wait_paced(deadline, ready, poll_for_dead, || None)
    }

    /// Waits like [`wait`](Self::wait), for a `ready` that may put off its look when it is called.
    /// `put_off` returns until when it has done so: no sleep is longer than that, and
    /// `poll_for_dead` is called before the next look.
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
            let token = self.token();
            // This look comes after the token, so a change that it misses ends the sleep.
            if let Some(it) = ready() {
                return Some(it);
            }
            match token.sleep_for(slices.next().cut(put_off())) {
                Slept::Notified => {}
                // If this thread counts as told, its notifier was killed in the middle of it. This
                // thread gives its token back now, so the next notification wakes it.
                Slept::SliceOver => poll_for_dead(),
                // A notifier may have woken this thread alone: this look counts for it as well. And
                // a wait that is shorter than a slice polls for the dead too.
                Slept::TimedOut => {
                    drop(token);
                    poll_for_dead();
                    return ready();
                }
            }
        }
    }

    /// Takes a token for a sleep. To be called before the look at the state: a notification that
    /// comes after this ends the sleep at once, or prevents it.
    pub(crate) fn token(&self) -> WaitToken<'_> {
        // Loaded before this thread counts as sleeping: a notifier that counts it as told adds to
        // `signal` after that, and then `signal` must differ from what was seen here. Acquire pairs
        // with the Release in `notify`: a notification from before this load will not wake this
        // thread, so its look must see that change.
        let seen = self.signal.load(Ordering::Acquire);
        self.sleepers.fetch_add(SLEEPER, Ordering::Relaxed);
        // Pairs with the fence in `notify`, which explains why.
        fence(Ordering::SeqCst);
        WaitToken {
            waiters: self,
            seen,
        }
    }

    /// Returns whether any thread has a token. No fence orders this: the notifier has locked a
    /// mutex that a waiter had with its token.
    fn has_sleepers(&self) -> bool {
        counts(self.sleepers.load(Ordering::Relaxed)).0 > 0
    }
}

impl<'a> WaitToken<'a> {
    /// Returns the word and its number at the token, for threads that sleep on many words at once.
    /// After a notification the word differs from that number.
    #[cfg(not(loom))]
    pub(crate) fn word(&self) -> (&'a AtomicU32, u32) {
        (self.waiters.signal.word(), self.seen)
    }

    /// Panics, because in a model no thread sleeps on many words.
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
            // Also for a wake-up that the number does not show. It was sent for a notification from
            // before this token, and has reached this thread in place of another. If this thread
            // went back to sleep, the wake-up would be lost.
            Wake::Woken => Slept::Notified,
            Wake::TimedOut if slice.is_last => Slept::TimedOut,
            Wake::TimedOut => Slept::SliceOver,
        }
    }
}

impl Drop for WaitToken<'_> {
    fn drop(&mut self) {
        // A thread that has not been told takes one away too. It may have been woken in place of
        // one that was told. Its notifier may be between the count and the number, or have been
        // killed there. And it is not possible to check and to subtract in one step.
        let leave = |sleepers| {
            let (all, told) = counts(sleepers);
            let all = all.saturating_sub(1);
            let told = told.saturating_sub(1).min(all);
            Some(all * SLEEPER + told * TOLD)
        };
        let sleepers = &self.waiters.sleepers;
        // `leave` never refuses, so this never fails.
        let _ = sleepers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave);
        // Pairs with the fence in `notify`. A notifier that counted this thread as told already has
        // not told it, and relies on it that this thread's next look sees the change.
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
    /// Makes a slice that ends at `end`, or with the deadline if that comes first.
    fn until(end: Instant, deadline: Option<Instant>) -> Self {
        let is_last = deadline.is_some_and(|deadline| deadline <= end);
        let end = deadline.map_or(end, |deadline| deadline.min(end));
        Self { end, is_last }
    }

    /// Returns the part of the slice up to `end`, or all of it.
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
        Slice::until(end, self.deadline)
    }
}

/// Looks for some microseconds, if the thread that is waited for can run meanwhile.
fn spin<T>(deadline: Option<Instant>, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    // In a model each look would be one more order to try.
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

/// Returns whether this process may use more than one core. The system is asked once: asking takes
/// as long as many a wait. Two threads may both ask, which is better than a lock that a forked
/// child could find held.
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
