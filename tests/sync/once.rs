use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use manyhands::SharedValue;
use manyhands::prelude::*;
use manyhands::sync::{Event, Once, Semaphore};

use crate::common::Leftovers;
use crate::{await_all, join_all, kill, stay};

#[test]
fn once_sixteen_processes_run_it_once_and_all_see_what_it_did() {
    let _none = Leftovers::none();
    let (once, value) = (Once::new().unwrap(), SharedValue::new(0u32).unwrap());
    let run = |(once, value): (Once, SharedValue<u32>)| {
        once.call_once(|| {
            thread::yield_now();
            value.update(|x| x + 1);
        })
        .unwrap();
        assert!(once.is_completed());
        assert_eq!(value.get(), 1);
    };
    let spawn = |_| Process::spawn(run, (once.clone(), value.clone())).unwrap();
    let children: Vec<_> = (0..16).map(spawn).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| run((once.clone(), value.clone())));
        }
    });
    join_all(children);
}

#[test]
fn once_a_runner_that_is_killed_poisons() {
    let _none = Leftovers::none();
    let (once, ready) = (Once::new().unwrap(), Semaphore::new(0).unwrap());
    let child = Process::spawn(
        |(once, ready): (Once, Semaphore)| {
            let _ = once.call_once(|| {
                ready.release(1);
                stay();
            });
        },
        (once.clone(), ready.clone()),
    )
    .unwrap();
    await_all(&ready, 1);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| once.call_once(|| panic!("must not run")).is_err());
        kill(&child);
        assert!(waiter.join().unwrap());
    });
    assert!(!once.is_completed());
    let mut was_poisoned = false;
    once.call_once_force(|state| was_poisoned = state.is_poisoned());
    assert!(was_poisoned && once.is_completed());
    once.call_once(|| panic!("must not run")).unwrap();
}

#[test]
fn once_a_runner_that_panics_poisons_and_one_that_waits_for_itself_is_told() {
    let _none = Leftovers::none();
    let once = Once::new().unwrap();
    let panics = AssertUnwindSafe(|| once.call_once(|| panic!("half-way")));
    assert!(catch_unwind(panics).is_err());
    assert!(once.call_once(|| {}).is_err());
    let again = || once.call_once_force(|_| once.call_once(|| {}).unwrap());
    let message = catch_unwind(AssertUnwindSafe(again)).unwrap_err();
    assert!(message.downcast::<&str>().unwrap().contains("itself"));
    once.call_once_force(|state| assert!(state.is_poisoned()));
    assert!(once.is_completed());
}

#[test]
fn once_a_process_that_ends_in_the_function_poisons() {
    let _none = Leftovers::none();
    let (once, go) = (Once::new().unwrap(), Event::new().unwrap());
    let child = Process::spawn(
        |(once, go): (Once, Event)| {
            let _ = once.call_once(|| {
                go.set();
                std::process::exit(0)
            });
        },
        (once.clone(), go.clone()),
    );
    go.wait();
    assert!(once.call_once(|| {}).is_err());
    join_all([child.unwrap()]);
}

#[test]
fn once_a_function_that_forks_is_completed_by_the_parent_alone() {
    let _none = Leftovers::none();
    let once = Once::new().unwrap();
    let mut is_child = false;
    let ran = once.call_once(|| {
        // SAFETY: the child uses the shared object only, and ends without a return to the harness.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => is_child = true,
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
                assert!(!once.is_completed(), "the child has completed it");
            }
        }
    });
    if is_child {
        // SAFETY: ends the process at once, and touches nothing of it.
        unsafe { libc::_exit(i32::from(ran.is_err())) }
    }
    ran.unwrap();
    assert!(once.is_completed());
}
