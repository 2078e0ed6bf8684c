//! Single child processes: [`Process`], the counterpart of Python's `multiprocessing.Process`.
//!
//! A child is this program, started again, that runs one function instead of `main` and then ends.
//! It shares nothing with its parent: the argument is sent to it, and so is what
//! [`closure!`](crate::closure!) captures. A [`Pool`](crate::Pool) is better for many short tasks;
//! a process of its own is for a function that runs for long or must be stopped from outside.
//!
//! ```
//! use manyhands::process::{ExitStatus, Process};
//!
//! let child = Process::spawn(|name: String| println!("Hello, {name}"), "you".to_owned())?;
//! assert_eq!(child.join()?, ExitStatus::Exit(0));
//! # Ok::<(), manyhands::process::ProcessError>(())
//! ```
//!
//! How a child lives:
//!
//! | what | how it is |
//! |---|---|
//! | start | before `main`, as pool workers start |
//! | descriptors | of the parent's it has the standard streams alone |
//! | standard input | `/dev/null`, unless the builder says otherwise |
//! | standard output and error | the parent's |
//! | SIGINT (Ctrl-C) | caught and dropped: the parent gets it too, and decides |
//! | SIGINT, if the parent ignores it | ignored |
//! | the parent is killed | the kernel kills the child at once, and the child's own children |
//! | the parent ends normally | it waits for its children |
//! | | it kills those that are [daemons](ProcessBuilder::daemon) |
//! | its [log records](crate::logs) | go through the parent's logger, if that has one |
//! | it is ended by a signal | the processes that it has started are killed too |
//! | | ([`kill_descendants`](ProcessBuilder::kill_descendants)) |
//! | its handle is dropped | nothing: it runs on |
//!
//! How it ends is its [`ExitStatus`]:
//!
//! | the function | exit status |
//! |---|---|
//! | returns | `Exit(0)` |
//! | returns the `u8` 8 | `Exit(8)` |
//! | returns `Err` | `Exit(1)`, and the error on standard error |
//! | panics | `Exit(101)`, the message on standard error (with `panic = "abort"`: `Signal(6)`) |
//! | calls `std::process::exit(8)` | `Exit(8)` |
//! | is killed by a signal | `Signal`, with its number |
//! | never runs | `Exit(97)`, and the reason on standard error |
//!
//! A function never runs if its argument cannot be deserialised, for example.
//!
//! [`Process::result`] makes an error of what is no success: with the panic and its backtrace, the
//! error that the function returned, or the [crash](crate::error::Crash) and its stack.
//!
//! If the function forks, the copy of the child has no part in that: it ends when the function
//! returns in it, with exit code 0, or with 101 if the function panics there.
//!
//! A child that has ended stays in the system's table until its parent asks for its status.
//! [`Process::join`] does, and so do [`active_children`], every later start of a child, the drop of
//! the handle of a child that has ended, and the end of the program.

mod builder;
mod child;
mod entry;
mod guard;
mod handle;
mod identity;
pub(crate) mod launch;
pub(crate) mod logs;
pub(crate) mod origin;
mod outcome;
mod registry;
mod spawned;
mod start;
mod start_request;
mod stdio;
pub(crate) mod traces;
pub(crate) mod tree;

pub use builder::ProcessBuilder;
pub use handle::{Process, active_children};
pub use identity::{ProcessInfo, current, parent};
pub use outcome::Termination;
pub use stdio::Stdio;

pub use crate::error::ProcessError;
pub use crate::os::ExitStatus;

pub(crate) use child::CHILD;
pub(crate) use guard::GUARD;
pub(crate) use identity::{Origin, check_depth};
pub(crate) use stdio::LineCallback;
