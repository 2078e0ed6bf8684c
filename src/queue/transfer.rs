//! The push of one item, and the pop of one.
//!
//! Each takes a lock and says in the journal what it is about to do. It does that where no process
//! looks yet, makes it happen by one store, and brings the rest in order.
//! `docs/design/0016-queues.md` says what follows if a process is killed at any of these steps.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::head::{SLOT_HEAD, View};
use super::order;
use crate::memory::ShareError;
use crate::memory::payload::Payload;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;
use crate::os::fault;

/// An item on its way into the queue.
pub(super) enum Load<'a> {
    Inline(&'a [u8]),
    /// A payload, and the number of bytes that it counts as.
    Payload(Payload, u64),
}

impl Load<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Payload(_, len) => *len,
        }
    }
}

/// The outcome of an attempt to push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Done,
    Full,
    Closed,
}

/// An item on its way out of the queue.
pub(super) enum Taken {
    /// Its bytes have been appended to the buffer.
    Inline,
    Payload(Result<Payload, ShareError>),
}

impl View<'_> {
    /// Returns whether there are items, as far as that can be said without a lock.
    pub(super) fn has_items(&self) -> bool {
        let pops = &self.head.pops;
        // The number that was seen last time saves a look at the other side's cache line.
        pops.done.items.load(Ordering::Relaxed) < pops.seen.load(Ordering::Relaxed)
            || self.len() > 0
    }

    /// Returns whether there was no room when a pusher last looked.
    fn seems_full(&self, len: u64) -> bool {
        let side = &self.head.pushes;
        let pushed = side.done.items.load(Ordering::Relaxed);
        let bytes = side.done.bytes.load(Ordering::Relaxed);
        let is_in = pushed.wrapping_sub(side.seen.load(Ordering::Relaxed));
        let bytes_in = bytes.wrapping_sub(side.seen_bytes.load(Ordering::Relaxed));
        is_in >= self.geometry.capacity as u64 || self.lacks_bytes(bytes_in, len)
    }

    /// Returns whether there is room, as far as that can be said without a lock.
    fn has_room(&self, len: u64) -> bool {
        let (ours, theirs) = (&self.head.pushes.done, &self.head.pops.done);
        // In this order: an item that is popped between the two loads makes room.
        let count = ours.items.load(Ordering::Relaxed);
        let bytes = ours.bytes.load(Ordering::Relaxed);
        let is_in = count.wrapping_sub(theirs.items.load(Ordering::Acquire));
        // Other processes may push and pop more between the two loads than was in. Then the
        // difference is below 0.
        let is_in = if is_in > u64::MAX / 2 { 0 } else { is_in };
        let bytes_in = bytes.wrapping_sub(theirs.bytes.load(Ordering::Acquire));
        let lacks_bytes = self.lacks_bytes(bytes_in, len);
        if lacks_bytes {
            self.head.waits_for_bytes.store(1, Ordering::Relaxed);
        }
        is_in < self.geometry.capacity as u64 && !lacks_bytes
    }

    fn lacks_bytes(&self, bytes_in: u64, len: u64) -> bool {
        // A difference below 0 is that of two numbers that were not read at the same time.
        let bytes_in = if bytes_in > u64::MAX / 2 { 0 } else { bytes_in };
        bytes_in.saturating_add(len) > self.geometry.byte_limit
    }

    /// Returns whether there is room, for the owner of the lock. Looks at the other side only if it
    /// has to.
    fn has_room_now(&self, len: u64) -> bool {
        if !self.seems_full(len) {
            return true;
        }
        let (ours, theirs) = (&self.head.pushes, &self.head.pops.done);
        // Acquire pairs with the stores in `take`: what was popped has been copied out of its slot.
        let items = theirs.items.load(Ordering::Acquire);
        ours.seen.store(items, Ordering::Relaxed);
        let bytes = theirs.bytes.load(Ordering::Acquire);
        ours.seen_bytes.store(bytes, Ordering::Relaxed);
        !self.seems_full(len)
    }

    /// Pushes an item if there is room, and takes it out of `load` then.
    pub(super) fn put(&self, load: &mut Option<Load<'_>>, priority: i64, mode: WaitMode) -> Put {
        let len = load.as_ref().map_or(0, Load::len);
        let head = self.head;
        let is_stale = self.seems_full(len);
        // The queue is full, as far as that can be said without the lock. So there is no need to
        // take it.
        if is_stale && !self.has_room(len) {
            return if head.closed.load(Ordering::Acquire) == 0 {
                Put::Full
            } else {
                Put::Closed
            };
        }
        // The owner of the lock may be a stopped process. Then this call gives up, as if the queue
        // were full.
        let Some(lock) = self.lock_pushes(|| mode.lock_deadline()) else {
            return Put::Full;
        };
        // `closed` is set under this lock: after that no push happens.
        if head.closed.load(Ordering::Acquire) != 0 {
            return Put::Closed;
        }
        let (side, journal) = (&head.pushes, &head.pushes.journal);
        let pushed = side.done.items.load(Ordering::Relaxed);
        let bytes = side.done.bytes.load(Ordering::Relaxed);
        if !self.has_room_now(len) {
            return Put::Full;
        }
        let Some(load) = load.take() else {
            return Put::Full;
        };
        let slot = order::free_slot(self);
        let word = match &load {
            Load::Inline(_) => 0,
            Load::Payload(payload, _) => payload.word(),
        };
        fault::point();
        journal.items.store(pushed, Ordering::Relaxed);
        journal.bytes.store(bytes, Ordering::Relaxed);
        journal.len.store(len, Ordering::Relaxed);
        journal.payload.store(word, Ordering::Relaxed);
        journal.slot.store(slot as u64, Ordering::Relaxed);
        fault::point();
        // From here on the next owner repairs the queue if this process dies.
        journal.armed.store(1, Ordering::Release);

        let in_slot = self.slot(slot);
        fault::point();
        in_slot.len.store(len, Ordering::Relaxed);
        fault::point();
        in_slot.payload.store(word, Ordering::Relaxed);
        fault::point();
        match load {
            Load::Inline(bytes) => self.write(slot, bytes),
            Load::Payload(payload, _) => payload.go_over(),
        }
        fault::point();
        order::enter(self, slot, priority);
        // With the next store the item is in the queue.
        fault::point();
        side.done.items.store(pushed + 1, Ordering::Release);
        let bytes = bytes.wrapping_add(len);
        fault::point();
        side.done.bytes.store(bytes, Ordering::Release);
        fault::point();
        journal.armed.store(0, Ordering::Release);
        fault::point();
        drop(lock);
        Waiters::notify_one_and_all(&head.pops.waiting.0, &head.watchers);
        Put::Done
    }

    /// Takes the next item out, in the name of `member`. Returns `None` if there is none, or if the
    /// lock was not free in time.
    pub(super) fn take(&self, out: &mut Vec<u8>, member: u16, mode: WaitMode) -> Option<Taken> {
        let head = self.head;
        if !self.has_items() {
            return None;
        }
        let lock = self.lock_pops(|| mode.lock_deadline())?;
        let (side, journal) = (&head.pops, &head.pops.journal);
        let popped = side.done.items.load(Ordering::Relaxed);
        // No item is left of those that this side knew of. Look at the other side.
        if popped >= side.seen.load(Ordering::Relaxed) {
            // Acquire pairs with the store in `put`: what was pushed has been written to its slot.
            let pushed = head.pushes.done.items.load(Ordering::Acquire);
            side.seen.store(pushed, Ordering::Relaxed);
            if popped >= pushed {
                return None;
            }
        }
        let slot = order::next_slot(self);
        let in_slot = self.slot(slot);
        let len = in_slot.len.load(Ordering::Relaxed);
        let word = in_slot.payload.load(Ordering::Relaxed);
        let bytes = side.done.bytes.load(Ordering::Relaxed);
        let counts = head.counts.get(usize::from(member))?;
        let taken = counts.taken.load(Ordering::Relaxed);
        journal.member.store(member.into(), Ordering::Relaxed);
        fault::point();
        journal.items.store(popped, Ordering::Relaxed);
        journal.bytes.store(bytes, Ordering::Relaxed);
        journal.taken.store(taken, Ordering::Relaxed);
        journal.len.store(len, Ordering::Relaxed);
        journal.payload.store(word, Ordering::Relaxed);
        journal.slot.store(slot as u64, Ordering::Relaxed);
        fault::point();
        // From here on the next owner repairs the queue if this process dies.
        journal.armed.store(1, Ordering::Release);

        let item = if word == 0 {
            self.read(slot, len, out);
            Taken::Inline
        } else {
            Taken::Payload(Payload::reach(word))
        };
        fault::point();
        order::leave(self);
        // With the next store the item is this process's.
        fault::point();
        side.done.items.store(popped + 1, Ordering::Release);
        let bytes = bytes.wrapping_add(len);
        fault::point();
        side.done.bytes.store(bytes, Ordering::Release);
        fault::point();
        counts.taken.store(taken + 1, Ordering::Release);
        fault::point();
        order::vacate(self, slot);
        fault::point();
        if let Taken::Payload(Ok(payload)) = &item {
            payload.has_come_over();
        }
        fault::point();
        journal.armed.store(0, Ordering::Release);
        fault::point();
        drop(lock);
        // All waiting pushers wait for a free slot, so that any one of them can use this one.
        if head.waits_for_bytes.load(Ordering::Relaxed) == 0 {
            head.pushes.waiting.0.notify_one();
        } else {
            // The waiting pushers do not all wait for the same thing.
            head.pushes.waiting.0.notify_all();
        }
        Some(item)
    }

    /// Returns how many bytes of an item a slot has room for.
    pub(super) fn room(&self) -> usize {
        self.geometry.stride - SLOT_HEAD
    }

    #[allow(unsafe_code)]
    fn write(&self, slot: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.room());
        // SAFETY: the slot has as many bytes as the stride, which is no less than the header of a
        // slot.
        let place = unsafe { self.slot_start(slot).add(SLOT_HEAD) };
        // SAFETY: behind the header of the slot there is room for `len` bytes. No process reads
        // there: the slot is free, and only the owner of the lock of the pushes may write to it.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), len) };
    }

    #[allow(unsafe_code)]
    fn read(&self, slot: usize, len: u64, out: &mut Vec<u8>) {
        let len = (len as usize).min(self.room());
        // SAFETY: the slot has as many bytes as the stride, which is no less than the header of a
        // slot.
        let place = unsafe { self.slot_start(slot).add(SLOT_HEAD) };
        out.reserve(len);
        let end = NonNull::from(out.spare_capacity_mut()).cast();
        // SAFETY: `len` is no more than the slot has, and `out` has room for as many. No process
        // writes there before the item has been popped.
        unsafe { place.copy_to_nonoverlapping(end, len) };
        // SAFETY: `len` bytes were written behind the end of `out`.
        unsafe { out.set_len(out.len() + len) };
    }
}
