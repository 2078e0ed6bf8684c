//! Closing, and who hears that the others are gone.

use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::queue::{JoinError, PopError, PushError};
use manyhands::select::wait_ready;
use manyhands::{
    Queue, closure,
    queue::{Receiver, Sender},
};

use crate::Result;
use crate::common::{
    DEADLINE, Leftovers, Sleeper, as_program, assert_matches, eventually, finish, is_program, kill,
};

#[test]
fn closing_lets_the_rest_out_and_nothing_in() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::bounded(4)?;
    queue.push(1)?;
    let clone = queue.clone();
    let child = Process::spawn(|queue: Queue<i32>| queue.close(), queue.clone())?;
    assert!(child.join()?.success());
    assert!(clone.is_closed());
    assert!(matches!(clone.push(2), Err(PushError::Closed(2))));
    assert_eq!((clone.pop(), clone.pop()), (Ok(1), Err(PopError::Closed)));
    assert_eq!(clone.try_pop(), Err(PopError::Closed));
    Ok(())
}

#[test]
fn closing_wakes_all_who_wait() -> Result {
    let _none = Leftovers::none();
    let (empty, full) = (Queue::<u8>::bounded(1)?, Queue::<u8>::bounded(1)?);
    full.push(1)?;
    std::thread::scope(|scope| {
        let poppers: Vec<_> = (0..3).map(|_| scope.spawn(|| empty.pop())).collect();
        let pushers: Vec<_> = (0..3).map(|_| scope.spawn(|| full.push(2))).collect();
        empty.close();
        full.close();
        for popper in poppers {
            assert_eq!(popper.join().unwrap(), Err(PopError::Closed));
        }
        for pusher in pushers {
            assert!(matches!(pusher.join().unwrap(), Err(PushError::Closed(2))));
        }
    });
    Ok(())
}

fn push_and_stay((sender, count): (Sender<u32>, u32)) {
    (0..count).for_each(|x| sender.send(x).unwrap());
    loop {
        std::thread::park();
    }
}

fn start_and_stay((sender, pid): (Sender<u32>, Sender<u32>)) {
    let own = Process::spawn(push_and_stay, (sender, 0)).unwrap();
    pid.send(own.pid()).unwrap();
    loop {
        std::thread::park();
    }
}

#[cfg(not(long_slices))]
#[test]
fn b65_a_process_that_waits_for_many_queues_hears_of_the_end_of_a_producer_not_its_own() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::<u32>::bounded(1)?.split();
    let (tell, told) = Queue::bounded(1)?.split();
    let starter = Process::spawn(start_and_stay, (sender, tell))?;
    let producer = told.recv()?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let ready = scope.spawn(|| sleeper.run(|| wait_ready(&[&receiver, &told], Some(DEADLINE))));
        sleeper.is_asleep();
        kill(producer);
        assert_eq!(ready.join().unwrap(), [0]);
    });
    assert_eq!(receiver.try_recv(), Err(PopError::Disconnected));
    starter.kill()?;
    starter.join()?;
    Ok(())
}

#[cfg(not(long_slices))]
#[test]
fn b65_when_all_producers_are_killed_the_consumer_drains_and_hears_of_it() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::bounded(8)?.split();
    let producers = [
        Process::spawn(push_and_stay, (sender.clone(), 3))?,
        Process::spawn(push_and_stay, (sender, 4))?,
    ];
    eventually("all is pushed", || receiver.len() == 7);
    kill(producers[0].pid());
    producers[0].join()?;
    assert_eq!((0..7).filter_map(|_| receiver.recv().ok()).count(), 7);
    assert_eq!(
        receiver.recv_timeout(Duration::from_millis(20)),
        Err(PopError::TimedOut)
    );
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| receiver.recv());
        // The parent has not joined it: the thread that waits for an item finds out.
        kill(producers[1].pid());
        assert_eq!(rest.join().unwrap(), Err(PopError::Disconnected));
    });
    producers[1].join()?;
    Ok(())
}

#[cfg(not(long_slices))]
#[test]
fn b65_when_all_consumers_are_killed_producers_hear_of_it() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::bounded(2)?.split();
    let hold = |receiver: Receiver<u32>| {
        receiver.recv().unwrap();
        loop {
            std::thread::park();
        }
    };
    let child = Process::spawn(hold, receiver)?;
    sender.send(0)?;
    eventually("the child has it", || sender.is_empty());
    (1..3).try_for_each(|x| sender.send(x))?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sender.send(3));
        kill(child.pid());
        assert!(matches!(
            waiting.join().unwrap(),
            Err(PushError::Disconnected(3))
        ));
    });
    child.join()?;
    assert!(matches!(
        sender.try_send(3),
        Err(PushError::Disconnected(3))
    ));
    Ok(())
}

