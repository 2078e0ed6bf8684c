//! [`StoppableChunk`]: a chunk of a lazy call that may end early.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::TaskError;
use crate::future::{Hook, Pending, PoolId, Reason, ThreadNumber, Watch};

/// The outcomes of a chunk's items, in order, as far as they have one; `None` once they have been
/// taken.
pub(super) type Outcomes<R> = Mutex<Option<Vec<Result<R, TaskError>>>>;

/// A chunk whose items write their outcomes as they end. If the chunk is stopped, those that have
/// ended keep theirs.
pub(super) struct StoppableChunk<T: ?Sized, R> {
    pub(super) outcomes: Arc<Outcomes<R>>,
    /// Index of the first item, and their number.
    pub(super) base: usize,
    pub(super) count: usize,
    /// What runs the items.
    pub(super) task: Arc<T>,
}

impl<T, R> Pending<Vec<Result<R, TaskError>>> for StoppableChunk<T, R>
where
    T: Pending<()> + ?Sized,
    R: Send,
{
    fn pool(&self) -> Option<PoolId> {
        self.task.pool()
    }

    fn is_done(&self) -> bool {
        self.task.is_done()
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        self.task.wait(deadline)
    }

    fn take(&self) -> Result<Vec<Result<R, TaskError>>, TaskError> {
        match self.task.take() {
            Err(error @ TaskError::Taken {}) => Err(error),
            outcome => {
                let mut outcomes = self.outcomes.lock().take().unwrap_or_default();
                if let Err(error) = outcome {
                    let rest = outcomes.len()..self.count;
                    outcomes.extend(error.of_items(self.base + outcomes.len(), rest));
                }
                Ok(outcomes)
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.task.has_failed()
    }

    fn is_running(&self) -> bool {
        self.task.is_running()
    }

    fn cancel(&self) -> bool {
        self.task.cancel()
    }

    fn stop(&self, reason: Reason) {
        self.task.stop(reason);
    }

    fn ask(&self, reason: Reason) {
        self.task.ask(reason);
    }

    fn runs_on(&self, thread: ThreadNumber) -> bool {
        self.task.runs_on(thread)
    }

    fn keep(&self, watch: Watch) {
        self.task.keep(watch);
    }

    fn on_end(&self, hook: Hook) {
        self.task.on_end(hook);
    }

    fn help(&self) {
        self.task.help();
    }
}
