//! Payloads: bytes in a block of their own, which belong to one process or to one queue at a time.
//!
//! A process makes and fills a payload, and holds its block. Then the payload goes over to a queue:
//! the block counts as under way, and no process holds it. The process that takes the payload out
//! of the queue holds it again, reads it and gives it back. A payload that a killed process holds
//! is given back when that process is reclaimed. A payload that belongs to a queue is given back
//! with the queue. If a process is killed in the middle of one of the two steps, the queue's
//! journal says which payload it was.
//!
//! Handles of shared objects may be among the bytes. Their list is at the front, so that a process
//! that gives back an unread payload can call them back.
//!
//! ```text
//!   0       how many handles there are
//!   8       their objects, 8 bytes each
//!   …       the bytes
//! ```

use std::ptr::NonNull;
use std::time::Instant;

use super::deferred::{self, Limit};
use super::entry::{Block, BlockId, Phase, Stage};
use super::error::ShareError;
use super::family::{self, Family};
use super::kind::Kind;
use super::member;
use super::registry::{self, Place};
use super::transit;
use crate::os::fault;

const WORD: usize = size_of::<u64>();

/// A payload that this process holds. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Payload {
    id: BlockId,
    member: u16,
}

/// Returns a payload's number in a queue, which is not 0.
fn word_of(id: BlockId) -> u64 {
    u64::from(id.generation) << 32 | (u64::from(id.index) + 1)
}

fn id_of(word: u64) -> Option<BlockId> {
    Some(BlockId {
        index: (word as u32).checked_sub(1)?,
        generation: (word >> 32) as u32,
    })
}

fn family_of(_: &Payload) -> Result<&'static Family, ShareError> {
    family::get()
}

impl Payload {
    /// Makes a payload with these bytes. Handles of the objects `handles` are among them, and are
    /// under way with the payload.
    ///
    /// # Errors
    ///
    /// [`ShareError::Busy`] after the deadline, among others.
    pub(crate) fn new(
        bytes: &[u8],
        handles: &[BlockId],
        deadline: Option<Instant>,
    ) -> Result<Self, ShareError> {
        let member = member::own_by(|| deadline)?;
        let family = family::get()?;
        let front = WORD + handles.len() * WORD;
        let len = (front + bytes.len()) as u64;
        let (id, _) = family.allocate(len, Kind::Payload, 0, member, deadline)?;
        let payload = Self { id, member };
        let place = payload.place(family)?;
        let start = place.start();
        put(start, 0, handles.len() as u64);
        for (number, handle) in handles.iter().enumerate() {
            put(start, WORD * (number + 1), word_of(*handle));
        }
        #[allow(unsafe_code)]
        // SAFETY: within the block, which has `len` bytes.
        let target = unsafe { start.add(front) };
        #[allow(unsafe_code)]
        // SAFETY: the block has room for all of them behind `target`, is mapped and this process's
        // alone.
        unsafe {
            target.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        fault::point();
        family.publish(id);
        fault::point();
        Ok(payload)
    }

    fn block(&self) -> Result<&'static Block, ShareError> {
        let block = family_of(self)?.block(self.id.index);
        block.ok_or(ShareError::Gone)
    }

    fn place(&self, family: &Family) -> Result<Place, ShareError> {
        registry::place_of(family, self.id.index, self.block()?)
    }

    /// Returns the payload's number in a queue. It is not 0.
    pub(crate) fn word(&self) -> u64 {
        word_of(self.id)
    }

    /// Gives the payload to a queue: this process holds it no more. To be called with its word in
    /// the queue's journal.
    pub(crate) fn go_over(self) {
        if let Ok(block) = self.block() {
            // In this order: at each moment the queue or this process has it.
            block.holders.launch();
            fault::point();
            block.holders.remove(self.member);
        }
        std::mem::forget(self);
    }

    /// Opens a payload that a queue has, before it is taken out. From now on this process holds it
    /// as well.
    pub(crate) fn reach(word: u64) -> Result<Self, ShareError> {
        let member = member::own()?;
        let id = id_of(word).ok_or(ShareError::Gone)?;
        let payload = Self { id, member };
        match payload.block() {
            Ok(block) if is_payload(block, id) => {
                block.holders.insert(member);
                Ok(payload)
            }
            found => {
                std::mem::forget(payload);
                Err(found.err().unwrap_or(ShareError::Gone))
            }
        }
    }

