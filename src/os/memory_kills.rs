//! Whether the kernel has killed a process for memory: by its counters, because the signal is
//! SIGKILL as any other.
//!
//! The counter is that of the control group in which this process is. A group counts each of its
//! processes that is killed for memory, whether its own limit was met, that of a group around it or
//! that of the machine. Where there is no group, the kernel's counter for the whole machine is
//! read.
//!
//! A counter does not say which process it was. The first death by SIGKILL that is looked at after
//! the counter has grown counts as one of those. Were another process of the group killed for
//! memory, and a worker by a user, they could not be told apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Kills that have been seen, or have been told as a worker's.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Counts the kills so far as seen: they have nothing to do with workers that start from now on.
pub(crate) fn begin() {
    if let Some(kills) = Counter::own().and_then(|counter| counter.kills()) {
        SEEN.fetch_max(kills, Ordering::Relaxed);
    }
}

/// A process that was killed for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// The lowest limit of its control groups in bytes, if they have one.
    pub(crate) limit: Option<u64>,
}

/// Returns a kill that has not been returned yet, if the counter says that there was one.
pub(crate) fn take() -> Option<Kill> {
    Counter::own()?.take(&SEEN)
}

/// Where the kernel counts kills.
struct Counter {
    file: PathBuf,
    /// The folders of the group and of those around it, and what the file with the limit is called.
    groups: Vec<PathBuf>,
    limit: &'static str,
}

impl Counter {
    /// Returns the counter of this process's control group, or that of the machine.
    fn own() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of_group(&groups, Path::new("/sys/fs/cgroup")).or_else(|| {
            let counter = Self {
                file: "/proc/vmstat".into(),
                groups: Vec::new(),
                limit: "",
            };
            counter.kills().map(|_| counter)
        })
    }

    /// Returns the counter of the group that `/proc/self/cgroup` has named, under the folder where
    /// groups are mounted.
    fn of_group(named: &str, mounted: &Path) -> Option<Self> {
        named.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, file, limit) = if controllers.is_empty() {
                (mounted.to_owned(), "memory.events", "memory.max")
            } else if controllers.split(',').any(|name| name == "memory") {
                let root = mounted.join("memory");
                (root, "memory.oom_control", "memory.limit_in_bytes")
            } else {
                return None;
            };
            // Inside a container the path may be the one outside of it. Then the process's own
            // group is at the root.
            let inner = root.join(path.trim_start_matches('/'));
            let groups: Vec<PathBuf> = inner
                .ancestors()
                .take_while(|folder| folder.starts_with(&root))
                .map(Path::to_owned)
                .collect();
            let mut counters = groups.iter().map(|folder| Self {
                file: folder.join(file),
                groups: groups.clone(),
                limit,
            });
            counters.find(|counter| counter.kills().is_some())
        })
    }

    /// Returns how many processes were killed.
    fn kills(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.file).ok()?;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }

    fn limit(&self) -> Option<u64> {
        // A group without a limit says `max`, or a number that no machine has.
        const MOST: u64 = 1 << 60;
        let limits = self.groups.iter().filter_map(|folder| {
            let limit = fs::read_to_string(folder.join(self.limit)).ok()?;
            limit.trim().parse().ok()
        });
        limits.filter(|&limit| limit < MOST).min()
    }

    fn take(&self, seen: &AtomicU64) -> Option<Kill> {
        let kills = self.kills()?;
        let next = |seen: u64| (seen < kills).then(|| seen.saturating_add(1));
        seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .ok()?;
        Some(Kill {
            limit: self.limit(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("manyhands-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn write(&self, file: &str, text: &str) {
            let file = self.0.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn b125_each_kill_of_a_group_is_told_once_with_the_lowest_limit() {
        let folder = Folder::new("kills-of-a-group");
        let events = |kills: u32| format!("low 0\noom 9\noom_kill {kills}\noom_group_kill 0\n");
        folder.write("outer/inner/memory.events", &events(3));
        folder.write("outer/inner/memory.max", "max\n");
        folder.write("outer/memory.events", &events(7));
        folder.write("outer/memory.max", "1000000\n");
        folder.write("memory.max", "2000000\n");
        let counter = Counter::of_group("1:cpu:/x\n0::/outer/inner\n", &folder.0).unwrap();
        let seen = AtomicU64::new(3);
        assert_eq!(counter.take(&seen), None, "those were before");
        folder.write("outer/inner/memory.events", &events(5));
        let kill = Some(Kill {
            limit: Some(1_000_000),
        });
        assert_eq!(counter.take(&seen), kill);
        assert_eq!(counter.take(&seen), kill);
        assert_eq!(counter.take(&seen), None);
        // A counter that has become smaller belongs to another group.
        folder.write("outer/inner/memory.events", &events(0));
        assert_eq!(counter.take(&seen), None);
    }

    #[test]
    fn b125_groups_of_the_first_version_have_their_counter_elsewhere() {
        let folder = Folder::new("kills-of-an-old-group");
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        folder.write("memory/a/memory.oom_control", control);
        folder.write("memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        let named = "7:cpu,memory:/a\n0::/\n";
        let counter = Counter::of_group(named, &folder.0).unwrap();
        let kill = Some(Kill { limit: None });
        assert_eq!(counter.take(&AtomicU64::new(0)), kill);
        // What is named there belongs to another namespace: the root is this one's.
        folder.write("memory/memory.oom_control", control);
        let counter = Counter::of_group("7:memory:/b/c\n", &folder.0).unwrap();
        assert_eq!(counter.file, folder.0.join("memory/memory.oom_control"));
        assert!(Counter::of_group("", &folder.0).is_none());
        assert!(Counter::of_group("0::/nowhere", &folder.0).is_none());
    }
}
