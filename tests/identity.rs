//! What the threads and workers of a pool are called, what they have of their own, and when that
//! goes. The numbers in the names are the lines of the list of behaviours (`docs/behaviours.md`).

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{DEADLINE, Leftovers, as_program, assert_matches, finish_within, is_program};
use manyhands::engine::{Affinity, StartMethod};
use manyhands::prelude::*;
use manyhands::{SharedArray, worker_index, worker_state};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// The cores that this thread may run on.
fn cores() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let is_in = |&core: &usize| set.is_set(core).unwrap();
    (0..CpuSet::count()).filter(is_in).collect()
}

/// What `ps` shows of this thread.
fn comm() -> String {
    let comm = fs::read_to_string("/proc/thread-self/comm").unwrap();
    comm.trim_end().to_owned()
}

// Pools of threads with all settings ---------------------------------------------------------

#[test]
fn b100_each_thread_has_the_state_that_its_initialiser_has_made() {
    let _none = Leftovers::none();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let make = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, String>((worker_index(), Rc::new(0u32)))
    };
    let builder = Threads::builder().workers(2).initializer(make);
    let pool = builder.clone().build().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2, "before the pool is there");
    let work = |_: u32| {
        worker_state(|(index, calls): &mut (Option<usize>, Rc<u32>)| {
            *Rc::make_mut(calls) += 1;
            *index == worker_index() && index.is_some()
        })
    };
    assert_eq!(pool.map(work, 0..100), Ok(vec![Some(true); 100]));
    assert_eq!(worker_state(|_: &mut (Option<usize>, Rc<u32>)| ()), None);
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    let other = builder.workers(3).build().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 5, "for each pool again");
    drop((pool, other));
}

#[test]
fn b100_a_thread_that_cannot_be_set_up_fails_the_pool() {
    let _none = Leftovers::none();
    let failed = |initializer: fn() -> Result<(), String>| {
        let builder = Threads::builder().workers(3).initializer(initializer);
        match builder.build() {
            Err(PoolError::InitializerFailed { worker, reason, .. }) => (worker, reason),
            other => panic!("{other:?}"),
        }
    };
    let no_licence = || match worker_index() {
        Some(0) => Ok(()),
        _ => Err("no licence".to_owned()),
    };
    assert_eq!(failed(no_licence), (1, "no licence".to_owned()));
    let (worker, reason) = failed(|| panic!("on purpose"));
    assert_eq!(worker, 0);
    assert!(
        reason.starts_with("it panicked: on purpose at "),
        "{reason}"
    );
}

#[test]
fn b100_threads_run_on_the_cores_that_they_are_given() {
    let _none = Leftovers::none();
    let all = cores();
    let on = |affinity| {
        let builder = Threads::builder().workers(3).affinity(affinity);
        let pool = builder.build().unwrap();
        pool.broadcast(|()| cores(), ()).unwrap()
    };
    assert_eq!(on(Affinity::Inherit), vec![all.clone(); 3]);
    let spread = (0..3).map(|worker| vec![all[worker % all.len()]]);
    assert_eq!(on(Affinity::Spread), spread.collect::<Vec<_>>());
    let last = *all.last().unwrap();
    assert_eq!(on(Affinity::Cores(vec![last])), vec![vec![last]; 3]);
    assert_eq!(cores(), all, "the caller stays where it was");
    let nowhere = Threads::builder().affinity(Affinity::Cores(vec![]));
    assert_matches!(
        nowhere.build(),
        Err(PoolError::InvalidOption { ref option, .. }) if option == "affinity"
    );
    let far = Affinity::Cores(vec![last, CpuSet::count() - 1]);
    if all.len() < CpuSet::count() {
        let refused = Threads::builder().workers(2).affinity(far).build();
        assert_matches!(
            refused,
            Err(PoolError::StartFailed {
                worker: 1,
                workers: 2,
                ..
            })
        );
    }
    let none = Threads::builder().workers(0).build();
    assert_matches!(none, Err(PoolError::ZeroWorkers));
}

// Stacks -------------------------------------------------------------------------------------

/// Uses this many bytes of the stack, and a bit more.
#[allow(clippy::large_stack_arrays, reason = "the stack is what it is to use")]
fn use_stack(bytes: usize) -> usize {
    const FRAME: usize = 64 << 10;
    // Not moved: a copy of it would take as much again.
    let mut frame = [1u8; FRAME];
    std::hint::black_box(&mut frame);
    let rest = bytes.checked_sub(FRAME).map_or(0, use_stack);
    rest + usize::from(frame[bytes % FRAME])
}

