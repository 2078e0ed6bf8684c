//! What ran where and when, for a viewer of traces.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most events that a pool keeps. When there are more, the oldest are dropped.
const MOST_EVENTS: usize = 1 << 20;

/// What ran on which worker of a pool, and when; see [`Pool::timeline`](crate::Pool::timeline).
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Processes::builder()
///     .workers(1)
///     .name("steps")
///     .timeline(true)
///     .build()?;
/// for step in 0..3 {
///     pool.submit(|step: u32| step, step).result()?;
/// }
/// let timeline = pool.timeline();
/// assert_eq!(
///     (
///         timeline.name.as_str(),
///         timeline.events.len(),
///         timeline.dropped
///     ),
///     ("steps", 3, 0)
/// );
/// assert!(timeline.events.is_sorted_by_key(|event| event.started));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timeline {
    /// The pool's name.
    pub name: String,
    /// What has ended, in the order in which this process learned of it.
    pub events: Vec<TimelineEvent>,
    /// The number of events that are not here any more, because there were too many.
    pub dropped: u64,
}

/// A task, or a chunk of items of a call, that has run on a worker.
///
/// Times are counted from when the pool was made.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Processes::builder().workers(1).timeline(true).build()?;
/// let pid = pool.submit(|()| std::process::id(), ()).result()?;
/// let event = pool.timeline().events[0];
/// assert_eq!(
///     (event.worker, event.pid, event.items, event.completed),
///     (0, pid, 1, true)
/// );
/// assert!(event.queued <= event.started && event.started <= event.ended);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimelineEvent {
    /// Number of the worker.
    pub worker: usize,
    /// The id of the process in which it has run: on threads and [`Serial`](crate::Serial) this
    /// program's.
    pub pid: u32,
    /// The number of items that the worker was to run: 1 for a submitted task, and for a chunk of
    /// [`map_reduce`](crate::Pool::map_reduce).
    pub items: usize,
    /// When the task was given to the pool.
    pub queued: Duration,
    /// When the worker began with the task.
    pub started: Duration,
    /// When the task had ended, or its worker had died.
    pub ended: Duration,
    /// Whether the task came to its end; false if the worker died, of it or because it was to be
    /// stopped.
    pub completed: bool,
}

/// The events of a pool, as they come.
#[derive(Debug)]
pub(super) struct Recorder {
    /// When the pool was made, in nanoseconds of the clock that the engine reads.
    start: u64,
    events: VecDeque<TimelineEvent>,
    dropped: u64,
}

