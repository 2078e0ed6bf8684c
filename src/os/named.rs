//! Memory with a name, in `/dev/shm`, for programs that are not related.
//!
//! The names are those of the files there, without a slash. To open a file here follows no symbolic
//! link and waits for no other process. `exec` closes what was opened.

use std::fs::{self, File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::statvfs::statvfs;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{geteuid, linkat};

use super::above_standard;
use super::refusal::refused;

/// The folder where the C library keeps named shared memory.
const FOLDER: &str = "/dev/shm";

/// Makes a file there that has no name yet and that only its owner may open. If this process is
/// killed, the kernel removes it.
pub(crate) fn nameless() -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = nix::fcntl::open(FOLDER, flags, mode)
        .map_err(|error| refused("open", "a file in /dev/shm", error))?;
    let file = above_standard(file)?;
    // The umask may have removed some of these rights.
    fchmod(&file, mode)?;
    Ok(file.into())
}

/// Gives a nameless file its name, unless another file has it: `AlreadyExists`. The file appears
/// whole, or not at all.
pub(crate) fn link(file: &File, name: &str) -> io::Result<()> {
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = AtFlags::AT_SYMLINK_FOLLOW;
    Ok(linkat(AT_FDCWD, &*nameless, AT_FDCWD, &path(name), flags)?)
}

/// Opens the file of this name, to read and write.
pub(crate) fn open(name: &str) -> io::Result<File> {
    open_for(OFlag::O_RDWR, name)
}

/// Opens the file of this name, to read.
pub(crate) fn open_to_read(name: &str) -> io::Result<File> {
    open_for(OFlag::O_RDONLY, name)
}

fn open_for(what: OFlag, name: &str) -> io::Result<File> {
    // Any user may put any file there. To open a FIFO would wait for its other end.
    let flags = what | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let fd = shm_open(&*format!("/{name}"), flags, Mode::empty())
        .map_err(|error| refused("shm_open", format_args!("/dev/shm/{name}"), error))?;
    let fd: OwnedFd = above_standard(fd)?;
    Ok(fd.into())
}

/// Removes the name. The memory goes with the last process that has it mapped.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    Ok(shm_unlink(&*format!("/{name}"))?)
}

/// Returns the metadata of the file of this name; does not follow a symbolic link.
pub(crate) fn status(name: &str) -> io::Result<Metadata> {
    fs::symlink_metadata(path(name))
}

/// Returns all names there that are text.
pub(crate) fn names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(FOLDER)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Returns the number of bytes that are free there. Where no limit is set, returns all the memory
/// that the machine has: no program can get more, and a program that tried would first take the
/// memory of all others.
pub(crate) fn free() -> Option<u64> {
    let there = statvfs(FOLDER).ok()?;
    if there.blocks() > 0 {
        return Some(
            there
                .blocks_available()
                .saturating_mul(there.fragment_size()),
        );
    }
    let machine = sysinfo().ok()?;
    Some(machine.ram_total().saturating_add(machine.swap_total()))
}

/// Returns the size of the largest file that this process may make. A larger one would bring it
/// SIGXFSZ.
pub(crate) fn file_size_limit() -> u64 {
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    // The kernel's sizes have a sign, and so have offsets of pointers.
    limit.min(isize::MAX as u64)
}

/// Returns the user in whose name this process makes and opens files.
pub(crate) fn user() -> u32 {
    geteuid().as_raw()
}

/// Makes a file `len` bytes long, and has the kernel reserve all of them.
///
/// Works in steps, and tries each again when a signal interrupts it; not all kernels finish the
/// call then. Otherwise a program with a profiler's timer would never get through a large one.
pub(crate) fn reserve(file: &File, len: NonZeroUsize) -> io::Result<()> {
    const STEP: usize = 4 << 20;
    let mut done = 0;
    while done < len.get() {
        let step = STEP.min(len.get() - done);
        match fallocate(
            file,
            FallocateFlags::empty(),
            done.cast_signed() as libc::off_t,
            step.cast_signed() as libc::off_t,
        ) {
            Ok(()) => done += step,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(refused("fallocate", "memory with a name", error)),
        }
    }
    Ok(())
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Which file it is, whatever name it has: the device, the inode, and the time at which it was
/// made, in nanoseconds since 1970 (0 where the file system does not know the time).
///
/// Some file systems give the number of an inode again as soon as it is free, hence the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) born: u64,
}

impl FileId {
    pub(crate) fn of(status: &Metadata) -> Self {
        let born = status.created().ok();
        let born = born.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            device: status.dev(),
            inode: status.ino(),
            born: born.map_or(0, |since| since.as_nanos() as u64),
        }
    }
}
