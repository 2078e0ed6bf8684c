//! Waits that once never ended, because the thread whose turn it was did something else. A review
//! of the waiting found them.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use manyhands::Shutdown;
use manyhands::engine::StartMethod;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

use crate::common::errors::cancelled;
use crate::common::{DEADLINE, Leftovers, children_of, eventually, is_running, kill};
use crate::{Folder, Touches, begin_and_wait, endless, outcome, takes_no_more, touch, workers};

fn short_nap(x: u32) -> u32 {
    thread::sleep(Duration::from_millis(5));
    x
}

/// Runs until a file is there that the item names, if it names one.
fn wait_if_asked((files, x): (Option<(PathBuf, PathBuf)>, u32)) -> u32 {
    if let Some(files) = files {
        begin_and_wait(files);
    }
    x
}

/// Whether a thread of this process sleeps.
fn sleeps(thread: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    stat.is_ok_and(|stat| stat[stat.rfind(')').unwrap()..].starts_with(") S"))
}

/// Waits until a thread has slept for some time without a break, or until it has ended.
#[track_caller]
fn comes_to_rest(thread: nix::unistd::Pid, has_ended: impl Fn() -> bool) {
    let mut since = Instant::now();
    eventually("the thread comes to rest", || {
        if !sleeps(thread) {
            since = Instant::now();
        }
        has_ended() || since.elapsed() > Duration::from_millis(20)
    });
}

/// One task runs, and `ask` has its result sent as soon as there is one. Meanwhile a call sleeps on
/// behalf of all callers of the pool. Then the call goes back to its input, and only now the task
/// ends: the input waits for the result, so another thread must do what the call's did.
fn map_that_waits(ask: impl FnOnce(TaskFuture<u32>, Sender<u32>) + Send) {
    let folder = Folder::new();
    let file = |name: &str| folder.file(name);
    let pool = Pool::processes(3).unwrap();
    let task = pool.submit(begin_and_wait, (file("task-begun"), file("task-may-end")));
    eventually("the task runs", || file("task-begun").exists());
    let (answer, answered) = channel();
    let (send, thread) = channel();
    thread::scope(|scope| {
        // Lets the items end, and then the task, whatever happens here.
        let _opens = [
            Touches(file("task-may-end")),
            Touches(file("items-may-end")),
        ];
        let (pool, folder, tell) = (&pool, &folder, send.clone());
        let call = scope.spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            let may_end = folder.file("items-may-end");
            let mut told = None;
            // Two items keep the other workers busy. What is asked for after them is more than the
            // lanes hold, so it is asked for when they have ended.
            let input = (0..200_u32).map(|n| {
                if n < 2 {
                    let begun = folder.file(&format!("item-begun-{n}"));
                    return (Some((begun, may_end.clone())), n);
                }
                if told.is_none() && may_end.exists() {
                    touch(folder.file("task-may-end"));
                    told = answered.recv_timeout(DEADLINE).ok();
                    assert!(
                        told.is_some(),
                        "no other thread took the place of the call's"
                    );
                }
                (None, n)
            });
            let results = pool.call().chunk_size(1).map(wait_if_asked, input);
            (results, told)
        });
        let caller = thread.recv().unwrap();
        eventually("all workers are busy", || folder.count("item-begun") == 2);
        comes_to_rest(caller, || call.is_finished());
        let asking = scope.spawn(move || {
            send.send(nix::unistd::gettid()).unwrap();
            ask(task, answer);
        });
        comes_to_rest(thread.recv().unwrap(), || asking.is_finished());
        touch(file("items-may-end"));
        let (results, told) = call.join().unwrap();
        assert_eq!(results, Ok((0..200).collect()));
        assert!(told.is_some(), "all was asked for at once");
        asking.join().unwrap();
    });
}

#[test]
fn who_waits_beside_a_call_is_served_while_the_call_reads_its_input() {
    let _none = Leftovers::none();
    map_that_waits(|task, answer| {
        answer.send(task.result().unwrap()).unwrap();
    });
}

#[test]
fn who_is_to_be_told_is_told_while_a_call_reads_its_input() {
    let _none = Leftovers::none();
    map_that_waits(|task, answer| {
        task.on_done(move |result| answer.send(*result.unwrap()).unwrap());
    });
}

