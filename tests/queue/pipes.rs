//! Pipes, and waiting for many things.

use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::queue::{PopError, PushError, Waitable, wait_ready};
use manyhands::{Connection, Pipe, Queue, Receiver, Sender, Stack};

use crate::Result;
use crate::common::{DEADLINE, Leftovers, kill};

fn echo(end: Connection<String, String>) {
    while let Ok(text) = end.recv() {
        end.send(text + "!").unwrap();
    }
}

#[test]
fn b69_a_duplex_pipe_with_both_ends_in_children() -> Result {
    let _none = Leftovers::none();
    let (one, other) = Pipe::duplex::<String, String>()?;
    let (result, answer) = Pipe::one_way::<String>()?;
    let echo = Process::spawn(echo, other)?;
    let talk = |(end, result): (Connection<String, String>, Sender<String>)| {
        end.send("hello".to_owned()).unwrap();
        result.send(end.recv().unwrap()).unwrap();
    };
    let talk = Process::spawn(talk, (one, result))?;
    assert_eq!(answer.recv(), Ok("hello!".to_owned()));
    assert_eq!(answer.recv(), Err(PopError::Disconnected));
    assert!(talk.join()?.success());
    assert!(echo.join()?.success());
    Ok(())
}

#[test]
fn b69_when_the_peer_is_killed_the_stream_ends() -> Result {
    let _none = Leftovers::none();
    let (ours, theirs) = Pipe::duplex::<u8, Vec<u8>>()?;
    let child = |end: Connection<Vec<u8>, u8>| {
        end.send(vec![1; 100_000]).unwrap();
        end.send(vec![2]).unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(child, theirs)?;
    assert_eq!(ours.recv()?, vec![1; 100_000]);
    assert!(ours.poll(DEADLINE));
    kill(child.pid());
    assert_eq!(ours.recv()?, [2]);
    assert_eq!(ours.recv(), Err(PopError::Disconnected));
    assert!(ours.poll(Duration::ZERO));
    assert!(matches!(ours.send(1), Err(PushError::Disconnected(1))));
    child.join()?;
    Ok(())
}

#[test]
fn b69_poll_waits_no_longer_than_it_is_told() -> Result {
    let _none = Leftovers::none();
    let (one, other) = Pipe::duplex::<u8, u8>()?;
    let start = Instant::now();
    assert!(!one.poll(Duration::from_millis(20)));
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(
        one.recv_timeout(Duration::from_millis(1)),
        Err(PopError::Empty)
    );
    std::thread::scope(|scope| {
        let polled = scope.spawn(|| one.poll(DEADLINE));
        other.send(1).unwrap();
        assert!(polled.join().unwrap());
    });
    assert_eq!(one.try_recv(), Ok(1));
    Ok(())
}

#[test]
fn b69_one_wait_for_pipes_queues_and_processes() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u8>::bounded(1)?;
    let stack = Stack::<u8>::bounded(1)?;
    let (pipe, end) = Pipe::duplex::<u8, u8>()?;
    let (sender, receiver): (Sender<u8>, Receiver<u8>) = Pipe::one_way()?;
    let child = Process::spawn(
        |()| loop {
            std::thread::park();
        },
        (),
    )?;
    let all: [&dyn Waitable; 5] = [&queue, &stack, &pipe, &child, &receiver];
    assert_eq!(wait_ready(&all, Some(Duration::ZERO)), [0; 0]);
    assert_eq!(wait_ready(&all, Some(Duration::from_millis(30))), [0; 0]);
    std::thread::scope(|scope| {
        let ready = scope.spawn(|| wait_ready(&all, Some(DEADLINE)));
        stack.push(1).unwrap();
        assert_eq!(ready.join().unwrap(), [1]);
        stack.pop().unwrap();
        let ready = scope.spawn(|| wait_ready(&all, None));
        end.send(1).unwrap();
        assert_eq!(ready.join().unwrap(), [2]);
        queue.push(1).unwrap();
        assert_eq!(wait_ready(&all, None), [0, 2]);
        (queue.pop().unwrap(), pipe.recv().unwrap());
        let ready = scope.spawn(|| wait_ready(&all, None));
        drop(sender);
        assert_eq!(ready.join().unwrap(), [4]);
        let ready = scope.spawn(|| wait_ready(&all[..4], None));
        kill(child.pid());
        assert_eq!(ready.join().unwrap(), [3]);
    });
    assert_eq!(wait_ready(&[], None), [0; 0]);
    Ok(())
}

#[test]
fn b69_a_wait_for_more_things_than_the_kernel_sleeps_on() -> Result {
    let _none = Leftovers::none();
    let queues: Vec<Queue<u8>> = (0..150)
        .map(|_| Queue::bounded(1))
        .collect::<std::result::Result<_, _>>()?;
    let all: Vec<&dyn Waitable> = queues.iter().map(|queue| queue as _).collect();
    std::thread::scope(|scope| {
        let ready = scope.spawn(|| wait_ready(&all, None));
        queues[149].push(1).unwrap();
        assert_eq!(ready.join().unwrap(), [149]);
    });
    Ok(())
}
