//! One power, in Rust: the work of every variant but the one in C.

use num_bigint::BigUint;

use crate::couple::{Couple, Power};

/// Computes a^b exactly: how many digits it has, and what they add up to.
///
/// Most of the time goes into [`to_radix_le`](BigUint::to_radix_le), which turns a binary number
/// into decimal digits.
pub(crate) fn power(Couple { a, b }: Couple) -> Power {
    // A factor of ten in a only appends zeros, so it need not go through the conversion.
    let mut significant = a;
    let mut zeros = 0;
    while significant.is_multiple_of(10) {
        significant /= 10;
        zeros += u64::from(b);
    }
    let digits = BigUint::from(significant).pow(b).to_radix_le(10);
    Power {
        digits: digits.len() as u64 + zeros,
        digit_sum: digits.into_iter().map(u64::from).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_decimal_text_of_the_power() {
        for a in 1..=120 {
            for b in 1..=40 {
                let text = BigUint::from(a).pow(b).to_string();
                let expected = Power {
                    digits: text.len() as u64,
                    digit_sum: text.bytes().map(|digit| u64::from(digit - b'0')).sum(),
                };
                assert_eq!(power(Couple { a, b }), expected, "{a}^{b}");
            }
        }
    }
}
