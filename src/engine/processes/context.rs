//! What the pool's dispatch may see of its pool besides itself. Nothing here lies behind the lock
//! that the dispatch lies behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::settings::Settings;
use super::task::Retired;
use crate::call::Limits;
use crate::engine::backlog::Backlog;
use crate::error::PoolError;
use crate::future::PoolId;
use crate::lane::bell::Bell;
use crate::machine::usable_cores;
use crate::os::alarm::Alarm;
use crate::os::fork;
use crate::process::logs;
use crate::shim::AtomicUsize;

/// What does not change as long as the pool lives, and what its threads are called by.
pub(super) struct Context {
    pub(super) id: PoolId,
    pub(super) settings: Settings,
    /// The number of workers that there shall be.
    pub(super) workers: AtomicUsize,
    /// The number of cores this process may use.
    pub(super) cores: usize,
    /// [`fork::generation`] of the process that made the pool.
    pub(super) generation: u32,
    /// Whether all workers have been up once.
    pub(super) is_built: AtomicBool,
    /// When the pool was made.
    pub(super) start: Instant,
    pub(super) bell: Bell,
    /// The alarm that calls the supervisor.
    pub(super) alarm: Arc<Alarm>,
    pub(super) retired: Arc<Retired>,
    /// What is known of the workers' log records.
    pub(super) log_counts: Arc<Mutex<logs::Counts>>,
    /// What bounds the submitted tasks, if anything does.
    pub(super) backlog: Option<Arc<Backlog>>,
}

impl Context {
    /// Makes the context of a pool that is to have `workers` workers.
    pub(super) fn new(workers: usize, settings: Settings) -> Result<Self, PoolError> {
        let no_memory = |error| PoolError::system("shared memory could not be had", error);
        let bell = Bell::new().map_err(no_memory)?;
        let alarm = Alarm::new().map_err(|error| {
            PoolError::system("the supervisor's alarm could not be made", error)
        })?;
        let alarm = Arc::new(alarm);
        Ok(Self {
            id: PoolId::new(),
            backlog: settings
                .queue_limit
                .map(|(limit, full)| Arc::new(Backlog::new(limit, full))),
            settings,
            workers: AtomicUsize::new(workers),
            cores: usable_cores().unwrap_or(1),
            generation: fork::generation(),
            is_built: AtomicBool::new(false),
            start: Instant::now(),
            bell,
            retired: Arc::new(Retired::new(alarm.clone())),
            alarm,
            log_counts: Arc::default(),
        })
    }

    /// Checks that this process is the one that made the pool.
    pub(super) fn check_process(&self) -> Result<(), PoolError> {
        if self.generation == fork::generation() {
            Ok(())
        } else {
            Err(PoolError::OtherProcess)
        }
    }

    /// Returns the number of workers that there shall be.
    pub(super) fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    /// Returns the limits of a call. Where the call says nothing, what the pool's builder said
    /// counts.
    #[inline]
    pub(super) fn limits(&self, limits: Limits) -> Limits {
        match self.settings.task_timeout {
            Some(timeout) if limits.timeout().is_none() => {
                limits.with(|given| given.timeout = Some(timeout))
            }
            _ => limits,
        }
    }
}
