//! [`ThreadsBuilder`]: a builder of a pool of threads with all settings, and what its threads do
//! first.

use std::any::Any;
use std::fmt::{self, Display};
use std::sync::Arc;

use super::Threads;
use crate::copies::Original;
#[cfg(target_os = "linux")]
use crate::engine::affinity::Affinity;
use crate::engine::backlog::Backlog;
use crate::engine::{WhenFull, worker_state};
use crate::error::PoolError;
use crate::machine::available_workers;
use crate::panic;

/// The bounds of the size that stacks have if the user gives none. It goes by the limit for the
/// stacks of processes, which may be nothing at all or unlimited.
#[cfg(target_os = "linux")]
const STACKS: (u64, u64) = (2 << 20, 64 << 20);

/// Runs an initialiser, whose error says why it has failed.
type Initializer = Arc<dyn Fn() -> Result<Box<dyn Any>, String> + Send + Sync>;

/// Makes a [`Pool<Threads>`](crate::Pool); see [`Threads::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Threads::builder()
///     .workers(2)
///     .name("render")
///     .stack_size(16 << 20)
///     .build()?;
/// let name = |()| std::thread::current().name().map(str::to_owned);
/// let name = pool.submit(name, ()).result()?;
/// assert!(matches!(name.as_deref(), Some("render-0" | "render-1")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ThreadsBuilder {
    workers: Option<usize>,
    name: Option<String>,
    stack_size: Option<usize>,
    has_timeline: bool,
    setup: Setup,
    queue_limit: Option<(usize, WhenFull)>,
}

/// What a thread does before its first task.
#[derive(Clone, Default)]
pub(super) struct Setup {
    initializer: Option<Initializer>,
    #[cfg(target_os = "linux")]
    affinity: Affinity,
}

impl ThreadsBuilder {
    /// Sets the number of threads. The default is [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Threads::builder().workers(3).build()?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets what the pool is called ([`Pool::name`](crate::Pool::name)). Its threads are `NAME-0`,
    /// `NAME-1` and so on, in the messages of panics, in debuggers and in `ps -L`, where the name
    /// is cut so that it fits into 15 bytes with the number. Those of a pool without a name of its
    /// own are `manyhands-0`, `manyhands-1` ….
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(1).name("render").build()?;
    /// assert_eq!(pool.name(), "render");
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the size of the stack of each thread, in bytes.
    ///
    /// By default it is what a process of this program has, the limit `ulimit -s`, so that a task
    /// that recurses deeply runs on threads if it runs on worker processes: at least 2 MiB and at
    /// most 64 MiB. The variable `RUST_MIN_STACK` comes before that, as for all threads of the
    /// program. Memory is taken for what a stack has used, and not for its size.
    ///
    /// A stack that overflows ends the program. On processes it ends the worker, and fails its task
    /// alone. On [`Serial`](crate::Serial) and [`Forked`](crate::Forked) a task has the stack of
    /// the thread that calls.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// fn depth(left: u32) -> u32 {
    ///     let place = std::hint::black_box([left; 256]); // 1 KiB
    ///     if left == 0 { place[1] } else { 1 + depth(left - 1) }
    /// }
    ///
    /// let pool = Threads::builder().workers(1).stack_size(256 << 20).build()?;
    /// assert_eq!(pool.submit(depth, 20_000).result()?, 20_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Runs `initializer` once in each thread, before its first task. What it returns becomes the
    /// thread's state, which tasks reach by [`worker_state`](crate::worker_state). It need not be
    /// `Send`: it stays in its thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{worker_index, worker_state};
    /// use std::rc::Rc;
    ///
    /// let base = String::from("scratch");
    /// let open = move || Ok::<_, String>(Rc::new(format!("{base}-{}", worker_index().unwrap())));
    /// let pool = Threads::builder().workers(1).initializer(open).build()?;
    /// let file = |()| worker_state(|file: &mut Rc<String>| file.to_string());
    /// assert_eq!(pool.submit(file, ()).result()?.as_deref(), Some("scratch-0"));
    ///
    /// let failed = Threads::builder()
    ///     .workers(2)
    ///     .initializer(|| Err::<(), _>("no licence"))
    ///     .build();
    /// assert!(matches!(
    ///     failed,
    ///     Err(PoolError::InitializerFailed { worker: 0, reason, .. }) if reason == "no licence"
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn initializer<F, S, E>(mut self, initializer: F) -> Self
    where
        F: Fn() -> Result<S, E> + Send + Sync + 'static,
        S: 'static,
        E: Display,
    {
        self.setup.initializer = Some(Arc::new(move || {
            let state = initializer().map_err(|error| error.to_string())?;
            Ok(Box::new(state))
        }));
        self
    }

