//! Limits on the time of an item.

/// A limit that short items keep also on a machine with other things to do.
pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_millis(400);

/// Takes this many fifths of the limit. It sleeps: a busy loop would take far longer on a machine
/// with other things to do.
pub(crate) fn spend(fifths: u32) -> u32 {
    std::thread::sleep(LIMIT * fifths / 5);
    fifths
}

macro_rules! limits {
    ($make:expr) => {
        #[test]
        fn b28_an_item_that_takes_too_long_fails_alone() {
            use $crate::limits::{LIMIT, spend};
            let _none = Leftovers::none();
            let pool = $make;
            let overdue = |index| timed_out(index, LIMIT);
            for chunk in [1, 4] {
                let call = || pool.call().timeout(LIMIT).chunk_size(chunk).retries(3);
                let each = call().map_outcomes(spend, [0, 1, 8, 0]);
                assert_eq!(each, [Ok(0), Ok(1), Err(overdue(Some(2))), Ok(0)]);
                assert_eq!(call().map(spend, [0, 8, 0]), Err(overdue(Some(1))));
                let each: Vec<_> = call().imap(spend, [0, 8, 1]).collect();
                assert_eq!(each, [Ok(0), Err(overdue(Some(1))), Ok(1)]);
            }
            let task = pool.call().timeout(LIMIT).submit(spend, 8);
            let own = task_timed_out(task.id(), LIMIT);
            assert_eq!(task.result(), Err(own));
            assert_eq!(pool.call().timeout(LIMIT).submit(spend, 0).result(), Ok(0));
        }

        #[test]
        fn b28_an_item_that_panics_after_its_limit_has_timed_out() {
            use $crate::limits::{LIMIT, spend};
            let _none = Leftovers::none();
            let pool = $make;
            let late = |fifths: u32| {
                spend(fifths);
                assert!(fifths == 0, "after its limit");
            };
            let overdue = |index| timed_out(index, LIMIT);
            let call = || pool.call().timeout(LIMIT);
            assert_eq!(call().map(late, [0, 8, 0]), Err(overdue(Some(1))));
            let task = call().submit(late, 8);
            let own = task_timed_out(task.id(), LIMIT);
            assert_eq!(task.result(), Err(own));
        }

        #[test]
        fn b28_the_limit_is_for_each_item_and_not_for_the_chunk() {
            use $crate::limits::{LIMIT, spend};
            let _none = Leftovers::none();
            let pool = $make;
            // Eight fifths of the limit in one chunk.
            let call = pool.call().timeout(LIMIT).chunk_size(8);
            assert_eq!(call.map(spend, [1; 8]), Ok(vec![1; 8]));
            let call = pool.call().timeout(Duration::MAX).chunk_size(8);
            assert_eq!(call.map(spend, [0; 8]), Ok(vec![0; 8]));
        }

        #[test]
        fn b28_with_a_limit_of_zero_nothing_is_started_and_all_has_timed_out() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let run = |(gate, n): (Gate, u32)| {
                gate.mark(&n.to_string());
                n
            };
            let items = || (0..5u32).map(|n| (gate.clone(), n)).collect::<Vec<_>>();
            let call = || pool.call().timeout(Duration::ZERO).chunk_size(2).retries(1);
            let overdue = |index| timed_out(index, Duration::ZERO);
            let each: Vec<_> = (0..5).map(|index| Err(overdue(Some(index)))).collect();
            assert_eq!(call().map(run, items()), Err(overdue(Some(0))));
            assert_eq!(call().map(run, Vec::new()), Ok(Vec::new()));
            assert_eq!(call().map_outcomes(run, items()), each);
            assert_eq!(call().imap(run, items()).collect::<Vec<_>>(), each);
            let mut unordered: Vec<_> = call().imap_unordered(run, items()).collect();
            unordered.sort_by_key(|(index, _)| *index);
            let outcomes: Vec<_> = unordered.into_iter().map(|(_, outcome)| outcome).collect();
            assert_eq!(outcomes, each);
            let nothing = |(gate, n): (Gate, u32)| gate.mark(&n.to_string());
            assert_eq!(call().for_each(nothing, items()), Err(overdue(Some(0))));
            let with = |_: &u32, (gate, n): (Gate, u32)| {
                gate.mark(&n.to_string());
                n
            };
            assert_eq!(call().map_with(&1, with, items()), Err(overdue(Some(0))));
            let task = call().submit(run, (gate.clone(), 7));
            assert!(!task.cancel(), "it has ended");
            let own = task_timed_out(task.id(), Duration::ZERO);
            assert_eq!(task.result(), Err(own));
            let task = call().submit(run, (gate.clone(), 7));
            let (told, is_told) = std::sync::mpsc::channel();
            task.on_done(move |outcome| told.send(outcome.is_err()).unwrap());
            assert_eq!(is_told.recv(), Ok(true));
            assert_eq!(gate.waiting(), 0, "an item was started");
            // A call over chunks of its own has no limit, on any engine.
            let sum = call().map_reduce(|n: u32| n, |a, b| a + b, 0..5);
            assert!(matches!(sum, Err(TaskError::InvalidCall { .. })), "{sum:?}");
            assert_eq!(pool.map(run, items()), Ok(vec![0, 1, 2, 3, 4]));
            assert_eq!(gate.waiting(), 5);
        }

        #[test]
        fn b28_no_result_is_given_that_comes_after_the_limit() {
            let _none = Leftovers::none();
            let pool = $make;
            let limit = Duration::from_nanos(1);
            let overdue = |index| timed_out(index, limit);
            // Longer than the clock needs to tick, and far shorter than it takes to be stopped from
            // outside.
            let short = |n: u32| {
                let start = std::time::Instant::now();
                while start.elapsed() < Duration::from_micros(1) {}
                n
            };
            let call = || pool.call().timeout(limit).chunk_size(3);
            for _ in 0..10 {
                let each: Vec<_> = (0..4).map(|index| Err(overdue(Some(index)))).collect();
                assert_eq!(call().map_outcomes(short, 0..4), each);
                let task = call().submit(short, 1);
                let own = task_timed_out(task.id(), limit);
                assert_eq!(task.result(), Err(own));
            }
            assert_eq!(call().map(short, 0..4), Err(overdue(Some(0))));
        }
    };
}

