//! What the workers run: jobs that live, and jobs that take their worker along at a chosen point;
//! and what may come of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::should_stop;
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

use super::common::errors::is_closed;
use super::common::random::Random;

/// When a job takes its worker along, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Live,
    Panic,
    /// While the argument is taken apart: after the start has been noted, before the function.
    InArgument,
    InTask,
    /// While the result is put together.
    InResult,
    /// When the result has been put together, and not been sent.
    InDrop,
    /// At some moment after the start: while the result is sent, right after that, in the middle of
    /// another task, or idle.
    Soon,
    /// The worker is stopped at some moment after the start.
    StopSoon,
    /// It is stopped in the middle of the task.
    Stop,
    /// Ends when it is told to stop.
    UntilTold,
    /// Never ends.
    Endless,
}

const DEADLY: [Way; 4] = [Way::InArgument, Way::InTask, Way::InResult, Way::InDrop];

impl Way {
    /// Whether the worker is certain to die of it.
    pub(crate) fn is_deadly(self) -> bool {
        DEADLY.contains(&self)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "(u64, Way, String)", into = "(u64, Way, String)")]
pub(crate) struct Job {
    n: u64,
    pub(crate) way: Way,
    text: String,
}

impl From<(u64, Way, String)> for Job {
    fn from((n, way, text): (u64, Way, String)) -> Self {
        if way == Way::InArgument {
            die(n);
        }
        Self { n, way, text }
    }
}

impl From<Job> for (u64, Way, String) {
    fn from(Job { n, way, text }: Job) -> Self {
        (n, way, text)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(from = "(String, u64)")]
pub(crate) struct Answer {
    text: String,
    n: u64,
    way: Way,
}

impl From<(String, u64)> for Answer {
    fn from((text, n): (String, u64)) -> Self {
        let way = Way::Live;
        Self { text, n, way }
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&self.text)?;
        if self.way == Way::InResult {
            die(self.n);
        }
        tuple.serialize_element(&self.n)?;
        tuple.end()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.way == Way::InDrop {
            die(self.n);
        }
    }
}

/// Ends this process, by one of the ways there are.
pub(crate) fn die(n: u64) -> ! {
    match n % 4 {
        0 => drop(raise(Signal::SIGKILL)),
        1 => drop(raise(Signal::SIGSEGV)),
        2 => std::process::exit(7),
        _ => {}
    }
    std::process::abort()
}

pub(crate) fn run(job: Job) -> Answer {
    match job.way {
        Way::InTask => die(job.n),
        Way::Panic => panic!("job {}", job.n),
        Way::Endless => loop {
            std::thread::park();
        },
        Way::UntilTold => {
            while !should_stop() {
                std::thread::yield_now();
            }
        }
        Way::Soon => {
            std::thread::spawn(move || {
                for _ in 0..job.n % 500 {
                    std::thread::yield_now();
                }
                die(job.n)
            });
        }
        Way::Stop => {
            let _ = kill(Pid::this(), Signal::SIGSTOP);
        }
        Way::StopSoon => {
            std::thread::spawn(move || {
                for _ in 0..job.n % 500 {
                    std::thread::yield_now();
                }
                // The whole process, whichever thread asks for it.
                let _ = kill(Pid::this(), Signal::SIGSTOP);
            });
        }
        _ => {}
    }
    Answer {
        text: job.text,
        n: answer(job.n),
        way: job.way,
    }
}

/// Runs a job, and returns its answer as an error if it is to be refused.
pub(crate) fn run_or_refuse((job, is_refused): (Job, bool)) -> Result<Answer, Answer> {
    let answer = run(job);
    if is_refused { Err(answer) } else { Ok(answer) }
}

fn answer(n: u64) -> u64 {
    n.wrapping_mul(3) + 1
}

/// A task ends after this many deaths before its start, whatever its retries.
pub(crate) const MOST_FALSE_STARTS: u32 = 16;

/// What was asked of a job's task, and with it what may come of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) retries: u32,
    pub(crate) limit: Option<Duration>,
    pub(crate) may_be_cancelled: bool,
    /// Whether what it panics at and takes too long at is tried again, too.
    pub(crate) has_policy: bool,
    /// The deadline of the call, from its start. It may have passed.
    pub(crate) deadline: Option<Duration>,
    /// How long the job may go on when it is told to stop, if it is told.
    pub(crate) grace: Option<Duration>,
}

