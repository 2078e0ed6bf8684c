//! What a lazy call is made of: one item, one child.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Forked;
use super::running::Task;
use crate::call::{Limits, Stream};
use crate::error::TaskError;
use crate::future::{Hook, Pending, PoolId, TaskFuture};

pub(super) fn stream<'p, F, A, R>(engine: &'p Forked, limits: Limits, f: F) -> Stream<'p, A, R>
where
    F: Fn(A) -> R + Send + 'p,
    A: Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let give = move |base: usize, items: &mut Vec<A>| {
        // A chunk has at most one item here.
        match items.pop() {
            Some(item) => {
                let limits = Limits {
                    seeds: limits.seeds.from(base),
                    ..limits
                };
                give(engine, limits, &f, base, item)
            }
            None => TaskFuture::ready(Ok(Vec::new())),
        }
    };
    Stream {
        give: Box::new(give),
        workers: engine.workers,
        // A child is forked when its item is given, and one more than can run would have to wait.
        depth: 1,
        most: 1,
    }
}

fn give<F, A, R>(
    engine: &Forked,
    limits: Limits,
    f: &F,
    index: usize,
    item: A,
) -> TaskFuture<Vec<Result<R, TaskError>>>
where
    F: Fn(A) -> R,
    A: Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    if engine.submitted.check_open().is_ok()
        && let Some(error) = limits.refusal(Some(index))
    {
        return TaskFuture::ready(Ok(vec![Err(error)]));
    }
    match engine.start(limits, (f, item), |_, item| item) {
        Ok(task) => TaskFuture::new(Arc::new(Only { task, index })),
        Err(error) => TaskFuture::ready(Err(error.into())),
    }
}

/// A chunk of one item.
struct Only<R> {
    task: Task<R>,
    index: usize,
}

impl<R: DeserializeOwned + 'static> Pending<Vec<Result<R, TaskError>>> for Only<R> {
    fn pool(&self) -> Option<PoolId> {
        self.task.pool()
    }

    fn is_done(&self) -> bool {
        self.task.is_done()
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.task.wait(deadline)
    }

    fn take(&self) -> Result<Vec<Result<R, TaskError>>, TaskError> {
        match self.task.take() {
            Err(TaskError::Taken {}) => Err(TaskError::Taken {}),
            outcome => Ok(vec![outcome.map_err(|error| error.with_index(self.index))]),
        }
    }

    fn has_failed(&self) -> bool {
        self.task.has_failed()
    }

    fn is_running(&self) -> bool {
        self.task.is_running()
    }

    fn cancel(&self) -> bool {
        self.task.cancel()
    }

    fn kill(&self) -> bool {
        self.task.kill()
    }

    fn on_end(&self, hook: Hook) {
        self.task.on_end(hook);
    }
}
