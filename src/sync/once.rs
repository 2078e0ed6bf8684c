//! A function that one process runs for all.

use std::fmt;
use std::mem::{ManuallyDrop, offset_of};
use std::sync::atomic::{AtomicU32, Ordering};

use super::poison::PoisonError;
use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::object::{Object, handle, same_object};
use crate::os::fork;
use crate::os::robust::{Held, LockError, RobustMutex};

/// The state of a function that one thread of one process runs once, while all others wait for it;
/// std's [`Once`](std::sync::Once) between processes.
///
/// If the function panics, or its process is killed while it runs, no process knows how far it
/// came. The next [`call_once`](Self::call_once) says so, and
/// [`call_once_force`](Self::call_once_force) runs its function to repair and finish.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{SharedValue, sync::Once};
///
/// let (once, runs) = (Once::new()?, SharedValue::new(0u32)?);
/// let pool = Pool::processes(4)?;
/// pool.map_with(
///     &(once.clone(), runs.clone()),
///     |(once, runs), _: u32| {
///         once.call_once(|| {
///             runs.update(|n| n + 1);
///         })
///         .unwrap()
///     },
///     0..20,
/// )?;
/// assert_eq!(runs.get(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Once {
    object: Object<OnceHead>,
}

#[repr(C)]
struct OnceHead {
    /// Held by the thread that runs the function. If that dies, the kernel tells the next owner.
    lock: RobustMutex,
    /// A [`State`], written by the owner of the lock.
    state: AtomicU32,
}

// SAFETY: the lock in `LOCKS`, and an atomic.
#[allow(unsafe_code)]
unsafe impl Head for OnceHead {
    const KIND: Kind = Kind::Once;
    const LOCKS: &'static [usize] = &[offset_of!(Self, lock)];
}

#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New = 0,
    /// The function runs. If the next owner of the lock finds this, the thread that ran it has
    /// died.
    Running = 1,
    Completed = 2,
    Poisoned = 3,
}

/// The outcome of earlier runs, as far as it is known.
///
/// # Examples
///
/// ```
/// let once = manyhands::sync::Once::new()?;
/// once.call_once_force(|state| assert!(!state.is_poisoned()));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
#[derive(Debug)]
pub struct OnceState {
    is_poisoned: bool,
}

impl OnceState {
    /// Returns whether the last run panicked, or its process was killed.
    ///
    /// # Examples
    ///
    /// See [`OnceState`].
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }
}

impl Once {
    /// Makes a `Once` whose function has not been run.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::Once::new()?.is_completed());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new() -> Result<Self, ShareError> {
        let object = Object::<OnceHead>::new(0, 0, |_, _| Ok(()))?;
        object.head().set(State::New);
        Ok(Self { object })
    }

    /// Runs the function, if none has been run. Waits for it, if one is running.
    ///
    /// # Errors
    ///
    /// [`PoisonError`], if the function of an earlier call panicked, or its process was killed. The
    /// function of this call has not been run.
    ///
    /// # Panics
    ///
    /// If `f` calls this of the same object: it would wait for itself. And if `f` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Once;
    /// let once = Once::new()?;
    /// let mut runs = 0;
    /// once.call_once(|| runs += 1)?;
    /// once.call_once(|| runs += 1)?;
    /// assert_eq!(runs, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call_once(&self, f: impl FnOnce()) -> Result<(), PoisonError<()>> {
        self.call(false, |_| f())
    }

    /// Runs the function like [`call_once`](Self::call_once), but also if an earlier one did not
    /// come to its end.
    ///
    /// # Panics
    ///
    /// As [`call_once`](Self::call_once).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Once;
    /// let once = Once::new()?;
    /// let panics = || once.call_once(|| panic!("half-way"));
    /// assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    /// assert!(once.call_once(|| {}).is_err());
    /// once.call_once_force(|state| assert!(state.is_poisoned()));
    /// assert!(once.is_completed());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn call_once_force(&self, f: impl FnOnce(&OnceState)) {
        // It cannot be an error: this call is meant for a poisoned object too.
        let _ = self.call(true, f);
    }

    fn call(&self, is_forced: bool, f: impl FnOnce(&OnceState)) -> Result<(), PoisonError<()>> {
        if self.is_completed() {
            return Ok(());
        }
        let head = self.object.head();
        let lock = match head.lock.hold() {
            Ok(lock) => lock,
            Err(LockError::Deadlock) => {
                panic!("the function of a `Once` waits for itself: it has called the same one")
            }
            Err(error) => panic!("a shared object is out of order: {error}"),
        };
        // Another thread has run the function while this one waited for the lock.
        if head.is(State::Completed) {
            return Ok(());
        }
        // No thread can be running the function while this one has the lock. So a thread that began
        // it has died.
        let is_poisoned = head.is(State::Poisoned) || head.is(State::Running);
        if is_poisoned && !is_forced {
            return Err(PoisonError::new(()));
        }
        let mut run = Run {
            head,
            lock: ManuallyDrop::new(lock),
            generation: fork::generation(),
            outcome: State::Poisoned,
        };
        head.set(State::Running);
        f(&OnceState { is_poisoned });
        run.outcome = State::Completed;
        Ok(())
    }

    /// Returns whether the function has been run to its end. A caller that is told so sees what the
    /// function did.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Once;
    /// let once = Once::new()?;
    /// once.call_once(|| {})?;
    /// assert!(once.is_completed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_completed(&self) -> bool {
        self.object.head().is(State::Completed)
    }
}

impl OnceHead {
    fn is(&self, state: State) -> bool {
        // Acquire pairs with the Release in `set`.
        self.state.load(Ordering::Acquire) == state as u32
    }

    fn set(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }
}

/// A run of the function. When this is dropped, also by a panic, it writes how the run has ended.
struct Run<'a> {
    head: &'a OnceHead,
    lock: ManuallyDrop<Held<'a>>,
    generation: u32,
    outcome: State,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // The function has forked, and this is the child. The run is its parent's.
            return;
        }
        self.head.set(self.outcome);
        // SAFETY: dropped once, here.
        #[allow(unsafe_code)]
        unsafe {
            ManuallyDrop::drop(&mut self.lock);
        }
    }
}

same_object!([] Once, "manyhands::sync::Once::new()?", object);
handle!(Once { object }, 0);

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once")
            .field("is_completed", &self.is_completed())
            .finish_non_exhaustive()
    }
}
