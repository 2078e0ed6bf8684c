//! The engine of worker processes.
//!
//! ```text
//!                            parent                                │             worker n
//!                                                                  │
//!  submit, map ─▶ dispatch (one lock) ──── requests ──▶ lane n ────┼──▶ claim ─▶ entry ─▶ the user's function
//!     │             ▲  ▲  ▲                                        │                          │
//!     │ wait        │  │  └───────────────── lane n ◀── results ───┼──────── emitter ◀────────┘
//!     └─────────────┘  │                                           │            │
//!      the one who     │                        bell ◀─────────────┼────────────┘  if somebody sleeps
//!      waits pumps     │                                           │
//!                      └── supervisor thread ◀── pidfd ────────────┼──▪ death
//! ```
//!
//! | who | does | wakes whom |
//! |---|---|---|
//! | the thread that calls | encodes, places the task in a lane, pumps while it waits, decodes | the worker, if that sleeps |
//! | [`worker`] | claims a request, runs it, writes the results | the parent by the bell, if that asked for it |
//! | [`supervisor`] | starts workers, makes the books of the dead, replaces them | whoever waits, by the bell |
//! | the background thread | pumps when there is a backlog and nobody waits | nobody |
//!
//! What happens when any of them is killed at any point: `docs/design/0005-failure-model.md`.

mod builder;
mod dispatch;
pub(crate) mod entry;
mod map;
mod start;
mod submit;
mod supervisor;
mod task;
mod wait;
mod worker;

pub use builder::ProcessesBuilder;
pub(crate) use start::secret;
pub(crate) use worker::{VARIABLE, become_worker_if_asked, is_marked};

use std::fmt;
use std::mem::{align_of, needs_drop, size_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::dispatch::{Dispatch, Piece, State};
use self::supervisor::{Handle, Order};
use self::task::{Function, Results, Retired, SentContext, Task};
use self::wait::Patience;
use super::sealed::Sealed;
use super::{Executor, Run, RunWith};
use crate::closure::{self, BOUND_ALIGN};
use crate::error::{PoolError, TaskError};
use crate::future::TaskFuture;
use crate::lane::bell::Bell;
use crate::machine::usable_cores;
use crate::os::{self, fork};
use crate::pool::Plan;
use crate::{code, panic};

/// How long both sides spin before they sleep. Waking a sleeping core takes about as long, so this costs at most
/// twice what the best choice would have.
const SPIN: Duration = Duration::from_micros(50);

/// How long a worker may take from its start to its first sign of life.
const START_TIME: Duration = Duration::from_secs(30);

/// The engine of [`Pool::processes`](crate::Pool::processes): persistent worker processes.
pub struct Processes {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<Handle>>,
}

/// What the pool, its threads and its futures share.
struct Shared {
    name: String,
    workers: usize,
    /// Cores this process may use.
    cores: usize,
    /// [`fork::generation`] of the process that made the pool.
    generation: u32,
    /// Whether all workers have been up once.
    is_built: AtomicBool,
    bell: Bell,
    retired: Arc<Retired>,
    dispatch: Mutex<Dispatch>,
    wake_background: Condvar,
    /// Callers that wait.
    waiting: AtomicUsize,
}

impl Shared {
    /// Takes a task; true if a sleeping worker had to be woken for it. `leaves`: the caller may not come back soon to
    /// wait for it.
    fn place(
        self: &Arc<Self>,
        task: Arc<Task<dyn Results>>,
        leaves: bool,
    ) -> Result<bool, PoolError> {
        self.check_process()?;
        let mut dispatch = self.dispatch.lock();
        match &dispatch.state {
            State::Open => {}
            State::Closing => return Err(PoolError::Closed),
            State::Ended(reason) => return Err(reason.clone()),
        }
        let woke = dispatch.place(self, Piece::new(task));
        if leaves {
            self.mind(&mut dispatch);
        }
        Ok(woke)
    }

    fn check_process(&self) -> Result<(), PoolError> {
        if self.generation == fork::generation() {
            Ok(())
        } else {
            Err(PoolError::OtherProcess)
        }
    }

    /// Waits until all workers are up.
    fn wait_ready(&self) -> Result<(), PoolError> {
        let deadline = Instant::now() + START_TIME;
        loop {
            let heard = self.bell.listen();
            {
                let dispatch = self.dispatch.lock();
                if let State::Ended(reason) = &dispatch.state {
                    return Err(reason.clone());
                }
                let Some(worker) = dispatch.first_not_ready() else {
                    break;
                };
                if Instant::now() >= deadline {
                    return Err(PoolError::StartTimedOut {
                        worker,
                        waited: START_TIME,
                    });
                }
            }
            self.bell.sleep(
                heard,
                Some(deadline.saturating_duration_since(Instant::now())),
            );
        }
        self.is_built.store(true, Ordering::Release);
        Ok(())
    }
}

impl Processes {
    /// A pool of processes with everything said.
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

    fn start(workers: usize, name: Option<String>) -> Result<Self, PoolError> {
        static POOLS: AtomicUsize = AtomicUsize::new(0);
        code::check_image()?;
        if os::worker::is_privileged() {
            return Err(PoolError::Privileged);
        }
        if is_marked() {
            return Err(PoolError::HookMissing);
        }
        panic::install_hook();
        let name = name.unwrap_or_else(|| format!("pool{}", POOLS.fetch_add(1, Ordering::Relaxed)));
        let bell = Bell::new()
            .map_err(|error| PoolError::system("shared memory could not be had", error))?;
        let shared = Arc::new(Shared {
            name: name.replace('\0', " "),
            workers,
            cores: usable_cores().unwrap_or(1),
            generation: fork::generation(),
            is_built: AtomicBool::new(false),
            bell,
            retired: Arc::default(),
            dispatch: Mutex::new(Dispatch::new(workers)),
            wake_background: Condvar::new(),
            waiting: AtomicUsize::new(0),
        });
        let supervisor = Handle::start(&shared)?;
        let pool = Self {
            shared,
            supervisor: Mutex::new(Some(supervisor)),
        };
        // On an error, dropping the pool stops those that were started.
        pool.shared.wait_ready()?;
        Ok(pool)
    }

    /// Waits for the supervisor, and with it the workers, to end.
    fn end(&self, order: Order) {
        if let Some(supervisor) = self.supervisor.lock().take() {
            supervisor.end(order);
        }
        let background = self.shared.dispatch.lock().background.take();
        if let Some(background) = background {
            self.shared.wake_background.notify_all();
            self.shared.bell.ring();
            supervisor::join(background);
        }
    }

    /// The function as it is named to a worker.
    ///
    /// Nothing of this process is in a worker, so what `f` captures must be sent; of a closure that is not `closure!`'s
    /// nobody can tell what that is. It is refused here by the compiler.
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
        match closure::sendable(f) {
            Some(Ok(sendable)) => {
                let context = SentContext::new(sendable.context, &self.shared.retired);
                Ok(Function::new(sendable.entry, Some(context))?)
            }
            Some(Err(error)) => Err(error),
            None => Err(TaskError::InvalidCall {
                reason: "the function captures variables, in some other way than closure! does it",
            }),
        }
    }

    /// Runs a call, and lets the workers forget the context right after it.
    fn call<A, R>(
        &self,
        plan: Plan<'_>,
        function: Function,
        items: impl Iterator<Item = A>,
    ) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + 'static,
        R: DeserializeOwned + 'static,
    {
        let results = map::map(&self.shared, plan, &function, items);
        if function.context.is_some() {
            drop(function);
            if self.shared.check_process().is_ok() {
                self.shared.dispatch.lock().pump(&self.shared);
            }
        }
        results
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // In a forked child, supervisor and workers belong to the parent.
        if self.shared.check_process().is_ok() {
            self.end(Order::Kill);
        }
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { name, workers, .. } = &*self.shared;
        f.debug_struct("Processes")
            .field("name", name)
            .field("workers", workers)
            .finish_non_exhaustive()
    }
}

