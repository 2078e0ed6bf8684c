//! Pools that belong to the process.

use parking_lot::Mutex;

use super::Pool;
use crate::engine::Executor;
use crate::engine::sealed::Internal;
use crate::error::PoolError;

/// A pool that is made at the first call of `get`.
pub(super) struct Shared<E: Executor + 'static> {
    pool: Mutex<Option<&'static Pool<E>>>,
}

impl<E: Executor> Shared<E> {
    pub(super) const fn new() -> Self {
        Self {
            pool: Mutex::new(None),
        }
    }

    pub(super) fn get(
        &self,
        make: impl FnOnce() -> Result<Pool<E>, PoolError>,
    ) -> Result<&'static Pool<E>, PoolError> {
        let mut pool = self.pool.lock();
        match *pool {
            Some(pool) if pool.engine.is_open(Internal) => Ok(pool),
            // The pool is closed or broken, or it belongs to the process that this one was forked
            // from. It is not freed: a caller may still hold a reference to it.
            _ => Ok(pool.insert(Box::leak(Box::new(make()?)))),
        }
    }
}
