//! [`Signal`]: a count that goes up, with the threads and hooks that wait for it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::shim::thread::{self, Thread};
use crate::shim::{AtomicBool, AtomicUsize, Mutex, fence};

/// A function that runs when a task has ended. It may run under an engine's locks: it is short,
/// part of the crate, and takes none of those locks. Code of the user's is put off by
/// [`super::later`].
pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// A count that goes up, which threads can wait for.
#[derive(Default)]
pub(crate) struct Signal {
    count: AtomicUsize,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Waiter>>,
}

enum Waiter {
    Thread(Thread),
    Hook(Hook),
}

impl Signal {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn raise(&self) {
        // SeqCst, here and in `add`: either this thread sees the waiter, or the waiter sees the
        // count.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.has_waiters.load(Ordering::SeqCst) {
            self.tell();
        }
    }

    fn tell(&self) {
        let waiters = {
            let mut waiters = self.waiters.lock();
            self.has_waiters.store(false, Ordering::SeqCst);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            match waiter {
                Waiter::Thread(thread) => thread.unpark(),
                Waiter::Hook(hook) => hook(),
            }
        }
    }

    fn add(&self, waiter: Waiter) {
        let mut waiters = self.waiters.lock();
        if let Waiter::Thread(thread) = &waiter {
            // A thread that waits again and again with a timeout is in the list once.
            let is_it = |other: &Waiter| matches!(other, Waiter::Thread(other) if other.id() == thread.id());
            waiters.retain(|other| !is_it(other));
        }
        waiters.push(waiter);
        self.has_waiters.store(true, Ordering::SeqCst);
        drop(waiters);
        fence(Ordering::SeqCst);
    }

    /// Registers the current thread to be unparked at the next `raise`. The caller must look at the
    /// count afterwards.
    pub(crate) fn register(&self) {
        self.add(Waiter::Thread(thread::current()));
    }

    /// Runs `hook` when the count passes `seen`, or now if it has passed.
    pub(crate) fn on_raise(&self, seen: usize, hook: Hook) {
        self.add(Waiter::Hook(hook));
        if self.count() > seen {
            self.tell();
        }
    }

    /// Sleeps until the count has passed `seen`, or until the deadline. Returns true if it has
    /// passed.
    pub(crate) fn sleep(&self, seen: usize, deadline: Option<Instant>) -> bool {
        loop {
            if self.count() > seen {
                return true;
            }
            self.register();
            // The count may have passed between the first look and the registration.
            if self.count() > seen {
                return true;
            }
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    thread::park_timeout(left);
                }
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests;
