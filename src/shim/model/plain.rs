//! Mutex and condition variable of models, with the interface of std's.

use std::sync::LockResult;
use std::time::Duration;

pub(crate) use super::locks::MutexGuard;
use super::locks::{self, WaitTimeoutResult};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(locks::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(content: T) -> Self {
        Self(locks::Mutex::new(content))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.0.lock())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(locks::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(locks::Condvar::new())
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        _time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let result = self.0.wait_some_time(&mut guard);
        Ok((guard, result))
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Stops time at this condition variable until [`let_time_pass`](Self::let_time_pass).
    pub(crate) fn stop_time(&self) {
        self.0.stop_time();
    }

    /// Lets a wait be over at any time from now on.
    pub(crate) fn let_time_pass(&self) {
        self.0.let_time_pass();
    }
}
