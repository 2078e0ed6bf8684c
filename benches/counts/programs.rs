//! What is counted: small programs, each of which runs one operation again and again under
//! callgrind.
//!
//! A program calls [`count_mark`] where a block of operations begins and where it ends. At each
//! call callgrind writes down what the thread has counted so far, and begins anew. There are blocks
//! of two sizes. The difference between the two is what the additional operations cost: whatever
//! comes once a block, as the marks do, is in both.
//!
//! A count repeats only if no thread spins, and if each side always finds the other in the same
//! state. So a program runs on one core, where no thread of this crate spins. A pool has one
//! worker. Before each step that looks at the other side, [`rest`] waits until the worker sleeps. A
//! task therefore costs the worker two sleeps, and the caller two system calls to wake it: the most
//! that it can cost, not what it costs when both are busy.

use std::cell::RefCell;
use std::hint::black_box;
use std::io;

use manyhands::prelude::*;
use manyhands::sync::{Mutex, RwLock, Semaphore};
use manyhands::{Queue, SharedArray, SharedValue};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::rest::{Sleeper, rest};

/// How often an operation runs: in blocks of two sizes, in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Operations in a block of either size.
    pub(crate) sizes: [usize; 2],
    /// Blocks of each size, after one of each that warms up.
    pub(crate) rounds: usize,
}

/// Nothing but the operation runs.
const ALONE: Blocks = Blocks {
    sizes: [1, 128],
    rounds: 5,
};

/// The same for operations that take memory. Whenever 50 ms have passed, taking memory also looks
/// whether a process has died. Short blocks, right after one operation that is not counted, are
/// over before.
const SHORT: Blocks = Blocks {
    sizes: [1, 4],
    rounds: 21,
};

/// The queue of a pool of threads allocates once for 31 tasks.
const THREADS: Blocks = Blocks {
    sizes: [31, 62],
    rounds: 7,
};

/// Now and then the pool's supervisor takes an answer in place of the caller. Most blocks of this
/// length are over before.
const PROCESSES: Blocks = Blocks {
    sizes: [1, 4],
    rounds: 51,
};

/// Items of a chunk.
const ITEMS: usize = 32;

/// Structs in a `Vec`.
const STRUCTS: usize = 16;

/// The thread whose instructions a row counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// The main thread of the program.
    Caller,
    /// The one thread of a pool of threads, which is the program's second.
    Thread,
    /// The main thread of a worker process.
    Worker,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) side: Side,
    /// Which of the program's operations it is.
    pub(crate) operation: usize,
}

pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) run: fn(Blocks),
    pub(crate) blocks: Blocks,
    pub(crate) rows: &'static [Row],
}

