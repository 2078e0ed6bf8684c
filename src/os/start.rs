//! Starts the main executable again, as a process that has nothing of this one but its standard
//! streams.
//!
//! Other descriptors are kept from the new process before it begins. It must not close them itself:
//! by then the constructors of its shared libraries have run, and what they have opened cannot be
//! told from what was inherited. A library whose descriptor is closed goes on to use the number,
//! and by then the number means another file.
//!
//! The C library's `posix_spawn` does it where it has `closefrom` (glibc 2.34). Its cost does not
//! grow with the memory of this process. It keeps back also a descriptor that another thread opens
//! at that moment: the new process has a table of its own by then. Elsewhere the process is forked,
//! and the child marks its descriptors as close-on-exec.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};

use super::environment::Environment;
use super::refusal::refused;
use super::{above_standard, executable};

/// The first descriptor that is no standard stream.
const FIRST: c_int = 3;

/// A standard stream of a new process.
#[derive(Debug)]
pub(crate) enum Stream {
    /// That of this process; `/dev/null` if that is closed, or not meant for other programs.
    Inherit,
    /// `/dev/null`.
    Null,
    Fd(OwnedFd),
}

impl Stream {
    /// Returns the descriptor; `None` for the stream of this process.
    pub(crate) fn into_fd(self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Inherit => Ok(None),
            Self::Null => null().map(Some),
            Self::Fd(fd) => Ok(Some(fd)),
        }
    }

    /// Returns what takes the place of this process's descriptor `number`; `None` if it stays as it
    /// is.
    fn source(self, number: c_int) -> io::Result<Option<OwnedFd>> {
        if matches!(self, Self::Inherit) && is_inheritable(number) {
            return Ok(None);
        }
        // A closed stream's number would go to the first descriptor that a constructor of a
        // library opens.
        let fd = self.into_fd()?.map_or_else(null, Ok)?;
        // Not under the number of another stream, which is replaced first.
        above_standard(fd).map(Some)
    }
}

/// The file that swallows everything.
pub(super) const NULL: &str = "/dev/null";

fn null() -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open(NULL);
    Ok(null.map_err(|error| refused("open", NULL, error))?.into())
}

fn is_inheritable(number: c_int) -> bool {
    // SAFETY: the descriptor is only asked for its flags; if it is closed, that is an error of the
    // call.
    let stream = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(stream, FcntlArg::F_GETFD)
        .is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC))
}

/// Starts the executable with `name` as its first argument, in this environment and with these
/// streams as standard input, output and error. The signals in `blocked` are blocked in it. Returns
/// its pid.
pub(crate) fn start_again(
    name: &str,
    environment: &Environment,
    streams: [Stream; 3],
    blocked: &[Signal],
) -> io::Result<u32> {
    // A new process needs the file too.
    drop(null()?);
    let start = Start {
        executable: &CString::new(executable::own().as_os_str().as_bytes())?,
        name,
        arguments: executable::arguments()?,
        environment,
        sources: sources(streams)?,
        blocked: blocked.iter().copied().collect(),
    };
    let started = match close_from() {
        Some(close_from) => start.spawn(close_from),
        None => start.fork_and_exec(),
    };
    started.map_err(|error| {
        let path = executable::own().display();
        refused("posix_spawn", format_args!("this program, {path}"), error)
    })
}

/// Opens the standard streams that are not those of this process, by their numbers.
fn sources(streams: [Stream; 3]) -> io::Result<Vec<(c_int, OwnedFd)>> {
    let mut sources = Vec::new();
    for (number, stream) in (0..).zip(streams) {
        if let Some(source) = stream.source(number)? {
            sources.push((number, source));
        }
    }
    Ok(sources)
}

/// A process to be started.
struct Start<'a> {
    executable: &'a CStr,
    name: &'a str,
    /// What follows the name.
    arguments: &'a [CString],
    environment: &'a Environment,
    sources: Vec<(c_int, OwnedFd)>,
    /// The signals that are blocked in it, whatever the thread blocks that starts it.
    blocked: SigSet,
}

/// `posix_spawn_file_actions_addclosefrom_np`.
type CloseFrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, c_int) -> c_int;

/// Looks the function up. It is not linked to: with it the program would not run where the C
/// library is older.
fn close_from() -> Option<CloseFrom> {
    static FOUND: OnceLock<Option<CloseFrom>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let name = c"posix_spawn_file_actions_addclosefrom_np";
        // SAFETY: the name ends in NUL.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if found.is_null() {
            return None;
        }
        // SAFETY: not null, so it is the C library's function of this name, which has this type.
        Some(unsafe { std::mem::transmute::<*mut libc::c_void, CloseFrom>(found) })
    })
}

