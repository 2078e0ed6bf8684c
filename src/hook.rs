//! What runs before `main` in every process of every program that holds this crate.
//!
//! With the `worker-hook` feature a constructor ([`HOOK`]) finds out whether the process was launched
//! in a role, and then never returns. So no program needs a line of its own for it, and no launched
//! process runs `main`.

use crate::engine::{FORK_SERVER, WORKER};
use crate::process::{CHILD, launch};

#[cfg(feature = "worker-hook")]
#[allow(unsafe_code)]
#[used]
// SAFETY: `.init_array` holds pointers to functions of this type, which the C library calls once,
// after it has set itself up and before `main`, on the main thread.
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = {
    extern "C" fn hook() {
        take_role();
    }
    hook
};

/// Takes the role that this process was launched in, and does not return; returns if it was not
/// launched.
pub(crate) fn take_role() {
    launch::take_role(&[WORKER, FORK_SERVER, CHILD]);
}
