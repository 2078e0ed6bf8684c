//! What is asked of a call holds for each kind of call, and whatever its input is like.

use super::*;

/// Says that it has this many items, whatever it has.
#[derive(Clone)]
pub(crate) struct Says(pub(crate) std::ops::Range<u32>, pub(crate) usize);

impl Iterator for Says {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

/// Kills its process when the third item runs for the first time.
pub(crate) fn dies_once((gate, n): (Gate, u32)) -> u32 {
    if n == 2 {
        gate.dies_once();
    }
    n
}

/// Kills its process when two values are reduced for the first time.
pub(crate) fn add_and_die_once((gate, a): (Gate, u32), (_, b): (Gate, u32)) -> (Gate, u32) {
    gate.dies_once();
    (gate, a + b)
}

macro_rules! options {
    ($make:expr) => {
        #[test]
        fn every_kind_of_call_tells_its_progress_up_to_the_end() {
            let _none = Leftovers::none();
            let pool = $make;
            let id = |n: u32| n;
            let one_fails = |n: u32| assert!(n != 5, "on purpose");
            for (is_sized, schedule) in [
                (true, Schedule::Dynamic(3)),
                (false, Schedule::Dynamic(3)),
                (false, Schedule::Equal),
            ] {
                let total = (is_sized || schedule == Schedule::Equal).then_some(20);
                let input = || -> Box<dyn Iterator<Item = u32>> {
                    if is_sized {
                        Box::new(0..20)
                    } else {
                        Box::new((0..20).filter(|_| true))
                    }
                };
                let told = std::sync::Mutex::new(Vec::new());
                let call = || {
                    let call = pool.call().schedule(schedule);
                    call.on_progress(|p| told.lock().unwrap().push((p.done, p.failed, p.total)))
                };
                let check = |kind: &str, failed: usize| {
                    let told = std::mem::take(&mut *told.lock().unwrap());
                    let is_news = |pair: &[_]| pair[0] < pair[1];
                    assert!(told.windows(2).all(is_news), "{kind}: {told:?}");
                    let last = Some(&(20, failed, total));
                    assert_eq!(told.last(), last, "{kind}, {schedule:?}: {told:?}");
                };
                assert_eq!(call().map(id, input()).unwrap().len(), 20);
                check("map", 0);
                let with = |_: &u32, n: u32| n;
                assert_eq!(call().map_with(&1, with, input()).unwrap().len(), 20);
                check("map_with", 0);
                call().for_each(|_: u32| (), input()).unwrap();
                check("for_each", 0);
                assert_eq!(call().map_outcomes(one_fails, input()).len(), 20);
                check("map_outcomes", 1);
                assert_eq!(call().imap(one_fails, input()).count(), 20);
                check("imap", 1);
                assert_eq!(call().imap_unordered(one_fails, input()).count(), 20);
                check("imap_unordered", 1);
                let sum = call().map_reduce(id, |a, b| a + b, input());
                assert_eq!(sum, Ok(Some(190)));
                check("map_reduce", 0);
                assert!(call().map(one_fails, input()).is_err());
                let told = std::mem::take(&mut *told.lock().unwrap());
                assert_eq!(told.last().map(|told| told.1), Some(1), "{told:?}");
            }
        }

        #[test]
        fn a_wrong_size_hint_changes_no_result() {
            use $crate::options::Says;
            let _none = Leftovers::none();
            let pool = $make;
            let id = |n: u32| n;
            for says in [0, 7, 30, 1_000, usize::MAX] {
                for schedule in [Schedule::Guided, Schedule::Equal, Schedule::Dynamic(3)] {
                    let reads_all = schedule == Schedule::Equal || pool.engine().kind() == "forked";
                    if says == usize::MAX && reads_all {
                        // There is no room for as many, as when they are collected.
                        continue;
                    }
                    let input = Says(0..30, says);
                    let call = || pool.call().schedule(schedule);
                    let all: Vec<u32> = (0..30).collect();
                    let each: Vec<_> = (0..30).map(Ok).collect();
                    let what = format!("{schedule:?}, {says}");
                    assert_eq!(call().map(id, input.clone()), Ok(all.clone()), "{what}");
                    let with = call().map_with(&1, |_, n: u32| n, input.clone());
                    assert_eq!(with, Ok(all), "{what}");
                    assert_eq!(call().map_outcomes(id, input.clone()), each, "{what}");
                    let lazy: Vec<_> = call().imap(id, input.clone()).collect();
                    assert_eq!(lazy, each, "{what}");
                    let sum = call().map_reduce(id, |a, b| a + b, input);
                    assert_eq!(sum, Ok(Some(435)), "{what}");
                }
            }
        }

        #[test]
        fn b39_a_lazy_call_keeps_all_workers_busy() {
            let _none = Leftovers::none();
            let pool = $make;
            let workers = pool.workers();
            // With a window, chunks are cut so that there is one for each.
            for (window, chunk, is_ordered) in [
                (None, 1, true),
                (None, 1, false),
                (Some(2 * workers), 100, true),
                (Some(2 * workers), 100, false),
            ] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let outcomes = std::thread::scope(|scope| {
                    let opens = Opens(gate);
                    let call = scope.spawn(|| {
                        let items = std::iter::repeat_n(gate.clone(), 4 * workers);
                        let call = pool.call().chunk_size(chunk);
                        let call = match window {
                            Some(window) => call.window(window),
                            None => call,
                        };
                        let pass = |gate: Gate| gate.pass_counted();
                        if is_ordered {
                            call.imap(pass, items).collect::<Vec<_>>()
                        } else {
                            let results = call.imap_unordered(pass, items);
                            results.map(|(_, outcome)| outcome).collect()
                        }
                    });
                    eventually("all workers are at the gate", || {
                        gate.waiting() == workers || call.is_finished()
                    });
                    drop(opens);
                    call.join().unwrap()
                });
                assert_eq!(outcomes.len(), 4 * workers);
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            }
        }

        #[test]
        fn a_lazy_call_gives_what_has_ended_while_the_others_run() {
            let _none = Leftovers::none();
            let pool = $make;
            for (window, is_ordered) in [
                (None, true),
                (None, false),
                (Some(10), true),
                (Some(10), false),
            ] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let (tell, told) = std::sync::mpsc::channel();
                std::thread::scope(|scope| {
                    let opens = Opens(gate);
                    let pool = &pool;
                    scope.spawn(move || {
                        let slow = std::iter::repeat_n(Some(gate.clone()), 8);
                        let items = std::iter::once(None).chain(slow);
                        let call = pool.call().chunk_size(1);
                        let call = match window {
                            Some(window) => call.window(window),
                            None => call,
                        };
                        let pass = |gate: Option<Gate>| gate.is_some_and(|gate| gate.pass() != "");
                        let rest = if is_ordered {
                            let mut results = call.imap(pass, items);
                            tell.send(results.next()).unwrap();
                            results.count()
                        } else {
                            let mut results = call.imap_unordered(pass, items);
                            let next = results.next().map(|(_, outcome)| outcome);
                            tell.send(next).unwrap();
                            results.count()
                        };
                        assert_eq!(rest, 8);
                    });
                    let first = told.recv_timeout(DEADLINE);
                    assert_eq!(first, Ok(Some(Ok(false))), "{window:?}, {is_ordered}");
                    drop(opens);
                });
            }
        }
    };
}

