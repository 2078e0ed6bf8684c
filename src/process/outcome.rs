//! [`Outcome`]: what the function of a child process may return.

use std::fmt::Display;
use std::io::{self, Write};

use super::identity;

/// What a function that a [`Process`](super::Process) runs may return: what becomes of it as an exit code.
///
/// `()` is code 0. `Err` is code 1, and the error is printed to standard error; `Ok` is what it holds. A function
/// that never returns (`-> !`) is fine too.
///
/// # Examples
///
/// ```
/// use manyhands::process::{ExitStatus, Process};
///
/// fn check(age: u32) -> Result<(), String> {
///     if age < 18 { Err(format!("{age} is too young")) } else { Ok(()) }
/// }
///
/// assert_eq!(Process::spawn(check, 20)?.join()?, ExitStatus::Exit(0));
/// assert_eq!(Process::spawn(check, 17)?.join()?, ExitStatus::Exit(1));
/// # Ok::<(), manyhands::PoolError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "the function of a child process returns `()` or `Result<(), E>`, not `{Self}`",
    note = "nothing comes back from a child but its exit code; for a result, use `Pool::processes` and `submit`",
    note = "the error `E` of a `Result` implements `Display`"
)]
pub trait Outcome {
    /// The exit code, from 0 to 255, after telling standard error what there is to tell.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::Outcome;
    ///
    /// assert_eq!(().exit_code(), 0);
    /// assert_eq!(Err::<(), _>("no such index").exit_code(), 1); // and standard error has the error
    /// ```
    fn exit_code(self) -> i32;
}

impl Outcome for () {
    fn exit_code(self) -> i32 {
        0
    }
}

impl<T: Outcome, E: Display> Outcome for Result<T, E> {
    fn exit_code(self) -> i32 {
        match self {
            Ok(outcome) => outcome.exit_code(),
            Err(error) => {
                complain(&error);
                1
            }
        }
    }
}

/// Says on standard error what went wrong in this process. If nobody can be told, that is no further error.
pub(super) fn complain(error: &dyn Display) {
    let name = identity::name();
    let text = format!("manyhands: process {name}: {error}\n");
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `!`, which cannot be named on stable Rust outside the place of a return type. Closures like `|()| exit(8)` return it.
type Never = <fn() -> ! as Returns>::Type;

/// The way to get at it.
pub trait Returns {
    /// What the function returns.
    type Type;
}

impl<T> Returns for fn() -> T {
    type Type = T;
}

impl Outcome for Never {
    fn exit_code(self) -> i32 {
        self
    }
}
