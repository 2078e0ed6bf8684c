//! How far a call has come, told to a callback on the caller's thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How far a call has come; see [`Call::on_progress`](crate::Call::on_progress).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let mut told = Vec::new();
/// let tell = |p: &Progress| told.push(format!("{} of {:?} done, {} failed", p.done, p.total, p.failed));
/// let _ = Pool::serial().call().on_progress(tell).try_map(|x| assert!(x != 1), 0..3);
/// assert_eq!(told.last().unwrap(), "3 of Some(3) done, 1 failed");
/// ```
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

impl Progress {
    /// How long the rest is likely to take, if it goes on as it has: `None` before the first item has ended, and when the
    /// number of items is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let mut estimates = Vec::new();
    /// let pool = Pool::serial();
    /// pool.call().on_progress(|p| estimates.push(p.remaining())).map(|x| x, 0..3)?;
    /// assert_eq!(estimates.last(), Some(&Some(std::time::Duration::ZERO)));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        let each = self.elapsed.as_secs_f64() / self.done as f64;
        Duration::try_from_secs_f64(each * left as f64).ok()
    }
}

/// How many items the chunks have that were given out.
///
/// Which of them have ended is not known, only how many. So many items have ended at least as the
/// smallest chunks have.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// How many chunks there are of each size. Schedules give few sizes.
    chunks: BTreeMap<usize, usize>,
}

impl Sizes {
    pub(super) fn add(&mut self, size: usize) {
        *self.chunks.entry(size).or_default() += 1;
    }

    /// Items in the smallest chunks, so many.
    fn of_the_smallest(&self, count: usize) -> usize {
        let (mut items, mut left) = (0, count);
        for (size, chunks) in &self.chunks {
            let taken = left.min(*chunks);
            items += size * taken;
            left -= taken;
        }
        items
    }
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

    /// One that is told of chunks, and tells `outer` of the items in them.
    pub(super) fn by_chunks(outer: &'c mut Tracker<'_>, sizes: &'c RefCell<Sizes>) -> Self {
        if !outer.is_on() {
            return Self::new(None, None);
        }
        let mut done = 0;
        let tell = move |chunks: &Progress| {
            // It only grows: what has ended stays so, though a smaller chunk is given out later.
            done = done.max(sizes.borrow().of_the_smallest(chunks.done));
            outer.tell(done, 0);
        };
        Self::new(Some(Box::new(tell)), None)
    }

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
