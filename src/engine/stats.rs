//! What a pool's workers have done so far, whatever its engine.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::TaskError;

/// What a pool has done since it was made; see [`Pool::stats`](crate::Pool::stats).
///
/// Its text form is a table with a line for each worker and one for all. Programs read it through
/// serde: durations are in seconds and nanoseconds, as serde writes them, and sizes in bytes.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Processes::builder().workers(2).name("render").build()?;
/// pool.map(|x: u64| x + 1, 0..100)?;
/// let stats = pool.stats();
/// assert_eq!(
///     (stats.name.as_str(), stats.workers.len(), stats.cancelled),
///     ("render", 2, 0)
/// );
/// assert!(stats.to_string().starts_with("pool render, "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PoolStats {
    /// The pool's name.
    pub name: String,
    /// Time since the pool was made.
    pub uptime: Duration,
    /// Each worker's place, in order. A worker that replaces another one goes on where that one
    /// was.
    pub workers: Vec<WorkerStats>,
    /// Tasks that were cancelled before any worker had begun with them, or whose call had ended by
    /// then at its deadline. Items of calls count singly; those that were not read do not count.
    pub cancelled: u64,
    /// Attempts that failed and were followed by another ([`Call::retry`](crate::Call::retry),
    /// [`Call::retries`](crate::Call::retries)). Whatever their number, a task counts once, with
    /// its last outcome.
    pub retried: u64,
}

/// What has been done in the place of one worker.
///
/// What an engine does not have is `None` or zero there: threads have no process ids of their own,
/// and nothing is sent to them. The fields say what each engine counts.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(1)?;
/// let crash = pool.submit(|()| -> () { std::process::abort() }, ());
/// assert!(crash.result().is_err());
/// let pid = pool.submit(|()| std::process::id(), ()).result()?;
/// let worker = &pool.stats().workers[0];
/// assert_eq!(
///     (
///         worker.pid,
///         worker.tasks,
///         worker.failures.worker_died,
///         worker.respawns
///     ),
///     (Some(pid), 2, 1, 1)
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Process id of the worker process that is there now, if one is. On threads and
    /// [`Serial`](crate::Serial) there is none, and forked children come and go with their calls.
    pub pid: Option<u32>,
    /// Tasks that have ended, failed ones included. Items of calls count singly, but a chunk of
    /// [`map_reduce`](crate::Pool::map_reduce) counts as one.
    pub tasks: u64,
    /// Those of these tasks that have failed, by cause.
    pub failures: Failures,
    /// How often a worker was started here again: after a death, a limit of tasks, or a rest. For
    /// each call a pool of forked children starts its children again, and that counts too.
    pub respawns: u64,
    /// Time in which a worker was here, from the moment its start began. A thread is here from when
    /// it takes tasks, after its initialiser. Of forked children those that have ended are counted.
    /// On [`Serial`](crate::Serial) it is the age of the pool.
    pub uptime: Duration,
    /// The part of `uptime` in which the worker had something to do. What comes before its first
    /// task counts too, the initialiser included. Accurate to a microsecond for each time it ran
    /// dry. On threads it is measured if a timeline is kept, and zero otherwise: a task would pay
    /// for two looks at the clock each time its thread falls asleep. A forked child has something
    /// to do from its start to its end. On [`Serial`](crate::Serial) it is the time in calls, each
    /// accurate to the system's clock tick.
    pub busy_time: Duration,
    /// How long what was given to the workers here had waited behind other work, in all. Accurate
    /// to the system's clock tick for each. A chunk of a call waits once. Zero on
    /// [`Serial`](crate::Serial) and forked children: there, what waits waits in the caller.
    pub queue_wait: Duration,
    /// Bytes sent to the workers: functions, contexts, arguments. Only worker processes are sent
    /// anything: threads and forked children see the caller's memory.
    pub bytes_sent: u64,
    /// Bytes received from worker processes and forked children: results and errors.
    pub bytes_received: u64,
    /// The most memory that a worker here has had resident at once, in bytes, shared memory
    /// included. On threads and [`Serial`](crate::Serial) that of this program, of which the
    /// workers are a part.
    pub peak_memory: u64,
    /// Log records of the workers here that this process has taken to give them to its logger: see
    /// [`logs`](crate::logs).
    pub log_records: u64,
    /// Log records that the workers here have dropped, because they came faster than they were
    /// logged.
    pub log_records_dropped: u64,
}

