//! The children of this process whose descendants are to end with them, and the guard.
//!
//! ```text
//!   this process ── writes: child 7 runs, 8 was ended by force ──▶ table ◀── reads ── guard
//!        │ starts, marked                                        (shared)               │
//!        ▼                                                                              │
//!     child 8 ── starts ──▶ descendants, marked ◀── finds in /proc and kills ───────────┘
//! ```
//!
//! The guard is this program, [launched](super::launch) again. It reads `/proc`, so that no thread
//! of this process has to, and it is still there when this process has been killed.
//!
//! A forked child has children of its own, so it has a table and a guard of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::guard::{GUARD, Greeting};
use super::launch::{self, Launch};
use crate::os::ExitStatus;
use crate::os::environment::Environment;
use crate::os::fork::PerProcess;
use crate::os::guard::ENDING;
use crate::os::pidfd::Child;
use crate::os::start::Stream;
use crate::os::tree::{self, Entry, Program, Table, VARIABLE};

/// How long a look at the guard holds.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a guard may take from its start until it has begun.
const START_TIME: Duration = Duration::from_secs(30);

/// How long this process waits for the process that has started the guard. It ends at once.
const SETTLING: Duration = Duration::from_secs(1);

/// What this process has for its children. Made at the first child, and never freed.
struct Own {
    program: Program,
    table: Option<(&'static Table, OwnedFd)>,
    guard: Mutex<Guard>,
}

#[derive(Default)]
struct Guard {
    /// When this process looked last whether there is a guard.
    looked: Option<Instant>,
    /// Whether there was one, or one was about to begin.
    is_there: bool,
    /// When the guard was launched.
    launched: Option<Instant>,
    /// The process that starts the guard.
    starter: Option<Child>,
}

static OWN: PerProcess<OnceLock<&'static Own>> = PerProcess::new(OnceLock::new());

fn own() -> &'static Own {
    OWN.own().get_or_init(|| {
        let table = Table::new()
            .inspect_err(|error| log::debug!("there is no guard of what tasks start: {error}"))
            .ok();
        Box::leak(Box::new(Own {
            program: Program::new(table.as_ref().map(|(table, _)| *table), call_guard),
            table,
            guard: Mutex::default(),
        }))
    })
}

/// Makes what finds the descendants of a child that is about to be started. The caller must call
/// [`settle`] when it has started it. Returns `None` where nothing
/// could be killed.
pub(crate) fn enlist(is_forked: bool) -> Option<Entry> {
    if !tree::can_kill() {
        return None;
    }
    let own = own();
    own.ensure_guard(LOOK_INTERVAL);
    Some(own.program.enlist(is_forked))
}

/// Gives a new process the mark. Without one, it keeps what this process has inherited.
pub(crate) fn mark(environment: &mut Environment, entry: Option<&Entry>) {
    let chain = entry.map(Entry::chain);
    if let Some(chain) = chain.or_else(|| std::env::var_os(VARIABLE)) {
        environment.set(VARIABLE, chain);
    }
}

/// Waits, if a guard was launched, for the process that has started it: this process has one child
/// less then.
pub(crate) fn settle() {
    let Some(own) = OWN.own().get() else { return };
    // Another thread that has it settles.
    let Some(mut guard) = own.guard.try_lock() else {
        return;
    };
    if let Some(starter) = &guard.starter
        && starter.wait_end(Some(SETTLING))
    {
        if starter.reap() == ExitStatus::Exit(0) {
            guard.is_there = true;
        } else {
            // There will be no guard. The next call that wants one tries again.
            (guard.is_there, guard.launched) = (false, None);
        }
        guard.starter = None;
    }
}

/// Wakes the guard, and starts another one if it has died. Returns whether there is one.
fn call_guard() -> bool {
    let own = own();
    if let Some((table, _)) = &own.table {
        table.ring();
    }
    own.ensure_guard(Duration::ZERO);
    settle();
    own.guard.lock().is_there
}

impl Own {
    /// Starts a guard if there is none, by a look that is at most so old.
    fn ensure_guard(&self, age: Duration) {
        let Some((table, file)) = &self.table else {
            return;
        };
        let mut guard = self.guard.lock();
        if guard.looked.is_some_and(|at| at.elapsed() < age) {
            return;
        }
        let is_there = match table.is_guarded() {
            Some(is_there) => is_there,
            // It has been launched, and is not there yet.
            None => guard.launched.is_some_and(|at| at.elapsed() < START_TIME),
        };
        guard.is_there = is_there || guard.launch(table, file);
        guard.looked = Some(Instant::now());
    }
}

impl Guard {
    /// Launches a guard. Returns whether it has been launched.
    fn launch(&mut self, table: &Table, file: &OwnedFd) -> bool {
        // In a library of another program, and without the hook, there is no other start of this
        // program that could be the guard.
        if launch::check().is_err() {
            return false;
        }
        table.forget_guard();
        let launch = Launch {
            name: "manyhands:guard",
            environment: Environment::default(),
            stdout: Stream::Null,
            stderr: Stream::Null,
            blocked: &ENDING,
        };
        let greeting = Greeting {
            program: own().program.id,
        };
        match launch.launch_alone(GUARD, &greeting, &[file.as_fd()]) {
            Ok((starter, _)) => {
                self.starter = Some(starter);
                self.launched = Some(Instant::now());
                true
            }
            Err(error) => {
                log::warn!(
                    "no guard could be started; if this process is killed, what its tasks have \
                     started may go on: {error}"
                );
                false
            }
        }
    }
}
