//! Arrays, and the ledger of all objects.

use std::time::Duration;

use manyhands::{Process, Queue, SharedArray, SharedValue, shm::ShareError};

use crate::common::random::Random;
use crate::common::{Leftovers, eventually};
use crate::rounds::{Call, run};

/// How long it takes to give up making an object.
const GIVES_UP: Duration = Duration::from_secs(2);

const LEN: usize = 9;

#[test]
fn array() {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(LEN).unwrap();
    let body = |(array, seed): (SharedArray<u64>, u64)| {
        let mut random = Random::new(seed);
        loop {
            let start = random.below(LEN);
            match random.below(6) {
                0 => drop(array.try_read_range(start..)),
                1 => drop(array.write_range_timeout(start.., Duration::from_micros(100))),
                2 => drop(array.set(start, 7)),
                3 => drop(array.get(start)),
                4 => drop(array.try_atomics()),
                _ => drop(array.to_vec()),
            }
        }
    };
    let copies = [(); 6].map(|()| array.clone());
    let [reads, writes, timed, sets, gets, asks] = copies;
    run(
        "array",
        |seed| Process::spawn(body, (array.clone(), seed)).unwrap(),
        &[
            Call::new("read_timeout", move |limit| drop(timed.read_timeout(limit))),
            Call::new("write_timeout", move |limit| {
                drop(writes.write_timeout(limit));
            }),
            Call::new("read", move |_| drop(reads.try_read())),
            Call::new("set", move |_| drop(sets.set(1, 2))),
            Call::new("get", move |_| drop(gets.get(1))),
            Call::new("is_poisoned", move |_| {
                asks.is_poisoned();
            }),
        ],
    );
    eventually("nothing is claimed", || array.try_write().is_ok());
}

/// Objects are made and dropped. No child sends a handle: one in a message that is being written
/// when its writer is killed keeps its object.
#[test]
fn ledger() {
    let _none = Leftovers::none();
    let body = |seed: u64| {
        let mut random = Random::new(seed);
        loop {
            match random.below(3) {
                0 => drop(SharedArray::<u8>::zeros(100)),
                // Large ones are reserved and given back with the ledger unlocked.
                1 => drop(SharedArray::<u8>::zeros(1 << 20)),
                _ => {
                    let queue = Queue::<Vec<u8>>::bounded(2);
                    // With memory of its own, which goes with the queue.
                    drop(queue.map(|queue| queue.try_push(vec![1; 5_000])));
                }
            }
        }
    };
    let handles = Queue::<SharedValue<u64>>::bounded(8).unwrap();
    let (event, kept) = (
        manyhands::sync::Event::new().unwrap(),
        SharedValue::new(5_u64).unwrap(),
    );
    run(
        "ledger",
        |seed| Process::spawn(body, seed).unwrap(),
        &[
            Call::new("Event::wait_timeout beside it", move |limit| {
                event.wait_timeout(limit);
            }),
            Call::new("SharedValue::get beside it", move |_| {
                assert_eq!(kept.get(), 5);
            }),
            Call::new(
                "SharedArray::zeros and drop",
                |_| match SharedArray::<u8>::zeros(100) {
                    Ok(array) => drop(array),
                    Err(ShareError::Busy { by, .. }) => assert_ne!(by, Some(std::process::id())),
                    Err(error) => panic!("{error}"),
                },
            )
            .with_own_time(GIVES_UP),
            Call::new("try_push and try_pop of a handle", move |_| {
                // A handle travels in memory of its own, and takes the ledger where it arrives.
                if let Ok(value) = SharedValue::new(1) {
                    let _ = handles.try_push(value);
                }
                drop(handles.try_pop());
            })
            .with_own_time(GIVES_UP * 2),
        ],
    );
}
