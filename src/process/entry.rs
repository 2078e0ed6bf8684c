//! Where a child enters the user's code: one function for each combination of function, argument
//! and outcome. Its number is in the start request.

use std::mem::size_of;

use serde::de::DeserializeOwned;

use super::Termination;
use super::start_request::StartRequest;
use crate::call::closure::{self, Reconstruct};
use crate::call::code;
use crate::memory::wire;
use crate::os::fork::{COPY_RETURNED, Original};

/// A function that runs what the start request names, and returns the exit code. It returns an
/// error with the reason if that could not be run.
///
/// The start request is freed before the function begins: with a large argument that is a lot of
/// memory.
pub(super) type Entry = fn(StartRequest) -> Result<i32, String>;

/// Runs a child's function of type `F`.
pub(super) fn enter<F, A, T>(request: StartRequest) -> Result<i32, String>
where
    F: Fn(A) -> T,
    A: DeserializeOwned + 'static,
    T: Termination,
{
    // The captures are decoded first, because the argument's Deserialize may run code of the user.
    let captured = match request.head.reconstruct {
        Some(number) => Some(reconstruct::<F>(number, request.captures())?),
        None => None,
    };
    let f = match &captured {
        Some(f) => f,
        None if size_of::<F>() == 0 => zero_sized::<F>(),
        None => return Err("its function came without what it captures".to_owned()),
    };
    let mut bytes = request.argument();
    let argument = wire::take::<A>(&mut bytes)
        .map_err(|reason| format!("its argument cannot be deserialised: {reason}"))?;
    drop(request);
    let original = Original::here();
    let outcome = f(argument);
    // A copy that the function has forked ends here: only the child itself reports the outcome.
    original.end_copy(COPY_RETURNED);
    Ok(outcome.exit_code())
}

/// Returns a zero-sized reference to the function, which has nothing in it but its type.
#[allow(unsafe_code)]
fn zero_sized<'a, F: 'a>() -> &'a F {
    // SAFETY: entries are only made for functions that `Process::spawn` lets through (`Portable`,
    // and nothing to drop when zero-sized), and a child enters one only because its parent, of the
    // same build, had a value of the function's type.
    unsafe { code::zero_sized() }
}

/// Reconstructs the function with what it captures.
#[allow(unsafe_code)]
fn reconstruct<F>(number: u64, captures: &[u8]) -> Result<F, String> {
    // SAFETY: the number comes from the parent, which runs the same build by the fingerprint in its
    // greeting, and which makes the number of a `Reconstruct`.
    let reconstruct = unsafe { code::function::<Reconstruct>(number) }
        .ok_or_else(|| "the executable does not have its function".to_owned())?;
    // SAFETY: the parent has the number and the captures from `sendable`, for the function that
    // this entry is made for.
    unsafe { closure::reconstruct(reconstruct, captures) }
        .map_err(|reason| format!("what its function captures cannot be deserialised: {reason}"))
}

/// Returns the entry with this number.
#[allow(unsafe_code)]
pub(super) fn find(number: u64) -> Option<Entry> {
    // SAFETY: as in `reconstruct`; the parent makes this number of an `Entry`.
    unsafe { code::function::<Entry>(number) }
}
