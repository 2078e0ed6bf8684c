//! [`Pool`]: the data-parallel interface of every engine.

#[cfg(target_os = "linux")]
mod any;
mod call;
#[cfg(target_os = "linux")]
mod lend;
mod make;
#[cfg(target_os = "linux")]
mod processes;
mod retry;
mod shared;

pub use call::Call;

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::{Duration, Instant};

use crate::call::Limits;
use crate::call::stream::{Imap, ImapUnordered};
use crate::engine::sealed::Internal;
use crate::engine::{Executor, PoolStats, Run, RunOnce, RunReduce, RunWith, Shutdown, Timeline};
use crate::error::{PoolError, TaskError, TryError};
use crate::future::{TaskFuture, wait_for_callbacks};

/// Workers of one kind, ready to run functions on many items at once.
///
/// The type parameter is the engine, so that the compiler knows what may cross to a worker:
/// [`serial`](Self::serial), [`threads`](Self::threads), [`processes`](Self::processes) or
/// [`forked`](Self::forked).
///
/// Dropping a pool cancels the tasks that have not finished. On processes the workers are killed.
/// On threads the tasks that have started come to their end, and their handles give the result. To
/// lose nothing, call [`close`](Self::close) first, or take every result.
///
/// Dropping does not wait for callbacks ([`TaskFuture::on_done`]), and may be done in a callback.
/// They are called soon after, each with the outcome of its task, [`TaskError::Cancelled`] for one
/// that was cancelled. If the program ends before that, they are not called.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let squares: Vec<u64> = pool.map(|x| x * x, 0..1_000u64)?;
/// assert_eq!(squares[999], 998_001);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pool<E: Executor> {
    engine: E,
}

// For the same reason as the engines: a panic that leaves a call leaves the pool usable.
impl<E: Executor> UnwindSafe for Pool<E> {}
impl<E: Executor> RefUnwindSafe for Pool<E> {}

impl<E: Executor> Pool<E> {
    #[cfg(target_os = "linux")]
    pub(crate) fn over(engine: E) -> Self {
        Self { engine }
    }

