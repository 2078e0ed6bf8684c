//! [`Semaphore`]: at most a fixed number of threads at once.
//!
//! A thread that cannot have its permits at once joins a queue. A thread that brings permits hands
//! them to the front of the queue, under the lock. A waiting thread is woken only when it has its
//! permits. So no thread wakes in vain, and none can be overtaken between being woken and taking.

use std::collections::VecDeque;
use std::mem;
use std::panic::RefUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{deadline, sleep};
use crate::shim::{Condvar, Mutex};

/// A number of permits: a thread takes a permit before it does something, and waits if there is
/// none.
///
/// If permits are taken and given back, the semaphore limits how many threads do something at once.
/// With [`release`](Self::release) and [`Permit::forget`] it counts: one side adds a permit for
/// each thing it has made, the other side takes them.
///
/// It is fair: a thread that has to wait stands in a queue, and no other thread overtakes it. So
/// small requests do not starve a large [`acquire_many`](Self::acquire_many): they wait behind it,
/// even if there are enough permits for them. For the same reason a thread should take all it needs
/// at once: a thread that holds some permits and waits for more may stand behind another that waits
/// for those.
///
/// # Examples
///
/// ```
/// use manyhands::thread::Semaphore;
///
/// static DOWNLOADS: Semaphore = Semaphore::new(2);
///
/// let first = DOWNLOADS.acquire();
/// let second = DOWNLOADS.acquire();
/// assert!(DOWNLOADS.try_acquire().is_none());
/// drop(first);
/// assert!(DOWNLOADS.try_acquire().is_some());
/// ```
#[derive(Debug)]
pub struct Semaphore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of permits that are not held.
    available: usize,
    /// The number of permits that are available or held. It fits, so a permit that comes back
    /// always fits too.
    total: usize,
    /// The threads that wait, the first to come in front. The front wants more than is available.
    queue: VecDeque<Waiter>,
    /// The ticket of the next thread that waits. Tickets go up along the queue.
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    wanted: usize,
    /// Each waiter has its own, so that only the served one wakes.
    served: Arc<Condvar>,
}

/// A panic never leaves it half changed.
impl RefUnwindSafe for Semaphore {}

impl State {
    /// Takes permits if they can be had without overtaking another thread.
    fn take(&mut self, wanted: usize) -> bool {
        let can = wanted == 0 || (self.queue.is_empty() && wanted <= self.available);
        if can {
            self.available -= wanted;
        }
        can
    }

    /// Hands permits to the front of the queue for as long as there are enough.
    fn serve(&mut self) {
        while let Some(front) = self.queue.front()
            && front.wanted <= self.available
        {
            self.available -= front.wanted;
            front.served.notify_one();
            self.queue.pop_front();
        }
    }

    /// Returns whether the thread with this ticket has been served: all in the queue have come
    /// later.
    fn is_served(&self, ticket: u64) -> bool {
        self.queue.front().is_none_or(|front| ticket < front.ticket)
    }
}

impl Semaphore {
    /// Makes a semaphore with `permits` permits. With 0 it only counts.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// assert_eq!(Semaphore::new(3).available(), 3);
    /// ```
    #[must_use]
    pub const fn new(permits: usize) -> Self {
        Self {
            state: Mutex::new(State {
                available: permits,
                total: permits,
                queue: VecDeque::new(),
                next_ticket: 0,
            }),
        }
    }

