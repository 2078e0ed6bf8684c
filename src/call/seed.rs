//! Seeds for random number generators in tasks: [`item_seed`] and [`worker_seed`].
//!
//! The items of a call have the numbers of a `SplitMix64` generator as their seeds, in the order of
//! the input; its state at the start is the seed of the call. Any number of that sequence can be
//! computed by itself. So a chunk carries one word ([`Seeds`]), and a task that does not ask for
//! its seed pays for no more than that.

use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::cell::RefCell;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
use crate::lane::Lane;
#[cfg(target_os = "linux")]
use crate::os::{fork::generation, random};

/// The step by which the state of `SplitMix64` grows with each number: Steele, Lea, Flood, "Fast
/// Splittable Pseudorandom Number Generators" (OOPSLA 2014).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the output of `SplitMix64` in this state, with the constants of Vigna's `splitmix64.c`
/// (<https://prng.di.unimi.it/splitmix64.c>).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The seeds of a run of items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seeds(pub(crate) u64);

impl Seeds {
    /// Returns the seeds of a call: those of this seed, or of one that no other call has.
    #[inline]
    pub(crate) fn of_call(seed: Option<u64>) -> Self {
        Self(seed.unwrap_or_else(next_call))
    }

    /// Returns the seeds of the items from `index` on.
    pub(crate) fn from(self, index: usize) -> Self {
        Self(self.0.wrapping_add((index as u64).wrapping_mul(GAMMA)))
    }

    fn of(self, index: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA)))
    }
}

/// Returns the seed of the item that this thread runs; `None` outside of tasks.
///
/// It is made of the seed of the call and the item's index in the input, and of nothing else: with
/// [`Call::seed`](crate::Call::seed) it is the same on all engines, for any number of workers,
/// chunk size or order of execution. Without it, each call has a seed of its own, and so has each
/// item. An item that is run again after a death has the seed that it had before.
///
/// The index of a [submitted](crate::Pool::submit) task is 0; that of a chunk of an array is the
/// index that the function gets. While [`map_reduce`](crate::Pool::map_reduce) reduces, there is no
/// item. Call this on the thread that runs the task: other threads, those of rayon too, run no item
/// or another one.
///
/// On [`Processes`](crate::Processes) the items of [`imap`](crate::Pool::imap) and
/// [`imap_unordered`](crate::Pool::imap_unordered) that come after one that could not be
/// serialised, in the same chunk, have other seeds than on the other engines. No two items have the
/// same seed.
///
/// # Examples
///
/// The same random numbers whatever runs the items, with the crate [rand](https://docs.rs/rand):
///
/// ```
/// use manyhands::item_seed;
/// use manyhands::prelude::*;
/// use rand::{RngExt, SeedableRng, rngs::StdRng};
///
/// fn throw(dice: u32) -> u32 {
///     let mut rng = StdRng::seed_from_u64(item_seed().unwrap_or_default());
///     (0..dice).map(|_| rng.random_range(1..=6)).sum()
/// }
///
/// let serial = Pool::serial().call().seed(42).map(throw, [1, 2, 3])?;
/// assert_eq!(
///     Pool::threads(2)?.call().seed(42).map(throw, [1, 2, 3])?,
///     serial
/// );
/// assert_eq!(
///     Pool::processes(2)?.call().seed(42).map(throw, [1, 2, 3])?,
///     serial
/// );
/// assert_eq!(item_seed(), None); // not here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn item_seed() -> Option<u64> {
    let seeds = Seeds(CURRENT.with(|current| current.seeds.get()));
    match CURRENT.with(|current| current.at.get()) {
        NOWHERE => None,
        IN_LANE => lane_item().map(|item| seeds.of(item)),
        index => Some(seeds.of(index)),
    }
}

/// Returns a seed that this worker alone has, for a generator that it keeps from task to task. It
/// is the same at each call on one thread.
///
/// It comes from the system. Each thread has one, also outside of tasks; each worker process has
/// one of its own, and so has each forked child and each worker that replaces another.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{worker_seed, worker_state};
/// use rand::{RngExt, SeedableRng, rngs::SmallRng};
///
/// let generator = || Ok::<_, String>(SmallRng::seed_from_u64(worker_seed()));
/// let pool = Processes::builder()
///     .workers(2)
///     .initializer(generator)
///     .build()?;
/// let noise = |x: f64| worker_state(|rng: &mut SmallRng| x + rng.random_range(-0.1..0.1));
/// assert!(pool.map(noise, [1.0, 2.0])?.iter().all(Option::is_some));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn worker_seed() -> u64 {
    own().seed
}

// The item that this thread runs -----------------------------------------------------------------

/// Values of [`Current::at`]: no item, and the item that the lane's progress word names. No input
/// is long enough to have items with these indices.
const NOWHERE: u64 = u64::MAX;
const IN_LANE: u64 = u64::MAX - 1;

struct Current {
    seeds: Cell<u64>,
    at: Cell<u64>,
}

thread_local! {
    static CURRENT: Current = const {
        Current {
            seeds: Cell::new(0),
            at: Cell::new(NOWHERE),
        }
    };
}

/// The item that the thread was at before. The thread is set back to it when this is dropped.
pub(crate) struct Scope {
    seeds: u64,
    at: u64,
}

/// Notes that this thread begins with an item of a call.
#[inline]
pub(crate) fn enter(seeds: Seeds, index: usize) -> Scope {
    CURRENT.with(|current| Scope {
        seeds: current.seeds.replace(seeds.0),
        at: current.at.replace(index as u64),
    })
}

/// Notes that this thread is at no item.
pub(crate) fn leave() -> Scope {
    CURRENT.with(|current| Scope {
        seeds: current.seeds.get(),
        at: current.at.replace(NOWHERE),
    })
}

