//! The engines that lend an array to a function, part by part.

use super::{Executor, Forked, Run, RunAgain, Serial, Threads};
use crate::array::lend::Lent;
use crate::call::{Never, Plan};
use crate::error::TaskError;

pub use crate::array::lend::{LentChunks, LentPairs, LentTiles};

/// An engine that can lend `L` ([`LentChunks`], [`LentPairs`], [`LentTiles`]) to the function `F`.
/// [`Pool::for_each_chunk`](crate::Pool::for_each_chunk) and its like ask for this bound.
///
/// # Examples
///
/// ```
/// use manyhands::engine::lend::LentChunks;
/// use manyhands::prelude::*;
/// use manyhands::{RunLent, SharedArray};
///
/// fn clear<E, F>(
///     pool: &Pool<E>,
///     array: &mut SharedArray<u64>,
///     f: F,
/// ) -> Result<(), TaskError>
/// where
///     F: Fn(usize, &mut [u64]),
///     E: RunLent<LentChunks<u64>, F>,
/// {
///     pool.for_each_chunk(array, 16, f)
/// }
///
/// let mut array = SharedArray::from_slice(&[1; 40])?;
/// clear(&Pool::processes(2)?, &mut array, |_, chunk| chunk.fill(0))?;
/// assert_eq!(array.to_vec()?, [0; 40]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot lend `{L}` to this function",
    note = "threads: the function is `Sync`",
    note = "processes: the function captures nothing, or is `closure!([names] |index: usize, chunk: &mut [T]| ..)`; for tiles `closure!([names] |mut tile: TileMut<'_, T>| ..)`",
    note = "forked: the function may capture anything"
)]
pub trait RunLent<L, F>: Executor {
    #[doc(hidden)]
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError>;
}

impl<L: Lent<F>, F> RunLent<L, F> for Serial {
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError> {
        let (items, lent) = (lent.items(), lent.into_wire());
        let run = |index| L::run(&lent, &f, index);
        if plan.limits.retry().is_for_answers() {
            return RunAgain::map_again(self, plan, run, 0..items, Never).map(drop);
        }
        Run::map(self, plan, run, 0..items, Never).map(drop)
    }
}

impl<L: Lent<F>, F: Sync> RunLent<L, F> for Threads {
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError> {
        let (items, lent) = (lent.items(), lent.into_wire());
        let run = |index| L::run(&lent, &f, index);
        if plan.limits.retry().is_for_answers() {
            return RunAgain::map_again(self, plan, run, 0..items, Never).map(drop);
        }
        Run::map(self, plan, run, 0..items, Never).map(drop)
    }
}

impl<L: Lent<F>, F> RunLent<L, F> for Forked {
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError> {
        let (items, lent) = (lent.items(), lent.into_wire());
        Run::map(
            self,
            plan,
            |index| L::run(&lent, &f, index),
            0..items,
            Never,
        )
        .map(drop)
    }
}
