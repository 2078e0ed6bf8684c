//! What a call costs: from `submit` to the result, hot and after a rest; tasks per second; the
//! start of a pool.
//!
//! `cargo bench --bench latency`. All contenders take turns within each round. A figure is the
//! median of the rounds. The floor is the least that can be done between two threads, or two
//! processes, that spin for 50 µs and then sleep: one word each way, and a caller that sleeps at
//! once when it had to wake the other.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use common::{median, percentile, print_machine, rest, seconds};
use manyhands::engine::StartMethod;
use manyhands::prelude::*;

const ROUNDS: usize = 7;
const SPIN: Duration = Duration::from_micros(50);

/// Two words and two flags: all that a floor needs.
#[derive(Default)]
#[repr(C, align(128))]
struct Slot {
    request: AtomicU64,
    result: AtomicU64,
    worker_sleeps: AtomicU32,
    caller_sleeps: AtomicU32,
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let no_timeout = std::ptr::null::<libc::timespec>();
    // SAFETY: the word outlives the call, and no timeout is given.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, no_timeout) };
}

/// Waits until `word` is no longer `old`: spins, unless told not to, and then sleeps on `sleeps`.
fn wait(word: &AtomicU64, old: u64, sleeps: &AtomicU32, spins: bool) -> u64 {
    let start = Instant::now();
    while spins && start.elapsed() < SPIN {
        for _ in 0..16 {
            let now = word.load(Ordering::Acquire);
            if now != old {
                return now;
            }
            std::hint::spin_loop();
        }
    }
    loop {
        sleeps.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let now = word.load(Ordering::Acquire);
        if now != old {
            sleeps.store(0, Ordering::Relaxed);
            return now;
        }
        futex(sleeps, libc::FUTEX_WAIT, 1);
    }
}

/// Stores a value, and wakes the other side if it sleeps. Returns whether it did.
fn post(word: &AtomicU64, value: u64, sleeps: &AtomicU32) -> bool {
    word.store(value, Ordering::Release);
    fence(Ordering::SeqCst);
    let woke = sleeps.load(Ordering::SeqCst) == 1;
    if woke {
        sleeps.store(0, Ordering::SeqCst);
        futex(sleeps, libc::FUTEX_WAKE, i32::MAX as u32);
    }
    woke
}

const QUIT: u64 = u64::MAX;

fn serve(slot: &Slot) {
    let mut last = 0;
    loop {
        last = wait(&slot.request, last, &slot.worker_sleeps, true);
        if last == QUIT {
            return;
        }
        post(&slot.result, last + 1, &slot.caller_sleeps);
    }
}

fn call(slot: &Slot, request: u64) -> u64 {
    let before = slot.result.load(Ordering::Relaxed);
    let woke = post(&slot.request, request, &slot.worker_sleeps);
    wait(&slot.result, before, &slot.caller_sleeps, !woke)
}

/// A slot that a forked child serves.
struct Served {
    slot: &'static Slot,
    child: libc::pid_t,
}

impl Served {
    fn start() -> Self {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping where the kernel likes.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4_096, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: a page of zeros, which is a valid Slot, and is never unmapped.
        let slot = unsafe { &*memory.cast::<Slot>() };
        // SAFETY: the only other threads are those of pools, asleep; the child takes no locks.
        let child = unsafe { libc::fork() };
        if child == 0 {
            serve(slot);
            // SAFETY: always allowed.
            unsafe { libc::_exit(0) };
        }
        Self { slot, child }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        post(&self.slot.request, QUIT, &self.slot.worker_sleeps);
        // SAFETY: our child, waited for once.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

struct Contender<'a> {
    name: &'static str,
    /// Which contender it is measured against.
    floor: usize,
    run: Box<dyn FnMut(u64) -> u64 + 'a>,
}

/// Returns p50 and p99 in µs of `calls` calls, each after a rest.
fn round(
    contender: &mut Contender<'_>,
    next: &mut u64,
    calls: usize,
    pause: Option<Duration>,
) -> (f64, f64) {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        if let Some(pause) = pause {
            rest(pause);
        }
        *next += 2;
        let start = Instant::now();
        let result = (contender.run)(*next);
        times.push(start.elapsed().as_secs_f64() * 1e6);
        assert_eq!(result, *next + 1, "{}", contender.name);
    }
    (percentile(&mut times, 50), percentile(&mut times, 99))
}

