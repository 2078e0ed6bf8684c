//! The one door to the kernel. The table says what each module asks of it:
//!
//! | module | asks for |
//! |---|---|
//! | [`memory`] | `memfd_create` with seals, `fallocate`, `mmap` |
//! | [`named`] | `/dev/shm`: `shm_open`, `shm_unlink`, `open` with `O_TMPFILE`, `linkat` |
//! | | `fallocate`, `statvfs` and `mmap` there too; `sysinfo` |
//! | [`life`] | `kill` with no signal, `/proc`: whether a process that left something still runs |
//! | [`futex`] | `futex` wait and wake on shared memory, `futex_waitv` |
//! | [`sealed_bytes`] | sealed memfds for what is sent once |
//! | [`pidfd`] | `waitid`; `kill` where there are no pidfds |
//! | `process_fd` | `pidfd_open`, `pidfd_send_signal` |
//! | [`tree`] | `/proc`: the processes that a child has started, and theirs |
//! | [`ended`] | `waitid`, on a thread of its own, where there are no pidfds |
//! | [`memory_kills`] | the counters of control groups, `/proc/vmstat` |
//! | [`memory_left`] | `/proc/meminfo`, the files of control groups |
//! | [`refusal`] | `getrlimit`, `/proc` and control groups: the limit that a refused call met |
//! | [`readable`] | `poll`, and `pselect` where that is refused |
//! | [`environment`] | nothing: how a new process's environment differs from this one's |
//! | [`executable`] | `/proc/self/exe`: this program, to be started again |
//! | [`image`] | `dl_iterate_phdr`: where the code of the main executable lies |
//! | [`handoff`] | `socketpair`, descriptors passed over it (`SCM_RIGHTS`) |
//! | [`start`] | `posix_spawn`, `close_range`: the executable, started again |
//! | [`worker`] | what a new worker does once to itself: `prctl`, `sigaction`, `dup` |
//! | [`exit`] | `atexit` |
//! | [`fault`] | nothing; in tests, `raise` |
//! | [`fork`] | `fork`, `_exit`, `O_ASYNC` life lines |
//! | [`generation`] | `pthread_atfork`, `MADV_WIPEONFORK`: whether this process was forked |
//! | [`guard`] | `setsid`, `chdir`: a process that outlives the program |
//! | [`alarm`] | `eventfd` |
//! | [`clock`] | `clock_gettime` |
//! | [`crash`] | handlers of the signals that stand for crashes, `sigaltstack`, |
//! | | `/proc/self/maps`, `process_vm_readv`, `rt_tgsigqueueinfo` |
//! | `symbols` | `/proc/self/maps`, the files that are loaded |
//! | [`oom`] | `/proc/self/mem` |
//! | [`timer`] | `timer_create`: a limit that a process cannot outlive |
//! | [`task`] | the threads of this process, from `/proc/self/task` |
//! | [`random`] | `getrandom` |
//! | [`sparse`] | a family's memory: `memfd_create`, `fallocate`, parts mapped and given back |
//! | [`robust`] | robust mutexes of the C library |
//! | [`mod@slice`] | nothing: how long the sleepers sleep before they look again |
//! | `state` | `/proc/<pid>/stat`: whether a process is stopped |
//!
//! Nothing else in the crate calls the kernel other than through the standard library.
//!
//! Unsafe code is allowed here because there is no other way to ask the kernel. Each function takes
//! and gives safe types, or is `unsafe` itself and says what its caller must ensure.
#![allow(unsafe_code)]

pub use exit_status::ExitStatus;

pub(crate) mod alarm;
pub(crate) mod clock;
pub(crate) mod crash;
mod ended;
pub(crate) mod environment;
pub(crate) mod executable;
pub(crate) mod exit;
mod exit_status;
pub(crate) mod fault;
pub(crate) mod fork;
pub(crate) mod futex;
mod generation;
pub(crate) mod guard;
pub(crate) mod handoff;
pub(crate) mod image;
pub(crate) mod life;
pub(crate) mod mapping;
pub(crate) mod memory;
pub(crate) mod memory_kills;
pub(crate) mod memory_left;
pub(crate) mod named;
pub(crate) mod oom;
pub(crate) mod pidfd;
mod process_fd;
pub(crate) mod random;
pub(crate) mod readable;
pub(crate) mod refusal;
pub(crate) mod robust;
pub(crate) mod sealed_bytes;
pub(crate) mod slice;
pub(crate) mod sparse;
pub(crate) mod start;
pub(crate) mod state;
#[cfg(feature = "symbols")]
pub(crate) mod symbols;
pub(crate) mod task;
pub(crate) mod timer;
pub(crate) mod tree;
pub(crate) mod worker;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};

/// Returns the same descriptor, but never under the number of a standard stream that is closed:
/// under such a number it would get what the program prints. All descriptors that the crate keeps
/// open or hands over go through here.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        Ok(fd)
    } else {
        // The standard library gives copies higher numbers.
        fd.try_clone()
    }
}

/// Returns the limit on the stacks of this process's main threads, in bytes.
pub(crate) fn stack_limit() -> u64 {
    getrlimit(Resource::RLIMIT_STACK).map_or(0, |(soft, _)| soft)
}

/// The number from which descriptors that are kept open begin, if the limit on them allows it.
const HIGH: u64 = 512;

/// Moves a descriptor that stays open for long to a high number. The kernel gives out the lowest
/// number that is free. So if other code goes on using the number of a descriptor that it has
/// closed, that number means another low one, and not this.
fn out_of_reach(fd: OwnedFd) -> io::Result<OwnedFd> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(HIGH, |(soft, _)| soft);
    let lowest = HIGH.min(limit / 2).max(3) as i32;
    if fd.as_raw_fd() >= lowest {
        return Ok(fd);
    }
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(lowest)) {
        // SAFETY: the kernel has just made this descriptor for this call alone.
        Ok(high) => Ok(unsafe { OwnedFd::from_raw_fd(high) }),
        // All of those numbers are taken. The descriptor works where it is, too.
        Err(_) => above_standard(fd),
    }
}
