//! What went wrong once: each test says what a user would have seen.

mod common;
#[path = "regressions/forked_pools.rs"]
mod forked_pools;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::errors::cancelled;
use common::{Leftovers, Sleeper, eventually};
use manyhands::prelude::*;
use manyhands::{RunReduce, Shutdown, closure};
use serde::{Deserialize, Serialize};

/// A folder of a test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("regression-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn touch(path: PathBuf) {
    File::create(path).unwrap();
}

#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn wait_for(path: PathBuf) {
    eventually("the file is there", || path.exists());
}

fn forked() -> Pool<Forked> {
    Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap()
}

#[test]
fn a_forked_child_takes_no_answers_from_its_parents_pools() {
    let _none = Leftovers::none();
    let other_process = || TaskError::from(PoolError::OtherProcess);
    let pool = Pool::processes(1).unwrap();
    let inner = forked();
    // The answers of these wait in shared memory while the children look.
    let (mut task, of_forked) = (
        pool.submit(|x: u32| x + 1, 1),
        inner.submit(|x: u32| x + 1, 1),
    );
    let refused = forked().map(
        |x: u32| {
            let by_handle = task.is_done() && of_forked.is_done();
            let by_call = pool.map_with(&1, |one, x: u32| one + x, 0..3) == Err(other_process());
            let by_submit = inner.submit(|x: u32| x, x).result() == Err(other_process());
            let _ = format!("{task:?} {pool:?} {inner:?}");
            by_handle && by_call && by_submit
        },
        0..2,
    );
    assert_eq!(refused, Ok(vec![true; 2]));
    assert_eq!(task.result_timeout(common::DEADLINE), Ok(Ok(2)));
    assert_eq!(of_forked.result(), Ok(2));
}

#[test]
fn a_submitted_child_may_use_its_own_pool_and_is_refused() {
    let _none = Leftovers::none();
    let pool = Arc::new(forked());
    let copy = pool.clone();
    let inner = pool.submit(
        move |x: u32| copy.submit(|x: u32| x, x).result().is_err(),
        1,
    );
    assert_eq!(inner.result(), Ok(true));
    drop(pool);
}

#[test]
fn tasks_submitted_while_another_thread_sleeps_on_a_long_one_move_on() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    std::thread::scope(|scope| {
        let long = pool.submit(wait_for, folder.file("last"));
        let waiter = scope.spawn(|| long.result());
        // The first one ends only when the last one runs, and no caller waits for the last one.
        let handles: Vec<_> = (0..100)
            .map(|n: u64| pool.submit(|n: u64| (0..n * 10_000).sum::<u64>(), n))
            .collect();
        let _last = pool.submit(touch, folder.file("last"));
        assert_eq!(waiter.join().unwrap(), Ok(()));
        drop(handles);
    });
}

#[test]
fn tasks_submitted_while_another_thread_maps_move_on() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for _ in 0..20 {
        let folder = Folder::new();
        std::thread::scope(|scope| {
            let mapping = scope.spawn(|| pool.map(|n: u64| (0..n * 100_000).sum::<u64>(), 0..4));
            let _tasks: Vec<_> = (0..60).map(|n: u64| pool.submit(|n: u64| n, n)).collect();
            let _last = pool.submit(touch, folder.file("last"));
            mapping.join().unwrap().unwrap();
            eventually("the last task has run", || folder.file("last").exists());
        });
    }
}

