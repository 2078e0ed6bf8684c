//! What may come of a task, by what it does, what was asked of it, and what has been done to its
//! pool.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use manyhands::error::TaskValue;
use manyhands::prelude::*;

use crate::common::errors::{cancelled, is_cancelled_or_closed, is_closed};
use crate::program::{Kind, Options, Way};
use crate::task::{Answer, NESTED, nested};

/// The rule that an outcome breaks, and how.
pub(crate) type Broken = (&'static str, String);

/// What has been done to a pool so far. Each is set before it is done, and read after an outcome is
/// there.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// A close, a shutdown or a drop has begun: the pool may refuse tasks.
    pub(crate) ends: AtomicBool,
    /// A shutdown or a drop has begun: the pool may cancel tasks.
    pub(crate) cancels: AtomicBool,
    /// One of them has returned.
    pub(crate) has_ended: AtomicBool,
    /// Ends with a time limit that have begun on a pool of threads. If the time of one is over,
    /// what a thread runs goes on, and no other end waits for it.
    pub(crate) timed_ends: AtomicUsize,
    /// Workers killed from outside.
    pub(crate) kills: AtomicUsize,
    /// Workers stopped from outside.
    pub(crate) stops: AtomicUsize,
    /// Tasks that died of what they have not done themselves.
    pub(crate) victims: AtomicUsize,
}

impl Deeds {
    pub(crate) fn are_ending(&self) -> bool {
        self.ends.load(Ordering::SeqCst)
    }

    pub(crate) fn are_cancelling(&self) -> bool {
        self.cancels.load(Ordering::SeqCst)
    }
}

/// A task that was given to a pool.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) id: u32,
    pub(crate) pool: usize,
    /// What is left of its kind on its engine.
    pub(crate) kind: Kind,
    pub(crate) options: Options,
    /// How often it is run again, at most: after the death of its worker, and with a policy after
    /// its panic or its limit too.
    pub(crate) retries: u32,
    /// Its index in its call.
    pub(crate) index: Option<usize>,
    /// It has not started before this.
    pub(crate) since: Instant,
    /// A call that ended the pool had returned before the task was given.
    pub(crate) is_late: bool,
    /// `cancel` has said that it cancelled the task.
    pub(crate) is_cancelled: bool,
    /// So has `kill`.
    pub(crate) is_killed: bool,
}

pub(crate) fn ends_with(way: Way) -> Death {
    match way {
        Way::Abort => Death::Signal(6),
        Way::Exit => Death::Exit(7),
        Way::Kill => Death::Signal(9),
        Way::Segv => Death::Signal(11),
    }
}

impl Given {
    /// How its worker dies of it, if it does.
    fn death(&self) -> Option<Death> {
        match self.kind {
            Kind::Die(way) => Some(ends_with(way)),
            Kind::DieInArgument | Kind::DieInResult => Some(Death::Signal(6)),
            _ => None,
        }
    }

    /// Whether it may have an answer, if the pool lets it run.
    pub(crate) fn may_succeed(&self) -> bool {
        let most = self.options.most();
        match self.kind {
            _ if most == Some(0) => false,
            // What returns within its grace period has its result.
            Kind::Slow(millis) => most.is_none_or(|most| u64::from(millis) <= most),
            Kind::Live | Kind::Large | Kind::Nested(_) | Kind::UntilTold => true,
            _ => false,
        }
    }

    /// Whether the task that gave this answer was told to stop if it should have been, and not if
    /// not.
    fn is_told_rightly(&self, answer: &Answer, own: &Deeds) -> bool {
        let limit = self.options.limit.unwrap_or(u64::MAX);
        let must = match self.kind {
            Kind::UntilTold => true,
            Kind::Slow(millis) => self.options.grace.is_some() && u64::from(millis) >= limit,
            _ => false,
        };
        if !answer.is_told {
            return !must;
        }
        let is_over = self.since.elapsed() >= Duration::from_millis(limit);
        let is_ended = self.is_killed || own.are_cancelling();
        self.options.grace.is_some() && (is_over || is_ended)
    }

    /// Checks an outcome. `deeds` are those of all pools.
    pub(crate) fn check(
        &self,
        outcome: &Result<Answer, TaskError>,
        deeds: &[Deeds],
    ) -> Result<(), Broken> {
        let own = &deeds[self.pool];
        if self.is_cancelled && *outcome != Err(cancelled()) {
            return self.broken("a task that `cancel` has cancelled says so", outcome);
        }
        match outcome {
            Ok(answer) if !answer.is_of(self.id, self.kind) => {
                self.broken("each task has its own answer", outcome)
            }
            Ok(_) if self.is_late => self.broken("a pool that has ended takes no task", outcome),
            Ok(_) if !self.may_succeed() => self.broken("a task that fails has no answer", outcome),
            Ok(answer) if !self.is_told_rightly(answer, own) => self.broken(
                "a task is told to stop at its limit, if it has a grace period",
                outcome,
            ),
            Ok(answer) => match &answer.nested {
                Some(Ok(values)) if *values == NESTED.map(nested).collect::<Vec<_>>() => Ok(()),
                // The call of the task was on this pool, or on one after it.
                Some(Err(error))
                    if is_cancelled_or_closed(error)
                        && deeds[self.pool..].iter().any(Deeds::are_ending) =>
                {
                    Ok(())
                }
                Some(Err(TaskError::WorkerDied { cause, .. }))
                    if *cause == Death::Signal(9)
                        && deeds.iter().any(|of| of.kills.load(Ordering::SeqCst) > 0) =>
                {
                    Ok(())
                }
                None if !matches!(self.kind, Kind::Nested(_)) => Ok(()),
                None if deeds[self.pool..].iter().any(Deeds::are_ending) => Ok(()),
                _ => self.broken("a call in a task gives what it would give outside", outcome),
            },
            Err(error) if !self.is_number_of_attempts(error, own) => {
                self.broken("an error says how often the task was started", outcome)
            }
            Err(error) if self.explains(error, own) => Ok(()),
            Err(_) => self.broken("an error says what has happened", outcome),
        }
    }

