//! The clock that engines without worker processes count by.

#[cfg(target_os = "linux")]
pub(super) use crate::os::clock::{last_tick, now};

/// Returns the nanoseconds since this was first called, and 1 then.
#[cfg(not(target_os = "linux"))]
pub(super) fn now() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;

    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

/// Returns the same: other systems have no clock that is cheaper to read.
#[cfg(not(target_os = "linux"))]
pub(super) fn last_tick() -> u64 {
    now()
}

/// Returns the most memory that this program has had resident at once, in bytes; zero where it is
/// not known.
pub(super) fn own_peak_memory() -> u64 {
    #[cfg(target_os = "linux")]
    return crate::os::state::peak_memory(std::process::id()).unwrap_or(0);
    #[cfg(not(target_os = "linux"))]
    0
}
