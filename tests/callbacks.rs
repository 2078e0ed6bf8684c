//! Callbacks in whole programs: at the end of one, in forked children, in single processes, and
//! when the system refuses threads. Tests that need a process of their own start this binary again
//! (`as_program`).

mod common;

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use common::errors::cancelled;
use common::{DEADLINE, Leftovers, Sleeper, as_program, eventually, finish, is_program};
use manyhands::prelude::*;
use manyhands::sync::Event;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, gettid};

fn forked() -> Pool<Forked> {
    let builder = Forked::builder().workers(2).allow_threads(true);
    builder.build().unwrap()
}

/// Runs the test `name` as a program, which must succeed; gives what it printed.
#[track_caller]
fn printed_by(name: &str) -> String {
    let output = finish(&mut as_program(name));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{:?}\n{stdout}\n{stderr}",
        output.status
    );
    stdout
}

/// Waits for messages of other callbacks in a chain of this depth, on a pool of its own, and closes
/// that.
fn chain(depth: u32) -> u32 {
    fn step(pool: &Arc<Pool<Threads>>, depth: u32, tell: Sender<u32>) {
        let task = pool.submit(|n: u32| n, depth);
        let pool = Arc::clone(pool);
        task.on_done(move |outcome| {
            let (send, receive) = channel();
            if depth > 0 {
                step(&pool, depth - 1, send);
            } else {
                send.send(0).unwrap();
            }
            let rest = receive.recv_timeout(DEADLINE).unwrap();
            tell.send(*outcome.unwrap() + rest).unwrap();
        });
    }
    let pool = Arc::new(Pool::threads(2).unwrap());
    let (send, receive) = channel();
    step(&pool, depth, send);
    let sum = receive.recv_timeout(DEADLINE).unwrap();
    pool.close().unwrap();
    sum
}

#[test]
fn a_program_that_ends_after_close_has_run_its_callbacks() {
    let name = "a_program_that_ends_after_close_has_run_its_callbacks";
    if is_program() {
        let pool = Pool::threads(2).unwrap();
        let closer = Arc::new(Sleeper::new());
        // No task ends before its callback is set: this thread would run that callback itself.
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        for n in 0..10 {
            let (gate, closer) = (Arc::clone(&gate), Arc::clone(&closer));
            let through_gate = move |n: u32| {
                drop(gate.lock().unwrap());
                n
            };
            pool.submit(through_gate, n).on_done(move |outcome| {
                closer.is_asleep();
                println!("called with {outcome:?}");
            });
        }
        drop(shut);
        closer.run(|| pool.close()).unwrap();
        std::process::exit(0);
    }
    let printed = printed_by(name);
    for n in 0..10 {
        assert!(
            printed.contains(&format!("called with Ok({n})")),
            "{printed}"
        );
    }
}

#[test]
fn callbacks_run_in_workers_children_and_single_processes() {
    let _none = Leftovers::none();
    let expected = Ok(20 * 21 / 2);
    // This process has threads for callbacks of its own meanwhile. The children have none of them.
    let (own, stop) = (Pool::threads(1).unwrap(), Arc::new(AtomicBool::new(false)));
    // It ends when its callback is there.
    let (go, may_end) = channel();
    let task = own.submit(|may_end: Receiver<()>| may_end.recv().unwrap(), may_end);
    let until = Arc::clone(&stop);
    task.on_done(move |_| {
        eventually("the test is over", || until.load(Ordering::SeqCst));
    });
    go.send(()).unwrap();
    eventually("the callback runs", || {
        common::threads().contains(&"manyhands-call".to_owned())
    });
    assert_eq!(forked().submit(chain, 20).result(), expected);
    assert_eq!(forked().map(chain, [20, 20]).map(|sums| sums[1]), expected);
    assert_eq!(
        Pool::processes(1).unwrap().submit(chain, 20).result(),
        expected
    );
    let check = |depth: u32| assert_eq!(chain(depth), depth * (depth + 1) / 2);
    let child = Process::spawn(check, 20).unwrap();
    assert!(child.join().unwrap().success());
    stop.store(true, Ordering::SeqCst);
    own.close().unwrap();
}