const fn row(operation: usize, side: Side, name: &'static str) -> Row {
    Row {
        name,
        side,
        operation,
    }
}

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "processes",
        run: processes,
        blocks: PROCESSES,
        rows: &[
            row(0, Side::Caller, "processes, a task with a number: caller"),
            row(0, Side::Worker, "processes, a task with a number: worker"),
            row(1, Side::Caller, "processes, a task with a struct: caller"),
            row(1, Side::Worker, "processes, a task with a struct: worker"),
            row(2, Side::Caller, "processes, a map of one chunk: caller"),
            row(2, Side::Worker, "processes, a map of one chunk: worker"),
        ],
    },
    Program {
        name: "threads",
        run: threads,
        blocks: THREADS,
        rows: &[
            row(0, Side::Caller, "threads, a task with a number: caller"),
            row(0, Side::Thread, "threads, a task with a number: worker"),
        ],
    },
    Program {
        name: "locks",
        run: locks,
        blocks: ALONE,
        rows: &[
            row(0, Side::Caller, "Mutex, lock and unlock"),
            row(1, Side::Caller, "Semaphore, acquire and release"),
            row(2, Side::Caller, "RwLock, read and unlock"),
            row(3, Side::Caller, "RwLock, write and unlock"),
        ],
    },
    Program {
        name: "queues of numbers",
        run: |blocks| queue(blocks, || 7_u64),
        blocks: ALONE,
        rows: &[
            row(0, Side::Caller, "Queue, push a number"),
            row(1, Side::Caller, "Queue, pop a number"),
        ],
    },
    Program {
        name: "queues of strings",
        run: |blocks| queue(blocks, || "a string of 23 characters"[..23].to_owned()),
        blocks: ALONE,
        rows: &[
            row(0, Side::Caller, "Queue, push a string"),
            row(1, Side::Caller, "Queue, pop a string"),
        ],
    },
    Program {
        name: "queues of structs",
        run: |blocks| queue(blocks, Record::make),
        blocks: SHORT,
        rows: &[
            row(0, Side::Caller, "Queue, push a struct"),
            row(1, Side::Caller, "Queue, pop a struct"),
        ],
    },
    Program {
        name: "queues of lists",
        run: |blocks| {
            queue(blocks, || {
                (0..STRUCTS).map(|_| Record::make()).collect::<Vec<_>>()
            });
        },
        blocks: SHORT,
        rows: &[
            row(0, Side::Caller, "Queue, push a Vec of 16 structs"),
            row(1, Side::Caller, "Queue, pop a Vec of 16 structs"),
        ],
    },
    Program {
        name: "arrays",
        run: arrays,
        blocks: ALONE,
        rows: &[
            row(0, Side::Caller, "SharedArray, claim to read and release"),
            row(1, Side::Caller, "SharedArray, claim to write and release"),
            row(2, Side::Caller, "SharedArray, claim a range and release"),
        ],
    },
    Program {
        name: "objects",
        run: objects,
        blocks: SHORT,
        rows: &[
            row(0, Side::Caller, "SharedValue, make and drop"),
            row(1, Side::Caller, "SharedValue, update"),
        ],
    },
];

/// The struct that is encoded and decoded.
#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    number: u64,
    share: f64,
    tags: Vec<u32>,
    parent: Option<u16>,
}

impl Record {
    fn make() -> Self {
        Self {
            name: "a record".to_owned(),
            number: 1 << 40,
            share: 0.25,
            tags: vec![1, 2, 3, 4],
            parent: Some(3),
        }
    }
}

/// Marks the end of what was counted up to here. Callgrind knows this function by its name.
// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_mark() {
    black_box(());
}

/// Runs the blocks of one operation; `run` runs that many of it. Around each block, `prepare` and
/// `clean` run uncounted.
fn count(
    blocks: Blocks,
    mark: impl Fn(),
    mut prepare: impl FnMut(usize),
    mut run: impl FnMut(usize),
    mut clean: impl FnMut(usize),
) {
    for _ in 0..=blocks.rounds {
        for operations in blocks.sizes {
            prepare(operations);
            mark();
            run(operations);
            mark();
            clean(operations);
        }
    }
}

/// Runs `operation` again and again.
fn each(mut operation: impl FnMut()) -> impl FnMut(usize) {
    move |operations| (0..operations).for_each(|_| operation())
}

/// Counts an operation of this thread alone.
fn count_here(blocks: Blocks, operation: impl Fn()) {
    let prepare = |_| operation();
    count(blocks, || count_mark(), prepare, each(&operation), |_| ());
}

/// Keeps this process, and what it starts, on one core.
fn stay_on_one_core() -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let usable = sched_getaffinity(this)?;
    let first = (0..CpuSet::count()).find(|&core| usable.is_set(core).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or(0))?;
    sched_setaffinity(this, &one)
}

/// Runs one task, from `submit` to its result. The worker sleeps whenever the caller looks at its
/// side.
fn task<E, F, A, R>(pool: &Pool<E>, worker: Sleeper, function: F, argument: A) -> R
where
    E: Run<F, A, R>,
    F: Fn(A) -> R + Send + 'static,
    A: Send + 'static,
    R: Send + 'static,
{
    rest(worker);
    let task = pool.submit(function, argument);
    rest(worker);
    task.result().expect("no task fails")
}

