//! [`ProcessesBuilder`]: a builder of a process pool with all settings.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::mem::{needs_drop, size_of};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Processes;
use super::initializer::{self, Model};
use super::settings::{InnerThreads, Settings, StartMethod, WaitPolicy};
use crate::call;
use crate::engine::affinity::Affinity;
use crate::engine::{WhenFull, pool_name, workers_or_available};
use crate::error::PoolError;
use crate::process::logs::Logs;
use crate::process::traces::Tracer;
use crate::process::{Stdio, launch};

/// Makes a [`Pool<Processes>`](crate::Pool); see [`Processes::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::time::Duration;
///
/// let pool = Processes::builder()
///     .workers(2)
///     .name("import")
///     .memory_limit(1 << 30)
///     .task_timeout(Duration::from_secs(60))
///     .build()?;
/// assert_eq!(
///     pool.map(
///         |line: String| line.len(),
///         ["many", "hands"].map(String::from)
///     )?,
///     [4, 5]
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ProcessesBuilder {
    workers: Option<usize>,
    name: Option<String>,
    initializer: Option<Result<u64, PoolError>>,
    model: Option<Result<Arc<Model>, PoolError>>,
    start_method: Option<StartMethod>,
    preload: Option<Result<u64, PoolError>>,
    /// All others as they are set.
    settings: Settings,
}

