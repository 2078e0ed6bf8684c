//! [`Call`]: the options of one call, and the plan that they make for the engine.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use crate::call::progress::{Callback, Progress, Tracker};
use crate::call::retry::{Once, Retrying};
use crate::call::schedule::{Schedule, exact_len};
use crate::call::seed::Seeds;
use crate::call::stream::{Imap, ImapUnordered, Input};
use crate::call::{AtErr, Limits, Never, Plan, Retry};
use crate::engine::{Executor, Run, RunOnce, RunReduce, RunWith};
use crate::error::{TaskError, TryError};
use crate::future::{CancellationToken, Ending, TaskFuture, ending_of};

/// Options of one call on a [`Pool`](crate::Pool), made by [`Pool::call`](crate::Pool::call).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let mut seen = 0;
/// let cubes = pool
///     .call()
///     .schedule(Schedule::Dynamic(4))
///     .retries(1)
///     .on_progress(|p| seen = p.done)
///     .map(|x: u64| x.pow(3), 0..20)?;
/// assert_eq!((cubes[19], seen), (6_859, 20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The last type parameter says which bounds the calls have: [`retry`](Self::retry) sets it to
/// [`Retrying`].
#[must_use = "a call does nothing until it is ended with `map`"]
pub struct Call<'p, 'c, E: Executor, M = Once> {
    engine: &'p E,
    /// The schedule that the caller has set. `None` if it has set none: the default differs between
    /// calls that know their input and lazy ones.
    schedule: Option<Schedule>,
    limits: Limits,
    seed: Option<u64>,
    window: Option<usize>,
    kills: bool,
    /// What may end the call early. Most calls have nothing of it, and none of its size.
    ends: Option<Box<Ends>>,
    progress: Option<Callback<'c>>,
    manner: PhantomData<M>,
}

/// What may end a call early.
#[derive(Default)]
struct Ends {
    tokens: Vec<CancellationToken>,
    deadline: Option<Instant>,
}

impl Ends {
    #[cold]
    fn ending(&self, grace: Option<Duration>) -> Option<Ending> {
        ending_of(&self.tokens, self.deadline, grace)
    }
}

impl<'p, E: Executor> Call<'p, '_, E> {
    pub(super) fn new(engine: &'p E) -> Self {
        Self {
            manner: PhantomData,
            engine,
            schedule: None,
            limits: Limits::none(),
            seed: None,
            window: None,
            kills: false,
            ends: None,
            progress: None,
        }
    }
}

