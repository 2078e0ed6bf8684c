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
//! # Lends
//!
//! A call that has workers change an array *lends* it: the caller's entry covers all of it, and its workers make claims
//! under that one, which exclude each other only. To end it, the caller marks the entry as [closing](CLOSING) and waits
//! until no claim under it is left. After that nobody can write in its name, also not a worker that was given its task
//! too late. What lies under a lend is counted in units of the call's choice (elements or tiles), so towards everybody
//! else it covers the whole array, also when the lender has died before its workers.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::os::robust::{Held, RobustMutex};
use crate::shm::kind::{Head, Kind};
use crate::shm::member;
use crate::shm::registry::Place;
use crate::shm::wait::Waiters;

use super::error::ClaimError;

/// How many claims there can be at a time.
pub(super) const ENTRIES: usize = 120;

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

const ONE: u64 = 1 << 24;
const COUNT: u64 = 0xffff_ffff << 24;

/// What a claim is for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Mode {
    Read = 1,
    Write = 2,
    /// To read and write element by element, atomically.
    Atomic = 3,
    /// Lent to workers, which write.
    LendWrite = 4,
    /// Lent to workers, which read.
    LendRead = 5,
    /// A worker's, under a lend.
    SubWrite = 6,
    SubRead = 7,
}

impl Mode {
    fn of(state: u64) -> Option<Self> {
        Some(match state as u8 {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Atomic,
            4 => Self::LendWrite,
            5 => Self::LendRead,
            6 => Self::SubWrite,
            7 => Self::SubRead,
            _ => return None,
        })
    }

    fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::LendRead | Self::SubRead)
    }

    fn is_sub(self) -> bool {
        matches!(self, Self::SubWrite | Self::SubRead)
    }

    fn is_lend(self) -> bool {
        matches!(self, Self::LendWrite | Self::LendRead)
    }

    /// Whether a member's claims of the same elements are one entry.
    fn is_counted(self) -> bool {
        matches!(self, Self::Read | Self::Atomic | Self::SubRead)
    }
}

/// What is claimed, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) member: u16,
    pub(super) mode: Mode,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Of [`Mode::SubWrite`] and [`Mode::SubRead`]: under which lend. Otherwise 0.
    pub(super) lend: u64,
}

impl Terms {
    fn state(&self) -> u64 {
        u64::from(self.member) << 8 | self.mode as u64 | ONE
    }

    fn overlaps(&self, other: &Self) -> bool {
        // An empty range overlaps with nothing.
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// An empty claim is in nobody's way.
    fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether a claim on these terms cannot be beside one on `other`.
    fn clashes(&self, other: &Self) -> bool {
        let both_read = self.mode.only_reads() && other.mode.only_reads();
        match (self.mode.is_sub(), other.mode.is_sub()) {
            _ if both_read => false,
            (true, true) if self.lend == other.lend => self.overlaps(other),
            (true, false) if self.lend == other.lend => false,
            // Somebody else's lend, whose units are not ours: it is taken for all of the array.
            (true, true) => true,
            (true, false) => !other.is_empty(),
            (false, true) => !self.is_empty(),
            (false, false) => {
                let both_atomic = self.mode == Mode::Atomic && other.mode == Mode::Atomic;
                !both_atomic && self.overlaps(other)
            }
        }
    }
}

/// Why a claim was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Clash(Terms),
    Frozen,
    Full,
    /// There is no such lend (any more).
    Closed,
    Unusable(String),
}

impl From<Refusal> for ClaimError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Clash(terms) => Self::Claimed {
                by: member::pid(terms.member).unwrap_or(0),
                range: terms.start as usize..terms.end as usize,
            },
            Refusal::Frozen => Self::Frozen,
            Refusal::Full => Self::TooMany { limit: ENTRIES },
            Refusal::Closed => Self::Unusable {
                reason: "the call that has lent it has ended".to_owned(),
            },
            Refusal::Unusable(reason) => Self::Unusable { reason },
        }
    }
}

/// A claim that was made: the number of its entry. With the terms, it is what is given back.
pub(super) type Number = usize;

