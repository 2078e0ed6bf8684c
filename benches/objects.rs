//! What a shared object costs: to make it, to use it, to hand it to a worker; and what the death of
//! a process costs that held many.
//!
//! `cargo bench --bench objects`. All contenders take turns within each round. A figure is the
//! median of the rounds.

mod common;

use std::os::fd::AsFd;
use std::time::Instant;

use common::{median, print_machine};
use manyhands::prelude::*;
use manyhands::{SharedValue, shm};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const ROUNDS: usize = 7;

/// Nanoseconds that each of `count` calls takes.
fn each(count: usize, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        call();
    }
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print_machine();
    let pool = Pool::processes(1)?;
    let value = SharedValue::new(0u64)?;
    let text = "eight by".to_owned();
    // The worker keeps the object, as one with a context would.
    pool.map_with(&value, |value, x: u64| value.set(x), 0..10)?;
    let mut lines: Vec<(&str, Vec<f64>)> = [
        "make and drop, 8 bytes",
        "make and drop, 256 KiB",
        "clone and drop a handle",
        "get 8 bytes",
        "update 8 bytes",
        "a task with a number",
        "a task with a string of 8 bytes",
        "a task with a handle",
        "a task that returns a new object",
    ]
    .into_iter()
    .map(|name| (name, Vec::new()))
    .collect();
    let mut burials = Vec::new();
    for _ in 0..ROUNDS {
        let mut figures = vec![
            each(10_000, || drop(SharedValue::new(1u64).unwrap())),
            each(100, || drop(SharedValue::new([0u8; 1 << 17]).unwrap())),
            each(100_000, || drop(value.clone())),
            each(100_000, || {
                std::hint::black_box(value.get());
            }),
            each(100_000, || {
                value.update(|old| old + 1);
            }),
        ];
        figures.push(each(20_000, || {
            pool.submit(|x: u64| x, 1).result().unwrap();
        }));
        figures.push(each(20_000, || {
            pool.submit(|text: String| text.len(), text.clone())
                .result()
                .unwrap();
        }));
        figures.push(each(20_000, || {
            pool.submit(|value: SharedValue<u64>| value.get(), value.clone())
                .result()
                .unwrap();
        }));
        figures.push(each(5_000, || {
            pool.submit(|x: u64| SharedValue::new(x).unwrap(), 1)
                .result()
                .unwrap();
        }));
        for ((_, rounds), figure) in lines.iter_mut().zip(figures) {
            rounds.push(figure);
        }
        burials.push(burial()?);
    }
    println!("{:<36} {:>10}", "", "ns");
    for (name, mut rounds) in lines {
        println!("{name:<36} {:>10.0}", median(&mut rounds));
    }
    println!(
        "{:<36} {:>10.0}",
        "burial of a process with 10,000",
        median(&mut burials)
    );
    Ok(())
}

/// Nanoseconds to reclaim what a killed process held.
fn burial() -> Result<f64, Box<dyn std::error::Error>> {
    let made = SharedValue::new(0u32)?;
    let child = Process::spawn(
        |made: SharedValue<u32>| {
            let held: Vec<_> = (0..10_000u32)
                .map(|n| SharedValue::new(n).unwrap())
                .collect();
            made.set(1);
            while !held.is_empty() {
                std::thread::park();
            }
        },
        made.clone(),
    )?;
    while made.get() == 0 {
        std::thread::yield_now();
    }
    child.kill()?;
    // Readable once it has ended; the time until then is the kernel's.
    let mut ended = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
    poll(&mut ended, PollTimeout::NONE)?;
    let start = Instant::now();
    child.join()?;
    let took = start.elapsed().as_secs_f64() * 1e9;
    let left = shm::usage().objects;
    assert!(left < 10_000, "{left}");
    Ok(took)
}
