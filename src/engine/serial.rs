//! The engine without parallelism: the caller runs every task, at once. It is the baseline to compare with, and the
//! one to debug on.

use super::{Executor, Run, RunWith, sealed::Sealed};
use crate::error::{PoolError, TaskError};
use crate::future::TaskFuture;
use crate::panic;
use crate::pool::Plan;
use std::sync::atomic::{AtomicBool, Ordering};

/// The engine of [`Pool::serial`](crate::Pool::serial): tasks run on the thread that asks for them.
#[derive(Debug, Default)]
pub struct Serial {
    closed: AtomicBool,
}

impl Serial {
    pub(crate) fn new() -> Self {
        panic::install_hook();
        Self::default()
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

    fn name(&self) -> &'static str {
        "serial"
    }

    fn close(&self) -> Result<(), PoolError> {
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl<F, A, R> Run<F, A, R> for Serial
where
    F: Fn(A) -> R,
{
    fn map<I>(&self, plan: Plan<'_>, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        self.check_open()?;
        // Chunks mean nothing here, but a call that is wrong on one engine is wrong on all.
        plan.chunks(1)?;
        let mut tracker = plan.tracker;
        let mut results = Vec::with_capacity(plan.total.unwrap_or(0));
        for (index, item) in items.enumerate() {
            match panic::catch(|| f(item)) {
                Ok(result) => results.push(result),
                Err(caught) => {
                    tracker.tell(index + 1, 1);
                    return Err(caught.into_error(Some(index)));
                }
            }
            tracker.tell(index + 1, 0);
        }
        Ok(results)
    }

    fn submit(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        TaskFuture::ready(
            self.check_open().and_then(|()| {
                panic::catch(|| f(argument)).map_err(|caught| caught.into_error(None))
            }),
        )
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
        self.map(plan, |item| f(context, item), items)
    }
}
