//! What does not cross between the processes.

use manyhands::error::TaskValue;

use super::*;

/// The engines between whose workers and the caller values cross.
macro_rules! crossing {
    ($engine:ident, $make:expr) => {
        mod $engine {
            use super::*;

            #[test]
            fn b22_what_does_not_cross_fails_alone_twenty_times_in_a_row() {
                let _none = Leftovers::none();
                let pool = $make;
                for n in 0..20 {
                    let result = pool.submit(|n: u32| Stuck(n), n).result();
                    let Err(TaskError::Encode {
                        part: TaskValue::Result,
                        reason,
                        ..
                    }) = result
                    else {
                        panic!("{result:?}")
                    };
                    assert!(reason.contains("stuck here"), "{reason}");
                    let result = pool.submit(|n: u32| OneWay(n), n).result();
                    assert!(
                        matches!(
                            result,
                            Err(TaskError::Decode {
                                part: TaskValue::Result,
                                ..
                            })
                        ),
                        "{result:?}"
                    );
                }
                let outcome = pool.map(|n: u32| if n == 5 { Err(Stuck(n)) } else { Ok(n) }, 0..10);
                assert!(
                    matches!(outcome, Err(TaskError::Encode{ index, .. }) if index == Some(5)),
                    "{outcome:?}"
                );
                assert_eq!(pool.map(|n: u32| n, 0..10).unwrap().len(), 10);
            }

            #[test]
            fn b22_a_result_that_does_not_decode_is_told_with_its_own_index() {
                use $crate::crossing::{Fragile, Way};
                let _none = Leftovers::none();
                let pool = $make;
                let fails = |error: &TaskError, at: usize| match error {
                    TaskError::Panicked { index, message, .. } => {
                        *index == Some(at) && message.contains("no decoding")
                    }
                    TaskError::Decode { index, part, .. } => {
                        *index == Some(at) && *part == TaskValue::Result
                    }
                    _ => false,
                };
                let call = || pool.call().chunk_size(6);
                let with = |way: &Way, n: u32| {
                    if n == 8 {
                        Fragile(*way)
                    } else {
                        Fragile(Way::Whole)
                    }
                };
                for way in [Way::Errs, Way::Panics] {
                    let items = || (0..20u32).map(|n| if n == 8 { way } else { Way::Whole });
                    let error = call().map(Fragile, items()).unwrap_err();
                    assert!(fails(&error, 8), "map: {error:?}");
                    let error = call().map_with(&way, with, 0..20).unwrap_err();
                    assert!(fails(&error, 8), "map_with: {error:?}");
                    let is_right =
                        |index: usize, outcome: &Result<Fragile, TaskError>| match outcome {
                            Ok(_) => index != 8,
                            Err(error) => index == 8 && fails(error, 8),
                        };
                    let each = call().map_outcomes(Fragile, items());
                    let lazy: Vec<_> = call().imap(Fragile, items()).collect();
                    for outcomes in [each, lazy] {
                        assert_eq!(outcomes.len(), 20);
                        for (index, outcome) in outcomes.iter().enumerate() {
                            assert!(is_right(index, outcome), "{index}: {outcome:?}");
                        }
                    }
                    for (index, outcome) in call().imap_unordered(Fragile, items()) {
                        assert!(is_right(index, &outcome), "{index}: {outcome:?}");
                    }
                    let error = pool.submit(Fragile, way).result().unwrap_err();
                    assert_eq!(error.index(), None, "{error:?}");
                    // The chunks of a reduction are not the caller's items.
                    let most = |a: Fragile, b: Fragile| if a.0 == Way::Whole { b } else { a };
                    let error = call().map_reduce(Fragile, most, items()).unwrap_err();
                    assert_eq!(error.index(), None, "{error:?}");
                }
                // The first of two errors is told, whether the item failed in a worker or on its
                // way back.
                let items = (0..20u32).map(|n| {
                    if n == 7 || n == 9 {
                        Way::Panics
                    } else {
                        Way::Whole
                    }
                });
                let error = call().map(Fragile, items).unwrap_err();
                assert!(fails(&error, 7), "{error:?}");
            }
        }
    };
}

/// How a value behaves when it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Whole,
    Errs,
    Panics,
}

/// Decodes as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Fragile(pub(crate) Way);

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Way::deserialize(input)? {
            Way::Whole => Ok(Self(Way::Whole)),
            Way::Errs => Err(serde::de::Error::custom("it is broken")),
            Way::Panics => panic!("no decoding"),
        }
    }
}

