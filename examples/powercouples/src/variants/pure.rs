//! `pure`: one couple after the other. What every other variant is measured by.

use crate::couple::{Couple, Power};
use crate::power::power;
use crate::progress::Bar;

pub(super) fn run(couples: &[Couple], bar: &mut Bar) -> Vec<Power> {
    let mut powers = Vec::with_capacity(couples.len());
    for &couple in couples {
        powers.push(power(couple));
        bar.at(powers.len());
    }
    powers
}
