//! Which worker gets which task, and what the answers do. All of it happens under one lock, on whatever thread has a
//! reason to: the one that submits, the one that waits, the supervisor after a death, the background thread when there
//! is work and nobody waits.
//!
//! ```text
//!              place              post               cells
//!   submit ──────────▶ queue ──────────▶ in flight ─────────▶ worker
//!                        ▲  requeue, reclaim  │                  │
//!                        └────────────────────┘                  │
//!   TaskFuture, map ◀──────────── results ◀── drain ◀────────────┘
//! ```
//!
//! A task goes straight into the lane of an idle worker, or waits behind others in a busy one, a few at most, so that
//! no worker idles between two tasks; the rest waits in the queue. What waits in a lane is not lost to it: when
//! another worker runs dry, the parent takes back what has not been begun ([`Dispatch::rebalance`]).

mod held;

pub(super) use held::{Piece, Worker};

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use self::held::{Body, Message};
use super::start::Started;
use super::wait::Signal;
use super::{SPIN, Shared};
use crate::error::{Death, PoolError, TaskError};
use crate::lane::message::Request;
use crate::lane::{Expected, Fate};

/// Tasks in a lane, the running one included. More would not keep a worker busier, and would have to be taken back
/// more often.
const DEPTH: usize = 16;

/// After so many, whatever comes before the start of an item (a context, a large argument) is what kills workers.
const MOST_FALSE_STARTS: u32 = 16;

pub(super) enum State {
    Open,
    /// Takes no more tasks, and ends those it has.
    Closing,
    /// Has no workers any more, for this reason.
    Ended(PoolError),
}

pub(super) struct Dispatch {
    pub(super) state: State,
    /// By number; `None` between a worker's death and its replacement.
    pub(super) workers: Vec<Option<Worker>>,
    queue: VecDeque<Piece>,
    /// Workers with nothing to do. The one that was busy last is taken first: it may still be spinning.
    idle: Vec<usize>,
    /// Tasks that have not ended.
    pub(super) outstanding: usize,
    /// Raised when the last task of a pool that closes has ended.
    pub(super) all_ended: Arc<Signal>,
    /// Workers with something to do.
    pub(super) busy: usize,
    /// Whether one of the callers that wait sleeps on the bell, for all of them.
    pub(super) has_leader: bool,
    /// The other callers that wait.
    pub(super) followers: Vec<Thread>,
    /// The thread that pumps when nobody waits, once it has been needed.
    pub(super) background: Option<JoinHandle<()>>,
    /// Whether that thread sleeps on the bell.
    pub(super) background_sleeps: bool,
}

