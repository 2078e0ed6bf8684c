//! Permits, the number of them that each process has, and the wait list for them. Semaphores and
//! read-write locks are made of these.
//!
//! All changes happen under one lock, and the death of its owner is noticed. The truth is in three
//! places, each of which is changed by one store: how many permits there are (`total`), how many
//! each member has (`counts`), and who waits (`places`). How many are available, and how many
//! threads wait, are sums of these, kept for speed. [`Permits::repair`] computes them anew when a
//! process died with the lock.
//!
//! | killed | what it leaves | what becomes of it |
//! |---|---|---|
//! | with permits | its number in `counts` | `reclaim` clears it |
//! | with the lock, between `counts` and `available` | a wrong sum | the next owner recomputes it |
//! | while it waits | its place in the list | `reclaim` clears it |
//! | between giving back and wake-up | a sleeper, `called` set or not | it looks within 100 ms |
//!
//! In the last case `reclaim` also wakes all.
//!
//! Waiting threads are served in the order in which they came, so none starves. A thread that wants
//! many permits holds up all behind it until there are as many. There are 96 places. A thread that
//! finds them taken waits for a place, in no certain order.
//!
//! A process may be stopped while it has the lock, for any length of time. So a caller waits for
//! the lock only until its own deadline. A release does not wait for it: giving permits back and
//! leaving the list are put off then ([`deferred`](crate::memory::deferred)).

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::memory::deferred::Limit;
use crate::memory::kind::Head;
use crate::memory::member::{self, MEMBERS, PollOfHolders};
use crate::memory::object::Object;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;
use crate::os::fault;
use crate::os::robust::{Held, RobustMutex};

const PLACES: usize = 96;

/// The most permits that there can be.
pub(super) const MOST: u32 = u32::MAX;

/// Permits, and the list of threads that wait for some. It begins as zeros, but for the lock.
#[repr(C)]
pub(super) struct Permits {
    /// Held for all changes. Its owner runs nothing but the code of this file meanwhile, and the
    /// `inspect` of `reclaim`.
    pub(super) lock: RobustMutex,
    /// The number of permits that there are: those in `counts` and those available.
    total: AtomicU32,
    /// `total` less the sum of `counts`.
    available: AtomicU32,
    /// The number of places that are taken.
    waiting: AtomicU32,
    /// The threads that have found no place.
    without_place: Waiters,
    /// The last ticket that was given out.
    last_ticket: AtomicU64,
    /// The polls for members that have permits.
    poll: PollOfHolders,
    places: [Place; PLACES],
    /// The number of permits that each member has.
    counts: [AtomicU32; MEMBERS],
}

/// A place in the wait list.
#[repr(C)]
struct Place {
    /// The thread with the lower number came first. 0: the place is free, and the rest of it means
    /// nothing.
    ticket: AtomicU64,
    member: AtomicU32,
    wanted: AtomicU32,
    /// 1: there may be enough permits now. A process that has seen so sets it under the lock,
    /// before the wake-up. The thread that waits clears it, before it looks.
    called: AtomicU32,
    waiters: Waiters,
}

/// The threads that have been called under the lock, to be woken when it is given back: one bit for
/// each place.
#[must_use]
pub(super) struct Called(u128);

/// An object that consists of permits and little else.
pub(super) trait HasPermits: Head {
    fn permits(&self) -> &Permits;
}

/// The outcome of one look for permits.
enum Attempt {
    Got,
    /// There are not enough permits, and the caller does not wait.
    NotNow,
    /// The caller has a place in the wait list: its index and its ticket.
    Enqueued(usize, u64),
    /// The caller would wait, and all places are taken.
    NoPlace,
    /// The lock was not free in time.
    Locked,
}

/// Takes permits for this process, and waits for them as `mode` says. Returns whether it got them.
pub(super) fn acquire<H: HasPermits>(object: &Object<H>, count: u32, mode: WaitMode) -> bool {
    let Some(head) = object.head_by(|| mode.lock_deadline()) else {
        return false;
    };
    let permits = head.permits();
    let member = member::own_number();
    loop {
        match permits.attempt(count, member, mode) {
            Attempt::Got => return true,
            // A caller that only tries, again and again perhaps, must learn of the dead too.
            Attempt::NotNow => {
                permits.poll_for_dead();
                return permits.take_now(count, member, mode);
            }
            Attempt::Enqueued(index, ticket) => {
                let enqueued = Enqueued {
                    object,
                    index,
                    ticket,
                };
                return enqueued.wait(count, member, mode);
            }
            // All places are taken. The caller waits until one is free, and tries again.
            Attempt::NoPlace => {
                let has_place =
                    || (permits.waiting.load(Ordering::Relaxed) < PLACES as u32).then_some(());
                let waiters = &permits.without_place;
                let poll = || permits.poll_for_dead();
                let woken = waiters.wait(mode.deadline(), has_place, poll);
                if woken.is_none() {
                    return permits.take_now(count, member, mode);
                }
            }
            Attempt::Locked => return false,
        }
    }
}

