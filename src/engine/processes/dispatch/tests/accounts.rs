//! What the accounts say of what has been done, and what workers are told besides their tasks.

use std::os::fd::AsFd;

use super::*;
use crate::engine::processes::task::SentContext;
use crate::engine::stats::WorkerStats;
use crate::error::PoolError;
use crate::lane::message::Fault;
use crate::memory::transit::KeptHandles;
use crate::os::clock;
use crate::os::fault::{self, Child, Fate};
use crate::os::readable::wait_readable;

const SECOND: Duration = Duration::from_secs(1);

fn stats(house: &MadeUp, number: usize) -> WorkerStats {
    let dispatch = house.lock();
    let worker = dispatch.workers.get(number).and_then(Option::as_ref);
    dispatch.tallies[number].stats(worker)
}

#[test]
fn what_a_place_has_done_is_the_work_of_all_its_workers() {
    let house = MadeUp::new(1);
    let mut before = WorkerStats::default();
    for hired in 1..=3 {
        let mut peer = house.hire(0);
        let at_start = stats(&house, 0);
        assert_eq!(at_start.pid, Some(peer.pid));
        assert_eq!(at_start.respawns, hired - 1);
        assert_eq!(at_start.tasks, before.tasks);
        house.place(4);
        let mut begun = peer.must_begin();
        peer.run(&mut begun, 1);
        peer.start(&mut begun);
        peer.fault(&Fault::Panicked(Box::default()));
        peer.start(&mut begun);
        peer.fault(&Fault::ArgumentDecode("no".to_owned()));
        peer.start(&mut begun);
        peer.fault(&Fault::TimedOut(SECOND));
        peer.responses.end();
        house.pump();
        let now = stats(&house, 0);
        assert_eq!(now.tasks, 4 * hired);
        let failures = now.failures;
        let counts = (failures.panicked, failures.decode, failures.timed_out);
        assert_eq!(counts, (hired, hired, hired));
        assert_eq!(failures.total(), 3 * hired);
        // A head and an item of one byte each.
        assert_eq!(now.bytes_sent, hired * (40 + 4));
        assert!(now.bytes_received > before.bytes_received);
        assert!(now.uptime > before.uptime && now.busy_time <= now.uptime);
        house.reclaim(0, Death::Exit(0));
        let after = stats(&house, 0);
        assert_eq!((after.pid, after.tasks), (None, now.tasks));
        assert_eq!(after.failures, failures);
        assert_eq!(after.bytes_sent, now.bytes_sent);
        assert_eq!(after.bytes_received, now.bytes_received);
        assert!(after.uptime >= now.uptime);
        before = after;
    }
}

#[test]
fn what_workers_have_done_is_known_after_the_end_of_the_pool() {
    let house = MadeUp::new(2);
    let mut peers = [house.hire(0), house.hire(1)];
    let _tasks = [house.place(3), house.place(3)];
    peers.iter_mut().for_each(Peer::serve);
    house.pump();
    // One batch runs, two wait behind it, and one has been answered in part.
    let queued: Vec<_> = (0..4).map(|_| house.place(2)).collect();
    let mut begun = peers[0].must_begin();
    peers[0].start(&mut begun);
    let mut begun = peers[1].must_begin();
    peers[1].run(&mut begun, 1);
    peers[1].publish();
    house.pump();
    let before = [0, 1].map(|number| stats(&house, number));
    drop(
        house
            .lock()
            .end(PoolError::Closed, &TaskError::Cancelled {}),
    );
    for (number, before) in before.iter().enumerate() {
        let after = stats(&house, number);
        // Of those that were begun, the item that was next has failed there.
        assert_eq!((after.pid, after.tasks), (None, before.tasks + 1));
        assert_eq!(after.failures.cancelled, 1);
        assert_eq!(after.failures.total(), 1);
        assert_eq!(after.bytes_sent, before.bytes_sent);
        assert!(after.uptime >= before.uptime && after.uptime > Duration::ZERO);
    }
    let failed: usize = queued.iter().map(|task| task.failures().len()).sum();
    assert_eq!((failed, house.lock().cancelled), (7, 5));
}

