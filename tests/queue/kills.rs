//! Producers and consumers that are killed at any instruction, and replaced.
//!
//! Each item says which producer made it and as which item, and has a checksum. Producers count
//! what they have pushed in a value that outlives them. Consumers write what they have got to a
//! pipe, and only then say that it is done.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::queue::JoinError;
use manyhands::{
    Queue, SharedValue,
    queue::{PriorityQueue, Stack},
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common::{DEADLINE, Leftovers, kill, may_stop};
use crate::{Result, setting};

/// A queue of whatever order.
trait Line: Serialize + DeserializeOwned + Clone + 'static {
    type Item: Goods;
    /// Whether items of one producer keep their order.
    const IS_ORDERED: bool;
    fn make(capacity: usize) -> Self;
    /// Whether it was pushed; not if the queue is closed.
    fn give(&self, item: Self::Item) -> bool;
    fn get(&self) -> Option<Self::Item>;
    fn done(&self);
    fn end(&self);
    fn wait(&self) -> std::result::Result<(), JoinError>;
}

macro_rules! line {
    ($type:ident, $ordered:literal, |$queue:ident, $item:ident| $push:expr) => {
        impl<T: Goods> Line for $type<T> {
            type Item = T;
            const IS_ORDERED: bool = $ordered;
            fn make(capacity: usize) -> Self {
                $type::bounded(capacity).unwrap()
            }
            fn give(&self, $item: T) -> bool {
                let $queue = self;
                $push
                    .map_err(|error| assert!($queue.is_closed(), "{error}"))
                    .is_ok()
            }
            fn get(&self) -> Option<T> {
                self.pop()
                    .map_err(|error| assert!(self.is_closed(), "{error}"))
                    .ok()
            }
            fn done(&self) {
                self.task_done().unwrap();
            }
            fn end(&self) {
                self.close();
            }
            fn wait(&self) -> std::result::Result<(), JoinError> {
                self.join_timeout(DEADLINE)
            }
        }
    };
}

line!(Queue, true, |queue, item| queue.push(item));
line!(Stack, false, |stack, item| stack.push(item));
line!(PriorityQueue, false, |queue, item| {
    let (_, number) = item.check();
    queue.push(item, (number % 5).cast_signed())
});

/// What is sent.
trait Goods: Serialize + DeserializeOwned + 'static {
    fn of(producer: u64, number: u64) -> Self;
    /// Its producer and number. Panics if it is torn.
    fn check(&self) -> (u64, u64);
}

fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 29
}

impl Goods for u128 {
    fn of(producer: u64, number: u64) -> Self {
        let word = producer << 40 | number;
        Self::from(word) << 64 | Self::from(mix(word))
    }

    fn check(&self) -> (u64, u64) {
        let word = (self >> 64) as u64;
        assert_eq!(*self as u64, mix(word), "torn");
        (word >> 40, word & ((1 << 40) - 1))
    }
}

/// An item with at most this many bytes behind it.
#[derive(Serialize, serde::Deserialize)]
struct Parcel<const MOST: u64>(u64, u64, Vec<u64>);

impl<const MOST: u64> Goods for Parcel<MOST> {
    fn of(producer: u64, number: u64) -> Self {
        let seed = mix(producer << 40 | number);
        Self(
            producer,
            number,
            (0..seed % (MOST / 8)).map(|x| mix(seed + x)).collect(),
        )
    }

    fn check(&self) -> (u64, u64) {
        assert!(Self::of(self.0, self.1).2 == self.2, "torn");
        (self.0, self.1)
    }
}

fn produce<L: Line>((line, producer, count): (L, u64, SharedValue<u64>)) {
    for number in 0.. {
        if !line.give(L::Item::of(producer, number)) {
            return;
        }
        count.set(number + 1);
    }
}

