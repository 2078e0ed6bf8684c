//! The index of the worker that runs a task: [`worker_index`].
//!
//! A thread of a pool and a worker process have one index from their start to their end, so the
//! engines set it once. The serial engine has no worker of its own: it sets the index for the
//! length of each task, and puts back what was there before.

use std::cell::Cell;

/// The value of [`INDEX`] on a thread that is no worker.
const NONE: usize = usize::MAX;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(NONE) };
}

/// Returns the index of the worker that runs this task: from 0 to the number of workers of its
/// pool, exclusive. Returns `None` outside of tasks.
///
/// On [`Threads`](crate::Threads) each thread of the pool has an index, and on
/// [`Processes`](crate::Processes) each worker. A worker that takes the place of one that died has
/// the index of that one. The children of one call on [`Forked`](crate::Forked) that run at the
/// same time have different indices; so have the children of submitted tasks. On
/// [`Serial`](crate::Serial) the index is 0.
///
/// So the index names a resource that one task at a time may use: a graphics card, a port, a
/// directory. It can be asked for in the initialiser of a worker, too. In a task within a task the
/// inner one counts. Threads that a task starts run no task.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::worker_index;
///
/// let pool = Pool::processes(2)?;
/// let indices = pool.map(|_: u32| worker_index(), 0..100)?;
/// assert!(indices.iter().all(|index| matches!(index, Some(0 | 1))));
/// assert_eq!(worker_index(), None); // not here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn worker_index() -> Option<usize> {
    // At the end of a thread the cell is still there: it needs no `Drop`.
    Some(INDEX.get()).filter(|&index| index != NONE)
}

/// Makes this thread the worker with this index. In a forked child, this replaces the index that
/// the forking thread had.
pub(crate) fn set(index: usize) {
    INDEX.set(index);
}

/// The index that a thread had before. The thread gets it back when this is dropped.
pub(crate) struct Scope(usize);

/// Notes that this thread runs a task of the serial engine.
#[inline]
pub(crate) fn enter_serial() -> Scope {
    Scope(INDEX.replace(0))
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        INDEX.set(self.0);
    }
}

/// Returns the lowest index that none of the living workers has.
#[cfg(target_os = "linux")]
pub(crate) fn lowest_free(taken: impl Iterator<Item = usize>) -> usize {
    let mut taken: Vec<usize> = taken.collect();
    taken.sort_unstable();
    let is_taken = |&(index, &taken): &(usize, &usize)| index == taken;
    taken.iter().enumerate().take_while(is_taken).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b98_after_a_scope_the_thread_has_the_index_that_it_had() {
        assert_eq!(worker_index(), None);
        {
            let _outer = enter_serial();
            assert_eq!(worker_index(), Some(0));
        }
        assert_eq!(worker_index(), None);
        std::thread::spawn(|| {
            set(3);
            drop(enter_serial());
            assert_eq!(worker_index(), Some(3));
        })
        .join()
        .unwrap();
        assert_eq!(worker_index(), None, "of another thread");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn b98_the_lowest_free_index_is_found() {
        let taken = |list: &[usize]| lowest_free(list.iter().copied());
        assert_eq!(taken(&[]), 0);
        assert_eq!(taken(&[0, 1, 2]), 3);
        assert_eq!(taken(&[2, 0, 3]), 1);
        assert_eq!(taken(&[1]), 0);
    }
}
