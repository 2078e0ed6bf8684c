//! [`Pipe`]: two ends.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{PopError, PushError};
use super::ready::wait_ready;
use super::{Queue, Receiver, Sender};
use crate::shm::ShareError;

/// Items that may be under way in each direction.
const ITEMS: usize = 64;

/// Makes pipes: connections between two ends, each of which can be given to another process.
///
/// # Examples
///
/// ```
/// use manyhands::{Connection, Pipe, Process};
/// use manyhands::queue::PopError;
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
    /// Two ends: the first sends `A` and receives `B`, the second the reverse. Each direction takes 64 items that
    /// nobody has received yet, then `send` waits.
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

    /// An end that sends, and one that receives.
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

/// One end of a pipe: sends `A`, receives `B`. From [`Pipe::duplex`].
///
/// It is no clone: to give it to another process, pass it as an argument or send it. An end counts as there as long as
/// any process has it, so drop what you have passed on by reference.
#[derive(Serialize, Deserialize)]
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
    /// Sends an item to the other end; waits if that is 64 items behind.
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
}

impl<A, B: DeserializeOwned + 'static> Connection<A, B> {
    /// Takes the next item that the other end has sent, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Receiver::pop`]; [`PopError::Disconnected`] when the other end is gone, whether it was dropped or its
    /// process was killed, and all that it had sent has been received.
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

    /// Takes the next item, and waits for it for at most this long.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv), and [`PopError::Empty`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::{Pipe, queue::PopError};
    /// # use std::time::Duration;
    /// let (one, _other) = Pipe::duplex::<u8, u8>()?;
    /// assert_eq!(one.recv_timeout(Duration::from_millis(1)), Err(PopError::Empty));
    /// # Ok::<(), manyhands::ShareError>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<B, PopError> {
        self.receiver.pop_timeout(timeout)
    }
}

impl<A, B> Connection<A, B> {
    /// Whether [`recv`](Self::recv) would not wait, after waiting for that for at most this long.
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
    pub fn poll(&self, timeout: Duration) -> bool {
        !wait_ready(&[self], Some(timeout)).is_empty()
    }

    pub(super) fn receiver(&self) -> &Receiver<B> {
        &self.receiver
    }
}

/// The same under the names of pipes.
impl<T: Serialize + 'static> Sender<T> {
    /// [`push`](Self::push), as pipes call it.
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
}

/// The same under the names of pipes.
impl<T: DeserializeOwned + 'static> Receiver<T> {
    /// [`pop`](Self::pop), as pipes call it.
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

    /// [`try_pop`](Self::try_pop), as pipes call it.
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
    /// Whether [`pop`](Self::pop) would not wait, after waiting for that for at most this long.
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
    pub fn poll(&self, timeout: Duration) -> bool {
        !wait_ready(&[self], Some(timeout)).is_empty()
    }
}
