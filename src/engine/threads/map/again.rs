//! Calls whose items are tried again. Each attempt gets a copy of its item. A worker tries an item
//! again at once, if there is no pause. If there is one, the chunk goes back to the caller, which
//! gives it out again when it is due; the items behind that one wait with it.

use std::iter;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Caller, Chunk, Exchange, Failure, Manner, count_failed, note_late, run};
use crate::call::{Limits, Never, Plan, Retry, RetryOn, Stop};
use crate::copies::{self, Original};
use crate::engine::threads::counts;
use crate::engine::threads::dispatch::Dispatch;
use crate::engine::threads::scoped_work::ScopedWork;
use crate::error::TaskError;
use crate::panic;

/// How often a caller that waits for what is due looks whether the pool ends.
const LOOK: Duration = Duration::from_millis(50);
/// The longest pause: the clock has no end for longer ones.
const LONGEST: Duration = Duration::from_secs(1 << 30);

/// How the items of a call are tried again.
pub(super) struct Policy<A, R> {
    retry: Retry,
    copy: fn(&A) -> A,
    /// Returns why a result is one after which its item may be tried again.
    cause: fn(&R) -> Option<RetryOn>,
    /// Returns a result as that of an item which was started so often.
    after: fn(R, u32) -> R,
    /// Returns the error that a result is, in calls that have one for each item.
    error: fn(&R) -> Option<&TaskError>,
}

/// Runs `function` on every item like [`map`](super::map), and on one that has failed again.
pub(in crate::engine::threads) fn map_again<F, A, R, I, S>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    function: &F,
    items: I,
    stop: S,
) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Clone + Send,
    R: Send,
    I: Iterator<Item = A>,
    S: Stop<R>,
{
    let manner = Manner {
        limits: plan.limits.clone(),
        ends_with_pool: true,
        count_failed: |_| 0,
        count_cancelled: |_| 0,
        stop: PhantomData::<fn() -> S>,
        again: Some(Policy {
            retry: plan.limits.retry(),
            copy: A::clone,
            cause: |result| S::is_met(result).then_some(RetryOn::ERROR),
            after: |result, _| result,
            error: |_| None,
        }),
        tried: AtomicU32::new(1),
    };
    let results = run(dispatch, plan, &manner, function, items)?;
    stop.tried(manner.tried.into_inner());
    Ok(results)
}

/// Runs `function` on every item like [`map_outcomes`](super::map_outcomes), and on one that has
/// failed again.
pub(in crate::engine::threads) fn map_outcomes_again<F, A, R, I>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    function: &F,
    items: I,
) -> Result<Vec<Result<R, TaskError>>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Clone + Send,
    R: Send,
    I: Iterator<Item = A>,
{
    let limits = plan.limits.clone();
    let original = Original::here();
    let manner = Manner {
        limits: Limits::none(),
        ends_with_pool: false,
        count_failed: count_failed::<R>,
        count_cancelled: |_| 0,
        stop: PhantomData::<fn() -> Never>,
        again: Some(Policy {
            retry: plan.limits.retry(),
            copy: |item: &(usize, A)| item.clone(),
            cause: |outcome: &Result<R, TaskError>| RetryOn::of(outcome.as_ref().err()?),
            after: |outcome, attempts| outcome.map_err(|error| error.with_attempts(attempts)),
            error: |outcome| outcome.as_ref().err(),
        }),
        tried: AtomicU32::new(1),
    };
    let function = |(index, item)| {
        if dispatch.is_cancelled() {
            // The item is dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(item));
            return Err(TaskError::Cancelled {});
        }
        let outcome = limits.run(index, || copies::run(original, || function(item)));
        copies::end_panicked(original);
        outcome.map_err(|failure| {
            note_late(&failure);
            failure.into_error(Some(index))
        })
    };
    run(dispatch, plan, &manner, &function, items.enumerate())
}