#[test]
fn a_forked_child_is_told_that_callbacks_are_its_parents() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let stay = |seconds: u64| thread::sleep(Duration::from_secs(seconds));
    let task = pool.submit(stay, 600);
    let called = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&called);
    task.on_done(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let task = RefCell::new(Some(task));
    let answers = forked().call().timeout(DEADLINE).map(
        |_: u32| {
            // A copy, which the parent keeps.
            let mut task = task.borrow_mut().take().unwrap();
            let (tell, told) = channel();
            let is_done = task.is_done();
            task.on_done(move |outcome| tell.send(format!("{outcome:?}")).unwrap());
            let first = format!("{:?}", task.result_timeout(DEADLINE));
            (
                is_done,
                told.try_recv().unwrap(),
                first,
                called.load(Ordering::SeqCst),
            )
        },
        0..1,
    );
    let other = "Err(Pool(OtherProcess))".to_owned();
    let expected = (true, other.clone(), format!("Ok({other})"), 0);
    assert_eq!(answers, Ok(vec![expected]));
    let task = task.into_inner().unwrap();
    assert!(task.kill());
    assert_eq!(task.result(), Err(cancelled()));
    assert_eq!(called.load(Ordering::SeqCst), 1);
}

#[test]
fn a_forked_child_shows_every_callback_an_outcome_that_it_knows() {
    let _none = Leftovers::none();
    let pool = Pool::processes(1).unwrap();
    let task = pool.submit(|n: u32| n + 1, 6);
    let (tell, told) = channel();
    task.on_done(move |_| tell.send(()).unwrap());
    told.recv().unwrap();
    eventually("the handle has the outcome", || task.is_done());
    let task = RefCell::new(Some(task));
    let answers = forked().map(
        |_: u32| {
            // A copy, which the parent keeps.
            let task = task.borrow_mut().take().unwrap();
            let (tell, told) = channel();
            for callback in 0..2 {
                let tell = tell.clone();
                let cloned = move |outcome: Result<&u32, &TaskError>| {
                    tell.send((callback, outcome.cloned().ok())).unwrap();
                };
                task.on_done(cloned);
            }
            let result = task.result().ok();
            (told.try_iter().collect::<Vec<_>>(), result)
        },
        0..1,
    );
    let told = vec![(0, Some(7)), (1, Some(7))];
    assert_eq!(answers, Ok(vec![(told, Some(7))]));
    assert_eq!(task.into_inner().unwrap().result(), Ok(7));
}

/// Waits for the end of a child, which is killed if it takes too long.
fn end_of(child: Pid) -> WaitStatus {
    let start = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive if start.elapsed() > DEADLINE / 2 => {
                common::kill(child.as_raw().unsigned_abs());
                return waitpid(child, None).unwrap();
            }
            WaitStatus::StillAlive => thread::yield_now(),
            status => return status,
        }
    }
}

#[test]
fn a_child_forked_while_callbacks_run_has_callbacks_of_its_own() {
    let name = "a_child_forked_while_callbacks_run_has_callbacks_of_its_own";
    if !is_program() {
        printed_by(name);
        return;
    }
    let pool = Pool::threads(2).unwrap();
    for _ in 0..40 {
        // Callbacks that take some 20 ms, all together.
        let tasks: Vec<_> = (0..1_000).map(|n| pool.submit(|n: u32| n, n)).collect();
        for task in &tasks {
            task.on_done(|_| {
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(20) {
                    std::hint::spin_loop();
                }
            });
        }
        // No other thread may be in the middle of something: this test is not about the locks of
        // libraries.
        eventually("the pool's threads sleep", workers_sleep);
        // SAFETY: the child takes no lock of the program's that another thread may have; that it
        // finds none of the crate's is what this test is about.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                assert_eq!(end_of(child), WaitStatus::Exited(child, 7));
            }
            ForkResult::Child => {
                let sum = chain(2);
                // SAFETY: it ends the process, and nothing else is to run here.
                unsafe { libc::_exit(if sum == 3 { 7 } else { 8 }) }
            }
        }
    }
}

/// Whether all threads of pools of threads are asleep.
fn workers_sleep() -> bool {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let is_worker = stat.contains("(manyhands-0)") || stat.contains("(manyhands-1)");
        !is_worker || stat.contains(") S ")
    })
}

#[test]
fn a_copy_of_a_callback_that_forks_ends() {
    let name = "a_copy_of_a_callback_that_forks_ends";
    if !is_program() {
        let printed = printed_by(name);
        assert_eq!(printed.matches("second in").count(), 1, "{printed}");
        return;
    }
    let pool = Pool::threads(1).unwrap();
    let (open, gate) = channel::<()>();
    let task = pool.submit(
        |gate: Mutex<Receiver<()>>| gate.lock().unwrap().recv(),
        Mutex::new(gate),
    );
    let child = Arc::new(Mutex::new(None));
    let note = Arc::clone(&child);
    task.on_done(move |_| {
        // SAFETY: the child does nothing but return from here.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            *note.lock().unwrap() = Some(child);
        }
    });
    task.on_done(|_| println!("second in {}", std::process::id()));
    open.send(()).unwrap();
    pool.close().unwrap();
    let child = child.lock().unwrap().unwrap();
    assert_eq!(end_of(child), WaitStatus::Exited(child, 0));
}

