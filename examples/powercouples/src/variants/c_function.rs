//! `c-function`: the same loop, with the work done in C.
//!
//! Before adding workers, look for a better way to do the work. This one keeps its numbers in a
//! base that is a power of ten, and so saves the conversion from binary to decimal on which `pure`
//! spends most of its time.

use super::Failure;
use crate::couple::{Couple, Power};
use crate::kernel;
use crate::progress::Bar;

pub(super) fn run(couples: &[Couple], bar: &mut Bar) -> Result<Vec<Power>, Failure> {
    let mut powers = Vec::with_capacity(couples.len());
    for &couple in couples {
        powers.push(kernel::power(couple).map_err(|error| Failure::Kernel(couple, error))?);
        bar.at(powers.len());
    }
    Ok(powers)
}
