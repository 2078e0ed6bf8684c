//! Waiting: for one task, for progress of a call, for the end of everything.
//!
//! Whoever waits does the pool's work meanwhile. It pumps and looks, again and again for [`SPIN`], if there is a core
//! to spare for that; then it sleeps. Of several callers that wait, one, the leader, sleeps on the bell and pumps when
//! it rings; the others sleep until their own task has ended or the leader has left. When nobody waits but work would
//! stand still, a background thread, started when first needed, takes the leader's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::dispatch::{Dispatch, State};
use super::{SPIN, Shared};
use crate::os;

/// Something that can be waited for: a count that goes up.
#[derive(Debug, Default)]
pub(super) struct Signal {
    count: AtomicUsize,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Thread>>,
}

impl Signal {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn raise(&self) {
        // SeqCst, here and in `register`: either we see the waiter, or it sees the count.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.has_waiters.load(Ordering::SeqCst) {
            let mut waiters = self.waiters.lock();
            self.has_waiters.store(false, Ordering::SeqCst);
            waiters.drain(..).for_each(|waiter| waiter.unpark());
        }
    }

    /// Has the current thread unparked at the next `raise`. A look at the count must follow.
    fn register(&self) {
        let mut waiters = self.waiters.lock();
        waiters.push(thread::current());
        self.has_waiters.store(true, Ordering::SeqCst);
        drop(waiters);
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// How somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Whether a worker had to be woken for this. Waking takes longer than any spin, and the worker may well want this
    /// very core: sleep at once.
    pub(super) cold: bool,
    pub(super) deadline: Option<Instant>,
    /// Whether the caller will soon be back to wait or to place tasks: nobody need take its place.
    pub(super) comes_back: bool,
}

impl Patience {
    fn left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn is_over(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}

impl Shared {
    /// Waits until the signal's count has passed `seen`, or until the deadline; true if it has.
    pub(super) fn wait(self: &Arc<Self>, signal: &Signal, seen: usize, patience: Patience) -> bool {
        let is_over = || signal.count() > seen;
        if is_over() {
            return true;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.spin(&is_over, patience) || self.sleep(signal, &is_over, patience)
    }

    /// Pumps until what is waited for has come, or the time to spin is over; true if it has come.
    fn spin(self: &Arc<Self>, is_over: &impl Fn() -> bool, patience: Patience) -> bool {
        let mut end = None;
        loop {
            let mut dispatch = self.dispatch.lock();
            dispatch.pump(self);
            if is_over() {
                self.stop_waiting(&mut dispatch, patience.comes_back);
                return true;
            }
            let wanted = dispatch.busy + self.waiting.load(Ordering::Relaxed);
            drop(dispatch);
            if patience.cold || wanted > self.cores {
                return false;
            }
            let now = Instant::now();
            if now >= *end.get_or_insert(now + SPIN) {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn sleep(
        self: &Arc<Self>,
        signal: &Signal,
        is_over: &impl Fn() -> bool,
        patience: Patience,
    ) -> bool {
        let mut dispatch = self.dispatch.lock();
        loop {
            let leads = !dispatch.has_leader;
            if leads {
                dispatch.has_leader = true;
            } else {
                signal.register();
                dispatch.followers.push(thread::current());
            }
            // Before the last look: a ring after it must not be missed.
            let heard = self.bell.listen();
            dispatch.ask_for_bell();
            dispatch.pump(self);
            let stays = !is_over() && !patience.is_over();
            drop(dispatch);
            if stays && leads {
                self.bell.sleep(heard, patience.left());
            } else if stays {
                match patience.left() {
                    Some(left) => thread::park_timeout(left),
                    None => thread::park(),
                }
            }
            dispatch = self.dispatch.lock();
            if leads {
                dispatch.has_leader = false;
            } else {
                let own = thread::current().id();
                dispatch.followers.retain(|follower| follower.id() != own);
            }
            dispatch.pump(self);
            if is_over() || patience.is_over() {
                self.stop_waiting(&mut dispatch, patience.comes_back);
                return is_over();
            }
        }
    }

    /// A caller waits no longer. In the same breath as its last look, or a task placed in between could count on it.
    fn stop_waiting(self: &Arc<Self>, dispatch: &mut Dispatch, comes_back: bool) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if !comes_back {
            self.hand_over(dispatch);
        }
    }

    /// Whoever stops waiting sees to it that somebody else goes on.
    pub(super) fn hand_over(self: &Arc<Self>, dispatch: &mut Dispatch) {
        if dispatch.has_leader {
            return;
        }
        if let Some(follower) = dispatch.followers.last() {
            follower.unpark();
        } else {
            self.rouse_background(dispatch);
        }
    }

    /// A task has been placed by somebody who may not come back to wait for it: sees to it that it moves on.
    pub(super) fn mind(self: &Arc<Self>, dispatch: &mut Dispatch) {
        if !dispatch.has_backlog() {
            return;
        }
        if dispatch.has_leader || dispatch.background_sleeps {
            // Who sleeps on the bell has asked the workers that were busy then. Now others are.
            dispatch.ask_for_bell();
            dispatch.pump(self);
        } else {
            self.hand_over(dispatch);
        }
    }

    /// Has the background thread go on, if there is work that would stand still and nobody waits.
    fn rouse_background(self: &Arc<Self>, dispatch: &mut Dispatch) {
        if !dispatch.has_backlog() || self.waiting.load(Ordering::Relaxed) > 0 {
            return;
        }
        if dispatch.background.is_some() {
            self.wake_background.notify_one();
            return;
        }
        let shared = self.clone();
        let started = thread::Builder::new()
            .name("manyhands-pump".to_owned())
            .stack_size(256 << 10)
            .spawn(move || shared.pump_in_background());
        match started {
            Ok(thread) => dispatch.background = Some(thread),
            // The work goes on whenever somebody waits for it.
            Err(error) => log::warn!("pool {}: no background thread: {error}", self.name),
        }
    }

    fn pump_in_background(&self) {
        let _own = os::task::OwnThread::register();
        os::worker::block_signals();
        let mut dispatch = self.dispatch.lock();
        while !matches!(dispatch.state, State::Ended(_)) {
            if self.waiting.load(Ordering::Relaxed) > 0 || !dispatch.has_backlog() {
                self.wake_background.wait(&mut dispatch);
                continue;
            }
            let heard = self.bell.listen();
            dispatch.ask_for_bell();
            if !dispatch.pump(self) {
                dispatch.background_sleeps = true;
                MutexGuard::unlocked(&mut dispatch, || self.bell.sleep(heard, None));
                dispatch.background_sleeps = false;
            }
        }
    }
}
