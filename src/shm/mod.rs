//! Shared memory, and what lives in it.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "what is built on it is not all there yet")
)]
pub(crate) mod wait;
