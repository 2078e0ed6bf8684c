//! What a single child says of its end: the panic that ended it, the error that its function has
//! returned, or why it could not begin.
//!
//! It is written into the child's lane before the child ends, whole, and valid by one store at the
//! end. The parent reads it when the child has ended with another exit code than 0.
//! What ends a child by a signal is told by [`crate::os::crash`].

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::raw::RawBytes;
use super::{ENDED_BYTES, HEADER_BYTES, Lane};
use crate::codec::exact;
use crate::os::fault;
use crate::os::fork::OwnPointer;
use crate::panic::Caught;

/// Bytes before the text: its length.
const WORDS: usize = 8;
/// The most bytes of a text.
const MOST: usize = ENDED_BYTES - WORDS;
/// The most bytes of an error's text or a panic's message.
const MOST_OF_MESSAGE: usize = 4 << 10;

/// What a child has said of its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    /// Its function panicked.
    Panicked(Caught),
    /// What it has also printed to standard error: its function returned an error, or could not
    /// run.
    Failed(String),
}

/// The lane of this process; null in processes that are no single children, and in copies of them.
static OWN: OwnPointer<Lane> = OwnPointer::null();

/// Held while the text is written: several threads may say something.
static WRITING: Mutex<()> = Mutex::new(());

/// Makes this process say in this lane how it ends.
pub(crate) fn set_own(lane: &Lane) {
    OWN.set(Box::into_raw(Box::new(lane.clone())));
}

/// Says how this process is about to end. What was said before is replaced. Does nothing in
/// processes that are no single children.
pub(crate) fn say(ended: Ended) {
    // SAFETY: null, or set by `set_own`, which leaks the lane.
    let Some(lane) = (unsafe { OWN.get().as_ref() }) else {
        return;
    };
    let _writing = WRITING.lock();
    lane.write_ended(&bytes(ended));
}

/// Returns the bytes to write, which fit: what is too long is cut.
fn bytes(mut ended: Ended) -> Vec<u8> {
    let (Ended::Panicked(Caught { message, .. }) | Ended::Failed(message)) = &mut ended;
    if message.len() > MOST_OF_MESSAGE {
        let mut end = MOST_OF_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str(" [cut]");
    }
    for _ in 0..3 {
        let mut bytes = Vec::new();
        // Strings and numbers always encode.
        if exact::to_vec_append(&mut bytes, &ended).is_ok() && bytes.len() <= MOST {
            return bytes;
        }
        // The stack has a bound of its own, so this is a path or an error of unusual length.
        if let Ended::Panicked(caught) = &mut ended
            && caught.backtrace.take().is_none()
        {
            caught.location = None;
        }
    }
    Vec::new()
}

impl Lane {
    /// Returns the word with the length of the text, and the start of the text. `None` in the lane
    /// of a worker.
    fn ended_at(&self) -> Option<(&AtomicU32, NonNull<u8>)> {
        if self.has_rings() {
            return None;
        }
        // SAFETY: within the mapping, which has `ENDED_BYTES` behind the header.
        let start = unsafe { self.memory.start().add(HEADER_BYTES) };
        // SAFETY: the same.
        let text = unsafe { start.add(WORDS) };
        // SAFETY: the word begins at a page, and lives as long as `self`; it is an atomic, for
        // which any value is valid.
        Some((unsafe { start.cast::<AtomicU32>().as_ref() }, text))
    }

    fn write_ended(&self, bytes: &[u8]) {
        let Some((len, text)) = self.ended_at() else {
            return;
        };
        len.store(0, Ordering::Release);
        fault::point();
        // SAFETY: `bytes` has at most `MOST` bytes, which lie within the mapping. One thread of one
        // process writes here at a time; the reader checks what it finds.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), text.as_ptr(), bytes.len()) };
        fault::point();
        len.store(bytes.len() as u32, Ordering::Release);
        fault::point();
    }

    /// Returns what the child has said of its end, if that makes sense. The child must have ended.
    pub(crate) fn ended(&self) -> Option<Ended> {
        let (len, text) = self.ended_at()?;
        let len = len.load(Ordering::Acquire) as usize;
        if len == 0 || len > MOST {
            return None;
        }
        let mut bytes = Vec::new();
        // SAFETY: within the mapping by the check, and readable as long as `self`.
        unsafe { RawBytes::new(text, len) }.append_to(&mut bytes);
        exact::from_slice(&bytes).ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::Message;
    use crate::os::fault::{Child, Fate};

    fn failed(text: &str) -> Ended {
        Ended::Failed(text.to_owned())
    }

    #[test]
    fn b138_what_a_child_says_of_its_end_is_whole_or_not_there_wherever_it_dies() {
        let mut read = Vec::new();
        for number in 0.. {
            let (lane, _fd) = Lane::new_child(false).unwrap();
            let child = Child::run(Fate::Killed, number, || {
                set_own(&lane);
                say(failed("no such index"));
                say(failed("no such file"));
            });
            let is_through = child.end();
            read.push(lane.ended());
            if is_through {
                break;
            }
        }
        let [one, other] = ["no such index", "no such file"].map(|text| Some(failed(text)));
        let nothing = None;
        // At the points: cleared, copied, said; and the same once more.
        assert_eq!(
            read,
            [
                nothing.clone(),
                nothing.clone(),
                one,
                nothing.clone(),
                nothing,
                other.clone(),
                other
            ]
        );
    }

    #[test]
    fn b138_what_is_too_long_is_cut() {
        let long = "ä".repeat(MOST);
        let (lane, _fd) = Lane::new_child(true).unwrap();
        lane.write_ended(&bytes(failed(&long)));
        let Some(Ended::Failed(cut)) = lane.ended() else {
            panic!("it is there");
        };
        assert!(cut.ends_with("ä [cut]") && long.starts_with(cut.trim_end_matches(" [cut]")));
        let caught = Caught {
            message: "odd".to_owned(),
            backtrace: Some(Message::from(long.as_str())),
            ..Caught::default()
        };
        lane.write_ended(&bytes(Ended::Panicked(caught.clone())));
        let without = Caught {
            backtrace: None,
            ..caught
        };
        assert_eq!(lane.ended(), Some(Ended::Panicked(without)));
    }

    #[test]
    fn b138_noise_is_no_end() {
        let (lane, _fd) = Lane::new_child(false).unwrap();
        let (len, text) = lane.ended_at().unwrap();
        let mut state = 7_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 24
        };
        for _ in 0..2_000 {
            for at in 0..64 {
                // SAFETY: within the room for the text.
                let byte = unsafe { text.add(at) };
                // SAFETY: as above, and no other thread has this lane.
                unsafe { byte.write(random() as u8) };
            }
            len.store(random() as u32 % 128, Ordering::Release);
            // It is refused, or read as what it happens to say.
            let _ = lane.ended();
            len.store(random() as u32 | 1 << 20, Ordering::Release);
            assert_eq!(lane.ended(), None);
        }
    }
}
