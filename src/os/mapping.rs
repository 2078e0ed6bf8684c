//! A part of a file of shared memory in the address space of this process.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::refusal::refused;

/// A mapped part.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and what it gives out is atomics and
// an address.
unsafe impl Send for Mapping {}
// SAFETY: as above; those who read and write behind the address answer for that.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, to read and write. The file must have them: access to
    /// bytes behind its end would be SIGBUS. An error calls it `what`.
    pub(crate) fn of(what: &'static str, file: impl AsFd, len: NonZeroUsize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        Self::part(what, file, 0, len, protection, MapFlags::MAP_SHARED)
    }

    /// Maps `len` bytes from `offset` on, which the file must have. [`bytes`](Self::bytes) is only
    /// for mappings that can be written to.
    pub(super) fn part(
        what: &'static str,
        file: impl AsFd,
        offset: i64,
        len: NonZeroUsize,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in
        // use.
        let start = unsafe { mmap(None, len, protection, flags, file, offset) }
            .map_err(|error| refused("mmap", format_args!("{what}, of {len} bytes"), error))?;
        Ok(Self { start, len })
    }

    /// Returns the address of the first byte, which is aligned to a page.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start.cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// Returns the bytes, which other processes may change at any time.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        let start = self.start.cast::<AtomicU8>().as_ptr();
        // SAFETY: the mapping is that long and lives as long as `self`; an AtomicU8 has the size
        // and alignment of a byte, any byte is a valid one, and other processes may change it while
        // it is borrowed.
        unsafe { std::slice::from_raw_parts(start, self.len.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `part`. References into it borrow `self`. No code
        // that took its address uses it any longer: every user of the address owns, directly or by
        // Arc, the `Mapping` it came from, or has promised so.
        if let Err(error) = unsafe { munmap(self.start, self.len.get()) } {
            log::error!("munmap of shared memory failed: {error}");
        }
    }
}
