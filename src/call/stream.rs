//! Lazy calls: results come as an iterator, and items are read from the input as there is room for
//! them.
//!
//! This code is the same for all engines. Each engine gives a [`Stream`], which takes chunks of
//! items and returns a handle for each chunk.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::progress::Tracker;
use super::schedule::Schedule;
use crate::error::{TaskError, TimeoutError};
use crate::future::{Board, Ending, TaskFuture};

/// The outcomes of a chunk's items, in order.
pub(crate) type ChunkFuture<R> = TaskFuture<Vec<Result<R, TaskError>>>;

/// A chunk that the workers have, with the indices of its items.
type Given<R> = (Range<usize>, ChunkFuture<R>);

/// The part of a lazy call that an engine supplies.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Stream<'p, A, R> {
    /// Gives a chunk to the workers; the index is that of its first item. The function takes items
    /// from the front of those given, at least one, and leaves the rest for the next chunk.
    pub(crate) give: Box<Give<'p, A, R>>,
    /// How many chunks can run at once.
    pub(crate) workers: usize,
    /// How many chunks should be under way for each worker: one that runs and some to go on with.
    /// It is 1 where a chunk runs as soon as it is given.
    pub(crate) depth: usize,
    /// The most items that a chunk should have.
    pub(crate) most: usize,
}

type Give<'p, A, R> = dyn FnMut(usize, &mut Vec<A>) -> ChunkFuture<R> + Send + 'p;

/// Chunks are made longer while one takes less than this, and shorter if one takes ten times as
/// long: a worker should spend its time on items, and the result of a slow item should not wait for
/// the others in its chunk.
const SHORT: Duration = Duration::from_micros(100);

/// The longest that chunks become by growing.
const LONGEST: usize = 256;

/// How many items the next chunk has.
enum Pace {
    Fixed(usize),
    Adaptive {
        size: usize,
        /// Items that have come back since the size was last decided.
        items: usize,
        chunks: usize,
        since: Instant,
    },
}

impl Pace {
    /// Counts a chunk of this many items that has come back, and adapts the size.
    fn note(&mut self, came: usize, workers: usize) {
        let Self::Adaptive {
            size,
            items,
            chunks,
            since,
        } = self
        else {
            return;
        };
        *items += came;
        *chunks += 1;
        if *chunks < 4 * workers {
            return;
        }
        // The time that a chunk of this size takes one worker.
        let spent = since.elapsed().as_secs_f64() * workers as f64 / *items as f64 * *size as f64;
        if spent < SHORT.as_secs_f64() {
            *size = (*size * 2).min(LONGEST);
        } else if spent > 10.0 * SHORT.as_secs_f64() {
            *size = (*size / 2).max(1);
        }
        (*items, *chunks, *since) = (0, 0, Instant::now());
    }
}

/// The items of a call: as the caller gave them, or read in full.
pub(crate) enum Input<I: Iterator> {
    Lazy(I),
    Read(std::vec::IntoIter<I::Item>),
}

impl<I: Iterator> Iterator for Input<I> {
    type Item = I::Item;

    #[inline]
    fn next(&mut self) -> Option<I::Item> {
        match self {
            Self::Lazy(items) => items.next(),
            Self::Read(items) => items.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Lazy(items) => items.size_hint(),
            Self::Read(items) => items.size_hint(),
        }
    }
}

/// The part that reads the input and gives it to the workers, chunk by chunk.
struct Feeder<'p, I: Iterator, R> {
    input: Option<Box<Input<I>>>,
    stream: Stream<'p, I::Item, R>,
    pace: Pace,
    window: Option<usize>,
    /// Items read that are not enough for a chunk yet.
    chunk: Vec<I::Item>,
    given: usize,
    /// Items whose outcomes the caller has taken.
    yielded: usize,
    done: usize,
    failed: usize,
    tracker: Tracker<'p>,
    early: Option<Early<R>>,
}

/// What may end a call early, and what is done with its chunks then. The functions are known where
/// the call is made: results can cross to other threads there.
struct Early<R> {
    ending: Ending,
    end_with: fn(&ChunkFuture<R>, &Ending),
    /// Makes a chunk that has failed as a whole.
    failed: fn(TaskError) -> ChunkFuture<R>,
}

