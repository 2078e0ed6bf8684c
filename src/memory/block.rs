//! Blocks: what is given out of a family's memory, to whom, and how it comes back.
//!
//! Sizes are powers of two. A block that was once cut out keeps place and size for good: when it is free, it waits in a
//! list for the next one who wants that size. What large ones hold is given back to the system, except for the last few
//! that were used: memory that was used before takes a tenth of the time of fresh memory to write to.
//!
//! A block belongs to the processes that hold it: one bit for each member. When the last of them
//! lets go, and no message with a handle of it is under way, it is free
//! ([`holders`](super::holders)). A process that was killed lets go when it is buried
//! ([`member`](super::member)). Every other change is made under one lock, whose owner's death is
//! noticed: then [`Family::repair`] finds what is free from the entries alone. So each entry says
//! at every moment either what was or what will be.

use std::io;
use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::deferred::{self, Limit};
use super::entry::{BLOCKS, Block, BlockId, LARGE, ORDERS, Phase, Stage, State};
use super::error::ShareError;
use super::family::{self, Family, PAGE, SEGMENT, SMALL_END};
use super::kind::Kind;
use super::member;
use crate::os::fault;
use crate::os::robust::Held;
use crate::os::sparse;

/// How many of them only large blocks get.
const FOR_LARGE: usize = 1 << 16;

/// Small enough for a cache line.
const LEAST_ORDER: u32 = 6;

/// The memory of free large blocks is kept up to so many bytes in all.
const MOST_KEPT: u64 = 64 << 20;

/// Blocks larger than this take up so much of the addresses there are that they are not to be had in vain: 1/4096.
const WORTH_A_LOOK: u64 = 1 << 34;

/// Memory for small blocks and for entries is reserved in such steps.
const STEP: u64 = 64 << 10;

impl Family {
    /// A block of `len` bytes, held by `member`, in the phase [`Phase::Making`]. Its memory holds whatever was left
    /// there by the last one; whether that are zeros, the second says.
    ///
    /// To be called with nothing locked: the dead may have what is wanted. Waits for the ledger
    /// until the deadline.
    pub(super) fn allocate(
        &self,
        len: u64,
        kind: Kind,
        shape: u64,
        member: u16,
        deadline: Option<Instant>,
    ) -> Result<(BlockId, bool), ShareError> {
        member::poll_for_dead();
        let allocated = self.try_allocate(len, kind, shape, member, deadline);
        if let Err(ShareError::OutOfMemory { .. } | ShareError::TooManyObjects { .. }) = allocated {
            member::reclaim_dead();
            return self.try_allocate(len, kind, shape, member, deadline);
        }
        allocated
    }

    fn try_allocate(
        &self,
        len: u64,
        kind: Kind,
        shape: u64,
        member: u16,
        deadline: Option<Instant>,
    ) -> Result<(BlockId, bool), ShareError> {
        let out_of_memory = |error: &io::Error| ShareError::OutOfMemory {
            bytes: len,
            reason: error.to_string(),
        };
        if len > 1 << (ORDERS - 2) {
            return Err(out_of_memory(&io::Error::other("no machine has so much")));
        }
        if len > WORTH_A_LOOK {
            // Before it is given addresses, which it would keep.
            sparse::check_left(len).map_err(|error| out_of_memory(&error))?;
        }
        let order = LEAST_ORDER.max(len.max(1).next_power_of_two().trailing_zeros());
        let lock = self.lock(|| deadline)?;
        let (index, is_new) = match self.take_free(order) {
            Some(index) => (index, false),
            None => match self.carve(order) {
                Ok(index) => (index, true),
                // What is cut out for good may be larger than what is wanted.
                Err(CarveError::Full(error)) => {
                    let larger = (order + 1..ORDERS as u32).find_map(|order| self.take_free(order));
                    (larger.ok_or(error)?, false)
                }
                Err(CarveError::System(error)) => return Err(out_of_memory(&error)),
            },
        };
        let Some(block) = self.block(index) else {
            return Err(out_of_memory(&io::Error::other("the ledger is corrupted")));
        };
        fault::point();
        block.holders.insert(member);
        fault::point();
        block.len.store(len, Ordering::Relaxed);
        block.shape.store(shape, Ordering::Relaxed);
        let generation = block.state().generation;
        block.set(State {
            generation,
            kind: kind as u8,
            phase: Phase::Making as u8,
        });
        let id = BlockId { index, generation };
        fault::point();
        if !block.is_large() {
            return Ok((id, false));
        }
        let backed = block.backed.load(Ordering::Relaxed);
        let wanted = len.next_multiple_of(PAGE);
        self.header().kept.fetch_sub(backed, Ordering::Relaxed);
        if backed >= wanted {
            return Ok((id, is_new));
        }
        // The kernel clears that memory, which takes its time; the block is this member's by now.
        drop(lock);
        if let Err(error) = self
            .memory
            .reserve(block.offset() + backed, wanted - backed)
        {
            self.give_up(id, member);
            return Err(out_of_memory(&error));
        }
        block.backed.store(wanted, Ordering::Release);
        Ok((id, backed == 0))
    }