impl ArrayHead {
    fn hold(&self) -> Result<Held<'_>, Refusal> {
        // That its last owner died means nothing: the table is whole at every moment.
        let held = self.top.lock.hold();
        held.map_err(|error| Refusal::Unusable(error.to_string()))
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
        let _held = self.hold()?;
        self.claim_held(terms)
    }

    /// Looks whether a claim could be made, and does something in its place. Others wait meanwhile, so it must be short.
    pub(super) fn in_place_of<R>(
        &self,
        terms: &Terms,
        then: impl FnOnce() -> R,
    ) -> Result<R, Refusal> {
        let _held = self.hold()?;
        self.check(terms)?;
        Ok(then())
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
            Some((.., other)) => Err(Refusal::Clash(other)),
            None => Ok(()),
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
            None => return Err(Refusal::Full),
        };
        let entry = &self.entries[number];
        entry.start.store(terms.start, Ordering::Relaxed);
        entry.end.store(terms.end, Ordering::Relaxed);
        entry.lend.store(terms.lend, Ordering::Relaxed);
        // From here on it counts.
        entry.state.store(terms.state(), Ordering::Release);
        Ok(number)
    }

    /// Claims the whole array for a lend; gives the entry and the lend's number.
    pub(super) fn lend(&self, terms: &Terms) -> Result<(Number, u64), Refusal> {
        let _held = self.hold()?;
        // Killed after this, a number is not used.
        let lend = self.top.lends.load(Ordering::Relaxed) + 1;
        self.top.lends.store(lend, Ordering::Relaxed);
        let number = self.claim_held(&Terms { lend, ..*terms })?;
        Ok((number, lend))
    }

    /// Gives back a claim that this process has made on these terms.
    pub(super) fn release(&self, number: Number, terms: &Terms) {
        let Ok(held) = self.hold() else {
            return;
        };
        self.release_held(number, terms);
        drop(held);
        self.top.waiters.notify_all();
    }

    fn release_held(&self, number: Number, terms: &Terms) {
        let Some((_, entry, state, own)) = self.live().find(|(at, ..)| *at == number) else {
            return;
        };
        // Anything else can only come from memory that was written to in error.
        if (own.member, own.mode) == (terms.member, terms.mode) {
            let left = if state & COUNT > ONE { state - ONE } else { 0 };
            entry.state.store(left, Ordering::Release);
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
            let Ok(_held) = self.hold() else {
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
        self.top.waiters.wait(None, is_over, member::patrol);
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
        let done = self.top.waiters.wait(
            deadline,
            || match attempt() {
                Err(refusal) if may_wait(&refusal) => {
                    last = Some(refusal);
                    None
                }
                outcome => Some(outcome),
            },
            member::patrol,
        );
        match (done, last) {
            (Some(outcome), _) => outcome,
            (None, Some(refusal)) => Err(refusal),
            (None, None) => Err(Refusal::Unusable("nobody has looked".to_owned())),
        }
    }

    /// Whether others have claims under this lend, which will end.
    pub(super) fn has_siblings(&self, lend: u64) -> bool {
        self.hold().is_ok_and(|_held| {
            self.live()
                .any(|(.., other)| other.mode.is_sub() && other.lend == lend)
        })
    }

    /// Has nobody write any more, if nobody may right now.
    pub(super) fn freeze(&self, terms: &Terms) -> Result<(), Refusal> {
        let _held = self.hold()?;
        self.check(terms)?;
        self.top.frozen.store(1, Ordering::Release);
        Ok(())
    }

    pub(super) fn is_frozen(&self) -> bool {
        // Pairs with the store in `freeze`.
        self.top.frozen.load(Ordering::Acquire) != 0
    }

    pub(super) fn abandoned(&self) -> u32 {
        self.top.abandoned.load(Ordering::Acquire)
    }

    /// Drops the claims of a member that has ended.
    fn bury(&self, member: u16) {
        let held = match self.hold() {
            Ok(held) => held,
            Err(refusal) => {
                log::error!("claims of a dead process stay: {refusal:?}");
                return;
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
    }
}

/// For [`Kind`]: a member that had a handle has ended.
pub(crate) fn bury(place: &Place, member: u16) {
    if place.len() < size_of::<ArrayHead>() {
        return;
    }
    // SAFETY: the block was made as an array, whose head it has room for.
    #[allow(unsafe_code)]
    let head = unsafe { crate::shm::kind::head::<ArrayHead>(place.start()) };
    head.bury(member);
}

/// Bounds as a range of `0..len`.
pub(super) fn within(
    range: impl std::ops::RangeBounds<usize>,
    len: usize,
) -> Result<Range<usize>, ClaimError> {
    use std::ops::Bound;
    let start = match range.start_bound() {
        Bound::Included(&start) => Some(start),
        Bound::Excluded(&before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.checked_add(1),
        Bound::Excluded(&end) => Some(end),
        Bound::Unbounded => Some(len),
    };
    let range = start.unwrap_or(usize::MAX)..end.unwrap_or(usize::MAX);
    if range.start <= range.end && range.end <= len && start.is_some() && end.is_some() {
        Ok(range)
    } else {
        Err(ClaimError::OutOfBounds { range, len })
    }
}

#[cfg(test)]
mod tests;
