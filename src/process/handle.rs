//! [`Process`]: the handle of a child.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::logs::ChildLogs;
use super::spawned::Spawned;
use super::{ExitStatus, ProcessBuilder, Termination, registry};
use crate::call::portable::{Portable, PortableValue};
use crate::error::ProcessError;

/// The handle of a child process that runs one function; the [module](super) says how such a child
/// lives and ends.
///
/// Clones are handles of the same child. A handle is also a descriptor ([`AsFd`], [`AsRawFd`]) that
/// is readable once the child has ended, for `poll`, `epoll` or tokio's `AsyncFd`; after that,
/// `exit_status` has the answer. It is a pidfd where the kernel has them, and otherwise the end of
/// a pipe, from which the caller must not read.
///
/// # Examples
///
/// ```
/// use manyhands::process::{ExitStatus, Process};
/// use std::time::Duration;
///
/// let child = Process::spawn(
///     |()| loop {
///         std::thread::park()
///     },
///     (),
/// )?;
/// assert!(child.is_alive());
/// assert_eq!(child.join_timeout(Duration::from_millis(1))?, None);
/// child.terminate()?;
/// assert_eq!(child.join()?, ExitStatus::Signal(15));
/// # Ok::<(), manyhands::process::ProcessError>(())
/// ```
#[derive(Clone)]
pub struct Process {
    spawned: Arc<Spawned>,
}

impl Process {
    pub(super) fn of(spawned: Arc<Spawned>) -> Self {
        Self { spawned }
    }

    /// Starts a child that runs `f` on `argument`, and returns without waiting for it.
    ///
    /// `f` captures nothing, or is made by [`closure!`](crate::closure!); the compiler refuses
    /// others. Its argument is sent to the child, by serde, and may be large. It may return an
    /// [`Termination`].
    ///
    /// # Errors
    ///
    /// The errors of [`ProcessBuilder::spawn`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{Process, closure};
    ///
    /// let child = Process::spawn(|(from, to): (u32, u32)| assert!(from < to), (1, 9))?;
    /// assert!(child.join()?.success());
    ///
    /// let limit = 100;
    /// let child = Process::spawn(closure!([limit] |x: i32| assert!(x < *limit)), 99)?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn spawn<F, A, T>(f: F, argument: A) -> Result<Self, ProcessError>
    where
        F: Fn(A) -> T + Portable,
        A: PortableValue + 'static,
        T: Termination,
    {
        Self::builder().spawn(f, argument)
    }