/// What needs workers that go on while the caller does something else.
macro_rules! queued_options {
    ($make:expr) => {
        #[test]
        fn b19_every_kind_of_call_reads_no_further_than_its_window() {
            use $crate::ends::comes_to_rest;
            let _none = Leftovers::none();
            let pool = $make;
            for kind in ["map", "map_outcomes", "map_with", "map_reduce"] {
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let read = AtomicUsize::new(0);
                let (send, thread) = std::sync::mpsc::channel();
                let count = std::thread::scope(|scope| {
                    let opens = Opens(gate);
                    let (pool, read) = (&pool, &read);
                    let call = scope.spawn(move || {
                        send.send(nix::unistd::gettid()).unwrap();
                        let items = std::iter::repeat_n(gate.clone(), 100);
                        let items = items.inspect(|_| {
                            read.fetch_add(1, Ordering::Relaxed);
                        });
                        let call = pool.call().window(8).chunk_size(100);
                        let pass = |gate: Gate| gate.pass_counted().min(1);
                        match kind {
                            "map" => call.map(pass, items).map(|ran| ran.len()),
                            "map_outcomes" => {
                                Ok(call.map_outcomes(pass, items).into_iter().flatten().count())
                            }
                            "map_with" => {
                                let with = |_: &u32, gate: Gate| gate.pass_counted();
                                call.map_with(&1, with, items).map(|ran| ran.len())
                            }
                            _ => {
                                let sum = call.map_reduce(pass, |a, b| a + b, items);
                                sum.map(Option::unwrap_or_default)
                            }
                        }
                    });
                    eventually("all workers are at the gate", || {
                        gate.waiting() == pool.workers()
                    });
                    comes_to_rest(thread.recv().unwrap(), || call.is_finished());
                    let read = read.load(Ordering::Relaxed);
                    assert!(read <= 8, "{kind}: {read} were read");
                    drop(opens);
                    call.join().unwrap()
                });
                assert_eq!(count, Ok(100), "{kind}");
            }
        }

        #[test]
        fn a_lazy_call_that_is_dropped_cancels_what_has_not_started() {
            let _none = Leftovers::none();
            for is_ordered in [true, false] {
                let pool = $make;
                let workers = pool.workers();
                let fence = Fence(Gate::new());
                let gate = &fence.0;
                let items = (0..50u32).map(|n| (gate.clone(), n));
                let run = |(gate, n): (Gate, u32)| {
                    if n > 0 {
                        gate.mark(&n.to_string());
                        gate.pass();
                    }
                };
                let call = pool.call().chunk_size(1).window(30);
                let all_run = || {
                    eventually("all workers are at the gate", || gate.waiting() == workers);
                };
                if is_ordered {
                    let mut results = call.imap(run, items);
                    assert_eq!(results.next(), Some(Ok(())));
                    all_run();
                } else {
                    let mut results = call.imap_unordered(run, items);
                    assert_eq!(results.next(), Some((0, Ok(()))));
                    all_run();
                }
                gate.open();
                // What is left in a queue or in a lane would run before these.
                let after = (0..2 * workers).map(|_| pool.submit(|n: u32| n, 1));
                assert!(after.map(TaskFuture::result).all(|result| result == Ok(1)));
                pool.close().unwrap();
                assert_eq!(gate.waiting(), workers, "more has run");
            }
        }
    };
}