#[test]
fn b65_halves_in_one_process_hear_of_each_other() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::bounded(8)?.split();
    let other = sender.clone();
    sender.send(1)?;
    drop(sender);
    assert_eq!(receiver.try_recv(), Ok(1));
    assert_eq!(receiver.try_recv(), Err(PopError::Empty));
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| receiver.iter().sum::<i32>());
        other.send(2).unwrap();
        drop(other);
        assert_eq!(rest.join().unwrap(), 2);
    });
    assert_eq!(receiver.try_recv(), Err(PopError::Disconnected));
    Ok(())
}

#[test]
fn b65_a_whole_handle_hears_of_the_end_of_the_others() -> Result {
    let _none = Leftovers::none();
    // The others go while it waits.
    let queue = Queue::<u32>::bounded(1)?;
    let other = queue.clone();
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let pop = scope.spawn(|| sleeper.run(|| queue.pop()));
        sleeper.is_asleep();
        drop(other);
        assert_eq!(pop.join().unwrap(), Err(PopError::Disconnected));
    });
    let other = queue.clone();
    queue.push(1)?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let push = scope.spawn(|| sleeper.run(|| queue.push(2)));
        sleeper.is_asleep();
        drop(other);
        let pushed = push.join().unwrap();
        assert!(matches!(pushed, Err(PushError::Disconnected(2))));
    });
    // The other process was killed, even if that was before the call.
    let queue = Queue::bounded(8)?;
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
    for _ in 0..2 {
        assert_eq!(queue.pop(), Err(PopError::Disconnected));
        assert_eq!(
            queue.pop_timeout(Duration::from_secs(10)),
            Err(PopError::Disconnected)
        );
    }
    // Alone, the handle can go on: it serves itself from then on.
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    queue.push(2)?;
    assert_eq!(queue.pop(), Ok(2));
    assert_eq!(
        queue.pop_timeout(Duration::from_millis(20)),
        Err(PopError::TimedOut)
    );
    Ok(())
}

/// Pops and pushes by one handle from two threads, the push when the pop has found nothing.
fn pops_before_it_pushes(queue: &Queue<u32>) {
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let pop = scope.spawn(|| sleeper.run(|| queue.pop()));
        sleeper.is_asleep();
        queue.push(7).unwrap();
        assert_eq!(pop.join().unwrap(), Ok(7));
    });
}

#[test]
fn a_handle_by_reference_is_not_alone_after_the_last_clone_is_dropped() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(1)?;
    drop(queue.clone());
    pops_before_it_pushes(&queue);
    // The other side.
    queue.push(1)?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let push = scope.spawn(|| sleeper.run(|| queue.push(2)));
        sleeper.is_asleep();
        assert_eq!(queue.pop(), Ok(1));
        push.join().unwrap().unwrap();
    });
    assert_eq!(queue.pop(), Ok(2));
    // Neither is one whose other half was dropped.
    drop(queue.sender());
    drop(queue.receiver());
    pops_before_it_pushes(&queue);
    Ok(())
}

#[test]
fn a_handle_by_reference_is_not_alone_after_a_pool_had_it() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(64)?;
    let pool = Pool::processes(2)?;
    pool.map_with(&queue, |queue, x: u32| queue.push(x).unwrap(), 0..10)?;
    let mut all: Vec<u32> = (0..10).map(|_| queue.pop().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    // The workers have let go of it after that.
    pool.close()?;
    pops_before_it_pushes(&queue);
    // A process that comes to its end with a handle was not killed.
    let exit = |queue: Queue<u32>| {
        queue.push(1).unwrap();
        std::process::exit(0);
    };
    assert!(Process::spawn(exit, queue.clone())?.join()?.success());
    assert_eq!(queue.pop(), Ok(1));
    pops_before_it_pushes(&queue);
    Ok(())
}

#[test]
fn join_by_reference_waits_for_another_thread_after_the_last_clone_is_dropped() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(1)?;
    drop(queue.clone());
    queue.push(1)?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let join = scope.spawn(|| sleeper.run(|| queue.join()));
        sleeper.is_asleep();
        assert_eq!(queue.pop(), Ok(1));
        queue.task_done().unwrap();
        assert_eq!(join.join().unwrap(), Ok(()));
    });
    Ok(())
}

