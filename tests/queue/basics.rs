//! Order, limits, large items, counting what is done.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::queue::{JoinError, PopError, PushError};
use manyhands::select::wait_ready;
use manyhands::{
    Queue, SharedValue,
    queue::{PriorityQueue, Stack},
    shm,
};

use crate::common::{DEADLINE, Leftovers, assert_matches, eventually, kill};
use crate::{Result, setting};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn b62_a_full_queue_refuses_or_waits_and_so_does_an_empty_one() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::bounded(2)?;
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    let start = Instant::now();
    assert_eq!(queue.pop_timeout(SHORT), Err(PopError::TimedOut));
    assert!(start.elapsed() >= SHORT);
    queue.push(1)?;
    queue.push(2)?;
    assert!(matches!(queue.try_push(3), Err(PushError::Full(3))));
    let start = Instant::now();
    assert!(matches!(
        queue.push_timeout(3, SHORT),
        Err(PushError::TimedOut(3))
    ));
    assert!(start.elapsed() >= SHORT);
    assert_eq!((queue.len(), queue.capacity()), (2, 2));
    assert_eq!((queue.pop()?, queue.pop()?), (1, 2));
    assert!(queue.is_empty());
    Ok(())
}

#[test]
fn b62_a_wait_ends_when_there_is_room_or_an_item() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::bounded(1)?;
    std::thread::scope(|scope| {
        let popper = scope.spawn(|| queue.pop());
        queue.push(1).unwrap();
        assert_eq!(popper.join().unwrap(), Ok(1));
        queue.push(2).unwrap();
        let pusher = scope.spawn(|| queue.push_timeout(3, DEADLINE));
        assert_eq!(queue.pop(), Ok(2));
        pusher.join().unwrap().unwrap();
        assert_eq!(queue.pop(), Ok(3));
    });
    Ok(())
}

#[test]
fn b62_items_of_one_producer_arrive_in_its_order() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::bounded(16)?.split();
    let producers: Vec<Process> = (0..3)
        .map(|who| {
            let produce = |(who, sender): (u64, manyhands::queue::Sender<(u64, String)>)| {
                for number in 0..2_000u64 {
                    // Some in the slot, some in payloads.
                    sender
                        .send((who, "x".repeat(number as usize % 300) + &number.to_string()))
                        .unwrap();
                }
            };
            Process::spawn(produce, (who, sender.clone()))
        })
        .collect::<std::result::Result<_, _>>()?;
    drop(sender);
    let mut next = [0u64; 3];
    for (who, text) in &receiver {
        let next = &mut next[who as usize];
        assert_eq!(text.trim_start_matches('x'), next.to_string());
        *next += 1;
    }
    assert_eq!(next, [2_000; 3]);
    for producer in producers {
        assert!(producer.join()?.success());
    }
    Ok(())
}

#[test]
fn b63_four_producers_and_four_consumers_each_item_once() -> Result {
    each_item_once(4, 1_024, setting("MANYHANDS_ITEMS", 100_000))
}

#[test]
fn b63_sixteen_processes_on_whatever_cores_there_are() -> Result {
    each_item_once(8, 16, setting("MANYHANDS_ITEMS", 40_000))
}

/// This many producers, and as many consumers.
fn each_item_once(many: u64, capacity: usize, items: u64) -> Result {
    let _none = Leftovers::none();
    let items = items / many * many;
    let (sender, receiver) = Queue::<u64>::bounded(capacity)?.split();
    let (sums, results) = Queue::<(u64, u64, u64)>::bounded(8)?.split();
    let consumers: Vec<Process> = (0..many)
        .map(|_| {
            let consume =
                |(jobs, sums): (manyhands::queue::Receiver<u64>, manyhands::queue::Sender<_>)| {
                    let mut sum = (0u64, 0u64, 0u64);
                    for item in &jobs {
                        // Count, sum and a sum of hashes: an item that is there twice, or not at
                        // all, changes one of them.
                        let hash = item.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                        sum = (
                            sum.0 + 1,
                            sum.1 + item,
                            sum.2.wrapping_add(hash.wrapping_mul(hash | 1)),
                        );
                        jobs.task_done().unwrap();
                    }
                    sums.send(sum).unwrap();
                };
            Process::spawn(consume, (receiver.clone(), sums.clone()))
        })
        .collect::<std::result::Result<_, _>>()?;
    let start = Instant::now();
    let producers: Vec<Process> = (0..many)
        .map(|who| {
            let produce = |(from, to, jobs): (u64, u64, manyhands::queue::Sender<u64>)| {
                (from..to).for_each(|item| jobs.send(item).unwrap());
            };
            let part = items / many;
            Process::spawn(produce, (who * part, (who + 1) * part, sender.clone()))
        })
        .collect::<std::result::Result<_, _>>()?;
    for producer in producers {
        assert!(producer.join()?.success());
    }
    sender.join()?;
    println!("{items} items in {:?}", start.elapsed());
    drop((sender, sums, receiver));
    let mut all = (0u64, 0u64, 0u64);
    for sum in &results {
        all = (all.0 + sum.0, all.1 + sum.1, all.2.wrapping_add(sum.2));
    }
    let hashes = (0..items).fold(0u64, |sum, item| {
        let hash = item.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        sum.wrapping_add(hash.wrapping_mul(hash | 1))
    });
    assert_eq!(all, (items, items * (items - 1) / 2, hashes));
    for consumer in consumers {
        assert!(consumer.join()?.success());
    }
    Ok(())
}

