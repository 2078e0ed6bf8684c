//! The threads that run callbacks.
//!
//! One thread at a time has the *turn*: it runs the queued callbacks one after the other. A
//! callback may wait for anything, also for what another callback does. So while callbacks are
//! queued and the thread with the turn is in one, another thread is free and watches it. If the
//! same callback still runs after [`IDLE_LIMIT`], the watching thread takes the turn and goes on
//! with the queue, and another thread watches from then on. The thread that lost the turn becomes
//! free when its callback returns. Quick callbacks need two threads, however many callbacks there
//! are. Callbacks that wait get as many threads as wait at once.
//!
//! A free thread ends after [`LINGER`], or at once if there are more than [`KEPT`] of them.
//!
//! If the system refuses a thread and none is free, no callback is lost. The thread that found the
//! task ended runs what is queued as soon as it holds no lock ([`run_here`]). What is queued behind
//! a callback that waits is run by the first thread that returns from one, or that waits in `close`
//! or for callbacks ([`help`]). Each of these asks the system again first.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::copies::Original;
#[cfg(target_os = "linux")]
use crate::os::fork::PerProcess;
use crate::panic;
use crate::shim::plain::{Condvar, Mutex, MutexGuard};
use crate::shim::{Stopwatch, thread};

/// How long one callback may hold up the others.
const IDLE_LIMIT: Duration = Duration::from_millis(5);

/// How long a free thread stays for another callback.
const LINGER: Duration = Duration::from_millis(50);

/// How many free threads stay: the one that ran the last callback, and the one that watched it.
const KEPT: usize = 2;

/// How long after a refusal the system is asked for a thread again.
pub(super) const RETRY: Duration = Duration::from_millis(50);

pub(super) type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Threads {
    state: Mutex<State>,
    /// Wakes a free thread.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Callback>,
    /// Threads that are not in a callback, including those that are being started. Each of them
    /// looks at the queue before it sleeps.
    free: usize,
    /// Number of the turn. A thread that takes a callback begins a new one.
    turn: u64,
    /// When the thread that has the turn entered its callback; `None` if it is not in one.
    since: Option<Stopwatch>,
    /// Whether a free thread sleeps until `since` is too long ago.
    is_watched: bool,
    /// When the system refused a thread; `None` after one was started.
    refused: Option<Stopwatch>,
}

/// The threads of this process. Not a lock of `parking_lot`, and each process has its own: a forked
/// child gets a copy of the parent's, which may be locked by a thread that the child does not have.
#[cfg(target_os = "linux")]
static THREADS: PerProcess<Threads> = PerProcess::new(Threads::new());
#[cfg(not(target_os = "linux"))]
static THREADS: Threads = Threads::new();

fn own() -> &'static Threads {
    #[cfg(target_os = "linux")]
    return THREADS.own();
    #[cfg(not(target_os = "linux"))]
    return &THREADS;
}

thread_local! {
    /// Whether this thread must run callbacks itself, as soon as it holds no lock.
    static MUST_RUN: Cell<bool> = const { Cell::new(false) };
}

/// Runs a callback soon, after those that came before it, on a thread for callbacks. Returns false
/// if none is free and the system refuses one: then this thread must call [`run_here`] when it
/// holds no lock.
pub(super) fn call(callback: Callback) -> bool {
    let threads = own();
    let mut state = threads.lock();
    state.queue.push_back(callback);
    let is_cared_for = threads.attend(state);
    if !is_cared_for {
        MUST_RUN.set(true);
    }
    is_cared_for
}

/// Runs the queued callbacks on this thread, if [`call`] has asked for that and the system still
/// refuses a thread.
pub(super) fn run_here() {
    if !MUST_RUN.take() {
        return;
    }
    let threads = own();
    while !threads.attend(threads.lock()) {
        let callback = threads.lock().queue.pop_front();
        run(callback);
    }
}

/// Runs the queued callbacks on this thread, if no other thread is free for them and the system
/// refuses one. A thread that waits for callbacks calls this every [`RETRY`].
pub(super) fn help() {
    MUST_RUN.set(true);
    run_here();
}

fn run(callback: Option<Callback>) {
    let Some(callback) = callback else {
        return;
    };
    let original = Original::here();
    let outcome = panic::catch(callback);
    // A copy that the callback has forked ends here: neither what is queued nor what this thread
    // does next is for the copy to do.
    original.end_copy_after(&outcome);
    if let Err(caught) = outcome {
        log::error!("a callback of a task panicked: {}", caught.message);
    }
}

