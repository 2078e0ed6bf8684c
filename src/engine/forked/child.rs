//! One forked child, from both sides.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::accounts::Accounts;
use crate::array::fork_guard::{Taken, Takes};
use crate::call::{Limit, Limits, at_fork, grace, logs, seed, traces, worker_index};
use crate::engine::fork::fork_child;
use crate::engine::short_name;
use crate::error::{Corruption, Death, ItemIndex, TaskError};
use crate::lane::message::Fault;
use crate::lane::{
    self, Expected, Fate, Lane, Pace, Progress, Receiver, ResponseWriter, Ring, Sink,
};
use crate::memory::member;
use crate::memory::wire;
use crate::os::alarm::Alarm;
use crate::os::environment::{self, Environment};
use crate::os::pidfd::{self, Child};
use crate::os::readable::{pause, wait_readable};
use crate::os::timer::DeathTimer;
use crate::os::tree::{self, Entry};
use crate::os::{self, clock, fork, handoff, worker};
use crate::panic::{self, Caught};
use crate::process;
use crate::process::logs::{Attached, Courier};

/// The child rings only when the parent has asked for it.
impl Ring for Arc<Alarm> {
    fn ring(&self) {
        Alarm::ring(self);
    }
}

/// Waits until a child rings one of the bells or ends.
pub(super) fn wait_any<'a>(
    bells: &[&'a Alarm],
    children: impl Iterator<Item = BorrowedFd<'a>>,
    timeout: Option<Duration>,
) {
    let fds = bells.iter().copied().map(Alarm::as_fd);
    let fds: Vec<_> = fds.chain(children).collect();
    match wait_readable(&fds, timeout) {
        Ok(found) => {
            if let Some(rung) = found.and_then(|index| bells.get(index)) {
                rung.silence();
            }
        }
        // The caller looks at all children after each wait.
        Err(refused) => pause(&refused, timeout),
    }
}

/// What a child is given when it is forked.
pub(super) struct Setup<'s> {
    /// What its pool is called.
    pub(super) pool: &'s str,
    /// The index that no other living child of its call, or of the tasks of its pool, has.
    pub(super) index: usize,
    /// How its environment differs from that of this process.
    pub(super) environment: &'s Environment,
    /// What finds its descendants, if they are to end with it.
    pub(super) entry: Option<Entry>,
    /// Where what it does is counted.
    pub(super) accounts: &'s Arc<Accounts>,
    /// What takes its log records, if they are forwarded.
    pub(super) courier: Option<Arc<Courier>>,
}

impl Setup<'_> {
    /// Makes this process, which has just been forked, the worker with its index and name.
    fn take_place(&self) {
        let Self { pool, index, .. } = *self;
        worker_index::set(index);
        worker::set_name(&short_name(pool, ':', index));
        panic::name_this_thread(&format!("{pool}:{index}"));
    }
}

/// How a child knows that its parent has died.
#[derive(Clone, Copy)]
pub(super) enum Bond {
    /// The thread that forked the child waits for it.
    Thread,
    /// The thread that forked the child may go on, and end, before the child.
    Process,
}

/// How often the parent looks at children that it waits for, if it must be sure that they go on.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How much longer than its limit an item may take before the parent stops it. The child's own
/// timer is exact, but a child that is stopped may not have set it.
const GRACE: Duration = Duration::from_millis(50);

/// How long a child that is not stopped may be at no item before it is treated as if it were
/// stopped: a busy machine may need long to let it run.
pub(super) const SLOW_START: Duration = Duration::from_secs(1);

/// How long a child has to end by itself when it has nothing more to do.
pub(super) const LAST_ORDERS: Duration = Duration::from_secs(10);

/// How far a child was seen to be.
#[derive(Clone, Copy, Debug)]
struct Sight {
    progress: Progress,
    /// Since when, and when the parent looked last, in nanoseconds of the system's clock.
    since: u64,
    looked_at: u64,
}

/// A child as its parent has it.
#[derive(Debug)]
pub(super) struct Forked {
    child: Arc<Child>,
    /// What the child uses of what this process had when the child was forked.
    taken: Taken,
    /// Says that the child lives, if its log records are forwarded.
    attached: Option<Attached>,
    pub(super) receiver: Receiver,
    is_reaped: bool,
    /// [`fork::generation`] of the parent.
    generation: u32,
    /// Why the child is being killed.
    kill_reason: Option<Corruption>,
    /// What was last seen of the child's progress.
    sight: Option<Sight>,
    /// Whether the child was killed because its item, started or not, was over its limit.
    is_overdue: bool,
    /// With [`Bond::Process`]: the child dies when this is closed.
    _life_line: Option<OwnedFd>,
    accounts: Arc<Accounts>,
    index: usize,
    /// When it was started, and since when it has run what it runs now at the earliest, by the
    /// system's clock.
    since: u64,
    free_since: u64,
}