impl Rules {
    /// Whether a task that failed for good may have been started so often.
    fn allow(self, attempts: u32) -> bool {
        // Once its call is over, no item is tried again.
        let may_be_over = self.may_be_cancelled || self.deadline.is_some();
        let most = self.retries + 1;
        attempts == most || (may_be_over && attempts < most)
    }
}

static VALUES: AtomicUsize = AtomicUsize::new(0);
static ERRORS: AtomicUsize = AtomicUsize::new(0);

/// Values and errors so far.
pub(crate) fn counts() -> [usize; 2] {
    [
        VALUES.load(Ordering::Relaxed),
        ERRORS.load(Ordering::Relaxed),
    ]
}

impl Job {
    pub(crate) fn new(random: &mut Random, way: Way) -> Self {
        // Small ones, some that fill a few cells, and some that are larger than a ring.
        let len = match random.below(40) {
            0 => random.below(3 << 20),
            1..=8 => random.below(20_000),
            _ => random.below(40),
        };
        let n = random.next() >> 2;
        let letter = char::from(b'a' + (n % 26) as u8);
        let text = std::iter::repeat_n(letter, len).collect();
        Self { n, way, text }
    }

    /// Makes a job that may take its worker along.
    pub(crate) fn any(random: &mut Random, one_in: usize) -> Self {
        let way = match random.below(2 * one_in) {
            0 => DEADLY[random.below(DEADLY.len())],
            1 if random.one_in(3) => Way::Soon,
            1 if random.one_in(2) => [Way::StopSoon, Way::Stop][random.below(2)],
            1 => Way::Panic,
            _ => Way::Live,
        };
        Self::new(random, way)
    }

    /// The number that the answer has.
    fn expected(&self) -> u64 {
        answer(self.n)
    }

    pub(crate) fn is_answered_by(&self, answer: &Answer) -> bool {
        answer.n == self.expected() && answer.text == self.text
    }

    /// Whether this may come of it.
    #[track_caller]
    pub(crate) fn check(
        &self,
        outcome: Result<Answer, TaskError>,
        index: Option<usize>,
        rules: Rules,
        is_ending: bool,
    ) {
        let counter = if outcome.is_ok() { &VALUES } else { &ERRORS };
        counter.fetch_add(1, Ordering::Relaxed);
        if matches!(self.way, Way::StopSoon | Way::Stop) {
            super::STOPS.fetch_add(1, Ordering::Relaxed);
        }
        if self.way.is_deadly() {
            super::KILLS.fetch_add(1, Ordering::Relaxed);
        }
        match outcome {
            Ok(answer) => {
                let is_survivor = match self.way {
                    Way::Live | Way::Soon | Way::StopSoon | Way::Stop => true,
                    Way::UntilTold => rules.grace.is_some(),
                    _ => false,
                };
                assert!(is_survivor, "{:?} has an answer", self.way);
                assert!(self.is_answered_by(&answer), "another answer came back");
            }
            Err(error) => {
                let is_right = self.explains(&error, index, rules, is_ending);
                assert!(
                    is_right,
                    "{error:?} of {:?}, {index:?}, {rules:?}",
                    self.way
                );
            }
        }
    }

    fn explains(
        &self,
        error: &TaskError,
        at: Option<usize>,
        rules: Rules,
        is_ending: bool,
    ) -> bool {
        match error {
            TaskError::Panicked { message, index, .. } => {
                let is_own = *message == format!("job {}", self.n) && *index == at;
                let is_last = match error.attempts() {
                    Some(attempts) if rules.has_policy => rules.allow(attempts) || is_ending,
                    _ => !rules.has_policy,
                };
                self.way == Way::Panic && is_own && is_last
            }
            TaskError::WorkerDied {
                index,
                cause,
                attempts,
                pid,
                ..
            } => {
                let known = [
                    Death::Signal(9),
                    Death::Signal(11),
                    Death::Signal(6),
                    Death::Exit(7),
                ];
                // Or this many workers have died in a row before the item could start, while its
                // argument was under way.
                let gives_up = *attempts == MOST_FALSE_STARTS;
                let is_last = rules.allow(*attempts);
                *index == at && known.contains(cause) && (is_last || gives_up) && *pid > 0
            }
            TaskError::TimedOut {
                index,
                limit,
                attempts,
                ..
            } => {
                let is_last = !rules.has_policy || rules.allow(*attempts) || is_ending;
                *index == at && rules.limit == Some(*limit) && is_last
            }
            TaskError::Cancelled { .. } => rules.may_be_cancelled || is_ending,
            TaskError::DeadlineExceeded { .. } => rules.deadline.is_some(),
            error if is_closed(error) => is_ending,
            _ => false,
        }
    }
}
