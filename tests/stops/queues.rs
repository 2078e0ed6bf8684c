//! Queues in each order, and pipes.

use std::time::Duration;

use manyhands::queue::{Pipe, PopError, PriorityQueue, Stack};
use manyhands::select::wait_ready;
use manyhands::{Process, Queue};

use crate::common::random::Random;
use crate::common::{Leftovers, eventually};
use crate::rounds::{Call, run};

const CAPACITY: usize = 8;

/// An item that can tell whether it is whole. Some lie in the slot, some in memory of their own.
fn item(random: &mut Random) -> Vec<u8> {
    let len = [1, 20, 3_000][random.below(3)];
    vec![random.below(256) as u8; len]
}

fn check(item: &[u8]) {
    assert!(item.iter().all(|byte| *byte == item[0]), "torn");
}

macro_rules! queue {
    ($name:ident, $type:ty, $new:expr, |$queue:ident, $item:ident, $limit:ident| $push:expr, $try_push:expr, $push_timeout:expr) => {
        #[test]
        fn $name() {
            let _none = Leftovers::none();
            let queue: $type = $new;
            let body = |($queue, seed): ($type, u64)| {
                let mut random = Random::new(seed);
                loop {
                    let $item = item(&mut random);
                    let $limit = Duration::from_micros(random.below(300) as u64);
                    match random.below(5) {
                        0 => drop($try_push),
                        1 => drop($push_timeout),
                        2 => drop($queue.try_pop().map(|item| check(&item))),
                        3 => drop($queue.pop_timeout($limit).map(|item| check(&item))),
                        // Nothing waits for ever: there is no other one that pops for certain.
                        _ if $queue.len() < CAPACITY / 2 => drop($push),
                        _ => {}
                    }
                }
            };
            let (pushes, tries, pops, tries_to_pop, waits) = (
                queue.clone(),
                queue.clone(),
                queue.clone(),
                queue.clone(),
                queue.clone(),
            );
            run(
                stringify!($name),
                |seed| Process::spawn(body, (queue.clone(), seed)).unwrap(),
                &[
                    Call::new("push_timeout", move |$limit| {
                        let ($queue, $item) = (&pushes, vec![7; 3_000]);
                        drop($push_timeout);
                    }),
                    Call::new("try_push", move |_| {
                        let ($queue, $item) = (&tries, vec![7; 20]);
                        drop($try_push);
                    }),
                    Call::new("pop_timeout", move |limit| {
                        drop(pops.pop_timeout(limit).map(|item| check(&item)));
                    }),
                    Call::new("try_pop", move |_| {
                        drop(tries_to_pop.try_pop().map(|item| check(&item)));
                    }),
                    Call::new("wait_ready", move |limit| {
                        wait_ready(&[&waits], Some(limit));
                    }),
                ],
            );
            // All that is there comes out, and after it there is room for as many as there ever
            // was.
            eventually("it is empty", || match queue.try_pop() {
                Ok(item) => {
                    check(&item);
                    false
                }
                Err(PopError::Empty) => queue.is_empty(),
                Err(error) => panic!("{error}"),
            });
            for _ in 0..CAPACITY {
                let ($queue, $item) = (&queue, vec![1; 3_000]);
                ($try_push).unwrap();
            }
        }
    };
}

queue!(
    queue,
    Queue<Vec<u8>>,
    Queue::bounded(CAPACITY).unwrap(),
    |queue, item, limit| queue.push(item),
    queue.try_push(item),
    queue.push_timeout(item, limit)
);
queue!(
    stack,
    Stack<Vec<u8>>,
    Stack::bounded(CAPACITY).unwrap(),
    |queue, item, limit| queue.push(item),
    queue.try_push(item),
    queue.push_timeout(item, limit)
);
queue!(
    priority_queue,
    PriorityQueue<Vec<u8>>,
    PriorityQueue::bounded(CAPACITY).unwrap(),
    |queue, item, limit| queue.push(item, 3),
    queue.try_push(item, 3),
    queue.push_timeout(item, 3, limit)
);

#[test]
fn pipe() {
    let _none = Leftovers::none();
    let (sender, receiver) = Pipe::one_way::<Vec<u8>>().unwrap();
    let body = |(sender, seed): (manyhands::queue::Sender<Vec<u8>>, u64)| {
        let mut random = Random::new(seed);
        loop {
            drop(sender.try_send(item(&mut random)));
        }
    };
    let (asked, taken) = (receiver.clone(), receiver.clone());
    let sent = sender.clone();
    run(
        "pipe",
        |seed| Process::spawn(body, (sender.clone(), seed)).unwrap(),
        &[
            Call::new("poll", move |limit| _ = asked.wait_ready_timeout(limit)),
            Call::new("recv_timeout", move |limit| {
                drop(taken.recv_timeout(limit).map(|item| check(&item)));
            }),
            Call::new("send_timeout", move |limit| {
                drop(sent.send_timeout(vec![9; 20], limit));
            }),
        ],
    );
    while let Ok(item) = receiver.try_recv() {
        check(&item);
    }
}
