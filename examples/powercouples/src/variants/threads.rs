//! `threads`: the loop becomes a `map` over a pool.
//!
//! Threads share their memory, so each one reads its couples where they lie, in the caller's slice,
//! and nothing has to be sent. The results come back in the order of the couples, whichever ended
//! first.

use manyhands::prelude::*;

use super::{Failure, Options};
use crate::couple::{Couple, Power};
use crate::power::power;
use crate::progress::Bar;

pub(super) fn run(
    couples: &[Couple],
    options: Options,
    bar: &mut Bar,
) -> Result<Vec<Power>, Failure> {
    let pool = Pool::threads(options.workers)?;
    let powers = pool
        .call()
        .schedule(options.schedule)
        .on_progress(|progress| bar.at(progress.done))
        .map(|&couple| power(couple), couples)
        .map_err(|error| Failure::of_task(error, couples))?;
    pool.close()?;
    Ok(powers)
}
