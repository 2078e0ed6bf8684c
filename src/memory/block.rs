//! Blocks: how a family's memory is given out, to which processes, and how it comes back.
//!
//! Sizes are powers of two. A block that was once cut out keeps its place and its size for good. A
//! free block waits in a list until a process asks for that size. The memory of large free blocks
//! is given back to the system, except for the last few that were used: writing to memory that was
//! used before takes a tenth of the time of fresh memory.
//!
//! A block belongs to the processes that hold it: one bit for each member. It becomes free when the
//! last of them lets go, and no message with a handle of it is under way
//! ([`holders`](super::holders)). What a killed process held is let go of when the process is
//! reclaimed ([`member`](super::member)). Every other change is made under one lock. If the owner
//! of that lock dies, the next owner notices it, and [`Family::repair`] finds out from the entries
//! alone which blocks are free. So each entry must say at every moment either what was or what will
//! be.

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
use crate::os::memory_left;
use crate::os::robust::Held;

/// The number of entries that only large blocks get.
const FOR_LARGE: usize = 1 << 16;

/// The order of the smallest block: a cache line.
const LEAST_ORDER: u32 = 6;

/// Free large blocks keep their memory up to this many bytes in all.
const MOST_KEPT: u64 = 64 << 20;

/// For blocks larger than this, the memory is checked before they get addresses. They take up
/// 1/4096 of the addresses there are, and a block keeps its addresses even if it gets no memory.
const WORTH_A_LOOK: u64 = 1 << 34;

/// The step in which memory for small blocks and for entries is reserved, in bytes.
const STEP: u64 = 64 << 10;

impl Family {
    /// Makes a block of `len` bytes that `member` holds, in the phase [`Phase::Making`]. The second
    /// value says whether its memory is all zeros; otherwise it holds what the block's last user
    /// left there.
    ///
    /// To be called with nothing locked: it may have to reclaim dead members, which may hold the
    /// memory that is wanted. Waits for the ledger until the deadline.
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
            // Checked before the block gets addresses, which it would keep.
            memory_left::check_left(len, 0).map_err(|error| out_of_memory(&error))?;
        }
        let order = LEAST_ORDER.max(len.max(1).next_power_of_two().trailing_zeros());
        let lock = self.lock(|| deadline)?;
        let (index, is_new) = match self.take_free(order) {
            Some(index) => (index, false),
            None => match self.carve(order) {
                Ok(index) => (index, true),
                // No new block can be cut out. A free block of a larger size will do as well.
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
        // The kernel clears that memory, which takes time, so the ledger is unlocked. The block
        // already belongs to this member.
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

    /// Frees a block for which the kernel has no memory, as soon as the ledger can be locked.
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

    /// Makes the block live: its contents are finished, and other processes may open it.
    pub(super) fn publish(&self, id: BlockId) {
        if let Some(block) = self.block(id.index) {
            block.set_phase(Phase::Live);
        }
    }

    /// Makes `member` hold the block too. Another process holds it, or a message with a handle of
    /// it is under way to `member` (`was_in_flight`). Called under the lock of the ledger.
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

    /// Counts a message with a handle of this block, which `member` holds, as under way.
    pub(super) fn launch(&self, id: BlockId) {
        self.header().has_launched.store(1, Ordering::Relaxed);
        if let Some(block) = self.block(id.index) {
            block.holders.launch();
        }
    }

    /// Makes `member` let go of the block. If it was the last holder, `take_apart` takes the
    /// contents apart, and the block becomes free.
    ///
    /// Returns false if the ledger could not be locked within the limit. Then the caller has to
    /// call it again, with the same `reached`: each step can be done twice, and `take_apart` must
    /// be able to start again after a process that was killed in the middle of it.
    pub(super) fn release(
        &self,
        id: BlockId,
        member: u16,
        reached: &mut Stage,
        limit: Limit,
        take_apart: Option<impl FnOnce(&Block)>,
    ) -> bool {
        match self.lock(|| limit.at()) {
            Ok(lock) => self.release_locked(lock, id, member, reached, limit, take_apart),
            Err(_) => false,
        }
    }

    /// Releases a block like [`release`](Self::release), if there is nothing in it that has to be
    /// taken apart.
    pub(super) fn release_empty(
        &self,
        id: BlockId,
        member: u16,
        reached: &mut Stage,
        limit: Limit,
    ) -> bool {
        self.release(id, member, reached, limit, None::<fn(&Block)>)
    }

    /// Releases a block like [`release`](Self::release), with the ledger locked by the caller.
    /// `lock` is the ledger's, perhaps together with others. It is dropped before anything is taken
    /// apart.
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
                // Another thread of this process is ending the block.
                return true;
            }
        } else if block.holders.is_needed_besides(member) {
            // Another process or a message needs the block: only this member lets go.
            fault::point();
            block.holders.remove(member);
            fault::point();
            return true;
        }
        // Only a finished object is taken apart. Of an unfinished block it is not known how much is
        // reserved, so a large one gives its memory back.
        let is_made = !state.is(Phase::Making);
        let has_contents = is_made && state.kind().is_some_and(Kind::has_contents);
        let take_apart = take_apart.filter(|_| has_contents);
        let kept = self.header().kept.load(Ordering::Relaxed);
        let backed = block.backed.load(Ordering::Acquire);
        let is_kept = !block.is_large()
            || (is_made && backed > 0 && kept.saturating_add(backed) <= MOST_KEPT);
        // Nothing takes long here: the block becomes free at once, under the lock.
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
        // If the ledger cannot be locked, the block stays ending, and held by the member.
        let Ok(_lock) = self.lock(|| limit.at()) else {
            return false;
        };
        let state = block.state();
        if state.generation == id.generation && state.is(Phase::Ending) {
            self.put_free(id, block);
        }
        true
    }

    /// Gives back the memory of a block that is ending. Called without the lock, because it takes
    /// long for a large block. If this process is killed here, the process that reclaims it finds
    /// nothing recorded as reserved, and gives the whole block back again.
    fn bare(&self, block: &Block, backed: u64) {
        block.backed.store(0, Ordering::Release);
        fault::point();
        if let Err(error) = self.memory.give_back(block.offset(), 1 << block.order()) {
            // The memory is not all zeros then, so the entry must not say that nothing is reserved.
            block.backed.store(backed, Ordering::Release);
            log::error!("{backed} bytes of shared memory could not be given back: {error}");
        }
    }

    /// Puts a block on the list of free ones. To be called under the lock. The state is changed
    /// first: before that store the block is still held, and after it `repair` finishes what is
    /// left to do.
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
            // The generations are used up: an old handle could be taken for a new one. The block is
            // never used again.
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

    /// Takes a block off its list, preferably one that has memory. If this process is killed before
    /// the block's state says that it is taken, `repair` puts it back.
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
        // The last entries are for large blocks: a program that has used up all others for small
        // blocks can still have those.
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
                reason: self.memory.end_reason(),
            }));
        }
        if order < LARGE {
            self.reserve_up_to(&header.small_reserved, end)?;
        }
        // If this process is killed between the two stores of `top` and `blocks`, addresses are
        // wasted, of which there are plenty.
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

    /// Makes the lists of free blocks anew from the entries, after a process died with the lock.
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
                // The block may have been taken off its list, and its state not changed yet.
                block.holders.clear();
                kept += block.backed.load(Ordering::Relaxed);
                self.push_free(index, block);
            }
        }
        header.kept.store(kept, Ordering::Relaxed);
    }

    /// Returns how many blocks are not free, and how many bytes were asked for in them. Counts
    /// without the lock: a block that is made or given back meanwhile may be counted or not.
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
