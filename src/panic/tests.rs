//! What is known of a panic, and that no panic passes `catch`.

use std::panic::{panic_any, resume_unwind};

use super::*;

/// A payload that panics when it is dropped, with one more of its kind.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_any(Self);
    }
}

#[test]
fn a_panic_is_caught_with_its_message_and_place() {
    install_hook();
    let caught = catch(|| panic!("on purpose")).unwrap_err();
    let place = caught.location.clone().unwrap();
    assert_eq!((place.file.as_str(), place.line), (file!(), line!() - 2));
    assert!(place.column > 1);
    assert_eq!(caught.message, "on purpose");
    let text = String::from("of its own");
    assert_eq!(catch(|| panic!("{text}")).unwrap_err().message, text);
    assert_eq!(catch(|| 7), Ok(7));
    let error = caught.into_error(Some(3));
    let TaskError::Panicked {
        index,
        message,
        location,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(index.get(), Some(3));
    assert_eq!(message, "on purpose");
    assert_eq!(location.as_deref(), Some(&place));
}

#[test]
fn a_panic_that_was_resumed_does_not_have_the_place_of_another() {
    install_hook();
    let caught = catch(|| {
        assert!(catch_unwind(|| panic!("another")).is_err());
        resume_unwind(Box::new("resumed"))
    });
    assert_eq!(caught, Err::<(), _>(Caught::saying("resumed")));
}

#[test]
fn a_panic_within_a_panics_payload_goes_no_further() {
    install_hook();
    let caught = catch(|| panic_any(Bomb)).unwrap_err();
    assert!(caught.message.contains("not text"), "{caught:?}");
    assert!(caught.location.is_some());
    // The next panic has its own message.
    let next = catch(|| panic!("the next")).unwrap_err();
    assert_eq!(next.message, "the next");
}

#[test]
fn a_panic_keeps_its_place_though_its_payload_panics() {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("in the payload");
        }
    }
    install_hook();
    // Inside another `catch`, as a task is: panics are noted there all the time.
    let caught = catch(|| catch(|| panic_any(Grumpy)).unwrap_err()).unwrap();
    assert_eq!(caught.location.unwrap().line, line!() - 1);
}

#[test]
fn a_panic_within_another_is_told_by_itself() {
    install_hook();
    let outer = catch(|| -> () {
        let inner = catch(|| panic!("inner")).unwrap_err();
        assert_eq!(inner.message, "inner");
        panic!("outer of {}", inner.location.unwrap().line)
    })
    .unwrap_err();
    let place = outer.location.unwrap();
    assert_eq!(outer.message, format!("outer of {}", place.line - 2));
}

#[cfg(target_os = "linux")]
#[test]
fn a_refused_claim_ends_its_task_with_the_claims_error() {
    let refused = || Refused(ClaimError::Frozen).end_task();
    let caught = catch(|| -> () { refused() }).unwrap_err();
    assert_eq!(caught.claim, Some(ClaimError::Frozen));
    let error = caught.into_error(Some(1));
    assert_eq!(error, TaskError::from(ClaimError::Frozen));
}