impl Recorder {
    /// Makes a recorder of a pool that is made at this moment of the clock that its engine reads.
    pub(super) fn new(start: u64) -> Self {
        Self {
            start,
            events: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Returns a time of that clock as the time since the pool was made.
    pub(super) fn since_start(&self, time: u64) -> Duration {
        Duration::from_nanos(time.saturating_sub(self.start))
    }

    pub(super) fn record(&mut self, event: TimelineEvent) {
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
            self.dropped += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn snapshot(&self, name: &str) -> Timeline {
        Timeline {
            name: name.to_owned(),
            events: self.events.iter().copied().collect(),
            dropped: self.dropped,
        }
    }
}

impl Timeline {
    /// Writes the timeline in the JSON of Chrome's trace viewer (the "Trace Event Format"), which
    /// Perfetto (<https://ui.perfetto.dev>) reads too. Each worker is a line of it, with its tasks
    /// on it. How long a task was queued is among the task's arguments, in microseconds.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    ///
    /// let pool = Processes::builder().workers(2).timeline(true).build()?;
    /// pool.map(|x: u64| x * x, 0..1_000)?;
    /// let mut trace = Vec::new(); // or a file
    /// pool.timeline().write_trace(&mut trace)?;
    /// assert!(trace.starts_with(b"{\"traceEvents\":["));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_trace(&self, mut out: impl Write) -> io::Result<()> {
        let start = self
            .events
            .iter()
            .map(|event| event.queued)
            .min()
            .unwrap_or_default();
        // Times that cannot be right do not become negative.
        let microseconds =
            |from: Duration, to: Duration| to.saturating_sub(from).as_nanos() as f64 / 1_000.0;
        let own = std::process::id();
        let name = escaped(&self.name);
        write!(
            out,
            "{{\"traceEvents\":[\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{own},\"args\":{{\"name\":\"pool {name}\"}}}}"
        )?;
        let workers = self.events.iter().map(|event| event.worker).max();
        for worker in workers.map_or(0..0, |last| 0..last + 1) {
            write!(
                out,
                ",\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{own},\"tid\":{worker},\"args\":{{\"name\":\"worker {worker}\"}}}}"
            )?;
        }
        for event in &self.events {
            let label = match (event.completed, event.items) {
                (false, _) => "died".to_owned(),
                (true, 1) => "task".to_owned(),
                (true, items) => format!("{items} items"),
            };
            write!(
                out,
                ",\n{{\"ph\":\"X\",\"name\":\"{label}\",\"pid\":{own},\"tid\":{},\"ts\":{:.3},\"dur\":{:.3},\"args\":{{\"queued\":{:.3},\"items\":{},\"process\":{}}}}}",
                event.worker,
                microseconds(start, event.started),
                microseconds(event.started, event.ended),
                microseconds(event.queued, event.started),
                event.items,
                event.pid,
            )?;
        }
        writeln!(out, "\n]}}")?;
        out.flush()
    }
}

/// Returns the text as it stands within a JSON string.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => vec![' '],
            c => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: TimelineEvent = TimelineEvent {
        worker: 1,
        pid: 42,
        items: 3,
        queued: Duration::from_micros(1),
        started: Duration::from_micros(3),
        ended: Duration::from_nanos(8_500),
        completed: true,
    };

    #[test]
    fn a_trace_has_times_in_microseconds_from_the_first_event() {
        let mut recorder = Recorder::new(0);
        recorder.record(EVENT);
        let mut trace = Vec::new();
        recorder
            .snapshot("a \"name\" with \\ and \n")
            .write_trace(&mut trace)
            .unwrap();
        let trace = String::from_utf8(trace).unwrap();
        let name = r#""name":"pool a \"name\" with \\ and  ""#;
        assert!(trace.contains(name), "{trace}");
        assert!(trace.contains(r#""name":"3 items","#), "{trace}");
        assert!(
            trace.contains(
                r#""tid":1,"ts":2.000,"dur":5.500,"args":{"queued":2.000,"items":3,"process":42}"#
            ),
            "{trace}"
        );
    }

    #[test]
    fn each_event_of_a_trace_says_what_it_is_and_each_worker_has_a_line() {
        let timeline = Timeline {
            name: "many".to_owned(),
            events: vec![
                TimelineEvent {
                    items: 1,
                    worker: 0,
                    ..EVENT
                },
                // The event that was queued first is not the one that ended first.
                TimelineEvent {
                    queued: Duration::from_nanos(500),
                    completed: false,
                    worker: 2,
                    ..EVENT
                },
                // Times that cannot be right do not become negative.
                TimelineEvent {
                    queued: Duration::from_micros(4),
                    ended: Duration::from_micros(2),
                    ..EVENT
                },
            ],
            dropped: 0,
        };
        let mut trace = Vec::new();
        timeline.write_trace(&mut trace).unwrap();
        let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let named = |event: &serde_json::Value| {
            let (kind, name) = (&event["name"], &event["args"]["name"]);
            format!("{} {}", kind.as_str().unwrap(), name.as_str().unwrap())
        };
        let lines: Vec<String> = events[..4].iter().map(named).collect();
        let workers = [0, 1, 2].map(|number| format!("thread_name worker {number}"));
        assert_eq!(lines[0], "process_name pool many");
        assert_eq!(lines[1..], workers);
        let own = |event: &serde_json::Value| {
            let numbers = ["tid", "ts", "dur"].map(|name| event[name].as_f64().unwrap());
            let queued = event["args"]["queued"].as_f64().unwrap();
            let name = event["name"].as_str().unwrap().to_owned();
            (name, numbers, queued)
        };
        let events: Vec<_> = events[4..].iter().map(own).collect();
        let expected = [
            ("task", [0.0, 2.5, 5.5], 2.0),
            ("died", [2.0, 2.5, 5.5], 2.5),
            ("3 items", [1.0, 2.5, 0.0], 0.0),
        ];
        let expected = expected.map(|(name, numbers, queued)| (name.to_owned(), numbers, queued));
        assert_eq!(events, expected);
        let mut trace = Vec::new();
        Timeline::default().write_trace(&mut trace).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&trace).is_ok());
    }

    #[test]
    fn the_oldest_events_go_when_there_are_too_many() {
        let mut recorder = Recorder::new(0);
        for nth in 0..MOST_EVENTS as u64 + 5 {
            recorder.record(TimelineEvent {
                queued: Duration::from_nanos(nth),
                ..EVENT
            });
        }
        let timeline = recorder.snapshot("");
        assert_eq!((timeline.events.len(), timeline.dropped), (MOST_EVENTS, 5));
        assert_eq!(timeline.events[0].queued, Duration::from_nanos(5));
    }
}
