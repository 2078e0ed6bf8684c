//! What is given to which worker, and what is taken back.

use super::*;
use crate::lane::message::Fault;

#[test]
fn a_task_goes_to_an_idle_worker_then_to_the_least_busy() {
    let house = MadeUp::new(3);
    let mut peers = [0, 1, 2].map(|number| house.hire(number));
    let mut tasks: Vec<_> = (0..7).map(|_| house.place(1)).collect();
    let mut loads = [0, 1, 2].map(|number| house.in_flight(number));
    loads.sort_unstable();
    assert_eq!(loads, [2, 2, 3]);
    assert_eq!(house.lock().busy, 3);
    tasks.extend((0..50).map(|_| house.place(1)));
    let loads = [0, 1, 2].map(|number| house.in_flight(number));
    assert_eq!(loads, [16; 3], "no more than that in a lane");
    house.finish(&mut peers.each_mut());
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
    let done: u64 = (0..3).map(|number| house.tally(number).0).sum();
    assert_eq!(done, 57);
}

#[test]
fn a_worker_that_runs_dry_gets_what_waits_behind_others() {
    let house = MadeUp::new(2);
    let mut busy = house.hire(0);
    let tasks: Vec<_> = (0..4).map(|_| house.place(1)).collect();
    let mut begun = busy.must_begin();
    busy.start(&mut begun);
    let mut other = house.hire(1);
    house.pump();
    // The last one is taken back first.
    let got = other.must_begin();
    assert_eq!(got.code, tasks[3].function.code);
    other.finish(got);
    for _ in 0..4 {
        house.pump();
        other.serve();
    }
    house.pump();
    assert_eq!(house.in_flight(0), 1, "only what it has begun with");
    busy.answer(&begun);
    busy.responses.end();
    house.finish(&mut [&mut busy, &mut other]);
    for task in &tasks {
        assert_eq!(task.failures(), []);
        assert_eq!(house.runs(task, 0), 1);
    }
}

/// More items than a ring of requests holds.
const LARGE: u32 = 200_000;

#[test]
fn a_message_that_was_taken_back_half_way_out_is_passed_over() {
    let house = MadeUp::new(2);
    let mut busy = house.hire(0);
    let first = house.place(1);
    let large = house.place_with(LARGE, |task| {
        task.count = 1;
        task.argument_size = None;
        let mut record = u64::from(LARGE - 8).to_ne_bytes().to_vec();
        record.resize(LARGE as usize, 1);
        task.items = record.into();
    });
    let mut begun = busy.must_begin();
    busy.start(&mut begun);
    // This one waits behind the large one, and is not in the lane yet.
    let last = house.place(1);
    assert!(house.lock().has_backlog());
    let mut other = house.hire(1);
    until("the other worker gets all that waits", || {
        house.pump();
        other.serve();
        large.has_ended() && last.has_ended()
    });
    assert_eq!(house.in_flight(0), 1);
    busy.answer(&begun);
    busy.responses.end();
    // What comes now lies behind the end of that message.
    house.pump();
    let after: Vec<_> = (0..10).map(|_| house.place(1)).collect();
    house.finish(&mut [&mut busy, &mut other]);
    assert_eq!(house.runs(&large, 0), 1);
    for task in after.iter().chain([&first, &large, &last]) {
        assert_eq!(task.failures(), []);
    }
}

#[test]
fn a_large_argument_goes_on_as_the_worker_reads() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place(LARGE);
    assert!(house.lock().has_backlog());
    let mut begun = None;
    until("the whole message comes", || {
        begun = peer.begin();
        house.pump();
        begun.is_some()
    });
    // The worker does not run all of it at once: the answers fill their ring.
    let mut begun = begun.unwrap();
    assert_eq!(begun.count, LARGE);
    for _ in 0..LARGE / 1_000 {
        peer.run(&mut begun, 1_000);
        house.pump();
    }
    peer.responses.end();
    house.finish(&mut [&mut peer]);
    assert_eq!(task.failures(), []);
}

