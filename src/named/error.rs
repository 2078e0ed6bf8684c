//! What can go wrong with named shared memory.

use std::borrow::Cow;
use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::os::refusal;

/// Why a named segment could not be made, opened, used or removed.
///
/// # Examples
///
/// ```
/// use manyhands::shm::{SharedMemory, SharedMemoryError};
///
/// let error = SharedMemory::open("manyhands-example-that-is-not-there").unwrap_err();
/// let SharedMemoryError::NotFound { name, .. } = &error else {
///     panic!("{error}")
/// };
/// assert_eq!(name, "manyhands-example-that-is-not-there");
/// assert!(error.to_string().contains("must run first"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SharedMemoryError {
    /// No segment can have this name.
    #[error("{name:?} cannot be the name of shared memory: {problem}")]
    #[non_exhaustive]
    InvalidName {
        /// The name as it was given.
        name: String,
        /// What is wrong with it.
        problem: NameError,
    },
    /// The caller asked for a segment of no bytes.
    #[error("the shared memory {name:?} cannot have 0 bytes: ask for at least 1")]
    #[non_exhaustive]
    ZeroBytes {
        /// Its name.
        name: String,
    },
    /// The caller asked for a segment that is larger than a file of this process may be.
    #[error(
        "the shared memory {name:?} cannot have {bytes} bytes: this process may make files of at most {limit} bytes \
         (RLIMIT_FSIZE, `ulimit -f`)"
    )]
    #[non_exhaustive]
    TooLarge {
        /// Its name.
        name: String,
        /// How many bytes were asked for.
        bytes: usize,
        /// The limit, in bytes.
        limit: u64,
    },
    /// There is not enough room in `/dev/shm`. Nothing was made.
    #[error(
        "there is no room in /dev/shm for the shared memory {name:?} of {bytes} bytes{}: remove what is not needed \
         there (SharedMemory::cleanup() removes what crashed programs have left), or have it made larger (in \
         containers: --shm-size)",
        note_of(*.free)
    )]
    #[non_exhaustive]
    NoSpace {
        /// Its name.
        name: String,
        /// How many bytes were asked for.
        bytes: usize,
        /// How many were free, if the system said so.
        free: Option<u64>,
    },
    /// A process has made a segment of this name before.
    #[error("shared memory with the name {name:?} exists already{}", advice(*.left_by))]
    #[non_exhaustive]
    AlreadyExists {
        /// The name.
        name: String,
        /// The pid of the process that made it by this crate and ended without removing it. Then
        /// [`cleanup`](crate::shm::SharedMemory::cleanup) removes it.
        left_by: Option<u32>,
    },
    /// There is no segment of this name.
    #[error(
        "there is no shared memory with the name {name:?}: the program that makes it must run first, and it is gone \
         when that has ended"
    )]
    #[non_exhaustive]
    NotFound {
        /// The name.
        name: String,
    },
    /// The segment has no bytes (yet). This crate never shows such a segment; other programs do for
    /// a moment.
    #[error(
        "the shared memory {name:?} has 0 bytes: the program that makes it has not given it its size yet. Try again \
         shortly; if it stays so, that program has failed, and SharedMemory::unlink removes it"
    )]
    #[non_exhaustive]
    Empty {
        /// Its name.
        name: String,
    },
    /// The segment belongs to another user.
    #[error(
        "the system does not let this user {what} the shared memory {name:?}: it belongs to another user. Run both \
         programs as the same user, or choose another name"
    )]
    #[non_exhaustive]
    PermissionDenied {
        /// Its name.
        name: String,
        /// What was asked for.
        what: Cow<'static, str>,
    },
    /// The name in `/dev/shm` belongs to something else: a directory, a symbolic link or the like.
    #[error(
        "what has the name {name:?} in /dev/shm is no shared memory but something else, such as a directory or a \
         symbolic link: choose another name"
    )]
    #[non_exhaustive]
    NotASegment {
        /// The name.
        name: String,
    },
    /// The caller asked for bytes outside the segment.
    #[error(
        "{len} bytes from offset {offset} on do not lie within the {size} bytes of the shared memory"
    )]
    #[non_exhaustive]
    OutOfRange {
        /// The first byte that was asked for, from 0.
        offset: usize,
        /// How many bytes were asked for.
        len: usize,
        /// How many bytes the segment has.
        size: usize,
    },
    /// The caller asked for an atomic at an offset where it cannot lie.
    #[error(
        "offset {offset} is no multiple of {align}, as it must be for an atomic of {align} bytes"
    )]
    #[non_exhaustive]
    Misaligned {
        /// The offset that was asked for.
        offset: usize,
        /// What it must be a multiple of.
        align: usize,
    },
    /// Only the owner can decide that the segment stays: the handle made by `create`, in the
    /// process that called it.
    #[error(
        "the shared memory {name:?} is not this handle's to keep: it was opened, or made in a process of which this \
         one is a forked child. Call persist() on the handle that create() gave, where it gave it"
    )]
    #[non_exhaustive]
    NotOwner {
        /// Its name.
        name: String,
    },
    /// Some of what crashed programs left could not be removed; the rest was.
    #[error(
        "the shared memory {name:?} that a crashed program left could not be removed: {reason} (removed: {})",
        .removed.len()
    )]
    #[non_exhaustive]
    CleanupFailed {
        /// The first segment that could not be removed.
        name: String,
        /// What the system said.
        reason: String,
        /// The segments that were removed.
        removed: Vec<String>,
    },
    /// The system refused something else.
    #[error("{what}: {reason}")]
    #[non_exhaustive]
    System {
        /// What was asked of the system.
        what: Cow<'static, str>,
        /// What it said.
        reason: String,
    },
}

