//! The steps that a thread of a program makes, except for its calls.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::{ReturnWhen, as_completed, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls;
use crate::common::children_of;
use crate::model::{Deeds, may_be_those_of};
use crate::program::{Callback, End, Engine, How, Kind, Options, Step, When};
use crate::task::{Answer, Task, run};
use crate::world::{AnyPool, Handle, Told, World, each, fail, hold, world};

/// Wakes a thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on(future: TaskFuture<Answer>) -> Result<Answer, TaskError> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return outcome;
        }
        std::thread::park();
    }
}

/// Makes one step. Its tasks have ids from `id` on.
pub(crate) fn step(world: &'static World, step: &Step, id: u32) {
    match step {
        Step::Submit {
            pool,
            slot,
            kind,
            options,
        } => {
            let handle = submit(world, world.number(*pool), *kind, *options, id);
            let old = std::mem::replace(&mut *world.slots[*slot].lock(), handle);
            // Not under the lock of the slot, which other threads may want.
            drop(old);
        }
        Step::Result { slot, how } => {
            let taken = world.slots[*slot].lock().take();
            if let Some(handle) = taken {
                result(world, handle, *how);
            }
        }
        Step::Cancel { slot } => {
            if let Some(handle) = &mut *world.slots[*slot].lock() {
                handle.given.is_cancelled |= handle.future.cancel();
            }
        }
        Step::Kill { slot } => {
            if let Some(handle) = &mut *world.slots[*slot].lock() {
                handle.given.is_killed |= handle.future.kill();
            }
        }
        Step::Leave {
            slot,
            polled,
            kills,
        } => {
            let taken = world.slots[*slot].lock().take();
            let Some(mut handle) = taken else { return };
            handle.future = handle.future.kill_on_drop(*kills);
            if *polled {
                let polled = pin!(&mut handle.future).poll(&mut Context::from_waker(Waker::noop()));
                if let Poll::Ready(outcome) = polled {
                    world.settle_handle(handle.given, &handle.told, &outcome);
                }
            }
        }
        Step::OnDone { slot, callback } => {
            if let Some(handle) = &mut *world.slots[*slot].lock() {
                on_done(world, handle, *callback);
            }
        }
        Step::Wait { slots, when } => {
            let taken = slots
                .iter()
                .filter_map(|slot| world.slots[*slot].lock().take());
            wait_for(world, taken.collect(), *when);
        }
        Step::Call(spec) => calls::call(world, spec, id),
        Step::Resize { pool, workers } => resize(world, world.number(*pool), *workers),
        Step::End { pool, how } => world.end(world.number(*pool), *how, false),
        Step::KillWorker { pool, which } => {
            if let Some(worker) = Worker::find(world, world.number(*pool), *which) {
                worker.note(|deeds| &deeds.kills);
                worker.signal(Signal::SIGKILL);
            }
        }
        Step::StopWorker {
            pool,
            which,
            millis,
        } => {
            if let Some(worker) = Worker::find(world, world.number(*pool), *which) {
                worker.note(|deeds| &deeds.stops);
                worker.signal(Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(*millis));
                worker.signal(Signal::SIGCONT);
            }
        }
    }
}

fn submit(world: &World, number: usize, kind: Kind, options: Options, id: u32) -> Option<Handle> {
    let pool = world.pool(number)?;
    let given = world.given(id, number, kind, options);
    let task = Task::new(id, number, given.kind);
    let future = each!(&*pool, pool => {
        let call = options.bound(pool.call());
        match options.retry() {
            Some(policy) => call.retry(policy).submit(run, task),
            None => call.retries(options.retries).submit(run, task),
        }
    });
    Some(Handle {
        future,
        given,
        told: Vec::new(),
    })
}

/// Waits for the outcome of a task.
pub(crate) fn result(world: &World, handle: Handle, how: How) {
    let Handle {
        mut future,
        given,
        told,
    } = handle;
    let outcome = match how {
        How::Result => future.result(),
        How::Await => block_on(future),
        How::Timeouts => loop {
            if let Ok(outcome) = future.result_timeout(Duration::from_millis(1)) {
                break outcome;
            }
        },
        How::Polls => {
            while !future.is_done() {
                std::thread::yield_now();
            }
            hold(
                !future.is_running(),
                "a task that has ended does not run",
                || format!("{given:?}"),
            );
            future.result()
        }
    };
    world.settle_handle(given, &told, &outcome);
}

fn on_done(world: &World, handle: &mut Handle, callback: Callback) {
    let told = Arc::new(Told::default());
    let noted = Arc::clone(&told);
    handle.future.on_done(move |outcome| {
        *noted.outcome.lock() = Some(outcome.cloned().map_err(TaskError::clone));
        noted.times.fetch_add(1, Ordering::SeqCst);
        match callback {
            Callback::Note => {}
            Callback::Slow => std::thread::sleep(Duration::from_millis(8)),
            Callback::Panic => panic!("a callback"),
            Callback::Submit { pool } => {
                let world = self::world();
                let id = world.next_id();
                let handle = submit(
                    world,
                    world.number(pool),
                    Kind::Live,
                    Options::default(),
                    id,
                );
                if let Some(handle) = handle {
                    result(world, handle, How::Result);
                }
            }
            Callback::Close { pool } => {
                let world = self::world();
                world.end(world.number(pool), End::Close, true);
            }
        }
    });
    handle.told.push(Arc::clone(&told));
    world.told.lock().push((handle.given.pool, told));
}