impl Forked {
    /// Forks a child that is given `setup`, runs `work`, and then ends. In this process `work` is
    /// left as it is: what it holds may run code of the user's when it is dropped.
    pub(super) fn start<W: FnOnce(&mut ResponseWriter)>(
        bell: &Arc<Alarm>,
        bond: Bond,
        setup: Setup<'_>,
        work: &mut Option<W>,
    ) -> io::Result<Self> {
        let (lane, _fd) = Lane::new_with(setup.courier.is_some())?;
        let mut ends = match bond {
            Bond::Thread => None,
            Bond::Process => Some(handoff::pair()?),
        };
        let parent = std::process::id();
        let since = clock::now();
        os::crash::prepare();
        let mut chain = setup.entry.as_ref().map(Entry::chain);
        let forked = fork_child(Takes::All, || {
            let is_bound = match ends.take() {
                None => worker::die_with_parent(parent).is_ok(),
                Some((ours, theirs)) => {
                    // This is the copy of the parent's end: open in the child, the line would never
                    // be closed.
                    drop(ours);
                    let is_bound = fork::die_when_closed(theirs.as_fd()).is_ok()
                        && !handoff::is_closed(&theirs);
                    // The child's end stays open as long as the child lives.
                    std::mem::forget(theirs);
                    is_bound
                }
            };
            if is_bound && let Some(work) = work.take() {
                worker::restore_signals();
                environment::apply(setup.environment);
                if let Some(chain) = chain.take() {
                    tree::mark_forked_child(chain);
                }
                lane::crash_report::set_own(&lane);
                seed::set_lane(&lane);
                grace::forget();
                setup.take_place();
                if let Some(courier) = &setup.courier {
                    logs::set_own(&lane, courier.bell().clone());
                    if courier.takes_events() {
                        traces::begin_copy();
                    }
                }
                let ringer = Box::new(bell.clone());
                let mut responses = ResponseWriter::new(lane.clone(), ringer, Pace::Breaths);
                work(&mut responses);
                responses.done();
            }
        });
        process::tree::settle();
        let (pid, taken) = forked?;
        let child = Child::open(pid).inspect_err(|_| pidfd::kill_unopened(pid))?;
        let child = Arc::new(child.with_tree(setup.entry));
        taken.taken_by(&child);
        let attached = setup
            .courier
            .map(|courier| courier.attach(setup.index, pid, &lane));
        let receiver = Receiver::new(lane);
        setup.accounts.started(setup.index);
        Ok(Self {
            child,
            taken,
            attached,
            receiver,
            is_reaped: false,
            generation: fork::generation(),
            kill_reason: None,
            sight: None,
            is_overdue: false,
            _life_line: ends.map(|(ours, _theirs)| ours),
            accounts: setup.accounts.clone(),
            index: setup.index,
            since,
            free_since: since,
        })
    }

    /// Asks the child to ring when there is something to look at. The caller must look after this.
    pub(super) fn ask_for_bell(&self) {
        self.receiver.header().ring_at(1);
        lane::bell_is_asked_for();
    }

    /// Takes one message. Returns true if it ended the task. A message that cannot be right kills
    /// the child.
    pub(super) fn take(&mut self, expected: &mut Expected, sink: &dyn Sink) -> bool {
        self.receiver.take(expected, sink).unwrap_or_else(|reason| {
            self.kill_for(reason);
            false
        })
    }

    /// Returns for how long a child that runs no item has made no progress, or `None` if it runs
    /// one.
    ///
    /// Such a child is between two items, waits for room for a result, or is ending; or a signal
    /// stopped it in one of these states. A child that is ending may take its time, because it
    /// prints what it has buffered and ends what it has made. A child that still runs its
    /// after-fork hooks counts as resting only if a signal stopped it.
    pub(super) fn rests(&mut self) -> Option<Duration> {
        let now = clock::now();
        let progress = self.receiver.header().progress();
        // A parent that has not looked for long has not made room for answers either.
        let is_recent =
            |sight: &Sight| now.saturating_sub(sight.looked_at) < 4 * LOOK_PAUSE.as_nanos() as u64;
        // Hooks may take as long as they like. But a child that is stopped in one does not go on
        // with it.
        let may_rest = || self.receiver.header().is_ready() || self.is_stopped();
        let since = match self.sight.filter(is_recent) {
            Some(sight) if sight.progress == progress && may_rest() => sight.since,
            _ => now,
        };
        self.sight = Some(Sight {
            progress,
            since,
            looked_at: now,
        });
        let mut rested = Duration::from_nanos(now - since);
        if self.receiver.header().is_done() {
            rested = rested.saturating_sub(LAST_ORDERS);
        }
        let runs = progress.running().is_some() && !self.has_run();
        (!runs).then_some(rested)
    }

