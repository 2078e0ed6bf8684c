//! Objects that processes share.
//!
//! Locks ([`sync`](crate::sync)), queues ([`queue`](crate::queue)) and arrays ([`SharedArray`](crate::SharedArray)) lie in memory
//! that all processes of a *family* map: the first process of a program, those that it starts through this crate or
//! forks, and theirs in turn. What a program has of such an object is a *handle*:
//!
//! - It is small whatever the object's size, and `Clone`: a clone is another handle of the same object.
//! - It implements serde's traits, and so can be the argument of a task, part of a context, an item of a queue or a result.
//!   The process that gets it comes to the same object, and so does the one that it hands it on to.
//! - The object lives as long as any process has a handle, or one is under way in a task, a queue or a result. A process
//!   that is killed lets go of all its handles.
//! - A handle that strays outside the family, or is read when everything has been let go of, is an error
//!   ([`ShareError`]) where it is deserialised.
//!
//! Nothing of this has a name in the file system, so nothing is left there after a crash. Unrelated programs share memory
//! by name instead: [`SharedMemory`](crate::SharedMemory).
//!
//! # Limits
//!
//! 1,024 processes can share objects at a time, and one family can have 1,048,576 objects. A handle in a result that nobody
//! takes (its `TaskFuture` was dropped), or in a message that dies with a killed process, keeps its object as long as
//! the family lives.

pub(crate) mod array;
pub(crate) mod block;
pub(crate) mod cargo;
mod error;
pub(crate) mod family;
pub(crate) mod kind;
pub(crate) mod member;
mod named;
pub(crate) mod object;
pub(crate) mod payload;
pub(crate) mod registry;
#[cfg(all(test, not(loom)))]
mod tests;
mod value;
pub(crate) mod wait;

pub use array::lend::{Chunks, Tiles, With, Zipped};
pub use array::{
    AtomicElement, Atomics, ClaimError, FrozenArray, Reading, SharedArray, TileMut, Writing,
};
pub use error::ShareError;
pub use named::{NameProblem, SharedMemory, SharedMemoryError};
pub use value::SharedValue;

/// What the shared objects of this family take up, in this and all its other processes.
///
/// # Examples
///
/// ```
/// use manyhands::{SharedArray, shm};
///
/// let array = SharedArray::<u64>::zeros(1_000)?;
/// let usage = shm::usage();
/// assert!(usage.objects >= 1 && usage.bytes >= 8_000);
/// # Ok::<(), manyhands::ShareError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// How many objects there are.
    pub objects: usize,
    /// The bytes that they were made with.
    pub bytes: u64,
    /// The bytes of memory that the system has given for them. More than `bytes`: sizes are rounded up, and the last
    /// 64 MiB that were given back are kept for the next one who wants some.
    pub reserved: u64,
}

/// What shared objects take up. Members of the family that have died are cleared away first.
pub fn usage() -> Usage {
    let Some(family) = family::if_any() else {
        return Usage::default();
    };
    member::bury_dead();
    let (objects, bytes) = family.in_use();
    Usage {
        objects,
        bytes,
        reserved: family.memory.reserved().unwrap_or(0),
    }
}