#[test]
fn only_what_waits_behind_other_work_counts_as_waiting() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    house.place(1);
    let tick = || {
        let before = clock::last_tick();
        until("the clock ticks", || clock::last_tick() > before);
    };
    tick();
    peer.serve();
    house.pump();
    assert_eq!(stats(&house, 0).queue_wait, Duration::ZERO, "it was next");
    // Two wait in the lane, and the others in the queue.
    for _ in 0..20 {
        house.place(1);
    }
    let begun = peer.must_begin();
    let since = clock::last_tick();
    tick();
    let waited = Duration::from_nanos(clock::last_tick() - since);
    peer.finish(begun);
    house.finish(&mut [&mut peer]);
    let queue_wait = stats(&house, 0).queue_wait;
    assert!(queue_wait >= 19 * waited, "{queue_wait:?} of {waited:?}");
}

#[test]
fn the_timeline_has_the_items_and_the_times_of_each_part_of_a_task() {
    let house = MadeUp::with(1, |settings| {
        settings.timeline = true;
        settings.max_tasks = Some(3);
    });
    let before = clock::now();
    let task = house.place(8);
    let mut pids = Vec::new();
    let mut begins = Vec::new();
    until("the task ends", || {
        let mut peer = house.hire(0);
        pids.push(peer.pid);
        begins.push(clock::now());
        peer.serve();
        house.pump();
        house.reclaim(0, Death::Exit(0));
        task.has_ended()
    });
    let now = clock::now();
    let dispatch = house.lock();
    let since_start = |time| dispatch.recorder.since_start(time);
    let (before, now) = (since_start(before), since_start(now));
    let begins = begins.into_iter().map(since_start);
    let events = dispatch.recorder.snapshot("").events;
    let items: Vec<_> = events.iter().map(|event| event.items).collect();
    assert_eq!(items, [3, 3, 2]);
    for ((event, pid), begins) in events.iter().zip(pids).zip(begins) {
        assert_eq!((event.worker, event.pid), (0, pid));
        assert!(event.completed);
        assert!(before <= event.queued && event.queued <= begins);
        assert!(begins <= event.started && event.started <= event.ended);
        assert!(event.ended <= now);
    }
    assert!(
        events
            .windows(2)
            .all(|pair| pair[0].ended <= pair[1].started)
    );
}

#[test]
fn a_worker_gets_a_context_once_and_is_told_when_it_may_forget_it() {
    const LEN: usize = 1_000;
    let house = MadeUp::new(1);
    let retired = &house.shared.retired;
    let context = SentContext::new(vec![1; LEN], KeptHandles::default(), retired);
    let place = |context: &std::sync::Arc<SentContext>| {
        house.place_with(1, |task| {
            task.function.context = Some(context.clone());
            task.limits.set(|given| given.timeout = None);
        })
    };
    let sent = || {
        let dispatch = house.lock();
        dispatch.workers[0].as_ref().unwrap().bytes_sent
    };
    for _ in 0..2 {
        // Each worker in this place gets the context once.
        let mut peer = house.hire(0);
        let tasks = [(); 3].map(|()| place(&context));
        assert_eq!(sent(), (40 + LEN as u64) + 3 * 41);
        house.finish(&mut [&mut peer]);
        assert!(tasks.iter().all(|task| task.failures().is_empty()));
        house.reclaim(0, Death::Exit(0));
    }
    let mut peer = house.hire(0);
    let (task, other) = (place(&context), house.place(1));
    house.finish(&mut [&mut peer]);
    let before = sent();
    drop((task, other));
    house.pump();
    assert_eq!(sent(), before, "it is still needed");
    drop(context);
    house.pump();
    assert_eq!(sent(), before + 40);
    house.pump();
    assert_eq!(sent(), before + 40, "once");
}

