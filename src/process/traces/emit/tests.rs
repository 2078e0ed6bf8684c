use std::fmt;
use std::sync::Arc;

use tracing_core::Subscriber;
use tracing_core::field::Visit;
use tracing_core::span::{Attributes, Id, Record};

use super::*;

type Fields = Vec<(String, String)>;

/// Keeps target and fields of each event.
struct Keep(Arc<Mutex<Vec<(String, Fields)>>>);

struct Found<'a>(&'a mut Fields);

impl Visit for Found<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name().to_owned(), format!("{value:?}")));
    }
}

impl Subscriber for Keep {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut fields = Vec::new();
        event.record(&mut Found(&mut fields));
        let target = event.metadata().target().to_owned();
        self.0.lock().push((target, fields));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn about(target: &str) -> About<'_> {
    About {
        level: log::Level::Info,
        target,
        module: None,
        file: Some("a.rs"),
        line: Some(7),
    }
}

fn pair(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), text.to_owned())
}

#[test]
fn b141_events_of_more_callsites_than_are_made_come_with_their_parts_as_text() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let tracer = Tracer {
        dispatch: Some(Dispatch::new(Keep(kept.clone()))),
    };
    let origin = Origin {
        name: "spy".into(),
        worker: None,
        pid: 1,
        item: None,
        task: None,
    };
    let extra = Extra {
        fields: vec![
            ("size".to_owned(), Value::U64(8)),
            ("text".to_owned(), Value::Text("a b".to_owned())),
            ("shown".to_owned(), Value::Shown("c d".to_owned())),
        ],
        ..Extra::default()
    };
    let mut bytes = Vec::new();
    exact::to_vec_append(&mut bytes, &extra).unwrap();
    for number in 0..MOST_CALLSITES + 10 {
        tracer.emit(
            &origin,
            "so it is",
            &about(&format!("target {number}")),
            &bytes,
        );
        // A callsite that is known takes no room.
        tracer.emit(&origin, "so it is", &about("target 0"), &bytes);
    }
    let kept = std::mem::take(&mut *kept.lock());
    assert_eq!(kept.len(), 2 * (MOST_CALLSITES + 10));
    let own = [
        pair("message", "so it is"),
        pair("manyhands.process", "\"spy\""),
    ];
    let (mut made, mut general) = (0, 0);
    for (number, pairs) in kept.chunks(2).enumerate() {
        let named = format!("target {number}");
        let typed = [
            pair("size", "8"),
            pair("text", "\"a b\""),
            pair("shown", "c d"),
        ];
        let typed = [&own[..], &typed].concat();
        assert_eq!(pairs[1], ("target 0".to_owned(), typed.clone()));
        if pairs[0].0 == named {
            assert_eq!(pairs[0].1, typed);
            made += 1;
        } else {
            let fields = "size=8 text=\"a b\" shown=c d";
            let text = [
                pair("target", &format!("{named:?}")),
                pair("fields", fields),
            ];
            let expected = ("manyhands::logs".to_owned(), [&own[..], &text].concat());
            assert_eq!(pairs[0], expected);
            general += 1;
        }
    }
    assert_eq!((made, general), (MOST_CALLSITES, 10));
    // What cannot be read is left out, and the rest comes.
    tracer.emit(&origin, "odd", &about("target 1"), &[0xff; 9]);
    let (_, fields) = kept_last(&tracer, &origin);
    assert_eq!(fields[0], pair("message", "last"));
}

/// Returns what comes of an event without anything else.
fn kept_last(tracer: &Tracer, origin: &Origin) -> (String, Fields) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let other = Tracer {
        dispatch: Some(Dispatch::new(Keep(kept.clone()))),
    };
    assert!(tracer.is_there());
    other.emit(origin, "last", &about("target 1"), &[0xff; 9]);
    kept.lock().pop().unwrap()
}
