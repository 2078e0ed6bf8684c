//! Decisions that can be made again: numbers at random from a seed that is printed.

use std::hash::{BuildHasher, RandomState};

/// xorshift64 (Marsaglia, J. Stat. Softw. 8(14), 2003).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Seeds that follow each other are to have nothing in common, and none may be 0.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn split(&mut self) -> Self {
        Self::new(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A number that an environment variable gives.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Returns the seed of a test that decides at random: that of `MANYHANDS_SEED`, or else a new one.
/// Prints it.
pub fn seed() -> u64 {
    let seed = number("MANYHANDS_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("MANYHANDS_SEED={seed}");
    seed
}
