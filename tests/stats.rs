//! What a pool of processes tells of itself: statistics, the timeline; and pools that belong to the
//! process.

mod common;

use std::time::{Duration, Instant};

use common::errors::cancelled;
use common::{Leftovers, as_program, eventually, finish, is_asleep, is_program};
use manyhands::engine::TimelineEvent;
use manyhands::engine::{PoolStats, Timeline, WaitPolicy};
use manyhands::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[test]
fn tasks_and_failures_are_counted_by_cause() {
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(2)
        .name("books")
        .memory_limit(512 << 20)
        .build()
        .unwrap();
    // Long enough for the backtrace of a panic, if the environment asks for one.
    let outcomes = pool.call().timeout(Duration::from_secs(3)).map_outcomes(
        |how: u32| match how {
            1 => panic!("on purpose"),
            2 => std::process::abort(),
            3 => loop {
                std::hint::spin_loop();
            },
            4 => drop(std::hint::black_box(vec![1_u8; 1 << 30])),
            _ => {}
        },
        (0..50).chain([1, 1, 2, 3, 4]),
    );
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.is_err()).count(),
        9
    );
    let total = pool.stats().total();
    let failures = total.failures;
    assert_eq!((total.tasks, failures.total()), (55, 9));
    assert_eq!((failures.panicked, failures.worker_died), (3, 2));
    assert_eq!((failures.timed_out, failures.out_of_memory), (2, 2));
    eventually("all that died have been replaced", || {
        pool.stats().total().respawns == 6
    });
}

/// Cannot be sent back, or not be read, when it says so.
#[derive(Clone, Copy, PartialEq)]
enum Odd {
    Fine,
    Unsent,
    Unread,
}

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fine => output.serialize_u8(0),
            Self::Unread => output.serialize_u8(1),
            Self::Unsent => Err(serde::ser::Error::custom("it stays here")),
        }
    }
}

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match u8::deserialize(input)? {
            0 => Ok(Self::Fine),
            _ => Err(serde::de::Error::custom("it makes no sense")),
        }
    }
}

#[test]
fn values_that_did_not_cross_are_counted_where_a_worker_found_out() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let counts = || {
        let total = pool.stats().total();
        let failures = total.failures;
        assert_eq!(failures.total(), failures.encode + failures.decode);
        (total.tasks, failures.encode, failures.decode)
    };
    let take = |odd: Odd| odd == Odd::Fine;
    let args = [Odd::Fine, Odd::Unread, Odd::Fine];
    let call = || pool.call().chunk_size(3);
    assert_eq!(call().map_outcomes(take, args).iter().flatten().count(), 2);
    assert_eq!(counts(), (3, 0, 1));
    let make = |odd: bool| if odd { Odd::Unsent } else { Odd::Fine };
    let results = call().map_outcomes(make, [false, true]);
    assert_eq!(results.iter().flatten().count(), 1);
    assert_eq!(counts(), (5, 1, 1));
    // The first item fails with its context, and the next is not started.
    let with = |_: &Odd, n: u32| n;
    assert!(call().map_with(&Odd::Unread, with, 0..2).is_err());
    assert_eq!(counts(), (6, 1, 2));
    // What this process finds out, no worker has run, or none has failed over.
    assert!(pool.submit(take, Odd::Unsent).result().is_err());
    let unread = |()| Odd::Unread;
    assert!(pool.submit(unread, ()).result().is_err());
    assert_eq!(counts(), (7, 1, 2));
}

#[test]
fn a_pool_knows_its_name_and_its_age() {
    let _none = Leftovers::none();
    let unnamed = [(); 2].map(|()| Pool::processes(1).unwrap().stats().name);
    assert!(unnamed.iter().all(|name| name.starts_with("pool")));
    assert_ne!(unnamed[0], unnamed[1]);
    let before = Instant::now();
    let pool = Processes::builder()
        .workers(1)
        .name("aged")
        .build()
        .unwrap();
    let (first, least) = (pool.stats(), Instant::now());
    assert_eq!((first.name.as_str(), first.workers.len()), ("aged", 1));
    eventually("it grows older", || pool.stats().uptime > first.uptime);
    let least = least.elapsed();
    let age = pool.stats().uptime;
    assert!(age >= least && age <= before.elapsed(), "{age:?}");
    let up = pool.stats().total().uptime;
    assert!(up <= before.elapsed(), "{up:?}");
}

