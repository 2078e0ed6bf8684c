//! Results on their way back, which may hold handles of shared objects: those count as under way until the result is read.

use serde::Serialize;

use super::{append, fixed_size};
use crate::shm::cargo::{self, Sent};

/// Appends the result of a task, in the process that ran it. If the result is not sent after all, what this gives is to be
/// dropped; otherwise [delivered](Sent::deliver).
#[inline]
pub(crate) fn append_result<R: Serialize + 'static>(
    out: &mut Vec<u8>,
    result: &R,
) -> Result<Sent, String> {
    if fixed_size::<R>().is_some() {
        return append(out, result).map(|()| Sent::default());
    }
    let (appended, sent) = cargo::send(None, || append(out, result));
    appended.map(|()| sent)
}
