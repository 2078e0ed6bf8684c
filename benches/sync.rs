//! What locks and signals between processes cost, beside those of one process and those of the C
//! library.
//!
//! `cargo bench --bench sync`. All contenders take turns within each round. A figure is the median
//! of the rounds. A ratio is the median of the ratios within one round. "pthread robust" is the C
//! library's mutex with the attributes that ours has, and with nothing around it: the floor. Where
//! a lock is contended, it is so by two, which do nothing but lock, add one and unlock.

mod common;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::time::Instant;

use common::{median, print_machine};
use manyhands::Process;
use manyhands::sync::{Barrier, Condvar, Event, Mutex, RwLock, Semaphore};

const ROUNDS: usize = 9;
const ALONE: u32 = 200_000;
const CONTENDED: u32 = 1_000_000;
const PASSES: u32 = 5_000;

/// Primitives of the C library, shared between processes.
#[repr(C)]
struct Raw {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    barrier: UnsafeCell<libc::pthread_barrier_t>,
    semaphore: UnsafeCell<libc::sem_t>,
    value: UnsafeCell<u64>,
}

impl Raw {
    /// In memory that a forked child shares. It stays.
    fn new() -> &'static Self {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping where the kernel likes.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4_096, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: a page of zeros, never unmapped. What is in it is initialised below, before it is
        // used.
        let raw = unsafe { &*memory.cast::<Self>() };
        // SAFETY: all zeros is a valid value of this plain struct, until it is initialised.
        let mut attributes: libc::pthread_mutexattr_t = unsafe { std::mem::zeroed() };
        let attributes = &raw mut attributes;
        // SAFETY: room for attributes.
        unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: initialised attributes.
        unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        // SAFETY: as above.
        unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: as above.
        unsafe { libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK) };
        // SAFETY: room for a mutex, and initialised attributes.
        let code = unsafe { libc::pthread_mutex_init(raw.mutex.get(), attributes) };
        assert_eq!(code, 0);
        // SAFETY: as for the other attributes.
        let mut attributes: libc::pthread_barrierattr_t = unsafe { std::mem::zeroed() };
        let attributes = &raw mut attributes;
        // SAFETY: room for attributes.
        unsafe { libc::pthread_barrierattr_init(attributes) };
        // SAFETY: initialised attributes.
        unsafe { libc::pthread_barrierattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        // SAFETY: room for a barrier, and initialised attributes.
        let code = unsafe { libc::pthread_barrier_init(raw.barrier.get(), attributes, 2) };
        assert_eq!(code, 0);
        // SAFETY: room for a semaphore.
        let code = unsafe { libc::sem_init(raw.semaphore.get(), 1, 1) };
        assert_eq!(code, 0);
        raw
    }

    fn add(&self) {
        // SAFETY: an initialised mutex.
        unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        // SAFETY: this thread has the mutex.
        unsafe { *self.value.get() += 1 };
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(self.mutex.get()) };
    }

    fn pass(&self) {
        // SAFETY: an initialised barrier.
        unsafe { libc::pthread_barrier_wait(self.barrier.get()) };
    }

    fn wait_and_post(&self) {
        // SAFETY: an initialised semaphore.
        unsafe { libc::sem_wait(self.semaphore.get()) };
        // SAFETY: as above.
        unsafe { libc::sem_post(self.semaphore.get()) };
    }
}

