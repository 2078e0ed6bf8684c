//! Memory that no reference may point to, because another process may write there: it can only be
//! copied out.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// Bytes in memory that another process maps too, or a copy of such bytes. They can only be copied
/// out: a reference would promise that no process changes them.
#[derive(Clone, Copy)]
pub(crate) struct RawBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a [UnsafeCell<u8>]>,
}

impl<'a> RawBytes<'a> {
    /// Makes raw bytes from an address and a length.
    ///
    /// # Safety
    ///
    /// The bytes can be read as long as `'a`, whatever is written to them meanwhile.
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            memory: PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends the bytes to `out`.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.len);
        let end = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `len` bytes are valid to read by construction and to write by `reserve`; private
        // memory and the mapping are distinct. Another process that breaks the protocol could write
        // meanwhile. Then the copy is some mixture of bytes, and the checks that follow treat it
        // like any other bytes.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr(), end, self.len) };
        // SAFETY: these bytes have just been written.
        unsafe { out.set_len(out.len() + self.len) };
    }

    /// Copies the bytes to the start of `out`, if they fit. Returns whether they do.
    #[inline]
    pub(crate) fn copy_to(&self, out: &mut [u8]) -> bool {
        if self.len > out.len() {
            return false;
        }
        // SAFETY: as in `append_to`, with room in `out` by the check.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr(), out.as_mut_ptr(), self.len) };
        true
    }

    /// Returns the first `N` bytes and the rest; `None` if there are fewer.
    pub(crate) fn split<const N: usize>(self) -> Option<([u8; N], RawBytes<'a>)> {
        let (head, rest) = self.split_at(N)?;
        // SAFETY: `head` has N bytes, valid to read; an array of bytes has no alignment.
        let bytes = unsafe { head.start.cast::<[u8; N]>().read() };
        Some((bytes, rest))
    }

    /// Returns the first `len` bytes and the rest; `None` if there are fewer.
    pub(crate) fn split_at(self, len: usize) -> Option<(RawBytes<'a>, RawBytes<'a>)> {
        let rest = self.len.checked_sub(len)?;
        // SAFETY: `len` is at most the length, so the result is within or one past the bytes.
        let middle = unsafe { self.start.add(len) };
        Some((
            RawBytes { len, ..self },
            RawBytes {
                start: middle,
                len: rest,
                memory: PhantomData,
            },
        ))
    }

    /// Returns the bytes in place.
    ///
    /// # Safety
    ///
    /// No process may write to them as long as the reference lives: the other process keeps to the
    /// protocol, and the cell is not released before.
    pub(crate) unsafe fn as_slice(&self) -> &'a [u8] {
        // SAFETY: valid for reads by construction; not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<'a> From<&'a [u8]> for RawBytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            start: NonNull::from(bytes).cast(),
            len: bytes.len(),
            memory: PhantomData,
        }
    }
}
