//! [`Stack`].

use std::marker::PhantomData;
use std::time::Duration;

use super::error::PushError;
use super::fifo::BYTES;
use super::handle::{Handle, Role};
use super::head::Order;
use super::item;
use super::macros::{handle, popping, pushing, state, taking};
use crate::memory::ShareError;
use crate::memory::object::shape_of;
use crate::memory::wait_mode::WaitMode;

/// A queue of which the newest item comes out first; otherwise like [`Queue`](super::Queue).
///
/// A handle is told that it is alone only if the others have gone during the call, or were killed.
/// The [module](super#who-is-there) says it in full.
///
/// # Examples
///
/// ```
/// use manyhands::queue::Stack;
///
/// let undo = Stack::bounded(100)?;
/// undo.push("typed a".to_owned())?;
/// undo.push("typed b".to_owned())?;
/// assert_eq!(undo.pop()?, "typed b");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "what is pushed into a stack that is dropped is gone"]
pub struct Stack<T> {
    pub(crate) handle: Handle,
    items: PhantomData<fn(T) -> T>,
}

impl<T: 'static> Stack<T> {
    /// Makes a stack of at most `items` items, with at most 1 GiB in all.
    ///
    /// # Errors
    ///
    /// As for [`Queue::bounded`](super::Queue::bounded).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::Stack;
    ///
    /// let stack = Stack::bounded(2)?;
    /// stack.push(1)?;
    /// stack.push(2)?;
    /// assert_eq!((stack.pop()?, stack.pop()?), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bounded(items: usize) -> Result<Self, ShareError> {
        Self::with_limits(items, BYTES)
    }

    /// Makes a stack of at most `items` items, with at most `bytes` bytes in all, as they are
    /// serialised.
    ///
    /// # Errors
    ///
    /// As for [`Queue::with_limits`](super::Queue::with_limits).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::Stack;
    ///
    /// assert!(
    ///     Stack::<String>::with_limits(8, 1_000)?
    ///         .push("x".repeat(2_000))
    ///         .is_err()
    /// );
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn with_limits(items: usize, bytes: u64) -> Result<Self, ShareError> {
        let room = item::room::<T>(items);
        let shape = shape_of::<Self>();
        Handle::new(Order::Lifo, items, bytes, room, shape).map(Self::of)
    }
}

handle!(Stack, Both, Stack);
state!(
    Stack,
    "let it = manyhands::queue::Stack::<i32>::bounded(8)?;"
);
popping!(
    Stack,
    "let it = manyhands::queue::Stack::<i32>::bounded(8)?;"
);
taking!(
    Stack,
    "let it = manyhands::queue::Stack::<i32>::bounded(8)?;"
);
pushing!(Stack, "let it = manyhands::queue::Stack::bounded(8)?;");
