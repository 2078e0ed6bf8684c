//! Launches this program again, in a role: as a worker of a pool, as a fork server or as a single
//! child.
//!
//! A launched process takes its role before `main`. It needs two proofs: the variable [`VARIABLE`]
//! in its environment, and on standard input a socket on which a greeting waits that carries the
//! same secret. The variable alone, which any program can set or inherit, does nothing.
//!
//! ```text
//! greeting:  role, secret, fingerprint │ pid of the parent, what the role is told
//!            8 bytes each                as the exact codec writes them
//! ```
//!
//! The descriptors of the role come with the greeting and, after them, the memory of the family.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::identity;
use crate::call::code;
use crate::codec::exact;
use crate::error::ProcessError;
use crate::memory::family;
use crate::os::environment::Environment;
use crate::os::fork::Original;
use crate::os::image::Image;
use crate::os::pidfd::{self, Child};
use crate::os::start::{Stream, start_again};
use crate::os::{handoff, random, refusal, worker as own};
use crate::panic;

/// The variable that makes a process look for its greeting; its value is the greeting's secret.
const VARIABLE: &CStr = c"MANYHANDS_WORKER";

/// Exit code of a launched process that cannot begin.
pub(crate) const CANNOT_BEGIN: i32 = 97;

/// The longest greeting.
const MOST_BYTES: usize = 64 << 10;

/// Bytes of role and secret.
const PROOF: usize = 16;

/// Bytes of role, secret and fingerprint, which is [`Image::fingerprint`] of the parent.
const HEAD: usize = 24;

/// Whether the hook has run in this process. Then it would also run in a launched one, which runs
/// the same program.
static HOOK_HAS_RUN: AtomicBool = AtomicBool::new(false);

/// A role that a launched process can have.
#[derive(Clone, Copy)]
pub(crate) struct Role {
    /// The first bytes of its greeting.
    pub(crate) magic: [u8; 8],
    /// Runs in the launched process. Returns when the process is to end.
    pub(crate) begin: fn() -> io::Result<()>,
}

/// Checks that this process can launch others.
pub(crate) fn check() -> Result<(), ProcessError> {
    code::check_image()?;
    if own::is_privileged() {
        return Err(ProcessError::Privileged);
    }
    // The hook takes the variable away. It is still there, so the hook did not run.
    if std::env::var_os(variable()).is_some() {
        return Err(ProcessError::WorkerReachedMain);
    }
    // Without the hook a launched process would run `main`, and launch others in turn.
    if !HOOK_HAS_RUN.load(Ordering::Relaxed) {
        return Err(ProcessError::InitNotCalled);
    }
    identity::check_depth()
}

/// Checks that a launched process can have this environment.
pub(crate) fn check_environment(environment: &Environment) -> Result<(), ProcessError> {
    let has = |text: &OsStr, byte| text.as_encoded_bytes().contains(&byte);
    for (name, value) in environment.changes() {
        let is_name = !name.is_empty() && !has(name, b'=') && !has(name, 0);
        if is_name && !value.is_some_and(|value| has(value, 0)) {
            continue;
        }
        let (option, given) = match value {
            Some(value) => ("env", format!("{}={}", name.display(), value.display())),
            None => ("env_remove", name.display().to_string()),
        };
        return Err(ProcessError::InvalidOption {
            option: option.into(),
            value: given,
            reason:
                "a name is not empty and has no = in it, and neither name nor value has a NUL in it"
                    .into(),
        });
    }
    Ok(())
}

fn variable() -> &'static str {
    VARIABLE.to_str().unwrap_or_default()
}

// The launching process --------------------------------------------------------------------------

/// The options of a launched process that its role does not determine.
pub(crate) struct Launch<'a> {
    /// The name that `ps` shows as the command.
    pub(crate) name: &'a str,
    pub(crate) environment: Environment,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
    /// The signals that are blocked in it at first.
    pub(crate) blocked: &'a [Signal],
}

