//! The identity of this process and of the process that started it: [`current`] and [`parent`].
//!
//! A process that this crate has started gets its identity in its greeting. A process that was
//! forked from it is a copy, and derives its identity from the number of forks between the two.

use std::os::unix::process::parent_id;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::error::ProcessError;
use crate::os::fork;

/// The name of the first process of a program.
const ROOT: &str = "main";

/// How many processes may lie one inside the other, below the first. A program that wants more is
/// most likely in an endless recursion, which would use up the machine.
const DEEPEST: u32 = 16;

/// Longest name that goes into a worker's greeting, in bytes.
const LONGEST_NAME: usize = 256;

/// The identity that a process is given at its start: its own and its parent's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Origin {
    name: String,
    parent: u32,
    parent_name: String,
    /// How many steps this process is below the first: 1 for a child of the first.
    depth: u32,
}

/// The identity of this process, with the number of forks when it was set. It is set at the start,
/// and again in a worker that was forked. `None` in a first process.
static ORIGIN: RwLock<Option<(Origin, u32)>> = RwLock::new(None);

impl Origin {
    /// Makes the identity of a process that this one starts.
    pub(super) fn of_child(child: String) -> Self {
        Self {
            name: child,
            parent: std::process::id(),
            parent_name: name(),
            depth: depth() + 1,
        }
    }

    /// Makes the identity of a worker that this process starts.
    pub(crate) fn of_worker(pool: &str, number: usize) -> Self {
        let mut origin = Self::of_child(format!("{}:{number}", cut(pool)));
        origin.parent_name = cut(&origin.parent_name).to_owned();
        origin
    }

    /// Sets this identity as that of this process.
    pub(crate) fn arrive(self) {
        *ORIGIN.write() = Some((self, fork::generation()));
    }
}

/// Cuts a name to as many characters as fit into [`LONGEST_NAME`] bytes.
pub(super) fn cut(name: &str) -> &str {
    let mut end = name.len().min(LONGEST_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Returns how often this process was forked since its identity was set, or since the start of a
/// first process.
fn forks() -> u32 {
    let arrived = ORIGIN.read().as_ref().map_or(0, |(_, forks)| *forks);
    fork::generation() - arrived
}

/// Returns the name of this process.
pub(super) fn name() -> String {
    name_after(forks())
}

/// Returns the process's name, with `:forked` appended once for each of `forks` forks since it was
/// named.
fn name_after(forks: u32) -> String {
    let origin = ORIGIN.read();
    let name = origin.as_ref().map_or(ROOT, |(origin, _)| &origin.name);
    format!("{name}{}", ":forked".repeat(forks as usize))
}

/// Returns how many steps this process is below the first of the program: 0 for the first.
pub(crate) fn depth() -> u32 {
    let depth = ORIGIN.read().as_ref().map_or(0, |(origin, _)| origin.depth);
    depth + forks()
}

/// Checks that this process may start others.
///
/// # Errors
///
/// [`ProcessError::TooDeep`] if it may not.
pub(crate) fn check_depth() -> Result<(), ProcessError> {
    if depth() < DEEPEST {
        Ok(())
    } else {
        Err(ProcessError::TooDeep { limit: DEEPEST })
    }
}

/// The name and pid of a process: see [`current`] and [`parent`].
///
/// # Examples
///
/// ```
/// let this = manyhands::process::current();
/// assert!(this.is_alive());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessInfo {
    name: String,
    pid: u32,
}

impl ProcessInfo {
    /// Returns whether this is the process that has the current one as a worker, which a third
    /// process has forked. Then it lives: the current process would not outlive it.
    fn is_over_server(&self) -> bool {
        let origin = ORIGIN.read();
        let own = origin
            .as_ref()
            .filter(|(_, forks)| *forks > 0 && *forks == fork::generation());
        own.is_some_and(|(origin, _)| origin.parent == self.pid)
    }

    /// Returns the process's name: `main` for the first process of a program, the name that
    /// [`ProcessBuilder::name`](super::ProcessBuilder::name) set for a child, pool and number
    /// (`pool0:1`) for a pool's worker. A forked process has `:forked` after the name of the one it
    /// was forked from.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::process::current().name(), "main");
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::process::current().pid(), std::process::id());
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process still runs, if it is this one or the one that has started it.
    ///
    /// Of any other process, of which this one can only have been told, that is not known, and the
    /// call returns false.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(manyhands::process::current().is_alive());
    /// ```
    pub fn is_alive(&self) -> bool {
        // After a parent has died, the kernel names another process as this one's parent.
        self.pid == std::process::id() || self.pid == parent_id() || self.is_over_server()
    }
}

/// Returns the identity of the calling process.
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

/// Returns the process that started this one: as a [`Process`](super::Process), as a worker of a
/// pool, or by forking. Returns `None` in the first process of a program, whatever started that.
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
