use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Event, RwLock, Semaphore, TryLockError};

use crate::common::{Leftovers, eventually};
use crate::{LONG, SHORT, await_all, join_all, kill, stay};

#[test]
fn b60_sixteen_processes_read_together_and_write_alone() {
    let _none = Leftovers::none();
    let lock = RwLock::new([0u64; 32]).unwrap();
    let run = |lock: RwLock<[u64; 32]>| {
        for round in 0..300 {
            if round % 4 == 0 {
                for number in lock.write().unwrap().iter_mut() {
                    *number += 1;
                }
            } else {
                let numbers = lock.read().unwrap();
                assert!(numbers.iter().all(|number| *number == numbers[0]));
            }
        }
    };
    let spawn = |_| Process::spawn(run, lock.clone()).unwrap();
    let children: Vec<_> = (0..16).map(spawn).collect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| run(lock.clone()));
        }
    });
    join_all(children);
    assert_eq!(*lock.read().unwrap(), [18 * 75; 32]);
}

#[test]
fn b60_readers_do_not_exclude_each_other() {
    let _none = Leftovers::none();
    let (lock, inside) = (RwLock::new(1u8).unwrap(), Semaphore::new(0).unwrap());
    let go = Event::new().unwrap();
    let run = |(lock, inside, go): (RwLock<u8>, Semaphore, Event)| {
        let _guard = lock.read().unwrap();
        inside.release(1);
        go.wait();
    };
    let spawn = |_| Process::spawn(run, (lock.clone(), inside.clone(), go.clone())).unwrap();
    let children: Vec<_> = (0..5).map(spawn).collect();
    await_all(&inside, 5);
    assert!(matches!(lock.try_write(), Err(TryLockError::WouldBlock)));
    assert_eq!(*lock.try_read().unwrap(), 1);
    let start = Instant::now();
    let answer = lock.write_timeout(SHORT);
    assert!(matches!(answer, Err(TryLockError::TimedOut)), "{answer:?}");
    assert!(start.elapsed() >= SHORT);
    go.set();
    *lock.write_timeout(Duration::MAX).unwrap() = 2;
    join_all(children);
    let guard = lock.try_write().unwrap();
    assert!(matches!(lock.try_read(), Err(TryLockError::WouldBlock)));
    let answer = lock.read_timeout(SHORT);
    assert!(matches!(answer, Err(TryLockError::TimedOut)), "{answer:?}");
    drop(guard);
    assert_eq!(*lock.read_timeout(Duration::ZERO).unwrap(), 2);
}

#[test]
fn b60_readers_do_not_starve_writers() {
    let _none = Leftovers::none();
    let (lock, stop) = (RwLock::new(0u64).unwrap(), Event::new().unwrap());
    let run = |(lock, stop): (RwLock<u64>, Event)| {
        let mut last = lock.read().unwrap();
        while !stop.is_set() {
            // The old guard is given up only when the next one was got, if it was.
            if let Ok(next) = lock.try_read() {
                last = next;
            } else {
                drop(last);
                last = lock.read().unwrap();
            }
        }
        drop(last);
    };
    let spawn = |_| Process::spawn(run, (lock.clone(), stop.clone())).unwrap();
    let children: Vec<_> = (0..3).map(spawn).collect();
    for _ in 0..20 {
        let guard = lock.write_timeout(LONG);
        *guard.expect("a writer gets its turn") += 1;
    }
    stop.set();
    join_all(children);
    assert_eq!(*lock.read().unwrap(), 20);
}

fn hold((lock, ready, writes): (RwLock<[u64; 2]>, Semaphore, bool)) {
    if writes {
        let mut guard = lock.write().unwrap();
        guard[0] += 1;
        ready.release(1);
        stay();
    }
    let _guard = lock.read().unwrap();
    ready.release(1);
    stay();
}

#[test]
fn b60_a_killed_reader_is_gone_and_that_is_all() {
    let _none = Leftovers::none();
    let (lock, ready) = (RwLock::new([0; 2]).unwrap(), Semaphore::new(0).unwrap());
    let spawn = |()| Process::spawn(hold, (lock.clone(), ready.clone(), false)).unwrap();
    let [one, two] = [(); 2].map(spawn);
    await_all(&ready, 2);
    thread::scope(|scope| {
        let writer = scope.spawn(|| lock.write_timeout(LONG).unwrap()[0] = 7);
        kill(&one);
        assert!(lock.try_write().is_err());
        kill(&two);
        writer.join().unwrap();
    });
    assert_eq!(*lock.read().unwrap(), [7, 0]);
}

