//! One suite for all engines: what a pool does, whatever its tasks run on.
//!
//! Functions capture nothing and values are serde, so that the same text compiles for every engine.
//! The numbers in the names are the lines of the list of behaviours (`docs/behaviours.md`).
//!
//! Most of the time of a build goes into what each engine makes of the suite. Where the gate builds
//! it once more, for some engines only, it sets `cfg(suite_on_processes)`, which leaves out those
//! of all other engines, or `cfg(suite_without_forked)`.

#[path = "../common/mod.rs"]
mod common;
mod gate;
mod runtime;

#[macro_use]
mod accounts;
#[macro_use]
mod at_once;
#[macro_use]
mod callbacks;
#[macro_use]
mod cancelling;
#[macro_use]
mod crossing;
#[macro_use]
mod early_ends;
#[macro_use]
mod ends;
#[macro_use]
mod futures;
#[macro_use]
mod grace;
#[macro_use]
mod handles;
#[macro_use]
mod identity;
#[macro_use]
mod lazy;
#[macro_use]
mod limits;
#[macro_use]
mod map;
#[macro_use]
mod options;
#[macro_use]
mod outcomes;
#[macro_use]
mod queue_limit;
#[macro_use]
mod queued_tasks;
#[macro_use]
mod retry;
#[macro_use]
mod seeds;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::errors::{cancelled, is_cancelled_or_closed, taken, task_timed_out, timed_out};
use common::refuse::Refused;
use common::{
    DEADLINE, Leftovers, as_program, assert_matches, eventually, finish_within, is_program,
};
use gate::{Fence, Gate, Opens};
use manyhands::engine::WhenFull;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::{
    CancellationToken, Progress, ReturnWhen, RunReduce, Shutdown, as_completed, at_fork_child,
    closure, item_seed, wait, worker_index,
};
use seeds::{ask_with_text, seed_of, seeds_of};
use serde::{Deserialize, Serialize};

/// Does not come back from where it went: it encodes, and never decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct OneWay(u32);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("one way only"))
    }
}

/// Cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Stuck(u32);

impl Serialize for Stuck {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("stuck here"))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    name: String,
    values: Vec<f64>,
    tag: Option<char>,
}

fn record(n: u32) -> Record {
    Record {
        name: "hand ".repeat(n as usize % 7),
        values: (0..n % 50).map(f64::from).collect(),
        tag: char::from_u32(n),
    }
}

fn not_700(x: u32) -> u32 {
    assert!(x != 700, "item {x} is bad");
    x
}

/// Where `not_700` panics.
const NOT_700_LINE: u32 = line!() - 5;

/// An iterator that does not say how long it is.
fn unsized_up_to(n: u64) -> impl Iterator<Item = u64> {
    (0..n).filter(|_| true)
}

/// How many items an iterator gave out, while it is consumed.
static GIVEN: AtomicUsize = AtomicUsize::new(0);

/// Which items fail when `first` is the first of them: the next two as well, and one further on.
fn fails(first: u32, item: u32) -> bool {
    [0, 1, 2, 60].contains(&item.wrapping_sub(first))
}

fn count_given() {
    GIVEN.fetch_add(1, Ordering::Relaxed);
}

/// Tasks panic here by the thousand, on purpose. What is asserted comes back as an error; what
/// workers print of it would hide what a failing test prints.
fn processes() -> Pool<Processes> {
    let pool = Processes::builder().workers(2).stderr(Stdio::null());
    pool.build().unwrap()
}

/// Has forked children print nothing.
fn quiet_children() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        at_fork_child(|| {
            let null = std::fs::File::options().write(true).open("/dev/null");
            nix::unistd::dup2_stderr(null.unwrap()).unwrap();
        });
    });
}

/// As [`processes`].
fn forked() -> Pool<Forked> {
    quiet_children();
    let pool = Forked::builder().workers(2).allow_threads(true);
    pool.build().unwrap()
}

/// What holds on every engine.
mod all {
    use super::*;

    macro_rules! conformance {
        ($engine:ident, $make:expr) => {
            mod $engine {
                use super::*;
                maps!($make);
            }
        };
    }

    #[cfg(not(suite_on_processes))]
    conformance!(serial, Pool::serial());
    #[cfg(not(suite_on_processes))]
    conformance!(threads, Pool::threads(2).unwrap());
    conformance!(processes, processes());
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked());
}

