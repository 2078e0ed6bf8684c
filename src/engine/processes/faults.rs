//! Workers that are killed or stopped between any two steps of taking a request and of giving a
//! result: what the dispatch makes of it, and what another worker gets.
//!
//! The dispatch is a real one, with [made-up](super::dispatch::made_up) processes. The first worker
//! is a forked child that does a real worker's work and meets its fate. The second one is a thread.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::dispatch::made_up::{Log, MadeUp, until};
use super::task::Task;
use super::worker::serve_here;
use crate::call::code;
use crate::call::entry::{self, Entry};
use crate::codec;
use crate::error::{Death, PoolError, TaskError};
use crate::lane::Lane;
use crate::os::clock;
use crate::os::fault::{Child, Fate};
use crate::os::memory::SharedMemory;

const COUNTERS: usize = 1 << 20;

/// How often each item of these tests was started, in all processes together.
static RUNS: LazyLock<SharedMemory> = LazyLock::new(|| {
    let len = NonZeroUsize::new(COUNTERS * size_of::<AtomicU32>()).unwrap();
    SharedMemory::new("a test", len).unwrap().0
});

fn runs_of(counter: u64) -> &'static AtomicU32 {
    let counter = usize::try_from(counter).unwrap();
    assert!(counter < COUNTERS);
    // SAFETY: the word lies within the mapping, which stays.
    #[allow(unsafe_code)]
    let word = unsafe { RUNS.start().cast::<AtomicU32>().add(counter) };
    // SAFETY: the word is aligned, as the mapping is; any value is valid.
    #[allow(unsafe_code)]
    unsafe {
        word.as_ref()
    }
}

fn new_counters(count: usize) -> Range<u64> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed) as u64;
    first..first + count as u64
}

/// A task, and the counters of its items.
struct Placed {
    task: Arc<Task<Log>>,
    counters: Range<u64>,
}

impl Placed {
    fn runs(&self) -> Vec<u32> {
        let runs = |counter| runs_of(counter).load(Ordering::SeqCst);
        self.counters.clone().map(runs).collect()
    }
}

/// Places a task that runs `f`, a function without captured variables, on these items.
fn place<F, A, R>(house: &MadeUp, f: F, limit: Option<Duration>, items: &[(A, R)]) -> Arc<Task<Log>>
where
    F: Fn(A) -> R + Copy,
    A: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    let entry: Entry = entry::plain::<F, A, R>;
    let _ = f;
    house.place_with(items.len() as u32, |task| {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (item, result) in items {
            codec::append(&mut bytes, item).unwrap();
            let mut encoded = Vec::new();
            codec::append(&mut encoded, result).unwrap();
            expected.push(encoded);
        }
        task.function.code = code::number(entry as usize).unwrap();
        task.items = bytes.into();
        task.argument_size = codec::fixed_size::<A>();
        task.result_size = codec::fixed_size::<R>();
        task.limits.set(|given| given.timeout = limit);
        task.results.is_variable = task.result_size.is_none();
        task.results.expected = expected;
        task.results.is_awaited = true;
    })
}

/// Places a task whose arguments and results have one size.
fn numbers(house: &MadeUp, count: usize, limit: Option<Duration>) -> Placed {
    let counters = new_counters(count);
    let f = |counter: u64| {
        runs_of(counter).fetch_add(1, Ordering::SeqCst);
        !counter
    };
    let items: Vec<(u64, u64)> = counters.clone().map(|it| (it, !it)).collect();
    let task = place(house, f, limit, &items);
    Placed { task, counters }
}

/// Places a task whose arguments and results have these sizes.
fn texts(house: &MadeUp, lens: &[usize]) -> Placed {
    let counters = new_counters(lens.len());
    let f = |mut text: Vec<u8>| {
        let counter = text.first_chunk().copied().map_or(0, u64::from_ne_bytes);
        runs_of(counter).fetch_add(1, Ordering::SeqCst);
        text.reverse();
        text
    };
    let items = counters.clone().zip(lens).map(|(counter, &len)| {
        let mut text = counter.to_ne_bytes().to_vec();
        text.extend((8..len).map(|at| at as u8));
        let result = text.iter().rev().copied().collect();
        (text, result)
    });
    let items: Vec<(Vec<u8>, Vec<u8>)> = items.collect();
    let task = place(house, f, None, &items);
    Placed { task, counters }
}

