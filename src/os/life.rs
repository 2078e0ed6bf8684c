//! Whether a process that was only noted down still runs.
//!
//! A pid is not enough for that, because the kernel uses numbers again. A process is known by its
//! pid together with the time at which it was started. Both have a meaning only in the namespaces
//! (of a container, say) in which they were noted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::refusal::refused;

/// The identity of a process, for processes that read it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) pid: u32,
    /// When the process was started, in clock ticks since the start of the machine.
    pub(crate) started: u64,
    /// The namespace in which the pid means this process, by the number of its inode.
    pub(crate) pids: u64,
    /// The namespace whose clock `started` was read from; 0 where the kernel has none.
    pub(crate) times: u64,
}

impl Life {
    /// Returns this process's own.
    pub(crate) fn own() -> io::Result<Self> {
        let stat = stat_of(std::process::id())
            .map_err(|error| refused("open", "/proc/self/stat", error))?;
        Ok(Self {
            pid: std::process::id(),
            started: stat.started,
            pids: fs::metadata("/proc/self/ns/pid")
                .map_err(|error| refused("stat", "/proc/self/ns/pid", error))?
                .ino(),
            times: fs::metadata("/proc/self/ns/time").map_or(0, |status| status.ino()),
        })
    }

    /// Returns whether the process has certainly ended. If that cannot be known, the process counts
    /// as running.
    ///
    /// A zombie has ended. A process that has become another program by `exec` has not: it keeps
    /// its pid and its start.
    pub(crate) fn has_ended(&self) -> bool {
        let Ok(own) = Self::own() else { return false };
        if (own.pids, own.times) != (self.pids, self.times) {
            return false;
        }
        // /proc may belong to another namespace, and then it lists other processes.
        let shown = fs::read_to_string("/proc/self/stat").ok();
        if shown.and_then(|stat| Some(Stat::parse(&stat)?.pid)) != Some(own.pid) {
            return false;
        }
        if is_gone(self.pid) {
            return true;
        }
        stat_of(self.pid).is_ok_and(|stat| stat.started != self.started || stat.is_dead)
    }
}

/// Returns when a process was started, in clock ticks since the start of the machine. No two
/// processes of one namespace have both this and the pid in common.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    Ok(stat_of(pid)?.started)
}

/// Returns whether the process of this namespace that was started at that time under this pid still
/// runs. A zombie does not. If that cannot be known, the process counts as running.
pub(crate) fn is_running(pid: u32, started: u64) -> bool {
    match stat_of(pid) {
        Ok(stat) if stat.pid == pid => stat.started == started && !stat.is_dead,
        // /proc belongs to another namespace, or hides this process, or is not there (`chroot`).
        _ => !is_gone(pid),
    }
}

/// Returns whether the first thread of a process runs, like [`is_running`] for the process. Of a
/// process that is killed, the first thread may end before the others.
pub(crate) fn is_first_thread_running(pid: u32, started: u64) -> bool {
    match stat_of(pid) {
        Ok(stat) if stat.pid == pid => stat.started == started && !stat.has_first_ended,
        _ => !is_gone(pid),
    }
}

/// A process as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) parent: u32,
    pub(super) started: u64,
    /// Whether it is a zombie, or about to be one.
    pub(super) is_dead: bool,
}

/// Looks at the process that has this pid now.
pub(super) fn see(pid: u32) -> io::Result<Seen> {
    let stat = stat_of(pid)?;
    if stat.pid != pid {
        // /proc belongs to another namespace.
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(Seen {
        parent: stat.parent,
        started: stat.started,
        is_dead: stat.is_dead,
    })
}

/// Returns where the environment of a process lies, if it is empty. While a process becomes another
/// program, there is none for a moment, and then one that is not complete yet.
pub(super) fn empty_environment(pid: u32) -> Option<u64> {
    let (start, end) = stat_of(pid).ok()?.environment;
    (start == end && start != 0).then_some(start)
}

/// Returns the process that a thread belongs to, by the thread's id. `None` if there is no such
/// thread, or `/proc` does not show it.
pub(crate) fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// Returns whether there is no process of this number, by the kernel's answer to a signal.
pub(crate) fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    pid.is_some_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

/// Returns the namespaces by which processes are told apart: the one of their numbers, and the one
/// of the clock of their starts; 0 where it cannot be known.
pub(crate) fn namespaces() -> (u64, u64) {
    let inode = |name| fs::metadata(name).map_or(0, |status| status.ino());
    (inode("/proc/self/ns/pid"), inode("/proc/self/ns/time"))
}

fn stat_of(pid: u32) -> io::Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path)?;
    Stat::parse(&stat).ok_or_else(|| io::Error::other(format!("{path} cannot be read: {stat}")))
}

