//! `map` and `map_outcomes`: many items, one function, results in the order of the items.
//!
//! ```text
//!            caller                                         workers
//! iterator ──▶ chunk ──▶ inbox, with scoped work posted ──▶ function on each item,
//!                                                           results to their place
//!      empty buffers ◀── outbox ◀────────────────────────── ended chunk
//! ```
//!
//! Only the caller's thread touches the iterator, which need not be `Send`. It fills one chunk
//! after the other, and sleeps while enough of them are under way. It runs no chunk itself, not
//! even while it has nothing else to do: items run on the pool's threads, where rayon's calls find
//! this pool. A caller that is one of these threads is an exception. It may be the only worker, and
//! must not wait for itself.

use std::collections::{BTreeSet, VecDeque};
use std::iter;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

mod again;

pub(super) use self::again::{map_again, map_outcomes_again};

use self::again::Policy;
use super::counts;
use super::dispatch::{Dispatch, Posted};
use super::results::{Room, Stretch, collect};
use super::scoped_work::{ScopedWork, Work, lend};
use super::spin;
use crate::call::{self, Limits, Never, Plan, Stop};
use crate::call::{progress, seed};
use crate::copies::{self, Original};
use crate::error::TaskError;
use crate::future::{Ending, Reason};
use crate::panic;
use crate::shim::thread::{self, Thread};
use crate::shim::{AtomicUsize, Mutex};

/// How many chunks for each worker are under way at first: one that it runs, and some to go on
/// with.
pub(super) const NARROW_WINDOW: usize = 4;

/// How many chunks are under way once the items have turned out to be small. With as many workers
/// as cores, the caller has to wait for a core when it wakes, and workers must not run out of
/// chunks meanwhile. On 2 cores, and with bodies of 5 ns, a window that stays narrow costs 5 % more
/// than this one, and a wider one gains nothing.
const WIDE_WINDOW: usize = 16;

/// The length above which an input counts as long. An input that is longer, or does not say how
/// long it is, is not read to its end while one item takes its time.
const LONG: usize = 1 << 24;

/// How many chunks for each worker are read of a long input, beyond one that has not ended.
const MOST_AHEAD: usize = 256;

/// Items are small if half a window of chunks takes less than this: the caller would be woken too
/// often.
const SHORT: Duration = Duration::from_millis(1);

/// How often in a chunk a worker looks whether the pool has been shut down. Whether another worker
/// has failed it looks before each item.
const LOOKS_PER_CHUNK: usize = 64;

/// A part of the input, and the place of its results.
struct Chunk<'r, A, R> {
    /// Index of the first item in the input.
    first: usize,
    items: Vec<A>,
    results: Stretch<'r, R>,
    /// The stamp with which it was given out.
    queued: u64,
    /// How often the item after those results has been started, if items are tried again.
    attempts: u32,
    /// When that item is to be tried again, if there is a pause before it.
    due: Option<Instant>,
}

/// An item that ends the call.
struct Failure {
    index: usize,
    /// Why it has no result; `None` if its result is the one at which the call stops.
    error: Option<TaskError>,
    /// How often the item was started.
    attempts: u32,
}

/// The points in which a [`map`] and a [`map_outcomes`] differ.
struct Manner<A, R, S> {
    /// The limits of each item, unless the function enforces them itself.
    limits: Limits,
    /// Whether the call ends at once when the pool is shut down.
    ends_with_pool: bool,
    /// Counts how many of these results are failures.
    count_failed: fn(&[R]) -> usize,
    /// Counts how many of these results are of items that were cancelled before they began, or were
    /// late.
    count_cancelled: fn(&[R]) -> usize,
    /// Which results the call stops at.
    stop: PhantomData<fn() -> S>,
    /// How items are tried again, if they are.
    again: Option<Policy<A, R>>,
    /// How often the item was started at whose result the call stopped.
    tried: AtomicU32,
}

/// The state that the caller and the workers share for the length of one call.
struct Exchange<'f, 'r, F, A, R, S> {
    dispatch: &'f Dispatch,
    function: &'f F,
    manner: &'f Manner<A, R, S>,
    inbox: Mutex<VecDeque<Chunk<'r, A, R>>>,
    outbox: Mutex<Outbox<'r, A, R>>,
    /// How many chunks are in the outbox. Written under its lock; it is here for a caller that
    /// spins.
    ended: AtomicUsize,
    /// The lowest index that is known to have failed, or to have a result at which the call stops.
    /// Items after it need not run; those before it must. It only tells workers what to leave out:
    /// the failure itself goes through the outbox.
    failed_at: AtomicUsize,
    /// Items that have run, if the caller is told of the progress.
    ran: Option<AtomicUsize>,
    /// What may end the call early, if anything may.
    ending: Option<Ending>,
    caller: Thread,
}

