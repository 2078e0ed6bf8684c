use manyhands::prelude::*;
use manyhands::sync::{Barrier, Condvar, Event, Mutex, Once, RwLock, Semaphore};
use serde::{Deserialize, Serialize};

use crate::common::Leftovers;
use crate::join_all;

/// One of each.
#[derive(Clone, Serialize, Deserialize)]
struct All {
    mutex: Mutex<u64>,
    rwlock: RwLock<[u8; 3]>,
    semaphore: Semaphore,
    condvar: Condvar,
    event: Event,
    barrier: Barrier,
    once: Once,
}

impl All {
    fn new() -> Self {
        Self {
            mutex: Mutex::new(0).unwrap(),
            rwlock: RwLock::new([0; 3]).unwrap(),
            semaphore: Semaphore::new(5).unwrap(),
            condvar: Condvar::new().unwrap(),
            event: Event::new().unwrap(),
            barrier: Barrier::new(2).unwrap(),
            once: Once::new().unwrap(),
        }
    }

    /// Meets the other side, and does something with each that it can see.
    fn touch(&self) {
        assert!(self.barrier.wait().is_ok());
        self.rwlock.write().unwrap()[1] += 1;
        self.semaphore.acquire_many(2).forget();
        self.once.call_once(|| {}).unwrap();
        *self.mutex.lock().unwrap() += 1;
        self.condvar.notify_all();
        self.event.set();
    }

    /// Meets the other side, sees what it has done, and undoes it.
    fn check(&self) {
        assert!(self.barrier.wait().is_ok());
        let guard = self.mutex.lock().unwrap();
        *self.condvar.wait_while(guard, |x| *x == 0).unwrap() -= 1;
        self.event.wait();
        self.event.clear();
        assert_eq!(*self.rwlock.read().unwrap(), [0, 1, 0]);
        *self.rwlock.write().unwrap() = [0; 3];
        assert_eq!(self.semaphore.available(), 3);
        self.semaphore.release(2);
        assert!(self.once.is_completed());
    }
}

#[test]
fn b61_each_crosses_to_workers_children_and_grandchildren() {
    let _none = Leftovers::none();
    let all = All::new();
    let pool = Pool::processes(2).unwrap();
    // As an argument, as a context, as a result.
    let task = pool.submit(|all: All| all.touch(), all.clone());
    all.check();
    task.result().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| pool.map_with(&all, |all, _: u8| all.touch(), [0]).unwrap());
        all.check();
    });
    let made = pool.submit(|()| All::new(), ()).result().unwrap();
    let task = pool.submit(|all: All| all.touch(), made.clone());
    made.check();
    task.result().unwrap();
    // To a grandchild, and to one that is forked.
    let child = |all: All| {
        let child = Process::spawn(|all: All| all.touch(), all.clone()).unwrap();
        assert!(child.join().unwrap().success());
        let forked = Forked::builder().workers(1).allow_threads(true).build();
        forked.unwrap().map(|_: u8| all.touch(), [0]).unwrap();
    };
    let child = Process::spawn(child, all.clone()).unwrap();
    all.check();
    all.check();
    join_all([child]);
}

#[test]
fn b61_handles_of_another_type_are_refused() {
    let _none = Leftovers::none();
    let gone = serde_json::to_string(&Mutex::new(1u64).unwrap()).unwrap();
    assert!(serde_json::from_str::<Mutex<u64>>(&gone).is_err());
    let mutex = Mutex::new(1u64).unwrap();
    let text = serde_json::to_string(&mutex).unwrap();
    assert!(serde_json::from_str::<Mutex<i64>>(&text).is_err());
    assert!(serde_json::from_str::<RwLock<u64>>(&text).is_err());
    assert!(serde_json::from_str::<Semaphore>(&text).is_err());
    let same: Mutex<u64> = serde_json::from_str(&text).unwrap();
    *same.lock().unwrap() = 2;
    assert_eq!(*mutex.lock().unwrap(), 2);
}
