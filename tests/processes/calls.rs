//! Lazy calls, windows, and options that cannot be.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::{
    closure,
    engine::{Affinity, InnerThreads},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::common::{Leftovers, eventually};
use crate::{Folder, begin_and_wait, outcome, touch, wait_for};

fn unless_13(x: u64) -> u64 {
    assert!(x != 13, "unlucky");
    x * x
}

/// Panics when it is read for the first time in a process.
#[derive(Clone, Serialize)]
struct Moody(u8);

impl<'de> Deserialize<'de> for Moody {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        static TRIES: AtomicUsize = AtomicUsize::new(0);
        let number = u8::deserialize(input)?;
        assert!(TRIES.fetch_add(1, Ordering::Relaxed) > 0, "not yet");
        Ok(Self(number))
    }
}

#[test]
fn items_behind_one_whose_context_panics_have_their_own_arguments() {
    fn check<A>(items: &[A])
    where
        A: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug + Clone + 'static,
    {
        let pool = Pool::processes(1).unwrap();
        let moody = Moody(7);
        let function = closure!([moody] |item: A| {
            assert_eq!(moody.0, 7);
            item
        });
        let outcomes = pool
            .call()
            .chunk_size(items.len())
            .map_outcomes(function, items.iter().cloned());
        let panicked = |index| matches!(&outcomes[index], Err(TaskError::Panicked { message, .. }) if message == "not yet");
        assert!(panicked(0), "{outcomes:?}");
        let rest: Vec<A> = outcomes.into_iter().skip(1).map(Result::unwrap).collect();
        assert_eq!(rest, items[1..]);
    }
    let _none = Leftovers::none();
    check(&[3_u64, 4, 5, 6]);
    check(&["ant", "bee", "", "caterpillar"].map(str::to_owned));
}

/// What to do in a worker, if it can be sent there at all.
#[derive(Clone, Deserialize)]
struct Errand(Option<PathBuf>);

impl Serialize for Errand {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(path) => output.serialize_some(path),
            None => Err(serde::ser::Error::custom("it stays here")),
        }
    }
}

#[test]
fn what_a_lazy_call_has_in_the_queue_when_it_is_dropped_never_runs() {
    let _none = Leftovers::none();
    for in_order in [true, false] {
        let folder = Folder::new();
        let pool = Pool::processes(1).unwrap();
        let open = folder.file("open");
        let running = pool.submit(begin_and_wait, (folder.file("begun"), open.clone()));
        eventually("it runs", || folder.count("begun") == 1);
        // They fill the lane of the worker, and what comes then waits in the queue.
        let others: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, n)).collect();
        let run = |errand: Errand| touch(errand.0.unwrap());
        let files = (0..6).map(|n| Some(folder.file(&format!("ran-{n}"))));
        // The outcome of the first comes at once.
        let items = std::iter::once(None).chain(files).map(Errand);
        let call = pool.call().chunk_size(1);
        let first = if in_order {
            call.imap(run, items).next()
        } else {
            let first = call.imap_unordered(run, items).next();
            first.map(|(_, outcome)| outcome)
        };
        let is_unsent =
            matches!(first, Some(Err(TaskError::Encode{ index, .. })) if index == Some(0));
        assert!(is_unsent, "{first:?}");
        assert!(pool.stats().cancelled > 0);
        touch(open);
        assert!(outcome(running).is_ok());
        for (n, task) in (0..).zip(others) {
            assert_eq!(outcome(task), Ok(n));
        }
        pool.close().unwrap();
        assert_eq!(folder.count("ran-"), 0, "in order: {in_order}");
    }
}

#[test]
fn of_an_item_that_fails_and_one_behind_it_that_cannot_be_sent_the_first_is_told() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let folder = Folder::new();
    for (size, fails) in [(1, true), (1, false), (4, true), (4, false), (20, true)] {
        let read = AtomicUsize::new(0);
        let items = (0..20).map(|n| {
            read.fetch_add(1, Ordering::Relaxed);
            // The file of one is in a folder that is not there.
            let name = if n == 3 && fails { "none/3" } else { "file" };
            Errand((n != 6).then(|| folder.file(name)))
        });
        let run = |errand: Errand| drop(std::fs::File::create(errand.0.unwrap()).unwrap());
        let error = pool.call().chunk_size(size).map(run, items).unwrap_err();
        let expected = if fails { 3 } else { 6 };
        assert_eq!(error.index(), Some(expected), "{error}");
        let is_unsent = matches!(error, TaskError::Encode { .. });
        assert_eq!(is_unsent, !fails, "{error}");
        let read = read.into_inner();
        assert!(
            read <= 7,
            "{read} were read, though the seventh cannot be sent"
        );
    }
}

