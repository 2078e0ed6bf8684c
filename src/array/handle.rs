//! A handle as a value: how it is cloned, shown and sent.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SharedArray;
use crate::memory::object::{Object, same_object, shape_of};

same_object!(
    [T] SharedArray<T>,
    "manyhands::SharedArray::<u8>::zeros(4)?",
    object
);

impl<T> Clone for SharedArray<T> {
    fn clone(&self) -> Self {
        Self {
            object: self.object.clone(),
            elements: PhantomData,
        }
    }
}

/// Shows the handle only: another process may be writing to the elements.
impl<T> fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedArray")
            .field("id", &self.object)
            .field("of", &std::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for SharedArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for SharedArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            object: Object::deserialize(deserializer, shape_of::<T>())?,
            elements: PhantomData,
        })
    }
}