    /// Sets on which cores the threads may run. By default the scheduler chooses.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::Affinity;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder()
    ///     .workers(2)
    ///     .affinity(Affinity::Spread)
    ///     .build()?;
    /// assert_eq!(pool.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(target_os = "linux")]
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.setup.affinity = affinity;
        self
    }

    /// Keeps a record of what runs where and when, for [`Pool::timeline`](crate::Pool::timeline).
    /// It holds the last million tasks and chunks, and costs three readings of the clock and a lock
    /// for each. The statistics have then also how busy the threads were.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(1).timeline(true).build()?;
    /// pool.submit(|x: u8| x, 1).result()?;
    /// assert_eq!(pool.timeline().events.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeline(mut self, is_kept: bool) -> Self {
        self.has_timeline = is_kept;
        self
    }

    /// Sets how many submitted tasks may wait for a worker, and what
    /// [`submit`](crate::Pool::submit) does when as many wait: so the arguments of tasks that have
    /// not started take no more memory than that. By default there is no limit.
    ///
    /// A task counts from `submit` to its end, and there may be one for each worker more than the
    /// limit. A cancelled task makes room. A task of the pool itself must not be held up, so what
    /// it submits passes the limit. Other calls do not count: they keep their own windows
    /// ([`Call::window`](crate::Call::window)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::WhenFull;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Threads::builder().workers(2).queue_limit(10, WhenFull::Wait).build()?;
    /// let tasks: Vec<_> = (0..1_000u64).map(|x| pool.submit(|x| x * x, x)).collect();
    /// let squares = tasks.into_iter().map(TaskFuture::result);
    /// assert_eq!(squares.collect::<Result<Vec<_>, _>>()?[999], 998_001);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_limit(mut self, tasks: usize, when_full: WhenFull) -> Self {
        self.queue_limit = Some((tasks, when_full));
        self
    }

    /// Starts the threads of the engine that was asked for.
    pub(crate) fn start(self) -> Result<Threads, PoolError> {
        let workers = self.workers.map_or_else(available_workers, Ok)?;
        self.setup.check()?;
        let stack_size = self.stack_size.or_else(default_stack);
        let has_timeline = self.has_timeline;
        let mut threads = Threads::start(workers, self.name, stack_size, has_timeline, self.setup)?;
        let limit = self.queue_limit;
        threads.backlog = limit.map(|(limit, full)| Arc::new(Backlog::new(limit, full)));
        Ok(threads)
    }
}

impl Setup {
    fn check(&self) -> Result<(), PoolError> {
        #[cfg(target_os = "linux")]
        self.affinity.check()?;
        Ok(())
    }

    /// Returns whether there is anything that can fail.
    pub(super) fn is_needed(&self) -> bool {
        #[cfg(target_os = "linux")]
        if self.affinity != Affinity::Inherit {
            return true;
        }
        self.initializer.is_some()
    }

    /// Does what is asked for, on the thread with this index, before its first task.
    ///
    /// # Errors
    ///
    /// [`PoolError::InitializerFailed`], or [`PoolError::StartFailed`] if the thread cannot run
    /// where it should.
    pub(super) fn run(&self, worker: usize, workers: usize) -> Result<(), PoolError> {
        #[cfg(target_os = "linux")]
        if let Some(core) = self.affinity.core(worker, &crate::os::worker::cores()) {
            crate::os::worker::run_on(core).map_err(|error| PoolError::StartFailed {
                worker,
                workers,
                reason: format!("it cannot run on core {core}: {error}"),
            })?;
        }
        let _ = workers;
        let Some(initializer) = &self.initializer else {
            return Ok(());
        };
        let original = Original::here();
        let ran = panic::catch(|| initializer());
        original.end_copy_after(&ran);
        let state = ran.unwrap_or_else(|caught| Err(format!("it panicked: {caught}")));
        state
            .map(worker_state::keep)
            .map_err(|reason| PoolError::InitializerFailed { worker, reason })
    }
}

/// Returns the size that stacks have if the user gives none; `None` for that of std.
#[cfg(target_os = "linux")]
fn default_stack() -> Option<usize> {
    if std::env::var_os("RUST_MIN_STACK").is_some() {
        return None;
    }
    let (least, most) = STACKS;
    usize::try_from(crate::os::stack_limit().clamp(least, most)).ok()
}

#[cfg(not(target_os = "linux"))]
fn default_stack() -> Option<usize> {
    None
}

impl fmt::Debug for ThreadsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsBuilder")
            .field("workers", &self.workers)
            .field("name", &self.name)
            .field("stack_size", &self.stack_size)
            .finish_non_exhaustive()
    }
}
