//! The progress of a call, reported to a callback on the caller's thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The progress of a call; see [`Call::on_progress`](crate::Call::on_progress).
///
/// # Examples
///
/// ```
/// use manyhands::Progress;
/// use manyhands::prelude::*;
///
/// let mut told = Vec::new();
/// let tell = |p: &Progress| {
///     told.push(format!(
///         "{} of {:?} done, {} failed",
///         p.done, p.total, p.failed
///     ))
/// };
/// let _ = Pool::serial()
///     .call()
///     .on_progress(tell)
///     .map_outcomes(|x| assert!(x != 1), 0..3);
/// assert_eq!(told.last().unwrap(), "3 of Some(3) done, 1 failed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Estimates how long the rest takes, if it goes on at the same speed. Returns `None` before
    /// the first item has ended, and when the number of items is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let mut estimates = Vec::new();
    /// let pool = Pool::serial();
    /// pool.call()
    ///     .on_progress(|p| estimates.push(p.remaining_time()))
    ///     .map(|x| x, 0..3)?;
    /// assert_eq!(estimates.last(), Some(&Some(std::time::Duration::ZERO)));
    /// # Ok::<(), TaskError>(())
    /// ```
    pub fn remaining_time(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        let each = self.elapsed.as_secs_f64() / self.done as f64;
        Duration::try_from_secs_f64(each * left as f64).ok()
    }
}

/// How long a caller that is told of the progress waits at most until it looks again: short beside
/// the quarter of a second that is promised.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// The sizes of the chunks that were given out.
///
/// The caller knows how many chunks have ended, but not which. At least as many items have ended as
/// the smallest chunks hold.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    /// How many chunks there are of each size. Schedules give few sizes.
    chunks: BTreeMap<usize, usize>,
}

impl Sizes {
    pub(crate) fn add(&mut self, size: usize) {
        *self.chunks.entry(size).or_default() += 1;
    }

    /// Returns how many items all chunks have.
    fn of_all(&self) -> usize {
        self.chunks.iter().map(|(size, chunks)| size * chunks).sum()
    }

    /// Returns how many items the `count` smallest chunks have.
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

/// The callback that a call reports its progress to. A lazy call takes it along to other threads.
pub(crate) type Callback<'c> = Box<dyn FnMut(&Progress) + Send + 'c>;

/// What hears of the progress.
enum Tell<'c> {
    /// The callback of the user's call.
    Items(Told<'c>),
    /// The tracker of a `map_reduce`, of whose chunks this call is one by one: it gets the number
    /// of chunks that have ended, and the number of items that have ended in others.
    Chunks(Box<dyn FnMut(usize, usize) + Send + 'c>),
}

/// The callback of a call, and the counts that it was called with last.
struct Told<'c> {
    tell: Callback<'c>,
    total: Option<usize>,
    start: Instant,
    last: Option<(usize, usize)>,
}

/// What hears of the progress of a call, if anything does. Most calls have nothing of it, and none
/// of its size.
pub(crate) struct Tracker<'c>(Option<Box<Tell<'c>>>);

impl<'c> Tracker<'c> {
    #[inline]
    pub(crate) fn new(tell: Option<Callback<'c>>, total: Option<usize>) -> Self {
        tell.map_or(Self(None), |tell| Self::on(tell, total))
    }

    #[cold]
    fn on(tell: Callback<'c>, total: Option<usize>) -> Self {
        Self(Some(Box::new(Tell::Items(Told {
            tell,
            total,
            start: Instant::now(),
            last: None,
        }))))
    }

