//! Workers that do not begin with what lies in their lanes.

use super::*;
use crate::engine::processes::dispatch::made_up::Begun;
use crate::os::clock;

const MOMENT: Duration = Duration::from_millis(1);

/// Looks at the lanes at the times given, counted from now on.
fn watch(house: &MadeUp, now: u64, millis: impl IntoIterator<Item = u32>) {
    for after in millis {
        let at = now + nanoseconds(after * MOMENT);
        house.shared.watch_lanes(&mut house.lock(), at);
    }
}

fn is_stalled(house: &MadeUp, number: usize) -> bool {
    let dispatch = house.lock();
    dispatch.workers[number].as_ref().unwrap().stalled.is_some()
}

#[test]
fn what_a_stalled_worker_has_not_begun_goes_to_one_that_is_idle() {
    let house = MadeUp::new(2);
    let mut stalled = house.hire(0);
    let tasks = [2, 2, 2].map(|count| house.place(count));
    let mut other = house.hire(1);
    // The first two are left to the worker that stalls. The third goes to the idle one at once.
    house.pump();
    other.serve();
    house.pump();
    other.serve();
    house.pump();
    assert_eq!(house.in_flight(0), 1, "the head is not taken back at once");
    let now = clock::now();
    watch(&house, now, [0, 10, 19]);
    assert_eq!((house.in_flight(0), house.in_flight(1)), (1, 0));
    watch(&house, now, [21]);
    assert_eq!((house.in_flight(0), house.in_flight(1)), (0, 1));
    other.serve();
    house.pump();
    // The stalled worker goes on, and has nothing to do.
    assert_eq!(stalled.begin(), None);
    house.pump();
    assert!(!is_stalled(&house, 0));
    house.finish(&mut [&mut stalled, &mut other]);
    for task in &tasks {
        assert_eq!(task.failures(), []);
        assert_eq!([0, 1].map(|item| house.runs(task, item)), [1, 1]);
    }
}

#[test]
fn what_a_stopped_worker_has_begun_stays_with_it() {
    let house = MadeUp::new(2);
    let mut stopped = house.hire(0);
    let (task, behind) = (house.place(1), house.place(1));
    let begun: Begun = stopped.must_begin();
    let mut other = house.hire(1);
    let now = clock::now();
    watch(&house, now, (0..300).step_by(10));
    other.serve();
    house.pump();
    assert!(!is_stalled(&house, 0));
    assert_eq!(house.in_flight(0), 1);
    assert_eq!(behind.failures(), []);
    stopped.finish(begun);
    house.finish(&mut [&mut stopped, &mut other]);
    assert_eq!(task.failures(), []);
    assert_eq!(house.runs(&task, 0), 1);
}

#[test]
fn a_parent_that_was_stopped_itself_finds_no_worker_stalled() {
    let house = MadeUp::new(2);
    let mut peer = house.hire(0);
    house.place(1);
    house.hire(1);
    let now = clock::now();
    watch(&house, now, [0, 10]);
    // The supervisor has not looked for long.
    watch(&house, now, [5_000]);
    assert!(!is_stalled(&house, 0));
    watch(&house, now, [5_010, 5_021]);
    assert!(is_stalled(&house, 0));
    assert_eq!(house.in_flight(1), 1);
    assert_eq!(peer.begin(), None);
}

#[test]
fn a_worker_that_comes_up_late_is_not_stalled() {
    let house = MadeUp::new(2);
    house.hire_unready(0);
    house.place(1);
    let mut other = house.hire_unready(1);
    let now = clock::now();
    watch(&house, now, (0..100).step_by(10));
    // An idle worker that is still starting is no help.
    assert_eq!(house.in_flight(1), 0);
    other.lane.header().set_ready();
    watch(&house, now, (100..200).step_by(10));
    assert_eq!(house.in_flight(1), 1, "a worker that is ready takes it");
    other.serve();
    house.pump();
}

#[test]
fn a_stalled_worker_is_the_last_choice_until_it_goes_on() {
    let house = MadeUp::new(2);
    let mut stalled = house.hire(0);
    let first = house.place(1);
    let mut other = house.hire(1);
    let now = clock::now();
    watch(&house, now, [0, 10, 21]);
    assert!(is_stalled(&house, 0));
    // The stalled worker has nothing, and is given nothing while the other one can take more.
    let tasks: Vec<_> = (0..15).map(|_| house.place(1)).collect();
    assert_eq!((house.in_flight(0), house.in_flight(1)), (0, 16));
    other.serve();
    house.pump();
    assert_eq!((house.in_flight(0), house.in_flight(1)), (0, 0));
    // The stalled worker goes on, and is as good as the other.
    assert_eq!(stalled.begin(), None);
    house.pump();
    let more = [house.place(1), house.place(1)];
    assert_eq!((house.in_flight(0), house.in_flight(1)), (1, 1));
    house.finish(&mut [&mut stalled, &mut other]);
    assert!(
        tasks
            .iter()
            .chain(&more)
            .all(|task| task.failures().is_empty())
    );
    assert_eq!(first.failures(), []);
}

#[test]
fn a_stalled_piece_goes_to_a_worker_as_soon_as_that_is_idle() {
    let house = MadeUp::new(2);
    let (mut stalled, mut busy) = (house.hire(0), house.hire(1));
    // The worker that was idle last is taken first.
    let (long, waiting) = (house.place(1), house.place(1));
    let mut begun = busy.must_begin();
    busy.start(&mut begun);
    let now = clock::now();
    watch(&house, now, [0, 10, 21, 31]);
    assert!(is_stalled(&house, 0));
    assert_eq!(house.in_flight(0), 1, "no other worker is idle");
    busy.answer(&begun);
    busy.responses.end();
    // The supervisor does not look here: any caller that waits does this.
    house.pump();
    assert_eq!((house.in_flight(0), house.in_flight(1)), (0, 1));
    busy.serve();
    house.pump();
    assert_eq!(long.failures().len() + waiting.failures().len(), 0);
    // The stalled worker dies before it has gone on.
    house.reclaim(0, killed());
    assert_eq!(stalled.begin(), None);
    house.assert_at_rest();
}

#[test]
fn the_watch_ends_when_the_lanes_are_empty_and_begins_with_the_next_task() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    assert_eq!(
        house.shared.watch_lanes(&mut house.lock(), clock::now()),
        None
    );
    house.place(1);
    let now = clock::now();
    let look = |millis: u32| {
        let at = now + nanoseconds(millis * MOMENT);
        house.shared.watch_lanes(&mut house.lock(), at)
    };
    assert_eq!(look(0), Some(10 * MOMENT));
    let begun = peer.must_begin();
    let pauses = [10, 20, 40, 80, 120, 160].map(look);
    let millis = [20, 40, 50, 50, 50, 50].map(|millis| Some(millis * MOMENT));
    assert_eq!(pauses, millis);
    peer.finish(begun);
    let looks = (200..).step_by(50).take_while(|&at| look(at).is_some());
    assert_eq!(looks.count(), 9, "looks at an empty lane");
    house.place(1);
    assert!(look(2_000).is_some());
}