#[test]
fn b66_join_returns_after_the_last_and_one_too_many_is_an_error() -> Result {
    let _none = Leftovers::none();
    let jobs = Queue::<u64>::bounded(4)?;
    assert!(jobs.task_done().is_err());
    jobs.join()?;
    let done = SharedValue::new(0u64)?;
    let workers: Vec<Process> = (0..2)
        .map(|_| {
            let work = |(jobs, done): (Queue<u64>, SharedValue<u64>)| {
                while let Ok(job) = jobs.pop() {
                    // More work from work, before this is done.
                    if job > 0 {
                        jobs.push(job / 2).unwrap();
                    }
                    done.update(|done| done + 1);
                    jobs.task_done().unwrap();
                }
                jobs.task_done().unwrap_err();
            };
            Process::spawn(work, (jobs.clone(), done.clone()))
        })
        .collect::<std::result::Result<_, _>>()?;
    for round in 1..=50 {
        jobs.push(7)?;
        // 7, 3, 1, 0
        jobs.join()?;
        assert_eq!(done.get(), round * 4);
    }
    jobs.close();
    for worker in workers {
        assert!(worker.join()?.success());
    }
    assert!(jobs.task_done().is_err());
    Ok(())
}

#[cfg(not(long_slices))]
#[test]
fn b66_items_lost_with_a_dead_consumer_do_not_hang_join() -> Result {
    let _none = Leftovers::none();
    let jobs = Queue::<u64>::bounded(8)?;
    let hold = |jobs: Queue<u64>| {
        jobs.pop().unwrap();
        jobs.task_done().unwrap();
        jobs.pop().unwrap();
        jobs.pop().unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(hold, jobs.clone())?;
    (0..3).try_for_each(|job| jobs.push(job))?;
    eventually("the child has them", || jobs.is_empty());
    assert_matches!(
        jobs.join_timeout(SHORT),
        Err(JoinError::TimedOut { unfinished: 2, .. })
    );
    std::thread::scope(|scope| {
        let join = scope.spawn(|| jobs.join());
        kill(child.pid());
        assert_matches!(join.join().unwrap(), Err(JoinError::Lost { items: 2, .. }));
    });
    child.join()?;
    jobs.join()?;
    // No other process is left to take this one.
    jobs.push(4)?;
    assert_matches!(
        jobs.join(),
        Err(JoinError::Disconnected { unfinished: 1, .. })
    );
    Ok(())
}

#[test]
fn b66_an_item_that_its_last_receiver_has_not_finished_is_lost_with_that() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::<u64>::bounded(8)?.split();
    (0..3).try_for_each(|job| sender.send(job))?;
    let other = receiver.clone();
    assert_eq!((receiver.recv(), receiver.task_done()), (Ok(0), Ok(())));
    assert_eq!((receiver.recv(), other.recv()), (Ok(1), Ok(2)));
    drop(receiver);
    // The other one could still say that both are done.
    assert_matches!(
        sender.join_timeout(SHORT),
        Err(JoinError::TimedOut { unfinished: 2, .. })
    );
    drop(other);
    assert_matches!(
        sender.join_timeout(DEADLINE),
        Err(JoinError::Lost { items: 2, .. })
    );
    Ok(())
}

