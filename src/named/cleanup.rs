//! What crashed owners left, and its end.

use std::fs::TryLockError;
use std::io;

use super::error::SharedMemoryError;
use super::record::{self, Found};

/// Removes what owners that have ended left behind, and says what it was called.
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

/// Whether there was a segment to remove.
fn remove(found: &Found) -> io::Result<bool> {
    if !found.record.owner.has_ended() {
        return Ok(false);
    }
    // Of two that clean up at once, one could look at the segment, and remove another that was made in its place after
    // the other one removed it. So one of them has the lock, which goes with the file.
    match found.file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if !found.entry.is_there()? {
        return Ok(false);
    }
    let was_there = found.record.segment.remove()?;
    // In this order: killed in between, what is left is a record of a file that is gone.
    found.entry.remove()?;
    Ok(was_there)
}

/// The pid of the owner that ended without removing the segment of this name.
pub(super) fn left_by(name: &str) -> Option<u32> {
    // Only to say more in an error.
    let mut records = record::all().ok()?;
    let found = records.find(|found| {
        let segment = &found.record.segment;
        segment.name == name
            && segment.is_there().unwrap_or(false)
            && found.record.owner.has_ended()
    })?;
    Some(found.record.owner.pid)
}
