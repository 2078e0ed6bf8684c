//! [`ProcessBuilder`]: the options of a child.

use std::ffi::OsString;

use super::logs::Logs;
use super::{Process, Stdio, Termination, start};
use crate::call::portable::{Portable, PortableValue};
use crate::error::ProcessError;
use crate::os::environment::Environment;

/// The options of a [`Process`], before it is started; see [`Process::builder`].
///
/// # Examples
///
/// ```
/// use manyhands::Process;
///
/// let (reader, writer) = std::io::pipe()?;
/// let child = Process::builder()
///     .name("greeter")
///     .env("GREETING", "hello")
///     .stdout(writer)
///     .spawn(
///         |name: String| print!("{} {name}", std::env::var("GREETING").unwrap()),
///         "you".to_owned(),
///     )?;
/// assert_eq!(std::io::read_to_string(reader)?, "hello you");
/// assert!(child.join()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Clones of a builder start children with the same options. They hold the same descriptors: a pipe
/// that is a child's output is at its end when the child has ended and no clone is left, nor a
/// process that was forked from this one meanwhile ([`Forked`](crate::Forked),
/// [`StartMethod::Fork`](crate::engine::StartMethod::Fork)).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `spawn`"]
pub struct ProcessBuilder {
    pub(super) name: Option<String>,
    pub(super) environment: Environment,
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
    pub(super) is_daemon: bool,
    pub(super) kills_descendants: bool,
    pub(super) logs: Option<Logs>,
}

impl Default for ProcessBuilder {
    fn default() -> Self {
        Self {
            name: None,
            environment: Environment::default(),
            stdin: Stdio::null(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            is_daemon: false,
            kills_descendants: true,
            logs: None,
        }
    }
}

impl ProcessBuilder {
    /// Sets the child's name: it is the name of its handle, of [`current`](super::current) in the
    /// child, and of the process in `ps`. By default, the children of a process are counted:
    /// `process1`, `process2` …, and those of a child called `X` are `X:1`, `X:2` ….
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{self, Process};
    ///
    /// let child = Process::builder()
    ///     .name("indexer")
    ///     .spawn(|()| assert_eq!(process::current().name(), "indexer"), ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a variable of the child's environment; the others are as in the parent.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::builder().env("OMP_NUM_THREADS", "1").spawn(
    ///     |()| assert_eq!(std::env::var("OMP_NUM_THREADS").unwrap(), "1"),
    ///     (),
    /// )?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.set(name, value);
        self
    }