impl Launch<'_> {
    /// Launches a process and sends it its greeting. Also returns the life line: this end of the
    /// socket, by which the process knows that its parent lives.
    pub(crate) fn launch<T: Serialize>(
        self,
        role: Role,
        told: &T,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Child, OwnedFd)> {
        let mut fds = fds.to_vec();
        fds.extend(family::for_children());
        self.launch_alone(role, told, &fds)
    }

    /// Launches a process like [`launch`](Self::launch), but not as one of the family.
    pub(super) fn launch_alone<T: Serialize>(
        self,
        role: Role,
        told: &T,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Child, OwnedFd)> {
        let (life_line, theirs) = handoff::pair()?;
        let secret = random::word();
        let fingerprint = Image::main().fingerprint();
        let mut message = [role.magic, secret.to_ne_bytes(), fingerprint.to_ne_bytes()].concat();
        let body = (std::process::id(), told);
        exact::to_vec_append(&mut message, &body).map_err(io::Error::other)?;
        // The greeting is sent before there is a process to read it: it waits on the socket.
        handoff::send(life_line.as_fd(), &message, fds)?;

        // Last: whatever the user has said of this variable, the process must find its greeting.
        let mut environment = self.environment;
        environment.set(variable(), format!("{secret:x}"));
        let streams = [Stream::Fd(theirs), self.stdout, self.stderr];
        let pid = start_again(self.name, &environment, streams, self.blocked)?;
        let child = Child::open(pid).map_err(|error| {
            // The child is reaped already, and its pid is perhaps another's: SIGCHLD is ignored, or
            // a thread of the program waits for any child.
            if refusal::code(&error) == Some(nix::errno::Errno::ESRCH) {
                return io::Error::other("another part of the program has taken its exit status");
            }
            pidfd::kill_unopened(pid);
            error
        })?;
        Ok((child, life_line))
    }
}

// The launched process ---------------------------------------------------------------------------

/// Takes the role that this process was launched in, and then does not return. Returns if the
/// process was not launched in a role.
pub(crate) fn take_role(roles: &[Role]) {
    HOOK_HAS_RUN.store(true, Ordering::Relaxed);
    let Some(secret) = own::variable(VARIABLE) else {
        // There is no variable: the process was not launched by this crate.
        return;
    };
    // The variable is removed, because the processes that this one starts have other secrets.
    own::remove_variable(VARIABLE);
    // A privileged program takes no role, whatever its environment says.
    if own::is_privileged() {
        return;
    }
    let Ok(secret) = u64::from_str_radix(&secret, 16) else {
        return;
    };
    let mut proof = [0; PROOF];
    if handoff::peek(own::stdin(), &mut proof) != Some(PROOF) || proof[8..] != secret.to_ne_bytes()
    {
        // The secret is not on standard input: the variable is inherited or set by another program.
        return;
    }
    let Some(role) = roles.iter().find(|role| proof.starts_with(&role.magic)) else {
        return;
    };
    if let Err(error) = own::open_standard_streams() {
        log::error!("closed standard streams could not be opened on /dev/null: {error}");
    }
    let original = Original::here();
    let ended = panic::catch(role.begin);
    // Code of the user may fork in places that are not checked one by one, such as a `Drop`. A copy
    // ends here.
    original.end_copy_after(&ended);
    let code = match ended {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            eprintln!("manyhands: a worker process could not begin: {error}");
            CANNOT_BEGIN
        }
        // The panic hook has printed the panic.
        Err(_) => CANNOT_BEGIN,
    };
    // Flushes standard output, which a task may have written to.
    std::process::exit(code);
}

/// Takes the greeting from standard input. Returns what the role is told, the descriptors that
/// belong to it, and the pid of the parent.
pub(crate) fn receive_greeting<T: DeserializeOwned, const FDS: usize>()
-> io::Result<(T, [OwnedFd; FDS], u32)> {
    let (told, fds, parent) = receive_greeting_with(|_| FDS)?;
    let fds = fds
        .try_into()
        .map_err(|_| io::Error::other("the greeting came without its descriptors"))?;
    Ok((told, fds, parent))
}

/// Takes the greeting like [`receive_greeting`], for a role to which as many descriptors belong as
/// `count` makes of what it is told.
pub(crate) fn receive_greeting_with<T: DeserializeOwned>(
    count: impl FnOnce(&T) -> usize,
) -> io::Result<(T, Vec<OwnedFd>, u32)> {
    let mut message = vec![0; MOST_BYTES];
    let (len, fds) = handoff::receive_all(own::stdin(), &mut message)?;
    let (head, body) = message[..len]
        .split_at_checked(HEAD)
        .ok_or_else(|| io::Error::other("the greeting is cut short"))?;
    if head[PROOF..] != Image::main().fingerprint().to_ne_bytes() {
        return Err(io::Error::other(
            "the executable is not the build that the parent runs",
        ));
    }
    let (parent, told) = exact::from_slice(body).map_err(io::Error::other)?;
    let count = count(&told);
    let mut fds = fds.into_iter();
    let own_fds: Vec<_> = fds.by_ref().take(count).collect();
    if own_fds.len() < count {
        return Err(io::Error::other(
            "the greeting came without its descriptors",
        ));
    }
    // The memory of the family comes after the role's own descriptors, if there is one.
    if let Some(memory) = fds.next() {
        family::inherit(memory);
    }
    Ok((told, own_fds, parent))
}