    /// Returns whether the child waits for room for the result of an item with a limit, or is about
    /// to give it.
    pub(super) fn has_run(&self) -> bool {
        let header = self.receiver.header();
        header.has_run(header.progress())
    }

    /// Kills the child if it is far over the limit: it was stopped before it could set its timer.
    pub(super) fn stop_if_overdue(&mut self, limit: Duration) {
        let rested = self.rests();
        let took = rested.unwrap_or_else(|| self.item_took());
        let is_over = |more: Duration| took >= limit.saturating_add(more);
        // A busy machine may need long to let the child start.
        let is_overdue =
            is_over(GRACE) && (rested.is_none() || is_over(SLOW_START) || self.is_stopped());
        if is_overdue && !self.is_overdue {
            self.is_overdue = true;
            self.child.kill();
        }
    }

    /// Returns whether the kernel says that the child is stopped. A child in a frozen container
    /// looks as if it ran.
    pub(super) fn is_stopped(&self) -> bool {
        os::state::is_stopped(self.child.pid())
    }

    pub(super) fn kill(&self) {
        self.child.kill();
    }

    pub(super) fn kill_for(&mut self, reason: Corruption) {
        log::warn!("forked child {} is killed: {reason}", self.child.pid());
        self.kill_reason = Some(reason);
        self.child.kill();
    }

    /// Returns whether there is something to take.
    pub(super) fn has_next(&self) -> bool {
        self.kill_reason.is_none() && self.receiver.has_next()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.child.has_ended()
    }

    /// Reclaims a child that has ended, after everything it published has been taken. Hands on what
    /// it had not published. Returns what of its task has no answer, and the error for that.
    /// `limit` is how long each of its items may take.
    pub(super) fn reclaim(
        &mut self,
        expected: &mut Expected,
        sink: &dyn Sink,
        limit: Option<Limit>,
    ) -> (Option<Fate>, TaskError) {
        let death = self.reap();
        let (fate, cause) = match self.kill_reason.take() {
            // Nothing more is read from a corrupted child. What it went on to do cannot be known,
            // so its next item counts as started.
            Some(reason) => {
                let left = expected.next < expected.end;
                let fate = left.then_some(Fate {
                    next: expected.next,
                    started: true,
                });
                (fate, Death::Corrupted(reason))
            }
            None => (self.receiver.take_unpublished(expected, sink), death),
        };
        let has_started = fate.is_some_and(|fate| fate.started);
        self.child.tree_ended(!has_started && is_in_order(death));
        let crash_report = self.receiver.header().crash_report().read();
        let error = if let Some(caught) = crash_report
            && cfg!(panic = "abort")
            && cause == Death::Signal(6)
        {
            caught.into_error(None)
        } else if let Some(limit) = limit
            && cause == Death::Signal(9)
            && (self.is_overdue || (has_started && self.item_took() >= limit.most()))
        {
            TaskError::timed_out(None, limit.timeout)
        } else {
            let pid = self.child.pid();
            let header = self.receiver.header();
            TaskError::WorkerDied {
                index: ItemIndex::NONE,
                pid,
                cause,
                attempts: 1,
                crash: cause.signal().and_then(|signal| header.crash(pid, signal)),
            }
        };
        (fate, error)
    }

    /// Returns how long ago the item was started that the child was at, if it has a limit.
    fn item_took(&self) -> Duration {
        let header = self.receiver.header();
        let started = header.started_at(header.progress());
        Duration::from_nanos(started.map_or(0, |started| clock::now().saturating_sub(started)))
    }

    /// Waits for the end of a child that is at no item, or has been killed.
    pub(super) fn reap_at_rest(&mut self) {
        let death = self.reap();
        self.child.tree_ended(is_in_order(death));
    }

    pub(super) fn reap(&mut self) -> Death {
        self.is_reaped = true;
        let status = self.child.reap();
        member::has_ended(self.child.pid());
        self.taken.let_go();
        drop(self.attached.take());
        status.into()
    }

    /// Counts tasks of this child that have ended.
    pub(super) fn count(&self, tasks: usize) {
        if tasks > 0 {
            self.accounts.tasks(self.index, tasks as u64);
        }
    }

    /// Counts a task that failed though this child has not said so.
    pub(super) fn count_failure(&self, error: &TaskError) {
        self.accounts.failed(self.index, error);
    }

