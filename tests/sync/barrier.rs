use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Barrier, BarrierError, BarrierWaitResult, Event, Semaphore};
use manyhands::{SharedValue, shm::ShareError};

use crate::common::{self, Leftovers, eventually};
use crate::{LONG, SHORT, await_all, join_all, kill, stay};

/// In which pass each of the parties is, and, in the last place, how many have led one.
type Steps = SharedValue<[u32; 17]>;

fn march((barrier, steps, own, passes): (Barrier, Steps, usize, u32)) {
    for pass in 0..passes {
        steps.update(|mut steps| {
            assert_eq!(steps[own], pass);
            steps[own] += 1;
            steps
        });
        let outcome = barrier.wait().unwrap();
        assert!(outcome.index() < barrier.parties());
        let here = steps.get();
        let is_in_step = |step: &u32| *step > pass && (*step <= pass + 2 || *step == u32::MAX);
        assert!(here[..16].iter().all(is_in_step), "pass {pass}: {here:?}");
        if outcome.is_leader() {
            steps.update(|mut steps| {
                steps[16] += 1;
                steps
            });
        }
    }
}

fn lockstep(parties: usize, passes: u32) {
    let barrier = Barrier::new(parties).unwrap();
    let mut start = [u32::MAX; 17];
    start[..parties].fill(0);
    start[16] = 0;
    let steps = SharedValue::new(start).unwrap();
    let spawn = |own| {
        let argument = (barrier.clone(), steps.clone(), own, passes);
        Process::spawn(march, argument).unwrap()
    };
    let children: Vec<_> = (1..parties).map(spawn).collect();
    march((barrier.clone(), steps.clone(), 0, passes));
    join_all(children);
    assert_eq!(steps.get()[16], passes, "one leader in each pass");
    assert_eq!(barrier.waiting(), 0);
}

#[test]
fn b59_five_processes_go_in_lockstep() {
    let _none = Leftovers::none();
    lockstep(5, 1_000);
}

#[test]
fn b59_sixteen_processes_go_in_lockstep() {
    let _none = Leftovers::none();
    lockstep(16, 100);
}

#[test]
fn b59_threads_pass_too_and_no_parties_are_an_error() {
    let _none = Leftovers::none();
    assert!(matches!(Barrier::new(0), Err(ShareError::Invalid { .. })));
    let barrier = Barrier::new(4).unwrap();
    assert_eq!((barrier.parties(), barrier.is_broken()), (4, false));
    for _ in 0..100 {
        let mut passes = thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| barrier.wait().unwrap()));
            threads.map(|thread| thread.join().unwrap())
        });
        passes.sort_by_key(BarrierWaitResult::index);
        assert_eq!(passes.map(|pass| pass.index()), [0, 1, 2, 3]);
        let leaders = passes.map(|pass| pass.is_leader());
        assert_eq!(leaders, [false, false, false, true]);
    }
}

type End = fn(&Barrier);

type Wait = fn(&Barrier) -> Result<BarrierWaitResult, BarrierError>;

/// What a party that comes to a broken barrier hears. If it hears nothing, this fails, and the
/// party is left waiting.
fn told_at_once(barrier: &Barrier, wait: Wait) -> Option<BarrierError> {
    let barrier = barrier.clone();
    let waiter = thread::spawn(move || wait(&barrier));
    eventually("a party is told", || waiter.is_finished());
    waiter.join().unwrap().err()
}

