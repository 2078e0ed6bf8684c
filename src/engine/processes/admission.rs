//! Calls over many items that go on: a pool that closes still takes what they have to give, and waits for them.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use super::Shared;
use super::dispatch::State;
use crate::error::{PoolError, TaskError};

thread_local! {
    /// The pools that calls of this thread are admitted to, by address, once for each call.
    static ADMITTED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A call of this thread goes on as long as this lives.
pub(super) struct Admission<'a> {
    shared: &'a Arc<Shared>,
    /// It belongs to its thread.
    not_send: PhantomData<*const ()>,
}

impl Shared {
    pub(super) fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }

    /// Whether a call of this thread goes on. Then this thread must not wait for the end of all calls.
    pub(super) fn is_admitted(self: &Arc<Self>) -> bool {
        let address = self.address();
        ADMITTED.with_borrow(|admitted| admitted.contains(&address))
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// If the pool takes none any more; unless it is part of one that goes on.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Admission<'_>, TaskError> {
        self.check_process()?;
        let mut dispatch = self.lock();
        self.check_takes(&dispatch.state)?;
        dispatch.calls += 1;
        drop(dispatch);
        ADMITTED.with_borrow_mut(|admitted| admitted.push(self.address()));
        Ok(Admission {
            shared: self,
            not_send: PhantomData,
        })
    }

    /// # Errors
    ///
    /// If a pool in this state takes nothing from this thread.
    pub(super) fn check_takes(self: &Arc<Self>, state: &State) -> Result<(), TaskError> {
        match state {
            State::Open => Ok(()),
            State::Closing { cancels: false } if self.is_admitted() => Ok(()),
            State::Closing { .. } | State::Ended(PoolError::Closed) if self.is_admitted() => {
                Err(TaskError::Cancelled)
            }
            State::Closing { .. } => Err(PoolError::Closed.into()),
            State::Ended(reason) => Err(reason.clone().into()),
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let address = self.shared.address();
        ADMITTED.with_borrow_mut(|admitted| {
            if let Some(last) = admitted.iter().rposition(|&other| other == address) {
                admitted.swap_remove(last);
            }
        });
        if self.shared.check_process().is_ok() {
            let mut dispatch = self.shared.lock();
            dispatch.calls -= 1;
            dispatch.tell_if_all_ended();
            if !matches!(dispatch.state, State::Open) {
                // Whoever waits for the end may sleep until a worker rings.
                drop(dispatch);
                self.shared.bell.ring();
            }
        }
    }
}
