//! Turns a function into a number that stands for it in every process of the same build, and back.
//!
//! Position-independent executables are loaded at another address each time, so an address means
//! nothing to another process. The distance of a function from the start of the image does. That
//! holds only for the main executable, which workers are started from, and only between processes
//! of one build, which the worker checks in its greeting.
//!
//! Unsafe code is allowed here: turning an address into a function is what the module is for.
#![allow(unsafe_code)]

use std::mem::{size_of, transmute_copy};
use std::ptr::NonNull;

use crate::error::ProcessError;
use crate::os::image::Image;

/// Checks that this crate is part of the main executable, so that a worker has all its code.
///
/// # Errors
///
/// [`ProcessError::ForeignExecutable`] if it is not: it is in a shared library that some other
/// program has loaded.
pub(crate) fn check_image() -> Result<(), ProcessError> {
    let here = check_image as fn() -> Result<(), ProcessError> as usize;
    if Image::main().contains_code(here) {
        Ok(())
    } else {
        Err(ProcessError::ForeignExecutable)
    }
}

/// Returns the number of a function, given its address.
///
/// # Errors
///
/// [`ProcessError::ForeignFunction`] if it is not part of the main executable.
pub(crate) fn number(address: usize) -> Result<u64, ProcessError> {
    let image = Image::main();
    if image.contains_code(address) {
        Ok((address - image.base()) as u64)
    } else {
        Err(ProcessError::ForeignFunction)
    }
}

/// Returns the function with this number; `None` if there can be none.
///
/// # Safety
///
/// The number must come from [`number`], in a process of the same build, of a function of type `F`.
pub(crate) unsafe fn function<F: Copy>(number: u64) -> Option<F> {
    const {
        assert!(
            size_of::<F>() == size_of::<usize>(),
            "F is a function pointer"
        );
    }
    let image = Image::main();
    let address = image.base().checked_add(usize::try_from(number).ok()?)?;
    if !image.contains_code(address) {
        return None;
    }
    // SAFETY: the caller promises that the address is that of a function of type F.
    Some(unsafe { transmute_copy::<usize, F>(&address) })
}

/// Returns a zero-sized reference: to a function item, or to a closure that captures nothing.
///
/// # Safety
///
/// A value of the type must exist or have existed in a process of this build, and the type must be
/// `Clone` without anything to run when a value is dropped: then one more value of it adds nothing
/// that is not already true.
///
/// # Panics
///
/// If the type is not zero-sized.
pub(crate) unsafe fn zero_sized<'a, F: 'a>() -> &'a F {
    // Not asserted at compile time: code that is never reached for other types may still be
    // generated for them.
    assert!(
        size_of::<F>() == 0,
        "only a zero-sized value can be made from nothing"
    );
    // SAFETY: a reference to a zero-sized type needs an aligned, non-null address and nothing
    // behind it.
    unsafe { NonNull::<F>::dangling().as_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(x: u32) -> u32 {
        2 * x
    }

    #[test]
    fn a_function_is_found_by_its_number() {
        let number = number(double as fn(u32) -> u32 as usize).unwrap();
        // SAFETY: the number is that of `double`, of this type, from this process.
        let found = unsafe { function::<fn(u32) -> u32>(number) }.unwrap();
        assert_eq!(found(21), 42);
    }

    #[test]
    fn functions_of_other_objects_have_no_number() {
        assert_eq!(
            number(libc::getpid as *const () as usize),
            Err(ProcessError::ForeignFunction)
        );
        // SAFETY: nothing is called.
        assert!(unsafe { function::<fn()>(u64::MAX / 2) }.is_none());
    }
}