#[test]
fn b18_imap_gives_all_in_order_whatever_the_chunks() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let squares: Vec<u64> = (0..2_000).map(|x| x * x).collect();
    let all = pool.imap(|x: u64| x * x, 0..2_000);
    assert_eq!(all.collect::<Result<Vec<_>, _>>().unwrap(), squares);
    for chunk in [1, 3, 100, 5_000] {
        let all = pool.call().chunk_size(chunk).imap(|x: u64| x * x, 0..2_000);
        assert_eq!(
            all.collect::<Result<Vec<_>, _>>().unwrap(),
            squares,
            "{chunk}"
        );
    }
    assert!(pool.imap(|x: u64| x, 0..0).next().is_none());
}

#[test]
fn b18_imap_unordered_gives_each_once_with_its_index() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for chunk in [1, 7, 1_000] {
        let call = pool.call().chunk_size(chunk);
        let mut all: Vec<(usize, u64)> = call
            .imap_unordered(|x: u64| x * 3, 0..1_000)
            .map(|(index, value)| (index, value.unwrap()))
            .collect();
        all.sort_unstable();
        let expected: Vec<(usize, u64)> = (0..1_000).map(|x| (x, 3 * x as u64)).collect();
        assert_eq!(all, expected, "{chunk}");
    }
}

#[test]
fn b18_imap_unordered_does_not_wait_for_a_slow_one() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = Pool::processes(2).unwrap();
    // Only the first waits, and it may end when all others have been taken.
    let items = (0..100).map(|n| (n == 0).then(|| folder.file("open")));
    let gate = |path: Option<PathBuf>| path.map(wait_for).is_some();
    let mut results = pool.call().chunk_size(1).imap_unordered(gate, items);
    let mut others: Vec<usize> = results.by_ref().take(99).map(|(index, _)| index).collect();
    others.sort_unstable();
    assert_eq!(others, (1..100).collect::<Vec<_>>());
    touch(folder.file("open"));
    assert_eq!(results.next(), Some((0, Ok(true))));
    assert!(results.next().is_none());
}

