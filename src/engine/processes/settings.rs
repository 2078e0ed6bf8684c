//! What can be said about a pool's workers, once, when the pool is made.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::initializer::Model;
use crate::engine::WhenFull;
use crate::engine::affinity::Affinity;
use crate::error::PoolError;
use crate::os::environment::Environment;
use crate::os::fork::Original;
use crate::panic;
use crate::process::logs::Logs;
use crate::process::traces::Tracer;
use crate::process::{Stdio, launch};
use crate::text::as_text;

/// How long workers and callers watch for what they wait for before they sleep.
///
/// To wake a process that sleeps takes some 50 µs. A process that watches answers within a
/// microsecond, and uses a core meanwhile.
///
/// As text, and with serde, they are `balanced`, `park` and `spin:1ms` (`s`, `ms`, `us`, `ns`).
///
/// # Examples
///
/// ```
/// use manyhands::engine::WaitPolicy;
/// use manyhands::prelude::*;
/// use std::time::Duration;
///
/// let watchful = WaitPolicy::Spin(Duration::from_millis(1)); // for the next of many short tasks
/// let pool = Processes::builder().workers(1).wait_policy(watchful).build()?;
/// for x in 0..10 {
///     assert_eq!(pool.submit(|x: u32| x * x, x).result()?, x * x);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Watch for 50 µs if there is a core to spare for it, then sleep.
    #[default]
    Balanced,
    /// Sleep at once. This is best where other processes need the cores, or tasks are long.
    Park,
    /// Watch for this long if there is a core to spare for it, then sleep. This is for tasks that
    /// come in quick succession.
    Spin(Duration),
}

as_text!(
    WaitPolicy,
    "wait_policy",
    "balanced, park, or spin with a time (spin:200us)",
    Balanced = "balanced",
    Park = "park";
    Spin = "spin"
);

impl WaitPolicy {
    pub(super) fn spin(self) -> Duration {
        match self {
            // To wake a process takes about as long, so this costs at most twice what the best
            // choice would have cost.
            Self::Balanced => Duration::from_micros(50),
            Self::Park => Duration::ZERO,
            Self::Spin(time) => time,
        }
    }
}

/// How the workers of a pool are started.
///
/// As text, and with serde, they are `spawn`, `fork` and `forkserver`.
///
/// # Examples
///
/// ```
/// use manyhands::engine::StartMethod::{Fork, ForkServer, Spawn};
/// use manyhands::prelude::*;
/// use std::sync::OnceLock;
///
/// static MODEL: OnceLock<String> = OnceLock::new();
///
/// MODEL.set("loaded".to_owned())?;
/// for (method, has_it) in [(Spawn, false), (ForkServer, false), (Fork, true)] {
///     let builder = Processes::builder().workers(1).start_method(method);
///     let pool = builder.allow_threads(true).build()?; // doc tests run in several threads
///     assert_eq!(
///         pool.submit(|()| MODEL.get().is_some(), ()).result()?,
///         has_it
///     );
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The executable is started again for each worker. The workers have nothing of this process,
    /// and it may have as many threads and as much memory as it likes.
    #[default]
    Spawn,
    /// The workers are forked from a copy of this process that is made when the pool is. They have
    /// all that this process has loaded by then, and a page of it is copied in memory only when a
    /// process writes to it.
    ///
    /// This is refused if other threads run, as with [`Pool::forked`](crate::Pool::forked), unless
    /// [`allow_threads`](crate::engine::ProcessesBuilder::allow_threads) says otherwise. It is also
    /// refused as long as this process has a guard of a [`SharedArray`](crate::SharedArray). Shared
    /// objects that this process has by then are kept as long as the pool.
    ///
    /// Each worker has the same random number generators, connections and open files: see
    /// [what is duplicated](crate::Forked#what-a-child-has-twice), and
    /// [`at_fork_child`](crate::at_fork_child) for it.
    Fork,
    /// The workers are forked from a small process. That process is the executable started again,
    /// and runs the function given to [`preload`](crate::engine::ProcessesBuilder::preload) first.
    /// All workers have what the function loads, in one copy.
    ///
    /// All workers also have the random number generators, connections and files that this function
    /// has used: see [what is duplicated](crate::Forked#what-a-child-has-twice).
    ForkServer,
}

as_text!(
    StartMethod,
    "start_method",
    "spawn, fork or forkserver",
    Spawn = "spawn",
    Fork = "fork",
    ForkServer = "forkserver"
);

