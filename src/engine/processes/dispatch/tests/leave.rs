//! Workers that are let go: after their idle time, when the pool is made smaller, or because they
//! do not start.

use std::time::Instant;

use super::*;
use crate::engine::processes::dispatch::State;
use crate::error::PoolError;
use crate::os::clock;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn a_worker_rests_after_its_idle_time_and_comes_back_for_work() {
    let house = MadeUp::with(2, |settings| settings.idle_timeout = Some(SECOND));
    let peers = [house.hire(0), house.hire(1)];
    let let_idle_go = |now| house.lock().let_idle_go(&house.shared, now);
    let start = Instant::now();
    assert!(let_idle_go(start).is_some_and(|next| next <= SECOND));
    let mut first = house.place(1);
    let busy = usize::from(house.in_flight(1) == 1);
    let_idle_go(start + 2 * SECOND);
    {
        let dispatch = house.lock();
        assert!(!dispatch.is_wanted(1 - busy), "it was idle for long");
        assert!(dispatch.is_wanted(busy), "it has work");
    }
    assert!(peers[1 - busy].lane.header().must_stop());
    assert!(!peers[busy].lane.header().must_stop());
    // The worker's time begins anew when it has ended its task.
    let [one, other] = peers;
    let mut peer = if busy == 0 { one } else { other };
    peer.serve();
    let ended = Instant::now();
    let_idle_go(ended);
    let_idle_go(ended + SECOND / 2);
    assert!(house.lock().is_wanted(busy));
    let_idle_go(Instant::now() + SECOND);
    assert!(!house.lock().is_wanted(busy));
    assert_eq!(first.failures(), []);
    // Both have gone.
    for number in 0..2 {
        house.reclaim(number, Death::Exit(0));
    }
    first = house.place(1);
    assert_eq!(
        house.lock().resting.iter().filter(|rests| **rests).count(),
        1
    );
    let number = usize::from(house.lock().resting[0]);
    let mut back = house.hire(number);
    house.finish(&mut [&mut back]);
    assert_eq!(first.failures(), []);
}

/// The worker that has the rest of a batch to give back is one too many, and the only other rests.
#[test]
fn b41_a_worker_comes_back_for_what_one_that_leaves_gives_back() {
    let house = MadeUp::with(2, |settings| {
        settings.idle_timeout = Some(SECOND);
        settings.max_tasks = Some(2);
    });
    let [_one, mut other] = [house.hire(0), house.hire(1)];
    let task = house.place(4);
    assert_eq!(house.in_flight(1), 1, "the last that came is taken first");
    house.lock().resize(&house.shared, 1).unwrap();
    let later = Instant::now() + SECOND;
    house.lock().let_idle_go(&house.shared, later);
    assert!(!house.lock().is_wanted(0), "it was idle for long");
    house.reclaim(0, Death::Exit(0));
    other.serve();
    house.pump();
    assert!(house.lock().is_wanted(0), "two items are left");
    house.reclaim(1, Death::Exit(0));
    let mut back = house.hire(0);
    house.finish(&mut [&mut back]);
    assert_eq!(task.failures(), []);
    assert_eq!(task.answered(), 4);
}

#[test]
fn an_initialiser_is_no_idle_time() {
    let house = MadeUp::with(1, |settings| settings.idle_timeout = Some(SECOND));
    let peer = house.hire_unready(0);
    let let_idle_go = |now| house.lock().let_idle_go(&house.shared, now);
    let start = Instant::now();
    let_idle_go(start + 9 * SECOND);
    assert!(house.lock().is_wanted(0));
    peer.lane.header().set_ready();
    let_idle_go(start + 9_999 * MOMENT);
    assert!(
        house.lock().is_wanted(0),
        "its time begins when it is ready"
    );
    let_idle_go(start + 10 * SECOND);
    assert!(!house.lock().is_wanted(0));
}

