//! Named shared memory, for programs that are not related.
//!
//! For each segment there are two files in `/dev/shm`: the segment, which holds its users' bytes
//! and nothing else, and beside it, as long as it has an owner, a [`record`] of who the owner is.
//! [`owned`] removes both when the owner ends, [`cleanup`] removes them if the owner could not.
//! `docs/design/0014-named-memory.md` goes through the steps between which the owner may be killed.

mod access;
mod cleanup;
mod error;
mod name;
mod owned;
mod record;

pub use error::{NameError, SharedMemoryError};

use std::num::NonZeroUsize;
use std::sync::Arc;

use nix::errno::Errno;

use crate::os::mapping::Mapping;
use crate::os::{named, refusal};
use owned::Owned;

/// Memory with a name, which programs that are not related share. The other program may also be one
/// in Python (`multiprocessing.shared_memory.SharedMemory`), or one that uses the crate
/// `shared_memory`.
///
/// One program [creates](Self::create) it and is its owner, others [open](Self::open) it. It holds
/// the bytes that they write and nothing else, zeros at first. Every write is visible to all of
/// them at once. They have to agree on which of them writes when, for instance by
/// [atomics](Self::atomic_u32) in it.
///
/// # How it ends
///
/// The name is removed when the owner drops its handle, returns from `main` or calls `exit`.
/// Programs that have the memory open keep it until they drop their handles. The handle of an
/// opener removes nothing, nor does the copy that a forked child has of the owner's handle. The
/// owner itself removes nothing if the name belongs to another segment by then.
///
/// An owner that crashes or is killed cannot remove the name. [`cleanup`](Self::cleanup) does that,
/// in any later process of the same user, for instance before it calls [`create`](Self::create).
/// [`persist`](Self::persist) is for segments that are to stay.
///
/// # Programs in Python
///
/// Python's `multiprocessing.shared_memory` has a *resource tracker*. It counts a segment that a
/// program has only opened as that program's own: when the program exits, the tracker removes the
/// name, though the owner still uses it, and prints a warning. Programs that have the memory open
/// keep it; programs that come later do not find it. From Python 3.13 on, a program that opens a
/// segment prevents this by `track=False`. Before that it takes the segment off the tracker's list:
///
/// ```python
/// from multiprocessing import resource_tracker, shared_memory
///
/// stock = shared_memory.SharedMemory("stock")
/// resource_tracker.unregister(stock._name, "shared_memory")
/// ```
///
/// # Who may do what
///
/// Only processes of the user who made the segment (and root) may open it. Among these there is no
/// protection: each may write at any time, which is why there are no safe slices here. Each may
/// also shrink it, which this crate never does: from then on, an access to bytes behind its new end
/// ends a process by SIGBUS. The same happens on a write to a segment that *another* library made
/// without reserving its memory, when `/dev/shm` is full. Segments made by this crate are reserved
/// in full.
///
/// # Names
///
/// A name has at most 255 bytes, without slashes. One slash in front is allowed and makes no
/// difference: `"stock"` and `"/stock"` are the same segment, the file `/dev/shm/stock`. Python's
/// names have no slash, those of the crate `shared_memory` (`os_id`) have one.
///
/// # Examples
///
/// ```
/// use manyhands::shm::SharedMemory;
/// use std::sync::atomic::Ordering;
///
/// let name = format!("manyhands-example-stock-{}", std::process::id());
/// let ours = SharedMemory::create(&name, 4096)?;
///
/// // In another program:
/// let theirs = SharedMemory::open(&name)?;
/// assert_eq!(theirs.len(), 4096);
/// theirs.write_at(8, b"forty-two")?;
/// theirs.atomic_u32(0)?.store(9, Ordering::Release);
///
/// // And in ours again:
/// let len = ours.atomic_u32(0)?.load(Ordering::Acquire);
/// let mut text = vec![0; len as usize];
/// ours.read_at(8, &mut text)?;
/// assert_eq!(text, b"forty-two");
/// # Ok::<(), manyhands::shm::SharedMemoryError>(())
/// ```
#[derive(Debug)]
pub struct SharedMemory {
    name: String,
    mapping: Mapping,
    owned: Option<Arc<Owned>>,
}