impl<'p, 'c, E: Executor, M> Call<'p, 'c, E, M> {
    /// Sets how many items a chunk has: short for [`Schedule::Dynamic`]. A chunk size of 0 makes
    /// the call fail with [`TaskError::InvalidCall`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::serial();
    /// assert_eq!(pool.call().chunk_size(2).map(|x| x + 1, 0..3)?, [1, 2, 3]);
    /// assert!(matches!(
    ///     pool.call().chunk_size(0).map(|x| x + 1, 0..3),
    ///     Err(TaskError::InvalidCall { .. })
    /// ));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn chunk_size(self, items: usize) -> Self {
        self.schedule(Schedule::Dynamic(items))
    }

    /// Sets how items are cut into chunks. The default is [`Schedule::Guided`].
    ///
    /// [`Schedule::Equal`] must know how many items there are: an input that does not say so is
    /// read to its end first.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// assert_eq!(
    ///     pool.call().schedule(Schedule::Equal).map(|x| x * 2, 0..4)?,
    ///     [0, 2, 4, 6]
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// Sets how long each item may take, from its start. An item that takes longer fails with
    /// [`TaskError::TimedOut`]. With a limit of zero all items fail in this way, and none is
    /// started.
    ///
    /// On processes and forked children the item is stopped at that moment by killing its process,
    /// and nothing else is lost. A thread cannot be stopped: on the other engines the item comes to
    /// its end, and its result is thrown away.
    ///
    /// The limit also ends an item that could start and does not, because its process is stopped
    /// (SIGSTOP, a debugger) and no other one can take the item. That may take some 50 ms longer
    /// than the limit; in a frozen container, a second.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(2)?;
    /// let spin = |forever: bool| {
    ///     while forever {
    ///         std::hint::spin_loop()
    ///     }
    /// };
    /// let limit = Duration::from_millis(200);
    /// let each = pool
    ///     .call()
    ///     .timeout(limit)
    ///     .map_outcomes(spin, [false, true, false]);
    /// assert_eq!((&each[0], &each[2]), (&Ok(()), &Ok(())));
    /// assert!(matches!(each[1], Err(TaskError::TimedOut { index, .. }) if index == Some(1)));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limits = self.limits.with(|given| given.timeout = Some(limit));
        self
    }

    /// Sets how many items are read ahead, at most, of the first one whose result is not there yet
    /// (for [`imap`](Self::imap): has not been taken). A window of 0 makes the call fail with
    /// [`TaskError::InvalidCall`].
    ///
    /// By default, a long or lazy input is read as far ahead as keeps all workers busy, and no
    /// further.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::cell::Cell;
    ///
    /// let pool = Pool::threads(2)?;
    /// let read = Cell::new(0);
    /// let endless = std::iter::repeat_with(|| read.replace(read.get() + 1));
    /// let mut doubled = pool.call().window(10).imap(|x: u64| 2 * x, endless);
    /// assert_eq!(doubled.next(), Some(Ok(0)));
    /// assert!(read.get() <= 11);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items);
        self
    }

    /// Runs an item again, at most this many times, when the worker that ran it died. The default
    /// is 0.
    ///
    /// It is [`retry`](Self::retry) with [`Retry::up_to(retries)`](Retry::up_to), and replaces a
    /// policy that was set before. On engines whose workers cannot die alone this changes nothing,
    /// and so it asks for no [`Clone`]. Other causes than deaths, and pauses: see `retry`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let failed = pool
    ///     .call()
    ///     .retries(2)
    ///     .map(|code| -> () { std::process::exit(code) }, [3]);
    /// let Err(TaskError::WorkerDied { attempts, .. }) = failed else {
    ///     panic!("{failed:?}")
    /// };
    /// assert_eq!(attempts, 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        let policy = Retry::up_to(retries);
        self.limits = self.limits.with(|given| given.retry = policy);
        self
    }

    /// Runs an item again as this policy says, when it has failed. Without one, and without
    /// [`retries`](Self::retries), each item has one attempt.
    ///
    /// Errors say how often the item was started ([`TaskError::attempts`],
    /// [`TryError::attempts`]); the error is that of the last attempt. After that the item fails as
    /// it would without a policy: alone, or with its call. Each attempt has the whole
    /// [`timeout`](Self::timeout), the whole [`grace_period`](Self::grace_period) and the same
    /// [seed](crate::item_seed). What would come again is not tried again: an argument that cannot
    /// be decoded, a result that cannot be encoded, an item with a limit of zero. Nothing is tried
    /// again once a token or a deadline has ended the call.
    ///
    /// On threads and [`Serial`](crate::Serial) items must be [`Clone`], because each attempt uses
    /// one up; on processes and forked children the parent keeps them anyway. The bound of these
    /// calls is [`RunAgain`](crate::RunAgain). They are `map`, `map_outcomes`, `for_each`,
    /// `try_map`, `try_for_each`, `imap`, `imap_unordered`, `submit`, and those that lend arrays,
    /// whose chunks are begun again with what is in them by then. `map_with` and `map_reduce` do
    /// not take a policy, and do not compile with one: use `closure!` for the one, and
    /// [`retries`](Self::retries) for the other.
    ///
    /// On forked children a submitted task, or an item of a lazy call, is tried again by a child
    /// that is forked later: see [`Forked`](crate::Forked).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{Retry, RetryOn};
    /// use std::time::Duration;
    ///
    /// // Fails until its file is there.
    /// fn work(path: String) -> u8 {
    ///     if !std::fs::exists(&path).unwrap() {
    ///         std::fs::write(&path, "was here").unwrap();
    ///         std::process::abort();
    ///     }
    ///     7
    /// }
    ///
    /// let path = std::env::temp_dir().join(format!("retry-{}", std::process::id()));
    /// let policy = Retry::up_to(3)
    ///     .on(RetryOn::DEATH | RetryOn::TIMEOUT | RetryOn::PANIC)
    ///     .backoff(Duration::from_millis(10));
    /// let pool = Pool::processes(2)?;
    /// let items = [path.display().to_string()];
    /// assert_eq!(pool.call().retry(policy).map(work, items)?, [7]);
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retry(self, policy: Retry) -> Call<'p, 'c, E, Retrying> {
        let Self {
            engine,
            schedule,
            limits,
            seed,
            window,
            kills,
            ends,
            progress,
            manner: _,
        } = self;
        let limits = limits.with(|given| given.retry = policy);
        Call {
            engine,
            schedule,
            limits,
            seed,
            window,
            kills,
            ends,
            progress,
            manner: PhantomData,
        }
    }

    /// Calls `tell` on the caller's thread while items end: at least four times a second, whatever
    /// the chunks, and once when all have ended. (A lazy call tells of its chunks when their
    /// results are taken. A call on threads that is made by a task of the same pool runs chunks
    /// itself, and tells when one has ended.) An empty input has no items that could end; some
    /// engines call `tell` once with 0 items then, others do not. [`submit`](Self::submit) does not
    /// call it.
    ///
    /// Of a lazy call the caller is the one that takes the results, which can be another thread. So
    /// `tell` must be [`Send`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let mut last = None;
    /// Pool::serial()
    ///     .call()
    ///     .on_progress(|p| last = Some((p.done, p.total)))
    ///     .map(|x| x, 0..3)?;
    /// assert_eq!(last, Some((3, Some(3))));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn on_progress(mut self, tell: impl FnMut(&Progress) + Send + 'c) -> Self {
        self.progress = Some(Box::new(tell));
        self
    }

    /// Derives the seeds of the items ([`item_seed`](crate::item_seed)) from this number: they are
    /// the same in every call with it, on every engine. By default, each call has other seeds.
    ///
    /// A [submitted](Self::submit) task is item 0 of a call of its own: tasks that are submitted
    /// with the same number have the same seed.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::item_seed;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let ask = |_: u32| item_seed();
    /// let seeds = pool.call().seed(7).map(ask, 0..100)?;
    /// assert_eq!(pool.call().seed(7).chunk_size(3).map(ask, 0..100)?, seeds);
    /// assert_eq!(Pool::threads(3)?.call().seed(7).map(ask, 0..100)?, seeds);
    /// assert_ne!(pool.map(ask, 0..100)?, seeds);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// With `true`, dropping what the call returns before its end kills the items that run: the
    /// handle of a [submitted](Self::submit) task ([`TaskFuture::kill_on_drop`]), or the iterator
    /// of a lazy call ([`imap`](Self::imap), [`imap_unordered`](Self::imap_unordered)). The default
    /// is `false`: items that run come to their end.
    ///
    /// On processes and forked children an item is stopped by killing its process. A thread cannot
    /// be stopped: on the other engines this changes nothing. Other calls return when all their
    /// items have ended, and there is nothing to drop.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let spin = |forever: bool| {
    ///     while forever {
    ///         std::hint::spin_loop()
    ///     }
    /// };
    /// let mut calls = pool.call().kill_on_drop(true).imap(spin, [false, true]);
    /// assert_eq!(calls.next(), Some(Ok(())));
    /// drop(calls);
    /// assert_eq!(pool.submit(spin, false).result(), Ok(())); // the worker is free
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn kill_on_drop(mut self, kills: bool) -> Self {
        self.kills = kills;
        self
    }

    /// Ends the call when the token is cancelled, whatever it is made with: `map` and its like,
    /// [`submit`](Self::submit), lazy calls. With several tokens, the first that is cancelled ends
    /// it.
    ///
    /// Items that have not started never will, and fail with [`TaskError::Cancelled`]. With a token
    /// that is cancelled already, none starts and no input is read. `map` and its like return when
    /// the first failure in input order is certain, as ever; [`map_outcomes`](Self::map_outcomes)
    /// still gives an outcome for each item. A lazy call gives the outcomes of the items that it
    /// has read, then one error for the rest of its input, and ends.
    ///
    /// On processes and forked children, items that run fail too: their processes are killed. What
    /// runs in this process, on threads and in turn, comes to its end by itself. Calls that lend
    /// what they work with (`map` and its like) wait for that, and what ran has its result.
    /// Submitted tasks and lazy calls do not wait: what runs has been cancelled for the caller, and
    /// its result is thrown away when it comes. Only a task that cancels its own token goes on to
    /// have a result.
    ///
    /// The caller reads the input of a call: while the input keeps it waiting, it returns from
    /// there first.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::CancellationToken;
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// let token = CancellationToken::new();
    /// let outcome = std::thread::scope(|scope| {
    ///     let call = pool.call().cancel_on(&token);
    ///     let endless = |_: u32| loop {
    ///         std::hint::spin_loop()
    ///     };
    ///     let call = scope.spawn(move || call.for_each(endless, 0..100));
    ///     token.cancel();
    ///     call.join().unwrap()
    /// });
    /// assert!(matches!(outcome, Err(TaskError::Cancelled { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        let ends = self.ends.get_or_insert_default();
        ends.tokens.push(token.clone());
        self
    }

    /// Sets when the call as a whole must have ended, whatever it is made with: `map` and its like,
    /// [`submit`](Self::submit), lazy calls. What has no result by then fails with
    /// [`TaskError::DeadlineExceeded`], and what has not started never will.
    ///
    /// At the deadline the call ends as by [`cancel_on`](Self::cancel_on): processes of items that
    /// run are killed, and what runs on a thread comes to its end by itself. Its result is thrown
    /// away, so that what came too late is the same on every engine. The limit of each single item
    /// is [`timeout`](Self::timeout).
    ///
    /// A thread keeps the deadlines of submitted tasks and lazy calls. If the system refuses it,
    /// they fail with [`PoolError::System`](crate::PoolError::System) and nothing starts.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::{Duration, Instant};
    ///
    /// let pool = Pool::processes(2)?;
    /// let spin = |forever: bool| {
    ///     while forever {
    ///         std::hint::spin_loop()
    ///     }
    /// };
    /// let soon = Instant::now() + Duration::from_secs(1);
    /// let each = pool.call().deadline(soon).map_outcomes(spin, [false, true, false]);
    /// assert_eq!(each[0], Ok(()));
    /// assert!(matches!(each[1], Err(TaskError::DeadlineExceeded { .. })));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.ends.get_or_insert_default().deadline = Some(deadline);
        self
    }

    /// Gives a task that runs this much time to end by itself, when it is to end: at its limit
    /// ([`timeout`](Self::timeout)), at the [`deadline`](Self::deadline) of the call, or when a
    /// token of the call is cancelled ([`cancel_on`](Self::cancel_on)). From then on
    /// [`should_stop`](crate::should_stop) returns true inside the task. The default is no time.
    ///
    /// What the task returns within the period is its result, as if it had ended before: it may be
    /// a part of the work. A task that goes on after it fails, as it would without one at once:
    /// with [`TaskError::TimedOut`], [`TaskError::DeadlineExceeded`] or [`TaskError::Cancelled`].
    ///
    /// - On processes and forked children it is killed then.
    /// - On threads and in turn it cannot be killed. Its result is thrown away, except that of a
    ///   task in `map` and its like whose call was cancelled by a token: those wait for it anyway.
    ///   The handle of a submitted task, and a lazy call, end with the period.
    ///
    /// Items that have not started when the call is to end never will, and none is tried again
    /// ([`retry`](Self::retry)): what comes of an attempt in the period is its outcome. `map` and
    /// its like return when the first failure in input order is certain, as ever; what still runs
    /// then has the rest of the period. `map_reduce` reduces nothing more, and has no result.
    ///
    /// A thread ends the period. If the system refuses it, the period is cut short.
    ///
    /// # Examples
    ///
    /// What each item has found when the user presses a key:
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{CancellationToken, should_stop};
    /// use std::time::Duration;
    ///
    /// /// Counts until it is told to stop.
    /// fn count(from: u64) -> u64 {
    ///     (from..).find(|_| should_stop()).unwrap_or(u64::MAX)
    /// }
    ///
    /// let pool = Pool::processes(2)?;
    /// let pressed = CancellationToken::new();
    /// let call = || pool.call().cancel_on(&pressed).grace_period(Duration::from_secs(10));
    /// let tasks = [0, 1_000].map(|from| call().submit(count, from));
    /// while !tasks.iter().all(TaskFuture::is_running) {
    ///     std::thread::yield_now();
    /// }
    /// pressed.cancel();
    /// let [low, high] = tasks.map(TaskFuture::result);
    /// assert!(low.is_ok());
    /// assert!(high? >= 1_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grace_period(mut self, grace: Duration) -> Self {
        self.limits = self.limits.with(|given| given.grace = Some(grace));
        self
    }

    /// Returns the limits of the call's tasks, with their seeds.
    #[inline]
    pub(super) fn limits(&self) -> Limits {
        let mut limits = self.limits.clone();
        limits.seeds = Seeds::of_call(self.seed);
        match &self.ends {
            None => limits,
            Some(ends) => {
                let ending = ends.ending(limits.grace());
                limits.with(|given| given.ending = ending)
            }
        }
    }

    #[inline]
    pub(crate) fn plan(self, total: Option<usize>) -> (&'p E, Plan<'c>) {
        let limits = self.limits();
        let tracker = Tracker::new(self.progress, total);
        (
            self.engine,
            Plan {
                schedule: self.schedule.unwrap_or_default(),
                limits,
                window: self.window,
                kills: self.kills,
                total,
                tracker,
            },
        )
    }

    /// Lets `run` make the call. If the input must be known in full and does not say how long it
    /// is, reads it first.
    pub(super) fn run<I: Iterator, T>(
        self,
        items: I,
        run: impl FnOnce(&'p E, Plan<'c>, Input<I>) -> T,
    ) -> T {
        let total = exact_len(items.size_hint());
        if self.schedule == Some(Schedule::Equal) && total.is_none() {
            let items: Vec<I::Item> = items.collect();
            let (engine, plan) = self.plan(Some(items.len()));
            run(engine, plan, Input::Read(items.into_iter()))
        } else {
            let (engine, plan) = self.plan(total);
            run(engine, plan, Input::Lazy(items))
        }
    }

    /// Submits a task with the limits of this call, and has it end with the call.
    #[inline]
    pub(super) fn submitted<R: Send + 'static>(
        self,
        submit: impl FnOnce(&E, Limits) -> TaskFuture<R>,
    ) -> TaskFuture<R> {
        let limits = self.limits();
        let ending = match limits.ending() {
            None => None,
            Some(ending) => match begin(ending) {
                Ok(ending) => Some(ending),
                Err(error) => return TaskFuture::ready(Err(error)),
            },
        };
        // The one place that submits: then it is a part of the caller's code.
        let task = submit(self.engine, limits);
        if let Some(ending) = ending {
            task.end_with(&ending);
        }
        task.kill_on_drop(self.kills)
    }

    /// Returns the schedule that was set.
    pub(super) fn given_schedule(&self) -> Option<Schedule> {
        self.schedule
    }
}

