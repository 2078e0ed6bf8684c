//! Arrays that no process writes to any more.

use std::fmt;
use std::ops::Deref;
use std::slice;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SharedArray;
use super::guards::{equal_to_slices, like_a_slice};
use crate::memory::object::same_object;

/// A shared array that was [frozen](SharedArray::freeze): a slice in every process that has a
/// handle, without a claim.
///
/// Like the handle of a [`SharedArray`], its handle is small, `Clone`, and can be sent to other
/// processes.
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
/// use manyhands::prelude::*;
///
/// let table = SharedArray::from_fn(100, |i| (i * i) as u64)?.freeze()?;
/// let pool = Pool::processes(2)?;
/// let sums = pool.map_with(&table, |table, i: usize| table[i] + table[i + 1], 0..99)?;
/// assert_eq!(sums[2], 4 + 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrozenArray<T> {
    array: SharedArray<T>,
}

impl<T: Pod> FrozenArray<T> {
    /// Makes the handle. `array` must be frozen.
    pub(super) fn new(array: SharedArray<T>) -> Self {
        Self { array }
    }

    /// Returns all elements. Dereferencing gives the same slice.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let frozen = SharedArray::from_slice(&[1, 2])?.freeze()?;
    /// assert_eq!(frozen.as_slice(), [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code)]
    pub fn as_slice(&self) -> &[T] {
        let elements = self.array.elements();
        // SAFETY: the elements lie in the array, which stays as long as its handle, and hold a
        // `Pod` each. It is frozen, so no process writes to it.
        unsafe { slice::from_raw_parts(elements.as_ptr().cast(), elements.len()) }
    }
}

impl<T: Pod> Deref for FrozenArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

same_object!(
    [T] FrozenArray<T>,
    "manyhands::SharedArray::<u8>::zeros(4)?.freeze()?",
    array.object
);

impl<T> Clone for FrozenArray<T> {
    fn clone(&self) -> Self {
        Self {
            array: self.array.clone(),
        }
    }
}

impl<T> fmt::Debug for FrozenArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrozenArray").field(&self.array).finish()
    }
}

impl<T> Serialize for FrozenArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.array.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for FrozenArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = SharedArray::deserialize(deserializer)?;
        if array.is_frozen() {
            Ok(Self { array })
        } else {
            Err(serde::de::Error::custom("the array is not frozen"))
        }
    }
}

like_a_slice!([T: Pod] FrozenArray<T>, T);
equal_to_slices!([T: Pod] FrozenArray<T>, T);
