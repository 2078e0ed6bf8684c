//! Where the code of the main executable lies in memory, and a fingerprint of its build.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::OnceLock;

/// The main executable as the loader put it into memory.
#[derive(Debug)]
pub(crate) struct Image {
    /// What the loader added to every address of the file.
    base: usize,
    /// Its segments that hold code.
    code: Vec<Range<usize>>,
    /// The same for two processes if, and practically only if, they run the same build.
    fingerprint: u64,
}

impl Image {
    /// Returns the main executable of this process.
    pub(crate) fn main() -> &'static Self {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let mut image = Image {
                base: 0,
                code: Vec::new(),
                fingerprint: 0,
            };
            // SAFETY: `visit` has the signature asked for, and `image` outlives the call and is
            // used by nothing else during it.
            unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut image).cast::<c_void>()) };
            image
        })
    }

    /// Returns whether the address is part of the code of the main executable.
    pub(crate) fn contains_code(&self, address: usize) -> bool {
        self.code.iter().any(|segment| segment.contains(&address))
    }

    /// Returns the address of the first byte of its code.
    pub(super) fn code_start(&self) -> Option<usize> {
        self.code.first().map(|segment| segment.start)
    }

    /// Returns the addresses from its first byte of code to its last.
    pub(super) fn code_span(&self) -> Range<usize> {
        let start = self.code.iter().map(|segment| segment.start).min();
        let end = self.code.iter().map(|segment| segment.end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Called for each loaded object. The first is the main executable, and the only one looked at.
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    image: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid pointer for the length of this call.
    let info = unsafe { &*info };
    // SAFETY: this is the pointer that `main` gave, to an Image that nothing else uses.
    let image = unsafe { &mut *image.cast::<Image>() };
    // SAFETY: the loader gives the number of its program headers together with their address.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };

    image.base = usize::try_from(info.dlpi_addr).unwrap_or(0);
    let mut print = Fingerprint::new();
    print.add(env!("CARGO_PKG_VERSION").as_bytes());
    for header in headers {
        let start = image.base.wrapping_add(header.p_vaddr as usize);
        let segment = start..start.wrapping_add(header.p_memsz as usize);
        print.add(&header.p_type.to_le_bytes());
        print.add(&header.p_vaddr.to_le_bytes());
        print.add(&header.p_memsz.to_le_bytes());
        if header.p_type == libc::PT_LOAD {
            if header.p_flags & libc::PF_X != 0 {
                image.code.push(segment);
            }
        } else if header.p_type == libc::PT_NOTE {
            // The linker's build id is among the notes.
            // SAFETY: a note segment lies within a loaded, readable segment of this size and is
            // never written.
            let note =
                unsafe { std::slice::from_raw_parts(segment.start as *const u8, segment.len()) };
            print.add(note);
        }
    }
    image.fingerprint = print.0;
    1 // stop: only the first object matters
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo; constants from the IETF draft). It has to tell builds apart,
/// and does not resist an attack.
struct Fingerprint(u64);

impl Fingerprint {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_code_is_in_the_image_and_foreign_code_is_not() {
        let image = Image::main();
        let own = own_code_is_in_the_image_and_foreign_code_is_not as *const () as usize;
        assert!(image.contains_code(own));
        assert!(
            !image.contains_code(libc::getpid as *const () as usize),
            "libc is another object"
        );
        assert!(
            !image.contains_code((&raw const *image) as usize),
            "the heap is not code"
        );
    }
}
