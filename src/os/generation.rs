//! Counts the forks that lie behind this process, and tells it apart from its copies.
//!
//! The count is in a page that the kernel fills with zeros in every child (`MADV_WIPEONFORK`), so a
//! process that reads a zero there knows that it was forked, also by `_Fork` or by a raw system
//! call. Handlers of `pthread_atfork` see only the forks that the C library makes. They do the
//! counting where the kernel does not wipe (before 4.14, some sandboxes).

use std::num::NonZeroUsize;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::fork::exit_now;

/// Exit code of a copy in which the function of a task has returned.
pub(crate) const COPY_RETURNED: i32 = 0;

/// Exit code of a copy in which the function of a task has panicked: what a Rust program ends with
/// then.
pub(crate) const COPY_PANICKED: i32 = 101;

/// Where [`generation`] is, plus 1. In a forked process it is 0 until the fork has been counted.
/// Null before the first question.
static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// The word itself where there is no page that the kernel wipes.
static UNWIPED: AtomicU32 = AtomicU32::new(0);

/// In [`WORD`] while one thread counts a fork.
const COUNTING: u32 = u32::MAX;

/// How many forks lie between the first process of this image and the last one that counted.
static COUNTED: AtomicU32 = AtomicU32::new(0);

/// Pid of the process that counted last.
static COUNTED_BY: AtomicU32 = AtomicU32::new(0);

/// Pid of the process that this one was forked from, if it was.
static FORKED_FROM: AtomicU32 = AtomicU32::new(0);

/// Returns how many forks lie between the first process of this image and this one. The number is
/// the same as long as the process is the same. Cheaper than `getpid`, which is a system call.
///
/// Forks before the first question are not counted.
#[inline]
pub(crate) fn generation() -> u32 {
    // 0 becomes the largest number, and `COUNTING` the one below it: one comparison for both.
    let generation = word().load(Ordering::Acquire).wrapping_sub(1);
    if generation < COUNTING - 1 {
        generation
    } else {
        count()
    }
}

/// Returns the pid of the process that this one was forked from; 0 in the first process of this
/// image.
pub(crate) fn forked_from() -> u32 {
    generation();
    FORKED_FROM.load(Ordering::Relaxed)
}

#[inline]
fn word() -> &'static AtomicU32 {
    let word = WORD.load(Ordering::Acquire);
    // SAFETY: null, or what `start` has stored, which stays as long as the process.
    unsafe { word.as_ref() }.unwrap_or_else(start)
}

/// Begins to count.
#[cold]
fn start() -> &'static AtomicU32 {
    // Not a `Once`: a forked child might find that half-way for ever.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    extern "C" fn forked() {
        // The child has one thread, so no other reads the zero in between.
        word().store(0, Ordering::Relaxed);
        count();
    }
    COUNTED_BY.store(std::process::id(), Ordering::Relaxed);
    let new = wiped_word().unwrap_or(&UNWIPED);
    new.store(COUNTED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let new = ptr::from_ref(new).cast_mut();
    // Pairs with the load in `word`.
    let before = WORD.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
    // The page of a thread that came second stays, unused.
    let word = before.err().unwrap_or(new);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handler makes one system call that is allowed in a forked child, and uses
        // atomics.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    }
    // SAFETY: as in `word`; it is not null any more.
    unsafe { &*word }
}

/// Returns a word in a page that the kernel wipes in forked children.
fn wiped_word() -> Option<&'static AtomicU32> {
    let len = NonZeroUsize::new(4_096)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
    let page = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }.ok()?;
    // SAFETY: the range is the mapping made above.
    let wiped = unsafe { madvise(page, len.get(), MmapAdvise::MADV_WIPEONFORK) };
    if wiped.is_err() {
        // SAFETY: the mapping made above, whose address was given to no other code.
        let _ = unsafe { munmap(page, len.get()) };
        return None;
    }
    // SAFETY: the page is aligned, readable and writable, is never unmapped from here on, and zeros
    // are a valid value.
    Some(unsafe { page.cast::<AtomicU32>().as_ref() })
}

/// Counts the fork that this process is the child of.
#[cold]
fn count() -> u32 {
    let word = word();
    // Pairs with the store below. A fork while this thread counts leaves the child a zero, and the
    // child counts.
    let begun = word.compare_exchange(0, COUNTING, Ordering::AcqRel, Ordering::Acquire);
    if begun.is_ok() {
        let forked_from = COUNTED_BY.swap(std::process::id(), Ordering::Relaxed);
        FORKED_FROM.store(forked_from, Ordering::Relaxed);
        let count = COUNTED.load(Ordering::Relaxed) + 1;
        COUNTED.store(count, Ordering::Relaxed);
        word.store(count + 1, Ordering::Release);
        return count;
    }
    loop {
        match word.load(Ordering::Acquire) {
            // Another thread of this process counts, for a few instructions.
            COUNTING => std::hint::spin_loop(),
            0 => return count(),
            word => return word - 1,
        }
    }
}

