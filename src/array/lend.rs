//! What a call lends its workers: an array in chunks or in tiles, each of which one worker has at a
//! time.
//!
//! Soundness rests on the claims ([`claims`](super::claims)), not on these values. A worker claims
//! its chunk under the call's lend before it makes a slice of it, and a chunk that is already
//! claimed is refused.

use std::ptr::NonNull;
use std::slice;

use bytemuck::Pod;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SharedArray;
use super::claim::{Claim, Lend};
use super::claim_mode::Mode;
use super::claims::Refusal;
use super::tile::TileMut;
use crate::error::{ClaimError, TaskError};
use crate::panic::Refused;

/// What can be lent to a function `F`.
pub trait Lent<F>: 'static {
    /// What a worker process is sent. No other crate can name it, so none can decode one.
    type Wire: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Returns the number of items of the call.
    fn items(&self) -> usize;

    fn into_wire(self) -> Self::Wire;

    /// Runs the function on one item. Does nothing if the call has ended meanwhile.
    fn run(wire: &Self::Wire, f: &F, index: usize);
}

/// Defines what a call names in its bound: a [`Wire`](Lent::Wire) that no other crate can take out.
macro_rules! lent {
    (
        $(#[$doc:meta])*
        $lent:ident($wire:ident<$($of:ident),+>): |$self:ident, $f:ident: Fn($($type:ty),+), $index:ident| $run:expr
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $lent<$($of),+>($wire<$($of),+>);

        impl<F: Fn($($type),+), $($of: Pod),+> Lent<F> for $lent<$($of),+> {
            type Wire = $wire<$($of),+>;

            fn items(&self) -> usize {
                self.0.count()
            }

            fn into_wire(self) -> Self::Wire {
                self.0
            }

            fn run($self: &Self::Wire, $f: &F, $index: usize) {
                $run
            }
        }
    };
}

lent! {
    /// A [`SharedArray`] in chunks of one length: what
    /// [`Pool::for_each_chunk`](crate::Pool::for_each_chunk) lends. Code that is generic over
    /// engines names it in a bound.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::lend::LentChunks;
    /// use manyhands::prelude::*;
    /// use manyhands::{RunLent, SharedArray};
    ///
    /// fn fill<E, F>(
    ///     pool: &Pool<E>,
    ///     row: F,
    /// ) -> Result<SharedArray<u8>, Box<dyn std::error::Error>>
    /// where
    ///     F: Fn(usize, &mut [u8]),
    ///     E: RunLent<LentChunks<u8>, F>,
    /// {
    ///     let mut image = SharedArray::zeros(6)?;
    ///     pool.for_each_chunk(&mut image, 3, row)?;
    ///     Ok(image)
    /// }
    ///
    /// assert_eq!(
    ///     fill(&Pool::serial(), |y, row: &mut [u8]| row.fill(y as u8))?.to_vec()?,
    ///     [0, 0, 0, 1, 1, 1]
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    LentChunks(Chunks<T>): |chunks, f: Fn(usize, &mut [T]), index| {
        chunks.with_chunk(index, |chunk| f(index, chunk));
    }
}

lent! {
    /// Two [`SharedArray`]s in chunks, one to write and one to read: what
    /// [`Pool::for_each_chunk_pair`](crate::Pool::for_each_chunk_pair) lends. See [`LentChunks`].
    LentPairs(Pairs<T, U>): |pairs, f: Fn(usize, &mut [T], &[U]), index| {
        pairs.with_chunks(index, |out, input| f(index, out, input));
    }
}

lent! {
    /// A [`SharedArray`] as a matrix, row by row, in tiles: what
    /// [`Pool::for_each_tile`](crate::Pool::for_each_tile) lends. See [`LentChunks`].
    LentTiles(Tiles<T>): |tiles, f: Fn(TileMut<'_, T>), index| tiles.with_tile(index, f)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "T: Pod")]
#[allow(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe checks the claim and the bounds, and only calls of this crate get there"
)]
pub struct Chunks<T> {
    array: SharedArray<T>,
    lend: u64,
    /// The number of elements of a chunk; the last one may have fewer.
    chunk: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "T: Pod, U: Pod")]
pub struct Pairs<T, U> {
    out: Chunks<T>,
    input: Chunks<U>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "T: Pod")]