#[test]
fn b59_a_party_that_is_killed_breaks_it_until_it_is_reset() {
    let _none = Leftovers::none();
    for is_waiting in [false, true] {
        let (barrier, ready) = (Barrier::new(3).unwrap(), Semaphore::new(0).unwrap());
        let child = Process::spawn(
            |(barrier, ready, is_waiting): (Barrier, Semaphore, bool)| {
                ready.release(1);
                if is_waiting {
                    let _ = barrier.wait();
                }
                stay();
            },
            (barrier.clone(), ready.clone(), is_waiting),
        )
        .unwrap();
        await_all(&ready, 1);
        let others = usize::from(is_waiting);
        eventually("it waits, if it does", || barrier.waiting() == others);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| barrier.wait());
            eventually("both wait", || barrier.waiting() == 1 + others);
            kill(&child);
            assert_eq!(waiter.join().unwrap(), Err(BarrierError::PartyDied));
        });
        assert!(barrier.is_broken());
        // A party that comes now is told, too.
        let died = Some(BarrierError::PartyDied);
        assert_eq!(told_at_once(&barrier, Barrier::wait), died);
        // It is broken already, so this changes nothing.
        barrier.abort();
        assert_eq!(told_at_once(&barrier, Barrier::wait), died);
        barrier.reset();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| barrier.wait().unwrap());
            }
        });
    }
}

/// A grandchild that has a barrier and stays, and its parent, which joins it when the event is set
/// and ends.
fn with_grandchild(barrier: &Barrier, seen: &Event) -> (Process, u32) {
    let pid = SharedValue::new(0u32).unwrap();
    let parent = Process::spawn(
        |(barrier, pid, seen): (Barrier, SharedValue<u32>, Event)| {
            let child = Process::spawn(
                |(_barrier, pid): (Barrier, SharedValue<u32>)| {
                    pid.set(std::process::id());
                    stay();
                },
                (barrier, pid),
            );
            seen.wait();
            child.unwrap().join().unwrap();
        },
        (barrier.clone(), pid.clone(), seen.clone()),
    );
    eventually("the grandchild is there", || pid.get() != 0);
    (parent.unwrap(), pid.get())
}

#[cfg(not(long_slices))]
#[test]
fn b59_nobody_has_to_look_after_the_killed_party() {
    let _none = Leftovers::none();
    let (barrier, seen) = (Barrier::new(2).unwrap(), Event::new().unwrap());
    let (parent, pid) = with_grandchild(&barrier, &seen);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| barrier.wait());
        eventually("it waits", || barrier.waiting() == 1);
        common::kill(pid);
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::PartyDied));
    });
    seen.set();
    join_all([parent]);
}

#[test]
fn b59_a_party_that_died_before_a_reset_does_not_break_it_after() {
    let _none = Leftovers::none();
    let (barrier, seen) = (Barrier::new(2).unwrap(), Event::new().unwrap());
    let (parent, pid) = with_grandchild(&barrier, &seen);
    common::kill(pid);
    eventually("it is dead", || !common::is_running(pid));
    barrier.reset();
    assert!(!barrier.is_broken());
    seen.set();
    join_all([parent]);
    assert!(!barrier.is_broken());
}

#[test]
fn b59_one_that_ends_in_order_breaks_nothing() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2).unwrap();
    let child = Process::spawn(
        |barrier: Barrier| {
            std::mem::forget(barrier);
            std::process::exit(0)
        },
        barrier.clone(),
    );
    join_all([child.unwrap()]);
    // Forked workers leave without exit handlers.
    let forked = Forked::builder().workers(2).allow_threads(true).build();
    let parties = forked.unwrap().map(|_: u8| barrier.parties(), 0..4);
    assert_eq!(parties.unwrap(), [2; 4]);
    // All are reclaimed by now.
    manyhands::shm::usage();
    assert!(!barrier.is_broken());
    thread::scope(|scope| {
        scope.spawn(|| barrier.wait().unwrap());
        barrier.wait().unwrap();
    });
}

struct CannotBeSent;

impl serde::Serialize for CannotBeSent {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this"))
    }
}

impl<'de> serde::Deserialize<'de> for CannotBeSent {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not this"))
    }
}

#[test]
fn b59_a_party_that_never_was_breaks_nothing() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(1).unwrap();
    // The barrier is held in the child's name when the start fails.
    let child = Process::spawn(
        |_: (Barrier, CannotBeSent)| {},
        (barrier.clone(), CannotBeSent),
    );
    assert!(child.is_err());
    assert!(barrier.wait().is_ok());
}

