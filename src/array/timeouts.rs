//! Claims that wait for other claims to end, with a timeout.
//!
//! A call that is late fails with [`ClaimError::TimedOut`], also if its timeout is zero. If a claim
//! was not even looked at, because the table was locked or full all the time, the error says that:
//! [`ClaimError::Busy`], [`ClaimError::TooManyClaims`].

use std::ops::RangeBounds;
use std::time::Duration;

use super::claim_mode::{Mode, within};
use super::claims::Refusal;
use super::{ArrayReadGuard, ArrayWriteGuard, ClaimError, SharedArray};
use crate::memory::shareable::Shareable;

impl<T: Shareable> SharedArray<T> {
    /// Claims like [`try_read`](Self::try_read), but waits for at most `timeout` until no process
    /// writes to any element.
    ///
    /// # Errors
    ///
    /// [`ClaimError::TimedOut`] if `timeout` is over before that; otherwise fails like
    /// [`try_read`](Self::try_read).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{SharedArray, shm::ClaimError};
    /// use std::time::Duration;
    ///
    /// let array = SharedArray::from_slice(&[1, 2, 3])?;
    /// let writing = array.try_write()?;
    /// let refused = array.read_timeout(Duration::from_millis(1));
    /// assert!(matches!(refused, Err(ClaimError::TimedOut { .. })));
    /// drop(writing);
    /// assert_eq!(*array.read_timeout(Duration::from_secs(1))?, [1, 2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_timeout(&self, timeout: Duration) -> Result<ArrayReadGuard<'_, T>, ClaimError> {
        self.read_range_timeout(.., timeout)
    }

    /// Claims like [`try_write`](Self::try_write), but waits for at most `timeout` until no other
    /// guard has any element. There is no order among the threads that wait, and readers that take
    /// turns can keep a writer out.
    ///
    /// # Errors
    ///
    /// [`ClaimError::TimedOut`] if `timeout` is over before that; otherwise fails like
    /// [`try_write`](Self::try_write).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{Process, SharedArray};
    /// use std::time::Duration;
    ///
    /// let array = SharedArray::<u64>::zeros(2)?;
    /// let children = [1, 2].map(|_| {
    ///     Process::spawn(
    ///         |array: SharedArray<u64>| {
    ///             let mut all = array.write_timeout(Duration::from_secs(10)).unwrap();
    ///             all.iter_mut().for_each(|element| *element += 1);
    ///         },
    ///         array.clone(),
    ///     )
    /// });
    /// for child in children {
    ///     assert!(child?.join()?.success());
    /// }
    /// assert_eq!(array.to_vec()?, [2, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_timeout(&self, timeout: Duration) -> Result<ArrayWriteGuard<'_, T>, ClaimError> {
        self.write_range_timeout(.., timeout)
    }

    /// Claims like [`try_read_range`](Self::try_read_range), but waits for at most `timeout` until
    /// no process writes to these elements.
    ///
    /// # Errors
    ///
    /// [`ClaimError::TimedOut`] if `timeout` is over before that; otherwise fails like
    /// [`try_read_range`](Self::try_read_range).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use std::time::Duration;
    ///
    /// let array = SharedArray::<u8>::zeros(10)?;
    /// let reading = array.read_range_timeout(.., Duration::from_secs(1))?;
    /// assert!(
    ///     array
    ///         .write_range_timeout(..5, Duration::from_millis(1))
    ///         .is_err()
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_range_timeout(
        &self,
        range: impl RangeBounds<usize>,
        timeout: Duration,
    ) -> Result<ArrayReadGuard<'_, T>, ClaimError> {
        let range = within(range, self.len())?;
        let claim = self.claim_within(Mode::Read, &range, timeout);
        let claim = claim.map_err(Refusal::when_late)?;
        Ok(ArrayReadGuard::new(claim, self.part(&range)))
    }

    /// Claims like [`try_write_range`](Self::try_write_range), but waits for at most `timeout`
    /// until no other guard has these elements. There is no order among the threads that wait, and
    /// readers that take turns can keep a writer out.
    ///
    /// # Errors
    ///
    /// [`ClaimError::TimedOut`] if `timeout` is over before that; otherwise fails like
    /// [`try_write_range`](Self::try_write_range).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use std::time::Duration;
    ///
    /// let array = SharedArray::<u8>::zeros(10)?;
    /// array
    ///     .write_range_timeout(.., Duration::from_secs(1))?
    ///     .fill(1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_range_timeout(
        &self,
        range: impl RangeBounds<usize>,
        timeout: Duration,
    ) -> Result<ArrayWriteGuard<'_, T>, ClaimError> {
        let range = within(range, self.len())?;
        let claim = self.claim_within(Mode::Write, &range, timeout);
        let claim = claim.map_err(Refusal::when_late)?;
        Ok(ArrayWriteGuard::new(claim, self.part(&range)))
    }
}