/// Gives permits of this process back.
pub(super) fn give_back<H: HasPermits>(object: &Object<H>, count: u32) {
    object.now_or_later(move |head, limit| head.permits().give_back(count, limit));
}

/// Removes permits of this process for good.
pub(super) fn forget<H: HasPermits>(object: &Object<H>, count: u32) {
    object.now_or_later(move |head, limit| head.permits().forget(count, limit));
}

/// Adds permits, unless there would be more than there can be: then it returns how many there are.
/// If the lock is not free soon, adds them later, and logs that error.
pub(super) fn add<H: HasPermits>(object: &Object<H>, count: u32) -> Result<(), u32> {
    if let Some(head) = object.head_by(|| Limit::Brief.at())
        && let Some(added) = head.permits().add(count, Limit::Brief)
    {
        return added;
    }
    object.now_or_later(move |head, limit| {
        let added = head.permits().add(count, limit);
        if let Some(Err(total)) = added {
            log::error!("{count} permits more than {total} are more than a semaphore can have");
        }
        added.is_some()
    });
    Ok(())
}

impl Permits {
    /// Sets how many permits there are in a new object. Only its maker calls this.
    pub(super) fn fill(&self, total: u32) {
        self.total.store(total, Ordering::Relaxed);
        self.available.store(total, Ordering::Relaxed);
    }

    /// Returns the number of permits that no process has.
    pub(super) fn available(&self) -> u32 {
        self.available.load(Ordering::Relaxed)
    }

    /// Takes the lock. Waits at most until the deadline that `limit` gives.
    fn hold(&self, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
        let held = super::hold(&self.lock, limit)?;
        if held.owner_died() {
            self.repair();
        }
        Some(held)
    }

