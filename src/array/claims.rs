//! The claims on an array: who may read and write which elements right now.
//!
//! A handle can be copied to any process of the family, so having one proves nothing. What proves something is a claim: an
//! entry in a table at the head of the array, which says that this process may use these elements in this way, and that
//! was not made if it does not go together with those that were there. A slice exists only as long as its claim.
//!
//! Every change is made under one robust mutex. It consists of stores to an entry that does not count, and then of one
//! store to [`Entry::state`], by which it counts. So the table is whole at every moment, and the death of who holds the
//! mutex costs nothing:
//!
//! | killed | what is left |
//! |---|---|
//! | before the store to `state` | what was: the entry is as free, or as taken, as before |
//! | right after it | a claim of a dead process, which goes with its burial |
//! | before the notification | those who wait look by themselves, within 100 ms |
//! | at its burial | whoever buries next does the rest; an entry cleared twice is clear |
//!
//! A process may also be stopped with the mutex, for as long as it likes. So the mutex is waited
//! for until a deadline, and a claim that cannot be looked at is refused ([`Refusal::Locked`]).
//! Only the end of a lend waits however long it takes.
//!
//! # Lends
//!
//! A call that has workers change an array *lends* it: the caller's entry covers all of it, and its workers make claims
//! under that one, which exclude each other only. To end it, the caller marks the entry as [closing](CLOSING) and waits
//! until no claim under it is left. After that nobody can write in its name, also not a worker that was given its task
//! too late. What lies under a lend is counted in units of the call's choice (elements or tiles), so towards everybody
//! else it covers the whole array, also when the lender has died before its workers.

use std::cell::Cell;
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

/// How many claims there can be at a time.
pub(super) const ENTRIES: usize = 120;

/// How long a waiter leaves a table alone after a look that took long.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A look that takes longer is not repeated at once.
const LONG_LOOK: Duration = Duration::from_millis(1);

/// At the start of an array: one page, so that the elements of a large one begin with a page.
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
    /// Those who wait for a claim to end.
    waiters: Waiters,
    /// Elements, for those of no size: what cannot be told from the memory.
    pub(super) len: AtomicU64,
    /// The number of the last lend.
    lends: AtomicU64,
    /// 1: nobody may write any more. It never goes back.
    frozen: AtomicU32,
    /// How many processes ended with a claim to write.
    abandoned: AtomicU32,
    /// All entries from here on are free.
    used: AtomicU32,
    /// 1: who holds the lock writes to elements. Found by the next one to hold it, it tells that they may be half-written.
    writing: AtomicU32,
}

// SAFETY: atomics, and a lock that `SharedArray` initialises.
#[allow(unsafe_code)]
unsafe impl Head for ArrayHead {
    const KIND: Kind = Kind::Array;
}

/// One claim. Its other words count only while `state` is not 0.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    /// 0: free. Bits 0 to 7: a [`Mode`]; 8 to 23: the member; 24 to 55: how many such claims it has, from 1 on; 63:
    /// [`CLOSING`].
    state: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// The lend that it is, or that it is made under; 0: none.
    lend: AtomicU64,
}

/// Nothing new is claimed under this lend.
const CLOSING: u64 = 1 << 63;

/// Why a claim was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Clash(Terms),
    Frozen,
    /// With what was there at that very moment, because siblings end at any time.
    Full {
        /// It is a claim under a lend, and there are others under it, which will end.
        is_of_siblings: bool,
    },
    /// There is no such lend (any more).
    Closed,
    /// The table is locked by a process that does not go on.
    Locked(Option<u32>),
    Unusable(String),
}

impl Refusal {
    pub(super) fn is_locked(&self) -> bool {
        matches!(self, Self::Locked(_))
    }
}

impl From<Refusal> for ClaimError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Clash(terms) => Self::Claimed {
                by: member::pid(terms.member).unwrap_or(0),
                range: terms.start as usize..terms.end as usize,
            },
            Refusal::Frozen => Self::Frozen,
            Refusal::Full { .. } => Self::TooMany { limit: ENTRIES },
            Refusal::Closed => Self::Unusable {
                reason: "the call that has lent it has ended".to_owned(),
            },
            Refusal::Locked(by) => Self::Busy { by },
            Refusal::Unusable(reason) => Self::Unusable { reason },
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

