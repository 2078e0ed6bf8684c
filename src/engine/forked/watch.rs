//! [`Watcher`]: hears of the end of tasks for which no thread waits.
//!
//! A forked child can tell its parent only by what the parent polls, so a thread of the parent must
//! poll. As long as a thread waits for a handle, that thread polls. For handles with callbacks or
//! wakers one thread for each pool does, which is there while it has something to watch. It counts
//! as one of the crate's own threads, so it does not keep other threads from forking.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::child::{Forked as Child, wait_any};
use super::running::Running;
use crate::future::later;
use crate::os::alarm::Alarm;
use crate::os::task;

/// How long the watcher leaves a child alone whose lock another thread has. That thread takes what
/// the child publishes, but may give up waiting at any time.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(super) struct Watcher {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Tasks that the watcher's thread has not heard of.
    new: Vec<Arc<Running>>,
    /// What wakes the thread, while there is one.
    bell: Option<Arc<Alarm>>,
}

impl Watcher {
    /// Ensures that the task's hooks are run when it ends.
    pub(super) fn watch(&self, task: &Arc<Running>) {
        let mut state = self.state.lock();
        state.new.push(task.clone());
        if let Some(bell) = &state.bell {
            bell.ring();
            return;
        }
        let started = Alarm::new().and_then(|bell| {
            let bell = Arc::new(bell);
            let (own, theirs) = (self.state.clone(), bell.clone());
            task::start("manyhands-watch", None, move || run(&own, &theirs))?;
            Ok(bell)
        });
        match started {
            Ok(bell) => state.bell = Some(bell),
            Err(error) => {
                log::error!("no thread to watch a task, which is waited for instead: {error}");
                state.new.clear();
                drop(state);
                task.wait(None);
            }
        }
    }
}

fn run(state: &Mutex<State>, bell: &Alarm) {
    let mut tasks: Vec<Arc<Running>> = Vec::new();
    loop {
        {
            let mut state = state.lock();
            tasks.append(&mut state.new);
            tasks.retain(|task| !task.is_done());
            // No task is left: the thread ends. The next task to watch starts another one.
            if tasks.is_empty() {
                state.bell = None;
                return;
            }
        }
        for task in &tasks {
            if let Some(mut child) = task.child.try_lock() {
                task.look(&mut child);
            }
        }
        later::flush();
        wait_for_any(bell, &tasks);
    }
}

/// Waits until one of the children ends or has something to say, or until the watcher's own bell
/// rings.
fn wait_for_any(bell: &Alarm, tasks: &[Arc<Running>]) {
    // The locks are held while waiting, because only the thread that holds one may listen to its
    // child's bell.
    let locked: Vec<_> = tasks
        .iter()
        .filter_map(|task| Some((task, task.child.try_lock()?)))
        .collect();
    let children = || {
        let children = locked.iter().map(|(_, child)| child.as_ref());
        children.map(|child| child.map(|(child, _)| child))
    };
    children().flatten().for_each(Child::ask_for_bell);
    // A child that is not there any more has ended.
    if children().any(|child| child.is_none_or(Child::has_next)) {
        return;
    }
    let bells: Vec<_> = std::iter::once(bell)
        .chain(locked.iter().map(|(task, _)| &*task.bell))
        .collect();
    let until_next_look = (locked.len() < tasks.len()).then_some(LOOK_INTERVAL);
    let pauses = tasks.iter().filter_map(|task| task.pause(None));
    let timeout = pauses.chain(until_next_look).min();
    // If another thread has a child's lock, that thread looks at the child, also when it ends.
    let processes: Vec<_> = locked.iter().map(|(task, _)| task.process()).collect();
    let processes = processes.iter().map(|process| process.as_fd());
    wait_any(&bells, processes, timeout);
}
