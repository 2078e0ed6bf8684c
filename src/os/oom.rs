//! Tells an abort for lack of memory from other aborts.
//!
//! When an allocation fails, Rust prints a line and aborts, and a library cannot change that. The
//! only thing that it gets is SIGABRT. Its handler, [`crash`], has this module look for two signs.
//! One is that the last error of the system is `ENOMEM`: the allocator leaves this error (and a
//! backtrace, if one is printed, overwrites it). The other is that the way back through the stack
//! leads into [`std::alloc::handle_alloc_error`], which is entered for this reason alone and never
//! returns. An optimiser may have dissolved that function; then an abort with a backtrace cannot be
//! told from other aborts.

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;

use super::crash;
use super::fork::OwnPointer;
use super::out_of_reach;

/// The word to set; null in processes that do not look for the signs, and in copies of those that
/// do.
static WORD: OwnPointer<AtomicU32> = OwnPointer::null();
/// The memory of this process as a file: where a read from the memory itself would kill the
/// process, a read from the file fails.
static MEMORY: AtomicI32 = AtomicI32::new(-1);
/// Address of `handle_alloc_error`.
static FAILURE: AtomicUsize = AtomicUsize::new(0);

/// The largest distance from the start of the function to the call that never returns.
const FUNCTION_BYTES: usize = 96;
/// The way back is looked for in this much of the stack.
const STACK_BYTES: usize = 32 << 10;

/// Has `word` set when this process aborts because an allocation has failed. The word must stay
/// where it is as long as the process lives.
pub(crate) fn note_failed_allocations(word: &AtomicU32) -> io::Result<()> {
    MEMORY.store(
        out_of_reach(File::open("/proc/self/mem")?.into())?.into_raw_fd(),
        Ordering::Relaxed,
    );
    let failure: fn(Layout) -> ! = handle_alloc_error;
    FAILURE.store(failure as usize, Ordering::Relaxed);
    WORD.set(ptr::from_ref(word).cast_mut());
    crash::take_aborts()
}

/// Sets the word, if this process aborts because an allocation has failed. Called by the handler,
/// with the error that the system had last before it, and the stack pointer of the code that it
/// interrupted.
pub(super) fn note_abort(last_error: Errno, stack: usize) {
    let is_last_error = last_error == Errno::ENOMEM;
    let word = WORD.get();
    // SAFETY: the function above made it from a reference, and its caller has promised that the
    // word stays.
    let word = unsafe { word.as_ref() };
    if let Some(word) = word
        && (is_last_error || comes_from_allocator(stack))
    {
        word.store(1, Ordering::Relaxed);
    }
}

/// Returns whether an address within `handle_alloc_error` is on the stack from here on.
fn comes_from_allocator(stack: usize) -> bool {
    let failure = FAILURE.load(Ordering::Relaxed);
    let mut words = [0_usize; 64];
    let mut at = stack;
    let end = at.saturating_add(STACK_BYTES);
    while at < end {
        let Ok(offset) = libc::off_t::try_from(at) else {
            return false;
        };
        // SAFETY: the buffer is ours to write to, and the call is given its length. An address that
        // is not mapped is an error of the call, or ends what it reads.
        let read = unsafe {
            libc::pread(
                MEMORY.load(Ordering::Relaxed),
                words.as_mut_ptr().cast::<c_void>(),
                size_of_val(&words),
                offset,
            )
        };
        let Ok(read @ 1..) = usize::try_from(read) else {
            return false;
        };
        let found = &words[..read / size_of::<usize>()];
        if found
            .iter()
            .any(|word| word.wrapping_sub(failure) < FUNCTION_BYTES)
        {
            return true;
        }
        at += read;
    }
    false
}
