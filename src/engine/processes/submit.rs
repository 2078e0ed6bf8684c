//! One task: how it is sent, and where its result goes.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::completion::{self, Completion, PendingResults};
use super::leader::WaitOptions;
use super::service;
use super::shared::Shared;
use super::task::{Function, Items, Results, Task, stops_at};
use crate::call::Limits;
use crate::codec;
use crate::engine::backlog::Patience;
use crate::engine::discard::Discard;
use crate::error::{ItemIndex, TaskError, TaskId, TaskValue};
use crate::future::{Reason, Signal, TaskFuture};
use crate::lane::message::Fault;
use crate::lane::{RawBytes, Sink};
use crate::memory::transit::{self, KeptHandles};
use crate::memory::wire;

/// Where the one result of a submitted task goes.
struct Promise<R> {
    completion: Completion,
    outcome: Mutex<Option<Result<Items, TaskError>>>,
    results: Discard,
    result: PhantomData<fn() -> R>,
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        if let Some(Ok(result)) = self.outcome.get_mut() {
            self.results.discard(result.as_slice().to_vec());
        }
    }
}

impl<R> Sink for Promise<R> {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        *self.outcome.lock() = Some(Ok(bytes.into()));
    }

    fn fault(&self, _index: u32, fault: Fault) {
        self.failed(0, fault.into_error(None));
    }
}

impl<R> Results for Promise<R> {
    fn failed(&self, _index: u32, error: TaskError) {
        self.completion.set_failed();
        *self.outcome.lock() = Some(Err(error));
    }

    fn ended(&self) {
        self.completion.end();
    }

    fn is_awaited(&self) -> bool {
        self.completion.is_awaited()
    }

    fn is_wanted(&self, _from: u32) -> bool {
        self.completion.stopped().is_none()
    }

    fn is_over(&self) -> bool {
        self.completion.stopped().is_some()
    }

    fn unwanted(&self) -> TaskError {
        let stopped = self.completion.stopped();
        stopped.map_or(TaskError::Cancelled {}, Reason::error)
    }

    fn discard(&self, bytes: Vec<u8>) {
        self.results.discard(bytes);
    }

    fn is_told(&self) -> bool {
        self.completion.is_told()
    }

    fn is_cancelled(&self) -> bool {
        self.completion.is_cancelled()
    }
}

impl<R: DeserializeOwned + 'static> PendingResults<R> for Promise<R> {
    fn completion(&self) -> &Completion {
        &self.completion
    }

    fn take(&self) -> Result<R, TaskError> {
        let outcome = self.outcome.lock().take();
        let bytes = outcome.unwrap_or(Err(TaskError::Taken {}))?;
        wire::decode(&mut bytes.as_slice(), None)
    }

    fn fail_rest(&self, error: &TaskError) {
        self.failed(0, error.clone());
    }
}

thread_local! {
    /// Room to encode an argument in, kept from task to task.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The size from which a buffer is not kept.
const KEPT_BYTES: usize = 4_096;

/// Encodes an argument. Returns its bytes, and the handles of shared objects that are in it.
pub(super) fn encode<A: Serialize + 'static>(
    argument: &A,
) -> Result<(Items, KeptHandles), TaskError> {
    if codec::fixed_size::<A>().is_some() {
        return Ok((encode_alone(argument)?, KeptHandles::default()));
    }
    let (items, handles) = transit::keep(|| encode_alone(argument));
    Ok((items?, handles))
}

fn encode_alone<A: Serialize + 'static>(argument: &A) -> Result<Items, TaskError> {
    // The buffer is taken, not borrowed: an argument's Serialize may submit tasks in turn.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let encoded = wire::encode(&mut scratch, argument, TaskValue::Argument);
    if encoded.is_ok() && scratch.len() > KEPT_BYTES {
        return Ok(scratch.into());
    }
    let items = encoded.map(|()| scratch.as_slice().into());
    SCRATCH.set(scratch);
    items
}

/// How a caller waits until there is room for its task.
struct Waits<'a>(&'a Arc<Shared>);

impl Patience for Waits<'_> {
    fn must_not_wait(&self) -> bool {
        // In a waker: the thread moves on the tasks of its pool.
        service::serves_a_pool()
    }

    fn check(&self) -> Result<(), TaskError> {
        self.0.check_process()?;
        self.0.check_takes(&self.0.lock().state)
    }

    fn sleep(&self, freed: &Signal, seen: usize, deadline: Option<Instant>) {
        let options = WaitOptions {
            cold: false,
            deadline,
            comes_back: false,
        };
        self.0.wait(freed, seen, options);
    }

    fn alarm(&self) -> Box<dyn FnOnce() + Send> {
        let shared = self.0.clone();
        Box::new(move || shared.bell.ring())
    }
}

/// Gives one task to the workers.
pub(super) fn submit<A, R>(
    shared: &Arc<Shared>,
    limits: Limits,
    function: Result<Function, TaskError>,
    argument: A,
    worker: Option<usize>,
) -> TaskFuture<R>
where
    A: Serialize + 'static,
    R: DeserializeOwned + Send + 'static,
{
    let ready = |error| TaskFuture::ready(Err(error));
    let function = match function {
        Ok(function) => function,
        Err(error) => return ready(error),
    };
    let slot = match &shared.backlog {
        None => None,
        Some(backlog) => {
            let patience = Waits(shared);
            match backlog.take(|| shared.workers(), limits.ending(), &patience) {
                Ok(slot) => Some(slot),
                Err(error) => return ready(error),
            }
        }
    };
    let (items, handles) = match encode(&argument) {
        Ok(encoded) => encoded,
        Err(error) => return ready(error),
    };
    // This must not happen while the dispatch is locked: the argument's Drop is the user's code.
    drop(argument);
    let limits = shared.limits(limits);
    let id = TaskId::next();
    let task = Arc::new(Task {
        function,
        items,
        count: 1,
        argument_size: codec::fixed_size::<A>(),
        result_size: codec::fixed_size::<R>(),
        handles,
        stops_at: stops_at(limits.retry()),
        name: ItemIndex::of_task(id),
        results: Promise {
            completion: Completion::in_slot(shared, limits.ending().cloned(), slot),
            outcome: Mutex::new(None),
            results: Discard::of::<R>(),
            result: PhantomData,
        },
        limits,
    });
    let placed = match worker {
        None => completion::place(&task, shared),
        Some(worker) => shared.place_at(task.clone(), worker),
    };
    match placed {
        Ok(()) => TaskFuture::with_id(id, task),
        Err(error) => ready(error),
    }
}
