//! Who this process is, and who started it: [`current`] and [`parent`].
//!
//! A process that this crate has started is told so in its greeting. One that was forked from it is a copy, and knows
//! by the number of forks between the two.

use std::os::unix::process::parent_id;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::ExitStatus;
use crate::error::PoolError;
use crate::os::fork;

/// What the first process of a program is called.
const ROOT: &str = "main";

/// How many processes may lie one inside the other, below the first. Whoever wants more is most likely in an endless
/// recursion, which would take the machine with it.
const DEEPEST: u32 = 16;

/// Longest name that goes into a worker's greeting, in bytes.
const LONGEST_NAME: usize = 256;

/// What a process is told of itself and its parent on its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Origin {
    name: String,
    parent: u32,
    parent_name: String,
    /// How many processes lie between this one and the first: 1 for a child of the first.
    depth: u32,
}

/// Set at the start, and again in a worker that was forked; with the number of forks at that time. `None` in a first
/// process.
static ORIGIN: RwLock<Option<(Origin, u32)>> = RwLock::new(None);

impl Origin {
    /// Of a process that this one starts.
    pub(super) fn of_child(child: String) -> Self {
        Self {
            name: child,
            parent: std::process::id(),
            parent_name: name(),
            depth: depth() + 1,
        }
    }

    /// Of a worker that this process starts.
    pub(crate) fn of_worker(pool: &str, number: usize) -> Self {
        let mut origin = Self::of_child(format!("{}:{number}", cut(pool)));
        origin.parent_name = cut(&origin.parent_name).to_owned();
        origin
    }

    /// This process is the one meant.
    pub(crate) fn arrive(self) {
        *ORIGIN.write() = Some((self, fork::generation()));
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(LONGEST_NAME)]
}

/// How often this process was forked since it was told who it is, or since the start of a first process.
fn forks() -> u32 {
    let arrived = ORIGIN.read().as_ref().map_or(0, |(_, forks)| *forks);
    fork::generation() - arrived
}

/// The name of this process.
pub(super) fn name() -> String {
    name_after(forks())
}

/// The name of this process so many forks after it was told it.
fn name_after(forks: u32) -> String {
    let origin = ORIGIN.read();
    let name = origin.as_ref().map_or(ROOT, |(origin, _)| &origin.name);
    format!("{name}{}", ":forked".repeat(forks as usize))
}

/// How many processes this one is away from the first of the program: 0 for that.
pub(crate) fn depth() -> u32 {
    let depth = ORIGIN.read().as_ref().map_or(0, |(origin, _)| origin.depth);
    depth + forks()
}

/// # Errors
///
/// [`PoolError::TooDeep`] if this process shall start no others.
pub(crate) fn check_depth() -> Result<(), PoolError> {
    if depth() < DEEPEST {
        Ok(())
    } else {
        Err(PoolError::TooDeep { limit: DEEPEST })
    }
}

/// What is known of a process: see [`current`] and [`parent`].
///
/// # Examples
///
/// ```
/// let this = manyhands::process::current();
/// assert!(this.is_alive() && this.exit_status().is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    name: String,
    pid: u32,
}

impl ProcessInfo {
    /// Whether this is the process that has this one as a worker, and a third one has forked it. Then it lives: this one
    /// would not outlive it.
    fn is_over_server(&self) -> bool {
        let origin = ORIGIN.read();
        let own = origin
            .as_ref()
            .filter(|(_, forks)| *forks > 0 && *forks == fork::generation());
        own.is_some_and(|(origin, _)| origin.parent == self.pid)
    }

    /// What it is called: `main` for the first process of a program, what
    /// [`ProcessBuilder::name`](super::ProcessBuilder::name) said for a child, pool and number (`pool0:1`) for a pool's
    /// worker; a forked process has `:forked` behind the name of the one it was forked from.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::process::current().name(), "main");
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::process::current().pid(), std::process::id());
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(manyhands::process::current().is_alive());
    /// ```
    pub fn is_alive(&self) -> bool {
        // Of a parent that has died the kernel says that this process is somebody else's child.
        self.pid == std::process::id() || self.pid == parent_id() || self.is_over_server()
    }

    /// How it ended: always `None`. A process that can ask has not ended, and how its parent ended the system tells
    /// nobody but that one's parent. Of a child, [`Process::exit_status`](super::Process::exit_status) says it.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::process::current().exit_status(), None);
    /// ```
    pub fn exit_status(&self) -> Option<ExitStatus> {
        None
    }
}

/// The process that asks.
///
/// # Examples
///
/// ```
/// use manyhands::process;
///
/// let this = process::current();
/// assert_eq!((this.name(), this.pid()), ("main", std::process::id()));
/// ```
pub fn current() -> ProcessInfo {
    ProcessInfo {
        name: name(),
        pid: std::process::id(),
    }
}

/// The process that started this one: as a [`Process`](super::Process), as a worker of a pool, or by forking. `None` in
/// the first process of a program, whatever started that.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::process;
///
/// assert_eq!(process::parent(), None);
/// let pool = Pool::processes(1)?;
/// let parent = pool.submit(|()| process::parent().map(|parent| parent.pid()), ());
/// assert_eq!(parent.result()?, Some(std::process::id()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parent() -> Option<ProcessInfo> {
    match forks() {
        0 => ORIGIN.read().as_ref().map(|(origin, _)| ProcessInfo {
            name: origin.parent_name.clone(),
            pid: origin.parent,
        }),
        forks => Some(ProcessInfo {
            name: name_after(forks - 1),
            pid: fork::forked_from(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_fit_into_a_greeting() {
        let origin = Origin::of_worker(&"ß".repeat(5_000), 3);
        assert_eq!(origin.name, format!("{}:3", "ß".repeat(128)));
        assert!(origin.parent_name.len() <= LONGEST_NAME);
    }
}
