//! Locks and signals between processes, and what becomes of them when one is killed.
#![cfg_attr(
    long_slices,
    allow(unused_imports, reason = "tests that wait for a slice are left out")
)]

#[path = "../common/mod.rs"]
mod common;

mod barrier;
mod condvar;
mod crossing;
mod event;
mod kills;
mod model;
mod mutex;
mod once;
mod rwlock;
mod semaphore;

use std::time::Duration;

use manyhands::Process;
use manyhands::process::ExitStatus;
use manyhands::sync::Semaphore;

/// A time that passes, and is not waited for in vain for long.
const SHORT: Duration = Duration::from_millis(20);

/// Far longer than anything should take; what takes as long has failed.
const LONG: Duration = common::DEADLINE;

/// Never comes back; for a child that is to be killed.
fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

/// Waits until this many have said that they are there.
fn await_all(ready: &Semaphore, count: usize) {
    let permits = ready.acquire_many_timeout(count, LONG);
    permits.expect("they are all there").forget();
}

/// Waits until all have ended, and well.
fn join_all(children: impl IntoIterator<Item = Process>) {
    for child in children {
        let status = child.join_timeout(LONG).unwrap();
        assert_eq!(status, Some(ExitStatus::Exit(0)));
    }
}

/// Kills a child and waits for its end.
fn kill(child: &Process) {
    common::kill(child.pid());
    assert_eq!(child.join().unwrap(), ExitStatus::Signal(9));
}

/// Returns the number that a variable of the environment says.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
