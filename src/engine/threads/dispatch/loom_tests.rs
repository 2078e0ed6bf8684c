//! Models of the pool's queue and of the workers that sleep: the real dispatch, with workers that
//! are threads of the model. A lost wake-up is a deadlock, which loom reports: no later task and no
//! `close` repairs it, because each model waits for its tasks first.

use std::sync::Arc;

use loom::thread;

use super::{Dispatch, Posted};
use crate::engine::threads::idle::Counters;
use crate::engine::threads::task::Job;
use crate::error::{PoolError, TaskError};
use crate::shim::{Condvar, Mutex};

/// Tries the orders with at most this many switches away from a thread that could go on. Each
/// further switch takes some twenty times as long. `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(preemptions));
    model.max_branches = 10_000;
    model.check(run);
}

/// How the jobs of a model have ended.
#[derive(Default)]
struct Ends {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    begun: usize,
    run: usize,
    cancelled: usize,
}

impl Ends {
    fn note(&self, note: impl FnOnce(&mut Counts)) {
        note(&mut self.counts.lock());
        self.changed.notify_all();
    }

    fn wait(&self, mut is_so: impl FnMut(&Counts) -> bool) {
        let mut counts = self.counts.lock();
        self.changed
            .wait_while(&mut counts, |counts| !is_so(counts));
    }
}

/// A job that ends when `wanted` jobs have begun.
struct Together {
    ends: Arc<Ends>,
    wanted: usize,
}

impl Job for Together {
    fn run(&self) {
        self.ends.note(|counts| counts.begun += 1);
        if self.wanted > 1 {
            self.ends.wait(|counts| counts.begun >= self.wanted);
        }
        self.ends.note(|counts| counts.run += 1);
    }

    fn cancel(&self, _reason: TaskError) {
        self.ends.note(|counts| counts.cancelled += 1);
    }
}

struct Pool {
    dispatch: Arc<Dispatch>,
    workers: Vec<thread::JoinHandle<()>>,
    ends: Arc<Ends>,
}

impl Pool {
    fn new(workers: usize) -> Self {
        Self::with(workers, workers)
    }

    /// Makes a pool of which this many workers have been started.
    fn with(workers: usize, started: usize) -> Self {
        let mut pool = Self {
            dispatch: Arc::new(Dispatch::new(workers, false)),
            workers: Vec::new(),
            ends: Arc::default(),
        };
        for me in 0..started {
            pool.start(me);
        }
        pool
    }

    fn start(&mut self, me: usize) {
        let dispatch = Arc::clone(&self.dispatch);
        self.workers.push(thread::spawn(move || dispatch.work(me)));
    }

    fn job(&self, wanted: usize) -> Arc<dyn Job> {
        let ends = Arc::clone(&self.ends);
        Arc::new(Together { ends, wanted })
    }

    fn post_from_another_thread(&self) -> thread::JoinHandle<Posted> {
        let (dispatch, job) = (Arc::clone(&self.dispatch), self.job(1));
        thread::spawn(move || dispatch.post(job))
    }

    fn join(self) {
        for worker in self.workers {
            worker.join().unwrap();
        }
    }

    fn close(self) {
        self.dispatch.close();
        self.join();
    }
}

#[test]
fn a_worker_that_falls_asleep_runs_the_task() {
    model(3, || {
        let pool = Pool::new(1);
        let posted = pool.dispatch.post(pool.job(1));
        assert_ne!(posted, Posted::Closed);
        pool.ends.wait(|counts| counts.run == 1);
        pool.close();
    });
}

#[test]
fn two_tasks_of_two_threads_are_run_by_one_worker() {
    model(2, || {
        let pool = Pool::new(1);
        let other = pool.post_from_another_thread();
        pool.dispatch.post(pool.job(1));
        pool.ends.wait(|counts| counts.run == 2);
        other.join().unwrap();
        pool.close();
    });
}

/// The first task ends when the second has begun: a task must not be left to a worker that is busy.
#[test]
fn two_tasks_run_on_two_workers() {
    model(1, || {
        let pool = Pool::new(2);
        pool.dispatch.post(pool.job(2));
        pool.dispatch.post(pool.job(2));
        pool.ends.wait(|counts| counts.run == 2);
        pool.close();
    });
}

/// Both tasks may have been left to a worker that was about to look for one, while the other
/// sleeps.
#[test]
fn a_worker_that_finds_a_task_wakes_another_for_the_next() {
    model(1, || {
        let mut pool = Pool::with(2, 1);
        while pool.dispatch.idle.counters().asleep() == 0 {
            thread::yield_now();
        }
        pool.start(1);
        // The second worker may search or have fallen asleep.
        let has_begun = |counters: Counters| counters.searching() > 0 || counters.asleep() == 2;
        while !has_begun(pool.dispatch.idle.counters()) {
            thread::yield_now();
        }
        pool.dispatch.post(pool.job(2));
        pool.dispatch.post(pool.job(2));
        pool.ends.wait(|counts| counts.run == 2);
        pool.close();
    });
}

/// A pool that is closed runs what it has taken, and refuses the rest as closed.
#[test]
fn a_task_beside_close_runs_or_is_refused() {
    model(3, || {
        let pool = Pool::new(1);
        let other = pool.post_from_another_thread();
        let (dispatch, ends) = (Arc::clone(&pool.dispatch), Arc::clone(&pool.ends));
        pool.close();
        let posted = other.join().unwrap();
        let run = ends.counts.lock().run;
        assert!(run == 1 || posted == Posted::Closed, "{run} {posted:?}");
        assert!(run == 1 || !dispatch.queue.is_empty());
    });
}

#[test]
fn a_task_beside_cancel_runs_or_is_cancelled_or_refused() {
    model(3, || {
        let pool = Pool::new(1);
        let other = pool.post_from_another_thread();
        pool.dispatch.cancel();
        let posted = other.join().unwrap();
        let ends = Arc::clone(&pool.ends);
        pool.join();
        let counts = ends.counts.lock();
        let ended = counts.run + counts.cancelled;
        assert!(ended == 1 || posted == Posted::Closed, "{ended} {posted:?}");
    });
}

/// A call of `map` posts jobs also while its pool is being closed.
#[test]
fn close_waits_for_a_call_and_runs_its_jobs() {
    model(3, || {
        let pool = Pool::new(1);
        let (dispatch, job) = (Arc::clone(&pool.dispatch), pool.job(1));
        let ends = Arc::clone(&pool.ends);
        let caller = thread::spawn(move || match dispatch.start_map() {
            Ok(_mapping) => {
                dispatch.post(job);
                ends.wait(|counts| counts.run == 1);
            }
            Err(error) => assert_eq!(error, PoolError::Closed),
        });
        pool.close();
        caller.join().unwrap();
    });
}
