//! A panic that leaves a call does not leave its engine in a wrong state.
//!
//! The code of the user that a call runs on the calling thread (the input, `on_progress`, values
//! that are encoded or dropped) runs outside of the engine's locks. If it panics, the call takes
//! back what it has given out, and later calls go on as if it had ended. A panic of a task is an
//! error of that task. A builder is changed by its own calls alone, and what it has been given for
//! the workers runs where panics are caught.

use std::panic::{RefUnwindSafe, UnwindSafe};

#[cfg(target_os = "linux")]
use super::{AnyEngine, Forked, Processes, ProcessesBuilder};
use super::{Serial, Threads, ThreadsBuilder};

macro_rules! unwind_safe {
    ($($engine:ident),*) => {$(
        impl UnwindSafe for $engine {}
        impl RefUnwindSafe for $engine {}
    )*};
}

unwind_safe!(Serial, Threads, ThreadsBuilder);
#[cfg(target_os = "linux")]
unwind_safe!(Processes, ProcessesBuilder, Forked, AnyEngine);