/// Calls, futures and ends: what holds on every engine.
mod calls {
    use super::*;

    macro_rules! conformance {
        ($engine:ident, $make:expr) => {
            mod $engine {
                use super::*;
                use std::sync::Arc;
                outcomes!($make);
                lazy!($make);
                limits!($make);
                options!($make);
                futures!($make);
                handles!($make);
                callbacks!($make);
                ends!($make);
                cancelling!($make);
                early_ends!($make);
                graces!($make);
                seeds!($make);
                at_once!($make);
                told_at_once!($make);
                identity!($make);
            }
        };
    }

    #[cfg(not(suite_on_processes))]
    conformance!(serial, Pool::serial());
    #[cfg(not(suite_on_processes))]
    conformance!(threads, Pool::threads(2).unwrap());
    conformance!(processes, processes());
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked());
    #[cfg(not(suite_on_processes))]
    conformance!(any, Pool::<AnyEngine>::from(processes()));
}

/// Items that are tried again.
mod tried_again {
    use super::*;
    use retry::Way::{Dies, Panics, TimesOut};

    macro_rules! conformance {
        ($engine:ident, $make:expr, $ways:expr) => {
            mod $engine {
                use super::*;
                retry!($make, $ways);
            }
        };
    }

    #[cfg(not(suite_on_processes))]
    conformance!(serial, Pool::serial(), [Panics, TimesOut]);
    #[cfg(not(suite_on_processes))]
    conformance!(threads, Pool::threads(2).unwrap(), [Panics, TimesOut]);
    conformance!(processes, processes(), [Panics, TimesOut, Dies]);
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked(), [Panics, TimesOut, Dies]);
    #[cfg(not(suite_on_processes))]
    conformance!(any, Pool::<AnyEngine>::from(processes()), [Panics, Dies]);

    mod queued_threads {
        use super::*;
        queued_retry!(Pool::threads(2).unwrap());
    }
    mod queued_processes {
        use super::*;
        queued_retry!(processes());
    }
}

/// Statistics and timelines, which are asked for. The second argument is whether tasks run in the
/// process of the caller.
mod accounted {
    use super::*;
    use std::time::Instant;

    macro_rules! conformance {
        ($engine:ident, $make:expr, $runs_here:expr) => {
            mod $engine {
                use super::*;
                accounts!($make, $runs_here);
                reduces!($make);
            }
        };
    }

    fn threads() -> Pool<Threads> {
        let builder = Threads::builder().workers(2).timeline(true);
        builder.build().unwrap()
    }

    fn processes() -> Pool<Processes> {
        let builder = Processes::builder().workers(2).stderr(Stdio::null());
        builder.timeline(true).build().unwrap()
    }

    fn forked() -> Pool<Forked> {
        quiet_children();
        let builder = Forked::builder().workers(2).allow_threads(true);
        builder.timeline(true).build().unwrap()
    }

    #[cfg(not(suite_on_processes))]
    conformance!(serial, Serial::builder().timeline(true).build(), true);
    #[cfg(not(suite_on_processes))]
    conformance!(threads, threads(), true);
    conformance!(processes, processes(), false);
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked(), false);
    #[cfg(not(suite_on_processes))]
    conformance!(any, Pool::<AnyEngine>::from(threads()), true);

    mod queued_threads {
        use super::*;
        queued_accounts!(Pool::threads(2).unwrap());
    }
    mod queued_processes {
        use super::*;
        queued_accounts!(super::super::processes());
    }
    mod queued_any {
        use super::*;
        queued_accounts!(Pool::<AnyEngine>::from(Pool::threads(2).unwrap()));
    }

    #[test]
    fn b129_without_a_record_the_timeline_is_empty() {
        let _none = Leftovers::none();
        let pool = Pool::threads(1).unwrap();
        pool.submit(|x: u32| x, 1).result().unwrap();
        let timeline = pool.timeline();
        assert_eq!((&*timeline.name, timeline.events.len()), (pool.name(), 0));
        let pool = Pool::serial();
        pool.submit(|x: u32| x, 1).result().unwrap();
        assert_eq!(pool.timeline().events.len(), 0);
    }

    #[test]
    fn b130_what_closure_binds_is_sent_once_to_each_worker() {
        let _none = Leftovers::none();
        let pool = super::processes();
        let array = manyhands::SharedArray::from_slice(&[5_u64, 7]).unwrap();
        let table = vec![1_u64; 100_000];
        let add = closure!([table, array] |n: usize| table[n] + array.get(n % 2).unwrap());
        let sum = pool
            .call()
            .chunk_size(10)
            .map_reduce(add, |x, y| x + y, 0..1_000_usize);
        assert_eq!(sum, Ok(Some(1_000 + 6_000)));
        let sent = pool.stats().total().bytes_sent;
        // Each number takes a byte.
        assert!((200_000..300_000).contains(&sent), "{sent}");
    }
}

