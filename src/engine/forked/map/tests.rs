//! What a call makes of a child that it has, looked at step by step.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;

use super::super::faults::{Words, within};
use super::*;
use crate::error::Corruption;
use crate::{Forked, Pool, Shutdown};

/// How long a condition may take to come true.
const IN_TIME: Duration = Duration::from_secs(20);

fn one_child() -> Pool<Forked> {
    let builder = Forked::builder().workers(1).allow_threads(true);
    builder.build().unwrap()
}

/// Waits for a condition.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < IN_TIME, "this never came true: {what}");
        thread::yield_now();
    }
}

#[test]
fn an_item_that_a_child_began_with_before_it_was_killed_as_stalled_is_run_again() {
    let pool = one_child();
    let (engine, plan) = pool.call().plan(Some(1));
    let (mut call, mut tracker) = Call::<u32>::new(engine, plan, 1, StopsAt::Nothing).unwrap();
    let f = |stays: bool| {
        if stays {
            loop {
                thread::park();
            }
        }
        7
    };
    let mut hand = call.hire(&f, &mut [Some(true)], &[]).unwrap();
    // The child goes on after the look that marks it as stalled.
    while hand.child.receiver.header().progress().running().is_none() {
        thread::yield_now();
    }
    hand.has_stalled = true;
    hand.child.kill();
    while !hand.child.has_ended() {
        thread::yield_now();
    }
    call.drain(&mut hand);
    call.reclaim(&mut hand);
    assert_eq!((call.done, call.failed, call.fruitless), (0, 0, 0));
    call.run(&f, &mut [Some(false)], &mut tracker).unwrap();
    assert_eq!(call.outcomes(None), [Ok(7)]);
}

#[test]
fn an_item_whose_function_has_ended_is_not_run_again() {
    let pool = one_child();
    let limited = pool.call().timeout(Duration::from_secs(60));
    let (engine, plan) = limited.plan(Some(1));
    let (mut call, _tracker) = Call::<Vec<u8>>::new(engine, plan, 1, StopsAt::Nothing).unwrap();
    // The lane has no room for the result: the child waits.
    let f = |len: usize| vec![7; len];
    let mut hand = call.hire(&f, &mut [Some(10_000_000)], &[]).unwrap();
    while !hand.child.has_run() {
        thread::yield_now();
    }
    hand.has_stalled = true;
    hand.child.kill();
    while !hand.child.has_ended() {
        thread::yield_now();
    }
    call.drain(&mut hand);
    call.reclaim(&mut hand);
    assert_eq!((call.done, call.failed), (1, 1));
}

/// The child prints, and waits for its own children, and may take longer for that than for the
/// start of an item.
#[test]
fn a_child_at_its_end_does_not_count_as_stalled() {
    let pool = one_child();
    let (engine, plan) = pool.call().plan(Some(1));
    let (mut call, _tracker) = Call::<u8>::new(engine, plan, 1, StopsAt::Nothing).unwrap();
    call.pause = Duration::from_millis(1);
    let may_end: &Words = Box::leak(Box::new(Words::new()));
    // The child cannot flush its output before that thread releases it.
    let f = |n: u8| {
        let (tell, told) = channel();
        thread::spawn(move || {
            let _output = std::io::stdout().lock();
            tell.send(()).unwrap();
            eventually("the test has looked", || may_end.get(0) == 1);
        });
        told.recv().unwrap();
        n
    };
    let mut hand = call.hire(&f, &mut [Some(1)], &[]).unwrap();
    eventually("it has nothing more to do", || {
        call.drain(&mut hand);
        hand.child.receiver.header().is_done()
    });
    let start = Instant::now();
    while start.elapsed() < 3 * STALLED_AFTER {
        call.check(std::slice::from_mut(&mut hand));
        assert!(!hand.has_stalled && !hand.child.has_ended());
        thread::yield_now();
    }
    may_end.at(0).store(1, Ordering::SeqCst);
    eventually("it has ended", || hand.child.has_ended());
    assert_eq!(hand.child.reap(), Death::Exit(0));
}

#[test]
fn after_a_shutdown_no_child_is_kept_and_no_item_begun() {
    within(IN_TIME, || {
        let runs = Words::new();
        let f = |n: u8| {
            runs.at(0).fetch_add(1, Ordering::SeqCst);
            n
        };
        for how in [Shutdown::CancelQueued, Shutdown::Kill] {
            let pool = one_child();
            let (engine, plan) = pool.call().plan(Some(2));
            let (mut call, mut tracker) =
                Call::<u8>::new(engine, plan, 2, StopsAt::Nothing).unwrap();
            pool.shutdown(how).unwrap();
            if how == Shutdown::Kill {
                // The child was forked in the moment before.
                let hired = call.hire(&f, &mut [Some(1), Some(2)], &[]);
                assert_eq!(hired.err(), Some(TaskError::Cancelled {}));
                runs.at(0).store(0, Ordering::SeqCst);
            }
            let ran = call.run(&f, &mut [Some(1), Some(2)], &mut tracker);
            assert_eq!(ran, Err(TaskError::Cancelled {}));
            assert_eq!(runs.get(0), 0, "{how:?}");
            let outcomes = call.outcomes(ran.err());
            assert_eq!(outcomes, [const { Err(TaskError::Cancelled {}) }; 2]);
        }
    });
}

