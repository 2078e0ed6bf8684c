//! Stopping what is overdue or not wanted any more.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;

use super::*;
use crate::engine::processes::dispatch::State;
use crate::engine::processes::dispatch::made_up::{Begun, IN_TIME, Log};
use crate::engine::processes::task::{Results, Task};
use crate::os::clock;
use crate::os::readable::wait_readable;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

fn timed(house: &MadeUp, count: u32, limit: Duration) -> Arc<Task<Log>> {
    house.place_with(count, |task| {
        task.limits.set(|given| given.timeout = Some(limit));
    })
}

fn timed_out(limit: Duration) -> TaskError {
    TaskError::TimedOut {
        index: None.into(),
        limit,
        attempts: 1,
    }
}

fn stop_overdue(house: &MadeUp, now: u64) -> Option<Duration> {
    house.lock().stop_overdue(now)
}

/// Returns when the item that runs was started, as its worker says.
fn started_at(peer: &Peer) -> u64 {
    let header = peer.lane.header();
    header.started_at(header.progress()).unwrap()
}

/// Looks as a supervisor does that looks every 10 ms until then.
fn look_until(house: &MadeUp, mut from: u64, to: u64) {
    loop {
        let mut dispatch = house.lock();
        house.shared.watch_lanes(&mut dispatch, from);
        dispatch.stop_overdue(from);
        drop(dispatch);
        if from == to {
            return;
        }
        from = to.min(from + nanoseconds(10 * MOMENT));
    }
}

fn results(task: &Arc<Task<Log>>) -> Arc<Task<dyn Results>> {
    task.clone()
}

#[test]
fn an_unlimited_task_is_not_stopped_for_a_limit_behind_it() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let unlimited = house.place(1);
    let limited = timed(&house, 1, 20 * MOMENT);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let now = clock::now();
    look_until(&house, now, now + nanoseconds(3 * SECOND));
    assert_eq!(house.kill_reason(0), None);
    assert!(stop_overdue(&house, now + nanoseconds(3_600 * SECOND)).is_some());
    assert_eq!(house.kill_reason(0), None);
    // The limit begins when the task does.
    peer.answer(&begun);
    peer.responses.end();
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let start = started_at(&peer);
    stop_overdue(&house, start + nanoseconds(19 * MOMENT));
    assert_eq!(house.kill_reason(0), None);
    stop_overdue(&house, start + nanoseconds(20 * MOMENT));
    assert!(house.kill_reason(0).is_some(), "over its limit");
    house.reclaim(0, killed());
    house.assert_at_rest();
    assert_eq!(unlimited.failures(), []);
    assert_eq!(limited.failures(), [(0, timed_out(20 * MOMENT))]);
}

#[test]
fn each_item_has_its_limit_from_its_own_start() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = timed(&house, 3, SECOND);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let start = started_at(&peer);
    let left = stop_overdue(&house, start + nanoseconds(400 * MOMENT));
    assert_eq!(left, Some(600 * MOMENT), "the next look is at its limit");
    // The item ends in time, and the next one has not run for as long, whatever the parent has
    // seen.
    peer.answer(&begun);
    peer.start(&mut begun);
    let start = start + nanoseconds(900 * MOMENT);
    peer.lane.header().set_started_at(start);
    stop_overdue(&house, start + nanoseconds(999 * MOMENT));
    assert_eq!(house.kill_reason(0), None);
    stop_overdue(&house, start + nanoseconds(SECOND));
    assert!(house.kill_reason(0).is_some());
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), [(1, timed_out(SECOND))]);
    assert_eq!([0, 1, 2].map(|item| house.runs(&task, item)), [1, 1, 1]);
    assert_eq!(
        stop_overdue(&house, clock::now()),
        None,
        "nothing to look at"
    );
}

#[test]
fn a_worker_that_lies_about_the_start_gains_no_time() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    timed(&house, 1, SECOND);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let seen = clock::now();
    peer.lane.header().set_started_at(u64::MAX);
    stop_overdue(&house, seen);
    stop_overdue(&house, seen + nanoseconds(999 * MOMENT));
    assert_eq!(house.kill_reason(0), None);
    stop_overdue(&house, seen + nanoseconds(SECOND));
    assert!(
        house.kill_reason(0).is_some(),
        "it has been seen for its limit"
    );
}

