//! What is claimed, and what goes together with what.

use std::ops::Range;

use crate::error::ClaimError;

/// One such claim, in the state of an entry.
pub(super) const ONE: u64 = 1 << 24;
/// How many such claims there are, in the state of an entry.
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
    /// A worker's, under a lend.
    SubWrite = 6,
    SubRead = 7,
}

impl Mode {
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

    /// Whether a member's claims of the same elements are one entry.
    pub(super) fn is_counted(self) -> bool {
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
    pub(super) fn state(&self) -> u64 {
        u64::from(self.member) << 8 | self.mode as u64 | ONE
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        // An empty range overlaps with nothing.
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// An empty claim is in nobody's way.
    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether a claim on these terms cannot be beside one on `other`.
    pub(super) fn clashes(&self, other: &Self) -> bool {
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
