//! The modes of a claim, and which claims can exist side by side.

use std::ops::Range;

use crate::error::ClaimError;

/// One claim, in the state of an entry.
pub(super) const ONE: u64 = 1 << 24;
/// The bits for the number of claims, in the state of an entry.
pub(super) const COUNT: u64 = 0xffff_ffff << 24;

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
    /// A claim of a worker, under a lend.
    SubWrite = 6,
    SubRead = 7,
}

impl Mode {
    /// Returns the mode in the state of an entry. Returns `None` if the entry is free or the number
    /// is not a mode.
    pub(super) fn of(state: u64) -> Option<Self> {
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

    pub(super) fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::LendRead | Self::SubRead)
    }

    pub(super) fn is_sub(self) -> bool {
        matches!(self, Self::SubWrite | Self::SubRead)
    }

    pub(super) fn is_lend(self) -> bool {
        matches!(self, Self::LendWrite | Self::LendRead)
    }

    /// Returns whether the claims of one member to the same elements share one entry.
    pub(super) fn is_counted(self) -> bool {
        matches!(self, Self::Read | Self::Atomic | Self::SubRead)
    }
}

/// What is claimed, and by which member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) member: u16,
    pub(super) mode: Mode,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The lend above a [`Mode::SubWrite`] or [`Mode::SubRead`]. Otherwise 0.
    pub(super) lend: u64,
}

impl Terms {
    /// Returns the state of an entry with one such claim.
    pub(super) fn state(&self) -> u64 {
        u64::from(self.member) << 8 | self.mode as u64 | ONE
    }

    /// Returns whether the two ranges have an element in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        // An empty range overlaps with nothing.
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Returns whether the range is empty. An empty claim blocks no other claim.
    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Returns whether a claim on these terms cannot exist beside one on `other`.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let both_read = self.mode.only_reads() && other.mode.only_reads();
        match (self.mode.is_sub(), other.mode.is_sub()) {
            _ if both_read => false,
            // Two workers of one call exclude each other only where they overlap.
            (true, true) if self.lend == other.lend => self.overlaps(other),
            // A worker's claim lies under its own lend.
            (true, false) if self.lend == other.lend => false,
            // The other lend has other units, so each of the two claims counts for the whole array.
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

/// Turns bounds into a range within `0..len`.
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
