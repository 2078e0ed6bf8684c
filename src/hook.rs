//! The code that runs before `main` in every process of every program that holds this crate.
//!
//! With the `worker-hook` feature a constructor ([`HOOK`]) finds out whether the process was
//! launched in a role. If it was, the constructor runs the role and never returns. So a program
//! needs no line of its own for it, and a launched process does not run `main`.

use crate::engine::{FORK_SERVER, WORKER};
use crate::process::{CHILD, GUARD, launch};

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

/// Takes the role that this process was launched in, and then does not return. Returns if the
/// process was not launched in a role.
pub(crate) fn take_role() {
    launch::take_role(&[WORKER, FORK_SERVER, CHILD, GUARD]);
}
