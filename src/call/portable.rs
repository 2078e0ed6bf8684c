//! [`Portable`] and [`PortableValue`]: what a function and a value have to be so that another
//! process can run the one and be sent the other.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
    label = "this captures something that cannot be sent to another process, or its type does not say that it captures nothing",
    note = "ways out: (1) put it into the argument; or, on a pool, `pool.map_with(&context, |context, item| ..)` sends the context once to each worker",
    note = "(2) `closure!([names] |argument: Type| ..)` sends the named variables along",
    note = "(3) `Pool::forked(n)` runs children that see all variables, copy-on-write",
    note = "a generic function that hands on a function of its caller asks for it: `F: Fn(A) -> R + manyhands::Portable + Sync`"
)]
pub trait Portable: Clone + Send {}

#[diagnostic::do_not_recommend]
impl<F: Clone + Send> Portable for F {}

/// A value that can be sent to another process, as an argument, a context or a result.
///
/// All types that implement serde's `Serialize` and `DeserializeOwned` have the trait: derive both.
/// A reference has no owner in another process, so there must be none in the type; send an owned
/// value, or what the function only reads as the context of
/// [`map_with`](crate::Pool::map_with).
///
/// Items of `&str` are such references too. For them the compiler says no more than
/// "implementation of `Deserialize` is not general enough": send `String`s.
///
/// Generic code may ask for this trait or for those of serde.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::PortableValue;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Point(f64, f64);
///
/// /// Returns the values as worker processes have got them.
/// fn through_workers<A: PortableValue + Send + 'static>(
///     items: Vec<A>,
/// ) -> Result<Vec<A>, TaskError> {
///     Pool::processes(2)?.map(|item: A| item, items)
/// }
///
/// let points = through_workers(vec![Point(1.0, 2.0), Point(3.0, 4.0)])?;
/// assert_eq!(points[1].0, 3.0);
/// # Ok::<(), TaskError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "a value of type `{Self}` cannot be sent to another process",
    label = "`{Self}` does not implement serde's `Serialize` and `DeserializeOwned`",
    note = "a type of your own derives both: `#[derive(serde::Serialize, serde::Deserialize)]`; types of other crates often have a feature `serde`",
    note = "a reference points into this process: send owned values, as in `items.iter().cloned()`, or `String` for `&str` and `Vec<T>` for `&[T]`. What the function only reads, `pool.map_with(&context, |context, item| ..)` sends once to each worker",
    note = "`Arc<Mutex<T>>` of std is shared by threads only: `manyhands::sync::Mutex`, `SharedValue` and `SharedArray` are shared by processes",
    note = "an error such as `Box<dyn Error>` has a text that can be sent: `.map_err(|error| error.to_string())`",
    note = "`Pool::threads(n)` sends nothing, and `Pool::forked(n)` only results"
)]
pub trait PortableValue: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> PortableValue for T {}

/// The argument of a function made by [`closure!`](crate::closure!): where it runs in another
/// process, its argument has come from one.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "an argument of type `{Self}` cannot come from another process",
    label = "`{Self}` does not implement serde's `DeserializeOwned`",
    note = "a reference points into one process: take an owned value, as in `|word: String|` for `&str`, and send it, as in `items.iter().cloned()`",
    note = "a type of your own derives it: `#[derive(serde::Serialize, serde::Deserialize)]`"
)]
pub trait PortableArgument: DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned> PortableArgument for T {}
