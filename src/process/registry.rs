//! The children of this process whose exit status nobody has asked for yet.
//!
//! The registry keeps hold of them whatever becomes of their handles: it is what keeps their life lines open, and what
//! sees to it that none stays a zombie for longer than until the next look.
//!
//! A forked child has none of its parent's children, so each process has a registry of its own.

use std::sync::Arc;

use parking_lot::Mutex;

use super::spawned::Spawned;
use crate::os::exit::{self, Turn};
use crate::os::fork::PerProcess;

static REGISTRY: PerProcess<Registry> = PerProcess::new(Registry::new());

#[derive(Default)]
struct Registry {
    children: Mutex<Vec<Arc<Spawned>>>,
}

impl Registry {
    const fn new() -> Self {
        Self {
            children: Mutex::new(Vec::new()),
        }
    }

    /// This process's own.
    fn own() -> &'static Self {
        REGISTRY.own()
    }

    /// The children as they are now. Nothing else is done under the lock.
    fn children(&self) -> Vec<Arc<Spawned>> {
        self.children.lock().clone()
    }
}

/// Takes charge of a child, and reaps others that have ended.
pub(super) fn add(child: Arc<Spawned>) {
    exit::call_at_exit(Turn::Children, end_children);
    reap_ended();
    Registry::own().children.lock().push(child);
}

/// The child has been reaped. Only its own process may say so.
pub(super) fn remove(child: &Spawned) {
    let mut children = Registry::own().children.lock();
    let place = children
        .iter()
        .position(|other| std::ptr::eq(&raw const **other, child));
    let removed = place.map(|place| children.swap_remove(place));
    drop(children);
    // Perhaps the last one who had it: its descriptors are closed without the lock.
    drop(removed);
}

fn reap_ended() {
    for child in Registry::own().children() {
        child.exit_status();
    }
}

/// The children of this process that have not ended. Reaps those that have.
pub(super) fn active() -> Vec<Arc<Spawned>> {
    let mut children = Registry::own().children();
    children.retain(|child| child.exit_status().is_none());
    children
}

/// What a process owes its children when it ends normally: daemons are killed, the others waited for.
fn end_children() {
    loop {
        // Again each time: a thread of this process may have started more.
        let children = Registry::own().children();
        for daemon in children.iter().filter(|child| child.is_daemon()) {
            daemon.kill();
        }
        let Some(child) = children.into_iter().next() else {
            return;
        };
        child.wait(None);
    }
}