#[test]
fn b67_items_from_nothing_to_256_mib() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<Vec<u8>>::bounded(4)?;
    let echo = |(jobs, back): (Queue<Vec<u8>>, Queue<(usize, u64)>)| {
        for bytes in &jobs.receiver() {
            let sum = bytes.iter().map(|&byte| u64::from(byte)).sum();
            back.push((bytes.len(), sum)).unwrap();
        }
    };
    let back = Queue::bounded(4)?;
    let child = Process::spawn(echo, (queue.clone(), back.clone()))?;
    for len in [
        0,
        1,
        100,
        231,
        232,
        233,
        4_096,
        65_519,
        65_536,
        1 << 20,
        256 << 20,
    ] {
        queue.push(vec![3u8; len])?;
        assert_eq!(back.pop()?, (len, 3 * len as u64));
    }
    queue.close();
    assert!(child.join()?.success());
    Ok(())
}

#[test]
fn b67_more_bytes_than_the_queue_takes_is_an_error_and_no_hang() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<Vec<u8>>::with_limits(100, 1_000)?;
    let error = queue.push(vec![1; 1_001]).unwrap_err();
    assert!(
        matches!(&error, PushError::TooLarge { limit: 1_000, .. }),
        "{error}"
    );
    assert_eq!(error.into_inner().len(), 1_001);
    for _ in 0..3 {
        queue.push(vec![1; 300])?;
    }
    let error = queue.try_push(vec![1; 300]).unwrap_err();
    assert!(matches!(error, PushError::Full(_)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.push(vec![2; 300]));
        queue.pop().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert!(Queue::<u8>::bounded(0).is_err());
    assert!(Queue::<u8>::with_limits(1, 0).is_err());
    assert!(Queue::<u8>::bounded(usize::MAX).is_err());
    Ok(())
}

#[test]
fn stacks_and_priority_queues_keep_their_order_between_processes() -> Result {
    let _none = Leftovers::none();
    let (stack, by_priority) = (Stack::bounded(8)?, PriorityQueue::bounded(8)?);
    let fill = |(stack, by_priority): (Stack<u32>, PriorityQueue<String>)| {
        for x in 0..5 {
            stack.push(x).unwrap();
            by_priority
                .push(format!("{x}{}", "y".repeat(500)), i64::from(x % 2))
                .unwrap();
        }
    };
    let child = Process::spawn(fill, (stack.clone(), by_priority.clone()))?;
    assert!(child.join()?.success());
    assert_eq!(
        (0..5).map(|_| stack.pop().unwrap()).collect::<Vec<_>>(),
        [4, 3, 2, 1, 0]
    );
    let order: String = (0..5)
        .map(|_| by_priority.pop().unwrap().remove(0))
        .collect();
    assert_eq!(order, "13024");
    Ok(())
}

extern "C" fn nothing(_: i32) {}

/// From now on this signal interrupts what it finds, and does nothing.
fn handle(signal: nix::sys::signal::Signal) -> Result {
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(nothing),
        // Without SA_RESTART.
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    Ok(())
}

#[test]
fn b70_signals_during_waits_neither_lose_nor_tear_an_item() -> Result {
    let _none = Leftovers::none();
    handle(nix::sys::signal::Signal::SIGUSR1)?;
    let items = setting("MANYHANDS_ITEMS", 20_000);
    let (sender, receiver) = Queue::<Vec<u64>>::bounded(3)?.split();
    let over = AtomicBool::new(false);
    let signals = AtomicU64::new(0);
    let threads = parking_lot::Mutex::new(BTreeSet::new());
    // SAFETY: takes nothing, cannot fail.
    let enrol = || threads.lock().insert(unsafe { libc::pthread_self() });
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            enrol();
            for item in 0..items {
                sender.send(vec![item; item as usize % 50]).unwrap();
            }
        });
        let consumer = scope.spawn(|| {
            enrol();
            for item in 0..items {
                assert_eq!(receiver.recv(), Ok(vec![item; item as usize % 50]));
            }
        });
        let alarm = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for thread in threads.lock().iter() {
                    // SAFETY: the threads are there until this one has ended.
                    unsafe { libc::pthread_kill(*thread, libc::SIGUSR1) };
                    signals.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        });
        while !(producer.is_finished() && consumer.is_finished()) {
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
        alarm.join().unwrap();
        // A panic of these threads fails the test.
        producer.join().unwrap();
        consumer.join().unwrap();
    });
    println!("{} signals", signals.load(Ordering::Relaxed));
    Ok(())
}