impl Sealed for Processes {}

impl Executor for Processes {
    fn workers(&self) -> usize {
        self.shared.workers
    }

    fn name(&self) -> &'static str {
        "processes"
    }

    fn close(&self) -> Result<(), PoolError> {
        self.shared.check_process()?;
        {
            let mut dispatch = self.shared.dispatch.lock();
            if matches!(dispatch.state, State::Open) {
                dispatch.state = State::Closing;
            }
        }
        loop {
            let all_ended = {
                let mut dispatch = self.shared.dispatch.lock();
                dispatch.pump(&self.shared);
                if dispatch.outstanding == 0 {
                    break;
                }
                dispatch.all_ended.clone()
            };
            self.shared.wait(
                &all_ended,
                0,
                Patience {
                    cold: false,
                    deadline: None,
                    comes_back: true,
                },
            );
        }
        self.end(Order::Finish);
        Ok(())
    }
}

/// What a function for a pool of processes has to be: free of captured variables, or made by
/// [`closure!`](crate::closure!).
///
/// The compiler sees to the first when it generates code, so `cargo check` alone does not find a closure that captures.
#[diagnostic::on_unimplemented(
    message = "a function for a pool of processes must not capture variables",
    label = "this captures something that cannot be sent to a worker",
    note = "three ways out: (1) `pool.map_with(&context, |context, item| ..)` sends the context once to each worker",
    note = "(2) `closure!([names] |item: Type| ..)` does the same, shorter",
    note = "(3) `Pool::forked(n)` runs children that see all variables, copy-on-write"
)]
pub trait Portable: Clone {}

#[diagnostic::do_not_recommend]
impl<F: Clone> Portable for F {}

impl<F, A, R> Run<F, A, R> for Processes
where
    F: Fn(A) -> R + Portable + Send,
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    fn map<I>(&self, plan: Plan<'_>, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        let function = self.function(&f)?;
        self.call(plan, function, items)
    }

    fn submit(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        submit::submit(&self.shared, self.function(&f), argument)
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Processes
where
    F: Fn(&C, A) -> R + Portable + Send,
    C: Serialize + DeserializeOwned + 'static,
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, _: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        const {
            assert!(
                size_of::<F>() == 0 && !needs_drop::<F>(),
                "the function of map_with must not capture variables on a pool of processes: put them into the \
                 context, which may be a tuple"
            );
        }
        let bytes = closure::encode_context(context)?;
        let context = SentContext::new(bytes, &self.shared.retired);
        let function = Function::new(entry::with_context::<C, F, A, R>, Some(context))?;
        self.call(plan, function, items)
    }
}
