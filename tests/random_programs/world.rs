//! What the threads of a program share: pools, handles, and what was done to them.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::process::Stdio;
use manyhands::{Shutdown, engine::WaitPolicy};
use parking_lot::Mutex;

use crate::common::eventually;
use crate::common::watch::Watch;
use crate::model::{Broken, Deeds, Given};
use crate::program::{End, Engine, Kind, Options, PoolSpec, Program, SLOTS};
use crate::task::{Answer, Event, NESTED, Nested, nested, note};

pub(crate) enum AnyPool {
    Serial(Pool<Serial>),
    Threads(Pool<Threads>),
    Processes(Pool<Processes>),
    Forked(Pool<Forked>),
}

/// The same with the pool of any engine.
macro_rules! each {
    ($any:expr, $pool:ident => $call:expr) => {
        match $any {
            $crate::world::AnyPool::Serial($pool) => $call,
            $crate::world::AnyPool::Threads($pool) => $call,
            $crate::world::AnyPool::Processes($pool) => $call,
            $crate::world::AnyPool::Forked($pool) => $call,
        }
    };
}
pub(crate) use each;

impl AnyPool {
    fn new(spec: &PoolSpec) -> Self {
        match spec.engine {
            Engine::Serial => Self::Serial(Pool::serial()),
            Engine::Threads => Self::Threads(Pool::threads(spec.workers).expect("a pool")),
            Engine::Forked => {
                let builder = Forked::builder().workers(spec.workers).allow_threads(true);
                Self::Forked(builder.build().expect("a pool"))
            }
            Engine::Processes => {
                let mut builder = Processes::builder()
                    .workers(spec.workers)
                    .stderr(Stdio::null());
                if let Some(tasks) = spec.max_tasks {
                    builder = builder.max_tasks_per_worker(tasks);
                }
                if let Some(millis) = spec.idle_timeout {
                    builder = builder.idle_timeout(Duration::from_millis(millis));
                }
                if spec.parks {
                    builder = builder.wait_policy(WaitPolicy::Park);
                }
                Self::Processes(builder.build().expect("a pool"))
            }
        }
    }

    /// Ends the pool. Returns false if tasks or callbacks had not ended when the time was over.
    fn end(&self, how: End) -> Result<bool, PoolError> {
        let ended = each!(self, pool => match how {
            End::Close => pool.close(),
            End::CloseIn(millis) => pool.close_timeout(Duration::from_millis(millis)),
            End::CancelQueued => pool.shutdown(Shutdown::CancelQueued),
            End::Kill | End::Drop => pool.shutdown(Shutdown::Kill),
        });
        match ended {
            Err(PoolError::CloseTimedOut { .. }) => Ok(false),
            ended => ended.map(|()| true),
        }
    }
}

/// What a callback was told, and how often.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) times: AtomicUsize,
    pub(crate) outcome: Mutex<Option<Result<Answer, TaskError>>>,
}

/// A handle in its slot.
pub(crate) struct Handle {
    pub(crate) future: TaskFuture<Answer>,
    pub(crate) given: Given,
    pub(crate) told: Vec<Arc<Told>>,
}

pub(crate) struct World {
    pub(crate) program: Program,
    pools: Vec<Mutex<Option<Arc<AnyPool>>>>,
    pub(crate) deeds: Vec<Deeds>,
    pub(crate) slots: [Mutex<Option<Handle>>; SLOTS],
    /// All callbacks that were registered, with the tasks' pools.
    pub(crate) told: Mutex<Vec<(usize, Arc<Told>)>>,
    /// The outcomes of the tasks whose handles were asked, and of the items of calls.
    pub(crate) ended: Mutex<Vec<(Given, bool)>>,
    /// Ids of tasks that callbacks give.
    next_id: AtomicU32,
    pub(crate) watch: Watch,
}

/// How often a task is run again, at most. `is_submitted` tells whether it is a submitted one, or
/// an item of a lazy call.
pub(crate) fn retries(engine: Engine, options: Options, is_submitted: bool) -> u32 {
    match engine {
        // It does not begin, and so does not begin again.
        _ if options.limit == Some(0) => 0,
        _ if options.policy => options.retries,
        // No thread dies alone.
        Engine::Serial | Engine::Threads => 0,
        // A forked child that was submitted is not replaced: the page of `Forked` says so.
        Engine::Forked if is_submitted => 0,
        Engine::Forked | Engine::Processes => options.retries,
    }
}

