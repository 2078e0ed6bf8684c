//! A semaphore does what a number and a list of permits do.

use std::time::Duration;

use manyhands::sync::{Permit, Semaphore};
use proptest::prelude::*;

use crate::common::Leftovers;

#[derive(Clone, Debug)]
enum Step {
    Try(usize),
    Timeout(usize),
    Drop(usize),
    Forget(usize),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5usize).prop_map(Step::Try),
        1 => (0..5usize).prop_map(Step::Timeout),
        3 => (0..8usize).prop_map(Step::Drop),
        1 => (0..8usize).prop_map(Step::Forget),
        1 => (0..4usize).prop_map(Step::Release),
    ]
}

fn check(start: usize, steps: &[Step]) -> Result<(), TestCaseError> {
    let semaphore = Semaphore::new(start).unwrap();
    let other = semaphore.clone();
    let (mut available, mut permits) = (start, Vec::<Permit<'_>>::new());
    for step in steps {
        match *step {
            Step::Try(count) | Step::Timeout(count) => {
                let permit = if matches!(step, Step::Try(_)) {
                    semaphore.try_acquire_many(count)
                } else {
                    other.acquire_many_timeout(count, Duration::ZERO)
                };
                prop_assert_eq!(permit.is_some(), count <= available);
                if let Some(permit) = permit {
                    prop_assert_eq!(permit.count(), count);
                    available -= count;
                    permits.push(permit);
                }
            }
            Step::Drop(index) if index < permits.len() => {
                available += permits[index].count();
                drop(permits.swap_remove(index));
            }
            Step::Forget(index) if index < permits.len() => permits.swap_remove(index).forget(),
            Step::Drop(_) | Step::Forget(_) => {}
            Step::Release(count) => {
                other.release(count);
                available += count;
            }
        }
        prop_assert_eq!(semaphore.available(), available);
    }
    Ok(())
}

#[test]
fn b56_a_semaphore_counts_as_the_model_does() {
    let _none = Leftovers::none();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(start in 0..6usize, steps in prop::collection::vec(step(), 0..60))| {
        check(start, &steps)?;
    });
}