/// A claim that was made: the number of its entry. With the terms, it is what is given back.
pub(super) type Number = usize;

impl ArrayHead {
    /// Takes the lock, at most until the deadline that `limit` gives.
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

    /// The same for a look that is not waited for.
    fn hold_soon(&self) -> Result<Held<'_>, Refusal> {
        self.hold(|| Some(soon()))
    }

    /// That its last owner died means nothing to the table, which is whole at every moment; but it may have been writing.
    fn note_torn(&self, held: &Held<'_>) {
        if held.owner_died() && self.top.writing.load(Ordering::Relaxed) != 0 {
            // First: who is killed between the two counts it again, which does no harm.
            self.top.abandoned.fetch_add(1, Ordering::AcqRel);
            self.top.writing.store(0, Ordering::Relaxed);
        }
    }

    fn used(&self) -> &[Entry] {
        let used = self.top.used.load(Ordering::Relaxed) as usize;
        &self.entries[..used.min(ENTRIES)]
    }

    /// The claims that there are. To be called under the lock.
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

    /// Makes a claim, if it goes together with those there are.
    pub(super) fn claim(&self, terms: &Terms) -> Result<Number, Refusal> {
        let _held = self.hold_soon()?;
        self.claim_held(terms)
    }

    /// Looks whether a claim could be made, and does something in its place. Others wait meanwhile, so it must be short.
    pub(super) fn in_place_of<R>(
        &self,
        terms: &Terms,
        then: impl FnOnce() -> R,
    ) -> Result<R, Refusal> {
        let _held = self.hold_soon()?;
        self.check(terms)?;
        Ok(then())
    }

    /// [`in_place_of`](Self::in_place_of) for what writes: if it is killed half-way, [`abandoned`](Self::abandoned) counts it.
    pub(super) fn write_in_place_of(
        &self,
        terms: &Terms,
        write: impl FnOnce(),
    ) -> Result<(), Refusal> {
        self.in_place_of(terms, || {
            self.top.writing.store(1, Ordering::Relaxed);
            // Killed at any instruction after this, `writing` is 1 in memory: what a process has stored when it is killed is
            // seen by all, so only the compiler must keep to the order.
            compiler_fence(Ordering::SeqCst);
            fault::point();
            write();
            fault::point();
            compiler_fence(Ordering::SeqCst);
            self.top.writing.store(0, Ordering::Relaxed);
        })
    }

    fn check(&self, terms: &Terms) -> Result<(), Refusal> {
        if !terms.mode.only_reads() && self.is_frozen() {
            return Err(Refusal::Frozen);
        }
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

    /// The same with a range that means something to everybody. What a worker has is counted in units of its call: for
    /// others it is what the call was lent.
    fn in_elements(&self, terms: Terms) -> Terms {
        if !terms.mode.is_sub() {
            return terms;
        }
        let is_lend = |lend: &Terms| lend.mode.is_lend() && lend.lend == terms.lend;
        let lend = self.live().map(|(.., lend)| lend).find(is_lend);
        // That of a lender who has died was all of the array.
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
                entry.state.store(state + ONE, Ordering::Release);
                return Ok(number);
            }
        }
        let is_free = |entry: &Entry| Mode::of(entry.state.load(Ordering::Acquire)).is_none();
        let number = match self.used().iter().position(is_free) {
            Some(number) => number,
            None if self.used().len() < ENTRIES => {
                let number = self.used().len();
                // Before the entry counts: killed in between, the table has one more free entry to look at.
                self.top.used.store(number as u32 + 1, Ordering::Relaxed);
                number
            }
            None => {
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
        // From here on it counts.
        fault::point();
        entry.state.store(terms.state(), Ordering::Release);
        fault::point();
        Ok(number)
    }

    /// Claims the whole array for a lend; gives the entry and the lend's number.
    pub(super) fn lend(&self, terms: &Terms) -> Result<(Number, u64), Refusal> {
        let _held = self.hold_soon()?;
        // Killed after this, a number is not used.
        let lend = self.top.lends.load(Ordering::Relaxed) + 1;
        self.top.lends.store(lend, Ordering::Relaxed);
        let number = self.claim_held(&Terms { lend, ..*terms })?;
        Ok((number, lend))
    }

    /// Gives back a claim that this process has made on these terms. False if the lock was not to
    /// be had until the deadline.
    pub(super) fn release(&self, number: Number, terms: &Terms, limit: Limit) -> bool {
        let held = match self.hold(|| limit.at()) {
            Ok(held) => held,
            // Of a table that is out of order, no process can claim anything any more.
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
        // Anything else can only come from memory that was written to in error.
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

    /// Ends a lend: returns when no claim under it is left, and none can be made.
    pub(super) fn end_lend(&self, number: Number, lend: u64) {
        let is_over = || {
            // However long it takes: a worker that has a claim may write until it has given it
            // back.
            let Ok(_held) = self.hold(|| None) else {
                // Nobody can claim anything any more.
                return Some(());
            };
            let Some((_, entry, state, _)) = self.live().find(|(at, ..)| *at == number) else {
                return Some(());
            };
            let is_under = |terms: &Terms| terms.mode.is_sub() && terms.lend == lend;
            if self.live().any(|(.., terms)| is_under(&terms)) {
                entry.state.store(state | CLOSING, Ordering::Release);
                return None;
            }
            entry.state.store(0, Ordering::Release);
            self.shrink();
            Some(())
        };
        self.top.waiters.wait(None, is_over, member::poll_for_dead);
        self.top.waiters.notify_all();
    }

    /// Waits until `attempt` is not refused because of other claims, or until the deadline: the last refusal then.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Result<T, Refusal>,
        may_wait: impl Fn(&Refusal) -> bool,
    ) -> Result<T, Refusal> {
        let mut last = None;
        // A look takes long if the table is locked, or the dead are to be reclaimed and another
        // process does not go on. Then the next one is some time later.
        let not_before = Cell::new(None);
        // Set when a look was due before that time. It may be due to a notification, which comes
        // once, so the sleep ends when the look may be made.
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
            (None, None) => Err(Refusal::Unusable("nobody has looked".to_owned())),
        }
    }

    /// Has nobody write any more, if nobody may right now.
    pub(super) fn freeze(&self, terms: &Terms) -> Result<(), Refusal> {
        let held = self.hold_soon()?;
        self.check(terms)?;
        self.top.frozen.store(1, Ordering::Release);
        drop(held);
        // Who waits to write waits for nothing from here on.
        self.top.waiters.notify_all();
        Ok(())
    }

    pub(super) fn is_frozen(&self) -> bool {
        // Pairs with the store in `freeze`.
        self.top.frozen.load(Ordering::Acquire) != 0
    }

    pub(super) fn abandoned(&self) -> u32 {
        // A process that was killed with the lock may not have been found yet. One that is stopped
        // with it is not dead.
        drop(self.hold_soon());
        self.top.abandoned.load(Ordering::Acquire)
    }

    /// Drops the claims of a member that has ended. False if the lock was not to be had until the
    /// deadline.
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
                // First: who is killed between the two counts it again, which does no harm.
                self.top.abandoned.fetch_add(1, Ordering::AcqRel);
            }
            entry.state.store(0, Ordering::Release);
        }
        self.shrink();
        drop(held);
        self.top.waiters.notify_all();
        true
    }
}