    /// Records a task, or a chunk of `items` items, that was given to the pool at `queued` and that
    /// this child has ended, or died of.
    pub(super) fn record(&mut self, queued: u64, items: u32, completed: bool) {
        let times = self.receiver.take_times();
        if !self.accounts.has_timeline() {
            return;
        }
        let now = clock::now();
        // A child says what it likes, but no more than can be true. One that has died has left no
        // times.
        let (started, ended) = times.map_or((self.free_since, now), |times| {
            let started = times.started.clamp(self.free_since.min(now), now);
            (started, times.ended.clamp(started, now))
        });
        self.free_since = ended;
        let who = (self.index, self.child.pid());
        let times = [queued.min(started), started, ended];
        self.accounts.record(who, items as usize, times, completed);
    }

    /// Returns the process itself, to be polled or killed without a hold on the rest.
    pub(super) fn process(&self) -> Arc<Child> {
        self.child.clone()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // A child that was forked has a copy of this: the process is the parent's to kill and to
        // wait for.
        if !self.is_reaped && self.generation == fork::generation() {
            self.child.kill();
            self.reap_at_rest();
        }
        if self.generation == fork::generation() {
            let (received, memory) = (self.receiver.received(), self.child.peak_memory());
            self.accounts
                .ended(self.index, self.since, received, memory);
        }
    }
}

/// Returns whether a child that was at no item has ended as one that has nothing more to do.
fn is_in_order(death: Death) -> bool {
    matches!(death, Death::Exit(0) | Death::Unknown)
}

/// What a child does with its items: it runs each within its limit, and answers it.
pub(super) struct Answers {
    /// Why no item is run: an after-fork hook panicked.
    broken: Option<Box<Caught>>,
    limit: Option<Limit>,
    /// How long a task that runs may go on when it is to stop, if it may.
    grace: Option<Duration>,
    /// Kills this child when an item takes longer than its limit.
    timer: Option<DeathTimer>,
    scratch: Vec<u8>,
}

impl Answers {
    /// Runs the after-fork hooks. This must be called in the child, before it touches what is the
    /// program's.
    pub(super) fn new(limits: &Limits, responses: &ResponseWriter) -> Self {
        let broken = at_fork::run().err();
        responses.ready();
        Self {
            broken,
            limit: limits.limit(),
            grace: limits.grace(),
            timer: None,
            scratch: Vec::new(),
        }
    }

    /// Returns whether no item is run, because an after-fork hook panicked.
    pub(super) fn are_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Runs the next item.
    pub(super) fn answer<R: Serialize + 'static>(
        &mut self,
        responses: &mut ResponseWriter,
        run: impl FnOnce() -> R,
    ) {
        if let Some(limit) = self.limit {
            responses.set_limit(limit.most());
            responses.set_grace(limit.grace);
        }
        responses.item_starts();
        if let Some(caught) = &self.broken {
            responses.fault(&Fault::Panicked(caught.clone()));
            return;
        }
        // The timer is set after the start was recorded, so that by the parent's clock too the
        // limit has passed when the timer goes off.
        if let Err(error) = self.set_timer() {
            let message = format!("it was not run, because its limit cannot be kept: {error}");
            responses.fault(&Fault::Panicked(Caught::saying(message)));
            return;
        }
        let scratch = &mut self.scratch;
        let original = responses.original();
        let timeout = self.limit.map(|limit| limit.timeout);
        let task = responses.task();
        let encoded = panic::catch(|| {
            let asked = self.grace.map(|_| grace::enter_lane(task, timeout));
            let result = run();
            drop(asked);
            // If `run` has forked, the copy of the child ends here, before the result's handles are
            // counted as sent.
            original.end_copy(fork::COPY_RETURNED);
            scratch.clear();
            let encoded = wire::append_result(scratch, &result);
            // This comes before the item has its answer: a panic in `drop` still belongs to this
            // item.
            drop(result);
            encoded
        });
        if let Some(timer) = &self.timer {
            // This fails only for a timer that is none.
            let _ = timer.unset();
        }
        let exceeded = responses.exceeded();
        responses.item_has_run();
        if let Some(limit) = exceeded {
            responses.fault(&Fault::TimedOut(limit));
            return;
        }
        match encoded {
            Ok(Ok(sent)) => {
                responses.result(&self.scratch);
                sent.deliver();
            }
            Ok(Err(reason)) => responses.fault(&Fault::ResultEncode(reason)),
            Err(caught) => responses.fault(&Fault::Panicked(caught)),
        }
    }

    fn set_timer(&mut self) -> io::Result<()> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        if self.timer.is_none() {
            self.timer = Some(DeathTimer::new()?);
        }
        self.timer
            .as_ref()
            .map_or(Ok(()), |timer| timer.set(limit.most()))
    }
}