    /// Returns how many tasks run at once, at most.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::threads(3)?.workers(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn workers(&self) -> usize {
        self.engine.workers()
    }

    /// Returns what the pool is called: the name that its builder was given, or else `pool` and a
    /// number, by which the pools of this process are counted.
    ///
    /// The statistics and the timeline of a pool of processes bear this name, and so do its workers
    /// ([`ProcessesBuilder::name`](crate::engine::ProcessesBuilder::name)), and the threads of a
    /// pool of threads ([`ThreadsBuilder::name`](crate::engine::ThreadsBuilder::name)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let render = Processes::builder().workers(1).name("render").build()?;
    /// assert_eq!(render.name(), "render");
    /// assert!(Pool::threads(1)?.name().starts_with("pool"));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn name(&self) -> &str {
        self.engine.name(Internal)
    }

    /// Returns the engine, for what only it can do or tell.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::serial().engine().kind(), "serial");
    /// ```
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Runs `f` on every item and returns the results in the order of the items.
    ///
    /// Items travel in chunks; [`call`](Self::call) has the options. Blocks until all items are
    /// done, or until one has failed and every item before it has ended. From the moment at which
    /// an item has failed, items after it are not started any more, whatever chunk they are in. On
    /// processes and forked children the call does not wait for those that run; threads cannot be
    /// left alone with what they borrow, so there it does.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] of the first item, in input order, that failed: the same that a serial
    /// loop would have met. Some items after it may have run. (A result that cannot be deserialised
    /// is found when its chunk has ended.)
    ///
    /// # Panics
    ///
    /// If the iterator panics; the pool stays usable.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let lengths = pool.map(|word: &str| word.len(), ["many", "hands"])?;
    /// assert_eq!(lengths, [4, 5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<F, I, R>(&self, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: Run<F, I::Item, R>,
    {
        self.call().map(f, items)
    }

    /// Runs `f` on every item together with a context that all items share, and returns the results
    /// in order.
    ///
    /// On processes the context is serialised once and sent once to each worker, however many items
    /// there are; on the other engines it is borrowed.
    ///
    /// # Errors
    ///
    /// The errors of [`map`](Self::map).
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let table = vec![1.0, 4.0, 9.0];
    /// let scaled = pool.map_with(&(table, 2.0), |(t, s), i| t[i] * s, 0..3usize)?;
    /// assert_eq!(scaled, [2.0, 8.0, 18.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_with<C, F, I, R>(&self, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(&C, I::Item) -> R,
        E: RunWith<C, F, I::Item, R>,
    {
        self.call().map_with(context, f, items)
    }

    /// Runs `f` on every item and returns an outcome for each, in order: nothing is lost when some
    /// items fail.
    ///
    /// If the pool itself fails, every item that did not run for that reason has the pool's failure
    /// as its outcome.
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let each = pool.map_outcomes(
    ///     |x: i32| if x == 1 { std::process::abort() } else { x },
    ///     0..3,
    /// );
    /// assert_eq!((&each[0], &each[2]), (&Ok(0), &Ok(2)));
    /// assert!(matches!(
    ///     each[1],
    ///     Err(TaskError::WorkerDied {
    ///         cause: Death::Signal(6),
    ///         ..
    ///     })
    /// ));
    /// # Ok::<(), PoolError>(())
    /// ```
    #[must_use = "the errors of the items come in the list"]
    pub fn map_outcomes<F, I, R>(&self, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: Run<F, I::Item, R>,
    {
        self.call().map_outcomes(f, items)
    }

    /// Runs `f` on every item, for its effect and not for a result.
    ///
    /// # Errors
    ///
    /// The errors of [`map`](Self::map).
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    ///
    /// let sum = AtomicU32::new(0);
    /// Pool::threads(2)?.for_each(
    ///     |x| {
    ///         sum.fetch_add(x, Ordering::Relaxed);
    ///     },
    ///     1..=4,
    /// )?;
    /// assert_eq!(sum.into_inner(), 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each<F, I>(&self, f: F, items: I) -> Result<(), TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item),
        E: Run<F, I::Item, ()>,
    {
        self.call().for_each(f, items)
    }

    /// Runs `f`, which may fail, on every item, and returns the values in the order of the items.
    /// The first `Err`, in input order, ends the call.
    ///
    /// It ends like a [`map`](Self::map) in which an item panics: once an item has returned an
    /// `Err`, items after it are not started any more, and every item before it still runs to its
    /// end. To get the outcomes of all items, return the `Result`s from `map` or
    /// [`map_outcomes`](Self::map_outcomes).
    ///
    /// On [`Processes`](crate::Processes) and [`Forked`](crate::Forked) the errors cross like the
    /// values: they implement serde's traits. An `anyhow::Error` or a `Box<dyn Error>` becomes a
    /// [`SentError`](crate::SentError) in one line.
    ///
    /// # Errors
    ///
    /// - [`TryError::Item`] with the first error, in input order, and the item's index.
    /// - [`TryError::Task`] if an item before all those with errors has no outcome, and in all
    ///   other cases in which [`map`](Self::map) fails.
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// struct NotANumber(String);
    ///
    /// fn parse(line: String) -> Result<u64, NotANumber> {
    ///     line.parse().map_err(|_| NotANumber(line))
    /// }
    ///
    /// let pool = Pool::processes(2)?;
    /// let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    /// let parsed: Result<Vec<u64>, TryError<NotANumber>> = pool.try_map(parse, lines("1\n2\n3"));
    /// assert_eq!(parsed.unwrap(), [1, 2, 3]);
    /// let error = pool.try_map(parse, lines("1\ntwo\n3")).unwrap_err();
    /// assert_eq!(error.index(), Some(1));
    /// assert_eq!(error.into_item(), Some(NotANumber("two".into())));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn try_map<F, I, R, X>(&self, f: F, items: I) -> Result<Vec<R>, TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<R, X>,
        E: Run<F, I::Item, Result<R, X>>,
    {
        self.call().try_map(f, items)
    }

    /// Runs `f`, which may fail, on every item, for its effect and not for a value. The first
    /// `Err`, in input order, ends the call, as in [`try_map`](Self::try_map).
    ///
    /// # Errors
    ///
    /// The errors of [`try_map`](Self::try_map).
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let check = |size: u64| match size {
    ///     0..100 => Ok(()),
    ///     _ => Err(format!("{size} is too much")),
    /// };
    /// let pool = Pool::threads(2)?;
    /// pool.try_for_each(check, [7, 70]).unwrap();
    /// let error = pool.try_for_each(check, [7, 700, 7_000]).unwrap_err();
    /// assert_eq!(error.to_string(), "item 1 failed: 700 is too much");
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn try_for_each<F, I, X>(&self, f: F, items: I) -> Result<(), TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<(), X>,
        E: Run<F, I::Item, Result<(), X>>,
    {
        self.call().try_for_each(f, items)
    }

    /// Runs `f` on every item, and returns an iterator over the outcomes in the order of the items.
    ///
    /// The iterator is lazy: items are read as results are taken, a window of them ahead
    /// ([`Call::window`]), so the input may be endless. Items travel in chunks that grow as long as
    /// items turn out to be short, unless [`Call::chunk_size`] sets another size. (On
    /// [`Forked`](crate::Forked) each item has a child of its own.) The workers go on while the
    /// caller does something else, so what they work on must be owned: `'static`.
    ///
    /// # Panics
    ///
    /// `next` panics if the input's iterator does. The calls of `next` after that give the outcomes
    /// of the items read before.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let mut first = None;
    /// for square in pool.imap(|x: u64| x * x, 0..) {
    ///     let square = square?;
    ///     if square > 1_000 {
    ///         first = Some(square);
    ///         break;
    ///     }
    /// }
    /// assert_eq!(first, Some(1_024));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap<F, I, R>(&self, f: F, items: I) -> Imap<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: Run<F, I::Item, R>,
    {
        self.call().imap(f, items)
    }

    /// Runs `f` like [`imap`](Self::imap), but each outcome comes as soon as it is there, with the
    /// index of its item.
    ///
    /// # Panics
    ///
    /// In the same cases as [`imap`](Self::imap).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let words = ["many", "hands", "make", "light", "work"].map(String::from);
    /// let mut lengths = vec![0; words.len()];
    /// for (index, length) in pool.imap_unordered(|word: String| word.len(), words) {
    ///     lengths[index] = length?;
    /// }
    /// assert_eq!(lengths, [4, 5, 4, 5, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<F, I, R>(&self, f: F, items: I) -> ImapUnordered<'_, I::IntoIter, R>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: Run<F, I::Item, R>,
    {
        self.call().imap_unordered(f, items)
    }

    /// Runs `f` on every item and reduces the results to one, both on the workers. Returns `None`
    /// if there were no items.
    ///
    /// `reduce` must be associative; the order of the items is kept. A worker folds the items of a
    /// chunk one by one, and what the chunks have come to is reduced in groups. A worker's death
    /// costs a chunk, and [`Call::retries`] runs that again. Such an error does not name an item.
    ///
    /// On a pool of processes `f` may be made by [`closure!`](crate::closure!): what it takes along
    /// is sent once to each worker. `reduce` captures nothing there.
    ///
    /// # Errors
    ///
    /// The errors of [`map`](Self::map).
    ///
    /// # Panics
    ///
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let sum = pool.map_reduce(|x: u64| x * x, |a, b| a + b, 1..=100u64)?;
    /// assert_eq!(sum, Some(338_350));
    /// let prices = vec![2, 3, 5];
    /// let price = closure!([prices] |nth: usize| prices[nth]);
    /// assert_eq!(pool.map_reduce(price, |a, b| a + b, [0, 2, 2])?, Some(12));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_reduce<F, G, I, R>(&self, f: F, reduce: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        G: Fn(R, R) -> R,
        E: RunReduce<F, G, I::Item, R>,
    {
        self.call().map_reduce(f, reduce, items)
    }

    /// Makes a [`Call`]: options of one call, to be ended with a `map`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let squares = pool.call().chunk_size(16).map(|x| x * x, 0..100u32)?;
    /// assert_eq!(squares[9], 81);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call(&self) -> Call<'_, '_, E> {
        Call::new(&self.engine)
    }

    /// Gives one task to the pool, and returns at once with a handle for its result.
    ///
    /// On [`Serial`](crate::Serial) the task has run when this returns. On
    /// [`Forked`](crate::Forked) the child is forked here, and a submit while all children are busy
    /// waits for one to end.
    ///
    /// Every failure, also that of the pool itself, comes out of the handle.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let tasks: Vec<TaskFuture<u64>> =
    ///     (0..4).map(|n| pool.submit(|n: u64| n * 10, n)).collect();
    /// let results: Result<Vec<u64>, TaskError> =
    ///     tasks.into_iter().map(TaskFuture::result).collect();
    /// assert_eq!(results?, [0, 10, 20, 30]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit<F, A, R>(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: Run<F, A, R>,
    {
        // Without what a call with options carries: a short task would feel it.
        self.engine.submit(Limits::of_new_call(), f, argument)
    }

    /// Gives one task to the pool, like [`submit`](Self::submit), whose function may use up what it
    /// captures.
    ///
    /// On [`Processes`](crate::Processes) there is no such form: a worker makes the function anew
    /// from its type. There, what a task uses up is its argument.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::sync::mpsc::channel;
    ///
    /// let pool = Pool::threads(1)?;
    /// let (sender, receiver) = channel();
    /// let data = vec![1, 2, 3];
    /// pool.submit_once(move |()| sender.send(data).unwrap(), ()).result()?;
    /// assert_eq!(receiver.recv()?, [1, 2, 3]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_once<F, A, R>(&self, f: F, argument: A) -> TaskFuture<R>
    where
        F: FnOnce(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: RunOnce<F, A, R>,
    {
        self.engine.submit_once(Limits::of_new_call(), f, argument)
    }

    /// Runs `f` once on each worker, and returns the results in the order of the workers' indices
    /// ([`worker_index`](crate::worker_index)).
    ///
    /// Each worker gets a copy of the argument. A worker that is busy runs its part when it has
    /// time for it, in its turn with the tasks that it has been given. So this waits for the task
    /// that each worker runs, and must not be called by a task of the same pool. A worker that dies
    /// at its part is not asked again.
    ///
    /// The workers of [`Forked`](crate::Forked) are children that are forked for the call: what
    /// `f` changes in them is gone with it. [`Serial`](crate::Serial) runs `f` once.
    ///
    /// # Errors
    ///
    /// The error of the first worker that failed, with its index as that of the item, once all have
    /// ended. [`PoolError::System`] if a task of the pool asks for it on
    /// [`Threads`](crate::Threads). [`TaskError::Cancelled`] if the pool is shut down, or made
    /// smaller, before each worker has begun.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::worker_index;
    ///
    /// let pool = Pool::processes(2)?;
    /// let pids = pool.broadcast(|()| std::process::id(), ())?;
    /// assert!(pids.len() == 2 && pids[0] != pids[1]);
    /// let indices = pool.broadcast(|()| worker_index(), ())?;
    /// assert_eq!(indices, [Some(0), Some(1)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn broadcast<F, A, R>(&self, f: F, argument: A) -> Result<Vec<R>, TaskError>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Clone + Send + 'static,
        R: Send + 'static,
        E: Run<F, A, R>,
    {
        let limits = self.call().limits();
        let arguments = vec![argument; self.workers()];
        let outcomes = self.engine.broadcast(limits, f, arguments);
        let outcomes = outcomes.into_iter().enumerate();
        outcomes
            .map(|(worker, outcome)| outcome.map_err(|error| error.with_index(worker)))
            .collect()
    }

    /// Returns what the workers have done since the pool was made.
    ///
    /// It is counted on every engine, and costs a task next to nothing. What a caller has the
    /// result of is counted. On [`Serial`](crate::Serial) the items of a call are counted at the
    /// end of the call. In a forked child of the process that made the pool there is nothing: the
    /// workers are those of the parent.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let _ = pool.map_outcomes(
    ///     |x: i32| {
    ///         if x == 7 {
    ///             std::process::abort()
    ///         }
    ///     },
    ///     0..10,
    /// );
    /// let stats = pool.stats();
    /// println!("{stats}");
    /// assert_eq!((stats.total().tasks, stats.total().failures.worker_died), (10, 1));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn stats(&self) -> PoolStats {
        self.engine.stats(Internal)
    }

    /// Returns what has run where and when, if the pool's builder was asked for a record
    /// ([`ProcessesBuilder::timeline`](crate::engine::ProcessesBuilder::timeline), and those of the
    /// other engines); otherwise it is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).timeline(true).build()?;
    /// pool.map(|x: u64| x * x, 0..100)?;
    /// let items: usize = pool.timeline().events.iter().map(|event| event.items).sum();
    /// assert_eq!(items, 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeline(&self) -> Timeline {
        self.engine.timeline(Internal)
    }

    /// Takes no more tasks, waits for those it has, and ends the workers. Results not yet taken
    /// stay in their handles.
    ///
    /// Then waits until the callbacks of its tasks ([`TaskFuture::on_done`]) have returned: a
    /// program may end right after this and has run all of them. The caller must not hold a lock
    /// that a callback takes. A call of this function in a callback, of whatever pool, waits for
    /// the tasks and not for callbacks: they would wait for each other.
    ///
    /// It waits for calls of other threads, too. On the serial engine each call runs in its caller,
    /// and closing waits for none.
    ///
    /// Closing twice is the same as once.
    ///
    /// # Errors
    ///
    /// - [`PoolError::OtherProcess`] in a forked child of the process that made the pool.
    /// - [`PoolError::System`] inside a call of this pool, such as in its input or in
    ///   `on_progress`: the call would wait for itself. Not on the serial engine.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let task = pool.submit(|x: i32| x * 2, 21);
    /// pool.close()?;
    /// assert_eq!(task.result()?, 42);
    /// let late = pool.submit(|x: i32| x, 1).result();
    /// assert_eq!(late, Err(PoolError::Closed.into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) -> Result<(), PoolError> {
        self.engine.close(Internal)?;
        wait_for_callbacks(self.engine.id(Internal), None);
        Ok(())
    }

    /// Closes the pool as [`close`](Self::close) does, but waits at most `timeout` for the tasks
    /// and their callbacks. Tasks that have not ended by then fail with [`TaskError::Cancelled`],
    /// and the pool is closed all the same.
    ///
    /// What runs on processes and forked children is stopped by killing its process, and workers
    /// that do not end are killed too. A thread cannot be stopped: on a pool of threads the task
    /// that it runs comes to its end, with its result, after this function has returned; a later
    /// [`close`](Self::close), [`shutdown`](Self::shutdown) or drop does not wait for it. On the
    /// serial engine each call runs in its caller, and closing waits for none.
    ///
    /// # Errors
    ///
    /// [`PoolError::CloseTimedOut`] if a task or callback had not ended in time; else the errors of
    /// [`close`](Self::close).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(2)?;
    /// let short = pool.submit(|x: i32| x + 1, 41);
    /// let endless: TaskFuture<()> = pool.submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// let late = pool.close_timeout(Duration::from_millis(200));
    /// assert!(matches!(late, Err(PoolError::CloseTimedOut { workers: 1, .. })));
    /// assert_eq!(short.result(), Ok(42));
    /// assert!(matches!(endless.result(), Err(TaskError::Cancelled { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn close_timeout(&self, timeout: Duration) -> Result<(), PoolError> {
        // A timeout too long for the clock is no deadline at all.
        let deadline = Instant::now().checked_add(timeout);
        let at_work = self.engine.close_by(deadline, Internal)?;
        let are_callbacks_over = wait_for_callbacks(self.engine.id(Internal), deadline);
        match at_work {
            None if are_callbacks_over => Ok(()),
            at_work => Err(PoolError::CloseTimedOut {
                timeout,
                workers: at_work.unwrap_or(0),
            }),
        }
    }

    /// Takes no more tasks and ends without waiting for those that have not started: they fail with
    /// [`TaskError::Cancelled`]. With [`Shutdown::CancelQueued`] the tasks that run come to their
    /// end. With [`Shutdown::Kill`] they are stopped where that is possible: a thread cannot be
    /// stopped. Returns when the workers have ended and, like [`close`](Self::close), when the
    /// callbacks have returned. In a callback, of whatever pool, it does not wait for callbacks.
    ///
    /// # Errors
    ///
    /// The errors of [`close`](Self::close).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Shutdown;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let tasks: Vec<_> = (0..10)
    ///     .map(|_| {
    ///         pool.submit(
    ///             |()| loop {
    ///                 std::hint::spin_loop()
    ///             },
    ///             (),
    ///         )
    ///     })
    ///     .collect();
    /// pool.shutdown(Shutdown::Kill)?;
    /// for task in tasks {
    ///     let outcome: Result<(), _> = task.result();
    ///     assert!(matches!(outcome, Err(TaskError::Cancelled { .. })));
    /// }
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn shutdown(&self, how: Shutdown) -> Result<(), PoolError> {
        self.engine.shutdown(how, Internal)?;
        wait_for_callbacks(self.engine.id(Internal), None);
        Ok(())
    }
}
