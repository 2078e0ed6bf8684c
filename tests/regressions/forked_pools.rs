//! Pools of forked children: what waits for room, what is told, what is kept and what is let go.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::sync::Event;
use manyhands::{SharedArray, SharedValue, Shutdown, shm};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use crate::common::refuse::Refused;
use crate::common::{
    Leftovers, Sleeper, as_program, eventually, finish, is_program, is_thread_asleep, thread_named,
    threads,
};
use crate::{Folder, forked, one_child, touch, wait_for};

/// Far longer than any of these calls takes.
const SOON: Duration = Duration::from_secs(10);

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_forked_pool_has_as_many_children_as_make_sense_here_unless_told_otherwise() {
    let _none = Leftovers::none();
    let builder = Forked::builder();
    let workers = manyhands::available_workers().unwrap();
    assert_eq!(builder.clone().build().unwrap().workers(), workers);
    let more = builder.workers(workers + 1).allow_threads(true);
    let pool = more.clone().build().unwrap();
    assert_eq!(
        (pool.workers(), pool.map(|n: u8| n, [1])),
        (workers + 1, Ok(vec![1]))
    );
    let pool = more.workers(1).build().unwrap();
    assert_eq!(pool.workers(), 1);
}

#[test]
fn a_forked_copy_of_a_pool_and_its_task_does_nothing_and_takes_nothing_away() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let pool = one_child();
    let [started, go] = ["started", "go"].map(|name| folder.file(name));
    let stay = |(started, go): (PathBuf, PathBuf)| {
        touch(started);
        wait_for(go);
        7
    };
    let task = pool.submit(stay, (started.clone(), go.clone()));
    eventually("it runs", || started.exists());
    let copies = RefCell::new(Some((pool, task)));
    let refused = forked().call().timeout(SOON).map(
        |(): ()| {
            let (pool, mut task) = copies.borrow_mut().take().unwrap();
            let other = || PoolError::OtherProcess;
            let submitted = pool.submit(|n: u8| n, 1).result();
            let told = [
                pool.close() == Err(other()),
                pool.shutdown(Shutdown::Kill) == Err(other()),
                pool.shutdown(Shutdown::CancelQueued) == Err(other()),
                submitted == Err(other().into()),
                task.is_done() && !task.is_running() && !task.cancel() && !task.kill(),
                task.result_timeout(SOON) == Ok(Err(other().into())),
            ];
            drop(task);
            drop(pool);
            told
        },
        [()],
    );
    assert_eq!(refused, Ok(vec![[true; 6]]));
    let (pool, task) = copies.into_inner().unwrap();
    assert!(task.is_running());
    touch(go);
    assert_eq!(task.result(), Ok(7));
    assert_eq!(pool.map(|n: u8| n, [1]), Ok(vec![1]));
    assert_eq!(pool.close(), Ok(()));
}

#[test]
fn a_task_that_waits_for_room_for_its_result_holds_up_no_other_of_a_forked_pool() {
    let _none = Leftovers::none();
    let (tell, told) = channel();
    // The pool may have one child, and no thread waits for the first task.
    let submitting = std::thread::spawn(move || {
        let pool = one_child();
        let large = pool.submit(|len: usize| vec![7_u8; len], 10_000_000);
        let next = pool.submit(|n: u8| n, 8);
        // The test may have given up.
        let _ = tell.send(next.result());
        large.result().map(|large| large.len())
    });
    assert_eq!(told.recv_timeout(SOON), Ok(Ok(8)));
    assert_eq!(submitting.join().unwrap(), Ok(10_000_000));
}

#[test]
fn a_task_that_waits_for_a_child_is_refused_when_its_forked_pool_is_closed() {
    let _none = Leftovers::none();
    let (pool, folder) = (&one_child(), Folder::new());
    let go = folder.file("go");
    let first = pool.submit(wait_for, go.clone());
    let (submits, closes) = (&Sleeper::new(), &Sleeper::new());
    std::thread::scope(|scope| {
        let second = scope.spawn(|| submits.run(|| pool.submit(|n: u8| n, 2).result()));
        submits.is_asleep();
        let ender = scope.spawn(|| closes.run(|| pool.close()));
        eventually("the pool is closed", || {
            pool.map(|()| (), [()]) == Err(PoolError::Closed.into())
        });
        closes.is_asleep();
        touch(go);
        assert_eq!(second.join().unwrap(), Err(PoolError::Closed.into()));
        assert_eq!(ender.join().unwrap(), Ok(()));
    });
    assert_eq!(first.result(), Ok(()));
}

