//! Why a single child process could not be started, waited for or stopped.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};

use serde::{Deserialize, Serialize};

use super::{Crash, HOOK_ADVICE, Message, PanicLocation, PoolError, at_place, because};
use crate::os::ExitStatus;

/// Why a [`Process`](crate::Process) could not be started, waited for or sent a signal, or how it
/// failed.
///
/// A function that returns [`PoolError`] passes it on with `?`.
///
/// # Examples
///
/// ```
/// use manyhands::process::{Process, ProcessError};
///
/// let refused = Process::builder().env("A=B", "").spawn(|()| {}, ());
/// assert!(matches!(refused, Err(ProcessError::InvalidOption { .. })));
///
/// fn run() -> Result<(), manyhands::PoolError> {
///     Process::spawn(|()| {}, ())?.join()?;
///     Ok(())
/// }
/// assert_eq!(run(), Ok(()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The child could not be started.
    #[error("the process {name} could not be started: {reason}")]
    #[non_exhaustive]
    SpawnFailed {
        /// What the child would have been called.
        name: String,
        /// What the system said, or why its function or argument cannot be sent.
        reason: String,
    },
    /// The child belongs to another process: this one was forked from it.
    #[error(
        "the child process belongs to another process, of which this one is a forked child; only its parent can wait for \
         it or stop it"
    )]
    NotParent,
    /// Processes start processes that start processes, as in a recursion without an end.
    #[error(
        "refused to start a process: {limit} processes lie one inside the other already. If a child starts one like \
         itself without end, stop that; otherwise start them from a process further out"
    )]
    #[non_exhaustive]
    TooDeep {
        /// How many levels there may be.
        limit: u32,
    },
    /// An option of the builder asks for what is not possible.
    #[error("{option} cannot be {value}: {reason}")]
    #[non_exhaustive]
    InvalidOption {
        /// Which option.
        option: Cow<'static, str>,
        /// The value that was given.
        value: String,
        /// Why that cannot be.
        reason: Cow<'static, str>,
    },
    /// This code is not part of the main executable. A child is that executable started again, so
    /// it would not have the code.
    #[error(
        "child processes can be started only by code that is linked into the main executable; this copy of manyhands is \
         in a shared library loaded by another program"
    )]
    ForeignExecutable,
    /// The function lies outside the main executable (in a shared library), so a child would not
    /// find it.
    #[error(
        "the function is not part of the main executable, so a child process cannot be told where it is"
    )]
    ForeignFunction,
    /// The process was itself started by this crate, but its start-up hook did not run.
    #[error("this process was started as a worker or a child, but reached main; {HOOK_ADVICE}")]
    WorkerReachedMain,
    /// This process never checked whether it was started as a child. Children are this program too,
    /// so they would not check either, and would run its `main`. No child was started.
    #[error(
        "a child process would run this program's main: it was built without the feature `worker-hook`, and has not \
         called manyhands::init(), which must be at the top of main"
    )]
    InitNotCalled,
    /// The program runs with more rights than the user who started it (set-user-id and the like).
    /// Its environment, by which children are started, must not be trusted.
    #[error("a program that runs with more rights than its user starts no child processes")]
    Privileged,
    /// The function of the child panicked; see [`Process::result`](crate::Process::result).
    #[error("the process {name} (pid {pid}) failed: it panicked: {message}{}", at_place(.location.as_deref()))]
    #[non_exhaustive]
    Panicked {
        /// The name of the child.
        name: String,
        /// Its process id.
        pid: u32,
        /// The panic's message.
        message: Message,
        /// Where the panic was raised; `None` if the program's own panic hook has replaced this
        /// crate's.
        location: Option<Box<PanicLocation>>,
        /// The stack at the panic, if the child's variables `RUST_BACKTRACE` or
        /// `RUST_LIB_BACKTRACE` ask for backtraces, as the standard library reads them.
        backtrace: Option<Message>,
    },
    /// The child ended with another exit code than 0, or by a signal; see
    /// [`Process::result`](crate::Process::result).
    #[error("the process {name} (pid {pid}) failed: it {status}{}", why(reason.as_ref(), crash.as_deref()))]
    #[non_exhaustive]
    Failed {
        /// The name of the child.
        name: String,
        /// Its process id.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// What it has also printed to standard error: the error that its function returned, or why
        /// that could not run. `None` if it has called `exit`, or has died of a signal.
        reason: Option<Message>,
        /// What it has left of its crash, if it was one. Printed, it has a line for each frame of
        /// the stack.
        crash: Option<Box<Crash>>,
    },
    /// The system refused what was asked of it.
    #[error("{what}: {reason}")]
    #[non_exhaustive]
    System {
        /// What was asked of the system.
        what: Cow<'static, str>,
        /// What it said.
        reason: String,
    },
}