#[test]
fn a_worker_dies_before_a_large_argument_has_come() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place(LARGE);
    assert_eq!(peer.begin(), None, "not all of it has come");
    house.reclaim(0, segfault());
    assert_eq!(task.answered(), 0);
    let mut other = house.hire(0);
    let mut begun = None;
    until("the whole message comes", || {
        begun = other.begin();
        house.pump();
        begun.is_some()
    });
    let begun = begun.unwrap();
    assert_eq!((begun.first, begun.count), (0, LARGE));
}

#[test]
fn a_worker_takes_no_more_items_than_its_limit_of_tasks() {
    let house = MadeUp::with(1, |settings| settings.max_tasks = Some(5));
    let mut first = house.hire(0);
    let (one, two, three) = (house.place(2), house.place(4), house.place(1));
    assert_eq!(house.in_flight(0), 2, "the third waits for another worker");
    first.serve();
    house.pump();
    assert_eq!((one.answered(), two.answered()), (2, 3));
    assert!(first.lane.header().must_stop());
    house.reclaim(0, Death::Exit(0));
    let mut second = house.hire(0);
    // The rest of the second task comes before the third.
    let begun = second.must_begin();
    assert_eq!(
        (begun.code, begun.first, begun.count),
        (two.function.code, 3, 1)
    );
    second.finish(begun);
    house.finish(&mut [&mut second]);
    for task in [one, two, three] {
        assert_eq!(task.failures(), []);
    }
}

#[test]
fn what_is_taken_back_does_not_count_for_the_limit_of_tasks() {
    let house = MadeUp::with(2, |settings| settings.max_tasks = Some(9));
    let mut busy = house.hire(0);
    let tasks: Vec<_> = (0..4).map(|_| house.place(2)).collect();
    let begun = busy.must_begin();
    let mut other = house.hire(1);
    for _ in 0..4 {
        house.pump();
        other.serve();
    }
    house.pump();
    assert_eq!(house.in_flight(0), 1);
    busy.finish(begun);
    house.pump();
    // The busy worker has run two items, and may run seven more. The other one has run six.
    house.lock().let_go(1);
    let more = house.place(8);
    let begun = busy.must_begin();
    assert_eq!(begun.count, 7);
    busy.finish(begun);
    house.pump();
    assert_eq!(more.answered(), 7);
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
}

#[test]
fn faults_of_items_are_told_and_counted() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place(4);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 1);
    peer.start(&mut begun);
    peer.fault(&Fault::ResultEncode("no".to_owned()));
    peer.start(&mut begun);
    peer.fault(&Fault::TimedOut(Duration::from_secs(1)));
    peer.run(&mut begun, 1);
    peer.responses.end();
    house.finish(&mut [&mut peer]);
    let items: Vec<u32> = task.failures().iter().map(|(item, _)| *item).collect();
    assert_eq!(items, [1, 2]);
    let dispatch = house.lock();
    let stats = dispatch.tallies[0].stats(dispatch.workers[0].as_ref());
    let failures = stats.failures;
    assert_eq!(
        (stats.tasks, failures.encode, failures.timed_out),
        (4, 1, 1)
    );
}

#[test]
fn an_answer_where_none_is_due_ends_the_worker() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    peer.responses.begin(1, 0);
    peer.responses.end();
    house.pump();
    assert!(house.kill_reason(0).is_some());
    let task = house.place(1);
    assert_eq!(house.in_flight(0), 0);
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), []);
}

#[test]
fn a_worker_is_asked_to_ring_for_what_is_awaited_or_when_it_runs_low() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let rings = |peer: &Peer, number| peer.lane.header().takes_bell(number);
    house.lock().ask_for_bell();
    assert!(!rings(&peer, 9), "it has nothing to ring for");
    // There are five tasks, and a caller waits for the second.
    for nth in 0..5 {
        house.place_with(1, |task| task.results.is_awaited = nth == 1);
    }
    house.lock().ask_for_bell();
    assert!(!rings(&peer, 1));
    assert!(rings(&peer, 2));
    for _ in 0..2 {
        let begun = peer.must_begin();
        peer.finish(begun);
    }
    house.pump();
    // Of three tasks, the worker rings when two are left, so that it can be given more.
    house.lock().ask_for_bell();
    assert!(!rings(&peer, 3));
    assert!(rings(&peer, 4));
    house.finish(&mut [&mut peer]);
}
