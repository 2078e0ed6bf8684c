//! Pipes, and waiting for many things.

use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::queue::{PopError, PushError};
use manyhands::select::{Waitable, wait_ready};
use manyhands::sync::Event;
use manyhands::{
    Queue,
    queue::{Connection, Pipe, Receiver, Sender, Stack},
};

use crate::Result;
use crate::common::{DEADLINE, Leftovers, kill};

#[expect(clippy::needless_pass_by_value, reason = "the process owns its end")]
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

#[cfg(not(long_slices))]
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
    assert!(ours.wait_ready_timeout(DEADLINE));
    kill(child.pid());
    assert_eq!(ours.recv()?, [2]);
    assert_eq!(ours.recv(), Err(PopError::Disconnected));
    assert!(ours.wait_ready_timeout(Duration::ZERO));
    assert!(matches!(ours.send(1), Err(PushError::Disconnected(1))));
    child.join()?;
    Ok(())
}

#[test]
fn b69_poll_waits_no_longer_than_it_is_told() -> Result {
    let _none = Leftovers::none();
    let (one, other) = Pipe::duplex::<u8, u8>()?;
    let start = Instant::now();
    assert!(!one.wait_ready_timeout(Duration::from_millis(20)));
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(
        one.recv_timeout(Duration::from_millis(1)),
        Err(PopError::TimedOut)
    );
    std::thread::scope(|scope| {
        let polled = scope.spawn(|| one.wait_ready_timeout(DEADLINE));
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
        queue.pop().unwrap();
        pipe.recv().unwrap();
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

#[test]
fn b69_one_wait_for_an_event_a_queue_a_pipe_and_a_process() -> Result {
    let _none = Leftovers::none();
    let (event, queue) = (Event::new()?, Queue::<u8>::bounded(1)?);
    let (pipe, end) = Pipe::duplex::<u8, u8>()?;
    let go = Event::new()?;
    let child = Process::spawn(
        |(go, event): (Event, Event)| {
            go.wait();
            event.set();
            loop {
                std::thread::park();
            }
        },
        (go.clone(), event.clone()),
    )?;
    let all: [&dyn Waitable; 4] = [&queue, &pipe, &event, &child];
    assert_eq!(
        wait_ready(&all, Some(Duration::from_millis(20))),
        [0usize; 0]
    );
    std::thread::scope(|scope| {
        // Set in another process.
        let ready = scope.spawn(|| wait_ready(&all, None));
        go.set();
        assert_eq!(ready.join().unwrap(), [2]);
        // As long as it is set.
        queue.push(1).unwrap();
        assert_eq!(wait_ready(&all, None), [0, 2]);
        event.clear();
        queue.pop().unwrap();
        let ready = scope.spawn(|| wait_ready(&all, None));
        end.send(1).unwrap();
        assert_eq!(ready.join().unwrap(), [1]);
        pipe.recv().unwrap();
        let ready = scope.spawn(|| wait_ready(&all, None));
        event.set();
        assert_eq!(ready.join().unwrap(), [2]);
        event.clear();
        let ready = scope.spawn(|| wait_ready(&all, None));
        kill(child.pid());
        assert_eq!(ready.join().unwrap(), [3]);
    });
    Ok(())
}

#[test]
fn b69_a_wait_for_a_task_among_others_is_one_for_an_event() -> Result {
    let _none = Leftovers::none();
    let pool = Pool::processes(1)?;
    let (done, queue) = (Event::new()?, Queue::<u8>::bounded(1)?);
    let task = pool.submit(|x: u64| x * x, 12);
    let set = done.clone();
    task.on_done(move |_| set.set());
    assert_eq!(wait_ready(&[&queue, &done], Some(DEADLINE)), [1]);
    assert_eq!(task.result()?, 144);
    Ok(())
}

#[test]
fn with_nothing_to_wait_for_a_wait_is_over_at_once() {
    let start = Instant::now();
    assert_eq!(wait_ready(&[], Some(Duration::from_secs(60))), [0usize; 0]);
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn sends_that_do_not_wait_and_that_wait_for_so_long() -> Result {
    let _none = Leftovers::none();
    let time = Duration::from_millis(20);
    let (sender, receiver) = Pipe::one_way::<usize>()?;
    let (one, other) = Pipe::duplex::<usize, u8>()?;
    for x in 0..64 {
        sender.try_send(x)?;
        one.send_timeout(x, DEADLINE)?;
    }
    assert_eq!(sender.try_send(64), Err(PushError::Full(64)));
    assert_eq!(one.try_send(64), Err(PushError::Full(64)));
    let start = Instant::now();
    assert_eq!(sender.send_timeout(64, time), Err(PushError::TimedOut(64)));
    assert_eq!(one.send_timeout(64, time), Err(PushError::TimedOut(64)));
    assert!(start.elapsed() >= 2 * time);
    receiver.recv()?;
    sender.try_send(64)?;
    drop(receiver);
    assert_eq!(sender.try_send(65), Err(PushError::Disconnected(65)));
    // Closed by the one end, drained by the other.
    other.send(1)?;
    other.close();
    assert_eq!(one.send_timeout(64, DEADLINE), Err(PushError::Closed(64)));
    assert_eq!((one.recv(), one.recv()), (Ok(1), Err(PopError::Closed)));
    assert_eq!(
        (other.recv(), other.try_send(2)),
        (Ok(0), Err(PushError::Closed(2)))
    );
    Ok(())
}
