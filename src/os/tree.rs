//! Finds the processes that a child has started, and those that these have started, and ends them.
//!
//! The kernel forgets who started a process as soon as the parent has ended. So each child gets a
//! [`Mark`], which what it starts inherits:
//!
//! | a descendant that | is found by |
//! |---|---|
//! | has become another program | the variable [`VARIABLE`] in its environment |
//! | is a copy of a child that was started again | the same: `/proc` has the child's environment |
//! | is a copy of a forked child | a mapping whose name has the mark in it ([`mark_this_copy`]) |
//! | has another environment | its parents, as long as the chain is whole ([`stop_descendants`]) |
//!
//! Marks also find what a dead child has left, and processes with a session of their own.

mod hunt;
mod mark;
mod table;
mod walk;

use std::env;
use std::ffi::{CStr, CString, OsString, c_char};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags};

pub(crate) use hunt::hunt;
pub(crate) use mark::VARIABLE;
use mark::{MAPPING, Mark, Wanted};
pub(crate) use table::Table;
pub(super) use walk::stop_descendants;

use super::fork::generation;
use super::mapping::Mapping;
use super::{clock, process_fd, random};

/// The process that starts children, as it is known by their marks.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) id: u64,
    /// The number of the next child, without its last bit.
    next: AtomicU64,
    /// What the guard sees of the children.
    table: Option<&'static Table>,
    /// Wakes the guard. Returns whether there is one.
    call_guard: fn() -> bool,
}

impl Program {
    pub(crate) fn new(table: Option<&'static Table>, call_guard: fn() -> bool) -> Self {
        Self {
            id: random::word(),
            next: AtomicU64::new(1),
            table,
            call_guard,
        }
    }

    /// Makes the mark of a child that is about to be started.
    pub(crate) fn enlist(&'static self, is_forked: bool) -> Entry {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let wanted = Wanted {
            number: (next << 1) | u64::from(is_forked),
            since: clock::boot_ticks(),
        };
        Entry {
            program: self,
            wanted,
            slot: self.table.and_then(|table| table.add(wanted)),
            generation: generation(),
            has_ended: AtomicBool::new(false),
        }
    }
}

/// Returns whether processes can be killed without a chance that another one is hit: there are
/// pidfds.
pub(crate) fn can_kill() -> bool {
    process_fd::are_there()
}

/// A child whose descendants are to end with it when it is ended by force. That is assumed when
/// this is dropped before it is known how the child has ended.
#[derive(Debug)]
pub(crate) struct Entry {
    program: &'static Program,
    wanted: Wanted,
    /// The child's place in the table; `None` if there is no room. Then the guard does not know it.
    slot: Option<usize>,
    /// [`generation`] of the process that starts the child.
    generation: u32,
    has_ended: AtomicBool,
}

impl Entry {
    /// Returns the child's value of [`VARIABLE`].
    pub(crate) fn chain(&self) -> OsString {
        let mark = Mark {
            program: self.program.id,
            number: self.wanted.number,
        };
        match env::var_os(VARIABLE).filter(|marks| !marks.is_empty()) {
            Some(mut marks) => {
                marks.push(format!(",{mark}"));
                marks
            }
            None => mark.to_string().into(),
        }
    }

    /// Says how the child has ended, or that it has just been killed. Only the first call counts.
    pub(super) fn ended(&self, is_in_order: bool) {
        // A copy of the process that started the child has no part in this.
        if self.generation != generation() || self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let place = self.program.table.zip(self.slot);
        if is_in_order {
            place.inspect(|(table, slot)| table.remove(*slot));
            return;
        }
        if let Some((table, slot)) = place {
            table.ask(slot);
            if (self.program.call_guard)() {
                return;
            }
        }
        hunt(self.program.id, &[self.wanted]);
        place.inspect(|(table, slot)| table.remove(*slot));
    }

    pub(super) fn table(&self) -> Option<&'static Table> {
        self.program.table
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ended(false);
    }
}

/// Marks this process, a forked child, for the copies that its tasks make of it. `/proc` shows such
/// copies with the environment of the process that was forked first. So a mapping has the mark,
/// which copies inherit and which ends when they become another program.
pub(crate) fn mark_this_copy(chain: &[u8]) {
    let Some(mark) = Mark::last(chain) else {
        return;
    };
    let mapped = CString::new(format!("{MAPPING}{mark}"))
        .map_err(std::io::Error::other)
        .and_then(|name| Ok(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?))
        .and_then(|file| {
            // The file is empty. No access is allowed, so that does not matter.
            let flags = MapFlags::MAP_SHARED;
            let (what, len) = ("the mark of a forked child", NonZeroUsize::MIN);
            Mapping::part(what, &file, 0, len, ProtFlags::PROT_NONE, flags)
        });
    match mapped {
        Ok(mapping) => std::mem::forget(mapping),
        Err(error) => log::debug!("copies of this process will not be found: {error}"),
    }
}

/// Sets [`VARIABLE`] in this process, a forked child that has one thread.
///
/// Takes no lock: a thread of the parent may have held those of the environment when the child was
/// forked.
fn set_variable(chain: &[u8]) {
    unsafe extern "C" {
        static mut environ: *mut *mut c_char;
    }
    let name = format!("{VARIABLE}=");
    let mut line = name.clone().into_bytes();
    line.extend_from_slice(chain);
    let Ok(line) = CString::new(line) else { return };
    let mut lines = Vec::new();
    // SAFETY: this process has one thread, so no other one changes the pointer.
    let mut next = unsafe { environ };
    while !next.is_null() {
        // SAFETY: the list has pointers up to one that is null.
        let old = unsafe { *next };
        if old.is_null() {
            break;
        }
        // SAFETY: each of them points to a string that ends in NUL.
        let text = unsafe { CStr::from_ptr(old) };
        if !text.to_bytes().starts_with(name.as_bytes()) {
            lines.push(old);
        }
        // SAFETY: the null pointer has not come yet.
        next = unsafe { next.add(1) };
    }
    // Both stay as long as the process: the C library gives out pointers into them.
    lines.push(line.into_raw());
    lines.push(ptr::null_mut());
    // SAFETY: as above; the new list ends in null, and is never freed.
    unsafe { environ = lines.leak().as_mut_ptr() };
}

/// Marks this process, a forked child: what it starts and its copies are found.
pub(crate) fn mark_forked_child(chain: OsString) {
    let chain = chain.into_vec();
    mark_this_copy(&chain);
    set_variable(&chain);
}

#[cfg(all(test, not(loom)))]
mod tests;