    /// Makes a tracker that counts chunks, and reports the items in them to `outer`. `ended` is how
    /// many items have ended, if they are counted.
    pub(crate) fn by_chunks(
        outer: &'c mut Tracker<'_>,
        sizes: &'c Mutex<Sizes>,
        ended: Option<&'c AtomicUsize>,
    ) -> Self {
        if !outer.is_on() {
            return Self(None);
        }
        let tell = move |chunks: usize, within: usize| {
            let done = if let Some(ended) = ended {
                ended.load(Ordering::Relaxed)
            } else {
                let sizes = sizes.lock();
                let least = sizes.of_the_smallest(chunks);
                least.saturating_add(within).min(sizes.of_all())
            };
            // Nothing is told before the first item has ended.
            if done > 0 {
                outer.tell(done, 0);
            }
        };
        Self(Some(Box::new(Tell::Chunks(Box::new(tell)))))
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Calls the callback, if there is one and these counts differ from the last ones.
    #[inline]
    pub(crate) fn tell(&mut self, done: usize, failed: usize) {
        if let Some(tell) = &mut self.0 {
            tell.with(done, failed, 0);
        }
    }

    /// Does the same while items run, but tells nothing before the first has ended. If the items
    /// are chunks, `within` is how many of the items in them have ended.
    #[inline]
    pub(crate) fn tell_running(&mut self, done: usize, failed: usize, within: usize) {
        if let Some(tell) = &mut self.0
            && (done > 0 || matches!(**tell, Tell::Chunks(_)))
        {
            tell.with(done, failed, within);
        }
    }
}

impl Tell<'_> {
    /// What is told only grows, though a worker that dies may take along what it had ended.
    #[cold]
    fn with(&mut self, done: usize, failed: usize, within: usize) {
        match self {
            Self::Chunks(tell) => tell(done, within),
            Self::Items(told) => {
                let done = told.last.map_or(done, |(last, _)| last.max(done));
                if told.last != Some((done, failed)) {
                    told.last = Some((done, failed));
                    (told.tell)(&Progress {
                        done,
                        failed,
                        total: told.total,
                        elapsed: told.start.elapsed(),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_items_have_ended_as_the_smallest_chunks_have() {
        let mut sizes = Sizes::default();
        for size in [5, 1, 3, 1] {
            sizes.add(size);
        }
        let items: Vec<_> = (0..6).map(|count| sizes.of_the_smallest(count)).collect();
        assert_eq!(items, [0, 1, 2, 5, 10, 10]);
    }

    #[test]
    fn a_callback_is_told_what_is_news_to_it_and_nothing_else() {
        let mut told = Vec::new();
        let note = |p: &Progress| told.push((p.done, p.failed, p.total));
        let mut tracker = Tracker::new(Some(Box::new(note)), Some(9));
        assert!(tracker.is_on());
        for (done, failed) in [(0, 0), (1, 0), (1, 0), (1, 1), (2, 1), (2, 1)] {
            tracker.tell(done, failed);
        }
        drop(tracker);
        let expected = [(0, 0), (1, 0), (1, 1), (2, 1)].map(|(d, f)| (d, f, Some(9)));
        assert_eq!(told, expected);
        let mut off = Tracker::new(None, Some(9));
        assert!(!off.is_on());
        off.tell(1, 0);
        let mut told = Vec::new();
        let note = |p: &Progress| told.push(p.done);
        let mut running = Tracker::new(Some(Box::new(note)), None);
        for done in [0, 2, 1, 2, 3] {
            running.tell_running(done, 0, 9);
        }
        drop(running);
        assert_eq!(told, [2, 3], "nothing of no items, and nothing goes back");
    }

    #[test]
    fn what_is_told_of_chunks_never_goes_back() {
        let sizes = Mutex::new(Sizes::default());
        let mut told = Vec::new();
        let note = |p: &Progress| told.push((p.done, p.total));
        let mut outer = Tracker::new(Some(Box::new(note)), Some(7));
        let mut chunks = Tracker::by_chunks(&mut outer, &sizes, None);
        assert!(chunks.is_on());
        sizes.lock().add(4);
        chunks.tell(1, 0);
        // Smaller chunks come later: the one that has ended may be one of them, as far as the
        // tracker knows.
        sizes.lock().add(2);
        sizes.lock().add(1);
        chunks.tell(2, 0);
        chunks.tell(3, 0);
        drop(chunks);
        drop(outer);
        assert_eq!(told, [4, 7].map(|done| (done, Some(7))));
        let mut off = Tracker::new(None, None);
        assert!(!Tracker::by_chunks(&mut off, &sizes, None).is_on());
    }

    #[test]
    fn what_has_ended_within_chunks_counts_up_to_all_that_there_is() {
        let sizes = Mutex::new(Sizes::default());
        let mut told = Vec::new();
        let note = |p: &Progress| told.push(p.done);
        let mut outer = Tracker::new(Some(Box::new(note)), None);
        let mut chunks = Tracker::by_chunks(&mut outer, &sizes, None);
        for size in [4, 3] {
            sizes.lock().add(size);
        }
        for (done, within) in [(0, 0), (0, 2), (1, 1), (1, 0), (1, usize::MAX), (2, 0)] {
            chunks.tell_running(done, 0, within);
        }
        drop(chunks);
        drop(outer);
        assert_eq!(told, [2, 4, 7]);
        let (mut told, ended) = (Vec::new(), AtomicUsize::new(0));
        let note = |p: &Progress| told.push(p.done);
        let mut outer = Tracker::new(Some(Box::new(note)), None);
        let mut counted = Tracker::by_chunks(&mut outer, &sizes, Some(&ended));
        for now in [0, 1, 1, 6] {
            ended.store(now, Ordering::Relaxed);
            counted.tell_running(0, 0, 0);
        }
        drop(counted);
        drop(outer);
        assert_eq!(told, [1, 6]);
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done() {
        let progress = |done, total| Progress {
            done,
            failed: 0,
            total,
            elapsed: Duration::from_secs(6),
        };
        let left = |done, total| progress(done, total).remaining_time();
        assert_eq!(left(2, Some(8)), Some(Duration::from_secs(18)));
        assert_eq!(left(8, Some(8)), Some(Duration::ZERO));
        // The input was longer than it said.
        assert_eq!(left(9, Some(8)), Some(Duration::ZERO));
        assert_eq!((left(0, Some(8)), left(2, None)), (None, None));
    }
}
