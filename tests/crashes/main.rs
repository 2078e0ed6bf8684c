//! What an error says of a death: each kind of it, on worker processes and forked children.

#[path = "../common/mod.rs"]
mod common;

mod backtraces;
mod handlers;
mod kinds;

use manyhands::error::Crash;
use manyhands::prelude::*;

/// The name and the pool of each engine whose tasks may crash.
fn pools() -> [(&'static str, Pool<AnyEngine>); 4] {
    let started = |method| {
        let builder = Processes::builder().workers(1).start_method(method);
        builder.build().unwrap().into()
    };
    [
        ("spawned", started(StartMethod::Spawn)),
        ("fork server", started(StartMethod::ForkServer)),
        ("copy", {
            let builder = Processes::builder().workers(1).allow_threads(true);
            builder
                .start_method(StartMethod::Fork)
                .build()
                .unwrap()
                .into()
        }),
        ("forked", forked().into()),
    ]
}

fn forked() -> Pool<Forked> {
    let builder = Forked::builder().workers(1).allow_threads(true);
    builder.build().unwrap()
}

/// Returns what a task's worker has left of its crash, and the whole error.
#[track_caller]
fn crash<R: std::fmt::Debug>(outcome: Result<R, TaskError>) -> (Crash, String) {
    let error = outcome.unwrap_err();
    let text = error.to_string();
    match error {
        TaskError::WorkerDied {
            crash: Some(crash), ..
        } => (*crash, text),
        other => panic!("{other:?}"),
    }
}
