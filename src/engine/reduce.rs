//! `map_reduce`: many items, one result, and both steps on the workers.
//!
//! The items of a chunk are mapped and reduced where the chunk runs, so that one value for each
//! chunk comes back. These values are reduced in groups, again on the workers, until one is left.
//! The order of the items is kept all the way: the reduction must be associative, and nothing more.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::call::progress::{Sizes, Tracker};
use crate::call::schedule::Schedule;
use crate::call::seed::{self, Seeds};
use crate::call::{AtErr, Plan};
use crate::copies::{self, Original};
use crate::error::TaskError;
use crate::future::Ending;
#[cfg(target_os = "linux")]
use crate::lane::Lane;
use crate::panic::{self, Caught};

/// A chunk of items, the index of the first, and the seeds of all items of the call.
pub(crate) type Chunk<A> = (u64, Seeds, Vec<A>);

/// The value that a chunk was reduced to: `None` if the chunk was empty.
pub(crate) type Partial<R> = Result<Option<R>, Failed>;

/// The panic of a chunk, and the item at which it failed, if it was one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    index: Option<u64>,
    caught: Box<Caught>,
    /// Whether there was no panic: the rest of the chunk was left out.
    is_left_out: bool,
}

/// What tells a worker in the middle of a chunk whether the rest of it is needed.
pub(crate) trait Watch {
    /// Returns whether the items of the chunk that begins with item `base` are needed, as far as is
    /// known.
    fn goes_on(&self, base: u64) -> bool;

    /// Notes that one more item of the chunk has ended, so that there are `ended` now.
    fn item_ended(&self, ended: u64);
}

/// The watch of the engines whose workers share the caller's memory.
#[derive(Debug)]
pub(crate) struct Local {
    /// The first chunk that has failed, by the index of its first item.
    failed: AtomicU64,
    /// The items that have ended, if the caller is told of the progress.
    ended: Option<AtomicUsize>,
    /// What may end the call early, if anything may.
    ending: Option<Ending>,
}

impl Local {
    /// Makes the watch of a call.
    pub(crate) fn of(plan: &Plan<'_>) -> Self {
        Self {
            failed: AtomicU64::new(u64::MAX),
            ended: plan.tracker.is_on().then(|| AtomicUsize::new(0)),
            ending: plan.limits.ending().cloned(),
        }
    }

    pub(crate) fn ended(&self) -> Option<&AtomicUsize> {
        self.ended.as_ref()
    }

    /// Maps and reduces like [`fold`], and notes whether the chunk has failed.
    pub(crate) fn fold<A, R>(
        &self,
        chunk: Chunk<A>,
        f: impl Fn(A) -> R,
        reduce: impl Fn(R, R) -> R,
    ) -> Partial<R> {
        let (base, ..) = chunk;
        let partial = fold_in_worker(chunk, f, reduce, self);
        if partial.is_err() {
            self.failed.fetch_min(base, Ordering::Relaxed);
        }
        partial
    }
}

impl Watch for Local {
    fn goes_on(&self, base: u64) -> bool {
        let is_over = |ending: &Ending| ending.reason().is_some();
        base <= self.failed.load(Ordering::Relaxed) && !self.ending.as_ref().is_some_and(is_over)
    }

