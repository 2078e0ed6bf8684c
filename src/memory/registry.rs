//! What this process has of the shared objects: where each lies here, and how many handles of it
//! there are.
//!
//! A process holds a block once, however many handles it has. A forked child has its parent's
//! handles as copies, which hold nothing: the first use of one makes the child hold the block
//! itself. So there is one registry for each process in a line of forks ([`PerProcess`]), and a
//! child leaves its parent's registry alone.

use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::deferred::{self, Limit};
use super::entry::{Block, BlockId, ORDERS, Phase, Stage};
use super::error::ShareError;
use super::family::{self, Family};
use super::kind::Kind;
use super::member::{self, End, ledger_deadline};
use crate::objects;
use crate::os::fault;
use crate::os::fork::{self, PerProcess};
use crate::os::mapping::Mapping;
use crate::os::robust::Held;

/// The most mappings of large blocks that are kept for the next use: a mapping that was used before
/// needs no page faults.
const KEPT_MAPPINGS: usize = 32;

/// Where a block is in this process.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    start: NonNull<u8>,
    len: usize,
    /// The mapping of a large block. Segments of small ones stay mapped.
    _mapping: Option<Arc<Mapping>>,
}

// SAFETY: an address in a mapping, which belongs to the process and not to a thread. The code that
// uses the address is responsible for what it does there.
#[allow(unsafe_code)]
unsafe impl Send for Place {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Place {}

impl Place {
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns the number of bytes that were asked for.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// A block that this process has handles of.
#[derive(Debug)]
pub(crate) struct Attachment {
    id: BlockId,
    place: Place,
    /// [`fork::generation`] of the process that holds the block through this, from 1 on. A process
    /// that was forked since has a copy.
    joined_in: AtomicU32,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    /// How many attachments there are. More than one only in a forked child, where an old handle
    /// and a new one meet. 0: the block is about to be let go of, unless another handle of it comes
    /// before.
    count: usize,
    latest: Weak<Attachment>,
}

#[derive(Debug, Default)]
struct Entries {
    attached: HashMap<u32, Entry>,
    mappings: HashMap<u32, Arc<Mapping>>,
}

fn entries() -> MutexGuard<'static, Entries> {
    static OWN: PerProcess<LazyLock<Mutex<Entries>>> =
        PerProcess::new(LazyLock::new(Mutex::default));
    // No code that can panic runs while the entries are half changed.
    OWN.own().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest wait for the ledger with the entries locked, which keeps all other threads of this
/// process from them.
const TRY: Duration = Duration::from_millis(1);

/// Locks the entries, and then the ledger, and waits at most until the deadline. Both locks may be
/// dropped in any order.
///
/// # Errors
///
/// [`ShareError::Busy`] after the deadline.
fn entries_and_ledger(
    family: &Family,
    deadline: impl Fn() -> Option<Instant>,
) -> Result<(Held<'_>, MutexGuard<'static, Entries>), ShareError> {
    loop {
        let entries = entries();
        let tries_until = || {
            let end = Instant::now() + TRY;
            Some(deadline().map_or(end, |deadline| deadline.min(end)))
        };
        if let Ok(lock) = family.lock(tries_until) {
            return Ok((lock, entries));
        }
        // The holder may be stopped. Nothing of this process is locked while this thread waits for
        // it.
        drop(entries);
        drop(family.lock(&deadline)?);
    }
}

impl Entries {
    fn place(&mut self, family: &Family, index: u32, block: &Block) -> io::Result<Place> {
        let len = usize::try_from(block.len()).map_err(io::Error::other)?;
        let size = 1_u64 << block.order().min(63);
        // What another process wrote is checked: a block lies whole in its place.
        if block.order() as usize >= ORDERS
            || len as u64 > size
            || !block.offset().is_multiple_of(size)
        {
            return Err(io::Error::other("the ledger is corrupted"));
        }
        if !block.is_large() {
            return Ok(Place {
                start: family.small(block.offset())?,
                len,
                _mapping: None,
            });
        }
        // A block keeps its place for good, so an old mapping is as good as a new one.
        let known = self.mappings.get(&index).cloned();
        let mapping = match known {
            Some(mapping) => mapping,
            None => self.map(family, index, block)?,
        };
        Ok(Place {
            start: mapping.start(),
            len,
            _mapping: Some(mapping),
        })
    }