    fn broken<T>(
        &self,
        rule: &'static str,
        outcome: &Result<Answer, TaskError>,
    ) -> Result<T, Broken> {
        // The text of an answer may be long.
        let outcome = outcome
            .as_ref()
            .map(|answer| (answer.id, &answer.nested, answer.is_told));
        Err((rule, format!("{outcome:?}, of {self:?}")))
    }

    /// Whether the error says a number of attempts that it can be of.
    fn is_number_of_attempts(&self, error: &TaskError, own: &Deeds) -> bool {
        let Some(attempts) = error.attempts() else {
            return true;
        };
        let most = self.retries + 1;
        let is_death = matches!(error, TaskError::WorkerDied { .. });
        let may_die = self.death().is_some() || own.kills.load(Ordering::SeqCst) > 0;
        let (may_have_more, is_last) = if self.options.policy {
            // What ends early, or is not started in time, is not tried as often as it may be.
            let is_whole =
                own.stops.load(Ordering::SeqCst) == 0 && !self.is_killed && !own.are_cancelling();
            (true, is_whole)
        } else {
            (is_death || may_die, is_death)
        };
        match (may_have_more, is_last) {
            (_, true) => attempts == most,
            (true, false) => (1..=most).contains(&attempts),
            (false, false) => attempts == 1,
        }
    }

    fn explains(&self, error: &TaskError, own: &Deeds) -> bool {
        let limit = self.options.limit();
        let is_refused = is_closed(error);
        // Which of two errors is told is left open: a value is encoded, and a limit of zero is
        // seen, before the pool looks whether it has ended.
        let is_first = self.options.limit == Some(0) || self.kind == Kind::StuckArgument;
        if is_refused || (self.is_late && !is_first) {
            return is_refused && own.are_ending();
        }
        match error {
            TaskError::Cancelled { .. } => {
                self.is_cancelled || self.is_killed || own.are_cancelling()
            }
            TaskError::Panicked { index, message, .. } => {
                let is_own = *message == format!("task {}", self.id);
                self.kind == Kind::Panic && *index == self.index && is_own
            }
            TaskError::WorkerDied {
                index, pid, cause, ..
            } => {
                let is_right = *index == self.index && *pid != std::process::id();
                is_right && (self.death().as_ref() == Some(cause) || is_victim(*cause, own))
            }
            TaskError::TimedOut {
                index, limit: said, ..
            } => {
                let is_right = *index == self.index && limit == Some(*said);
                // A worker that is stopped from outside keeps its task from coming to its end.
                let is_stopped = own.stops.load(Ordering::SeqCst) > 0;
                is_right && (self.options.is_tight() || is_stopped)
            }
            TaskError::Encode { index, part, .. } => {
                *index == self.index
                    && match self.kind {
                        Kind::StuckArgument => *part == TaskValue::Argument,
                        Kind::StuckResult => *part == TaskValue::Result,
                        _ => false,
                    }
            }
            TaskError::Decode { index, part, .. } => {
                *index == self.index
                    && match self.kind {
                        Kind::BadArgument => *part == TaskValue::Argument,
                        Kind::BadResult => *part == TaskValue::Result,
                        _ => false,
                    }
            }
            _ => false,
        }
    }

    /// Counts an outcome that only a kill from outside explains: there are no more of these than
    /// kills.
    pub(crate) fn count(
        &self,
        outcome: &Result<Answer, TaskError>,
        deeds: &[Deeds],
    ) -> Result<(), Broken> {
        let Err(TaskError::WorkerDied { cause, .. }) = outcome else {
            return Ok(());
        };
        if self.death().as_ref() == Some(cause) {
            return Ok(());
        }
        let own = &deeds[self.pool];
        let victims = 1 + own.victims.fetch_add(1, Ordering::SeqCst);
        let kills = own.kills.load(Ordering::SeqCst);
        if victims <= kills {
            return Ok(());
        }
        self.broken("a death costs one task", outcome)
    }

    /// The same for `map_reduce`, whose errors name an item only if it panicked, and whose unit is
    /// a chunk.
    pub(crate) fn explains_chunk(&self, error: &TaskError, deeds: &[Deeds]) -> bool {
        let index = match error {
            TaskError::Panicked { .. } => self.index,
            _ => None,
        };
        let given = Self {
            index,
            ..self.clone()
        };
        // A chunk that is begun again has had a worker that died.
        let attempts = error.attempts().unwrap_or(1);
        let is_right = match error {
            TaskError::WorkerDied { .. } => attempts == self.retries + 1,
            _ => (1..=self.retries + 1).contains(&attempts),
        };
        is_right && given.explains(error, &deeds[self.pool])
    }
}

/// Whether this death may be that of a worker killed from outside.
fn is_victim(cause: Death, own: &Deeds) -> bool {
    cause == Death::Signal(9) && own.kills.load(Ordering::SeqCst) > 0
}

/// Whether these outcomes may be those of these tasks, in whatever order.
pub(crate) fn may_be_those_of(
    outcomes: &[Result<Answer, TaskError>],
    given: &mut Vec<Given>,
    deeds: &[Deeds],
) -> bool {
    let Some((first, rest)) = outcomes.split_first() else {
        return given.is_empty();
    };
    for place in 0..given.len() {
        let task = given.remove(place);
        let fits = task.check(first, deeds).is_ok() && may_be_those_of(rest, given, deeds);
        given.insert(place, task);
        if fits {
            return true;
        }
    }
    false
}
