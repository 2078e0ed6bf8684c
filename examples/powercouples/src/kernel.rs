//! One power, in C: the safe side of `kernel/power.c`.

use std::ffi::c_int;
use std::fmt;

use crate::couple::{Couple, Power};

/// The statuses of `power.h`.
const OK: c_int = 0;
const OUT_OF_RANGE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;

unsafe extern "C" {
    fn power_couple(a: u32, b: u32, digits: *mut u64, digit_sum: *mut u64) -> c_int;
}

/// Why the C kernel gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelError {
    /// One of the numbers lies outside [`RANGE`](crate::couple::RANGE).
    OutOfRange,
    /// There was no memory for the digits.
    OutOfMemory,
    /// A status that `power.h` does not list.
    Unknown(c_int),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("the C kernel takes numbers from 1 to 100000"),
            Self::OutOfMemory => f.write_str("the C kernel found no memory for the digits"),
            Self::Unknown(status) => write!(f, "the C kernel returned the unknown status {status}"),
        }
    }
}

/// Does in C what [`power`](crate::power::power) does in Rust.
pub(crate) fn power(Couple { a, b }: Couple) -> Result<Power, KernelError> {
    let mut digits = 0;
    let mut digit_sum = 0;
    // SAFETY: the declaration above is that of power.h. Both pointers come from exclusive
    // references to u64s that outlive the call, and the function keeps neither. It accepts every a
    // and b (those out of range are refused), has no state, and does not unwind.
    let status = unsafe { power_couple(a, b, &raw mut digits, &raw mut digit_sum) };
    match status {
        OK => Ok(Power { digits, digit_sum }),
        OUT_OF_RANGE => Err(KernelError::OutOfRange),
        OUT_OF_MEMORY => Err(KernelError::OutOfMemory),
        status => Err(KernelError::Unknown(status)),
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    fn assert_same(a: u32, b: u32) {
        let couple = Couple { a, b };
        assert_eq!(power(couple), Ok(crate::power::power(couple)), "{a}^{b}");
    }

    #[test]
    fn agrees_with_rust_on_a_grid() {
        for a in 1..=130 {
            for b in 1..=130 {
                assert_same(a, b);
            }
        }
    }

    #[test]
    fn agrees_with_rust_at_the_ends_of_the_range() {
        for (a, b) in [
            (1, 1),
            (100_000, 1),
            (99_999, 1),
            (1, 100_000),
            (2, 100_000),
            (10, 100_000),
            (99_999, 100),
            (100_000, 99_999),
            (99_999, 100_000),
            (100_000, 100_000),
        ] {
            assert_same(a, b);
        }
    }

    /// A wrong carry shows with limbs of nothing but nines, or of nothing but zeros and a one.
    #[test]
    fn agrees_with_rust_where_digits_are_all_alike() {
        for b in 1..=700 {
            for a in [9, 99, 999, 9_999, 99_999, 11, 101, 1_001, 10_001, 90_001] {
                assert_same(a, b);
            }
        }
    }

    /// Numbers of 64 limbs and more are squared by Karatsuba's method, on several levels and in
    /// unequal halves.
    #[test]
    fn agrees_with_rust_on_long_numbers() {
        for a in [3, 7, 6_561, 99_991] {
            for b in (2_000..=6_000).step_by(397) {
                assert_same(a, b);
            }
        }
    }

    /// `POWERCOUPLES_SEED` repeats a run that failed.
    #[test]
    fn agrees_with_rust_on_random_couples() {
        let seed = match env::var("POWERCOUPLES_SEED") {
            Ok(seed) => seed.parse().expect("POWERCOUPLES_SEED is a whole number"),
            Err(_) => u64::from(std::process::id()),
        };
        println!("POWERCOUPLES_SEED={seed}");
        let mut state = seed;
        // SplitMix64.
        let mut below = |limit: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ mixed >> 31) % limit
        };
        for _ in 0..2_000 {
            // Most exponents short, some long, so that there are numbers of every length.
            let longest = 10_u64.pow(1 + below(4) as u32 / 3 * 2 + below(2) as u32);
            assert_same(1 + below(100_000) as u32, 1 + below(longest) as u32);
        }
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        for (a, b) in [
            (0, 1),
            (1, 0),
            (100_001, 1),
            (1, 100_001),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(
                power(Couple { a, b }),
                Err(KernelError::OutOfRange),
                "{a}^{b}"
            );
        }
    }
}
