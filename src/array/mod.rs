//! Arrays that processes share: [`SharedArray`], and the guards that give access to its elements.
//!
//! | file | what is there |
//! |---|---|
//! | [`claims`] | the table of claims at the head of an array: what rests on what |
//! | [`claim_mode`] | which claims can exist side by side |
//! | [`claiming`] | how a claim is made |
//! | [`claim`], [`fork_guard`] | a claim as its process has it, and what a fork takes with it |
//! | [`guards`], [`atomics`], [`frozen`] | slices of the elements |
//! | [`timeouts`] | claims that wait for other claims to end |
//! | [`copying`], [`handle`] | access without a guard; a handle as a value |
//! | [`lend`], [`tile`] | what a call lends its workers |

mod atomics;
mod claim;
mod claim_mode;
mod claiming;
mod claims;
mod copying;
pub(crate) mod fork_guard;
mod frozen;
mod guards;
mod handle;
pub(crate) mod lend;
mod tile;
mod timeouts;
#[cfg(feature = "ndarray")]
mod view;

use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use self::claim_mode::{Mode, within};
use self::claims::ArrayHead;
pub(crate) use self::claims::reclaim;
use crate::error::ClaimError;
use crate::memory::ShareError;
use crate::memory::object::{Object, shape_of};
use crate::memory::shareable::Shareable;

pub use self::atomics::{AtomicElement, AtomicsGuard};
pub use self::frozen::FrozenArray;
pub use self::guards::{ArrayReadGuard, ArrayWriteGuard};
pub use self::tile::TileMut;

/// An array that several processes read and write in place.
///
/// A program holds a handle to it. The handle is small whatever the array's length, `Clone`, and
/// serde's, so it can be an argument of a task or part of a context. Every process that gets the
/// handle reaches the same elements.
///
/// A process reaches the elements through *claims*, which are checked across all processes:
/// [`try_read`](Self::try_read) gives a slice that no thread writes to meanwhile, and
/// [`try_write`](Self::try_write) gives an exclusive, mutable slice. Both also exist for parts of
/// the array. [`try_atomics`](Self::try_atomics) gives a slice of atomics, which all processes can
/// have at once. These calls do not wait. A claim that is not compatible with the existing ones is
/// refused at once with a [`ClaimError`]. The forms with a timeout, like
/// [`write_timeout`](Self::write_timeout), wait for the other claims to end. So two processes never
/// have the same element to write to, and no process reads what another one writes. When a process
/// is killed, its claims end.
///
/// The usual way to change an array in parallel is to lend it to a call:
/// [`Pool::for_each_chunk`](crate::Pool::for_each_chunk) gives each worker disjoint chunks. An
/// array that is complete can be [frozen](Self::freeze).
///
/// `T` is any [`Pod`](bytemuck::Pod): numbers, arrays of them, and structs of them that derive it.
/// `bool` and `char` are not possible (use a `u8` or `u32`), nor are `String` and `Vec` (use an
/// array, or a [queue](crate::queue)): see [`shm`](crate::shm#which-values-can-be-shared), which
/// has an example with a struct. The elements begin at a multiple of 64 bytes, those of a large
/// array at a page.
///
/// # Examples
///
/// ```
/// use manyhands::SharedArray;
/// use manyhands::prelude::*;
///
/// let (width, height) = (64, 48);
/// let mut image = SharedArray::<u8>::zeros(width * height)?;
/// let pool = Pool::processes(2)?;
/// pool.for_each_chunk(&mut image, width, |y, row: &mut [u8]| row.fill(y as u8))?;
/// assert_eq!(image.get(5 * width)?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedArray<T> {
    object: Object<ArrayHead>,
    elements: PhantomData<fn(T) -> T>,
}

