//! The backtrace of a panic, as text.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;

/// Bytes of a backtrace that are kept.
const MOST_BYTES: usize = 32 << 10;

/// Returns the backtrace of the caller, if the environment asks for backtraces by
/// `RUST_LIB_BACKTRACE` or `RUST_BACKTRACE`, as the standard library reads them.
///
/// Of the frames, those of the panic's machinery and those that run the task are left out, unless
/// the variable says `full`.
pub(crate) fn capture() -> Option<String> {
    let backtrace = Backtrace::capture();
    if backtrace.status() != BacktraceStatus::Captured {
        return None;
    }
    let is_full = ["RUST_LIB_BACKTRACE", "RUST_BACKTRACE"]
        .iter()
        .find_map(env::var_os)
        .is_some_and(|value| value == "full");
    let text = backtrace.to_string();
    let text = if is_full { text } else { shortened(&text) };
    Some(bounded(text))
}

/// Cuts a text that is too long, at the end of a line.
fn bounded(mut text: String) -> String {
    if text.len() > MOST_BYTES {
        let mut end = MOST_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let end = text[..end].rfind('\n').unwrap_or(end);
        text.truncate(end);
        text.push_str("\n      … more frames");
    }
    text
}

/// Returns whether a function belongs to this crate, by its printed name.
pub(super) fn is_own(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    let path = name.strip_prefix("manyhands");
    // The name of the crate may be followed by its number.
    path.is_some_and(|path| path.starts_with("::") || path.starts_with('['))
}

/// Returns whether a function belongs to what runs between `panic!` and the panic hook.
fn is_panic(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    let starts = [
        "std::panicking::",
        "core::panicking::",
        "std::sys::backtrace::",
        "std::backtrace",
        "std::panic::panic_any",
        "rust_begin_unwind",
        "__rustc::rust_begin_unwind",
        "core::result::unwrap_failed",
        "core::option::unwrap_failed",
        "core::option::expect_failed",
        "alloc::boxed::Box<F,A> as core::ops::function::Fn",
        "alloc::boxed::Box<dyn",
    ];
    is_own(name) || starts.iter().any(|start| name.starts_with(start))
}

/// Returns whether a function belongs to what runs a task.
fn runs_tasks(name: &str) -> bool {
    is_own(name) || name.starts_with("std::sys::backtrace::__rust_begin_short_backtrace")
}

/// Returns whether a function belongs to what this crate calls to catch a panic, and to the call of
/// a closure.
pub(super) fn is_glue(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    let starts = [
        "std::panicking::",
        "std::panic::",
        "core::panic::unwind_safe::",
        "core::ops::function::",
        "__rust_try",
    ];
    starts.iter().any(|start| name.starts_with(start))
}

/// One frame of a printed backtrace.
struct Frame<'a> {
    name: &'a str,
    /// The lines that say where it is.
    rest: Vec<&'a str>,
}

/// Leaves out the frames of the panic itself at the beginning, and at the end those that run the
/// task.
fn shortened(text: &str) -> String {
    let mut frames: Vec<Frame<'_>> = Vec::new();
    for line in text.lines() {
        let head = line.trim_start().split_once(": ");
        match head {
            Some((number, name)) if number.parse::<u32>().is_ok() => frames.push(Frame {
                name,
                rest: Vec::new(),
            }),
            _ => {
                if let Some(frame) = frames.last_mut() {
                    frame.rest.push(line);
                }
            }
        }
    }
    let mut panics = frames.iter().take_while(|frame| is_panic(frame.name));
    let first = panics.by_ref().count();
    let kept = &frames[first..];
    let end = kept.iter().position(|frame| runs_tasks(frame.name));
    let mut kept = &kept[..end.unwrap_or(kept.len())];
    if end.is_some() {
        while let [before @ .., last] = kept
            && is_glue(last.name)
        {
            kept = before;
        }
    }
    if kept.is_empty() {
        // The frames have no names to go by.
        return text.to_owned();
    }
    let mut short = String::new();
    for (number, frame) in kept.iter().enumerate() {
        let line = format!("{number:4}: {}", frame.name);
        for line in [&line[..]].iter().chain(&frame.rest) {
            if !short.is_empty() {
                short.push('\n');
            }
            short.push_str(line);
        }
    }
    short
}
