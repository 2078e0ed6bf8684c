//! A failure is told at once, and what is not needed any more is not started; errors of the user's
//! own end a call in the same way; progress is told whatever the chunks.

use std::thread;
use std::time::{Duration, SystemTime};

use crate::common::eventually;
use crate::gate::Gate;

/// How long an item takes. Long beside the time in which a caller hears of a failure, also on a
/// machine with other things to do.
pub(crate) const ITEM: Duration = Duration::from_millis(150);

/// A limit that no item of this length comes near.
pub(crate) const LIMIT: Duration = Duration::from_millis(900);

/// How item 0 fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Way {
    Panic,
    Abort,
    Overdue,
    Error,
}

/// An item: where it leaves its mark, its number, and how it fails if it is the first.
pub(crate) type Item = (Gate, u32, Way);

pub(crate) fn items(gate: &Gate, count: u32, way: Way) -> Vec<Item> {
    (0..count).map(|n| (gate.clone(), n, way)).collect()
}

/// Runs an item that returns an error as its way to fail.
pub(crate) fn try_run((gate, n, way): Item) -> Result<u32, String> {
    gate.mark(&n.to_string());
    if n > 0 {
        thread::sleep(ITEM);
        return Ok(n);
    }
    gate.mark("fails");
    match way {
        // Without the hook, which may take longer than an item to print a backtrace.
        Way::Panic => std::panic::resume_unwind(Box::new("on purpose")),
        Way::Abort => std::process::abort(),
        Way::Overdue => {
            thread::sleep(2 * LIMIT);
            Ok(0)
        }
        Way::Error => Err("on purpose".to_owned()),
    }
}

pub(crate) fn run(item: Item) -> u32 {
    try_run(item).unwrap()
}

pub(crate) fn run_with(gate: &Gate, (n, way): (u32, Way)) -> u32 {
    run((gate.clone(), n, way))
}

pub(crate) fn run_unit(item: Item) {
    run(item);
}

pub(crate) fn try_run_unit(item: Item) -> Result<(), String> {
    try_run(item).map(drop)
}

/// Returns how many items have started since the first one failed, in this way.
pub(crate) fn started_since(gate: &Gate, way: Way) -> usize {
    let folder = gate.folder();
    let time_of =
        |name: &str| -> Option<SystemTime> { folder.join(name).metadata().ok()?.modified().ok() };
    let Some(failed) = time_of("fails") else {
        panic!("item 0 has not failed");
    };
    // At its limit an item has failed, whatever it does then.
    let failed = if way == Way::Overdue {
        failed + LIMIT
    } else {
        failed
    };
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_later = |name: &String| {
        let number = name.parse::<u32>();
        number.is_ok_and(|n| n > 0) && time_of(name).is_some_and(|time| time > failed)
    };
    names.filter(is_later).count()
}

pub(crate) fn half(n: u32) -> Result<u32, String> {
    is_even(n).map(|()| n / 2)
}

pub(crate) fn is_even(n: u32) -> Result<(), String> {
    if n.is_multiple_of(2) {
        Ok(())
    } else {
        Err(format!("{n} is odd"))
    }
}

/// An item of the calls below: it runs up to what its number says.
pub(crate) fn waits_for_failure((gate, n): (Gate, u32)) -> Result<u32, u32> {
    gate.mark(&n.to_string());
    match n {
        5 => {
            gate.mark("fails");
            Err(5)
        }
        // What comes before is needed, and is not over when item 5 fails.
        0..5 => {
            eventually("item 5 fails", || gate.folder().join("fails").exists());
            if n == 4 {
                thread::sleep(18 * ITEM);
            }
            Ok(n)
        }
        _ => {
            thread::sleep(2 * ITEM);
            Ok(n)
        }
    }
}

