//! What a dying process writes of its crash into memory that another process reads.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::os::fault;

/// Frames that are kept, from the innermost outwards.
const FRAMES: usize = 48;
/// Modules that are kept.
const MODULES: usize = 8;
/// Bytes of their paths that are kept.
const PATHS: usize = 512;

/// What was written: the signal, and then the stack too.
const HEAD: u32 = 1;
const STACK: u32 = 2;

/// Bits of the flags.
const HAS_ADDRESS: u32 = 1;
const OVERFLOWED: u32 = 2;

/// The memory of one process for its crash.
#[repr(C)]
pub(crate) struct CrashRecord {
    /// How much is written; 0 for nothing. Set after what it says is written.
    written: AtomicU32,
    signal: AtomicU32,
    /// `si_code`.
    code: AtomicU32,
    flags: AtomicU32,
    /// `si_pid`, of a signal that a process has sent.
    sender: AtomicU32,
    frames_len: AtomicU32,
    modules_len: AtomicU32,
    address: AtomicU64,
    instruction: AtomicU64,
    frames: [AtomicU64; FRAMES],
    modules: [ModuleWords; MODULES],
    paths: UnsafeCell<[u8; PATHS]>,
}

#[repr(C)]
struct ModuleWords {
    start: AtomicU64,
    end: AtomicU64,
    base: AtomicU64,
    path_at: AtomicU32,
    path_len: AtomicU32,
}

/// A crash as the dying process sees it, without its stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) signal: i32,
    pub(super) code: i32,
    pub(super) address: Option<usize>,
    pub(super) instruction: usize,
    pub(super) sender: u32,
}

/// A crash as another process finds it. Nothing in it has been checked but its form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) signal: i32,
    /// `si_code`.
    pub(crate) code: i32,
    pub(crate) address: Option<u64>,
    /// 0 if unknown.
    pub(crate) instruction: u64,
    pub(crate) sender: u32,
    pub(crate) has_overflowed: bool,
    pub(crate) frames: Vec<FoundFrame>,
}

/// A frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFrame {
    pub(crate) address: u64,
    /// The file that its code is from, and how far from the file's start.
    pub(crate) place: Option<(String, u64)>,
}

impl CrashRecord {
    /// Writes down the signal.
    pub(super) fn write_head(&self, head: &Head) {
        let set =
            |word: &AtomicU32, value: i32| word.store(value.cast_unsigned(), Ordering::Relaxed);
        set(&self.signal, head.signal);
        set(&self.code, head.code);
        self.sender.store(head.sender, Ordering::Relaxed);
        let flags = head.address.map_or(0, |_| HAS_ADDRESS);
        self.flags.store(flags, Ordering::Relaxed);
        let address = head.address.unwrap_or(0) as u64;
        self.address.store(address, Ordering::Relaxed);
        self.instruction
            .store(head.instruction as u64, Ordering::Relaxed);
        fault::point();
        self.written.store(HEAD, Ordering::Release);
        fault::point();
    }

    /// Takes back what was written: the process goes on, or dies of another signal.
    pub(super) fn take_back(&self) {
        self.written.store(0, Ordering::Release);
    }

    /// Says that the process has overflowed its stack.
    pub(super) fn set_overflowed(&self) {
        self.flags.fetch_or(OVERFLOWED, Ordering::Relaxed);
    }

    /// Adds a frame. Returns whether there is room for another one.
    pub(super) fn add_frame(&self, address: usize) -> bool {
        let len = self.frames_len.load(Ordering::Relaxed);
        let Some(frame) = self.frames.get(len as usize) else {
            return false;
        };
        frame.store(address as u64, Ordering::Relaxed);
        self.frames_len
            .store(len.wrapping_add(1), Ordering::Relaxed);
        (len as usize) + 1 < FRAMES
    }

    /// Takes back all frames.
    pub(super) fn forget_frames(&self) {
        self.frames_len.store(0, Ordering::Relaxed);
    }

