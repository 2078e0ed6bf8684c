//! One task, one child, forked at once.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::{Bond, Forked as Child, PipeBell, answer};
use crate::error::{Part, PoolError, TaskError};
use crate::future::Pending;
use crate::lane::message::Fault;
use crate::lane::{Expected, Fate, RawBytes, Sink};
use crate::os::fork;
use crate::{codec, panic};

/// The number of the only task of a child.
const TASK: u32 = 1;

/// A task whose child runs or has run.
struct Running {
    bell: PipeBell,
    /// The child and what is expected of it, until it has ended.
    child: Mutex<Option<(Child, Expected)>>,
    outcome: Mutex<Option<Result<Vec<u8>, TaskError>>>,
    is_done: AtomicBool,
}

impl Sink for Running {
    fn results(&self, _first: u32, _count: u32, bytes: RawBytes<'_>) {
        let mut result = Vec::new();
        bytes.append_to(&mut result);
        *self.outcome.lock() = Some(Ok(result));
    }

    fn fault(&self, _index: u32, fault: Fault) {
        *self.outcome.lock() = Some(Err(fault.into_error(None)));
    }
}

impl Running {
    /// Takes what the child has published, and buries it if it has ended. Never blocks.
    fn look(&self, child: &mut Option<(Child, Expected)>) {
        let Some((hand, expected)) = child else {
            return;
        };
        // Asked before the last look, so that nothing it published before its end is missed.
        let has_ended = hand.has_ended();
        while hand.has_next() {
            hand.take(expected, self);
            hand.receiver.header().wake_worker();
        }
        if has_ended {
            let (fate, error) = hand.bury(expected, self);
            if let Some(Fate { .. }) = fate {
                *self.outcome.lock() = Some(Err(error));
            }
            self.finish(child);
        }
    }

    fn finish(&self, child: &mut Option<(Child, Expected)>) {
        *child = None;
        self.is_done.store(true, Ordering::Release);
    }

    /// Waits until the child has ended or `deadline` has come, taking what it publishes.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        // Held while waiting: another thread that waits for the same child waits here.
        let child = match deadline {
            Some(deadline) => self.child.try_lock_until(deadline),
            None => Some(self.child.lock()),
        };
        let Some(mut child) = child else {
            return self.is_done.load(Ordering::Acquire);
        };
        loop {
            self.look(&mut child);
            let Some((hand, _)) = &*child else {
                return true;
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            hand.ask_for_bell();
            if !hand.has_next() {
                PipeBell::wait_any(&[&self.bell], std::iter::once(hand.fd()), left);
            }
        }
    }

    fn cancel(&self) {
        let mut child = self.child.lock();
        if child.is_some() {
            *self.outcome.lock() = Some(Err(TaskError::Cancelled));
            // Kills it.
            self.finish(&mut child);
        }
    }
}

/// The handle of one task.
pub(super) struct Task<R> {
    running: Arc<Running>,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned + 'static> Pending<R> for Task<R> {
    fn is_done(&self) -> bool {
        if !self.running.is_done.load(Ordering::Acquire)
            && let Some(mut child) = self.running.child.try_lock()
        {
            self.running.look(&mut child);
        }
        self.running.is_done.load(Ordering::Acquire)
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.running.wait(deadline)
    }

    fn take(&self) -> Result<R, TaskError> {
        let bytes = self
            .running
            .outcome
            .lock()
            .take()
            .unwrap_or(Err(TaskError::Taken))?;
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

/// The tasks submitted to a pool.
pub(super) struct Submitted {
    /// Those whose children have not been seen to end.
    running: Mutex<Vec<Arc<Running>>>,
    is_closed: AtomicBool,
    generation: u32,
}

impl Submitted {
    pub(super) fn new() -> Self {
        Self {
            running: Mutex::default(),
            is_closed: AtomicBool::new(false),
            generation: fork::generation(),
        }
    }

    pub(super) fn check_open(&self) -> Result<(), PoolError> {
        if self.is_closed.load(Ordering::Acquire) {
            Err(PoolError::Closed)
        } else {
            Ok(())
        }
    }

    /// Forks a child for the task; first waits for one to end if there are `workers` already.
    pub(super) fn submit<F, A, R>(
        &self,
        workers: usize,
        f: F,
        argument: A,
    ) -> Result<Task<R>, PoolError>
    where
        F: Fn(A) -> R,
        R: Serialize + 'static,
    {
        // Held to the end: what is one too many must not be forked by two at once.
        let mut running = self.running.lock();
        self.check_open()?;
        while running.len() >= workers {
            running.retain(|task| {
                task.child.try_lock().is_none_or(|mut child| {
                    task.look(&mut child);
                    child.is_some()
                })
            });
            if let Some(first) = running.first().filter(|_| running.len() >= workers) {
                wait_for_any(first, &running);
            }
        }
        let failed = |error: std::io::Error| PoolError::StartFailed {
            worker: running.len(),
            workers,
            reason: error.to_string(),
        };
        let bell = PipeBell::new().map_err(failed)?;
        let child = Child::start(&bell, Bond::Process, |emitter| {
            emitter.begin(TASK, 0);
            answer(emitter, &mut Vec::new(), || f(argument));
            emitter.end();
        });
        let expected = Expected {
            task: TASK,
            next: 0,
            end: 1,
            result_size: codec::fixed_size::<R>(),
        };
        let child = Mutex::new(Some((child.map_err(failed)?, expected)));
        let task = Arc::new(Running {
            bell,
            child,
            outcome: Mutex::default(),
            is_done: AtomicBool::new(false),
        });
        running.push(task.clone());
        Ok(Task {
            running: task,
            result: PhantomData,
        })
    }

    /// Takes no more tasks, and waits for those there are.
    pub(super) fn close(&self) -> Result<(), PoolError> {
        if self.generation != fork::generation() {
            return Err(PoolError::OtherProcess);
        }
        self.is_closed.store(true, Ordering::Release);
        for task in self.running.lock().drain(..) {
            task.wait(None);
        }
        Ok(())
    }
}

/// Waits until one of the children ends or has something to say. Those that another thread waits for are left to it.
fn wait_for_any(first: &Arc<Running>, running: &[Arc<Running>]) {
    let locked: Vec<_> = running
        .iter()
        .filter_map(|task| Some((task, task.child.try_lock()?)))
        .collect();
    if locked.is_empty() {
        first.wait(None);
        return;
    }
    let bells: Vec<_> = locked.iter().map(|(task, _)| &task.bell).collect();
    let children: Vec<_> = locked
        .iter()
        .filter_map(|(_, child)| child.as_ref())
        .map(|(child, _)| child)
        .collect();
    for child in &children {
        child.ask_for_bell();
    }
    if !children.iter().any(|child| child.has_next()) {
        PipeBell::wait_any(&bells, children.iter().map(|child| child.fd()), None);
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.running.lock().drain(..).for_each(|task| task.cancel());
        }
    }
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted")
            .field("running", &self.running.lock().len())
            .finish_non_exhaustive()
    }
}