/// How many threads libraries inside a worker may start (`OpenMP`, `OpenBLAS`, MKL, BLIS,
/// Accelerate, numexpr, rayon, and this crate's own pools).
///
/// Such libraries start a thread for each core of the machine. With a worker for each core that
/// makes far too many. The limit goes into the workers' environment, as `OMP_NUM_THREADS` and
/// similar variables, where those are not set already.
///
/// As text, and with serde, they are `share`, `at-most:2` and `inherit`.
///
/// # Examples
///
/// ```
/// use manyhands::engine::InnerThreads;
/// use manyhands::prelude::*;
///
/// let pool = Processes::builder()
///     .workers(1)
///     .inner_threads(InnerThreads::Inherit)
///     .build()?;
/// let there = pool
///     .submit(|()| std::env::var("OMP_NUM_THREADS").ok(), ())
///     .result()?;
/// assert_eq!(there, std::env::var("OMP_NUM_THREADS").ok()); // as it is here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InnerThreads {
    /// The cores this process may use, divided by the number of workers; at least one.
    #[default]
    Share,
    /// This many.
    AtMost(usize),
    /// The environment is left as it is.
    Inherit,
}

as_text!(
    InnerThreads,
    "inner_threads",
    "share, inherit, or at-most with a number (at-most:2)",
    Share = "share",
    Inherit = "inherit";
    AtMost = "at-most"
);

/// The variables of [`InnerThreads`].
pub(super) const INNER_THREADS: [&str; 8] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "MANYHANDS_WORKERS",
];

/// Those of them that are read by libraries that start threads when they are loaded.
const STARTS_THREADS_ON_LOAD: [&str; 1] = ["OPENBLAS_NUM_THREADS"];
/// The variables of each worker, by its index.
pub(super) type PerWorker = Arc<dyn Fn(usize) -> Vec<(OsString, OsString)> + Send + Sync>;

/// What a builder has been told, and checked.
#[derive(Clone, Default)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) env: Environment,
    pub(super) env_per_worker: Option<PerWorker>,
    pub(super) inner_threads: InnerThreads,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
    /// The number of the initialiser's entry.
    pub(super) initializer: Option<u64>,
    /// The value that the initialiser gets.
    pub(super) model: Option<Arc<Model>>,
    pub(super) max_tasks: Option<u32>,
    pub(super) memory_limit: Option<u64>,
    pub(super) task_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) affinity: Affinity,
    pub(super) nice: i32,
    pub(super) wait_policy: WaitPolicy,
    pub(super) timeline: bool,
    /// How many submitted tasks may wait for a worker, and what happens when as many wait.
    pub(super) queue_limit: Option<(usize, WhenFull)>,
    pub(super) start_method: StartMethod,
    /// The number of the function that the fork server runs first.
    pub(super) preload: Option<u64>,
    /// Whether this process may be forked while other threads run.
    pub(super) allow_threads: bool,
    /// Whether the processes that a worker has started are left alone when it is ended by force.
    pub(super) spares_descendants: bool,
    /// Whether the workers' log records are forwarded. There is always a value when the pool is
    /// made.
    pub(super) logs: Option<Logs>,
    /// What the workers' events of `tracing` go through.
    pub(super) tracer: Tracer,
}

/// What a worker does to itself before it takes tasks. Part of its greeting.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The index that the worker has in its pool.
    pub(super) index: usize,
    pub(super) initializer: Option<u64>,
    /// How many bytes the value for the initialiser takes. They come as a descriptor.
    pub(super) model: Option<u64>,
    /// The most bytes of data that the worker may have.
    pub(super) memory_limit: Option<u64>,
    /// The core that the worker shall run on.
    pub(super) core: Option<usize>,
    pub(super) nice: i32,
    /// Up to which level the worker's log records go to the parent, if they do: the number of a
    /// [`LevelFilter`](log::LevelFilter).
    pub(super) log_level: Option<u8>,
    /// Up to which level its events of `tracing` do, then too; 0 for none.
    pub(super) trace_level: u8,
    /// Whether it has a copy of this process's subscriber of `tracing`.
    pub(super) is_copy: bool,
}

impl Settings {
    /// Returns whether the workers' log records are forwarded.
    pub(super) fn forwards_logs(&self) -> bool {
        self.logs == Some(Logs::Forward)
    }

