//! [`Error`]: any error of the crate, for programs that only pass errors on.

use crate::barrier::BarrierError;
#[cfg(target_os = "linux")]
use crate::error::{ClaimError, ProcessError};
use crate::error::{PoolError, TaskError, TimeoutError};
#[cfg(target_os = "linux")]
use crate::memory::ShareError;
#[cfg(target_os = "linux")]
use crate::named::{NameError, SharedMemoryError};
#[cfg(target_os = "linux")]
use crate::queue::{JoinError, PopError, PushError, TaskDoneError};

/// A result with any [`Error`] of the crate.
///
/// # Examples
///
/// ```
/// use manyhands::{Pool, Queue};
///
/// fn main() -> manyhands::Result<()> {
///     let queue = Queue::bounded(8)?;
///     let sum: Vec<u64> = Pool::processes(2)?.map(|x| x + 1, 0..3)?;
///     queue.push(sum)?;
///     assert_eq!(queue.pop()?, [1, 2, 3]);
///     Ok(())
/// }
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of the crate, but for those of locks, which borrow the lock.
///
/// Its message and its source are those of the error that it holds. A caller that acts on an error
/// had better keep the error's own type.
///
/// # Examples
///
/// ```
/// use manyhands::{Error, Pool, PoolError};
///
/// let error = Error::from(Pool::threads(0).unwrap_err());
/// assert!(matches!(error, Error::Pool(PoolError::ZeroWorkers)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task or an item of a call has no result.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A pool could not be made, or takes no more work.
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[cfg(target_os = "linux")]
    /// A child process could not be started or reached.
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[cfg(target_os = "linux")]
    /// A shared object could not be made or reached.
    #[error(transparent)]
    Share(#[from] ShareError),
    #[cfg(target_os = "linux")]
    /// Elements of a shared array could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[cfg(target_os = "linux")]
    /// Memory with a name could not be made or opened.
    #[error(transparent)]
    SharedMemory(#[from] SharedMemoryError),
    #[cfg(target_os = "linux")]
    /// An item could not be pushed. The error no longer has the item.
    #[error(transparent)]
    Push(PushError<()>),
    #[cfg(target_os = "linux")]
    /// No item could be popped.
    #[error(transparent)]
    Pop(#[from] PopError),
    #[cfg(target_os = "linux")]
    /// The items of a queue are not all done.
    #[error(transparent)]
    Join(#[from] JoinError),
    #[cfg(target_os = "linux")]
    /// A process has acknowledged more items than it has taken.
    #[error(transparent)]
    TaskDone(#[from] TaskDoneError),
    #[cfg(target_os = "linux")]
    /// Memory cannot have this name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A barrier is broken.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// No task has ended in time.
    #[error(transparent)]
    Timeout(#[from] TimeoutError),
}

#[cfg(target_os = "linux")]
impl<T> From<PushError<T>> for Error {
    fn from(error: PushError<T>) -> Self {
        Self::Push(error.without_item())
    }
}
