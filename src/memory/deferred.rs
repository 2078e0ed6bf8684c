//! Releases that could not be done at once.
//!
//! A release gives something back (a permit, a claim, a block), for which it needs an inner lock. A
//! process that drops a guard must not wait for that lock. If a stopped process holds the lock, the
//! release is put off: a thread of this process tries again until it is done. Until then the object
//! counts the thing as held. If this process is killed meanwhile, the thing is held by a dead
//! process, and comes back with all else that it held. Other changes that the process was about to
//! make (permits that it adds, a barrier that it breaks) are lost if it is killed before they are
//! made.
//!
//! The thread exists only while something is put off. A process that ends by itself waits for it,
//! [`AT_EXIT`] at most.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wait_mode::soon;
use crate::os::exit::{self, Turn};
use crate::os::fork::{self, PerProcess};
use crate::os::task;

/// How long a process that ends waits for what it has put off.
const AT_EXIT: Duration = Duration::from_secs(2);

/// Until when an attempt at a release may wait for a lock that is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// For [`BRIEF`](super::wait_mode::BRIEF), in a first attempt. Several such waits, one after
    /// the other, would add up, so it does not wait if something is put off already. The clock is
    /// read only if a lock is held.
    Brief,
    Until(Instant),
}

impl Limit {
    /// Returns the time in the form that locks take.
    #[expect(clippy::unnecessary_wraps, reason = "as locks want it")]
    pub(crate) fn at(self) -> Option<Instant> {
        Some(match self {
            Self::Brief if is_pending() => Instant::now(),
            Self::Brief => soon(),
            Self::Until(time) => time,
        })
    }
}

/// An attempt at a release: tries once, waits for locks within the limit, and returns whether it is
/// done.
type Release = Box<dyn FnMut(Limit) -> bool + Send>;

#[derive(Default)]
struct Own {
    state: Mutex<State>,
    /// Notified when the thread ends.
    is_over: Condvar,
}

#[derive(Default)]
struct State {
    releases: Vec<Release>,
    /// Whether a thread tries the releases. The thread has taken those that it tries at the moment,
    /// and looks for more before it ends.
    has_thread: bool,
}

/// [`fork::generation`] of the process that has put something off, from 1 on; 0: none has.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// Returns the state of this process. A forked child does not have its parent's: the parent gives
/// those things back itself.
fn own() -> &'static Own {
    static OWN: PerProcess<Own> = PerProcess::new(Own {
        state: Mutex::new(State {
            releases: Vec::new(),
            has_thread: false,
        }),
        is_over: Condvar::new(),
    });
    OWN.own()
}

impl Own {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_pending() -> bool {
    // Relaxed: this value hands over no other data.
    PENDING.load(Ordering::Relaxed) == fork::generation() + 1
}

/// Does the release now, or later if a lock that it needs cannot be taken within
/// [`BRIEF`](super::wait_mode::BRIEF).
///
/// `release` tries once, and returns whether it is done. It waits for locks within the limit.
pub(crate) fn release(mut release: impl FnMut(Limit) -> bool + Send + 'static) {
    if !release(Limit::Brief) {
        put_off(release);
    }
}

/// Leaves the release to the thread for releases that are put off.
pub(crate) fn put_off(release: impl FnMut(Limit) -> bool + Send + 'static) {
    exit::call_at_exit(Turn::Releases, finish);
    let mut state = own().lock();
    state.releases.push(Box::new(release));
    // Stored under the lock, like the 0 that `run` stores.
    PENDING.store(fork::generation() + 1, Ordering::Relaxed);
    drop(state);
    attend();
}

/// Starts a thread for what is put off, unless there is one. Processes that wait call it again, in
/// case the system has refused a thread before.
pub(crate) fn attend() {
    if !is_pending() {
        return;
    }
    let own = own();
    {
        let mut state = own.lock();
        if state.has_thread || state.releases.is_empty() {
            return;
        }
        state.has_thread = true;
    }
    if let Err(error) = task::start("manyhands-release", None, run) {
        own.lock().has_thread = false;
        log::warn!("what is put off waits for a thread: {error}");
    }
}

/// Tries all that is put off until nothing is left.
fn run() {
    let own = own();
    loop {
        let mut releases = {
            let mut state = own.lock();
            if state.releases.is_empty() {
                state.has_thread = false;
                PENDING.store(0, Ordering::Relaxed);
                own.is_over.notify_all();
                return;
            }
            std::mem::take(&mut state.releases)
        };
        attempt(&mut releases);
        own.lock().releases.append(&mut releases);
    }
}

/// Tries each release once, and keeps those that are not done.
fn attempt(releases: &mut Vec<Release>) {
    // The first release that has to wait uses up the time of those behind it, which then only try.
    // So one round is short, however many there are. And a release whose lock is free is done in
    // the same round, also behind one whose lock is held.
    let end = Limit::Until(soon());
    releases.retain_mut(|release| {
        let attempt = catch_unwind(AssertUnwindSafe(|| release(end)));
        // The panic hook has told why. The release would panic again, so it is dropped, and the
        // others are still tried.
        !attempt.unwrap_or(true)
    });
}

/// Waits, when this process ends by itself, until what it has put off is done, for [`AT_EXIT`] at
/// most.
fn finish() {
    let (own, end) = (own(), Instant::now() + AT_EXIT);
    let mut state = own.lock();
    while Instant::now() < end {
        if state.has_thread {
            let left = end.saturating_duration_since(Instant::now());
            let waited = own.is_over.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        } else if state.releases.is_empty() {
            return;
        } else {
            // The system has refused a thread.
            let mut releases = std::mem::take(&mut state.releases);
            drop(state);
            attempt(&mut releases);
            state = own.lock();
            state.releases.append(&mut releases);
        }
    }
    log::warn!(
        "this process ends, and could not give back all that it had of shared objects: another process does not go on"
    );
}
