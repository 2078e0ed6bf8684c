//! One large memory for all processes of a family: a memfd that takes up memory only where it was
//! reserved.
//!
//! Its size is fixed and sealed from the start, at far more than any machine has. So every process
//! that has the descriptor can map any part of it at any time, and never needs another descriptor.
//! Parts are reserved before they are used and given back one by one.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::resource::{Resource, getrlimit};

use super::mapping::Mapping;
use super::memory_left::check_left;
use super::out_of_reach;
use super::refusal::refused;

/// 64 TiB: this many addresses there are in it, not this much memory.
const LARGEST: u64 = 1 << 46;

/// The number of bytes that are reserved in one step: a signal undoes the step that it interrupts.
const STEP: u64 = 64 << 20;

/// The bytes after which a reservation is first compared with what the machine has left.
const WORTH_A_LOOK: u64 = 4 << 20;

/// The bytes that this process has reserved since it last looked at what the machine has left.
#[derive(Debug, Default)]
struct Unchecked(AtomicU64);

impl Unchecked {
    /// Has `check_left` check whether `len` bytes are left, and as many as are reserved after them
    /// without a check: once the reservations since the last check come to [`WORTH_A_LOOK`]. A look
    /// costs far more than a small reservation.
    fn check(&self, len: u64, check_left: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
        let before = self.0.fetch_add(len, Ordering::Relaxed);
        if before.saturating_add(len) < WORTH_A_LOOK {
            return Ok(());
        }
        let checked = check_left(len);
        // As long as there is too little memory, each reservation is checked.
        let next = if checked.is_ok() { 0 } else { WORTH_A_LOOK };
        self.0.store(next, Ordering::Relaxed);
        checked
    }
}

/// What an error calls it.
const WHAT: &str = "the memory that processes share";

/// The memory of a family.
#[derive(Debug)]
pub(crate) struct Sparse {
    fd: OwnedFd,
    len: u64,
    unchecked: Unchecked,
}

impl Sparse {
    /// Makes a new memory, in which nothing is reserved.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = memfd_create(
            c"manyhands-family",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )
        .map_err(|error| refused("memfd_create", WHAT, error))?;
        let fd = out_of_reach(fd).map_err(|error| refused("fcntl", WHAT, error))?;
        // The kernel kills a process that makes a file larger than the limit on files (SIGXFSZ).
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        let len = LARGEST.min(limit) & !0xffff;
        let size = i64::try_from(len).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&fd, size).map_err(|error| refused("ftruncate", WHAT, error))?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL))
            .map_err(|error| refused("fcntl", WHAT, error))?;
        Ok(Self {
            fd,
            len,
            unchecked: Unchecked::default(),
        })
    }

    /// Opens a memory that another process has made. Its size must be sealed.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Self> {
        let fd = out_of_reach(fd)?;
        let sealed = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        if !sealed.contains(seals()) {
            return Err(io::Error::other(
                "the family's memory is not sealed against changes of its size",
            ));
        }
        let len = u64::try_from(nix::sys::stat::fstat(&fd)?.st_size).map_err(io::Error::other)?;
        Ok(Self {
            fd,
            len,
            unchecked: Unchecked::default(),
        })
    }

    /// Returns the size in bytes, few of which are backed by memory.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns why there is nothing beyond the end.
    pub(crate) fn end_reason(&self) -> String {
        if self.len < LARGEST & !0xffff {
            format!(
                "the addresses of all shared objects together end at {} bytes, because RLIMIT_FSIZE was no more when the first \
                 of these processes began to share; start the program with `ulimit -f unlimited`",
                self.len
            )
        } else {
            "the addresses of this family are used up".to_owned()
        }
    }

    /// Reserves these bytes, so that they can be written to. Both numbers are multiples of a page.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if there is not that much left. Then no more is reserved than before; some of
    /// what was reserved before may be gone.
    pub(crate) fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        // Beyond the end the file would grow, and above the limit on files that kills the process
        // (SIGXFSZ).
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let reason = self.end_reason();
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, reason));
        }
        self.unchecked
            .check(len, |len| check_left(len, WORTH_A_LOOK))?;
        let mut done = 0;
        while done < len {
            let step = STEP.min(len - done);
            match self.fallocate(FallocateFlags::empty(), offset + done, step) {
                Ok(()) => done += step,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    if let Err(error) = self.give_back(offset, done) {
                        log::error!("{done} bytes of shared memory stay reserved: {error}");
                    }
                    return Err(match error {
                        Errno::ENOSPC | Errno::ENOMEM | Errno::EFBIG => {
                            let reason = refused("fallocate", WHAT, error);
                            io::Error::new(io::ErrorKind::OutOfMemory, reason)
                        }
                        error => refused("fallocate", WHAT, error),
                    });
                }
            }
        }
        Ok(())
    }

    /// Gives these bytes back to the system. They read as zeros afterwards.
    ///
    /// # Errors
    ///
    /// The system's error; then some of the memory may still be there, as it was.
    pub(crate) fn give_back(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if len == 0 {
            return Ok(());
        }
        loop {
            match self.fallocate(flags, offset, len) {
                Err(Errno::EINTR) => {}
                done => return done.map_err(|error| refused("fallocate", WHAT, error)),
            }
        }
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let number = |number: u64| i64::try_from(number).map_err(|_| Errno::EFBIG);
        fallocate(&self.fd, flags, number(offset)?, number(len)?)
    }

    /// Maps a part, reserved or not. The caller must not touch what is not reserved.
    pub(crate) fn map(&self, offset: u64, len: usize) -> io::Result<Mapping> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let is_inside = offset
            .checked_add(len.get() as u64)
            .is_some_and(|end| end <= self.len);
        if !is_inside {
            let reason = self.end_reason();
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        Mapping::part(WHAT, &self.fd, offset, len, protection, flags)
    }

    /// Returns how many bytes of it are backed by memory.
    pub(crate) fn reserved(&self) -> io::Result<u64> {
        let blocks = nix::sys::stat::fstat(&self.fd)?.st_blocks;
        // The kernel counts blocks of 512 bytes, whatever the file system.
        Ok(u64::try_from(blocks).unwrap_or(0) * 512)
    }
}

