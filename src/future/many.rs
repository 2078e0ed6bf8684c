//! Many tasks at once: [`wait`] for some or all of them, or take them [`as_completed`]. They may
//! belong to different pools.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Signal, TaskFuture, later};
use crate::error::TimeoutError;
use crate::shim::Mutex;

/// The condition that [`wait`] waits for.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let endless = pool.submit(
///     |_: u32| -> () {
///         loop {
///             std::hint::spin_loop()
///         }
///     },
///     0,
/// );
/// let failing = pool.submit(|x: u32| assert!(x > 0), 0);
/// let (done, pending) = wait([endless, failing], ReturnWhen::FirstError, None);
/// assert!(done.into_iter().all(|task| task.result().is_err()));
/// assert_eq!(pending.len(), 1);
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReturnWhen {
    /// One task has ended, in whatever way.
    FirstCompleted,
    /// One task has ended without a result; or, if none does, all have ended. A result that arrives
    /// but cannot be deserialised counts as a result until it is taken.
    FirstError,
    /// All tasks have ended.
    #[default]
    AllCompleted,
}

/// Waits for tasks, at most for `timeout` (`None`: for ever), and returns them in two lists, each
/// in the order in which they were given: those that have ended and those that have not.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{ReturnWhen, wait};
///
/// let pool = Pool::processes(2)?;
/// let endless = pool.submit(
///     |()| -> u32 {
///         loop {
///             std::hint::spin_loop()
///         }
///     },
///     (),
/// );
/// let short = pool.submit(|()| 7, ());
/// let (done, pending) = wait([endless, short], ReturnWhen::FirstCompleted, None);
/// assert_eq!((done.len(), pending.len()), (1, 1));
/// assert_eq!(done.into_iter().next().unwrap().result()?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the handles of the tasks come back in the lists"]
pub fn wait<R>(
    futures: impl IntoIterator<Item = TaskFuture<R>>,
    when: ReturnWhen,
    timeout: Option<Duration>,
) -> (Vec<TaskFuture<R>>, Vec<TaskFuture<R>>) {
    let mut board = Board::new(untagged(futures));
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let is_enough = |board: &mut Board<R, ()>| {
        board.look();
        match when {
            ReturnWhen::FirstCompleted => board.open < board.total,
            ReturnWhen::FirstError => board.open == 0 || board.has_failed,
            ReturnWhen::AllCompleted => board.open == 0,
        }
    };
    while board.open > 0 {
        let seen = board.ended.signal.count();
        if is_enough(&mut board) || is_over(deadline) {
            break;
        }
        board.sleep(seen, deadline);
    }
    let (mut done, mut pending) = (Vec::new(), Vec::new());
    for Entry { future, has_ended } in board.entries {
        if let Some(((), future)) = future {
            // The task may have ended since the last look.
            let list = if has_ended || future.is_done() {
                &mut done
            } else {
                &mut pending
            };
            list.push(future);
        }
    }
    (done, pending)
}

/// Returns an iterator over tasks in the order in which they end: first those that have ended
/// already.
///
/// # Examples
///
/// ```
/// use manyhands::as_completed;
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let tasks = (0..10u64).map(|x| pool.submit(|x| x * x, x));
/// let mut sum = 0;
/// for task in as_completed(tasks) {
///     sum += task.result()?;
/// }
/// assert_eq!(sum, 285);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn as_completed<R>(futures: impl IntoIterator<Item = TaskFuture<R>>) -> AsCompleted<R> {
    AsCompleted {
        board: Board::new(untagged(futures)),
    }
}

/// An iterator over tasks in the order in which they end, made by [`as_completed`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(2)?;
/// let tasks = as_completed((1..=3u64).map(|x| pool.submit(|x| 10 * x, x)));
/// assert_eq!(tasks.len(), 3);
/// let mut results = tasks
///     .map(TaskFuture::result)
///     .collect::<Result<Vec<_>, _>>()?;
/// results.sort(); // they came as they ended
/// assert_eq!(results, [10, 20, 30]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an iterator does nothing until it is asked for tasks"]
pub struct AsCompleted<R> {
    board: Board<R, ()>,
}

