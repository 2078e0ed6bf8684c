//! The guard: a process that ends what tasks have started, when their process was ended by force.
//!
//! It is there as long as the program, and a moment longer. It has nothing of the program's: no
//! standard streams, no terminal, no folder, no descriptors. It is no child of the program's, and
//! is in a session of its own, so that a Ctrl-C does not end it before it has done its work.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::launch::{Role, receive_greeting};
use crate::os::guard::{self, Parent};
use crate::os::tree::{Table, hunt};
use crate::os::worker as own;

/// What the guard is told. With it comes the table.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// The number of the program, which is in its marks.
    pub(super) program: u64,
}

/// The role of a guard.
pub(crate) const GUARD: Role = Role {
    magic: *b"manyguar",
    begin: become_guard,
};

/// The longest pause between two readings of `/proc` while the program runs. After each reading
/// the guard pauses for nine times as long as that took, so that it uses a tenth of a core at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The time between two looks at a program of whose end the guard is not told.
const SLICE: Duration = Duration::from_millis(50);

/// Starts the guard that the greeting asks for, and returns.
fn become_guard() -> io::Result<()> {
    let (greeting, [table], parent): (Greeting, _, _) = receive_greeting()?;
    let table_of = Table::open(&table)?;
    drop(table);
    own::close_stdin()?;
    // If it has died already, the guard begins with its last work.
    let parent = Parent::open(parent);
    // The program is not to have a child that it does not know of.
    if let Some(guard) = guard::leave_parent()? {
        // This process says so, and not the guard: a guard that is killed in its first moments is
        // one that has died, and not one that is still to come.
        table_of.set_guard(guard);
        return Ok(());
    }
    own::set_name("mh-guard");
    stand_guard(greeting.program, table_of, parent)
}

fn stand_guard(program: u64, table: &'static Table, parent: Parent) -> ! {
    let parent: &'static Parent = Box::leak(Box::new(parent));
    let watcher = thread::Builder::new()
        .name("mh-guard".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            while !parent.wait_end(SLICE) {}
            table.ring();
        });
    let slice = watcher.is_err().then_some(SLICE);
    loop {
        let seen = table.seen();
        if parent.has_ended() {
            break;
        }
        let asked = table.asked();
        if asked.is_empty() {
            table.wait(seen, slice);
            continue;
        }
        let start = Instant::now();
        let wanted: Vec<_> = asked.iter().map(|(_, child)| *child).collect();
        hunt(program, &wanted);
        for (place, child) in asked {
            table.done(place, child);
        }
        thread::sleep((9 * start.elapsed()).min(LONGEST_PAUSE));
    }
    // The kernel has killed the children with the program.
    table.kill_stopped();
    hunt(program, &table.left());
    guard::end()
}
