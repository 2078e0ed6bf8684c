//! Log records of workers and forked children: that they come, in order and whole, through the
//! logger of this process, and what it costs when they come too fast. Behaviours 107 to 110; of
//! single children, 137 and 139.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use common::random::{Random, number, seed};
use common::{
    DEADLINE, Leftovers, as_program, assert_matches, eventually, finish, is_program, is_running,
    kill,
};
use log::{Level, LevelFilter, Log, Metadata, Record};
use manyhands::logs::{self, Forwarder, Logs, Origin};
use manyhands::prelude::*;
use manyhands::process::{ExitStatus, ProcessBuilder, Stdio};
use manyhands::{Shutdown, TaskId, worker_index};

/// A record as the logger has got it.
#[derive(Clone, Debug)]
struct Kept {
    origin: Origin,
    level: Level,
    target: String,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    message: String,
}

impl Kept {
    /// Returns the message without what says where it comes from.
    fn text(&self) -> &str {
        let start = format!("[{}] ", self.origin);
        self.message.strip_prefix(&start).unwrap()
    }

    fn worker(&self) -> usize {
        self.origin.worker.unwrap_or_else(|| panic!("{self:?}"))
    }

    fn number(&self) -> u64 {
        self.text().parse().unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// What the logger does with the records of a pool before it keeps them.
type Hook = Arc<dyn Fn(&Origin) + Send + Sync>;

static LINES: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
static HOOKS: Mutex<BTreeMap<String, Hook>> = Mutex::new(BTreeMap::new());

struct Keep;

impl Log for Keep {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // What the crate has to say of this process is of no concern here.
        let Some(origin) = logs::origin() else {
            return;
        };
        let hook = HOOKS.lock().unwrap().get(&*origin.name).cloned();
        if let Some(hook) = hook {
            hook(&origin);
        }
        let text = |text: &str| text.to_owned();
        LINES.lock().unwrap().push(Kept {
            origin,
            level: record.level(),
            target: text(record.target()),
            module: record.module_path().map(text),
            file: record.file().map(text),
            line: record.line(),
            message: record.args().to_string(),
        });
    }

    fn flush(&self) {}
}

/// Gives this process its logger. Called before a test looks at what there is.
fn set_logger() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_boxed_logger(Box::new(Forwarder::new(Keep))).unwrap();
        log::set_max_level(LevelFilter::Debug);
        // Makes what a process keeps once it has had a child whose records are forwarded.
        let first = child("the first").spawn(|()| {}, ()).unwrap();
        first.join().unwrap();
    });
}

/// Returns what the logger has got from the workers of this pool, or from this child.
fn lines(pool: &str) -> Vec<Kept> {
    let lines = LINES.lock().unwrap();
    let own = lines.iter().filter(|line| &*line.origin.name == pool);
    own.cloned().collect()
}

fn hook(pool: &str, hook: impl Fn(&Origin) + Send + Sync + 'static) {
    HOOKS
        .lock()
        .unwrap()
        .insert(pool.to_owned(), Arc::new(hook));
}

/// The number of the next record of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn next() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Logs two records. Returns which worker it was.
fn log_two(item: u32) -> (u32, usize) {
    log::info!(target: "a::target", "{}", next());
    log::debug!("{} of item {item}", next());
    log::trace!("not of this level");
    (std::process::id(), worker_index().unwrap())
}

/// Checks that the lines are what `log_two` has logged, where item `n` has given `answers[n]`.
fn check_two(lines: &[Kept], answers: &[(u32, usize)]) {
    let mut by_item: BTreeMap<usize, Vec<&Kept>> = BTreeMap::new();
    let mut by_worker: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for line in lines {
        let item = line.origin.item.unwrap_or_else(|| panic!("{line:?}"));
        by_item.entry(item).or_default().push(line);
        let (number, _) = line.text().split_once(' ').unwrap_or((line.text(), ""));
        let numbers = by_worker.entry(line.origin.pid).or_default();
        numbers.push(number.parse().unwrap());
    }
    for numbers in by_worker.values() {
        let expected: Vec<u64> = (0..numbers.len() as u64).collect();
        assert_eq!(*numbers, expected);
    }
    assert_eq!(by_item.len(), answers.len());
    for (item, lines) in by_item {
        let [first, second] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        for line in [first, second] {
            let origin = &line.origin;
            let answer = (origin.pid, line.worker());
            assert_eq!(answer, answers[item], "{line:?}");
            assert_eq!(origin.task, None);
            let start = format!("[worker {}, item {item}] ", line.worker());
            assert!(line.message.starts_with(&start), "{line:?}");
            assert_eq!(line.module.as_deref(), Some("logs"));
            assert!(
                line.file.as_deref().unwrap().ends_with("logs.rs"),
                "{line:?}"
            );
            assert!(line.line.is_some());
        }
        assert_eq!(
            (first.level, first.target.as_str()),
            (Level::Info, "a::target")
        );
        assert_eq!(
            (second.level, second.target.as_str()),
            (Level::Debug, "logs")
        );
        assert!(second.text().ends_with(&format!(" of item {item}")));
    }
}