/// The engines that run a function which can run once.
mod at_most_once {
    use super::*;

    macro_rules! conformance {
        ($engine:ident, $make:expr) => {
            mod $engine {
                use super::*;
                once!($make);
            }
        };
    }

    #[cfg(not(suite_on_processes))]
    conformance!(serial, Pool::serial());
    #[cfg(not(suite_on_processes))]
    conformance!(threads, Pool::threads(2).unwrap());
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked());
}

/// The engines whose tasks wait in a queue when there are more than workers. On the others a task
/// runs when it is submitted.
mod queued {
    use super::*;

    macro_rules! conformance {
        ($engine:ident, $make:expr) => {
            mod $engine {
                use super::*;
                queued_calls!($make);
                queued_options!($make);
                queued_futures!($make);
                queued_handles!($make);
                queued_ends!($make);
                queued_cancelling!($make);
                queued_early_ends!($make);
                parallel_identity!($make);
                lasting_identity!($make);
            }
        };
    }

    #[cfg(not(suite_on_processes))]
    conformance!(threads, Pool::threads(2).unwrap());
    conformance!(processes, processes());
}

/// The engines whose tasks can be killed, and can kill themselves: a thread would take the program
/// along.
mod mortal {
    use super::*;

    macro_rules! conformance {
        ($engine:ident, $make:expr) => {
            mod $engine {
                use super::*;
                mortal_outcomes!($make);
                mortal_limits!($make);
                mortal_options!($make);
                mortal_futures!($make);
                mortal_ends!($make);
                mortal_at_once!($make);
                mortal_cancelling!($make);
                mortal_early_ends!($make);
                mortal_graces!($make);
                mortal_identity!($make);
            }
        };
    }

    conformance!(processes, processes());
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    conformance!(forked, forked());

    mod forked_at_once {
        use super::*;
        parallel_identity!(forked());
    }
}

/// The engines whose builders bound the tasks that wait.
mod bounded {
    use super::*;

    mod threads {
        use super::*;
        queue_limits!(Threads::builder().workers(2));

        #[test]
        fn b97_a_task_of_the_pool_itself_is_not_held_up() {
            let _none = Leftovers::none();
            let builder = Threads::builder().workers(1);
            let pool = std::sync::Arc::new(builder.queue_limit(0, WhenFull::Wait).build().unwrap());
            let own = pool.clone();
            let within = move |()| {
                let tasks: Vec<_> = (0..9u32).map(|n| own.submit(|n| n, n)).collect();
                let results = tasks.into_iter().map(TaskFuture::result);
                results.collect::<Result<Vec<_>, _>>()
            };
            let task = pool.submit(within, ());
            assert_eq!(task.result().unwrap(), Ok((0..9).collect()));
        }
    }

    mod processes {
        use super::*;
        queue_limits!(Processes::builder().workers(2).stderr(Stdio::null()));
    }

    #[test]
    fn b97_a_forked_pool_refuses_what_no_child_is_free_for() {
        use early_ends::hold;
        let _none = Leftovers::none();
        let fence = Fence(Gate::new());
        let gate = &fence.0;
        let builder = Forked::builder().workers(2).allow_threads(true);
        let pool = builder.when_full(WhenFull::Refuse).build().unwrap();
        let tasks = [0, 1].map(|n| pool.submit(hold, (gate.clone(), n)));
        let refused = pool.submit(hold, (gate.clone(), 2)).result().unwrap_err();
        assert_matches!(
            refused.as_pool(),
            Some(PoolError::QueueFull { limit: 0, .. })
        );
        eventually("both run", || gate.waiting() == 2);
        gate.open();
        assert_eq!(tasks.map(TaskFuture::result), [Ok(0), Ok(1)]);
        assert!(!gate.folder().join("2").exists());
        for n in 0..9u32 {
            assert_eq!(pool.submit(|n: u32| n, n).result(), Ok(n));
        }
        let lazy: Vec<_> = pool.imap(|n: u32| n, 0..9).collect();
        assert_eq!(lazy, (0..9).map(Ok).collect::<Vec<_>>());
        assert_eq!(pool.map(|n: u32| n, 0..9), Ok((0..9).collect()));
    }
}