    /// Frees a block for which the kernel has no memory, as soon as the ledger can be had.
    fn give_up(&self, id: BlockId, member: u16) {
        let mut reached = Stage::First;
        if self.release_empty(id, member, &mut reached, Limit::Brief) {
            return;
        }
        let own = self.id();
        deferred::put_off(move |limit| {
            let family = family::if_any().filter(|family| family.id() == own);
            family.is_none_or(|family| family.release_empty(id, member, &mut reached, limit))
        });
    }

    /// What lies in the block is finished, and others may come to it.
    pub(super) fn publish(&self, id: BlockId) {
        if let Some(block) = self.block(id.index) {
            block.set_phase(Phase::Live);
        }
    }

    /// Has `member` hold the block too, which another process holds, or which is under way to it
    /// (`was_in_flight`). Under the lock of the ledger.
    pub(super) fn join(
        &self,
        _lock: &Held<'_>,
        id: BlockId,
        member: u16,
        was_in_flight: bool,
    ) -> Result<&Block, ShareError> {
        let block = self.block(id.index).ok_or(ShareError::Gone)?;
        let state = block.state();
        if !state.is(Phase::Live) || state.generation != id.generation {
            return Err(ShareError::Gone);
        }
        block.holders.insert(member);
        if was_in_flight {
            fault::point();
            block.holders.land();
            fault::point();
        }
        Ok(block)
    }

    /// A message with a handle of this block, which `member` holds, is under way.
    pub(super) fn launch(&self, id: BlockId) {
        self.header().has_launched.store(1, Ordering::Relaxed);
        if let Some(block) = self.block(id.index) {
            block.holders.launch();
        }
    }

    /// Has `member` let go of the block. If it was the last, the block is taken apart by the
    /// function given, and is free.
    ///
    /// False if the ledger could not be locked as long as the limit allows. Then it is to be called
    /// again, with the same `reached`: each step can be done twice, and `take_apart` must be able
    /// to start again after a process that was killed in the middle of it.
    pub(super) fn release(
        &self,
        id: BlockId,
        member: u16,
        reached: &mut Stage,
        limit: Limit,
        take_apart: impl FnOnce(&Block),
    ) -> bool {
        match self.lock(|| limit.at()) {
            Ok(lock) => self.release_locked(lock, id, member, reached, limit, Some(take_apart)),
            Err(_) => false,
        }
    }

    /// The same, if nothing is in the block that has to be taken apart.
    pub(super) fn release_empty(
        &self,
        id: BlockId,
        member: u16,
        reached: &mut Stage,
        limit: Limit,
    ) -> bool {
        let nothing = None::<fn(&Block)>;
        match self.lock(|| limit.at()) {
            Ok(lock) => self.release_locked(lock, id, member, reached, limit, nothing),
            Err(_) => false,
        }
    }

