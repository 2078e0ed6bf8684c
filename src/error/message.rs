//! [`Message`]: a text in an error, in one word.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// A text that an error carries: what a panic or a serialiser said.
///
/// It is one word long, so that errors stay small. It derefs to `str`, and compares with it.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let error = Pool::serial()
///     .map(|()| panic!("on purpose"), [()])
///     .map(|_: Vec<()>| ())
///     .unwrap_err();
/// let TaskError::Panicked { message, .. } = error else {
///     panic!("{error}")
/// };
/// assert_eq!(message, "on purpose");
/// assert!(message.starts_with("on"));
/// let owned: String = message.into();
/// # assert_eq!(owned, "on purpose");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Message(Box<Text>);

/// The text, with what an error has no other room for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Text {
    text: Box<str>,
    /// How often the task was started that panicked with this text.
    attempts: u32,
}

impl Message {
    pub(super) fn attempts(&self) -> u32 {
        self.0.attempts
    }

    pub(super) fn set_attempts(&mut self, attempts: u32) {
        self.0.attempts = attempts;
    }
}

impl From<Box<str>> for Message {
    fn from(text: Box<str>) -> Self {
        Self(Box::new(Text { text, attempts: 1 }))
    }
}

impl Deref for Message {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl AsRef<str> for Message {
    fn as_ref(&self) -> &str {
        self
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Box::<str>::from(text).into()
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        text.into_boxed_str().into()
    }
}

impl From<Message> for String {
    fn from(message: Message) -> Self {
        message.0.text.into_string()
    }
}

impl PartialEq<str> for Message {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for Message {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialEq<String> for Message {
    fn eq(&self, other: &String) -> bool {
        **self == **other
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
