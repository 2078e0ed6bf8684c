//! Models of leader and followers: callers, workers and the background thread of a made-up pool,
//! around the code that runs in the real one. A wake-up that is lost, or a hand-over that is left
//! out, is a deadlock, which loom reports.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::thread::{self, JoinHandle};

use super::{Host, Leadership, WaitOptions, ensure_progress, hand_over, pump_in_background, sleep};
use crate::future::Signal;
use crate::lane::bell::Doorbell;
use crate::lane::{Asleep, RingAt, bell_is_asked_for};
use crate::shim::{AtomicU32, AtomicUsize, Condvar, Mutex, MutexGuard};

/// A pool of one worker, whose lane has room for one task.
#[derive(Default)]
struct Pool {
    work: Mutex<Work>,
    rouse: Condvar,
    waiting: AtomicUsize,
    lane: Lane,
}

#[derive(Default)]
struct Lane {
    asleep: Asleep,
    bell_at: RingAt,
    bell: Doorbell,
    requests: AtomicU32,
    responses: AtomicU32,
    stop: AtomicU32,
}

#[derive(Default)]
struct Work {
    leadership: Leadership,
    queue: VecDeque<Task>,
    /// The task in the lane.
    in_flight: Option<Task>,
    /// The number of responses taken.
    taken: u32,
    told: usize,
    has_ended: bool,
    background: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Task {
    signal: Arc<Signal>,
    is_told: bool,
}

impl Host for Pool {
    type Work = Work;
    type Locked<'a> = MutexGuard<'a, Work>;

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock()
    }

    fn bell(&self) -> &Doorbell {
        &self.lane.bell
    }

    fn waiting(&self) -> &AtomicUsize {
        &self.waiting
    }

    fn leadership(work: &mut Work) -> &mut Leadership {
        &mut work.leadership
    }

    fn pump(&self, work: &mut Work) -> bool {
        let mut moved = false;
        if work.in_flight.is_some() && self.lane.responses.load(Ordering::Acquire) > work.taken {
            work.taken += 1;
            let task = work.in_flight.take().unwrap();
            work.told -= usize::from(task.is_told);
            task.signal.raise();
            moved = true;
        }
        if work.in_flight.is_none()
            && let Some(task) = work.queue.pop_front()
        {
            work.in_flight = Some(task);
            self.lane.requests.fetch_add(1, Ordering::Release);
            self.lane.asleep.wake();
            moved = true;
        }
        moved
    }

    fn ask_for_bell(&self, work: &Work) {
        if work.in_flight.is_some() {
            self.lane.bell_at.ask(work.taken + 1);
        }
        bell_is_asked_for();
    }

    fn has_backlog(work: &Work) -> bool {
        !work.queue.is_empty() || work.told > 0
    }

    fn is_to_tell(work: &Work) -> bool {
        work.told > 0
    }

    fn has_ended(work: &Work) -> bool {
        work.has_ended
    }

    fn wake_background_thread(self: &Arc<Self>, work: &mut Work) {
        if work.background.is_some() {
            self.rouse.notify_one();
            return;
        }
        let pool = Arc::clone(self);
        work.background = Some(thread::spawn(move || pump_in_background(&*pool)));
    }

    fn await_wake(&self, locked: &mut MutexGuard<'_, Work>) {
        self.rouse.wait(locked);
    }
}

impl Lane {
    /// Works, as the worker, until it is told to stop.
    fn work(&self) {
        for task in 1.. {
            let is_there = || self.requests.load(Ordering::Acquire) >= task;
            let must_stop = || self.stop.load(Ordering::Acquire) != 0;
            while !is_there() && !must_stop() {
                self.asleep
                    .sleep_unless(&mut || is_there() || must_stop(), None);
            }
            if !is_there() {
                return;
            }
            self.responses.store(task, Ordering::Release);
            if self.bell_at.take(task) {
                self.bell.ring();
            }
        }
    }
}

impl Pool {
    /// Places a task, as a caller does that will wait for it, or `leaves`.
    fn place(self: &Arc<Self>, is_told: bool, leaves: bool) -> Arc<Signal> {
        let signal = Arc::new(Signal::default());
        let mut work = self.work.lock();
        work.told += usize::from(is_told);
        work.queue.push_back(Task {
            signal: Arc::clone(&signal),
            is_told,
        });
        self.pump(&mut work);
        if leaves {
            ensure_progress(self, &mut work);
        }
        signal
    }

    fn wait(self: &Arc<Self>, signal: &Signal, comes_back: bool) {
        let options = WaitOptions {
            cold: true,
            deadline: None,
            comes_back,
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let is_over = || signal.count() > 0;
        assert!(sleep(self, signal, &is_over, options));
    }

    /// Ends the worker and the background thread, as the end of the pool does.
    fn end(&self) {
        let background = {
            let mut work = self.work.lock();
            work.has_ended = true;
            work.background.take()
        };
        self.rouse.notify_all();
        self.lane.bell.ring();
        self.lane.stop.store(1, Ordering::Release);
        self.lane.asleep.wake();
        if let Some(background) = background {
            background.join().unwrap();
        }
    }
}

/// Tries the orders with at most two switches away from a thread that could go on.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn model(run: impl Fn(&Arc<Pool>) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(2));
    model.max_branches = 10_000;
    model.check(move || run(&Arc::default()));
}

fn run(callers: impl Fn(&Arc<Pool>) + Send + Sync + 'static) {
    model(move |pool| {
        let worker = spawn(pool, |pool| pool.lane.work());
        callers(pool);
        pool.end();
        worker.join().unwrap();
    });
}

fn run_without_worker(callers: impl Fn(&Arc<Pool>) + Send + Sync + 'static) {
    model(move |pool| {
        callers(pool);
        pool.end();
    });
}

