//! Objects that processes share.
//!
//! Values ([`SharedValue`]), arrays ([`SharedArray`]), locks ([`sync`](crate::sync)) and queues
//! ([`queue`](crate::queue)) lie in memory that all processes of a *family* map: the first process
//! of a program, those that it starts through this crate or forks, and theirs in turn. What a
//! program has of such an object is a *handle*:
//!
//! - It is small whatever the object's size, and `Clone`: a clone is another handle of the same
//!   object.
//! - It implements serde's traits, and so can be the argument of a task, part of a context, an item
//!   of a queue or a result. The process that receives it has access to the same object, and so has
//!   any process that it passes the handle on to.
//! - The object lives as long as any process has a handle, or one is under way in a task, a queue
//!   or a result. A process that is killed lets go of all its handles.
//! - A handle that gets into a process outside the family, or is read after all others are gone, is
//!   an error ([`ShareError`]) where it is deserialised.
//!
//! Nothing of this has a name in the file system, so nothing is left there after a crash. Unrelated
//! programs share memory by name instead: [`SharedMemory`].
//!
//! # Which values can be shared
//!
//! What processes read and write in place ([`SharedValue`], [`SharedArray`],
//! [`sync::Mutex`](crate::sync::Mutex) and [`sync::RwLock`](crate::sync::RwLock)) must be
//! [`Pod`](bytemuck::Pod), a trait of the crate `bytemuck`. Any bytes are a value of such a type,
//! because a process that is killed may leave any. And it holds no pointers, because those would be
//! good in one process only.
//!
//! - All integers, `f32` and `f64` are `Pod`, arrays of such types, and structs of them that derive
//!   it.
//! - `bool` and `char` are not, because not all bytes are a value of them: use a `u8` or a `u32`.
//! - `String`, `Vec`, `Box` and references are not, because they point to memory of one process:
//!   use an array, or send such values through a [`queue`](crate::queue).
//!
//! For structs of your own, switch on the feature `derive` of bytemuck in your `Cargo.toml`:
//! `bytemuck = { version = "1.24", features = ["derive"] }`. It is the same crate as
//! `manyhands::bytemuck`, and can be used under either name:
//!
//! ```
//! use manyhands::bytemuck::{Pod, Zeroable};
//! use manyhands::prelude::*;
//! use manyhands::sync;
//!
//! #[derive(Clone, Copy, Pod, Zeroable)]
//! #[bytemuck(crate = "manyhands::bytemuck")] // not needed with `use bytemuck::{Pod, Zeroable}`
//! #[repr(C)]
//! struct Account {
//!     balance: i64,
//!     bookings: u32,
//!     is_open: u32, // 0 or 1, in place of a bool; u32, so that there is no gap behind it
//! }
//!
//! let account = sync::Mutex::new(Account { balance: 0, bookings: 0, is_open: 1 })?;
//! let pool = Pool::processes(2)?;
//! pool.map_with(
//!     &account,
//!     |account, amount: i64| {
//!         let mut account = account.lock().unwrap();
//!         account.balance += amount;
//!         account.bookings += 1;
//!     },
//!     [100, -30, 5],
//! )?;
//! let account = *account.lock().unwrap();
//! assert_eq!((account.balance, account.bookings, account.is_open), (75, 3, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//!
//! - 1,024 processes can share objects at a time, in one namespace of processes. One family can
//!   have 983,040 objects at a time; entries that were once used for objects of one size stay with
//!   that size.
//! - If a process is killed while it reads or writes a message, the objects whose handles are in
//!   the message stay as long as the family lives. The same goes for a result that lies unread in
//!   the lane of an idle pool, until that pool is used again or closed.
//! - A process that is stopped (`SIGSTOP`, a debugger, a frozen container) keeps what it holds. If
//!   it was stopped in the middle of a change to an object, no other process can change that object
//!   until it goes on or is killed. Calls with a timeout still return in time, and calls that do
//!   not wait give up after 20 ms. What a process drops meanwhile is given back by a thread of that
//!   process, as soon as that is possible.
//! - Making an object, and reading a message with a handle, take the ledger of the family for a
//!   moment. If a process was stopped with the ledger, they give up after 2 seconds with
//!   [`ShareError::Busy`], which names the process.

use crate::array::fork_guard;
use crate::memory;

pub use crate::array::{
    ArrayReadGuard, ArrayWriteGuard, AtomicElement, AtomicsGuard, FrozenArray, SharedArray, TileMut,
};
pub use crate::error::ClaimError;
pub use crate::memory::ShareError;
pub use crate::memory::shareable::Shareable;
pub use crate::named::{NameError, SharedMemory, SharedMemoryError};
pub use crate::value::SharedValue;

/// What the shared objects of this family take up, in this and all its other processes. [`usage`]
/// returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// The number of objects.
    pub objects: usize,
    /// The bytes that the objects were made with.
    pub bytes: u64,
    /// The bytes of memory that the system has given for them. More than `bytes`: sizes are rounded
    /// up, and the last 64 MiB that were given back are kept for the next object.
    pub reserved: u64,
}

/// Returns what the shared objects of this family take up. Reclaims members of the family that have
/// died first.
///
/// # Examples
///
/// ```
/// use manyhands::{SharedArray, shm};
///
/// let array = SharedArray::<u64>::zeros(1_000)?;
/// let usage = shm::usage();
/// assert!(usage.objects >= 1 && usage.bytes >= 8_000);
/// drop(array);
/// assert!(shm::usage().objects < usage.objects);
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub fn usage() -> Usage {
    fork_guard::let_go_for_the_dead();
    let (objects, bytes, reserved) = memory::in_use();
    Usage {
        objects,
        bytes,
        reserved,
    }
}