#[test]
fn b107_records_of_workers_come_through_this_logger_whatever_started_them() {
    set_logger();
    let _none = Leftovers::none();
    for method in [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::ForkServer,
    ] {
        let name = format!("every-{method}");
        let builder = Processes::builder().workers(2).name(&name);
        let pool = builder
            .start_method(method)
            .allow_threads(true)
            .build()
            .unwrap();
        let answers = pool.map(log_two, 0..50).unwrap();
        pool.close().unwrap();
        check_two(&lines(&name), &answers);
        let total = pool.stats().total();
        assert_eq!((total.log_records, total.log_records_dropped), (100, 0));
    }
}

#[test]
fn b107_records_of_forked_children_come_through_this_logger() {
    set_logger();
    let _none = Leftovers::none();
    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let answers = pool.map(log_two, 0..50).unwrap();
    let name = pool.name().to_owned();
    pool.close().unwrap();
    check_two(&lines(&name), &answers);

    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let name = pool.name().to_owned();
    let answers: Result<Vec<_>, _> = pool.imap(log_two, 0..5).collect();
    drop(pool);
    check_two(&lines(&name), &answers.unwrap());
}

#[test]
fn b107_items_have_the_index_that_they_have_in_the_input() {
    set_logger();
    let log = |x: u64| log::info!("{x}");
    let pool = Processes::builder()
        .workers(2)
        .name("indices")
        .build()
        .unwrap();
    pool.call().chunk_size(7).map(log, 0..40).unwrap();
    pool.imap_unordered(log, 40..80).for_each(drop);
    let both = |x: u64| {
        log::info!("{x}");
        x
    };
    let sum = pool
        .call()
        .chunk_size(6)
        .map_reduce(both, |one, other| one + other, 80..120);
    assert_eq!(sum.unwrap(), Some((80..120).sum()));
    pool.close().unwrap();
    let lines = lines("indices");
    assert_eq!(lines.len(), 120);
    for line in lines {
        assert_eq!(
            line.origin.item,
            Some(line.number() as usize % 40),
            "{line:?}"
        );
    }
}

#[test]
fn b107_submitted_tasks_have_their_id() {
    fn check<E: Executor>(pool: &Pool<E>, tasks: Vec<TaskFuture<()>>) {
        let name = pool.name().to_owned();
        let ids: Vec<TaskId> = tasks.iter().map(TaskFuture::id).collect();
        for task in tasks {
            task.result().unwrap();
        }
        pool.close().unwrap();
        let lines = lines(&name);
        assert_eq!(lines.len(), ids.len());
        for line in lines {
            let id = ids[line.number() as usize];
            assert_eq!((line.origin.task, line.origin.item), (Some(id), None));
            let start = format!("[worker {}, task {id}] ", line.worker());
            assert!(line.message.starts_with(&start), "{line:?}");
        }
    }
    set_logger();
    let log = |x: u32| log::info!("{x}");
    let pool = Processes::builder()
        .workers(2)
        .name("tasks")
        .build()
        .unwrap();
    check(&pool, (0..10).map(|x| pool.submit(log, x)).collect());
    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    check(&pool, (0..10).map(|x| pool.submit(log, x)).collect());
}

#[test]
fn b107_threads_of_a_task_count_as_the_task() {
    set_logger();
    let pool = Processes::builder()
        .workers(1)
        .name("threads")
        .build()
        .unwrap();
    let log = |x: u32| {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(move || (0..50).for_each(|_| log::info!("{x}"))))
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    };
    pool.map(log, 0..3).unwrap();
    drop(pool);
    let lines = lines("threads");
    assert_eq!(lines.len(), 3 * 200);
    let is_right = |line: &Kept| line.origin.item == Some(line.number() as usize);
    assert!(lines.iter().all(is_right));
}

