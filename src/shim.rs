//! The atomics and the futex of the protocols that models check. The same source runs on the real
//! ones and, in a build with `--cfg loom`, on those of loom, which runs a test through all orders
//! that threads and memory may take.
//!
//! The model leaves out time. There a slice of sleep never ends by itself. So a lost wake-up, which
//! costs 100 ms otherwise, is a deadlock, which loom reports. A deadline passes at any time it can,
//! early or late.
//!
//! Under loom these types are larger and do not live in shared memory: only the tests with `loom_`
//! in their names run then.
//!
//! Locks, parking and a queue are here as well, for the protocols inside one process. In a build
//! without loom they are `parking_lot`'s, the standard library's and crossbeam's own types, under
//! another name.

#[cfg(all(not(loom), target_os = "linux"))]
mod futex;
#[cfg(loom)]
mod model;

#[cfg(all(not(loom), target_os = "linux"))]
pub(crate) use self::futex::Futex;
#[cfg(not(loom))]
pub(crate) use self::real::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, SegQueue,
    StaticBool, Stopwatch, fence, plain, thread,
};

#[cfg(loom)]
pub(crate) use self::model::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Condvar, Futex, Mutex, MutexGuard, SegQueue,
    StaticBool, Stopwatch, fence, plain, thread,
};

#[cfg(not(loom))]
mod real {
    use std::time::{Duration, Instant};

    pub(crate) use crossbeam_queue::SegQueue;
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
    pub(crate) use std::thread;

    /// A flag that a `const fn` makes.
    pub(crate) type StaticBool = AtomicBool;

    /// Locks of the standard library, for what a forked child has its own copy of.
    pub(crate) mod plain {
        pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    }

    /// A stopwatch that says how much time has passed. That of models, which have no time, says
    /// that all of it has.
    pub(crate) struct Stopwatch(Instant);

    impl Stopwatch {
        pub(crate) fn start() -> Self {
            Self(Instant::now())
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }
    }
}
