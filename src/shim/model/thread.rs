//! Parking of models, with the interface of `std::thread`.
//!
//! loom's own is not used: its condition variables park by the same token, so a notification could
//! make up for an `unpark` that was left out.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loom::sync::{Condvar, Mutex};

pub(crate) use loom::thread::{Builder, ThreadId};

/// A thread that can be unparked.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    id: ThreadId,
    token: Arc<Token>,
}

#[derive(Debug)]
struct Token {
    is_there: Mutex<bool>,
    given: Condvar,
    /// Whether its first sleep with a timeout is over. Only that one ends by itself: if a thread
    /// sleeps with a timeout again and again, loom would try all numbers of sleeps.
    is_out_of_timeouts: AtomicBool,
}

loom::thread_local! {
    static CURRENT: Thread = Thread {
        id: loom::thread::current().id(),
        token: Arc::new(Token {
            is_there: Mutex::new(false),
            given: Condvar::new(),
            is_out_of_timeouts: AtomicBool::new(false),
        }),
    };
}

impl Thread {
    pub(crate) fn id(&self) -> ThreadId {
        self.id
    }

    pub(crate) fn unpark(&self) {
        *self.token.is_there.lock().unwrap() = true;
        self.token.given.notify_one();
    }
}

pub(crate) fn current() -> Thread {
    CURRENT.with(Clone::clone)
}

pub(crate) fn park() {
    let token = current().token;
    let mut is_there = token.is_there.lock().unwrap();
    while !*is_there {
        is_there = token.given.wait(is_there).unwrap();
    }
    *is_there = false;
}

/// Parks the thread. The first time, the timeout is over at any time; after that it never is.
pub(crate) fn park_timeout(_timeout: Duration) {
    let token = current().token;
    // Only this thread reads and writes it.
    if token.is_out_of_timeouts.swap(true, Ordering::Relaxed) {
        park();
    } else {
        *token.is_there.lock().unwrap() = false;
    }
}

/// A stopwatch that says at the first look that no time has passed, and then that all has.
#[derive(Debug)]
pub(crate) struct Stopwatch(Cell<bool>);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Cell::new(false))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        if self.0.replace(true) {
            Duration::MAX
        } else {
            Duration::ZERO
        }
    }
}