    /// Sets variables of the child's environment.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let threads = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"].map(|name| (name, "1"));
    /// let child = Process::builder().envs(threads).spawn(
    ///     |()| assert_eq!(std::env::var("RAYON_NUM_THREADS").unwrap(), "1"),
    ///     (),
    /// )?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn envs<I, K, V>(self, variables: I) -> Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let set = |builder: Self, (name, value)| builder.env(name, value);
        variables.into_iter().fold(self, set)
    }

    /// Removes a variable from the child's environment: one of the parent's, or one that was set
    /// before.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::builder()
    ///     .env_remove("PATH")
    ///     .spawn(|()| assert!(std::env::var_os("PATH").is_none()), ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.environment.remove(name);
        self
    }

    /// Clears the child's environment: the child has only the variables that are set after this
    /// call.
    ///
    /// A child starts without any variable of the user's. But if this program needs
    /// `LD_LIBRARY_PATH` to find its shared libraries, so does the child. One variable is there in
    /// any case: `MANYHANDS_TREE`, by which
    /// [`kill_descendants`](Self::kill_descendants) finds what the child has started.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::builder().env_clear().env("LANG", "C").spawn(
    ///     |()| {
    ///         let mut names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    ///         names.sort();
    ///         assert_eq!(names, ["LANG", "MANYHANDS_TREE"]);
    ///     },
    ///     (),
    /// )?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn env_clear(mut self) -> Self {
        self.environment.clear();
        self
    }

    /// Sets what the child reads as standard input. The default is [`Stdio::null`]: with the
    /// parent's, parent and child would take the input from each other.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    /// use std::io::Write;
    ///
    /// let (reader, mut writer) = std::io::pipe()?;
    /// let child = Process::builder().stdin(reader).spawn(
    ///     |()| {
    ///         assert_eq!(
    ///             std::io::read_to_string(std::io::stdin()).unwrap(),
    ///             "to the child"
    ///         )
    ///     },
    ///     (),
    /// )?;
    /// writer.write_all(b"to the child")?;
    /// drop(writer);
    /// assert!(child.join()?.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Sets where the child's standard output goes. The default is [`Stdio::inherit`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{Process, Stdio};
    ///
    /// let child = Process::builder()
    ///     .stdout(Stdio::null())
    ///     .spawn(|()| println!("not shown"), ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Sets where the child's standard error goes. The default is [`Stdio::inherit`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let (reader, writer) = std::io::pipe()?;
    /// let child = Process::builder().stderr(writer).spawn(
    ///     |()| -> Result<(), String> { Err("no such index".to_owned()) },
    ///     (),
    /// )?;
    /// assert!(std::io::read_to_string(reader)?.contains("no such index"));
    /// # child.join()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Sets whether the child is a daemon: one that is killed when its parent ends normally,
    /// instead of being waited for. By default, it is not. When the parent is killed, all its
    /// children are killed, daemons or not.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// // Without `daemon`, this program would not end.
    /// Process::builder().daemon(true).spawn(
    ///     |()| loop {
    ///         std::thread::park()
    ///     },
    ///     (),
    /// )?;
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn daemon(mut self, is_daemon: bool) -> Self {
        self.is_daemon = is_daemon;
        self
    }

    /// Sets whether the processes that the child has started, and those that these have started,
    /// are killed when the child is ended by force: by a signal ([`Process::kill`]), as a
    /// [daemon](Self::daemon) at the end of its parent, or with a parent that is killed. By
    /// default, they are. When the child ends by itself, with whatever exit code, they are left
    /// alone.
    ///
    /// They are found by the variable `MANYHANDS_TREE`, which each process gives to those that it
    /// starts, and, if the child is killed by its parent, by their parents. So a process is not
    /// found if it has removed the variable and its own parent has ended, or if the child has died
    /// of a signal and the process has removed the variable. A process that runs as another user is
    /// not killed. The end comes some milliseconds after that of the child. After a death that the
    /// parent has not caused, it comes when the parent looks at the child ([`Process::join`], for
    /// example).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    /// use std::io::Read;
    /// use std::process::Command;
    ///
    /// let (mut reader, writer) = std::io::pipe()?;
    /// let child = Process::builder().stdout(writer).spawn(
    ///     |()| {
    ///         println!("it begins");
    ///         // It has the child's standard output, too.
    ///         Command::new("sleep").arg("1000").status().unwrap();
    ///     },
    ///     (),
    /// )?;
    /// let mut output = [0; 10];
    /// reader.read_exact(&mut output)?;
    /// child.kill()?;
    /// reader.read_to_end(&mut Vec::new())?; // no process has the output any more
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill_descendants(mut self, are_killed: bool) -> Self {
        self.kills_descendants = are_killed;
        self
    }

    /// Sets whether the child's log records go through this process's logger. By default they do if
    /// it has a logger when the child is started: see [`logs`](crate::logs).
    ///
    /// Then the child has a logger before its function begins, and the crate [`log`] takes no
    /// second one. A function that sets a logger of its own (`env_logger::init()`) needs
    /// [`Logs::Off`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    /// use manyhands::logs::Logs;
    ///
    /// // A logger of the child's own.
    /// let child = Process::builder().logs(Logs::Off).spawn(
    ///     |()| log::set_max_level(log::LevelFilter::Info), // and `set_logger`
    ///     (),
    /// )?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Starts the child, and returns without waiting for it; see [`Process::spawn`].
    ///
    /// # Errors
    ///
    /// - [`ProcessError::SpawnFailed`] if the system refuses (processes, descriptors, memory), or
    ///   if the argument or what `f` captures cannot be serialised;
    /// - [`ProcessError::InvalidOption`] if a variable cannot have this name or value, or a stream
    ///   is [`Stdio::lines`];
    /// - [`ProcessError::TooDeep`] if too many processes lie one inside the other already;
    /// - [`ProcessError::ForeignFunction`] and [`ProcessError::ForeignExecutable`] in a shared
    ///   library that another program has loaded;
    /// - [`ProcessError::Privileged`] in a set-user-id program;
    /// - [`ProcessError::InitNotCalled`] in a program without the feature `worker-hook` that has
    ///   not called [`init`](crate::init);
    /// - [`ProcessError::WorkerReachedMain`] in a process that was itself started as a child but
    ///   reached `main`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    ///
    /// let child = Process::builder().name("summer").spawn(
    ///     |numbers: Vec<u32>| assert_eq!(numbers.iter().sum::<u32>(), 6),
    ///     vec![1, 2, 3],
    /// )?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the argument moves into the child"
    )]
    pub fn spawn<F, A, T>(self, f: F, argument: A) -> Result<Process, ProcessError>
    where
        F: Fn(A) -> T + Portable,
        A: PortableValue + 'static,
        T: Termination,
    {
        start::spawn(&self, &f, &argument)
    }
}
