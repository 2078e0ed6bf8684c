//! [`TryError`]: the error of a call whose items have errors of their own; [`SentError`]: any
//! error, on its way to another process.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Message, TaskError, tries};

/// Why [`Pool::try_map`](crate::Pool::try_map) or
/// [`Pool::try_for_each`](crate::Pool::try_for_each) has no results: the function returned an `Err`
/// for an item, or an item has no outcome at all.
///
/// # Examples
///
/// ```
/// use manyhands::TryError;
/// use manyhands::prelude::*;
/// use std::num::ParseIntError;
///
/// let parse = |text: &str| text.parse::<u8>();
/// let error: TryError<ParseIntError> = Pool::serial()
///     .try_map(parse, ["7", "eight", "9"])
///     .unwrap_err();
/// match error {
///     TryError::Item { index, error, .. } => {
///         assert_eq!((index, error), (1, "eight".parse::<u8>().unwrap_err()));
///     }
///     other => panic!("{other}"), // a panic, a limit, a pool that was shut down
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TryError<E> {
    /// The function returned this error.
    #[non_exhaustive]
    Item {
        /// Position of the item in the input of the call, from 0.
        index: usize,
        /// What the function returned.
        error: E,
        /// How many times the item was started in all: 1 without a [`Retry`](crate::Retry).
        attempts: u32,
    },
    /// An item has no outcome: it panicked, its worker died, its pool was shut down.
    Task(TaskError),
}

impl<E> TryError<E> {
    /// Returns the position of the item that ended the call, from 0; `None` for an error that no
    /// single item caused.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::TryError;
    /// use manyhands::prelude::*;
    ///
    /// let odd = |x: u32| if x % 2 == 1 { Err("odd") } else { Ok(x / 2) };
    /// let error: TryError<&str> = Pool::serial().try_map(odd, [2, 4, 5]).unwrap_err();
    /// assert_eq!(error.index(), Some(2));
    /// ```
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Item { index, .. } => Some(*index),
            Self::Task(error) => error.index(),
        }
    }

    /// Returns how many times the item was started in all: 1 without a [`Retry`](crate::Retry).
    /// `None` for errors after which nothing is tried again.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::{Retry, RetryOn};
    ///
    /// let odd = |x: u32| if x % 2 == 1 { Err("odd") } else { Ok(x / 2) };
    /// let policy = Retry::up_to(2).on(RetryOn::ERROR);
    /// let error = Pool::serial().call().retry(policy).try_map(odd, [2, 4, 5]).unwrap_err();
    /// assert_eq!((error.index(), error.attempts()), (Some(2), Some(3)));
    /// assert_eq!(error.to_string(), "item 2 failed: odd; it was tried 3 times");
    /// ```
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Item { attempts, .. } => Some(*attempts),
            Self::Task(error) => error.attempts(),
        }
    }

    /// Returns what the function returned, if that is the error.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let odd = |x: u32| if x % 2 == 1 { Err("odd") } else { Ok(x / 2) };
    /// let error = Pool::serial().try_map(odd, [2, 4, 5]).unwrap_err();
    /// assert_eq!(error.into_item(), Some("odd"));
    /// ```
    pub fn into_item(self) -> Option<E> {
        match self {
            Self::Item { error, .. } => Some(error),
            Self::Task(_) => None,
        }
    }
}

impl<E: fmt::Display> fmt::Display for TryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Item {
                index,
                error,
                attempts,
            } => write!(f, "item {index} failed: {error}{}", tries(*attempts)),
            Self::Task(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for TryError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // The message has the text of the item's error, so its source is the next one.
            Self::Item { error, .. } => error.source(),
            Self::Task(error) => error.source(),
        }
    }
}

