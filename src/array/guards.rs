//! Slices of an array, each with the claim that makes it sound.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::claim::Claim;
use crate::text::shows_value;

/// Elements of a [`SharedArray`](crate::SharedArray) to read: a slice. No process writes to them as
/// long as this guard exists.
///
/// Other processes and threads may read them meanwhile. A guard that is leaked keeps its claim as
/// long as the process lives. If that process calls `exec`, the claim stays until the other program
/// ends.
///
/// # Forks
///
/// A child of [`Forked`](crate::Forked) may use its copy of the guard, and slices that were taken
/// from it. No process can write to the elements before the child has ended, also if the parent
/// drops its guard earlier. A process that asks for the elements meanwhile gets the error that the
/// parent has claimed them. Workers by [`StartMethod::Fork`](crate::engine::StartMethod::Fork) live
/// longer: this process cannot start them as long as there is a guard.
///
/// # Panics
///
/// The first use panics in a forked child if the array has as many claims as it can have. It also
/// panics in a child that was forked by other means than this crate's, if its parent has dropped
/// the guard and another process has claimed the elements meanwhile to write to them.
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
///
/// let array = SharedArray::from_slice(&[3, 1, 2])?;
/// let (all, front) = (array.try_read()?, array.try_read_range(..2)?);
/// assert_eq!(all.iter().max(), Some(&3));
/// assert_eq!(*front, [3, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the elements are given back when this is dropped"]
pub struct ArrayReadGuard<'a, T> {
    claim: Claim<'a>,
    elements: NonNull<[T]>,
    array: PhantomData<&'a [T]>,
}

/// Elements of a [`SharedArray`](crate::SharedArray) to write to: a mutable slice. No other process
/// or thread reads or writes them as long as this guard exists.
///
/// As long as it exists, this process cannot start forked children ([`Forked`](crate::Forked),
/// [`StartMethod::Fork`](crate::engine::StartMethod::Fork)): that is an error. A guard that is
/// leaked keeps its claim as long as the process lives. If that process calls `exec`, the claim
/// stays until the other program ends. If the process ends with the guard, by being killed or
/// otherwise, the claim ends and the elements stay as they are;
/// [`is_poisoned`](crate::SharedArray::is_poisoned) reports it.
///
/// # Panics
///
/// Using it panics in a process that was forked, by other means than this crate's, from the process
/// that has claimed the elements.
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
///
/// let array = SharedArray::from_slice(&[3, 1, 2])?;
/// array.try_write()?.sort();
/// assert_eq!(array.to_vec()?, [1, 2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the elements are given back when this is dropped"]
pub struct ArrayWriteGuard<'a, T> {
    claim: Claim<'a>,
    elements: NonNull<[T]>,
    array: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared slice and a claim of the process, not of a thread.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Send for ArrayReadGuard<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for ArrayReadGuard<'_, T> {}
// SAFETY: a mutable slice and a claim of the process, not of a thread.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for ArrayWriteGuard<'_, T> {}
// SAFETY: as above; by a shared reference it can only be read.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for ArrayWriteGuard<'_, T> {}

impl<'a, T> ArrayReadGuard<'a, T> {
    /// Makes the guard. `claim` must be on these elements, to read.
    pub(super) fn new(claim: Claim<'a>, elements: NonNull<[T]>) -> Self {
        Self {
            claim,
            elements,
            array: PhantomData,
        }
    }
}

impl<'a, T> ArrayWriteGuard<'a, T> {
    /// Makes the guard. `claim` must be on these elements, to write.
    pub(super) fn new(claim: Claim<'a>, elements: NonNull<[T]>) -> Self {
        Self {
            claim,
            elements,
            array: PhantomData,
        }
    }
}

impl<T> Deref for ArrayReadGuard<'_, T> {
    type Target = [T];

    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        self.claim.check();
        // SAFETY: the elements lie in the array, whose handle is borrowed, and hold a `Pod` each.
        // This process has claimed them to read (checked above), so no process writes to them until
        // the claim is dropped with `self`.
        unsafe { slice::from_raw_parts(self.elements.as_ptr().cast(), self.elements.len()) }
    }
}

impl<T> Deref for ArrayWriteGuard<'_, T> {
    type Target = [T];

    #[inline]
    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        self.claim.check();
        // SAFETY: as in `deref_mut`; `self` is shared, so there is no mutable slice from it.
        unsafe { slice::from_raw_parts(self.elements.as_ptr().cast(), self.elements.len()) }
    }
}

impl<T> DerefMut for ArrayWriteGuard<'_, T> {
    #[inline]
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [T] {
        self.claim.check();
        // SAFETY: the elements lie in the array, whose handle is borrowed, and hold a `Pod` each.
        // This process has claimed them to write, and is not a fork of the process that has
        // (checked above). So no other process or thread has any part of them until the claim is
        // dropped with `self`, which is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.elements.as_ptr().cast(), self.elements.len()) }
    }
}

shows_value!(ArrayReadGuard: Debug, ArrayWriteGuard: Debug);

/// What a type that dereferences to a slice has in common with one. `$item` is the type of the
/// elements.
macro_rules! like_a_slice {
    ([$($generics:tt)*] $name:ty, $item:ty) => {
        impl<$($generics)*> AsRef<[$item]> for $name {
            fn as_ref(&self) -> &[$item] {
                self
            }
        }

        impl<'s, $($generics)*> IntoIterator for &'s $name {
            type Item = &'s $item;
            type IntoIter = std::slice::Iter<'s, $item>;

            fn into_iter(self) -> Self::IntoIter {
                self.iter()
            }
        }
    };
}
pub(super) use like_a_slice;

/// Comparisons with what a slice can be compared with.
macro_rules! equal_to_slices {
    ([$($generics:tt)*] $name:ty, $item:ty) => {
        $crate::array::guards::equal_to!([$($generics)*, U] $name, $item, [U], |other| other);
        $crate::array::guards::equal_to!([$($generics)*, U] $name, $item, &[U], |other| *other);
        $crate::array::guards::equal_to!(
            [$($generics)*, U, const N: usize] $name, $item, [U; N], |other| other.as_slice()
        );
        $crate::array::guards::equal_to!(
            [$($generics)*, U] $name, $item, Vec<U>, |other| other.as_slice()
        );
    };
}

macro_rules! equal_to {
    ([$($generics:tt)*] $name:ty, $item:ty, $type:ty, |$other:ident| $slice:expr) => {
        impl<$($generics)*> PartialEq<$type> for $name
        where
            $item: PartialEq<U>,
        {
            fn eq(&self, $other: &$type) -> bool {
                **self == *$slice
            }
        }
    };
}
pub(super) use {equal_to, equal_to_slices};

like_a_slice!(['a, T] ArrayReadGuard<'a, T>, T);
like_a_slice!(['a, T] ArrayWriteGuard<'a, T>, T);
equal_to_slices!(['a, T] ArrayReadGuard<'a, T>, T);
equal_to_slices!(['a, T] ArrayWriteGuard<'a, T>, T);

impl<T> AsMut<[T]> for ArrayWriteGuard<'_, T> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<'s, T> IntoIterator for &'s mut ArrayWriteGuard<'_, T> {
    type Item = &'s mut T;
    type IntoIter = slice::IterMut<'s, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
