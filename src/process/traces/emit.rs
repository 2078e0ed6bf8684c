//! The parent's side of what workers emit by `tracing`: events are emitted again, through the
//! subscriber of this process.
//!
//! An event needs a callsite that lives as long as the program, with the level, the target, the
//! place and the names of the fields. The worker's callsites are not this process's. So one is made
//! for each that events come from, kept for the next event, and never freed. There is a bound on
//! them; beyond it, events come from callsites that name neither target nor fields, and have these
//! as values.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tracing_core::callsite::{self, Identifier};
use tracing_core::field::{Field, FieldSet, Value as Sent, display};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::NoSubscriber;
use tracing_core::{Callsite, Dispatch, Event, Interest, Level, LevelFilter, Metadata, dispatcher};

use crate::call::traces::{Extra, MOST_FIELDS, Value, current_level};
use crate::codec::exact;
use crate::os::fork::PerProcess;
use crate::process::origin::{About, Origin};

/// The subscriber that events of workers go through, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracer {
    dispatch: Option<Dispatch>,
}

// A panic of a subscriber leaves it as it does in any program that goes on after a panic.
impl UnwindSafe for Tracer {}
impl RefUnwindSafe for Tracer {}

impl Tracer {
    /// Returns the subscriber of the calling thread.
    pub(crate) fn here() -> Self {
        if current_level() == 0 {
            return Self::default();
        }
        let dispatch = dispatcher::get_default(Dispatch::clone);
        Self {
            dispatch: (!dispatch.is::<NoSubscriber>()).then_some(dispatch),
        }
    }

    /// Returns whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.dispatch.is_some()
    }

    /// Returns the number of the highest level that is wanted; 0 for none.
    pub(crate) fn level(&self) -> u8 {
        self.dispatch.as_ref().map_or(0, |_| current_level())
    }

    /// Emits an event of a worker. This runs the subscriber.
    ///
    /// `extra` is what the worker has written of the event besides. If it cannot be read, the rest
    /// is emitted without it.
    pub(crate) fn emit(&self, origin: &Origin, message: &str, about: &About<'_>, extra: &[u8]) {
        let Some(dispatch) = &self.dispatch else {
            return;
        };
        let unread = || Extra {
            name: "event".to_owned(),
            ..Extra::default()
        };
        let extra = &exact::from_slice(extra).unwrap_or_else(|_| unread());
        let level = level_of(about.level);
        if level > LevelFilter::current() {
            return;
        }
        dispatcher::with_default(dispatch, || {
            if let Some(known) = known(about, level, extra) {
                known.emit(dispatch, origin, message, extra);
            } else {
                let extra = without_callsite(about, extra);
                general(about.level, level).emit(dispatch, origin, message, &extra);
            }
        });
    }
}

fn level_of(level: log::Level) -> Level {
    match level {
        log::Level::Error => Level::ERROR,
        log::Level::Warn => Level::WARN,
        log::Level::Info => Level::INFO,
        log::Level::Debug => Level::DEBUG,
        log::Level::Trace => Level::TRACE,
    }
}

/// The fields that say where an event comes from. Each callsite has them before its own.
const OWN_FIELDS: [&str; 7] = [
    "message",
    "manyhands.worker",
    "manyhands.process",
    "manyhands.item",
    "manyhands.task",
    "manyhands.spans",
    "manyhands.left_out",
];

/// The most fields that a callsite may have.
const MOST: usize = 32;
const _: () = assert!(OWN_FIELDS.len() + MOST_FIELDS <= MOST);

/// The most callsites that are made.
const MOST_CALLSITES: usize = 2_048;
/// The most bytes of the texts of one.
const MOST_TEXT: usize = 2 << 10;

/// What tells one callsite from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    level: log::Level,
    line: Option<u32>,
    name: String,
    target: String,
    module: Option<String>,
    file: Option<String>,
    fields: Vec<String>,
}

/// A callsite.
struct Known {
    metadata: OnceLock<Metadata<'static>>,
    /// 0 if no subscriber wants its events, 1 if one may, and 2 if all do.
    interest: AtomicU8,
}

impl Callsite for Known {
    fn set_interest(&self, interest: Interest) {
        let number = if interest.is_never() {
            0
        } else if interest.is_sometimes() {
            1
        } else {
            2
        };
        self.interest.store(number, Ordering::Relaxed);
    }

    fn metadata(&self) -> &Metadata<'_> {
        let metadata = self.metadata.get();
        metadata.expect("it is set before the callsite is registered")
    }
}

/// The callsites that have been made. A forked child makes its own: another thread of its parent
/// may have had the lock.
static KNOWN: PerProcess<Mutex<BTreeMap<Key, &'static Known>>> =
    PerProcess::new(Mutex::new(BTreeMap::new()));

