//! [`ExitStatus`]: how a child ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::signals::signal_name;

/// How a child process ended.
///
/// # Examples
///
/// ```
/// use manyhands::process::{ExitStatus, Process};
///
/// let child = Process::spawn(|code: i32| std::process::exit(code), 8)?;
/// let status = child.join()?;
/// assert_eq!(status, ExitStatus::Exit(8));
/// assert!(!status.success());
/// assert_eq!(status.to_string(), "exited with code 8");
/// # Ok::<(), manyhands::PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It ended by itself with this code, from 0 to 255.
    Exit(i32),
    /// It was killed by this signal: 15 is SIGTERM, 9 SIGKILL, 11 SIGSEGV (also a stack overflow),
    /// 6 SIGABRT.
    Signal(i32),
    /// It has ended, but the system can no longer say how: the program ignores SIGCHLD, or another
    /// part of it has waited for any child.
    Unknown,
}

impl ExitStatus {
    /// Returns whether the child exited with code 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::ExitStatus;
    ///
    /// assert!(ExitStatus::Exit(0).success());
    /// assert!(!ExitStatus::Exit(1).success() && !ExitStatus::Signal(9).success());
    /// ```
    pub fn success(self) -> bool {
        self == Self::Exit(0)
    }

    /// Returns the exit code of a child that ended by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::ExitStatus;
    ///
    /// assert_eq!(ExitStatus::Exit(3).code(), Some(3));
    /// assert_eq!(ExitStatus::Signal(9).code(), None);
    /// ```
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exit(code) => Some(code),
            Self::Signal(_) | Self::Unknown => None,
        }
    }

    /// Returns the signal that killed the child; `None` if it ended by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::ExitStatus;
    ///
    /// assert_eq!(ExitStatus::Signal(9).signal(), Some(9));
    /// assert_eq!(ExitStatus::Exit(9).signal(), None);
    /// ```
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::Exit(_) | Self::Unknown => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("ended; another part of the program took its exit status"),
        }
    }
}
