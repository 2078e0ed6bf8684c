//! What the machine offers this process: how many workers make sense here.
//!
//! The number of processors in the machine is the wrong answer in a container, under `taskset` and
//! on a shared cluster: a pool of that size runs more workers than it has cores, and each of them
//! slowly. `std::thread::available_parallelism` knows the affinity and the quota of the cgroup.
//! This module adds the user's setting, and cores without hyper-threading.

use std::num::NonZeroUsize;
use std::thread;

use crate::error::PoolError;

/// The variable in which the user says how many workers a pool has if the program does not say.
const WORKERS: &str = "MANYHANDS_WORKERS";

/// Returns how many workers make sense here. A pool gets this many if the program does not say how
/// many. The environment variable `MANYHANDS_WORKERS` gives the number; if it is not set, it is the
/// number of cores that this process may use.
///
/// The cores are those that the process's CPU affinity allows, and no more than the CPU quota of
/// its cgroup (version 1 or 2) pays for, rounded down, but one at least; that is
/// [`std::thread::available_parallelism`]. Two hyper-threads count as two; [`physical_cores`]
/// counts them as one. The variable counts also where it asks for more workers than there are
/// cores. Nothing is kept: each call looks again.
///
/// # Errors
///
/// - [`PoolError::InvalidVariable`] if `MANYHANDS_WORKERS` is set to anything but a whole number
///   from 1 on, which includes nothing at all;
/// - [`PoolError::System`] if the system does not say.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(manyhands::available_workers()?)?;
/// assert_eq!(pool.workers(), Pool::threads_default()?.workers());
/// # Ok::<(), PoolError>(())
/// ```
pub fn available_workers() -> Result<usize, PoolError> {
    let Some(value) = std::env::var_os(WORKERS) else {
        return usable_cores();
    };
    let workers = value.to_str().and_then(|text| text.parse().ok());
    workers
        .map(NonZeroUsize::get)
        .ok_or_else(|| PoolError::InvalidVariable {
            variable: WORKERS.into(),
            value: value.to_string_lossy().into_owned(),
        })
}

/// Returns how many cores of their own the workers can have: the physical cores of the machine, the
/// hyper-threads of a core counted as one, but no more than this process may use by its affinity
/// and its cgroup's quota.
///
/// For workers that a neighbour on the same core slows down: dense linear algebra, say. It is an
/// upper bound. Which of its cores a process may use is not looked at, so with an affinity to both
/// hyper-threads of a single core it says 2 on a machine of two cores or more. On processors whose
/// cores Linux does not list in `/proc/cpuinfo` (most of ARM's) each logical one counts.
/// `MANYHANDS_WORKERS` does not change it.
///
/// # Errors
///
/// [`PoolError::System`] if the system does not say.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::threads(manyhands::physical_cores()?)?;
/// assert!(pool.workers() >= 1);
/// # Ok::<(), PoolError>(())
/// ```
pub fn physical_cores() -> Result<usize, PoolError> {
    Ok(num_cpus::get_physical().clamp(1, usable_cores()?))
}

/// Returns how many cores this process may use. For all that depends on the cores and not on the
/// user's wish: how long to spin, for example.
pub(crate) fn usable_cores() -> Result<usize, PoolError> {
    thread::available_parallelism()
        .map(usize::from)
        .map_err(|error| PoolError::System {
            what: "the number of available cores could not be read".into(),
            reason: error.to_string(),
        })
}
