//! Memory that several processes map: sealed, reserved, anonymous.
//!
//! A memfd has no name in `/dev/shm` or `/tmp`, so a crash leaves nothing behind. It is reserved in
//! full when it is made: if the machine is out of memory, the caller gets an error then, and no
//! SIGBUS later. Its size is sealed, so that no process that has the descriptor can shrink it while
//! others use it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::out_of_reach;
use super::refusal::{check_file_size, refused};

/// A shared mapping of a whole memfd. It keeps no descriptor: a library that goes on writing to a
/// number that it has closed must not write here.
pub(crate) use super::mapping::Mapping as SharedMemory;

impl SharedMemory {
    /// Makes `len` bytes of zeros, reserved and sealed. Returns them with the descriptor to hand to
    /// other processes. An error calls it `what`.
    pub(crate) fn new(what: &'static str, len: NonZeroUsize) -> io::Result<(Self, OwnedFd)> {
        check_file_size("fallocate", what, len.get() as u64)?;
        let fd = memfd_create(
            c"manyhands",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )
        .map_err(|error| refused("memfd_create", what, error))?;
        let fd = out_of_reach(fd).map_err(|error| refused("fcntl", what, error))?;
        let size =
            i64::try_from(len.get()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        fallocate(&fd, FallocateFlags::empty(), 0, size)
            .map_err(|error| refused("fallocate", what, error))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|error| refused("fcntl", what, error))?;
        Ok((Self::of(what, &fd, len)?, fd))
    }

    /// Maps what another process made. Asks the kernel for the size, which must be exactly `len`.
    pub(crate) fn open(what: &'static str, fd: &OwnedFd, len: NonZeroUsize) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(fd)
            .map_err(|error| refused("fstat", what, error))?
            .st_size;
        if usize::try_from(size) != Ok(len.get()) {
            return Err(io::Error::other(format!(
                "shared memory of {size} bytes where {len} were expected"
            )));
        }
        Self::of(what, fd, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_sealed_and_checked() {
        let (_memory, other) =
            SharedMemory::new("a test", NonZeroUsize::new(8192).unwrap()).unwrap();
        assert!(
            nix::unistd::ftruncate(&other, 4096).is_err(),
            "shrinking must be refused"
        );
        assert!(
            nix::unistd::ftruncate(&other, 16384).is_err(),
            "growing must be refused"
        );
        let error =
            SharedMemory::open("a test", &other, NonZeroUsize::new(4096).unwrap()).unwrap_err();
        assert!(error.to_string().contains("8192"), "{error}");
    }

    #[test]
    fn two_mappings_are_one_memory() {
        let len = NonZeroUsize::new(4096).unwrap();
        let (one, fd) = SharedMemory::new("a test", len).unwrap();
        let two = SharedMemory::open("a test", &fd, len).unwrap();
        // SAFETY: both mappings are 4096 bytes of plain memory that only this test uses.
        unsafe { one.start().write(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { two.start().read() }, 7);
    }
}