impl<'p, 'c, E: Executor> Call<'p, 'c, E> {
    /// Runs [`Pool::map`](crate::Pool::map) with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::map`](crate::Pool::map), and [`TaskError::InvalidCall`].
    ///
    /// # Panics
    ///
    /// If the iterator or the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(Pool::serial().call().map(|x| x * x, [1, 2, 3])?, [1, 4, 9]);
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn map<F, I, R>(self, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: Run<F, I::Item, R>,
    {
        // Does not use `run`: an iterator in a wrapper is read more slowly, which would show with
        // items of few nanoseconds.
        let items = items.into_iter();
        let total = exact_len(items.size_hint());
        if self.schedule == Some(Schedule::Equal) && total.is_none() {
            return self.map_read(f, items.collect());
        }
        let (engine, plan) = self.plan(total);
        engine.map(plan, f, items, Never)
    }

    /// Makes a call of `map` whose input has been read in full.
    #[cold]
    fn map_read<F, A, R>(self, f: F, items: Vec<A>) -> Result<Vec<R>, TaskError>
    where
        F: Fn(A) -> R,
        E: Run<F, A, R>,
    {
        let (engine, plan) = self.plan(Some(items.len()));
        engine.map(plan, f, items.into_iter(), Never)
    }

    /// Runs [`Pool::map_outcomes`](crate::Pool::map_outcomes) with these options. If the options
    /// contradict themselves, every item has that error.
    ///
    /// # Panics
    ///
    /// If the iterator or the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let each = Pool::serial().call().map_outcomes(|x| 10 / x, [5, 0, 2]);
    /// assert_eq!((&each[0], &each[2]), (&Ok(2), &Ok(5)));
    /// assert_eq!(each[1].as_ref().unwrap_err().index(), Some(1));
    /// ```
    #[must_use = "the errors of the items come in the list"]
    pub fn map_outcomes<F, I, R>(self, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: Run<F, I::Item, R>,
    {
        self.run(items.into_iter(), |engine, plan, items| {
            engine.map_outcomes(plan, f, items)
        })
    }

    /// Runs [`Pool::for_each`](crate::Pool::for_each) with these options.
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
    /// Pool::serial()
    ///     .call()
    ///     .for_each(|x| assert!(x > 0), [1, 2, 3])?;
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn for_each<F, I>(self, f: F, items: I) -> Result<(), TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item),
        E: Run<F, I::Item, ()>,
    {
        // A vector of units takes no memory.
        self.map(f, items).map(drop)
    }

    /// Runs [`Pool::try_map`](crate::Pool::try_map) with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::try_map`](crate::Pool::try_map), and [`TaskError::InvalidCall`].
    ///
    /// # Panics
    ///
    /// If the iterator or the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let half = |x: u32| if x % 2 == 0 { Ok(x / 2) } else { Err(x) };
    /// let pool = Pool::threads(2)?;
    /// let call = || pool.call().chunk_size(2);
    /// assert_eq!(call().try_map(half, [2, 4, 6]).unwrap(), [1, 2, 3]);
    /// assert_eq!(call().try_map(half, [2, 5, 7]).unwrap_err().into_item(), Some(5));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn try_map<F, I, R, X>(self, f: F, items: I) -> Result<Vec<R>, TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<R, X>,
        E: Run<F, I::Item, Result<R, X>>,
    {
        let tried = AtomicU32::new(1);
        let attempts = Some(&tried);
        let results = self.run(items.into_iter(), |engine, plan, items| {
            engine.map(plan, f, items, AtErr { attempts })
        })?;
        up_to_err(results, tried.into_inner())
    }

    /// Runs [`Pool::try_for_each`](crate::Pool::try_for_each) with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`try_map`](Self::try_map).
    ///
    /// # Panics
    ///
    /// In the same cases as [`try_map`](Self::try_map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let check = |x: u32| if x < 3 { Ok(()) } else { Err("too large") };
    /// let error = Pool::serial().call().try_for_each(check, 0..9).unwrap_err();
    /// assert_eq!((error.index(), error.into_item()), (Some(3), Some("too large")));
    /// ```
    pub fn try_for_each<F, I, X>(self, f: F, items: I) -> Result<(), TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<(), X>,
        E: Run<F, I::Item, Result<(), X>>,
    {
        self.try_map(f, items).map(drop)
    }

    /// Runs [`Pool::imap`](crate::Pool::imap) with these options.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let lengths = pool
    ///     .call()
    ///     .chunk_size(16)
    ///     .imap(|word: &str| word.len(), ["many", "hands"]);
    /// assert_eq!(lengths.collect::<Result<Vec<_>, _>>()?, [4, 5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap<F, I, R>(self, f: F, items: I) -> Imap<'c, I::IntoIter, R>
    where
        'p: 'c,
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: Run<F, I::Item, R>,
    {
        let schedule = self.schedule;
        self.run(items.into_iter(), |engine, plan, items| {
            let limits = plan.limits.clone();
            Imap::new(engine.stream(limits, f), schedule, plan, items)
        })
    }

    /// Runs [`Pool::imap_unordered`](crate::Pool::imap_unordered) with these options.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let doubled = pool
    ///     .call()
    ///     .chunk_size(2)
    ///     .imap_unordered(|x: u64| 2 * x, 0..10);
    /// assert!(
    ///     doubled
    ///         .into_iter()
    ///         .all(|(index, result)| result == Ok(2 * index as u64))
    /// );
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn imap_unordered<F, I, R>(self, f: F, items: I) -> ImapUnordered<'c, I::IntoIter, R>
    where
        'p: 'c,
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: Run<F, I::Item, R>,
    {
        let schedule = self.schedule;
        self.run(items.into_iter(), |engine, plan, items| {
            let limits = plan.limits.clone();
            ImapUnordered::new(engine.stream(limits, f), schedule, plan, items)
        })
    }

    /// Runs [`Pool::map_reduce`](crate::Pool::map_reduce) with these options. A
    /// [`timeout`](Self::timeout) makes it fail with [`TaskError::InvalidCall`], because its unit
    /// of work is a chunk.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::map_reduce`](crate::Pool::map_reduce), and [`TaskError::InvalidCall`].
    ///
    /// # Panics
    ///
    /// If the iterator or the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// let longest = pool.call().chunk_size(2).map_reduce(
    ///     str::len,
    ///     usize::max,
    ///     ["many", "hands", "make"],
    /// )?;
    /// assert_eq!(longest, Some(5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_reduce<F, G, I, R>(self, f: F, reduce: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        G: Fn(R, R) -> R,
        E: RunReduce<F, G, I::Item, R>,
    {
        self.run(items.into_iter(), |engine, plan, items| {
            engine.map_reduce(plan, f, reduce, items)
        })
    }

    /// Runs [`Pool::submit`](crate::Pool::submit) with the options that a single task can have:
    /// [`timeout`](Self::timeout), [`retries`](Self::retries), [`seed`](Self::seed),
    /// [`kill_on_drop`](Self::kill_on_drop), [`cancel_on`](Self::cancel_on) and
    /// [`deadline`](Self::deadline).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(1)?;
    /// let limit = Duration::from_millis(100);
    /// let endless = pool.call().timeout(limit).submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// let outcome: Result<(), _> = endless.result();
    /// assert!(matches!(outcome, Err(TaskError::TimedOut { limit: l, .. }) if l == limit));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn submit<F, A, R>(self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: Run<F, A, R>,
    {
        self.submitted(|engine, limits| engine.submit(limits, f, argument))
    }

    /// Runs [`Pool::submit_once`](crate::Pool::submit_once) with the options that
    /// [`submit`](Self::submit) takes. No engine that runs a function once runs it again, whatever
    /// [`retries`](Self::retries) says.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let words = vec![String::from("many"), String::from("hands")];
    /// let pool = Pool::threads(1)?;
    /// let call = pool.call().timeout(Duration::from_secs(60));
    /// let text = call.submit_once(move |()| words.concat(), ());
    /// assert_eq!(text.result()?, "manyhands");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_once<F, A, R>(self, f: F, argument: A) -> TaskFuture<R>
    where
        F: FnOnce(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: RunOnce<F, A, R>,
    {
        self.submitted(|engine, limits| engine.submit_once(limits, f, argument))
    }

    /// Runs [`Pool::map_with`](crate::Pool::map_with) with these options.
    ///
    /// # Errors
    ///
    /// The errors of [`Pool::map_with`](crate::Pool::map_with), and [`TaskError::InvalidCall`].
    ///
    /// # Panics
    ///
    /// If the iterator or the progress callback panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// assert_eq!(
    ///     Pool::serial()
    ///         .call()
    ///         .map_with(&10, |ten, x| ten * x, [1, 2])?,
    ///     [10, 20]
    /// );
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn map_with<C, F, I, R>(self, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(&C, I::Item) -> R,
        E: RunWith<C, F, I::Item, R>,
    {
        self.run(items.into_iter(), |engine, plan, items| {
            engine.map_with(plan, context, f, items)
        })
    }
}

/// Returns the results of a call that stops at an `Err`, or that `Err`, whose item was started
/// `attempts` times.
pub(super) fn up_to_err<R, X>(
    results: Vec<Result<R, X>>,
    attempts: u32,
) -> Result<Vec<R>, TryError<X>> {
    let results = results.into_iter().enumerate();
    let failed = |index, error| TryError::Item {
        index,
        error,
        attempts,
    };
    let results = results.map(|(index, result)| result.map_err(|error| failed(index, error)));
    results.collect()
}

/// Begins a submitted task of a call that may end early.
///
/// # Errors
///
/// Why it is over already, or cannot be ended at its deadline.
#[cold]
fn begin(ending: &Ending) -> Result<Ending, TaskError> {
    if let Some(reason) = ending.reason() {
        return Err(reason.error());
    }
    ending.arm()?;
    Ok(ending.clone())
}

impl<E: Executor, M> fmt::Debug for Call<'_, '_, E, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("engine", &self.engine.kind())
            .field("schedule", &self.schedule)
            .field("limits", &self.limits)
            .field(
                "deadline",
                &self.ends.as_ref().and_then(|ends| ends.deadline),
            )
            .finish_non_exhaustive()
    }
}