impl SharedMemory {
    /// Makes a segment of `bytes` zeros, which this handle then owns.
    ///
    /// Its memory is reserved at once, so a full `/dev/shm` is an error here and causes no trouble
    /// later. Other programs see the segment when it is ready, or not at all.
    ///
    /// # Errors
    ///
    /// - [`InvalidName`](SharedMemoryError::InvalidName),
    ///   [`ZeroBytes`](SharedMemoryError::ZeroBytes), [`TooLarge`](SharedMemoryError::TooLarge):
    ///   such a segment is not possible.
    /// - [`AlreadyExists`](SharedMemoryError::AlreadyExists): the name is taken. If a crashed owner
    ///   left it, the error says so. This call does not take it over by itself: other programs may
    ///   still work with what is in it.
    /// - [`NoSpace`](SharedMemoryError::NoSpace): `/dev/shm` is full. Nothing was made.
    /// - [`System`](SharedMemoryError::System): the system refused something else, such as memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::shm::{SharedMemory, SharedMemoryError};
    ///
    /// let name = format!("manyhands-example-create-{}", std::process::id());
    /// let memory = SharedMemory::create(&name, 100)?;
    /// let again = SharedMemory::create(&name, 100).unwrap_err();
    /// assert!(matches!(
    ///     again,
    ///     SharedMemoryError::AlreadyExists { left_by: None, .. }
    /// ));
    /// drop(memory);
    /// SharedMemory::create(&name, 100)?;
    /// # Ok::<(), SharedMemoryError>(())
    /// ```
    pub fn create(name: &str, bytes: usize) -> Result<Self, SharedMemoryError> {
        let name = name::checked(name)?.to_owned();
        let Some(len) = NonZeroUsize::new(bytes) else {
            return Err(SharedMemoryError::ZeroBytes { name });
        };
        let limit = named::file_size_limit();
        if bytes as u64 > limit {
            return Err(SharedMemoryError::TooLarge { name, bytes, limit });
        }
        // Whether the name is free is decided only when the segment gets it; this check spares the
        // work before that.
        if named::status(&name).is_ok() {
            return Err(owned::exists(&name));
        }
        let no_space = |free| SharedMemoryError::NoSpace {
            name: name.clone(),
            bytes,
            free,
        };
        // If the size cannot fit, there is no need to fill the free room first.
        if let Some(free) = named::free().filter(|free| (bytes as u64) > *free) {
            return Err(no_space(Some(free)));
        }
        let failed = |error: std::io::Error| match refusal::code(&error) {
            Some(Errno::ENOSPC) => no_space(named::free()),
            _ => SharedMemoryError::system("make", &name, &error),
        };
        let file = named::nameless().map_err(failed)?;
        named::reserve(&file, len).map_err(failed)?;
        let mapping = Mapping::of("memory with a name", &file, len).map_err(failed)?;
        // If the process is killed before this, nothing is left.
        let owned = Some(Owned::publish(&file, &name, failed)?);
        Ok(Self {
            name,
            mapping,
            owned,
        })
    }