    /// [`release`](Self::release), with the ledger locked by the caller. `lock` is the ledger's, perhaps together with
    /// others. It goes before anything is taken apart.
    pub(super) fn release_locked(
        &self,
        lock: impl Sized,
        id: BlockId,
        member: u16,
        reached: &mut Stage,
        limit: Limit,
        take_apart: Option<impl FnOnce(&Block)>,
    ) -> bool {
        let Some(block) = self.block(id.index) else {
            return true;
        };
        let state = block.state();
        if state.generation != id.generation || state.is(Phase::Free) || !block.is_held_by(member) {
            return true;
        }
        if state.is(Phase::Ending) {
            if *reached == Stage::First {
                // Another thread of the process is at it.
                return true;
            }
        } else if block.holders.is_needed_besides(member) {
            fault::point();
            block.holders.remove(member);
            fault::point();
            return true;
        }
        // Nothing is to be taken apart that was not put together; and of one that was not finished it is not known how
        // much is reserved.
        let is_made = !state.is(Phase::Making);
        let has_contents = is_made && state.kind().is_some_and(Kind::has_contents);
        let take_apart = take_apart.filter(|_| has_contents);
        let kept = self.header().kept.load(Ordering::Relaxed);
        let backed = block.backed.load(Ordering::Acquire);
        let is_kept = !block.is_large()
            || (is_made && backed > 0 && kept.saturating_add(backed) <= MOST_KEPT);
        if is_kept && take_apart.is_none() {
            self.put_free(id, block);
            return true;
        }
        let kind = if take_apart.is_some() { state.kind } else { 0 };
        block.set(State {
            kind,
            phase: Phase::Ending as u8,
            ..state
        });
        *reached = Stage::Ending;
        fault::point();
        drop(lock);
        if let Some(take_apart) = take_apart {
            take_apart(block);
        }
        fault::point();
        if !is_kept {
            self.bare(block, backed);
        }
        fault::point();
        // Without the ledger the block stays as it is: ending, and held by the member.
        let Ok(_lock) = self.lock(|| limit.at()) else {
            return false;
        };
        let state = block.state();
        if state.generation == id.generation && state.is(Phase::Ending) {
            self.put_free(id, block);
        }
        true
    }

    /// Gives back the memory of a block that is ending. Not under the lock: of a large one that takes long. Whoever is killed
    /// at this is followed by the burial, which finds nothing reserved, and gives it all back again.
    fn bare(&self, block: &Block, backed: u64) {
        block.backed.store(0, Ordering::Release);
        fault::point();
        if let Err(error) = self.memory.give_back(block.offset(), 1 << block.order()) {
            // It is not zeros then, and must not be taken for that.
            block.backed.store(backed, Ordering::Release);
            log::error!("{backed} bytes of shared memory could not be given back: {error}");
        }
    }

    /// To be called under the lock. The state is changed first: before, the block is still held, and after it `repair`
    /// finishes what is left to do.
    fn put_free(&self, id: BlockId, block: &Block) {
        let backed = block.backed.load(Ordering::Acquire);
        block.set(State {
            generation: id.generation.saturating_add(1),
            kind: 0,
            phase: Phase::Free as u8,
        });
        fault::point();
        block.holders.clear();
        fault::point();
        if block.is_large() {
            self.header().kept.fetch_add(backed, Ordering::Relaxed);
        }
        fault::point();
        self.push_free(id.index, block);
    }

    fn push_free(&self, index: u32, block: &Block) {
        if block.state().generation == u32::MAX {
            // Used up: an old handle could be taken for a new one.
            return;
        }
        let header = self.header();
        let lists = if block.is_large() && block.backed.load(Ordering::Relaxed) == 0 {
            &header.bare
        } else {
            &header.free
        };
        if let Some(first) = lists.get(block.order() as usize) {
            block
                .next
                .store(first.load(Ordering::Relaxed), Ordering::Relaxed);
            fault::point();
            first.store(index + 1, Ordering::Release);
        }
    }