#[cfg(not(long_slices))]
#[test]
fn a_process_of_one_thread_is_alone_only_without_a_deadline() -> Result {
    let _none = Leftovers::none();
    let alone = |()| {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert_eq!(threads, 1);
        let time = Duration::from_millis(60);
        let queue = Queue::<u32>::bounded(1).unwrap();
        let start = Instant::now();
        assert_eq!(queue.pop_timeout(time), Err(PopError::TimedOut));
        assert!(start.elapsed() >= time);
        queue.push(1).unwrap();
        let start = Instant::now();
        let pushed = queue.push_timeout(2, time);
        assert!(matches!(pushed, Err(PushError::TimedOut(2))), "{pushed:?}");
        let unfinished = queue.join_timeout(time);
        assert_matches!(unfinished, Err(JoinError::TimedOut { unfinished: 1, .. }));
        assert!(start.elapsed() >= 2 * time);
        // The calls without a timeout would never end.
        let pushed = queue.push(2);
        assert!(
            matches!(pushed, Err(PushError::Disconnected(2))),
            "{pushed:?}"
        );
        let unfinished = queue.join();
        assert_matches!(
            unfinished,
            Err(JoinError::Disconnected { unfinished: 1, .. })
        );
        queue.pop().unwrap();
        assert_eq!(queue.pop(), Err(PopError::Disconnected));
    };
    assert!(Process::spawn(alone, ())?.join()?.success());
    Ok(())
}

#[test]
fn a_handle_that_threads_share_by_reference_is_not_alone() -> Result {
    let _none = Leftovers::none();
    for _ in 0..200 {
        let queue = Queue::bounded(1)?;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..5).for_each(|x| queue.push(x).unwrap()));
            (0..5).for_each(|x| assert_eq!(queue.pop(), Ok(x)));
        });
    }
    Ok(())
}

#[test]
fn a_handle_under_way_keeps_the_queue_connected() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::<u32>::bounded(8)?.split();
    let post = Queue::bounded(1)?;
    post.push(sender)?;
    assert_eq!(
        receiver.recv_timeout(Duration::from_millis(20)),
        Err(PopError::TimedOut)
    );
    let sender: Sender<u32> = post.pop()?;
    sender.send(1)?;
    drop(sender);
    assert_eq!(
        (receiver.recv(), receiver.recv()),
        (Ok(1), Err(PopError::Disconnected))
    );
    // One that never arrives.
    let (sender, receiver) = Queue::<u32>::bounded(8)?.split();
    post.push(sender)?;
    drop(post);
    assert_eq!(receiver.recv(), Err(PopError::Disconnected));
    Ok(())
}

#[test]
fn b68_what_was_pushed_before_the_exit_is_not_lost() -> Result {
    let _none = Leftovers::none();
    for size in [1, 10_000] {
        let queue = Queue::<Vec<u8>>::bounded(200)?;
        let push = |(queue, size): (Queue<Vec<u8>>, usize)| {
            (0..100).for_each(|_| queue.push(vec![1; size]).unwrap());
            std::process::exit(3);
        };
        let child = Process::spawn(push, (queue.clone(), size))?;
        assert_eq!(child.join()?.code(), Some(3));
        for _ in 0..100 {
            assert_eq!(queue.pop()?, vec![1; size]);
        }
    }
    Ok(())
}

#[test]
fn pools_and_forked_children_use_queues() -> Result {
    let _none = Leftovers::none();
    let (sender, receiver) = Queue::<u64>::bounded(1_000)?.split();
    let pool = Pool::processes(2)?;
    pool.map(closure!([sender] |x: u64| sender.send(x).unwrap()), 0..100)?;
    let forked = Forked::builder().workers(2).allow_threads(true).build()?;
    forked.map(|x: u64| sender.send(x).unwrap(), 100..200)?;
    let made = pool
        .submit(|()| Queue::<u64>::bounded(3).unwrap(), ())
        .result()?;
    made.push(1)?;
    assert_eq!(made.pop()?, 1);
    drop(sender);
    pool.close()?;
    let mut all: Vec<u64> = receiver.iter().collect();
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
    Ok(())
}

