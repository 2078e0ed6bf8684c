//! The parent's side of log records: a thread for each pool that forwards them, and one for all
//! single children. This thread, the courier, takes them out of the lanes and gives them to the
//! program's logger.
//!
//! ```text
//!   worker 0 ── lane ──┐
//!   worker 1 ── lane ──┼──▶ courier ──▶ log::logger()
//!   worker 2 ── lane ──┘       ▲
//!        └──────── bell ───────┘  if the courier sleeps
//! ```
//!
//! A thread of its own, because a logger is code of the user's: it may be slow, may panic, may use
//! the pool. No lock is held while it runs, and nothing else waits for the courier but the end of
//! the pool, and the wait for a child. The records of a worker are given to the logger in the order
//! in which they were written.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{Level, Record};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::origin::{About, Origin, call};
use super::traces::Tracer;
use crate::call::logs::copies_forward;
use crate::call::service;
use crate::error::{ItemIndex, PoolError};
use crate::lane::Lane;
use crate::lane::bell::{Bell, RecordBell};
use crate::lane::records::{RawRecord, RecordReader, records_are_asked_for};
use crate::os::fork::{self, PerProcess};
use crate::os::task;
use crate::text::as_text;

/// Whether the log records of workers and child processes go through this process's logger.
///
/// As text, and with serde, they are `forward` and `off`.
///
/// # Examples
///
/// ```
/// use manyhands::logs::Logs;
/// use manyhands::prelude::*;
///
/// // The workers print their own records.
/// let pool = Processes::builder().workers(1).logs(Logs::Off).build()?;
/// assert_eq!(pool.submit(|x: u8| x, 1).result()?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Logs {
    /// They go through this process's logger.
    Forward,
    /// They stay in the worker or child, and are lost there unless it has a logger.
    Off,
}

as_text!(
    Logs,
    "logs",
    "forward or off",
    Forward = "forward",
    Off = "off"
);

impl Logs {
    /// Returns whether a pool or child forwards that is made now, where the builder has said this,
    /// and events of `tracing` go through `tracer`.
    pub(crate) fn are_forwarded(given: Option<Self>, tracer: &Tracer) -> bool {
        match given {
            Some(given) => given == Self::Forward,
            None => log::max_level() != log::LevelFilter::Off || tracer.is_there(),
        }
    }
}

thread_local! {
    /// Whether this thread is a courier.
    static IS_COURIER: Cell<bool> = const { Cell::new(false) };
}

/// Checks that this thread may wait for the end of a pool, which waits until its records have been
/// logged.
pub(crate) fn check_may_close() -> Result<(), PoolError> {
    if !IS_COURIER.get() {
        return Ok(());
    }
    Err(PoolError::System {
        what: "the pool was not closed".into(),
        reason:
            "closing waits until the workers' records have been logged, and the logger asked for it"
                .into(),
    })
}

/// Held by a courier while the logger has a record, if forked children have a copy of that logger.
///
/// Each process has one for itself: a forked child's copy is held for ever.
static LOGGING: PerProcess<Mutex<()>> = PerProcess::new(Mutex::new(()));

/// How long a fork waits for the logger. A logger that takes longer may hang.
const MOST_LOGGING: Duration = Duration::from_secs(1);

/// Waits until no courier is in the logger, and keeps them out of it as long as the value lives. A
/// child that is forked meanwhile has a copy of the logger whose locks are free.
pub(crate) fn keep_out() -> Option<MutexGuard<'static, ()>> {
    // The logger itself may fork.
    if IS_COURIER.get() {
        return None;
    }
    LOGGING.own().try_lock_for(MOST_LOGGING)
}

/// The shortest time between two records that tell of dropped ones, for each worker.
const BETWEEN: Duration = Duration::from_secs(1);

/// How often a lane is looked at before the others have their turn.
const TURNS: usize = 4;

/// What is known of the records of a pool.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By the index of the worker: records that were given to the logger or are about to be, and
    /// records that workers which have ended had dropped.
    workers: Vec<(u64, u64)>,
    /// The workers that are there.
    lanes: Vec<(u64, usize, Lane)>,
}

impl Counts {
    fn of(&mut self, worker: usize) -> &mut (u64, u64) {
        if self.workers.len() <= worker {
            self.workers.resize(worker + 1, (0, 0));
        }
        &mut self.workers[worker]
    }

    /// Returns how many records of the workers with this index have come, and how many they have
    /// dropped.
    pub(crate) fn get(&self, worker: usize) -> (u64, u64) {
        let (came, before) = self.workers.get(worker).copied().unwrap_or_default();
        let lanes = self.lanes.iter().filter(|(_, index, _)| *index == worker);
        let dropped = lanes.map(|(.., lane)| lane.records_dropped());
        (came, dropped.fold(before, u64::saturating_add))
    }
}

