//! A lock around a value, between processes.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::poison::{LockResult, PoisonError, TryLockError, TryLockResult};
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::object::{Object, same_object, shape_of};
use crate::memory::shareable::Shareable;
use crate::memory::wait_mode::soon;
use crate::os::fork;
use crate::os::robust::{Held, LockError, RobustMutex};

/// A value that one thread of one process has at a time; std's [`Mutex`](std::sync::Mutex) between
/// processes.
///
/// The value lies in shared memory, and a guard gives it in place.
///
/// `T` is any [`Pod`](bytemuck::Pod): numbers, arrays of them, and structs of them that derive it.
/// It is not `bool` or `char` (use a `u8` or `u32`), nor `String` or `Vec` (use an array, or a
/// [queue](crate::queue)). See [`shm`](crate::shm#which-values-can-be-shared), which has an example
/// with a struct.
///
/// If an owner panics, or its process is killed, the next owner gets the lock at once, with a
/// [`PoisonError`]. So do those after it until a process calls
/// [`clear_poison`](Self::clear_poison). A thread that ends while it holds the lock (its guard was
/// given to [`mem::forget`](std::mem::forget)) counts as killed.
///
/// The owner is a thread, so a guard stays in its thread. No thread can lock it twice: see
/// [`lock`](Self::lock).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::sync::Mutex;
///
/// let extremes = Mutex::new([f64::MAX, f64::MIN])?;
/// let pool = Pool::processes(2)?;
/// pool.map_with(
///     &extremes,
///     |extremes, x: f64| {
///         let mut extremes = extremes.lock().unwrap();
///         *extremes = [extremes[0].min(x), extremes[1].max(x)];
///     },
///     [3.0, -1.5, 8.0],
/// )?;
/// assert_eq!(*extremes.lock().unwrap(), [-1.5, 8.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mutex<T> {
    raw: Raw,
    value: PhantomData<fn(T) -> T>,
}

/// The part that is the same whatever the value, compiled once and here.
struct Raw {
    object: Object<MutexHead>,
    /// Whether a guard of this very handle has the lock. The owner of the lock changes it. If a
    /// handle is dropped while this is set, its guard was forgotten (`mem::forget`), and the handle
    /// must leave the object where it is: the C library keeps a list of what a thread holds, which
    /// goes through the memory of the locks.
    is_held: AtomicBool,
}

/// The head of a mutex. The value lies behind it.
#[repr(C)]
struct MutexHead {
    lock: RobustMutex,
    /// 1: poisoned. The owner of the lock sets it, and any process may clear it.
    poisoned: AtomicU32,
}

// SAFETY: it is the lock in `LOCKS`, and an atomic.
#[allow(unsafe_code)]
unsafe impl Head for MutexHead {
    const KIND: Kind = Kind::Mutex;
    const LOCKS: &'static [usize] = &[offset_of!(Self, lock)];
}

