//! [`should_stop`]: how a task that runs hears that it is to end.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use super::seed;
use crate::future::Ending;
#[cfg(target_os = "linux")]
use crate::os::clock;

/// Returns whether the task that this thread runs is to end: its limit
/// ([`Call::timeout`](crate::Call::timeout)) or the deadline of its call has passed, or a token of
/// the call has been cancelled. What the task returns within the
/// [`grace_period`](crate::Call::grace_period) of the call is its result.
///
/// In a call without a grace period, and outside of tasks, this returns false. It is cheap enough
/// for the loops of a task. Call it on the thread that runs the task: other threads run no
/// task, or another one.
///
/// # Examples
///
/// As much as can be had within the limit:
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::should_stop;
/// use std::time::Duration;
///
/// /// Sums up to `count` terms of the series, and says how many it had time for.
/// fn leibniz(count: u64) -> (u64, f64) {
///     let mut sum = 0.0;
///     for n in 0..count {
///         if should_stop() {
///             return (n, 4.0 * sum);
///         }
///         sum += if n % 2 == 0 { 1.0 } else { -1.0 } / (2 * n + 1) as f64;
///     }
///     (count, 4.0 * sum)
/// }
///
/// let pool = Pool::processes(2)?;
/// let call = pool.call().timeout(Duration::from_millis(100));
/// let call = call.grace_period(Duration::from_secs(10));
/// let each = call.map(leibniz, [1_000, u64::MAX])?;
/// assert_eq!(each[0].0, 1_000);
/// assert!(each[1].0 < u64::MAX);
/// assert!((each[1].1 - std::f64::consts::PI).abs() < 0.1);
/// assert!(!should_stop());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[inline]
pub fn should_stop() -> bool {
    // At the end of a thread this is gone already, and no task runs there.
    HERE.try_with(|here| here.is_on.get() && here.looks())
        .unwrap_or(false)
}

/// What the task of a thread looks at.
enum Watched {
    Nothing,
    /// The call, of a task that runs in the program itself, and the time since when it does.
    Call {
        since: Instant,
        limit: Option<Duration>,
        ending: Option<Ending>,
    },
    /// The lane, of a task with this number in a worker process or a forked child.
    #[cfg(target_os = "linux")]
    Lane {
        task: u32,
        limit: Option<Duration>,
    },
}

struct Here {
    /// Whether there is anything to look at.
    is_on: Cell<bool>,
    watched: RefCell<Watched>,
}

thread_local! {
    static HERE: Here = const {
        Here {
            is_on: Cell::new(false),
            watched: RefCell::new(Watched::Nothing),
        }
    };
}

impl Here {
    #[cold]
    fn looks(&self) -> bool {
        match &*self.watched.borrow() {
            Watched::Nothing => false,
            Watched::Call {
                since,
                limit,
                ending,
            } => {
                limit.is_some_and(|limit| since.elapsed() >= limit)
                    || ending
                        .as_ref()
                        .is_some_and(|ending| ending.reason().is_some())
            }
            #[cfg(target_os = "linux")]
            Watched::Lane { task, limit } => seed::with_lane(|header| {
                // The parent names the task, so what comes late does not stop the next one.
                header.is_cut(*task)
                    || limit.is_some_and(|limit| {
                        let since = header.own_started_at();
                        clock::now().saturating_sub(since) >= clock::nanoseconds(limit)
                    })
            })
            .unwrap_or(false),
        }
    }
}

/// What the thread looked at before. It looks at that again when this is dropped.
pub(crate) struct Asked {
    is_on: bool,
    watched: Watched,
}

fn look_at(watched: Watched) -> Asked {
    HERE.with(|here| Asked {
        is_on: here.is_on.replace(true),
        watched: here.watched.replace(watched),
    })
}

/// Notes that this thread begins with a task of a call that has a grace period, this limit and this
/// end.
#[cold]
pub(crate) fn enter(limit: Option<Duration>, ending: Option<Ending>) -> Asked {
    look_at(Watched::Call {
        since: Instant::now(),
        limit,
        ending,
    })
}

/// Notes that the thread of a lane begins with the task with this number, which has a grace period;
/// its items have this limit.
#[cfg(target_os = "linux")]
#[cold]
pub(crate) fn enter_lane(task: u32, limit: Option<Duration>) -> Asked {
    look_at(Watched::Lane { task, limit })
}

/// Notes that this thread runs no task of the process that it was forked from.
#[cfg(target_os = "linux")]
pub(crate) fn forget() {
    HERE.with(|here| here.is_on.set(false));
}

impl Drop for Asked {
    fn drop(&mut self) {
        let watched = std::mem::replace(&mut self.watched, Watched::Nothing);
        let before = HERE.try_with(|here| {
            here.is_on.set(self.is_on);
            here.watched.replace(watched)
        });
        drop(before);
    }
}