/// Runs `theirs` in a forked child and `ours` here.
fn with_child(theirs: impl FnOnce(), ours: impl FnOnce()) {
    // SAFETY: no other thread runs, and the child does nothing but what is measured.
    let child = unsafe { libc::fork() };
    if child == 0 {
        theirs();
        // SAFETY: always allowed.
        unsafe { libc::_exit(0) };
    }
    ours();
    // SAFETY: our child, waited for once.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

/// Nanoseconds that `turns` of something take, each.
fn time(turns: u32, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..turns {
        run();
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(turns)
}

struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> f64 + 'a>,
}

fn contender<'a>(name: &'static str, run: impl FnMut() -> f64 + 'a) -> Contender<'a> {
    Contender {
        name,
        run: Box::new(run),
    }
}

/// The first one is what the others are measured against.
fn compare(title: &str, mut contenders: Vec<Contender<'_>>) {
    let mut rounds = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for (contender, times) in contenders.iter_mut().zip(&mut rounds) {
            let time = (contender.run)();
            // The first round warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    println!("{title:50} {:>8}   / the first", "ns");
    for (contender, times) in contenders.iter().zip(&rounds) {
        let ratios = times.iter().zip(&rounds[0]).map(|(own, first)| own / first);
        let ratio = median(&mut ratios.collect::<Vec<_>>());
        let middle = median(&mut times.clone());
        println!("  {:48} {middle:8.1}   {ratio:.2}", contender.name);
    }
    println!();
}

fn alone() {
    let raw = Raw::new();
    let std = std::sync::Mutex::new(0u64);
    let parking = parking_lot::Mutex::new(0u64);
    let mutex = Mutex::new(0u64).unwrap();
    compare(
        "lock, add one, unlock; alone",
        vec![
            contender("pthread robust", || time(ALONE, || raw.add())),
            contender("std::sync::Mutex", || {
                time(ALONE, || *std.lock().unwrap() += 1)
            }),
            contender("parking_lot::Mutex", || {
                time(ALONE, || *parking.lock() += 1)
            }),
            contender("sync::Mutex", || {
                time(ALONE, || *mutex.lock().unwrap() += 1)
            }),
        ],
    );
    let std = std::sync::RwLock::new(0u64);
    let (semaphore, rwlock) = (Semaphore::new(1).unwrap(), RwLock::new(0u64).unwrap());
    let event = Event::new().unwrap();
    event.set();
    compare(
        "get it and give it back; alone",
        vec![
            contender("pthread robust", || time(ALONE, || raw.add())),
            contender("sem_wait, sem_post", || time(ALONE, || raw.wait_and_post())),
            contender("sync::Semaphore", || {
                time(ALONE, || drop(semaphore.acquire()))
            }),
            contender("std::sync::RwLock, read", || {
                time(ALONE, || {
                    std::hint::black_box(*std.read().unwrap());
                })
            }),
            contender("sync::RwLock, read", || {
                time(ALONE, || {
                    std::hint::black_box(*rwlock.read().unwrap());
                })
            }),
            contender("sync::RwLock, write", || {
                time(ALONE, || *rwlock.write().unwrap() += 1)
            }),
            contender("sync::Event, wait for what is set", || {
                time(ALONE, || event.wait())
            }),
        ],
    );
}

/// A child that does something whenever the barrier is passed, until it breaks.
macro_rules! partner {
    ($start:expr, $object:expr, $type:ty, $run:expr) => {
        Process::spawn(
            |(start, object): (Barrier, $type)| {
                let run: fn(&$type) = $run;
                while start.wait().is_ok() {
                    run(&object);
                    let _ = start.wait();
                }
            },
            ($start.clone(), $object.clone()),
        )
        .unwrap()
    };
}

fn add_often(mutex: &Mutex<u64>) {
    for _ in 0..CONTENDED {
        *mutex.lock().unwrap() += 1;
    }
}

fn acquire_often(semaphore: &Semaphore) {
    for _ in 0..CONTENDED / 10 {
        drop(semaphore.acquire());
    }
}

fn pass_often(barrier: &Barrier) {
    for _ in 0..PASSES {
        barrier.wait().unwrap();
    }
}

/// Returns what one turn costs when each of two does many at once, started by a barrier.
fn together(start: &Barrier, turns: u32, run: impl FnOnce()) -> f64 {
    start.wait().unwrap();
    let begin = Instant::now();
    run();
    start.wait().unwrap();
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(turns)
}

fn between_threads(turns: u32, run: impl Fn() + Sync) -> f64 {
    let start = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            run();
        });
        start.wait();
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(turns)
    })
}

fn contended() {
    let raw = Raw::new();
    let std = std::sync::Mutex::new(0u64);
    let parking = parking_lot::Mutex::new(0u64);
    let start = Barrier::new(2).unwrap();
    let (mutex, semaphore) = (Mutex::new(0u64).unwrap(), Semaphore::new(1).unwrap());
    let adds = partner!(start, mutex, Mutex<u64>, add_often);
    let other = Barrier::new(2).unwrap();
    let acquires = partner!(other, semaphore, Semaphore, acquire_often);
    let raw_often = || (0..CONTENDED).for_each(|_| raw.add());
    compare(
        "lock, add one, unlock; two at it, per turn of one",
        vec![
            contender("pthread robust, two processes", || {
                let mut figure = 0.0;
                let measured = || {
                    raw.pass();
                    let begin = Instant::now();
                    raw_often();
                    raw.pass();
                    figure = begin.elapsed().as_secs_f64() * 1e9 / f64::from(CONTENDED);
                };
                let theirs = || {
                    raw.pass();
                    raw_often();
                    raw.pass();
                };
                with_child(theirs, measured);
                figure
            }),
            contender("std::sync::Mutex, two threads", || {
                between_threads(CONTENDED, || {
                    (0..CONTENDED).for_each(|_| *std.lock().unwrap() += 1);
                })
            }),
            contender("parking_lot::Mutex, two threads", || {
                between_threads(CONTENDED, || {
                    (0..CONTENDED).for_each(|_| *parking.lock() += 1);
                })
            }),
            contender("sync::Mutex, two processes", || {
                together(&start, CONTENDED, || add_often(&mutex))
            }),
            contender("sync::Semaphore of one, two processes", || {
                together(&other, CONTENDED / 10, || acquire_often(&semaphore))
            }),
        ],
    );
    start.abort();
    other.abort();
    adds.join().unwrap();
    acquires.join().unwrap();
}

