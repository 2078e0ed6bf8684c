//! What can be said about a pool's workers, once, when the pool is made.

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long workers and callers watch for what they wait for before they sleep.
///
/// To wake a process that sleeps takes some 50 µs. A process that watches answers within a
/// microsecond, and uses a core meanwhile.
///
/// # Examples
///
/// ```
/// use manyhands::WaitPolicy;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
/// # Examples
///
/// ```
/// use manyhands::StartMethod::{Fork, ForkServer, Spawn};
/// use manyhands::prelude::*;
/// use std::sync::OnceLock;
///
/// static MODEL: OnceLock<String> = OnceLock::new();
///
/// MODEL.set("loaded".to_owned())?;
/// for (method, has_it) in [(Spawn, false), (ForkServer, false), (Fork, true)] {
///     let builder = Processes::builder().workers(1).start_method(method);
///     let pool = builder.allow_threads().build()?; // doc tests run in several threads
///     assert_eq!(
///         pool.submit(|()| MODEL.get().is_some(), ()).result()?,
///         has_it
///     );
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// On which cores the workers of a pool may run.
///
/// # Examples
///
/// ```
/// use manyhands::Affinity;
/// use manyhands::prelude::*;
///
/// let on = |affinity| Processes::builder().workers(4).affinity(affinity).build();
/// // On four cores, if there are that many.
/// assert_eq!(on(Affinity::Spread)?.map(|x: u8| x / 2, [8, 6])?, [4, 3]);
/// assert!(matches!(on(Affinity::Cores(vec![])), Err(PoolError::InvalidOption { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Affinity {
    /// All workers run on all cores that this process may use: the scheduler decides.
    #[default]
    Inherit,
    /// Each worker runs on one core: worker `n` on the `n`-th of those this process may use, and
    /// again from the first when there are more workers than cores.
    Spread,
    /// Each worker runs on one core of this list, by the system's numbers: worker `n` on the
    /// `n`-th, and again from the first.
    Cores(Vec<usize>),
}

/// How many threads libraries inside a worker may start (`OpenMP`, `OpenBLAS`, MKL, BLIS,
/// Accelerate, numexpr, rayon, and this crate's own pools).
///
/// Such libraries start a thread for each core of the machine. With a worker for each core that
/// makes far too many. The limit goes into the workers' environment, as `OMP_NUM_THREADS` and
/// similar variables, where those are not set already.
///
/// # Examples
///
/// ```
/// use manyhands::InnerThreads;
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
///     
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Where a worker's output goes.
///
/// # Examples
///
/// ```
/// use manyhands::Output;
/// use manyhands::prelude::*;
/// use std::sync::mpsc::channel;
///
/// let (send, receive) = channel();
/// let errors = Output::lines(move |_, line| send.send(line.to_owned()).unwrap());
/// let pool = Processes::builder()
///     .workers(1)
///     .stdout(Output::Null)
///     .stderr(errors)
///     .build()?;
/// pool.submit(
///     |()| {
///         println!("not shown");
///         eprintln!("for you")
///     },
///     (),
/// )
/// .result()?;
/// pool.close()?;
/// assert_eq!(receive.recv()?, "for you");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Output {
    /// The output goes to where this process prints.
    #[default]
    Inherit,
    /// The output goes nowhere.
    Null,
    /// The output goes line by line to a function; see [`Output::lines`].
    Lines(LineCallback),
}

/// The function that [`Output::Lines`] calls.
///
/// # Examples
///
/// ```
/// use manyhands::Output;
/// use manyhands::engine::LineCallback;
/// use manyhands::prelude::*;
/// use std::sync::{Arc, Mutex};
///
/// let log: Arc<Mutex<Vec<String>>> = Arc::default();
/// let copy = Arc::clone(&log);
/// let tell: LineCallback =
///     Arc::new(move |_: &str, line: &str| copy.lock().unwrap().push(line.to_owned()));
/// let builder = Processes::builder()
///     .workers(1)
///     .stderr(Output::Lines(tell.clone()));
/// let pool = builder.stdout(Output::Lines(tell)).build()?; // both in one
/// pool.submit(
///     |()| {
///         println!("out");
///         eprintln!("err")
///     },
///     (),
/// )
/// .result()?;
/// pool.close()?;
/// assert_eq!(log.lock().unwrap().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type LineCallback = Arc<dyn Fn(&str, &str) + Send + Sync>;

