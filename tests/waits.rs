//! Waits that the kernel refuses: no wait may then spin, or wait for what has happened already.
//!
//! Each test starts this binary again with itself as the only test, once for each thing that a
//! sandbox may refuse.

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::errors::cancelled;
use common::refuse::Refused;
use common::{
    DEADLINE, Leftovers, Sleeper, Stopped, as_program, eventually, finish, is_program, is_stopped,
};
use manyhands::Shutdown;
use manyhands::prelude::*;
use manyhands::process::{ExitStatus, Stdio};
use manyhands::select::wait_ready;
use manyhands::{Queue, engine::StartMethod};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const REFUSED: &str = "MANYHANDS_TEST_REFUSED";

/// Runs the test `name` as a program for each thing that may be refused, or says which one this
/// program is without.
#[track_caller]
fn without(name: &str) -> Option<Refused> {
    if is_program() {
        let refused = Refused::named(&std::env::var(REFUSED).unwrap());
        refused.begin();
        return Some(refused);
    }
    let _none = Leftovers::none();
    for refused in Refused::ALL {
        let output = finish(as_program(name).env(REFUSED, refused.name()));
        assert!(
            output.status.success(),
            "without {refused:?}: {:?}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    None
}

/// Begins a wait once what is refused is taken away, and ends it once its thread sleeps.
fn wait_without<R: Send>(
    refused: Refused,
    wait: impl FnOnce() -> R + Send,
    end: impl FnOnce(),
) -> R {
    let (sleeper, may_wait) = (Sleeper::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            sleeper.run(|| {
                // The thread stays awake here: it sleeps in the wait alone.
                while !may_wait.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                wait()
            })
        });
        // No file can be opened later.
        let state = sleeper.state();
        refused.take_away();
        may_wait.store(true, Ordering::Release);
        state.is_asleep();
        end();
        waiter.join().unwrap()
    })
}

/// How long this process has kept its cores busy.
fn busy() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap())
}

/// Watches this process for a while, in which it has nothing to do: it must not keep a core busy.
#[track_caller]
fn nothing_spins() {
    let (before, start) = (busy(), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let (busy, all) = (busy().saturating_sub(before), start.elapsed());
    assert!(busy < all / 5, "{busy:?} of {all:?}");
}

fn stay(_: ()) {
    loop {
        std::thread::park();
    }
}

#[test]
fn a_child_is_waited_for() {
    let Some(refused) = without("a_child_is_waited_for") else {
        return;
    };
    let before = Process::spawn(stay, ()).unwrap();
    let stop = |()| nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let ending = Process::spawn(stop, ()).unwrap();
    let pid = ending.pid();
    eventually("it has stopped itself", || is_stopped(pid));
    // The child ends while the call waits for it.
    let ended = wait_without(refused, || ending.join(), || drop(Stopped::new(pid)));
    assert_eq!(ended.unwrap(), ExitStatus::Exit(0));
    assert!(before.is_alive());
    let start = Instant::now();
    assert_eq!(before.join_timeout(Duration::from_millis(200)), Ok(None));
    assert!(start.elapsed() >= Duration::from_millis(200));
    std::thread::scope(|scope| {
        let join = scope.spawn(|| before.join());
        nothing_spins();
        assert!(before.is_alive());
        before.kill().unwrap();
        assert_eq!(join.join().unwrap(), Ok(ExitStatus::Signal(9)));
    });
    if refused != Refused::Descriptors {
        let after = Process::spawn(stay, ()).unwrap();
        assert!(after.is_alive());
        after.terminate().unwrap();
        assert_eq!(after.join(), Ok(ExitStatus::Signal(15)));
    }
}

#[test]
fn one_of_many_things_is_waited_for() {
    let name = "one_of_many_things_is_waited_for";
    let Some(refused) = without(name) else {
        return;
    };
    let child = Process::spawn(stay, ()).unwrap();
    let queue = Queue::<u32>::bounded(1).unwrap();
    refused.take_away();
    let soon = Some(Duration::from_millis(50));
    assert!(wait_ready(&[&child, &queue], soon).is_empty());
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| wait_ready(&[&queue, &child], None));
        nothing_spins();
        child.kill().unwrap();
        assert_eq!(wait.join().unwrap(), [1]);
    });
    queue.push(7).unwrap();
    assert_eq!(wait_ready(&[&child, &queue], None), [0, 1]);
}

