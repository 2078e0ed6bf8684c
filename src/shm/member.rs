//! The processes of a family: who they are, and what becomes of what they held when they end.
//!
//! A process becomes a member when it first has to do with a shared object, and holds blocks under its number. When it
//! has ended, somebody buries it: each object that it held is told, which gives back its permits, breaks its barriers and so
//! on ([`Kind::bury`](super::kind::Kind)), its blocks are let go of, and its number is free.
//!
//! Who buries? Whoever waits for the process anyhow: a pool's supervisor, or the parent when it looks at a child. And so
//! that it does not matter who dies with it: everybody who waits for a shared object looks around now and then
//! ([`patrol`]), all of them together twenty times a second. A mutex needs none of that: the kernel itself tells the next
//! owner.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::error::ShareError;
use super::family::{self, Family};
use super::registry;
use crate::os::exit::{self, Turn};
use crate::os::{clock, fork, life};

/// How many processes can share objects at a time.
pub(crate) const MEMBERS: usize = 1_024;

/// How often those who wait look around, in all.
const PATROL: Duration = Duration::from_millis(50);

/// How many members are looked at each time. To look at one takes some 10 µs.
const BEAT: usize = 32;

/// A member's place. Zeros: free.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Slot {
    /// A [`Life`].
    life: AtomicU32,
    pid: AtomicU32,
    /// When it was started, by the kernel's count. With the pid, it tells it from any other process.
    started: AtomicU64,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Free = 0,
    /// Of a process that is being started; pid and start are those of the one who starts it.
    Expected = 1,
    Alive = 2,
    /// It is ending of its own will. What it holds it no longer needs, once it has ended.
    Leaving = 3,
}

/// How a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It came to its end, and still held the object.
    Left,
    /// It was killed, or crashed.
    Killed,
}

/// This process's number, and the [`fork::generation`] that it is good for, from 1 on; 0: none yet.
static OWN: AtomicU64 = AtomicU64::new(0);

/// This process's number. It becomes a member if it is none.
pub(crate) fn own() -> Result<u16, ShareError> {
    let generation = fork::generation() + 1;
    // Pairs with the store in `enlist`.
    let own = OWN.load(Ordering::Acquire);
    if (own >> 32) as u32 == generation {
        return Ok(own as u16);
    }
    enlist(generation)
}

/// This process's number. To be called by whoever has an object in hand, and is a member therefore.
pub(crate) fn own_number() -> u16 {
    own().unwrap_or_else(|error| panic!("{error}"))
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
fn enlist(generation: u32) -> Result<u16, ShareError> {
    let family = family::get()?;
    exit::call_at_exit(Turn::Family, leave);
    let pid = std::process::id();
    let started = start_of(pid)?;
    for attempt in 0..2 {
        let lock = family.lock();
        // Another thread may have been faster.
        let own = OWN.load(Ordering::Acquire);
        if (own >> 32) as u32 == generation {
            return Ok(own as u16);
        }
        if let Some((number, slot)) = family.free_slot() {
            slot.take(pid, started, Life::Alive);
            remember(generation, number);
            return Ok(number);
        }
        drop(lock);
        if attempt == 0 {
            bury_dead();
        }
    }
    Err(ShareError::TooManyProcesses { limit: MEMBERS })
}

fn start_of(pid: u32) -> Result<u64, ShareError> {
    life::start_time(pid)
        .map_err(|error| ShareError::system("/proc cannot tell when this process started", &error))
}

impl Slot {
    fn take(&self, pid: u32, started: u64, life: Life) {
        self.pid.store(pid, Ordering::Relaxed);
        self.started.store(started, Ordering::Relaxed);
        // Killed before this, nothing has happened.
        self.life.store(life as u32, Ordering::Release);
    }

    fn is(&self, life: Life) -> bool {
        self.life.load(Ordering::Acquire) == life as u32
    }

    fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        let started = self.started.load(Ordering::Relaxed);
        !self.is(Life::Free) && !life::is_running(self.pid(), started)
    }
}

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

    /// Has everything that a member held let go of, and frees its number. Whoever is killed at this is followed by
    /// somebody who starts again: each step can be done twice.
    fn bury(&self, number: u16, end: End) {
        let slot = &self.header().slots[usize::from(number)];
        let blocks = self.header().blocks.load(Ordering::Acquire);
        for index in 0..blocks {
            let held = self.block(index).filter(|block| block.is_held_by(number));
            if let Some(block) = held {
                registry::bury(self, index, block, number, end);
            }
        }
        slot.life.store(Life::Free as u32, Ordering::Release);
    }

    /// Buries those that `is_meant`, if they are dead.
    fn bury_if(&self, is_meant: impl Fn(&Slot) -> bool) {
        // Nobody who waits here holds anything that the one who buries could want.
        let Ok(_burial) = self.header().burial.hold() else {
            return;
        };
        for (number, slot) in self.slots().iter().enumerate() {
            let is_over = || {
                // Under the lock, which whoever takes a place has: half of what it writes could be taken for a dead member.
                let _lock = self.lock();
                slot.is_over()
            };
            if is_meant(slot) && is_over() {
                let end = if slot.is(Life::Leaving) {
                    End::Left
                } else {
                    End::Killed
                };
                self.bury(number as u16, end);
            }
        }
    }
}

