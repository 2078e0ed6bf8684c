//! One task, one child, forked at once.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;
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
use crate::lane::{Emitter, Expected, Fate, RawBytes, Sink};
use crate::os::fork;
use crate::os::pidfd::Child as Process;
use crate::{codec, panic};

/// The number of the only task of a child.
const TASK: u32 = 1;

/// A task whose child runs or has run.
struct Running {
    bell: PipeBell,
    /// The child's process, which may be polled and killed also while somebody holds the lock on the rest.
    process: Arc<Process>,
    /// [`fork::generation`] of the parent.
    generation: u32,
    is_cancelled: AtomicBool,
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
                let is_cancelled = self.is_cancelled.load(Ordering::Acquire);
                let error = if is_cancelled {
                    TaskError::Cancelled
                } else {
                    error
                };
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

    /// Kills the child, unless it has ended. Who waits for it is told.
    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        self.process.kill();
        self.wait(None);
    }

    /// Whether this process is a forked child, and the task another's.
    fn is_foreign(&self) -> bool {
        self.generation != fork::generation()
    }
}

/// The handle of one task.
pub(super) struct Task<R> {
    running: Arc<Running>,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned + 'static> Pending<R> for Task<R> {
    fn is_done(&self) -> bool {
        if self.running.is_foreign() {
            return true;
        }
        if !self.running.is_done.load(Ordering::Acquire)
            && let Some(mut child) = self.running.child.try_lock()
        {
            self.running.look(&mut child);
        }
        self.running.is_done.load(Ordering::Acquire)
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.running.is_foreign() || self.running.wait(deadline)
    }

    fn take(&self) -> Result<R, TaskError> {
        if self.running.is_foreign() {
            return Err(PoolError::OtherProcess.into());
        }
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
        if self.generation != fork::generation() {
            return Err(PoolError::OtherProcess);
        }
        let mut work = Some(move |emitter: &mut Emitter| {
            emitter.begin(TASK, 0);
            answer(emitter, &mut Vec::new(), || f(argument));
            emitter.end();
        });
        let task = self.fork(workers, &mut work, codec::fixed_size::<R>());
        // Without the lock, and when all is in order: dropping what the work holds may run code of the user's.
        drop(work);
        Ok(Task {
            running: task?,
            result: PhantomData,
        })
    }

    fn fork(
        &self,
        workers: usize,
        work: &mut Option<impl FnOnce(&mut Emitter)>,
        result_size: Option<usize>,
    ) -> Result<Arc<Running>, PoolError> {
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
            if running.len() >= workers {
                wait_for_any(&running);
            }
        }
        let failed = |error: std::io::Error| PoolError::StartFailed {
            worker: running.len(),
            workers,
            reason: error.to_string(),
        };
        let bell = PipeBell::new().map_err(failed)?;
        let child = Child::start(&bell, Bond::Process, work).map_err(failed)?;
        let expected = Expected {
            task: TASK,
            next: 0,
            end: 1,
            result_size,
        };
        let task = Arc::new(Running {
            bell,
            process: child.process(),
            generation: self.generation,
            is_cancelled: AtomicBool::new(false),
            child: Mutex::new(Some((child, expected))),
            outcome: Mutex::default(),
            is_done: AtomicBool::new(false),
        });
        running.push(task.clone());
        Ok(task)
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

/// Waits until one of the children ends or has something to say. What those say that another thread waits for is left to
/// that thread; their ends are not.
fn wait_for_any(running: &[Arc<Running>]) {
    let locked: Vec<_> = running
        .iter()
        .filter_map(|task| Some((task, task.child.try_lock()?)))
        .collect();
    let bells: Vec<_> = locked.iter().map(|(task, _)| &task.bell).collect();
    let children = || {
        locked
            .iter()
            .filter_map(|(_, child)| child.as_ref())
            .map(|(child, _)| child)
    };
    children().for_each(Child::ask_for_bell);
    if !children().any(Child::has_next) {
        PipeBell::wait_any(
            &bells,
            running.iter().map(|task| task.process.as_fd()),
            None,
        );
    }
    if locked.len() < running.len() {
        // One that has ended may be in the hands of the thread that waits for it, for another moment.
        drop(locked);
        std::thread::yield_now();
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
            .field(
                "running",
                &self.running.try_lock().map(|running| running.len()),
            )
            .finish_non_exhaustive()
    }
}