impl<R> AsCompleted<R> {
    /// Waits at most `timeout` for the next task to end, and returns it. Returns `None` when all
    /// tasks have been given. How many have not is [`len`](ExactSizeIterator::len).
    ///
    /// # Errors
    ///
    /// [`TimeoutError`] if none has ended by then. The tasks go on, and a later call still returns
    /// them.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::processes(2)?;
    /// let short = pool.submit(|()| (), ());
    /// let endless = pool.submit(
    ///     |()| loop {
    ///         std::hint::spin_loop()
    ///     },
    ///     (),
    /// );
    /// let mut tasks = as_completed([endless, short]);
    /// let first = tasks.next_timeout(Duration::from_secs(60))?;
    /// assert_eq!(first.map(TaskFuture::result), Some(Ok(())));
    /// let late = tasks.next_timeout(Duration::from_millis(10));
    /// assert!(late.is_err());
    /// assert_eq!(tasks.len(), 1);
    /// assert!(tasks.into_rest()[0].kill());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn next_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<TaskFuture<R>>, TimeoutError> {
        // A timeout too long for the clock is no deadline at all.
        let next = self.board.next(Instant::now().checked_add(timeout))?;
        Ok(next.map(|((), future)| future))
    }

    /// Returns the tasks that have not been given, in the order in which they were handed in: to
    /// cancel them, or to go on waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let mut tasks = as_completed((0..3u32).map(|x| pool.submit(|x| x, x)));
    /// assert!(tasks.next().is_some());
    /// assert_eq!(tasks.into_rest().len(), 2);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn into_rest(self) -> Vec<TaskFuture<R>> {
        self.board.into_rest()
    }
}

impl<R> Iterator for AsCompleted<R> {
    type Item = TaskFuture<R>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.board.next(None).ok().flatten();
        next.map(|((), future)| future)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.board.left, Some(self.board.left))
    }
}

// For the same reason as the tasks it has. While it waits, it may run a task, whose panic is
// caught.
impl<R> UnwindSafe for AsCompleted<R> {}
impl<R> RefUnwindSafe for AsCompleted<R> {}

impl<R> ExactSizeIterator for AsCompleted<R> {}

impl<R> FusedIterator for AsCompleted<R> {}

impl<R> fmt::Debug for AsCompleted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted")
            .field("left", &self.board.left)
            .finish()
    }
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// A set of tasks that are waited for together, each with what its owner knows it by.
pub(crate) struct Board<R, T> {
    /// The tasks that have not been given out; between them empty entries of some that have.
    entries: VecDeque<Entry<R, T>>,
    /// Number of the first entry; they count from 0.
    base: usize,
    ended: Arc<Ended>,
    /// How many tasks there were in all.
    total: usize,
    /// How many tasks have not been seen to end.
    open: usize,
    /// How many tasks have not been given out.
    left: usize,
    has_failed: bool,
    /// Entries that have been seen to end, and have not been given out.
    ready: VecDeque<usize>,
    /// The family of all tasks, if they have one in common; else 0. `None` while there is no task.
    family: Option<usize>,
    /// Number of the first entry whose task this thread has not tried to run itself. Of the tasks
    /// before it, those that no other thread could run have been run here.
    helped: usize,
    /// Number of the first entry that may not have ended: all before it have.
    first: usize,
}

struct Entry<R, T> {
    future: Option<(T, TaskFuture<R>)>,
    has_ended: bool,
}

/// The list and the signal that the hooks of the tasks write to.
#[derive(Default)]
struct Ended {
    list: Mutex<Vec<usize>>,
    signal: Signal,
}

fn untagged<R>(
    futures: impl IntoIterator<Item = TaskFuture<R>>,
) -> impl Iterator<Item = ((), TaskFuture<R>)> {
    futures.into_iter().map(|future| ((), future))
}