/// Tasks that have failed, by cause.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let _ = pool.map_outcomes(
///     |x: u8| match x {
///         0 => panic!(),
///         1 => std::process::abort(),
///         _ => x,
///     },
///     0..5,
/// );
/// let failures = pool.stats().total().failures;
/// assert_eq!(
///     (failures.panicked, failures.worker_died, failures.timed_out),
///     (1, 1, 0)
/// );
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failures {
    /// [`TaskError::Panicked`].
    pub panicked: u64,
    /// [`TaskError::WorkerDied`].
    pub worker_died: u64,
    /// [`TaskError::OutOfMemory`].
    pub out_of_memory: u64,
    /// [`TaskError::TimedOut`], and [`TaskError::DeadlineExceeded`] after a worker had begun with
    /// them.
    pub timed_out: u64,
    /// [`TaskError::Cancelled`], after a worker had begun with them.
    pub cancelled: u64,
    /// [`TaskError::Encode`], as far as the worker found them: of results.
    pub encode: u64,
    /// [`TaskError::Decode`], as far as the worker found them: of arguments and contexts.
    pub decode: u64,
}

impl Failures {
    /// Returns the number of failures of all causes together.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// let _ = pool.map_outcomes(|x: u8| assert!(x < 2), 0..5);
    /// assert_eq!(pool.stats().total().failures.total(), 3);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn total(&self) -> u64 {
        self.panicked
            + self.worker_died
            + self.out_of_memory
            + self.timed_out
            + self.cancelled
            + self.encode
            + self.decode
    }

    pub(super) fn count(&mut self, error: &TaskError) {
        let counter = match error {
            TaskError::Panicked { .. } => &mut self.panicked,
            TaskError::OutOfMemory { .. } => &mut self.out_of_memory,
            TaskError::TimedOut { .. } | TaskError::DeadlineExceeded {} => &mut self.timed_out,
            TaskError::Cancelled {} => &mut self.cancelled,
            TaskError::Encode { .. } => &mut self.encode,
            TaskError::Decode { .. } => &mut self.decode,
            _ => &mut self.worker_died,
        };
        *counter += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.panicked += other.panicked;
        self.worker_died += other.worker_died;
        self.out_of_memory += other.out_of_memory;
        self.timed_out += other.timed_out;
        self.cancelled += other.cancelled;
        self.encode += other.encode;
        self.decode += other.decode;
    }
}

impl WorkerStats {
    /// Returns the share of its time in which the worker had something to do, from 0 to 1. Its
    /// start counts too ([`busy_time`](Self::busy_time)).
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(1)?;
    /// pool.map(|x: u64| (0..x).sum::<u64>(), [1_000; 100])?;
    /// let share = pool.stats().total().utilization();
    /// assert!(share > 0.0 && share <= 1.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn utilization(&self) -> f64 {
        if self.uptime.is_zero() {
            return 0.0;
        }
        self.busy_time.as_secs_f64() / self.uptime.as_secs_f64()
    }

    fn add(&mut self, other: &Self) {
        self.tasks += other.tasks;
        self.failures.add(&other.failures);
        self.respawns += other.respawns;
        self.uptime += other.uptime;
        self.busy_time += other.busy_time;
        self.queue_wait += other.queue_wait;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        self.log_records += other.log_records;
        self.log_records_dropped += other.log_records_dropped;
    }
}

impl PoolStats {
    /// Returns the numbers of all workers together: sums, except for the memory, which is that of
    /// the largest.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Pool::processes(2)?;
    /// pool.map(|x: u64| x * x, 0..1_000)?;
    /// assert_eq!(pool.stats().total().tasks, 1_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn total(&self) -> WorkerStats {
        let mut total = WorkerStats::default();
        self.workers.iter().for_each(|worker| total.add(worker));
        total
    }
}