/// A claim of this process once more, for as long as this lives. The array must be held for longer.
#[derive(Debug)]
pub(super) struct Duplicate {
    place: Place,
    number: Number,
    terms: Terms,
    /// [`fork::generation`] of the process whose it is.
    pub(super) generation: u32,
}

impl Duplicate {
    /// Gives it back. False if the array's lock was not to be had until the deadline.
    pub(super) fn release(&self, limit: Limit) -> bool {
        head_of(&self.place).release(self.number, &self.terms, limit)
    }
}

/// Makes all claims of the member to read, or for atomics, once more.
///
/// # Errors
///
/// That the array's lock was not to be had until the deadline.
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
        // Nobody can claim anything any more.
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

/// The head of a block that was made as an array, and is as long at least.
fn head_of(place: &Place) -> &ArrayHead {
    // SAFETY: the block was made as an array, whose head it has room for; it is mapped as long as there is a `place`.
    #[allow(unsafe_code)]
    unsafe {
        crate::memory::kind::head(place.start())
    }
}

/// For [`Kind`]: a member that had a handle has ended.
pub(crate) fn reclaim(place: &Place, member: u16, deadline: Instant) -> bool {
    place.len() < size_of::<ArrayHead>() || head_of(place).reclaim(member, deadline)
}

#[cfg(test)]
mod tests;
