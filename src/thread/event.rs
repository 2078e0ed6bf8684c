//! [`Event`]: a flag that threads wait for.

use std::panic::RefUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{deadline, sleep};
use crate::shim::{Condvar, Mutex, StaticBool};

/// A flag that threads can wait for until another thread sets it.
///
/// Once set it stays set, and no thread waits, until it is cleared. All threads that wait at the
/// moment of a [`set`](Self::set) go on, also if a [`clear`](Self::clear) follows before they have
/// woken.
///
/// # Examples
///
/// ```
/// use manyhands::thread::Event;
/// use std::thread;
///
/// let started = Event::new();
/// thread::scope(|scope| {
///     scope.spawn(|| {
///         // … open the socket …
///         started.set();
///     });
///     started.wait();
///     assert!(started.is_set());
/// });
/// ```
#[derive(Debug, Default)]
pub struct Event {
    /// Written under the lock and read without it: reading the flag in a loop must cost almost
    /// nothing.
    is_set: StaticBool,
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of times that the event was set. It tells a waiting thread that the event was set
    /// and cleared again.
    sets: u64,
    /// The number of threads that wait, for the tests and for `Debug`.
    waiting: usize,
}

/// A panic never leaves it half changed.
impl RefUnwindSafe for Event {}

impl Event {
    /// Makes an event that is clear.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    ///
    /// static STOP: Event = Event::new();
    /// assert!(!STOP.is_set());
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self {
            is_set: StaticBool::new(false),
            state: Mutex::new(State {
                sets: 0,
                waiting: 0,
            }),
            woken: Condvar::new(),
        }
    }

    /// Sets the event and wakes all threads that wait. A thread that finds it set also sees what
    /// this thread wrote before.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    ///
    /// let event = Event::new();
    /// event.set();
    /// event.wait(); // does not wait
    /// ```
    pub fn set(&self) {
        self.set_under(&mut self.state.lock());
    }

    fn set_under(&self, state: &mut State) {
        state.sets += 1;
        // Release: pairs with the load in `is_set`.
        self.is_set.store(true, Ordering::Release);
        self.woken.notify_all();
    }

    /// Clears the event: a thread that waits from now on waits for the next [`set`](Self::set).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    ///
    /// let event = Event::new();
    /// event.set();
    /// event.clear();
    /// assert!(!event.is_set());
    /// ```
    pub fn clear(&self) {
        let _state = self.state.lock();
        self.is_set.store(false, Ordering::Relaxed);
    }

    /// Returns whether the event is set. This is cheap enough for every turn of a loop.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    ///
    /// let event = Event::new();
    /// assert!(!event.is_set());
    /// event.set();
    /// assert!(event.is_set());
    /// ```
    pub fn is_set(&self) -> bool {
        // Acquire: pairs with the store in `set`.
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until the event is set.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    /// use std::thread;
    ///
    /// let event = Event::new();
    /// thread::scope(|scope| {
    ///     scope.spawn(|| event.set());
    ///     event.wait();
    /// });
    /// ```
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Waits until the event is set, but no longer than `timeout`. Returns true if it was set.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Event;
    /// use std::time::Duration;
    ///
    /// let event = Event::new();
    /// assert!(!event.wait_timeout(Duration::from_millis(10)));
    /// event.set();
    /// assert!(event.wait_timeout(Duration::MAX));
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(deadline(timeout))
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        if self.is_set() {
            return true;
        }
        let mut state = self.state.lock();
        let seen = state.sets;
        state.waiting += 1;
        let mut is_late = false;
        // This runs under the lock: a `set` comes before, and this thread sees it, or it comes
        // after, and wakes this thread.
        let was_set = loop {
            if self.is_set() || state.sets != seen {
                break true;
            }
            if is_late {
                break false;
            }
            is_late = sleep(&self.woken, &mut state, deadline);
        };
        state.waiting -= 1;
        was_set
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eventually, in_thread, leak, soon};
    use super::*;

    #[test]
    fn set_wakes_all_sixteen_that_wait() {
        let event = leak(Event::new());
        let threads = [(); 16].map(|()| in_thread(|| event.wait()));
        eventually(|| event.waiting() == 16);
        event.set();
        for thread in threads {
            soon(&thread);
        }
        assert_eq!(event.waiting(), 0);
    }

    /// With two calls, the waiting threads could wake in between.
    #[test]
    fn a_set_that_is_over_before_any_thread_has_woken_ends_all_waits() {
        let event = leak(Event::new());
        // And so does a later one.
        for _ in 0..3 {
            let threads = [(); 4].map(|()| in_thread(|| event.wait_timeout(Duration::MAX)));
            eventually(|| event.waiting() == 4);
            {
                let mut state = event.state.lock();
                event.set_under(&mut state);
                event.is_set.store(false, Ordering::Relaxed);
            }
            for thread in threads {
                assert!(soon(&thread));
            }
            assert!(!event.is_set() && !event.wait_timeout(Duration::ZERO));
        }
    }

    #[test]
    fn who_waits_goes_on_even_if_the_event_is_cleared_before_it_has_woken() {
        let event = leak(Event::new());
        let threads = [(); 16].map(|()| in_thread(|| event.wait_timeout(Duration::MAX)));
        eventually(|| event.waiting() == 16);
        event.set();
        event.clear();
        for thread in threads {
            assert!(soon(&thread));
        }
        assert!(!event.wait_timeout(Duration::ZERO));
        assert_eq!(event.waiting(), 0);
    }
}
