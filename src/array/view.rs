//! `ndarray` views of slices of an array, without a copy.

use bytemuck::Pod;
use ndarray::{ArrayView, ArrayViewMut, Dimension, ErrorKind, IntoDimension, ShapeError};

use super::{ArrayReadGuard, ArrayWriteGuard, FrozenArray};

/// Checks that there are exactly as many elements as the shape says.
fn checked<D: IntoDimension>(shape: D, len: usize) -> Result<D::Dim, ShapeError> {
    let shape = shape.into_dimension();
    if shape.size_checked() == Some(len) {
        Ok(shape)
    } else {
        Err(ShapeError::from_kind(ErrorKind::IncompatibleShape))
    }
}

impl<T> ArrayReadGuard<'_, T> {
    /// Returns the elements as an array of one or more dimensions, row by row. Nothing is copied.
    /// (Feature `ndarray`.)
    ///
    /// # Errors
    ///
    /// If there are not exactly as many elements as the shape says.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::from_fn(6, |i| i)?;
    /// let reading = array.try_read()?;
    /// assert_eq!(reading.view([2, 3])?[[1, 0]], 3);
    /// assert!(reading.view([2, 2]).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn view<D: IntoDimension>(&self, shape: D) -> Result<ArrayView<'_, T, D::Dim>, ShapeError> {
        ArrayView::from_shape(checked(shape, self.len())?, self)
    }
}

impl<T> ArrayWriteGuard<'_, T> {
    /// Returns the elements as an array of one or more dimensions, row by row, to read. (Feature
    /// `ndarray`.)
    ///
    /// # Errors
    ///
    /// Fails like [`view_mut`](Self::view_mut).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(6)?;
    /// let mut writing = array.try_write()?;
    /// writing[3] = 7;
    /// assert_eq!(writing.view([2, 3])?[[1, 0]], 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn view<D: IntoDimension>(&self, shape: D) -> Result<ArrayView<'_, T, D::Dim>, ShapeError> {
        ArrayView::from_shape(checked(shape, self.len())?, self)
    }

    /// Returns the elements as an array of one or more dimensions, row by row, to write to. Nothing
    /// is copied. (Feature `ndarray`.)
    ///
    /// # Errors
    ///
    /// If there are not exactly as many elements as the shape says.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let array = SharedArray::<u8>::zeros(6)?;
    /// array.try_write()?.view_mut([2, 3])?.column_mut(1).fill(7);
    /// assert_eq!(array.to_vec()?, [0, 7, 0, 0, 7, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn view_mut<D: IntoDimension>(
        &mut self,
        shape: D,
    ) -> Result<ArrayViewMut<'_, T, D::Dim>, ShapeError> {
        ArrayViewMut::from_shape(checked(shape, self.len())?, self)
    }
}

impl<T: Pod> FrozenArray<T> {
    /// Returns the elements as an array of one or more dimensions, row by row. Nothing is copied.
    /// (Feature `ndarray`.)
    ///
    /// # Errors
    ///
    /// If there are not exactly as many elements as the shape says.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedArray;
    ///
    /// let frozen = SharedArray::from_fn(6, |i| i)?.freeze()?;
    /// assert_eq!(frozen.view([2, 3])?.row(1).sum(), 3 + 4 + 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn view<D: IntoDimension>(&self, shape: D) -> Result<ArrayView<'_, T, D::Dim>, ShapeError> {
        ArrayView::from_shape(checked(shape, self.len())?, self)
    }
}
