//! Locks and signals.

use std::sync::Arc;
use std::time::Duration;

use manyhands::Process;
use manyhands::sync::{Barrier, Condvar, Event, Mutex, MutexGuard, RwLock, Semaphore};

use crate::common::random::Random;
use crate::common::{DEADLINE, Leftovers, eventually};
use crate::rounds::{Call, run};

const PERMITS: usize = 4;
const MOMENT: Duration = Duration::from_micros(300);

fn moment(random: &mut Random) -> Duration {
    Duration::from_micros(random.below(300) as u64)
}

#[test]
fn semaphore() {
    let _none = Leftovers::none();
    let semaphore = Semaphore::new(PERMITS).unwrap();
    let body = |(semaphore, seed): (Semaphore, u64)| {
        let mut random = Random::new(seed);
        loop {
            let count = 1 + random.below(PERMITS);
            match random.below(3) {
                0 => drop(semaphore.acquire_many(count)),
                1 => drop(semaphore.acquire_many_timeout(count, moment(&mut random))),
                _ => drop(semaphore.try_acquire_many(count)),
            }
        }
    };
    let shared = semaphore.clone();
    let (one, all, tries, adds) = (
        shared.clone(),
        shared.clone(),
        shared.clone(),
        shared.clone(),
    );
    run(
        "semaphore",
        |seed| Process::spawn(body, (semaphore.clone(), seed)).unwrap(),
        &[
            Call::new("acquire_timeout", move |limit| {
                drop(one.acquire_timeout(limit));
            }),
            Call::new("acquire_many_timeout", move |limit| {
                drop(all.acquire_many_timeout(PERMITS, limit));
            }),
            Call::new("try_acquire", move |_| drop(tries.try_acquire())),
            Call::new("release", move |_| adds.release(0)),
        ],
    );
    eventually("all permits are back", || {
        semaphore
            .acquire_many_timeout(PERMITS, Duration::from_millis(50))
            .is_some()
    });
}

/// Both numbers are the same under the lock, unless a writer died half-way.
fn written(both: &mut [u64; 2], is_poisoned: bool) {
    assert!(is_poisoned || both[0] == both[1], "{both:?}");
    both[0] += 1;
    std::hint::black_box(&mut *both);
    both[1] = both[0];
}

fn write(lock: &RwLock<[u64; 2]>) {
    match lock.write() {
        Ok(mut guard) => written(&mut guard, false),
        Err(error) => {
            written(&mut error.into_inner(), true);
            lock.clear_poison();
        }
    }
}

fn lock(mutex: &Mutex<[u64; 2]>) -> MutexGuard<'_, [u64; 2]> {
    let mut guard = mutex.lock().unwrap_or_else(|error| {
        let mut guard = error.into_inner();
        written(&mut guard, true);
        mutex.clear_poison();
        guard
    });
    written(&mut guard, false);
    guard
}

#[test]
fn rwlock() {
    let _none = Leftovers::none();
    let lock = RwLock::new([0_u64; 2]).unwrap();
    let body = |(lock, seed): (RwLock<[u64; 2]>, u64)| {
        let mut random = Random::new(seed);
        loop {
            match random.below(4) {
                0 => write(&lock),
                1 => drop(lock.read()),
                2 => drop(lock.write_timeout(moment(&mut random))),
                _ => drop(lock.try_read()),
            }
        }
    };
    let (read, written, tries, tries_to_write) =
        (lock.clone(), lock.clone(), lock.clone(), lock.clone());
    run(
        "read-write lock",
        |seed| Process::spawn(body, (lock.clone(), seed)).unwrap(),
        &[
            Call::new("read_timeout", move |limit| drop(read.read_timeout(limit))),
            Call::new("write_timeout", move |limit| {
                drop(written.write_timeout(limit));
            }),
            Call::new("try_read", move |_| drop(tries.try_read())),
            Call::new("try_write", move |_| drop(tries_to_write.try_write())),
        ],
    );
    write(&lock);
    write(&lock);
    eventually("it is free", || lock.try_write().is_ok());
}

#[test]
fn mutex_and_condvar() {
    let _none = Leftovers::none();
    let both = (Mutex::new([0_u64; 2]).unwrap(), Condvar::new().unwrap());
    let body = |((mutex, condvar), seed): ((Mutex<[u64; 2]>, Condvar), u64)| {
        let mut random = Random::new(seed);
        loop {
            match random.below(4) {
                0 => drop(lock(&mutex)),
                1 => drop(condvar.wait_timeout(lock(&mutex), moment(&mut random))),
                2 => drop(mutex.lock_timeout(moment(&mut random))),
                _ => condvar.notify_one(),
            }
        }
    };
    let (timed, tries, notifies) = (both.0.clone(), both.0.clone(), both.1.clone());
    // A mutex of its own: the time to get the mutex back does not count.
    let own = Arc::new((Mutex::new(0_u8).unwrap(), both.1.clone()));
    run(
        "mutex and condvar",
        |seed| Process::spawn(body, (both.clone(), seed)).unwrap(),
        &[
            Call::new("lock_timeout", move |limit| drop(timed.lock_timeout(limit))),
            Call::new("try_lock", move |_| drop(tries.try_lock())),
            Call::new("Condvar::wait_timeout", move |limit| {
                drop(own.1.wait_timeout(own.0.lock().unwrap(), limit));
            }),
            Call::new("notify_one", move |_| notifies.notify_one()),
        ],
    );
    drop(lock(&both.0));
    assert!(both.0.try_lock().is_ok());
}

#[test]
fn barrier() {
    let _none = Leftovers::none();
    let barrier = Barrier::new(2).unwrap();
    let body = |(barrier, seed): (Barrier, u64)| {
        let mut random = Random::new(seed);
        loop {
            if barrier.wait_timeout(moment(&mut random)).is_err() {
                barrier.reset();
            }
        }
    };
    let (timed, aborts) = (barrier.clone(), barrier.clone());
    run(
        "barrier",
        |seed| Process::spawn(body, (barrier.clone(), seed)).unwrap(),
        &[
            Call::new("Barrier::wait_timeout", move |limit| {
                let _ = timed.wait_timeout(limit);
            }),
            Call::new("Barrier::abort", move |_| aborts.abort()),
        ],
    );
    barrier.reset();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| barrier.wait_timeout(DEADLINE).unwrap());
        }
    });
}

#[test]
fn event() {
    let _none = Leftovers::none();
    let event = Event::new().unwrap();
    let body = |(event, _): (Event, u64)| {
        loop {
            event.set();
            event.wait();
            event.clear();
            event.wait_timeout(MOMENT);
        }
    };
    let timed = event.clone();
    run(
        "event",
        |seed| Process::spawn(body, (event.clone(), seed)).unwrap(),
        &[Call::new("Event::wait_timeout", move |limit| {
            timed.wait_timeout(limit);
        })],
    );
    event.set();
    assert!(event.wait_timeout(Duration::ZERO));
}
