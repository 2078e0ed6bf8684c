//! `map_reduce`: many items, one result, and both steps on the workers.
//!
//! The items of a chunk are mapped and reduced where the chunk runs, so that one value for each
//! chunk comes back. These values are reduced in groups, again on the workers, until one is left.
//! The order of the items is kept all the way: the reduction must be associative, and nothing more.

use std::cell::Cell;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Run;
use crate::call::progress::{Sizes, Tracker};
use crate::call::schedule::Schedule;
use crate::call::seed::{self, Seeds};
use crate::call::{Limits, Plan};
use crate::copies::{self, Original};
use crate::error::TaskError;
use crate::panic::{self, Caught};

/// A chunk of items, the index of the first, and the seeds of all items of the call.
pub(crate) type Chunk<A> = (u64, Seeds, Vec<A>);

/// The value that a chunk was reduced to: `None` if the chunk was empty.
pub(crate) type Partial<R> = Result<Option<R>, Failed>;

/// The panic of a chunk, and the item at which it failed, if it was one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    index: Option<u64>,
    caught: Caught,
}

/// How many results of chunks one task reduces.
const GROUP: usize = 64;

/// Maps and reduces one chunk.
pub(crate) fn fold<A, R>(
    (base, seeds, items): Chunk<A>,
    f: impl Fn(A) -> R,
    reduce: impl Fn(R, R) -> R,
) -> Partial<R> {
    // No item is noted while the reduction runs: a panic in it does not belong to one item.
    let at = Cell::new(None);
    let _none = seed::leave();
    panic::catch(|| {
        let mut mapped = (base..).zip(items).map(|(index, item)| {
            at.set(Some(index));
            let seeded = seed::enter(seeds, index as usize);
            let value = f(item);
            drop(seeded);
            at.set(None);
            value
        });
        let first = mapped.next()?;
        Some(mapped.fold(first, &reduce))
    })
    .map_err(|caught| Failed {
        index: at.get(),
        caught,
    })
}

/// Reduces the results of some chunks.
pub(crate) fn combine<R>(partials: Vec<R>, reduce: impl Fn(R, R) -> R) -> Partial<R> {
    let _none = seed::leave();
    panic::catch(|| partials.into_iter().reduce(&reduce)).map_err(|caught| Failed {
        index: None,
        caught,
    })
}

/// Maps and reduces like [`fold`], for engines whose workers go on to other chunks: a copy of the
/// worker that `f` or `reduce` forks ends here.
pub(crate) fn fold_in_worker<A, R>(
    chunk: Chunk<A>,
    f: impl Fn(A) -> R,
    reduce: impl Fn(R, R) -> R,
) -> Partial<R> {
    let original = Original::here();
    let f = |item| copies::run(original, || f(item));
    let reduce = |one, other| copies::run(original, || reduce(one, other));
    let partial = fold(chunk, f, reduce);
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

/// Runs the whole call, given the two functions that an engine runs.
pub(crate) fn map_reduce<E, H, K, A, R>(
    engine: &E,
    plan: Plan<'_>,
    fold: H,
    combine: K,
    items: impl Iterator<Item = A>,
) -> Result<Option<R>, TaskError>
where
    H: Fn(Chunk<A>) -> Partial<R>,
    K: Fn(Vec<R>) -> Partial<R> + Clone,
    E: Run<H, Chunk<A>, Partial<R>> + Run<K, Vec<R>, Partial<R>>,
{
    let workers = engine.workers();
    let mut sizes = plan.chunks(workers)?;
    if plan.limits.timeout.is_some() {
        return Err(TaskError::InvalidCall {
            reason: "map_reduce has no limit for each item: it runs them in chunks. Use map and reduce the results".into(),
        });
    }
    let seeds = plan.limits.seeds;
    // An iterator may go on after its end, so it is fused.
    let (mut items, mut given) = (items.fuse(), 0);
    // The sizes for the progress.
    let chunk_sizes = Mutex::new(Sizes::default());
    let most = plan.window.unwrap_or(usize::MAX).div_ceil(2 * workers);
    let chunks = std::iter::from_fn(|| {
        let chunk: Vec<A> = items.by_ref().take(sizes.next_size().min(most)).collect();
        let base = given as u64;
        given += chunk.len();
        if !chunk.is_empty() {
            chunk_sizes.lock().add(chunk.len());
        }
        (!chunk.is_empty()).then_some((base, seeds, chunk))
    });
    // A chunk is not an item, so the limit that a pool has for items does not apply to it.
    let limits = Limits {
        timeout: Some(Duration::MAX),
        ..plan.limits
    };
    let inner = |window, tracker| Plan {
        schedule: Schedule::Dynamic(1),
        limits,
        window,
        kills: false,
        total: None,
        tracker,
    };
    let mut tracker = plan.tracker;
    let window = plan.window.map(|_| 2 * workers);
    let first = inner(window, Tracker::by_chunks(&mut tracker, &chunk_sizes));
    let partials = engine.map(first, fold, chunks).map_err(without_index)?;
    let mut partials = values(partials)?;
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
            )
            .map_err(without_index)?;
        partials = values(reduced)?;
    }
    Ok(partials.pop())
}

/// Returns the values of chunks, or the error of the first item that failed.
fn values<R>(partials: Vec<Partial<R>>) -> Result<Vec<R>, TaskError> {
    let partials = partials.into_iter().filter_map(Result::transpose);
    let values: Result<Vec<R>, Failed> = partials.collect();
    values.map_err(|Failed { index, caught }| {
        caught.into_error(index.and_then(|index| index.try_into().ok()))
    })
}

/// Removes the engine's index: it is that of a chunk, and the caller counts items.
fn without_index(error: TaskError) -> TaskError {
    error.indexed(None)
}
