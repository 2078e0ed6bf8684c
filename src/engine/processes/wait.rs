//! Waiting: for one task, for progress of a call, for the end of everything.
//!
//! Whoever waits does the pool's work meanwhile. It pumps and looks, again and again for as long as the pool's
//! `WaitPolicy` says, if there is a core to spare for that; then it sleeps. Of several callers that wait, one, the
//! leader, sleeps on the bell and pumps when it rings; the others sleep until their own task has ended or the leader
//! has left. When nobody waits but work would stand still, or somebody is to be told of the end of a task, a background
//! thread, started when first needed, takes the leader's place.
//!
//! Whatever ends a wait other than by a worker's answer (a cancellation, a death, the end of a call elsewhere) rings the
//! bell itself: a leader sleeps on nothing else.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::dispatch::{Dispatch, State};
use super::{Shared, supervisor};
use crate::future::{Signal, later};
use crate::os;

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

/// The dispatch, locked. What tasks that end meanwhile have to tell the user's code is told when the lock is free again.
pub(super) struct Locked<'a> {
    /// `None` only while it is dropped.
    guard: Option<MutexGuard<'a, Dispatch>>,
}

impl<'a> Locked<'a> {
    fn guard(&mut self) -> &mut MutexGuard<'a, Dispatch> {
        self.guard
            .as_mut()
            .expect("the lock is held until the drop")
    }
}

impl Deref for Locked<'_> {
    type Target = Dispatch;

    fn deref(&self) -> &Dispatch {
        self.guard
            .as_ref()
            .expect("the lock is held until the drop")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Dispatch {
        self.guard()
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.guard = None;
        later::flush();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            guard: Some(self.dispatch.lock()),
        }
    }

    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        let guard = self.dispatch.try_lock()?;
        Some(Locked { guard: Some(guard) })
    }

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
            let mut dispatch = self.lock();
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
            // A time too long for the clock has no end.
            let end = end.get_or_insert_with(|| now.checked_add(self.settings.wait_policy.spin()));
            if end.is_some_and(|end| now >= end) || patience.deadline.is_some_and(|end| now >= end)
            {
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
        let mut dispatch = self.lock();
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
            dispatch = self.lock();
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
        // Also if this thread comes back: what it does meanwhile, in the user's iterator say, may take long, or wait for the
        // very task that somebody else is waiting for here.
        if !comes_back || !dispatch.followers.is_empty() || dispatch.told > 0 {
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
            Err(error) => log::warn!("pool {}: no background thread: {error}", self.settings.name),
        }
    }

    fn pump_in_background(&self) {
        supervisor::note_service();
        let _own = os::task::OwnThread::register();
        os::worker::block_signals();
        let mut dispatch = self.lock();
        while !matches!(dispatch.state, State::Ended(_)) {
            if self.waiting.load(Ordering::Relaxed) > 0 || !dispatch.has_backlog() {
                self.wake_background.wait(dispatch.guard());
                continue;
            }
            let heard = self.bell.listen();
            dispatch.ask_for_bell();
            if dispatch.pump(self) {
                // With a moment for others, and for what is to be told.
                drop(dispatch);
                dispatch = self.lock();
            } else {
                dispatch.background_sleeps = true;
                drop(dispatch);
                self.bell.sleep(heard, None);
                dispatch = self.lock();
                dispatch.background_sleeps = false;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
