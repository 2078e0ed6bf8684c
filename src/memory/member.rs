//! The processes of a family: their numbers, and what happens to what they held when they end.
//!
//! A process becomes a member when it first uses a shared object, and holds blocks under its
//! number. After it has ended, another process reclaims what it held. That process tells each
//! object that the dead one held: the object gives back permits, breaks barriers and so on
//! ([`objects::reclaim`](crate::objects::reclaim)). Then it lets go of the dead process's blocks,
//! and frees its number.
//!
//! Which process reclaims? The one that waits for the dead process anyhow: a pool's supervisor, or
//! the parent when it looks at a child. That process may die too. So every process that waits for a
//! shared object polls for the dead now and then ([`poll_for_dead`]), all of them together twenty
//! times a second, a part of the family each time. Where an object knows which members are in the
//! way, its callers look at these first ([`PollOfHolders`], [`reclaim_if_over`]). A mutex does not
//! need any of that: the kernel itself tells the next owner.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::deferred::{self, Limit};
use super::error::ShareError;
use super::family::{self, Family};
use super::registry;
use super::slot::{Life, Slot};
use super::wait_mode::BRIEF;
use crate::os::exit::{self, Turn};
use crate::os::refusal::refused;
use crate::os::robust::{Held, LockError};
use crate::os::{clock, fault, fork, life};

pub(crate) use super::slot::{End, MEMBERS};

/// The pause between two polls for the dead, of all waiting processes together.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// How many members are looked at in each poll, at least. To look at one takes some 10 µs.
const BEAT: usize = 32;

/// The most polls that it takes to look at all members, however many there are: half a second.
const MOST_BEATS: usize = 10;

/// This process's number, and the [`fork::generation`] for which it is valid, from 1 on; 0: none
/// yet.
static OWN: AtomicU64 = AtomicU64::new(0);

/// Returns this process's number. If the process is no member, it becomes one, and waits for the
/// ledger for at most [`LEDGER_TIME`].
pub(crate) fn own() -> Result<u16, ShareError> {
    own_by(ledger_deadline)
}

/// Returns this process's number like [`own`], but waits for the ledger until the deadline that
/// `limit` gives, and for ever without one.
pub(crate) fn own_by(limit: impl FnOnce() -> Option<Instant>) -> Result<u16, ShareError> {
    match known() {
        Some(number) => Ok(number),
        None => enlist(limit()),
    }
}

/// Returns what a release needs: the family, and this process's number in it.
///
/// # Errors
///
/// Returns whether the release is done: true for a process that cannot be a member, which has
/// nothing to release; false for a process that cannot get the ledger now, which may have something
/// to release.
pub(super) fn for_release(limit: Limit) -> Result<(&'static Family, u16), bool> {
    let family = family::if_any().ok_or(true)?;
    match own_by(|| limit.at()) {
        Ok(member) => Ok((family, member)),
        Err(error) => Err(!matches!(error, ShareError::Busy { .. })),
    }
}

