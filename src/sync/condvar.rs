//! Waiting for a change of what a mutex guards.

use std::fmt;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::mutex::MutexGuard;
use super::poison::{LockResult, PoisonError};
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::member;
use crate::memory::object::{Object, handle, same_object};
use crate::memory::wait::list::{WaitList, Woken};

/// A condition variable: threads of any process wait until another one has changed what a
/// [`Mutex`](super::Mutex) guards. It is std's [`Condvar`](std::sync::Condvar) between processes.
///
/// As with all condition variables, a wait may end without a reason. In particular all waits end
/// when a process that has a handle dies: a [`notify_one`](Self::notify_one) that is for one of the
/// others may have picked it. So look in a loop, or use [`wait_while`](Self::wait_while), which
/// does.
///
/// A [`notify_one`](Self::notify_one) wakes one thread, however long the threads have waited. That
/// holds for the first 448 threads that wait at the same time. The waits of further threads end ten
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

// SAFETY: it is of atomics.
#[allow(unsafe_code)]
unsafe impl Head for CondvarHead {
    const KIND: Kind = Kind::Condvar;
}

impl CondvarHead {
    /// Takes a member that has ended off the wait list.
    pub(super) fn reclaim(&self, member: u16) {
        self.list.reclaim(member);
    }
}

/// The answer of a wait with a timeout: whether it ended because of that.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Condvar, Mutex};
/// use std::time::Duration;
///
/// let (mutex, condvar) = (Mutex::new(0u8)?, Condvar::new()?);
/// let wait =
///     condvar.wait_timeout_while(mutex.lock().unwrap(), Duration::from_millis(1), |x| {
///         *x == 0
///     });
/// assert!(wait.unwrap().1.timed_out());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Returns whether the time was up.
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
    /// Makes a condition variable that no thread waits for.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// manyhands::sync::Condvar::new()?.notify_all();
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new() -> Result<Self, ShareError> {
        let object = Object::new(0, 0, |_, _| Ok(()))?;
        Ok(Self { object })
    }

    /// Unlocks the mutex, waits for a notification, and locks the mutex again. Notifications that
    /// come after the mutex is unlocked are not missed. The wait may end without one.
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
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn wait<'a, T: Pod>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None).0
    }

    /// Waits like [`wait`](Self::wait), but gives up after `timeout`, not counting the time to get
    /// the mutex back.
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
    /// let (guard, _) = condvar
    ///     .wait_timeout(mutex.lock().unwrap(), Duration::from_millis(1))
    ///     .unwrap();
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

    /// Waits as long as `condition` returns true for the value.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait). If the mutex was poisoned during the wait, that ends it, whatever
    /// the condition.
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

    /// Waits like [`wait_while`](Self::wait_while), but gives up after `timeout`. If the time was
    /// up, `condition` has returned true last.
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
            // This is a forked child that cannot make its copy of the handle its own in time.
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

    /// Wakes the thread that has waited longest, if any thread waits.
    ///
    /// If that thread's process is killed before the thread has acted on it, all other waiting
    /// threads wake up.
    ///
    /// # Examples
    ///
    /// See [`wait`](Self::wait).
    pub fn notify_one(&self) {
        self.object.head().list.notify_one();
    }

    /// Wakes all threads that wait.
    ///
    /// # Examples
    ///
    /// See [`Condvar`].
    pub fn notify_all(&self) {
        self.object.head().list.notify_all();
    }
}

same_object!([] Condvar, "manyhands::sync::Condvar::new()?", object);
handle!(Condvar { object }, 0);

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}