impl<'p, I: Iterator, R> Feeder<'p, I, R> {
    fn new(
        stream: Stream<'p, I::Item, R>,
        schedule: Option<Schedule>,
        plan: Plan<'p>,
        input: Input<I>,
    ) -> Result<Self, TaskError>
    where
        R: Send + 'static,
    {
        let most = stream.most.min(plan.window.unwrap_or(usize::MAX));
        // `chunks` also checks the options.
        let mut chunks = plan.chunks(stream.workers)?;
        if let Some(ending) = plan.limits.ending() {
            ending.arm()?;
        }
        let pace = match schedule {
            Some(Schedule::Dynamic(size)) => Pace::Fixed(size.min(most)),
            Some(Schedule::Equal) if plan.total.is_some() => {
                Pace::Fixed(chunks.next_size().min(most))
            }
            _ if most == 1 => Pace::Fixed(1),
            _ => Pace::Adaptive {
                size: 1,
                items: 0,
                chunks: 0,
                since: Instant::now(),
            },
        };
        // Where a chunk runs as soon as it is given, giving one more than can run would wait for
        // one to end, and the caller would not get the results that are there already.
        let window = match stream.depth {
            1 => plan.window.map(|window| window.min(stream.workers)),
            _ => plan.window,
        };
        Ok(Self {
            input: Some(Box::new(input)),
            stream,
            pace,
            window,
            chunk: Vec::new(),
            given: 0,
            yielded: 0,
            done: 0,
            failed: 0,
            tracker: plan.tracker,
            early: plan.limits.ending().cloned().map(|ending| Early {
                ending,
                end_with: ChunkFuture::end_with,
                failed: |error| TaskFuture::ready(Err(error)),
            }),
        })
    }

    /// Gives the next chunk of the input to the workers, if there is one and room for it. Returns
    /// the indices of its items and its handle.
    fn next(&mut self) -> Option<Given<R>> {
        if self.is_over() {
            return self.rest();
        }
        let size = match &self.pace {
            Pace::Fixed(size) => *size,
            Pace::Adaptive { size, .. } => (*size).min(self.stream.most),
        };
        let ahead = self.given - self.yielded;
        let room = match self.window {
            Some(window) => window.saturating_sub(ahead),
            None if ahead < size.saturating_mul(self.stream.workers * self.stream.depth) => size,
            None => 0,
        };
        // With a small window, chunks are cut: that is better than a worker that waits for the
        // consumer. If there is no room even for a chunk of this size, there is enough to do.
        let size = size.min(
            self.window
                .map_or(size, |window| window.div_ceil(2 * self.stream.workers)),
        );
        if room < size {
            return None;
        }
        while self.chunk.len() < size && !self.is_over() {
            // The iterator is put back only if `next` returns: after a panic nothing more is read
            // from it.
            let Some(mut input) = self.input.take() else {
                break;
            };
            if let Some(item) = input.next() {
                self.chunk.push(item);
                self.input = Some(input);
            }
        }
        // The call may have ended while the input was read, or the input may have ended it.
        if self.is_over() {
            return self.rest();
        }
        if self.chunk.is_empty() {
            return None;
        }
        let (base, read) = (self.given, self.chunk.len());
        let chunk = (self.stream.give)(base, &mut self.chunk);
        self.given += read - self.chunk.len();
        if let Some(early) = &self.early {
            (early.end_with)(&chunk, &early.ending);
        }
        Some((base..self.given, chunk))
    }

    /// Returns whether the call is over before its items have ended.
    fn is_over(&self) -> bool {
        let early = self.early.as_ref();
        early.is_some_and(|early| early.ending.reason().is_some())
    }

    /// Returns, once, what a call that is over gives for the items that were not given to the
    /// workers: the errors of those that were read, or one for all of the input that is left.
    fn rest(&mut self) -> Option<Given<R>> {
        let early = self.early.as_ref()?;
        let failed = (early.failed)(early.ending.reason()?.error());
        let input = self.input.take();
        let read = self.chunk.drain(..).len();
        // The input says whether there is more, if it knows.
        let has_more = input.is_some_and(|input| input.size_hint().1 != Some(0));
        if read == 0 && !has_more {
            return None;
        }
        let base = self.given;
        self.given += read.max(1);
        Some((base..self.given, failed))
    }

    /// Returns the outcomes of a chunk, waiting for its end.
    fn outcomes(&mut self, items: Range<usize>, chunk: ChunkFuture<R>) -> Outcomes<R> {
        let outcomes = chunk.result();
        self.pace.note(items.len(), self.stream.workers);
        // If the chunk as a whole has failed, then each of its items has.
        let outcomes = outcomes.unwrap_or_else(|error| error.of_items(items.start, items));
        if self.tracker.is_on() {
            self.done += outcomes.len();
            self.failed += outcomes.iter().filter(|outcome| outcome.is_err()).count();
            self.tracker.tell(self.done, self.failed);
        }
        outcomes.into_iter()
    }
}

/// The index of an item, and its outcome.
type Outcome<R> = (usize, Result<R, TaskError>);

type Outcomes<R> = std::vec::IntoIter<Result<R, TaskError>>;

