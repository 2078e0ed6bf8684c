//! Calls over many items that go on. A pool that is closing still takes what they have to give, and
//! waits for them.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use super::dispatch::State;
use super::shared::Shared;
use crate::error::{PoolError, TaskError};

thread_local! {
    /// The addresses of the pools that calls of this thread are admitted to, once for each call.
    static ADMITTED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A call of this thread, which goes on as long as this value lives.
pub(super) struct Admission<'a> {
    shared: &'a Arc<Shared>,
    /// The value belongs to its thread.
    not_send: PhantomData<*const ()>,
}

impl Shared {
    pub(super) fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }

    /// Returns whether a call of this thread goes on. If so, this thread must not wait for the end
    /// of all calls.
    pub(super) fn is_admitted(self: &Arc<Self>) -> bool {
        let address = self.address();
        ADMITTED.with_borrow(|admitted| admitted.contains(&address))
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// If the pool takes no calls any more, unless this call is part of one that goes on.
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

    /// Returns whether a pool in this state takes a task from this thread.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub(super) fn check_takes(self: &Arc<Self>, state: &State) -> Result<(), TaskError> {
        match state {
            State::Open => Ok(()),
            State::Closing { cancels: false } if self.is_admitted() => Ok(()),
            State::Closing { .. } | State::Ended(PoolError::Closed) if self.is_admitted() => {
                Err(TaskError::Cancelled {})
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
                // A thread that waits for the end may sleep until a worker rings.
                drop(dispatch);
                self.shared.bell.ring();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::engine::processes::dispatch::made_up::MadeUp;

    fn broken() -> PoolError {
        PoolError::Broken {
            reason: "a test".to_owned(),
        }
    }

    #[test]
    fn only_calls_that_go_on_get_something_from_a_pool_that_closes() {
        let closed = || TaskError::from(PoolError::Closed);
        for (state, within, outside) in [
            (State::Open, Ok(()), Ok(())),
            (State::Closing { cancels: false }, Ok(()), Err(closed())),
            (
                State::Closing { cancels: true },
                Err(TaskError::Cancelled {}),
                Err(closed()),
            ),
            (
                State::Ended(PoolError::Closed),
                Err(TaskError::Cancelled {}),
                Err(closed()),
            ),
            (
                State::Ended(broken()),
                Err(broken().into()),
                Err(broken().into()),
            ),
        ] {
            let house = MadeUp::new(1);
            let _admission = house.shared.admit().unwrap();
            house.lock().state = state;
            let admit = || house.shared.admit().map(drop);
            assert_eq!(admit(), within);
            thread::scope(|scope| {
                let other = scope.spawn(admit);
                assert_eq!(other.join().unwrap(), outside);
            });
        }
    }

    #[test]
    fn a_call_goes_on_until_the_outermost_of_its_parts_is_over() {
        let [house, other] = [MadeUp::new(1), MadeUp::new(1)];
        let (shared, all_ended) = (&house.shared, house.lock().all_ended.clone());
        let outer = shared.admit().unwrap();
        let of_other = other.shared.admit().unwrap();
        let inner = shared.admit().unwrap();
        assert_eq!(house.lock().calls, 2);
        drop(of_other);
        assert!(shared.is_admitted() && !other.shared.is_admitted());
        house.lock().state = State::Closing { cancels: false };
        drop(inner);
        assert!(shared.is_admitted() && !house.lock().has_all_ended());
        let heard = shared.bell.listen();
        assert_eq!(all_ended.count(), 0);
        drop(outer);
        assert!(!shared.is_admitted() && house.lock().has_all_ended());
        assert_eq!(all_ended.count(), 1, "who waits for the end is told");
        assert_ne!(shared.bell.listen(), heard, "who sleeps on the bell too");
    }
}
