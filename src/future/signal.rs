//! [`Signal`]: a count that goes up, and whoever is to hear of it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::shim::thread::{self, Thread};
use crate::shim::{AtomicBool, AtomicUsize, Mutex, fence};

/// Something to run when a task has ended. It may run under an engine's locks: it is short, the crate's own, and takes none
/// of those. What is the user's is put off by [`super::later`].
pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// Something that can be waited for: a count that goes up.
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
        // SeqCst, here and in `add`: either we see the waiter, or it sees the count.
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
            // Who waits again and again with a timeout stands here once.
            let is_it = |other: &Waiter| matches!(other, Waiter::Thread(other) if other.id() == thread.id());
            waiters.retain(|other| !is_it(other));
        }
        waiters.push(waiter);
        self.has_waiters.store(true, Ordering::SeqCst);
        drop(waiters);
        fence(Ordering::SeqCst);
    }

    /// Has the current thread unparked at the next `raise`. A look at the count must follow.
    pub(crate) fn register(&self) {
        self.add(Waiter::Thread(thread::current()));
    }

    /// Runs `hook` when the count passes `seen`, or now if it has.
    pub(crate) fn on_raise(&self, seen: usize, hook: Hook) {
        self.add(Waiter::Hook(hook));
        if self.count() > seen {
            self.tell();
        }
    }

    /// Sleeps until the count has passed `seen`, or until the deadline; true if it has.
    pub(crate) fn sleep(&self, seen: usize, deadline: Option<Instant>) -> bool {
        loop {
            if self.count() > seen {
                return true;
            }
            self.register();
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