// The bounds stand at the functions: for one at the block, the compiler does not print the notes of
// `Shareable`.
impl<T> SharedArray<T> {
    /// Makes an array of `len` elements, all zeros.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`] if there is not enough memory, and the other errors that keep a
    /// process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert_eq!(SharedArray::<u32>::zeros(3)?.to_vec()?, [0, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zeros(len: usize) -> Result<Self, ShareError>
    where
        T: Shareable,
    {
        const {
            assert!(
                align_of::<T>() <= 64,
                "elements are aligned to 64 bytes at most"
            );
        }
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| ShareError::OutOfMemory {
            bytes: u64::MAX,
            reason: "no machine has so much".to_owned(),
        })?;
        let object = Object::<ArrayHead>::new(bytes, shape_of::<T>(), |_, _| Ok(()))?;
        object.head().top.len.store(len as u64, Ordering::Release);
        Ok(Self {
            object,
            elements: PhantomData,
        })
    }

    /// Makes an array with a copy of these elements.
    ///
    /// # Errors
    ///
    /// Fails like [`zeros`](Self::zeros).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert_eq!(SharedArray::from_slice(&[1.5, 2.5])?.get(1)?, 2.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_slice(elements: &[T]) -> Result<Self, ShareError>
    where
        T: Shareable,
    {
        Self::made(elements.len(), |into| into.copy_from_slice(elements))
    }
}

