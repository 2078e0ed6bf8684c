//! This crate's errors as those of the system, for functions that return `io::Result`.

use std::io::{Error, ErrorKind};

use super::{PoolError, TimeoutError};

/// Makes an error of the kind that fits best. The [`PoolError`] is in it
/// ([`get_ref`](Error::get_ref)).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::io;
///
/// fn pool(workers: usize) -> io::Result<Pool<Threads>> {
///     Ok(Pool::threads(workers)?)
/// }
///
/// assert_eq!(pool(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
/// ```
impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let kind = match &error {
            PoolError::ZeroWorkers
            | PoolError::InvalidVariable { .. }
            | PoolError::InvalidOption { .. }
            | PoolError::UnknownEngine { .. } => ErrorKind::InvalidInput,
            PoolError::StartTimedOut { .. } => ErrorKind::TimedOut,
            PoolError::Privileged => ErrorKind::PermissionDenied,
            PoolError::ForeignExecutable | PoolError::ForeignFunction => ErrorKind::Unsupported,
            PoolError::ThreadsRunning { .. } | PoolError::QueueFull { .. } => {
                ErrorKind::ResourceBusy
            }
            PoolError::Closed => ErrorKind::BrokenPipe,
            _ => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Makes an error of the kind [`TimedOut`](ErrorKind::TimedOut).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::io;
/// use std::sync::mpsc::channel;
/// use std::time::Duration;
///
/// let pool = Pool::threads(1)?;
/// let (open, gate) = channel::<()>();
/// let mut task = pool.submit(|gate: std::sync::mpsc::Receiver<()>| gate.recv().is_ok(), gate);
/// let late = task.result_timeout(Duration::ZERO).unwrap_err();
/// assert_eq!(io::Error::from(late).kind(), io::ErrorKind::TimedOut);
/// # drop(open);
/// # Ok::<(), PoolError>(())
/// ```
impl From<TimeoutError> for Error {
    fn from(error: TimeoutError) -> Self {
        Self::new(ErrorKind::TimedOut, error)
    }
}
