//! What can go wrong with objects that processes share.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

use crate::error::holder;

/// Why a shared object could not be made, or could not be reached by its handle.
///
/// # Examples
///
/// ```
/// use manyhands::{SharedArray, shm::ShareError};
///
/// let error = SharedArray::<u8>::zeros(1 << 45).unwrap_err();
/// assert!(matches!(error, ShareError::OutOfMemory { .. }), "{error}");
/// ```
///
/// A task can hand the error on to its caller:
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{SharedArray, shm::ShareError};
///
/// let make = |len: usize| SharedArray::<u8>::zeros(len);
/// let made: Result<SharedArray<u8>, ShareError> =
///     Pool::processes(1)?.submit(make, 1 << 45).result()?;
/// assert!(
///     matches!(made, Err(ShareError::OutOfMemory { .. })),
///     "{made:?}"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The system has too little memory left. Nothing was made.
    #[error("{bytes} bytes of shared memory cannot be had: {reason}")]
    #[non_exhaustive]
    OutOfMemory {
        /// The number of bytes that were asked for.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The family has as many objects as one family of processes can have at a time.
    #[error(
        "there are {limit} shared objects already, which is the most that one family of processes can have; drop some first"
    )]
    #[non_exhaustive]
    TooManyObjects {
        /// The limit.
        limit: usize,
    },
    /// As many processes share objects as one family can have at a time.
    #[error("{limit} processes share objects already, which is the most that one family can have")]
    #[non_exhaustive]
    TooManyProcesses {
        /// The limit.
        limit: usize,
    },
    /// The handle comes from a program that is no relative of this process. Handles are good in the
    /// process that made the object, in those that it starts through this crate or forks, in
    /// theirs, and in their parents.
    #[error(
        "the handle is from another family of processes; only a process and those started by it through manyhands share objects"
    )]
    Foreign,
    /// The last process that had the object let go of it before this one got it.
    #[error(
        "the shared object is gone: the last process that had a handle dropped it, or died, before this one got its own"
    )]
    Gone,
    /// The handle is for an object of another type.
    #[error("the handle is of another type than the shared object")]
    OtherType,
    /// The caller asked for something that makes no sense.
    #[error("{what} cannot be {value}: {reason}")]
    #[non_exhaustive]
    Invalid {
        /// What the error is about.
        what: Cow<'static, str>,
        /// What the caller asked for.
        value: String,
        /// Why that cannot be.
        reason: Cow<'static, str>,
    },
    /// Another process holds the lock on what the family shares, and does not go on: it is stopped
    /// (`SIGSTOP`, a debugger, a frozen container), or was not given a core for seconds. Nothing
    /// was made or changed.
    #[error(
        "the ledger of shared memory is locked by {}, which does not go on; let it continue if it was stopped, or end it, and \
         try again",
        holder(*.by)
    )]
    #[non_exhaustive]
    Busy {
        /// The process, if it is known.
        by: Option<u32>,
    },
    /// The system refused something that should work.
    #[error("{what}: {reason}")]
    #[non_exhaustive]
    System {
        /// What was tried.
        what: Cow<'static, str>,
        /// What the system said.
        reason: String,
    },
}

impl ShareError {
    pub(crate) fn system(what: &'static str, error: &io::Error) -> Self {
        Self::System {
            what: what.into(),
            reason: error.to_string(),
        }
    }
}

/// Keeps the error as the inner one. The kind is that of the system where it has one.
impl From<ShareError> for io::Error {
    fn from(error: ShareError) -> Self {
        use io::ErrorKind;
        let kind = match error {
            ShareError::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            ShareError::TooManyObjects { .. } | ShareError::TooManyProcesses { .. } => {
                ErrorKind::QuotaExceeded
            }
            ShareError::Gone => ErrorKind::NotFound,
            ShareError::Foreign | ShareError::OtherType | ShareError::Invalid { .. } => {
                ErrorKind::InvalidInput
            }
            ShareError::Busy { .. } => ErrorKind::ResourceBusy,
            ShareError::System { .. } => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_has_the_kind_and_the_error_itself() {
        use io::ErrorKind;
        for (error, kind) in [
            (ShareError::Gone, ErrorKind::NotFound),
            (ShareError::Foreign, ErrorKind::InvalidInput),
            (ShareError::Busy { by: None }, ErrorKind::ResourceBusy),
            (
                ShareError::TooManyObjects { limit: 1 },
                ErrorKind::QuotaExceeded,
            ),
            (
                ShareError::OutOfMemory {
                    bytes: 1,
                    reason: String::new(),
                },
                ErrorKind::OutOfMemory,
            ),
            (
                ShareError::system("a call", &ErrorKind::Other.into()),
                ErrorKind::Other,
            ),
        ] {
            let made = io::Error::from(error.clone());
            assert_eq!(made.kind(), kind);
            assert_eq!(made.to_string(), error.to_string());
            let inner = made.into_inner().unwrap().downcast::<ShareError>();
            assert_eq!(*inner.unwrap(), error);
        }
    }
}
