//! Prints panics of threads that std knows no name of.
//!
//! A worker's thread begins before std has set up the main thread, and a forked child's is a copy
//! of whichever thread forked. std would print `<unnamed>`, or a name that is another thread's.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static NAME: RefCell<Option<Box<str>>> = const { RefCell::new(None) };
}

/// Gives this thread, which runs the tasks of a worker process, a name for the messages of its
/// panics.
#[cfg(target_os = "linux")]
pub(crate) fn name_this_thread(name: &str) {
    NAME.set(Some(name.into()));
}

/// Prints a panic in the way of std, if this thread has been given a name. Returns whether it has.
pub(super) fn print(info: &PanicHookInfo<'_>) -> bool {
    // The name is gone at the end of the thread, and it is borrowed while it is set.
    let name = NAME.try_with(|name| name.try_borrow().ok()?.clone());
    let Some(name) = name.ok().flatten() else {
        return false;
    };
    let text = text(&name, info, &Backtrace::capture());
    // Standard error may be closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
    true
}

fn text(name: &str, info: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    static HAS_ADVISED: AtomicBool = AtomicBool::new(false);

    let mut text = format!("\nthread '{name}'");
    #[cfg(target_os = "linux")]
    let _ = write!(text, " ({})", crate::os::task::current());
    if let Some(location) = info.location() {
        let _ = write!(text, " panicked at {location}");
    }
    let payload = info.payload();
    let text_of = payload.downcast_ref::<String>().map(String::as_str);
    let message = payload.downcast_ref::<&str>().copied().or(text_of);
    let message = message.unwrap_or("Box<dyn Any>");
    let _ = writeln!(text, ":\n{message}");
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = write!(text, "stack backtrace:\n{backtrace}");
    } else if !HAS_ADVISED.swap(true, Ordering::Relaxed) {
        text.push_str(
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
        );
    }
    text
}
