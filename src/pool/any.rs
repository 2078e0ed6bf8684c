//! Pools whose engine is chosen when the program runs.

use std::str::FromStr;

use super::Pool;
use crate::engine::{AnyEngine, Forked, Processes, Serial, Threads, Which};
use crate::error::PoolError;
use crate::machine::available_workers;

/// Parses `serial`, or `threads`, `processes` or `forked`, with a number of workers after a colon.
/// Without a number, the pool has as many workers as [`available_workers`] says.
impl FromStr for Pool<AnyEngine> {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let unknown = || PoolError::UnknownEngine {
            text: text.to_owned(),
        };
        let (name, workers) = match text.split_once(':') {
            Some((name, workers)) => {
                let workers = workers.trim().parse::<usize>().map_err(|_| unknown())?;
                (name, Some(workers))
            }
            None => (text, None),
        };
        let workers_or_cores = || workers.map_or_else(available_workers, Ok);
        Ok(match name.trim() {
            "serial" if workers.is_none_or(|workers| workers == 1) => Pool::serial().into(),
            "threads" => Pool::threads(workers_or_cores()?)?.into(),
            "processes" => Pool::processes(workers_or_cores()?)?.into(),
            "forked" => Pool::forked(workers_or_cores()?)?.into(),
            _ => return Err(unknown()),
        })
    }
}

/// Turns a pool of a known engine into one of any engine.
macro_rules! from {
    ($($engine:ident),*) => {$(
        impl From<Pool<$engine>> for Pool<AnyEngine> {
            fn from(pool: Pool<$engine>) -> Self {
                Self::over(AnyEngine(Which::$engine(pool.engine)))
            }
        }
    )*};
}

from!(Serial, Threads, Processes, Forked);
