//! A made-up dispatch and lanes: its workers are no processes. The test itself writes into their
//! lanes what a worker would, and stops wherever a worker may die.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;

use super::{Batch, Worker};
use crate::call::Limits;
use crate::codec;
use crate::engine::affinity::Affinity;
use crate::engine::processes::context::Context;
use crate::engine::processes::settings::{InnerThreads, Settings, StartMethod, WaitPolicy};
use crate::engine::processes::shared::Shared;
use crate::engine::processes::start::Started;
use crate::engine::processes::task::{Function, Results, Retired, Task};
use crate::engine::processes::wait::Locked;
use crate::error::{Death, ItemIndex, PoolError, TaskError};
use crate::future::{PoolId, Signal};
use crate::lane::bell::Bell;
use crate::lane::message::{Fault, Request, StopsAt};
use crate::lane::{CELL_PAYLOAD, Claim, Lane, Pace, RawBytes, Reader, ResponseWriter, Ring, Sink};
use crate::memory::transit::KeptHandles;
use crate::os::alarm::Alarm;
use crate::os::environment::Environment;
use crate::os::{clock, fork, pidfd};
use crate::process::Stdio;
use crate::process::traces::Tracer;

/// The first made-up pid. No process has a number as high as this: the kernel's are below 2^22.
const FIRST_PID: u32 = 1 << 30;

/// How long a test waits for what must come.
pub(in crate::engine::processes) const IN_TIME: Duration = Duration::from_secs(10);

/// Waits until `is_so`.
///
/// # Panics
///
/// If that does not happen in time.
#[track_caller]
pub(in crate::engine::processes) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + IN_TIME;
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// A pool's dispatch without its processes and threads.
pub(in crate::engine::processes) struct MadeUp {
    pub(in crate::engine::processes) shared: Arc<Shared>,
    /// How often each item of each task has been started, by the task's code.
    runs: Arc<Mutex<HashMap<(u64, u32), u32>>>,
    next_code: AtomicU32,
    next_pid: AtomicU32,
}

impl MadeUp {
    pub(in crate::engine::processes) fn new(workers: usize) -> Self {
        Self::with(workers, |_| {})
    }

    pub(in crate::engine::processes) fn with(
        workers: usize,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = Settings {
            name: "made-up".to_owned(),
            env: Environment::default(),
            env_per_worker: None,
            inner_threads: InnerThreads::Inherit,
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            initializer: None,
            model: None,
            max_tasks: None,
            memory_limit: None,
            task_timeout: None,
            idle_timeout: None,
            affinity: Affinity::Inherit,
            nice: 0,
            wait_policy: WaitPolicy::Park,
            timeline: false,
            start_method: StartMethod::Spawn,
            preload: None,
            allow_threads: false,
            spares_descendants: false,
            logs: None,
            tracer: Tracer::default(),
            queue_limit: None,
        };
        change(&mut settings);
        let alarm = Arc::new(Alarm::new().unwrap());
        let context = Context {
            id: PoolId::new(),
            settings,
            workers: AtomicUsize::new(workers),
            cores: 1,
            generation: fork::generation(),
            is_built: AtomicBool::new(true),
            start: Instant::now(),
            bell: Bell::new().unwrap(),
            retired: Arc::new(Retired::new(alarm.clone())),
            alarm,
            log_counts: Arc::default(),
            backlog: None,
        };
        let shared = Arc::new(Shared::new(context));
        Self {
            shared,
            runs: Arc::default(),
            next_code: AtomicU32::new(1),
            next_pid: AtomicU32::new(FIRST_PID),
        }
    }

