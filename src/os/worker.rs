//! What a process does to itself, once, when it becomes a worker.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::out_of_reach;
use super::refusal::refused;
use super::start::NULL;

/// Returns the value of a variable of the environment, without the cost of std's function. The hook
/// calls it, through which every start of every program with this crate goes.
pub(crate) fn variable(name: &CStr) -> Option<String> {
    // SAFETY: `name` ends in NUL. The caller runs before `main`, or at its top, where no thread
    // changes the environment.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv gives a string that ends in NUL and stays as long as no thread changes the
    // environment.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_str().ok().map(str::to_owned)
}

/// Removes a variable from the environment.
pub(crate) fn remove_variable(name: &CStr) {
    // SAFETY: `name` ends in NUL; as in `variable`, no other thread runs.
    unsafe { libc::unsetenv(name.as_ptr()) };
}

/// Returns whether the executable runs with more rights than the user who started it (set-user-id
/// and the like), so that its environment must not be trusted.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: getauxval takes an integer and reads the auxiliary vector of the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns standard input, on which a worker gets the socket to its parent.
pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: calls on descriptor 0 only ask what it is; if it is closed, every call on it fails
    // with EBADF.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Moves standard input to a number where it can stay open (close-on-exec) and puts `/dev/null` in
/// its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let taken = stdin().try_clone_to_owned()?;
    close_stdin()?;
    out_of_reach(taken)
}

/// Puts `/dev/null` in the place of standard input.
pub(crate) fn close_stdin() -> io::Result<()> {
    let null = File::open(NULL).map_err(|error| refused("open", NULL, error))?;
    Ok(nix::unistd::dup2_stdin(null.as_fd())?)
}

/// Closes, in a forked child, its copy of a descriptor of the parent's.
pub(crate) fn close_copy(fd: BorrowedFd<'_>) {
    // SAFETY: close takes an integer. The owner is in a frame below that a forked child never goes
    // back to.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Makes standard output go to another descriptor.
pub(crate) fn replace_stdout(to: &OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(to.as_fd())?)
}

/// Makes standard error go to another descriptor.
pub(crate) fn replace_stderr(to: &OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(to.as_fd())?)
}

/// Resets, in a forked child, the signals that the program handles to their defaults: what the
/// program does with them is not what a worker does. The child must call `set_signals` next, which
/// unblocks them. (A stack that overflows is left to std's handler.)
///
/// Signals that the program ignores stay ignored, as in a program that it starts: under `nohup` a
/// closed terminal must end neither the parent nor the workers. SIGCHLD is the exception: a worker
/// waits for the programs that its tasks start.
pub(crate) fn reset_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(
            signal,
            Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGSEGV | Signal::SIGBUS
        ) && (signal == Signal::SIGCHLD || !is_ignored(signal))
        {
            // SAFETY: no handler is involved.
            if let Err(error) = unsafe { sigaction(signal, &default) } {
                log::debug!("{signal} could not be reset: {error}");
            }
        }
    }
}

/// Returns whether this process ignores a signal.
fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, this only writes the present one to its place.
    let asked = unsafe { libc::sigaction(signal as c_int, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroes are a valid `sigaction` too.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Puts a descriptor in the place of standard input.
pub(crate) fn set_stdin(fd: OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdin(fd)?)
}

/// Opens standard streams that are closed on `/dev/null`, as std does before `main`, so that no
/// other descriptor takes their number and gets what the program prints.
///
/// Closes nothing: the constructors of this process's libraries have opened the other descriptors
/// ([`start`](super::start)).
pub(crate) fn open_standard_streams() -> io::Result<()> {
    loop {
        // Not close-on-exec: programs that this one starts must have it too.
        let null = nix::fcntl::open(NULL, OFlag::O_RDWR, Mode::empty())
            .map_err(|error| refused("open", NULL, error))?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // It is a standard stream now.
        std::mem::forget(null);
    }
}

/// Has the kernel kill this process when the thread that started it ends. Returns an error if the
/// parent has died already.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| refused("prctl", "the end with the parent", error))?;
    // It may have died before the line above.
    if parent_id() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the parent has died"))
    }
}