#[test]
fn to_look_at_a_forked_task_takes_no_time_though_another_thread_waits_for_it() {
    let _none = Leftovers::none();
    let (pool, folder) = (&one_child(), Folder::new());
    let go = folder.file("go");
    let mut task = pool.submit(wait_for, go.clone());
    let closes = &Sleeper::new();
    std::thread::scope(|scope| {
        let ender = scope.spawn(|| closes.run(|| pool.close()));
        eventually("the pool is closed", || {
            pool.map(|()| (), [()]) == Err(PoolError::Closed.into())
        });
        closes.is_asleep();
        let (tell, told) = channel();
        let other = scope.spawn(move || {
            let looked = (task.is_done(), task.is_running());
            let waited = task.result_timeout(Duration::from_millis(20));
            tell.send((looked, waited.is_err())).unwrap();
            task.result()
        });
        let looked = told.recv_timeout(SOON);
        touch(go);
        assert_eq!(looked, Ok(((false, true), true)));
        assert_eq!(ender.join().unwrap(), Ok(()));
        assert_eq!(other.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_forked_child_that_cannot_be_started_is_told_with_how_many_there_are() {
    let _none = Leftovers::none();
    let (pool, folder) = (forked(), Folder::new());
    let go = folder.file("go");
    let first = pool.submit(wait_for, go.clone());
    let array = SharedArray::<u64>::zeros(4).unwrap();
    // Nothing is forked while this process has elements to write to.
    let writing = array.try_write().unwrap();
    let refused = |error: TaskError| match error.as_pool() {
        Some(PoolError::StartFailed {
            worker, workers, ..
        }) => (*worker, *workers),
        _ => panic!("{error:?}"),
    };
    let task = pool.submit(|n: u8| n, 1);
    assert_eq!(refused(task.result().unwrap_err()), (1, 2));
    let call = pool.map(|n: u8| n, 0..3);
    assert_eq!(refused(call.unwrap_err()), (0, 2));
    let lazy = pool.imap(|n: u8| n, 0..3);
    let each: Vec<_> = lazy.map(|it| refused(it.unwrap_err())).collect();
    assert_eq!(each, [(1, 2); 3]);
    drop(writing);
    touch(go);
    assert_eq!(first.result(), Ok(()));
    assert_eq!(pool.map(|n: u8| n, 0..3), Ok(vec![0, 1, 2]));
    array.fill(1).unwrap();
}

#[test]
fn a_callback_runs_though_a_forked_task_with_an_earlier_one_still_runs() {
    let _none = Leftovers::none();
    let (pool, folder) = (forked(), Folder::new());
    let [long, short] = ["long", "short"].map(|name| folder.file(name));
    let (tell, told) = channel();
    let submit = |name: &'static str, go: &PathBuf| {
        let task = pool.submit(wait_for, go.clone());
        let tell = tell.clone();
        task.on_done(move |_| tell.send(name).unwrap());
        task
    };
    let first = submit("long", &long);
    // It waits for the first one alone.
    let name = "manyhands-watch".to_owned();
    eventually("there is a watcher", || threads().contains(&name));
    let watcher = thread_named(&name);
    eventually("the watcher sleeps", || is_thread_asleep(watcher));
    let second = submit("short", &short);
    touch(short);
    assert_eq!(told.recv_timeout(SOON), Ok("short"));
    touch(long);
    assert_eq!(told.recv_timeout(SOON), Ok("long"));
    assert_eq!((first.result(), second.result()), (Ok(()), Ok(())));
}

#[test]
fn another_forked_pool_can_be_closed_in_the_middle_of_a_map() {
    let _none = Leftovers::none();
    let (pool, other) = (forked(), forked());
    let mut told = Vec::new();
    let call = pool
        .call()
        .on_progress(|_| told.push((other.map(|n: u8| n, [1]), other.close())));
    assert_eq!(call.map(|n: u8| n, 0..3), Ok(vec![0, 1, 2]));
    assert_eq!(told.first(), Some(&(Ok(vec![1]), Ok(()))));
    let closed = (Err(PoolError::Closed.into()), Ok(()));
    assert!(told[1..].iter().all(|told| *told == closed), "{told:?}");
    assert_eq!(pool.close(), Ok(()));
}

#[test]
fn progress_of_forked_children_counts_items_that_fail() {
    let _none = Leftovers::none();
    let pool = forked();
    let mut told = Vec::new();
    let call = pool
        .call()
        .on_progress(|p| told.push((p.done, p.failed, p.total)));
    let outcomes = call
        .chunk_size(3)
        .map_outcomes(|n: u32| assert!(!n.is_multiple_of(3)), 0..10);
    assert_eq!(outcomes.iter().filter(|it| it.is_err()).count(), 4);
    assert!(told.iter().all(|(done, failed, _)| failed <= done));
    assert_eq!(told.last(), Some(&(10, 4, Some(10))), "{told:?}");
    // A child that dies is the end of its item, too.
    told.clear();
    let call = pool
        .call()
        .on_progress(|p| told.push((p.done, p.failed, p.total)));
    let die = |n: u32| {
        if n == 1 {
            std::process::abort();
        }
    };
    let outcomes = call.chunk_size(1).map_outcomes(die, 0..4);
    assert_eq!(outcomes.iter().filter(|it| it.is_err()).count(), 1);
    assert_eq!(told.last(), Some(&(4, 1, Some(4))), "{told:?}");
    // Nothing is run, and all has ended.
    told.clear();
    let call = pool
        .call()
        .on_progress(|p| told.push((p.done, p.failed, p.total)));
    let outcomes = call.timeout(Duration::ZERO).map_outcomes(|_: u32| (), 0..3);
    assert_eq!(outcomes.len(), 3);
    assert_eq!(told.last(), Some(&(3, 3, Some(3))), "{told:?}");
}

/// Comes back if it is even, and else fails; 5 panics.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Even(u32);

impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let n = u32::deserialize(input)?;
        assert!(n != 5, "not five");
        let odd = || serde::de::Error::custom(format!("{n} is odd"));
        n.is_multiple_of(2).then_some(Self(n)).ok_or_else(odd)
    }
}

#[test]
fn a_forked_result_that_cannot_be_read_is_told_with_its_own_index() {
    let _none = Leftovers::none();
    let pool = forked();
    let call = || pool.call().chunk_size(4);
    let outcomes = call().map_outcomes(|n: u32| Even(n), 0..11);
    for (index, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(even) => assert_eq!(even.0 as usize, index),
            Err(TaskError::Decode {
                index: at, reason, ..
            }) => assert_eq!(
                (at.get(), &**reason),
                (Some(index), &*format!("{index} is odd"))
            ),
            Err(error) => {
                assert!(matches!(error, TaskError::Panicked { .. }), "{error}");
                assert_eq!((error.index(), index), (Some(5), 5));
            }
        }
    }
    let first = |items: [u32; 7]| call().map(|n: u32| Even(n), items).unwrap_err();
    let failed = first([0, 2, 4, 6, 8, 7, 3]);
    assert!(matches!(failed, TaskError::Decode { index, .. } if index == Some(5)));
    let failed = first([0, 2, 4, 6, 8, 5, 3]);
    assert!(matches!(failed, TaskError::Panicked { index, .. } if index == Some(5)));
    for n in [5, 7] {
        let failed = pool.submit(|n: u32| Even(n), n).result().unwrap_err();
        assert_eq!(failed.index(), None, "{failed}");
        let lazy = pool.imap(|n: u32| Even(n), [0, n]).last().unwrap();
        assert_eq!(lazy.unwrap_err().index(), Some(1));
    }
}

