//! The thread that starts a pool's workers, hears of their deaths, replaces them, and ends them with the pool.
//!
//! It is the thread that all workers are children of: the kernel's promise to kill a worker with its parent is about
//! the thread that started it, so that must be one that stays.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Shared;
use super::start::start;
use crate::error::{Death, PoolError, TaskError};
use crate::os::pidfd::{Child, wait_readable};
use crate::os::{self, task::OwnThread};

/// How long after a start that failed the next one is tried; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After so many failed starts in a row, with no worker left, the pool gives up.
const MOST_FAILURES: u32 = 5;
/// The same for starts that somebody else cut short with SIGKILL, which says less about the next one.
const MOST_KILLED: u32 = 25;
/// How long workers have to end by themselves when the pool is closed.
const LAST_ORDERS: Duration = Duration::from_secs(10);

/// What the supervisor is told, one byte each.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// All tasks have ended; let the workers end.
    Finish = 1,
    /// Kill the workers, whatever they do.
    Kill = 2,
}

/// The pool's hold on its supervisor.
#[derive(Debug)]
pub(super) struct Handle {
    thread: JoinHandle<()>,
    orders: PipeWriter,
}

impl Handle {
    /// Starts the supervisor and, on it, all workers.
    ///
    /// # Errors
    ///
    /// Why they could not all be started. Then none is left.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, PoolError> {
        let (reader, orders) = os::handoff::pipe()
            .map_err(|error| PoolError::system("the supervisor's pipe could not be made", error))?;
        let (report, started) = sync_channel(1);
        let supervised = shared.clone();
        let thread = thread::Builder::new()
            .name("manyhands-watch".to_owned())
            .spawn(move || Supervisor::new(supervised, reader).run(&report))
            .map_err(|error| {
                PoolError::system("the supervisor's thread could not be started", error)
            })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { thread, orders }),
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
    pub(super) fn end(mut self, order: Order) {
        // If the supervisor has ended by itself, there is nothing left to order.
        let _ = self.orders.write_all(&[order as u8]);
        join(self.thread);
    }
}

pub(super) fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("a thread of a process pool panicked");
    }
}

/// A place for a worker.
#[derive(Default)]
struct Post {
    child: Option<Arc<Child>>,
    /// Starts in a row that came to nothing.
    failures: u32,
    /// When to try again.
    retry: Option<Instant>,
}

/// Ends the pool if its supervisor panics (in a logger, say): the kernel kills the workers with it, and nobody would
/// tell those who wait.
struct Bereaved(Arc<Shared>);

impl Drop for Bereaved {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = PoolError::Broken {
                reason: "its supervisor panicked".to_owned(),
            };
            self.0.dispatch.lock().end(reason.clone(), &reason.into());
            self.0.wake_background.notify_all();
            self.0.bell.ring();
        }
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    orders: PipeReader,
    posts: Vec<Post>,
}

impl Supervisor {
    fn new(shared: Arc<Shared>, orders: PipeReader) -> Self {
        let posts = (0..shared.workers).map(|_| Post::default()).collect();
        Self {
            shared,
            orders,
            posts,
        }
    }

    fn run(mut self, report: &SyncSender<Result<(), PoolError>>) {
        let _own = OwnThread::register();
        let _bereaved = Bereaved(self.shared.clone());
        os::worker::block_signals();
        for number in 0..self.posts.len() {
            if let Err(error) = self.hire(number) {
                let error = self.start_failed(number, error.to_string());
                self.give_up(error.clone());
                let _ = report.send(Err(error));
                return;
            }
        }
        let _ = report.send(Ok(()));
        while self.watch() {}
    }