#[test]
fn a_worker_that_does_not_leave_is_killed_after_ten_seconds_and_not_before_its_work_is_done() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place(1);
    let begun = peer.must_begin();
    let end_lingering = |now| house.lock().end_lingering(&house.shared, now);
    house.lock().let_go(0);
    let now = clock::now();
    assert_eq!(end_lingering(now), None);
    assert_eq!(end_lingering(now + nanoseconds(60 * SECOND)), None);
    assert_eq!(house.kill_reason(0), None, "it has work");
    peer.finish(begun);
    house.pump();
    let now = now + nanoseconds(60 * SECOND);
    assert_eq!(end_lingering(now), Some(10 * SECOND));
    assert_eq!(end_lingering(now + nanoseconds(9 * SECOND)), Some(SECOND));
    assert_eq!(house.kill_reason(0), None);
    end_lingering(now + nanoseconds(10 * SECOND));
    assert!(house.kill_reason(0).is_some());
    assert_eq!(task.failures(), []);
}

#[test]
fn a_worker_that_does_not_come_up_is_killed_and_its_tasks_go_elsewhere() {
    let house = MadeUp::new(1);
    let slow = house.hire_unready(0);
    let task = house.place(1);
    let since = house.lock().workers[0].as_ref().unwrap().started.since;
    let end_lingering = |now| house.lock().end_lingering(&house.shared, now);
    assert_eq!(
        end_lingering(since + nanoseconds(29 * SECOND)),
        Some(SECOND)
    );
    assert_eq!(house.kill_reason(0), None);
    // A worker that is up may take as long as it likes.
    slow.lane.header().set_up();
    assert_eq!(end_lingering(since + nanoseconds(99 * SECOND)), None);
    assert_eq!(house.kill_reason(0), None);
    house.reclaim(0, segfault());
    house.hire_unready(0);
    let since = house.lock().workers[0].as_ref().unwrap().started.since;
    end_lingering(since + nanoseconds(30 * SECOND));
    assert!(house.kill_reason(0).is_some());
    assert!(house.lock().workers[0].as_ref().unwrap().has_not_come_up());
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), []);
}

#[test]
fn a_smaller_pool_lets_workers_go_after_their_work() {
    let house = MadeUp::new(3);
    let mut peers = [0, 1, 2].map(|number| house.hire(number));
    let tasks: Vec<_> = (0..6).map(|_| house.place(1)).collect();
    house.lock().resize(&house.shared, 1).unwrap();
    assert_eq!(house.shared.workers(), 1);
    let wanted = [0, 1, 2].map(|number| house.lock().is_wanted(number));
    assert_eq!(wanted, [true, false, false]);
    for peer in &mut peers {
        peer.serve();
    }
    house.pump();
    let must_stop = [0, 1, 2].map(|number: usize| peers[number].lane.header().must_stop());
    assert_eq!(must_stop, [false, true, true]);
    let last = house.place(1);
    assert_eq!(house.in_flight(0), 1);
    house.finish(&mut peers.each_mut());
    assert!(
        tasks
            .iter()
            .chain([&last])
            .all(|task| task.failures().is_empty())
    );
    // The pool becomes larger again, after the workers that left have gone.
    house.reclaim(1, Death::Exit(0));
    house.reclaim(2, Death::Exit(0));
    house.lock().resize(&house.shared, 4).unwrap();
    let wanted = [0, 1, 2, 3].map(|number| house.lock().is_wanted(number));
    assert_eq!(wanted, [true; 4]);
    house.lock().state = State::Closing { cancels: false };
    let refused = house.lock().resize(&house.shared, 1);
    assert_eq!(refused, Err(PoolError::Closed));
}

#[test]
fn a_worker_that_comes_after_the_pool_was_made_smaller_leaves() {
    let house = MadeUp::new(2);
    let mut stays = house.hire(0);
    house.lock().resize(&house.shared, 1).unwrap();
    let late = house.hire(1);
    assert!(late.lane.header().must_stop());
    let tasks = [house.place(1), house.place(1)];
    house.finish(&mut [&mut stays]);
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
}

#[test]
fn a_worker_leaves_only_when_all_of_a_message_has_come() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place(200_000);
    house.lock().let_go(0);
    assert_eq!(peer.begin(), None, "a ring of it has come");
    assert!(
        !peer.lane.header().must_stop(),
        "it would not wait for the rest"
    );
    house.pump();
    assert!(peer.lane.header().must_stop());
    assert_eq!(peer.must_begin().count, task.count);
}
