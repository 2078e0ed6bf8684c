//! Models of a submitted task and its handle, and of scoped work and its owner.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::thread;

use super::{Job, Task};
use crate::call::Limits;
use crate::engine::threads::pool_id::OwnPool;
use crate::engine::threads::scoped_work::{Work, lend};
use crate::error::TaskError;
use crate::future::Pending;
use crate::shim::AtomicUsize;

/// Tries the orders with at most three switches away from a thread that could go on.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(run);
}

fn task() -> Arc<Task<fn(u32) -> u32, u32, u32>> {
    let double: fn(u32) -> u32 = |x| 2 * x;
    Arc::new(Task::new(
        (double, 21),
        Limits::none(),
        OwnPool::new(),
        (1, 0),
    ))
}

#[test]
fn the_handle_hears_of_the_end() {
    model(|| {
        let task = task();
        let job = Arc::clone(&task);
        let worker = thread::spawn(move || job.run());
        assert!(task.wait(None));
        assert_eq!(task.take(), Ok(42));
        worker.join().unwrap();
    });
}

/// Exactly one of the two threads ends the task.
#[test]
fn the_handle_hears_of_a_cancellation() {
    model(|| {
        let task = task();
        let job = Arc::clone(&task);
        let worker = thread::spawn(move || job.run());
        let cancelled = Arc::clone(&task);
        let canceller = thread::spawn(move || Pending::cancel(&*cancelled));
        assert!(task.wait(None));
        let outcome = task.take();
        worker.join().unwrap();
        if canceller.join().unwrap() {
            assert_eq!(outcome, Err(TaskError::Cancelled {}));
        } else {
            assert_eq!(outcome, Ok(42));
        }
    });
}

#[test]
fn a_hook_runs_once_and_finds_the_task_done() {
    model(|| {
        let task = task();
        let job = Arc::clone(&task);
        let worker = thread::spawn(move || job.run());
        let runs = Arc::new(AtomicUsize::new(0));
        let (count, ended) = (Arc::clone(&runs), Arc::clone(&task));
        task.on_end(Box::new(move || {
            assert!(ended.is_done());
            count.fetch_add(1, Ordering::Relaxed);
        }));
        worker.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    });
}

/// Work that lets loom check that no worker uses it after its owner has taken it back.
struct Parts(loom::cell::UnsafeCell<u32>);

// SAFETY: loom reports if a thread reads it while another writes to it.
#[allow(unsafe_code)]
unsafe impl Sync for Parts {}

impl Work for Parts {
    fn do_part(&self) {
        self.0.with(|_| thread::yield_now());
    }
}

/// After the work was taken back, the owner writes to what it has lent.
#[test]
fn no_worker_is_at_what_was_taken_back() {
    model(|| {
        let parts = Parts(loom::cell::UnsafeCell::new(0));
        let workers = lend(&parts, |scoped| {
            [(); 2].map(|()| {
                let scoped = Arc::clone(scoped);
                thread::spawn(move || scoped.run())
            })
        });
        parts.0.with_mut(|_| ());
        for worker in workers {
            worker.join().unwrap();
        }
    });
}
