//! The engine without parallelism: the caller runs every task, at once. It is the baseline to
//! compare with, and the engine to debug on.

use super::{
    Executor, Run, RunReduce, RunWith, Shutdown, pool_name,
    sealed::{Internal, Sealed},
};
use crate::call::{Limits, Never, Plan, Stop, Stream, worker_index};
use crate::engine::reduce;
use crate::error::{PoolError, TaskError};
use crate::future::{PoolId, TaskFuture};
use crate::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The engine of [`Pool::serial`](crate::Pool::serial): tasks run on the calling thread.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::cell::RefCell;
///
/// let order = RefCell::new(Vec::new()); // no other thread may touch it
/// let pool: Pool<Serial> = Pool::serial();
/// pool.for_each(|x| order.borrow_mut().push(x), [3, 1, 2])?;
/// assert_eq!(order.into_inner(), [3, 1, 2]);
/// # Ok::<(), TaskError>(())
/// ```
#[derive(Debug)]
pub struct Serial {
    closed: AtomicBool,
    id: PoolId,
    name: String,
}

impl Serial {
    pub(crate) fn new() -> Self {
        panic::install_hook();
        Self {
            closed: AtomicBool::new(false),
            id: PoolId::new(),
            name: pool_name(None),
        }
    }

    fn check_open(&self) -> Result<(), TaskError> {
        if self.closed.load(Ordering::Relaxed) {
            Err(PoolError::Closed.into())
        } else {
            Ok(())
        }
    }
}

impl Sealed for Serial {}

impl Executor for Serial {
    fn workers(&self) -> usize {
        1
    }

    fn kind(&self) -> &'static str {
        "serial"
    }

    fn name(&self, _: Internal) -> &str {
        &self.name
    }

    fn id(&self, _: Internal) -> PoolId {
        self.id
    }

    fn is_open(&self, _: Internal) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    fn close(&self, _: Internal) -> Result<(), PoolError> {
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn close_by(
        &self,
        _deadline: Option<Instant>,
        internal: Internal,
    ) -> Result<Option<usize>, PoolError> {
        self.close(internal).map(|()| None)
    }

    fn shutdown(&self, _: Shutdown, internal: Internal) -> Result<(), PoolError> {
        self.close(internal)
    }
}

impl<F, A, R> Run<F, A, R> for Serial
where
    F: Fn(A) -> R,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, _stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        run(plan, f, items, false, |outcome| {
            let result = outcome?;
            let goes_on = !S::is_met(&result);
            results.push(result);
            Ok(goes_on)
        })?;
        Ok(results)
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let checked = self.check_open().and_then(|()| plan.chunks(1));
        if let Err(error) = checked {
            return error.of_items(0, items);
        }
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0).min(MOST_RESERVED));
        let keep = |outcome| {
            results.push(outcome);
            Ok(true)
        };
        // Only `keep` can end the loop early, and it does not.
        let _ = run(plan, f, items, true, keep);
        results
    }

    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        if let Err(error) = self.check_open() {
            return TaskFuture::ready(Err(error));
        }
        let outcome = limits.run(0, as_worker(|| f(argument)));
        let outcome = outcome.map_err(|failure| failure.into_error(None));
        TaskFuture::ended(Some(self.id), outcome)
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let give = move |base: usize, items: &mut Vec<A>| {
            let items = std::mem::take(items);
            let run = |(nth, item)| {
                let outcome = limits.run(base + nth, as_worker(|| f(item)));
                outcome.map_err(|failure| failure.into_error(Some(base + nth)))
            };
            let outcomes = || items.into_iter().enumerate().map(run).collect();
            TaskFuture::ready(self.check_open().map(|()| outcomes()))
        };
        // Items run when their results are asked for, one by one.
        Stream {
            give: Box::new(give),
            workers: 1,
            depth: 1,
            most: 1,
        }
    }
}

/// The most results that room is reserved for. If an input claims to be longer, the vector grows as
/// results come.
const MOST_RESERVED: usize = 1 << 24;

/// Makes of a task one that runs as the only worker of a pool. While it runs, and no longer, this
/// thread has the index 0.
fn as_worker<R>(task: impl FnOnce() -> R) -> impl FnOnce() -> R {
    || {
        let _index = worker_index::enter_serial();
        task()
    }
}

/// Runs all items, one after the other, until `keep` fails or says that it needs no more. When the
/// call is over, the items that are left fail: all of them if `reads_on`, and else one, which is
/// not read.
fn run<A, R>(
    plan: Plan<'_>,
    f: impl Fn(A) -> R,
    items: impl Iterator<Item = A>,
    reads_on: bool,
    mut keep: impl FnMut(Result<R, TaskError>) -> Result<bool, TaskError>,
) -> Result<(), TaskError> {
    // Chunks have no effect here, but options that are wrong on one engine must be wrong on all.
    plan.chunks(1)?;
    let mut tracker = plan.tracker;
    let mut failed = 0;
    let mut items = items.enumerate();
    let mut done = 0;
    loop {
        if !reads_on
            && plan.total != Some(done)
            && let Some(reason) = plan.limits.ended()
        {
            return keep(Err(reason.error())).map(drop);
        }
        let Some((index, item)) = items.next() else {
            break;
        };
        done = index + 1;
        let outcome = plan.limits.run(index, as_worker(|| f(item)));
        failed += usize::from(outcome.is_err());
        let kept = keep(outcome.map_err(|failure| failure.into_error(Some(index))));
        tracker.tell(done, failed);
        if !kept? {
            break;
        }
    }
    Ok(())
}

impl<F, G, A, R> RunReduce<F, G, A, R> for Serial
where
    F: Fn(A) -> R,
    G: Fn(R, R) -> R,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        reduce::check(&plan)?;
        let mut total = None;
        run(plan, f, items, false, |outcome| {
            let value = outcome?;
            total = Some(match total.take() {
                None => value,
                // A panic here does not belong to one item.
                Some(total) => reduce::one(total, value, &g)?,
            });
            Ok(true)
        })?;
        Ok(total)
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Serial
where
    F: Fn(&C, A) -> R,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.map(plan, |item| f(context, item), items, Never)
    }
}
