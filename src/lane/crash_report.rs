//! What a worker leaves behind in words: the panic that ended it, or why it cannot begin.
//!
//! A worker built with `panic = "abort"` cannot catch a panic. Only the panic hook runs before the
//! abort, and it writes message and place here. The parent reads them when it finds the worker dead
//! of SIGABRT, and they are the error of the task. With `panic = "unwind"` a panic ends the worker
//! only if it comes while another one unwinds, or in code that must not unwind. So the panics of a
//! task are written down with the item that they belong to, and say more of an abort at that item.
//! In every build a worker that cannot begin, because its initialiser failed or the system refused
//! something, writes down why.
//!
//! What ends a worker by a signal is written down beside this, by [`crate::os::crash`].

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::raw::RawBytes;
use super::{Header, Lane, Progress};
use crate::codec::exact;
use crate::os::crash;
use crate::os::fault;
use crate::os::fork::OwnPointer;
use crate::panic::{Caught, Report, report_by};

pub(super) const TEXT_BYTES: usize = 2_048;

/// Part of the lane's header.
#[repr(C, align(128))]
pub(crate) struct CrashReport {
    /// The number of bytes of `text` that are written; 0 for none. Set once, after the text.
    len: AtomicU32,
    /// Whether the text is final: nothing is written over it.
    is_final: AtomicU32,
    /// The worker's progress at the panic that the text is about.
    progress: AtomicU64,
    text: UnsafeCell<[u8; TEXT_BYTES]>,
}

/// The header of this process's lane; null in processes that are not workers, and in copies
/// of workers.
static OWN: OwnPointer<Header> = OwnPointer::null();

/// Makes this process write its crash report, and what ends it by a signal, into the lane, which it
/// keeps mapped from now on.
pub(crate) fn set_own(lane: &Lane) {
    let header = ptr::from_ref(lane.header());
    std::mem::forget(lane.clone());
    OWN.set(header.cast_mut());
    // The worker can do without: its death by a signal is told without the address then.
    if let Err(error) = crash::write_down(lane.header().crash_record()) {
        log::debug!("crashes of this process are not written down: {error}");
    }
    report_by(Report {
        is_wanted: wanted,
        write,
    });
}

/// Returns whether a panic on any thread of this process must be written down, and not only those
/// in tasks.
fn wanted() -> bool {
    cfg!(panic = "abort") && !OWN.get().is_null()
}

/// Writes a panic down, if this process is a worker. If the worker will die of it, only the first
/// panic is kept. Otherwise it is added to those of the same item, as far as there is room.
fn write(caught: &Caught) {
    let Some(header) = own() else {
        return;
    };
    if wanted() {
        leave(header, caught, true);
        return;
    }
    let before = header.crash_report.read_words(header.progress());
    let message = match before {
        Some(before) if before.len() > TEXT_BYTES / 4 => return,
        Some(before) => format!("{before}; then it panicked: {caught}"),
        None => format!("it panicked: {caught}"),
    };
    leave_words(header, message);
}

/// Writes down why this worker is about to abort, for a sentence that goes on after "it aborted
/// after".
pub(super) fn write_before_abort(words: &str) {
    if let Some(header) = own() {
        leave_words(header, words.to_owned());
    }
}

fn leave_words(header: &Header, message: String) {
    let words = Caught {
        message,
        ..Caught::default()
    };
    leave(header, &words, false);
}

fn own() -> Option<&'static Header> {
    // SAFETY: null, or set by `set_own`, which keeps the mapping for good.
    unsafe { OWN.get().as_ref() }
}

/// Writes down why this worker cannot begin.
pub(crate) fn write_reason(reason: String) {
    let reason = Caught {
        message: reason,
        ..Caught::default()
    };
    if let Some(header) = own() {
        leave(header, &reason, true);
    }
}