    /// Takes the lock for a change that is tried once.
    fn hold_as(&self, limit: Limit) -> Option<Held<'_>> {
        self.hold(|| limit.at())
    }

    /// Computes the sums anew. The dead owner may have been about to call threads, so all are
    /// called. The caller has the lock.
    #[cold]
    fn repair(&self) {
        self.available.store(self.not_held(), Ordering::Relaxed);
        self.waiting
            .store(self.taken().count() as u32, Ordering::Relaxed);
        self.wake_all();
    }

    /// Returns what `available` should be. The caller has the lock.
    fn not_held(&self) -> u32 {
        let held: u64 = self
            .counts
            .iter()
            .map(|count| u64::from(count.load(Ordering::Relaxed)))
            .sum();
        // The sum is more than there are only if a process wrote to this memory in error.
        u64::from(self.total.load(Ordering::Relaxed)).saturating_sub(held) as u32
    }

    /// Polls for the dead, and looks first at those that have permits.
    fn poll_for_dead(&self) {
        self.poll.poll(|| self.holders());
    }

    /// Returns the members that have permits.
    fn holders(&self) -> impl Iterator<Item = u16> {
        let counts = self.counts[..member::numbers()].iter().enumerate();
        counts.filter_map(|(number, count)| {
            (count.load(Ordering::Relaxed) > 0).then_some(number as u16)
        })
    }

    fn count_of(&self, member: u16) -> &AtomicU32 {
        &self.counts[usize::from(member) % MEMBERS]
    }

    /// Returns the places that are taken, with their tickets. The caller has the lock.
    fn taken(&self) -> impl Iterator<Item = (u64, &Place, usize)> {
        let tickets = self.places.iter().enumerate();
        tickets.filter_map(|(index, place)| {
            let ticket = place.ticket.load(Ordering::Relaxed);
            (ticket != 0).then_some((ticket, place, index))
        })
    }

    /// Takes permits, if there are enough besides those that threads with a lower ticket wait for.
    /// Returns whether it took them. The caller has the lock.
    fn take(&self, count: u32, ticket: u64, member: u16) -> bool {
        // What threads that came earlier wait for is not for this one.
        let mut wanted = u64::from(count);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let before = self.taken().filter(|(other, ..)| *other < ticket);
            wanted += before
                .map(|(_, place, _)| u64::from(place.wanted.load(Ordering::Relaxed)))
                .sum::<u64>();
        }
        let available = self.available.load(Ordering::Relaxed);
        if wanted > u64::from(available) {
            return false;
        }
        let own = self.count_of(member);
        fault::point();
        // From here on the permits are this member's; the sum can be computed anew.
        own.store(
            own.load(Ordering::Relaxed).saturating_add(count),
            Ordering::Relaxed,
        );
        fault::point();
        self.available.store(available - count, Ordering::Relaxed);
        true
    }

    /// Enqueues the caller: takes a place in the wait list, and returns its index and ticket. The
    /// caller has the lock.
    fn enqueue(&self, wanted: u32, member: u16) -> Option<(usize, u64)> {
        let is_free = |place: &Place| place.ticket.load(Ordering::Relaxed) == 0;
        let index = self.places.iter().position(is_free)?;
        let ticket = self.last_ticket.load(Ordering::Relaxed) + 1;
        self.last_ticket.store(ticket, Ordering::Relaxed);
        let place = &self.places[index];
        place.member.store(u32::from(member), Ordering::Relaxed);
        place.wanted.store(wanted, Ordering::Relaxed);
        place.called.store(0, Ordering::Relaxed);
        // Release: a process that is told of the death of this one sees the place whole or free.
        fault::point();
        place.ticket.store(ticket, Ordering::Release);
        fault::point();
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting + 1, Ordering::Relaxed);
        Some((index, ticket))
    }

    /// Leaves the wait list. The caller has the lock.
    fn dequeue(&self, index: usize) {
        self.places[index].ticket.store(0, Ordering::Relaxed);
        fault::point();
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting
            .store(waiting.saturating_sub(1), Ordering::Relaxed);
    }

    /// Calls all waiting threads for which there are enough permits, those that came first before
    /// the others. The caller has the lock.
    fn call(&self) -> Called {
        let mut called = 0;
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let mut queue = [(u64::MAX, 0, 0); PLACES];
            for (slot, (ticket, place, index)) in queue.iter_mut().zip(self.taken()) {
                *slot = (ticket, place.wanted.load(Ordering::Relaxed), index);
            }
            queue.sort_unstable();
            let mut left = self.available.load(Ordering::Relaxed);
            for (ticket, wanted, index) in queue {
                // No thread is left, or there are not enough permits for this one. Those behind it
                // wait too.
                if ticket == u64::MAX || wanted > left {
                    break;
                }
                left -= wanted;
                // Release pairs with the swap in `wait`.
                self.places[index].called.store(1, Ordering::Release);
                called |= 1 << index;
            }
        }
        Called(called)
    }

    /// Wakes the threads that were called. The caller has given the lock back, so that they find it
    /// free.
    fn wake(&self, Called(called): Called) {
        let mut rest = called;
        while rest != 0 {
            let index = rest.trailing_zeros() as usize;
            self.places[index].waiters.notify_all();
            rest &= rest - 1;
        }
    }

    /// Calls those whose turn it is, releases the lock, and wakes them.
    fn call_and_release(&self, held: Held<'_>) {
        let called = self.call();
        fault::point();
        drop(held);
        fault::point();
        self.wake(called);
    }

    fn wake_all(&self) {
        for place in &self.places {
            place.called.store(1, Ordering::Release);
            place.waiters.notify_all();
        }
        self.without_place.notify_all();
    }

    /// Looks once, and enqueues the caller if it waits.
    fn attempt(&self, count: u32, member: u16, mode: WaitMode) -> Attempt {
        let Some(_held) = self.hold(|| mode.lock_deadline()) else {
            return Attempt::Locked;
        };
        if self.take(count, u64::MAX, member) {
            return Attempt::Got;
        }
        if mode == WaitMode::Try {
            return Attempt::NotNow;
        }
        match self.enqueue(count, member) {
            Some((index, ticket)) => Attempt::Enqueued(index, ticket),
            None => Attempt::NoPlace,
        }
    }

    /// Looks once, and does not enqueue the caller. Returns whether it got the permits.
    fn take_now(&self, count: u32, member: u16, mode: WaitMode) -> bool {
        let held = self.hold(|| mode.lock_deadline());
        held.is_some() && self.take(count, u64::MAX, member)
    }

    /// Gives back `count` permits that this process holds. Returns false, and gives none back, if
    /// the caller could not take the lock before the deadline.
    fn give_back(&self, count: u32, limit: Limit) -> bool {
        let member = member::own_number();
        let Some(held) = self.hold_as(limit) else {
            return false;
        };
        let own = self.count_of(member);
        let had = own.load(Ordering::Relaxed);
        fault::point();
        own.store(had.saturating_sub(count), Ordering::Relaxed);
        fault::point();
        let available = self.available.load(Ordering::Relaxed);
        self.available
            .store(available.saturating_add(count.min(had)), Ordering::Relaxed);
        self.call_and_release(held);
        true
    }

    /// Removes permits of this process for good. Returns false if the lock was not free before the
    /// deadline.
    fn forget(&self, count: u32, limit: Limit) -> bool {
        let member = member::own_number();
        let Some(_held) = self.hold_as(limit) else {
            return false;
        };
        let own = self.count_of(member);
        let had = own.load(Ordering::Relaxed);
        let count = count.min(had);
        // If this process is killed between these two stores, the permits come back, like all that
        // a killed process has.
        fault::point();
        own.store(had - count, Ordering::Relaxed);
        fault::point();
        let total = self.total.load(Ordering::Relaxed);
        self.total
            .store(total.saturating_sub(count), Ordering::Relaxed);
        true
    }

    /// Adds permits, unless there would be more than there can be: then it returns how many there
    /// are. Returns `None` if the lock was not free before the deadline.
    fn add(&self, count: u32, limit: Limit) -> Option<Result<(), u32>> {
        let held = self.hold_as(limit)?;
        // From the store of `total` on there are more; the sum can be computed anew.
        let total = self.total.load(Ordering::Relaxed);
        let Some(more) = total.checked_add(count) else {
            return Some(Err(total));
        };
        fault::point();
        self.total.store(more, Ordering::Relaxed);
        fault::point();
        let available = self.available.load(Ordering::Relaxed);
        self.available
            .store(available.saturating_add(count), Ordering::Relaxed);
        self.call_and_release(held);
        Some(Ok(()))
    }

    /// Leaves the wait list, if the place is still the caller's. Returns false if the lock was not
    /// free before the deadline.
    fn leave(&self, index: usize, ticket: u64, limit: Limit) -> bool {
        let Some(held) = self.hold_as(limit) else {
            return false;
        };
        if self.places[index].ticket.load(Ordering::Relaxed) == ticket {
            self.dequeue(index);
        }
        // The threads behind may have waited for this one only.
        self.call_and_release(held);
        self.without_place.notify_all();
        true
    }

    /// Gives back what a member that has ended has: its permits, and its places in the wait list.
    /// Tells `inspect` first how many permits it had. May be done twice. Returns false if the
    /// caller has to try again later, because the lock was not free before the deadline.
    pub(super) fn reclaim(
        &self,
        member: u16,
        deadline: Instant,
        inspect: impl FnOnce(u32),
    ) -> bool {
        let Some(held) = self.hold(|| Some(deadline)) else {
            return false;
        };
        let own = self.count_of(member);
        inspect(own.load(Ordering::Relaxed));
        own.store(0, Ordering::Relaxed);
        for place in &self.places {
            if place.member.load(Ordering::Relaxed) == u32::from(member) {
                place.ticket.store(0, Ordering::Relaxed);
            }
        }
        self.available.store(self.not_held(), Ordering::Relaxed);
        self.waiting
            .store(self.taken().count() as u32, Ordering::Relaxed);
        drop(held);
        self.wake_all();
        true
    }
}

