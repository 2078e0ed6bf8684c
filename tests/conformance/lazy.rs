//! `imap`, `imap_unordered`, and how far ahead the input is read.

macro_rules! lazy {
    ($make:expr) => {
        #[test]
        fn a_lazy_call_goes_on_in_another_thread() {
            let _none = Leftovers::none();
            let pool = $make;
            let mut told = 0;
            let call = pool.call().on_progress(|p| told = p.done);
            let mut results = call.imap(|n: u32| n + 1, 0..20);
            let mut unordered = pool.imap_unordered(|n: u32| n + 1, 0..20);
            assert_eq!(results.next(), Some(Ok(1)));
            assert!(unordered.next().is_some());
            std::thread::scope(|scope| {
                scope.spawn(move || assert!(results.eq((2..=20).map(Ok))));
                scope.spawn(move || assert_eq!(unordered.count(), 19));
            });
            assert_eq!(told, 20);
        }

        #[test]
        fn b18_imap_gives_the_results_in_order() {
            let _none = Leftovers::none();
            let pool = $make;
            let most = if pool.engine().kind() == "forked" {
                200
            } else {
                5_000
            };
            for items in [0, 1, 10, most] {
                let expected: Vec<_> = (0..items).map(|x| Ok(x * x)).collect();
                let squares: Vec<_> = pool.imap(|x: u64| x * x, 0..items).collect();
                assert_eq!(squares, expected);
                for chunk in [1, 3, 100] {
                    let call = pool.call().chunk_size(chunk);
                    let squares: Vec<_> = call.imap(|x: u64| x * x, unsized_up_to(items)).collect();
                    assert_eq!(squares, expected, "{chunk} of {items}");
                }
                for schedule in [Schedule::Equal, Schedule::Guided] {
                    let call = pool.call().schedule(schedule).window(7);
                    let squares: Vec<_> = call.imap(|x: u64| x * x, unsized_up_to(items)).collect();
                    assert_eq!(squares, expected, "{schedule:?}, {items}");
                }
            }
        }

        #[test]
        fn an_input_that_has_ended_is_not_read_again() {
            let _none = Leftovers::none();
            let pool = $make;
            // This input goes on after its end, as an iterator may that is not fused.
            let input = || {
                let mut next = 0..40;
                std::iter::from_fn(move || next.next().filter(|n: &u32| n % 4 < 3))
            };
            let expected = || (0..3).map(Ok).collect::<Vec<_>>();
            let id = |n: u32| n;
            for size in [1, 2, 3, 5] {
                let call = || pool.call().chunk_size(size);
                let ordered: Vec<_> = call().imap(id, input()).collect();
                assert_eq!(ordered, expected(), "chunks of {size}");
                let mut unordered: Vec<_> = call().imap_unordered(id, input()).collect();
                unordered.sort_by_key(|(index, _)| *index);
                let unordered: Vec<_> = unordered.into_iter().map(|(_, it)| it).collect();
                assert_eq!(unordered, expected(), "chunks of {size}");
                assert_eq!(call().map(id, input()), Ok(vec![0, 1, 2]));
                assert_eq!(call().map_outcomes(id, input()), expected());
                let sum = call().map_reduce(id, |a, b| a + b, input());
                assert_eq!(sum, Ok(Some(3)));
            }
        }

        #[test]
        fn b18_imap_unordered_gives_each_result_once_with_its_index() {
            let _none = Leftovers::none();
            let pool = $make;
            let most = if pool.engine().kind() == "forked" {
                200
            } else {
                5_000
            };
            for items in [0, 1, 10, most] {
                for chunk in [None, Some(1), Some(9)] {
                    let call = pool.call().window(50);
                    let call = match chunk {
                        Some(chunk) => call.chunk_size(chunk),
                        None => call,
                    };
                    let mut squares: Vec<_> = call
                        .imap_unordered(|x: u64| x * x, unsized_up_to(items))
                        .collect();
                    squares.sort_by_key(|(index, _)| *index);
                    let expected: Vec<_> = (0..items).map(|x| (x as usize, Ok(x * x))).collect();
                    assert_eq!(squares, expected, "{chunk:?} of {items}");
                }
            }
        }

        #[test]
        fn b19_imap_reads_as_results_are_taken() {
            let _none = Leftovers::none();
            let pool = $make;
            for (window, chunk) in [(1, 1), (10, 1), (10, 4), (100, 100)] {
                let read = std::cell::Cell::new(0usize);
                let endless = std::iter::repeat_with(|| read.replace(read.get() + 1));
                let call = pool.call().window(window).chunk_size(chunk);
                let mut doubled = call.imap(|x: usize| 2 * x, endless);
                assert_eq!(read.get(), 0, "nothing is read before somebody asks");
                for taken in 0..150 {
                    assert_eq!(doubled.next(), Some(Ok(2 * taken)));
                    assert!(
                        read.get() <= taken + 1 + window,
                        "{} read, {taken} taken",
                        read.get()
                    );
                }
            }
        }

        #[test]
        fn b19_imap_without_a_window_does_not_run_away() {
            let _none = Leftovers::none();
            let pool = $make;
            let read = std::cell::Cell::new(0u64);
            let endless = std::iter::repeat_with(|| read.replace(read.get() + 1));
            let mut unordered = pool.imap_unordered(|x: u64| x, endless);
            for _ in 0..100 {
                let (index, x) = unordered.next().unwrap();
                assert_eq!(x, Ok(index as u64));
            }
            assert!(read.get() < 10_000, "{} were read", read.get());
        }

        #[test]
        fn b37_imap_gives_the_others() {
            let _none = Leftovers::none();
            let pool = $make;
            let each: Vec<_> = pool.imap(not_700, 690..710).collect();
            assert_eq!(each.len(), 20);
            for (index, outcome) in each.into_iter().enumerate() {
                if index == 10 {
                    assert_eq!(outcome.unwrap_err().index(), Some(10));
                } else {
                    assert_eq!(outcome, Ok(690 + index as u32));
                }
            }
            for (index, outcome) in pool.imap_unordered(not_700, 690..710) {
                assert_eq!(outcome.is_err(), index == 10);
                assert!(outcome.is_ok_and(|x| x == 690 + index as u32) || index == 10);
            }
        }

        #[test]
        fn b38_a_panic_of_the_input_of_imap_comes_before_what_was_read() {
            let _none = Leftovers::none();
            let pool = $make;
            let input = (0..100u64).inspect(|&x| assert!(x != 20, "input ends at {x}"));
            let mut results = pool.imap(|x| x, input);
            let mut taken = Vec::new();
            let mut panics = 0;
            loop {
                let next = std::panic::AssertUnwindSafe(|| results.next());
                match std::panic::catch_unwind(next) {
                    Ok(Some(result)) => taken.push(result),
                    Ok(None) => break,
                    Err(_) => panics += 1,
                }
            }
            assert_eq!(panics, 1);
            assert_eq!(taken, (0..20).map(Ok).collect::<Vec<_>>());
            assert_eq!(pool.map(|x: u64| x, 0..3), Ok(vec![0, 1, 2]));
        }

        #[test]
        fn a_lazy_call_that_cannot_be_made_has_one_outcome() {
            let _none = Leftovers::none();
            let pool = $make;
            let refused: Vec<_> = pool.call().window(0).imap(|x: u32| x, 0..3).collect();
            assert!(
                matches!(refused[..], [Err(TaskError::InvalidCall { .. })]),
                "{refused:?}"
            );
            let refused: Vec<_> = pool
                .call()
                .chunk_size(0)
                .imap_unordered(|x: u32| x, 0..3)
                .collect();
            assert!(matches!(
                refused[..],
                [(0, Err(TaskError::InvalidCall { .. }))]
            ));
            pool.close().unwrap();
            let closed: Vec<_> = pool.imap(|x: u32| x, 0..3).collect();
            assert_eq!(closed, vec![Err(TaskError::from(PoolError::Closed)); 3]);
        }

        #[test]
        fn a_lazy_call_that_is_dropped_leaves_the_pool_as_it_was() {
            let _none = Leftovers::none();
            let pool = $make;
            for taken in [0, 1, 5] {
                let mut ordered = pool.imap(|x: u64| x, 0..);
                assert_eq!(ordered.by_ref().take(taken).count(), taken);
                let mut unordered = pool.imap_unordered(|x: u64| x, 0..);
                assert_eq!(unordered.by_ref().take(taken).count(), taken);
            }
            assert_eq!(pool.map(|x: u64| x, 0..3), Ok(vec![0, 1, 2]));
        }
    };
}

