//! The header of a queue in shared memory, and its repair after a process died holding a lock.

use std::io;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::order;
use crate::memory::kind::{Head, Kind, head};
use crate::memory::member::{self, End, MEMBERS};
use crate::memory::object::Object;
use crate::memory::payload;
use crate::memory::registry::Place;
use crate::memory::wait::Waiters;
use crate::os::robust::{Held, LockError, RobustMutex};

/// The rule that says which item is next.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Fifo = 0,
    Lifo = 1,
    Priority = 2,
}

/// The number of attempts at a lock before the caller sleeps. An owner holds the lock for some
/// hundred nanoseconds.
const TRIES: usize = 64;

/// The header, which all processes of a queue read and write. It begins as zeros, but for the locks
/// and the words that the maker writes once.
#[repr(C)]
pub(super) struct QueueHead {
    /// The maker of the queue writes this word and the next three. Each process copies them when it
    /// opens the queue.
    pub(super) order: AtomicU32,
    pub(super) stride: AtomicU32,
    pub(super) capacity: AtomicU64,
    pub(super) byte_limit: AtomicU64,
    /// 1: closed, no process may push any more. Set under the lock of the pushes.
    pub(super) closed: AtomicU32,
    /// Changed before and after each departure of a sender or receiver. While it stays the same,
    /// none has left.
    pub(super) epoch: AtomicU32,
    /// The number of processes that were killed while they could push, and of those that could pop.
    /// It may be too high if a process is killed while it reclaims a dead one.
    pub(super) senders_killed: AtomicU32,
    pub(super) receivers_killed: AtomicU32,
    /// 1: a pusher found room for an item, but not for its bytes. From then on the pushers that
    /// wait for room wait for different things.
    pub(super) waits_for_bytes: AtomicU32,
    /// The side of the pushes, with the pushers that wait for room.
    pub(super) pushes: Side,
    /// The side of the pops, with the poppers that wait for items.
    pub(super) pops: Side,
    /// The callers of `join`, which wait until all items are finished.
    pub(super) finished: Waiters,
    /// The threads that wait for this queue among others, and those that wait without a pop.
    pub(super) watchers: Waiters,
    /// The counts of each process.
    pub(super) counts: [ProcessCounts; MEMBERS],
}

// SAFETY: the fields are the locks in `LOCKS`, and atomics.
#[allow(unsafe_code)]
unsafe impl Head for QueueHead {
    const KIND: Kind = Kind::Queue;
    const LOCKS: &'static [usize] = &[offset_of!(Self, pushes.lock), offset_of!(Self, pops.lock)];
}

/// One side of a queue. Only the owner of the lock writes to it, but for `waiting`. Other processes
/// read `done`, and `seen` as a hint. In queues that are not first in, first out, the lock of the
/// pushes protects both sides.
#[repr(C, align(64))]
pub(super) struct Side {
    pub(super) lock: RobustMutex,
    /// What the owner of the lock last saw of the other side's `done`. Those numbers only grow, so
    /// that an old value errs on the safe side.
    pub(super) seen: AtomicU64,
    pub(super) seen_bytes: AtomicU64,
    pub(super) journal: Journal,
    pub(super) done: Done,
    pub(super) waiting: Waiting,
}

/// The totals of what was pushed, or popped, since the queue was made.
#[repr(C, align(64))]
pub(super) struct Done {
    /// Items. The store of the next number makes a push or a pop happen. A process that is killed
    /// before it has done nothing. One that is killed after it has done it all.
    pub(super) items: AtomicU64,
    /// The bytes of these items.
    pub(super) bytes: AtomicU64,
}

/// The waiting threads of a side, on a cache line of their own: the other side looks at them each
/// time.
#[repr(C, align(64))]
pub(super) struct Waiting(pub(super) Waiters);

/// The record of what a process is about to do. If it dies, the next owner of the lock does the
/// rest of it, or undoes it.
#[repr(C)]
pub(super) struct Journal {
    /// 1 while the record counts. Stored after the rest of the record, and before anything is
    /// changed.
    pub(super) armed: AtomicU32,
    /// Of a pop: the member that takes the item.
    pub(super) member: AtomicU32,
    /// The values of `done` before.
    pub(super) items: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Of a pop: the value of the member's `taken` before.
    pub(super) taken: AtomicU64,
    /// The length of the item in bytes.
    pub(super) len: AtomicU64,
    /// The payload that changes hands; 0: none.
    pub(super) payload: AtomicU64,
    /// The slot. The repair needs it in queues by priority only.
    pub(super) slot: AtomicU64,
}