/// Encodes as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Brittle(Way);

impl Serialize for Brittle {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Way::Whole => self.0.serialize(output),
            Way::Errs => Err(serde::ser::Error::custom("it is broken")),
            Way::Panics => panic!("no encoding"),
        }
    }
}

#[test]
fn b22_an_argument_that_does_not_cross_is_told_with_its_own_index() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let call = || pool.call().chunk_size(6);
    for way in [Way::Errs, Way::Panics] {
        let ways = || (0..20u32).map(|n| if n == 8 { way } else { Way::Whole });
        // Either on its way out, in this process, or in the worker.
        let errors = [
            call()
                .map(|item: Brittle| item.0, ways().map(Brittle))
                .unwrap_err(),
            call()
                .map(|item: Fragile| item.0, ways().map(Fragile))
                .unwrap_err(),
            call()
                .map_with(&1u8, |_, item: Fragile| item.0, ways().map(Fragile))
                .unwrap_err(),
            call()
                .for_each(|_: Fragile| (), ways().map(Fragile))
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.index(), Some(8), "{error:?}");
        }
        let outcomes = [
            call().map_outcomes(|item: Brittle| item.0, ways().map(Brittle)),
            call().map_outcomes(|item: Fragile| item.0, ways().map(Fragile)),
            call()
                .imap(|item: Brittle| item.0, ways().map(Brittle))
                .collect(),
            call()
                .imap(|item: Fragile| item.0, ways().map(Fragile))
                .collect(),
        ];
        for outcomes in outcomes {
            assert_eq!(outcomes.len(), 20);
            for (index, outcome) in outcomes.iter().enumerate() {
                match outcome {
                    Ok(_) => assert_ne!(index, 8),
                    Err(error) => {
                        assert_eq!((index, error.index()), (8, Some(8)), "{error:?}");
                    }
                }
            }
        }
        for (index, outcome) in call().imap_unordered(|item: Fragile| item.0, ways().map(Fragile)) {
            assert_eq!(outcome.is_err(), index == 8, "{outcome:?}");
            assert!(outcome.err().is_none_or(|error| error.index() == Some(8)));
        }
        // What does not decode is the context: every item that runs into it fails with it, the
        // first item first.
        let error = call()
            .map_with(&Fragile(way), |_, n: u32| n, 0..20)
            .unwrap_err();
        assert_eq!(error.index(), Some(0), "{error:?}");
    }
}

#[test]
fn b22_arguments_and_contexts_that_do_not_cross_fail_alone() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for n in 0..20 {
        let result = pool.submit(|stuck: Stuck| stuck.0, Stuck(n)).result();
        assert!(
            matches!(
                result,
                Err(TaskError::Encode {
                    part: TaskValue::Argument,
                    ..
                })
            ),
            "{result:?}"
        );
        let result = pool.submit(|one_way: OneWay| one_way.0, OneWay(n)).result();
        let Err(TaskError::Decode {
            part: TaskValue::Argument,
            reason,
            ..
        }) = result
        else {
            panic!("{result:?}")
        };
        assert!(reason.contains("one way only"), "{reason}");
    }
    let outcome = pool.map(
        |item: Result<u32, Stuck>| item.is_ok(),
        [Ok(1), Ok(2), Err(Stuck(3)), Ok(4)],
    );
    assert!(
        matches!(outcome, Err(TaskError::Encode{ index, .. }) if index == Some(2)),
        "{outcome:?}"
    );
    let outcome = pool.map(
        |item: Result<u32, OneWay>| item.is_ok(),
        [Ok(1), Err(OneWay(2)), Ok(3)],
    );
    assert!(
        matches!(outcome, Err(TaskError::Decode{ index, .. }) if index == Some(1)),
        "{outcome:?}"
    );
    let outcome = pool.map_with(&Stuck(1), |_, x: u32| x, 0..3);
    assert!(
        matches!(
            outcome,
            Err(TaskError::Encode {
                part: TaskValue::Context,
                ..
            })
        ),
        "{outcome:?}"
    );
    let outcome = pool.map_with(&OneWay(1), |_, x: u32| x, 0..3);
    assert!(
        matches!(
            outcome,
            Err(TaskError::Decode {
                part: TaskValue::Context,
                index,
                ..
            }) if index == Some(0)
        ),
        "{outcome:?}"
    );
    assert_eq!(pool.map(|n: u32| n, 0..10).unwrap().len(), 10);
}
