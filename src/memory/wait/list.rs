//! The wait list of a condition variable: one notification, one wake-up.
//!
//! [`Waiters`] tells all waiters by one number, which is right for waiters that look at a state of
//! their own. The waiters of a condition variable have no such state here: their caller looks, and
//! each needless wake-up costs the caller two acquisitions of the mutex. So each waiter has a
//! *slot*, with a futex of its own, and a notification is *granted* to one slot by one
//! compare-and-swap. Only the waiter's slot says whether it was notified. After a wake-up of the
//! kernel, the end of a slice of sleep or a deadline, the waiter only looks at its slot.
//!
//! No function takes a lock or waits for another process, so a process may be stopped anywhere
//! without holding up others. The state of a slot is all in one word:
//!
//! ```text
//!            enqueue               enqueue              notify
//!     FREE ----------> CLAIMED ---------------> WAITING --------> GRANTED
//!      ^                                           |                 |
//!      +-------------------------------------------+-----------------+
//!                           leave, or reclaim
//! ```
//!
//! | killed | it leaves | what happens then |
//! |---|---|---|
//! | a waiter in a slot, in any state | a slot that it does not need | `reclaim` frees the slot |
//! | a waiter that has left its slot, with a grant | nothing | `reclaim` notifies all |
//! | a notifier between grant and wake-up | a waiter asleep, granted | it looks after its slice |
//! | a notifier between grants of `notify_all` | waiters not notified | `reclaim` notifies all |
//! | the process that reclaims | slots of the dead | the next one reclaims them |
//!
//! When `reclaim` frees a slot it also notifies all, because the slot may have been granted. A
//! waiter that is asleep in a granted slot sees the grant after 100 ms at the latest. All of a
//! reclaim can be done twice.
//!
//! A waiter that leaves because of its deadline frees its slot by a swap, which tells whether the
//! slot was granted up to then. So there are two cases. Either the waiter that got the grant
//! reports it, or the grant never happened and the notifier picks another waiter.
//!
//! A notification goes to the waiter that has waited longest, so a waiter that comes later cannot
//! take it from an earlier one. There are 448 slots. Waiters that find no free one are the *crowd*.
//! A notification that finds no waiter in a slot wakes all of the crowd. Each waiter of the crowd
//! also wakes up after 100 ms without a reason. Then its caller looks, and waits again, perhaps in
//! a slot.
//!
//! No fence stands between a look at the slots and the state that the mutex guards. A notifier has
//! locked that mutex before it notifies. If a waiter had the mutex before the notifier, the
//! notifier sees its slot; if after, the waiter has seen the change.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{LONGEST_SLICE, Slept, Slice, Slices, WaitToken, Waiters, spin};
use crate::os::fault;
use crate::os::futex::Wake;
use crate::shim::{AtomicU32, AtomicU64, Futex};

/// The number of words of bits. In a model, slots for two waiters: a third waiter is the crowd.
const WORDS: usize = if cfg!(loom) { 1 } else { 7 };

const SLOTS: usize = if cfg!(loom) { 2 } else { WORDS * 64 };

/// The state of a slot that belongs to no waiter. Other states have the member above their two
/// bits.
const FREE: u32 = 0;

/// The slot's owner is about to wait.
const CLAIMED: u32 = 1;

/// The slot's owner waits, and has not been notified.
const WAITING: u32 = 2;

/// The slot's owner has been notified.
const GRANTED: u32 = 3;

const STATE: u32 = 3;

fn state_of(state: u32, member: u16) -> u32 {
    u32::from(member) << 2 | state
}

/// The waiters of a condition variable. It lies in shared memory. All zeros means that no thread
/// waits.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(crate) struct WaitList {
    /// One bit for each slot: whether a waiter is in it. Written by the owner of the slot, after it
    /// begins to wait and before it frees the slot; and by the process that reclaims the slot.
    enqueued: [AtomicU64; WORDS],
    /// The last ticket that was given out.
    last_ticket: AtomicU32,
    _unused: AtomicU32,
    crowd: Waiters,
    slots: [Slot; SLOTS],
}

/// The slot of one waiter.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Slot {
    /// What the owner sleeps on.
    state: Futex,
    /// The order in which waiters came, modulo 2^32. It means nothing unless a waiter waits in the
    /// slot.
    ticket: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<WaitList>() <= 4096);

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The waiter was notified, or it woke up for no reason.
    Notified,
    /// The deadline has passed, and no notification was used up.
    TimedOut,
}

