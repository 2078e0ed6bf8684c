//! A claim as seen by the process that made it, and what a fork does to it.
//!
//! A forked child gets copies of everything, also of claims. The copies are not the child's own:
//! when the child drops one, the elements stay claimed. What the child may do with a copy:
//!
//! - of a claim to read: read, after it has claimed the same elements itself, at the first access.
//!   That claim is refused only if another process writes. This can happen if the parent has given
//!   its own claim back, and the fork was not this crate's.
//! - of a claim to write: nothing. Parent and child would write to the same memory at once.
//!
//! Each access through a guard checks that. No check sees a slice that was taken from a guard
//! *before* the fork. Its lifetime does not help: a value that owns guard and slice together (a
//! future that was polled once) can go into the child, while the parent drops its copy, and the
//! claim with it. So a fork keeps the parent's claims to read for as long as the child lives, and a
//! process with claims to write cannot fork: [`fork_guard`].

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ClaimError;
use super::claim_mode::{Mode, Terms};
use super::claims::{ArrayHead, Refusal};
use super::fork_guard::{self, Use};
use crate::memory::member;
use crate::memory::object::Object;
use crate::memory::wait_mode::soon;
use crate::os::fork;

/// A claim, given back when this is dropped.
pub(super) struct Claim<'a> {
    /// A handle of the claim's own. If a guard is leaked and the array is dropped, this process
    /// still holds the block. So the block is visited when this process is reclaimed.
    object: Object<ArrayHead>,
    terms: Terms,
    /// The parts that belong to one process: the fork generation in the upper 32 bits, then the
    /// member, then the entry.
    own: AtomicU64,
    usage: Use,
    array: PhantomData<&'a Object<ArrayHead>>,
}

fn packed(generation: u32, member: u16, number: usize) -> u64 {
    u64::from(generation) << 32 | u64::from(member) << 16 | number as u64
}

impl<'a> Claim<'a> {
    /// Makes a claim. If other claims clash with it and `reclaims` is true, the members that are
    /// dead are reclaimed, and the claim is tried again.
    pub(super) fn new(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        ends: (u64, u64),
        reclaims: bool,
    ) -> Result<Self, Refusal> {
        let usage = match mode {
            Mode::Read | Mode::Atomic => Use::Shared,
            _ => Use::Writing,
        };
        Self::make(object, mode, ends, 0, usage, reclaims)
    }

    /// Makes a claim that the calling thread gives back before it returns.
    pub(super) fn copying(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        ends: (u64, u64),
        lend: u64,
    ) -> Result<Self, Refusal> {
        Self::make(object, mode, ends, lend, Use::Copying, true)
    }

    fn make(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        (start, end): (u64, u64),
        lend: u64,
        usage: Use,
        reclaims: bool,
    ) -> Result<Self, Refusal> {
        if !object.reach(|| Some(soon())) {
            return Err(Refusal::Locked(None));
        }
        let terms = Terms {
            member: own_number()?,
            mode,
            start,
            end,
            lend,
        };
        let head = object.head();
        let attempt = || fork_guard::claim(usage, || head.claim(&terms));
        let number = if reclaims {
            despite_the_dead(attempt)?
        } else {
            attempt()?
        };
        Ok(Self {
            object: object.clone(),
            terms,
            own: AtomicU64::new(packed(fork::generation(), terms.member, number)),
            usage,
            array: PhantomData,
        })
    }

    /// Ensures that this process has the claim.
    ///
    /// # Panics
    ///
    /// In a forked child: if this is a claim to write, or if the elements cannot be claimed to
    /// read.
    #[inline]
    pub(super) fn check(&self) {
        let own = self.own.load(Ordering::Acquire);
        if (own >> 32) as u32 != fork::generation() {
            self.claim_after_fork(own);
        }
    }

