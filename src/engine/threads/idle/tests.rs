use std::sync::Arc;
use std::sync::mpsc::channel;

use super::*;

/// Far longer than a wake-up takes; a worker that sleeps this long is not woken.
const LONG: Duration = Duration::from_secs(20);

/// Lets a thread go to sleep as the only worker of `idle`, with `is_wanted` as its last look.
#[track_caller]
fn goes_to_sleep(idle: &Arc<Idle>, is_wanted: impl FnOnce() -> bool + Send + 'static) {
    let (send, woken) = channel();
    let own = Arc::clone(idle);
    thread::spawn(move || {
        own.start(0);
        own.stop_searching();
        let woken = own.sleep(0, false, is_wanted);
        let _ = send.send(woken == Woken::Called);
    });
    let is_called = woken.recv_timeout(LONG).expect("the worker sleeps");
    assert!(is_called, "it has no alarm");
    let counters = idle.counters();
    assert_eq!((counters.searching(), counters.asleep()), (1, 0));
}

#[test]
fn a_worker_that_sees_a_task_in_its_last_look_does_not_sleep() {
    let idle = Arc::new(Idle::new(1));
    let seen = Arc::clone(&idle);
    // The look comes after the worker is counted as asleep. If a task is posted between the two,
    // either the worker sees it, or its poster sees that the worker sleeps.
    goes_to_sleep(&idle, move || seen.counters().asleep() == 1);
}

#[test]
fn a_worker_does_not_sleep_when_the_pool_is_to_end() {
    let idle = Arc::new(Idle::new(1));
    idle.quit();
    goes_to_sleep(&idle, || false);
}

#[test]
fn a_worker_is_woken_by_the_post_after_its_last_look() {
    let idle = Arc::new(Idle::new(1));
    let poster = Arc::clone(&idle);
    let (look, has_looked) = channel();
    thread::spawn(move || {
        has_looked.recv_timeout(LONG).unwrap();
        // Waits for the lock, which the worker holds until it is on the list of those that sleep.
        assert!(poster.wake_one(), "the worker is on no list");
    });
    goes_to_sleep(&idle, move || {
        look.send(()).unwrap();
        false
    });
}

#[test]
fn the_last_that_ends_its_search_looks_again_if_another_sleeps() {
    let idle = Idle::new(3);
    idle.start_searching();
    idle.start_searching();
    assert!(!idle.stop_searching(), "another one searches");
    assert!(!idle.stop_searching(), "no worker sleeps");
    idle.start_searching();
    idle.counters.fetch_add(ASLEEP, Ordering::Relaxed);
    assert!(idle.stop_searching());
}

/// The task may share out work by rayon, which only a worker that naps finds.
#[test]
fn the_last_that_gets_up_gives_an_alarm_to_another_when_it_finds_a_task() {
    let idle = Idle::new(2);
    // Both sleep: worker 0 fell asleep first, with an alarm, and then worker 1, the last.
    idle.counters.fetch_add(2 * ASLEEP, Ordering::Relaxed);
    {
        let mut sleepers = idle.sleepers.lock();
        sleepers.napping.push(0);
        idle.workers[0].sleep.store(SHORTEST_NAP, Ordering::Relaxed);
        sleepers.for_good.push_back(1);
    }
    // All others are asleep, so worker 0 sets no alarm. It is about to sleep again, and its last
    // look shows a task.
    assert!(idle.get_up(0) == Woken::ByAlarm);
    assert_eq!(idle.sleepers.lock().for_good, [1]);
    assert!(idle.sleep(0, true, || true) == Woken::Called);
    let counters = idle.counters();
    assert_eq!((counters.searching(), counters.asleep()), (1, 1));
    let sleepers = idle.sleepers.lock();
    assert_eq!((&*sleepers.napping, sleepers.for_good.len()), (&[1][..], 0));
    assert_eq!(
        idle.workers[1].sleep.load(Ordering::Relaxed),
        sleepers.nap,
        "its thread sees the alarm"
    );
}
