//! The thread that fires deadlines of calls for which no caller waits, of submitted tasks and lazy
//! calls, and that ends the pauses of such tasks on threads. It sleeps until the first of them, and
//! ends when there is none.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use crate::os::fork::PerProcess;
use crate::panic;

/// How long the thread stays when there is nothing to fire: calls with deadlines often come one
/// after the other.
const LINGER: Duration = Duration::from_millis(50);

type Fire = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Deadlines {
    state: Mutex<State>,
    /// Wakes the thread.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What to fire, by its time and number.
    entries: BTreeMap<(Instant, u64), Fire>,
    /// The number of the next entry.
    next: u64,
    /// Whether the thread runs, or is about to.
    has_thread: bool,
}

/// The deadlines of this process. Not a lock of `parking_lot`, and each process has its own: see
/// `callback_threads::THREADS`.
#[cfg(target_os = "linux")]
static DEADLINES: PerProcess<Deadlines> = PerProcess::new(Deadlines::new());
#[cfg(not(target_os = "linux"))]
static DEADLINES: Deadlines = Deadlines::new();

fn own() -> &'static Deadlines {
    #[cfg(target_os = "linux")]
    return DEADLINES.own();
    #[cfg(not(target_os = "linux"))]
    return &DEADLINES;
}

/// A deadline that is to be fired. It is forgotten when this is dropped.
pub(crate) struct Entry {
    key: (Instant, u64),
    /// The list that it is on. That of a forked child's parent is not to be touched.
    deadlines: &'static Deadlines,
}

/// Calls `fire` at this time, on a thread that holds no lock.
///
/// # Errors
///
/// If the system refuses the thread.
pub(crate) fn at(time: Instant, fire: Fire) -> io::Result<Entry> {
    let deadlines = own();
    let mut state = deadlines.lock();
    let key = (time, state.next);
    state.next += 1;
    state.entries.insert(key, fire);
    let entry = Entry { key, deadlines };
    if state.has_thread {
        let is_first = state
            .entries
            .first_key_value()
            .is_some_and(|(first, _)| *first == key);
        drop(state);
        if is_first {
            deadlines.changed.notify_one();
        }
        return Ok(entry);
    }
    // Under the lock: another caller must not rely on a thread that the system refuses.
    let started = start(move || deadlines.serve());
    state.has_thread = started.is_ok();
    drop(state);
    started.map(|()| entry)
}

#[cfg(target_os = "linux")]
fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    crate::os::task::start("manyhands-time", Some(256 << 10), work).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("manyhands-time".to_owned());
    thread.spawn(work).map(drop)
}

impl Deadlines {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                next: 0,
                has_thread: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic happens under the lock, so poison is ignored.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fires what is due, as the thread, until nothing is left.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let first = state.entries.first_key_value().map(|(key, _)| key.0);
            let left = first.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                let due = state.entries.pop_first();
                drop(state);
                // If this was the last to know a task, what the task holds is dropped here, by code
                // of the user that may panic.
                if let Some((_, fire)) = due
                    && let Err(caught) = panic::catch(fire)
                {
                    log::error!(
                        "a task whose deadline has passed panicked: {}",
                        caught.message
                    );
                }
                state = self.lock();
                continue;
            }
            let waited = self.changed.wait_timeout(state, left.unwrap_or(LINGER));
            let (held, time) = waited.unwrap_or_else(PoisonError::into_inner);
            state = held;
            if time.timed_out() && state.entries.is_empty() {
                state.has_thread = false;
                return;
            }
        }
    }
}

impl Entry {
    /// Forgets the deadline, and has the thread end soon if it was the last. To drop it is cheaper:
    /// then the thread sleeps until that time.
    pub(crate) fn forget(self) {
        let deadlines = self.deadlines;
        drop(self);
        if std::ptr::eq(deadlines, own()) {
            deadlines.changed.notify_one();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !std::ptr::eq(self.deadlines, own()) {
            return;
        }
        let (fire, is_last) = {
            let mut state = self.deadlines.lock();
            let fire = state.entries.remove(&self.key);
            (fire, state.entries.is_empty())
        };
        if is_last {
            // The thread sleeps until this deadline, and must not stay for it.
            self.deadlines.changed.notify_one();
        }
        drop(fire);
    }
}
