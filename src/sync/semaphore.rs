//! A number of permits.

use std::fmt;
use std::mem::offset_of;
use std::time::{Duration, Instant};

use super::permits::{self, HasPermits, MOST, Permits};
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::object::{Object, handle, same_object};
use crate::memory::wait_mode::WaitMode;
use crate::os::fork;

/// A number of permits, for which threads of any process wait: a limit on how many do something at
/// a time, or a count of things that there are.
///
/// A [`Permit`] gives back its permits when it is dropped, and if its process is killed.
/// [`Permit::forget`] keeps them out for good, and [`release`](Self::release) adds some: that is
/// how one process counts and another one waits.
///
/// Waiting threads are served in the order in which they came. So an
/// [`acquire_many`](Self::acquire_many) that wants many gets them in the end. The threads behind it
/// wait meanwhile, even if there are some. (When more than 96 threads wait at once, those beyond
/// wait for a place among them, in no certain order.)
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::sync::Semaphore;
///
/// // Eight workers, of which no more than two load at a time.
/// let loading = Semaphore::new(2)?;
/// let pool = Pool::processes(8)?;
/// pool.map_with(
///     &loading,
///     |loading, _: u32| {
///         let _permit = loading.acquire();
///         assert!(loading.available() < 2);
///     },
///     0..20,
/// )?;
/// assert_eq!(loading.available(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Semaphore {
    object: Object<SemaphoreHead>,
}

#[repr(C)]
pub(super) struct SemaphoreHead {
    permits: Permits,
}

// SAFETY: it is of atomics, and the lock in `LOCKS`.
#[allow(unsafe_code)]
unsafe impl Head for SemaphoreHead {
    const KIND: Kind = Kind::Semaphore;
    const LOCKS: &'static [usize] = &[offset_of!(Self, permits.lock)];
}

impl HasPermits for SemaphoreHead {
    fn permits(&self) -> &Permits {
        &self.permits
    }
}

impl SemaphoreHead {
    /// Gives back the permits of a member that has ended.
    pub(super) fn reclaim(&self, member: u16, deadline: Instant) -> bool {
        self.permits.reclaim(member, deadline, |_| {})
    }
}

impl Semaphore {
    /// The most permits that there can be.
    pub const MAX_PERMITS: usize = MOST as usize;

