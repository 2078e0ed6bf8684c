//! `map_outcomes`, `for_each`, `map_reduce`, and what is told of their progress.

use std::panic::{catch_unwind, panic_any, resume_unwind};

use super::*;

/// Panics in as many ways as there are; gives back what it does not know.
pub(crate) fn panics_in_way(way: u32) -> u32 {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("in a payload");
        }
    }
    match way {
        0 => panic!("a text"),
        1 => panic!("text {way}"),
        2 => panic_any(way),
        3 => panic_any(Grumpy),
        4 => {
            assert!(catch_unwind(|| panic!("another")).is_err());
            resume_unwind(Box::new("resumed"))
        }
        way => way,
    }
}

/// As a program of its own: the hook is the program's.
#[test]
fn b21_a_programs_own_panic_hook_is_called_and_may_be_replaced() {
    static HEARD: AtomicUsize = AtomicUsize::new(0);
    let name = "outcomes::b21_a_programs_own_panic_hook_is_called_and_may_be_replaced";
    if !is_program() {
        let output = common::finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    std::panic::set_hook(Box::new(|_| {
        HEARD.fetch_add(1, Ordering::SeqCst);
    }));
    let pool = Pool::threads(1).unwrap();
    let place_of = |pool: &Pool<Threads>| match pool.submit(panics_in_way, 0).result() {
        Err(TaskError::Panicked {
            message, location, ..
        }) => {
            assert_eq!(message, "a text");
            location
        }
        other => panic!("{other:?}"),
    };
    assert!(place_of(&pool).is_some_and(|place| place.file == file!()));
    assert_eq!(HEARD.load(Ordering::SeqCst), 1);
    // Other pools put no more hooks in front.
    let other = Pool::threads(1).unwrap();
    assert!(place_of(&other).is_some());
    assert_eq!(HEARD.load(Ordering::SeqCst), 2);
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(place_of(&pool), None, "places are lost, and nothing else");
    assert_eq!(HEARD.load(Ordering::SeqCst), 2);
}

macro_rules! outcomes {
    ($make:expr) => {
        #[test]
        fn b37_map_outcomes_gives_every_item_its_outcome_in_order() {
            let _none = Leftovers::none();
            let pool = $make;
            for items in [0u32, 1, 10, 1_000] {
                for schedule in [Schedule::Equal, Schedule::Guided, Schedule::Dynamic(7)] {
                    let mut told = (0, 0);
                    let call = pool.call().schedule(schedule);
                    let call = call.on_progress(|p| told = (p.done, p.failed));
                    let each = call.map_outcomes(|x: u32| not_700(x + 690) - 690, 0..items);
                    assert_eq!(each.len(), items as usize, "{schedule:?}");
                    for (index, outcome) in each.into_iter().enumerate() {
                        if index == 10 {
                            let error = outcome.unwrap_err();
                            assert_eq!(error.index(), Some(10));
                            assert!(error.to_string().contains("item 700 is bad"), "{error}");
                        } else {
                            assert_eq!(outcome, Ok(index as u32));
                        }
                    }
                    let failed = usize::from(items > 10);
                    assert_eq!(told, (items as usize, failed), "{schedule:?}, {items}");
                }
            }
        }

        #[test]
        fn b21_a_panic_is_told_in_whatever_way_it_came() {
            use $crate::outcomes::panics_in_way;
            let _none = Leftovers::none();
            let pool = $make;
            let value = "a value that is not text (std::panic::panic_any)";
            let expected = [
                ("a text", true),
                ("text 1", true),
                (value, true),
                (value, true),
                ("resumed", false),
            ];
            let outcomes = pool.call().chunk_size(3).map_outcomes(panics_in_way, 0..7);
            for (way, outcome) in outcomes.into_iter().enumerate() {
                let Some(&(says, has_place)) = expected.get(way) else {
                    assert_eq!(outcome, Ok(way as u32));
                    continue;
                };
                let Err(TaskError::Panicked {
                    index,
                    message,
                    location,
                    ..
                }) = outcome
                else {
                    panic!("{way}: {outcome:?}")
                };
                assert_eq!((index.get(), &*message), (Some(way), says));
                assert_eq!(location.is_some(), has_place, "{way}: {location:?}");
            }
        }

        #[test]
        fn b37_map_outcomes_of_nothing_but_failures() {
            let _none = Leftovers::none();
            let pool = $make;
            let each = pool.map_outcomes(|x: u32| -> String { panic!("{x}") }, 0..300);
            let is_own = |(index, outcome): (usize, &Result<String, TaskError>)| {
                let Err(TaskError::Panicked {
                    index: at, message, ..
                }) = outcome
                else {
                    return false;
                };
                *at == Some(index) && *message == index.to_string()
            };
            assert_eq!(each.len(), 300);
            assert!(each.iter().enumerate().all(is_own), "{each:?}");
        }

        #[test]
        fn a_call_that_cannot_be_made_is_the_outcome_of_each_item() {
            let _none = Leftovers::none();
            let pool = $make;
            for each in [
                pool.call().chunk_size(0).map_outcomes(|x: u32| x, 0..3),
                pool.call().window(0).map_outcomes(|x: u32| x, 0..3),
            ] {
                assert_eq!(each.len(), 3);
                let is_refused = |outcome| matches!(outcome, &Err(TaskError::InvalidCall { .. }));
                assert!(each.iter().all(is_refused), "{each:?}");
            }
            pool.close().unwrap();
            let closed = Err(TaskError::from(PoolError::Closed));
            assert_eq!(pool.map_outcomes(|x: u32| x, 0..3), vec![closed; 3]);
        }

        #[test]
        fn b38_a_panic_of_the_input_of_map_outcomes_reaches_the_caller() {
            let _none = Leftovers::none();
            let pool = $make;
            let input = (0..1_000u64).inspect(|&x| assert!(x != 500, "input ends at {x}"));
            let call = || pool.map_outcomes(|x| x, input);
            let panic = std::panic::catch_unwind(call).unwrap_err();
            assert_eq!(*panic.downcast::<String>().unwrap(), "input ends at 500");
            assert_eq!(pool.map_outcomes(|x: u64| x, 0..2), [Ok(0), Ok(1)]);
        }

        #[test]
        fn for_each_runs_every_item_once() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let items = (0..200u32).map(|n| (gate.clone(), n));
            let ran = pool.for_each(|(gate, n): (Gate, u32)| gate.mark(&n.to_string()), items);
            assert_eq!(ran, Ok(()));
            assert_eq!(gate.waiting(), 200);
            let failed = pool.for_each(|x: u32| assert!(x != 700), 600..800);
            assert_eq!(failed.unwrap_err().index(), Some(100));
        }

        #[test]
        fn map_reduce_keeps_the_order() {
            let _none = Leftovers::none();
            let pool = $make;
            for items in [0, 1, 2, 10, 1_000, 20_000u32] {
                // Joining texts is associative, and not commutative.
                let joined: String = (0..items).map(|x| x.to_string()).collect();
                let joined = (items > 0).then_some(joined);
                for schedule in [Schedule::Equal, Schedule::Guided, Schedule::Dynamic(9)] {
                    let call = || pool.call().schedule(schedule);
                    let reduced =
                        call().map_reduce(|x: u32| x.to_string(), |a, b| a + &b, 0..items);
                    assert_eq!(reduced.as_ref(), Ok(&joined), "{schedule:?}, {items}");
                    let unsized_items = (0..items).filter(|_| true);
                    let call = call().window(100);
                    let reduced =
                        call.map_reduce(|x: u32| x.to_string(), |a, b| a + &b, unsized_items);
                    assert_eq!(reduced.as_ref(), Ok(&joined), "{schedule:?}, {items}");
                }
            }
        }

        #[test]
        fn map_reduce_names_the_item_that_failed() {
            let _none = Leftovers::none();
            let pool = $make;
            let failed = pool.map_reduce(not_700, u32::max, 0..1_000);
            let error = failed.unwrap_err();
            assert_eq!(error.index(), Some(700), "{error}");
            let limited = pool.call().timeout(Duration::from_secs(1));
            let refused = limited.map_reduce(|x: u32| x, u32::max, 0..3);
            assert!(
                matches!(refused, Err(TaskError::InvalidCall { .. })),
                "{refused:?}"
            );
        }

        #[test]
        fn map_reduce_blames_no_item_for_a_panic_of_the_reduction() {
            let _none = Leftovers::none();
            let pool = $make;
            let add = |a: u32, b: u32| {
                assert!(a + b < 45, "too much");
                a + b
            };
            // In one chunk, between the results of chunks, and both.
            for chunk in [10, 1, 3] {
                let call = || pool.call().chunk_size(chunk);
                let error = call().map_reduce(|x: u32| x, add, 0..10).unwrap_err();
                assert!(matches!(error, TaskError::Panicked { .. }), "{error:?}");
                assert_eq!(error.index(), None, "{chunk}: {error}");
                // An error of an item names the item, also after the reduction has run in its
                // chunk.
                let error = call().map_reduce(not_700, u32::max, 694..704).unwrap_err();
                assert_eq!(error.index(), Some(6), "{chunk}: {error}");
            }
        }

        #[test]
        fn progress_of_map_reduce_is_never_ahead() {
            let _none = Leftovers::none();
            let pool = $make;
            let gate = Gate::new();
            let _fence = Fence(gate.clone());
            let run = |(gate, n): (Gate, u32)| {
                // The first chunk is over before any other, and the callback has been told.
                if n >= 5 {
                    gate.pass();
                }
                gate.mark(&format!("item-{n}"));
                n
            };
            let mut told = Vec::new();
            let call = pool.call().chunk_size(5).on_progress(|p| {
                told.push((p.done, gate.waiting()));
                // Not when five have run: the last of them may not have been counted yet.
                if p.done >= 5 {
                    gate.open();
                }
            });
            let items = (0..50).map(|n| (gate.clone(), n));
            assert_eq!(call.map_reduce(run, u32::max, items), Ok(Some(49)));
            assert!(told.iter().all(|(done, ran)| done <= ran), "{told:?}");
            assert!(told.iter().any(|&(done, _)| done == 5), "{told:?}");
            assert_eq!(told.last(), Some(&(50, 50)));
        }

        #[test]
        fn progress_comes_with_an_estimate() {
            let _none = Leftovers::none();
            let pool = $make;
            let mut told: Vec<Progress> = Vec::new();
            let call = pool.call().chunk_size(5).on_progress(|p| told.push(*p));
            call.map(|x: u32| x, 0..100).unwrap();
            assert!(told.is_sorted_by_key(|p| (p.done, p.elapsed)), "{told:?}");
            for p in &told {
                let is_over = p.remaining_time() == Some(Duration::ZERO);
                assert_eq!(is_over, p.done == 100, "{p:?}");
                assert_eq!(p.remaining_time().is_none(), p.done == 0, "{p:?}");
            }
            let mut last = None;
            let call = pool.call().on_progress(|p| last = Some(*p));
            call.imap(|x: u32| x, 0..10).for_each(drop);
            assert_eq!(last.map(|p| (p.done, p.total)), Some((10, Some(10))));
        }
    };
}

