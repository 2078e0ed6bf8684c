//! The kinds of shared objects, and what each has to do when a process that held it has ended.
//!
//! This is the one place of this layer that knows those above: whoever buries a process has only its blocks in hand, not
//! their types.

use std::ptr::NonNull;
use std::time::Instant;

use super::array;
use super::member::End;
use super::payload;
use super::registry::Place;
use crate::queue;

/// What lies in a block.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of a queue, too many for its own block.
    Payload = 1,
    Array = 2,
    Value = 3,
    Mutex = 4,
    RwLock = 5,
    Semaphore = 6,
    Condvar = 7,
    Barrier = 8,
    Event = 9,
    Once = 10,
    /// Of whatever order.
    Queue = 11,
}

impl Kind {
    pub(super) fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Payload,
            2 => Self::Array,
            3 => Self::Value,
            4 => Self::Mutex,
            5 => Self::RwLock,
            6 => Self::Semaphore,
            7 => Self::Condvar,
            8 => Self::Barrier,
            9 => Self::Event,
            10 => Self::Once,
            11 => Self::Queue,
            _ => return None,
        })
    }

    /// A member that held the object has ended. Called while the block is still held in the member's name, with nothing
    /// locked; perhaps more than once for the same member, if somebody is killed at it.
    ///
    /// Waits for the object's locks until the deadline at most. False if it has to be tried again
    /// later.
    pub(super) fn bury(self, place: &Place, member: u16, end: End, deadline: Instant) -> bool {
        match self {
            Self::Array => array::bury(place, member, deadline),
            Self::Queue => queue::bury(place, member, end, deadline),
            _ => crate::sync::bury(self, place, member, end, deadline),
        }
    }

    /// Nobody holds the object any more, and nobody can come to it again: gives back what it has other than its block.
    /// Perhaps more than once, if somebody is killed at it.
    pub(super) fn take_apart(self, place: &Place) {
        match self {
            Self::Payload => payload::take_apart(place),
            Self::Queue => queue::take_apart(place),
            _ => {}
        }
    }

    /// Whether there is something to [`bury`](Self::bury), for which the block must be mapped.
    pub(super) fn has_heirs(self) -> bool {
        !matches!(self, Self::Payload | Self::Value | Self::Mutex | Self::Once)
    }

    /// Whether there is something to [`take_apart`](Self::take_apart).
    pub(super) fn has_contents(self) -> bool {
        matches!(self, Self::Queue | Self::Payload)
    }
}

/// The head of a shared object, at the start of its block: what processes read and write there.
///
/// # Safety
///
/// All zeros is a valid value, and so is whatever other processes write there: it consists of atomics, of locks that are
/// initialised by the function given to [`Object::new`](super::object::Object::new), and of memory behind `UnsafeCell`.
#[allow(unsafe_code)]
pub(crate) unsafe trait Head: Sync + Sized + 'static {
    const KIND: Kind;
}

/// The head at the start of a block.
///
/// # Safety
///
/// The block was made as an object with this head.
#[allow(unsafe_code)]
pub(crate) unsafe fn head<'a, H: Head>(start: NonNull<u8>) -> &'a H {
    // SAFETY: the caller's promise; blocks are aligned to their size, and reserved.
    unsafe { start.cast::<H>().as_ref() }
}
