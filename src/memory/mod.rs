//! What the processes of a family share, and which process holds what of it.
//!
//! | module | what |
//! |---|---|
//! | [`family`] | the family as one of its processes has it: its memory, the ledger at its start |
//! | [`entry`], [`block`] | blocks: their ledger entries; how they are made and given back |
//! | [`slot`], [`member`] | the member processes: their ledger slots; what happens when one dies |
//! | [`registry`] | the blocks that this process has mapped |
//! | [`object`] | handles of shared objects; [`kind`] says what an object is |
//! | [`transit`], [`wire`] | handles in transit; values with handles in them as bytes |
//! | [`payload`] | what is too large for a queue's own block |
//! | [`wait`], [`wait_mode`] | waiting on a word of an object, and how long |
//! | [`deferred`] | releases that could not be made at once |

pub(crate) mod block;
pub(crate) mod deferred;
pub(crate) mod entry;
mod error;
pub(crate) mod family;
#[cfg(all(test, not(loom)))]
mod faults;
mod holders;
pub(crate) mod kind;
pub(crate) mod member;
pub(crate) mod object;
pub(crate) mod payload;
pub(crate) mod registry;
pub(crate) mod shareable;
mod slot;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod transit;
pub(crate) mod wait;
pub(crate) mod wait_mode;
pub(crate) mod wire;

pub use error::ShareError;

/// Returns how many objects the family has, the bytes that they were made with, and the bytes that
/// are reserved for them. Reclaims what dead members held first.
pub(crate) fn in_use() -> (usize, u64, u64) {
    let Some(family) = family::if_any() else {
        return (0, 0, 0);
    };
    member::reclaim_dead();
    let (objects, bytes) = family.in_use();
    (objects, bytes, family.memory.reserved().unwrap_or(0))
}
