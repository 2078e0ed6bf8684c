//! What the supervisor has seen at the head of a lane.

use crate::lane::Progress;

/// What was seen of the batch at the head of a lane, and since when it has looked like that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) look: Look,
    /// In nanoseconds of the system's clock.
    pub(super) since: u64,
    /// When it was looked at last, by the same clock.
    pub(super) looked_at: u64,
}

/// All that changes when the worker does anything for the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) task: u32,
    pub(super) can_begin: bool,
    pub(super) has_begun: bool,
    pub(super) progress: Progress,
    /// While the batch's message is being written: how many cells have been written. The number
    /// grows as the worker reads.
    pub(super) written: Option<u64>,
}

/// How far a stalled worker has come in its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stalled {
    pub(super) position: u64,
    pub(super) trace: u32,
}

impl Sight {
    /// Returns whether only the worker itself keeps it from beginning. A worker that is starting
    /// has its initialiser to run, which may take as long as it likes. This does not count if the
    /// worker is stopped.
    pub(super) fn can_begin(&self) -> bool {
        self.look.can_begin
    }
}
