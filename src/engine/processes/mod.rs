//! The engine of worker processes.
//!
//! ```text
//!                           parent                            │            worker n
//!                                                             │
//! submit, map ─▶ dispatch (one lock) ── requests ─▶ lane n ───┼─▶ claim ─▶ entry ─▶ the function
//!    │             ▲  ▲  ▲                                    │                          │
//!    │ wait        │  │  └────────────── lane n ◀─ results ───┼──── response writer ◀────┘
//!    └─────────────┘  │                                       │            │
//!     the waiting     │                    bell ◀─────────────┼────────────┘ if the parent sleeps
//!     thread pumps    │                                       │
//!                     └─ supervisor thread ◀── pidfd ─────────┼──▪ death
//! ```
//!
//! What each of them does, and whom it wakes:
//!
//! - The thread that calls encodes, places the task in a lane, pumps while it waits, and decodes.
//!   It wakes the worker, if that sleeps.
//! - The [`worker`] claims a request, runs it, and writes the results. It wakes the parent by the
//!   bell, if the parent asked for it.
//! - The [`supervisor`] starts workers, settles what dead workers had, replaces them, and stops
//!   what has run too long. It wakes the threads that wait, by the bell.
//! - The background thread pumps when there is a backlog, or a callback or waker to call, and no
//!   thread waits. It wakes the callbacks and wakers of finished tasks.
//! - The [`server`], if there is one, forks workers, and says how they ended. It wakes the
//!   supervisor.
//!
//! Where to read on: [`run`] is how a call begins. [`map`], [`chunk`] and [`submit`] are the kinds
//! of tasks it makes. [`completion`] is what a handle can do with one. [`dispatch`] gives tasks to
//! workers, takes their answers, and settles the accounts of dead workers. [`wait`] and [`leader`]
//! are about the threads that wait. [`start`] and [`worker`] are the two ends of a worker's start.
//! [`settings`] is what a builder can say.
//!
//! What happens when any of these processes is killed at any point:
//! `docs/design/0005-failure-model.md`.

mod admission;
mod builder;
mod chunk;
mod completion;
mod context;
mod dispatch;
#[cfg(all(test, not(loom)))]
mod faults;
mod initializer;
mod leader;
pub(crate) mod lend;
mod map;
mod output;
mod run;
mod server;
mod settings;
mod shared;
mod start;
mod submit;
mod supervisor;
mod tally;
mod task;
mod wait;
mod worker;

pub use builder::ProcessesBuilder;
pub(crate) use server::FORK_SERVER;
pub use settings::{InnerThreads, StartMethod, WaitPolicy};
pub(crate) use worker::WORKER;

use std::fmt;
use std::mem::{align_of, needs_drop, size_of};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::context::Context;
use self::dispatch::Order;
use self::dispatch::State;
use self::leader::WaitOptions;
use self::settings::Settings;
use self::shared::Shared;
use self::supervisor::Handle;
use self::task::{Function, SentContext};
use super::sealed::{Internal, Sealed};
use super::{Executor, PoolStats, Shutdown, Timeline, WorkerStats, check_workers};
use crate::call::closure::{self, BOUND_ALIGN};
use crate::call::entry;
use crate::call::service;
use crate::call::{Plan, Stop};
use crate::error::{PoolError, TaskError};
use crate::future::PoolId;
use crate::memory::transit;
use crate::panic;
use crate::process::{launch, logs};

/// The engine of [`Pool::processes`](crate::Pool::processes): persistent worker processes.
///
/// A task may fork, for example by a C library that it calls. Its function then returns in the copy
/// of the worker too. That copy answers nothing: it ends there, with exit code 0, or with 101 if
/// the function panics in it. The worker does not wait for it.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
///
/// static CALLS: AtomicU32 = AtomicU32::new(0);
///
/// let pool: Pool<Processes> = Pool::processes(1)?;
/// assert_eq!(
///     pool.map(|()| CALLS.fetch_add(1, Relaxed), [(); 3])?,
///     [0, 1, 2]
/// ); // the worker stays
/// assert_eq!(CALLS.load(Relaxed), 0); // and its memory is not that of this process
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Processes {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<Handle>>,
}