/// Returns whether the other threads of this process wait, all at the same time: each was asleep at
/// two looks, and has not run between them.
fn others_wait() -> bool {
    let own = gettid().to_string();
    let look = || {
        let threads = fs::read_dir("/proc/self/task").unwrap();
        let ids = threads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        ids.filter(|id| *id != own)
            .map(|id| {
                let status = fs::read_to_string(format!("/proc/self/task/{id}/status")).ok()?;
                let (_, switches) = status.split_once("voluntary_ctxt_switches:")?;
                let asleep = status.contains("State:\tS");
                asleep.then(|| (id, switches.to_owned()))
            })
            .collect::<Option<Vec<_>>>()
    };
    let first = look();
    first.is_some() && first == look()
}

/// Leaves so little address space that no thread can be started, until this goes.
struct NoThreads {
    limits: (u64, u64),
    /// These threads have the stacks that the C library had kept.
    parked: Vec<(Sender<()>, JoinHandle<()>)>,
}

impl NoThreads {
    /// Waits until the other threads have started and wait: one that sets up its signal stack
    /// without room for it ends the program.
    fn begin() -> Self {
        eventually("the other threads wait", others_wait);
        let limits = getrlimit(Resource::RLIMIT_AS).unwrap();
        let sizes = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
        // A stack takes 2 MiB.
        setrlimit(Resource::RLIMIT_AS, pages * 4_096 + (1 << 20), limits.1).unwrap();
        let mut parked = Vec::new();
        loop {
            let (stay, until) = channel::<()>();
            let (tell, has_started) = channel();
            let wait = move || {
                tell.send(()).unwrap();
                until.recv().unwrap_or(());
            };
            let Ok(thread) = thread::Builder::new().spawn(wait) else {
                break;
            };
            has_started.recv().unwrap();
            parked.push((stay, thread));
        }
        Self { limits, parked }
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_AS, self.limits.0, self.limits.1).unwrap();
        // What threads in their end give back would be room for others, which could start in it but
        // not set up their signal stacks.
        for (stay, thread) in self.parked.drain(..) {
            drop(stay);
            thread.join().unwrap();
        }
    }
}

#[test]
fn callbacks_run_though_the_system_refuses_threads() {
    let name = "callbacks_run_though_the_system_refuses_threads";
    if !is_program() {
        printed_by(name);
        return;
    }
    let pool = Pool::threads(2).unwrap();
    // Both workers run: a thread that begins without memory for its signal stack ends the program.
    let barrier = Barrier::new(2);
    let leaders = pool.map(|()| barrier.wait().is_leader(), [(); 2]).unwrap();
    assert_ne!(leaders[0], leaders[1]);
    let (tell, told) = channel();
    let gate = Arc::new(Mutex::new(()));
    // A task with a callback, which ends when `gate` is open.
    let submit = |n: u32| {
        let gate = Arc::clone(&gate);
        let wait = move |n: u32| {
            drop(gate.lock());
            n
        };
        let task = pool.submit(wait, n);
        let tell = tell.clone();
        task.on_done(move |outcome| tell.send(*outcome.unwrap()).unwrap());
        task
    };
    // No thread can be started at all.
    let closed = gate.lock().unwrap();
    let tasks = [1, 2, 3].map(submit);
    let refused = NoThreads::begin();
    drop(closed);
    for _ in 0..3 {
        told.recv_timeout(DEADLINE).unwrap();
    }
    assert_eq!(tasks.map(TaskFuture::result), [Ok(1), Ok(2), Ok(3)]);
    assert!(!common::threads().contains(&"manyhands-call".to_owned()));
    drop(refused);
    // One thread runs callbacks. Its callback waits for a message of a callback behind it.
    let closed = gate.lock().unwrap();
    let (send, receive) = channel();
    let (go, may_end) = channel();
    let wait = |may_end: Receiver<u32>| may_end.recv().unwrap();
    // It ends when its callback is there: otherwise this thread would call that in `on_done`.
    let first = pool.submit(wait, may_end);
    let (tell, has_begun) = channel();
    first.on_done(move |_| {
        tell.send(()).unwrap();
        receive.recv().unwrap();
    });
    go.send(4).unwrap();
    has_begun.recv_timeout(DEADLINE).unwrap();
    let second = submit(5);
    second.on_done(move |_| send.send(()).unwrap());
    let refused = NoThreads::begin();
    drop(closed);
    assert_eq!(told.recv_timeout(DEADLINE), Ok(5));
    assert_eq!((first.result(), second.result()), (Ok(4), Ok(5)));
    drop(refused);
    // Now as many threads start as are wanted.
    assert_eq!(chain(10), 55);
    pool.close().unwrap();
}