    /// Takes a permit, and waits until there is one.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let semaphore = Semaphore::new(1);
    /// let permit = semaphore.acquire();
    /// assert_eq!(semaphore.available(), 0);
    /// drop(permit);
    /// assert_eq!(semaphore.available(), 1);
    /// ```
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_many(1)
    }

    /// Takes `count` permits, all at once, and waits until there are as many.
    ///
    /// A `count` above the number that the semaphore was made with can be had when more permits
    /// have been [released](Self::release). Until then the thread waits, and all that come later
    /// wait behind it. 0 permits are had at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let seats = Semaphore::new(5);
    /// let table = seats.acquire_many(4);
    /// assert_eq!((table.count(), seats.available()), (4, 1));
    /// ```
    pub fn acquire_many(&self, count: usize) -> Permit<'_> {
        let is_served = self.wait(count, None);
        debug_assert!(is_served, "without a deadline no thread gives up");
        self.permit(count)
    }

    /// Takes a permit if there is one and no thread waits. Does not wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let semaphore = Semaphore::new(1);
    /// let permit = semaphore.try_acquire();
    /// assert!(permit.is_some());
    /// assert!(semaphore.try_acquire().is_none());
    /// ```
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.try_acquire_many(1)
    }

    /// Takes `count` permits if there are as many and no thread waits, or none. Does not wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let semaphore = Semaphore::new(3);
    /// assert!(semaphore.try_acquire_many(4).is_none());
    /// assert!(semaphore.try_acquire_many(3).is_some());
    /// ```
    pub fn try_acquire_many(&self, count: usize) -> Option<Permit<'_>> {
        let is_taken = self.state.lock().take(count);
        is_taken.then(|| self.permit(count))
    }

    /// Takes a permit, and waits for it no longer than `timeout`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    /// use std::time::Duration;
    ///
    /// let semaphore = Semaphore::new(1);
    /// let permit = semaphore.acquire();
    /// assert!(
    ///     semaphore
    ///         .acquire_timeout(Duration::from_millis(10))
    ///         .is_none()
    /// );
    /// drop(permit);
    /// assert!(
    ///     semaphore
    ///         .acquire_timeout(Duration::from_millis(10))
    ///         .is_some()
    /// );
    /// ```
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<Permit<'_>> {
        self.acquire_many_timeout(1, timeout)
    }

    /// Takes `count` permits, all at once, and waits for them no longer than `timeout`.
    ///
    /// A thread that gives up leaves the queue, and the threads behind it go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    /// use std::time::Duration;
    ///
    /// let semaphore = Semaphore::new(3);
    /// assert!(
    ///     semaphore
    ///         .acquire_many_timeout(4, Duration::from_millis(10))
    ///         .is_none()
    /// );
    /// assert!(semaphore.acquire_many_timeout(3, Duration::MAX).is_some());
    /// ```
    pub fn acquire_many_timeout(&self, count: usize, timeout: Duration) -> Option<Permit<'_>> {
        let is_served = self.wait(count, deadline(timeout));
        is_served.then(|| self.permit(count))
    }

    /// Returns the number of permits that are not held. By the time the caller looks at it, it may
    /// have changed. Permits that are there may be meant for a thread that waits for more.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let semaphore = Semaphore::new(2);
    /// let _permit = semaphore.acquire();
    /// assert_eq!(semaphore.available(), 1);
    /// ```
    pub fn available(&self) -> usize {
        self.state.lock().available
    }

    /// Adds permits that no thread held before: the signal that there is something to take.
    ///
    /// A [`Permit`] gives back by itself what it holds. This method is for permits that were
    /// [forgotten](Permit::forget) or never taken.
    ///
    /// # Panics
    ///
    /// If there were more than [`usize::MAX`] permits then, with those that are held. In that case
    /// nothing is added.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    /// use std::thread;
    ///
    /// let ready = Semaphore::new(0);
    /// thread::scope(|scope| {
    ///     scope.spawn(|| ready.release(2)); // two things have been made
    ///     ready.acquire().forget();
    ///     ready.acquire().forget();
    /// });
    /// assert_eq!(ready.available(), 0);
    /// ```
    #[track_caller]
    pub fn release(&self, count: usize) {
        let mut state = self.state.lock();
        let total = state.total.checked_add(count);
        state.total = total.expect("a semaphore has at most usize::MAX permits");
        state.available += count;
        state.serve();
    }

    fn permit(&self, count: usize) -> Permit<'_> {
        Permit {
            semaphore: self,
            count,
        }
    }

    /// Takes permits, waiting for them until the deadline. Returns false if the deadline has passed
    /// and nothing was taken.
    fn wait(&self, wanted: usize, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        if state.take(wanted) {
            return true;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let served = Arc::new(Condvar::new());
        state.queue.push_back(Waiter {
            ticket,
            wanted,
            served: Arc::clone(&served),
        });
        loop {
            let is_late = sleep(&served, &mut state, deadline);
            // A thread that is served at the last moment, when its time is over, is served.
            if state.is_served(ticket) {
                return true;
            }
            if is_late {
                state.queue.retain(|waiter| waiter.ticket != ticket);
                // All others may have waited behind this thread.
                state.serve();
                return false;
            }
        }
    }
}

/// Permits of a [`Semaphore`]. They go back to it when this is dropped, on a panic too.
///
/// # Examples
///
/// ```
/// use manyhands::thread::Semaphore;
///
/// let semaphore = Semaphore::new(2);
/// {
///     let permit = semaphore.acquire_many(2);
///     assert_eq!(permit.count(), 2);
/// }
/// assert_eq!(semaphore.available(), 2);
/// ```
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing; to take it for good, `forget` it"]
pub struct Permit<'s> {
    semaphore: &'s Semaphore,
    count: usize,
}

impl Permit<'_> {
    /// Returns the number of these permits.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// assert_eq!(Semaphore::new(2).acquire_many(2).count(), 2);
    /// ```
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes the permits out of the semaphore for good: there are fewer from now on, until a thread
    /// [releases](Semaphore::release) new ones.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Semaphore;
    ///
    /// let semaphore = Semaphore::new(3);
    /// semaphore.acquire().forget();
    /// assert_eq!(semaphore.available(), 2);
    /// ```
    pub fn forget(self) {
        self.semaphore.state.lock().total -= self.count;
        mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.semaphore.state.lock();
        state.available += self.count;
        state.serve();
    }
}

#[cfg(test)]
mod tests;
