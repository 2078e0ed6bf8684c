//! What runs in forked children before their tasks (`at_fork_child`), and what forked children have
//! that is their own.
//!
//! Hooks stay for the life of a process, so tests that register some run as programs of their own
//! (`as_program`). Test harnesses run other threads, so forking is allowed here by `allow_threads`.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::errors::task_timed_out;
use common::{DEADLINE, Leftovers, as_program, eventually, finish, is_program};
use manyhands::engine::ProcessesBuilder;
use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::{SharedArray, process};
use manyhands::{at_fork_child, closure, item_seed, worker_seed, worker_state};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Which hooks have run in this process, in order.
static RAN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn note(hook: u32) {
    RAN.lock().unwrap().push(hook);
}

fn ran() -> Vec<u32> {
    RAN.lock().unwrap().clone()
}

fn forked(workers: usize) -> Pool<Forked> {
    let builder = Forked::builder().workers(workers).allow_threads(true);
    builder.build().unwrap()
}

fn builder(method: StartMethod) -> ProcessesBuilder {
    Processes::builder()
        .workers(2)
        .start_method(method)
        .allow_threads(true)
}

/// A number that this process shares with the children that are forked from it. Nothing is left
/// behind when a hook keeps it for ever.
fn shared_number() -> &'static AtomicU32 {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4_096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the page is aligned, holds zeros, is never unmapped, and all its users take it for
    // this.
    unsafe { &*page.cast::<AtomicU32>() }
}