/// The engines whose tasks have the memory of their caller.
mod sharing {
    use super::*;

    mod serial {
        use super::*;
        sharing_early_ends!(Pool::serial());
    }

    mod threads {
        use super::*;
        sharing_early_ends!(Pool::threads(2).unwrap());
        threads_early_ends!(Pool::threads(2).unwrap());
        threads_graces!(Pool::threads(2).unwrap());
    }
}

/// The engines between whose workers and the caller values cross.
mod crossing_values {
    use super::*;
    use manyhands::error::TaskValue;

    crossing!(processes, processes());
    #[cfg(not(any(suite_on_processes, suite_without_forked)))]
    crossing!(forked, forked());
}

#[test]
fn b20_a_pool_of_no_workers_is_an_error() {
    assert_eq!(Pool::threads(0).unwrap_err(), PoolError::ZeroWorkers);
    assert_eq!(Pool::processes(0).unwrap_err(), PoolError::ZeroWorkers);
    assert_eq!(Pool::forked(0).unwrap_err(), PoolError::ZeroWorkers);
}

#[test]
fn b20_a_pool_of_more_processes_than_there_can_be_is_an_error() {
    for workers in [(1 << 22) + 1, usize::MAX] {
        let refused = [
            Pool::processes(workers).map(drop),
            Pool::forked(workers).map(drop),
        ];
        for refused in refused {
            let Err(PoolError::InvalidOption { option, value, .. }) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!((&*option, value), ("workers", workers.to_string()));
        }
    }
    let most = Pool::forked(1 << 22).unwrap();
    assert_eq!(most.workers(), 1 << 22);
}

#[test]
fn b36_arguments_and_results_are_dropped_with_the_call() {
    let _none = Leftovers::none();
    let pool = Pool::threads(2).unwrap();
    let witness = std::sync::Arc::new(());
    let held = pool
        .map(|x: std::sync::Arc<()>| x, vec![witness.clone(); 100])
        .unwrap();
    assert_eq!(std::sync::Arc::strong_count(&witness), 101);
    drop(held);
    assert_eq!(std::sync::Arc::strong_count(&witness), 1);
    let task = pool.submit(|x: std::sync::Arc<()>| x, witness.clone());
    drop(task.result());
    pool.close().unwrap();
    assert_eq!(std::sync::Arc::strong_count(&witness), 1);

    // On processes the argument is encoded and dropped at once. The copy in the worker is dropped
    // with the task.
    let pool = Pool::processes(1).unwrap();
    let resident = |_: u32| {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
    };
    let before = pool.submit(resident, 0).result().unwrap();
    for _ in 0..10 {
        let echo = pool
            .submit(|bytes: Vec<u8>| bytes, vec![1u8; 50_000_000])
            .result()
            .unwrap();
        assert_eq!(echo.len(), 50_000_000);
    }
    let after = pool.submit(resident, 0).result().unwrap();
    assert!(
        after < before + 25_000_000,
        "the worker kept its arguments: {before} bytes before, {after} after"
    );
}

/// A good part of this suite once more, where the kernel has no pidfds.
#[test]
fn without_pidfds_the_suite_holds_too() {
    let name = "without_pidfds_the_suite_holds_too";
    if is_program() {
        Refused::Pidfds.begin();
        // The filter stays when this process becomes the suite.
        let mut suite = Command::new(std::env::current_exe().unwrap());
        suite.env_remove(common::SCENARIO);
        let parts = [
            "all::forked",
            "all::processes",
            "mortal",
            "queued::processes",
        ];
        panic!("{}", suite.args(parts).exec());
    }
    let _none = Leftovers::none();
    let output = finish_within(&mut as_program(name), 6 * DEADLINE);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("mortal::forked"),
        "{:?}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