    /// Makes a semaphore with `permits` permits. If that is 0, it is for [`release`](Self::release)
    /// to make some.
    ///
    /// # Errors
    ///
    /// [`ShareError::Invalid`] for more than [`MAX_PERMITS`](Self::MAX_PERMITS);
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// let semaphore = manyhands::sync::Semaphore::new(3)?;
    /// assert_eq!(semaphore.available(), 3);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new(permits: usize) -> Result<Self, ShareError> {
        let total = u32::try_from(permits).map_err(|_| ShareError::Invalid {
            what: "the number of permits of a semaphore".into(),
            value: permits.to_string(),
            reason: format!("there can be {MOST} at most").into(),
        })?;
        let object = Object::<SemaphoreHead>::new(0, 0, |_, _| Ok(()))?;
        object.head().permits.fill(total);
        Ok(Self { object })
    }

    fn permits(&self) -> &Permits {
        &self.object.head().permits
    }

    fn get(&self, count: usize, mode: WaitMode) -> Option<Permit<'_>> {
        // No process can ever have more than there can be.
        let wanted = u32::try_from(count).ok();
        let has_got = match wanted {
            Some(wanted) => wanted == 0 || permits::acquire(&self.object, wanted, mode),
            None => panic!("{count} permits of a semaphore, which can have {MOST} at most"),
        };
        has_got.then(|| Permit {
            semaphore: self,
            count: wanted.unwrap_or(0),
            generation: fork::generation(),
        })
    }

    /// Waits for a permit.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// let semaphore = Semaphore::new(1)?;
    /// let permit = semaphore.acquire();
    /// assert_eq!(semaphore.available(), 0);
    /// drop(permit);
    /// assert_eq!(semaphore.available(), 1);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_many(1)
    }

    /// Waits for `count` permits, and takes them all at once. No thread that comes later is served
    /// before, so this one gets them as soon as their owners give them back. If the semaphore has
    /// fewer permits in all, it waits until others are [added](Self::release).
    ///
    /// # Panics
    ///
    /// If `count` is more than [`MAX_PERMITS`](Self::MAX_PERMITS). That also holds for all
    /// functions that follow.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// let semaphore = Semaphore::new(3)?;
    /// assert_eq!(semaphore.acquire_many(2).count(), 2);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn acquire_many(&self, count: usize) -> Permit<'_> {
        // Without a deadline, `get` does not return without them.
        loop {
            if let Some(permit) = self.get(count, WaitMode::Forever) {
                return permit;
            }
        }
    }

    /// Takes a permit if there is one that no other thread waits for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// let semaphore = Semaphore::new(1)?;
    /// let permit = semaphore.try_acquire().unwrap();
    /// assert!(semaphore.try_acquire().is_none());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.try_acquire_many(1)
    }

    /// Takes `count` permits, or none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// let semaphore = Semaphore::new(3)?;
    /// assert!(semaphore.try_acquire_many(4).is_none());
    /// assert_eq!(semaphore.available(), 3);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_acquire_many(&self, count: usize) -> Option<Permit<'_>> {
        self.get(count, WaitMode::Try)
    }

    /// Waits for a permit, for at most `timeout`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// # use std::time::Duration;
    /// let semaphore = Semaphore::new(0)?;
    /// assert!(
    ///     semaphore
    ///         .acquire_timeout(Duration::from_millis(1))
    ///         .is_none()
    /// );
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<Permit<'_>> {
        self.acquire_many_timeout(1, timeout)
    }

    /// Waits for `count` permits, for at most `timeout`. If the time is up, it has taken none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// # use std::time::Duration;
    /// let semaphore = Semaphore::new(1)?;
    /// assert!(
    ///     semaphore
    ///         .acquire_many_timeout(2, Duration::from_millis(1))
    ///         .is_none()
    /// );
    /// assert_eq!(semaphore.available(), 1);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn acquire_many_timeout(&self, count: usize, timeout: Duration) -> Option<Permit<'_>> {
        self.get(count, WaitMode::within(timeout))
    }

    /// Returns the number of permits that no process has right now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// assert_eq!(Semaphore::new(7)?.available(), 7);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn available(&self) -> usize {
        self.permits().available() as usize
    }

    /// Adds permits, which no process need have had: a signal to waiting threads.
    ///
    /// # Panics
    ///
    /// If there would be more than [`MAX_PERMITS`](Self::MAX_PERMITS), including those that
    /// processes have.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{Process, sync::Semaphore};
    ///
    /// let finished = Semaphore::new(0)?;
    /// let child =
    ///     Process::spawn(|finished: Semaphore| finished.release(2), finished.clone())?;
    /// finished.acquire_many(2).forget();
    /// child.join()?;
    /// assert_eq!(finished.available(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn release(&self, count: usize) {
        let added = u32::try_from(count).map_err(|_| 0);
        if let Err(total) = added.and_then(|count| permits::add(&self.object, count)) {
            panic!(
                "{count} permits more than {total} are more than the {MOST} that a semaphore can have"
            );
        }
    }
}

same_object!([] Semaphore, "manyhands::sync::Semaphore::new(1)?", object);
handle!(Semaphore { object }, 0);

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("available", &self.available())
            .finish_non_exhaustive()
    }
}

/// Permits of a [`Semaphore`], given back when this is dropped.
///
/// They belong to the process: any of its threads can drop this. If this is given to
/// [`std::mem::forget`], the permits are out until the process ends.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Permit, Semaphore};
///
/// let semaphore = Semaphore::new(5)?;
/// let permit: Permit<'_> = semaphore.acquire_many(2);
/// assert_eq!(permit.count(), 2);
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
#[must_use = "the permits are given back when this is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: u32,
    /// `fork::generation` of the process that acquired them.
    generation: u32,
}

impl Permit<'_> {
    /// Returns the number of permits.
    ///
    /// # Examples
    ///
    /// See [`Permit`].
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Keeps the permits out for good: they come back neither now nor when the process is killed.
    /// Others can be [added](Semaphore::release).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Semaphore;
    /// let semaphore = Semaphore::new(2)?;
    /// semaphore.acquire().forget();
    /// assert_eq!(semaphore.available(), 1);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn forget(mut self) {
        if self.is_own() {
            permits::forget(&self.semaphore.object, self.count);
        }
        self.count = 0;
    }

    /// Returns whether this process acquired the permits, and not the one that it was forked from.
    fn is_own(&self) -> bool {
        self.count > 0 && self.generation == fork::generation()
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.is_own() {
            permits::give_back(&self.semaphore.object, self.count);
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}
