//! What the tasks of a program do, and the ledger in which they note it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::should_stop;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::program::{Kind, Way};

/// Names the file of the ledger, for the program and its workers.
pub(crate) const LEDGER: &str = "MANYHANDS_TEST_LEDGER";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A task's function was entered.
    Start,
    /// It is about to return.
    Return,
    /// A call that ended the pool has returned: no task of the pool may start after this.
    PoolEnded,
}

/// One line of the ledger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) event: Event,
    pub(crate) pool: usize,
    pub(crate) task: u32,
    pub(crate) pid: u32,
}

const ENTRY: usize = 12;

fn ledger() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = std::env::var_os(LEDGER).expect("the ledger has a name");
        let options = File::options().read(true).append(true).open(path);
        options.expect("the ledger can be opened")
    })
}

/// Opens the ledger, so that forked children have it.
pub(crate) fn open_ledger() {
    ledger();
}

pub(crate) fn note(event: Event, pool: usize, task: u32) {
    let mut entry = [0; ENTRY];
    entry[0] = event as u8;
    entry[1] = pool as u8;
    entry[4..8].copy_from_slice(&task.to_le_bytes());
    entry[8..].copy_from_slice(&std::process::id().to_le_bytes());
    // One write: entries of several processes neither mix nor overwrite each other.
    let written = ledger().write(&entry).expect("the ledger takes an entry");
    assert_eq!(written, ENTRY);
}

/// All that was noted so far, in order.
pub(crate) fn entries() -> Vec<Entry> {
    let (mut bytes, file) = (Vec::new(), ledger());
    let mut part = [0; 64 * ENTRY];
    loop {
        let len = file.read_at(&mut part, bytes.len() as u64);
        match len.expect("the ledger can be read") {
            0 => break,
            len => bytes.extend_from_slice(&part[..len]),
        }
    }
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let entries = bytes.chunks_exact(ENTRY).map(|entry| Entry {
        event: [Event::Start, Event::Return, Event::PoolEnded][usize::from(entry[0])],
        pool: usize::from(entry[1]),
        task: number(&entry[4..8]),
        pid: number(&entry[8..]),
    });
    entries.collect()
}

/// Fails where an argument is to fail.
#[derive(Clone, Debug)]
struct ArgumentTrap(Kind);

impl Serialize for ArgumentTrap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == Kind::StuckArgument {
            return Err(serde::ser::Error::custom("a stuck argument"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ArgumentTrap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Kind::deserialize(deserializer)? {
            Kind::DieInArgument => die(Way::Abort),
            Kind::BadArgument => Err(serde::de::Error::custom("a bad argument")),
            kind => Ok(Self(kind)),
        }
    }
}

/// Fails where a result is to fail.
#[derive(Clone, Debug, PartialEq)]
struct ResultTrap(Kind);

impl Serialize for ResultTrap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Kind::DieInResult => die(Way::Abort),
            Kind::StuckResult => Err(serde::ser::Error::custom("a stuck result")),
            kind => kind.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ResultTrap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Kind::deserialize(deserializer)? {
            Kind::BadResult => Err(serde::de::Error::custom("a bad result")),
            kind => Ok(Self(kind)),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) id: u32,
    pool: usize,
    trap: ArgumentTrap,
    text: String,
}

impl Task {
    /// `kind` is what is left of the task's kind on its engine.
    pub(crate) fn new(id: u32, pool: usize, kind: Kind) -> Self {
        Self {
            id,
            pool,
            trap: ArgumentTrap(kind),
            text: text(id, kind),
        }
    }
}

fn text(id: u32, kind: Kind) -> String {
    let letter = char::from(b'a' + (id % 26) as u8);
    let len = if kind == Kind::Large { 300_000 } else { 5 };
    std::iter::repeat_n(letter, len).collect()
}

/// What a call within a task gave; `None` if there was no pool for it.
pub(crate) type Nested = Option<Result<Vec<u64>, TaskError>>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u32,
    text: String,
    pub(crate) nested: Nested,
    /// Whether the task had been told to stop when it was about to return.
    pub(crate) is_told: bool,
    trap: ResultTrap,
}

impl Answer {
    /// Whether it is the answer of the task with this id.
    pub(crate) fn is_of(&self, id: u32, kind: Kind) -> bool {
        self.id == id && self.text == text(id, kind)
    }
}

/// Makes a call of a task on one of the program's pools.
pub(crate) type Caller = fn(pool: usize, n: u8) -> Nested;

/// Set in the program; not set in its worker processes.
pub(crate) static CALLER: OnceLock<Caller> = OnceLock::new();

/// The items of a nested call, and what it gives of one.
pub(crate) const NESTED: std::ops::Range<u64> = 0..4;

pub(crate) fn nested(n: u64) -> u64 {
    3 * n + 1
}

fn call(pool: usize, n: u8) -> Nested {
    if let Some(call) = CALLER.get() {
        return call(pool, n);
    }
    let outcome = if n.is_multiple_of(8) {
        Pool::processes(1)
            .map_err(TaskError::from)
            .and_then(|pool| pool.map(nested, NESTED))
    } else {
        Pool::threads(2)
            .map_err(TaskError::from)
            .and_then(|pool| pool.map(nested, NESTED))
    };
    Some(outcome)
}

fn die(way: Way) -> ! {
    match way {
        Way::Kill => drop(raise(Signal::SIGKILL)),
        Way::Segv => {
            // The first may come to the handler of std, which only gives up its place: no stack has
            // overflowed.
            let _ = raise(Signal::SIGSEGV);
            let _ = raise(Signal::SIGSEGV);
        }
        Way::Exit => crate::common::exit_at_once(7),
        Way::Abort => {}
    }
    std::process::abort()
}

/// The function of all tasks with an answer.
pub(crate) fn run(task: Task) -> Answer {
    note(Event::Start, task.pool, task.id);
    let mut answer = None;
    match task.trap.0 {
        Kind::Slow(millis) => std::thread::sleep(Duration::from_millis(millis.into())),
        Kind::Panic => panic!("task {}", task.id),
        Kind::Die(way) => die(way),
        Kind::Hang => loop {
            std::thread::park();
        },
        Kind::Freeze => loop {
            let _ = raise(Signal::SIGSTOP);
        },
        Kind::UntilTold => {
            while !should_stop() {
                std::thread::yield_now();
            }
        }
        Kind::Nested(n) => answer = call(task.pool, n),
        _ => {}
    }
    note(Event::Return, task.pool, task.id);
    Answer {
        id: task.id,
        text: task.text,
        nested: answer,
        is_told: should_stop(),
        trap: ResultTrap(task.trap.0),
    }
}

/// The same, for `for_each`.
pub(crate) fn run_only(task: Task) {
    run(task);
}

/// The same, for `map_with`.
pub(crate) fn run_with(context: &Vec<u64>, task: Task) -> Answer {
    assert_eq!(
        *context,
        self::context(),
        "the context has changed on its way"
    );
    run(task)
}

pub(crate) fn context() -> Vec<u64> {
    (0..100).collect()
}

/// The same, for `map_reduce`, whose reduction keeps the order.
pub(crate) fn run_id(task: Task) -> Vec<u32> {
    vec![run(task).id]
}

pub(crate) fn append(mut one: Vec<u32>, other: Vec<u32>) -> Vec<u32> {
    one.extend(other);
    one
}
