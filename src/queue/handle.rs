//! The handle of a queue, for items of any type: what it may do, and how it waits.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserializer, Serializer};

use super::head::{self, Geometry, Order, ProcessCounts, QueueHead, SLOT_HEAD, View};
use super::transfer::{Load, Put, Taken};
use crate::memory::ShareError;
use crate::memory::member;
use crate::memory::object::Object;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;
use crate::os::{fork, task};

/// The operations that a handle allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Both,
    Sender,
    Receiver,
}

impl Role {
    /// Returns whether the handle may push.
    pub(super) fn sends(self) -> bool {
        self != Self::Receiver
    }

    /// Returns whether the handle may pop.
    pub(super) fn receives(self) -> bool {
        self != Self::Sender
    }
}

/// The reason why nothing was pushed or popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The queue is full, or empty.
    NotNow,
    Closed,
    Disconnected,
}

/// The presence of other handles, besides the one that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    Some,
    None,
    /// A handle is in transit, or has gone just now, or a thread may have this very one by
    /// reference.
    Perhaps,
}

/// The operation that others may be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Push,
    Pop,
}

/// A handle of a queue.
pub(crate) struct Handle {
    object: Object<QueueHead>,
    geometry: Geometry,
    role: Role,
    /// [`fork::generation`] of the process in whose counts this handle is, from 1 on; 0: in none.
    counted_in: AtomicU32,
    /// The value of `epoch` when there last were others on the other side.
    connected: AtomicU32,
    /// The value of the header's `senders_killed` when this handle was made or last pushed, and of
    /// `receivers_killed` when it was made or last popped.
    senders_killed: AtomicU32,
    receivers_killed: AtomicU32,
    /// The number of lost items that this handle has reported, or that were lost before it arrived.
    pub(super) heard: AtomicU64,
}