/// A process, to be told apart from the copies of it that are forked from now on.
///
/// Code of the user's may fork (a C library, mostly). Then it returns twice: in the original, and
/// in a copy that has the original's descriptors and shared memory. A copy must do nothing there in
/// the name of the original.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original {
    word: &'static AtomicU32,
    /// What is in the word as long as this process is the original.
    own: u32,
}

impl Original {
    /// This process.
    pub(crate) fn here() -> Self {
        Self {
            own: generation() + 1,
            word: word(),
        }
    }

    /// Whether the caller runs in the original.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        self.word.load(Ordering::Relaxed) == self.own
    }

    /// Ends the calling process at once with this exit code, if it is a copy: without destructors,
    /// exit handlers or a flush of what the original has buffered.
    #[inline]
    pub(crate) fn end_copy(self, code: i32) {
        if !self.is_here() {
            exit_now(code);
        }
    }

    /// Ends the calling process if it is a copy, with the exit code for the outcome of a function
    /// in it.
    #[inline]
    pub(crate) fn end_copy_after<T, E>(self, outcome: &Result<T, E>) {
        self.end_copy(if outcome.is_ok() {
            COPY_RETURNED
        } else {
            COPY_PANICKED
        });
    }
}

/// A pointer to what a process shares with others. Copies of the process find it null.
pub(crate) struct OwnPointer<T> {
    pointer: AtomicPtr<T>,
    /// [`generation`] of the process that has set it.
    generation: AtomicU32,
}

impl<T> OwnPointer<T> {
    pub(crate) const fn null() -> Self {
        Self {
            pointer: AtomicPtr::new(ptr::null_mut()),
            generation: AtomicU32::new(0),
        }
    }

    pub(crate) fn set(&self, pointer: *mut T) {
        self.generation.store(generation(), Ordering::Relaxed);
        // Pairs with the load in `get`.
        self.pointer.store(pointer, Ordering::Release);
    }

    /// May be called in a signal handler.
    pub(crate) fn get(&self) -> *mut T {
        let pointer = self.pointer.load(Ordering::Acquire);
        let own = self.generation.load(Ordering::Relaxed) + 1;
        // Not `generation`, which may have to wait for the code that the handler has interrupted.
        if pointer.is_null() || word().load(Ordering::Relaxed) != own {
            return ptr::null_mut();
        }
        pointer
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    /// Forks by the C library, or by the system call alone, and gives the exit code of the child.
    fn code_of(is_raw: bool, child: impl FnOnce() -> i32) -> i32 {
        let pid = if is_raw {
            // SAFETY: the flags ask for a plain fork. The child makes system calls and uses
            // atomics, until it ends.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            i32::try_from(pid).unwrap()
        } else {
            // SAFETY: as above.
            unsafe { libc::fork() }
        };
        if pid == 0 {
            exit_now(child());
        }
        match waitpid(Pid::from_raw(pid), None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_fork_is_counted_once_whatever_made_it() {
        let (own, pid) = (generation(), std::process::id());
        let original = Original::here();
        for is_raw in [false, true] {
            let code = code_of(is_raw, || {
                let is_copy = !original.is_here();
                let is_counted = generation() == own + 1 && generation() == own + 1;
                let knows_parent = forked_from() == pid;
                let still_copy = !original.is_here() && Original::here().is_here();
                i32::from(is_copy && is_counted && knows_parent && still_copy)
            });
            assert_eq!(code, 1, "raw: {is_raw}");
        }
        assert!(original.is_here());
        assert_eq!(generation(), own);
    }

    #[test]
    fn a_copy_ends_and_finds_no_pointer() {
        static POINTER: OwnPointer<u32> = OwnPointer::null();
        assert!(POINTER.get().is_null());
        let mut value = 7;
        POINTER.set(&raw mut value);
        assert_eq!(POINTER.get(), &raw mut value);
        let original = Original::here();
        for is_raw in [false, true] {
            assert_eq!(code_of(is_raw, || i32::from(POINTER.get().is_null())), 1);
            let ended = code_of(is_raw, || {
                original.end_copy(9);
                1
            });
            assert_eq!(ended, 9);
            let panicked: Result<(), ()> = Err(());
            let ended = code_of(is_raw, || {
                original.end_copy_after(&panicked);
                1
            });
            assert_eq!(ended, COPY_PANICKED);
        }
        original.end_copy(9);
    }
}
