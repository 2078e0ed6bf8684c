//! How far a call has come, told to a callback on the caller's thread.

use std::time::{Duration, Instant};

/// How far a call has come; see [`Call::on_progress`](crate::Call::on_progress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Items that have ended, failed ones included.
    pub done: usize,
    /// Items that have failed.
    pub failed: usize,
    /// Items in all, if the input says how many it has.
    pub total: Option<usize>,
    /// Time since the call began.
    pub elapsed: Duration,
}

/// What a call tells its progress to.
pub(super) type Callback<'c> = Box<dyn FnMut(&Progress) + 'c>;

/// The callback of a call and what it was told last.
pub(crate) struct Tracker<'c> {
    tell: Option<Callback<'c>>,
    total: Option<usize>,
    start: Instant,
    told: Option<(usize, usize)>,
}

impl<'c> Tracker<'c> {
    pub(super) fn new(tell: Option<Callback<'c>>, total: Option<usize>) -> Self {
        Self {
            tell,
            total,
            start: Instant::now(),
            told: None,
        }
    }

    /// Whether anybody listens.
    pub(crate) fn is_on(&self) -> bool {
        self.tell.is_some()
    }

    /// Tells the callback, if there is one and these counts are news to it.
    pub(crate) fn tell(&mut self, done: usize, failed: usize) {
        let Some(tell) = &mut self.tell else { return };
        if self.told != Some((done, failed)) {
            self.told = Some((done, failed));
            tell(&Progress {
                done,
                failed,
                total: self.total,
                elapsed: self.start.elapsed(),
            });
        }
    }
}
