use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Event, RwLock, Semaphore, TryLockError};
use manyhands::{SharedValue, shm::ShareError};

use crate::common::{Leftovers, Sleeper, eventually};
use crate::{LONG, SHORT, await_all, join_all, kill, stay};

#[test]
fn b56_there_are_as_many_permits_as_were_made() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(3).unwrap();
    let permits: Vec<_> = (0..3).map(|_| semaphore.try_acquire().unwrap()).collect();
    assert!(semaphore.try_acquire().is_none());
    assert_eq!(semaphore.available(), 0);
    drop(permits);
    assert_eq!(semaphore.available(), 3);
    assert!(semaphore.try_acquire_many(4).is_none());
    assert_eq!(semaphore.try_acquire_many(3).unwrap().count(), 3);
    assert_eq!(semaphore.acquire_many(0).count(), 0);
    let too_many = Semaphore::new(Semaphore::MAX_PERMITS + 1);
    assert!(matches!(too_many, Err(ShareError::Invalid { .. })));
    let most = Semaphore::new(Semaphore::MAX_PERMITS).unwrap();
    let panics = std::panic::AssertUnwindSafe(|| most.release(1));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(most.available(), Semaphore::MAX_PERMITS);
}

#[test]
fn b56_timeouts_are_kept() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(1).unwrap();
    let permit = semaphore.acquire_timeout(Duration::MAX).unwrap();
    for millis in [0, 1, 20] {
        let (start, timeout) = (Instant::now(), Duration::from_millis(millis));
        assert!(semaphore.acquire_timeout(timeout).is_none());
        assert!(semaphore.acquire_many_timeout(2, timeout).is_none());
        assert!(start.elapsed() >= 2 * timeout);
    }
    thread::scope(|scope| {
        let waiter = scope.spawn(|| semaphore.acquire_timeout(LONG).is_some());
        let for_ever = scope.spawn(|| semaphore.acquire_timeout(Duration::MAX).is_some());
        drop(permit);
        assert!(waiter.join().unwrap() && for_ever.join().unwrap());
    });
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn b56_sixteen_processes_keep_to_the_limit() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(3).unwrap();
    let inside = SharedValue::new([0u32; 2]).unwrap();
    let run = |(semaphore, inside): (Semaphore, SharedValue<[u32; 2]>)| {
        for round in 0..300 {
            let permit = semaphore.acquire_many(1 + round % 2);
            let count = permit.count() as u32;
            inside.update(|[now, most]| [now + count, most.max(now + count)]);
            inside.update(|[now, most]| [now - count, most]);
        }
    };
    let spawn = |_| Process::spawn(run, (semaphore.clone(), inside.clone())).unwrap();
    join_all((0..16).map(spawn).collect::<Vec<_>>());
    let [now, most] = inside.get();
    assert_eq!(now, 0);
    assert!((1..=3).contains(&most), "{most} at a time");
    assert_eq!(semaphore.available(), 3);
}

#[test]
fn b56_permits_of_the_killed_come_back_and_forgotten_ones_do_not() {
    let _none = Leftovers::none();
    let (semaphore, ready) = (Semaphore::new(6).unwrap(), Semaphore::new(0).unwrap());
    let child = Process::spawn(
        |(semaphore, ready): (Semaphore, Semaphore)| {
            let _permit = semaphore.acquire_many(3);
            semaphore.acquire_many(2).forget();
            ready.release(1);
            stay();
        },
        (semaphore.clone(), ready.clone()),
    )
    .unwrap();
    await_all(&ready, 1);
    assert_eq!(semaphore.available(), 1);
    kill(&child);
    assert_eq!(semaphore.available(), 4);
    semaphore.release(2);
    assert_eq!(semaphore.acquire_many(6).count(), 6);
}