/// Item 5 fails at once, and item 3 after that.
pub(crate) fn fails_late((gate, n): (Gate, u32)) -> u32 {
    match n {
        5 => {
            gate.mark("fails");
            panic!("at once");
        }
        0..5 => {
            eventually("item 5 fails", || gate.folder().join("fails").exists());
            assert!(n != 3, "later");
            n
        }
        _ => n,
    }
}

/// An item that ends when the progress of those before it in its chunk has been told.
pub(crate) fn when_told((gate, before): (Gate, usize)) -> u32 {
    eventually("the progress is told", || told(&gate) >= before);
    1
}

/// Notes how many items have ended, as the caller was told.
pub(crate) fn tell(gate: &Gate, done: usize) {
    // The file is replaced at once: no reader finds half of it.
    let new = gate.folder().join("new");
    std::fs::write(&new, done.to_string()).unwrap();
    std::fs::rename(new, gate.folder().join("told")).unwrap();
}

fn told(gate: &Gate) -> usize {
    let text = std::fs::read_to_string(gate.folder().join("told"));
    text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

macro_rules! fails_at_once {
    ($make:expr, $ways:expr) => {{
        use $crate::at_once::*;
        let _none = Leftovers::none();
        let pool = $make;
        let most = 2 * pool.workers();
        let mut gates = Vec::new();
        for way in $ways {
            for (count, schedule) in [
                (20, Schedule::Guided),
                (200, Schedule::Guided),
                (200, Schedule::Equal),
                (2_000, Schedule::Guided),
            ] {
                if (way, schedule) == (Way::Overdue, Schedule::Equal) {
                    // Its items take long, and it is no other case.
                    continue;
                }
                // A limit takes its time. All kinds of calls keep it in the same way.
                let is_short = way == Way::Overdue && count > 20;
                let call = || {
                    let call = pool.call().schedule(schedule);
                    if way == Way::Overdue {
                        call.timeout(LIMIT)
                    } else {
                        call
                    }
                };
                let mut check = |what: &str, call: &dyn Fn(&Gate) -> (Option<usize>, bool)| {
                    let fence = Fence(Gate::new());
                    let (index, is_own) = call(&fence.0);
                    let what = format!("{what}, {way:?}, {count} items, {schedule:?}");
                    // A chunk that is mapped and reduced fails as a whole when its worker dies.
                    let is_whole = what.starts_with("map_reduce") && way == Way::Abort;
                    assert_eq!(index, (!is_whole).then_some(0), "{what}");
                    assert_eq!(is_own, way == Way::Error, "{what}");
                    let started = started_since(&fence.0, way);
                    assert!(started <= most, "{what}: {started} have started");
                    gates.push((fence, way, what));
                };
                if way != Way::Error {
                    check("map", &|gate| {
                        let error = call().map(run, items(gate, count, way)).unwrap_err();
                        (error.index(), false)
                    });
                    if is_short {
                        continue;
                    }
                    check("map_with", &|gate| {
                        let items = (0..count).map(|n| (n, way));
                        let error = call().map_with(gate, run_with, items).unwrap_err();
                        (error.index(), false)
                    });
                    check("for_each", &|gate| {
                        let error = call().for_each(run_unit, items(gate, count, way));
                        (error.unwrap_err().index(), false)
                    });
                    if way != Way::Overdue {
                        check("map_reduce", &|gate| {
                            let items = items(gate, count, way);
                            let error = call().map_reduce(run, u32::max, items).unwrap_err();
                            (error.index(), false)
                        });
                    }
                }
                check("try_map", &|gate| {
                    let error = call().try_map(try_run, items(gate, count, way));
                    let error = error.unwrap_err();
                    (error.index(), matches!(error, TryError::Item { .. }))
                });
                check("try_for_each", &|gate| {
                    let error = call().try_for_each(try_run_unit, items(gate, count, way));
                    let error = error.unwrap_err();
                    (error.index(), matches!(error, TryError::Item { .. }))
                });
            }
        }
        // What was left out is not started later either.
        pool.close().unwrap();
        for (fence, way, what) in gates {
            let started = started_since(&fence.0, way);
            assert!(started <= most, "{what}: {started} have started in the end");
        }
    }};
}

macro_rules! at_once {
    ($make:expr) => {
        #[test]
        fn b85_after_a_panic_or_an_err_no_more_is_started() {
            fails_at_once!($make, [Way::Panic, Way::Error]);
        }

        #[test]
        fn b85_what_comes_before_the_failure_runs_and_what_comes_after_it_does_not() {
            use $crate::at_once::{fails_late, waits_for_failure};
            let _none = Leftovers::none();
            let pool = $make;
            if pool.workers() == 1 {
                // An item that waits for a later one would wait for ever.
                return;
            }
            for count in [20, 2_000] {
                let what = format!("{count} items");
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let items = || (0..count).map(|n| (gate.clone(), n));
                // Items 0 to 4 are one chunk, so another worker has item 5.
                let call = || pool.call().chunk_size(5);
                let error = call().try_map(waits_for_failure, items()).unwrap_err();
                assert_eq!((error.index(), error.into_item()), (Some(5), Some(5)), "{what}");
                let has_started = |n: u32| gate.folder().join(n.to_string()).exists();
                assert!((0..=5).all(has_started), "{what}");
                // Those before it take long enough for twice as many as are allowed.
                let later = (6..count).filter(|&n| has_started(n)).count();
                assert!(later <= 2 * pool.workers(), "{what}: {later} have started");
                std::fs::remove_file(gate.folder().join("fails")).unwrap();
                let error = call().map(fails_late, items()).unwrap_err();
                assert_eq!(error.index(), Some(3), "{what}: {error}");
                assert!(error.to_string().contains("later"), "{error}");
            }
        }

        #[test]
        fn b85_a_pool_goes_on_after_any_number_of_failures() {
            let _none = Leftovers::none();
            let pool = $make;
            let one_fails = |n: u32| assert!(n != 3, "on purpose");
            for round in 0..20 {
                for chunk in [1, 2, 50] {
                    let call = || pool.call().chunk_size(chunk);
                    let error = call().for_each(one_fails, 0..100).unwrap_err();
                    assert_eq!(error.index(), Some(3), "{round}, {chunk}");
                    let odd = |n: u32| if n == 3 { Err(n) } else { Ok(n) };
                    let error = call().try_map(odd, 0..100).unwrap_err();
                    assert_eq!(error.into_item(), Some(3), "{round}, {chunk}");
                    let all: Vec<u32> = (0..100).collect();
                    assert_eq!(call().map(|n: u32| n, 0..100), Ok(all), "{round}, {chunk}");
                }
            }
        }

        #[test]
        fn b86_try_map_gives_the_values_or_the_first_error() {
            use $crate::at_once::{half, is_even};
            let _none = Leftovers::none();
            let pool = $make;
            for count in [0, 1, 10, 1_000_u32] {
                for schedule in [Schedule::Guided, Schedule::Equal, Schedule::Dynamic(7)] {
                    let call = || pool.call().schedule(schedule);
                    let even = (0..count).map(|n| 2 * n);
                    let expected: Vec<u32> = (0..count).collect();
                    assert_eq!(call().try_map(half, even.clone()), Ok(expected));
                    assert_eq!(call().try_for_each(is_even, even.clone()), Ok(()));
                    // The first of two errors counts, and the values before it are of no use.
                    for at in [0, count / 2, count.saturating_sub(1)] {
                        let items = even.clone().map(|n| if n / 2 >= at { n + 1 } else { n });
                        let outcome = call().try_map(half, items);
                        if count == 0 {
                            assert_eq!(outcome, Ok(Vec::new()));
                            continue;
                        }
                        let error = outcome.unwrap_err();
                        assert_eq!(error.index(), Some(at as usize), "{count}, {schedule:?}");
                        assert_eq!(error.into_item(), Some(format!("{} is odd", 2 * at + 1)));
                    }
                }
            }
            // Results of results, of nothing, and of what `closure!` takes along.
            let nested = |n: u32| -> Result<Result<Vec<String>, ()>, Option<u8>> {
                match n {
                    0 => Ok(Ok(vec!["Err".to_owned()])),
                    1 => Ok(Err(())),
                    _ => Err(None),
                }
            };
            let expected = vec![Ok(vec!["Err".to_owned()]), Err(())];
            assert_eq!(pool.try_map(nested, 0..2), Ok(expected));
            assert_eq!(pool.try_map(nested, 0..9).unwrap_err().into_item(), Some(None));
            let nothing = |n: u32| if n < 5 { Ok(()) } else { Err(()) };
            assert_eq!(pool.try_map(nothing, 0..5), Ok(vec![(); 5]));
            assert_eq!(pool.try_map(nothing, 0..9).unwrap_err().index(), Some(5));
            let most = 5_u32;
            let below = closure!([most] |n: u32| if n < *most { Ok(n) } else { Err(n) });
            assert_eq!(pool.try_map(below.clone(), 0..5), Ok((0..5).collect()));
            let error = pool.try_map(below, 0..100).unwrap_err();
            assert_eq!((error.index(), error.into_item()), (Some(5), Some(5)));
        }

        #[test]
        fn b86_the_first_failure_counts_be_it_a_panic_or_an_error() {
            let _none = Leftovers::none();
            let pool = $make;
            let run = |(n, panics, fails): (u32, u32, u32)| {
                assert!(n != panics, "on purpose");
                if n == fails { Err(n) } else { Ok(n) }
            };
            for chunk in [1, 3, 100] {
                let mut told = (0, 0);
                let mut call = |panics, fails| {
                    let call = pool.call().chunk_size(chunk);
                    let call = call.on_progress(|p| told = (p.done, p.failed));
                    let items = (0..100).map(move |n| (n, panics, fails));
                    call.try_map(run, items).unwrap_err()
                };
                let error = call(2, 7);
                assert!(matches!(error, TryError::Task(TaskError::Panicked { .. })), "{error}");
                assert_eq!(error.index(), Some(2));
                let error = call(7, 2);
                assert_eq!((error.index(), error.into_item()), (Some(2), Some(2)));
                let error = call(8, 7);
                assert_eq!((error.index(), error.into_item()), (Some(7), Some(7)));
            }
            pool.close().unwrap();
            let closed = pool.try_map(run, [(0, 1, 1)]).unwrap_err();
            let TryError::Task(closed) = closed else {
                panic!("{closed}")
            };
            assert_eq!(closed.as_pool(), Some(&PoolError::Closed));
            let invalid = $make.call().chunk_size(0).try_for_each(|(): ()| Ok::<(), ()>(()), [()]);
            assert!(matches!(invalid, Err(TryError::Task(TaskError::InvalidCall { .. }))));
        }
    };
}

/// Failures that cost a process.
macro_rules! mortal_at_once {
    ($make:expr) => {
        #[test]
        fn b85_after_a_death_or_at_a_limit_no_more_is_started() {
            fails_at_once!($make, [Way::Abort, Way::Overdue]);
        }

        #[test]
        fn b85_the_call_does_not_wait_for_what_runs() {
            let _none = Leftovers::none();
            let pool = $make;
            let run = |(gate, n): (Gate, u32)| {
                gate.mark(&n.to_string());
                if n == 0 {
                    eventually("another item runs", || gate.waiting() > 1);
                    panic!("on purpose");
                }
                gate.pass();
            };
            for chunk in [1, 10] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let items = (0..100).map(|n| (gate.clone(), n));
                let error = pool.call().chunk_size(chunk).for_each(run, items);
                assert_eq!(error.unwrap_err().index(), Some(0));
                gate.open();
            }
        }

        #[test]
        fn b86_the_first_failure_counts_be_it_a_death_or_an_error() {
            let _none = Leftovers::none();
            let pool = $make;
            let run = |(n, dies, fails): (u32, u32, u32)| {
                if n == dies {
                    $crate::common::exit_at_once(9);
                }
                if n == fails { Err(n) } else { Ok(n) }
            };
            for chunk in [1, 3, 100] {
                let call = |dies, fails| {
                    let items = (0..100).map(move |n| (n, dies, fails));
                    let call = pool.call().chunk_size(chunk).retries(1);
                    call.try_map(run, items).unwrap_err()
                };
                let error = call(2, 7);
                let TryError::Task(TaskError::WorkerDied { attempts, .. }) = error else {
                    panic!("{error}")
                };
                assert_eq!(attempts, 2);
                let error = call(7, 2);
                assert_eq!((error.index(), error.into_item()), (Some(2), Some(2)));
            }
        }
    };
}

