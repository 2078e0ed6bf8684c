//! [`Semaphore`], [`Event`] and [`Barrier`] for the threads of one program.
//!
//! These are missing in `std::sync` for a program that only uses threads:
//!
//! - A [`Semaphore`] limits how many threads do something at once. `std` has none. The usual one,
//!   made of a mutex and a condition variable, lets small requests overtake large ones, which then
//!   wait for ever under load. This one is a queue.
//! - An [`Event`] is a flag to wait for: "it has begun", "stop". `std` has none either. A condition
//!   variable with a `bool` loses the threads that are slow to wake, if the flag is cleared soon
//!   after it was set. This one does not.
//! - A [`Barrier`] holds threads until all have come. The one of `std` waits for ever when one of
//!   them never comes. This one can time out, be aborted and be reset, and then all its threads are
//!   told.
//!
//! Nothing here is poisoned: a thread that panics gives its permits back, like a thread that
//! returns. Waiting threads sleep. All three can be a `static`.
//!
//! # Between processes
#![cfg_attr(
    target_os = "linux",
    doc = "The same three are in [`sync`](crate::sync), with the same methods, for threads of one or of many processes. What differs:"
)]
#![cfg_attr(
    not(target_os = "linux"),
    doc = "On Linux the same three are in `manyhands::sync`, with the same methods, for threads of one or of many processes. What differs:"
)]
//!
//! | | here | there |
//! |---|---|---|
//! | what it is | a value; it can be a `static` | a handle, `Clone` and serde's |
//! | `new` | cannot fail, and is `const` | asks the system for shared memory, gives a `Result` |
//! | a killed party | none: a thread cannot be killed alone | permits come back, barriers break |
//! | permits | as many as a `usize` counts | as many as a `u32` counts |
//!
//! Threads borrow the value here. A handle goes wherever values go.
//!
//! # Examples
//!
//! ```
//! use manyhands::thread::{Event, Semaphore};
//! use std::thread;
//!
//! let connections = Semaphore::new(2);
//! let stop = Event::new();
//! thread::scope(|scope| {
//!     for _ in 0..4 {
//!         scope.spawn(|| {
//!             while !stop.is_set() {
//!                 let _one_of_two = connections.acquire();
//!                 // … talk to the server …
//!             }
//!         });
//!     }
//!     stop.set();
//! });
//! assert_eq!(connections.available(), 2);
//! ```

mod barrier;
mod event;
mod semaphore;

use std::time::{Duration, Instant};

pub use self::barrier::Barrier;
pub use self::event::Event;
pub use self::semaphore::{Permit, Semaphore};
pub use crate::barrier::{BarrierError, BarrierWaitResult};
use crate::shim::{Condvar, MutexGuard};

/// Returns when a wait that begins now is over. `None` means never: the clock does not reach that
/// far.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Sleeps until another thread notifies, or until the deadline. Returns true if the deadline has
/// passed.
fn sleep<T>(woken: &Condvar, guard: &mut MutexGuard<'_, T>, deadline: Option<Instant>) -> bool {
    if let Some(deadline) = deadline {
        return woken.wait_until(guard, deadline).timed_out();
    }
    woken.wait(guard);
    false
}

/// The shared part of the unit tests. The objects that threads wait on are leaked, and threads are
/// not joined, so that a test that fails does not wait for a thread that will never wake.
#[cfg(test)]
mod testing {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::{Duration, Instant};

    /// Far longer than any wait of a test takes.
    const DEADLINE: Duration = Duration::from_secs(30);

    pub(super) fn leak<T>(value: T) -> &'static T {
        Box::leak(Box::new(value))
    }

    pub(super) fn in_thread<R: Send + 'static>(
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Receiver<R> {
        let (sender, receiver) = channel();
        thread::spawn(move || sender.send(f()));
        receiver
    }

    #[track_caller]
    pub(super) fn soon<R>(receiver: &Receiver<R>) -> R {
        receiver.recv_timeout(DEADLINE).expect("the thread waits")
    }

    #[track_caller]
    pub(super) fn eventually(mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < DEADLINE, "it has not come true");
            thread::yield_now();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