#[test]
fn b107_a_logger_of_the_initialiser_stays() {
    /// Writes to the file that the environment names.
    struct Own;
    impl Log for Own {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &Record<'_>) {
            let path = std::env::var_os("OWN_LOG").unwrap();
            let mut file = fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .unwrap();
            writeln!(file, "{}", record.args()).unwrap();
        }
        fn flush(&self) {}
    }
    set_logger();
    let path = temporary("initialiser");
    let set = || {
        log::set_max_level(LevelFilter::Trace);
        log::set_logger(&Own).map_err(|error| error.to_string())
    };
    let builder = Processes::builder()
        .workers(1)
        .name("own logger")
        .initializer(set);
    let pool = builder.env("OWN_LOG", &path).build().unwrap();
    let level = pool.submit(
        |()| {
            log::trace!("its own");
            log::max_level() as usize
        },
        (),
    );
    assert_eq!(level.result().unwrap(), LevelFilter::Trace as usize);
    pool.close().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "its own\n");
    fs::remove_file(path).unwrap();
    assert!(lines("own logger").is_empty());
}

/// A path that no file has.
fn temporary(name: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("logs-{name}-{}-{number}", std::process::id()))
}

#[test]
fn b107_a_worker_has_the_level_of_its_parent_and_off_means_none() {
    set_logger();
    for (logs, level) in [
        (None, LevelFilter::Debug),
        (Some(Logs::Forward), LevelFilter::Debug),
        (Some(Logs::Off), LevelFilter::Off),
    ] {
        let name = format!("level-{logs:?}");
        let mut builder = Processes::builder().workers(1).name(&name);
        if let Some(logs) = logs {
            builder = builder.logs(logs);
        }
        let pool = builder.build().unwrap();
        let found = pool.submit(
            |()| {
                log::info!("seen");
                log::max_level() as usize
            },
            (),
        );
        assert_eq!(found.result().unwrap(), level as usize);
        pool.close().unwrap();
        assert_eq!(lines(&name).len(), usize::from(level != LevelFilter::Off));
    }
    // In forked children the copy of the logger does what it does here: keeps the record, in the
    // child.
    let builder = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .logs(Logs::Off);
    let pool = builder.build().unwrap();
    pool.map(|()| log::info!("kept in the child"), [()])
        .unwrap();
    let name = pool.name().to_owned();
    drop(pool);
    assert!(lines(&name).is_empty());
}

