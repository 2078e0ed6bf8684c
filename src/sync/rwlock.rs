//! A lock around a value that many may read at a time.

use std::fmt;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::permits::{self, HasPermits, MOST, Permits};
use super::poison::{LockResult, PoisonError, TryLockError, TryLockResult};
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::object::{Object, handle, same_object, shape_of};
use crate::memory::shareable::Shareable;
use crate::memory::wait_mode::WaitMode;
use crate::os::fork;

/// A value that many threads of any process read at a time, or one changes; std's
/// [`RwLock`](std::sync::RwLock) between processes.
///
/// Waiting threads are served in order: a reader that comes while a writer waits is served after
/// it, so that neither starves the other. A thread that reads must therefore not ask to read once
/// more: if a writer came in between, both wait for each other for ever. Nor must a thread that
/// reads ask to write.
///
/// `T` is any [`Pod`](bytemuck::Pod): numbers, arrays of them, and structs of them that derive it.
/// It is not `bool` or `char` (use a `u8` or `u32`), nor `String` or `Vec` (use an array, or a
/// [queue](crate::queue)). See [`shm`](crate::shm#which-values-can-be-shared), which has an example
/// with a struct.
///
/// If a reader is killed, its read lock is gone, and nothing else happens. A writer that panics or
/// is killed poisons the lock, as with [`Mutex`](super::Mutex).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::sync::RwLock;
///
/// let prices = RwLock::new([10u32, 20, 30])?;
/// prices.write().unwrap()[1] = 25;
/// let pool = Pool::processes(2)?;
/// let seen =
///     pool.map_with(&prices, |prices, i: usize| prices.read().unwrap()[i], 0..3)?;
/// assert_eq!(seen, [10, 25, 30]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RwLock<T> {
    object: Object<RwLockHead>,
    value: PhantomData<fn(T) -> T>,
}

/// The head of a lock. The value lies behind it.
#[repr(C)]
pub(super) struct RwLockHead {
    /// To read is to have one permit, to write is to have all.
    permits: Permits,
    /// 1: poisoned. Set by a writer, or by the process that reclaims what it held, while it still
    /// has the permits.
    poisoned: AtomicU32,
}

// SAFETY: it is of atomics, and the lock in `LOCKS`.
#[allow(unsafe_code)]
unsafe impl Head for RwLockHead {
    const KIND: Kind = Kind::RwLock;
    const LOCKS: &'static [usize] = &[offset_of!(Self, permits.lock)];
}

const READ: u32 = 1;
const WRITE: u32 = MOST;

impl HasPermits for RwLockHead {
    fn permits(&self) -> &Permits {
        &self.permits
    }
}

impl RwLockHead {
    /// Gives back the permits of a member that has ended. If it was a writer, the lock is poisoned.
    pub(super) fn reclaim(&self, member: u16, deadline: Instant) -> bool {
        self.permits.reclaim(member, deadline, |permits| {
            if permits == WRITE {
                // Before any thread can have the lock. If this process is killed after this, the
                // next one to reclaim finds the permits still there.
                self.poisoned.store(1, Ordering::Relaxed);
            }
        })
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed) != 0
    }
}

impl<T: Shareable> RwLock<T> {
    /// Makes a lock around a value, not locked.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// let lock = manyhands::sync::RwLock::new(5u64)?;
    /// assert_eq!(*lock.read().unwrap(), 5);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new(value: T) -> Result<Self, ShareError> {
        let object = Object::<RwLockHead>::of_value(value)?;
        object.head().permits.fill(MOST);
        Ok(Self {
            object,
            value: PhantomData,
        })
    }

    fn get(&self, permits: u32, mode: WaitMode) -> Option<Locked<'_, T>> {
        permits::acquire(&self.object, permits, mode).then(|| Locked {
            object: &self.object,
            value: self.object.tail().0.cast(),
            permits,
            generation: fork::generation(),
            lock: PhantomData,
        })
    }

    fn reader(locked: Locked<'_, T>) -> LockResult<RwLockReadGuard<'_, T>> {
        let is_poisoned = locked.object.head().is_poisoned();
        PoisonError::check(RwLockReadGuard { locked }, is_poisoned)
    }

    fn writer(locked: Locked<'_, T>) -> LockResult<RwLockWriteGuard<'_, T>> {
        let is_poisoned = locked.object.head().is_poisoned();
        let was_panicking = std::thread::panicking();
        let guard = RwLockWriteGuard {
            was_panicking,
            locked,
        };
        PoisonError::check(guard, is_poisoned)
    }

    fn wait(&self, permits: u32) -> Locked<'_, T> {
        // Without a deadline, `get` does not return without the lock.
        loop {
            if let Some(locked) = self.get(permits, WaitMode::Forever) {
                return locked;
            }
        }
    }

    /// Waits until no thread writes or waits to write, and keeps writers out.
    ///
    /// # Errors
    ///
    /// [`PoisonError`] with the guard in it, if a writer panicked or was killed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// let lock = RwLock::new(5u64)?;
    /// assert_eq!(*lock.read().unwrap(), 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        Self::reader(self.wait(READ))
    }

    /// Locks like [`read`](Self::read), but without waiting.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] if a thread writes or waits to write;
    /// [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// let lock = RwLock::new(5u64)?;
    /// let _writer = lock.write().unwrap();
    /// assert!(lock.try_read().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        let locked = self.get(READ, WaitMode::Try);
        Ok(Self::reader(locked.ok_or(TryLockError::WouldBlock)?)?)
    }

    /// Waits like [`read`](Self::read), but gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`], or [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// # use std::time::Duration;
    /// let lock = RwLock::new(5u64)?;
    /// assert_eq!(*lock.read_timeout(Duration::MAX).unwrap(), 5);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn read_timeout(&self, timeout: Duration) -> TryLockResult<RwLockReadGuard<'_, T>> {
        let locked = self.get(READ, WaitMode::within(timeout));
        Ok(Self::reader(locked.ok_or(TryLockError::TimedOut)?)?)
    }

    /// Waits until no other thread has the lock, and takes it.
    ///
    /// # Errors
    ///
    /// [`PoisonError`] with the guard in it, if an earlier writer panicked or was killed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// let lock = RwLock::new(5u64)?;
    /// *lock.write().unwrap() += 1;
    /// assert_eq!(*lock.read().unwrap(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        Self::writer(self.wait(WRITE))
    }

    /// Locks like [`write`](Self::write), but without waiting.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] if a thread has the lock or waits for it;
    /// [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// let lock = RwLock::new(5u64)?;
    /// let _reader = lock.read().unwrap();
    /// assert!(lock.try_write().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        let locked = self.get(WRITE, WaitMode::Try);
        Ok(Self::writer(locked.ok_or(TryLockError::WouldBlock)?)?)
    }

    /// Waits like [`write`](Self::write), but gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`], or [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// # use std::time::Duration;
    /// let lock = RwLock::new(5u64)?;
    /// let _reader = lock.read().unwrap();
    /// assert!(lock.write_timeout(Duration::from_millis(1)).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_timeout(&self, timeout: Duration) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        let locked = self.get(WRITE, WaitMode::within(timeout));
        Ok(Self::writer(locked.ok_or(TryLockError::TimedOut)?)?)
    }
}