/// The chunks that the workers have, each with the indices of its items.
enum UnderWay<R> {
    InOrder(VecDeque<Given<R>>),
    AsCompleted(Board<Vec<Result<R, TaskError>>, Range<usize>>),
}

impl<R> UnderWay<R> {
    fn push(&mut self, items: Range<usize>, chunk: ChunkFuture<R>) {
        match self {
            Self::InOrder(chunks) => chunks.push_back((items, chunk)),
            Self::AsCompleted(board) => board.push(items, chunk),
        }
    }

    /// Takes the chunk whose outcomes come next, if that is known by the deadline; `None` if no
    /// chunk is left. If the deadline is `None`, a chunk of a call in order may not have ended.
    fn pop(&mut self, deadline: Option<Instant>) -> Result<Option<Given<R>>, TimeoutError> {
        match self {
            Self::InOrder(chunks) => {
                if let (Some(_), Some((_, chunk))) = (deadline, chunks.front())
                    && !chunk.wait_until(deadline)
                {
                    return Err(TimeoutError);
                }
                Ok(chunks.pop_front())
            }
            Self::AsCompleted(board) => board.next(deadline),
        }
    }

    /// Calls `stop` for the chunks from the last to the first, so that the chunk which would start
    /// next is stopped last.
    fn stop(&self, stop: fn(&ChunkFuture<R>) -> bool) {
        match self {
            Self::InOrder(chunks) => chunks.iter().rev().for_each(|(_, chunk)| _ = stop(chunk)),
            Self::AsCompleted(board) => board.rest().rev().for_each(|chunk| _ = stop(chunk)),
        }
    }
}

struct Open<'p, I: Iterator, R> {
    feeder: Feeder<'p, I, R>,
    under_way: UnderWay<R>,
    /// Index of the item whose outcome is the next in `current`.
    index: usize,
    current: Outcomes<R>,
    /// Whether dropping this kills the items that run.
    kills: bool,
}

impl<I: Iterator, R> Open<'_, I, R> {
    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Outcome<R>>, TimeoutError> {
        loop {
            if let Some(outcome) = self.current.next() {
                let index = self.index;
                self.index += 1;
                self.feeder.yielded += 1;
                return Ok(Some((index, outcome)));
            }
            while let Some((items, chunk)) = self.feeder.next() {
                self.under_way.push(items, chunk);
            }
            let Some((items, chunk)) = self.under_way.pop(deadline)? else {
                return Ok(None);
            };
            self.index = items.start;
            self.current = self.feeder.outcomes(items, chunk);
        }
    }
}

impl<I: Iterator, R> Drop for Open<'_, I, R> {
    fn drop(&mut self) {
        self.under_way.stop(ChunkFuture::cancel);
        if self.kills {
            // What has not started is cancelled by now: a worker that is replaced finds nothing.
            self.under_way.stop(ChunkFuture::kill);
        }
    }
}

/// A lazy call, or the error of a call whose options contradict themselves: that is its only
/// outcome.
enum Source<'p, I: Iterator, R> {
    Open(Box<Open<'p, I, R>>),
    Refused(Option<TaskError>),
}

impl<'p, I: Iterator, R> Source<'p, I, R> {
    fn new(
        stream: Stream<'p, I::Item, R>,
        schedule: Option<Schedule>,
        plan: Plan<'p>,
        input: Input<I>,
        under_way: UnderWay<R>,
    ) -> Self
    where
        R: Send + 'static,
    {
        let kills = plan.kills;
        match Feeder::new(stream, schedule, plan, input) {
            Ok(feeder) => Self::Open(Box::new(Open {
                feeder,
                under_way,
                index: 0,
                current: Vec::new().into_iter(),
                kills,
            })),
            Err(error) => Self::Refused(Some(error)),
        }
    }

    fn next(&mut self) -> Option<Outcome<R>> {
        match self.next_by(None) {
            Ok(outcome) => outcome,
            Err(TimeoutError) => unreachable!("a wait without a deadline does not end early"),
        }
    }

    fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Outcome<R>>, TimeoutError> {
        // A timeout too long for the clock is no deadline at all.
        self.next_by(Instant::now().checked_add(timeout))
    }

    fn next_by(&mut self, deadline: Option<Instant>) -> Result<Option<Outcome<R>>, TimeoutError> {
        match self {
            Self::Open(open) => open.next(deadline),
            Self::Refused(error) => Ok(error.take().map(|error| (0, Err(error)))),
        }
    }
}