/// What the courier and those that give it work share.
#[derive(Debug)]
struct Shared {
    bell: RecordBell,
    news: Mutex<News>,
    /// The records that the logger has been given.
    given: AtomicU64,
}

#[derive(Default)]
struct News {
    sources: Vec<Source>,
    next: u64,
    /// Whether no more records will come: all workers have ended.
    is_last: bool,
}

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("News").finish_non_exhaustive()
    }
}

/// The lane of one worker or child.
struct Source {
    number: u64,
    /// The name of its pool, or its own if it is a single child.
    name: Arc<str>,
    worker: Option<usize>,
    pid: u32,
    reader: RecordReader,
    counts: Arc<Mutex<Counts>>,
    /// What its events of `tracing` go through.
    tracer: Tracer,
    end: Arc<End>,
    /// The dropped records that the logger has been told of, and when.
    told: u64,
    told_at: Option<Instant>,
}

/// How far a worker or child is at its end.
#[derive(Debug, Default)]
struct End {
    /// Whether it has ended.
    has_ended: AtomicBool,
    /// Whether what it has written has been logged.
    is_logged: Mutex<bool>,
    /// Told of that.
    logged: Condvar,
}

impl End {
    /// Waits until what was written has been logged, at most until the deadline. Returns whether it
    /// has.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut is_logged = self.is_logged.lock();
        while !*is_logged {
            match deadline {
                None => self.logged.wait(&mut is_logged),
                Some(deadline) => {
                    if self.logged.wait_until(&mut is_logged, deadline).timed_out() {
                        return *is_logged;
                    }
                }
            }
        }
        true
    }
}

/// Its records have been logged, or will never be.
impl Drop for Source {
    fn drop(&mut self) {
        *self.end.is_logged.lock() = true;
        self.end.logged.notify_all();
    }
}

/// A hold on a courier.
#[derive(Debug)]
pub(crate) struct Courier {
    /// The name of the pool.
    pool: Arc<str>,
    /// What is known of the records of the pool.
    counts: Arc<Mutex<Counts>>,
    tracer: Tracer,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    generation: u32,
}

/// Says that a worker lives, as long as this is there. When it is dropped, what the worker has
/// written is logged, and then its lane is let go.
#[derive(Debug)]
pub(crate) struct Attached {
    end: Arc<End>,
    shared: Arc<Shared>,
}

impl Attached {
    /// Says that the worker has ended.
    fn end(&self) {
        self.end.has_ended.store(true, Ordering::Release);
        self.shared.bell.ring();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.end();
    }
}

impl Courier {
    /// Starts a courier for the pool with this name.
    pub(crate) fn start(
        pool: &str,
        bell: RecordBell,
        counts: Arc<Mutex<Counts>>,
        tracer: Tracer,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            bell,
            news: Mutex::default(),
            given: AtomicU64::new(0),
        });
        let own = shared.clone();
        let thread = task::start("manyhands-logs", None, move || carry(&own))?;
        Ok(Self {
            pool: pool.into(),
            counts,
            tracer,
            shared,
            thread: Mutex::new(Some(thread)),
            generation: fork::generation(),
        })
    }

    /// Has the records in the lane of a worker logged from now on.
    pub(crate) fn attach(&self, worker: usize, pid: u32, lane: &Lane) -> Attached {
        let named = (self.pool.clone(), Some(worker), pid);
        self.add(named, lane, &self.counts, &self.tracer)
    }

    fn add(
        &self,
        (name, worker, pid): (Arc<str>, Option<usize>, u32),
        lane: &Lane,
        counts: &Arc<Mutex<Counts>>,
        tracer: &Tracer,
    ) -> Attached {
        let end = Arc::<End>::default();
        let number = {
            let mut news = self.shared.news.lock();
            news.next += 1;
            let number = news.next;
            news.sources.push(Source {
                number,
                name,
                worker,
                pid,
                reader: RecordReader::new(lane.clone()),
                counts: counts.clone(),
                tracer: tracer.clone(),
                end: end.clone(),
                told: 0,
                told_at: None,
            });
            number
        };
        let place = worker.unwrap_or_default();
        counts.lock().lanes.push((number, place, lane.clone()));
        self.shared.bell.ring();
        Attached {
            end,
            shared: self.shared.clone(),
        }
    }

    pub(crate) fn bell(&self) -> &RecordBell {
        &self.shared.bell
    }

    /// Returns whether events of `tracing` are emitted.
    pub(crate) fn takes_events(&self) -> bool {
        self.tracer.is_there()
    }
}

