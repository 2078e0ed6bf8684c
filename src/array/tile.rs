//! A rectangle of a matrix that lies in an array row by row.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};
use std::ptr::NonNull;
use std::slice;

/// A tile of a matrix, to write to: what [`Pool::for_each_tile`](crate::Pool::for_each_tile) gives
/// its function.
///
/// It is indexed by row and column within the tile, and gives its rows as slices.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{SharedArray, shm::TileMut};
///
/// let mut matrix = SharedArray::<u32>::zeros(4 * 6)?;
/// Pool::serial().for_each_tile(
///     &mut matrix,
///     (4, 6),
///     (2, 4),
///     |mut tile: TileMut<'_, u32>| {
///         let (top, left) = tile.origin();
///         tile[(0, 0)] = (10 * top + left) as u32;
///     },
/// )?;
/// assert_eq!(
///     (matrix.get(0)?, matrix.get(4)?, matrix.get(2 * 6 + 4)?),
///     (0, 4, 24)
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TileMut<'a, T> {
    first: NonNull<T>,
    origin: (usize, usize),
    rows: usize,
    columns: usize,
    /// The number of elements from one row to the next.
    stride: usize,
    elements: PhantomData<&'a mut [T]>,
}

// SAFETY: a `TileMut` is a number of mutable slices, one for each row.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for TileMut<'_, T> {}
// SAFETY: as above; by a shared reference they can only be read.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for TileMut<'_, T> {}

impl<T> TileMut<'_, T> {
    /// Makes a tile of a matrix.
    ///
    /// # Safety
    ///
    /// From `first` on there are `rows` rows of `columns` elements each, `stride` apart and not
    /// longer than that. All of them are valid, and no other code reads or writes them during its
    /// lifetime.
    #[allow(unsafe_code)]
    pub(super) unsafe fn new(
        first: NonNull<T>,
        origin: (usize, usize),
        (rows, columns): (usize, usize),
        stride: usize,
    ) -> Self {
        Self {
            first,
            origin,
            rows,
            columns,
            stride,
            elements: PhantomData,
        }
    }

    /// Returns the row and the column of its first element in the matrix.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(3 * 5)?;
    /// Pool::serial().for_each_tile(
    ///     &mut matrix,
    ///     (3, 5),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         let (top, left) = tile.origin();
    ///         tile[(0, 0)] = (10 * top + left) as u8;
    ///     },
    /// )?;
    /// assert_eq!(matrix.to_vec()?[10..], [20, 0, 22, 0, 24]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn origin(&self) -> (usize, usize) {
        self.origin
    }

    /// Returns the number of rows: fewer at the lower edge, if the matrix has no whole number of
    /// tiles.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(3 * 5)?;
    /// Pool::serial().for_each_tile(
    ///     &mut matrix,
    ///     (3, 5),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         tile[(0, 0)] = tile.nrows() as u8;
    ///     },
    /// )?;
    /// assert_eq!((matrix.get(0)?, matrix.get(2 * 5)?), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn nrows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns: fewer at the right edge, if the matrix has no whole number of
    /// tiles.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(3 * 5)?;
    /// Pool::serial().for_each_tile(
    ///     &mut matrix,
    ///     (3, 5),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         tile[(0, 0)] = tile.ncols() as u8;
    ///     },
    /// )?;
    /// assert_eq!((matrix.get(0)?, matrix.get(4)?), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ncols(&self) -> usize {
        self.columns
    }

    /// Returns the start of a row of the tile.
    fn start_of(&self, row: usize) -> *mut T {
        assert!(
            row < self.rows,
            "there is no row {row} in a tile of {} rows",
            self.rows
        );
        // SAFETY: the row lies in the tile, by the assertion.
        #[allow(unsafe_code)]
        unsafe {
            self.first.as_ptr().add(row * self.stride)
        }
    }

    /// Returns a row of the tile to read.
    ///
    /// # Panics
    ///
    /// If the tile has no such row.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::from_slice(&[1, 2, 3, 4])?;
    /// Pool::serial().for_each_tile(
    ///     &mut matrix,
    ///     (2, 2),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         tile[(0, 0)] = tile.row(1).iter().sum();
    ///     },
    /// )?;
    /// assert_eq!(matrix.to_vec()?, [7, 2, 3, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code)]
    pub fn row(&self, row: usize) -> &[T] {
        // SAFETY: one of its rows, by the assertion in `start_of`; `self` is shared, so no code has
        // the row to write.
        unsafe { slice::from_raw_parts(self.start_of(row), self.columns) }
    }

    /// Returns a row of the tile to write to.
    ///
    /// # Panics
    ///
    /// If the tile has no such row.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::from_slice(&[2, 1, 4, 3])?;
    /// Pool::serial().for_each_tile(
    ///     &mut matrix,
    ///     (2, 2),
    ///     (2, 2),
    ///     |mut tile: TileMut<'_, u8>| {
    ///         tile.row_mut(1).sort();
    ///     },
    /// )?;
    /// assert_eq!(matrix.to_vec()?, [2, 1, 3, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code)]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        // SAFETY: one of its rows, by the assertion in `start_of`; `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start_of(row), self.columns) }
    }

    /// Returns the rows from the top down.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(4)?;
    /// Pool::serial().for_each_tile(&mut matrix, (2, 2), (2, 1), |tile: TileMut<'_, u8>| {
    ///     assert!(tile.rows().all(|row| row == [0]));
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[T]> {
        (0..self.rows).map(|row| self.row(row))
    }

    /// Iterates over all rows from top to bottom, to write to.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{SharedArray, shm::TileMut};
    ///
    /// let mut matrix = SharedArray::<u8>::zeros(4)?;
    /// Pool::serial().for_each_tile(
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
    pub fn rows_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [T]> {
        (0..self.rows).map(|row| {
            let start = self.start_of(row);
            // SAFETY: one of its rows; each is given once, and they have no element in common.
            // `self` is borrowed mutably for as long as they live.
            #[allow(unsafe_code)]
            unsafe {
                slice::from_raw_parts_mut(start, self.columns)
            }
        })
    }
}

impl<T> Index<(usize, usize)> for TileMut<'_, T> {
    type Output = T;

    fn index(&self, (row, column): (usize, usize)) -> &T {
        &self.row(row)[column]
    }
}

impl<T> IndexMut<(usize, usize)> for TileMut<'_, T> {
    fn index_mut(&mut self, (row, column): (usize, usize)) -> &mut T {
        &mut self.row_mut(row)[column]
    }
}

impl<T: fmt::Debug> fmt::Debug for TileMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = (0..self.rows).map(|row| self.row(row));
        f.debug_list().entries(rows).finish()
    }
}
