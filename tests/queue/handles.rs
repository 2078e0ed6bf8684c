//! What one handle has been told, and what its clones, its halves and its copies in forked children
//! know.

use std::time::Duration;

use manyhands::prelude::*;
use manyhands::queue::{JoinError, PopError, PushError};
use manyhands::sync::Event;
use manyhands::{
    Queue,
    queue::{Pipe, Receiver},
};

use crate::Result;
use crate::common::{DEADLINE, Leftovers, Sleeper, assert_matches, eventually, kill};

const SHORT: Duration = Duration::from_millis(20);

/// For a call that must have its answer at its first look.
const SOON: Duration = Duration::from_secs(3);

type Failure = Box<dyn std::error::Error>;

/// A queue with room for one item. The only other process that had a handle of both kinds was
/// killed.
fn bereft() -> std::result::Result<Queue<u32>, Failure> {
    let queue = Queue::bounded(1)?;
    let push = |queue: Queue<u32>| {
        queue.push(1).unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(push, queue.clone())?;
    assert_eq!(queue.pop(), Ok(1));
    kill(child.pid());
    child.join()?;
    Ok(queue)
}

/// Each side by itself: the one that pushes goes on, and is told of it when it pops.
#[test]
fn a_handle_of_both_kinds_hears_of_a_death_on_either_side() -> Result {
    let _none = Leftovers::none();
    let queue = bereft()?;
    queue.push(2)?;
    assert_eq!(queue.push_timeout(3, SOON), Err(PushError::Disconnected(3)));
    assert_eq!(queue.push(3), Err(PushError::Disconnected(3)));
    // It has pushed itself, so another thread may do so again.
    assert_eq!(queue.pop(), Ok(2));
    assert_eq!(queue.pop_timeout(SHORT), Err(PopError::TimedOut));
    // It has popped itself.
    queue.push(4)?;
    assert_eq!(queue.push_timeout(5, SHORT), Err(PushError::TimedOut(5)));
    Ok(())
}

#[test]
fn a_clone_has_been_told_no_more_of_the_dead_than_its_original() -> Result {
    let _none = Leftovers::none();
    let queue = bereft()?;
    let clone = queue.clone();
    drop(queue);
    assert_eq!(clone.pop_timeout(SOON), Err(PopError::Disconnected));
    clone.push(1)?;
    let pushed = clone.push_timeout(2, SOON);
    assert_eq!(pushed, Err(PushError::Disconnected(2)));
    Ok(())
}

/// Two items that were taken and never done.
fn loses_two() -> std::result::Result<Queue<u32>, Failure> {
    let queue = Queue::bounded(4)?;
    let (sender, receiver) = queue.clone().split();
    let take = |receiver: Receiver<u32>| {
        receiver.recv().unwrap();
        receiver.recv().unwrap();
    };
    sender.send(1)?;
    sender.send(2)?;
    assert!(Process::spawn(take, receiver)?.join()?.success());
    Ok(queue)
}

#[test]
fn each_handle_tells_of_lost_items_once_and_a_clone_of_no_more_than_its_original() -> Result {
    let _none = Leftovers::none();
    let queue = loses_two()?;
    let early = queue.clone();
    assert_matches!(queue.join(), Err(JoinError::Lost { items: 2, .. }));
    assert_eq!(queue.join(), Ok(()));
    // A handle that is made or comes now has not lost them.
    assert_eq!(queue.clone().join(), Ok(()));
    assert_eq!(queue.sender().join(), Ok(()));
    let pool = Pool::processes(1)?;
    let join = |queue: Queue<u32>| queue.join_timeout(DEADLINE);
    assert_eq!(pool.submit(join, queue.clone()).result()?, Ok(()));
    // This one was there, and was told nothing.
    assert_matches!(early.join(), Err(JoinError::Lost { items: 2, .. }));
    Ok(())
}

/// The queue has no other receiver, and the one there is was told of a death.
#[cfg(not(long_slices))]
#[test]
fn join_waits_for_the_item_that_a_receiver_of_this_process_has_in_hand() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(2)?;
    let stay = |queue: Queue<u32>| {
        queue.push(1).unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(stay, queue.clone())?;
    assert_eq!(queue.pop(), Ok(1));
    kill(child.pid());
    child.join()?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let join = scope.spawn(|| sleeper.run(|| queue.join()));
        sleeper.is_asleep();
        queue.task_done().unwrap();
        assert_eq!(join.join().unwrap(), Ok(()));
    });
    queue.push(2)?;
    let unfinished = queue.join_timeout(SOON);
    assert_matches!(
        unfinished,
        Err(JoinError::Disconnected { unfinished: 1, .. })
    );
    Ok(())
}