fn consume<L: Line>((line, consumer): (L, u64)) {
    let mut report = File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    while let Some(item) = line.get() {
        let (producer, number) = item.check();
        let mut record = [0; 24];
        for (bytes, word) in record.chunks_mut(8).zip([consumer, producer, number]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        // One write: whole or not at all.
        report.write_all(&record).unwrap();
        line.done();
    }
}

/// What has arrived.
#[derive(Default)]
struct Arrived {
    of: HashMap<u64, Vec<bool>>,
    /// By consumer and producer: the last number.
    last: HashMap<(u64, u64), u64>,
}

impl Arrived {
    fn note<L: Line>(&mut self, [consumer, producer, number]: [u64; 3]) {
        let numbers = self.of.entry(producer).or_default();
        let place = number as usize;
        if numbers.len() <= place {
            numbers.resize(place + 1, false);
        }
        assert!(!numbers[place], "twice: {number} of {producer}");
        numbers[place] = true;
        if L::IS_ORDERED
            && let Some(last) = self.last.insert((consumer, producer), number)
        {
            assert!(last < number, "{number} of {producer} came after {last}");
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
fn rampage<L: Line>(name: &str, capacity: usize, kills: u64, items: u64, seed: u64) -> Result {
    let _none = Leftovers::none();
    println!("{name}: MANYHANDS_SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(mix(state)) % below
    };
    let line = L::make(capacity);
    let (mut reader, writer) = std::io::pipe()?;
    let (mut counts, mut consumers) = (Vec::new(), 0);
    let mut start_producer = || -> std::result::Result<Process, Box<dyn std::error::Error>> {
        let count = SharedValue::new(0u64)?;
        counts.push(count.clone());
        Ok(Process::spawn(
            produce::<L>,
            (line.clone(), counts.len() as u64 - 1, count),
        )?)
    };
    let mut start_consumer =
        |writer: &std::io::PipeWriter| -> std::result::Result<Process, Box<dyn std::error::Error>> {
            consumers += 1;
            let builder = Process::builder().stdout(writer.try_clone()?);
            Ok(builder.spawn(consume::<L>, (line.clone(), consumers))?)
        };
    let received = AtomicU64::new(0);
    let (mut killed, mut killed_consumers) = (0, 0);
    let arrived = std::thread::scope(
        |scope| -> std::result::Result<_, Box<dyn std::error::Error>> {
            let reading = scope.spawn(|| {
                let mut arrived = Arrived::default();
                let mut record = [0; 24];
                while reader.read_exact(&mut record).is_ok() {
                    let word =
                        |n: usize| u64::from_ne_bytes(record[8 * n..8 * n + 8].try_into().unwrap());
                    arrived.note::<L>([word(0), word(1), word(2)]);
                    received.fetch_add(1, Ordering::Relaxed);
                }
                arrived
            });
            let mut producers = (0..3)
                .map(|_| start_producer())
                .collect::<std::result::Result<Vec<_>, _>>()?;
            let mut takers = (0..3)
                .map(|_| start_consumer(&writer))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            let mut last = (0, Instant::now());
            let mut dead = Vec::new();
            while killed < kills || received.load(Ordering::Relaxed) < items {
                let now = received.load(Ordering::Relaxed);
                if now > last.0 {
                    last = (now, Instant::now());
                }
                assert!(
                    last.1.elapsed() < DEADLINE && !reading.is_finished(),
                    "{name}: nothing moves after {killed} kills, seed {seed}"
                );
                std::thread::sleep(Duration::from_micros(random(8_000)));
                let which = random(3) as usize;
                let victim = if random(2) == 0 {
                    std::mem::replace(&mut producers[which], start_producer()?)
                } else {
                    killed_consumers += 1;
                    std::mem::replace(&mut takers[which], start_consumer(&writer)?)
                };
                may_stop(victim.pid(), &mut random);
                kill(victim.pid());
                killed += 1;
                // Half of the dead are joined. Threads that wait find the others.
                if random(2) == 0 {
                    victim.join()?;
                } else {
                    dead.push(victim);
                }
            }
            // The survivors go on.
            let now = received.load(Ordering::Relaxed);
            let start = Instant::now();
            while received.load(Ordering::Relaxed) < now + 200 {
                assert!(
                    start.elapsed() < DEADLINE,
                    "{name}: nothing moves at the end, seed {seed}"
                );
                std::thread::yield_now();
            }
            line.end();
            for child in producers.iter().chain(&takers) {
                let status = child.join_timeout(DEADLINE)?;
                assert!(
                    status.is_some_and(manyhands::process::ExitStatus::success),
                    "{name}: {status:?}, seed {seed}"
                );
            }
            for victim in dead {
                victim.join()?;
            }
            drop(writer);
            Ok(reading.join().unwrap())
        },
    )?;
    let lost = match line.wait() {
        Ok(()) => 0,
        Err(JoinError::Lost { items, .. }) => items,
        Err(error) => panic!("{name}: {error}, seed {seed}"),
    };
    let (mut pushed, mut got, mut missing) = (0, 0, 0);
    for (producer, count) in counts.iter().enumerate() {
        let count = count.get();
        let none = Vec::new();
        let numbers = arrived.of.get(&(producer as u64)).unwrap_or(&none);
        // It may have been killed between the push and the count.
        assert!(
            numbers.len() as u64 <= count + 1,
            "{name}: more than was pushed, seed {seed}"
        );
        let here = numbers.iter().filter(|here| **here).count() as u64;
        pushed += count;
        got += here;
        missing += count.saturating_sub(here);
    }
    println!(
        "{name}: {killed} killed, {killed_consumers} of them consumers; {pushed} items pushed, {got} arrived, {missing} did not, {lost} lost in hand"
    );
    assert!(
        missing <= lost && lost <= killed_consumers,
        "{name}: seed {seed}"
    );
    Ok(())
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    setting("MANYHANDS_SEED", now.unwrap().as_micros() as u64)
}

fn run<L: Line>(name: &str, capacity: usize) -> Result {
    rampage::<L>(
        name,
        capacity,
        setting("MANYHANDS_KILLS", 150),
        setting("MANYHANDS_ITEMS", 5_000),
        seed(),
    )
}

#[test]
fn b64_killed_anywhere_small_items() -> Result {
    run::<Queue<u128>>("small items", 64)
}

#[test]
fn b64_killed_anywhere_a_queue_of_one() -> Result {
    run::<Queue<u128>>("a queue of one", 1)
}

#[test]
fn b64_killed_anywhere_items_with_payloads() -> Result {
    run::<Queue<Parcel<3_000>>>("payloads", 16)
}

#[test]
fn b64_killed_anywhere_large_items() -> Result {
    let items = setting("MANYHANDS_ITEMS", 5_000) / 10;
    let kills = setting("MANYHANDS_KILLS", 150);
    rampage::<Queue<Parcel<200_000>>>("large items", 16, kills, items, seed())
}

#[test]
fn b64_killed_anywhere_stack() -> Result {
    run::<Stack<Parcel<600>>>("stack", 16)
}

#[test]
fn b64_killed_anywhere_priority_queue() -> Result {
    run::<PriorityQueue<Parcel<600>>>("priority queue", 40)
}
