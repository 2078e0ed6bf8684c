//! [`Dispatch`]: hands the jobs in a pool's queue to its workers.

use std::collections::HashMap;
use std::hint::spin_loop;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rayon::Yield;

use super::counts::{Counts, PoolCounts};
use super::idle::{Idle, Woken};
use super::pool_id::{Inside, OwnPool};
use super::spin::{self, Awake};
use super::task::Job;
use super::thread_ids::ThreadIds;
use crate::copies::{COPY_RETURNED, Original};
use crate::engine::clock;
use crate::error::{PoolError, TaskError};
use crate::future::deadlines::{self, Entry};
use crate::panic;
use crate::shim::{AtomicBool, AtomicUsize, Condvar, Mutex, SegQueue, fence};

/// How often a poster looks whether a worker takes the task by itself, before it wakes one: 0.4 µs
/// in all, where a wake-up costs 5. A worker that has just announced the result of its last task is
/// about to search for the next.
const GRACE: u32 = if cfg!(loom) { 1 } else { 16 };

/// After how many looks a searching worker also looks for jobs of rayon: every 6 µs.
const LOOKS_PER_HELP: u32 = 256;

/// The longest time until a job is taken again: the clock has no end for longer ones.
const LONGEST_PAUSE: Duration = Duration::from_secs(1 << 30);

/// The queue of a pool, and the workers that take jobs from it.
pub(super) struct Dispatch {
    queue: SegQueue<Arc<dyn Job>>,
    idle: Idle,
    own_pool: OwnPool,
    thread_ids: ThreadIds,
    /// How many parts of broadcasts each worker has not begun.
    parts: Box<[AtomicUsize]>,
    /// How many calls of `map` are going on.
    maps: Mutex<usize>,
    /// Wakes [`close`](Self::close) when `maps` has become 0.
    no_maps: Condvar,
    /// Whether tasks that have not started must not start any more. Set once.
    cancelled: AtomicBool,
    counts: PoolCounts,
    paused: Mutex<Paused>,
}

/// The jobs that are taken again when their pause is over.
#[derive(Default)]
struct Paused {
    jobs: HashMap<u64, (Arc<dyn Job>, Entry)>,
    /// The number of the next one.
    next: u64,
    /// Whether the pool ends: there are no pauses any more.
    is_over: bool,
}

/// What happened to a job that was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// A worker that is awake will take it.
    Left,
    /// A worker was woken for it.
    Woke,
    /// The pool was closed in the meantime, and the job may never be taken.
    Closed,
    /// The workers live in the process that this one was forked from.
    OtherProcess,
}

impl Dispatch {
    pub(super) fn new(workers: usize, has_timeline: bool) -> Self {
        Self {
            queue: SegQueue::new(),
            idle: Idle::new(workers),
            own_pool: OwnPool::new(),
            thread_ids: ThreadIds::default(),
            parts: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            maps: Mutex::new(0),
            no_maps: Condvar::new(),
            cancelled: AtomicBool::new(false),
            counts: PoolCounts::new(workers, has_timeline),
            paused: Mutex::default(),
        }
    }

    /// Takes a job that has failed, to post it again after this pause. Returns the number of the
    /// pause; `None` if there is none any more, or nothing that would end it.
    pub(super) fn pause(self: &Arc<Self>, job: Arc<dyn Job>, pause: Duration) -> Option<u64> {
        // A time too long for the clock.
        let due = Instant::now().checked_add(pause.min(LONGEST_PAUSE))?;
        let mut paused = self.paused.lock();
        if paused.is_over {
            return None;
        }
        let number = paused.next;
        let own = Arc::downgrade(self);
        let end = move || {
            let Some(dispatch) = own.upgrade() else {
                return;
            };
            // Under the lock: a pool that ends its pauses closes after that.
            let mut paused = dispatch.paused.lock();
            let ended = paused.jobs.remove(&number);
            if let Some((job, _)) = &ended
                && matches!(dispatch.post(Arc::clone(job)), Posted::Closed)
                && dispatch.is_cancelled()
            {
                drop(paused);
                job.cancel(TaskError::Cancelled {});
            }
        };
        let entry = deadlines::at(due, Box::new(end)).ok()?;
        paused.next += 1;
        paused.jobs.insert(number, (job, entry));
        Some(number)
    }