#[test]
fn cancelled_tasks_are_counted_whether_they_had_begun_or_not() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let running = pool.submit(
        |seconds| std::thread::sleep(Duration::from_secs(seconds)),
        600,
    );
    let queued: Vec<_> = (0..3).map(|_| pool.submit(|()| (), ())).collect();
    eventually("the task runs", || running.is_running());
    assert!(queued.iter().all(TaskFuture::cancel));
    assert!(running.kill());
    assert_eq!(running.result(), Err(cancelled()));
    let stats = pool.stats();
    assert_eq!((stats.cancelled, stats.total().failures.cancelled), (3, 1));
}

#[test]
fn bytes_time_and_memory_are_what_they_must_be() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let payload = vec![7_u8; 1 << 20];
    let sum = |bytes: Vec<u8>| {
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {}
        (
            bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>(),
            bytes,
        )
    };
    pool.map(sum, [payload.clone(), payload]).unwrap();
    let stats = pool.stats().total();
    for bytes in [stats.bytes_sent, stats.bytes_received] {
        assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
    }
    assert!(
        stats.busy_time >= Duration::from_millis(40) && stats.busy_time <= stats.uptime,
        "{stats:?}"
    );
    assert!(stats.peak_memory > 1 << 20, "{stats:?}");
    // The second chunk waited for the first. The clock of these counts has ticks of some
    // milliseconds.
    assert!(stats.queue_wait >= Duration::from_millis(5), "{stats:?}");
}

#[test]
fn an_idle_worker_is_not_busy() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    pool.submit(|()| (), ()).result().unwrap();
    let before = pool.stats().total();
    eventually("the pool is older by half a second", || {
        pool.stats().total().uptime >= before.uptime + Duration::from_millis(500)
    });
    let after = pool.stats().total();
    assert!(
        after.busy_time.saturating_sub(before.busy_time) < Duration::from_millis(100),
        "{before:?} {after:?}"
    );
}

#[test]
fn a_worker_at_work_is_busy_though_it_has_waited_before() {
    let _none = Leftovers::none();
    let builder = Processes::builder().workers(1);
    let pool = builder.wait_policy(WaitPolicy::Park).build().unwrap();
    let worker = pool.submit(|()| std::process::id(), ()).result().unwrap();
    eventually("the worker sleeps", || is_asleep(worker));
    let busy = || pool.stats().total().busy_time;
    let before = busy();
    let endless = pool.submit(
        |()| -> u32 {
            loop {
                std::hint::spin_loop();
            }
        },
        (),
    );
    eventually("it is busy", || busy() > before + Duration::from_millis(50));
    assert!(endless.kill());
}

#[test]
fn statistics_are_a_table_for_people_and_serde_for_machines() {
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(2)
        .name("both")
        .build()
        .unwrap();
    pool.map(|x: u64| x, 0..100).unwrap();
    let stats = pool.stats();
    let table = stats.to_string();
    assert!(table.starts_with("pool both, "), "{table}");
    assert!(
        table
            .lines()
            .any(|line| line.trim_start().starts_with("all") && line.contains(" 100 "))
    );
    let bytes = pool
        .submit(|stats: PoolStats| stats, stats.clone())
        .result();
    assert_eq!(bytes, Ok(stats), "through serde and back");
}

#[test]
fn statistics_stay_when_the_pool_is_closed() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    pool.map(|x: u64| x, 0..100).unwrap();
    pool.close().unwrap();
    let stats = pool.stats().total();
    assert_eq!(stats.tasks, 100);
    assert!(
        stats.peak_memory > 0 && stats.uptime > Duration::ZERO,
        "{stats:?}"
    );
}

#[test]
fn the_timeline_has_every_task_with_its_times_and_its_worker() {
    let _none = Leftovers::none();
    let start = Instant::now();
    let pool = Processes::builder()
        .workers(2)
        .timeline(true)
        .build()
        .unwrap();
    let pids = pool
        .call()
        .chunk_size(5)
        .map(|_| std::process::id(), 0..100_u32)
        .unwrap();
    let died = pool.submit(|()| -> () { std::process::abort() }, ());
    assert!(died.result().is_err());
    let timeline: Timeline = pool.timeline();
    assert_eq!(timeline.dropped, 0);
    let (completed, others): (Vec<&TimelineEvent>, Vec<&TimelineEvent>) =
        timeline.events.iter().partition(|event| event.completed);
    assert_eq!(
        completed.iter().map(|event| event.items).sum::<usize>(),
        100
    );
    assert_eq!(others.len(), 1);
    for event in &timeline.events {
        assert!(
            event.queued <= event.started
                && event.started <= event.ended
                && event.ended <= start.elapsed(),
            "{event:?}"
        );
    }
    assert!(
        completed
            .iter()
            .all(|event| event.worker < 2 && pids.contains(&event.pid))
    );
    // What ran on one worker did not overlap.
    for worker in 0..2 {
        let own: Vec<_> = completed
            .iter()
            .filter(|event| event.worker == worker)
            .collect();
        assert!(
            own.windows(2).all(|pair| pair[0].ended <= pair[1].started),
            "{own:?}"
        );
    }
}

