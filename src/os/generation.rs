//! Counts the forks that lie behind this process, and tells it apart from its copies.
//!
//! The count is in a page that the kernel fills with zeros in every child (`MADV_WIPEONFORK`), so a
//! process that reads a zero there knows that it was forked, also by `_Fork` or by a raw system
//! call. Handlers of `pthread_atfork` see only the forks that the C library makes. They do the
//! counting where the kernel does not wipe (before 4.14, some sandboxes).

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use nix::sys::mman::{MmapAdvise, madvise};

use super::fork::exit_now;

/// Exit code of a copy in which the function of a task has returned.
pub(crate) const COPY_RETURNED: i32 = 0;

/// Exit code of a copy in which the function of a task has panicked: the code with which a Rust
/// program ends after a panic.
pub(crate) const COPY_PANICKED: i32 = 101;

/// Bytes that have a page of their own. Where pages are larger the kernel refuses to wipe them.
const PAGE: usize = 4_096;

/// A page with nothing in it but the count.
#[repr(C, align(4096))]
struct Page {
    /// [`generation`] plus 1. In a forked process it is 0 until the fork has been counted. It is 0
    /// also before the first call of [`generation`].
    word: AtomicU32,
    rest: [u8; PAGE - size_of::<AtomicU32>()],
}

/// A static, and not a mapping of its own: then each call would have to look up where that is.
static COUNT: Page = Page {
    word: AtomicU32::new(0),
    rest: [0; PAGE - size_of::<AtomicU32>()],
};

/// The word while one thread counts.
const COUNTING: u32 = u32::MAX;

/// How many forks lie between the first process of this image and the last one that counted.
static COUNTED: AtomicU32 = AtomicU32::new(0);

/// Pid of the process that counted last; 0 if none has.
static COUNTED_BY: AtomicU32 = AtomicU32::new(0);

/// Pid of the process that this one was forked from, if it was.
static FORKED_FROM: AtomicU32 = AtomicU32::new(0);

/// Returns how many forks lie between the first process of this image and this one. The number is
/// the same as long as the process is the same. Cheaper than `getpid`, which is a system call.
///
/// Forks before the first call are not counted.
#[inline]
pub(crate) fn generation() -> u32 {
    // 0 becomes the largest number, and `COUNTING` the one below it: one comparison for both.
    let generation = COUNT.word.load(Ordering::Acquire).wrapping_sub(1);
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

/// Registers what notices forks. Called before the first count; two threads may call it at once.
fn begin() {
    // Flags, not a `Once`: a forked child might find a `Once` half-way for ever.
    static HAS_BEGUN: AtomicBool = AtomicBool::new(false);
    static IS_REGISTERED: AtomicBool = AtomicBool::new(false);
    extern "C" fn forked() {
        // The child has one thread, so no other reads the zero in between.
        COUNT.word.store(0, Ordering::Relaxed);
        count();
    }
    if HAS_BEGUN.load(Ordering::Acquire) {
        return;
    }
    debug_assert!(COUNT.rest.iter().all(|&byte| byte == 0), "it is not used");
    let page = NonNull::from(&COUNT).cast();
    // SAFETY: the page holds the count alone, which is meant to become zero in a child. Where the
    // kernel does not do it, the handler does.
    let _ = unsafe { madvise(page, PAGE, MmapAdvise::MADV_WIPEONFORK) };
    if !IS_REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handler makes one system call that is allowed in a forked child, and uses
        // atomics.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    }
    HAS_BEGUN.store(true, Ordering::Release);
}

/// Counts the fork that made this process. In the first process of this image, counts none.
#[cold]
fn count() -> u32 {
    // Before anything is in the word: a child that is forked meanwhile must not find `COUNTING`.
    begin();
    let word = &COUNT.word;
    // Pairs with the store below. A fork while this thread counts leaves the child a zero, and the
    // child counts.
    let begun = word.compare_exchange(0, COUNTING, Ordering::AcqRel, Ordering::Acquire);
    if begun.is_ok() {
        let count = match COUNTED_BY.swap(std::process::id(), Ordering::Relaxed) {
            0 => 0,
            forked_from => {
                FORKED_FROM.store(forked_from, Ordering::Relaxed);
                COUNTED.load(Ordering::Relaxed) + 1
            }
        };
        COUNTED.store(count, Ordering::Relaxed);
        word.store(count + 1, Ordering::Release);
        return count;
    }
    loop {
        match word.load(Ordering::Acquire) {
            // Another thread of this process counts, for a few instructions.
            COUNTING => std::hint::spin_loop(),
            // This process was forked since the exchange above, and its word was wiped.
            0 => return count(),
            word => return word - 1,
        }
    }
}

/// A process, distinguished from the copies of it that are forked from now on.
///
/// Code of the user's may fork (a C library, mostly). Then it returns twice: in the original, and
/// in a copy that has the original's descriptors and shared memory. The copy must do nothing there
/// in the name of the original.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original {
    /// The word as long as this process is the original.
    own: u32,
}

impl Original {
    /// Returns this process as the original.
    pub(crate) fn here() -> Self {
        Self {
            own: generation() + 1,
        }
    }

    /// Returns whether the caller runs in the original.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        COUNT.word.load(Ordering::Relaxed) == self.own
    }

    /// Ends the calling process at once with this exit code, if it is a copy: without destructors,
    /// exit handlers or a flush of what the original has buffered.
    #[inline]
    pub(crate) fn end_copy(self, code: i32) {
        if !self.is_here() {
            exit_now(code);
        }
    }

    /// Ends the calling process if it is a copy. The exit code says how the function in it has
    /// ended.
    #[inline]
    pub(crate) fn end_copy_after<T, E>(self, outcome: &Result<T, E>) {
        self.end_copy(if outcome.is_ok() {
            COPY_RETURNED
        } else {
            COPY_PANICKED
        });
    }
}

/// A pointer to what a process shares with others. In copies of the process it reads as null.
pub(crate) struct OwnPointer<T> {
    pointer: AtomicPtr<T>,
    /// [`generation`] of the process that has set the pointer.
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

    /// Returns the pointer; null in a copy of the process that has set it. May be called in a
    /// signal handler.
    pub(crate) fn get(&self) -> *mut T {
        let pointer = self.pointer.load(Ordering::Acquire);
        let own = self.generation.load(Ordering::Relaxed) + 1;
        // Not `generation`, which may have to wait for the code that the handler has interrupted.
        if pointer.is_null() || COUNT.word.load(Ordering::Relaxed) != own {
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

    /// Forks by the C library, or by the system call alone, and returns the exit code of the child.
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
