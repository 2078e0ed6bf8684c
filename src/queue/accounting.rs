//! The accounts of items that were taken: they are done, lost, or waited for.

use std::sync::atomic::Ordering;

use super::error::{JoinError, TaskDoneError};
use super::handle::{Handle, Others, Rest};
use crate::memory::member;
use crate::memory::wait_mode::WaitMode;

impl Handle {
    /// Counts an item that this process has taken as lost: it will never be done.
    pub(super) fn lose(&self) {
        let view = self.view();
        if let Some(counts) = self.own_counts() {
            // Another thread may have acknowledged it as done.
            let one_more = |lost: u64| {
                let over = lost + counts.done.load(Ordering::Acquire);
                (over < counts.taken.load(Ordering::Acquire)).then_some(lost + 1)
            };
            let _ = counts
                .lost
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        }
        view.head.finished.notify_all();
    }

    /// Acknowledges an item that this process has taken as done.
    pub(super) fn task_done(&self) -> Result<(), TaskDoneError> {
        let view = self.view();
        let counts = self.own_counts().ok_or(TaskDoneError)?;
        let one_more = |done: u64| {
            let over = done + counts.lost.load(Ordering::Acquire);
            (over < counts.taken.load(Ordering::Acquire)).then_some(done + 1)
        };
        counts
            .done
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| TaskDoneError)?;
        // While items are in the queue, this was not the last one.
        if view.len() == 0 {
            view.head.finished.notify_all();
        }
        Ok(())
    }

    /// Waits until all items are finished: done or lost.
    pub(super) fn join(&self, mode: WaitMode) -> Result<(), JoinError> {
        if !self.reach(|| mode.lock_deadline()) {
            // This process cannot look up how many items there are. It is a forked child that has
            // just been started, and has finished none.
            return Err(JoinError::TimedOut { unfinished: 0 });
        }
        let view = self.view();
        let rest = Rest::of(mode);
        let unfinished = || {
            let (pushed, finished) = view.balance();
            pushed.saturating_sub(finished)
        };
        let ready = || {
            let (pushed, finished) = view.balance();
            if pushed <= finished {
                return Some(Ok(()));
            }
            let unacknowledged = || {
                let counts = &view.head.counts[..member::numbers()];
                counts.iter().any(|counts| counts.unacknowledged() > 0)
            };
            // No process can finish the rest: there is no other receiver, and no process has an
            // unacknowledged item.
            let is_left = self.other_receivers(&view, &rest) == Others::None
                && !unacknowledged()
                && unfinished() > 0;
            is_left.then(|| {
                Err(JoinError::Disconnected {
                    unfinished: unfinished(),
                })
            })
        };
        let waiters = &view.head.finished;
        let ended = waiters.wait(mode.deadline(), ready, || rest.poll_for_dead());
        ended.unwrap_or_else(|| {
            Err(JoinError::TimedOut {
                unfinished: unfinished(),
            })
        })?;
        let lost = view.lost();
        match lost.saturating_sub(self.heard.swap(lost, Ordering::Relaxed)) {
            0 => Ok(()),
            items => Err(JoinError::Lost { items }),
        }
    }
}