struct Outbox<'r, A, R> {
    chunks: Vec<Chunk<'r, A, R>>,
    failures: Vec<Failure>,
    /// How many chunks must be in the outbox for the caller to be woken.
    wake_at: usize,
}

/// Runs `function` on every item, or up to the first result at which the call stops.
pub(super) fn map<F, A, R, I, S>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    function: &F,
    items: I,
    _stop: S,
) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    I: Iterator<Item = A>,
    S: Stop<R>,
{
    let manner = Manner {
        limits: plan.limits.clone(),
        ends_with_pool: true,
        count_failed: |_| 0,
        count_cancelled: |_| 0,
        stop: PhantomData::<fn() -> S>,
        again: None,
        tried: AtomicU32::new(1),
    };
    run(dispatch, plan, &manner, function, items)
}

/// Runs `function` on every item, whatever happens to the others. When the pool is shut down, the
/// items that are left are read and cancelled.
pub(super) fn map_outcomes<F, A, R, I>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    function: &F,
    items: I,
) -> Result<Vec<Result<R, TaskError>>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    I: Iterator<Item = A>,
{
    let limits = plan.limits.clone();
    let original = Original::here();
    let manner = Manner {
        limits: Limits::none(),
        ends_with_pool: false,
        count_failed: count_failed::<R>,
        count_cancelled: |outcomes: &[Result<R, TaskError>]| {
            let is_unbegun = |outcome: &&_| {
                matches!(
                    outcome,
                    Err(TaskError::Cancelled {} | TaskError::DeadlineExceeded {})
                )
            };
            outcomes.iter().filter(is_unbegun).count()
        },
        stop: PhantomData::<fn() -> Never>,
        again: None,
        tried: AtomicU32::new(1),
    };
    let function = |(index, item)| {
        if dispatch.is_cancelled() {
            // The item is dropped here, by code of the user that may panic.
            let _ = panic::catch(|| drop(item));
            return Err(TaskError::Cancelled {});
        }
        let outcome = limits.run(index, || copies::run(original, || function(item)));
        copies::end_panicked(original);
        outcome.map_err(|failure| count_failure(failure, index))
    };
    run(dispatch, plan, &manner, &function, items.enumerate())
}

fn count_failed<R>(outcomes: &[Result<R, TaskError>]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_err()).count()
}

/// Counts the failure of an item of [`map_outcomes`], unless the item has not begun: that is
/// counted with the chunk.
#[cold]
fn count_failure(failure: call::Failure, index: usize) -> TaskError {
    let is_unbegun = failure.is_unbegun();
    note_late(&failure);
    let error = failure.into_error(Some(index));
    if !is_unbegun {
        counts::failed(&error);
    }
    error
}

fn note_late(failure: &call::Failure) {
    if matches!(failure, call::Failure::Late) {
        counts::was_late();
    }
}

fn run<F, A, R, I, S>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    manner: &Manner<A, R, S>,
    function: &F,
    items: I,
) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    I: Iterator<Item = A>,
    S: Stop<R>,
{
    // A call with contradictory options is refused before any item is taken.
    plan.chunks(dispatch.workers())?;
    collect(plan.total.unwrap_or(0), |room| {
        let exchange = Exchange::new(dispatch, function, manner, &plan);
        let caller = Caller {
            dispatch,
            exchange: &exchange,
            room,
            buffers: Vec::new(),
            given: 0,
            open: BTreeSet::new(),
            last: 0,
            ending: plan.limits.ending().cloned(),
            paused: Vec::new(),
        };
        lend(&exchange, |scoped| caller.call(scoped, plan, items))
    })
}

impl<'f, 'r, F, A, R, S> Exchange<'f, 'r, F, A, R, S> {
    fn new(
        dispatch: &'f Dispatch,
        function: &'f F,
        manner: &'f Manner<A, R, S>,
        plan: &Plan<'_>,
    ) -> Self {
        Self {
            dispatch,
            function,
            manner,
            inbox: Mutex::default(),
            outbox: Mutex::new(Outbox::empty()),
            ended: AtomicUsize::new(0),
            failed_at: AtomicUsize::new(usize::MAX),
            ran: plan.tracker.is_on().then(|| AtomicUsize::new(0)),
            ending: plan.limits.ending().cloned(),
            caller: thread::current(),
        }
    }

