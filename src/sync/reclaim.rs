//! The release of what a process held when it ended.

use std::time::Instant;

use crate::memory::kind::{Head, Kind, head};
use crate::memory::member::End;
use crate::memory::registry::Place;

use super::barrier::BarrierHead;
use super::condvar::CondvarHead;
use super::event::EventHead;
use super::rwlock::RwLockHead;
use super::semaphore::SemaphoreHead;

/// Returns the head of a block of this kind; `None` if the block is too small for one.
#[allow(unsafe_code)]
fn head_at<H: Head>(place: &Place) -> Option<&H> {
    // SAFETY: the block's entry says that it was made as such an object, and the block is long
    // enough.
    (place.len() >= size_of::<H>()).then(|| unsafe { head(place.start()) })
}

/// Reclaims what a member that has ended held of an object of this kind. May be called twice for
/// the same member. A mutex and a `Once` need none of this: the kernel tells the next owner.
///
/// Waits for the object's lock until the deadline at most. Returns false if it was not free before.
pub(crate) fn reclaim(kind: Kind, place: &Place, member: u16, end: End, deadline: Instant) -> bool {
    let told = |()| true;
    let is_done = match kind {
        Kind::Semaphore => {
            head_at::<SemaphoreHead>(place).map(|head| head.reclaim(member, deadline))
        }
        Kind::RwLock => head_at::<RwLockHead>(place).map(|head| head.reclaim(member, deadline)),
        Kind::Condvar => head_at::<CondvarHead>(place)
            .map(|head| head.reclaim(member))
            .map(told),
        Kind::Barrier => {
            head_at::<BarrierHead>(place).map(|head| head.reclaim(member, end, deadline))
        }
        Kind::Event => head_at::<EventHead>(place)
            .map(EventHead::reclaim)
            .map(told),
        _ => None,
    };
    is_done.unwrap_or(true)
}