/// Notes that this thread comes to another item of the same call, within a [`Scope`].
#[inline]
pub(crate) fn move_to(index: usize) {
    CURRENT.with(|current| current.at.set(index as u64));
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with(|current| {
            current.seeds.set(self.seeds);
            current.at.set(self.at);
        });
    }
}

#[cfg(target_os = "linux")]
thread_local! {
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Notes that this thread runs, or answers for, the tasks that come over this lane.
#[cfg(target_os = "linux")]
pub(crate) fn set_lane(lane: &Lane) {
    let before = LANE.replace(Some(lane.clone()));
    // In a forked child both are copies of what the forking thread had: its lane, and the item that
    // it was at. They are not dropped.
    std::mem::forget(before);
    std::mem::forget(leave());
}

/// Notes that the thread of a lane begins with a task that has these seeds. The lane's progress
/// word says which item it is at.
#[cfg(target_os = "linux")]
#[inline]
pub(crate) fn begin_task(seeds: Seeds) {
    CURRENT.with(|current| {
        current.seeds.set(seeds.0);
        current.at.set(IN_LANE);
    });
}

/// The item that a thread is at.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// None.
    Nowhere,
    /// The item that the lane's progress word names.
    InLane,
    /// The item of its call with this index.
    Item(usize),
}

/// Returns which item this thread is at.
#[cfg(target_os = "linux")]
pub(crate) fn at() -> At {
    match CURRENT.with(|current| current.at.get()) {
        NOWHERE => At::Nowhere,
        IN_LANE => At::InLane,
        index => At::Item(index as usize),
    }
}

/// Returns whether this thread runs the tasks of a lane.
#[cfg(target_os = "linux")]
pub(crate) fn has_lane() -> bool {
    // At the end of a thread, its lane is gone already.
    LANE.try_with(|lane| lane.try_borrow().is_ok_and(|lane| lane.is_some()))
        .unwrap_or(true)
}

/// Hands the header of the lane that this thread runs tasks of to `look`, if it does.
#[cfg(target_os = "linux")]
pub(crate) fn with_lane<T>(look: impl FnOnce(&crate::lane::Header) -> T) -> Option<T> {
    // At the end of a thread, its lane is gone already.
    let looked = LANE.try_with(|lane| Some(look(lane.borrow().as_ref()?.header())));
    looked.ok().flatten()
}

/// Returns the lane that this thread runs tasks of, if it does.
#[cfg(target_os = "linux")]
pub(crate) fn lane() -> Option<Lane> {
    LANE.with_borrow(Clone::clone)
}

fn lane_item() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        // At the end of a thread, its lane is gone already.
        let item = LANE.try_with(|lane| {
            let lane = lane.borrow();
            lane.as_ref()?.header().progress().running().map(u64::from)
        });
        item.ok().flatten()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

// The seeds of this thread -----------------------------------------------------------------------

#[derive(Clone, Copy)]
struct Own {
    /// The generation of the process that made this. In a forked child, the value is a copy of the
    /// parent's and must not be used.
    generation: u32,
    /// State of the generator of seeds for calls.
    calls: u64,
    /// The seed for [`worker_seed`].
    seed: u64,
}

thread_local! {
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
}

#[inline]
fn own() -> Own {
    let generation = generation();
    if let Some(own) = OWN.get()
        && own.generation == generation
    {
        return own;
    }
    make_own(generation)
}

#[cold]
fn make_own(generation: u32) -> Own {
    let own = Own {
        generation,
        calls: random::word(),
        seed: random::word(),
    };
    OWN.set(Some(own));
    own
}

/// Returns a seed for a call that was given none.
#[inline]
fn next_call() -> u64 {
    let mut own = own();
    own.calls = own.calls.wrapping_add(GAMMA);
    OWN.set(Some(own));
    mix(own.calls)
}

#[cfg(not(target_os = "linux"))]
fn generation() -> u32 {
    0
}

#[cfg(not(target_os = "linux"))]
mod random {
    use std::hash::{BuildHasher, RandomState};

    pub(super) fn word() -> u64 {
        RandomState::new().hash_one(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_of_items_are_the_numbers_of_splitmix64() {
        // The first numbers of Vigna's `splitmix64.c` from this state.
        let known = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let seeds = Seeds::of_call(Some(1_234_567));
        for (index, known) in known.into_iter().enumerate() {
            assert_eq!(seeds.of(index as u64), known);
            assert_eq!(seeds.from(index).of(0), known);
        }
    }

    #[test]
    fn calls_without_a_seed_differ() {
        assert_ne!(Seeds::of_call(None), Seeds::of_call(None));
        assert_eq!(Seeds::of_call(Some(7)), Seeds::of_call(Some(7)));
    }

    #[test]
    fn after_a_scope_the_thread_is_at_what_it_was_at_before() {
        assert_eq!(item_seed(), None);
        let outer = enter(Seeds(1), 5);
        assert_eq!(item_seed(), Some(Seeds(1).of(5)));
        {
            let _inner = enter(Seeds(2), 0);
            move_to(3);
            assert_eq!(item_seed(), Some(Seeds(2).of(3)));
            let _none = leave();
            assert_eq!(item_seed(), None);
        }
        assert_eq!(item_seed(), Some(Seeds(1).of(5)));
        drop(outer);
        assert_eq!(item_seed(), None);
    }

    #[test]
    fn the_seed_of_a_thread_stays_and_is_its_own() {
        let own = worker_seed();
        assert_eq!(worker_seed(), own);
        assert_ne!(std::thread::spawn(worker_seed).join().ok(), Some(own));
    }
}