impl Processes {
    /// Returns a builder of a pool of processes, for all settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).name("render").build()?;
    /// assert_eq!(pool.workers(), 2);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn builder() -> ProcessesBuilder {
        ProcessesBuilder::default()
    }

    /// Sets the number of workers to `workers`: see [`Pool::resize`](crate::Pool::resize).
    pub(crate) fn resize(&self, workers: usize) -> Result<(), PoolError> {
        let shared = &self.shared;
        shared.check_process()?;
        check_workers(workers)?;
        shared.lock().resize(shared, workers)
    }

    fn start(workers: usize, settings: Settings) -> Result<Self, PoolError> {
        launch::check()?;
        panic::install_hook();
        let shared = Arc::new(Shared::new(Context::new(workers, settings)?));
        let supervisor = Handle::start(&shared)?;
        let pool = Self {
            shared,
            supervisor: Mutex::new(Some(supervisor)),
        };
        // If this fails, dropping the pool stops the workers that were started.
        pool.shared.wait_ready()?;
        Ok(pool)
    }

    /// Waits for the supervisor, and with it the workers, to end.
    fn end(&self, order: Order) {
        // Another thread that ends the pool at the same time waits here until the pool has ended.
        let mut supervisor = self.supervisor.lock();
        if let Some(supervisor) = supervisor.take() {
            supervisor.end(&self.shared, order);
        }
        drop(supervisor);
        let background = self.shared.lock().background.take();
        if let Some(background) = background {
            self.shared.wake_background.notify_all();
            self.shared.bell.ring();
            service::join(background);
        }
    }

    /// Names the function as a worker knows it.
    ///
    /// A worker has nothing of this process, so what `f` captures must be sent to it. What a
    /// closure captures is known only if `closure!` made it. The compiler refuses any other closure
    /// that captures something here.
    fn function<F, A, R>(&self, f: &F) -> Result<Function, TaskError>
    where
        F: Fn(A) -> R,
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        const {
            assert!(
                (size_of::<F>() == 0 && !needs_drop::<F>()) || align_of::<F>() == BOUND_ALIGN,
                "a function for a pool of processes must not capture variables: nothing of this process is in a \
                 worker. Three ways out: (1) pool.map_with(&context, |context, item| ...) sends the context once to \
                 each worker; (2) closure!([names] |item: Type| ...) does the same, shorter; (3) Pool::forked(n) runs \
                 children that see all variables, copy-on-write. (A function pointer counts as a captured variable: \
                 pass the function by its name.)"
            );
        }
        if size_of::<F>() == 0 {
            return Ok(Function::new(entry::plain::<F, A, R>, None)?);
        }
        let (sendable, handles) = transit::keep(|| closure::sendable(f));
        let sendable = sendable?;
        let context = SentContext::new(sendable.context, handles, &self.shared.retired);
        Ok(Function::new(sendable.entry, Some(context))?)
    }

    /// Runs a call. Right after it, lets the workers forget the call's context.
    fn call<A, R, S>(
        &self,
        plan: Plan<'_>,
        function: Function,
        items: impl Iterator<Item = A>,
        stop: S,
    ) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + 'static,
        R: DeserializeOwned + 'static,
        S: Stop<R>,
    {
        let _admission = self.shared.admit()?;
        let results = map::map(&self.shared, plan, &function, items, stop);
        if function.context.is_some() {
            drop(function);
            if self.shared.check_process().is_ok() {
                self.shared.lock().pump(&self.shared);
            }
        }
        results
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // In a forked child, supervisor and workers belong to the parent.
        if self.shared.check_process().is_err() {
            // The thread does not exist in this process: even its handle must not be dropped.
            std::mem::forget(self.supervisor.get_mut().take());
        } else if service::serves_a_pool() {
            // This thread cannot wait for the pool's end here: the supervisor waits for this
            // thread, or is this thread, or waits for the end of this thread's pool.
            if let Some(supervisor) = self.supervisor.get_mut().take() {
                supervisor.abandon(&self.shared);
            }
        } else {
            self.end(Order::Kill);
        }
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes")
            .field("name", &self.shared.settings.name)
            .field("workers", &self.shared.workers())
            .finish_non_exhaustive()
    }
}

impl Sealed for Processes {}

impl Executor for Processes {
    fn workers(&self) -> usize {
        self.shared.workers()
    }

