//! What an error says: which item it is about, how often that was tried, and what else a caller can
//! act on.

use nix::sys::signal::Signal;

use super::*;
use crate::error::ClaimError;
use crate::signals::signal_name;

fn died(index: Option<usize>) -> TaskError {
    TaskError::WorkerDied {
        index: index.into(),
        pid: 4_711,
        cause: Death::Exit(3),
        attempts: 1,
        crash: None,
    }
}

fn out_of_memory(index: Option<usize>) -> TaskError {
    TaskError::OutOfMemory {
        index: index.into(),
        pid: 4_711,
        limit: 1_024,
        attempts: 1,
    }
}

/// Returns one of each kind that belongs to an item.
fn of_items() -> [TaskError; 6] {
    let (index, reason) = (None, "no way".to_owned());
    [
        TaskError::Panicked {
            index: index.into(),
            message: "on purpose".to_owned().into(),
            location: None,
            backtrace: None,
        },
        died(index),
        TaskError::Encode {
            index: index.into(),
            part: TaskValue::Argument,
            reason: reason.clone().into(),
        },
        TaskError::Decode {
            index: index.into(),
            part: TaskValue::Result,
            reason: reason.into(),
        },
        TaskError::TimedOut {
            index: index.into(),
            limit: Duration::from_secs(2),
            attempts: 1,
        },
        out_of_memory(index),
    ]
}

#[test]
fn an_error_of_an_item_has_its_index_and_says_it() {
    for error in of_items() {
        assert_eq!(error.index(), None, "{error:?}");
        assert!(error.to_string().starts_with("the task "), "{error}");
        let of_item = error.clone().with_index(7);
        assert_eq!(of_item.index(), Some(7), "{of_item:?}");
        assert!(of_item.to_string().starts_with("item 7 "), "{of_item}");
        assert_ne!(of_item, error);
        assert_eq!(of_item.clone().indexed(Some(8)).index(), Some(8));
        assert_eq!(of_item.indexed(None), error);
    }
}

#[test]
fn an_error_of_a_whole_call_has_no_index() {
    let reason = Cow::Borrowed("of no use");
    for error in [
        TaskError::Cancelled {},
        TaskError::DeadlineExceeded {},
        TaskError::Taken {},
        TaskError::InvalidCall { reason },
        TaskError::from(ClaimError::Frozen),
        TaskError::from(PoolError::Closed),
    ] {
        let of_item = error.clone().with_index(7);
        assert_eq!((of_item.index(), &of_item), (None, &error));
    }
}

#[test]
fn an_error_says_how_often_its_item_was_tried() {
    for error in of_items() {
        let again = error.clone().with_attempts(4);
        // A value that does not cross would not cross again.
        let is_final = matches!(error, TaskError::Encode { .. } | TaskError::Decode { .. });
        assert_eq!(error.attempts(), (!is_final).then_some(1), "{error:?}");
        assert_eq!(again.attempts(), (!is_final).then_some(4), "{again:?}");
        assert_eq!(
            again.to_string().ends_with("; it was tried 4 times"),
            !is_final,
            "{again}"
        );
        assert!(!error.to_string().contains("times"), "once: {error}");
        assert_eq!(again == error, is_final);
    }
}

#[test]
fn an_error_says_what_it_knows() {
    let place = PanicLocation {
        file: "src/main.rs".to_owned(),
        line: 12,
        column: 5,
    };
    let panicked = |location| TaskError::Panicked {
        index: None.into(),
        message: "on purpose".to_owned().into(),
        location,
        backtrace: None,
    };
    let says = |error: &TaskError, parts: &[&str]| {
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    says(
        &panicked(Some(Box::new(place))),
        &["on purpose", "src/main.rs:12:5"],
    );
    assert!(!panicked(None).to_string().contains(" at "));
    says(&died(None), &["4711", "code 3"]);
    says(&out_of_memory(None), &["4711", "1024"]);
    let [_, _, encode, decode, timed_out, _] = of_items();
    says(&encode, &["argument", "cannot be serialised", "no way"]);
    says(&decode, &["result", "cannot be deserialised", "no way"]);
    says(&timed_out, &["2s"]);
    assert_eq!(TaskValue::Context.to_string(), "context");
    let start_failed = PoolError::StartFailed {
        worker: 2,
        workers: 5,
        reason: "no way".to_owned(),
    };
    says(&start_failed.into(), &["worker 2 of 5", "no way"]);
    let initializer = PoolError::InitializerFailed {
        worker: 2,
        reason: "no way".to_owned(),
    };
    says(&initializer.into(), &["worker 2", "no way"]);
    let system = PoolError::system("a pipe was not made", "no way");
    says(&system.into(), &["a pipe was not made: no way"]);
}

#[test]
fn a_death_says_its_cause() {
    for (death, says) in [
        (Death::Signal(9), "signal 9 (SIGKILL)"),
        (Death::Signal(40), "signal 40"),
        (Death::Exit(3), "code 3"),
        (Death::Corrupted(Corruption::ResultLength), "a length"),
        (Death::Unknown, "took its exit status"),
    ] {
        let text = death.to_string();
        assert!(text.contains(says), "{text}");
    }
    assert!(!Death::Signal(40).to_string().contains('('));
}

#[test]
fn signals_have_the_names_that_the_system_gives_them() {
    for signal in Signal::iterator() {
        let name = signal_name(signal as i32);
        assert!(name.is_none_or(|name| name == signal.as_str()), "{signal}");
    }
    // The signals by which processes end of themselves, or which the system or a user sends.
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGKILL,
        Signal::SIGSEGV,
        Signal::SIGPIPE,
        Signal::SIGALRM,
        Signal::SIGTERM,
        Signal::SIGXCPU,
        Signal::SIGXFSZ,
        Signal::SIGSYS,
    ] {
        assert_eq!(signal_name(signal as i32), Some(signal.as_str()));
    }
}

#[test]
fn a_task_may_hand_on_what_it_was_told() {
    let pool = TaskError::from(PoolError::TooDeep { limit: 9 });
    let errors = of_items()
        .into_iter()
        .chain([TaskError::Cancelled {}, pool]);
    for error in errors.map(|error| error.with_index(7)) {
        let mut bytes = Vec::new();
        crate::codec::append(&mut bytes, &error).unwrap();
        assert_eq!(crate::memory::wire::take(&mut &bytes[..]), Ok(error));
    }
}
