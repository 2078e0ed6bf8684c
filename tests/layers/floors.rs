//! The floors, from the ground up, and what lies on each of them today.

use super::verdict::Floor;

/// The floors. A file that is on its way to another folder has the floor that it will get there.
pub(crate) const FLOORS: &[Floor] = &[
    // The one door to the kernel, and the switch to loom.
    ("os", &["shim", "os", "signals"]),
    // What can go wrong, and the cores that may be used. `barrier` has how a wait at a barrier
    // ends. `copies` has how a copy of a process ends that a task has forked. `text` reads options,
    // and says what is wrong with one.
    (
        "error",
        &["barrier", "copies", "error", "machine", "panic", "text"],
    ),
    ("codec", &["codec"]),
    // What a family of processes shares.
    ("memory", &["memory"]),
    // Side by side: what lies in this memory, and the same for threads alone.
    (
        "sync, array, queue, named",
        &["array", "named", "queue", "sync", "thread", "value"],
    ),
    // What each kind of shared object does about a death.
    ("objects", &["objects"]),
    ("lane", &["lane"]),
    ("future", &["future"]),
    // What a call is, whichever engine runs it.
    ("call", &["call"]),
    ("process", &["process"]),
    ("select", &["select"]),
    // The traits and the engines that have them; the steps of `map_reduce` run on any of them.
    ("engine", &["engine"]),
    ("pool", &["pool"]),
    ("lib", &["any_error", "hook", "lib", "shm"]),
];
