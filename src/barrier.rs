//! The results of a wait at a barrier: the same for the barrier of threads and the one of
//! processes.

use serde::{Deserialize, Serialize};

/// The pass of a party through a barrier: all parties have arrived, and this one goes on with them.
///
/// # Examples
///
/// ```
/// use manyhands::thread::Barrier;
/// use std::thread;
///
/// let barrier = Barrier::new(3);
/// let passes = thread::scope(|scope| {
///     let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| barrier.wait())).collect();
///     threads
///         .into_iter()
///         .map(|thread| thread.join().unwrap())
///         .collect::<Result<Vec<_>, _>>()
/// })?;
/// let mut order: Vec<usize> = passes.iter().map(|pass| pass.index()).collect();
/// order.sort_unstable();
/// assert_eq!(order, [0, 1, 2]);
/// assert_eq!(passes.iter().filter(|pass| pass.is_leader()).count(), 1);
/// # Ok::<(), manyhands::thread::BrokenBarrier>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierPass {
    index: usize,
    is_leader: bool,
}

impl BarrierPass {
    /// Makes the pass of the party that was number `index`, from 0, to arrive.
    pub(crate) const fn new(index: usize, parties: usize) -> Self {
        Self {
            index,
            // The last to arrive: it is awake already, and need not wait to be woken before it can
            // lead.
            is_leader: index + 1 == parties,
        }
    }

    /// Returns true for exactly one party of each pass, the last to arrive: for work that one party
    /// must do for all.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// assert!(Barrier::new(1).wait()?.is_leader());
    /// # Ok::<(), manyhands::thread::BrokenBarrier>(())
    /// ```
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Returns how many had arrived before this party: 0 to `parties - 1`, each of them once in a
    /// pass.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// assert_eq!(Barrier::new(1).wait()?.index(), 0);
    /// # Ok::<(), manyhands::thread::BrokenBarrier>(())
    /// ```
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }
}

/// The error of a barrier that will not be passed: a party was late, a party was killed (of a
/// barrier between processes), or a caller has aborted or reset the barrier.
///
/// Every party gets it, those that wait and those that come later, until the barrier is reset.
///
/// # Examples
///
/// ```
/// use manyhands::thread::{Barrier, BrokenBarrier};
///
/// let barrier = Barrier::new(2);
/// barrier.abort();
/// assert_eq!(barrier.wait(), Err(BrokenBarrier));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "the barrier is broken: a party was late or was killed, or it was aborted or reset; `reset` makes it usable again"
)]
pub struct BrokenBarrier;
