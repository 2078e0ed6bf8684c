//! Processes that are stopped and killed at random moments while they use one kind of object, and
//! what becomes of the calls that others make meanwhile. A call that says how long it waits is over
//! in that time. A call that does not wait is over at once. In the end the counts add up.
//!
//! `MANYHANDS_STOPS` and `MANYHANDS_KILLS` say how many of each there are for each kind of object,
//! `MANYHANDS_SEED` repeats a run, and `MANYHANDS_LATE` is by how many milliseconds a call may be
//! late, on a machine that has nothing else to do.

#[path = "../common/mod.rs"]
mod common;

mod locks;
mod memory;
mod queues;
mod rounds;
