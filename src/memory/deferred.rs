//! Releases that could not be done at once.
//!
//! To give something back (a permit, a claim, a block) takes an inner lock, and a process that
//! drops a guard has no time to wait for it. If the lock is held by a process that is stopped, the
//! release is put off: a thread of this process tries again until it is done. Until then the object
//! counts the thing as held, which is also what it is if this process is killed meanwhile: it comes
//! back with all that the dead process has held. What a process was to change beyond that (permits
//! that it adds, a barrier that it breaks) is lost if it is killed before.
//!
//! The thread is there only while something is put off. A process that ends by itself waits for it,
//! [`AT_EXIT`] at most.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::wait_mode::soon;
use crate::os::exit::{self, Turn};
use crate::os::fork::{self, PerProcess};
use crate::os::task::OwnThread;
use crate::os::worker;

/// How long a process that ends waits for what it has put off.
const AT_EXIT: Duration = Duration::from_secs(2);

/// Until when an attempt at a release may wait for a lock that is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// For [`BRIEF`](super::wait_mode::BRIEF), in a first attempt. Such waits one after the other
    /// would add up, so it does not wait if something is put off already. The clock is read only if
    /// a lock is held.
    Brief,
    Until(Instant),
}

impl Limit {
    /// The time, as locks want it.
    #[expect(clippy::unnecessary_wraps, reason = "as locks want it")]
    pub(crate) fn at(self) -> Option<Instant> {
        Some(match self {
            Self::Brief if is_pending() => Instant::now(),
            Self::Brief => soon(),
            Self::Until(time) => time,
        })
    }
}

/// Tries once, waiting for locks as long as the limit allows. Whether it is done.
type Release = Box<dyn FnMut(Limit) -> bool + Send>;

#[derive(Default)]
struct Own {
    state: Mutex<State>,
    /// Told when the thread ends.
    is_over: Condvar,
}

#[derive(Default)]
struct State {
    releases: Vec<Release>,
    /// Whether a thread tries them. It has those that it is at, and looks for more before it ends.
    has_thread: bool,
}

/// [`fork::generation`] of the process that has put something off, from 1 on; 0: none has.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// A forked child does not have its parent's: what they give back is the parent's.
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
        // Nothing that can panic is done with it half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_pending() -> bool {
    // Relaxed: nothing is handed over by it.
    PENDING.load(Ordering::Relaxed) == fork::generation() + 1
}

/// Does the release now, or later if a lock that it needs cannot be had within
/// [`BRIEF`](super::wait_mode::BRIEF).
///
/// `release` tries once, and says whether it is done. It waits for locks as long as the limit
/// allows.
pub(crate) fn release(mut release: impl FnMut(Limit) -> bool + Send + 'static) {
    if !release(Limit::Brief) {
        put_off(release);
    }
}

/// Has the release done by the thread that is there for that.
pub(crate) fn put_off(release: impl FnMut(Limit) -> bool + Send + 'static) {
    exit::call_at_exit(Turn::Releases, finish);
    let mut state = own().lock();
    state.releases.push(Box::new(release));
    // Under the lock, as the opposite.
    PENDING.store(fork::generation() + 1, Ordering::Relaxed);
    drop(state);
    attend();
}

/// Sees to it that there is a thread for what is put off. Called again by those who wait, in case
/// the system has refused one.
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
    let thread = thread::Builder::new().name("manyhands-release".to_owned());
    let started = thread.spawn(|| {
        worker::block_signals();
        let _own = OwnThread::register();
        run();
    });
    if let Err(error) = started {
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

/// Tries each once, and keeps those that are not done.
fn attempt(releases: &mut Vec<Release>) {
    // The first one that has to wait uses up the time of those behind it, which only try then. So
    // one round is short however many there are, and a lock that is free is never waited for behind
    // one that is not.
    let end = Limit::Until(soon());
    releases.retain_mut(|release| {
        let attempt = catch_unwind(AssertUnwindSafe(|| release(end)));
        // The panic hook has told why. It would be the same again, and the others are not to
        // suffer.
        !attempt.unwrap_or(true)
    });
}

/// This process is ending by itself.
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
