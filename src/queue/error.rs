//! The ways in which a push, a pop, or a wait for the end of the work can fail.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::memory::ShareError;

/// The reason why an item was not pushed. The item is in here, whatever the reason.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
/// use manyhands::queue::PushError;
///
/// let jobs = Queue::bounded(1)?;
/// jobs.push("first".to_owned())?;
/// let error = jobs.try_push("second".to_owned()).unwrap_err();
/// assert!(matches!(error, PushError::Full(_)));
/// assert_eq!(error.into_inner(), "second");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PushError<T> {
    /// There is no room now. A call that does not wait fails so.
    #[error("the queue is full")]
    Full(T),
    /// The timeout of the call was over before there was room, also if it was zero.
    #[error("the queue had no room in time")]
    TimedOut(T),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed(T),
    /// No handle is left that could take the item: all handles that may pop were dropped, or their
    /// processes have ended.
    #[error("no process is left that could take an item out of the queue")]
    Disconnected(T),
    /// The item takes more bytes than may lie in the queue in all, so that there will never be
    /// room.
    #[error(
        "the item takes {bytes} bytes and the queue no more than {limit} in all; make it with `with_limits`"
    )]
    #[non_exhaustive]
    TooLarge {
        /// The item that was to be pushed.
        item: T,
        /// The size of the item, in bytes.
        bytes: u64,
        /// The bytes that may lie in the queue in all.
        limit: u64,
    },
    /// The item could not be serialised.
    #[error("the item cannot be serialised: {reason}")]
    #[non_exhaustive]
    Encode {
        /// The item that was to be pushed.
        item: T,
        /// What its `Serialize` said.
        reason: String,
    },
    /// The item could not be laid into shared memory.
    #[error("the item could not be laid into shared memory")]
    #[non_exhaustive]
    Share {
        /// The item that was to be pushed.
        item: T,
        /// The reason, which is also the [`source`](std::error::Error::source) of this error.
        source: ShareError,
    },
}

/// The error of `send`, by which halves of queues and connections push: the same as of `push`.
///
/// # Examples
///
/// ```
/// use manyhands::queue::{SendError, Pipe};
///
/// let (sender, receiver) = Pipe::one_way()?;
/// drop(receiver);
/// assert_eq!(sender.send(7), Err(SendError::Disconnected(7)));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub type SendError<T> = PushError<T>;

impl<T> PushError<T> {
    /// Returns the item that was not pushed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::Queue;
    /// let jobs = Queue::bounded(1)?;
    /// jobs.close();
    /// assert_eq!(jobs.push(7).unwrap_err().into_inner(), 7);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(item)
            | Self::TimedOut(item)
            | Self::Closed(item)
            | Self::Disconnected(item)
            | Self::TooLarge { item, .. }
            | Self::Encode { item, .. }
            | Self::Share { item, .. } => item,
        }
    }

    /// Returns the same error, without the item.
    pub(crate) fn without_item(self) -> PushError<()> {
        match self {
            Self::Full(_) => PushError::Full(()),
            Self::TimedOut(_) => PushError::TimedOut(()),
            Self::Closed(_) => PushError::Closed(()),
            Self::Disconnected(_) => PushError::Disconnected(()),
            Self::TooLarge { bytes, limit, .. } => PushError::TooLarge {
                item: (),
                bytes,
                limit,
            },
            Self::Encode { reason, .. } => PushError::Encode { item: (), reason },
            Self::Share { source, .. } => PushError::Share { item: (), source },
        }
    }
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Full(_) => "Full",
            Self::TimedOut(_) => "TimedOut",
            Self::Closed(_) => "Closed",
            Self::Disconnected(_) => "Disconnected",
            Self::TooLarge { .. } => "TooLarge",
            Self::Encode { .. } => "Encode",
            Self::Share { source, .. } => return write!(f, "Share({self}: {source})"),
        };
        write!(f, "{name}({self})")
    }
}

/// The reason why there is no item.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
/// use manyhands::queue::PopError;
///
/// let jobs = Queue::<u32>::bounded(1)?;
/// assert_eq!(jobs.try_pop(), Err(PopError::Empty));
/// jobs.close();
/// assert_eq!(jobs.pop(), Err(PopError::Closed));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PopError {
    /// There is no item now. A call that does not wait fails so.
    #[error("the queue is empty")]
    Empty,
    /// The timeout of the call was over before there was an item, also if it was zero.
    #[error("the queue had no item in time")]
    TimedOut,
    /// The queue was closed, and all items that were in it have been taken.
    #[error("the queue is closed, and empty")]
    Closed,
    /// All items that were pushed have been taken, and no handle is left that could push: all other
    /// handles were dropped, or their processes have ended. For a pipe this is the end of the
    /// stream. The [module](super#who-is-there) says when a handle that may do both is told so.
    #[error("the queue is empty, and no process is left that could fill it")]
    Disconnected,
    /// One item was taken and cannot be made from its bytes. It is gone, and counts as lost. The
    /// items behind it are not touched.
    #[error("an item could not be deserialised: {reason}")]
    #[non_exhaustive]
    Decode {
        /// What its `Deserialize` said.
        reason: String,
    },
    /// One item was taken, and its shared memory cannot be reached, for a reason that is also the
    /// [`source`](std::error::Error::source) of this error. The item is gone, and counts as lost.
    #[error("an item could not be reached in shared memory")]
    Share(#[source] ShareError),
}