    #[cold]
    fn claim_after_fork(&self, before: u64) {
        assert!(
            !matches!(self.terms.mode, Mode::Write | Mode::SubWrite),
            "this guard is a copy of that of the process that this one was forked from, which has claimed the elements to \
             write to; claim them here"
        );
        let claimed = own_number().and_then(|member| {
            let terms = Terms {
                member,
                ..self.terms
            };
            let head = self.object.head();
            // An access cannot fail, so it waits as long as the table is locked.
            let attempt =
                || despite_the_dead(|| fork_guard::claim(self.usage, || head.claim(&terms)));
            let number = head.wait(None, attempt, Refusal::is_locked)?;
            Ok((terms, number))
        });
        match claimed {
            Ok((terms, number)) => {
                let own = packed(fork::generation(), terms.member, number);
                let exchanged =
                    self.own
                        .compare_exchange(before, own, Ordering::AcqRel, Ordering::Acquire);
                if exchanged.is_err() {
                    // Another thread of this process claimed first.
                    give_back(&self.object, number, terms);
                    fork_guard::gave_back(self.usage);
                }
            }
            Err(refusal) => panic!(
                "a guard that this process has from the one it was forked from: {}",
                ClaimError::from(refusal)
            ),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let own = *self.own.get_mut();
        if (own >> 32) as u32 != fork::generation() {
            // This is a copy of another process's claim.
            return;
        }
        let terms = Terms {
            member: (own >> 16) as u16,
            ..self.terms
        };
        let number = usize::from(own as u16);
        give_back(&self.object, number, terms);
        fork_guard::gave_back(self.usage);
    }
}

/// Gives back a claim of this process.
fn give_back(object: &Object<ArrayHead>, number: usize, terms: Terms) {
    object.now_or_later(move |head, limit| head.release(number, &terms, limit));
}

/// A whole array lent to the workers of a call.
pub(crate) struct Lend<'a> {
    object: &'a Object<ArrayHead>,
    number: usize,
    id: u64,
    generation: u32,
}

impl<'a> Lend<'a> {
    pub(super) fn new(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        len: u64,
    ) -> Result<Self, Refusal> {
        let terms = Terms {
            member: own_number()?,
            mode,
            start: 0,
            end: len,
            lend: 0,
        };
        let head = object.head();
        // The call that lends has no timeout.
        let attempt = || despite_the_dead(|| head.lend(&terms));
        let (number, id) = head.wait(None, attempt, Refusal::is_locked)?;
        Ok(Self {
            object,
            number,
            id,
            generation: fork::generation(),
        })
    }

    /// Returns the number of the lend, under which workers make their claims.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Lend<'_> {
    /// Waits until no worker has a claim under it any more.
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.object.head().end_lend(self.number, self.id);
        }
    }
}

pub(super) fn own_number() -> Result<u16, Refusal> {
    Ok(member::own_by(|| Some(soon()))?)
}

/// Stands for all members: no member has this number.
const EVERY: u16 = u16::MAX;

/// Makes an attempt, and another one for each claim that is in the way. Before that it reclaims the
/// member that has the claim, if it is dead. If the table is full, reclaims all that are dead.
pub(super) fn despite_the_dead<T>(
    mut attempt: impl FnMut() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut outcome = attempt();
    if matches!(outcome, Err(Refusal::Clash(_) | Refusal::Full { .. })) {
        fork_guard::let_go_for_the_dead();
    }
    // The members that were in the way. A claim of one that is met again has not gone.
    let mut met = Vec::new();
    loop {
        match &outcome {
            // The member that is in the way is known, so the size of the family costs nothing.
            Err(Refusal::Clash(other)) if !met.contains(&other.member) => {
                member::reclaim_if_over(other.member, soon());
                met.push(other.member);
                outcome = attempt();
            }
            Err(Refusal::Full { .. }) if !met.contains(&EVERY) => {
                member::reclaim_dead_by(soon());
                met.push(EVERY);
                outcome = attempt();
            }
            _ => return outcome,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Makes attempts that are refused like this, one after the other, and then succeed. Returns
    /// how many are made.
    fn attempts(refused: Vec<Refusal>) -> Result<usize, Refusal> {
        let mut refused = refused.into_iter();
        let mut count = 0;
        despite_the_dead(|| {
            count += 1;
            refused.next().map_or(Ok(count), Err)
        })
    }

    /// Each claim that is in the way has a member of its own, and each of these may be dead.
    #[test]
    fn b142_claims_of_several_members_are_met_one_after_the_other() {
        let own = own_number().unwrap();
        let clash = |member: u16| {
            Refusal::Clash(Terms {
                member,
                mode: Mode::Write,
                start: 0,
                end: 1,
                lend: 0,
            })
        };
        let full = || Refusal::Full {
            is_of_siblings: false,
        };
        assert_eq!(attempts(vec![]), Ok(1));
        assert_eq!(attempts(vec![clash(own), clash(3), clash(5)]), Ok(4));
        assert_eq!(attempts(vec![full(), clash(own)]), Ok(3));
        // Reclaimed once, and still in the way: it lives.
        let lives = attempts(vec![clash(3), clash(own), clash(3)]);
        assert_eq!(lives, Err(clash(3)));
        assert_eq!(attempts(vec![full(), full()]), Err(full()));
    }
}