/// A waiter that is on the list. If it is dropped without a sleep, it gives its notification to
/// another.
#[must_use = "dropped, it is off the list"]
pub(crate) struct Enqueued<'a> {
    list: &'a WaitList,
    place: Place<'a>,
}

enum Place<'a> {
    Slot { index: usize, waiting: u32 },
    Crowd(WaitToken<'a>),
}

impl WaitList {
    /// Puts a thread of this member on the list. To be called before the mutex is unlocked: from
    /// then on notifications count.
    pub(crate) fn enqueue(&self, member: u16) -> Enqueued<'_> {
        fault::point();
        let place = match self.claim(member) {
            Some(index) => {
                let (slot, waiting) = (&self.slots[index], state_of(WAITING, member));
                let ticket = self.last_ticket.fetch_add(1, Ordering::Relaxed);
                slot.ticket.store(ticket.wrapping_add(1), Ordering::Relaxed);
                // Release pairs with the load in `oldest`, which reads the ticket.
                slot.state.store(waiting, Ordering::Release);
                fault::point();
                // Release pairs with the load in `occupied`: a thread that sees the bit sees the
                // state.
                self.enqueued[index / 64].fetch_or(1 << (index % 64), Ordering::Release);
                Place::Slot { index, waiting }
            }
            None => Place::Crowd(self.crowd.token()),
        };
        Enqueued { list: self, place }
    }

    /// Claims the first free slot: notifiers look only at slots with a bit, and the fewer cache
    /// lines those take up, the better.
    fn claim(&self, member: u16) -> Option<usize> {
        let claimed = state_of(CLAIMED, member);
        for (word, bits) in self.enqueued.iter().enumerate() {
            let mut free = !bits.load(Ordering::Relaxed);
            while free != 0 {
                let index = word * 64 + free.trailing_zeros() as usize;
                free &= free - 1;
                let Some(slot) = self.slots.get(index) else {
                    break;
                };
                // Acquire pairs with the swap in `leave`: the bit is cleared before it is set
                // again.
                if slot.state.compare_exchange(FREE, claimed).is_ok() {
                    return Some(index);
                }
            }
        }
        None
    }

    /// Returns the slots with a waiter, perhaps one that is about to leave.
    fn occupied(&self) -> impl Iterator<Item = usize> {
        let all = self.enqueued.iter().enumerate().flat_map(|(word, bits)| {
            let mut left = bits.load(Ordering::Acquire);
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                (left != 0).then(|| {
                    left &= left - 1;
                    word * 64 + bit
                })
            })
        });
        all.filter(|index| *index < SLOTS)
    }

    /// Returns the slot whose waiter has waited longest without a notification, and its state.
    fn oldest(&self) -> Option<(usize, u32)> {
        let newest = self.last_ticket.load(Ordering::Relaxed);
        let waiting = self.occupied().filter_map(|index| {
            let slot = &self.slots[index];
            let state = slot.state.load(Ordering::Acquire);
            // Signed: the difference is not negative for a waiter that came after the load above.
            let age = || {
                slot.ticket
                    .load(Ordering::Relaxed)
                    .wrapping_sub(newest)
                    .cast_signed()
            };
            (state & STATE == WAITING).then(|| (age(), index, state))
        });
        let oldest = waiting.min();
        oldest.map(|(_, index, state)| (index, state))
    }

    /// Notifies the waiter that was seen in this slot. Returns false if it has left or was
    /// notified.
    fn grant(&self, index: usize, state: u32) -> bool {
        let granted = state & !STATE | GRANTED;
        // If another waiter of the same member has come to the slot since, that waiter is notified:
        // it waits as well.
        let is_granted = self.slots[index].state.compare_exchange(state, granted);
        is_granted.is_ok()
    }

    /// Notifies one waiter, if there is any: the one that has waited longest.
    pub(crate) fn notify_one(&self) {
        // If a grant fails, the waiter has left or was notified since the look.
        while let Some((index, state)) = self.oldest() {
            if self.grant(index, state) {
                self.slots[index].state.wake(1);
                return;
            }
        }
        // No waiter in a slot is left to notify.
        self.notify_crowd();
    }

    /// Notifies all waiters.
    pub(crate) fn notify_all(&self) {
        for index in self.occupied() {
            let state = self.slots[index].state.load(Ordering::Acquire);
            // If the grant fails, the waiter has left or another thread has notified it. A waiter
            // that took its slot since then came after this call.
            if state & STATE == WAITING && self.grant(index, state) {
                self.slots[index].state.wake(1);
            }
        }
        self.notify_crowd();
    }

    fn notify_crowd(&self) {
        if self.crowd.has_sleepers() {
            self.crowd.notify_all();
        }
    }

    /// Makes a waiter that is on the list, or is about to be, leave its slot. Returns whether it
    /// was notified.
    fn leave(&self, index: usize) -> bool {
        // The bit is cleared first: once the slot is free, the bit is for its next owner to set.
        self.enqueued[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
        self.slots[index].state.swap(FREE) & STATE == GRANTED
    }

    /// Frees the slots of a member that has ended, and notifies all: the dead process may have been
    /// notified in place of another, or been about to notify. Can be done twice.
    pub(crate) fn reclaim(&self, member: u16) {
        for (index, slot) in self.slots.iter().enumerate() {
            let state = slot.state.load(Ordering::Acquire);
            if state != FREE && state == state_of(state & STATE, member) {
                self.leave(index);
            }
        }
        // Done last: what was granted to the dead process until now is granted again.
        self.notify_all();
    }
}

