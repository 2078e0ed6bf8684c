//! [`Error`]: any error of the crate, for programs that only pass errors on.

use crate::error::{ClaimError, PoolError, ProcessError, TaskError, TimeoutError};
use crate::memory::ShareError;
use crate::named::SharedMemoryError;
use crate::queue::{JoinError, PopError, PushError};

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

/// Any error of the crate.
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
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task or an item of a call has no result.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A pool could not be made, or takes no more work.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A child process could not be started or reached.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A shared object could not be made or reached.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Elements of a shared array could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Memory with a name could not be made or opened.
    #[error(transparent)]
    SharedMemory(#[from] SharedMemoryError),
    /// An item could not be pushed. The error no longer has the item.
    #[error(transparent)]
    Push(PushError<()>),
    /// No item could be popped.
    #[error(transparent)]
    Pop(#[from] PopError),
    /// The items of a queue were not done in time.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A task was not finished in time.
    #[error(transparent)]
    Timeout(#[from] TimeoutError),
}

impl<T> From<PushError<T>> for Error {
    fn from(error: PushError<T>) -> Self {
        Self::Push(error.without_item())
    }
}
