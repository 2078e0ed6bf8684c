//! The types that models have in place of the real ones.

mod locks;
pub(crate) mod plain;
mod queue;
mod sequential;
pub(crate) mod thread;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use loom::sync;
use loom::sync::atomic::Ordering;

use crate::os::futex::Wake;

pub(crate) use self::locks::{Condvar, Mutex, MutexGuard};
pub(crate) use self::queue::SegQueue;
pub(crate) use self::sequential::{AtomicBool, AtomicUsize, StaticBool};
pub(crate) use self::thread::Stopwatch;
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

/// A futex as the kernel has it: a queue of sleepers behind a lock. The word is compared under the
/// lock.
#[derive(Debug)]
pub(crate) struct Futex {
    word: AtomicU32,
    queue: sync::Mutex<Queue>,
    woken: sync::Condvar,
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
            queue: sync::Mutex::default(),
            woken: sync::Condvar::new(),
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
            // The deadline passes when this thread has acquired the lock again; loom tries all that
            // may happen before.
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

    pub(crate) fn sleep_for(&self, expected: u32, timeout: Option<Duration>) {
        // A timeout is over at any time. Without one only a wake-up ends the sleep.
        self.sleep(expected, Instant::now(), timeout.is_some());
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
