//! [`Pipe`]: a connection with two ends.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{PopError, PushError};
use super::{Queue, Receiver, Sender};
use crate::memory::ShareError;

/// The number of items that may be under way in each direction.
const ITEMS: usize = 64;

/// The maker of pipes: connections between two ends, each of which can be given to another process.
///
/// # Examples
///
/// ```
/// use manyhands::queue::PopError;
/// use manyhands::{Connection, Pipe, Process};
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
/// assert_eq!(ours.recv(), Err(PopError::Disconnected));
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
    /// use manyhands::Pipe;
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
    /// use manyhands::Pipe;
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
/// use manyhands::{Connection, Pipe};
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
    /// As for [`Sender::push`]; [`PushError::Disconnected`] if the other end is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// drop(other);
    /// assert!(one.send(7).is_err());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn send(&self, item: A) -> Result<(), PushError<A>> {
        self.sender.push(item)
    }

    /// Sends an item if the other end is not 64 items behind.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`PushError::Full`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PushError};
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// for _ in 0..64 {
    ///     one.try_send(7)?;
    /// }
    /// assert_eq!(one.try_send(7), Err(PushError::Full(7)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_send(&self, item: A) -> Result<(), PushError<A>> {
        self.sender.try_push(item)
    }

    /// Sends an item, and waits for room for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send), and [`PushError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// # use std::time::Duration;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// one.send_timeout(7, Duration::from_secs(1))?;
    /// assert_eq!(other.recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, item: A, timeout: Duration) -> Result<(), PushError<A>> {
        self.sender.push_timeout(item, timeout)
    }
}

impl<A, B: DeserializeOwned + 'static> Connection<A, B> {
    /// Takes the next item that the other end has sent, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Receiver::pop`]; [`PopError::Disconnected`] when the other end is gone, whether it
    /// was dropped or its process was killed, and all that it had sent has been received.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// other.send(7)?;
    /// drop(other);
    /// assert_eq!(one.recv()?, 7);
    /// assert_eq!(one.recv(), Err(PopError::Disconnected));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv(&self) -> Result<B, PopError> {
        self.receiver.pop()
    }

    /// Takes the next item if it is there.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`PopError::Empty`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// assert_eq!(one.try_recv(), Err(PopError::Empty));
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn try_recv(&self) -> Result<B, PopError> {
        self.receiver.try_pop()
    }

    /// Takes the next item, and waits for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`PopError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// # use std::time::Duration;
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// assert_eq!(
    ///     one.recv_timeout(Duration::from_millis(1)),
    ///     Err(PopError::TimedOut)
    /// );
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<B, PopError> {
        self.receiver.pop_timeout(timeout)
    }
}

impl<A, B> Connection<A, B> {
    /// Waits until [`recv`](Self::recv) would not wait, for at most `timeout`. Returns whether that
    /// came to be.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// # use std::time::Duration;
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// assert!(!one.poll(Duration::ZERO));
    /// other.send(7)?;
    /// assert!(one.poll(Duration::MAX));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn poll(&self, timeout: Duration) -> bool {
        self.receiver().handle.wait_ready(timeout)
    }

    /// Ends both directions for both ends: from now on `send` fails, and `recv` fails once it has
    /// drained what was under way. Closing twice does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError, queue::PushError};
    /// let (one, other) = Pipe::duplex::<u8, u8>()?;
    /// one.send(7)?;
    /// one.close();
    /// assert_eq!((other.recv(), other.recv()), (Ok(7), Err(PopError::Closed)));
    /// assert_eq!(other.send(8), Err(PushError::Closed(8)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) {
        self.sender.close();
        self.receiver.close();
    }

    /// Returns the half that receives.
    pub(crate) fn receiver(&self) -> &Receiver<B> {
        &self.receiver
    }
}

/// The functions that push, under the names that pipes use.
impl<T: Serialize + 'static> Sender<T> {
    /// Pushes an item: [`push`](Self::push), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `push`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// let (sender, receiver) = Pipe::one_way()?;
    /// sender.send(7)?;
    /// assert_eq!(receiver.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, item: T) -> Result<(), PushError<T>> {
        self.push(item)
    }

    /// Pushes an item if there is room now: [`try_push`](Self::try_push), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `try_push`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// let (sender, _receiver) = Pipe::one_way()?;
    /// while sender.try_send(7).is_ok() {}
    /// assert_eq!(sender.len(), sender.capacity());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn try_send(&self, item: T) -> Result<(), PushError<T>> {
        self.try_push(item)
    }

    /// Pushes an item, and waits for room for at most `timeout`:
    /// [`push_timeout`](Self::push_timeout), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `push_timeout`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// # use std::time::Duration;
    /// let (sender, receiver) = Pipe::one_way()?;
    /// sender.send_timeout(7, Duration::from_secs(1))?;
    /// assert_eq!(receiver.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_timeout(&self, item: T, timeout: Duration) -> Result<(), PushError<T>> {
        self.push_timeout(item, timeout)
    }
}

/// The functions that pop, under the names that pipes use.
impl<T: DeserializeOwned + 'static> Receiver<T> {
    /// Takes the next item: [`pop`](Self::pop), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `pop`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// let (sender, receiver) = Pipe::one_way::<u8>()?;
    /// drop(sender);
    /// assert!(receiver.recv().is_err());
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn recv(&self) -> Result<T, PopError> {
        self.pop()
    }

    /// Takes the next item if there is one now: [`try_pop`](Self::try_pop), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `try_pop`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// let (_sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert_eq!(receiver.try_recv(), Err(PopError::Empty));
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn try_recv(&self) -> Result<T, PopError> {
        self.try_pop()
    }

    /// Takes the next item, and waits for one for at most `timeout`:
    /// [`pop_timeout`](Self::pop_timeout), as pipes call it.
    ///
    /// # Errors
    ///
    /// As for `pop_timeout`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// # use std::time::Duration;
    /// let (_sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(PopError::Empty));
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, PopError> {
        self.pop_timeout(timeout)
    }
}

impl<T> Receiver<T> {
    /// Waits until [`pop`](Self::pop) would not wait, for at most `timeout`. Returns whether that
    /// came to be.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Pipe;
    /// # use std::time::Duration;
    /// let (sender, receiver) = Pipe::one_way::<u8>()?;
    /// assert!(!receiver.poll(Duration::ZERO));
    /// drop(sender);
    /// assert!(receiver.poll(Duration::MAX));
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    #[must_use]
    pub fn poll(&self, timeout: Duration) -> bool {
        self.handle.wait_ready(timeout)
    }
}
