//! Events of `tracing` from workers and children: that they come, typed and in order, through the
//! subscriber of this process, and what it costs when they come too fast. Behaviours 140 and 141.
#![cfg(feature = "tracing")]

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use common::{DEADLINE, Leftovers, as_program, assert_matches, finish, is_program, kill};
use manyhands::logs::{self, Logs, Origin};
use manyhands::prelude::*;
use manyhands::process::ExitStatus;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_global_default;
use tracing::{Event, Level, Metadata, Subscriber};

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Large(i128),
    Text(String),
    Shown(String),
}

/// An event as the subscriber has got it.
#[derive(Clone, Debug)]
struct Kept {
    origin: Origin,
    level: Level,
    name: &'static str,
    target: String,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    fields: Vec<(String, Value)>,
}

impl Kept {
    fn field(&self, name: &str) -> Option<&Value> {
        let mut fields = self.fields.iter();
        fields.find_map(|(other, value)| (other == name).then_some(value))
    }

    fn text(&self, name: &str) -> String {
        match self.field(name) {
            Some(Value::Text(text) | Value::Shown(text)) => text.clone(),
            other => panic!("{name}: {other:?} of {self:?}"),
        }
    }

    fn number(&self, name: &str) -> u64 {
        match self.field(name) {
            Some(Value::Unsigned(number)) => *number,
            other => panic!("{name}: {other:?} of {self:?}"),
        }
    }
}

struct Found(Vec<(String, Value)>);

impl Found {
    fn add(&mut self, field: &Field, value: Value) {
        self.0.push((field.name().to_owned(), value));
    }
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::Shown(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(value.to_owned()));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Signed(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Unsigned(value));
    }
    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Value::Large(value));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Float(value));
    }
}

static EVENTS: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

type Hook = Arc<dyn Fn() + Send + Sync>;

static HOOKS: Mutex<BTreeMap<String, Hook>> = Mutex::new(BTreeMap::new());

/// Keeps the events of workers.
struct Keep;

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() != "not::wanted"
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        // An event of this process is of no concern here.
        let Some(origin) = logs::origin() else {
            return;
        };
        let hook = HOOKS.lock().unwrap().get(&*origin.name).cloned();
        if let Some(hook) = hook {
            hook();
        }
        let mut found = Found(Vec::new());
        event.record(&mut found);
        let metadata = event.metadata();
        let text = |text: &str| text.to_owned();
        EVENTS.lock().unwrap().push(Kept {
            origin,
            level: *metadata.level(),
            name: metadata.name(),
            target: text(metadata.target()),
            module: metadata.module_path().map(text),
            file: metadata.file().map(text),
            line: metadata.line(),
            fields: found.0,
        });
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Gives this process its subscriber. Called before a test looks at what there is.
fn set_subscriber() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        set_global_default(Keep).unwrap();
        // Makes what a process keeps once it has had a child whose events are forwarded.
        let first = Process::spawn(|()| {}, ()).unwrap();
        first.join().unwrap();
    });
}

/// Returns what has come from the workers of this pool, or from this child.
fn events(name: &str) -> Vec<Kept> {
    let events = EVENTS.lock().unwrap();
    let own = events.iter().filter(|event| &*event.origin.name == name);
    own.cloned().collect()
}

fn forked() -> Pool<Forked> {
    let builder = Forked::builder().workers(2).allow_threads(true);
    builder.build().unwrap()
}

/// Emits three events, of which two are wanted by the parent.
fn emit(item: u32) {
    let _outer = tracing::info_span!("outer", item).entered();
    tracing::info!(
        target: "a::target",
        size = 8_u64,
        below = -8_i64,
        part = 0.5,
        is_there = true,
        large = i128::from(i64::MAX) * 2,
        text = "a b",
        shown = ?Some(1),
        "item {item}"
    );
    let _inner = tracing::debug_span!("inner").entered();
    tracing::debug!(number = u64::from(item));
    tracing::trace!("not of this level");
    tracing::info!(target: "not::wanted", "not wanted");
}