/// A sender whose only receiver was killed, for whom no call waits. The queue is full.
fn killed_consumer() -> std::result::Result<(Process, manyhands::queue::Sender<u32>), Failure> {
    let (sender, receiver) = Queue::bounded(1)?.split();
    let hold = |receiver: Receiver<u32>| {
        receiver.recv().unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(hold, receiver)?;
    sender.send(0)?;
    sender.send(1)?;
    kill(child.pid());
    Ok((child, sender))
}

#[test]
fn b65_pushes_that_wait_shortly_or_not_at_all_hear_of_a_death() -> Result {
    let _none = Leftovers::none();
    let (child, sender) = killed_consumer()?;
    eventually("a short wait hears of it", || {
        let moment = Duration::from_millis(1);
        sender.send_timeout(2, moment) == Err(PushError::Disconnected(2))
    });
    child.join()?;
    let (child, sender) = killed_consumer()?;
    eventually("a call that does not wait hears of it", || {
        sender.try_send(2) == Err(PushError::Disconnected(2))
    });
    child.join()?;
    Ok(())
}

#[test]
fn the_receiving_half_of_a_pipe_polls_and_waits_as_long_as_it_is_told() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Pipe::one_way::<u32>()?;
    assert_eq!(receiver.try_recv(), Err(PopError::Empty));
    let start = std::time::Instant::now();
    assert_eq!(receiver.recv_timeout(SHORT), Err(PopError::TimedOut));
    assert!(!receiver.wait_ready_timeout(SHORT));
    assert!(start.elapsed() >= 2 * SHORT);
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let recv = scope.spawn(|| sleeper.run(|| receiver.recv_timeout(DEADLINE)));
        sleeper.is_asleep();
        sender.send_timeout(1, DEADLINE).unwrap();
        assert_eq!(recv.join().unwrap(), Ok(1));
    });
    sender.try_send(2)?;
    assert!(receiver.wait_ready_timeout(Duration::ZERO));
    assert_eq!(receiver.try_recv(), Ok(2));
    sender.send(3)?;
    drop(sender);
    assert!(receiver.wait_ready_timeout(DEADLINE));
    assert_eq!(receiver.recv(), Ok(3));
    assert!(
        receiver.wait_ready_timeout(DEADLINE),
        "the end can be received, too"
    );
    assert_eq!(receiver.recv_timeout(DEADLINE), Err(PopError::Disconnected));
    Ok(())
}

/// Runs `child` in a forked process, which ends when that returns.
fn fork(child: impl FnOnce()) -> nix::Result<nix::unistd::Pid> {
    // SAFETY: the child uses shared objects only, and ends without a return to the harness.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child),
        nix::unistd::ForkResult::Child => {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process at once, and touches nothing of it.
            unsafe { libc::_exit(i32::from(ran.is_err())) }
        }
    }
}

#[track_caller]
fn has_ended_well(child: nix::unistd::Pid) {
    let ended = nix::sys::wait::waitpid(child, None);
    assert_eq!(ended, Ok(nix::sys::wait::WaitStatus::Exited(child, 0)));
}

#[cfg(not(long_slices))]
#[test]
fn a_copy_in_a_forked_child_counts_from_its_first_use_and_no_sooner() -> Result {
    let _none = Leftovers::none();
    let go = Event::new()?;
    // One that is used keeps the queue connected as long as the child lives.
    let (sender, receiver) = Queue::<u32>::bounded(2)?.split();
    let child = fork(|| {
        sender.send(1).unwrap();
        assert!(go.wait_timeout(DEADLINE), "not told to go on");
        sender.send(2).unwrap();
    })?;
    assert_eq!(receiver.recv(), Ok(1));
    drop(sender);
    let now = receiver.recv_timeout(SHORT);
    go.set();
    has_ended_well(child);
    assert_eq!(now, Err(PopError::TimedOut));
    assert_eq!(
        (receiver.recv(), receiver.recv()),
        (Ok(2), Err(PopError::Disconnected))
    );
    // One that is dropped without a use takes nothing away, and adds nothing.
    let (sender, receiver) = Queue::<u32>::bounded(2)?.split();
    let (dropped, other, go) = (Event::new()?, Queue::<u32>::bounded(1)?, Event::new()?);
    let mut sender = Some(sender);
    let child = fork(|| {
        // It has a place of its own among the processes that share objects.
        other.push(1).unwrap();
        drop(sender.take());
        dropped.set();
        assert!(go.wait_timeout(DEADLINE), "not told to go on");
    })?;
    let has_come = dropped.wait_timeout(DEADLINE);
    let pushed = sender.as_ref().map(|sender| sender.send(1));
    let still = receiver.recv_timeout(SHORT);
    let empty = receiver.try_recv();
    drop(sender.take());
    let then = receiver.recv_timeout(SOON);
    go.set();
    has_ended_well(child);
    assert!(has_come, "the child has not come so far");
    assert_eq!(pushed, Some(Ok(())));
    assert_eq!((still, empty), (Ok(1), Err(PopError::Empty)));
    assert_eq!(then, Err(PopError::Disconnected));
    Ok(())
}

/// A handle of both kinds can fill the queue again.
#[test]
fn an_iterator_that_has_ended_stays_so() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(2)?;
    let other = queue.clone();
    let mut items = queue.iter();
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| sleeper.run(|| items.next()));
        sleeper.is_asleep();
        drop(other);
        assert_eq!(next.join().unwrap(), None);
    });
    queue.push(2)?;
    assert_eq!((items.next(), items.next()), (None, None));
    assert_eq!(queue.pop(), Ok(2));
    Ok(())
}