/// Runs `test` in a program of its own, and here what started it.
fn alone(name: &str, test: impl FnOnce()) {
    let _none = Leftovers::none();
    if is_program() {
        test();
        return;
    }
    let output = finish(&mut as_program(name));
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

#[test]
fn hooks_run_once_in_each_forked_child_in_order_and_not_in_the_parent() {
    alone(
        "hooks_run_once_in_each_forked_child_in_order_and_not_in_the_parent",
        || {
            at_fork_child(|| note(1));
            let two = 2;
            at_fork_child(move || note(two));
            let pool = forked(2);
            let ask = |_: u32| (std::process::id(), ran());
            let right = |(pid, ran): &(u32, Vec<u32>)| *pid != std::process::id() && *ran == [1, 2];
            assert!(pool.map(ask, 0..20).unwrap().iter().all(right));
            assert!(pool.imap(ask, 0..5).all(|told| right(&told.unwrap())));
            assert!(right(&pool.submit(ask, 0).result().unwrap()));
            // A child's child has what the child had, and runs them again.
            let nested = |_: u32| forked(1).submit(|_: u32| ran(), 0).result().unwrap();
            assert_eq!(pool.submit(nested, 0).result(), Ok(vec![1, 2, 1, 2]));
            assert_eq!(ran(), [0; 0]);
            at_fork_child(|| note(3));
            assert_eq!(pool.submit(|_: u32| ran(), 0).result(), Ok(vec![1, 2, 3]));
        },
    );
}

#[test]
fn a_hook_that_a_hook_registers_runs_in_the_children_of_the_child() {
    alone(
        "a_hook_that_a_hook_registers_runs_in_the_children_of_the_child",
        || {
            at_fork_child(|| {
                note(1);
                at_fork_child(|| note(2));
            });
            let nested = |_: u32| (ran(), forked(1).submit(|_: u32| ran(), 0).result().unwrap());
            let told = forked(1).submit(nested, 0).result();
            assert_eq!(told, Ok((vec![1], vec![1, 1, 2])));
        },
    );
}

#[test]
fn hooks_run_in_each_forked_worker_and_its_replacements_before_the_initialiser() {
    alone(
        "hooks_run_in_each_forked_worker_and_its_replacements_before_the_initialiser",
        || {
            at_fork_child(|| note(1));
            let two = 2;
            at_fork_child(move || note(two));
            let initial = || Ok::<_, String>(ran());
            let ask = |_: u32| {
                let found = worker_state(|found: &mut Vec<u32>| found.clone());
                (std::process::id(), found.unwrap(), ran())
            };
            // A server that starts anew has no hook that captures.
            let expected: [(StartMethod, &[u32]); 3] = [
                (StartMethod::Fork, &[1, 2]),
                (StartMethod::ForkServer, &[1]),
                (StartMethod::Spawn, &[]),
            ];
            for (method, hooks) in expected {
                let pool = builder(method).initializer(initial).max_tasks_per_worker(2);
                let pool = pool.build().unwrap();
                // Too late for a pool that is there.
                if method == StartMethod::Spawn {
                    at_fork_child(|| note(3));
                }
                let mut pids = BTreeSet::new();
                for n in 0..8 {
                    let (pid, found, ran) = pool.submit(ask, n).result().unwrap();
                    assert_eq!(
                        (found.as_slice(), ran.as_slice()),
                        (hooks, hooks),
                        "{method:?}"
                    );
                    pids.insert(pid);
                }
                assert!(pids.len() >= 4, "{method:?}: two tasks each");
            }
            assert_eq!(ran(), [0; 0]);
        },
    );
}

#[test]
fn hooks_that_preload_registers_run_in_the_workers_after_those_of_the_parent() {
    alone(
        "hooks_that_preload_registers_run_in_the_workers_after_those_of_the_parent",
        || {
            let load = || {
                let two = 2;
                at_fork_child(move || note(two));
                at_fork_child(|| note(3));
                Ok::<(), String>(())
            };
            at_fork_child(|| note(1));
            let pool = builder(StartMethod::ForkServer)
                .preload(load)
                .build()
                .unwrap();
            for n in 0..4 {
                assert_eq!(pool.submit(|_: u32| ran(), n).result(), Ok(vec![1, 2, 3]));
            }
        },
    );
}

#[test]
fn hooks_reach_the_workers_of_a_server_that_a_worker_has_started() {
    alone(
        "hooks_reach_the_workers_of_a_server_that_a_worker_has_started",
        || {
            at_fork_child(|| note(1));
            at_fork_child(|| note(2));
            let nested = |_: u32| {
                let pool = builder(StartMethod::ForkServer).workers(1).build();
                let inner = pool.unwrap().submit(|_: u32| ran(), 0).result();
                (ran(), inner.unwrap())
            };
            let pool = builder(StartMethod::ForkServer).workers(1).build();
            let told = pool.unwrap().submit(nested, 0).result();
            assert_eq!(told, Ok((vec![1, 2], vec![1, 2])));
        },
    );
}

#[test]
fn a_hook_is_at_no_item_though_its_parent_is_at_one() {
    alone("a_hook_is_at_no_item_though_its_parent_is_at_one", || {
        at_fork_child(|| note(u32::from(item_seed().is_some())));
        let of_submit = |_: u32| forked(1).submit(|_: u32| ran(), 0).result().unwrap();
        let of_map = |_: u32| forked(1).map(|_: u32| ran(), [0]).unwrap().remove(0);
        let serial = Pool::serial();
        assert_eq!(serial.map(of_submit, [0]), Ok(vec![vec![0]]));
        assert_eq!(serial.map(of_map, [0]), Ok(vec![vec![0]]));
        let nested = forked(1).map(of_map, [0]);
        assert_eq!(nested, Ok(vec![vec![0, 0]]));
    });
}

#[test]
fn hooks_do_not_run_in_a_child_process_that_begins_anew() {
    alone(
        "hooks_do_not_run_in_a_child_process_that_begins_anew",
        || {
            at_fork_child(|| note(1));
            let child = Process::spawn(|()| assert_eq!(ran(), [0; 0]), ()).unwrap();
            assert_eq!(child.join(), Ok(process::ExitStatus::Exit(0)));
        },
    );
}

#[test]
fn a_hook_that_panics_fails_what_the_child_was_to_do() {
    alone("a_hook_that_panics_fails_what_the_child_was_to_do", || {
        let start = Instant::now();
        at_fork_child(|| panic!("no dice"));
        at_fork_child(|| note(2));
        let said = |outcome: Result<Vec<u32>, TaskError>| match outcome {
            Err(TaskError::Panicked {
                message, location, ..
            }) => {
                assert_eq!(message, "an after-fork hook panicked: no dice");
                assert!(location.unwrap().file.ends_with("fork_hooks.rs"));
            }
            other => panic!("{other:?}"),
        };
        let pool = forked(2);
        said(pool.map(|n: u32| n, 0..50));
        for outcome in pool.map_outcomes(|_: u32| ran(), 0..10) {
            said(outcome);
        }
        for outcome in pool.imap(|_: u32| ran(), 0..3) {
            said(outcome);
        }
        said(pool.submit(|_: u32| ran(), 0).result());
        for method in [StartMethod::Fork, StartMethod::ForkServer] {
            let failed = builder(method).build().map(drop).unwrap_err().to_string();
            assert!(
                failed.contains("an after-fork hook panicked: no dice at "),
                "{failed}"
            );
        }
        assert!(start.elapsed() < DEADLINE);
    });
}

#[test]
fn a_copy_that_a_hook_has_forked_does_no_work_of_the_child() {
    alone(
        "a_copy_that_a_hook_has_forked_does_no_work_of_the_child",
        || {
            static COPY: AtomicU32 = AtomicU32::new(0);
            at_fork_child(|| {
                // SAFETY: the child returns from here, and is to end then.
                let copy = unsafe { libc::fork() };
                COPY.store(copy.unsigned_abs(), Ordering::Relaxed);
            });
            // The copy's end, as its parent hears of it.
            let end = |_: u32| {
                let copy = Pid::from_raw(COPY.load(Ordering::Relaxed).cast_signed());
                let start = Instant::now();
                loop {
                    match waitpid(copy, Some(WaitPidFlag::WNOHANG)) {
                        Ok(WaitStatus::StillAlive) if start.elapsed() < DEADLINE / 4 => {
                            std::thread::yield_now();
                        }
                        end => return end == Ok(WaitStatus::Exited(copy, 0)),
                    }
                }
            };
            assert_eq!(forked(1).submit(end, 0).result(), Ok(true));
            assert_eq!(forked(1).map(end, [0]), Ok(vec![true]));
            for method in [StartMethod::Fork, StartMethod::ForkServer] {
                let pool = builder(method).workers(1).build().unwrap();
                assert_eq!(pool.submit(end, 0).result(), Ok(true), "{method:?}");
                let doubled = pool.map(|n: u32| 2 * n, 0..100);
                assert!(doubled.unwrap().into_iter().eq((0..100).map(|n| 2 * n)));
            }
        },
    );
}

#[test]
fn hooks_may_take_as_long_as_they_like() {
    alone("hooks_may_take_as_long_as_they_like", || {
        let runs = shared_number();
        // Longer than a child may be at no item otherwise.
        at_fork_child(move || {
            runs.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1_600));
        });
        // The limit is that of the item.
        let pool = forked(1);
        let limited = pool.call().timeout(Duration::from_millis(300));
        let task = limited.submit(|n: u32| n, 1);
        let limited = forked(1)
            .call()
            .timeout(Duration::from_millis(300))
            .map(|n: u32| n, [2, 3]);
        assert_eq!((task.result(), limited), (Ok(1), Ok(vec![2, 3])));
        assert_eq!(runs.load(Ordering::Relaxed), 2, "a child was replaced");
    });
}

