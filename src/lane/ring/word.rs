//! The word that a cell begins with: it says which side owns the cell. All that hands a cell over
//! goes through here, and models check it.

use std::sync::atomic::Ordering;

use super::Claim;
use crate::shim::AtomicU32;

pub(super) const FREE: u32 = 0;
pub(super) const READY: u32 = 1;
pub(super) const TAKEN: u32 = 2;
pub(super) const RECLAIMED: u32 = 3;

/// The bits of a word that are its phase.
pub(super) const PHASE: u32 = 3;

/// Returns what the word holds in `lap` and `phase`.
pub(super) fn state(lap: u32, phase: u32) -> u32 {
    lap << 2 | phase
}

#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Word(pub(super) AtomicU32);

impl Word {
    /// Returns what the word holds. A side that finds what the other has stored finds also what
    /// that side did before.
    #[inline]
    pub(super) fn look(&self) -> u32 {
        // Acquire pairs with the Release of `publish`, for the reader, and of `release`, for the
        // writer.
        self.0.load(Ordering::Acquire)
    }

    /// Hands the filled cell to the reader. Only for the writer.
    #[inline]
    pub(super) fn publish(&self, lap: u32) {
        // Release pairs with the Acquire in `look`: the content comes before the word.
        self.0.store(state(lap, READY), Ordering::Release);
    }

    /// Takes back what was published; returns false if the reader has begun with it. Only for the
    /// writer.
    pub(super) fn take_back(&self, lap: u32) -> bool {
        // Relaxed: nothing but the word itself is handed over.
        let (from, to) = (state(lap, READY), state(lap, RECLAIMED));
        self.0
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Begins with what was published, which the caller has seen by `look`. Only for the reader.
    pub(super) fn claim(&self, lap: u32) -> Claim {
        let (from, to) = (state(lap, READY), state(lap, TAKEN));
        match self
            .0
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => Claim::Taken,
            // The writer has swapped first: the message is its own again.
            Err(found) if found == state(lap, RECLAIMED) => Claim::TakenBack,
            // Neither side has put the cell in this state.
            Err(_) => Claim::Corrupted,
        }
    }

    /// Gives the cell back to the writer, for the next lap. Only for the reader.
    #[inline]
    pub(super) fn release(&self, lap: u32) {
        // Release pairs with the Acquire in `look`: our reads of the content come before.
        self.0
            .store(state(lap.wrapping_add(1), FREE), Ordering::Release);
    }
}
