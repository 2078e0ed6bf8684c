//! Workers without work: how they fall asleep, and how they are woken in time.
//!
//! # No wake-up is lost
//!
//! A poster of a task, and a worker that stops looking for one, do the same things in opposite
//! order:
//!
//! ```text
//! the poster                            a worker that stops looking
//!   1. puts the task in the queue         1. changes the counters: searches no more, or sleeps
//!   2. fence                              2. fence
//!   3. reads the counters; may wake one   3. looks into the queue
//! ```
//!
//! Of two sequentially consistent fences one is first. If it is the worker's, the poster sees the
//! changed counters and does not rely on this worker. If it is the poster's, the worker sees the
//! task. So a task is left in the queue only for workers that will look into the queue later: those
//! that search, and those that are busy, which look when they have finished.
//!
//! A worker that is being woken counts as searching already, so that the next poster does not wake
//! a second one while the first is on its way. So any number of tasks may be left to one searching
//! worker. Therefore the last worker that ends its search wakes another if there is more in the
//! queue.
//!
//! # Timed parks
//!
//! A task may use rayon's own calls, which share out work by way of rayon's queues. These queues
//! know nothing of this pool's sleepers, and the only way to learn of such work is to look. So
//! while any worker is awake, some of the others sleep with an alarm (a timed park, a *nap*), and
//! look for jobs of rayon when it goes off. A worker that gets up gives an alarm to the one that
//! has slept longest. So each worker has its turn, even if those before it have found a job and do
//! not come back. A worker that finds nothing makes the naps longer. When all workers sleep they do
//! so without alarms, and the pool uses no CPU.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::shim::thread::{self, Thread};
use crate::shim::{AtomicU32, AtomicU64, Mutex, MutexGuard, Stopwatch, fence};

/// The most workers that nap at once: enough to look often, and few enough to cost next to nothing
/// however many workers there are.
const NAPPERS: usize = 2;

/// The first nap after the pool was at rest, or after a job of rayon was found. In microseconds.
const SHORTEST_NAP: u32 = 100;
const LONGEST_NAP: u32 = 4_000;

/// The idle set: which of a pool's workers search, sleep or are at work.
pub(super) struct Idle {
    /// The word that [`Counters`] reads. The fences described above order it where order matters;
    /// the rest is counting.
    counters: CachePadded<AtomicU64>,
    /// The sleepers by index. The counters count them under this lock, so that both agree.
    sleepers: Mutex<Sleepers>,
    workers: Box<[Worker]>,
}

/// One reading of the counters.
///
/// | bits | meaning | changed by |
/// |---|---|---|
/// | 0 to 23 | workers that search | the worker, and the thread that wakes it |
/// | 24 to 47 | workers that sleep, and do not search | the worker, and the thread that wakes it |
/// | 62 | the pool is closed: what is submitted now may never run | [`Idle::close`], once |
/// | 63 | workers end when the queue is empty; never without bit 62 | [`Idle::quit`], once |
///
/// A worker that searches has no task, and is about to look into the queue. Workers that are in
/// neither count are at work, have not started, or have ended.
#[derive(Clone, Copy)]
pub(super) struct Counters(u64);

const SEARCHING: u64 = 1;
const ASLEEP: u64 = 1 << 24;
const COUNT: u64 = (1 << 24) - 1;
const CLOSED: u64 = 1 << 62;
const QUIT: u64 = 1 << 63;

impl Counters {
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

struct Sleepers {
    /// Workers that sleep until woken, longest sleep first.
    for_good: VecDeque<usize>,
    /// Workers that sleep with an alarm.
    napping: Vec<usize>,
    /// How long the next nap is, in microseconds.
    nap: u32,
}

/// The thread of a worker, and how it sleeps.
#[derive(Default)]
struct Worker {
    thread: OnceLock<Thread>,
    /// How the worker sleeps: [`FOR_GOOD`], or with an alarm after this many microseconds, or not
    /// any more: [`ROUSED`]. Written under the lock of the sleepers: by the worker when it falls
    /// asleep, and by the thread that wakes it or moves it from one list to the other.
    sleep: AtomicU32,
}

const FOR_GOOD: u32 = 0;
const ROUSED: u32 = u32::MAX;

/// Why a worker does not sleep any longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// There is something for the worker to do, or was. It counts as searching.
    Called,
    /// The worker's nap is over.
    ByAlarm,
}