fn processes(blocks: Blocks) {
    let builder = Processes::builder().workers(1);
    let pool = builder.wait_policy(WaitPolicy::Park).build().unwrap();
    let pid = pool.submit(|()| std::process::id(), ());
    let worker = Sleeper::process(pid.result().unwrap());
    let mark = || {
        task(&pool, worker, |()| count_mark(), ());
        rest(worker);
        count_mark();
    };
    let square = || {
        black_box(task(&pool, worker, |x: u64| x * x, black_box(7)));
    };
    count(blocks, mark, |_| (), each(square), |_| ());
    let echo = || {
        let record = Record::make();
        black_box(task(&pool, worker, |record: Record| record, record));
    };
    count(blocks, mark, |_| (), each(echo), |_| ());
    let map = || {
        rest(worker);
        let mut left = ITEMS as u64;
        // The caller asks an input of unknown length for one more item when its only chunk has been
        // given out. The worker ends the chunk meanwhile.
        let items = std::iter::from_fn(|| {
            if left == 0 {
                rest(worker);
                return None;
            }
            left -= 1;
            Some(left)
        });
        let call = pool.call().chunk_size(ITEMS);
        black_box(call.map(|x: u64| x * x, items).unwrap());
    };
    count(blocks, mark, |_| (), each(map), |_| ());
}

fn threads(blocks: Blocks) {
    let pool = Pool::threads(1).unwrap();
    let worker = pool.submit(|()| Sleeper::this_thread(), ()).result();
    let worker = worker.unwrap();
    let mark = || {
        task(&pool, worker, |()| count_mark(), ());
        rest(worker);
        count_mark();
    };
    let square = || {
        black_box(task(&pool, worker, |x: u64| x * x, black_box(7)));
    };
    count(blocks, mark, |_| (), each(square), |_| ());
}

fn locks(blocks: Blocks) {
    let mutex = Mutex::new(0_u64).unwrap();
    count_here(blocks, || *mutex.lock().unwrap() += 1);
    let semaphore = Semaphore::new(2).unwrap();
    count_here(blocks, || drop(black_box(semaphore.acquire())));
    let lock = RwLock::new(0_u64).unwrap();
    count_here(blocks, || {
        black_box(*lock.read().unwrap());
    });
    count_here(blocks, || *lock.write().unwrap() += 1);
}

fn queue<T: Serialize + for<'de> Deserialize<'de> + Send + 'static>(
    blocks: Blocks,
    make: impl Fn() -> T,
) {
    let queue = Queue::<T>::bounded(blocks.sizes[1] + 1).unwrap();
    let items = RefCell::new(Vec::new());
    let make = |count| items.borrow_mut().extend((0..count).map(|_| make()));
    let push = || {
        let item = items.borrow_mut().pop();
        queue.push(item.expect("it was made")).unwrap();
    };
    let pop = || drop(black_box(queue.pop().unwrap()));
    let mark = || count_mark();
    let prepare = |count| {
        make(count + 1);
        push();
        pop();
    };
    count(blocks, mark, prepare, each(push), |count| {
        (0..count).for_each(|_| pop());
    });
    let fill = |count| {
        make(count);
        (0..count).for_each(|_| push());
        prepare(0);
    };
    count(blocks, mark, fill, each(pop), |_| ());
}

fn arrays(blocks: Blocks) {
    let array = SharedArray::<u64>::zeros(1_000).unwrap();
    count_here(blocks, || {
        black_box(array.try_read().unwrap()[7]);
    });
    count_here(blocks, || array.try_write().unwrap()[7] += 1);
    count_here(blocks, || array.try_write_range(100..200).unwrap()[7] += 1);
}

fn objects(blocks: Blocks) {
    count_here(blocks, || drop(black_box(SharedValue::new(1_u64).unwrap())));
    let value = SharedValue::new(0_u64).unwrap();
    count_here(blocks, || {
        value.update(|old| old + 1);
    });
}

/// Runs the program of this name.
pub(crate) fn run(name: &str) -> io::Result<()> {
    let known = PROGRAMS.iter().find(|program| program.name == name);
    let program = known.ok_or_else(|| io::Error::other(format!("no program is named {name}")))?;
    stay_on_one_core()?;
    (program.run)(program.blocks);
    Ok(())
}
