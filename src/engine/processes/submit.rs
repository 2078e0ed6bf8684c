//! One task: its way out, and the handle of its result.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Shared;
use super::task::{Function, Items, Results, Task};
use super::wait::{Patience, Signal};
use crate::error::{Part, TaskError};
use crate::future::{Pending, TaskFuture};
use crate::lane::message::Fault;
use crate::lane::{RawBytes, Sink};
use crate::{codec, panic};

/// Where the one result of a submitted task goes.
struct Promise<R> {
    shared: Arc<Shared>,
    outcome: Mutex<Option<Result<Items, TaskError>>>,
    ended: Signal,
    /// Whether somebody waits for it.
    is_awaited: AtomicBool,
    /// Whether a worker had to be woken for the task.
    is_cold: AtomicBool,
    result: PhantomData<fn() -> R>,
}

impl<R> Sink for Promise<R> {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        *self.outcome.lock() = Some(Ok(bytes.into()));
    }

    fn fault(&self, _index: u32, fault: Fault) {
        *self.outcome.lock() = Some(Err(fault.into_error(None)));
    }
}

impl<R> Results for Promise<R> {
    fn failed(&self, _index: u32, error: TaskError) {
        *self.outcome.lock() = Some(Err(error));
    }

    fn ended(&self) {
        self.ended.raise();
    }

    fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }
}

impl<R: DeserializeOwned + 'static> Pending<R> for Task<Promise<R>> {
    fn is_done(&self) -> bool {
        let promise = &self.results;
        if promise.shared.check_process().is_err() {
            return true;
        }
        if promise.ended.count() == 0
            && let Some(mut dispatch) = promise.shared.dispatch.try_lock()
        {
            // Whoever only ever asks must see things move too.
            dispatch.pump(&promise.shared);
        }
        promise.ended.count() > 0
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        if self.results.shared.check_process().is_err() {
            // The task is the parent's; `take` says so.
            return true;
        }
        let Promise {
            shared,
            ended,
            is_cold,
            is_awaited,
            ..
        } = &self.results;
        // Read under the dispatch's lock, which whoever goes to sleep takes after this.
        is_awaited.store(true, Ordering::Relaxed);
        let cold = is_cold.load(Ordering::Relaxed);
        let patience = Patience {
            cold,
            deadline,
            comes_back: false,
        };
        shared.wait(ended, 0, patience)
    }

    fn take(&self) -> Result<R, TaskError> {
        self.results.shared.check_process()?;
        let outcome = self.results.outcome.lock().take();
        let bytes = outcome.unwrap_or(Err(TaskError::Taken))?;
        match panic::catch(|| codec::take(&mut bytes.as_slice())) {
            Ok(decoded) => decoded.map_err(|reason| TaskError::Decode {
                index: None,
                part: Part::Result,
                reason,
            }),
            Err(caught) => Err(caught.into_error(None)),
        }
    }
}

thread_local! {
    /// Room to encode an argument in, kept from task to task.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A larger buffer is given back.
const KEPT_BYTES: usize = 4_096;

pub(super) fn encode<A: Serialize + 'static>(argument: &A) -> Result<Items, TaskError> {
    // Taken, not borrowed: an argument's Serialize may submit tasks in turn.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let encoded = panic::catch(|| codec::append(&mut scratch, argument));
    let encoded = match encoded {
        Ok(Ok(())) if scratch.len() <= KEPT_BYTES => Ok(scratch.as_slice().into()),
        Ok(Ok(())) => return Ok(scratch.into()),
        Ok(Err(reason)) => Err(TaskError::Encode {
            index: None,
            part: Part::Argument,
            reason,
        }),
        Err(caught) => Err(caught.into_error(None)),
    };
    SCRATCH.set(scratch);
    encoded
}

/// Gives one task to the workers.
pub(super) fn submit<A, R>(
    shared: &Arc<Shared>,
    function: Result<Function, TaskError>,
    argument: A,
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
    let items = match encode(&argument) {
        Ok(items) => items,
        Err(error) => return ready(error),
    };
    // Not while the dispatch is locked: its Drop is the user's.
    drop(argument);
    let task = Arc::new(Task {
        function,
        items,
        count: 1,
        argument_size: codec::fixed_size::<A>(),
        result_size: codec::fixed_size::<R>(),
        retries: 0,
        results: Promise {
            shared: shared.clone(),
            outcome: Mutex::new(None),
            ended: Signal::default(),
            is_awaited: AtomicBool::new(false),
            is_cold: AtomicBool::new(false),
            result: PhantomData,
        },
    });
    match shared.place(task.clone(), true) {
        Ok(woke) => {
            task.results.is_cold.store(woke, Ordering::Relaxed);
            TaskFuture::new(task)
        }
        Err(error) => ready(error.into()),
    }
}
