//! Leader and followers: which of the callers that wait sleeps on the bell, and how the next one
//! takes its place.
//!
//! A worker rings the bell for any task, so one caller is enough to sleep on it. This *leader*
//! pumps when the bell rings, and its pumping wakes the followers whose tasks have ended. A leader
//! whose own task has ended *hands over*: it wakes a follower, which leads from then on. If no
//! caller waits, and work is left that moves on only when a thread pumps, the background thread
//! takes the place.
//!
//! A rule makes this safe. Whatever a thread changes under the lock of the dispatch, one of these
//! holds when the lock is free again:
//! - there is a leader;
//! - a follower is on its way to look;
//! - the background thread is about to sleep on the bell or on its way to look;
//! - no work is left that would stand still.
//!
//! The functions here are generic so that models run the very same code with made-up workers: see
//! `leader/loom_tests.rs`.

use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::future::Signal;
use crate::lane::bell::Doorbell;
use crate::shim::AtomicUsize;
use crate::shim::thread::{self, Thread};

/// How a caller waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitOptions {
    /// Whether a worker had to be woken for this. Waking takes longer than any spin, and the worker
    /// may well need this very core: the caller sleeps at once.
    pub(super) cold: bool,
    pub(super) deadline: Option<Instant>,
    /// Whether the caller will soon be back to wait or to place tasks. Then no other thread needs
    /// to take its place.
    pub(super) comes_back: bool,
}

impl WaitOptions {
    pub(super) fn left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_over(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}

/// The threads that wait. The dispatch's lock guards this too.
#[derive(Default)]
pub(super) struct Leadership {
    /// Whether one of the callers that wait sleeps on the bell, for all of them.
    has_leader: bool,
    /// The other callers that wait.
    followers: Vec<Thread>,
    /// Whether the background thread sleeps on the bell.
    background_sleeps: bool,
}

#[cfg(all(test, not(loom)))]
impl Leadership {
    pub(super) fn has_leader(&self) -> bool {
        self.has_leader
    }

    pub(super) fn followers(&self) -> usize {
        self.followers.len()
    }

    pub(super) fn background_sleeps(&self) -> bool {
        self.background_sleeps
    }
}

/// What waiting needs of a pool.
pub(super) trait Host: Sized {
    /// What the lock guards.
    type Work;
    type Locked<'a>: DerefMut<Target = Self::Work>
    where
        Self: 'a;