/// Checks that these are the events of `emit` for `count` items.
fn check(events: &[Kept], count: u32) {
    assert_eq!(events.len(), 2 * count as usize, "{events:?}");
    let mut by_item: BTreeMap<usize, Vec<&Kept>> = BTreeMap::new();
    for event in events {
        by_item
            .entry(event.origin.item.unwrap())
            .or_default()
            .push(event);
    }
    for (item, events) in by_item {
        let [first, second] = events.as_slice() else {
            panic!("{events:?}");
        };
        for event in [first, second] {
            assert_eq!(event.number("manyhands.item"), item as u64);
            let worker = event.origin.worker.unwrap() as u64;
            assert_eq!(event.number("manyhands.worker"), worker);
            assert_eq!(event.module.as_deref(), Some("traces"));
            assert!(event.file.as_deref().unwrap().ends_with("traces.rs"));
            assert!(event.name.starts_with("event ") && event.line.is_some());
        }
        assert_eq!(
            (first.level, first.target.as_str()),
            (Level::INFO, "a::target")
        );
        assert_eq!(first.text("message"), format!("item {item}"));
        assert_eq!(first.text("manyhands.spans"), "outer");
        let typed = [
            ("size", Value::Unsigned(8)),
            ("below", Value::Signed(-8)),
            ("part", Value::Float(0.5)),
            ("is_there", Value::Bool(true)),
            ("large", Value::Large(i128::from(i64::MAX) * 2)),
            ("text", Value::Text("a b".to_owned())),
            ("shown", Value::Shown("Some(1)".to_owned())),
        ];
        for (name, value) in typed {
            assert_eq!(first.field(name), Some(&value));
        }
        assert_eq!(
            (second.level, second.target.as_str()),
            (Level::DEBUG, "traces")
        );
        assert_eq!(second.number("number"), item as u64);
        assert_eq!(second.field("message"), None);
        assert_eq!(second.text("manyhands.spans"), "outer:inner");
    }
}

#[test]
fn b140_events_of_workers_come_through_this_subscriber_whatever_started_them() {
    set_subscriber();
    let _none = Leftovers::none();
    for method in [
        StartMethod::Spawn,
        StartMethod::Fork,
        StartMethod::ForkServer,
    ] {
        let name = format!("every-{method}");
        let builder = Processes::builder()
            .workers(2)
            .name(&name)
            .start_method(method);
        let pool = builder.allow_threads(true).build().unwrap();
        pool.map(emit, 0..20).unwrap();
        pool.close().unwrap();
        check(&events(&name), 20);
        let total = pool.stats().total();
        // What the subscriber does not want by its target is sent, and not emitted.
        assert_eq!((total.log_records, total.log_records_dropped), (60, 0));
    }
}

#[test]
fn b140_events_of_forked_children_come_through_this_subscriber() {
    set_subscriber();
    let _none = Leftovers::none();
    let pool = forked();
    let name = pool.name().to_owned();
    pool.map(emit, 0..20).unwrap();
    let task = pool.submit(|x: u64| tracing::info!(x, "of a task"), 9);
    let id = task.id();
    task.result().unwrap();
    pool.close().unwrap();
    let (of_task, of_items): (Vec<_>, Vec<_>) = events(&name)
        .into_iter()
        .partition(|event| event.origin.task.is_some());
    check(&of_items, 20);
    let [event] = of_task.as_slice() else {
        panic!("{of_task:?}");
    };
    assert_eq!(event.text("manyhands.task"), id.to_string());
    assert_eq!(event.number("x"), 9);
}

#[test]
fn b140_events_of_a_child_come_with_its_name() {
    set_subscriber();
    let child = Process::builder().name("traced");
    let child = child.spawn(|()| emit(0), ()).unwrap();
    assert!(child.join().unwrap().success());
    let texts: Vec<String> = events("traced")
        .iter()
        .map(|event| event.text("manyhands.process"))
        .collect();
    assert_eq!(texts, ["traced", "traced"]);
    // Without forwarding, the function may set a subscriber of its own.
    let set = |()| u8::from(set_global_default(Keep).is_ok());
    for (logs, is_set) in [(Logs::Off, 1), (Logs::Forward, 0)] {
        let child = Process::builder().logs(logs).spawn(set, ()).unwrap();
        assert_eq!(child.join().unwrap(), ExitStatus::Exit(is_set));
    }
}

