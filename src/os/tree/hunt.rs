//! Looks for marks in `/proc`, and kills the processes that have them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::mark::{MAPPING, Mark, VARIABLE, Wanted};
use crate::os::{life, process_fd};

/// How often `/proc` is read at most. Descendants that start others while they are killed are found
/// by the next reading.
const MOST_READINGS: usize = 64;

/// How long to wait before another look at a process that is becoming another program, at first and
/// at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How often such a look is repeated in a row, when nothing else is found: for about half a second.
const MOST_PAUSES: u32 = 15;

/// How many bytes of an environment are read at first.
const FIRST_READ: usize = 16 << 10;

/// Kills all processes that have the mark of one of these children of a program, and not this
/// process. Returns how many it has killed.
pub(crate) fn hunt(program: u64, wanted: &[Wanted]) -> usize {
    let wanted: HashMap<u64, u64> = wanted.iter().map(|it| (it.number, it.since)).collect();
    let mut hunter = Hunter::new(program, wanted);
    let mut killed = HashMap::new();
    let (mut readings, mut pauses) = (0, 0);
    while readings < MOST_READINGS && pauses <= MOST_PAUSES {
        let before = killed.len();
        hunter.is_in_doubt = false;
        for pid in pids() {
            if pid != std::process::id()
                && hunter.is_marked(pid)
                && let Some(started) = kill_if(pid, |pid| hunter.is_hit(pid))
            {
                killed.insert(pid, started);
            }
        }
        // Those that were killed start nothing any more. So a reading that finds no other has found
        // the last ones, if it could see all that there is.
        if killed.len() > before {
            (readings, pauses) = (readings + 1, 0);
        } else if hunter.is_in_doubt {
            thread::sleep(FIRST_PAUSE.saturating_mul(1 << pauses).min(LONGEST_PAUSE));
            pauses += 1;
        } else {
            break;
        }
    }
    killed.len()
}

/// Kills a process if it still is the one that was meant, once its number can no longer become
/// another's. Returns when it was started; `None` if it has not been killed.
pub(super) fn kill_if(pid: u32, mut is_meant: impl FnMut(u32) -> Option<u64>) -> Option<u64> {
    let fd = process_fd::open(pid.cast_signed()).ok()??;
    // The descriptor means the process that has the number now. If that ends, and another one gets
    // the number, the signal goes to no process.
    let started = is_meant(pid)?;
    match process_fd::signal(fd.as_fd(), Signal::SIGKILL) {
        Ok(()) => Some(started),
        Err(error) => {
            log::debug!("process {pid}, which a task has started, is not killed: {error}");
            None
        }
    }
}

/// Kills the process that was started at this time under this pid.
pub(super) fn kill(pid: u32, started: u64) {
    kill_if(pid, |pid| {
        let seen = life::see(pid).ok()?;
        (seen.started == started).then_some(started)
    });
}

struct Hunter {
    program: u64,
    /// The numbers of the children, and since when their marks have been there.
    wanted: HashMap<u64, u64>,
    /// Whether one of them was forked.
    has_copies: bool,
    /// Device and inode of the executable of this process, which is also that of forked children.
    own_program: Option<(u64, u64)>,
    buffer: Vec<u8>,
    /// Whether a process has been seen that may be about to become another program: it shows no
    /// environment then.
    is_in_doubt: bool,
    /// The processes that had an empty environment when they were last looked at, and where.
    empty: HashMap<u32, u64>,
}

impl Hunter {
    fn new(program: u64, wanted: HashMap<u64, u64>) -> Self {
        Self {
            program,
            has_copies: wanted.keys().any(|number| number & 1 == 1),
            wanted,
            own_program: file_of(Path::new("/proc/self/exe")),
            buffer: Vec::new(),
            is_in_doubt: false,
            empty: HashMap::new(),
        }
    }

    /// Returns since when the mark has been there.
    fn since(&self, mark: Mark) -> Option<u64> {
        let is_own = mark.program == self.program;
        let since = self.wanted.get(&mark.number).copied();
        since.filter(|_| is_own)
    }

    /// Returns whether a process has a mark of one of the children.
    fn is_marked(&mut self, pid: u32) -> bool {
        self.oldest_mark(pid).is_some()
    }

    /// Returns when a process was started, if it has a mark and was started after it was made.
    fn is_hit(&mut self, pid: u32) -> Option<u64> {
        let since = self.oldest_mark(pid)?;
        let seen = life::see(pid).ok()?;
        (seen.started >= since && !seen.is_dead).then_some(seen.started)
    }

