//! The claims on an array: which process may read and write which elements right now.
//!
//! A handle can be copied to any process of the family, so having a handle proves nothing. A claim
//! proves something. It is an entry in a table at the head of the array. The entry says that this
//! process may use these elements in this way, and it is made only if it is compatible with the
//! existing entries. A slice exists only as long as its claim.
//!
//! Every change is made under one robust mutex. It consists of stores to an entry that does not
//! count yet, and then of one store to [`Entry::state`], which makes the entry count. So the table
//! is whole at every moment, and the death of the process that holds the mutex costs nothing:
//!
//! | the process is killed | what is left |
//! |---|---|
//! | before the store to `state` | the earlier state: the entry is free or taken, as before |
//! | right after it | a claim of a dead process, which is dropped when the process is reclaimed |
//! | before the notification | the threads that wait look by themselves, within 100 ms |
//! | while it reclaims a dead process | the next process that reclaims does the rest |
//!
//! An entry may be cleared twice then. That does no harm: it is clear after the first time.
//!
//! A process may also be stopped while it holds the mutex, for any time. So the other processes
//! wait for the mutex until a deadline, and a claim that cannot be checked by then is refused
//! ([`Refusal::Locked`]). Only the end of a lend waits without a deadline.
//!
//! # Lends
//!
//! A call that has workers change an array *lends* it: the caller's entry covers the whole array,
//! and its workers make claims under that entry. These exclude only each other. To end the lend,
//! the caller marks its entry as [closing](CLOSING) and waits until no claim under it is left.
//! After that no worker can write in its name, not even a worker that gets its task too late. The
//! claims under a lend are counted in units that the call chooses (elements or tiles). So towards
//! all other claims each of them covers the whole array, also when the lender has died before its
//! workers.

use std::cell::Cell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::time::{Duration, Instant};

use crate::memory::ShareError;
use crate::memory::deferred::Limit;
use crate::memory::kind::{Head, Kind};
use crate::memory::member;
use crate::memory::registry::Place;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::soon;
use crate::os::robust::{Held, LockError, RobustMutex};
use crate::os::{fault, fork};

use super::claim_mode::{COUNT, Mode, ONE, Terms};
use crate::error::ClaimError;

/// The largest number of entries at a time.
pub(super) const ENTRIES: usize = 120;

/// The time for which a waiter leaves a table alone after a look that took long.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A look that takes longer than this is not repeated at once.
const LONG_LOOK: Duration = Duration::from_millis(1);

/// The head of an array: one page, so that the elements of a large array begin with a page.
#[repr(C)]
pub(crate) struct ArrayHead {
    pub(super) top: Top,
    entries: [Entry; ENTRIES],
}

const _: () = assert!(size_of::<ArrayHead>() == 4_096);

#[repr(C, align(256))]
pub(super) struct Top {
    /// Held for every look at the entries.
    pub(super) lock: RobustMutex,
    /// The threads that wait for a claim to end.
    waiters: Waiters,
    /// The number of elements, if these have no size and it cannot be computed from the memory.
    pub(super) len: AtomicU64,
    /// The number of the last lend.
    lends: AtomicU64,
    /// 1: no process may write any more. It never goes back to 0.
    frozen: AtomicU32,
    /// The number of processes that ended with a claim to write.
    poison: AtomicU32,
    /// All entries from here on are free.
    used: AtomicU32,
    /// 1: the holder of the lock is writing to elements. If the next holder finds a 1, those
    /// elements may be half-written.
    writing: AtomicU32,
}

// SAFETY: atomics, and the lock in `LOCKS`.
#[allow(unsafe_code)]
unsafe impl Head for ArrayHead {
    const KIND: Kind = Kind::Array;
    const LOCKS: &'static [usize] = &[offset_of!(Self, top.lock)];
}

/// One claim. Its other words count only while `state` is not 0.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    /// 0: free. Bits 0 to 7: a [`Mode`]; 8 to 23: the member; 24 to 55: the number of such claims
    /// that the member has, from 1 on; 63: [`CLOSING`].
    state: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// The lend that this entry is, or under which it was made; 0: none.
    lend: AtomicU64,
}

/// No new claim is made under this lend.
const CLOSING: u64 = 1 << 63;

