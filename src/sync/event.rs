//! A flag to wait for.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::member;
use crate::memory::object::{Object, handle, same_object};
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;

/// A flag that processes set and wait for.
///
/// It starts cleared. Setting it lets all threads go on that wait for it, also if it is cleared
/// again at once, and all that come as long as it is set.
///
/// # Examples
///
/// ```
/// use manyhands::{Process, sync::Event};
///
/// let go = Event::new()?;
/// let child = Process::spawn(|go: Event| go.wait(), go.clone())?;
/// go.set();
/// assert!(child.join()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Event {
    object: Object<EventHead>,
}

/// The head of an event. All that changes is one word, so a process that is killed has changed it
/// or has not.
#[repr(C)]
pub(super) struct EventHead {
    /// Bit 0: whether the event is set. Above: how often it was set when it was not.
    state: AtomicU64,
    waiters: Waiters,
}

// SAFETY: it is of atomics.
#[allow(unsafe_code)]
unsafe impl Head for EventHead {
    const KIND: Kind = Kind::Event;
}

const SET: u64 = 1;

impl EventHead {
    /// Wakes all waiting threads: the process that was killed may have set the event and told none.
    pub(super) fn reclaim(&self) {
        self.waiters.notify_all();
    }
}

impl Event {
    /// Makes an event that is not set.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::Event::new()?.is_set());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new() -> Result<Self, ShareError> {
        let object = Object::new(0, 0, |_, _| Ok(()))?;
        Ok(Self { object })
    }

    /// Sets the event. All threads that wait for it go on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// event.set();
    /// event.wait();
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn set(&self) {
        let head = self.object.head();
        // Release pairs with the loads in `is_set` and `wait_as`: a thread that has waited sees
        // what was done before this.
        let _ = head
            .state
            .fetch_update(Ordering::Release, Ordering::Relaxed, |state| {
                Some(if state & SET == 0 { state + 3 } else { state })
            });
        // Also if the event was set: the process that set it may have been killed before this.
        head.waiters.notify_all();
    }

    /// Clears the event. Threads that waited when it was set go on all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// event.set();
    /// event.clear();
    /// assert!(!event.is_set());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn clear(&self) {
        self.object.head().state.fetch_and(!SET, Ordering::Relaxed);
    }

    /// Returns whether the event is set.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// assert!(!event.is_set());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn is_set(&self) -> bool {
        self.object.head().state.load(Ordering::Acquire) & SET != 0
    }

    /// Waits until the event is set, or has been set since the call. Returns at once if it is set.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| event.set());
    ///     event.wait();
    /// });
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn wait(&self) {
        self.wait_as(WaitMode::Forever);
    }

    /// Waits like [`wait`](Self::wait), but gives up after `timeout`. Returns whether the event was
    /// set.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// # use std::time::Duration;
    /// let event = Event::new()?;
    /// assert!(!event.wait_timeout(Duration::from_millis(1)));
    /// event.set();
    /// assert!(event.wait_timeout(Duration::ZERO));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_as(WaitMode::within(timeout))
    }

    fn wait_as(&self, mode: WaitMode) -> bool {
        let Some(head) = self.object.head_by(|| mode.lock_deadline()) else {
            return false;
        };
        let before = head.state.load(Ordering::Acquire);
        let was_set = |state: u64| state & SET != 0 || state >> 1 != before >> 1;
        let ready = || was_set(head.state.load(Ordering::Acquire)).then_some(());
        let waiters = &head.waiters;
        let woken = waiters.wait(mode.deadline(), ready, member::poll_for_dead);
        woken.is_some()
    }

    /// Makes sure that [`is_set`](Self::is_set) and [`waiters`](Self::waiters) do not wait. Returns
    /// whether that was possible before the deadline. Asks `limit` for it only if it has to wait.
    pub(crate) fn reach(&self, limit: impl FnOnce() -> Option<Instant>) -> bool {
        self.object.reach(limit)
    }

    /// Returns the threads that wait for the event, for a thread that waits for more than one thing
    /// at a time.
    pub(crate) fn waiters(&self) -> &Waiters {
        &self.object.head().waiters
    }
}

same_object!([] Event, "manyhands::sync::Event::new()?", object);
handle!(Event { object }, 0);

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("is_set", &self.is_set())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Without these wake-ups a thread looks by itself, some time later.
    #[test]
    fn each_set_and_each_death_wakes_all() {
        let event = Event::new().unwrap();
        // The second `set` finds it set: the process that did that may have been killed before it
        // woke the others.
        let changes: [fn(&Event); 3] = [Event::set, Event::set, |event| {
            event.object.head().reclaim();
        }];
        for (number, change) in changes.into_iter().enumerate() {
            let token = event.waiters().token();
            change(&event);
            let (word, seen) = token.word();
            assert_ne!(word.load(Ordering::Relaxed), seen, "change {number}");
        }
    }
}
