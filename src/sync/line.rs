//! Permits, who has how many of them, and the line of those who wait for some: what semaphores and read-write locks are made of.
//!
//! All is changed under one lock, whose owner's death is noticed. The truth is in three places, each of which is changed by one
//! store: how many permits there are (`total`), how many each member has (`books`), and who waits (`places`). How many
//! are available, and how many wait, are sums of these, kept for speed: [`Line::repair`] makes them anew when somebody
//! died with the lock.
//!
//! | killed | what it leaves | what becomes of it |
//! |---|---|---|
//! | with permits | its number in the books | `reclaim` clears it |
//! | with the lock, between the books and `available` | a wrong sum | the next owner makes it anew |
//! | while it waits | its place in the line | `reclaim` clears it |
//! | between giving back and waking who is next | a sleeper with `called` set, or not | it looks after 100 ms at the latest, and `reclaim` wakes all |
//!
//! Those who wait are served in the order in which they came, so nobody starves: who wants many permits holds up all behind
//! until there are as many. There are 96 places. Who finds them taken waits for a place, in no certain order.
//!
//! A process may be stopped with the lock, for as long as it likes. So the lock is taken with the
//! caller's deadline, and what gives back does not wait for it: giving back and leaving the line
//! are put off then ([`deferred`]).

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::memory::deferred::Limit;
use crate::memory::kind::Head;
use crate::memory::member::{self, MEMBERS};
use crate::memory::object::Object;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;
use crate::os::fault;
use crate::os::robust::{Held, RobustMutex};

const PLACES: usize = 96;

/// All permits that there can be.
pub(super) const MOST: u32 = u32::MAX;

/// Permits and a line of those who wait for some. Of zeros, but for the lock.
#[repr(C)]
pub(super) struct Line {
    /// Held for all changes, by who runs nothing but the code of this file meanwhile.
    pub(super) lock: RobustMutex,
    /// Permits there are: those in the books and those available.
    total: AtomicU32,
    /// `total` less the sum of the books.
    available: AtomicU32,
    /// Places that are taken.
    waiting: AtomicU32,
    /// Those who have found no place.
    without_place: Waiters,
    /// The last ticket that was given out.
    last_ticket: AtomicU64,
    places: [Place; PLACES],
    /// Permits that each member has.
    books: [AtomicU32; MEMBERS],
}

/// A place in the line.
#[repr(C)]
struct Place {
    /// Who has the lower number came first. 0: the place is free, and the rest of it means nothing.
    ticket: AtomicU64,
    member: AtomicU32,
    wanted: AtomicU32,
    /// 1: there may be enough permits now. Set under the lock, before the wake-up, by who has seen so; cleared by
    /// the one who waits, before it looks.
    called: AtomicU32,
    waiters: Waiters,
}

/// Those who have been called under the lock, to be woken when it is given back: one bit for each place.
#[must_use]
pub(super) struct Called(u128);

/// An object that consists of a line and little else.
pub(super) trait HasLine: Head {
    fn line(&self) -> &Line;
}

/// What has come of one look for permits.
enum Attempt {
    Got,
    /// There are not enough, and the caller does not wait.
    NotNow,
    /// The caller has a place in the line: its index and its ticket.
    InLine(usize, u64),
    /// The caller would wait, and all places are taken.
    NoPlace,
    /// The lock was not to be had in time.
    Locked,
}

/// Takes permits for this process, and waits for them as `mode` says. Whether they were got.
pub(super) fn acquire<H: HasLine>(object: &Object<H>, count: u32, mode: WaitMode) -> bool {
    let Some(head) = object.head_by(|| mode.lock_deadline()) else {
        return false;
    };
    let line = head.line();
    let member = member::own_number();
    loop {
        match line.attempt(count, member, mode) {
            Attempt::Got => return true,
            // A caller that only tries, again and again perhaps, is to hear of the dead too.
            Attempt::NotNow => {
                member::poll_for_dead();
                return line.take_now(count, member, mode);
            }
            Attempt::InLine(index, ticket) => {
                let in_line = InLine {
                    object,
                    index,
                    ticket,
                };
                return in_line.stand(count, member, mode);
            }
            Attempt::NoPlace => {
                let has_place =
                    || (line.waiting.load(Ordering::Relaxed) < PLACES as u32).then_some(());
                let waiters = &line.without_place;
                if waiters
                    .wait(mode.deadline(), has_place, member::poll_for_dead)
                    .is_none()
                {
                    return line.take_now(count, member, mode);
                }
            }
            Attempt::Locked => return false,
        }
    }
}