#[allow(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe checks the claim and the bounds, and only calls of this crate get there"
)]
pub struct Tiles<T> {
    array: SharedArray<T>,
    lend: u64,
    /// Rows and columns of the matrix, and of a tile.
    matrix: (usize, usize),
    tile: (usize, usize),
}

fn invalid(reason: String) -> TaskError {
    TaskError::InvalidCall {
        reason: reason.into(),
    }
}

fn lend<T: Pod>(array: &SharedArray<T>, mode: Mode) -> Result<Lend<'_>, TaskError> {
    let lend = Lend::new(&array.object, mode, array.len() as u64);
    lend.map_err(|refusal| ClaimError::from(refusal).into())
}

/// Keeps arrays lent. Its end waits until no worker has a claim under it.
pub(crate) type Loan<'a> = [Option<Lend<'a>>; 2];

impl<T: Pod> Chunks<T> {
    fn new(array: &SharedArray<T>, chunk: usize, lend: &Lend<'_>) -> Result<Self, TaskError> {
        if chunk == 0 {
            return Err(invalid(
                "chunks of 0 elements would never come to an end; give at least 1".to_owned(),
            ));
        }
        Ok(Self {
            array: array.clone(),
            lend: lend.id(),
            chunk,
        })
    }

    fn count(&self) -> usize {
        self.array.len().div_ceil(self.chunk.max(1))
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let len = self.array.len();
        let start = index.saturating_mul(self.chunk).min(len);
        start..start.saturating_add(self.chunk).min(len)
    }

    /// Runs `then` on a chunk to write to. Does nothing if the call has ended.
    fn with_chunk(&self, index: usize, then: impl FnOnce(&mut [T])) {
        let range = self.range(index);
        let ends = (range.start as u64, range.end as u64);
        if let Some(_claim) = self.array.claim_under(self.lend, Mode::SubWrite, ends) {
            let chunk = self.array.part(&range);
            // SAFETY: these elements lie in the array, whose handle `self` has, and hold a `Pod`
            // each. The claim on them lasts until `then` is over, and no other process or thread
            // has one. This process is not forked by this crate meanwhile.
            #[allow(unsafe_code)]
            let chunk = unsafe { slice::from_raw_parts_mut(chunk.as_ptr().cast(), chunk.len()) };
            then(chunk);
        }
    }

    /// Runs `then` on a chunk to read. Does nothing if the call has ended.
    fn with_input(&self, index: usize, then: impl FnOnce(&[T])) {
        // The claim is the same for all chunks, so each process has one entry.
        let ends = (0, self.array.len() as u64);
        if let Some(_claim) = self.array.claim_under(self.lend, Mode::SubRead, ends) {
            let chunk = self.array.part(&self.range(index));
            // SAFETY: these elements lie in the array, whose handle `self` has, and hold a `Pod`
            // each. The claim on them lasts until `then` is over, and no process writes to them as
            // long as there is a claim.
            #[allow(unsafe_code)]
            let chunk = unsafe { slice::from_raw_parts(chunk.as_ptr().cast(), chunk.len()) };
            then(chunk);
        }
    }
}

impl<T: Pod> LentChunks<T> {
    /// Lends an array.
    pub(crate) fn lend(
        array: &SharedArray<T>,
        chunk: usize,
    ) -> Result<(Self, Loan<'_>), TaskError> {
        let lend = lend(array, Mode::LendWrite)?;
        let chunks = Chunks::new(array, chunk, &lend)?;
        Ok((Self(chunks), [Some(lend), None]))
    }
}

impl<T: Pod, U: Pod> LentPairs<T, U> {
    /// Lends both arrays.
    pub(crate) fn lend<'a>(
        (out, of_out): (&'a SharedArray<T>, usize),
        (input, of_input): (&'a SharedArray<U>, usize),
    ) -> Result<(Self, Loan<'a>), TaskError> {
        let (to_write, to_read) = (lend(out, Mode::LendWrite)?, lend(input, Mode::LendRead)?);
        let out = Chunks::new(out, of_out, &to_write)?;
        let input = Chunks::new(input, of_input, &to_read)?;
        let (outs, inputs) = (out.count(), input.count());
        if outs != inputs {
            return Err(invalid(format!(
                "{outs} chunks cannot be paired with {inputs}: there must be as many of both"
            )));
        }
        let loan = [Some(to_write), Some(to_read)];
        Ok((Self(Pairs { out, input }), loan))
    }
}

impl<T: Pod, U: Pod> Pairs<T, U> {
    fn count(&self) -> usize {
        self.out.count()
    }

