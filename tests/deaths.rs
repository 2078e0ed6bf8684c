//! Workers that die: what that costs, which caller is told, what is left.

mod common;

use std::time::{Duration, Instant};

use common::errors::broken;
use common::{
    Leftovers, as_program, children_of, eventually, finish, is_program, is_running, kill,
};
use manyhands::closure;
use manyhands::prelude::*;
use serde::{Deserialize, Serialize};

/// The ways to take one's process along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Live,
    Kill,
    Segfault,
    Abort,
    Exit(i32),
    Overflow,
}

fn die(way: Way) -> u32 {
    match way {
        Way::Live => std::process::id(),
        Way::Kill => {
            kill(std::process::id());
            unreachable!("SIGKILL cannot be survived")
        }
        Way::Segfault => {
            // SAFETY: none. This is the crash that the test is about: nothing is mapped at address
            // 8.
            unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
            unreachable!("nobody survives a write to nowhere")
        }
        Way::Abort => std::process::abort(),
        Way::Exit(code) => common::exit_at_once(code),
        Way::Overflow => overflow(1).try_into().unwrap_or(0),
    }
}

/// Uses up the stack.
#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    overflow(depth + 1) + frame[depth as usize % 512]
}

const DEADLY: [(Way, Death); 6] = [
    (Way::Kill, Death::Signal(9)),
    (Way::Segfault, Death::Signal(11)),
    (Way::Abort, Death::Signal(6)),
    (Way::Exit(0), Death::Exit(0)),
    (Way::Exit(3), Death::Exit(3)),
    (Way::Overflow, Death::Signal(11)),
];

fn forked() -> Pool<Forked> {
    Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap()
}

#[test]
fn b23_a_task_that_kills_its_worker_fails_alone() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for (way, death) in DEADLY {
        let good = pool.submit(die, Way::Live);
        let pid = pool.submit(die, Way::Live);
        let bad = pool.submit(die, way).result();
        let Err(TaskError::WorkerDied {
            pid: dead,
            cause,
            index,
            attempts: 1,
            ..
        }) = bad
        else {
            panic!("{bad:?}")
        };
        assert_eq!((index.get(), cause), (None, death), "{way:?}");
        assert!(!is_running(dead));
        assert!(good.result().is_ok() && pid.result().is_ok());
    }
    let workers: Vec<u32> = pool.map(|_: u32| std::process::id(), 0..100).unwrap();
    assert!(
        workers.into_iter().all(is_running),
        "the dead were replaced"
    );
}

#[test]
fn b23_forked_children_that_die_cost_one_item_each() {
    let _none = Leftovers::none();
    let pool = forked();
    for (way, death) in DEADLY {
        let bad = pool.submit(die, way).result();
        // In a process that has run main, std's handler reports a stack overflow, and aborts.
        let death = if way == Way::Overflow {
            Death::Signal(6)
        } else {
            death
        };
        assert!(
            matches!(&bad, Err(TaskError::WorkerDied { cause, .. }) if *cause == death),
            "{way:?}: {bad:?}"
        );
        let items = [Way::Live, Way::Live, way, Way::Live];
        for schedule in [Schedule::Equal, Schedule::Dynamic(1)] {
            let outcome = pool.call().schedule(schedule).map(die, items);
            let Err(TaskError::WorkerDied { index, cause, .. }) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!((index.get(), cause), (Some(2), death));
        }
    }
}

#[test]
fn b23_map_names_the_item_whose_worker_died() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for at in [0usize, 1, 250, 998, 999] {
        for schedule in [
            Schedule::Equal,
            Schedule::Guided,
            Schedule::Dynamic(1),
            Schedule::Dynamic(7),
        ] {
            let items = (0..1_000).map(|index| if index == at { Way::Kill } else { Way::Live });
            let outcome = pool.call().schedule(schedule).map(die, items);
            let Err(TaskError::WorkerDied { index, cause, .. }) = outcome else {
                panic!("{outcome:?}")
            };
            let expected = (Some(at), Death::Signal(9));
            assert_eq!((index.get(), cause), expected, "{schedule:?}");
        }
    }
    assert_eq!(pool.map(|x: u64| x, 0..1_000).unwrap().len(), 1_000);
}

