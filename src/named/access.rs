//! Reading and writing memory that other threads and processes change meanwhile.
//!
//! A slice would promise the compiler that the bytes stay as they are. Another process need not
//! keep that promise. So each byte is loaded or stored as an atomic, relaxed: the compiler assumes
//! nothing of what it finds, and copies it once. Where eight bytes lie in one aligned word, they go
//! as one `u64`, which is several times as fast.
//!
//! Two things remain outside Rust's memory model: accesses of different width to the same bytes at
//! the same time, and what other processes do that are not written in Rust. To the hardware and to
//! LLVM both are plain: each byte is an old or a new one. That is promised, and no more.
//!
//! Unsafe code is allowed here: a mapping is seen as atomics, as words of them, and, for callers
//! that can promise more, as slices.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::{SharedMemory, SharedMemoryError};

const WORD: usize = size_of::<u64>();

impl SharedMemory {
    /// Copies bytes out, from `offset` on, as many as `to` has room for.
    ///
    /// Other threads and processes may write meanwhile: then each byte is an old or a new one.
    /// Nothing is promised about which of them come together. For that, use an
    /// [atomic](Self::atomic_u32): store it with `Release` after the writing, and load it with
    /// `Acquire` before the reading.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](SharedMemoryError::OutOfRange): not all of the bytes lie within the segment.
    /// None was copied.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-read-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 100)?;
    /// let mut bytes = [1; 4];
    /// memory.read_at(96, &mut bytes)?;
    /// assert_eq!(bytes, [0; 4]);
    /// assert!(memory.read_at(97, &mut bytes).is_err());
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), SharedMemoryError> {
        load(self.bytes(offset, to.len())?, to);
        Ok(())
    }

    /// Copies bytes in, from `offset` on. Other threads and processes see each byte old or new
    /// meanwhile, as for [`read_at`](Self::read_at).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](SharedMemoryError::OutOfRange): not all of the bytes lie within the segment.
    /// None was copied.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-write-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 100)?;
    /// memory.write_at(90, b"the end...")?;
    /// assert!(memory.write_at(91, b"the end...").is_err());
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn write_at(&self, offset: usize, from: &[u8]) -> Result<(), SharedMemoryError> {
        store(self.bytes(offset, from.len())?, from);
        Ok(())
    }

    /// Returns the four bytes from `offset` on, as an atomic number in the byte order of the
    /// machine.
    ///
    /// # Errors
    ///
    /// - [`OutOfRange`](SharedMemoryError::OutOfRange): they do not all lie within the segment.
    /// - [`Misaligned`](SharedMemoryError::Misaligned): `offset` is no multiple of 4.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// # let name = format!("manyhands-example-u32-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 8)?;
    /// assert_eq!(memory.atomic_u32(4)?.fetch_add(1, Ordering::Relaxed), 0);
    /// assert!(memory.atomic_u32(2).is_err());
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, SharedMemoryError> {
        let place = self.place::<AtomicU32>(offset)?;
        // SAFETY: the place is within the mapping, which `self` keeps alive, and aligned; any four
        // bytes are a valid AtomicU32, and other threads and processes may change them while it is
        // borrowed.
        Ok(unsafe { &*place })
    }

    /// Returns the eight bytes from `offset` on, as an atomic number in the byte order of the
    /// machine.
    ///
    /// # Errors
    ///
    /// - [`OutOfRange`](SharedMemoryError::OutOfRange): they do not all lie within the segment.
    /// - [`Misaligned`](SharedMemoryError::Misaligned): `offset` is no multiple of 8.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// # let name = format!("manyhands-example-u64-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 16)?;
    /// memory.atomic_u64(8)?.store(u64::MAX, Ordering::Release);
    /// assert!(memory.atomic_u64(16).is_err());
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, SharedMemoryError> {
        let place = self.place::<AtomicU64>(offset)?;
        // SAFETY: as in `atomic_u32`, with eight bytes.
        Ok(unsafe { &*place })
    }

    /// Returns where the segment lies in this process: `len` bytes, aligned to a page, until the
    /// handle is dropped.
    ///
    /// To use it is unsafe, as with any pointer: other threads and processes may write at any time,
    /// so use volatile or atomic accesses.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-ptr-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 100)?;
    /// // SAFETY: the first byte is within.
    /// let first = unsafe { memory.as_ptr().read_volatile() };
    /// assert_eq!(first, 0);
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.start().as_ptr()
    }

    /// Returns all of the segment as a slice.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no thread of any process may write to the segment, and no
    /// process may shrink it.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-slice-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 10)?;
    /// // SAFETY: no other thread or process knows the name.
    /// assert_eq!(unsafe { memory.as_slice() }, [0; 10]);
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is that long and lives as long as `self`; the caller promises that no
        // thread writes.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// Returns all of the segment as a slice to write to.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no thread of any process may read or write the segment by other
    /// means, and no process may shrink it. That includes other handles in this process.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-mut-{}", std::process::id());
    /// let mut memory = manyhands::shm::SharedMemory::create(&name, 10)?;
    /// // SAFETY: no other thread or process knows the name.
    /// unsafe { memory.as_mut_slice() }.fill(7);
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long and lives as long as `self`; the caller promises that no
        // other thread or process uses it.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }

    /// Returns the bytes of a range, which must lie within the segment.
    fn bytes(&self, offset: usize, len: usize) -> Result<&[AtomicU8], SharedMemoryError> {
        let end = offset.checked_add(len);
        end.and_then(|end| self.mapping.bytes().get(offset..end))
            .ok_or(SharedMemoryError::OutOfRange {
                offset,
                len,
                size: self.len(),
            })
    }

    /// Returns where a `T` lies, which must be within the segment and aligned.
    fn place<T>(&self, offset: usize) -> Result<*const T, SharedMemoryError> {
        let start = self.bytes(offset, size_of::<T>())?.as_ptr().cast::<T>();
        if start.is_aligned() {
            Ok(start)
        } else {
            Err(SharedMemoryError::Misaligned {
                offset,
                align: align_of::<T>(),
            })
        }
    }
}

