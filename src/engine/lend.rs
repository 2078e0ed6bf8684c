//! The engines that lend an array to a function, part by part.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::any::each;
use super::{AnyEngine, Executor, Forked, Run, Serial, Threads};
use crate::array::lend::Lent;
use crate::call::Plan;
use crate::call::portable::Portable;
use crate::error::TaskError;

/// An engine that can lend `L` ([`Chunks`](crate::shm::Chunks), [`Zipped`](crate::shm::Zipped),
/// [`Tiles`](crate::shm::Tiles)) to the function `F`.
/// [`Pool::for_each_chunk`](crate::Pool::for_each_chunk) and its like ask for this bound. With a
/// context, `L` is [`With`](crate::shm::With) one of them, and `C` the context.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::shm::Chunks;
/// use manyhands::{Lend, SharedArray};
///
/// fn clear<E, F>(
///     pool: &Pool<E>,
///     array: &mut SharedArray<u64>,
///     f: F,
/// ) -> Result<(), TaskError>
/// where
///     F: Fn(usize, &mut [u64]),
///     E: Lend<Chunks<u64>, F>,
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
    note = "threads: function and context are `Sync`",
    note = "processes: the function captures nothing, or is `closure!([names] |index: usize, chunk: &mut [T]| ..)`; otherwise use the form that ends in `_with`, whose context implements serde's `Serialize` and `DeserializeOwned`",
    note = "forked: the function may capture anything"
)]
pub trait Lend<L, F, C = ()>: Executor {
    #[doc(hidden)]
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError>;
}

impl<L: Lent<F, C>, F, C> Lend<L, F, C> for Serial {
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError> {
        let run = |index| lent.run(&f, context, index);
        Run::map(self, plan, run, 0..lent.items()).map(drop)
    }
}

impl<L: Lent<F, C>, F: Sync, C: Sync> Lend<L, F, C> for Threads {
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError> {
        let run = |index| lent.run(&f, context, index);
        Run::map(self, plan, run, 0..lent.items()).map(drop)
    }
}

impl<L: Lent<F, C>, F, C> Lend<L, F, C> for Forked {
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError> {
        let run = |index| lent.run(&f, context, index);
        Run::map(self, plan, run, 0..lent.items()).map(drop)
    }
}

impl<L, F, C> Lend<L, F, C> for AnyEngine
where
    L: Lent<F, C>,
    F: Portable + Sync,
    C: Serialize + DeserializeOwned + Sync + 'static,
{
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError> {
        each!(self, engine => engine.lend(plan, f, context, lent))
    }
}