/// Returns the end of a message about a failure: what is known of its cause.
fn why(reason: Option<&Message>, crash: Option<&Crash>) -> String {
    reason.map_or_else(|| because(crash), |reason| format!(": {reason}"))
}

impl ProcessError {
    /// Makes a failure of the system, with what was asked of it.
    pub(crate) fn system(what: &'static str, error: impl fmt::Display) -> Self {
        Self::System {
            what: what.into(),
            reason: error.to_string(),
        }
    }
}

/// A failed start becomes a [`PoolError::System`] with the same message.
impl From<ProcessError> for PoolError {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::SpawnFailed { name, reason } => Self::System {
                what: format!("the process {name} could not be started").into(),
                reason,
            },
            ProcessError::NotParent => Self::OtherProcess,
            ProcessError::TooDeep { limit } => Self::TooDeep { limit },
            ProcessError::InvalidOption {
                option,
                value,
                reason,
            } => Self::InvalidOption {
                option,
                value,
                reason,
            },
            ProcessError::ForeignExecutable => Self::ForeignExecutable,
            ProcessError::ForeignFunction => Self::ForeignFunction,
            ProcessError::WorkerReachedMain => Self::WorkerReachedMain,
            ProcessError::InitNotCalled => Self::InitNotCalled,
            ProcessError::Privileged => Self::Privileged,
            ProcessError::System { what, reason } => Self::System { what, reason },
            ProcessError::Panicked { .. } | ProcessError::Failed { .. } => {
                let text = error.to_string();
                let (what, reason) = text.split_once(" failed: ").unwrap_or((&text, ""));
                Self::System {
                    what: format!("{what} failed").into(),
                    reason: reason.to_owned(),
                }
            }
        }
    }
}

/// Makes an error of the kind that fits best. The [`ProcessError`] is in it
/// ([`get_ref`](io::Error::get_ref)).
///
/// # Examples
///
/// ```
/// use manyhands::Process;
/// use std::io;
///
/// fn run() -> io::Result<()> {
///     Process::builder().env("A=B", "").spawn(|()| {}, ())?;
///     Ok(())
/// }
/// assert_eq!(run().unwrap_err().kind(), io::ErrorKind::InvalidInput);
/// ```
impl From<ProcessError> for io::Error {
    fn from(error: ProcessError) -> Self {
        let kind = match &error {
            ProcessError::InvalidOption { .. } => ErrorKind::InvalidInput,
            ProcessError::Privileged => ErrorKind::PermissionDenied,
            ProcessError::ForeignExecutable | ProcessError::ForeignFunction => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> [ProcessError; 12] {
        [
            ProcessError::SpawnFailed {
                name: "spy".to_owned(),
                reason: "no way".to_owned(),
            },
            ProcessError::NotParent,
            ProcessError::TooDeep { limit: 16 },
            ProcessError::InvalidOption {
                option: "env".into(),
                value: "=".to_owned(),
                reason: "no name".into(),
            },
            ProcessError::ForeignExecutable,
            ProcessError::ForeignFunction,
            ProcessError::WorkerReachedMain,
            ProcessError::InitNotCalled,
            ProcessError::Privileged,
            ProcessError::system("no signal was sent", "no way"),
            ProcessError::Panicked {
                name: "spy".to_owned(),
                pid: 7,
                message: "a step failed: no way".into(),
                location: None,
                backtrace: Some("0: main".into()),
            },
            ProcessError::Failed {
                name: "spy".to_owned(),
                pid: 7,
                status: ExitStatus::Exit(1),
                reason: Some("no way".into()),
                crash: None,
            },
        ]
    }

    #[test]
    fn an_error_of_a_process_becomes_the_same_error_of_a_pool() {
        let [
            failed,
            other,
            deep,
            invalid,
            image,
            function,
            main,
            hook,
            rights,
            system,
            panicked,
            died,
        ] = one_of_each();
        // These say the same, word for word.
        for error in [failed, deep, invalid, system, panicked, died] {
            let text = error.to_string();
            assert_eq!(PoolError::from(error).to_string(), text);
        }
        for (error, of_pool) in [
            (other, PoolError::OtherProcess),
            (image, PoolError::ForeignExecutable),
            (function, PoolError::ForeignFunction),
            (main, PoolError::WorkerReachedMain),
            (hook, PoolError::InitNotCalled),
            (rights, PoolError::Privileged),
        ] {
            assert_eq!(PoolError::from(error), of_pool);
        }
    }

    #[test]
    fn a_task_may_hand_on_why_its_child_failed() {
        for error in one_of_each() {
            let mut bytes = Vec::new();
            crate::codec::append(&mut bytes, &error).unwrap();
            assert_eq!(crate::memory::wire::take(&mut &bytes[..]), Ok(error));
        }
    }
}