/// Splits the bytes into what lies before the first word, the words, and what lies after them.
fn split(bytes: &[AtomicU8]) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
    // SAFETY: eight atomic bytes are as good as one atomic word: all bytes are valid in both, and
    // both may be changed while they are borrowed.
    unsafe { bytes.align_to() }
}

/// Copies out. Both have the same length.
pub(super) fn load(from: &[AtomicU8], to: &mut [u8]) {
    let (first, words, last) = split(from);
    let (to_first, to) = to.split_at_mut(first.len());
    let (to_words, to_last) = to.split_at_mut(words.len() * WORD);
    load_bytes(first, to_first);
    for (from, to) in words.iter().zip(to_words.as_chunks_mut().0) {
        *to = from.load(Ordering::Relaxed).to_ne_bytes();
    }
    load_bytes(last, to_last);
}

fn load_bytes(from: &[AtomicU8], to: &mut [u8]) {
    for (from, to) in from.iter().zip(to) {
        *to = from.load(Ordering::Relaxed);
    }
}

/// Copies in. Both have the same length.
pub(super) fn store(to: &[AtomicU8], from: &[u8]) {
    let (first, words, last) = split(to);
    let (from_first, from) = from.split_at(first.len());
    let (from_words, from_last) = from.split_at(words.len() * WORD);
    store_bytes(first, from_first);
    for (to, from) in words.iter().zip(from_words.as_chunks().0) {
        to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
    }
    store_bytes(last, from_last);
}

fn store_bytes(to: &[AtomicU8], from: &[u8]) {
    for (to, from) in to.iter().zip(from) {
        to.store(*from, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries every start and length around words, and checks that nothing beside them is touched.
    #[test]
    fn every_byte_goes_where_it_belongs() {
        const SIZE: usize = 40;
        for start in 0..SIZE {
            for end in start..=SIZE {
                let memory: [AtomicU64; SIZE / WORD] =
                    std::array::from_fn(|_| AtomicU64::new(u64::MAX));
                // SAFETY: as in `split`, the other way round.
                let (_, bytes, _) = unsafe { memory.align_to::<AtomicU8>() };
                let written: Vec<u8> = (0..end - start).map(|i| i as u8).collect();
                store(&bytes[start..end], &written);
                let mut read = vec![0xee; end - start];
                load(&bytes[start..end], &mut read);
                assert_eq!(read, written);
                for (at, byte) in bytes.iter().enumerate() {
                    let expected = if (start..end).contains(&at) {
                        (at - start) as u8
                    } else {
                        u8::MAX
                    };
                    assert_eq!(byte.load(Ordering::Relaxed), expected);
                }
            }
        }
    }
}
