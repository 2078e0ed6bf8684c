//! Forked children that are stopped (SIGSTOP, a debugger): no item waits for one that has not begun
//! with it, and a limit ends what is left.

mod common;

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use common::errors::{task_timed_out, timed_out};
use common::{DEADLINE, Leftovers, children_of};
use manyhands::prelude::*;
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;

fn forked(workers: usize) -> Pool<Forked> {
    let builder = Forked::builder().workers(workers).allow_threads(true);
    builder.build().unwrap()
}

/// Ends the program if what must end does not: a call that hangs cannot be given up.
fn in_time<R>(what: &'static str, run: impl FnOnce() -> R) -> R {
    let (done, over) = channel::<()>();
    std::thread::spawn(move || {
        if over.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("this hangs: {what}");
            std::process::abort();
        }
    });
    let result = run();
    drop(done);
    result
}

/// Stops children as soon as they are seen, each once, until this goes.
struct Stopper {
    most: Sender<()>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Stopper {
    fn new(most: usize) -> Self {
        let before = children_of(std::process::id());
        let (sender, end) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut stopped = BTreeSet::new();
            while end.recv_timeout(Duration::ZERO) == Err(RecvTimeoutError::Timeout) {
                for child in children_of(std::process::id()).difference(&before) {
                    if stopped.len() < most && stopped.insert(*child) {
                        let pid = Pid::from_raw(i32::try_from(*child).unwrap());
                        // It may have ended.
                        let _ = kill(pid, Signal::SIGSTOP);
                    }
                }
            }
            stopped.len()
        });
        Self {
            most: sender,
            thread: Some(thread),
        }
    }

    /// How many were stopped.
    fn end(mut self) -> usize {
        drop(std::mem::replace(&mut self.most, channel().0));
        self.thread
            .take()
            .map_or(0, |thread| thread.join().unwrap())
    }
}

/// Of some length, and far from any limit also on a busy machine.
fn short(n: u32) -> u32 {
    std::hint::black_box((0..100_000).fold(n, u32::wrapping_add));
    n
}

#[test]
fn what_a_stopped_child_has_not_begun_with_is_done_by_others() {
    let _none = Leftovers::none();
    let pool = forked(3);
    let limit = Duration::from_millis(500);
    for round in 0..12 {
        let stopper = Stopper::new(2);
        // With a limit, because a child may be stopped in the middle of an item.
        let call = pool.call().timeout(limit).chunk_size(1 + round % 4);
        let outcomes = in_time("map_outcomes", || call.map_outcomes(short, 0..40));
        let mut late = 0;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(n) => assert_eq!(n as usize, index),
                Err(error) => {
                    let index = Some(index);
                    assert_eq!(error, timed_out(index, limit));
                    late += 1;
                }
            }
        }
        assert!(
            late <= stopper.end(),
            "more items were stopped than children"
        );
    }
}

#[test]
fn a_child_that_is_stopped_between_two_items_costs_none() {
    let _none = Leftovers::none();
    for chunk in [1, 3, 100] {
        // It stops itself when the item is over: in the drop of the thread's state, after the
        // answer is on its way.
        let pool = forked(2);
        let stop_soon = |n: u32| {
            if n == 5 {
                let pid = Pid::this();
                std::thread::spawn(move || kill(pid, Signal::SIGSTOP));
            }
            short(n)
        };
        let limit = Duration::from_millis(300);
        let call = pool.call().timeout(limit).chunk_size(chunk).retries(1);
        let outcomes = in_time("map_outcomes", || call.map_outcomes(stop_soon, 0..30));
        for (index, outcome) in outcomes.into_iter().enumerate() {
            let late = Err(timed_out(Some(index), limit));
            assert!(
                outcome == Ok(index as u32) || outcome == late,
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn a_stopped_child_in_the_middle_of_an_item_is_stopped_by_its_limit() {
    let _none = Leftovers::none();
    let pool = forked(2);
    let limit = Duration::from_millis(200);
    let stop = |n: u32| {
        if n == 3 {
            raise(Signal::SIGSTOP).unwrap();
        }
        n
    };
    let call = || pool.call().timeout(limit).chunk_size(4);
    let outcomes = in_time("map_outcomes", || call().map_outcomes(stop, 0..10));
    for (index, outcome) in outcomes.into_iter().enumerate() {
        if index == 3 {
            let index = Some(3);
            assert_eq!(outcome, Err(timed_out(index, limit)));
        } else {
            assert_eq!(outcome, Ok(index as u32));
        }
    }
    let task = call().submit(stop, 3);
    let late = task_timed_out(task.id(), limit);
    assert_eq!(in_time("submit", || task.result()), Err(late));
}

#[test]
fn a_submitted_child_that_is_stopped_before_it_begins_is_ended_by_its_limit() {
    let _none = Leftovers::none();
    let limit = Duration::from_millis(200);
    let mut late = 0;
    for _ in 0..20 {
        let pool = forked(1);
        let stopper = Stopper::new(1);
        let task = pool.call().timeout(limit).submit(short, 7);
        // Waits for room, as long as the first has not ended.
        let next = in_time("submit", || pool.call().timeout(limit).submit(short, 8));
        let overdue = [&task, &next].map(|task| task_timed_out(task.id(), limit));
        match in_time("result", || task.result()) {
            Ok(n) => assert_eq!(n, 7),
            Err(error) => {
                assert_eq!(error, overdue[0]);
                late += 1;
            }
        }
        // It was the one that was stopped, if the first was too quick.
        let second = in_time("result", || next.result());
        let is_right = matches!(&second, Ok(8)) || second.as_ref().err() == Some(&overdue[1]);
        assert!(is_right, "{second:?}");
        stopper.end();
    }
    println!("{late} were stopped before their end");
}
