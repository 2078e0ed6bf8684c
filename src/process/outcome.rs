//! [`Termination`]: what the function of a child process may return.

use std::fmt::Display;
use std::io::{self, Write};

use super::identity;
use crate::lane::ended::{self, Ended};

/// A type that a function run by a [`Process`](super::Process) may return: its value becomes an
/// exit code.
///
/// `()` becomes code 0, and a `u8` the code that it is. `Err` becomes code 1, and the error is
/// printed to standard error. `Ok` becomes the code of what it holds. A function that never returns
/// (`-> !`) is fine too.
///
/// Other numbers are refused: they do not fit into an exit code, and are most often a result, which
/// cannot come back.
///
/// # Examples
///
/// ```
/// use manyhands::process::{ExitStatus, Process};
///
/// fn check(age: u32) -> Result<(), String> {
///     if age < 18 {
///         Err(format!("{age} is too young"))
///     } else {
///         Ok(())
///     }
/// }
///
/// assert_eq!(Process::spawn(check, 20)?.join()?, ExitStatus::Exit(0));
/// assert_eq!(Process::spawn(check, 17)?.join()?, ExitStatus::Exit(1));
/// # Ok::<(), manyhands::process::ProcessError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "the function of a child process returns `()`, an exit code (`u8`) or `Result<(), E>`, not `{Self}`",
    note = "nothing comes back from a child but its exit code; for a result, use `Pool::processes` and `submit`",
    note = "the error `E` of a `Result` implements `Display`"
)]
pub trait Termination {
    /// Returns the exit code, from 0 to 255, after printing to standard error what there is to say.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::Termination;
    ///
    /// assert_eq!(().exit_code(), 0);
    /// assert_eq!(3.exit_code(), 3);
    /// assert_eq!(Err::<(), _>("no such index").exit_code(), 1); // standard error has the error
    /// ```
    fn exit_code(self) -> i32;
}

impl Termination for () {
    fn exit_code(self) -> i32 {
        0
    }
}

impl Termination for u8 {
    fn exit_code(self) -> i32 {
        self.into()
    }
}

impl<T: Termination, E: Display> Termination for Result<T, E> {
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

/// Prints to standard error what went wrong in this process, and says it to the parent. If standard
/// error cannot be written to, that is not reported as a further error.
pub(super) fn complain(error: &dyn Display) {
    let error = error.to_string();
    ended::say(Ended::Failed(error.clone()));
    let name = identity::name();
    let text = format!("manyhands: process {name}: {error}\n");
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `!`, which cannot be named on stable Rust except as a return type. Closures like `|()| exit(8)`
/// return it.
type Never = <fn() -> ! as Returns>::Type;

/// The way to name it.
pub trait Returns {
    /// The type that the function returns.
    type Type;
}

impl<T> Returns for fn() -> T {
    type Type = T;
}

impl Termination for Never {
    fn exit_code(self) -> i32 {
        self
    }
}
