//! What lies at the start of a queue's block, and how it is brought in order when somebody has died at it.

use std::io;
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

/// Which item is next.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Fifo = 0,
    Lifo = 1,
    Priority = 2,
}

/// How often a lock is tried before its owner is slept for: it is held for some hundred nanoseconds.
const TRIES: usize = 64;

/// What all processes read and write. Of zeros, but for the locks and what is said once.
#[repr(C)]
pub(super) struct QueueHead {
    /// The next four: said by the maker, and copied by each process when it comes to the queue.
    pub(super) order: AtomicU32,
    pub(super) stride: AtomicU32,
    pub(super) capacity: AtomicU64,
    pub(super) byte_limit: AtomicU64,
    /// 1: nothing may be pushed any more. Set under the lock of the pushes.
    pub(super) closed: AtomicU32,
    /// Added to before and after each time that somebody ceases to be a sender or a receiver: as long as it is the
    /// same, nobody has.
    pub(super) epoch: AtomicU32,
    /// How many processes that could push, and that could pop, were killed. Perhaps too many, if somebody is killed at
    /// a burial.
    pub(super) senders_killed: AtomicU32,
    pub(super) receivers_killed: AtomicU32,
    /// 1: somebody found room for an item, but not for its bytes. From then on those who wait for room wait for
    /// different things.
    pub(super) waits_for_bytes: AtomicU32,
    /// The side of the pushes, and those who wait for room.
    pub(super) pushes: Side,
    /// The side of the pops, and those who wait for items.
    pub(super) pops: Side,
    /// Those who wait until all items are finished.
    pub(super) finished: Waiters,
    /// Those who wait for this queue among others.
    pub(super) watchers: Waiters,
    pub(super) counts: [ProcessCounts; MEMBERS],
}

// SAFETY: locks that `init` makes, and atomics.
#[allow(unsafe_code)]
unsafe impl Head for QueueHead {
    const KIND: Kind = Kind::Queue;
}

/// One side of a queue. All but `done` and `waiting` belongs to whoever holds the lock; in queues that are not first
/// in, first out, the lock of the pushes is for both sides.
#[repr(C, align(64))]
pub(super) struct Side {
    pub(super) lock: RobustMutex,
    /// What was last seen of the other side's `done`. Each of those only grows, so that this errs on the safe side.
    pub(super) seen: AtomicU64,
    pub(super) seen_bytes: AtomicU64,
    pub(super) journal: Journal,
    pub(super) done: Done,
    pub(super) waiting: Waiting,
}

/// How much was pushed, or popped, since the queue was made.
#[repr(C, align(64))]
pub(super) struct Done {
    /// Items. The store of the next number is what makes a push or a pop happen: whoever is killed before it has done
    /// nothing, whoever is killed after it has done it all.
    pub(super) items: AtomicU64,
    /// Bytes of these items.
    pub(super) bytes: AtomicU64,
}

/// On a line of its own: the other side looks at it each time.
#[repr(C, align(64))]
pub(super) struct Waiting(pub(super) Waiters);

/// What somebody is about to do, so that the next one can do the rest of it, or undo it.
#[repr(C)]
pub(super) struct Journal {
    /// 1 while it counts. Stored after the rest, and before anything is changed.
    pub(super) armed: AtomicU32,
    /// Of a pop: who takes the item.
    pub(super) member: AtomicU32,
    /// What `done` was before.
    pub(super) items: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Of a pop: what the member's `taken` was before.
    pub(super) taken: AtomicU64,
    /// Bytes of the item.
    pub(super) len: AtomicU64,
    /// The payload that changes hands; 0: none.
    pub(super) payload: AtomicU64,
    /// The slot, in queues by priority.
    pub(super) slot: AtomicU64,
}

/// What the queue knows of one process. The first three only grow, also from one process to the next one that has the
/// same number.
#[repr(C)]
pub(super) struct ProcessCounts {
    /// Items that it has popped. Written under the lock of the pops.
    pub(super) taken: AtomicU64,
    /// Those of them that it has said to be done.
    pub(super) done: AtomicU64,
    /// Those that nobody will say so of: it has died with them, or let go of the queue, or they could not be read.
    pub(super) lost: AtomicU64,
    /// Handles that may push, and that may pop.
    pub(super) senders: AtomicU32,
    pub(super) receivers: AtomicU32,
}

impl ProcessCounts {
    pub(super) fn unacknowledged(&self) -> u64 {
        let over = self.done.load(Ordering::Acquire) + self.lost.load(Ordering::Acquire);
        self.taken.load(Ordering::Acquire).saturating_sub(over)
    }

    /// What it has in its hands is lost. May be done again.
    pub(super) fn give_up(&self) {
        let taken = self.taken.load(Ordering::Acquire);
        let done = self.done.load(Ordering::Acquire);
        self.lost
            .store(taken.saturating_sub(done), Ordering::Release);
    }
}

/// Of a queue by priority: what is known of the item in a slot.
#[repr(C)]
pub(super) struct Key {
    /// Which push it was, from 1 on; 0: the slot is free.
    pub(super) number: AtomicU64,
    pub(super) priority: AtomicI64,
}

/// Where things lie behind the head. A process's own copy: it has been checked against the size of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) order: Order,
    pub(super) capacity: usize,
    /// Bytes from slot to slot.
    pub(super) stride: usize,
    pub(super) byte_limit: u64,
}