#[test]
fn b140_events_and_log_records_of_a_worker_stay_in_order() {
    struct Log;
    static TEXTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            if logs::origin().is_some_and(|origin| &*origin.name == "both") {
                TEXTS.lock().unwrap().push(record.args().to_string());
            }
        }
        fn flush(&self) {}
    }
    let name = "b140_events_and_log_records_of_a_worker_stay_in_order";
    if !is_program() {
        let output = finish(&mut as_program(name));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    set_subscriber();
    log::set_logger(&Log).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    HOOKS.lock().unwrap().insert(
        "both".to_owned(),
        Arc::new(|| TEXTS.lock().unwrap().push("an event".to_owned())),
    );
    let pool = Processes::builder()
        .workers(1)
        .name("both")
        .build()
        .unwrap();
    let both = |()| {
        for nth in 0..50 {
            log::info!("{nth}");
            tracing::info!(nth);
        }
    };
    pool.map(both, [()]).unwrap();
    pool.close().unwrap();
    let expected = |nth: u64| [format!("[worker 0, item 0] {nth}"), "an event".to_owned()];
    let expected: Vec<String> = (0..50).flat_map(expected).collect();
    assert_eq!(*TEXTS.lock().unwrap(), expected);
}

#[test]
fn b140_a_subscriber_of_the_initialiser_stays() {
    set_subscriber();
    let set = || set_global_default(Keep).map_err(|error| error.to_string());
    let builder = Processes::builder().workers(1).name("own").initializer(set);
    let pool = builder.build().unwrap();
    pool.map(emit, 0..3).unwrap();
    pool.close().unwrap();
    assert!(events("own").is_empty());
}