#[test]
fn b23_the_error_comes_within_50_ms() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let start = Instant::now();
            assert!(pool.submit(die, Way::Kill).result().is_err());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
}

#[test]
fn b24_nobody_notices_the_death_of_an_idle_worker() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for round in 0..20u64 {
        let workers = children_of(std::process::id());
        assert_eq!(workers.len(), 2);
        workers.iter().copied().for_each(kill);
        // The pool works at once, and again after the workers are known to be gone.
        assert_eq!(pool.submit(|x: u64| x + 1, round).result(), Ok(round + 1));
        eventually("both are replaced", || {
            let now = children_of(std::process::id());
            now.len() == 2 && now.is_disjoint(&workers) && now.iter().all(|&pid| is_running(pid))
        });
        assert_eq!(pool.map(|x: u64| x * 2, 0..50).unwrap()[49], 98);
    }
}

#[test]
fn b25_retries_run_an_item_again_and_then_give_up() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let outcome = pool.call().retries(2).map(die, [Way::Live, Way::Abort]);
    assert!(
        matches!(
            outcome,
            Err(TaskError::WorkerDied { index, attempts: 3, .. }) if index == Some(1)
        ),
        "{outcome:?}"
    );
    let outcome = forked().call().retries(2).map(die, [Way::Live, Way::Abort]);
    assert!(
        matches!(
            outcome,
            Err(TaskError::WorkerDied { index, attempts: 3, .. }) if index == Some(1)
        ),
        "{outcome:?}"
    );

    // The first process to come dies. Each one after it lives.
    let once = |marker: std::path::PathBuf| match std::fs::File::create_new(&marker) {
        Ok(_) => die(Way::Kill),
        Err(_) => 7,
    };
    for (name, outcome) in [
        (
            "retry-processes",
            pool.call()
                .retries(1)
                .map(once, [marker("retry-processes")]),
        ),
        (
            "retry-forked",
            forked()
                .call()
                .retries(1)
                .map(once, [marker("retry-forked")]),
        ),
    ] {
        assert_eq!(outcome, Ok(vec![7]), "{name}");
        std::fs::remove_file(marker(name)).unwrap();
    }
}

/// Kills the first process that comes to this file.
#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn die_first(file: std::path::PathBuf) -> u32 {
    if std::fs::File::create_new(&file).is_ok() {
        die(Way::Kill);
    }
    7
}