impl<T: Shareable> SharedArray<T> {
    /// Makes an array of the elements that the iterator yields. If the iterator does not say
    /// exactly how many it yields, they are collected first.
    ///
    /// # Errors
    ///
    /// Fails like [`zeros`](Self::zeros).
    ///
    /// # Panics
    ///
    /// If the iterator panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let odd = SharedArray::from_iter((0..10).filter(|x| x % 2 == 1))?;
    /// assert_eq!(odd.to_vec()?, [1, 3, 5, 7, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(
        clippy::should_implement_trait,
        reason = "the trait has no way to say that there is no memory"
    )]
    pub fn from_iter(elements: impl IntoIterator<Item = T>) -> Result<Self, ShareError> {
        let mut elements = elements.into_iter();
        match elements.size_hint() {
            (len, Some(most)) if len == most => {
                let mut given = 0;
                let array = Self::made(len, |into| {
                    for (place, element) in into.iter_mut().zip(&mut elements) {
                        *place = element;
                        given += 1;
                    }
                })?;
                let rest: Vec<T> = elements.collect();
                if given == len && rest.is_empty() {
                    return Ok(array);
                }
                // The iterator's size hint was wrong.
                let mut all = array.elements_made()[..given].to_vec();
                all.extend(rest);
                Self::from_slice(&all)
            }
            _ => Self::from_slice(&elements.collect::<Vec<T>>()),
        }
    }

    /// Makes an array of `len` elements. `element` makes each one from its index.
    ///
    /// # Errors
    ///
    /// Fails like [`zeros`](Self::zeros).
    ///
    /// # Panics
    ///
    /// If `element` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert_eq!(SharedArray::from_fn(4, |i| i * i)?.to_vec()?, [0, 1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fn(len: usize, mut element: impl FnMut(usize) -> T) -> Result<Self, ShareError> {
        Self::made(len, |into| {
            for (index, place) in into.iter_mut().enumerate() {
                *place = element(index);
            }
        })
    }

    fn made(len: usize, fill: impl FnOnce(&mut [T])) -> Result<Self, ShareError> {
        let array = Self::zeros(len)?;
        let unusable = |error: ClaimError| ShareError::System {
            what: "a new array could not be filled".into(),
            reason: error.to_string(),
        };
        fill(&mut array.write_briefly().map_err(unusable)?);
        Ok(array)
    }

    fn elements_made(&self) -> Vec<T> {
        self.to_vec().unwrap_or_default()
    }

    /// Returns the number of elements.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert_eq!(SharedArray::<u64>::zeros(5)?.len(), 5);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn len(&self) -> usize {
        // This number comes from the memory that this process has mapped. A number in shared memory
        // could have been written over by another process.
        match self.object.tail_len().checked_div(size_of::<T>()) {
            Some(len) => len,
            // Elements of no size take up no memory, so any number in shared memory is safe.
            None => self.object.head().top.len.load(Ordering::Acquire) as usize,
        }
    }

    /// Returns whether there are no elements.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert!(SharedArray::<u64>::zeros(0)?.is_empty());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns where the elements are. The claims decide what may be done with them.
    fn elements(&self) -> NonNull<[T]> {
        NonNull::slice_from_raw_parts(self.object.tail().0.cast(), self.len())
    }

    /// Returns where the elements of this range are.
    fn part(&self, range: &std::ops::Range<usize>) -> NonNull<[T]> {
        debug_assert!(range.start <= range.end && range.end <= self.len());
        // SAFETY: the range lies in this array.
        #[allow(unsafe_code)]
        let start = unsafe { self.elements().cast::<T>().add(range.start) };
        NonNull::slice_from_raw_parts(start, range.len())
    }

    /// Claims all elements to read, without waiting. Other processes and threads may read them too.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Claimed`] if another guard has claimed elements to write, or as atomics, or
    /// the array is lent to a call.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::from_slice(&[1, 2, 3])?;
    /// assert_eq!(array.try_read()?.iter().sum::<i32>(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_read(&self) -> Result<ArrayReadGuard<'_, T>, ClaimError> {
        self.try_read_range(..)
    }

    /// Claims all elements to read and write, without waiting. No other process or thread can have
    /// any of them meanwhile.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Claimed`] if another guard has claimed elements, [`ClaimError::Frozen`] if the
    /// array is frozen.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// array.try_write()?[1] = 7;
    /// assert_eq!(array.to_vec()?, [0, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write(&self) -> Result<ArrayWriteGuard<'_, T>, ClaimError> {
        self.try_write_range(..)
    }

    /// Claims some of the elements to read, without waiting.
    ///
    /// # Errors
    ///
    /// Fails like [`try_read`](Self::try_read), for these elements;
    /// [`ClaimError::OutOfBounds`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::from_slice(&[1, 2, 3])?;
    /// assert_eq!(*array.try_read_range(1..)?, [2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_read_range(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<ArrayReadGuard<'_, T>, ClaimError> {
        let range = within(range, self.len())?;
        Ok(ArrayReadGuard::new(
            self.claim(Mode::Read, &range)?,
            self.part(&range),
        ))
    }

    /// Claims some of the elements to read and write, without waiting. Other processes and threads
    /// may have other elements meanwhile.
    ///
    /// # Errors
    ///
    /// Fails like [`try_write`](Self::try_write), for these elements;
    /// [`ClaimError::OutOfBounds`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, shm::ClaimError};
    ///
    /// let array = SharedArray::<u8>::zeros(10)?;
    /// let (mut front, mut back) = (array.try_write_range(..5)?, array.try_write_range(5..)?);
    /// front.swap_with_slice(&mut back);
    /// assert!(matches!(
    ///     array.try_write_range(4..6),
    ///     Err(ClaimError::Claimed { .. })
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write_range(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<ArrayWriteGuard<'_, T>, ClaimError> {
        let range = within(range, self.len())?;
        Ok(ArrayWriteGuard::new(
            self.claim(Mode::Write, &range)?,
            self.part(&range),
        ))
    }

    /// Claims all elements as atomics, which all processes can have at once, without waiting.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Claimed`] if another guard has claimed elements in another way,
    /// [`ClaimError::Frozen`] if the array is frozen.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use std::sync::atomic::Ordering::Relaxed;
    ///
    /// let counts = SharedArray::<u32>::zeros(2)?;
    /// counts.try_atomics()?[1].fetch_add(1, Relaxed);
    /// assert_eq!(counts.to_vec()?, [0, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_atomics(&self) -> Result<AtomicsGuard<'_, T>, ClaimError>
    where
        T: AtomicElement,
    {
        let range = 0..self.len();
        Ok(AtomicsGuard::new(
            self.claim(Mode::Atomic, &range)?,
            self.part(&range),
        ))
    }
}