#[test]
fn b101_stacks_of_threads_are_as_large_as_those_of_worker_processes() {
    let name = "b101_stacks_of_threads_are_as_large_as_those_of_worker_processes";
    if is_program() {
        // What the tests are run with does not count.
        // SAFETY: the threads of this program do not look at the environment.
        unsafe { std::env::remove_var("RUST_MIN_STACK") };
        let (soft, _) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_STACK).unwrap();
        let default = usize::try_from(soft.clamp(2 << 20, 64 << 20)).unwrap();
        let deep = default / 8 * 7;
        assert!(
            Pool::threads(1)
                .unwrap()
                .submit(use_stack, deep)
                .result()
                .is_ok()
        );
        if usize::try_from(soft).is_ok_and(|soft| soft >= default) {
            assert!(
                Pool::processes(1)
                    .unwrap()
                    .submit(use_stack, deep)
                    .result()
                    .is_ok()
            );
        }
        let large = Threads::builder()
            .workers(1)
            .stack_size(96 << 20)
            .build()
            .unwrap();
        assert!(large.submit(use_stack, 90 << 20).result().is_ok());
        println!("all of it");
        return;
    }
    let output = finish_within(&mut as_program(name), DEADLINE);
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && printed.contains("all of it"),
        "{:?}\n{printed}\n{errors}",
        output.status
    );
}

// Names --------------------------------------------------------------------------------------

#[test]
fn b102_threads_and_workers_are_called_after_their_pool() {
    let _none = Leftovers::none();
    let names = |_: u32| {
        let thread = std::thread::current().name().map(str::to_owned);
        (thread, comm(), worker_index().unwrap())
    };
    let long = "a-very-long-pool-name";
    for (given, begin) in [
        (Some("render"), "render-"),
        (Some(long), "a-very-long-pool-name-"),
        (None, "manyhands-"),
    ] {
        let mut builder = Threads::builder().workers(12);
        if let Some(given) = given {
            builder = builder.name(given);
        }
        let pool = builder.build().unwrap();
        assert_eq!(given.is_some(), Some(pool.name()) == given);
        for (thread, comm, index) in pool.broadcast(names, 0).unwrap() {
            assert_eq!(thread, Some(format!("{begin}{index}")));
            let number = format!("-{index}");
            let cut = begin.len().min(16 - number.len()) - 1;
            assert_eq!(comm, format!("{}{number}", &begin[..cut]));
        }
    }
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = Processes::builder()
            .workers(2)
            .name("import")
            .start_method(method);
        let names = pool.build().unwrap().broadcast(names, 0).unwrap();
        let comms: Vec<_> = names.into_iter().map(|(_, comm, _)| comm).collect();
        assert_eq!(comms, ["import:0", "import:1"], "{method:?}");
    }
    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let expected = format!("{}:0", pool.name());
    assert_eq!(pool.submit(names, 0).result().unwrap().1, expected);
}

#[test]
fn b102_panics_are_printed_with_the_name_of_the_worker() {
    let name = "b102_panics_are_printed_with_the_name_of_the_worker";
    if is_program() {
        let fail = |text: String| -> u32 { panic!("{text}") };
        let builder = Threads::builder().workers(1).name("render");
        let pool = builder.build().unwrap();
        pool.submit(fail, "one".into()).result().unwrap_err();
        for (method, text) in [
            (StartMethod::Spawn, "two"),
            (StartMethod::ForkServer, "three"),
        ] {
            let builder = Processes::builder().workers(1).name("import");
            let pool = builder.start_method(method).build().unwrap();
            pool.submit(fail, text.into()).result().unwrap_err();
            pool.submit(fail, "once more".into()).result().unwrap_err();
        }
        // From a thread that has no name itself.
        let unnamed = std::thread::spawn(move || {
            let builder = Forked::builder().workers(1).allow_threads(true);
            let pool = builder.build().unwrap();
            println!("<{}>", pool.name());
            pool.submit(fail, "four".into()).result().unwrap_err();
        });
        unnamed.join().unwrap();
        return;
    }
    for backtrace in ["0", "1"] {
        let mut program = as_program(name);
        program
            .env("RUST_BACKTRACE", backtrace)
            .env_remove("RUST_LIB_BACKTRACE");
        let output = finish_within(&mut program, DEADLINE);
        let (printed, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{printed}\n{errors}");
        let forked = printed.split(['<', '>']).nth(1).unwrap();
        for (thread, text) in [
            ("render-0", "one"),
            ("import:0", "two"),
            ("import:0", "three"),
            (&format!("{forked}:0"), "four"),
        ] {
            let lines: Vec<_> = errors.lines().collect();
            let place = lines.iter().position(|&line| line == text).unwrap();
            let before = lines[place - 1];
            assert!(
                before.starts_with(&format!("thread '{thread}' ")),
                "{before}"
            );
            let at = format!("panicked at {}:", file!());
            assert!(before.contains(&at) && before.ends_with(':'), "{before}");
        }
        assert!(!errors.contains("<unnamed>"), "{errors}");
        let traces = errors.matches("stack backtrace:").count();
        assert_eq!(traces, if backtrace == "1" { 6 } else { 0 }, "{errors}");
        let own_frames = errors.matches("b102_panics_are_printed").count();
        assert_eq!(own_frames > 0, backtrace == "1");
    }
}

#[test]
fn b102_a_hook_of_the_program_is_called_in_workers_too() {
    let name = "b102_a_hook_of_the_program_is_called_in_workers_too";
    if is_program() {
        let pool = Processes::builder().workers(1).initializer(|| {
            std::panic::set_hook(Box::new(|info| eprintln!("own hook: {info}")));
            Ok::<_, String>(())
        });
        let fail = |(): ()| -> u32 { panic!("on purpose") };
        pool.build().unwrap().submit(fail, ()).result().unwrap_err();
        return;
    }
    let output = finish_within(&mut as_program(name), DEADLINE);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("own hook: panicked at "), "{errors}");
    assert!(!errors.contains("thread '"), "{errors}");
}