    pub(in crate::engine::processes) fn lock(&self) -> Locked<'_> {
        self.shared.lock()
    }

    /// Adds a worker that is ready.
    pub(in crate::engine::processes) fn hire(&self, number: usize) -> Peer {
        let peer = self.hire_unready(number);
        peer.lane.header().set_up();
        peer.lane.header().set_ready();
        peer
    }

    /// Adds a worker that is still starting.
    pub(in crate::engine::processes) fn hire_unready(&self, number: usize) -> Peer {
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        self.hire_as(number, pid)
    }

    /// Adds a worker that is still starting, which for the kernel is the process `pid`.
    ///
    /// If the worker is to be killed, the process `pid` gets the signal: the descriptor is none of
    /// a process.
    pub(in crate::engine::processes) fn hire_as(&self, number: usize, pid: u32) -> Peer {
        // The descriptor never becomes readable, so the process does not seem to have ended.
        let silent = EventFd::new().unwrap();
        let lane = Lane::new().unwrap();
        let started = Started {
            child: Arc::new(pidfd::Child::adopt(pid, silent.into(), true)),
            lane: lane.clone(),
            since: clock::now(),
            _life_line: File::open("/dev/null").unwrap().into(),
        };
        // The supervisor does the same.
        let mut dispatch = self.lock();
        dispatch.add(&self.shared, number, started);
        dispatch.pump(&self.shared);
        drop(dispatch);
        let ringer = Box::new(Ringer(self.shared.clone()));
        Peer {
            pid,
            requests: lane.request_reader(),
            responses: ResponseWriter::new(lane.clone(), ringer, Pace::Tasks),
            message: Vec::new(),
            claimed: None,
            runs: self.runs.clone(),
            lane,
        }
    }

    /// Returns what a worker of this pool rings.
    pub(in crate::engine::processes) fn ringer(&self) -> Ringer {
        Ringer(self.shared.clone())
    }

    /// Gives a task of `count` items to the dispatch.
    pub(in crate::engine::processes) fn place(&self, count: u32) -> Arc<Task<Log>> {
        self.place_with(count, |_| {})
    }

    pub(in crate::engine::processes) fn place_with(
        &self,
        count: u32,
        change: impl FnOnce(&mut Task<Log>),
    ) -> Arc<Task<Log>> {
        let code = u64::from(self.next_code.fetch_add(1, Ordering::Relaxed));
        let mut task = Task {
            function: Function {
                code,
                context: None,
            },
            items: vec![7; count as usize].into(),
            count,
            argument_size: Some(1),
            result_size: Some(8),
            limits: Limits::none(),
            handles: KeptHandles::default(),
            stops_at: StopsAt::Nothing,
            name: ItemIndex::NONE,
            results: Log::default(),
        };
        change(&mut task);
        let task = Arc::new(task);
        let mut dispatch = self.lock();
        // With a policy, `place` counts it.
        dispatch.told += usize::from(task.results.is_told() && !task.retry().is_on());
        dispatch.place(&self.shared, Batch::new(task.clone()));
        drop(dispatch);
        task
    }

    pub(in crate::engine::processes) fn pump(&self) {
        self.lock().pump(&self.shared);
    }

    /// Reclaims what the worker had, as after its death.
    pub(in crate::engine::processes) fn reclaim(&self, number: usize, death: Death) {
        let mut dispatch = self.lock();
        dispatch.reclaim(&self.shared, number, death);
        dispatch.pump(&self.shared);
    }

    /// Has the workers run all that there is.
    #[track_caller]
    pub(in crate::engine::processes) fn finish(&self, peers: &mut [&mut Peer]) {
        until("all tasks end", || {
            self.pump();
            for peer in &mut *peers {
                peer.serve();
            }
            self.pump();
            self.lock().has_all_ended()
        });
        self.assert_at_rest();
    }

    /// Ends the pool, and the background thread if there is one.
    pub(in crate::engine::processes) fn end_background(&self) {
        let mut dispatch = self.lock();
        let background = dispatch.background.take();
        let reason = PoolError::Closed;
        drop(dispatch.end(reason.clone(), &TaskError::from(reason)));
        drop(dispatch);
        if let Some(background) = background {
            self.shared.wake_background.notify_all();
            self.shared.bell.ring();
            background.join().unwrap();
        }
    }

    /// Checks that the dispatch counts nothing as open.
    #[track_caller]
    pub(in crate::engine::processes) fn assert_at_rest(&self) {
        let dispatch = self.lock();
        let counts = (dispatch.outstanding, dispatch.busy, dispatch.told);
        assert_eq!(counts, (0, 0, 0), "outstanding, busy, told");
        assert!(dispatch.queue.is_empty(), "a batch is in the queue");
        assert!(dispatch.paused.first().is_none(), "a batch is in a pause");
        let workers = dispatch.workers.iter().enumerate();
        let free = workers.filter_map(|(number, worker)| {
            let worker = worker.as_ref()?;
            assert!(worker.in_flight.is_empty(), "a batch is in flight");
            worker.is_open().then_some(number)
        });
        let free: Vec<usize> = free.collect();
        let mut idle = dispatch.idle.clone();
        idle.sort_unstable();
        assert_eq!(idle, free, "idle workers, each once");
        assert!(!dispatch.has_backlog(), "a backlog");
    }

    /// Returns how often an item was started.
    pub(in crate::engine::processes) fn runs(&self, task: &Task<Log>, item: u32) -> u32 {
        let runs = self.runs.lock();
        runs.get(&(task.function.code, item)).copied().unwrap_or(0)
    }

    /// Returns what a worker's place is known to have done: items, and those that died.
    pub(in crate::engine::processes) fn tally(&self, number: usize) -> (u64, u64) {
        let dispatch = self.lock();
        let stats = dispatch.tallies[number].stats(None);
        (stats.tasks, stats.failures.worker_died)
    }

    /// Returns why the worker is being killed, as text.
    pub(in crate::engine::processes) fn kill_reason(&self, number: usize) -> Option<String> {
        let dispatch = self.lock();
        let reason = dispatch.workers[number].as_ref()?.kill_reason.as_ref()?;
        Some(format!("{reason:?}"))
    }

    /// Returns how many batches are in a worker's lane.
    pub(in crate::engine::processes) fn in_flight(&self, number: usize) -> usize {
        let dispatch = self.lock();
        let worker: Option<&Worker> = dispatch.workers[number].as_ref();
        worker.map_or(0, |worker| worker.in_flight.len())
    }
}

