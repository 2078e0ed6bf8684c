//! Workers that do not begin with what lies in their lanes: they are stopped (SIGSTOP, a debugger,
//! a frozen container), or the machine is too busy to let them run.
//!
//! The supervisor looks at the head of every lane while there is anything in one. The parent can
//! still take back a batch that its worker has not begun with, by the same compare-and-swap that
//! moves waiting batches. So either the worker has it or another worker gets it, whenever the
//! stopped one goes on. What a stopped worker *has* begun with stays with it; only a limit ends
//! that ([`Dispatch::stop_overdue`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LAST_ORDERS;
use super::sight::{Look, Sight, Stalled};
use super::worker_slot::KillReason;
use super::{Dispatch, Worker};
use crate::engine::processes::context::Context;
use crate::engine::processes::start::START_TIME;
use crate::os;
use crate::os::clock::nanoseconds;
use crate::os::slice::slice;

/// The time after which a worker that has not begun with what lies at the head of its lane is
/// stalled. It is longer than a scheduler lets a process wait that has been woken, unless the
/// machine is overloaded; then another worker may as well have the batch.
const STALLED_AFTER: Duration = Duration::from_millis(20);
/// The time until the next look at the lanes while something is new.
const SHORTEST_PAUSE: Duration = slice(Duration::from_millis(10));
/// The same while nothing changes. The pause is doubled up to this.
const LONGEST_PAUSE: Duration = slice(Duration::from_millis(50));
/// The age from which a look is too old: it says nothing of the time since then.
const LONGEST_UNSEEN: Duration = Duration::from_millis(200);
/// The number of looks at empty lanes after which the supervisor rests until it is called. To call
/// it costs the caller a system call, so a caller that pauses between its tasks should not have to
/// do that each time.
const QUIET_LOOKS: u32 = 10;

/// When the supervisor looks at the lanes.
#[derive(Debug, Default)]
pub(super) struct LaneWatch {
    /// Whether the supervisor will look without being called.
    is_on: bool,
    /// Whether a batch has been given out since the last look.
    has_given: bool,
    /// The number of looks in a row at empty lanes.
    quiet: u32,
    pause: Duration,
    /// Whether a worker is stalled, as far as the dispatch knows.
    pub(super) has_stalled: bool,
}

impl LaneWatch {
    /// Has the supervisor look at the lanes, because a batch has been given to a worker.
    #[inline]
    pub(super) fn given(&mut self, context: &Context) {
        self.has_given = true;
        if !self.is_on {
            self.is_on = true;
            context.alarm.ring();
        }
    }
}

impl Worker {
    /// Records that what lies at the head of the worker's lane does so since `now`, unless it was
    /// there before.
    pub(super) fn comes_to_head(&mut self, now: u64) {
        if let Some(front) = self.in_flight.front_mut() {
            front.at_head_since.get_or_insert(now);
        }
    }

    /// Looks at the head of the lane. Returns what was seen and since when, or `None` if the lane
    /// is empty.
    pub(super) fn look_at_head(&mut self, now: u64) -> Option<Sight> {
        let front = self.in_flight.front()?;
        let look = Look {
            task: front.expected.task,
            can_begin: self.is_ready()
                || (front.batch.task.limit().is_some()
                    && os::state::is_stopped(self.started.child.pid())),
            has_begun: self.has_begun(front),
            progress: self.receiver.header().progress(),
            written: (!front.is_sent).then(|| self.requests.position()),
        };
        // If this process has not looked for long, it may have been stopped, and the worker with
        // it.
        let is_recent = |at: u64| now.saturating_sub(at) < nanoseconds(LONGEST_UNSEEN);
        let since = match &self.sight {
            Some(sight) if sight.look == look && is_recent(sight.looked_at) => sight.since,
            // The time from which on the worker could have begun is known only of a batch that has
            // come to a worker at rest.
            Some(sight) if sight.look.task == look.task => now,
            _ if !self.is_ready() => now,
            _ => front
                .at_head_since
                .filter(|&since| is_recent(since))
                .unwrap_or(now),
        };
        self.sight = Some(Sight {
            look,
            since,
            looked_at: now,
        });
        self.sight
    }

    /// Marks the worker as stalled if it has not begun with what it has for long. Returns true if
    /// it has nothing that it could begin with, or has begun.
    fn check_head(&mut self, now: u64) -> bool {
        let Some(sight) = self.look_at_head(now) else {
            return true;
        };
        if sight.look.has_begun {
            return true;
        }
        if self.stalled.is_none()
            && now.saturating_sub(sight.since) >= nanoseconds(STALLED_AFTER)
            && let Some(front) = self.in_flight.front()
        {
            let position = front.begins.unwrap_or_else(|| self.requests.position());
            let trace = self.requests.trace(position);
            self.stalled = Some(Stalled { position, trace });
            log::debug!(
                "worker process {} does not begin with its task: is it stopped?",
                self.started.child.pid()
            );
        }
        false
    }

