//! Queues, stacks and pipes, in one process and between many, with participants that are killed.
#![cfg_attr(
    long_slices,
    allow(unused_imports, reason = "tests that wait for a slice are left out")
)]

#[path = "../common/mod.rs"]
mod common;

mod basics;
mod ends;
mod handles;
mod items;
mod kills;
mod model;
mod pipes;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// A number from the environment, or this one.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
