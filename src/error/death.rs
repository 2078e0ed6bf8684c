//! How a process ended, and what it wrote that cannot be right.

use std::fmt;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
use crate::os::ExitStatus;
use crate::signals::signal_name;

/// How a process ended.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(1)?;
/// let exit = pool.submit(|code: i32| -> () { std::process::exit(code) }, 3);
/// let Err(TaskError::WorkerDied { cause, .. }) = exit.result() else {
///     panic!("it lives")
/// };
/// assert_eq!(cause, Death::Exit(3));
/// assert_eq!(cause.code(), Some(3));
/// assert_eq!(
///     Death::Signal(11).to_string(),
///     "was killed by signal 11 (SIGSEGV)"
/// );
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Death {
    /// Killed by this signal: 9 is SIGKILL, 11 SIGSEGV (also a stack overflow), 6 SIGABRT.
    Signal(i32),
    /// Ended by itself with this exit code, in the middle of a task.
    Exit(i32),
    /// What the worker wrote could not be right, so the parent killed it.
    Corrupted(Corruption),
    /// Another part of the program waited for the process and took its exit status.
    Unknown,
}

// A `TaskError` has room for eight bytes beside pid, attempts and a pointer to more.
const _: () = assert!(size_of::<Death>() <= 8);

impl Death {
    /// Returns the exit code of a process that ended by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::error::Death;
    ///
    /// assert_eq!(Death::Exit(3).code(), Some(3));
    /// assert_eq!(Death::Signal(9).code(), None);
    /// ```
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exit(code) => Some(code),
            Self::Signal(_) | Self::Corrupted(_) | Self::Unknown => None,
        }
    }

    /// Returns the signal that killed the process; `None` if it ended by itself.
    ///
    /// The parent kills a worker that is [`Corrupted`](Self::Corrupted) with SIGKILL, but no
    /// signal is given for it: the signal is not the cause.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::error::Death;
    ///
    /// assert_eq!(Death::Signal(9).signal(), Some(9));
    /// assert_eq!(Death::Exit(9).signal(), None);
    /// ```
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::Exit(_) | Self::Corrupted(_) | Self::Unknown => None,
        }
    }

    /// Returns how the process ended as a child's [`ExitStatus`](crate::process::ExitStatus). A
    /// worker that is [`Corrupted`](Self::Corrupted) was killed by SIGKILL.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{process::ExitStatus, error::Death};
    ///
    /// assert_eq!(Death::Exit(3).status(), ExitStatus::Exit(3));
    /// assert_eq!(Death::Unknown.status(), ExitStatus::Unknown);
    /// ```
    #[cfg(target_os = "linux")]
    pub fn status(self) -> ExitStatus {
        match self {
            Self::Signal(signal) => ExitStatus::Signal(signal),
            Self::Exit(code) => ExitStatus::Exit(code),
            Self::Corrupted(_) => ExitStatus::Signal(libc::SIGKILL),
            Self::Unknown => ExitStatus::Unknown,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::Exit(code) => write!(f, "exited with code {code} in the middle of the task"),
            Self::Corrupted(what) => write!(f, "wrote what cannot be right and was killed: {what}"),
            Self::Unknown => f.write_str("died; another part of the program took its exit status"),
        }
    }
}

#[cfg(target_os = "linux")]
impl From<ExitStatus> for Death {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exit(code) => Self::Exit(code),
            ExitStatus::Signal(signal) => Self::Signal(signal),
            ExitStatus::Unknown => Self::Unknown,
        }
    }
}

/// What a worker wrote that cannot be right.
///
/// Other code in the worker, such as a C library, has written over memory that is not its own, or
/// the crate has a fault. The caller can do no more than report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// A cell of the lane has a state that it cannot have.
    #[error("a cell of its lane is in a state that cannot be")]
    CellState,
    /// A cell says that it is longer than a cell.
    #[error("a cell longer than a cell can be")]
    CellLength,
    /// A message goes on, though the cell before is not full.
    #[error("a message that goes on after a cell that is not full")]
    CellNotFull,
    /// A message is longer than it says.
    #[error("a message longer than it says")]
    MessageLength,
    /// A message has no head, or is of no known kind.
    #[error("a message of no known kind")]
    MessageKind,
    /// A message has several cells where none such is due.
    #[error("a message of several cells where none is due")]
    SeveralCells,
    /// An answer came when the worker had no task.
    #[error("an answer where none was due")]
    NotDue,
    /// An answer is not about the item that comes next.
    #[error("an answer for another item than the one that comes next")]
    WrongItem,
    /// There are more answers than open items, or fewer at the end of a task.
    #[error("more or fewer answers than items are open")]
    WrongCount,
    /// Results do not have the size that as many of them have.
    #[error("results of another size than as many of them have")]
    WrongSize,
    /// The first cell of a long result says no length, or one that no memory has.
    #[error("a result of a length that cannot be")]
    ResultLength,
    /// The report of a failed item cannot be read.
    #[error("a fault that cannot be read")]
    UnreadFault,
    /// The times of a task are not where they must be, or not as long.
    #[error("times where none are due")]
    WrongTimes,
}
