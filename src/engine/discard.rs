//! Results that no caller takes. Handles of shared objects may be in them, which count as in
//! transit until they are read. So the results are read after all, and dropped.

use serde::de::DeserializeOwned;

use crate::codec::{fixed_size, records_len};
use crate::future::later;
use crate::memory::{transit, wire};
use crate::os::fork;
use crate::panic;

/// The way to discard the results of a call that no caller takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Discard {
    by: Option<fn(&[u8])>,
    size: Option<usize>,
    /// [`fork::generation`] of the process that the results come to. Copies of it have nothing to
    /// discard.
    generation: u32,
}

impl Discard {
    /// Makes a discard for results of this type.
    pub(crate) fn of<R: DeserializeOwned + 'static>() -> Self {
        let size = fixed_size::<R>();
        Self {
            by: size.is_none().then_some(read_all::<R>),
            size,
            generation: fork::generation(),
        }
    }

    /// Returns the bytes of each result, if all have the same number of bytes.
    pub(crate) fn size(&self) -> Option<usize> {
        self.size
    }

    /// Discards results that no caller will take. They are read on the thread for callbacks:
    /// reading them may run code of the user, and the thread that calls this may hold locks.
    #[inline]
    pub(crate) fn discard(&self, results: Vec<u8>) {
        if let Some(by) = self.by
            && !results.is_empty()
            && transit::was_ever_sent()
            && self.generation == fork::generation()
        {
            later::call(Box::new(move || by(&results)));
        }
    }
}

fn read_all<R: DeserializeOwned + 'static>(mut results: &[u8]) {
    while let Some(len) = records_len(results, 1).filter(|_| !results.is_empty()) {
        let (mut result, rest) = results.split_at(len);
        results = rest;
        if let Err(caught) = panic::catch(|| drop(wire::take::<R>(&mut result))) {
            log::error!("a result that was not taken panicked: {}", caught.message);
        }
    }
}
