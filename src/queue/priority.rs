//! [`PriorityQueue`].

use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;

use super::error::PushError;
use super::fifo::BYTES;
use super::handle::{Handle, Role};
use super::head::Order;
use super::item;
use super::macros::{handle, popping, state, taking};
use crate::memory::ShareError;
use crate::memory::object::shape_of;
use crate::memory::wait_mode::WaitMode;

/// A queue of which the item with the highest priority comes out first. Of several items with the
/// same priority, the one that was pushed first comes out first. Otherwise it is like
/// [`Queue`](super::Queue).
///
/// Where the lowest is to come first, as in Python's queue of that name, negate the priorities.
/// `pop` does not return the priority. A program that needs it puts it into the item as well.
///
/// A handle is told that it is alone only if the others have gone during the call, or were killed.
/// The [module](super#who-is-there) says it in full.
///
/// # Examples
///
/// ```
/// use manyhands::queue::PriorityQueue;
///
/// let jobs = PriorityQueue::bounded(100)?;
/// jobs.push("sweep".to_owned(), 0)?;
/// jobs.push("fire!".to_owned(), 9)?;
/// jobs.push("water the plants".to_owned(), 0)?;
/// assert_eq!(jobs.pop()?, "fire!");
/// assert_eq!(jobs.pop()?, "sweep");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "what is pushed into a queue that is dropped is gone"]
pub struct PriorityQueue<T> {
    pub(crate) handle: Handle,
    items: PhantomData<fn(T) -> T>,
}

impl<T: 'static> PriorityQueue<T> {
    /// Makes a queue of at most `items` items, with at most 1 GiB in all.
    ///
    /// # Errors
    ///
    /// As for [`Queue::bounded`](super::Queue::bounded).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::PriorityQueue;
    ///
    /// let queue = PriorityQueue::bounded(2)?;
    /// queue.push('a', -1)?;
    /// queue.push('b', 1)?;
    /// assert_eq!(queue.pop()?, 'b');
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bounded(items: usize) -> Result<Self, ShareError> {
        Self::with_limits(items, BYTES)
    }

    /// Makes a queue of at most `items` items, with at most `bytes` bytes in all, as they are
    /// serialised.
    ///
    /// # Errors
    ///
    /// As for [`Queue::with_limits`](super::Queue::with_limits).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::PriorityQueue;
    ///
    /// assert!(PriorityQueue::<u64>::with_limits(8, 4)?.push(1, 0).is_err());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn with_limits(items: usize, bytes: u64) -> Result<Self, ShareError> {
        let room = item::room::<T>(items);
        let shape = shape_of::<Self>();
        Handle::new(Order::Priority, items, bytes, room, shape).map(Self::of)
    }
}

impl<T: Serialize + 'static> PriorityQueue<T> {
    /// Pushes an item, and waits for room if there is none. Higher priorities come out first.
    ///
    /// # Errors
    ///
    /// As for [`Queue::push`](super::Queue::push).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::PriorityQueue;
    /// let queue = PriorityQueue::bounded(2)?;
    /// queue.push('a', 5)?;
    /// assert_eq!(queue.pop()?, 'a');
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push(&self, item: T, priority: i64) -> Result<(), PushError<T>> {
        item::push(&self.handle, item, priority, WaitMode::Forever)
    }

    /// Pushes an item if there is room now.
    ///
    /// # Errors
    ///
    /// As for [`Queue::try_push`](super::Queue::try_push).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::PriorityQueue;
    /// let queue = PriorityQueue::bounded(1)?;
    /// assert!(queue.try_push('a', 5).is_ok());
    /// assert!(queue.try_push('b', 6).is_err());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_push(&self, item: T, priority: i64) -> Result<(), PushError<T>> {
        item::push(&self.handle, item, priority, WaitMode::Try)
    }

    /// Pushes an item, and waits for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`Queue::push_timeout`](super::Queue::push_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::PriorityQueue;
    /// use std::time::Duration;
    ///
    /// let queue = PriorityQueue::bounded(1)?;
    /// queue.push_timeout('a', 5, Duration::from_secs(1))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push_timeout(
        &self,
        item: T,
        priority: i64,
        timeout: Duration,
    ) -> Result<(), PushError<T>> {
        item::push(&self.handle, item, priority, WaitMode::within(timeout))
    }
}

handle!(PriorityQueue, Both, PriorityQueue);
state!(
    PriorityQueue,
    "let it = manyhands::queue::PriorityQueue::<i32>::bounded(8)?;"
);
popping!(
    PriorityQueue,
    "let it = manyhands::queue::PriorityQueue::<i32>::bounded(8)?;"
);
taking!(
    PriorityQueue,
    "let it = manyhands::queue::PriorityQueue::<i32>::bounded(8)?;"
);
