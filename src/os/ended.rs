//! A descriptor that becomes readable at the end of a child, where the kernel has no pidfds.
//!
//! Kernels before Linux 5.3, valgrind and some sandboxes do not have them. A thread takes their
//! place: it waits for the child, without reaping it, and writes to a pipe. So code that polls a
//! child sees the same in both cases, and learns of the end at once, whatever copies of the child's
//! descriptors other processes hold.

use std::io::{self, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::write;

use super::refusal::refused;
use super::task::{Coming, OwnThread, There, not_started};
use super::{handoff, life, worker};

/// The thread needs little stack: it makes system calls, and does little else.
const STACK: usize = 128 << 10;

/// The time between two looks of the thread at the child, if the kernel refuses to let it wait.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns whether the child `pid` of this process, which has not been reaped, has ended. Does not
/// reap it.
///
/// # Errors
///
/// `ECHILD` if it is no child any more: another part of the program has reaped it. Other errors are
/// refusals of the kernel.
pub(super) fn has_ended(pid: libc::pid_t) -> Result<bool, Errno> {
    wait(libc::P_PID, pid.unsigned_abs(), libc::WNOHANG)
}

/// Does the same with `flags` for `waitid`, and for a child named in another way. Does not reap it.
pub(super) fn wait(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Result<bool, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = flags | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: the pointer is to memory that the call may write to.
    Errno::result(unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) })?;
    // SAFETY: zeros are valid, and so is what the call wrote.
    let info = unsafe { info.assume_init() };
    // With WNOHANG and no child that has ended, the call leaves zeros.
    Ok(info.si_signo != 0)
}

/// Starts a thread that waits for the end of the child `pid` of this process. Returns a descriptor
/// that is readable once the child has ended, and the writer of the thread. The descriptor is at
/// its end, and so readable, also once no process holds the writer any more: this process has
/// ended, and all that were forked from it and have kept their copy.
pub(super) fn watch(pid: libc::pid_t) -> io::Result<(OwnedFd, Arc<PipeWriter>)> {
    // This process has not reaped the child, so it knows it for certain now. If the kernel refuses
    // the wait now, it would refuse it later too.
    match has_ended(pid) {
        // ECHILD: the child has ended, and another part of the program has reaped it. The thread
        // will report the end.
        Ok(_) | Err(Errno::ECHILD) => {}
        Err(error) => return Err(refused("waitid", format_args!("process {pid}"), error)),
    }
    let started = life::start_time(pid.unsigned_abs()).unwrap_or(0);
    let (reader, writer) = handoff::pipe()?;
    let writer = Arc::new(writer);
    let theirs = writer.clone();
    let (up, is_up) = sync_channel(1);
    let coming = Coming::new();
    let mask = worker::programs_mask();
    thread::Builder::new()
        .name("manyhands-child".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let there = There::begin(coming);
            let own = OwnThread::register();
            let _ = up.send(());
            worker::block_signals(mask);
            wait_for_end(pid, started);
            // It fails if there is no reader any more.
            let _ = write(&*theirs, &[1]);
            drop((theirs, own, there));
        })
        .map_err(|error| not_started("manyhands-child", error))?;
    // This process may be asked whether other threads run only once the thread counts as one of the
    // crate's own.
    let _ = is_up.recv();
    Ok((reader.into(), writer))
}

fn wait_for_end(pid: libc::pid_t, started: u64) {
    loop {
        match wait(libc::P_PID, pid.unsigned_abs(), 0) {
            // ECHILD: the child has ended, and another part of the program has reaped it.
            Ok(_) | Err(Errno::ECHILD) => return,
            Err(Errno::EINTR) => {}
            Err(refused) => {
                log::warn!("child {pid} is looked at, and not waited for: {refused}");
                while life::is_running(pid.unsigned_abs(), started) {
                    thread::sleep(PAUSE);
                }
                return;
            }
        }
    }
}
