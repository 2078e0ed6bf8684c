//! [`lend`]: lets a pool's workers run code that borrows from the caller's stack.
//!
//! A job in a pool's queue may live for any time, and what `map` works with must not be used after
//! `map` has returned. So the queue holds [`ScopedWork`] instead. It leads to the work until its
//! owner takes the work back. Taking it back waits for the workers that are using the work. Scoped
//! work that is still queued is then empty, and costs a worker one look.
//!
//! This module needs `unsafe`, because no lifetime says "until taken back".
#![allow(unsafe_code)]

use std::mem;
use std::sync::Arc;

use super::task::Job;
use crate::error::TaskError;
use crate::shim::{Condvar, Mutex};

/// Work that is done in parts, by any thread.
pub(super) trait Work: Sync {
    /// Does one part, if one is left. Must not unwind.
    fn do_part(&self);
}

/// A borrow of some [`Work`] that ends when its owner says so.
pub(super) struct ScopedWork {
    terms: Mutex<Terms>,
    /// Wakes the owner when there are no users any more.
    unused: Condvar,
}

struct Terms {
    /// The work; `None` once it was taken back.
    work: Option<&'static dyn Work>,
    /// How many threads are using `work`. They have copied it from here while it was there.
    users: usize,
}

/// Lends `work` as long as `body` runs. It is taken back before this returns or unwinds.
pub(super) fn lend<'w, T>(
    work: &'w (dyn Work + 'w),
    body: impl FnOnce(&Arc<ScopedWork>) -> T,
) -> T {
    // SAFETY: source and target differ in lifetimes only, so their layouts are the same. The target
    // claims to live for ever, where `work` is valid for the length of this call at least. No code
    // relies on that claim: the reference is stored in `terms`, which no code outside this module
    // reads, and only `ScopedWork::run` copies it from there. `run` counts itself as a user under
    // the lock before it copies, and stops being one after its last use. The guard `TakeBack`
    // removes the reference under the same lock and then waits until there are no users. The guard
    // is a local of this function that no other code can see, so it is dropped when this function
    // returns or unwinds, and cannot be left out.
    let work =
        unsafe { mem::transmute::<&'w (dyn Work + 'w), &'static (dyn Work + 'static)>(work) };
    let scoped = Arc::new(ScopedWork {
        terms: Mutex::new(Terms {
            work: Some(work),
            users: 0,
        }),
        unused: Condvar::new(),
    });
    let _guard = TakeBack(&scoped);
    body(&scoped)
}

struct TakeBack<'l>(&'l ScopedWork);

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        let mut terms = self.0.terms.lock();
        terms.work = None;
        self.0
            .unused
            .wait_while(&mut terms, |terms| terms.users > 0);
    }
}

impl Job for ScopedWork {
    fn run(&self) {
        let work = {
            let mut terms = self.terms.lock();
            // If the work was taken back, this job is left over and does nothing.
            let Some(work) = terms.work else { return };
            terms.users += 1;
            work
        };
        let _user = User(self);
        work.do_part();
    }

    /// Does its part all the same: the owner waits for it. The work knows that it is cancelled, and
    /// takes little time.
    fn cancel(&self, _reason: TaskError) {
        self.run();
    }
}

/// A thread that is counted in [`Terms::users`].
struct User<'l>(&'l ScopedWork);

impl Drop for User<'_> {
    fn drop(&mut self) {
        let mut terms = self.0.terms.lock();
        terms.users -= 1;
        if terms.users == 0 && terms.work.is_none() {
            self.0.unused.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Work that waits in the middle of a part until it is told to go on.
    struct Slow<'a> {
        started: &'a AtomicUsize,
        go_on: &'a AtomicUsize,
        ended: &'a AtomicUsize,
    }

    impl Work for Slow<'_> {
        fn do_part(&self) {
            self.started.fetch_add(1, Ordering::SeqCst);
            while self.go_on.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn until(counter: &AtomicUsize, value: usize) {
        while counter.load(Ordering::SeqCst) < value {
            thread::yield_now();
        }
    }

    #[test]
    fn a_lease_waits_for_its_users_and_is_empty_afterwards() {
        let [started, go_on, ended] = [const { AtomicUsize::new(0) }; 3];
        let slow = Slow {
            started: &started,
            go_on: &go_on,
            ended: &ended,
        };
        let left_over = thread::scope(|scope| {
            let scoped = lend(&slow, |scoped| {
                let used = Arc::clone(scoped);
                scope.spawn(move || used.run());
                until(&started, 1);
                scope.spawn(|| go_on.store(1, Ordering::SeqCst));
                Arc::clone(scoped)
            });
            assert_eq!(
                ended.load(Ordering::SeqCst),
                1,
                "taken back in the middle of a part"
            );
            scoped
        });
        left_over.run();
        assert_eq!(
            started.load(Ordering::SeqCst),
            1,
            "used after it was taken back"
        );
    }

    #[test]
    fn a_lease_is_taken_back_when_its_owner_panics() {
        let [started, go_on, ended] = [const { AtomicUsize::new(0) }; 3];
        let slow = Slow {
            started: &started,
            go_on: &go_on,
            ended: &ended,
        };
        thread::scope(|scope| {
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                lend(&slow, |scoped| {
                    let used = Arc::clone(scoped);
                    scope.spawn(move || used.run());
                    until(&started, 1);
                    scope.spawn(|| go_on.store(1, Ordering::SeqCst));
                    panic!("in the owner");
                })
            }));
            assert!(unwound.is_err());
            assert_eq!(
                ended.load(Ordering::SeqCst),
                1,
                "unwound in the middle of a part"
            );
        });
    }
}