fn leave(header: &Header, caught: &Caught, is_final: bool) {
    let words = &header.crash_report;
    // A message that is too long is not lost, but cut at a character's end. The rest of the record
    // is the file's path.
    let mut caught = caught.clone();
    let mut end = caught.message.len().min(TEXT_BYTES / 2);
    while !caught.message.is_char_boundary(end) {
        end -= 1;
    }
    caught.message.truncate(end);
    // There is no room for it.
    caught.backtrace = None;
    let mut text = Vec::new();
    if exact::to_vec_append(&mut text, &caught).is_err() {
        return;
    }
    if text.len() <= TEXT_BYTES && words.is_final.load(Ordering::Relaxed) == 0 {
        words.len.store(0, Ordering::Release);
        words.is_final.store(u32::from(is_final), Ordering::Relaxed);
        words
            .progress
            .store(header.progress().to_word(), Ordering::Relaxed);
        // SAFETY: within the array by the check. Two threads that panic at the same time could mix
        // their texts; the reader checks what it finds.
        unsafe {
            ptr::copy_nonoverlapping(text.as_ptr(), words.text.get().cast::<u8>(), text.len());
        }
        fault::point();
        words.len.store(text.len() as u32, Ordering::Release);
        fault::point();
    }
}

impl CrashReport {
    /// Writes a report that makes no sense.
    #[cfg(test)]
    pub(super) fn spoil(&self, len: u32, noise: &[u8]) {
        let len_of_noise = noise.len().min(TEXT_BYTES);
        // SAFETY: within the array, and no other thread has this lane.
        unsafe {
            ptr::copy_nonoverlapping(noise.as_ptr(), self.text.get().cast::<u8>(), len_of_noise);
        }
        self.is_final.store(1, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
    }

    /// Returns the report that the worker left, if it makes sense.
    pub(crate) fn read(&self) -> Option<Caught> {
        (self.is_final.load(Ordering::Relaxed) != 0)
            .then(|| self.read_text())
            .flatten()
    }

    /// Returns what the worker has said of the item at which it was, if that makes sense: its
    /// panics, or why it aborted.
    pub(super) fn read_words(&self, at: Progress) -> Option<String> {
        let is_it = self.progress.load(Ordering::Relaxed) == at.to_word()
            && self.is_final.load(Ordering::Relaxed) == 0;
        is_it
            .then(|| self.read_text())?
            .map(|caught| caught.message)
    }

    fn read_text(&self) -> Option<Caught> {
        let len = self.len.load(Ordering::Acquire) as usize;
        if len == 0 || len > TEXT_BYTES {
            return None;
        }
        // SAFETY: the array is initialised memory that lives as long as `self`; it is only copied
        // from.
        let all: &[u8] = unsafe { std::slice::from_raw_parts(self.text.get().cast::<u8>(), len) };
        let mut text = Vec::new();
        RawBytes::from(all).append_to(&mut text);
        exact::from_slice(&text).ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::os::fault::{Child, Fate};

    #[test]
    fn last_words_are_whole_or_none_wherever_a_worker_dies() {
        let mut read = Vec::new();
        for number in 0.. {
            let lane = Lane::new().unwrap();
            let child = Child::run(Fate::Killed, number, || {
                set_own(&lane);
                write_reason("no such core".to_owned());
                // The first report stays.
                write_reason("another".to_owned());
            });
            let is_through = child.end();
            let words = lane.header().crash_report().read();
            read.push(words.map(|caught| caught.message));
            if is_through {
                break;
            }
        }
        let whole = Some("no such core".to_owned());
        assert_eq!(read, [None, whole.clone(), whole]);
    }

    #[test]
    fn a_message_too_long_is_cut_between_two_characters() {
        for prefix in ["", "a"] {
            let message = format!("{prefix}{}", "ä".repeat(TEXT_BYTES));
            let lane = Lane::new().unwrap();
            let child = Child::run(Fate::Killed, i64::MAX, || {
                set_own(&lane);
                write_reason(message.clone());
            });
            assert!(child.end(), "it has died of it");
            let read = lane.header().crash_report().read().unwrap().message;
            assert!(message.starts_with(&read));
            let most = TEXT_BYTES / 2;
            assert!((most - 1..=most).contains(&read.len()), "{}", read.len());
        }
    }
}