impl<R, T> Board<R, T> {
    pub(crate) fn new(futures: impl IntoIterator<Item = (T, TaskFuture<R>)>) -> Self {
        let mut board = Self {
            entries: VecDeque::new(),
            base: 0,
            ended: Arc::default(),
            total: 0,
            open: 0,
            left: 0,
            has_failed: false,
            ready: VecDeque::new(),
            family: None,
            helped: 0,
            first: 0,
        };
        for (tag, future) in futures {
            board.push(tag, future);
        }
        board
    }

    /// Adds a task. Returns its number.
    pub(crate) fn push(&mut self, tag: T, future: TaskFuture<R>) {
        let number = self.total;
        let own = future.pending.family();
        self.family = match self.family {
            Some(family) if family != own => Some(0),
            _ => Some(own),
        };
        let ended = Arc::clone(&self.ended);
        future.pending.on_end(Box::new(move || {
            ended.list.lock().push(number);
            ended.signal.raise();
        }));
        later::flush();
        self.entries.push_back(Entry {
            future: Some((tag, future)),
            has_ended: false,
        });
        self.total += 1;
        self.open += 1;
        self.left += 1;
    }

    /// Notes the tasks that have ended.
    fn look(&mut self) {
        for number in std::mem::take(&mut *self.ended.list.lock()) {
            let entry = &mut self.entries[number - self.base];
            entry.has_ended = true;
            self.open -= 1;
            self.ready.push_back(number);
            let future = entry.future.as_ref();
            self.has_failed |= future.is_some_and(|(_, future)| future.pending.has_failed());
        }
    }

    /// Waits until another task has ended since `seen`, or until the deadline.
    fn sleep(&mut self, seen: usize, deadline: Option<Instant>) {
        let signal = &self.ended.signal;
        // Runs the tasks that only this thread can run, as long as no task has ended.
        self.helped = self.helped.max(self.base);
        while let Some(entry) = self.entries.get(self.helped - self.base) {
            if signal.count() > seen {
                return;
            }
            if let Some((_, future)) = entry.future.as_ref().filter(|_| !entry.has_ended) {
                future.pending.help();
            }
            self.helped += 1;
        }
        // Skips the entries that are known to have ended.
        self.first = self.first.max(self.base);
        let has_ended = |entry: &Entry<R, T>| entry.has_ended;
        while self
            .entries
            .get(self.first - self.base)
            .is_some_and(has_ended)
        {
            self.first += 1;
        }
        let first = self.entries.get(self.first - self.base);
        match first.and_then(|entry| entry.future.as_ref()) {
            // All tasks are of one family: the first can wait for all of them.
            Some((_, first)) if self.family != Some(0) => {
                first.pending.wait_for(signal, seen, deadline);
            }
            // The tasks are of several families: this thread sleeps until a hook raises the signal.
            _ => drop(signal.sleep(seen, deadline)),
        }
    }

    /// Returns the next task that has ended, and its number; `None` when all have been given out.
    pub(crate) fn next(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(T, TaskFuture<R>)>, TimeoutError> {
        loop {
            let seen = self.ended.signal.count();
            self.look();
            if let Some(number) = self.ready.pop_front() {
                self.left -= 1;
                let future = self.entries[number - self.base].future.take();
                while matches!(self.entries.front(), Some(entry) if entry.future.is_none()) {
                    self.entries.pop_front();
                    self.base += 1;
                }
                return Ok(future);
            }
            if self.open == 0 {
                return Ok(None);
            }
            if is_over(deadline) {
                return Err(TimeoutError);
            }
            self.sleep(seen, deadline);
        }
    }

    fn into_rest(self) -> Vec<TaskFuture<R>> {
        let entries = self.entries.into_iter();
        let rest = entries.filter_map(|entry| entry.future);
        rest.map(|(_, future)| future).collect()
    }

    /// Returns the tasks that have not been given out.
    pub(crate) fn rest(&self) -> impl DoubleEndedIterator<Item = &TaskFuture<R>> {
        let rest = self
            .entries
            .iter()
            .filter_map(|entry| entry.future.as_ref());
        rest.map(|(_, future)| future)
    }
}
