//! Seeds that tasks ask for: the same on every engine, by the call's seed and the item's index
//! alone.

use manyhands::item_seed;

/// What the item with this index is given in a call with this seed: a number of `SplitMix64`,
/// computed here once more.
pub(super) fn seed_of(seed: u64, index: u64) -> u64 {
    let step = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index + 1);
    let z = seed.wrapping_add(step);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(super) fn seeds_of(seed: u64, items: u64) -> Vec<Option<u64>> {
    (0..items).map(|index| Some(seed_of(seed, index))).collect()
}

/// With arguments and results of no fixed size: processes run those in another loop.
pub(super) fn ask_with_text(text: String) -> (String, Option<u64>) {
    (text, item_seed())
}

macro_rules! seeds {
    ($make:expr) => {
        #[test]
        fn seeds_depend_on_call_and_item_alone() {
            let _none = Leftovers::none();
            let pool = $make;
            let ask = |_: u64| item_seed();
            for items in [1, 10, 3_000] {
                let expected = seeds_of(7, items);
                assert_eq!(pool.call().seed(7).map(ask, 0..items), Ok(expected.clone()));
                for chunk in [1, 7, 1_000] {
                    let call = pool.call().seed(7).chunk_size(chunk);
                    assert_eq!(call.map(ask, 0..items), Ok(expected.clone()), "{chunk}");
                }
                let each = pool.call().seed(7).map_outcomes(ask, 0..items);
                assert!(each.into_iter().eq(expected.iter().map(|&seed| Ok(seed))));
                let call = pool.call().seed(7).timeout(DEADLINE);
                assert_eq!(
                    call.map(ask, 0..items),
                    Ok(expected.clone()),
                    "with a limit"
                );
            }
            let texts = || (0..300).map(|n| "x".repeat(n % 50));
            let asked = pool.call().seed(8).map(ask_with_text, texts()).unwrap();
            let (sent, asked): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
            assert!(sent.into_iter().eq(texts()));
            assert_eq!(asked, seeds_of(8, 300));
            let with = pool.call().seed(9);
            let with = with.map_with(&1u64, |_, _: u64| item_seed(), 0..100);
            assert_eq!(with, Ok(seeds_of(9, 100)));
            assert_eq!(item_seed(), None, "outside of tasks");
        }

        #[test]
        fn seeds_of_lazy_calls_are_those_of_map() {
            let _none = Leftovers::none();
            let pool = $make;
            let ask = |_: u64| item_seed();
            for items in [3, 40] {
                let call = pool.call().seed(3);
                let lazy: Result<Vec<_>, _> = call.imap(ask, 0..items).collect();
                assert_eq!(lazy, Ok(seeds_of(3, items)));
                let call = pool.call().seed(3).chunk_size(5);
                for (index, seed) in call.imap_unordered(ask, 0..items) {
                    assert_eq!(seed, Ok(Some(seed_of(3, index as u64))));
                }
            }
        }

        #[test]
        fn seeds_of_submitted_tasks_are_those_of_item_0() {
            let _none = Leftovers::none();
            let pool = $make;
            let ask = |_: u64| item_seed();
            for seed in [0, 1, u64::MAX] {
                let task = pool.call().seed(seed).submit(ask, 5);
                assert_eq!(task.result(), Ok(Some(seed_of(seed, 0))));
            }
            let tasks: Vec<_> = (0..20).map(|n| pool.submit(ask, n)).collect();
            let mut seeds: Vec<_> = tasks
                .into_iter()
                .map(|task| task.result().unwrap().unwrap())
                .collect();
            seeds.sort_unstable();
            seeds.dedup();
            assert_eq!(seeds.len(), 20, "each is a call of its own");
        }

        #[test]
        fn seeds_differ_between_calls_that_were_given_none() {
            let _none = Leftovers::none();
            let pool = $make;
            let ask = |_: u64| item_seed();
            let mut seeds = Vec::new();
            for _ in 0..5 {
                seeds.extend(pool.map(ask, 0..100).unwrap());
                let lazy: Result<Vec<_>, _> = pool.imap(ask, 0..10).collect();
                seeds.extend(lazy.unwrap());
            }
            let mut seeds: Vec<_> = seeds.into_iter().map(Option::unwrap).collect();
            seeds.sort_unstable();
            seeds.dedup();
            assert_eq!(seeds.len(), 5 * 110);
        }

        #[test]
        fn seeds_of_a_reduction_are_those_of_its_items() {
            let _none = Leftovers::none();
            let pool = $make;
            let both = pool.call().seed(6).chunk_size(3).map_reduce(
                |_: u64| (vec![item_seed()], true),
                |(mut a, none), (b, also)| {
                    a.extend(b);
                    // What reduces is no item.
                    (a, none && also && item_seed().is_none())
                },
                0..500,
            );
            assert_eq!(both, Ok(Some((seeds_of(6, 500), true))));
        }

        #[test]
        fn seeds_of_calls_within_a_task_are_their_own() {
            let _none = Leftovers::none();
            let pool = $make;
            let nested = |_: u64| {
                let before = item_seed();
                let ask = |_: u64| item_seed();
                let inner = Pool::serial().call().seed(5).map(ask, 0..3).unwrap();
                let thread = std::thread::spawn(item_seed).join().unwrap();
                (before, inner, thread, item_seed())
            };
            let all = pool.call().seed(4).map(nested, 0..8).unwrap();
            for (index, nested) in all.into_iter().enumerate() {
                let own = Some(seed_of(4, index as u64));
                assert_eq!(nested, (own, seeds_of(5, 3), None, own));
            }
        }

        #[test]
        fn seeds_stay_right_after_items_that_fail() {
            let _none = Leftovers::none();
            let pool = $make;
            let half = |item: u64| {
                assert!(item % 2 == 0, "odd");
                item_seed()
            };
            let each = pool.call().seed(2).chunk_size(9).map_outcomes(half, 0..100);
            for (index, outcome) in (0..).zip(each) {
                match outcome {
                    Ok(seed) => assert_eq!(seed, Some(seed_of(2, index))),
                    Err(TaskError::Panicked { .. }) => assert_eq!(index % 2, 1),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    };
}
