//! Limits on the time of an item.

/// A limit that short items keep also on a machine with other things to do.
pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_millis(400);

/// Takes so long, in parts of the limit.
pub(crate) fn spend(fifths: u32) -> u32 {
    let start = std::time::Instant::now();
    while start.elapsed() < LIMIT * fifths / 5 {
        std::hint::spin_loop();
    }
    fifths
}

macro_rules! limits {
    ($make:expr) => {
        #[test]
        fn b28_an_item_that_takes_too_long_fails_alone() {
            use $crate::limits::{LIMIT, spend};
            let _none = Leftovers::none();
            let pool = $make;
            let overdue = |index| TaskError::TimedOut {
                index,
                limit: LIMIT,
            };
            for chunk in [1, 4] {
                let call = || pool.call().timeout(LIMIT).chunk_size(chunk).retries(3);
                let each = call().try_map(spend, [0, 1, 8, 0]);
                assert_eq!(each, [Ok(0), Ok(1), Err(overdue(Some(2))), Ok(0)]);
                assert_eq!(call().map(spend, [0, 8, 0]), Err(overdue(Some(1))));
                let each: Vec<_> = call().imap(spend, [0, 8, 1]).collect();
                assert_eq!(each, [Ok(0), Err(overdue(Some(1))), Ok(1)]);
            }
            let task = pool.call().timeout(LIMIT).submit(spend, 8);
            assert_eq!(task.result(), Err(overdue(None)));
            assert_eq!(pool.call().timeout(LIMIT).submit(spend, 0).result(), Ok(0));
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
            for (index, outcome) in call.try_map(run, items).into_iter().enumerate() {
                if index % 4 == 1 {
                    let index = Some(index);
                    assert_eq!(outcome, Err(TaskError::TimedOut { index, limit }));
                } else {
                    assert_eq!(outcome, Ok(index as u32));
                }
            }
            assert_eq!(gate.waiting(), 3, "an overdue item is not run again");
            let endless = pool
                .call()
                .timeout(limit)
                .submit(|gate: Gate| gate.pass(), gate);
            let overdue = TaskError::TimedOut { index: None, limit };
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
            let call = pool.call().timeout(Duration::from_mins(10));
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