/// Panics when it is dropped, unless by the process that it was sent to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Loud(u32);

impl Drop for Loud {
    fn drop(&mut self) {
        assert!(
            self.0 != 1 || std::thread::panicking(),
            "it does not like to go"
        );
    }
}

#[test]
fn a_panic_in_the_drop_of_a_result_is_that_of_its_forked_item() {
    let _none = Leftovers::none();
    let pool = forked();
    let is_told = |error: &TaskError, at: Option<usize>| {
        matches!(error, TaskError::Panicked { message, index, .. }
            if message == "it does not like to go" && *index == at)
    };
    let outcomes = pool.call().chunk_size(3).map_outcomes(Loud, 0..3);
    assert_eq!((&outcomes[0], &outcomes[2]), (&Ok(Loud(0)), &Ok(Loud(2))));
    let failed = outcomes[1].as_ref().unwrap_err();
    assert!(is_told(failed, Some(1)), "{failed:?}");
    let failed = pool.submit(Loud, 1).result().unwrap_err();
    assert!(is_told(&failed, None), "{failed:?}");
}

#[test]
fn what_a_forked_task_took_along_goes_with_its_end_though_its_handle_stays() {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let pool = forked();
    let (bound, argument) = (
        SharedValue::new(3_u64).unwrap(),
        SharedValue::new(4).unwrap(),
    );
    let sum = move |argument: SharedValue<u64>| bound.get() + argument.get();
    let task = pool.submit(sum, argument);
    eventually("it has ended", || task.is_done());
    assert_eq!(shm::usage().objects, before);
    assert_eq!(task.result(), Ok(7));
    // Nor does a result stay that is not taken.
    let task = pool.submit(|n: u64| SharedValue::new(n).unwrap(), 5);
    eventually("it has ended", || task.is_done());
    assert!(shm::usage().objects > before);
    drop(task);
    pool.close().unwrap();
    let gone = || eventually("it has gone", || shm::usage().objects == before);
    gone();
    // What is taken is there, and goes with its handles.
    let value = |n: u64| SharedValue::new(n).unwrap();
    let one = pool.submit(value, 5).result();
    assert_eq!(one.map(|one| one.get()), Err(PoolError::Closed.into()));
    let pool = forked();
    let one = pool.submit(value, 5).result().unwrap();
    let others = pool.map(value, 6..9).unwrap();
    assert_eq!(one.get(), 5);
    assert!(others.iter().map(SharedValue::get).eq(6..9));
    drop((one, others));
    gone();
    // The values that a failed call had already, and those that came after its failure.
    let fails = |n: u64| {
        assert!(n != 2, "boom");
        SharedValue::new(n).unwrap()
    };
    let failed = forked().call().chunk_size(5).map(fails, 0..5);
    assert_eq!(failed.unwrap_err().index(), Some(2));
    gone();
    // The second item has its result when the first one fails.
    let (pool, folder) = (forked(), Folder::new());
    let go = folder.file("go");
    let fails = |n: u64| {
        if n == 0 {
            wait_for(go.clone());
            panic!("boom");
        }
        SharedValue::new(n).unwrap()
    };
    let call = pool.call().chunk_size(1).on_progress(|p| {
        if p.done == 1 {
            touch(go.clone());
        }
    });
    assert_eq!(call.map(fails, 0..2).unwrap_err().index(), Some(0));
    gone();
}

