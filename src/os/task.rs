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
    let coming = Coming::new();
    let mask = worker::programs_mask();
    let started = thread.spawn(move || {
        let _there = There::begin(coming);
        let _own = OwnThread::register();
        worker::block_signals(mask);
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

/// The threads of the crate's own that are on their way: in or out.
///
/// A thread that starts or ends takes a lock of the standard library's, which `std::process::exit`
/// takes too. A child that is forked at that moment has a copy of the lock that is held for ever.
#[derive(Debug)]
struct Passage(Mutex<OnTheWay>);

#[derive(Debug)]
struct OnTheWay {
    /// The number of threads that are being started and have not begun their work.
    coming: usize,
    /// The ids of threads that have done their work and may be there still.
    going: Vec<i32>,
}

impl Default for Passage {
    fn default() -> Self {
        Self::new()
    }
}

/// Each process has its own, as [`OWN`].
static PASSAGE: PerProcess<Passage> = PerProcess::new(Passage::new());

impl Passage {
    const fn new() -> Self {
        Self(Mutex::new(OnTheWay {
            coming: 0,
            going: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, OnTheWay> {
        // Nothing that could panic happens under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_one(&'static self) -> Coming {
        self.lock().coming += 1;
        Coming(self)
    }

    fn settle(&self) -> Option<Settled<'_>> {
        let mut on_the_way = self.lock();
        on_the_way.going.retain(|&id| is_there(id));
        let are_settled = on_the_way.coming == 0 && on_the_way.going.is_empty();
        are_settled.then_some(Settled(on_the_way))
    }
}

/// A thread of the crate's own that is about to be started. If it is not, this is dropped.
pub(crate) struct Coming(&'static Passage);

impl Coming {
    /// To be called by the thread that starts the other one, before it does so.
    pub(crate) fn new() -> Self {
        PASSAGE.own().start_one()
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.lock().coming -= 1;
    }
}

/// A thread of the crate's own that has begun.
pub(crate) struct There(&'static Passage);

impl There {
    /// To be called by the new thread. It keeps what this returns until it has nothing more to do.
    pub(crate) fn begin(coming: Coming) -> Self {
        let passage = coming.0;
        drop(coming);
        Self(passage)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        self.0.lock().going.push(current());
    }
}

/// As long as this lives, no thread of the crate's own begins or ends.
pub(crate) struct Settled<'a>(#[expect(dead_code, reason = "it is held")] MutexGuard<'a, OnTheWay>);

/// Keeps threads of the crate's own from beginning and ending. Returns `None` while one does.
pub(crate) fn settled() -> Option<Settled<'static>> {
    PASSAGE.own().settle()
}

/// Returns whether this process has a thread with this id.
fn is_there(id: i32) -> bool {
    let own = std::process::id().cast_signed();
    // SAFETY: the call takes numbers. Signal 0 asks whether there is such a thread, and is not
    // sent.
    unsafe { libc::syscall(libc::SYS_tgkill, own, id, 0) == 0 }
}

/// Returns the thread ids of the crate's own threads.
pub(crate) fn own_ids() -> Vec<i32> {
    own().clone()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn nothing_is_settled_while_a_thread_of_the_crates_own_comes_or_goes() {
        let passage: &'static Passage = Box::leak(Box::default());
        let is_settled = || passage.settle().is_some();
        assert!(is_settled());
        let coming = passage.start_one();
        assert!(!is_settled(), "a thread is being started");
        drop(coming);
        assert!(is_settled(), "it was not started");

        let (tell, told) = channel();
        let (go, may_go) = channel();
        let coming = passage.start_one();
        let thread = thread::spawn(move || {
            let there = There::begin(coming);
            tell.send(current()).unwrap();
            may_go.recv().unwrap();
            drop(there);
            tell.send(0).unwrap();
            may_go.recv().unwrap();
        });
        let id = told.recv().unwrap();
        assert!(is_there(id) && is_settled(), "it has begun");
        go.send(()).unwrap();
        told.recv().unwrap();
        assert!(!is_settled(), "it has nothing more to do, and is there");
        go.send(()).unwrap();
        thread.join().unwrap();
        // The kernel lists a thread for some microseconds more.
        while is_there(id) {
            thread::yield_now();
        }
        assert!(is_settled(), "it is gone");
    }
}
