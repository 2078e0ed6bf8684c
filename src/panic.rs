//! Turns a panic into a value: its message, and where it was raised.
//!
//! `catch_unwind` gives the payload but not the place; only the panic hook sees that. So this crate
//! puts a hook in front of the program's own. It notes message and place for threads that are
//! inside [`catch`], and then calls the hook that was there before. So what the user sees on
//! stderr, or does in a hook, stays as it was. If the program replaces the hook later, places are
//! lost and nothing else. Where std would print a thread without a name, because it runs the tasks
//! of a worker process, [`print`] prints the worker's.

mod print;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Once, OnceLock};

#[cfg(target_os = "linux")]
use crate::error::ClaimError;
use crate::error::{Message, PanicLocation, TaskError, at_place, capture_backtrace};

#[cfg(target_os = "linux")]
pub(crate) use self::print::name_this_thread;

/// A panic that was caught.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error,
)]
#[error("{message}{}", at_place(location.as_ref()))]
pub(crate) struct Caught {
    pub(crate) message: String,
    pub(crate) location: Option<PanicLocation>,
    /// The stack at the panic, if the environment asks for it.
    pub(crate) backtrace: Option<Message>,
    /// The claim that was refused, if the task unwound with [`Refused`] and not with a panic of the
    /// user's.
    #[cfg(target_os = "linux")]
    pub(crate) claim: Option<ClaimError>,
}

/// The payload with which the crate itself unwinds, past the hook, when a task cannot have what it
/// must work on.
#[cfg(target_os = "linux")]
pub(crate) struct Refused(pub(crate) ClaimError);

#[cfg(target_os = "linux")]
impl Refused {
    /// Ends the task with this error.
    pub(crate) fn end_task(self) -> ! {
        #[cfg(panic = "unwind")]
        std::panic::resume_unwind(Box::new(self));
        // Without unwinding, a task can report it only by a panic.
        #[cfg(not(panic = "unwind"))]
        panic!("{}", self.0);
    }
}

impl Caught {
    /// Makes one of which this is known and nothing else.
    #[expect(clippy::unnecessary_box_returns, reason = "as all that hold one do")]
    pub(crate) fn saying(message: impl Into<String>) -> Box<Self> {
        let message = message.into();
        Box::new(Self {
            message,
            ..Self::default()
        })
    }

    /// Returns whether it is no panic of the task's own: it could not have what it works on.
    pub(crate) fn is_refusal(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.claim.is_some();
        #[cfg(not(target_os = "linux"))]
        false
    }

    pub(crate) fn into_error(self, index: Option<usize>) -> TaskError {
        #[cfg(target_os = "linux")]
        if let Some(claim) = self.claim {
            return claim.into();
        }
        TaskError::Panicked {
            index: index.into(),
            message: self.message.into(),
            location: self.location.map(Box::new),
            backtrace: self.backtrace,
        }
    }
}

thread_local! {
    /// How many `catch` are on this thread's stack.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The last panic raised inside one of them.
    static LAST: RefCell<Option<Caught>> = const { RefCell::new(None) };
}

/// Where a panic is written down that the process does not survive.
pub(crate) struct Report {
    /// Whether a panic on any thread of this process must be written down.
    pub(crate) is_wanted: fn() -> bool,
    pub(crate) write: fn(&Caught),
}

static REPORT: OnceLock<Report> = OnceLock::new();

/// Has panics reported by `report`, in this process and in copies of it.
#[cfg(target_os = "linux")]
pub(crate) fn report_by(report: Report) {
    // It may be set already: by the same worker, or in the process that this is a copy of.
    let _ = REPORT.set(report);
}

/// Puts the hook in place. Every engine calls it before its first task. Later calls do nothing.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = take_hook();
        // With no hook set, `take_hook` gives that of std.
        let is_std = is_same(&*previous, &*take_hook());
        set_hook(Box::new(move |info| {
            note(info);
            if !(is_std && print::print(info)) {
                previous(info);
            }
        }));
    });
}

type HookFn = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;

/// Returns whether two hooks are of the same type. A hook that captures nothing has no address of
/// its own: the types tell them apart.
fn is_same(one: &HookFn, other: &HookFn) -> bool {
    // If one type has two tables, the hook of std is called as before.
    std::ptr::eq(one, other)
}

fn note(info: &PanicHookInfo<'_>) {
    let inside = DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false);
    let report = REPORT.get();
    let inside = inside || report.is_some_and(|report| (report.is_wanted)());
    if !inside {
        return;
    }
    let caught = Caught {
        message: message(info.payload()),
        location: info.location().map(PanicLocation::from),
        backtrace: capture_backtrace().map(Message::from),
        ..Caught::default()
    };
    if let Some(report) = report {
        (report.write)(&caught);
    }
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Some(caught);
        }
    });
}

/// Runs `f`; a panic in it becomes an error.
///
/// `UnwindSafe` is not asked for: after a panic, callers drop what their closures have captured, or
/// it is consistent.
///
/// The error is behind a pointer, so that outcomes of small results stay small.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Box<Caught>> {
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|payload| Box::new(caught(payload)))
}

/// Returns what is known of the panic with this payload, which this thread has caught.
#[cold]
fn caught(payload: Box<dyn Any + Send>) -> Caught {
    #[cfg(target_os = "linux")]
    if let Some(Refused(claim)) = payload.downcast_ref() {
        return Caught {
            message: claim.to_string(),
            claim: Some(claim.clone()),
            ..Caught::default()
        };
    }
    let message = message(&*payload);
    // If the task resumed a panic, that one did not pass the hook again; the note may be of
    // another one.
    let noted = LAST.take().filter(|last| last.message == message);
    // Not before: a payload that panics as it is dropped leaves a note of its own.
    discard(payload);
    noted.unwrap_or(Caught {
        message,
        ..Caught::default()
    })
}

/// Returns the text of a panic's payload.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is not text (std::panic::panic_any)".to_owned()
    }
}

/// Drops a value whose `Drop` may panic in turn.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

#[cfg(test)]
mod tests;
