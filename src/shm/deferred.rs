//! Releases that could not be done at once.
//!
//! To give something back (a permit, a claim, a block) takes an inner lock, and whoever drops a guard has no time to wait
//! for it. If the lock is held by a process that is stopped, the release is put off: a thread of this process tries again
//! until it is done. Until then the object counts the thing as held, which is also what it is if the process is killed
//! meanwhile: it comes back with all that the dead process has held.
//!
//! The thread is there only while something is put off.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::wait_mode::soon;
use crate::os::fork::PerProcess;
use crate::os::task::OwnThread;

/// Tries once, waiting for locks until the time given at most. Whether it is done.
type Release = Box<dyn FnMut(Instant) -> bool + Send>;

#[derive(Default)]
struct Deferred {
    releases: Vec<Release>,
    has_thread: bool,
}

/// A forked child does not have its parent's: what they give back is the parent's.
fn deferred() -> MutexGuard<'static, Deferred> {
    static OWN: PerProcess<Mutex<Deferred>> = PerProcess::new(Mutex::new(Deferred {
        releases: Vec::new(),
        has_thread: false,
    }));
    // Nothing that can panic is done with it half-way.
    OWN.own().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the release now, or later if a lock that it needs cannot be had within [`BRIEF`](super::wait_mode::BRIEF).
///
/// `release` tries once, and says whether it is done. It waits for locks until the time given at most.
pub(crate) fn release(mut release: impl FnMut(Instant) -> bool + Send + 'static) {
    if !release(soon()) {
        put_off(release);
    }
}

/// Has the release done by the thread that is there for that.
pub(crate) fn put_off(release: impl FnMut(Instant) -> bool + Send + 'static) {
    let mut deferred = deferred();
    deferred.releases.push(Box::new(release));
    if deferred.has_thread {
        return;
    }
    deferred.has_thread = true;
    drop(deferred);
    let thread = thread::Builder::new().name("manyhands-release".to_owned());
    let started = thread.spawn(|| {
        let _own = OwnThread::register();
        run();
    });
    if let Err(error) = started {
        // Then the caller waits after all.
        log::warn!(
            "a release that is put off is waited for, because no thread can be started: {error}"
        );
        run();
    }
}

/// Tries all that is put off until nothing is left.
fn run() {
    loop {
        let mut releases = {
            let mut deferred = deferred();
            if deferred.releases.is_empty() {
                deferred.has_thread = false;
                return;
            }
            std::mem::take(&mut deferred.releases)
        };
        // The first one that has to wait uses up the time of those behind it, which only try then. So one round is short
        // however many there are, and a lock that is free is never waited for behind one that is not.
        let end = soon();
        releases.retain_mut(|release| !release(end));
        deferred().releases.append(&mut releases);
    }
}