/// Gives permits of this process back.
pub(super) fn give_back<H: HasLine>(object: &Object<H>, count: u32) {
    object.now_or_later(move |head, limit| head.line().give_back(count, limit));
}

/// Takes permits of this process out of the world.
pub(super) fn forget<H: HasLine>(object: &Object<H>, count: u32) {
    object.now_or_later(move |head, limit| head.line().forget(count, limit));
}

/// Adds permits, unless there would be more than there can be: then it gives how many there are.
pub(super) fn add<H: HasLine>(object: &Object<H>, count: u32) -> Result<(), u32> {
    if let Some(head) = object.head_by(|| Limit::Brief.at())
        && let Some(added) = head.line().add(count, Limit::Brief)
    {
        return added;
    }
    object.now_or_later(move |head, limit| {
        let added = head.line().add(count, limit);
        if let Some(Err(total)) = added {
            log::error!("{count} permits more than {total} are more than a semaphore can have");
        }
        added.is_some()
    });
    Ok(())
}

impl Line {
    /// A new line has this many permits. To be called by who makes it.
    pub(super) fn fill(&self, total: u32) {
        self.total.store(total, Ordering::Relaxed);
        self.available.store(total, Ordering::Relaxed);
    }

    /// Permits that nobody has.
    pub(super) fn available(&self) -> u32 {
        self.available.load(Ordering::Relaxed)
    }

    /// Takes the lock, at most until the deadline that `limit` gives.
    fn hold(&self, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
        let held = super::hold(&self.lock, limit)?;
        if held.owner_died() {
            self.repair();
        }
        Some(held)
    }