impl<T: Shareable> Mutex<T> {
    /// Makes a mutex that is not locked.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// let mutex = manyhands::sync::Mutex::new([0u32; 8])?;
    /// assert_eq!(mutex.lock().unwrap().len(), 8);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new(value: T) -> Result<Self, ShareError> {
        Object::of_value(value).map(Self::of)
    }

    /// Waits until no other thread has the lock, and takes it.
    ///
    /// # Errors
    ///
    /// [`PoisonError`] with the guard in it, if an earlier owner panicked or was killed.
    ///
    /// # Panics
    ///
    /// If this very thread holds the lock already: it would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Mutex;
    /// let mutex = Mutex::new(1u8)?;
    /// *mutex.lock().unwrap() += 1;
    /// assert_eq!(*mutex.lock().unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self.raw.lock() {
            Ok(raw) => self.guard(raw),
            Err(error) => refuse(&error),
        }
    }

    /// Takes the lock if no thread has it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] if a thread has it, this one included;
    /// [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Mutex;
    /// let mutex = Mutex::new(1u8)?;
    /// let guard = mutex.try_lock().unwrap();
    /// assert!(mutex.try_lock().is_err());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        match self.raw.try_lock() {
            Ok(raw) => Ok(self.guard(raw)?),
            Err(LockError::Timeout | LockError::Deadlock) => Err(TryLockError::WouldBlock),
            Err(error) => refuse(&error),
        }
    }

    /// Waits like [`lock`](Self::lock), but gives up after `timeout`. A free lock is acquired even
    /// if `timeout` is zero.
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`], or [`TryLockError::Poisoned`] with the guard.
    ///
    /// # Panics
    ///
    /// If this very thread holds the lock already.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Mutex;
    /// # use std::time::Duration;
    /// let mutex = Mutex::new(1u8)?;
    /// assert_eq!(*mutex.lock_timeout(Duration::from_secs(1)).unwrap(), 1);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn lock_timeout(&self, timeout: Duration) -> TryLockResult<MutexGuard<'_, T>> {
        match self.raw.lock_timeout(timeout) {
            Ok(raw) => Ok(self.guard(raw)?),
            Err(LockError::Timeout) => Err(TryLockError::TimedOut),
            Err(error) => refuse(&error),
        }
    }

    fn guard<'a>(&'a self, raw: RawGuard<'a>) -> LockResult<MutexGuard<'a, T>> {
        let is_poisoned = raw.head.is_poisoned();
        PoisonError::check(MutexGuard { mutex: self, raw }, is_poisoned)
    }
}

impl MutexHead {
    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed) != 0
    }

    fn poison(&self) {
        self.poisoned.store(1, Ordering::Relaxed);
    }
}

impl Raw {
    fn lock(&self) -> Result<RawGuard<'_>, LockError> {
        let head = self.object.head();
        Ok(self.guard(head, head.lock.hold()?))
    }

    fn try_lock(&self) -> Result<RawGuard<'_>, LockError> {
        let head = self.object.head_by(|| Some(soon()));
        let head = head.ok_or(LockError::Timeout)?;
        Ok(self.guard(head, head.lock.try_hold()?))
    }

    fn lock_timeout(&self, timeout: Duration) -> Result<RawGuard<'_>, LockError> {
        let deadline = super::deadline(timeout);
        let head = self.object.head_by(|| deadline);
        let head = head.ok_or(LockError::Timeout)?;
        let lock = head.lock.hold_with(|| deadline)?;
        Ok(self.guard(head, lock))
    }

    fn guard<'a>(&'a self, head: &'a MutexHead, lock: Held<'a>) -> RawGuard<'a> {
        if lock.owner_died() {
            // If this process is killed before this, the kernel tells the next owner of that death.
            head.poison();
        }
        self.is_held.store(true, Ordering::Relaxed);
        RawGuard {
            raw: self,
            head,
            value: self.object.tail().0,
            held: ManuallyDrop::new(lock),
            generation: fork::generation(),
            was_panicking: std::thread::panicking(),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The guard was forgotten. A handle that is forgotten too keeps the object where it is.
        if *self.is_held.get_mut() {
            std::mem::forget(self.object.clone());
        }
    }
}

/// A lock that is held.
struct RawGuard<'a> {
    raw: &'a Raw,
    head: &'a MutexHead,
    value: NonNull<u8>,
    /// The lock that the guard holds. It is not `Send`, so the guard is not either.
    held: ManuallyDrop<Held<'a>>,
    /// `fork::generation` of the process that locked it.
    generation: u32,
    was_panicking: bool,
}

impl Drop for RawGuard<'_> {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // This is a copy in a forked child. The lock is its parent's, and may be gone by now.
            return;
        }
        if !self.was_panicking && std::thread::panicking() {
            self.head.poison();
        }
        self.raw.is_held.store(false, Ordering::Relaxed);
        // SAFETY: dropped once, here.
        #[allow(unsafe_code)]
        unsafe {
            ManuallyDrop::drop(&mut self.held);
        }
    }
}

/// Panics, and says why the lock cannot be got at all.
#[cold]
fn refuse(error: &LockError) -> ! {
    match error {
        LockError::Deadlock => panic!(
            "this thread holds the mutex already and would wait for itself; drop the first guard before locking again"
        ),
        error => panic!("a mutex between processes is out of order: {error}"),
    }
}

impl<T> Mutex<T> {
    fn of(object: Object<MutexHead>) -> Self {
        let raw = Raw {
            object,
            is_held: AtomicBool::new(false),
        };
        Self {
            raw,
            value: PhantomData,
        }
    }

    /// Returns whether an owner panicked or was killed, and no process has
    /// [cleared](Self::clear_poison) that. The death of an owner counts from the moment when the
    /// next one has got the lock.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::Mutex::new(0u8)?.is_poisoned());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn is_poisoned(&self) -> bool {
        self.raw.object.head().is_poisoned()
    }

    /// Says that the value is in order again: from then on locking is no error.
    ///
    /// # Examples
    ///
    /// See [`PoisonError`].
    pub fn clear_poison(&self) {
        let head = self.raw.object.head();
        head.poisoned.store(0, Ordering::Relaxed);
    }
}

same_object!([T] Mutex<T>, "manyhands::sync::Mutex::new(0)?", raw.object);

impl<T> Clone for Mutex<T> {
    fn clone(&self) -> Self {
        Self::of(self.raw.object.clone())
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut output = f.debug_struct("Mutex");
        match self.try_lock() {
            Ok(guard) => output.field("value", &*guard),
            Err(TryLockError::Poisoned(error)) => output.field("value", &**error.get_ref()),
            Err(_) => output.field("value", &format_args!("<locked>")),
        };
        output.field("poisoned", &self.is_poisoned()).finish()
    }
}

impl<T> Serialize for Mutex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.object.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Mutex<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer, shape_of::<T>()).map(Self::of)
    }
}

/// The guard of a locked [`Mutex`], with its value. The mutex is unlocked when this is dropped.
///
/// If it is dropped by a panic that began while it was held, the mutex is poisoned.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Mutex, MutexGuard};
///
/// let mutex = Mutex::new(2u64)?;
/// let mut guard: MutexGuard<'_, u64> = mutex.lock().unwrap();
/// *guard *= 21;
/// assert_eq!(*guard, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the mutex is unlocked when this is dropped"]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    raw: RawGuard<'a>,
}

// SAFETY: a shared guard only gives out `&T`.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for MutexGuard<'_, T> {}

impl<'a, T> MutexGuard<'a, T> {
    /// Returns the mutex that this guard has locked.
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }

    fn value(&self) -> NonNull<T> {
        self.raw.value.cast()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[allow(unsafe_code)]
    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a T there, of which any bytes are valid; this guard has the lock, so
        // that no thread writes.
        unsafe { self.value().as_ref() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and no other thread reads.
        unsafe { self.value().as_mut() }
    }
}

crate::text::shows_value!(MutexGuard: Debug, MutexGuard: Display);