#[test]
fn b140_without_a_subscriber_nothing_is_forwarded() {
    if !is_program() {
        let output = finish(&mut as_program(
            "b140_without_a_subscriber_nothing_is_forwarded",
        ));
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let pool = Processes::builder().workers(1).build().unwrap();
    let set = pool.submit(|()| set_global_default(Keep).is_ok(), ());
    assert!(set.result().unwrap());
    let threads = common::threads();
    assert!(
        !threads.iter().any(|name| name.contains("logs")),
        "{threads:?}"
    );
    assert_eq!(pool.stats().total().log_records, 0);
}

#[test]
fn b141_a_subscriber_that_hangs_costs_events_and_not_tasks() {
    set_subscriber();
    let _none = Leftovers::none();
    // On a failure, the subscriber is let go before the pool waits for it.
    let pool = Processes::builder()
        .workers(1)
        .name("hangs")
        .build()
        .unwrap();
    let (open, opened) = channel::<()>();
    let opened = Mutex::new(opened);
    let hang: Hook = Arc::new(move || assert!(opened.lock().unwrap().recv().is_err()));
    HOOKS.lock().unwrap().insert("hangs".to_owned(), hang);
    let count = 20_000_u64;
    let many = |count: u64| (0..count).for_each(|nth| tracing::info!(nth));
    // This ends while the subscriber hangs.
    pool.map(many, [count]).unwrap();
    assert!(pool.stats().total().log_records_dropped > 0);
    drop(open);
    pool.close().unwrap();
    let total = pool.stats().total();
    assert_eq!(total.log_records + total.log_records_dropped, count);
    // The program has no logger, so the subscriber is told.
    let (told, came): (Vec<_>, Vec<_>) = events("hangs")
        .into_iter()
        .partition(|event| event.level == Level::WARN);
    let numbers: Vec<u64> = came.iter().map(|event| event.number("nth")).collect();
    assert_eq!(numbers.len() as u64, total.log_records);
    assert!(numbers.is_sorted());
    let told = told.iter().map(|event| {
        let text = event.text("message");
        let (number, rest) = text.split_once(' ').unwrap();
        assert!(rest.starts_with("log record"), "{text}");
        number.parse::<u64>().unwrap()
    });
    assert_eq!(told.sum::<u64>(), total.log_records_dropped);
}

#[test]
fn b141_what_a_worker_emitted_before_it_died_comes() {
    set_subscriber();
    let _none = Leftovers::none();
    let die = |()| {
        (0..400_u64).for_each(|nth| tracing::info!(nth));
        kill(std::process::id());
        std::thread::sleep(DEADLINE);
    };
    // Most of it is in the ring when the worker dies.
    let be_slow = |name: &str| {
        let slow: Hook = Arc::new(|| std::thread::sleep(Duration::from_millis(1)));
        HOOKS.lock().unwrap().insert(name.to_owned(), slow);
    };
    be_slow("dies");
    let check = |name: &str| {
        let numbers: Vec<u64> = events(name)
            .iter()
            .map(|event| event.number("nth"))
            .collect();
        assert_eq!(numbers, (0..400).collect::<Vec<u64>>());
    };
    let pool = Processes::builder()
        .workers(1)
        .name("dies")
        .build()
        .unwrap();
    assert_matches!(
        pool.submit(die, ()).result(),
        Err(TaskError::WorkerDied { .. })
    );
    pool.close().unwrap();
    check("dies");
    let pool = forked();
    let name = pool.name().to_owned();
    be_slow(&name);
    assert!(pool.submit(die, ()).result().is_err());
    pool.close().unwrap();
    check(&name);
}

#[test]
fn b141_what_is_too_long_is_cut_or_left_out_and_counted() {
    set_subscriber();
    let pool = Processes::builder()
        .workers(1)
        .name("long")
        .build()
        .unwrap();
    let emit = |()| {
        let long = "x".repeat(5_000);
        tracing::info!(long, other = long, "{}", "y".repeat(50_000));
        tracing::info!(
            f0 = 0,
            f1 = 1,
            f2 = 2,
            f3 = 3,
            f4 = 4,
            f5 = 5,
            f6 = 6,
            f7 = 7,
            f8 = 8,
            f9 = 9,
            g0 = 0,
            g1 = 1,
            g2 = 2,
            g3 = 3,
            g4 = 4,
            g5 = 5,
            g6 = 6,
            g7 = 7,
            g8 = 8,
            g9 = 9,
            h0 = 0,
            h1 = 1,
            h2 = 2,
            h3 = 3,
            h4 = 4,
            h5 = 5,
            h6 = 6,
            "many"
        );
    };
    pool.submit(emit, ()).result().unwrap();
    pool.close().unwrap();
    let events = events("long");
    let [long, many] = events.as_slice() else {
        panic!("{}", events.len());
    };
    let cut = "x".repeat(2_048) + " [cut]";
    assert_eq!((long.text("long"), long.text("other")), (cut.clone(), cut));
    let message = long.text("message");
    assert!(
        message.len() > 8_000 && message.ends_with("yyy [cut]"),
        "{}",
        message.len()
    );
    assert_eq!(many.number("manyhands.left_out"), 3);
    assert_eq!(many.field("h3"), Some(&Value::Signed(3)));
    assert_eq!(many.field("h4"), None);
}

#[test]
fn b141_a_subscriber_that_panics_gets_the_next_event() {
    set_subscriber();
    let count = Mutex::new(0);
    let panics: Hook = Arc::new(move || {
        let nth = {
            let mut count = count.lock().unwrap();
            *count += 1;
            *count
        };
        assert!(nth != 2, "on purpose");
    });
    HOOKS.lock().unwrap().insert("panics".to_owned(), panics);
    let pool = Processes::builder()
        .workers(1)
        .name("panics")
        .build()
        .unwrap();
    pool.map(|nth: u64| tracing::info!(nth), 0..5).unwrap();
    pool.close().unwrap();
    let numbers: Vec<u64> = events("panics")
        .iter()
        .map(|event| event.number("nth"))
        .collect();
    assert_eq!(numbers, [0, 2, 3, 4]);
}

#[test]
fn b141_threads_of_a_worker_emit_too() {
    set_subscriber();
    let pool = Processes::builder()
        .workers(1)
        .name("threads")
        .build()
        .unwrap();
    let emit = |x: u64| {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(move || (0..25).for_each(|_| tracing::info!(x))))
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    };
    pool.map(emit, 0..3).unwrap();
    pool.close().unwrap();
    let events = events("threads");
    assert_eq!(events.len(), 300);
    for event in events {
        assert_eq!(event.number("x"), event.number("manyhands.item"));
    }
}

#[test]
fn b140_workers_of_a_worker_emit_through_it() {
    set_subscriber();
    let pool = Processes::builder()
        .workers(1)
        .name("outer")
        .build()
        .unwrap();
    let outer = |x: u64| {
        let inner = Pool::processes(1).unwrap();
        inner.map(|x: u64| tracing::info!(x), [x]).unwrap();
        inner.close().unwrap();
    };
    pool.map(outer, [5, 6]).unwrap();
    pool.close().unwrap();
    let events = events("outer");
    let numbers: Vec<u64> = events.iter().map(|event| event.number("x")).collect();
    assert_eq!(numbers, [5, 6]);
    for (nth, event) in events.iter().enumerate() {
        // First where the outer worker was, then where the inner one was.
        let items = event
            .fields
            .iter()
            .filter(|(name, _)| name == "manyhands.item");
        let items: Vec<&Value> = items.map(|(_, value)| value).collect();
        assert_eq!(items, [&Value::Unsigned(nth as u64), &Value::Unsigned(0)]);
    }
}