impl Enqueued<'_> {
    /// Sleeps until it is notified or the deadline has passed, and leaves the list. Calls
    /// `poll_for_dead` after each slice of sleep.
    pub(crate) fn sleep(self, deadline: Option<Instant>, poll_for_dead: impl FnMut()) -> Woken {
        match self.place {
            Place::Slot { index, waiting } => {
                self.list.slots[index].sleep(waiting, deadline, poll_for_dead);
                // Also if the deadline has passed: a notification up to here belongs to this
                // waiter.
                let is_notified = self.list.leave(index);
                mem::forget(self);
                if is_notified {
                    Woken::Notified
                } else {
                    Woken::TimedOut
                }
            }
            Place::Crowd(ref token) => sleep_in_crowd(token, deadline, poll_for_dead),
        }
    }
}

impl Drop for Enqueued<'_> {
    fn drop(&mut self) {
        if let Place::Slot { index, .. } = self.place
            && self.list.leave(index)
        {
            // No caller has heard of the notification, so it goes to another waiter.
            self.list.notify_one();
        }
    }
}

impl Slot {
    /// Returns when the slot has been granted or the deadline has passed.
    fn sleep(&self, waiting: u32, deadline: Option<Instant>, mut poll_for_dead: impl FnMut()) {
        // Acquire pairs with the exchange in `grant`.
        let is_granted = || (self.state.load(Ordering::Acquire) != waiting).then_some(());
        if is_granted()
            .or_else(|| spin(deadline, is_granted))
            .is_some()
        {
            return;
        }
        let mut slices = Slices::new(deadline);
        let mut is_first = true;
        loop {
            let slice = slices.next();
            // In models the first slice may end at any time, and the others never do.
            let may_end = slice.is_last || mem::take(&mut is_first);
            let wake = self.state.sleep(waiting, slice.end, may_end);
            // The state says whether the slot was granted. A notifier of the slot's previous owner
            // may wake this waiter for nothing, if its wake-up is late.
            if is_granted().is_some() {
                return;
            }
            match wake {
                Wake::TimedOut if slice.is_last => return,
                Wake::TimedOut => poll_for_dead(),
                Wake::Woken => {}
            }
        }
    }
}

/// Sleeps for one slice, or until the crowd is notified.
fn sleep_in_crowd(
    token: &WaitToken<'_>,
    deadline: Option<Instant>,
    mut poll_for_dead: impl FnMut(),
) -> Woken {
    match token.sleep_for(Slice::until(Instant::now() + LONGEST_SLICE, deadline)) {
        Slept::Notified => Woken::Notified,
        Slept::SliceOver => {
            poll_for_dead();
            Woken::Notified
        }
        // A notifier may count this waiter as told already.
        Slept::TimedOut if token.is_notified() => Woken::Notified,
        Slept::TimedOut => Woken::TimedOut,
    }
}
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
