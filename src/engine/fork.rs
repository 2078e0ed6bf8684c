//! Forking this process: for the children of forked pools, for fork servers and for their workers.

use std::io::Write;
use std::time::{Duration, Instant};

use super::threads;
use crate::array::fork_guard::{self, Taken, Takes};
use crate::error::PoolError;
use crate::os::fork::Original;
use crate::os::{self, exit, fault, task};
use crate::panic;

/// Checks that no other threads run.
pub(crate) fn check_threads() -> Result<(), PoolError> {
    let start = Instant::now();
    loop {
        match threads_beside()? {
            0 => return Ok(()),
            // One of ours may be about to park, or gone and still listed.
            _ if start.elapsed() < SETTLING => std::thread::yield_now(),
            threads => return Err(PoolError::ThreadsRunning { threads }),
        }
    }
}

/// How long the crate's own threads may take to come to rest before they count as others.
const SETTLING: Duration = Duration::from_millis(20);

/// How many threads run beside the caller, those that this crate keeps parked left out. The threads of a pool with
/// something to do are not parked: they count.
fn threads_beside() -> Result<usize, PoolError> {
    let ids = task::ids().map_err(|error| {
        PoolError::system("the threads of this process could not be counted", error)
    })?;
    let mut parked = task::own_ids();
    parked.extend(threads::idle_thread_ids().unwrap_or_default());
    parked.push(task::current());
    Ok(ids.into_iter().filter(|id| !parked.contains(id)).count())
}

/// Forks; the child never comes back from `run`.
///
/// Standard output and error are flushed before, so that the child does not print again what the parent had buffered,
/// and locked during the fork, so that the child finds them free.
///
/// What the child has in its copies of this process's memory (objects, and slices of arrays) stays as it is as long as the
/// parent keeps what this returns.
///
/// # Errors
///
/// Also that this process has elements of an array to write to.
#[allow(unsafe_code)]
pub(crate) fn fork_child(takes: Takes, run: impl FnOnce()) -> std::io::Result<(u32, Taken)> {
    // Of the same family, whichever of the two needs it first.
    crate::memory::family::for_children();
    let fork = fork_guard::Fork::new(takes);
    let (out, err, departure) = loop {
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        // A closed or full output is not this call's business.
        let _ = (out.flush(), err.flush());
        match fork.depart()? {
            Ok(departure) => break (out, err, departure),
            Err(in_the_way) => {
                // With nothing locked that those who are waited for may want.
                drop((out, err));
                fork.wait(in_the_way)?;
            }
        }
    };
    let fate = fault::for_next_child();
    // SAFETY: either no other thread runs (`check_threads`), or whoever allowed that was told what it may lead to: a
    // child that waits for ever. What it cannot lead to is a data race: the child's memory is its own.
    match unsafe { os::fork::fork() }? {
        os::fork::Side::Parent { child } => {
            drop((out, err));
            Ok((child, departure.end()))
        }
        os::fork::Side::Child => {
            fate.arm();
            drop((out, err, departure));
            // It is the parent that waited.
            std::mem::forget(fork);
            let original = Original::here();
            // No unwinding into the copy of the caller's frames.
            let ended = panic::catch(run);
            original.end_copy_after(&ended);
            let code = if ended.is_ok() { 0 } else { 101 };
            // No exit handler runs here, and there is one that sees to what the child itself has started and made.
            exit::end();
            let _ = (std::io::stdout().flush(), std::io::stderr().flush());
            os::fork::exit_now(code)
        }
    }
}
