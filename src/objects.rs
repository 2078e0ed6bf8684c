//! What each kind of shared object does when a process that held it has ended. This is the one file
//! that knows all kinds.
//!
//! A process that reclaims what a dead one held has only the blocks, with the number of the kind of
//! each, and not their types. It may never have used an object of that kind itself. So the table is
//! complete at compile time. If kinds registered at run time, a process in which a kind is not
//! registered yet would pass over its objects.

use std::time::Instant;

use crate::memory::kind::Kind;
use crate::memory::member::End;
use crate::memory::payload;
use crate::memory::registry::Place;
use crate::{array, queue, sync};

/// Tells an object that a member which held it has ended. To be called while the block is still
/// held in the member's name, with nothing locked. May be called more than once for the same
/// member, if the process that calls is killed before it is done.
///
/// Waits for the object's locks until the deadline at most. Returns false if the caller has to try
/// again later.
pub(crate) fn reclaim(kind: Kind, place: &Place, member: u16, end: End, deadline: Instant) -> bool {
    match kind {
        Kind::Array => array::reclaim(place, member, deadline),
        Kind::Queue => queue::reclaim(place, member, end, deadline),
        _ => sync::reclaim(kind, place, member, end, deadline),
    }
}

/// Gives back what an object has besides its block. No process holds the object any more, and none
/// can open it again. May be called more than once, if the process that calls is killed before it
/// is done.
pub(crate) fn take_apart(kind: Kind, place: &Place) {
    match kind {
        Kind::Payload => payload::take_apart(place),
        Kind::Queue => queue::take_apart(place),
        _ => {}
    }
}
