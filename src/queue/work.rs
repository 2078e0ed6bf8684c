//! What becomes of items that were taken: done, lost, and waited for.

use std::sync::atomic::Ordering;

use super::error::{JoinError, TooMany};
use super::port::{Others, Patience, Port, Rest};
use crate::shm::member;

impl Port {
    /// An item that this process has taken will never be done.
    pub(super) fn lose(&self) {
        let view = self.view();
        if let Some(book) = self.own_book() {
            book.lost.fetch_add(1, Ordering::AcqRel);
        }
        view.head.finished.notify_all();
    }

    pub(super) fn task_done(&self) -> Result<(), TooMany> {
        let view = self.view();
        let book = self.own_book().ok_or(TooMany)?;
        let one_more = |done: u64| {
            let over = done + book.lost.load(Ordering::Acquire);
            (over < book.taken.load(Ordering::Acquire)).then_some(done + 1)
        };
        book.done
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| TooMany)?;
        // As long as there are items, this was not the last.
        if view.len() == 0 {
            view.head.finished.notify_all();
        }
        Ok(())
    }

    pub(super) fn join(&self, patience: Patience) -> Result<(), JoinError> {
        let view = self.view();
        let rest = Rest::default();
        let unfinished = || {
            let (pushed, finished) = view.balance();
            pushed.wrapping_sub(finished)
        };
        let ready = || {
            let (pushed, finished) = view.balance();
            if pushed == finished {
                return Some(Ok(()));
            }
            let in_hand = || {
                let books = &view.head.books[..member::numbers()];
                books.iter().any(|book| book.in_hand() > 0)
            };
            let is_left = self.other_receivers(&view, rest.is_alone.get()) == Others::None
                && !in_hand()
                && unfinished() > 0;
            is_left.then(|| {
                Err(JoinError::Disconnected {
                    unfinished: unfinished(),
                })
            })
        };
        let waiters = &view.head.finished;
        let ended = waiters.wait(patience.deadline(), ready, || rest.patrol());
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
