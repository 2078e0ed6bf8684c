//! The processes of a family: who they are, and what becomes of what they held when they end.
//!
//! A process becomes a member when it first has to do with a shared object, and holds blocks under its number. When it
//! has ended, somebody buries it: each object that it held is told, which gives back its permits, breaks its barriers and so
//! on ([`Kind::reclaim`](super::kind::Kind)), its blocks are let go of, and its number is free.
//!
//! Who buries? Whoever waits for the process anyhow: a pool's supervisor, or the parent when it looks at a child. And so
//! that it does not matter who dies with it: everybody who waits for a shared object looks around now and then
//! ([`poll_for_dead`]), all of them together twenty times a second. A mutex needs none of that: the kernel itself tells the next
//! owner.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::deferred::{self, Limit};
use super::error::ShareError;
use super::family::{self, Family};
use super::registry;
use super::slot::{Life, Slot};
use super::wait_mode::BRIEF;
use crate::os::exit::{self, Turn};
use crate::os::robust::{Held, LockError};
use crate::os::{clock, fault, fork, life};

pub(crate) use super::slot::{End, MEMBERS};

/// How often those who wait look around, in all.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// How many members are looked at each time. To look at one takes some 10 µs.
const BEAT: usize = 32;

/// This process's number, and the [`fork::generation`] that it is good for, from 1 on; 0: none yet.
static OWN: AtomicU64 = AtomicU64::new(0);

/// This process's number. It becomes a member if it is none, and waits for the ledger for
/// [`LEDGER_TIME`] then.
pub(crate) fn own() -> Result<u16, ShareError> {
    match known() {
        Some(number) => Ok(number),
        None => enlist(ledger_deadline()),
    }
}

/// The same, but waits for the ledger until the deadline that `limit` gives, and for ever without
/// one.
pub(crate) fn own_by(limit: impl FnOnce() -> Option<Instant>) -> Result<u16, ShareError> {
    match known() {
        Some(number) => Ok(number),
        None => enlist(limit()),
    }
}

/// What a release needs: the family, and this process's number in it.
///
/// # Errors
///
/// Whether there is nothing to release: for a process that can be no member there is not, and for
/// one that cannot have the ledger now there may be.
pub(super) fn for_release(limit: Limit) -> Result<(&'static Family, u16), bool> {
    let family = family::if_any().ok_or(true)?;
    match own_by(|| limit.at()) {
        Ok(member) => Ok((family, member)),
        Err(error) => Err(!matches!(error, ShareError::Busy { .. })),
    }
}

/// This process's number. To be called by a process that has an object in hand: it is a member
/// therefore, unless it has just been forked. Then it becomes one, however long that takes.
pub(crate) fn own_number() -> u16 {
    own_by(|| None).unwrap_or_else(|error| panic!("{error}"))
}

/// This process's number, if it has one.
fn known() -> Option<u16> {
    // Pairs with the store in `remember`.
    let own = OWN.load(Ordering::Acquire);
    ((own >> 32) as u32 == fork::generation() + 1).then_some(own as u16)
}

/// How long to wait for the ledger where the caller has set no time: when objects are made, and
/// when handles arrive. Its lock is held for microseconds, unless its holder is stopped.
const LEDGER_TIME: Duration = Duration::from_secs(2);

/// When [`LEDGER_TIME`] will be over.
#[expect(clippy::unnecessary_wraps, reason = "as the lock wants it")]
pub(super) fn ledger_deadline() -> Option<Instant> {
    Some(Instant::now() + LEDGER_TIME)
}

/// The process that has this number; `None` if none has.
pub(crate) fn pid(number: u16) -> Option<u32> {
    let slot = family::if_any()?.slots().get(usize::from(number))?;
    (!slot.is(Life::Free)).then(|| slot.pid())
}

fn remember(generation: u32, number: u16) {
    OWN.store(
        u64::from(generation) << 32 | u64::from(number),
        Ordering::Release,
    );
}