/// The results of a lazy call, in the order of the items, made by
/// [`Pool::imap`](crate::Pool::imap).
///
/// It can move to another thread if its input `I` can. Dropping it cancels the items that have not
/// started; with [`Call::kill_on_drop`](crate::Call::kill_on_drop), it also stops those that run.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(2)?;
/// let mut lines = pool.imap(|n: u64| format!("line {n}"), 1..);
/// assert_eq!(lines.next().unwrap()?, "line 1");
/// assert_eq!(lines.nth(8).unwrap()?, "line 10");
/// drop(lines); // nothing more is read
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a lazy call does nothing until it is asked for results"]
pub struct Imap<'p, I: Iterator, R> {
    source: Source<'p, I, R>,
}

impl<'p, I: Iterator, R> Imap<'p, I, R> {
    pub(crate) fn new(
        stream: Stream<'p, I::Item, R>,
        schedule: Option<Schedule>,
        plan: Plan<'p>,
        input: Input<I>,
    ) -> Self
    where
        R: Send + 'static,
    {
        let under_way = UnderWay::InOrder(VecDeque::new());
        Self {
            source: Source::new(stream, schedule, plan, input, under_way),
        }
    }

    /// Waits at most `timeout` for the next result, and returns it. Returns `None` when there are
    /// no more.
    ///
    /// The time that the input takes to give items is not limited. Where the caller itself runs the
    /// items (on the serial engine, and with one forked child) neither is theirs.
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] if the result is not there by then. The items go on, and a later call still
    /// returns it.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(1)?;
    /// let spin = |forever: bool| {
    ///     while forever {
    ///         std::hint::spin_loop()
    ///     }
    /// };
    /// let mut calls = pool.call().kill_on_drop(true).imap(spin, [false, true]);
    /// assert_eq!(calls.next_timeout(Duration::from_secs(60))?, Some(Ok(())));
    /// assert!(calls.next_timeout(Duration::from_millis(10)).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn next_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<Result<R, TaskError>>, TimeoutError> {
        let next = self.source.next_timeout(timeout)?;
        Ok(next.map(|(_, outcome)| outcome))
    }
}

impl<I: Iterator, R> Iterator for Imap<'_, I, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (_, outcome) = self.source.next()?;
        Some(outcome)
    }
}

impl<I: Iterator, R> FusedIterator for Imap<'_, I, R> {}

impl<I: Iterator, R> fmt::Debug for Imap<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap").finish_non_exhaustive()
    }
}

/// The results of a lazy call in the order in which they come, each with the index of its item,
/// made by [`Pool::imap_unordered`](crate::Pool::imap_unordered).
///
/// It can move to another thread if its input `I` can. Dropping it cancels the items that have not
/// started; with [`Call::kill_on_drop`](crate::Call::kill_on_drop), it also stops those that run.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let mut hits = pool
///     .imap_unordered(|x: u64| x % 97 == 0, 1..)
///     .filter(|(_, hit)| *hit == Ok(true));
/// let (index, _) = hits.next().unwrap();
/// assert_eq!((index + 1) % 97, 0); // some multiple, most likely the first
/// # Ok::<(), PoolError>(())
/// ```
#[must_use = "a lazy call does nothing until it is asked for results"]
pub struct ImapUnordered<'p, I: Iterator, R> {
    source: Source<'p, I, R>,
}

impl<'p, I: Iterator, R> ImapUnordered<'p, I, R> {
    pub(crate) fn new(
        stream: Stream<'p, I::Item, R>,
        schedule: Option<Schedule>,
        plan: Plan<'p>,
        input: Input<I>,
    ) -> Self
    where
        R: Send + 'static,
    {
        let under_way = UnderWay::AsCompleted(Board::new([]));
        Self {
            source: Source::new(stream, schedule, plan, input, under_way),
        }
    }

    /// Waits at most `timeout` for the next result, and returns it with the index of its item.
    /// Returns `None` when there are no more. What is not limited is said at
    /// [`Imap::next_timeout`].
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] if no item has ended by then. The items go on, and a later call still
    /// returns their results.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(2)?;
    /// let mut doubled = pool.imap_unordered(|x: u64| 2 * x, [21]);
    /// let wait = Duration::from_secs(60);
    /// assert_eq!(doubled.next_timeout(wait)?, Some((0, Ok(42))));
    /// assert_eq!(doubled.next_timeout(wait)?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(clippy::type_complexity)]
    pub fn next_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<(usize, Result<R, TaskError>)>, TimeoutError> {
        self.source.next_timeout(timeout)
    }
}

impl<I: Iterator, R> Iterator for ImapUnordered<'_, I, R> {
    type Item = (usize, Result<R, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        self.source.next()
    }
}

impl<I: Iterator, R> FusedIterator for ImapUnordered<'_, I, R> {}

impl<I: Iterator, R> fmt::Debug for ImapUnordered<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImapUnordered").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
