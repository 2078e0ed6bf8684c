//! The atomics and the futex of the protocols that models check: the same source runs on the real ones and, in a build
//! with `--cfg loom`, on those of loom, which runs a test through all orders that threads and memory may take.
//!
//! What the model leaves out: time. A slice of sleep never ends by itself there, so that a lost wake-up, which costs
//! 100 ms otherwise, is a deadlock, which loom reports; and a deadline passes at any time it can, early or late.
//!
//! Under loom these types are larger and live in no shared memory: only the tests with `loom_` in their names run then.

#[cfg(not(loom))]
pub(crate) use real::{AtomicU32, AtomicU64, Futex, fence};

#[cfg(loom)]
pub(crate) use model::{AtomicU32, AtomicU64, Futex, fence};

#[cfg(not(loom))]
mod real {
    use std::time::Instant;

    use crate::os::futex::{self, Wake};

    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

    /// A word to sleep on, in shared memory.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }

        pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            self.0.fetch_add(value, order)
        }

        /// Sleeps while the word holds `expected`, until somebody wakes it or `end` has come. Whether that is a deadline
        /// or just the end of a slice is for the model.
        pub(crate) fn sleep(&self, expected: u32, end: Instant, _is_deadline: bool) -> Wake {
            futex::wait_until(&self.0, expected, end)
        }

        pub(crate) fn wake(&self, count: u32) {
            futex::wake(&self.0, count);
        }

        /// The word itself, for those who sleep on many at once.
        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.0
        }

        pub(crate) fn store(&self, value: u32, order: Ordering) {
            self.0.store(value, order);
        }

        /// Acquires and releases.
        pub(crate) fn swap(&self, value: u32) -> u32 {
            self.0.swap(value, Ordering::AcqRel)
        }

        /// Acquires, and releases if it succeeds.
        pub(crate) fn compare_exchange(&self, current: u32, new: u32) -> Result<u32, u32> {
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            self.0.compare_exchange(current, new, success, failure)
        }
    }
}

#[cfg(loom)]
mod model {
    use std::collections::VecDeque;
    use std::time::Instant;

    use loom::sync::{Condvar, Mutex};

    use crate::os::futex::Wake;

    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

    /// A futex as the kernel has it: a queue of sleepers behind a lock, under which the word is compared.
    #[derive(Debug)]
    pub(crate) struct Futex {
        word: AtomicU32,
        queue: Mutex<Queue>,
        woken: Condvar,
    }

    #[derive(Debug, Default)]
    struct Queue {
        next: u32,
        asleep: VecDeque<u32>,
    }

    impl Default for Futex {
        fn default() -> Self {
            Self {
                word: AtomicU32::new(0),
                queue: Mutex::default(),
                woken: Condvar::new(),
            }
        }
    }

    impl Futex {
        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.word.load(order)
        }

        pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            self.word.fetch_add(value, order)
        }

        pub(crate) fn store(&self, value: u32, order: Ordering) {
            self.word.store(value, order);
        }

        pub(crate) fn swap(&self, value: u32) -> u32 {
            self.word.swap(value, Ordering::AcqRel)
        }

        pub(crate) fn compare_exchange(&self, current: u32, new: u32) -> Result<u32, u32> {
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            self.word.compare_exchange(current, new, success, failure)
        }

        pub(crate) fn sleep(&self, expected: u32, _end: Instant, is_deadline: bool) -> Wake {
            let mut queue = self.queue.lock().unwrap();
            if self.word.load(Ordering::Relaxed) != expected {
                return Wake::Woken;
            }
            let number = queue.next;
            queue.next += 1;
            queue.asleep.push_back(number);
            if is_deadline {
                // The deadline passes whenever the lock is got again; loom tries all that may happen before.
                drop(queue);
                let mut queue = self.queue.lock().unwrap();
                let place = queue.asleep.iter().position(|&other| other == number);
                let Some(place) = place else {
                    return Wake::Woken;
                };
                queue.asleep.remove(place);
                return Wake::TimedOut;
            }
            while queue.asleep.contains(&number) {
                queue = self.woken.wait(queue).unwrap();
            }
            Wake::Woken
        }

        pub(crate) fn wake(&self, count: u32) {
            let mut queue = self.queue.lock().unwrap();
            let count = queue.asleep.len().min(count as usize);
            queue.asleep.drain(..count);
            if count > 0 {
                self.woken.notify_all();
            }
        }
    }
}
