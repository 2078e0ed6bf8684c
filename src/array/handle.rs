//! A handle as a value: how it is cloned, shown and sent.

use std::fmt;

use super::SharedArray;
use crate::memory::object::{handle, same_object, shape_of};

same_object!(
    [T] SharedArray<T>,
    "manyhands::SharedArray::<u8>::zeros(4)?",
    object
);

/// Shows the handle only: another process may be writing to the elements.
impl<T> fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedArray")
            .field("id", &self.object)
            .field("of", &std::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}

handle!(SharedArray<T> { object, elements }, shape_of::<T>());