// What each worker has of its own ------------------------------------------------------------

/// The values of these variables, on each worker.
fn variables(pool: &Pool<Processes>, names: [&str; 3]) -> Vec<[Option<String>; 3]> {
    let names = names.map(str::to_owned);
    let ask = |names: [String; 3]| names.map(|name| std::env::var(name).ok());
    pool.broadcast(ask, names).unwrap()
}

#[test]
fn b103_each_worker_has_variables_of_its_own() {
    let _none = Leftovers::none();
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = Processes::builder()
            .workers(2)
            .start_method(method)
            .env_per_worker(|index| {
                [
                    ("DEVICE", format!("gpu{index}")),
                    ("OMP_NUM_THREADS", (10 + index).to_string()),
                    ("BOTH", "own".to_owned()),
                ]
            })
            .env("BOTH", "all")
            .build()
            .unwrap();
        let names = ["DEVICE", "OMP_NUM_THREADS", "BOTH"];
        let expected = [["gpu0", "10", "own"], ["gpu1", "11", "own"]];
        let expected = expected.map(|worker| worker.map(|value| Some(value.to_owned())));
        assert_eq!(variables(&pool, names), expected, "{method:?}");
        // The worker that replaces another has what that one had.
        let die = |at: usize| {
            if worker_index() == Some(at) {
                std::process::abort();
            }
        };
        pool.broadcast(die, 1).unwrap_err();
        assert_eq!(variables(&pool, names), expected, "{method:?}");
    }
}

#[test]
fn b103_variables_that_cannot_be_fail_the_pool() {
    let _none = Leftovers::none();
    let failed = |variables: fn(usize) -> Vec<(&'static str, &'static str)>| {
        let builder = Processes::builder().workers(2).env_per_worker(variables);
        match builder.build() {
            Err(PoolError::StartFailed { worker, reason, .. }) => (worker, reason),
            other => panic!("{other:?}"),
        }
    };
    let (worker, reason) = failed(|index| vec![(["GOOD", "BAD=NAME"][index], "x")]);
    assert!(
        worker == 1 && reason.contains("BAD=NAME"),
        "{worker}: {reason}"
    );
    let (worker, reason) = failed(|index| panic!("no device {index}"));
    let begin = "env_per_worker panicked: no device 0 at ";
    assert!(
        worker == 0 && reason.starts_with(begin),
        "{worker}: {reason}"
    );
}

#[test]
fn b104_the_initialiser_gets_a_value_of_the_callers() {
    let _none = Leftovers::none();
    // Longer than any message to a worker may be.
    let words: Vec<String> = (0..50_000).map(|n| format!("word {n}")).collect();
    let load = |(words, array): (Vec<String>, SharedArray<u64>)| {
        let sum: u64 = array.to_vec().unwrap().iter().sum();
        Ok::<_, String>((words, sum, worker_index()))
    };
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let array = SharedArray::from_slice(&[1u64, 2, 3]).unwrap();
        let model = (words.clone(), array);
        let builder = Processes::builder().workers(2).start_method(method);
        let pool = builder.initializer_with(&model, load).build().unwrap();
        // The pool keeps what is shared in it.
        drop(model);
        let look = |n: usize| {
            worker_state(
                |(words, sum, index): &mut (Vec<String>, u64, Option<usize>)| {
                    (words[n].clone(), *sum, *index == worker_index())
                },
            )
        };
        let expected = Some(("word 49999".to_owned(), 6, true));
        assert_eq!(pool.broadcast(look, 49_999), Ok(vec![expected.clone(); 2]));
        pool.broadcast(|()| -> u32 { std::process::abort() }, ())
            .unwrap_err();
        assert_eq!(
            pool.broadcast(look, 49_999),
            Ok(vec![expected; 2]),
            "replaced"
        );
    }
    let nothing = Processes::builder().workers(1);
    let pool = nothing
        .initializer_with(&(), |()| Ok::<_, String>(7u8))
        .build()
        .unwrap();
    assert_eq!(
        pool.broadcast(|()| worker_state(|x: &mut u8| *x), ()),
        Ok(vec![Some(7)])
    );
}

