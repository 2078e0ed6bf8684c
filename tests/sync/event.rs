use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Event, Semaphore};

use crate::common::{Leftovers, eventually, is_asleep};
use crate::{LONG, SHORT, await_all, join_all, kill};

#[test]
fn b58_set_wakes_all_in_every_process() {
    let _none = Leftovers::none();
    let (event, ready) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    let run = |(event, ready): (Event, Semaphore)| {
        ready.release(1);
        event.wait();
        assert!(event.is_set() && event.wait_timeout(Duration::ZERO));
    };
    let spawn = |_| Process::spawn(run, (event.clone(), ready.clone())).unwrap();
    let children: Vec<_> = (0..16).map(spawn).collect();
    await_all(&ready, 16);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| event.wait());
        }
        event.set();
    });
    join_all(children);
    event.clear();
    assert!(!event.is_set());
    let start = Instant::now();
    assert!(!event.wait_timeout(SHORT));
    assert!(start.elapsed() >= SHORT);
    event.set();
    event.set();
    assert!(event.wait_timeout(Duration::MAX));
    event.clear();
    assert!(!event.wait_timeout(Duration::ZERO));
}

#[test]
fn b58_a_set_that_is_cleared_at_once_lets_those_go_who_wait() {
    let _none = Leftovers::none();
    let (event, ready) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    let next = Semaphore::new(0).unwrap();
    let run = |(event, ready, next): (Event, Semaphore, Semaphore)| {
        for _ in 0..100 {
            ready.release(1);
            event.wait();
            next.acquire().forget();
        }
    };
    let spawn = |_| Process::spawn(run, (event.clone(), ready.clone(), next.clone())).unwrap();
    let children: Vec<_> = (0..4).map(spawn).collect();
    for _ in 0..100 {
        await_all(&ready, 4);
        // They are about to wait, and there is nothing else to sleep for.
        for child in &children {
            eventually("it sleeps", || is_asleep(child.pid()));
        }
        event.set();
        event.clear();
        next.release(4);
    }
    join_all(children);
}

#[test]
fn b58_one_that_is_killed_while_it_waits_disturbs_nobody() {
    let _none = Leftovers::none();
    let (event, ready) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    let run = |(event, ready): (Event, Semaphore)| {
        ready.release(1);
        event.wait();
    };
    let child = Process::spawn(run, (event.clone(), ready.clone())).unwrap();
    await_all(&ready, 1);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| event.wait_timeout(LONG));
        kill(&child);
        assert!(!event.is_set());
        event.set();
        assert!(waiter.join().unwrap());
    });
}