const LONG: Duration = Duration::from_secs(3_600);

/// Places one task of each kind, all of which fit into the lane.
fn small(house: &MadeUp) -> Vec<Placed> {
    vec![
        numbers(house, 2, None),
        // The second argument and its result take two cells each.
        texts(house, &[20, 5_000]),
        numbers(house, 2, Some(LONG)),
        texts(house, &[8]),
        numbers(house, 1, None),
    ]
}

/// Places a message that is larger than the ring, in both directions, between others.
fn large(house: &MadeUp) -> Vec<Placed> {
    vec![
        numbers(house, 1, None),
        texts(house, &[30, 140_000, 30]),
        numbers(house, 1, None),
    ]
}

fn life_line() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Moves on what can move, and asks for the bell, as a caller does before it sleeps.
fn pump(house: &MadeUp) {
    let mut dispatch = house.lock();
    dispatch.ask_for_bell();
    dispatch.pump(&house.shared);
}

fn stop_when_done(house: &MadeUp, lane: &Lane) {
    pump(house);
    if house.lock().has_all_ended() {
        lane.header().stop();
    }
}

/// The second worker.
struct Second {
    lane: Lane,
    thread: JoinHandle<()>,
}

impl Second {
    fn hire(house: &MadeUp) -> Self {
        let lane = house.hire_unready(1).lane;
        let (its_lane, ringer) = (lane.clone(), house.ringer());
        let thread = thread::spawn(move || serve_here(its_lane, ringer, life_line()));
        until("it is ready", || lane.header().is_ready());
        Self { lane, thread }
    }

    fn end(self) {
        self.lane.header().stop();
        self.thread.join().unwrap();
    }
}

/// What has become of a run.
struct Ran {
    placed: Vec<Placed>,
    is_through: bool,
    /// The item that the dead worker itself says it was at: which task, and which item.
    was_at: Option<(usize, u32)>,
}

/// Has the first worker meet `fate`, does `meanwhile` while it is stopped, and has the second one
/// do what is left.
fn run(
    scene: fn(&MadeUp) -> Vec<Placed>,
    fate: Fate,
    number: i64,
    meanwhile: impl FnOnce(&MadeUp, &[Placed]),
) -> Ran {
    LazyLock::force(&RUNS);
    let house = MadeUp::new(2);
    let lane = house.hire_unready(0).lane;
    let placed = scene(&house);
    let child = Child::run_beside(
        fate,
        number,
        || serve_here(lane.clone(), house.ringer(), life_line()),
        || stop_when_done(&house, &lane),
    );
    let is_stopped = child.is_stopped();
    let mut second = None;
    if is_stopped {
        meanwhile(&house, &placed);
        second = Some(Second::hire(&house));
        let now = clock::now();
        let mut looks = [0, 10, 21, 31, 41].into_iter();
        until("what has not begun goes to the other worker", || {
            if let Some(millis) = looks.next() {
                let at = now + millis * 1_000_000;
                house.shared.watch_lanes(&mut house.lock(), at);
            }
            pump(&house);
            looks.len() == 0 && house.in_flight(0) <= 1 && house.in_flight(1) == 0
        });
    }
    let is_through = child.end_beside(|| stop_when_done(&house, &lane));
    let goes_on = is_stopped && fate == Fate::Paused;
    let has_died = !(is_through || goes_on);
    let progress = lane.header().progress();
    let was_at = progress
        .running()
        .filter(|_| has_died)
        .map(|item| (progress.task as usize - 1, item));
    let death = if has_died {
        Death::Signal(9)
    } else {
        Death::Exit(0)
    };
    house.reclaim(0, death);
    let second = second.unwrap_or_else(|| Second::hire(&house));
    until("all tasks end", || {
        pump(&house);
        house.lock().has_all_ended()
    });
    second.end();
    house.assert_at_rest();
    Ran {
        placed,
        is_through,
        was_at,
    }
}

