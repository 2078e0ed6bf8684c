//! What the kernel says about another process.

/// Returns whether a process is stopped, by a signal or a debugger. Returns `false` for a process
/// that cannot be looked at.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may contain anything.
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    state.starts_with(['T', 't'])
}

/// Returns the most memory that a process has had resident at once, in bytes; `None` if the kernel
/// does not say.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        assert!(!is_stopped(std::process::id()));
        assert!(!is_stopped(0));
    }

    #[test]
    fn a_process_that_is_stopped_is_until_it_goes_on() {
        use crate::os::fault::{self, Child, Fate};
        let child = Child::run(Fate::Paused, 0, fault::point);
        assert!(child.is_stopped() && is_stopped(child.pid()));
        child.end();
    }
}
