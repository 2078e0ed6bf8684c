//! [`Plan`]: the facts that an engine needs to know of a call besides function and items.

use std::borrow::Cow;

use super::limits::Limits;
use super::progress::Tracker;
use super::schedule::{Chunks, Schedule};
use crate::error::TaskError;

/// The facts that an engine needs to know of a call besides function and items.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Plan<'c> {
    pub(crate) schedule: Schedule,
    pub(crate) limits: Limits,
    /// The most items that are read ahead of the first one that has not ended.
    pub(crate) window: Option<usize>,
    /// Whether a lazy call that is dropped kills its items that run.
    pub(crate) kills: bool,
    /// Items in all, if the input says so. It is a hint: an iterator may be wrong about it.
    pub(crate) total: Option<usize>,
    pub(crate) tracker: Tracker<'c>,
}

pub(super) const NO_WINDOW: TaskError = TaskError::InvalidCall {
    reason: Cow::Borrowed("a window of 0 items lets none in; give at least 1"),
};

impl Plan<'_> {
    /// Returns the chunks that the items are cut into.
    ///
    /// # Errors
    ///
    /// [`TaskError::InvalidCall`] for a window or a chunk size of zero.
    pub(crate) fn chunks(&self, workers: usize) -> Result<Chunks, TaskError> {
        if self.window == Some(0) {
            return Err(NO_WINDOW);
        }
        Chunks::new(self.schedule, workers, self.total)
    }
}