/// Makes an error of the kind that fits best. The [`SharedMemoryError`] is in it
/// ([`get_ref`](io::Error::get_ref)).
///
/// # Examples
///
/// ```
/// use manyhands::shm::SharedMemory;
/// use std::io;
///
/// fn size(name: &str) -> io::Result<usize> {
///     Ok(SharedMemory::open(name)?.len())
/// }
/// let error = size("manyhands-example-that-is-not-there").unwrap_err();
/// assert_eq!(error.kind(), io::ErrorKind::NotFound);
/// ```
impl From<SharedMemoryError> for io::Error {
    fn from(error: SharedMemoryError) -> Self {
        use io::ErrorKind;
        let kind = match &error {
            SharedMemoryError::InvalidName { .. }
            | SharedMemoryError::ZeroBytes { .. }
            | SharedMemoryError::NotASegment { .. }
            | SharedMemoryError::OutOfRange { .. }
            | SharedMemoryError::Misaligned { .. } => ErrorKind::InvalidInput,
            SharedMemoryError::TooLarge { .. } => ErrorKind::FileTooLarge,
            SharedMemoryError::NoSpace { .. } => ErrorKind::StorageFull,
            SharedMemoryError::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            SharedMemoryError::NotFound { .. } => ErrorKind::NotFound,
            SharedMemoryError::Empty { .. } => ErrorKind::UnexpectedEof,
            SharedMemoryError::PermissionDenied { .. } | SharedMemoryError::NotOwner { .. } => {
                ErrorKind::PermissionDenied
            }
            SharedMemoryError::CleanupFailed { .. } | SharedMemoryError::System { .. } => {
                ErrorKind::Other
            }
        };
        Self::new(kind, error)
    }
}

/// What is wrong with the name of a segment.
///
/// # Examples
///
/// ```
/// use manyhands::shm::{NameError, SharedMemory, SharedMemoryError};
///
/// let error = SharedMemory::create("shop/stock", 64).unwrap_err();
/// assert!(matches!(
///     error,
///     SharedMemoryError::InvalidName {
///         problem: NameError::Slash,
///         ..
///     }
/// ));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty, or has nothing after the slash.
    #[error("it is empty. Give it at least one letter")]
    Empty,
    /// The name contains a NUL, which ends names in C.
    #[error("it contains a NUL character. Leave that out")]
    Nul,
    /// The name contains a slash that is not its first character: segments lie in no folders.
    #[error(
        "it contains a slash that is not the first character. Use another character, such as a dot"
    )]
    Slash,
    /// The name is `.` or `..`, which are folders.
    #[error("it is the name of a folder. Add a letter")]
    Dots,
    /// The name is longer than names of files can be.
    #[error("it is {bytes} bytes long, and at most 255 are possible. Shorten it")]
    #[non_exhaustive]
    TooLong {
        /// The length of the name in bytes, without a slash in front.
        bytes: usize,
    },
    /// The name begins with `.manyhands-`, as this crate's own files do.
    #[error(
        "names that begin with .manyhands- are kept for this crate's own files. Begin it otherwise"
    )]
    Reserved,
}

impl SharedMemoryError {
    /// Makes the error for a request that the system refused for a reason of its own.
    pub(super) fn system(what: &'static str, name: &str, error: &io::Error) -> Self {
        Self::System {
            what: format!("could not {what} the shared memory {name:?}").into(),
            reason: error.to_string(),
        }
    }

    /// Makes the error for a request about the file of this name that the system refused.
    pub(super) fn refused(what: &'static str, name: &str, error: &io::Error) -> Self {
        let code = refusal::code(error);
        let name = name.to_owned();
        match code {
            Some(Errno::ENOENT) => Self::NotFound { name },
            Some(Errno::EACCES | Errno::EPERM) => Self::PermissionDenied {
                name,
                what: what.into(),
            },
            // The C library reports a folder as an invalid name (EINVAL); all names are valid here.
            Some(Errno::ELOOP | Errno::EISDIR | Errno::EINVAL | Errno::ENXIO) => {
                Self::NotASegment { name }
            }
            _ => Self::system(what, &name, error),
        }
    }
}

fn note_of(free: Option<u64>) -> String {
    free.map_or_else(String::new, |free| format!(" ({free} are free)"))
}

fn advice(left_by: Option<u32>) -> String {
    match left_by {
        Some(pid) => format!(
            ": process {pid} made it and ended without removing it. SharedMemory::cleanup() removes it"
        ),
        None => ": open it, choose another name, or, if no program uses it any more, remove it by SharedMemory::unlink"
            .to_owned(),
    }
}