/// Deaths.
macro_rules! mortal_outcomes {
    ($make:expr) => {
        #[test]
        fn b37_a_death_costs_map_outcomes_its_item_and_nothing_else() {
            let _none = Leftovers::none();
            let pool = $make;
            let deadly = |x: u8| {
                if x % 10 == 3 {
                    $crate::common::exit_at_once(x.into())
                }
                x
            };
            for schedule in [
                Schedule::Guided,
                Schedule::Dynamic(1),
                Schedule::Dynamic(25),
            ] {
                for retries in [0, 2] {
                    let mut told = (0, 0);
                    let call = pool.call().schedule(schedule).retries(retries);
                    let call = call.on_progress(|p| told = (p.done, p.failed));
                    let each = call.map_outcomes(deadly, 0..100);
                    for (index, outcome) in (0..).zip(each) {
                        if index % 10 == 3 {
                            let Err(TaskError::WorkerDied {
                                index: at,
                                cause,
                                attempts,
                                ..
                            }) = outcome
                            else {
                                panic!("{index}: {outcome:?}")
                            };
                            assert_eq!(at.get(), Some(index.into()));
                            assert_eq!((cause, attempts), (Death::Exit(index.into()), retries + 1));
                        } else {
                            assert_eq!(outcome, Ok(index));
                        }
                    }
                    assert_eq!(told, (100, 10));
                }
            }
        }

        #[test]
        fn b37_a_death_costs_imap_its_item_and_nothing_else() {
            let _none = Leftovers::none();
            let pool = $make;
            let deadly = |x: u8| {
                if x % 10 == 3 {
                    $crate::common::exit_at_once(x.into())
                }
                x
            };
            let each: Vec<_> = pool.call().chunk_size(7).imap(deadly, 0..40).collect();
            assert_eq!(each.len(), 40);
            for (index, outcome) in (0..).zip(each) {
                match outcome {
                    Ok(x) => assert!(x == index && x % 10 != 3),
                    Err(error) => {
                        assert_eq!(error.index(), Some(index.into()));
                        assert_eq!(index % 10, 3, "{error}");
                    }
                }
            }
        }
    };
}