/// Why a claim was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Clash(Terms),
    Frozen,
    /// The table has no free entry. The reason is decided under the same lock, because siblings end
    /// at any time.
    Full {
        /// The claim is under a lend, and there are others under the same lend, which will end.
        is_of_siblings: bool,
    },
    /// There is no such lend (any more).
    Closed,
    /// The table is locked by a process that does not continue. Its pid, if known.
    Locked(Option<u32>),
    Unusable(String),
}

impl Refusal {
    pub(super) fn is_locked(&self) -> bool {
        matches!(self, Self::Locked(_))
    }

    /// Returns the error of a call that has waited until its deadline.
    pub(super) fn when_late(self) -> ClaimError {
        match self.into() {
            ClaimError::Claimed { by, range } => ClaimError::TimedOut { by, range },
            error => error,
        }
    }
}

impl From<Refusal> for ClaimError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Clash(terms) => Self::Claimed {
                by: member::pid(terms.member),
                range: terms.start as usize..terms.end as usize,
            },
            Refusal::Frozen => Self::Frozen,
            Refusal::Full { .. } => Self::TooManyClaims { limit: ENTRIES },
            Refusal::Closed => Self::System {
                reason: "the call that has lent it has ended".to_owned(),
            },
            Refusal::Locked(by) => Self::Busy { by },
            Refusal::Unusable(reason) => Self::System { reason },
        }
    }
}

impl From<ShareError> for Refusal {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::Busy { by } => Self::Locked(by),
            error => Self::Unusable(error.to_string()),
        }
    }
}

/// The number of a claim's entry. With the terms, it says which claim to give back.
pub(super) type Number = usize;