/// What needs a task that runs while the caller goes on, and a `map` that reads as it goes.
macro_rules! queued_calls {
    ($make:expr) => {
        #[test]
        fn b38_what_has_not_begun_when_the_input_panics_never_runs() {
            use $crate::ends::comes_to_rest;
            let _none = Leftovers::none();
            for lists in [false, true] {
                let pool = $make;
                let workers = pool.workers();
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                let (send, panics) = std::sync::mpsc::channel();
                let call = std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends.
                    let _opens = Opens(&gate);
                    let (pool, gate) = (&pool, &gate);
                    let call = scope.spawn(move || {
                        let input = (0..3 * workers).map(|n| {
                            if n == 3 * workers - 1 {
                                let all_run = || gate.waiting() == workers;
                                eventually("all workers are at the gate", all_run);
                                send.send(nix::unistd::gettid()).unwrap();
                                panic!("the input ends here");
                            }
                            (gate.clone(), n)
                        });
                        let run = |(gate, n): (Gate, usize)| {
                            gate.mark(&format!("item-{n}"));
                            gate.pass();
                        };
                        let call = pool.call().chunk_size(1);
                        let call = std::panic::AssertUnwindSafe(|| {
                            if lists {
                                drop(call.map_outcomes(run, input));
                            } else {
                                drop(call.map(run, input));
                            }
                        });
                        std::panic::catch_unwind(call).is_err()
                    });
                    let thread = panics.recv_timeout(DEADLINE).unwrap();
                    // Either it waits for the items that run, or it has left them to themselves.
                    comes_to_rest(thread, || call.is_finished());
                    gate.open();
                    call.join().unwrap()
                });
                assert!(call, "the panic has reached the caller");
                // What was left in a lane or in a queue would run before this.
                let after = (0..2 * workers).map(|_| pool.submit(|x: u8| x, 1));
                assert!(after.map(TaskFuture::result).all(|result| result == Ok(1)));
                pool.close().unwrap();
                assert_eq!(gate.waiting(), workers, "{lists}: more has run");
            }
        }

        #[test]
        fn b19_map_reads_no_further_than_its_window() {
            let _none = Leftovers::none();
            let pool = $make;
            let read = std::sync::atomic::AtomicUsize::new(0);
            for (window, chunk) in [(1, 1), (2, 1), (10, 1), (30, 4), (30, 1_000)] {
                let gate = Gate::new();
                let _fence = Fence(gate.clone());
                read.store(0, Ordering::Relaxed);
                let outcome = std::thread::scope(|scope| {
                    // Opens the gate for the tasks that wait, however this part ends: the scope
                    // waits for its threads.
                    let _fence = Fence(gate.clone());
                    let call = scope.spawn(|| {
                        let items = std::iter::repeat_n(gate.clone(), 100);
                        let items = items.inspect(|_| {
                            read.fetch_add(1, Ordering::Relaxed);
                        });
                        let call = pool.call().window(window).chunk_size(chunk);
                        call.map(|gate: Gate| gate.pass_counted(), items)
                    });
                    eventually("a worker is at the gate", || gate.waiting() >= 1);
                    for _ in 0..1_000 {
                        let read = read.load(Ordering::Relaxed);
                        assert!(read <= window + 1, "{read} were read");
                        std::thread::yield_now();
                    }
                    gate.open();
                    call.join().unwrap()
                });
                assert_eq!(outcome.unwrap().len(), 100);
            }
        }

        #[test]
        fn b18_imap_unordered_does_not_wait_for_a_long_item() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let items = std::iter::once(Some(gate.clone())).chain(std::iter::repeat_n(None, 20));
            let call = pool.call().chunk_size(1);
            let mut results =
                call.imap_unordered(|gate: Option<Gate>| gate.map(|gate| gate.pass()), items);
            let indices: std::collections::BTreeSet<_> =
                results.by_ref().take(20).map(|(index, _)| index).collect();
            assert_eq!(indices, (1..=20).collect());
            gate.open();
            assert_eq!(results.next(), Some((0, Ok(Some("passed".to_owned())))));
            assert_eq!(results.next(), None);
        }
    };
}
