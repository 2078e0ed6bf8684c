//! The errors of the locks when what they guard may be half-changed.

use std::fmt;

/// The error of a lock whose owner did not come to the end, or of a [`Once`](super::Once) whose
/// function did not: the thread panicked, or its process was killed.
///
/// What is guarded may be half-changed, and there is no way to know. As with
/// [`std::sync::PoisonError`], the caller has got the lock all the same, and the guard is in here.
/// Look, repair, and call `clear_poison`.
///
/// # Examples
///
/// ```
/// use manyhands::{Process, sync};
///
/// let balance = sync::Mutex::new(10u64)?;
/// let child = Process::spawn(
///     |balance: sync::Mutex<u64>| {
///         let _guard = balance.lock().unwrap();
///         std::process::abort();
///     },
///     balance.clone(),
/// )?;
/// child.join()?;
/// let mut guard = match balance.lock() {
///     Ok(guard) => guard,
///     Err(poisoned) => poisoned.into_inner(),
/// };
/// *guard = 10;
/// balance.clear_poison();
/// drop(guard);
/// assert!(balance.lock().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The guard in it borrows the lock, so it cannot leave the function that has the handle: `lock()?`
/// does not compile where the error is a `Box<dyn Error>`, which is `'static`. To pass it on by
/// `?`, pass on what it says:
///
/// ```
/// use manyhands::sync::Mutex;
/// use std::error::Error;
///
/// fn withdraw(balance: &Mutex<u64>, amount: u64) -> Result<(), Box<dyn Error>> {
///     let mut balance = balance.lock().map_err(|poisoned| poisoned.to_string())?;
///     *balance = balance.checked_sub(amount).ok_or("there is not so much")?;
///     Ok(())
/// }
/// let balance = Mutex::new(10)?;
/// withdraw(&balance, 4)?;
/// assert_eq!(
///     withdraw(&balance, 7).unwrap_err().to_string(),
///     "there is not so much"
/// );
/// # Ok::<(), Box<dyn Error>>(())
/// ```
#[derive(thiserror::Error)]
#[error("{MESSAGE}")]
pub struct PoisonError<G> {
    guard: G,
}

/// The result of locking: the guard either way, and whether it is safe to believe what it guards.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{LockResult, Mutex, MutexGuard};
///
/// fn with_or_without_poison<'a>(
///     result: LockResult<MutexGuard<'a, u64>>,
/// ) -> MutexGuard<'a, u64> {
///     result.unwrap_or_else(|poisoned| poisoned.into_inner())
/// }
/// let mutex = Mutex::new(1)?;
/// assert_eq!(*with_or_without_poison(mutex.lock()), 1);
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub type LockResult<G> = Result<G, PoisonError<G>>;

impl<G> PoisonError<G> {
    /// Makes the error around the guard, or around another value: for locks that are made of these
    /// ones.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::sync::{LockResult, Mutex, PoisonError};
    ///
    /// /// Returns the number in a lock, poisoned or not.
    /// fn look(lock: &Mutex<u64>) -> LockResult<u64> {
    ///     let number = lock.lock().map(|guard| *guard);
    ///     number.map_err(|error| PoisonError::new(*error.into_inner()))
    /// }
    /// assert_eq!(look(&Mutex::new(3)?).unwrap(), 3);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new(guard: G) -> Self {
        Self { guard }
    }

    /// Returns `Ok`, or this error around the guard.
    pub(super) fn check(guard: G, is_poisoned: bool) -> LockResult<G> {
        if is_poisoned {
            Err(Self::new(guard))
        } else {
            Ok(guard)
        }
    }

    /// Returns the guard, for a caller that can repair what it guards or does not mind.
    ///
    /// # Examples
    ///
    /// See [`PoisonError`].
    pub fn into_inner(self) -> G {
        self.guard
    }

    /// Returns the guard by reference, without giving up the error.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::{LockResult, MutexGuard};
    /// fn last_known(result: &LockResult<MutexGuard<'_, u64>>) -> u64 {
    ///     match result {
    ///         Ok(guard) => **guard,
    ///         Err(poisoned) => **poisoned.get_ref(),
    ///     }
    /// }
    /// # assert_eq!(last_known(&manyhands::sync::Mutex::new(3)?.lock()), 3);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn get_ref(&self) -> &G {
        &self.guard
    }

    /// Returns the guard like [`get_ref`](Self::get_ref), to change what it guards.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::{LockResult, MutexGuard};
    /// fn reset(result: &mut LockResult<MutexGuard<'_, u64>>) {
    ///     match result {
    ///         Ok(guard) => **guard = 0,
    ///         Err(poisoned) => **poisoned.get_mut() = 0,
    ///     }
    /// }
    /// # let mutex = manyhands::sync::Mutex::new(3)?;
    /// # reset(&mut mutex.lock());
    /// # assert_eq!(*mutex.lock().unwrap(), 0);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn get_mut(&mut self) -> &mut G {
        &mut self.guard
    }

    /// Changes what is in the error.
    pub(super) fn map<H>(self, change: impl FnOnce(G) -> H) -> PoisonError<H> {
        PoisonError::new(change(self.guard))
    }
}

const MESSAGE: &str = "poisoned: its last owner panicked or was killed, and what it guards may be half-changed; \
                       `into_inner` gives it all the same, `clear_poison` says that it is in order";

impl<G> fmt::Debug for PoisonError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoisonError({MESSAGE:?})")
    }
}

/// The reason why a call that does not wait for ever did not simply get the lock.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Mutex, TryLockError};
/// use std::time::Duration;
///
/// let mutex = Mutex::new(0u8)?;
/// let _guard = mutex.lock().unwrap();
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
///         let answer = mutex.lock_timeout(Duration::from_millis(5));
///         assert!(matches!(answer, Err(TryLockError::TimedOut)));
///     });
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TryLockError<G> {
    /// The caller has got the lock; see [`PoisonError`].
    #[error("{MESSAGE}")]
    Poisoned(PoisonError<G>),
    /// A thread has the lock right now, and the caller did not ask to wait.
    #[error("held by another thread or process")]
    WouldBlock,
    /// Another thread still had the lock when the time was up.
    #[error("still held by another thread or process when the time was up")]
    TimedOut,
}

/// The result of a call that does not wait for ever.
///
/// # Examples
///
/// ```
/// use manyhands::sync::{Mutex, MutexGuard, TryLockResult};
///
/// fn is_free(result: &TryLockResult<MutexGuard<'_, u8>>) -> bool {
///     result.is_ok()
/// }
/// assert!(is_free(&Mutex::new(0)?.try_lock()));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub type TryLockResult<G> = Result<G, TryLockError<G>>;

impl<G> From<PoisonError<G>> for TryLockError<G> {
    fn from(error: PoisonError<G>) -> Self {
        Self::Poisoned(error)
    }
}

impl<G> fmt::Debug for TryLockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisoned(error) => write!(f, "Poisoned({error:?})"),
            Self::WouldBlock => f.write_str("WouldBlock"),
            Self::TimedOut => f.write_str("TimedOut"),
        }
    }
}