    fn map(&mut self, family: &Family, index: u32, block: &Block) -> io::Result<Arc<Mapping>> {
        let mapping = Arc::new(family.memory.map(block.offset(), 1 << block.order())?);
        if self.mappings.len() >= KEPT_MAPPINGS {
            let attached = &self.attached;
            self.mappings
                .retain(|index, _| attached.contains_key(index));
        }
        if self.mappings.len() < KEPT_MAPPINGS {
            self.mappings.insert(index, mapping.clone());
        }
        Ok(mapping)
    }

    /// Returns whether the process has an attachment to the block. If not, the block has an entry
    /// from now on, for [`release`].
    fn is_attached(&mut self, id: BlockId) -> bool {
        self.entry(id).count > 0
    }

    fn entry(&mut self, BlockId { index, generation }: BlockId) -> &mut Entry {
        self.attached.entry(index).or_insert(Entry {
            generation,
            count: 0,
            latest: Weak::new(),
        })
    }

    /// Removes the block's entry, if there is one that says that nothing is attached to the block.
    /// Returns whether there was one.
    fn take_unattached(&mut self, id: BlockId) -> bool {
        let is_it = |entry: &Entry| entry.generation == id.generation && entry.count == 0;
        let is_there = self.attached.get(&id.index).is_some_and(is_it);
        if is_there {
            self.attached.remove(&id.index);
        }
        is_there
    }

    fn note(&mut self, attachment: &Arc<Attachment>) {
        let entry = self.entry(attachment.id);
        entry.generation = attachment.id.generation;
        entry.count += 1;
        entry.latest = Arc::downgrade(attachment);
    }
}

fn unmapped(error: &io::Error) -> ShareError {
    ShareError::system("shared memory could not be mapped", error)
}

impl Attachment {
    /// Makes a new block with an object in it, which `init` makes of zeros.
    ///
    /// # Errors
    ///
    /// [`ShareError::Busy`] if the ledger stays locked for seconds, and the other errors that keep
    /// a process from sharing.
    pub(super) fn make(
        len: usize,
        kind: Kind,
        shape: u64,
        init: impl FnOnce(&Place) -> io::Result<()>,
    ) -> Result<Arc<Self>, ShareError> {
        let member = member::own()?;
        let family = family::get()?;
        let deadline = ledger_deadline();
        let (id, is_zero) = family.allocate(len as u64, kind, shape, member, deadline)?;
        let made = family
            .block(id.index)
            .ok_or(ShareError::Gone)
            .and_then(|block| {
                let place = entries()
                    .place(family, id.index, block)
                    .map_err(|error| unmapped(&error))?;
                if !is_zero {
                    zero(&place);
                }
                init(&place).map_err(|error| {
                    ShareError::system("a shared object could not be set up", &error)
                })?;
                Ok(place)
            });
        match made {
            Ok(place) => {
                family.publish(id);
                let attachment = Arc::new(Self::joined(id, place));
                entries().note(&attachment);
                Ok(attachment)
            }
            Err(error) => {
                let mut reached = Stage::First;
                deferred::release(move |limit| {
                    family.release_empty(id, member, &mut reached, limit)
                });
                Err(error)
            }
        }
    }

    /// Attaches this process to a block that another process has, or that is under way to this
    /// process.
    pub(super) fn open(
        id: BlockId,
        kind: Kind,
        shape: u64,
        was_in_flight: bool,
    ) -> Result<Arc<Self>, ShareError> {
        let member = member::own()?;
        let family = family::get()?;
        // `known` must be dropped after the lock is.
        let known;
        let (lock, mut entries) = entries_and_ledger(family, ledger_deadline)?;
        let block = family.join(&lock, id, member, was_in_flight)?;
        drop(lock);
        let entry = entries.attached.get(&id.index);
        known = entry
            .filter(|entry| entry.generation == id.generation)
            .and_then(|entry| entry.latest.upgrade());
        let opened = if block.state().kind() != Some(kind) || block.shape() != shape {
            Err(ShareError::OtherType)
        } else if let Some(known) = known {
            return Ok(known);
        } else {
            let place = entries.place(family, id.index, block);
            place.map_err(|error| unmapped(&error))
        };
        match opened {
            Ok(place) => {
                let attachment = Arc::new(Self::joined(id, place));
                entries.note(&attachment);
                Ok(attachment)
            }
            Err(error) => {
                // The block cannot be used here. This process lets go of it again, unless it has an
                // attachment to it.
                let is_needed = entries.is_attached(id);
                drop(entries);
                if !is_needed {
                    release(id);
                }
                Err(error)
            }
        }
    }

