//! Workers without work: how they fall asleep, and how they are woken in time.
//!
//! # No wake-up is lost
//!
//! Whoever posts a task, and a worker that stops looking for one, do the same two things in opposite order:
//!
//! ```text
//! post                                    worker that stops looking
//!   1. puts the task in the queue           1. changes the census: searches no more, or sleeps
//!   2. fence                                2. fence
//!   3. reads the census, wakes a worker     3. looks into the queue
//! ```
//!
//! Of two sequentially consistent fences one is first. If it is the worker's, the one who posts sees the changed
//! census and does not count on that worker. If it is the other, the worker sees the task. So a task is left lying
//! only for workers that will still look into the queue: those that search, and those that are in the middle of
//! something, each of which looks when it is done.
//!
//! Who posts while somebody searches leaves the task to the searchers, however many tasks there are. Therefore the last
//! of them, when it has found one and stops searching, wakes a sleeper if there is more.
//!
//! # Naps
//!
//! A task may use rayon's own calls, which share out work by way of rayon's queues. Those know nothing of our sleepers,
//! and there is no way to be told of such work but to look. So while any worker is awake, up to [`NAPPERS`] of the
//! others do not sleep for good but with an alarm, and look for jobs of rayon when it goes off. Who gets up hands its alarm
//! on to the one that has slept longest, so each has its turn, and all of them come when one after the other finds
//! something. Who has found something wakes the next at once. When nobody is awake all sleep for good, so an idle pool
//! uses no CPU.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

/// How many workers nap, at most: enough to look often, and few enough to cost next to nothing however many there are.
const NAPPERS: usize = 2;

/// The first nap after there was something to do. Each in vain is twice as long as the one before.
const SHORTEST_NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(2);

/// Who of a pool's workers searches, sleeps or is at work.
pub(super) struct Idle {
    /// What [`Census`] reads. Ordered by the fences described above, where order matters; the rest is counting.
    census: CachePadded<AtomicU64>,
    /// The sleepers by name. The census counts them under this lock, so both always agree.
    beds: Mutex<Beds>,
    workers: Box<[Worker]>,
}

/// One reading of the census.
///
/// | bits | meaning | changed by |
/// |---|---|---|
/// | 0 to 23 | workers that search: awake, without a task, watching the queue | the worker |
/// | 24 to 47 | workers that sleep, for good or with an alarm; never counted as searching too | the worker, and who wakes it |
/// | 62 | the pool is closed: what is posted now may never run | `close`, once |
/// | 63 | workers are to end when the queue is empty; never without bit 62 | `quit`, once |
///
/// The workers that are in neither count are at work, or have not started, or have ended.
#[derive(Clone, Copy)]
pub(super) struct Census(u64);

const SEARCHING: u64 = 1;
const ASLEEP: u64 = 1 << 24;
const COUNT: u64 = (1 << 24) - 1;
const CLOSED: u64 = 1 << 62;
const QUIT: u64 = 1 << 63;

impl Census {
    pub(super) fn searching(self) -> usize {
        (self.0 & COUNT) as usize
    }

    pub(super) fn asleep(self) -> usize {
        (self.0 >> 24 & COUNT) as usize
    }

    pub(super) fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    pub(super) fn is_quit(self) -> bool {
        self.0 & QUIT != 0
    }
}

#[derive(Default)]
struct Beds {
    /// Who sleeps until woken, longest sleep first.
    for_good: VecDeque<usize>,
    napping: Vec<usize>,
}

/// How a worker is reached in its sleep.
#[derive(Default)]
struct Worker {
    thread: OnceLock<Thread>,
    /// [`SLEEPS`], [`NAPS`] or [`ROUSED`]. Written under the lock of the beds, by the worker when it goes to bed, and by
    /// whoever moves it to another bed or out of it.
    state: AtomicU8,
}

const SLEEPS: u8 = 0;
const NAPS: u8 = 1;
const ROUSED: u8 = 2;

/// Why a worker does not sleep any longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// There is, or was, something for it to do. It counts as searching from here on, so that others who post leave
    /// their tasks to it while it comes.
    Called,
    /// Its nap is over.
    ByAlarm,
}

/// How long a worker naps.
pub(super) struct Nap(Duration);

impl Nap {
    pub(super) fn short() -> Self {
        Self(SHORTEST_NAP)
    }

    fn lengthen(&mut self) {
        self.0 = (self.0 * 2).min(LONGEST_NAP);
    }
}

