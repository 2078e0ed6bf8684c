//! What is mapped where in this process, from `/proc/self/maps`, read without heap and locks.

use std::ffi::CStr;

/// Mappings with code that are kept.
const MODULES: usize = 256;
/// Bytes of their names that are kept.
const NAMES: usize = 12 << 10;
/// The longest line that is understood.
const LINE: usize = 4_096;

/// A mapping with code of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Where the file's first byte is mapped.
    pub(super) base: usize,
    /// Where the path lies among the names; an empty range if there was no room.
    name_at: usize,
    name_len: usize,
}

/// The mappings with code.
pub(crate) struct Maps {
    modules: [Module; MODULES],
    len: usize,
    names: [u8; NAMES],
    names_len: usize,
    buffer: [u8; LINE],
}

/// One line of `/proc/self/maps`.
struct Line<'a> {
    start: usize,
    end: usize,
    access: &'a [u8],
    offset: usize,
    /// Device and inode of the file, as they are printed.
    file: (&'a [u8], &'a [u8]),
    path: &'a [u8],
}

impl Maps {
    pub(crate) const fn new() -> Self {
        let none = Module {
            start: 0,
            end: 0,
            base: 0,
            name_at: 0,
            name_len: 0,
        };
        Self {
            modules: [none; MODULES],
            len: 0,
            names: [0; NAMES],
            names_len: 0,
            buffer: [0; LINE],
        }
    }

    /// Reads which files' code is mapped where. Leaves out what there is no room for.
    pub(crate) fn read(&mut self) {
        (self.len, self.names_len) = (0, 0);
        let Self {
            modules,
            len,
            names,
            names_len,
            buffer,
        } = self;
        // The file whose mappings are being read: a hash of its identity, and its first address.
        let (mut file, mut base) = (0, 0);
        each_line(buffer, |line| {
            let identity = identity(line.file);
            if line.offset == 0 || identity != file {
                (file, base) = (identity, line.start);
            }
            // What has no name is code that was made at run time.
            if line.access.get(2) != Some(&b'x') || line.path.is_empty() {
                return true;
            }
            let Some(module) = modules.get_mut(*len) else {
                return false;
            };
            let name_len = match names.get_mut(*names_len..*names_len + line.path.len()) {
                Some(room) => {
                    room.copy_from_slice(line.path);
                    line.path.len()
                }
                None => 0,
            };
            *module = Module {
                start: line.start,
                end: line.end,
                base,
                name_at: *names_len,
                name_len,
            };
            *names_len += name_len;
            *len += 1;
            true
        });
    }

    /// Returns the module that has code at this address.
    pub(crate) fn find(&self, address: usize) -> Option<&Module> {
        let modules = self.modules.get(..self.len)?;
        modules
            .iter()
            .find(|module| module.start <= address && address < module.end)
    }

    /// Returns the path of the module's file.
    pub(crate) fn name(&self, module: &Module) -> &[u8] {
        let end = module.name_at.wrapping_add(module.name_len);
        self.names.get(module.name_at..end).unwrap_or_default()
    }

    /// Returns where the first byte of a file is mapped that has code here.
    #[cfg(feature = "symbols")]
    pub(crate) fn base_of(&self, path: &[u8]) -> Option<usize> {
        let modules = self.modules.get(..self.len)?;
        let module = modules.iter().find(|module| self.name(module) == path);
        module.map(|module| module.base)
    }

    /// Returns the start of the lowest mapping above this address that can be read and written.
    pub(super) fn writable_above(&mut self, address: usize) -> Option<usize> {
        let mut found = None;
        each_line(&mut self.buffer, |line| {
            if line.start > address && line.access.starts_with(b"rw") {
                found = Some(line.start);
            }
            found.is_none()
        });
        found
    }
}