    fn joined(id: BlockId, place: Place) -> Self {
        Self {
            id,
            place,
            joined_in: AtomicU32::new(fork::generation() + 1),
        }
    }

    pub(super) fn id(&self) -> BlockId {
        self.id
    }

    /// Returns the number of bytes that were asked for. The mapping has this length whether this
    /// process holds the block or not.
    pub(super) fn len(&self) -> usize {
        self.place.len
    }

    /// Returns where the block lies. In a forked child, the first call makes the child hold the
    /// block, however long the ledger is locked.
    ///
    /// # Panics
    ///
    /// In a forked child, if all other processes have let go of the block before its first use
    /// there.
    pub(super) fn place(self: &Arc<Self>) -> &Place {
        if !self.is_joined() {
            // Without a deadline this returns only when the block is joined.
            self.join_after_fork(None);
        }
        &self.place
    }

    /// Returns [`place`](Self::place), or `None` if this process cannot get the block before the
    /// deadline.
    ///
    /// # Panics
    ///
    /// Like [`place`](Self::place).
    #[inline]
    pub(super) fn place_by(
        self: &Arc<Self>,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Option<&Place> {
        (self.is_joined() || self.join_after_fork(deadline())).then_some(&self.place)
    }

    #[inline]
    fn is_joined(&self) -> bool {
        self.joined_in.load(Ordering::Acquire) == fork::generation() + 1
    }

    #[cold]
    fn join_after_fork(self: &Arc<Self>, deadline: Option<Instant>) -> bool {
        let joined = member::own_by(|| deadline).and_then(|member| {
            let family = family::get()?;
            let (lock, mut entries) = entries_and_ledger(family, || deadline)?;
            // Another thread may have been faster.
            if !self.is_joined() {
                family.join(&lock, self.id, member, false)?;
                entries.note(self);
                self.joined_in
                    .store(fork::generation() + 1, Ordering::Release);
            }
            Ok(())
        });
        match joined {
            Ok(()) => true,
            Err(ShareError::Busy { .. }) => false,
            Err(error) => {
                panic!("a handle that this process has from the one it was forked from: {error}")
            }
        }
    }

    /// Returns the number of messages with a handle of this block that are under way.
    pub(super) fn in_flight(&self) -> u32 {
        let block = family::if_any().and_then(|family| family.block(self.id.index));
        block.map_or(0, |block| block.holders.in_flight())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if *self.joined_in.get_mut() != fork::generation() + 1 {
            // This is a copy that was never used in this process.
            return;
        }
        let_go(self.id);
    }
}

/// Removes one of this process's attachments to a block.
fn let_go(id: BlockId) {
    let mut entries = entries();
    let Some(entry) = entries.attached.get_mut(&id.index) else {
        return;
    };
    entry.count = entry.count.saturating_sub(1);
    let is_last = entry.count == 0;
    drop(entries);
    if is_last {
        release(id);
    }
}

/// Lets go of a block whose entry says that nothing is attached to it any more. Several calls may
/// be made for one entry. The first that gets both locks removes the entry and lets go of the
/// block; the others find no entry.
fn release(id: BlockId) {
    let mut reached = Stage::First;
    deferred::release(move |limit| {
        let (family, member) = match member::for_release(limit) {
            Ok(both) => both,
            Err(is_done) => return is_done,
        };
        let Ok((lock, mut entries)) = entries_and_ledger(family, || limit.at()) else {
            return false;
        };
        if reached == Stage::First && !entries.take_unattached(id) {
            return true;
        }
        // Called with nothing locked: the block may contain handles of other objects, which are
        // looked up here.
        let take_apart = |block: &Block| take_apart(family, id.index, block);
        let locks = (lock, entries);
        family.release_locked(locks, id, member, &mut reached, limit, Some(take_apart))
    });
}

/// A block that this process holds without a handle, for a forked child that has a copy of one of
/// its handles.
#[derive(Debug)]
pub(crate) struct Hold {
    id: BlockId,
    /// [`fork::generation`] of the process that this belongs to.
    generation: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            let_go(self.id);
        }
    }
}

/// A guard: while it lives, nothing is attached and nothing is let go of in this process. To be
/// held for the time of a fork.
pub(crate) struct Standstill(MutexGuard<'static, Entries>);

pub(crate) fn standstill() -> Standstill {
    Standstill(entries())
}

impl Standstill {
    /// Holds all blocks that this process holds. The caller must not drop the returned holds before
    /// the end of the standstill.
    pub(crate) fn hold_all(&mut self) -> Vec<Hold> {
        let attached = self.0.attached.iter_mut();
        attached
            .map(|(&index, entry)| {
                entry.count += 1;
                Hold {
                    id: BlockId {
                        index,
                        generation: entry.generation,
                    },
                    generation: fork::generation(),
                }
            })
            .collect()
    }

    /// Returns where the blocks of this kind are that this process holds.
    pub(crate) fn places(&mut self, kind: Kind) -> io::Result<Vec<Place>> {
        let Some(family) = family::if_any() else {
            return Ok(Vec::new());
        };
        let indices: Vec<u32> = self.0.attached.keys().copied().collect();
        let blocks = indices.into_iter().filter_map(|index| {
            let block = family.block(index)?;
            (block.state().kind() == Some(kind)).then_some((index, block))
        });
        blocks
            .map(|(index, block)| self.0.place(family, index, block))
            .collect()
    }
}

#[allow(unsafe_code)]
fn zero(place: &Place) {
    // SAFETY: the block has this length, is mapped and reserved, and belongs to this process alone
    // while it is made.
    unsafe { place.start.as_ptr().write_bytes(0, place.len) };
}

/// Calls `then` with a block's place. Keeps nothing mapped for longer than needed: this is for
/// processes that have no handle of the block.
fn visit(family: &Family, index: u32, block: &Block, then: impl FnOnce(&Place)) {
    let place = Entries::default().place(family, index, block);
    match place {
        Ok(place) => then(&place),
        Err(error) => log::error!("a shared object could not be mapped to clear it away: {error}"),
    }
}

pub(super) fn take_apart(family: &Family, index: u32, block: &Block) {
    if let Some(kind) = block.state().kind()
        && kind.has_contents()
    {
        visit(family, index, block, |place| {
            objects::take_apart(kind, place);
        });
    }
}

/// Lets go of a block in the name of a member that has ended and held it. Waits for locks until the
/// deadline at most; returns false if the caller has to try again later.
pub(super) fn reclaim(
    family: &Family,
    index: u32,
    block: &Block,
    member: u16,
    end: End,
    deadline: Instant,
) -> bool {
    let state = block.state();
    let mut is_done = true;
    if state.is(Phase::Live)
        && let Some(kind) = state.kind()
        && kind.hears_of_deaths()
    {
        visit(family, index, block, |place| {
            is_done = objects::reclaim(kind, place, member, end, deadline);
        });
        fault::point();
    }
    // The object is locked by a process that does not go on. The block stays held until a later
    // attempt.
    if !is_done {
        return false;
    }
    let id = BlockId {
        index,
        generation: state.generation,
    };
    // If a process was killed while it ended this block, this process starts again.
    let mut reached = Stage::Ending;
    let take_apart = |block: &Block| take_apart(family, index, block);
    let limit = Limit::Until(deadline);
    family.release(id, member, &mut reached, limit, Some(take_apart))
}

/// Takes back a handle that was sent and does not arrive.
pub(super) fn call_back(id: BlockId) {
    deferred::release(move |limit| {
        let (family, member) = match member::for_release(limit) {
            Ok(both) => both,
            Err(is_done) => return is_done,
        };
        let Ok((lock, mut entries)) = entries_and_ledger(family, || limit.at()) else {
            return false;
        };
        // This process lands the message like a receiver, and lets go at once, unless it has an
        // attachment anyhow.
        let has_landed = family.join(&lock, id, member, true).is_ok();
        let leaves = has_landed && !entries.is_attached(id);
        drop((lock, entries));
        if leaves {
            release(id);
        }
        true
    });
}

/// Returns the address in this process of a block that it holds without an attachment, such as a
/// payload.
pub(super) fn place_of(family: &Family, index: u32, block: &Block) -> Result<Place, ShareError> {
    let place = entries().place(family, index, block);
    place.map_err(|error| unmapped(&error))
}
