//! [`Portable`]: what a function has to be so that another process can run it.

/// A function that another process can run, as a task of a [`Pool`](crate::Pool) of processes or as
/// a [`Process`](crate::Process) of its own: it captures no variables, or is made by
/// [`closure!`](crate::closure!).
///
/// All functions that are `Clone + Send` have the trait. Whether one captures variables is checked
/// when code is generated for it, so `cargo check` alone does not find a closure that captures.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::{Portable, closure};
///
/// fn on_two<F: Fn(u64) -> u64 + Portable>(f: F) -> Result<Vec<u64>, TaskError> {
///     Pool::processes(2)?.map(f, 1..4)
/// }
///
/// fn accepts<F: Fn(u64) + Portable>(check: F) -> Result<bool, PoolError> {
///     Ok(Process::spawn(check, 7)?.join()?.success())
/// }
///
/// let (factor, lucky) = (10, 7);
/// assert_eq!(on_two(|x| x + 1)?, [2, 3, 4]);
/// assert_eq!(on_two(closure!([factor] |x: u64| x * factor))?, [10, 20, 30]);
/// assert!(accepts(|x| assert_eq!(x % 2, 1))?);
/// assert!(accepts(closure!([lucky] |x: u64| assert_eq!(x, *lucky)))?);
/// # Ok::<(), TaskError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "a function for another process must not capture variables",
    label = "this captures something that cannot be sent to another process",
    note = "ways out: (1) put it into the argument; or, on a pool, `pool.map_with(&context, |context, item| ..)` sends the context once to each worker",
    note = "(2) `closure!([names] |argument: Type| ..)` sends the named variables along",
    note = "(3) `Pool::forked(n)` runs children that see all variables, copy-on-write"
)]
pub trait Portable: Clone + Send {}

#[diagnostic::do_not_recommend]
impl<F: Clone + Send> Portable for F {}
