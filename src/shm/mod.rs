//! Shared memory.

mod named;

pub use named::{NameProblem, SharedMemory, SharedMemoryError};
