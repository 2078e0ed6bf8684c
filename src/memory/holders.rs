//! What needs a block: the processes that hold it, and the messages that carry a handle of it.
//!
//! A block is free when no process holds it and no message counts. The process that decides so has
//! the lock of the ledger. But two kinds of mover change the words without that lock:
//!
//! | mover | what it does | in this order |
//! |---|---|---|
//! | a sender | hands a payload it holds to a queue | counts the message, then clears its bit |
//! | a receiver | takes a payload out of a queue | sets its bit, then uncounts the message |
//!
//! So at each moment a mover's block has a bit or a count. But it takes time to read all the words.
//! A payload may move from a word that has not been read yet to a word that has been read. It would
//! be seen in neither. Each direction is covered by one rule for the process that reads:
//!
//! 1. *It reads the count before the bits.* If a receiver has taken its message off the count, its
//!    bit was set before, and is seen. A receiver lets go of a block under the lock only, so the
//!    bit is still there.
//! 2. *It reads the count again after the bits,* and with it how often a message was launched. If a
//!    sender's bit was cleared before it was read, the launch came before that, and the second
//!    number differs from the first.
//!
//! If the numbers differ, the block was in a queue after the first look. Since then only a process
//! that holds it could have let go of it, which takes the lock. So the block is needed, and nothing
//! has to be read again.

use std::sync::atomic::Ordering;

use super::slot::MEMBERS;
use crate::shim::AtomicU64;

/// The number of words that the bits of all members take up. In a model, enough for two members
/// that do not share a word.
const WORDS: usize = if cfg!(loom) { 2 } else { MEMBERS / 64 };

/// One more message, and one more launch.
const LAUNCH: u64 = 1 << 32 | MESSAGE;

const MESSAGE: u64 = 1;

/// Zeros: no process and no message needs the block.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// Lower 32 bits: messages with a handle of the block that are under way, and for which no
    /// process holds it. Upper 32 bits: how often a message was launched, modulo 2^32. No reader
    /// has its two loads exactly 2^32 launches apart: it would have to stand still between the two
    /// loads for minutes, and miss exactly that number.
    in_flight: AtomicU64,
    /// One bit for each member: whether it holds the block.
    bits: [AtomicU64; WORDS],
}

/// Returns the index of the word of a member's bit, and the bit.
fn bit_of(member: u16) -> (usize, u64) {
    let member = usize::from(member);
    (member / 64 % WORDS, 1 << (member % 64))
}

/// Returns the number of messages under way, from a value of the word.
fn messages(in_flight: u64) -> u32 {
    in_flight as u32
}

impl Holders {
    /// Returns the number of messages that are under way.
    pub(super) fn in_flight(&self) -> u32 {
        messages(self.in_flight.load(Ordering::Acquire))
    }

    pub(super) fn contains(&self, member: u16) -> bool {
        let (word, bit) = bit_of(member);
        self.bits[word].load(Ordering::Acquire) & bit != 0
    }

    /// Makes `member` hold the block. To be called under the lock of the ledger, or by the receiver
    /// of a message that still counts.
    pub(super) fn insert(&self, member: u16) {
        let (word, bit) = bit_of(member);
        self.bits[word].fetch_or(bit, Ordering::AcqRel);
    }

    /// Makes `member` no longer hold the block. To be called under the lock of the ledger, or by a
    /// sender after its launch.
    pub(super) fn remove(&self, member: u16) {
        let (word, bit) = bit_of(member);
        // Release: a process that sees the bit cleared sees the launch that came before.
        self.bits[word].fetch_and(!bit, Ordering::AcqRel);
    }

    /// Counts a message. To be called by a process that holds the block.
    pub(super) fn launch(&self) {
        // Both numbers change in one step, and before the sender lets go.
        self.in_flight.fetch_add(LAUNCH, Ordering::AcqRel);
    }

    /// Takes a message off the count, if there is one. To be called by a process that holds the
    /// block.
    pub(super) fn land(&self) {
        let landed = |in_flight| (messages(in_flight) > 0).then(|| in_flight - MESSAGE);
        // A repair that is done twice lands one message too many, and so does memory that was
        // written to in error.
        //
        // Release: a process that sees the message gone sees the receiver's bit.
        let _ = self
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, landed);
    }

    /// Returns whether a message or a process besides this member needs the block. To be called
    /// under the lock of the ledger.
    pub(super) fn is_needed_besides(&self, member: u16) -> bool {
        let before = self.in_flight.load(Ordering::Acquire);
        if messages(before) > 0 {
            return true;
        }
        let (own, bit) = bit_of(member);
        let is_held = self.bits.iter().enumerate().any(|(word, bits)| {
            let bits = bits.load(Ordering::Acquire);
            (if word == own { bits & !bit } else { bits }) != 0
        });
        // No bit was seen, but a sender may have cleared one in the meantime. Then the number
        // differs.
        is_held || self.in_flight.load(Ordering::Acquire) != before
    }

    /// Clears all bits and the count. To be called under the lock of the ledger, for a block that
    /// is free: no process holds it, and no message counts.
    pub(super) fn clear(&self) {
        for bits in &self.bits {
            bits.store(0, Ordering::Relaxed);
        }
        self.in_flight.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