    /// Lets go of the job in this pause.
    pub(super) fn forget_pause(&self, number: u64) {
        let job = self.paused.lock().jobs.remove(&number);
        if let Some((job, entry)) = job {
            entry.forget();
            drop(job);
        }
    }

    /// Ends all pauses, now and in the future: the jobs are posted, in the order in which they
    /// failed.
    fn end_pauses(&self) {
        for job in self.take_paused() {
            self.post(job);
        }
    }

    fn take_paused(&self) -> Vec<Arc<dyn Job>> {
        let mut paused = self.paused.lock();
        paused.is_over = true;
        let mut jobs: Vec<_> = mem::take(&mut paused.jobs).into_iter().collect();
        drop(paused);
        jobs.sort_unstable_by_key(|(number, _)| *number);
        let forget = |(_, (job, entry)): (_, (_, Entry))| {
            entry.forget();
            job
        };
        jobs.into_iter().map(forget).collect()
    }

    pub(super) fn own_pool(&self) -> OwnPool {
        self.own_pool
    }

    pub(super) fn counts(&self) -> &PoolCounts {
        &self.counts
    }

    /// Returns the stamp of a task that is about to be given out.
    #[inline]
    pub(super) fn stamp(&self) -> u64 {
        self.counts.stamp(|| {
            let counters = self.idle.counters();
            counters.searching() + counters.asleep() == 0
        })
    }

    pub(super) fn thread_ids(&self) -> &ThreadIds {
        &self.thread_ids
    }

    pub(super) fn workers(&self) -> usize {
        self.idle.workers()
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.idle.counters().is_closed()
    }

    /// Returns whether tasks that have not started must not start any more. Calls of `map` check
    /// this themselves.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns whether there is nothing to do, and all workers sleep until there is.
    pub(super) fn is_at_rest(&self) -> bool {
        *self.maps.lock() == 0 && self.queue.is_empty() && self.idle.all_sleep_for_good()
    }

    /// Queues a job and makes sure that a worker will take it.
    pub(super) fn post(&self, job: Arc<dyn Job>) -> Posted {
        self.queue.push(job);
        // Pairs with the fences in `Idle::sleep`, `Idle::stop_searching` and `Dispatch::may_end`.
        fence(Ordering::SeqCst);
        let counters = self.idle.counters();
        let is_left = match counters.asleep() {
            // No worker sleeps: each will look into the queue before it falls asleep.
            0 => true,
            // All workers sleep: one must be woken.
            asleep if asleep == self.workers() => false,
            // A worker that searches, or will do so soon, takes the job.
            _ => counters.searching() > 0 || self.is_taken_soon(),
        };
        let posted = if is_left {
            Posted::Left
        } else if !self.own_pool.is_this_process() {
            Posted::OtherProcess
        } else if self.idle.wake_one() {
            Posted::Woke
        } else {
            Posted::Left
        };
        // A closed pool still runs the jobs of the calls of `map` that are going on.
        if counters.is_closed() {
            // Pairs with the fence in `cancel_queued`: the caller sees that the pool is cancelled.
            fence(Ordering::SeqCst);
            Posted::Closed
        } else {
            posted
        }
    }

    /// Returns whether a worker that is awake comes for what is queued, in the time that waking
    /// another would take.
    fn is_taken_soon(&self) -> bool {
        (0..GRACE).any(|_| {
            spin_loop();
            self.queue.is_empty() || self.idle.counters().searching() > 0
        })
    }

