//! Calls in which workers change a shared array in place.

use bytemuck::Pod;

use super::{Call, Pool};
use crate::array::lend::{Lent, LentChunks, LentPairs, LentTiles, Loan};
use crate::array::{SharedArray, TileMut};
use crate::engine::{Executor, RunLent};
use crate::error::TaskError;

impl<E: Executor> Pool<E> {
    /// Runs `f` on every chunk of `chunk` elements of the array, in place: nothing is copied,
    /// whatever the engine.
    ///
    /// `f` gets the chunk's index, from 0, and its elements; the last chunk may have fewer. To work
    /// on an image row by row, use its width as the length.
    ///
    /// The array is lent to the workers for the time of the call: no other process or thread can
    /// claim elements of it meanwhile. When the call returns, whatever its outcome, no worker has
    /// any of it any more. The call waits for that, also after an error: if chunks are running at
    /// that time, and there is no [`timeout`](Call::timeout) for them, it waits as long as they
    /// take.
    ///
    /// On [`Processes`](crate::Processes) the function captures nothing, or is
    /// `closure!([names] |index: usize, chunk: &mut [T]| ..)`.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] of the first chunk that failed, with its index. That chunk is as its
    /// worker has left it, and so may be others after it. With [`Call::retries`] a chunk whose
    /// worker died is begun again, with what is in it by then. [`TaskError::Claim`] if another
    /// handle has claimed elements of the array, or if there are so many claims on it that none is
    /// left for the workers; [`TaskError::InvalidCall`] for chunks of 0 elements.
    ///
    /// A function that runs in this process, on threads or in turn, cannot fork: if it calls a
    /// [`Forked`](crate::Forked) pool, that call fails with
    /// [`PoolError::StartFailed`](crate::PoolError::StartFailed), because the child would have the
    /// chunk too.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, closure};
    ///
    /// let pool = Pool::processes(2)?;
    /// let mut image = SharedArray::<u8>::zeros(3 * 4)?;
    /// pool.for_each_chunk(&mut image, 4, |y, row: &mut [u8]| row.fill(y as u8))?;
    /// assert_eq!(image.to_vec()?, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
    ///
    /// let colours = vec![7, 8, 9];
    /// let paint = closure!([colours] |y: usize, row: &mut [u8]| row.fill(colours[y]));
    /// pool.for_each_chunk(&mut image, 4, paint)?;
    /// assert_eq!(image.get(4)?, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_chunk<F, T>(
        &self,
        array: &mut SharedArray<T>,
        chunk: usize,
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        F: Fn(usize, &mut [T]),
        E: RunLent<LentChunks<T>, F>,
    {
        self.call().for_each_chunk(array, chunk, f)
    }

    /// Runs `f` on every chunk of `out` together with the chunk of `input` that has the same index,
    /// in place.
    ///
    /// The chunks of the two may have different lengths, but there must be as many of the one as of
    /// the other. `input` is lent to read: others may read it meanwhile. Everything else is as with
    /// [`for_each_chunk`](Self::for_each_chunk).
    ///
    /// # Errors
    ///
    /// The errors of [`for_each_chunk`](Self::for_each_chunk); [`TaskError::InvalidCall`] also if
    /// one has more chunks than the other.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let pixels = SharedArray::<u8>::from_slice(&[10, 20, 30, 40, 50, 60])?;
    /// let mut grey = SharedArray::<u16>::zeros(2)?;
    /// pool.for_each_chunk_pair(
    ///     &mut grey,
    ///     1,
    ///     &pixels,
    ///     3,
    ///     |_, grey: &mut [u16], rgb: &[u8]| {
    ///         grey[0] = rgb.iter().map(|&part| u16::from(part)).sum::<u16>() / 3;
    ///     },
    /// )?;
    /// assert_eq!(grey.to_vec()?, [20, 50]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_chunk_pair<F, T, U>(
        &self,
        out: &mut SharedArray<T>,
        of_out: usize,
        input: &SharedArray<U>,
        of_input: usize,
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        U: Pod,
        F: Fn(usize, &mut [T], &[U]),
        E: RunLent<LentPairs<T, U>, F>,
    {
        self.call()
            .for_each_chunk_pair(out, of_out, input, of_input, f)
    }