    /// Takes the payload off the queue's account: from now on only this process has it.
    pub(crate) fn has_come_over(&self) {
        if let Ok(block) = self.block() {
            block.holders.land();
        }
    }

    /// Appends the payload's bytes to `out`. From now on the caller has to release the handles that
    /// are encoded in them.
    pub(crate) fn read(&self, out: &mut Vec<u8>) -> Result<(), ShareError> {
        let place = self.place(family_of(self)?)?;
        let front = WORD.saturating_mul(
            usize::try_from(get(&place, 0))
                .unwrap_or(usize::MAX)
                .saturating_add(1),
        );
        let len = place
            .len()
            .checked_sub(front)
            .ok_or(ShareError::OtherType)?;
        fault::point();
        put(place.start(), 0, 0);
        out.reserve(len);
        #[allow(unsafe_code)]
        // SAFETY: `front` is within the block, by the check above.
        let bytes = unsafe { place.start().add(front) };
        let end = out.spare_capacity_mut();
        #[allow(unsafe_code)]
        // SAFETY: the block has `len` bytes behind `front`, and `out` has room for as many; they
        // are apart. This process alone has the payload.
        unsafe {
            bytes.copy_to_nonoverlapping(NonNull::from(end).cast(), len);
        }
        #[allow(unsafe_code)]
        // SAFETY: as many bytes were written behind its end.
        unsafe {
            out.set_len(out.len() + len);
        }
        Ok(())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let Ok(family) = family_of(self) else { return };
        fault::point();
        let (id, member) = (self.id, self.member);
        let mut reached = Stage::First;
        let mut release = move |limit| family.release_empty(id, member, &mut reached, limit);
        if release(Limit::Brief) {
            return;
        }
        // The handles are those of the process that has read them, or of the sender if it has not
        // sent the payload. Their number becomes 0 here: if that process is killed before the
        // payload is free, they must not be released a second time.
        if let Ok(place) = self.place(family) {
            put(place.start(), 0, 0);
        }
        deferred::put_off(release);
    }
}

/// Gives back a payload that a queue had, or was about to get or to let go of. Calls back the
/// handles in it if no process has read it. May be called again, also after a process that was
/// killed in the middle of it. To be called by the only process that changes the queue.
///
/// This process takes the payload over like a receiver, for which it needs no lock. Only then does
/// it wait for the ledger, or put that off: if it is killed, it is reclaimed with what it holds.
/// (A process that is no member yet has to become one first, which takes the ledger.)
pub(crate) fn discard(word: u64) {
    let Some(id) = id_of(word) else { return };
    let (mut reached, mut is_own) = (Stage::First, false);
    deferred::release(move |limit| {
        let (family, member) = match member::for_release(limit) {
            Ok(both) => both,
            Err(is_done) => return is_done,
        };
        is_own = is_own || take_over(family, id, member);
        // Otherwise it is free, or a dead process has taken it over, and is reclaimed with it.
        if !is_own {
            return true;
        }
        let take_apart = |block: &Block| registry::take_apart(family, id.index, block);
        family.release(id, member, &mut reached, limit, Some(take_apart))
    });
}

/// Makes this process hold a payload that a queue has. Returns false if no queue has it any more.
fn take_over(family: &Family, id: BlockId, member: u16) -> bool {
    let Some(block) = family.block(id.index) else {
        return false;
    };
    // The count is read first. It then belongs to this generation, as generations only go up. And
    // as long as the payload counts, which only this process can change, it does not become free.
    let counts = block.holders.in_flight() > 0;
    if !counts || !is_payload(block, id) {
        return false;
    }
    block.holders.insert(member);
    fault::point();
    block.holders.land();
    true
}

/// Returns whether this is the block of that payload. What other processes wrote is checked: any
/// other block does not belong to the queue.
fn is_payload(block: &Block, id: BlockId) -> bool {
    let state = block.state();
    state.generation == id.generation
        && state.is(Phase::Live)
        && state.kind() == Some(Kind::Payload)
}

/// Calls back the handles in a payload that no process has read.
pub(crate) fn take_apart(place: &Place) {
    let room = (place.len() / WORD).saturating_sub(1);
    let count = usize::try_from(get(place, 0)).unwrap_or(0);
    if count == 0 || count > room {
        return;
    }
    let handles = (1..=count).filter_map(|number| id_of(get(place, number * WORD)));
    let handles: Vec<BlockId> = handles.collect();
    // The list is cleared first. If this process is killed after that, some objects stay alive,
    // which is better than to let go of one twice.
    put(place.start(), 0, 0);
    transit::call_back(&handles);
}

