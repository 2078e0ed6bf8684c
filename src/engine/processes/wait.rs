//! Waiting: for one task, for progress of a call, for the end of everything.
//!
//! A thread that waits does the pool's work meanwhile. It pumps and looks, again and again for as
//! long as the pool's `WaitPolicy` says, if there is a core to spare for that; then it sleeps. Of
//! several callers that wait, one, the leader, sleeps on the bell and pumps when it rings. The
//! others sleep until their own task has ended or the leader has left. When no caller waits but
//! work would stand still, or a callback or waker is to be told of the end of a task, a background
//! thread takes the leader's place. It is started when it is first needed. How that goes is in
//! [`leader`].
//!
//! Whatever ends a wait other than by a worker's answer (a cancellation, a death, the end of a call
//! elsewhere) rings the bell itself: a leader sleeps on nothing else.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::MutexGuard;

use super::dispatch::{Dispatch, State};
use super::leader::{self, Host, Leadership, WaitOptions};
use super::shared::Shared;
use crate::call::service;
use crate::future::{Signal, later};
use crate::lane::bell::Doorbell;
use crate::os::task;
use crate::shim::AtomicUsize;

/// The dispatch, locked. What tasks that end meanwhile have to tell the user's code is told when
/// the lock is free again.
pub(super) struct Locked<'a> {
    /// `None` only while the value is dropped.
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
    /// Locks the dispatch.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            guard: Some(self.dispatch.lock()),
        }
    }

    /// Locks the dispatch, unless another thread has it.
    pub(super) fn try_lock(&self) -> Option<Locked<'_>> {
        let guard = self.dispatch.try_lock()?;
        Some(Locked { guard: Some(guard) })
    }

    /// Waits until the signal's count has passed `seen`, or until the deadline. Returns true if it
    /// has.
    pub(super) fn wait(
        self: &Arc<Self>,
        signal: &Signal,
        seen: usize,
        options: WaitOptions,
    ) -> bool {
        let is_over = || signal.count() > seen;
        if is_over() {
            return true;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.spin(&is_over, options) || leader::sleep(self, signal, &is_over, options)
    }

    /// Pumps until the end of the wait has come, or the time to spin is over. Returns true if it
    /// has come.
    fn spin(self: &Arc<Self>, is_over: &impl Fn() -> bool, options: WaitOptions) -> bool {
        let mut end = None;
        loop {
            let mut dispatch = self.lock();
            dispatch.pump(self);
            if is_over() {
                leader::stop_waiting(self, &mut dispatch, options.comes_back);
                return true;
            }
            let wanted = dispatch.busy + self.waiting.load(Ordering::Relaxed);
            drop(dispatch);
            if options.cold || wanted > self.cores {
                // Spinning would take a core from a worker or from another caller.
                return false;
            }
            let now = Instant::now();
            // A time too long for the clock has no end.
            let end = end.get_or_insert_with(|| now.checked_add(self.settings.wait_policy.spin()));
            if end.is_some_and(|end| now >= end) || options.deadline.is_some_and(|end| now >= end) {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Has another thread go on when this one stops waiting.
    pub(super) fn hand_over(self: &Arc<Self>, dispatch: &mut Dispatch) {
        leader::hand_over(self, dispatch);
    }

    /// Ensures that a task moves on which was placed by a thread that may not come back to wait for
    /// it.
    pub(super) fn ensure_progress(self: &Arc<Self>, dispatch: &mut Dispatch) {
        leader::ensure_progress(self, dispatch);
    }
}

impl Host for Shared {
    type Work = Dispatch;
    type Locked<'a> = Locked<'a>;

    fn lock(&self) -> Locked<'_> {
        Self::lock(self)
    }

    fn bell(&self) -> &Doorbell {
        &self.bell
    }

    fn waiting(&self) -> &AtomicUsize {
        &self.waiting
    }

    fn leadership(dispatch: &mut Dispatch) -> &mut Leadership {
        &mut dispatch.leadership
    }

    fn pump(&self, dispatch: &mut Dispatch) -> bool {
        dispatch.pump(self)
    }

    fn ask_for_bell(&self, dispatch: &Dispatch) {
        dispatch.ask_for_bell();
    }

    fn has_backlog(dispatch: &Dispatch) -> bool {
        dispatch.has_backlog()
    }

    fn is_to_tell(dispatch: &Dispatch) -> bool {
        dispatch.told > 0
    }

    fn has_ended(dispatch: &Dispatch) -> bool {
        matches!(dispatch.state, State::Ended(_))
    }

    fn wake_background_thread(self: &Arc<Self>, dispatch: &mut Dispatch) {
        if dispatch.background.is_some() {
            self.wake_background.notify_one();
            return;
        }
        let shared = self.clone();
        let pump = move || {
            service::note_service();
            leader::pump_in_background(&*shared);
        };
        match task::start("manyhands-pump", Some(256 << 10), pump) {
            Ok(thread) => dispatch.background = Some(thread),
            // The work goes on whenever a caller waits for it.
            Err(error) => log::warn!("pool {}: no background thread: {error}", self.settings.name),
        }
    }

    fn await_wake(&self, locked: &mut Locked<'_>) {
        self.wake_background.wait(locked.guard());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
