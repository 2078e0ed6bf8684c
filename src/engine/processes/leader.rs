//! Leader and followers: which of the callers that wait sleeps on the bell, and how the next one
//! takes its place.
//!
//! A worker rings the bell for any task, so one caller is enough to sleep on it. This *leader*
//! pumps when the bell rings, and its pumping wakes the followers whose tasks have ended. A leader
//! whose own task has ended *hands over*: it wakes a follower, which leads from then on. If none
//! waits and work is left that moves on only when a thread pumps, the background thread takes the
//! place.
//!
//! A rule makes this safe: whatever is changed under the lock of the dispatch, when the lock is
//! free again there is a leader, or a follower that is on its way to look, or the background thread
//! is about to sleep on the bell or on its way to look, or no work is left that would stand still.
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

/// How somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitOptions {
    /// Whether a worker had to be woken for this. Waking takes longer than any spin, and the worker may well want this
    /// very core: sleep at once.
    pub(super) cold: bool,
    pub(super) deadline: Option<Instant>,
    /// Whether the caller will soon be back to wait or to place tasks: nobody need take its place.
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

/// Who waits. Part of what the lock guards.
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
    /// How many callers wait, leader and followers together.
    fn waiting(&self) -> &AtomicUsize;
    fn leadership(work: &mut Self::Work) -> &mut Leadership;
    /// Moves on everything that can move. True if anything did.
    fn pump(&self, work: &mut Self::Work) -> bool;
    /// Has the workers ring the bell when there will be something to do. A look must follow.
    fn ask_for_bell(&self, work: &Self::Work);
    /// Whether there is work that moves on only when a thread pumps.
    fn has_backlog(work: &Self::Work) -> bool;
    /// Whether some task's end is to be told of to others than those who wait here.
    fn is_to_tell(work: &Self::Work) -> bool;
    fn has_ended(work: &Self::Work) -> bool;
    /// Has the background thread go on if it waits, or starts it if there is none.
    fn wake_background_thread(self: &Arc<Self>, work: &mut Self::Work);
    /// What the background thread sleeps in until it is roused.
    fn await_wake(&self, locked: &mut Self::Locked<'_>);
}

/// Sleeps until `is_over` or the deadline, for a caller that counts as waiting. True if it is over.
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
            leadership.has_leader = true;
        } else {
            signal.register();
            leadership.followers.push(thread::current());
        }
        // Before the last look: a ring after it must not be missed.
        let heard = host.bell().listen();
        host.ask_for_bell(&work);
        host.pump(&mut work);
        let stays = !is_over() && !options.is_over();
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

/// A caller waits no longer. Under the same lock as its last look, or a task placed in between
/// could count on it.
pub(super) fn stop_waiting<H: Host>(host: &Arc<H>, work: &mut H::Work, comes_back: bool) {
    host.waiting().fetch_sub(1, Ordering::Relaxed);
    // Also if this thread comes back: what it does meanwhile, in the user's iterator say, may take
    // long, or wait for the very task that another caller waits for here.
    let has_followers = !H::leadership(work).followers.is_empty();
    if !comes_back || has_followers || H::is_to_tell(work) {
        hand_over(host, work);
    }
}

/// Has another thread go on in place of one that stops waiting.
pub(super) fn hand_over<H: Host>(host: &Arc<H>, work: &mut H::Work) {
    let leadership = H::leadership(work);
    if leadership.has_leader {
        return;
    }
    if let Some(follower) = leadership.followers.last() {
        follower.unpark();
    } else if H::has_backlog(work) && host.waiting().load(Ordering::Relaxed) == 0 {
        host.wake_background_thread(work);
    }
}

/// Sees to it that a task moves on which was placed by a thread that may not come back to wait for
/// it.
pub(super) fn ensure_progress<H: Host>(host: &Arc<H>, work: &mut H::Work) {
    if !H::has_backlog(work) {
        return;
    }
    let leadership = H::leadership(work);
    if leadership.has_leader || leadership.background_sleeps {
        // Who sleeps on the bell has asked the workers that were busy then. Now others are.
        host.ask_for_bell(work);
        host.pump(work);
    } else {
        hand_over(host, work);
    }
}

/// What the background thread does until the pool has ended.
pub(super) fn pump_in_background<H: Host>(host: &H) {
    let mut work = host.lock();
    while !H::has_ended(&work) {
        if host.waiting().load(Ordering::Relaxed) > 0 || !H::has_backlog(&work) {
            host.await_wake(&mut work);
            continue;
        }
        let heard = host.bell().listen();
        host.ask_for_bell(&work);
        if host.pump(&mut work) {
            // With a moment for others, and for what is to be told.
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
