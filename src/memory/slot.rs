//! The slot of a member in the ledger: which process has it, and whether that process lives.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::os::{fault, life};

/// The number of processes that can share objects at a time.
pub(crate) const MEMBERS: usize = 1_024;

/// A member's slot. Zeros: free.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Slot {
    /// A [`Life`].
    life: AtomicU32,
    pid: AtomicU32,
    /// When the process was started, by the kernel's count. Together with the pid it tells the
    /// process from any other.
    started: AtomicU64,
    /// How often the slot was given to a process.
    uses: AtomicU32,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Free = 0,
    /// The slot belongs to a process that is being started; pid and start are those of the process
    /// that starts it.
    Expected = 1,
    Alive = 2,
    /// The process is ending of its own will. It needs what it holds until it has ended.
    Leaving = 3,
    /// The process was killed, and is being reclaimed.
    DyingKilled = 4,
    /// The process ended of its own will, and is being reclaimed.
    DyingLeft = 5,
}

/// How a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process ended of its own will, and still held the object.
    Left,
    /// The process was killed, or crashed.
    Killed,
}

impl Slot {
    /// Gives the slot to a new process, and returns which use of the slot that is. To be called
    /// under the lock, like all that changes a slot.
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
        // If this process is killed before this store, the slot is still free.
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

    /// Marks the process that has the slot as ending of its own will. That process calls it itself,
    /// without the lock: no other process changes the slot of a process that runs.
    pub(super) fn leave(&self) {
        let (alive, leaving) = (Life::Alive as u32, Life::Leaving as u32);
        // An error means that it was marked as leaving already.
        let _ = self
            .life
            .compare_exchange(alive, leaving, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Returns whether the process of this slot has ended and is to be reclaimed.
    pub(super) fn is_over(&self) -> bool {
        let started = self.started.load(Ordering::Relaxed);
        match self.life.load(Ordering::Acquire) {
            life if life == Life::Free as u32 => false,
            // The process that was reclaiming it has been killed.
            life if life == Life::DyingKilled as u32 || life == Life::DyingLeft as u32 => true,
            _ => !life::is_running(self.pid(), started),
        }
    }

    /// Marks the member as being reclaimed: from here on no process can take the slot any more. To
    /// be called under the lock.
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