/// Has a worker killed for item 1 of its task, after it has done `before_it_dies`.
fn stopped_at_item_1(before_it_dies: impl FnOnce(&mut Peer, &mut Begun)) -> [MadeUpTask; 2] {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (task, behind) = (timed(&house, 4, SECOND), house.place(2));
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 1);
    peer.start(&mut begun);
    stop_overdue(&house, started_at(&peer) + nanoseconds(SECOND));
    assert!(house.kill_reason(0).is_some());
    before_it_dies(&mut peer, &mut begun);
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    [task, behind].map(|task| {
        let runs = (0..task.count).map(|item| house.runs(&task, item));
        (task.failures(), runs.collect())
    })
}

type MadeUpTask = (Vec<(u32, TaskError)>, Vec<u32>);

#[test]
fn what_a_stopped_item_still_does_before_its_worker_dies_counts() {
    let over = (1, timed_out(SECOND));
    // It does nothing more.
    let [task, behind] = stopped_at_item_1(|_, _| {});
    assert_eq!(task, (vec![over], vec![1; 4]));
    assert_eq!(behind, (vec![], vec![1; 2]));
    // The item ends in this moment: its result counts.
    let [task, behind] = stopped_at_item_1(|peer, begun| peer.answer(begun));
    assert_eq!(task, (vec![], vec![1; 4]));
    assert_eq!(behind, (vec![], vec![1; 2]));
    // The next item has started too. It is not to blame, and runs again.
    let [task, behind] = stopped_at_item_1(|peer, begun| {
        peer.answer(begun);
        peer.start(begun);
    });
    assert_eq!(task, (vec![], vec![1, 1, 2, 1]));
    assert_eq!(behind, (vec![], vec![1; 2]));
    // The whole task ends, and the task behind it has started.
    let [task, behind] = stopped_at_item_1(|peer, begun| {
        peer.answer(begun);
        peer.run(begun, 2);
        peer.responses.end();
        let mut begun = peer.must_begin();
        peer.start(&mut begun);
    });
    assert_eq!(task, (vec![], vec![1; 4]));
    assert_eq!(behind, (vec![], vec![2, 1]));
}

#[test]
fn a_task_that_its_worker_does_not_start_has_a_second_more_than_its_limit() {
    let house = MadeUp::new(1);
    house.hire(0);
    let task = timed(&house, 2, SECOND);
    let now = clock::now();
    look_until(&house, now, now + nanoseconds(1_950 * MOMENT));
    assert_eq!(house.kill_reason(0), None, "a busy machine may be slow");
    look_until(&house, now, now + nanoseconds(2 * SECOND + 50 * MOMENT));
    assert!(house.kill_reason(0).is_some(), "it seems to be frozen");
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), [(0, timed_out(SECOND))]);
}

#[test]
fn a_limit_is_kept_between_two_items_and_names_the_next() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = timed(&house, 3, SECOND);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 1);
    let now = clock::now();
    // The parent has taken none of the worker's answers.
    look_until(&house, now, now + nanoseconds(3 * SECOND));
    assert!(house.kill_reason(0).is_some());
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), [(1, timed_out(SECOND))]);
}

#[test]
fn a_worker_that_is_still_starting_has_all_its_time() {
    let house = MadeUp::new(1);
    let peer = house.hire_unready(0);
    peer.lane.header().set_up();
    timed(&house, 1, MOMENT);
    let now = clock::now();
    look_until(&house, now, now + nanoseconds(5 * SECOND));
    assert_eq!(house.kill_reason(0), None, "its initialiser runs");
}

#[test]
fn a_killed_task_is_cancelled_and_what_is_behind_it_is_not() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (first, second) = (house.place(1), house.place(1));
    assert!(
        !house.lock().kill(first.address(), &TaskError::Cancelled {}),
        "it has not begun"
    );
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    assert!(
        !house
            .lock()
            .kill(second.address(), &TaskError::Cancelled {}),
        "that would kill the first"
    );
    assert_eq!(house.kill_reason(0), None);
    assert!(house.lock().kill(first.address(), &TaskError::Cancelled {}));
    assert!(
        !house.lock().kill(first.address(), &TaskError::Cancelled {}),
        "once"
    );
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(first.failures(), [(0, TaskError::Cancelled {})]);
    assert_eq!(second.failures(), []);
    assert_eq!(house.runs(&second, 0), 1);
    let dispatch = house.lock();
    let stats = dispatch.tallies[0].stats(None);
    assert_eq!((stats.tasks, stats.failures.cancelled), (2, 1));
}

