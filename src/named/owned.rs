//! What the maker of a segment owes it: that its name goes away with the owner.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::cleanup;
use super::error::SharedMemoryError;
use super::record::{Entry, Record};
use crate::os::exit::{self, Turn};
use crate::os::fork::{self, PerProcess};
use crate::os::life::Life;
use crate::os::named::{self, FileId};

/// Segments of this process, for its end. The copies that a forked child has are none of its business.
static OWNED: PerProcess<Mutex<Vec<Arc<Owned>>>> = PerProcess::new(Mutex::new(Vec::new()));

/// A name that goes away with its owner.
#[derive(Debug)]
pub(super) struct Owned {
    segment: Entry,
    record: Entry,
    /// Of the process that made it.
    generation: u32,
    /// Removed, or to be kept.
    is_settled: AtomicBool,
}

impl Owned {
    /// Gives a segment its name, and this process the duty to take it away.
    pub(super) fn publish(
        file: &File,
        name: &str,
        failed: impl Fn(io::Error) -> SharedMemoryError,
    ) -> Result<Arc<Self>, SharedMemoryError> {
        // From here on forks are counted.
        let generation = fork::generation();
        let segment = Entry {
            name: name.to_owned(),
            file: FileId::of(&file.metadata().map_err(&failed)?),
        };
        let record = Record {
            owner: Life::own().map_err(&failed)?,
            segment: segment.clone(),
        };
        let record = record.write().map_err(&failed)?;
        // Killed here: a record of a file that is gone.
        if let Err(error) = named::link(file, name) {
            if let Err(error) = record.remove() {
                log::error!("the record of shared memory that was not made stays: {error}");
            }
            return Err(match error.kind() {
                ErrorKind::AlreadyExists => exists(name),
                _ => failed(error),
            });
        }
        let owned = Arc::new(Self {
            segment,
            record,
            generation,
            is_settled: AtomicBool::new(false),
        });
        exit::call_at_exit(Turn::SharedMemory, remove_all);
        OWNED.own().lock().push(owned.clone());
        Ok(owned)
    }

    /// Whether it is this process's to remove.
    pub(super) fn is_ours(&self) -> bool {
        self.generation == fork::generation() && !self.is_settled.load(Ordering::Relaxed)
    }

    /// Leaves the name to stay when the owner ends.
    pub(super) fn keep(&self) -> io::Result<()> {
        // Killed here: still a leftover, which cleanup removes.
        self.record.remove()?;
        self.settle();
        Ok(())
    }

    /// Takes the name away, in the process that made it and once. Failures go to the log: nobody waits for them.
    pub(super) fn end(&self) {
        if self.is_ours() && self.settle() {
            // In this order: killed in between, what is left is a record of a file that is gone.
            if let Err(error) = self.segment.remove().and_then(|_| self.record.remove()) {
                let name = &self.segment.name;
                log::error!("the shared memory {name:?} could not be removed: {error}");
            }
        }
    }

    /// Says whether this was the first call.
    fn settle(&self) -> bool {
        let first = !self.is_settled.swap(true, Ordering::Relaxed);
        if first {
            let mut owned = OWNED.own().lock();
            owned.retain(|other| !std::ptr::eq(&raw const **other, self));
        }
        first
    }
}

/// The name is taken; by whom?
pub(super) fn exists(name: &str) -> SharedMemoryError {
    SharedMemoryError::AlreadyExists {
        name: name.to_owned(),
        left_by: cleanup::left_by(name),
    }
}

/// At the end of the process: those whose handles are still alive, or were forgotten.
fn remove_all() {
    let owned = OWNED.own().lock().clone();
    for owned in owned {
        owned.end();
    }
}