    /// Returns a builder with the options of a child: its name, environment and standard streams.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::builder().name("indexer").spawn(|()| {}, ())?;
    /// assert_eq!(child.name(), "indexer");
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::default()
    }

    fn check_own(&self) -> Result<(), ProcessError> {
        if self.spawned.is_own() {
            Ok(())
        } else {
            Err(ProcessError::NotParent)
        }
    }

    /// Waits until the child has ended and its [log records](crate::logs) have been logged, and
    /// returns how it ended. Later calls return the same.
    ///
    /// # Errors
    ///
    /// [`ProcessError::NotParent`] in a process forked from the child's parent: only the parent may
    /// wait for the child.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::spawn(|()| {}, ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn join(&self) -> Result<ExitStatus, ProcessError> {
        self.check_own()?;
        loop {
            if let Some(status) = self.spawned.wait(None) {
                self.spawned.wait_logged(None);
                return Ok(status);
            }
        }
    }

    /// Waits at most `timeout` for the end of the child, and until its [log records](crate::logs)
    /// have been logged. With a timeout of zero the call returns at once. If the child has ended by
    /// then, the call says how, whatever is left to log.
    ///
    /// Returns `Ok(None)` if the child has not ended by then; the child goes on. That is no error,
    /// as with std's [`try_wait`](std::process::Child::try_wait).
    ///
    /// # Errors
    ///
    /// The errors of [`Process::join`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    /// use std::time::Duration;
    ///
    /// let child = Process::spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// assert_eq!(child.join_timeout(Duration::ZERO)?, None);
    /// child.kill()?;
    /// assert!(child.join_timeout(Duration::MAX)?.is_some());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>, ProcessError> {
        self.check_own()?;
        match Instant::now().checked_add(timeout) {
            Some(deadline) => {
                let status = self.spawned.wait(Some(deadline));
                if status.is_some() {
                    self.spawned.wait_logged(Some(deadline));
                }
                Ok(status)
            }
            // The deadline is beyond what the clock can count.
            None => self.join().map(Some),
        }
    }

    /// Waits until the child has ended, like [`join`](Self::join), and returns an error if it has
    /// not ended with exit code 0. The error says how, and why:
    ///
    /// - of a panic, message and place, and the backtrace if `RUST_BACKTRACE` asks for it;
    /// - of an `Err` that the function returned, its text;
    /// - of a function that could not run, why;
    /// - of a crash (SIGSEGV and the like), the address and the stack.
    ///
    /// Later calls return the same.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Panicked`], [`ProcessError::Failed`], and the errors of
    /// [`join`](Self::join).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{Process, ProcessError};
    ///
    /// let child = Process::spawn(|()| assert_eq!(1 + 1, 3, "so it is"), ())?;
    /// let Err(ProcessError::Panicked { message, .. }) = child.result() else {
    ///     panic!("it went well")
    /// };
    /// assert!(message.contains("so it is"));
    ///
    /// let child = Process::spawn(|()| std::process::abort(), ())?;
    /// let Err(ProcessError::Failed { crash: Some(crash), .. }) = child.result() else {
    ///     panic!("it lives")
    /// };
    /// println!("{crash}"); // the reason, and the stack
    ///
    /// assert_eq!(Process::spawn(|()| {}, ())?.result(), Ok(()));
    /// # Ok::<(), ProcessError>(())
    /// ```
    pub fn result(&self) -> Result<(), ProcessError> {
        self.join()?;
        self.spawned.failure().map_or(Ok(()), Err)
    }

    /// Returns how many [log records](crate::logs) of the child have come and gone through this
    /// process's logger, or are about to. In a process forked from the child's parent, returns 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// // This program has no logger, so none are forwarded.
    /// let child = Process::spawn(|()| log::info!("done"), ())?;
    /// child.join()?;
    /// assert_eq!((child.log_records(), child.log_records_dropped()), (0, 0));
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn log_records(&self) -> u64 {
        self.log_counts().0
    }

    /// Returns how many [log records](crate::logs) the child has dropped, because there was no room
    /// for them in time. In a process forked from the child's parent, returns 0.
    ///
    /// # Examples
    ///
    /// See [`log_records`](Self::log_records).
    pub fn log_records_dropped(&self) -> u64 {
        self.log_counts().1
    }

    fn log_counts(&self) -> (u64, u64) {
        // In a copy of the parent another thread may hold the lock of the counts for ever.
        let own = self.spawned.logs.as_ref();
        let own = own.filter(|_| self.spawned.is_own());
        own.map_or((0, 0), ChildLogs::counts)
    }

    /// Returns how the child ended; `None` if it has not. Never waits.
    ///
    /// In a process forked from the child's parent, returns what was known at the fork.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{ExitStatus, Process};
    ///
    /// let child = Process::spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// assert_eq!(child.exit_status(), None);
    /// child.kill()?;
    /// child.join()?;
    /// assert_eq!(child.exit_status(), Some(ExitStatus::Signal(9)));
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.spawned.exit_status()
    }

    /// Returns whether the child has not ended yet. Never waits.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// assert!(child.is_alive());
    /// child.kill()?;
    /// child.join()?;
    /// assert!(!child.is_alive());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn is_alive(&self) -> bool {
        self.exit_status().is_none() && !self.spawned.child.has_ended()
    }

    /// Returns the child's process id. Once the child has ended, the system may give the number to
    /// another process.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::spawn(
    ///     |parent: u32| assert_ne!(std::process::id(), parent),
    ///     std::process::id(),
    /// )?;
    /// assert_ne!(child.pid(), std::process::id());
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn pid(&self) -> u32 {
        self.spawned.child.pid()
    }

    /// Returns the child's name: that of [`ProcessBuilder::name`], or a counted one.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// assert!(Process::spawn(|()| {}, ())?.name().starts_with("process"));
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.spawned.name
    }

    /// Asks the child to end, with SIGTERM. Unless it has a handler for that, it dies of it.
    /// Nothing in it is cleaned up, and its own children die with it. The programs that it has
    /// started end when this process hears of the death, by [`join`](Self::join) for example. If
    /// the child has ended already, that is no error.
    ///
    /// # Errors
    ///
    /// [`ProcessError::NotParent`] in a process forked from the child's parent, and
    /// [`ProcessError::System`] if the system refuses, because the child runs as another user by
    /// now.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{ExitStatus, Process};
    ///
    /// let child = Process::spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// child.terminate()?;
    /// assert_eq!(child.join()?, ExitStatus::Signal(15));
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn terminate(&self) -> Result<(), ProcessError> {
        self.check_own()?;
        sent(self.spawned.child.signal(Signal::SIGTERM))
    }

    /// Kills the child, with SIGKILL, which no process can escape. The processes that it has
    /// started are killed too ([`ProcessBuilder::kill_descendants`]).
    ///
    /// # Errors
    ///
    /// The errors of [`Process::terminate`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{ExitStatus, Process};
    ///
    /// let child = Process::spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// child.kill()?;
    /// assert_eq!(child.join()?, ExitStatus::Signal(9));
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.check_own()?;
        sent(self.spawned.kill())
    }
}

fn sent(sent: io::Result<()>) -> Result<(), ProcessError> {
    sent.map_err(|error| {
        ProcessError::system("the signal could not be sent to the child process", error)
    })
}

/// Returns the children of this process that have not ended: those started as a [`Process`],
/// whether their handles are still held or not. Workers of pools are not among them.
///
/// As in Python, the call also reaps those that have ended.
///
/// # Examples
///
/// ```
/// use manyhands::process::{self, Process};
///
/// let child = Process::builder().name("idle").spawn(
///     |()| loop {
///         std::thread::park()
///     },
///     (),
/// )?;
/// let active = process::active_children();
/// assert_eq!(
///     (active.len(), active[0].name(), active[0].pid()),
///     (1, "idle", child.pid())
/// );
///
/// child.kill()?;
/// child.join()?;
/// assert!(process::active_children().is_empty());
/// # Ok::<(), manyhands::process::ProcessError>(())
/// ```
pub fn active_children() -> Vec<Process> {
    registry::active().into_iter().map(Process::of).collect()
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.spawned.child.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that has ended is reaped, so that it does not stay a zombie. A child that runs
        // goes on.
        self.spawned.exit_status();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("exit_status", &self.spawned.status.get())
            .finish()
    }
}