    /// Opens a segment that another program has made, by this crate or otherwise, in the size it
    /// has.
    ///
    /// # Errors
    ///
    /// - [`InvalidName`](SharedMemoryError::InvalidName): no segment can have this name.
    /// - [`NotFound`](SharedMemoryError::NotFound): there is none.
    /// - [`Empty`](SharedMemoryError::Empty): it has no bytes; its maker (not this crate) has not
    ///   given it a size yet.
    /// - [`PermissionDenied`](SharedMemoryError::PermissionDenied): it belongs to another user.
    /// - [`NotASegment`](SharedMemoryError::NotASegment): something else has that name.
    /// - [`System`](SharedMemoryError::System): the system refused something else.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::shm::SharedMemory;
    ///
    /// // A program in any language makes one, as here by hand:
    /// let name = format!("manyhands-example-open-{}", std::process::id());
    /// std::fs::write(format!("/dev/shm/{name}"), b"sixteen bytes...")?;
    ///
    /// let memory = SharedMemory::open(&name)?;
    /// assert_eq!(memory.len(), 16);
    /// SharedMemory::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(name: &str) -> Result<Self, SharedMemoryError> {
        let name = name::checked(name)?.to_owned();
        let failed = |error| SharedMemoryError::refused("open", &name, &error);
        let file = named::open(&name).map_err(failed)?;
        let status = file.metadata().map_err(failed)?;
        if !status.is_file() {
            return Err(SharedMemoryError::NotASegment { name });
        }
        // Nothing larger than a usize can be mapped; the kernel refuses that itself.
        let size = usize::try_from(status.len()).unwrap_or(usize::MAX);
        let Some(len) = NonZeroUsize::new(size) else {
            return Err(SharedMemoryError::Empty { name });
        };
        let mapping = Mapping::of("memory with a name", &file, len).map_err(failed)?;
        Ok(Self {
            name,
            mapping,
            owned: None,
        })
    }

    /// Removes a name, whichever process made the segment. Programs that have it open keep it; the
    /// name is free at once.
    ///
    /// # Errors
    ///
    /// - [`InvalidName`](SharedMemoryError::InvalidName): no segment can have this name.
    /// - [`NotFound`](SharedMemoryError::NotFound): there is none.
    /// - [`PermissionDenied`](SharedMemoryError::PermissionDenied): it belongs to another user.
    /// - [`NotASegment`](SharedMemoryError::NotASegment): something else has that name. It stays.
    /// - [`System`](SharedMemoryError::System): the system refused something else.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::shm::{SharedMemory, SharedMemoryError};
    ///
    /// let name = format!("manyhands-example-unlink-{}", std::process::id());
    /// let memory = SharedMemory::create(&name, 100)?;
    /// SharedMemory::unlink(&name)?;
    /// assert!(matches!(
    ///     SharedMemory::open(&name),
    ///     Err(SharedMemoryError::NotFound { .. })
    /// ));
    /// memory.write_at(0, b"still here")?;
    /// # Ok::<(), SharedMemoryError>(())
    /// ```
    pub fn unlink(name: &str) -> Result<(), SharedMemoryError> {
        let name = name::checked(name)?;
        let failed = |error| SharedMemoryError::refused("remove", name, &error);
        if !named::status(name).map_err(failed)?.is_file() {
            return Err(SharedMemoryError::NotASegment {
                name: name.to_owned(),
            });
        }
        named::unlink(name).map_err(failed)
    }

    /// Removes the segments of this user whose owners crashed or were killed, and returns their
    /// names.
    ///
    /// A segment is removed only if three things are true. This crate made it. Its owner has ended;
    /// pid and start time are compared, so another process that got the same pid does not count.
    /// And the name still belongs to that same segment. Segments that were to [stay](Self::persist)
    /// are left alone. So are segments that were made in another container, whose processes cannot
    /// be seen from here.
    ///
    /// Programs that still have such a segment open keep it; its name is free.
    ///
    /// # Errors
    ///
    /// - [`CleanupFailed`](SharedMemoryError::CleanupFailed): a segment could not be removed. The
    ///   error lists those that were.
    /// - [`System`](SharedMemoryError::System): `/dev/shm` could not be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::shm::SharedMemory;
    ///
    /// for name in SharedMemory::cleanup()? {
    ///     eprintln!("removed {name}, which a crashed program had left");
    /// }
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn cleanup() -> Result<Vec<String>, SharedMemoryError> {
        cleanup::run()
    }

    /// Lets the segment outlive its owner: it stays until a process [unlinks](Self::unlink) it, or
    /// the machine is restarted. [`cleanup`](Self::cleanup) leaves it alone.
    ///
    /// # Errors
    ///
    /// - [`NotOwner`](SharedMemoryError::NotOwner): this handle does not own the segment, or not
    ///   any more.
    /// - [`System`](SharedMemoryError::System): the record that marks it as this process's could
    ///   not be removed. It is still owned.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::shm::SharedMemory;
    ///
    /// let name = format!("manyhands-example-persist-{}", std::process::id());
    /// let memory = SharedMemory::create(&name, 100)?;
    /// memory.persist()?;
    /// drop(memory);
    /// assert_eq!(SharedMemory::open(&name)?.len(), 100);
    /// SharedMemory::unlink(&name)?;
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn persist(&self) -> Result<(), SharedMemoryError> {
        match self.owned.as_ref().filter(|owned| owned.is_ours()) {
            Some(owned) => owned
                .keep()
                .map_err(|error| SharedMemoryError::system("keep", &self.name, &error)),
            None => Err(SharedMemoryError::NotOwner {
                name: self.name.clone(),
            }),
        }
    }

    /// Returns the name, without a slash in front.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-name-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&format!("/{name}"), 100)?;
    /// assert_eq!(memory.name(), name);
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the size in bytes: what the maker asked for, or what the segment had when it was
    /// opened. Never 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-len-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 100)?;
    /// assert_eq!(memory.len(), 100);
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Returns whether the name is removed together with this handle. That is so for the handle
    /// that [`create`](Self::create) returned, in the process that called it, unless it was told to
    /// [stay](Self::persist).
    ///
    /// # Examples
    ///
    /// ```
    /// # let name = format!("manyhands-example-owner-{}", std::process::id());
    /// let memory = manyhands::shm::SharedMemory::create(&name, 100)?;
    /// let opened = manyhands::shm::SharedMemory::open(&name)?;
    /// assert!(memory.is_owner() && !opened.is_owner());
    /// # Ok::<(), manyhands::shm::SharedMemoryError>(())
    /// ```
    pub fn is_owner(&self) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.is_ours())
    }
}

impl Drop for SharedMemory {
    /// Unmaps the memory; the owner, in the process that made it, also removes the name.
    fn drop(&mut self) {
        if let Some(owned) = &self.owned {
            owned.end();
        }
    }
}
