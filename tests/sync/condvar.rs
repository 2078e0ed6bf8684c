use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Condvar, Mutex, Semaphore};

use crate::common::{Leftovers, eventually};
use crate::{SHORT, is_asleep, join_all, kill};

/// Those who wait, tokens to be had, tokens that were taken.
type Tokens = Mutex<[u32; 3]>;

fn take_token((mutex, condvar): (Tokens, Condvar)) {
    let mut guard = mutex.lock().unwrap();
    guard[0] += 1;
    let mut guard = condvar.wait_while(guard, |x| x[1] == 0).unwrap();
    let [waiting, tokens, taken] = *guard;
    *guard = [waiting - 1, tokens - 1, taken + 1];
}

fn waiting(mutex: &Tokens) -> u32 {
    mutex.lock().unwrap()[0]
}

#[test]
fn b57_one_is_woken_by_one_and_all_by_all() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 3]).unwrap(), Condvar::new().unwrap());
    let spawn = |_| Process::spawn(take_token, (mutex.clone(), condvar.clone())).unwrap();
    let children: Vec<_> = (0..16).map(spawn).collect();
    eventually("all wait", || waiting(&mutex) == 16);
    for taken in 1..=5 {
        mutex.lock().unwrap()[1] += 1;
        condvar.notify_one();
        eventually("one has taken it", || mutex.lock().unwrap()[2] == taken);
    }
    mutex.lock().unwrap()[1] += 11;
    condvar.notify_all();
    join_all(children);
    assert_eq!(*mutex.lock().unwrap(), [0, 0, 16]);
}

const OVER: u32 = u32::MAX;

#[test]
fn b57_those_who_time_out_eat_no_wake_ups() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 3]).unwrap(), Condvar::new().unwrap());
    // Wait for moments at a time, and look for a token only when they were woken.
    let impatient = |(mutex, condvar): (Tokens, Condvar)| {
        let mut guard = mutex.lock().unwrap();
        for round in 0.. {
            let timeout = Duration::from_micros(20 + round % 7 * 30);
            let (next, result) = condvar.wait_timeout(guard, timeout).unwrap();
            guard = next;
            if !result.timed_out() && guard[1] > 0 {
                guard[1] -= 1;
                guard[2] += 1;
            }
            if guard[0] == OVER {
                return;
            }
        }
    };
    let patient = |(mutex, condvar): (Tokens, Condvar)| {
        let mut guard = mutex.lock().unwrap();
        guard[0] += 1;
        while guard[0] != OVER {
            guard = condvar.wait(guard).unwrap();
            if guard[1] > 0 {
                guard[1] -= 1;
                guard[2] += 1;
            }
        }
    };
    let mut children = vec![Process::spawn(patient, (mutex.clone(), condvar.clone())).unwrap()];
    eventually("the patient one waits", || waiting(&mutex) == 1);
    for _ in 0..4 {
        children.push(Process::spawn(impatient, (mutex.clone(), condvar.clone())).unwrap());
    }
    for taken in 1..=1_000 {
        mutex.lock().unwrap()[1] += 1;
        condvar.notify_one();
        eventually("it was taken", || mutex.lock().unwrap()[2] == taken);
    }
    mutex.lock().unwrap()[0] = OVER;
    condvar.notify_all();
    join_all(children);
}

#[test]
fn b57_timeouts_are_kept() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new(0u8).unwrap(), Condvar::new().unwrap());
    let start = Instant::now();
    let guard = mutex.lock().unwrap();
    let wait = condvar.wait_timeout_while(guard, SHORT, |x| *x == 0);
    let (guard, result) = wait.unwrap();
    assert!(result.timed_out() && start.elapsed() >= SHORT);
    let (guard, result) = condvar.wait_timeout(guard, Duration::ZERO).unwrap();
    assert!(result.timed_out());
    let wait = condvar.wait_timeout_while(guard, Duration::ZERO, |x| *x != 0);
    let (guard, result) = wait.unwrap();
    assert!(!result.timed_out());
    thread::scope(|scope| {
        scope.spawn(|| {
            *mutex.lock().unwrap() = 1;
            condvar.notify_one();
        });
        let wait = condvar.wait_timeout_while(guard, Duration::MAX, |x| *x == 0);
        assert!(!wait.unwrap().1.timed_out());
    });
}

#[test]
fn b57_the_wake_up_of_a_killed_waiter_is_not_lost() {
    let _none = Leftovers::none();
    for _ in 0..10 {
        let (mutex, condvar) = (Mutex::new([0; 3]).unwrap(), Condvar::new().unwrap());
        let spawn = |()| Process::spawn(take_token, (mutex.clone(), condvar.clone())).unwrap();
        let victim = spawn(());
        eventually("it waits", || waiting(&mutex) == 1);
        let survivors = [(); 2].map(spawn);
        eventually("all wait", || waiting(&mutex) == 3);
        for child in survivors.iter().chain([&victim]) {
            eventually("it sleeps", || is_asleep(child.pid()));
        }
        // Whoever is picked wants the mutex next, and does not get it before the victim is dead.
        let mut guard = mutex.lock().unwrap();
        guard[1] += 2;
        condvar.notify_one();
        condvar.notify_one();
        kill(&victim);
        drop(guard);
        join_all(survivors);
    }
}

#[test]
fn b57_a_mutex_that_is_poisoned_meanwhile_says_so() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 3]).unwrap(), Condvar::new().unwrap());
    let ready = Semaphore::new(0).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let guard = mutex.lock().unwrap();
            ready.release(1);
            condvar.wait_while(guard, |_| true).is_err()
        });
        let _permit = ready.acquire();
        let child = Process::spawn(
            |mutex: Tokens| {
                let _guard = mutex.lock().unwrap();
                std::process::abort();
            },
            mutex.clone(),
        );
        assert!(!child.unwrap().join().unwrap().success());
        condvar.notify_all();
        assert!(waiter.join().unwrap());
    });
}