    fn next(&self) -> Option<Chunk<'r, A, R>> {
        self.inbox.lock().pop_front()
    }

    /// Returns how many chunks are in the outbox.
    fn count_ended(&self) -> usize {
        // Acquire: pairs with the store in `run`.
        self.ended.load(Ordering::Acquire)
    }

    fn has_failed(&self) -> bool {
        !self.needs(usize::MAX)
    }

    /// Returns whether the item with this index is needed, as far as is known.
    #[inline]
    fn needs(&self, index: usize) -> bool {
        index <= self.failed_at.load(Ordering::Relaxed)
    }

    /// Returns whether the pool has been shut down, or the call is over.
    fn is_over(&self) -> bool {
        self.dispatch.is_cancelled() || self.has_ended_early()
    }

    /// Returns whether a token or the deadline has ended the call.
    fn has_ended_early(&self) -> bool {
        let has_ended = |ending: &Ending| ending.reason().is_some();
        self.ending.as_ref().is_some_and(has_ended)
    }

    /// Returns whether the pool has been shut down, and the call must end with it.
    fn is_cancelled(&self) -> bool {
        self.manner.ends_with_pool && self.dispatch.is_cancelled()
    }
}

impl<A, R> Outbox<'_, A, R> {
    fn empty() -> Self {
        Self {
            chunks: Vec::new(),
            failures: Vec::new(),
            wake_at: usize::MAX,
        }
    }
}

impl<F, A, R, S> Work for Exchange<'_, '_, F, A, R, S>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    S: Stop<R>,
{
    fn do_part(&self) {
        if let Some(chunk) = self.next() {
            self.run(chunk);
        }
    }
}