impl Threads {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                free: 0,
                turn: 0,
                since: None,
                is_watched: false,
                refused: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic happens under the lock, so poison is ignored.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a free thread looks at the queue. Returns false if there is none.
    fn attend(&'static self, state: MutexGuard<'_, State>) -> bool {
        if state.queue.is_empty() {
            return true;
        }
        if state.free > 0 {
            // If no callback runs, a free thread must take this one. If one runs that no thread
            // watches, a free thread must watch it. Otherwise the watching thread looks at the
            // queue in time.
            if state.since.is_none() || !state.is_watched {
                self.changed.notify_one();
            }
            return true;
        }
        self.start(state)
    }

    /// Starts a free thread. Returns false if the system refuses it.
    fn start(&'static self, mut state: MutexGuard<'_, State>) -> bool {
        // Other threads count on this one from now on.
        state.free += 1;
        drop(state);
        #[cfg(target_os = "linux")]
        let (coming, mask) = (
            crate::os::task::Coming::new(),
            crate::os::worker::programs_mask(),
        );
        let started = thread::Builder::new()
            .name("manyhands-call".to_owned())
            .spawn(move || {
                #[cfg(target_os = "linux")]
                let _there = crate::os::task::There::begin(coming);
                #[cfg(target_os = "linux")]
                crate::os::worker::block_signals(mask);
                self.serve();
            });
        #[cfg(target_os = "linux")]
        let started =
            started.map_err(|error| crate::os::task::not_started("manyhands-call", error));
        let mut state = self.lock();
        let Err(error) = started else {
            state.refused = None;
            return true;
        };
        state.free -= 1;
        let is_first = state.refused.replace(Stopwatch::start()).is_none();
        drop(state);
        if is_first {
            log::error!("no further thread for callbacks, which may run later than usual: {error}");
        }
        false
    }

    /// Runs callbacks, from the thread's start, when it is counted as free, to its end.
    fn serve(&'static self) {
        let mut state = self.lock();
        loop {
            if state.may_take() {
                if state.queue.len() > 1 && state.free == 1 && state.may_start() {
                    // The other callbacks must not be left without a free thread. It is started
                    // without the lock, so this thread looks again afterwards.
                    self.start(state);
                    state = self.lock();
                    continue;
                }
                let (callback, turn) = state.take();
                if !state.queue.is_empty() && !state.is_watched {
                    self.changed.notify_one();
                }
                drop(state);
                run(callback);
                state = self.lock();
                // The thread is one too many.
                if state.give_back(turn) {
                    state.free -= 1;
                    return;
                }
                continue;
            }
            // A thread watches if callbacks are queued, one runs and no other thread watches it.
            // Else it waits for a callback.
            let (time, watches) = match &state.since {
                Some(since) if !state.queue.is_empty() && !state.is_watched => {
                    (IDLE_LIMIT.saturating_sub(since.elapsed()), true)
                }
                _ => (LINGER, false),
            };
            let is_over;
            (state, is_over) = self.sleep(state, time, watches);
            if is_over && !watches && !state.may_take() && !state.needs_watch() {
                state.free -= 1;
                return;
            }
        }
    }

    /// Sleeps until it is woken, or until the time is over. Returns true if the time is over.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        time: Duration,
        watches: bool,
    ) -> (MutexGuard<'a, State>, bool) {
        // The thread counts as one of the crate's own only while it sleeps: in a callback it may
        // hold locks of the user's.
        #[cfg(target_os = "linux")]
        let _own = crate::os::task::OwnThread::register();
        state.is_watched |= watches;
        let waited = self.changed.wait_timeout(state, time);
        let (mut state, end) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_watched &= !watches;
        (state, end.timed_out())
    }
}

impl State {
    /// Returns whether a free thread may take the next callback.
    fn may_take(&self) -> bool {
        let is_over = |since: &Stopwatch| since.elapsed() >= IDLE_LIMIT;
        !self.queue.is_empty() && self.since.as_ref().is_none_or(is_over)
    }

    /// Returns whether callbacks are queued, and no thread watches the one that runs.
    fn needs_watch(&self) -> bool {
        !self.queue.is_empty() && !self.is_watched
    }

    fn may_start(&self) -> bool {
        self.refused
            .as_ref()
            .is_none_or(|refused| refused.elapsed() >= RETRY)
    }

    /// Takes the turn and the next callback.
    fn take(&mut self) -> (Option<Callback>, u64) {
        self.free -= 1;
        self.turn += 1;
        self.since = Some(Stopwatch::start());
        (self.queue.pop_front(), self.turn)
    }

    /// Gives back the turn, after the callback that was taken with it has returned. Returns true if
    /// its thread is one too many.
    fn give_back(&mut self, turn: u64) -> bool {
        self.free += 1;
        if self.turn == turn {
            self.since = None;
        }
        self.free > KEPT && (self.queue.is_empty() || self.since.is_some())
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