#[test]
fn b107_without_a_logger_nothing_is_forwarded() {
    if !is_program() {
        let output = finish(&mut as_program(
            "b107_without_a_logger_nothing_is_forwarded",
        ));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let pool = Processes::builder().workers(1).build().unwrap();
    let level = pool.submit(|()| log::max_level() as usize, ());
    assert_eq!(level.result().unwrap(), LevelFilter::Off as usize);
    let threads = common::threads();
    assert!(
        !threads.iter().any(|name| name.contains("logs")),
        "{threads:?}"
    );
    // A logger that is set later is not asked for.
    set_logger();
    pool.submit(|()| log::info!("not seen"), ())
        .result()
        .unwrap();
    let name = pool.name().to_owned();
    pool.close().unwrap();
    assert!(lines(&name).is_empty());
}

#[test]
fn b107_workers_of_a_worker_log_through_it() {
    set_logger();
    let pool = Processes::builder()
        .workers(1)
        .name("outer")
        .build()
        .unwrap();
    let outer = |x: u32| {
        let inner = Pool::processes(1).unwrap();
        inner.map(|y: u32| log::info!("{y}"), [5, x]).unwrap();
        inner.close().unwrap();
        let children = Forked::builder()
            .workers(1)
            .allow_threads(true)
            .build()
            .unwrap();
        children.map(|y: u32| log::info!("{y}"), [x + 1]).unwrap();
        children.close().unwrap();
    };
    pool.map(outer, [8]).unwrap();
    pool.close().unwrap();
    let texts: Vec<String> = lines("outer")
        .into_iter()
        .map(|line| line.message)
        .collect();
    let expected = [
        "[worker 0, item 0] [worker 0, item 0] 5",
        "[worker 0, item 0] [worker 0, item 1] 8",
        "[worker 0, item 0] [worker 0, item 0] 9",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn b108_what_a_worker_wrote_before_it_died_comes() {
    set_logger();
    let _none = Leftovers::none();
    let die = |count: u32| {
        (0..count).for_each(|nth| log::info!("{nth}"));
        kill(std::process::id());
        std::thread::sleep(DEADLINE);
    };
    let check = |name: &str| {
        let numbers: Vec<u64> = lines(name).iter().map(Kept::number).collect();
        assert_eq!(
            numbers,
            [(0..100).collect::<Vec<u64>>(), vec![0, 1, 2]].concat()
        );
    };
    let pool = Processes::builder()
        .workers(1)
        .name("dies")
        .build()
        .unwrap();
    for count in [100, 3] {
        let died = pool.submit(die, count).result();
        assert_matches!(
            died,
            Err(TaskError::WorkerDied {
                cause: Death::Signal(9),
                ..
            })
        );
    }
    pool.close().unwrap();
    check("dies");
    assert_eq!(pool.stats().total().log_records, 103);
    let pool = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .build()
        .unwrap();
    for count in [100, 3] {
        assert!(pool.submit(die, count).result().is_err());
    }
    let name = pool.name().to_owned();
    pool.close().unwrap();
    check(&name);
}

#[test]
fn b108_all_is_logged_when_the_end_of_the_pool_returns() {
    type End = fn(Pool<Processes>);
    type EndForked = fn(Pool<Forked>);
    set_logger();
    let _none = Leftovers::none();
    let log = |x: u32| (0..20).for_each(|_| log::info!("{x}"));
    let ends: [(&str, End); 4] = [
        ("close", |pool| pool.close().unwrap()),
        ("drop", drop),
        ("kill", |pool| pool.shutdown(Shutdown::Kill).unwrap()),
        ("cancel", |pool| {
            pool.shutdown(Shutdown::CancelQueued).unwrap();
        }),
    ];
    for (end, ends) in ends {
        let name = format!("end-{end}");
        let pool = Processes::builder().workers(2).name(&name).build().unwrap();
        // A logger that is slower than the workers.
        hook(&name, |_| std::thread::sleep(Duration::from_micros(100)));
        pool.map(log, 0..20).unwrap();
        ends(pool);
        assert_eq!(lines(&name).len(), 400, "{end}");
    }
    let ends: [EndForked; 3] = [
        |pool| pool.close().unwrap(),
        drop,
        |pool| pool.shutdown(Shutdown::Kill).unwrap(),
    ];
    for ends in ends {
        let pool = Forked::builder()
            .workers(2)
            .allow_threads(true)
            .build()
            .unwrap();
        let name = pool.name().to_owned();
        hook(&name, |_| std::thread::sleep(Duration::from_micros(100)));
        pool.map(log, 0..20).unwrap();
        ends(pool);
        assert_eq!(lines(&name).len(), 400);
    }
}

#[test]
fn b108_records_of_workers_killed_at_random_are_whole() {
    set_logger();
    let _none = Leftovers::none();
    let mut random = Random::new(seed());
    let pool = Processes::builder()
        .workers(2)
        .name("killed")
        .build()
        .unwrap();
    let log = |(): ()| -> () {
        for nth in 0_u64.. {
            let length = nth as usize * 7 % 600;
            log::info!("{nth} {}", "x".repeat(length));
        }
    };
    for _ in 0..number("MANYHANDS_KILLS").unwrap_or(30) {
        let died = pool.submit(log, ());
        eventually("the worker has begun", || died.is_running());
        std::thread::sleep(Duration::from_micros(random.below(3_000) as u64));
        assert!(died.kill());
        assert_matches!(died.result(), Err(TaskError::Cancelled { .. }));
    }
    pool.close().unwrap();
    let lines = lines("killed");
    assert!(!lines.is_empty());
    let mut last = BTreeMap::new();
    let mut told = 0;
    for line in &lines {
        if line.level == Level::Warn {
            told += dropped(line);
            continue;
        }
        let (number, rest) = line.text().split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        assert_eq!(rest, "x".repeat(number as usize * 7 % 600));
        let before = last.insert(line.origin.pid, number);
        assert!(before.is_none_or(|before| before < number), "in order");
    }
    let total = pool.stats().total();
    assert_eq!(total.log_records_dropped, told);
}

/// Returns how many records were dropped, as this line says.
fn dropped(line: &Kept) -> u64 {
    let text = line.text();
    let (count, rest) = text.split_once(' ').unwrap();
    let of = &line.origin;
    let rests = [
        format!("log records of {of} were dropped"),
        format!("log record of {of} was dropped"),
    ];
    assert!(rests.iter().any(|expected| rest == expected), "{text}");
    count.parse().unwrap()
}

/// A logger that waits, from its first record on, until it is let go.
struct Gate {
    is_waiting: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    fn before(pool: &str) -> Self {
        let (waits, is_waiting) = channel();
        let (open, opened) = channel();
        let opened = Mutex::new(opened);
        hook(pool, move |_| {
            // Both are gone once it was opened.
            let _ = waits.send(());
            let _ = opened.lock().unwrap().recv();
        });
        Self { is_waiting, open }
    }

    fn has_come(&self) {
        self.is_waiting.recv_timeout(DEADLINE).unwrap();
    }

    fn open(self) {
        drop(self.open);
    }
}

#[test]
fn b109_a_logger_that_hangs_costs_records_and_not_tasks() {
    set_logger();
    let _none = Leftovers::none();
    let count = 20_000_u32;
    let log = |count: u32| (0..count).for_each(|nth| log::info!("{nth}"));
    let pool = Processes::builder()
        .workers(2)
        .name("hangs")
        .build()
        .unwrap();
    let gate = Gate::before("hangs");
    // These end while the logger hangs.
    pool.map(log, [count; 2]).unwrap();
    gate.has_come();
    assert!(pool.stats().total().log_records_dropped > 0);
    gate.open();
    pool.close().unwrap();
    check_sum("hangs", 2 * u64::from(count), Some(&pool));

    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let name = pool.name().to_owned();
    let gate = Gate::before(&name);
    pool.map(log, [count; 2]).unwrap();
    gate.has_come();
    gate.open();
    pool.close().unwrap();
    assert!(check_sum(&name, 2 * u64::from(count), None) > 0);
}

/// Checks that `sent` records have come or were counted as dropped, and that those of each worker
/// and item came in order. Returns how many were dropped.
fn check_sum(name: &str, sent: u64, pool: Option<&Pool<Processes>>) -> u64 {
    let (mut came, mut told) = (0, 0);
    let mut last = BTreeMap::new();
    for line in lines(name) {
        if line.level == Level::Warn {
            told += dropped(&line);
            continue;
        }
        came += 1;
        let number = line.number();
        let before = last.insert((line.origin.worker, line.origin.item), number);
        assert!(before.is_none_or(|before| before < number), "{line:?}");
    }
    assert_eq!(came + told, sent, "{came} came, {told} were dropped");
    if let Some(pool) = pool {
        let total = pool.stats().total();
        assert_eq!((total.log_records, total.log_records_dropped), (came, told));
    }
    told
}

#[test]
fn b109_what_comes_and_what_is_dropped_is_all() {
    set_logger();
    let _none = Leftovers::none();
    let count = number("MANYHANDS_RECORDS").unwrap_or(100_000) / 2;
    let pool = Processes::builder()
        .workers(2)
        .name("many")
        .build()
        .unwrap();
    let log = |count: u64| (0..count).for_each(|nth| log::info!("{nth}"));
    let start = std::time::Instant::now();
    pool.map(log, [count; 2]).unwrap();
    let took = start.elapsed();
    pool.close().unwrap();
    let told = check_sum("many", 2 * count, Some(&pool));
    let workers: BTreeSet<usize> = lines("many").iter().map(Kept::worker).collect();
    assert_eq!(workers.len(), 2);
    println!(
        "{} records in {took:?}, of which {told} were dropped",
        2 * count
    );
}

#[test]
fn b110_a_logger_that_panics_gets_the_next_record() {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    set_logger();
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(1)
        .name("panics")
        .build()
        .unwrap();
    hook("panics", |_| {
        assert!(GIVEN.fetch_add(1, Ordering::Relaxed) != 3, "on purpose");
    });
    pool.map(|x: u32| log::info!("{x}"), 0..10).unwrap();
    assert_eq!(
        pool.map(|x: u32| x + 1, 0..10).unwrap(),
        (1..11).collect::<Vec<_>>()
    );
    pool.close().unwrap();
    let numbers: Vec<u64> = lines("panics").iter().map(Kept::number).collect();
    assert_eq!(numbers, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn b110_a_logger_may_use_the_pool_but_not_close_it() {
    static POOL: Mutex<Option<Arc<Pool<Processes>>>> = Mutex::new(None);
    static CHILDREN: Mutex<Option<Arc<Pool<Forked>>>> = Mutex::new(None);
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    set_logger();
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(1)
        .name("used")
        .build()
        .unwrap();
    let pool = Arc::new(pool);
    *POOL.lock().unwrap() = Some(pool.clone());
    let children = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    let children = Arc::new(children);
    let name = children.name().to_owned();
    *CHILDREN.lock().unwrap() = Some(children.clone());
    let use_pools = |_: &Origin| {
        let pool = POOL.lock().unwrap().clone().unwrap();
        let answer = pool.submit(|x: u32| x + 1, 6).result();
        let refused = pool.close().unwrap_err();
        let mut seen = vec![format!("{answer:?}"), refused.to_string()];
        let children = CHILDREN.lock().unwrap().clone().unwrap();
        seen.push(format!("{:?}", children.submit(|x: u32| x + 2, 6).result()));
        seen.push(children.close().unwrap_err().to_string());
        // A pool of its own may be dropped.
        let own = Pool::processes(1).unwrap();
        seen.push(format!("{:?}", own.submit(|x: u32| x + 3, 6).result()));
        drop(own);
        SEEN.lock().unwrap().extend(seen);
    };
    hook("used", use_pools);
    hook(&name, use_pools);
    pool.submit(|()| log::info!("once"), ()).result().unwrap();
    let once = children.submit(|()| log::info!("once"), ());
    once.result().unwrap();
    // The logger uses pools that are open.
    eventually("both are logged", || {
        (lines("used").len(), lines(&name).len()) == (1, 1)
    });
    children.close().unwrap();
    pool.close().unwrap();
    assert_eq!((lines("used").len(), lines(&name).len()), (1, 1));
    let seen = SEEN.lock().unwrap();
    let refused =
        "closing waits until the workers' records have been logged, and the logger asked for it";
    assert_eq!(seen.len(), 10);
    for seen in seen.chunks(5) {
        let [pool, closed, children, children_closed, own] = seen else {
            panic!("{seen:?}");
        };
        assert_eq!(
            (pool.as_str(), children.as_str(), own.as_str()),
            ("Ok(7)", "Ok(8)", "Ok(9)")
        );
        assert!(
            closed.contains(refused) && children_closed.contains(refused),
            "{seen:?}"
        );
    }
    POOL.lock().unwrap().take();
    CHILDREN.lock().unwrap().take();
}

#[test]
fn b110_children_are_forked_while_no_worker_s_record_is_logged() {
    /// Takes long with the records of workers, and has a lock meanwhile.
    struct Slow(Mutex<u64>);
    impl Log for Slow {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &Record<'_>) {
            let mut count = self.0.lock().unwrap();
            *count += 1;
            if logs::origin().is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        fn flush(&self) {}
    }
    static LOGGER: Slow = Slow(Mutex::new(0));
    let name = "b110_children_are_forked_while_no_worker_s_record_is_logged";
    if !is_program() {
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(LevelFilter::Info);
    let workers = Pool::processes(1).unwrap();
    let children = Forked::builder()
        .workers(1)
        .allow_threads(true)
        .build()
        .unwrap();
    for round in 0..20 {
        let busy = workers.submit(|x: u32| (0..20).for_each(|_| log::info!("{x}")), round);
        // This hangs if the child has a copy of the locked lock.
        children
            .map(|x: u32| log::info!("{x}"), [round; 3])
            .unwrap();
        busy.result().unwrap();
    }
    workers.close().unwrap();
    assert_eq!(*LOGGER.0.lock().unwrap(), 400);
}

#[test]
fn b110_a_pool_is_dropped_by_its_logger() {
    static POOL: Mutex<Option<Pool<Processes>>> = Mutex::new(None);
    set_logger();
    let _none = Leftovers::none();
    let pool = Processes::builder()
        .workers(1)
        .name("dropped")
        .build()
        .unwrap();
    hook("dropped", |_| {
        // The lock is free when the pool is dropped.
        let pool = POOL.lock().unwrap().take();
        drop(pool);
    });
    let task = {
        let mut slot = POOL.lock().unwrap();
        let pool = slot.insert(pool);
        pool.submit(|()| log::info!("the last one"), ())
    };
    // Either the task has ended before, or it is cancelled.
    let _ = task.result();
    eventually("it is dropped", || POOL.lock().unwrap().is_none());
    eventually("it is logged", || lines("dropped").len() == 1);
}

fn child(name: &str) -> ProcessBuilder {
    Process::builder().name(name)
}

#[test]
fn b137_records_of_a_child_come_through_this_logger() {
    set_logger();
    let _none = Leftovers::none();
    let child = child("one").spawn(
        |text: String| {
            log::info!(target: "a::target", "{text}");
            log::debug!("and more");
            log::trace!("not of this level");
            let other = std::thread::spawn(|| log::error!("of a thread"));
            other.join().unwrap();
        },
        "first".to_owned(),
    );
    let child = child.unwrap();
    assert!(child.join().unwrap().success());
    let lines = lines("one");
    let texts: Vec<_> = lines.iter().map(|line| (line.level, line.text())).collect();
    let expected = [
        (Level::Info, "first"),
        (Level::Debug, "and more"),
        (Level::Error, "of a thread"),
    ];
    assert_eq!(texts, expected);
    assert_eq!(lines[0].message, "[process one] first");
    assert_eq!(
        (lines[0].target.as_str(), lines[1].target.as_str()),
        ("a::target", "logs")
    );
    for line in &lines {
        let origin = &line.origin;
        let parts = (origin.worker, origin.pid, origin.item, origin.task);
        assert_eq!(parts, (None, child.pid(), None, None));
        assert_eq!(line.module.as_deref(), Some("logs"));
        assert!(line.file.as_deref().unwrap().ends_with("logs.rs") && line.line.is_some());
    }
    assert_eq!((child.log_records(), child.log_records_dropped()), (3, 0));
}

#[test]
fn b137_a_child_may_have_a_logger_of_its_own() {
    /// Takes what it is given, and does nothing.
    struct Own;
    impl Log for Own {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &Record<'_>) {}
        fn flush(&self) {}
    }
    set_logger();
    let _none = Leftovers::none();
    let set = |()| {
        log::info!("before");
        let is_set = log::set_logger(&Own).is_ok();
        log::info!("after");
        u8::from(is_set)
    };
    for (logs, code, count) in [(Logs::Off, 1, 0), (Logs::Forward, 0, 2)] {
        let name = format!("logger-{logs}");
        let child = child(&name).logs(logs).spawn(set, ()).unwrap();
        assert_eq!(child.join().unwrap(), ExitStatus::Exit(code));
        assert_eq!(lines(&name).len(), count);
    }
}

#[test]
fn b137_children_of_children_log_through_them() {
    set_logger();
    let _none = Leftovers::none();
    let outer = child("outer child").spawn(
        |()| {
            let inner = child("inner").spawn(|x: u32| log::info!("{x}"), 5).unwrap();
            inner.join().unwrap();
            let pool = Pool::processes(1).unwrap();
            pool.map(|x: u32| log::info!("{x}"), [6]).unwrap();
            pool.close().unwrap();
            log::info!("7");
        },
        (),
    );
    assert!(outer.unwrap().join().unwrap().success());
    let lines = lines("outer child");
    let texts: Vec<&str> = lines.iter().map(Kept::text).collect();
    assert_eq!(texts, ["[process inner] 5", "[worker 0, item 0] 6", "7"]);
}

#[test]
fn b137_all_is_logged_when_join_returns() {
    set_logger();
    let _none = Leftovers::none();
    hook("slow", |_| std::thread::sleep(Duration::from_micros(100)));
    let log = |count: u32| (0..count).for_each(|nth| log::info!("{nth}"));
    let slow = child("slow").spawn(log, 400).unwrap();
    assert!(slow.join().unwrap().success());
    assert_eq!(lines("slow").len(), 400);

    // A logger that hangs does not keep the end of a child from a caller with little time.
    let gate = Gate::before("late");
    let late = child("late").spawn(log, 10).unwrap();
    gate.has_come();
    eventually("it has ended", || {
        let status = late.join_timeout(Duration::from_millis(1)).unwrap();
        status == Some(ExitStatus::Exit(0))
    });
    assert!(lines("late").len() < 10);
    gate.open();
    late.join().unwrap();
    assert_eq!(lines("late").len(), 10);
}

#[test]
fn b137_a_logger_may_wait_for_a_child() {
    static CHILD: Mutex<Option<Process>> = Mutex::new(None);
    static SEEN: Mutex<Option<ExitStatus>> = Mutex::new(None);
    set_logger();
    let _none = Leftovers::none();
    hook("waited for", |_| {
        let child = CHILD.lock().unwrap().clone().unwrap();
        *SEEN.lock().unwrap() = Some(child.join().unwrap());
    });
    {
        let mut slot = CHILD.lock().unwrap();
        let log = |()| log::info!("wait for me");
        *slot = Some(child("waited for").spawn(log, ()).unwrap());
    }
    eventually("it is logged", || lines("waited for").len() == 1);
    assert_eq!(*SEEN.lock().unwrap(), Some(ExitStatus::Exit(0)));
    CHILD.lock().unwrap().take().unwrap().join().unwrap();
}

#[test]
fn b137_a_program_ends_when_the_records_of_its_children_have_been_logged() {
    /// Prints what it is given, slowly.
    struct Print;
    impl Log for Print {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &Record<'_>) {
            std::thread::sleep(Duration::from_millis(1));
            let text = format!("{}\n", record.args());
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
        fn flush(&self) {}
    }
    let name = "b137_a_program_ends_when_the_records_of_its_children_have_been_logged";
    if is_program() {
        log::set_logger(&Print).unwrap();
        log::set_max_level(LevelFilter::Info);
        let log = |()| (0..100).for_each(|nth| log::info!("{nth}"));
        drop(child("left").spawn(log, ()).unwrap());
        // Its end is known, and its records are not waited for.
        let polled = child("polled").spawn(log, ()).unwrap();
        eventually("it has ended", || polled.exit_status().is_some());
        return;
    }
    let output = finish(&mut as_program(name));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    for start in ["[process left] ", "[process polled] "] {
        let lines = text.lines().filter(|line| line.starts_with(start));
        assert_eq!(lines.count(), 100, "{start}: {text}");
    }
}

/// Checks that `sent` records of a child have come or were counted as dropped, in order. Returns
/// how many came, and how many were dropped.
fn check_child(child: &Process, sent: Option<u64>) -> (u64, u64) {
    let (mut came, mut told, mut last) = (0, 0, None);
    for line in lines(child.name()) {
        if line.level == Level::Warn {
            told += dropped(&line);
            continue;
        }
        came += 1;
        let (number, rest) = line.text().split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        assert_eq!(rest, "x".repeat(number as usize * 7 % 600));
        assert!(last.is_none_or(|last| last < number), "{line:?}");
        last = Some(number);
    }
    assert_eq!(
        (child.log_records(), child.log_records_dropped()),
        (came, told)
    );
    assert!(sent.is_none_or(|sent| came + told == sent), "{came} {told}");
    (came, told)
}

fn log_many(count: u64) {
    for nth in 0..count {
        log::info!("{nth} {}", "x".repeat(nth as usize * 7 % 600));
    }
}

#[test]
fn b139_what_a_child_wrote_before_it_was_killed_comes() {
    set_logger();
    let _none = Leftovers::none();
    let die = |count: u64| {
        log_many(count);
        kill(std::process::id());
    };
    // All is in the ring when the child dies, but for what the logger hangs at.
    let gate = Gate::before("killed child");
    let dies = child("killed child").spawn(die, 200).unwrap();
    gate.has_come();
    eventually("it is dead", || {
        dies.exit_status() == Some(ExitStatus::Signal(9))
    });
    gate.open();
    dies.join().unwrap();
    assert_eq!(check_child(&dies, Some(200)).0, 200);

    let mut random = Random::new(seed());
    for round in 0..number("MANYHANDS_KILLS").unwrap_or(10) {
        let name = format!("killed child {round}");
        let dies = child(&name).spawn(log_many, u64::MAX).unwrap();
        eventually("it logs", || dies.log_records() > 0);
        std::thread::sleep(Duration::from_micros(random.below(3_000) as u64));
        dies.kill().unwrap();
        assert_eq!(dies.join().unwrap(), ExitStatus::Signal(9));
        check_child(&dies, None);
    }
}

#[test]
fn b139_a_logger_that_hangs_costs_records_and_not_the_child() {
    set_logger();
    let _none = Leftovers::none();
    let gate = Gate::before("hung");
    let hung = child("hung").spawn(log_many, 5_000).unwrap();
    gate.has_come();
    eventually("it has ended", || {
        hung.exit_status() == Some(ExitStatus::Exit(0))
    });
    gate.open();
    hung.join().unwrap();
    assert!(check_child(&hung, Some(5_000)).1 > 0);
}

#[test]
fn b139_what_a_stopped_child_has_written_comes_and_it_goes_on() {
    use nix::sys::signal::{Signal, raise};
    set_logger();
    let _none = Leftovers::none();
    let stop = |()| {
        log_many(3);
        raise(Signal::SIGSTOP).unwrap();
        log::info!("3 {}", "x".repeat(21));
    };
    let stops = child("stopped child").spawn(stop, ()).unwrap();
    eventually("it is stopped", || common::is_stopped(stops.pid()));
    eventually("three have come", || lines("stopped child").len() == 3);
    let pid = nix::unistd::Pid::from_raw(stops.pid().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    assert!(stops.join().unwrap().success());
    assert_eq!(check_child(&stops, Some(4)), (4, 0));

    // One that is stopped in the middle of it is killed as any other.
    let stops = child("stopped at any time")
        .spawn(log_many, u64::MAX)
        .unwrap();
    eventually("it logs", || stops.log_records() > 0);
    let pid = nix::unistd::Pid::from_raw(stops.pid().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    stops.kill().unwrap();
    assert_eq!(stops.join().unwrap(), ExitStatus::Signal(9));
    check_child(&stops, None);
}

#[test]
fn b139_a_child_that_logs_dies_with_its_parent() {
    let name = "b139_a_child_that_logs_dies_with_its_parent";
    if is_program() {
        set_logger();
        // Its descendants are spared, so that there is no guard that kills it. It has not the
        // output that the test reads to its end.
        let logs = child("orphan").kill_descendants(false);
        let logs = logs.stdout(Stdio::null()).stderr(Stdio::null());
        let logs = logs.spawn(log_many, u64::MAX).unwrap();
        eventually("it logs", || logs.log_records() > 0);
        println!("child {}", logs.pid());
        kill(std::process::id());
        return;
    }
    let output = finish(&mut as_program(name));
    let text = String::from_utf8(output.stdout).unwrap();
    let pid = text
        .lines()
        .find_map(|line| line.split_once("child "))
        .unwrap()
        .1;
    let pid = pid.parse().unwrap();
    eventually("it is gone", || !is_running(pid));
}
