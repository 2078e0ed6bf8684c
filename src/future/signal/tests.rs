//! The waiters of a count that goes up.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;

/// How long a thread may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(30);

fn after(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}

/// Lets a thread sleep until the count passes `seen`, and returns a channel for the outcome.
fn sleeper(signal: &Arc<Signal>, seen: usize) -> Receiver<bool> {
    let (tell, told) = channel();
    let signal = Arc::clone(signal);
    thread::spawn(move || tell.send(signal.sleep(seen, after(2 * DEADLINE))));
    told
}

fn until_waiting(signal: &Signal, threads: usize) {
    let start = Instant::now();
    while signal.waiters.lock().len() < threads {
        assert!(start.elapsed() < DEADLINE, "the threads do not wait");
        thread::yield_now();
    }
}

#[test]
fn one_raise_wakes_all_threads_and_runs_all_hooks() {
    let signal = Arc::new(Signal::default());
    let sleepers = [(); 3].map(|()| sleeper(&signal, 0));
    until_waiting(&signal, 3);
    let (tell, told) = channel();
    for hook in 0..2 {
        let tell = tell.clone();
        signal.on_raise(0, Box::new(move || tell.send(hook).unwrap()));
    }
    assert!(told.try_recv().is_err(), "nothing has been raised");
    signal.raise();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [0, 1]);
    for woken in sleepers {
        assert_eq!(woken.recv_timeout(DEADLINE), Ok(true));
    }
    // Each hook runs once.
    signal.raise();
    assert!(told.try_recv().is_err());
    assert_eq!(signal.count(), 2);
}

#[test]
fn a_thread_that_waits_again_and_again_leaves_itself_and_the_others_once() {
    let signal = Arc::new(Signal::default());
    let other = sleeper(&signal, 0);
    until_waiting(&signal, 1);
    for _ in 0..3 {
        assert!(!signal.sleep(0, after(Duration::from_millis(1))), "in vain");
    }
    assert!(!signal.sleep(0, after(Duration::ZERO)));
    assert_eq!(signal.waiters.lock().len(), 2);
    signal.raise();
    assert_eq!(other.recv_timeout(DEADLINE), Ok(true));
    assert!(signal.sleep(0, after(Duration::ZERO)), "it has passed");
    assert!(signal.sleep(0, None), "it has passed");
}

#[test]
fn a_count_that_has_passed_is_heard_of_at_once() {
    let signal = Signal::default();
    signal.raise();
    let (tell, told) = channel();
    let hook = |name| -> Hook {
        let tell = tell.clone();
        Box::new(move || tell.send(name).unwrap())
    };
    signal.on_raise(0, hook("passed"));
    assert_eq!(told.try_recv(), Ok("passed"));
    signal.on_raise(1, hook("not yet"));
    assert!(told.try_recv().is_err());
    signal.raise();
    assert_eq!(told.try_recv(), Ok("not yet"));
}