/// Sets the name that `ps` and `top` show for the command; cut to 15 bytes.
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = CString::new(name)
        && let Err(error) = nix::sys::prctl::set_name(&name)
    {
        log::debug!("the process could not be named: {error}");
    }
}

/// Sets the signals as a worker needs them, before `main` has set up anything.
///
/// SIGINT is caught and dropped: on Ctrl-C the whole foreground group gets it, and the parent
/// decides what to do. It is caught and not ignored, because an ignored signal would stay ignored
/// in programs that a task starts. If this process was started with SIGINT ignored, as a job in the
/// background of a script is, it stays ignored, for those programs too. SIGPIPE is ignored, as std
/// does before `main`. No signal is blocked: the thread that starts workers blocks all signals, and
/// a worker and the programs that its tasks start would inherit that.
pub(crate) fn set_signals() -> io::Result<()> {
    extern "C" fn drop_signal(_: c_int) {}
    let flags = SaFlags::SA_RESTART;
    let caught = SigAction::new(SigHandler::Handler(drop_signal), flags, SigSet::empty());
    if !is_ignored(Signal::SIGINT) {
        // SAFETY: the handler does nothing, so it may run at any point.
        unsafe { sigaction(Signal::SIGINT, &caught) }?;
    }
    let ignored = SigAction::new(SigHandler::SigIgn, flags, SigSet::empty());
    // SAFETY: no handler is involved.
    unsafe { sigaction(Signal::SIGPIPE, &ignored) }?;
    Ok(SigSet::empty().thread_set_mask()?)
}

thread_local! {
    /// On a thread of the crate's own: the signals that the program's thread blocked for which it
    /// was started.
    static PROGRAMS_MASK: Cell<Option<SigSet>> = const { Cell::new(None) };
}

/// Returns the signals that the program has blocked on this thread. On a thread of the crate's own
/// they are those of the program's thread for which it was started.
pub(crate) fn programs_mask() -> SigSet {
    let own = || SigSet::thread_get_mask().ok();
    let mask = PROGRAMS_MASK.get().or_else(own);
    mask.unwrap_or_else(SigSet::empty)
}

/// Keeps signals that the program handles away from the calling thread, which is one of the crate's
/// own: they are for the program's own threads. `mask` is the [`programs_mask`] of the thread that
/// has started this one.
pub(crate) fn block_signals(mask: SigSet) {
    PROGRAMS_MASK.set(Some(mask));
    if let Err(error) = SigSet::all().thread_block() {
        log::debug!("signals could not be blocked: {error}");
    }
}

/// Blocks the signals that the program blocks, and no others, in a child that this thread has
/// forked: code of the program runs in it, and in what that starts.
pub(crate) fn restore_signals() {
    if let Some(mask) = PROGRAMS_MASK.take()
        && let Err(error) = mask.thread_set_mask()
    {
        log::debug!("signals could not be let through: {error}");
    }
}

/// Returns the cores that this process may use, by the system's numbers.
pub(crate) fn cores() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let is_in = |&core: &usize| set.is_set(core).unwrap_or(false);
    (0..CpuSet::count()).filter(is_in).collect()
}

/// Makes this process run on one core.
pub(crate) fn run_on(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|error| refused("sched_setaffinity", "a worker", error))
}

/// Sets how nice this process is to others.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority takes three integers.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
        .map_err(|error| refused("setpriority", "a worker", error))?;
    Ok(())
}

/// Limits the data of this process: heap and private mappings, and not what it shares with others.
pub(crate) fn limit_memory(bytes: u64) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
        .map_err(|error| refused("setrlimit", "the memory of a worker", error))
}