    fn item_ended(&self, _ended: u64) {
        if let Some(ended) = &self.ended {
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The watch of a process whose chunks come over a lane. The parent has the rest of a chunk left
/// out by [cutting](crate::lane::Header::cut) the lane's task.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(crate) struct InLane(Option<(Lane, u32)>);

#[cfg(target_os = "linux")]
impl InLane {
    /// Makes the watch of the chunk that this thread is at.
    pub(crate) fn here() -> Self {
        Self(seed::lane().map(|lane| {
            lane.header().set_within(0);
            let task = lane.header().progress().task;
            (lane, task)
        }))
    }
}

#[cfg(target_os = "linux")]
impl Watch for InLane {
    fn goes_on(&self, _base: u64) -> bool {
        let is_cut = |(lane, task): &(Lane, u32)| lane.header().is_cut(*task);
        !self.0.as_ref().is_some_and(is_cut)
    }

    fn item_ended(&self, ended: u64) {
        if let Some((lane, _)) = &self.0 {
            lane.header().set_within(ended);
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for InLane {
    fn drop(&mut self) {
        // Before the next item is named: the parent must not take this count for that of the next
        // one.
        if let Some((lane, _)) = &self.0 {
            lane.header().set_within(0);
        }
    }
}

/// How many results of chunks one task reduces.
const GROUP: usize = 64;

/// Maps and reduces one chunk, or as much of it as is needed: then the outcome is a failure, which
/// no caller looks at.
fn fold<A, R>(
    (base, seeds, items): Chunk<A>,
    f: impl Fn(A) -> R,
    reduce: impl Fn(R, R) -> R,
    watch: &impl Watch,
) -> Partial<R> {
    // No item is noted while the reduction runs: a panic in it does not belong to one item.
    let at = Cell::new(None);
    let _none = seed::leave();
    let folded = panic::catch(|| {
        let (mut total, mut ended) = (None, 0);
        for (index, item) in (base..).zip(items) {
            if !watch.goes_on(base) {
                return None;
            }
            at.set(Some(index));
            let seeded = seed::enter(seeds, index as usize);
            let value = f(item);
            drop(seeded);
            at.set(None);
            total = Some(match total {
                Some(total) => reduce(total, value),
                None => value,
            });
            ended += 1;
            watch.item_ended(ended);
        }
        Some(total)
    });
    let failed = |caught| Failed {
        index: at.get(),
        caught,
        is_left_out: false,
    };
    folded.map_err(failed)?.ok_or_else(|| Failed {
        is_left_out: true,
        ..failed(Caught::saying(
            "it was left out, because an item before it has failed",
        ))
    })
}

/// Reduces two values, on the thread of the caller.
pub(crate) fn one<R>(one: R, other: R, reduce: impl Fn(R, R) -> R) -> Result<R, TaskError> {
    let _none = seed::leave();
    panic::catch(|| reduce(one, other)).map_err(|caught| caught.into_error(None))
}

/// Reduces the results of some chunks.
fn combine<R>(partials: Vec<R>, reduce: impl Fn(R, R) -> R) -> Partial<R> {
    let _none = seed::leave();
    panic::catch(|| partials.into_iter().reduce(&reduce)).map_err(|caught| Failed {
        index: None,
        caught,
        is_left_out: false,
    })
}

/// Maps and reduces like [`fold`], for engines whose workers go on to other chunks: a copy of the
/// worker that `f` or `reduce` forks ends here.
pub(crate) fn fold_in_worker<A, R>(
    chunk: Chunk<A>,
    f: impl Fn(A) -> R,
    reduce: impl Fn(R, R) -> R,
    watch: &impl Watch,
) -> Partial<R> {
    let original = Original::here();
    let f = |item| copies::run(original, || f(item));
    let reduce = |one, other| copies::run(original, || reduce(one, other));
    let partial = fold(chunk, f, reduce, watch);
    copies::end_panicked(original);
    partial
}

/// Reduces like [`combine`], with the same care as [`fold_in_worker`].
pub(crate) fn combine_in_worker<R>(partials: Vec<R>, reduce: impl Fn(R, R) -> R) -> Partial<R> {
    let original = Original::here();
    let partial = combine(partials, |one, other| {
        copies::run(original, || reduce(one, other))
    });
    copies::end_panicked(original);
    partial
}

/// Checks that the call asks for nothing that it cannot have.
///
/// # Errors
///
/// [`TaskError::InvalidCall`] if it does.
pub(crate) fn check(plan: &Plan<'_>) -> Result<(), TaskError> {
    if plan.limits.timeout().is_some() {
        return Err(TaskError::InvalidCall {
            reason: "map_reduce has no limit for each item: it runs them in chunks. Use map and reduce the results".into(),
        });
    }
    Ok(())
}

/// Runs the whole call, given how the engine folds all chunks, and the function that combines some
/// of their values. `ended` counts the items that have ended, where they can be counted.
pub(crate) fn map_reduce<E, H, K, A, R>(
    engine: &E,
    plan: Plan<'_>,
    fold: H,
    combine: K,
    items: impl Iterator<Item = A>,
    ended: Option<&AtomicUsize>,
) -> Result<Option<R>, TaskError>
where
    H: FnOnce(Plan<'_>, &mut dyn Iterator<Item = Chunk<A>>) -> Result<Vec<Partial<R>>, TaskError>,
    K: Fn(Vec<R>) -> Partial<R> + Clone,
    E: Run<K, Vec<R>, Partial<R>>,
{
    let workers = engine.workers();
    let mut sizes = plan.chunks(workers)?;
    check(&plan)?;
    let seeds = plan.limits.seeds;
    let ending = plan.limits.ending().cloned();
    // An iterator may go on after its end, so it is fused.
    let (mut items, mut given) = (items.fuse(), 0);
    // The sizes for the progress.
    let chunk_sizes = Mutex::new(Sizes::default());
    let most = plan.window.unwrap_or(usize::MAX).div_ceil(2 * workers);
    let mut chunks = std::iter::from_fn(|| {
        let chunk: Vec<A> = items.by_ref().take(sizes.next_size().min(most)).collect();
        let base = given as u64;
        given += chunk.len();
        if !chunk.is_empty() {
            chunk_sizes.lock().add(chunk.len());
        }
        (!chunk.is_empty()).then_some((base, seeds, chunk))
    });
    // A chunk is not an item, so the limit that a pool has for items does not apply to it.
    let limits = plan
        .limits
        .with(|given| given.timeout = Some(Duration::MAX));
    let inner = |window, tracker| Plan {
        schedule: Schedule::Dynamic(1),
        limits: limits.clone(),
        window,
        kills: false,
        total: None,
        tracker,
    };
    let mut tracker = plan.tracker;
    let window = plan.window.map(|_| 2 * workers);
    let first = inner(
        window,
        Tracker::by_chunks(&mut tracker, &chunk_sizes, ended),
    );
    let partials = fold(first, &mut chunks).map_err(without_index)?;
    let mut partials = values(partials, ending.as_ref())?;
    while partials.len() > 1 {
        let mut rest = partials.into_iter();
        let groups = std::iter::from_fn(|| {
            let group: Vec<R> = rest.by_ref().take(GROUP).collect();
            (!group.is_empty()).then_some(group)
        });
        let reduced = engine
            .map(
                inner(None, Tracker::new(None, None)),
                combine.clone(),
                groups,
                AtErr::PLAIN,
            )
            .map_err(without_index)?;
        partials = values(reduced, ending.as_ref())?;
    }
    Ok(partials.pop())
}

/// Returns the values of chunks, or the error of the first item that failed.
fn values<R>(partials: Vec<Partial<R>>, ending: Option<&Ending>) -> Result<Vec<R>, TaskError> {
    let partials = partials.into_iter().filter_map(Result::transpose);
    let values: Result<Vec<R>, Failed> = partials.collect();
    values.map_err(|failed| {
        // Of chunks that were left out because of a failure, none is the first that failed.
        if failed.is_left_out
            && let Some(reason) = ending.and_then(Ending::reason)
        {
            return reason.error();
        }
        let index = failed.index.and_then(|index| index.try_into().ok());
        failed.caught.into_error(index)
    })
}

/// Removes the engine's index: it is that of a chunk, and the caller counts items.
fn without_index(error: TaskError) -> TaskError {
    error.indexed(None)
}
