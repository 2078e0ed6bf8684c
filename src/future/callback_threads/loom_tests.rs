//! Models of the threads that run callbacks.
//!
//! Their sleeps have an end. In some models no time passes until all callbacks have run: then a
//! missing wake-up is a deadlock, which loom reports. In the other models time passes at any
//! moment.

use std::sync::Arc;

use super::{Callback, Threads};
use crate::shim::{Condvar, Mutex};

/// Tries the orders with at most two switches away from a thread that could go on.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn(&'static Threads) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(2));
    model.max_branches = 10_000;
    // The threads borrow it for ever. The leak takes some megabytes.
    model.check(move || run(Box::leak(Box::default())));
}

/// How many callbacks have begun, and how many have run.
#[derive(Default)]
struct Ends {
    counts: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Ends {
    /// Returns a callback that returns when this many callbacks have begun.
    fn callback(self: &Arc<Self>, wanted: usize) -> Callback {
        let ends = Arc::clone(self);
        Box::new(move || {
            let mut counts = ends.counts.lock();
            counts.0 += 1;
            ends.changed.notify_all();
            ends.changed
                .wait_while(&mut counts, |counts| counts.0 < wanted);
            counts.1 += 1;
            ends.changed.notify_all();
        })
    }

    fn wait(&self, run: usize) {
        let mut counts = self.counts.lock();
        self.changed
            .wait_while(&mut counts, |counts| counts.1 < run);
    }
}

impl Threads {
    fn push(&'static self, callback: Callback) {
        let mut state = self.lock();
        state.queue.push_back(callback);
        assert!(self.attend(state));
    }
}

#[test]
fn a_thread_that_sleeps_is_woken_for_the_next_callback() {
    model(|threads| {
        threads.changed.stop_time();
        let ends = Arc::new(Ends::default());
        for run in 1..=2 {
            threads.push(ends.callback(1));
            ends.wait(run);
        }
        threads.changed.let_time_pass();
    });
}

#[test]
fn callbacks_of_two_threads_are_run() {
    model(|threads| {
        threads.changed.stop_time();
        let ends = Arc::new(Ends::default());
        let callback = ends.callback(1);
        let other = loom::thread::spawn(move || threads.push(callback));
        threads.push(ends.callback(1));
        ends.wait(2);
        other.join().unwrap();
        threads.changed.let_time_pass();
    });
}

/// A thread that has been free for long may be about to end.
#[test]
fn a_callback_beside_the_end_of_a_thread_is_run() {
    model(|threads| {
        let ends = Arc::new(Ends::default());
        for run in 1..=2 {
            threads.push(ends.callback(1));
            ends.wait(run);
        }
    });
}

/// The first callback returns when the second has begun.
#[test]
fn a_callback_that_waits_for_the_next_gets_it() {
    model(|threads| {
        let ends = Arc::new(Ends::default());
        threads.push(ends.callback(2));
        threads.push(ends.callback(2));
        ends.wait(2);
    });
}
