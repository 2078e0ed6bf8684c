//! The worker's side of log records: the loggers that give them to the lane, from which the parent
//! takes them.
//!
//! A worker process gets a logger that does so when its initialiser has run, unless it has a logger
//! by then. A forked child has the logger of its parent, which the crate `log` does not let it
//! replace. If that is a [`Forwarder`], the records go to the parent; other loggers do in the child
//! what they do in the parent.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{LevelFilter, Log, Metadata};
use parking_lot::Mutex;

use super::seed::{self, At};
use crate::error::ItemIndex;
use crate::lane::Lane;
use crate::lane::bell::RecordBell;
use crate::lane::records::{Record, RecordWriter};
use crate::os::fork::{self, OwnPointer};

/// What this process sends its records by.
struct Sender {
    lane: Lane,
    writer: Mutex<RecordWriter>,
    /// The first item of the task that runs, or the task itself.
    task: AtomicU64,
}

/// The sender of this process; null in processes whose records are not forwarded, and in copies of
/// others.
static OWN: OwnPointer<Sender> = OwnPointer::null();

/// Whether the program's logger may be one of this module.
static MAY_FORWARD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Room to write a record in, kept from one to the next.
    static SCRATCH: RefCell<(String, Vec<u8>)> =
        const { RefCell::new((String::new(), Vec::new())) };
    /// Whether this thread is just giving a record to the lane.
    static IS_SENDING: Cell<bool> = const { Cell::new(false) };
}

fn own() -> Option<&'static Sender> {
    // SAFETY: null, or set by `set_own`, which leaks the sender.
    #[allow(unsafe_code)]
    unsafe {
        OWN.get().as_ref()
    }
}

/// Makes this process send its records by this lane, if it has room for them.
pub(crate) fn set_own(lane: &Lane, bell: RecordBell) {
    if let Some(writer) = RecordWriter::new(lane.clone(), bell) {
        OWN.set(Box::into_raw(Box::new(Sender {
            lane: lane.clone(),
            writer: Mutex::new(writer),
            task: AtomicU64::new(ItemIndex::NONE.to_word()),
        })));
    }
}

/// Gives this process the logger of a worker, unless it has a logger already. `level` is the number
/// of the highest level that is logged.
pub(crate) fn install(level: u8) {
    let known = LevelFilter::iter().find(|known| *known as u8 == level);
    let level = known.unwrap_or(LevelFilter::Off);
    if log::set_logger(&WorkerLogger).is_ok() {
        log::set_max_level(level);
        MAY_FORWARD.store(true, Ordering::Relaxed);
    }
}

/// Notes which task this process begins with: `first` is the task, or the index of its first item.
pub(crate) fn begin_task(first: ItemIndex) {
    if let Some(own) = own() {
        own.task.store(first.to_word(), Ordering::Relaxed);
    }
}

/// Returns whether a process that is forked from this one may forward its records.
pub(crate) fn copies_forward() -> bool {
    MAY_FORWARD.load(Ordering::Relaxed)
}

impl Sender {
    /// Returns the item or task that the calling thread is at. Threads that a task has started
    /// count as at what the worker is at.
    fn index(&self) -> ItemIndex {
        match seed::at() {
            At::Item(index) => return Some(index).into(),
            At::Nowhere if seed::has_lane() => return ItemIndex::NONE,
            At::Nowhere | At::InLane => {}
        }
        let Some(item) = self.lane.header().progress().running() else {
            return ItemIndex::NONE;
        };
        let task = ItemIndex::from_word(self.task.load(Ordering::Relaxed));
        task.unwrap_or(ItemIndex::NONE).plus(item as usize)
    }
}

/// The size up to which a thread keeps the room that a record took.
const KEPT: usize = 4_096;

