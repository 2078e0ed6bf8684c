//! [`Call`]: the options of one call, and the plan they make for the engine.

use std::fmt;

use super::progress::{Callback, Progress, Tracker};
use super::schedule::{Chunks, Schedule, exact_len};
use crate::engine::{Executor, Run, RunWith};
use crate::error::TaskError;

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
#[must_use = "a call does nothing until it is ended with `map`"]
pub struct Call<'p, 'c, E: Executor> {
    engine: &'p E,
    schedule: Schedule,
    retries: u32,
    progress: Option<Callback<'c>>,
}

/// What an engine needs to know of a call besides function and items.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Plan<'c> {
    pub(crate) schedule: Schedule,
    pub(crate) retries: u32,
    /// Items in all, if the input says so. A hint, which a wrong iterator may get wrong.
    pub(crate) total: Option<usize>,
    pub(crate) tracker: Tracker<'c>,
}

impl Plan<'_> {
    /// # Errors
    ///
    /// A chunk size of zero.
    pub(crate) fn chunks(&self, workers: usize) -> Result<Chunks, TaskError> {
        Chunks::new(self.schedule, workers, self.total)
    }
}

impl<'p, 'c, E: Executor> Call<'p, 'c, E> {
    pub(super) fn new(engine: &'p E) -> Self {
        Self {
            engine,
            schedule: Schedule::default(),
            retries: 0,
            progress: None,
        }
    }

    /// Hands out items in chunks of this many: short for [`Schedule::Dynamic`]. A chunk size of 0 makes the call fail
    /// with [`TaskError::InvalidCall`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::serial();
    /// assert_eq!(pool.call().chunk_size(2).map(|x| x + 1, 0..3)?, [1, 2, 3]);
    /// assert!(matches!(pool.call().chunk_size(0).map(|x| x + 1, 0..3), Err(TaskError::InvalidCall { .. })));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn chunk_size(self, items: usize) -> Self {
        self.schedule(Schedule::Dynamic(items))
    }

    /// How items are cut into chunks; [`Schedule::Guided`] unless said otherwise.
    ///
    /// [`Schedule::Equal`] must know how many items there are: an input that does not say so is read to its end first.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::threads(2)?;
    /// assert_eq!(pool.call().schedule(Schedule::Equal).map(|x| x * 2, 0..4)?, [0, 2, 4, 6]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Runs an item again, at most this many times, when the worker that ran it died; 0 unless said otherwise.
    ///
    /// A panic is not a death: it would come again. On engines whose workers cannot die alone this changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let failed = pool.call().retries(2).map(|code| -> () { std::process::exit(code) }, [3]);
    /// let Err(TaskError::WorkerDied { attempts, .. }) = failed else { panic!("{failed:?}") };
    /// assert_eq!(attempts, 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Calls `tell` on the caller's thread when items have ended: at least once when all have, never more often than
    /// chunks come back.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let mut last = None;
    /// Pool::serial().call().on_progress(|p| last = Some((p.done, p.total))).map(|x| x, 0..3)?;
    /// assert_eq!(last, Some((3, Some(3))));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn on_progress(mut self, tell: impl FnMut(&Progress) + 'c) -> Self {
        self.progress = Some(Box::new(tell));
        self
    }

    fn plan(self, total: Option<usize>) -> (&'p E, Plan<'c>) {
        let tracker = Tracker::new(self.progress, total);
        (
            self.engine,
            Plan {
                schedule: self.schedule,
                retries: self.retries,
                total,
                tracker,
            },
        )
    }

    /// [`Pool::map`](crate::Pool::map) with these options.
    ///
    /// # Errors
    ///
    /// As there, and [`TaskError::InvalidCall`].
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
        let items = items.into_iter();
        let total = exact_len(items.size_hint());
        if self.schedule == Schedule::Equal && total.is_none() {
            let items: Vec<I::Item> = items.collect();
            let (engine, plan) = self.plan(Some(items.len()));
            engine.map(plan, f, items.into_iter())
        } else {
            let (engine, plan) = self.plan(total);
            engine.map(plan, f, items)
        }
    }

    /// [`Pool::map_with`](crate::Pool::map_with) with these options.
    ///
    /// # Errors
    ///
    /// As there, and [`TaskError::InvalidCall`].
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
    /// assert_eq!(Pool::serial().call().map_with(&10, |ten, x| ten * x, [1, 2])?, [10, 20]);
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn map_with<C, F, I, R>(self, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(&C, I::Item) -> R,
        E: RunWith<C, F, I::Item, R>,
    {
        let items = items.into_iter();
        let total = exact_len(items.size_hint());
        if self.schedule == Schedule::Equal && total.is_none() {
            let items: Vec<I::Item> = items.collect();
            let (engine, plan) = self.plan(Some(items.len()));
            engine.map_with(plan, context, f, items.into_iter())
        } else {
            let (engine, plan) = self.plan(total);
            engine.map_with(plan, context, f, items)
        }
    }
}

impl<E: Executor> fmt::Debug for Call<'_, '_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("engine", &self.engine.name())
            .field("schedule", &self.schedule)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}
