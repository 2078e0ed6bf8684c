//! When a pool gives up on workers that do not start; with made-up ones.

use nix::sys::eventfd::EventFd;

use super::*;
use crate::engine::processes::dispatch::State;
use crate::engine::processes::dispatch::made_up::MadeUp;
use crate::os::clock;

fn supervisor(house: &MadeUp) -> Supervisor {
    let mut supervisor = Supervisor::new(house.shared.clone());
    let workers = house.shared.workers();
    supervisor.posts.resize_with(workers, Post::default);
    supervisor
}

const CRASH: Death = Death::Exit(1);
const KILL: Death = Death::Signal(9);

/// Has a worker end before it is ready. Returns whether the pool goes on.
fn fails(house: &MadeUp, supervisor: &mut Supervisor, number: usize, death: Death) -> bool {
    house.hire_unready(number);
    supervisor.replace(number, death)
}

fn has_ended(house: &MadeUp) -> bool {
    matches!(house.lock().state, State::Ended(_))
}

#[test]
fn a_pool_gives_up_after_five_starts_in_a_row_that_come_to_nothing() {
    let house = MadeUp::new(1);
    let task = house.place(2);
    let mut supervisor = supervisor(&house);
    for _ in 0..4 {
        assert!(fails(&house, &mut supervisor, 0, CRASH));
    }
    assert!(!has_ended(&house));
    assert!(!fails(&house, &mut supervisor, 0, CRASH));
    assert!(has_ended(&house));
    let failures = task.failures();
    assert_eq!(failures.len(), 2);
    for (_, error) in failures {
        let Some(PoolError::Broken { reason }) = error.as_pool() else {
            panic!("{error}");
        };
        assert!(reason.contains("exited with code 1"), "{reason}");
    }
}

#[test]
fn a_worker_that_was_ready_once_makes_good_for_all_failures_before() {
    let house = MadeUp::new(1);
    let mut supervisor = supervisor(&house);
    for _ in 0..3 {
        for _ in 0..4 {
            assert!(fails(&house, &mut supervisor, 0, CRASH));
        }
        house.hire(0);
        assert!(supervisor.replace(0, CRASH), "it was ready");
        assert_eq!(supervisor.posts[0].failures, 0);
    }
    for _ in 0..4 {
        assert!(fails(&house, &mut supervisor, 0, CRASH));
    }
    assert!(!fails(&house, &mut supervisor, 0, CRASH));
}

#[test]
fn a_start_that_was_cut_short_by_a_kill_weighs_a_fifth() {
    let house = MadeUp::new(1);
    let mut supervisor = supervisor(&house);
    for _ in 0..24 {
        assert!(fails(&house, &mut supervisor, 0, KILL));
    }
    assert!(!fails(&house, &mut supervisor, 0, KILL));
}

#[test]
fn a_worker_that_the_pool_killed_because_it_did_not_come_up_weighs_in_full() {
    let house = MadeUp::new(1);
    let mut supervisor = supervisor(&house);
    for nth in 1..=5 {
        house.hire_unready(0);
        let late = clock::now() + 40_000_000_000;
        house.lock().end_lingering(&house.shared, late);
        assert!(house.kill_reason(0).is_some());
        assert_eq!(supervisor.replace(0, KILL), nth < 5, "start {nth}");
    }
}

#[test]
fn all_places_that_are_wanted_must_have_failed() {
    let house = MadeUp::new(3);
    let mut supervisor = supervisor(&house);
    // The third place is not to have a worker.
    house.lock().resting[2] = true;
    for _ in 0..9 {
        assert!(fails(&house, &mut supervisor, 0, CRASH));
    }
    for _ in 0..4 {
        assert!(fails(&house, &mut supervisor, 1, CRASH));
    }
    assert!(!fails(&house, &mut supervisor, 1, CRASH));
}

#[test]
fn a_pool_does_not_give_up_while_a_worker_is_left() {
    let house = MadeUp::new(1);
    let mut supervisor = supervisor(&house);
    house.lock().resize(&house.shared, 2).unwrap();
    supervisor.posts.resize_with(2, Post::default);
    // The descriptor is readable, so that a pool that gives up does not wait for the worker.
    let readable = EventFd::from_value(1).unwrap();
    let child = Child::adopt(1 << 30, readable.into(), true);
    supervisor.posts[1].child = Some(Arc::new(child));
    // The worker's own place has failed often before.
    supervisor.posts[1].weight = MOST_FAILURES;
    for _ in 0..9 {
        assert!(fails(&house, &mut supervisor, 0, CRASH));
    }
    supervisor.posts[1].child = None;
    assert!(!fails(&house, &mut supervisor, 0, CRASH));
}