/// A place in the wait list. The thread leaves it when this is dropped.
struct Enqueued<'a, H: HasPermits> {
    object: &'a Object<H>,
    index: usize,
    ticket: u64,
}

impl<H: HasPermits> Enqueued<'_, H> {
    /// Waits in the list until the permits are there or the time is over. Returns whether it got
    /// them.
    fn wait(self, count: u32, member: u16, mode: WaitMode) -> bool {
        let permits = self.object.head().permits();
        let place = &permits.places[self.index];
        // The process that should have called this thread may have been killed before it did.
        let looks_anyway = Cell::new(false);
        let look = || {
            let Some(_held) = permits.hold(|| mode.lock_deadline()) else {
                // The lock was not free in time. The call that has led to this look must not be
                // lost.
                looks_anyway.set(true);
                return None;
            };
            let has_got = permits.take(count, self.ticket, member);
            if has_got {
                permits.dequeue(self.index);
            }
            has_got.then_some(())
        };
        let ready = || {
            // Acquire pairs with the store in `call`. It is cleared first, so that a call during
            // the look is another one.
            let is_called = place.called.swap(0, Ordering::Acquire) != 0;
            if !looks_anyway.replace(false) && !is_called {
                return None;
            }
            look()
        };
        let poll_for_dead = || {
            permits.poll_for_dead();
            looks_anyway.set(true);
        };
        let woken = place.waiters.wait(mode.deadline(), ready, poll_for_dead);
        if woken.is_some() || look().is_some() {
            // This thread has left the list, and its place is free.
            permits.without_place.notify_all();
            std::mem::forget(self);
            return true;
        }
        false
    }
}

impl<H: HasPermits> Drop for Enqueued<'_, H> {
    fn drop(&mut self) {
        let (index, ticket) = (self.index, self.ticket);
        self.object
            .now_or_later(move |head, limit| head.permits().leave(index, ticket, limit));
    }
}

#[cfg(test)]
mod tests;
