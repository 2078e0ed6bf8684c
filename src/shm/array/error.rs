//! Why a claim on an array was refused.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Why elements of a shared array could not be had.
///
/// Nothing has been read or written then, and nothing is claimed.
///
/// # Examples
///
/// ```
/// use manyhands::{ClaimError, SharedArray};
///
/// let array = SharedArray::<u8>::zeros(10)?;
/// let front = array.write_range(..5)?;
/// let refused = array.read().unwrap_err();
/// assert_eq!(refused, ClaimError::Claimed { by: std::process::id(), range: 0..5 });
/// drop(front);
/// assert!(array.read().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Somebody has claimed some of the elements, in a way that does not go together with what was asked for.
    #[error(
        "elements {} to {} of the array are claimed by process {by}; drop the guard there, wait for the call that has been \
         lent the array, or ask for other elements",
        .range.start, .range.end
    )]
    Claimed {
        /// The process, which may be this one; 0 if it has just ended.
        by: u32,
        /// The elements that it has claimed.
        range: Range<usize>,
    },
    /// The array was frozen: it can be read, and nothing else, for good.
    #[error("the array is frozen: nobody can write to it any more")]
    Frozen,
    /// The array has no such elements.
    #[error("the array has {len} elements; elements {} to {} are not all among them", .range.start, .range.end)]
    OutOfBounds {
        /// What was asked for.
        range: Range<usize>,
        /// How many elements there are.
        len: usize,
    },
    /// The lengths of array and slice differ.
    #[error("a slice of {given} elements cannot be copied to an array of {len}")]
    Length {
        /// How many elements were given.
        given: usize,
        /// How many elements there are.
        len: usize,
    },
    /// The array has as many claims at this time as it can have.
    #[error(
        "there are {limit} claims on the array already, which is the most that one can have at a time"
    )]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The claims cannot be read or changed: somebody has written over them, or this process cannot share objects.
    #[error("the array cannot be claimed: {reason}")]
    Unusable {
        /// What is wrong.
        reason: String,
    },
}