#[test]
fn a_worker_that_is_being_killed_gets_nothing_more() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let first = house.place(1);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    assert!(house.lock().kill(first.address(), &TaskError::Cancelled {}));
    house.place(1);
    assert_eq!(house.in_flight(0), 1);
    // This holds also when the worker has ended its task in the last moment.
    peer.answer(&begun);
    peer.responses.end();
    house.pump();
    assert_eq!(house.in_flight(0), 0);
    assert!(first.has_ended());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
}

#[test]
fn a_task_is_withdrawn_unless_a_worker_has_begun_with_it() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let tasks: Vec<_> = (0..20).map(|_| house.place(2)).collect();
    let withdraw = |task: &Arc<Task<Log>>| {
        let which = (task.address(), task.count);
        let is_withdrawn = house.lock().withdraw(&house.shared, which, false);
        if is_withdrawn {
            // The task's handle does the same.
            task.results.is_cancelled.store(true, Ordering::SeqCst);
        }
        is_withdrawn
    };
    let mut begun = peer.must_begin();
    assert!(!withdraw(&tasks[0]), "it was begun");
    assert!(house.lock().has_begun(tasks[0].address()));
    assert!(!house.lock().is_running(tasks[0].address()));
    peer.start(&mut begun);
    peer.answer(&begun);
    assert!(!withdraw(&tasks[0]), "it is running");
    assert!(house.lock().is_running(tasks[0].address()));
    assert!(!house.lock().is_running(tasks[3].address()));
    // One task is in the lane, and one in the queue.
    assert!(withdraw(&tasks[3]) && withdraw(&tasks[18]));
    peer.finish(begun);
    house.finish(&mut [&mut peer]);
    for (nth, task) in tasks.iter().enumerate() {
        let is_withdrawn = nth == 3 || nth == 18;
        let runs = [0, 1].map(|item| house.runs(task, item));
        assert_eq!(runs, [u32::from(!is_withdrawn); 2], "task {nth}");
        assert_eq!(task.has_ended(), !is_withdrawn);
    }
    assert_eq!(house.lock().cancelled, 4, "items that were cancelled");
}

#[test]
fn a_worker_whose_last_task_is_withdrawn_is_idle() {
    let house = MadeUp::new(1);
    house.hire(0);
    let task = house.place_with(1, |task| task.results.is_told = true);
    let which = (task.address(), 1);
    assert!(house.lock().withdraw(&house.shared, which, true));
    house.assert_at_rest();
}

#[test]
fn what_is_not_wanted_any_more_is_taken_back_as_far_as_it_has_not_begun() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let tasks: Vec<_> = (0..20).map(|_| house.place(2)).collect();
    let begun = peer.must_begin();
    for (nth, task) in tasks.iter().enumerate() {
        task.results.is_unwanted.store(nth != 5, Ordering::SeqCst);
    }
    house.lock().drop_unwanted(&house.shared);
    house.pump();
    assert_eq!(
        house.in_flight(0),
        2,
        "the one that runs, and the one wanted"
    );
    peer.finish(begun);
    house.finish(&mut [&mut peer]);
    let cancelled = [0, 1].map(|item| (item, TaskError::Cancelled {}));
    for (nth, task) in tasks.iter().enumerate() {
        let expected = if nth == 0 || nth == 5 {
            &[][..]
        } else {
            &cancelled
        };
        assert_eq!(task.failures(), expected, "task {nth}");
    }
    assert_eq!(house.lock().cancelled, 36);
}

#[test]
fn all_that_has_not_begun_is_cancelled_with_the_pool() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let tasks: Vec<_> = (0..20).map(|_| house.place(1)).collect();
    let begun = peer.must_begin();
    house.lock().state = State::Closing { cancels: true };
    house.lock().cancel_queued(&house.shared);
    let (signal, seen) = {
        let dispatch = house.lock();
        assert_eq!(dispatch.outstanding, 1);
        (dispatch.all_ended.clone(), dispatch.all_ended.count())
    };
    assert!(tasks[1..].iter().all(|task| task.has_ended()));
    peer.finish(begun);
    house.pump();
    assert!(signal.count() > seen, "the end of all was not told");
    house.finish(&mut [&mut peer]);
    assert_eq!(tasks[0].failures(), []);
}

