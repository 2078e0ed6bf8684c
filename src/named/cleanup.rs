//! The removal of what crashed owners have left.

use std::fs::TryLockError;
use std::io;

use super::error::SharedMemoryError;
use super::record::{self, Found};

/// Removes what owners that have ended left behind, and returns the names.
pub(super) fn run() -> Result<Vec<String>, SharedMemoryError> {
    let records = record::all().map_err(|error| SharedMemoryError::System {
        what: "could not list /dev/shm".into(),
        reason: error.to_string(),
    })?;
    let (mut removed, mut failed) = (Vec::new(), None);
    for found in records {
        let name = &found.record.segment.name;
        match remove(&found) {
            Ok(true) => removed.push(name.clone()),
            Ok(false) => {}
            Err(error) => {
                failed.get_or_insert((name.clone(), error.to_string()));
            }
        }
    }
    match failed {
        None => Ok(removed),
        Some((name, reason)) => Err(SharedMemoryError::CleanupFailed {
            name,
            reason,
            removed,
        }),
    }
}

/// Removes what one record is about, and returns whether there was a segment to remove.
fn remove(found: &Found) -> io::Result<bool> {
    if !found.record.owner.has_ended() {
        return Ok(false);
    }
    // Two processes may clean up at once. One could look at the segment; the other removes it, and
    // a third process makes a segment of the same name; then the first would remove that one. So
    // only the process with the lock goes on. The lock goes with the file.
    match found.file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if !found.entry.is_there()? {
        return Ok(false);
    }
    let was_there = found.record.segment.remove()?;
    // In this order: if this process is killed in between, it leaves a record of a file that is
    // gone.
    found.entry.remove()?;
    Ok(was_there)
}

/// Returns the pid of the owner that ended without removing the segment of this name.
pub(super) fn left_by(name: &str) -> Option<u32> {
    // A failure is ignored: the record only adds to an error message.
    let mut records = record::all().ok()?;
    let found = records.find(|found| {
        let segment = &found.record.segment;
        segment.name == name
            && segment.is_there().unwrap_or(false)
            && found.record.owner.has_ended()
    })?;
    Some(found.record.owner.pid)
}