/// Turns the number that a function of the `posix_spawn` family returns into a result.
fn check(code: c_int) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code))
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it is there to be written to.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: the call has succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// Resets SIGPIPE to what programs expect: std has this process ignore it. Blocks these signals
    /// and no others, though the thread that starts the process may block them all.
    fn new(blocked: &SigSet) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it is there to be written to.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: the call has succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let signals = SigSet::from(Signal::SIGPIPE);
        let attribute = &raw mut attributes.0;
        // SAFETY: both are initialised.
        check(unsafe { libc::posix_spawnattr_setsigdefault(attribute, signals.as_ref()) })?;
        // SAFETY: both are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(attribute, blocked.as_ref()) })?;
        let flags = (libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK) as libc::c_short;
        // SAFETY: it is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(attribute, flags) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

impl Start<'_> {
    fn spawn(self, close_from: CloseFrom) -> io::Result<u32> {
        let mut actions = Actions::new()?;
        let list = &raw mut actions.0;
        for (number, source) in &self.sources {
            let source = source.as_raw_fd();
            // SAFETY: the list is initialised; the rest are integers.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(list, source, *number) })?;
        }
        // SAFETY: as above.
        check(unsafe { close_from(list, FIRST) })?;
        let attributes = Attributes::new(&self.blocked)?;
        let mut arguments = vec![CString::new(self.name)?];
        arguments.extend_from_slice(self.arguments);
        let environment = lines(self.environment)?;
        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        let mut pid = 0;
        // SAFETY: all pointers are to what lives until the call returns; the strings end in NUL,
        // and both lists of them in null.
        check(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.executable.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        Ok(pid.unsigned_abs())
    }

    /// Starts the process like [`spawn`](Self::spawn), without `closefrom`: the cost of a fork
    /// grows with the memory of this process.
    fn fork_and_exec(self) -> io::Result<u32> {
        let mut command = Command::new(OsStr::from_bytes(self.executable.to_bytes()));
        command.arg0(self.name);
        let arguments = self.arguments.iter();
        command.args(arguments.map(|argument| OsStr::from_bytes(argument.to_bytes())));
        self.environment.give_to(&mut command);
        for (number, source) in self.sources {
            let stream = Stdio::from(source);
            match number {
                0 => command.stdin(stream),
                1 => command.stdout(stream),
                _ => command.stderr(stream),
            };
        }
        let blocked = self.blocked;
        let prepare = move || {
            blocked.thread_set_mask()?;
            keep_from_next_program(FIRST)
        };
        // SAFETY: between fork and exec it makes only system calls, and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        Ok(command.spawn()?.id())
    }
}

/// Returns the variables of an environment as `exec` takes them.
fn lines(environment: &Environment) -> io::Result<Vec<CString>> {
    let line = |(name, value): (OsString, OsString)| {
        let mut line = name.into_vec();
        line.push(b'=');
        line.extend_from_slice(value.as_bytes());
        Ok(CString::new(line)?)
    };
    environment.variables().map(line).collect()
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
    pointers.chain([ptr::null_mut()]).collect()
}

/// Marks all descriptors of this process from `first` on as close-on-exec. Allocates nothing.
fn keep_from_next_program(first: RawFd) -> io::Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range takes integers, and with this flag closes nothing.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flag) };
    if marked == 0 {
        return Ok(());
    }
    // Kernels before 5.11, and sandboxes that do not know the call.
    mark_one_by_one(first)
}

/// Does the same as [`keep_from_next_program`], by the list in `/proc`. It reads the thread's list,
/// because a thread has a table of its own in a test.
fn mark_one_by_one(first: RawFd) -> io::Result<()> {
    /// The size of what the kernel writes of an entry before its name: inode, offset, length of the
    /// entry, kind.
    const NAME: usize = 19;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path ends in NUL.
    let folder = Errno::result(unsafe { libc::open(c"/proc/thread-self/fd".as_ptr(), flags) })?;
    let mut buffer = [0_u8; 4_096];
    let outcome = loop {
        // SAFETY: the call may write to the buffer, whose length it is given.
        let read = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                folder,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        });
        let mut entries = match read {
            Ok(0) => break Ok(()),
            Ok(len) => &buffer[..usize::try_from(len).unwrap_or(0)],
            Err(error) => break Err(error.into()),
        };
        while let Some((&[low, high], name)) = entries
            .get(16..)
            .and_then(|tail| tail.split_first_chunk::<2>())
            .zip(entries.get(NAME..))
            .map(|((length, _), name)| (length, name))
        {
            if let Some(fd) = number(name).filter(|&fd| fd >= first) {
                // SAFETY: F_SETFD takes an integer, and closes nothing now.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            let length = usize::from(u16::from_ne_bytes([low, high]));
            entries = entries.get(length.max(NAME)..).unwrap_or_default();
        }
    };
    // SAFETY: opened above.
    unsafe { libc::close(folder) };
    outcome
}

