//! What a worker has been given: the pieces that are under way, and the messages that carry them into its lane.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::processes::start::Started;
use crate::engine::processes::task::{Function, Results, SentContext, Task};
use crate::error::{Death, TaskError};
use crate::lane::message::Request;
use crate::lane::{Expected, Receiver, Writer, next_number};

/// Items of a task that a worker is to run: all from `first` on.
pub(in crate::engine::processes) struct Piece {
    pub(in crate::engine::processes) task: Arc<Task<dyn Results>>,
    pub(super) first: u32,
    /// How often item `first` has been started.
    pub(super) attempts: u32,
    /// How often in a row a worker has died that was to run this next, and had not started an item.
    pub(super) false_starts: u32,
}

impl Piece {
    pub(in crate::engine::processes) fn new(task: Arc<Task<dyn Results>>) -> Self {
        Self {
            task,
            first: 0,
            attempts: 0,
            false_starts: 0,
        }
    }

    /// Fails all items.
    pub(super) fn fail(self, error: &TaskError) {
        for index in self.first..self.task.count {
            self.task.results.failed(index, error.clone());
        }
        self.task.results.ended();
    }
}

/// A piece that has been given to a worker.
pub(super) struct InFlight {
    pub(super) piece: Piece,
    pub(super) expected: Expected,
    /// Where its message begins, once that has been written.
    pub(super) begins: Option<u64>,
    /// Whether all of its message has been written.
    pub(super) is_sent: bool,
}

/// A message on its way into a lane.
pub(super) struct Message {
    pub(super) request: Request,
    pub(super) body: Body,
    pub(super) sent: usize,
}

pub(super) enum Body {
    Items(Arc<Task<dyn Results>>, u32),
    Context(Arc<SentContext>),
    Nothing,
}

/// A worker as the dispatch sees it.
pub(in crate::engine::processes) struct Worker {
    pub(in crate::engine::processes) started: Started,
    pub(super) requests: Writer,
    pub(super) receiver: Receiver,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Messages that did not fit into the ring yet, in order; only the first can be there in part.
    pub(super) outbox: VecDeque<Message>,
    pub(super) number: u32,
    /// Contexts that it has.
    pub(super) contexts: Vec<u64>,
    /// Why it is being killed.
    pub(super) doomed: Option<String>,
}

impl Worker {
    pub(super) fn new(started: Started) -> Self {
        let requests = started.lane.request_writer();
        let receiver = Receiver::new(started.lane.clone());
        Self {
            started,
            requests,
            receiver,
            in_flight: VecDeque::new(),
            outbox: VecDeque::new(),
            number: 0,
            contexts: Vec::new(),
            doomed: None,
        }
    }

    pub(in crate::engine::processes) fn is_ready(&self) -> bool {
        self.receiver.header().is_ready()
    }

    /// Gives the worker a piece to run, after the context it needs.
    pub(super) fn give(&mut self, piece: Piece) {
        let Function { code, context } = &piece.task.function;
        if let Some(context) = context
            && !self.contexts.contains(&context.id)
        {
            self.contexts.push(context.id);
            let request = Request::Context { id: context.id };
            self.post(Message {
                request,
                body: Body::Context(context.clone()),
                sent: 0,
            });
        }
        self.number = next_number(self.number);
        let (first, count) = (piece.first, piece.task.count);
        let request = Request::Run {
            task: self.number,
            code: *code,
            context: context.as_ref().map_or(0, |context| context.id),
            first,
            count: count - first,
        };
        let body = Body::Items(piece.task.clone(), first);
        let result_size = piece.task.result_size;
        let expected = Expected {
            task: self.number,
            next: first,
            end: count,
            result_size,
        };
        self.in_flight.push_back(InFlight {
            piece,
            expected,
            begins: None,
            is_sent: false,
        });
        self.post(Message {
            request,
            body,
            sent: 0,
        });
    }

    pub(super) fn post(&mut self, message: Message) {
        self.outbox.push_back(message);
        self.flush();
    }

    /// Writes as much of the outbox as there is room for; true if anything was written.
    pub(super) fn flush(&mut self) -> bool {
        let mut wrote = false;
        while let Some(message) = self.outbox.front_mut() {
            if !self.requests.has_room() {
                if self.requests.is_spoilt() && self.doomed.is_none() {
                    self.doom("a cell of the requests is in a state that cannot be".to_owned());
                }
                break;
            }
            wrote = true;
            let begins = self.requests.position();
            let head = message.request.to_head();
            let body = match &message.body {
                Body::Items(task, first) => task.items_from(*first),
                Body::Context(context) => &context.bytes,
                Body::Nothing => &[],
            };
            let is_first = message.sent == 0;
            message.sent = self.requests.send(&head, body, message.sent);
            let is_sent = message.sent == head.len() + body.len();
            if let Request::Run { task, .. } = message.request
                && let Some(entry) = self
                    .in_flight
                    .iter_mut()
                    .rev()
                    .find(|entry| entry.expected.task == task)
            {
                if is_first {
                    entry.begins = Some(begins);
                }
                entry.is_sent = is_sent;
            }
            if !is_sent {
                break;
            }
            self.outbox.pop_front();
        }
        wrote
    }

    /// Takes back the last piece, if the worker has not begun with it and it is not half-way out.
    pub(super) fn take_back(&mut self) -> Option<Piece> {
        let last = self.in_flight.back()?;
        match last.begins {
            Some(begins) if last.is_sent && self.requests.reclaim(begins) => {}
            None => {
                // Its message is in the outbox, untouched; others may have come after it.
                let task = last.expected.task;
                let is_it = |message: &Message| matches!(message.request, Request::Run { task: other, .. } if other == task);
                let position = self.outbox.iter().rposition(is_it)?;
                self.outbox.remove(position);
            }
            Some(_) => return None,
        }
        self.in_flight.pop_back().map(|entry| entry.piece)
    }

    /// Whether the worker has begun with this piece.
    pub(super) fn has_begun(&self, entry: &InFlight) -> bool {
        entry
            .begins
            .is_some_and(|begins| self.requests.is_begun(begins))
    }

    /// What it wrote cannot be right: it is killed, and nothing more is read from it.
    pub(super) fn doom(&mut self, reason: String) {
        log::warn!(
            "worker process {} is killed: {reason}",
            self.started.child.pid()
        );
        self.doomed = Some(reason);
        self.started.child.kill();
    }
}

impl Worker {
    /// The error for the item at which this worker died; `None` if the item is to be tried again.
    pub(super) fn blame(&self, piece: &Piece, cause: Death, is_lost: bool) -> Option<TaskError> {
        // SIGABRT, after a panic that could not be caught.
        if cfg!(panic = "abort")
            && cause == Death::Signal(6)
            && let Some(caught) = self.receiver.header().last_words().read()
        {
            return Some(caught.into_error(None));
        }
        (is_lost || piece.attempts > piece.task.retries).then(|| TaskError::WorkerDied {
            index: None,
            pid: self.started.child.pid(),
            cause,
            attempts: if is_lost {
                piece.false_starts
            } else {
                piece.attempts
            },
        })
    }
}