impl Courier {
    /// Waits until everything that the workers have written has been logged. They have ended, and
    /// no others come.
    pub(crate) fn finish(&self) {
        if self.generation != fork::generation() {
            // The thread is the parent's.
            return;
        }
        self.shared.news.lock().is_last = true;
        self.shared.bell.ring();
        if IS_COURIER.get() {
            // The logger has dropped the pool. This thread may be the one to be waited for, or wait
            // for another courier that waits for this one.
            return;
        }
        // Another thread that ends the pool at the same time waits here for the courier too.
        let mut thread = self.thread.lock();
        if let Some(thread) = thread.take() {
            service::join(thread);
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.finish();
        if self.generation != fork::generation() {
            // In a forked child there is no such thread: even its handle must not be dropped.
            std::mem::forget(self.thread.get_mut().take());
        }
    }
}

fn carry(shared: &Shared) {
    IS_COURIER.set(true);
    service::note_service();
    let mut sources: Vec<Source> = Vec::new();
    loop {
        let heard = shared.bell.listen();
        let is_last = {
            let mut news = shared.news.lock();
            sources.append(&mut news.sources);
            news.is_last
        };
        let mut has_more = false;
        sources.retain_mut(|source| {
            // This is asked before the look, so that nothing is missed.
            let has_ended = is_last || source.end.has_ended.load(Ordering::Acquire);
            let took = source.take(&shared.given);
            has_more |= took;
            let is_over = has_ended && !took;
            source.tell_dropped(is_over);
            if is_over {
                source.let_go();
            }
            !is_over
        });
        if has_more {
            continue;
        }
        if is_last && sources.is_empty() {
            return;
        }
        for source in &sources {
            source.reader.ask_for_bell();
        }
        records_are_asked_for();
        if !sources.iter().any(|source| source.reader.has_next()) {
            let now = Instant::now();
            let next = sources.iter().filter_map(Source::tells_at);
            let next = next.min().map(|at| at.saturating_duration_since(now));
            shared.bell.sleep(heard, next);
        }
    }
}

impl Source {
    /// Logs what there is, up to some records. Returns whether there was anything.
    fn take(&mut self, given: &AtomicU64) -> bool {
        let mut took = false;
        for _ in 0..TURNS {
            match self.reader.take() {
                Ok(0) => break,
                Ok(count) => {
                    took = true;
                    self.counts.lock().of(self.place()).0 += count as u64;
                    for record in self.reader.records() {
                        self.log(&record);
                        given.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(_) => {
                    let text = "what it has logged cannot be read, and no more of it is: other code has written over it";
                    self.log_own(text);
                }
            }
        }
        took
    }

    /// Returns where it is counted.
    fn place(&self) -> usize {
        self.worker.unwrap_or_default()
    }

    fn origin(&self, index: ItemIndex) -> Origin {
        Origin {
            name: self.name.clone(),
            worker: self.worker,
            pid: self.pid,
            item: index.get(),
            task: index.task(),
        }
    }

    fn log(&self, record: &RawRecord<'_>) {
        let origin = self.origin(record.index);
        let message = String::from_utf8_lossy(record.message);
        let target = String::from_utf8_lossy(record.target);
        let module = record.module.map(String::from_utf8_lossy);
        let file = record.file.map(String::from_utf8_lossy);
        let about = About {
            level: record.level,
            target: &target,
            module: module.as_deref(),
            file: file.as_deref(),
            line: record.line,
        };
        match record.extra {
            None => give(&origin, &message, &about),
            Some(extra) => {
                // Forked children do not use their copies of the subscriber. But its locks, and
                // those of `tracing`, are free in them.
                let logging = LOGGING.own().lock();
                call(&origin, || {
                    self.tracer.emit(&origin, &message, &about, extra);
                });
                drop(logging);
            }
        }
    }

    /// Logs what the courier itself has to say of this worker.
    fn log_own(&self, text: &str) {
        let origin = self.origin(ItemIndex::NONE);
        let about = About {
            level: Level::Warn,
            target: module_path!(),
            module: Some(module_path!()),
            file: None,
            line: None,
        };
        if log::max_level() == log::LevelFilter::Off {
            // The program has no logger, but it may have a subscriber.
            call(&origin, || {
                self.tracer.emit(&origin, text, &about, &[]);
            });
        } else {
            give(&origin, text, &about);
        }
    }

    /// Returns how many records were dropped that the logger has not been told of.
    fn untold(&self) -> u64 {
        let dropped = self.reader.lane().records_dropped();
        dropped.wrapping_sub(self.told)
    }

    /// Returns when the logger may be told of dropped records, if there are any.
    fn tells_at(&self) -> Option<Instant> {
        let at = self.told_at.map_or_else(Instant::now, |at| at + BETWEEN);
        (self.untold() > 0).then_some(at)
    }

    /// Tells the logger how many records were dropped, if it is time for that or `has_ended` says
    /// that there will be none.
    fn tell_dropped(&mut self, has_ended: bool) {
        let now = Instant::now();
        let is_due = self.tells_at().is_some_and(|at| has_ended || at <= now);
        if !is_due {
            return;
        }
        let dropped = self.untold();
        self.told = self.told.wrapping_add(dropped);
        self.told_at = Some(now);
        let of = self.origin(ItemIndex::NONE);
        let text = match dropped {
            1 => format!("1 log record of {of} was dropped"),
            _ => format!("{dropped} log records of {of} were dropped"),
        };
        self.log_own(&text);
    }

    /// Counts what the worker has dropped, which has ended.
    fn let_go(&self) {
        let mut counts = self.counts.lock();
        counts.lanes.retain(|(number, ..)| *number != self.number);
        let before = &mut counts.of(self.place()).1;
        *before = before.saturating_add(self.reader.lane().records_dropped());
    }
}

// Single children -------------------------------------------------------------------------------

/// What takes the log records of the single children of a process.
pub(super) struct ForChildren {
    /// For children that start later.
    bell: Bell,
    courier: Courier,
    /// The children whose records may not have been logged.
    open: Mutex<Vec<Weak<End>>>,
}

/// Started with the first child whose records are forwarded, and there as long as the process. A
/// forked child has children of its own, so it has one of its own.
static FOR_CHILDREN: PerProcess<Mutex<Option<&'static ForChildren>>> =
    PerProcess::new(Mutex::new(None));

impl ForChildren {
    /// Returns what takes the log records of the children of this process.
    pub(super) fn own() -> io::Result<&'static Self> {
        let mut own = FOR_CHILDREN.own().lock();
        if let Some(own) = *own {
            return Ok(own);
        }
        let bell = Bell::new()?;
        let records = bell.for_records();
        let courier = Courier::start("", records, Arc::default(), Tracer::default())?;
        Ok(own.insert(Box::leak(Box::new(Self {
            bell,
            courier,
            open: Mutex::default(),
        }))))
    }

    /// Returns the descriptor by which a child opens the bell.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.fd()
    }

