//! What can be asked of a pool of processes, one module for each kind of question. The numbers in
//! the names are the lines of the list of behaviours (`docs/behaviours.md`).

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod ends;
mod false_starts;
mod futures;
mod initializer;
mod limits;
mod output;
mod stopped;
mod surroundings;
mod threads;
mod turnover;
mod waits;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{DEADLINE, children_of, eventually, is_running, kill};
use manyhands::prelude::*;

/// A folder of a test's own, gone with it: what tasks in other processes leave for each other.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("processes-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn count(&self, prefix: &str) -> usize {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn touch(path: PathBuf) {
    File::create(path).unwrap();
}

/// Makes a file at the end of its scope: lets those go on that wait for it, whatever happens there.
struct Touches(PathBuf);

impl Drop for Touches {
    fn drop(&mut self) {
        touch(self.0.clone());
    }
}

/// Runs until the file is there, and gives the pid.
#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn wait_for(path: PathBuf) -> u32 {
    while !path.exists() {
        std::thread::sleep(common::PAUSE);
    }
    std::process::id()
}

/// Says that it has begun, and goes on until the file is there.
fn begin_and_wait((begun, end): (PathBuf, PathBuf)) -> u32 {
    touch(begun);
    wait_for(end)
}

/// Waits until the pool, whose worker is idle, refuses or cancels tasks. That a task is done would
/// not show it: the worker may have run it.
fn takes_no_more(pool: &Pool<Processes>) {
    eventually("the pool takes no more", || {
        pool.submit(pid, 0).result().is_err()
    });
}

fn pid(_: u32) -> u32 {
    std::process::id()
}

/// Never ends by itself.
fn endless(_: u32) -> u32 {
    loop {
        std::thread::park();
    }
}

/// The outcome of a task that must end.
#[track_caller]
fn outcome<R>(mut task: TaskFuture<R>) -> Result<R, TaskError> {
    task.result_timeout(DEADLINE)
        .expect("a task has not ended in time")
}

fn workers() -> BTreeSet<u32> {
    children_of(std::process::id())
}

/// Kills all workers. None of them runs any more when this returns: one that is being killed may
/// still begin with a task.
fn end_workers() {
    let workers = workers();
    workers.iter().copied().for_each(kill);
    eventually("the workers have ended", || {
        !workers.iter().copied().any(is_running)
    });
}