    fn with_chunks(&self, index: usize, then: impl FnOnce(&mut [T], &[U])) {
        let out = &self.out;
        let with_input = |input: &[U]| out.with_chunk(index, |out| then(out, input));
        self.input.with_input(index, with_input);
    }
}

impl<T: Pod> LentTiles<T> {
    /// Lends an array.
    pub(crate) fn lend(
        array: &SharedArray<T>,
        matrix: (usize, usize),
        tile: (usize, usize),
    ) -> Result<(Self, Loan<'_>), TaskError> {
        if tile.0 == 0 || tile.1 == 0 {
            return Err(invalid(format!(
                "tiles of {} by {} have no elements; give at least 1 by 1",
                tile.0, tile.1
            )));
        }
        let len = array.len();
        if matrix.0.checked_mul(matrix.1) != Some(len) {
            return Err(invalid(format!(
                "an array of {len} elements is no matrix of {} by {}",
                matrix.0, matrix.1
            )));
        }
        let lend = lend(array, Mode::LendWrite)?;
        let tiles = Tiles {
            array: array.clone(),
            lend: lend.id(),
            matrix,
            tile,
        };
        Ok((Self(tiles), [Some(lend), None]))
    }
}

impl<T: Pod> Tiles<T> {
    /// Returns the number of tiles from left to right.
    fn across(&self) -> usize {
        self.matrix.1.div_ceil(self.tile.1.max(1))
    }

    fn count(&self) -> usize {
        self.matrix.0.div_ceil(self.tile.0.max(1)) * self.across()
    }

    /// Runs `then` on a tile to write to. Does nothing if the call has ended.
    fn with_tile(&self, index: usize, then: impl FnOnce(TileMut<'_, T>)) {
        let (rows, columns) = self.matrix;
        assert!(
            index < self.count() && rows.checked_mul(columns) == Some(self.array.len()),
            "the array has no such tile"
        );
        // The claim is in units of tiles. All tiles of a call have one size, so different tiles
        // have no element in common.
        let ends = (index as u64, index as u64 + 1);
        if let Some(_claim) = self.array.claim_under(self.lend, Mode::SubWrite, ends) {
            let top = index / self.across() * self.tile.0;
            let left = index % self.across() * self.tile.1;
            let size = (self.tile.0.min(rows - top), self.tile.1.min(columns - left));
            let start = self.array.elements().cast::<T>();
            // SAFETY: within the array, by the assertion: `top` and `left` are those of an element
            // of the matrix.
            #[allow(unsafe_code)]
            let first: NonNull<T> = unsafe { start.add(top * columns + left) };
            // SAFETY: the rows of the tile lie in the array, whose handle `self` has, and hold a
            // `Pod` each. The claim on them lasts until `then` is over, and no other process or
            // thread has one. This process is not forked by this crate meanwhile.
            #[allow(unsafe_code)]
            let tile = unsafe { TileMut::new(first, (top, left), size, columns) };
            then(tile);
        }
    }
}

impl<T: Pod> SharedArray<T> {
    /// Makes a worker's claim under a lend. Returns `None` if the lend has been closed.
    ///
    /// If the claim is refused for any other reason, the task ends with that refusal as its error.
    fn claim_under(&self, lend: u64, mode: Mode, ends: (u64, u64)) -> Option<Claim<'_>> {
        let claim = self.object.head().wait(
            None,
            || Claim::copying(&self.object, mode, ends, lend),
            // Other workers of this call have the entries, and will give them back. A worker has no
            // timeout, so it also waits for a process that is stopped while it holds the table.
            |refusal| {
                matches!(
                    refusal,
                    Refusal::Locked(_)
                        | Refusal::Full {
                            is_of_siblings: true
                        }
                )
            },
        );
        match claim {
            Ok(claim) => Some(claim),
            Err(Refusal::Closed) => None,
            Err(refusal) => Refused(refusal.into()).end_task(),
        }
    }
}
