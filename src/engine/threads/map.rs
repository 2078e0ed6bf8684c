//! `map`: many items, one function, results in order.
//!
//! ```text
//!            caller                                              workers
//! iterator ──▶ chunk ──▶ inbox, and a lease posted for it ─────▶ function on each item,
//!                                                                results to their place
//!   buffer, progress ◀── outbox ◀─────────────────────────────── ended chunk
//! ```
//!
//! Only the caller's thread touches the iterator, which may borrow from it and need not be `Send`. It fills one chunk
//! after the other and sleeps while there are enough of them. It runs none itself: items run on the pool's threads, where
//! rayon's calls find this pool, unless the caller is one of these threads, and would otherwise wait for itself.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use super::dispatch::Dispatch;
use super::lease::{Lease, Work, lend};
use super::results::{Room, Stretch, collect};
use super::spin;
use crate::error::TaskError;
use crate::panic::{self, Caught};
use crate::pool::Plan;

/// How many chunks are given out and not back, at most: for each worker one that it runs and some to go on with. The
/// caller fills up when half of them are back.
///
/// With as many workers as cores the caller must wait for a core when it wakes, so it takes a while until it fills up.
/// On two cores and bodies of 5 ns, 4 for each worker cost 30 % more than 16 do, and more than 16 gain nothing.
pub(super) const CHUNKS_PER_WORKER: usize = 16;

/// x
pub static NARROW: AtomicUsize = AtomicUsize::new(4);
/// x
pub static FIFO: AtomicUsize = AtomicUsize::new(0);
/// x
pub static CHUNKS_PER_WORKER_: AtomicUsize = AtomicUsize::new(16);
/// A piece of the input and where its results go.
struct Chunk<'r, A, R> {
    /// Index of the first item in the input.
    first: usize,
    items: Vec<A>,
    results: Stretch<'r, R>,
}

/// What the caller and the workers share for the length of one call.
struct Exchange<'f, 'r, F, A, R> {
    function: &'f F,
    inbox: Mutex<VecDeque<Chunk<'r, A, R>>>,
    outbox: Mutex<Outbox<'r, A, R>>,
    /// How many chunks are in the outbox: written under its lock, for a caller that spins.
    ended: AtomicUsize,
    /// The lowest index of an item that has failed. Items after it need not run; those before it must. Workers may
    /// see it late, so it only decides what to leave out: the error that the call returns comes through the outbox.
    failed_at: AtomicUsize,
    caller: Thread,
}

struct Outbox<'r, A, R> {
    chunks: Vec<Chunk<'r, A, R>>,
    failures: Vec<Failure>,
    /// With how many chunks in the outbox the caller wants to be woken.
    wake_at: usize,
}

struct Failure {
    index: usize,
    caught: Caught,
}

/// Runs `function` on every item.
pub(super) fn map<F, A, R, I>(
    dispatch: &Dispatch,
    plan: Plan<'_>,
    function: &F,
    items: I,
) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
    I: Iterator<Item = A>,
{
    // A call that cannot be is refused before an item is taken.
    plan.chunks(dispatch.workers())?;
    collect(plan.total.unwrap_or(0), |room| {
        let exchange = Exchange::new(function);
        let caller = Caller {
            dispatch,
            exchange: &exchange,
            room,
            buffers: Vec::new(),
            given: 0,
            open: 0,
        };
        lend(&exchange, |lease| caller.call(lease, plan, items))
    })
}

impl<'f, 'r, F, A, R> Exchange<'f, 'r, F, A, R> {
    fn new(function: &'f F) -> Self {
        let outbox = Outbox {
            chunks: Vec::new(),
            failures: Vec::new(),
            wake_at: usize::MAX,
        };
        Self {
            function,
            inbox: Mutex::default(),
            outbox: Mutex::new(outbox),
            ended: AtomicUsize::new(0),
            failed_at: AtomicUsize::new(usize::MAX),
            caller: thread::current(),
        }
    }

    /// How many chunks are in the outbox.
    fn count_ended(&self) -> usize {
        // Acquire: pairs with the store in `run`.
        self.ended.load(Ordering::Acquire)
    }

    fn has_failed(&self) -> bool {
        self.failed_at.load(Ordering::Relaxed) != usize::MAX
    }
}

impl<F, A, R> Work for Exchange<'_, '_, F, A, R>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
{
    fn do_part(&self) {
        let next = self.inbox.lock().pop_front();
        if let Some(chunk) = next {
            self.run(chunk);
        }
    }
}

impl<'r, F, A, R> Exchange<'_, 'r, F, A, R>
where
    F: Fn(A) -> R + Sync,
{
    /// Runs a chunk and puts it into the outbox.
    fn run(&self, mut chunk: Chunk<'r, A, R>) {
        let Chunk {
            first,
            ref mut items,
            ref mut results,
        } = chunk;
        // One `catch` for the whole chunk: how many results there are tells which item it was.
        let outcome = panic::catch(|| {
            results.fill(items.drain(..), |nth, item| {
                let is_wanted = first + nth <= self.failed_at.load(Ordering::Relaxed);
                is_wanted.then(|| (self.function)(item))
            });
        });
        let failure = outcome.err().map(|caught| Failure {
            index: first + results.len(),
            caught,
        });
        if let Some(failure) = &failure {
            self.failed_at.fetch_min(failure.index, Ordering::Relaxed);
        }

        let mut outbox = self.outbox.lock();
        outbox.failures.extend(failure);
        outbox.chunks.push(chunk);
        // Release: pairs with the load in `count_ended`.
        self.ended.store(outbox.chunks.len(), Ordering::Release);
        let wakes = outbox.chunks.len() == outbox.wake_at;
        drop(outbox);
        if wakes {
            self.caller.unpark();
            // The caller may have been given this very core to run on, and is done with it soon.
            if FIFO.load(Ordering::Relaxed) & 2 == 0 {
                thread::yield_now();
            }
        }
    }
}

