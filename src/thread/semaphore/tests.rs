//! Tests of the queue from the inside: only here a test can see which threads wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{eventually, in_thread, leak, soon};
use super::*;

fn waiting(semaphore: &Semaphore) -> usize {
    semaphore.state.lock().queue.len()
}

#[test]
fn nobody_overtakes_one_that_waits_for_many() {
    let semaphore = leak(Semaphore::new(0));
    let large = in_thread(|| semaphore.acquire_many(3));
    eventually(|| waiting(semaphore) == 1);
    semaphore.release(2);
    assert!(semaphore.try_acquire().is_none());
    assert!(semaphore.acquire_timeout(Duration::ZERO).is_none());
    let small = in_thread(|| semaphore.acquire());
    eventually(|| waiting(semaphore) == 2);
    assert_eq!(semaphore.available(), 2);
    semaphore.release(1);
    let large = soon(&large);
    assert_eq!((semaphore.available(), waiting(semaphore)), (0, 1));
    drop(large);
    drop(soon(&small));
    assert_eq!((semaphore.available(), waiting(semaphore)), (3, 0));
}

#[test]
fn those_behind_one_that_gives_up_go_on() {
    let mut has_shown = false;
    // On a slow machine the thread gives up before the others have come. Then it is given more
    // time.
    for millis in [50, 200, 1_000, 5_000] {
        let semaphore = leak(Semaphore::new(2));
        let gives_up = in_thread(move || {
            let permit = semaphore.acquire_many_timeout(5, Duration::from_millis(millis));
            permit.is_none()
        });
        eventually(|| semaphore.state.lock().next_ticket == 1);
        let behind = [0, 1].map(|_| in_thread(|| semaphore.acquire().forget()));
        eventually(|| semaphore.state.lock().next_ticket == 3 || semaphore.available() < 2);
        has_shown = waiting(semaphore) == 3;
        assert!(soon(&gives_up));
        for thread in behind {
            soon(&thread);
        }
        assert_eq!((semaphore.available(), waiting(semaphore)), (0, 0));
        if has_shown {
            break;
        }
    }
    assert!(has_shown, "it always gave up before the others had come");
}

#[test]
fn a_permit_fits_when_it_comes_back_however_many_were_released_meanwhile() {
    let semaphore = Semaphore::new(2);
    let held = semaphore.acquire_many(2);
    semaphore.release(usize::MAX - 2);
    let too_many = std::panic::catch_unwind(|| semaphore.release(1));
    assert!(too_many.is_err());
    assert_eq!(semaphore.available(), usize::MAX - 2);
    drop(held);
    assert_eq!(semaphore.available(), usize::MAX);
    // A permit that was forgotten makes room.
    semaphore.acquire_many(usize::MAX).forget();
    semaphore.release(usize::MAX);
    assert_eq!(semaphore.available(), usize::MAX);
}

/// One step of the test below.
#[derive(Clone, Debug)]
enum Step {
    /// A thread takes this many permits, and waits if it must.
    Acquire(usize),
    Try(usize),
    Release(usize),
    /// The permit at this place among the held ones goes back, or is forgotten.
    Drop(prop::sample::Index),
    Forget(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4usize).prop_map(Step::Acquire),
        2 => (0..4usize).prop_map(Step::Try),
        1 => (0..3usize).prop_map(Step::Release),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => any::<prop::sample::Index>().prop_map(Step::Forget),
    ]
}

/// A semaphore in its simplest form: permits, and a queue of the threads with the number that each
/// wants.
#[derive(Default)]
struct Model {
    available: usize,
    queue: VecDeque<(usize, usize)>,
}

impl Model {
    /// Adds permits. Returns the names of the threads that are served by it.
    fn add(&mut self, count: usize) -> Vec<usize> {
        self.available += count;
        let mut served = Vec::new();
        while let Some(&(name, wanted)) = self.queue.front()
            && wanted <= self.available
        {
            self.available -= wanted;
            self.queue.pop_front();
            served.push(name);
        }
        served
    }

    fn take(&mut self, wanted: usize) -> bool {
        let can = wanted == 0 || self.queue.is_empty() && wanted <= self.available;
        self.available -= if can { wanted } else { 0 };
        can
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn waiting_threads_are_served_as_the_model_says(
        permits in 0..4usize,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let semaphore: &'static Semaphore = leak(Semaphore::new(permits));
        let mut model = Model { available: permits, ..Model::default() };
        let mut threads = BTreeMap::<usize, Receiver<Permit<'static>>>::new();
        let mut held = Vec::new();
        for (name, step) in steps.into_iter().enumerate() {
            let served = match step {
                Step::Acquire(wanted) => {
                    threads.insert(name, in_thread(move || semaphore.acquire_many(wanted)));
                    if model.take(wanted) {
                        vec![name]
                    } else {
                        model.queue.push_back((name, wanted));
                        eventually(|| waiting(semaphore) == model.queue.len());
                        Vec::new()
                    }
                }
                Step::Try(wanted) => {
                    let permit = semaphore.try_acquire_many(wanted);
                    prop_assert_eq!(permit.is_some(), model.take(wanted));
                    held.extend(permit);
                    Vec::new()
                }
                Step::Release(count) => {
                    semaphore.release(count);
                    model.add(count)
                }
                Step::Drop(_) | Step::Forget(_) if held.is_empty() => Vec::new(),
                Step::Drop(which) => {
                    let permit = held.swap_remove(which.index(held.len()));
                    let count = permit.count();
                    drop(permit);
                    model.add(count)
                }
                Step::Forget(which) => {
                    held.swap_remove(which.index(held.len())).forget();
                    Vec::new()
                }
            };
            for name in served {
                held.push(soon(&threads.remove(&name).unwrap()));
            }
            prop_assert_eq!(semaphore.available(), model.available);
            prop_assert_eq!(waiting(semaphore), model.queue.len());
            for thread in threads.values() {
                prop_assert!(thread.try_recv().is_err(), "a thread was served before its turn");
            }
        }
        // The threads that still wait are let go.
        semaphore.release(1_000);
        for thread in threads.values() {
            drop(soon(thread));
        }
    }
}