impl Handle {
    /// Makes a queue, with room for `room` bytes of an item in its slot.
    pub(super) fn new(
        order: Order,
        capacity: usize,
        byte_limit: u64,
        room: usize,
        shape: u64,
    ) -> Result<Self, ShareError> {
        let invalid = |value: &dyn fmt::Display, reason: &'static str| ShareError::Invalid {
            what: "the capacity of a queue".into(),
            value: value.to_string(),
            reason: reason.into(),
        };
        if capacity == 0 {
            return Err(invalid(&capacity, "nothing would ever fit in"));
        }
        if byte_limit == 0 {
            return Err(invalid(&"0 bytes", "nothing would ever fit in"));
        }
        let geometry = Geometry {
            order,
            capacity,
            stride: (SLOT_HEAD + room).next_multiple_of(8),
            byte_limit,
        };
        let len = geometry
            .len()
            .filter(|_| u32::try_from(capacity).is_ok())
            .ok_or_else(|| invalid(&capacity, "no more than 2^32 - 1 items can lie in one"))?;
        let object = Object::new(len, shape, |place, tail| head::init(place, tail, geometry))?;
        let this = Self::uncounted(object, geometry, Role::Both);
        this.count();
        Ok(this)
    }

    fn uncounted(object: Object<QueueHead>, geometry: Geometry, role: Role) -> Self {
        let now = |word: &AtomicU32| AtomicU32::new(word.load(Ordering::Relaxed));
        let head = object.head();
        Self {
            connected: AtomicU32::new(head.epoch.load(Ordering::Relaxed).wrapping_sub(1)),
            senders_killed: now(&head.senders_killed),
            receivers_killed: now(&head.receivers_killed),
            heard: AtomicU64::new(0),
            counted_in: AtomicU32::new(0),
            object,
            geometry,
            role,
        }
    }

    /// Adds the handle to the counts of this process.
    fn count(&self) {
        if let Some(counts) = self.own_counts() {
            self.add_to(counts);
        }
        self.counted_in
            .store(fork::generation() + 1, Ordering::Release);
    }

    fn add_to(&self, counts: &ProcessCounts) {
        self.change(counts, 1);
    }

    /// Adds to the counts of this handle's role; the sum wraps, so that a handle can be taken off.
    fn change(&self, counts: &ProcessCounts, by: u32) {
        if self.role.sends() {
            counts.senders.fetch_add(by, Ordering::SeqCst);
        }
        if self.role.receives() {
            counts.receivers.fetch_add(by, Ordering::SeqCst);
        }
    }

    /// Returns the counts of this process.
    pub(super) fn own_counts(&self) -> Option<&ProcessCounts> {
        let counts = &self.object.head().counts;
        counts.get(usize::from(member::own_number()))
    }

    /// Returns whether both are handles of the same queue.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.object.is_same(&other.object)
    }

    /// Makes another handle of the same queue.
    pub(super) fn another(&self, role: Role) -> Self {
        // A forked child must count its copy of a handle before it makes another one of it.
        self.view();
        let mut other = Self::uncounted(self.object.clone(), self.geometry, role);
        // The new handle has been told of no more than this one.
        *other.heard.get_mut() = self.heard.load(Ordering::Relaxed);
        *other.senders_killed.get_mut() = self.senders_killed.load(Ordering::Relaxed);
        *other.receivers_killed.get_mut() = self.receivers_killed.load(Ordering::Relaxed);
        other.count();
        other
    }

    /// Makes sure that [`view`](Self::view) does not wait: in a forked child, the first use of the
    /// handle takes the ledger. Returns whether that was possible before the deadline. Asks `limit`
    /// for the deadline only if it has to take the ledger.
    pub(crate) fn reach(&self, limit: impl FnOnce() -> Option<Instant>) -> bool {
        self.object.reach(limit)
    }

    /// Returns the view that this process has of the queue.
    pub(super) fn view(&self) -> View<'_> {
        let head = self.object.head();
        if self.counted_in.load(Ordering::Acquire) != fork::generation() + 1 {
            self.count_after_fork();
        }
        View {
            head,
            geometry: self.geometry,
            tail: self.object.tail().0,
        }
    }

    /// Counts the copy of its parent's handle that a forked child uses for the first time.
    #[cold]
    fn count_after_fork(&self) {
        let generation = fork::generation() + 1;
        let before = self.counted_in.load(Ordering::Acquire);
        let Some(counts) = self.own_counts().filter(|_| before != generation) else {
            return;
        };
        // Of several threads, one counts the handle; and none goes on before it counts.
        self.add_to(counts);
        let first = self.counted_in.compare_exchange(
            before,
            generation,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        // Another thread has counted it. This one takes its own count back.
        if first.is_err() {
            self.change(counts, 1_u32.wrapping_neg());
        }
    }

    /// Serialises the handle, for a process that is known or not.
    pub(super) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let view = self.view();
        self.object.serialize_as(
            serializer,
            || Box::new(self.another(self.role)),
            |member| {
                if let Some(counts) = view.head.counts.get(usize::from(member)) {
                    self.add_to(counts);
                }
            },
        )
    }

    /// Makes the handle that another process has serialised.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        shape: u64,
        role: Role,
    ) -> Result<Self, D::Error> {
        let handle = Object::deserialize_as(deserializer, shape, |object, is_granted| {
            let geometry = Geometry::of(object.head(), object.tail().1)?;
            let handle = Self::uncounted(object, geometry, role);
            if is_granted {
                // The sender counted the handle in the name of this process, before this process
                // existed.
                handle
                    .counted_in
                    .store(fork::generation() + 1, Ordering::Release);
            } else {
                handle.count();
            }
            handle.heard.store(handle.view().lost(), Ordering::Relaxed);
            Some(handle)
        })?;
        handle.ok_or_else(|| serde::de::Error::custom(ShareError::OtherType))
    }

    /// Returns whether others may do this, besides this handle.
    fn others(&self, view: &View<'_>, deed: Deed, rest: &Rest) -> Others {
        let epoch = view.head.epoch.load(Ordering::SeqCst);
        // A handle is in transit. The process that gets it may do anything with it.
        if self.object.in_flight() > 0 {
            rest.had_others.set(true);
            return Others::Perhaps;
        }
        let (is_own, killed, told) = match deed {
            Deed::Push => (
                self.role.sends(),
                &view.head.senders_killed,
                &self.senders_killed,
            ),
            Deed::Pop => (
                self.role.receives(),
                &view.head.receivers_killed,
                &self.receivers_killed,
            ),
        };
        let counts = view.head.counts[..member::numbers()].iter();
        let sum = counts.fold(0_u64, |sum, counts| {
            let handles = match deed {
                Deed::Push => &counts.senders,
                Deed::Pop => &counts.receivers,
            };
            sum + u64::from(handles.load(Ordering::SeqCst))
        });
        if sum > u64::from(is_own) {
            Self::note_others(view, deed, is_own, rest);
            return Others::Some;
        }
        // A handle went while we looked. One may have been passed on from the counts of a process
        // that we had not looked at to those of a process that we had.
        if view.head.epoch.load(Ordering::SeqCst) != epoch {
            return Others::Perhaps;
        }
        // A thread that has this very handle by reference could still do it. The program meant
        // others to do it if there were others when this call began, or if one of them was killed.
        // That others have come and gone says nothing.
        let is_bereft = || killed.load(Ordering::SeqCst) != told.load(Ordering::Relaxed);
        if is_own && !rest.had_others.get() && !is_bereft() && !rest.is_alone.get() {
            return Others::Perhaps;
        }
        Others::None
    }

    /// Notes for the rest of the call that others may do this. `is_own`: this handle may do it
    /// itself. Only then is it asked later whether there were others.
    fn note_others(view: &View<'_>, deed: Deed, is_own: bool, rest: &Rest) {
        if is_own && !rest.had_others.get() {
            rest.had_others.set(Self::is_any_there(view, deed));
        }
    }

    /// Returns whether another handle may do this whose process is there. The handles of a process
    /// that has ended still count until it is reclaimed. That process is no other that has gone
    /// during a call, if the call has begun after its end.
    fn is_any_there(view: &View<'_>, deed: Deed) -> bool {
        let own = usize::from(member::own_number());
        let counts = view.head.counts[..member::numbers()].iter().enumerate();
        counts
            .filter_map(|(number, counts)| {
                let handles = match deed {
                    Deed::Push => &counts.senders,
                    Deed::Pop => &counts.receivers,
                };
                let handles = handles.load(Ordering::SeqCst);
                let besides = handles.saturating_sub(u32::from(number == own));
                (besides > 0).then_some(number)
            })
            .any(|number| number == own || !member::is_gone(number as u16))
    }

    /// Returns whether others may pop, besides this handle.
    pub(super) fn other_receivers(&self, view: &View<'_>, rest: &Rest) -> Others {
        self.others(view, Deed::Pop, rest)
    }

    /// Marks all deaths so far as seen, because this handle has itself pushed (or popped) since.
    fn note(told: &AtomicU32, killed: &AtomicU32) {
        let killed = killed.load(Ordering::Relaxed);
        if told.load(Ordering::Relaxed) != killed {
            told.store(killed, Ordering::Relaxed);
        }
    }

    /// Pushes what `load` says. If that is not pushed, it stays in `load`.
    pub(super) fn put(
        &self,
        load: &mut Option<Load<'_>>,
        priority: i64,
        mode: WaitMode,
    ) -> Result<(), Refusal> {
        if !self.reach(|| mode.lock_deadline()) {
            return Err(Refusal::NotNow);
        }
        let view = self.view();
        let rest = Rest::of(mode);
        let deadline = mode.deadline();
        // A sender does not push when no handle is left that could take the item, even if there is
        // room.
        if !self.role.receives() && self.is_cut_off(&view, &rest) {
            return Err(Refusal::Disconnected);
        }
        let mut attempt = || match view.put(load, priority, mode) {
            Put::Done => Some(Ok(())),
            Put::Closed => Some(Err(Refusal::Closed)),
            // A handle that may pop can make room by itself, so it does not ask for others.
            Put::Full if mode == WaitMode::Try && self.role.receives() => None,
            Put::Full => self
                .is_cut_off(&view, &rest)
                .then_some(Err(Refusal::Disconnected)),
        };
        let outcome = match mode {
            WaitMode::Try => attempt().or_else(|| self.looks_around().then(attempt)?),
            WaitMode::Until(_) | WaitMode::Forever => {
                let waiters = &view.head.pushes.waiting.0;
                waiters.wait(deadline, attempt, || rest.poll_for_dead())
            }
        };
        let outcome = outcome.unwrap_or(Err(Refusal::NotNow));
        match outcome {
            Ok(()) => Self::note(&self.senders_killed, &view.head.senders_killed),
            // This thread was woken, and did not get the lock before the deadline. The room is for
            // another.
            Err(Refusal::NotNow) if deadline.is_some() && view.len() < self.geometry.capacity => {
                view.head.pushes.waiting.0.notify_all();
            }
            Err(_) => {}
        }
        outcome
    }

    /// Polls for the dead, before a call that does not wait says that there is nothing. Returns
    /// whether that can make a difference.
    fn looks_around(&self) -> bool {
        let is_half = self.role != Role::Both;
        if is_half {
            member::poll_for_dead();
        }
        is_half
    }

    /// Returns whether no other handle is left that could take an item.
    fn is_cut_off(&self, view: &View<'_>, rest: &Rest) -> bool {
        let epoch = view.head.epoch.load(Ordering::SeqCst);
        // No handle has gone since there were others, so they are still there.
        if self.connected.load(Ordering::Relaxed) == epoch {
            Self::note_others(view, Deed::Pop, self.role.receives(), rest);
            return false;
        }
        match self.other_receivers(view, rest) {
            Others::Some => {
                self.connected.store(epoch, Ordering::Relaxed);
                false
            }
            Others::None => true,
            Others::Perhaps => false,
        }
    }

    /// Takes an item, and appends what lies in its slot to `out`.
    pub(super) fn take(&self, out: &mut Vec<u8>, mode: WaitMode) -> Result<Taken, Refusal> {
        if !self.reach(|| mode.lock_deadline()) {
            return Err(Refusal::NotNow);
        }
        let view = self.view();
        let member = member::own_number();
        // The short way, which nearly all calls take.
        if let Some(taken) = view.take(out, member, mode) {
            Self::note(&self.receivers_killed, &view.head.receivers_killed);
            return Ok(taken);
        }
        if mode == WaitMode::Try && view.has_items() {
            // Only the lock was not free in time. A second wait for it would be twice as long.
            return Err(Refusal::NotNow);
        }
        let rest = Rest::of(mode);
        let deadline = mode.deadline();
        let mut attempt = || {
            if let Some(taken) = view.take(out, member, mode) {
                return Some(Ok(taken));
            }
            let is_call_for_now = mode == WaitMode::Try;
            let refusal = self.is_over(&view, is_call_for_now, &rest)?;
            // No more items will come, but one may have been pushed since the last look.
            match view.take(out, member, mode) {
                Some(taken) => Some(Ok(taken)),
                // There is an item. Only the lock was not free in time.
                None if view.has_items() => None,
                None => Some(Err(refusal)),
            }
        };
        let outcome = match mode {
            WaitMode::Try => attempt().or_else(|| self.looks_around().then(attempt)?),
            WaitMode::Until(_) | WaitMode::Forever => {
                let waiters = &view.head.pops.waiting.0;
                waiters.wait(deadline, attempt, || rest.poll_for_dead())
            }
        };
        let outcome = outcome.unwrap_or(Err(Refusal::NotNow));
        match outcome {
            Ok(_) => Self::note(&self.receivers_killed, &view.head.receivers_killed),
            // This thread was woken, and did not get the lock before the deadline. The item is for
            // another.
            Err(Refusal::NotNow) if deadline.is_some() && view.has_items() => {
                view.head.pops.waiting.0.notify_one();
            }
            Err(_) => {}
        }
        outcome
    }

    /// Returns the reason why nothing will ever be pushed again, if there is one.
    fn is_over(&self, view: &View<'_>, is_call_for_now: bool, rest: &Rest) -> Option<Refusal> {
        if view.head.closed.load(Ordering::Acquire) != 0 {
            return Some(Refusal::Closed);
        }
        // A caller that does not wait may push by this very handle afterwards.
        if is_call_for_now && self.role.sends() {
            return None;
        }
        let epoch = view.head.epoch.load(Ordering::SeqCst);
        if rest.connected.get() == Some(epoch) {
            return None;
        }
        match self.others(view, Deed::Push, rest) {
            Others::Some => {
                rest.connected.set(Some(epoch));
                None
            }
            Others::None => Some(Refusal::Disconnected),
            Others::Perhaps => None,
        }
    }

    /// Waits until `try_pop` would say something else than that the queue is empty. Returns false
    /// if the timeout comes first.
    pub(super) fn wait_ready(&self, timeout: Duration) -> bool {
        let mode = WaitMode::within(timeout);
        let ready = || self.is_ready().then_some(());
        self.reach(|| mode.lock_deadline())
            && self
                .watchers()
                .wait(mode.deadline(), ready, member::poll_for_dead)
                .is_some()
    }

    /// Returns whether `try_pop` would say something else than that the queue is empty.
    pub(crate) fn is_ready(&self) -> bool {
        let view = self.view();
        let is_over = || self.is_over(&view, true, &Rest::of(WaitMode::Try));
        view.has_items() || is_over().is_some()
    }

    /// Closes the queue for all handles.
    pub(super) fn close(&self) {
        let view = self.view();
        // Under the lock: a process that finds the queue closed and empty can be sure that nothing
        // is on its way.
        let lock = view.lock_pushes(|| None);
        view.head.closed.store(1, Ordering::Release);
        drop(lock);
        view.notify_all();
    }

    /// Returns whether the queue was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.view().head.closed.load(Ordering::Acquire) != 0
    }

    /// Returns the number of items in the queue.
    pub(super) fn len(&self) -> usize {
        self.view().len()
    }

    /// Returns the number of items that the queue has room for.
    pub(super) fn capacity(&self) -> usize {
        self.geometry.capacity
    }

    /// Returns the number of bytes that all items together may have.
    pub(super) fn byte_limit(&self) -> u64 {
        self.geometry.byte_limit
    }

    /// Returns how many bytes were pushed, and popped.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> (u64, u64) {
        let head = self.view().head;
        let bytes = |side: &head::Side| side.done.bytes.load(Ordering::Relaxed);
        (bytes(&head.pushes), bytes(&head.pops))
    }

    /// Returns how many bytes an item may have and need no payload.
    pub(super) fn room(&self) -> usize {
        self.geometry.stride - SLOT_HEAD
    }

    /// Returns the threads that wait for this queue among others.
    pub(crate) fn watchers(&self) -> &Waiters {
        &self.view().head.watchers
    }
}

