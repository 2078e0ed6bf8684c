//! The kinds of shared objects. What each kind does when a process that held it has ended:
//! [`objects`](crate::objects).

use std::ptr::NonNull;

/// What lies in a block.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The bytes of a queue's item, if they are too many for the queue's own block.
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
    /// A queue of any order.
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

    /// Returns whether an object must be told of the end of a process that held it
    /// ([`objects::reclaim`](crate::objects::reclaim)), for which the block must be mapped.
    pub(super) fn hears_of_deaths(self) -> bool {
        !matches!(self, Self::Payload | Self::Value | Self::Mutex | Self::Once)
    }

    /// Returns whether an object has more than its block
    /// ([`objects::take_apart`](crate::objects::take_apart)).
    pub(super) fn has_contents(self) -> bool {
        matches!(self, Self::Queue | Self::Payload)
    }
}

/// The head of a shared object, at the start of its block: what processes read and write there.
///
/// # Safety
///
/// All zeros is a valid value, and so is whatever other processes write there: it consists of
/// atomics, of locks at the offsets in `LOCKS`, and of memory behind `UnsafeCell`. What lies at
/// those offsets is a [`RobustMutex`](crate::os::robust::RobustMutex).
#[allow(unsafe_code)]
pub(crate) unsafe trait Head: Sync + Sized + 'static {
    const KIND: Kind;
    /// The offsets of the locks that [`Object::new`](super::object::Object::new) makes.
    const LOCKS: &'static [usize] = &[];
}

/// Returns the head at the start of a block.
///
/// # Safety
///
/// The block was made as an object with this head.
#[allow(unsafe_code)]
pub(crate) unsafe fn head<'a, H: Head>(start: NonNull<u8>) -> &'a H {
    // SAFETY: the caller's promise; blocks are aligned to their size, and reserved.
    unsafe { start.cast::<H>().as_ref() }
}
