//! The duty of a segment's maker: the name is removed when the owner ends.

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

/// The segments of this process, to be removed when it ends. A forked child has copies, which it
/// leaves alone.
static OWNED: PerProcess<Mutex<Vec<Arc<Owned>>>> = PerProcess::new(Mutex::new(Vec::new()));

/// A name that is removed when its owner ends.
#[derive(Debug)]
pub(super) struct Owned {
    segment: Entry,
    record: Entry,
    /// The generation of the process that made the segment.
    generation: u32,
    /// Whether the name has been removed, or is to stay.
    is_settled: AtomicBool,
}

impl Owned {
    /// Gives a segment its name, and this process the duty to remove it.
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
        // If the process is killed here, it leaves a record of a file that is gone.
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

    /// Returns whether the name is this process's to remove.
    pub(super) fn is_ours(&self) -> bool {
        self.generation == fork::generation() && !self.is_settled.load(Ordering::Relaxed)
    }

    /// Lets the name stay when the owner ends.
    pub(super) fn keep(&self) -> io::Result<()> {
        // If the process is killed before the record is removed, the segment is still a leftover,
        // which cleanup removes.
        self.record.remove()?;
        self.settle();
        Ok(())
    }

    /// Removes the name, only in the process that made it and only once. Failures go to the log: no
    /// caller waits for them.
    pub(super) fn end(&self) {
        if self.is_ours() && self.settle() {
            // In this order: if the process is killed in between, it leaves a record of a file that
            // is gone.
            if let Err(error) = self.segment.remove().and_then(|_| self.record.remove()) {
                let name = &self.segment.name;
                log::error!("the shared memory {name:?} could not be removed: {error}");
            }
        }
    }

    /// Marks the name as settled, and returns whether this was the first call.
    fn settle(&self) -> bool {
        let first = !self.is_settled.swap(true, Ordering::Relaxed);
        if first {
            let mut owned = OWNED.own().lock();
            owned.retain(|other| !std::ptr::eq(&raw const **other, self));
        }
        first
    }
}

/// Makes the error for a name that is taken, with the process that left it, if there is one.
pub(super) fn exists(name: &str) -> SharedMemoryError {
    SharedMemoryError::AlreadyExists {
        name: name.to_owned(),
        left_by: cleanup::left_by(name),
    }
}

/// Removes, at the end of the process, the names whose handles are still alive or were forgotten.
fn remove_all() {
    let owned = OWNED.own().lock().clone();
    for owned in owned {
        owned.end();
    }
}
