//! Values → bytes and back, with the handles of shared objects in them. Tasks, results and queues'
//! items cross from process to process in this form.
//!
//! [`codec`] knows bytes only. A handle in a value has to be held while the value is under way, so
//! each record is written and read in a scope of [`transit`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transit::{self, Sent};
use crate::codec::{self, Reading};
use crate::error::{ItemIndex, TaskError, TaskValue};
use crate::panic;

/// A record whose handles cease to count as under way when it has been read.
struct Message;

impl Reading for Message {
    #[inline]
    fn of_record<R>(read: impl FnOnce() -> R) -> R {
        transit::receive(read)
    }
}

/// Takes the next value off the front of `input`: see [`codec::take`].
#[inline]
pub(crate) fn take<T: DeserializeOwned + 'static>(input: &mut &[u8]) -> Result<T, String> {
    codec::take::<T, Message>(input)
}

/// Takes all values of `input` and appends them to `out`: see [`codec::take_all`].
pub(crate) fn take_all<T: DeserializeOwned + 'static>(
    input: &[u8],
    out: &mut Vec<T>,
) -> Result<usize, (usize, String)> {
    codec::take_all::<T, Message>(input, out)
}

/// Appends a value, whose `Serialize` is the user's and may panic. On an error, `out` is as it was.
///
/// # Errors
///
/// [`TaskError::Encode`] of this part, or the panic.
pub(crate) fn encode<T: Serialize + 'static>(
    out: &mut Vec<u8>,
    value: &T,
    part: TaskValue,
) -> Result<(), TaskError> {
    let before = out.len();
    let error = match panic::catch(|| codec::append(out, value)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(reason)) => TaskError::Encode {
            index: ItemIndex::NONE,
            part,
            reason: reason.into(),
        },
        Err(caught) => caught.into_error(None),
    };
    out.truncate(before);
    Err(error)
}

/// The error of an item whose result cannot be made from its bytes.
pub(crate) fn undecoded(index: Option<usize>, part: TaskValue, reason: String) -> TaskError {
    TaskError::Decode {
        index: index.into(),
        part,
        reason: reason.into(),
    }
}

/// Takes the next result off the front of `input`; its `Deserialize` is the user's and may panic.
///
/// # Errors
///
/// [`TaskError::Decode`] or the panic, of the item with this index.
pub(crate) fn decode<R: DeserializeOwned + 'static>(
    input: &mut &[u8],
    index: Option<usize>,
) -> Result<R, TaskError> {
    match panic::catch(|| take(input)) {
        Ok(decoded) => decoded.map_err(|reason| undecoded(index, TaskValue::Result, reason)),
        Err(caught) => Err(caught.into_error(index)),
    }
}

/// Appends the results of the items from `first` on. If `count` is given, there are to be that
/// many.
///
/// # Errors
///
/// That of the first result that cannot be made; those before it have been appended.
pub(crate) fn decode_all<R: DeserializeOwned + 'static>(
    bytes: &[u8],
    results: &mut Vec<R>,
    first: usize,
    count: Option<usize>,
) -> Result<(), TaskError> {
    let before = results.len();
    let decoded = match panic::catch(|| take_all(bytes, results)) {
        Ok(Ok(decoded)) => decoded,
        Ok(Err((at, reason))) => {
            return Err(undecoded(Some(first + at), TaskValue::Result, reason));
        }
        // It panicked at the first result that was not appended.
        Err(caught) => return Err(caught.into_error(Some(first + results.len() - before))),
    };
    match count {
        Some(count) if count != decoded => Err(undecoded(
            Some(first + decoded),
            TaskValue::Result,
            format!("{decoded} results for {count} items"),
        )),
        _ => Ok(()),
    }
}

/// Appends the result of a task, in the process that ran it. If the result is not sent after all,
/// the caller drops the returned [`Sent`]; otherwise it [delivers](Sent::deliver) it.
#[inline]
pub(crate) fn append_result<R: Serialize + 'static>(
    out: &mut Vec<u8>,
    result: &R,
) -> Result<Sent, String> {
    if codec::fixed_size::<R>().is_some() {
        return codec::append(out, result).map(|()| Sent::default());
    }
    let (appended, sent) = transit::send(None, || codec::append(out, result));
    appended.map(|()| sent)
}