#[cfg(not(long_slices))]
#[test]
fn b56_who_waits_for_permits_of_the_killed_gets_them_whoever_their_parent_is() {
    let _none = Leftovers::none();
    let (semaphore, pid) = (Semaphore::new(2).unwrap(), SharedValue::new(0u32).unwrap());
    // The holder's parent does not look after it.
    let parent = Process::spawn(
        |(semaphore, pid): (Semaphore, SharedValue<u32>)| {
            let _child = Process::spawn(
                |(semaphore, pid): (Semaphore, SharedValue<u32>)| {
                    let _permit = semaphore.acquire_many(2);
                    pid.set(std::process::id());
                    stay();
                },
                (semaphore, pid),
            );
            stay();
        },
        (semaphore.clone(), pid.clone()),
    )
    .unwrap();
    eventually("the grandchild has the permits", || pid.get() != 0);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| semaphore.acquire_timeout(LONG).is_some());
        crate::common::kill(pid.get());
        assert!(waiter.join().unwrap());
    });
    kill(&parent);
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn b56_one_that_is_killed_while_it_waits_holds_up_nobody() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(2).unwrap();
    let permit = semaphore.acquire();
    let child = Process::spawn(
        |semaphore: Semaphore| semaphore.acquire_many(2).forget(),
        semaphore.clone(),
    )
    .unwrap();
    eventually("it stands in line", || semaphore.try_acquire().is_none());
    thread::scope(|scope| {
        // Behind it, although there is a permit.
        let waiter = scope.spawn(|| semaphore.acquire_timeout(LONG).is_some());
        kill(&child);
        assert!(waiter.join().unwrap());
    });
    drop(permit);
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn b56_one_that_wants_many_does_not_starve() {
    let _none = Leftovers::none();
    let (semaphore, stop) = (Semaphore::new(4).unwrap(), Event::new().unwrap());
    let run = |(semaphore, stop): (Semaphore, Event)| {
        let mut last = semaphore.acquire();
        while !stop.is_set() {
            // The old permit is given up only when the next one was got, if it was.
            if let Some(next) = semaphore.try_acquire() {
                last = next;
            } else {
                drop(last);
                last = semaphore.acquire();
            }
        }
        drop(last);
    };
    let spawn = |_| Process::spawn(run, (semaphore.clone(), stop.clone())).unwrap();
    let children: Vec<_> = (0..3).map(spawn).collect();
    for _ in 0..20 {
        let permit = semaphore.acquire_many_timeout(4, LONG);
        assert!(permit.is_some(), "others were always served first");
    }
    stop.set();
    join_all(children);
    assert_eq!(semaphore.available(), 4);
}

#[test]
fn b56_more_wait_than_the_line_has_places() {
    let _none = Leftovers::none();
    let (semaphore, got) = (Semaphore::new(0).unwrap(), Semaphore::new(0).unwrap());
    thread::scope(|scope| {
        for i in 0..150 {
            let (semaphore, got) = (&semaphore, &got);
            scope.spawn(move || {
                if i % 10 == 0 {
                    assert!(semaphore.acquire_many_timeout(1_000, SHORT).is_none());
                }
                semaphore.acquire().forget();
                got.release(1);
            });
        }
        for _ in 0..150 {
            semaphore.release(1);
        }
        await_all(&got, 150);
    });
    assert_eq!(semaphore.available(), 0);
}

#[test]
fn b56_a_release_is_a_signal() {
    let _none = Leftovers::none();
    let (there, back) = (Semaphore::new(0).unwrap(), Semaphore::new(0).unwrap());
    let child = Process::spawn(
        |(there, back): (Semaphore, Semaphore)| {
            for _ in 0..1_000 {
                there.acquire().forget();
                back.release(1);
            }
        },
        (there.clone(), back.clone()),
    )
    .unwrap();
    for _ in 0..1_000 {
        there.release(1);
        await_all(&back, 1);
    }
    join_all([child]);
}

