//! The memory of a family: what lies where in it, and how a process gets it.
//!
//! ```text
//!   0          ledger: header, one slot for each process, one entry for each block
//!   LEDGER     small blocks, in segments that a process maps as it meets them
//!   SMALL_END  large blocks, each mapped by itself
//! ```
//!
//! The first process that makes a shared object or starts another process makes the memory. Each
//! process that it starts gets the descriptor with its greeting, and hands it on. So all of them
//! can map whatever is made later, and a handle need be no more than a number. The memory goes when
//! the last of the processes has gone, however they ended.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::entry::{BLOCKS, Block, ORDERS};
use super::error::ShareError;
use super::slot::{MEMBERS, Slot};
use crate::os::mapping::Mapping;
use crate::os::robust::{Held, LockError, RobustMutex};
use crate::os::sparse::Sparse;

const MAGIC: u64 = u64::from_ne_bytes(*b"family01");

/// The unit in which the system maps and reserves memory, in bytes.
pub(super) const PAGE: u64 = 4_096;

/// The bytes of a segment of small blocks.
pub(super) const SEGMENT: u64 = 1 << 20;

/// Where small blocks begin.
pub(super) const LEDGER: u64 = 256 << 20;

/// Where large blocks begin.
pub(super) const SMALL_END: u64 = LEDGER + SEGMENTS as u64 * SEGMENT;

const SEGMENTS: usize = 4_096;

/// The bytes of the header, before the blocks' entries.
pub(super) const HEADER: u64 = (size_of::<Header>() as u64).next_multiple_of(PAGE);

const _: () = assert!(HEADER + (BLOCKS * size_of::<Block>()) as u64 <= LEDGER);

/// What all processes of the family read and write. All zeros at first, but for the locks.
#[repr(C)]
pub(super) struct Header {
    /// Written last, by the process that makes the header.
    magic: AtomicU64,
    id: AtomicU64,
    /// The namespaces of processes and of time in which the pids and start times are valid; 0 if
    /// they are not known.
    pub(super) pids: AtomicU64,
    pub(super) times: AtomicU64,
    /// Held for every change of which process holds what, and of what is free.
    pub(super) lock: RobustMutex,
    /// Held by the process that reclaims what a dead process has left.
    pub(super) reclaim: RobustMutex,
    /// The number of blocks, free or not. Entries from here on are not even reserved.
    pub(super) blocks: AtomicU32,
    /// Slots of members from here on have never been used.
    pub(super) members: AtomicU32,
    /// Where the next small block will begin, and up to where small blocks are reserved.
    pub(super) small_top: AtomicU64,
    pub(super) small_reserved: AtomicU64,
    /// Where the next large block will begin.
    pub(super) large_top: AtomicU64,
    /// Up to where the entries are reserved.
    pub(super) ledger_reserved: AtomicU64,
    /// The bytes that are reserved in large blocks that are free.
    pub(super) kept: AtomicU64,
    /// When a process last looked for dead members, in nanoseconds of the monotonic clock; and, in
    /// `beat`, which slot is looked at next.
    pub(super) poll_for_dead: AtomicU64,
    pub(super) beat: AtomicU32,
    /// Whether a message that counts was ever sent.
    pub(super) has_launched: AtomicU32,
    /// For each order of size, the first free block that has memory, counted from 1; 0: none.
    pub(super) free: [AtomicU32; ORDERS],
    /// The same for blocks whose memory was given back.
    pub(super) bare: [AtomicU32; ORDERS],
    pub(super) slots: [Slot; MEMBERS],
}

/// A family as one of its processes has it.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) memory: Sparse,
    ledger: Mapping,
    id: u64,
    /// Where the segments of small blocks are mapped in this process; null as long as they are not.
    /// They stay mapped.
    segments: Box<[AtomicPtr<u8>]>,
}

/// The family of this process, once it has needed one. A forked child has its parent's, and is of
/// the same family.
static FAMILY: OnceLock<Family> = OnceLock::new();

/// The memory that this process was given at its start, until it needs it.
static INHERITED: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Stores the family's memory that this process has been given. To be called at its start, if at
/// all.
pub(crate) fn inherit(memory: OwnedFd) {
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
}

/// Returns what a process that this one starts is to [`inherit`]. Returns `None` if it cannot be
/// made, which is an error only for programs that share something.
pub(crate) fn for_children() -> Option<BorrowedFd<'static>> {
    match get() {
        Ok(family) => Some(family.memory.as_fd()),
        Err(error) => {
            log::warn!("processes that are started will share no memory: {error}");
            None
        }
    }
}

/// Returns the family of this process, if it has needed one so far.
pub(super) fn if_any() -> Option<&'static Family> {
    FAMILY.get()
}

/// Returns the family of this process, and opens or makes it first if need be.
pub(super) fn get() -> Result<&'static Family, ShareError> {
    if let Some(family) = FAMILY.get() {
        return Ok(family);
    }
    // The lock keeps other threads from making a second one meanwhile.
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(family) = FAMILY.get() {
        return Ok(family);
    }
    let family = match &*inherited {
        // The inherited memory stays until it has been opened: this process must not make a family
        // of its own.
        Some(memory) => memory.try_clone().and_then(Family::open),
        None => Family::new(),
    };
    let family = family.map_err(|error| {
        ShareError::system(
            "the memory that processes share could not be set up",
            &error,
        )
    })?;
    *inherited = None;
    Ok(FAMILY.get_or_init(|| family))
}