    /// Returns the setup of worker `number`, where this process may use these cores.
    pub(super) fn setup(&self, number: usize, cores: &[usize]) -> Setup {
        Setup {
            index: number,
            initializer: self.initializer,
            model: self.model.as_ref().map(|model| model.len),
            memory_limit: self.memory_limit,
            core: self.affinity.core(number, cores),
            nice: self.nice,
            log_level: self.forwards_logs().then(|| log::max_level() as u8),
            trace_level: self.tracer.level(),
            is_copy: self.start_method == StartMethod::Fork,
        }
    }

    /// Returns how the environment of this worker differs from that of this process, where there
    /// are `workers` workers and this process may use `cores` cores. The user's own function for it
    /// runs here.
    ///
    /// # Errors
    ///
    /// If that function panics, or gives what is no variable.
    pub(super) fn environment(
        &self,
        number: usize,
        workers: usize,
        cores: usize,
    ) -> io::Result<Environment> {
        let mut environment = self.env.clone();
        if let Some(per_worker) = &self.env_per_worker {
            let original = Original::here();
            let given = panic::catch(|| per_worker(number));
            original.end_copy_after(&given);
            let given = given
                .map_err(|caught| io::Error::other(format!("env_per_worker panicked: {caught}")))?;
            for (name, value) in given {
                environment.set(name, value);
            }
            launch::check_environment(&environment).map_err(io::Error::other)?;
        }
        self.inner_threads.give_to(&mut environment, workers, cores);
        Ok(environment)
    }

    /// Returns the environment of the process that forks the workers. Libraries of which the
    /// workers have copies are loaded in it, and those read their variables then. Threads that a
    /// library starts as it is loaded would not be in the workers, so such a library is told to
    /// start none.
    pub(super) fn server_environment(&self, workers: usize, cores: usize) -> Environment {
        let mut environment = self.env.clone();
        if self.inner_threads != InnerThreads::Inherit {
            for name in STARTS_THREADS_ON_LOAD {
                environment.set_default(name, "1");
            }
        }
        self.inner_threads.give_to(&mut environment, workers, cores);
        environment
    }
}

impl InnerThreads {
    /// Checks that a library can have this many threads.
    pub(in crate::engine) fn check(self) -> Result<(), PoolError> {
        if self != Self::AtMost(0) {
            return Ok(());
        }
        Err(PoolError::InvalidOption {
            option: "inner_threads".into(),
            value: "0".into(),
            reason: "a library needs at least one thread".into(),
        })
    }

