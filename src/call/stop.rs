//! Which results end a call at once.

use std::sync::atomic::{AtomicU32, Ordering};

/// After which result a call needs none of the items that follow. A failure always is one.
///
/// It is an argument of a call of an engine. No other crate can name it.
#[doc(hidden)]
pub trait Stop<R>: Copy + Send + Sync {
    /// Whether the results are of the type `Result`, and an `Err` is one.
    const AT_ERR: bool;

    /// Returns whether this result is one.
    fn is_met(result: &R) -> bool;

    /// Records how often the item of that result was started.
    fn tried(self, attempts: u32) {
        let _ = attempts;
    }
}

/// No result ends the call: `map` and its like.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Never;

impl<R> Stop<R> for Never {
    const AT_ERR: bool = false;

    #[inline]
    fn is_met(_: &R) -> bool {
        false
    }
}

/// An `Err` ends the call: `try_map` and its like.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtErr<'a> {
    /// Where it is said how often the item was started, if a caller wants to know.
    pub(crate) attempts: Option<&'a AtomicU32>,
}

impl AtErr<'_> {
    /// The same, for callers that do not want to know how often the item was started.
    pub(crate) const PLAIN: Self = Self { attempts: None };
}

impl<T, E> Stop<Result<T, E>> for AtErr<'_> {
    const AT_ERR: bool = true;

    #[inline]
    fn is_met(result: &Result<T, E>) -> bool {
        result.is_err()
    }

    fn tried(self, attempts: u32) {
        if let Some(told) = self.attempts {
            told.store(attempts, Ordering::Relaxed);
        }
    }
}