/// A task that never ends is stopped.
macro_rules! mortal_limits {
    ($make:expr) => {
        #[test]
        fn b28_endless_items_are_stopped_and_the_others_run() {
            let _none = Leftovers::none();
            let pool = $make;
            let limit = Duration::from_millis(200);
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let run = |(gate, n): (Gate, u32)| {
                if n % 4 == 1 {
                    // Once for each time it is started.
                    gate.mark(&format!("{n} in {}", std::process::id()));
                    gate.pass();
                }
                n
            };
            let items = (0..12u32).map(|n| (gate.clone(), n));
            let call = pool.call().timeout(limit).retries(3).chunk_size(6);
            for (index, outcome) in call.map_outcomes(run, items).into_iter().enumerate() {
                if index % 4 == 1 {
                    let index = Some(index);
                    assert_eq!(outcome, Err(timed_out(index, limit)));
                } else {
                    assert_eq!(outcome, Ok(index as u32));
                }
            }
            assert_eq!(gate.waiting(), 3, "an overdue item is not run again");
            let endless = pool
                .call()
                .timeout(limit)
                .submit(|gate: Gate| gate.pass(), gate);
            let overdue = task_timed_out(endless.id(), limit);
            assert_eq!(endless.result(), Err(overdue));
            assert_eq!(pool.map(|x: u32| x + 1, 0..3), Ok(vec![1, 2, 3]));
        }

        #[test]
        fn b28_a_death_within_the_limit_is_a_death() {
            let _none = Leftovers::none();
            let pool = $make;
            let die = |()| -> u32 {
                common::kill(std::process::id());
                unreachable!("SIGKILL cannot be survived")
            };
            let call = pool.call().timeout(Duration::from_secs(600));
            let outcome = call.submit(die, ()).result();
            assert!(
                matches!(
                    outcome,
                    Err(TaskError::WorkerDied {
                        cause: Death::Signal(9),
                        ..
                    })
                ),
                "{outcome:?}"
            );
        }
    };
}