#[test]
fn tasks_behind_a_long_one_move_on_though_the_last_in_their_lane_is_half_way_out() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    let long: Vec<_> = (0..2)
        .map(|n| pool.submit(wait_for, folder.file(&format!("open-{n}"))))
        .collect();
    eventually("both run", || long.iter().all(TaskFuture::is_running));
    let behind: Vec<_> = (0..6).map(|n: u64| pool.submit(|n: u64| n, n)).collect();
    // More than a lane holds: one for each.
    let large: Vec<_> = (0..2)
        .map(|_| pool.submit(|bytes: Vec<u8>| bytes.len(), vec![1u8; 8 << 20]))
        .collect();
    touch(folder.file("open-1"));
    for (n, mut task) in (0..).zip(behind) {
        assert_eq!(task.result_timeout(common::DEADLINE), Ok(Ok(n)));
    }
    touch(folder.file("open-0"));
    assert!(long.into_iter().all(|task| task.result() == Ok(())));
    assert!(large.into_iter().all(|task| task.result() == Ok(8 << 20)));
}

#[test]
fn signals_reach_workers_and_the_programs_that_tasks_start() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let blocked = || {
        let status = std::process::Command::new("cat")
            .arg("/proc/self/status")
            .output();
        let status = String::from_utf8(status.unwrap().stdout).unwrap();
        let line = status.lines().find(|line| line.starts_with("SigBlk:"));
        line.unwrap().to_owned()
    };
    let mask = pool.submit(move |()| blocked(), ()).result().unwrap();
    assert!(mask.ends_with("\t0000000000000000"), "{mask}");
    let ended = pool.submit(
        |()| {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
            std::thread::park();
        },
        (),
    );
    assert!(matches!(
        ended.result(),
        Err(TaskError::WorkerDied {
            cause: Death::Signal(15),
            ..
        })
    ));
}

#[test]
fn a_large_argument_is_sent_though_nobody_waits() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    drop(pool.submit(
        |(path, bytes): (PathBuf, Vec<u8>)| {
            assert_eq!(bytes.len(), 4 << 20);
            touch(path);
        },
        (folder.file("ran"), vec![1u8; 4 << 20]),
    ));
    eventually("the task has run", || folder.file("ran").exists());
}

#[test]
fn closing_does_not_wait_for_the_rest_of_an_abandoned_context() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let context = vec![1u8; 8 << 20];
    for _ in 0..5 {
        let input = (0..3u32).inspect(|&n| assert!(n < 1, "no more input"));
        let call = std::panic::AssertUnwindSafe(|| {
            pool.map_with(&context, |c, n: u32| c.len() as u32 + n, input)
        });
        assert!(std::panic::catch_unwind(call).is_err());
    }
    let start = Instant::now();
    pool.close().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "workers had to be killed"
    );
}

#[test]
fn a_task_taken_back_from_an_outbox_runs_once() {
    let _none = Leftovers::none();
    for round in 0..4 {
        let folder = Folder::new();
        let pool = Pool::processes(2).unwrap();
        // Contexts that both workers have and that are retired while a large one is on its way.
        let mut held: Vec<TaskFuture<u32>> = Vec::new();
        for k in 0..8u32 {
            let task = pool.submit(closure!([k] | () | pid_of(*k)), ());
            eventually("it has run", || task.is_done());
            held.push(task);
        }
        let gates = [folder.file("gate-0"), folder.file("gate-1")];
        let waiting: Vec<_> = gates
            .iter()
            .map(|gate| pool.submit(wait_for, gate.clone()))
            .collect();
        let (large, mark) = (vec![7u8; 2 << 20], folder.file("ran"));
        let swapped = pool.submit(closure!([large, mark] | () | once(mark, large.len())), ());
        drop(held);
        // Which of the two workers has the large one cannot be known here: both orders come.
        touch(gates[round % 2].clone());
        assert_eq!(
            swapped.result(),
            Ok(true),
            "it was run twice, or not at all"
        );
        touch(gates[1 - round % 2].clone());
        assert!(waiting.into_iter().all(|task| task.result() == Ok(())));
        assert_eq!(pool.map(|x: u32| x, 0..10).unwrap().len(), 10);
    }
}

fn pid_of(_: u32) -> u32 {
    std::process::id()
}

/// Whether this is the first run.
fn once(mark: &Path, len: usize) -> bool {
    assert_eq!(len, 2 << 20);
    File::create_new(mark).is_ok()
}

