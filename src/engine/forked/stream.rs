//! What a lazy call is made of: one item, one child.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Forked;
use super::running::{Running, Task};
use crate::call::{Limits, Stream};
use crate::error::TaskError;
use crate::future::TaskFuture;
use crate::memory::wire;

pub(super) fn stream<'p, F, A, R>(engine: &'p Forked, limits: Limits, f: F) -> Stream<'p, A, R>
where
    F: Fn(A) -> R + Send + 'p,
    A: Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    let give = move |base: usize, items: &mut Vec<A>| {
        // A chunk has at most one item here.
        match items.pop() {
            Some(item) => give(engine, &limits.of_item(base), &f, base, item),
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

/// Makes a lazy call whose items are tried again.
pub(super) fn stream_again<F, A, R>(engine: &Forked, limits: Limits, f: F) -> Stream<'_, A, R>
where
    F: Fn(A) -> R + Send + 'static,
    A: Send + 'static,
    R: Serialize + DeserializeOwned + Send + 'static,
{
    // Only children lock it, each its copy.
    let f = Arc::new(Mutex::new(f));
    let give = move |base: usize, items: &mut Vec<A>| {
        // A chunk has at most one item here.
        let Some(item) = items.pop() else {
            return TaskFuture::ready(Ok(Vec::new()));
        };
        if engine.submitted.check_open().is_ok()
            && let Some(error) = limits.refusal(Some(base))
        {
            return TaskFuture::ready(Ok(vec![Err(error)]));
        }
        let limits = limits.of_item(base);
        let f = f.clone();
        let run = move |item| (f.lock())(item);
        let started = engine.start_again(&limits, (run, item), Some(base).into(), true);
        handle(started, base)
    };
    Stream {
        give: Box::new(give),
        workers: engine.workers,
        depth: 1,
        most: 1,
    }
}

fn give<F, A, R>(
    engine: &Forked,
    limits: &Limits,
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
    let started = engine.start(limits, (f, item), Some(index).into(), true, |_, item| item);
    handle(started, index)
}

/// Returns the handle of the item with this index, for which a child has been forked.
fn handle<R>(
    started: Result<Arc<Running>, TaskError>,
    index: usize,
) -> TaskFuture<Vec<Result<R, TaskError>>>
where
    R: DeserializeOwned + Send + 'static,
{
    match started {
        Ok(running) => TaskFuture::new(Arc::new(Task {
            running,
            open: move |outcome: Result<Vec<u8>, _>| {
                let outcome = outcome.and_then(|bytes| wire::decode(&mut bytes.as_slice(), None));
                Ok(vec![
                    outcome.map_err(|error: TaskError| error.with_index(index)),
                ])
            },
        })),
        Err(error) => TaskFuture::ready(Err(error)),
    }
}