impl Output {
    /// Makes an output that calls `tell` with the name of the worker (`manyhands:POOL:0`) and a
    /// line that it has printed, without the line's end. Bytes that are not UTF-8 are replaced, and
    /// a `\r` before the end stays.
    ///
    /// Lines of one worker come in order, on a thread of the pool's. The last line comes also if it
    /// has no end. A line of more than 1 MiB comes in parts. When the pool has ended, all lines
    /// have come.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Output;
    /// use manyhands::prelude::*;
    /// use std::sync::mpsc::channel;
    ///
    /// let (send, receive) = channel();
    /// let tell =
    ///     move |worker: &str, line: &str| send.send(format!("{worker} says {line}")).unwrap();
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .name("talk")
    ///     .stdout(Output::lines(tell))
    ///     .build()?;
    /// pool.submit(|()| println!("hello"), ()).result()?;
    /// pool.close()?;
    /// assert_eq!(receive.recv()?, "manyhands:talk:0 says hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lines(tell: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self::Lines(Arc::new(tell))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inherit => "Inherit",
            Self::Null => "Null",
            Self::Lines(_) => "Lines(..)",
        })
    }
}

/// Returns what a pool is called. Pools without a given name are counted.
pub(super) fn name(given: Option<String>) -> String {
    static POOLS: AtomicU32 = AtomicU32::new(0);
    let given = given.filter(|name| !name.is_empty());
    let name = given.unwrap_or_else(|| format!("pool{}", POOLS.fetch_add(1, Ordering::Relaxed)));
    // The name is printed in tables and by `ps`, where it would end at a NUL.
    name.replace(char::is_control, " ")
}

/// What a builder has been told, and checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) inner_threads: InnerThreads,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    /// The number of the initialiser's entry.
    pub(super) initializer: Option<u64>,
    pub(super) max_tasks: Option<u32>,
    pub(super) memory_limit: Option<u64>,
    pub(super) timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) affinity: Affinity,
    pub(super) nice: i32,
    pub(super) wait_policy: WaitPolicy,
    pub(super) timeline: bool,
    pub(super) start_method: StartMethod,
    /// The number of the function that the fork server runs first.
    pub(super) preload: Option<u64>,
    /// Whether this process may be forked while other threads run.
    pub(super) allow_threads: bool,
}

/// What a worker does to itself before it takes tasks. Part of its greeting.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) initializer: Option<u64>,
    /// The most bytes of data that the worker may have.
    pub(super) memory_limit: Option<u64>,
    /// The core that the worker shall run on.
    pub(super) core: Option<usize>,
    pub(super) nice: i32,
}

impl Settings {
    /// Returns the setup of worker `number`, where this process may use these cores.
    pub(super) fn setup(&self, number: usize, cores: &[usize]) -> Setup {
        let list = match &self.affinity {
            Affinity::Inherit => &[],
            Affinity::Spread => cores,
            Affinity::Cores(list) => list.as_slice(),
        };
        Setup {
            initializer: self.initializer,
            memory_limit: self.memory_limit,
            core: (!list.is_empty()).then(|| list[number % list.len()]),
            nice: self.nice,
        }
    }

    /// Returns variables of a worker's environment, where there are `workers` workers and this
    /// process may use `cores` cores.
    pub(super) fn variables(
        &self,
        workers: usize,
        cores: usize,
    ) -> impl Iterator<Item = (OsString, OsString)> {
        let most = match self.inner_threads {
            InnerThreads::Share => Some((cores / workers.max(1)).max(1)),
            InnerThreads::AtMost(most) => Some(most),
            InnerThreads::Inherit => None,
        };
        let caps = most.into_iter().flat_map(|most| {
            let unset = |name: &&str| std::env::var_os(name).is_none();
            let with_value = move |name: &str| (name.into(), most.to_string().into());
            INNER_THREADS.into_iter().filter(unset).map(with_value)
        });
        // The variables that the builder set for this pool come last, and win.
        caps.chain(self.env.iter().cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let variables: Vec<_> = settings.variables(workers, cores).collect();
            let is_unset = |name: &&str| std::env::var_os(name).is_none();
            let unset = INNER_THREADS.into_iter().filter(is_unset).count();
            assert!(variables.is_empty() || variables.len() == unset);
            let own = variables.into_iter().find(|(name, _)| name == own);
            own.map(|(_, value)| value.into_string().unwrap())
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
    fn what_was_said_for_the_pool_comes_after_what_is_so_by_default() {
        let mut settings = settings();
        let name = INNER_THREADS[3];
        settings.env = vec![(name.into(), "5".into()), ("A".into(), "x=y".into())];
        let variables: Vec<_> = settings.variables(1, 1).collect();
        assert!(variables.ends_with(&settings.env), "{variables:?}");
        let all = || settings.env.iter();
        assert!(all().all(|(name, value)| launch::check_variable(name, value).is_ok()));
    }
}