/// Returns the callsite that an event has come from; `None` if there is no room for another one.
fn known(about: &About<'_>, level: Level, extra: &Extra) -> Option<&'static Known> {
    if extra.fields.len() > MOST_FIELDS {
        return None;
    }
    let text = |text: Option<&str>| text.map(str::to_owned);
    let key = Key {
        level: about.level,
        line: about.line,
        name: extra.name.clone(),
        target: about.target.to_owned(),
        module: text(about.module),
        file: text(about.file),
        fields: extra.fields.iter().map(|(name, _)| name.clone()).collect(),
    };
    let mut all = KNOWN.own().lock();
    if let Some(known) = all.get(&key) {
        return Some(known);
    }
    let texts = [
        Some(&key.name),
        Some(&key.target),
        key.module.as_ref(),
        key.file.as_ref(),
    ];
    let texts = texts.into_iter().flatten().chain(&key.fields);
    if all.len() >= MOST_CALLSITES || texts.map(String::len).sum::<usize>() > MOST_TEXT {
        return None;
    }
    let made = make(&key, level);
    all.insert(key, made);
    drop(all);
    // This asks the subscribers, which are the user's code.
    callsite::register(made);
    Some(made)
}

fn make(key: &Key, level: Level) -> &'static Known {
    fn leak(text: &str) -> &'static str {
        Box::leak(text.into())
    }
    let known: &'static Known = Box::leak(Box::new(Known {
        metadata: OnceLock::new(),
        interest: AtomicU8::new(0),
    }));
    let names = OWN_FIELDS.into_iter();
    let names: Vec<&'static str> = names
        .chain(key.fields.iter().map(|name| leak(name)))
        .collect();
    let metadata = Metadata::new(
        leak(&key.name),
        leak(&key.target),
        level,
        key.file.as_deref().map(leak),
        key.line,
        key.module.as_deref().map(leak),
        FieldSet::new(Vec::leak(names), Identifier(known)),
        Kind::EVENT,
    );
    let _ = known.metadata.set(metadata);
    known
}

/// Returns the callsite for events of this level that have none of their own.
fn general(of_log: log::Level, level: Level) -> &'static Known {
    static GENERAL: PerProcess<Mutex<BTreeMap<log::Level, &'static Known>>> =
        PerProcess::new(Mutex::new(BTreeMap::new()));
    let mut all = GENERAL.own().lock();
    if let Some(known) = all.get(&of_log) {
        return known;
    }
    let made = make(
        &Key {
            level: of_log,
            line: None,
            name: "an event of a worker".to_owned(),
            target: "manyhands::logs".to_owned(),
            module: None,
            file: None,
            fields: vec!["target".to_owned(), "fields".to_owned()],
        },
        level,
    );
    all.insert(of_log, made);
    drop(all);
    callsite::register(made);
    made
}

/// Returns an event for the general callsite, with what another callsite would name as text.
fn without_callsite(about: &About<'_>, extra: &Extra) -> Extra {
    let mut fields = String::new();
    for (name, value) in &extra.fields {
        let space = if fields.is_empty() { "" } else { " " };
        let _ = write!(fields, "{space}{name}=");
        let _ = match value {
            Value::Bool(value) => write!(fields, "{value}"),
            Value::I64(value) => write!(fields, "{value}"),
            Value::U64(value) => write!(fields, "{value}"),
            Value::I128(value) => write!(fields, "{value}"),
            Value::U128(value) => write!(fields, "{value}"),
            Value::F64(value) => write!(fields, "{value}"),
            Value::Text(value) => write!(fields, "{value:?}"),
            Value::Shown(value) => write!(fields, "{value}"),
        };
    }
    Extra {
        fields: vec![
            ("target".to_owned(), Value::Text(about.target.to_owned())),
            ("fields".to_owned(), Value::Shown(fields)),
        ],
        ..extra.clone()
    }
}

type Given<'a> = Option<Box<dyn Sent + 'a>>;

fn given<'a>(value: &'a Value) -> Box<dyn Sent + 'a> {
    match value {
        Value::Bool(value) => Box::new(*value),
        Value::I64(value) => Box::new(*value),
        Value::U64(value) => Box::new(*value),
        Value::I128(value) => Box::new(*value),
        Value::U128(value) => Box::new(*value),
        Value::F64(value) => Box::new(*value),
        Value::Text(value) => Box::new(value.as_str()),
        Value::Shown(value) => Box::new(display(value)),
    }
}

impl Known {
    fn emit(&'static self, dispatch: &Dispatch, origin: &Origin, message: &str, extra: &Extra) {
        let Some(metadata) = self.metadata.get() else {
            return;
        };
        if self.interest.load(Ordering::Relaxed) == 0 || !dispatch.enabled(metadata) {
            return;
        }
        let number = |number: usize| Box::new(number as u64) as Box<dyn Sent>;
        let process = origin.worker.is_none().then_some(&*origin.name);
        let spans = (!extra.spans.is_empty()).then(|| extra.spans.join(":"));
        let own: [Given<'_>; OWN_FIELDS.len()] = [
            (!message.is_empty()).then(|| Box::new(display(message)) as Box<dyn Sent>),
            origin.worker.map(number),
            process.map(|name| Box::new(name) as Box<dyn Sent>),
            origin.item.map(number),
            origin
                .task
                .map(|task| Box::new(display(task)) as Box<dyn Sent>),
            spans.map(|spans| Box::new(spans) as Box<dyn Sent>),
            (extra.left_out > 0).then(|| Box::new(extra.left_out) as Box<dyn Sent>),
        ];
        let values = extra.fields.iter().map(|(_, value)| Some(given(value)));
        let values: Vec<Given<'_>> = own.into_iter().chain(values).collect();
        let fields: Vec<Field> = metadata.fields().iter().collect();
        // What is too much is a field without a value, which is passed over.
        let values: [(&Field, Option<&dyn Sent>); MOST] = std::array::from_fn(|place| {
            let value = values.get(place).and_then(Option::as_deref);
            (fields.get(place).unwrap_or(&fields[0]), value)
        });
        let values = metadata.fields().value_set(&values);
        dispatch.event(&Event::new(metadata, &values));
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
