//! How much memory the machine, and the control groups of this process, have left.

use std::fs;
use std::io;

/// Checks that this many bytes of memory are left, as far as the system says, and `kept` more.
///
/// # Errors
///
/// `OutOfMemory` if they are not.
pub(crate) fn check_left(len: u64, kept: u64) -> io::Result<()> {
    match memory_left() {
        Some(left) if len.saturating_add(kept) > left => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "{left} bytes are left to this process, by /proc/meminfo and the limits of its control groups; {kept} of them are \
                 kept free"
            ),
        )),
        _ => Ok(()),
    }
}

/// Returns how many bytes the machine, or the control group of this process, still has; `None` if
/// the system does not say.
///
/// A memfd belongs to no mounted file system that could be full. If it takes more than there is,
/// the kernel frees memory by killing a process of its choice. So a caller that asks for much gets
/// an error before that.
pub(super) fn memory_left() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = machine.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kilobytes * 1_024)
    };
    let left = field("MemAvailable:")? + field("SwapFree:").unwrap_or(0);
    Some(left.min(group_left().unwrap_or(u64::MAX)))
}

/// Returns how many bytes the control groups of this process, of either version, leave it.
fn group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, limit, usage, idle) = if controllers.is_empty() {
            (
                "/sys/fs/cgroup",
                "memory.max",
                "memory.current",
                "inactive_file ",
            )
        } else if controllers.split(',').any(|name| name == "memory") {
            let names = ("memory.limit_in_bytes", "memory.usage_in_bytes");
            (
                "/sys/fs/cgroup/memory",
                names.0,
                names.1,
                "total_inactive_file ",
            )
        } else {
            return None;
        };
        // Inside a container the path may be the one outside of it. Then the process's own group is
        // at the root.
        let mut path = path;
        let mut least = u64::MAX;
        loop {
            let folder = format!("{root}{path}");
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(format!("{folder}/{name}"))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                let stat = fs::read_to_string(format!("{folder}/memory.stat")).unwrap_or_default();
                let idle = stat
                    .lines()
                    .find_map(|line| line.strip_prefix(idle)?.parse().ok());
                least = least.min(
                    limit
                        .saturating_sub(usage)
                        .saturating_add(idle.unwrap_or(0)),
                );
            }
            match path.rfind('/') {
                Some(end) if !path.is_empty() => path = &path[..end],
                _ => break,
            }
        }
        Some(least)
    });
    left.min()
}