    /// Counts one part of a broadcast for each worker, before the parts are given out: no worker
    /// falls asleep before it has begun with its own.
    pub(super) fn announce_parts(&self) {
        for parts in &self.parts {
            parts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that worker `me` has begun with a part of a broadcast.
    pub(super) fn begin_part(&self, me: usize) {
        self.parts[me].fetch_sub(1, Ordering::Relaxed);
    }

    fn has_part(&self, me: usize) -> bool {
        // Relaxed: a worker that takes the lock of the sleepers after `wake_all` sees the count,
        // and one that had it before is woken.
        self.parts[me].load(Ordering::Relaxed) > 0
    }

    /// Wakes all workers.
    pub(super) fn wake_all(&self) {
        while self.idle.wake_one() {}
    }

    /// Runs the worker `me`, from the start of the pool to its end.
    pub(super) fn work(&self, me: usize) {
        let mut awake = Awake::new();
        let counts = self.counts.begin(me);
        self.idle.start(me);
        loop {
            // Since when the worker has had nothing to do, if it has looked at the clock.
            let mut rests_since = None;
            while let Some(job) = self.search(counts, &mut rests_since) {
                run(job);
                while let Some(job) = self.queue.pop() {
                    run(job);
                }
                self.idle.start_searching();
            }
            let mut in_vain = false;
            loop {
                // Here the worker does not count as searching.
                if self.help_rayon() {
                    self.idle.start_searching();
                    break;
                }
                if self.may_end() {
                    counts.has_ended();
                    return;
                }
                let is_wanted = || !self.queue.is_empty() || self.has_part(me);
                counts.falls_asleep(rests_since.take());
                let sleep = || self.idle.sleep(me, in_vain, is_wanted);
                let woken;
                (awake, woken) = awake.while_asleep(sleep);
                counts.has_slept();
                if woken == Woken::Called {
                    break;
                }
                in_vain = true;
            }
        }
    }

    /// Searches for a job, and ends the search. Returns `None` if none was found in the time for
    /// searching, and then says in `rests_since` since when this worker has had nothing to do, if
    /// that is measured. It looks only once if there is no core to watch the queue on, or if the
    /// pool is about to end.
    fn search(&self, counts: &Counts, rests_since: &mut Option<u64>) -> Option<Arc<dyn Job>> {
        let found = if spin::may_search() && !self.idle.counters().is_quit() {
            let now = clock::now();
            if counts.are_recorded() {
                self.watch_and_count(now, counts, rests_since)
            } else {
                let look = self.look(|_helped| {});
                spin::watch(now, now + spin::SPIN, look).0
            }
        } else {
            self.look(|_helped| {})()
        };
        self.stop_searching();
        found
    }

    /// Watches the queue from `now` on, and counts how long this worker has had nothing to do.
    #[cold]
    fn watch_and_count(
        &self,
        now: u64,
        counts: &Counts,
        rests_since: &mut Option<u64>,
    ) -> Option<Arc<dyn Job>> {
        let mut helped = 0;
        let look = self.look(|time| helped += time);
        let (found, until) = spin::watch(now, now + spin::SPIN, look);
        if until > now {
            counts.has_rested((until - now).saturating_sub(helped));
        }
        if found.is_none() {
            *rests_since = Some(until);
        }
        found
    }

    /// Returns what looks once for a job, and now and then for one of rayon's: `helped` hears how
    /// long that has run, in nanoseconds.
    fn look(&self, mut helped: impl FnMut(u64)) -> impl FnMut() -> Option<Arc<dyn Job>> {
        let mut looks = 0;
        move || {
            looks += 1;
            if looks % LOOKS_PER_HELP == 0 {
                helped(self.help_rayon_meanwhile());
            }
            if self.queue.is_empty() {
                None
            } else {
                self.queue.pop()
            }
        }
    }

    /// Looks for jobs of rayon in the middle of a search. Returns for how long it has run one, in
    /// nanoseconds.
    fn help_rayon_meanwhile(&self) -> u64 {
        let counters = self.idle.counters();
        // A worker that is at work may have given jobs to rayon. Such a job may take long, so this
        // worker must not count as searching while it runs one.
        if counters.searching() + counters.asleep() < self.workers() {
            self.stop_searching();
            let since = clock::now();
            let has_helped = self.help_rayon();
            self.idle.start_searching();
            if has_helped {
                return clock::now().saturating_sub(since);
            }
        }
        0
    }

    /// Runs a job of rayon, if there is one. Such jobs come from tasks that use rayon, on any
    /// worker. Returns whether it has run one.
    #[inline]
    fn help_rayon(&self) -> bool {
        let original = Original::here();
        let has_helped = rayon::yield_now() == Some(Yield::Executed);
        original.end_copy(COPY_RETURNED);
        if has_helped {
            // There may be more jobs of rayon.
            self.idle.wake_oldest();
        }
        has_helped
    }

    fn stop_searching(&self) {
        if self.idle.stop_searching() && !self.queue.is_empty() {
            // No other worker searches, one sleeps, and there is a job: it must be woken for it.
            self.idle.wake_one();
        }
    }

    fn may_end(&self) -> bool {
        if !self.idle.counters().is_quit() {
            return false;
        }
        // Pairs with the fence in `post`, as those in `Idle` do: either the poster sees that the
        // pool is closed, or its job is seen here.
        fence(Ordering::SeqCst);
        self.queue.is_empty()
    }

    /// Counts a call of `map`, as long as the returned value lives.
    ///
    /// # Errors
    ///
    /// [`PoolError::Closed`] if the pool takes no calls any more; [`PoolError::OtherProcess`] in a
    /// forked child of the process that made the pool.
    pub(super) fn start_map(&self) -> Result<Mapping<'_>, PoolError> {
        if !self.own_pool.is_this_process() {
            return Err(PoolError::OtherProcess);
        }
        let mut maps = self.maps.lock();
        // A call that consists of several goes on to its end: the pool waits for it.
        if self.is_closed() && !self.own_pool.is_mapping_here() {
            return Err(PoolError::Closed);
        }
        *maps += 1;
        Ok(Mapping {
            dispatch: self,
            _inside: self.own_pool.start_mapping(),
        })
    }

    /// Takes no more work, waits for the calls of `map`, and lets the workers end when the queue is
    /// empty.
    pub(super) fn close(&self) {
        self.end_pauses();
        let mut maps = self.maps.lock();
        self.idle.close();
        self.no_maps.wait_while(&mut maps, |maps| *maps > 0);
        drop(maps);
        self.idle.quit();
    }

    /// Does the same as [`close`](Self::close) if the calls of `map` end by the deadline, and
    /// returns true. Otherwise cancels what has not started, and lets the workers end after what
    /// they run.
    pub(super) fn close_by(&self, deadline: Instant) -> bool {
        self.end_pauses();
        let mut maps = self.maps.lock();
        self.idle.close();
        while *maps > 0 {
            if self.no_maps.wait_until(&mut maps, deadline).timed_out() && *maps > 0 {
                drop(maps);
                self.cancel();
                return false;
            }
        }
        drop(maps);
        self.idle.quit();
        true
    }

    /// Takes no more work, and ends with [`TaskError::Cancelled`] what has not started.
    pub(super) fn cancel_queued(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Pairs with the second fence in `post`.
        fence(Ordering::SeqCst);
        self.idle.close();
        // Pairs with the fence in `post`: either the poster sees that the pool is closed, or its
        // job is seen here.
        fence(Ordering::SeqCst);
        while let Some(job) = self.queue.pop() {
            job.cancel(TaskError::Cancelled {});
        }
        for job in self.take_paused() {
            job.cancel(TaskError::Cancelled {});
        }
    }

    /// Takes no more work, cancels what has not started, and lets the workers end. Does not wait
    /// for them.
    pub(super) fn cancel(&self) {
        self.cancel_queued();
        self.idle.quit();
    }
}

/// A call of `map` that is going on. It counts as long as this lives.
pub(super) struct Mapping<'d> {
    dispatch: &'d Dispatch,
    _inside: Inside,
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        let mut maps = self.dispatch.maps.lock();
        *maps -= 1;
        if *maps == 0 {
            self.dispatch.no_maps.notify_all();
        }
    }
}

fn run(job: Arc<dyn Job>) {
    let original = Original::here();
    job.run();
    // If the handle is gone, this drops a result of the user's, which may panic.
    let _ = panic::catch(move || drop(job));
    // Runs jobs that the task has given to rayon and not waited for.
    rayon::yield_local();
    // If a job of rayon or a `Drop` has forked, the copy ends here.
    original.end_copy(COPY_RETURNED);
}

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests;