impl ProcessesBuilder {
    /// Sets the number of workers. The default is [`available_workers`](crate::available_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Processes::builder().workers(3).build()?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets what the pool is called ([`Pool::name`](crate::Pool::name)), also where its workers can
    /// be seen. By default the pools of a process are counted, of whatever kind: `pool0`, `pool1`
    /// ….
    ///
    /// In `ps` workers started by [`StartMethod::Spawn`] are `manyhands:NAME:0`, `manyhands:NAME:1`
    /// and so on. Forked workers keep the command line of their server, which with
    /// [`StartMethod::Fork`] is that of this process. `ps -o comm` shows `NAME:0` for all of them,
    /// with the name cut so that it fits into 15 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).name("render").build()?;
    /// let own_name = pool.submit(|()| std::env::args().next(), ()).result()?;
    /// assert_eq!(own_name.as_deref(), Some("manyhands:render:0"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a variable in the environment of the workers.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .env("GREETING", "hello")
    ///     .build()?;
    /// assert_eq!(
    ///     pool.submit(|name: String| std::env::var(name).ok(), "GREETING".into())
    ///         .result()?
    ///         .as_deref(),
    ///     Some("hello")
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.settings.env.set(name, value);
        self
    }

    /// Sets variables in the environment of the workers.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let builder = Processes::builder().workers(1);
    /// let pool = builder.envs([("LANG", "C"), ("TZ", "UTC")]).build()?;
    /// let zone = pool.submit(|name: String| std::env::var(name).ok(), "TZ".into());
    /// assert_eq!(zone.result()?.as_deref(), Some("UTC"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn envs<I, K, V>(self, variables: I) -> Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let set = |builder: Self, (name, value)| builder.env(name, value);
        variables.into_iter().fold(self, set)
    }

    /// Removes a variable from the environment of the workers: one of this process, one that was
    /// set before, or one of [`InnerThreads`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).env_remove("PATH").build()?;
    /// let path = pool.submit(|()| std::env::var("PATH").ok(), ());
    /// assert_eq!(path.result()?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.settings.env.remove(name);
        self
    }

    /// Clears the environment of the workers: they have only the variables that are set after this
    /// call, those of [`InnerThreads`], and `MANYHANDS_TREE`, by which
    /// [`kill_descendants`](Self::kill_descendants) finds what a worker has started.
    ///
    /// A worker starts without any variable of the user's. But if this program needs
    /// `LD_LIBRARY_PATH` to find its shared libraries, so do workers that are started by
    /// [`StartMethod::Spawn`]. A fork server, and the function that it runs first, have the
    /// environment of this process.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::InnerThreads;
    /// use manyhands::prelude::*;
    ///
    /// let builder = Processes::builder().workers(1).env_clear().env("LANG", "C");
    /// let pool = builder.inner_threads(InnerThreads::Inherit).build()?;
    /// let names = |()| {
    ///     let mut names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    ///     names.sort();
    ///     names
    /// };
    /// assert_eq!(pool.submit(names, ()).result()?, ["LANG", "MANYHANDS_TREE"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env_clear(mut self) -> Self {
        self.settings.env.clear();
        self
    }

    /// Sets variables in the environment of each worker, by its index
    /// ([`worker_index`](crate::worker_index)). They come before those that were set for all
    /// workers by [`env`](Self::env).
    ///
    /// `variables` runs in this process, at the start of each worker, and again when a worker is
    /// replaced; one thread of the pool calls it. If it panics, or gives a name that no variable
    /// can have, the worker is not started: [`build`](Self::build) returns
    /// [`PoolError::StartFailed`], and a worker that was to replace another is tried again a few
    /// times.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .env_per_worker(|index| [("CUDA_VISIBLE_DEVICES", index.to_string())])
    ///     .build()?;
    /// let device = |name: String| std::env::var(name).unwrap();
    /// let devices = pool.broadcast(device, "CUDA_VISIBLE_DEVICES".into())?;
    /// assert_eq!(devices, ["0", "1"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env_per_worker<F, I, K, V>(mut self, variables: F) -> Self
    where
        F: Fn(usize) -> I + Send + Sync + 'static,
        I: IntoIterator<Item = (K, V)>,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        self.settings.env_per_worker = Some(Arc::new(move |index| {
            let variables = variables(index).into_iter();
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        }));
        self
    }

    /// Sets how many threads libraries inside a worker may start. The default is each worker's
    /// share of the cores at the worker's start: [`resize`](crate::Pool::resize) does not change it
    /// for the workers that are there.
    ///
    /// The libraries are told by variables of the environment ([`InnerThreads`]), which many read
    /// when they are loaded. With [`StartMethod::ForkServer`] that is in the server, which gets all
    /// the pool's variables for this reason. Threads would be missing in its workers, so there
    /// `OPENBLAS_NUM_THREADS` is 1 unless it is set: that library starts its threads when it is
    /// loaded.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::InnerThreads;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .inner_threads(InnerThreads::AtMost(3))
    ///     .build()?;
    /// let threads = pool.submit(
    ///     |name: String| std::env::var(name).ok(),
    ///     "OMP_NUM_THREADS".into(),
    /// );
    /// # if std::env::var_os("OMP_NUM_THREADS").is_none() {
    /// assert_eq!(threads.result()?.as_deref(), Some("3"));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inner_threads(mut self, threads: InnerThreads) -> Self {
        self.settings.inner_threads = threads;
        self
    }

    /// Sets where the workers' standard output goes: to a function, line by line
    /// ([`Stdio::lines`]), to a file, or into a pipe, for example. The default is
    /// [`Stdio::inherit`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::process::Stdio;
    ///
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .stdout(Stdio::null())
    ///     .build()?;
    /// pool.submit(|()| println!("not shown"), ()).result()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.settings.stdout = stdout.into();
        self
    }

    /// Sets where the workers' standard error goes, which includes the messages of panics. The
    /// default is [`Stdio::inherit`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::process::Stdio;
    ///
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .stderr(Stdio::null())
    ///     .build()?;
    /// let failed = pool.submit(|()| -> () { panic!("not printed, but told") }, ());
    /// assert!(
    ///     failed
    ///         .result()
    ///         .unwrap_err()
    ///         .to_string()
    ///         .contains("not printed, but told")
    /// );
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.settings.stderr = stderr.into();
        self
    }

    /// Sets whether the processes that a worker has started, and those that these have started, are
    /// killed when the worker is ended by force: by a limit, by [`kill`](crate::TaskFuture::kill),
    /// by [`Shutdown::Kill`](crate::Shutdown::Kill), with a pool that is dropped, by a crash, or
    /// with a program that is killed (Ctrl-C, say). By default, they are. When a worker ends in
    /// order, they are left alone: after [`close`](crate::Pool::close), and when it leaves the pool
    /// because it has been idle or has run its tasks.
    ///
    /// All that runs is killed that the worker has started, also by tasks that have ended. They are
    /// found by the variable `MANYHANDS_TREE`, which each process gives to those that it starts,
    /// also with another session; and, if the pool ends the worker, by their parents. So a process
    /// is not found if it has removed the variable and either its own parent has ended or the
    /// worker has died by itself. A process that runs as another user is not killed. The end comes
    /// some milliseconds after that of the worker, from a small process, `manyhands:guard`, that is
    /// there as long as the program.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::process::Command;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(1)?;
    /// let hangs = |()| Command::new("sleep").arg("1000").status().unwrap().code();
    /// let task = pool.call().timeout(Duration::from_millis(100)).submit(hangs, ());
    /// assert!(matches!(task.result(), Err(TaskError::TimedOut { .. }))); // and `sleep` ends
    ///
    /// let daemons = Processes::builder().workers(1).kill_descendants(false).build()?;
    /// let starts = |()| Command::new("sleep").arg("0.1").spawn().unwrap().id();
    /// daemons.submit(starts, ()).result()?;
    /// drop(daemons); // this `sleep` goes on
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill_descendants(mut self, are_killed: bool) -> Self {
        self.settings.spares_descendants = !are_killed;
        self
    }

    /// Sets how the workers are started.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::StartMethod;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .start_method(StartMethod::ForkServer)
    ///     .build()?;
    /// assert_eq!(pool.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = Some(method);
        self
    }

    /// Starts the workers by [`StartMethod::ForkServer`], and has the server run `load` before it
    /// forks the first. All workers have what `load` puts into statics, or loads in any other way.
    /// It must leave no thread running: the workers would not have that thread. If `load` fails,
    /// [`build`](Self::build) returns its error.
    ///
    /// What `load` has used of random number generators, connections and files, the workers have
    /// [as copies](crate::Forked#what-a-child-has-twice): a generator gives the same numbers in
    /// each. Hooks that it registers with [`at_fork_child`](crate::at_fork_child) run in each
    /// worker.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::OnceLock;
    ///
    /// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    ///
    /// fn load() -> Result<(), String> {
    ///     TABLE
    ///         .set((0..1_000).map(|x| x * x).collect())
    ///         .map_err(|_| "loaded twice".to_owned())
    /// }
    ///
    /// let pool = Processes::builder().workers(2).preload(load).build()?;
    /// assert_eq!(
    ///     pool.map(|x: usize| TABLE.get().map(|table| table[x]), [7])?,
    ///     [Some(49)]
    /// );
    /// assert!(TABLE.get().is_none()); // not here
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn preload<F, E>(mut self, load: F) -> Self
    where
        F: Fn() -> Result<(), E> + Clone,
        E: Display,
    {
        const {
            assert!(
                size_of::<F>() == 0 && !needs_drop::<F>(),
                "a function for preload must not capture variables: it runs in another process"
            );
        }
        drop(load);
        self.preload = Some(initializer::number::<F, (), E>());
        self
    }

    /// Sets whether workers may be forked from a process in which other threads run: with
    /// [`StartMethod::Fork`] from this one, with [`StartMethod::ForkServer`] from the server, in
    /// which a library or [`preload`](Self::preload) may have started some. By default that is
    /// refused. If another thread holds a lock at that moment, other than the allocator's and std's
    /// output locks, that lock stays locked in the workers for ever.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::StartMethod;
    /// use manyhands::prelude::*;
    ///
    /// let loaded = std::env::args().next(); // doc tests run in several threads
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .start_method(StartMethod::Fork)
    ///     .allow_threads(true)
    ///     .build()?;
    /// assert_eq!(
    ///     pool.submit(|()| std::env::args().next(), ()).result()?,
    ///     loaded
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn allow_threads(mut self, are_allowed: bool) -> Self {
        self.settings.allow_threads = are_allowed;
        self
    }

    /// Runs `initializer` once in each worker, before its first task. What it returns becomes the
    /// worker's state, which tasks reach by [`worker_state`](crate::worker_state).
    ///
    /// If it fails or panics, [`build`](Self::build) returns its error. If that happens later, to a
    /// worker that takes the place of one that died, it is tried again a few times with pauses.
    /// When no worker is left, the pool ends with that error.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::worker_state;
    ///
    /// fn load() -> Result<Vec<String>, std::io::Error> {
    ///     Ok(vec!["a large model".to_owned()])
    /// }
    ///
    /// let pool = Processes::builder().workers(2).initializer(load).build()?;
    /// let length = |n: usize| worker_state(|model: &mut Vec<String>| model[0].len() + n);
    /// let lengths = pool.map(length, 0..3usize)?;
    /// assert_eq!(lengths, [Some(13), Some(14), Some(15)]);
    ///
    /// let builder = Processes::builder().workers(2);
    /// let failed = builder.initializer(|| Err::<(), _>("no model")).build();
    /// assert!(matches!(
    ///     failed,
    ///     Err(PoolError::InitializerFailed { reason, .. }) if reason == "no model"
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn initializer<F, S, E>(mut self, initializer: F) -> Self
    where
        F: Fn() -> Result<S, E> + Clone,
        S: 'static,
        E: Display,
    {
        const {
            assert!(
                size_of::<F>() == 0 && !needs_drop::<F>(),
                "an initialiser must not capture variables: it runs in another process. Give workers what they need by \
                 the environment, or with map_with"
            );
        }
        drop(initializer);
        self.initializer = Some(initializer::number::<F, S, E>());
        self.model = None;
        self
    }

    /// Runs `initializer` once in each worker, before its first task, on a copy of `model`. What it
    /// returns becomes the worker's state, as with [`initializer`](Self::initializer).
    ///
    /// The model is serialised once, here, and each worker has it from shared memory. A shared
    /// object in it, such as a [`SharedArray`](crate::SharedArray), is not copied, and stays as
    /// long as the pool.
    ///
    /// If the model cannot be serialised, [`build`](Self::build) returns
    /// [`PoolError::InvalidOption`]; if it cannot be made from its bytes in the worker,
    /// [`PoolError::InitializerFailed`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::worker_state;
    ///
    /// let words = vec!["many".to_owned(), "hands".to_owned()]; // known only now
    /// let load = |words: Vec<String>| Ok::<_, String>(words.join(" "));
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .initializer_with(&words, load)
    ///     .build()?;
    /// let count = |letter: char| worker_state(|text: &mut String| text.matches(letter).count());
    /// assert_eq!(pool.map(count, ['a', 'n', 'x'])?, [Some(2), Some(2), Some(0)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn initializer_with<M, F, S, E>(mut self, model: &M, initializer: F) -> Self
    where
        M: Serialize + DeserializeOwned + 'static,
        F: Fn(M) -> Result<S, E> + Clone,
        S: 'static,
        E: Display,
    {
        const {
            assert!(
                size_of::<F>() == 0 && !needs_drop::<F>(),
                "an initialiser must not capture variables: it runs in another process. Put what it needs into the model"
            );
        }
        drop(initializer);
        self.initializer = Some(initializer::number_with::<M, F, S, E>());
        self.model = Some(Model::encode(model).map(Arc::new));
        self
    }

    /// Replaces a worker when it has run `tasks` tasks, as a remedy for libraries that leak. Items
    /// of a call count singly, but a chunk of [`map_reduce`](crate::Pool::map_reduce) counts as
    /// one.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .max_tasks_per_worker(2)
    ///     .build()?;
    /// let mut pids = pool.map(|()| std::process::id(), [(); 6])?;
    /// pids.dedup();
    /// assert_eq!(pids.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_tasks_per_worker(mut self, tasks: u32) -> Self {
        self.settings.max_tasks = Some(tasks);
        self
    }

    /// Sets how much memory each worker may have, in bytes (`RLIMIT_DATA`: heap and private
    /// mappings; shared memory, code and stacks do not count).
    ///
    /// A task that wants more fails alone. If an allocation of Rust's failed, the error is
    /// [`TaskError::OutOfMemory`](crate::TaskError::OutOfMemory). If other code could not cope, the
    /// error names the signal that the worker died of.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).memory_limit(256 << 20).build()?;
    /// let fill = |bytes: usize| std::hint::black_box(vec![1_u8; bytes]).len();
    /// let greedy = pool.submit(fill, 1 << 30);
    /// assert!(matches!(
    ///     greedy.result(),
    ///     Err(TaskError::OutOfMemory { limit, .. }) if limit == 256 << 20
    /// ));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Sets how long a task may take when its call does not say; see
    /// [`Call::timeout`](crate::Call::timeout). A call lifts the limit for itself with
    /// [`Duration::MAX`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let limit = Duration::from_millis(100);
    /// let pool = Processes::builder().workers(1).task_timeout(limit).build()?;
    /// let endless = pool.submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// let outcome: Result<(), _> = endless.result();
    /// assert!(matches!(outcome, Err(TaskError::TimedOut { limit: l, .. }) if l == limit));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.settings.task_timeout = Some(limit);
        self
    }

    /// Lets a worker end that has had nothing to do for `time`. It is started again when there is
    /// work for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .idle_timeout(Duration::from_secs(60))
    ///     .build()?;
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.settings.idle_timeout = Some(time);
        self
    }

    /// Sets on which cores the workers may run. By default the scheduler chooses.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::Affinity;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .affinity(Affinity::Spread)
    ///     .build()?;
    /// let cores = pool
    ///     .submit(|()| manyhands::available_workers().ok(), ())
    ///     .result()?;
    /// # if std::env::var_os("MANYHANDS_WORKERS").is_none() {
    /// assert_eq!(cores, Some(1));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.settings.affinity = affinity;
        self
    }

    /// Sets how nice the workers are to other processes: from 19, which leaves them the cores, to
    /// -20, which takes privileges.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).nice(10).build()?;
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn nice(mut self, nice: i32) -> Self {
        self.settings.nice = nice;
        self
    }

    /// Sets how workers and callers wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::WaitPolicy;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder()
    ///     .workers(2)
    ///     .wait_policy(WaitPolicy::Park)
    ///     .build()?;
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_policy(mut self, policy: WaitPolicy) -> Self {
        self.settings.wait_policy = policy;
        self
    }

    /// Keeps a record of what runs where and when, for [`Pool::timeline`](crate::Pool::timeline).
    /// It holds the last million tasks and chunks, and costs three readings of the clock for each.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(1).timeline(true).build()?;
    /// pool.submit(|x: u8| x, 1).result()?;
    /// assert_eq!(pool.timeline().events.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeline(mut self, is_kept: bool) -> Self {
        self.settings.timeline = is_kept;
        self
    }

    /// Sets whether the log records of the workers go through this process's logger. By default
    /// they do if it has a logger when the pool is made: see [`logs`](crate::logs).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::logs::Logs;
    /// use manyhands::prelude::*;
    ///
    /// // A logger of the worker's own.
    /// let pool = Processes::builder().workers(1).logs(Logs::Off).build()?;
    /// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn logs(mut self, logs: Logs) -> Self {
        self.settings.logs = Some(logs);
        self
    }

    /// Sets how many submitted tasks may wait for a worker, and what
    /// [`submit`](crate::Pool::submit) does when as many wait: so the arguments of tasks that have
    /// not started take no more memory than that. By default there is no limit.
    ///
    /// A task counts from `submit` to its end, and there may be one for each worker more than the
    /// limit. A cancelled task makes room. A waker must not be held up, so what it submits passes
    /// the limit. Other calls do not count: they keep their own windows
    /// ([`Call::window`](crate::Call::window)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::engine::WhenFull;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).queue_limit(10, WhenFull::Wait).build()?;
    /// let tasks: Vec<_> = (0..1_000u64).map(|x| pool.submit(|x| x * x, x)).collect();
    /// let squares = tasks.into_iter().map(TaskFuture::result);
    /// assert_eq!(squares.collect::<Result<Vec<_>, _>>()?[999], 998_001);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn queue_limit(mut self, tasks: usize, when_full: WhenFull) -> Self {
        self.settings.queue_limit = Some((tasks, when_full));
        self
    }

    /// Starts the workers of the engine that was asked for.
    pub(crate) fn start(self) -> Result<Processes, PoolError> {
        let workers = workers_or_available(self.workers)?;
        self.check()?;
        let start_method = match self.start_method {
            Some(method) => method,
            None if self.preload.is_some() => StartMethod::ForkServer,
            None => StartMethod::default(),
        };
        if start_method == StartMethod::Fork && !self.settings.allow_threads {
            crate::engine::fork::check_threads()?;
        }
        // A copy of this process has its logger, and cannot have another one.
        let tracer = Tracer::here();
        let is_copy = start_method == StartMethod::Fork;
        let can_forward = !is_copy || call::logs::copies_forward() || tracer.is_there();
        let logs = if can_forward && Logs::are_forwarded(self.settings.logs, &tracer) {
            if is_copy && tracer.is_there() {
                call::traces::prepare_copies();
            }
            Logs::Forward
        } else {
            Logs::Off
        };
        let settings = Settings {
            name: pool_name(self.name),
            initializer: self.initializer.transpose()?,
            model: self.model.transpose()?,
            start_method,
            preload: self.preload.transpose()?,
            logs: Some(logs),
            tracer,
            ..self.settings
        };
        Processes::start(workers, settings)
    }

    /// Refuses settings that cannot be, before anything is started.
    fn check(&self) -> Result<(), PoolError> {
        let wrong = |option: &'static str, value: String, reason: &'static str| {
            Err(PoolError::InvalidOption {
                option: option.into(),
                value,
                reason: reason.into(),
            })
        };
        if self.settings.max_tasks == Some(0) {
            return wrong(
                "max_tasks_per_worker",
                "0".into(),
                "a worker that may run no task is of no use",
            );
        }
        if self.settings.memory_limit == Some(0) {
            return wrong(
                "memory_limit",
                "0".into(),
                "a worker without memory can do nothing",
            );
        }
        self.settings.inner_threads.check()?;
        self.settings.affinity.check()?;
        if !(-20..=19).contains(&self.settings.nice) {
            return wrong(
                "nice",
                self.settings.nice.to_string(),
                "niceness goes from -20 to 19",
            );
        }
        if self.preload.is_some()
            && let Some(method @ (StartMethod::Spawn | StartMethod::Fork)) = self.start_method
        {
            return wrong(
                "preload",
                format!("with StartMethod::{method:?}"),
                "only ForkServer has a process that it could run in",
            );
        }
        Ok(launch::check_environment(&self.settings.env)?)
    }
}

/// Shows no values of variables, which may be secrets.
impl fmt::Debug for ProcessesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessesBuilder")
            .field("workers", &self.workers)
            .field("name", &self.name)
            .field("start_method", &self.start_method)
            .field("env", &self.settings.env)
            .finish_non_exhaustive()
    }
}