#[cold]
fn enlist(deadline: Option<Instant>) -> Result<u16, ShareError> {
    let family = family::get()?;
    family.check_namespaces()?;
    exit::call_at_exit(Turn::Family, leave);
    let pid = std::process::id();
    let started = start_of(pid)?;
    for attempt in 0..2 {
        let lock = family.lock(|| deadline)?;
        // Another thread may have been faster.
        if let Some(number) = known() {
            return Ok(number);
        }
        if let Some((number, slot)) = family.free_slot() {
            slot.begin(pid, started, Life::Alive);
            remember(fork::generation() + 1, number);
            return Ok(number);
        }
        drop(lock);
        if attempt == 0 {
            reclaim_dead();
        }
    }
    Err(ShareError::TooManyProcesses { limit: MEMBERS })
}

fn start_of(pid: u32) -> Result<u64, ShareError> {
    life::start_time(pid)
        .map_err(|error| ShareError::system("/proc cannot tell when this process started", &error))
}

/// How long a process waits for another one that reclaims, which may be stopped. What is not done
/// then, a later patrol will do. Timed calls of a parent reclaim a child that has ended, so it is
/// less than a call may be late.
const MOST_FOR_OTHERS: Duration = Duration::from_millis(100);

impl Family {
    fn slots(&self) -> &[Slot] {
        let header = self.header();
        let used = header.members.load(Ordering::Acquire) as usize;
        &header.slots[..used.min(MEMBERS)]
    }

    /// A free place. To be called under the lock.
    fn free_slot(&self) -> Option<(u16, &Slot)> {
        let used = self.slots().len();
        let free = self.slots().iter().position(|slot| slot.is(Life::Free));
        let number = free.or_else(|| {
            (used < MEMBERS).then(|| {
                self.header()
                    .members
                    .store(used as u32 + 1, Ordering::Release);
                used
            })
        })?;
        Some((number as u16, &self.header().slots[number]))
    }

    /// Has everything that a member held let go of, and frees its number. A process that is killed
    /// at this is followed by a process that starts again: each step can be done twice. So is a
    /// process that finds an object, or the ledger, locked at the deadline by one that is stopped.
    ///
    /// `left`: how much time there is to wait for locks in vain.
    fn reclaim(&self, number: u16, slot: &Slot, left: &mut Duration) {
        let end = slot.end();
        let blocks = self.header().blocks.load(Ordering::Acquire);
        let (mut is_done, mut done, mut deadline) = (true, 0_u32, Instant::now());
        for index in 0..blocks {
            let held = self.block(index).filter(|block| block.is_held_by(number));
            if let Some(block) = held {
                // The clock is read now and then: the work is not to use up the time.
                if done.is_multiple_of(256) {
                    deadline = Instant::now() + *left;
                }
                done += 1;
                if !registry::reclaim(self, index, block, number, end, deadline) {
                    // Only what has come to nothing uses it up.
                    *left = deadline.saturating_duration_since(Instant::now());
                    is_done = false;
                }
                fault::point();
            }
        }
        if is_done {
            slot.set(Life::Free);
            fault::point();
        }
    }