#[test]
fn b70_a_timeout_is_kept_under_signals() -> Result {
    let _none = Leftovers::none();
    handle(nix::sys::signal::Signal::SIGALRM)?;
    let timer = |micros| {
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: the timer is valid, and what it was before is not asked for.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    };
    let queue = Queue::<u8>::bounded(1)?;
    timer(500);
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(queue.pop_timeout(SHORT), Err(PopError::TimedOut));
        assert!(start.elapsed() >= SHORT);
        assert!(wait_ready(&[&queue], Some(SHORT)).is_empty());
    }
    timer(0);
    Ok(())
}

#[test]
fn handles_in_items_keep_their_objects_and_come_back_if_nobody_takes_them() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let queue = Queue::<(SharedValue<u64>, Vec<Queue<u8>>)>::bounded(4)?;
    queue.push((SharedValue::new(5)?, vec![Queue::bounded(2)?]))?;
    let (value, queues) = queue.pop()?;
    assert_eq!(value.get(), 5);
    queues[0].push(1)?;
    assert_eq!(queues[0].pop()?, 1);
    drop((value, queues));
    assert_eq!(shm::usage().objects, before + 1);
    // Never taken, nested: the queue goes with a queue in it, in which there is a value.
    let inner = Queue::bounded(2)?;
    inner.push(7)?;
    queue.push((SharedValue::new(5)?, vec![inner]))?;
    queue.push((SharedValue::new(6)?, vec![]))?;
    drop(queue);
    assert_eq!(shm::usage().objects, before);
    // Refused.
    let queue = Queue::bounded(1)?;
    queue.close();
    drop(queue.push(SharedValue::new(1u8)?).unwrap_err());
    drop(queue);
    assert_eq!(shm::usage().objects, before);
    Ok(())
}

#[test]
fn handles_become_iterators() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::bounded(8)?.split();
    (0..3).try_for_each(|x| sender.send(x))?;
    drop(sender);
    let mut rest = receiver.into_iter();
    assert_eq!(rest.next(), Some(0));
    // It owns the handle: it can leave.
    let rest = std::thread::spawn(move || rest.collect::<Vec<i32>>());
    assert_eq!(rest.join().unwrap(), [1, 2]);
    let queue = Queue::bounded(8)?;
    let feeder = queue.clone();
    (0..3).try_for_each(|x| feeder.push(x))?;
    feeder.close();
    assert_eq!(queue.into_iter().sum::<i32>(), 3);
    Ok(())
}

#[test]
fn items_that_an_iterator_leaves_out_count_as_lost() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<Picky>::bounded(4)?;
    for x in [1, 0, 2] {
        queue.push(Picky(x))?;
    }
    queue.close();
    let got: Vec<u8> = queue.iter().map(|item| item.0).collect();
    assert_eq!(got, [1, 2]);
    queue.task_done()?;
    queue.task_done()?;
    assert_matches!(queue.join(), Err(JoinError::Lost { items: 1, .. }));
    assert_eq!(queue.join(), Ok(()));
    Ok(())
}

/// Cannot be read if it is 0.
#[derive(serde::Serialize)]
struct Picky(u8);

impl<'de> serde::Deserialize<'de> for Picky {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("zero")),
            x => Ok(Self(x)),
        }
    }
}

#[test]
fn errors_cross_to_other_processes_and_say_what_is_behind_them() -> Result {
    use std::error::Error;

    let _none = Leftovers::none();
    let pool = Pool::processes(1)?;
    let queue = Queue::<String>::bounded(1)?;
    queue.push("first".to_owned())?;
    let push = |queue: Queue<String>| queue.try_push("second".to_owned());
    let pushed = pool.submit(push, queue.clone()).result()?;
    assert_eq!(pushed, Err(PushError::Full("second".to_owned())));
    assert_eq!(pushed.clone(), pushed);
    let pop = |queue: Queue<String>| (queue.task_done(), queue.join_timeout(SHORT), queue.pop());
    let (done, joined, popped) = pool.submit(pop, queue.clone()).result()?;
    assert!(done.is_err());
    assert_matches!(joined, Err(JoinError::TimedOut { unfinished: 1, .. }));
    assert_eq!(popped, Ok("first".to_owned()));
    let popped = pool.submit(|queue: Queue<String>| queue.try_pop(), queue);
    assert_eq!(popped.result()?, Err(PopError::Empty));
    let unreachable = PopError::Share(shm::ShareError::Gone);
    let behind = unreachable.source().and_then(|it| it.downcast_ref());
    assert_eq!(behind, Some(&shm::ShareError::Gone));
    let echo = |error: PopError| error;
    let echo = pool.submit(echo, unreachable.clone()).result()?;
    assert_eq!(echo, unreachable);
    Ok(())
}
