//! Where a record or event of a worker comes from, and how the program's logger is called with it.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use log::Level;

use crate::error::TaskId;
use crate::os::fork::Original;
use crate::panic;

/// Where a log record comes from that a worker or child process has written; see [`origin`].
///
/// # Examples
///
/// See [`origin`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The name of the pool, or of the child ([`Process::name`](crate::Process::name)).
    pub name: Arc<str>,
    /// The index of the worker ([`worker_index`](crate::worker_index)); `None` if a
    /// [`Process`](crate::Process) has written the record.
    pub worker: Option<usize>,
    /// The process id of the worker or child.
    pub pid: u32,
    /// The item of its call at which the worker was.
    pub item: Option<usize>,
    /// The task at which the worker was, if it was given by [`submit`](crate::Pool::submit).
    pub task: Option<TaskId>,
}

/// Writes what stands before the message of such a record: `worker 2, item 5` or `process indexer`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.worker {
            Some(worker) => write!(f, "worker {worker}")?,
            None => write!(f, "process {}", self.name)?,
        }
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        if let Some(task) = self.task {
            write!(f, ", task {task}")?;
        }
        Ok(())
    }
}

thread_local! {
    static ORIGIN: RefCell<Option<Origin>> = const { RefCell::new(None) };
}

/// Returns where the record comes from that the program's logger is being given; `None` for
/// records of this process.
///
/// A logger calls it to write worker and task in a way of its own. Loggers that do not find them in
/// the message, which begins with them.
///
/// # Examples
///
/// ```
/// use log::{LevelFilter, Log, Metadata, Record};
/// use manyhands::logs;
/// use manyhands::prelude::*;
/// use std::sync::Mutex;
///
/// static SEEN: Mutex<Vec<(Option<TaskId>, String)>> = Mutex::new(Vec::new());
///
/// struct Keep;
///
/// impl Log for Keep {
///     fn enabled(&self, _: &Metadata) -> bool {
///         true
///     }
///     fn log(&self, record: &Record) {
///         if let Some(origin) = logs::origin() {
///             let text = record.args().to_string();
///             SEEN.lock().unwrap().push((origin.task, text));
///         }
///     }
///     fn flush(&self) {}
/// }
///
/// use manyhands::TaskId;
///
/// log::set_logger(&Keep)?;
/// log::set_max_level(LevelFilter::Info);
/// let pool = Pool::processes(1)?; // the program has a logger, so records are forwarded
/// let task = pool.submit(|x: u32| log::info!("at {x}"), 7);
/// let id = task.id();
/// task.result()?;
/// pool.close()?; // by now everything has been logged
/// let text = format!("[worker 0, task {id}] at 7");
/// assert_eq!(*SEEN.lock().unwrap(), [(Some(id), text)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn origin() -> Option<Origin> {
    ORIGIN.with(|origin| origin.borrow().clone())
}

/// What a record has besides its message.
pub(crate) struct About<'a> {
    pub(crate) level: Level,
    pub(crate) target: &'a str,
    pub(crate) module: Option<&'a str>,
    pub(crate) file: Option<&'a str>,
    pub(crate) line: Option<u32>,
}

/// Calls the program's logger or subscriber, which may panic.
pub(super) fn call(origin: &Origin, log: impl FnOnce()) {
    ORIGIN.set(Some(origin.clone()));
    let original = Original::here();
    let logged = panic::catch(log);
    // A logger may fork, mostly by a C library. A copy that goes on would read records away.
    original.end_copy_after(&logged);
    ORIGIN.set(None);
}