    /// Treats the array as a matrix of this many rows and columns, row by row, and runs `f` on
    /// every tile of it, in place.
    ///
    /// `tile` is the number of rows and columns of a tile; tiles at the lower and right edge may
    /// have fewer. Tiles are counted from left to right and then down; an error has this index.
    /// Everything else is as with [`for_each_chunk`](Self::for_each_chunk).
    ///
    /// # Errors
    ///
    /// The errors of [`for_each_chunk`](Self::for_each_chunk); [`TaskError::InvalidCall`] also if
    /// the array does not have as many elements as the matrix.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(3 * 4)?;
    /// Pool::processes(2)?.for_each_tile(
    ///     &mut matrix,
    ///     (3, 4),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         let (top, left) = tile.origin();
    ///         tile.rows_mut()
    ///             .for_each(|row| row.fill((10 * top + left) as u8));
    ///     },
    /// )?;
    /// assert_eq!(matrix.to_vec()?, [0, 0, 2, 2, 0, 0, 2, 2, 20, 20, 22, 22]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_tile<F, T>(
        &self,
        array: &mut SharedArray<T>,
        matrix: (usize, usize),
        tile: (usize, usize),
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        F: Fn(TileMut<'_, T>),
        E: RunLent<LentTiles<T>, F>,
    {
        self.call().for_each_tile(array, matrix, tile, f)
    }
}

impl<E: Executor, M> Call<'_, '_, E, M> {
    /// Makes the call. The loan has ended before it returns, and also before a callback's panic
    /// goes on.
    fn lend<L, F>(self, (lent, loan): (L, Loan<'_>), f: F) -> Result<(), TaskError>
    where
        L: Lent<F>,
        E: RunLent<L, F>,
    {
        let (engine, plan) = self.plan(Some(lent.items()));
        let outcome = engine.lend(plan, f, lent);
        drop(loan);
        outcome
    }

    /// Runs [`Pool::for_each_chunk`] with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::for_each_chunk`].
    ///
    /// # Panics
    ///
    /// If the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(2)?;
    /// let mut array = SharedArray::<u8>::zeros(4)?;
    /// let limit = Duration::from_millis(100);
    /// let outcome = pool.call().timeout(limit).for_each_chunk(
    ///     &mut array,
    ///     1,
    ///     |index, chunk: &mut [u8]| {
    ///         chunk[0] = 1;
    ///         while index == 2 {
    ///             std::hint::spin_loop()
    ///         }
    ///     },
    /// );
    /// assert!(matches!(outcome, Err(TaskError::TimedOut { index, .. }) if index == Some(2)));
    /// assert_eq!(array.to_vec()?[..3], [1, 1, 1]); // no worker has it any more
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_chunk<F, T>(
        self,
        array: &mut SharedArray<T>,
        chunk: usize,
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        F: Fn(usize, &mut [T]),
        E: RunLent<LentChunks<T>, F>,
    {
        self.lend(LentChunks::lend(array, chunk)?, f)
    }

    /// Runs [`Pool::for_each_chunk_pair`] with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::for_each_chunk_pair`].
    ///
    /// # Panics
    ///
    /// If the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let (mut out, input) = (
    ///     SharedArray::<u32>::zeros(2)?,
    ///     SharedArray::from_slice(&[1_u32, 2, 3, 4])?,
    /// );
    /// pool.call().retries(1).for_each_chunk_pair(
    ///     &mut out,
    ///     1,
    ///     &input,
    ///     2,
    ///     |_, sum: &mut [u32], of: &[u32]| {
    ///         sum[0] = of.iter().sum();
    ///     },
    /// )?;
    /// assert_eq!(out.to_vec()?, [3, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_chunk_pair<F, T, U>(
        self,
        out: &mut SharedArray<T>,
        of_out: usize,
        input: &SharedArray<U>,
        of_input: usize,
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        U: Pod,
        F: Fn(usize, &mut [T], &[U]),
        E: RunLent<LentPairs<T, U>, F>,
    {
        self.lend(LentPairs::lend((out, of_out), (input, of_input))?, f)
    }

    /// Runs [`Pool::for_each_tile`] with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::for_each_tile`].
    ///
    /// # Panics
    ///
    /// If the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let pool = Pool::processes(2)?;
    /// let mut matrix = SharedArray::<u8>::zeros(4)?;
    /// pool.call().retries(1).for_each_tile(
    ///     &mut matrix,
    ///     (2, 2),
    ///     (2, 1),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         let (_, left) = tile.origin();
    ///         tile.rows_mut().for_each(|row| row.fill(left as u8));
    ///     },
    /// )?;
    /// assert_eq!(matrix.to_vec()?, [0, 1, 0, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_tile<F, T>(
        self,
        array: &mut SharedArray<T>,
        matrix: (usize, usize),
        tile: (usize, usize),
        f: F,
    ) -> Result<(), TaskError>
    where
        T: Pod,
        F: Fn(TileMut<'_, T>),
        E: RunLent<LentTiles<T>, F>,
    {
        self.lend(LentTiles::lend(array, matrix, tile)?, f)
    }
}