/// Sends a record. Nothing comes of it in a process that has no sender.
fn send(record: &log::Record<'_>) {
    let taken = SCRATCH.try_with(|scratch| {
        let mut scratch = scratch.try_borrow_mut().ok()?;
        Some(std::mem::take(&mut *scratch))
    });
    let (mut text, mut bytes) = taken.ok().flatten().unwrap_or_default();
    text.clear();
    bytes.clear();
    // This runs code of the user's, which may log, fork or panic. No lock is held.
    let is_written = write!(text, "{}", record.args()).is_ok();
    let Some(own) = own().filter(|_| is_written) else {
        return;
    };
    Record {
        level: record.level(),
        target: record.target(),
        module: record.module_path(),
        file: record.file(),
        line: record.line(),
        index: own.index(),
        message: &text,
    }
    .write_to(&mut bytes);
    // What is called under the lock logs only if the kernel refuses to sleep. That record would
    // wait for this lock, so it is left out.
    if !IS_SENDING.replace(true) {
        own.writer.lock().write(&bytes);
        IS_SENDING.set(false);
    }
    if text.capacity() <= KEPT && bytes.capacity() <= KEPT {
        let _ = SCRATCH.try_with(|scratch| {
            if let Ok(mut scratch) = scratch.try_borrow_mut() {
                *scratch = (text, bytes);
            }
        });
    }
}

/// The logger of a worker process.
struct WorkerLogger;

impl Log for WorkerLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && own().is_some() {
            send(record);
        }
    }

    /// Does nothing: what is written lies in memory that the parent reads.
    fn flush(&self) {}
}

/// A logger around another one, which forked children need so that their log records go through
/// this process's logger.
///
/// A forked child has a copy of the program's logger, and the crate [`log`] does not let it set
/// another one. What the copy does depends on the logger: one that writes to a terminal does so,
/// without saying which worker it was. One that hands its records to a thread loses them, because
/// the child does not have that thread. If the logger is in a `Forwarder`, the children of
/// [`Forked`](crate::Forked) and workers with
/// [`StartMethod::Fork`](crate::engine::StartMethod::Fork) send their records to this process,
/// where the logger gets them with the worker's index and the task. In this process, and in
/// processes forked by other code, a `Forwarder` does what the logger does.
///
/// Workers that are started afresh need no `Forwarder`.
///
/// # Examples
///
/// ```
/// use log::{LevelFilter, Log, Metadata, Record};
/// use manyhands::logs::Forwarder;
/// use manyhands::prelude::*;
/// use std::sync::Mutex;
///
/// static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
///
/// struct Keep;
///
/// impl Log for Keep {
///     fn enabled(&self, _: &Metadata) -> bool {
///         true
///     }
///     fn log(&self, record: &Record) {
///         LINES.lock().unwrap().push(record.args().to_string());
///     }
///     fn flush(&self) {}
/// }
///
/// log::set_boxed_logger(Box::new(Forwarder::new(Keep)))?;
/// log::set_max_level(LevelFilter::Info);
/// // Doc tests run in several threads.
/// let pool = Forked::builder().workers(1).allow_threads(true).build()?;
/// pool.map(|x: u32| log::info!("at {x}"), [7, 8])?;
/// pool.close()?; // by now everything has been logged
/// let lines = LINES.lock().unwrap();
/// assert_eq!(*lines, ["[worker 0, item 0] at 7", "[worker 0, item 1] at 8"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Forwarder<L> {
    logger: L,
    /// [`fork::generation`] of the process that has made this.
    generation: u32,
}

impl<L: Log> Forwarder<L> {
    /// Makes one around `logger`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::logs::Forwarder;
    ///
    /// let logger = log::logger(); // or one that a logging crate builds
    /// log::set_boxed_logger(Box::new(Forwarder::new(logger)))?;
    /// # Ok::<(), log::SetLoggerError>(())
    /// ```
    pub fn new(logger: L) -> Self {
        MAY_FORWARD.store(true, Ordering::Relaxed);
        Self {
            logger,
            generation: fork::generation(),
        }
    }

    /// Returns whether this process sends its records, as a copy of the one that has made this.
    fn sends(&self) -> bool {
        self.generation != fork::generation() && own().is_some()
    }
}

impl<L: Log> Log for Forwarder<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // In a copy the logger is not asked: another thread of the parent may have had its locks.
        // It sees the record in the parent.
        self.sends() || self.logger.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.sends() {
            send(record);
        } else {
            self.logger.log(record);
        }
    }

    fn flush(&self) {
        if !self.sends() {
            self.logger.flush();
        }
    }
}
