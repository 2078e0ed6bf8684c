//! Errors to compare with. Their variants can get fields, so only the crate makes them; serde can.

use std::time::Duration;

use manyhands::{PoolError, TaskError, TaskId};
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};

/// Makes the variant of an error that has these fields.
fn error<E: DeserializeOwned>(variant: &str, fields: &Value) -> E {
    from_value(json!({ variant: fields })).unwrap()
}

pub fn cancelled() -> TaskError {
    error("Cancelled", &json!({}))
}

pub fn taken() -> TaskError {
    error("Taken", &json!({}))
}

pub fn timed_out(index: Option<usize>, limit: Duration) -> TaskError {
    error(
        "TimedOut",
        &json!({ "index": index, "limit": limit, "attempts": 1 }),
    )
}

pub fn task_timed_out(task: TaskId, limit: Duration) -> TaskError {
    let index = json!({ "task": task });
    error(
        "TimedOut",
        &json!({ "index": index, "limit": limit, "attempts": 1 }),
    )
}

pub fn is_closed(error: &TaskError) -> bool {
    error.as_pool() == Some(&PoolError::Closed)
}

pub fn is_cancelled_or_closed(error: &TaskError) -> bool {
    matches!(error, TaskError::Cancelled { .. }) || is_closed(error)
}

pub fn too_deep(limit: u32) -> PoolError {
    error("TooDeep", &json!({ "limit": limit }))
}

pub fn threads_running(names: &[&str]) -> PoolError {
    error("ThreadsRunning", &json!({ "names": names }))
}

pub fn broken(reason: &str) -> PoolError {
    error("Broken", &json!({ "reason": reason }))
}
