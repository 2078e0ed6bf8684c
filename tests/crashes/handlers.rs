//! Handlers that the program has, and how a process dies with this crate's.

use std::os::raw::c_int;

use super::kinds::{Way, the_way_there};
use super::*;
use crate::common::{Leftovers, as_program, finish, is_program};

extern "C" fn exit_with_42(_: c_int) {
    // SAFETY: _exit may be called in a handler.
    unsafe { libc::_exit(42) };
}

/// Has a signal handled by `handler`, without flags.
fn handle(signal: c_int, handler: usize) {
    // SAFETY: zeros are valid: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: the handlers of these tests make one system call, or touch one atomic.
    let set = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

#[allow(clippy::unnecessary_wraps, reason = "as initialisers are")]
fn handle_42() -> Result<(), String> {
    handle(libc::SIGSEGV, exit_with_42 as *const () as usize);
    Ok(())
}

#[test]
fn b124_a_handler_that_the_program_has_set_stays_its_own() {
    let name = "handlers::b124_a_handler_that_the_program_has_set_stays_its_own";
    if !is_program() {
        let _none = Leftovers::none();
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    // The initialiser of a worker sets it, and the program before it forks.
    let builder = Processes::builder().workers(1).initializer(handle_42);
    let spawned: Pool<AnyEngine> = builder.build().unwrap().into();
    handle_42().unwrap();
    for pool in [spawned, forked().into()] {
        let outcome = pool.submit(the_way_there, Way::Nowhere).result();
        let Err(TaskError::WorkerDied { cause, crash, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((cause, crash), (Death::Exit(42), None));
        // Other signals have no handler of the program's.
        let (crash, _) = crash_of(&pool, Way::Illegal);
        assert_eq!(crash.signal, libc::SIGILL);
    }
}

fn crash_of(pool: &Pool<AnyEngine>, way: Way) -> (Crash, String) {
    crash(pool.submit(the_way_there, way).result())
}

unsafe extern "C" fn mend(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid pointer.
    let info = unsafe { &*info };
    // SAFETY: this signal has an address.
    let address = unsafe { info.si_addr() };
    let page = address.map_addr(|address| address & !4_095);
    // SAFETY: the page is the one that the task has mapped for this.
    unsafe { libc::mprotect(page, 4_096, libc::PROT_READ | libc::PROT_WRITE) };
}

#[test]
fn b124_a_fault_that_the_program_mends_ends_nothing() {
    let name = "handlers::b124_a_fault_that_the_program_mends_ends_nothing";
    if !is_program() {
        let _none = Leftovers::none();
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    // As the standard library's, this handler is for both signals, with these flags.
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: zeros are valid: no flags, and an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = mend as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler makes one system call.
        let set = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }
    let touch = |times: u32| {
        for _ in 0..times {
            // SAFETY: it is a new mapping.
            let page = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4_096, libc::PROT_NONE, flags, -1, 0)
            };
            assert_ne!(page, libc::MAP_FAILED);
            // SAFETY: the handler makes the page writable.
            unsafe { page.cast::<u64>().write_volatile(7) };
        }
        times
    };
    assert_eq!(forked().submit(touch, 100).result(), Ok(100));
}

#[test]
fn b124_what_the_standard_library_prints_of_an_overflow_is_still_printed() {
    let name = "handlers::b124_what_the_standard_library_prints_of_an_overflow_is_still_printed";
    if !is_program() {
        let _none = Leftovers::none();
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(printed.contains("has overflowed its stack"), "{printed}");
        return;
    }
    let outcome = forked().submit(the_way_there, Way::Overflow).result();
    assert!(
        matches!(
            outcome,
            Err(TaskError::WorkerDied {
                cause: Death::Signal(6),
                ..
            })
        ),
        "{outcome:?}"
    );
}

#[test]
fn b124_two_threads_that_crash_at_once_make_one_crash() {
    let _none = Leftovers::none();
    let both = |()| {
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    the_way_there(Way::Nowhere)
                });
            }
        });
    };
    for (name, pool) in pools() {
        for _ in 0..5 {
            let (crash, text) = crash(pool.submit(both, ()).result());
            assert_eq!(
                (crash.signal, crash.address),
                (libc::SIGSEGV, Some(8)),
                "{name}: {text}"
            );
        }
    }
}

#[test]
fn b124_a_copy_of_a_worker_that_crashes_leaves_nothing_in_its_name() {
    let _none = Leftovers::none();
    let fork = |()| {
        // SAFETY: the copy makes a system call, and crashes.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            the_way_there(Way::Nowhere);
        }
        let mut status = 0;
        // SAFETY: the call writes the status.
        unsafe { libc::waitpid(copy, &raw mut status, 0) };
        assert_eq!(status & 0x7f, libc::SIGSEGV);
        // What is said of this death would be the copy's.
        handle(libc::SIGSEGV, libc::SIG_DFL);
        the_way_there(Way::Nowhere)
    };
    for (name, pool) in pools() {
        let outcome = pool.submit(fork, ()).result();
        assert!(
            matches!(
                outcome,
                Err(TaskError::WorkerDied {
                    cause: Death::Signal(11),
                    crash: None,
                    ..
                })
            ),
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn b124_a_crash_of_an_initialiser_is_told_with_its_reason() {
    let _none = Leftovers::none();
    let crashes = || {
        the_way_there(Way::Nowhere);
        Ok::<(), String>(())
    };
    let builder = Processes::builder().workers(1).initializer(crashes);
    let error = builder.build().map(drop).unwrap_err().to_string();
    assert!(
        error.contains("signal 11 (SIGSEGV): it used address 0x8"),
        "{error}"
    );
}
