//! A descriptor that tells of the end of a child, where the kernel has no pidfds.
//!
//! Kernels before Linux 5.3, valgrind and some sandboxes do not have them. A thread stands in: it
//! waits for the child, without reaping it, and writes to a pipe. So what polls a child sees the
//! same in both cases, and hears of the end as soon as it is there, whatever copies of the child's
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

use super::task::OwnThread;
use super::{handoff, life, worker};

/// What the thread needs: it makes system calls, and little else.
const STACK: usize = 128 << 10;

/// How long the thread sleeps between two looks if the kernel lets it wait no longer.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether the child `pid` of this process, which has not been reaped, has ended. It stays as it
/// is.
///
/// # Errors
///
/// `ECHILD` if it is no child any more: something else in the program has reaped it. Others are
/// refusals of the kernel.
pub(super) fn has_ended(pid: libc::pid_t) -> Result<bool, Errno> {
    wait(libc::P_PID, pid.unsigned_abs(), libc::WNOHANG)
}

/// The same with `flags` for `waitid`, and for a child named in another way. Does not reap it.
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

/// Starts a thread that waits for the end of the child `pid` of this process. Gives a descriptor
/// that is readable once it has ended, and what the thread writes to. The descriptor is at its end,
/// and so readable, once nothing holds the other one any more: this process has ended, and all that
/// were forked from it and have kept their copy.
pub(super) fn watch(pid: libc::pid_t) -> io::Result<(OwnedFd, Arc<PipeWriter>)> {
    // Known to this process for certain now, as it has not been reaped. Refused now, it would be
    // refused later.
    match has_ended(pid) {
        // ECHILD: it has ended, and something else has reaped it. The thread will say so.
        Ok(_) | Err(Errno::ECHILD) => {}
        Err(refused) => return Err(refused.into()),
    }
    let started = life::start_time(pid.unsigned_abs()).unwrap_or(0);
    let (reader, writer) = handoff::pipe()?;
    let writer = Arc::new(writer);
    let theirs = writer.clone();
    let (up, is_up) = sync_channel(1);
    thread::Builder::new()
        .name("manyhands-child".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let own = OwnThread::register();
            let _ = up.send(());
            worker::block_signals();
            wait_for_end(pid, started);
            // It fails if nothing reads any more.
            let _ = write(&*theirs, &[1]);
            drop((theirs, own));
        })?;
    // Only when it counts as one of the crate's own may this process be asked whether others run.
    let _ = is_up.recv();
    Ok((reader.into(), writer))
}

fn wait_for_end(pid: libc::pid_t, started: u64) {
    loop {
        match wait(libc::P_PID, pid.unsigned_abs(), 0) {
            // ECHILD: it has ended, and something else has reaped it.
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