    /// Returns whether the worker was stalled and has gone on.
    pub(super) fn goes_on(&mut self) -> bool {
        let goes_on = self
            .stalled
            .is_some_and(|stalled| self.requests.trace(stalled.position) != stalled.trace);
        if goes_on {
            self.stalled = None;
        }
        goes_on
    }
}

impl Dispatch {
    /// Returns whether a stalled worker has a batch that another one could have.
    pub(super) fn has_stalled_batch(&self) -> bool {
        let has_piece = |worker: &Worker| worker.stalled.is_some() && !worker.in_flight.is_empty();
        self.lanes.has_stalled && self.workers.iter().flatten().any(has_piece)
    }

    /// Looks for workers that do not begin with what they have, and gives it to others. Returns how
    /// long until the next look, and whether anything moved: then the caller has to
    /// [`ensure_progress`](super::super::shared::Shared::ensure_progress) of it. `now` is the time
    /// by the system's clock.
    pub(in crate::engine::processes) fn watch_lanes(
        &mut self,
        context: &Context,
        now: u64,
    ) -> (Option<Duration>, bool) {
        if !self.lanes.is_on {
            return (None, false);
        }
        let mut is_new = std::mem::take(&mut self.lanes.has_given);
        // A worker that was stopped after its last answer has not rung the bell for it.
        let mut moved = self.pump(context);
        let mut has_work = false;
        for worker in self.workers.iter_mut().flatten() {
            if worker.kill_reason.is_none() {
                is_new |= !worker.check_head(now);
                has_work |= !worker.in_flight.is_empty();
                self.lanes.has_stalled |= worker.stalled.is_some();
            }
        }
        moved |= self.rescue(context);
        if moved {
            // A leader that sleeps has asked only those workers to ring that were busy then.
            context.bell.ring();
        }
        self.lanes.pause = if is_new {
            SHORTEST_PAUSE
        } else {
            (2 * self.lanes.pause).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
        };
        self.lanes.quiet = if has_work || is_new {
            0
        } else {
            self.lanes.quiet + 1
        };
        self.lanes.is_on = self.lanes.quiet < QUIET_LOOKS;
        (self.lanes.is_on.then_some(self.lanes.pause), moved)
    }

    /// Gives idle workers what stalled ones have not begun with. Returns true if anything moved.
    pub(super) fn rescue(&mut self, context: &Context) -> bool {
        if !self.lanes.has_stalled {
            return false;
        }
        let (mut moved, mut has_stalled) = (false, false);
        for number in 0..self.workers.len() {
            while let Some(worker) = &mut self.workers[number]
                && worker.stalled.is_some()
            {
                has_stalled = true;
                // A worker that is still starting would be the next to stall.
                let is_ready = |&&idle: &&usize| {
                    let worker: Option<&Worker> = self.workers[idle].as_ref();
                    worker.is_some_and(Worker::is_ready)
                };
                let Some(&idle) = self.idle.iter().rev().find(is_ready) else {
                    break;
                };
                let Some(worker) = &mut self.workers[number] else {
                    break;
                };
                if worker.kill_reason.is_some() {
                    break;
                }
                // What this worker alone may run stays with it.
                let mut entries = worker.in_flight.iter();
                let Some(first) = entries.position(|entry| entry.batch.only.is_none()) else {
                    break;
                };
                // The worker may have gone on in this very moment.
                let Some(batch) = worker.take_back(first) else {
                    break;
                };
                if worker.in_flight.is_empty() {
                    self.runs_dry(context, number);
                }
                if batch.task.results.is_wanted(batch.first) {
                    self.give(context, idle, batch);
                } else {
                    self.fail_unwanted(batch);
                }
                moved = true;
            }
        }
        self.lanes.has_stalled = has_stalled;
        moved
    }

    /// Kills workers that were to leave and have not ended long after they could have, and workers
    /// that do not come up. Returns how long until the next may be due. `now` is the time by the
    /// system's clock.
    pub(in crate::engine::processes) fn end_lingering(
        &mut self,
        context: &Context,
        now: u64,
    ) -> Option<Duration> {
        let is_built = context.is_built.load(Ordering::Acquire);
        let mut next = None::<Duration>;
        for worker in self.workers.iter_mut().flatten() {
            if worker.kill_reason.is_some() {
                continue;
            }
            let left = if worker.is_leaving && worker.in_flight.is_empty() {
                let since = *worker.lingers_since.get_or_insert(now);
                LAST_ORDERS.saturating_sub(Duration::from_nanos(now.saturating_sub(since)))
            } else if is_built && !worker.is_up() {
                let since = now.saturating_sub(worker.started.since);
                START_TIME.saturating_sub(Duration::from_nanos(since))
            } else {
                continue;
            };
            if left.is_zero() {
                log::warn!(
                    "worker process {} does not {} and is killed",
                    worker.started.child.pid(),
                    if worker.is_leaving { "end" } else { "start" }
                );
                worker.kill_for(KillReason::Lingers);
                continue;
            }
            next = Some(next.map_or(left, |next| next.min(left)));
        }
        let workers = &self.workers;
        let is_open = |number: &usize| workers[*number].as_ref().is_some_and(Worker::is_open);
        self.idle.retain(is_open);
        next
    }
}
