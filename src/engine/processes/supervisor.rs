//! The thread that starts a pool's workers, hears of their deaths, replaces them, and ends them
//! with the pool.
//!
//! All workers are children of this thread. The kernel's promise to kill a worker with its parent
//! is about the thread that started it, so that must be a thread that stays.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::dispatch::{LAST_ORDERS, Order, Worker};
use super::output::Listener;
use super::server::{Origin, Server};
use super::settings::StartMethod;
use super::shared::Shared;
use super::start::{Place, START_TIME, start};
use crate::call::service::{self, join};
use crate::error::{Crash, Death, PoolError, TaskError, because};
use crate::memory::member;
use crate::os::pidfd::{Child, SLICE};
use crate::os::readable::{pause, wait_readable};
use crate::os::{self, clock, memory_kills, task};
use crate::panic;
use crate::process::launch::CANNOT_BEGIN;
use crate::process::logs::{Attached, Courier};
use crate::process::tree;

/// The pause after a failed start until the next one is tried. It is doubled each time, up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The weight of failed starts in a row after which the pool gives up, if no worker is left.
const MOST_FAILURES: u32 = 25;
/// The weight of a start that came to nothing.
const FAILURE: u32 = 5;
/// The same for a start that another process cut short with SIGKILL, which says less about the next
/// one.
const KILLED: u32 = 1;
/// The pool's hold on its supervisor.
#[derive(Debug)]
pub(super) struct Handle {
    thread: JoinHandle<()>,
}

impl Handle {
    /// Starts the supervisor and, on it, all workers.
    ///
    /// # Errors
    ///
    /// The reason why not all could be started. Then no worker is left.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, PoolError> {
        let (report, started) = sync_channel(1);
        let supervised = shared.clone();
        let supervise = move || Supervisor::new(supervised).run(&report);
        // Forked workers run on a copy of this stack, and expect what a main thread has.
        let thread = task::start("manyhands-watch", Some(8 << 20), supervise).map_err(|error| {
            PoolError::system("the supervisor's thread could not be started", error)
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { thread }),
            Ok(Err(error)) => {
                join(thread);
                Err(error)
            }
            Err(_) => {
                join(thread);
                Err(PoolError::Broken {
                    reason: "its supervisor panicked".to_owned(),
                })
            }
        }
    }

    /// Gives the last order and waits until it has been carried out.
    pub(super) fn end(self, shared: &Shared, order: Order) {
        shared.lock().order = Some(order);
        shared.alarm.ring();
        join(self.thread);
    }

    /// Has all workers killed, and does not wait for it.
    pub(super) fn abandon(self, shared: &Shared) {
        shared.lock().order = Some(Order::Kill);
        shared.alarm.ring();
        drop(self.thread);
    }
}

/// A place for a worker.
#[derive(Default)]
struct Post {
    child: Option<Arc<Child>>,
    /// Says that the worker lives, if its log records are forwarded.
    logs: Option<Attached>,
    /// The number of starts in a row that came to nothing.
    failures: u32,
    /// What these starts weigh together.
    weight: u32,
    /// When to try again.
    retry: Option<Instant>,
}

/// Ends the pool if its supervisor panics (for example in a logger). The kernel kills the workers
/// with the supervisor, and no other thread would tell the callers that wait.
struct Bereaved(Arc<Shared>);

impl Drop for Bereaved {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = PoolError::Broken {
                reason: "its supervisor panicked".to_owned(),
            };
            // The supervisor has killed the workers, or could not.
            drop(self.0.lock().end(reason.clone(), &reason.into()));
            self.0.wake_background.notify_all();
            self.0.bell.ring();
        }
    }
}

/// Returns whether a worker that was at no item has ended as one that has nothing more to do.
fn is_in_order(death: Death) -> bool {
    matches!(death, Death::Exit(0) | Death::Unknown)
}

struct Supervisor {
    shared: Arc<Shared>,
    posts: Vec<Post>,
    /// Forks the workers, unless each worker is the executable started again.
    server: Option<Server>,
    /// Whether the server was a copy of this process and has died: there can be no second one.
    has_lost_template: bool,
    /// Reads what workers print, if the user wants it.
    listener: Option<Listener>,
    /// Gives the workers' log records to the logger, if they are forwarded.
    courier: Option<Courier>,
    /// The cores this process may use.
    cores: Vec<usize>,
}