fn spawn(pool: &Arc<Pool>, run: impl FnOnce(&Arc<Pool>) + 'static) -> JoinHandle<()> {
    let pool = Arc::clone(pool);
    thread::spawn(move || run(&pool))
}

#[test]
fn a_caller_hears_of_the_end_of_its_task() {
    run(|pool| {
        for _ in 0..2 {
            let task = pool.place(false, false);
            pool.wait(&task, false);
        }
    });
}

/// The second task goes out when a thread pumps after the first has ended.
#[test]
fn each_of_two_callers_hears_of_its_own() {
    run(|pool| {
        let other = spawn(pool, |pool| {
            let task = pool.place(false, false);
            pool.wait(&task, false);
        });
        let task = pool.place(false, false);
        pool.wait(&task, false);
        other.join().unwrap();
    });
}

/// A caller that has its result and will come back waits in between for what the other caller does
/// after its own: for example in the iterator of a `map`.
#[test]
fn a_caller_that_comes_back_does_not_hold_up_the_other() {
    run(|pool| {
        let (first, second) = (pool.place(false, false), pool.place(false, false));
        let is_done = Arc::new(Signal::default());
        let other = spawn(pool, {
            let is_done = Arc::clone(&is_done);
            move |pool| {
                pool.wait(&second, false);
                is_done.raise();
            }
        });
        pool.wait(&first, true);
        is_done.sleep(0, None);
        other.join().unwrap();
    });
}

/// No caller waits for a task whose end is to be told of.
#[test]
fn the_background_thread_tells_when_no_caller_waits() {
    run(|pool| {
        let task = pool.place(true, true);
        task.sleep(0, None);
    });
}

/// The caller leaves while a task that is to be told of runs or is queued.
#[test]
fn the_background_thread_takes_the_place_of_a_caller_that_leaves() {
    run(|pool| {
        let (own, told) = (pool.place(false, false), pool.place(true, true));
        pool.wait(&own, false);
        told.sleep(0, None);
    });
}

/// Another thread ends a queued task, and rings itself. The task may also have gone to the worker.
#[test]
fn a_leader_hears_of_a_cancellation() {
    run(|pool| {
        let (own, cancelled) = (pool.place(false, false), pool.place(false, false));
        let canceller = spawn(pool, |pool| {
            let task = pool.work.lock().queue.pop_back();
            if let Some(task) = task {
                task.signal.raise();
                pool.lane.bell.ring();
            }
        });
        pool.wait(&cancelled, false);
        canceller.join().unwrap();
        pool.wait(&own, false);
    });
}

/// The supervisor pumps now and then, and may take the very answer that the leader sleeps for.
#[test]
fn a_leader_hears_of_an_answer_that_the_supervisor_has_taken() {
    run(|pool| {
        let (first, second) = (pool.place(false, false), pool.place(false, false));
        let supervisor = spawn(pool, |pool| {
            let mut work = pool.work.lock();
            // As in `Dispatch::watch_lanes`.
            if pool.pump(&mut work) {
                pool.lane.bell.ring();
                ensure_progress(pool, &mut work);
            }
        });
        pool.wait(&first, true);
        pool.wait(&second, false);
        supervisor.join().unwrap();
    });
}

/// The supervisor ends all tasks, as it does when the pool is broken. The worker has died.
#[test]
fn leader_and_follower_hear_of_the_end_of_the_pool() {
    run_without_worker(|pool| {
        let (first, second) = (pool.place(false, false), pool.place(false, false));
        let supervisor = spawn(pool, |pool| {
            {
                let mut work = pool.work.lock();
                work.has_ended = true;
                let tasks = work.in_flight.take().into_iter();
                for task in tasks.chain(std::mem::take(&mut work.queue)) {
                    task.signal.raise();
                }
            }
            pool.rouse.notify_all();
            pool.lane.bell.ring();
        });
        let other = spawn(pool, move |pool| pool.wait(&second, false));
        pool.wait(&first, false);
        other.join().unwrap();
        supervisor.join().unwrap();
    });
}

/// The leader's own wait is over when the follower's is.
#[test]
fn a_follower_hears_of_its_task_while_the_leader_waits_on() {
    run(|pool| {
        let (task, last) = (pool.place(false, false), Arc::new(Signal::default()));
        let other = spawn(pool, {
            let last = Arc::clone(&last);
            move |pool| {
                pool.wait(&task, false);
                last.raise();
                pool.lane.bell.ring();
            }
        });
        pool.wait(&last, false);
        other.join().unwrap();
    });
}

/// The leader asked the workers that were busy when it fell asleep.
#[test]
fn a_leader_hears_of_a_task_that_was_placed_meanwhile() {
    run(|pool| {
        let last = Arc::new(Signal::default());
        let other = spawn(pool, {
            let last = Arc::clone(&last);
            move |pool| {
                pool.place(true, true).sleep(0, None);
                last.raise();
                pool.lane.bell.ring();
            }
        });
        pool.wait(&last, false);
        other.join().unwrap();
    });
}

/// A caller that will come back does not come back before another task's end has been told.
#[test]
fn a_caller_that_comes_back_leaves_what_is_to_be_told_to_another() {
    run(|pool| {
        let (first, told) = (pool.place(false, false), pool.place(true, false));
        pool.wait(&first, true);
        told.sleep(0, None);
    });
}

/// A call that has counted as coming back is dropped instead.
#[test]
fn a_call_that_is_given_up_hands_over() {
    run(|pool| {
        let (first, told) = (pool.place(false, false), pool.place(true, false));
        pool.wait(&first, true);
        hand_over(pool, &mut pool.work.lock());
        told.sleep(0, None);
    });
}