    /// Sets the variables for one of `workers` processes where this process may use `cores` cores.
    /// Those that have a value keep it.
    pub(in crate::engine) fn give_to(
        self,
        environment: &mut Environment,
        workers: usize,
        cores: usize,
    ) {
        let most = match self {
            Self::Share => (cores / workers.max(1)).max(1),
            Self::AtMost(most) => most,
            Self::Inherit => return,
        };
        let most = most.to_string();
        for name in INNER_THREADS {
            environment.set_default(name, &most);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hash;
    use std::str::FromStr;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::call::schedule::Schedule;
    use crate::error::PoolError;
    use crate::process::launch;

    fn settings() -> Settings {
        Settings {
            name: "a test's".to_owned(),
            initializer: Some(7),
            memory_limit: Some(8),
            nice: 9,
            ..Settings::default()
        }
    }

    /// Checks that an option is written as this text, by serde too, and read again, and that
    /// another text is refused with a message that names the option.
    fn check<T>(value: &T, text: &str, option: &str)
    where
        T: std::fmt::Display + FromStr<Err = PoolError> + Serialize + DeserializeOwned,
        T: std::fmt::Debug + PartialEq + Hash,
    {
        assert_eq!(value.to_string(), text);
        assert_eq!(text.parse().as_ref(), Ok(value));
        assert_eq!(format!(" {text}\n").parse().as_ref(), Ok(value));
        let json = serde_json::to_string(value).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value);
        let wide = text.len() + 2;
        assert_eq!(format!("{value:>wide$}"), format!("  {text}"));
        for wrong in [
            "",
            "Guided!",
            "dynamic:",
            "spin:5",
            "cores:1,x",
            "at-most:-1",
            ":3",
        ] {
            let error = wrong.parse::<T>().unwrap_err().to_string();
            let start = format!("{option} cannot be {wrong:?}: it can be ");
            assert!(error.starts_with(&start), "{error}");
            assert!(serde_json::from_str::<T>(&format!("{wrong:?}")).is_err());
        }
    }

    #[test]
    fn options_are_written_as_texts_and_read_again() {
        check(&Schedule::Equal, "equal", "schedule");
        check(&Schedule::Guided, "guided", "schedule");
        check(&Schedule::Dynamic(16), "dynamic:16", "schedule");
        check(&StartMethod::Spawn, "spawn", "start_method");
        check(&StartMethod::Fork, "fork", "start_method");
        check(&StartMethod::ForkServer, "forkserver", "start_method");
        check(&WaitPolicy::Balanced, "balanced", "wait_policy");
        check(&WaitPolicy::Park, "park", "wait_policy");
        let spin = WaitPolicy::Spin(Duration::from_micros(200));
        check(&spin, "spin:200us", "wait_policy");
        check(&Affinity::Inherit, "inherit", "affinity");
        check(&Affinity::Spread, "spread", "affinity");
        check(&Affinity::Cores(vec![0, 2]), "cores:0,2", "affinity");
        check(&Affinity::Cores(vec![]), "cores:", "affinity");
        check(&InnerThreads::Share, "share", "inner_threads");
        check(&InnerThreads::Inherit, "inherit", "inner_threads");
        check(&InnerThreads::AtMost(2), "at-most:2", "inner_threads");
    }

    #[test]
    fn each_worker_gets_its_core_of_the_list_and_what_all_get() {
        let mut settings = settings();
        let cores_of = |settings: &Settings| -> Vec<Option<usize>> {
            let setup = |number| {
                let setup = settings.setup(number, &[2, 5]);
                let all = (setup.initializer, setup.memory_limit, setup.nice);
                assert_eq!(all, (Some(7), Some(8), 9));
                setup.core
            };
            (0..4).map(setup).collect()
        };
        assert_eq!(cores_of(&settings), [None; 4]);
        settings.affinity = Affinity::Spread;
        assert_eq!(cores_of(&settings), [2, 5, 2, 5].map(Some));
        settings.affinity = Affinity::Cores(vec![9, 3, 4]);
        assert_eq!(cores_of(&settings), [9, 3, 4, 9].map(Some));
    }

    #[test]
    fn the_cores_are_shared_out_among_the_workers_with_one_thread_at_least() {
        let mut settings = settings();
        // This holds where the environment of this process says nothing of it.
        let own = "VECLIB_MAXIMUM_THREADS";
        let most = |settings: &Settings, workers, cores| {
            let environment = settings.environment(0, workers, cores).unwrap();
            let variables: Vec<_> = environment.changes().collect();
            let is_unset = |name: &&str| std::env::var_os(name).is_none();
            let unset = INNER_THREADS.into_iter().filter(is_unset).count();
            assert!(variables.is_empty() || variables.len() == unset);
            let own = variables.into_iter().find(|(name, _)| *name == own);
            own.and_then(|(_, value)| Some(value?.to_str().unwrap().to_owned()))
        };
        if std::env::var_os(own).is_some() {
            return;
        }
        for (workers, cores, share) in [(1, 8, "8"), (2, 8, "4"), (3, 8, "2"), (9, 8, "1")] {
            let most = most(&settings, workers, cores);
            assert_eq!(most.as_deref(), Some(share), "{workers} on {cores}");
        }
        settings.inner_threads = InnerThreads::AtMost(3);
        assert_eq!(most(&settings, 1, 8).as_deref(), Some("3"));
        settings.inner_threads = InnerThreads::Inherit;
        assert_eq!(most(&settings, 1, 8), None);
    }

    #[test]
    fn what_was_said_for_the_pool_comes_before_what_is_so_by_default() {
        let mut settings = settings();
        let name = INNER_THREADS[3];
        settings.env.set(name, "5");
        settings.env.set("A", "x=y");
        settings.env.remove(INNER_THREADS[4]);
        let environment = settings.environment(0, 1, 1).unwrap();
        let of = |name: &str| {
            let found = environment.changes().find(|(other, _)| *other == name);
            found.map(|(_, value)| value.map(|value| value.to_str().unwrap()))
        };
        assert_eq!(of(name), Some(Some("5")));
        assert_eq!(of("A"), Some(Some("x=y")));
        assert_eq!(of(INNER_THREADS[4]), Some(None));
        launch::check_environment(&environment).unwrap();
    }
}