/// The state that a call keeps from look to look.
pub(super) struct Rest {
    /// The epoch at which there were others.
    connected: Cell<Option<u32>>,
    /// Whether there were others, or one was in transit, at some look of this call.
    had_others: Cell<bool>,
    /// Whether this process has no other thread.
    is_alone: Cell<bool>,
    /// Whether the call waits without a deadline. A call with one gets its answer at the deadline,
    /// and not earlier only because of the number of threads that happen to be there.
    is_for_ever: bool,
}

impl Rest {
    /// Makes the state for a call that waits as `mode` says.
    pub(super) fn of(mode: WaitMode) -> Self {
        Self {
            connected: Cell::new(None),
            had_others: Cell::new(false),
            is_alone: Cell::new(false),
            is_for_ever: mode == WaitMode::Forever,
        }
    }

    /// Polls for the dead, and looks whether this process has other threads if that matters.
    pub(super) fn poll_for_dead(&self) {
        member::poll_for_dead();
        if self.is_for_ever {
            self.is_alone
                .set(task::ids().is_ok_and(|threads| threads.len() == 1));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if *self.counted_in.get_mut() != fork::generation() + 1 {
            // This is a forked child's copy that the child has never used.
            return;
        }
        let view = self.view();
        let epoch = &view.head.epoch;
        // Before: a process that finds one handle less must know that one went. After: a process
        // that has not found that must look again.
        epoch.fetch_add(1, Ordering::SeqCst);
        if let Some(counts) = self.own_counts() {
            if self.role.sends() {
                counts.senders.fetch_sub(1, Ordering::SeqCst);
            }
            if self.role.receives()
                && counts.receivers.fetch_sub(1, Ordering::SeqCst) == 1
                && counts.unacknowledged() > 0
            {
                // No thread of this process can acknowledge these items any more.
                counts.give_up();
            }
        }
        epoch.fetch_add(1, Ordering::SeqCst);
        view.notify_all();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("order", &self.geometry.order)
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
