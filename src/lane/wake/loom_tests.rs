//! Models of one lane: a worker that sleeps until there is a request, and a parent that sleeps on
//! the bell until there is a response. A lost wake-up is a deadlock, which loom reports.

use std::sync::Arc;

use loom::thread;

use super::{Asleep, RingAt, bell_is_asked_for};
use crate::lane::bell::Doorbell;
use crate::shim::AtomicU32;
use std::sync::atomic::Ordering;

/// A lane whose rings are counts, with no more order than it takes to hand something over.
#[derive(Default)]
struct Lane {
    asleep: Asleep,
    bell_at: RingAt,
    bell: Doorbell,
    requests: AtomicU32,
    responses: AtomicU32,
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(run);
}

impl Lane {
    fn post(&self) {
        self.requests.fetch_add(1, Ordering::Release);
        self.asleep.wake();
    }

    /// Does `tasks` tasks, one after the other.
    fn work(&self, tasks: u32) {
        for task in 1..=tasks {
            let mut is_there = || self.requests.load(Ordering::Acquire) >= task;
            while !is_there() {
                self.asleep.sleep_unless(&mut is_there, None);
            }
            self.responses.store(task, Ordering::Release);
            if self.bell_at.take(task) {
                self.bell.ring();
            }
        }
    }

    fn has_ended(&self, task: u32) -> bool {
        self.responses.load(Ordering::Acquire) >= task
    }

    /// Sleeps until the task has ended. It asks the worker to ring for the `asked` tasks, in this
    /// order.
    fn wait(&self, task: u32, asked: &[u32]) {
        loop {
            let heard = self.bell.listen();
            for number in asked {
                self.bell_at.ask(*number);
            }
            bell_is_asked_for();
            if self.has_ended(task) {
                return;
            }
            self.bell.sleep(heard, None);
        }
    }
}

fn run(tasks: u32, parent: impl Fn(&Arc<Lane>) + Send + Sync + 'static) {
    model(move || {
        let lane = Arc::new(Lane::default());
        let worker = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || lane.work(tasks))
        };
        parent(&lane);
        worker.join().unwrap();
    });
}

#[test]
fn a_request_wakes_the_worker_and_its_response_the_parent() {
    run(1, |lane| {
        lane.post();
        lane.wait(1, &[1]);
    });
}

#[test]
fn two_requests_one_after_the_other() {
    run(2, |lane| {
        for task in 1..=2 {
            lane.post();
            lane.wait(task, &[task]);
        }
    });
}

/// The first request is not forgotten, and the word holds the earlier of the two tasks.
#[test]
fn a_worker_that_is_asked_for_two_ends_rings_for_the_first() {
    run(2, |lane| {
        lane.post();
        lane.wait(1, &[2, 1]);
        lane.post();
        lane.wait(2, &[2]);
    });
}

/// Two threads of the parent post and wait at once, and share one bell.
#[test]
fn two_threads_of_the_parent_hear_of_the_end() {
    run(1, |lane| {
        let other = {
            let lane = Arc::clone(lane);
            // The dispatch's lock is left out: only one of the two asks.
            thread::spawn(move || {
                loop {
                    let heard = lane.bell.listen();
                    if lane.has_ended(1) {
                        return;
                    }
                    lane.bell.sleep(heard, None);
                }
            })
        };
        lane.post();
        lane.wait(1, &[1]);
        lane.bell.ring();
        other.join().unwrap();
    });
}
