//! The guards that a process has, and what a fork takes with it.
//!
//! A slice that was taken from a guard before a fork is in the child too, and no check there can
//! reach it. So:
//!
//! - While a process has elements to write to, it is not forked: parent and child would write to
//!   the same memory at once. The fork waits for writers that come and go within a call, and for a
//!   moment for other writers.
//! - Of the elements that the process has to read, or as atomics, the fork takes a copy *in the
//!   parent's name*: as long as the child lives, the parent counts as having the claims that it had
//!   at the fork, also those that it gives back meanwhile. The same holds for all objects that it
//!   held: [`Taken`].
//!
//! Nothing can be added between the look at what there is and the fork. Claims are made under a
//! lock ([`Own::gate`]) that the forking thread holds exclusively, and objects are found under the
//! lock of the registry.
//!
//! | the thread that locks | in this order |
//! |---|---|
//! | a thread that forks | `gate` to write, the registry, the lock of each array that has claims |
//! | a thread that claims | `gate` to read, the lock of the array |
//! | a thread that releases something | the lock of the array; after it the registry |

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::claims::{self, Duplicate, Refusal};
use crate::memory::deferred::{self, Limit};
use crate::memory::kind::Kind;
use crate::memory::member;
use crate::memory::registry::{self, Hold, Standstill};
use crate::memory::wait_mode::soon;
use crate::os::fork::{self, PerProcess};
use crate::os::pidfd::Child;

/// The time for which a fork waits for guards, which another thread may be about to drop.
const WAIT_LIMIT: Duration = Duration::from_millis(20);

/// The time for which a fork waits for calls that write, which end by themselves.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The time for which a call that writes lets a fork go first.
const COURTESY: Duration = Duration::from_millis(100);

const STEP: Duration = Duration::from_micros(200);

/// The use of a claim, as far as forks are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A guard to read, or of atomics.
    Shared,
    /// A guard to write.
    Writing,
    /// A claim for the time of a call, by the thread that makes the call.
    Copying,
}

/// The claims of a process.
#[derive(Debug, Default)]
struct Own {
    /// Held to read while a claim is made, and to write during a fork.
    gate: RwLock<()>,
    /// The number of claims for each [`Use`]. The numbers go up under the gate.
    counts: [AtomicUsize; 3],
    /// The number of threads that are going to fork.
    forking: AtomicUsize,
    /// The claims that children have inherited which are not reaped yet.
    taken: Mutex<Vec<Weak<Kept>>>,
}

impl Own {
    const fn new() -> Self {
        Self {
            gate: RwLock::new(()),
            counts: [const { AtomicUsize::new(0) }; 3],
            forking: AtomicUsize::new(0),
            taken: Mutex::new(Vec::new()),
        }
    }

    /// Returns whether the process has claims of this use. Pairs with the decrement after a claim
    /// was given back.
    fn has(&self, usage: Use) -> bool {
        self.counts[usage as usize].load(Ordering::Acquire) > 0
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Weak<Kept>>> {
        // No code that could panic runs under this lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the claims of this process. A forked child has none of its parent's: it has only copies.
fn own() -> &'static Own {
    static OWN: PerProcess<Own> = PerProcess::new(Own::new());
    OWN.own()
}

thread_local! {
    /// The number of claims that this thread has for the time of a call.
    static MOMENTARY: Cell<usize> = const { Cell::new(0) };
}

fn is_copying() -> bool {
    MOMENTARY.try_with(Cell::get).unwrap_or(0) > 0
}

/// Makes a claim, and counts it.
pub(super) fn claim<T>(
    usage: Use,
    make: impl FnOnce() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let own = own();
    if usage == Use::Copying && !is_copying() {
        // Without this, threads that take turns at writing could keep others from forking.
        let start = Instant::now();
        while own.forking.load(Ordering::Relaxed) > 0 && start.elapsed() < COURTESY {
            thread::sleep(STEP);
        }
    }
    let _gate = own.gate.read().unwrap_or_else(PoisonError::into_inner);
    let claimed = make()?;
    own.counts[usage as usize].fetch_add(1, Ordering::Relaxed);
    if usage == Use::Copying {
        let _ = MOMENTARY.try_with(|count| count.set(count.get() + 1));
    }
    Ok(claimed)
}

/// Counts that a claim of this process has been given back.
pub(super) fn gave_back(usage: Use) {
    // Release pairs with the load in `has`: a thread that forks after that load does so with the
    // claim gone.
    own().counts[usage as usize].fetch_sub(1, Ordering::Release);
    if usage == Use::Copying {
        let _ = MOMENTARY.try_with(|count| count.set(count.get().saturating_sub(1)));
    }
}

/// What a child takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// All objects and claims that the process has.
    All,
    /// Objects, and no claims: the child lives for long, and no process could write all that time.
    Objects,
}

/// A fork that is about to happen.
pub(crate) struct Fork {
    takes: Takes,
    start: Instant,
}

/// What is in the way of a fork.
pub(crate) struct InTheWay(Use);

impl Fork {
    pub(crate) fn new(takes: Takes) -> Self {
        own().forking.fetch_add(1, Ordering::Relaxed);
        Self {
            takes,
            start: Instant::now(),
        }
    }

