//! What goes into the loop, a [`Couple`], and what comes out of it, a [`Power`].

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Between these lie both numbers of a couple. The greatest power has 500,001 digits.
pub(crate) const RANGE: RangeInclusive<u32> = 1..=100_000;

/// Base and exponent of a power, both in [`RANGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Couple {
    /// The base.
    pub(crate) a: u32,
    /// The exponent.
    pub(crate) b: u32,
}

impl fmt::Display for Couple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.a, self.b)
    }
}

/// What the loop finds out about a^b.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Power {
    /// How many decimal digits it has.
    pub(crate) digits: u64,
    /// What they add up to.
    pub(crate) digit_sum: u64,
}