#[test]
fn a_child_that_is_stopped_in_a_hook_is_replaced() {
    alone("a_child_that_is_stopped_in_a_hook_is_replaced", || {
        let runs = shared_number();
        at_fork_child(move || {
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                raise(Signal::SIGSTOP).unwrap();
            }
        });
        assert_eq!(forked(1).map(|n: u32| n, [2, 3]), Ok(vec![2, 3]));
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_task_that_is_stopped_in_a_hook_has_a_limit_though_only_its_callback_waits() {
    alone(
        "a_task_that_is_stopped_in_a_hook_has_a_limit_though_only_its_callback_waits",
        || {
            at_fork_child(|| raise(Signal::SIGSTOP).unwrap());
            let (pool, limit) = (forked(1), Duration::from_millis(100));
            let task = pool.call().timeout(limit).submit(|n: u32| n, 1);
            let (tell, told) = std::sync::mpsc::channel();
            task.on_done(move |outcome| {
                tell.send(outcome.copied().map_err(Clone::clone)).unwrap();
            });
            let overdue = Err(task_timed_out(task.id(), limit));
            assert_eq!(told.recv_timeout(DEADLINE / 3), Ok(overdue));
        },
    );
}

#[test]
fn a_child_whose_hook_panics_takes_no_more_than_one_chunk_with_it() {
    alone(
        "a_child_whose_hook_panics_takes_no_more_than_one_chunk_with_it",
        || {
            let runs = shared_number();
            at_fork_child(move || {
                assert!(
                    runs.fetch_add(1, Ordering::Relaxed) > 0,
                    "no dice, this once"
                );
            });
            // One child at a time: the first one claims a chunk, and has the others left to claim.
            let pool = forked(1);
            let outcomes = pool.call().chunk_size(3).map_outcomes(|n: u32| n, 0..99);
            assert_eq!(
                outcomes.iter().filter(|outcome| outcome.is_err()).count(),
                3
            );
        },
    );
}

#[test]
fn a_hook_that_panics_is_not_taken_for_the_initializer() {
    alone(
        "a_hook_that_panics_is_not_taken_for_the_initializer",
        || {
            at_fork_child(|| panic!("no dice"));
            let builder = builder(StartMethod::Fork).initializer(|| Ok::<(), String>(()));
            let built = builder.build();
            let Err(PoolError::StartFailed { reason, .. }) = &built else {
                panic!("{built:?}");
            };
            assert!(reason.contains("no dice"), "{reason}");
        },
    );
}

#[test]
fn hooks_may_be_registered_while_other_threads_fork() {
    alone("hooks_may_be_registered_while_other_threads_fork", || {
        static HOOKS: AtomicU32 = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let registering = scope.spawn(|| {
                for hook in 1..=300 {
                    at_fork_child(move || note(hook));
                    HOOKS.store(hook, Ordering::Release);
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            let pool = forked(2);
            while !registering.is_finished() {
                let before = HOOKS.load(Ordering::Acquire) as usize;
                let ran = pool.submit(|_: u32| ran(), 0).result().unwrap();
                assert!(ran.len() >= before && ran.iter().copied().eq(1..=ran.len() as u32));
            }
        });
    });
}

/// A folder in which the two processes of a call wait for each other.
struct Meeting {
    folder: PathBuf,
    calls: Cell<u32>,
}

impl Meeting {
    fn new() -> Self {
        let folder = format!("manyhands-fork-hooks-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let calls = Cell::new(0);
        Self { folder, calls }
    }

    /// The items of one call.
    fn items(&self, count: usize) -> Vec<PathBuf> {
        self.calls.set(self.calls.get() + 1);
        let folder = self.folder.join(self.calls.get().to_string());
        std::fs::create_dir(&folder).unwrap();
        vec![folder; count]
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A random number, once both processes have an item of this call.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature of an item's function"
)]
fn roll_together(folder: PathBuf) -> u64 {
    std::fs::write(folder.join(std::process::id().to_string()), "").unwrap();
    eventually("the other process has an item too", || {
        std::fs::read_dir(&folder).unwrap().count() >= 2
    });
    rand::random()
}

#[test]
fn random_numbers_of_forked_children_differ_with_a_hook_that_reseeds() {
    let load = || {
        let _: u64 = rand::random();
        Ok::<(), String>(())
    };
    alone(
        "random_numbers_of_forked_children_differ_with_a_hook_that_reseeds",
        || {
            // Gives this thread a generator, which the children copy.
            let own: u64 = rand::random();
            at_fork_child(|| rand::rng().reseed().unwrap());
            let mut all = vec![own];
            let meeting = Meeting::new();
            let pool = forked(2);
            let call = pool.call().chunk_size(1);
            all.extend(call.map(roll_together, meeting.items(16)).unwrap());
            let rolled = pool.imap(roll_together, meeting.items(16));
            all.extend(rolled.map(Result::unwrap));
            let roll = |()| rand::random::<u64>();
            all.extend((0..8).map(|_| pool.submit(roll, ()).result().unwrap()));
            for pool in [
                builder(StartMethod::Fork).build().unwrap(),
                builder(StartMethod::ForkServer)
                    .preload(load)
                    .build()
                    .unwrap(),
            ] {
                let call = pool.call().chunk_size(1);
                all.extend(call.map(roll_together, meeting.items(16)).unwrap());
            }
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!(distinct.len(), all.len());
        },
    );
}

#[test]
fn each_worker_has_a_seed_of_its_own() {
    let _none = Leftovers::none();
    let mut seeds = BTreeSet::from([worker_seed()]);
    let mut add = |told: Vec<(u32, u64)>, what: &str| {
        let told: BTreeSet<_> = told.into_iter().collect();
        let pids: BTreeSet<_> = told.iter().map(|(worker, _)| worker).collect();
        assert_eq!(pids.len(), told.len(), "{what}: one worker, one seed");
        for (_, seed) in told {
            assert!(seeds.insert(seed), "{what}: two workers, one seed");
        }
    };
    let ask = |_: u32| (std::process::id(), worker_seed());
    for method in [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::ForkServer,
    ] {
        let pool = builder(method).max_tasks_per_worker(3).build().unwrap();
        let told = (0..12).map(|n| pool.submit(ask, n).result().unwrap());
        add(told.collect(), &format!("{method:?}"));
    }
    let pool = forked(2);
    add(pool.imap(ask, 0..8).map(Result::unwrap).collect(), "forked");
    let threads = Pool::threads(3).unwrap();
    let ask = |_: u32| {
        let thread = nix::unistd::gettid().as_raw().unsigned_abs();
        (thread, worker_seed())
    };
    add(threads.map(ask, 0..100).unwrap(), "threads");
}

#[test]
fn calls_of_forked_children_have_seeds_of_their_own() {
    let _none = Leftovers::none();
    // Gives this thread a generator of seeds, which the children copy.
    Pool::serial().map(|_: u32| item_seed(), 0..3).unwrap();
    let nested = |_: u32| {
        Pool::serial()
            .map(|_: u32| item_seed().unwrap(), 0..2)
            .unwrap()
    };
    let all: Vec<u64> = forked(2)
        .imap(nested, 0..6)
        .flat_map(Result::unwrap)
        .collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 12);
}

#[test]
fn an_item_that_is_run_again_has_the_seed_that_it_had() {
    let _none = Leftovers::none();
    let first: SharedArray<u64> = SharedArray::zeros(40).unwrap();
    let dies_once = closure!([first] |index: usize| {
        let seed = item_seed().unwrap();
        let seeds = first.try_atomics().unwrap();
        if index.is_multiple_of(5) && seeds[index].swap(seed, Ordering::Relaxed) == 0 {
            std::process::abort();
        }
        seed
    });
    let quiet = builder(StartMethod::Spawn)
        .stderr(Stdio::null())
        .build()
        .unwrap();
    let again = quiet
        .call()
        .seed(1)
        .retries(1)
        .map(dies_once.clone(), 0..40);
    let expected = Pool::serial()
        .call()
        .seed(1)
        .map(|_: usize| item_seed().unwrap(), 0..40);
    assert_eq!(again, expected);
    let died: Vec<u64> = first.to_vec().unwrap().into_iter().step_by(5).collect();
    assert!(
        died.into_iter()
            .eq(expected.clone().unwrap().into_iter().step_by(5))
    );

    first.fill(0).unwrap();
    let again = forked(2).call().seed(1).retries(1).map(dies_once, 0..40);
    assert_eq!(again, expected);
}

#[test]
fn chunks_of_an_array_have_the_seeds_of_their_indices() {
    let _none = Leftovers::none();
    let expected = Pool::serial()
        .call()
        .seed(3)
        .map(|_: u32| item_seed().unwrap(), 0..25);
    let engines = ["serial", "threads:2", "processes:2"];
    let pools = engines.map(|engine| engine.parse::<Pool<AnyEngine>>().unwrap());
    for pool in pools.into_iter().chain([Pool::from(forked(2))]) {
        let mut array = SharedArray::<u64>::zeros(100).unwrap();
        let fill = |_: usize, chunk: &mut [u64]| chunk.fill(item_seed().unwrap());
        pool.call()
            .seed(3)
            .for_each_chunk(&mut array, 4, fill)
            .unwrap();
        let seeds: Vec<u64> = array.to_vec().unwrap().into_iter().step_by(4).collect();
        assert_eq!(Ok(seeds), expected, "{}", pool.engine().kind());
    }
}

#[test]
fn items_after_one_that_cannot_be_sent_have_their_own_seeds() {
    #[derive(serde::Deserialize)]
    struct Picky(u32);
    impl serde::Serialize for Picky {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 % 7 == 2 || self.0 < 2 {
                return Err(serde::ser::Error::custom("stays here"));
            }
            serializer.serialize_newtype_struct("Picky", &self.0)
        }
    }
    let _none = Leftovers::none();
    let pool = Pool::processes(2).unwrap();
    let expected = Pool::serial()
        .call()
        .seed(3)
        .map(|_: u32| item_seed(), 0..100);
    let call = pool.call().seed(3).chunk_size(30);
    let each = call.map_outcomes(|_: Picky| item_seed(), (0..100).map(Picky));
    for (index, (outcome, expected)) in each.into_iter().zip(expected.unwrap()).enumerate() {
        match outcome {
            Ok(seed) => assert_eq!(seed, expected, "item {index}"),
            Err(error) => assert!(matches!(error, TaskError::Encode { .. }), "{error:?}"),
        }
    }
}