/// Returns this process's number. To be called by a process that has an object: it is a member
/// therefore, unless it has just been forked. Then it becomes one, however long that takes.
pub(crate) fn own_number() -> u16 {
    own_by(|| None).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns this process's number, if it has one.
fn known() -> Option<u16> {
    // Pairs with the store in `remember`.
    let own = OWN.load(Ordering::Acquire);
    ((own >> 32) as u32 == fork::generation() + 1).then_some(own as u16)
}

/// How long to wait for the ledger where the caller has set no time: when an object is made, and
/// when a handle arrives. The ledger's lock is held for microseconds, unless its holder is stopped.
const LEDGER_TIME: Duration = Duration::from_secs(2);

/// Returns when [`LEDGER_TIME`] will be over.
#[expect(clippy::unnecessary_wraps, reason = "as the lock wants it")]
pub(super) fn ledger_deadline() -> Option<Instant> {
    Some(Instant::now() + LEDGER_TIME)
}

/// Returns the pid of the process that has this number; `None` if none has.
pub(crate) fn pid(number: u16) -> Option<u32> {
    let slot = family::if_any()?.slots().get(usize::from(number))?;
    (!slot.is(Life::Free)).then(|| slot.pid())
}

/// Returns whether the process that has this number is certainly gone: it has ended, and its parent
/// has waited for it. One system call.
pub(crate) fn is_gone(number: u16) -> bool {
    pid(number).is_none_or(life::is_gone)
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
    family
        .take_slot(|| deadline, Life::Alive)
        .map(|(number, _)| number)
}

fn start_of(pid: u32) -> Result<u64, ShareError> {
    life::start_time(pid).map_err(|error| {
        let error = refused("open", format_args!("/proc/{pid}/stat"), error);
        ShareError::system("/proc cannot tell when this process started", &error)
    })
}

/// How long a process waits for another one that reclaims, which may be stopped. What is not done
/// then, a later poll for the dead will do. Timed calls of a parent reclaim a child that has ended,
/// so this is less than the time by which a call may be late.
const MOST_FOR_OTHERS: Duration = Duration::from_millis(100);

impl Family {
    fn slots(&self) -> &[Slot] {
        let header = self.header();
        let used = header.members.load(Ordering::Acquire) as usize;
        &header.slots[..used.min(MEMBERS)]
    }

    /// Returns a free slot. To be called under the lock.
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

    /// Takes a free slot, for this process or for a child that it expects. If all are taken, the
    /// dead are reclaimed first. Returns the slot's number and how often it was taken.
    fn take_slot(
        &self,
        limit: impl Fn() -> Option<Instant>,
        life: Life,
    ) -> Result<(u16, u32), ShareError> {
        let pid = std::process::id();
        let started = start_of(pid)?;
        for attempt in 0..2 {
            let lock = self.lock(&limit)?;
            // Another thread may have taken this process's slot meanwhile.
            if life == Life::Alive
                && let Some(number) = known()
            {
                return Ok((number, 0));
            }
            if let Some((number, slot)) = self.free_slot() {
                let uses = slot.begin(pid, started, life);
                if life == Life::Alive {
                    remember(fork::generation() + 1, number);
                }
                return Ok((number, uses));
            }
            drop(lock);
            if attempt == 0 {
                reclaim_dead();
            }
        }
        Err(ShareError::TooManyProcesses { limit: MEMBERS })
    }

    /// Lets go of everything that a member held, and frees its number. If this process is killed
    /// while it reclaims, another process starts again: each step can be done twice. It is also
    /// started again later if an object or the ledger is still locked at the deadline, by a process
    /// that is stopped.
    ///
    /// `left`: how much time this process may still spend on waiting in vain for locks.
    fn reclaim(&self, number: u16, slot: &Slot, left: &mut Duration) {
        let end = slot.end();
        let blocks = self.header().blocks.load(Ordering::Acquire);
        let (mut is_done, mut done, mut deadline) = (true, 0_u32, Instant::now());
        for index in 0..blocks {
            let held = self.block(index).filter(|block| block.is_held_by(number));
            if let Some(block) = held {
                // The clock is read now and then: only waiting may use up the time, not the work.
                if done.is_multiple_of(256) {
                    deadline = Instant::now() + *left;
                }
                done += 1;
                if !registry::reclaim(self, index, block, number, end, deadline) {
                    // Only an attempt that has failed uses up the time.
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

    /// Takes the lock for reclaiming, and waits at most until the deadline. The holder of that lock
    /// waits for nothing that the caller could hold.
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

    /// Reclaims those members for which `is_meant` returns true, if they are dead. Waits until
    /// `others` at most for another process that reclaims; without `others` it does not wait for
    /// it.
    ///
    /// Locks that are held by a process that does not go on cost
    /// [`BRIEF`](super::wait_mode::BRIEF), all of them together. What such locks guard is left for
    /// a later attempt.
    fn reclaim_if(&self, others: Option<Instant>, is_meant: impl Fn(&Slot) -> bool) {
        let Some(_lock) = self.lock_reclaim(others) else {
            // Another process reclaims, or the lock has failed, which is logged. A later poll tries
            // again.
            return;
        };
        let mut left = BRIEF;
        for (number, slot) in self.slots().iter().enumerate() {
            if !is_meant(slot) || !slot.is_over() {
                continue;
            }
            let is_over = {
                // A process that takes a slot does so under the lock. A slot that is half written
                // could be taken for a dead member, so the look that counts is under the lock too.
                let Ok(_lock) = self.lock(|| Some(Instant::now() + left)) else {
                    // The ledger is locked by a process that does not go on. A later poll tries
                    // again.
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

    /// Looks at the next few members, and returns whether one of them has ended. Several calls
    /// together look at all members.
    fn has_dead_on_this_beat(&self) -> bool {
        let slots = self.slots();
        let count = BEAT.max(slots.len().div_ceil(MOST_BEATS)).min(slots.len());
        let beat = &self.header().beat;
        let first = beat.fetch_add(count as u32, Ordering::Relaxed) as usize;
        let some = slots.iter().cycle().skip(first % slots.len().max(1));
        some.take(count).any(Slot::is_over)
    }

    /// Reclaims those of these members that have ended. Waits for another process that reclaims
    /// like [`reclaim_if`](Self::reclaim_if).
    fn reclaim_met(&self, met: impl Iterator<Item = u16>, others: Option<Instant>) {
        let slots = self.slots();
        let over: Vec<&Slot> = met
            .filter_map(|number| slots.get(usize::from(number)))
            .filter(|slot| slot.is_over())
            .collect();
        if !over.is_empty() {
            let is_meant = |slot: &Slot| over.iter().any(|other| std::ptr::eq(*other, slot));
            self.reclaim_if(others, is_meant);
        }
    }

    /// Fails if this process is in another namespace than its family: processes that cannot see one
    /// another cannot tell which of them has died, and the C library's mutexes would mix them up.
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

/// Reclaims all members that have ended.
pub(crate) fn reclaim_dead() {
    reclaim_dead_by(Instant::now() + MOST_FOR_OTHERS);
}

/// Reclaims like [`reclaim_dead`], but waits until the deadline at most for another process that
/// reclaims.
pub(crate) fn reclaim_dead_by(deadline: Instant) {
    if let Some(family) = family::if_any() {
        let own = std::process::id();
        family.reclaim_if(Some(deadline), |slot| slot.pid() != own);
    }
}

/// Reclaims a process that has ended and has been waited for, if it was a member.
pub(crate) fn has_ended(pid: u32) {
    if let Some(family) = family::if_any()
        && family.slots().iter().any(|slot| slot.pid() == pid)
    {
        let deadline = Instant::now() + MOST_FOR_OTHERS;
        family.reclaim_if(Some(deadline), |slot| slot.pid() == pid);
    }
}

/// Looks for dead members and reclaims them, for members whose parents cannot do it. To be called
/// now and then by each process that waits, with nothing locked. Of all processes that call it, one
/// does so every 50 ms, and looks at a few members; no process waits for another.
pub(crate) fn poll_for_dead() {
    let Some(family) = family::if_any() else {
        return;
    };
    deferred::attend();
    if is_due(&family.header().poll_for_dead) && family.has_dead_on_this_beat() {
        let own = std::process::id();
        family.reclaim_if(None, |slot| slot.pid() != own);
    }
}

/// Returns whether the last poll, of any process, is 50 ms ago, for one of all that ask. `last` is
/// when that poll was, in nanoseconds of the monotonic clock.
fn is_due(last: &AtomicU64) -> bool {
    let (now, before) = (clock::now(), last.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(before) >= POLL_PAUSE.as_nanos() as u64 || before > now;
    is_due
        && last
            .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

/// The polls for those members that are in the way at one object: they are few, so a dead one is
/// met at once, however large the family is. It lies in the object, and begins as zeros.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct PollOfHolders {
    /// As in [`is_due`].
    last: AtomicU64,
    /// How many holders all polls so far have looked at.
    beat: AtomicU64,
}

impl PollOfHolders {
    /// Polls for the dead like [`poll_for_dead`], and also looks at `holders`, which the object
    /// holds up its callers for: at 32 of them every 50 ms, in turn.
    pub(crate) fn poll<I: Iterator<Item = u16>>(&self, holders: impl FnOnce() -> I) {
        poll_for_dead();
        if let Some(family) = family::if_any()
            && is_due(&self.last)
        {
            self.look(family, holders());
        }
    }

    /// Returns whether there was a poll.
    #[cfg(test)]
    pub(crate) fn is_begun(&self) -> bool {
        self.last.load(Ordering::Relaxed) != 0
    }

    /// Makes the next poll due.
    #[cfg(test)]
    pub(crate) fn start_anew(&self) {
        self.last.store(0, Ordering::Relaxed);
    }

    fn look(&self, family: &Family, holders: impl Iterator<Item = u16>) {
        let holders: Vec<u16> = holders.collect();
        let count = holders.len().min(BEAT);
        let first = self.beat.fetch_add(count as u64, Ordering::Relaxed) as usize;
        let some = holders.iter().cycle().skip(first % holders.len().max(1));
        family.reclaim_met(some.take(count).copied(), None);
    }
}

/// Reclaims a member that is in the way, if it has ended. Waits until the deadline at most for
/// another process that reclaims.
pub(crate) fn reclaim_if_over(number: u16, deadline: Instant) {
    if let Some(family) = family::if_any() {
        family.reclaim_met(std::iter::once(number), Some(deadline));
    }
}

/// Returns how many numbers there are that a process has had, from 0 on.
pub(crate) fn numbers() -> usize {
    family::if_any().map_or(0, |family| family.slots().len())
}

/// Marks this process as ending. It keeps what it holds until it has ended: its other threads may
/// still use it.
fn leave() {
    let own = OWN.load(Ordering::Acquire);
    if (own >> 32) as u32 == fork::generation() + 1
        && let Some(family) = family::if_any()
        && let Some(slot) = family.slots().get(usize::from(own as u16))
    {
        slot.leave();
    }
}

/// A slot for a process that is about to be started, so that handles can be sent to the process
/// before it runs. What is sent to it is held in its name, and let go of if the process never
/// comes.
#[derive(Debug)]
pub(crate) struct Expected {
    place: Place,
    is_settled: bool,
}

/// A member's number, and which use of that number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Place {
    number: u16,
    uses: u32,
}

impl Expected {
    pub(crate) fn new() -> Result<Self, ShareError> {
        let family = family::get()?;
        let (number, uses) = family.take_slot(ledger_deadline, Life::Expected)?;
        Ok(Self {
            place: Place { number, uses },
            is_settled: false,
        })
    }

    pub(crate) fn number(&self) -> u16 {
        self.place.number
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Records that the process has been started. It will [`arrive`] if nothing happens to it.
    pub(crate) fn settle(mut self, pid: u32) {
        let Some(family) = family::if_any() else {
            return;
        };
        // If the process is gone already, and its parent has waited for it, it will not come:
        // dropping `self` handles that.
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
            // If the process has already arrived, or was there and has been reclaimed, the slot no
            // longer belongs to this process.
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
        // There will be no such process, unless it has already arrived.
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
                // If another process reclaims right now, that process may free this slot as well.
                let others = Instant::now() + MOST_FOR_OTHERS;
                family.reclaim_if(Some(others), |other| std::ptr::eq(other, slot));
            }
            true
        });
    }
}

/// Takes the slot of this process, which was [`Expected`] in it.
pub(crate) fn arrive(place: Place) -> Result<(), ShareError> {
    let family = family::get()?;
    family.check_namespaces()?;
    exit::call_at_exit(Turn::Family, leave);
    let pid = std::process::id();
    let started = start_of(pid)?;
    let lock = match family.lock(ledger_deadline) {
        Err(error @ ShareError::Busy { .. }) => {
            // The task that the process was started for is worth more than an error. Its parent can
            // end it while it waits.
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
            reason: "the process that started it has ended, or given it up".to_owned(),
        })?;
    slot.take(pid, started, Life::Alive);
    remember(fork::generation() + 1, place.number);
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests;