    /// Takes all that there is, and keeps new claims and objects from coming.
    ///
    /// # Errors
    ///
    /// If a mapping could not be had, or an array is locked by a process that does not continue.
    pub(crate) fn depart(&self) -> io::Result<Result<Departure, InTheWay>> {
        let own = own();
        let gate = own.gate.write().unwrap_or_else(PoisonError::into_inner);
        let refused = [Use::Copying, Use::Writing, Use::Shared];
        let refused = match self.takes {
            Takes::All => &refused[..2],
            Takes::Objects => &refused[..],
        };
        if let Some(&usage) = refused.iter().find(|usage| own.has(**usage)) {
            // The caller waits for these claims and tries again.
            return Ok(Err(InTheWay(usage)));
        }
        // This is made before `standstill`, and so dropped after it: to release it locks the
        // registry.
        let mut what = What::default();
        let mut standstill = registry::standstill();
        what.holds = standstill.hold_all();
        if own.has(Use::Shared) {
            let member = member::own().map_err(io::Error::other)?;
            // All threads of this process wait meanwhile, so this thread does not wait for a
            // process that is stopped.
            let deadline = soon();
            for place in standstill.places(Kind::Array)? {
                let duplicated = claims::duplicate(&place, member, deadline, &mut what.claims);
                duplicated.map_err(io::Error::other)?;
            }
        }
        let is_anything = !what.holds.is_empty();
        let taken = Taken(is_anything.then(|| {
            Arc::new(Kept {
                generation: fork::generation(),
                child: OnceLock::new(),
                what: Mutex::new(Some(what)),
            })
        }));
        Ok(Ok(Departure {
            standstill,
            gate,
            taken,
        }))
    }

    /// Waits a little for the claims that are in the way.
    ///
    /// # Errors
    ///
    /// If the caller has waited for them long enough.
    pub(crate) fn wait(&self, InTheWay(usage): InTheWay) -> io::Result<()> {
        let (limit, reason) = match usage {
            // The calling thread is itself in the middle of such a call, which cannot end
            // meanwhile.
            Use::Copying if is_copying() => (Duration::ZERO, IN_A_CALL),
            Use::Copying => (LONGEST_WAIT, IN_A_CALL),
            Use::Writing => (WAIT_LIMIT, WRITING),
            Use::Shared => (WAIT_LIMIT, READING),
        };
        if self.start.elapsed() >= limit {
            return Err(io::Error::other(reason));
        }
        thread::sleep(STEP);
        Ok(())
    }
}

const WRITING: &str = "this process has elements of a shared array to write to, which a forked child would write to at the \
     same time; drop the guard first";
const IN_A_CALL: &str = "a thread of this process is in the middle of a call that writes to a shared array, such as \
     for_each_chunk on threads, and a forked child would write to it at the same time; fork before or after the call";
const READING: &str = "this process has elements of a shared array to read, or as atomics, which workers forked from it would \
     have as long as their pool; drop the guard first";

impl Drop for Fork {
    fn drop(&mut self) {
        own().forking.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A process in which no claim is made and no object found, until this is dropped.
pub(crate) struct Departure {
    // In this order: to release `taken` locks the registry.
    standstill: Standstill,
    gate: RwLockWriteGuard<'static, ()>,
    taken: Taken,
}

impl Departure {
    /// Ends the standstill: the fork is over, and there is a child.
    pub(crate) fn end(self) -> Taken {
        let Self {
            standstill,
            gate,
            taken,
        } = self;
        drop(standstill);
        drop(gate);
        taken
    }
}

/// What a child has taken with it, in the name of its parent. It is released when the child has
/// ended, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Option<Arc<Kept>>);

#[derive(Debug)]
struct Kept {
    generation: u32,
    child: OnceLock<Arc<Child>>,
    what: Mutex<Option<What>>,
}

#[derive(Debug, Default)]
struct What {
    claims: Vec<Duplicate>,
    holds: Vec<Hold>,
}

impl What {
    /// Gives all of it back. Returns false if there are claims left that could not be given back
    /// before the deadline.
    fn let_go(&mut self, limit: Limit) -> bool {
        let generation = fork::generation();
        // The copies in a forked child belong to its parent.
        self.claims
            .retain(|claim| claim.generation == generation && !claim.release(limit));
        // As long as there are claims on an array, its hold stays.
        if self.claims.is_empty() {
            self.holds.clear();
        }
        self.claims.is_empty()
    }
}

impl Drop for What {
    fn drop(&mut self) {
        if !self.let_go(Limit::Brief) {
            let mut rest = Self {
                claims: std::mem::take(&mut self.claims),
                holds: std::mem::take(&mut self.holds),
            };
            deferred::put_off(move |limit| rest.let_go(limit));
        }
    }
}

impl Kept {
    fn let_go(&self) {
        let what = {
            let mut what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
            what.take()
        };
        drop(what);
    }
}

impl Taken {
    /// Says which child has taken it. If no thread watches for the end of this child, the next
    /// thread that is refused a claim finds that end.
    pub(crate) fn taken_by(&self, child: &Arc<Child>) {
        if let Some(kept) = &self.0 {
            let _ = kept.child.set(child.clone());
            let mut taken = own().taken();
            taken.retain(|kept| kept.strong_count() > 0);
            taken.push(Arc::downgrade(kept));
        }
    }

    pub(crate) fn let_go(&mut self) {
        if let Some(kept) = self.0.take()
            // The copy in a forked child belongs to no process.
            && kept.generation == fork::generation()
        {
            kept.let_go();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Releases what was taken by children that have ended, if no other thread has released it since.
pub(crate) fn let_go_for_the_dead() {
    let all: Vec<_> = own().taken().iter().filter_map(Weak::upgrade).collect();
    let has_ended = |child: &Arc<Child>| child.has_ended();
    for kept in all {
        if kept.child.get().is_some_and(has_ended) {
            kept.let_go();
        }
    }
}