/// Takes the outcomes of several tasks, in one of the ways there are to wait for many.
fn wait_for(world: &World, handles: Vec<Handle>, when: When) {
    let (mut futures, mut given, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for handle in handles {
        futures.push(handle.future);
        given.push(handle.given);
        told.extend(handle.told);
    }
    let count = futures.len();
    // `wait` and `as_completed` are told of the end of a task, `done` waits for its callbacks too.
    let has_callbacks = !told.is_empty();
    let mut outcomes = Vec::new();
    let when = match when {
        When::All => Some(ReturnWhen::AllCompleted),
        When::FirstCompleted => Some(ReturnWhen::FirstCompleted),
        When::FirstError => Some(ReturnWhen::FirstError),
        When::AsCompleted => None,
    };
    if let Some(when) = when {
        let (done, pending) = wait(futures, when, None);
        let (done_count, pending_count) = (done.len(), pending.len());
        hold(
            done_count + pending_count == count,
            "`wait` gives back every handle",
            || format!("{done_count} and {pending_count} of {count}"),
        );
        let are_done = has_callbacks || done.iter().all(TaskFuture::is_done);
        outcomes.extend(done.into_iter().map(TaskFuture::result));
        let is_enough = match when {
            ReturnWhen::FirstCompleted => done_count > 0 || count == 0,
            ReturnWhen::FirstError => pending_count == 0 || outcomes.iter().any(Result::is_err),
            ReturnWhen::AllCompleted => pending_count == 0,
            other => unreachable!("no step has {other:?}"),
        };
        hold(
            are_done && is_enough,
            "`wait` waits for what it was asked to",
            || format!("{when:?}: {done_count} and {pending_count} of {count}"),
        );
        futures = pending;
    }
    for task in as_completed(futures) {
        hold(
            has_callbacks || task.is_done(),
            "`as_completed` gives tasks that have ended",
            || format!("{task:?}"),
        );
        outcomes.push(task.result());
    }
    hold(
        outcomes.len() == count,
        "`as_completed` gives each task once",
        || format!("{} of {count}", outcomes.len()),
    );
    let all_told = told
        .iter()
        .all(|told| told.times.load(Ordering::SeqCst) == 1);
    hold(
        all_told,
        "callbacks run once, before the handle gives the outcome",
        String::new,
    );
    if !may_be_those_of(&outcomes, &mut given, &world.deeds) {
        let outcomes: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map(|answer| answer.id))
            .collect();
        fail((
            "the tasks that were waited for have their own outcomes",
            format!("{outcomes:?}, of {given:#?}"),
        ));
    }
}

fn resize(world: &World, number: usize, workers: usize) {
    let pool = world.pool(number);
    if let Some(AnyPool::Processes(pool)) = pool.as_deref() {
        let resized = pool.resize(workers);
        let is_right = match resized {
            Ok(()) => true,
            Err(PoolError::Closed) => world.deeds[number].are_ending(),
            Err(_) => false,
        };
        hold(is_right, "a pool is resized until it ends", || {
            format!("{resized:?}")
        });
    }
}

/// A process that runs tasks, and the pools of which it may be.
struct Worker<'w> {
    pid: Pid,
    pools: Vec<&'w Deeds>,
}

impl<'w> Worker<'w> {
    /// One of this pool, if the program kills and stops them from outside. A forked child does not
    /// show of which pool it is; it is not told from a worker process either.
    fn find(world: &'w World, number: usize, which: usize) -> Option<Self> {
        if !world.program.from_outside {
            return None;
        }
        let (pids, pools): (Vec<u32>, _) = match &*world.pool(number)? {
            AnyPool::Processes(pool) => {
                let workers = pool.stats().workers;
                let pids = workers.iter().filter_map(|worker| worker.pid).collect();
                (pids, vec![&world.deeds[number]])
            }
            AnyPool::Forked(_) if !world.has(Engine::Processes) => {
                let children = children_of(std::process::id()).into_iter().collect();
                (children, world.deeds.iter().collect())
            }
            _ => return None,
        };
        let pid = *pids.get(which % pids.len().max(1))?;
        Some(Self {
            pid: Pid::from_raw(i32::try_from(pid).ok()?),
            pools,
        })
    }

    /// Notes what is about to be done to it.
    fn note(&self, count: impl Fn(&Deeds) -> &AtomicUsize) {
        for deeds in &self.pools {
            count(deeds).fetch_add(1, Ordering::SeqCst);
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = kill(self.pid, signal);
    }
}