/// Panics when it is first decoded, and then works.
#[derive(Clone, Debug, Serialize)]
struct Moody(PathBuf);

impl<'de> Deserialize<'de> for Moody {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        assert!(
            File::create_new(path.join("decoded")).is_err(),
            "not in the mood"
        );
        Ok(Self(path))
    }
}

#[test]
fn items_keep_their_arguments_when_the_context_fails_for_the_one_before() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(1).unwrap();
    let moody = Moody(folder.0.clone());
    let call = || pool.call().schedule(Schedule::Equal);
    // Of these calls the second goes on after a failure.
    let with = |moody: &Moody, n: u32| touch(moody.0.join(format!("item-{n}")));
    let outcome = call().map_with(&moody, with, 10..13);
    assert!(
        matches!(outcome, Err(TaskError::Panicked{ index, .. }) if index == Some(0)),
        "{outcome:?}"
    );
    assert!(
        !folder.file("item-11").exists(),
        "it was started all the same"
    );
    std::fs::remove_file(folder.file("decoded")).unwrap();
    let bound = closure!([moody] |n: u32| touch(moody.0.join(format!("item-{n}"))));
    let outcomes = call().map_outcomes(bound, 10..13);
    assert!(
        matches!(outcomes[0], Err(TaskError::Panicked{ index, .. }) if index == Some(0)),
        "{outcomes:?}"
    );
    assert!(
        !folder.file("item-10").exists(),
        "the first item's argument was given to the second"
    );
    assert!(folder.file("item-11").exists() && folder.file("item-12").exists());
}

#[test]
fn many_retries_on_forked_children_are_counted_to_the_end() {
    let _none = Leftovers::none();
    let outcome = forked()
        .call()
        .retries(20)
        .map(|()| -> u32 { std::process::abort() }, [()]);
    assert!(
        matches!(outcome, Err(TaskError::WorkerDied { attempts: 21, .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_forked_pool_is_dropped_though_somebody_waits() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = forked();
    let task = pool.submit(wait_for, folder.file("never"));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| task.result());
        drop(pool);
        assert_eq!(waiter.join().unwrap(), Err(cancelled()));
    });
}

#[test]
fn huge_chunk_sizes_are_chunk_sizes() {
    let _none = Leftovers::none();
    for size in [usize::MAX, usize::MAX / 2, 1 << 40] {
        let pool = Pool::processes(2).unwrap();
        assert_eq!(
            pool.call().chunk_size(size).map(|x: u64| x + 1, 0..3),
            Ok(vec![1, 2, 3])
        );
        assert_eq!(
            forked().call().chunk_size(size).map(|x: u64| x + 1, 0..3),
            Ok(vec![1, 2, 3])
        );
        let pool = Pool::threads(2).unwrap();
        assert_eq!(
            pool.call().chunk_size(size).map(|x: u64| x + 1, 0..3),
            Ok(vec![1, 2, 3])
        );
    }
}

/// A child that waits for room for its results has ended the item: its limit is over.
#[test]
fn a_slow_callback_of_progress_uses_up_no_limit_of_a_forked_child() {
    let _none = Leftovers::none();
    // Long for an item, also on a machine that has much to do.
    let limit = Duration::from_millis(700);
    let pool = forked();
    let mut told = 0;
    let call = pool.call().chunk_size(1).timeout(limit);
    let call = call.on_progress(|_| {
        told += 1;
        // Long enough for the children to fill their lanes, and to wait for longer than the limit.
        if told < 3 {
            std::thread::sleep(2 * limit);
        }
    });
    let results = call.map(|item: usize| vec![item; 2_000], 0..400).unwrap();
    for (index, result) in results.into_iter().enumerate() {
        assert!(result == vec![index; 2_000], "item {index}");
    }
    // Nor does a caller that looks late, when the result has no room in the lane.
    let call = pool.call().timeout(limit);
    let task = call.submit(|len: usize| vec![7_u8; len], 3_000_000);
    std::thread::sleep(2 * limit);
    assert_eq!(task.result().map(|result| result.len()), Ok(3_000_000));
}

/// An item that cannot be written.
#[derive(Deserialize)]
struct Unwritable(u64);

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 5 == 2 {
            return Err(serde::ser::Error::custom("not this one"));
        }
        serializer.serialize_u64(self.0)
    }
}