impl Dispatch {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            state: State::Open,
            workers: (0..workers).map(|_| None).collect(),
            queue: VecDeque::new(),
            idle: Vec::new(),
            outstanding: 0,
            all_ended: Arc::default(),
            busy: 0,
            has_leader: false,
            followers: Vec::new(),
            background: None,
            background_sleeps: false,
        }
    }

    /// Whether there is work that only moves on when somebody pumps.
    pub(super) fn has_backlog(&self) -> bool {
        let has_unsent = |worker: &Worker| !worker.outbox.is_empty();
        self.outstanding > self.busy || self.workers.iter().flatten().any(has_unsent)
    }

    /// The first worker that is not up yet.
    pub(super) fn first_not_ready(&self) -> Option<usize> {
        self.workers
            .iter()
            .position(|worker| !worker.as_ref().is_some_and(Worker::is_ready))
    }

    /// Lets the workers end: there will be no more tasks.
    pub(super) fn stop_workers(&self) {
        for worker in self.workers.iter().flatten() {
            worker.started.lane.header().stop();
        }
    }

    /// So many tasks have ended.
    fn count_down(&mut self, ended: usize) {
        self.outstanding -= ended;
        if ended > 0 && self.outstanding == 0 && matches!(self.state, State::Closing) {
            self.all_ended.raise();
        }
    }

    /// Adds a worker that has just been started. It can be given tasks at once; it will find them.
    pub(super) fn add(&mut self, number: usize, started: Started) {
        self.workers[number] = Some(Worker::new(started));
        self.idle.push(number);
    }

    /// Takes a new task. True if a sleeping worker had to be woken for it.
    pub(super) fn place(&mut self, shared: &Shared, piece: Piece) -> bool {
        self.outstanding += 1;
        if self.idle.is_empty() {
            // Somebody may have run dry without anybody looking.
            self.pump(shared);
        }
        if !self.queue.is_empty() {
            self.queue.push_back(piece);
            return false;
        }
        if let Some(number) = self.choose() {
            return self.give(shared, number, piece);
        }
        self.queue.push_back(piece);
        false
    }

    /// The worker that the next piece goes to: an idle one, or else the least busy of those that can take more.
    fn choose(&self) -> Option<usize> {
        if let Some(&number) = self.idle.last() {
            return Some(number);
        }
        let load = |worker: &Worker| worker.in_flight.len();
        let open = |worker: &&Worker| {
            worker.outbox.is_empty() && worker.doomed.is_none() && load(worker) < DEPTH
        };
        let workers = self.workers.iter().enumerate();
        workers
            .filter_map(|(number, worker)| Some((number, worker.as_ref().filter(open)?)))
            .min_by_key(|(_, worker)| load(worker))
            .map(|(number, _)| number)
    }

    /// True if the worker slept and had to be woken.
    fn give(&mut self, shared: &Shared, number: usize, piece: Piece) -> bool {
        let Some(worker) = &mut self.workers[number] else {
            self.queue.push_front(piece);
            return false;
        };
        if worker.in_flight.is_empty() {
            self.busy += 1;
            self.idle.retain(|&idle| idle != number);
        }
        // A worker that runs dry may spin as long as there is a core for it besides the other workers and the caller.
        let spin = if self.busy < shared.cores {
            SPIN
        } else {
            Duration::ZERO
        };
        let header = worker.started.lane.header();
        header.set_spin(spin);
        worker.give(piece);
        worker.started.lane.header().wake_worker()
    }

    /// Moves everything on that can move: answers in, tasks out. True if anything did.
    pub(super) fn pump(&mut self, shared: &Shared) -> bool {
        let mut moved = false;
        for number in 0..self.workers.len() {
            moved |= self.drain(number);
        }
        moved |= self.refill(shared);
        moved |= self.rebalance(shared);
        self.forget_retired(shared);
        moved
    }

    /// Takes the answers of one worker, and writes what now has room.
    fn drain(&mut self, number: usize) -> bool {
        let Some(worker) = &mut self.workers[number] else {
            return false;
        };
        let (mut took, mut ended) = (false, 0);
        while worker.doomed.is_none() && worker.receiver.has_next() {
            took = true;
            let Some(front) = worker.in_flight.front_mut() else {
                worker.doom("an answer where none was due".to_owned());
                break;
            };
            match worker
                .receiver
                .take(&mut front.expected, &front.piece.task.results)
            {
                Ok(false) => {}
                Ok(true) => {
                    front.piece.task.results.ended();
                    worker.in_flight.pop_front();
                    ended += 1;
                    if worker.in_flight.is_empty() {
                        self.busy -= 1;
                        self.idle.push(number);
                    }
                }
                Err(reason) => worker.doom(reason),
            }
        }
        let wrote = !worker.outbox.is_empty() && worker.flush();
        if took || wrote {
            // It may be waiting for room for its answers, or for the rest of a message.
            worker.started.lane.header().wake_worker();
        }
        self.count_down(ended);
        took || wrote
    }

    fn refill(&mut self, shared: &Shared) -> bool {
        let mut moved = false;
        while let Some(piece) = self.queue.front() {
            if !piece.task.results.is_wanted() {
                if let Some(piece) = self.queue.pop_front() {
                    self.count_down(1);
                    piece.fail(&TaskError::Cancelled);
                }
                moved = true;
                continue;
            }
            let Some(number) = self.choose() else { break };
            let Some(piece) = self.queue.pop_front() else {
                break;
            };
            self.give(shared, number, piece);
            moved = true;
        }
        moved
    }

    /// Gives idle workers what waits behind others.
    fn rebalance(&mut self, shared: &Shared) -> bool {
        let mut moved = false;
        while self.has_backlog()
            && let Some(&idle) = self.idle.last()
        {
            let loads = self
                .workers
                .iter_mut()
                .flatten()
                .filter(|worker| worker.in_flight.len() > 1);
            let Some(busiest) = loads.max_by_key(|worker| worker.in_flight.len()) else {
                break;
            };
            let Some(piece) = busiest.take_back() else {
                break;
            };
            self.give(shared, idle, piece);
            moved = true;
        }
        moved
    }

    fn forget_retired(&mut self, shared: &Shared) {
        for id in shared.retired.take() {
            for worker in self.workers.iter_mut().flatten() {
                if let Some(position) = worker.contexts.iter().position(|&known| known == id) {
                    worker.contexts.swap_remove(position);
                    worker.post(Message {
                        request: Request::Forget { id },
                        body: Body::Nothing,
                        sent: 0,
                    });
                    worker.started.lane.header().wake_worker();
                }
            }
        }
    }

    /// Takes back what nobody wants any more, as far as no worker has begun with it.
    pub(super) fn drop_unwanted(&mut self) {
        let mut ended = 0;
        for (number, slot) in self.workers.iter_mut().enumerate() {
            let Some(worker) = slot else { continue };
            while let Some(last) = worker.in_flight.back()
                && !last.piece.task.results.is_wanted()
                && let Some(piece) = worker.take_back()
            {
                piece.fail(&TaskError::Cancelled);
                ended += 1;
                if worker.in_flight.is_empty() {
                    self.busy -= 1;
                    self.idle.push(number);
                }
            }
        }
        self.count_down(ended);
    }

    /// Asks the workers to ring when there will be something to do: when a task has ended that somebody waits for, or when
    /// there is one task left. A look at the answers must follow before sleeping.
    pub(super) fn ask_for_bell(&self) {
        for worker in self.workers.iter().flatten() {
            let mut in_flight = worker.in_flight.iter();
            let awaited = in_flight.position(|entry| entry.piece.task.results.is_awaited());
            let low = worker.in_flight.len().saturating_sub(2);
            let at = awaited.map_or(low, |awaited| awaited.min(low));
            // A worker without a task may still be in the middle of a message.
            let task = worker.in_flight.get(at).map(|entry| entry.expected.task);
            let unsent = (!worker.outbox.is_empty()).then_some(worker.number);
            if let Some(task) = task.or(unsent) {
                worker.started.lane.header().ring_at(task.max(1));
            }
        }
        // Pairs with the fence in `Header::takes_bell`.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// A worker has died: fails the one item that it had started, and gives the rest to others.
    pub(super) fn bury(&mut self, number: usize, death: Death) {
        self.drain(number);
        let Some(mut worker) = self.workers[number].take() else {
            return;
        };
        self.idle.retain(|&idle| idle != number);
        if worker.in_flight.is_empty() {
            return;
        }
        self.busy -= 1;
        // What it went on to do after it was found out cannot be known: all that it has begun counts as started.
        let was_doomed = worker.doomed.is_some();
        let death = worker.doomed.take().map_or(death, Death::Corrupted);
        let entries = std::mem::take(&mut worker.in_flight);
        // From the last to the first, because each goes to the front of the queue.
        for (position, mut entry) in entries.into_iter().enumerate().rev() {
            let has_begun = worker.has_begun(&entry);
            let fate = if was_doomed || !has_begun {
                Some(Fate {
                    next: entry.expected.next,
                    started: has_begun,
                })
            } else {
                worker
                    .receiver
                    .last_books(&mut entry.expected, &entry.piece.task.results)
            };
            let is_front = position == 0;
            self.settle(&worker, entry.piece, fate, is_front, &death);
        }
    }

    /// What becomes of a piece whose worker died.
    fn settle(
        &mut self,
        worker: &Worker,
        mut piece: Piece,
        fate: Option<Fate>,
        is_front: bool,
        death: &Death,
    ) {
        let Some(Fate { next, started }) = fate else {
            // It had answered for everything; only the word that says so was missing.
            piece.task.results.ended();
            self.count_down(1);
            return;
        };
        if piece.first != next {
            piece = Piece {
                first: next,
                attempts: 0,
                false_starts: 0,
                ..piece
            };
        }
        piece.attempts += u32::from(started);
        piece.false_starts += u32::from(is_front && !started && worker.is_ready());
        let is_lost = piece.false_starts >= MOST_FALSE_STARTS;
        if (started || is_lost)
            && let Some(error) = worker.blame(&piece, death.clone(), is_lost)
        {
            piece.task.results.failed(next, error);
            piece = Piece {
                first: next + 1,
                attempts: 0,
                false_starts: 0,
                ..piece
            };
        }
        if piece.first < piece.task.count {
            self.queue.push_front(piece);
        } else {
            piece.task.results.ended();
            self.count_down(1);
        }
    }

    /// Ends the pool: everything that has not ended fails with `error`, and what comes later with `reason`.
    pub(super) fn end(&mut self, reason: PoolError, error: &TaskError) {
        self.state = State::Ended(reason);
        for worker in self.workers.iter_mut().flatten() {
            for entry in worker.in_flight.drain(..) {
                let Expected { next, .. } = entry.expected;
                Piece {
                    first: next,
                    ..entry.piece
                }
                .fail(error);
            }
            worker.outbox.clear();
        }
        for piece in self.queue.drain(..) {
            piece.fail(error);
        }
        self.workers.clear();
        self.idle.clear();
        self.outstanding = 0;
        self.busy = 0;
        self.all_ended.raise();
    }
}