/// Buries all members that have ended.
pub(crate) fn bury_dead() {
    if let Some(family) = family::if_any() {
        let own = std::process::id();
        family.bury_if(|slot| slot.pid() != own);
    }
}

/// A process has ended, and has been waited for: buries it, if it was a member.
pub(crate) fn has_ended(pid: u32) {
    if let Some(family) = family::if_any()
        && family.slots().iter().any(|slot| slot.pid() == pid)
    {
        family.bury_if(|slot| slot.pid() == pid);
    }
}

/// To be called now and then by those who wait, with nothing locked: buries members whose parents cannot do it. Of all who
/// call, one does so every 50 ms, and looks at a few members; nobody waits for another.
pub(crate) fn patrol() {
    let Some(family) = family::if_any() else {
        return;
    };
    let header = family.header();
    let (now, last) = (clock::now(), header.patrol.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(last) >= PATROL.as_nanos() as u64 || last > now;
    let is_first = || {
        header
            .patrol
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    if !is_due || !is_first() {
        return;
    }
    let slots = family.slots();
    let beat = header.beat.fetch_add(BEAT as u32, Ordering::Relaxed) as usize;
    let some = slots.iter().cycle().skip(beat % slots.len().max(1));
    if some.take(BEAT.min(slots.len())).any(Slot::is_over) {
        bury_dead();
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
        && let Some(slot) =
            family::if_any().and_then(|family| family.slots().get(usize::from(own as u16)))
    {
        slot.life.store(Life::Leaving as u32, Ordering::Release);
    }
}

/// A place for a process that is about to be started, so that it can be given handles before it is there: what is given
/// to it is held in its name, and let go of if it never comes.
#[derive(Debug)]
pub(crate) struct Expected {
    number: u16,
    is_settled: bool,
}

impl Expected {
    pub(crate) fn new() -> Result<Self, ShareError> {
        let family = family::get()?;
        let pid = std::process::id();
        let started = start_of(pid)?;
        for attempt in 0..2 {
            let lock = family.lock();
            if let Some((number, slot)) = family.free_slot() {
                slot.take(pid, started, Life::Expected);
                return Ok(Self {
                    number,
                    is_settled: false,
                });
            }
            drop(lock);
            if attempt == 0 {
                bury_dead();
            }
        }
        Err(ShareError::TooManyProcesses { limit: MEMBERS })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The process has been started, and will [`arrive`] if nothing happens to it.
    pub(crate) fn settle(mut self, pid: u32) {
        self.is_settled = true;
        let Some(family) = family::if_any() else {
            return;
        };
        let _lock = family.lock();
        let slot = &family.header().slots[usize::from(self.number)];
        // If it is already there, or was and has been buried, the place is not this process's any more.
        if slot.is(Life::Expected)
            && slot.pid() == std::process::id()
            && let Ok(started) = life::start_time(pid)
        {
            slot.take(pid, started, Life::Expected);
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // There will be no such process, and nobody was killed.
        if let Some(family) = family::if_any()
            && let Ok(_burial) = family.header().burial.hold()
        {
            family.bury(self.number, End::Left);
        }
    }
}

/// This process is the one that was [`Expected`] under this number.
pub(crate) fn arrive(number: u16) -> Result<(), ShareError> {
    let family = family::get()?;
    exit::call_at_exit(Turn::Family, leave);
    let pid = std::process::id();
    let started = start_of(pid)?;
    let _lock = family.lock();
    let slot = family.slots().get(usize::from(number));
    let slot = slot
        .filter(|slot| slot.is(Life::Expected))
        .ok_or(ShareError::Gone)?;
    slot.take(pid, started, Life::Alive);
    remember(fork::generation() + 1, number);
    Ok(())
}
