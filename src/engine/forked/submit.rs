//! The tasks submitted to a pool. Each forks a child at once, if there are not too many.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::Shutdown;
use super::accounts::Accounts;
use super::calls::{Calling, Calls};
use super::child::{Answers, Bond, Forked as Child, Setup, wait_any};
use super::running::{Again, Running, TASK};
use super::watch::Watcher;
use crate::call::{Limits, logs, seed, worker_index};
use crate::engine::discard::Discard;
use crate::error::{ItemIndex, PoolError, TaskError};
use crate::future::{Ending, PoolId, Reason, Watch, later};
use crate::lane::ResponseWriter;
use crate::lane::bell::Bell;
use crate::os::alarm::Alarm;
use crate::os::environment::Environment;
use crate::os::fork;
use crate::os::pidfd::Child as Process;
use crate::os::readable::wait_readable;
use crate::process::logs::{Counts, Courier, check_may_close};
use crate::process::traces::Tracer;
use crate::process::tree;

/// The tasks submitted to a pool, and the children of its other calls.
pub(super) struct Submitted {
    pub(super) id: PoolId,
    /// What the pool is called.
    pub(super) name: String,
    /// The tasks whose children have not been seen to end.
    running: Mutex<Vec<Arc<Running>>>,
    /// The children of calls of `map`.
    enlisted: Mutex<Vec<Arc<Process>>>,
    is_closed: AtomicBool,
    /// The pool's other calls.
    calls: Calls,
    /// Whether calls claim no more chunks.
    is_cancelled: AtomicBool,
    /// Whether the pool was shut down by killing: a child that is started after that is killed at
    /// once. Set under the lock of `enlisted`.
    is_killed: AtomicBool,
    watcher: Arc<Watcher>,
    generation: u32,
    /// How the environment of the children differs from that of this process.
    environment: Environment,
    spares_descendants: bool,
    pub(super) accounts: Arc<Accounts>,
    pub(super) log: Log,
    /// Rings when the pool closes, for children that wait until a pause is over. Made with the
    /// first task that has a policy.
    pauses: OnceLock<Arc<Alarm>>,
}

/// What takes the log records of a pool's children.
#[derive(Default)]
pub(super) struct Log {
    /// The name of the pool.
    pub(super) pool: String,
    /// Whether the records are forwarded.
    pub(super) is_forwarded: bool,
    /// What events of `tracing` go through.
    tracer: Tracer,
    /// What is known of the records.
    pub(super) counts: Arc<Mutex<Counts>>,
    /// Started with the first child.
    courier: Mutex<Option<Arc<Courier>>>,
}

impl Log {
    pub(super) fn new(pool: String, is_forwarded: bool, tracer: Tracer) -> Self {
        Self {
            pool,
            is_forwarded,
            tracer,
            counts: Arc::default(),
            courier: Mutex::default(),
        }
    }

    /// Returns what takes the records, if they are forwarded.
    fn courier(&self) -> Option<Arc<Courier>> {
        if !self.is_forwarded {
            return None;
        }
        let mut courier = self.courier.lock();
        if courier.is_none() {
            let started = Bell::new().and_then(|bell| {
                let (counts, tracer) = (self.counts.clone(), self.tracer.clone());
                Courier::start(&self.pool, bell.for_records(), counts, tracer)
            });
            match started {
                Ok(started) => *courier = Some(Arc::new(started)),
                Err(error) => {
                    drop(courier);
                    // Then the copies of the logger do what they do.
                    log::warn!("pool {}: log records are not forwarded: {error}", self.pool);
                    return None;
                }
            }
        }
        courier.clone()
    }

    /// Waits until everything that the children have written has been logged. They have ended.
    fn finish(&self) {
        // The lock is free meanwhile: the logger may use the pool.
        let courier = self.courier.lock().clone();
        if let Some(courier) = courier {
            courier.finish();
        }
    }
}

/// A child of a call of `map`. It is on the list of those that a shutdown kills as long as this
/// value lives.
pub(super) struct Enlisted<'a> {
    submitted: &'a Submitted,
    process: Arc<Process>,
}