/// The counts that a queue has of one process. The first three only grow, also when another process
/// later has the same number.
#[repr(C)]
pub(super) struct ProcessCounts {
    /// Items that the process has popped. Written under the lock of the pops.
    pub(super) taken: AtomicU64,
    /// Items of these that it has acknowledged as done.
    pub(super) done: AtomicU64,
    /// Items of these that no process will acknowledge: this process has died with them, or has
    /// dropped its last handle that may pop, or could not read them.
    pub(super) lost: AtomicU64,
    /// The handles of the process that may push, and that may pop.
    pub(super) senders: AtomicU32,
    pub(super) receivers: AtomicU32,
}

impl ProcessCounts {
    /// Returns the number of items that the process has taken and that are neither done nor lost.
    pub(super) fn unacknowledged(&self) -> u64 {
        let over = self.done.load(Ordering::Acquire) + self.lost.load(Ordering::Acquire);
        self.taken.load(Ordering::Acquire).saturating_sub(over)
    }

    /// Counts all unacknowledged items as lost. May be done again.
    pub(super) fn give_up(&self) {
        let taken = self.taken.load(Ordering::Acquire);
        let done = self.done.load(Ordering::Acquire);
        self.lost
            .store(taken.saturating_sub(done), Ordering::Release);
    }
}

/// The key of a slot in a queue by priority: what is known of its item.
#[repr(C)]
pub(super) struct Key {
    /// The number of the push, from 1 on; 0: the slot is free.
    pub(super) number: AtomicU64,
    pub(super) priority: AtomicI64,
}

/// The layout behind the header. Each process has its own copy, which it has checked against the
/// size of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) order: Order,
    pub(super) capacity: usize,
    /// The distance from one slot to the next, in bytes.
    pub(super) stride: usize,
    pub(super) byte_limit: u64,
}

impl Geometry {
    /// Returns the number of bytes behind the header, if it can be counted.
    pub(super) fn len(&self) -> Option<usize> {
        let slots = self.capacity.checked_mul(self.stride)?;
        let each = match self.order {
            Order::Priority => size_of::<Key>() + size_of::<AtomicU32>(),
            _ => 0,
        };
        self.capacity.checked_mul(each)?.checked_add(slots)
    }

    /// Returns what the header says, if it can be true of a block with `len` bytes behind the
    /// header.
    pub(super) fn of(head: &QueueHead, len: usize) -> Option<Self> {
        let this = Self {
            order: match head.order.load(Ordering::Relaxed) {
                0 => Order::Fifo,
                1 => Order::Lifo,
                2 => Order::Priority,
                _ => return None,
            },
            capacity: usize::try_from(head.capacity.load(Ordering::Relaxed)).ok()?,
            stride: head.stride.load(Ordering::Relaxed) as usize,
            byte_limit: head.byte_limit.load(Ordering::Relaxed),
        };
        let is_sound = this.capacity > 0
            && this.stride >= SLOT_HEAD
            && this.stride.is_multiple_of(8)
            && this.len().is_some_and(|needed| needed <= len);
        is_sound.then_some(this)
    }
}

/// The number of bytes of a slot before the item.
pub(super) const SLOT_HEAD: usize = size_of::<SlotHead>();

/// The part of a slot before the item.
#[repr(C)]
pub(super) struct SlotHead {
    /// The length of the item in bytes.
    pub(super) len: AtomicU64,
    /// The payload of the item; 0: the item lies in the slot itself.
    pub(super) payload: AtomicU64,
}

/// The view that one process has of a queue, for the time of one call.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) head: &'a QueueHead,
    pub(super) geometry: Geometry,
    /// The bytes behind the header, as many as the geometry says.
    pub(super) tail: NonNull<u8>,
}

/// Writes what is not zero in a new queue.
pub(super) fn init(
    place: NonNull<QueueHead>,
    tail: NonNull<u8>,
    geometry: Geometry,
) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: `place` is a mapped block of the right size that no other process or thread knows of
    // yet. Zeros are valid, and the locks have just been made.
    let head = unsafe { place.as_ref() };
    let stride = u32::try_from(geometry.stride).map_err(io::Error::other)?;
    head.order.store(geometry.order as u32, Ordering::Relaxed);
    head.stride.store(stride, Ordering::Relaxed);
    head.capacity
        .store(geometry.capacity as u64, Ordering::Relaxed);
    head.byte_limit
        .store(geometry.byte_limit, Ordering::Relaxed);
    let view = View {
        head,
        geometry,
        tail,
    };
    if geometry.order == Order::Priority {
        order::rebuild(&view);
    }
    Ok(())
}

