//! How this program is started again.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

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

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_kernels_link() {
        assert_eq!(super::own().to_str(), Some("/proc/self/exe"));
    }
}