impl<'r, F, A, R, S> Exchange<'_, 'r, F, A, R, S>
where
    F: Fn(A) -> R + Sync,
    S: Stop<R>,
{
    /// Runs a chunk up to its end, or up to an item that is tried again later, and puts it into the
    /// outbox.
    #[cold]
    pub(super) fn run_again(&self, mut chunk: Chunk<'r, A, R>, policy: &Policy<A, R>) {
        let is_worker = self.dispatch.own_pool().is_this_worker();
        let began = if is_worker {
            counts::begin(chunk.queued)
        } else {
            None
        };
        let (mut ran, mut failure) = (0, None);
        chunk.due = None;
        while failure.is_none()
            && chunk.due.is_none()
            && chunk.results.len() < chunk.items.len()
            && self.needs(chunk.first + chunk.results.len())
        {
            failure = self.attempt(&mut chunk, policy, &mut ran);
        }
        if let Some(failure) = &failure {
            self.failed_at.fetch_min(failure.index, Ordering::Relaxed);
        }
        if chunk.due.is_none() {
            let left = chunk.items.len() - chunk.results.len();
            let is_unbegun = |failure: &Failure| failure.attempts == 0;
            let failed = failure.as_ref().filter(|failure| failure.error.is_some());
            let has_run = failed.is_some_and(|failure| !is_unbegun(failure));
            if self.is_over() || failed.is_some_and(is_unbegun) {
                self.dispatch
                    .counts()
                    .cancelled(left - usize::from(has_run));
            }
            // The items are dropped here, by code of the user that may panic.
            let _ = panic::catch(|| chunk.items.clear());
        }
        if is_worker && ran > 0 {
            counts::end(ran, chunk.queued, began);
        }
        self.put_out(chunk, failure);
    }

    /// Makes one attempt at the first item of the chunk that has no result. Returns the failure
    /// that ends the call, if it is one. Adds to `ran` if the item has an outcome.
    fn attempt(
        &self,
        chunk: &mut Chunk<'r, A, R>,
        policy: &Policy<A, R>,
        ran: &mut usize,
    ) -> Option<Failure> {
        let nth = chunk.results.len();
        let index = chunk.first + nth;
        if self.is_cancelled() {
            return Some(Failure {
                index,
                error: Some(TaskError::Cancelled {}),
                attempts: 0,
            });
        }
        let original = Original::here();
        let item = &chunk.items[nth];
        let run = || copies::run(original, || (self.function)((policy.copy)(item)));
        let below = self.ending.as_ref().map(|_| counts::before_late());
        let outcome = self.manner.limits.run(index, run);
        let late = below.map_or(0, counts::after_late);
        copies::end_panicked(original);
        chunk.attempts += 1;
        let cause = match &outcome {
            Ok(result) => (policy.cause)(result),
            Err(failure) => failure.cause(),
        };
        let allows = |cause| policy.retry.allows(cause, chunk.attempts);
        // Once the call is over, what has come of this attempt counts.
        if cause.is_some_and(allows) && !self.has_ended_early() {
            self.dispatch.counts().retried();
            // An error of the user's is dropped here, and may panic.
            let _ = panic::catch(|| drop(outcome));
            let pause = policy.retry.pause(chunk.attempts).min(LONGEST);
            // The end of the pool waits for results, and not for the clock.
            if !pause.is_zero() && !self.is_over() && !self.dispatch.is_closed() {
                chunk.due = Instant::now().checked_add(pause);
            }
            return None;
        }
        let attempts = mem::take(&mut chunk.attempts);
        match outcome {
            Ok(result) => {
                let result = (policy.after)(result, attempts);
                match (policy.error)(&result) {
                    Some(TaskError::Cancelled {} | TaskError::DeadlineExceeded {}) if late == 0 => {
                        self.dispatch.counts().cancelled(1);
                    }
                    error => {
                        *ran += 1;
                        if let Some(error) = error {
                            counts::failed(error);
                        }
                    }
                }
                let has_stopped = S::is_met(&result);
                chunk.results.extend(iter::once(result));
                if let Some(ran) = &self.ran {
                    ran.fetch_add(1, Ordering::Relaxed);
                }
                has_stopped.then_some(Failure {
                    index,
                    error: None,
                    attempts,
                })
            }
            Err(failure) => {
                let is_unbegun = failure.is_unbegun();
                let error = failure.into_error(Some(index)).with_attempts(attempts);
                if !is_unbegun {
                    *ran += 1;
                    counts::failed(&error);
                }
                Some(Failure {
                    index,
                    error: Some(error.with_index(index)),
                    attempts: if is_unbegun { 0 } else { attempts },
                })
            }
        }
    }
}

impl<F, A, R, S> Caller<'_, '_, '_, F, A, R, S>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    S: Stop<R>,
{
    /// Gives out again what is due. If the call or the pool ends, or if the item is not needed any
    /// more, that is all of it.
    pub(super) fn resume(&mut self, scoped: &Arc<ScopedWork>) {
        let now = Instant::now();
        let exchange = self.exchange;
        let ends = exchange.is_over() || self.dispatch.is_closed();
        let is_due = |chunk: &mut Chunk<'_, A, R>| {
            let index = chunk.first + chunk.results.len();
            ends || chunk.due.is_none_or(|due| due <= now) || !exchange.needs(index)
        };
        let due: Vec<_> = self.paused.extract_if(.., is_due).collect();
        for mut chunk in due {
            chunk.queued = self.dispatch.stamp();
            exchange.inbox.lock().push_back(chunk);
            self.post(scoped);
        }
    }

    /// Returns when this thread is to look what is due, if anything will be.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.paused.iter().filter_map(|chunk| chunk.due).min()?;
        Some(due.min(Instant::now() + LOOK))
    }
}
