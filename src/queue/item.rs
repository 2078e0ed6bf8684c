//! Items as bytes, and back.

use std::cell::Cell;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{PopError, PushError};
use super::handle::{Handle, Refusal};
use super::transfer::{Load, Taken};
use crate::codec;
use crate::memory::payload::Payload;
use crate::memory::wait_mode::WaitMode;
use crate::memory::wire;
use crate::memory::{ShareError, transit};

/// The room in a slot for an item whose size is not known, at least and at most.
const ROOM: std::ops::RangeInclusive<usize> = 48..=240;

/// The bytes that the slots of a queue are to take up, as far as `ROOM` allows that.
const SLOTS: usize = 1 << 20;

/// The largest buffer that is kept for the next item.
const KEPT_BUFFER: usize = 4 << 20;

/// The size of the largest number, in bytes.
const FIXED: usize = 16;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Returns how many bytes of an item lie in its slot.
pub(super) fn room<T: 'static>(capacity: usize) -> usize {
    match codec::fixed_size::<T>() {
        Some(size) => size,
        None => (SLOTS / capacity.max(1)).clamp(*ROOM.start(), *ROOM.end()),
    }
}

/// Runs `then` with a buffer that is used again and again. It is the thread's, unless that is in
/// use: an item that is encoded may push another one.
fn with_buffer<R>(then: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.take();
    buffer.clear();
    let result = then(&mut buffer);
    if buffer.capacity() <= KEPT_BUFFER {
        BUFFER.set(buffer);
    }
    result
}

/// Encodes an item and pushes it.
pub(super) fn push<T: Serialize + 'static>(
    handle: &Handle,
    item: T,
    priority: i64,
    mode: WaitMode,
) -> Result<(), PushError<T>> {
    let not_now = match mode {
        WaitMode::Try => PushError::Full,
        WaitMode::Until(_) | WaitMode::Forever => PushError::TimedOut,
    };
    let refused = |item, refusal| match refusal {
        Refusal::NotNow => not_now(item),
        Refusal::Closed => PushError::Closed(item),
        Refusal::Disconnected => PushError::Disconnected(item),
    };
    if let Some(size) = codec::fixed_size::<T>()
        && size <= FIXED
        && size <= handle.room()
        && size as u64 <= handle.byte_limit()
    {
        let mut bytes = [0; FIXED];
        codec::put_fixed(&mut bytes[..size], &item);
        let mut load = Some(Load::Inline(&bytes[..size]));
        let pushed = handle.put(&mut load, priority, mode);
        return pushed.map_err(|refusal| refused(item, refusal));
    }
    with_buffer(|buffer| {
        // If `sent` is dropped, it calls the handles back: what is not pushed does not arrive.
        let deadline = mode.lock_deadline();
        let (encoded, sent) = transit::send(deadline, || codec::append(buffer, &item));
        // A handle in the item has waited for the ledger until the deadline.
        if encoded.is_err() && sent.is_busy() {
            return Err(not_now(item));
        }
        if let Err(reason) = encoded {
            return Err(PushError::Encode { item, reason });
        }
        let bytes = buffer.len() as u64;
        if bytes > handle.byte_limit() {
            let limit = handle.byte_limit();
            return Err(PushError::TooLarge { item, bytes, limit });
        }
        let load = if sent.handles().is_empty() && buffer.len() <= handle.room() {
            Load::Inline(buffer)
        } else {
            match Payload::new(buffer, sent.handles(), deadline) {
                Ok(payload) => Load::Payload(payload, bytes),
                // A process is stopped while it holds the ledger. A call without a deadline waits
                // for it.
                Err(ShareError::Busy { .. }) => return Err(not_now(item)),
                Err(source) => return Err(PushError::Share { item, source }),
            }
        };
        let mut load = Some(load);
        let pushed = handle.put(&mut load, priority, mode);
        // The payload goes before the handles are called back, if they are: it lists them.
        drop(load);
        match pushed {
            Ok(()) => {
                sent.deliver();
                Ok(())
            }
            Err(refusal) => Err(refused(item, refusal)),
        }
    })
}

/// Pops an item and decodes it.
pub(super) fn pop<T: DeserializeOwned + 'static>(
    handle: &Handle,
    mode: WaitMode,
) -> Result<T, PopError> {
    with_buffer(|buffer| {
        let taken = handle.take(buffer, mode);
        let taken = taken.map_err(|refusal| match refusal {
            Refusal::NotNow if mode == WaitMode::Try => PopError::Empty,
            Refusal::NotNow => PopError::TimedOut,
            Refusal::Closed => PopError::Closed,
            Refusal::Disconnected => PopError::Disconnected,
        })?;
        // The item is lost also if its `Deserialize` panics.
        let lost = Lost(handle);
        if let Taken::Payload(payload) = taken {
            let payload = payload.map_err(PopError::Share)?;
            payload.read(buffer).map_err(PopError::Share)?;
        }
        let item = wire::take(&mut buffer.as_slice());
        let item = item.map_err(|reason| PopError::Decode { reason })?;
        std::mem::forget(lost);
        Ok(item)
    })
}

/// The guard of an item that was taken: the item is lost, unless this is forgotten.
struct Lost<'a>(&'a Handle);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.lose();
    }
}