impl Supervisor {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            posts: Vec::new(),
            server: None,
            has_lost_template: false,
            listener: None,
            courier: None,
            cores: os::worker::cores(),
            shared,
        }
    }

    fn run(mut self, report: &SyncSender<Result<(), PoolError>>) {
        service::supervise(self.shared.address());
        service::note_service();
        let _bereaved = Bereaved(self.shared.clone());
        memory_kills::begin();
        os::crash::prepare();
        self.posts.resize_with(self.shared.workers(), Post::default);
        let started = self.listen().and_then(|()| {
            (0..self.posts.len()).try_for_each(|number| {
                let hired = self.hire(number);
                hired.map_err(|error| self.start_failed(number, error.to_string()))
            })
        });
        tree::settle();
        if let Err(error) = started {
            self.give_up(error.clone());
            let _ = report.send(Err(error));
            return;
        }
        let _ = report.send(Ok(()));
        while self.watch() {}
    }

    fn listen(&mut self) -> Result<(), PoolError> {
        let settings = &self.shared.settings;
        self.listener = Listener::start(self.shared.address(), &settings.stdout, &settings.stderr)
            .map_err(|error| PoolError::system("the workers' output cannot be read", error))?;
        if settings.forwards_logs() {
            let bell = self.shared.bell.for_records();
            let counts = self.shared.log_counts.clone();
            let tracer = settings.tracer.clone();
            let started = Courier::start(&settings.name, bell, counts, tracer);
            let failed = |error| PoolError::system("the workers' log cannot be read", error);
            self.courier = Some(started.map_err(failed)?);
        }
        Ok(())
    }

    /// Waits for one thing to happen and deals with it. Returns false when the pool has ended.
    fn watch(&mut self) -> bool {
        let Some(next) = self.look() else {
            return false;
        };
        let children: Vec<(usize, Arc<Child>)> = self
            .posts
            .iter()
            .enumerate()
            .filter_map(|(number, post)| Some((number, post.child.clone()?)))
            .collect();
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.shared.alarm.as_fd()];
        fds.extend(children.iter().map(|(_, child)| child.as_fd()));
        let must_look = children.iter().any(|(_, child)| child.is_to_be_looked_at());
        let next = next.into_iter().chain(must_look.then_some(SLICE)).min();
        // If the wait is refused, the alarm need not be checked: each turn begins with a look at
        // what it rings for.
        let ended = || {
            let ended = children.iter().position(|(_, child)| child.has_ended());
            ended.map(|index| index + 1)
        };
        let found = match wait_readable(&fds, next) {
            Ok(None) if must_look => ended(),
            Ok(found) => found,
            Err(refused) => {
                pause(&refused, next);
                ended()
            }
        };
        match found {
            Some(0) => {
                // The alarm has rung: the next turn looks at what it rang for.
                self.shared.alarm.silence();
                true
            }
            Some(index) => {
                // A worker has ended.
                let (number, child) = &children[index - 1];
                let death = self.reap(child);
                self.replace(*number, death)
            }
            None => true,
        }
    }

    /// Does what is due. Returns how long there is time until something else will be (`None` for
    /// ever), or `None` if the pool has ended.
    #[allow(clippy::option_option)]
    fn look(&mut self) -> Option<Option<Duration>> {
        let shared = self.shared.clone();
        let (order, due, places) = {
            let mut dispatch = shared.lock();
            dispatch.forget_retired(&shared);
            let order = dispatch.order.take();
            // The lanes come first: what the others find out should be true now.
            let due = [
                shared.watch_lanes(&mut dispatch, clock::now()),
                dispatch.stop_overdue(clock::now()),
                dispatch.let_idle_go(&shared, Instant::now()),
                dispatch.end_lingering(&shared, clock::now()),
                shared.resume_due(&mut dispatch),
            ];
            let places: Vec<bool> = (0..dispatch.target)
                .map(|number| dispatch.is_wanted(number))
                .collect();
            (order, due, places)
        };
        if let Some(order) = order {
            self.obey(order);
            return None;
        }
        if self.posts.len() < places.len() {
            self.posts.resize_with(places.len(), Post::default);
        }
        let now = Instant::now();
        let mut next: Option<Duration> = due.into_iter().flatten().min();
        for (number, is_wanted) in places.into_iter().enumerate() {
            let Post { child, retry, .. } = &self.posts[number];
            // This place has its worker, or shall have none.
            if child.is_some() || !is_wanted {
                continue;
            }
            let pause = retry.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            if pause.is_zero() {
                if !self.rehire(number) {
                    return None;
                }
                // If the start has failed, there is a pause to be taken into account.
                next = Some(Duration::ZERO);
            } else {
                next = Some(next.map_or(pause, |next| next.min(pause)));
            }
        }
        Some(next)
    }

    /// Waits for a worker to end, and returns how it ended.
    ///
    /// What the worker held of shared objects is reclaimed first, so that it is gone for every
    /// caller that hears of the death.
    fn reap(&mut self, child: &Child) -> Death {
        let status = match &mut self.server {
            Some(server) => server.reap(child),
            None => child.reap(),
        };
        member::has_ended(child.pid());
        status.into()
    }

    /// Starts a worker and gives it to the dispatch.
    fn hire(&mut self, number: usize) -> io::Result<()> {
        let place = Place {
            number,
            workers: self.shared.workers(),
            cores: &self.cores,
            listener: self.listener.as_ref(),
        };
        let settings = &self.shared.settings;
        let origin = match settings.start_method {
            StartMethod::Spawn => None,
            StartMethod::Fork => Some(Origin::Forked),
            StartMethod::ForkServer => Some(Origin::Started {
                preload: settings.preload,
                allow_threads: settings.allow_threads,
                environment: settings.server_environment(place.workers, self.cores.len()),
            }),
        };
        if let Some(origin) = origin
            && !self.server.as_ref().is_some_and(Server::is_alive)
        {
            if self.server.take().is_some()
                && matches!(origin, Origin::Forked)
                && !settings.allow_threads
            {
                self.has_lost_template = true;
            }
            if self.has_lost_template {
                // The user did not ask for another fork of this process: it may have other threads
                // by now.
                return Err(io::Error::other(
                    "the copy of this process that workers were forked from has died",
                ));
            }
            let mut server = Server::start(&settings.name, origin)?;
            let shared = &self.shared;
            server.wait_loaded(shared.alarm.as_fd(), || shared.lock().order.is_some())?;
            self.server = Some(server);
        }
        // A server that is stopped is waited for. Tasks that are overdue are stopped meanwhile.
        let meanwhile = || {
            let _ = self.shared.lock().stop_overdue(clock::now());
        };
        let bell = &self.shared.bell;
        let started = start(settings, &place, bell, self.server.as_mut(), &meanwhile)?;
        let post = &mut self.posts[number];
        post.child = Some(started.child.clone());
        if let Some(courier) = &self.courier {
            post.logs = Some(courier.attach(number, started.child.pid(), &started.lane));
        }
        post.retry = None;
        let mut dispatch = self.shared.lock();
        dispatch.add(&self.shared, number, started);
        dispatch.pump(&self.shared);
        Ok(())
    }

    /// Settles the tasks of a worker that has ended. Returns false if the pool has ended with it.
    fn replace(&mut self, number: usize, death: Death) -> bool {
        let child = self.posts[number].child.take();
        drop(self.posts[number].logs.take());
        let was_in_order;
        let (was_ready, was_leaving, was_late, crash_report, crash) = {
            let mut dispatch = self.shared.lock();
            let worker = dispatch.workers[number].as_ref();
            let was_ready = worker.is_some_and(Worker::is_ready);
            let was_late = worker.is_some_and(Worker::has_not_come_up);
            let was_leaving = worker.is_some_and(|worker| !worker.is_open()) && !was_late;
            let crash_report = worker.and_then(Worker::crash_report);
            // Of a worker that was ready, its task's error has it.
            let crash = worker
                .filter(|_| !was_ready)
                .and_then(|worker| worker.crash(death));
            let was_at_item = dispatch.reclaim(&self.shared, number, death);
            dispatch.pump(&self.shared);
            was_in_order = !was_at_item && is_in_order(death);
            (was_ready, was_leaving, was_late, crash_report, crash)
        };
        self.shared.bell.ring();
        if let Some(child) = child {
            child.tree_ended(was_in_order);
        }
        // The worker had worked, or was meant to end: nothing is wrong with its start.
        if was_ready || was_leaving {
            let post = &mut self.posts[number];
            (post.failures, post.weight) = (0, 0);
            // If the worker is to be replaced, the next look starts another one.
            return true;
        }
        let why = if was_late {
            self.start_failed(number, format!("it was not up within {START_TIME:?}"))
        } else {
            self.why_not_ready(number, death, crash_report, crash.as_deref())
        };
        // While the pool is being built, one worker that does not come up is enough to fail.
        if !self.shared.is_built.load(Ordering::Acquire) {
            self.give_up(why);
            return false;
        }
        // If the worker was late, the pool itself has killed it, and the next one will be late too.
        let weight = if death == Death::Signal(9) && !was_late {
            KILLED
        } else {
            FAILURE
        };
        self.postpone(number, &why, weight)
    }

    /// Returns why a worker has ended before it took tasks.
    fn why_not_ready(
        &self,
        worker: usize,
        death: Death,
        crash_report: Option<String>,
        crash: Option<&Crash>,
    ) -> PoolError {
        let has_initializer = self.shared.settings.initializer.is_some();
        // The text of a death speaks of a task, and there was none yet.
        let how = match death {
            Death::Exit(code) => format!("exited with code {code}"),
            other => format!("{other}{}", because(crash)),
        };
        match crash_report {
            Some(reason) if has_initializer && death != Death::Exit(CANNOT_BEGIN) => {
                PoolError::InitializerFailed { worker, reason }
            }
            Some(reason) => self.start_failed(worker, reason),
            None if has_initializer => PoolError::InitializerFailed {
                worker,
                reason: format!("the worker {how}"),
            },
            None => self.start_failed(worker, format!("it {how} before it was ready")),
        }
    }

    /// Starts a worker in place of one that has ended. Returns false if the pool has ended.
    fn rehire(&mut self, number: usize) -> bool {
        match self.hire(number) {
            Ok(()) => {
                self.shared.bell.ring();
                true
            }
            Err(error) => {
                let error = self.start_failed(number, error.to_string());
                self.postpone(number, &error, FAILURE)
            }
        }
    }

    /// Tries a failed start again later, or gives up if there were too many. Returns false if the
    /// pool has ended.
    fn postpone(&mut self, number: usize, reason: &PoolError, weight: u32) -> bool {
        let post = &mut self.posts[number];
        post.failures += 1;
        post.weight += weight;
        let pause = FIRST_PAUSE
            .saturating_mul(1 << (post.failures - 1).min(16))
            .min(LONGEST_PAUSE);
        log::warn!(
            "pool {}: {reason}; trying again in {pause:?}",
            self.shared.settings.name
        );
        post.retry = Some(Instant::now() + pause);
        if post.weight >= MOST_FAILURES {
            // The other workers go on, but what is for this one alone would wait for ever.
            let error = TaskError::from(reason.clone());
            self.shared.lock().fail_pinned(number, &error);
            self.shared.bell.ring();
        }
        let nobody_left = self.posts.iter().all(|post| post.child.is_none());
        let tired = {
            let dispatch = self.shared.lock();
            // Places that shall have no worker say nothing.
            let mut wanted = (0..self.posts.len()).filter(|&number| dispatch.is_wanted(number));
            wanted.all(|number| self.posts[number].weight >= MOST_FAILURES)
        };
        if nobody_left && tired {
            self.give_up(match reason {
                PoolError::InitializerFailed { .. } => reason.clone(),
                other => PoolError::Broken {
                    reason: other.to_string(),
                },
            });
            return false;
        }
        true
    }

    fn start_failed(&self, worker: usize, reason: String) -> PoolError {
        PoolError::StartFailed {
            worker,
            workers: self.posts.len(),
            reason,
        }
    }

    /// Carries out the last order: with `Order::Finish`, gives the workers time to end by
    /// themselves.
    fn obey(&mut self, order: Order) {
        if matches!(order, Order::Finish) {
            self.shared.lock().stop_workers();
            let deadline = Instant::now() + LAST_ORDERS;
            for number in 0..self.posts.len() {
                let Some(child) = self.posts[number].child.take() else {
                    continue;
                };
                if child.wait_end(Some(deadline.saturating_duration_since(Instant::now()))) {
                    // This comes before the pool's accounts are settled: only then is it known how
                    // much memory the worker had.
                    let death = self.reap(&child);
                    child.tree_ended(is_in_order(death));
                } else {
                    log::warn!(
                        "worker process {} did not end by itself and is killed",
                        child.pid()
                    );
                    self.posts[number].child = Some(child);
                }
            }
        }
        self.give_up(PoolError::Closed);
    }

    /// Ends everything now: tasks that have not ended fail, and workers are killed and waited for.
    fn give_up(&mut self, reason: PoolError) {
        let error = match &reason {
            PoolError::Closed => TaskError::Cancelled {},
            other => other.clone().into(),
        };
        let workers = self.shared.lock().end(reason, &error);
        // A caller that waits need not wait for the workers to be gone.
        self.shared.wake_background.notify_all();
        self.shared.bell.ring();
        let posts = std::mem::take(&mut self.posts);
        let children = || posts.iter().filter_map(|post| post.child.as_ref());
        Child::kill_all(children().map(Arc::as_ref));
        // Their life lines close.
        drop(workers);
        children().for_each(|child| {
            let death = self.reap(child);
            child.tree_ended(is_in_order(death));
        });
        self.server = None;
        // When this returns, everything that the workers have printed has been told.
        drop(self.listener.take());
        // And everything that they have logged.
        drop(posts);
        drop(self.courier.take());
    }
}

impl Drop for Supervisor {
    /// Waits for the workers after a panic of this thread. The kernel would kill them, but only
    /// their parent can reap them, and what they held of shared objects would stay theirs.
    fn drop(&mut self) {
        if thread::panicking() {
            let posts = std::mem::take(&mut self.posts);
            for child in posts.iter().filter_map(|post| post.child.as_ref()) {
                // Both may call the logger. A second panic of it would end the program.
                let _ = panic::catch(|| {
                    child.kill();
                    self.reap(child)
                });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
