//! Calls whose input, items or callers do something special.

use super::*;

/// A value that panics when it is dropped.
struct Grumpy;

impl Drop for Grumpy {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

#[test]
fn b19_an_input_without_end_is_read_so_far_beyond_an_item_that_takes_its_time() {
    let pool = Pool::threads(2).unwrap();
    let gate = Gate::default();
    let taken = AtomicUsize::new(0);
    // With single items, 256 for each worker.
    let most = 2 * 256 + 1;
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let items = (0_usize..).inspect(|_| {
                taken.fetch_add(1, Ordering::SeqCst);
            });
            let run = |x| {
                if x == 0 {
                    gate.pass();
                }
                assert!(x < 5_000, "too far");
            };
            pool.call().chunk_size(1).map(run, items)
        });
        until("the input to be read ahead", || {
            taken.load(Ordering::SeqCst) >= most
        });
        for _ in 0..1_000 {
            thread::yield_now();
            let taken = taken.load(Ordering::SeqCst);
            if taken > most {
                gate.open();
            }
            assert_eq!(taken, most);
        }
        gate.open();
        let error = call.join().unwrap().unwrap_err();
        assert_eq!(error.index(), Some(5_000));
    });
}

#[test]
fn progress_is_told_while_the_input_takes_its_time() {
    let pool = Pool::threads(1).unwrap();
    let (begun, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let items = (0..20_usize).inspect(|&n| {
        until("the item before to begin", || {
            begun.load(Ordering::SeqCst) >= n
        });
        // When an item begins, the one before has ended, and is reported with the next chunk.
        let told = told.load(Ordering::SeqCst);
        assert!(told + 2 >= n, "{told} of {n} items");
    });
    let call = pool.call().chunk_size(1);
    let call = call.on_progress(|p| told.store(p.done, Ordering::SeqCst));
    let ran = call.map(|_| begun.fetch_add(1, Ordering::SeqCst), items);
    assert_eq!(ran, Ok((0..20).collect()));
}

#[test]
fn b33_items_that_panic_when_they_are_dropped_are_cancelled_with_the_pool() {
    let pool = Pool::threads(1).unwrap();
    let gate = Gate::default();
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let items = (0..20).map(|n| (n > 0).then(|| Grumpy));
            let run = |held: Option<Grumpy>| {
                assert!(held.is_none(), "it was started");
                gate.pass();
            };
            pool.call().chunk_size(3).map_outcomes(run, items)
        });
        gate.until_waiting(1);
        let shutdown = scope.spawn(|| pool.shutdown(Shutdown::CancelQueued));
        until("the pool to be closed", || !pool.engine().is_open(Internal));
        gate.open();
        let mut expected = vec![Err(TaskError::Cancelled {}); 20];
        expected[0] = Ok(());
        assert_eq!(call.join().unwrap(), expected);
        assert_eq!(shutdown.join().unwrap(), Ok(()));
    });
}

#[test]
fn b32_a_task_closes_another_pool() {
    let (one, other) = (Pool::threads(1).unwrap(), Pool::threads(1).unwrap());
    let closed = one.submit(move |()| other.close(), ());
    assert_eq!(closed.result(), Ok(Ok(())));
    assert_eq!(one.close(), Ok(()));
}

#[test]
fn b20_a_pool_of_too_many_threads_says_how_many_there_may_be() {
    let most = rayon::max_num_threads();
    for workers in [most + 1, usize::MAX] {
        let refused = Pool::threads(workers).map(drop);
        let Err(PoolError::StartFailed {
            worker,
            workers: wanted,
            ..
        }) = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!((worker, wanted), (most, workers));
    }
}
