//! One large memory for all processes of a family: a memfd that takes up memory only where it was
//! reserved.
//!
//! Its size is fixed and sealed from the start, at far more than any machine has. So every process
//! that has the descriptor can map any part of it at any time, and never needs another descriptor.
//! Parts are reserved before they are used and given back one by one.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::resource::{Resource, getrlimit};

use super::mapping::Mapping;
use super::out_of_reach;

/// 64 TiB: this many addresses there are in it, not this much memory.
const LARGEST: u64 = 1 << 46;

/// The number of bytes that are reserved in one step: a signal undoes the step that it interrupts.
const STEP: u64 = 64 << 20;

/// The size from which a reservation is first compared with what the machine has left.
const WORTH_A_LOOK: u64 = 4 << 20;

/// The memory of a family.
#[derive(Debug)]
pub(crate) struct Sparse {
    fd: OwnedFd,
    len: u64,
}

impl Sparse {
    /// Makes a new memory, in which nothing is reserved.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = memfd_create(
            c"manyhands-family",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?;
        let fd = out_of_reach(fd)?;
        // The kernel kills a process that makes a file larger than the limit on files (SIGXFSZ).
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        let len = LARGEST.min(limit) & !0xffff;
        let size = i64::try_from(len).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&fd, size)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL))?;
        Ok(Self { fd, len })
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
        Ok(Self { fd, len })
    }

    /// Returns the size in bytes, few of which are backed by memory.
    pub(crate) fn len(&self) -> u64 {
        self.len
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
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "the limit on the size of files (`ulimit -f`) is too low",
            ));
        }
        if len >= WORTH_A_LOOK {
            check_left(len)?;
        }
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
                            io::Error::new(io::ErrorKind::OutOfMemory, error.desc())
                        }
                        error => error.into(),
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
                done => return Ok(done?),
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
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        Mapping::part(&self.fd, offset, len, protection, flags)
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

/// Checks that this many bytes of memory are left, as far as the system says.
///
/// # Errors
///
/// `OutOfMemory` if they are not.
pub(crate) fn check_left(len: u64) -> io::Result<()> {
    match memory_left() {
        Some(left) if len > left => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("{left} bytes are left"),
        )),
        _ => Ok(()),
    }
}

/// Returns how many bytes the machine, or the control group of this process, still has; `None` if
/// the system does not say.
///
/// A memfd belongs to no mounted file system that could be full. If it takes more than there is,
/// the kernel frees memory by killing a process of its choice. So a caller that asks for much gets
/// an error before that.
fn memory_left() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = machine.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kilobytes * 1_024)
    };
    let left = field("MemAvailable:")? + field("SwapFree:").unwrap_or(0);
    Some(left.min(group_left().unwrap_or(u64::MAX)))
}

/// Returns how many bytes the control groups of this process, of either version, leave it.
fn group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, limit, usage, idle) = if controllers.is_empty() {
            (
                "/sys/fs/cgroup",
                "memory.max",
                "memory.current",
                "inactive_file ",
            )
        } else if controllers.split(',').any(|name| name == "memory") {
            let names = ("memory.limit_in_bytes", "memory.usage_in_bytes");
            (
                "/sys/fs/cgroup/memory",
                names.0,
                names.1,
                "total_inactive_file ",
            )
        } else {
            return None;
        };
        // Inside a container the path may be the one outside of it. Then the process's own group is
        // at the root.
        let mut path = path;
        let mut least = u64::MAX;
        loop {
            let folder = format!("{root}{path}");
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(format!("{folder}/{name}"))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                let stat = fs::read_to_string(format!("{folder}/memory.stat")).unwrap_or_default();
                let idle = stat
                    .lines()
                    .find_map(|line| line.strip_prefix(idle)?.parse().ok());
                least = least.min(
                    limit
                        .saturating_sub(usage)
                        .saturating_add(idle.unwrap_or(0)),
                );
            }
            match path.rfind('/') {
                Some(end) if !path.is_empty() => path = &path[..end],
                _ => break,
            }
        }
        Some(least)
    });
    left.min()
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
    fn b78_more_than_the_machine_has_is_an_error() {
        let memory = Sparse::new().unwrap();
        let error = memory.reserve(0, 1 << 45).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(memory.reserved().unwrap(), 0);
        assert!(memory_left().unwrap() > 0);
    }
}
