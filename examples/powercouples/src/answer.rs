//! What the program reports of all the powers: the best couple, the totals, and how many powers are
//! distinct.

use serde::Serialize;

use crate::couple::{Couple, Power};

/// The couple with the greatest digit sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Best {
    /// Its base.
    pub(crate) a: u32,
    /// Its exponent.
    pub(crate) b: u32,
    /// What the digits of a^b add up to.
    pub(crate) digit_sum: u64,
}

/// The answer of one variant. All variants must come to the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    /// The first couple in input order, if several have the greatest digit sum.
    pub(crate) best: Best,
    /// All digit sums, added up.
    pub(crate) digit_sum_total: u64,
    /// All digits, counted.
    pub(crate) digits_total: u64,
    /// How many different powers there are among the couples with a ≥ 2 and b ≥ 2.
    pub(crate) distinct: usize,
}

impl Answer {
    /// Reduces the results of the loop, one for each couple. `None` if there are no couples.
    pub(crate) fn of(couples: &[Couple], powers: &[Power]) -> Option<Self> {
        assert_eq!(couples.len(), powers.len(), "each couple has its power");
        let mut all = couples.iter().zip(powers);
        let (couple, power) = all.next()?;
        let mut best = (couple, power);
        let mut digit_sum_total = power.digit_sum;
        let mut digits_total = power.digits;
        for (couple, power) in all {
            if power.digit_sum > best.1.digit_sum {
                best = (couple, power);
            }
            digit_sum_total += power.digit_sum;
            digits_total += power.digits;
        }
        let (&Couple { a, b }, &Power { digit_sum, .. }) = best;
        Some(Self {
            best: Best { a, b, digit_sum },
            digit_sum_total,
            digits_total,
            distinct: distinct_powers(couples),
        })
    }
}

/// Returns how many different numbers a^b there are among the couples with a ≥ 2 and b ≥ 2.
///
/// They are counted exactly, and not one of them is computed. Every a ≥ 2 is r^k in exactly one way
/// with the greatest k. This k is the greatest common divisor of the exponents in the prime
/// factorisation of a. Its root r is no power itself. So a^b = r^(k·b). Two powers r^m and s^n of
/// such roots are equal only if r = s and m = n: both are what the same rule makes of the one
/// number. Each power thus has one name, (r, k·b), and names are cheap to compare.
fn distinct_powers(couples: &[Couple]) -> usize {
    let counted = || {
        couples
            .iter()
            .filter(|couple| couple.a >= 2 && couple.b >= 2)
    };
    let Some(greatest) = counted().map(|couple| couple.a).max() else {
        return 0;
    };
    let roots = roots_up_to(greatest);
    let mut names: Vec<(u32, u32)> = counted()
        .map(|&Couple { a, b }| {
            let (root, exponent) = roots[a as usize];
            (root, exponent * b)
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

/// For each a from 2 to `greatest`, at its own index, the r and the greatest k with a = r^k.
fn roots_up_to(greatest: u32) -> Vec<(u32, u32)> {
    let mut roots: Vec<(u32, u32)> = (0..=greatest).map(|a| (a, 1)).collect();
    for root in 2..=greatest.isqrt() {
        // The roots are tried in ascending order. So the first that reaches a power is its root. A
        // number that was reached before is a power of a smaller one.
        if roots[root as usize].1 == 1 {
            for exponent in 2..=greatest.ilog(root) {
                roots[root.pow(exponent) as usize] = (root, exponent);
            }
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use num_bigint::BigUint;

    use super::*;

    fn grid(n: u32) -> Vec<Couple> {
        (1..=n)
            .flat_map(|a| (1..=n).map(move |b| Couple { a, b }))
            .collect()
    }

    #[test]
    fn distinct_powers_are_those_that_differ_when_written_out() {
        for n in 1..=40 {
            let couples = grid(n);
            let written_out: HashSet<BigUint> = couples
                .iter()
                .filter(|couple| couple.a >= 2 && couple.b >= 2)
                .map(|couple| BigUint::from(couple.a).pow(couple.b))
                .collect();
            assert_eq!(distinct_powers(&couples), written_out.len(), "grid {n}");
        }
    }

    #[test]
    fn distinct_powers_of_the_grid_of_100_are_those_of_project_euler_29() {
        assert_eq!(distinct_powers(&grid(100)), 9_183);
    }

    #[test]
    fn roots_are_no_powers_and_their_powers_give_the_number_back() {
        for (a, (root, exponent)) in roots_up_to(100_000).into_iter().enumerate().skip(2) {
            assert_eq!(root.pow(exponent) as usize, a);
            let is_power = (2..=root.isqrt()).any(|r| r.pow(root.ilog(r)) == root);
            assert!(!is_power, "{a} = {root}^{exponent}");
        }
    }

    #[test]
    fn couples_given_twice_count_once() {
        let couples = [(2, 4), (4, 2), (16, 1), (2, 4), (1, 5)].map(|(a, b)| Couple { a, b });
        assert_eq!(distinct_powers(&couples), 1);
    }

    #[test]
    fn of_equal_digit_sums_the_first_is_best() {
        let couples = [(2, 3), (8, 1), (1, 1), (2, 2)].map(|(a, b)| Couple { a, b });
        let powers = [8, 8, 1, 4].map(|digit_sum| Power {
            digits: 1,
            digit_sum,
        });
        let answer = Answer::of(&couples, &powers).unwrap();
        assert_eq!(
            answer.best,
            Best {
                a: 2,
                b: 3,
                digit_sum: 8
            }
        );
        assert_eq!(
            (answer.digit_sum_total, answer.digits_total, answer.distinct),
            (21, 4, 2)
        );
    }

    #[test]
    fn no_couples_have_no_answer() {
        assert_eq!(Answer::of(&[], &[]), None);
    }
}