impl fmt::Display for PoolStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.uptime.as_secs_f64();
        write!(
            f,
            "pool {}, {age:.1} s old, {} cancelled",
            self.name, self.cancelled
        )?;
        if self.retried > 0 {
            write!(f, ", {} retried", self.retried)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:>6} {:>8} {:>12} {:>8} {:>8} {:>6} {:>11} {:>10} {:>10} {:>10}",
            "worker",
            "pid",
            "tasks",
            "failed",
            "respawns",
            "busy",
            "queue wait",
            "sent",
            "received",
            "memory"
        )?;
        for (number, worker) in self.workers.iter().enumerate() {
            let pid = worker.pid.map_or("-".to_owned(), |pid| pid.to_string());
            line(f, &number.to_string(), &pid, worker)?;
        }
        line(f, "all", "", &self.total())?;
        for (number, worker) in self.workers.iter().enumerate() {
            let failures = &worker.failures;
            if failures.total() > 0 {
                writeln!(
                    f,
                    "worker {number} failed: {} panicked, {} died, {} out of memory, {} timed out, {} cancelled, {} not encoded, {} not decoded",
                    failures.panicked,
                    failures.worker_died,
                    failures.out_of_memory,
                    failures.timed_out,
                    failures.cancelled,
                    failures.encode,
                    failures.decode
                )?;
            }
            if worker.log_records_dropped > 0 {
                writeln!(
                    f,
                    "worker {number} dropped {} log records and sent {}",
                    worker.log_records_dropped, worker.log_records
                )?;
            }
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, pid: &str, stats: &WorkerStats) -> fmt::Result {
    writeln!(
        f,
        "{name:>6} {pid:>8} {:>12} {:>8} {:>8} {:>5.1}% {:>9.3} s {:>10} {:>10} {:>10}",
        stats.tasks,
        stats.failures.total(),
        stats.respawns,
        100.0 * stats.utilization(),
        stats.queue_wait.as_secs_f64(),
        size(stats.bytes_sent),
        size(stats.bytes_received),
        size(stats.peak_memory),
    )
}