#[test]
fn b60_a_killed_writer_poisons_and_blocks_nobody() {
    let _none = Leftovers::none();
    let (lock, ready) = (RwLock::new([0; 2]).unwrap(), Semaphore::new(0).unwrap());
    let child = Process::spawn(hold, (lock.clone(), ready.clone(), true)).unwrap();
    await_all(&ready, 1);
    thread::scope(|scope| {
        let reader = scope.spawn(|| match lock.read_timeout(LONG) {
            Err(TryLockError::Poisoned(error)) => **error.get_ref(),
            other => panic!("{other:?}"),
        });
        kill(&child);
        assert_eq!(reader.join().unwrap(), [1, 0]);
    });
    assert!(lock.is_poisoned() && lock.write().is_err());
    lock.clear_poison();
    *lock.write().unwrap() = [1; 2];
    assert_eq!(*lock.read().unwrap(), [1; 2]);
}

#[test]
fn b60_a_writer_that_panics_poisons_and_a_reader_does_not() {
    let _none = Leftovers::none();
    let lock = RwLock::new(0u8).unwrap();
    let panics = |lock: RwLock<u8>| {
        let _guard = lock.read().unwrap();
        panic!("while it reads");
    };
    let child = Process::spawn(panics, lock.clone()).unwrap();
    assert_eq!(child.join().unwrap().code(), Some(101));
    *lock.write().unwrap() = 1;
    let panics = |lock: RwLock<u8>| {
        let _guard = lock.write().unwrap();
        panic!("while it writes");
    };
    let child = Process::spawn(panics, lock.clone()).unwrap();
    assert_eq!(child.join().unwrap().code(), Some(101));
    assert!(lock.read().is_err());
    assert!(matches!(lock.try_read(), Err(TryLockError::Poisoned(_))));
}

#[test]
fn b60_a_panic_from_before_does_not_poison() {
    struct WritesInDrop(RwLock<u64>);
    impl Drop for WritesInDrop {
        fn drop(&mut self) {
            *self.0.write().unwrap() += 1;
        }
    }
    let _none = Leftovers::none();
    let lock = RwLock::new(0u64).unwrap();
    let copy = lock.clone();
    let thread = thread::spawn(move || {
        let _writes = WritesInDrop(copy);
        panic!("without the lock");
    });
    assert!(thread.join().is_err());
    assert_eq!(*lock.read().unwrap(), 1);
}

#[test]
fn b60_one_that_is_killed_while_it_waits_to_write_holds_up_nobody() {
    let _none = Leftovers::none();
    let (lock, ready) = (RwLock::new([0; 2]).unwrap(), Semaphore::new(0).unwrap());
    let guard = lock.read().unwrap();
    let child = Process::spawn(hold, (lock.clone(), ready.clone(), true)).unwrap();
    eventually("it waits", || lock.try_read().is_err());
    thread::scope(|scope| {
        let reader = scope.spawn(|| lock.read_timeout(LONG).is_ok());
        kill(&child);
        assert!(reader.join().unwrap());
    });
    drop(guard);
    assert!(lock.try_write().is_ok());
}

/// The child reads, too: what its copy of the guard gave back would be its own permit, and the
/// child would read beside a writer.
#[test]
fn b60_a_forked_childs_copy_of_a_guard_does_nothing() {
    let _none = Leftovers::none();
    let lock = RwLock::new(1u64).unwrap();
    let (dropped, go) = (Event::new().unwrap(), Event::new().unwrap());
    let copy = lock.read().unwrap();
    // SAFETY: the child uses shared objects only, and ends without a return to the harness.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let reads = std::panic::AssertUnwindSafe(|| {
                let own = lock.read().unwrap();
                drop(copy);
                dropped.set();
                assert!(go.wait_timeout(LONG));
                assert_eq!(*own, 1, "no writer was let in");
            });
            let has_failed = std::panic::catch_unwind(reads).is_err();
            // SAFETY: ends the process at once, and touches nothing of it.
            unsafe { libc::_exit(i32::from(has_failed)) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            assert!(dropped.wait_timeout(LONG), "the child has not come so far");
            drop(copy);
            let written = lock.try_write().map(|mut value| *value = 2);
            let is_read = matches!(written, Err(TryLockError::WouldBlock));
            go.set();
            let ended = nix::sys::wait::waitpid(child, None).unwrap();
            assert!(is_read, "a writer was let in beside the child that reads");
            assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            assert!(lock.try_write().is_ok());
        }
    }
}

/// A panic of the child drops its copy of the guard. The lock is its parent's.
#[test]
fn b60_a_forked_childs_copy_of_a_write_guard_neither_unlocks_nor_poisons() {
    let _none = Leftovers::none();
    let lock = RwLock::new(1u64).unwrap();
    let guard = std::cell::RefCell::new(Some(lock.write().unwrap()));
    let forked = Forked::builder().workers(1).allow_threads(true).build();
    let is_held = forked.unwrap().map(
        |_: u8| {
            let panics = std::panic::AssertUnwindSafe(|| {
                let _guard = guard.borrow_mut().take();
                panic!("with the copy");
            });
            assert!(std::panic::catch_unwind(panics).is_err());
            matches!(lock.try_read(), Err(TryLockError::WouldBlock))
        },
        [0],
    );
    assert_eq!(is_held.unwrap(), [true]);
    assert!(!lock.is_poisoned());
    drop(guard);
    assert!(lock.try_write().is_ok());
}