#[test]
fn b41_who_closes_hears_of_an_end_that_somebody_else_brings_about() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let (go, gone) = channel();
    thread::scope(|scope| {
        let (pool, input) = (&pool, gone);
        let call = scope.spawn(move || {
            let items = (0..3_u32).inspect(|_| input.recv_timeout(DEADLINE).unwrap());
            let items: Box<dyn ExactSizeIterator<Item = u32>> = Box::new(items);
            pool.call().chunk_size(1).map(short_nap, items)
        });
        go.send(()).unwrap();
        eventually("the call runs", || pool.stats().total().tasks == 1);
        let closing = scope.spawn(|| pool.close());
        takes_no_more(pool);
        pool.shutdown(Shutdown::Kill).unwrap();
        // The call may end before it asks for the last.
        let _ = (go.send(()), go.send(()));
        assert_eq!(call.join().unwrap(), Err(cancelled()));
        assert_eq!(closing.join().unwrap(), Ok(()));
    });
}

#[test]
fn b47_what_is_half_way_out_is_cancelled_and_what_runs_before_it_goes_on() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    for kills in [false, true] {
        let pool = Pool::processes(1).unwrap();
        let begun = folder.file(&format!("begun-{kills}"));
        let open = folder.file(&format!("open-{kills}"));
        let running = pool.submit(begin_and_wait, (begun.clone(), open.clone()));
        eventually("it runs", || begun.exists());
        // Larger than the lane.
        let large = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![1_u8; 1 << 20]);
        let after = pool.submit(|x: u32| x + 1, 1);
        assert!(if kills { large.kill() } else { large.cancel() });
        assert_eq!(large.result(), Err(cancelled()));
        assert!(!running.is_done());
        touch(open);
        assert!(
            running.result().is_ok(),
            "it was not started again, nor killed"
        );
        assert_eq!(after.result(), Ok(2));
        assert_eq!(pool.stats().total().respawns, 0);
        let large = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![1_u8; 1 << 20]);
        assert_eq!(large.result(), Ok(1 << 20), "the lane is in order");
    }
}

#[test]
fn b48_a_callback_may_wait_for_a_task_that_has_callbacks() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let (send, receive) = channel();
    let second = pool.submit(|x: u32| x, 2);
    second.on_done(|_| {});
    let first = pool.submit(|x: u32| x, 1);
    first.on_done(move |_| send.send(second.result()).unwrap());
    assert_eq!(receive.recv_timeout(DEADLINE), Ok(Ok(2)));
}

#[test]
fn a_pool_is_not_ended_from_where_its_output_is_told() {
    let _none = Leftovers::none();
    let slot: Arc<OnceLock<Pool<Processes>>> = Arc::default();
    let (send, receive) = channel();
    // A weak reference: the pool would hold itself otherwise.
    let own = Arc::downgrade(&slot);
    let tell = move |_: &str, _: &str| {
        let slot = own.upgrade();
        let _ = send.send(slot.and_then(|slot| Some(slot.get()?.close())));
    };
    let pool = Processes::builder()
        .workers(1)
        .stdout(Stdio::lines(tell))
        .build()
        .unwrap();
    let pool = slot.get_or_init(|| pool);
    pool.submit(|()| println!("a line"), ()).result().unwrap();
    let refused = receive.recv_timeout(DEADLINE).unwrap();
    assert!(
        matches!(refused, Some(Err(PoolError::System { .. }))),
        "{refused:?}"
    );
    pool.close().unwrap();
}

#[test]
fn a_pool_may_be_dropped_where_its_output_is_told() {
    let _none = Leftovers::none();
    let slot: Arc<Mutex<Option<Pool<Processes>>>> = Arc::default();
    let (send, receive) = channel();
    let own = Arc::clone(&slot);
    let tell = move |_: &str, _: &str| {
        drop(own.lock().unwrap().take());
        let _ = send.send(());
    };
    let pool = Processes::builder().workers(1).stdout(Stdio::lines(tell));
    let pool = slot.lock().unwrap().insert(pool.build().unwrap()).submit(
        |()| {
            println!("a line");
            endless(0)
        },
        (),
    );
    assert_eq!(receive.recv_timeout(DEADLINE), Ok(()));
    assert_eq!(outcome(pool), Err(cancelled()));
    eventually("its worker has gone", || workers().is_empty());
}

#[test]
fn a_copy_of_this_process_that_is_lost_is_not_made_again_behind_anybodys_back() {
    let _none = Leftovers::none();
    let name = "waits::a_copy_of_this_process_that_is_lost_is_not_made_again_behind_anybodys_back";
    if !crate::common::is_program() {
        let output = crate::common::finish(&mut crate::common::as_program(name));
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("all is well"),
            "{output:?}"
        );
        return;
    }
    // SAFETY: the harness waits for this thread meanwhile and holds no lock.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Child => {
            let outcome = std::panic::catch_unwind(a_pool_whose_template_is_lost_ends);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
    // The harness has a thread of its own, which does nothing while this runs. It is allowed for
    // the start.
    let pool = Processes::builder()
        .workers(1)
        .start_method(StartMethod::Fork)
        .allow_threads(true)
        .build()
        .unwrap();
    let worker = pool
        .submit(|_: u32| std::process::id(), 0)
        .result()
        .unwrap();
    let children = children_of(std::process::id());
    let template = children.into_iter().find(|&child| child != worker);
    kill(template.unwrap());
    // A task that it has begun would be lost with it.
    eventually("the worker dies with its template", || !is_running(worker));
    // With the permission it is forked again.
    assert_eq!(pool.submit(|x: u32| x + 1, 1).result(), Ok(2));
    println!("\nall is well");
}

