//! What a queue carries: items per second from one thread to another, and from one process to
//! another.
//!
//! `cargo bench --bench queue`. All contenders take turns within each round. A figure is the median
//! of the rounds. The rivals hand over pointers within one process; they cannot cross into another.
//! All have room for 1,024 items of 8 bytes, 256 of 1 KiB and 8 of 1 MiB.

mod common;

use common::{median, print_machine, seconds};
use manyhands::{
    Process, Queue,
    queue::{PriorityQueue, Receiver, Sender, Stack},
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const ROUNDS: usize = 5;

/// What is sent.
trait Item: Serialize + DeserializeOwned + Send + 'static {
    fn make(number: u64) -> Self;
    fn sum(&self) -> u64;
}

impl Item for u64 {
    fn make(number: u64) -> Self {
        number
    }

    fn sum(&self) -> u64 {
        *self
    }
}

/// As many bytes.
impl<const LEN: usize> Item for Bytes<LEN> {
    fn make(number: u64) -> Self {
        Self(vec![number as u8; LEN])
    }

    fn sum(&self) -> u64 {
        u64::from(self.0[LEN - 1])
    }
}

#[derive(serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
struct Bytes<const LEN: usize>(#[serde(with = "raw")] Vec<u8>);

/// As bytes, not as a list of numbers.
mod raw {
    use serde::{Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Raw;
        impl de::Visitor<'_> for Raw {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Raw)
    }
}

fn expected<T: Item>(count: u64) -> u64 {
    (0..count).map(|number| T::make(number).sum()).sum()
}

/// Returns thousand items per second, from `send` in a thread to `receive` in this one.
fn between_threads<T: Item>(
    count: u64,
    send: impl FnOnce() + Send,
    receive: impl Fn() -> T,
) -> f64 {
    let mut sum = 0;
    let time = seconds(|| {
        std::thread::scope(|scope| {
            scope.spawn(send);
            sum = (0..count).map(|_| receive().sum()).sum();
        });
    });
    assert_eq!(sum, expected::<T>(count));
    count as f64 / time / 1e3
}

fn produce<T: Item>((go, items, count): (Receiver<u8>, Sender<T>, u64)) {
    while go.recv().is_ok() {
        (0..count).for_each(|number| items.send(T::make(number)).unwrap());
    }
}

struct Table {
    names: Vec<&'static str>,
    figures: Vec<Vec<f64>>,
}

impl Table {
    fn note(&mut self, name: &'static str, figure: f64) {
        let place = self.names.iter().position(|known| *known == name);
        let place = place.unwrap_or_else(|| {
            self.names.push(name);
            self.figures.push(Vec::new());
            self.names.len() - 1
        });
        self.figures[place].push(figure);
    }
}

fn measure<T: Item>(title: &str, capacity: usize, count: u64) {
    let mut table = Table {
        names: Vec::new(),
        figures: Vec::new(),
    };
    let (items, from_child) = Queue::<T>::bounded(capacity).unwrap().split();
    let (go, started) = Queue::<u8>::bounded(1).unwrap().split();
    let child = Process::spawn(produce::<T>, (started, items, count)).unwrap();
    for _ in 0..=ROUNDS {
        let (sender, receiver) = Queue::<T>::bounded(capacity).unwrap().split();
        let send = move || (0..count).for_each(|number| sender.send(T::make(number)).unwrap());
        table.note(
            "Queue, thread → thread",
            between_threads(count, send, || receiver.recv().unwrap()),
        );

        let time = seconds(|| {
            go.send(1).unwrap();
            (0..count).for_each(|_| drop(from_child.recv().unwrap()));
        });
        table.note("Queue, process → process", count as f64 / time / 1e3);

        let stack = Stack::<T>::bounded(capacity).unwrap();
        let send = || (0..count).for_each(|number| stack.push(T::make(number)).unwrap());
        table.note(
            "Stack, thread → thread",
            between_threads(count, send, || stack.pop().unwrap()),
        );

        let queue = PriorityQueue::<T>::bounded(capacity).unwrap();
        let send = || {
            (0..count).for_each(|number| {
                queue
                    .push(T::make(number), (number % 7).cast_signed())
                    .unwrap();
            });
        };
        table.note(
            "PriorityQueue, thread → thread",
            between_threads(count, send, || queue.pop().unwrap()),
        );

        let (sender, receiver) = crossbeam_channel::bounded::<T>(capacity);
        let send = move || (0..count).for_each(|number| sender.send(T::make(number)).unwrap());
        table.note(
            "crossbeam_channel::bounded, thread → thread",
            between_threads(count, send, || receiver.recv().unwrap()),
        );

        let (sender, receiver) = std::sync::mpsc::sync_channel::<T>(capacity);
        let send = move || (0..count).for_each(|number| sender.send(T::make(number)).unwrap());
        table.note(
            "std::sync::mpsc, thread → thread",
            between_threads(count, send, || receiver.recv().unwrap()),
        );
    }
    drop(go);
    assert!(child.join().unwrap().success());
    println!("{title:46} thousand items/s");
    for (name, figures) in table.names.iter().zip(&mut table.figures) {
        // The first round warms up.
        println!("  {name:44} {:10.1}", median(&mut figures[1..]));
    }
    println!();
}

fn main() {
    print_machine();
    measure::<u64>("numbers of 8 bytes", 1_024, 1_000_000);
    measure::<Bytes<1_024>>("items of 1 KiB", 256, 100_000);
    measure::<Bytes<{ 1 << 20 }>>("items of 1 MiB", 8, 1_000);
}