/// Workers that die.
macro_rules! mortal_options {
    ($make:expr) => {
        #[test]
        fn b25_every_kind_of_call_has_its_retries() {
            use $crate::options::dies_once;
            let _none = Leftovers::none();
            let pool = $make;
            let call = || pool.call().retries(1).chunk_size(2);
            let all: Vec<u32> = (0..5).collect();
            let each: Vec<_> = (0..5).map(Ok).collect();
            let check = |kind: &dyn Fn(&mut dyn Iterator<Item = (Gate, u32)>)| {
                let fence = Fence(Gate::new());
                kind(&mut (0..5).map(|n| (fence.0.clone(), n)));
                assert!(fence.0.has_died());
            };
            check(&|items| assert_eq!(call().map(dies_once, items), Ok(all.clone())));
            check(&|items| {
                let with = |_: &u32, item: (Gate, u32)| dies_once(item);
                assert_eq!(call().map_with(&1, with, items), Ok(all.clone()));
            });
            check(&|items| {
                let run = |item: (Gate, u32)| {
                    dies_once(item);
                };
                assert_eq!(call().for_each(run, items), Ok(()));
            });
            check(&|items| assert_eq!(call().map_outcomes(dies_once, items), each));
            check(&|items| {
                let sum = call().map_reduce(dies_once, |a, b| a + b, items);
                assert_eq!(sum, Ok(Some(10)));
            });
            if pool.engine().kind() == "forked" {
                // A child that was forked for one item is not forked again.
                return;
            }
            check(&|items| {
                let items: Vec<_> = items.collect();
                assert_eq!(call().imap(dies_once, items).collect::<Vec<_>>(), each);
            });
            check(&|items| {
                let items: Vec<_> = items.collect();
                let outcomes = call().imap_unordered(dies_once, items);
                assert!(outcomes.into_iter().all(|(at, n)| n == Ok(at as u32)));
            });
            check(&|items| {
                let task = call().submit(dies_once, items.nth(2).unwrap());
                assert_eq!(task.result(), Ok(2));
            });
        }

        #[test]
        fn b25_a_reduction_has_its_retries_and_its_death_is_of_no_item() {
            use $crate::options::{add_and_die_once, dies_once};
            let _none = Leftovers::none();
            let pool = $make;
            let id = |item: (Gate, u32)| item;
            // Within a chunk, and between the results of chunks.
            for chunk in [5, 1] {
                for retries in [0, 1] {
                    let fence = Fence(Gate::new());
                    let items = (0..5).map(|n| (fence.0.clone(), n));
                    let call = pool.call().retries(retries).chunk_size(chunk);
                    let sum = call.map_reduce(id, add_and_die_once, items);
                    assert!(fence.0.has_died());
                    if retries > 0 {
                        assert_eq!(sum.map(|sum| sum.unwrap().1), Ok(10));
                        continue;
                    }
                    let error = sum.map(drop).unwrap_err();
                    assert!(
                        matches!(
                            error,
                            TaskError::WorkerDied {
                                index,
                                attempts: 1,
                                cause: Death::Signal(9),
                                ..
                            } if index == None
                        ),
                        "{error:?}"
                    );
                }
            }
            let fence = Fence(Gate::new());
            let items = (0..5).map(|n| (fence.0.clone(), n));
            let call = pool.call().chunk_size(2);
            let error = call.map_reduce(dies_once, |a, b| a + b, items).unwrap_err();
            assert_eq!(error.index(), None, "{error}");
        }
    };
}
