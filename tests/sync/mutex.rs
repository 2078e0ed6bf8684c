use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Event, Mutex, PoisonError, Semaphore, TryLockError};

use crate::common::Leftovers;
use crate::{LONG, SHORT, await_all, join_all, kill, stay};

/// Changes the value in two steps, so that a thread or process that comes in between sees it.
fn add_one(mutex: &Mutex<[u64; 2]>) {
    let mut guard = mutex.lock().unwrap();
    guard[0] += 1;
    std::hint::black_box(&mut *guard);
    guard[1] += 1;
    assert_eq!(guard[0], guard[1]);
}

#[test]
fn b53_sixteen_processes_and_four_threads_exclude_each_other() {
    let _none = Leftovers::none();
    let mutex = Mutex::new([0; 2]).unwrap();
    let spawn = |_| {
        let run = |mutex: Mutex<[u64; 2]>| (0..2_000).for_each(|_| add_one(&mutex));
        Process::spawn(run, mutex.clone()).unwrap()
    };
    let children: Vec<_> = (0..16).map(spawn).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..2_000).for_each(|_| add_one(&mutex)));
        }
    });
    join_all(children);
    assert_eq!(*mutex.lock().unwrap(), [40_000; 2]);
}

#[test]
fn b53_a_held_mutex_is_not_to_be_had() {
    let _none = Leftovers::none();
    let mutex = Mutex::new(1u64).unwrap();
    let (ready, go) = (Semaphore::new(0).unwrap(), Event::new().unwrap());
    let child = Process::spawn(
        |(mutex, ready, go): (Mutex<u64>, Semaphore, Event)| {
            let mut guard = mutex.lock().unwrap();
            *guard = 2;
            ready.release(1);
            go.wait();
        },
        (mutex.clone(), ready.clone(), go.clone()),
    )
    .unwrap();
    await_all(&ready, 1);
    assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
    let start = Instant::now();
    let answer = mutex.lock_timeout(SHORT);
    assert!(matches!(answer, Err(TryLockError::TimedOut)), "{answer:?}");
    assert!(start.elapsed() >= SHORT);
    assert!(format!("{mutex:?}").contains("locked"));
    go.set();
    assert_eq!(*mutex.lock_timeout(Duration::MAX).unwrap(), 2);
    join_all([child]);
    assert_eq!(*mutex.try_lock().unwrap(), 2);
    assert_eq!(*mutex.lock_timeout(Duration::ZERO).unwrap(), 2);
}

#[test]
fn b53_locking_twice_is_a_panic_and_no_hang() {
    let _none = Leftovers::none();
    let mutex = Arc::new(Mutex::new(1u64).unwrap());
    let locks_twice = |how: fn(&Mutex<u64>)| {
        let mutex = mutex.clone();
        let thread = thread::spawn(move || {
            let _guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
            how(&mutex);
        });
        *thread.join().unwrap_err().downcast::<&str>().unwrap()
    };
    assert!(locks_twice(|mutex| drop(mutex.lock())).contains("this thread holds"));
    assert!(locks_twice(|mutex| drop(mutex.lock_timeout(LONG))).contains("this thread holds"));
    assert!(mutex.lock().is_err(), "it was held by a panic");
}

#[test]
fn b53_a_forked_childs_copy_of_a_guard_does_nothing() {
    let _none = Leftovers::none();
    let mutex = Mutex::new(1u64).unwrap();
    let forked = Forked::builder().workers(1).allow_threads(true).build();
    let guard = std::cell::RefCell::new(Some(mutex.lock().unwrap()));
    let is_held = forked.unwrap().map(
        |_: u8| {
            let panics = std::panic::AssertUnwindSafe(|| {
                let _guard = guard.borrow_mut().take();
                panic!("with the copy");
            });
            assert!(std::panic::catch_unwind(panics).is_err());
            matches!(mutex.try_lock(), Err(TryLockError::WouldBlock))
        },
        [0],
    );
    assert_eq!(is_held.unwrap(), [true]);
    assert!(!mutex.is_poisoned());
    drop(guard);
    assert!(mutex.try_lock().is_ok());
}

