//! Finds the descendants of processes that run, by their parents.
//!
//! They are stopped as they are found. So none of them can start another one meanwhile, or end and
//! leave its children to a process that has no part in this.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::Signal;

use super::hunt::pids;
use super::table::Table;
use crate::os::{fault, life, process_fd};

/// The most descendants that are found in this way. Beyond them there are their marks.
const MOST: usize = 512;
/// The most generations, and the most readings.
const MOST_READINGS: usize = 64;
/// If the kernel does not list the children of a process, all processes are looked at, which takes
/// some 12 µs each. If there are more than this, there are only the marks.
const MOST_PROCESSES: usize = 1_000;

/// Descendants that are stopped. They are killed when this is dropped.
#[must_use = "they are killed when this is dropped"]
pub(in crate::os) struct Stopped {
    found: Vec<(OwnedFd, Option<usize>)>,
    table: Option<&'static Table>,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for (fd, place) in self.found.drain(..) {
            // This fails for a process that has ended, and for one of another user.
            if let Err(error) = process_fd::signal(fd.as_fd(), Signal::SIGKILL) {
                log::debug!("a process that a task has started is not killed: {error}");
            }
            fault::point();
            if let Some((table, place)) = self.table.zip(place) {
                table.forget_stopped(place);
            }
        }
    }
}

/// Stops the descendants of children of this process, and the children that have any. The caller
/// kills the children next. The numbers of the children must be their own, so they must not have
/// been reaped.
pub(in crate::os) fn stop_descendants(
    roots: &[(u32, BorrowedFd<'_>)],
    table: Option<&'static Table>,
) -> Stopped {
    let mut stopped = Stopped {
        found: Vec::new(),
        table,
    };
    let mut known: BTreeMap<u32, Option<BorrowedFd<'_>>> = BTreeMap::new();
    known.extend(roots.iter().map(|(pid, fd)| (*pid, Some(*fd))));
    for _ in 0..MOST_READINGS {
        let mut is_last = true;
        for (pid, parent) in children_of(&known) {
            if known.contains_key(&pid) || stopped.found.len() >= MOST {
                continue;
            }
            // A child of this process is stopped only if it has started something.
            if let Some(Some(root)) = known.insert(parent, None) {
                let _ = process_fd::signal(root, Signal::SIGSTOP);
            }
            known.insert(pid, None);
            is_last = false;
            stopped.stop(pid, |parent| known.contains_key(&parent));
        }
        if is_last {
            break;
        }
    }
    stopped
}

impl Stopped {
    /// Stops a process if it has one of these parents.
    fn stop(&mut self, pid: u32, is_parent: impl Fn(u32) -> bool) {
        let Ok(Some(fd)) = process_fd::open(pid.cast_signed()) else {
            return;
        };
        // The descriptor means the process that has the number now.
        let Ok(seen) = life::see(pid) else { return };
        if !is_parent(seen.parent) || seen.is_dead {
            return;
        }
        // The guard kills it if this process dies before it does so itself.
        let place = self
            .table
            .map(|table| table.note_stopped(pid, seen.started));
        fault::point();
        if place != Some(None) {
            let _ = process_fd::signal(fd.as_fd(), Signal::SIGSTOP);
        }
        fault::point();
        self.found.push((fd, place.flatten()));
    }
}

/// Returns the children of these processes with their parents, as far as they can be seen.
fn children_of<T>(parents: &BTreeMap<u32, T>) -> Vec<(u32, u32)> {
    if Path::new("/proc/thread-self/children").exists() {
        let lists = parents.keys().flat_map(|&parent| {
            let children = listed_children(parent).unwrap_or_default();
            children.into_iter().map(move |child| (child, parent))
        });
        return lists.collect();
    }
    let pids = pids();
    if pids.len() > MOST_PROCESSES {
        return Vec::new();
    }
    let seen = pids
        .into_iter()
        .filter_map(|pid| Some((pid, life::see(pid).ok()?)));
    let children = seen.filter(|(_, seen)| parents.contains_key(&seen.parent) && !seen.is_dead);
    children.map(|(pid, seen)| (pid, seen.parent)).collect()
}

/// Reads the kernel's lists of the children of a process, of which each thread has one.
fn listed_children(parent: u32) -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{parent}/task")).ok()? {
        let list = fs::read_to_string(thread.ok()?.path().join("children"));
        let list = list.unwrap_or_default();
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Some(children)
}