#[test]
fn the_pause_before_the_next_start_doubles_up_to_a_second() {
    let house = MadeUp::new(2);
    let mut supervisor = supervisor(&house);
    let millis = [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000];
    for expected in millis.map(Duration::from_millis) {
        let before = Instant::now();
        assert!(fails(&house, &mut supervisor, 0, CRASH));
        let retry = supervisor.posts[0].retry.unwrap();
        assert!(retry >= before + expected && retry <= Instant::now() + expected);
    }
    // A worker that leaves of its own will is replaced without a pause, also if it was never ready.
    house.hire_unready(0);
    house.lock().let_go(0);
    assert!(supervisor.replace(0, Death::Exit(0)));
    assert_eq!(supervisor.posts[0].failures, 0);
}

#[test]
fn a_pool_that_is_being_made_gives_up_at_the_first_failure() {
    let house = MadeUp::new(2);
    house.shared.is_built.store(false, Ordering::SeqCst);
    let mut supervisor = supervisor(&house);
    assert!(!fails(&house, &mut supervisor, 1, KILL));
    let dispatch = house.lock();
    let State::Ended(PoolError::StartFailed { worker, .. }) = &dispatch.state else {
        panic!("the pool has not ended for that reason");
    };
    assert_eq!(*worker, 1);
}

#[test]
fn what_a_dead_worker_had_goes_on_before_the_next_is_there() {
    let house = MadeUp::new(2);
    let mut supervisor = supervisor(&house);
    let mut first = house.hire(0);
    let tasks = [house.place(1), house.place(1)];
    let begun = first.must_begin();
    let mut second = house.hire(1);
    // The worker that is left is idle and gets it at once.
    second.serve();
    house.pump();
    assert_eq!(begun.count, 1);
    let heard = house.shared.bell.listen();
    assert!(supervisor.replace(0, CRASH));
    assert_ne!(
        house.shared.bell.listen(),
        heard,
        "those who wait are rung for"
    );
    assert_eq!(house.in_flight(1), 1);
    house.finish(&mut [&mut second]);
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
}

#[test]
fn the_error_of_a_start_names_its_place_and_how_the_worker_has_ended() {
    for has_initializer in [false, true] {
        let house = MadeUp::with(3, |settings| {
            settings.initializer = has_initializer.then_some(1);
        });
        house.shared.is_built.store(false, Ordering::SeqCst);
        let mut supervisor = supervisor(&house);
        assert!(!fails(&house, &mut supervisor, 2, CRASH));
        let dispatch = house.lock();
        let State::Ended(error) = &dispatch.state else {
            panic!("the pool has not ended");
        };
        let reason = match error {
            PoolError::InitializerFailed { worker: 2, reason } if has_initializer => reason,
            PoolError::StartFailed {
                worker: 2,
                workers: 3,
                reason,
            } if !has_initializer => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason.contains("exited with code 1"), "{reason}");
    }
}

#[test]
fn the_next_look_is_at_what_is_due_first() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let house = MadeUp::new(2);
    let mut supervisor = supervisor(&house);
    let now = Instant::now();
    for (post, hours) in supervisor.posts.iter_mut().zip([1, 2]) {
        post.retry = Some(now + hours * HOUR);
    }
    let next = supervisor.look().unwrap().unwrap();
    let is_an_hour = |time| time <= HOUR && time > HOUR / 2;
    assert!(is_an_hour(next), "{next:?}");
    // A place that is to have no worker has nothing due.
    house.lock().resting[0] = true;
    let next = supervisor.look().unwrap().unwrap();
    assert!(is_an_hour(next / 2), "{next:?}");
    house.lock().resting[1] = true;
    assert_eq!(supervisor.look(), Some(None));
    // A place with a worker has what is due for that worker.
    let _peer = house.hire(0);
    let task = house.place_with(1, |task| {
        task.limits.set(|given| given.timeout = Some(HOUR));
    });
    let next = supervisor.look().unwrap().unwrap();
    assert!(next < HOUR / 60, "its lane: {next:?}");
    // There are as many places as there shall be workers.
    house.lock().resize(&house.shared, 4).unwrap();
    house.lock().resting = vec![true; 4];
    assert!(supervisor.look().is_some());
    assert_eq!(supervisor.posts.len(), 4);
    house.lock().order = Some(Order::Kill);
    assert_eq!(supervisor.look(), None);
    assert!(has_ended(&house));
    assert_eq!(task.failures(), [(0, TaskError::Cancelled {})]);
}

#[test]
fn who_waits_is_rung_for_when_the_pool_ends() {
    let house = MadeUp::new(1);
    let mut supervisor = supervisor(&house);
    let heard = house.shared.bell.listen();
    supervisor.give_up(PoolError::Closed);
    assert_ne!(house.shared.bell.listen(), heard);
}