    /// Takes the lock of those who bury, at most until the deadline. Its holder waits for nothing
    /// that the caller could hold.
    fn lock_reclaim(&self, deadline: Option<Instant>) -> Option<Held<'_>> {
        let lock = &self.header().reclaim;
        let held = match deadline {
            None => lock.try_hold(),
            Some(deadline) => lock.hold_until(deadline),
        };
        match held {
            Ok(held) => Some(held),
            Err(LockError::Timeout | LockError::Deadlock) => None,
            Err(error) => {
                log::error!("the dead of the family cannot be reclaimed: {error}");
                None
            }
        }
    }

    /// Buries those that `is_meant`, if they are dead. Waits until `others` at most for another
    /// process that buries, without it not at all.
    ///
    /// Locks that are held by a process which does not go on cost
    /// [`BRIEF`](super::wait_mode::BRIEF), all of them together. What is behind them is left for a
    /// later burial.
    fn reclaim_if(&self, others: Option<Instant>, is_meant: impl Fn(&Slot) -> bool) {
        let Some(_lock) = self.lock_reclaim(others) else {
            return;
        };
        let mut left = BRIEF;
        for (number, slot) in self.slots().iter().enumerate() {
            if !is_meant(slot) || !slot.is_over() {
                continue;
            }
            let is_over = {
                // A process that takes a place does so under the lock. Half of what it writes could
                // be taken for a dead member, so the look that counts is under the lock too.
                let Ok(_lock) = self.lock(|| Some(Instant::now() + left)) else {
                    return;
                };
                let is_over = slot.is_over();
                if is_over {
                    slot.begin_reclaim(slot.end());
                }
                is_over
            };
            if is_over {
                self.reclaim(number as u16, slot, &mut left);
            }
        }
    }

    /// Looks at the next few members, and says whether one of them has ended. As many calls as it
    /// takes look at all.
    fn has_dead_on_this_beat(&self) -> bool {
        let slots = self.slots();
        let beat = self.header().beat.fetch_add(BEAT as u32, Ordering::Relaxed) as usize;
        let some = slots.iter().cycle().skip(beat % slots.len().max(1));
        some.take(BEAT.min(slots.len())).any(Slot::is_over)
    }

    /// Processes that cannot see one another cannot tell who has died, and the C library's mutexes would mix them up.
    fn check_namespaces(&self) -> Result<(), ShareError> {
        let header = self.header();
        let (pids, times) = life::namespaces();
        let theirs = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let differ = |own: u64, theirs: u64| own != 0 && theirs != 0 && own != theirs;
        if differ(pids, theirs(&header.pids)) || differ(times, theirs(&header.times)) {
            return Err(ShareError::System {
                what: "this process cannot share objects with its family".into(),
                reason: "it is in another namespace of processes or of time".to_owned(),
            });
        }
        Ok(())
    }
}

/// Buries all members that have ended.
pub(crate) fn reclaim_dead() {
    reclaim_dead_by(Instant::now() + MOST_FOR_OTHERS);
}

/// The same, but waits for another process that buries until the deadline at most.
pub(crate) fn reclaim_dead_by(deadline: Instant) {
    if let Some(family) = family::if_any() {
        let own = std::process::id();
        family.reclaim_if(Some(deadline), |slot| slot.pid() != own);
    }
}

/// A process has ended, and has been waited for: buries it, if it was a member.
pub(crate) fn has_ended(pid: u32) {
    if let Some(family) = family::if_any()
        && family.slots().iter().any(|slot| slot.pid() == pid)
    {
        let deadline = Instant::now() + MOST_FOR_OTHERS;
        family.reclaim_if(Some(deadline), |slot| slot.pid() == pid);
    }
}

