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
/// # Ok::<(), manyhands::thread::BarrierError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierWaitResult {
    index: usize,
    is_leader: bool,
}

impl BarrierWaitResult {
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
    /// # Ok::<(), manyhands::thread::BarrierError>(())
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
    /// # Ok::<(), manyhands::thread::BarrierError>(())
    /// ```
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }
}

/// The reason why a wait at a barrier did not end with a pass.
///
/// A barrier that is broken stays so until it is reset. The parties that wait get the reason, and
/// so do those that come later. [`PartyDied`](Self::PartyDied) comes of the barrier of processes
/// only: a thread cannot be killed alone.
///
/// # Examples
///
/// ```
/// use manyhands::thread::{Barrier, BarrierError};
///
/// let barrier = Barrier::new(2);
/// barrier.abort();
/// assert_eq!(barrier.wait(), Err(BarrierError::Aborted));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The timeout of this call, or of another party that waited, was over before all parties had
    /// come.
    #[error(
        "the barrier is broken: a party waited for longer than its timeout; `reset` makes it usable again"
    )]
    TimedOut,
    /// A process with a handle of the barrier was killed or crashed, or ended while one of its
    /// threads waited; or a process was killed in the middle of a change to the barrier.
    #[error(
        "the barrier is broken: a process that had a handle of it died; `reset` makes it usable again"
    )]
    PartyDied,
    /// A party called `abort`.
    #[error("the barrier is broken: it was aborted; `reset` makes it usable again")]
    Aborted,
    /// A party called `reset` while this one waited. The barrier is usable.
    #[error("the barrier was reset while this party waited for the others")]
    Reset,
}