    /// Returns whether a process that has just shown no environment may have been about to become
    /// another program. It may have come to the end of that since, so what else it shows now tells
    /// nothing. One whose environment is empty has it at the same place at the next reading.
    /// Threads of the kernel and zombies have no executable.
    fn may_become_another(&mut self, pid: u32) -> bool {
        if fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            return false;
        }
        match life::empty_environment(pid) {
            None => true,
            Some(place) => self.empty.insert(pid, place) != Some(place),
        }
    }

    /// Returns since when the oldest mark of a process has been there. Looks at the mappings first:
    /// a copy of a forked child that becomes another program meanwhile loses them, and has the mark
    /// in its environment then.
    fn oldest_mark(&mut self, pid: u32) -> Option<u64> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut found = None;
        if self.is_own_program(pid) && read(&format!("/proc/{pid}/maps"), &mut buffer) {
            let marks = marks_of_mappings(&buffer);
            found = marks.filter_map(|mark| self.since(mark)).min();
        }
        if found.is_none() && read_at_once(&format!("/proc/{pid}/environ"), &mut buffer) {
            if buffer.is_empty() {
                self.is_in_doubt |= self.may_become_another(pid);
            }
            let marks = marks_in(&buffer);
            found = marks.filter_map(|mark| self.since(mark)).min();
        }
        self.buffer = buffer;
        found
    }

    /// Returns whether a process may be a copy of a forked child.
    fn is_own_program(&self, pid: u32) -> bool {
        self.has_copies
            && self.own_program.is_some()
            && file_of(Path::new(&format!("/proc/{pid}/exe"))) == self.own_program
    }
}

/// Returns the marks in an environment, as `/proc` shows it.
pub(super) fn marks_in(environment: &[u8]) -> impl Iterator<Item = Mark> {
    environment
        .split(|&byte| byte == 0)
        .filter_map(|line| {
            let value = line.strip_prefix(VARIABLE.as_bytes())?;
            value.strip_prefix(b"=")
        })
        .flat_map(|value| value.split(|&byte| byte == b','))
        .filter_map(Mark::parse)
}

/// Returns the marks in the names of mappings, as `/proc` shows them.
fn marks_of_mappings(maps: &[u8]) -> impl Iterator<Item = Mark> {
    maps.split(|&byte| byte == b'\n').filter_map(|line| {
        let name = std::str::from_utf8(line).ok()?;
        let (_, mark) = name.split_once("/memfd:")?.1.split_once(MAPPING)?;
        Mark::parse(mark.strip_suffix(" (deleted)").unwrap_or(mark).as_bytes())
    })
}

/// Reads a whole file. Returns false if that cannot be read: the process is another user's, or has
/// ended.
fn read(path: &str, buffer: &mut Vec<u8>) -> bool {
    buffer.clear();
    File::open(path).is_ok_and(|mut file| file.read_to_end(buffer).is_ok())
}

/// Does the same as [`read`] by one system call. Between two of them the process may become another
/// program. Then nothing more can be read of the environment that it had, and what was read looks
/// like all of it.
fn read_at_once(path: &str, buffer: &mut Vec<u8>) -> bool {
    let mut len = buffer.capacity().max(FIRST_READ);
    loop {
        buffer.resize(len, 0);
        let read = File::open(path).and_then(|mut file| file.read(buffer));
        match read {
            // There may be more.
            Ok(read) if read == len => len *= 2,
            Ok(read) => {
                buffer.truncate(read);
                return true;
            }
            Err(_) => return false,
        }
    }
}

fn file_of(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Returns the pids of all processes that `/proc` shows.
pub(super) fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(|entry| pid(entry.ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that is killed when this goes.
    struct Sleeps(Child);

    impl Sleeps {
        fn start(command: &mut Command) -> Self {
            Self(command.arg("1000").spawn().unwrap())
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }

        fn end(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Sleeps {
        fn drop(&mut self) {
            self.end();
        }
    }

    #[test]
    fn an_environment_is_read_whole_or_not_at_all() {
        // Each shell becomes the next one at once, with the same environment.
        let long = "x".repeat(40 << 10);
        let script = r#"exec sh -c "$0" "$0""#;
        let mut shell = Command::new("sh");
        let shell = shell
            .args(["-c", script, script])
            .env_clear()
            .env("LONG", &long);
        let shell = Sleeps(shell.spawn().unwrap());
        let path = format!("/proc/{}/environ", shell.pid());
        let mut whole = 0;
        while whole < 2_000 {
            // A new buffer, as at the first look.
            let mut buffer = Vec::new();
            assert!(read_at_once(&path, &mut buffer), "it runs");
            whole += usize::from(!buffer.is_empty());
            let has_it = buffer.windows(5).any(|window| window == b"LONG=");
            assert!(
                buffer.is_empty() || has_it && buffer.len() > long.len(),
                "{}",
                buffer.len()
            );
        }
    }

    #[test]
    fn a_process_that_has_shown_no_environment_is_in_doubt_unless_it_has_none() {
        let mut hunter = Hunter::new(1, HashMap::new());
        let mut sleeps = Sleeps::start(&mut Command::new("sleep"));
        // As if it had shown none before: whatever it shows now, it has become another program.
        for _ in 0..3 {
            assert!(hunter.may_become_another(sleeps.pid()));
        }
        sleeps.end();
        assert!(!hunter.may_become_another(sleeps.pid()), "it is gone");
        let bare = Sleeps::start(Command::new("sleep").env_clear());
        assert!(hunter.may_become_another(bare.pid()), "at the first look");
        for _ in 0..3 {
            assert!(!hunter.may_become_another(bare.pid()));
        }
    }
}
