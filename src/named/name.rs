//! The names that a segment may have.

use super::error::{NameError, SharedMemoryError};

/// The first letters of the files in which this crate records the owner of a segment.
pub(super) const RESERVED: &str = ".manyhands-";

/// The longest name of a file, in bytes.
const LONGEST: usize = 255;

/// Checks a name, and returns it without the slash in front.
///
/// POSIX asks for a slash there, and so does the crate `shared_memory`; Python leaves it out. Both
/// mean the same file.
pub(super) fn checked(given: &str) -> Result<&str, SharedMemoryError> {
    let name = given.strip_prefix('/').unwrap_or(given);
    let problem = if name.is_empty() {
        NameError::Empty
    } else if name.contains('\0') {
        NameError::Nul
    } else if name.contains('/') {
        NameError::Slash
    } else if name == "." || name == ".." {
        NameError::Dots
    } else if name.len() > LONGEST {
        NameError::TooLong { bytes: name.len() }
    } else if name.starts_with(RESERVED) {
        NameError::Reserved
    } else {
        return Ok(name);
    };
    Err(SharedMemoryError::InvalidName {
        name: given.to_owned(),
        problem,
    })
}