#[allow(unsafe_code)]
fn put(start: NonNull<u8>, offset: usize, value: u64) {
    // SAFETY: callers stay within the block.
    let place = unsafe { start.add(offset) };
    // SAFETY: as above; blocks are aligned, and mapped as long as the caller has the place.
    unsafe { place.cast::<u64>().write(value) };
}

#[allow(unsafe_code)]
fn get(place: &Place, offset: usize) -> u64 {
    if place.len() < offset + WORD {
        return 0;
    }
    // SAFETY: within the block, by the check above.
    let word = unsafe { place.start().add(offset) };
    // SAFETY: as above; blocks are aligned, and mapped as long as the caller has the place.
    unsafe { word.cast::<u64>().read() }
}

/// Returns how many payloads there are.
#[cfg(test)]
pub(crate) fn count() -> usize {
    let family = family::get().unwrap();
    let blocks = (0..).map_while(|index| family.block(index));
    let states = blocks.map(Block::state);
    states
        .filter(|state| !state.is(Phase::Free) && state.kind() == Some(Kind::Payload))
        .count()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::memory::faults::with_ledger_held;

    /// Returns whether the block belongs to another object now, or to none.
    fn is_given_back(id: BlockId) -> bool {
        let state = family::get().unwrap().block(id.index).unwrap().state();
        state.generation != id.generation
    }

    #[test]
    fn a_payload_is_appended_to_what_is_there_and_goes_when_it_has_been_read() {
        let sent = Payload::new(b"many hands", &[], None).unwrap();
        let (id, word) = (sent.id, sent.word());
        sent.go_over();
        assert!(!is_given_back(id), "it is in flight");
        let received = Payload::reach(word).unwrap();
        received.has_come_over();
        let mut out = b"one, ".to_vec();
        received.read(&mut out).unwrap();
        assert_eq!(out, b"one, many hands");
        drop(received);
        assert!(is_given_back(id));
        // A word that a process has kept until the payload was free leads nowhere any more.
        assert!(matches!(Payload::reach(word), Err(ShareError::Gone)));
        let discarded = Payload::new(b"", &[], None).unwrap();
        let (id, word) = (discarded.id, discarded.word());
        discarded.go_over();
        discard(word);
        assert!(is_given_back(id));
    }

    /// If this process is killed while it waits for the ledger, the payload comes back with it. The
    /// queue may be gone by then.
    #[test]
    fn a_payload_is_held_before_the_ledger_is_needed_to_give_it_back() {
        let payload = Payload::new(b"text", &[], None).unwrap();
        let (id, word, member) = (payload.id, payload.word(), payload.member);
        let block = payload.block().unwrap();
        payload.go_over();
        assert!(!block.is_held_by(member) && block.holders.in_flight() == 1);
        with_ledger_held(|| {
            discard(word);
            assert!(block.is_held_by(member) && block.holders.in_flight() == 0);
            // Nothing is left to do for a process that comes to it again.
            discard(word);
            assert!(block.is_held_by(member) && !is_given_back(id));
        });
        let start = Instant::now();
        while !is_given_back(id) {
            assert!(start.elapsed() < Duration::from_secs(30), "it is lost");
            thread::yield_now();
        }
    }

    /// What another process wrote to a queue may be any number.
    #[test]
    fn a_word_that_names_no_payload_is_refused() {
        let member = member::own().unwrap();
        let family = family::get().unwrap();
        let made = |kind| family.allocate(8, kind, 0, member, None).unwrap().0;
        let (value, unfinished) = (made(Kind::Value), made(Kind::Payload));
        family.publish(value);
        let payload = Payload::new(b"text", &[], None).unwrap();
        let later = BlockId {
            generation: payload.id.generation + 1,
            ..payload.id
        };
        let words = [value, unfinished, later].map(word_of);
        for word in words.into_iter().chain([0, 1 << 32, u64::MAX]) {
            let reached = Payload::reach(word);
            assert!(matches!(reached, Err(ShareError::Gone)), "{reached:?}");
        }
        for id in [value, unfinished] {
            let mut reached = Stage::First;
            assert!(family.release_empty(id, member, &mut reached, Limit::Brief));
            assert!(is_given_back(id));
        }
    }
}
