//! Permits, who has how many of them, and the line of those who wait for some: what semaphores and read-write locks are made of.
//!
//! All is changed under one lock, whose owner's death is noticed. The truth is in three places, each of which is changed by one
//! store: how many permits there are (`total`), how many each member has (`books`), and who waits (`places`). How many
//! are available, and how many wait, are sums of these, kept for speed: [`Line::repair`] makes them anew when somebody
//! died with the lock.
//!
//! | killed | what it leaves | what becomes of it |
//! |---|---|---|
//! | with permits | its number in the books | `bury` clears it |
//! | with the lock, between the books and `available` | a wrong sum | the next owner makes it anew |
//! | while it waits | its place in the line | `bury` clears it |
//! | between giving back and waking who is next | a sleeper with `called` set, or not | it looks after 100 ms at the latest, and `bury` wakes all |
//!
//! Those who wait are served in the order in which they came, so nobody starves: who wants many permits holds up all behind
//! until there are as many. There are 96 places. Who finds them taken waits for a place, in no certain order.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::os::robust::{Held, RobustMutex};
use crate::shm::member::{self, MEMBERS};
use crate::shm::wait::Waiters;

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

/// How long to wait for permits.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    None,
    Until(Option<Instant>),
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

    /// Takes the lock.
    fn hold(&self) -> Held<'_> {
        self.repaired(super::hold(&self.lock))
    }

    fn repaired<'h>(&self, held: Held<'h>) -> Held<'h> {
        if held.owner_died() {
            self.repair();
        }
        held
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
        // From here on they are this member's; the sum can be made anew.
        book.store(
            book.load(Ordering::Relaxed).saturating_add(count),
            Ordering::Relaxed,
        );
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
        place.ticket.store(ticket, Ordering::Release);
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.waiting.store(waiting + 1, Ordering::Relaxed);
        Some((index, ticket))
    }

    /// Leaves the line. To be called under the lock.
    fn step_out(&self, index: usize) {
        self.places[index].ticket.store(0, Ordering::Relaxed);
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

    /// Takes permits for this process, and waits for them if need be. Whether they were got.
    pub(super) fn acquire(&self, count: u32, patience: Patience) -> bool {
        let member = member::own_number();
        loop {
            let held = self.hold();
            if self.take(count, u64::MAX, member) {
                return true;
            }
            let Patience::Until(deadline) = patience else {
                // Who only tries, again and again perhaps, is to hear of the dead too.
                drop(held);
                member::patrol();
                let _held = self.hold();
                return self.take(count, u64::MAX, member);
            };
            if let Some((index, ticket)) = self.line_up(count, member) {
                drop(held);
                return self.stand(index, ticket, count, member, deadline);
            }
            drop(held);
            let has_place = || (self.waiting.load(Ordering::Relaxed) < PLACES as u32).then_some(());
            if self
                .without_place
                .wait(deadline, has_place, member::patrol)
                .is_none()
            {
                let _held = self.hold();
                return self.take(count, u64::MAX, member);
            }
        }
    }

    /// Stands in the line until it has the permits or the deadline has passed.
    fn stand(
        &self,
        index: usize,
        ticket: u64,
        count: u32,
        member: u16,
        deadline: Option<Instant>,
    ) -> bool {
        let place = &self.places[index];
        let in_line = InLine { line: self, index };
        // Whoever should have called us may have been killed before it did.
        let looks_anyway = Cell::new(false);
        let ready = || {
            // Acquire pairs with the store in `call`: cleared first, so that a call during the look is another one.
            let is_called = place.called.swap(0, Ordering::Acquire) != 0;
            if !looks_anyway.replace(false) && !is_called {
                return None;
            }
            let _held = self.hold();
            let has_got = self.take(count, ticket, member);
            if has_got {
                self.step_out(index);
            }
            has_got.then_some(())
        };
        let patrol = || {
            member::patrol();
            looks_anyway.set(true);
        };
        let has_got = place.waiters.wait(deadline, ready, patrol).is_some();
        if has_got {
            std::mem::forget(in_line);
            self.without_place.notify_all();
            return true;
        }
        // The last look; then `in_line` goes.
        let held = self.hold();
        let has_got = self.take(count, ticket, member);
        drop(held);
        drop(in_line);
        has_got
    }

    /// Gives permits of this process back.
    pub(super) fn give_back(&self, count: u32) {
        let member = member::own_number();
        let held = self.hold();
        let book = self.book(member);
        let booked = book.load(Ordering::Relaxed);
        book.store(booked.saturating_sub(count), Ordering::Relaxed);
        let available = self.available.load(Ordering::Relaxed);
        self.available.store(
            available.saturating_add(count.min(booked)),
            Ordering::Relaxed,
        );
        let called = self.call();
        drop(held);
        self.wake(called);
    }

    /// Takes permits of this process out of the world.
    pub(super) fn forget(&self, count: u32) {
        let member = member::own_number();
        let _held = self.hold();
        let book = self.book(member);
        let booked = book.load(Ordering::Relaxed);
        let count = count.min(booked);
        // Killed between these two: they come back, as what a killed process has does.
        book.store(booked - count, Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        self.total
            .store(total.saturating_sub(count), Ordering::Relaxed);
    }

    /// Adds permits, unless there would be more than there can be: then it gives how many there are.
    pub(super) fn add(&self, count: u32) -> Result<(), u32> {
        let held = self.hold();
        let total = self.total.load(Ordering::Relaxed);
        let more = total.checked_add(count).ok_or(total)?;
        self.total.store(more, Ordering::Relaxed);
        let available = self.available.load(Ordering::Relaxed);
        self.available
            .store(available.saturating_add(count), Ordering::Relaxed);
        let called = self.call();
        drop(held);
        self.wake(called);
        Ok(())
    }

    /// A member has ended: what it has is given back, and its places in the line. `inspect` is told first how many permits it
    /// had. Can be done twice. False if it has to be tried again later.
    pub(super) fn bury(&self, member: u16, inspect: impl FnOnce(u32)) -> bool {
        let Some(held) = super::hold_soon(&self.lock) else {
            return false;
        };
        let held = self.repaired(held);
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
struct InLine<'a> {
    line: &'a Line,
    index: usize,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let held = self.line.hold();
        self.line.step_out(self.index);
        // Those behind may have waited for this one only.
        let called = self.line.call();
        drop(held);
        self.line.wake(called);
        self.line.without_place.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::mem;
    use std::thread;

    use super::*;

    /// A line with three permits, at a place that it never leaves.
    fn line() -> &'static Line {
        let line = Box::leak(Box::new(mem::MaybeUninit::<Line>::zeroed()));
        // SAFETY: zeros are a valid line but for its lock, which is made before it is used.
        #[allow(unsafe_code)]
        let line: &Line = unsafe { line.assume_init_mut() };
        // SAFETY: room for a lock, which nobody else knows of yet.
        #[allow(unsafe_code)]
        unsafe { crate::sync::init_lock((&raw const line.lock).cast_mut()) }.unwrap();
        line.fill(3);
        line
    }

    /// A thread that dies with the lock, at this point of a change.
    fn die_at(line: &'static Line, point: impl FnOnce() + Send + 'static) {
        let dies = move || {
            let held = line.hold();
            point();
            mem::forget(held);
        };
        thread::spawn(dies).join().unwrap();
    }

    #[test]
    fn sums_are_made_anew_when_somebody_died_with_the_lock() {
        let line = line();
        // Between the sum and the book, and the other way round.
        die_at(line, || line.available.store(1, Ordering::Relaxed));
        assert!(line.acquire(3, Patience::None));
        die_at(line, || {
            line.book(member::own_number()).store(1, Ordering::Relaxed);
        });
        assert!(!line.acquire(3, Patience::None));
        assert!(line.acquire(2, Patience::None));
        line.give_back(3);
        // With a place that is taken and not counted.
        die_at(line, || {
            line.line_up(3, MEMBERS as u16 - 1);
            line.waiting.store(0, Ordering::Relaxed);
        });
        assert!(!line.acquire(1, Patience::None), "not before its turn");
        line.bury(MEMBERS as u16 - 1, |_| {});
        assert!(line.acquire(3, Patience::None));
        line.give_back(3);
    }

    #[test]
    fn burying_twice_is_burying_once() {
        let line = line();
        let other = MEMBERS as u16 - 1;
        assert!(line.take(2, u64::MAX, other));
        for had in [2, 0] {
            assert!(line.bury(other, |permits| assert_eq!(permits, had)));
            assert_eq!(line.available(), 3);
        }
    }
}
