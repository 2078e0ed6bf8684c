use std::thread;
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::sync::{Condvar, Mutex, PoisonError, Semaphore};

use crate::common::{self, Leftovers, eventually, is_asleep};
use crate::{LONG, Random, SHORT, join_all, kill, number};

/// Waiters, tokens to be had, tokens that were taken.
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
        // The waiter that is picked wants the mutex next, and does not get it before the victim is
        // dead.
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
fn b57_a_process_that_ends_while_its_thread_waits_takes_no_notification_with_it() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 3]).unwrap(), Condvar::new().unwrap());
    let leave = |(mutex, condvar): (Tokens, Condvar)| {
        let shared = (mutex.clone(), condvar);
        thread::spawn(move || take_token(shared));
        eventually("the thread waits", || waiting(&mutex) == 1);
    };
    let shared = (mutex.clone(), condvar.clone());
    join_all([Process::spawn(leave, shared).unwrap()]);
    // The next waiter is behind a thread that is no more.
    let shared = (mutex.clone(), condvar.clone());
    let waiter = thread::spawn(move || take_token(shared));
    eventually("the next one waits", || waiting(&mutex) == 2);
    mutex.lock().unwrap()[1] += 1;
    condvar.notify_one();
    eventually("it has taken the token", || mutex.lock().unwrap()[2] == 1);
    waiter.join().unwrap();
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

/// Waiters, tokens to be had, tokens that were taken, and how often a wait ended.
type Counted = Mutex<[u32; 4]>;

fn take_counted((mutex, condvar): (Counted, Condvar)) {
    let mut guard = mutex.lock().unwrap();
    guard[0] += 1;
    while guard[1] == 0 {
        guard = condvar.wait(guard).unwrap();
        guard[3] += 1;
    }
    let [waiting, tokens, taken, woken] = *guard;
    *guard = [waiting - 1, tokens - 1, taken + 1, woken];
}

/// Longer than the first slices of sleep, each of which ends by itself: 10, 20, 40, 80 and 100 ms.
const SLICES: Duration = Duration::from_millis(300);

/// Gives tokens to waiters that have slept for some slices, and counts the wake-ups.
fn assert_one_wake_up_for_each(mutex: &Counted, condvar: &Condvar, waiters: u32) {
    eventually("all wait", || mutex.lock().unwrap()[0] == waiters);
    thread::sleep(SLICES);
    assert_eq!(*mutex.lock().unwrap(), [waiters, 0, 0, 0]);
    for taken in 1..=waiters {
        mutex.lock().unwrap()[1] += 1;
        condvar.notify_one();
        eventually("it was taken", || mutex.lock().unwrap()[2] == taken);
        if taken == 1 {
            // The others would have looked by now.
            thread::sleep(SLICES);
            assert_eq!(*mutex.lock().unwrap(), [waiters - 1, 0, 1, 1]);
        }
    }
    assert_eq!(*mutex.lock().unwrap(), [0, 0, waiters, waiters]);
}

#[test]
fn one_notification_wakes_one_thread_after_slices_of_sleep() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 4]).unwrap(), Condvar::new().unwrap());
    // Not scoped: if the test fails, they wait for ever.
    let spawn = |_| {
        let shared = (mutex.clone(), condvar.clone());
        thread::spawn(|| take_counted(shared))
    };
    let waiters: Vec<_> = (0..16).map(spawn).collect();
    assert_one_wake_up_for_each(&mutex, &condvar, 16);
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

#[test]
fn one_notification_wakes_one_process_after_slices_of_sleep() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new([0; 4]).unwrap(), Condvar::new().unwrap());
    let spawn = |_| Process::spawn(take_counted, (mutex.clone(), condvar.clone())).unwrap();
    let children: Vec<_> = (0..4).map(spawn).collect();
    assert_one_wake_up_for_each(&mutex, &condvar, 4);
    join_all(children);
}

/// Each of the two wakes the other. With the mutex unlocked before the waiter is on the list, both
/// sleep.
#[test]
fn no_notification_of_a_condvar_is_lost() {
    let _none = Leftovers::none();
    let (turn, condvar) = (Mutex::new(0_u64).unwrap(), Condvar::new().unwrap());
    thread::scope(|scope| {
        for own in 0..2 {
            let (turn, condvar) = (turn.clone(), condvar.clone());
            scope.spawn(move || {
                for round in 0..30_000 {
                    let mut guard = turn.lock().unwrap();
                    while *guard % 2 != own {
                        let waited = condvar.wait_timeout(guard, LONG).unwrap();
                        assert!(!waited.1.timed_out(), "lost in round {round}");
                        guard = waited.0;
                    }
                    *guard += 1;
                    drop(guard);
                    condvar.notify_one();
                }
            });
        }
    });
}