impl View<'_> {
    /// Returns the number of items in the queue.
    pub(super) fn len(&self) -> usize {
        // In this order: an item that is popped between the two loads was there.
        let popped = self.head.pops.done.items.load(Ordering::Acquire);
        let pushed = self.head.pushes.done.items.load(Ordering::Acquire);
        usize::try_from(pushed.saturating_sub(popped)).map_or(self.geometry.capacity, |len| {
            len.min(self.geometry.capacity)
        })
    }

    /// Returns how many items were pushed, and how many are finished: done or lost. The finished
    /// ones are counted first, so that the two numbers are the same only if there was a moment at
    /// which they were.
    pub(super) fn balance(&self) -> (u64, u64) {
        let counts = &self.head.counts[..member::numbers()];
        let finished = counts.iter().fold(0_u64, |sum, counts| {
            let done = counts.done.load(Ordering::Acquire);
            sum.wrapping_add(done)
                .wrapping_add(counts.lost.load(Ordering::Acquire))
        });
        (
            self.head.pushes.done.items.load(Ordering::Acquire),
            finished,
        )
    }

    /// Returns the number of lost items, of all processes.
    pub(super) fn lost(&self) -> u64 {
        let counts = &self.head.counts[..member::numbers()];
        counts
            .iter()
            .map(|counts| counts.lost.load(Ordering::Acquire))
            .fold(0, u64::wrapping_add)
    }

    /// Takes the lock of the pushes. Waits at most until the deadline that `limit` gives.
    pub(super) fn lock_pushes(&self, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
        self.lock(&self.head.pushes.lock, limit)
    }

    /// Takes the lock of the pops, which in some orders is that of the pushes.
    pub(super) fn lock_pops(&self, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
        match self.geometry.order {
            Order::Fifo => self.lock(&self.head.pops.lock, limit),
            _ => self.lock_pushes(limit),
        }
    }

    fn lock<'l>(
        &self,
        lock: &'l RobustMutex,
        limit: impl FnOnce() -> Option<Instant>,
    ) -> Option<Held<'l>> {
        let mut held = lock.try_hold();
        for _ in 1..TRIES {
            if !matches!(held, Err(LockError::Timeout)) {
                break;
            }
            std::hint::spin_loop();
            held = lock.try_hold();
        }
        if matches!(held, Err(LockError::Timeout)) {
            held = lock.hold_with(limit);
        }
        match held {
            Ok(held) => {
                // The last owner died with the lock. Its change may be half done.
                if held.owner_died() {
                    self.repair(std::ptr::eq(lock, &raw const self.head.pushes.lock));
                }
                Some(held)
            }
            Err(LockError::Timeout) => None,
            Err(error) => panic!("the lock of a queue: {error}"),
        }
    }

    /// Does the rest of what a process was doing when it died with a lock, or undoes it. The caller
    /// has the lock now. If the caller is killed here, the next owner starts again.
    #[cold]
    fn repair(&self, is_of_pushes: bool) {
        // One lock is for both sides, unless the queue is first in, first out.
        let is_single = self.geometry.order != Order::Fifo;
        if is_of_pushes {
            self.end_push();
        }
        if !is_of_pushes || is_single {
            self.end_pop();
        }
        if self.geometry.order == Order::Priority {
            order::rebuild(self);
        }
    }

    /// Does the rest of a push, or undoes it.
    fn end_push(&self) {
        // An item that never got into the queue is given up.
        self.end(&self.head.pushes, |_, has_happened| !has_happened);
    }

    /// Does the rest of a pop, or undoes it.
    fn end_pop(&self) {
        // The item of a pop that happened is the dead process's, and is given up with it.
        self.end(&self.head.pops, |journal, has_happened| {
            let member = journal.member.load(Ordering::Relaxed) as usize;
            if let Some(counts) = self.head.counts.get(member) {
                let taken = journal.taken.load(Ordering::Relaxed);
                let taken = taken + u64::from(has_happened);
                counts.taken.store(taken, Ordering::Release);
            }
            has_happened
        });
    }

    /// Ends what the journal of a side says; `settle` returns whether the item is given up.
    fn end(&self, side: &Side, settle: impl FnOnce(&Journal, bool) -> bool) {
        let journal = &side.journal;
        // The dead process had changed nothing yet, or had finished.
        if journal.armed.load(Ordering::Acquire) == 0 {
            return;
        }
        let has_happened = journal.has_happened(side);
        journal.count(side, has_happened);
        if settle(journal, has_happened) {
            // The queue's slot is free, and the payload is given back.
            order::vacate(self, journal.slot.load(Ordering::Relaxed) as usize);
            payload::discard(journal.payload.load(Ordering::Relaxed));
        }
        journal.armed.store(0, Ordering::Release);
    }

    /// Wakes all waiting threads, so that they look again.
    pub(super) fn notify_all(&self) {
        let head = self.head;
        let all = [
            &head.pushes.waiting.0,
            &head.pops.waiting.0,
            &head.finished,
            &head.watchers,
        ];
        for waiters in all {
            waiters.notify_all();
        }
    }
}