/// Returns a number for a file: FNV-1a of what is printed of device and inode.
fn identity((device, inode): (&[u8], &[u8])) -> u64 {
    let bytes = device.iter().chain(inode);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Calls `take` for each line of `/proc/self/maps`, until it returns false.
fn each_line(buffer: &mut [u8; LINE], mut take: impl FnMut(&Line<'_>) -> bool) {
    const PATH: &CStr = c"/proc/self/maps";
    // SAFETY: the path ends in NUL, and open is one system call.
    let fd = unsafe { libc::open(PATH.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return;
    }
    let mut filled = 0;
    'read: loop {
        let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
            // A line that is longer than the buffer: what is left of it is taken for a line, and is
            // not understood.
            filled = 0;
            continue;
        };
        // SAFETY: the kernel writes no more than the length of the buffer, which is ours.
        let read = unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) };
        let Some(read @ 1..) = usize::try_from(read).ok() else {
            break;
        };
        filled += read;
        let mut done = 0;
        while let Some(rest) = buffer.get(done..filled)
            && let Some(len) = rest.iter().position(|&byte| byte == b'\n')
        {
            let line = rest.get(..len).unwrap_or_default();
            if let Some(line) = parse(line)
                && !take(&line)
            {
                break 'read;
            }
            done += len + 1;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
    // SAFETY: the descriptor is from above.
    unsafe { libc::close(fd) };
}

/// Reads a line such as
/// `7f2a10000000-7f2a10021000 r-xp 00001000 fe:01 1234    /usr/lib/libc.so.6`.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (start, rest) = cut(line, b'-')?;
    let (end, rest) = cut(rest, b' ')?;
    let (access, rest) = cut(rest, b' ')?;
    let (offset, rest) = cut(rest, b' ')?;
    let (device, rest) = cut(rest, b' ')?;
    let (inode, path) = cut(rest, b' ').unwrap_or((rest, &[]));
    let blanks = path.iter().take_while(|&&byte| byte == b' ').count();
    Some(Line {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        access,
        offset: hexadecimal(offset)?,
        file: (device, inode),
        path: path.get(blanks..).unwrap_or_default(),
    })
}

fn cut(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|&byte| byte == at)?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    let digit = |&byte: &u8| (byte as char).to_digit(16);
    let add = |number: usize, byte| Some(number.checked_mul(16)? | digit(byte)? as usize);
    digits.iter().try_fold(0, add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::image::Image;

    #[test]
    fn own_code_and_that_of_the_c_library_have_their_files() {
        let mut maps = Box::new(Maps::new());
        maps.read();
        let own = own_code_and_that_of_the_c_library_have_their_files as *const () as usize;
        let module = *maps.find(own).unwrap();
        let name = String::from_utf8_lossy(maps.name(&module)).into_owned();
        assert_eq!(name, std::env::current_exe().unwrap().to_str().unwrap());
        // Executables of this kind begin at address 0 of their own.
        assert_eq!(module.base, Image::main().base());
        let other = *maps.find(libc::getpid as *const () as usize).unwrap();
        assert!(maps.name(&other).windows(4).any(|part| part == b"libc"));
        assert!(maps.find(8).is_none() && maps.find(usize::MAX).is_none());
    }

    #[test]
    fn lines_are_understood_or_left_out() {
        let line = b"7f10-8a20 r-xp 00001000 fe:01 1234                  /a dir/libc.so (deleted)";
        let line = parse(line).unwrap();
        assert_eq!(
            (line.start, line.end, line.offset),
            (0x7f10, 0x8a20, 0x1000)
        );
        assert_eq!(
            (line.access, line.path),
            (&b"r-xp"[..], &b"/a dir/libc.so (deleted)"[..])
        );
        let line = parse(b"7f10-8a20 ---p 00000000 00:00 0 ").unwrap();
        assert!(line.path.is_empty());
        for nonsense in [
            &b""[..],
            b"-",
            b"zz-1 r-xp 0 0 0",
            b"1-2",
            b"fffffffffffffffff-2 r 0 0 0",
        ] {
            assert!(parse(nonsense).is_none());
        }
    }
}
