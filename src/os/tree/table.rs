//! [`Table`]: what a program tells its guard of its children.
//!
//! It is memory that both map, so what the program has written is there also when it has been
//! killed, and nothing waits for a guard that is stopped. The program writes, and the guard reads
//! and takes out what it has done. A word of nonsense makes the guard look for marks that no
//! process has.

use std::io;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, madvise};

use super::hunt;
use super::mark::Wanted;
use crate::os::mapping::Mapping;
use crate::os::refusal::{check_file_size, refused};
use crate::os::{futex, life, out_of_reach};

/// What the table is, for errors.
const WHAT: &str = "the table of children";

/// The number of children that the guard can know at once.
const SLOTS: usize = 4_096;

/// The number of stopped processes that the guard can know at once.
const STOPPED: usize = 256;

/// The states of a slot, in the last bits of its word. A word of zeros is free.
const STATE: u64 = 3;
/// The child runs, or the program has not looked yet how it has ended.
const LIVES: u64 = 1;
/// The child was ended by force: its descendants are to be ended.
const ASKED: u64 = 2;
/// The slot is being filled.
const TAKEN: u64 = 3;

/// A child.
#[repr(C)]
#[derive(Debug)]
struct Slot {
    /// The child's number, above the bits of the state.
    word: AtomicU64,
    /// [`Wanted::since`] of the child.
    since: AtomicU64,
}

/// A process that the program has stopped, to kill it.
#[repr(C)]
#[derive(Debug)]
struct Stopped {
    pid: AtomicU64,
    /// When the process was started; 0 until that is written. It is not stopped before.
    started: AtomicU64,
}

/// All zeros at first.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Table {
    /// Changes whenever the guard is to look.
    bell: AtomicU32,
    /// The guard's pid; 0 until there is one.
    guard: AtomicU32,
    /// When the guard was started.
    guard_started: AtomicU64,
    stopped: [Stopped; STOPPED],
    slots: [Slot; SLOTS],
}

const LEN: NonZeroUsize = NonZeroUsize::new(size_of::<Table>()).unwrap();

impl Table {
    /// Makes an empty table, which stays as long as this process. Returns it with the descriptor
    /// for the guard.
    pub(crate) fn new() -> io::Result<(&'static Self, OwnedFd)> {
        let file = memfd_create(c"guard-of-manyhands", MFdFlags::MFD_CLOEXEC)?;
        let file = out_of_reach(file)?;
        // Reserved, so that no write to it can fail.
        let size = i64::try_from(LEN.get()).map_err(io::Error::other)?;
        check_file_size("fallocate", WHAT, LEN.get() as u64)?;
        fallocate(&file, FallocateFlags::empty(), 0, size)
            .map_err(|error| refused("fallocate", WHAT, error))?;
        let table = Self::map(&file)?;
        // Copies of this process have their own children, and their own table.
        let start = std::ptr::NonNull::from(table).cast();
        // SAFETY: no copy of this process touches the table: it is reached by an entry, which looks
        // at the process first, or by a value that each process has for itself.
        unsafe { madvise(start, LEN.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok((table, file))
    }

    /// Maps the table of another process.
    pub(crate) fn open(file: &OwnedFd) -> io::Result<&'static Self> {
        let size = nix::sys::stat::fstat(file)?.st_size;
        if usize::try_from(size) != Ok(LEN.get()) {
            return Err(io::Error::other("the table is not as long as it should be"));
        }
        Self::map(file)
    }

    fn map(file: &OwnedFd) -> io::Result<&'static Self> {
        let mapping = Mapping::of(WHAT, file, LEN)?;
        let start = mapping.start().cast::<Self>();
        std::mem::forget(mapping);
        // SAFETY: the file is as long as a table, and stays mapped. All of it is atomics, of which
        // any bytes are valid.
        Ok(unsafe { start.as_ref() })
    }

    /// Adds a child. Returns its place; `None` if there is no room.
    pub(super) fn add(&self, child: Wanted) -> Option<usize> {
        let is_free = |slot: &&Slot| {
            let order = Ordering::Relaxed;
            slot.word.load(order) == 0 && slot.word.compare_exchange(0, TAKEN, order, order).is_ok()
        };
        let place = self.slots.iter().position(|slot| is_free(&slot))?;
        let slot = &self.slots[place];
        slot.since.store(child.since, Ordering::Relaxed);
        // The guard that sees the number sees the time too.
        slot.word
            .store((child.number << 2) | LIVES, Ordering::Release);
        Some(place)
    }