/// Encodes, and does not decode; or does not encode.
#[derive(serde::Serialize)]
enum Stuck {
    There,
    #[serde(skip)]
    Here,
}

impl<'de> serde::Deserialize<'de> for Stuck {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("one way only"))
    }
}

#[test]
fn b104_a_value_that_does_not_cross_fails_the_pool() {
    let _none = Leftovers::none();
    let build = |model: Stuck| {
        let builder = Processes::builder().workers(2);
        builder
            .initializer_with(&model, |_: Stuck| Ok::<_, String>(()))
            .build()
    };
    match build(Stuck::There) {
        // Which of the two is the first to fail cannot be known.
        Err(PoolError::InitializerFailed { reason, .. }) => {
            let begin = "its value cannot be deserialised: ";
            assert!(
                reason.starts_with(begin) && reason.contains("one way only"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    match build(Stuck::Here) {
        Err(PoolError::InvalidOption {
            option,
            value,
            reason,
            ..
        }) => {
            assert_eq!(option, "initializer_with");
            assert!(
                value.contains("Stuck") && reason.contains("serialised"),
                "{value}: {reason}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn b105_a_task_that_broadcasts_on_its_own_threads_is_refused() {
    let _none = Leftovers::none();
    let pool = Arc::new(Pool::threads(2).unwrap());
    let own = Arc::clone(&pool);
    let task = pool.submit(move |()| own.broadcast(|()| (), ()), ());
    let refused = task.result().unwrap().unwrap_err();
    assert_matches!(refused.as_pool(), Some(PoolError::System { .. }));
    assert_eq!(pool.broadcast(|()| (), ()), Ok(vec![(); 2]));
}

// When the state goes ------------------------------------------------------------------------

/// Leaves a file when it is dropped.
struct Leaves(std::path::PathBuf);

impl Drop for Leaves {
    fn drop(&mut self) {
        fs::write(self.0.join(worker_index().unwrap().to_string()), "").unwrap();
        assert!(worker_index() != Some(1), "on purpose");
    }
}

struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("identity-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// Takes out what states have left.
    fn take(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                fs::remove_file(&path).unwrap();
                path.file_name().unwrap().to_string_lossy().into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn b106_workers_drop_their_states_when_they_end_in_order() {
    let _none = Leftovers::none();
    let folder = Folder::new("processes");
    let make = |path: std::path::PathBuf| Ok::<_, String>(Leaves(path));
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let builder = || {
            let quiet = Processes::builder().stderr(manyhands::process::Stdio::null());
            quiet
                .workers(2)
                .start_method(method)
                .initializer_with(&folder.0, make)
        };
        let pool = builder().build().unwrap();
        pool.broadcast(|()| (), ()).unwrap();
        assert_eq!(folder.take(), [""; 0], "{method:?}");
        pool.close().unwrap();
        assert_eq!(folder.take(), ["0", "1"], "{method:?}");
        // A worker that has run its last task.
        let pool = builder().max_tasks_per_worker(1).build().unwrap();
        pool.broadcast(|()| (), ()).unwrap();
        common::eventually("both have left", || !folder.take().is_empty());
        pool.close().unwrap();
        folder.take();
        // What is killed drops nothing.
        drop(builder().build().unwrap());
        assert_eq!(folder.take(), [""; 0], "{method:?}");
    }
}

#[test]
fn b106_threads_drop_their_states_when_they_end() {
    let _none = Leftovers::none();
    let folder = Folder::new("threads");
    let builder = || {
        let path = folder.0.clone();
        let make = move || Ok::<_, String>(Leaves(path.clone()));
        Threads::builder().workers(2).initializer(make)
    };
    let pool = builder().build().unwrap();
    pool.broadcast(|()| (), ()).unwrap();
    assert_eq!(folder.take(), [""; 0]);
    pool.close().unwrap();
    assert_eq!(folder.take(), ["0", "1"]);
    drop(builder().build().unwrap());
    let mut left = Vec::new();
    common::eventually("both have dropped their states", || {
        left.extend(folder.take());
        left.len() == 2
    });
}