/// Takes tokens for ever. One store takes a token, so that a process that is killed has taken it or
/// has not.
fn take_for_ever((tokens, condvar): (Mutex<u32>, Condvar)) {
    let repaired = |error: PoisonError<_>| {
        tokens.clear_poison();
        error.into_inner()
    };
    let mut guard = tokens.lock().unwrap_or_else(repaired);
    loop {
        guard = condvar
            .wait_while(guard, |tokens| *tokens == 0)
            .unwrap_or_else(repaired);
        if *guard > 0 {
            *guard -= 1;
        }
    }
}

#[cfg(not(long_slices))]
#[test]
fn a_waiter_that_is_killed_at_random_takes_no_notification_with_it() {
    let _none = Leftovers::none();
    let seed = number("MANYHANDS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    let kills = number("MANYHANDS_KILLS").unwrap_or(60);
    println!("MANYHANDS_SEED={seed} MANYHANDS_KILLS={kills}");
    let mut random = Random(seed);
    let (tokens, condvar) = (Mutex::new(0).unwrap(), Condvar::new().unwrap());
    let lock = || {
        tokens.lock().unwrap_or_else(|error| {
            tokens.clear_poison();
            error.into_inner()
        })
    };
    let spawn = || Process::spawn(take_for_ever, (tokens.clone(), condvar.clone())).unwrap();
    let mut children: Vec<Process> = (0..3).map(|_| spawn()).collect();
    for round in 0..kills {
        // Half of the time all sleep, so that the victim is one that is on the list.
        if random.below(2) == 0 {
            for child in &children {
                eventually("it sleeps", || is_asleep(child.pid()));
            }
        }
        let mut guard = lock();
        *guard += 1;
        condvar.notify_one();
        // With the mutex locked, the waiter that was notified is not back yet.
        let kills_first = random.below(2) == 0;
        let index = random.below(children.len());
        if kills_first {
            common::kill(children[index].pid());
        }
        drop(guard);
        for _ in 0..random.below(200) {
            std::hint::spin_loop();
        }
        if !kills_first {
            common::kill(children[index].pid());
        }
        let victim = children.remove(index);
        // Sometimes none has waited for the victim, and the other waiters have to notice.
        let is_joined = random.below(2) == 0;
        if is_joined {
            victim.join().unwrap();
            eventually("the token is taken", || *lock() == 0);
        } else {
            eventually("the token is taken", || *lock() == 0);
            victim.join().unwrap();
        }
        assert_eq!(*lock(), 0, "in round {round}");
        children.push(spawn());
    }
    for child in &children {
        kill(child);
    }
}

#[test]
fn b57_each_wait_gives_the_poisoned_mutex_and_says_whether_the_time_was_up() {
    let _none = Leftovers::none();
    let (mutex, condvar) = (Mutex::new(7u64).unwrap(), Condvar::new().unwrap());
    let copy = mutex.clone();
    let panics = thread::spawn(move || {
        let _guard = copy.lock();
        panic!("while it holds");
    });
    assert!(panics.join().is_err());
    let lock = || mutex.lock().unwrap_err().into_inner();
    let waited = condvar.wait_timeout(lock(), Duration::ZERO);
    let (guard, result) = waited.unwrap_err().into_inner();
    assert_eq!((*guard, result.timed_out()), (7, true));
    drop(guard);
    let waited = condvar.wait_timeout_while(lock(), SHORT, |value| *value == 7);
    let (guard, result) = waited.unwrap_err().into_inner();
    assert_eq!((*guard, result.timed_out()), (7, true));
    drop(guard);
    // The wait is notified in time, by a thread that gets the mutex when the wait gives it up.
    let notified = |wait: &dyn Fn() -> (u64, bool)| {
        thread::scope(|scope| {
            let guard = lock();
            scope.spawn(|| {
                *lock() += 1;
                condvar.notify_all();
            });
            drop(guard);
            wait()
        })
    };
    let (value, is_late) = notified(&|| {
        let waited = condvar.wait_timeout_while(lock(), LONG, |value| *value == 7);
        let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
        (*guard, result.timed_out())
    });
    assert_eq!((value, is_late), (8, false));
    // The condition is looked at before anything is waited for.
    let waited = condvar.wait_while(lock(), |value| *value != 8);
    assert_eq!(*waited.unwrap(), 8);
}