#[test]
fn a_pool_without_a_timeline_keeps_none() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    pool.map(|x: u64| x, 0..100).unwrap();
    assert_eq!(pool.timeline().events, []);
}

#[test]
fn shared_pools_are_made_once_and_anew_after_they_were_closed() {
    let name = "shared_pools_are_made_once_and_anew_after_they_were_closed";
    if is_program() {
        // As a program of its own: these pools stay until it ends.
        let first = Pool::processes_global().unwrap();
        assert!(std::ptr::eq(first, Pool::processes_global().unwrap()));
        let from_thread = std::thread::spawn(|| Pool::processes_global().unwrap().engine().kind());
        assert_eq!(from_thread.join().unwrap(), "processes");
        first.close().unwrap();
        let second = Pool::processes_global().unwrap();
        assert_eq!(second.map(|x: u8| x + 1, [1, 2]).unwrap(), [2, 3]);
        // A worker has a shared pool of its own.
        let nested = |()| Pool::processes_global().unwrap().map(|x: u8| x * 2, [4]);
        assert_eq!(second.submit(nested, ()).result().unwrap(), Ok(vec![8]));
        assert_eq!(
            Pool::threads_global().unwrap().map(|x| x + 1, [1]).unwrap(),
            [2]
        );
        println!("\nall is well");
        return;
    }
    let _none = Leftovers::none();
    let output = finish(&mut as_program(name));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|line| line == "all is well"), "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_engine_is_chosen_by_a_text() {
    let _none = Leftovers::none();
    for (text, name, workers) in [
        ("serial", "serial", 1),
        ("threads:3", "threads", 3),
        ("processes:2", "processes", 2),
        ("forked:2", "forked", 2),
    ] {
        let pool: Pool<AnyEngine> = text.parse().unwrap();
        assert_eq!((pool.engine().kind(), pool.workers()), (name, workers));
    }
    let cores = manyhands::available_workers().unwrap();
    let pool: Pool<AnyEngine> = "threads".parse().unwrap();
    assert_eq!(pool.workers(), cores);
    for text in [
        "",
        "thread:2",
        "fibers",
        "processes:",
        "processes:x",
        "processes:-1",
        "serial:4",
        "threads:2:3",
    ] {
        let refused = text.parse::<Pool<AnyEngine>>();
        assert!(
            matches!(refused, Err(PoolError::UnknownEngine { .. })),
            "{text:?}"
        );
    }
    assert!(matches!(
        "processes:0".parse::<Pool<AnyEngine>>(),
        Err(PoolError::ZeroWorkers)
    ));
}

#[test]
fn b119_with_a_limit_of_zero_no_kind_of_call_starts_anything_on_any_engine() {
    use manyhands::SharedArray;
    let _none = Leftovers::none();
    let forked = Forked::builder().workers(2).allow_threads(true);
    let pools: [Pool<AnyEngine>; 4] = [
        Pool::serial().into(),
        Pool::threads(2).unwrap().into(),
        Pool::processes(2).unwrap().into(),
        forked.build().unwrap().into(),
    ];
    for pool in pools {
        let kind = pool.engine().kind();
        let call = || pool.call().timeout(Duration::ZERO);
        let is_late = |error: &TaskError| matches!(error, TaskError::TimedOut { limit, .. } if *limit == Duration::ZERO);
        // It has no limit for an item, and says so, with no item run.
        let reduced = call().map_reduce(|x: u64| x + 1, |x, y| x + y, 0..5);
        assert!(
            matches!(reduced, Err(TaskError::InvalidCall { .. })),
            "{kind}: {reduced:?}"
        );
        let mut array = SharedArray::<u64>::zeros(10).unwrap();
        let lent = call().for_each_chunk(&mut array, 3, |_, chunk: &mut [u64]| chunk.fill(1));
        assert!(lent.as_ref().is_err_and(is_late), "{kind}: {lent:?}");
        assert_eq!(array.to_vec().unwrap(), [0; 10], "{kind}");
    }
    let limited = Processes::builder().workers(1).task_timeout(Duration::ZERO);
    let pool = limited.build().unwrap();
    assert!(pool.submit(|x: u32| x, 1).result().is_err());
    assert_eq!(
        pool.call().timeout(Duration::MAX).map(|x: u32| x, [1]),
        Ok(vec![1])
    );
}