impl<E> From<TaskError> for TryError<E> {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// Any error, as its text and the texts of its sources, which can cross to another process.
///
/// A function on [`Processes`](crate::Processes) or [`Forked`](crate::Forked) cannot return a
/// `Box<dyn Error>` or an `anyhow::Error`: serde cannot write them, and the caller could not read
/// them. Its one line is `.map_err(|error| SentError::of(&*error))`.
///
/// # Examples
///
/// ```
/// use manyhands::SentError;
/// use manyhands::prelude::*;
/// use std::error::Error;
///
/// fn parse(text: &str) -> Result<u8, Box<dyn Error>> {
///     Ok(text.parse::<u8>()?)
/// }
///
/// let pool = Pool::processes(2)?;
/// let send = |text: String| parse(&text).map_err(|error| SentError::of(&*error));
/// let error = pool.try_map(send, ["7", "eight"].map(String::from)).unwrap_err();
/// assert_eq!(error.to_string(), "item 1 failed: invalid digit found in string");
/// # Ok::<(), PoolError>(())
/// ```
///
/// The same line serves for an [`anyhow::Error`](https://docs.rs/anyhow).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SentError {
    message: Message,
    source: Option<Box<SentError>>,
}

impl SentError {
    /// Makes a copy of the error's text and those of its sources, the first 64 of them.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SentError;
    /// use std::error::Error;
    ///
    /// let error = SentError::of(&manyhands::TaskError::from(manyhands::PoolError::ZeroWorkers));
    /// assert_eq!(error.to_string(), manyhands::PoolError::ZeroWorkers.to_string());
    /// assert!(error.source().is_none());
    /// ```
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        // A chain may be a ring.
        let mut texts: Vec<String> = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next
            && texts.len() <= MOST_SOURCES
        {
            texts.push(error.to_string());
            next = error.source();
        }
        let mut texts = texts.into_iter().rev();
        let last = Self::from(texts.next().unwrap_or_default());
        texts.fold(last, |source, text| Self {
            message: text.into(),
            source: Some(Box::new(source)),
        })
    }
}

/// How many sources of an error are copied.
const MOST_SOURCES: usize = 64;

impl fmt::Display for SentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for SentError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source: &SentError = self.source.as_deref()?;
        Some(source)
    }
}

impl From<String> for SentError {
    fn from(text: String) -> Self {
        Self {
            message: text.into(),
            source: None,
        }
    }
}

impl From<&str> for SentError {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolError;

    /// An error that is its own source.
    #[derive(Debug)]
    struct Ring;

    impl fmt::Display for Ring {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("round and round")
        }
    }

    impl Error for Ring {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    fn texts(error: &dyn Error) -> Vec<String> {
        let (mut texts, mut next) = (Vec::new(), Some(error));
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        texts
    }

    #[test]
    fn an_error_that_is_sent_keeps_its_texts_and_their_order() {
        let low = SentError::from("the disk is on fire");
        let middle = SentError {
            message: "the file cannot be read".into(),
            source: Some(Box::new(low)),
        };
        let high = TryError::Item {
            index: 3,
            error: middle.clone(),
            attempts: 1,
        };
        let expected = [
            "item 3 failed: the file cannot be read",
            "the disk is on fire",
        ];
        assert_eq!(texts(&high), expected);
        let sent = SentError::of(&high);
        assert_eq!(texts(&sent), expected);
        let boxed: Box<dyn Error> = Box::new(middle.clone());
        assert_eq!(SentError::of(&*boxed), middle);
        let boxed: Box<dyn Error + Send + Sync> = Box::new(middle.clone());
        assert_eq!(SentError::of(&*boxed), middle);
        assert_eq!(texts(&SentError::of(&Ring)).len(), 1 + MOST_SOURCES);
    }

    #[test]
    fn the_error_of_a_call_is_the_tasks_or_the_items() {
        let task: TryError<SentError> = TaskError::from(PoolError::Closed).into();
        assert_eq!(task.to_string(), PoolError::Closed.to_string());
        assert_eq!((task.index(), task.into_item()), (None, None));
        let item = TryError::Item {
            index: 7,
            error: "no",
            attempts: 2,
        };
        assert_eq!(item.to_string(), "item 7 failed: no; it was tried 2 times");
        assert_eq!(item.attempts(), Some(2));
        assert_eq!((item.index(), item.into_item()), (Some(7), Some("no")));
    }
}