    /// Removes a child.
    pub(super) fn remove(&self, place: usize) {
        self.slots[place].word.store(0, Ordering::Release);
    }

    /// Asks the guard to end the descendants of a child, and to remove it.
    pub(super) fn ask(&self, place: usize) {
        let word = &self.slots[place].word;
        let number = word.load(Ordering::Relaxed) & !STATE;
        word.store(number | ASKED, Ordering::Release);
    }

    /// Wakes the guard.
    pub(crate) fn ring(&self) {
        self.bell.fetch_add(1, Ordering::Release);
        futex::wake_all(&self.bell);
    }

    /// Notes a process that is about to be stopped. Returns its place; `None` if there is no room.
    pub(super) fn note_stopped(&self, pid: u32, started: u64) -> Option<usize> {
        let order = Ordering::Relaxed;
        let take = |it: &Stopped| it.pid.compare_exchange(0, pid.into(), order, order);
        let place = self.stopped.iter().position(|it| take(it).is_ok())?;
        self.stopped[place]
            .started
            .store(started, Ordering::Release);
        Some(place)
    }

    /// Forgets a process that has been killed.
    pub(super) fn forget_stopped(&self, place: usize) {
        let stopped = &self.stopped[place];
        stopped.started.store(0, Ordering::Relaxed);
        stopped.pid.store(0, Ordering::Release);
    }

    /// Returns whether the guard runs; `None` if it has not begun yet.
    pub(crate) fn is_guarded(&self) -> Option<bool> {
        let pid = self.guard.load(Ordering::Acquire);
        let started = self.guard_started.load(Ordering::Relaxed);
        // Its first thread does the work, and ends only with it. A guard that was killed may have
        // others for a moment.
        (pid != 0).then(|| life::is_first_thread_running(pid, started))
    }

    /// Says that there is no guard.
    pub(crate) fn forget_guard(&self) {
        self.guard.store(0, Ordering::Relaxed);
    }

    // The guard's side -----------------------------------------------------------------------

    /// Says which process is the guard: a child of this process.
    pub(crate) fn set_guard(&self, pid: u32) {
        let started = life::start_time(pid).unwrap_or(0);
        self.guard_started.store(started, Ordering::Relaxed);
        self.guard.store(pid, Ordering::Release);
    }

    /// Returns what [`wait`](Self::wait) waits to change.
    pub(crate) fn seen(&self) -> u32 {
        self.bell.load(Ordering::Acquire)
    }

    /// Waits until the bell has rung since it was `seen`, at most for `timeout`.
    pub(crate) fn wait(&self, seen: u32, timeout: Option<Duration>) {
        futex::wait(&self.bell, seen, timeout);
    }

    fn in_state(&self, is_it: impl Fn(u64) -> bool) -> Vec<(usize, Wanted)> {
        let slots = self.slots.iter().enumerate();
        let child = |(place, slot): (usize, &Slot)| {
            let word = slot.word.load(Ordering::Acquire);
            let wanted = Wanted {
                number: word >> 2,
                since: slot.since.load(Ordering::Relaxed),
            };
            (word != 0 && is_it(word & STATE)).then_some((place, wanted))
        };
        slots.filter_map(child).collect()
    }

    /// Returns the children whose descendants are to be ended, with their places.
    pub(crate) fn asked(&self) -> Vec<(usize, Wanted)> {
        self.in_state(|state| state == ASKED)
    }

    /// Removes a child whose descendants have been ended.
    pub(crate) fn done(&self, place: usize, child: Wanted) {
        let word = (child.number << 2) | ASKED;
        let order = Ordering::Relaxed;
        // The program may have removed it.
        let _ = self.slots[place]
            .word
            .compare_exchange(word, 0, order, order);
    }

    /// Returns all children that have not ended in order.
    pub(crate) fn left(&self) -> Vec<Wanted> {
        let left = self.in_state(|state| state != TAKEN);
        left.into_iter().map(|(_, child)| child).collect()
    }

    /// Kills the processes that the program has stopped. It has died before it could kill them.
    pub(crate) fn kill_stopped(&self) {
        for stopped in &self.stopped {
            let pid = stopped.pid.load(Ordering::Acquire);
            let started = stopped.started.load(Ordering::Acquire);
            if let Ok(pid) = u32::try_from(pid)
                && pid != 0
                && started != 0
            {
                hunt::kill(pid, started);
            }
        }
    }
}
