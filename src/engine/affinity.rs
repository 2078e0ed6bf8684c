//! [`Affinity`]: on which cores workers run.

use crate::error::PoolError;
use crate::text::as_text;

/// On which cores the workers of a pool may run.
///
/// As text, and with serde, they are `inherit`, `spread` and `cores:0,2`.
///
/// # Examples
///
/// ```
/// use manyhands::engine::Affinity;
/// use manyhands::prelude::*;
///
/// let on = |affinity| Processes::builder().workers(4).affinity(affinity).build();
/// // On four cores, if there are that many.
/// assert_eq!(on(Affinity::Spread)?.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
/// assert!(matches!(on(Affinity::Cores(vec![])), Err(PoolError::InvalidOption { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Affinity {
    /// All workers run on all cores that this process may use: the scheduler decides.
    #[default]
    Inherit,
    /// Each worker runs on one core: worker `n` on the `n`-th of those this process may use, and
    /// again from the first when there are more workers than cores.
    Spread,
    /// Each worker runs on one core of this list, by the system's numbers: worker `n` on the
    /// `n`-th, and again from the first.
    Cores(Vec<usize>),
}

as_text!(
    Affinity,
    "affinity",
    "inherit, spread, or cores with their numbers (cores:0,2)",
    Inherit = "inherit",
    Spread = "spread";
    Cores = "cores"
);

impl Affinity {
    /// Returns the core of the worker with this index, where this process may use these cores;
    /// `None` if the scheduler chooses.
    pub(super) fn core(&self, worker: usize, cores: &[usize]) -> Option<usize> {
        let list = match self {
            Self::Inherit => &[],
            Self::Spread => cores,
            Self::Cores(list) => list.as_slice(),
        };
        (!list.is_empty()).then(|| list[worker % list.len()])
    }

    /// Refuses a list of no cores.
    pub(super) fn check(&self) -> Result<(), PoolError> {
        if *self == Self::Cores(Vec::new()) {
            return Err(PoolError::InvalidOption {
                option: "affinity".into(),
                value: "an empty list".into(),
                reason: "each worker needs a core to run on".into(),
            });
        }
        Ok(())
    }
}