#[test]
fn b40_a_pool_of_threads_that_cannot_all_be_started_leaves_none() {
    let name = "b40_a_pool_of_threads_that_cannot_all_be_started_leaves_none";
    if !is_program() {
        printed_by(name);
        return;
    }
    let refused = NoThreads::begin();
    // Room for one more stack.
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, soft + (5 << 19), hard).unwrap();
    let threads = || Threads::builder().workers(3).stack_size(2 << 20).build();
    let failed = threads().map(drop);
    let left = common::threads();
    drop(refused);
    let Err(PoolError::StartFailed {
        worker: 1,
        workers: 3,
        ..
    }) = failed
    else {
        panic!("{failed:?}")
    };
    assert_eq!(left, [""; 0]);
    let pool = Pool::threads(3).unwrap();
    assert_eq!(pool.map(|n: u32| n, 0..3), Ok(vec![0, 1, 2]));
}

#[test]
fn the_programs_signals_are_kept_away_from_callbacks() {
    let _none = Leftovers::none();
    let pool = Pool::threads(1).unwrap();
    let (go, may_end) = channel();
    let task = pool.submit(|may_end: Receiver<()>| may_end.recv().unwrap(), may_end);
    let (tell, told) = channel();
    task.on_done(move |_| {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        tell.send(blocked.unwrap().trim().to_owned()).unwrap();
    });
    go.send(()).unwrap();
    let blocked = u64::from_str_radix(&told.recv_timeout(DEADLINE).unwrap(), 16).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD] {
        assert!(blocked >> (signal - 1) & 1 == 1, "{signal}: {blocked:x}");
    }
    pool.close().unwrap();
}

#[test]
fn a_copy_of_a_callback_that_forks_on_a_thread_of_the_pool_ends() {
    let name = "a_copy_of_a_callback_that_forks_on_a_thread_of_the_pool_ends";
    if !is_program() {
        let printed = printed_by(name);
        assert_eq!(printed.matches("second in").count(), 1, "{printed}");
        return;
    }
    let pool = Pool::processes(1).unwrap();
    let gate = Event::new().unwrap();
    let wait = |gate: Event| gate.wait();
    let task = pool.submit(wait, gate.clone());
    let (tell, told) = channel();
    task.on_done(move |_| {
        // SAFETY: the child does nothing but return from here.
        if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
            tell.send(child).unwrap();
        }
    });
    let other = pool.submit(|()| (), ());
    other.on_done(|_| println!("second in {}", std::process::id()));
    let refused = NoThreads::begin();
    gate.set();
    let child = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(end_of(child), WaitStatus::Exited(child, 0));
    drop(refused);
    pool.close().unwrap();
}

/// A waker that forks, and panics in the copy if it is told to.
struct Forks {
    panics: bool,
    tell: Sender<Pid>,
}

impl Wake for Forks {
    fn wake(self: Arc<Self>) {
        // SAFETY: the child does nothing but return from here, or panic.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => self.tell.send(child).unwrap(),
            ForkResult::Child => assert!(!self.panics, "in the copy"),
        }
    }
}

#[test]
fn a_copy_of_a_waker_that_forks_ends() {
    fn check<E: Executor>(pool: &Pool<E>, submit: impl Fn(Event) -> TaskFuture<()>) {
        for panics in [false, true] {
            let (tell, told) = channel();
            let waker = Waker::from(Arc::new(Forks { panics, tell }));
            let mut context = Context::from_waker(&waker);
            let gate = Event::new().unwrap();
            let mut task = submit(gate.clone());
            assert!(Pin::new(&mut task).poll(&mut context).is_pending());
            gate.set();
            let child = told.recv_timeout(DEADLINE).unwrap();
            let code = if panics { 101 } else { 0 };
            let name = pool.engine().kind();
            assert_eq!(end_of(child), WaitStatus::Exited(child, code), "{name}");
            task.result().unwrap();
        }
    }
    let name = "a_copy_of_a_waker_that_forks_ends";
    if !is_program() {
        printed_by(name);
        return;
    }
    let wait = |gate: Event| gate.wait();
    let pool = Pool::processes(1).unwrap();
    check(&pool, |gate| pool.submit(wait, gate));
    let pool = Pool::threads(1).unwrap();
    check(&pool, |gate| pool.submit(wait, gate));
    let pool = forked();
    check(&pool, |gate| pool.submit(wait, gate));
}