    /// Has the records in the lane of a child logged from now on.
    pub(super) fn attach(&self, name: &str, pid: u32, lane: &Lane, tracer: &Tracer) -> ChildLogs {
        let counts = Arc::default();
        let named = (name.into(), None, pid);
        let attached = self.courier.add(named, lane, &counts, tracer);
        let mut open = self.open.lock();
        open.retain(|end| end.upgrade().is_some_and(|end| !*end.is_logged.lock()));
        open.push(Arc::downgrade(&attached.end));
        ChildLogs { attached, counts }
    }
}

/// How long the end of the program waits for a logger that does nothing.
const LAST_LOGGING: Duration = Duration::from_secs(2);

/// Waits until what the children of this process have written has been logged, unless the logger
/// hangs. They have ended.
pub(super) fn wait_for_children() {
    if IS_COURIER.get() {
        return;
    }
    let own = *FOR_CHILDREN.own().lock();
    let Some(own) = own else { return };
    let open = std::mem::take(&mut *own.open.lock());
    let given = &own.courier.shared.given;
    for end in open.iter().filter_map(Weak::upgrade) {
        loop {
            let before = given.load(Ordering::Relaxed);
            if end.wait(Some(Instant::now() + LAST_LOGGING)) {
                break;
            }
            if given.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// The log records of a child, as its parent has them.
#[derive(Debug)]
pub(super) struct ChildLogs {
    attached: Attached,
    counts: Arc<Mutex<Counts>>,
}

impl ChildLogs {
    /// Says that the child has ended.
    pub(super) fn end(&self) {
        self.attached.end();
    }

    /// Waits until all that the child has written has been logged, at most until the deadline. The
    /// child has ended.
    pub(super) fn wait(&self, deadline: Option<Instant>) {
        // The logger waits for a child. This thread may be the one to be waited for, or wait for
        // another courier that waits for this one.
        if IS_COURIER.get() {
            return;
        }
        self.attached.end.wait(deadline);
    }

    /// Returns how many records have come, and how many were dropped.
    pub(super) fn counts(&self) -> (u64, u64) {
        self.counts.lock().get(0)
    }
}

/// Gives a record to the program's logger.
fn give(origin: &Origin, message: &str, about: &About<'_>) {
    if about.level > log::max_level() {
        return;
    }
    // With a `Forwarder` children do not use their copies.
    let logging = (!copies_forward()).then(|| LOGGING.own().lock());
    call(origin, || {
        log::logger().log(
            &Record::builder()
                .level(about.level)
                .target(about.target)
                .module_path(about.module)
                .file(about.file)
                .line(about.line)
                .args(format_args!("[{origin}] {message}"))
                .build(),
        );
    });
    drop(logging);
}
