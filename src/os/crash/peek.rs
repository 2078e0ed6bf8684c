//! Reads this process's memory where there may be none: a read that a plain load would die of is
//! `None`.

use std::ffi::c_void;
use std::ptr;

/// Bytes that are read at a time.
const WINDOW: usize = 256;

/// A window on the memory of this process. It uses one system call for each move, and no heap.
pub(super) struct Peek {
    start: usize,
    len: usize,
    bytes: [u8; WINDOW],
}

impl Peek {
    pub(super) const fn new() -> Self {
        Self {
            start: 0,
            len: 0,
            bytes: [0; WINDOW],
        }
    }

    /// Returns the `N` bytes at this address.
    pub(super) fn bytes<const N: usize>(&mut self, address: usize) -> Option<[u8; N]> {
        if !self.covers(address, N) {
            self.move_to(address);
            if !self.covers(address, N) {
                return None;
            }
        }
        let offset = address.wrapping_sub(self.start);
        let bytes = self.bytes.get(offset..offset.wrapping_add(N))?;
        bytes.try_into().ok()
    }

    pub(super) fn u8(&mut self, address: usize) -> Option<u8> {
        self.bytes(address).map(u8::from_ne_bytes)
    }

    pub(super) fn u16(&mut self, address: usize) -> Option<u16> {
        self.bytes(address).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self, address: usize) -> Option<u32> {
        self.bytes(address).map(u32::from_ne_bytes)
    }

    pub(super) fn word(&mut self, address: usize) -> Option<usize> {
        self.bytes(address).map(usize::from_ne_bytes)
    }

    /// Forgets what was read: the memory may have changed.
    pub(super) fn forget(&mut self) {
        self.len = 0;
    }

    fn covers(&self, address: usize, len: usize) -> bool {
        let offset = address.wrapping_sub(self.start);
        offset <= self.len && len <= self.len.wrapping_sub(offset)
    }

    fn move_to(&mut self, address: usize) {
        let local = libc::iovec {
            iov_base: self.bytes.as_mut_ptr().cast::<c_void>(),
            iov_len: WINDOW,
        };
        let remote = libc::iovec {
            iov_base: ptr::without_provenance_mut(address),
            iov_len: WINDOW,
        };
        // SAFETY: getpid takes nothing, and is one system call.
        let own = unsafe { libc::getpid() };
        // SAFETY: the kernel writes no more than the length of the buffer, which is ours. It checks
        // the other address itself, and stops at the first page that cannot be read.
        let read =
            unsafe { libc::process_vm_readv(own, &raw const local, 1, &raw const remote, 1, 0) };
        self.start = address;
        self.len = usize::try_from(read).unwrap_or(0).min(WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_none() {
        let mut peek = Peek::new();
        for address in [0, 8, usize::MAX, usize::MAX - 7, 1 << 63] {
            assert_eq!(peek.word(address), None, "{address:#x}");
        }
        let words: Vec<usize> = (0..1_000).collect();
        for (index, word) in words.iter().enumerate() {
            assert_eq!(peek.word(ptr::from_ref(word) as usize), Some(index));
        }
        for (index, word) in words.iter().enumerate().rev() {
            assert_eq!(peek.word(ptr::from_ref(word) as usize), Some(index));
        }
    }
}
