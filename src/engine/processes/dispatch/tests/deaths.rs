//! What a death costs, and what goes to other workers.

use std::sync::atomic::Ordering;

use super::*;
use crate::call::Retry;
use crate::error::PoolError;
use crate::lane::message::Fault;

/// How far a worker has come when it dies.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "all combinations are tried")]
struct Reached {
    /// The number of tasks that the worker has ended, of three with four items each.
    ended: usize,
    /// Whether the worker has begun with the next one, how many of its items it has answered, and
    /// whether it has started one more.
    begun: bool,
    answered: u32,
    started: bool,
    /// Whether the worker has published those answers.
    is_published: bool,
    /// Whether the parent has taken what is published before the death.
    is_taken: bool,
}

fn all_reached() -> Vec<Reached> {
    let mut all = Vec::new();
    for ended in 0..=2 {
        for is_taken in [false, true] {
            let reached = Reached {
                ended,
                begun: false,
                answered: 0,
                started: false,
                is_published: false,
                is_taken,
            };
            all.push(reached);
            for answered in 0..=4 {
                for started in [false, true] {
                    for is_published in [false, true] {
                        if answered < 4 || !started {
                            all.push(Reached {
                                begun: true,
                                answered,
                                started,
                                is_published,
                                ..reached
                            });
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn a_dead_worker_fails_the_item_that_it_had_started_and_no_other() {
    for reached in all_reached() {
        let house = MadeUp::new(2);
        let mut first = house.hire(0);
        let tasks = [4, 4, 4].map(|count| house.place(count));
        for _ in 0..reached.ended {
            let begun = first.must_begin();
            first.finish(begun);
        }
        if reached.begun {
            let mut begun = first.must_begin();
            first.run(&mut begun, reached.answered);
            if reached.is_published {
                first.publish();
            }
            if reached.started {
                first.start(&mut begun);
            }
        }
        if reached.is_taken {
            house.pump();
        }
        house.reclaim(0, segfault());
        let mut second = house.hire(1);
        house.finish(&mut [&mut second]);
        for (nth, task) in tasks.iter().enumerate() {
            let failed = nth == reached.ended && reached.started;
            let expected = (reached.answered, died(&first, segfault(), 1));
            let expected: Vec<_> = failed.then_some(expected).into_iter().collect();
            assert_eq!(task.failures(), expected, "{reached:?}");
            for item in 0..4 {
                assert_eq!(
                    house.runs(task, item),
                    1,
                    "runs of item {item}: {reached:?}"
                );
            }
        }
        let (here, there) = (house.tally(0), house.tally(1));
        let answered = 4 * reached.ended as u64 + u64::from(reached.answered);
        let failed = u64::from(reached.started);
        assert_eq!(here, (answered + failed, failed), "{reached:?}");
        assert_eq!(there, (12 - answered - failed, 0), "{reached:?}");
    }
}

#[test]
fn retries_are_counted_for_each_item_anew() {
    let house = MadeUp::new(1);
    let task = house.place_with(3, |task| {
        task.limits.set(|given| given.retry = Retry::up_to(2));
    });
    let mut last = None;
    // Item 0 succeeds at its third start; items 1 and 2 fail after three.
    let starts = [false, false, true, false, false, false, false, false, false];
    for succeeds in starts {
        let mut peer = house.hire(0);
        let mut begun = peer.must_begin();
        peer.start(&mut begun);
        if succeeds {
            peer.answer(&begun);
        }
        // A worker that dies before it starts an item uses up no attempt.
        house.reclaim(0, segfault());
        if !task.has_ended() {
            let mut idler = house.hire(0);
            idler.must_begin();
            house.reclaim(0, segfault());
        }
        last = Some(peer);
    }
    let last = last.unwrap();
    let failures = task.failures();
    let error = |pid, attempts| TaskError::WorkerDied {
        index: None.into(),
        pid,
        cause: segfault(),
        attempts,
        crash: None,
    };
    let pid_of_1 = match failures[0].1 {
        TaskError::WorkerDied { pid, .. } => pid,
        ref other => panic!("{other}"),
    };
    assert_eq!(failures, [(1, error(pid_of_1, 3)), (2, error(last.pid, 3))]);
    assert_eq!([0, 1, 2].map(|item| house.runs(&task, item)), [3, 3, 3]);
    house.assert_at_rest();
}

#[test]
fn sixteen_false_starts_in_a_row_fail_an_item_and_a_success_resets_the_count() {
    let house = MadeUp::new(1);
    let (task, behind) = (house.place(3), house.place(1));
    let false_start = || {
        let mut peer = house.hire(0);
        peer.must_begin();
        house.reclaim(0, segfault());
        peer
    };
    for _ in 0..15 {
        false_start();
    }
    // Item 0 succeeds. Before item 1, as many false starts may happen again.
    let mut peer = house.hire(0);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 1);
    house.reclaim(0, segfault());
    assert_eq!(task.answered(), 1);
    for _ in 0..14 {
        false_start();
    }
    assert_eq!(task.answered(), 1, "too early");
    // That worker too was at item 1 when it died, and had not started it.
    let last = false_start();
    assert_eq!(task.answered(), 2, "item 1 has failed");
    // Item 2 has its own count, and so has the task that was behind it all the time.
    for _ in 0..15 {
        false_start();
    }
    let mut peer = house.hire(0);
    house.finish(&mut [&mut peer]);
    assert_eq!(task.failures(), [(1, died(&last, segfault(), 16))]);
    assert_eq!(behind.failures(), []);
}

#[test]
fn a_worker_that_was_not_ready_makes_no_false_start() {
    let house = MadeUp::new(1);
    let task = house.place(1);
    for _ in 0..40 {
        house.hire_unready(0);
        house.reclaim(0, segfault());
    }
    let mut peer = house.hire(0);
    house.finish(&mut [&mut peer]);
    assert_eq!(task.failures(), []);
}

#[test]
fn what_a_dead_worker_had_not_begun_comes_first_and_in_order() {
    let house = MadeUp::new(1);
    let mut first = house.hire(0);
    // These are more than a lane takes: some wait in the queue.
    let tasks: Vec<_> = (0..20).map(|_| house.place(2)).collect();
    let mut begun = first.must_begin();
    first.run(&mut begun, 1);
    house.reclaim(0, segfault());
    let mut second = house.hire(0);
    let mut order = Vec::new();
    until("all tasks end", || {
        house.pump();
        while let Some(begun) = second.begin() {
            order.push(begun.code);
            second.finish(begun);
        }
        house.pump();
        house.lock().has_all_ended()
    });
    let codes: Vec<u64> = tasks.iter().map(|task| task.function.code).collect();
    assert_eq!(order, codes);
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
}

#[test]
fn nothing_is_read_from_a_worker_whose_lane_is_corrupted() {
    let house = MadeUp::new(2);
    let mut mad = house.hire(0);
    let (task, begun_too, behind) = (house.place(3), house.place(2), house.place(1));
    let mut begun = mad.must_begin();
    mad.run(&mut begun, 1);
    mad.publish();
    house.pump();
    assert_eq!(task.answered(), 1);
    // An answer comes for a task that the worker does not have, then answers that look right.
    mad.responses.begin(77, 0);
    mad.fault(&Fault::ArgumentDecode("of no task".to_owned()));
    mad.responses.begin(1, 1);
    mad.run(&mut begun, 2);
    mad.responses.end();
    let begun = mad.must_begin();
    mad.finish(begun);
    house.pump();
    assert!(
        house
            .kill_reason(0)
            .is_some_and(|reason| reason.contains("WrongItem"))
    );
    house.reclaim(0, killed());
    let mut other = house.hire(1);
    house.finish(&mut [&mut other]);
    let corrupted = |task: &[(u32, TaskError)], at: u32| {
        let [(item, TaskError::WorkerDied { cause, .. })] = task else {
            panic!("{task:?}");
        };
        assert_eq!(*item, at);
        assert!(matches!(cause, Death::Corrupted(_)), "{cause:?}");
    };
    corrupted(&task.failures(), 1);
    // The worker had begun with this one, and may have run it: it counts as started.
    corrupted(&begun_too.failures(), 0);
    assert_eq!(behind.failures(), []);
    assert_eq!(house.runs(&behind, 0), 1);
}

#[test]
fn out_of_memory_is_told_only_if_limit_word_and_signal_agree() {
    for (limit, word, signal) in [
        (Some(1 << 30), true, 6),
        (Some(1 << 30), true, 11),
        (Some(1 << 30), false, 6),
        (None, true, 6),
    ] {
        let house = MadeUp::with(1, |settings| settings.memory_limit = limit);
        let mut peer = house.hire(0);
        let task = house.place_with(1, |task| {
            task.limits.set(|given| given.retry = Retry::up_to(1));
        });
        for _ in 0..2 {
            let mut begun = peer.must_begin();
            peer.start(&mut begun);
            let said = u32::from(word);
            peer.lane
                .header()
                .out_of_memory()
                .store(said, Ordering::SeqCst);
            house.reclaim(0, Death::Signal(signal));
            if !task.has_ended() {
                peer = house.hire(0);
            }
        }
        let expected = match limit.filter(|_| word && signal == 6) {
            Some(limit) => TaskError::OutOfMemory {
                index: None.into(),
                pid: peer.pid,
                limit,
                attempts: 2,
            },
            None => died(&peer, Death::Signal(signal), 2),
        };
        assert_eq!(task.failures(), [(0, expected)]);
    }
}

#[test]
fn who_is_to_be_told_of_an_end_is_counted_until_then_whatever_it_is() {
    for dies_at in [None, Some(0), Some(1)] {
        let house = MadeUp::new(1);
        let mut peer = house.hire(0);
        let task = house.place_with(2, |task| task.results.is_told = true);
        assert_eq!(house.lock().told, 1);
        let mut begun = peer.must_begin();
        match dies_at {
            None => peer.finish(begun),
            Some(item) => {
                peer.run(&mut begun, item);
                peer.start(&mut begun);
                house.reclaim(0, segfault());
                peer = house.hire(0);
                let has_ended = item == 1;
                assert_eq!(house.lock().told, usize::from(!has_ended));
            }
        }
        house.finish(&mut [&mut peer]);
        assert_eq!(task.failures().len(), usize::from(dies_at.is_some()));
    }
}

#[test]
fn the_timeline_says_that_a_task_did_not_come_to_its_end() {
    let house = MadeUp::with(1, |settings| settings.timeline = true);
    let mut peer = house.hire(0);
    let tasks = [house.place(1), house.place(1), house.place(1)];
    let begun = peer.must_begin();
    peer.finish(begun);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    house.reclaim(0, segfault());
    // A worker that has begun with nothing leaves no event.
    house.hire(0);
    house.reclaim(0, segfault());
    let mut last = house.hire(0);
    house.finish(&mut [&mut last]);
    let timeline = house.lock().recorder.snapshot("made-up");
    let events: Vec<_> = timeline
        .events
        .iter()
        .map(|event| (event.pid, event.completed))
        .collect();
    assert_eq!(
        events,
        [(peer.pid, true), (peer.pid, false), (last.pid, true)]
    );
    assert_eq!(tasks[1].failures().len(), 1);
}

#[test]
fn a_place_that_rests_is_filled_when_the_last_worker_dies_with_work() {
    let house = MadeUp::new(2);
    let mut peer = house.hire(0);
    house.place(1);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let task = house.place(1);
    house.lock().resting[1] = true;
    house.reclaim(0, segfault());
    assert!(house.lock().is_wanted(1), "no worker comes for the task");
    let mut other = house.hire(1);
    house.finish(&mut [&mut other]);
    assert_eq!(task.failures(), []);
}

#[test]
fn the_end_of_a_pool_fails_what_is_open_once_and_tells_those_who_wait() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let tasks: Vec<_> = (0..20).map(|_| house.place(3)).collect();
    let begun = peer.must_begin();
    peer.finish(begun);
    let mut begun = peer.must_begin();
    peer.run(&mut begun, 2);
    peer.publish();
    house.pump();
    let (signal, seen) = {
        let dispatch = house.lock();
        (dispatch.all_ended.clone(), dispatch.all_ended.count())
    };
    let reason = PoolError::Broken {
        reason: "a test".to_owned(),
    };
    let error = TaskError::from(reason.clone());
    drop(house.lock().end(reason, &error));
    assert!(signal.count() > seen, "who waits for the end was not told");
    assert_eq!(tasks[0].failures(), []);
    assert_eq!(tasks[1].failures(), [(2, error.clone())]);
    for task in &tasks[2..] {
        let all: Vec<_> = (0..3).map(|item| (item, error.clone())).collect();
        assert_eq!(task.failures(), all);
    }
    house.assert_at_rest();
}

#[test]
fn an_idle_worker_that_dies_is_given_nothing() {
    let house = MadeUp::new(2);
    let (_dead, mut other) = (house.hire(0), house.hire(1));
    // The worker that was idle last is the first choice.
    house.lock().idle = vec![1, 0];
    house.reclaim(0, killed());
    assert_eq!(house.lock().idle, [1]);
    let tasks = [house.place(1), house.place(1)];
    house.finish(&mut [&mut other]);
    assert!(tasks.iter().all(|task| task.failures().is_empty()));
}

#[test]
fn the_end_of_a_pool_is_told_also_while_a_call_goes_on() {
    let house = MadeUp::new(1);
    house.hire(0);
    house.lock().calls = 1;
    let signal = house.lock().all_ended.clone();
    let error = PoolError::Closed;
    drop(house.lock().end(error.clone(), &TaskError::from(error)));
    assert_eq!(signal.count(), 1);
}
