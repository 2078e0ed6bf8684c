//! What workers and children emit by `tracing`, on its way through the subscriber of this process;
//! with the feature `tracing` alone.

#[cfg(feature = "tracing")]
mod emit;
#[cfg(not(feature = "tracing"))]
mod off;

#[cfg(feature = "tracing")]
pub(crate) use emit::Tracer;
#[cfg(not(feature = "tracing"))]
pub(crate) use off::Tracer;
