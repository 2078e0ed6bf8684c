//! How this program is started again.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::image::Image;

/// Returns what to execute to start this program again.
///
/// It is never the program's path, because the file there may be another by now, but the kernel's
/// link to the file that runs. There is one exception: valgrind executes a program without the
/// kernel's knowledge. Then the link leads to valgrind itself, which does not run below itself. For
/// `/proc/self/exe` valgrind answers as if the kernel knew, and for `/proc/thread-self/exe` it does
/// not. So valgrind is there where the two differ. If the file has been replaced meanwhile, its
/// fingerprint shows it.
pub(crate) fn own() -> &'static PathBuf {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    OWN.get_or_init(|| {
        let link = PathBuf::from("/proc/self/exe");
        let known = || fs::read_link("/proc/thread-self/exe");
        match (known(), fs::read_link(&link), known()) {
            // Read twice, because the file may be moved or removed at this moment.
            (Ok(before), Ok(said), Ok(after)) if said != before && before == after => said,
            _ => link,
        }
    })
}

/// Options of the dynamic loaders of glibc and musl that have their value in the next argument.
const WITH_VALUE: [&str; 8] = [
    "--argv0",
    "--audit",
    "--glibc-hwcaps-mask",
    "--glibc-hwcaps-prepend",
    "--inhibit-rpath",
    "--library-path",
    "--list-diagnostics",
    "--preload",
];

/// Returns the arguments that the executable needs after its name to become this program. There are
/// none, unless the program was started through the dynamic loader
/// (`/lib64/ld-linux-x86-64.so.2 ./program`). Then the kernel's link leads to the loader, and these
/// are the loader's options and the program's path.
///
/// # Errors
///
/// If the program's file has been removed: the loader finds it only by its path.
pub(crate) fn arguments() -> io::Result<&'static [CString]> {
    static ARGUMENTS: OnceLock<Vec<CString>> = OnceLock::new();
    if let Some(known) = ARGUMENTS.get() {
        return Ok(known);
    }
    // SAFETY: getauxval takes an integer and reads the auxiliary vector of the process.
    let interpreter = unsafe { libc::getauxval(libc::AT_BASE) };
    // The kernel has loaded an interpreter, which is the loader: it started the program itself.
    let found = if interpreter == 0 {
        through_loader()?
    } else {
        Vec::new()
    };
    Ok(ARGUMENTS.get_or_init(|| found))
}

/// Returns the arguments for the loader; none if the program was not started through it.
fn through_loader() -> io::Result<Vec<CString>> {
    let (Ok(started), Some(program)) = (fs::read_link(own()), mapped_program()) else {
        return Ok(Vec::new());
    };
    if started == program {
        // A program without an interpreter: it is linked statically.
        return Ok(Vec::new());
    }
    if !program.exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "this program was started through the dynamic loader {}, and its file {} is not there any more; start it \
                 by its own path, or leave the file in place",
                started.display(),
                program.display()
            ),
        ));
    }
    let mut arguments = loader_options(&fs::read("/proc/self/cmdline")?);
    arguments.push(program.into_os_string());
    let ends_in_nul = |argument: OsString| Ok(CString::new(argument.into_vec())?);
    arguments.into_iter().map(ends_in_nul).collect()
}

/// Returns the file that the code of this program was loaded from; `None` if `/proc` does not tell.
fn mapped_program() -> Option<PathBuf> {
    let code = Image::main().code_start()?;
    let maps = fs::read("/proc/self/maps").ok()?;
    maps.split(|&byte| byte == b'\n').find_map(|line| {
        let text = std::str::from_utf8(line.get(..line.iter().position(|&byte| byte == b' ')?)?);
        let (start, end) = text.ok()?.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let path = line.iter().position(|&byte| byte == b'/')?;
        (start..end)
            .contains(&code)
            .then(|| Path::new(std::ffi::OsStr::from_bytes(&line[path..])).to_owned())
    })
}

/// Returns the options of the loader, from the arguments that the kernel knows: what stands before
/// the program's path.
fn loader_options(command_line: &[u8]) -> Vec<OsString> {
    let mut words = command_line.split(|&byte| byte == 0).skip(1);
    let mut options = Vec::new();
    while let Some(word) = words.next().filter(|word| word.starts_with(b"--")) {
        let value = WITH_VALUE.iter().any(|name| name.as_bytes() == word);
        let value = value.then(|| words.next()).flatten();
        // The name of a started process is its own.
        if word != b"--argv0" {
            options.push(OsString::from_vec(word.to_vec()));
            options.extend(value.map(|value| OsString::from_vec(value.to_vec())));
        }
        if word == b"--" {
            break;
        }
    }
    options
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_kernels_link() {
        assert_eq!(super::own().to_str(), Some("/proc/self/exe"));
        assert!(super::arguments().unwrap().is_empty());
    }

    #[test]
    fn the_program_is_where_its_code_is_mapped_from() {
        let started = std::fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(super::mapped_program(), Some(started));
    }

    #[test]
    fn the_options_of_a_loader_stand_before_the_program() {
        for (line, options) in [
            ("ld.so\0./a\0--b", &[][..]),
            ("ld.so\0--inhibit-cache\0a\0", &["--inhibit-cache"]),
            (
                "ld.so\0--argv0\0x\0--library-path\0--y\0a\0--preload\0z",
                &["--library-path", "--y"],
            ),
            ("ld.so\0--\0--a", &["--"]),
            ("", &[]),
        ] {
            assert_eq!(super::loader_options(line.as_bytes()), options, "{line}");
        }
    }
}
