//! `forked`: the same `map`, over children forked for this one call.
//!
//! A forked child starts with a copy of everything the caller has, made by the system only where
//! one of them writes. So the function borrows, as on threads, although it runs in another process;
//! only the powers are sent. The price: a fork takes the calling thread alone along, and a lock
//! that another thread holds stays locked in the child for ever. The call is therefore refused
//! while other threads run.

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
    let pool = Pool::forked(options.workers)?;
    let powers = pool
        .call()
        .schedule(options.schedule)
        .on_progress(|progress| bar.at(progress.done))
        .map(|&couple| power(couple), couples)
        .map_err(|error| Failure::of_task(error, couples))?;
    pool.close()?;
    Ok(powers)
}