#[test]
fn b59_one_that_ends_while_its_thread_waits_breaks_it() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2).unwrap();
    let child = Process::spawn(
        |barrier: Barrier| {
            let waiter = barrier.clone();
            thread::spawn(move || waiter.wait());
            while barrier.waiting() == 0 {
                thread::yield_now();
            }
            std::process::exit(0)
        },
        barrier.clone(),
    );
    join_all([child.unwrap()]);
    let died = Some(BarrierError::PartyDied);
    assert_eq!(told_at_once(&barrier, Barrier::wait), died);
}

#[test]
fn b59_one_that_is_late_breaks_it_for_all() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(3).unwrap();
    let child = Process::spawn(
        |barrier: Barrier| assert_eq!(barrier.wait(), Err(BarrierError::TimedOut)),
        barrier.clone(),
    );
    eventually("the other one waits", || barrier.waiting() == 1);
    let start = Instant::now();
    assert_eq!(barrier.wait_timeout(SHORT), Err(BarrierError::TimedOut));
    assert!(start.elapsed() >= SHORT);
    join_all([child.unwrap()]);
    let without_end: Wait = |barrier| barrier.wait_timeout(Duration::MAX);
    let late = Some(BarrierError::TimedOut);
    assert_eq!(told_at_once(&barrier, without_end), late);
    barrier.reset();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| barrier.wait_timeout(LONG).unwrap());
        }
    });
}

#[test]
fn b59_abort_and_reset_let_those_go_who_wait() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2).unwrap();
    let ends: [(End, BarrierError); 2] = [
        (Barrier::abort, BarrierError::Aborted),
        (Barrier::reset, BarrierError::Reset),
    ];
    for (end, reason) in ends {
        for _ in 0..50 {
            thread::scope(|scope| {
                let waiter = scope.spawn(|| barrier.wait());
                eventually("it waits", || barrier.waiting() == 1);
                end(&barrier);
                barrier.reset();
                // A pass that follows at once does not change how the earlier one ended.
                scope.spawn(|| barrier.wait().unwrap());
                barrier.wait().unwrap();
                assert_eq!(waiter.join().unwrap(), Err(reason));
            });
        }
    }
}

#[test]
fn b59_one_that_has_passed_and_ends_in_order_breaks_nothing() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2).unwrap();
    let child = Process::spawn(
        |barrier: Barrier| {
            assert!(barrier.wait().is_ok());
            // It has a handle until its end.
            std::mem::forget(barrier);
        },
        barrier.clone(),
    );
    assert!(barrier.wait_timeout(LONG).is_ok());
    join_all([child.unwrap()]);
    // All are reclaimed by now.
    manyhands::shm::usage();
    assert!(!barrier.is_broken());
    thread::scope(|scope| {
        scope.spawn(|| assert!(barrier.wait_timeout(LONG).is_ok()));
        assert!(barrier.wait_timeout(LONG).is_ok());
    });
}

#[test]
fn b59_more_parties_than_can_be_counted_are_an_error() {
    let _none = Leftovers::none();
    for parties in [0, 1 << 32, usize::MAX] {
        match Barrier::new(parties) {
            Err(ShareError::Invalid { value, .. }) => assert_eq!(value, parties.to_string()),
            other => panic!("{other:?}"),
        }
    }
    let most = Barrier::new(u32::MAX as usize).unwrap();
    assert_eq!((most.parties(), most.waiting()), (u32::MAX as usize, 0));
}

#[test]
fn b59_a_party_with_time_left_hears_what_broke_the_barrier() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(3).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| barrier.wait_timeout(LONG));
        eventually("it waits", || barrier.waiting() == 1);
        barrier.abort();
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::Aborted));
    });
    // The one that comes later is not late: the barrier was broken before its time began.
    let without_time: Wait = |barrier| barrier.wait_timeout(Duration::ZERO);
    assert_eq!(
        told_at_once(&barrier, without_time),
        Some(BarrierError::Aborted)
    );
    // A barrier that is whole again has no reason from before.
    barrier.reset();
    assert_eq!(
        barrier.wait_timeout(Duration::ZERO),
        Err(BarrierError::TimedOut)
    );
}