#[test]
fn an_item_whose_child_a_shutdown_kills_is_cancelled() {
    let pool = one_child();
    let (engine, plan) = pool.call().plan(Some(1));
    let (mut call, _tracker) = Call::<u8>::new(engine, plan, 1, StopsAt::Nothing).unwrap();
    let f = |()| -> u8 {
        loop {
            thread::park();
        }
    };
    let mut hand = call.hire(&f, &mut [Some(())], &[]).unwrap();
    eventually("the item runs", || {
        hand.child.receiver.header().progress().running().is_some()
    });
    pool.shutdown(Shutdown::Kill).unwrap();
    assert!(hand.child.has_ended(), "a shutdown waits for their ends");
    call.drain(&mut hand);
    call.reclaim(&mut hand);
    assert_eq!(call.outcomes(None), [Err(TaskError::Cancelled {})]);
}

#[test]
fn a_child_is_believed_only_about_a_chunk_that_is_open_and_no_others() {
    let pool = one_child();
    let call = pool.call().chunk_size(3);
    let (engine, plan) = call.plan(Some(5));
    let (mut call, _tracker) = Call::<u32>::new(engine, plan, 5, StopsAt::Nothing).unwrap();
    let expected = |call: &Call<'_, u32>, task| {
        let (index, expected) = call.chunk_of(task)?;
        let Expected {
            task, next, end, ..
        } = expected;
        Some((index, task, next, end))
    };
    for none in [None, Some(0), Some(3), Some(u32::MAX)] {
        assert_eq!(expected(&call, none), None, "{none:?}");
    }
    assert_eq!(expected(&call, Some(2)), Some((1, 2, 0, 2)));
    call.note(0, 2, 0);
    assert_eq!(expected(&call, Some(1)), Some((0, 1, 2, 3)));
    call.chunks[0].is_taken = true;
    assert_eq!(expected(&call, Some(1)), None);
    call.chunks[0].is_taken = false;
    call.note(0, 3, 0);
    assert_eq!(expected(&call, Some(1)), None);
    assert_eq!(call.done, 3);
}

#[test]
fn an_item_whose_child_writes_noise_counts_as_begun_and_its_error_says_why() {
    for retries in [0, 1] {
        let pool = one_child();
        let limited = pool.call().retries(retries);
        let (engine, plan) = limited.plan(Some(2));
        let (mut call, mut tracker) = Call::<u8>::new(engine, plan, 2, StopsAt::Nothing).unwrap();
        let f = |stays: bool| {
            if stays {
                loop {
                    thread::park();
                }
            }
            7
        };
        let mut hand = call.hire(&f, &mut [Some(true), Some(false)], &[]).unwrap();
        let pid = hand.child.process().pid();
        eventually("the item runs", || {
            hand.child.receiver.header().progress().running().is_some()
        });
        hand.child.kill_for(Corruption::MessageKind);
        eventually("it was killed", || hand.child.has_ended());
        assert!(!call.drain(&mut hand));
        call.reclaim(&mut hand);
        let chunks = &call.chunks;
        call.list.retain(|&index| !chunks[index].is_finished());
        call.run(&f, &mut [Some(false); 2], &mut tracker).unwrap();
        let died = TaskError::WorkerDied {
            index: Some(0).into(),
            pid,
            cause: Death::Corrupted(Corruption::MessageKind),
            attempts: 1,
            crash: None,
        };
        let first = if retries == 0 { Err(died) } else { Ok(7) };
        assert_eq!(call.outcomes(None), [first, Ok(7)]);
    }
}

#[test]
fn what_is_killed_after_a_failure_is_in_the_timeline() {
    within(IN_TIME, || {
        let has_begun = Words::new();
        let builder = Forked::builder().workers(2).allow_threads(true);
        let pool = builder.timeline(true).build().unwrap();
        let fails = |item: usize| {
            if item == 0 {
                eventually("the other item runs", || has_begun.get(0) == 1);
                panic!("on purpose");
            }
            has_begun.at(0).store(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        };
        let outcome = pool.call().chunk_size(1).map(fails, 0..2);
        assert!(matches!(
            outcome.map(|_: Vec<u8>| ()),
            Err(TaskError::Panicked { .. })
        ));
        let events = pool.timeline().events;
        let mut completed: Vec<_> = events.iter().map(|event| event.completed).collect();
        completed.sort_unstable();
        assert_eq!(completed, [false, true], "{events:?}");
        assert!(events.iter().all(|event| event.items == 1), "{events:?}");
    });
}

/// A child is the shutdown's to kill once it is enlisted, and runs from the moment it is forked.
#[test]
fn a_pool_has_not_ended_before_a_child_that_is_not_enlisted_yet_is_dead() {
    within(IN_TIME, || {
        let has_begun = Words::new();
        let pool = one_child();
        let (engine, _) = pool.call().plan(Some(1));
        let calls = || engine.submitted.are_calls_over();
        thread::scope(|scope| {
            // The parent is held up between the two.
            let held = engine.submitted.accounts.hold();
            let call = scope.spawn(|| {
                pool.map(
                    |_: u8| {
                        has_begun.at(0).store(1, Ordering::SeqCst);
                        loop {
                            thread::park();
                        }
                    },
                    [0],
                )
            });
            eventually("the item runs", || has_begun.get(0) == 1);
            let (tell, told) = channel();
            let end = scope.spawn(move || {
                let ended = engine.submitted.close_by(Some(Instant::now()));
                let are_over = calls();
                let _ = tell.send(());
                (ended.is_ok(), are_over)
            });
            // An end that does not wait for the call comes now.
            let _ = told.recv_timeout(Duration::from_millis(200));
            drop(held);
            assert_eq!(end.join().unwrap(), (true, true));
            let outcome: Result<Vec<u8>, _> = call.join().unwrap();
            assert_eq!(outcome, Err(TaskError::Cancelled {}));
        });
    });
}