fn latencies(contenders: &mut [Contender<'_>]) {
    let mut next = 0;
    for (title, calls, pause) in [
        ("submit → result, one after the other, µs", 10_000, None),
        (
            "submit → result, each after 1 ms of rest, µs",
            300,
            Some(Duration::from_millis(1)),
        ),
    ] {
        let mut rounds = vec![Vec::new(); contenders.len()];
        for _ in 0..=ROUNDS {
            for (contender, rounds) in contenders.iter_mut().zip(&mut rounds) {
                // The last one's worker may still be spinning.
                rest(Duration::from_millis(2));
                rounds.push(round(contender, &mut next, calls, pause));
            }
        }
        println!("{title:46} {:>7} {:>7}   p50 / its floor", "p50", "p99");
        for (contender, rounds_of_one) in contenders.iter().zip(&rounds) {
            // The first round warms up.
            let middle = |pick: fn(&(f64, f64)) -> f64| {
                median(&mut rounds_of_one[1..].iter().map(pick).collect::<Vec<_>>())
            };
            let floor = &rounds[contender.floor];
            let ratios = rounds_of_one[1..]
                .iter()
                .zip(&floor[1..])
                .map(|(own, floor)| own.0 / floor.0);
            let ratio = median(&mut ratios.collect::<Vec<_>>());
            println!(
                "  {:44} {:7.2} {:7.2}   {ratio:.2}",
                contender.name,
                middle(|r| r.0),
                middle(|r| r.1)
            );
        }
        println!();
    }
}

const TASKS: u64 = 100_000;

/// Returns million tasks per second, each through a handle of its own.
macro_rules! tasks_per_second {
    ($pool:expr) => {
        TASKS as f64
            / 1e6
            / seconds(|| {
                let tasks: Vec<_> = (0..TASKS)
                    .map(|x| $pool.submit(|x: u64| x + 1, x))
                    .collect();
                let sum: u64 = tasks.into_iter().map(|task| task.result().unwrap()).sum();
                assert_eq!(sum, TASKS * (TASKS + 1) / 2);
            })
    };
}

/// Returns the milliseconds from nothing to the first result of a pool of two.
macro_rules! start {
    ($pool:expr) => {{
        let start = Instant::now();
        let pool = $pool.unwrap();
        assert_eq!(pool.submit(|x: u64| x + 1, 1).result(), Ok(2));
        start.elapsed().as_secs_f64() * 1e3
    }};
}

fn main() {
    print_machine();
    let between_processes = Served::start();
    let threads = Pool::threads(2).unwrap();
    let processes = Pool::processes(2).unwrap();
    let rayon = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();

    let between_threads = Arc::new(Slot::default());
    let server = std::thread::spawn({
        let slot = between_threads.clone();
        move || serve(&slot)
    });
    latencies(&mut [
        Contender {
            name: "floor: two threads, a word each way",
            floor: 0,
            run: Box::new(|x| call(&between_threads, x)),
        },
        Contender {
            name: "floor: two processes, a word each way",
            floor: 1,
            run: Box::new(|x| call(between_processes.slot, x)),
        },
        Contender {
            name: "Pool::threads(2)",
            floor: 0,
            run: Box::new(|x| threads.submit(|x: u64| x + 1, x).result().unwrap()),
        },
        Contender {
            name: "Pool::processes(2)",
            floor: 1,
            run: Box::new(|x| processes.submit(|x: u64| x + 1, x).result().unwrap()),
        },
        Contender {
            name: "rayon: spawn, crossbeam channel back",
            floor: 0,
            run: Box::new(|x| {
                let (sender, receiver) = crossbeam_channel::bounded(1);
                rayon.spawn(move || sender.send(x + 1).unwrap());
                receiver.recv().unwrap()
            }),
        },
    ]);
    post(
        &between_threads.request,
        QUIT,
        &between_threads.worker_sleeps,
    );
    server.join().unwrap();

    let (mut by_threads, mut by_processes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_threads.push(tasks_per_second!(threads));
        by_processes.push(tasks_per_second!(processes));
    }
    println!("{TASKS} tasks, all submitted, then all taken; millions per second");
    println!(
        "  {:44} {:7.2}",
        "Pool::threads(2)",
        median(&mut by_threads)
    );
    println!(
        "  {:44} {:7.2}\n",
        "Pool::processes(2)",
        median(&mut by_processes)
    );

    drop((threads, processes));
    let by_method = |method| {
        let builder = Processes::builder().workers(2).start_method(method);
        // The threads of the rival above are still there.
        builder.allow_threads(true).build()
    };
    let names = [
        "Pool::threads(2)",
        "Pool::processes(2)",
        "the same, StartMethod::Fork",
        "the same, StartMethod::ForkServer",
        "Pool::forked(2)",
    ];
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..3 * ROUNDS {
        times[0].push(start!(Pool::threads(2)));
        times[1].push(start!(Pool::processes(2)));
        times[2].push(start!(by_method(StartMethod::Fork)));
        times[3].push(start!(by_method(StartMethod::ForkServer)));
        times[4].push(start!(
            Forked::builder().workers(2).allow_threads(true).build()
        ));
    }
    println!("from nothing to the first result; two workers, ms");
    for (name, times) in names.into_iter().zip(&mut times) {
        println!("  {name:44} {:7.2}", median(times));
    }
}
