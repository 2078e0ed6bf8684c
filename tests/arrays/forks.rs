//! What a forked child has of its parent's arrays, as long as it lives.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use manyhands::prelude::*;
use manyhands::{SharedArray, SharedValue, engine::StartMethod, shm::FrozenArray};

use crate::common::{Leftovers, eventually};
use crate::{Result, forked, is_claimed};

/// A value that owns a guard and a slice of it together: polled once, it has both.
type Owning = Pin<Box<dyn Future<Output = (u64, u64)> + Send>>;

struct Once(bool);

impl Future for Once {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let was = std::mem::replace(&mut self.0, true);
        if was { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn poll(owning: &mut Owning) -> Option<(u64, u64)> {
    match owning
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(seen) => Some(seen),
        Poll::Pending => None,
    }
}

/// Says that it runs, and waits until it is told to go on.
fn meet(step: &SharedValue<u32>) {
    step.set(1);
    eventually("the parent has tried", || step.get() == 2);
}

fn reading(array: &SharedArray<u64>, step: &SharedValue<u32>) -> Owning {
    let (array, step) = (array.clone(), step.clone());
    let mut owning: Owning = Box::pin(async move {
        let guard = array.try_read().unwrap();
        let slice: &[u64] = &guard;
        Once(false).await;
        let before = black_box(slice)[0];
        meet(&step);
        (before, black_box(slice)[0])
    });
    assert!(poll(&mut owning).is_none());
    owning
}

fn atomics(array: &SharedArray<u64>, step: &SharedValue<u32>) -> Owning {
    let (array, step) = (array.clone(), step.clone());
    let mut owning: Owning = Box::pin(async move {
        let guard = array.try_atomics().unwrap();
        let slice: &[AtomicU64] = &guard;
        Once(false).await;
        let before = slice[0].load(Ordering::Relaxed);
        meet(&step);
        slice[1].store(77, Ordering::Relaxed);
        (before, slice[0].load(Ordering::Relaxed))
    });
    assert!(poll(&mut owning).is_none());
    owning
}

/// What a child sees of a slice that went into it while `drop` lets go of the parent's copy of it.
fn seen_by_child(
    owning: Owning,
    step: &SharedValue<u32>,
    meanwhile: impl FnOnce() + Send,
) -> std::result::Result<(u64, u64), TaskError> {
    let cell = Mutex::new(Some(owning));
    let pool = forked();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the child runs", || step.get() == 1);
            drop(cell.lock().unwrap().take());
            meanwhile();
            step.set(2);
        });
        let run = |_: u8| {
            let owning = cell.try_lock().unwrap().take();
            poll(&mut owning.unwrap()).unwrap()
        };
        pool.map(run, [0]).map(|seen| seen[0])
    })
}

#[test]
fn b73_nobody_writes_to_what_a_child_reads_though_its_parent_let_go_of_it() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_slice(&[1u64; 8])?;
    for owning in [reading, atomics] {
        let step = SharedValue::new(0)?;
        let seen = seen_by_child(owning(&array, &step), &step, || {
            assert!(is_claimed(&array.try_write()) && is_claimed(&array.set(0, 2)));
        });
        assert_eq!(seen?, (1, 1));
        // The claim goes with the child.
        array.fill(1)?;
    }
    Ok(())
}

fn read_and_stay((array, step): (SharedArray<u64>, SharedValue<u32>)) {
    let guard = array.try_read().unwrap();
    meet(&step);
    drop(guard);
    step.set(3);
    loop {
        std::thread::park();
    }
}

#[test]
fn b73_a_child_has_no_claim_of_another_process_than_its_parent() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_slice(&[1u64; 8])?;
    let step = SharedValue::new(0)?;
    let reader = Process::spawn(read_and_stay, (array.clone(), step.clone()))?;
    eventually("the other process reads", || step.get() == 1);
    // Of its own claims the child gets copies.
    let other = SharedArray::from_slice(&[1u64; 8])?;
    let own_claim = other.try_read()?;
    let pool = forked();
    let stay = |step: &SharedValue<u32>| eventually("the test is over", || step.get() == 4);
    let own = step.clone();
    let child = pool.submit(move |()| stay(&own), ());
    step.set(2);
    eventually("the other process has let go", || step.get() == 3);
    assert!(array.try_write().is_ok());
    drop(own_claim);
    assert!(is_claimed(&other.try_write()));
    step.set(4);
    child.result()?;
    assert!(other.try_write().is_ok());
    reader.kill()?;
    reader.join()?;
    Ok(())
}

