//! A place for what the processes of a test write to standard error.
//!
//! The test harness keeps what a test prints, and shows it if the test fails. What workers and
//! children print goes past it: with `RUST_BACKTRACE=1`, tens of thousands of lines about panics
//! and crashes that are meant to be. So the standard error of a test binary is a file, which is
//! empty at the start of each test, and is shown if the test fails. With `--nocapture` it is what
//! it was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The most bytes of it that are shown.
const SHOWN: u64 = 64 << 10;

struct Place {
    file: File,
    path: PathBuf,
    /// The process that removes the file.
    pid: u32,
    /// What standard error was before.
    original: OwnedFd,
}

static PLACE: OnceLock<Option<Place>> = OnceLock::new();

/// Returns whether standard error stays what it is: in programs, whose parent reads it, and where
/// all is to be shown.
fn is_shown() -> bool {
    let shows = |arg: String| ["--nocapture", "--no-capture", "--show-output"].contains(&&*arg);
    super::is_program()
        || std::env::var_os("RUST_TEST_NOCAPTURE").is_some()
        || std::env::args().any(shows)
}

impl Place {
    fn make() -> Option<Self> {
        if is_shown() {
            return None;
        }
        let pid = std::process::id();
        let name = std::env::current_exe().unwrap();
        let name = name.file_stem().unwrap().to_string_lossy().into_owned();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{pid}.stderr"));
        let mut options = OpenOptions::new();
        let file = options.create(true).read(true).append(true).open(&path);
        let place = Self {
            file: file.unwrap(),
            path,
            pid,
            original: io::stderr().as_fd().try_clone_to_owned().unwrap(),
        };
        // SAFETY: both descriptors are open, and standard error stays open.
        assert_eq!(unsafe { libc::dup2(place.file.as_raw_fd(), 2) }, 2);
        // SAFETY: the function may be called at any time.
        assert_eq!(unsafe { libc::atexit(remove) }, 0);
        Some(place)
    }
}

/// Removes the file at the end of the test binary. It stays if the binary crashes, since it says
/// why then.
extern "C" fn remove() {
    if let Some(Some(place)) = PLACE.get()
        && place.pid == std::process::id()
    {
        let _ = fs::remove_file(&place.path);
    }
}

fn place() -> Option<&'static Place> {
    PLACE.get()?.as_ref()
}

/// Empties the place, at the start of a test.
pub fn begin() {
    if let Some(place) = PLACE.get_or_init(Place::make) {
        place.file.set_len(0).unwrap();
    }
}

/// Prints what was written since the start of the test, for the test harness to keep.
pub fn show() {
    let Some(place) = place() else { return };
    let len = place.file.metadata().unwrap().len();
    let mut bytes = vec![0; len.min(SHOWN) as usize];
    let start = len - bytes.len() as u64;
    let read = place.file.read_at(&mut bytes, start).unwrap();
    bytes.truncate(read);
    if !bytes.is_empty() {
        eprintln!(
            "-- its processes wrote, in {len} bytes:\n{}\n--",
            String::from_utf8_lossy(&bytes)
        );
    }
}

/// Writes past the test harness, and past the file.
pub fn say(text: &str) {
    // What the process writes from here on, when it aborts, say, is seen too.
    if let Some(place) = place() {
        // SAFETY: both descriptors are open, and standard error stays open.
        unsafe { libc::dup2(place.original.as_raw_fd(), 2) };
    }
    let _ = io::stderr().write_all(text.as_bytes());
}