impl Geometry {
    /// Bytes behind the head.
    pub(super) fn len(&self) -> Option<usize> {
        let slots = self.capacity.checked_mul(self.stride)?;
        let each = match self.order {
            Order::Priority => size_of::<Key>() + size_of::<AtomicU32>(),
            _ => 0,
        };
        self.capacity.checked_mul(each)?.checked_add(slots)
    }

    /// What the head says, if it can be true of a block with `len` bytes behind the head.
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

/// Bytes of a slot before the item.
pub(super) const SLOT_HEAD: usize = size_of::<SlotHead>();

/// What lies before an item in a slot.
#[repr(C)]
pub(super) struct SlotHead {
    /// Bytes of the item.
    pub(super) len: AtomicU64,
    /// Its payload; 0: it lies in the slot itself.
    pub(super) payload: AtomicU64,
}

/// A queue as one process sees it, for the time of one call.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) head: &'a QueueHead,
    pub(super) geometry: Geometry,
    /// Behind the head, with as many bytes as the geometry says.
    pub(super) tail: NonNull<u8>,
}

/// Makes what is not zeros.
pub(super) fn init(
    place: NonNull<QueueHead>,
    tail: NonNull<u8>,
    geometry: Geometry,
) -> io::Result<()> {
    #[allow(unsafe_code)]
    for lock in [
        // SAFETY: `place` is a mapped block of the right size that nobody else knows of yet.
        unsafe { &raw mut (*place.as_ptr()).pushes.lock },
        // SAFETY: as above.
        unsafe { &raw mut (*place.as_ptr()).pops.lock },
    ] {
        let lock = NonNull::new(lock).ok_or(io::ErrorKind::Other)?;
        // SAFETY: as above; blocks stay mapped as long as there is a handle, and whoever locks has one.
        unsafe { RobustMutex::init(lock) }?;
    }
    #[allow(unsafe_code)]
    // SAFETY: as above. Zeros are valid, and the locks have just been made.
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
    /// Items in the queue.
    pub(super) fn len(&self) -> usize {
        // In this order: what is popped between the two was there.
        let popped = self.head.pops.done.items.load(Ordering::Acquire);
        let pushed = self.head.pushes.done.items.load(Ordering::Acquire);
        usize::try_from(pushed.saturating_sub(popped)).map_or(self.geometry.capacity, |len| {
            len.min(self.geometry.capacity)
        })
    }

    /// The items that were pushed, and those that are finished: done or lost. The second is counted first, so that
    /// they are only the same if there was a moment at which they were.
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

    pub(super) fn lost(&self) -> u64 {
        let counts = &self.head.counts[..member::numbers()];
        counts
            .iter()
            .map(|counts| counts.lost.load(Ordering::Acquire))
            .fold(0, u64::wrapping_add)
    }

    /// Takes the lock of the pushes, at most until the deadline that `limit` gives.
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
                if held.owner_died() {
                    self.repair(std::ptr::eq(lock, &raw const self.head.pushes.lock));
                }
                Some(held)
            }
            Err(LockError::Timeout) => None,
            Err(error) => panic!("the lock of a queue: {error}"),
        }
    }

    /// Somebody died with a lock, which the caller has now. Whoever is killed at this is followed by somebody who
    /// starts again.
    #[cold]
    fn repair(&self, is_of_pushes: bool) {
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
        let (side, journal) = (&self.head.pushes, &self.head.pushes.journal);
        if journal.armed.load(Ordering::Acquire) == 0 {
            return;
        }
        let has_happened = journal.has_happened(side);
        journal.count(side, has_happened);
        if !has_happened {
            if let Some(key) = self.key(journal.slot.load(Ordering::Relaxed) as usize) {
                key.number.store(0, Ordering::Release);
            }
            payload::discard(journal.payload.load(Ordering::Relaxed));
        }
        journal.armed.store(0, Ordering::Release);
    }

    /// Does the rest of a pop, or undoes it.
    fn end_pop(&self) {
        let (side, journal) = (&self.head.pops, &self.head.pops.journal);
        if journal.armed.load(Ordering::Acquire) == 0 {
            return;
        }
        let has_happened = journal.has_happened(side);
        journal.count(side, has_happened);
        let member = journal.member.load(Ordering::Relaxed) as usize;
        if let Some(counts) = self.head.counts.get(member) {
            let taken = journal.taken.load(Ordering::Relaxed);
            let taken = taken + u64::from(has_happened);
            counts.taken.store(taken, Ordering::Release);
        }
        if has_happened {
            if let Some(key) = self.key(journal.slot.load(Ordering::Relaxed) as usize) {
                key.number.store(0, Ordering::Release);
            }
            payload::discard(journal.payload.load(Ordering::Relaxed));
        }
        journal.armed.store(0, Ordering::Release);
    }

    /// Has all who wait look again.
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
    fn has_happened(&self, side: &Side) -> bool {
        side.done.items.load(Ordering::Acquire) > self.items.load(Ordering::Relaxed)
    }

    /// Makes the count of bytes what it has to be.
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
    // SAFETY: the block is of kind `Queue`, which all have this head, and is as long.
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

/// A process that had a handle has ended. False if it has to be tried again later, because the
/// locks were not to be had until the deadline.
pub(crate) fn reclaim(place: &Place, member: u16, end: End, deadline: Instant) -> bool {
    let mut is_done = true;
    with(place, |view| {
        // So that what it was at is done or undone, and its book is right.
        let limit = || Some(deadline);
        let is_settled = view.lock_pushes(limit).is_some() && view.lock_pops(limit).is_some();
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
                // Before the handles are gone: whoever finds none knows of the death.
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

/// Nobody has a handle any more: what lies in blocks of its own is given back, with the handles that are in it.
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