    fn lock(&self) -> Self::Locked<'_>;
    fn bell(&self) -> &Doorbell;
    /// Returns how many callers wait, leader and followers together.
    fn waiting(&self) -> &AtomicUsize;
    fn leadership(work: &mut Self::Work) -> &mut Leadership;
    /// Moves on everything that can move. Returns true if anything did.
    fn pump(&self, work: &mut Self::Work) -> bool;
    /// Has the workers ring the bell when there will be something to do. The caller must look at
    /// the answers after this.
    fn ask_for_bell(&self, work: &Self::Work);
    /// Returns whether there is work that moves on only when a thread pumps.
    fn has_backlog(work: &Self::Work) -> bool;
    /// Returns whether the end of a task is to be told to others than the callers that wait here.
    fn is_to_tell(work: &Self::Work) -> bool;
    fn has_ended(work: &Self::Work) -> bool;
    /// Has the background thread go on if it waits, or starts it if there is none.
    fn wake_background_thread(self: &Arc<Self>, work: &mut Self::Work);
    /// Waits, as the background thread, until it is woken.
    fn await_wake(&self, locked: &mut Self::Locked<'_>);
}

/// Sleeps until `is_over` or the deadline, for a caller that counts as waiting. Returns true if it
/// is over.
pub(super) fn sleep<H: Host>(
    host: &Arc<H>,
    signal: &Signal,
    is_over: &impl Fn() -> bool,
    options: WaitOptions,
) -> bool {
    let mut work = host.lock();
    loop {
        let leadership = H::leadership(&mut work);
        let leads = !leadership.has_leader;
        if leads {
            // No other caller sleeps on the bell: this one leads.
            leadership.has_leader = true;
        } else {
            // Another caller leads. The end of the task, or the leader when it leaves, unparks this
            // one.
            signal.register();
            leadership.followers.push(thread::current());
        }
        // This must come before the last look: a ring after that look must not be missed.
        let heard = host.bell().listen();
        host.ask_for_bell(&work);
        // What moved may be a batch that went to a worker that was not asked: it looks again.
        let moved = host.pump(&mut work);
        let stays = !moved && !is_over() && !options.is_over();
        drop(work);
        if stays && leads {
            host.bell().sleep(heard, options.left());
        } else if stays {
            match options.left() {
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
        work = host.lock();
        let leadership = H::leadership(&mut work);
        if leads {
            leadership.has_leader = false;
        } else {
            let own = thread::current().id();
            leadership.followers.retain(|other| other.id() != own);
        }
        host.pump(&mut work);
        if is_over() || options.is_over() {
            stop_waiting(host, &mut work, options.comes_back);
            return is_over();
        }
    }
}

/// Deregisters a waiting caller. This must happen under the same lock as the caller's last look: a
/// task placed in between could rely on a caller that is gone.
pub(super) fn stop_waiting<H: Host>(host: &Arc<H>, work: &mut H::Work, comes_back: bool) {
    host.waiting().fetch_sub(1, Ordering::Relaxed);
    // A follower takes over even if this thread comes back: what this thread does meanwhile, for
    // example in the user's iterator, may take long, or wait for the very task that another caller
    // waits for here.
    let has_followers = !H::leadership(work).followers.is_empty();
    if !comes_back || has_followers || H::is_to_tell(work) {
        hand_over(host, work);
    }
}

/// Has another thread go on in place of one that stops waiting.
pub(super) fn hand_over<H: Host>(host: &Arc<H>, work: &mut H::Work) {
    let leadership = H::leadership(work);
    if leadership.has_leader {
        // A leader sleeps on the bell, or is on its way to it or from it.
        return;
    }
    if let Some(follower) = leadership.followers.last() {
        follower.unpark();
    } else if H::has_backlog(work) && host.waiting().load(Ordering::Relaxed) == 0 {
        // No caller waits, but work would stand still.
        host.wake_background_thread(work);
    }
}

/// Ensures that a task moves on which was placed by a thread that may not come back to wait for it.
pub(super) fn ensure_progress<H: Host>(host: &Arc<H>, work: &mut H::Work) {
    if !H::has_backlog(work) {
        return;
    }
    let leadership = H::leadership(work);
    if leadership.has_leader || leadership.background_sleeps {
        // The thread that sleeps on the bell has asked the workers that were busy then. Now others
        // are busy.
        host.ask_for_bell(work);
        if host.pump(work) {
            // What moved may be a batch that went to a worker that was not asked. The thread that
            // sleeps asks again.
            host.bell().ring();
        }
    } else {
        hand_over(host, work);
    }
}

/// Pumps, as the background thread, until the pool has ended.
pub(super) fn pump_in_background<H: Host>(host: &H) {
    let mut work = host.lock();
    while !H::has_ended(&work) {
        if host.waiting().load(Ordering::Relaxed) > 0 || !H::has_backlog(&work) {
            // Callers that wait pump themselves, or nothing would stand still.
            host.await_wake(&mut work);
            continue;
        }
        let heard = host.bell().listen();
        host.ask_for_bell(&work);
        if host.pump(&mut work) {
            // The lock is free for a moment, for other threads and for what the user's code is to
            // be told.
            drop(work);
            work = host.lock();
        } else {
            H::leadership(&mut work).background_sleeps = true;
            drop(work);
            host.bell().sleep(heard, None);
            work = host.lock();
            H::leadership(&mut work).background_sleeps = false;
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