/// What is told while chunks are under way.
macro_rules! told_at_once {
    ($make:expr) => {
        #[test]
        fn b87_progress_is_told_within_a_chunk() {
            use $crate::at_once::{tell, when_told};
            let _none = Leftovers::none();
            let pool = $make;
            let count = 5 * pool.workers();
            for kind in [
                "map",
                "map_with",
                "for_each",
                "map_outcomes",
                "map_reduce",
                "try_map",
            ] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                // One chunk for each worker. An item waits for those before it in its chunk.
                let items = || (0..count).map(|n| (gate.clone(), n % 5));
                let mut all = Vec::new();
                let call = pool.call().schedule(Schedule::Equal).on_progress(|p| {
                    all.push(p.done);
                    tell(gate, p.done);
                });
                match kind {
                    "map" => assert_eq!(call.map(when_told, items()), Ok(vec![1; count])),
                    "map_with" => {
                        let run = |(): &(), item: (Gate, usize)| when_told(item);
                        assert_eq!(call.map_with(&(), run, items()), Ok(vec![1; count]));
                    }
                    "for_each" => {
                        let run = |item: (Gate, usize)| _ = when_told(item);
                        assert_eq!(call.for_each(run, items()), Ok(()));
                    }
                    "map_outcomes" => {
                        let each = call.map_outcomes(when_told, items());
                        assert_eq!(each, vec![Ok(1); count]);
                    }
                    "map_reduce" => {
                        let sum = call.map_reduce(when_told, |a, b| a + b, items());
                        assert_eq!(sum, Ok(Some(count as u32)));
                    }
                    _ => {
                        let run = |item: (Gate, usize)| Ok::<_, ()>(when_told(item));
                        assert_eq!(call.try_map(run, items()), Ok(vec![1; count]));
                    }
                }
                assert!(all.is_sorted_by(|a, b| a < b), "{kind}: {all:?}");
                assert_eq!(all.last(), Some(&count), "{kind}: {all:?}");
            }
        }
    };
}

/// Functions that use up what they capture.
macro_rules! once {
    ($make:expr) => {
        #[test]
        fn b131_a_function_that_is_submitted_once_uses_up_what_it_captures() {
            let _none = Leftovers::none();
            let pool = $make;
            let words = vec![String::from("many"), String::from("hands")];
            let capture = words.clone();
            let task = pool.submit_once(move |more: String| capture.concat() + &more, "!".into());
            assert_eq!(task.result(), Ok("manyhands!".to_owned()));
            let capture = words.clone();
            let task = pool.submit_once(move |()| -> usize { panic!("{}", capture.concat()) }, ());
            let error = task.result().unwrap_err();
            assert!(error.to_string().contains("manyhands"), "{error}");
            let call = pool.call().timeout(Duration::ZERO);
            let task = call.submit_once(move |()| words.len(), ());
            let late = task_timed_out(task.id(), Duration::ZERO);
            assert_eq!(task.result(), Err(late));
            pool.close().unwrap();
            let late = pool.submit_once(|()| 1, ()).result();
            assert_eq!(late.unwrap_err().as_pool(), Some(&PoolError::Closed));
        }
    };
}