/// A waker that drops a pool.
struct Drops<E: Executor>(Mutex<Option<Pool<E>>>, Sender<()>);

impl<E: Executor + Send> Wake for Drops<E> {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
        self.1.send(()).unwrap();
    }
}

#[test]
fn a_waker_drops_the_pool_whose_thread_wakes_it() {
    fn check<E>(pool: Pool<E>, submit: impl Fn(&Pool<E>, Event) -> TaskFuture<()>)
    where
        E: Executor + Send + 'static,
    {
        let (send, receive) = channel();
        let gate = Event::new().unwrap();
        let mut task = submit(&pool, gate.clone());
        let waker = Waker::from(Arc::new(Drops(Mutex::new(Some(pool)), send)));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut task).poll(&mut context).is_pending());
        gate.set();
        receive.recv_timeout(DEADLINE).unwrap();
    }
    let _none = Leftovers::none();
    let wait = |gate: Event| gate.wait();
    let die = |gate: Event| {
        gate.wait();
        common::kill(std::process::id());
    };
    check(Pool::threads(1).unwrap(), |pool, gate| {
        pool.submit(wait, gate)
    });
    check(forked(), |pool, gate| pool.submit(wait, gate));
    // The thread that pumps, and the one that sees a worker die.
    check(Pool::processes(1).unwrap(), |pool, gate| {
        pool.submit(wait, gate)
    });
    check(Pool::processes(1).unwrap(), |pool, gate| {
        pool.submit(die, gate)
    });
}

#[test]
fn callbacks_of_two_pools_close_each_others_pool() {
    let _none = Leftovers::none();
    let pools = [Pool::threads(1).unwrap(), Pool::threads(1).unwrap()].map(Arc::new);
    let both = Arc::new(Barrier::new(2));
    let (tell, told) = channel();
    let gate = Event::new().unwrap();
    for (own, other) in [(0, 1), (1, 0)] {
        let (other, both, tell) = (pools[other].clone(), both.clone(), tell.clone());
        let task = pools[own].submit(|gate: Event| gate.wait(), gate.clone());
        task.on_done(move |_| {
            both.wait();
            tell.send(other.close()).unwrap();
        });
    }
    gate.set();
    for _ in 0..2 {
        assert_eq!(told.recv_timeout(DEADLINE), Ok(Ok(())));
    }
}

#[test]
fn wakers_of_two_pools_drop_each_others_pool() {
    /// Wakes when the other one is awake too.
    struct Meets(Drops<Processes>, Arc<Barrier>);
    impl Wake for Meets {
        fn wake(self: Arc<Self>) {
            self.1.wait();
            drop(self.0.0.lock().unwrap().take());
            self.0.1.send(()).unwrap();
        }
    }
    let name = "wakers_of_two_pools_drop_each_others_pool";
    let _none = Leftovers::none();
    if !is_program() {
        printed_by(name);
        return;
    }
    let wait = |gate: Event| gate.wait();
    let die = |gate: Event| {
        gate.wait();
        common::kill(std::process::id());
    };
    // The threads that pump, and those that see a worker die.
    for dies in [false, true] {
        let (one, other) = (Pool::processes(1).unwrap(), Pool::processes(1).unwrap());
        let both = Arc::new(Barrier::new(2));
        let (send, receive) = channel();
        let gate = Event::new().unwrap();
        let submit = |pool: &Pool<Processes>| {
            if dies {
                pool.submit(die, gate.clone())
            } else {
                pool.submit(wait, gate.clone())
            }
        };
        let mut tasks = [submit(&one), submit(&other)];
        for (task, pool) in tasks.iter_mut().zip([other, one]) {
            let drops = Drops(Mutex::new(Some(pool)), send.clone());
            let waker = Waker::from(Arc::new(Meets(drops, both.clone())));
            let mut context = Context::from_waker(&waker);
            assert!(Pin::new(task).poll(&mut context).is_pending());
        }
        gate.set();
        for _ in 0..2 {
            receive.recv_timeout(DEADLINE / 3).unwrap();
        }
    }
}
