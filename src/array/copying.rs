//! Access to an array without a guard: each call makes a claim for its own time.

use super::claim::despite_the_dead;
use super::claim_mode::Mode;
use super::{ClaimError, FrozenArray, SharedArray};
use crate::memory::member;
use crate::memory::shareable::Shareable;
use crate::memory::wait_mode::soon;

impl<T: Shareable> SharedArray<T> {
    /// Returns a copy of all elements.
    ///
    /// # Errors
    ///
    /// Fails like [`try_read`](Self::try_read).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// assert_eq!(SharedArray::from_slice(&[1, 2])?.to_vec()?, vec![1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to_vec(&self) -> Result<Vec<T>, ClaimError> {
        Ok(self.read_briefly()?.to_vec())
    }

    /// Returns the element at `index`. To read many of them, [`try_read`](Self::try_read) is
    /// faster.
    ///
    /// # Errors
    ///
    /// [`ClaimError::OutOfBounds`]; [`ClaimError::Claimed`] if another guard has claimed this
    /// element to write, or as an atomic.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, shm::ClaimError};
    ///
    /// let array = SharedArray::from_slice(&[1, 2])?;
    /// assert_eq!(array.get(1)?, 2);
    /// assert!(matches!(
    ///     array.get(2),
    ///     Err(ClaimError::OutOfBounds { len: 2, .. })
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get(&self, index: usize) -> Result<T, ClaimError> {
        let place = self.place_of(index)?;
        let terms = Self::terms(Mode::Read, &(index..index + 1))?;
        let head = self.object.head();
        Ok(despite_the_dead(|| {
            head.in_place_of(&terms, || {
                // SAFETY: an element of the array, which holds a `Pod`. It could be claimed to
                // read, and no process can claim it to write before this is over.
                #[allow(unsafe_code)]
                unsafe {
                    place.read()
                }
            })
        })?)
    }

    /// Changes the element at `index`. To change many of them, [`try_write`](Self::try_write) is
    /// faster.
    ///
    /// # Errors
    ///
    /// [`ClaimError::OutOfBounds`]; [`ClaimError::Claimed`] if another guard has claimed this
    /// element; [`ClaimError::Frozen`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// array.set(1, 7)?;
    /// assert_eq!(array.to_vec()?, [0, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set(&self, index: usize, value: T) -> Result<(), ClaimError> {
        let place = self.place_of(index)?;
        let terms = Self::terms(Mode::Write, &(index..index + 1))?;
        let head = self.object.head();
        Ok(despite_the_dead(|| {
            head.write_in_place_of(&terms, || {
                // SAFETY: an element of the array. It could be claimed to write, and no process can
                // claim it before this is over.
                #[allow(unsafe_code)]
                unsafe {
                    place.write(value);
                }
            })
        })?)
    }

    fn place_of(&self, index: usize) -> Result<std::ptr::NonNull<T>, ClaimError> {
        let len = self.len();
        if index >= len {
            let range = index..index.saturating_add(1);
            return Err(ClaimError::OutOfBounds { range, len });
        }
        if !self.object.reach(|| Some(soon())) {
            return Err(ClaimError::Busy { by: None });
        }
        Ok(self.part(&(index..index + 1)).cast())
    }

    /// Copies these elements into the array, which must have the same number.
    ///
    /// # Errors
    ///
    /// [`ClaimError::LengthMismatch`]; otherwise fails like [`try_write`](Self::try_write).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, shm::ClaimError};
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// array.copy_from_slice(&[1, 2])?;
    /// assert!(matches!(
    ///     array.copy_from_slice(&[1]),
    ///     Err(ClaimError::LengthMismatch {
    ///         given: 1,
    ///         len: 2,
    ///         ..
    ///     })
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn copy_from_slice(&self, elements: &[T]) -> Result<(), ClaimError> {
        let (given, len) = (elements.len(), self.len());
        if given != len {
            return Err(ClaimError::LengthMismatch { given, len });
        }
        self.write_briefly()?.copy_from_slice(elements);
        Ok(())
    }

    /// Sets all elements to `value`.
    ///
    /// # Errors
    ///
    /// Fails like [`try_write`](Self::try_write).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// array.fill(7)?;
    /// assert_eq!(array.to_vec()?, [7, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fill(&self, value: T) -> Result<(), ClaimError> {
        self.write_briefly()?.fill(value);
        Ok(())
    }

    /// Freezes the array: no process can write to it any more, by any handle.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Claimed`] if another guard has claimed elements to write, or as atomics. Then
    /// the array is unchanged, and other handles of it go on working; this handle is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, shm::ClaimError};
    ///
    /// let array = SharedArray::from_slice(&[1, 2])?;
    /// let frozen = array.clone().freeze()?;
    /// assert_eq!(frozen[1], 2);
    /// assert_eq!(array.fill(0), Err(ClaimError::Frozen));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn freeze(self) -> Result<FrozenArray<T>, ClaimError> {
        // If the whole array could be claimed to read, no process is writing to it.
        if !self.object.reach(|| Some(soon())) {
            return Err(ClaimError::Busy { by: None });
        }
        let terms = Self::terms(Mode::Read, &(0..self.len()))?;
        despite_the_dead(|| self.object.head().freeze(&terms))?;
        Ok(FrozenArray::new(self))
    }

    /// Returns whether the array was [frozen](Self::freeze).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// assert!(!array.is_frozen());
    /// array.clone().freeze()?;
    /// assert!(array.is_frozen());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_frozen(&self) -> bool {
        self.object.head().is_frozen()
    }

    /// Returns whether a process has ended, killed or otherwise, while it had elements to write to.
    /// Those elements may be half-written. The answer stays true until
    /// [`clear_poison`](Self::clear_poison). Unlike a lock, a poisoned array refuses nothing.
    ///
    /// Workers of [`for_each_chunk`](crate::Pool::for_each_chunk) and similar calls do not count:
    /// the call reports their deaths.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use manyhands::prelude::*;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// let pool = Pool::processes(1)?;
    /// let killed = pool.submit(
    ///     |array: SharedArray<u8>| {
    ///         let _half = array.try_write().unwrap();
    ///         std::process::abort()
    ///     },
    ///     array.clone(),
    /// );
    /// assert!(killed.result().map(|()| ()).is_err());
    /// assert!(array.is_poisoned() && array.try_write().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_poisoned(&self) -> bool {
        self.object.head().poison() > 0
    }

    /// Forgets the deaths so far: [`is_poisoned`](Self::is_poisoned) is false until another process
    /// ends while it has elements to write to.
    ///
    /// Put the elements right and call this under one guard, as in the example. Otherwise a process
    /// that ends in between, half-way through a change, is forgotten as well.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use manyhands::prelude::*;
    ///
    /// let array = SharedArray::<u8>::zeros(2)?;
    /// let pool = Pool::processes(1)?;
    /// let killed = pool.submit(
    ///     |array: SharedArray<u8>| {
    ///         let _half = array.try_write().unwrap();
    ///         std::process::abort()
    ///     },
    ///     array.clone(),
    /// );
    /// assert!(killed.result().map(|()| ()).is_err());
    /// let mut all = array.try_write()?;
    /// all.fill(0);
    /// array.clear_poison();
    /// drop(all);
    /// assert!(!array.is_poisoned());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_poison(&self) {
        // A death that no process has looked for yet is one of those so far.
        member::reclaim_dead();
        self.object.head().clear_poison();
    }
}
