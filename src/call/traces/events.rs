//! The worker's side of what is emitted by `tracing`: a subscriber that gives events to the lane,
//! from which the parent takes them, beside the log records and in order with them.
//!
//! A worker process gets it as its global subscriber when its initialiser has run, unless it has
//! one by then. A forked child has the global subscriber of its parent, which `tracing` does not
//! let it replace. There it is the default of the thread that runs the task. It is made before the
//! fork: to make one takes locks that a thread of the parent may hold.
//!
//! Of spans the names are told, with each event. A span is known to this subscriber by its callsite
//! alone, so nothing is kept for one that is open.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::OnceLock;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Current, Id, Record as Values};
use tracing_core::{
    Dispatch, Event, Interest, Level, LevelFilter, Metadata, Subscriber, dispatcher,
};

use crate::call::logs;
use crate::codec::exact;
use crate::error::ItemIndex;
use crate::lane::records::Record;
use crate::os::fork;

/// The most fields of an event that are sent.
pub(crate) const MOST_FIELDS: usize = 24;
/// The most bytes of the text of one field, and of all of them.
const MOST_OF_FIELD: usize = 2 << 10;
const MOST_OF_FIELDS: usize = 8 << 10;
/// The most spans whose names are sent with an event: the innermost ones.
const MOST_SPANS: usize = 32;

/// What an event has that a log record has not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extra {
    /// The name of its callsite.
    pub(crate) name: String,
    pub(crate) fields: Vec<(String, Value)>,
    /// How many fields were left out, for which there is no room.
    pub(crate) left_out: u64,
    /// The names of the spans in which it was emitted, from the outermost inwards.
    pub(crate) spans: Vec<String>,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    Bool(bool),
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    F64(f64),
    Text(String),
    /// Its `Debug` or `Display`.
    Shown(String),
}

/// The numbers by which levels cross: 0 for none, and the more the more is told.
const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Returns the number of the highest level that a subscriber of this process wants.
pub(crate) fn current_level() -> u8 {
    let current = LevelFilter::current();
    let number = LEVELS.iter().position(|level| *level == current);
    number.unwrap_or(0) as u8
}

/// Gives this process the subscriber of a worker, unless it has one already. `level` is the number
/// of the highest level that is wanted; 0 does nothing.
pub(crate) fn install(level: u8) {
    let level = LEVELS.get(usize::from(level)).copied();
    if let Some(level) = level.filter(|level| *level != LevelFilter::OFF) {
        let sends = Sends {
            level,
            generation: None,
        };
        let _ = dispatcher::set_global_default(Dispatch::new(sends));
    }
}

/// The subscriber of processes that are forked from this one.
static OF_COPIES: OnceLock<Dispatch> = OnceLock::new();

/// Makes the subscriber of forked children. Called in their parent.
pub(crate) fn prepare_copies() {
    OF_COPIES.get_or_init(|| {
        Dispatch::new(Sends {
            level: LevelFilter::TRACE,
            generation: Some(fork::generation()),
        })
    });
}

/// Gives this thread of a process that has just been forked the subscriber of a child, if its
/// parent has made one.
pub(crate) fn begin_copy() {
    if let Some(of_copies) = OF_COPIES.get() {
        // It is the default as long as the thread lives.
        std::mem::forget(dispatcher::set_default(of_copies));
    }
}

/// The subscriber.
struct Sends {
    level: LevelFilter,
    /// [`fork::generation`] of the process that has made it, if it is for copies of that process.
    generation: Option<u32>,
}

impl Sends {
    /// Returns whether events of this process are sent. In the parent of forked children their
    /// subscriber wants nothing.
    fn is_active(&self) -> bool {
        self.generation != Some(fork::generation()) && logs::sends()
    }
}