    fn kind(&self) -> &'static str {
        "processes"
    }

    fn name(&self, _: Internal) -> &str {
        &self.shared.settings.name
    }

    fn id(&self, _: Internal) -> PoolId {
        self.shared.id
    }

    fn is_open(&self, _: Internal) -> bool {
        self.shared.check_process().is_ok() && matches!(self.shared.lock().state, State::Open)
    }

    fn close(&self, _: Internal) -> Result<(), PoolError> {
        self.stop_taking(false)?;
        self.finish(None);
        Ok(())
    }

    fn close_by(&self, deadline: Option<Instant>, _: Internal) -> Result<Option<usize>, PoolError> {
        self.stop_taking(false)?;
        if self.finish(deadline) {
            return Ok(None);
        }
        self.stop_taking(true)?;
        let busy = {
            let mut dispatch = self.shared.lock();
            dispatch.pump(&self.shared);
            dispatch.busy
        };
        self.end(Order::Kill);
        Ok(Some(busy))
    }

    fn shutdown(&self, how: Shutdown, _: Internal) -> Result<(), PoolError> {
        self.stop_taking(true)?;
        match how {
            Shutdown::Kill => self.end(Order::Kill),
            Shutdown::CancelQueued => {
                self.shared.lock().cancel_queued(&self.shared);
                self.shared.bell.ring();
                self.finish(None);
            }
        }
        Ok(())
    }

    fn stats(&self, _: Internal) -> PoolStats {
        let shared = &self.shared;
        if shared.check_process().is_err() {
            // This is a forked child: the pool and its workers are the parent's.
            return PoolStats::default();
        }
        let mut dispatch = shared.lock();
        dispatch.pump(shared);
        let tallies = dispatch.tallies.iter().enumerate();
        let workers = tallies.map(|(number, tally)| {
            let worker = dispatch.workers.get(number).and_then(Option::as_ref);
            let (came, dropped) = shared.log_counts.lock().get(number);
            WorkerStats {
                log_records: came,
                log_records_dropped: dropped,
                ..tally.stats(worker)
            }
        });
        PoolStats {
            name: shared.settings.name.clone(),
            uptime: shared.start.elapsed(),
            workers: workers.collect(),
            cancelled: dispatch.cancelled,
            retried: dispatch.retried,
        }
    }

    fn timeline(&self, _: Internal) -> Timeline {
        let shared = &self.shared;
        if shared.check_process().is_err() {
            return Timeline::default();
        }
        let mut dispatch = shared.lock();
        dispatch.pump(shared);
        dispatch.recorder.snapshot(&shared.settings.name)
    }
}

impl Processes {
    /// Makes the pool refuse new tasks. With `cancels`, also cancels what running calls have not
    /// given out yet.
    fn stop_taking(&self, cancels: bool) -> Result<(), PoolError> {
        self.shared.check_process()?;
        if self.shared.is_admitted() {
            return Err(PoolError::System {
                what: "the pool was not closed".into(),
                reason: "closing waits for the pool's calls, and one of them asked for it".into(),
            });
        }
        if output::reads_for(self.shared.address()) {
            return Err(PoolError::System {
                what: "the pool was not closed".into(),
                reason: "closing waits until all output has been told, and a function that is told of it asked for it"
                    .into(),
            });
        }
        logs::check_may_close()?;
        if service::supervises(self.shared.address()) {
            return Err(PoolError::System {
                what: "the pool was not closed".into(),
                reason:
                    "closing waits for the pool's supervisor, and a waker that it ran asked for it"
                        .into(),
            });
        }
        let mut dispatch = self.shared.lock();
        match &mut dispatch.state {
            state @ State::Open => *state = State::Closing { cancels },
            State::Closing { cancels: before } => *before |= cancels,
            State::Ended(_) => {}
        }
        if !cancels {
            dispatch.resume_all(&self.shared);
            self.shared.ensure_progress(&mut dispatch);
        }
        Ok(())
    }

    /// Waits for the end of all tasks, then lets the workers end and returns true. Returns false if
    /// a task has not ended by the deadline.
    fn finish(&self, deadline: Option<Instant>) -> bool {
        loop {
            let (all_ended, seen) = {
                let mut dispatch = self.shared.lock();
                dispatch.pump(&self.shared);
                if dispatch.has_all_ended() {
                    break;
                }
                (dispatch.all_ended.clone(), dispatch.all_ended.count())
            };
            let options = WaitOptions {
                cold: false,
                deadline,
                comes_back: true,
            };
            if !self.shared.wait(&all_ended, seen, options)
                && deadline.is_some_and(|deadline| Instant::now() >= deadline)
            {
                let mut dispatch = self.shared.lock();
                dispatch.pump(&self.shared);
                if !dispatch.has_all_ended() {
                    // No wait follows this one.
                    self.shared.hand_over(&mut dispatch);
                    return false;
                }
            }
        }
        self.end(Order::Finish);
        true
    }
}