    /// Takes a block off its list, one that has memory if there is one. If this process is killed before the block says
    /// that it is taken, `repair` puts it back.
    fn take_free(&self, order: u32) -> Option<u32> {
        let header = self.header();
        [&header.free, &header.bare].into_iter().find_map(|lists| {
            let first = lists.get(order as usize)?;
            let index = first.load(Ordering::Acquire).checked_sub(1)?;
            let block = self
                .block(index)
                .filter(|block| block.state().is(Phase::Free) && block.order() == order);
            // Only memory that was written to in error says otherwise. That list is lost.
            let next = block.map_or(0, |block| block.next.load(Ordering::Relaxed));
            first.store(next, Ordering::Release);
            block.map(|_| index)
        })
    }

    /// Cuts out a new block. To be called under the lock.
    fn carve(&self, order: u32) -> Result<u32, CarveError> {
        let header = self.header();
        let index = header.blocks.load(Ordering::Relaxed);
        // The last entries are for large ones: whoever has used up all others for small ones shall still have those.
        let most = if order < LARGE {
            BLOCKS - FOR_LARGE
        } else {
            BLOCKS
        };
        if index as usize >= most {
            return Err(CarveError::Full(ShareError::TooManyObjects { limit: most }));
        }
        let end = family::HEADER + (u64::from(index) + 1) * size_of::<Block>() as u64;
        self.reserve_up_to(&header.ledger_reserved, end)?;
        let size = 1_u64 << order;
        let (top, limit) = if order < LARGE {
            (&header.small_top, SMALL_END.min(self.memory.len()))
        } else {
            (&header.large_top, self.memory.len())
        };
        // Aligned to its size, so that no small block reaches over the end of a segment.
        let offset = top.load(Ordering::Relaxed).next_multiple_of(size);
        let end = offset.saturating_add(size);
        if end > limit {
            return Err(CarveError::Full(ShareError::OutOfMemory {
                bytes: size,
                reason: "the addresses of this family are used up".to_owned(),
            }));
        }
        if order < LARGE {
            self.reserve_up_to(&header.small_reserved, end)?;
        }
        // Whoever is killed between these two wastes addresses, of which there are plenty.
        top.store(end, Ordering::Relaxed);
        #[allow(unsafe_code)]
        // SAFETY: below BLOCKS, and reserved above.
        let block = unsafe { self.entry(index) };
        block.offset.store(offset, Ordering::Relaxed);
        block.order.store(order, Ordering::Relaxed);
        // Pairs with the load in `block`.
        header.blocks.store(index + 1, Ordering::Release);
        Ok(index)
    }

    fn reserve_up_to(&self, reserved: &AtomicU64, end: u64) -> Result<(), CarveError> {
        let start = reserved.load(Ordering::Relaxed);
        if end > start {
            let len = (end - start).next_multiple_of(STEP);
            self.memory
                .reserve(start, len)
                .map_err(CarveError::System)?;
            reserved.store(start + len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Somebody died with the lock. Makes the lists of what is free anew, from the entries.
    pub(super) fn repair(&self) {
        let header = self.header();
        for first in header.free.iter().chain(&header.bare) {
            first.store(0, Ordering::Relaxed);
        }
        let mut kept = 0;
        for index in 0..header.blocks.load(Ordering::Acquire) {
            let Some(block) = self.block(index) else {
                break;
            };
            if block.state().is(Phase::Free) {
                // It may have been taken off the list and not yet been marked.
                block.holders.clear();
                kept += block.backed.load(Ordering::Relaxed);
                self.push_free(index, block);
            }
        }
        header.kept.store(kept, Ordering::Relaxed);
    }

    /// Blocks that are not free, and the bytes asked for in them. Counted without the lock: what is
    /// made or given back meanwhile is in it, or is not.
    pub(super) fn in_use(&self) -> (usize, u64) {
        let blocks = self.header().blocks.load(Ordering::Acquire);
        let used = (0..blocks).filter_map(|index| {
            let block = self.block(index)?;
            (!block.state().is(Phase::Free)).then(|| block.len())
        });
        used.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len))
    }
}

#[derive(Debug)]
enum CarveError {
    /// No entries or no addresses are left.
    Full(ShareError),
    System(io::Error),
}

const _: () = assert!(SEGMENT >= 1 << LARGE);

#[cfg(all(test, not(loom)))]
mod tests;