/// Returns a child that may push and is killed, and that has not been joined.
fn killed_producer() -> std::result::Result<(Process, Receiver<u32>), Box<dyn std::error::Error>> {
    let (sender, receiver) = Queue::bounded(8)?.split();
    let child = Process::spawn(push_and_stay, (sender, 1))?;
    assert_eq!(receiver.recv(), Ok(0));
    kill(child.pid());
    Ok((child, receiver))
}

#[test]
fn b65_calls_that_wait_shortly_or_not_at_all_hear_of_a_death() -> Result {
    let _none = Leftovers::none();
    let (child, receiver) = killed_producer()?;
    eventually("a short wait hears of it", || {
        receiver.recv_timeout(Duration::from_millis(1)) == Err(PopError::Disconnected)
    });
    child.join()?;
    let (child, receiver) = killed_producer()?;
    eventually("a call that does not wait hears of it", || {
        receiver.try_recv() == Err(PopError::Disconnected)
    });
    child.join()?;
    Ok(())
}

#[test]
fn what_is_ready_is_not_empty() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<u32>::bounded(2)?;
    let child = Process::spawn(
        |queue: Queue<u32>| {
            queue.push(1).unwrap();
            loop {
                std::thread::park();
            }
        },
        queue.clone(),
    )?;
    assert_eq!(queue.pop(), Ok(1));
    kill(child.pid());
    child.join()?;
    // `try_pop` says that it is empty, so it is not ready.
    assert_eq!(queue.try_pop(), Err(PopError::Empty));
    let time = Duration::from_millis(20);
    assert_eq!(wait_ready(&[&queue], Some(time)), [0usize; 0]);
    queue.close();
    assert_eq!(wait_ready(&[&queue], Some(time)), [0]);
    Ok(())
}

/// Forks by itself. The child uses a copy of its parent's handle, and ends in order.
fn fork_and_use(used: impl FnOnce()) -> nix::unistd::Pid {
    // SAFETY: the other thread of this program waits, and has nothing locked.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            used();
            // SAFETY: it runs what is registered for the end of a process.
            unsafe { libc::exit(0) }
        }
    }
}

/// A child that has ended counts until it is reclaimed. It is none of those that go during a call.
#[cfg(not(long_slices))]
#[test]
fn b144_a_child_that_has_ended_before_a_call_does_not_disconnect_a_whole_handle() -> Result {
    let name = "ends::b144_a_child_that_has_ended_before_a_call_does_not_disconnect_a_whole_handle";
    if !is_program() {
        let _none = Leftovers::none();
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return Ok(());
    }
    let wait = |child| nix::sys::wait::waitpid(child, None).unwrap();
    let long = Duration::from_millis(300);
    for _ in 0..3 {
        let queue = Queue::<u8>::bounded(1)?;
        wait(fork_and_use(|| {
            assert_eq!(queue.try_pop(), Err(PopError::Empty));
        }));
        assert_eq!(queue.pop_timeout(long), Err(PopError::TimedOut));
        queue.push(1)?;
        wait(fork_and_use(|| assert!(queue.try_push(2).is_err())));
        assert_matches!(queue.push_timeout(3, long), Err(PushError::TimedOut(3)));
        // It had seen that there are others, and no handle has gone since.
        let (ready, stay) = (Queue::<u8>::bounded(1)?, Queue::<u8>::bounded(1)?);
        let child = fork_and_use(|| {
            assert!(queue.try_push(2).is_err());
            ready.push(1).unwrap();
            assert_eq!(stay.pop_timeout(DEADLINE), Ok(1));
        });
        assert_eq!(ready.pop_timeout(DEADLINE), Ok(1));
        assert_matches!(queue.push_timeout(3, long), Err(PushError::TimedOut(3)));
        stay.push(1)?;
        wait(child);
        assert_matches!(queue.push_timeout(3, long), Err(PushError::TimedOut(3)));
    }
    // One that ends meanwhile is one of those.
    let [queue, ready, stay] = [(); 3].map(|()| Queue::<u8>::bounded(1).unwrap());
    let child = fork_and_use(|| {
        assert_eq!(queue.try_pop(), Err(PopError::Empty));
        ready.push(1).unwrap();
        assert_eq!(stay.pop_timeout(DEADLINE), Ok(1));
    });
    assert_eq!(ready.pop_timeout(DEADLINE), Ok(1));
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        let popper = scope.spawn(|| sleeper.run(|| queue.pop_timeout(DEADLINE)));
        sleeper.is_asleep();
        stay.push(1).unwrap();
        wait(child);
        assert_eq!(popper.join().unwrap(), Err(PopError::Disconnected));
    });
    Ok(())
}