/// A worker dies while the pool runs, and the pool goes on; or it says why it cannot.
fn deaths(name: &str, method: StartMethod) {
    let Some(refused) = without(name) else {
        return;
    };
    let pool = Processes::builder()
        .workers(2)
        .start_method(method)
        .allow_threads(true)
        .build()
        .unwrap();
    refused.take_away();
    assert_eq!(pool.map(|x: u64| x + 1, 0..3), Ok(vec![1, 2, 3]));
    nothing_spins();
    for _ in 0..2 {
        let died = pool
            .submit(|()| -> u32 { std::process::abort() }, ())
            .result();
        let Err(TaskError::WorkerDied { .. }) = died else {
            assert_eq!(refused, Refused::Descriptors, "{died:?}");
            continue;
        };
    }
    let after = pool.map(|x: u64| x + 1, 0..3);
    match refused {
        // Nothing can be opened any more, and so no worker be started.
        Refused::Descriptors => {
            assert!(
                after.as_ref().is_err_and(|error| error.as_pool().is_some()),
                "{after:?}"
            );
        }
        _ => assert_eq!(after, Ok(vec![1, 2, 3])),
    }
    let task = pool.submit(stay, ());
    drop(pool);
    assert!(task.result().is_err());
    if refused != Refused::Descriptors {
        let builder = Processes::builder().workers(1).start_method(method);
        let pool = builder.allow_threads(true).build().unwrap();
        assert_eq!(pool.map(|x: u64| x + 1, 0..3), Ok(vec![1, 2, 3]));
        pool.close().unwrap();
    }
}

#[test]
fn deaths_of_started_workers_are_noticed() {
    deaths("deaths_of_started_workers_are_noticed", StartMethod::Spawn);
}

#[test]
fn deaths_of_forked_workers_are_noticed() {
    deaths("deaths_of_forked_workers_are_noticed", StartMethod::Fork);
}

#[test]
fn deaths_of_a_servers_workers_are_noticed() {
    let name = "deaths_of_a_servers_workers_are_noticed";
    deaths(name, StartMethod::ForkServer);
}

#[test]
fn children_forked_for_tasks_are_waited_for() {
    let name = "children_forked_for_tasks_are_waited_for";
    let Some(refused) = without(name) else {
        return;
    };
    let builder = Forked::builder().workers(3).allow_threads(true);
    let pool = builder.build().unwrap();
    // Each child ends when there is a byte for it.
    let (gate, mut opens) = std::io::pipe().unwrap();
    let gate = Arc::new(gate);
    let late = move |x: u64| {
        (&*gate).read_exact(&mut [0]).unwrap();
        x + 1
    };
    let (told, tells) = channel();
    let watched = pool.submit(late.clone(), 1);
    watched.on_done(move |result| told.send(result.cloned().map_err(Clone::clone)).unwrap());
    let waited = pool.submit(late, 2);
    let endless = pool.submit(stay, ());
    let open = || opens.write_all(&[0, 0]).unwrap();
    let result = wait_without(refused, || waited.result(), open);
    assert_eq!(result, Ok(3));
    assert_eq!(tells.recv().unwrap(), Ok(2));
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| endless.result());
        nothing_spins();
        pool.shutdown(Shutdown::Kill).unwrap();
        assert_eq!(wait.join().unwrap(), Err(cancelled()));
    });
    if refused != Refused::Descriptors {
        let builder = Forked::builder().workers(2).allow_threads(true);
        let pool = builder.build().unwrap();
        assert_eq!(pool.map(|x: u64| x + 1, 0..3), Ok(vec![1, 2, 3]));
    }
}

#[test]
fn what_workers_print_is_read() {
    let Some(refused) = without("what_workers_print_is_read") else {
        return;
    };
    let lines = Arc::new(Mutex::new(Vec::new()));
    let there = lines.clone();
    let tell = move |_: &str, line: &str| there.lock().unwrap().push(line.to_owned());
    let builder = Processes::builder().workers(1);
    let pool = builder.stdout(Stdio::lines(tell)).build().unwrap();
    refused.take_away();
    let say = |x: u32| {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{x}").unwrap();
        stdout.flush().unwrap();
    };
    pool.submit(say, 1).result().unwrap();
    eventually("a line is read", || lines.lock().unwrap().len() == 1);
    nothing_spins();
    pool.map(say, 2..2_000).unwrap();
    pool.close().unwrap();
    let expected: Vec<String> = (1..2_000).map(|x| x.to_string()).collect();
    assert_eq!(*lines.lock().unwrap(), expected);
}

#[test]
fn a_death_is_noticed_though_there_are_no_pidfds_and_the_fork_server_is_stopped() {
    let name = "a_death_is_noticed_though_there_are_no_pidfds_and_the_fork_server_is_stopped";
    if !is_program() {
        let _none = Leftovers::none();
        let output = finish(&mut as_program(name));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}\n{stderr}", output.status);
        return;
    }
    Refused::Pidfds.begin();
    let pool = Processes::builder()
        .workers(2)
        .start_method(StartMethod::ForkServer)
        .build()
        .unwrap();
    let server = pool.submit(|()| std::os::unix::process::parent_id(), ());
    let stopped = Stopped::new(server.result().unwrap());
    let mut dies = pool.submit(|()| -> () { std::process::abort() }, ());
    let ended = dies.result_timeout(DEADLINE / 3);
    assert!(
        matches!(
            ended,
            Ok(Err(TaskError::WorkerDied {
                cause: Death::Unknown,
                ..
            }))
        ),
        "{ended:?}"
    );
    // The pool kills the server, and waits for workers that nothing but a look tells the end of.
    drop(pool);
    drop(stopped);
}
