//! A flag to wait for.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::member;
use crate::memory::object::Object;
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;

/// A flag that processes set and wait for.
///
/// It starts cleared. Setting it lets all go on who wait for it, also if it is cleared again at once, and all who come
/// as long as it is set.
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

/// All of it is one word, so whoever is killed has changed it or has not.
#[repr(C)]
pub(super) struct EventHead {
    /// Bit 0: whether it is set. Above: how often it was set when it was not.
    state: AtomicU64,
    waiters: Waiters,
}

// SAFETY: of atomics.
#[allow(unsafe_code)]
unsafe impl Head for EventHead {
    const KIND: Kind = Kind::Event;
}

const SET: u64 = 1;

impl EventHead {
    /// Whoever was killed may have set it and told nobody.
    pub(super) fn reclaim(&self) {
        self.waiters.notify_all();
    }
}

impl Event {
    /// An event that is not set.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::Event::new()?.is_set());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn new() -> Result<Self, ShareError> {
        let object = Object::new(0, 0, |_, _| Ok(()))?;
        Ok(Self { object })
    }

    /// Sets it. All who wait go on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// event.set();
    /// event.wait();
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn set(&self) {
        let head = self.object.head();
        // Release: who has waited sees what was done before this.
        let _ = head
            .state
            .fetch_update(Ordering::Release, Ordering::Relaxed, |state| {
                Some(if state & SET == 0 { state + 3 } else { state })
            });
        // Also if it was set: whoever did that may have been killed before this.
        head.waiters.notify_all();
    }

    /// Clears it. Those who waited when it was set go on all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// event.set();
    /// event.clear();
    /// assert!(!event.is_set());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn clear(&self) {
        self.object.head().state.fetch_and(!SET, Ordering::Relaxed);
    }

    /// Whether it is set.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Event;
    /// let event = Event::new()?;
    /// assert!(!event.is_set());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn is_set(&self) -> bool {
        self.object.head().state.load(Ordering::Acquire) & SET != 0
    }

    /// Waits until it is set, or has been set since the call. Returns at once if it is set.
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
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn wait(&self) {
        self.wait_as(WaitMode::Forever);
    }

    /// As [`wait`](Self::wait), for so long at most. Whether it was set.
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
    /// # Ok::<(), manyhands::ShareError>(())
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
        waiters
            .wait(mode.deadline(), ready, member::poll_for_dead)
            .is_some()
    }

    /// Sees to it that [`is_set`](Self::is_set) and [`waiters`](Self::waiters) do not wait. Whether
    /// that was possible before the deadline, which is asked for only then.
    pub(crate) fn reach(&self, limit: impl FnOnce() -> Option<Instant>) -> bool {
        self.object.reach(limit)
    }

    /// Those who wait for it, for who waits for more than one thing at a time.
    pub(crate) fn waiters(&self) -> &Waiters {
        &self.object.head().waiters
    }
}

super::handle!(Event);

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
            event.object.head().reclaim()
        }];
        for (number, change) in changes.into_iter().enumerate() {
            let ticket = event.waiters().ticket();
            change(&event);
            let (word, seen) = ticket.word();
            assert_ne!(word.load(Ordering::Relaxed), seen, "change {number}");
        }
    }
}