/// What the kernel says of a process in `/proc/<pid>/stat`.
struct Stat {
    pid: u32,
    parent: u32,
    started: u64,
    /// Whether the first thread has ended.
    has_first_ended: bool,
    /// Whether all threads have.
    is_dead: bool,
    /// Where its environment lies; the same twice if it is empty, and 0 while there is none yet.
    environment: (u64, u64),
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The name, in brackets, may contain anything.
        let (head, tail) = stat.rsplit_once(')')?;
        let pid = head.split(' ').next()?.parse().ok()?;
        // The fields from the third on. The third is the state.
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let threads: u32 = fields.get(17)?.parse().ok()?;
        let has_first_ended = matches!(*fields.first()?, "Z" | "X");
        // Old kernels do not say it.
        let address = |nth: usize| {
            let field = fields.get(nth).and_then(|field| field.parse().ok());
            field.unwrap_or(0)
        };
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            has_first_ended,
            // If the first thread has ended while others run, the state looks the same.
            is_dead: has_first_ended && threads <= 1,
            environment: (address(47), address(48)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_one_of_its_number_at_another_time_has_ended() {
        let own = Life::own().unwrap();
        assert!(!own.has_ended());
        assert_eq!(start_time(own.pid).unwrap(), own.started);
        assert!(is_running(own.pid, own.started));
        assert!(!is_running(own.pid, own.started + 1));
        let before = Life {
            started: own.started - 1,
            ..own
        };
        assert!(before.has_ended());
        // In another namespace the pid may be that of any process.
        let elsewhere = Life {
            pids: own.pids + 1,
            ..before
        };
        assert!(!elsewhere.has_ended());
        let in_another_time = Life {
            times: own.times + 1,
            ..before
        };
        assert!(!in_another_time.has_ended());
        for nobody in [0, u32::MAX] {
            assert!(!Life { pid: nobody, ..own }.has_ended());
        }
    }

    #[test]
    fn one_that_nobody_has_reaped_has_ended_and_so_has_one_that_is_gone() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let life = Life {
            pid: child.id(),
            started: Stat::parse(&stat).unwrap().started,
            ..Life::own().unwrap()
        };
        assert!(!life.has_ended());
        child.kill().unwrap();
        while !life.has_ended() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(life.has_ended());
    }

    #[test]
    fn names_of_processes_do_not_confuse() {
        let rest = "Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let stat = Stat::parse(&format!("12 (a) R 1 (b) {rest}")).unwrap();
        assert_eq!((stat.pid, stat.started, stat.is_dead), (12, 4711, true));
        // The first thread has ended, and another one runs. Then a process that is about to end.
        for (state, threads, is_dead) in [("Z", 2, false), ("X", 1, true), ("R", 1, false)] {
            let rest = rest.replacen('Z', state, 1);
            let rest = rest.replacen(" 20 0 1 ", &format!(" 20 0 {threads} "), 1);
            let stat = Stat::parse(&format!("12 (a) {rest}")).unwrap();
            assert_eq!(stat.is_dead, is_dead, "{state} with {threads} threads");
            assert_eq!(stat.has_first_ended, state != "R");
        }
        for nonsense in ["", ")", "12 (a) R", "x (a) R 1 2 3"] {
            assert!(Stat::parse(nonsense).is_none());
        }
    }
}