impl<'r, F, A, R, S> Exchange<'_, 'r, F, A, R, S>
where
    F: Fn(A) -> R + Sync,
    S: Stop<R>,
{
    /// Runs a chunk and puts it into the outbox.
    fn run(&self, mut chunk: Chunk<'r, A, R>) {
        if let Some(policy) = &self.manner.again {
            self.run_again(chunk, policy);
            return;
        }
        let Chunk {
            first,
            ref mut items,
            ref mut results,
            queued,
            ..
        } = chunk;
        let given = items.len();
        // A thread that shuts the pool down, and is none of its workers, runs what is left.
        let is_worker = self.dispatch.own_pool().is_this_worker();
        let began = if is_worker {
            counts::begin(queued)
        } else {
            None
        };
        let limits = &self.manner.limits;
        let runs_in_blocks = limits.timeout().is_none() && limits.ending().is_none();
        let original = Original::here();
        let function = |item| copies::run(original, || (self.function)(item));
        let _at = seed::enter(limits.seeds, first);
        let mut has_stopped = false;
        // One `catch` for the whole chunk: the number of results says which item panicked.
        let run = || {
            // Each item is counted by itself if there is one to tell.
            let block = match self.ran {
                Some(_) => 1,
                None => items.len().div_ceil(LOOKS_PER_CHUNK),
            };
            let mut items = items.drain(..);
            while items.len() > 0 && !has_stopped && self.needs(first + results.len()) {
                if self.is_cancelled() {
                    return Err(TaskError::Cancelled {});
                }
                // Without a limit, a block of items runs with next to nothing in between. With a
                // limit, or if the call may end early, each item runs by itself.
                if runs_in_blocks {
                    let mut index = first + results.len();
                    let mut left = block;
                    results.extend(iter::from_fn(|| {
                        if left == 0 || has_stopped || !self.needs(index) {
                            return None;
                        }
                        let item = items.next()?;
                        seed::move_to(index);
                        index += 1;
                        left -= 1;
                        let result = function(item);
                        has_stopped = S::is_met(&result);
                        Some(result)
                    }));
                } else if let Some(item) = items.next() {
                    let outcome = limits.run(first + results.len(), || function(item));
                    // A limit catches the panic, so a panicked copy is ended here.
                    copies::end_panicked(original);
                    let result = outcome.map_err(|failure| {
                        note_late(&failure);
                        failure.into_error(None)
                    })?;
                    has_stopped = S::is_met(&result);
                    results.extend(iter::once(result));
                }
                if let Some(ran) = &self.ran {
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        // Only a call that may end early has late items.
        let below = self.ending.as_ref().map(|_| counts::before_late());
        let outcome = panic::catch(run);
        let late = below.map_or(0, counts::after_late);
        copies::end_panicked(original);
        let index = first + results.len();
        let failure = match outcome {
            Ok(Ok(())) if has_stopped => Some(Failure {
                index: index - 1,
                error: None,
                attempts: 1,
            }),
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Failure {
                index,
                error: Some(error.with_index(index)),
                attempts: 1,
            }),
            Err(caught) => Some(Failure {
                index,
                error: Some(caught.into_error(Some(index))),
                attempts: 1,
            }),
        };
        if let Some(failure) = &failure {
            self.failed_at.fetch_min(failure.index, Ordering::Relaxed);
        }
        let error = failure.as_ref().and_then(|failure| failure.error.as_ref());
        let ran = self.count((given, late), results.as_slice(), error, is_worker);
        if is_worker && ran > 0 {
            counts::end(ran, queued, began);
        }
        self.put_out(chunk, failure);
    }

    /// Puts a chunk into the outbox.
    fn put_out(&self, chunk: Chunk<'r, A, R>, failure: Option<Failure>) {
        let mut outbox = self.outbox.lock();
        outbox.failures.extend(failure);
        outbox.chunks.push(chunk);
        // Release: pairs with the load in `count_ended`.
        self.ended.store(outbox.chunks.len(), Ordering::Release);
        let wakes = outbox.chunks.len() == outbox.wake_at;
        drop(outbox);
        if wakes {
            self.caller.unpark();
        }
    }

    /// Counts what has failed, or was cancelled, of a chunk of `given` items, of which `late` were
    /// late. Returns how many have run.
    fn count(
        &self,
        (given, late): (usize, usize),
        results: &[R],
        error: Option<&TaskError>,
        is_worker: bool,
    ) -> usize {
        let ran = results.len();
        let cancelled = |items| self.dispatch.counts().cancelled(items);
        match error {
            None if !self.is_over() => ran,
            None => {
                let unbegun = (self.manner.count_cancelled)(results) - late;
                cancelled(unbegun + given - ran);
                ran - unbegun
            }
            Some(TaskError::Cancelled {} | TaskError::DeadlineExceeded {}) if late == 0 => {
                cancelled(given - ran);
                ran
            }
            Some(error) => {
                if is_worker {
                    counts::failed(error);
                }
                if self.is_over() {
                    cancelled(given - ran - 1);
                }
                ran + 1
            }
        }
    }
}

/// Parks this thread until `is_over`, or until the deadline.
fn park_until(is_over: &impl Fn() -> bool, deadline: Option<Instant>) {
    while !is_over() {
        let Some(deadline) = deadline else {
            thread::park();
            continue;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        thread::park_timeout(left);
    }
}

/// The caller's side.
struct Caller<'x, 'f, 'r, F, A, R, S> {
    dispatch: &'x Dispatch,
    exchange: &'x Exchange<'f, 'r, F, A, R, S>,
    room: Room<'r, R>,
    /// The buffers of ended chunks, to be filled again: writing to fresh memory would cost more
    /// than the items.
    buffers: Vec<Vec<A>>,
    /// How many items have been given out.
    given: usize,
    /// Indices of the first items of the chunks that were given out and have not come back.
    open: BTreeSet<usize>,
    /// How many items the last chunk has.
    last: usize,
    /// What may end the call early, if anything may.
    ending: Option<Ending>,
    /// Chunks whose next item is tried again later.
    paused: Vec<Chunk<'r, A, R>>,
}

impl<'r, F, A, R, S> Caller<'_, '_, 'r, F, A, R, S>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    S: Stop<R>,
{
    fn call(
        mut self,
        scoped: &Arc<ScopedWork>,
        plan: Plan<'_>,
        mut items: impl Iterator<Item = A>,
    ) -> Result<Vec<Stretch<'r, R>>, TaskError> {
        let workers = self.dispatch.workers();
        let mut sizes = plan.chunks(workers)?;
        // If the caller set a window, chunks are so small that each worker can have one while
        // another waits for it.
        let most = plan
            .window
            .map_or(usize::MAX, |window| window.div_ceil(2 * workers));
        let mut next_size = || {
            let size = sizes.next_size();
            sizes.put_back(size.saturating_sub(most));
            size.min(most)
        };
        let mut size = next_size();
        let mut tracker = plan.tracker;
        let mut window = NARROW_WINDOW * workers;
        let is_long = plan.total.is_none_or(|total| total > LONG);
        let mut since = Instant::now();
        let mut has_more = true;
        let (mut done, mut failed) = (0, 0);
        let mut ended = Vec::new();
        let mut failures = Vec::new();
        let ending = self.ending.clone();
        let _watch = ending.as_ref().map(|ending| {
            let caller = thread::current();
            ending.watch(move |_| caller.unpark())
        });
        loop {
            if !self.paused.is_empty() {
                self.resume(scoped);
            }
            let is_far_ahead = match plan.window {
                None => is_long && self.is_far_ahead(workers),
                Some(most) => self.ahead() + size > most,
            };
            let goes_on = has_more
                && !self.exchange.has_failed()
                && !self.exchange.is_cancelled()
                && self.stops_for().is_none();
            let under_way = self.open.len() - self.paused.len();
            if goes_on && under_way < window && !is_far_ahead {
                has_more = self.give_out(scoped, &mut items, size);
                size = next_size();
                // The iterator may take its time, and the progress callback should learn of what
                // has ended meanwhile.
                if !tracker.is_on() || self.exchange.count_ended() == 0 {
                    continue;
                }
            } else if !self.open.is_empty() {
                // Waits for one chunk if each is reported, or if no more may be read before one has
                // ended. Else waits for half of them while there is more input, and then for all.
                let wanted = match (tracker.is_on(), has_more) {
                    // This thread must look what is due.
                    _ if !self.paused.is_empty() => 1,
                    (true, _) => 1,
                    (false, true) if is_far_ahead => 1,
                    (false, true) => self.open.len().div_ceil(2),
                    (false, false) => self.open.len(),
                };
                let pause = tracker.is_on().then_some(progress::PAUSE);
                let pause = pause.map(|pause| Instant::now() + pause);
                self.await_ended(wanted, pause.into_iter().chain(self.next_due()).min());
            } else {
                break;
            }
            let outbox = self.take_outbox();
            let (back, half) = (outbox.chunks.len() as u32, window as u32 / 2);
            if since.elapsed() * half < SHORT * back {
                window = (window * 2).min(WIDE_WINDOW * workers);
            }
            since = Instant::now();
            failures.extend(outbox.failures);
            for chunk in outbox.chunks {
                if chunk.due.is_some() {
                    self.paused.push(chunk);
                    continue;
                }
                self.open.remove(&chunk.first);
                done += chunk.results.len();
                if tracker.is_on() {
                    failed += (self.exchange.manner.count_failed)(chunk.results.as_slice());
                }
                ended.push((chunk.first, chunk.results));
                self.buffers.push(chunk.items);
            }
            let errors = failures
                .iter()
                .filter(|failure| failure.error.is_some())
                .count();
            // In chunks that run, too, items may have ended.
            let ran = self.exchange.ran.as_ref();
            let ran = ran.map_or(0, |ran| ran.load(Ordering::Relaxed));
            tracker.tell_running(done.max(ran) + errors, failed + errors, 0);
        }
        let is_cut = has_more && plan.total != Some(self.given);
        self.outcome(ended, failures, is_cut)
    }

    /// Returns the results of the chunks, which have all ended, or of those that count. If the call
    /// `is_cut`, some of its input has not been read.
    fn outcome(
        &self,
        mut ended: Vec<(usize, Stretch<'r, R>)>,
        failures: Vec<Failure>,
        is_cut: bool,
    ) -> Result<Vec<Stretch<'r, R>>, TaskError> {
        ended.sort_unstable_by_key(|&(first, _)| first);
        match failures.into_iter().min_by_key(|failure| failure.index) {
            Some(Failure {
                error: Some(error), ..
            }) => return Err(error),
            Some(Failure {
                index,
                error: None,
                attempts,
            }) => {
                self.exchange
                    .manner
                    .tried
                    .store(attempts, Ordering::Relaxed);
                // All items before it have run.
                ended.truncate(ended.partition_point(|&(first, _)| first <= index));
            }
            // The call was over, or the pool was shut down, when all that had been given out had
            // ended.
            None if is_cut => {
                let reason = self.stops_for().unwrap_or(Reason::Cancelled);
                return Err(reason.error());
            }
            None => {}
        }
        Ok(ended.into_iter().map(|(_, results)| results).collect())
    }

    /// Returns why the call is over, if it is and does not give an outcome for each item.
    fn stops_for(&self) -> Option<Reason> {
        let ending = self.ending.as_ref()?;
        let stops = self.exchange.manner.ends_with_pool;
        stops.then(|| ending.reason()).flatten()
    }

    /// Returns how many items have been read from the first one on that is not known to have ended.
    fn ahead(&self) -> usize {
        self.given - self.open.first().copied().unwrap_or(self.given)
    }

    /// Returns whether the input has been read far beyond the first item that has not ended.
    fn is_far_ahead(&self, workers: usize) -> bool {
        self.ahead() > MOST_AHEAD * workers * self.last.max(1)
    }

    /// Gives out a chunk. Returns false if the input has come to its end.
    fn give_out(
        &mut self,
        scoped: &Arc<ScopedWork>,
        items: &mut impl Iterator<Item = A>,
        size: usize,
    ) -> bool {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        let mut has_more = true;
        if self.ending.is_none() {
            buffer.extend(items.take(size));
            has_more = buffer.len() == size;
        } else {
            // The input may take its time.
            while has_more && buffer.len() < size && self.stops_for().is_none() {
                let item = items.next();
                has_more = item.is_some();
                buffer.extend(item);
            }
        }
        let len = buffer.len();
        if len > 0 {
            let chunk = Chunk {
                first: self.given,
                items: buffer,
                results: self.room.next(len),
                queued: self.dispatch.stamp(),
                attempts: 0,
                due: None,
            };
            self.open.insert(self.given);
            self.given += len;
            self.last = len;
            self.exchange.inbox.lock().push_back(chunk);
            self.post(scoped);
        }
        has_more
    }

    /// Has a worker take the chunk that was put into the inbox last.
    fn post(&self, scoped: &Arc<ScopedWork>) {
        let posted = self.dispatch.post(Arc::clone(scoped) as _);
        if matches!(posted, Posted::Closed) && self.dispatch.is_cancelled() {
            // The workers may have ended. This takes little time: no item starts any more.
            while let Some(chunk) = self.exchange.next() {
                self.exchange.run(chunk);
            }
        }
    }

    /// Waits until `wanted` chunks are in the outbox, or until the deadline.
    fn await_ended(&self, wanted: usize, deadline: Option<Instant>) {
        // A caller that is a worker runs chunks itself: the other workers may all be waiting as
        // well.
        if self.dispatch.own_pool().is_this_worker() {
            while self.exchange.count_ended() < wanted
                && let Some(chunk) = self.exchange.next()
            {
                self.exchange.run(chunk);
            }
        }
        {
            let mut outbox = self.exchange.outbox.lock();
            if outbox.chunks.len() >= wanted {
                return;
            }
            outbox.wake_at = wanted;
        }
        let workers = self.open.len().min(self.dispatch.workers());
        let have_ended = || self.exchange.count_ended() >= wanted;
        let is_over = || {
            self.ending
                .as_ref()
                .is_some_and(|ending| ending.reason().is_some())
        };
        if self.ending.is_some() {
            if !spin::wait(workers, deadline, || have_ended() || is_over()) || is_over() {
                self.await_until_over(&have_ended, deadline);
            }
        } else if !spin::wait(workers, deadline, have_ended) {
            park_until(&have_ended, deadline);
        }
    }

    /// Waits like [`await_ended`](Self::await_ended), in a call that may end early.
    fn await_until_over(&self, have_ended: &impl Fn() -> bool, deadline: Option<Instant>) {
        let Some(ending) = &self.ending else {
            return;
        };
        let is_over = || ending.reason().is_some();
        let first = deadline.into_iter().chain(ending.deadline()).min();
        park_until(&|| have_ended() || is_over(), first);
        if !is_over() {
            return;
        }
        // The workers may have other things to do, so this thread itself ends what no worker has
        // taken: no item of it runs. Then it waits for the items that run.
        while let Some(chunk) = self.exchange.next() {
            self.exchange.run(chunk);
        }
        park_until(have_ended, deadline);
    }

    fn take_outbox(&self) -> Outbox<'r, A, R> {
        let mut outbox = self.exchange.outbox.lock();
        self.exchange.ended.store(0, Ordering::Relaxed);
        mem::replace(&mut *outbox, Outbox::empty())
    }
}