/// The error of `recv`, by which halves of queues and connections pop: the same as of `pop`.
///
/// # Examples
///
/// ```
/// use manyhands::queue::{RecvError, Pipe};
///
/// let (sender, receiver) = Pipe::one_way::<u8>()?;
/// drop(sender);
/// assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
pub type RecvError = PopError;

/// The error of a process that acknowledges more items than it has taken.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
///
/// let jobs = Queue::bounded(1)?;
/// jobs.push('a')?;
/// jobs.pop()?;
/// assert!(jobs.task_done().is_ok());
/// assert!(jobs.task_done().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("task_done was called once too often: this process has no item in hand")]
#[non_exhaustive]
pub struct TaskDoneError;

fn were(items: u64) -> String {
    match items {
        1 => "1 item was".to_owned(),
        _ => format!("{items} items were"),
    }
}

fn are(items: u64) -> String {
    match items {
        1 => "1 item is".to_owned(),
        _ => format!("{items} items are"),
    }
}

fn them(items: u64) -> &'static str {
    if items == 1 { "it" } else { "them" }
}

/// The reason why the items are not all done.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
/// use manyhands::queue::JoinError;
/// use std::time::Duration;
///
/// let jobs = Queue::bounded(1)?;
/// jobs.push('a')?;
/// let late = jobs.join_timeout(Duration::ZERO);
/// assert!(matches!(
///     late,
///     Err(JoinError::TimedOut { unfinished: 1, .. })
/// ));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JoinError {
    /// Nothing is left to be done, but some items were lost: with processes that died or dropped
    /// their last handle that may pop before they called `task_done`, or because they could not be
    /// read.
    #[error("{} lost with those who had taken {}", were(*items), them(*items))]
    #[non_exhaustive]
    Lost {
        /// The number of lost items, since this handle was last told, or made.
        items: u64,
    },
    /// Items are left, and no other handle that could take them.
    #[error("{} left in the queue, and no process that could take {}", are(*unfinished), them(*unfinished))]
    #[non_exhaustive]
    Disconnected {
        /// The number of items that are left.
        unfinished: u64,
    },
    /// The time is over, and not all items are done.
    #[error("{} not done in time", were(*unfinished))]
    #[non_exhaustive]
    TimedOut {
        /// The number of items that are not done.
        unfinished: u64,
    },
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn every_error_of_a_push_gives_the_item_back_and_says_what_is_behind_it() {
        let (item, reason) = (7, "why".to_owned());
        let no_memory = PushError::Share {
            item,
            source: ShareError::Gone,
        };
        let source = no_memory.source().and_then(|it| it.downcast_ref());
        assert_eq!(source, Some(&ShareError::Gone));
        let too_large = PushError::TooLarge {
            item,
            bytes: 109,
            limit: 108,
        };
        let said = too_large.to_string();
        assert!(
            said.contains("takes 109 bytes") && said.contains("than 108"),
            "{said}"
        );
        let unencodable = PushError::Encode { item, reason };
        assert!(unencodable.to_string().ends_with(": why"));
        // What is behind it is said once: by the source.
        let behind = ShareError::Gone.to_string();
        assert!(!no_memory.to_string().contains(&behind), "{no_memory}");
        assert!(format!("{no_memory:?}").contains(&behind), "{no_memory:?}");
        let unreachable = PopError::Share(ShareError::Gone);
        assert!(!unreachable.to_string().contains(&behind), "{unreachable}");
        for error in [
            PushError::Full(item),
            PushError::TimedOut(item),
            PushError::Closed(item),
            PushError::Disconnected(item),
            too_large,
            unencodable,
        ] {
            assert!(error.source().is_none());
            assert_eq!(error.into_inner(), item);
        }
        assert_eq!(no_memory.into_inner(), item);
    }

    #[test]
    fn errors_count_items_in_good_english() {
        let say = |items| {
            let unfinished = items;
            [
                JoinError::Lost { items }.to_string(),
                JoinError::Disconnected { unfinished }.to_string(),
                JoinError::TimedOut { unfinished }.to_string(),
            ]
        };
        assert_eq!(
            say(1),
            [
                "1 item was lost with those who had taken it",
                "1 item is left in the queue, and no process that could take it",
                "1 item was not done in time",
            ]
        );
        assert_eq!(
            say(2),
            [
                "2 items were lost with those who had taken them",
                "2 items are left in the queue, and no process that could take them",
                "2 items were not done in time",
            ]
        );
    }
}