impl ArrayHead {
    /// Takes the lock, or gives up at the deadline that `limit` gives.
    fn hold(&self, limit: impl FnOnce() -> Option<Instant>) -> Result<Held<'_>, Refusal> {
        match self.top.lock.hold_with(limit) {
            Ok(held) => {
                self.note_torn(&held);
                Ok(held)
            }
            Err(LockError::Timeout) => Err(Refusal::Locked(self.top.lock.holder())),
            Err(error) => Err(Refusal::Unusable(error.to_string())),
        }
    }

    /// Takes the lock for a look that does not wait long.
    fn hold_soon(&self) -> Result<Held<'_>, Refusal> {
        self.hold(|| Some(soon()))
    }

    /// Counts a death in the middle of a write. The table itself is whole at every moment, but the
    /// last owner of the lock may have died while it was writing elements.
    fn note_torn(&self, held: &Held<'_>) {
        if held.owner_died() && self.top.writing.load(Ordering::Relaxed) != 0 {
            // The count goes first: if this process is killed between the two stores, the next
            // owner counts it again, which does no harm.
            self.top.poison.fetch_add(1, Ordering::AcqRel);
            self.top.writing.store(0, Ordering::Relaxed);
        }
    }

    fn used(&self) -> &[Entry] {
        let used = self.top.used.load(Ordering::Relaxed) as usize;
        &self.entries[..used.min(ENTRIES)]
    }

    /// Returns the claims that exist. To be called under the lock.
    fn live(&self) -> impl Iterator<Item = (Number, &Entry, u64, Terms)> {
        self.used()
            .iter()
            .enumerate()
            .filter_map(|(number, entry)| {
                let state = entry.state.load(Ordering::Acquire);
                let terms = Terms {
                    mode: Mode::of(state)?,
                    member: (state >> 8) as u16,
                    start: entry.start.load(Ordering::Relaxed),
                    end: entry.end.load(Ordering::Relaxed),
                    lend: entry.lend.load(Ordering::Relaxed),
                };
                Some((number, entry, state, terms))
            })
    }

    /// Makes a claim, if it is compatible with the existing ones.
    pub(super) fn claim(&self, terms: &Terms) -> Result<Number, Refusal> {
        let _held = self.hold_soon()?;
        self.claim_held(terms)
    }

    /// Checks whether a claim could be made, and runs `then` in its place. Other threads and
    /// processes wait meanwhile, so `then` must be short.
    pub(super) fn in_place_of<R>(
        &self,
        terms: &Terms,
        then: impl FnOnce() -> R,
    ) -> Result<R, Refusal> {
        let _held = self.hold_soon()?;
        self.check(terms)?;
        Ok(then())
    }

    /// Works like [`in_place_of`](Self::in_place_of), for `then` that writes: if this process is
    /// killed half-way, [`poison`](Self::poison) counts it.
    pub(super) fn write_in_place_of(
        &self,
        terms: &Terms,
        write: impl FnOnce(),
    ) -> Result<(), Refusal> {
        self.in_place_of(terms, || {
            self.top.writing.store(1, Ordering::Relaxed);
            // If this process is killed at any instruction after this, `writing` is 1 in memory.
            // All processes see what a process had stored when it was killed, so only the compiler
            // must keep to the order.
            compiler_fence(Ordering::SeqCst);
            fault::point();
            write();
            fault::point();
            compiler_fence(Ordering::SeqCst);
            self.top.writing.store(0, Ordering::Relaxed);
        })
    }

    fn check(&self, terms: &Terms) -> Result<(), Refusal> {
        // Only a claim to read is possible on a frozen array.
        if !terms.mode.only_reads() && self.is_frozen() {
            return Err(Refusal::Frozen);
        }
        // A worker's claim needs its lend to be in the table and not closing.
        if terms.mode.is_sub() {
            let is_open = |(_, _, state, lend): (_, _, u64, Terms)| {
                let is_for_it = match terms.mode {
                    Mode::SubWrite => lend.mode == Mode::LendWrite,
                    _ => lend.mode.is_lend(),
                };
                is_for_it && lend.lend == terms.lend && state & CLOSING == 0
            };
            if !self.live().any(is_open) {
                return Err(Refusal::Closed);
            }
        }
        match self.live().find(|(.., other)| terms.clashes(other)) {
            Some((.., other)) => Err(Refusal::Clash(self.in_elements(other))),
            None => Ok(()),
        }
    }

    /// Returns the same terms with a range that has a meaning for all processes. A worker's claim
    /// is counted in units of its call: for other processes its range is that of the call's lend.
    fn in_elements(&self, terms: Terms) -> Terms {
        if !terms.mode.is_sub() {
            return terms;
        }
        let is_lend = |lend: &Terms| lend.mode.is_lend() && lend.lend == terms.lend;
        let lend = self.live().map(|(.., lend)| lend).find(is_lend);
        // The lend of a lender that has died covered the whole array.
        let (start, end) = lend.map_or_else(
            || (0, self.top.len.load(Ordering::Relaxed)),
            |lend| (lend.start, lend.end),
        );
        Terms {
            start,
            end,
            ..terms
        }
    }

    fn claim_held(&self, terms: &Terms) -> Result<Number, Refusal> {
        self.check(terms)?;
        if terms.mode.is_counted() {
            let same = self.live().find(|(.., other)| terms == other);
            if let Some((number, entry, state, _)) = same
                && state & COUNT != COUNT
            {
                // The member has the same claim already: its entry counts one more.
                entry.state.store(state + ONE, Ordering::Release);
                return Ok(number);
            }
        }
        let is_free = |entry: &Entry| Mode::of(entry.state.load(Ordering::Acquire)).is_none();
        let number = match self.used().iter().position(is_free) {
            Some(number) => number,
            None if self.used().len() < ENTRIES => {
                let number = self.used().len();
                // This comes before the entry counts: if this process is killed in between, the
                // table has one more free entry to look at.
                self.top.used.store(number as u32 + 1, Ordering::Relaxed);
                number
            }
            None => {
                // All entries are taken.
                let is_sibling = |other: &Terms| other.mode.is_sub() && other.lend == terms.lend;
                let has_siblings = self.live().any(|(.., other)| is_sibling(&other));
                return Err(Refusal::Full {
                    is_of_siblings: terms.mode.is_sub() && has_siblings,
                });
            }
        };
        let entry = &self.entries[number];
        fault::point();
        entry.start.store(terms.start, Ordering::Relaxed);
        entry.end.store(terms.end, Ordering::Relaxed);
        entry.lend.store(terms.lend, Ordering::Relaxed);
        // From here on the entry counts.
        fault::point();
        entry.state.store(terms.state(), Ordering::Release);
        fault::point();
        Ok(number)
    }

    /// Claims the whole array for a lend. Returns the entry and the lend's number.
    pub(super) fn lend(&self, terms: &Terms) -> Result<(Number, u64), Refusal> {
        let _held = self.hold_soon()?;
        // If this process is killed after this, a number stays unused.
        let lend = self.top.lends.load(Ordering::Relaxed) + 1;
        self.top.lends.store(lend, Ordering::Relaxed);
        let number = self.claim_held(&Terms { lend, ..*terms })?;
        Ok((number, lend))
    }

    /// Gives back a claim that this process has made on these terms. Returns false if the lock
    /// could not be taken before the deadline.
    pub(super) fn release(&self, number: Number, terms: &Terms, limit: Limit) -> bool {
        let held = match self.hold(|| limit.at()) {
            Ok(held) => held,
            // On a table that is out of order no process can claim anything any more, so there is
            // nothing to give back.
            Err(refusal) => return !matches!(refusal, Refusal::Locked(_)),
        };
        self.release_held(number, terms);
        fault::point();
        drop(held);
        fault::point();
        self.top.waiters.notify_all();
        true
    }

    fn release_held(&self, number: Number, terms: &Terms) {
        let Some((_, entry, state, own)) = self.live().find(|(at, ..)| *at == number) else {
            return;
        };
        // A difference can only come from memory that was written over in error.
        if (own.member, own.mode) == (terms.member, terms.mode) {
            let left = if state & COUNT > ONE { state - ONE } else { 0 };
            fault::point();
            entry.state.store(left, Ordering::Release);
            fault::point();
            self.shrink();
        }
    }

    fn shrink(&self) {
        let last = self
            .used()
            .iter()
            .rposition(|entry| entry.state.load(Ordering::Relaxed) != 0);
        let used = last.map_or(0, |last| last as u32 + 1);
        self.top.used.store(used, Ordering::Relaxed);
    }

    /// Ends a lend. Returns when no claim under it is left, and none can be made.
    pub(super) fn end_lend(&self, number: Number, lend: u64) {
        let is_over = || {
            // This has no deadline: a worker that has a claim may write until it has given it back.
            let Ok(_held) = self.hold(|| None) else {
                // The lock is unusable, so no process can claim anything any more.
                return Some(());
            };
            let Some((_, entry, state, _)) = self.live().find(|(at, ..)| *at == number) else {
                // The entry has gone already.
                return Some(());
            };
            let is_under = |terms: &Terms| terms.mode.is_sub() && terms.lend == lend;
            if self.live().any(|(.., terms)| is_under(&terms)) {
                // Workers still have claims under this lend. No new claim is made from here on.
                entry.state.store(state | CLOSING, Ordering::Release);
                return None;
            }
            // No claim is left under the lend.
            entry.state.store(0, Ordering::Release);
            self.shrink();
            Some(())
        };
        self.top.waiters.wait(None, is_over, member::poll_for_dead);
        self.top.waiters.notify_all();
    }

    /// Waits until `attempt` is not refused because of other claims. At the deadline returns the
    /// last refusal.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Result<T, Refusal>,
        may_wait: impl Fn(&Refusal) -> bool,
    ) -> Result<T, Refusal> {
        let mut last = None;
        // A look takes long if the table is locked, or if dead processes are to be reclaimed and
        // another process does not continue. Then the next look comes some time later.
        let not_before = Cell::new(None);
        // Set when a look was due before that time. The reason may be a notification, which comes
        // only once, so the sleep ends when the look may be made.
        let put_off = Cell::new(None);
        let look = || {
            if not_before.get().is_some_and(|time| Instant::now() < time) {
                put_off.set(not_before.get());
                return None;
            }
            put_off.set(None);
            let start = Instant::now();
            match attempt() {
                Err(refusal) if may_wait(&refusal) => {
                    let end = Instant::now();
                    let took_long = refusal.is_locked() || end.duration_since(start) > LONG_LOOK;
                    not_before.set(took_long.then(|| end + BETWEEN_LOOKS));
                    last = Some(refusal);
                    None
                }
                outcome => Some(outcome),
            }
        };
        let poll_for_dead = || {
            member::poll_for_dead();
            not_before.set(None);
        };
        let waiters = &self.top.waiters;
        let done = waiters.wait_paced(deadline, look, poll_for_dead, || put_off.get());
        match (done, last) {
            (Some(outcome), _) => outcome,
            (None, Some(refusal)) => Err(refusal),
            (None, None) => Err(Refusal::Unusable("it was not looked at".to_owned())),
        }
    }

    /// Freezes the array: no process can write to it from here on. Fails if there is a claim to
    /// write, or for atomics, now.
    pub(super) fn freeze(&self, terms: &Terms) -> Result<(), Refusal> {
        let held = self.hold_soon()?;
        self.check(terms)?;
        self.top.frozen.store(1, Ordering::Release);
        drop(held);
        // A thread that waits to write can never succeed from here on.
        self.top.waiters.notify_all();
        Ok(())
    }

    pub(super) fn is_frozen(&self) -> bool {
        // Pairs with the store in `freeze`.
        self.top.frozen.load(Ordering::Acquire) != 0
    }

    pub(super) fn poison(&self) -> u32 {
        // A process that was killed while it held the lock may not have been found yet: taking the
        // lock finds it. A process that is stopped with the lock is not dead.
        drop(self.hold_soon());
        self.top.poison.load(Ordering::Acquire)
    }

    /// Sets the count of [`poison`](Self::poison) to zero. A death that is found later counts.
    pub(super) fn clear_poison(&self) {
        // Under the lock, so that no death is counted between the look and this store. If a process
        // is stopped with the lock, the store is made without it.
        let held = self.hold_soon();
        self.top.poison.store(0, Ordering::Release);
        drop(held);
    }

    /// Drops the claims of a member that has ended. Returns false if the lock could not be taken
    /// before the deadline.
    fn reclaim(&self, member: u16, deadline: Instant) -> bool {
        let held = match self.hold(|| Some(deadline)) {
            Ok(held) => held,
            Err(Refusal::Locked(_)) => return false,
            Err(refusal) => {
                let error = ClaimError::from(refusal);
                log::error!("claims of a dead process stay: {error}");
                return true;
            }
        };
        for (_, entry, _, terms) in self.live().filter(|(.., terms)| terms.member == member) {
            if terms.mode == Mode::Write && !terms.is_empty() {
                // The count goes first: if this process is killed between the two stores, the next
                // one counts it again, which does no harm.
                self.top.poison.fetch_add(1, Ordering::AcqRel);
            }
            entry.state.store(0, Ordering::Release);
        }
        self.shrink();
        drop(held);
        self.top.waiters.notify_all();
        true
    }
}

