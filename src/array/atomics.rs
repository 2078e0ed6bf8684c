//! Elements that all processes read and write at once, one by one and atomically.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic;

use super::claim::Claim;
use super::guards::like_a_slice;

mod sealed {
    pub trait Sealed {}
}

/// An integer type that an array can be read and written as atomically: of 8 to 64 bits, signed or
/// not.
///
/// # Examples
///
/// ```
/// use manyhands::{SharedArray, shm::{AtomicElement, ClaimError}};
///
/// fn clear<T: AtomicElement>(array: &SharedArray<T>) -> Result<usize, ClaimError> {
///     Ok(array.try_atomics()?.len())
/// }
///
/// assert_eq!(clear(&SharedArray::<u16>::zeros(3)?)?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait AtomicElement: bytemuck::Pod + sealed::Sealed {
    /// The atomic of this size.
    type Atomic: Sync + Send + fmt::Debug + 'static;
}

macro_rules! elements {
    ($($element:ty => $atomic:ident),* $(,)?) => {$(
        impl sealed::Sealed for $element {}

        impl AtomicElement for $element {
            type Atomic = atomic::$atomic;
        }

        const _: () = assert!(
            size_of::<$element>() == size_of::<atomic::$atomic>() && align_of::<atomic::$atomic>() <= 64
        );
    )*};
}

elements! {
    u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64, usize => AtomicUsize,
    i8 => AtomicI8, i16 => AtomicI16, i32 => AtomicI32, i64 => AtomicI64, isize => AtomicIsize,
}

/// The elements of a [`SharedArray`](crate::SharedArray) as a slice of atomics, which all processes
/// can have at once.
///
/// As long as there is such a guard, no process can have plain slices of the array. For forks, the
/// same holds as for [`ArrayReadGuard`](crate::shm::ArrayReadGuard#forks).
///
/// # Panics
///
/// Using it panics in a process that was forked by other means than this crate's, if its parent has
/// dropped the guard and another process has claimed elements meanwhile.
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
/// use manyhands::prelude::*;
/// use std::sync::atomic::Ordering::Relaxed;
///
/// let histogram = SharedArray::<u64>::zeros(10)?;
/// let pool = Pool::processes(2)?;
/// pool.map_with(
///     &histogram,
///     |histogram, x: usize| {
///         histogram.try_atomics().unwrap()[x % 10].fetch_add(1, Relaxed);
///     },
///     0..100,
/// )?;
/// assert_eq!(histogram.to_vec()?, [10; 10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the elements are given back when this is dropped"]
pub struct AtomicsGuard<'a, T: AtomicElement> {
    claim: Claim<'a>,
    elements: NonNull<[T::Atomic]>,
}

// SAFETY: a slice of atomics and a claim of the process, not of a thread.
#[allow(unsafe_code)]
unsafe impl<T: AtomicElement> Send for AtomicsGuard<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: AtomicElement> Sync for AtomicsGuard<'_, T> {}

impl<'a, T: AtomicElement> AtomicsGuard<'a, T> {
    /// Makes the guard. `claim` must be on these elements, for atomics.
    pub(super) fn new(claim: Claim<'a>, elements: NonNull<[T]>) -> Self {
        let atomics = elements.cast::<T::Atomic>();
        Self {
            claim,
            elements: NonNull::slice_from_raw_parts(atomics, elements.len()),
        }
    }
}

impl<T: AtomicElement> Deref for AtomicsGuard<'_, T> {
    type Target = [T::Atomic];

    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &[T::Atomic] {
        self.claim.check();
        // SAFETY: the elements lie in the array, whose handle is borrowed; the atomics have their
        // size, and the array begins at a multiple of 64. This process has claimed them for atomics
        // (checked above), so no process reads or writes them in another way.
        unsafe { slice::from_raw_parts(self.elements.as_ptr().cast(), self.elements.len()) }
    }
}

impl<T: AtomicElement> fmt::Debug for AtomicsGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

like_a_slice!(['a, T: AtomicElement] AtomicsGuard<'a, T>, T::Atomic);
