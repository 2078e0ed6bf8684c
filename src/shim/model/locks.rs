//! Mutex and condition variable of models, with the interface of `parking_lot`'s.
//!
//! Those of loom cannot be made by a `const fn`, so each is made at its first use.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{self, OnceLock};
use std::time::Instant;

/// A mutex. loom's mutex decides which thread has it. The content is in a mutex of std, which is
/// never contended.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    turn: OnceLock<loom::sync::Mutex<()>>,
    content: sync::Mutex<T>,
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` only while the thread waits for a condition variable.
    held: Option<Held<'a, T>>,
}

/// What a guard holds. Unlocked from top to bottom.
#[derive(Debug)]
struct Held<'a, T> {
    content: sync::MutexGuard<'a, T>,
    _turn: loom::sync::MutexGuard<'a, ()>,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(content: T) -> Self {
        Self {
            turn: OnceLock::new(),
            content: sync::Mutex::new(content),
        }
    }

    fn turn(&self) -> &loom::sync::Mutex<()> {
        self.turn.get_or_init(|| loom::sync::Mutex::new(()))
    }

    fn hold(&self) -> Held<'_, T> {
        let turn = self.turn().lock().unwrap();
        let content = self.content.try_lock();
        Held {
            content: content.expect("the thread with the turn has the content"),
            _turn: turn,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            held: Some(self.hold()),
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held.as_ref().expect("locked").content
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held.as_mut().expect("locked").content
    }
}

/// A condition variable. No wait ends for no reason, except that a deadline may pass at any time.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    inner: OnceLock<(loom::sync::Mutex<Sleepers>, loom::sync::Condvar)>,
}

#[derive(Debug, Default)]
struct Sleepers {
    next: u32,
    asleep: VecDeque<u32>,
    /// Whether no deadline passes for now.
    is_timeless: bool,
}

/// How a wait with a deadline has ended.
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self {
            inner: OnceLock::new(),
        }
    }

    fn inner(&self) -> &(loom::sync::Mutex<Sleepers>, loom::sync::Condvar) {
        self.inner.get_or_init(Default::default)
    }

    /// Unlocks the mutex, sleeps and locks it again. Returns true if a notification has ended the
    /// sleep.
    fn sleep<T>(&self, guard: &mut MutexGuard<'_, T>, may_time_out: bool) -> bool {
        let (sleepers, woken) = self.inner();
        let mut held = sleepers.lock().unwrap();
        let number = held.next;
        held.next += 1;
        held.asleep.push_back(number);
        guard.held = None;
        let is_notified = if may_time_out && !held.is_timeless {
            // The deadline passes when this thread has acquired the lock again. loom tries all that
            // may happen before.
            drop(held);
            let mut held = sleepers.lock().unwrap();
            let place = held.asleep.iter().position(|&other| other == number);
            place.map(|place| held.asleep.remove(place)).is_none()
        } else {
            let was_timeless = held.is_timeless;
            while held.asleep.contains(&number) && held.is_timeless == was_timeless {
                held = woken.wait(held).unwrap();
            }
            let is_notified = !held.asleep.contains(&number);
            held.asleep.retain(|&other| other != number);
            // Before the mutex: a notifier may hold the mutex, and wait for this lock.
            drop(held);
            is_notified
        };
        guard.held = Some(guard.mutex.hold());
        is_notified
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.sleep(guard, false);
    }

    pub(crate) fn wait_while<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        _deadline: Instant,
    ) -> WaitTimeoutResult {
        self.wait_some_time(guard)
    }

    pub(super) fn wait_some_time<T>(&self, guard: &mut MutexGuard<'_, T>) -> WaitTimeoutResult {
        WaitTimeoutResult(!self.sleep(guard, true))
    }

    pub(super) fn stop_time(&self) {
        self.inner().0.lock().unwrap().is_timeless = true;
    }

    /// Ends all waits with a deadline; no other thread may wait.
    pub(super) fn let_time_pass(&self) {
        let (sleepers, woken) = self.inner();
        sleepers.lock().unwrap().is_timeless = false;
        woken.notify_all();
    }

    fn notify(&self, count: usize) {
        let (sleepers, woken) = self.inner();
        let mut held = sleepers.lock().unwrap();
        let count = held.asleep.len().min(count);
        held.asleep.drain(..count);
        if count > 0 {
            woken.notify_all();
        }
    }

    pub(crate) fn notify_one(&self) {
        self.notify(1);
    }

    pub(crate) fn notify_all(&self) {
        self.notify(usize::MAX);
    }
}
