//! Waiting for a change of what a mutex guards.

use std::fmt;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::mutex::MutexGuard;
use super::poison::{LockResult, PoisonError};
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::member;
use crate::memory::object::Object;
use crate::memory::wait::list::{WaitList, Woken};

/// Has threads of any process wait until another one has changed what a [`Mutex`](super::Mutex) guards; std's
/// [`Condvar`](std::sync::Condvar) between processes.
///
/// As with all condition variables, a wait may end without a reason. In particular all waits end when a process that has a handle
/// dies: it may have been picked by a [`notify_one`](Self::notify_one) that is for one of the others. So look in a loop, or use
/// [`wait_while`](Self::wait_while), which does.
///
/// A [`notify_one`](Self::notify_one) wakes one thread, however long the threads have waited. That
/// holds for the first 448 threads that wait at the same time. A wait of those beyond ends ten
/// times a second.
///
/// # Examples
///
/// ```
/// use manyhands::Process;
/// use manyhands::sync::{Condvar, Mutex};
///
/// let (level, changed) = (Mutex::new(0u32)?, Condvar::new()?);
/// let child = Process::spawn(
///     |(level, changed): (Mutex<u32>, Condvar)| {
///         let level = level.lock().unwrap();
///         drop(changed.wait_while(level, |level| *level < 3).unwrap());
///     },
///     (level.clone(), changed.clone()),
/// )?;
/// for _ in 0..3 {
///     *level.lock().unwrap() += 1;
///     changed.notify_all();
/// }
/// assert!(child.join()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Condvar {
    object: Object<CondvarHead>,
}

#[repr(C)]
pub(super) struct CondvarHead {
    list: WaitList,
}

// SAFETY: of atomics.
#[allow(unsafe_code)]
unsafe impl Head for CondvarHead {
    const KIND: Kind = Kind::Condvar;
}

impl CondvarHead {
    /// A member has ended.
    pub(super) fn reclaim(&self, member: u16) {
        self.list.reclaim(member);
    }
}

/// Whether a wait with a limit ended because of it.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Condvar, Mutex};
/// use std::time::Duration;
///
/// let (mutex, condvar) = (Mutex::new(0u8)?, Condvar::new()?);
/// let wait = condvar.wait_timeout_while(mutex.lock().unwrap(), Duration::from_millis(1), |x| *x == 0);
/// assert!(wait.unwrap().1.timed_out());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was up.
    ///
    /// # Examples
    ///
    /// See [`WaitTimeoutResult`].
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A condition variable that nobody waits for.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// manyhands::sync::Condvar::new()?.notify_all();
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn new() -> Result<Self, ShareError> {
        let object = Object::new(0, 0, |_, _| Ok(()))?;
        Ok(Self { object })
    }

    /// Unlocks the mutex, waits for a notification, and locks it again. Notifications that come after the mutex is unlocked are
    /// not missed. May end without one.
    ///
    /// # Errors
    ///
    /// [`PoisonError`] with the guard, if the mutex is poisoned when it is locked again.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::{Condvar, Mutex};
    /// let (mutex, condvar) = (Mutex::new(0u8)?, Condvar::new()?);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         *mutex.lock().unwrap() = 1;
    ///         condvar.notify_one();
    ///     });
    ///     let mut guard = mutex.lock().unwrap();
    ///     while *guard == 0 {
    ///         guard = condvar.wait(guard).unwrap();
    ///     }
    /// });
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn wait<'a, T: Pod>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None).0
    }

    /// As [`wait`](Self::wait), for so long at most, not counting the time to get the mutex back.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::{Condvar, Mutex};
    /// # use std::time::Duration;
    /// let (mutex, condvar) = (Mutex::new(0u8)?, Condvar::new()?);
    /// let (guard, _) = condvar.wait_timeout(mutex.lock().unwrap(), Duration::from_millis(1)).unwrap();
    /// assert_eq!(*guard, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout<'a, T: Pod>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let (locked, woken) = self.wait_until(guard, super::deadline(timeout));
        let result = WaitTimeoutResult(woken == Woken::TimedOut);
        locked
            .map(|guard| (guard, result))
            .map_err(|error| error.map(|guard| (guard, result)))
    }

    /// Waits as long as `condition` says so of the value.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait); a mutex that was poisoned during the wait ends it, whatever the condition.
    ///
    /// # Examples
    ///
    /// See [`Condvar`].
    pub fn wait_while<'a, T: Pod>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// As [`wait_while`](Self::wait_while), for so long at most. If the time was up, `condition` said so of the value last.
    ///
    /// # Errors
    ///
    /// As [`wait_while`](Self::wait_while).
    ///
    /// # Examples
    ///
    /// See [`WaitTimeoutResult`].
    pub fn wait_timeout_while<'a, T: Pod>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let deadline = super::deadline(timeout);
        loop {
            if !condition(&mut guard) {
                return Ok((guard, WaitTimeoutResult(false)));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok((guard, WaitTimeoutResult(true)));
            }
            let (locked, woken) = self.wait_until(guard, deadline);
            let result = WaitTimeoutResult(woken == Woken::TimedOut);
            guard = locked.map_err(|error| error.map(|guard| (guard, result)))?;
        }
    }

    fn wait_until<'a, T: Pod>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> (
        Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>,
        Woken,
    ) {
        if !self.object.reach(|| deadline) {
            // A forked child that cannot make its copy of the handle its own in time.
            return (Ok(guard), Woken::TimedOut);
        }
        let list = &self.object.head().list;
        let mutex = guard.mutex();
        // Before the mutex is unlocked, so that a notification from then on ends the sleep.
        let enqueued = list.enqueue(member::own_number());
        drop(guard);
        let woken = enqueued.sleep(deadline, member::poll_for_dead);
        (mutex.lock(), woken)
    }

    /// Wakes one thread that waits, if there is any: the one that has waited longest.
    ///
    /// If that thread's process is killed before it has acted on it, all others wake up.
    ///
    /// # Examples
    ///
    /// See [`wait`](Self::wait).
    pub fn notify_one(&self) {
        self.object.head().list.notify_one();
    }

    /// Wakes all who wait.
    ///
    /// # Examples
    ///
    /// See [`Condvar`].
    pub fn notify_all(&self) {
        self.object.head().list.notify_all();
    }
}

super::handle!(Condvar);

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}