pub(in crate::engine::processes) struct Ringer(Arc<Shared>);

impl Ring for Ringer {
    fn ring(&self) {
        self.0.bell.ring();
    }
}

/// The worker's side of a lane.
pub(in crate::engine::processes) struct Peer {
    pub(in crate::engine::processes) pid: u32,
    pub(in crate::engine::processes) lane: Lane,
    requests: Reader,
    pub(in crate::engine::processes) responses: ResponseWriter,
    /// What has come of the message that the worker reads.
    message: Vec<u8>,
    claimed: Option<Claim>,
    runs: Arc<Mutex<HashMap<(u64, u32), u32>>>,
}

/// A task that a worker has begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::processes) struct Begun {
    pub(in crate::engine::processes) code: u64,
    pub(in crate::engine::processes) first: u32,
    pub(in crate::engine::processes) count: u32,
    /// The number of items that were started.
    started: u32,
}

impl Peer {
    /// Claims the next message, and reads as much of it as there is. Returns the task, if that is
    /// all of it. Skips what was taken back.
    pub(in crate::engine::processes) fn begin(&mut self) -> Option<Begun> {
        while self.requests.has_next() {
            if self.claimed.is_none() {
                self.claimed = Some(self.requests.claim());
            }
            let view = self.requests.current();
            view.bytes.append_to(&mut self.message);
            let is_last = view.last;
            self.requests.release();
            if !is_last {
                continue;
            }
            let message = std::mem::take(&mut self.message);
            match self.claimed.take() {
                Some(Claim::Taken) => {}
                Some(Claim::TakenBack) => continue,
                other => panic!("{other:?}"),
            }
            let Some((
                Request::Run {
                    task,
                    code,
                    first,
                    count,
                    stops_at,
                    more,
                    ..
                },
                _,
            )) = Request::parse(&message)
            else {
                continue;
            };
            self.responses.begin(task, first);
            self.responses.set_stops_at(stops_at);
            let more = more.unwrap_or_default();
            if more.is_recorded {
                self.responses.set_recorded();
            }
            if let Some(limit) = more.limit {
                self.responses.set_limit(limit);
            }
            return Some(Begun {
                code,
                first,
                count,
                started: 0,
            });
        }
        None
    }

    /// Starts the next item.
    pub(in crate::engine::processes) fn start(&mut self, begun: &mut Begun) {
        self.responses.item_starts();
        let item = begun.first + begun.started;
        *self.runs.lock().entry((begun.code, item)).or_default() += 1;
        begun.started += 1;
    }

    /// Answers the item that was started last.
    pub(in crate::engine::processes) fn answer(&mut self, begun: &Begun) {
        let item = begun.first + begun.started - 1;
        self.responses
            .result(&result(begun.code, item).to_ne_bytes());
    }

    pub(in crate::engine::processes) fn fault(&mut self, fault: &Fault) {
        self.responses.fault(fault);
    }

    /// Runs `items` items.
    pub(in crate::engine::processes) fn run(&mut self, begun: &mut Begun, items: u32) {
        for _ in 0..items {
            self.start(begun);
            self.answer(begun);
        }
    }

    /// Runs what is left of the task, and ends it.
    pub(in crate::engine::processes) fn finish(&mut self, mut begun: Begun) {
        let left = begun.count - begun.started;
        self.run(&mut begun, left);
        self.responses.end();
    }