#[test]
fn b25_every_kind_of_call_has_its_retries() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let folder = marker("retries");
    let with = |_: &u32, file: std::path::PathBuf| die_first(file);
    let drops = |file: std::path::PathBuf| assert_eq!(die_first(file), 7);
    for retries in [1, 0] {
        std::fs::create_dir(&folder).unwrap();
        let call = || pool.call().retries(retries).chunk_size(2);
        let files = |name: &str| [0, 1].map(|n| folder.join(format!("{name}-{n}")));
        let [one, _] = files("submit");
        let lazy: Result<Vec<_>, _> = call().imap(die_first, files("imap")).collect();
        let unordered = call().imap_unordered(die_first, files("unordered"));
        let unordered: Result<Vec<_>, _> = unordered.map(|(_, outcome)| outcome).collect();
        let each = call().map_outcomes(die_first, files("map_outcomes"));
        let sum = call().map_reduce(die_first, |a, b| a + b, files("map_reduce"));
        let outcomes = [
            ("submit", call().submit(die_first, one).result().err()),
            ("map", call().map(die_first, files("map")).err()),
            ("map_with", call().map_with(&1, with, files("with")).err()),
            ("for_each", call().for_each(drops, files("for_each")).err()),
            ("imap", lazy.err()),
            ("imap_unordered", unordered.err()),
            ("map_outcomes", each.into_iter().find_map(Result::err)),
            // Of a chunk, the items that died before are over when it is tried again.
            ("map_reduce", sum.err()),
        ];
        for (name, error) in outcomes {
            match error {
                None => assert!(retries == 1, "{name}"),
                Some(TaskError::WorkerDied { attempts, .. }) => {
                    let is_chunk = name == "map_reduce";
                    assert!(retries == 0 || is_chunk, "{name}");
                    assert_eq!(attempts, retries + 1, "{name}");
                }
                Some(other) => panic!("{name}: {other:?}"),
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

fn marker(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("{name}-{}", std::process::id()))
}

/// A logger that panics on the thread that watches over workers.
struct Panics;

impl log::Log for Panics {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        let thread = std::thread::current();
        assert_ne!(thread.name(), Some("manyhands-watch"), "on purpose");
    }

    fn flush(&self) {}
}

#[test]
fn when_the_supervisor_panics_all_tasks_hear_of_it_and_no_worker_stays() {
    let name = "when_the_supervisor_panics_all_tasks_hear_of_it_and_no_worker_stays";
    let _none = Leftovers::none();
    if !is_program() {
        let output = finish(&mut as_program(name));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {said}", output.status);
        return;
    }
    log::set_logger(&Panics).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let fails = marker("start-fails");
    let start = || match std::env::var_os("FAILS") {
        Some(path) if std::path::Path::new(&path).exists() => Err("not any more"),
        _ => Ok(()),
    };
    let builder = Processes::builder().workers(2).env("FAILS", &fails);
    let pool = builder.initializer(start).build().unwrap();
    let endless = |()| -> u32 {
        loop {
            std::thread::park();
        }
    };
    let running = pool.submit(endless, ());
    eventually("it runs", || running.is_running());
    let workers = children_of(std::process::id());
    std::fs::File::create(&fails).unwrap();
    let idle = pool.submit(|()| std::process::id(), ()).result().unwrap();
    // The supervisor tells the logger that the next worker does not start.
    kill(idle);
    let broken = Err(broken("its supervisor panicked").into());
    let mut running = running;
    let outcome = running.result_timeout(common::DEADLINE);
    std::fs::remove_file(&fails).unwrap();
    assert_eq!(outcome, Ok(broken.clone()));
    assert_eq!(pool.submit(endless, ()).result(), broken);
    eventually("the kernel has killed the workers", || {
        !workers.iter().any(|&worker| is_running(worker))
    });
    assert_eq!(pool.close(), Ok(()));
}

#[test]
fn b26_a_hundred_deaths_among_a_hundred_tasks_stay_in_their_places() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|n| pool.submit(die, if n % 2 == 0 { Way::Live } else { Way::Kill }))
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        let result = task.result();
        match n % 2 {
            0 => assert!(result.is_ok(), "task {n}: {result:?}"),
            _ => assert!(
                matches!(
                    result,
                    Err(TaskError::WorkerDied {
                        cause: Death::Signal(9),
                        ..
                    })
                ),
                "{result:?}"
            ),
        }
    }
}

