//! Models of signals, and of a wait for many tasks at once. A lost wake-up is a deadlock, which
//! loom reports.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use loom::thread;

use super::Signal;
use crate::error::TaskError;
use crate::future::{Board, Hook, Pending, PoolId, Reason, TaskFuture, Watch};
use crate::shim::AtomicUsize;

/// Tries the orders with at most three switches away from a thread that could go on.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(run);
}

fn spawn(signal: &Arc<Signal>, run: impl FnOnce(&Signal) + 'static) -> thread::JoinHandle<()> {
    let signal = Arc::clone(signal);
    thread::spawn(move || run(&signal))
}

#[test]
fn one_raise_wakes_all_who_wait() {
    model(|| {
        let signal = Arc::new(Signal::default());
        let waiters = [(); 2].map(|()| spawn(&signal, |signal| _ = signal.sleep(0, None)));
        signal.raise();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn the_second_of_two_raises_is_heard() {
    model(|| {
        let signal = Arc::new(Signal::default());
        let raiser = spawn(&signal, Signal::raise);
        let waiters = [(); 2].map(|()| spawn(&signal, |signal| assert!(signal.sleep(1, None))));
        signal.raise();
        raiser.join().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// A waiter whose time is up stays on the list without effect, and takes the raise from no other
/// waiter.
#[test]
fn a_waiter_that_gives_up_takes_no_raise() {
    model(|| {
        let signal = Arc::new(Signal::default());
        let late = spawn(&signal, |signal| _ = signal.sleep(0, Some(Instant::now())));
        let waiter = spawn(&signal, |signal| assert!(signal.sleep(0, None)));
        signal.raise();
        late.join().unwrap();
        waiter.join().unwrap();
    });
}

#[test]
fn a_hook_runs_once() {
    model(|| {
        let signal = Arc::new(Signal::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let raiser = spawn(&signal, Signal::raise);
        let count = Arc::clone(&runs);
        let hook = move || _ = count.fetch_add(1, Ordering::Relaxed);
        signal.on_raise(0, Box::new(hook));
        raiser.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    });
}

/// A task that ends when the test raises its signal.
#[derive(Default)]
struct Task {
    ended: Signal,
}

impl Pending<()> for Task {
    fn pool(&self) -> Option<PoolId> {
        None
    }

    fn is_done(&self) -> bool {
        self.ended.count() > 0
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.ended.sleep(0, deadline)
    }

    fn take(&self) -> Result<(), TaskError> {
        Ok(())
    }

    fn has_failed(&self) -> bool {
        false
    }

    fn is_running(&self) -> bool {
        !self.is_done()
    }

    fn cancel(&self) -> bool {
        false
    }

    fn stop(&self, _reason: Reason) {}

    fn keep(&self, watch: Watch) {
        drop(watch);
    }

    fn on_end(&self, hook: Hook) {
        self.ended.on_raise(0, hook);
    }
}

/// Two tasks of pools that have nothing to do with each other.
#[test]
fn a_wait_for_many_hears_of_each() {
    model(|| {
        let tasks = [(); 2].map(|()| Arc::new(Task::default()));
        let enders = tasks
            .clone()
            .map(|task| thread::spawn(move || task.ended.raise()));
        let futures = tasks.map(|task| TaskFuture::new(task));
        let mut board = Board::new((0..).zip(futures));
        let mut seen = [(); 2].map(|()| board.next(None).unwrap().unwrap().0);
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
        assert!(board.next(None).unwrap().is_none());
        for ender in enders {
            ender.join().unwrap();
        }
    });
}
