//! `map`: order, chunks, errors, closing, many callers.

macro_rules! maps {
    ($make:expr) => {
        #[test]
        fn b16_map_keeps_the_order_for_every_chunk_size_and_length() {
            let _none = Leftovers::none();
            let pool = $make;
            for items in [0, 1, 10, 1_000, 100_000u64] {
                let expected: Vec<u64> = (0..items).map(|x| x * x).collect();
                assert_eq!(
                    pool.map(|x| x * x, 0..items),
                    Ok(expected.clone()),
                    "auto, {items}"
                );
                for chunk in [1, 3, 20, 100]
                    .into_iter()
                    .filter(|chunk| items / chunk <= 10_000)
                {
                    let squares = pool
                        .call()
                        .chunk_size(chunk as usize)
                        .map(|x| x * x, 0..items);
                    assert_eq!(squares, Ok(expected.clone()), "{chunk} of {items}");
                }
                for schedule in [Schedule::Equal, Schedule::Guided] {
                    let squares = pool
                        .call()
                        .schedule(schedule)
                        .map(|x| x * x, unsized_up_to(items));
                    assert_eq!(squares, Ok(expected.clone()), "{schedule:?}, {items}");
                }
            }
        }

        #[test]
        fn b16_map_keeps_the_order_of_values_of_any_kind() {
            let _none = Leftovers::none();
            let pool = $make;
            let records: Vec<Record> = (0..3_000).map(record).collect();
            assert_eq!(pool.map(record, 0..3_000u32), Ok(records.clone()));
            let names: Vec<String> = records.iter().map(|record| record.name.clone()).collect();
            assert_eq!(pool.map(|record: Record| record.name, records), Ok(names));
            let large = pool
                .map(|n: usize| vec![n as u16; n * 50_000], 0..8usize)
                .unwrap();
            assert!(
                large
                    .iter()
                    .enumerate()
                    .all(|(n, v)| *v == vec![n as u16; n * 50_000])
            );
            let lengths = pool.map(
                |bytes: Vec<u8>| bytes.len(),
                large.iter().map(|v| vec![1u8; v.len()]),
            );
            assert_eq!(
                lengths.unwrap(),
                large.iter().map(Vec::len).collect::<Vec<_>>()
            );
            assert_eq!(
                pool.map(|()| (), std::iter::repeat_n((), 1_000))
                    .unwrap()
                    .len(),
                1_000
            );
        }

        #[test]
        fn b17_empty_input_gives_an_empty_result() {
            let _none = Leftovers::none();
            let pool = $make;
            assert_eq!(pool.map(|x: u64| x, std::iter::empty()), Ok(vec![]));
            assert_eq!(pool.map(|x: String| x, Vec::new()), Ok(vec![]));
            assert_eq!(pool.map(|x: u64| x, unsized_up_to(0)), Ok(vec![]));
            assert_eq!(pool.map_with(&1u64, |a, x: u64| a + x, 0..0), Ok(vec![]));
        }

        #[test]
        fn b20_a_chunk_size_of_zero_is_an_error_before_anything_runs() {
            let _none = Leftovers::none();
            let pool = $make;
            let call = || {
                pool.call()
                    .schedule(Schedule::Dynamic(0))
                    .map(|x: u64| x, 0..3)
            };
            assert!(matches!(call(), Err(TaskError::InvalidCall { .. })));
            assert!(matches!(
                pool.call().chunk_size(0).map(|x: u64| x, 0..3),
                Err(TaskError::InvalidCall { .. })
            ));
        }

        #[test]
        fn b21_a_panic_comes_back_with_message_place_and_index() {
            let _none = Leftovers::none();
            let pool = $make;
            let outcome = pool.map(not_700, 0..1_000);
            let Err(TaskError::Panicked {
                index,
                message,
                location,
                ..
            }) = outcome
            else {
                panic!("{outcome:?}")
            };
            assert_eq!((index.get(), &*message), (Some(700), "item 700 is bad"));
            let location = location.unwrap();
            assert_eq!(
                (location.file.as_str(), location.line),
                (file!(), NOT_700_LINE)
            );
            let outcome = pool
                .submit(|x: u32| -> u32 { std::panic::panic_any(x) }, 5)
                .result();
            assert!(
                matches!(outcome, Err(TaskError::Panicked{ index, .. }) if index == None),
                "{outcome:?}"
            );
            assert_eq!(
                pool.map(|x: u32| x + 1, 0..3),
                Ok(vec![1, 2, 3]),
                "the pool goes on"
            );
        }

        #[test]
        fn b32_close_waits_for_all_and_later_tasks_are_refused() {
            let _none = Leftovers::none();
            let pool = $make;
            let tasks: Vec<_> = (0..50u64).map(|n| pool.submit(|n: u64| n * 2, n)).collect();
            assert_eq!(pool.close(), Ok(()));
            assert!(tasks.iter().all(TaskFuture::is_done));
            let results: Result<Vec<u64>, _> = tasks.into_iter().map(TaskFuture::result).collect();
            assert_eq!(results, Ok((0..50).map(|n| n * 2).collect()));
            let closed = TaskError::from(PoolError::Closed);
            assert_eq!(pool.submit(|n: u64| n, 1).result(), Err(closed.clone()));
            assert_eq!(pool.map(|n: u64| n, 0..3), Err(closed));
            assert_eq!(pool.close(), Ok(()), "closing twice is the same as once");
        }

        #[test]
        fn b34_dropping_a_pool_leaves_nothing() {
            let _none = Leftovers::none();
            for _ in 0..20 {
                let pool = $make;
                let _unfinished = pool.submit(|n: u64| (0..n).sum::<u64>(), 1_000);
            }
        }

        #[test]
        fn b37_map_fails_with_the_error_of_the_first_item_in_order() {
            let _none = Leftovers::none();
            let pool = $make;
            for first in [0u32, 1, 77, 499] {
                for schedule in [
                    Schedule::Equal,
                    Schedule::Guided,
                    Schedule::Dynamic(1),
                    Schedule::Dynamic(50),
                ] {
                    let call = pool.call().schedule(schedule);
                    let outcome = call.map_with(
                        &first,
                        |first, x: u32| assert!(!fails(*first, x), "{x}"),
                        0..500,
                    );
                    let error = outcome.unwrap_err();
                    assert_eq!(error.index(), Some(first as usize), "{schedule:?}: {error}");
                }
            }
        }

        #[test]
        fn b37_of_two_failures_the_first_in_input_order_counts_whichever_came_first() {
            let _none = Leftovers::none();
            let pool = $make;
            if pool.workers() < 2 {
                // One item after the other runs.
                return;
            }
            // Which fails first, and whether the other fails only when that is known.
            for (first, one_by_one) in [(0, true), (1, true), (0, false)] {
                let gates = [Gate::new(), Gate::new()];
                let _fences = gates.clone().map(Fence);
                let fail = |(own, n): (Gate, u32)| {
                    own.mark("begun");
                    own.pass();
                    panic!("item {n} fails")
                };
                let error = std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends.
                    let _opens = gates.each_ref().map(Opens);
                    let gates = &gates;
                    let pool = &pool;
                    let call = scope.spawn(move || {
                        let call = pool.call().chunk_size(1).on_progress(|p| {
                            if p.failed > 0 {
                                gates[1 - first].open();
                            }
                        });
                        let items = gates.clone().into_iter().zip(0..);
                        call.map(fail, items).map(|results: Vec<u32>| results.len())
                    });
                    eventually("both run", || gates.iter().all(|gate| gate.waiting() == 1));
                    if !one_by_one {
                        gates[1 - first].open();
                    }
                    gates[first].open();
                    call.join().unwrap().unwrap_err()
                });
                let text = error.to_string();
                assert!(
                    text.contains("item 0 fails"),
                    "{first} {one_by_one}: {text}"
                );
                assert_eq!(error.index(), Some(0));
            }
        }

        #[test]
        fn b38_a_panic_of_the_input_reaches_the_caller_and_the_pool_goes_on() {
            let _none = Leftovers::none();
            let pool = $make;
            for at in [0, 1, 500] {
                let input = (0..1_000u64).inspect(|&x| assert!(x != at, "input ends at {x}"));
                // Pools are unwind safe, because they stay usable.
                let panic = std::panic::catch_unwind(|| pool.map(|x| x, input)).unwrap_err();
                assert_eq!(
                    *panic.downcast::<String>().unwrap(),
                    format!("input ends at {at}")
                );
                assert_eq!(pool.map(|x: u64| x, 0..100).unwrap().len(), 100);
            }
        }

        #[test]
        fn b46_result_timeout_leaves_the_task_alone() {
            let _none = Leftovers::none();
            let pool = $make;
            if pool.engine().kind() == "serial" {
                // The task has run when submit returns.
                assert_eq!(
                    pool.submit(|x: u8| x, 1).result_timeout(Duration::ZERO),
                    Ok(Ok(1))
                );
                return;
            }
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let mut task = pool.submit(|gate: Gate| gate.pass(), gate.clone());
            assert!(task.result_timeout(Duration::from_millis(20)).is_err());
            assert!(!task.is_done());
            gate.open();
            assert_eq!(
                task.result_timeout(common::DEADLINE),
                Ok(Ok("passed".to_owned()))
            );
            assert_eq!(task.result(), Err(taken()));
        }

        #[test]
        fn b39_no_more_tasks_run_at_once_than_there_are_workers() {
            let _none = Leftovers::none();
            let pool = $make;
            let workers = pool.workers();
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let outcome = std::thread::scope(|scope| {
                let blocked = scope.spawn(|| {
                    let gates = std::iter::repeat_n(gate.clone(), 15 * workers);
                    pool.call()
                        .chunk_size(1)
                        .map(|gate: Gate| gate.pass_counted(), gates)
                });
                eventually("all workers are at the gate", || {
                    gate.waiting() == workers || blocked.is_finished()
                });
                gate.open();
                blocked.join().unwrap()
            });
            let most = outcome.unwrap().into_iter().max();
            assert!(
                most <= Some(workers),
                "{most:?} at once with {workers} workers"
            );
        }

        #[test]
        fn many_threads_share_a_pool() {
            let _none = Leftovers::none();
            let pool = $make;
            std::thread::scope(|scope| {
                for t in 0..8u64 {
                    let pool = &pool;
                    scope.spawn(move || {
                        for n in 0..20 {
                            let tasks: Vec<_> = (0..5)
                                .map(|k| pool.submit(|x: u64| x + 1, t + n + k))
                                .collect();
                            for (k, task) in (0..).zip(tasks) {
                                assert_eq!(task.result(), Ok(t + n + k + 1));
                            }
                            assert_eq!(
                                pool.map(|x: u64| x * 3, t..t + 40).unwrap()[39],
                                (t + 39) * 3
                            );
                        }
                    });
                }
            });
        }

        #[test]
        fn progress_ends_with_everything_done() {
            let _none = Leftovers::none();
            let pool = $make;
            let mut told = Vec::new();
            let call = pool
                .call()
                .on_progress(|p| told.push((p.done, p.failed, p.total)));
            call.chunk_size(10).map(|x: u32| x, 0..1_000).unwrap();
            assert!(
                told.windows(2).all(|pair| pair[0].0 <= pair[1].0),
                "{told:?}"
            );
            assert_eq!(told.last(), Some(&(1_000, 0, Some(1_000))));
        }

        #[test]
        fn a_long_input_is_read_as_it_is_needed() {
            let _none = Leftovers::none();
            let pool = $make;
            // Forked children are copies of the caller, items included: all items must be there at
            // the fork.
            if pool.engine().kind() == "forked" {
                return;
            }
            GIVEN.store(0, Ordering::Relaxed);
            let input = (0..u64::MAX).inspect(|_| count_given());
            let outcome = pool.call().chunk_size(1).map(|x| assert!(x != 10), input);
            assert_eq!(outcome.unwrap_err().index(), Some(10));
            // The tenth item may take long, with its panic and perhaps a backtrace. Even so the
            // others run only so far ahead.
            assert!(
                GIVEN.load(Ordering::Relaxed) < 1_000,
                "{GIVEN:?} items were read"
            );
        }
    };
}