impl Drop for Enlisted<'_> {
    fn drop(&mut self) {
        let mut enlisted = self.submitted.enlisted.lock();
        enlisted.retain(|process| !Arc::ptr_eq(process, &self.process));
    }
}

impl Submitted {
    pub(super) fn new(
        name: String,
        environment: Environment,
        spares_descendants: bool,
        accounts: Accounts,
        log: Log,
    ) -> Self {
        Self {
            environment,
            id: PoolId::new(),
            name,
            running: Mutex::default(),
            enlisted: Mutex::default(),
            is_closed: AtomicBool::new(false),
            calls: Calls::default(),
            is_cancelled: AtomicBool::new(false),
            is_killed: AtomicBool::new(false),
            watcher: Arc::default(),
            generation: fork::generation(),
            spares_descendants,
            accounts: Arc::new(accounts),
            log,
            pauses: OnceLock::new(),
        }
    }

    /// Ends the pauses of submitted tasks.
    fn end_pauses(&self) {
        if let Some(pauses) = self.pauses.get() {
            pauses.ring();
        }
    }

    /// Returns what a child with this index, which is about to be forked, is given.
    pub(super) fn setup(&self, index: usize) -> Setup<'_> {
        let entry = (!self.spares_descendants).then(|| tree::enlist(true));
        Setup {
            pool: &self.name,
            index,
            environment: &self.environment,
            entry: entry.flatten(),
            accounts: &self.accounts,
            courier: self.log.courier(),
        }
    }

    /// Returns whether the pool was shut down together with all that runs.
    pub(super) fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Acquire)
    }

    /// Returns whether the pool was shut down: what has not started is not to start.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// Returns whether the pool takes no calls any more, and its end waits for those that go on.
    pub(super) fn is_closing(&self) -> bool {
        self.calls.are_closed() && !self.is_cancelled()
    }

    /// Returns whether no call is going on.
    #[cfg(all(test, not(loom)))]
    pub(super) fn are_calls_over(&self) -> bool {
        self.calls.wait(Some(Instant::now()))
    }

    /// Begins a call, for which the end of the pool waits.
    ///
    /// # Errors
    ///
    /// If the pool takes no calls any more, or is another process's: another thread of that process
    /// may have locked what is looked at here.
    pub(super) fn start_call(&self) -> Result<Calling<'_>, PoolError> {
        self.check_process()?;
        self.calls.start(self.id)
    }

    /// Has a shutdown kill this child.
    ///
    /// # Errors
    ///
    /// If there was a shutdown already.
    pub(super) fn enlist(&self, process: Arc<Process>) -> Result<Enlisted<'_>, TaskError> {
        let mut enlisted = self.enlisted.lock();
        if self.is_killed() {
            return Err(TaskError::Cancelled {});
        }
        enlisted.push(process.clone());
        Ok(Enlisted {
            submitted: self,
            process,
        })
    }

    pub(super) fn check_process(&self) -> Result<(), PoolError> {
        if self.generation == fork::generation() {
            Ok(())
        } else {
            Err(PoolError::OtherProcess)
        }
    }

    pub(super) fn check_open(&self) -> Result<(), PoolError> {
        if self.is_closed.load(Ordering::Acquire) {
            Err(PoolError::Closed)
        } else {
            Ok(())
        }
    }

    /// Forks a child for the task. If there are `workers` children already, first waits for one to
    /// end if it `waits`, and fails if not.
    ///
    /// What `keep` makes of function and argument stays until the task has ended: the child has
    /// copies of the handles of shared objects among them, and copies hold nothing.
    pub(super) fn submit<F, A, R, K>(
        &self,
        (workers, waits): (usize, bool),
        limits: &Limits,
        (f, argument): (F, A),
        name: ItemIndex,
        keep: impl FnOnce(F, A) -> K,
    ) -> Result<Arc<Running>, TaskError>
    where
        F: FnOnce(A) -> R,
        R: Serialize + DeserializeOwned + 'static,
        K: Send + 'static,
    {
        self.check_process()?;
        let mut work = Some((f, argument));
        let task = {
            let mut run = Some(|responses: &mut ResponseWriter| {
                if let Some((f, argument)) = work.take() {
                    self.begin(responses);
                    seed::begin_task(limits.seeds);
                    logs::begin_task(name);
                    Answers::new(limits, responses).answer(responses, || f(argument));
                    responses.end();
                }
            });
            let results = Discard::of::<R>();
            self.fork((workers, waits), limits, &mut run, results, None)
        };
        later::flush();
        // This happens without the lock, and when all is in order: dropping what the work holds may
        // run code of the user's.
        let task = task?;
        if let Some((f, argument)) = work {
            task.keep(keep(f, argument));
        }
        Ok(task)
    }

    /// Forks a child for the task like [`submit`](Self::submit), and another one when it has
    /// failed, as the policy says. `check` says whether this process may fork.
    pub(super) fn submit_again<F, A, R>(
        &self,
        (workers, waits): (usize, bool),
        check: impl Fn() -> Result<(), PoolError> + Send + 'static,
        limits: &Limits,
        (f, argument): (F, A),
        name: ItemIndex,
    ) -> Result<Arc<Running>, TaskError>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.check_process()?;
        if self.pauses.get().is_none() {
            let no_bell = |error| PoolError::system("an eventfd could not be had", error);
            // Another thread may have made one meanwhile.
            let _ = self.pauses.set(Arc::new(Alarm::new().map_err(no_bell)?));
        }
        // The parent never takes it out.
        let work = Arc::new(Mutex::new(Some((f, argument))));
        let run = {
            let (limits, accounts) = (limits.clone(), self.accounts.clone());
            move |responses: &mut ResponseWriter| {
                let work = work.lock().take();
                if let Some((f, argument)) = work {
                    begin(&accounts, responses);
                    seed::begin_task(limits.seeds);
                    logs::begin_task(name);
                    Answers::new(&limits, responses).answer(responses, || f(argument));
                    responses.end();
                }
            }
        };
        let run = Arc::new(run);
        let (own, pauses) = (run.clone(), self.pauses.get().cloned());
        let (pool, environment) = (self.name.clone(), self.environment.clone());
        let (spares, accounts) = (self.spares_descendants, self.accounts.clone());
        let courier = self.log.courier();
        let fork = move |bell: &Arc<Alarm>, index: usize, pause: Duration| {
            check()?;
            let entry = (!spares).then(|| tree::enlist(true));
            let setup = Setup {
                pool: &pool,
                index,
                environment: &environment,
                entry: entry.flatten(),
                accounts: &accounts,
                courier: courier.clone(),
            };
            let mut work = Some(|responses: &mut ResponseWriter| {
                if !pause.is_zero()
                    && let Some(pauses) = &pauses
                {
                    // If the wait is refused, there is no pause.
                    let _ = wait_readable(&[pauses.as_fd()], Some(pause));
                }
                own(responses);
            });
            let child = Child::start(bell, Bond::Process, setup, &mut work);
            let failed = |error| PoolError::system("another child could not be forked", error);
            let child = child.map_err(failed)?;
            accounts.retried();
            Ok(child)
        };
        let again = Again {
            retry: limits.retry(),
            attempts: 1,
            fork: Box::new(fork),
        };
        let mut first = Some(|responses: &mut ResponseWriter| run(responses));
        let results = Discard::of::<R>();
        let task = self.fork((workers, waits), limits, &mut first, results, Some(again));
        later::flush();
        task
    }

    /// Begins the only task of a child, in the child.
    fn begin(&self, responses: &mut ResponseWriter) {
        begin(&self.accounts, responses);
    }

    /// Forks a child for one part of a broadcast, as the worker with this index. Like the children
    /// of other calls, it does not count among those of submitted tasks.
    pub(super) fn start_part<F, A, R>(
        &self,
        (index, workers): (usize, usize),
        limits: &Limits,
        f: &F,
        argument: A,
    ) -> Result<(Arc<Running>, Enlisted<'_>), TaskError>
    where
        F: Fn(A) -> R,
        A: Send + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        let setup = self.setup(index);
        let mut work = Some(argument);
        let mut run = Some(|responses: &mut ResponseWriter| {
            if let Some(argument) = work.take() {
                self.begin(responses);
                seed::begin_task(limits.seeds);
                Answers::new(limits, responses).answer(responses, || f(argument));
                responses.end();
            }
        });
        let (results, watcher) = (Discard::of::<R>(), self.watcher.clone());
        let part = Running::start(self.id, setup, &mut run, limits, results, watcher);
        let part = part.map_err(|error| PoolError::StartFailed {
            worker: index,
            workers,
            reason: error.to_string(),
        })?;
        let part = Arc::new(part);
        if let Some(argument) = work {
            // The child has copies of the handles in it, and copies hold nothing.
            part.keep(argument);
        }
        let enlisted = self.enlist(part.process())?;
        Ok((part, enlisted))
    }

    fn fork(
        &self,
        (workers, waits): (usize, bool),
        limits: &Limits,
        work: &mut Option<impl FnOnce(&mut ResponseWriter)>,
        results: Discard,
        again: Option<Again>,
    ) -> Result<Arc<Running>, TaskError> {
        let mut end = None;
        // The lock is held until the child is on the list: two threads at once must not fork one
        // child too many.
        let mut running = loop {
            let mut running = self.running.lock();
            self.check_open()?;
            if let Some(reason) = limits.ended() {
                return Err(reason.error());
            }
            if running.len() < workers {
                break running;
            }
            running.retain(|task| {
                task.child.try_lock().is_none_or(|mut child| {
                    task.look(&mut child);
                    child.is_some()
                })
            });
            if running.len() < workers {
                break running;
            }
            if !waits {
                drop(running);
                later::flush();
                return Err(PoolError::QueueFull { limit: 0 }.into());
            }
            let busy = running.clone();
            // The lock is free while this thread waits, so that another thread can shut the pool
            // down.
            drop(running);
            later::flush();
            if end.is_none()
                && let Some(ending) = limits.ending()
            {
                end = Some(EndBell::of(ending)?);
                continue;
            }
            wait_for_any(&busy, end.as_ref().map(|end| &*end.bell));
        };
        let index = worker_index::lowest_free(running.iter().map(|task| task.index));
        let failed = |error: std::io::Error| PoolError::StartFailed {
            worker: running.len(),
            workers,
            reason: error.to_string(),
        };
        let (setup, watcher) = (self.setup(index), self.watcher.clone());
        let task =
            Running::start(self.id, setup, work, limits, results, watcher).map_err(failed)?;
        let task = Arc::new(task.again(again));
        running.push(task.clone());
        Ok(task)
    }

    /// Takes no more tasks, and waits for those there are.
    pub(super) fn close(&self) -> Result<(), PoolError> {
        self.check_process()?;
        check_may_close()?;
        self.calls.close(self.id)?;
        self.is_closed.store(true, Ordering::Release);
        self.end_pauses();
        // This does not hold the lock, which a thread that wants to kill the tasks needs.
        let running = self.running.lock().clone();
        for task in running {
            task.wait(None);
        }
        self.running.lock().retain(|task| !task.is_done());
        self.calls.wait(None);
        self.log.finish();
        Ok(())
    }

    /// Takes no more tasks, and stops those there are. They run from the moment they are submitted,
    /// so there are none to cancel. Calls claim no more chunks.
    pub(super) fn shutdown(&self, how: Shutdown) -> Result<(), PoolError> {
        self.check_process()?;
        check_may_close()?;
        self.calls.close(self.id)?;
        self.is_cancelled.store(true, Ordering::Release);
        self.is_closed.store(true, Ordering::Release);
        self.end_pauses();
        if how == Shutdown::Kill {
            self.kill_all();
        }
        self.close()
    }

    /// Kills all children, also those of calls that go on. Returns how many there were.
    fn kill_all(&self) -> usize {
        let running = self.running.lock().clone();
        let running: Vec<_> = running.iter().filter(|task| !task.is_done()).collect();
        for task in &running {
            task.stop(Reason::Cancelled);
        }
        let enlisted = {
            let enlisted = self.enlisted.lock();
            self.is_killed.store(true, Ordering::Release);
            Process::kill_all(enlisted.iter().map(Arc::as_ref));
            enlisted.clone()
        };
        for process in &enlisted {
            process.wait_end(None);
        }
        running.len() + enlisted.len()
    }

    /// Takes no more tasks, waits for those there are, and kills what has not ended by the
    /// deadline. Returns `None` if all had ended, and otherwise how many children were killed.
    pub(super) fn close_by(&self, deadline: Option<Instant>) -> Result<Option<usize>, PoolError> {
        self.check_process()?;
        check_may_close()?;
        self.calls.close(self.id)?;
        self.is_closed.store(true, Ordering::Release);
        self.end_pauses();
        let running = self.running.lock().clone();
        let all_done = running.iter().all(|task| task.wait(deadline));
        if all_done && self.calls.wait(deadline) {
            self.running.lock().retain(|task| !task.is_done());
            self.log.finish();
            return Ok(None);
        }
        self.is_cancelled.store(true, Ordering::Release);
        let killed = self.kill_all();
        // The threads that wait for the tasks, and the tasks' hooks, are told.
        for task in running {
            task.wait(None);
        }
        // A call may have forked a child that it had not enlisted yet. It kills the child itself.
        self.calls.wait(None);
        self.running.lock().retain(|task| !task.is_done());
        self.log.finish();
        Ok(Some(killed))
    }
}