#[test]
fn calls_of_a_forked_pool_leave_no_descriptor_of_their_children() {
    let _none = Leftovers::none();
    let pool = forked();
    let call = || assert_eq!(pool.map(|n: u8| n, 0..4), Ok(vec![0, 1, 2, 3]));
    call();
    let before = open_descriptors();
    (0..8).for_each(|_| call());
    // What a test before this one had may go meanwhile.
    assert!(open_descriptors() <= before);
}

/// The last result is on its way before the child has ended: it prints what it has buffered, and
/// waits for the children that it has started.
#[test]
fn a_forked_child_that_has_given_its_last_result_comes_to_its_own_end() {
    fn linger((folder, word): (PathBuf, String)) {
        wait_for(folder.join("told"));
        touch(folder.join(word));
    }
    let _none = Leftovers::none();
    let folder = Folder::new();
    let start = |n: u32| {
        let word = format!("child-{n}");
        drop(Process::spawn(linger, (folder.0.clone(), word)).unwrap());
        n
    };
    let told = folder.file("told");
    // The results have come when their children are told to go on.
    let pool = forked();
    let call = pool.call().chunk_size(1).on_progress(|p| {
        if p.done == 2 {
            std::fs::write(&told, "").unwrap();
        }
    });
    assert_eq!(call.map(start, 0..2), Ok(vec![0, 1]));
    assert!(folder.file("child-0").exists() && folder.file("child-1").exists());
}

#[test]
fn what_a_process_has_buffered_is_not_printed_again_by_its_forked_children() {
    let name =
        "forked_pools::what_a_process_has_buffered_is_not_printed_again_by_its_forked_children";
    let _none = Leftovers::none();
    if is_program() {
        let say = |n: u32| print!("[child {n}]");
        let pool = one_child();
        print!("[before]");
        pool.submit(say, 1).result().unwrap();
        print!("[between]");
        pool.map(say, [2, 3]).unwrap();
        return;
    }
    let output = finish(&mut as_program(name));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for word in ["before", "child 1", "between", "child 2", "child 3"] {
        let count = text.matches(&format!("[{word}]")).count();
        assert_eq!(count, 1, "{word} in {text}");
    }
}