/// Reads the number that these bytes begin with, up to a NUL; `None` if they say something else.
fn number(bytes: &[u8]) -> Option<RawFd> {
    let digits = bytes.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn is_marked(fd: BorrowedFd<'_>) -> bool {
        let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap();
        FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
    }

    /// Runs `body` on a thread with a table of descriptors of its own.
    fn apart(body: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
                body();
            });
        });
    }

    #[test]
    fn both_ways_mark_all_from_the_first_on() {
        for mark in [keep_from_next_program, mark_one_by_one] {
            apart(|| {
                let null = File::open("/dev/null").unwrap();
                // More than one buffer of entries.
                let fds: Vec<OwnedFd> =
                    (0..500).map(|_| nix::unistd::dup(&null).unwrap()).collect();
                assert!(!fds.iter().any(|fd| is_marked(fd.as_fd())));
                let first = fds[250].as_raw_fd();
                mark(first).unwrap();
                for fd in &fds {
                    assert_eq!(is_marked(fd.as_fd()), fd.as_raw_fd() >= first);
                }
            });
        }
    }

    #[test]
    fn a_new_process_has_its_streams_and_variables_and_nothing_else() {
        // The shell reads the script as its standard input. Beside the three streams `ls` has the
        // folder open.
        let script = "ls /proc/self/fd | wc -l; echo $0 $MANYHANDS_A >&2";
        let null = File::open("/dev/null").unwrap();
        let _inherited = nix::unistd::dup(&null).unwrap();
        for is_forked in [false, true] {
            let (input, mut to_input) = io::pipe().unwrap();
            let (output, to_output) = io::pipe().unwrap();
            let (errors, to_errors) = io::pipe().unwrap();
            to_input.write_all(script.as_bytes()).unwrap();
            drop(to_input);
            let streams = [input.into(), to_output.into(), to_errors.into()].map(Stream::Fd);
            let mut environment = Environment::default();
            environment.set("MANYHANDS_A", "a value");
            let start = Start {
                executable: c"/bin/sh",
                name: "a name",
                arguments: &[],
                environment: &environment,
                sources: sources(streams).unwrap(),
                blocked: SigSet::empty(),
            };
            let pid = match close_from().filter(|_| !is_forked) {
                Some(close_from) => start.spawn(close_from),
                None => start.fork_and_exec(),
            };
            let output = io::read_to_string(output).unwrap();
            let errors = io::read_to_string(errors).unwrap();
            let pid = nix::unistd::Pid::from_raw(pid.unwrap().cast_signed());
            nix::sys::wait::waitpid(pid, None).unwrap();
            assert_eq!((output.trim(), errors.trim()), ("4", "a name a value"));
        }
    }

    /// Returns what `env` prints in this environment.
    fn printed_env(environment: &Environment, is_forked: bool) -> String {
        let (output, to_output) = io::pipe().unwrap();
        let streams = [Stream::Null, Stream::Fd(to_output.into()), Stream::Null];
        let start = Start {
            executable: c"/usr/bin/env",
            name: "env",
            arguments: &[],
            environment,
            sources: sources(streams).unwrap(),
            blocked: SigSet::empty(),
        };
        let pid = match close_from().filter(|_| !is_forked) {
            Some(close_from) => start.spawn(close_from),
            None => start.fork_and_exec(),
        };
        let output = io::read_to_string(output).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.unwrap().cast_signed());
        nix::sys::wait::waitpid(pid, None).unwrap();
        output
    }

    #[test]
    fn both_ways_remove_one_variable_or_all() {
        for is_forked in [false, true] {
            let mut environment = Environment::default();
            environment.set("MANYHANDS_A", "1");
            environment.remove("PATH");
            let output = printed_env(&environment, is_forked);
            assert!(output.contains("MANYHANDS_A=1\n"), "{output}");
            assert!(!output.contains("\nPATH=") && !output.starts_with("PATH="));
            environment.clear();
            environment.set("MANYHANDS_B", "2");
            assert_eq!(printed_env(&environment, is_forked), "MANYHANDS_B=2\n");
        }
    }

    #[test]
    fn a_new_process_blocks_the_signals_given_and_no_others() {
        use super::super::worker;

        // Threads that start workers do this.
        worker::block_signals(worker::programs_mask());
        let some = [Signal::SIGHUP, Signal::SIGINT];
        let cases = [(&[][..], "0"), (&some, "3")];
        for ((signals, mask), is_forked) in
            cases.into_iter().flat_map(|it| [(it, false), (it, true)])
        {
            let (input, to_input) = io::pipe().unwrap();
            let streams = [Stream::Fd(input.into()), Stream::Null, Stream::Null];
            let start = Start {
                executable: c"/bin/cat",
                name: "cat",
                arguments: &[],
                environment: &Environment::default(),
                sources: sources(streams).unwrap(),
                blocked: signals.iter().copied().collect(),
            };
            let pid = match close_from().filter(|_| !is_forked) {
                Some(close_from) => start.spawn(close_from),
                None => start.fork_and_exec(),
            };
            let pid = pid.unwrap();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            drop(to_input);
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::wait::waitpid(pid, None).unwrap();
            let blocked = status.lines().find(|line| line.starts_with("SigBlk:"));
            assert_eq!(blocked, Some(&*format!("SigBlk:\t{mask:0>16}")));
        }
    }

    #[test]
    fn numbers_are_numbers() {
        assert_eq!(number(b"17\0rest"), Some(17));
        for other in [&b".\0"[..], b"..\0", b"", b"-\0"] {
            assert_eq!(number(other), None);
        }
    }
}
