//! The floors, from the ground up, and what lies on each of them today.

use super::verdict::Floor;

/// The floors. A file that is on its way to another folder has the floor that it will get there.
pub(crate) const FLOORS: &[Floor] = &[
    // The one door to the kernel, and the switch to loom.
    ("os", &["facade", "os"]),
    // What can go wrong, and the cores that may be used. `barrier` has how a wait at a barrier ends, `copies` how a copy of a
    // process ends that a task has forked.
    ("error", &["barrier", "engine/copies", "error", "machine", "panic"]),
    ("codec", &["codec"]),
    // What a family of processes shares. `kind` goes in two: the numbers of kinds stay here, the
    // table of what each does about a death goes to `objects`.
    ("memory", &["shm"]),
    // Side by side: what lies in this memory, and the same for threads alone.
    (
        "sync, array, queue, named",
        &[
            "queue",
            "shm/array",
            "shm/named",
            "shm/value",
            "sync",
            "thread",
        ],
    ),
    ("objects", &[]),
    ("lane", &["lane"]),
    ("future", &["future"]),
    // What a call is, whichever engine runs it.
    ("call", &["call"]),
    ("process", &["process"]),
    ("select", &["queue/ready"]),
    // The traits and the engines that have them; the steps of `map_reduce` run on any of them.
    ("engine", &["engine"]),
    ("pool", &["engine/processes/face", "pool"]),
    ("lib", &["hook", "lib"]),
];