/// Runs the scene with a fate at each point in turn, and checks what comes of it: a worker that
/// dies loses at most the item that it was at.
fn at_each_point(scene: fn(&MadeUp) -> Vec<Placed>, fate: Fate) {
    let (mut lost, mut kept) = (0, 0);
    for number in 0.. {
        let ran = run(scene, fate, number, |_, _| {});
        let mut failed = None;
        for (nth, placed) in ran.placed.iter().enumerate() {
            let failures = placed.task.failures();
            for (item, error) in &failures {
                assert_eq!(failed, None, "a second failure at fault point {number}");
                failed = Some((nth, *item));
                let TaskError::WorkerDied {
                    cause, attempts, ..
                } = error
                else {
                    panic!("{error} at fault point {number}");
                };
                assert_eq!((*cause, *attempts), (Death::Signal(9), 1));
            }
            for (item, runs) in (0..).zip(placed.runs()) {
                let has_failed = failed == Some((nth, item));
                assert!(
                    runs == 1 || (has_failed && runs == 0),
                    "item {item} of task {nth} has run {runs} times at fault point {number}"
                );
            }
        }
        if failed.is_some() {
            assert_eq!(failed, ran.was_at, "the wrong item at fault point {number}");
            lost += 1;
        } else {
            kept += 1;
        }
        if ran.is_through {
            assert_eq!(failed, None);
            assert!(number > 20, "there are only {number} fault points");
            break;
        }
    }
    assert!(kept > 0 && (fate == Fate::Paused) == (lost == 0), "{lost}");
}

#[test]
fn a_worker_that_is_killed_between_any_two_steps_costs_the_item_that_it_was_at() {
    at_each_point(small, Fate::Killed);
}

#[test]
fn a_worker_that_is_stopped_between_any_two_steps_goes_on_as_if_it_had_not_been() {
    at_each_point(small, Fate::Paused);
}

#[test]
fn a_worker_that_is_stopped_and_killed_costs_the_item_that_it_was_at() {
    at_each_point(small, Fate::KilledLater);
}

#[test]
fn nothing_of_a_large_message_is_torn_wherever_its_worker_dies() {
    at_each_point(large, Fate::Killed);
}

#[test]
fn a_large_message_goes_on_wherever_its_worker_was_stopped() {
    at_each_point(large, Fate::Paused);
}

/// What the parent does while the worker is stopped.
#[derive(Clone, Copy, Debug)]
enum Step {
    Withdraw(usize),
    Kill(usize),
    DropUnwanted,
    CancelQueued,
    LetGo,
    Resize,
    Nothing,
}

const STEPS: [Step; 12] = [
    Step::Withdraw(0),
    Step::Withdraw(1),
    Step::Withdraw(2),
    Step::Withdraw(4),
    Step::Kill(0),
    Step::Kill(1),
    Step::Kill(4),
    Step::DropUnwanted,
    Step::CancelQueued,
    Step::LetGo,
    Step::Resize,
    Step::Nothing,
];