    /// The same for what is tried once.
    fn hold_as(&self, limit: Limit) -> Option<Held<'_>> {
        self.hold(|| limit.at())
    }

    /// Makes the sums anew. Somebody may have been about to call others, so all are. To be called under the lock.
    #[cold]
    fn repair(&self) {
        self.available.store(self.unbooked(), Ordering::Relaxed);
        self.waiting
            .store(self.taken().count() as u32, Ordering::Relaxed);
        self.wake_all();
    }

    /// What `available` should be. To be called under the lock.
    fn unbooked(&self) -> u32 {
        let booked: u64 = self
            .books
            .iter()
            .map(|book| u64::from(book.load(Ordering::Relaxed)))
            .sum();
        // More than there are can only come from memory that was written to in error.
        u64::from(self.total.load(Ordering::Relaxed)).saturating_sub(booked) as u32
    }

    fn book(&self, member: u16) -> &AtomicU32 {
        &self.books[usize::from(member) % MEMBERS]
    }

    /// Places that are taken, with their tickets. To be called under the lock.
    fn taken(&self) -> impl Iterator<Item = (u64, &Place, usize)> {
        let tickets = self.places.iter().enumerate();
        tickets.filter_map(|(index, place)| {
            let ticket = place.ticket.load(Ordering::Relaxed);
            (ticket != 0).then_some((ticket, place, index))
        })
    }

    /// Takes permits, if there are so many besides those that others with a lower ticket wait for. To be called under the lock.
    fn take(&self, count: u32, ticket: u64, member: u16) -> bool {
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
        let book = self.book(member);
        fault::point();
        // From here on they are this member's; the sum can be made anew.
        book.store(
            book.load(Ordering::Relaxed).saturating_add(count),
            Ordering::Relaxed,
        );
        fault::point();
        self.available.store(available - count, Ordering::Relaxed);
        true
    }

    /// Takes a place in the line, and gives its index and ticket. To be called under the lock.
    fn line_up(&self, wanted: u32, member: u16) -> Option<(usize, u64)> {
        let is_free = |place: &Place| place.ticket.load(Ordering::Relaxed) == 0;
        let index = self.places.iter().position(is_free)?;
        let ticket = self.last_ticket.load(Ordering::Relaxed) + 1;
        self.last_ticket.store(ticket, Ordering::Relaxed);
        let place = &self.places[index];
        place.member.store(u32::from(member), Ordering::Relaxed);
        place.wanted.store(wanted, Ordering::Relaxed);
        place.called.store(0, Ordering::Relaxed);
        // Release: whoever is told of our death sees the place whole or free.
        fault::point();
        place.ticket.store(ticket, Ordering::Release);
        fault::point();
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting + 1, Ordering::Relaxed);
        Some((index, ticket))
    }

    /// Leaves the line. To be called under the lock.
    fn step_out(&self, index: usize) {
        self.places[index].ticket.store(0, Ordering::Relaxed);
        fault::point();
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting
            .store(waiting.saturating_sub(1), Ordering::Relaxed);
    }

    /// Calls all in the line for whom there are enough permits. To be called under the lock.
    fn call(&self) -> Called {
        let mut called = 0;
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let mut line = [(u64::MAX, 0, 0); PLACES];
            for (slot, (ticket, place, index)) in line.iter_mut().zip(self.taken()) {
                *slot = (ticket, place.wanted.load(Ordering::Relaxed), index);
            }
            line.sort_unstable();
            let mut left = self.available.load(Ordering::Relaxed);
            for (ticket, wanted, index) in line {
                if ticket == u64::MAX || wanted > left {
                    break;
                }
                left -= wanted;
                // Release pairs with the swap in `stand`.
                self.places[index].called.store(1, Ordering::Release);
                called |= 1 << index;
            }
        }
        Called(called)
    }

    /// Wakes those who were called. To be called when the lock has been given back, so that they find it free.
    fn wake(&self, Called(called): Called) {
        let mut rest = called;
        while rest != 0 {
            let index = rest.trailing_zeros() as usize;
            self.places[index].waiters.notify_all();
            rest &= rest - 1;
        }
    }

    fn wake_all(&self) {
        for place in &self.places {
            place.called.store(1, Ordering::Release);
            place.waiters.notify_all();
        }
        self.without_place.notify_all();
    }

    /// Looks once, and gets in line if the caller waits.
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
        match self.line_up(count, member) {
            Some((index, ticket)) => Attempt::InLine(index, ticket),
            None => Attempt::NoPlace,
        }
    }

    /// Looks once, without getting in line. Whether the permits were got.
    fn take_now(&self, count: u32, member: u16, mode: WaitMode) -> bool {
        let held = self.hold(|| mode.lock_deadline());
        held.is_some() && self.take(count, u64::MAX, member)
    }

    /// Gives permits of this process back. False if the lock was not to be had until the deadline.
    fn give_back(&self, count: u32, limit: Limit) -> bool {
        let member = member::own_number();
        let Some(held) = self.hold_as(limit) else {
            return false;
        };
        let book = self.book(member);
        let booked = book.load(Ordering::Relaxed);
        fault::point();
        book.store(booked.saturating_sub(count), Ordering::Relaxed);
        fault::point();
        let available = self.available.load(Ordering::Relaxed);
        self.available.store(
            available.saturating_add(count.min(booked)),
            Ordering::Relaxed,
        );
        let called = self.call();
        fault::point();
        drop(held);
        fault::point();
        self.wake(called);
        true
    }

    /// Takes permits of this process out of the world. False if the lock was not to be had until
    /// the deadline.
    fn forget(&self, count: u32, limit: Limit) -> bool {
        let member = member::own_number();
        let Some(_held) = self.hold_as(limit) else {
            return false;
        };
        let book = self.book(member);
        let booked = book.load(Ordering::Relaxed);
        let count = count.min(booked);
        // Killed between these two: they come back, as what a killed process has does.
        fault::point();
        book.store(booked - count, Ordering::Relaxed);
        fault::point();
        let total = self.total.load(Ordering::Relaxed);
        self.total
            .store(total.saturating_sub(count), Ordering::Relaxed);
        true
    }

    /// Adds permits, unless there would be more than there can be: then it gives how many there
    /// are. `None` if the lock was not to be had until the deadline.
    fn add(&self, count: u32, limit: Limit) -> Option<Result<(), u32>> {
        let held = self.hold_as(limit)?;
        // From here on there are more; the sum can be made anew.
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
        let called = self.call();
        fault::point();
        drop(held);
        fault::point();
        self.wake(called);
        Some(Ok(()))
    }

    /// Leaves the line, if the place is still the caller's. False if the lock was not to be had
    /// until the deadline.
    fn leave(&self, index: usize, ticket: u64, limit: Limit) -> bool {
        let Some(held) = self.hold_as(limit) else {
            return false;
        };
        if self.places[index].ticket.load(Ordering::Relaxed) == ticket {
            self.step_out(index);
        }
        // Those behind may have waited for this one only.
        let called = self.call();
        fault::point();
        drop(held);
        fault::point();
        self.wake(called);
        self.without_place.notify_all();
        true
    }

    /// A member has ended: what it has is given back, and its places in the line. `inspect` is told
    /// first how many permits it had. Can be done twice. False if it has to be tried again later,
    /// because the lock was not to be had until the deadline.
    pub(super) fn reclaim(
        &self,
        member: u16,
        deadline: Instant,
        inspect: impl FnOnce(u32),
    ) -> bool {
        let Some(held) = self.hold(|| Some(deadline)) else {
            return false;
        };
        let book = self.book(member);
        inspect(book.load(Ordering::Relaxed));
        book.store(0, Ordering::Relaxed);
        for place in &self.places {
            if place.member.load(Ordering::Relaxed) == u32::from(member) {
                place.ticket.store(0, Ordering::Relaxed);
            }
        }
        self.available.store(self.unbooked(), Ordering::Relaxed);
        self.waiting
            .store(self.taken().count() as u32, Ordering::Relaxed);
        drop(held);
        self.wake_all();
        true
    }
}