/// The child has permits of its own: what a copy gave back, or took out of the world, would be
/// theirs.
#[test]
fn b56_a_forked_childs_copies_of_permits_do_nothing() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(7).unwrap();
    let copies = std::cell::RefCell::new(vec![semaphore.acquire(), semaphore.acquire_many(2)]);
    let forked = Forked::builder().workers(1).allow_threads(true).build();
    let seen = forked.unwrap().map(
        |_: u8| {
            let own = semaphore.acquire_many(2);
            drop(copies.borrow_mut().pop());
            let after_drop = semaphore.available();
            copies.borrow_mut().pop().unwrap().forget();
            let after_forget = semaphore.available();
            drop(own);
            [after_drop, after_forget, semaphore.available()]
        },
        [0],
    );
    assert_eq!(seen.unwrap(), [[2, 2, 4]]);
    assert_eq!(semaphore.available(), 4);
    drop(copies);
    assert_eq!(semaphore.available(), 7, "none was forgotten");
}

fn takes_all((semaphore, lock): (Semaphore, RwLock<u64>)) {
    let _written = lock.write().unwrap();
    let _permits = semaphore.acquire_many(2);
    loop {
        thread::park();
    }
}

#[test]
fn b56_b60_who_only_tries_hears_of_the_dead() {
    let _none = Leftovers::none();
    let (semaphore, lock) = (Semaphore::new(2).unwrap(), RwLock::new(0u64).unwrap());
    let child = Process::spawn(takes_all, (semaphore.clone(), lock.clone())).unwrap();
    eventually("it has taken all", || semaphore.available() == 0);
    // The parent does not wait for the child here, and no thread sleeps at these.
    child.kill().unwrap();
    eventually("its permits are back", || semaphore.try_acquire().is_some());
    eventually("its lock is free", || {
        !matches!(lock.try_read(), Err(TryLockError::WouldBlock))
    });
    child.join().unwrap();
}

#[test]
fn b56_more_permits_than_can_be_are_refused_and_change_nothing() {
    let _none = Leftovers::none();
    let most = Semaphore::MAX_PERMITS;
    match Semaphore::new(most + 1) {
        Err(ShareError::Invalid { value, .. }) => assert_eq!(value, (most + 1).to_string()),
        other => panic!("{other:?}"),
    }
    let semaphore = Semaphore::new(most).unwrap();
    let held = semaphore.acquire_many(10);
    let calls: [&dyn Fn(); 5] = [
        // What is held comes back, and counts.
        &|| semaphore.release(1),
        &|| semaphore.release(most + 1),
        &|| drop(semaphore.acquire_many(most + 1)),
        &|| drop(semaphore.try_acquire_many(most + 1)),
        &|| drop(semaphore.acquire_many_timeout(most + 1, LONG)),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let panics = std::panic::AssertUnwindSafe(call);
        assert!(std::panic::catch_unwind(panics).is_err(), "call {number}");
    }
    assert_eq!(semaphore.available(), most - 10);
    // What is forgotten makes room.
    held.forget();
    semaphore.release(10);
    assert_eq!(semaphore.available(), most);
}

#[test]
fn b56_no_permits_are_to_be_had_also_beside_a_thread_that_waits() {
    let _none = Leftovers::none();
    let (semaphore, sleeper) = (Semaphore::new(1).unwrap(), Sleeper::new());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| sleeper.run(|| semaphore.acquire_many(3).forget()));
        sleeper.is_asleep();
        let none = [
            semaphore.try_acquire_many(0),
            semaphore.acquire_many_timeout(0, Duration::ZERO),
        ];
        let counts = none.map(|permit| permit.map(|permit| permit.count()));
        // The one permit is for the thread that waits.
        let one = semaphore.try_acquire().is_some();
        semaphore.release(2);
        waiter.join().unwrap();
        assert_eq!((counts, one), ([Some(0); 2], false));
    });
    assert_eq!(semaphore.available(), 0);
}
