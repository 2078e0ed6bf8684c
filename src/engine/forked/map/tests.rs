//! What a call makes of a child that it has in hand, looked at step by step.

use std::thread;

use super::*;
use crate::{Forked, Pool};

fn one_child() -> Pool<Forked> {
    let builder = Forked::builder().workers(1).allow_threads();
    builder.build().unwrap()
}

#[test]
fn an_item_that_a_child_began_with_before_it_was_killed_as_stalled_is_run_again() {
    let pool = one_child();
    let (engine, plan) = pool.call().plan(Some(1));
    let (mut call, mut tracker) = Call::<u32>::new(engine, plan, 1, true).unwrap();
    let f = |stays: bool| {
        if stays {
            loop {
                thread::park();
            }
        }
        7
    };
    let mut hand = call.hire(&f, &mut [Some(true)], 0).unwrap();
    // It goes on after the look by which it is stalled.
    while hand.child.receiver.header().progress().running().is_none() {
        thread::yield_now();
    }
    hand.has_stalled = true;
    hand.child.kill();
    while !hand.child.has_ended() {
        thread::yield_now();
    }
    call.drain(&mut hand);
    call.bury(&mut hand);
    assert_eq!((call.done, call.failed, call.fruitless), (0, 0, 0));
    call.run(&f, &mut [Some(false)], &mut tracker).unwrap();
    assert_eq!(call.outcomes(None), [Ok(7)]);
}

#[test]
fn an_item_whose_function_has_ended_is_not_run_again() {
    let pool = one_child();
    let limited = pool.call().timeout(Duration::from_mins(1));
    let (engine, plan) = limited.plan(Some(1));
    let (mut call, _tracker) = Call::<Vec<u8>>::new(engine, plan, 1, true).unwrap();
    // The lane has no room for it: the child waits.
    let f = |len: usize| vec![7; len];
    let mut hand = call.hire(&f, &mut [Some(10_000_000)], 0).unwrap();
    while !hand.child.has_run() {
        thread::yield_now();
    }
    hand.has_stalled = true;
    hand.child.kill();
    while !hand.child.has_ended() {
        thread::yield_now();
    }
    call.drain(&mut hand);
    call.bury(&mut hand);
    assert_eq!((call.done, call.failed), (1, 1));
}