#[test]
fn an_item_is_run_once_when_others_die() {
    let _none = Leftovers::none();
    let folder = marker("once");
    std::fs::create_dir(&folder).unwrap();
    let pool = Pool::processes(3).unwrap();
    // Every item leaves a file, and some then take their worker down. With retries the call goes on
    // after each death.
    let run = closure!([folder] |n: u32| {
        let first = std::fs::File::create_new(folder.join(n.to_string())).is_ok();
        let again = std::fs::File::create_new(folder.join(format!("again-{n}"))).is_ok();
        if n % 10 == 3 && first { die(Way::Kill); }
        (first, again)
    });
    for schedule in [Schedule::Guided, Schedule::Dynamic(3), Schedule::Equal] {
        let ran = pool
            .call()
            .schedule(schedule)
            .retries(1)
            .map(run.clone(), 0..200)
            .unwrap();
        for (n, (first, _)) in ran.iter().enumerate() {
            assert_eq!(*first, n % 10 != 3, "item {n} was run again, or not at all");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn b27_death_while_a_large_argument_or_result_is_under_way() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    for _ in 0..5 {
        // Both workers are killed while 64 MiB go to one of them and come back.
        let large = pool.submit(|bytes: Vec<u8>| bytes, vec![7u8; 64 << 20]);
        let workers = children_of(std::process::id());
        let victim = workers.iter().copied().next().unwrap();
        let busy = workers.iter().copied().nth(1).unwrap();
        kill(victim);
        kill(busy);
        match large.result() {
            Ok(bytes) => assert!(bytes.len() == 64 << 20 && bytes.iter().all(|&byte| byte == 7)),
            Err(TaskError::WorkerDied {
                cause: Death::Signal(9),
                ..
            }) => {}
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        }
        assert_eq!(pool.submit(|x: u64| x, 5).result(), Ok(5));
    }
}

#[test]
fn workers_killed_at_random_cost_only_what_they_had_started() {
    let _none = Leftovers::none();
    let seed = std::env::var("MANYHANDS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand_seed);
    println!("MANYHANDS_SEED={seed}");
    let mut random = seed;
    let pool = Pool::processes(3).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // Kills mostly workers that are up: a worker gets its name shortly before that. If
                // nearly all were killed on their way, the pool would rightly give up.
                let spares_the_young = !next(&mut random).is_multiple_of(8);
                let workers: Vec<u32> = children_of(std::process::id())
                    .into_iter()
                    .filter(|&worker| !spares_the_young || is_named(worker))
                    .collect();
                if let Some(&victim) =
                    workers.get(next(&mut random) as usize % workers.len().max(1))
                {
                    kill(victim);
                    kills += 1;
                }
                for _ in 0..next(&mut random) % 200 {
                    std::thread::yield_now();
                }
            }
            kills
        });
        let stop = Stop(&done);
        let mut lost = 0;
        for round in 0..30u64 {
            let tasks: Vec<_> = (0..200)
                .map(|n| (n, pool.submit(|n: u64| n * n, n + round)))
                .collect();
            for (n, task) in tasks {
                match task.result() {
                    Ok(square) => assert_eq!(square, (n + round) * (n + round)),
                    Err(TaskError::WorkerDied {
                        cause: Death::Signal(9),
                        ..
                    }) => lost += 1,
                    Err(other) => panic!("{other:?}"),
                }
            }
            let schedule =
                [Schedule::Guided, Schedule::Dynamic(1), Schedule::Equal][round as usize % 3];
            match pool
                .call()
                .schedule(schedule)
                .retries(1_000)
                .map(|n: u64| vec![n; n as usize % 40], 0..3_000)
            {
                Ok(all) => assert!(
                    all.iter()
                        .zip(0..)
                        .all(|(v, n)| *v == vec![n; n as usize % 40])
                ),
                Err(other) => panic!("{other:?}"),
            }
        }
        drop(stop);
        println!("{} kills, {lost} tasks lost", killer.join().unwrap());
    });
}

/// Whether a worker shows its pool and number instead of the name that every started executable has
/// at first.
fn is_named(worker: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{worker}/comm")).is_ok_and(|name| name.contains(':'))
}

/// Stops the killer, also when the test fails.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) | 1
}

/// xorshift64 (Marsaglia, J. Stat. Softw. 8(14), 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_task_that_waits_for_others_of_its_own_worker_is_not_stuck_behind_a_long_one() {
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let folder = marker("behind");
    std::fs::create_dir(&folder).unwrap();
    // The first task ends when the last has run. Those between them fill the lanes.
    let long = pool.submit(
        |folder: std::path::PathBuf| {
            while !folder.join("last").exists() {
                std::thread::yield_now();
            }
        },
        folder.clone(),
    );
    let between: Vec<_> = (0..100u32).map(|n| pool.submit(|n: u32| n, n)).collect();
    let last = pool.submit(
        |folder: std::path::PathBuf| drop(std::fs::File::create(folder.join("last"))),
        folder.clone(),
    );
    assert_eq!(long.result(), Ok(()));
    assert_eq!(last.result(), Ok(()));
    assert!(
        between
            .into_iter()
            .zip(0..)
            .all(|(task, n)| task.result() == Ok(n))
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