/// The side of the caller.
struct Caller<'x, 'f, 'r, F, A, R> {
    dispatch: &'x Dispatch,
    exchange: &'x Exchange<'f, 'r, F, A, R>,
    room: Room<'r, R>,
    /// Buffers of chunks that have ended, to be filled again: fresh memory would cost more than the items.
    buffers: Vec<Vec<A>>,
    /// Items given out.
    given: usize,
    /// Chunks given out and not back.
    open: usize,
}

impl<'r, F, A, R> Caller<'_, '_, 'r, F, A, R>
where
    F: Fn(A) -> R + Sync,
    A: Send,
    R: Send,
{
    fn call(
        mut self,
        lease: &Arc<Lease>,
        plan: Plan<'_>,
        mut items: impl Iterator<Item = A>,
    ) -> Result<Vec<Stretch<'r, R>>, TaskError> {
        let mut sizes = plan.chunks(self.dispatch.workers())?;
        let mut tracker = plan.tracker;
        let mut window = NARROW
            .load(Ordering::Relaxed)
            .saturating_mul(self.dispatch.workers());
        let mut last = std::time::Instant::now();
        let widest = CHUNKS_PER_WORKER_
            .load(Ordering::Relaxed)
            .saturating_mul(self.dispatch.workers());
        let mut ended = Vec::new();
        let mut failures = Vec::new();
        let mut done = 0;
        let mut has_more = true;
        loop {
            if has_more && self.open < window && !self.exchange.has_failed() {
                has_more = self.give_out(lease, &mut items, sizes.next_size());
                // An iterator may take its time, and who listens wants to hear of what has ended meanwhile.
                if !(tracker.is_on() && self.exchange.count_ended() > 0) {
                    continue;
                }
            } else if self.open == 0 {
                break;
            } else {
                let wanted = match (tracker.is_on(), has_more) {
                    (true, _) => 1,
                    (false, true) => self.open.div_ceil(2),
                    (false, false) => self.open,
                };
                self.await_ended(wanted);
                if last.elapsed() < std::time::Duration::from_millis(1) {
                    window = (window * 2).min(widest);
                }
                last = std::time::Instant::now();
            }
            let mut outbox = self.take_outbox();
            failures.append(&mut outbox.failures);
            for chunk in outbox.chunks {
                self.open -= 1;
                done += chunk.results.len();
                ended.push((chunk.first, chunk.results));
                self.buffers.push(chunk.items);
            }
            tracker.tell(done + failures.len(), failures.len());
        }
        if let Some(first) = failures.into_iter().min_by_key(|failure| failure.index) {
            return Err(first.caught.into_error(Some(first.index)));
        }
        ended.sort_unstable_by_key(|&(first, _)| first);
        Ok(ended.into_iter().map(|(_, results)| results).collect())
    }

    /// Gives out a chunk; false if it was the last.
    fn give_out(
        &mut self,
        lease: &Arc<Lease>,
        items: &mut impl Iterator<Item = A>,
        size: usize,
    ) -> bool {
        let mut buffer = if FIFO.load(Ordering::Relaxed) & 1 == 1 && !self.buffers.is_empty() {
            self.buffers.remove(0)
        } else {
            self.buffers.pop().unwrap_or_default()
        };
        buffer.extend(items.take(size));
        let len = buffer.len();
        if len > 0 {
            let chunk = Chunk {
                first: self.given,
                items: buffer,
                results: self.room.next(len),
            };
            self.given += len;
            self.open += 1;
            self.exchange.inbox.lock().push_back(chunk);
            self.dispatch.post(Arc::clone(lease) as _);
        }
        len == size
    }

    /// Waits until `wanted` chunks have ended.
    fn await_ended(&self, wanted: usize) {
        // A worker that calls `map` of its own pool does the work itself, as far as nobody else does.
        while self.dispatch.home().is_this_worker() {
            let next = self.exchange.inbox.lock().pop_front();
            let Some(chunk) = next else { break };
            self.exchange.run(chunk);
        }
        let have_ended = || self.exchange.count_ended() >= wanted;
        {
            let mut outbox = self.exchange.outbox.lock();
            if outbox.chunks.len() >= wanted {
                return;
            }
            outbox.wake_at = wanted;
        }
        if !spin::wait(None, have_ended) {
            while !have_ended() {
                thread::park();
            }
        }
    }

    fn take_outbox(&self) -> Outbox<'r, A, R> {
        let mut outbox = self.exchange.outbox.lock();
        self.exchange.ended.store(0, Ordering::Relaxed);
        let empty = Outbox {
            chunks: Vec::new(),
            failures: Vec::new(),
            wake_at: usize::MAX,
        };
        mem::replace(&mut *outbox, empty)
    }
}