/// A second count of a claim of this process, for as long as this lives. The array must be held for
/// longer.
#[derive(Debug)]
pub(super) struct Duplicate {
    place: Place,
    number: Number,
    terms: Terms,
    /// The [`fork::generation`] of the process that made it.
    pub(super) generation: u32,
}

impl Duplicate {
    /// Gives it back. Returns false if the array's lock could not be taken before the deadline.
    pub(super) fn release(&self, limit: Limit) -> bool {
        head_of(&self.place).release(self.number, &self.terms, limit)
    }
}

/// Counts all claims of the member to read, or for atomics, once more.
///
/// # Errors
///
/// If the array's lock could not be taken before the deadline.
pub(super) fn duplicate(
    place: &Place,
    member: u16,
    deadline: Instant,
    into: &mut Vec<Duplicate>,
) -> Result<(), ClaimError> {
    if place.len() < size_of::<ArrayHead>() {
        return Ok(());
    }
    let head = head_of(place);
    let _lock = match head.hold(|| Some(deadline)) {
        Ok(lock) => lock,
        Err(refusal @ Refusal::Locked(_)) => return Err(refusal.into()),
        // The lock is unusable, so no process can claim anything any more.
        Err(_) => return Ok(()),
    };
    for (number, entry, state, terms) in head.live() {
        let is_shared = matches!(terms.mode, Mode::Read | Mode::Atomic);
        if terms.member == member && is_shared && state & COUNT != COUNT {
            entry.state.store(state + ONE, Ordering::Release);
            into.push(Duplicate {
                place: place.clone(),
                number,
                terms,
                generation: fork::generation(),
            });
        }
    }
    Ok(())
}

/// Returns the head of a block that was made as an array and is at least as long as the head.
fn head_of(place: &Place) -> &ArrayHead {
    // SAFETY: the block was made as an array, and it has room for the head; it is mapped as long as
    // there is a `place`.
    #[allow(unsafe_code)]
    unsafe {
        crate::memory::kind::head(place.start())
    }
}

/// Drops the claims of a member that had a handle and has ended, for [`Kind`].
pub(crate) fn reclaim(place: &Place, member: u16, deadline: Instant) -> bool {
    place.len() < size_of::<ArrayHead>() || head_of(place).reclaim(member, deadline)
}

#[cfg(test)]
mod tests;