#[test]
fn b73_a_submitted_task_keeps_what_it_was_given_as_a_copy() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_slice(&[1u64; 8])?;
    let step = SharedValue::new(0)?;
    let pool = forked();
    let task = {
        static CELL: Mutex<Option<Owning>> = Mutex::new(None);
        *CELL.lock().unwrap() = Some(reading(&array, &step));
        let run = |()| poll(&mut CELL.try_lock().unwrap().take().unwrap()).unwrap();
        let task = pool.submit(run, ());
        drop(CELL.lock().unwrap().take());
        task
    };
    eventually("the child runs", || step.get() == 1);
    assert!(is_claimed(&array.try_write()));
    step.set(2);
    // No call has looked at the task: the one that is refused finds that it has ended.
    eventually("the child has ended", || array.try_write().is_ok());
    assert_eq!(task.result()?, (1, 1));
    // Nor does any call ever look at this one.
    let guard = array.try_read()?;
    drop(pool.submit(|()| (), ()));
    drop(guard);
    eventually("the child has ended", || array.try_write().is_ok());
    Ok(())
}

#[test]
fn b73_a_frozen_array_stays_as_long_as_a_child_has_a_slice_of_it() -> Result {
    let _none = Leftovers::none();
    let before = manyhands::shm::usage().objects;
    let step = SharedValue::new(0)?;
    let frozen = SharedArray::from_slice(&[3u64; 8])?.freeze()?;
    let theirs = step.clone();
    let mut owning: Owning = Box::pin(async move {
        let slice: &[u64] = &frozen;
        Once(false).await;
        let before = black_box(slice)[0];
        meet(&theirs);
        (before, black_box(slice)[0])
    });
    assert!(poll(&mut owning).is_none());
    let mut others = Vec::new();
    let seen = seen_by_child(owning, &step, || {
        // Their memory would be that of the first array, if that had gone.
        let other = || SharedArray::from_slice(&[99u64; 8]).unwrap();
        others = (0..100).map(|_| other()).collect();
    });
    assert_eq!(seen?, (3, 3));
    drop((others, step));
    assert_eq!(manyhands::shm::usage().objects, before);
    Ok(())
}

#[test]
fn b73_forks_wait_for_calls_that_write_and_not_for_their_own() -> Result {
    let _none = Leftovers::none();
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let pool = forked();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let threads = Pool::threads(2).unwrap();
                let mut array = SharedArray::<u8>::zeros(1 << 16).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    array.fill(1).unwrap();
                    drop(SharedArray::from_slice(&[1u8; 1 << 12]).unwrap());
                    let add = |_: usize, chunk: &mut [u8]| chunk.iter_mut().for_each(|x| *x += 1);
                    threads.for_each_chunk(&mut array, 1 << 12, add).unwrap();
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("they write", || turns.load(Ordering::Relaxed) > 2);
        let outcomes: Vec<_> = (0..20).map(|_| pool.map(|x: u8| x, 0..4)).collect();
        stop.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            assert_eq!(outcome, Ok(vec![0, 1, 2, 3]));
        }
    });
    // A call that would wait for its own end is refused at once.
    let mut array = SharedArray::<u8>::zeros(2)?;
    Pool::threads(2)?.for_each_chunk(&mut array, 1, |_, chunk: &mut [u8]| {
        let refused = forked().map(|x: u8| x, [1]).unwrap_err().to_string();
        assert!(refused.contains("in the middle of a call"), "{refused}");
        chunk[0] = 1;
    })?;
    assert_eq!(array.to_vec()?, [1, 1]);
    // A guard that another thread is about to drop is waited for.
    let clone = array.clone();
    let guard = clone.try_write()?;
    std::thread::scope(|scope| {
        let forking = scope.spawn(|| forked().map(|x: u8| x, [1]));
        drop(guard);
        assert_eq!(forking.join().unwrap(), Ok(vec![1]));
    });
    Ok(())
}

static TABLE: OnceLock<Mutex<Option<FrozenArray<u64>>>> = OnceLock::new();

#[test]
fn b73_workers_forked_from_a_process_have_its_arrays_and_none_of_its_claims() -> Result {
    let _none = Leftovers::none();
    let workers = || {
        let builder = Processes::builder().workers(1);
        builder.start_method(StartMethod::Fork).allow_threads(true)
    };
    let array = SharedArray::from_slice(&[5u64; 8])?;
    let guard = array.try_read()?;
    let refused = workers().build().unwrap_err().to_string();
    assert!(refused.contains("drop the guard"), "{refused}");
    drop(guard);
    let table = TABLE.get_or_init(|| Mutex::new(Some(array.freeze().unwrap())));
    let pool = workers().build()?;
    assert_eq!(pool.workers(), 1);
    // The workers' copy is good, although the parent has none any more.
    drop(table.lock().unwrap().take());
    let others: Vec<_> = (0..100)
        .map(|_| SharedArray::from_slice(&[99u64; 8]).unwrap())
        .collect();
    let seen = pool.submit(
        |()| TABLE.get().unwrap().lock().unwrap().as_ref().unwrap()[7],
        (),
    );
    assert_eq!(seen.result()?, 5);
    drop(others);
    Ok(())
}
