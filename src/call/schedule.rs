//! How the items of a call are cut into chunks.
//!
//! Handing an item to a worker has a cost, so items travel in chunks. But the chunk that is handed
//! out last decides when the call ends, so chunks must not be too large. The default gives large
//! chunks first and ever smaller ones towards the end (guided self-scheduling: Polychronopoulos and
//! Kuck, IEEE Trans. Comput. C-36, 1987).

use crate::error::TaskError;
use crate::text::as_text;

/// The way in which the items of a call are cut into chunks, in the terms of OpenMP's `schedule`
/// clause.
///
/// As text, and with serde, they are `equal`, `guided` and `dynamic:16`.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// assert_eq!("dynamic:10".parse(), Ok(Schedule::Dynamic(10)));
/// let pool = Pool::threads(2)?;
/// let cubes = pool
///     .call()
///     .schedule(Schedule::Dynamic(10))
///     .map(|x: u64| x.pow(3), 0..100)?;
/// assert_eq!(cubes[99], 970_299);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Schedule {
    /// One chunk for each worker, all of the same size (to within one item). It has the least
    /// overhead, and is right when every item costs the same. On processes a chunk is cut when its
    /// items take 64 KiB, whatever the schedule.
    Equal,
    /// Each chunk is the share of one worker in half of what is left: large ones first, single
    /// items at the end. It is right when costs differ or are not known, and therefore the default.
    /// A chunk has at most 8,192 items. An input that does not say how long it is starts with
    /// single items, and the chunks double.
    #[default]
    Guided,
    /// Chunks of this many items. `Dynamic(1)` hands out single items: best balance, most overhead.
    Dynamic(usize),
}

as_text!(
    Schedule,
    "schedule",
    "equal, guided, or dynamic with the items of a chunk (dynamic:16)",
    Equal = "equal",
    Guided = "guided";
    Dynamic = "dynamic"
);

/// The most items of a guided chunk, so that the first worker can start before half of the input is
/// read.
const GUIDED_MOST: usize = 8_192;

/// The sizes of the chunks of a call, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    schedule: Schedule,
    workers: usize,
    /// Items the input has in all, as far as it says so. It is a hint, and is trusted for sizes
    /// only.
    total: Option<usize>,
    given: usize,
    /// How many chunk sizes the engine has taken so far.
    asked: usize,
}

impl Chunks {
    /// Makes the sizes for a call.
    ///
    /// # Errors
    ///
    /// [`TaskError::InvalidCall`] for a chunk size of zero.
    pub(crate) fn new(
        schedule: Schedule,
        workers: usize,
        total: Option<usize>,
    ) -> Result<Self, TaskError> {
        if schedule == Schedule::Dynamic(0) {
            return Err(TaskError::InvalidCall {
                reason: "a chunk of 0 items never ends; give at least 1".into(),
            });
        }
        Ok(Self {
            schedule,
            workers: workers.max(1),
            total,
            given: 0,
            asked: 0,
        })
    }

    /// Returns how many items the next chunk should have: at least 1, also when the input has more
    /// items than it said.
    pub(crate) fn next_size(&mut self) -> usize {
        let size = match (self.schedule, self.total) {
            (Schedule::Dynamic(size), _) => size,
            (Schedule::Equal, Some(total)) => {
                // The first `total % workers` chunks take one more.
                total / self.workers + usize::from(self.asked < total % self.workers)
            }
            (Schedule::Guided, Some(total)) => {
                (total.saturating_sub(self.given) / self.workers.saturating_mul(2)).min(GUIDED_MOST)
            }
            (Schedule::Equal | Schedule::Guided, None) => {
                let round = (self.asked / self.workers).min(GUIDED_MOST.ilog2() as usize);
                1 << round
            }
        }
        .max(1);
        self.given = self.given.saturating_add(size);
        self.asked += 1;
        size
    }

    /// Takes back this many items of the last chunk: they were not taken after all and are still to
    /// come.
    pub(crate) fn put_back(&mut self, items: usize) {
        self.given = self.given.saturating_sub(items);
    }
}

/// Returns the length of an input that says exactly how long it is.
pub(crate) fn exact_len(hint: (usize, Option<usize>)) -> Option<usize> {
    (hint.1 == Some(hint.0)).then_some(hint.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(schedule: Schedule, workers: usize, total: usize) -> Vec<usize> {
        let mut chunks = Chunks::new(schedule, workers, Some(total)).unwrap();
        let mut sizes = Vec::new();
        let mut left = total;
        while left > 0 {
            let size = chunks.next_size().min(left);
            left -= size;
            sizes.push(size);
        }
        sizes
    }

    #[test]
    fn equal_chunks_differ_by_one_item_at_most() {
        assert_eq!(sizes(Schedule::Equal, 4, 10), [3, 3, 2, 2]);
        assert_eq!(sizes(Schedule::Equal, 4, 2), [1, 1]);
        assert_eq!(sizes(Schedule::Equal, 1, 7), [7]);
    }

    #[test]
    fn guided_chunks_shrink_to_single_items() {
        let sizes = sizes(Schedule::Guided, 2, 1_000);
        assert_eq!(sizes[0], 250);
        assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]), "{sizes:?}");
        assert_eq!(*sizes.last().unwrap(), 1);
        assert_eq!(sizes.iter().sum::<usize>(), 1_000);
    }

    #[test]
    fn guided_chunks_have_a_ceiling() {
        assert_eq!(sizes(Schedule::Guided, 2, 10_000_000)[0], GUIDED_MOST);
    }

    #[test]
    fn a_chunk_that_was_cut_short_leaves_large_ones_to_come() {
        let mut chunks = Chunks::new(Schedule::Guided, 2, Some(1_000)).unwrap();
        assert_eq!(chunks.next_size(), 250);
        chunks.put_back(240);
        assert_eq!(chunks.next_size(), 247);
    }

    #[test]
    fn an_input_of_unknown_length_starts_small_and_doubles() {
        let mut chunks = Chunks::new(Schedule::Guided, 2, None).unwrap();
        let sizes: Vec<_> = (0..6).map(|_| chunks.next_size()).collect();
        assert_eq!(sizes, [1, 1, 2, 2, 4, 4]);
    }

    #[test]
    fn chunks_of_an_input_of_unknown_length_have_the_same_ceiling() {
        for schedule in [Schedule::Guided, Schedule::Equal] {
            let mut chunks = Chunks::new(schedule, 1, None).unwrap();
            let sizes: Vec<_> = (0..100).map(|_| chunks.next_size()).collect();
            assert!(sizes.is_sorted(), "{sizes:?}");
            assert_eq!(sizes.last(), Some(&GUIDED_MOST));
        }
    }

    #[test]
    fn only_a_hint_without_doubt_is_a_length() {
        assert_eq!(exact_len((3, Some(3))), Some(3));
        assert_eq!(
            (exact_len((2, Some(3))), exact_len((3, None))),
            (None, None)
        );
    }

    #[test]
    fn an_input_longer_than_it_said_still_gets_chunks() {
        let mut chunks = Chunks::new(Schedule::Equal, 2, Some(2)).unwrap();
        assert!((0..10).all(|_| chunks.next_size() >= 1));
    }

    #[test]
    fn b20_a_chunk_size_of_zero_is_an_error() {
        assert!(matches!(
            Chunks::new(Schedule::Dynamic(0), 2, None),
            Err(TaskError::InvalidCall { .. })
        ));
    }
}
