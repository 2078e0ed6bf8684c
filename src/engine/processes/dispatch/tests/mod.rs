//! Tests of the dispatch with made-up lanes ([`made_up`](super::made_up)). No process is started,
//! and no test sleeps: the moment of a look is passed in.

mod accounts;
mod again;
mod chunks;
mod cut;
mod deaths;
mod lanes;
mod leave;
mod stall;
mod stop;

use std::time::Duration;

use super::made_up::{MadeUp, Peer, until};
use crate::error::{Death, TaskError};

fn segfault() -> Death {
    Death::Signal(11)
}

fn killed() -> Death {
    Death::Signal(9)
}

/// Returns the error of an item at which `peer` died.
fn died(peer: &Peer, cause: Death, attempts: u32) -> TaskError {
    TaskError::WorkerDied {
        index: None.into(),
        pid: peer.pid,
        cause,
        attempts,
        crash: None,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    crate::os::clock::nanoseconds(time)
}
