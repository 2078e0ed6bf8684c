//! The entry of a block in the ledger.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::holders::Holders;
use super::kind::Kind;

/// The number of blocks that there can be.
pub(super) const BLOCKS: usize = 1 << 20;

/// The number of orders of size: a block of order n has 2^n bytes.
pub(super) const ORDERS: usize = 47;

/// Blocks of this order and above are large: each is mapped by itself, and its memory is given back
/// when it is free.
pub(super) const LARGE: u32 = 16;

/// One block's entry. Zeros: a free block that was never used.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Block {
    /// The upper 32 bits are the generation: how often the block was given back. Then follows the
    /// kind, and the lowest 8 bits are the [`Phase`].
    pub(super) state: AtomicU64,
    /// Where the block lies, in bytes from the start of the memory. Does not change.
    pub(super) offset: AtomicU64,
    /// The block has 2^order bytes. Does not change.
    pub(super) order: AtomicU32,
    /// In the list of free blocks: the next one, counted from 1.
    pub(super) next: AtomicU32,
    /// The bytes that were asked for.
    pub(super) len: AtomicU64,
    /// The bytes from the block's start that are reserved. Of large blocks only; small ones are
    /// reserved whole.
    pub(super) backed: AtomicU64,
    /// The type that lies in the block.
    pub(super) shape: AtomicU64,
    /// The processes that hold the block, and the messages with a handle of it that are under way.
    pub(super) holders: Holders,
}

/// What stage of its life a block is in.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free = 0,
    /// Given to one process, which has not finished its contents.
    Making = 1,
    Live = 2,
    /// No process or message needs the block any more. The member that still holds it takes its
    /// contents apart.
    Ending = 3,
}

/// How far a release has come, for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not begun. If the block is ending, another release is at work on it.
    First,
    /// The block is ending by this release, or by one of a process that has died.
    Ending,
}

/// A block, and which of the objects that lay in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct BlockId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// An entry's state.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) generation: u32,
    pub(super) kind: u8,
    pub(super) phase: u8,
}

impl State {
    pub(super) fn is(self, phase: Phase) -> bool {
        self.phase == phase as u8
    }

    pub(super) fn kind(self) -> Option<Kind> {
        Kind::of(self.kind)
    }

    pub(super) fn word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.kind) << 8 | u64::from(self.phase)
    }
}

impl Block {
    pub(super) fn state(&self) -> State {
        // Pairs with the stores in `set`.
        let word = self.state.load(Ordering::Acquire);
        State {
            generation: (word >> 32) as u32,
            kind: (word >> 8) as u8,
            phase: word as u8,
        }
    }

    pub(super) fn set(&self, state: State) {
        self.state.store(state.word(), Ordering::Release);
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        let phase = phase as u8;
        self.set(State {
            phase,
            ..self.state()
        });
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    pub(super) fn order(&self) -> u32 {
        self.order.load(Ordering::Relaxed)
    }

    pub(super) fn is_large(&self) -> bool {
        self.order() >= LARGE
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn shape(&self) -> u64 {
        self.shape.load(Ordering::Relaxed)
    }

    pub(super) fn is_held_by(&self, member: u16) -> bool {
        self.holders.contains(member)
    }
}
