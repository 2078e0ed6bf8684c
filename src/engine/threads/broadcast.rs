//! `broadcast`: one call of a function on each thread of the pool.
//!
//! The parts go to the threads as rayon's own broadcast jobs, of which each thread has a queue. A
//! worker looks there before it falls asleep ([`Dispatch`]); one that waits in a `join` of rayon
//! runs its part meanwhile.

use std::sync::Arc;

use rayon::ThreadPool;

use super::counts;
use super::dispatch::Dispatch;
use crate::call::Limits;
use crate::copies::{self, Original};
use crate::error::TaskError;
use crate::shim::{Condvar, Mutex};

struct Broadcast<F, A, R> {
    function: F,
    /// The arguments of the threads that have not begun with their parts.
    arguments: Mutex<Vec<Option<A>>>,
    outcomes: Mutex<Vec<Option<Result<R, TaskError>>>>,
    /// Wakes the caller; goes with `outcomes`.
    part_ended: Condvar,
    limits: Limits,
    /// The stamp with which the parts were given out.
    queued: u64,
}

/// Gives each thread its part. Returns what waits for the outcomes, in the order of the threads.
pub(super) fn start<F, A, R>(
    dispatch: &Arc<Dispatch>,
    pool: &ThreadPool,
    limits: Limits,
    function: F,
    arguments: Vec<A>,
) -> impl FnOnce() -> Vec<Result<R, TaskError>> + use<F, A, R>
where
    F: Fn(A) -> R + Send + Sync + 'static,
    A: Send + 'static,
    R: Send + 'static,
{
    let broadcast = Arc::new(Broadcast {
        function,
        outcomes: Mutex::new(arguments.iter().map(|_| None).collect()),
        arguments: Mutex::new(arguments.into_iter().map(Some).collect()),
        part_ended: Condvar::new(),
        limits,
        queued: dispatch.stamp(),
    });
    dispatch.announce_parts();
    let (work, of) = (Arc::clone(&broadcast), Arc::clone(dispatch));
    pool.spawn_broadcast(move |worker| {
        of.begin_part(worker.index());
        work.run(worker.index());
    });
    dispatch.wake_all();
    move || broadcast.wait()
}

impl<F, A, R> Broadcast<F, A, R>
where
    F: Fn(A) -> R,
{
    /// Runs the part of this worker.
    fn run(&self, worker: usize) {
        let argument = self.arguments.lock().get_mut(worker).and_then(Option::take);
        let Some(argument) = argument else { return };
        let began = counts::begin(self.queued);
        let original = Original::here();
        let run = || copies::run(original, || (self.function)(argument));
        let outcome = self.limits.run(worker, run);
        copies::end_panicked(original);
        let outcome = outcome.map_err(|failure| failure.into_error(None));
        let outcome = outcome.inspect_err(counts::failed);
        counts::end(1, self.queued, began);
        self.outcomes.lock()[worker] = Some(outcome);
        self.part_ended.notify_one();
    }

    fn wait(&self) -> Vec<Result<R, TaskError>> {
        let mut outcomes = self.outcomes.lock();
        while outcomes.iter().any(Option::is_none) {
            self.part_ended.wait(&mut outcomes);
        }
        outcomes.iter_mut().filter_map(Option::take).collect()
    }
}