impl Journal {
    /// Returns whether the store was made that makes the push or pop happen.
    fn has_happened(&self, side: &Side) -> bool {
        side.done.items.load(Ordering::Acquire) > self.items.load(Ordering::Relaxed)
    }

    /// Sets the count of bytes to what it has to be.
    fn count(&self, side: &Side, has_happened: bool) {
        let len = if has_happened {
            self.len.load(Ordering::Relaxed)
        } else {
            0
        };
        let bytes = self.bytes.load(Ordering::Relaxed).wrapping_add(len);
        side.done.bytes.store(bytes, Ordering::Release);
    }
}

fn with(place: &Place, then: impl FnOnce(View<'_>)) {
    if place.len() < size_of::<QueueHead>() {
        log::error!("a queue in shared memory is corrupted");
        return;
    }
    #[allow(unsafe_code)]
    // SAFETY: the block is of kind `Queue`. All blocks of that kind have this header, and this one
    // is long enough.
    let head = unsafe { head::<QueueHead>(place.start()) };
    let (tail, len) = Object::<QueueHead>::tail_of(place);
    match Geometry::of(head, len) {
        Some(geometry) => then(View {
            head,
            geometry,
            tail,
        }),
        None => log::error!("a queue in shared memory is corrupted"),
    }
}

/// Reclaims what a process that has ended had in the queue. Returns false if the caller has to try
/// again later, because the locks were not free before the deadline.
pub(crate) fn reclaim(place: &Place, member: u16, end: End, deadline: Instant) -> bool {
    let mut is_done = true;
    with(place, |view| {
        // Taking the locks does the rest of what the dead process was doing, or undoes it. After
        // that its counts are right.
        let limit = || Some(deadline);
        let is_settled = view.lock_pushes(limit).is_some() && view.lock_pops(limit).is_some();
        // A process that does not go on has a lock. A later attempt does the rest.
        if !is_settled {
            is_done = false;
            return;
        }
        let epoch = &view.head.epoch;
        epoch.fetch_add(1, Ordering::SeqCst);
        if let Some(counts) = view.head.counts.get(usize::from(member)) {
            let head = view.head;
            for (handles, killed) in [
                (&counts.senders, &head.senders_killed),
                (&counts.receivers, &head.receivers_killed),
            ] {
                // Before the handles are gone: a process that finds none knows of the death.
                if end == End::Killed && handles.load(Ordering::SeqCst) > 0 {
                    killed.fetch_add(1, Ordering::SeqCst);
                }
                handles.store(0, Ordering::SeqCst);
            }
            counts.give_up();
        }
        epoch.fetch_add(1, Ordering::SeqCst);
        view.notify_all();
    });
    is_done
}

/// Gives back the payloads that lie in the queue, with the handles in them. No process has a handle
/// of the queue any more.
pub(crate) fn take_apart(place: &Place) {
    with(place, |view| {
        view.end_push();
        view.end_pop();
        if view.geometry.order == Order::Priority {
            order::rebuild(&view);
        }
        for number in 0..view.len() {
            let slot = order::slot_of(&view, number);
            let payload = view.slot(slot).payload.load(Ordering::Relaxed);
            if payload != 0 {
                payload::discard(payload);
            }
        }
    });
}

#[cfg(all(test, not(loom)))]
mod tests;