    /// Runs all that is in the lane.
    pub(in crate::engine::processes) fn serve(&mut self) {
        while let Some(begun) = self.begin() {
            self.finish(begun);
        }
    }

    /// Publishes the answers so far, in the middle of a task.
    pub(in crate::engine::processes) fn publish(&mut self) {
        // This is more than an open cell has room for.
        self.responses.room_for(CELL_PAYLOAD);
    }

    /// Begins with the next task, which must be there.
    #[track_caller]
    pub(in crate::engine::processes) fn must_begin(&mut self) -> Begun {
        self.begin().expect("a task is in the lane")
    }
}

/// Returns the result of an item of the task with this code.
fn result(code: u64, item: u32) -> u64 {
    code << 32 | u64::from(item)
}

/// An item, and its answer.
type Answer = (u32, Result<Vec<u8>, TaskError>);

/// The answers of a task.
#[derive(Default)]
pub(in crate::engine::processes) struct Log {
    answers: Mutex<Vec<Answer>>,
    ends: AtomicUsize,
    pub(in crate::engine::processes) is_variable: bool,
    /// The results of the task's items, if its function is a real one.
    pub(in crate::engine::processes) expected: Vec<Vec<u8>>,
    pub(in crate::engine::processes) is_told: bool,
    pub(in crate::engine::processes) is_awaited: bool,
    pub(in crate::engine::processes) is_unwanted: AtomicBool,
    /// The first item that is not wanted.
    pub(in crate::engine::processes) unwanted_from: Mutex<Option<u32>>,
    pub(in crate::engine::processes) is_cancelled: AtomicBool,
    pub(in crate::engine::processes) ended: Signal,
    /// The address of the call.
    pub(in crate::engine::processes) call: usize,
}

impl Sink for Log {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        let mut copy = Vec::new();
        bytes.append_to(&mut copy);
        let mut rest = copy.as_slice();
        let mut answers = self.answers.lock();
        for item in first..first + count {
            let len = if self.is_variable {
                codec::records_len(rest, 1).expect("a record")
            } else {
                8
            };
            let (one, after) = rest.split_at(len);
            answers.push((item, Ok(one.to_vec())));
            rest = after;
        }
        assert!(rest.is_empty(), "as many results as bytes");
    }

    fn fault(&self, index: u32, fault: Fault) {
        let error = fault.into_error(None);
        self.answers.lock().push((index, Err(error)));
    }
}

impl Results for Log {
    fn discard(&self, _bytes: Vec<u8>) {}

    fn failed(&self, index: u32, error: TaskError) {
        self.answers.lock().push((index, Err(error)));
    }

    fn ended(&self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
        self.ended.raise();
    }

    fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    fn call(&self) -> *const () {
        self.call as *const ()
    }

    fn is_wanted(&self, from: u32) -> bool {
        let is_left_out = self
            .unwanted_from
            .lock()
            .is_some_and(|unwanted| from >= unwanted);
        !self.is_unwanted.load(Ordering::SeqCst) && !is_left_out
    }

    fn is_told(&self) -> bool {
        self.is_told
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }
}

impl Task<Log> {
    pub(in crate::engine::processes) fn has_ended(&self) -> bool {
        self.results.ends.load(Ordering::SeqCst) > 0
    }

    /// Returns how many items have an answer.
    pub(in crate::engine::processes) fn answered(&self) -> usize {
        self.results.answers.lock().len()
    }

    /// Returns the items that failed. Each item must have one answer, in order, and each result
    /// must be its own. The end must have been told once.
    #[track_caller]
    pub(in crate::engine::processes) fn failures(&self) -> Vec<(u32, TaskError)> {
        assert_eq!(self.results.ends.load(Ordering::SeqCst), 1, "ends told");
        let answers = self.results.answers.lock();
        let items: Vec<u32> = answers.iter().map(|(item, _)| *item).collect();
        let all: Vec<u32> = (0..self.count).collect();
        assert_eq!(items, all, "each item has one answer, in order");
        let mut failures = Vec::new();
        for (item, answer) in answers.iter() {
            match answer {
                Ok(bytes) if !self.results.expected.is_empty() => {
                    let own = &self.results.expected[*item as usize];
                    assert!(bytes == own, "the result of item {item}");
                }
                Ok(bytes) => {
                    let own = result(self.function.code, *item).to_ne_bytes();
                    assert_eq!(bytes.as_slice(), own, "the result of item {item}");
                }
                Err(error) => failures.push((*item, error.clone())),
            }
        }
        failures
    }
}
