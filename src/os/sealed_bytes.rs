//! Bytes that one process hands to another once: packed, sealed against every change, and mapped by
//! the receiver.
//!
//! They are a memfd like [`memory`](super::memory), so nothing has a name that could be left
//! behind. No process can write to them any more, so what the receiver reads is plain memory of its
//! own.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};

use super::above_standard;
use super::mapping::Mapping;
use super::refusal::{check_file_size, refused};

/// Sealed bytes on the receiver's side.
#[derive(Debug)]
pub(crate) struct SealedBytes(Mapping);

/// What an error calls them.
const WHAT: &str = "the argument of a child process";

/// Packs the parts, one after the other.
pub(crate) fn pack(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    check_file_size("write", WHAT, len as u64)?;
    let fd = memfd_create(
        c"manyhands",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .map_err(|error| refused("memfd_create", WHAT, error))?;
    let fd = above_standard(fd).map_err(|error| refused("fcntl", WHAT, error))?;
    let mut file = File::from(fd);
    for part in parts {
        // If the machine is out of memory, this fails.
        file.write_all(part)
            .map_err(|error| refused("write", WHAT, error))?;
    }
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL),
    )
    .map_err(|error| refused("fcntl", WHAT, error))?;
    Ok(file.into())
}

/// Returns the seals that keep the bytes as they are.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

impl SealedBytes {
    /// Maps what another process packed: sealed, and of exactly `len` bytes.
    pub(crate) fn open(fd: &OwnedFd, len: u64) -> io::Result<Self> {
        let sealed = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        let size = nix::sys::stat::fstat(fd)?.st_size;
        if !sealed.contains(seals()) || u64::try_from(size) != Ok(len) {
            return Err(io::Error::other(format!(
                "{size} bytes came where {len} sealed ones were announced"
            )));
        }
        let len = usize::try_from(len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| io::Error::other("sealed memory of no bytes"))?;
        let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        Mapping::part(WHAT, fd, 0, len, protection, flags).map(Self)
    }

    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, has this length and lives as long as `self`. `open` has
        // seen its seals, and no process can take them off: they keep all processes from changing
        // the bytes or their number.
        unsafe { std::slice::from_raw_parts(self.0.start().as_ptr(), self.0.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_arrives_whole_and_cannot_be_changed() {
        let fd = pack(&[b"one ", b"", b"two"]).unwrap();
        assert!(nix::unistd::write(&fd, b"more").is_err());
        assert!(nix::unistd::ftruncate(&fd, 0).is_err());
        assert_eq!(SealedBytes::open(&fd, 7).unwrap().bytes(), b"one two");
    }

    #[test]
    fn a_parcel_of_another_length_or_unsealed_is_refused() {
        let fd = pack(&[b"four"]).unwrap();
        let error = SealedBytes::open(&fd, 5).unwrap_err();
        assert!(
            error.to_string().contains("4 bytes came where 5"),
            "{error}"
        );
        let open = memfd_create(c"manyhands", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::write(&open, b"four").unwrap();
        SealedBytes::open(&open, 4).unwrap_err();
        SealedBytes::open(&pack(&[]).unwrap(), 0).unwrap_err();
    }
}
