//! The threads of this process.

use std::fs;
use std::io;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::fork::PerProcess;
use super::refusal::refused;
use super::worker;

/// Returns the thread ids of all threads of this process, the caller's among them.
pub(crate) fn ids() -> io::Result<Vec<i32>> {
    fs::read_dir("/proc/self/task")
        .map_err(|error| refused("open", "/proc/self/task", error))?
        .map(|entry| {
            let name = entry?.file_name();
            name.to_str()
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| io::Error::other("an entry of /proc/self/task is not a thread id"))
        })
        .collect()
}

/// Returns the names of these threads of this process; those that have ended have none.
pub(crate) fn names(ids: impl Iterator<Item = i32>) -> Vec<String> {
    let name = |id| fs::read(format!("/proc/self/task/{id}/comm")).ok();
    let names = ids.filter_map(name);
    names
        .map(|name| String::from_utf8_lossy(&name).trim_end().to_owned())
        .collect()
}

/// Returns the names of all threads of this process but the caller.
pub(crate) fn other_names() -> io::Result<Vec<String>> {
    let own = current();
    Ok(names(ids()?.into_iter().filter(|&id| id != own)))
}

/// Returns the thread id of the caller.
pub(crate) fn current() -> i32 {
    // SAFETY: gettid takes nothing, gives a number, and cannot fail.
    unsafe { libc::gettid() }
}

/// Threads that this crate keeps for itself. They are asleep, or hold none but the crate's own
/// locks.
///
/// Each process has its own list: a forked child has none of its parent's threads, and one of them
/// may hold the lock of the child's copy.
static OWN: PerProcess<Mutex<Vec<i32>>> = PerProcess::new(Mutex::new(Vec::new()));

fn own() -> MutexGuard<'static, Vec<i32>> {
    // Nothing that could panic happens under the lock.
    OWN.own().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread of the crate's own, which takes no signals. Without a size, its stack has that
/// of all threads.
pub(crate) fn start(
    name: &str,
    stack: Option<usize>,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let mut thread = thread::Builder::new().name(name.to_owned());
    if let Some(stack) = stack {
        thread = thread.stack_size(stack);
    }
    let started = thread.spawn(move || {
        let _own = OwnThread::register();
        worker::block_signals();
        work();
    });
    started.map_err(|error| not_started(name, error))
}

/// Returns the error for a thread that the system did not start, with the limit that it met.
pub(crate) fn not_started(name: &str, error: io::Error) -> io::Error {
    refused("clone", format_args!("the thread {name}"), error)
}

/// Marks the calling thread as the crate's own, as long as it lives.
pub(crate) struct OwnThread(i32);

impl OwnThread {
    pub(crate) fn register() -> Self {
        let id = current();
        own().push(id);
        Self(id)
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        own().retain(|&id| id != self.0);
    }
}

/// Returns the thread ids of the crate's own threads.
pub(crate) fn own_ids() -> Vec<i32> {
    own().clone()
}
