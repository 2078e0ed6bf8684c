//! Processes that use everything at once, and are killed at random moments.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use manyhands::process::ExitStatus;
use manyhands::sync::{Barrier, Condvar, Event, Mutex, MutexGuard, RwLock, Semaphore};
use manyhands::{Process, SharedValue, shm};
use serde::{Deserialize, Serialize};

use crate::common::{self, Leftovers, eventually};
use crate::{LONG, Random, number};

const CHILDREN: usize = 6;
const PERMITS: usize = 4;
const PARTIES: usize = 3;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shared {
    /// The first is written before the second.
    mutex: Mutex<[u64; 2]>,
    condvar: Condvar,
    rwlock: RwLock<[u64; 8]>,
    semaphore: Semaphore,
    barrier: Barrier,
    event: Event,
    stop: Event,
    /// How many things all processes together have done.
    done: SharedValue<u64>,
}

impl Shared {
    fn new() -> Self {
        Self {
            mutex: Mutex::new([0; 2]).unwrap(),
            condvar: Condvar::new().unwrap(),
            rwlock: RwLock::new([0; 8]).unwrap(),
            semaphore: Semaphore::new(PERMITS).unwrap(),
            barrier: Barrier::new(PARTIES).unwrap(),
            event: Event::new().unwrap(),
            stop: Event::new().unwrap(),
            done: SharedValue::new(0).unwrap(),
        }
    }

    fn repaired<'a>(&self, mut guard: MutexGuard<'a, [u64; 2]>) -> MutexGuard<'a, [u64; 2]> {
        assert!(guard[0] - guard[1] <= 1, "{guard:?}");
        guard[1] = guard[0];
        self.mutex.clear_poison();
        guard
    }

    fn lock(&self) -> MutexGuard<'_, [u64; 2]> {
        let locked = self.mutex.lock();
        let guard = locked.unwrap_or_else(|error| self.repaired(error.into_inner()));
        assert_eq!(guard[0], guard[1], "changed by one who had no lock");
        guard
    }

    fn change(&self) {
        let mut guard = self.lock();
        guard[0] += 1;
        std::hint::black_box(&mut *guard);
        guard[1] += 1;
    }

    fn write(&self) {
        let mut guard = self.rwlock.write().unwrap_or_else(|error| {
            let mut guard = error.into_inner();
            let first = guard[0];
            assert!(guard.iter().all(|number| first - number <= 1), "{guard:?}");
            *guard = [first; 8];
            self.rwlock.clear_poison();
            guard
        });
        for index in 0..8 {
            guard[index] += 1;
            std::hint::black_box(&mut *guard);
        }
    }

    fn read(&self) {
        if let Ok(guard) = self.rwlock.read() {
            assert!(guard.iter().all(|x| *x == guard[0]), "{guard:?}");
        }
    }

    /// One thing, chosen at random, that comes to an end if the others live or die.
    fn act(&self, random: &mut Random) {
        let moment = Duration::from_micros(random.below(2_000) as u64);
        let count = 1 + random.below(PERMITS);
        match random.below(16) {
            0..3 => self.change(),
            3 | 4 => {
                let permit = self.semaphore.acquire_many(count);
                assert!(self.semaphore.available() <= PERMITS - permit.count());
            }
            5 => drop(self.semaphore.acquire_many_timeout(count, moment)),
            6 => drop(self.semaphore.try_acquire_many(count)),
            7 => self.write(),
            8 => self.read(),
            9 => drop(self.rwlock.write_timeout(moment)),
            10 | 11 => {
                if self.barrier.wait_timeout(moment).is_err() {
                    self.barrier.reset();
                }
            }
            12 => {
                let waited = self.condvar.wait_timeout(self.lock(), moment);
                if let Err(error) = waited {
                    drop(self.repaired(error.into_inner().0));
                }
            }
            13 => self.condvar.notify_one(),
            14 => {
                self.event.set();
                self.event.clear();
            }
            _ => {
                self.event.wait_timeout(moment);
            }
        }
        self.done.update(|done| done + 1);
    }
}

fn live((shared, seed): (Shared, u64)) {
    let mut random = Random(seed);
    while !shared.stop.is_set() {
        shared.act(&mut random);
    }
}

