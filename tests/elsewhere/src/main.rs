//! The engines that need no processes, on a system that may not be Linux. It ends with a panic if
//! anything is not as it should be.

use std::time::Duration;

use manyhands::prelude::*;
use manyhands::{ReturnWhen, Shutdown, as_completed, wait};

/// What holds on both engines.
macro_rules! check {
    ($make:expr) => {{
        let pool = $make;
        let squares: Vec<u64> = (0..1_000).map(|x| x * x).collect();
        assert_eq!(pool.map(|x: u64| x * x, 0..1_000), Ok(squares.clone()));
        let lazy: Result<Vec<u64>, TaskError> = pool.imap(|x: u64| x * x, 0..1_000).collect();
        assert_eq!(lazy, Ok(squares.clone()));
        let sum = pool.map_reduce(|x: u64| x * x, |a, b| a + b, 0..1_000);
        assert_eq!(sum, Ok(Some(squares.iter().sum())));

        let fails = |x: u64| {
            assert!(x != 3, "three");
            x
        };
        let failed = pool.map(fails, 0..10).unwrap_err();
        assert_eq!(failed.index(), Some(3));
        let outcomes = pool.map_outcomes(fails, 0..10);
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_err()).count(),
            1
        );
        let (done, pending) = wait(
            [pool.submit(fails, 3), pool.submit(fails, 4)],
            ReturnWhen::AllCompleted,
            None,
        );
        assert_eq!((done.len(), pending.len()), (2, 0));
        let late = pool
            .call()
            .timeout(Duration::ZERO)
            .submit(fails, 1)
            .result();
        assert!(matches!(late, Err(TaskError::TimedOut { .. })));
        let all = as_completed((0..20).map(|x| pool.submit(|x: u64| x, x)));
        assert_eq!(all.map(|task| task.result().unwrap()).sum::<u64>(), 190);
        pool.shutdown(Shutdown::CancelQueued).unwrap();
        let closed = pool.map(|x: u64| x, [1]).unwrap_err();
        assert_eq!(closed, TaskError::from(PoolError::Closed));
        println!("{}: as it should be", pool.engine().kind());
    }};
}

fn main() {
    std::panic::set_hook(Box::new(|info| {
        // One item panics on purpose, twice and more in each check.
        if info.payload().downcast_ref() != Some(&"three") {
            eprintln!("{info}");
        }
    }));
    check!(Pool::serial());
    check!(Pool::threads(2).unwrap());
    check!(Pool::threads_default().unwrap());
}