impl Family {
    /// Makes a new family, of this process alone.
    pub(super) fn new() -> io::Result<Self> {
        let memory = Sparse::new()?;
        memory.reserve(0, HEADER)?;
        let ledger = memory.map(0, LEDGER as usize)?;
        let header = ledger.start().cast::<Header>();
        let id = crate::os::random::word();
        let family = Self {
            memory,
            ledger,
            id,
            segments: segments(),
        };
        #[allow(unsafe_code)]
        for lock in [
            // SAFETY: within the header, which is mapped and reserved.
            unsafe { &raw mut (*header.as_ptr()).lock },
            // SAFETY: as above.
            unsafe { &raw mut (*header.as_ptr()).reclaim },
        ] {
            let lock = NonNull::new(lock).ok_or(io::ErrorKind::Other)?;
            // SAFETY: room for a lock, which no other process or thread knows of yet.
            unsafe { RobustMutex::init(lock) }?;
        }
        let header = family.header();
        header.small_top.store(LEDGER, Ordering::Relaxed);
        header.small_reserved.store(LEDGER, Ordering::Relaxed);
        header.large_top.store(SMALL_END, Ordering::Relaxed);
        header.ledger_reserved.store(HEADER, Ordering::Relaxed);
        let (pids, times) = crate::os::life::namespaces();
        header.pids.store(pids, Ordering::Relaxed);
        header.times.store(times, Ordering::Relaxed);
        header.id.store(id, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(family)
    }

    fn open(memory: OwnedFd) -> io::Result<Self> {
        let memory = Sparse::open(memory)?;
        let ledger = memory.map(0, LEDGER as usize)?;
        let mut family = Self {
            memory,
            ledger,
            id: 0,
            segments: segments(),
        };
        let header = family.header();
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::other("it is not what a family shares"));
        }
        family.id = header.id.load(Ordering::Relaxed);
        Ok(family)
    }

    /// Returns whether a message that counts was ever sent.
    pub(super) fn has_launched(&self) -> bool {
        self.header().has_launched.load(Ordering::Relaxed) != 0
    }

    /// Returns the family's number, which no other family has.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    #[allow(unsafe_code)]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping begins with a header, reserved and aligned, and lives as long as
        // `self`. All of it is atomic, or a lock made by `new`.
        unsafe { self.ledger.start().cast::<Header>().as_ref() }
    }

    /// Returns the entry of a block; `None` if there is no such block.
    #[allow(unsafe_code)]
    pub(super) fn block(&self, index: u32) -> Option<&Block> {
        // Pairs with the store in `carve`. What another process wrote is checked: entries beyond
        // have no memory.
        let blocks = self.header().blocks.load(Ordering::Acquire);
        if index >= blocks || index as usize >= BLOCKS {
            return None;
        }
        Some(
            // SAFETY: the entry is one of those that are reserved, by the check above.
            unsafe { self.entry(index) },
        )
    }

    /// Returns the entry with this index, unchecked.
    ///
    /// # Safety
    ///
    /// The entry is below [`BLOCKS`], and reserved.
    #[allow(unsafe_code)]
    pub(super) unsafe fn entry(&self, index: u32) -> &Block {
        let offset = HEADER as usize + index as usize * size_of::<Block>();
        // SAFETY: within the ledger, which is mapped, by the assertion at the top.
        let entry = unsafe { self.ledger.start().add(offset) };
        // SAFETY: reserved by the caller's promise; the header's length is that of whole pages and
        // an entry's a multiple of its alignment, so it is aligned. All of it is atomic, and zeros
        // are valid.
        unsafe { entry.cast::<Block>().as_ref() }
    }

    /// Takes the lock of the ledger, and waits at most until the deadline that `limit` gives.
    /// `limit` is called only if another thread holds the lock.
    ///
    /// # Errors
    ///
    /// [`ShareError::Busy`] after the deadline.
    ///
    /// # Panics
    ///
    /// If another process has written over the lock.
    pub(super) fn lock(
        &self,
        limit: impl FnOnce() -> Option<Instant>,
    ) -> Result<Held<'_>, ShareError> {
        let lock = &self.header().lock;
        match lock.hold_with(limit) {
            Ok(held) => {
                if held.owner_died() {
                    self.repair();
                }
                Ok(held)
            }
            Err(LockError::Timeout) => Err(ShareError::Busy { by: lock.holder() }),
            Err(error) => panic!("the ledger of shared memory is out of order: {error:?}"),
        }
    }

    /// Returns where a small block that begins at `offset` is in this process.
    #[allow(unsafe_code)]
    pub(super) fn small(&self, offset: u64) -> io::Result<NonNull<u8>> {
        let within = offset.wrapping_sub(LEDGER);
        let slot = usize::try_from(within / SEGMENT)
            .ok()
            .and_then(|segment| self.segments.get(segment))
            .ok_or_else(|| io::Error::other("a small block lies where there are none"))?;
        // Pairs with the exchange below.
        let start = if let Some(start) = NonNull::new(slot.load(Ordering::Acquire)) {
            start
        } else {
            let mapping = self
                .memory
                .map(offset - within % SEGMENT, SEGMENT as usize)?;
            let mapped = mapping.start();
            let exchanged = slot.compare_exchange(
                std::ptr::null_mut(),
                mapped.as_ptr(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match exchanged {
                Ok(_) => {
                    // The segment stays mapped as long as the process lives.
                    std::mem::forget(mapping);
                    mapped
                }
                // Another thread was faster.
                Err(other) => NonNull::new(other).unwrap_or(mapped),
            }
        };
        // SAFETY: less than SEGMENT, which is what is mapped there.
        Ok(unsafe { start.add((within % SEGMENT) as usize) })
    }
}

fn segments() -> Box<[AtomicPtr<u8>]> {
    (0..SEGMENTS).map(|_| AtomicPtr::default()).collect()
}