/// Writes a number of bytes as people read it.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1_000.0 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1_024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let short = [0, 999, 1_000, 1 << 20, 5 << 30, 3 << 40].map(size);
        assert_eq!(
            short,
            ["0 B", "999 B", "1.0 KiB", "1.0 MiB", "5.0 GiB", "3.0 TiB"]
        );
    }

    #[test]
    fn the_table_has_a_line_for_each_worker_and_one_for_all() {
        let mut stats = PoolStats {
            name: "render".to_owned(),
            workers: vec![WorkerStats::default(); 2],
            ..PoolStats::default()
        };
        stats.workers[1].tasks = 7;
        stats.workers[1].failures.count(&TaskError::Cancelled {});
        let table = stats.to_string();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 6, "{table}");
        assert!(
            lines[4].trim_start().starts_with("all") && lines[4].contains(" 7 "),
            "{table}"
        );
        assert!(lines[5].contains("1 cancelled"), "{table}");
    }

    /// Returns statistics of which no two numbers are the same.
    fn stats(first: u64) -> WorkerStats {
        let failures = Failures {
            panicked: first,
            worker_died: first << 1,
            out_of_memory: first << 2,
            timed_out: first << 3,
            cancelled: first << 4,
            encode: first << 5,
            decode: first << 6,
        };
        WorkerStats {
            pid: Some(4_242),
            tasks: 1_000 + first,
            failures,
            respawns: 2_000 + first,
            uptime: Duration::from_secs(100 * first),
            busy_time: Duration::from_secs(25 * first),
            queue_wait: Duration::from_secs(3_000 + first),
            bytes_sent: 4_000 + first,
            bytes_received: 5_000 + first,
            peak_memory: 6_000 + first,
            log_records: 7_000 + first,
            log_records_dropped: 8_000 + first,
        }
    }

    #[test]
    fn all_workers_together_have_the_sum_of_each_number_and_the_largest_memory() {
        let pool = PoolStats {
            workers: vec![stats(2), stats(1)],
            ..PoolStats::default()
        };
        let failures = Failures {
            panicked: 3,
            worker_died: 6,
            out_of_memory: 12,
            timed_out: 24,
            cancelled: 48,
            encode: 96,
            decode: 192,
        };
        let expected = WorkerStats {
            pid: None,
            tasks: 2_003,
            failures,
            respawns: 4_003,
            uptime: Duration::from_secs(300),
            busy_time: Duration::from_secs(75),
            queue_wait: Duration::from_secs(6_003),
            bytes_sent: 8_003,
            bytes_received: 10_003,
            peak_memory: 6_002,
            log_records: 14_003,
            log_records_dropped: 16_003,
        };
        let total = pool.total();
        assert_eq!(total, expected);
        assert_eq!(total.failures.total(), 3 * 127);
        let is_near = |share: f64, expected: f64| (share - expected).abs() < 1e-9;
        assert!(is_near(total.utilization(), 0.25));
        assert!(is_near(WorkerStats::default().utilization(), 0.0));
    }

    #[test]
    fn each_failure_is_counted_under_its_cause() {
        use crate::error::{Death, TaskValue};
        let limit = Duration::from_secs(1);
        let (index, pid, attempts, part) = (None, 1, 1, TaskValue::Argument);
        let reason = String::new;
        let errors = [
            TaskError::Panicked {
                index: index.into(),
                message: reason().into(),
                location: None,
                backtrace: None,
            },
            TaskError::WorkerDied {
                index: index.into(),
                pid,
                cause: Death::Signal(9),
                attempts,
                crash: None,
            },
            TaskError::OutOfMemory {
                index: index.into(),
                pid,
                limit: 1,
                attempts,
            },
            TaskError::TimedOut {
                index: index.into(),
                limit,
                attempts: 1,
            },
            TaskError::Cancelled {},
            TaskError::Encode {
                index: index.into(),
                part,
                reason: reason().into(),
            },
            TaskError::Decode {
                index: index.into(),
                part,
                reason: reason().into(),
            },
        ];
        let counted = errors.map(|error| {
            let mut failures = Failures::default();
            failures.count(&error);
            [
                failures.panicked,
                failures.worker_died,
                failures.out_of_memory,
                failures.timed_out,
                failures.cancelled,
                failures.encode,
                failures.decode,
            ]
        });
        for (nth, counts) in counted.into_iter().enumerate() {
            let mut expected = [0; 7];
            expected[nth] = 1;
            assert_eq!(counts, expected, "error {nth}");
        }
    }

    #[test]
    fn the_table_has_each_number_under_its_name() {
        let mut pool = PoolStats {
            workers: vec![stats(1)],
            cancelled: 77,
            retried: 0,
            uptime: Duration::from_secs(12),
            ..PoolStats::default()
        };
        pool.workers[0].bytes_received = 500;
        pool.workers[0].bytes_sent = 400;
        pool.workers[0].peak_memory = 600;
        let table = pool.to_string();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert!(
            table.starts_with("pool , 12.0 s old, 77 cancelled\n"),
            "{table}"
        );
        let own = "0 4242 1001 127 2001 25.0% 3001.000 s 400 B 500 B 600 B";
        assert_eq!(lines[2].join(" "), own, "{table}");
        let causes = "worker 0 failed: 1 panicked, 2 died, 4 out of memory, 8 timed out, \
                      16 cancelled, 32 not encoded, 64 not decoded";
        assert_eq!(lines[4].join(" "), causes, "{table}");
        let dropped = "worker 0 dropped 8001 log records and sent 7001";
        assert_eq!(lines[5].join(" "), dropped, "{table}");
        pool.workers[0].pid = None;
        assert!(pool.to_string().contains("\n     0        - "), "{table}");
    }
}