impl Idle {
    pub(super) fn new(workers: usize) -> Self {
        debug_assert!((workers as u64) < COUNT);
        Self {
            counters: CachePadded::new(AtomicU64::new(0)),
            sleepers: Mutex::new(Sleepers {
                for_good: VecDeque::new(),
                napping: Vec::new(),
                nap: SHORTEST_NAP,
            }),
            workers: (0..workers).map(|_| Worker::default()).collect(),
        }
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Returns whether all workers sleep, and none has an alarm.
    pub(super) fn all_sleep_for_good(&self) -> bool {
        self.sleepers.lock().for_good.len() == self.workers()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters(self.counters.load(Ordering::Relaxed))
    }

    /// Makes this thread the worker `me`, which searches.
    pub(super) fn start(&self, me: usize) {
        // Fails only if this very thread has done it before.
        let _ = self.workers[me].thread.set(thread::current());
        self.start_searching();
    }

    pub(super) fn start_searching(&self) {
        self.counters.fetch_add(SEARCHING, Ordering::Relaxed);
    }

    /// Ends the search of a worker. Returns true if no other worker searches, and one sleeps. Then
    /// the caller must look into the queue, and wake a worker if there is something that it does
    /// not take itself.
    pub(super) fn stop_searching(&self) -> bool {
        let before = Counters(self.counters.fetch_sub(SEARCHING, Ordering::Relaxed));
        // Pairs with the fence in `Dispatch::post`.
        fence(Ordering::SeqCst);
        before.searching() == 1 && before.asleep() > 0
    }

    /// Puts the worker `me`, which is this thread and does not search, to sleep, unless `is_wanted`
    /// says that there is work.
    ///
    /// `in_vain`: the worker was woken by an alarm, and has found nothing.
    pub(super) fn sleep(
        &self,
        me: usize,
        in_vain: bool,
        is_wanted: impl FnOnce() -> bool,
    ) -> Woken {
        let worker = &self.workers[me];
        {
            let mut sleepers = self.sleepers.lock();
            let before = Counters(self.counters.fetch_add(ASLEEP, Ordering::Relaxed));
            // Pairs with the fence in `Dispatch::post`.
            fence(Ordering::SeqCst);
            // The pool ends, or a task was posted before this worker counted as asleep: it does not
            // sleep.
            if before.is_quit() || is_wanted() {
                self.counters
                    .fetch_sub(ASLEEP - SEARCHING, Ordering::Relaxed);
                // If this worker was the last to get up from a nap, it has set no alarm, and the
                // others sleep for good. It stays awake now, so another must nap.
                let napper = self.ensure_napper(&mut sleepers);
                drop(sleepers);
                self.unpark(napper);
                return Woken::Called;
            }
            if in_vain {
                sleepers.nap = (sleepers.nap * 2).min(LONGEST_NAP);
            }
            let all_sleep = before.asleep() + 1 == self.workers();
            // When all sleep, or enough nap, this worker needs no alarm.
            if all_sleep || sleepers.napping.len() == NAPPERS {
                sleepers.for_good.push_back(me);
                worker.sleep.store(FOR_GOOD, Ordering::Relaxed);
            } else {
                sleepers.napping.push(me);
                worker.sleep.store(sleepers.nap, Ordering::Relaxed);
            }
        }
        match worker.sleep() {
            Woken::Called => Woken::Called,
            Woken::ByAlarm => self.get_up(me),
        }
    }

    /// Gets a worker up whose alarm has gone off.
    fn get_up(&self, me: usize) -> Woken {
        let mut sleepers = self.sleepers.lock();
        let Some(place) = sleepers.napping.iter().position(|&napper| napper == me) else {
            // Another thread has woken this worker before its alarm did.
            return Woken::Called;
        };
        sleepers.napping.swap_remove(place);
        let before = Counters(self.counters.fetch_sub(ASLEEP, Ordering::Relaxed));
        // If all others are asleep, no further alarm is set: this one is the last.
        let others_are_awake = before.asleep() < self.workers();
        let next = if others_are_awake {
            self.set_alarm(&mut sleepers)
        } else {
            None
        };
        drop(sleepers);
        self.unpark(next);
        Woken::ByAlarm
    }

    /// Wakes a worker for a task: the one that fell asleep last, whose caches are the warmest.
    /// Returns false if none sleeps.
    pub(super) fn wake_one(&self) -> bool {
        let mut sleepers = self.sleepers.lock();
        let next = sleepers
            .for_good
            .pop_back()
            .or_else(|| sleepers.napping.pop());
        self.unpark_one(sleepers, next)
    }

    /// Wakes a worker because there are jobs of rayon: the one that has not looked for the longest
    /// time.
    pub(super) fn wake_oldest(&self) {
        let mut sleepers = self.sleepers.lock();
        sleepers.nap = SHORTEST_NAP;
        let next = sleepers.for_good.pop_front();
        self.unpark_one(sleepers, next);
    }

    fn unpark_one(&self, mut sleepers: MutexGuard<'_, Sleepers>, worker: Option<usize>) -> bool {
        let Some(worker) = worker else { return false };
        let before = Counters(
            self.counters
                .fetch_sub(ASLEEP - SEARCHING, Ordering::Relaxed),
        );
        // The pool was at rest: the naps start with the shortest again.
        if before.asleep() == self.workers() {
            sleepers.nap = SHORTEST_NAP;
        }
        self.workers[worker].sleep.store(ROUSED, Ordering::Relaxed);
        // A worker is awake now, so another must nap.
        let napper = self.ensure_napper(&mut sleepers);
        drop(sleepers);
        self.unpark(Some(worker));
        self.unpark(napper);
        true
    }

    /// Gives an alarm to a worker if none has one. The caller must unpark it, so that it sees the
    /// alarm.
    fn ensure_napper(&self, sleepers: &mut Sleepers) -> Option<usize> {
        if sleepers.napping.is_empty() {
            self.set_alarm(sleepers)
        } else {
            None
        }
    }

    /// Gives an alarm to the worker that has slept longest. The caller must unpark it, so that it
    /// sees the alarm.
    fn set_alarm(&self, sleepers: &mut Sleepers) -> Option<usize> {
        let next = sleepers.for_good.pop_front()?;
        sleepers.napping.push(next);
        self.workers[next]
            .sleep
            .store(sleepers.nap, Ordering::Relaxed);
        Some(next)
    }

    fn unpark(&self, worker: Option<usize>) {
        if let Some(thread) = worker.and_then(|worker| self.workers[worker].thread.get()) {
            thread.unpark();
        }
    }

    /// Marks the pool as closed.
    pub(super) fn close(&self) {
        self.counters.fetch_or(CLOSED, Ordering::Relaxed);
    }

    /// Tells the workers to end when the queue is empty.
    pub(super) fn quit(&self) {
        self.counters.fetch_or(CLOSED | QUIT, Ordering::Relaxed);
        // A worker that takes the lock of the sleepers after the last of these calls sees the mark,
        // and does not fall asleep.
        while self.wake_one() {}
    }
}

impl Worker {
    /// Sleeps until another thread wakes this worker, or until the alarm that it has or is given.
    fn sleep(&self) -> Woken {
        let mut since = None;
        loop {
            // Relaxed: a thread that changes it calls `unpark` afterwards, and what happens before
            // that is seen after `park`.
            match self.sleep.load(Ordering::Relaxed) {
                ROUSED => return Woken::Called,
                FOR_GOOD => thread::park(),
                nap => {
                    let asleep = since.get_or_insert_with(Stopwatch::start).elapsed();
                    let Some(left) = Duration::from_micros(nap.into()).checked_sub(asleep) else {
                        return Woken::ByAlarm;
                    };
                    thread::park_timeout(left);
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