impl AsFd for Sparse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4_096;

    #[test]
    fn only_what_is_reserved_is_memory() {
        let memory = Sparse::new().unwrap();
        assert_eq!(memory.reserved().unwrap(), 0);
        let far = memory.len() / 2;
        memory.reserve(far, 4 * PAGE).unwrap();
        assert_eq!(memory.reserved().unwrap(), 4 * PAGE);
        memory.give_back(far + PAGE, 2 * PAGE).unwrap();
        assert!(memory.reserve(memory.len() - PAGE, 2 * PAGE).is_err());
        assert_eq!(memory.reserved().unwrap(), 2 * PAGE);
    }

    #[test]
    fn two_mappings_are_one_memory_and_its_size_is_sealed() {
        let one = Sparse::new().unwrap();
        one.reserve(PAGE, PAGE).unwrap();
        let two = Sparse::open(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (here, there) = (one.map(PAGE, 4_096).unwrap(), two.map(PAGE, 4_096).unwrap());
        // SAFETY: both mappings are 4096 reserved bytes that only this test uses.
        unsafe { here.start().write(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { there.start().read() }, 7);
        nix::unistd::ftruncate(&one, 4_096).unwrap_err();
        assert!(one.map(one.len(), 4_096).is_err());
        assert!(one.map(u64::MAX - 5, 4_096).is_err());
    }

    #[test]
    fn memory_that_is_not_sealed_is_refused() {
        let open = memfd_create(c"manyhands", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        Sparse::open(open).unwrap_err();
    }

    #[test]
    fn b115_small_reservations_are_held_against_what_is_left_together() {
        let unchecked = Unchecked::default();
        let (mut left, mut looks) = (20 << 20, 0_u32);
        let made = |left: &mut u64, looks: &mut u32| {
            let made = unchecked.check(1 << 20, |len| {
                *looks += 1;
                if len + WORTH_A_LOOK > *left {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                Ok(())
            });
            *left -= if made.is_ok() { 1 << 20 } else { 0 };
            made.is_ok()
        };
        let count = (0..100).filter(|_| made(&mut left, &mut looks)).count();
        // Before the memory is at its end they are refused, and from then on each is checked.
        assert!((12..20).contains(&count), "{count}");
        assert_eq!(looks as usize, count / 4 + 100 - count);
        // When there is memory again, they are made again, and few are checked.
        (left, looks) = (20 << 20, 0);
        let count = (0..8).filter(|_| made(&mut left, &mut looks)).count();
        assert_eq!((count, looks), (8, 2));
        unchecked
            .check(1 << 30, |_| Err(io::ErrorKind::OutOfMemory.into()))
            .unwrap_err();
        unchecked
            .check(u64::MAX, |_| Err(io::ErrorKind::OutOfMemory.into()))
            .unwrap_err();
    }

    #[test]
    fn b78_more_than_the_machine_has_is_an_error() {
        let memory = Sparse::new().unwrap();
        let error = memory.reserve(0, 1 << 45).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(memory.reserved().unwrap(), 0);
        assert!(crate::os::memory_left::memory_left().unwrap() > 0);
    }
}
