//! Programs with file systems of their own.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Has a program begin with `mounts`, which no other process sees. It does not start where the
/// kernel does not allow that.
///
/// `mounts` runs between fork and exec, and only makes system calls.
pub fn with_mounts(
    program: &mut Command,
    mounts: impl Fn() -> nix::Result<()> + Send + Sync + 'static,
) -> &mut Command {
    let (user, group) = (geteuid(), getegid());
    let users = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ];
    let prepare = move || {
        if user.is_root() {
            unshare(CloneFlags::CLONE_NEWNS)?;
        } else {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            for (file, text) in &users {
                fs::write(file, text)?;
            }
        }
        // What is mounted here is not to be seen elsewhere.
        let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let none = None::<&str>;
        mount(none, "/", none, alone, none)?;
        Ok(mounts()?)
    };
    // SAFETY: system calls alone, of what was made before the fork.
    unsafe { program.pre_exec(prepare) }
}

/// Whether a program may have mounts of its own here.
pub fn may_mount() -> bool {
    let mut probe = Command::new("true");
    let status: io::Result<_> = with_mounts(&mut probe, || Ok(())).status();
    let may = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    if !may {
        println!("no namespaces here: {status:?}");
    }
    may
}