/// Runs on the only thread of a process, which a test of this harness never is: without the
/// permission to fork it while it has others.
fn a_pool_whose_template_is_lost_ends() {
    let pool = Processes::builder()
        .workers(1)
        .start_method(StartMethod::Fork)
        .build()
        .unwrap();
    let own_pid = |_: u32| std::process::id();
    let worker = outcome(pool.submit(own_pid, 0)).unwrap();
    workers().into_iter().for_each(kill);
    eventually("the worker dies with its template", || !is_running(worker));
    let lost = outcome(pool.submit(own_pid, 0)).unwrap_err();
    let Some(PoolError::Broken { reason, .. }) = lost.as_pool() else {
        panic!("{lost:?}");
    };
    assert!(reason.contains("the copy of this process"), "{reason}");
    assert!(workers().is_empty());
}

#[test]
fn b23_sigabrt_kills_also_under_a_memory_limit_and_without_abort() {
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(1)
        .memory_limit(1 << 30)
        .build()
        .unwrap();
    let raised = pool.submit(
        |()| nix::sys::signal::raise(nix::sys::signal::Signal::SIGABRT).is_ok(),
        (),
    );
    let died = raised.result();
    assert!(
        matches!(
            died,
            Err(TaskError::WorkerDied {
                cause: Death::Signal(6),
                ..
            })
        ),
        "{died:?}"
    );
}

#[test]
fn forked_workers_hold_nothing_of_their_servers() {
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(3)
        .start_method(StartMethod::ForkServer)
        .build()
        .unwrap();
    let open = |_: u32| {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let names = targets.map(|target| target.to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        let of = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
        (of("socket:"), of("anon_inode:[pidfd]"))
    };
    for counts in pool.call().chunk_size(1).map(open, 0..30).unwrap() {
        assert_eq!(counts, (1, 0), "its life line, and no more");
    }
}

#[test]
fn b28_the_limit_of_a_pool_is_not_for_the_chunks_of_a_reduction() {
    let _none = Leftovers::none();
    let limit = Duration::from_millis(200);
    let pool = Processes::builder()
        .workers(1)
        .task_timeout(limit)
        .build()
        .unwrap();
    let nap = |x: u32| {
        thread::sleep(Duration::from_millis(10));
        x
    };
    let sum = pool
        .call()
        .chunk_size(50)
        .map_reduce(nap, |a, b| a + b, 0..50);
    assert_eq!(sum, Ok(Some(1_225)));
    // The same holds for a reduction of the chunks' results.
    let add_slowly = |a: u32, b: u32| {
        thread::sleep(Duration::from_millis(10));
        a + b
    };
    let call = pool.call().chunk_size(1);
    assert_eq!(
        call.map_reduce(|x: u32| x, add_slowly, 0..50),
        Ok(Some(1_225))
    );
    assert!(pool.submit(endless, 0).result().is_err(), "a task has it");
}

#[test]
fn b30_a_preload_that_ends_its_process_or_leaves_a_thread_is_told() {
    let _none = Leftovers::none();
    let build = |builder: manyhands::engine::ProcessesBuilder| {
        builder.workers(1).build().unwrap_err().to_string()
    };
    let text =
        build(Processes::builder().preload(|| -> Result<(), String> { std::process::exit(4) }));
    assert!(text.contains("exited with code 4"), "{text}");
    let text =
        build(Processes::builder().preload(|| -> Result<(), String> { std::process::abort() }));
    assert!(text.contains("signal 6"), "{text}");
    let text = build(Processes::builder().preload(|| {
        thread::spawn(thread::park);
        Ok::<(), String>(())
    }));
    assert!(text.contains("thread"), "{text}");
}

#[test]
fn b20_a_preload_without_a_fork_server_is_refused() {
    let _none = Leftovers::none();
    let load = || Ok::<(), String>(());
    for method in [StartMethod::Spawn, StartMethod::Fork] {
        let refused = Processes::builder()
            .preload(load)
            .start_method(method)
            .build();
        assert!(
            matches!(refused, Err(PoolError::InvalidOption { .. })),
            "{refused:?}"
        );
    }
}