    /// Adds a module, unless it is there already or there is no room for it.
    pub(super) fn add_module(&self, start: usize, end: usize, base: usize, path: &[u8]) {
        let len = self.modules_len.load(Ordering::Relaxed) as usize;
        let known = self.modules.get(..len).unwrap_or_default();
        if known
            .iter()
            .any(|module| module.start.load(Ordering::Relaxed) == start as u64)
        {
            return;
        }
        let at = known.last().map_or(0, |last| {
            let at = last.path_at.load(Ordering::Relaxed);
            at.wrapping_add(last.path_len.load(Ordering::Relaxed)) as usize
        });
        let Some(module) = self.modules.get(len) else {
            return;
        };
        if path.len() > PATHS.saturating_sub(at) {
            return;
        }
        // SAFETY: `at` is within the array by the check.
        let target = unsafe { self.paths.get().cast::<u8>().add(at) };
        // SAFETY: the path fits by the check. One thread of the dying process writes here; a reader
        // takes what it finds as bytes.
        unsafe { ptr::copy_nonoverlapping(path.as_ptr(), target, path.len()) };
        module.start.store(start as u64, Ordering::Relaxed);
        module.end.store(end as u64, Ordering::Relaxed);
        module.base.store(base as u64, Ordering::Relaxed);
        module.path_at.store(at as u32, Ordering::Relaxed);
        module.path_len.store(path.len() as u32, Ordering::Relaxed);
        self.modules_len.store(len as u32 + 1, Ordering::Relaxed);
    }

    /// Says that the stack is written.
    pub(super) fn finish(&self) {
        fault::point();
        self.written.store(STACK, Ordering::Release);
        fault::point();
    }

    /// Returns what the process has left of its crash by this signal, if its form is right.
    pub(crate) fn read(&self, signal: i32) -> Option<Found> {
        let written = self.written.load(Ordering::Acquire);
        let get = |word: &AtomicU32| word.load(Ordering::Relaxed);
        if !matches!(written, HEAD | STACK) || get(&self.signal).cast_signed() != signal {
            return None;
        }
        let flags = get(&self.flags);
        let mut found = Found {
            signal,
            code: get(&self.code).cast_signed(),
            address: (flags & HAS_ADDRESS != 0).then(|| self.address.load(Ordering::Relaxed)),
            instruction: self.instruction.load(Ordering::Relaxed),
            sender: get(&self.sender),
            has_overflowed: flags & OVERFLOWED != 0,
            frames: Vec::new(),
        };
        if written == STACK {
            let frames = self.frames.iter().take(get(&self.frames_len) as usize);
            found.frames = frames
                .map(|frame| {
                    let address = frame.load(Ordering::Relaxed);
                    let place = self.place(address);
                    FoundFrame { address, place }
                })
                .collect();
        }
        Some(found)
    }

    fn place(&self, address: u64) -> Option<(String, u64)> {
        let len = self.modules_len.load(Ordering::Relaxed) as usize;
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        // A return address may be the first behind the code.
        let has =
            |module: &&ModuleWords| load(&module.start) <= address && address <= load(&module.end);
        let module = self.modules.iter().take(len).find(has)?;
        let offset = address.checked_sub(load(&module.base))?;
        let at = module.path_at.load(Ordering::Relaxed) as usize;
        let end = at.checked_add(module.path_len.load(Ordering::Relaxed) as usize)?;
        if end > PATHS {
            return None;
        }
        // SAFETY: the array is initialised memory that lives as long as `self`, and is only copied
        // from. The process that wrote it has ended.
        let all: &[u8] =
            unsafe { std::slice::from_raw_parts(self.paths.get().cast::<u8>(), PATHS) };
        let path = String::from_utf8_lossy(all.get(at..end)?);
        // What a spoilt process has left there must not control a terminal.
        let path: String = path
            .chars()
            .map(|letter| if letter.is_control() { '?' } else { letter })
            .collect();
        (!path.is_empty()).then_some((path, offset))
    }

    /// Fills the record with noise.
    #[cfg(test)]
    pub(crate) fn spoil(&self, mut noise: impl FnMut() -> u64) {
        let words = size_of::<Self>() / size_of::<u64>();
        let start = ptr::from_ref(self).cast::<u64>().cast_mut();
        for index in 0..words {
            // SAFETY: within the record.
            let word = unsafe { start.add(index) };
            // SAFETY: the record is made of atomics and cells, for which all bits are valid; no
            // other thread has it.
            unsafe { word.write_volatile(noise()) };
        }
    }
}
