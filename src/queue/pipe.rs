//! [`Pipe`]: a connection with two ends.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{RecvError, SendError};
use super::item;
use super::{Queue, Receiver, Sender};
use crate::memory::ShareError;
use crate::memory::wait_mode::WaitMode;

/// The number of items that may be under way in each direction.
const ITEMS: usize = 64;

/// The maker of pipes: connections between two ends, each of which can be given to another process.
///
/// # Examples
///
/// ```
/// use manyhands::queue::RecvError;
/// use manyhands::{Process, queue::{Connection, Pipe}};
///
/// let (ours, theirs) = Pipe::duplex::<String, usize>()?;
/// let child = Process::spawn(
///     |end: Connection<usize, String>| {
///         while let Ok(text) = end.recv() {
///             end.send(text.len()).unwrap();
///         }
///     },
///     theirs,
/// )?;
/// ours.send("many hands".to_owned())?;
/// assert_eq!(ours.recv()?, 10);
/// child.kill()?;
/// assert_eq!(ours.recv(), Err(RecvError::Disconnected));
/// # child.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Pipe;

impl Pipe {
    /// Makes two ends: the first sends `A` and receives `B`, the second the reverse. Each direction
    /// takes 64 items that the other end has not received yet, then `send` waits.
    ///
    /// # Errors
    ///
    /// As for [`Queue::bounded`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::Pipe;
    ///
    /// let (one, other) = Pipe::duplex::<u8, String>()?;
    /// one.send(7)?;
    /// assert_eq!(other.recv()?, 7);
    /// other.send("seven".to_owned())?;
    /// assert_eq!(one.recv()?, "seven");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(clippy::type_complexity, reason = "it says what the ends are")]
    pub fn duplex<A: 'static, B: 'static>()
    -> Result<(Connection<A, B>, Connection<B, A>), ShareError> {
        let (to, from) = Self::one_way::<A>()?;
        let (back, home) = Self::one_way::<B>()?;
        let one = Connection {
            sender: to,
            receiver: home,
        };
        let other = Connection {
            sender: back,
            receiver: from,
        };
        Ok((one, other))
    }

    /// Makes an end that sends, and one that receives.
    ///
    /// # Errors
    ///
    /// As for [`Queue::bounded`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::queue::Pipe;
    ///
    /// let (sender, receiver) = Pipe::one_way()?;
    /// sender.send(7)?;
    /// assert_eq!(receiver.recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn one_way<T: 'static>() -> Result<(Sender<T>, Receiver<T>), ShareError> {
        Queue::bounded(ITEMS).map(Queue::split)
    }
}

/// One end of a pipe, from [`Pipe::duplex`]. It sends `A` and receives `B`.
///
/// It cannot be cloned: to give it to another process, pass it as an argument or send it. An end
/// counts as there while any process has it, so drop what you have passed on by reference.
///
/// # Examples
///
/// ```
/// use manyhands::queue::{Connection, Pipe};
///
/// fn square(end: &Connection<u64, u64>) {
///     while let Ok(x) = end.recv() {
///         end.send(x * x).unwrap();
///     }
/// }
///
/// let (ours, theirs) = Pipe::duplex::<u64, u64>()?;
/// let server = std::thread::spawn(move || square(&theirs));
/// ours.send(12)?;
/// assert_eq!(ours.recv()?, 144);
/// ours.close();
/// server.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Serialize, Deserialize)]
#[must_use = "for the other end, the stream ends when this one is dropped"]
#[serde(bound = "")]
pub struct Connection<A, B> {
    sender: Sender<A>,
    receiver: Receiver<B>,
}

impl<A, B> fmt::Debug for Connection<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("to_receive", &self.receiver.len())
            .field("not_received", &self.sender.len())
            .finish()
    }
}

impl<A: Serialize + 'static, B> Connection<A, B> {
    /// Sends an item to the other end, and waits if that end is 64 items behind.
    ///
    /// # Errors
    ///
    /// As for [`Sender::send`]; [`SendError::Disconnected`] if the other end is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// drop(other);
    /// assert!(one.send(7).is_err());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn send(&self, item: A) -> Result<(), SendError<A>> {
        self.sender.send(item)
    }

    /// Sends an item if the other end is not 64 items behind.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`SendError::Full`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{SendError, Pipe};
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// for _ in 0..64 {
    ///     one.try_send(7)?;
    /// }
    /// assert_eq!(one.try_send(7), Err(SendError::Full(7)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_send(&self, item: A) -> Result<(), SendError<A>> {
        self.sender.try_send(item)
    }

    /// Sends an item, and waits for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`SendError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// # use std::time::Duration;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// one.send_timeout(7, Duration::from_secs(1))?;
    /// assert_eq!(other.recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, item: A, timeout: Duration) -> Result<(), SendError<A>> {
        self.sender.send_timeout(item, timeout)
    }
}