fn rounds() {
    let raw = Raw::new();
    let std = Arc::new(std::sync::Barrier::new(2));
    let (start, barrier) = (Barrier::new(2).unwrap(), Barrier::new(2).unwrap());
    let child = partner!(start, barrier, Barrier, pass_often);
    compare(
        "a barrier is passed by two",
        vec![
            contender("pthread_barrier, two processes", || {
                let mut figure = 0.0;
                let theirs = || (0..=PASSES).for_each(|_| raw.pass());
                with_child(theirs, || {
                    raw.pass();
                    figure = time(PASSES, || raw.pass());
                });
                figure
            }),
            contender("std::sync::Barrier, two threads", || {
                between_threads(PASSES, || {
                    (0..PASSES).for_each(|_| {
                        std.wait();
                    });
                })
            }),
            contender("sync::Barrier, two processes", || {
                together(&start, PASSES, || pass_often(&barrier))
            }),
        ],
    );
    start.abort();
    child.join().unwrap();
}

/// Two threads in turn, each of which waits for the other's notification.
macro_rules! take_turns {
    ($mutex:expr, $condvar:expr) => {{
        let next = std::sync::atomic::AtomicU64::new(0);
        between_threads(PASSES, || {
            let own = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2;
            for _ in 0..PASSES {
                let mut turn = $mutex.lock().unwrap();
                while *turn % 2 != own {
                    turn = $condvar.wait(turn).unwrap();
                }
                *turn += 1;
                drop(turn);
                $condvar.notify_one();
            }
        })
    }};
}

/// Sixteen threads wait until all are notified. Measures the time until the last is up.
macro_rules! wake_all {
    ($mutex:expr, $condvar:expr) => {{
        const WAITERS: u64 = 16;
        *$mutex.lock().unwrap() = 0;
        std::thread::scope(|scope| {
            for _ in 0..WAITERS {
                scope.spawn(|| {
                    let mut state = $mutex.lock().unwrap();
                    *state += 1;
                    while *state < 2 * WAITERS {
                        state = $condvar.wait(state).unwrap();
                    }
                    *state += 1;
                });
            }
            while *$mutex.lock().unwrap() < WAITERS {
                std::thread::yield_now();
            }
            let begin = Instant::now();
            *$mutex.lock().unwrap() = 2 * WAITERS;
            $condvar.notify_all();
            while *$mutex.lock().unwrap() < 3 * WAITERS {
                std::thread::yield_now();
            }
            begin.elapsed().as_secs_f64() * 1e9
        })
    }};
}

fn condvars() {
    let std = (std::sync::Mutex::new(0u64), std::sync::Condvar::new());
    let ours = (Mutex::new(0u64).unwrap(), Condvar::new().unwrap());
    compare(
        "notify_one, without a waiter",
        vec![
            contender("std::sync::Condvar", || time(ALONE, || std.1.notify_one())),
            contender("sync::Condvar", || time(ALONE, || ours.1.notify_one())),
        ],
    );
    compare(
        "wait for a turn, notify the other; two threads, per turn of one",
        vec![
            contender("std::sync::Condvar", || take_turns!(std.0, std.1)),
            contender("sync::Condvar", || take_turns!(ours.0, ours.1)),
        ],
    );
    compare(
        "notify all of 16 threads, until the last is up",
        vec![
            contender("std::sync::Condvar", || wake_all!(std.0, std.1)),
            contender("sync::Condvar", || wake_all!(ours.0, ours.1)),
        ],
    );
}

fn main() {
    print_machine();
    alone();
    contended();
    rounds();
    condvars();
}
