//! The calls of a pool that are going on in its process. The end of the pool waits for them.

use std::cell::RefCell;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::PoolError;
use crate::future::PoolId;

thread_local! {
    /// The pools that this thread is in a call of.
    static CALLING: RefCell<Vec<PoolId>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    state: Mutex<State>,
    none_left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    count: usize,
}

/// A call, which goes on as long as this value lives.
pub(super) struct Calling<'c>(&'c Calls);

fn is_calling_here(pool: PoolId) -> bool {
    CALLING.with_borrow(|pools| pools.contains(&pool))
}

impl Calls {
    /// Begins a call of this pool.
    ///
    /// # Errors
    ///
    /// If the pool takes no calls any more.
    pub(super) fn start(&self, pool: PoolId) -> Result<Calling<'_>, PoolError> {
        let mut state = self.state.lock();
        // A call that is made of several goes on to its end: the end of the pool waits for it.
        if state.is_closed && !is_calling_here(pool) {
            return Err(PoolError::Closed);
        }
        state.count += 1;
        drop(state);
        CALLING.with_borrow_mut(|pools| pools.push(pool));
        Ok(Calling(self))
    }

    /// Takes no more calls.
    ///
    /// # Errors
    ///
    /// If this thread is in the middle of one: it would wait for itself.
    pub(super) fn close(&self, pool: PoolId) -> Result<(), PoolError> {
        if is_calling_here(pool) {
            return Err(PoolError::System {
                what: "the pool was not closed".into(),
                reason: "closing waits for the pool's calls, and one of them asked for it".into(),
            });
        }
        self.state.lock().is_closed = true;
        Ok(())
    }

    /// Returns whether the pool takes no more calls.
    pub(super) fn are_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Waits until no call is left, or until the deadline. Returns true if none is left.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        let goes_on = |state: &mut State| state.count > 0;
        match deadline {
            None => self.none_left.wait_while(&mut state, goes_on),
            Some(deadline) => {
                self.none_left
                    .wait_while_until(&mut state, goes_on, deadline);
            }
        }
        state.count == 0
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        // Calls end in the order opposite to that of their beginnings.
        CALLING.with_borrow_mut(Vec::pop);
        let mut state = self.0.state.lock();
        state.count -= 1;
        if state.count == 0 {
            self.0.none_left.notify_all();
        }
    }
}