/// Items behind one that cannot be sent have their own seeds, though the worker does not know of
/// it.
#[test]
fn seeds_of_lazy_calls_stay_right_behind_an_item_that_cannot_be_sent() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let ask = |item: Unwritable| (item.0, manyhands::item_seed());
    let plain: Vec<_> = pool
        .call()
        .seed(3)
        .map(|_: u64| manyhands::item_seed(), 0..40)
        .unwrap();
    // With chunks of two, an item that cannot be sent is the first of its chunk.
    for size in [1, 2, 7, 40] {
        let call = pool.call().seed(3).chunk_size(size);
        let outcomes: Vec<_> = call.imap(ask, (0..40).map(Unwritable)).collect();
        assert_eq!(outcomes.len(), 40);
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok((item, seed)) => {
                    assert_eq!((item, seed), (index as u64, plain[index]), "size {size}");
                }
                Err(error) => {
                    assert_eq!(index % 5, 2, "{error}");
                    assert_eq!(error.index(), Some(index));
                }
            }
        }
    }
}

/// A call of `map` on another thread, whose first item has started and goes on when the test wants
/// it to.
struct HeldMap<'s> {
    folder: Folder,
    caller: Arc<Sleeper>,
    call: std::thread::ScopedJoinHandle<'s, Result<Vec<bool>, TaskError>>,
}

impl<'s> HeldMap<'s> {
    fn start<'e>(scope: &'s std::thread::Scope<'s, 'e>, pool: &'e Pool<Forked>) -> Self {
        let folder = Folder::new();
        let names = ["started", "go", "item-0", "item-99"].map(|name| folder.file(name));
        let caller = Arc::new(Sleeper::new());
        let calling = Arc::clone(&caller);
        let call = scope.spawn(move || {
            let item = |n: u32| {
                let [started, go, first, last] = &names;
                if n == 0 {
                    touch(started.clone());
                    wait_for(go.clone());
                    touch(first.clone());
                }
                if n == 99 {
                    touch(last.clone());
                }
                true
            };
            calling.run(|| pool.call().chunk_size(1).map(item, 0..100))
        });
        eventually("the first item runs", || folder.file("started").exists());
        Self {
            folder,
            caller,
            call,
        }
    }

    /// Lets the first item end, once the pool takes no more tasks, `ender` waits for the call, and
    /// its caller has heard of both.
    fn go_on_when_closed(&self, pool: &Pool<Forked>, ender: &Sleeper) {
        eventually("the pool is closed", || {
            pool.map(|()| (), [()]) == Err(PoolError::Closed.into())
        });
        ender.is_asleep();
        self.caller.falls_asleep_again(2);
        touch(self.folder.file("go"));
    }
}

fn one_child() -> Pool<Forked> {
    let builder = Forked::builder().workers(1).allow_threads(true);
    builder.build().unwrap()
}

#[test]
fn closing_a_forked_pool_waits_for_the_map_of_another_thread() {
    let _none = Leftovers::none();
    let (pool, sleeper) = (&one_child(), Sleeper::new());
    std::thread::scope(|scope| {
        let held = HeldMap::start(scope, pool);
        let last = held.folder.file("item-99");
        let sleeper = &sleeper;
        let closer = scope.spawn(move || (sleeper.run(|| pool.close()), last.exists()));
        held.go_on_when_closed(pool, sleeper);
        assert_eq!(closer.join().unwrap(), (Ok(()), true));
        assert_eq!(held.call.join().unwrap(), Ok(vec![true; 100]));
    });
}