#[test]
fn b53_a_guard_that_outlives_its_handle_does_no_harm() {
    let _none = Leftovers::none();
    // In a child: what was forgotten is only given up by its end.
    let child = Process::spawn(
        |()| {
            // The C library's list of what a thread holds goes through all of these.
            for round in 0..50 {
                let before = manyhands::shm::usage().objects;
                let small = Mutex::new(1u64).unwrap();
                std::mem::forget(small.lock());
                drop(small);
                let large = Mutex::new([[1u64; 32]; 32]).unwrap();
                std::mem::forget(large.lock());
                drop(large);
                let kept = manyhands::shm::usage().objects - before;
                assert_eq!(kept, 2, "round {round}");
                let other = Mutex::new([7u64; 9]).unwrap();
                assert_eq!(other.lock().unwrap()[3], 7);
            }
        },
        (),
    );
    join_all([child.unwrap()]);
}

fn holds((mutex, ready): (Mutex<[u64; 2]>, Semaphore)) {
    let mut guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    guard[0] += 1;
    ready.release(1);
    stay();
}

#[test]
fn b54_the_next_owner_gets_what_a_killed_one_held() {
    let _none = Leftovers::none();
    let (mutex, ready) = (Mutex::new([0; 2]).unwrap(), Semaphore::new(0).unwrap());
    for round in 1..=3 {
        let child = Process::spawn(holds, (mutex.clone(), ready.clone())).unwrap();
        await_all(&ready, 1);
        assert!(!mutex.is_poisoned(), "not before it is killed");
        kill(&child);
        // At once: no other process has to notice first.
        let TryLockError::Poisoned(error) = mutex.try_lock().unwrap_err() else {
            panic!("not poisoned");
        };
        let guard = error.into_inner();
        assert_eq!(*guard, [round, round - 1]);
        drop(guard);
        // It stays poisoned until an owner says that the value is in order.
        assert!(mutex.is_poisoned() && mutex.lock().is_err());
        let mut guard = mutex.lock().unwrap_err().into_inner();
        guard[1] += 1;
        mutex.clear_poison();
        drop(guard);
        assert_eq!(*mutex.lock().unwrap(), [round; 2]);
    }
}

#[test]
fn b54_those_who_wait_for_a_killed_owner_are_told() {
    let _none = Leftovers::none();
    let (mutex, ready) = (Mutex::new([0; 2]).unwrap(), Semaphore::new(0).unwrap());
    let child = Process::spawn(holds, (mutex.clone(), ready.clone())).unwrap();
    await_all(&ready, 1);
    let waiter = |(mutex, ready): (Mutex<[u64; 2]>, Semaphore)| {
        ready.release(1);
        assert!(mutex.lock().is_err());
    };
    let spawn = |_| Process::spawn(waiter, (mutex.clone(), ready.clone())).unwrap();
    let waiters: Vec<_> = (0..3).map(spawn).collect();
    await_all(&ready, 3);
    thread::scope(|scope| {
        scope.spawn(|| {
            let answer = mutex.lock_timeout(LONG);
            assert!(matches!(answer, Err(TryLockError::Poisoned(_))));
        });
        kill(&child);
    });
    join_all(waiters);
}

#[test]
fn b55_a_holder_that_panics_poisons() {
    let _none = Leftovers::none();
    let mutex = Mutex::new(0u64).unwrap();
    let panics = |mutex: Mutex<u64>| {
        *mutex.lock().unwrap() = 1;
        let _guard = mutex.lock().unwrap();
        panic!("while it holds");
    };
    let child = Process::spawn(panics, mutex.clone()).unwrap();
    assert_eq!(child.join().unwrap().code(), Some(101));
    assert!(mutex.is_poisoned());
    assert_eq!(**mutex.lock().unwrap_err().get_ref(), 1);
    mutex.clear_poison();
    assert!(mutex.lock().is_ok());
    let copy = mutex.clone();
    assert!(thread::spawn(move || panics(copy)).join().is_err());
    assert!(mutex.is_poisoned());
}

#[test]
fn b54_a_thread_that_tries_to_lock_twice_is_told_that_it_would_wait() {
    let _none = Leftovers::none();
    let mutex = Mutex::new(1u64).unwrap();
    let guard = mutex.lock().unwrap();
    assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
    assert!(format!("{mutex:?}").contains("locked"));
    drop(guard);
    assert!(mutex.try_lock().is_ok());
}

struct LocksInDrop(Mutex<u64>);

impl Drop for LocksInDrop {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

#[test]
fn b55_a_panic_from_before_does_not_poison() {
    let _none = Leftovers::none();
    let mutex = Mutex::new(0u64).unwrap();
    let copy = mutex.clone();
    let thread = thread::spawn(move || {
        let _locks = LocksInDrop(copy);
        panic!("without the lock");
    });
    assert!(thread.join().is_err());
    assert_eq!(*mutex.lock().unwrap(), 1);
}