fn join_killed(dead: &mut VecDeque<Process>) {
    for child in dead.drain(..) {
        assert_eq!(child.join().unwrap(), ExitStatus::Signal(9));
    }
}

/// Waits until the processes have done this many more things.
fn await_progress(shared: &Shared, things: usize) {
    let (start, before) = (Instant::now(), shared.done.get());
    while shared.done.get() < before + things as u64 {
        assert!(start.elapsed() < LONG, "all are blocked: {shared:#?}");
        std::thread::yield_now();
    }
}

#[test]
fn killed_anywhere_nobody_blocks_and_the_books_balance() {
    let _none = Leftovers::none();
    let seed = number("MANYHANDS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    let kills = number("MANYHANDS_KILLS").unwrap_or(150);
    println!("MANYHANDS_SEED={seed} MANYHANDS_KILLS={kills}");
    let (mut random, mut seeds) = (Random(seed), Random(!seed));
    let objects = shm::usage().objects;
    let shared = Shared::new();
    let mut spawn = || Process::spawn(live, (shared.clone(), seeds.next())).unwrap();
    let mut children: Vec<Process> = (0..CHILDREN).map(|_| spawn()).collect();
    // The parent has not joined these yet: a process that waits for something of theirs has to
    // notice.
    let mut dead = VecDeque::new();
    for _ in 0..kills {
        // Some at their start, most when something has been done since.
        if random.below(8) > 0 {
            await_progress(&shared, 1 + random.below(60));
        }
        let victim = &mut children[random.below(CHILDREN)];
        common::may_stop(victim.pid(), |end| random.below(end as usize) as u64);
        common::kill(victim.pid());
        dead.push_back(std::mem::replace(victim, spawn()));
        if random.below(2) == 0 || dead.len() > 8 {
            join_killed(&mut dead);
        }
    }
    await_progress(&shared, 100);
    shared.stop.set();
    join_killed(&mut dead);
    crate::join_all(children);
    assert_eq!(shared.semaphore.available(), PERMITS);
    assert!(shared.semaphore.try_acquire_many(PERMITS).is_some());
    shared.change();
    shared.write();
    assert!(shared.rwlock.try_write().is_ok());
    shared.read();
    shared.barrier.reset();
    std::thread::scope(|scope| {
        for _ in 0..PARTIES {
            scope.spawn(|| shared.barrier.wait_timeout(LONG).unwrap());
        }
    });
    println!("{} things done", shared.done.get());
    drop(shared);
    assert_eq!(shm::usage().objects, objects);
}

#[expect(clippy::needless_pass_by_value, reason = "a child owns its argument")]
fn hurries(semaphore: Semaphore) {
    loop {
        drop(semaphore.acquire());
    }
}

fn has_one((semaphore, ready): (Semaphore, Semaphore)) {
    let _permit = semaphore.acquire();
    ready.release(1);
    loop {
        std::thread::park();
    }
}

/// A process that is stopped with the semaphore's own lock keeps others from the semaphore, and
/// from nothing else.
#[test]
fn who_is_stopped_keeps_nobody_from_burying_the_dead() {
    let _none = Leftovers::none();
    let (semaphore, ready) = (Semaphore::new(3).unwrap(), Semaphore::new(0).unwrap());
    let busy = Process::spawn(hurries, semaphore.clone()).unwrap();
    let signal = |signal| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(busy.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    for _ in 0..30 {
        let victim = Process::spawn(has_one, (semaphore.clone(), ready.clone())).unwrap();
        ready.acquire().forget();
        signal(nix::sys::signal::Signal::SIGSTOP);
        victim.kill().unwrap();
        let joins = std::thread::spawn(move || victim.join().unwrap());
        eventually("the dead is waited for", || joins.is_finished());
        joins.join().unwrap();
        signal(nix::sys::signal::Signal::SIGCONT);
        // At least two permits are free, once the dead process's is back.
        eventually("its permit is back", || {
            semaphore
                .acquire_many_timeout(2, Duration::from_millis(50))
                .is_some()
        });
    }
    busy.kill().unwrap();
    busy.join().unwrap();
    // A thread that waits reclaims what could not be reclaimed then.
    eventually("all are back", || {
        semaphore
            .acquire_many_timeout(3, Duration::from_millis(50))
            .is_some()
    });
}