#[test]
fn a_worker_without_a_task_is_asked_to_ring_if_more_is_to_come_or_it_is_stalled() {
    let rings = |peer: &Peer| peer.lane.header().takes_any_bell();
    // The rest of a message that was taken back is to come.
    let house = MadeUp::new(1);
    let peer = house.hire(0);
    let large = house.place(200_000);
    let which = (large.address(), large.count);
    assert!(house.lock().withdraw(&house.shared, which, false));
    house.lock().ask_for_bell();
    assert!(rings(&peer), "it has read nothing of it");
    // The first worker does not begin with its task, and the other one gets it.
    let house = MadeUp::new(2);
    let stalled = house.hire(0);
    let _task = house.place(1);
    let idle = house.hire(1);
    let now = clock::now();
    for millis in [0, 10, 21] {
        let at = now + nanoseconds(Duration::from_millis(millis));
        house.shared.watch_lanes(&mut house.lock(), at);
    }
    assert_eq!((house.in_flight(0), house.in_flight(1)), (0, 1));
    house.lock().ask_for_bell();
    assert!(rings(&stalled) && rings(&idle));
    let house = MadeUp::new(1);
    let idle = house.hire(0);
    house.lock().ask_for_bell();
    assert!(!rings(&idle));
}

/// An initialiser may take as long as it likes, but a process that is stopped runs none.
#[test]
fn a_limit_ends_a_worker_that_is_stopped_while_it_starts() {
    let child = Child::run(Fate::KilledLater, 0, fault::point);
    assert!(child.is_stopped());
    let house = MadeUp::new(1);
    let peer = house.hire_as(0, child.pid());
    peer.lane.header().set_up();
    let task = house.place_with(1, |task| {
        task.limits.set(|given| given.timeout = Some(SECOND));
    });
    let now = clock::now();
    for millis in (0..1_049).step_by(10) {
        let mut dispatch = house.lock();
        dispatch.stop_overdue(now + nanoseconds(Duration::from_millis(millis)));
    }
    assert_eq!(house.kill_reason(0), None);
    for millis in [1_049, 1_051] {
        let mut dispatch = house.lock();
        dispatch.stop_overdue(now + nanoseconds(Duration::from_millis(millis)));
    }
    assert!(house.kill_reason(0).is_some());
    child.end();
    house.reclaim(0, killed());
    let mut other = house.hire(0);
    house.finish(&mut [&mut other]);
    let limit = SECOND;
    let overdue = TaskError::TimedOut {
        index: None.into(),
        limit,
        attempts: 1,
    };
    assert_eq!(task.failures(), [(0, overdue)]);
}

#[test]
fn the_supervisor_is_called_when_it_has_something_to_do() {
    let rung = |house: &MadeUp| {
        let fds = [house.shared.alarm.as_fd()];
        let rung = wait_readable(&fds, Some(Duration::ZERO)).unwrap();
        house.shared.alarm.silence();
        rung.is_some()
    };
    let house = MadeUp::with(2, |settings| settings.idle_timeout = Some(SECOND));
    let mut peer = house.hire(0);
    assert!(rung(&house), "a worker is idle");
    house
        .lock()
        .let_idle_go(&house.shared, std::time::Instant::now());
    house.place(1);
    assert!(rung(&house), "the first task");
    house.place(1);
    assert!(!rung(&house), "it looks at the lanes by itself");
    peer.serve();
    house.pump();
    assert!(!rung(&house), "it looks at idle workers by itself");
    // The other worker rests, and is called back.
    house.lock().resting[1] = true;
    for _ in 0..2 {
        house.place(1);
    }
    assert!(rung(&house), "a worker is to come back");
    house.lock().resize(&house.shared, 3).unwrap();
    assert!(rung(&house), "workers are to come");
    house.finish(&mut [&mut peer]);
}
