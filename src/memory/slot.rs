//! The slot of a member in the ledger: which process has it, and whether that lives.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::os::{fault, life};

/// How many processes can share objects at a time.
pub(crate) const MEMBERS: usize = 1_024;

/// A member's place. Zeros: free.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Slot {
    /// A [`Life`].
    life: AtomicU32,
    pid: AtomicU32,
    /// When it was started, by the kernel's count. With the pid, it tells it from any other process.
    started: AtomicU64,
    /// How often the place was given to somebody.
    uses: AtomicU32,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Free = 0,
    /// Of a process that is being started; pid and start are those of the one who starts it.
    Expected = 1,
    Alive = 2,
    /// It is ending of its own will. What it holds it no longer needs, once it has ended.
    Leaving = 3,
    /// It has ended, and is being buried; which of the two, says how it ended.
    DyingKilled = 4,
    DyingLeft = 5,
}

/// How a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It came to its end, and still held the object.
    Left,
    /// It was killed, or crashed.
    Killed,
}

impl Slot {
    /// Gives the place to somebody new; says for which use of it that is. To be called under the lock, as all that changes
    /// a place.
    pub(super) fn begin(&self, pid: u32, started: u64, life: Life) -> u32 {
        let uses = self.uses.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.take(pid, started, life);
        uses
    }

    pub(super) fn take(&self, pid: u32, started: u64, life: Life) {
        fault::point();
        self.pid.store(pid, Ordering::Relaxed);
        fault::point();
        self.started.store(started, Ordering::Relaxed);
        fault::point();
        // Killed before this, nothing has happened.
        self.set(life);
    }

    pub(super) fn set(&self, life: Life) {
        self.life.store(life as u32, Ordering::Release);
    }

    pub(super) fn is(&self, life: Life) -> bool {
        self.life.load(Ordering::Acquire) == life as u32
    }

    pub(super) fn is_expected(&self, uses: u32) -> bool {
        self.is(Life::Expected) && self.uses.load(Ordering::Relaxed) == uses
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Says that the process which has the place is ending of its own will. Done by that process,
    /// and without the lock: no other one changes the place of a process that runs.
    pub(super) fn leave(&self) {
        let (alive, leaving) = (Life::Alive as u32, Life::Leaving as u32);
        // An error: it has left already.
        let _ = self
            .life
            .compare_exchange(alive, leaving, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether there is somebody to bury.
    pub(super) fn is_over(&self) -> bool {
        let started = self.started.load(Ordering::Relaxed);
        match self.life.load(Ordering::Acquire) {
            life if life == Life::Free as u32 => false,
            // Whoever was at it has been killed.
            life if life == Life::DyingKilled as u32 || life == Life::DyingLeft as u32 => true,
            _ => !life::is_running(self.pid(), started),
        }
    }

    /// From here on nobody can come to the place any more. To be called under the lock.
    pub(super) fn begin_reclaim(&self, end: End) {
        fault::point();
        self.set(match end {
            End::Killed => Life::DyingKilled,
            End::Left => Life::DyingLeft,
        });
        fault::point();
    }

    pub(super) fn end(&self) -> End {
        if self.is(Life::Leaving) || self.is(Life::DyingLeft) {
            End::Left
        } else {
            End::Killed
        }
    }
}