impl Idle {
    pub(super) fn new(workers: usize) -> Self {
        debug_assert!((workers as u64) < COUNT);
        Self {
            census: CachePadded::new(AtomicU64::new(0)),
            beds: Mutex::default(),
            workers: (0..workers).map(|_| Worker::default()).collect(),
        }
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn census(&self) -> Census {
        Census(self.census.load(Ordering::Relaxed))
    }

    /// Makes this thread reachable as the worker `me`, which searches.
    pub(super) fn start(&self, me: usize) {
        self.start_searching();
        // A worker starts once; if it did twice, it would be the same thread.
        let _ = self.workers[me].thread.set(thread::current());
    }

    pub(super) fn start_searching(&self) {
        self.census.fetch_add(SEARCHING, Ordering::Relaxed);
    }

    /// True if nobody is left who searches while somebody sleeps: then the caller must look into the queue, and wake a
    /// worker for what it does not take itself.
    pub(super) fn stop_searching(&self) -> bool {
        let before = Census(self.census.fetch_sub(SEARCHING, Ordering::Relaxed));
        // Pairs with the fence in `Dispatch::post`.
        fence(Ordering::SeqCst);
        before.searching() == 1 && before.asleep() > 0
    }

    /// Puts worker `me`, the calling thread, to sleep, unless `is_wanted` says that there is work.
    pub(super) fn sleep(
        &self,
        me: usize,
        nap: &mut Nap,
        is_wanted: impl FnOnce() -> bool,
    ) -> Woken {
        let worker = &self.workers[me];
        {
            let mut beds = self.beds.lock();
            let before = Census(self.census.fetch_add(ASLEEP, Ordering::Relaxed));
            // Pairs with the fence in `Dispatch::post`.
            fence(Ordering::SeqCst);
            if before.is_quit() || is_wanted() {
                self.census.fetch_sub(ASLEEP - SEARCHING, Ordering::Relaxed);
                return Woken::Called;
            }
            let others_are_awake = before.asleep() + 1 < self.workers();
            if others_are_awake && beds.napping.len() < NAPPERS {
                beds.napping.push(me);
                worker.state.store(NAPS, Ordering::Relaxed);
            } else {
                beds.for_good.push_back(me);
                worker.state.store(SLEEPS, Ordering::Relaxed);
            }
        }
        if worker.sleep(nap) == Woken::Called {
            return Woken::Called;
        }
        nap.lengthen();
        self.get_up(me)
    }

    /// What a worker does whose alarm has gone off.
    fn get_up(&self, me: usize) -> Woken {
        let mut beds = self.beds.lock();
        let Some(place) = beds.napping.iter().position(|&napper| napper == me) else {
            // Somebody was faster than the alarm.
            return Woken::Called;
        };
        beds.napping.swap_remove(place);
        self.census.fetch_sub(ASLEEP, Ordering::Relaxed);
        let next = self.set_alarm(&mut beds);
        drop(beds);
        self.unpark(next);
        Woken::ByAlarm
    }

    /// Wakes a worker for a task: the one that fell asleep last, whose caches are the warmest. False if all are awake.
    pub(super) fn wake_one(&self) -> bool {
        let mut beds = self.beds.lock();
        let next = beds.for_good.pop_back().or_else(|| beds.napping.pop());
        self.rouse(beds, next)
    }

    /// Wakes the worker that has slept longest, to look for jobs of rayon.
    pub(super) fn wake_oldest(&self) {
        let mut beds = self.beds.lock();
        let next = beds.for_good.pop_front();
        self.rouse(beds, next);
    }

    fn rouse(&self, mut beds: MutexGuard<'_, Beds>, worker: Option<usize>) -> bool {
        let Some(worker) = worker else { return false };
        self.census.fetch_sub(ASLEEP - SEARCHING, Ordering::Relaxed);
        self.workers[worker].state.store(ROUSED, Ordering::Relaxed);
        // Somebody is awake now, so somebody must nap.
        let napper = if beds.napping.is_empty() {
            self.set_alarm(&mut beds)
        } else {
            None
        };
        drop(beds);
        self.unpark(Some(worker));
        self.unpark(napper);
        true
    }

    /// Gives an alarm to the worker that has slept longest. It is to be unparked, to set it.
    fn set_alarm(&self, beds: &mut Beds) -> Option<usize> {
        let next = beds.for_good.pop_front()?;
        beds.napping.push(next);
        self.workers[next].state.store(NAPS, Ordering::Relaxed);
        Some(next)
    }

    fn unpark(&self, worker: Option<usize>) {
        if let Some(thread) = worker.and_then(|worker| self.workers[worker].thread.get()) {
            thread.unpark();
        }
    }

    /// Marks the pool as closed.
    pub(super) fn close(&self) {
        self.census.fetch_or(CLOSED, Ordering::Relaxed);
    }

    /// Tells the workers to end when the queue is empty.
    pub(super) fn quit(&self) {
        self.census.fetch_or(CLOSED | QUIT, Ordering::Relaxed);
        // A worker that takes the lock of the beds after the last of these sees the mark, and does not go to bed.
        while self.wake_one() {}
    }
}

impl Worker {
    /// Sleeps until roused, or until its alarm goes off, if and when it has one.
    fn sleep(&self, nap: &Nap) -> Woken {
        let mut alarm = None;
        loop {
            // Relaxed: that the state has changed is known by `unpark`, which makes what came before it visible; and
            // nothing but the state is read.
            match self.state.load(Ordering::Relaxed) {
                ROUSED => return Woken::Called,
                SLEEPS => thread::park(),
                _ => {
                    let now = Instant::now();
                    let left = alarm
                        .get_or_insert(now + nap.0)
                        .saturating_duration_since(now);
                    if left.is_zero() {
                        return Woken::ByAlarm;
                    }
                    thread::park_timeout(left);
                }
            }
        }
    }
}