impl<A, B: DeserializeOwned + 'static> Connection<A, B> {
    /// Takes the next item that the other end has sent, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Receiver::recv`]; [`RecvError::Disconnected`] when the other end is gone, whether
    /// it was dropped or its process was killed, and all that it had sent has been received.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{RecvError, Pipe};
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// other.send(7)?;
    /// drop(other);
    /// assert_eq!(one.recv()?, 7);
    /// assert_eq!(one.recv(), Err(RecvError::Disconnected));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv(&self) -> Result<B, RecvError> {
        self.receiver.recv()
    }

    /// Takes the next item if it is there.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::Empty`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{RecvError, Pipe};
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// assert_eq!(one.try_recv(), Err(RecvError::Empty));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_recv(&self) -> Result<B, RecvError> {
        self.receiver.try_recv()
    }

    /// Takes the next item, and waits for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{RecvError, Pipe};
    /// # use std::time::Duration;
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// assert_eq!(
    ///     one.recv_timeout(Duration::from_millis(1)),
    ///     Err(RecvError::TimedOut)
    /// );
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<B, RecvError> {
        self.receiver.recv_timeout(timeout)
    }
}

impl<A, B> Connection<A, B> {
    /// Returns whether [`recv`](Self::recv) would not wait now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// assert!(!one.is_ready());
    /// other.send(7)?;
    /// assert!(one.is_ready());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.receiver().handle.wait_ready(Duration::ZERO)
    }

    /// Waits until [`recv`](Self::recv) would not wait, for at most `timeout`. Returns whether that
    /// came to be.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// # use std::time::Duration;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// assert!(!one.wait_ready_timeout(Duration::ZERO));
    /// other.send(7)?;
    /// assert!(one.wait_ready_timeout(Duration::MAX));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn wait_ready_timeout(&self, timeout: Duration) -> bool {
        self.receiver().handle.wait_ready(timeout)
    }

    /// Ends both directions for both ends: from now on `send` fails, and `recv` fails once it has
    /// drained what was under way. Closing twice does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{queue::{RecvError, Pipe}, queue::SendError};
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// one.send(7)?;
    /// one.close();
    /// assert_eq!((other.recv(), other.recv()), (Ok(7), Err(RecvError::Closed)));
    /// assert_eq!(other.send(8), Err(SendError::Closed(8)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.sender.close();
        self.receiver.close();
    }

    /// Returns whether both are the same end of the same pipe.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// assert!(one.same_object(&one) && !one.same_object(&other));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn same_object(&self, other: &Self) -> bool {
        self.sender.same_object(&other.sender) && self.receiver.same_object(&other.receiver)
    }

    /// Returns the half that receives.
    pub(crate) fn receiver(&self) -> &Receiver<B> {
        &self.receiver
    }
}

impl<T: Serialize + 'static> Sender<T> {
    /// Sends an item, and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the item: the queue is closed, no handle is left that could take the
    /// item, it is larger than the bytes that may lie in the queue, it cannot be serialised, or
    /// there is no memory for it. Never `Full` or `TimedOut`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (sender, receiver) = Pipe::one_way()?;
    /// sender.send(7)?;
    /// assert_eq!(receiver.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        item::push(&self.handle, item, 0, WaitMode::Forever)
    }

    /// Sends an item if there is room now.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`SendError::Full`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (sender, _receiver) = Pipe::one_way()?;
    /// while sender.try_send(7).is_ok() {}
    /// assert_eq!(sender.len(), sender.capacity());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        item::push(&self.handle, item, 0, WaitMode::Try)
    }

    /// Sends an item, and waits for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`SendError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// # use std::time::Duration;
    /// let (sender, receiver) = Pipe::one_way()?;
    /// sender.send_timeout(7, Duration::from_secs(1))?;
    /// assert_eq!(receiver.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, item: T, timeout: Duration) -> Result<(), SendError<T>> {
        item::push(&self.handle, item, 0, WaitMode::within(timeout))
    }
}

impl<T: DeserializeOwned + 'static> Receiver<T> {
    /// Takes the next item, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: the queue is closed and drained, no handle is left that could push, or an
    /// item could not be read. Never `Empty` or `TimedOut`.
    ///
    /// # Panics
    ///
    /// If the item's `Deserialize` panics. The item is lost then.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (sender, receiver) = Pipe::one_way::<u8>()?;
    /// drop(sender);
    /// assert!(receiver.recv().is_err());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn recv(&self) -> Result<T, RecvError> {
        item::pop(&self.handle, WaitMode::Forever)
    }

    /// Takes the next item if there is one now.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::Empty`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{RecvError, Pipe};
    /// let (_sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn try_recv(&self) -> Result<T, RecvError> {
        item::pop(&self.handle, WaitMode::Try)
    }

    /// Takes the next item, and waits for one for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`RecvError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::{RecvError, Pipe};
    /// # use std::time::Duration;
    /// let (_sender, receiver) = Pipe::one_way::<u8>()?;
    /// let late = receiver.recv_timeout(Duration::ZERO);
    /// assert_eq!(late, Err(RecvError::TimedOut));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        item::pop(&self.handle, WaitMode::within(timeout))
    }
}

impl<T> Receiver<T> {
    /// Returns whether [`recv`](Self::recv) would not wait now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// let (sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert!(!receiver.is_ready());
    /// drop(sender);
    /// assert!(receiver.is_ready());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.handle.wait_ready(Duration::ZERO)
    }

    /// Waits until [`recv`](Self::recv) would not wait, for at most `timeout`. Returns whether that
    /// came to be.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::queue::Pipe;
    /// # use std::time::Duration;
    /// let (sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert!(!receiver.wait_ready_timeout(Duration::ZERO));
    /// drop(sender);
    /// assert!(receiver.wait_ready_timeout(Duration::MAX));
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    #[must_use]
    pub fn wait_ready_timeout(&self, timeout: Duration) -> bool {
        self.handle.wait_ready(timeout)
    }
}
