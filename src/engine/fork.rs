//! Forks this process: for the children of forked pools, for fork servers and for their workers.

use std::io::Write;
use std::time::{Duration, Instant};

use super::{logs, threads};
use crate::array::fork_guard::{self, Taken, Takes};
use crate::error::PoolError;
use crate::os::fork::Original;
use crate::os::{self, exit, fault, task};
use crate::panic;

/// Checks that no other threads run.
pub(crate) fn check_threads() -> Result<(), PoolError> {
    let start = Instant::now();
    loop {
        let others = threads_beside()?;
        if others.is_empty() {
            return Ok(());
        }
        // A thread of this crate may be about to park, or have ended and still be listed.
        if start.elapsed() < SETTLING {
            std::thread::yield_now();
            continue;
        }
        let names = task::names(others.into_iter());
        // They may all have ended meanwhile.
        if !names.is_empty() {
            return Err(PoolError::ThreadsRunning { names });
        }
    }
}

/// How long the crate's own threads may take to come to rest before they count as others.
const SETTLING: Duration = Duration::from_millis(20);

/// Returns the ids of the threads that run beside the caller, without those that this crate keeps
/// parked. The threads of a pool that has something to do are not parked: they count.
fn threads_beside() -> Result<Vec<i32>, PoolError> {
    let ids = task::ids().map_err(|error| {
        PoolError::system("the threads of this process could not be counted", error)
    })?;
    let mut parked = task::own_ids();
    parked.extend(threads::idle_thread_ids().unwrap_or_default());
    parked.push(task::current());
    Ok(ids.into_iter().filter(|id| !parked.contains(id)).collect())
}

/// Forks this process. The child never comes back from `run`.
///
/// Standard output and error are flushed before the fork, so that the child does not print again
/// what the parent had buffered. They are locked during the fork, so that the child finds them
/// free. No courier is in the program's logger meanwhile ([`logs::keep_out`]).
///
/// The child's copies of this process's memory (objects, and slices of arrays) stay as they are as
/// long as the parent keeps what this returns.
///
/// # Errors
///
/// Any error of the system; also if this process has elements of an array to write to.
#[allow(unsafe_code)]
pub(crate) fn fork_child(takes: Takes, run: impl FnOnce()) -> std::io::Result<(u32, Taken)> {
    // The family is made before the fork, so that both belong to the same one, whichever needs it
    // first.
    crate::memory::family::for_children();
    let fork = fork_guard::Fork::new(takes);
    let (logger, out, err, departure) = loop {
        // This comes first: a courier in the logger may need the streams.
        let logger = logs::keep_out();
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        // If the output is closed or full, that is no error of this call.
        let _ = (out.flush(), err.flush());
        match fork.depart()? {
            Ok(departure) => break (logger, out, err, departure),
            Err(in_the_way) => {
                // The streams are unlocked first: the threads that are waited for may need them.
                drop((out, err, logger));
                fork.wait(in_the_way)?;
            }
        }
    };
    let fate = fault::for_next_child();
    // SAFETY: either no other thread runs (`check_threads`), or the caller who allowed threads was
    // told what that may lead to: a child that waits for ever. It cannot lead to a data race: the
    // child's memory is its own.
    match unsafe { os::fork::fork() }? {
        os::fork::Side::Parent { child } => {
            drop((out, err, logger));
            Ok((child, departure.end()))
        }
        os::fork::Side::Child => {
            fate.arm();
            // The guard of the child's copy is not dropped: that could wait for threads that the
            // child does not have.
            std::mem::forget(logger);
            drop((out, err, departure));
            // Not dropped: only the parent has waited.
            std::mem::forget(fork);
            let original = Original::here();
            // A panic must not unwind into the copy of the caller's frames.
            let ended = panic::catch(run);
            original.end_copy_after(&ended);
            let code = if ended.is_ok() { 0 } else { 101 };
            // `exit_now` runs no exit handlers, so `end` runs the one that ends what the child
            // itself has started and made.
            exit::end();
            let _ = (std::io::stdout().flush(), std::io::stderr().flush());
            os::fork::exit_now(code)
        }
    }
}
