//! The calls with a policy, [`Call::retry`].

use std::sync::atomic::AtomicU32;

use super::call::{Call, up_to_err};
use crate::call::retry::Retrying;
use crate::call::stream::{Imap, ImapUnordered};
use crate::call::{AtErr, Never};
use crate::engine::{Executor, RunAgain};
use crate::error::{TaskError, TryError};
use crate::future::TaskFuture;

/// Calls whose items are tried again, as [`Call::retry`] says.
impl<'p, 'c, E: Executor> Call<'p, 'c, E, Retrying> {
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
    /// let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC);
    /// let pool = Pool::processes(2)?;
    /// let squares = pool.call().retry(policy).chunk_size(2).map(|x| x * x, 0..5u32)?;
    /// assert_eq!(squares, [0, 1, 4, 9, 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<F, I, R>(self, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: RunAgain<F, I::Item, R>,
    {
        self.run(items.into_iter(), |engine, plan, items| {
            engine.map_again(plan, f, items, Never)
        })
    }

    /// Runs [`Pool::map_outcomes`](crate::Pool::map_outcomes) with these options. An item's error
    /// is that of its last attempt.
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
    /// let policy = Retry::up_to(2).on(RetryOn::PANIC);
    /// let each = Pool::serial().call().retry(policy).map_outcomes(|x| 10 / x, [5, 0]);
    /// assert_eq!(each[0], Ok(2));
    /// assert_eq!(each[1].as_ref().unwrap_err().attempts(), Some(3));
    /// ```
    #[must_use = "the errors of the items come in the list"]
    pub fn map_outcomes<F, I, R>(self, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> R,
        E: RunAgain<F, I::Item, R>,
    {
        self.run(items.into_iter(), |engine, plan, items| {
            engine.map_outcomes_again(plan, f, items)
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
    /// let policy = Retry::up_to(1).on(RetryOn::PANIC);
    /// Pool::serial().call().retry(policy).for_each(|x| assert!(x > 0), [1, 2, 3])?;
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn for_each<F, I>(self, f: F, items: I) -> Result<(), TaskError>
    where
        I: IntoIterator,
        F: Fn(I::Item),
        E: RunAgain<F, I::Item, ()>,
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
    /// let policy = Retry::up_to(3).on(RetryOn::ERROR);
    /// let pool = Pool::processes(2)?;
    /// let error = pool.call().retry(policy).try_map(half, [2, 5, 7]).unwrap_err();
    /// assert_eq!((error.attempts(), error.into_item()), (Some(4), Some(5)));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn try_map<F, I, R, X>(self, f: F, items: I) -> Result<Vec<R>, TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<R, X>,
        E: RunAgain<F, I::Item, Result<R, X>>,
    {
        let tried = AtomicU32::new(1);
        let attempts = Some(&tried);
        let results = self.run(items.into_iter(), |engine, plan, items| {
            engine.map_again(plan, f, items, AtErr { attempts })
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
    /// In the same cases as [`map`](Self::map).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let check = |x: u32| if x < 3 { Ok(()) } else { Err("too large") };
    /// let policy = Retry::up_to(1).on(RetryOn::ERROR);
    /// let error = Pool::serial().call().retry(policy).try_for_each(check, 0..9).unwrap_err();
    /// assert_eq!((error.index(), error.attempts()), (Some(3), Some(2)));
    /// ```
    pub fn try_for_each<F, I, X>(self, f: F, items: I) -> Result<(), TryError<X>>
    where
        I: IntoIterator,
        F: Fn(I::Item) -> Result<(), X>,
        E: RunAgain<F, I::Item, Result<(), X>>,
    {
        self.try_map(f, items).map(drop)
    }

    /// Runs [`Pool::imap`](crate::Pool::imap) with these options. An item is tried again whether or
    /// not its result is asked for.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC);
    /// let pool = Pool::processes(2)?;
    /// let quotients = pool.call().retry(policy).imap(|x: u32| 6 / x, [3, 0, 2]);
    /// let attempts = quotients.map(|outcome| outcome.map_err(|error| error.attempts()));
    /// assert_eq!(attempts.collect::<Vec<_>>(), [Ok(2), Err(Some(2)), Ok(3)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap<F, I, R>(self, f: F, items: I) -> Imap<'c, I::IntoIter, R>
    where
        'p: 'c,
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: RunAgain<F, I::Item, R>,
    {
        let schedule = self.given_schedule();
        self.run(items.into_iter(), |engine, plan, items| {
            let limits = plan.limits.clone();
            Imap::new(engine.stream_again(limits, f), schedule, plan, items)
        })
    }

    /// Runs [`Pool::imap_unordered`](crate::Pool::imap_unordered) with these options.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC);
    /// let pool = Pool::processes(2)?;
    /// let doubled = pool.call().retry(policy).imap_unordered(|x: u64| 2 * x, 0..10);
    /// assert!(doubled.into_iter().all(|(index, result)| result == Ok(2 * index as u64)));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn imap_unordered<F, I, R>(self, f: F, items: I) -> ImapUnordered<'c, I::IntoIter, R>
    where
        'p: 'c,
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> R + Send + 'static,
        R: Send + 'static,
        E: RunAgain<F, I::Item, R>,
    {
        let schedule = self.given_schedule();
        self.run(items.into_iter(), |engine, plan, items| {
            let limits = plan.limits.clone();
            ImapUnordered::new(engine.stream_again(limits, f), schedule, plan, items)
        })
    }

    /// Runs [`Pool::submit`](crate::Pool::submit) with the options that a single task can have:
    /// those of [`submit`](Call::submit) without a policy, and the policy. The task is tried again
    /// whether or not a thread waits for it. In a pause it is not running, and
    /// [`cancel`](TaskFuture::cancel) ends it.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let policy = Retry::up_to(2).on(RetryOn::PANIC);
    /// let pool = Pool::processes(1)?;
    /// let task = pool.call().retry(policy).submit(|x: u8| 10 / x, 0);
    /// assert_eq!(task.result().unwrap_err().attempts(), Some(3));
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn submit<F, A, R>(self, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
        E: RunAgain<F, A, R>,
    {
        self.submitted(|engine, limits| engine.submit_again(limits, f, argument))
    }
}