    /// Waits for one thing to happen and deals with it; false when the pool has ended.
    fn watch(&mut self) -> bool {
        let children: Vec<(usize, Arc<Child>)> = self
            .posts
            .iter()
            .enumerate()
            .filter_map(|(number, post)| Some((number, post.child.clone()?)))
            .collect();
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.orders.as_fd()];
        fds.extend(children.iter().map(|(_, child)| child.as_fd()));
        let next = self.posts.iter().filter_map(|post| post.retry).min();
        let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
        match wait_readable(&fds, timeout) {
            Some(0) => {
                self.obey();
                return false;
            }
            Some(index) => {
                let (number, child) = &children[index - 1];
                if !self.replace(*number, &child.reap()) {
                    return false;
                }
            }
            None => {}
        }
        let now = Instant::now();
        let due = |post: &Post| post.retry.is_some_and(|retry| retry <= now);
        for number in 0..self.posts.len() {
            if due(&self.posts[number]) && !self.rehire(number) {
                return false;
            }
        }
        true
    }

    /// Starts a worker and gives it to the dispatch.
    fn hire(&mut self, number: usize) -> io::Result<()> {
        let started = start(&self.shared.name, number, &self.shared.bell)?;
        let post = &mut self.posts[number];
        post.child = Some(started.child.clone());
        post.retry = None;
        let mut dispatch = self.shared.dispatch.lock();
        dispatch.add(number, started);
        dispatch.pump(&self.shared);
        Ok(())
    }

    /// A worker has died. False if the pool has ended with it.
    fn replace(&mut self, number: usize, death: &Death) -> bool {
        self.posts[number].child = None;
        let was_ready = {
            let mut dispatch = self.shared.dispatch.lock();
            let was_ready = dispatch.workers[number]
                .as_ref()
                .is_some_and(super::dispatch::Worker::is_ready);
            dispatch.bury(number, death.clone());
            dispatch.pump(&self.shared);
            was_ready
        };
        self.shared.bell.ring();
        if was_ready {
            self.posts[number].failures = 0;
            return self.rehire(number);
        }
        if !self.shared.is_built.load(Ordering::Acquire) {
            let error = self.start_failed(number, format!("it {death} before it was ready"));
            self.give_up(error);
            return false;
        }
        let most = if *death == Death::Signal(9) {
            MOST_KILLED
        } else {
            MOST_FAILURES
        };
        self.postpone(
            number,
            &format!("a worker {death} before it was ready"),
            most,
        )
    }

    /// Starts a worker in place of one that died. False if the pool has ended.
    fn rehire(&mut self, number: usize) -> bool {
        match self.hire(number) {
            Ok(()) => {
                self.shared.bell.ring();
                true
            }
            Err(error) => self.postpone(
                number,
                &format!("no new worker could be started: {error}"),
                MOST_FAILURES,
            ),
        }
    }

    /// A start has come to nothing: tries again later, or gives up after the `most`th time.
    fn postpone(&mut self, number: usize, reason: &str, most: u32) -> bool {
        let post = &mut self.posts[number];
        post.failures += 1;
        let pause = FIRST_PAUSE
            .saturating_mul(1 << (post.failures - 1).min(16))
            .min(LONGEST_PAUSE);
        log::warn!(
            "pool {}: {reason}; trying again in {pause:?}",
            self.shared.name
        );
        post.retry = Some(Instant::now() + pause);
        let nobody_left = self.posts.iter().all(|post| post.child.is_none());
        let tired = self.posts.iter().all(|post| post.failures >= most);
        if nobody_left && tired {
            self.give_up(PoolError::Broken {
                reason: reason.to_owned(),
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

    fn obey(&mut self) {
        let mut order = [0];
        // No byte at all, or none that is an order: the pool has lost its hold, which ends it too.
        let read = self.orders.read(&mut order);
        if read.is_ok_and(|len| len == 1) && order[0] == Order::Finish as u8 {
            self.shared.dispatch.lock().stop_workers();
            let deadline = Instant::now() + LAST_ORDERS;
            for child in self.posts.iter().filter_map(|post| post.child.as_ref()) {
                if !child.wait_end(Some(deadline.saturating_duration_since(Instant::now()))) {
                    log::warn!(
                        "worker process {} did not end by itself and is killed",
                        child.pid()
                    );
                }
            }
        }
        self.give_up(PoolError::Closed);
    }

    /// Ends everything now: tasks that have not ended fail, workers are killed and waited for.
    fn give_up(&mut self, reason: PoolError) {
        let error = match &reason {
            PoolError::Closed => TaskError::Cancelled,
            other => TaskError::Pool(other.clone()),
        };
        self.shared.dispatch.lock().end(reason, &error);
        let children = || self.posts.iter().filter_map(|post| post.child.as_ref());
        children().for_each(|child| child.kill());
        children().for_each(|child| drop(child.reap()));
        self.posts.clear();
        self.shared.wake_background.notify_all();
        self.shared.bell.ring();
    }
}
