//! Values → bytes and back, with the handles of shared objects in them. Tasks, results and queues'
//! items cross from process to process in this form.
//!
//! [`codec`] knows bytes only. A handle in a value has to be held while the value is under way, so
//! each record is written and read in a scope of [`transit`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transit::{self, Sent};
use crate::codec::{self, Reading};

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