static WORLD: OnceLock<World> = OnceLock::new();

pub(crate) fn world() -> &'static World {
    WORLD.get().expect("the program has begun")
}

/// Ends the program, which has broken a rule.
pub(crate) fn fail((rule, how): Broken) -> ! {
    eprintln!("BROKEN: {rule}: {how}");
    // At once: other threads may wait for ever. The workers end with this process.
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("it can be killed");
    unreachable!("killed")
}

#[track_caller]
pub(crate) fn hold(is_so: bool, rule: &'static str, how: impl FnOnce() -> String) {
    if !is_so {
        fail((rule, how()));
    }
}

pub(crate) fn hold_all(checked: Result<(), Broken>) {
    if let Err(broken) = checked {
        fail(broken);
    }
}

impl World {
    /// Makes the pools of a program.
    pub(crate) fn begin(program: Program, watch: Watch) -> &'static Self {
        let new = |spec| Mutex::new(Some(Arc::new(AnyPool::new(spec))));
        let pools = program.pools.iter().map(new).collect();
        let deeds = program.pools.iter().map(|_| Deeds::default()).collect();
        let made = WORLD.set(Self {
            program,
            pools,
            deeds,
            slots: Default::default(),
            told: Mutex::default(),
            ended: Mutex::default(),
            next_id: AtomicU32::new(1_000_000),
            watch,
        });
        assert!(made.is_ok(), "one program for each process");
        crate::task::CALLER
            .set(|pool, n| world().call(pool, n))
            .expect("set once");
        world()
    }

    /// Whether a pool of the program is of this engine.
    pub(crate) fn has(&self, engine: Engine) -> bool {
        self.program.pools.iter().any(|pool| pool.engine == engine)
    }

    /// The number of the pool that a step names.
    pub(crate) fn number(&self, named: usize) -> usize {
        named % self.pools.len()
    }

    /// The pool, unless it was dropped. As long as the caller has it, it is not.
    pub(crate) fn pool(&self, number: usize) -> Option<Arc<AnyPool>> {
        self.pools[number].lock().clone()
    }

    pub(crate) fn next_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// What is to be expected of a task that is about to be given to a pool.
    pub(crate) fn given(&self, id: u32, pool: usize, kind: Kind, options: Options) -> Given {
        let engine = self.program.pools[pool].engine;
        Given {
            id,
            pool,
            kind: kind.on(engine, options, true),
            options,
            retries: retries(engine, options, true),
            index: None,
            since: Instant::now(),
            is_late: self.deeds[pool].has_ended.load(Ordering::SeqCst),
            is_cancelled: false,
            is_killed: false,
        }
    }

    /// The outcome of a task is there.
    pub(crate) fn settle(&self, given: Given, outcome: &Result<Answer, TaskError>) {
        hold_all(given.check(outcome, &self.deeds));
        hold_all(given.count(outcome, &self.deeds));
        self.ended.lock().push((given, outcome.is_ok()));
    }

    /// The outcome of a handle that was taken out of its slot.
    pub(crate) fn settle_handle(
        &self,
        given: Given,
        told: &[Arc<Told>],
        outcome: &Result<Answer, TaskError>,
    ) {
        for told in told {
            let times = told.times.load(Ordering::SeqCst);
            hold(
                times == 1,
                "callbacks run once, before the handle gives the outcome",
                || format!("{times} times, {given:?}"),
            );
            let seen = told.outcome.lock();
            hold(
                seen.as_ref() == Some(outcome),
                "callbacks see what the handle gives",
                || format!("{seen:?}, {outcome:?}, {given:?}"),
            );
        }
        self.settle(given, outcome);
    }

    /// A call of a task of `pool`: on this pool or on one after it, so that no two pools wait for
    /// each other.
    fn call(&self, pool: usize, n: u8) -> Nested {
        let number = pool + usize::from(n) % (self.pools.len() - pool);
        let target = self.pool(number)?;
        Some(each!(&*target, pool => pool.map(nested, NESTED)))
    }

    /// Ends a pool. In a callback it does not wait for callbacks.
    pub(crate) fn end(&self, number: usize, how: End, is_in_callback: bool) {
        let Some(pool) = self.pool(number) else {
            return;
        };
        if how == End::Drop {
            drop(pool);
            self.drop_pool(number);
            return;
        }
        let told: Vec<_> = self.told_of(number);
        let deeds = &self.deeds[number];
        deeds.ends.store(true, Ordering::SeqCst);
        if how != End::Close {
            deeds.cancels.store(true, Ordering::SeqCst);
        }
        let is_timed = matches!(how, End::CloseIn(_));
        if is_timed && self.program.pools[number].engine == Engine::Threads {
            deeds.timed_ends.fetch_add(1, Ordering::SeqCst);
        }
        let ended = pool.end(how);
        hold(ended.is_ok(), "a pool can be ended, once or twice", || {
            format!("{ended:?}")
        });
        let is_in_time = ended == Ok(true);
        hold(
            is_in_time || is_timed,
            "only an end with a time limit comes too early",
            || format!("{how:?}"),
        );
        deeds.has_ended.store(true, Ordering::SeqCst);
        // A thread cannot be stopped: the task that it runs may go on.
        let in_time = usize::from(is_timed && is_in_time);
        let goes_on = deeds.timed_ends.load(Ordering::SeqCst) > in_time;
        if !goes_on {
            self.note_end(number);
        }
        if is_in_callback || goes_on {
            return;
        }
        // Callbacks that take longer go on.
        for told in told.into_iter().filter(|_| is_in_time) {
            let times = told.times.load(Ordering::SeqCst);
            hold(
                times == 1,
                "a pool that has ended has run its callbacks",
                || format!("{times} times, pool {number}, {how:?}"),
            );
        }
        for slot in &self.slots {
            if let Some(handle) = slot.lock().as_ref().filter(|it| it.given.pool == number) {
                // A handle says so when the task's callbacks have run.
                let may_be_late = !is_in_time && !handle.told.is_empty();
                hold(
                    may_be_late || handle.future.is_done(),
                    "a pool that has ended has no task left",
                    || format!("{:?}, {how:?}", handle.given),
                );
            }
        }
    }

    /// Callbacks of the tasks of this pool that were registered before now.
    fn told_of(&self, number: usize) -> Vec<Arc<Told>> {
        let told = self.told.lock();
        let own = told.iter().filter(|(pool, _)| *pool == number);
        own.map(|(_, told)| Arc::clone(told)).collect()
    }

    /// No task of this pool may start from now on. Those of `Serial` run on their callers' threads,
    /// for which the end of the pool does not wait.
    fn note_end(&self, number: usize) {
        if self.program.pools[number].engine != Engine::Serial {
            note(Event::PoolEnded, number, 0);
        }
    }

    /// Drops a pool, when no step uses it any more.
    fn drop_pool(&self, number: usize) {
        let Some(mut pool) = self.pools[number].lock().take() else {
            return;
        };
        let deeds = &self.deeds[number];
        // Steps that come to it now find no pool.
        deeds.ends.store(true, Ordering::SeqCst);
        let mut owned = None;
        eventually("the last step on the pool has ended", || {
            match Arc::try_unwrap(std::mem::replace(
                &mut pool,
                Arc::new(AnyPool::Serial(Pool::serial())),
            )) {
                Ok(pool) => owned = Some(pool),
                Err(shared) => pool = shared,
            }
            owned.is_some()
        });
        // One that was closed has no tasks left that could be cancelled.
        if !deeds.has_ended.load(Ordering::SeqCst) {
            deeds.cancels.store(true, Ordering::SeqCst);
        }
        drop(owned);
        deeds.has_ended.store(true, Ordering::SeqCst);
        // A dropped pool of threads does not wait for the tasks that run.
        if self.program.pools[number].engine != Engine::Threads {
            self.note_end(number);
        }
    }

    /// Ends all pools, as the program wants it, and drops them.
    pub(crate) fn end_pools(&self) {
        for (number, spec) in self.program.pools.iter().enumerate() {
            let what = format!("the end of pool {number}, {:?}", spec.end);
            self.watch.during("main", &what, || {
                self.end(number, spec.end, false);
                self.drop_pool(number);
            });
        }
    }
}