/// Runs a pair of steps: the worker stands at one of its steps, and the parent does one of its own.
/// Returns whether the worker came through.
fn pair(step: Step, fate: Fate, number: i64) -> bool {
    let what = format!("{step:?}, {fate:?} at fault point {number}");
    let withdrawn = AtomicUsize::new(usize::MAX);
    let killed = AtomicUsize::new(usize::MAX);
    let ran = run(small, fate, number, |house, placed| {
        let mut dispatch = house.lock();
        match step {
            Step::Withdraw(nth) => {
                let task = &placed[nth].task;
                let which = (task.address(), task.count);
                if !task.has_ended() && dispatch.withdraw(&house.shared, which, false) {
                    task.results.is_cancelled.store(true, Ordering::SeqCst);
                    withdrawn.store(nth, Ordering::SeqCst);
                }
            }
            // A worker that is being killed does not go on.
            Step::Kill(nth) if fate == Fate::KilledLater => {
                if dispatch.kill(placed[nth].task.address(), &TaskError::Cancelled {}) {
                    killed.store(nth, Ordering::SeqCst);
                }
            }
            Step::DropUnwanted => {
                for placed in placed {
                    placed
                        .task
                        .results
                        .is_unwanted
                        .store(true, Ordering::SeqCst);
                }
                dispatch.drop_unwanted(&house.shared);
            }
            Step::CancelQueued => dispatch.cancel_queued(&house.shared),
            Step::LetGo => dispatch.let_go(0),
            Step::Resize => dispatch.resize(&house.shared, 3).unwrap(),
            Step::Nothing | Step::Kill(_) => {}
        }
    });
    for (nth, placed) in ran.placed.iter().enumerate() {
        let runs = placed.runs();
        if nth == withdrawn.load(Ordering::SeqCst) {
            assert!(!placed.task.has_ended(), "{what}");
            assert_eq!(runs, vec![0; runs.len()], "withdrawn and run: {what}");
            continue;
        }
        let failures = placed.task.failures();
        let failed = |item| failures.iter().find(|(at, _)| *at == item);
        for (item, runs) in (0..).zip(runs) {
            match failed(item).map(|(_, error)| error) {
                None => assert_eq!(runs, 1, "item {item} of task {nth}: {what}"),
                Some(TaskError::Cancelled {}) if nth == killed.load(Ordering::SeqCst) => {}
                Some(TaskError::Cancelled {}) => {
                    assert!(matches!(step, Step::DropUnwanted | Step::CancelQueued));
                    assert_eq!(runs, 0, "item {item} of task {nth} is cancelled: {what}");
                }
                Some(error @ TaskError::WorkerDied { .. }) => {
                    assert_eq!(ran.was_at, Some((nth, item)), "{error}: {what}");
                }
                Some(error) => panic!("{error}: {what}"),
            }
        }
    }
    ran.is_through
}

/// The second task's message takes two cells. The worker has not begun with it at these points.
#[test]
fn a_message_that_was_taken_back_is_passed_over_whole() {
    for step in [Step::Withdraw(1), Step::DropUnwanted] {
        for number in 0..12 {
            pair(step, Fate::Paused, number);
        }
    }
}

/// A sample of all pairs of a worker's step and a parent's. `MANYHANDS_SEED` repeats it.
#[test]
fn a_step_of_the_parent_while_its_worker_is_stopped_at_any_step() {
    let given = std::env::var("MANYHANDS_SEED").ok();
    let seed = given.and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(crate::os::random::word);
    println!("MANYHANDS_SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % below
    };
    // There are as many points as the worker has, or a few less.
    let mut points = 20;
    while !pair(Step::Nothing, Fate::Killed, points) {
        points += 20;
    }
    for _ in 0..200 {
        let step = STEPS[random(STEPS.len() as u64) as usize];
        let fate = [Fate::Paused, Fate::KilledLater][random(2) as usize];
        pair(step, fate, random(points.unsigned_abs()).cast_signed());
    }
}

/// The pool ends while its worker stands at any of its steps: each item has one answer.
#[test]
fn the_pool_ends_while_its_worker_is_stopped_at_any_step() {
    for number in (0..).step_by(3) {
        LazyLock::force(&RUNS);
        let house = MadeUp::new(1);
        let lane = house.hire_unready(0).lane;
        let placed = small(&house);
        let child = Child::run_beside(
            Fate::KilledLater,
            number,
            || serve_here(lane.clone(), house.ringer(), life_line()),
            || stop_when_done(&house, &lane),
        );
        let error = TaskError::from(PoolError::Closed);
        drop(house.lock().end(PoolError::Closed, &error));
        house.assert_at_rest();
        let is_through = child.end();
        for placed in &placed {
            let failures = placed.task.failures();
            assert!(failures.iter().all(|(_, its)| *its == error));
            assert!(!is_through || failures.is_empty());
            let failed = |item| failures.iter().any(|(at, _)| *at == item);
            for (item, runs) in (0..).zip(placed.runs()) {
                assert!(runs == 1 || (runs == 0 && failed(item)), "item {item}");
            }
        }
        if is_through {
            break;
        }
    }
}
