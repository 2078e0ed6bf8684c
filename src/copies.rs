//! Copies of a process that a task makes, by a `fork` in its function.
//!
//! Such a function returns twice. On the threads of a pool the copy has this one thread, with
//! copies of the queue and of all results that it holds. If it went on, it would run the other
//! tasks a second time. So it ends there.

#[cfg(target_os = "linux")]
pub(crate) use crate::os::fork::{COPY_PANICKED, COPY_RETURNED, Original};

/// Exit code of a copy in which the function has returned.
#[cfg(not(target_os = "linux"))]
pub(crate) const COPY_RETURNED: i32 = 0;

/// Exit code of a copy in which the function has panicked.
#[cfg(not(target_os = "linux"))]
pub(crate) const COPY_PANICKED: i32 = 101;

/// The stand-in on systems where this crate cannot tell a copy: no copy ends there.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy)]
pub(crate) struct Original;

#[cfg(not(target_os = "linux"))]
impl Original {
    pub(crate) fn here() -> Self {
        Self
    }

    #[expect(
        clippy::unused_self,
        reason = "as where copies can be told from the original"
    )]
    pub(crate) fn end_copy(self, _code: i32) {}

    #[expect(
        clippy::unused_self,
        reason = "as where copies can be told from the original"
    )]
    pub(crate) fn end_copy_after<T, E>(self, _outcome: &Result<T, E>) {}
}

/// Runs a function of the user's. A copy of this process that the function forks ends when the
/// function returns in it. If the function panics there, the caller must call [`end_panicked`].
#[inline]
pub(crate) fn run<T>(original: Original, function: impl FnOnce() -> T) -> T {
    let value = function();
    original.end_copy(COPY_RETURNED);
    value
}

/// Ends a copy in which a function run by [`run`] has panicked. The original goes on.
#[inline]
pub(crate) fn end_panicked(original: Original) {
    original.end_copy(COPY_PANICKED);
}