/// To be called now and then by those who wait, with nothing locked: buries members whose parents cannot do it. Of all who
/// call, one does so every 50 ms, and looks at a few members; nobody waits for another.
pub(crate) fn poll_for_dead() {
    let Some(family) = family::if_any() else {
        return;
    };
    deferred::attend();
    let header = family.header();
    let (now, last) = (clock::now(), header.poll_for_dead.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(last) >= POLL_PAUSE.as_nanos() as u64 || last > now;
    let is_first = || {
        header
            .poll_for_dead
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    if !is_due || !is_first() {
        return;
    }
    if family.has_dead_on_this_beat() {
        let own = std::process::id();
        family.reclaim_if(None, |slot| slot.pid() != own);
    }
}

/// How many numbers there are that a process has had, from 0 on.
pub(crate) fn numbers() -> usize {
    family::if_any().map_or(0, |family| family.slots().len())
}

/// This process is ending. What it holds it keeps until it has ended: its other threads may still use it.
fn leave() {
    let own = OWN.load(Ordering::Acquire);
    if (own >> 32) as u32 == fork::generation() + 1
        && let Some(family) = family::if_any()
        && let Some(slot) = family.slots().get(usize::from(own as u16))
    {
        slot.leave();
    }
}

/// A place for a process that is about to be started, so that it can be given handles before it is there: what is given
/// to it is held in its name, and let go of if it never comes.
#[derive(Debug)]
pub(crate) struct Expected {
    place: Place,
    is_settled: bool,
}

/// A member's number, and which use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Place {
    number: u16,
    uses: u32,
}

impl Expected {
    pub(crate) fn new() -> Result<Self, ShareError> {
        let family = family::get()?;
        let pid = std::process::id();
        let started = start_of(pid)?;
        for attempt in 0..2 {
            let lock = family.lock(ledger_deadline)?;
            if let Some((number, slot)) = family.free_slot() {
                let uses = slot.begin(pid, started, Life::Expected);
                return Ok(Self {
                    place: Place { number, uses },
                    is_settled: false,
                });
            }
            drop(lock);
            if attempt == 0 {
                reclaim_dead();
            }
        }
        Err(ShareError::TooManyProcesses { limit: MEMBERS })
    }

    pub(crate) fn number(&self) -> u16 {
        self.place.number
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The process has been started, and will [`arrive`] if nothing happens to it.
    pub(crate) fn settle(mut self, pid: u32) {
        let Some(family) = family::if_any() else {
            return;
        };
        // If it is gone already, and somebody has waited for it, it will not come: dropping `self` sees to that.
        let Ok(started) = life::start_time(pid) else {
            return;
        };
        self.is_settled = true;
        let place = self.place;
        deferred::release(move |limit| {
            let Ok(_lock) = family.lock(|| limit.at()) else {
                return false;
            };
            let slot = &family.header().slots[usize::from(place.number)];
            // If it is already there, or was and has been buried, the place is not this process's
            // any more.
            if slot.is_expected(place.uses) {
                slot.take(pid, started, Life::Expected);
            }
            true
        });
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // There will be no such process, unless it is there already.
        let Some(family) = family::if_any() else {
            return;
        };
        let place = self.place;
        deferred::release(move |limit| {
            let slot = &family.header().slots[usize::from(place.number)];
            let Ok(lock) = family.lock(|| limit.at()) else {
                return false;
            };
            let is_own = slot.is_expected(place.uses);
            if is_own {
                slot.begin_reclaim(End::Left);
            }
            drop(lock);
            if is_own {
                // If another process buries right now, it may do this as well.
                let others = Instant::now() + MOST_FOR_OTHERS;
                family.reclaim_if(Some(others), |other| std::ptr::eq(other, slot));
            }
            true
        });
    }
}

/// This process is the one that was [`Expected`] in this place.
pub(crate) fn arrive(place: Place) -> Result<(), ShareError> {
    let family = family::get()?;
    family.check_namespaces()?;
    exit::call_at_exit(Turn::Family, leave);
    let pid = std::process::id();
    let started = start_of(pid)?;
    let lock = match family.lock(ledger_deadline) {
        Err(error @ ShareError::Busy { .. }) => {
            // What the process was started for is worth more than an error. Its parent can end it
            // meanwhile.
            log::warn!("a child waits before it begins: {error}");
            family.lock(|| None)
        }
        lock => lock,
    };
    let _lock = lock?;
    let slot = family.slots().get(usize::from(place.number));
    let slot = slot
        .filter(|slot| slot.is_expected(place.uses))
        .ok_or_else(|| ShareError::System {
            what: "this process has no place in its family".into(),
            reason: "whoever started it has ended, or given it up".to_owned(),
        })?;
    slot.take(pid, started, Life::Alive);
    remember(fork::generation() + 1, place.number);
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests;
