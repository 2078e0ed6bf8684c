//! The children of this process that it has not reaped yet.
//!
//! The registry holds them whatever happens to their handles: it keeps their life lines open, and
//! lets none stay a zombie after the next call that reaps.
//!
//! A forked child has none of its parent's children, so each process has a registry of its own.

use std::sync::Arc;

use parking_lot::Mutex;

use super::logs;
use super::spawned::Spawned;
use crate::os::exit::{self, Turn};
use crate::os::fork::PerProcess;

static REGISTRY: PerProcess<Mutex<Vec<Arc<Spawned>>>> = PerProcess::new(Mutex::new(Vec::new()));

/// Returns the children as they are now. Nothing else is done under the lock.
fn children() -> Vec<Arc<Spawned>> {
    REGISTRY.own().lock().clone()
}

/// Adds a child, and reaps others that have ended.
pub(super) fn add(child: Arc<Spawned>) {
    exit::call_at_exit(Turn::Children, end_children);
    reap_ended();
    REGISTRY.own().lock().push(child);
}

/// Removes a child that has been reaped. Only the process that started it may call this.
pub(super) fn remove(child: &Spawned) {
    let mut children = REGISTRY.own().lock();
    let place = children
        .iter()
        .position(|other| std::ptr::eq(&raw const **other, child));
    let removed = place.map(|place| children.swap_remove(place));
    drop(children);
    // This may be the last reference: the child's descriptors are closed here, without the lock.
    drop(removed);
}

fn reap_ended() {
    for child in children() {
        child.exit_status();
    }
}

/// Returns the children of this process that have not ended. Reaps those that have.
pub(super) fn active() -> Vec<Arc<Spawned>> {
    let mut children = children();
    children.retain(|child| child.exit_status().is_none());
    children
}

/// Ends the children when this process ends normally: kills the daemons and waits for the others.
fn end_children() {
    loop {
        // The list is read again each time: a thread of this process may have started more.
        let children = children();
        for daemon in children.iter().filter(|child| child.is_daemon) {
            if let Err(error) = daemon.kill() {
                log::error!("SIGKILL to process {} failed: {error}", daemon.child.pid());
            }
        }
        let Some(child) = children.into_iter().next() else {
            // Also of those that were reaped before.
            logs::wait_for_children();
            return;
        };
        child.wait(None);
    }
}