impl<T> RwLock<T> {
    /// Returns whether a writer panicked or was killed, and no process has
    /// [cleared](Self::clear_poison) that. The death of a writer counts from the moment when others
    /// can have the lock.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::RwLock::new(0u8)?.is_poisoned());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn is_poisoned(&self) -> bool {
        self.object.head().is_poisoned()
    }

    /// Says that the value is in order again: from then on locking is no error.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::RwLock;
    /// let lock = RwLock::new(0u8)?;
    /// std::thread::scope(|scope| {
    ///     let panics = || {
    ///         let _guard = lock.write().unwrap();
    ///         panic!("half-way");
    ///     };
    ///     assert!(scope.spawn(panics).join().is_err());
    /// });
    /// assert!(lock.read().is_err());
    /// lock.clear_poison();
    /// assert!(lock.read().is_ok());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn clear_poison(&self) {
        self.object.head().poisoned.store(0, Ordering::Relaxed);
    }
}

same_object!([T] RwLock<T>, "manyhands::sync::RwLock::new(0)?", object);

impl<T: Pod + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut output = f.debug_struct("RwLock");
        match self.try_read() {
            Ok(guard) => output.field("value", &*guard),
            Err(TryLockError::Poisoned(error)) => output.field("value", &**error.get_ref()),
            Err(_) => output.field("value", &format_args!("<locked>")),
        };
        output.field("poisoned", &self.is_poisoned()).finish()
    }
}

handle!(RwLock<T> { object, value }, shape_of::<T>());

/// The part that both guards have in common.
struct Locked<'a, T> {
    object: &'a Object<RwLockHead>,
    value: NonNull<T>,
    permits: u32,
    /// `fork::generation` of the process that got it.
    generation: u32,
    lock: PhantomData<&'a RwLock<T>>,
}

impl<T> Locked<'_, T> {
    /// Returns whether this process got it. If it did not, this is a copy in a forked child, whose
    /// parent has the lock.
    fn is_own(&self) -> bool {
        self.generation == fork::generation()
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        if self.is_own() {
            permits::give_back(self.object, self.permits);
        }
    }
}

/// The guard of an [`RwLock`] locked for reading, with its value. The lock is released when this is
/// dropped.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{RwLock, RwLockReadGuard};
///
/// let lock = RwLock::new(5u64)?;
/// let guard: RwLockReadGuard<'_, u64> = lock.read().unwrap();
/// assert_eq!(*guard, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when this is dropped"]
pub struct RwLockReadGuard<'a, T> {
    locked: Locked<'a, T>,
}

/// The guard of an [`RwLock`] locked for writing, with its value. The lock is released when this is
/// dropped.
///
/// If it is dropped by a panic that began while it was held, the lock is poisoned.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{RwLock, RwLockWriteGuard};
///
/// let lock = RwLock::new(5u64)?;
/// let mut guard: RwLockWriteGuard<'_, u64> = lock.write().unwrap();
/// *guard = 6;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the lock is released when this is dropped"]
pub struct RwLockWriteGuard<'a, T> {
    was_panicking: bool,
    locked: Locked<'a, T>,
}

// SAFETY: a shared guard only gives out `&T`.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for RwLockReadGuard<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for RwLockWriteGuard<'_, T> {}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a T there, of which any bytes are valid; this guard has a permit, so
        // that no thread has all and writes.
        unsafe { self.locked.value.as_ref() }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a T there, of which any bytes are valid; this guard has all permits.
        unsafe { self.locked.value.as_ref() }
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, so that no other thread reads or writes.
        unsafe { self.locked.value.as_mut() }
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        // `locked` is dropped after this.
        if self.locked.is_own() && !self.was_panicking && std::thread::panicking() {
            let head = self.locked.object.head();
            head.poisoned.store(1, Ordering::Relaxed);
        }
    }
}

crate::text::shows_value!(RwLockReadGuard: Debug, RwLockReadGuard: Display);
crate::text::shows_value!(RwLockWriteGuard: Debug, RwLockWriteGuard: Display);
