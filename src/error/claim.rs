//! Why a claim on an array was refused.

use std::io::{self, ErrorKind};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Why elements of a shared array could not be claimed.
///
/// The call has read and written nothing then, and has claimed nothing.
///
/// # Examples
///
/// ```
/// use manyhands::{SharedArray, shm::ClaimError};
///
/// let array = SharedArray::<u8>::zeros(10)?;
/// let front = array.try_write_range(..5)?;
/// let refused = array.try_read().unwrap_err();
/// let ClaimError::Claimed { by, range, .. } = &refused else {
///     panic!("{refused}");
/// };
/// assert_eq!((*by, range.clone()), (Some(std::process::id()), 0..5));
/// drop(front);
/// assert!(array.try_read().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Another guard, call or process has claimed some of the elements, in a way that excludes what
    /// was asked for.
    ///
    /// A process that had a guard to read, or atomics, when it forked a child keeps that claim
    /// until the child has ended.
    #[error(
        "elements {range:?} of the array are claimed by {}; drop the guard there, wait for the call that has been lent the \
         array or for the child that was forked with it, or ask for other elements",
        claimant(*.by)
    )]
    #[non_exhaustive]
    Claimed {
        /// The process, which may be this one; `None` if it has just ended.
        by: Option<u32>,
        /// The elements that it has claimed, the end not among them; for a worker, those that its
        /// call was lent.
        range: Range<usize>,
    },
    /// A call with a timeout has waited until its time was over, and elements that it asked for are
    /// still claimed. Without a timeout this would be [`Claimed`](Self::Claimed).
    #[error(
        "elements {range:?} of the array are still claimed by {} after the time to wait; drop the guard there, wait longer, or ask \
         for other elements",
        claimant(*.by)
    )]
    #[non_exhaustive]
    TimedOut {
        /// The process, which may be this one; `None` if it has just ended.
        by: Option<u32>,
        /// The elements that it has claimed, the end not among them; for a worker, those that its
        /// call was lent.
        range: Range<usize>,
    },
    /// The array was frozen: it can only be read, for good.
    #[error("the array is frozen: it can only be read from now on")]
    Frozen,
    /// The array has no such elements.
    #[error("the array has {len} elements; elements {range:?} are not all among them")]
    #[non_exhaustive]
    OutOfBounds {
        /// The elements asked for; the end is not among them.
        range: Range<usize>,
        /// How many elements there are.
        len: usize,
    },
    /// The lengths of array and slice differ.
    #[error("a slice of {given} elements cannot be copied to an array of {len}")]
    #[non_exhaustive]
    LengthMismatch {
        /// How many elements were given.
        given: usize,
        /// How many elements there are.
        len: usize,
    },
    /// The array has as many claims at this time as it can have.
    #[error(
        "there are {limit} claims on the array already, which is the most that one can have at a time"
    )]
    #[non_exhaustive]
    TooManyClaims {
        /// The limit.
        limit: usize,
    },
    /// A process that does not go on has locked the table of claims: it is stopped (`SIGSTOP`, a
    /// debugger, a frozen container), or was not given a core for longer than the caller wants to
    /// wait.
    #[error(
        "the claims on the array are locked by {}, which does not go on; let it continue if it was stopped, or end it, and try \
         again",
        holder(*.by)
    )]
    #[non_exhaustive]
    Busy {
        /// The process, if the system says which one it is.
        by: Option<u32>,
    },
    /// The claims cannot be read or changed: other code has written over them, or this process
    /// cannot share objects.
    #[error("the array cannot be claimed: {reason}")]
    #[non_exhaustive]
    System {
        /// What is wrong.
        reason: String,
    },
}

/// Makes an error of the kind that fits best. The [`ClaimError`] is in it
/// ([`get_ref`](io::Error::get_ref)).
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
/// use std::io;
///
/// fn last(array: &SharedArray<u8>) -> io::Result<Option<u8>> {
///     Ok(array.try_read()?.last().copied())
/// }
/// let array = SharedArray::from_slice(&[1, 2, 3])?;
/// let writer = array.try_write()?;
/// assert_eq!(last(&array).unwrap_err().kind(), io::ErrorKind::WouldBlock);
/// drop(writer);
/// assert_eq!(last(&array)?, Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl From<ClaimError> for io::Error {
    fn from(error: ClaimError) -> Self {
        let kind = match &error {
            ClaimError::Claimed { .. } => ErrorKind::WouldBlock,
            ClaimError::TimedOut { .. } => ErrorKind::TimedOut,
            ClaimError::Frozen => ErrorKind::PermissionDenied,
            ClaimError::OutOfBounds { .. } | ClaimError::LengthMismatch { .. } => {
                ErrorKind::InvalidInput
            }
            ClaimError::TooManyClaims { .. } => ErrorKind::QuotaExceeded,
            ClaimError::Busy { .. } => ErrorKind::ResourceBusy,
            ClaimError::System { .. } => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Returns the process that holds a lock, by its pid, as a message names it.
pub(crate) fn holder(by: Option<u32>) -> String {
    match by {
        Some(pid) if pid == std::process::id() => "another thread of this process".to_owned(),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// Returns the process that has made a claim, by its pid, as a message names it.
fn claimant(by: Option<u32>) -> String {
    match by {
        None => "a process that has just ended".to_owned(),
        Some(pid) if pid == std::process::id() => "this process".to_owned(),
        Some(pid) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_range_and_the_process() {
        let claimed = |by| ClaimError::Claimed { by, range: 3..8 }.to_string();
        let start = "elements 3..8 of the array are claimed by";
        let this = claimed(Some(std::process::id()));
        assert!(
            this.starts_with(&format!("{start} this process;")),
            "{this}"
        );
        let other = claimed(Some(1));
        assert!(other.starts_with(&format!("{start} process 1;")), "{other}");
        let gone = claimed(None);
        assert!(
            gone.starts_with(&format!("{start} a process that has just ended;")),
            "{gone}"
        );
        let late = ClaimError::TimedOut {
            by: Some(1),
            range: 3..8,
        }
        .to_string();
        assert!(
            late.starts_with("elements 3..8 of the array are still claimed by process 1 after"),
            "{late}"
        );
        let range = 3..8;
        assert_eq!(
            ClaimError::OutOfBounds { range, len: 7 }.to_string(),
            "the array has 7 elements; elements 3..8 are not all among them"
        );
    }
}