/// Begins the only task of a child, in the child.
fn begin(accounts: &Accounts, responses: &mut ResponseWriter) {
    responses.begin(TASK, 0);
    if accounts.has_timeline() {
        responses.set_recorded();
    }
}

/// A bell that rings when a call ends early, as long as this lives.
pub(super) struct EndBell {
    pub(super) bell: Arc<Alarm>,
    _watch: Watch,
}

impl EndBell {
    /// Makes the bell of a call with this ending.
    fn of(ending: &Ending) -> Result<Self, PoolError> {
        let no_bell = |error| PoolError::system("an eventfd could not be had", error);
        let bell = Arc::new(Alarm::new().map_err(no_bell)?);
        Ok(Self::ringing(ending, &bell))
    }

    /// Has this bell ring for a call with this ending.
    pub(super) fn ringing(ending: &Ending, bell: &Arc<Alarm>) -> Self {
        let rings = bell.clone();
        Self {
            bell: bell.clone(),
            _watch: ending.watch(move |_| rings.ring()),
        }
    }
}

/// Waits until one of the children ends or has something to say, or until the call ends early. If
/// another thread waits for a child, what that child says is left to that thread; its end is not.
fn wait_for_any(running: &[Arc<Running>], end: Option<&Alarm>) {
    let locked: Vec<_> = running
        .iter()
        .filter_map(|task| Some((task, task.child.try_lock()?)))
        .collect();
    let bells = locked.iter().map(|(task, _)| &*task.bell);
    let bells: Vec<_> = bells.chain(end).collect();
    let children = || {
        let children = locked.iter().filter_map(|(_, child)| child.as_ref());
        children.map(|(child, _)| child)
    };
    children().for_each(Child::ask_for_bell);
    if !children().any(Child::has_next) {
        let processes: Vec<_> = running.iter().map(|task| task.process()).collect();
        wait_any(
            &bells,
            processes.iter().map(|process| process.as_fd()),
            running.iter().filter_map(|task| task.pause(None)).min(),
        );
    }
    if locked.len() < running.len() {
        // The thread that waits for a child that has ended may have it for another moment.
        drop(locked);
        std::thread::yield_now();
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.running.lock().drain(..).for_each(|task| task.cancel());
            self.log.finish();
        }
    }
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted")
            .field("name", &self.name)
            .field(
                "running",
                &self.running.try_lock().map(|running| running.len()),
            )
            .finish_non_exhaustive()
    }
}