/// A place in the line, left when this goes.
struct InLine<'a, H: HasLine> {
    object: &'a Object<H>,
    index: usize,
    ticket: u64,
}

impl<H: HasLine> InLine<'_, H> {
    /// Stands in the line until the permits are there or the time is over. Whether they were got.
    fn stand(self, count: u32, member: u16, mode: WaitMode) -> bool {
        let line = self.object.head().line();
        let place = &line.places[self.index];
        // The process that should have called this one may have been killed before it did.
        let looks_anyway = Cell::new(false);
        let look = || {
            let Some(_held) = line.hold(|| mode.lock_deadline()) else {
                // A call that has come to nothing is not to be lost.
                looks_anyway.set(true);
                return None;
            };
            let has_got = line.take(count, self.ticket, member);
            if has_got {
                line.step_out(self.index);
            }
            has_got.then_some(())
        };
        let ready = || {
            // Acquire pairs with the store in `call`: cleared first, so that a call during the look
            // is another one.
            let is_called = place.called.swap(0, Ordering::Acquire) != 0;
            if !looks_anyway.replace(false) && !is_called {
                return None;
            }
            look()
        };
        let poll_for_dead = || {
            member::poll_for_dead();
            looks_anyway.set(true);
        };
        let has_got = place
            .waiters
            .wait(mode.deadline(), ready, poll_for_dead)
            .is_some();
        if has_got || look().is_some() {
            // It has left the line.
            line.without_place.notify_all();
            std::mem::forget(self);
            return true;
        }
        false
    }
}

impl<H: HasLine> Drop for InLine<'_, H> {
    fn drop(&mut self) {
        let (index, ticket) = (self.index, self.ticket);
        self.object
            .now_or_later(move |head, limit| head.line().leave(index, ticket, limit));
    }
}

#[cfg(test)]
mod tests;
