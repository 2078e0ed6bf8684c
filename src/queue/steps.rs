//! Between which two steps a process is killed, for the tests. In other builds there is nothing here.

#[cfg(not(test))]
#[inline]
pub(crate) fn step() {}

#[cfg(test)]
pub(crate) use tests::step;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use nix::sys::signal::{Signal, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use crate::os::fork::{self, Side};
    use crate::queue::{JoinError, PopError, PriorityQueue, Queue, Stack};
    use crate::shm::{member, payload};

    /// How many steps a child has left.
    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

    pub(crate) fn step() {
        if LEFT.load(Ordering::Relaxed) != i64::MAX && LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
            let _ = raise(Signal::SIGKILL);
        }
    }

    /// Runs `body` in a forked child that dies at the step given; whether it got to the end before.
    fn dies_at(number: i64, body: impl FnOnce()) -> bool {
        // SAFETY: other threads hold none of the locks that the child takes: the allocator's, which the C library sees
        // to, and those of queues that only this test has.
        #[allow(unsafe_code)]
        match unsafe { fork::fork() }.unwrap() {
            Side::Child => {
                LEFT.store(number, Ordering::Relaxed);
                body();
                fork::exit_now(0);
            }
            Side::Parent { child } => {
                let status = waitpid(Pid::from_raw(child.cast_signed()), None).unwrap();
                match status {
                    WaitStatus::Exited(_, 0) => true,
                    WaitStatus::Signaled(_, Signal::SIGKILL, _) => false,
                    status => panic!("{status:?} at step {number}"),
                }
            }
        }
    }

    fn item(number: u8, len: usize) -> Vec<u8> {
        vec![number; len]
    }

    macro_rules! at_each_step {
        ($new:expr, $push:expr, $len:expr, $buries_first:expr) => {{
            let (push, len) = ($push, $len);
            let (mut pushed_at, mut popped_at) = (None, None);
            for pops in [false, true] {
                for number in 0.. {
                    let queue = $new;
                    let payloads = payload::count();
                    push(&queue, item(1, len));
                    push(&queue, item(2, len));
                    let is_through = dies_at(number, || {
                        if pops {
                            queue.pop().unwrap();
                        } else {
                            push(&queue, item(3, len));
                        }
                    });
                    if $buries_first {
                        member::bury_dead();
                    }
                    // Both sides go on.
                    push(&queue, item(4, len));
                    let mut got = Vec::new();
                    loop {
                        match queue.try_pop() {
                            Ok(it) => {
                                assert!(it == item(it[0], len), "torn");
                                got.push(it[0]);
                                queue.task_done().unwrap();
                            }
                            Err(PopError::Empty) => break,
                            Err(error) => panic!("{error} at step {number}"),
                        }
                    }
                    // At the latest now.
                    member::bury_dead();
                    got.sort_unstable();
                    let (bytes_in, bytes_out) = queue.port.bytes();
                    assert_eq!(bytes_in, bytes_out, "step {number}");
                    let joined = queue.join();
                    if pops {
                        let is_one_lost = got.len() == 2;
                        assert!(is_one_lost && got[1] == 4 || got == [1, 2, 4], "{got:?}");
                        let lost = if is_one_lost {
                            Err(JoinError::Lost { items: 1 })
                        } else {
                            Ok(())
                        };
                        assert_eq!(joined, lost, "step {number}");
                        popped_at = popped_at.or(is_one_lost.then_some(number));
                    } else {
                        let is_pushed = got.contains(&3);
                        assert!(got == [1, 2, 4] || got == [1, 2, 3, 4], "{got:?}");
                        assert_eq!(joined, Ok(()), "step {number}");
                        pushed_at = pushed_at.or(is_pushed.then_some(number));
                    }
                    assert_eq!(payload::count(), payloads, "step {number}");
                    if is_through {
                        break;
                    }
                }
            }
            // Both were killed before and after it happened.
            assert!(pushed_at > Some(0) && popped_at > Some(0));
        }};
    }

    #[test]
    fn b64_killed_between_any_two_steps() {
        for len in [10, 1_000, 100_000] {
            for buries_first in [true, false] {
                at_each_step!(
                    Queue::bounded(5).unwrap(),
                    |queue: &Queue<Vec<u8>>, item| queue.push(item).unwrap(),
                    len,
                    buries_first
                );
                at_each_step!(
                    Stack::bounded(5).unwrap(),
                    |stack: &Stack<Vec<u8>>, item| stack.push(item).unwrap(),
                    len,
                    buries_first
                );
                at_each_step!(
                    PriorityQueue::bounded(5).unwrap(),
                    |queue: &PriorityQueue<Vec<u8>>, item: Vec<u8>| {
                        queue.push(i64::from(item[0]) % 3, item).unwrap();
                    },
                    len,
                    buries_first
                );
            }
        }
    }
}
