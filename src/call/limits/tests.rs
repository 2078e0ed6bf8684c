//! Items that are too late, with what they hold.

use std::cell::Cell;

use super::*;
use crate::call::seed::item_seed;

/// A value that panics when it is dropped.
struct Grumpy;

impl Drop for Grumpy {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

fn limited(timeout: Option<Duration>) -> Limits {
    let mut limits = Limits::none().with(|given| given.timeout = timeout);
    limits.seeds = Seeds(1);
    limits
}

/// Returns the error of this outcome, as that of item 3.
fn error_of<R>(outcome: Result<R, Failure>) -> Option<TaskError> {
    outcome.err().map(|failure| failure.into_error(Some(3)))
}

fn overdue(limit: Duration) -> TaskError {
    let index = Some(3);
    TaskError::TimedOut {
        index: index.into(),
        limit,
        attempts: 1,
    }
}

#[test]
fn what_a_late_item_gives_is_dropped_and_its_panic_goes_no_further() {
    let limit = Duration::from_nanos(1);
    let late = limited(Some(limit)).run(3, || {
        let start = Instant::now();
        while start.elapsed() <= limit {}
        Grumpy
    });
    assert_eq!(error_of(late), Some(overdue(limit)));
    // An item that has panicked as well.
    let late = limited(Some(limit)).run(3, || {
        let start = Instant::now();
        while start.elapsed() <= limit {}
        panic!("too late")
    });
    assert_eq!(error_of::<()>(late), Some(overdue(limit)));
}

#[test]
fn what_an_item_holds_that_may_not_start_is_dropped_and_its_panic_goes_no_further() {
    let has_run = Cell::new(false);
    let held = Grumpy;
    let refused = limited(Some(Duration::ZERO)).run(3, || {
        has_run.set(true);
        drop(held);
    });
    assert_eq!(error_of(refused), Some(overdue(Duration::ZERO)));
    assert!(!has_run.get());
}

#[test]
fn only_a_limit_of_zero_is_refused_beforehand() {
    assert_eq!(limited(None).refusal(Some(3)), None);
    let short = Some(Duration::from_nanos(1));
    assert_eq!(limited(short).refusal(Some(3)), None);
    let none = limited(Some(Duration::ZERO));
    assert_eq!(none.refusal(Some(3)), Some(overdue(Duration::ZERO)));
}

#[test]
fn an_item_in_time_has_its_outcome_and_its_own_seed() {
    for timeout in [None, Some(Duration::MAX)] {
        let limits = limited(timeout);
        let seed = limits.run(3, item_seed).ok();
        assert!(seed.is_some_and(|seed| seed.is_some()));
        assert_ne!(limits.run(4, item_seed).ok(), seed);
        let failed = error_of(limits.run(3, || -> () { panic!("on purpose") }));
        assert!(
            matches!(failed, Some(TaskError::Panicked { index, .. }) if index == Some(3)),
            "{failed:?}"
        );
        assert_eq!(item_seed(), None, "the thread is at no item any more");
    }
}

#[test]
fn nothing_is_tried_again_with_a_limit_of_zero() {
    let retry = Retry::up_to(3).on(RetryOn::TIMEOUT);
    let again = |timeout| limited(timeout).with(|given| given.retry = retry).retry();
    assert_eq!(again(Some(Duration::ZERO)), Retry::NONE);
    assert_eq!(again(Some(Duration::from_nanos(1))), retry);
    assert_eq!(again(None), retry);
}