#[test]
fn shutting_down_a_forked_pool_cancels_the_items_of_another_thread_that_have_not_started() {
    let _none = Leftovers::none();
    let (pool, sleeper) = (&one_child(), Sleeper::new());
    std::thread::scope(|scope| {
        let held = HeldMap::start(scope, pool);
        let first = held.folder.file("item-0");
        let sleeper = &sleeper;
        let ender = scope.spawn(move || {
            let ended = sleeper.run(|| pool.shutdown(Shutdown::CancelQueued));
            (ended, first.exists())
        });
        held.go_on_when_closed(pool, sleeper);
        assert_eq!(ender.join().unwrap(), (Ok(()), true));
        assert_eq!(held.call.join().unwrap(), Err(cancelled()));
        assert!(!held.folder.file("item-99").exists());
    });
}

#[test]
fn closing_a_forked_pool_in_the_middle_of_its_own_map_is_an_error() {
    let _none = Leftovers::none();
    let pool = forked();
    let mut closed = Vec::new();
    let call = pool.call().on_progress(|_| closed.push(pool.close()));
    assert_eq!(call.map(|x: u32| x, 0..3), Ok(vec![0, 1, 2]));
    let is_refused = |closed: &_| matches!(closed, Err(PoolError::System { .. }));
    assert!(
        !closed.is_empty() && closed.iter().all(is_refused),
        "{closed:?}"
    );
    assert_eq!(pool.close(), Ok(()));
}

/// Of a chunk of four and one of a single item the second ends first.
fn progress_of_a_reduction_is_true<E>(pool: &Pool<E>)
where
    E: RunReduce<fn((PathBuf, u32)) -> u32, fn(u32, u32) -> u32, (PathBuf, u32), u32>,
{
    let folder = Folder::new();
    let go = folder.file("go");
    let mut told = Vec::new();
    let call = pool.call().chunk_size(4).on_progress(|p| {
        told.push(p.done);
        if p.done > 0 {
            touch(go.clone());
        }
    });
    let item: fn((PathBuf, u32)) -> u32 = |(go, n)| {
        if n < 4 {
            wait_for(go);
        }
        n
    };
    let items = (0..5).map(|n| (go.clone(), n));
    assert_eq!(call.map_reduce(item, |a, b| a + b, items), Ok(Some(10)));
    told.retain(|&done| done > 0);
    assert_eq!(told, [1, 5]);
}

#[test]
fn progress_of_a_reduction_counts_no_item_before_it_has_ended() {
    let _none = Leftovers::none();
    progress_of_a_reduction_is_true(&Pool::threads(2).unwrap());
    progress_of_a_reduction_is_true(&forked());
}

#[test]
fn no_more_items_have_failed_than_have_ended() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let [go, seen] = ["go", "seen"].map(|name| folder.file(name));
    let pool = Pool::processes(2).unwrap();
    let mut told = Vec::new();
    // Three die before the fourth lets the single item of the other chunk end.
    let item = |(go, seen, n): (PathBuf, PathBuf, u32)| match n {
        0..3 => std::process::exit(1),
        3 => {
            touch(seen);
            wait_for(go);
        }
        _ => wait_for(seen),
    };
    let items = (0..5).map(|n| (go.clone(), seen.clone(), n));
    let call = pool.call().chunk_size(4).on_progress(|p| {
        told.push((p.done, p.failed));
        if p.done > 0 {
            touch(go.clone());
        }
    });
    let failed = call.map(item, items);
    assert!(
        matches!(failed, Err(TaskError::WorkerDied{ index, .. }) if index == Some(0)),
        "{failed:?}"
    );
    assert!(told.iter().all(|(done, failed)| failed <= done), "{told:?}");
}
