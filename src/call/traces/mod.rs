//! What tasks emit by `tracing`, on its way to the parent; with the feature `tracing` alone.

#[cfg(feature = "tracing")]
mod events;
#[cfg(not(feature = "tracing"))]
mod off;

#[cfg(feature = "tracing")]
pub(crate) use events::{
    Extra, MOST_FIELDS, Value, begin_copy, current_level, install, prepare_copies,
};
#[cfg(not(feature = "tracing"))]
pub(crate) use off::{begin_copy, install, prepare_copies};