#[test]
fn the_task_at_an_address_is_the_one_that_is_meant() {
    let house = MadeUp::new(2);
    let mut peers = [house.hire(0), house.hire(1)];
    let tasks: Vec<_> = (0..4).map(|_| house.place(1)).collect();
    let mut running = Vec::new();
    for peer in &mut peers {
        let mut begun = peer.must_begin();
        peer.start(&mut begun);
        running.push(begun);
    }
    for task in &tasks {
        let is_running = running.iter().any(|begun| begun.code == task.function.code);
        assert_eq!(house.lock().is_running(results(task).address()), is_running);
    }
    // The second worker's task is killed, and the first one goes on.
    let code = running[1].code;
    let its = tasks
        .iter()
        .find(|task| task.function.code == code)
        .unwrap();
    assert!(house.lock().kill(its.address(), &TaskError::Cancelled {}));
    assert_eq!(house.kill_reason(0), None);
    assert!(house.kill_reason(1).is_some());
}

/// Takes what is in the lanes. Fails if that does not end.
fn pump_in_time(house: &MadeUp) {
    let (shared, (done, is_done)) = (house.shared.clone(), channel());
    thread::spawn(move || {
        shared.lock().pump(&shared);
        // The test may have failed.
        let _ = done.send(());
    });
    assert_eq!(is_done.recv_timeout(IN_TIME), Ok(()), "a look without end");
}

#[test]
fn what_was_found_out_first_stays_the_reason_of_a_kill() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = timed(&house, 2, SECOND);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    stop_overdue(&house, started_at(&peer) + nanoseconds(SECOND));
    assert!(
        !house.lock().kill(task.address(), &TaskError::Cancelled {}),
        "it is being killed already"
    );
    // In its last moment the worker writes nonsense, which is not read again and again.
    peer.responses.begin(9, 9);
    peer.responses.end();
    pump_in_time(&house);
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), [(0, timed_out(SECOND))]);
}

#[test]
fn what_a_corrupted_worker_had_begun_is_not_run_again_whatever_else_it_is_killed_for() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (task, begun_too) = (timed(&house, 1, SECOND), house.place(1));
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    stop_overdue(&house, started_at(&peer) + nanoseconds(SECOND));
    peer.must_begin();
    peer.responses.begin(9, 9);
    peer.responses.end();
    pump_in_time(&house);
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), [(0, timed_out(SECOND))]);
    let [(0, TaskError::WorkerDied { cause, .. })] = &begun_too.failures()[..] else {
        panic!("{:?}", begun_too.failures());
    };
    assert!(matches!(cause, Death::Corrupted(_)), "{cause:?}");
}

#[test]
fn a_worker_whose_lane_is_emptied_is_idle() {
    let house = MadeUp::new(1);
    house.hire(0);
    let task = house.place(1);
    task.results.is_unwanted.store(true, Ordering::SeqCst);
    house.lock().drop_unwanted(&house.shared);
    house.assert_at_rest();
}

fn has_rung(house: &MadeUp) -> bool {
    let fds = [house.shared.alarm.as_fd()];
    let rung = wait_readable(&fds, Some(Duration::ZERO)).unwrap();
    house.shared.alarm.silence();
    rung.is_some()
}

#[test]
fn the_supervisor_is_called_for_each_limit_that_ends_before_its_next_look() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    timed(&house, 1, 60 * SECOND);
    assert!(has_rung(&house), "the first limit");
    stop_overdue(&house, clock::now());
    timed(&house, 1, SECOND);
    assert!(has_rung(&house), "one that is shorter");
    timed(&house, 1, 60 * SECOND);
    assert!(!has_rung(&house), "one that is longer");
    peer.serve();
    house.pump();
    assert_eq!(stop_overdue(&house, clock::now()), None);
    timed(&house, 1, 60 * SECOND);
    assert!(has_rung(&house), "it looks no more");
    house.finish(&mut [&mut peer]);
}

#[test]
fn the_time_at_the_head_of_a_lane_counts_from_when_a_task_came_there() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let first = house.place(1);
    let before = clock::now();
    timed(&house, 1, SECOND);
    let begun = peer.must_begin();
    peer.finish(begun);
    house.pump();
    assert!(first.has_ended());
    let after = clock::now();
    // The first look comes later.
    let look = after + nanoseconds(100 * MOMENT);
    let left = nanoseconds(stop_overdue(&house, look).unwrap());
    let due = look + left - nanoseconds(SECOND + 50 * MOMENT);
    assert!((before..=after).contains(&due), "{before} {due} {after}");
}
