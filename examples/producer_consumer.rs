//! Producers and consumers, each a process of its own, around a queue. They count the primes below
//! 100,000.
//!
//! ```text
//! 2 producers ──spans──▶ jobs (queue of 8) ──▶ 3 consumers ──counts──▶ results (as well) ──▶ main
//! ```
//!
//! No process closes anything. Each process has the half of a queue that it needs. A queue ends
//! when all processes that could fill it are gone: first the producers, then the consumers.
//!
//! Run it with `cargo run --release --example producer_consumer`. With `-- crash`, a consumer
//! aborts in the middle of a span. The others go on, `join` says what was lost, and the sum lacks
//! the primes of that span.

mod common;

use std::ops::Range;

use common::Arguments;
use manyhands::prelude::*;
use manyhands::queue::{JoinError, PushError};
use manyhands::{
    Queue,
    queue::{Receiver, Sender},
};

const USAGE: &str = "producer_consumer [crash]

With crash, one of the consumers aborts in the middle of its work.";

const PRODUCERS: u64 = 2;
const CONSUMERS: u64 = 3;
const SPANS: u64 = 100;
const SPAN: u64 = 1_000;

/// The span at which a consumer aborts, if it is to.
const FATAL: u64 = 50_000;

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

/// Pushes where each of its spans begins. What has been pushed stays, also when the producer exits
/// right after that.
fn produce((spans, jobs): (Range<u64>, Sender<u64>)) {
    for span in spans {
        match jobs.send(span * SPAN) {
            Ok(()) => {}
            Err(PushError::Disconnected(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Counts the primes in span after span, until there are no more.
fn consume((jobs, results, crashes): (Receiver<u64>, Sender<u64>, bool)) {
    for start in &jobs {
        if crashes && start == FATAL {
            std::process::abort();
        }
        let primes = (start..start + SPAN).filter(|&n| is_prime(n)).count();
        results.send(primes as u64).unwrap();
        // Only now: until here, the span would be lost with this process.
        jobs.task_done().unwrap();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = Arguments::new(USAGE);
    let crashes = arguments.flag("crash");
    arguments.end();
    let (jobs, spans) = Queue::<u64>::bounded(8)?.split();
    let (results, counts) = Queue::<u64>::bounded(8)?.split();

    let part = SPANS / PRODUCERS;
    let producers: Vec<Process> = (0..PRODUCERS)
        .map(|who| Process::spawn(produce, (who * part..(who + 1) * part, jobs.clone())))
        .collect::<Result<_, _>>()?;
    let consumers: Vec<Process> = (0..CONSUMERS)
        .map(|_| Process::spawn(consume, (spans.clone(), results.clone(), crashes)))
        .collect::<Result<_, _>>()?;
    // As long as main had these halves, the queues would not end.
    drop((jobs, results));

    let (mut counted, mut primes) = (0, 0);
    for count in counts {
        counted += 1;
        primes += count;
    }
    println!("{primes} primes in {counted} of {SPANS} spans");
    match spans.join() {
        Ok(()) => println!("all is done"),
        Err(error @ JoinError::Lost { .. }) => println!("{error}"),
        Err(error) => return Err(error.into()),
    }
    for producer in producers {
        assert!(producer.join()?.success());
    }
    for consumer in consumers {
        let status = consumer.join()?;
        if !status.success() {
            println!("a consumer {status}");
        }
    }
    Ok(())
}