#[test]
fn b37_items_that_fail_in_lazy_calls_leave_the_others_alone() {
    let _none = Leftovers::none();
    // What the workers print of it would hide what a failing test prints.
    let pool = Processes::builder().workers(2).stderr(Stdio::null());
    let pool = pool.build().unwrap();
    for chunk in [1, 5, 100] {
        let ordered = pool.call().chunk_size(chunk).imap(unless_13, 0..40);
        let ordered: Vec<_> = (0..).zip(ordered).collect();
        let unordered = pool
            .call()
            .chunk_size(chunk)
            .imap_unordered(unless_13, 0..40);
        let mut unordered: Vec<_> = unordered.collect();
        unordered.sort_by_key(|(index, _)| *index);
        let each = pool.call().chunk_size(chunk).map_outcomes(unless_13, 0..40);
        let each: Vec<_> = (0..).zip(each).collect();
        for outcomes in [ordered, unordered, each] {
            assert_eq!(outcomes.len(), 40);
            for (index, outcome) in outcomes {
                match outcome {
                    Ok(value) => assert!(value == (index * index) as u64 && index != 13),
                    Err(TaskError::Panicked {
                        index: at, message, ..
                    }) => assert!(at == Some(13) && index == 13 && message == "unlucky"),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn b19_lazy_calls_read_no_further_than_their_window() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for window in [1, 2, 10, 100] {
        let given = AtomicUsize::new(0);
        let input = (0..u64::MAX).inspect(|_| {
            given.fetch_add(1, Ordering::Relaxed);
        });
        let results = pool.call().window(window).imap(|x: u64| x + 1, input);
        for (n, result) in (0..500).zip(results) {
            assert_eq!(result, Ok(n as u64 + 1));
            let given = given.load(Ordering::Relaxed);
            assert!(given <= n + 1 + window, "{given} read at item {n}");
        }
    }
    // Without one, still only as far as keeps the workers busy.
    let given = AtomicUsize::new(0);
    let input = (0..u64::MAX).inspect(|_| {
        given.fetch_add(1, Ordering::Relaxed);
    });
    drop(pool.imap(|x: u64| x, input).take(10).collect::<Vec<_>>());
    assert!(
        given.load(Ordering::Relaxed) < 10_000,
        "{given:?} were read"
    );
}

#[test]
fn b19_map_and_map_outcomes_read_no_further_than_their_window() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for form in 0..2 {
        let folder = Folder::new();
        let given = AtomicUsize::new(0);
        let open = folder.file("open");
        let input = (0..200u32).map(|n| {
            given.fetch_add(1, Ordering::Relaxed);
            (n == 0).then(|| open.clone())
        });
        let gate = |path: Option<PathBuf>| path.map(wait_for).is_some();
        std::thread::scope(|scope| {
            let pool = &pool;
            let call = move || pool.call().window(8).chunk_size(1);
            let mapping = scope.spawn(move || match form {
                0 => call().map(gate, input).unwrap().len(),
                _ => call().map_outcomes(gate, input).iter().flatten().count(),
            });
            eventually("the window is full", || given.load(Ordering::Relaxed) == 8);
            // The other worker is free: it could have run everything meanwhile.
            for n in 0..50u32 {
                assert_eq!(outcome(pool.submit(|n: u32| n, n)), Ok(n));
            }
            assert_eq!(given.load(Ordering::Relaxed), 8);
            touch(folder.file("open"));
            assert_eq!(mapping.join().unwrap(), 200);
        });
    }
}

#[test]
fn b20_builder_options_that_cannot_be_are_errors() {
    let _none = Leftovers::none();
    let builder = || Processes::builder().workers(1);
    assert_eq!(
        Processes::builder().workers(0).build().unwrap_err(),
        PoolError::ZeroWorkers
    );
    let impossible = [
        (
            builder().max_tasks_per_worker(0),
            "max_tasks_per_worker",
            "0",
        ),
        (
            builder().inner_threads(InnerThreads::AtMost(0)),
            "inner_threads",
            "0",
        ),
        (builder().affinity(Affinity::Cores(vec![])), "affinity", ""),
        (builder().nice(20), "nice", "20"),
        (builder().nice(-21), "nice", "-21"),
        (builder().env("", "x"), "env", "=x"),
        (builder().env("A=B", "x"), "env", "A=B=x"),
        (builder().env("A\0B", "x"), "env", "A\0B=x"),
        (builder().env("A", "x\0y"), "env", "A=x\0y"),
        (builder().env("A", "x").env("B=", ""), "env", "B=="),
        (builder().memory_limit(0), "memory_limit", "0"),
        (builder().workers(usize::MAX), "workers", ""),
    ];
    for (builder, name, said) in impossible {
        match builder.build() {
            Err(PoolError::InvalidOption { option, value, .. }) => {
                assert_eq!(option, name);
                assert!(said.is_empty() || value == said, "{name}: {value}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let default = Processes::builder().build().unwrap().workers();
    assert_eq!(Ok(default), manyhands::available_workers());
    let pool = builder().build().unwrap();
    assert_eq!(pool.resize(0), Err(PoolError::ZeroWorkers));
    assert!(matches!(
        pool.resize(usize::MAX),
        Err(PoolError::InvalidOption { .. })
    ));
    assert_eq!(pool.workers(), 1);
}

#[test]
fn b20_call_options_that_cannot_be_are_errors_before_anything_runs() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let refused = |error: &TaskError| matches!(error, TaskError::InvalidCall { .. });
    let run = |x: u64| -> u64 { unreachable!("item {x} was run") };
    assert!(refused(&pool.call().window(0).map(run, 0..3).unwrap_err()));
    for call in [pool.call().window(0), pool.call().chunk_size(0)] {
        let each = call.map_outcomes(run, 0..3);
        assert!(each.iter().all(|each| each.as_ref().is_err_and(refused)));
    }
    for call in [pool.call().window(0), pool.call().chunk_size(0)] {
        let first = call.imap(run, 0..3).next();
        assert!(first.unwrap().is_err_and(|error| refused(&error)));
    }
    for call in [pool.call().window(0), pool.call().chunk_size(0)] {
        let first = call.imap_unordered(run, 0..3).next();
        assert!(first.unwrap().1.is_err_and(|error| refused(&error)));
    }
    let timed = pool.call().timeout(Duration::from_secs(60));
    let reduced = timed.map_reduce(run, |a, b| a + b, 0..3);
    assert!(refused(&reduced.unwrap_err()));
}
