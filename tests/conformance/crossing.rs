//! What does not cross between the processes.

use manyhands::Part;

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
                        part: Part::Result,
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
                                part: Part::Result,
                                ..
                            })
                        ),
                        "{result:?}"
                    );
                }
                let outcome = pool.map(|n: u32| if n == 5 { Err(Stuck(n)) } else { Ok(n) }, 0..10);
                assert!(
                    matches!(outcome, Err(TaskError::Encode { index: Some(5), .. })),
                    "{outcome:?}"
                );
                assert_eq!(pool.map(|n: u32| n, 0..10).unwrap().len(), 10);
            }
        }
    };
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
                    part: Part::Argument,
                    ..
                })
            ),
            "{result:?}"
        );
        let result = pool.submit(|one_way: OneWay| one_way.0, OneWay(n)).result();
        let Err(TaskError::Decode {
            part: Part::Argument,
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
        matches!(outcome, Err(TaskError::Encode { index: Some(2), .. })),
        "{outcome:?}"
    );
    let outcome = pool.map(
        |item: Result<u32, OneWay>| item.is_ok(),
        [Ok(1), Err(OneWay(2)), Ok(3)],
    );
    assert!(
        matches!(outcome, Err(TaskError::Decode { index: Some(1), .. })),
        "{outcome:?}"
    );
    let outcome = pool.map_with(&Stuck(1), |_, x: u32| x, 0..3);
    assert!(
        matches!(
            outcome,
            Err(TaskError::Encode {
                part: Part::Context,
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
                part: Part::Context,
                index: Some(0),
                ..
            })
        ),
        "{outcome:?}"
    );
    assert_eq!(pool.map(|n: u32| n, 0..10).unwrap().len(), 10);
}
