//! What is the user's to run when a task has ended, and must not run under a lock of an engine.
//!
//! Wakers of async runtimes are called by the thread that found the task ended, as soon as it has let go of the engine's
//! lock: one hop less than by a thread of their own. Callbacks may do anything, also wait for another task; they run on
//! a thread that nothing else depends on. It is started when there is a callback to run, and ends soon after the last.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use crate::panic;

thread_local! {
    static WAKERS: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    /// Whether anything has been put off on this thread. Of its own, because `flush` looks at it after every lock.
    static IS_ANYTHING: Cell<bool> = const { Cell::new(false) };
}

/// Has the waker woken at the next [`flush`] of this thread.
pub(crate) fn wake(waker: Waker) {
    IS_ANYTHING.set(true);
    let waker = WAKERS.try_with(|wakers| wakers.borrow_mut().push(waker));
    debug_assert!(waker.is_ok(), "a task ended while its thread did");
}

/// Wakes what has been put off. Called by whoever has let go of a lock under which hooks may have run.
#[inline]
pub(crate) fn flush() {
    if IS_ANYTHING.get() {
        flush_now();
    }
}

#[cold]
fn flush_now() {
    IS_ANYTHING.set(false);
    if MUST_RUN.take() {
        while let Some(callback) = { lock().queue.pop_front() } {
            run_one(callback);
        }
    }
    let wakers = WAKERS.try_with(|wakers| std::mem::take(&mut *wakers.borrow_mut()));
    for waker in wakers.unwrap_or_default() {
        if let Err(caught) = panic::catch(|| waker.wake()) {
            log::error!("a waker panicked: {}", caught.message);
        }
    }
}

type Callback = Box<dyn FnOnce() + Send>;

struct Callbacks {
    queue: VecDeque<Callback>,
    /// Generation of the process whose thread runs them, while there is one.
    runner: Option<u32>,
}

/// Not one of `parking_lot`: if another thread waits for such a lock during a fork, the child's unlock hands it to that
/// thread, which the child does not have.
static CALLBACKS: Mutex<Callbacks> = Mutex::new(Callbacks {
    queue: VecDeque::new(),
    runner: None,
});
static MORE: Condvar = Condvar::new();

/// How long the thread stays for another callback.
const LINGER: Duration = Duration::from_millis(50);

thread_local! {
    /// Whether this thread is the one that runs callbacks.
    static IS_RUNNER: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is to run them itself, as soon as it holds no lock, because there is no other.
    static MUST_RUN: Cell<bool> = const { Cell::new(false) };
}

fn lock() -> MutexGuard<'static, Callbacks> {
    // Nothing that could panic happens under it.
    CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the queue as it is for as long as the returned value lives: held around a fork, so that the child finds the lock
/// free.
#[cfg(target_os = "linux")]
pub(crate) fn hold() -> MutexGuard<'static, impl Sized> {
    lock()
}

/// Runs a callback soon, on the thread for them, after those that came before it.
pub(crate) fn call(callback: Callback) {
    let generation = generation();
    let mut callbacks = lock();
    if callbacks.runner.is_some_and(|runner| runner != generation) {
        // The thread, and what it was to run, belong to the process that this one was forked from.
        callbacks.runner = None;
        callbacks.queue.clear();
    }
    callbacks.queue.push_back(callback);
    if callbacks.runner.is_some() {
        MORE.notify_one();
        return;
    }
    callbacks.runner = Some(generation);
    drop(callbacks);
    let started = thread::Builder::new()
        .name("manyhands-call".to_owned())
        .spawn(run);
    if let Err(error) = started {
        log::error!("no thread for callbacks, which run where the task was found ended: {error}");
        lock().runner = None;
        MUST_RUN.set(true);
        IS_ANYTHING.set(true);
    }
}

/// Runs the next callback, if this thread is the one for callbacks: one that waits for another must not wait for itself.
/// False if there is none, or on other threads.
pub(crate) fn run_next() -> bool {
    if !IS_RUNNER.get() {
        return false;
    }
    let next = lock().queue.pop_front();
    next.is_some_and(|callback| {
        run_one(callback);
        true
    })
}

/// Whether this is the thread that runs callbacks.
pub(crate) fn is_runner() -> bool {
    IS_RUNNER.get()
}

fn run_one(callback: Callback) {
    if let Err(caught) = panic::catch(callback) {
        log::error!("a callback of a task panicked: {}", caught.message);
    }
}

fn run() {
    IS_RUNNER.set(true);
    #[cfg(target_os = "linux")]
    crate::os::worker::block_signals();
    let mut callbacks = lock();
    loop {
        if let Some(callback) = callbacks.queue.pop_front() {
            drop(callbacks);
            run_one(callback);
            callbacks = lock();
            continue;
        }
        // One of the crate's own threads only while it rests: in a callback it may hold locks of the user's.
        #[cfg(target_os = "linux")]
        let _own = crate::os::task::OwnThread::register();
        let waited = MORE.wait_timeout(callbacks, LINGER);
        let (queue, time) = waited.unwrap_or_else(PoisonError::into_inner);
        callbacks = queue;
        if time.timed_out() && callbacks.queue.is_empty() {
            callbacks.runner = None;
            return;
        }
    }
}

#[cfg(target_os = "linux")]
fn generation() -> u32 {
    crate::os::fork::generation()
}

#[cfg(not(target_os = "linux"))]
fn generation() -> u32 {
    0
}
