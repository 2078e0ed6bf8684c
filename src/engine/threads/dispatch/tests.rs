//! A queue that no worker takes from. With no workers, all of them sleep.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::*;

/// A job that notes what happens to it.
#[derive(Default)]
struct Noted(Mutex<Vec<&'static str>>);

impl Noted {
    fn is(&self, expected: &[&str]) -> bool {
        *self.0.lock() == expected
    }
}

impl Job for Noted {
    fn run(&self) {
        self.0.lock().push("run");
    }

    fn cancel(&self, reason: TaskError) {
        assert_eq!(reason, TaskError::Cancelled {});
        self.0.lock().push("cancelled");
    }
}

#[test]
fn a_pool_rests_while_it_has_neither_calls_nor_jobs() {
    let dispatch = Dispatch::new(0, false);
    assert!(dispatch.is_at_rest());
    let outer = dispatch.start_map().unwrap();
    let inner = dispatch.start_map().unwrap();
    assert!(!dispatch.is_at_rest());
    drop(inner);
    assert!(!dispatch.is_at_rest(), "one call goes on");
    drop(outer);
    assert!(dispatch.is_at_rest());
    let job = Arc::new(Noted::default());
    assert_eq!(dispatch.post(Arc::clone(&job) as _), Posted::Left);
    assert!(!dispatch.is_at_rest());
    assert!(!dispatch.is_cancelled() && !dispatch.is_closed());
    dispatch.cancel_queued();
    assert!(job.is(&["cancelled"]));
    assert!(dispatch.is_at_rest() && dispatch.is_cancelled() && dispatch.is_closed());
    assert_eq!(dispatch.post(Arc::clone(&job) as _), Posted::Closed);
}

#[test]
fn a_closed_pool_takes_calls_of_calls_that_go_on_and_no_others() {
    let dispatch = Arc::new(Dispatch::new(0, false));
    let outer = dispatch.start_map().unwrap();
    let (tell, told) = channel();
    let own = Arc::clone(&dispatch);
    let closer = thread::spawn(move || {
        own.close();
        tell.send(()).unwrap();
    });
    let start = Instant::now();
    while !dispatch.is_closed() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it is not closed"
        );
        thread::yield_now();
    }
    let own = Arc::clone(&dispatch);
    let refused = thread::spawn(move || own.start_map().map(drop));
    assert_eq!(refused.join().unwrap(), Err(PoolError::Closed));
    // A further step of the call that goes on is taken.
    drop(dispatch.start_map().unwrap());
    let early = told.recv_timeout(Duration::from_millis(50));
    assert!(early.is_err(), "the call has not ended");
    assert!(!dispatch.is_cancelled());
    drop(outer);
    assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(()));
    closer.join().unwrap();
    assert_eq!(dispatch.start_map().map(drop), Err(PoolError::Closed));
    let another = Dispatch::new(0, false);
    assert!(another.start_map().is_ok(), "another pool is not concerned");
}
