//! [`Queue`], and its halves.

use std::marker::PhantomData;
use std::time::Duration;

use super::error::PushError;
use super::handle::{Handle, Role};
use super::head::Order;
use super::item;
use super::macros::{handle, popping, pushing, state, taking};
use crate::memory::ShareError;
use crate::memory::object::shape_of;
use crate::memory::wait_mode::WaitMode;

/// The bytes that may lie in a queue, unless its maker sets another limit.
pub(super) const BYTES: u64 = 1 << 30;

/// A queue between threads and processes: first in, first out, of limited length, with any number
/// of participants on either side.
///
/// Items are serialised by serde and wait in shared memory. What was pushed stays, also when its
/// producer exits right after that. The items of one producer come out in the order in which it
/// pushed them. The [module](super) says what happens when a participant is killed.
///
/// Clones are handles of the same queue; each may push and pop. For a queue that ends by itself
/// when all producers are gone, or all consumers, [`split`](Self::split) it. The halves have `send`
/// and `recv` in place of `push` and `pop`. A whole handle is told
/// that it is alone only if the others have gone during the call, or were killed. Otherwise it
/// waits, since another thread may have it by reference.
///
/// # Examples
///
/// ```
/// use manyhands::{Process, Queue};
///
/// let jobs = Queue::<u64>::bounded(1024)?;
/// let child = Process::spawn(
///     |jobs: Queue<u64>| {
///         while let Ok(job) = jobs.pop() {
///             assert!(job < 100);
///             jobs.task_done().unwrap();
///         }
///     },
///     jobs.clone(),
/// )?;
/// for job in 0..100 {
///     jobs.push(job)?;
/// }
/// jobs.join()?;
/// jobs.close();
/// assert!(child.join()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "what is pushed into a queue that is dropped is gone"]
pub struct Queue<T> {
    pub(crate) handle: Handle,
    items: PhantomData<fn(T) -> T>,
}

/// The half of a [`Queue`] that sends.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
///
/// let (sender, receiver) = Queue::bounded(8)?.split();
/// drop(receiver);
/// assert!(sender.send(1).is_err());
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub struct Sender<T> {
    pub(crate) handle: Handle,
    items: PhantomData<fn(T) -> T>,
}

/// The half of a [`Queue`] that receives.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
///
/// let (sender, receiver) = Queue::bounded(8)?.split();
/// std::thread::spawn(move || (0..3).for_each(|x| sender.send(x).unwrap()));
/// assert_eq!(receiver.iter().collect::<Vec<i32>>(), [0, 1, 2]);
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub struct Receiver<T> {
    pub(crate) handle: Handle,
    items: PhantomData<fn(T) -> T>,
}

impl<T: 'static> Queue<T> {
    /// Makes a queue of at most `items` items, with at most 1 GiB in all.
    ///
    /// Room for small items is made at once: 24 to 256 bytes for each, less for numbers and for
    /// long queues. Large items get memory of their own when they are pushed.
    ///
    /// # Errors
    ///
    /// [`ShareError::Invalid`] for a length of 0, or of 2^32 and more; [`ShareError::OutOfMemory`];
    /// and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Queue;
    ///
    /// let names = Queue::bounded(2)?;
    /// names.push("Ada".to_owned())?;
    /// assert_eq!(names.pop()?, "Ada");
    /// assert!(Queue::<u8>::bounded(0).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bounded(items: usize) -> Result<Self, ShareError> {
        Self::with_limits(items, BYTES)
    }

    /// Makes a queue of at most `items` items, with at most `bytes` bytes in all, as they are
    /// serialised.
    ///
    /// A push waits until there is room for both. An item that alone has more bytes than this is an
    /// error ([`PushError::TooLarge`]): its push would have to wait for a moment at which no other
    /// item is in the queue, which may never come.
    ///
    /// # Errors
    ///
    /// As for [`bounded`](Self::bounded), and [`ShareError::Invalid`] for 0 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Queue;
    /// use manyhands::queue::PushError;
    ///
    /// let frames = Queue::<Vec<u8>>::with_limits(64, 10_000)?;
    /// frames.push(vec![0; 9_000])?;
    /// assert!(matches!(
    ///     frames.try_push(vec![0; 9_000]),
    ///     Err(PushError::Full(_))
    /// ));
    /// assert!(matches!(
    ///     frames.push(vec![0; 11_000]),
    ///     Err(PushError::TooLarge { .. })
    /// ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_limits(items: usize, bytes: u64) -> Result<Self, ShareError> {
        let room = item::room::<T>(items);
        let shape = shape_of::<Self>();
        Handle::new(Order::Fifo, items, bytes, room, shape).map(Self::of)
    }
}

impl<T> Queue<T> {
    /// Splits the queue into its two halves. Once all handles that may push are gone, receivers are
    /// told so, and the reverse.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Queue;
    /// use manyhands::queue::RecvError;
    ///
    /// let (sender, receiver) = Queue::bounded(8)?.split();
    /// sender.send('a')?;
    /// drop(sender);
    /// assert_eq!(receiver.recv()?, 'a');
    /// assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn split(self) -> (Sender<T>, Receiver<T>) {
        (self.sender(), self.receiver())
    }

    /// Makes a handle that only sends.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Queue;
    /// let queue = Queue::bounded(8)?;
    /// queue.sender().send(1)?;
    /// assert_eq!(queue.pop()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sender(&self) -> Sender<T> {
        Sender::of(self.handle.another(Role::Sender))
    }

    /// Makes a handle that only receives.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Queue;
    /// let queue = Queue::bounded(8)?;
    /// queue.push(1)?;
    /// assert_eq!(queue.receiver().recv()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receiver(&self) -> Receiver<T> {
        Receiver::of(self.handle.another(Role::Receiver))
    }
}

handle!(Queue, Both, Queue);
state!(Queue, "let it = manyhands::Queue::<i32>::bounded(8)?;");
popping!(Queue, "let it = manyhands::Queue::<i32>::bounded(8)?;");
taking!(Queue, "let it = manyhands::Queue::<i32>::bounded(8)?;");
pushing!(Queue, "let it = manyhands::Queue::bounded(8)?;");
handle!(Sender, Sender, Queue);
handle!(Receiver, Receiver, Queue);
state!(
    Sender,
    "let (it, _receiver) = manyhands::Queue::<i32>::bounded(8)?.split();"
);
state!(
    Receiver,
    "let (_sender, it) = manyhands::Queue::<i32>::bounded(8)?.split();"
);
taking!(
    Receiver,
    "let (_sender, it) = manyhands::Queue::<i32>::bounded(8)?.split();"
);