thread_local! {
    /// The spans that this thread is in, from the outermost inwards.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// The callsites of spans: their numbers, from 1 on, by their addresses, and what they are.
#[derive(Default)]
struct Spans {
    numbers: HashMap<usize, u64>,
    callsites: Vec<&'static Metadata<'static>>,
}

static SPANS: RwLock<Option<Spans>> = RwLock::new(None);

/// Returns the number of a span's callsite.
fn number(metadata: &'static Metadata<'static>) -> u64 {
    let address = std::ptr::from_ref(metadata).addr();
    let known = SPANS.read();
    let number = known.as_ref().and_then(|spans| spans.numbers.get(&address));
    if let Some(&number) = number {
        return number;
    }
    drop(known);
    let mut spans = SPANS.write();
    let Spans { numbers, callsites } = spans.get_or_insert_default();
    *numbers.entry(address).or_insert_with(|| {
        callsites.push(metadata);
        callsites.len() as u64
    })
}

/// Returns what a span's callsite is.
fn callsite(id: &Id) -> Option<&'static Metadata<'static>> {
    let place = usize::try_from(id.into_u64() - 1).ok()?;
    SPANS.read().as_ref()?.callsites.get(place).copied()
}

impl Subscriber for Sends {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if *metadata.level() > self.level || (self.generation.is_some() && !self.is_active()) {
            return Interest::never();
        }
        Interest::always()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && self.is_active()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // A subscriber that is for copies changes nothing in the parent.
        let is_for_copies = self.generation.is_some();
        Some(if is_for_copies {
            LevelFilter::OFF
        } else {
            self.level
        })
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        if self.is_active() {
            Id::from_u64(number(attributes.metadata()))
        } else {
            // No lock is taken in a copy of a worker, where another thread may have had it.
            Id::from_u64(u64::MAX)
        }
    }

    /// Does nothing: of a span its name alone is told.
    fn record(&self, _: &Id, _: &Values<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if self.is_active() {
            send(event);
        }
    }

    fn enter(&self, span: &Id) {
        let _ = ENTERED.try_with(|entered| entered.borrow_mut().push(span.clone()));
    }

    fn exit(&self, span: &Id) {
        let _ = ENTERED.try_with(|entered| {
            let mut entered = entered.borrow_mut();
            // Spans need not be left in the order in which they were entered.
            if let Some(place) = entered.iter().rposition(|inner| inner == span) {
                entered.remove(place);
            }
        });
    }

    fn current_span(&self) -> Current {
        if !self.is_active() {
            return Current::none();
        }
        let innermost = ENTERED.try_with(|entered| entered.borrow().last().cloned());
        let innermost = innermost.ok().flatten();
        let known = innermost.and_then(|id| Some((callsite(&id)?, id)));
        known.map_or_else(Current::none, |(metadata, id)| Current::new(id, metadata))
    }
}

/// Returns the names of the spans in which an event was emitted.
fn spans_of(event: &Event<'_>) -> Vec<String> {
    let name = |id: &Id| callsite(id).map(|metadata| metadata.name().to_owned());
    if let Some(parent) = event.parent() {
        // What is around that one is not known.
        return name(parent).into_iter().collect();
    }
    if event.is_root() {
        return Vec::new();
    }
    let names = ENTERED.try_with(|entered| {
        let entered = entered.borrow();
        let inner = entered.len().saturating_sub(MOST_SPANS);
        entered[inner..].iter().filter_map(name).collect()
    });
    names.unwrap_or_default()
}

/// Sends an event.
fn send(event: &Event<'_>) {
    let metadata = event.metadata();
    let mut found = Found {
        message: String::new(),
        extra: Extra {
            name: cut(metadata.name().to_owned()),
            spans: spans_of(event),
            ..Extra::default()
        },
        bytes: 0,
    };
    // This runs code of the user's, which may emit events, fork or panic. No lock is held.
    event.record(&mut found);
    let Found {
        message, mut extra, ..
    } = found;
    let most_of_spans = MOST_OF_FIELD;
    while extra.spans.iter().map(String::len).sum::<usize>() > most_of_spans {
        extra.spans.remove(0);
    }
    let mut bytes = Vec::new();
    // Strings and numbers always encode.
    if exact::to_vec_append(&mut bytes, &extra).is_err() {
        return;
    }
    let record = Record {
        level: log_level(*metadata.level()),
        target: metadata.target(),
        module: metadata.module_path(),
        file: metadata.file(),
        line: metadata.line(),
        index: ItemIndex::NONE,
        message: &message,
        extra: Some(&bytes),
    };
    record.send(&mut Vec::new());
}

/// Returns the level of the crate `log` that is called the same.
fn log_level(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        _ => log::Level::Trace,
    }
}

/// The fields of an event, as they are found.
struct Found {
    message: String,
    extra: Extra,
    /// Bytes of the fields so far.
    bytes: usize,
}

/// Cuts a text that is too long.
fn cut(mut text: String) -> String {
    if text.len() > MOST_OF_FIELD {
        let mut end = MOST_OF_FIELD;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" [cut]");
    }
    text
}

impl Found {
    fn add(&mut self, field: &Field, value: Value) {
        let text = match &value {
            Value::Text(text) | Value::Shown(text) => text.len(),
            _ => 0,
        };
        let bytes = field.name().len() + text + size_of::<u128>();
        let is_full = self.extra.fields.len() == MOST_FIELDS;
        if is_full || self.bytes + bytes > MOST_OF_FIELDS {
            self.extra.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.extra.fields.push((field.name().to_owned(), value));
    }
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" && self.message.is_empty() {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.add(field, Value::Shown(cut(format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" && self.message.is_empty() {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, Value::Text(cut(value.to_owned())));
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Value::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, Value::U128(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::F64(value));
    }
}
