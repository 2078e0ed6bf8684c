//! Locks and signals between processes, and between the threads of each.
//!
//! Each of them lies in memory that a family of processes shares ([`shm`](crate::shm)). A program
//! has a handle of it. A clone is another handle of the same object. A handle can be the argument
//! of a task or of a child, part of a context, an item of a queue or a result. std's types of the
//! same names stop at the border of the process. C's and Python's cross it, but a process that is
//! killed while it holds one leaves the others blocked for ever. Here no process stays blocked:
//!
//! | | a participant is killed | what the others see |
//! |---|---|---|
//! | [`Mutex`] | while it holds it | the next owner gets it at once, [poisoned](PoisonError) |
//! | [`RwLock`] | while it reads | its read lock is gone |
//! | | while it writes | the others get the lock, poisoned |
//! | [`Semaphore`] | with permits | permits come back, but not [forgotten](Permit::forget) ones |
//! | [`Condvar`] | while it waits, perhaps picked by `notify_one` | all wake up and look again |
//! | [`Barrier`] | with a handle, arrived or not | [`BarrierError`], until [`Barrier::reset`] |
//! | [`Event`] | waiting, or between `set` and the wake-up | nothing: waiters look by themselves |
//! | [`Once`] | while it runs the function | poisoned: [`Once::call_once_force`] runs it again |
//!
//! A panic poisons a lock in the same way as a death.
//!
//! The kernel itself tells the next owner of a mutex. The death of a holder of another object has
//! to be noticed by a process. A pool notices it for its workers, and a parent when it waits for
//! its child. A thread that waits at an object polls for the dead meanwhile, so that it takes a
//! tenth of a second at most. In a family of more than 64 processes, a barrier takes up to half a
//! second.
//!
//! ```
//! use manyhands::prelude::*;
//! use manyhands::sync;
//!
//! let hits = sync::Mutex::new(0u64)?;
//! let pool = Pool::processes(2)?;
//! pool.map_with(&hits, |hits, x: u64| *hits.lock().unwrap() += x, 0..100)?;
//! assert_eq!(*hits.lock().unwrap(), 4_950);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What holds for all of them:
//!
//! - Waiting is for threads: a thread that waits sleeps, and does not return to an async runtime.
//! - A timeout is any [`Duration`], `Duration::MAX` too, by the monotonic clock. It is never cut
//!   short.
//! - Guards and permits belong to the process that got them. The copies that a forked child has of
//!   its parent's do nothing when they are dropped. The child must not use what they guard.
//! - A process that is stopped (`SIGSTOP`, a debugger, a frozen container) is not dead: what it
//!   holds, it holds. If it was stopped in the middle of a change to an object, calls with a
//!   timeout are over in time all the same, `try_` calls give up after 20 ms, and what is dropped
//!   is given back as soon as that is possible. Calls without a time wait.
//!
//! # Panics
//!
//! All of them panic
//!
//! - in a process that cannot become a member of its family of processes any more, because 1,024
//!   others are ([`ShareError::TooManyProcesses`](crate::shm::ShareError::TooManyProcesses));
//! - in a forked child whose copy of a handle outlived the object;
//! - when a faulty process has written over the lock in shared memory.

mod barrier;
mod condvar;
mod event;
mod mutex;
mod once;
mod permits;
mod poison;
mod rwlock;
mod semaphore;

pub use barrier::{Barrier, BarrierError, BarrierWaitResult};
pub use condvar::{Condvar, WaitTimeoutResult};
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use once::{Once, OnceState};
pub use poison::{LockResult, PoisonError, TryLockError, TryLockResult};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Permit, Semaphore};

pub(crate) use self::reclaim::reclaim;

use std::time::{Duration, Instant};

use crate::os::robust::{Held, LockError, RobustMutex};

mod reclaim;

/// Takes an inner lock of an object, under which no code of the users runs. Returns `None` if the
/// lock was not free before the deadline that `limit` gives, because its owner does not go on.
fn hold(lock: &RobustMutex, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
    match lock.hold_with(limit) {
        Ok(held) => Some(held),
        Err(LockError::Timeout) => None,
        Err(error) => panic!("a shared object is out of order: {error}"),
    }
}

/// Returns when `timeout` will have passed; `None` if it never will.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
