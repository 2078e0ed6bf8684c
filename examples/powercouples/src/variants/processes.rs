//! `processes`: the same `map`, over workers that share no memory.
//!
//! The couples are sent to the workers and the powers back, so both have to be serialisable, and
//! the function may take nothing along from here: it cannot borrow `couples`, so it is given
//! copies. What that buys: if a worker is killed or crashes, its couple is tried once more on a new
//! worker, and the others never notice. A couple that loses two workers is an error that names it.

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
    let pool = Pool::processes(options.workers)?;
    let powers = pool
        .call()
        .schedule(options.schedule)
        .retries(1)
        .on_progress(|progress| bar.at(progress.done))
        .map(power, couples.iter().copied())
        .map_err(|error| Failure::of_task(error, couples))?;
    pool.close()?;
    Ok(powers)
}