/// Without a thread that waits for it, the one that asks for the callback does.
#[test]
fn a_callback_of_a_forked_task_runs_though_no_thread_can_watch_it() {
    let name = "forked_pools::a_callback_of_a_forked_task_runs_though_no_thread_can_watch_it";
    let _none = Leftovers::none();
    if !is_program() {
        let output = finish(&mut as_program(name));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        return;
    }
    let (pool, go) = (forked(), Event::new().unwrap());
    let task = pool.submit(|go: Event| go.wait_timeout(SOON), go.clone());
    let (asks, may_ask) = (&Sleeper::new(), &AtomicBool::new(false));
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        let task = &task;
        scope.spawn(move || {
            asks.run(|| {
                while !may_ask.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                task.on_done(move |outcome| {
                    tell.send(outcome.copied().map_err(Clone::clone)).unwrap();
                });
            });
        });
        let asking = asks.state();
        Refused::Descriptors.take_away();
        may_ask.store(true, Ordering::Release);
        asking.is_asleep();
        go.set();
        assert_eq!(told.recv_timeout(SOON), Ok(Ok(true)));
    });
    // The check of what is left needs descriptors, too.
    std::process::exit(0);
}

/// As where the system has no room for one more timer.
#[test]
fn a_forked_item_whose_limit_cannot_be_kept_is_not_run() {
    let name = "forked_pools::a_forked_item_whose_limit_cannot_be_kept_is_not_run";
    let _none = Leftovers::none();
    if !is_program() {
        let output = finish(&mut as_program(name));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        return;
    }
    setrlimit(Resource::RLIMIT_SIGPENDING, 0, 0).unwrap();
    let (pool, folder) = (forked(), Folder::new());
    let ran = folder.file("ran");
    let is_told = |error: &TaskError, at: Option<usize>| {
        let expected = "it was not run, because its limit cannot be kept: ";
        matches!(error, TaskError::Panicked { message, index, .. }
            if message.starts_with(expected) && *index == at)
    };
    let call = || pool.call().timeout(SOON);
    let failed = call().map(touch, [ran.clone()]).unwrap_err();
    assert!(is_told(&failed, Some(0)), "{failed:?}");
    let failed = call().submit(touch, ran.clone()).result().unwrap_err();
    assert!(is_told(&failed, None), "{failed:?}");
    assert!(!ran.exists());
    assert_eq!(pool.map(touch, [ran.clone()]), Ok(vec![()]));
    assert!(ran.exists());
}

#[test]
fn the_thread_that_watches_forked_tasks_keeps_no_call_from_forking() {
    let _none = Leftovers::none();
    // On the only thread of a process.
    let maps_while_a_task_is_watched = |go: Event| {
        let pool = Pool::forked(2).unwrap();
        let task = pool.submit(|go: Event| go.wait_timeout(SOON), go.clone());
        task.on_done(|_| {});
        eventually("there is a watcher", || threads() == ["manyhands-watch"]);
        assert_eq!(pool.map(|n: u8| n, [1, 2]), Ok(vec![1, 2]));
        go.set();
        assert_eq!(task.result(), Ok(true));
    };
    let go = Event::new().unwrap();
    let child = Process::spawn(maps_while_a_task_is_watched, go).unwrap();
    assert!(child.join().unwrap().success());
}

#[test]
fn closing_a_forked_pool_waits_for_each_step_of_a_reduction() {
    let _none = Leftovers::none();
    let (pool, folder) = (&forked(), Folder::new());
    let (started, go) = (folder.file("started"), folder.file("go"));
    let closes = &Sleeper::new();
    let item = |n: u32| {
        if n == 0 {
            touch(started.clone());
            wait_for(go.clone());
        }
        n
    };
    std::thread::scope(|scope| {
        let reduction = scope.spawn(|| {
            let call = pool.call().chunk_size(1);
            call.map_reduce(item, |a, b| a + b, 0..64)
        });
        eventually("the first item runs", || started.exists());
        let ender = scope.spawn(|| closes.run(|| pool.close()));
        eventually("the pool is closed", || {
            pool.map(|()| (), [()]) == Err(PoolError::Closed.into())
        });
        closes.is_asleep();
        touch(go.clone());
        assert_eq!(reduction.join().unwrap(), Ok(Some(63 * 32)));
        assert_eq!(ender.join().unwrap(), Ok(()));
    });
}
